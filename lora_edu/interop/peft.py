r"""PEFT adapters: a folder with `adapter_config.json` and `adapter_model.safetensors`, read and written.

    PEFT                      here
    lora_A.weight (r, in)     lora_a (rank, in)
    lora_B.weight (out, r)    lora_b (out, rank)

Reading needs no base weight; `PeftAdapter.over` puts the pairs over one. The tensors' names stand in `peft_tensors`,
the settings' in `peft_config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lora_edu.adapter import LoraAdapter
from lora_edu.config import LoraConfig
from lora_edu.files import write_atomically
from lora_edu.interop.container import TensorFile, refuse_pickle, require_safetensors
from lora_edu.interop.container_write import write_tensors
from lora_edu.interop.errors import FileFormatError
from lora_edu.interop.peft_config import (
    CONFIG_NAME,
    PLAIN,
    PeftConfig,
    config_from_settings,
    config_json,
    exact_pattern,
    read_config,
)
from lora_edu.interop.peft_layer import PeftLayer
from lora_edu.interop.peft_tensors import (
    PREFIX,
    FileLayers,
    FileTensors,
    checked_layer,
    is_trained_base,
    sort_tensors,
)
from lora_edu.precision import rounded
from lora_edu.validate import check_array
from lora_edu.variants import DoraLinear, LoraEmbedding, LoraLinearWithBias

MODEL_NAME = "adapter_model.safetensors"
DERIVED = (
    *("alpha_pattern", "fan_in_fan_out", "init_lora_weights", "lora_alpha", "lora_bias", "lora_dropout", "peft_type"),
    *("r", "rank_pattern", "target_modules", "use_dora", "use_rslora"),
)


@dataclass(frozen=True, eq=False)
class PeftAdapter:
    r"""An adapter as its files hold it, without base weights.

    Attributes
    ----------
    config : PeftConfig
    layers : mapping of name to PeftLayer
        Read from the file when asked for.
    saved : mapping of name to array
        Weights and biases of the base that were trained too, under the names they have in the base.
    unsupported : dict of str to str
        Tensor or key of the config -> why it is not read here. `over` refuses an adapter that has any.
    file : TensorFile, optional
        Where it was read from.
    """

    config: PeftConfig
    layers: Mapping[str, PeftLayer]
    saved: Mapping[str, np.ndarray] = field(default_factory=dict)
    unsupported: Mapping[str, str] = field(default_factory=dict)
    file: TensorFile | None = None

    def over(self, weights: Mapping[str, np.ndarray], ignore_unsupported: bool = False) -> LoraAdapter:
        r"""The adapter over base weights, of which only those of the adapted layers are read.

        Parameters
        ----------
        weights : mapping of name to array
            As the base model's file names them, `q_proj.weight` and `q_proj.bias`: a `TensorFile`, or a dict.
        ignore_unsupported : bool
            Build the layers that are understood although others are not.

        Raises
        ------
        ValueError
            If something is not supported, or a weight does not fit.
        KeyError
            If a weight is missing.
        """
        if self.unsupported and not ignore_unsupported:
            what = "; ".join(f"{name}: {why}" for name, why in self.unsupported.items())
            raise ValueError(f"not supported: {what}. ignore_unsupported=True builds the rest")
        adapter = LoraAdapter(self.config.lora)
        for name, layer in self.layers.items():
            weight, bias = self._base_of(name, layer, weights)
            try:
                adapter.add(name, layer.over(weight, bias))
            except (TypeError, ValueError) as error:
                raise type(error)(f"layer {name!r}: {error}") from None
        return adapter

    def _base_of(self, name, layer, weights):
        """Weight and bias of the base layer called `name`: those that were trained, or else those of `weights`."""
        weight = self._find(name + ".weight", weights)
        if weight is None:
            weight = self._find(name, weights)
        if weight is None:
            raise KeyError(f"the base has no weight {name + '.weight'!r}")
        transposed = self.config.lora.fan_in_fan_out or layer.embedding
        expected = layer.shape[::-1] if transposed else layer.shape
        if weight.shape != expected:
            raise ValueError(f"layer {name!r} needs a base weight of shape {expected}, got {weight.shape}")
        return weight, None if layer.embedding else self._find(name + ".bias", weights)

    def _find(self, name, weights) -> np.ndarray | None:
        for source in (self.saved, weights):
            if name in source:
                return source[name]
        # GPT-2's own file says h.0.attn.c_attn.weight where the adapter says transformer.h.0.attn.c_attn
        shorter = name.partition(".")[2]
        return weights[shorter] if "." in shorter and shorter in weights else None


def read_peft(path) -> PeftAdapter:
    r"""Open a PEFT adapter: names, shapes and settings are checked now, tensors are read when they are asked for.

    Parameters
    ----------
    path : path
        The folder, or its `adapter_model.safetensors`.

    Raises
    ------
    FileFormatError
        If a file is corrupt, is a pickle, is for another method, or contradicts itself.
    OSError, ModuleNotFoundError
        If a file is missing or must not be read; if the package `safetensors` is.
    """
    path = Path(path)
    require_safetensors()
    if path.name == CONFIG_NAME:
        path = path.parent
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        if not (path / CONFIG_NAME).is_file():
            inner = ", ".join(sorted(found.parent.name for found in path.glob(f"*/{CONFIG_NAME}")))
            hint = f"; adapters are in its folders {inner}" if inner else "; it is no PEFT adapter"
            raise FileFormatError(path, f"has no {CONFIG_NAME}{hint}")
        if not (path / MODEL_NAME).exists():
            if (path / "adapter_model.bin").exists():
                refuse_pickle(path / "adapter_model.bin")
            raise FileFormatError(path, f"has no {MODEL_NAME}")
        path = path / MODEL_NAME
    file = TensorFile(path)
    if not (folder / CONFIG_NAME).is_file():
        raise FileFormatError(path, f"has no {CONFIG_NAME} beside it, which says rank and alpha")
    config = read_config(folder)
    parts, saved, unsupported = sort_tensors(file, config)
    layers = {name: checked_layer(file, config, name, found) for name, found in parts.items()}
    if not layers and not unsupported:
        raise FileFormatError(path, "holds no LoRA tensors")
    return PeftAdapter(config, FileLayers(file, layers), FileTensors(file, saved), unsupported, file)


def to_peft(adapter: LoraAdapter, saved: Mapping[str, np.ndarray] | None = None, **settings) -> PeftAdapter:
    r"""One of our adapters in PEFT's terms, ready for `write_peft`.

    Parameters
    ----------
    adapter : LoraAdapter
        Its layers may differ in rank and alpha; in nothing else that PEFT keeps once for all layers.
    saved : mapping of name to array, optional
        Weights and biases of the base that were trained too, as in `PeftAdapter.saved`.
    **settings
        Further keys of `adapter_config.json`, e.g. `base_model_name_or_path`, `task_type`, `modules_to_save`, `bias`.

    Raises
    ------
    ValueError
        If the layers disagree where PEFT has one setting, or a key is not PEFT's or is derived from the layers.
    """
    derived = sorted(set(settings) & set(DERIVED))
    if derived:
        raise ValueError(f"{', '.join(derived)} follow from the layers; change them there")
    if not len(adapter):
        raise ValueError("the adapter has no layers yet; add one first")
    layers = {name: _layer_of(adapter[name]) for name in adapter}
    return peft_adapter(layers, adapter.config, saved or {}, settings)


def peft_adapter(layers: Mapping[str, PeftLayer], config: LoraConfig, saved, settings) -> PeftAdapter:
    r"""Layers as one adapter: r and lora_alpha from `config`, patterns for the layers that have others."""
    for kind in ("fan_in_fan_out", "use_rslora", "dropout"):
        values = {name: getattr(layer.config, kind) for name, layer in layers.items()}
        if kind == "fan_in_fan_out":  # of an embedding it says nothing
            values = {name: value for name, value in values.items() if not layers[name].embedding}
        if len(set(values.values())) > 1:
            raise ValueError(f"{kind} must be the same in every layer of a PEFT adapter, got {values}")
    linear = [layer for layer in layers.values() if not layer.embedding] or list(layers.values())
    for kind in ("magnitude", "lora_bias"):
        if len({getattr(layer, kind) is None for layer in linear}) > 1:
            raise ValueError(f"either every layer of a PEFT adapter has a {kind} or none")
    shared = linear[0].config
    targets = config.target_modules
    derived = {
        "r": config.rank,
        "lora_alpha": _plain_number(config.alpha),
        "lora_dropout": shared.dropout,
        "fan_in_fan_out": shared.fan_in_fan_out and not linear[0].embedding,
        "use_rslora": shared.use_rslora,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "target_modules": sorted(layers) if isinstance(targets, str) else list(targets),
        "rank_pattern": {exact_pattern(n): x.rank for n, x in layers.items() if x.rank != config.rank},
        "alpha_pattern": {
            exact_pattern(n): _plain_number(x.config.alpha) for n, x in layers.items() if x.config.alpha != config.alpha
        },
        "use_dora": linear[0].magnitude is not None,
        "lora_bias": linear[0].lora_bias is not None,
    }
    config_json({**settings, **derived})  # refuses a key that PEFT does not have
    made = config_from_settings({**PLAIN, **settings, **derived}, CONFIG_NAME)
    for name in saved:
        if not is_trained_base(name, made):
            raise ValueError(f"{name!r} would not be loaded; name its module in modules_to_save, or give bias='all'")
    return PeftAdapter(made, layers, saved)


def write_peft(adapter: PeftAdapter, folder, dtype: str = "float32"):
    r"""Write `adapter_model.safetensors` and `adapter_config.json` into `folder`, which is made if it is missing.

    Parameters
    ----------
    adapter : PeftAdapter
        From `read_peft`, `to_peft` or `combine`.
    folder : path
    dtype : "float32", "float16" or "bfloat16"
        How A, B and what stands beside them are stored; rounded to the nearest.

    Raises
    ------
    ValueError
        If something of the adapter is not supported, so that it would be lost, or a value does not fit into `dtype`.
    """
    if adapter.unsupported:
        raise ValueError(f"not supported, so it would be lost: {', '.join(adapter.unsupported)}")
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
    tensors = {}
    for name, layer in adapter.layers.items():
        a, b = ("lora_embedding_A", "lora_embedding_B") if layer.embedding else ("lora_A.weight", "lora_B.weight")
        parts = {a: layer.lora_a, b: layer.lora_b}
        parts |= {"lora_magnitude_vector": layer.magnitude, "lora_B.bias": layer.lora_bias}
        tensors |= {f"{PREFIX}{name}.{key}": part for key, part in parts.items() if part is not None}
    for name, tensor in adapter.saved.items():
        module, _, kind = name.rpartition(".")
        inner = ".base_layer" if module in adapter.layers else ""
        tensors[f"{PREFIX}{module}{inner}.{kind}"] = tensor
    tensors = {name: _stored(name, tensor, dtype) for name, tensor in tensors.items()}
    settings = {key: value for key, value in adapter.config.settings.items() if key in PLAIN}
    config = config_json(settings)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / MODEL_NAME, tensors, {"format": "pt"}, tensors if dtype == "bfloat16" else ())
    write_atomically(folder / CONFIG_NAME, config)


def _layer_of(layer) -> PeftLayer:
    return PeftLayer(
        layer.lora_a,
        layer.lora_b,
        layer.config,
        magnitude=layer.magnitude if isinstance(layer, DoraLinear) else None,
        lora_bias=layer.lora_bias if isinstance(layer, LoraLinearWithBias) else None,
        embedding=isinstance(layer, LoraEmbedding),
    )


def _stored(name: str, tensor, dtype: str) -> np.ndarray:
    """Floats rounded to `dtype`, which has to hold them."""
    tensor = np.asarray(tensor)
    if tensor.dtype.kind != "f":
        raise TypeError(f"{name} must be float to be stored in an adapter, got {tensor.dtype}")
    with np.errstate(over="ignore"):
        return check_array(f"{name} in {dtype}", rounded(tensor.astype(np.float32), dtype))


def _plain_number(value: float) -> int | float:
    return int(value) if value == int(value) else value
