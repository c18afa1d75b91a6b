r"""The error of a codebook on normal weights, computed instead of measured.

The largest of B absolute values has a density in closed form,

    f(m) = B · (2Φ(m) - 1)^(B - 1) · 2φ(m)

and given that largest value m, the other B - 1 weights are independent draws from the normal distribution cut off at
±m. Between two bounds ∫ x² φ, ∫ x φ and ∫ φ are closed forms too; only the integral over m needs a sum over nodes.

    E(w - ŵ)² = (B - 1)/B · ∫ f(m) · Σ_codes ∫ (x - m · level)² φ(x) dx / (2Φ(m) - 1) dm

for a codebook with the levels ±1, where the largest weight itself has no error. Weights have σ = 1.

Source: the density of a maximum is that of order statistics; Yoshida 2023 uses it for 4-bit codebooks.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from lora_edu.codebooks import Codebook
from lora_edu.validate import check_integer, check_real

_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class ExpectedError:
    r"""What a codebook does to a normal weight, on average.

    Attributes
    ----------
    mean_square, mean_absolute : float
        E(w - ŵ)² and E|w - ŵ|, in units of σ² and σ.
    normalised_absolute : float
        E|w - ŵ| / scale: the error of the value that is compared with the levels.
    usage : (levels,) float64
        How often each code occurs; adds up to 1.
    """

    mean_square: float
    mean_absolute: float
    normalised_absolute: float
    usage: np.ndarray

    @property
    def snr_db(self) -> float:
        """10 · log₁₀(σ² / mean square error)."""
        return -10 * math.log10(self.mean_square)

    @property
    def entropy(self) -> float:
        """-Σ p · log₂ p over the codes: the bits that an ideal compressor would need for one."""
        p = self.usage[self.usage > 0]
        return float(-np.sum(p * np.log2(p)))


def expected_error(codebook: Codebook, block_size: int) -> ExpectedError:
    r"""Mean error and code usage of a codebook on N(0, 1) weights in blocks of `block_size`, exact to about 1e-9."""
    nodes, weights, extremes, share = _blocks(codebook.scale, block_size)
    inside = 1 - share * extremes.size
    mass, absolute, square = _cells(codebook, **nodes)
    usage = inside * (weights @ mass)  # (nodes,) @ (nodes, levels) -> (levels,)
    codes = codebook.code_of(extremes)
    np.add.at(usage, codes, share)
    missed = np.abs(extremes - codebook.levels[codes])  # of the extremes, in units of the scale
    scale = nodes["scale"]
    square = inside * square.sum(axis=1) + share * np.sum(missed**2) * scale**2
    absolute = inside * absolute.sum(axis=1) + share * np.sum(missed) * scale
    return ExpectedError(float(weights @ square), float(weights @ absolute), float(weights @ (absolute / scale)), usage)


def expected_beside_outlier(codebook: Codebook, outlier: float) -> ExpectedError:
    r"""The same for the neighbours of one weight of `outlier` σ, which is the largest of its block."""
    outlier = check_real("outlier", outlier)
    if outlier <= 0 or codebook.scale == "min-max":
        raise ValueError(f"outlier must be positive and the codebook scaled by absmax, got {outlier} and {codebook}")
    one = np.array([outlier])
    mass, absolute, square = (part[0] for part in _cells(codebook, low=-one, high=one, scale=one, shift=0 * one))
    return ExpectedError(float(square.sum()), float(absolute.sum()), float(absolute.sum() / outlier), mass)


def block_maximum_density(m, block_size: int) -> np.ndarray:
    r"""f(m) = B · (2Φ(m) - 1)^(B - 1) · 2φ(m): where the largest |w| of B normal weights lies."""
    block_size = check_integer("block_size", block_size, minimum=1)
    m = np.asarray(m, np.float64)
    return block_size * _between(-m, m) ** (block_size - 1) * 2 * normal_density(m) * (m >= 0)


def normalised_density(t, block_size: int, power: int = 0) -> np.ndarray:
    r"""Density of t = w / absmax inside (-1, 1), for the weights that are not the largest themselves.

        g(t) = ∫ f(m) · m^power · m φ(m t) / (2Φ(m) - 1) dm

    power 1 and 2 weigh each block by its scale: that is what an error in units of the weight does.
    """
    m, weights = block_maximum_nodes(block_size)
    factor = weights * m ** (power + 1) / _between(-m, m)
    return normal_density(np.multiply.outer(np.asarray(t, np.float64), m)) @ factor


@cache
def block_maximum_nodes(block_size: int, count: int = 96) -> tuple[np.ndarray, np.ndarray]:
    r"""Nodes m and weights with Σ weights · h(m) = ∫ f(m) h(m) dm, by Gauss and Legendre: two (count,) arrays."""
    block_size = check_integer("block_size", block_size, minimum=1)
    m = np.linspace(0, 10, 2001)
    likely = np.flatnonzero(block_maximum_density(m, block_size) > 1e-16)
    low, high = m[max(likely[0] - 1, 0)], m[min(likely[-1] + 1, m.size - 1)]
    m, weights = _gauss_legendre(low, high, count)
    return m, weights * block_maximum_density(m, block_size)


def normal_density(x) -> np.ndarray:
    """φ(x) = exp(-x²/2) / √(2π)."""
    return np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)


def normal_cumulative(x) -> np.ndarray:
    """Φ(x), the share of a normal distribution below x."""
    return 0.5 + 0.5 * _erf(np.asarray(x, np.float64) / math.sqrt(2)).astype(np.float64)


def _between(low, high) -> np.ndarray:
    """Φ(high) - Φ(low)."""
    return normal_cumulative(high) - normal_cumulative(low)


def _blocks(scale: str, block_size: int) -> tuple[dict, np.ndarray, np.ndarray, float]:
    r"""Blocks to average over: `low`, `high`, `scale` and `shift` of each, and its weight in the mean.

    Then the normalised values of the extreme weights, which set the scale, and the share of weights that has each.
    """
    if scale == "min-max":
        low, high, weights = _extreme_nodes(block_size)
        nodes = {"low": low, "high": high, "scale": high - low, "shift": low}
        return nodes, weights, np.array([0.0, 1.0]), 1 / block_size
    m, weights = block_maximum_nodes(block_size)
    nodes = {"low": -m, "high": m, "scale": m, "shift": np.zeros_like(m)}
    extremes = np.array([1.0] if scale == "signed absmax" else [-1.0, 1.0])
    return nodes, weights, extremes, 1 / block_size / extremes.size


@cache
def _extreme_nodes(block_size: int, count: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Nodes (low, high) and weights of the joint density of minimum and maximum of B normal weights.

    f(a, b) = B (B - 1) · φ(a) φ(b) · (Φ(b) - Φ(a))^(B - 2)        a < b
    """
    block_size = check_integer("block_size", block_size, minimum=2)
    x = np.linspace(-10, 10, 2001)
    likely = x[block_size * normal_cumulative(x) ** (block_size - 1) * normal_density(x) > 1e-16]
    high, weights = _gauss_legendre(likely[0], likely[-1], count)
    # The minimum mirrors the maximum, and stays below it.
    low, inner = _gauss_legendre(-likely[-1], np.minimum(high, -likely[0])[:, None], count)  # (high, low)
    low, weights = low.ravel(), (weights[:, None] * inner).ravel()
    high = np.repeat(high, count)
    density = normal_density(low) * normal_density(high) * _between(low, high) ** (block_size - 2)
    return low, high, weights * block_size * (block_size - 1) * density


def _gauss_legendre(low, high, count) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an integral from low to high."""
    x, w = np.polynomial.legendre.leggauss(count)
    return low + (high - low) * (x + 1) / 2, (high - low) / 2 * w


def _cells(codebook: Codebook, low, high, scale, shift) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Per block and code ∫ φ, ∫ |x - ŵ| φ and ∫ (x - ŵ)² φ over the code's cell: three arrays (blocks, levels).

    φ is cut off at low … high and normalised to 1.
    """
    scale, shift, low, high = (array[:, None] for array in (scale, shift, low, high))
    levels = codebook.levels[codebook.order] * scale + shift  # (blocks, levels), rising
    inner = np.clip(codebook.bounds * scale + shift, low, high)
    edges = np.concatenate([low, inner, high], axis=1)  # (blocks, levels + 1)
    at_edges = _moments(edges)
    at_levels = _moments(np.clip(levels, edges[:, :-1], edges[:, 1:]))
    mass, first, second = (np.diff(moment, axis=1) for moment in at_edges)
    above, above_first = (edge[:, 1:] - level for edge, level in zip(at_edges[:2], at_levels[:2], strict=True))
    square = second - 2 * levels * first + levels**2 * mass
    absolute = (2 * above_first - first) - levels * (2 * above - mass)
    by_code = np.argsort(codebook.order)
    total = mass.sum(axis=1, keepdims=True)
    return tuple((part / total)[:, by_code] for part in (mass, absolute, square))


def _moments(x) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""∫ φ, ∫ x φ and ∫ x² φ from -∞ to x."""
    density, below = normal_density(x), normal_cumulative(x)
    return below, -density, below - x * density
