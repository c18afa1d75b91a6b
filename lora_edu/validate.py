"""The refusals that every module shares: each names the argument, its value and what is allowed."""

import math
from numbers import Integral, Real

import numpy as np


class NotFiniteError(ValueError):
    """An array holds NaN or infinity; the message says where."""


def check_integer(name: str, value, minimum: int) -> int:
    """`value` as an int, or an error: bool and float are refused, and anything below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_real(name: str, value) -> float:
    """`value` as a float, or an error: bool, text, NaN and infinity are refused."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit into a float, got {value}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value}")
    return number


def check_array(name: str, value, dtypes: tuple = (np.float16, np.float32, np.float64)) -> np.ndarray:
    """`value` as a floating array, finite throughout, or an error that names the first entry that is not."""
    array = np.asarray(value)
    if array.dtype not in dtypes:
        allowed = ", ".join(np.dtype(dtype).name for dtype in dtypes)
        raise TypeError(f"{name} must be an array of {allowed}, got {array.dtype}; convert it with .astype")
    if not np.isfinite(array).all():
        raise_not_finite(name, array)
    return array


def raise_not_finite(name: str, array: np.ndarray):
    """Raise the error that says where the first NaN or infinity of `array` stands."""
    first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    place = f"[{', '.join(map(str, first))}]" if first else ""
    raise NotFiniteError(f"{name} must be finite, but {name}{place} = {array[first]}; repair or drop it first")
