"""The rivals of NF4: their bytes, their scales, and what they cannot do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_edu.blockwise import dequantize, quantize, quantize_spec
from lora_edu.codebooks import AF4, CODEBOOKS, E2M1, FP4, INT4, INT4_ASYMMETRIC, NF4, Q4_0, UNIFORM16, Codebook
from lora_edu.metrics import snr_db

GOLDEN = Path(__file__).parent / "golden"
FP4_CASES = ["fp4_1d_1_bs64", "fp4_64x64_bs64", "fp4_7x33_bs64_odd", "fp4_adversarial_bs64"]
every_codebook = pytest.mark.parametrize("codebook", CODEBOOKS.values(), ids=lambda c: c.name)


def bits(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32)


@pytest.mark.parametrize("case", FP4_CASES)
def test_fp4_bytes_scales_and_values_are_those_of_bitsandbytes(case):
    golden = np.load(GOLDEN / f"{case}.npz")
    quantized = quantize(golden["x"], int(golden["blocksize"]), FP4, "high-first")
    assert (quantized.packed == golden["packed"].ravel()).all()
    assert (bits(quantized.absmax) == bits(golden["absmax"])).all()
    restored = dequantize(quantized)
    if case == "fp4_7x33_bs64_odd":  # where rows are odd, theirs goes another way, and code 8 comes back as +0
        assert (restored == golden["deq"]).all()
    else:
        assert (bits(restored) == bits(golden["deq"])).all()  # code 8 is -0


def test_the_golden_file_convicts_an_fp4_that_breaks_ties_towards_zero():
    golden = np.load(GOLDEN / "fp4_adversarial_bs64.npz")
    right = quantize(golden["x"], 64, FP4, "high-first")
    magnitudes = np.sort(FP4.levels[:8])
    bounds = (magnitudes[:-1] + magnitudes[1:]) / np.float32(2)
    blocks = golden["x"].reshape(-1, 64)
    absmax = np.maximum(np.abs(blocks).max(1, keepdims=True), np.float32(1e-38))
    values = (blocks * (np.float32(1) / absmax)).ravel()
    towards_zero = np.copysign(magnitudes[np.searchsorted(bounds, np.abs(values))], values)
    differ = towards_zero != FP4.levels[right.codes()]
    assert differ.sum() > 50 and (values[differ] < 0).all()


def test_the_fp4_table_and_its_code_order_are_the_published_ones():
    tables = np.load(GOLDEN / "tables.npz")
    assert (FP4.levels == tables["fp4"]).all() and (FP4.order == tables["fp4_order"]).all()
    assert (bits(FP4.bounds) == bits(tables["fp4_bounds"])).all()
    assert not FP4.is_sorted and NF4.is_sorted


@every_codebook
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_fast_and_spec_agree_byte_for_byte(codebook, data):
    size, block = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 20))
    order = data.draw(st.sampled_from(["low-first", "high-first"]))
    weight = np.random.default_rng(data.draw(st.integers(0, 999))).standard_normal(size, dtype=np.float32)
    weight[data.draw(st.integers(0, size - 1)) :] *= np.float32(data.draw(st.sampled_from([0, 1, 1e-12, 1e6])))
    fast, spec = quantize(weight, block, codebook, order), quantize_spec(weight, block, codebook, order)
    assert (fast.packed == spec.packed).all() and (bits(fast.absmax) == bits(spec.absmax)).all()
    assert fast.minimum is spec.minimum is None or (fast.minimum == spec.minimum).all()  # -0 or 0


@every_codebook
def test_the_dequantized_value_is_the_nearest_level_of_the_block(codebook):
    weight = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    restored = dequantize(quantize(weight, 64, codebook))
    for row, back in zip(weight, restored, strict=True):
        if codebook.scale == "min-max":
            offered = row.min() + (row.max() - row.min()) * codebook.levels
        elif codebook.scale == "signed absmax":
            offered = row[np.abs(row).argmax()] * codebook.levels
        else:
            offered = np.abs(row).max() * codebook.levels
        nearest = np.abs(row[:, None] - offered).min(axis=1)
        np.testing.assert_allclose(np.abs(row - back), nearest, atol=1e-6)


# SNR in dB on N(0, 1) in blocks of 64, as published tables and quadrature give it
@pytest.mark.parametrize(
    ("codebook", "published"),
    [(NF4, 20.73), (FP4, 18.28), (E2M1, 19.52), (INT4, 19.36), (Q4_0, 20.45), (INT4_ASYMMETRIC, 20.95), (AF4, 20.39)],
    ids=lambda v: getattr(v, "name", v),
)
def test_the_error_on_gaussian_weights_is_the_published_one(codebook, published):
    weight = np.random.default_rng(1).standard_normal(2**18, dtype=np.float32)
    assert snr_db(weight, dequantize(quantize(weight, 64, codebook))) == pytest.approx(published, abs=0.04)


def test_asymmetric_int4_beats_nf4_at_blocks_of_32_on_gaussian_weights_and_int4_on_uniform_ones():
    rng = np.random.default_rng(2)
    gaussian, uniform = rng.standard_normal(2**17, dtype=np.float32), rng.uniform(-1, 1, 2**17).astype(np.float32)

    def snr(weight, codebook, block):
        return snr_db(weight, dequantize(quantize(weight, block, codebook)))

    assert snr(gaussian, INT4_ASYMMETRIC, 32) > snr(gaussian, NF4, 32) + 0.8
    assert snr(uniform, INT4, 64) > snr(uniform, NF4, 64) + 2
    assert snr(gaussian, NF4, 64) > snr(gaussian, INT4, 64) + 1


def test_a_code_beyond_a_table_of_fifteen_is_no_number():
    q = quantize(np.ones(2, np.float32), 2, INT4)
    broken = replace(q, packed=np.array([0xEF], np.uint8))
    assert np.isnan(dequantize(broken)).tolist() == [True, False]


def test_two_scales_a_block_cost_twice_as_much_and_give_both_ends_back():
    weight = np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32) + np.float32(5)
    q = quantize(weight, 64, INT4_ASYMMETRIC)
    assert q.bits_per_weight == 5 and quantize(weight, 64, INT4_ASYMMETRIC, scale_storage="float16").nbytes == 144
    restored = dequantize(q)
    np.testing.assert_allclose([restored.min(1), restored.max(1)], [weight.min(1), weight.max(1)], rtol=1e-6)
    equal = np.full((2, 8), -3.7, np.float32)
    assert (dequantize(quantize(equal, 8, INT4_ASYMMETRIC)) == equal).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Codebook("odd", NF4.levels, scale="rms"), "scale must be one of 'absmax', 'signed absmax', 'min-max'"),
        (lambda: Codebook("low", NF4.levels, scale="min-max"), r"levels must be finite and lie in \[0, 1\]"),
        (lambda: quantize(np.float32([3e38, -3e38]), 2, INT4_ASYMMETRIC), "max - min of every block must fit"),
        (lambda: quantize(np.float32([7e4]), 2, scale_storage="float16"), "scales must fit into float16, got 70000"),
        (lambda: quantize(np.float32([-7e4] * 2), 2, INT4_ASYMMETRIC, scale_storage="float16"), "fit into float16"),
        (lambda: replace(quantize(np.ones(2, np.float32)), minimum=np.ones(1, np.float32)), "minimum belongs to"),
        (lambda: replace(quantize(np.ones(2, np.float32), 2, INT4_ASYMMETRIC), minimum=None), "minimum must be a"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_table_without_zero_turns_zeros_into_something_else_and_says_so():
    assert UNIFORM16.zero_code is None and NF4.zero_code == 7
    assert dequantize(quantize(np.array([0, 1], np.float32), 2, UNIFORM16))[0] != 0
    assert dequantize(quantize(np.array([0, 1], np.float32), 2, NF4))[0] == 0


def test_sixteen_numbers_of_ones_own_make_a_codebook_in_one_call():
    mine = Codebook("mine", [*np.linspace(-1, 0, 8, endpoint=False), *np.linspace(0, 1, 8)])
    assert dequantize(quantize(np.array([0.0, 1.0, -1.0], np.float32), 3, mine)).tolist() == [0, 1, -1]


def test_a_signed_scale_gives_the_largest_weight_back_whatever_its_sign():
    weight = np.array([[0.1, -3.0, 2.0, 0.5], [0.1, 3.0, -2.0, 0.5]], np.float32)
    restored = dequantize(quantize(weight, 4, Q4_0))
    assert restored[0, 1] == -3 and restored[1, 1] == 3
    assert quantize(weight, 4, Q4_0).absmax.tolist() == [-3, 3]
