"""Exercises of the chapter on scaling."""

import math

import numpy as np

from lora_edu.classroom.check.engine import Exercise
from lora_edu.config import LoraConfig
from lora_edu.training import Adam, lora_gradients


def _scaling(alpha, rank, use_rslora):
    return LoraConfig(rank=rank, alpha=alpha, use_rslora=use_rslora).scaling


scaling_factor = Exercise(
    "scaling_factor",
    _scaling,
    [(16, 8, False), (16, 8, True), (8, 1, False), (0.5, 3, True), (32, 64, True)],
    {
        "this is alpha·r: you multiplied where the paper divides": lambda alpha, rank, _: alpha * rank,
        "this is alpha alone: the update grows with the rank": lambda alpha, rank, _: alpha,
        "this is r / alpha: upside down": lambda alpha, rank, _: rank / alpha,
        "rsLoRA takes the root of the rank, not of the whole fraction": lambda alpha, rank, use_rslora: (
            math.sqrt(alpha / rank) if use_rslora else alpha / rank
        ),
        "use_rslora is ignored: it divides by √r": lambda alpha, rank, _: alpha / rank,
        "the two rules are swapped: √r belongs to rsLoRA": lambda alpha, rank, use_rslora: _scaling(
            alpha, rank, not use_rslora
        ),
    },
    tolerance=1e-12,
)


def _gradient_b(x, upstream, lora_a, scaling):
    weight, lora_b = np.zeros((upstream.shape[1], x.shape[1])), np.zeros((upstream.shape[1], len(lora_a)))
    return lora_gradients(x, upstream, weight, lora_a, lora_b, scaling).lora_b


_rng = np.random.default_rng(2)


def _case(batch, out, width, rank, scaling):
    shapes = ((batch, width), (batch, out), (rank, width))
    return (*(_rng.standard_normal(shape) for shape in shapes), scaling)


gradient_b = Exercise(
    "gradient_b",
    _gradient_b,
    [_case(5, 4, 3, 2, 2.0), _case(1, 7, 5, 1, 0.25), _case(6, 3, 3, 3, 1.5)],
    {
        "the scaling is missing: it multiplies the gradient as it multiplies the output": lambda x, g, a, s: (
            _gradient_b(x, g, a, 1.0)
        ),
        "the scaling is applied twice": lambda x, g, a, s: _gradient_b(x, g, a, s * s),
        "this is the transpose: B is (out, rank), so is its gradient": lambda x, g, a, s: _gradient_b(x, g, a, s).T,
        "this is the mean over the batch; the gradient is the sum": lambda x, g, a, s: _gradient_b(x, g, a, s) / len(x),
        "the sign is turned: this is the step downhill, not the gradient": lambda x, g, a, s: -_gradient_b(x, g, a, s),
    },
    tolerance=1e-12,
)


def _adam_first_step(gradient, lr):
    start = np.zeros_like(gradient)
    return Adam(lr).step([start], [gradient])[0] - start


adam_first_step = Exercise(
    "adam_first_step",
    _adam_first_step,
    [
        (np.array([3.0, -0.01, 250.0]), 0.1),
        (np.array([[1e-3, 0.0], [-1e4, 2.0]]), 0.005),  # a zero gradient stays
        (np.zeros((2, 3)), 0.1),
    ],
    {
        "this is SGD: -lr · g. Adam divides by √v̂, which is |g| at the first step": lambda g, lr: -lr * g,
        "it walks uphill: subtract the step": lambda g, lr: -_adam_first_step(g, lr),
        "the bias correction is missing: divide m by 1 - β₁ and v by 1 - β₂": lambda g, lr: (
            -lr * 0.1 * g / (np.sqrt(0.001 * g * g) + 1e-8)
        ),
        "the root is missing: divide by √v̂, not by v̂": lambda g, lr: -lr * g / (g * g + 1e-8),
        "the learning rate is missing": lambda g, lr: _adam_first_step(g, 1.0),
    },
    tolerance=1e-4,
)
