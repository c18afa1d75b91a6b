r"""Several adapters as one: three ways to add updates that are kept as products.

    wanted    Σ w_i ΔW_i,   ΔW_i = s_i B_i A_i,   s_i the scaling
    cat       A = [w_1 s_1 A_1; w_2 s_2 A_2; …]   B = [B_1, B_2, …]                 exact; rank Σ r_i
    svd       the best matrix of a given rank, Eckart & Young                       exact where Σ w_i ΔW_i has that rank
    linear    A = Σ ±√|w_i s_i| A_i               B = Σ √|w_i s_i| B_i              adds cross terms B_i A_j, i ≠ j

The result has alpha = rank, so that its scaling is 1 (√rank with rsLoRA would not be: it is written without rsLoRA).

Source: PEFT 0.21.2, `add_weighted_adapter`, whose rsLoRA results are √rank too strong for that reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_edu.interop.peft import PeftAdapter, peft_adapter
from lora_edu.interop.peft_layer import PeftLayer
from lora_edu.validate import check_integer, check_real

METHODS = ("cat", "svd", "linear")


@dataclass(frozen=True, eq=False)
class Combination:
    r"""One adapter made of several, and how far it is from their sum.

    Attributes
    ----------
    adapter : PeftAdapter
    errors : dict of str to float
        Of each layer ‖ΔW - Σ w_i ΔW_i‖ / ‖Σ w_i ΔW_i‖, Frobenius norms in float64; NaN where the sum is zero and ΔW is
        not, 0 where both are.
    """

    adapter: PeftAdapter
    errors: dict[str, float]

    @property
    def worst_error(self) -> float:
        """The largest of `errors`; NaN if one is."""
        return float(np.max(list(self.errors.values())))


def combine(
    adapters: Sequence[PeftAdapter], weights: Sequence[float], method: str = "cat", rank: int | None = None
) -> Combination:
    r"""Σ w_i ΔW_i of every layer as one adapter.

    Parameters
    ----------
    adapters : sequence of PeftAdapter
        A layer that only some of them have is combined of those.
    weights : sequence of float
        w_i; negative ones subtract.
    method : "cat", "svd" or "linear"
    rank : int, optional
        Of "svd": the largest of the adapters' ranks unless given, and never more than a layer can have.

    Raises
    ------
    ValueError
        If the numbers differ, an adapter has more than pairs A, B (DoRA, biases, whole modules), shapes differ, or
        "linear" is to add different ranks.
    """
    adapters, weights = list(adapters), [check_real("weights", weight) for weight in weights]
    if not adapters or len(adapters) != len(weights):
        raise ValueError(f"give one weight for each adapter, got {len(adapters)} adapters and {len(weights)} weights")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if rank is not None and method != "svd":
        raise ValueError(f"rank is chosen for method 'svd' only, not for {method!r}")
    for number, adapter in enumerate(adapters):
        _refuse_more_than_pairs(number, adapter)
    if rank is None:
        rank = max(layer.rank for adapter in adapters for layer in adapter.layers.values())
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.layers))
    layers, errors = {}, {}
    for name in names:
        pairs = [
            (weight, adapter.layers[name])
            for weight, adapter in zip(weights, adapters, strict=True)
            if name in adapter.layers
        ]
        layers[name] = _combined(name, pairs, method, check_integer("rank", rank, minimum=1))
        errors[name] = _error(layers[name], pairs)
    config = max((layer.config for layer in layers.values()), key=lambda config: config.rank)
    targets = tuple(names)
    settings = {key: adapters[0].config.settings.get(key) for key in ("base_model_name_or_path", "task_type")}
    return Combination(peft_adapter(layers, replace(config, target_modules=targets), {}, settings), errors)


def _combined(name, pairs, method, rank) -> PeftLayer:
    """One layer of the combination; `pairs` holds (weight, layer)."""
    first = pairs[0][1]
    if len({(layer.shape, layer.embedding, layer.config.fan_in_fan_out) for _, layer in pairs}) > 1:
        raise ValueError(f"layer {name!r} differs in shape or kind: {[layer.shape for _, layer in pairs]}")
    if method == "cat":
        a = np.concatenate([weight * layer.scaling * _a(layer) for weight, layer in pairs])  # (Σ rank, in)
        b = np.concatenate([_b(layer) for _, layer in pairs], axis=1)  # (out, Σ rank)
    elif method == "linear":
        if len({layer.rank for _, layer in pairs}) > 1:
            raise ValueError(f"layer {name!r}: linear adds A to A, so ranks must be equal; use 'cat' or 'svd'")
        factors = [(weight * layer.scaling, layer) for weight, layer in pairs]
        a = sum(np.sign(factor) * np.sqrt(abs(factor)) * _a(layer) for factor, layer in factors)  # (rank, in)
        b = sum(np.sqrt(abs(factor)) * _b(layer) for factor, layer in factors)  # (out, rank)
    else:
        u, singular, vt = np.linalg.svd(_wanted(pairs), full_matrices=False)
        a, b = vt[:rank], u[:, :rank] * singular[:rank]  # (rank, in), (out, rank)
    dtype = np.result_type(*[layer.lora_a.dtype for _, layer in pairs])
    config = replace(first.config, rank=len(a), alpha=len(a), use_rslora=False)
    return PeftLayer(a.astype(dtype), b.astype(dtype), config, embedding=first.embedding)


def _wanted(pairs) -> np.ndarray:
    return sum(weight * layer.delta_weight() for weight, layer in pairs)  # (out, in) float64


def _error(layer: PeftLayer, pairs) -> float:
    wanted = _wanted(pairs)
    error, norm = np.linalg.norm(layer.delta_weight() - wanted), np.linalg.norm(wanted)
    if norm == 0:
        return 0.0 if error == 0 else float("nan")
    return float(error / norm)


def _a(layer) -> np.ndarray:
    return layer.lora_a.astype(np.float64)


def _b(layer) -> np.ndarray:
    return layer.lora_b.astype(np.float64)


def _refuse_more_than_pairs(number: int, adapter: PeftAdapter):
    more = [
        *adapter.unsupported,
        *adapter.saved,
        *(["DoRA magnitudes"] if adapter.config.use_dora else []),
        *(["the bias of B"] if adapter.config.lora_bias else []),
    ]
    if more:
        raise ValueError(f"adapter {number} holds more than pairs A, B, which cannot be added: {', '.join(more)}")
