r"""PiSSA, OLoRA and LoftQ keep the promise W ≈ base + scaling · B A."""

import numpy as np
import pytest

from lora_edu import LoraConfig, LoraLinear, QLoraLinear, dequantize, quantize, relative_error
from lora_edu.initialise import loftq, olora, pissa

RNG = np.random.default_rng(5)
W = RNG.normal(size=(64, 96)).astype(np.float32)
# singular values that fall like 1/k, as those of trained weights do
U, _, VT = np.linalg.svd(W, full_matrices=False)
FALLING = ((U / np.arange(1, 65)) @ VT).astype(np.float32)
CONFIGS = [LoraConfig(rank=8, alpha=8), LoraConfig(rank=8, alpha=32), LoraConfig(rank=8, alpha=2, use_rslora=True)]


@pytest.mark.parametrize("start", [pissa, olora])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"scaling {c.scaling:.3g}")
def test_the_layer_starts_where_the_weight_was(start, config):
    made = start(W, config)
    restored = made.base + config.scaling * made.lora_b @ made.lora_a
    assert np.abs(restored - W).max() < 2e-6
    layer = made.layer(config)
    x = RNG.normal(size=(3, 96)).astype(np.float32)
    assert isinstance(layer, LoraLinear)
    assert np.allclose(layer(x), x @ W.T, rtol=1e-4, atol=1e-4)


def test_pissa_takes_the_principal_part():
    made = pissa(W, CONFIGS[1])
    singular = np.linalg.svd(W, compute_uv=False)
    assert np.allclose(np.linalg.svd(made.base, compute_uv=False)[:56], singular[8:], rtol=1e-4)
    assert np.allclose((made.lora_a**2).sum(axis=1), (made.lora_b**2).sum(axis=0), rtol=1e-4)  # of equal length


def test_olora_s_b_is_orthonormal():
    made = olora(W, CONFIGS[0])
    assert np.allclose(made.lora_b.T @ made.lora_b, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("start", [pissa, olora])
def test_a_weight_stored_in_out_gives_the_same_pair(start):
    turned, straight = start(W.T, LoraConfig(rank=8, alpha=32, fan_in_fan_out=True)), start(W, CONFIGS[1])
    assert np.allclose(turned.base, straight.base.T, atol=1e-6)
    assert np.allclose(turned.lora_b @ turned.lora_a, straight.lora_b @ straight.lora_a, atol=1e-6)


def test_loftq_quantizes_a_weight_stored_in_out_as_it_is_stored():
    config = LoraConfig(rank=8, alpha=32, fan_in_fan_out=True)
    made = loftq(W.T, config)
    assert (made.base == dequantize(quantize(np.ascontiguousarray(W.T)))).all()
    restored = made.base.T + config.scaling * made.lora_b @ made.lora_a
    assert relative_error(W, restored) < relative_error(W, made.base.T)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"scaling {c.scaling:.3g}")
def test_loftq_is_nearer_than_four_bits_alone_whatever_the_scaling(config):
    alone = relative_error(W, dequantize(quantize(W)))
    once, often = loftq(W, config), loftq(W, config, steps=5)
    errors = [relative_error(W, s.base + config.scaling * s.lora_b @ s.lora_a) for s in (once, often)]
    assert errors[1] < errors[0] < alone


def test_loftq_without_the_division_starts_elsewhere():
    config = CONFIGS[1]
    made = loftq(W, config)
    undivided = made.base + config.scaling * (config.scaling * made.lora_b @ made.lora_a)  # PEFT's A and B
    alone = relative_error(W, made.base)
    assert (
        relative_error(W, undivided) > alone > relative_error(W, made.base + config.scaling * made.lora_b @ made.lora_a)
    )


def test_a_four_bit_layer_holds_just_the_codes_that_loftq_chose():
    config = CONFIGS[1]
    made = loftq(W, config, steps=3)
    layer = made.layer(config, QLoraLinear)
    assert (layer.dequantized_weight() == made.base).all()


def test_four_bits_of_the_rest_lose_less_than_four_bits_of_the_weight():
    config = LoraConfig(rank=16, alpha=32)
    made = pissa(FALLING, config)
    rest = dequantize(quantize(made.base)) + config.scaling * made.lora_b @ made.lora_a
    assert relative_error(FALLING, rest) < 0.6 * relative_error(FALLING, dequantize(quantize(FALLING)))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("start", [pissa, olora, loftq])
def test_the_dtype_of_the_weight_stays(start, dtype):
    made = start(W.astype(dtype), CONFIGS[0])
    assert made.base.dtype == dtype
    assert made.lora_a.dtype == made.lora_b.dtype == np.result_type(dtype, np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pissa(W[:4], CONFIGS[0]), "rank must be between 1 and min(out, in) = 4, got 8"),
        (lambda: olora(W[0], CONFIGS[0]), "weight must be a matrix (out, in) that is not empty"),
        (lambda: loftq(W, CONFIGS[0], steps=0), "steps must be at least 1, got 0"),
        (lambda: pissa(np.full((8, 8), np.nan), CONFIGS[0]), "weight must be finite, but weight[0, 0] = nan"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert message in str(caught.value)
