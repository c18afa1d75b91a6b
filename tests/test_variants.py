r"""DoRA, LoRA with a bias of its own, LoRA under an embedding."""

import numpy as np
import pytest

from lora_edu import LoraConfig, LoraLinear
from lora_edu.variants import DoraLinear, LoraEmbedding, LoraLinearWithBias

RNG = np.random.default_rng(3)
W = RNG.normal(size=(6, 5)).astype(np.float32)
X = RNG.normal(size=(7, 5)).astype(np.float32)
CONFIG = LoraConfig(rank=2, alpha=6)


def dora(weight=W, config=CONFIG, **settings):
    layer = DoraLinear(weight, config, **settings)
    layer.lora_b = RNG.normal(size=(layer.out_features, 2))
    return layer


def close(x, y, tolerance=1e-5):
    return np.allclose(x, y, rtol=tolerance, atol=tolerance)


def test_dora_starts_as_its_base():
    layer = DoraLinear(W, CONFIG)
    assert close(layer(X), X @ W.T)
    assert close(layer.magnitude, np.linalg.norm(W, axis=1))
    assert layer.trainable_count == 2 * (6 + 5) + 6


@pytest.mark.parametrize("turned", [False, True])
def test_dora_rows_have_the_magnitudes_and_the_direction_of_lora(turned):
    config = LoraConfig(rank=2, alpha=6, fan_in_fan_out=turned)
    m = np.arange(1, 7, dtype=np.float32)
    layer = dora(W.T if turned else W, config, magnitude=m, bias=m)
    v = W + 3 * layer.lora_b @ layer.lora_a
    expected = (m / np.linalg.norm(v, axis=1))[:, None] * v
    assert close(layer(X), X @ expected.T + m)
    assert close(layer.delta_weight(), (expected - W).T if turned else expected - W)
    layer.merge(keep_base=False)
    assert close(layer.weight, expected.T if turned else expected)
    assert close(layer(X), X @ expected.T + m)
    with layer.disabled():
        assert close(layer(X), X @ W.T + m)
    layer.unmerge()
    assert (layer.weight == (W.T if turned else W)).all()


def test_a_row_without_direction_stays_zero():
    w = W.copy()
    w[2] = 0
    layer = DoraLinear(w, CONFIG, magnitude=np.ones(6, np.float32))
    assert (layer(X)[:, 2] == 0).all()


def test_dora_drops_out_its_change_only():
    layer = dora(config=LoraConfig(rank=2, alpha=6, dropout=1.0)).train()
    assert close(layer(X), X @ W.T)


def test_dora_over_float16_merges_in_float32_first():
    layer = dora(W.astype(np.float16))
    layer.merge()
    assert layer.weight.dtype == np.float16


def test_magnitudes_cannot_change_while_merged():
    layer = dora()
    layer.magnitude = np.full(6, 2, np.float32)
    assert close(np.linalg.norm(layer.weight + layer.delta_weight(), axis=1), 2)
    layer.merge()
    with pytest.raises(RuntimeError, match="magnitude cannot change while the adapter is merged"):
        layer.magnitude = np.ones(6, np.float32)


def test_the_bias_of_b_takes_part_only_with_the_adapter():
    beta = np.arange(6, dtype=np.float32)
    layer = LoraLinearWithBias(W, CONFIG, bias=np.ones(6, np.float32), lora_bias=beta)
    plain = LoraLinear(W, CONFIG, bias=np.ones(6, np.float32))
    assert close(layer(X), plain(X) + 3 * beta)
    assert close(layer.adapted_bias, 1 + 3 * beta)
    layer.merge()
    assert close(layer(X), plain(X) + 3 * beta)
    with layer.disabled():
        assert close(layer(X), plain(X))
    assert layer.trainable_count == plain.trainable_count + 6


def test_an_embedding_is_a_product_with_one_hot_vectors():
    config = LoraConfig(rank=2, alpha=6, fan_in_fan_out=True)
    table, product = LoraEmbedding(W, config), LoraLinear(W, config)  # 6 tokens, width 5
    for layer in (table, product):
        layer.lora_b = np.arange(10).reshape(5, 2).astype(np.float32)
    tokens = np.array([[0, 5], [3, 3]])
    expected = product(np.eye(6, dtype=np.float32)[tokens])
    assert close(table(tokens), expected)
    table.merge()
    assert close(table(tokens), expected)
    with table.disabled():
        assert (table(tokens) == W[tokens]).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LoraEmbedding(W, CONFIG), ValueError, "config.fan_in_fan_out must be True: an embedding's weight"),
        (lambda: embedding()([0.5]), TypeError, "tokens must be integers, got float64"),
        (lambda: embedding()([6]), ValueError, "tokens must lie in [0, 6), got 6 to 6"),
        (lambda: embedding()([-1, 2]), ValueError, "tokens must lie in [0, 6), got -1 to 2"),
        (lambda: dora(magnitude=np.ones(5, np.float32)), ValueError, "magnitude must have shape (6,), got (5,)"),
        (lambda: dora(magnitude=np.full(6, np.nan)), ValueError, "magnitude must be finite, but magnitude[0] = nan"),
        (
            lambda: LoraLinearWithBias(W, CONFIG, lora_bias=np.ones(2, np.float32)),
            ValueError,
            "lora_bias must have shape (6,), got (2,)",
        ),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def embedding():
    return LoraEmbedding(W, LoraConfig(rank=2, fan_in_fan_out=True))
