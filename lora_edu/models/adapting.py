r"""Ready to be fine-tuned: all of a model, some of it, or A and B beside its linear layers.

    model = adapt(base, LoraConfig(rank=4, target_modules=("q_proj", "v_proj")), quantize=True)
    model = prepare(base, "layer norms")

Either way `base` stays as it is, and shares its arrays with the model.
"""

from dataclasses import replace

import numpy as np

from lora_edu.adapter import LoraAdapter
from lora_edu.codebooks import NF4, Codebook
from lora_edu.config import ALL_LINEAR, LoraConfig
from lora_edu.linear import LoraLinear
from lora_edu.models.layers import AdaptedLinear, Linear
from lora_edu.models.model import Model
from lora_edu.qlora import QLoraLinear


def adapt(
    model: Model,
    config: LoraConfig,
    quantize: bool = False,
    *,
    seed: int = 0,
    block_size: int = 64,
    codebook: Codebook = NF4,
    double_quant: bool = False,
) -> Model:
    r"""`model` with A and B beside the linear layers that `config.target_modules` selects; nothing else is trained.

    Parameters
    ----------
    model : Model
        Stays as it is; the weights are shared, not copied.
    config : LoraConfig
        "all-linear" leaves the head of a language model alone, as PEFT does. A rank above min(out, in) of a layer is
        cut to that, at the same scaling: B A cannot have a higher one.
    quantize : bool
        Hold the adapted weights in 4 bits: QLoRA. The other arguments are those of `QLoraLinear`.
    seed : int
        Of every A, each its own.

    Returns
    -------
    Model, whose `adapter` is the `LoraAdapter` of its new layers
    """
    model.refuse_adapted()
    new = model.copy().train_only(lambda name: False)
    new.adapter = LoraAdapter(config)
    everything = isinstance(config.target_modules, str) and config.target_modules.lower() == ALL_LINEAR
    kept = model.kept_by_all_linear if everything else ()
    for index, (name, layer) in enumerate(model.layers.items()):
        if not isinstance(layer, Linear) or name in kept or not config.selects(name):
            continue
        weight, bias = layer.arrays["weight"], layer.arrays.get("bias")
        own = _cut(config, min(weight.shape))
        weight = np.ascontiguousarray(weight.T) if config.fan_in_fan_out else weight
        own_seed = int(np.random.default_rng([seed, index]).integers(1, 2**62))
        if quantize:
            settings = {"block_size": block_size, "codebook": codebook, "double_quant": double_quant}
            lora = QLoraLinear(weight, own, bias=bias, seed=own_seed, **settings)
        else:
            lora = LoraLinear(weight, own, bias=bias, seed=own_seed)
        new.layers[name] = AdaptedLinear(lora)
        new.adapter.add(name, lora)
    if not len(new.adapter):
        raise ValueError(
            f"target_modules {config.target_modules!r} selects none of {', '.join(model.linear_weights())}"
        )
    return new


def _cut(config: LoraConfig, limit: int) -> LoraConfig:
    if config.rank <= limit:
        return config
    return replace(config, rank=limit, alpha=config.scaling * (limit**0.5 if config.use_rslora else limit))


METHODS = {  # which arrays of the base each way of fine-tuning trains; LoRA and QLoRA train none of them
    "full": lambda model, name: True,
    "scratch": lambda model, name: True,
    "last layer": lambda model, name: name.startswith(list(model.layers)[-1] + "."),
    "biases": lambda model, name: name.endswith(".bias"),
    "layer norms": lambda model, name: "norm" in name.lower(),
}


def prepare(base: Model, method: str, config: LoraConfig | None = None, seed: int = 0, **quantization) -> Model:
    r"""A copy of `base`, ready to be fine-tuned in one of these ways; `base` stays as it is.

    Parameters
    ----------
    base : Model
    method : str
        "full", "last layer", "biases", "layer norms" train these arrays; "scratch" trains all, from nothing learned;
        "LoRA" and "QLoRA" train A and B.
    config : LoraConfig
        For "LoRA" and "QLoRA".
    seed : int
        Of A, or of a fresh start.
    quantization
        For "QLoRA": `block_size`, `codebook`, `double_quant`.
    """
    if method in ("LoRA", "QLoRA"):
        if config is None:
            raise ValueError(f"{method} needs a config; give a LoraConfig")
        return adapt(base, config, method == "QLoRA", seed=seed, **quantization)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join([*METHODS, 'LoRA', 'QLoRA'])}, got {method!r}")
    if config is not None or quantization:
        raise ValueError(f"{method!r} has no adapter, so it takes no config and no quantization")
    model = base.fresh(seed) if method == "scratch" else base.copy()
    model.train_only(lambda name: METHODS[method](model, name))
    if not model.trained_count:
        raise ValueError(f"the model has no {method} to train")
    return model
