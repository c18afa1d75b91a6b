"""bfloat16 against known bit patterns and against brute force, gaps against NumPy's own neighbours."""

from fractions import Fraction

import numpy as np
import pytest

from lora_edu.precision import FORMATS, gap, round_to_bfloat16, rounded, significant_bits


def f32(bits) -> np.ndarray:
    return np.atleast_1d(np.array(bits, np.uint32)).view(np.float32)


def bits(x) -> list:
    return [int(b) for b in np.asarray(x, np.float32).view(np.uint32)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0x3F800000, 0x3F800000),  # 1
        (0x40490FDB, 0x40490000),  # pi
        (0x3DCCCCCD, 0x3DCD0000),  # 0.1 goes up
        (0x3F808000, 0x3F800000),  # a tie goes to the even one, here down
        (0x3F818000, 0x3F820000),  # and here up
        (0x3F808001, 0x3F810000),  # just above a tie
        (0x3F817FFF, 0x3F810000),  # just below one
        (0xBF818000, 0xBF820000),  # the same below zero
        (0x3FFFFFFF, 0x40000000),  # carries into the exponent
        (0x80000000, 0x80000000),  # -0 keeps its sign
        (0x00008000, 0x00000000),  # denormal ties
        (0x00018000, 0x00020000),
        (0x00008001, 0x00010000),
        (0x7F7F0000, 0x7F7F0000),  # the largest
        (0x7F7F7FFF, 0x7F7F0000),
        (0x7F7F8000, 0x7F800000),  # too large: infinite
        (0x7F800000, 0x7F800000),
        (0xFF800000, 0xFF800000),
    ],
)
def test_known_bit_patterns(before, after):
    assert bits(round_to_bfloat16(f32(before))) == [after]


@pytest.mark.parametrize("pattern", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001])
def test_nan_stays_nan(pattern):
    assert np.isnan(round_to_bfloat16(f32(pattern))).all()


def nearest_by_brute_force(x: float, candidates) -> Fraction:
    """The nearest of the two neighbours, the one with an even last bit on a tie, in exact arithmetic."""
    return min(candidates, key=lambda c: (abs(Fraction(float(f32(c)[0])) - Fraction(x)), c >> 16 & 1))


def test_every_random_pattern_goes_to_the_nearest():
    patterns = np.random.default_rng(0).integers(0, 0x7F7F0000, 3000).astype(np.uint32)
    patterns[::3] = patterns[::3] & np.uint32(0xFFFF0000) | np.uint32(0x8000)  # ties
    for pattern, found in zip(patterns, bits(round_to_bfloat16(f32(patterns))), strict=True):
        low = int(pattern) & 0xFFFF0000
        assert found == nearest_by_brute_force(float(f32(pattern)[0]), (low, low + 0x10000))


def test_cutting_off_and_ties_away_would_fail():
    x = f32([0x3F808000, 0x3F80C000])
    cut = bits(f32(x.view(np.uint32) & np.uint32(0xFFFF0000)))
    away = bits(f32(x.view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)))
    right = bits(round_to_bfloat16(x))
    assert right == [0x3F800000, 0x3F810000] and cut[1] != right[1] and away[0] != right[0]


def test_agrees_with_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    patterns = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    with np.errstate(all="ignore"):
        theirs = f32(patterns).astype(ml_dtypes.bfloat16).astype(np.float32)
    ours = round_to_bfloat16(f32(patterns))
    assert np.array_equal(theirs, ours, equal_nan=True)


def test_shape_scalar_and_argument_are_left_alone():
    x = np.linspace(-1, 1, 30, dtype=np.float32).reshape(5, 6)
    copy = x.copy()
    assert round_to_bfloat16(x).shape == (5, 6) and np.array_equal(x, copy)
    assert round_to_bfloat16(np.float32(0.1)).shape == ()
    assert round_to_bfloat16(x.astype(np.float16)).dtype == np.float32
    once = round_to_bfloat16(x)
    assert np.array_equal(round_to_bfloat16(once), once)


@pytest.mark.parametrize("x", [np.zeros(2), np.zeros(2, int), [1.0]])
def test_other_types_are_refused(x):
    with pytest.raises(TypeError, match="x must be float32"):
        round_to_bfloat16(x)


def test_float64_is_refused_because_it_would_be_rounded_twice():
    x = 1 + 2.0**-8 + 2.0**-40  # above the tie; float32 puts it on the tie, and the tie goes down
    assert bits(round_to_bfloat16(np.atleast_1d(np.float32(x)))) == [0x3F800000]


def test_rounded():
    assert rounded(np.float32(0.1), "float16") == np.float16(0.1)
    assert rounded(np.float32(0.1), "float64").dtype == np.float64
    assert bits(np.atleast_1d(rounded(np.float32(0.1), "bfloat16"))) == [0x3DCD0000]
    with pytest.raises(ValueError, match="precision must be one of float64, float32, float16, bfloat16, got 'int8'"):
        rounded(np.float32(1), "int8")


@pytest.mark.parametrize("precision", ["float16", "float32", "float64"])
def test_gap_is_the_distance_to_numpys_neighbour(precision):
    rng = np.random.default_rng(2)
    x = (rng.standard_normal(2000) * 2.0 ** rng.integers(-20, 5, 2000)).astype(precision)
    x[:40] = 2.0 ** np.arange(-20, 20).astype(precision).clip(-20, 10)  # powers of two have unequal gaps
    x[40:80] = -x[:40]
    x[80:83] = [0, np.finfo(precision).smallest_subnormal, np.finfo(precision).tiny]
    for direction in (1, -1):
        neighbour = np.nextafter(x, np.array(np.inf * direction, precision))
        exact = np.abs(neighbour.astype(np.float64) - x.astype(np.float64))
        assert np.array_equal(gap(x, precision, direction), exact)


def test_gap_of_bfloat16_is_the_distance_of_bit_patterns():
    patterns = np.random.default_rng(3).integers(0, 0x7F70, 2000).astype(np.uint32)
    patterns[:3] = [0, 1, 0x3F80]
    x = f32(patterns << np.uint32(16))
    above = f32(patterns + np.uint32(1) << np.uint32(16))
    assert np.array_equal(gap(x, "bfloat16", 1), above.astype(np.float64) - x)
    assert np.array_equal(gap(above, "bfloat16", -1), above.astype(np.float64) - x)
    assert np.array_equal(gap(-above, "bfloat16", 1), above.astype(np.float64) - x)


def test_significant_bits_are_ieee():
    for precision in ("float16", "float32", "float64"):
        assert significant_bits(precision) == np.finfo(precision).nmant + 1
        assert 2.0 ** FORMATS[precision][1] == np.finfo(precision).smallest_subnormal
    assert significant_bits("bfloat16") == 8
