r"""4-bit weights in the files of bitsandbytes: the state dict of its `Linear4bit`, read and written.

    <m>.weight                                   packed codes, first code in the high nibble; bytes of any dtype
    <m>.weight.absmax                            (blocks,) float32, or uint8 where the scales are quantized too
    <m>.weight.quant_map                         (16,) float32, the levels by code
    <m>.weight.nested_absmax                     (blocks / 256,) float32       with 8-bit scales only
    <m>.weight.nested_quant_map                  (256,) float32, the 8-bit map with 8-bit scales only
    <m>.weight.quant_state.bitsandbytes__nf4     JSON as bytes: block size, dtype and shape of the weight, offset

What a name says is checked against shapes and dtypes when a file is opened; a weight is read when it is asked for.

Source: bitsandbytes 0.50.2, `QuantState.as_dict` and `from_dict`, `Linear4bit._save_to_state_dict`. Its kernels take
the levels from the name nf4 or fp4, not from `quant_map`, so a file with other levels there is refused. On a CPU with
AVX-512 that version takes wrong scales where rows are no multiple of the block size; the file itself is right.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lora_edu.blockwise import SCALE_BLOCK, QuantizedScales, QuantizedTensor, dequantize, quantize
from lora_edu.codebooks import FP4, NF4, dynamic_map
from lora_edu.interop.container import DTYPES, TensorFile
from lora_edu.interop.container_write import Planned, write_in_pieces
from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.json_file import parse_json
from lora_edu.precision import round_to_bfloat16

FORMATS = {"nf4": NF4, "fp4": FP4}
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LABELS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # dtypes a weight may have had -> as files spell them

QUANT_STATE = re.compile(r"(.+)\.quant_state\.bitsandbytes__(.*)", re.DOTALL)
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
MAX_SETTINGS = 10_000  # bytes of a weight's JSON; a true one has below 200
MAX_DIMENSIONS = 8


@dataclass(frozen=True, eq=False)
class Weight4bit:
    r"""A quantized weight together with what NumPy cannot say of it.

    Attributes
    ----------
    quantized : QuantizedTensor
        Its dtype is float32 where the weight was bfloat16.
    dtype : "float32", "float16" or "bfloat16"
        Of the weight that was quantized.
    storage : str
        The dtype under which a file holds the packed codes: "U8" unless `quant_storage` was something else.
    """

    quantized: QuantizedTensor
    dtype: str = "float32"
    storage: str = "U8"

    def __post_init__(self):
        q = self.quantized
        if q.codebook not in FORMATS.values():
            raise ValueError(f"codebook must be nf4 or fp4, as bitsandbytes has them, got {q.codebook.name}")
        if q.nibble_order != "high-first":
            raise ValueError(f"nibble_order must be 'high-first' in bitsandbytes, got {q.nibble_order!r}")
        if q.block_size not in BLOCK_SIZES:
            raise ValueError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {q.block_size}")
        if not isinstance(q.absmax, QuantizedScales) and q.absmax.dtype != np.float32:
            raise ValueError(f"scales must be float32 or double-quantized in bitsandbytes, got {q.absmax.dtype}")
        if self.dtype not in LABELS:
            raise ValueError(f"dtype must be one of {', '.join(LABELS)}, got {self.dtype!r}")
        if q.dtype != (np.float16 if self.dtype == "float16" else np.float32):
            raise ValueError(f"a {self.dtype} weight must be quantized from {self.dtype}, got {q.dtype}")
        size = np.dtype(DTYPES[self.storage]).itemsize if self.storage in DTYPES else 0
        if not size or q.packed.size % size:
            raise ValueError(f"storage {self.storage!r} cannot hold {q.packed.size} bytes; use 'U8'")

    def dequantize(self) -> np.ndarray:
        r"""level[code] · scale, rounded once to `dtype`; bfloat16 is held in float32."""
        weight = dequantize(self.quantized)
        return round_to_bfloat16(weight) if self.dtype == "bfloat16" else weight

    def tensors(self, name: str = "weight") -> dict[str, tuple[Planned, np.ndarray]]:
        r"""What a file holds of it: name -> how it is declared, and the array whose bytes stand there."""
        q, kind = self.quantized, self.quantized.codebook.name
        settings = {"quant_type": kind, "blocksize": q.block_size, "dtype": self.dtype, "shape": list(q.shape)}
        arrays = {"": q.packed, ".quant_map": q.codebook.levels + np.float32(0)}  # its zeros have no sign
        if isinstance(q.absmax, QuantizedScales):
            arrays |= {".absmax": q.absmax.codes, ".nested_absmax": q.absmax.absmax, ".nested_quant_map": dynamic_map()}
            settings["nested_blocksize"] = SCALE_BLOCK
            settings["nested_dtype"] = "float32"
            settings["nested_offset"] = float(q.absmax.offset)
        else:
            arrays[".absmax"] = q.absmax
        plan = planned_4bit(name, q.shape, kind, q.block_size, ".nested_absmax" in arrays, self.storage)
        arrays[f".quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(settings).encode(), np.uint8)
        return {name + part: (plan[name + part], array) for part, array in arrays.items()}


def planned_4bit(name, shape, kind, block_size, double, storage="U8") -> dict[str, Planned]:
    r"""The tensors that stand for one weight in a file, before any number of it is known."""
    packed = -(-math.prod(shape) // 2)
    blocks = -(-math.prod(shape) // block_size)
    plan = {
        name: Planned(storage, (packed // np.dtype(DTYPES[storage]).itemsize, 1), packed),
        name + ".absmax": Planned("U8", (blocks,), blocks) if double else Planned("F32", (blocks,), 4 * blocks),
        name + ".quant_map": Planned("F32", (16,), 64),
    }
    if double:
        groups = -(-blocks // SCALE_BLOCK)
        plan[name + ".nested_absmax"] = Planned("F32", (groups,), 4 * groups)
        plan[name + ".nested_quant_map"] = Planned("F32", (256,), 1024)
    plan[f"{name}.quant_state.bitsandbytes__{kind}"] = Planned("U8", None, None)
    return plan


def quantize_4bit(
    weight, kind: str = "nf4", block_size: int = 64, double: bool = False, dtype: str | None = None
) -> Weight4bit:
    r"""Quantize as bitsandbytes does, ready to be written.

    Parameters
    ----------
    weight : float32 or float16 array
    kind : "nf4" or "fp4"
    block_size : int
        32, 64, … 4096.
    double : bool
        Scales in 8 bits (`compress_statistics` of bitsandbytes).
    dtype : str, optional
        "bfloat16" for float32 values that stand for such; the weight's own unless given.
    """
    if kind not in FORMATS:
        raise ValueError(f"kind must be one of {', '.join(FORMATS)}, got {kind!r}")
    weight = np.asarray(weight)
    quantized = quantize(weight, block_size, FORMATS[kind], "high-first", "double" if double else "float32")
    return Weight4bit(quantized, dtype or weight.dtype.name)


def write_bitsandbytes(path, weights: Mapping[str, Weight4bit | np.ndarray], metadata: Mapping[str, str] | None = None):
    r"""Write 4-bit weights, and arrays beside them, into one file that bitsandbytes loads; atomic.

    Parameters
    ----------
    path : path
    weights : mapping of name to Weight4bit or array
        `q_proj.weight`, and for instance `q_proj.bias` as it is.
    metadata : mapping of str to str, optional
        `{"format": "pt"}` is added.
    """
    labels = {np.dtype(dtype): label for label, dtype in DTYPES.items() if label != "BF16"}
    found: dict[str, tuple[Planned, np.ndarray]] = {}
    for name, weight in weights.items():
        if isinstance(weight, Weight4bit):
            found |= weight.tensors(name)
            continue
        array = np.asarray(weight)
        if array.dtype not in labels:
            raise TypeError(f"tensor {name!r} must be a Weight4bit, or float, integer or bool, got {array.dtype}")
        found[name] = (Planned(labels[array.dtype], array.shape, array.nbytes), array)
    plan = {name: planned for name, (planned, _) in found.items()}
    pieces = ((name, array) for name, (_, array) in found.items())
    write_in_pieces(path, plan, pieces, {**(metadata or {}), "format": "pt"})


@dataclass(frozen=True)
class Header4bit:
    r"""What a file says of one quantized weight, checked but for the numbers in it.

    Attributes
    ----------
    name : str
    kind : "nf4" or "fp4"
    block_size : int
    dtype : str
    shape : tuple of int
    offset : float or None
        Mean of the scales where these are quantized too.
    tensors : dict of str to str
        Part -> name of the tensor: "codes", "quant_state" and those of `PARTS` that are there.
    """

    name: str
    kind: str
    block_size: int
    dtype: str
    shape: tuple[int, ...]
    offset: float | None
    tensors: dict[str, str]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


class BitsandbytesFile(Mapping):
    r"""A model file, with its 4-bit weights under the names they had before; `file[name]` is the weight as numbers.

    Anything that takes base weights by name takes it: `adapter.over(read_bitsandbytes(path))`.

    Attributes
    ----------
    file : TensorFile
    headers : dict of str to Header4bit
        The quantized weights.
    plain : tuple of str
        The other tensors.
    """

    def __init__(self, file: TensorFile):
        self.file = file
        self.headers = find_4bit(file)
        inside = {tensor for header in self.headers.values() for tensor in header.tensors.values()}
        self.plain = tuple(name for name in file if name not in inside)

    def __getitem__(self, name: str) -> np.ndarray:
        """A 4-bit weight dequantized, another tensor as it is; bfloat16 held in float32."""
        return self.weight(name).dequantize() if name in self.headers else self.file[self._plain(name)]

    def weight(self, name: str) -> Weight4bit:
        """A 4-bit weight as it is stored."""
        return _read_weight(self.file, self.headers[name])

    def _plain(self, name):
        if name not in self.plain:
            raise KeyError(name)
        return name

    def __iter__(self) -> Iterator[str]:
        return iter((*self.headers, *self.plain))

    def __len__(self) -> int:
        return len(self.headers) + len(self.plain)

    def __contains__(self, name) -> bool:
        return name in self.headers or name in self.plain  # Mapping would read the tensor to find out

    def __repr__(self):
        return f"BitsandbytesFile({str(self.file.path)!r}, {len(self.headers)} in 4 bits, {len(self.plain)} others)"


def read_bitsandbytes(path) -> BitsandbytesFile:
    r"""Open a file, or an index of shards, that holds 4-bit weights of bitsandbytes.

    Raises
    ------
    FileFormatError
        If the file is corrupt, or holds a 4-bit weight that is incomplete or contradicts itself.
    OSError, ModuleNotFoundError
        If it is missing or must not be read; if the package `safetensors` is.
    """
    return BitsandbytesFile(TensorFile(path))


def find_4bit(file: TensorFile) -> dict[str, Header4bit]:
    r"""The 4-bit weights of a file by name; of tensors only their few bytes of JSON are read."""
    found: dict[str, Header4bit] = {}
    for tensor in file:
        match = QUANT_STATE.fullmatch(tensor)
        if match:
            name, kind = match.groups()
            if name in found:
                raise FileFormatError(file.path, f"{name!r} has two quant_state tensors")
            found[name] = _checked_header(file, name, kind, tensor)
    for tensor in file:
        name, _, part = tensor.rpartition(".")
        if part in PARTS and name not in found:
            problem = f"{tensor!r} belongs to a 4-bit weight, but {name + '.quant_state'!r} is not there"
            raise FileFormatError(file.path, f"{problem}; of a model in several files name the index")
    return found


def _checked_header(file: TensorFile, name: str, kind: str, tensor: str) -> Header4bit:
    def refuse(problem):
        raise FileFormatError(file.path, f"4-bit weight {name!r}: {problem}")

    if kind not in FORMATS:
        refuse(f"its format {kind!r} is not read here, only {' and '.join(FORMATS)}")
    if file.info[tensor].dtype != "U8" or file.info[tensor].nbytes > MAX_SETTINGS:
        refuse(f"its quant_state must be at most {MAX_SETTINGS:,} bytes of U8")
    settings = parse_json(file.raw(tensor).tobytes(), f"{file.path}: {tensor!r}")
    double = name + ".nested_absmax" in file
    wanted = {"quant_type": str, "blocksize": int, "dtype": str, "shape": list}
    if double:
        wanted |= {"nested_blocksize": int, "nested_dtype": str, "nested_offset": (int, float)}
    if set(settings) != set(wanted):
        refuse(f"its quant_state must hold {', '.join(wanted)}, got {', '.join(map(str, settings)) or 'nothing'}")
    for key, kinds in wanted.items():
        if not isinstance(settings[key], kinds) or isinstance(settings[key], bool):
            refuse(f"{key} has the wrong type: {settings[key]!r}")
    if settings["quant_type"] != kind:
        refuse(f"its quant_state is called {kind} and says quant_type {settings['quant_type']!r}")
    if settings["blocksize"] not in BLOCK_SIZES:
        refuse(f"blocksize must be one of {', '.join(map(str, BLOCK_SIZES))}, got {settings['blocksize']}")
    if settings["dtype"] not in LABELS:
        refuse(f"dtype must be one of {', '.join(LABELS)}, got {settings['dtype']!r}")
    shape = settings["shape"]
    if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(side) is int and 0 < side < 2**62 for side in shape):
        refuse(f"shape must be 1 to {MAX_DIMENSIONS} positive integers, got {shape}")
    if double and settings["nested_blocksize"] != SCALE_BLOCK:
        refuse(f"nested_blocksize must be {SCALE_BLOCK}, got {settings['nested_blocksize']}")
    if double and settings["nested_dtype"] != "float32":
        refuse(f"nested_dtype must be 'float32', got {settings['nested_dtype']!r}")
    if double and not abs(settings["nested_offset"]) <= float(np.finfo(np.float32).max):
        refuse(f"nested_offset must be a finite float32, got {settings['nested_offset']}")
    tensors = {"codes": name, "quant_state": tensor}
    tensors |= {part: f"{name}.{part}" for part in PARTS if f"{name}.{part}" in file}
    plan = planned_4bit(name, shape, kind, settings["blocksize"], double)
    for planned, expected in plan.items():
        if planned not in file:
            refuse(f"{planned!r} is missing")
        info = file.info[planned]
        if planned == name:
            if info.dtype not in DTYPES or info.nbytes != expected.nbytes:
                refuse(f"shape {shape} needs {expected.nbytes:,} bytes of codes, got {info.nbytes:,} of {info.dtype}")
        elif planned != tensor and (info.dtype, info.shape) != (expected.dtype, expected.shape):
            got = f"{info.dtype} {list(info.shape)}"
            refuse(f"{planned!r} must be {expected.dtype} {list(expected.shape)}, got {got}")
    if not double and "nested_quant_map" in tensors:
        refuse("has a nested_quant_map but no nested_absmax")
    offset = float(settings["nested_offset"]) if double else None
    return Header4bit(name, kind, settings["blocksize"], settings["dtype"], tuple(shape), offset, tensors)


def _read_weight(file: TensorFile, header: Header4bit) -> Weight4bit:
    def numbers(part, levels=None):
        tensor = header.tensors[part]
        array = file.finite(tensor)
        if levels is not None and not np.allclose(array, levels, rtol=1e-5, atol=0):
            raise FileFormatError(file.path, f"{tensor!r} does not hold the levels that bitsandbytes uses")
        return array

    codebook = FORMATS[header.kind]
    numbers("quant_map", codebook.levels)
    if header.offset is None:
        absmax = numbers("absmax")
    else:
        numbers("nested_quant_map", dynamic_map())
        codes = file[header.tensors["absmax"]]
        absmax = QuantizedScales(codes, numbers("nested_absmax"), np.float32(header.offset))
    packed = file.raw(header.name)
    dtype = np.dtype(np.float16 if header.dtype == "float16" else np.float32)
    quantized = QuantizedTensor(packed, absmax, header.shape, dtype, header.block_size, codebook, "high-first")
    with np.errstate(over="ignore"):
        largest = np.abs(quantized.scales()).max()
    if not largest <= np.finfo(dtype).max:
        raise FileFormatError(file.path, f"4-bit weight {header.name!r}: scale {largest:g} is beyond {header.dtype}")
    return Weight4bit(quantized, header.dtype, file.info[header.name].dtype)
