"""Optimal levels and the limit: against published tables, closed forms and each other."""

import math

import numpy as np
import pytest

from lora_edu import limit, optimal, theory
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import AF4, INT4, NF4, Codebook, derive_nf4
from lora_edu.datasets.distributions import DISTRIBUTIONS, draw, gaussian_with_outliers, student_t
from lora_edu.metrics import bits_per_weight, snr_db


@pytest.mark.parametrize(
    ("block_size", "plain", "signed"),
    [(16, 0.00556, 0.00513), (64, 0.00799, 0.00735), (512, 0.01029, 0.00938), (4096, 0.01145, 0.01028)],
)
def test_the_least_squared_error_is_that_of_an_independent_computation(block_size, plain, signed):
    assert theory.expected_error(optimal.bof4(block_size), block_size).mean_square == pytest.approx(plain, abs=1e-5)
    best = theory.expected_error(optimal.bof4_signed(block_size), block_size)
    assert best.mean_square == pytest.approx(signed, abs=1e-5)


# Blumenberg et al. 2025, table 8: BOF4 for blocks of 64 by their numerical integration
PUBLISHED_BOF4 = [
    *[-1, -0.7535689203869577, -0.5792681492535123, -0.4386720084478466, -0.3168191039791481, -0.2060291109696586],
    *[-0.1015640796456471, 0, 0.0887646748673216, 0.1794535266886747, 0.274249773841407, 0.375951029286045],
    *[0.4885925268369112, 0.6187715546288008, 0.7790828367844242, 1],
]
# Table 7: BOF4-S for blocks of 64 and 256, from random samples, so right to about 1e-4
PUBLISHED_BOF4_SIGNED = {
    64: [
        *[-0.8568463921546936, -0.6692874431610107, -0.5235266089439392, -0.4004882574081421, -0.2910638153553009],
        *[-0.1900092959403992, -0.0938529595732689, 0, 0.0887671709060669, 0.1794802695512772, 0.2743096053600311],
        *[0.3760197460651398, 0.4886530041694641, 0.6188603639602661, 0.7791395783424377, 1],
    ],
    256: [
        *[-0.8146829009056091, -0.6221838593482971, -0.4820549190044403, -0.3669650852680206, -0.2659871876239777],
        *[-0.1733742356300354, -0.0855776593089104, 0, 0.0815095230937004, 0.1649149656295776, 0.2524392008781433],
        *[0.3470274209976196, 0.4531534314155579, 0.578848659992218, 0.7418596744537354, 1],
    ],
}


def test_bof4_is_the_published_table():
    np.testing.assert_allclose(optimal.bof4(64).levels, PUBLISHED_BOF4, atol=3e-6)


@pytest.mark.parametrize("block_size", PUBLISHED_BOF4_SIGNED)
def test_bof4_with_a_signed_scale_is_the_published_table(block_size):
    found = optimal.bof4_signed(block_size).levels
    np.testing.assert_allclose(found, PUBLISHED_BOF4_SIGNED[block_size], atol=3e-4)


def test_weighing_every_block_alike_is_told_from_bof4():
    edges, mass, moment = optimal._cumulative(64, 0, False)
    levels = np.array(PUBLISHED_BOF4)
    bounds = (levels[:-1] + levels[1:]) / 2
    wrong = np.diff(np.interp(bounds, edges, moment)) / np.diff(np.interp(bounds, edges, mass))
    assert np.abs(wrong - levels[1:-1]).max() > 1e-3  # a step that forgets scale² leaves the optimum
    step = optimal.lloyd_step(levels, 64)
    assert np.abs(step - levels).max() < 1e-5


def test_freeing_all_levels_and_a_block_without_end_give_the_classical_quantizer():
    free = Codebook("free", optimal.optimal_levels(64, kept=()), needs_zero=False)
    assert theory.expected_error(free, 64).mean_square == pytest.approx(0.00762, abs=1e-5)
    endless = theory.expected_error(
        Codebook("endless", optimal.optimal_levels(2**20, kept=()), needs_zero=False), 2**20
    )
    assert endless.mean_square == pytest.approx(optimal.lloyd_max(16)[1], rel=0.02)


def best_offset(block_size, error):
    offsets = np.arange(0.90, 0.998, 0.0005)
    found = [
        getattr(theory.expected_error(Codebook("member", derive_nf4(offset)), block_size), error) for offset in offsets
    ]
    return offsets[np.argmin(found)], min(found)


@pytest.mark.parametrize(
    ("block_size", "mae", "mae_excess", "mse", "mse_excess"),
    [(64, 0.9664, 0.0001, 0.9367, 0.058), (512, 0.9881, 0.030, 0.9691, 0.0002), (32, 0.9529, 0.0055, 0.9206, 0.109)],
)
def test_nf4_is_the_member_of_its_family_for_mean_absolute_error_at_64(block_size, mae, mae_excess, mse, mse_excess):
    nf4 = theory.expected_error(NF4, block_size)
    for error, offset, excess in (("mean_absolute", mae, mae_excess), ("mean_square", mse, mse_excess)):
        found, least = best_offset(block_size, error)
        assert found == pytest.approx(offset, abs=0.0006)
        assert getattr(nf4, error) / least - 1 == pytest.approx(excess, abs=0.03 * excess + 0.0001)


def test_nf4_is_within_a_twentieth_of_a_percent_of_the_mae_optimum_at_64():
    nf4, best = (theory.expected_error(c, 64).mean_absolute for c in (NF4, optimal.mae_best(64)))
    assert best < nf4 < 1.0005 * best


def test_the_published_af4_table_is_not_the_optimum_of_its_own_criterion():
    true_table = [-0.71015, -0.53482, -0.40107, -0.28813, -0.18682, -0.09195, 0]
    true_table += [0.08033, 0.16259, 0.24900, 0.34256, 0.44787, 0.57321, 0.73697]
    best = optimal.optimal_levels(64, "normalised mae")
    np.testing.assert_allclose(best[1:-1], true_table, atol=1e-4)
    published, nf4, optimum = (
        theory.expected_error(c, 64).normalised_absolute for c in (AF4, NF4, Codebook("best", best))
    )
    assert optimum < nf4 < 1.001 * optimum and published > 1.03 * nf4


def test_one_step_moves_only_the_two_published_levels_beside_zero():
    moved = np.abs(optimal.lloyd_step(AF4.levels, 64, "normalised mae") - AF4.levels)
    assert np.flatnonzero(moved > 1e-6).tolist() == [6, 8]
    assert moved[[6, 8]] == pytest.approx([0.0125, 0.0108], abs=1e-4)


@pytest.mark.parametrize(("count", "half"), [(16, AF4.levels[8:]), (14, -AF4.levels[6::-1])], ids=["above", "below"])
def test_each_half_of_the_published_table_is_the_optimum_of_a_table_without_zero(count, half):
    r"""The construction splits the cell beside zero at 0, as if the level 0 did not exist: all eight digits follow."""
    levels, moved = np.linspace(-1, 1, count), 1.0
    while moved > 1e-9:
        better = optimal.lloyd_step(levels, 64, "normalised mae", kept=(-1.0, 1.0))
        moved, levels = np.abs(better - levels).max(), better
    np.testing.assert_allclose(levels[count // 2 :], half, atol=1e-6)


@pytest.mark.parametrize(("criterion", "error"), [("mse", "mean_square"), ("mae", "mean_absolute")])
def test_every_lloyd_step_lowers_the_error_and_moving_away_raises_it(criterion, error):
    def cost(levels):
        return getattr(theory.expected_error(Codebook("mine", levels), 64), error)

    levels = np.linspace(-1, 1, 17)[1:]  # from -0.875, with zero among them
    kept = (0.0, 1.0)
    for _ in range(5):
        after = optimal.lloyd_step(levels, 64, criterion, kept)
        assert cost(after) < cost(levels)
        levels = after
    best = np.array(optimal.optimal_levels(64, criterion))
    for i in (2, 5, 12):
        for shift in (-0.01, 0.01):
            moved = best.copy()
            moved[i] += shift
            assert cost(moved) > cost(best)


def test_the_optimum_really_wins_on_a_million_draws():
    weight = draw("Gaussian", 2**20)
    snr = {c.name: snr_db(weight, dequantize(quantize(weight, 64, c))) for c in (NF4, optimal.bof4(64))}
    signed = snr_db(weight, dequantize(quantize(weight, 64, optimal.bof4_signed(64))))
    assert snr["nf4"] == pytest.approx(20.73, abs=0.03) and snr["bof4-64"] == pytest.approx(20.97, abs=0.03)
    assert signed == pytest.approx(21.34, abs=0.03)


@pytest.mark.parametrize(("count", "published"), [(2, 0.36338), (4, 0.11748), (8, 0.034548), (16, 0.0095010)])
def test_the_classical_quantizer_has_its_published_error(count, published):
    levels, error = optimal.lloyd_max(count)
    assert error == pytest.approx(published, abs=1e-6 if count == 16 else 1e-5)
    np.testing.assert_allclose(levels, -levels[::-1], atol=1e-6)


def test_the_limit_of_a_gaussian_is_six_decibels_a_bit():
    assert limit.distortion(4.5) == 2**-9
    assert limit.limit_db(4.5) == pytest.approx(27.09, abs=0.005)
    assert limit.gap_db(bits_per_weight(64), 20.73) == pytest.approx(6.37, abs=0.01)
    assert limit.gap_bits(4.126953125, 20.73) == pytest.approx(0.684, abs=0.002)
    assert limit.ENTROPY_CODED_GAP_DB == pytest.approx(1.533, abs=0.001)


@pytest.mark.parametrize("step", [0.125, 0.26, 0.5, 1.0])
def test_entropy_coding_closes_the_gap_to_a_quarter_of_a_bit_at_every_rate_above_two(step):
    bits, error = optimal.entropy_coded(step)
    assert 2 < bits < 5.1
    assert limit.gap_db(bits, -10 * math.log10(error)) == pytest.approx(1.533, abs=0.001)
    assert limit.gap_bits(bits, -10 * math.log10(error)) == pytest.approx(0.25, abs=0.005)


def test_a_fine_uniform_quantizer_with_entropy_coding_lies_at_the_entropy_coded_gap():
    step = 0.2
    weight = np.random.default_rng(0).standard_normal(2**20)
    codes = np.round(weight / step).astype(int)
    share = np.bincount(codes - codes.min()) / codes.size
    bits = -np.sum(share[share > 0] * np.log2(share[share > 0]))
    assert limit.gap_db(bits, snr_db(weight, codes * step)) == pytest.approx(limit.ENTROPY_CODED_GAP_DB, abs=0.02)


@pytest.mark.parametrize(
    ("entropy", "published"),
    [(limit.laplace_entropy(), 0.63), (limit.uniform_entropy(), 1.53)]
    + [(limit.student_t_entropy(freedom), shift) for freedom, shift in ((10, 0.08), (5, 0.41), (3, 1.69))],
)
def test_other_sources_have_a_higher_limit(entropy, published):
    assert limit.shannon_lower_bound_db(entropy) == pytest.approx(published, abs=0.005)


def test_a_gaussian_has_no_head_start():
    assert limit.shannon_lower_bound_db(math.log2(2 * math.pi * math.e) / 2) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_distribution_has_variance_one_and_repeats(name):
    weight = draw(name, 2**20, seed=3)
    assert weight.dtype == np.float32 and np.array_equal(weight, draw(name, 2**20, seed=3))
    assert weight.var() == pytest.approx(1, rel=0.15 if name == "Student-t 3" else 0.02)


def test_one_outlier_in_a_thousand_costs_larger_blocks_more():
    weight = draw(gaussian_with_outliers(1e-3, 20), 2**20, seed=1)
    rng = np.random.default_rng(1)
    rng.standard_normal(2**20)
    inlier = rng.random(2**20) >= 1e-3  # the generator's own second draw
    for block_size, published in ((16, 20.2), (64, 16.9), (256, 12.4), (4096, 3.6)):
        restored = dequantize(quantize(weight, block_size))
        assert snr_db(weight[inlier], restored[inlier]) == pytest.approx(published, abs=0.3)


@pytest.mark.parametrize(
    ("name", "nf4", "int4"),
    [("uniform", 20.8, 23.1), ("Gaussian", 20.7, 19.4), ("Laplace", 19.7, 17.0), ("Student-t 5", 19.6, 16.7)],
)
def test_int4_wins_on_uniform_weights_and_nf4_on_bells(name, nf4, int4):
    weight = draw(name, 2**20)
    assert snr_db(weight, dequantize(quantize(weight, 64, NF4))) == pytest.approx(nf4, abs=0.1)
    assert snr_db(weight, dequantize(quantize(weight, 64, INT4))) == pytest.approx(int4, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal.lloyd_step(NF4.levels, 64, "best"), "criterion must be one of mse, mae, normalised mae"),
        (lambda: optimal.lloyd_step([0.5, 0.1], 64), "levels must increase strictly"),
        (lambda: optimal.bof4(1), "block_size must be at least 2, got 1"),
        (lambda: limit.distortion(-1), "bits must not be negative, got -1"),
        (lambda: limit.student_t_entropy(2), "freedom must be above 2"),
        (lambda: optimal.entropy_coded(0), "step must be positive, got 0"),
        (lambda: gaussian_with_outliers(2), r"share must lie in \[0, 1\], got 2"),
        (lambda: student_t(0), "freedom must be positive, got 0"),
        (lambda: draw("Cauchy", 3), "shape must be one of uniform, Gaussian"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
