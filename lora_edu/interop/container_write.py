r"""safetensors files, written in one step: an existing file is replaced whole, or stays.

`write_tensors` has all tensors at once; `write_in_pieces` takes one after the other, for files larger than memory.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from lora_edu.files import open_atomically, write_atomically
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


@dataclass(frozen=True)
class Planned:
    r"""A tensor that a file is to hold: dtype as the file spells it, shape, and bytes, which are None until known.

    Where the bytes are not known yet it is a vector of bytes, "U8", and its shape follows from them.
    """

    dtype: str
    shape: tuple[int, ...] | None
    nbytes: int | None

    @property
    def alignment(self) -> int:
        """Bytes of one of its numbers: it begins at a multiple of them."""
        return max(1, self.nbytes // max(1, prod(self.shape)))


def write_in_pieces(path, plan: Mapping[str, Planned], pieces: Iterable[tuple[str, np.ndarray]], metadata=None):
    r"""Write a safetensors file tensor by tensor, in one step as `write_tensors`, without holding it in memory.

    Tensors of eight bytes a number come first, then those of four, two and one, so that each begins at a multiple of
    its number's size, as PyTorch asks. Their places are known before their contents: a piece is written where it
    belongs when it comes. Those of unknown size stand at the end. The header is written last, into room left for it.

    Parameters
    ----------
    path : path
    plan : mapping of name to Planned
    pieces : iterable of (name, array)
        Each name of the plan once, in any order; the bytes of the array are stored.
    metadata : mapping of str to str, optional

    Raises
    ------
    ValueError
        If a piece has not the size that was planned, or is missing.
    """
    places, end = {}, 0
    sized = [name for name, planned in plan.items() if planned.nbytes is not None]
    for name in sorted(sized, key=lambda name: -plan[name].alignment):
        places[name] = (end, end + plan[name].nbytes)
        end += plan[name].nbytes
    longest = dict.fromkeys(plan, (10**17, 10**18))  # offsets with more digits than any true one
    room = len(_header(plan, longest, metadata))
    room += -room % 8
    missing = set(plan)
    with open_atomically(Path(path)) as file:
        for name, array in pieces:
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            if name not in places:
                places[name] = (end, end + data.size)
                end += data.size
            start, stop = places[name]
            if data.size != stop - start:
                raise ValueError(f"tensor {name!r} must have {stop - start} bytes as planned, got {data.size}")
            file.seek(8 + room + start)
            file.write(data)
            missing.remove(name)
        if missing:
            raise ValueError(f"tensors that were planned are missing: {', '.join(sorted(missing))}")
        file.seek(0)
        file.write(room.to_bytes(8, "little") + _header(plan, places, metadata).ljust(room))


def _header(plan, places, metadata) -> bytes:
    """The JSON that says where each tensor is."""
    header = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (start, stop) in places.items():
        shape = [stop - start] if plan[name].shape is None else list(plan[name].shape)
        header[name] = {"dtype": plan[name].dtype, "shape": shape, "data_offsets": [start, stop]}
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


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
