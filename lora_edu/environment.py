r"""Is this Python ready for the notebooks? What is installed, what is needed, and how to put it right.

Which packages are needed, and their lower bounds, are read from the metadata of the installed `lora-edu`, so they stand
in one place. Nothing is imported to find a version.
"""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = ["Check", "EnvironmentReport", "check_environment", "judge", "lower_bounds"]

DISTRIBUTION = "lora-edu"
WIDGET_EXTENSION = "widget extension"
_REMEDIES = {
    "python": "install Python {bound} or newer from https://www.python.org",
    WIDGET_EXTENSION: "python -m pip install --force-reinstall jupyterlab_widgets",
}


@dataclass(frozen=True)
class Check:
    r"""One row of the report: what is installed, what is needed, and the remedy where the two disagree."""

    name: str
    installed: str | None
    needed: str
    status: str
    remedy: str = ""


@dataclass(frozen=True)
class EnvironmentReport:
    r"""All rows. `str(report)` is the table with versions; `summary()` is the same text on every ready machine."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        r"""True when every row is `"ok"`."""
        return not self.problems

    @property
    def problems(self) -> tuple[Check, ...]:
        r"""The rows that are not `"ok"`."""
        return tuple(check for check in self.checks if check.status != "ok")

    def summary(self) -> str:
        r"""`environment: ready`, or one line for each problem with its remedy."""
        if self.ready:
            return "environment: ready"
        lines = [f"  {check.name} is {check.status}; remedy: {check.remedy}" for check in self.problems]
        return "\n".join(["environment: not ready", *lines])

    def __str__(self) -> str:
        rows = [("package", "installed", "needed", "", "")]
        rows += [(c.name, c.installed or "-", c.needed, c.status, c.remedy) for c in self.checks]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
            for row in rows
        )


def check_environment() -> EnvironmentReport:
    r"""Compare what this Python has with what the notebooks need.

    Returns
    -------
    EnvironmentReport
        Rows for Python, NumPy, each package of the `notebooks` extra, and the JupyterLab extension that draws widgets.
        That extension must stand beside the *server*: a server from another environment shows sliders as dead text.

    Raises
    ------
    ModuleNotFoundError
        If `lora-edu` itself is not installed, for instance when its folder was only put on the path.
    """
    bounds = lower_bounds()
    installed = {name: _installed_version(name) for name in bounds}
    installed["python"] = platform.python_version()
    installed[WIDGET_EXTENSION] = _widget_extension_version()
    return judge({**bounds, WIDGET_EXTENSION: ""}, installed)


def judge(bounds: Mapping[str, str], installed: Mapping[str, str | None]) -> EnvironmentReport:
    r"""Turn lower bounds and installed versions into rows; an empty bound asks only for presence."""
    checks = []
    for name, bound in bounds.items():
        version = installed.get(name)
        if version is None:
            status = "missing"
        elif _release(version) < _release(bound):
            status = "too old"
        else:
            status = "ok"
        remedy = _REMEDIES.get(name, 'python -m pip install --upgrade "{name}>={bound}"').format(name=name, bound=bound)
        checks.append(Check(name, version, f">={bound}" if bound else "any", status, "" if status == "ok" else remedy))
    return EnvironmentReport(tuple(checks))


def lower_bounds() -> dict[str, str]:
    r"""Lower bounds of Python, the core dependencies and the `notebooks` extra: `{"python": "3.11", "numpy": ...}`."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        remedy = 'python -m pip install -e ".[notebooks]"'
        raise ModuleNotFoundError(
            f"{DISTRIBUTION} is not installed in this Python; remedy, in its folder: {remedy}"
        ) from None
    bounds = {"python": about["Requires-Python"].removeprefix(">=")}
    for requirement in about.get_all("Requires-Dist") or []:
        needed, _, marker = requirement.partition(";")
        match = re.fullmatch(r"([\w.-]+) *>= *([\d.]+)", needed.strip())
        if match and ("extra" not in marker or re.search(r"extra == ['\"]notebooks['\"]", marker)):
            bounds[match[1]] = match[2]
    return bounds


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _widget_extension_version() -> str | None:
    r"""Version of the extension's Python package, if JupyterLab run by this Python finds its files."""
    try:
        from jupyter_core.paths import jupyter_path
    except ModuleNotFoundError:
        return None
    folders = (Path(folder) / "@jupyter-widgets" / "jupyterlab-manager" for folder in jupyter_path("labextensions"))
    return _installed_version("jupyterlab_widgets") if any(folder.is_dir() for folder in folders) else None


def _release(version: str) -> tuple[int, ...]:
    r"""The leading numbers of a version, without trailing zeros: `"8.1.0rc1"` is `(8, 1)`."""
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
