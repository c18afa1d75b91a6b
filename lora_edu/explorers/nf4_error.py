"""Explorers of the chapter on NF4 error: one block, one byte, the block size, a photograph."""

from functools import cache
from statistics import NormalDist

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from lora_edu import datasets
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import NF4, NF4_OFFSET
from lora_edu.explorers.base import Explorer, choice, number_slider, slider
from lora_edu.metrics import bits_per_weight, relative_error, snr_db
from lora_edu.plots import nf4_error as plots
from lora_edu.plots.picture import Picture

__all__ = ["bits_in_a_byte", "block_ladder", "microscope", "photo"]

BLOCK_SIZES = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 0]  # 0: the whole tensor shares one scale
WEIGHTS = {
    "Gaussian": None,
    "query": datasets.QUERY,
    "attention output": datasets.ATTENTION_OUTPUT,
    "FFN down": datasets.FFN_DOWN,
}
PATCH = (64, 128)  # rows and columns of the error map
PHOTO_SIZES = [16, 64, 256, 1024, 4096, 65536]
HOT = 128 * 256 + 128  # the pixel in the middle, row after row


def compute_bell() -> dict:
    """The normal density, the quantiles that become NF4's levels (in σ) and the density there."""
    normal = NormalDist()
    x = np.linspace(-2.6, 2.6, 401)
    quantiles = NF4.levels * normal.inv_cdf(NF4_OFFSET)
    return {
        "x": x,
        "density": np.array([normal.pdf(v) for v in x]),
        "quantiles": quantiles,
        "heights": np.array([normal.pdf(v) for v in quantiles]),
    }


def equal_mass_levels_wrong() -> np.ndarray:
    """The recipe that is often printed for NF4 and is not it: no level is zero."""
    levels = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
    return levels / levels.max()


def levels_picture() -> Picture:
    """NF4 under the bell, beside the wrong recipe."""
    rows = [("NF4", NF4.levels, "nf4"), ("wrong", equal_mass_levels_wrong(), "B")]
    sentence = (
        "bell curve with the 16 quantiles that become NF4, and NF4's levels beside those of the equal-mass recipe"
    )
    return plots.levels_from_the_bell(compute_bell(), rows, sentence)


def compute_microscope(k: float, seed: int) -> dict:
    """63 standard normal weights and one at k sigma, through NF4 as one block of 64."""
    neighbours = np.random.default_rng(seed).standard_normal(63, dtype=np.float32)
    block = np.append(neighbours, np.float32(k))
    quantized = quantize(block, block_size=64)
    restored = dequantize(quantized)[:-1]
    counts = np.bincount(quantized.codes()[:-1], minlength=16)
    example = int(np.argmin(np.abs(neighbours - 0.3)))
    return {
        "k": k,
        "neighbours": neighbours,
        "restored": restored,
        "grid": NF4.levels * quantized.absmax[0],
        "counts": counts,
        "zeroed": int(counts[NF4.zero_code]),
        "codes_used": int(np.count_nonzero(counts)),
        "snr": snr_db(neighbours, restored),
        "absmax": float(quantized.absmax[0]),
        "example": float(neighbours[example]),
        "example_level": float(restored[example] / quantized.absmax[0]),
    }


def explain_microscope(n: dict) -> str:
    """The arithmetic of one neighbour."""
    return (
        f"one neighbour: w = {n['example']:.3f}, w / absmax = {n['example']:.3f} / {n['absmax']:.2f} = "
        f"{n['example'] / n['absmax']:.3f}, nearest level {n['example_level']:.3f}, "
        f"comes back as {n['example_level']:.3f} · {n['absmax']:.2f} = {n['example_level'] * n['absmax']:.3f}"
    )


def microscope() -> Explorer:
    """Drag one weight of a block and watch its neighbours."""
    controls = {
        "k": number_slider("outlier (σ)", 2, 40, 0.5, 10, ".1f"),
        "seed": slider("block", list(range(8)), 0),
    }
    return Explorer("one block", controls, compute_microscope, plots.microscope, explain_microscope)


def compute_bits(first: float, second: float) -> dict:
    """Two weights of a block whose absmax is 1, as one byte in either order."""
    weights = np.array([first, second], np.float32)
    block = np.append(weights, np.ones(2, np.float32))  # absmax 1, whatever the two are
    packed = {order: quantize(block, 4, NF4, order) for order in ("high-first", "low-first")}
    codes = [int(code) for code in packed["low-first"].codes()[:2]]
    return {
        "weights": weights,
        "codes": codes,
        "levels": [float(NF4.levels[code]) for code in codes],
        "bytes": {order: int(quantized.packed[0]) for order, quantized in packed.items()},
        "high_first": int(packed["high-first"].packed[0]),
        "low_first": int(packed["low-first"].packed[0]),
    }


def explain_bits(n: dict) -> str:
    """The byte as a sum."""
    first, second = n["codes"]
    return (
        f"high-first: {first} · 16 + {second} = {n['high_first']} = 0x{n['high_first']:02x}; "
        f"low-first: {first} + {second} · 16 = {n['low_first']} = 0x{n['low_first']:02x}"
    )


def bits_in_a_byte() -> Explorer:
    """Two weights, two codes, one byte."""
    controls = {
        "first": number_slider("first weight", -1, 1, 0.05, 0.3),
        "second": number_slider("second weight", -1, 1, 0.05, -0.6),
    }
    return Explorer("one byte", controls, compute_bits, plots.packing, explain_bits)


@cache
def named_weights(name: str) -> np.ndarray:
    """One of the weights of `WEIGHTS` as float32; the Gaussian has the shape of the largest."""
    if WEIGHTS[name] is None:
        return np.random.default_rng(0).standard_normal((384, 1536), dtype=np.float32)
    return datasets.minilm_weights()[WEIGHTS[name]].astype(np.float32)


@cache
def ladder_curves() -> dict:
    """SNR of each weight at each block size."""
    return {name: [compute_ladder(name, size)["snr"] for size in BLOCK_SIZES] for name in WEIGHTS}


def compute_ladder(name: str, block_size: int) -> dict:
    """Error of one weight at one block size (0: one block for all), and its map around the largest entry."""
    weight = named_weights(name)
    quantized = quantize(weight, block_size or weight.size)
    restored = dequantize(quantized)
    row, column = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    top = int(np.clip(row - PATCH[0] // 2, 0, weight.shape[0] - PATCH[0]))
    left = int(np.clip(column - PATCH[1] // 2, 0, weight.shape[1] - PATCH[1]))
    patch = (slice(top, top + PATCH[0]), slice(left, left + PATCH[1]))
    error = relative_error(weight, restored)
    return {
        "name": name,
        "block_size": block_size,
        "error": error,
        "snr": -20 * float(np.log10(error)),
        "bits": bits_per_weight(quantized.block_size),
        "patch": np.abs(weight[patch] - restored[patch]) / weight.std(),
        "row": int(row),
        "row_in_patch": int(row) - top,
        "bytes": quantized.nbytes,
        "weights": weight.size,
    }


def explain_ladder(n: dict) -> str:
    """What the layer costs."""
    shared = n["block_size"] or n["weights"]
    return (
        f"{n['weights']:,} weights: 4 bits of code + 32 / {shared} bits of scale = {n['bits']:.4g} bits each, "
        f"{n['bytes']:,} bytes in all; error {n['error']:.3f} of the weight's norm = {n['snr']:.1f} dB"
    )


def block_ladder() -> Explorer:
    """SNR and cost by block size, on real weights."""
    controls = {
        "name": choice("weights", {name: name for name in WEIGHTS}, "FFN down"),
        "block_size": slider("block size", BLOCK_SIZES, 64, shown=lambda size: str(size or "all")),
    }
    bits = {size: bits_per_weight(size or 2**18) for size in BLOCK_SIZES}
    return Explorer(
        "block size",
        controls,
        compute_ladder,
        lambda numbers: plots.block_ladder(numbers, ladder_curves(), bits),
        explain_ladder,
    )


@cache
def photograph() -> np.ndarray:
    """Rear Admiral Grace Hopper (U.S. Navy photograph, ships with matplotlib): 256 x 256 values in [-1, 1]."""
    with get_sample_data("grace_hopper.jpg") as file:
        grey = np.asarray(Image.open(file).convert("L"), np.float32)
    return grey[20:532, :].reshape(256, 2, 256, 2).mean(axis=(1, 3)) / 127.5 - 1


def compute_photo(block_size: int, hot: float) -> dict:
    """The photograph through NF4, with one pixel `hot` times as bright as white."""
    original = photograph().copy()
    original.flat[HOT] = hot
    quantized = quantize(original, block_size)
    restored = dequantize(quantized)
    return {
        "block_size": block_size,
        "hot": hot,
        "restored": restored,
        "error_map": np.abs(original - restored),
        "snr": snr_db(np.delete(original, HOT), np.delete(restored, HOT)),
        "blocks": int(quantized.absmax.size),
        "hot_scale": float(quantized.absmax[HOT // block_size]),
    }


def explain_photo(n: dict) -> str:
    """The grid that the hot pixel's block gets."""
    step = n["hot_scale"] * float(NF4.levels[8])
    return (
        f"{n['blocks']:,} blocks; in the block of the hot pixel absmax = {n['hot_scale']:.2f}, so the first grey "
        f"beside the middle one is {n['hot_scale']:.2f} · {NF4.levels[8]:.4f} = {step:.3f} away (black to white is 2)"
    )


def photo() -> Explorer:
    """A photograph, block by block, with one hot pixel to turn up."""
    controls = {
        "block_size": slider("block size", PHOTO_SIZES, 1024),
        "hot": slider("hot pixel (× white)", [1.0, 2.0, 4.0, 8.0, 16.0], 8.0, shown=lambda v: f"{v:g}"),
    }
    return Explorer("photograph", controls, compute_photo, plots.photo, explain_photo)


FIGURES = {
    "nf4-levels": (
        "Where the sixteen levels come from: quantiles of the bell curve, seven below zero and eight above, divided by "
        "the largest. The often printed equal-mass recipe has no level at zero.",
        levels_picture,
    ),
    "one-outlier": (
        "One block of 64 weights through NF4. A single weight at 10 σ stretches the grid for the other 63: each of "
        "them comes back as the nearest green tick, and many come back as zero.",
        lambda: plots.microscope(compute_microscope(k=10, seed=0)),
    ),
    "block-size": (
        "SNR of NF4 by block size for three real weights and a Gaussian, and where the error of the FFN matrix sits. "
        "In blocks of 64 all four are alike; with one scale for all, one outlier ruins everything.",
        lambda: block_ladder().picture,
    ),
    "picture-test": (
        "A photograph with one hot pixel, quantized in blocks of growing size. A block is a run of the flattened "
        "array: a dash, a row, a stripe, everything.",
        lambda: plots.photo_states([compute_photo(size, hot=8.0) for size in (16, 256, 1024, 65536)]),
    ),
}
