r"""The small models: every gradient against finite differences and PyTorch, and what an adapter does to a model."""

import importlib.util

import numpy as np
import pytest

from lora_edu import NF4, LoraConfig
from lora_edu.datasets.digit_tasks import digit_task
from lora_edu.datasets.name_lists import encode_names, names
from lora_edu.models.adapting import METHODS, adapt, prepare
from lora_edu.models.finetuning import pretrained_digits
from lora_edu.models.layers import AdaptedLinear, LayerNorm
from lora_edu.models.mlp import MLP
from lora_edu.models.pretrain import pretraining
from lora_edu.models.transformer import ATTENTION, QUERY_VALUE, CharTransformer
from lora_edu.training import Adam, cross_entropy, minibatches, train

TINY = {"vocabulary": 7, "length": 5, "width": 8, "blocks": 2, "heads": 2}
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")


def tiny_mlp():
    model = MLP.initial((6, 8, 7, 5), seed=1)
    rng = np.random.default_rng(0)
    model.assign({n: rng.standard_normal(a.shape) for n, a in model.parameters().items() if n.endswith("bias")})
    return model.astype(np.float64), rng.standard_normal((9, 6)), rng.integers(5, size=9)


def tiny_transformer():
    rng = np.random.default_rng(0)
    model = CharTransformer.initial(3, **TINY).astype(np.float64)
    model.assign({n: a + 0.1 * rng.standard_normal(a.shape) for n, a in model.parameters().items()})
    return model, rng.integers(7, size=(4, 5)), rng.integers(-1, 7, size=(4, 5))


MODELS = {"mlp": tiny_mlp, "transformer": tiny_transformer}


def gradients_against_differences(model, x, y, forget=lambda: None, step=1e-6):
    r"""Largest relative distance ‖g - d‖ / ‖d‖ over the trained arrays; `forget` is called before each forward pass."""

    def loss():
        forget()
        return cross_entropy(model.forward(x), y)[0]

    forget()
    model.backward(cross_entropy(model.forward(x), y)[1])
    found = {name: gradient.copy() for name, gradient in model.gradients().items()}
    distances = {}
    for name, array in model.trained().items():
        array = array.copy()
        differences = np.empty_like(array)
        for index in np.ndindex(array.shape):
            sides = []
            for sign in (1, -1):
                moved = array.copy()
                moved[index] += sign * step
                model.assign({name: moved})
                sides.append(loss())
            differences[index] = (sides[0] - sides[1]) / (2 * step)
        model.assign({name: array})
        scale = max(np.linalg.norm(differences), 1e-5)
        distances[name] = np.linalg.norm(found[name] - differences) / scale
    assert distances
    return max(distances.values())


@pytest.mark.parametrize("kind", MODELS)
def test_every_gradient_equals_its_finite_difference(kind):
    model, x, y = MODELS[kind]()
    assert len(model.trained()) == len(model.parameters())
    assert gradients_against_differences(model, x, y) < 2e-6


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_an_adapted_model_with_dropout(kind, quantized, fan_in_fan_out):
    base, x, y = MODELS[kind]()
    config = LoraConfig(rank=2, alpha=3, dropout=0.3, fan_in_fan_out=fan_in_fan_out)
    model = adapt(base, config, quantized, block_size=16, seed=1)
    rng = np.random.default_rng(2)
    model.assign({n: 0.3 * rng.standard_normal(a.shape) for n, a in model.trained().items()})
    layers = [layer.lora for layer in model.layers.values() if isinstance(layer, AdaptedLinear)]
    model.train()

    def forget():
        for index, layer in enumerate(layers):
            layer._dropout_rng = np.random.default_rng(index)  # the same mask in every forward pass

    assert len(model.trained()) == 2 * len(layers)
    assert gradients_against_differences(model, x, y, forget) < 2e-6


def test_a_forgotten_dropout_mask_changes_the_gradients():
    base, x, y = tiny_mlp()
    model = adapt(base, LoraConfig(rank=2, dropout=0.3))
    model.train()
    upstream = cross_entropy(model.forward(x), y)[1]
    model.backward(upstream)
    right = model.gradients()
    for layer in model.layers.values():
        layer.lora.dropout_mask = np.ones_like(layer.lora.dropout_mask)
    model.backward(upstream)
    assert max(np.abs(model.gradients()[name] - right[name]).max() for name in right) > 1e-3


def test_the_transformer_equals_pytorch_from_a_file(root):
    golden = np.load(root / "tests" / "golden" / "char_transformer.npz")
    model = CharTransformer.initial(3, **TINY)
    model.assign({n.removeprefix("parameter/"): golden[n] for n in golden.files if n.startswith("parameter/")})
    logits = model.forward(golden["ids"])
    loss, upstream = cross_entropy(logits, golden["targets"])
    model.backward(upstream)
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-5, atol=1e-6)
    assert loss == pytest.approx(float(golden["loss"]), rel=1e-6)
    assert len(model.gradients()) == sum(name.startswith("gradient/") for name in golden.files)
    for name, gradient in model.gradients().items():
        np.testing.assert_allclose(gradient, golden[f"gradient/{name}"], rtol=1e-4, atol=1e-6, err_msg=name)


@needs_torch
@pytest.mark.parametrize("rank", [0, 3])
def test_the_transformer_equals_pytorch_where_it_is_installed(rank):
    import torch
    import torch_twins

    base = model = CharTransformer.pretrained()
    ids, targets = encode_names(names("male").test[:50])
    parameters = base.parameters()
    if rank:
        model = adapt(base, LoraConfig(rank=rank, alpha=2 * rank, target_modules=ATTENTION))
        rng = np.random.default_rng(0)
        model.assign({n: rng.standard_normal(a.shape).astype("f") * 0.1 for n, a in model.trained().items()})
        parameters = parameters | model.trained()
    p = torch_twins.tensors(parameters)
    expected = torch_twins.transformer(p, torch.from_numpy(ids), base.heads, 2.0)
    torch_twins.loss_of(expected, torch.from_numpy(targets)).backward()
    logits = model.forward(ids)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=2e-5)
    model.backward(cross_entropy(logits, targets)[1])
    for name, gradient in model.gradients().items():
        wanted = p[name].grad.numpy()
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


def test_layer_norm_has_mean_zero_and_variance_one():
    x = np.random.default_rng(0).standard_normal((5, 40)) * 7 + 3
    y = LayerNorm(np.ones(40), np.zeros(40)).forward(x)
    np.testing.assert_allclose(y.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(1), 1, rtol=1e-5)


def test_no_letter_sees_a_later_one():
    model, ids, _ = tiny_transformer()
    changed = ids.copy()
    changed[:, 3] = (ids[:, 3] + 1) % 7
    before, after = model.forward(ids), model.forward(changed)
    assert np.array_equal(before[:, :3], after[:, :3])
    assert (np.abs(before[:, 3:] - after[:, 3:]).max(axis=2) > 0).all()


# Adapting


@pytest.mark.parametrize("kind", MODELS)
def test_an_adapted_model_starts_as_its_base_and_shares_it(kind):
    base, x, _ = MODELS[kind]()
    model = adapt(base, LoraConfig(rank=2, init="kaiming"))
    np.testing.assert_allclose(model.forward(x), base.forward(x), rtol=1e-12, atol=1e-12)
    for name, layer in model.layers.items():
        if isinstance(layer, AdaptedLinear):
            assert np.shares_memory(layer.lora.weight, base.layers[name].arrays["weight"])


def test_target_modules_choose_the_layers():
    base = CharTransformer.pretrained()
    count = {  # rank · (in + out), over two blocks of width 64
        ("q_proj", "v_proj"): 2 * 2 * 128,
        ("o_proj",): 2 * 128,
        "all-linear": 2 * (4 * 128 + 2 * 320),
        r"blocks\.1\..*_proj": 4 * 128 + 2 * 320,
        ("head",): 64 + 27,
    }
    for targets, numbers in count.items():
        model = adapt(base, LoraConfig(rank=1, target_modules=targets))
        assert model.trained_count == model.adapter.trainable_count == numbers
    assert "head" not in adapt(base, LoraConfig(rank=1)).adapter
    assert len(adapt(MLP.initial(), LoraConfig(rank=1)).adapter) == 4
    with pytest.raises(ValueError, match=r"'nothing'.* selects none of blocks.0.q_proj, "):
        adapt(base, LoraConfig(rank=1, target_modules=("nothing",)))
    with pytest.raises(ValueError, match="start from the base model"):
        adapt(adapt(base, LoraConfig(rank=1)), LoraConfig(rank=1))


def test_a_rank_above_a_layers_own_is_cut_at_the_same_scaling():
    model = adapt(MLP.initial((64, 32, 10)), LoraConfig(rank=16, alpha=48, use_rslora=True))
    assert [model.adapter[name].rank for name in model.adapter] == [16, 10]
    assert model.adapter["fc2"].scaling == pytest.approx(12)


def test_every_layer_starts_with_an_a_of_its_own():
    model = adapt(CharTransformer.pretrained(), LoraConfig(rank=4, target_modules=QUERY_VALUE))
    starts = [a.ravel() for name, a in model.trained().items() if name.endswith("lora_a")]
    assert np.abs(np.corrcoef(starts) - np.eye(4)).max() < 0.25
    again = adapt(CharTransformer.pretrained(), LoraConfig(rank=4, target_modules=QUERY_VALUE))
    assert all(np.array_equal(a, again.trained()[name]) for name, a in model.trained().items())


@pytest.mark.parametrize("count", [1, 2, 400])
def test_without_its_adapter_a_model_is_its_base_bit_for_bit(count):
    """Also where `LoraLinear` itself multiplies few rows in another order."""
    base = CharTransformer.pretrained()
    model = adapt(base, LoraConfig(rank=2))
    model.assign({name: array + np.float32(0.1) for name, array in model.trained().items()})
    ids, _ = encode_names(names("male").test[:count])
    assert not np.allclose(model.forward(ids), base.forward(ids))
    with model.without_adapter():
        assert np.array_equal(model.forward(ids), base.forward(ids))


def short_run(model, x, y, lr=0.01, steps=5):
    return [record.loss for record in train(model, minibatches(x, y, 8, steps), Adam(lr))]


@pytest.mark.parametrize("method", [*METHODS, "LoRA", "QLoRA"])
@pytest.mark.parametrize("kind", MODELS)
def test_each_method_changes_what_it_says_and_the_base_stays_bit_for_bit(kind, method):
    base, x, y = MODELS[kind]()
    before = {name: array.copy() for name, array in base.parameters().items()}
    outputs = base.forward(x).copy()
    if kind == "mlp" and method == "layer norms":
        with pytest.raises(ValueError, match="no layer norms to train"):
            prepare(base, method)
        return
    config = LoraConfig(rank=2) if "LoRA" in method else None
    model = prepare(base, method, config)
    start, trained = model.parameters(), set(model.trained())
    short_run(model, x, y)
    for name, array in model.parameters().items():
        assert np.array_equal(array, start[name]) != (name in trained), name
    assert all(np.array_equal(array, before[name]) for name, array in base.parameters().items())
    assert np.array_equal(base.forward(x), outputs)
    if method == "last layer":
        assert trained <= {"fc3.weight", "fc3.bias", "head.weight"}
    if method == "LoRA":
        assert not np.allclose(model.forward(x), outputs)
        with model.without_adapter():
            np.testing.assert_allclose(model.forward(x), outputs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_frozen_parts_do_not_change_the_gradients_of_the_others(kind):
    """The way back ends early where nothing further down is trained; what it reached must be right all the same."""
    model, x, y = MODELS[kind]()
    upstream = cross_entropy(model.forward(x), y)[1]
    model.backward(upstream)
    everything = model.gradients()
    for name in everything:
        alone = model.copy().train_only(lambda other, name=name: other == name)
        alone.forward(x)
        alone.backward(upstream)
        ((found, gradient),) = alone.gradients().items()
        assert found == name and np.array_equal(gradient, everything[name])


def test_copies_learn_apart():
    base, x, y = tiny_mlp()
    model = adapt(base, LoraConfig(rank=2, dropout=0.2))
    other = model.copy()
    short_run(other, x, y)
    assert not any(np.any(a) for name, a in model.trained().items() if name.endswith("lora_b"))
    assert all(np.any(a) for name, a in other.trained().items() if name.endswith("lora_b"))
    assert other.adapter["fc1"] is other.layers["fc1"].lora is not model.adapter["fc1"]


def test_wrong_names_and_shapes_are_refused():
    model = MLP.initial((4, 3, 2))
    with pytest.raises(ValueError, match=r"no array 'fc9.weight'; it has fc1.weight"):
        model.assign({"fc9.weight": np.zeros((3, 4))})
    with pytest.raises(ValueError, match=r"fc1.weight must have shape \(3, 4\), got \(4, 3\)"):
        model.assign({"fc1.weight": np.zeros((4, 3))})
    with pytest.raises(ValueError, match="method must be one of full, scratch"):
        prepare(model, "everything")
    with pytest.raises(ValueError, match="LoRA needs a config"):
        prepare(model, "LoRA")
    with pytest.raises(ValueError, match="takes no config"):
        prepare(model, "full", LoraConfig(rank=1))
    with pytest.raises(ValueError, match="has no adapter"), model.without_adapter():
        pass


# The weights that ship


def test_the_shipped_transformer_says_what_the_chapter_says_it_does():
    model = CharTransformer.pretrained()
    assert sum(array.size for array in model.parameters().values()) == 103_232
    female, male = encode_names(names("female").test), encode_names(names("male").test)
    assert model.bits_per_character(*female) == pytest.approx(2.671, abs=0.002)
    assert model.bits_per_character(*male) == pytest.approx(4.128, abs=0.002)
    assert 2.671 < model.rounded(NF4).bits_per_character(*female) < 2.71
    guess = CharTransformer.initial(0).bits_per_character(*female)
    assert 4.5 < guess < 6


FIRST_LOSSES = [3.611608, 3.617998, 3.407789, 3.336388, 3.166747]


def test_the_first_steps_of_pretraining_are_recomputed():
    _, records = pretraining(steps=5)
    losses = [record.loss for record in records]
    np.testing.assert_allclose(losses, FIRST_LOSSES, rtol=1e-4)


def test_sampled_names_end_and_repeat_by_seed():
    model = CharTransformer.pretrained()
    ids = model.sample(200, seed=1)
    assert np.array_equal(ids, model.sample(200, seed=1)) and not np.array_equal(ids, model.sample(200, seed=2))
    assert ids.shape == (200, 13) and not ids[:, 0].any()
    after_end = (np.cumsum(ids[:, 1:] == 0, axis=1) > 0) & (ids[:, 1:] != 0)
    assert not after_end.any()


def test_the_mlp_learns_the_digits_and_forgets_them_when_turned():
    task = digit_task()
    model = pretrained_digits(task)
    assert model.accuracy(*task.upright) > 0.94
    assert model.accuracy(*task.test) < 0.2
