r"""safetensors files, written in one step: an existing file is replaced whole, or stays."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lora_edu.files import write_atomically
from lora_edu.interop.container import DTYPES, require_safetensors


def write_tensors(path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, bfloat16=()):
    r"""Write a safetensors file in one step: an existing file is replaced whole, or stays.

    Parameters
    ----------
    path : path
    tensors : mapping of name to array
        float64, float32, float16, bool or integer.
    metadata : mapping of str to str, optional
        `{"format": "pt"}` for a file that PyTorch's libraries are to open.
    bfloat16 : names
        Those whose float32 values are stored as bfloat16; each must be one already (`precision.round_to_bfloat16`).

    Raises
    ------
    TypeError, ValueError
        For a dtype that the format does not have, or a value that bfloat16 does not.
    """
    save = require_safetensors("numpy").save
    arrays = {
        name: np.asarray(tensor, order="C") for name, tensor in tensors.items()
    }  # a view would be written wrongly
    for name, array in arrays.items():
        if name in bfloat16:
            arrays[name] = _narrow_to_bfloat16(name, array)
        elif array.dtype.newbyteorder("<") not in map(np.dtype, DTYPES.values()):
            raise TypeError(f"tensor {name!r} must be float, integer or bool to be written, got {array.dtype}")
    data = save(arrays, dict(metadata) if metadata else None)
    write_atomically(Path(path), _relabel_bfloat16(data, bfloat16) if bfloat16 else data)


def _narrow_to_bfloat16(name: str, array: np.ndarray) -> np.ndarray:
    """The 16 bits of float32 values that are bfloat16 already."""
    bits = array.astype(np.float32).view(np.uint32)
    if array.dtype != np.float32 or (bits & np.uint32(0xFFFF)).any():
        raise ValueError(
            f"tensor {name!r} must hold float32 values that bfloat16 has; round them with round_to_bfloat16"
        )
    return (bits >> np.uint32(16)).astype(np.uint16)


def _relabel_bfloat16(data: bytes, names) -> bytes:
    """The file again, with the dtype BF16 on the tensors that were stored as the same 16 bits of an integer."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    for name in names:
        header[name]["dtype"] = "BF16"
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + data[start:]
