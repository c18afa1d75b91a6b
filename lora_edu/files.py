r"""Files that appear whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    r"""Put `data` at `path` in one step: a reader sees the old file or the new one, never half of it."""
    write_temporary(path, data).replace(path)


def write_temporary(target: Path, data: bytes) -> Path:
    r"""Write `data` beside `target` under a hidden name, ready to be moved into place; nothing stays if that fails."""
    target = Path(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
