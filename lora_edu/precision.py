r"""Number formats as rulers: rounding to one, and the distance between its marks.

    bfloat16   8 significant bits, the exponents of float32      marks 2⁻⁸ … 2⁻⁷ of the value apart
    float16   11 significant bits                                2⁻¹¹ … 2⁻¹⁰
    float32   24 significant bits                                2⁻²⁴ … 2⁻²³
    float64   53 significant bits                                2⁻⁵³ … 2⁻⁵²

NumPy has no bfloat16, so its values are held in float32, of which they are the upper sixteen bits. One float32
operation on float16 or bfloat16 values, rounded once more, is the correctly rounded operation of that format, because
24 ≥ 2 · 11 + 2 (Figueroa 1995, *When is double rounding innocuous?*).
"""

import numpy as np

# significant bits, and the exponent of the smallest distance between two marks
FORMATS = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}


def round_to_bfloat16(x) -> np.ndarray:
    r"""The nearest bfloat16 of each float32, to the even one of two that are equally near, held in float32.

    The lower 16 bits are rounded off with integers: adding 0x7FFF, and 1 more where the last kept bit is odd, carries
    into the upper half exactly when it should. Values beyond the largest bfloat16 become infinite; NaN stays NaN.

    Parameters
    ----------
    x : float32 array of any shape (float16 is widened; float64 would be rounded twice, so it is refused)

    Returns
    -------
    float32 array of that shape, the lower 16 bits of each value zero
    """
    x = np.asarray(x)
    if x.dtype not in (np.float16, np.float32):
        raise TypeError(f"x must be float32 (or float16), got {x.dtype}; convert it with x.astype(np.float32) first")
    x = x.astype(np.float32)
    bits = x.view(np.uint32)
    nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    kept = (nearest & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), kept)


def rounded(x, precision: str) -> np.ndarray:
    """`x` rounded to "float64", "float32", "float16" or "bfloat16"; bfloat16 is held in float32."""
    significant_bits(precision)
    if precision == "bfloat16":
        return round_to_bfloat16(x)
    with np.errstate(over="ignore"):
        return np.asarray(x).astype(precision)


def significant_bits(precision: str) -> int:
    """Binary digits that a number of this format holds, the leading one included."""
    if precision not in FORMATS:
        raise ValueError(f"precision must be one of {', '.join(FORMATS)}, got {precision!r}")
    return FORMATS[precision][0]


def gap(x, precision: str, direction=1) -> np.ndarray:
    r"""Distance from x to its neighbour in the format: away from zero, or towards zero where `direction` · x < 0.

        2^(k - p)  for 2^(k-1) ≤ |x| < 2^k and p significant bits;  towards zero from a power of two half of it

    Parameters
    ----------
    x : array of values of the format, finite
    precision : str
    direction : array or number
        Its sign says which neighbour: +1 the one above, -1 the one below.

    Returns
    -------
    float64 array
    """
    bits = significant_bits(precision)
    smallest = FORMATS[precision][1]
    x = np.asarray(x, np.float64)
    fraction, exponent = np.frexp(x)
    inwards = (np.sign(direction) * np.sign(x) < 0) & (np.abs(fraction) == 0.5)
    exponent = np.where(x == 0, smallest, exponent - bits - inwards)
    return np.ldexp(1.0, np.maximum(exponent, smallest))
