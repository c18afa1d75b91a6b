"""Explorers of the chapter on building one's own NF4: the offset, the levels, the distribution."""

from functools import cache
from statistics import NormalDist

import numpy as np

from lora_edu import optimal
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import AF4, FP4, INT4, INT4_ASYMMETRIC, NF4, NF4_OFFSET, Codebook, derive_nf4
from lora_edu.datasets.distributions import DISTRIBUTIONS, draw
from lora_edu.explorers.base import Explorer, choice, number_slider, slider
from lora_edu.metrics import snr_db
from lora_edu.plots import build_nf4 as plots
from lora_edu.plots.picture import Picture
from lora_edu.theory import expected_error, normal_density, normalised_density

__all__ = ["offset", "own_levels", "zoo"]

BLOCK_SIZES = [16, 32, 64, 128, 256, 512, 1024, 4096]
OFFSETS = np.round(np.linspace(0.9, 0.995, 96), 4)
GRID = np.linspace(-1, 1, 201)
STARTS = {"uniform": np.linspace(-1, 1, 17)[1:], "NF4": NF4.levels.astype(np.float64)}
BLOCK = 64  # of the levels that the reader moves
MOST_STEPS = 60
DRAWN = 2**18  # weights in the zoo
BLAST_SIZES = [16, 64, 256, 1024, 4096]


@cache
def family(block_size: int) -> dict:
    """How much worse than the best of the family each offset is, in percent, by criterion."""
    errors = [expected_error(Codebook("offset", derive_nf4(offset)), block_size) for offset in OFFSETS]
    by_name = {"mae": [e.mean_absolute for e in errors], "mse": [e.mean_square for e in errors]}
    return {name: 100 * (np.array(values) / min(values) - 1) for name, values in by_name.items()}


@cache
def density(block_size: int) -> np.ndarray:
    """Density of w / absmax on the grid."""
    return normalised_density(GRID, block_size)


def compute_offset(offset: float, block_size: int) -> dict:
    """The table of one offset, how it uses its codes, and where it stands in both valleys."""
    levels = derive_nf4(offset)
    expected = expected_error(Codebook("offset", levels), block_size)
    return {
        "offset": offset,
        "block_size": block_size,
        "levels": levels,
        "usage": expected.usage,
        "t": GRID,
        "density": density(block_size),
        "offsets": OFFSETS,
        "excess": family(block_size),
        "entropy": expected.entropy,
        "mae": expected.mean_absolute,
        "snr": expected.snr_db,
    }


def explain_offset(n: dict) -> str:
    """Where one level comes from."""
    top = NormalDist().inv_cdf(n["offset"])
    return (
        f"Φ⁻¹({n['offset']:.4f}) = {top:.3f} σ becomes the level 1; the largest of {n['block_size']} weights is "
        f"what it meets. Mean absolute error {n['mae']:.4f} σ, SNR {n['snr']:.2f} dB"
    )


def offset() -> Explorer:
    """Walk through the family that NF4 belongs to."""
    controls = {
        "offset": number_slider("offset", 0.9, 0.995, 0.0025, 0.9675, ".4f"),
        "block_size": slider("block size", BLOCK_SIZES, 64),
    }
    return Explorer("offset", controls, compute_offset, plots.offset, explain_offset)


def known_tables() -> dict:
    """SNR of the tables on the scoreboard."""
    known = {"NF4": NF4, "INT4": INT4, "best with -1, 0, 1": optimal.bof4(BLOCK)}
    known["best of all"] = Codebook("free", optimal.optimal_levels(BLOCK, kept=()), needs_zero=False)
    return {name: expected_error(table, BLOCK).snr_db for name, table in known.items()}


def compute_own(start: str, steps: int, chosen: int, moved: float) -> dict:
    """A starting table after some Lloyd steps, one level moved by hand; zero and the ends stay."""
    levels = STARTS[start].copy()
    kept = (-1.0, 0.0, 1.0) if start == "NF4" else (0.0, 1.0)
    for _ in range(steps):
        levels = optimal.lloyd_step(levels, BLOCK, "mse", kept)
    room = 0.45 * np.diff(levels)  # a level never passes its neighbour
    shift = float(np.clip(moved, -room[chosen - 1], room[chosen]))
    levels[chosen] += shift if levels[chosen] != 0 else 0
    expected = expected_error(Codebook("yours", levels), BLOCK)
    return {
        "start": start,
        "steps": steps,
        "chosen": chosen,
        "moved": moved,
        "levels": levels,
        "usage": expected.usage,
        "t": GRID,
        "density": density(BLOCK),
        "entropy": expected.entropy,
        "snr": expected.snr_db,
        "level": float(levels[chosen]),
        "share": float(expected.usage[chosen]),
    }


def explain_own(n: dict) -> str:
    """The level in hand."""
    return (
        f"level {n['chosen']} stands at {n['level']:.3f} and gets {n['share']:.1%} of the weights; "
        f"the table has {n['snr']:.3f} dB"
    )


def own_levels() -> Explorer:
    """Be the optimizer: move a level by hand, or let Lloyd do it."""
    controls = {
        "start": choice("start", {name: name for name in STARTS}, "uniform"),
        "chosen": slider("level", list(range(1, 15)), 11),
        "moved": number_slider("move it by", -0.1, 0.1, 0.005, 0.0, ".3f"),
        "steps": slider("Lloyd steps", list(range(MOST_STEPS + 1)), 0),
    }
    return Explorer(
        "own levels",
        controls,
        compute_own,
        lambda numbers: plots.own_levels(numbers, known_tables()),
        explain_own,
        {"Lloyd step": lambda state: {"steps": min(state["steps"] + 1, MOST_STEPS), "moved": 0.0}},
    )


@cache
def _drawn(name: str) -> np.ndarray:
    return draw(name, DRAWN)


@cache
def compute_zoo(name: str, block_size: int) -> dict:
    """SNR of each format on one distribution, and its histogram."""
    weight = _drawn(name)
    formats = {"NF4": NF4, "INT4": INT4, "INT4 asymmetric": INT4_ASYMMETRIC, "FP4": FP4}
    formats["fitted to the bell"] = optimal.bof4_signed(block_size)
    snr = {one: snr_db(weight, dequantize(quantize(weight, block_size, table))) for one, table in formats.items()}
    sigma = weight.std()
    histogram = np.histogram(weight / sigma, np.linspace(-8, 8, 65))[0] / weight.size / 0.25
    centred = (weight - weight.mean()) / sigma
    return {
        "name": name,
        "block_size": block_size,
        "snr_by_format": snr,
        "histogram": histogram,
        "kurtosis": float(np.mean(centred.astype(np.float64) ** 4)),
        "nf4_ahead": snr["NF4"] - snr["INT4"],
    }


def explain_zoo(n: dict) -> str:
    """Tails and ranking in a line."""
    best = max(n["snr_by_format"], key=n["snr_by_format"].get)
    return f"kurtosis {n['kurtosis']:.1f} (a bell has 3): NF4 − INT4 = {n['nf4_ahead']:+.1f} dB; ahead is {best}"


def zoo() -> Explorer:
    """A codebook is an assumption about the data."""
    controls = {
        "name": choice("weights", {name: name for name in DISTRIBUTIONS}, "Laplace"),
        "block_size": slider("block size", BLOCK_SIZES, 64),
    }
    x = np.linspace(-8, 8, 161)
    bell = (x, np.maximum(normal_density(x), 1e-9))
    return Explorer("zoo", controls, compute_zoo, lambda numbers: plots.zoo(numbers, bell), explain_zoo)


def paper_equation_levels_wrong() -> np.ndarray:
    """What the QLoRA paper's equation 4 gives where it is finite: 15 levels, and not NF4."""
    quantile = NormalDist().inv_cdf
    levels = np.array([(quantile(i / 17) + quantile((i + 1) / 17)) / 2 for i in range(1, 16)])
    levels[7] = 0.0  # the middle one, but for rounding
    return levels / levels.max()


def compute_recipes() -> list[tuple]:
    """(name, levels, SNR in blocks of 64, role) of several recipes."""
    equal_mass = np.array([NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)])
    rows = [
        ("NF4 as shipped", NF4.levels, "nf4"),
        ("paper's equation 4", paper_equation_levels_wrong(), "B"),
        ("equal mass", equal_mass / equal_mass.max(), "int4"),
        ("published AF4", AF4.levels, "W"),
        ("best with -1, 0, 1", optimal.optimal_levels(BLOCK), "A"),
    ]
    return [
        (name, levels, expected_error(Codebook(name, levels, needs_zero=False), BLOCK).snr_db, role)
        for name, levels, role in rows
    ]


def recipes_picture() -> Picture:
    """Five recipes side by side."""
    return plots.recipes(compute_recipes())


@cache
def compute_blast() -> dict:
    """Share of weights beside an outlier, and what they keep, by block size."""
    sizes = np.array(BLAST_SIZES)
    shares = {p: (BLAST_SIZES, 1 - (1 - p) ** sizes) for p in (1e-4, 1e-3, 1e-2)}
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(DRAWN, dtype=np.float32)
    is_outlier = rng.random(DRAWN) < 1e-3
    spoiled = np.where(is_outlier, np.float32(20), weight)
    kept = [snr_db(weight[~is_outlier], dequantize(quantize(spoiled, s))[~is_outlier]) for s in BLAST_SIZES]
    calm = [snr_db(weight, dequantize(quantize(weight, s))) for s in BLAST_SIZES]
    return {"shares": shares, "sizes": BLAST_SIZES, "with_outliers": kept, "without": calm}


FIGURES = {
    "nf4-offset": (
        "One number decides the whole table. For blocks of 64 the mean absolute error has its valley at offset 0.966, "
        "a hair from NF4's 0.9677; the squared error has it elsewhere.",
        lambda: plots.offset(compute_offset(NF4_OFFSET, 64)),
    ),
    "nf4-recipes": (
        "Recipes for sixteen levels and their SNR in blocks of 64. The equation printed in the paper is not the table "
        "that is shipped, and neither is the optimum; they are close.",
        recipes_picture,
    ),
}
