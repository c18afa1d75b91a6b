r"""SGD, Adam and AdamW, over lists of arrays, and the learning rate over time.

    optimizer = Adam(lr=0.005)
    a, b = optimizer.step([a, b], [d_a, d_b])

A step returns new arrays and leaves the old ones alone, so that weights which several models share stay as they are.
`ratios` gives an array another learning rate than the rest: LoRA+ lets B learn, say, 16 times faster than A.

    a, b = optimizer.step([a, b], [d_a, d_b], ratios=[1, 16])

Sources: Kingma & Ba 2014, *Adam*, algorithm 1; Loshchilov & Hutter 2017, *Decoupled Weight Decay Regularization*,
algorithm 2; Hayou et al. 2024, *LoRA+*; momentum as in PyTorch's `torch.optim.SGD`.
"""

import math
from collections.abc import Callable

import numpy as np

from lora_edu.validate import check_integer, check_real


class SGD:
    r"""Gradient descent, with momentum where μ > 0.

    u ← μ u + g           the first u is g
    p ← p - lr · u
    """

    def __init__(self, lr: float, momentum: float = 0.0):
        self.lr, self.momentum = _learning_rate(lr), _share("momentum", momentum)
        self.velocity = None

    def step(self, parameters, gradients, ratios=None) -> list[np.ndarray]:
        """The parameters after one step; the velocity is kept for the next."""
        if self.momentum > 0:
            if self.velocity is not None:
                pairs = zip(self.velocity, gradients, strict=True)
                gradients = [self.momentum * u + g for u, g in pairs]
            self.velocity = list(gradients)
        steps = zip(parameters, gradients, self._rates(parameters, ratios), strict=True)
        return [p - lr * u for p, u, lr in steps]

    def _rates(self, parameters, ratios):
        return [self.lr] * len(parameters) if ratios is None else [self.lr * ratio for ratio in ratios]


class Adam(SGD):
    r"""Every entry moves about lr, whatever the size of its gradient.

    m ← β₁ m + (1 - β₁) g       v ← β₂ v + (1 - β₂) g²
    p ← p - lr · m̂ / (√v̂ + eps)       m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

    At t = 1 this is p - lr · g / (|g| + eps): the sign of the gradient, and nothing where it is zero.
    """

    def __init__(self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(lr)
        self.betas, self.eps, self.t = tuple(_share("betas", beta) for beta in betas), check_real("eps", eps), 0

    def step(self, parameters, gradients, ratios=None) -> list[np.ndarray]:
        """The parameters after one step; the two averages are kept for the next."""
        if self.t == 0:
            self.m = [np.zeros_like(g) for g in gradients]
            self.v = [np.zeros_like(g) for g in gradients]
        self.t += 1
        beta1, beta2 = self.betas
        self.m = [beta1 * m + (1 - beta1) * g for m, g in zip(self.m, gradients, strict=True)]
        self.v = [beta2 * v + (1 - beta2) * g * g for v, g in zip(self.v, gradients, strict=True)]
        unbias1, unbias2 = 1 / (1 - beta1**self.t), 1 / (1 - beta2**self.t)
        moments = zip(parameters, self.m, self.v, self._rates(parameters, ratios), strict=True)
        return [p - (lr * unbias1) * m / (np.sqrt(unbias2 * v) + self.eps) for p, m, v, lr in moments]


class AdamW(Adam):
    r"""Adam after every parameter has shrunk by itself: p ← (1 - lr · λ) p, whatever its gradient."""

    def __init__(self, lr: float, betas=(0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01):
        super().__init__(lr, betas, eps)
        self.weight_decay = check_real("weight_decay", weight_decay)

    def step(self, parameters, gradients, ratios=None) -> list[np.ndarray]:
        """The parameters after one step."""
        rates = self._rates(parameters, ratios)
        shrunk = [p * (1 - lr * self.weight_decay) for p, lr in zip(parameters, rates, strict=True)]
        return super().step(shrunk, gradients, ratios)


def constant(step: int) -> float:
    """The schedule that changes nothing: a factor of 1 at every step."""
    return 1.0


def warmup_cosine(steps: int, warmup: int = 0, final: float = 0.0) -> Callable[[int], float]:
    r"""A factor for the learning rate: a straight rise to 1 over `warmup` steps, then half a cosine down to `final`.

    t ≤ warmup    t / warmup
    t > warmup    final + (1 - final) · (1 + cos(π (t - warmup) / (steps - warmup))) / 2

    Steps count from 1; beyond `steps` the factor stays at `final`.
    """
    if check_integer("warmup", warmup, minimum=0) >= check_integer("steps", steps, minimum=1):
        raise ValueError(f"warmup must be shorter than the {steps} steps, got {warmup}")

    def factor(step: int) -> float:
        if step <= warmup:
            return step / warmup
        done = min(1.0, (step - warmup) / (steps - warmup))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return factor


def _learning_rate(lr) -> float:
    if check_real("lr", lr) < 0:
        raise ValueError(f"lr must not be negative, got {lr:g}")
    return float(lr)


def _share(name, value) -> float:
    if not 0 <= check_real(name, value) < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value:g}")
    return float(value)
