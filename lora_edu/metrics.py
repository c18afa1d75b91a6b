r"""How far two arrays are apart, what a weight costs, and what rank can express.

    SNR = 10 · log₁₀( Σ x² / Σ (x - x̂)² )  dB            6.02 dB are one bit
    relative error = ‖x - x̂‖ / ‖x‖ = 10^(-SNR / 20)

All sums are float64.
"""

import math

import numpy as np

from lora_edu.validate import check_integer, raise_not_finite


def max_error(x, approximation) -> float:
    """Largest |x - x̂|."""
    return float(np.max(np.abs(_difference(x, approximation))))


def mean_absolute_error(x, approximation) -> float:
    """Mean of |x - x̂|."""
    return float(np.mean(np.abs(_difference(x, approximation))))


def rms_error(x, approximation) -> float:
    """√(mean of (x - x̂)²)."""
    return float(np.sqrt(np.mean(np.square(_difference(x, approximation)))))


def relative_error(x, approximation) -> float:
    r"""‖x - x̂‖ / ‖x‖, Frobenius norms; 0 means equal, 1 as bad as answering zero.

    Raises ValueError if x is all zero, where the ratio has no meaning.
    """
    difference = _difference(x, approximation)
    norm = np.linalg.norm(np.asarray(x, np.float64))
    if norm == 0:
        raise ValueError("x must not be all zero: the relative error is undefined there; use rms_error")
    return float(np.linalg.norm(difference) / norm)


def snr_db(x, approximation) -> float:
    """Signal-to-noise ratio in decibels; infinite where the two are equal."""
    error = relative_error(x, approximation)
    return math.inf if error == 0 else -20 * math.log10(error)


def bits_per_weight(block_size: int, code_bits: float = 4, scale_bits: float = 32) -> float:
    r"""What a weight really costs: code_bits + scale_bits / block_size, e.g. 4 + 32/64 = 4.5."""
    return code_bits + scale_bits / check_integer("block_size", block_size, minimum=1)


def ulp_distance(x, y) -> np.ndarray:
    r"""How many steps of one representable number lead from x to y, elementwise: 0 means equal, and +0 equals -0.

    Parameters
    ----------
    x, y : arrays of one floating dtype (float16, float32 or float64), finite, broadcastable

    Returns
    -------
    uint64 array
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.dtype != y.dtype or x.dtype not in (np.float16, np.float32, np.float64):
        raise TypeError(f"x and y must share float16, float32 or float64, got {x.dtype} and {y.dtype}")
    for name, array in (("x", x), ("y", y)):
        if not np.isfinite(array).all():
            raise_not_finite(name, array)
    a, b = _ordered(x), _ordered(y)
    return np.maximum(a, b) - np.minimum(a, b)


def effective_rank(matrix) -> float:
    r"""exp(entropy of σ / Σσ): how many directions a matrix really uses, between 1 and min(shape).

    Source: Roy & Vetterli 2007, *The effective rank*.
    """
    singular = np.linalg.svd(_finite_matrix(matrix), compute_uv=False)
    if singular[0] == 0:
        raise ValueError("matrix must not be all zero: its effective rank is undefined")
    share = singular[singular > 0] / singular.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def truncate_svd(matrix, rank: int) -> tuple[np.ndarray, float]:
    r"""The best approximation of rank at most `rank`, and its distance: what no other rank-r matrix can beat.

        W_r = Σ_{i ≤ r} σ_i u_i v_iᵀ          ‖W - W_r‖ = √( Σ_{i > r} σ_i² )

    Source: Eckart & Young 1936.

    Returns
    -------
    (out, in) float64, and the Frobenius norm of what is left
    """
    matrix = _finite_matrix(matrix)
    if check_integer("rank", rank, minimum=0) > min(matrix.shape):
        raise ValueError(f"rank must be between 0 and min(out, in) = {min(matrix.shape)}, got {rank}")
    u, singular, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * singular[:rank]) @ vt[:rank], float(np.linalg.norm(singular[rank:]))


def subspace_similarity(a, b) -> np.ndarray:
    r"""How far the leading input directions of two matrices agree, for every number of directions of each.

        φ(i, j) = ‖Vᵢᵀ Vⱼ‖² / min(i, j)        Vᵢ (in, i) leading right singular vectors of a, Vⱼ (in, j) of b

    1 where the smaller subspace lies in the larger, 0 where they are orthogonal; two random subspaces of `in`
    dimensions have max(i, j) / in on average.

    Parameters
    ----------
    a, b : (rows, in), for instance the A of two adapters, or two ΔW; not all zero

    Returns
    -------
    (rank of a, rank of b) float64; entry [i - 1, j - 1] is φ(i, j)

    Source: Hu et al. 2021, *LoRA*, section 7.2, equation 4. Directions without a singular value are left out.
    """
    a, b = _finite_matrix(a), _finite_matrix(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must have one number of columns, got shapes {a.shape} and {b.shape}")
    cosines = _input_directions(a) @ _input_directions(b).T  # (rank of a, rank of b)
    shared = np.cumsum(np.cumsum(cosines**2, axis=0), axis=1)  # ‖Vᵢᵀ Vⱼ‖² for all i and j at once
    i, j = np.ogrid[1 : shared.shape[0] + 1, 1 : shared.shape[1] + 1]
    return shared / np.minimum(i, j)


def _input_directions(matrix) -> np.ndarray:
    """Right singular vectors (rank, in) whose singular value is not zero but for rounding."""
    _, singular, vt = np.linalg.svd(matrix, full_matrices=False)
    if singular[0] == 0:
        raise ValueError("a matrix must not be all zero: it has no directions to compare")
    return vt[singular > singular[0] * max(matrix.shape) * np.finfo(np.float64).eps]


def _difference(x, approximation) -> np.ndarray:
    x, approximation = np.asarray(x, np.float64), np.asarray(approximation, np.float64)
    if x.shape != approximation.shape:
        raise ValueError(f"the two arrays must have one shape, got {x.shape} and {approximation.shape}")
    if x.size == 0:
        raise ValueError("the arrays are empty: there is no error to measure")
    for name, array in (("x", x), ("approximation", approximation)):
        if not np.isfinite(array).all():
            raise_not_finite(name, array)
    return x - approximation


def _finite_matrix(matrix) -> np.ndarray:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"matrix must have two axes and not be empty, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise_not_finite("matrix", matrix)
    return matrix


def _ordered(x) -> np.ndarray:
    """Integers in the order of the floats: sign and magnitude turned into one line of numbers."""
    width = x.dtype.itemsize * 8
    bits = x.view(f"u{x.dtype.itemsize}").astype(np.uint64)
    magnitude = bits & np.uint64(2 ** (width - 1) - 1)
    half = np.uint64(2 ** (width - 1))
    return np.where(bits >> np.uint64(width - 1), half - magnitude, half + magnitude)
