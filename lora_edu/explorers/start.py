"""The one-picture summary, with its two dials: rank and block size."""

from functools import cache

import numpy as np

from lora_edu import datasets
from lora_edu.blockwise import dequantize, quantize
from lora_edu.explorers.base import Explorer, slider
from lora_edu.linear import LoraLinear
from lora_edu.metrics import relative_error
from lora_edu.plots import start as plots

__all__ = ["summary"]


@cache
def _split_error(block_size: int):
    """The query weight in 4 bits, its bytes, and the SVD of what 4 bits lost."""
    weight = datasets.minilm_weights()[datasets.QUERY]
    quantized = quantize(weight, block_size)
    base = dequantize(quantized)
    return weight, base, quantized.nbytes, np.linalg.svd(weight - base, full_matrices=False)


def compute_summary(rank: int, block_size: int) -> dict:
    """A real weight in 4 bits, and the best pair of this rank to repair it (the start that LoftQ takes)."""
    weight, base, base_bytes, (u, singular, vt) = _split_error(block_size)
    layer = LoraLinear(base, rank=rank, alpha=2 * rank)  # scaling 2
    root = np.sqrt(singular[:rank] / layer.scaling)
    layer.lora_b, layer.lora_a = u[:, :rank] * root, root[:, None] * vt[:rank]
    layer.merge()
    limit = 3 * float(weight.std())
    return {
        "rank": rank,
        "block_size": block_size,
        "matrices": {"base": base, "B": layer.lora_b, "A": layer.lora_a, "sum": layer.weight},
        "limits": {"base": limit, "sum": limit, "A": float(3 * layer.lora_a.std()), "B": float(3 * layer.lora_b.std())},
        "titles": {"base": "W, frozen, 4 bits", "B": "α/r · B", "A": "A", "sum": "W'"},
        "notes": {
            "base": f"{weight.size:,} weights",
            "B": f"384 x {rank}",
            "A": f"{rank} x 384",
            "sum": f"{layer.trainable_ratio:.1%} is trained",
        },
        "bytes": (weight.nbytes, base_bytes, layer.lora_a.nbytes + layer.lora_b.nbytes),
        "trained": layer.trainable_count,
        "error_base": relative_error(weight, base),
        "error_adapted": relative_error(weight, layer.weight),
    }


def explain_summary(n: dict) -> str:
    """What the pair costs and does."""
    return (
        f"A and B hold {n['rank']} · (384 + 384) = {n['trained']:,} numbers. Here they repair what 4 bits lost: "
        f"error {n['error_base']:.4f} of the weight without, {n['error_adapted']:.4f} with them."
    )


def summary() -> Explorer:
    """Move the rank and the block size, and see what is stored and what is trained."""
    controls = {
        "rank": slider("rank", [1, 2, 4, 8, 16, 32, 64], 16),
        "block_size": slider("block size", [16, 32, 64, 128, 256], 64),
    }
    return Explorer("summary", controls, compute_summary, plots.summary, explain_summary)


FIGURES = {
    "summary": (
        "QLoRA in one picture, to scale: a real 384 x 384 weight in 4 bits, a pair of thin matrices beside it, and "
        "their sum. Only the thin matrices are trained.",
        lambda: plots.summary(compute_summary(rank=16, block_size=64)),
    ),
}
