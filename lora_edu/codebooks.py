r"""Sixteen levels: NF4, its rivals, and where they come from.

A codebook is a short table. A 4-bit code is a row number in it, nothing more: NF4 has no exponent and no mantissa.

    value = w / absmax            "absmax"           scale: the largest |w| of the block
    value = w / m                 "signed absmax"    scale: the weight m with the largest |w|, sign kept
    value = (w - min) / range     "min-max"          two scales: range = max - min, and min

Sources: Dettmers et al. 2023, *QLoRA*, appendix E (the table); bitsandbytes `create_normal_map` (the derivation that
gives it; the paper's equation 4 does not), `get_4bit_type` (FP4, AF4) and `create_dynamic_map` (the 8-bit map);
Rouhani et al. 2023, *Microscaling data formats* (E2M1); llama.cpp (Q4_0); Yoshida 2023, *NF4 isn't information
theoretically optimal* (AF4).
"""

from dataclasses import dataclass, field
from functools import cache
from statistics import NormalDist

import numpy as np

SCALES = ("absmax", "signed absmax", "min-max")


@dataclass(frozen=True, eq=False)
class Codebook:
    r"""Fifteen or sixteen levels by code, the bounds between them, and the scale that they are meant for.

    Parameters
    ----------
    name : str
        What the codebook is called in files and figures.
    levels : sequence of 15 or 16 floats
        By code, in any order; finite, different, in [-1, 1] ([0, 1] with "min-max"); kept as float32.
        FP4 and E2M1 hold two zeros, +0 and -0; nothing else may occur twice.
    scale : "absmax", "signed absmax" or "min-max"
        How a block is normalised before its values are compared with the levels.
    needs_zero : bool
        False lets a table in that has no exact 0, and turns a weight of zero into something else.

    Attributes
    ----------
    bounds : (levels - 1,) float32
        Midpoints of neighbouring levels, increasing. A value exactly on a bound takes the lower level.
    order : (levels,) uint8
        The codes from the lowest level to the highest.
    is_sorted : bool
        Whether the levels increase with their codes, so that `order` is 0, 1, 2, …
    zero_code : int or None
        The code of the level 0; None where no level gives back a zero weight.
    """

    name: str
    levels: np.ndarray = field(repr=False)
    scale: str = "absmax"
    needs_zero: bool = field(default=True, repr=False)
    bounds: np.ndarray = field(init=False, repr=False)
    order: np.ndarray = field(init=False, repr=False)
    is_sorted: bool = field(init=False, repr=False)
    zero_code: int | None = field(init=False, repr=False)

    def __post_init__(self):
        levels = self._checked_levels()
        order = np.argsort(levels, kind="stable").astype(np.uint8)
        rising = levels[order]
        bounds = (rising[:-1] + rising[1:]) / np.float32(2)
        zeros = np.flatnonzero(levels == 0) if self.scale != "min-max" else []
        for name, array in (("levels", levels), ("bounds", bounds), ("order", order)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "is_sorted", bool((order == np.arange(order.size)).all()))
        object.__setattr__(self, "zero_code", int(zeros[0]) if len(zeros) else None)

    def _checked_levels(self) -> np.ndarray:
        levels = np.array(self.levels, np.float32)
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(map(repr, SCALES))}, got {self.scale!r}")
        if levels.shape not in ((15,), (16,)):
            raise ValueError(f"levels must be 15 or 16 numbers, got shape {levels.shape}")
        lowest = 0 if self.scale == "min-max" else -1
        if not (np.isfinite(levels).all() and lowest <= levels.min() and levels.max() <= 1):
            raise ValueError(f"levels must be finite and lie in [{lowest}, 1], got {levels}")
        rising = np.sort(levels)
        twice = rising[1:][np.diff(rising) == 0]
        if twice.any() or twice.size > 1:
            raise ValueError(f"levels must differ, but {twice[twice != 0]} occurs twice; drop the repeats")
        if self.needs_zero and self.scale != "min-max" and 0 not in levels:
            raise ValueError(
                "levels must contain 0 exactly, or a zero weight would not stay zero; "
                "to accept that, say needs_zero=False"
            )
        return levels

    def code_of(self, values) -> np.ndarray:
        """The code of each normalised value: that of the nearest level, of the lower one on a tie; uint8."""
        return self.order[np.searchsorted(self.bounds, np.asarray(values, np.float32))]


NF4 = Codebook(
    "nf4",
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
)

NF4_OFFSET = 0.9677083  # 1 - (1/32 + 1/30) / 2, as bitsandbytes types it


def derive_nf4(offset: float = NF4_OFFSET) -> np.ndarray:
    r"""The sixteen NF4 levels from the normal distribution: (16,) float32, equal to the published table bit for bit.

        positive =  Φ⁻¹( 8 even steps from offset down towards 1/2 )
        negative = -Φ⁻¹( 7 even steps from offset down towards 1/2 )
        levels   = sort(negative, 0, positive) / max

    Three float32 roundings decide the last bit: the even steps, each quantile, and the division.

    Parameters
    ----------
    offset : float in (1/2, 1)
        The probability that becomes the level ±1.
    """
    if not 0.5 < np.float32(offset) < 1:
        raise ValueError(f"offset must lie strictly between 0.5 and 1 (in float32), got {offset}")
    quantile = NormalDist().inv_cdf
    positive = [quantile(float(p)) for p in linspace_float32(offset, 0.5, 9)[:-1]]
    negative = [-quantile(float(p)) for p in linspace_float32(offset, 0.5, 8)[:-1]]
    levels = np.sort(np.array([*negative, 0.0, *positive], np.float32))
    return levels / levels.max()


def linspace_float32(start, stop, count) -> np.ndarray:
    """Even steps in float32, counted from the nearer end, each rounded once, as the library that made the tables."""
    start, stop = np.float32(start), np.float32(stop)
    spacing = np.float64((stop - start) / np.float32(count - 1))
    index = np.arange(count)
    # A product of float32 and a small integer is exact in float64: the sum is rounded to float32 once.
    return np.where(index < count // 2, start + spacing * index, stop - spacing * (count - 1 - index)).astype(
        np.float32
    )


def _with_sign_bit(magnitudes) -> np.ndarray:
    """Levels by code where bit 3 is the sign: eight magnitudes, then their negatives, -0 among them."""
    magnitudes = np.array(magnitudes, np.float32)
    return np.concatenate([magnitudes, -magnitudes])


FP4 = Codebook("fp4", _with_sign_bit(np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)))
E2M1 = Codebook("e2m1", _with_sign_bit(np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32) / np.float32(6)))
INT4 = Codebook("int4", np.arange(-7, 8) / 7)
UNIFORM16 = Codebook("uniform16", (np.arange(16) - 7.5) / 7.5, needs_zero=False)
Q4_0 = Codebook("q4_0", np.arange(-7, 9) / 8, scale="signed absmax")
INT4_ASYMMETRIC = Codebook("int4 asymmetric", np.arange(16) / 15, scale="min-max")
AF4 = Codebook(  # the published table for blocks of 64
    "af4",
    [
        -1.0,
        -0.69441008,
        -0.51243739,
        -0.3736951,
        -0.25607552,
        -0.14982478,
        -0.04934812,
        0.0,
        0.04273164,
        0.12934483,
        0.21961274,
        0.31675666,
        0.42563882,
        0.55496234,
        0.72424863,
        1.0,
    ],
)

CODEBOOKS = {c.name: c for c in (NF4, FP4, E2M1, INT4, UNIFORM16, Q4_0, INT4_ASYMMETRIC, AF4)}


@cache
def dynamic_map() -> np.ndarray:
    r"""The signed 8-bit dynamic map of bitsandbytes, which double quantization uses: (256,) float32, increasing.

        decade i = 0 … 6:   ± 10^(i - 6) · the middles of 2^i even steps from 0.1 to 1;   and 0, and 1

    Seven decades, the largest with 64 steps a side: relative precision over six orders of magnitude. Sign 127 : 128,
    for only +1 is a level.
    """
    values = [np.float32(0), np.float32(1)]
    for i in range(7):
        edges = linspace_float32(0.1, 1, 2**i + 1)
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        values += [*middles, *-middles]
    levels = np.sort(np.array(values, np.float32))
    levels.flags.writeable = False
    return levels
