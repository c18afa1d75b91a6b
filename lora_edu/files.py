r"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, data: bytes) -> None:
    r"""Put `data` at `path` in one step: a reader sees the old file or the new one, never half of it."""
    write_temporary(path, data).replace(path)


def write_temporary(target: Path, data: bytes) -> Path:
    r"""Write `data` beside `target` under a hidden name, ready to be moved into place; nothing stays if that fails."""
    temporary = _hidden_name(target)
    try:
        temporary.write_bytes(data)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    r"""A file to write piece by piece; it becomes `path` when the block ends, and vanishes if the block fails."""
    temporary = _hidden_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:  # an interrupt too: nothing half written stays
        temporary.unlink(missing_ok=True)
        raise


def _hidden_name(target: Path) -> Path:
    target = Path(target)
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")
