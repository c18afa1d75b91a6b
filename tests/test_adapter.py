r"""`LoraAdapter`, its summary in the format of PEFT, and switching adapters over one base."""

import re

import numpy as np
import pytest

from lora_edu import AdapterSwitch, LoraAdapter, LoraConfig, LoraLinear, QLoraLinear


def weights(dtype=np.float32, **shapes):
    rng = np.random.default_rng(0)
    shapes = shapes or {"q": (12, 8), "k": (12, 8), "v": (10, 8)}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def roberta():
    r"""Query and value of the twelve layers of RoBERTa-base, 768 x 768 each."""
    base = np.zeros((768, 768), np.float16)
    prefix = "roberta.encoder.layer"
    names = [f"{prefix}.{i}.attention.self.{part}" for i in range(12) for part in ("query", "key", "value")]
    return dict.fromkeys(names, base)


def give_b(adapter, seed=1):
    rng = np.random.default_rng(seed)
    for name in adapter:
        adapter[name].lora_b = rng.normal(size=adapter[name].lora_b.shape)


def test_query_and_value_of_roberta_base_have_the_published_count():
    adapter = LoraAdapter.over(roberta(), LoraConfig(rank=8, target_modules=["query", "value"]))
    assert len(adapter) == 24
    assert adapter.trainable_count == 294_912  # Hu et al. 2021: 0.3 M
    assert adapter.total_count == 24 * 768 * 768 + 294_912
    assert adapter.trainable_ratio == 294_912 / 14_450_688
    assert adapter.summary().trainable_line == (
        "trainable params: 294,912 || all params: 14,450,688 || trainable%: 2.0408"
    )


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        (["query", "value"], 24),
        (["query"], 12),
        (["0.attention.self.query"], 1),  # a dotted suffix: ".10." ends in another way
        (r".*\.(query|key)", 24),
        (r".*layer\.1\..*", 3),
        ("all-linear", 36),
    ],
)
def test_the_targets_decide_which_weights_are_adapted(targets, count):
    config = LoraConfig(rank=1, target_modules=targets)
    adapter = LoraAdapter.over(roberta(), config)
    assert len(adapter) == count
    assert adapter.names == [name for name in roberta() if config.selects(name)]


def test_no_weight_is_copied():
    base = weights()
    adapter = LoraAdapter.over(base, LoraConfig(rank=2))
    assert all(np.shares_memory(adapter[name].weight, base[name]) for name in base)


@pytest.mark.parametrize(
    ("targets", "rule"),
    [
        (["q", "v"], "target_modules ['q', 'v'] (exact name or dotted suffix) does not select 'k'"),
        ("q|v", "the regular expression 'q|v' (whole name) does not select 'k'"),
    ],
)
def test_a_name_that_is_not_selected_is_refused_with_the_rule(targets, rule):
    adapter = LoraAdapter(LoraConfig(rank=2, target_modules=targets))
    with pytest.raises(ValueError, match=re.escape(rule)):
        adapter.add("k", LoraLinear(weights()["k"], rank=2))
    assert len(adapter) == 0


def test_layers_are_found_by_name_in_the_order_they_were_added():
    adapter = LoraAdapter(LoraConfig(rank=2))
    base = weights()
    layers = {name: LoraLinear(base[name], rank=2) for name in ("v", "q")}
    for name, layer in layers.items():
        adapter.add(name, layer)
    assert adapter.names == list(adapter) == ["v", "q"]
    assert adapter.get("q") is adapter["q"] is layers["q"]
    assert "q" in adapter
    assert "k" not in adapter
    x = np.ones((3, 8), np.float32)
    assert np.array_equal(adapter.forward("v", x), layers["v"](x))


def test_one_layer_under_two_names_is_refused_since_it_would_count_and_merge_twice():
    adapter = LoraAdapter(LoraConfig(rank=2))
    layer = LoraLinear(weights()["q"], rank=2)
    adapter.add("q", layer)
    with pytest.raises(ValueError, match="this layer is already in the adapter as 'q'"):
        adapter.add("k", layer)


def test_merging_all_and_back_restores_every_weight():
    base = weights()
    adapter = LoraAdapter.over(base, LoraConfig(rank=2))
    give_b(adapter)
    x = np.ones((3, 8), np.float32)
    before = {name: adapter.forward(name, x) for name in adapter}
    adapter.merge_all()
    for name in adapter:
        assert adapter[name].merged
        assert np.allclose(adapter.forward(name, x), before[name], atol=1e-5)
        assert not np.array_equal(adapter[name].weight, base[name])
    adapter.unmerge_all()
    for name in adapter:
        assert adapter[name].weight.tobytes() == base[name].tobytes()
        assert np.array_equal(adapter.forward(name, x), before[name])


def test_merging_all_without_the_bases_passes_the_wish_on():
    base = weights()
    adapter = LoraAdapter.over(base, LoraConfig(rank=2))
    give_b(adapter)
    adapter.merge_all(keep_base=False)
    adapter.unmerge_all()
    assert not any(np.shares_memory(adapter[name].weight, base[name]) for name in base)


@pytest.mark.parametrize("fault", ["merged", "four bits"])
def test_merging_all_changes_nothing_when_the_last_layer_cannot_be_merged(fault):
    base = weights()
    adapter = LoraAdapter(LoraConfig(rank=2))
    adapter.add("q", LoraLinear(base["q"], rank=2))
    adapter.add("v", LoraLinear(base["v"], rank=2) if fault == "merged" else QLoraLinear(base["v"], rank=2))
    if fault == "merged":
        adapter["v"].merge()
    with pytest.raises(RuntimeError, match=r"layer 'v' .*; nothing was changed"):
        adapter.merge_all()
    assert not adapter["q"].merged


def test_unmerging_all_changes_nothing_when_the_last_layer_is_not_merged():
    adapter = LoraAdapter.over(weights(), LoraConfig(rank=2))
    adapter.merge_all()
    adapter["v"].unmerge()
    with pytest.raises(RuntimeError, match="layer 'v' is not merged; nothing was changed"):
        adapter.unmerge_all()
    assert adapter["q"].merged


def test_disabling_reaches_every_layer_and_the_context_manager_restores_each():
    adapter = LoraAdapter.over(weights(), LoraConfig(rank=2))
    adapter["k"].disable()
    with pytest.raises(ZeroDivisionError), adapter.disabled() as inside:
        assert inside is adapter
        assert not any(adapter[name].enabled for name in adapter)
        _ = 1 / 0
    assert [adapter[name].enabled for name in adapter] == [True, False, True]
    adapter.disable()
    assert not any(adapter[name].enabled for name in adapter)
    adapter.enable()
    assert all(adapter[name].enabled for name in adapter)


def test_four_bit_and_float_layers_stand_side_by_side():
    base = weights()
    adapter = LoraAdapter(LoraConfig(rank=2))
    adapter.add("q", LoraLinear(base["q"], rank=2))
    adapter.add("v", QLoraLinear(base["v"], rank=3))
    assert adapter.trainable_count == 2 * (12 + 8) + 3 * (10 + 8)
    assert adapter.total_count == adapter.trainable_count + 12 * 8 + 10 * 8


# --- the summary


def test_the_summary_prints_as_an_aligned_table():
    base = weights(**{"layer.q": (200, 100), "layer.value": (1000, 2000)})
    text = str(LoraAdapter.over(base, LoraConfig(rank=4)).summary())
    assert text.splitlines() == [
        "layer           out x in  rank  trainable        all  trainable%",
        "----------------------------------------------------------------",
        "layer.q        200 x 100     4      1,200     21,200      5.6604",
        "layer.value  1000 x 2000     4     12,000  2,012,000      0.5964",
        "----------------------------------------------------------------",
        "trainable params: 13,200 || all params: 2,033,200 || trainable%: 0.6492",
    ]


def test_the_summary_renders_as_a_table_in_a_notebook():
    html = LoraAdapter.over(weights(), LoraConfig(rank=2)).summary()._repr_html_()
    assert html.startswith("<table>")
    assert html.endswith("</table>")
    assert html.count("<tr>") == html.count("</tr>") == 4
    assert html.count("<td>") == 3 * 6
    assert "<td>12 x 8</td>" in html
    assert "trainable params: 116 ||" in html


def test_a_name_that_looks_like_markup_is_shown_and_not_rendered():
    adapter = LoraAdapter(LoraConfig(rank=2))
    adapter.add("<b>q & v</b>", LoraLinear(weights()["q"], rank=2))
    html = adapter.summary()._repr_html_()
    assert "<b>" not in html
    assert "<td>&lt;b&gt;q &amp; v&lt;/b&gt;</td>" in html
    assert "<b>q & v</b>" in str(adapter.summary())


def test_totals_of_the_summary_are_those_of_the_adapter():
    adapter = LoraAdapter.over(weights(), LoraConfig(rank=2))
    summary = adapter.summary()
    for name in ("trainable_count", "total_count", "trainable_ratio"):
        assert getattr(summary, name) == getattr(adapter, name)


# --- several adapters over one base


def test_adapters_are_switched_over_one_base_that_is_held_once():
    base = weights()
    switch = AdapterSwitch(base)
    one = switch.register("one", LoraConfig(rank=2, target_modules=["q", "v"]))
    two = switch.register("two", LoraConfig(rank=4, alpha=1, target_modules="q"))
    assert switch.names == ["one", "two"]
    give_b(one), give_b(two, seed=2)
    for adapter in (one, two):
        assert all(np.shares_memory(adapter[name].weight, base[name]) for name in adapter)
    x = np.ones((3, 8), np.float32)
    assert switch.active is one  # the first one registered
    outputs = {}
    for name, adapter in (("one", one), ("two", two)):
        assert switch.use(name) is switch.active is adapter
        outputs[name] = switch.forward("q", x)
        assert np.array_equal(outputs[name], adapter.forward("q", x))
    assert not np.allclose(outputs["one"], outputs["two"])
    assert switch.use("one") is one
    assert np.array_equal(switch.forward("q", x), outputs["one"])


def test_merging_one_adapter_does_not_reach_the_other_or_the_base():
    base = weights()
    before = {name: w.tobytes() for name, w in base.items()}
    switch = AdapterSwitch(base)
    one, two = (switch.register(name, LoraConfig(rank=2)) for name in ("one", "two"))
    give_b(one)
    x = np.ones(8, np.float32)
    expected = two.forward("q", x)
    one.merge_all(keep_base=False)
    assert np.array_equal(two.forward("q", x), expected)
    assert {name: w.tobytes() for name, w in base.items()} == before


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_layer_that_the_active_adapter_does_not_target_computes_its_base(fan_in_fan_out, dtype):
    base = weights(dtype, q=(8, 8), k=(8, 8))
    switch = AdapterSwitch(base)
    switch.register("one", LoraConfig(rank=2, target_modules=["q"], fan_in_fan_out=fan_in_fan_out))
    x = np.random.default_rng(1).normal(size=(3, 8)).astype(dtype)
    y = switch.forward("k", x)
    untouched = LoraLinear(base["k"], LoraConfig(rank=1, fan_in_fan_out=fan_in_fan_out))
    assert np.array_equal(y, untouched(x))
    assert y.dtype == dtype
    truth = x.astype(float) @ (base["k"].astype(float) if fan_in_fan_out else base["k"].astype(float).T)
    assert np.allclose(y, truth, rtol=0, atol=16 * np.finfo(dtype).eps)


def test_a_layer_that_does_not_fit_the_config_is_named():
    with pytest.raises(ValueError, match="layer 'small': rank must be between 1 and min"):
        LoraAdapter.over({"small": np.ones((2, 2), np.float32)}, LoraConfig(rank=3))
