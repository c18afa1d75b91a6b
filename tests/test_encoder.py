r"""The sentence encoder: gradients against finite differences and PyTorch, its forward pass against the frozen one."""

import importlib.util

import numpy as np
import pytest
from test_models import gradients_against_differences, short_run

from lora_edu import LoraConfig
from lora_edu.models import minilm
from lora_edu.models.adapting import METHODS, adapt, prepare
from lora_edu.models.encoder import PADDING, QUERY_VALUE, SentenceEncoder, padded
from lora_edu.models.layers import AdaptedLinear, Attention, Gelu, normal_distribution
from lora_edu.training import cross_entropy

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
needs_model = pytest.mark.needs_model
LENGTHS = (6, 1, 4, 3)
SENTENCES = ["We will not wait.", "No.", "A knot was tied in the old rope.", "Nothing can be done without help today."]


def tiny(seed=0):
    rng = np.random.default_rng(seed)
    model = SentenceEncoder.initial(3).astype(np.float64)
    model.assign({n: a + 0.3 * rng.standard_normal(a.shape) for n, a in model.parameters().items()})
    ids = rng.integers(1, 11, size=(4, 6))
    ids[np.arange(6) >= np.array(LENGTHS)[:, None]] = PADDING
    return model, ids, np.array([0, 1, 1, 0])


def test_every_gradient_equals_its_finite_difference():
    model, ids, y = tiny()
    assert len(model.trained()) == len(model.parameters()) == 3 + 2 + 2 * 16 + 2
    assert gradients_against_differences(model, ids, y) < 5e-6


@pytest.mark.parametrize("quantized", [False, True])
def test_gradients_of_an_adapted_encoder_with_dropout(quantized):
    base, ids, y = tiny()
    model = adapt(base, LoraConfig(rank=2, alpha=3, dropout=0.3), quantized, block_size=16)
    rng = np.random.default_rng(2)
    model.assign({n: 0.3 * rng.standard_normal(a.shape) for n, a in model.trained().items()})
    layers = [layer.lora for layer in model.layers.values() if isinstance(layer, AdaptedLinear)]
    assert len(layers) == 12 and "classifier" not in model.adapter
    model.train()

    def forget():
        for index, layer in enumerate(layers):
            layer._dropout_rng = np.random.default_rng(index)

    assert gradients_against_differences(model, ids, y, forget) < 5e-6


def test_frozen_parts_do_not_change_the_gradients_of_the_others():
    model, ids, y = tiny()
    upstream = cross_entropy(model.forward(ids), y)[1]
    model.backward(upstream)
    everything = model.gradients()
    for name in everything:
        alone = model.copy().train_only(lambda other, name=name: other == name)
        alone.forward(ids)
        alone.backward(upstream)
        assert np.array_equal(alone.gradients()[name], everything[name]), name


def test_a_wrong_way_back_is_found(monkeypatch):
    model, ids, y = tiny()
    monkeypatch.setattr(Gelu, "backward", lambda self, g: g * self.below)  # the second term forgotten
    assert gradients_against_differences(model.train_only(lambda name: "word" in name), ids, y) > 1e-2


def test_it_equals_pytorch_from_a_file(root):
    golden = np.load(root / "tests" / "golden" / "sentence_encoder.npz")
    model = SentenceEncoder.initial(3)
    model.assign({n.removeprefix("parameter/"): golden[n] for n in golden.files if n.startswith("parameter/")})
    logits = model.forward(golden["ids"])
    loss, upstream = cross_entropy(logits, golden["targets"])
    model.backward(upstream)
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-5)
    assert len(model.gradients()) == sum(name.startswith("gradient/") for name in golden.files)
    for name, gradient in model.gradients().items():
        wanted = golden[f"gradient/{name}"]
        scale = max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@needs_torch
@needs_model
def test_the_adapted_encoder_equals_pytorch_where_it_is_installed():
    import torch
    import torch_twins

    base = SentenceEncoder.pretrained()
    rng = np.random.default_rng(0)
    base.assign({"classifier.weight": rng.standard_normal((2, 384), np.float32)})
    model = adapt(base, LoraConfig(rank=3, alpha=6, target_modules=QUERY_VALUE))
    model.assign({n: rng.standard_normal(a.shape, np.float32) * np.float32(0.05) for n, a in model.trained().items()})
    ids, targets = padded([minilm.load().tokenizer.encode(sentence) for sentence in SENTENCES]), np.array([1, 1, 0, 0])
    p = torch_twins.tensors(base.parameters() | model.trained())
    expected = torch_twins.sentence_encoder(p, torch.from_numpy(ids), model.heads, 2.0)
    torch_twins.loss_of(expected, torch.from_numpy(targets)).backward()
    logits = model.forward(ids)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=2e-5)
    model.backward(cross_entropy(logits, targets)[1])
    assert len(model.gradients()) == 24
    for name, gradient in model.gradients().items():
        wanted = p[name].grad.numpy()
        np.testing.assert_allclose(gradient, wanted, rtol=2e-3, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


@needs_model
def test_it_embeds_as_the_frozen_encoder_does():
    encoder, frozen = SentenceEncoder.pretrained(), minilm.load()
    ids = [frozen.tokenizer.encode(sentence) for sentence in SENTENCES]
    np.testing.assert_allclose(encoder.embed(padded(ids)), frozen.embed(SENTENCES), atol=1e-6)
    assert all(
        np.shares_memory(array, frozen.weights[name])
        for name, array in encoder.parameters().items()
        if not name.startswith("classifier")
    )
    assert "pooler.dense.weight" in frozen.weights and "pooler.dense.weight" not in encoder.parameters()


def test_what_is_filled_up_changes_nothing_and_sentences_do_not_see_each_other():
    model, ids, _ = tiny()
    together = model.forward(ids)
    for k, length in enumerate(LENGTHS):
        np.testing.assert_allclose(model.forward(ids[k : k + 1, :length])[0], together[k], rtol=1e-12)
        np.testing.assert_allclose(model.forward(ids[k : k + 1])[0], together[k], rtol=1e-12)
    unmasked = model.copy()
    unmasked._measure = lambda real: (SentenceEncoder._measure(unmasked, real), setattr(unmasked, "unseen", 0.0))
    assert np.abs(unmasked.forward(ids) - together).max() > 1e-3  # without the mask it would


def test_it_sees_both_ways():
    model, ids, _ = tiny()
    changed = ids.copy()
    changed[0, 5] = ids[0, 5] % 10 + 1
    before, after = model.tokens(ids), model.tokens(changed)
    moved = np.abs(before - after).max(axis=1) > 0
    assert moved[:6].all() and not moved[6:].any()


def test_the_upper_layers_alone_give_the_same_outputs_and_gradients():
    model, ids, y = tiny()
    upper = model.above(1, ids)
    chosen = np.array([2, 0, 3])
    np.testing.assert_allclose(upper.forward(chosen), model.forward(ids[chosen]), rtol=1e-12)
    upstream = cross_entropy(model.forward(ids[chosen]), y[chosen])[1]
    model.backward(upstream)
    upper.forward(chosen)
    upper.backward(upstream)
    assert len(upper.gradients()) == 16 + 2
    for name, gradient in upper.gradients().items():
        np.testing.assert_allclose(gradient, model.gradients()[name], rtol=1e-9, atol=1e-12)
    assert gradients_against_differences(adapt(upper, LoraConfig(rank=1)), chosen, y[chosen]) < 5e-6


def test_ids_that_are_no_sentences_are_refused():
    model, ids, _ = tiny()
    with pytest.raises(ValueError, match=r"a token in each, got \(6,\); see padded"):
        model.forward(ids[0])
    with pytest.raises(ValueError, match="a token in each"):
        model.forward(np.where(np.arange(4)[:, None] == 2, PADDING, ids))
    with pytest.raises(ValueError, match="start from the base model"):
        adapt(model, LoraConfig(rank=1)).above(1, ids)
    assert padded([[5], [7, 8, 9]]).tolist() == [[5, PADDING, PADDING], [7, 8, 9]]


@pytest.mark.parametrize("method", [*METHODS, "LoRA", "QLoRA"])
def test_each_method_changes_what_it_says_and_the_base_stays_bit_for_bit(method):
    base, ids, y = tiny()
    before = {name: array.copy() for name, array in base.parameters().items()}
    model = prepare(base, method, LoraConfig(rank=2, target_modules=QUERY_VALUE) if "LoRA" in method else None)
    start, trained = model.parameters(), set(model.trained())
    short_run(model, ids, y, lr=0.05, steps=5)
    changed = {name for name, array in model.parameters().items() if not np.array_equal(array, start[name])}
    assert changed == trained
    assert all(np.array_equal(array, before[name]) for name, array in base.parameters().items())
    if method == "last layer":
        assert trained == {"classifier.weight", "classifier.bias"}
    if method == "layer norms":
        assert len(trained) == 2 * 5 and all("LayerNorm" in name for name in trained)


@needs_model
def test_query_and_value_of_six_layers_are_a_sixth_of_a_percent():
    base = SentenceEncoder.pretrained()
    model = adapt(base, LoraConfig(rank=4, alpha=8, target_modules=QUERY_VALUE))
    assert model.trained_count == 6 * 2 * 4 * (384 + 384) == 36_864
    assert model.trained_count / sum(w.size for w in minilm.load().weights.values()) == pytest.approx(0.0016, abs=5e-5)
    ids = padded([minilm.load().tokenizer.encode(sentence) for sentence in SENTENCES])
    assert np.array_equal(model.embed(ids), adapt(base, LoraConfig(rank=1, target_modules=QUERY_VALUE)).embed(ids))


def test_gelu_is_x_times_phi_and_a_mask_keeps_tokens_out():
    x = np.linspace(-5, 5, 101)
    assert normal_distribution(np.zeros(1)) == pytest.approx(0.5, abs=1e-6)
    layer = Gelu()
    layer.forward(x)
    step = 1e-5
    slope = (layer.forward(x + step) - layer.forward(x - step)) / (2 * step)
    layer.forward(x)
    np.testing.assert_allclose(layer.backward(np.ones_like(x)), slope, atol=2e-6)
    rng = np.random.default_rng(0)
    attention = Attention(2)
    attention.forward(*rng.standard_normal((3, 4, 6)), 4, np.array([0, 0, -np.inf, 0]))
    assert (attention.share[..., 2] == 0).all() and np.allclose(attention.share.sum(axis=-1), 1)
