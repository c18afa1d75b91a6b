r"""Tables of text, columns as wide as they need to be."""

import re
from collections.abc import Sequence

from lora_edu.interop.errors import printable

MAX_NAME = 60  # characters of a name in a table; JSON has it whole


def table(rows: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    r"""Lines of a table: the first `left` columns flush left, the others, which are numbers, flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def short(name: str) -> str:
    r"""A name of a file's tensor as a table shows it: safe to print, and cut."""
    return printable(name, MAX_NAME)


def by_number(name: str) -> list[tuple[int, str]]:
    r"""A key to sort names by, in which layer 2 comes before layer 10: numbers by their length first."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part) if at % 2 else 0, part) for at, part in enumerate(parts)]
