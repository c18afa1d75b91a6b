r"""The loop, the losses, the optimizers and the schedules; PyTorch's trajectory as the oracle."""

import json

import numpy as np
import pytest

from lora_edu import LoraConfig, LoraLinear, QLoraLinear
from lora_edu.models.adapting import adapt
from lora_edu.models.layers import Linear
from lora_edu.models.minilm import read_safetensors
from lora_edu.models.mlp import MLP
from lora_edu.training import (
    SGD,
    Adam,
    AdamW,
    DivergedError,
    Record,
    constant,
    cross_entropy,
    layer_gradients,
    lora_gradients,
    minibatches,
    squared_error,
    train,
    warmup_cosine,
)

# PyTorch's trajectory


@pytest.fixture
def trajectory(root):
    folder = root / "tests" / "golden" / "peft"
    data = (folder / "mlp_train" / "lora" / "trajectory.safetensors").read_bytes()
    found = {key.replace("base_model.model.", "").replace(".default.weight", ""): a for key, a in read(data).items()}
    base = read_safetensors((folder / "mlp" / "base.safetensors").read_bytes())
    layers = {name: Linear(base[f"{name}.weight"], base[f"{name}.bias"]) for name in ("q_proj", "v_proj", "fc")}
    model = adapt(MLP(layers), LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj")))
    model.assign(part(found, "init"))
    return model, found


def read(data) -> dict:
    """`read_safetensors` and the float64 losses, which it leaves out."""
    start = 8 + int.from_bytes(data[:8], "little")
    first, last = json.loads(data[8:start])["losses"]["data_offsets"]
    return read_safetensors(data) | {"losses": np.frombuffer(data[start + first : start + last], np.float64)}


def part(found, prefix) -> dict:
    named = {key.removeprefix(f"{prefix}/"): a for key, a in found.items() if key.startswith(f"{prefix}/")}
    return {key.replace("lora_A", "lora_a").replace("lora_B", "lora_b"): a for key, a in named.items()}


def near(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_first_gradients_equal_pytorchs(trajectory):
    model, found = trajectory
    loss, upstream = squared_error(model.forward(found["x"]), found["y"])
    model.backward(upstream)
    assert loss == pytest.approx(found["losses"][0], rel=1e-6)
    near(model.gradients(), part(found, "grad0"))
    assert max(np.abs(g).max() for name, g in model.gradients().items() if name.endswith("lora_b")) > 0.01


def test_twenty_steps_of_adamw_equal_pytorchs(trajectory):
    model, found = trajectory
    batches = [(found["x"], found["y"])] * 20
    losses = []
    for record in train(model, batches, AdamW(1e-2, weight_decay=0.01), loss=squared_error):
        losses.append(record.loss)
        if record.step == 1:
            near(model.trained(), part(found, "step1"))
    near(model.trained(), part(found, "step20"))
    np.testing.assert_allclose(losses, found["losses"], rtol=1e-5, atol=1e-5)
    assert losses[-1] < 0.6 * losses[0]


# One layer


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_qlora_gradients_go_through_the_dequantized_weight(fan_in_fan_out):
    rng = np.random.default_rng(0)
    weight, x, g = rng.standard_normal((6, 8)), rng.standard_normal((3, 8)), rng.standard_normal((3, 6))
    config = LoraConfig(rank=2, alpha=6, fan_in_fan_out=fan_in_fan_out)
    layer = QLoraLinear(np.ascontiguousarray(weight.T) if fan_in_fan_out else weight, config, block_size=16)
    layer.lora_b = rng.standard_normal((6, 2))
    kept = layer.dequantized_weight().T if fan_in_fan_out else layer.dequantized_weight()
    wanted = lora_gradients(x, g, kept, layer.lora_a, layer.lora_b, 3.0)
    for found, array in zip(layer_gradients(layer, x, g), wanted, strict=True):
        np.testing.assert_array_equal(found, array)
    assert np.abs(wanted.x - lora_gradients(x, g, weight, layer.lora_a, layer.lora_b, 3.0).x).max() > 0.01


def test_all_dropped_leaves_the_gradient_of_the_base():
    layer = LoraLinear(np.eye(4), LoraConfig(rank=2, dropout=1.0))
    layer.lora_b = np.ones((4, 2))
    x = np.arange(8.0).reshape(2, 4)
    assert np.array_equal(layer.train()(x), x)
    found = layer_gradients(layer, x, np.ones((2, 4)), layer.dropout_mask)
    assert not found.lora_a.any() and not found.lora_b.any() and (found.x == 1).all()


def test_a_dropout_mask_keeps_the_mean_and_belongs_to_the_last_pass():
    layer = LoraLinear(np.zeros((4, 4000), np.float32), LoraConfig(rank=2, dropout=0.25))
    assert layer.dropout_mask is None
    layer(np.ones(4000, np.float32))
    assert layer.dropout_mask is None  # dropout acts in training only
    layer.train()(np.ones(4000, np.float32))
    assert set(np.unique(layer.dropout_mask)) == {0, np.float32(1) / np.float32(0.75)}
    assert layer.dropout_mask.mean() == pytest.approx(1, abs=0.05)
    before = layer.dropout_mask
    layer(np.ones(4000, np.float32))
    assert not np.array_equal(before, layer.dropout_mask)


# Losses


def test_cross_entropy_is_the_surprise_and_its_gradient_the_excess_of_belief():
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((3, 4, 5)), rng.integers(-1, 5, (3, 4))
    targets[0, 0] = -1
    loss, gradient = cross_entropy(logits, targets)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = [(i, j) for i, j in np.ndindex(3, 4) if targets[i, j] >= 0]
    assert loss == pytest.approx(np.mean([-np.log(share[i, j, targets[i, j]]) for i, j in counted]))
    assert not gradient[targets < 0].any()
    for index in np.ndindex(logits.shape):
        moved = logits.copy()
        moved[index] += 1e-6
        assert (cross_entropy(moved, targets)[0] - loss) / 1e-6 == pytest.approx(gradient[index], abs=1e-6)


def test_cross_entropy_of_large_logits_is_finite():
    loss, gradient = cross_entropy(np.array([[1e4, 0.0, -1e4]], np.float32), np.array([0]))
    assert loss == 0 and not gradient.any()
    loss, gradient = cross_entropy(np.array([[1e4, 0.0]], np.float32), np.array([1]))
    assert np.isfinite(loss) and loss > 80 and gradient.tolist() == [[1, -1]]


def test_squared_error():
    loss, gradient = squared_error(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]))
    assert loss == 2.5 and gradient.tolist() == [[1, -2]]


# Optimizers and schedules


def test_momentum_adds_up_to_a_longer_step():
    """Under a constant gradient u → g / (1 - μ)."""
    p, optimizer = [np.zeros(1)], SGD(0.1, momentum=0.9)
    for _ in range(300):
        before, p = p, optimizer.step(p, [np.array([2.0])])
    assert (before[0] - p[0])[0] == pytest.approx(0.1 * 2 / (1 - 0.9))


def test_momentum_equals_pytorchs_rule_written_out():
    rng = np.random.default_rng(0)
    p, u, ours, optimizer = 0.5, None, [np.array([0.5])], SGD(0.03, momentum=0.7)
    for g in rng.standard_normal(9):
        u = g if u is None else 0.7 * u + g
        p -= 0.03 * u
        ours = optimizer.step(ours, [np.array([g])])
    assert float(ours[0][0]) == pytest.approx(p, rel=1e-14)


def test_weight_decay_shrinks_whatever_the_gradient_says():
    p, optimizer = [np.array([3.0])], AdamW(lr=0.1, weight_decay=0.5)
    for _ in range(10):
        p = optimizer.step(p, [np.zeros(1)])
    assert float(p[0][0]) == pytest.approx(3 * 0.95**10)
    same = [np.array([3.0])]
    assert AdamW(0.1, weight_decay=0.0).step(same, [np.ones(1)])[0] == Adam(0.1).step(same, [np.ones(1)])[0]


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW])
def test_a_ratio_is_a_learning_rate_of_its_own(optimizer):
    p, g = [np.ones(3), np.ones(3)], [np.arange(3.0), np.arange(3.0)]
    slow, fast = optimizer(0.01).step(p, g, ratios=[1, 16])
    assert np.array_equal(slow, optimizer(0.01).step(p, g)[0])
    np.testing.assert_allclose(fast, optimizer(0.16).step(p, g)[0], rtol=1e-15)


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, 0.9), Adam(0.1), AdamW(0.1)])
def test_float32_stays_float32(optimizer):
    for _ in range(3):
        (p,) = optimizer.step([np.ones(3, np.float32)], [np.ones(3, np.float32)], ratios=[2.0])
    assert p.dtype == np.float32


def test_the_schedules():
    assert [constant(t) for t in (1, 7)] == [1, 1]
    factor = warmup_cosine(100, 10, final=0.1)
    assert [factor(t) for t in (1, 5, 10)] == [0.1, 0.5, 1.0]
    assert factor(55) == pytest.approx(0.55) and factor(100) == pytest.approx(0.1) and factor(1000) == factor(100)
    values = [factor(t) for t in range(10, 101)]
    assert values == sorted(values, reverse=True)
    assert warmup_cosine(10)(1) < 1
    with pytest.raises(ValueError, match="warmup must be shorter than the 10 steps, got 10"):
        warmup_cosine(10, 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1), "lr must not be negative, got -1"),
        (lambda: Adam(float("nan")), "lr must be finite, got nan"),
        (lambda: SGD(0.1, momentum=1), r"momentum must lie in \[0, 1\), got 1"),
        (lambda: Adam(0.1, betas=(0.9, 1.0)), r"betas must lie in \[0, 1\), got 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The loop


def problem(seed=0, size=64):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((size, 6), np.float32)
    return x, (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)


def run(seed=0, steps=30, make=lambda: Adam(0.01), model=None, **settings):
    model = MLP.initial((6, 12, 2), seed) if model is None else model
    return model, list(train(model, minibatches(*problem(), 16, steps, seed), make(), **settings))


def test_training_repeats_bit_for_bit():
    (model, records), (other, again) = run(), run()
    assert records == again
    assert all(np.array_equal(a, other.parameters()[name]) for name, a in model.parameters().items())
    assert records != run(seed=1)[1]


def test_a_record_tells_step_loss_rate_and_what_was_measured():
    seen = []

    def measure(model):
        seen.append(model)
        return {"half": 0.5}

    model, records = run(steps=7, schedule=warmup_cosine(7, 2), measure=measure, every=3)
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6, 7]
    assert [bool(r.metrics) for r in records] == [False, False, True, False, False, True, False]
    assert seen == [model, model] and records[2].metrics == {"half": 0.5}
    assert [round(r.lr, 6) for r in records[:2]] == [0.005, 0.01] and records[-1].lr == 0
    assert isinstance(records[0], Record) and records[0].gradient_norm > 0


def test_the_loss_is_that_of_the_batch_before_its_step():
    model = MLP.initial((6, 12, 2))
    x, y = problem(size=16)
    before = model.copy()
    (record,) = train(model, [(x, y)], SGD(0.1))
    loss, upstream = cross_entropy(before.forward(x), y)
    before.backward(upstream)
    assert record.loss == loss
    assert np.array_equal(
        model.trained()["fc1.bias"], before.trained()["fc1.bias"] - 0.1 * before.gradients()["fc1.bias"]
    )


def test_whoever_stops_listening_stops_the_training():
    model, optimizer = MLP.initial((6, 12, 2)), Adam(0.01)
    records = train(model, minibatches(*problem(), 16, 1000), optimizer, schedule=warmup_cosine(1000, 100))
    for record in records:
        if record.step == 3:
            break
    at_three = model.parameters()
    assert optimizer.t == 3
    records.close()
    assert optimizer.t == 3 and optimizer.lr == 0.01
    assert all(a is at_three[name] for name, a in model.parameters().items())


def test_dropout_acts_in_steps_and_rests_in_measures():
    model = adapt(MLP.initial((6, 12, 2)), LoraConfig(rank=2, dropout=0.5))
    states = []
    run(steps=2, model=model, measure=lambda m: states.append(m.adapter["fc1"].training) or {})
    assert states == [False, False]
    assert model.adapter["fc1"].dropout_mask is not None and not model.adapter["fc1"].training
    plain = adapt(MLP.initial((6, 12, 2)), LoraConfig(rank=2))
    assert run(steps=5, model=plain)[1] != run(steps=5, model=adapt(MLP.initial((6, 12, 2)), model.adapter.config))[1]


def test_lora_plus_lets_b_run_ahead():
    def moved(ratio):
        base = MLP.initial((6, 12, 2))
        model = adapt(base, LoraConfig(rank=2))
        start = model.trained()
        run(steps=1, model=model, make=lambda: SGD(1e-3), b_ratio=ratio)
        return {name: a - start[name] for name, a in model.trained().items()}

    plain, plus = moved(1.0), moved(16.0)
    for name, step in plain.items():
        np.testing.assert_allclose(plus[name], step * (16 if name.endswith("lora_b") else 1), rtol=1e-4)


def test_batches_go_through_everything_once_before_anything_twice():
    x = np.arange(10)
    batches = list(minibatches(x, -x, 3, 6, seed=4))
    assert all(np.array_equal(a, -b) and a.size == 3 for a, b in batches)
    first, second = np.concatenate([b[0] for b in batches[:3]]), np.concatenate([b[0] for b in batches[3:]])
    assert len(set(first)) == len(set(second)) == 9
    assert not np.array_equal(first, second)
    assert len(next(minibatches(x, x, 99, 1))[0]) == 10
    with pytest.raises(ValueError, match="equally long and not empty, got 10 and 9"):
        next(minibatches(x, x[:9], 3, 1))


def test_a_learning_rate_that_is_too_high_is_named():
    with pytest.raises(DivergedError, match=r"at step \d+: .* losses of .* rate 1e\+06 is too high: try 1"):
        run(make=lambda: SGD(1e6), steps=50)


def test_a_divergence_inside_an_adapted_layer_is_named_too_and_leaves_finite_numbers():
    model = adapt(MLP.initial((6, 12, 2)), LoraConfig(rank=2))
    with pytest.raises(DivergedError, match=r"stopped at step \d+: .*learning rate 1e\+20 is too high"):
        run(make=lambda: SGD(1e20), steps=50, model=model)
    assert all(np.isfinite(a).all() for a in model.trained().values())


def test_bad_data_and_bad_weights_are_told_apart():
    x, y = problem()
    x[5, 1] = np.nan
    with pytest.raises(DivergedError, match=r"step 1: the loss is nan; the batch itself is not finite"):
        list(train(MLP.initial((6, 12, 2)), [(x, y)], Adam(0.1)))
    model = MLP.initial((6, 12, 2))
    model.assign({"fc1.weight": np.full((12, 6), 1e38, np.float32)})
    with pytest.raises(DivergedError, match="no step was made yet: look for weights that are too large"):
        list(train(model, [problem()], Adam(0.1)))


def test_a_model_that_trains_nothing_is_refused():
    model = MLP.initial((6, 12, 2)).train_only(lambda name: False)
    with pytest.raises(ValueError, match="trains nothing; choose something with train_only"):
        list(train(model, [problem()], Adam(0.1)))
