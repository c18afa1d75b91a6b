r"""A network for handwritten digits: linear layers with a ReLU between them.

x (rows, 64) → fc1 → ReLU → fc2 → ReLU → fc3 → ReLU → fc4 → logits (rows, 10)

h = max(0, z)        dz = dh where z > 0, else 0
"""

from collections.abc import Sequence

import numpy as np

from lora_edu.models.layers import Linear
from lora_edu.models.model import Model

SIZES = (64, 128, 64, 32, 10)


class MLP(Model):
    """See the module; `MLP.initial` makes one that has learned nothing."""

    @classmethod
    def initial(cls, sizes: Sequence[int] = SIZES, seed: int = 0, names: Sequence[str] | None = None) -> "MLP":
        r"""Weights N(0, 2 / in), as He et al. 2015 recommend before a ReLU; biases 0.

        Layers are called fc1, fc2, …, unless `names` says otherwise.
        """
        rng = np.random.default_rng(seed)
        names = [f"fc{i}" for i in range(1, len(sizes))] if names is None else names
        shapes = zip(names, sizes[1:], sizes[:-1], strict=True)
        return cls({name: _initial_linear(rng, out, width) for name, out, width in shapes})

    def fresh(self, seed: int) -> "MLP":
        weights = [layer.arrays["weight"] for layer in self.layers.values()]
        return MLP.initial((weights[0].shape[1], *(len(w) for w in weights)), seed, list(self.layers))

    def forward(self, x) -> np.ndarray:
        """Logits (rows, classes)."""
        *hidden, last = self.layers.values()
        self.active = []
        for layer in hidden:
            z = layer.forward(x)
            self.active.append(z > 0)
            x = np.maximum(z, 0)  # (rows, out of the layer)
        return last.forward(x)

    def backward(self, upstream):
        masks = [*self.active, None]
        for (name, layer), active in reversed(list(zip(self.layers.items(), masks, strict=True))):
            if not self._trained_up_to(name):
                return
            if active is not None:
                upstream = upstream * active  # dz = dh where z > 0
            upstream = layer.backward(upstream)

    def accuracy(self, x, labels) -> float:
        """Share of the rows whose largest logit is the label's."""
        return float(np.mean(self.forward(x).argmax(axis=1) == labels))


def _initial_linear(rng, out: int, width: int) -> Linear:
    weight = rng.standard_normal((out, width), np.float32) * np.float32(np.sqrt(2 / width))
    return Linear(weight, np.zeros(out, np.float32))
