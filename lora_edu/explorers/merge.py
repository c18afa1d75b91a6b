"""Explorers of the chapter on merging: one update in four formats, one sum bit by bit, a merge repeated."""

from fractions import Fraction
from functools import cache

import numpy as np

from lora_edu import datasets
from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import NF4
from lora_edu.explorers.base import Explorer, choice, slider
from lora_edu.linear import LoraLinear
from lora_edu.metrics import relative_error
from lora_edu.plots import merge as plots
from lora_edu.plots.picture import Picture
from lora_edu.precision import gap, rounded, significant_bits

__all__ = ["bit_by_bit", "merge_lab", "ratchet"]

PRECISIONS = ["float32", "float16", "bfloat16", "NF4"]
FLOATS = PRECISIONS[:3]
SIZES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]  # rms of the update, in σ of the weight
FOUR_BIT_SIZES = [0.003, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5]
RANK = 8
BLOCK = 64
DOTS = 1500  # of the scatter
VIEW = (-2, 6.3)  # of the ruler, in updates of its weight
PROBES = 1280  # across the ruler, to find its marks
COLUMNS = 24  # of the bit picture: 2⁻¹ … 2⁻²⁴
CYCLES = [0, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
RATCHET_SIZES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03]
RATCHET_ROWS = 64  # of the weight; the whole would be slower to drag, and looks the same


def weight() -> np.ndarray:
    """The query matrix of MiniLM's second layer: (384, 384) float32."""
    return datasets.minilm_weights()[datasets.QUERY]


@cache
def sigma() -> float:
    """Its standard deviation."""
    return float(weight().std(dtype=np.float64))


@cache
def direction() -> np.ndarray:
    """B A of rank 8 with Gaussian factors, scaled to rms 1: (384, 384) float64."""
    out_features, in_features = weight().shape
    rng = np.random.default_rng(3)
    product = rng.standard_normal((out_features, RANK)) @ rng.standard_normal((RANK, in_features))
    return product / np.sqrt(np.mean(product**2))


def update(size: float, precision: str = "float32") -> np.ndarray:
    """The update ΔW with an rms of `size` σ, held in the format (float32 for NF4)."""
    return _held((size * sigma() * direction()).astype(np.float32), precision)


@cache
def base(precision: str) -> np.ndarray:
    """The weight as the format holds it, as float32."""
    return dequantize(quantize(weight(), BLOCK)) if precision == "NF4" else _held(weight(), precision)


def merge(stored: np.ndarray, delta: np.ndarray, precision: str) -> np.ndarray:
    """What the format holds of stored + delta, as float32; 4 bits are quantized again."""
    total = stored + delta
    return dequantize(quantize(total, BLOCK)) if precision == "NF4" else _held(total, precision)


def share_kept(effective: np.ndarray, delta: np.ndarray) -> float:
    r"""⟨effective, Δ⟩ / ⟨Δ, Δ⟩: 1 if the update arrived, 0 if nothing of it did."""
    delta = delta.astype(np.float64)
    return float(np.sum(effective * delta) / np.sum(delta**2))


def _held(x, precision) -> np.ndarray:
    return rounded(x, "float32" if precision == "NF4" else precision).astype(np.float32)


def _minus(x, y) -> np.ndarray:
    return x.astype(np.float64) - y


@cache
def example() -> tuple[int, int]:
    """The weight on the ruler: near +σ, its update near +1 rms, in a block whose scale the update hardly moves."""
    off = np.abs(weight() / sigma() - 1) + np.abs(direction() - 1)
    before, after = quantize(weight(), BLOCK).absmax, quantize(base("NF4") + update(0.01), BLOCK).absmax
    off += 1000 * np.repeat(np.abs(after / before - 1), BLOCK).reshape(off.shape)
    row, column = np.unravel_index(np.argmin(off), off.shape)
    return int(row), int(column)


@cache
def curves() -> dict:
    """Share of the update that is lost on the way, by format and size."""
    return {p: [_arrived(size, p)["lost"] for size in SIZES] for p in PRECISIONS}


def _arrived(size, precision) -> dict:
    stored, delta = base(precision), update(size, precision)
    merged = merge(stored, delta, precision)
    effective = _minus(merged, stored)
    return {
        "merged": merged,
        "effective": effective,
        "delta": delta,
        "lost": relative_error(delta, effective),
        "share": share_kept(effective, delta),
        "unchanged": float(np.mean(merged == stored)),
    }


def compute_ruler(size: float, precision: str) -> dict:
    """One weight, its update and the marks around it, in units of that update."""
    at = example()
    stored, delta = base(precision)[at], update(size, precision)[at]
    low, high = (float(stored) + float(delta) * edge for edge in VIEW)
    if precision == "NF4":
        total = base(precision) + update(size, precision)
        block = quantize(total, BLOCK).absmax[(at[0] * total.shape[1] + at[1]) // BLOCK]
        marks = (NF4.levels * block).astype(np.float64)
    else:
        probes = np.linspace(low, high, PROBES).astype(np.float32)
        marks = np.unique(_held(probes, precision)).astype(np.float64)
    marks = marks[(marks >= low) & (marks <= high)]
    landed = merge(base(precision), update(size, precision), precision)[at]
    unit = float(delta)
    return {
        "precision": precision,
        "size": size,
        "weight": float(stored),
        "update": unit,
        "landed": float(landed),
        "marks": (marks - float(stored)) / unit,
        "landing": (float(landed) - float(stored)) / unit,
    }


def compute_lab(size: float, precision: str) -> dict:
    """One update merged into the weight in one format: a ruler for one entry, intended against effective for many."""
    arrived = _arrived(size, precision)
    some = np.linspace(0, weight().size - 1, DOTS).astype(int)
    unit = size * sigma()
    return {
        **compute_ruler(size, precision),
        "intended": arrived["delta"].ravel()[some].astype(np.float64) / unit,
        "effective": arrived["effective"].ravel()[some] / unit,
        "share_kept": arrived["share"],
        "lost": arrived["lost"],
        "unchanged": arrived["unchanged"],
    }


def explain_lab(n: dict) -> str:
    """The arithmetic of the weight on the ruler."""
    arrived = n["landed"] - n["weight"]
    return (
        f"one weight in {n['precision']}: {n['weight']:.7f} + {n['update']:.2g} = {n['weight'] + n['update']:.7f}; "
        f"the nearest mark is {n['landed']:.7f}, so {arrived:.2g} arrives ({arrived / n['update']:.0%} of the update)"
    )


def merge_lab() -> Explorer:
    """How large must an update be to survive the merge?"""
    controls = {
        "size": slider("size of the update (σ)", SIZES, 1e-3, shown=lambda v: f"{v:g}"),
        "precision": choice("stored as", {name: name for name in PRECISIONS}, "bfloat16"),
    }
    return Explorer("merge lab", controls, compute_lab, lambda n: plots.merge_lab(n, SIZES, curves()), explain_lab)


def answer_picture() -> Picture:
    """The published answer: three rulers, and what is lost by size of the update."""
    return plots.answer([compute_ruler(0.01, p) for p in ("float16", "bfloat16", "NF4")], SIZES, curves())


def compute_outputs(size: float, seed: int = 0) -> dict:
    """Format -> ‖merged output - unmerged output‖ / ‖unmerged output‖ of the query layer, for 256 random inputs.

    float64, float32 and float16 are `LoraLinear` layers of that dtype. bfloat16 is a float32 layer whose stored weights
    and outputs are rounded to bfloat16, as a GPU does that adds up in float32.
    """
    x = np.random.default_rng(seed).standard_normal((256, weight().shape[1]), dtype=np.float32)
    found = {}
    for precision in ("float64", *FLOATS):
        held = rounded(weight(), precision)
        layer = adapted(held, size)
        unmerged = rounded(layer(x), precision)
        if precision == "bfloat16":
            merged = rounded(LoraLinear(rounded(held + layer.delta_weight(), precision), rank=1)(x), precision)
        else:
            layer.merge()
            merged = layer(x)
        found[precision] = relative_error(unmerged, merged)
    return found


def adapted(stored: np.ndarray, size: float) -> LoraLinear:
    """A `LoraLinear` of rank 8 over a weight of this shape, its update `size` σ large."""
    layer = LoraLinear(stored, rank=RANK, alpha=2 * RANK)
    rng = np.random.default_rng(3)
    layer.lora_b = rng.standard_normal(layer.lora_b.shape)
    layer.lora_a = rng.standard_normal(layer.lora_a.shape)
    grown = np.sqrt(np.mean(np.square(layer.delta_weight(), dtype=np.float64)))
    layer.lora_b = layer.lora_b * (size * sigma() / grown)
    return layer


def unmerge_by_subtracting_wrong(stored: np.ndarray, size: float, precision: str) -> np.ndarray:
    """(W + ΔW) - ΔW, each step rounded to the format: what is left of W."""
    delta = update(size, precision)
    return _held(merge(stored, delta, precision) - delta, precision)


@cache
def not_back_curves() -> dict:
    """Share of entries that subtraction does not bring back, by format and size."""
    sizes = SIZES[4:]
    return {
        p: [float(np.mean(unmerge_by_subtracting_wrong(base(p), size, p) != base(p))) for size in sizes] for p in FLOATS
    }


def compute_not_back(size: float, precision: str) -> dict:
    """Which entries of a corner of the weight come back, and the share by |W|."""
    stored = base(precision)
    wrong = unmerge_by_subtracting_wrong(stored, size, precision) != stored
    edges = np.array([0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, np.inf])
    bins = np.digitize(np.abs(stored) / sigma(), edges) - 1
    return {
        "size": size,
        "precision": precision,
        "map": wrong[:96, :96],
        "edges": edges,
        "by_size": np.array([wrong[bins == i].mean() for i in range(len(edges) - 1)]),
        "not_back": float(wrong.mean()),
    }


def not_back_picture() -> Picture:
    """What subtraction leaves behind, where, and in which format."""
    return plots.not_back(compute_not_back(0.1, "float32"), SIZES[4:], not_back_curves())


def compute_law(size: float, precision: str) -> dict:
    r"""For every entry: |e| / (half the gap to W's neighbour on that side), and whether it came back.

    e = fl(W + ΔW) - (W + ΔW) is the rounding error of the addition. float64 holds it exactly: the error of one float32
    addition is itself a float32 number, and so is what is subtracted on the way.
    """
    stored, delta = base(precision), update(size, precision)
    merged = merge(stored, delta, precision)
    error = _minus(merged, stored) - delta
    ratio = np.abs(error) / (gap(stored, precision, np.sign(error)) / 2)
    back = _held(merged - delta, precision) == stored
    return {"size": size, "precision": precision, "ratio": ratio.ravel(), "back": back.ravel()}


def law_table(law: dict) -> dict:
    """Below, on and above half a gap: how many entries, and the share of them that came back."""
    kinds = {"below": law["ratio"] < 1, "tie": law["ratio"] == 1, "above": law["ratio"] > 1}
    return {name: (int(kind.sum()), float(law["back"][kind].mean())) for name, kind in kinds.items()}


def law_bins(law: dict) -> dict:
    """Share of the entries that came back and that did not, by |e| in half gaps; a tie is a bin of its own."""
    ratio, back = law["ratio"], law["back"]
    bins = np.searchsorted([1 / 8, 1 / 4, 1 / 2], ratio, side="right") + (ratio >= 1)  # 0 … 3 below, 4 a tie
    bins += np.searchsorted([1, 2, 4, 8], ratio, side="left")  # 5 … 8 above
    names = ["< ⅛", "⅛–¼", "¼–½", "½–1", "1", "1–2", "2–4", "4–8", "> 8"]
    share = {
        name: [float(np.mean((bins == i) & kind)) for i in range(len(names))]
        for name, kind in (("back", back), ("gone", ~back))
    }
    return {"precision": law["precision"], "bins": names, **share}


def law_picture(size: float = 0.1) -> Picture:
    """The cliff at half a gap, in three formats."""
    return plots.law([law_bins(compute_law(size, precision)) for precision in ("float32", "bfloat16")])


@cache
def bit_example(magnitude: float) -> tuple[int, int]:
    """A positive weight of about `magnitude` σ whose update is near +1 rms."""
    off = np.abs(weight() / (magnitude * sigma()) - 1) + np.abs(direction() - 1)
    row, column = np.unravel_index(np.argmin(off), off.shape)
    return int(row), int(column)


def compute_bits(magnitude: float, size: float, precision: str) -> dict:
    """One entry: the bits of W, of ΔW, of their sum, of what is stored of it, and of what subtracting gives back."""
    at = bit_example(magnitude)
    w, delta = float(base(precision)[at]), float(update(size, precision)[at])
    stored = float(merge(base(precision)[at], update(size, precision)[at], precision))
    back = float(_held(np.float32(stored) - np.float32(delta), precision))
    exact = Fraction(w) + Fraction(delta)
    error = float(Fraction(stored) - exact)
    kept = significant_bits(precision)
    rows = [_bits(Fraction(v), kept) for v in (w, delta)]
    rows += [_bits(exact, COLUMNS), _bits(Fraction(stored), kept), _bits(Fraction(back), kept)]
    lost = np.zeros((5, COLUMNS), bool)
    lost[2] = (rows[2] >= 0) & (rows[3] < 0)
    lost[4] = rows[4] != rows[0]
    half = float(gap(w, precision, error)) / 2
    return {
        "precision": precision,
        "size": size,
        "bits": np.array(rows),
        "lost": lost,
        "values": [w, delta, w + delta, stored, back],
        "error": error,
        "half_gap": half,
        "ratio": abs(error) / half,
        "comes_back": int(back == w),
        "steps_off": abs(back - w) / (2 * half),
    }


def _bits(value: Fraction, kept: int) -> np.ndarray:
    """(COLUMNS,) digits of 2⁻¹ … 2⁻²⁴: 0 or 1 from the leading one on, `kept` of them, and -1 outside."""
    digits = int(abs(value) * 2**COLUMNS)
    row = np.array([digits >> (COLUMNS - 1 - i) & 1 for i in range(COLUMNS)])
    lead = COLUMNS - digits.bit_length()
    row[:lead] = -1
    row[lead + kept :] = -1
    if kept >= COLUMNS:  # the exact sum ends with its last one
        row[int(np.max(np.nonzero(row == 1), initial=-1)) + 1 :] = -1
    return row


def explain_bits(n: dict) -> str:
    """The law for this entry."""
    sign = "&lt;" if n["ratio"] < 1 else "=" if n["ratio"] == 1 else "&gt;"
    return (
        f"the addition erred by e = {n['error']:.3g}, half the gap at W is {n['half_gap']:.3g}: |e| {sign} half a gap, "
        + ("W comes back bit for bit" if n["comes_back"] else f"W comes back {n['steps_off']:.2g} × its gap away")
    )


def bit_by_bit() -> Explorer:
    """Where do the bits of W go when something larger is added?"""
    controls = {
        "magnitude": slider("size of W (σ)", [0.01, 0.03, 0.1, 0.3, 1.0, 2.0], 0.03, shown=lambda v: f"{v:g}"),
        "size": slider("size of the update (σ)", SIZES[5:], 0.1, shown=lambda v: f"{v:g}"),
        "precision": choice("stored as", {name: name for name in FLOATS[1:]}, "float16"),
    }
    return Explorer("bit by bit", controls, compute_bits, plots.bit_by_bit, explain_bits)


def bits_states() -> Picture:
    """Three sums, bit by bit: a weight above the update, one below it, one far below it."""
    return plots.bits_states([compute_bits(magnitude, 0.1, "float16") for magnitude in (1.0, 0.1, 0.01)])


@cache
def four_bit_curves() -> dict:
    """Three ways to merge into a 4-bit base, by size of the update: share kept, and error in updates."""
    four, full = base("NF4"), weight()
    share, error = {"A": [], "B": [], "C": []}, {"A": [], "B": [], "C": []}
    for size in FOUR_BIT_SIZES:
        delta = update(size)
        effective = {
            "A": _minus(merge(four, delta, "NF4"), four),
            "B": _minus(merge(full, delta, "NF4"), full),
            "C": _minus(merge(four, delta, "bfloat16"), four),
        }
        for way, arrived in effective.items():
            share[way].append(share_kept(arrived, delta))
            error[way].append(relative_error(delta, arrived))
    return {"share": share, "error": error}


def four_bit_picture() -> Picture:
    """The dead zone of a 4-bit merge, beside two ways around it."""
    return plots.four_bit(FOUR_BIT_SIZES, four_bit_curves())


@cache
def ratchet_path(size: float) -> dict:
    """100 times merge and unmerge of one update on the first rows of the 4-bit base: absmax of each block, and weights.

    bfloat16 does the same beside it.
    """
    delta = update(size)[:RATCHET_ROWS]
    four, half = base("NF4")[:RATCHET_ROWS], base("bfloat16")[:RATCHET_ROWS]
    scales, weights, sixteen = [_absmax(four)], [four], [_absmax(half)]
    for _ in range(CYCLES[-1]):
        four = merge(merge(four, delta, "NF4"), -delta, "NF4")
        half = merge(merge(half, delta, "bfloat16"), -delta, "bfloat16")
        weights.append(four)
        scales.append(_absmax(four))
        sixteen.append(_absmax(half))
    scales, sixteen = np.array(scales, np.float64), np.array(sixteen, np.float64)
    return {
        "growth": scales / scales[0],  # (cycles + 1, blocks)
        "sixteen": sixteen / sixteen[0],
        "weights": np.array(weights).reshape(CYCLES[-1] + 1, -1, BLOCK),
    }


def _absmax(w):
    return np.abs(w.reshape(-1, BLOCK)).max(axis=1)


@cache
def typical_block() -> int:
    """The block whose absmax grows most nearly as the mean does."""
    growth = ratchet_path(0.01)["growth"][-1]
    return int(np.argmin(np.abs(growth - growth.mean())))


def compute_ratchet(size: float, cycles: int) -> dict:
    """The state after some cycles: the weights of one block on the way, and the growth of all scales."""
    path = ratchet_path(size)
    mean = path["growth"].mean(axis=1)
    block = typical_block()
    start = path["weights"][0, block].astype(np.float64)
    top = np.abs(start) == np.abs(start).max()
    outward = np.sign(start[top]) * update(size)[:RATCHET_ROWS].reshape(-1, BLOCK)[block, top]
    return {
        "size": size,
        "cycles": cycles,
        "weights": path["weights"][: cycles + 1, block].astype(np.float64) / sigma(),  # (cycles + 1, 64)
        "mean": mean[: cycles + 1],
        "sixteen": path["sixteen"].mean(axis=1)[: cycles + 1],
        "growth": float(mean[cycles]),
        "standing_still": float(np.mean(path["growth"][cycles] < 1.0001)),
        "tops": int(top.sum()),
        "outward": float(outward.max()) / sigma(),
        "inward": float((-outward).max()) / sigma(),
        "absmax_before": float(np.abs(start).max()) / sigma(),
        "absmax_after": float(np.abs(path["weights"][cycles, block]).max()) / sigma(),
    }


def explain_ratchet(n: dict) -> str:
    """What one cycle adds to the block in the picture."""
    return (
        f"{n['tops']} weights share the outermost levels of this block: merging pushes one out by "
        f"{n['outward']:.4f} σ, "
        f"unmerging another by {n['inward']:.4f} σ, and the rest snap to it: "
        f"{n['outward'] + n['inward']:.4f} σ a cycle, absmax {n['absmax_before']:.2f} → {n['absmax_after']:.2f} σ"
    )


def ratchet() -> Explorer:
    """Merge and unmerge the same update into 4 bits, again and again."""
    controls = {
        "size": slider("size of the update (σ)", RATCHET_SIZES, 0.02, shown=lambda v: f"{v:g}"),
        "cycles": slider("merge + unmerge", CYCLES, 100, shown=lambda v: f"{v} ×"),
    }
    for size in RATCHET_SIZES:
        ratchet_path(size)  # computed now, so that the slider need not wait
    return Explorer("ratchet", controls, compute_ratchet, plots.ratchet, explain_ratchet)


FIGURES = {
    "merge-answer": (
        "“My merged model gives different output.” Left: W + ΔW drops to the nearest mark of its format. "
        "Right: the smaller the update, the more of it is lost; at the dashed line merging is as good as no adapter.",
        answer_picture,
    ),
    "merge-bits": (
        "Adding a larger number pushes the last bits of W off the right edge (red); subtracting cannot undo it. "
        "The further W lies below the update, the more of it is gone.",
        bits_states,
    ),
    "merge-four-bits": (
        "Three ways to merge into a 4-bit base. Rounding back to 4 bits (A) erases every small update; quantizing the "
        "16-bit original anew (B) keeps it on average under noise; staying in 16 bits (C) keeps it.",
        four_bit_picture,
    ),
}
