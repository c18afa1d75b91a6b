r"""The tensors of a PEFT file by name: which is part of which layer, which is a trained part of the base.

    base_model.model.<layer>.lora_A.weight                 A (rank, in)
    base_model.model.<layer>.lora_B.weight                 B (out, rank)
    base_model.model.<layer>.lora_B.bias                   bias of B (out,)
    base_model.model.<layer>.lora_magnitude_vector         DoRA's m (out,)
    base_model.model.<layer>.lora_embedding_A, _B          A (rank, tokens), B (dim, rank) of an embedding
    base_model.model.<layer>.base_layer.bias               a trained bias of the base
    base_model.model.<module>.weight, .bias                a module that was trained whole (`modules_to_save`)

Names and shapes come from the header: nothing here reads a tensor before it is asked for.

Source: PEFT 0.21.2, `utils/save_and_load.py`.
"""

import re
from collections.abc import Mapping

import numpy as np

from lora_edu.interop.container import TensorFile, TensorInfo
from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.peft_config import CONFIG_NAME, PeftConfig, check_scaling
from lora_edu.interop.peft_layer import PeftLayer
from lora_edu.validate import check_array

PREFIX = "base_model.model."
PARTS = {
    "lora_A.weight": "lora_a",
    "lora_B.weight": "lora_b",
    "lora_B.bias": "lora_bias",
    "lora_embedding_A": "embedding_a",
    "lora_embedding_B": "embedding_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
LAYER_PART = re.compile(rf"{re.escape(PREFIX)}(.+?)\.({'|'.join(map(re.escape, PARTS))})", re.DOTALL)
FLOATS = ("F64", "F32", "F16", "BF16")
EMBEDDINGS = ("embed_tokens", "lm_head")  # saved whole by PEFT where the vocabulary was resized


def sort_tensors(file: TensorFile, config: PeftConfig):
    """Every tensor of the file as part of a layer, as a trained part of the base, or as something not supported."""
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    unsupported = {f"{CONFIG_NAME}: {key}": why for key, why in config.unsupported.items()}
    targets = config.settings.get("target_modules")
    for tensor in file:
        match = LAYER_PART.fullmatch(tensor)
        if match is None:
            name = tensor.removeprefix(PREFIX).replace(".base_layer.", ".")
            if tensor.startswith(PREFIX) and is_trained_base(name, config) and name not in saved:
                saved[name] = tensor
            else:
                unsupported[tensor] = "is no part of a LoRA layer that is known here"
        elif len(file.info[tensor].shape) > 2:
            unsupported[tensor] = f"adapts more than a matrix: shape {list(file.info[tensor].shape)}"
        elif isinstance(targets, list) and not config.lora.selects(match[1]):
            unsupported[tensor] = "target_modules does not select its layer, so PEFT would not load it"
        elif PARTS[match[2]] in parts.setdefault(match[1], {}):
            unsupported[tensor] = f"says again what {parts[match[1]][PARTS[match[2]]]} says"
        else:
            parts[match[1]][PARTS[match[2]]] = tensor
    broken = {tensor.rpartition(".lora_")[0].removeprefix(PREFIX) for tensor in unsupported}
    return {name: found for name, found in parts.items() if name not in broken}, saved, unsupported


def is_trained_base(name: str, config: PeftConfig) -> bool:
    """Whether a tensor that is no part of a pair is a weight or bias of the base that was trained."""
    module, _, kind = name.rpartition(".")
    if kind == "bias" and config.bias != "none":
        return True
    inside = module.split(".")
    return "lora_" not in name and any(
        part in inside or module == part or module.endswith("." + part)
        for part in (*config.modules_to_save, *EMBEDDINGS)
    )


def checked_layer(file: TensorFile, config: PeftConfig, name: str, found: dict[str, str]):
    """The parts of one layer, its settings and whether it is an embedding; contradictions are refused."""

    def refuse(problem):
        raise FileFormatError(file.path, f"layer {name!r}: {problem}")

    embedding = "embedding_a" in found or "embedding_b" in found
    if embedding and ("lora_a" in found or "lora_b" in found):
        refuse("has the pair of a linear layer and that of an embedding")
    found = {{"embedding_a": "lora_a", "embedding_b": "lora_b"}.get(part, part): key for part, key in found.items()}
    for part in ("lora_a", "lora_b"):
        if part not in found:
            refuse(f"has no {part[:-1]}{part[-1].upper()}")
    shapes = {part: file.info[key].shape for part, key in found.items()}
    for part, key in found.items():
        if file.info[key].dtype not in FLOATS:
            refuse(f"{part} is {file.info[key].dtype}, it must be one of {', '.join(FLOATS)}")
        if len(shapes[part]) != (2 if part in ("lora_a", "lora_b") else 1) or 0 in shapes[part]:
            refuse(f"{part} has shape {list(shapes[part])}")
    rank, out = shapes["lora_a"][0], shapes["lora_b"][0]
    settings = config.for_layer(name)
    if shapes["lora_b"][1] != rank:
        refuse(
            f"lora_A {list(shapes['lora_a'])} and lora_B {list(shapes['lora_b'])} do not fit: (rank, in), (out, rank)"
        )
    if rank != settings.rank:
        refuse(f"{CONFIG_NAME} says rank {settings.rank}, lora_A has {rank} rows")
    optional = {
        "magnitude": ("use_dora", config.use_dora, "lora_magnitude_vector"),
        "lora_bias": ("lora_bias", config.lora_bias and not embedding, "lora_B.bias"),
    }
    for part, (key, wanted, tensor) in optional.items():
        if wanted != (part in found):
            refuse(f"{key} is {'true' if wanted else 'false'}, but there is {'no' if wanted else 'a'} {tensor}")
        if wanted and shapes[part] != (out,):
            refuse(f"{tensor} must have shape [{out}], got {list(shapes[part])}")
    if embedding and config.use_dora:
        refuse("DoRA under an embedding is not supported")
    check_scaling(file.path, name, settings)
    return found, settings, embedding


class FileTensors(Mapping):
    """Tensors of a file under other names, read when asked for."""

    def __init__(self, file: TensorFile, names: dict[str, str]):
        self._file, self._names = file, names

    def __getitem__(self, name):
        return self._file[self._names[name]]

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)

    def __contains__(self, name):
        return name in self._names

    def info(self, name) -> TensorInfo:
        """Shape and dtype, without reading the tensor."""
        return self._file.info[self._names[name]]


class FileLayers(FileTensors):
    """Layers of a file, read when asked for; a value that is not finite is refused."""

    def __getitem__(self, name) -> PeftLayer:
        found, config, embedding = self._names[name]
        parts = {part: self._part(key) for part, key in found.items()}
        return PeftLayer(config=config, embedding=embedding, dtype=self._file.info[found["lora_a"]].dtype, **parts)

    def _part(self, key) -> np.ndarray:
        tensor = self._file.finite(key)
        try:
            with np.errstate(over="ignore"):
                check_array(f"{key} in float32", tensor.astype(np.float32))
        except ValueError as error:
            raise FileFormatError(self._file.path, str(error)) from None
        return tensor.astype(np.result_type(tensor.dtype, np.float32), copy=False)
