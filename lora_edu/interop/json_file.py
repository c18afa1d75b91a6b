r"""JSON from files that strangers wrote: one object, every key once, nothing that JSON does not have."""

import json
from pathlib import Path

from lora_edu.interop.errors import FileFormatError

MAX_JSON_BYTES = 100_000_000  # the limit that safetensors sets for a header


def read_json(path: Path) -> dict:
    r"""The object in a JSON file; a key that stands twice, NaN, or a text that is no object is refused."""
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(path, "is a folder, a file is needed")
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise FileFormatError(path, f"is longer than {MAX_JSON_BYTES:,} bytes")
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> dict:
    r"""As `read_json`, of bytes that came from `path`."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise FileFormatError(path, f"the key {twice!r} stands twice")
        return found

    def refuse(constant):
        raise FileFormatError(path, f"{constant} is not JSON")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except FileFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise FileFormatError(path, f"must hold a JSON object, got {type(value).__name__}")
    return value
