r"""Wrong calls, and the message each must give: the argument, its value, and what to do instead."""

import re
from dataclasses import replace

import numpy as np
import pytest

from lora_edu import (
    NF4,
    AdapterSwitch,
    Codebook,
    LoraAdapter,
    LoraConfig,
    LoraLinear,
    QLoraLinear,
    QuantizedTensor,
    SeededRng,
    bits_per_weight,
    dequantize,
    derive_nf4,
    effective_rank,
    max_error,
    quantize,
    relative_error,
    snr_db,
    truncate_svd,
    ulp_distance,
)
from lora_edu.blockwise import dequantize_range

W = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
Q = quantize(W, 4)


def spoiled(value, at=(2, 1), dtype=np.float64):
    w = W.astype(dtype)
    w[at] = value
    return w


def layer(weight=W, **settings):
    return LoraLinear(weight, LoraConfig(rank=2, **settings))


def merged_layer():
    made = layer()
    made.merge()
    return made


def assign(name, value, made=layer):
    return lambda: setattr(made(), name, value)


def adapter(*names, targets="all-linear"):
    made = LoraAdapter(LoraConfig(rank=2, target_modules=targets))
    for name in names:
        made.add(name, layer())
    return made


def switch():
    made = AdapterSwitch({"q": W, "k": W})
    made.register("one", LoraConfig(rank=1, target_modules=["q"]))
    return made


LEVELS = np.arange(-8, 8) / 8

WRONG = [
    # LoraConfig
    (lambda: LoraConfig(rank=0), ValueError, "rank must be at least 1, got 0"),
    (lambda: LoraConfig(rank=-3), ValueError, "rank must be at least 1, got -3"),
    (lambda: LoraConfig(rank=8.0), TypeError, "rank must be an integer, got 8.0 of type float"),
    (lambda: LoraConfig(rank=True), TypeError, "rank must be an integer, got True of type bool"),
    (lambda: LoraConfig(rank="8"), TypeError, "rank must be an integer, got '8' of type str"),
    (lambda: LoraConfig(alpha=0), ValueError, "alpha must be greater than 0, got 0"),
    (lambda: LoraConfig(alpha=-1.5), ValueError, "alpha must be greater than 0, got -1.5"),
    (lambda: LoraConfig(alpha=float("inf")), ValueError, "alpha must be finite, got inf"),
    (lambda: LoraConfig(alpha=float("nan")), ValueError, "alpha must be finite, got nan"),
    (lambda: LoraConfig(alpha=10**400), ValueError, "alpha must fit into a float, got 1000000"),
    (lambda: LoraConfig(alpha=True), TypeError, "alpha must be a number, got True of type bool"),
    (lambda: LoraConfig(alpha="16"), TypeError, "alpha must be a number, got '16' of type str"),
    (lambda: LoraConfig(dropout=1.5), ValueError, "dropout must lie in [0, 1], got 1.5"),
    (lambda: LoraConfig(dropout=-0.1), ValueError, "dropout must lie in [0, 1], got -0.1"),
    (lambda: LoraConfig(dropout=None), TypeError, "dropout must be a number, got None of type NoneType"),
    (lambda: LoraConfig(fan_in_fan_out=1), TypeError, "fan_in_fan_out must be True or False, got 1"),
    (lambda: LoraConfig(use_rslora="no"), TypeError, "use_rslora must be True or False, got 'no'"),
    (lambda: LoraConfig(init="xavier"), ValueError, "init must be one of reference, kaiming, gaussian, got 'xavier'"),
    (lambda: LoraConfig(target_modules=[]), ValueError, "target_modules must not be empty; use 'all-linear'"),
    (lambda: LoraConfig(target_modules=""), ValueError, "target_modules must not be empty; use 'all-linear'"),
    (lambda: LoraConfig(target_modules=["q", ""]), ValueError, "target_modules must hold non-empty names, got ''"),
    (lambda: LoraConfig(target_modules=["q", 3]), ValueError, "target_modules must hold non-empty names, got 3"),
    (lambda: LoraConfig(target_modules=7), TypeError, "target_modules must be a string or a sequence of names, got 7"),
    (lambda: LoraConfig(target_modules="q("), ValueError, "target_modules 'q(' is not a regular expression: missing )"),
    (lambda: replace(LoraConfig(), rank=0), ValueError, "rank must be at least 1, got 0"),
    (lambda: LoraConfig.from_json("{"), ValueError, "not a JSON text: "),
    (lambda: LoraConfig.from_json("[1]"), TypeError, "the JSON text must hold an object, got list"),
    (lambda: LoraConfig.from_json('{"r": 8}'), ValueError, "unknown key 'r'; known keys are rank, alpha, dropout"),
    (lambda: LoraConfig.from_json('{"alpha": NaN}'), ValueError, "alpha must be finite, got nan"),
    # SeededRng
    (lambda: SeededRng(1.0), TypeError, "seed must be an integer, got 1.0 of type float"),
    (lambda: SeededRng(2**64), ValueError, "seed must be below 2**64, got 18446744073709551616"),
    (
        lambda: SeededRng(-(2**63) - 1),
        ValueError,
        "seed must be at least -9223372036854775808, got -92233720368547758",
    ),
    (lambda: SeededRng(1).uniform((2, -1)), ValueError, "shape must be non-negative integers, got (2, -1)"),
    (lambda: SeededRng(1).uniform(2.5), ValueError, "shape must be non-negative integers, got 2.5"),
    # codebooks
    (lambda: Codebook("short", LEVELS[:14]), ValueError, "levels must be 15 or 16 numbers, got shape (14,)"),
    (lambda: Codebook("wide", 2 * LEVELS), ValueError, "levels must be finite and lie in [-1, 1], got [-2."),
    (lambda: Codebook("nan", [*LEVELS[:-1], np.nan]), ValueError, "levels must be finite and lie in [-1, 1]"),
    (lambda: Codebook("twice", [*LEVELS[:-1], 0.5]), ValueError, "levels must differ, but [0.5] occurs twice"),
    (lambda: Codebook("no zero", (np.arange(16) - 7.5) / 7.5), ValueError, "levels must contain 0 exactly"),
    (lambda: derive_nf4(1.0), ValueError, "offset must lie strictly between 0.5 and 1 (in float32), got 1.0"),
    (lambda: derive_nf4(0.5), ValueError, "offset must lie strictly between 0.5 and 1 (in float32), got 0.5"),
    (lambda: derive_nf4(0.5 + 1e-9), ValueError, "offset must lie strictly between 0.5 and 1 (in float32), got 0.500"),
    (lambda: derive_nf4(1 - 1e-9), ValueError, "offset must lie strictly between 0.5 and 1 (in float32), got 0.999"),
    # quantize
    (lambda: quantize(spoiled(np.nan)), ValueError, "weight must be finite, but weight[2, 1] = nan; repair or drop it"),
    (lambda: quantize(spoiled(-np.inf)), ValueError, "weight must be finite, but weight[2, 1] = -inf; repair or drop"),
    (
        lambda: quantize(spoiled(1e39)),
        ValueError,
        "weight must fit into float32, but weight[2, 1] = 1e+39; scale the weight down first",
    ),
    (lambda: quantize(spoiled(np.nan, dtype=np.float16)), ValueError, "weight must be finite, but weight[2, 1] = nan"),
    (
        lambda: quantize(np.arange(4, dtype=np.int32)),
        TypeError,
        "weight must be an array of float16, float32, float64, got int32; convert it with .astype",
    ),
    (lambda: quantize(np.array([1j])), TypeError, "weight must be an array of float16, float32, float64, got complex"),
    (lambda: quantize(np.zeros((0, 3), np.float32)), ValueError, "weight must not be empty, got shape (0, 3)"),
    (lambda: quantize(W, 0), ValueError, "block_size must be at least 1, got 0"),
    (lambda: quantize(W, 64.0), TypeError, "block_size must be an integer, got 64.0 of type float"),
    (lambda: quantize(W, codebook="nf4"), TypeError, "codebook must be a Codebook such as NF4, got 'nf4'"),
    (
        lambda: quantize(W, nibble_order="high"),
        ValueError,
        "nibble_order must be 'low-first' or 'high-first', got 'high'",
    ),
    # dequantize
    (
        lambda: dequantize(Q, np.empty((3, 4), np.float32)),
        ValueError,
        "out must be a C-contiguous, writeable float32 array of shape (4, 3), got float32 of shape (3, 4); make it",
    ),
    (lambda: dequantize(Q, np.empty((4, 3))), ValueError, "float32 array of shape (4, 3), got float64 of shape (4, 3)"),
    (lambda: dequantize(Q, np.empty((3, 4), np.float32).T), ValueError, "of shape (4, 3), not C-contiguous; make it"),
    (
        lambda: dequantize(Q, np.broadcast_to(np.float32(0), (4, 3))),
        ValueError,
        "of shape (4, 3), not C-contiguous, read only; make it with np.empty((4, 3), np.float32)",
    ),
    (lambda: dequantize(Q, [0.0]), TypeError, "out must be a NumPy array, got list"),
    (
        lambda: dequantize_range(Q, 0, 13, np.empty(13, np.float32)),
        ValueError,
        "start and stop must satisfy 0 <= start <= stop <= 12, got 0 and 13",
    ),
    (
        lambda: dequantize_range(Q, 3, 6, np.empty(4, np.float32)),
        ValueError,
        "out must be a C-contiguous, writeable float32 array of shape (3,), got float32 of shape (4,)",
    ),
    # QuantizedTensor
    (
        lambda: QuantizedTensor(Q.packed[:, None], Q.absmax, (4, 3), W.dtype, 4, NF4, "low-first"),
        ValueError,
        "packed must be a uint8 array of shape (6,), got uint8 of shape (6, 1)",
    ),
    (
        lambda: QuantizedTensor(Q.packed, Q.absmax, (4, 3), W.dtype, 2, NF4, "low-first"),
        ValueError,
        "absmax must be a float32 or float16 array of shape (6,), got float32 of shape (3,)",
    ),
    (
        lambda: QuantizedTensor(Q.packed, Q.absmax, (4, 3), W.dtype, 4, NF4, "big"),
        ValueError,
        "nibble_order must be 'low-first' or 'high-first', got 'big'",
    ),
    # LoraLinear
    (lambda: LoraLinear(W), ValueError, "give a config, or a rank (and alpha)"),
    (lambda: LoraLinear(W, LoraConfig(rank=1), rank=1), ValueError, "give either config or rank and alpha, not both"),
    (lambda: LoraLinear(W, 8), TypeError, "config must be a LoraConfig, got 8"),
    (lambda: LoraLinear(W, rank=4), ValueError, "rank must be between 1 and min(out, in) = 3, got 4"),
    (lambda: LoraLinear(W[0], rank=1), ValueError, "weight must be a matrix (out, in) that is not empty, got shape (3"),
    (
        lambda: LoraLinear(W[:0], rank=1),
        ValueError,
        "weight must be a matrix (out, in) that is not empty, got shape (",
    ),
    (lambda: LoraLinear(np.eye(3, dtype=int), rank=1), TypeError, "weight must be an array of float16, float32, float"),
    (lambda: LoraLinear(spoiled(np.nan), rank=1), ValueError, "weight must be finite, but weight[2, 1] = nan; repair"),
    (
        lambda: LoraLinear(W, rank=2, alpha=1e300),
        ValueError,
        "alpha must give a scaling that fits into float32, got alpha 1e+300 and scaling 5e+299; choose a smaller alpha",
    ),
    (lambda: LoraLinear(W, rank=1, bias=W[0]), ValueError, "bias must have shape (4,), got (3,)"),
    (lambda: LoraLinear(W, rank=1, bias=[1, 2, 3, 4]), TypeError, "bias must be an array of float16, float32, float64"),
    (lambda: LoraLinear(W, rank=1, seed=-1), ValueError, "seed must be at least 0, got -1"),
    (
        lambda: LoraLinear(W, LoraConfig(rank=1, init="gaussian"), seed="x"),
        TypeError,
        "seed must be an integer, got 'x' of type str",
    ),
    (lambda: layer().forward(np.ones(4, np.float32)), ValueError, "x must end in 3 features, got shape (4,)"),
    (lambda: layer().forward(np.float32(1)), ValueError, "x must end in 3 features, got shape ()"),
    (lambda: layer().forward([1, 2, 3]), TypeError, "x must be an array of float16, float32, float64, got int"),
    (
        lambda: layer().forward(np.array([0, np.nan, 0])),
        ValueError,
        "x must be finite, but x[1] = nan; repair or drop it first",
    ),
    (lambda: layer().forward(np.array([0, 0, 1e39])), ValueError, "x in float32 must be finite, but x in float32[2] ="),
    (assign("lora_a", W), ValueError, "lora_a must have shape (2, 3), got (4, 3)"),
    (assign("lora_b", W), ValueError, "lora_b must have shape (4, 2), got (4, 3)"),
    (assign("lora_b", np.full((4, 2), np.inf)), ValueError, "lora_b must be finite, but lora_b[0, 0] = inf; repair"),
    (
        assign("lora_a", W[:2], made=merged_layer),
        RuntimeError,
        "lora_a cannot change while the adapter is merged; call unmerge() first",
    ),
    (
        lambda: merged_layer().merge(),
        RuntimeError,
        "the adapter is already merged; call unmerge() before merging",
    ),
    (lambda: layer().unmerge(), RuntimeError, "the adapter is not merged; call merge() first"),
    # QLoraLinear
    (lambda: QLoraLinear(W, rank=1, block_size=0), ValueError, "block_size must be at least 1, got 0"),
    (lambda: QLoraLinear(W, rank=4), ValueError, "rank must be between 1 and min(out, in) = 3, got 4"),
    (
        lambda: QLoraLinear(W[0], rank=1),
        ValueError,
        "weight must be a matrix (out, in) that is not empty, got shape (3",
    ),
    (
        lambda: QLoraLinear(W, rank=1).merge(),
        RuntimeError,
        "a 4-bit base cannot take an update in place: rounding",
    ),
    # LoraAdapter and AdapterSwitch
    (lambda: LoraAdapter({"rank": 8}), TypeError, "config must be a LoraConfig, got {'rank': 8}"),
    (lambda: adapter().add("", layer()), ValueError, "name must be a non-empty string, got ''"),
    (lambda: adapter().add("q", W), TypeError, "layer must be a LoraLinear or QLoraLinear, got ndarray"),
    (lambda: adapter("q").add("q", layer()), ValueError, "the adapter already has a layer 'q'; choose another name"),
    (
        lambda: adapter(targets=["q", "v"]).add("k_proj", layer()),
        ValueError,
        "target_modules ['q', 'v'] (exact name or dotted suffix) does not select 'k_proj'",
    ),
    (
        lambda: LoraAdapter.over({"q": W, "k": W}, LoraConfig(rank=1, target_modules=["v"])),
        ValueError,
        "target_modules ['v'] (exact name or dotted suffix) selects none of q, k",
    ),
    (lambda: adapter("q", "v").get("k"), KeyError, "no layer 'k'; the adapter has q, v"),
    (lambda: adapter().forward("k", W), KeyError, "no layer 'k'; the adapter has none"),
    (lambda: adapter().summary(), ValueError, "the adapter has no layers yet; add one first"),
    (lambda: adapter().trainable_ratio, ValueError, "the adapter has no layers yet; add one first"),
    (lambda: adapter("q").unmerge_all(), RuntimeError, "layer 'q' is not merged; nothing was changed"),
    (lambda: AdapterSwitch({}), ValueError, "weights must not be empty; give at least one name and its array"),
    (lambda: AdapterSwitch([W]), TypeError, "weights must map names to arrays, got list"),
    (lambda: AdapterSwitch({"q": W}).active, ValueError, "no adapter is registered yet; call register(name, config)"),
    (
        lambda: switch().register("one", LoraConfig(rank=1)),
        ValueError,
        "an adapter 'one' is already registered;",
    ),
    (lambda: switch().use("two"), KeyError, "no adapter 'two'; registered are one"),
    (lambda: switch().forward("v", W), KeyError, "no layer 'v'; the base has q, k"),
    (lambda: switch().forward("k", W.T), ValueError, "x must end in 3 features, got shape (3, 4)"),
    # metrics
    (lambda: max_error(W, W.T), ValueError, "the two arrays must have one shape, got (4, 3) and (3, 4)"),
    (lambda: max_error([], []), ValueError, "the arrays are empty: there is no error to measure"),
    (lambda: max_error(W, spoiled(np.nan)), ValueError, "approximation must be finite, but approximation[2, 1] = nan"),
    (lambda: snr_db(spoiled(np.inf), W), ValueError, "x must be finite, but x[2, 1] = inf; repair or drop it first"),
    (
        lambda: relative_error(0 * W, W),
        ValueError,
        "x must not be all zero: the relative error is undefined there;",
    ),
    (lambda: bits_per_weight(0), ValueError, "block_size must be at least 1, got 0"),
    (lambda: bits_per_weight("64"), TypeError, "block_size must be an integer, got '64' of type str"),
    (
        lambda: ulp_distance(W, W.astype(np.float64)),
        TypeError,
        "x and y must share float16, float32 or float64, got float32 and float64",
    ),
    (lambda: ulp_distance(W, spoiled(np.nan, dtype=np.float32)), ValueError, "y must be finite, but y[2, 1] = nan"),
    (lambda: effective_rank(0 * W), ValueError, "matrix must not be all zero: its effective rank is undefined"),
    (lambda: effective_rank(W[0]), ValueError, "matrix must have two axes and not be empty, got shape (3,)"),
    (lambda: effective_rank(spoiled(np.nan)), ValueError, "matrix must be finite, but matrix[2, 1] = nan; repair"),
    (lambda: truncate_svd(W, 4), ValueError, "rank must be between 0 and min(out, in) = 3, got 4"),
    (lambda: truncate_svd(W, 1.5), TypeError, "rank must be an integer, got 1.5 of type float"),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[f"{i}: {row[2]}" for i, row in enumerate(WRONG)])
@pytest.mark.filterwarnings("error")  # the message comes instead of NumPy's warning, not after it
def test_a_wrong_call_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    ours = caught.type.__module__.startswith("lora_edu")
    assert caught.type is error or ours  # not a subclass that NumPy or Python raised on the way


def test_the_table_is_long_enough_to_mean_something():
    assert len(WRONG) >= 45
    assert len({message for _, _, message in WRONG}) > 90


def test_the_calls_that_the_table_spoils_are_right_otherwise():
    assert quantize(spoiled(3.0)).size == 12
    assert dequantize(Q, np.empty((4, 3), np.float32)).shape == (4, 3)
    assert layer().forward(np.ones(3, np.float32)).shape == (4,)
    assert LoraLinear(W, rank=3, bias=np.zeros(4, np.float32)).rank == 3
    assert adapter("q", targets=["q", "v"]).summary().total_count == 12 + 2 * 7
    assert switch().forward("k", W).shape == (4, 4)
    assert ulp_distance(W, W).max() == 0
    assert effective_rank(W) > 1
