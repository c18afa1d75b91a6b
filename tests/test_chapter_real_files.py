"""What the chapter on real files states, computed again: against what PEFT wrote and merged."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_edu import bits_per_weight, datasets, relative_error
from lora_edu.explorers import real_files as explore
from lora_edu.interop import memory_report, quantize_4bit, write_bitsandbytes

GOLDEN = Path(__file__).parent / "golden" / "peft" / "llama"


def test_the_shipped_adapter_is_the_golden_one():
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (datasets.tiny_llama() / name).read_bytes() == (GOLDEN / "plain" / name).read_bytes()


def test_the_update_is_the_one_that_peft_merges():
    merged = load_file(GOLDEN / "plain" / "merged.safetensors")
    for short, name in explore.layer_names().items():
        weight = explore.base()[f"{name}.weight"]
        np.testing.assert_allclose(weight + explore.compute_layer(short)["delta"], merged[f"{name}.weight"], atol=1e-6)


@pytest.mark.parametrize("short", list(explore.layer_names()))
def test_the_singular_values_are_those_of_the_whole_update(short):
    numbers = explore.compute_layer(short)
    whole = np.linalg.svd(numbers["delta"].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(numbers["sigma"], whole[:4], rtol=1e-5)
    assert (whole[4:] < 1e-5).all() and numbers["norm"] == pytest.approx(np.linalg.norm(whole), rel=1e-5)


def test_back_into_4_bits_a_small_update_is_lost_and_over_16_bits_it_arrives():
    small = explore.compute_merges("0 q_proj", 0.03, "float32")["lost"]
    assert small["float32"] < 1e-4 and small["bfloat16"] < 0.1 and small["onto dequantized base"] < 0.1
    assert small["back into 4 bits"] > 1
    large = explore.compute_merges("0 q_proj", 1.0, "float32")["lost"]
    assert large["back into 4 bits"] < 0.2


def test_back_into_4_bits_next_to_no_code_changes_and_every_scale_does():
    codes, scales = explore.changed_by_merging("0 q_proj", 0.03)
    assert 0 < codes < 0.01 and scales == 1
    assert explore.changed_by_merging("0 q_proj", 1.0)[0] > 0.5


def test_bytes_and_bits_of_the_three_weights(tmp_path):
    real = datasets.minilm_weights()
    weights = {
        "64 x 64": explore.base()["model.layers.0.self_attn.q_proj.weight"],
        "384 x 384": real[datasets.QUERY],
        "384 x 1536": real[datasets.FFN_DOWN],
    }
    path = tmp_path / "model.safetensors"
    write_bitsandbytes(path, {name: quantize_4bit(weight, double=True) for name, weight in weights.items()})
    report = memory_report(path)
    for row, (name, weight) in zip(report.tensors, weights.items(), strict=True):
        assert row.name == name
        expected = {"codes": weight.size // 2, "scales": weight.size // 64, "maps": 4 * 16 + 4 * 256}
        assert {part: row.parts[part] for part in expected} == expected
        assert row.parts["second scales"] == 4 * -(-weight.size // 64 // 256)
        assert 150 < row.parts["settings"] < 180
    bits = [row.bits_per_weight for row in report.tensors]
    assert [f"{number:.2f}" for number in bits] == ["6.58", "4.20", "4.14"]
    assert f"{bits_per_weight(64, scale_bits=8 + 32 / 256):.2f}" == "4.13"
    assert 8 * 1088 / (4096 * 4096) < 0.001  # a layer of a large model: the maps do not show
    assert report.tensors[0].parts["maps"] > report.tensors[0].parts["scales"]


def test_adding_a_to_a_and_b_to_b_is_off_by_about_the_whole_sum():
    first, second = (explore.adapter().layers[f"model.layers.{i}.self_attn.q_proj"] for i in (0, 1))
    cross = first.lora_b @ second.lora_a + second.lora_b @ first.lora_a
    both = first.lora_b @ first.lora_a + second.lora_b @ second.lora_a
    wrong = (first.lora_b + second.lora_b) @ (first.lora_a + second.lora_a)
    assert relative_error(both, wrong) == pytest.approx(np.linalg.norm(cross) / np.linalg.norm(both), rel=1e-5)
    assert 0.9 < relative_error(both, wrong) < 1.1


def test_cat_is_exact_svd_best_at_its_rank_and_linear_has_cross_terms():
    errors = explore.compute_combinations()
    assert errors["cat, rank 8"] < 1e-6 and errors["svd, rank 8"] < 1e-6
    assert 0.1 < errors["svd, rank 4"] < errors["linear"]
