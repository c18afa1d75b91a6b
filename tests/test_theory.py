"""Expected errors by quadrature: against published tables, closed forms and a measurement."""

import numpy as np
import pytest

from lora_edu import theory
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import AF4, CODEBOOKS, FP4, INT4, INT4_ASYMMETRIC, NF4, Q4_0

# bitsandbytes' own test table: mean |error| on N(0, 1), and its standard deviation over 200 draws
PUBLISHED = {
    32: (0.067746, 0.000069, 0.088925),
    64: (0.072798, 0.000074, 0.096543),
    128: (0.076831, 0.000091, 0.102969),
    256: (0.080337, 0.000102, 0.108684),
    512: (0.083547, 0.000143, 0.114115),
    1024: (0.086610, 0.000187, 0.119333),
    2048: (0.089592, 0.000251, 0.124556),
    4096: (0.092547, 0.000360, 0.129536),
}


@pytest.mark.parametrize("block_size", PUBLISHED)
def test_the_mean_absolute_error_is_that_of_the_published_table(block_size):
    nf4, deviation, fp4 = PUBLISHED[block_size]
    assert theory.expected_error(NF4, block_size).mean_absolute == pytest.approx(nf4, abs=deviation)
    assert theory.expected_error(FP4, block_size).mean_absolute == pytest.approx(fp4, abs=1.5 * deviation)


@pytest.mark.parametrize(
    ("codebook", "block_size", "mean_square"),
    [
        *[(NF4, 16, 0.00653), (NF4, 64, 0.00846), (NF4, 4096, 0.01208), (INT4, 64, 0.01158), (Q4_0, 64, 0.00901)],
        *[(INT4_ASYMMETRIC, 64, 0.00803), (INT4_ASYMMETRIC, 32, 0.00611), (AF4, 64, 0.00915), (FP4, 1024, 0.02135)],
    ],
    ids=lambda v: getattr(v, "name", v),
)
def test_the_mean_square_error_is_that_of_an_independent_quadrature(codebook, block_size, mean_square):
    assert theory.expected_error(codebook, block_size).mean_square == pytest.approx(mean_square, abs=1e-5)


@pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=lambda c: c.name)
def test_a_million_draws_agree(codebook):
    weight = np.random.default_rng(0).standard_normal(2**20, dtype=np.float32)
    quantized = quantize(weight, 64, codebook)
    difference = (weight - dequantize(quantized)).astype(np.float64)
    expected = theory.expected_error(codebook, 64)
    usage = np.bincount(quantized.codes().ravel(), minlength=codebook.levels.size) / weight.size
    assert np.mean(difference**2) == pytest.approx(expected.mean_square, rel=0.01)
    assert np.mean(np.abs(difference)) == pytest.approx(expected.mean_absolute, rel=0.005)
    np.testing.assert_allclose(usage, expected.usage, atol=0.002)
    assert expected.usage.sum() == pytest.approx(1)


def test_four_million_draws_agree_to_half_a_percent():
    weight = np.random.default_rng(1).standard_normal(2**22, dtype=np.float32)
    square = np.mean((weight - dequantize(quantize(weight))).astype(np.float64) ** 2)
    assert square == pytest.approx(0.008460, rel=0.005)
    assert theory.expected_error(NF4, 64).mean_square == pytest.approx(0.008460, abs=1e-6)


def test_nf4_uses_its_codes_unequally():
    expected = theory.expected_error(NF4, 64)
    assert expected.entropy == pytest.approx(3.885, abs=0.003)
    assert expected.usage.max() / expected.usage.min() == pytest.approx(5.3, abs=0.1)
    assert expected.snr_db == pytest.approx(20.73, abs=0.01)


@pytest.mark.parametrize(
    ("codebook", "k", "snr"),
    [(NF4, 5, 17.5), (NF4, 10, 12.0), (NF4, 30, 2.9), (INT4, 10, 7.7), (FP4, 10, 7.1)],
    ids=lambda v: getattr(v, "name", v),
)
def test_beside_an_outlier_the_neighbours_keep_the_published_decibels(codebook, k, snr):
    assert theory.expected_beside_outlier(codebook, k).snr_db == pytest.approx(snr, abs=0.1)


@pytest.mark.parametrize(("block_size", "mean"), [(16, 2.077), (64, 2.596), (256, 3.044), (4096, 3.802)])
def test_the_block_maximum_has_the_published_mean(block_size, mean):
    m, weights = theory.block_maximum_nodes(block_size)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    assert weights @ m == pytest.approx(mean, abs=0.001)


@pytest.mark.parametrize("block_size", [16, 64, 1024])
def test_the_normalised_density_adds_up_to_one(block_size):
    t = (np.arange(-10_000, 10_000) + 0.5) / 10_000
    assert theory.normalised_density(t, block_size).sum() / 10_000 == pytest.approx(1, abs=1e-6)


def test_the_published_af4_table_is_worse_than_nf4_at_its_own_criterion():
    published = theory.expected_error(AF4, 64).normalised_absolute
    nf4 = theory.expected_error(NF4, 64).normalised_absolute
    assert published == pytest.approx(0.029299, abs=2e-5) and nf4 == pytest.approx(0.028368, abs=2e-5)
    assert published > 1.03 * nf4


def test_swapping_two_levels_would_be_found():
    twisted = NF4.levels.copy()
    twisted[3] -= 0.03
    from lora_edu.codebooks import Codebook

    assert theory.expected_error(Codebook("twisted", twisted), 64).mean_square > 1.01 * 0.00846
