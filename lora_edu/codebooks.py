r"""The sixteen levels of NF4, and where they come from.

A codebook is a short table. A 4-bit code is a row number in it, nothing more: NF4 has no exponent and no mantissa.

Sources: Dettmers et al. 2023, *QLoRA*, appendix E (the table); bitsandbytes `create_normal_map` (the derivation that
gives it; the paper's equation 4 does not).
"""

from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True, eq=False)
class Codebook:
    r"""Sixteen increasing levels in [-1, 1], one of them zero, and the bounds between them.

    Parameters
    ----------
    name : str
        What the codebook is called in files and figures.
    levels : sequence of 16 floats
        In increasing order, finite, in [-1, 1], with an exact 0; kept as float32.

    Attributes
    ----------
    bounds : (15,) float32
        Midpoints of neighbouring levels. A value exactly on a bound takes the lower code.
    zero_code : int
        The code of the level 0.
    """

    name: str
    levels: np.ndarray = field(repr=False)
    bounds: np.ndarray = field(init=False, repr=False)
    zero_code: int = field(init=False, repr=False)

    def __post_init__(self):
        levels = np.array(self.levels, np.float32)
        if levels.shape != (16,):
            raise ValueError(f"levels must be 16 numbers, got shape {levels.shape}")
        if not (np.isfinite(levels).all() and np.abs(levels).max() <= 1):
            raise ValueError(f"levels must be finite and lie in [-1, 1], got {levels}")
        if not (np.diff(levels) > 0).all():
            raise ValueError(f"levels must increase strictly, got {levels}; sort them and drop repeats")
        if 0 not in levels:
            raise ValueError("levels must contain 0 exactly, or a zero weight would not stay zero")
        bounds = (levels[:-1] + levels[1:]) / np.float32(2)
        for array in (levels, bounds):
            array.flags.writeable = False
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "zero_code", int(np.flatnonzero(levels == 0)[0]))


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
    """Even steps in float32, counted from the nearer end, as the tensor library that made the table does it."""
    start, stop, index = np.float32(start), np.float32(stop), np.arange(count, dtype=np.float32)
    spacing = (stop - start) / np.float32(count - 1)
    return np.where(index < count // 2, start + spacing * index, stop - spacing * (count - 1 - index))
