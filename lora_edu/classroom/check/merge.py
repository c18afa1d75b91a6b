"""Exercises of the chapter on merging."""

import numpy as np

from lora_edu.blockwise import dequantize, quantize
from lora_edu.classroom.check.engine import Exercise

_rng = np.random.default_rng(3)


def _pair(size, rank, alpha):
    """A square layer, where swapped matrices still fit and go unnoticed."""
    shapes = (size, size), (rank, size), (size, rank)
    return *(_rng.standard_normal(shape) for shape in shapes), alpha


def _merged(weight, lora_a, lora_b, alpha):
    return weight + alpha / lora_a.shape[0] * (lora_b @ lora_a)


merged_weight = Exercise(
    "merged_weight",
    _merged,
    [
        _pair(5, 2, 4.0),
        _pair(8, 4, 2.0),
        (np.zeros((3, 3)), np.ones((1, 3)), np.arange(3.0)[:, None], 0.5),
        _pair(7, 3, 3.0),
    ],
    {
        "this is alpha·r: you multiplied where the paper divides": (
            lambda weight, a, b, alpha: weight + alpha * a.shape[0] * (b @ a)
        ),
        "alpha is not divided by the rank, so the update is rank times too strong": (
            lambda weight, a, b, alpha: weight + alpha * (b @ a)
        ),
        "alpha is missing": lambda weight, a, b, alpha: weight + (b @ a) / a.shape[0],
        "there is no scaling at all; the update is alpha / rank times B A": lambda weight, a, b, alpha: weight + b @ a,
        "A and B swapped: the update is transposed, which a square layer does not notice": (
            lambda weight, a, b, alpha: weight + alpha / a.shape[0] * (a.T @ b.T)
        ),
        "the rank is the number of rows of A; here alpha was divided by the number of inputs": (
            lambda weight, a, b, alpha: weight + alpha / a.shape[1] * (b @ a)
        ),
        "this is only the update; add the weight": lambda weight, a, b, alpha: alpha / a.shape[0] * (b @ a),
    },
    tolerance=1e-12,
)


def _comes_back(weight, delta):
    return (weight + delta) - delta == weight


def _floats(*values):
    return np.array(values, np.float32)


def _law_case(shape, size):
    delta = size * _rng.standard_normal(shape, dtype=np.float32)
    return _rng.standard_normal(shape, dtype=np.float32), delta.astype(np.float32)


comes_back = Exercise(
    "comes_back",
    _comes_back,
    [
        _law_case((5, 7), 0.1),
        _law_case((64,), 30.0),
        (_floats(0, 0, 1, 1), _floats(0, 1, 0, -1)),
        # ties: an even weight comes back, an odd one does not
        (_floats(1, 1 + 2**-23, 1 + 2**-22), _floats(1, 1, 1)),
        (_floats(1e-9, 1, 3), _floats(1, 1e-9, 5)),
    ],
    {
        "a tolerance hides exactly the bits in question; compare with ==": (
            lambda weight, delta: np.isclose((weight + delta) - delta, weight)
        ),
        "this was computed in float64, which has room for the bits that float32 drops": (
            lambda weight, delta: (weight.astype(np.float64) + delta) - delta == weight
        ),
        "this asks whether the merge left the weight unchanged; ask what subtracting gives back": (
            lambda weight, delta: weight + delta == weight
        ),
        "being larger than the update is not the rule; the rounding error of the addition decides": (
            lambda weight, delta: np.abs(weight) >= np.abs(delta)
        ),
        "the answer is upside down: True where the weight comes back": (
            lambda weight, delta: ~_comes_back(weight, delta)
        ),
    },
)


def _kept(weight, delta, block_size):
    base = dequantize(quantize(weight, block_size))
    return _projection(dequantize(quantize(base + delta, block_size)) - base, delta)


def _projection(effective, delta):
    return np.sum(effective.astype(np.float64) * delta) / np.sum(delta.astype(np.float64) ** 2)


def _kept_quantizing_the_original(weight, delta, block_size):
    base = dequantize(quantize(weight, block_size))
    return _projection(dequantize(quantize(weight + delta, block_size)) - base, delta)


def _kept_against_the_original(weight, delta, block_size):
    base = dequantize(quantize(weight, block_size))
    return _projection(dequantize(quantize(base + delta, block_size)) - weight, delta)


def _kept_by_norm(weight, delta, block_size):
    base = dequantize(quantize(weight, block_size))
    return np.linalg.norm(dequantize(quantize(base + delta, block_size)) - base) / np.linalg.norm(delta)


def _kept_without_quantizing_again(weight, delta, block_size):
    base = dequantize(quantize(weight, block_size))
    return _projection((base + delta) - base, delta)


def _kept_per_tensor(weight, delta, block_size):
    return _kept(weight, delta, weight.size)


def _kept_case(shape, size, block_size):
    weight = _rng.standard_normal(shape, dtype=np.float32)
    return weight, (size * _rng.standard_normal(shape)).astype(np.float32), block_size


def _zero_block_case():
    weight, delta, block_size = _kept_case((4, 16), 0.1, 16)
    weight[1] = 0
    return weight, delta, block_size


share_kept = Exercise(
    "share_kept",
    _kept,
    [_kept_case((16, 16), 0.01, 64), _kept_case((5, 13), 0.1, 16), _zero_block_case(), _kept_case((8, 32), 0.5, 64)],
    {
        "this quantizes W + ΔW anew; the merge starts from what the 4-bit base holds": _kept_quantizing_the_original,
        "the change is measured against the original weight; compare with the dequantized base, or the quantization "
        "error counts as change": _kept_against_the_original,
        "this compares lengths; noise is long too. Project on the update: Σ effective·Δ / Σ Δ²": _kept_by_norm,
        "the sum was not quantized again, so nothing is lost": _kept_without_quantizing_again,
        "one scale for the whole tensor (per-tensor scale); each block has its own": _kept_per_tensor,
    },
    tolerance=1e-6,
)
