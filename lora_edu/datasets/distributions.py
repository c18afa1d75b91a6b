"""Weights of known shape to quantize, from a seed; variance 1 wherever there is one."""

from collections.abc import Callable

import numpy as np

from lora_edu.validate import check_real

Shape = Callable[[np.random.Generator, int | tuple[int, ...]], np.ndarray]  # draws `size` numbers


def student_t(freedom: float) -> Shape:
    """Heavier tails the smaller `freedom` is; scaled to variance 1 above 2, where there is a variance."""
    if check_real("freedom", freedom) <= 0:
        raise ValueError(f"freedom must be positive, got {freedom}")
    unit = np.sqrt(freedom / (freedom - 2)) if freedom > 2 else 1.0
    return lambda rng, size: rng.standard_t(freedom, size) / unit


def gaussian_with_outliers(share: float = 1e-3, sigmas: float = 20.0) -> Shape:
    """Gaussian, but for a share of the numbers σ is `sigmas` times as large."""
    if not 0 <= check_real("share", share) <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    unit = np.sqrt(1 - share + share * check_real("sigmas", sigmas) ** 2)

    def shape(rng, size):
        numbers = rng.standard_normal(size)
        return np.where(rng.random(size) < share, sigmas * numbers, numbers) / unit

    return shape


DISTRIBUTIONS: dict[str, Shape] = {  # from the lightest tails to the heaviest
    "uniform": lambda rng, size: rng.uniform(-np.sqrt(3), np.sqrt(3), size),
    "Gaussian": lambda rng, size: rng.standard_normal(size),
    "Student-t 10": student_t(10),
    "Laplace": lambda rng, size: rng.laplace(0, np.sqrt(0.5), size),
    "Student-t 5": student_t(5),
    "Student-t 3": student_t(3),
    "Gaussian with outliers": gaussian_with_outliers(),
}


def draw(shape: str | Shape, size: int | tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 weights of `size`: one of `DISTRIBUTIONS` by name, or a shape such as `student_t(4)`."""
    if isinstance(shape, str):
        if shape not in DISTRIBUTIONS:
            raise ValueError(f"shape must be one of {', '.join(DISTRIBUTIONS)}, got {shape!r}")
        shape = DISTRIBUTIONS[shape]
    return np.asarray(shape(np.random.default_rng(seed), size), np.float32)
