r"""Measures against closed forms, walks along the floating-point numbers, and `np.linalg`."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_edu import metrics
from lora_edu.metrics import effective_rank, snr_db, truncate_svd, ulp_distance

X = np.array([3.0, -4.0, 0.0, 12.0])
Y = np.array([3.0, -3.0, 2.0, 10.0])


def test_errors_of_a_small_example_by_hand():
    assert metrics.max_error(X, Y) == 2
    assert metrics.mean_absolute_error(X, Y) == 1.25
    assert metrics.rms_error(X, Y) == 1.5
    assert metrics.relative_error(X, Y) == 3 / 13
    assert snr_db(X, Y) == pytest.approx(20 * math.log10(13 / 3), rel=1e-15)


def test_errors_of_equal_arrays_are_zero_and_their_ratio_infinite():
    for measure in (metrics.max_error, metrics.mean_absolute_error, metrics.rms_error, metrics.relative_error):
        assert measure(X, X) == 0
    assert snr_db(X, X) == math.inf


def test_answering_zero_is_zero_decibels():
    assert metrics.relative_error(X, 0 * X) == 1
    assert snr_db(X, 0 * X) == 0


def test_sums_are_float64_whatever_comes_in():
    x = np.full(100_000, 1.0, np.float16)
    assert metrics.mean_absolute_error(x, np.zeros_like(x)) == 1  # a float16 sum stops at 2048
    assert metrics.rms_error(np.full(4, 300, np.float16), np.zeros(4, np.float16)) == 300  # 300² overflows float16


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e3))
@settings(max_examples=30, deadline=None)
def test_halving_the_error_gains_six_decibels(seed, size):
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=50), size * rng.normal(size=50)
    gain = snr_db(x, x + noise / 2) - snr_db(x, x + noise)
    assert gain == pytest.approx(6.0206, abs=1e-4)


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_relative_error_and_snr_do_not_depend_on_the_unit(unit, seed):
    x, y = np.random.default_rng(seed).normal(size=(2, 40))
    assert metrics.relative_error(unit * x, unit * y) == pytest.approx(metrics.relative_error(x, y), rel=1e-12)
    assert 10 ** (-snr_db(x, y) / 20) == pytest.approx(metrics.relative_error(x, y), rel=1e-12)


def test_bits_per_weight_count_the_scales():
    assert metrics.bits_per_weight(64) == 4.5
    assert metrics.bits_per_weight(32) == 5
    assert metrics.bits_per_weight(128, scale_bits=16) == 4.125
    assert metrics.bits_per_weight(64, scale_bits=8 + 32 / 256) == 4.126953125  # double quantization, as published


# --- distance in ulp


def test_every_finite_float16_is_one_step_from_the_next():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    line = np.unique(values[np.isfinite(values)])  # sorted; +0 and -0 are one
    assert (ulp_distance(line[:-1], line[1:]) == 1).all()
    i, j = np.random.default_rng(0).integers(0, line.size, (2, 20_000))
    assert np.array_equal(ulp_distance(line[i], line[j]), np.abs(i - j))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_walk_of_nextafter_counts_its_steps(dtype):
    tiny, largest = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    starts = [-3 * tiny, -tiny, 0.0, np.finfo(dtype).tiny, 1.0, -2.0, 0.5, 3.14, largest / 2]
    for start in map(dtype, starts):
        x = start
        for steps in range(1, 12):
            x = np.nextafter(x, dtype(largest))
            assert ulp_distance(start, x) == ulp_distance(x, start) == steps, (start, x)


@given(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100), st.integers(0, 2**20))
def test_spacing_is_one_step_inside_a_binade(x, steps):
    x = np.float32(x)
    exponent = math.frexp(abs(x))[1]
    y = np.float32(abs(x)) + np.float32(steps) * np.spacing(np.float32(abs(x)))
    if x and math.frexp(y)[1] == exponent:  # the same binade: the sum is exact
        assert ulp_distance(np.float32(abs(x)), y) == steps
        assert ulp_distance(-np.float32(abs(x)), -y) == steps


def test_below_a_power_of_two_the_steps_are_half_as_long():
    one = np.float32(1)
    assert ulp_distance(one, one + np.spacing(one)) == 1
    assert ulp_distance(one, one - np.spacing(one)) == 2


def test_the_two_zeros_are_one_number():
    for dtype in (np.float16, np.float32, np.float64):
        assert ulp_distance(dtype(0.0), dtype(-0.0)) == 0
        tiny = np.finfo(dtype).smallest_subnormal
        assert ulp_distance(-tiny, tiny) == 2


def test_the_whole_line_is_counted_without_overflow():
    largest = np.finfo(np.float64).max
    assert int(ulp_distance(-largest, largest)) == 2 * (0x7FF0000000000000 - 1)


def test_distances_broadcast_and_read_any_stride():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert ulp_distance(x.T, x.T.copy()).max() == 0
    assert ulp_distance(x[:, ::2], np.float32(0)).shape == (3, 2)


# --- what rank can express


@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_the_effective_rank_of_an_identity_is_its_size(n):
    assert effective_rank(np.eye(n)) == pytest.approx(n, rel=1e-12)
    assert effective_rank(1e-6 * np.eye(n, n + 3)) == pytest.approx(n, rel=1e-12)


def test_the_effective_rank_of_an_outer_product_is_one():
    rng = np.random.default_rng(1)
    assert effective_rank(np.outer(rng.normal(size=9), rng.normal(size=5))) == pytest.approx(1, abs=1e-12)


def test_the_effective_rank_of_known_singular_values_is_the_exponential_of_their_entropy():
    # shares 1/2, 1/4, 1/4: an entropy of 1.5 bits
    assert effective_rank(np.diag([2.0, -1.0, 1.0, 0.0])) == pytest.approx(2**1.5, rel=1e-12)


@pytest.mark.parametrize(("shape", "rank"), [((20, 30), 4), ((30, 20), 1), ((25, 25), 12)])
def test_truncation_is_as_near_as_it_says_and_no_random_projection_is_nearer(shape, rank):
    rng = np.random.default_rng(2)
    w = rng.normal(size=shape)
    best, distance = truncate_svd(w, rank)
    assert np.linalg.matrix_rank(best) == rank
    assert np.linalg.norm(w - best) == pytest.approx(distance, rel=1e-12)
    for _ in range(50):
        basis = np.linalg.qr(rng.normal(size=(shape[1], rank)))[0]  # (in, rank)
        assert np.linalg.norm(w - w @ basis @ basis.T) > distance
    for _ in range(50):  # nor a small step aside at the same rank
        step = 1e-3 * rng.normal(size=(shape[0], rank)) @ np.linalg.svd(best)[2][:rank]
        assert np.linalg.norm(w - best - step) > distance


def test_truncation_at_full_rank_changes_nothing_and_at_rank_zero_leaves_nothing():
    w = np.random.default_rng(3).normal(size=(6, 9))
    whole, rest = truncate_svd(w, 6)
    assert np.allclose(whole, w, atol=1e-14)
    assert rest == 0
    nothing, rest = truncate_svd(w, 0)
    assert not nothing.any()
    assert rest == pytest.approx(np.linalg.norm(w), rel=1e-15)


def test_truncation_of_a_diagonal_keeps_the_largest_entries():
    best, distance = truncate_svd(np.diag([3.0, -5.0, 4.0]), 1)
    assert np.allclose(best, np.diag([0, -5, 0]), atol=1e-15)
    assert distance == pytest.approx(5, rel=1e-15)
