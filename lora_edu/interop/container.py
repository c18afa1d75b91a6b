r"""safetensors files, read a tensor at a time; nothing in them is believed before it was checked.

    8 bytes          length n of the header, little-endian
    n bytes          JSON: {"name": {"dtype": "F32", "shape": [out, in], "data_offsets": [start, stop]}, ...}
    the rest         the tensors, one behind the other, row-major, little-endian

The `safetensors` package judges the header (offsets without gaps or overlaps, sizes that fit, known dtypes); the bytes
of a tensor are then read from their place, because its NumPy side cannot give bfloat16, which NumPy does not have.

Source: the format's description in the `safetensors` repository.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.json_file import MAX_JSON_BYTES, parse_json, read_json
from lora_edu.validate import check_array

INDEX_SUFFIX = ".safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# BF16 is read as its 16 bits, and widened
DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1"},
}


@dataclass(frozen=True)
class TensorInfo:
    r"""What the header says of one tensor.

    Attributes
    ----------
    dtype : str
        As the file spells it, e.g. "F32", "BF16".
    shape : tuple of int
    path : Path
        The file that holds it.
    start, stop : int
        Its bytes in that file.
    """

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.stop - self.start


class TensorFile(Mapping):
    r"""Tensors by name, in one safetensors file or in shards; `tensors[name]` reads that tensor alone.

    Parameters
    ----------
    path : path
        A `.safetensors` file, an index (`*.safetensors.index.json`), or a folder that holds one of them.

    Attributes
    ----------
    path : Path
        The file or index that was opened.
    info : dict of str to TensorInfo
    metadata : dict of str to str
        The file's own remarks; of the first shard.

    Raises
    ------
    FileFormatError
        If a file is not a sound safetensors file, or is a pickle.
    OSError
        If it is missing or must not be read.
    """

    def __init__(self, path):
        self.path = _find(Path(path))
        self.metadata: dict[str, str] = {}
        self.info: dict[str, TensorInfo] = {}
        if self.path.name.endswith(INDEX_SUFFIX):
            self._read_index()
        else:
            self.info, self.metadata = _read_header(self.path)

    def _read_index(self):
        # an index maps every tensor to its shard: {"weight_map": {"name": "model-00001-of-00002.safetensors"}}
        weight_map = read_json(self.path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise FileFormatError(self.path, "has no weight_map that says which shard holds which tensor")
        shards: dict[str, dict[str, TensorInfo]] = {}
        for name, shard in weight_map.items():
            if not _is_plain_name(shard):
                raise FileFormatError(self.path, f"shard {shard!r} is not the name of a .safetensors file beside it")
            if shard not in shards:
                shards[shard], metadata = _read_header(self.path.parent / shard)
                self.metadata = self.metadata or metadata
            if name not in shards[shard]:
                raise FileFormatError(self.path, f"{shard} does not hold {name!r}, as the index says")
            self.info[name] = shards[shard][name]

    def __getitem__(self, name: str) -> np.ndarray:
        r"""The tensor, in its own dtype; bfloat16 as float32, which holds each of its values exactly."""
        info = self.info[name]
        if info.dtype not in DTYPES:
            raise FileFormatError(info.path, f"tensor {name!r} is {info.dtype}, which is not read here")
        dtype = np.dtype(DTYPES[info.dtype])
        try:
            tensor = self.raw(name).view(dtype).reshape(info.shape)
        except (ValueError, OverflowError) as error:  # a shape beyond NumPy
            if isinstance(error, FileFormatError):
                raise
            raise FileFormatError(info.path, f"tensor {name!r} of shape {list(info.shape)}: {error}") from None
        return widen_bfloat16(tensor) if info.dtype == "BF16" else tensor

    def finite(self, name: str) -> np.ndarray:
        r"""The tensor, which must be floating point and finite throughout; FileFormatError says where it is not."""
        tensor = self[name]
        try:
            return check_array(name, tensor)
        except (TypeError, ValueError) as error:
            raise FileFormatError(self.path, str(error)) from None

    def raw(self, name: str) -> np.ndarray:
        r"""The bytes of the tensor, whatever its dtype: (nbytes,) uint8."""
        info = self.info[name]
        with info.path.open("rb") as file:
            file.seek(info.start)
            data = np.fromfile(file, np.uint8, info.nbytes)
        if data.size < info.nbytes:
            problem = f"tensor {name!r} of shape {list(info.shape)}: the file has changed since it was opened"
            raise FileFormatError(info.path, problem)
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)

    def __contains__(self, name) -> bool:
        return name in self.info  # Mapping would read the tensor to find out

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.info.values())

    def __repr__(self):
        return f"TensorFile({str(self.path)!r}, {len(self)} tensors, {self.nbytes:,} bytes)"


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    r"""bfloat16, given as its 16 bits, as float32: the upper half of a float32 whose lower half is zero."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def require_safetensors(module: str = ""):
    r"""The package `safetensors`, or its module, imported when it is needed; ModuleNotFoundError names the remedy."""
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "safetensors":
            raise
        raise ModuleNotFoundError(
            'safetensors files need the package safetensors; remedy: python -m pip install "lora-edu[files]"',
            name="safetensors",
        ) from None
    return getattr(safetensors, module) if module else safetensors


def refuse_pickle(path: Path):
    r"""Raise FileFormatError for a file that PyTorch pickled: by its suffix here, by its first bytes on opening.

    NumPy's own archives are refused with their own remedy, for they begin like PyTorch's.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise FileFormatError(path, PICKLED)
    if path.suffix.lower() == ".npz":
        raise FileFormatError(path, NUMPY_ARCHIVE)


NUMPY_ARCHIVE = (
    "is an archive of NumPy, not a safetensors file; convert it: "
    "safetensors.numpy.save_file(dict(numpy.load(path)), 'model.safetensors')"
)
PICKLED = (
    "is a Python pickle, which can run any code when it is opened, so it is never opened here; convert it where torch "
    "is installed: safetensors.torch.save_file(torch.load(path, weights_only=True), 'adapter_model.safetensors')"
)


def _find(path: Path) -> Path:
    """The file that `path` means: itself, or the one safetensors file or index in the folder `path`."""
    if not path.is_dir():
        refuse_pickle(path)
        return path
    for name in ("adapter_model.safetensors", "model.safetensors", "model" + INDEX_SUFFIX):
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    for pickled in sorted(path.iterdir()):
        refuse_pickle(pickled)
    raise FileFormatError(path, f"this folder holds {len(found)} safetensors files and no index; name one file")


def _is_plain_name(shard) -> bool:
    """Whether an index names a file beside itself, under the rules of every system: no folder, no drive, no `..`."""
    if not isinstance(shard, str) or not shard.endswith(".safetensors") or not shard.isprintable():
        return False
    return PurePosixPath(shard).name == shard and PureWindowsPath(shard).name == shard and ":" not in shard


def _read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """What the file says of its tensors, and its remarks; nothing is believed before it was checked."""
    safetensors = require_safetensors()
    if path.is_dir():
        raise FileFormatError(path, "is a folder, a file is needed")
    if path.exists() and not path.is_file():
        raise FileFormatError(path, "is not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
            raise FileFormatError(path, PICKLED)
        length = int.from_bytes(start, "little")
        if len(start) < 8:
            raise FileFormatError(path, f"is not a safetensors file: it has {size} bytes, its header alone takes more")
        if length > min(size - 8, MAX_JSON_BYTES):
            raise FileFormatError(
                path, f"is truncated or not a safetensors file: it claims a header of {length:,} bytes and has {size:,}"
            )
        header = parse_json(file.read(length), path)
    try:
        with safetensors.safe_open(path, framework="np"):  # judges offsets, sizes, dtypes and shapes
            pass
    except safetensors.SafetensorError as error:
        raise FileFormatError(path, f"is truncated or corrupt: {error}") from None
    metadata = header.pop("__metadata__", None) or {}
    offset = 8 + length
    info = {
        name: TensorInfo(
            entry["dtype"],
            tuple(entry["shape"]),
            path,
            offset + entry["data_offsets"][0],
            offset + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }
    return info, metadata
