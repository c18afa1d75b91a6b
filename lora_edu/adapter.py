r"""Named layers as one adapter, its summary, and several adapters over the same base weights."""

from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html import escape

import numpy as np

from lora_edu.config import ALL_LINEAR, LoraConfig
from lora_edu.linear import LoraLayer, LoraLinear


class LoraAdapter:
    r"""Layers by name, adapted under one `LoraConfig`.

    Parameters
    ----------
    config : LoraConfig
        Its `target_modules` decide which names may be added.
    """

    def __init__(self, config: LoraConfig):
        if not isinstance(config, LoraConfig):
            raise TypeError(f"config must be a LoraConfig, got {config!r}")
        self.config = config
        self._layers: dict[str, LoraLayer] = {}

    @classmethod
    def over(cls, weights: Mapping[str, np.ndarray], config: LoraConfig) -> "LoraAdapter":
        """An adapter over those of `weights`, by name, that `config.target_modules` selects; no weight is copied."""
        adapter = cls(config)
        for name in filter(config.selects, weights):
            try:
                layer = LoraLinear(weights[name], config)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name!r}: {error}") from None
            adapter.add(name, layer)
        if not len(adapter):
            raise ValueError(f"{_rule(config)} selects none of {', '.join(weights)}")
        return adapter

    def add(self, name: str, layer: LoraLayer):
        """Add a `LoraLinear` or `QLoraLinear` under `name`."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if not isinstance(layer, LoraLayer):
            raise TypeError(f"layer must be a LoraLinear or QLoraLinear, got {type(layer).__name__}")
        if name in self._layers:
            raise ValueError(f"the adapter already has a layer {name!r}; choose another name")
        for other, present in self._layers.items():
            if present is layer:
                raise ValueError(
                    f"this layer is already in the adapter as {other!r}; make a layer of its own for {name!r}"
                )
        if not self.config.selects(name):
            raise ValueError(f"{_rule(self.config)} does not select {name!r}")
        self._layers[name] = layer

    def get(self, name: str) -> LoraLayer:
        """The layer called `name`."""
        if name not in self._layers:
            raise KeyError(f"no layer {name!r}; the adapter has {', '.join(self._layers) or 'none'}")
        return self._layers[name]

    __getitem__ = get

    @property
    def names(self) -> list[str]:
        """Layer names in the order they were added."""
        return list(self._layers)

    def __len__(self):
        return len(self._layers)

    def __iter__(self):
        return iter(self._layers)

    def __contains__(self, name):
        return name in self._layers

    def forward(self, name: str, x) -> np.ndarray:
        """The output of the layer called `name`."""
        return self.get(name).forward(x)

    def merge_all(self, keep_base: bool = True):
        """Merge every layer, or none: a layer that cannot be merged is named before anything changes."""
        for name, layer in self._layers.items():
            if not isinstance(layer, LoraLinear):
                raise RuntimeError(f"layer {name!r} has a 4-bit base, which cannot be merged; nothing was changed")
            if layer.merged:
                raise RuntimeError(f"layer {name!r} is already merged; nothing was changed")
        for layer in self._layers.values():
            layer.merge(keep_base)

    def unmerge_all(self):
        """Unmerge every layer, or none."""
        for name, layer in self._layers.items():
            if not layer.merged:
                raise RuntimeError(f"layer {name!r} is not merged; nothing was changed")
        for layer in self._layers.values():
            layer.unmerge()

    def enable(self):
        """Every layer's adapter takes part again."""
        for layer in self._layers.values():
            layer.enable()

    def disable(self):
        """Every layer computes its base."""
        for layer in self._layers.values():
            layer.disable()

    @contextmanager
    def disabled(self):
        """`with adapter.disabled():` computes the base inside, and restores each layer's state after."""
        with ExitStack() as stack:
            for layer in self._layers.values():
                stack.enter_context(layer.disabled())
            yield self

    @property
    def trainable_count(self) -> int:
        """Numbers in all A and B."""
        return sum(layer.trainable_count for layer in self._layers.values())

    @property
    def total_count(self) -> int:
        """Base weights, biases, A and B of all layers."""
        return sum(layer.total_count for layer in self._layers.values())

    @property
    def trainable_ratio(self) -> float:
        """trainable_count / total_count."""
        self._refuse_empty()
        return self.trainable_count / self.total_count

    def summary(self) -> "LoraAdapterSummary":
        """A table of the layers with their counts."""
        self._refuse_empty()
        rows = [
            (name, (layer.out_features, layer.in_features), layer.rank, layer.trainable_count, layer.total_count)
            for name, layer in self._layers.items()
        ]
        return LoraAdapterSummary(tuple(rows))

    def _refuse_empty(self):
        if not self._layers:
            raise ValueError("the adapter has no layers yet; add one first")


@dataclass(frozen=True)
class LoraAdapterSummary:
    """Rows of (name, (out, in), rank, trainable, all): prints as a table, renders as one in a notebook."""

    rows: tuple[tuple[str, tuple[int, int], int, int, int], ...]

    @property
    def trainable_count(self) -> int:
        """Numbers in all A and B."""
        return sum(row[3] for row in self.rows)

    @property
    def total_count(self) -> int:
        """Base weights, biases, A and B of all layers."""
        return sum(row[4] for row in self.rows)

    @property
    def trainable_ratio(self) -> float:
        """trainable_count / total_count."""
        return self.trainable_count / self.total_count

    @property
    def trainable_line(self) -> str:
        """The line that PEFT's `print_trainable_parameters` prints."""
        return (
            f"trainable params: {self.trainable_count:,d} || all params: {self.total_count:,d} "
            f"|| trainable%: {100 * self.trainable_ratio:.4f}"
        )

    def __str__(self):
        header, *body = self._cells()
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(row))
            for row in ([*zip(cells, widths, strict=True)] for cells in (header, *body))
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:], rule, self.trainable_line])

    def _repr_html_(self):
        def row(cells, tag):
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        header, *body = self._cells()
        return (
            f"<table><caption>{self.trainable_line}</caption><thead>{row(header, 'th')}</thead>"
            f"<tbody>{''.join(row(cells, 'td') for cells in body)}</tbody></table>"
        )

    def _cells(self):
        header = ("layer", "out x in", "rank", "trainable", "all", "trainable%")
        body = [
            (name, f"{out} x {in_}", str(rank), f"{trainable:,d}", f"{total:,d}", f"{100 * trainable / total:.4f}")
            for name, (out, in_), rank, trainable, total in self.rows
        ]
        return header, *body


class AdapterSwitch:
    r"""Several adapters over the same base weights, one of them active; the base is held once.

    Parameters
    ----------
    weights : mapping of name to (out, in) array
    """

    def __init__(self, weights: Mapping[str, np.ndarray]):
        if not isinstance(weights, Mapping):
            raise TypeError(f"weights must map names to arrays, got {type(weights).__name__}")
        if not weights:
            raise ValueError("weights must not be empty; give at least one name and its array")
        self.weights = dict(weights)
        self._adapters: dict[str, LoraAdapter] = {}
        self._active: str | None = None

    def register(self, name: str, config: LoraConfig) -> LoraAdapter:
        """A new adapter over the shared weights; the first one registered becomes the active one."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"name must be a non-empty string, got {name!r}")
        if name in self._adapters:
            raise ValueError(f"an adapter {name!r} is already registered; choose another name")
        self._adapters[name] = LoraAdapter.over(self.weights, config)
        self._active = self._active or name
        return self._adapters[name]

    def use(self, name: str) -> LoraAdapter:
        """Make the adapter called `name` the active one."""
        if name not in self._adapters:
            raise KeyError(f"no adapter {name!r}; registered are {', '.join(self._adapters) or 'none'}")
        self._active = name
        return self._adapters[name]

    @property
    def names(self) -> list[str]:
        """Names of the registered adapters."""
        return list(self._adapters)

    @property
    def active(self) -> LoraAdapter:
        """The adapter in use."""
        if self._active is None:
            raise ValueError("no adapter is registered yet; call register(name, config) first")
        return self._adapters[self._active]

    def forward(self, name: str, x) -> np.ndarray:
        """The output of layer `name` under the active adapter; the base layer where that adapter does not target it."""
        if name in self.active:
            return self.active.forward(name, x)
        if name not in self.weights:
            raise KeyError(f"no layer {name!r}; the base has {', '.join(self.weights)}")
        base = LoraLinear(self.weights[name], LoraConfig(rank=1, fan_in_fan_out=self.active.config.fan_in_fan_out))
        base.disable()
        return base.forward(x)


def _rule(config: LoraConfig) -> str:
    targets = config.target_modules
    if isinstance(targets, str):
        return ALL_LINEAR if targets.lower() == ALL_LINEAR else f"the regular expression {targets!r} (whole name)"
    return f"target_modules {list(targets)} (exact name or dotted suffix)"
