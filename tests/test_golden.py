r"""Files made by the reference implementation and by bitsandbytes; `golden/README.md` says which bits are exact."""

from pathlib import Path

import numpy as np
import pytest

from lora_edu import NF4, LoraLinear, QLoraLinear, QuantizedTensor, dequantize, quantize
from lora_edu.blockwise import quantize_spec

GOLDEN = Path(__file__).parent / "golden"
SEED = np.load(GOLDEN / "seed_reference.npz")
LINEAR = {"lin_16x8_r4_a8": (4, 8.0), "lin_33x47_r5_a2.5": (5, 2.5)}
QLORA = {"q_16x8_r4_a8_g32": (4, 8.0, 32), "q_7x9_r3_a6_g16": (3, 6.0, 16)}
BITSANDBYTES = ("nf4_1d_1_bs64", "nf4_64x64_bs64", "nf4_7x33_bs64_odd", "nf4_adversarial_bs64")


def reference(case):
    return {key.removeprefix(case + "_"): SEED[key] for key in SEED.files if key.startswith(case + "_")}


def bitsandbytes(name):
    golden = dict(np.load(GOLDEN / f"{name}.npz"))
    golden["packed"] = golden["packed"].ravel()
    assert (str(golden["quant_type"]), bool(golden["double_quant"])) == ("nf4", False)
    return golden


def near(value, golden, terms):
    r"""Within two ulp of the sum of the terms' magnitudes: the sums run in another order."""
    assert value.dtype == golden.dtype == np.float32
    assert value.shape == golden.shape
    return (np.abs(value - golden) <= 2 * np.spacing(terms.astype(np.float32))).all()


def output_terms(x, w, a, b, scaling):
    r"""Magnitudes of the terms of `forward`, added up."""
    return np.abs(x) @ np.abs(w).T + scaling * (np.abs(x) @ np.abs(a).T) @ np.abs(b).T


# --- the reference implementation: LoRA


def golden_layer(case):
    rank, alpha = LINEAR[case]
    g = reference(case)
    layer = LoraLinear(g["w"], rank=rank, alpha=alpha)
    layer.lora_b = g["B"]
    return layer, g, alpha / rank


@pytest.mark.parametrize("case", LINEAR)
def test_a_starts_as_in_the_reference_bit_for_bit(case):
    layer, g, *_ = golden_layer(case)
    assert layer.lora_a.tobytes() == g["A"].tobytes()


def test_another_rounding_of_the_scale_of_a_is_told_from_the_reference():
    g = reference("lin_33x47_r5_a2.5")
    a = LoraLinear(g["w"], rank=5).lora_a
    values = a / np.sqrt(np.float32(2 / 47))
    assert (values * np.float32(np.sqrt(2 / 47)) != g["A"]).any()  # the root taken in float64 is one ulp larger
    assert (LoraLinear(g["w"], rank=5, seed=42 + 33 + 47 + 1).lora_a != g["A"]).any()


@pytest.mark.parametrize("case", LINEAR)
def test_outputs_are_those_of_the_reference(case):
    layer, g, scaling = golden_layer(case)
    for x, y in (("x", "y"), ("xb", "yb")):
        terms = output_terms(g[x], g["w"], g["A"], g["B"], scaling)
        assert near(layer(g[x]), g[y], terms)
        with layer.disabled():
            assert not near(layer(g[x]), g[y], terms)
    layer.merge()
    assert near(layer(g["x"]), g["ymerged"], output_terms(g["x"], g["w"], g["A"], g["B"], scaling))


@pytest.mark.parametrize("case", LINEAR)
def test_merging_and_unmerging_by_subtraction_are_those_of_the_reference(case):
    layer, g, scaling = golden_layer(case)
    terms = np.abs(g["w"]) + scaling * np.abs(g["B"]) @ np.abs(g["A"])
    layer.merge(keep_base=False)
    assert near(layer.weight, g["merged"], terms)
    assert not near(g["w"], g["merged"], terms)
    layer.unmerge()
    assert near(layer.weight, g["unmerged"], terms)


@pytest.mark.parametrize(("case", "lost"), [("lin_16x8_r4_a8", 0.27), ("lin_33x47_r5_a2.5", 0.10)])
def test_subtracting_loses_bits_as_in_the_reference_and_a_kept_base_loses_none(case, lost):
    layer, g, *_ = golden_layer(case)
    assert (g["unmerged"] != g["w"]).mean() == pytest.approx(lost, abs=0.01)  # the reference's own loss
    layer.merge()
    layer.unmerge()
    assert layer.weight.tobytes() == g["w"].tobytes()
    layer.merge(keep_base=False)
    layer.unmerge()
    assert (layer.weight != g["w"]).mean() == pytest.approx(lost, abs=0.1)


# --- the reference implementation: QLoRA


@pytest.mark.parametrize("case", QLORA)
def test_codes_scales_and_a_are_those_of_the_reference_bit_for_bit(case):
    rank, alpha, block_size = QLORA[case]
    g = reference(case)
    layer = QLoraLinear(g["w"], rank=rank, alpha=alpha, block_size=block_size)
    assert layer.packed.tobytes() == g["packed"].tobytes()
    assert layer.absmax.tobytes() == g["scale"].tobytes()
    assert layer.lora_a.tobytes() == g["A"].tobytes()
    assert near(layer(g["x"]), g["y"], np.abs(g["deq"]) @ np.abs(g["x"]))


@pytest.mark.parametrize("case", QLORA)
def test_dequantized_weights_are_those_of_the_reference_but_for_its_typing_slip(case):
    g = reference(case)
    q = quantize(g["w"], QLORA[case][2])
    slipped = NF4.levels.copy()
    slipped[6] = np.float32(-0.09105004)
    scales = np.repeat(q.absmax, q.block_size)[: q.size].reshape(q.shape)
    assert (slipped[q.codes()] * scales).tobytes() == g["deq"].tobytes()
    differs = dequantize(q) != g["deq"]
    assert (q.codes()[differs] == 6).all()


def test_the_slip_shows_in_the_golden_file():
    g = reference("q_16x8_r4_a8_g32")
    assert (dequantize(quantize(g["w"], 32)) != g["deq"]).any()


# --- bitsandbytes


@pytest.mark.parametrize("form", [quantize, quantize_spec], ids=["fast", "loop"])
@pytest.mark.parametrize("name", BITSANDBYTES)
def test_bytes_are_those_of_bitsandbytes(name, form):
    g = bitsandbytes(name)
    q = form(g["x"], int(g["blocksize"]), nibble_order="high-first")
    assert q.packed.tobytes() == g["packed"].tobytes()
    assert q.absmax.tobytes() == g["absmax"].tobytes()
    assert dequantize(q).tobytes() == g["deq"].tobytes()
    assert q.codebook.levels.tobytes() == g["code"].tobytes()


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_their_bytes_give_their_weights(name):
    g = bitsandbytes(name)
    q = QuantizedTensor(g["packed"], g["absmax"], g["x"].shape, g["x"].dtype, int(g["blocksize"]), NF4, "high-first")
    assert dequantize(q).tobytes() == g["deq"].tobytes()


@pytest.mark.parametrize("name", BITSANDBYTES)
def test_swapped_nibbles_are_told_from_theirs(name):
    g = bitsandbytes(name)
    q = quantize(g["x"], int(g["blocksize"]), nibble_order="low-first")
    assert q.packed.tobytes() != g["packed"].tobytes()


@pytest.mark.parametrize("case", QLORA)
def test_swapped_nibbles_are_told_from_those_of_the_reference(case):
    g = reference(case)
    q = quantize(g["w"], QLORA[case][2], nibble_order="high-first")
    assert q.packed.tobytes() != g["packed"].tobytes()


def adversarial_codes(tie, divide):
    r"""Codes of the adversarial file (whole blocks) under a choice of the two rules."""
    g = bitsandbytes("nf4_adversarial_bs64")
    blocks = g["x"].reshape(-1, 64)
    scales = np.maximum(np.abs(blocks).max(1), np.float32(1e-38))[:, None]
    ratio = blocks / scales if divide else blocks * (np.float32(1) / scales)
    codes = np.searchsorted(NF4.bounds, ratio, side=tie).astype(np.uint8).ravel()
    return codes[0::2] << 4 | codes[1::2], g["packed"]


def test_the_lower_code_on_a_tie_and_the_reciprocal_are_the_rules_of_the_adversarial_file():
    codes, packed = adversarial_codes("left", divide=False)
    assert codes.tobytes() == packed.tobytes()


@pytest.mark.parametrize(("tie", "divide"), [("right", False), ("left", True), ("right", True)])
def test_another_rule_is_told_from_the_adversarial_file(tie, divide):
    codes, packed = adversarial_codes(tie, divide)
    assert (codes != packed).sum() > 50


def test_blocks_along_columns_are_told_from_blocks_along_rows():
    g = bitsandbytes("nf4_64x64_bs64")
    q = quantize(np.ascontiguousarray(g["x"].T), 64, nibble_order="high-first")
    assert q.packed.tobytes() != g["packed"].tobytes()
    assert q.absmax.tobytes() != g["absmax"].tobytes()
