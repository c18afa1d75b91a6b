"""Exercises of the chapter on a second language."""

import numpy as np

from lora_edu.classroom.check.engine import Exercise
from lora_edu.memory import MOMENTS


def _softmax(logits):
    share = np.exp(logits - np.max(logits))
    return share / share.sum()


_rng = np.random.default_rng(10)

at_temperature = Exercise(
    "at_temperature",
    lambda logits, temperature: _softmax(logits / temperature),
    [
        (np.array([2.0, 1.0, 0.0, -1.0]), 0.5),
        (np.array([2.0, 1.0, 0.0, -1.0]), 1.5),
        (_rng.standard_normal(27), 0.7),
        (np.array([1900.0, 1901.0]), 2.0),  # too large for a plain exp
    ],
    {
        "this multiplies by the temperature; a high one must flatten": lambda logits, temperature: _softmax(
            logits * temperature
        ),
        "the temperature is ignored": lambda logits, temperature: _softmax(logits),
        "the probabilities were divided; divide the logits, before the softmax": lambda logits, temperature: (
            _softmax(logits) / temperature
        ),
        "the logits were divided, but not turned into probabilities": lambda logits, temperature: logits / temperature,
    },
    tolerance=1e-9,
)


def _runs(steps, best):
    """Bits on validation and test names, step by step; the test is best one step later than the validation."""
    fall = np.abs(np.arange(steps) - best)
    return 3 + 0.1 * fall + 0.01 * _rng.random(steps), 3.1 + 0.1 * np.abs(np.arange(steps) - best - 1) + 0.05


stopped_in_time = Exercise(
    "stopped_in_time",
    lambda validation, test: test[np.argmin(validation)],
    [_runs(8, 3), _runs(20, 12), _runs(5, 1), (np.array([3.0, 2.5, 2.5, 2.9]), np.array([3.1, 2.6, 2.55, 2.8]))],
    {
        "this is the best test figure; the test must not choose the step": lambda validation, test: test.min(),
        "this is the last step: a run that overfits is worst there": lambda validation, test: test[-1],
        "this reports the names that chose the step; they were lucky, so report the test": lambda validation, test: (
            validation.min()
        ),
        "this is the worst step: fewer bits are better": lambda validation, test: test[np.argmax(validation)],
        "this is the step; the bits of the test at that step are asked for": lambda validation, test: np.argmin(
            validation
        ),
    },
    tolerance=1e-12,
)


def _qlora_bytes(linear, other, adapter, *, scales=True, trained=None, moments=MOMENTS, own=2):
    trained = adapter if trained is None else trained
    return linear * (4.5 if scales else 4) / 8 + 2 * other + own * adapter + (2 + moments) * trained


qlora_bytes = Exercise(
    "qlora_bytes",
    _qlora_bytes,
    [(64_000, 1_000, 500), (6_476_005_376, 262_410_240, 159_907_840), (98_304, 4_928, 9_216)],
    {
        "the scales are missing: one float32 for 64 weights is half a bit each": lambda linear, other, adapter: (
            _qlora_bytes(linear, other, adapter, scales=False)
        ),
        "frozen weights have no gradient and no averages": lambda linear, other, adapter: _qlora_bytes(
            linear, other, adapter, trained=linear + other + adapter
        ),
        "Adam keeps two averages in float32, 8 bytes; one of them, or two in 16 bits, would be 4": (
            lambda linear, other, adapter: _qlora_bytes(linear, other, adapter, moments=4)
        ),
        "A and B themselves are missing": lambda linear, other, adapter: _qlora_bytes(linear, other, adapter, own=0),
        "these are bits: divide by 8": lambda linear, other, adapter: 8 * _qlora_bytes(linear, other, adapter),
        "everything was put into 4 bits; embeddings, head and norms stay in 16": lambda linear, other, adapter: (
            _qlora_bytes(linear + other, 0, adapter)
        ),
    },
    tolerance=1e-9,
)
