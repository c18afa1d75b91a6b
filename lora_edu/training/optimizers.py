r"""SGD and Adam, over lists of arrays.

    optimizer = Adam(lr=0.005)
    a, b = optimizer.step([a, b], [d_a, d_b])

A step returns new arrays and leaves the old ones alone.

Source: Kingma & Ba 2014, *Adam*, algorithm 1.
"""

import numpy as np


class SGD:
    r"""Plain gradient descent: p ← p - lr · g."""

    def __init__(self, lr: float):
        self.lr = lr

    def step(self, parameters, gradients) -> list[np.ndarray]:
        """The parameters after one step."""
        return [p - self.lr * g for p, g in zip(parameters, gradients, strict=True)]


class Adam:
    r"""Every entry moves about lr, whatever the size of its gradient.

    m ← β₁ m + (1 - β₁) g       v ← β₂ v + (1 - β₂) g²
    p ← p - lr · m̂ / (√v̂ + eps)       m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)

    At t = 1 this is p - lr · g / (|g| + eps): the sign of the gradient, and nothing where it is zero.
    """

    def __init__(self, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        self.lr, self.betas, self.eps, self.t = lr, betas, eps, 0

    def step(self, parameters, gradients) -> list[np.ndarray]:
        """The parameters after one step; the two averages are kept for the next."""
        if self.t == 0:
            self.m = [np.zeros_like(g) for g in gradients]
            self.v = [np.zeros_like(g) for g in gradients]
        self.t += 1
        beta1, beta2 = self.betas
        self.m = [beta1 * m + (1 - beta1) * g for m, g in zip(self.m, gradients, strict=True)]
        self.v = [beta2 * v + (1 - beta2) * g * g for v, g in zip(self.v, gradients, strict=True)]
        return [
            p - self.lr * (m / (1 - beta1**self.t)) / (np.sqrt(v / (1 - beta2**self.t)) + self.eps)
            for p, m, v in zip(parameters, self.m, self.v, strict=True)
        ]
