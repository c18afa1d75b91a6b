r"""What is in a file: a row for each layer of an adapter, for each tensor of a model; for people, and as JSON."""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lora_edu.interop.container import INDEX_SUFFIX, TensorFile, refuse_pickle
from lora_edu.interop.errors import printable
from lora_edu.interop.memory import MemoryReport, memory_report
from lora_edu.interop.peft import MODEL_NAME, read_peft
from lora_edu.interop.peft_config import CONFIG_NAME
from lora_edu.interop.peft_tensors import PREFIX
from lora_edu.interop.table import short, table

LORA_TENSOR = re.compile(
    re.escape(PREFIX) + r".+\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)", re.DOTALL
)


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
            rows.append((short(x.name), x.kind, shape, str(x.rank), *numbers, x.dtype))
        return "\n".join([*self._head(), "", *table(rows), *self._tail()])

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


def inspect(path, progress: Callable[[int, int], None] = lambda done, total: None) -> Inspection | MemoryReport:
    r"""Say what is in an adapter, layer by layer, or where the bytes of a model file go, tensor by tensor.

    Parameters
    ----------
    path : path
        An adapter's folder, or its `adapter_model.safetensors`; a model's folder, file, or index of shards.
    progress : function of (done, total), optional
        Called after each layer of an adapter. Of a model only headers are read.

    Raises
    ------
    FileFormatError, OSError, ModuleNotFoundError
        As `read_peft` and `memory_report`; also for a value of an adapter that is not finite, which only reading the
        tensors shows.
    """
    return _inspect_adapter(path, progress) if _is_adapter(Path(path)) else memory_report(path)


def _is_adapter(path: Path) -> bool:
    """Whether `read_peft` is to judge a path: also where it is neither adapter nor model, for what it says then."""
    if path.is_dir():
        models = [*path.glob("*.safetensors"), *path.glob("*" + INDEX_SUFFIX)]
        return (path / CONFIG_NAME).is_file() or (path / MODEL_NAME).exists() or not models
    if path.name == CONFIG_NAME:
        return True
    refuse_pickle(path)
    if path.name == MODEL_NAME and (path.parent / CONFIG_NAME).is_file():
        return True
    return any(map(LORA_TENSOR.match, TensorFile(path)))


def _inspect_adapter(path, progress) -> Inspection:
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
