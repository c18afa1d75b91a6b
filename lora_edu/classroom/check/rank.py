"""Exercises of the chapter on rank."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise
from lora_edu.metrics import effective_rank


def _count(rank, in_features, out_features):
    return rank * (in_features + out_features)


trainable_count = Exercise(
    "trainable_count",
    _count,
    [(8, 4096, 4096), (1, 7, 3), (16, 384, 1536), (3, 1536, 384)],
    {
        "this is rank · in · out; A and B are thin, so their sizes add: rank · in + rank · out": lambda r, i, o: (
            r * i * o
        ),
        "this counts A and forgets B, which has out · rank numbers": lambda r, i, o: r * i,
        "this counts B and forgets A, which has rank · in numbers": lambda r, i, o: r * o,
        "this counts the frozen W as well; only A and B are trained": lambda r, i, o: _count(r, i, o) + i * o,
        "this is in · out, what training W itself would take": lambda r, i, o: i * o,
        "this takes the layer to be square: 2 · rank · in": lambda r, i, o: 2 * r * i,
    },
)


def _delta(lora_a, lora_b, alpha):
    return alpha / len(lora_a) * (lora_b @ lora_a)


_rng = np.random.default_rng(1)


def _pair(rank, in_features, out_features, alpha):
    return _rng.standard_normal((rank, in_features)), _rng.standard_normal((out_features, rank)), alpha


delta_weight = Exercise(
    "delta_weight",
    _delta,
    [_pair(4, 6, 6, 8.0), _pair(3, 5, 7, 1.0), _pair(2, 9, 4, 16.0), (np.ones((2, 3)), np.zeros((5, 2)), 4.0)],
    {
        "A and B swapped: this is ΔW transposed, (in, out) instead of (out, in)": lambda a, b, alpha: (
            _delta(a, b, alpha).T
        ),
        "this is alpha·r: you multiplied where the paper divides": lambda a, b, alpha: alpha * len(a) * (b @ a),
        "the scaling is missing: multiply B A by alpha / rank": lambda a, b, alpha: b @ a,
        "multiplied by alpha, but not divided by the rank": lambda a, b, alpha: alpha * (b @ a),
        "divided by √rank, which is rsLoRA; the paper divides by the rank": lambda a, b, alpha: (
            alpha / np.sqrt(len(a)) * (b @ a)
        ),
        "divided by `in`; the rank is the number of rows of A, `lora_a.shape[0]`": lambda a, b, alpha: (
            alpha / a.shape[1] * (b @ a)
        ),
    },
    tolerance=1e-12,
)


def _shares(matrix, power=1):
    singular = np.linalg.svd(matrix, compute_uv=False) ** power
    return singular / singular.sum()


def _entropy(share, log=np.log):
    share = share[share > 0]
    return float(-np.sum(share * log(share)))


directions_used = Exercise(
    "directions_used",
    effective_rank,
    [
        (_rng.standard_normal((7, 5)),),
        (np.diag([4.0, 2.0, 1.0, 1.0]),),
        (np.diag([3.0, 1.0, 0.0]),),  # a singular value of zero
        (np.eye(3, 4),),  # a tie
        (_rng.standard_normal((6, 2)) @ _rng.standard_normal((2, 9)),),
    ],
    {
        "the shares were taken of σ², not of σ; this is the effective rank of the energy": lambda m: np.exp(
            _entropy(_shares(m, power=2))
        ),
        "this is the entropy; the effective rank is exp of it": lambda m: _entropy(_shares(m)),
        "the entropy is in bits (log2) but exp goes back with e; use one base for both": lambda m: np.exp(
            _entropy(_shares(m), np.log2)
        ),
        "this counts the singular values that are not zero; small ones should count less": np.linalg.matrix_rank,
        "this is 1 / Σ share², the participation ratio, not the exp of the entropy": lambda m: (
            1 / np.sum(_shares(m) ** 2)
        ),
    },
    tolerance=1e-9,
)
