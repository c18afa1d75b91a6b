r"""Combining adapters: which way is exact, and the golden combinations that PEFT made."""

import numpy as np
import pytest
import tiny_models
from conftest import ROOT

from lora_edu import LoraAdapter, LoraConfig, LoraLinear
from lora_edu.interop import TensorFile, combine, read_peft, to_peft, write_peft
from lora_edu.variants import DoraLinear

GOLDEN = ROOT / "tests" / "golden" / "peft"
A, B = read_peft(GOLDEN / "mlp_two/a"), read_peft(GOLDEN / "mlp_two/b")
BASE = TensorFile(GOLDEN / "mlp/base.safetensors")
WEIGHTS = [0.7, 0.4]
IO = TensorFile(GOLDEN / "mlp_two/io.safetensors")


def output(adapter):
    ours = adapter.over(BASE)

    def linear(name, x):
        if name in ours:
            return ours.forward(name, x)
        return x @ BASE[name + ".weight"].T + BASE[name + ".bias"]

    return tiny_models.mlp(linear, IO["x"])


def near(value, golden):
    return np.allclose(value, golden, rtol=1e-5, atol=1e-5 * np.abs(golden).max())


@pytest.mark.parametrize(("method", "stored", "weights"), [("cat", "cat", [0.7, 0.4]), ("linear", "lin", [0.7, -0.4])])
def test_combinations_are_those_of_peft(method, stored, weights):
    ours, theirs = combine([A, B], weights, method).adapter, read_peft(GOLDEN / "mlp_two" / stored)
    for name, layer in theirs.layers.items():
        assert ours.layers[name].scaling == layer.scaling == 1
        assert near(ours.layers[name].lora_a, layer.lora_a)
        assert near(ours.layers[name].lora_b, layer.lora_b)
    assert near(output(ours), IO[f"y_{stored}"])


@pytest.mark.parametrize(("adapter", "key"), [(A, "y_a"), (B, "y_b")])
def test_each_alone_is_peft_s(adapter, key):
    assert near(output(adapter), IO[key])


def test_two_active_adapters_are_cat_with_weights_one():
    assert near(output(combine([A, B], [1, 1]).adapter), IO["y_a_plus_b"])


def test_which_way_is_exact():
    cat, linear = combine([A, B], WEIGHTS), combine([A, B], WEIGHTS, "linear")
    best, full = combine([A, B], WEIGHTS, "svd", rank=4), combine([A, B], WEIGHTS, "svd", rank=8)
    assert cat.worst_error < 1e-7
    assert full.worst_error < 1e-7
    assert 0.01 < best.worst_error < linear.worst_error  # the best of rank 4 loses something, cross terms lose more
    assert {x.rank for x in cat.adapter.layers.values()} == {8}
    assert {x.rank for x in linear.adapter.layers.values()} == {4}


def test_no_matrix_of_that_rank_beats_svd():
    best = combine([A, B], WEIGHTS, "svd", rank=3)
    for name in A.layers:
        wanted = sum(w * x.layers[name].delta_weight() for w, x in zip(WEIGHTS, (A, B), strict=True))
        singular = np.linalg.svd(wanted, compute_uv=False)
        limit = np.sqrt((singular[3:] ** 2).sum() / (singular**2).sum())
        assert best.errors[name] == pytest.approx(limit, rel=1e-5)


def test_an_adapter_minus_itself_is_nothing():
    gone = combine([A, A], [1, -1])
    assert np.isnan(gone.worst_error)  # rounding is all there is, relative to nothing
    assert all(np.abs(x.delta_weight()).max() < 1e-6 for x in gone.adapter.layers.values())
    linear = combine([A, A], [1, -1], "linear")  # its A is zero exactly
    assert linear.worst_error == 0
    assert all(x.effective_rank() is None for x in linear.adapter.layers.values())


def test_rslora_sources_keep_their_strength():
    rslora = read_peft(GOLDEN / "mlp/rslora")
    assert combine([rslora], [1.0]).worst_error < 1e-7


def test_a_layer_that_one_of_them_lacks_is_combined_of_the_others():
    patterns = read_peft(GOLDEN / "mlp/patterns")
    both = combine([patterns, A], [1, 1], "svd")
    assert sorted(both.adapter.layers) == ["fc", "q_proj", "v_proj"]
    assert both.errors["fc"] < 1e-6


@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_a_combination_is_written_and_read(method, tmp_path):
    combined = combine([A, B], WEIGHTS, method).adapter
    write_peft(combined, tmp_path)
    assert near(output(read_peft(tmp_path)), output(combined))


def dora():
    adapter = LoraAdapter(LoraConfig(rank=1))
    adapter.add("q_proj", DoraLinear(np.eye(3, dtype=np.float32), rank=1))
    return to_peft(adapter)


def other_shape():
    adapter = LoraAdapter(LoraConfig(rank=4))
    adapter.add("q_proj", LoraLinear(np.eye(5, dtype=np.float32), rank=4))
    return to_peft(adapter)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: combine([], []), "give one weight for each adapter, got 0 adapters and 0 weights"),
        (lambda: combine([A, B], [1]), "give one weight for each adapter, got 2 adapters and 1 weights"),
        (lambda: combine([A, B], [1, np.nan]), "weights must be finite, got nan"),
        (lambda: combine([A, B], [1, 1], "ties"), "method must be one of cat, svd, linear, got 'ties'"),
        (lambda: combine([A, B], [1, 1], "cat", rank=2), "rank is chosen for method 'svd' only, not for 'cat'"),
        (lambda: combine([A, B], [1, 1], "svd", rank=0), "rank must be at least 1, got 0"),
        (lambda: combine([A, dora()], [1, 1]), "adapter 1 holds more than pairs A, B, which cannot be added: DoRA"),
        (lambda: combine([A, other_shape()], [1, 1]), "layer 'q_proj' differs in shape or kind: [(32, 16), (5, 5)]"),
        (
            lambda: combine([A, read_peft(GOLDEN / "mlp/patterns")], [1, 1], "linear"),
            "layer 'q_proj': linear adds A to A, so ranks must be equal; use 'cat' or 'svd'",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
