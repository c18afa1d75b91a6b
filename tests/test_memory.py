r"""What training holds, against published sizes and against the arrays of the small models."""

from itertools import pairwise

import numpy as np
import pytest

from lora_edu import LoraConfig
from lora_edu.datasets.name_lists import encode_names, names
from lora_edu.memory import DOUBLE_QUANT_BITS, LLAMA, Memory, ModelShape, llama, measured_memory, training_memory
from lora_edu.models.adapting import prepare
from lora_edu.models.transformer import QUERY_VALUE, CharTransformer
from lora_edu.training import Adam, minibatches, train

GB = 1e9


@pytest.mark.parametrize(
    ("size", "count"),  # of the released weights
    [("7B", 6_738_415_616), ("13B", 13_015_864_320), ("33B", 32_528_943_616), ("65B", 65_285_660_672)],
)
def test_the_shapes_give_the_published_numbers_of_parameters(size, count):
    assert LLAMA[size].count == count


def test_adapters_of_published_sizes():
    assert LLAMA["7B"].adapter_count(8, QUERY_VALUE) == 4_194_304
    assert [LLAMA["7B"].adapter_count(rank) for rank in (8, 16, 64)] == [19_988_480, 39_976_960, 159_907_840]
    attention = {name: (12_288, 12_288) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    gpt3 = ModelShape("GPT-3", attention, 96, 0)
    assert gpt3.adapter_count(4, QUERY_VALUE) == 18_874_368  # "roughly 35MB" in LoRA, section 4.2
    assert gpt3.adapter_count(4, QUERY_VALUE) * 2 / 2**20 == 36
    assert gpt3.adapter_count(8, QUERY_VALUE) == gpt3.adapter_count(4) == 37_748_736  # "37.7M"
    with pytest.raises(ValueError, match=r"targets must name some of q_proj, .*, got \('query',\)"):
        gpt3.adapter_count(4, ("query",))
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        gpt3.adapter_count(0)


def test_figures_of_the_qlora_paper():
    full = training_memory(LLAMA["65B"], "full")
    assert full.total == 12 * LLAMA["65B"].count > 780 * GB  # "more than 780 GB"
    assert training_memory(LLAMA["65B"], "QLoRA", 64).total < 48 * GB  # "on a single 48GB GPU"
    assert 0.002 * LLAMA["7B"].count * 2 / 1e6 == pytest.approx(26.95, abs=0.01)  # "26 MB"
    assert DOUBLE_QUANT_BITS == 4.126953125  # 0.127 bits for the scales instead of 0.5
    saved = (
        training_memory(LLAMA["65B"], "QLoRA", weight_bits=4.5).weights - training_memory(LLAMA["65B"], "QLoRA").weights
    )
    assert saved / GB == pytest.approx(3.02, abs=0.01)  # "approximately 3 GB for a 65B model"


def test_what_the_formula_leaves_out_shows_in_the_papers_table():
    """Its table 6 gives 5, 10, 21 and 41 GB: more than the weights alone, for reasons it does not give."""
    weights = [training_memory(LLAMA[size], "QLoRA").weights / GB for size in LLAMA]
    gaps = [paper - held for paper, held in zip((5, 10, 21, 41), weights, strict=True)]
    assert all(gap > 0 for gap in gaps)
    assert all(low < high for low, high in pairwise(gaps))


def test_the_parts_of_each_method():
    shape = llama("tiny", 8, 2, 16, vocabulary=10)
    n, linear, a = shape.count, shape.linear_count, shape.adapter_count(2)
    assert (linear, n, a) == (2 * (4 * 64 + 3 * 128), linear + 160 + 40, 2 * 2 * (4 * 16 + 3 * 24))
    assert training_memory(shape, "full") == Memory(2 * n, 2 * n, 8 * n)
    assert training_memory(shape, "LoRA", 2) == Memory(2 * (n + a), 2 * a, 8 * a)
    assert training_memory(shape, "QLoRA", 2, weight_bits=4.5) == Memory(
        linear * 4.5 / 8 + 2 * (n - linear + a), 2 * a, 8 * a
    )
    assert shape.adapter_count(100) == shape.adapter_count(8)  # no more rank than a layer has
    with pytest.raises(ValueError, match="method must be one of full, LoRA, QLoRA, got 'magic'"):
        training_memory(shape, "magic")


@pytest.mark.parametrize("method", ["full", "LoRA", "QLoRA"])
@pytest.mark.parametrize("rank", [1, 8])
def test_the_formula_equals_the_arrays_of_the_name_transformer(method, rank):
    base = CharTransformer.pretrained()
    model = prepare(base, method, None if method == "full" else LoraConfig(rank=rank))
    optimizer = Adam(0.01)
    list(train(model, minibatches(*encode_names(names("male").train[:64]), steps=1), optimizer))
    linear = {name.split(".")[-1]: weight.shape for name, weight in base.linear_weights().items() if "blocks.0" in name}
    other = sum(a.size for n, a in base.parameters().items() if "_proj" not in n)
    shape = ModelShape("names", linear, 2, other)
    assert shape.count == 103_232
    expected = training_memory(shape, method, rank, float_bytes=4, weight_bits=4.5)
    assert measured_memory(model, optimizer) == expected
    if method != "full":
        assert np.isclose(expected.optimizer, 8 * shape.adapter_count(rank))
