r"""Where the bytes of a model file go: codes, scales, scales of scales, maps, and what is not quantized.

    bits per weight = 8 · (all bytes that stand for it) / (number of weights)

The parts of all tensors and the headers add up to the size on disk, to the byte.
"""

from dataclasses import asdict, dataclass
from math import prod

from lora_edu.interop.bitsandbytes import BitsandbytesFile
from lora_edu.interop.container import TensorFile
from lora_edu.interop.errors import printable
from lora_edu.interop.table import by_number, short, table

# the parts of a 4-bit weight, in the order of the table, and what each is in a file
PARTS = {
    "codes": "codes",
    "absmax": "scales",
    "nested_absmax": "second scales",
    "quant_map": "maps",
    "nested_quant_map": "maps",
    "quant_state": "settings",
}
COLUMNS = (*dict.fromkeys(PARTS.values()), "unquantized")


@dataclass(frozen=True)
class TensorMemory:
    r"""One weight and all tensors that stand for it.

    Attributes
    ----------
    name : str
    format : str
        "nf4" or "fp4", or the dtype of a tensor that is not quantized, as the file spells it.
    block_size : int or None
    shape : tuple of int
        Of the weight, not of its codes.
    size : int
        Number of weights.
    parts : dict of str to int
        Bytes by part, those of `COLUMNS` that it has.
    """

    name: str
    format: str
    block_size: int | None
    shape: tuple[int, ...]
    size: int
    parts: dict[str, int]

    @property
    def bytes(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def bits(self) -> dict[str, float]:
        """Bits a weight by part."""
        return {part: 8 * number / self.size for part, number in self.parts.items()}

    @property
    def bits_per_weight(self) -> float | None:
        """What a weight really costs; None for a tensor without any."""
        return 8 * self.bytes / self.size if self.size else None


@dataclass(frozen=True)
class MemoryReport:
    r"""A whole model file; `str` of it is the table, `as_json` what `--json` prints.

    Attributes
    ----------
    path : str
        The file, or the index of its shards.
    bytes : int
        On disk, of all shards and without the index.
    header : int
        Bytes of the headers, which say where each tensor is.
    tensors : tuple of TensorMemory
    """

    path: str
    bytes: int
    header: int
    tensors: tuple[TensorMemory, ...]

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of all tensors by part."""
        return {part: sum(tensor.parts.get(part, 0) for tensor in self.tensors) for part in COLUMNS}

    @property
    def size(self) -> int:
        """Number of weights, quantized or not."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def quantized_size(self) -> int:
        """Number of weights that are quantized."""
        return sum(tensor.size for tensor in self.tensors if tensor.block_size)

    @property
    def bits_per_quantized_weight(self) -> float | None:
        """Bytes of the quantized weights, scales and maps included; None where there are none."""
        spent = sum(tensor.bytes for tensor in self.tensors if tensor.block_size)
        return 8 * spent / self.quantized_size if self.quantized_size else None

    @property
    def bits_per_weight(self) -> float | None:
        """Everything on disk, over all weights; None for a file without any."""
        return 8 * self.bytes / self.size if self.size else None

    def as_json(self) -> dict:
        """Everything, in values that JSON has."""
        rows = [
            {**asdict(tensor), "bytes": tensor.bytes, "bits_per_weight": tensor.bits_per_weight}
            for tensor in self.tensors
        ]
        totals = ("parts", "size", "quantized_size", "bits_per_quantized_weight", "bits_per_weight")
        return {**asdict(self), "tensors": rows, **{name: getattr(self, name) for name in totals}}

    def __str__(self):
        used = [part for part in COLUMNS if self.parts[part]]
        rows = [("tensor", "format", "shape", "weights", *used, "bits/weight")]
        for x in self.tensors:
            shape = " x ".join(map(str, x.shape)) or "-"
            cells = (f"{x.parts[part]:,}" if part in x.parts else "-" for part in used)
            rows.append((short(x.name), x.format, shape, f"{x.size:,}", *cells, _bits(x.bits_per_weight)))
        totals = (f"{self.parts[part]:,}" for part in used)
        rows.append(("all", "", "", f"{self.size:,}", *totals, _bits(self.bits_per_weight)))
        return "\n".join([printable(self.path), *self._head(), "", *table(rows)])

    def _head(self) -> list[str]:
        one = f"{self.bytes:,} bytes, {self.header:,} of them the header; {_bits(self.bits_per_weight)} bits per weight"
        count = sum(tensor.block_size is not None for tensor in self.tensors)
        lines = [f"model file: {len(self.tensors)} tensors, {self.size:,} weights", one]
        if not count:
            return [*lines, f"nothing in it is in 4 bits: {self._formats()}"]
        share = self.quantized_size / self.size
        kinds = " and ".join(sorted({tensor.format for tensor in self.tensors if tensor.block_size}))
        return [
            *lines,
            f"{kinds}: {count} tensors, {share:.0%} of the weights, {_bits(self.bits_per_quantized_weight)} bits each",
        ]

    def _formats(self) -> str:
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.format] = sizes.get(tensor.format, 0) + tensor.size
        return ", ".join(f"{size:,} in {name}" for name, size in sizes.items()) or "it is empty"


def memory_report(source) -> MemoryReport:
    r"""Where the bytes of a model go; of its tensors only the settings of 4-bit weights are read.

    Parameters
    ----------
    source : path or TensorFile
        A file, an index of shards, or a folder with one of them; quantized by bitsandbytes, or not.

    Raises
    ------
    FileFormatError, OSError, ModuleNotFoundError
        As `read_bitsandbytes`.
    """
    model = BitsandbytesFile(source if isinstance(source, TensorFile) else TensorFile(source))
    info = model.file.info
    rows = []
    for header in model.headers.values():
        parts = dict.fromkeys(COLUMNS[:-1], 0)
        for part, tensor in header.tensors.items():
            parts[PARTS[part]] += info[tensor].nbytes
        parts = {part: number for part, number in parts.items() if number}
        rows.append(TensorMemory(header.name, header.kind, header.block_size, header.shape, header.size, parts))
    for name in model.plain:
        plain = info[name]
        rows.append(
            TensorMemory(name, plain.dtype, None, plain.shape, prod(plain.shape), {"unquantized": plain.nbytes})
        )
    size = sum(path.stat().st_size for path in {info[name].path for name in info} or {model.file.path})
    rows.sort(key=lambda row: by_number(row.name))
    return MemoryReport(str(model.file.path), size, size - model.file.nbytes, tuple(rows))


def _bits(number: float | None) -> str:
    return "-" if number is None else f"{number:.4g}"
