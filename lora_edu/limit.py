r"""How far a quantizer is from what rate-distortion theory allows.

    D(R) = σ² · 2^(-2R)          no code of R bits a weight has a smaller mean square error on Gaussian weights
    SNR ≤ 6.02 dB · R

Source: Cover & Thomas, *Elements of Information Theory*, chapter 10; Gish & Pierce 1968 for the scalar quantizer.
"""

import math

import numpy as np

from lora_edu.validate import check_real

DB_PER_BIT = 20 * math.log10(2)
ENTROPY_CODED_GAP_DB = 10 * math.log10(math.pi * math.e / 6)  # 1.53 dB: a uniform quantizer with ideal entropy coding


def distortion(bits: float, variance: float = 1.0) -> float:
    """D(R) = σ² · 2^(-2R): the least mean square error at `bits` a weight."""
    if check_real("bits", bits) < 0:
        raise ValueError(f"bits must not be negative, got {bits}")
    return variance * 2.0 ** (-2 * bits)


def limit_db(bits: float) -> float:
    """The largest SNR that `bits` a weight allow on Gaussian weights."""
    return DB_PER_BIT * bits


def gap_db(bits: float, snr: float) -> float:
    """How many decibels a point lies below the limit."""
    return limit_db(bits) - snr


def gap_bits(bits: float, snr: float) -> float:
    """How many bits a weight the limit would save at the same SNR."""
    return gap_db(bits, snr) / DB_PER_BIT


def shannon_lower_bound_db(entropy: float, variance: float = 1.0) -> float:
    r"""How far the limit of another source lies above that of a Gaussian of the same variance: ≥ 0.

        D(R) ≥ 2^(-2R) · 2^(2h) / (2πe)          h the differential entropy in bits

    A source that is less random than a Gaussian can be coded better, if one knows how.
    """
    return 10 * math.log10(variance * 2 * math.pi * math.e / 2 ** (2 * entropy))


def laplace_entropy() -> float:
    """Differential entropy of a Laplace variable of variance 1, in bits."""
    return math.log2(2 * math.e / math.sqrt(2))


def uniform_entropy() -> float:
    """Differential entropy of a uniform variable of variance 1, in bits."""
    return math.log2(math.sqrt(12))


def student_t_entropy(freedom: float) -> float:
    """Differential entropy of a Student-t variable scaled to variance 1, in bits, by quadrature; freedom > 2."""
    if check_real("freedom", freedom) <= 2:
        raise ValueError(f"freedom must be above 2, or there is no variance, got {freedom}")
    u = np.linspace(-1, 1, 200_001)[1:-1]
    x = u / (1 - u * u) * 3  # the whole line
    stretch = 3 * (1 + u * u) / (1 - u * u) ** 2
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    log_density = constant - (freedom + 1) / 2 * np.log1p(x * x / freedom)
    entropy = -np.sum(np.exp(log_density) * log_density * stretch) * (u[1] - u[0])
    return float(entropy / math.log(2) - math.log2(math.sqrt(freedom / (freedom - 2))))
