r"""Block-wise 4-bit quantization: a code for every weight, a scale for every block.

    absmax = max |w| over the block            one float32 a block
    code   = the level nearest to w / absmax   four bits a weight, two codes a byte
    ŵ      = level[code] · absmax

Blocks run over the flattened weight, row after row; the last one may be short. Whatever the dtype of the weight, the
arithmetic is float32 and the result of `dequantize` is rounded once to that dtype.

Sources: Dettmers et al. 2023, *QLoRA*; bitsandbytes 0.50.2, whose bytes `nibble_order="high-first"` reproduces.
"""

from dataclasses import dataclass

import numpy as np

from lora_edu.codebooks import NF4, Codebook
from lora_edu.validate import check_array, check_integer, raise_not_finite

CHUNK = 2**18  # weights worked on at a time: the scratch memory stays in the cache whatever the size of the weight
INFINITY_BITS = 0x7F800000
MAGNITUDE_BITS = 0x7FFFFFFF


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
class QuantizedTensor:
    r"""A weight in 4 bits.

    Attributes
    ----------
    packed : (ceil(n / 2),) uint8
        Two codes a byte, in `nibble_order`.
    absmax : (ceil(n / block_size),) float32
        The scale of each block.
    shape, dtype
        Of the weight it was made from, and of what `dequantize` returns.
    block_size : int
    codebook : Codebook
    nibble_order : "low-first" or "high-first"
    """

    packed: np.ndarray
    absmax: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype
    block_size: int
    codebook: Codebook
    nibble_order: str

    def __post_init__(self):
        if self.nibble_order not in LAYOUTS:
            raise ValueError(f"nibble_order must be 'low-first' or 'high-first', got {self.nibble_order!r}")
        for name, dtype, size in (
            ("packed", np.uint8, -(-self.size // 2)),
            ("absmax", np.float32, -(-self.size // self.block_size)),
        ):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (size,):
                got = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else repr(array)
                raise ValueError(f"{name} must be a {dtype.__name__} array of shape ({size},), got {got}")

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.absmax.nbytes

    @property
    def bits_per_weight(self) -> float:
        """What a weight really costs, scales and padding included."""
        return 8 * self.nbytes / self.size

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
    weight, block_size: int = 64, codebook: Codebook = NF4, nibble_order: str = "low-first"
) -> QuantizedTensor:
    r"""Quantize a weight block by block.

        code = #{ bounds strictly below w · (1 / absmax) }

    so a value exactly on a bound takes the lower code. A short last block is divided by its absmax instead of
    multiplied by the reciprocal, as bitsandbytes does.

    Parameters
    ----------
    weight : array of any shape, float16, float32 or float64
    block_size : int
        Weights that share one scale.
    codebook : Codebook
    nibble_order : "low-first" or "high-first"
        Whether the first of two codes sits in the low or in the high half of the byte: the reference implementation's
        layout, or that of bitsandbytes, byte for byte.

    Raises
    ------
    TypeError, ValueError
        For a weight that is not floating point, is empty, or holds NaN or infinity (the first position is named).
    """
    weight, block_size, layout = _checked(weight, block_size, codebook, nibble_order)
    flat = weight.reshape(-1)
    packed = np.empty(-(-flat.size // 2), np.uint8)
    absmax = np.empty(-(-flat.size // block_size), np.float32)
    blocks = 2 * max(1, CHUNK // (2 * block_size))  # an even number, so that every chunk fills whole bytes
    scratch = _Scratch(min(blocks * block_size, flat.size + 1))
    for start in range(0, flat.size, blocks * block_size):
        values = scratch.values[: min(blocks * block_size, flat.size - start)]
        with np.errstate(over="ignore"):  # a float64 too large for float32 is refused below
            values[:] = flat[start : start + values.size]
        scales = absmax[start // block_size :][: -(-values.size // block_size)]
        if not _block_maxima(values, block_size, scales, scratch.bits):
            _raise_not_finite(weight)
        _normalise(values, scales, block_size, layout)
        codes = _count_bounds_below(values, codebook.bounds, scratch)
        if codes.size % 2:
            pad = codebook.zero_code if layout.pads_with_zero_code else 0
            codes = np.append(codes, np.uint8(pad))
        first, second = (codes[0::2], codes[1::2]) if layout.first_shift else (codes[1::2], codes[0::2])
        np.bitwise_or(first << 4, second, out=packed[start // 2 :][: first.size])
    return QuantizedTensor(packed, absmax, weight.shape, weight.dtype, block_size, codebook, nibble_order)


def quantize_spec(
    weight, block_size: int = 64, codebook: Codebook = NF4, nibble_order: str = "low-first"
) -> QuantizedTensor:
    """What `quantize` computes, one weight after the other: the definition that the fast form is tested against."""
    weight, block_size, layout = _checked(weight, block_size, codebook, nibble_order)
    flat = weight.astype(np.float32).reshape(-1)
    codes, absmax = [], []
    for start in range(0, flat.size, block_size):
        block = flat[start : start + block_size]
        largest = max(np.abs(block))
        scale = max(largest, np.float32(layout.smallest_scale))
        is_full = len(block) == block_size
        absmax.append(scale if layout.stores_smallest or not is_full else largest)
        for w in block:
            value = w * (np.float32(1) / scale) if is_full else w / scale
            codes.append(sum(value > bound for bound in codebook.bounds))
    if len(codes) % 2:
        codes.append(codebook.zero_code if layout.pads_with_zero_code else 0)
    first, second = layout.first_shift, 4 - layout.first_shift
    packed = [codes[i] << first | codes[i + 1] << second for i in range(0, len(codes), 2)]
    packed, absmax = np.array(packed, np.uint8), np.array(absmax, np.float32)
    return QuantizedTensor(packed, absmax, weight.shape, weight.dtype, block_size, codebook, nibble_order)


def dequantize(quantized: QuantizedTensor, out: np.ndarray | None = None) -> np.ndarray:
    r"""The weight that the codes stand for, ŵ = level[code] · absmax, in its own shape and dtype.

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
        _multiply_blocks(values, q.absmax, q.block_size, at)
        if values is not tile:
            tile[:] = values
    return out


def dequantize_spec(quantized: QuantizedTensor) -> np.ndarray:
    """What `dequantize` computes, one weight after the other."""
    q = quantized
    flat = [q.codebook.levels[code] * q.absmax[i // q.block_size] for i, code in enumerate(q.codes().ravel())]
    return np.array(flat, np.float32).astype(q.dtype).reshape(q.shape)


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
        first = tuple(int(i) for i in np.argwhere(np.isinf(weight.astype(np.float32)))[0])
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


def _normalise(values, scales, block_size, layout):
    """w / absmax in place: full blocks by the reciprocal, a short last block by division."""
    blocks = values.size // block_size
    tail = blocks * block_size
    divisors = np.maximum(scales, np.float32(layout.smallest_scale))
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


def _level_pairs(codebook, nibble_order) -> np.ndarray:
    """(256,) complex64: the two levels that each byte stands for, as one number of eight bytes."""
    byte = np.arange(256)
    first = LAYOUTS[nibble_order].first_shift
    levels = codebook.levels[np.stack([byte >> first & 15, byte >> (4 - first) & 15], axis=-1)]  # (256, 2)
    return np.ascontiguousarray(levels).view(np.complex64)[:, 0]


def _multiply_blocks(values, absmax, block_size, at):
    """values *= absmax of their block, where values[0] is weight number `at`."""
    head = min(-at % block_size, values.size)
    body = (values.size - head) // block_size
    block = at // block_size
    values[:head] *= absmax[block]
    block += head > 0
    values[head : head + body * block_size].reshape(-1, block_size)[:] *= absmax[block : block + body, None]
    if head + body * block_size < values.size:
        values[head + body * block_size :] *= absmax[block + body]
