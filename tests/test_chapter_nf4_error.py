"""What the chapter on NF4 error states, computed again: against closed forms and published numbers."""

from statistics import NormalDist

import numpy as np
import pytest

from lora_edu import NF4, bits_per_weight, derive_nf4, quantize, relative_error
from lora_edu.codebooks import NF4_OFFSET
from lora_edu.datasets import FFN_DOWN, minilm_weights
from lora_edu.explorers import nf4_error as explore


def share_that_becomes_zero(k: float) -> float:
    """Closed form: N(0, 1) weights between the two bounds around zero, when the block's absmax is k."""
    low, high = NF4.bounds[NF4.zero_code - 1 : NF4.zero_code + 1]
    return NormalDist().cdf(k * high) - NormalDist().cdf(k * low)


@pytest.mark.parametrize(("k", "published"), [(10, 0.33), (15, 0.48), (20, 0.61), (30, 0.80)])
def test_an_outlier_zeroes_the_published_share_of_its_block(k, published):
    shares = [explore.compute_microscope(k, seed)["zeroed"] / 63 for seed in range(400)]
    assert share_that_becomes_zero(k) == pytest.approx(published, abs=0.006)
    assert np.mean(shares) == pytest.approx(share_that_becomes_zero(k), abs=0.01)


def test_at_ten_sigma_the_neighbours_keep_twelve_decibels():
    noise = [
        np.mean((n["neighbours"] - n["restored"]) ** 2) for n in (explore.compute_microscope(10, s) for s in range(400))
    ]
    assert -10 * np.log10(np.mean(noise)) == pytest.approx(12.0, abs=0.1)


def test_the_equal_mass_recipe_has_no_zero_and_the_shipped_one_has():
    assert np.abs(explore.equal_mass_levels_wrong()).min() == pytest.approx(0.042, abs=0.0005)
    assert 0 in derive_nf4() and [np.sum(np.sign(NF4.levels) == sign) for sign in (-1, 0, 1)] == [7, 1, 8]


def test_equal_shares_would_need_an_absmax_of_1_85_sigma_but_64_gaussians_reach_2_6():
    draws = np.abs(np.random.default_rng(0).standard_normal((20000, 64))).max(axis=1)
    assert NormalDist().inv_cdf(NF4_OFFSET) == pytest.approx(1.85, abs=0.005)
    assert draws.mean() == pytest.approx(2.596, abs=0.01)


def test_eight_weights_pack_to_the_bytes_that_bitsandbytes_writes():
    weights = np.array([-1, -0.6961928, 0, 1, 0.5626170, 0.25, -0.25, 0.1], np.float32)
    assert quantize(weights, nibble_order="high-first").packed.tobytes().hex(" ") == "01 7f da 48"
    assert quantize(weights, nibble_order="low-first").packed.tobytes().hex(" ") != "01 7f da 48"


@pytest.mark.parametrize(("size", "bits"), [(16, 6), (32, 5), (64, 4.5), (128, 4.25), (256, 4.125)])
def test_a_weight_costs_its_code_and_its_share_of_the_scale(size, bits):
    assert bits_per_weight(size) == bits
    assert quantize(np.ones((64, 64), np.float32), size).bits_per_weight == bits


def test_one_scale_leaves_97_percent_and_blocks_of_64_leave_9():
    assert explore.compute_ladder("FFN down", 0)["error"] == pytest.approx(0.97, abs=0.005)
    assert explore.compute_ladder("FFN down", 64)["error"] == pytest.approx(0.094, abs=0.001)
    assert explore.compute_ladder("Gaussian", 64)["snr"] == pytest.approx(20.73, abs=0.03)


def test_in_blocks_of_64_real_weights_are_within_half_a_decibel_of_gaussian_ones():
    snr = {name: explore.compute_ladder(name, 64)["snr"] for name in explore.WEIGHTS}
    assert max(snr.values()) - min(snr.values()) < 0.5
    far = {name: explore.compute_ladder(name, 4096)["snr"] for name in explore.WEIGHTS}
    assert max(far.values()) - min(far.values()) > 3


def test_the_largest_entry_stands_in_row_99_at_175_sigma():
    weight = minilm_weights()[FFN_DOWN].astype(np.float32)
    assert np.unravel_index(np.abs(weight).argmax(), weight.shape)[0] == 99
    assert np.abs(weight).max() / weight.std() == pytest.approx(175, abs=0.5)


def test_blocks_of_1024_in_the_photograph_are_stripes_of_four_rows():
    calm, hot = explore.compute_photo(1024, 1.0), explore.compute_photo(1024, 16.0)
    changed = np.unique(np.nonzero(calm["restored"] != hot["restored"])[0])
    assert changed.min() == 128 and changed.max() == 131


def test_the_explorers_byte_is_two_nibbles():
    numbers = explore.compute_bits(0.3, -0.6)
    assert (numbers["high_first"], numbers["low_first"]) == (11 * 16 + 2, 11 + 2 * 16)


def test_the_microscope_keeps_the_outlier_exactly_and_counts_every_neighbour():
    numbers = explore.compute_microscope(10, 0)
    assert numbers["counts"].sum() == 63 and numbers["absmax"] == 10
    assert relative_error(numbers["neighbours"], numbers["restored"]) == pytest.approx(10 ** (-numbers["snr"] / 20))
