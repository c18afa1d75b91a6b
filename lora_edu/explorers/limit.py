"""Explorers of the chapter on the limit: the plane of bits and SNR, and the price of the scale."""

from functools import cache

import numpy as np

from lora_edu import limit, optimal
from lora_edu.blockwise import SCALE_BITS
from lora_edu.codebooks import AF4, E2M1, FP4, INT4, INT4_ASYMMETRIC, NF4, Codebook
from lora_edu.explorers.base import Explorer, choice, slider
from lora_edu.metrics import bits_per_weight
from lora_edu.plots import limit as plots
from lora_edu.plots.picture import Picture
from lora_edu.theory import expected_error

__all__ = ["plane", "storage"]

BLOCK_SIZES = [16, 32, 64, 128, 256, 512, 1024, 4096]
FORMATS = ["best, signed scale", "NF4", "INT4 asymmetric", "INT4", "FP4"]
STORAGES = list(SCALE_BITS)  # float32, float16, double


def codebook(name: str, block_size: int) -> Codebook:
    """The table of a format; the best one depends on the block size."""
    if name == "best, signed scale":
        return optimal.bof4_signed(block_size)
    return {"NF4": NF4, "INT4 asymmetric": INT4_ASYMMETRIC, "INT4": INT4, "FP4": FP4}[name]


def real_bits(name: str, block_size: int, storage: str) -> float:
    """What a weight costs; the asymmetric format has two scales a block, which double quantization does not know."""
    scales = 2 if name == "INT4 asymmetric" else 1
    if name == "INT4 asymmetric" and storage == "double":
        storage = "float16"
    return bits_per_weight(block_size, 4, scales * SCALE_BITS[storage])


@cache
def snr(name: str, block_size: int) -> float:
    """SNR on Gaussian weights, by quadrature."""
    return expected_error(codebook(name, block_size), block_size).snr_db


def curve(name: str, storage: str) -> tuple[np.ndarray, np.ndarray]:
    """Bits and SNR of a format over all block sizes."""
    bits = [real_bits(name, size, storage) for size in BLOCK_SIZES]
    return np.array(bits), np.array([snr(name, size) for size in BLOCK_SIZES])


def compute_plane(name: str, block_size: int, storage: str) -> dict:
    """One point, the curves of all formats, and the limit."""
    bits, here = real_bits(name, block_size, storage), snr(name, block_size)
    line = np.array([3.9, 6.1])
    return {
        "name": name,
        "block_size": block_size,
        "storage": storage,
        "bits": bits,
        "snr": here,
        "limit_db": limit.limit_db(bits),
        "gap_db": limit.gap_db(bits, here),
        "gap_bits": limit.gap_bits(bits, here),
        "curves": {one: curve(one, storage) for one in FORMATS},
        "line_bits": line,
        "line_entropy": limit.limit_db(1) * line - limit.ENTROPY_CODED_GAP_DB,
    }


def explain_plane(n: dict) -> str:
    """The point in numbers."""
    return (
        f"{n['name']}: {n['bits']:.4f} bits a weight allow {n['limit_db']:.2f} dB; it has {n['snr']:.2f} dB, so "
        f"{n['gap_db']:.2f} dB, or {n['gap_db']:.2f} / 6.02 = {n['gap_bits']:.3f} bit a weight, are left on the table"
    )


def plane() -> Explorer:
    """Every format beneath the limit."""
    controls = {
        "name": choice("format", {name: name for name in FORMATS}, "NF4"),
        "block_size": slider("block size", BLOCK_SIZES, 64),
        "storage": choice("scale in", {name: name for name in STORAGES}, "double"),
    }
    return Explorer("plane", controls, compute_plane, plots.plane, explain_plane)


def compute_storage(name: str, block_size: int, storage: str) -> dict:
    """Distance to the limit over all block sizes and storages of the scale."""
    gaps = {
        one: np.array([limit.gap_db(real_bits(name, size, one), snr(name, size)) for size in BLOCK_SIZES])
        for one in STORAGES
    }
    return {
        **{key: value for key, value in compute_plane(name, block_size, storage).items() if key != "curves"},
        "gaps": gaps,
        "best": {one: BLOCK_SIZES[int(np.argmin(gap))] for one, gap in gaps.items()},
        "best_gap": float(gaps[storage].min()),
    }


def explain_storage(n: dict) -> str:
    """What the scale costs at this block size."""
    return (
        f"blocks of {n['block_size']} with the scale in {n['storage']}: {n['bits'] - 4:.4f} bit of scale a weight, "
        f"{n['gap_db']:.2f} dB below the limit; the best block size would be {n['best'][n['storage']]} with "
        f"{n['best_gap']:.2f} dB"
    )


def storage() -> Explorer:
    """How the scale is stored decides how large a block should be."""
    controls = {
        "name": choice("format", {name: name for name in FORMATS}, "NF4"),
        "block_size": slider("block size", BLOCK_SIZES, 64),
        "storage": choice("scale in", {name: name for name in STORAGES}, "double"),
    }
    return Explorer(
        "scale storage",
        controls,
        compute_storage,
        lambda numbers: plots.storage(numbers, BLOCK_SIZES),
        explain_storage,
    )


def compute_ladder() -> tuple[dict, float]:
    """SNR of every format at what NF4 in blocks of 64 costs with double quantization; and that cost."""
    bits = real_bits("NF4", 64, "double")
    tables = {"FP4": FP4, "INT4": INT4, "E2M1": E2M1, "AF4": AF4, "NF4": NF4, "best with -1, 0, 1": optimal.bof4(64)}
    rungs = {name: expected_error(table, 64).snr_db for name, table in tables.items()}
    rungs["best, signed scale"] = snr("best, signed scale", 64)
    rungs["ideal entropy coding"] = limit.limit_db(bits) - limit.ENTROPY_CODED_GAP_DB
    rungs["Shannon's limit"] = limit.limit_db(bits)
    return rungs, bits


def ladder_picture() -> Picture:
    """The ladder from FP4 to the limit."""
    return plots.ladder(*compute_ladder())


def compute_flip() -> tuple[dict, float]:
    """NF4 and asymmetric INT4 with float16 scales; and the bits at which they change places."""
    curves = {name: curve(name, "float16") for name in ("NF4", "INT4 asymmetric")}
    bits = np.linspace(4.05, 5, 2000)
    ahead = [np.interp(bits, b[::-1], s[::-1]) for b, s in curves.values()]
    return curves, float(bits[np.argmax(ahead[1] > ahead[0])])


FIGURES = {
    "limit-plane": (
        "Every 4-bit format beneath Shannon's limit, as a curve over its block size. NF4 as QLoRA uses it is two "
        "thirds of a bit away from what any code could do on Gaussian weights.",
        lambda: plots.plane(compute_plane("NF4", 64, "double")),
    ),
    "limit-ladder": (
        "All formats at the same price of 4.127 bits a weight. From FP4 to the best table with a signed scale it is "
        "3 dB, from there to the limit another 3.5.",
        ladder_picture,
    ),
}
