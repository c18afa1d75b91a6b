r"""`LoraConfig`: what it accepts, how it scales, which layers it selects, and its way through JSON."""

import json
import math
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_edu import LoraConfig

names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
configs = st.builds(
    LoraConfig,
    rank=st.integers(1, 10**6),
    alpha=st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
    dropout=st.floats(0, 1),
    target_modules=st.one_of(
        st.sampled_from(["all-linear", r".*\.(q|v)_proj", "query"]), st.lists(names, min_size=1, max_size=4)
    ),
    fan_in_fan_out=st.booleans(),
    use_rslora=st.booleans(),
    init=st.sampled_from(["reference", "kaiming", "gaussian"]),
)


@given(configs)
def test_json_gives_the_same_settings_back(config):
    assert LoraConfig.from_json(config.to_json()) == config


def test_json_is_one_plain_object_that_names_every_setting():
    assert sorted(json.loads(LoraConfig().to_json())) == sorted(field.name for field in fields(LoraConfig))


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        LoraConfig().rank = 4


def test_replace_makes_a_changed_copy_and_checks_it_again():
    config = LoraConfig(rank=8, alpha=16)
    assert replace(config, rank=4).scaling == 4
    assert config.rank == 8
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        replace(config, rank=0)


def test_equal_settings_are_equal_and_hash_alike():
    one, other = LoraConfig(target_modules=["q", "v"]), LoraConfig(target_modules=("q", "v"))
    assert one == other
    assert hash(one) == hash(other)
    assert one != LoraConfig(target_modules=["v", "q"])


def test_numpy_numbers_become_plain_ones():
    config = LoraConfig(rank=np.int64(4), alpha=np.float32(0.5), dropout=np.float64(0.25))
    assert [type(value) for value in (config.rank, config.alpha, config.dropout)] == [int, float, float]
    assert LoraConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("dropout", [0, 1, 0.5])
def test_dropout_may_be_anything_from_nothing_to_all(dropout):
    assert LoraConfig(dropout=dropout).dropout == dropout


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (8, 16), (16, 16), (64, 16), (3, 2.5)])
def test_scaling_is_alpha_over_rank_or_over_its_root_with_rslora(rank, alpha):
    assert LoraConfig(rank=rank, alpha=alpha).scaling == alpha / rank
    assert LoraConfig(rank=rank, alpha=alpha, use_rslora=True).scaling == alpha / math.sqrt(rank)


BERT = [
    "encoder.layer.0.attention.self.query",
    "encoder.layer.0.attention.self.value",
    "encoder.layer.0.attention.output.dense",
    "query",
    "my_query",
]


@pytest.mark.parametrize(
    ("targets", "selected"),
    [
        ("all-linear", [0, 1, 2, 3, 4]),
        ("All-Linear", [0, 1, 2, 3, 4]),  # PEFT compares in lower case
        (["query"], [0, 3]),  # a dotted suffix or the exact name: not "my_query"
        (["query", "value"], [0, 1, 3]),
        (["self.query"], [0]),
        (["output.dense"], [2]),
        (["dense.output"], []),
        (["."], []),
        (["encoder"], []),  # a prefix does not select
        (["q.ery"], []),  # in a list a dot is a dot
        ("query", [3]),  # a regular expression has to match the whole name
        ("q.ery", [3]),
        (r".*query", [0, 3, 4]),
        (r".*\.(query|value)", [0, 1]),
        (r"encoder", []),
    ],
)
def test_targets_select_by_the_rule_of_peft(targets, selected):
    config = LoraConfig(target_modules=targets)
    assert [i for i, name in enumerate(BERT) if config.selects(name)] == selected
