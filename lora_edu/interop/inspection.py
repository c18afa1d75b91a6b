r"""What is in an adapter file: a row for each layer, as a table for people and as JSON for programs."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_edu.interop.errors import printable
from lora_edu.interop.peft import read_peft

MAX_NAME = 60  # characters of a name in the table; JSON has it whole


@dataclass(frozen=True)
class LayerReport:
    r"""One layer.

    Attributes
    ----------
    name, kind, dtype : str
        `kind` is "linear", "dora" or "embedding"; `dtype` is how the file stores A.
    out_features, in_features, rank, parameters : int
    alpha, scaling : float
    norm : float
        ‖ΔW‖, the Frobenius norm of scaling · B A; for DoRA before its rows are scaled.
    largest : float
        The largest singular value of ΔW.
    effective_rank : float or None
        exp(entropy of σ / Σσ), between 1 and rank; None where ΔW is zero.
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    rank: int
    alpha: float
    scaling: float
    parameters: int
    norm: float
    largest: float
    effective_rank: float | None
    dtype: str


@dataclass(frozen=True)
class Inspection:
    r"""A whole adapter; `str` of it is the table, `as_json` what `--json` prints.

    Attributes
    ----------
    path : str
        The file of tensors.
    base_model : str or None
        What the adapter says it belongs to.
    bytes : int
        Size of the file.
    layers : tuple of LayerReport
    saved : dict of str to list of int
        Weights and biases of the base that were trained too -> shape.
    unsupported : dict of str to str
        Tensor or key -> why it is not read here.
    notes : tuple of str
    """

    path: str
    base_model: str | None
    bytes: int
    layers: tuple[LayerReport, ...]
    saved: dict[str, list[int]]
    unsupported: dict[str, str]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Numbers in all pairs."""
        return sum(layer.parameters for layer in self.layers)

    def as_json(self) -> dict:
        """Everything, in values that JSON has."""
        return {**asdict(self), "parameters": self.parameters}

    def __str__(self):
        rows = [
            ("layer", "kind", "out x in", "rank", "alpha", "scaling", "params", "norm", "sigma1", "eff.rank", "dtype")
        ]
        for x in self.layers:
            rank = "-" if x.effective_rank is None else f"{x.effective_rank:.2f}"
            shape = f"{x.out_features} x {x.in_features}"
            numbers = (
                f"{x.alpha:g}",
                f"{x.scaling:.4g}",
                f"{x.parameters:,}",
                f"{x.norm:.4g}",
                f"{x.largest:.4g}",
                rank,
            )
            rows.append((printable(x.name, MAX_NAME), x.kind, shape, str(x.rank), *numbers, x.dtype))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join([*self._head(), "", *lines, *self._tail()])

    def _head(self) -> list[str]:
        base = f"for {printable(self.base_model)}" if self.base_model else "base model not named"
        return [
            printable(self.path),
            f"LoRA adapter, {base}: {len(self.layers)} layers, {self.parameters:,} parameters, {self.bytes:,} bytes",
        ]

    def _tail(self) -> list[str]:
        saved = [f"trained whole: {printable(name)} {shape}" for name, shape in self.saved.items()]
        unsupported = [f"not supported: {printable(name)}: {printable(why)}" for name, why in self.unsupported.items()]
        found = [*saved, *unsupported, *(f"note: {printable(note)}" for note in self.notes)]
        return ["", *found] if found else []


def inspect(path, progress: Callable[[int, int], None] = lambda done, total: None) -> Inspection:
    r"""Read an adapter, layer by layer.

    Parameters
    ----------
    path : path
        The folder, or its `adapter_model.safetensors`.
    progress : function of (done, total), optional
        Called after each layer.

    Raises
    ------
    FileFormatError, OSError, ModuleNotFoundError
        As `read_peft`; also for a value that is not finite, which only reading the tensors shows.
    """
    adapter = read_peft(path)
    rows = []
    for name in adapter.layers:
        rows.append(_report(name, adapter.layers[name]))
        progress(len(rows), len(adapter.layers))
    base = adapter.config.settings.get("base_model_name_or_path")
    return Inspection(
        str(adapter.file.path),
        base if isinstance(base, str) else None,
        Path(adapter.file.path).stat().st_size,
        tuple(rows),
        {name: list(adapter.saved.info(name).shape) for name in adapter.saved},
        dict(adapter.unsupported),
        tuple(adapter.config.notes),
    )


def _report(name, layer) -> LayerReport:
    singular = layer.singular_values()
    return LayerReport(
        name=name,
        kind="embedding" if layer.embedding else "dora" if layer.magnitude is not None else "linear",
        out_features=layer.shape[0],
        in_features=layer.shape[1],
        rank=layer.rank,
        alpha=layer.config.alpha,
        scaling=layer.scaling,
        parameters=layer.parameter_count,
        norm=math.hypot(*singular),
        largest=float(singular[0]),
        effective_rank=layer.effective_rank(),
        dtype=layer.dtype,
    )
