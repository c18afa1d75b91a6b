"""Exercises of the chapter on fine-tuning."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise
from lora_edu.metrics import truncate_svd
from lora_edu.models.finetuning import truncate_for_data


def _share_of_gain(before, after, full):
    return (after - before) / (full - before)


share_of_gain = Exercise(
    "share_of_gain",
    _share_of_gain,
    [(0.1, 0.93, 0.95), (0.7, 0.95, 0.955), (0.5, 0.5, 0.9), (0.6, 0.5, 0.8), (0.2, 0.9, 0.8)],
    {
        "this is after / full: what the network could do before counts as learned": lambda before, after, full: (
            after / full
        ),
        "the whole gain is full - before": lambda before, after, full: (after - before) / full,
        "this is the gain itself: divide by what full fine-tuning gains": lambda before, after, full: after - before,
        "upside down: the gain stands above, full's gain below": lambda before, after, full: (
            (full - before) / (after - before) if after != before else np.inf
        ),
        "this is what is missing: 1 minus the share": lambda before, after, full: (full - after) / (full - before),
    },
    tolerance=1e-9,
)


def _errors_apart(first, second):
    gap = first - second
    return float(gap.mean() / (gap.std(ddof=1) / np.sqrt(len(gap))))


def _unpaired(first, second):
    spread = first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)
    return float((first.mean() - second.mean()) / np.sqrt(spread))


def _splits(seed, count, gap):
    rng = np.random.default_rng(seed)
    hard = 0.05 * rng.standard_normal(count)  # some splits are harder than others, for both ways alike
    return 0.9 + gap + hard + 0.01 * rng.standard_normal(count), 0.9 + hard + 0.01 * rng.standard_normal(count)


errors_apart = Exercise(
    "errors_apart",
    _errors_apart,
    [_splits(0, 10, 0.02), _splits(1, 6, -0.01), _splits(2, 2, 0.0), _splits(3, 25, 0.005)],
    {
        "the splits are compared unpaired: take the difference in each split first, then its spread": _unpaired,
        "the sign is turned: first less second": lambda first, second: _errors_apart(second, first),
        "this is in standard deviations: a mean of n differences varies √n times less": lambda first, second: float(
            (first - second).mean() / (first - second).std(ddof=1)
        ),
        "the spread divides by n; from n splits it is n - 1: ddof=1": lambda first, second: float(
            (first - second).mean() / ((first - second).std() / np.sqrt(len(first)))
        ),
        "this is the gap itself: divide it by its standard error": lambda first, second: float((first - second).mean()),
    },
    tolerance=1e-9,
)


def _inputs_cut(delta, x, rank):
    """ΔW seen through the directions of the inputs with the most energy."""
    v = np.linalg.svd(x, full_matrices=False)[2][:rank]
    return delta @ v.T @ v


_rng = np.random.default_rng(4)


def _case(out, width, rows, rank):
    x = _rng.standard_normal((rows, width)) * np.linspace(0.05, 2, width)  # some inputs hardly vary
    return _rng.standard_normal((out, width)), x, rank


cut_for_data = Exercise(
    "cut_for_data",
    truncate_for_data,
    [_case(5, 6, 20, 2), _case(4, 3, 9, 1), _case(3, 7, 12, 3)],
    {
        "this is the plain cut: it never looks at x": lambda delta, x, rank: truncate_svd(delta, rank)[0],
        "this keeps the strongest inputs; keep the strongest outputs, those of ΔW xᵀ": _inputs_cut,
        "these are the outputs of the cut, ΔW xᵀ: project ΔW itself": lambda delta, x, rank: truncate_svd(
            delta @ x.T, rank
        )[0],
        "nothing was cut: keep `rank` directions": lambda delta, x, rank: delta,
    },
    tolerance=1e-9,
)
