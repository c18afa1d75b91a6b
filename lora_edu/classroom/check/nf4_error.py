"""Exercises of the chapter on NF4 error."""

from statistics import NormalDist

import numpy as np

from lora_edu.blockwise import quantize
from lora_edu.classroom.check.engine import Exercise
from lora_edu.codebooks import NF4, NF4_OFFSET, derive_nf4


def _pack(codes):
    codes = np.append(codes, NF4.zero_code) if len(codes) % 2 else codes
    return (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)


def _pack_low_first(codes):
    codes = np.append(codes, NF4.zero_code) if len(codes) % 2 else codes
    return (codes[0::2] | codes[1::2] << 4).astype(np.uint8)


def _pack_padded_with_0(codes):
    return _pack(np.append(codes, 0) if len(codes) % 2 else codes)


def _pack_dropping_the_last(codes):
    return _pack(codes[: len(codes) // 2 * 2])


def _pack_decimal(codes):
    codes = np.append(codes, NF4.zero_code) if len(codes) % 2 else codes
    return (codes[0::2] * 10 + codes[1::2]).astype(np.uint8)


_rng = np.random.default_rng(4)

pack_high_first = Exercise(
    "pack_high_first",
    _pack,
    [(np.array(codes, np.uint8),) for codes in ([11, 2], [0, 15, 7, 8], [15], [1, 2, 3])]
    + [(_rng.integers(0, 16, 33).astype(np.uint8),)],
    {
        "the first element went to the low nibble; high-first shifts the first of two codes by 4": _pack_low_first,
        "an odd length ends in code 0, which is the level -1; the padding must be code 7, which is zero": (
            _pack_padded_with_0
        ),
        "the last code of an odd length is lost; pad with code 7 first": _pack_dropping_the_last,
        "codes are decimal digits here; a nibble is worth 16, so shift by 4 bits": _pack_decimal,
    },
)


def _codes(weight, block_size):
    return quantize(weight, block_size).codes()


def _codes_per_tensor(weight, block_size):
    return quantize(weight, weight.size).codes()


def _codes_tie_up(weight, block_size):
    return _by_hand(weight, block_size, side="right")


def _codes_signed_max(weight, block_size):
    return _by_hand(weight, block_size, scale_of=np.max)


def _codes_by_sigma(weight, block_size):
    return _by_hand(weight, block_size, scale_of=np.std)


def _codes_by_column(weight, block_size):
    return _codes(np.ascontiguousarray(weight.T), block_size).T


def _by_hand(weight, block_size, side="left", scale_of=lambda block: np.abs(block).max()):
    flat, codes = weight.ravel(), []
    for start in range(0, flat.size, block_size):
        block = flat[start : start + block_size]
        codes.append(np.searchsorted(NF4.bounds, block / (scale_of(block) or 1), side))
    return np.concatenate(codes).reshape(weight.shape)


def _tie_block():
    return np.append(NF4.bounds, np.float32(1)).reshape(2, 8)


nf4_codes = Exercise(
    "nf4_codes",
    _codes,
    [
        (_rng.standard_normal((4, 16), dtype=np.float32), 16),
        (_rng.standard_normal((3, 7), dtype=np.float32) * np.float32([[1], [20], [0.1]]), 8),  # a short last block
        (np.concatenate([np.zeros((1, 8), np.float32), _rng.standard_normal((1, 8), dtype=np.float32)]), 8),
        (_tie_block(), 16),
    ],
    {
        "one scale for the whole tensor (per-tensor scale); each block has its own absmax": _codes_per_tensor,
        "a value exactly on a bound went to the upper code; searchsorted(..., side='left') takes the lower": (
            _codes_tie_up
        ),
        "the largest weight is not the largest |weight|; take the absolute value before the maximum": (
            _codes_signed_max
        ),
        "the block was divided by its standard deviation; NF4 divides by the absmax": _codes_by_sigma,
        "blocks ran down the columns; they run along the rows of the flattened weight": _codes_by_column,
    },
)


def _levels_float64(offset):
    quantile = NormalDist().inv_cdf
    positive = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    levels = np.sort(np.array([*negative, 0.0, *positive]))
    return (levels / levels.max()).astype(np.float32)


def _levels_equal_mass(offset):
    levels = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
    return (levels / levels.max()).astype(np.float32)


def _levels_symmetric(offset):
    positive = derive_nf4(offset)[8:]
    return np.concatenate([-positive[::-1], positive])


def _levels_unscaled(offset):
    return derive_nf4(offset) * np.float32(NormalDist().inv_cdf(offset))


nf4_levels = Exercise(
    "nf4_levels",
    derive_nf4,
    [(NF4_OFFSET,), (0.95,), (0.99,)],
    {
        "this is a float64 linspace: right to 7 digits, but the published table took its steps in float32": (
            _levels_float64
        ),
        "these are the 16 equal-mass quantiles Φ⁻¹((i + ½) / 16): no exact zero, and not NF4": _levels_equal_mass,
        "this is symmetric with 8 levels a side and no zero; NF4 has 7 below zero, zero, and 8 above": (
            _levels_symmetric
        ),
        "the levels are still in σ; divide them by the largest": _levels_unscaled,
    },
)
