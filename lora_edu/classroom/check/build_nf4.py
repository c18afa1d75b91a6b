"""Exercises of the chapter on building one's own NF4."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise


def _nearest(values, levels):
    return np.abs(values[:, None] - levels).argmin(axis=1)


def _error(values, levels):
    return float(np.mean((values - levels[_nearest(values, levels)]) ** 2))


_rng = np.random.default_rng(6)
_LEVELS = np.array([-1.0, -0.4, 0.0, 0.3, 1.0])

table_error = Exercise(
    "table_error",
    _error,
    [
        (_rng.uniform(-1, 1, 101), _LEVELS),
        (np.zeros(3), _LEVELS),
        (np.array([0.15, -0.7]), _LEVELS),  # exactly between two levels
        (_rng.standard_normal(50) / 3, np.linspace(-1, 1, 16)),
    ],
    {
        "this is the absolute error; square the differences": lambda values, levels: float(
            np.mean(np.abs(values - levels[_nearest(values, levels)]))
        ),
        "the level below is taken, not the nearest": lambda values, levels: float(
            np.mean((values - levels[np.clip(np.searchsorted(levels, values, "right") - 1, 0, None)]) ** 2)
        ),
        "this is the sum; divide by the number of values": lambda values, levels: _error(values, levels) * len(values),
        "the root is taken: the question was for the mean square": lambda values, levels: _error(values, levels) ** 0.5,
    },
    tolerance=1e-9,
)


def _step(values, levels, centre=np.mean):
    nearest = _nearest(values, levels)
    return np.array([centre(values[nearest == i]) if (nearest == i).any() else x for i, x in enumerate(levels)])


lloyd_step = Exercise(
    "lloyd_step",
    _step,
    [
        (_rng.uniform(-1, 1, 200), _LEVELS),
        (_rng.standard_normal(77), np.linspace(-2, 2, 7)),
        (np.array([0.1, 0.2, 0.9]), np.array([-1.0, 0.0, 1.0])),  # the first level has nobody
    ],
    {
        "this is the median; the squared error wants the mean": lambda values, levels: _step(values, levels, np.median),
        "this is the middle of the cell's extremes, not the mean of its values": lambda values, levels: _step(
            values, levels, lambda cell: (cell.min() + cell.max()) / 2
        ),
        "a level without values became 0; let it stay where it is": lambda values, levels: np.array(
            [
                values[_nearest(values, levels) == i].mean() if (_nearest(values, levels) == i).any() else 0.0
                for i in range(len(levels))
            ]
        ),
        "the levels stayed where they were": lambda values, levels: levels,
    },
    tolerance=1e-9,
)

beside_an_outlier = Exercise(
    "beside_an_outlier",
    lambda probability, block_size: 1 - (1 - probability) ** block_size,
    [(1e-3, 64), (1e-3, 4096), (0.5, 2), (0.0, 64), (1e-2, 1)],
    {
        "p · B counts blocks with two outliers twice, and passes 1": lambda p, size: p * size,
        "this is the share without an outlier; subtract it from 1": lambda p, size: (1 - p) ** size,
        "this is the chance that every weight is an outlier": lambda p, size: p**size,
        "the block size is missing": lambda p, size: p,
    },
    tolerance=1e-9,
)
