"""What the chapter on the limit states, computed again: against published tables and a measurement."""

import numpy as np
import pytest

from lora_edu import dequantize, limit, quantize, snr_db
from lora_edu.blockwise import SCALE_BITS
from lora_edu.explorers import limit as explore

# distance to the limit in dB on N(0, 1), by storage of the scale, blocks of 16 to 4096; an independent quadrature
PUBLISHED = {
    ("NF4", "float32"): [14.28, 8.92, 6.37, 5.20, 4.72, 4.58, 4.63, 4.95],
    ("NF4", "float16"): [8.25, 5.91, 4.86, 4.44, 4.34, 4.40, 4.54, 4.93],
    ("NF4", "double"): [5.29, 4.43, 4.12, 4.07, 4.15, 4.30, 4.49, 4.92],
    ("INT4", "double"): [5.75, 5.35, 5.48, 5.85, 6.30, 6.76, 7.21, 8.03],
    ("FP4", "double"): [7.51, 6.76, 6.57, 6.65, 6.86, 7.13, 7.43, 8.05],
    ("best, signed scale", "double"): [4.24, 3.62, 3.51, 3.59, 3.74, 3.90, 4.03, 4.21],
}


@pytest.mark.parametrize(("name", "storage"), PUBLISHED, ids=str)
def test_every_gap_is_the_published_one(name, storage):
    gaps = explore.compute_storage(name, 64, storage)["gaps"][storage]
    np.testing.assert_allclose(gaps, PUBLISHED[name, storage], atol=0.011)


def test_the_ladder_is_the_published_one():
    rungs, bits = explore.compute_ladder()
    assert bits == 4.126953125
    published = {"FP4": 18.28, "INT4": 19.36, "E2M1": 19.52, "AF4": 20.39, "NF4": 20.73, "best with -1, 0, 1": 20.97}
    published |= {"best, signed scale": 21.34, "ideal entropy coding": 23.31, "Shannon's limit": 24.85}
    assert rungs == pytest.approx(published, abs=0.01)


def test_asymmetric_int4_overtakes_nf4_at_4_7_bits_and_not_before():
    curves, crossing = explore.compute_flip()
    assert crossing == pytest.approx(4.7, abs=0.05)
    (nf4_bits, nf4), (int4_bits, int4) = curves.values()
    assert np.interp(4.5, int4_bits[::-1], int4[::-1]) < np.interp(4.5, nf4_bits[::-1], nf4[::-1])
    assert int4[list(int4_bits).index(5.0)] > nf4[list(nf4_bits).index(5.0)]


def test_the_best_block_follows_the_price_of_the_scale():
    assert explore.compute_storage("NF4", 64, "double")["best"] == {"float32": 512, "float16": 256, "double": 128}
    by_storage = explore.compute_storage("NF4", 64, "double")["gaps"]["double"]
    assert by_storage[2] - by_storage[3] < 0.06  # 64 is as good as 128


@pytest.mark.parametrize("name", explore.FORMATS)
@pytest.mark.parametrize("storage", explore.STORAGES)
def test_a_measured_weight_lies_where_the_plane_draws_it(name, storage):
    weight = np.random.default_rng(1).standard_normal((1024, 512), dtype=np.float32)
    kept = "float16" if name == "INT4 asymmetric" and storage == "double" else storage
    quantized = quantize(weight, 64, explore.codebook(name, 64), scale_storage=kept)
    assert quantized.bits_per_weight == explore.real_bits(name, 64, storage)
    assert snr_db(weight, dequantize(quantized)) == pytest.approx(explore.snr(name, 64), abs=0.04)


def test_nothing_lies_above_the_limit():
    for storage in SCALE_BITS:
        for name in explore.FORMATS:
            bits, snr = explore.curve(name, storage)
            assert (snr < limit.DB_PER_BIT * bits - limit.ENTROPY_CODED_GAP_DB).all()


def test_half_a_bit_of_scale_is_three_decibels():
    assert limit.limit_db(4.5) - limit.limit_db(4.0) == pytest.approx(3.01, abs=0.005)
