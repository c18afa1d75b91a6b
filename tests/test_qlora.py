r"""`QLoraLinear`: a `LoraLinear` over the dequantized weight, and what it costs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_edu import LoraConfig, LoraLinear, QLoraLinear, codebooks, dequantize, qlora, quantize


def pair(out, in_, dtype=np.float32, bias=False, rank=2, block_size=64, nibble_order="low-first", **settings):
    r"""A 4-bit layer and the float layer over what its codes stand for, with one A and B."""
    rng = np.random.default_rng(0)
    config = LoraConfig(rank=rank, alpha=3.0, **settings)
    shape = (in_, out) if config.fan_in_fan_out else (out, in_)
    w, c = rng.normal(size=shape).astype(dtype), rng.normal(size=out).astype(dtype) if bias else None
    four = QLoraLinear(w, config, bias=c, block_size=block_size, nibble_order=nibble_order)
    full = LoraLinear(four.dequantized_weight(), config, bias=c, seed=137 + out + in_)
    four.lora_b = full.lora_b = rng.normal(size=(out, rank))
    return four, full, w


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 70),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["low-first", "high-first"]),
    st.sampled_from([(), (1,), (4,), (2, 3), (0,)]),
)
@settings(max_examples=80, deadline=None)
def test_forward_is_that_of_a_float_layer_over_the_dequantized_weight(
    out, in_, block_size, dtype, fan_in_fan_out, bias, order, batch
):
    four, full, _ = pair(out, in_, dtype, bias, 1, block_size, order, fan_in_fan_out=fan_in_fan_out, use_rslora=True)
    x = np.random.default_rng(1).normal(size=(*batch, in_)).astype(dtype)
    y, truth = four(x), full(x)
    assert (y.shape, y.dtype) == (truth.shape, truth.dtype)
    scale = 1 + np.abs(full.weight).sum(0 if fan_in_fan_out else 1).max() * (np.abs(x).max() if x.size else 1)
    assert np.abs(y - truth).max(initial=0) <= 8 * np.finfo(dtype).eps * scale
    assert np.array_equal(four.lora_a, full.lora_a)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_weights_longer_than_a_tile_are_computed_whole(fan_in_fan_out, monkeypatch):
    monkeypatch.setattr(qlora, "TILE_WEIGHTS", 9 * 32)  # 32 rows at a time
    rows = 2 * 32 + 3
    out, in_ = (9, rows) if fan_in_fan_out else (rows, 9)
    four, full, _ = pair(out, in_, fan_in_fan_out=fan_in_fan_out, block_size=50)
    x = np.random.default_rng(1).normal(size=(4, in_)).astype(np.float32)
    assert np.allclose(four(x), full(x), rtol=1e-5, atol=1e-4)


def test_another_base_is_told_from_the_dequantized_one():
    four, full, w = pair(20, 30)
    x = np.random.default_rng(1).normal(size=(4, 30)).astype(np.float32)
    unquantized = LoraLinear(w, full.config, seed=137 + 50)
    unquantized.lora_b = full.lora_b
    assert np.abs(four(x) - unquantized(x)).max() > 1000 * np.abs(four(x) - full(x)).max()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_base_is_the_quantized_weight_and_nothing_of_the_weight_is_kept(dtype):
    four, _, w = pair(13, 21, dtype, block_size=32, nibble_order="high-first")
    q = quantize(w, 32, nibble_order="high-first")
    assert four.packed.tobytes() == q.packed.tobytes()
    assert four.absmax.tobytes() == q.absmax.tobytes()
    assert np.array_equal(four.dequantized_weight(), dequantize(q))
    assert four.dequantized_weight().dtype == dtype
    assert not any(np.shares_memory(value, w) for value in vars(four).values() if isinstance(value, np.ndarray))


def test_the_default_seed_differs_from_that_of_a_float_layer():
    w = np.zeros((8, 6), np.float32)
    assert np.array_equal(QLoraLinear(w, rank=2).lora_a, LoraLinear(w, rank=2, seed=137 + 14).lora_a)
    assert not np.array_equal(QLoraLinear(w, rank=2).lora_a, LoraLinear(w, rank=2).lora_a)


@pytest.mark.parametrize("shape", [(64, 64), (3, 64), (128, 40), (1, 192)])
def test_whole_blocks_of_64_cost_four_and_a_half_bits_a_weight(shape):
    layer = QLoraLinear(np.ones(shape, np.float32), rank=1)
    assert layer.base_size % 64 == 0
    assert layer.bits_per_weight == 4.5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_bytes_are_counted_by_closed_formulas(out, in_, block_size):
    layer = QLoraLinear(np.ones((out, in_), np.float32), rank=1, block_size=block_size)
    n = out * in_
    blocks, code_bytes = -(-n // block_size), -(-n // 2)
    assert (layer.block_count, layer.block_size, layer.base_size) == (blocks, block_size, n)
    assert layer.base_bytes == code_bytes + 4 * blocks == layer.packed.nbytes + layer.absmax.nbytes
    assert layer.bits_per_weight == 8 * layer.base_bytes / n
    assert layer.memory_saved == 4 * n - (code_bytes + 4 * blocks)
    assert layer.memory_saved_with_zero_points == 4 * n - (code_bytes + 8 * blocks)  # the reference's figure
    assert layer.adapter_bytes == 4 * (in_ + out) == 4 * layer.trainable_count
    assert layer.total_count == n + layer.trainable_count


def test_the_adapter_of_a_float64_base_has_eight_bytes_a_number():
    assert QLoraLinear(np.ones((5, 4)), rank=2).adapter_bytes == 8 * 2 * 9


def test_disabling_dropout_and_setters_are_those_of_a_float_layer():
    four, full, _ = pair(20, 30, dropout=0.5)
    x = np.random.default_rng(1).normal(size=(4, 30)).astype(np.float32)
    assert np.allclose(four.train()(x), full.train()(x), atol=1e-4)  # the same seed drops the same inputs
    with four.disabled(), full.disabled():
        assert np.allclose(four(x), full(x), atol=1e-4)
    assert np.array_equal(four.delta_weight(), full.delta_weight())
    with pytest.raises(ValueError, match=r"lora_a must have shape \(2, 30\), got \(30, 2\)"):
        four.lora_a = np.zeros((30, 2), np.float32)


@pytest.mark.parametrize("keep_base", [True, False])
def test_merging_is_refused_with_the_way_that_works(keep_base):
    four, *_ = pair(20, 30)
    with pytest.raises(RuntimeError, match="Merge in float instead"):
        four.merge(keep_base)
    merged = LoraLinear(four.dequantized_weight(), four.config)  # what the message says
    merged.lora_a, merged.lora_b = four.lora_a, four.lora_b
    merged.merge()
    x = np.random.default_rng(1).normal(size=(4, 30)).astype(np.float32)
    assert np.allclose(merged(x), four(x), atol=1e-4)


def test_any_codebook_serves_as_base():
    even = codebooks.Codebook("even", np.arange(-8, 8) / 8)
    w = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    layer = QLoraLinear(w, rank=1, codebook=even)
    assert np.array_equal(layer.dequantized_weight(), dequantize(quantize(w, codebook=even)))
    assert not np.array_equal(layer.dequantized_weight(), QLoraLinear(w, rank=1).dequantized_weight())
