r"""The command `lora-edu`: open the series, check the environment, regenerate what is stored, look into files.

A command is a function that adds its arguments to a parser and returns the function to run; `COMMANDS` lists them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lora_edu import environment, series
from lora_edu.arithmetic import steady
from lora_edu.codebooks import CODEBOOKS
from lora_edu.interop.errors import FileFormatError

__all__ = ["main"]

FIRST_NOTEBOOK = "00_start_here.ipynb"
COPY_FOLDER = "lora_edu_notebooks"

Run = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    r"""Run one command and return its exit status: 0 fine, 1 something was found, 2 it could not run."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    extra: list[str] = []
    if "--" in arguments:
        split = arguments.index("--")
        arguments, extra = arguments[:split], arguments[split + 1 :]
    parser = argparse.ArgumentParser(prog="lora-edu", description="LoRA, QLoRA and NF4 in notebooks that answer back.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (purpose, configure) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=purpose)
        subparser.set_defaults(run=configure(subparser), command=name)
    options = parser.parse_args(arguments)
    if extra and options.command != "lab":
        parser.error(f"only `lab` passes arguments on; {options.command} got {' '.join(extra)}")
    options.extra = extra
    try:
        return options.run(options)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        print(f"lora-edu: a tensor is larger than memory: {error}", file=sys.stderr)
        return 2
    except (OSError, ModuleNotFoundError, FileFormatError) as error:
        print(f"lora-edu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lora-edu: interrupted", file=sys.stderr)
        return 130


def _lab(parser: argparse.ArgumentParser) -> Run:
    parser.usage = "lora-edu lab [-h] [--no-browser] [FOLDER] [-- JUPYTERLAB ARGUMENTS]"
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help=f"copy to and open (./{COPY_FOLDER})")
    parser.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")

    def run(options: argparse.Namespace) -> int:
        try:
            from jupyterlab.labapp import LabApp
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "jupyterlab":
                raise
            print(
                'lora-edu: JupyterLab is missing; remedy: python -m pip install "lora-edu[notebooks]"', file=sys.stderr
            )
            return 2
        folder = _series_for_reading(options.folder)
        os.environ.update(_lab_environment(os.environ))
        LabApp.launch_instance(_lab_arguments(folder, options.no_browser, options.extra))
        return 0

    return run


def _series_for_reading(folder: Path | None) -> Path:
    r"""The folder to open: the checkout's own, or a copy that the reader may change."""
    if folder is None and series.in_checkout():
        return series.notebook_folder()
    folder = folder or Path(COPY_FOLDER)
    copied = series.copy_notebooks(folder)
    print(f"{folder}: {len(copied.written)} files copied, {len(copied.kept)} already there and left alone")
    return folder


def _lab_arguments(folder: Path, no_browser: bool, extra: Sequence[str]) -> list[str]:
    folder = folder.resolve()
    arguments = [str(folder / FIRST_NOTEBOOK), f"--ServerApp.root_dir={folder}"]
    if no_browser:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")
    return [*arguments, *extra]


def _lab_environment(environ) -> dict[str, str]:
    r"""Variables for the server: our defaults (no question about news) come after the reader's own configuration."""
    ours = str(Path(__file__).resolve().parent / "jupyter_config")
    theirs = environ.get("JUPYTER_CONFIG_PATH")
    return {
        "JUPYTER_CONFIG_PATH": f"{theirs}{os.pathsep}{ours}" if theirs else ours,
        # One BLAS thread, as in the stored notebooks, so that the same numbers are printed.
        "OPENBLAS_NUM_THREADS": environ.get("OPENBLAS_NUM_THREADS", "1"),
    }


def _check(parser: argparse.ArgumentParser) -> Run:
    def run(options: argparse.Namespace) -> int:
        report = environment.check_environment()
        print(f"{sys.executable}\n{report}\n{report.summary()}")
        return 0 if report.ready else 1

    return run


def _notebooks(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks to run (all)")
    parser.add_argument("--check", action="store_true", help="compare with what is stored, write nothing")
    parser.add_argument("--folder", type=Path, help="where they are (the series itself)")

    def run(options: argparse.Namespace) -> int:
        from nbclient.exceptions import CellExecutionError

        folder = options.folder or series.notebook_folder()
        try:
            differing = series.regenerate(folder, check=options.check, names=options.names)
        except CellExecutionError as error:
            print(f"lora-edu: a cell failed, nothing was written for it\n{error}", file=sys.stderr)
            return 1
        return 1 if options.check and differing else 0

    return run


def _figures(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("--check", action="store_true", help="compare with what is stored, write nothing")
    parser.add_argument("--folder", type=Path, help="where they are (figures/ of the checkout)")

    def run(options: argparse.Namespace) -> int:
        from lora_edu import figures

        folder = options.folder or figures.figure_folder()
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}; name one with --folder")
        if os.environ != steady(os.environ):  # too late for this process: NumPy is loaded already
            again = [sys.executable, "-m", "lora_edu", "figures", f"--folder={folder}", *["--check"] * options.check]
            return subprocess.run(again, env=steady(os.environ)).returncode
        differing = figures.regenerate(folder, check=options.check)
        return 1 if options.check and differing else 0

    return run


def _inspect(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("path", type=Path, metavar="PATH", help="an adapter or a model: its folder, file or index")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")

    def run(options: argparse.Namespace) -> int:
        from lora_edu.interop import inspect

        with _Progress("layers") as progress:
            found = inspect(options.path, progress)
        return _tell(found, options.json)

    return run


def _quantize(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a model: its folder, file or index")
    parser.add_argument("out", type=Path, metavar="OUT", help="the .safetensors file to write")
    parser.add_argument("--format", choices=("nf4", "fp4"), default="nf4", help="codebook (nf4)")
    _add_block_size(parser)
    parser.add_argument("--double-quant", action="store_true", help="store the scales in 8 bits too")
    parser.add_argument(
        "--skip", action="append", default=[], metavar="PART", help="copy weights whose name holds PART"
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")

    def run(options: argparse.Namespace) -> int:
        from lora_edu.interop import quantize_file

        how = (options.format, options.block_size, options.double_quant, options.skip)
        with _Progress("tensors") as progress:
            done = quantize_file(options.weights, options.out, *how, progress)
        return _tell(done, options.json)

    return run


def _error(parser: argparse.ArgumentParser) -> Run:
    parser.add_argument("weights", type=Path, metavar="WEIGHTS", help="a model: its folder, file or index")
    parser.add_argument(
        "--format", action="append", choices=tuple(CODEBOOKS), help="one to measure, may be repeated (five of them)"
    )
    _add_block_size(parser)
    parser.add_argument("--json", action="store_true", help="print JSON for programs")

    def run(options: argparse.Namespace) -> int:
        from lora_edu.interop import error_report
        from lora_edu.interop.model_file import ERROR_FORMATS

        with _Progress("weights") as progress:
            found = error_report(options.weights, options.format or ERROR_FORMATS, options.block_size, progress)
        return _tell(found, options.json)

    return run


def _add_block_size(parser: argparse.ArgumentParser) -> None:
    sizes = tuple(2**power for power in range(5, 13))  # those that bitsandbytes has
    parser.add_argument("--block-size", type=int, choices=sizes, default=64, help="weights that share a scale (64)")


def _tell(found, as_json: bool) -> int:
    text = json.dumps(found.as_json(), indent=2) if as_json else str(found)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # a name may hold what it lacks
    return 0


class _Progress:
    r"""`done/total layers` on a terminal's standard error, from the second second on; wiped at the end."""

    def __init__(self, unit: str):
        self._unit = unit
        self._next = time.monotonic() + 1
        self._shown = False

    def __enter__(self) -> "_Progress":
        return self

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next and sys.stderr.isatty():
            print(f"\r{done}/{total} {self._unit}", end="", file=sys.stderr, flush=True)
            self._next, self._shown = time.monotonic() + 0.1, True

    def __exit__(self, *error) -> None:
        if self._shown:
            print("\r" + " " * 40 + "\r", end="", file=sys.stderr, flush=True)


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Run]]] = {
    "lab": ("open the series in JupyterLab", _lab),
    "check": ("say whether this environment is ready for the notebooks", _check),
    "notebooks": ("execute the notebooks and store, or check, their outputs", _notebooks),
    "figures": ("draw the published figures and their index, or check them", _figures),
    "inspect": ("say what is in an adapter, layer by layer, or where the bytes of a model file go", _inspect),
    "quantize": ("write the linear weights of a model in 4 bits, as bitsandbytes stores them", _quantize),
    "error": ("say what 4-bit formats would do to each linear weight of a model", _error),
}
