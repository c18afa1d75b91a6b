r"""The published figures: every chapter's `FIGURES`, drawn to SVG and PNG with an index page.

The drawing is done by the same functions that the notebooks call; a chapter names what it publishes.
"""

import importlib
from collections.abc import Callable
from html import escape
from importlib.metadata import version
from pathlib import Path

from lora_edu.arithmetic import fingerprint
from lora_edu.files import write_atomically

CHAPTERS = (
    "start",
    "rank",
    "scaling",
    "merge",
    "nf4_error",
    "limit",
    "build_nf4",
    "real_model",
    "finetuning",
    "real_files",
    "second_language",
    "negation",
)
INDEX = "README.md"


def figure_folder() -> Path:
    r"""`figures/` of the checkout."""
    return Path(__file__).resolve().parents[1] / "figures"


def published() -> dict[str, tuple[str, Callable]]:
    r"""Stem of the file -> (caption, function that returns the `Picture`), chapter by chapter."""
    found = {}
    for chapter in CHAPTERS:
        for stem, figure in importlib.import_module(f"lora_edu.explorers.{chapter}").FIGURES.items():
            if stem in found:
                raise ValueError(f"two chapters publish a figure called {stem!r}; rename one")
            found[stem] = figure
    return found


def draw() -> dict[str, bytes]:
    r"""File name -> content, of every figure and of the index page."""
    files, sections = {}, []
    for stem, (caption, picture) in published().items():
        drawn = picture()
        files[f"{stem}.svg"], files[f"{stem}.png"] = drawn.svg(), drawn.png()
        sections.append(
            f"## {stem}\n\n"
            f'<a href="{stem}.svg"><img src="{stem}.png" width="900" alt="{escape(drawn.alt)}"></a>\n\n'
            f"{caption}\n\n<sub>In words: {escape(drawn.alt)}. [SVG]({stem}.svg)</sub>\n"
        )
    head = (
        "# Figures\n\nOne picture for each idea, drawn by the functions that the notebooks call. "
        "`lora-edu figures` draws them all again, byte for byte.\n\n"
        f"<sub>{_recorded()}</sub>\n"
    )
    files[INDEX] = "\n".join([head, *sections]).encode("utf-8")
    return files


def regenerate(folder: Path, check: bool = False, say: Callable[[str], None] = print) -> list[str]:
    r"""Draw every figure into `folder`, or with `check` compare: the files that differed or are left over.

    Bytes are compared under the versions and the arithmetic that the index records; under others, only which figures
    there are and what is said of them.
    """
    drawn = draw()
    stored = {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix in (".svg", ".png", ".md")}
    same_version = _recorded().encode() in stored.get(INDEX, b"")
    if check and not same_version:
        say(f"bytes not compared: the stored figures were not {_recorded()}")
        drawn[INDEX] = _without_version(drawn[INDEX])
        stored[INDEX] = _without_version(stored.get(INDEX, b""))
    differing = [
        name
        for name in sorted(drawn.keys() | stored.keys())
        if (drawn.get(name) is None or stored.get(name) is None)
        or (drawn[name] != stored[name] and (same_version or not check or name == INDEX))
    ]
    for name in differing:
        if not check and name in drawn:
            write_atomically(folder / name, drawn[name])
        elif not check:
            (folder / name).unlink()
        say(f"{name}: " + ("differs" if check else "written" if name in drawn else "removed, nobody publishes it"))
    say(f"{len(drawn)} files, {len(differing)} {'differ' if check else 'changed'}")
    return differing


def _recorded() -> str:
    return f"drawn by matplotlib {version('matplotlib')} and Pillow {version('pillow')}, arithmetic {fingerprint()}"


def _without_version(index: bytes) -> bytes:
    return b"\n".join(line for line in index.splitlines() if b"drawn by matplotlib" not in line)
