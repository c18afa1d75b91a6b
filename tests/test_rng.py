r"""`SeededRng`: xorshift64 against an implementation in Python integers and against the golden values."""

import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_edu import SeededRng, rng

GOLDEN = np.load(Path(__file__).parent / "golden" / "seed_reference.npz")
MASK = 2**64 - 1


def python_stream(seed, count, shifts=(13, 7, 17)):
    r"""The generator in Python's own integers, masked to 64 bits; float32 only at the end."""
    state, values = max(seed, 1), []
    for _ in range(count):
        state ^= state << shifts[0] & MASK
        state ^= state >> shifts[1]
        state ^= state << shifts[2] & MASK
        values.append(np.float32(float(state) / float(MASK) * 2 - 1))
    return np.array(values, np.float32)


@pytest.mark.parametrize("seed", [0, 42])
def test_a_thousand_values_equal_the_golden_ones_bit_for_bit(seed):
    golden = GOLDEN[f"rng_{seed}"]
    assert SeededRng(seed).uniform(1000).tobytes() == golden.tobytes()
    assert SeededRng(seed).uniform_spec(1000).tobytes() == golden.tobytes()
    assert python_stream(seed, 1000).tobytes() == golden.tobytes()


@pytest.mark.parametrize("shifts", [(13, 17, 7), (17, 7, 13), (12, 7, 17), (13, 7, 16)])
def test_other_shifts_are_told_from_the_golden_values(shifts):
    assert python_stream(42, 1000, shifts).tobytes() != GOLDEN["rng_42"].tobytes()


@given(st.integers(-(2**63), 2**64 - 1), st.lists(st.integers(0, 40), max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_fast_form_equals_the_loop_and_both_stand_at_the_same_place_after(seed, shape):
    fast, loop = SeededRng(seed), SeededRng(seed)
    with patch.object(rng, "LANE_LENGTH", 16):  # many lanes already for small shapes
        drawn = fast.uniform(tuple(shape))
        assert drawn.shape == tuple(shape)
        assert drawn.dtype == np.float32
        expected = python_stream(seed, drawn.size + 5)
        assert drawn.ravel().tobytes() == expected[: drawn.size].tobytes()
        assert loop.uniform_spec(tuple(shape)).tobytes() == drawn.tobytes()
        assert fast.uniform(5).tobytes() == loop.uniform_spec(5).tobytes() == expected[drawn.size :].tobytes()


@pytest.mark.parametrize("count", [511, 512, 513, 1024, 4 * 512 + 1])
def test_values_across_the_end_of_a_lane_equal_the_loop(count):
    assert SeededRng(7).uniform(count).tobytes() == python_stream(7, count).tobytes()


def test_a_stream_drawn_in_pieces_is_the_stream_drawn_at_once():
    pieces, whole = SeededRng(5), SeededRng(5).uniform(2000)
    drawn = [pieces.uniform(size) for size in (0, 1, 600, 0, 512, 887)]
    assert np.concatenate(drawn).tobytes() == whole.tobytes()


@pytest.mark.parametrize("seed", [0, -1, -(2**63)])
def test_a_seed_below_one_is_raised_to_one(seed):
    assert SeededRng(seed).uniform(100).tobytes() == SeededRng(1).uniform(100).tobytes()


def test_matrices_are_filled_row_by_row():
    assert SeededRng(3).uniform((4, 5)).ravel().tobytes() == SeededRng(3).uniform(20).tobytes()


def test_values_spread_evenly_over_minus_one_to_one():
    values = SeededRng(12345).uniform(2**18)
    assert abs(values.mean(dtype=np.float64)) < 4 / np.sqrt(3 * 2**18)  # four standard errors
    assert abs(values.var(dtype=np.float64) - 1 / 3) < 0.002
    assert values.min() >= -1
    assert values.max() <= 1
    counts = np.histogram(values, 16, (-1, 1))[0]
    assert np.abs(counts - 2**14).max() < 5 * np.sqrt(2**14)


def test_only_the_topmost_states_round_to_one():
    top = np.array([2**64 - 1, 2**64 - 2**38, 2**64 - 2**40], np.uint64)
    assert rng.to_unit(top).tolist() == [1.0, 1.0, 1 - 2.0**-23]
    assert rng.to_unit(np.uint64(1)) == -1


def test_a_large_matrix_takes_well_under_a_tenth_of_a_second():
    def seconds():
        start = time.perf_counter()
        SeededRng(1).uniform((64, 4096))
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.1
