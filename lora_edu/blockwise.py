r"""Block-wise 4-bit quantization: a code for every weight, a scale for every block.

    absmax = max |w| over the block            one float32 a block
    code   = the level nearest to w / absmax   four bits a weight, two codes a byte
    ŵ      = level[code] · absmax

Blocks run over the flattened weight, row after row; the last one may be short. Whatever the dtype of the weight, the
arithmetic is float32 and the result of `dequantize` is rounded once to that dtype.

The scales cost bits too. Double quantization stores them in 8 bits, in blocks of 256:

    absmax ≈ map[code₈] · absmax₂ + mean(absmax)      8/64 + 32/(64 · 256) instead of 32/64 bits a weight

Sources: Dettmers et al. 2023, *QLoRA*; bitsandbytes 0.50.2, whose bytes `nibble_order="high-first"` reproduces.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from lora_edu.codebooks import NF4, Codebook, dynamic_map
from lora_edu.validate import check_array, check_integer, raise_not_finite

CHUNK = 2**18  # weights worked on at a time: the scratch memory stays in the cache whatever the size of the weight
INFINITY_BITS = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF
SCALE_BLOCK = 256  # scales that share one scale of their own
SCALE_BITS = {"float32": 32.0, "float16": 16.0, "double": 8 + 32 / SCALE_BLOCK}  # what each storage costs a block


@dataclass(frozen=True)
class Layout:
    """What a nibble order brings with it: where the first code goes, and how empty blocks and tails are stored."""

    first_shift: int  # bits that the first of two codes is shifted by
    smallest_scale: float  # a block is never divided by less than this
    stores_smallest: bool  # whether a full block stores that floor (a short last block always does)
    pads_with_zero_code: bool  # an odd length ends in the code of zero; otherwise in code 0


LAYOUTS = {
    "low-first": Layout(0, 1e-10, stores_smallest=True, pads_with_zero_code=False),  # the reference implementation
    "high-first": Layout(4, 1e-38, stores_smallest=False, pads_with_zero_code=True),  # bitsandbytes
}


@dataclass(frozen=True, eq=False)
class QuantizedScales:
    r"""Scales of blocks, themselves quantized to 8 bits in blocks of 256.

        scale = map[code] · absmax + offset

    Attributes
    ----------
    codes : (blocks,) uint8
        Row numbers of the dynamic map.
    absmax : (ceil(blocks / 256),) float32
        The largest |scale - offset| of each group.
    offset : float32
        The mean of all scales: they lie around it, not around zero.
    """

    codes: np.ndarray
    absmax: np.ndarray
    offset: np.float32

    def __post_init__(self):
        _check_vector("codes", self.codes, (np.uint8,), np.size(self.codes))
        _check_vector("absmax", self.absmax, (np.float32,), -(-self.size // SCALE_BLOCK))
        object.__setattr__(self, "offset", np.float32(self.offset))

    @property
    def size(self) -> int:
        """Number of scales."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes of codes and of their scales; the 4 of the tensor's one offset are left out, as QLoRA counts."""
        return self.codes.nbytes + self.absmax.nbytes

    def decode(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The scales start … stop that the codes stand for: float32."""
        codes = self.codes[start:stop]
        group = np.arange(start, start + codes.size) // SCALE_BLOCK
        return dynamic_map()[codes] * self.absmax[group] + self.offset


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    r"""A weight in 4 bits.

    Attributes
    ----------
    packed : (ceil(n / 2),) uint8
        Two codes a byte, in `nibble_order`.
    absmax : (ceil(n / block_size),) float32 or float16, or QuantizedScales
        The scale of each block as it is stored; `scales()` gives it as numbers whatever the storage. With a
        "min-max" codebook it is max - min.
    shape, dtype
        Of the weight it was made from, and of what `dequantize` returns.
    block_size : int
    codebook : Codebook
    nibble_order : "low-first" or "high-first"
    minimum : like an absmax array, with a "min-max" codebook only
        The second scale of each block: what level 0 stands for.
    """

    packed: np.ndarray
    absmax: np.ndarray | QuantizedScales
    shape: tuple[int, ...]
    dtype: np.dtype
    block_size: int
    codebook: Codebook
    nibble_order: str
    minimum: np.ndarray | None = None

    def __post_init__(self):
        if self.nibble_order not in LAYOUTS:
            raise ValueError(f"nibble_order must be 'low-first' or 'high-first', got {self.nibble_order!r}")
        _check_vector("packed", self.packed, (np.uint8,), -(-self.size // 2))
        if not isinstance(self.absmax, QuantizedScales):
            _check_vector("absmax", self.absmax, (np.float32, np.float16), self.block_count)
        elif self.absmax.size != self.block_count:
            raise ValueError(f"absmax must hold {self.block_count} scales, got {self.absmax.size}")
        if self.codebook.scale == "min-max":
            _check_vector("minimum", self.minimum, (np.float32, np.float16), self.block_count)
        elif self.minimum is not None:
            raise ValueError(f"minimum belongs to 'min-max' codebooks, but {self.codebook.name} has none")

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return -(-self.size // self.block_size)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.absmax.nbytes + (0 if self.minimum is None else self.minimum.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """What a weight really costs, scales and padding included."""
        return 8 * self.nbytes / self.size

    def scales(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The scales of blocks start … stop, whatever their storage: float32."""
        if isinstance(self.absmax, QuantizedScales):
            return self.absmax.decode(start, stop)
        return self.absmax[start:stop].astype(np.float32, copy=False)

    def codes(self) -> np.ndarray:
        """One code a weight, unpacked: uint8 of `shape`."""
        first = LAYOUTS[self.nibble_order].first_shift
        pairs = np.stack([self.packed >> first & 15, self.packed >> (4 - first) & 15], axis=-1)  # (bytes, 2)
        return pairs.ravel()[: self.size].reshape(self.shape)

    def __repr__(self):
        return (
            f"QuantizedTensor({self.codebook.name}, shape={self.shape}, dtype={self.dtype}, "
            f"block_size={self.block_size}, {self.nibble_order}, {self.bits_per_weight:.4g} bits per weight)"
        )


def quantize(
    weight,
    block_size: int = 64,
    codebook: Codebook = NF4,
    nibble_order: str = "low-first",
    scale_storage: str = "float32",
) -> QuantizedTensor:
    r"""Quantize a weight block by block.

        rank = #{ bounds strictly below w · (1 / scale) }        code = order[rank]

    so a value exactly on a bound takes the lower level. A short last block is divided by its scale instead of
    multiplied by the reciprocal, as bitsandbytes does. The codebook says what the scale is: the absmax, the absmax
    with its sign (the positive one where both occur), or the range, above a minimum that is subtracted first.

    Parameters
    ----------
    weight : array of any shape, float16, float32 or float64
    block_size : int
        Weights that share one scale.
    codebook : Codebook
    nibble_order : "low-first" or "high-first"
        Whether the first of two codes sits in the low or in the high half of the byte: the reference implementation's
        layout, or that of bitsandbytes, byte for byte.
    scale_storage : "float32", "float16" or "double"
        How the scales are kept once the codes are chosen; "double" is `double_quantize`.

    Raises
    ------
    TypeError, ValueError
        For a weight that is not floating point, is empty, or holds NaN or infinity (the first position is named).
    """
    weight, block_size, layout = _checked(weight, block_size, codebook, nibble_order)
    if scale_storage not in SCALE_BITS:
        raise ValueError(f"scale_storage must be one of {', '.join(map(repr, SCALE_BITS))}, got {scale_storage!r}")
    flat = weight.reshape(-1)
    packed = np.empty(-(-flat.size // 2), np.uint8)
    absmax = np.empty(-(-flat.size // block_size), np.float32)
    minimum = np.empty_like(absmax) if codebook.scale == "min-max" else None
    blocks = 2 * max(1, CHUNK // (2 * block_size))  # an even number, so that every chunk fills whole bytes
    scratch = _Scratch(min(blocks * block_size, flat.size + 1))
    for start in range(0, flat.size, blocks * block_size):
        values = scratch.values[: min(blocks * block_size, flat.size - start)]
        with np.errstate(over="ignore"):  # a float64 too large for float32 is refused below
            values[:] = flat[start : start + values.size]
        part = slice(start // block_size, start // block_size + -(-values.size // block_size))
        if minimum is None:
            finite = _block_maxima(values, block_size, absmax[part], scratch.bits)
            if codebook.scale == "signed absmax":
                _restore_signs(values, block_size, absmax[part])
        else:
            finite = _subtract_minima(values, block_size, absmax[part], minimum[part])
        if not finite:
            _raise_not_finite(weight)
        _normalise(values, absmax[part], block_size, layout)
        codes = _count_bounds_below(values, codebook.bounds, scratch)
        if not codebook.is_sorted:
            np.take(codebook.order, codes, out=codes, mode="clip")
        if codes.size % 2:
            codes = np.append(codes, _padding(codebook, layout))
        first, second = (codes[0::2], codes[1::2]) if layout.first_shift else (codes[1::2], codes[0::2])
        np.bitwise_or(first << 4, second, out=packed[start // 2 :][: first.size])
    q = QuantizedTensor(packed, absmax, weight.shape, weight.dtype, block_size, codebook, nibble_order, minimum)
    return _STORE[scale_storage](q)


def double_quantize(quantized: QuantizedTensor, rule: str = "bitsandbytes", offset=None) -> QuantizedTensor:
    r"""Store the scales of a quantized tensor in 8 bits: 4.126953125 bits per weight at block size 64.

        d = absmax - offset,  offset = mean(absmax)
        code₈ = the entry of the dynamic map nearest to d / max |d|, the maximum taken over 256 scales

    Parameters
    ----------
    quantized : QuantizedTensor
        With float scales, one a block.
    rule : "bitsandbytes" or "nearest"
        bitsandbytes rounds d / max |d| to one of 65,536 even steps on [-1, 1] before it looks for the nearest entry,
        and then misses it for one or two scales in a thousand; "nearest" does not.
    offset : float, optional
        In place of the mean, whose last bits depend on the order of the sum.

    Source: bitsandbytes 0.50.2, `quantize_4bit` with `compress_statistics` and `quantize_blockwise` on the CPU.
    """
    if rule not in ("bitsandbytes", "nearest"):
        raise ValueError(f"rule must be 'bitsandbytes' or 'nearest', got {rule!r}")
    if isinstance(quantized.absmax, QuantizedScales):
        raise ValueError("the scales are double-quantized already; quantize the weight with float32 scales first")
    if quantized.minimum is not None:
        raise ValueError("a 'min-max' codebook has two scales a block: store them as float32 or float16")
    scales = quantized.scales()
    offset = np.float32(scales.mean(dtype=np.float64) if offset is None else offset)
    centred = scales - offset
    starts, group = np.arange(0, centred.size, SCALE_BLOCK), np.arange(centred.size) // SCALE_BLOCK
    absmax = np.maximum.reduceat(np.abs(centred), starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.clip(centred * (np.float32(1) / absmax)[group], -1, 1)
    values[np.isnan(values)] = (
        0 if rule == "nearest" else -1
    )  # 0 · (1 / 0), where all scales are equal: code 0 is theirs
    if rule == "nearest":
        codes = np.searchsorted(_map_bounds(), values)
    else:
        step = (values + np.float32(1)) * np.float32(0.5) * np.float32(65535) + np.float32(0.5)
        codes = _map_lookup()[step.astype(np.uint16)]
    return replace(quantized, absmax=QuantizedScales(codes.astype(np.uint8), absmax, offset))


def _half_scales(quantized: QuantizedTensor) -> QuantizedTensor:
    stored = [numbers for numbers in (quantized.absmax, quantized.minimum) if numbers is not None]
    largest = max(np.abs(numbers).max() for numbers in stored)
    if largest > np.finfo(np.float16).max:
        raise ValueError(f"scales must fit into float16, got {largest:g}; scale the weight down or use float32")
    minimum = None if quantized.minimum is None else quantized.minimum.astype(np.float16)
    return replace(quantized, absmax=quantized.absmax.astype(np.float16), minimum=minimum)


_STORE = {"float32": lambda quantized: quantized, "float16": _half_scales, "double": double_quantize}


def quantize_spec(
    weight, block_size: int = 64, codebook: Codebook = NF4, nibble_order: str = "low-first"
) -> QuantizedTensor:
    """What `quantize` computes, one weight after the other: the definition that the fast form is tested against."""
    weight, block_size, layout = _checked(weight, block_size, codebook, nibble_order)
    flat = weight.astype(np.float32).reshape(-1)
    codes, absmax, minimum = [], [], []
    for start in range(0, flat.size, block_size):
        block = flat[start : start + block_size]
        if codebook.scale == "min-max":
            minimum.append(min(block))
            block = block - minimum[-1]
        scale = size = max(np.abs(block))
        if codebook.scale == "signed absmax" and size not in block:
            scale = -size
        floor = np.copysign(np.float32(layout.smallest_scale), scale)
        divisor = scale if size > abs(floor) else floor
        is_full = len(block) == block_size
        absmax.append(divisor if layout.stores_smallest or not is_full else scale)
        for w in block:
            value = w * (np.float32(1) / divisor) if is_full else w / divisor
            codes.append(codebook.order[sum(value > bound for bound in codebook.bounds)])
    if len(codes) % 2:
        codes.append(_padding(codebook, layout))
    first, second = layout.first_shift, 4 - layout.first_shift
    packed = [codes[i] << first | codes[i + 1] << second for i in range(0, len(codes), 2)]
    packed, absmax = np.array(packed, np.uint8), np.array(absmax, np.float32)
    minimum = np.array(minimum, np.float32) if minimum else None
    return QuantizedTensor(packed, absmax, weight.shape, weight.dtype, block_size, codebook, nibble_order, minimum)


def dequantize(quantized: QuantizedTensor, out: np.ndarray | None = None) -> np.ndarray:
    r"""The weight that the codes stand for, ŵ = level[code] · scale (+ minimum), in its own shape and dtype.

    Parameters
    ----------
    quantized : QuantizedTensor
    out : array, optional
        C-contiguous, of the same shape and dtype; filled and returned, so that nothing is allocated.
    """
    q = quantized
    if out is None:
        out = np.empty(q.shape, q.dtype)
    else:
        _check_out(out, q.shape, q.dtype)
    return dequantize_range(q, 0, q.size, out.reshape(-1)).reshape(q.shape)


def dequantize_range(quantized: QuantizedTensor, start: int, stop: int, out: np.ndarray) -> np.ndarray:
    r"""The weights start … stop of the flattened tensor into `out` (stop - start,): a tile, not the whole weight."""
    q = quantized
    if not 0 <= start <= stop <= q.size:
        raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= {q.size}, got {start} and {stop}")
    _check_out(out, (stop - start,), q.dtype)
    pairs = _level_pairs(q.codebook, q.nibble_order)
    rows = np.empty(min(CHUNK, stop - start) // 2 + 2, np.complex64)  # two float32 levels in one read
    for at in range(start, stop, CHUNK):
        end = min(at + CHUNK, stop)
        bytes_ = q.packed[at // 2 : (end + 1) // 2]
        tile = out[at - start : end - start]
        if tile.dtype == np.float32 and at % 2 == 0 and end % 2 == 0:
            values = tile
            np.take(pairs, bytes_, out=tile.view(np.complex64), mode="clip")
        else:
            np.take(pairs, bytes_, out=rows[: bytes_.size], mode="clip")
            values = rows.view(np.float32)[at % 2 :][: end - at]
        blocks = slice(at // q.block_size, -(-end // q.block_size))
        _apply_to_blocks(np.multiply, values, q.scales(blocks.start, blocks.stop), q.block_size, at % q.block_size)
        if q.minimum is not None:
            minima = q.minimum[blocks].astype(np.float32, copy=False)
            _apply_to_blocks(np.add, values, minima, q.block_size, at % q.block_size)
        if values is not tile:
            tile[:] = values
    return out


def dequantize_spec(quantized: QuantizedTensor) -> np.ndarray:
    """What `dequantize` computes, one weight after the other."""
    q = quantized
    scales = q.scales()
    flat = [q.codebook.levels[code] * scales[i // q.block_size] for i, code in enumerate(q.codes().ravel())]
    if q.minimum is not None:
        flat = [value + np.float32(q.minimum[i // q.block_size]) for i, value in enumerate(flat)]
    return np.array(flat, np.float32).astype(q.dtype).reshape(q.shape)


def _check_vector(name, array, dtypes, size):
    if not isinstance(array, np.ndarray) or array.dtype not in dtypes or array.shape != (size,):
        got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else repr(array)
        allowed = " or ".join(dtype.__name__ for dtype in dtypes)
        raise ValueError(f"{name} must be a {allowed} array of shape ({size},), got {got}")


def _check_out(out, shape, dtype):
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != shape or out.dtype != dtype or not (out.flags.c_contiguous and out.flags.writeable):
        faults = [""] + ["not C-contiguous"] * (not out.flags.c_contiguous) + ["read only"] * (not out.flags.writeable)
        raise ValueError(
            f"out must be a C-contiguous, writeable {dtype} array of shape {shape}, "
            f"got {out.dtype} of shape {out.shape}{', '.join(faults)}; make it with np.empty({shape}, np.{dtype})"
        )


class _Scratch:
    """Working memory of one chunk, allocated once."""

    def __init__(self, size: int):
        self.values = np.empty(size, np.float32)
        self.bits = np.empty(size, np.int32)
        self.codes = np.empty(size, np.uint8)
        self.above = np.empty(size, bool)


def _checked(weight, block_size, codebook, nibble_order) -> tuple[np.ndarray, int, Layout]:
    weight = np.asarray(weight)
    if weight.dtype not in (np.float16, np.float32, np.float64):
        check_array("weight", weight)
    if weight.size == 0:
        raise ValueError(f"weight must not be empty, got shape {weight.shape}")
    block_size = check_integer("block_size", block_size, minimum=1)
    if not isinstance(codebook, Codebook):
        raise TypeError(f"codebook must be a Codebook such as NF4, got {codebook!r}")
    if nibble_order not in LAYOUTS:
        raise ValueError(f"nibble_order must be 'low-first' or 'high-first', got {nibble_order!r}")
    return weight, block_size, LAYOUTS[nibble_order]


def _raise_not_finite(weight):
    if not np.isfinite(weight).all():
        raise_not_finite("weight", weight)
    with np.errstate(over="ignore"):
        infinite = np.argwhere(np.isinf(weight.astype(np.float32)))
    if not infinite.size:
        raise ValueError("max - min of every block must fit into float32; scale the weight down first")
    first = tuple(int(i) for i in infinite[0])
    place = f"[{', '.join(map(str, first))}]" if first else ""
    raise ValueError(f"weight must fit into float32, but weight{place} = {weight[first]}; scale the weight down first")


def _block_maxima(values, block_size, scales, bits) -> bool:
    """max |value| of each block into `scales`; False if a value is not finite.

    Read as integers, floats without their sign bit keep their order, and NaN and infinity come out on top.
    """
    bits = np.bitwise_and(values.view(np.int32), MAGNITUDE_BITS, out=bits[: values.size])
    maxima = np.maximum.reduceat(bits, np.arange(0, values.size, block_size))
    scales[:] = maxima.view(np.float32)
    return maxima.max() < INFINITY_BITS


def _restore_signs(values, block_size, scales):
    """Turn each absmax into the weight that it came from."""
    largest = np.maximum.reduceat(values, np.arange(0, values.size, block_size))
    np.negative(scales, out=scales, where=largest != scales)


def _subtract_minima(values, block_size, scales, minima) -> bool:
    """min of each block into `minima` and off the values, max - min into `scales`; False if one is not finite."""
    starts = np.arange(0, values.size, block_size)
    np.minimum.reduceat(values, starts, out=minima)
    with np.errstate(over="ignore", invalid="ignore"):
        _apply_to_blocks(np.subtract, values, minima, block_size, 0)
        np.maximum.reduceat(values, starts, out=scales)
    return bool(np.isfinite(scales).all())


def _normalise(values, scales, block_size, layout):
    """w / scale in place: full blocks by the reciprocal, a short last block by division."""
    blocks = values.size // block_size
    tail = blocks * block_size
    floor = np.float32(layout.smallest_scale)
    divisors = np.where(np.abs(scales) > floor, scales, np.copysign(floor, scales))
    values[:tail].reshape(-1, block_size)[:] *= (np.float32(1) / divisors[:blocks])[:, None]
    if tail < values.size:
        values[tail:] /= divisors[-1]
    stored_from = 0 if layout.stores_smallest else blocks
    scales[stored_from:] = divisors[stored_from:]


def _count_bounds_below(values, bounds, scratch) -> np.ndarray:
    """code = number of bounds strictly below the value: fifteen comparisons, added up."""
    codes, above = scratch.codes[: values.size], scratch.above[: values.size]
    codes[:] = 0
    for bound in bounds:
        np.greater(values, bound, out=above)
        codes += above.view(np.uint8)
    return codes


def _padding(codebook, layout) -> np.uint8:
    """The code that fills the last byte of an odd length."""
    return codebook.code_of(0) if layout.pads_with_zero_code else np.uint8(0)


@cache
def _map_bounds() -> np.ndarray:
    """(255,) float32: midpoints of the dynamic map."""
    levels = dynamic_map()
    return (levels[:-1] + levels[1:]) * np.float32(0.5)


@cache
def _map_lookup() -> np.ndarray:
    """(65536,) uint8: the nearest entry of the dynamic map for even steps on [-1, 1]."""
    return np.searchsorted(_map_bounds(), np.linspace(-1, 1, 2**16)).astype(np.uint8)


def _level_pairs(codebook, nibble_order) -> np.ndarray:
    """(256,) complex64: the two levels that each byte stands for, as one number of eight bytes."""
    byte = np.arange(256)
    first = LAYOUTS[nibble_order].first_shift
    levels = np.full(16, np.nan, np.float32)  # a code beyond a table of fifteen is no number
    levels[: codebook.levels.size] = codebook.levels
    pairs = levels[np.stack([byte >> first & 15, byte >> (4 - first) & 15], axis=-1)]  # (256, 2)
    return np.ascontiguousarray(pairs).view(np.complex64)[:, 0]


def _apply_to_blocks(operation, values, numbers, block_size, at):
    """values = operation(values, number of their block) in place, where values[0] is weight `at` of block 0."""
    head = min(-at % block_size, values.size)
    body = (values.size - head) // block_size
    tail = head + body * block_size
    first = int(head > 0)
    if head:
        operation(values[:head], numbers[0], out=values[:head])
    blocks = values[head:tail].reshape(-1, block_size)
    operation(blocks, numbers[first : first + body, None], out=blocks)
    if tail < values.size:
        operation(values[tail:], numbers[first + body], out=values[tail:])
