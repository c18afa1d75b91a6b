r"""`LoraLinear` against float64 formulas, `np.linalg.svd` and exact small cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_edu import LoraConfig, LoraLinear, linear
from lora_edu.metrics import ulp_distance

OUT, IN, RANK = 12, 7, 3


def arrays(*shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def make(dtype=np.float32, out=OUT, in_=IN, bias=False, **settings):
    r"""A layer with an A and a B that are not zero."""
    config = LoraConfig(**{"rank": RANK, "alpha": 2 * RANK, **settings})
    w, a, b, c = arrays((out, in_), (config.rank, in_), (out, config.rank), (out,), dtype=dtype)
    layer = LoraLinear(w.T if config.fan_in_fan_out else w, config, bias=c if bias else None)
    layer.lora_a, layer.lora_b = a, b
    return layer, w.astype(np.float64), a.astype(np.float64), b.astype(np.float64), c.astype(np.float64)


def expected(x, w, a, b, scaling, bias=0.0):
    r"""The equation in float64, and the size of its largest term, from which tolerances are taken."""
    x = np.asarray(x, np.float64)
    y = x @ w.T + scaling * (x @ a.T) @ b.T + bias
    terms = np.abs(x) @ np.abs(w).T + scaling * (np.abs(x) @ np.abs(a).T) @ np.abs(b).T + np.abs(bias)
    return y, terms


def eps(dtype):
    return float(np.finfo(dtype).eps)


# --- forward


@pytest.mark.parametrize("shape", [(IN,), (1, IN), (5, IN), (2, 3, IN), (2, 1, 3, IN), (0, IN), (3, 0, IN)])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_is_the_equation_for_any_batch_shape(shape, bias):
    layer, w, a, b, c = make(bias=bias)
    (x,) = arrays(shape, seed=1)
    y = layer.forward(x)
    truth, terms = expected(x, w, a, b, 2.0, c if bias else 0.0)
    assert y.shape == (*shape[:-1], OUT)
    assert y.dtype == np.float32
    assert (np.abs(y - truth) <= 4 * eps(np.float32) * terms).all()
    assert np.array_equal(layer(x), y)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, w, a, b: x @ w.T + (x @ a.T) @ b.T,  # no scaling
        lambda x, w, a, b: x @ w.T + 2 / math.sqrt(RANK) * RANK / 2 * (x @ a.T) @ b.T,  # another scaling
        lambda x, w, a, b: x @ w.T,  # no adapter
        lambda x, w, a, b: x @ (w + 2 * (b @ a)[::-1]).T,  # rows in another order
    ],
)
def test_a_wrong_equation_is_told_from_the_right_one(wrong):
    layer, w, a, b, _ = make()
    (x,) = arrays((5, IN), seed=1)
    _, terms = expected(x, w, a, b, 2.0)
    assert (np.abs(layer(x) - wrong(x, w, a, b)) > 1000 * eps(np.float32) * terms).any()


@given(st.integers(1, 20), st.integers(1, 20), st.booleans(), st.booleans(), st.data())
@settings(max_examples=60, deadline=None)
def test_any_shape_and_either_layout_compute_the_equation(out, in_, fan_in_fan_out, use_rslora, data):
    rank = data.draw(st.integers(1, min(out, in_)))
    layer, w, a, b, _ = make(
        out=out, in_=in_, rank=rank, alpha=3.0, fan_in_fan_out=fan_in_fan_out, use_rslora=use_rslora
    )
    scaling = 3.0 / (math.sqrt(rank) if use_rslora else rank)
    (x,) = arrays((4, in_), seed=1)
    truth, terms = expected(x, w, a, b, scaling)
    assert (np.abs(layer(x) - truth) <= (4 + in_) * eps(np.float32) * terms).all()
    layer.merge()
    assert (np.abs(layer(x) - truth) <= (4 + in_) * eps(np.float32) * terms).all()


def test_a_new_layer_computes_its_base_bit_for_bit():
    w, x = arrays((OUT, IN), (5, IN))
    layer = LoraLinear(w, rank=RANK)
    assert not layer.lora_b.any()
    assert layer.lora_a.any()
    assert np.array_equal(layer(x), (w @ x.T).T)


@pytest.mark.parametrize(("dtype", "compute"), [(np.float16, np.float32), (np.float32,) * 2, (np.float64,) * 2])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("merged", [False, True])
def test_every_dtype_is_kept_and_rounded_once(dtype, compute, fan_in_fan_out, merged):
    layer, w, a, b, c = make(dtype, bias=True, fan_in_fan_out=fan_in_fan_out)
    assert layer.lora_a.dtype == layer.lora_b.dtype == compute
    (x,) = arrays((5, IN), seed=1, dtype=dtype)
    truth, terms = expected(x, w, a, b, 2.0, c)
    if merged:
        layer.merge()
        assert layer.weight.dtype == dtype
    y = layer(x)
    assert y.dtype == dtype
    assert (np.abs(y - truth) <= 4 * eps(dtype) * terms).all()
    if not merged and dtype == np.float16:
        assert ulp_distance(y, truth.astype(np.float16)).max() <= 1


def test_float16_sums_are_not_float16():
    w = np.ones((1, 5000), np.float16)
    assert LoraLinear(w, rank=1)(np.ones(5000, np.float16)) == 5000  # a float16 sum stops at 2048


def test_an_input_of_another_dtype_gives_the_dtype_of_the_weight():
    layer, *_ = make()
    for dtype in (np.float16, np.float64):
        (x,) = arrays((2, IN), seed=1, dtype=dtype)
        assert layer(x).dtype == np.float32
        assert np.array_equal(layer(x), layer(x.astype(np.float32)))


def test_the_adapter_has_the_derivative_that_finite_differences_measure():
    layer, w, a, b, _ = make(np.float64)
    (x,) = arrays((IN,), dtype=np.float64)
    step = 1e-6
    measured = np.stack([(layer(x + step * e) - layer(x - step * e)) / (2 * step) for e in np.eye(IN)], axis=1)
    assert np.abs(measured - layer.weight - layer.delta_weight()).max() < 1e-7
    assert np.abs(measured - (w + 2 * b @ a)).max() < 1e-7


# --- A, B and ΔW


@pytest.mark.parametrize("rank", [1, 2, 5, 12])
def test_the_update_has_at_most_the_rank_of_the_adapter(rank):
    layer, _, a, b, _ = make(np.float64, out=20, in_=12, rank=rank, alpha=rank)
    singular = np.linalg.svd(layer.delta_weight(), compute_uv=False)
    assert (singular[rank:] < 1e-14 * singular[0]).all()
    assert singular[rank - 1] > 1e-3 * singular[0]
    assert np.allclose(layer.delta_weight(), b @ a, rtol=1e-13)


def test_the_update_has_the_layout_of_the_stored_weight():
    plain, _, a, b, _ = make()
    turned, *_ = make(fan_in_fan_out=True)
    assert plain.delta_weight().shape == plain.weight.shape == (OUT, IN)
    assert turned.delta_weight().shape == turned.weight.shape == (IN, OUT)
    assert np.allclose(plain.delta_weight(), 2 * b @ a, atol=1e-5)
    assert np.array_equal(turned.delta_weight(), plain.delta_weight().T)


def test_setters_copy_and_getters_are_read_only():
    layer, *_ = make()
    mine = np.ones((RANK, IN), np.float64)
    layer.lora_a = mine
    mine[:] = 5
    assert (layer.lora_a == 1).all()
    assert layer.lora_a.dtype == np.float32
    for array in (layer.lora_a, layer.lora_b, layer.weight):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_setters_refuse_while_merged_and_work_again_after():
    layer, *_ = make()
    layer.merge()
    for name in ("lora_a", "lora_b"):
        with pytest.raises(RuntimeError, match=rf"{name} cannot change while the adapter is merged; call unmerge"):
            setattr(layer, name, getattr(layer, name))
    layer.unmerge()
    layer.lora_b = np.zeros((OUT, RANK), np.float32)
    assert not layer.delta_weight().any()


@pytest.mark.parametrize(
    ("init", "std", "bound"),
    [
        ("reference", math.sqrt(2 / (3 * 500)), math.sqrt(2 / 500)),
        ("kaiming", 1 / math.sqrt(3 * 500), 1 / math.sqrt(500)),
        ("gaussian", 1 / 400, None),
    ],
)
def test_a_starts_with_the_distribution_of_its_init(init, std, bound):
    layer = LoraLinear(np.zeros((600, 500), np.float32), LoraConfig(rank=400, init=init))
    a = layer.lora_a.astype(np.float64)
    error = 4 / math.sqrt(2 * a.size)  # four standard errors of a normal sample's deviation, the widest of the three
    assert a.std() == pytest.approx(std, rel=error)
    assert abs(a.mean()) < 4 * std / math.sqrt(a.size)
    kurtosis = np.mean(a**4) / np.mean(a**2) ** 2
    assert kurtosis == pytest.approx(3 if bound is None else 1.8, abs=0.05)
    if bound is not None:
        assert 0.999 * bound < np.abs(a).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("init", ["reference", "kaiming", "gaussian"])
def test_the_seed_decides_a(init):
    w = np.zeros((OUT, IN), np.float32)
    one, same, other, default = (
        LoraLinear(w, LoraConfig(rank=RANK, init=init), seed=seed).lora_a for seed in (5, 5, 6, None)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.array_equal(default, LoraLinear(w, LoraConfig(rank=RANK, init=init), seed=42 + OUT + IN).lora_a)


def test_the_three_inits_differ_and_a_float64_layer_has_the_same_numbers():
    w = np.zeros((OUT, IN), np.float32)
    starts = [LoraLinear(w, LoraConfig(rank=RANK, init=i), seed=1).lora_a for i in ("reference", "kaiming", "gaussian")]
    assert len({a.tobytes() for a in starts}) == 3
    wide = LoraLinear(w.astype(np.float64), rank=RANK, seed=1).lora_a
    assert np.array_equal(wide, starts[0])


# --- merging


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("out", [OUT, 32, 2 * 32 + 5])
def test_merging_adds_the_update_and_unmerging_gives_every_bit_back(dtype, fan_in_fan_out, out, monkeypatch):
    monkeypatch.setattr(linear, "MERGE_WEIGHTS", 32 * IN)  # 32 rows at a time
    layer, w, a, b, _ = make(dtype, out=out, fan_in_fan_out=fan_in_fan_out)
    before = layer.weight.tobytes()
    layer.merge()
    merged = layer.weight.T if fan_in_fan_out else layer.weight
    larger = np.abs(w) + 2 * np.abs(b) @ np.abs(a)
    assert (np.abs(merged - (w + 2 * b @ a)) <= 2 * eps(dtype) * larger).all()
    assert layer.weight.tobytes() != before
    layer.unmerge()
    assert layer.weight.tobytes() == before


@pytest.mark.parametrize("keep_base", [True, False])
@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("fan_in_fan_out", [True, False])
def test_the_weight_of_the_caller_is_never_modified(keep_base, read_only, fan_in_fan_out):
    shape = (IN, OUT) if fan_in_fan_out else (OUT, IN)
    (w,) = arrays(shape)
    before = w.tobytes()
    w.flags.writeable = not read_only
    layer = LoraLinear(w, LoraConfig(rank=RANK, fan_in_fan_out=fan_in_fan_out))
    assert np.shares_memory(layer.weight, w)
    layer.lora_b = np.ones((OUT, RANK), np.float32)
    for _ in range(2):
        layer.merge(keep_base)
        layer(np.ones(IN, np.float32))
        with layer.disabled():
            layer(np.ones(IN, np.float32))
        layer.unmerge()
        layer(np.ones(IN, np.float32))
    assert w.tobytes() == before
    assert w.flags.writeable is not read_only
    assert np.shares_memory(layer.weight, w) is keep_base


def test_without_the_base_unmerging_subtracts_and_loses_bits_within_the_known_bound():
    layer, w, a, b, _ = make(out=300, in_=200)
    before = layer.weight.copy()
    layer.merge(keep_base=False)
    layer.unmerge()
    delta = np.abs(2 * b @ a)
    lost = layer.weight != before
    assert 0.05 < lost.mean() < 0.95
    assert (np.abs(layer.weight.astype(np.float64) - w) <= 2.0**-23 * (np.abs(w) + delta)).all()


def test_merging_a_zero_update_changes_no_bit_either_way():
    (w,) = arrays((OUT, IN))
    layer = LoraLinear(w, rank=RANK)
    layer.merge(keep_base=False)
    assert layer.weight.tobytes() == w.tobytes()
    layer.unmerge()
    assert layer.weight.tobytes() == w.tobytes()


def test_merging_twice_and_unmerging_twice_are_refused():
    layer, *_ = make()
    with pytest.raises(RuntimeError, match=r"the adapter is not merged; call merge\(\) first"):
        layer.unmerge()
    layer.merge()
    merged = layer.weight.copy()
    with pytest.raises(RuntimeError, match=r"already merged; call unmerge\(\) before"):
        layer.merge()
    assert np.array_equal(layer.weight, merged)


# --- on, off, and dropout


@pytest.mark.parametrize("keep_base", [True, False])
def test_a_disabled_layer_computes_its_base_also_while_merged(keep_base):
    layer, *_ = make(bias=True)
    (x,) = arrays((5, IN), seed=1)
    base = LoraLinear(layer.weight, rank=1, bias=layer.bias)(x)
    adapted = layer(x)
    layer.disable()
    assert np.array_equal(layer(x), base)
    layer.merge(keep_base)
    assert np.allclose(layer(x), base, atol=1e-5)
    assert np.array_equal(layer(x), base) or not keep_base
    layer.enable()
    assert np.allclose(layer(x), adapted, atol=1e-5)
    assert not np.allclose(adapted, base, atol=0.1)


def test_the_context_manager_restores_what_was_before_also_after_an_exception():
    layer, *_ = make()
    with layer.disabled() as inside:
        assert inside is layer
        assert not layer.enabled
        with layer.disabled():
            pass
        assert not layer.enabled
    assert layer.enabled
    with pytest.raises(ZeroDivisionError), layer.disabled():
        _ = 1 / 0
    assert layer.enabled
    layer.disable()
    with layer.disabled():
        pass
    assert not layer.enabled


def dropping(dropout, n=50, dtype=np.float32, seed=None):
    r"""A layer whose output is exactly what dropout leaves of the adapter's input: W = 0, A = B = 1, scaling = 1."""
    eye = np.eye(n, dtype=dtype)
    layer = LoraLinear(0 * eye, LoraConfig(rank=n, alpha=n, dropout=dropout), seed=seed)
    layer.lora_a = layer.lora_b = eye
    return layer.train()


@pytest.mark.parametrize("dropout", [0.25, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest_so_that_the_mean_stays(dropout):
    layer, x = dropping(dropout), np.ones((2000, 50), np.float32)
    y = layer(x)
    kept = np.float32(1) / np.float32(1 - dropout)
    assert set(np.unique(y)) == {0, kept}
    error = 4 * math.sqrt(dropout * (1 - dropout) / y.size)  # four standard errors
    assert abs((y == 0).mean() - dropout) < error
    assert abs(y.mean(dtype=np.float64) - 1) < error / (1 - dropout)


def test_dropout_acts_in_training_mode_only():
    layer, x = dropping(0.5), np.ones((4, 50), np.float32)
    assert (layer(x) == 0).any()
    assert layer.eval() is layer
    assert np.array_equal(layer(x), x)
    assert not dropping(0.5).eval().training
    assert not LoraLinear(np.eye(3, dtype=np.float32), LoraConfig(rank=1, dropout=0.5)).training


def test_dropout_leaves_the_base_and_the_merged_layer_alone():
    layer, w, *_ = make(dropout=0.9)
    (x,) = arrays((5, IN), seed=1)
    plain = layer(x)
    layer.train()
    assert not np.allclose(layer(x), plain)
    with layer.disabled():
        assert np.allclose(layer(x), x @ w.T, atol=1e-5)
    layer.merge()
    assert np.allclose(layer(x), plain, atol=1e-5)


def test_a_dropout_of_one_drops_the_whole_input_of_the_adapter():
    layer, *_ = make(dropout=1.0)
    (x,) = arrays((5, IN), seed=1)
    with layer.disabled():
        base = layer(x)
    assert np.array_equal(layer.train()(x), base)
    assert not np.array_equal(layer.eval()(x), base)


def test_dropout_of_zero_draws_nothing():
    layer, *_ = make(dropout=0.0)
    (x,) = arrays((5, IN), seed=1)
    assert np.array_equal(layer.train()(x), layer.eval()(x))


def test_dropout_is_reproducible_by_its_seed_and_fresh_at_every_call():
    x = np.ones((3, 50), np.float32)
    one, same, other = dropping(0.5, seed=1), dropping(0.5, seed=1), dropping(0.5, seed=2)
    first, second = one(x), one(x)
    assert np.array_equal(first, same(x))
    assert np.array_equal(second, same(x))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other(x))


# --- settings and counts


def test_rank_and_alpha_are_a_short_way_to_write_a_config():
    (w,) = arrays((OUT, IN))
    layer = LoraLinear(w, rank=4, alpha=8)
    assert layer.config == LoraConfig(rank=4, alpha=8)
    assert (layer.rank, layer.alpha, layer.scaling) == (4, 8, 2)
    assert LoraLinear(w, rank=4).scaling == 1


def test_rslora_multiplies_the_update_by_the_root_of_the_rank():
    plain, *_ = make(np.float64, rank=4)
    stable = LoraLinear(plain.weight, replace(plain.config, use_rslora=True))
    stable.lora_a, stable.lora_b = plain.lora_a, plain.lora_b
    assert np.allclose(stable.delta_weight(), math.sqrt(4) * plain.delta_weight(), rtol=1e-14)


def test_counts_are_those_of_the_arrays():
    layer, *_ = make(bias=True)
    assert layer.trainable_count == layer.lora_a.size + layer.lora_b.size == RANK * (IN + OUT)
    assert layer.total_count == layer.trainable_count + OUT * IN + OUT
    assert layer.trainable_ratio == layer.trainable_count / layer.total_count
    square = LoraLinear(np.zeros((4096, 4096), np.float16), rank=8)
    assert square.trainable_count == 65_536
    assert f"{square.trainable_count / square.base_size:.3%}" == "0.391%"


def test_the_rank_may_be_as_large_as_the_smaller_side_and_no_larger():
    (w,) = arrays((OUT, IN))
    assert LoraLinear(w, rank=IN).rank == IN
    with pytest.raises(ValueError, match=rf"rank must be between 1 and min\(out, in\) = {IN}, got {IN + 1}"):
        LoraLinear(w, rank=IN + 1)


def test_a_merge_that_would_overflow_float16_is_refused_and_changes_nothing():
    layer = LoraLinear(np.full((4, 4), 60000, np.float16), rank=1, alpha=1)
    layer.lora_a, layer.lora_b = np.ones((1, 4)), np.full((4, 1), 9000.0)
    with pytest.raises(ValueError, match="does not fit into float16; merge over a float32 weight"):
        layer.merge()
    assert not layer.merged
