r"""The layers that the small models are made of, each with its way back.

    y = layer.forward(x)             keeps what the way back needs
    dx = layer.backward(dy)          leaves in `layer.gradients` the gradient of every array in `layer.trained`

Activations are rows: (rows, features), one image or one letter a row. A gradient is summed over the rows.
"""

import copy

import numpy as np

from lora_edu.linear import LoraLayer, LoraLinear
from lora_edu.training.gradients import layer_gradients

LAYER_NORM_EPSILON = 1e-5


class Layer:
    """Arrays by name; `trained` names those that training changes, all of them at first."""

    def __init__(self, **arrays):
        self.arrays = {name: array for name, array in arrays.items() if array is not None}
        self.trained = set(self.arrays)
        self.gradients = {}

    def assign(self, name: str, array):
        """Put another array in the place of the one called `name`."""
        self.arrays[name] = array

    def _keep(self, name, gradient):
        """Compute a gradient only where it is wanted: `gradient` is a function."""
        if name in self.trained:
            self.gradients[name] = gradient()

    def copy(self):
        """The same arrays, none of them copied, under settings of their own."""
        new = copy.copy(self)
        new.arrays, new.trained, new.gradients = dict(self.arrays), set(self.trained), {}
        return new


class Linear(Layer):
    r"""y = x Wᵀ + b;  dW = Gᵀ x,  db = Σ G over the rows,  dx = G W."""

    def __init__(self, weight, bias=None):
        super().__init__(weight=weight, bias=bias)

    def forward(self, x):
        self.x = x  # (rows, in)
        return _linear(x, self.arrays["weight"], self.arrays.get("bias"))

    def backward(self, g):
        self._keep("weight", lambda: g.T @ self.x)  # (out, rows) @ (rows, in) -> (out, in)
        self._keep("bias", lambda: g.sum(axis=0))  # (out,)
        return g @ self.arrays["weight"]  # (rows, out) @ (out, in) -> (rows, in)


def _linear(x, weight, bias):
    y = x @ weight.T  # (rows, in) @ (in, out) -> (rows, out)
    if bias is not None:
        y += bias
    return y


class AdaptedLinear(Layer):
    r"""A `LoraLinear` or `QLoraLinear` among the layers: only A and B are arrays of its own, the base stays."""

    def __init__(self, lora: LoraLayer):
        self.lora = lora
        super().__init__(lora_a=lora.lora_a, lora_b=lora.lora_b)

    def assign(self, name, array):
        setattr(self.lora, name, array)
        self.arrays[name] = getattr(self.lora, name)

    def copy(self):
        new = AdaptedLinear(self.lora.copy())
        new.trained = set(self.trained)
        return new

    def forward(self, x):
        self.x = x
        lora = self.lora
        if isinstance(lora, LoraLinear) and not lora.enabled:  # the base's own arithmetic, to the last bit
            return _linear(x, lora.weight.T if lora.config.fan_in_fan_out else lora.weight, lora.bias)
        return lora.forward(x)

    def backward(self, g):
        found = layer_gradients(self.lora, self.x, g, self.lora.dropout_mask if self.lora.training else None)
        self._keep("lora_a", lambda: found.lora_a)
        self._keep("lora_b", lambda: found.lora_b)
        return found.x


class Embedding(Layer):
    r"""y = row `id` of the table;  its gradient is the sum of G over the places where the id stood."""

    def __init__(self, weight):
        super().__init__(weight=weight)

    def forward(self, ids):
        self.ids = ids  # (rows,)
        return self.arrays["weight"][ids]  # (rows, features)

    def backward(self, g):
        def summed():
            stands = self.ids == np.arange(len(self.arrays["weight"]))[:, None]  # (ids, rows)
            return stands.astype(g.dtype) @ g  # (ids, rows) @ (rows, features) -> (ids, features)

        self._keep("weight", summed)


class LayerNorm(Layer):
    r"""y = w ∘ n + b,  n = (x - mean) / √(variance + ε) over the features of each row.

    dw = Σ G ∘ n,  db = Σ G,  dn = w ∘ G,  dx = (dn - mean(dn) - n · mean(dn ∘ n)) / √(variance + ε)
    """

    def __init__(self, weight, bias, epsilon: float = LAYER_NORM_EPSILON):
        super().__init__(weight=weight, bias=bias)
        self.epsilon = epsilon

    def forward(self, x):
        centred = x - x.mean(axis=1, keepdims=True)  # (rows, features)
        variance = np.einsum("rf,rf->r", centred, centred) / x.shape[1]
        self.inverse = (1 / np.sqrt(variance + self.epsilon))[:, None]  # (rows, 1)
        self.normal = centred * self.inverse
        return self.normal * self.arrays["weight"] + self.arrays["bias"]

    def backward(self, g):
        self._keep("weight", lambda: np.einsum("rf,rf->f", g, self.normal))
        self._keep("bias", lambda: g.sum(axis=0))
        d = g * self.arrays["weight"]
        along = np.einsum("rf,rf->r", d, self.normal)[:, None] / d.shape[1]
        return (d - d.mean(axis=1, keepdims=True) - self.normal * along) * self.inverse


class Attention:
    r"""Every token looks at the others: softmax(Q Kᵀ / √d + unseen) V in each head.

    dV = Pᵀ G,  dP = G Vᵀ,  dS = P ∘ (dP - Σ dP ∘ P over what was looked at),  dQ = dS K / √d,  dK = dSᵀ Q / √d
    """

    def __init__(self, heads: int):
        self.heads = heads

    def forward(self, q, k, v, length: int, unseen):
        """From rows (batch · length, features) to rows of the same shape; `unseen` is -∞ where a token may not look."""
        self.q, self.k, self.v = (self._split(rows, length) for rows in (q, k, v))  # (batch, heads, length, d)
        self.scale = q.dtype.type(1 / np.sqrt(self.q.shape[-1]))
        scores = self.q @ self.k.swapaxes(-1, -2)  # (batch, heads, length, length): row looks at column
        scores *= self.scale
        scores += unseen  # e^-∞ = 0
        scores -= scores.max(axis=-1, keepdims=True)
        share = np.exp(scores, out=scores)
        share /= share.sum(axis=-1, keepdims=True)
        self.share = share
        return self._join(share @ self.v)

    def backward(self, g):
        """(dq, dk, dv), rows each."""
        g = self._split(g, self.share.shape[-1])
        d_v = self.share.swapaxes(-1, -2) @ g
        d_scores = g @ self.v.swapaxes(-1, -2)
        d_scores -= np.einsum("bhij,bhij->bhi", d_scores, self.share)[..., None]
        d_scores *= self.share
        d_scores *= self.scale
        d_q, d_k = d_scores @ self.k, d_scores.swapaxes(-1, -2) @ self.q
        return self._join(d_q), self._join(d_k), self._join(d_v)

    def _split(self, rows, length):
        return rows.reshape(-1, length, self.heads, rows.shape[-1] // self.heads).swapaxes(1, 2)

    def _join(self, heads):
        batch, count, length, width = heads.shape
        return heads.swapaxes(1, 2).reshape(batch * length, count * width)


class CausalAttention(Attention):
    """Every letter looks back: no letter sees a later one."""

    def forward(self, q, k, v, length: int):
        """From rows (batch · length, features) to rows of the same shape."""
        return super().forward(q, k, v, length, np.triu(np.full((length, length), -np.inf, q.dtype), 1))


class Gelu:
    r"""y = x · Φ(x),  dx = G ∘ (Φ(x) + x · φ(x)),  Φ and φ the normal distribution and its density."""

    def forward(self, x):
        self.x, self.below = x, normal_distribution(x)
        return x * self.below

    def backward(self, g):
        density = np.exp(-self.x * self.x / 2) * self.x.dtype.type(1 / np.sqrt(2 * np.pi))
        return g * (self.below + self.x * density)


def normal_distribution(x) -> np.ndarray:
    r"""Φ(x) = (1 + erf(x / √2)) / 2, erf to 1.5e-7 by Abramowitz & Stegun 1964, formula 7.1.26."""
    z = np.abs(x) * np.float32(1 / np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = np.float32(1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = tail * t + np.float32(coefficient)
    return (1 + np.copysign(1 - tail * t * np.exp(-z * z), x)) / 2
