r"""What every small model can do: name its arrays, say which are trained, and put its linear layers under LoRA.

model.parameters()      every array by its dotted name: "fc1.weight", "blocks.0.q_proj.lora_a"
model.trained()         those that training changes
adapt(model, config)    the same model, its base shared and frozen, with A and B beside the chosen linear layers
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import numpy as np

from lora_edu.adapter import LoraAdapter
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import NF4, Codebook
from lora_edu.models.layers import AdaptedLinear, Layer, Linear


class Model:
    r"""Layers by name; a subclass says how they follow each other, forward and back.

    Parameters
    ----------
    layers : mapping of name to Layer
        In the order of the forward pass.
    """

    kept_by_all_linear: tuple[str, ...] = ()  # linear layers that "all-linear" does not mean

    def __init__(self, layers: Mapping[str, Layer]):
        self.layers = dict(layers)
        self.adapter: LoraAdapter | None = None

    def forward(self, x) -> np.ndarray:
        """Outputs, and in the layers what `backward` needs."""
        raise NotImplementedError

    def backward(self, upstream):
        """The gradient of every trained array, left in its layer, from dL/d outputs."""
        raise NotImplementedError

    def fresh(self, seed: int) -> "Model":
        """A model of the same shape that has learned nothing."""
        raise NotImplementedError

    def __call__(self, x):
        return self.forward(x)

    def parameters(self) -> dict[str, np.ndarray]:
        """Every array by its name; a frozen base under LoRA is not among them."""
        return {f"{n}.{part}": array for n, layer in self.layers.items() for part, array in layer.arrays.items()}

    def trained(self) -> dict[str, np.ndarray]:
        """The arrays that training changes."""
        return {
            f"{n}.{part}": layer.arrays[part]
            for n, layer in self.layers.items()
            for part in layer.arrays
            if part in layer.trained
        }

    def gradients(self) -> dict[str, np.ndarray]:
        """The gradients that the last `backward` left, by the names of `trained`."""
        return {
            f"{n}.{part}": layer.gradients[part]
            for n, layer in self.layers.items()
            for part in layer.arrays
            if part in layer.trained
        }

    def assign(self, arrays: Mapping[str, np.ndarray]):
        """Put these arrays in place, by name."""
        for name, array in arrays.items():
            layer, _, part = name.rpartition(".")
            if layer not in self.layers or part not in self.layers[layer].arrays:
                raise ValueError(f"the model has no array {name!r}; it has {', '.join(self.parameters())}")
            present = self.layers[layer].arrays[part]
            if np.shape(array) != present.shape:
                raise ValueError(f"{name} must have shape {present.shape}, got {np.shape(array)}")
            self.layers[layer].assign(part, array)

    def train_only(self, chosen: Callable[[str], bool]) -> "Model":
        """Train the arrays whose name `chosen` says yes to, freeze all others. Returns the model."""
        for name, layer in self.layers.items():
            layer.trained = {part for part in layer.arrays if chosen(f"{name}.{part}")}
        return self

    @property
    def trained_count(self) -> int:
        """Numbers that training changes."""
        return sum(array.size for array in self.trained().values())

    def train(self, training: bool = True):
        """Dropout acts in the adapted layers, or does not."""
        for layer in self._adapted().values():
            layer.lora.train(training)

    @contextmanager
    def without_adapter(self):
        """`with model.without_adapter():` is the base inside, bit for bit."""
        if self.adapter is None:
            raise ValueError("the model has no adapter; make one with adapt(model, config)")
        with self.adapter.disabled():
            yield self

    def copy(self) -> "Model":
        """The same arrays, none of them copied: training one model leaves the other as it is."""
        new = copy.copy(self)
        new.layers = {name: layer.copy() for name, layer in self.layers.items()}
        if self.adapter is not None:
            new.adapter = LoraAdapter(self.adapter.config)
            for name, layer in new._adapted().items():
                new.adapter.add(name, layer.lora)
        new._start()
        return new

    def astype(self, dtype) -> "Model":
        """A copy in another precision, before it is adapted."""
        self.refuse_adapted()
        new = self.copy()
        new.assign({name: array.astype(dtype) for name, array in self.parameters().items()})
        return new

    def linear_weights(self) -> dict[str, np.ndarray]:
        """The weight (out, in) of every linear layer that is not under LoRA, by the layer's name."""
        return {n: layer.arrays["weight"] for n, layer in self.layers.items() if isinstance(layer, Linear)}

    def rounded(self, codebook: Codebook = NF4, block_size: int = 64, names=None) -> "Model":
        """A copy whose linear weights, or those of `names`, went to 4 bits and came back."""
        new, weights = self.copy(), self.linear_weights()
        for name in weights if names is None else names:
            new.layers[name].assign("weight", dequantize(quantize(weights[name], block_size, codebook)))
        return new

    def _adapted(self) -> dict[str, AdaptedLinear]:
        return {name: layer for name, layer in self.layers.items() if isinstance(layer, AdaptedLinear)}

    def _trained_up_to(self, name: str) -> bool:
        """Whether this layer or one before it is trained; if not, the way back may end here."""
        names = list(self.layers)
        return any(self.layers[other].trained for other in names[: names.index(name) + 1])

    def refuse_adapted(self):
        """Raise where the model is under an adapter: what needs the base asks here first."""
        if self.adapter is not None:
            raise ValueError("the model is under an adapter already; start from the base model")

    def _start(self):
        """Room for what a subclass keeps between forward and backward."""
