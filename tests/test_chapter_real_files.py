"""What the chapter on real files states, computed again: against what PEFT wrote and merged."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_edu import datasets
from lora_edu.explorers import real_files as explore

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


def test_cat_is_exact_svd_best_at_its_rank_and_linear_has_cross_terms():
    errors = explore.compute_combinations()
    assert errors["cat, rank 8"] < 1e-6 and errors["svd, rank 8"] < 1e-6
    assert 0.1 < errors["svd, rank 4"] < errors["linear"]
