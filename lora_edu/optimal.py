r"""Codebooks that no other beats on normal weights, for one block size, by Lloyd's two steps.

    bounds = midpoints of the levels
    level  = centre of its cell:   ∫ t g(t) dt / ∫ g(t) dt        for the squared error
                                   the median of g in the cell    for the absolute error

Each step can only lower the error. g is the density of t = w / scale, weighed by scale² for the squared and by scale
for the absolute error, since a block with a large scale multiplies its errors by it.

Sources: Lloyd 1982, *Least squares quantization in PCM*; Blumenberg et al. 2025, *BOF4* (the kept levels, and the
weight of a block); Yoshida 2023, *AF4* (the absolute error of the normalised value).
"""

import math
from functools import cache

import numpy as np

from lora_edu.codebooks import NF4, Codebook
from lora_edu.theory import block_maximum_nodes, normal_cumulative, normal_density, normalised_density
from lora_edu.validate import check_integer, check_real

CRITERIA = {"mse": 2, "mae": 1, "normalised mae": 0}  # the power of the scale that a block's error is weighed by
KEPT = (-1.0, 0.0, 1.0)  # the largest weight and a zero come back exactly
KEPT_SIGNED = (0.0, 1.0)  # with a signed scale the largest weight is always +1
BIN = 2.0**-12  # of the density on [-1, 1]
SETTLED = 1e-9  # Lloyd's steps end when no level moves by more


def bof4(block_size: int = 64) -> Codebook:
    """The codebook of least mean square error that keeps -1, 0 and 1."""
    return Codebook(f"bof4-{block_size}", optimal_levels(block_size))


def bof4_signed(block_size: int = 64) -> Codebook:
    """The codebook of least mean square error for a signed scale; it keeps 0 and 1."""
    return Codebook(f"bof4-s-{block_size}", optimal_levels(block_size, signed=True), scale="signed absmax")


def mae_best(block_size: int = 64) -> Codebook:
    """The codebook of least mean absolute error that keeps -1, 0 and 1."""
    return Codebook(f"mae-{block_size}", optimal_levels(block_size, "mae"))


@cache
def optimal_levels(
    block_size: int, criterion: str = "mse", signed: bool = False, kept: tuple | None = None
) -> np.ndarray:
    r"""Lloyd's steps from NF4 until no level moves any more: (16,) float64, increasing, read only.

    `kept` holds the levels that stay, some of NF4's -1, 0 and 1; () frees all sixteen.
    """
    if kept is None:
        kept = KEPT_SIGNED if signed else KEPT
    levels, moved = NF4.levels.astype(np.float64), 1.0
    while moved > SETTLED:
        better = lloyd_step(levels, block_size, criterion, kept, signed)
        moved, levels = np.abs(better - levels).max(), better
    levels.flags.writeable = False
    return levels


def lloyd_step(levels, block_size: int, criterion: str = "mse", kept: tuple = KEPT, signed: bool = False) -> np.ndarray:
    r"""One step: every level moves to the centre of its own cell, except those in `kept`; float64.

    Parameters
    ----------
    levels : sequence of increasing floats in [-1, 1]
        Any number of them. A level whose cell is empty stays.
    criterion : "mse", "mae" or "normalised mae"
        E(w - ŵ)², E|w - ŵ|, or E|w - ŵ| / scale.
    signed : bool
        The scale has the sign of the largest weight.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or levels.size < 2 or not np.abs(levels).max() <= 1:
        raise ValueError(f"levels must be a row of finite numbers in [-1, 1], got {levels}")
    if not (np.diff(levels) > 0).all():
        raise ValueError(f"levels must increase strictly, got {levels}; sort them and drop repeats")
    edges, mass, moment = _cumulative(block_size, CRITERIA[criterion], signed)
    bounds = (levels[:-1] + levels[1:]) / 2
    below = np.concatenate([[0], np.interp(bounds, edges, mass), mass[-1:]])  # (levels + 1,)
    inside = np.diff(below)
    if criterion == "mse":
        first = np.concatenate([[0], np.interp(bounds, edges, moment), moment[-1:]])
        centres = np.diff(first) / np.where(inside > 0, inside, 1)
    else:
        centres = np.interp((below[:-1] + below[1:]) / 2, mass, edges)
    return np.where((inside <= 0) | np.isin(levels, kept), levels, centres)


@cache
def _cumulative(block_size: int, power: int, signed: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Edges of the bins, and ∫ g and ∫ t g up to each edge: three arrays (bins + 1,).

    The largest weights stand at the ends: all at +1 with a signed scale, else half at -1 and half at +1.
    """
    block_size = check_integer("block_size", block_size, minimum=2)
    edges = np.arange(-1, 1 + BIN, BIN)
    middles = (edges[:-1] + edges[1:]) / 2
    density = (block_size - 1) / block_size * normalised_density(middles, block_size, power)
    m, weights = block_maximum_nodes(block_size)
    largest = weights @ m**power / block_size
    left = 0.0 if signed else largest / 2
    mass = left + np.append(0, np.cumsum(density)) * BIN
    moment = -left + np.append(0, np.cumsum(middles * density)) * BIN
    mass[-1] += largest - left
    moment[-1] += largest - left
    return edges, mass, moment


@cache
def lloyd_max(count: int = 16) -> tuple[np.ndarray, float]:
    r"""The best `count` levels for N(0, 1) when σ is known, and their mean square error: no block and no scale.

        level = (φ(a) - φ(b)) / (Φ(b) - Φ(a)) between its bounds a and b        E(x - x̂)² = 1 - Σ p · level²

    Source: Max 1960, *Quantizing for minimum distortion*.
    """
    levels, moved = np.linspace(-2, 2, check_integer("count", count, minimum=2)), 1.0
    while moved > SETTLED:
        bounds = np.concatenate([[-np.inf], (levels[:-1] + levels[1:]) / 2, [np.inf]])
        mass = np.diff(normal_cumulative(bounds))
        better = -np.diff(normal_density(bounds)) / mass
        moved, levels = np.abs(better - levels).max(), better
    levels.flags.writeable = False
    return levels, float(1 - np.sum(mass * levels**2))


def entropy_coded(step: float) -> tuple[float, float]:
    r"""Bits and mean square error of a uniform quantizer of N(0, 1) whose codes are ideally compressed.

        code = round(x / step)      x̂ = the mean of the code's cell      bits = -Σ p · log₂ p

    From 2 bits on it lies 1.53 dB, a quarter of a bit, from the limit.

    Source: Gish & Pierce 1968, *Asymptotically efficient quantizing*.
    """
    if check_real("step", step) <= 0:
        raise ValueError(f"step must be positive, got {step}")
    count = math.ceil(8 / step)  # eight σ on either side
    edges = step * (np.arange(-count, count + 2) - 0.5)
    mass, moment = np.diff(normal_cumulative(edges)), -np.diff(normal_density(edges))
    mass, moment = mass[mass > 0], moment[mass > 0]
    return float(-np.sum(mass * np.log2(mass))), float(1 - np.sum(moment**2 / mass))
