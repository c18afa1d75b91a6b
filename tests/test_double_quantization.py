"""Scales in 8 bits: the bytes of bitsandbytes, the cost, and what it does to the error."""

from pathlib import Path

import numpy as np
import pytest

from lora_edu import blockwise
from lora_edu.blockwise import QuantizedScales, dequantize, double_quantize, quantize
from lora_edu.codebooks import CODEBOOKS, INT4_ASYMMETRIC, NF4, dynamic_map
from lora_edu.metrics import relative_error
from lora_edu.qlora import QLoraLinear

GOLDEN = Path(__file__).parent / "golden"


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_and_second_scales_are_those_of_bitsandbytes_given_its_offset(kind):
    golden = np.load(GOLDEN / f"{kind}_100x130_bs64_double_partial.npz")
    plain = quantize(golden["x"], 64, CODEBOOKS[kind], "high-first")
    double = double_quantize(plain, offset=golden["offset"])
    assert (plain.packed == golden["packed"].ravel()).all()
    assert (double.absmax.codes == golden["absmax_q"]).all()
    assert (double.absmax.absmax.view(np.uint32) == golden["absmax2"].view(np.uint32)).all()
    assert (plain.absmax.view(np.uint32) == golden["absmax_f32"].view(np.uint32)).all()
    assert (dequantize(double) == golden["deq"].reshape(100, 130)).all()
    own = double_quantize(plain)
    assert abs(float(own.absmax.offset) - float(golden["offset"])) <= 4 * np.spacing(golden["offset"])
    assert (own.absmax.codes == golden["absmax_q"]).all()


def test_the_dynamic_map_is_the_published_one_bit_for_bit():
    tables = np.load(GOLDEN / "tables.npz")
    assert (dynamic_map().view(np.uint32) == tables["dynamic8"].view(np.uint32)).all()
    assert (dynamic_map()[127], dynamic_map()[-1]) == (0, 1) and (np.diff(dynamic_map()) > 0).all()


def test_the_golden_file_convicts_the_exact_nearest_rule_where_the_lookup_misses():
    scales = np.abs(gaussian(200_000)).reshape(-1, 1) + np.float32(0.5)
    plain = quantize(scales, 1, NF4)
    lookup, nearest = double_quantize(plain), double_quantize(plain, "nearest")
    differ = np.mean(lookup.absmax.codes != nearest.absmax.codes)
    assert 0.0003 < differ < 0.01  # one or two scales in a thousand
    wanted = plain.absmax - lookup.absmax.offset

    def error(double):
        return np.abs(double.scales() - lookup.absmax.offset - wanted)

    assert (error(nearest) <= error(lookup) + 1e-7).all()
    assert (error(nearest)[lookup.absmax.codes != nearest.absmax.codes] > 0).any()


def test_on_gaussian_weights_the_two_rules_differ_for_one_or_two_scales_in_a_thousand():
    plain = quantize(gaussian(2**22))
    lookup, nearest = (double_quantize(plain, rule) for rule in ("bitsandbytes", "nearest"))
    assert 0.001 < np.mean(lookup.absmax.codes != nearest.absmax.codes) < 0.0025
    relative = lookup.scales() / plain.absmax - 1
    assert np.sqrt(np.mean(relative**2)) == pytest.approx(0.0021, abs=0.0001) and np.abs(relative).max() < 0.012


def test_the_rounding_table_is_the_published_one():
    tables = np.load(GOLDEN / "tables.npz")
    assert (blockwise._map_lookup() == tables["dynamic8_lut65536"]).all()


def test_a_weight_costs_4_126953125_bits_in_blocks_of_64():
    quantized = quantize(np.ones((256, 256), np.float32), 64, scale_storage="double")
    assert quantized.bits_per_weight == 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert quantize(np.ones((256, 256), np.float32), 64, scale_storage="float16").bits_per_weight == 4.25


def test_it_adds_almost_nothing_to_the_error():
    weight = gaussian((1024, 1024))
    plain = relative_error(weight, dequantize(quantize(weight)))
    double = relative_error(weight, dequantize(quantize(weight, scale_storage="double")))
    assert 1 < (double / plain) ** 2 == pytest.approx(1.0005, abs=0.0005)


def test_without_centring_it_would_add_ten_times_as_much():
    weight = gaussian((1024, 1024))
    plain = quantize(weight)
    error = {
        offset: relative_error(weight, dequantize(double_quantize(plain, offset=offset))) for offset in (None, 0.0)
    }
    base = relative_error(weight, dequantize(plain))
    assert (error[0.0] ** 2 - base**2) > 5 * (error[None] ** 2 - base**2)


def test_a_qlora_layer_counts_the_double_quantized_bytes():
    weight = gaussian((256, 256))
    layer = QLoraLinear(weight, rank=4, double_quant=True)
    assert layer.base_bytes == weight.size // 2 + 1024 + 4 * 4 and layer.bits_per_weight == 4.126953125
    x = gaussian(256, 1)
    np.testing.assert_allclose(layer(x), layer.dequantized_weight() @ x, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("rule", "code"), [("bitsandbytes", 0), ("nearest", 127)])
@pytest.mark.parametrize("value", [0.0, 2.5, 1e-44])
def test_equal_scales_come_back_exactly(value, rule, code):
    quantized = double_quantize(quantize(np.full((64, 64), value, np.float32), nibble_order="high-first"), rule)
    assert (quantized.absmax.codes == code).all()
    assert (quantized.scales() == np.float32(value)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: double_quantize(q, "exact"), "rule must be 'bitsandbytes' or 'nearest', got 'exact'"),
        (lambda q: double_quantize(double_quantize(q)), "double-quantized already"),
        (lambda q: double_quantize(quantize(np.ones(64, np.float32), 64, INT4_ASYMMETRIC)), "two scales a block"),
        (lambda q: quantize(np.ones(64, np.float32), scale_storage="int8"), "scale_storage must be one of"),
        (lambda q: QuantizedScales(np.zeros(3, np.uint8), np.zeros(2, np.float32), 0.0), "absmax must be"),
    ],
)
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(quantize(np.ones((64, 64), np.float32)))
