r"""Whole model files, a tensor at a time: quantize the weights of one, or measure what that would lose.

Linear weights are told from names and shapes, for a file says no more: floating matrices called `weight`, but for
embeddings and the output head, which stay as they are in QLoRA too. GPT-2 stores its weights (in, out); they are
quantized as they are stored.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lora_edu.blockwise import CHUNK, QuantizedTensor, dequantize_range, quantize
from lora_edu.codebooks import CODEBOOKS
from lora_edu.interop.bitsandbytes import LABELS, BitsandbytesFile, planned_4bit, quantize_4bit
from lora_edu.interop.container import TensorFile, TensorInfo
from lora_edu.interop.container_write import Planned, write_in_pieces
from lora_edu.interop.errors import FileFormatError, printable
from lora_edu.interop.memory import MemoryReport, memory_report
from lora_edu.interop.table import by_number, short, table

NOT_LINEAR = ("wte", "wpe", "shared", "lm_head", "relative_attention_bias")  # and what is called embed…
DTYPES_4BIT = {label: dtype for dtype, label in LABELS.items()}  # "BF16": "bfloat16"
FLOATS = (*DTYPES_4BIT, "F64")
NAMED = 8  # tensors of one kind that are listed by name below a table that has them all
ERROR_FORMATS = ("nf4", "fp4", "int4", "e2m1", "af4")

Progress = Callable[[int, int], None]


def nothing(done: int, total: int) -> None:
    r"""No progress is shown."""


def why_not_linear(name: str, info: TensorInfo, skip: Sequence[str] = ()) -> str | None:
    r"""Why a tensor is not a linear weight, in a few words; None if it is taken for one."""
    module = name.removesuffix("weight").rstrip(".").rpartition(".")[2]
    if info.dtype not in FLOATS:
        return f"{info.dtype} numbers"
    if len(info.shape) != 2 or 0 in info.shape:
        return "not a matrix"
    if name != "weight" and not name.endswith(".weight"):
        return "not called weight"
    if module in NOT_LINEAR or "embed" in module:
        return "an embedding or the head"
    if ".lora_" in name:
        return "part of an adapter"
    for part in skip:
        if part in name:
            return f"its name holds {part!r}"
    return None


@dataclass(frozen=True)
class QuantizedFile:
    r"""What `quantize_file` did.

    Attributes
    ----------
    source : str
    source_bytes : int
    copied : dict of str to str
        Tensors that stay as they are -> why.
    memory : MemoryReport
        Of the new file.
    notes : tuple of str
    """

    source: str
    source_bytes: int
    copied: dict[str, str]
    memory: MemoryReport
    notes: tuple[str, ...]

    def as_json(self) -> dict:
        """Everything, in values that JSON has."""
        return {**asdict(self), "memory": self.memory.as_json()}

    def __str__(self):
        reasons: dict[str, list[str]] = {}
        for name, why in self.copied.items():
            reasons.setdefault(why, []).append(short(name))
        copied = [
            f"copied as they are, {printable(why)}: {', '.join(names) if len(names) <= NAMED else len(names)}"
            for why, names in reasons.items()
        ]
        change = f"{self.source_bytes:,} -> {self.memory.bytes:,} bytes"
        notes = [f"note: {printable(note)}" for note in self.notes]
        return "\n".join([str(self.memory), "", f"{printable(self.source)}: {change}", *copied, *notes])


def quantize_file(
    source,
    target,
    kind: str = "nf4",
    block_size: int = 64,
    double: bool = False,
    skip: Sequence[str] = (),
    progress: Progress = nothing,
) -> QuantizedFile:
    r"""Quantize the linear weights of a model file into one that bitsandbytes loads; everything else is copied.

    The new file appears when it is complete. One tensor at a time is in memory.

    Parameters
    ----------
    source, target : path
        `source` may be a folder or an index of shards; `target` is one `.safetensors` file.
    kind : "nf4" or "fp4"
    block_size : int
    double : bool
        Scales in 8 bits.
    skip : sequence of str
        Weights whose name holds one of these are copied too.
    progress : function of (done, total), optional
        Called after each tensor.

    Raises
    ------
    FileFormatError
        If a file is not sound, holds no weight to quantize, or `target` is one of the files read; for NaN and infinity.
    """
    model = BitsandbytesFile(TensorFile(source))
    file, target = model.file, Path(target)
    _check_target(file, target)
    if model.headers:
        raise FileFormatError(file.path, f"is quantized already: {next(iter(model.headers))!r} is in 4 bits")
    copied = {}
    for name in sorted(file, key=by_number):
        info = file.info[name]
        why = why_not_linear(name, info, skip)
        if why or info.dtype not in DTYPES_4BIT:
            copied[name] = why or f"{info.dtype} numbers, which bitsandbytes does not quantize"
    if len(copied) == len(file):
        raise FileFormatError(file.path, "holds no linear weight to quantize")
    plan: dict[str, Planned] = {}
    for name, info in file.info.items():
        if name in copied:
            plan[name] = Planned(info.dtype, info.shape, info.nbytes)
        else:
            plan |= planned_4bit(name, info.shape, kind, block_size, double)

    def pieces() -> Iterator[tuple[str, np.ndarray]]:
        for done, name in enumerate(file, 1):
            if name in copied:
                yield name, file.raw(name)
            else:
                weight = quantize_4bit(file.finite(name), kind, block_size, double, DTYPES_4BIT[file.info[name].dtype])
                yield from ((tensor, array) for tensor, (_, array) in weight.tensors(name).items())
            progress(done, len(file))

    write_in_pieces(target, plan, pieces(), {**file.metadata, "format": "pt"})
    names = sorted(set(file) - set(copied), key=by_number)
    uneven = [name for name in names if file.info[name].shape[-1] % block_size]
    what = f"rows of {', '.join(uneven)} are no multiple of {block_size}"
    notes = [f"{what}: bitsandbytes 0.50.2 reads them wrongly on a CPU with AVX-512"] if uneven else []
    before = sum(path.stat().st_size for path in {info.path for info in file.info.values()})
    return QuantizedFile(str(file.path), before, copied, memory_report(target), tuple(notes))


def _check_target(file: TensorFile, target: Path):
    if target.is_dir():
        raise FileFormatError(target, "is a folder; name the file to write")
    if target.suffix != ".safetensors":
        raise FileFormatError(target, "must end in .safetensors")
    read = {file.path, *(info.path for info in file.info.values())}
    if target.exists() and any(target.samefile(path) for path in read):
        raise FileFormatError(target, "is what is read; write to another file")


@dataclass(frozen=True)
class FormatError:
    r"""What one format does to one weight, or to all of them.

    Attributes
    ----------
    relative_error : float or None
        ‖W - Ŵ‖ / ‖W‖; None where W is zero.
    snr_db : float or None
        -20 log₁₀ of it; None where the error is zero, too.
    """

    relative_error: float | None
    snr_db: float | None

    @classmethod
    def of(cls, noise: float, signal: float):
        r"""From Σ (w - ŵ)² and Σ w²."""
        if signal == 0:
            return cls(None, None)
        error = math.sqrt(noise / signal)
        return cls(error, -20 * math.log10(error) if error else None)

    def __str__(self):
        if self.relative_error is None:
            return "-"
        return f"{self.relative_error:.2%} {'' if self.snr_db is None else f'{self.snr_db:.1f}':>5}"


@dataclass(frozen=True)
class ErrorReport:
    r"""The error of every linear weight of a file in several formats; `str` of it is the table.

    Attributes
    ----------
    path : str
    block_size : int
    errors : dict of str to dict of str to FormatError
        Weight -> format -> error.
    total : dict of str to FormatError
        Of all weights together: √(Σ ‖W - Ŵ‖² / Σ ‖W‖²).
    bits_per_weight : dict of str to float
        Of each format, its scales included.
    left_out : dict of str to str
        Tensors that are not measured -> why.
    """

    path: str
    block_size: int
    errors: dict[str, dict[str, FormatError]]
    total: dict[str, FormatError]
    bits_per_weight: dict[str, float]
    left_out: dict[str, str]

    def as_json(self) -> dict:
        """Everything, in values that JSON has."""
        return asdict(self)

    def __str__(self):
        rows = [("weight", *self.total)]
        rows += [(short(name), *map(str, formats.values())) for name, formats in self.errors.items()]
        rows += [("all", *map(str, self.total.values()))]
        rows += [("bits per weight", *(f"{bits:.4g}" for bits in self.bits_per_weight.values()))]
        head = f"{len(self.errors)} weights, blocks of {self.block_size}: relative error, and SNR in dB"
        left_out: dict[str, int] = {}
        for why in self.left_out.values():
            left_out[why] = left_out.get(why, 0) + 1
        tail = [f"not measured: {count}, {printable(why)}" for why, count in left_out.items()]
        return "\n".join([printable(self.path), head, "", *table(rows, left=1), *([""] if tail else []), *tail])


def error_report(
    source, formats: Iterable[str] = ERROR_FORMATS, block_size: int = 64, progress: Progress = nothing
) -> ErrorReport:
    r"""What 4 bits would do to each linear weight of a file: the error of each format, computed in float32.

    Parameters
    ----------
    source : path
    formats : names of `codebooks.CODEBOOKS`
    block_size : int
    progress : function of (done, total), optional
        Called after each weight.

    Raises
    ------
    FileFormatError
        If a file is not sound or holds no such weight; for NaN and infinity.
    """
    formats = list(dict.fromkeys(formats))
    unknown = [name for name in formats if name not in CODEBOOKS]
    if unknown or not formats:
        raise ValueError(f"formats must be some of {', '.join(CODEBOOKS)}, got {unknown}")
    model = BitsandbytesFile(TensorFile(source))
    file = model.file
    left_out = dict.fromkeys(model.headers, "in 4 bits already, the weight itself is not in the file")
    left_out |= {
        name: why for name in sorted(model.plain, key=by_number) if (why := why_not_linear(name, file.info[name]))
    }
    names = sorted(set(model.plain) - set(left_out), key=by_number)
    if not names:
        why = "; they are in 4 bits already" if model.headers else ""
        raise FileFormatError(file.path, f"holds no linear weight to measure{why}")
    errors, bits = {}, dict.fromkeys(formats, 0.0)
    sums = {name: np.zeros(2) for name in formats}  # Σ (w - ŵ)² and Σ w²
    for done, name in enumerate(names, 1):
        weight = _as_float32(file, name)
        errors[name] = {}
        for form in formats:
            q = quantize(weight, block_size, CODEBOOKS[form], "high-first")
            squares = np.array([_noise(weight, q), _signal(weight)])
            errors[name][form] = FormatError.of(*squares)
            sums[form] += squares
            bits[form] += 8 * q.nbytes
        progress(done, len(names))
    size = sum(math.prod(file.info[name].shape) for name in names)
    total = {form: FormatError.of(*squares) for form, squares in sums.items()}
    bits = {form: number / size for form, number in bits.items()}
    return ErrorReport(str(file.path), block_size, errors, total, bits, left_out)


def _as_float32(file: TensorFile, name: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        weight = file.finite(name).astype(np.float32, copy=False)
    if not np.isfinite(weight).all():
        raise FileFormatError(file.path, f"{name!r} holds a number beyond float32; scale the weight down first")
    return weight


def _signal(weight: np.ndarray) -> float:
    flat = weight.reshape(-1)
    return sum(float(np.sum(np.square(flat[at : at + CHUNK], dtype=np.float64))) for at in range(0, flat.size, CHUNK))


def _noise(weight: np.ndarray, quantized: QuantizedTensor) -> float:
    """Σ (w - ŵ)² in float64, a piece at a time: the dequantized weight is never there as a whole."""
    flat, total = weight.reshape(-1), 0.0
    for at in range(0, flat.size, CHUNK):
        piece = flat[at : at + CHUNK]
        approximation = dequantize_range(quantized, at, at + piece.size, np.empty(piece.size, np.float32))
        total += float(np.sum(np.square(np.subtract(piece, approximation, dtype=np.float64))))
    return total
