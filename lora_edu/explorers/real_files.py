"""Explorers of the chapter on real files: the layers of an adapter, and four ways to merge it."""

from functools import cache

import numpy as np

from lora_edu import datasets
from lora_edu.blockwise import dequantize, quantize
from lora_edu.explorers.base import Explorer, choice, slider
from lora_edu.interop import PeftAdapter, TensorFile, combine, read_peft, to_peft
from lora_edu.metrics import relative_error
from lora_edu.plots import real_files as plots
from lora_edu.plots.picture import Picture
from lora_edu.precision import round_to_bfloat16

__all__ = ["layers", "merges"]

SIZES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]  # of the update, in σ of the weight
SHOWN = 800  # entries in the scatter


@cache
def adapter() -> PeftAdapter:
    """The adapter that ships with the package, as PEFT saved it."""
    return read_peft(datasets.tiny_llama())


@cache
def base() -> TensorFile:
    """The weights of its base model, read only when asked for."""
    return TensorFile(datasets.tiny_llama() / "base.safetensors")


def layer_names() -> dict[str, str]:
    """A short name -> the module's full name."""
    return {name.replace("model.layers.", "").replace(".self_attn.", " "): name for name in adapter().layers}


@cache
def compute_layer(short: str) -> dict:
    """The update of one layer and its singular values."""
    name = layer_names()[short]
    layer, weight = adapter().layers[name], base()[f"{name}.weight"]
    sigma, delta = layer.singular_values(), layer.delta_weight()
    return {
        "short": short,
        "name": name,
        "delta": delta,
        "out": delta.shape[0],
        "in": delta.shape[1],
        "rank": layer.rank,
        "scaling": float(layer.scaling),
        "sigma": sigma,
        "base_sigma": np.linalg.svd(weight.astype(np.float64), compute_uv=False),
        "norm": float(np.linalg.norm(delta)),
        "effective_rank": layer.effective_rank(),
    }


def explain_layer(n: dict) -> str:
    """The size of the update from its singular values."""
    squares = " + ".join(f"{value:.2f}²" for value in n["sigma"])
    return f"{n['name']}: scaling {n['scaling']:g}, ‖ΔW‖ = √({squares}) = {n['norm']:.2f}"


def layers() -> Explorer:
    """Walk through the layers of an adapter."""
    names = list(layer_names())
    return Explorer("layer", {"short": slider("layer", names, names[0])}, compute_layer, plots.layer, explain_layer)


@cache
def _case(short: str):
    name = layer_names()[short]
    weight, delta = base()[f"{name}.weight"].astype(np.float32), adapter().layers[name].delta_weight()
    return weight, (delta * (weight.std() / delta.std())).astype(np.float32)  # as large as the weight


def merged(weight, delta, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Base and merged weight, as they are stored, of one way to merge."""
    if way == "float32":
        return weight, weight + delta
    if way == "bfloat16":
        stored = round_to_bfloat16(weight)
        return stored, round_to_bfloat16(stored + delta)
    four_bit = dequantize(quantize(weight))
    if way == "onto dequantized base":
        return four_bit, round_to_bfloat16(four_bit + delta)
    return four_bit, dequantize(quantize(four_bit + delta))


@cache
def compute_merges(short: str, size: float, way: str) -> dict:
    """Share of an update of `size` σ that each way of merging loses, and what arrives in one of them."""
    weight, unit = _case(short)
    delta = np.float32(size) * unit
    lost, arrived = {}, None
    for name in plots.WAYS:
        before, after = merged(weight, delta, name)
        change = after.astype(np.float64) - before
        lost[name] = relative_error(delta, change)
        arrived = change if name == way else arrived
    rms = float(np.sqrt(np.mean(delta.astype(np.float64) ** 2)))
    return {
        "short": short,
        "size": size,
        "way": way,
        "lost": lost,
        "intended": delta.ravel()[:SHOWN] / rms,
        "arrived": arrived.ravel()[:SHOWN] / rms,
        "lost_here": round(lost[way], 3),  # rounding errors differ from machine to machine
    }


@cache
def changed_by_merging(short: str, size: float) -> tuple[float, float]:
    """Share of the codes and of the scales that differ once an update of `size` σ is merged back into 4 bits."""
    weight, unit = _case(short)
    before = quantize(weight)
    after = quantize(dequantize(before) + np.float32(size) * unit)
    return float((before.codes() != after.codes()).mean()), float((before.absmax != after.absmax).mean())


@cache
def merge_curves(short: str) -> dict:
    """Share lost by size of the update, for each way to merge."""
    return {way: [compute_merges(short, size, way)["lost"][way] for size in SIZES] for way in plots.WAYS}


def explain_merges(n: dict) -> str:
    """The loss in a sentence."""
    return (
        f"an update of {n['size']:g} σ, {n['way']}: {n['lost_here']:.2f} of its norm does not arrive "
        f"(1 would be as bad as not merging)"
    )


def merges() -> Explorer:
    """Make the update smaller, and see which merge still carries it."""
    controls = {
        "size": slider("size of ΔW (σ)", SIZES, 0.03, shown=lambda size: f"{size:g}"),
        "way": choice("merge", {way: way for way in plots.WAYS}, "back into 4 bits"),
    }
    first = next(iter(layer_names()))
    return Explorer(
        "merge",
        controls,
        lambda size, way: compute_merges(first, size, way),
        lambda numbers: plots.merges(numbers, SIZES, merge_curves(first)),
        explain_merges,
    )


@cache
def compute_combinations() -> dict:
    """Worst relative error of each way to combine the adapter with a shuffled copy of itself, weights 0.7 and 0.3."""
    other = adapter().over(base())
    rng = np.random.default_rng(0)
    for name in other.names:
        layer = other[name]
        layer.lora_a = rng.permutation(layer.lora_a.ravel()).reshape(layer.lora_a.shape)
        layer.lora_b = rng.permutation(layer.lora_b.ravel()).reshape(layer.lora_b.shape)
    shuffled = to_peft(other)
    ways = {
        "cat, rank 8": ("cat", None),
        "svd, rank 8": ("svd", 8),
        "svd, rank 4": ("svd", 4),
        "linear": ("linear", None),
    }
    return {
        label: combine([adapter(), shuffled], [0.7, 0.3], method, rank).worst_error
        for label, (method, rank) in ways.items()
    }


def combinations_picture() -> Picture:
    """Which way to combine is exact."""
    return plots.combinations(compute_combinations())


FIGURES = {
    "merge-four-ways": (
        "Four ways to merge an adapter read from a file, and the share of its update that each loses. Merged back into "
        "4 bits a small update is gone; kept in 16 bits over the dequantized base it arrives.",
        lambda: merges().picture,
    ),
}
