"""What the chapter on building one's own NF4 states, computed again."""

import numpy as np
import pytest

from lora_edu import optimal
from lora_edu.codebooks import AF4, NF4, Codebook
from lora_edu.explorers import build_nf4 as explore
from lora_edu.theory import expected_error


@pytest.mark.parametrize(
    ("block_size", "mae", "mse"),
    [(16, 0.9347, 0.9015), (64, 0.9664, 0.9367), (128, 0.9762, 0.95), (512, 0.9881, 0.9691), (1024, 0.9916, 0.9758)],
)
def test_the_valleys_lie_at_the_published_offsets(block_size, mae, mse):
    best = {name: explore.OFFSETS[np.argmin(excess)] for name, excess in explore.family(block_size).items()}
    assert best["mae"] == pytest.approx(mae, abs=0.001) and best["mse"] == pytest.approx(mse, abs=0.001)


def test_nf4_is_six_percent_above_the_valley_of_the_squared_error_and_in_that_of_the_absolute_one():
    excess = explore.compute_offset(0.9677083, 64)["excess"]
    assert np.interp(0.9677083, explore.OFFSETS, excess["mse"]) == pytest.approx(5.8, abs=0.2)
    assert np.interp(0.9677083, explore.OFFSETS, excess["mae"]) < 0.05


def test_the_offset_is_the_mean_of_two_fractions():
    assert ((1 - 1 / 32) + (1 - 1 / 30)) / 2 == pytest.approx(0.9677083, abs=5e-8)


def test_the_recipes_have_the_published_signal_to_noise_ratios():
    found = {name: snr for name, _, snr, _ in explore.compute_recipes()}
    published = {"NF4 as shipped": 20.73, "paper's equation 4": 20.40, "equal mass": 20.76, "published AF4": 20.39}
    assert found == pytest.approx({**published, "best with -1, 0, 1": 20.97}, abs=0.01)


def test_the_printed_equation_gives_fifteen_symmetric_levels():
    levels = explore.paper_equation_levels_wrong()
    assert len(levels) == 15
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-12)


def test_lloyd_takes_a_uniform_table_past_nf4_and_never_backwards():
    snr = [explore.compute_own("uniform", steps, 11, 0.0)["snr"] for steps in range(0, 61, 4)]
    assert snr[0] < 20.1 and snr[-1] > expected_error(NF4, 64).snr_db + 0.3
    assert (np.diff(snr) > 0).all()


def test_nothing_kept_is_best_by_0_45_decibels():
    free = Codebook("free", optimal.optimal_levels(64, kept=()), needs_zero=False)
    assert expected_error(free, 64).snr_db == pytest.approx(21.18, abs=0.01)
    assert expected_error(free, 64).snr_db - expected_error(NF4, 64).snr_db == pytest.approx(0.45, abs=0.01)


def test_a_level_moved_by_hand_never_passes_its_neighbour():
    for moved in (-0.1, 0.1):
        for chosen in range(1, 15):
            levels = explore.compute_own("NF4", 0, chosen, moved)["levels"]
            assert (np.diff(levels) > 0).all() and 0 in levels


@pytest.mark.parametrize(
    ("name", "nf4", "int4"), [("uniform", 20.8, 23.1), ("Gaussian", 20.7, 19.4), ("Student-t 3", 18.2, 14.9)]
)
def test_the_zoo_ranks_as_published(name, nf4, int4):
    snr = explore.compute_zoo(name, 64)["snr_by_format"]
    assert snr["NF4"] == pytest.approx(nf4, abs=0.15) and snr["INT4"] == pytest.approx(int4, abs=0.15)


def test_one_in_a_thousand_reaches_six_percent_at_64_and_nearly_all_at_4096():
    sizes, share = explore.compute_blast()["shares"][1e-3]
    reached = dict(zip(sizes, share, strict=True))
    assert reached[64] == pytest.approx(0.062, abs=0.001) and reached[4096] == pytest.approx(0.983, abs=0.001)


def test_rare_outliers_cost_the_others_what_was_published():
    blast = explore.compute_blast()
    published = {16: 20.2, 64: 16.9, 256: 12.4}
    for size, snr in zip(blast["sizes"], blast["with_outliers"], strict=True):
        if size in published:
            assert snr == pytest.approx(published[size], abs=0.8)  # rare events: one draw of them


def test_the_published_af4_table_is_three_percent_behind_nf4_at_its_own_criterion():
    af4, nf4 = (expected_error(table, 64).normalised_absolute for table in (AF4, NF4))
    best = expected_error(Codebook("best", optimal.optimal_levels(64, "normalised mae")), 64).normalised_absolute
    assert af4 / nf4 == pytest.approx(1.033, abs=0.003)
    assert best < nf4 < 1.002 * best


def test_the_button_takes_one_lloyd_step_and_lets_go_of_the_level():
    explorer = explore.own_levels()
    explorer.set(moved=0.05)
    before = explorer.numbers["snr"]
    button = next(child for child in explorer.widget.children[0].children if child.description == "Lloyd step")
    button.click()
    assert explorer.state["steps"] == 1 and explorer.state["moved"] == 0
    assert explorer.numbers["snr"] > before
