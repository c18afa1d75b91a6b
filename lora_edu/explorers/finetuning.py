"""Explorers of the chapter on fine-tuning: a run to watch, where transfer pays, the perfect fix, and learning rates.

The first one trains while you watch; the others read tables of many runs, made by `lora_edu.models.finetuning_tables`.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from lora_edu import datasets
from lora_edu.explorers.base import Explorer, choice, slider
from lora_edu.explorers.live import LiveExplorer
from lora_edu.metrics import truncate_svd
from lora_edu.models import finetuning_tables as tables
from lora_edu.models.finetuning import DIGIT_STEPS, energy_ranks, quarter_turn_fix, truncate_for_data
from lora_edu.models.finetuning_tables import (
    BASE_RANKS,
    BASES,
    CHANGES,
    CURVE_CHANGES,
    EVERY,
    FIX_RANKS,
    FIXES,
    LABELS,
    OPTIMIZERS,
    RANKS,
    RATES,
    RATIOS,
    RULES,
    SCALED_RANKS,
    SPECTRA,
    TESTED,
    TRANSFER_WAYS,
    WAYS,
    adapted,
    problem,
)
from lora_edu.models.mlp import SIZES
from lora_edu.plots import finetuning as plots
from lora_edu.plots.picture import Picture

__all__ = ["exact_fix", "learning_rate", "live", "transfer"]

TIED = 2  # standard errors of the difference: nearer than this, two ways are not told apart
FIX_WAYS = {"plain cut": "plain", "cut for the data": "weighted", "trained LoRA": "LoRA"}


def _table(name: str) -> np.ndarray:
    return datasets.finetuning_measured()[name]


def _share(counts) -> np.ndarray:
    return np.asarray(counts, np.float64) / TESTED


def mean_and_error(values) -> tuple[float, float]:
    """Mean over the splits, and its standard error."""
    values = np.asarray(values, np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def turned_accuracies() -> dict[str, np.ndarray]:
    """Accuracy on turned digits in each of ten splits, by way; and of the untouched network, also "upright"."""
    curves = _share(_table("curves")[0])  # (ways, splits, points)
    found = dict(zip(WAYS, curves[:, :, -1], strict=True))
    return found | {"untouched": curves[0, :, 0], "upright": _share(_table("upright"))}


def compute_opening(others: Sequence[str] = ("scratch", "full", "last layer", "biases")) -> dict:
    """Ten digits and a network's answers; accuracies of LoRA by rank, and of `others`."""
    task, _ = problem()
    shown = tables.pictured(task)
    reached = turned_accuracies()
    upright, turned = (images[shown].reshape(-1, 8, 8) for images in (task.upright[0], task.test[0]))
    return {
        "images": [upright, turned, turned],
        "answers": _table("answers"),
        "wanted": np.arange(10),
        "ranks": RANKS,
        "ways": {way: mean_and_error(reached[way]) for way in (*others, *(f"r = {rank}" for rank in RANKS))},
    }


@cache
def shipped_curves(change: str) -> dict:
    """Mean accuracy of ten splits by step, for every way."""
    means = _share(_table("curves")[CURVE_CHANGES.index(change)]).mean(axis=1)  # (ways, points)
    return {"steps": np.arange(0, DIGIT_STEPS + 1, EVERY), "shipped": dict(zip(WAYS, means, strict=True))}


def run_live(rank: int, change: str, base: str) -> Iterator[dict]:
    """A LoRA on the first split, and after every `EVERY` steps its curve so far and its answers to ten digits."""
    task, model = problem(change)
    shown = tables.pictured(problem()[0])
    after, records = adapted(base, model, task, rank, every=EVERY)
    numbers = {
        "rank": rank,
        "change": change,
        "base": base,
        **shipped_curves(change),
        "images": [task.test[0][shown].reshape(-1, 8, 8)],
        "wanted": task.test[1][shown],
        "trained": after.trained_count,
        "total": sum(array.size for array in model.parameters().values()),
    }
    curve = [after.accuracy(*task.test)]
    for record in records:
        if record.metrics:
            curve.append(record.metrics["accuracy"])
            yield {
                **numbers,
                "curve": np.array(curve),
                "answers": [after(task.test[0][shown]).argmax(axis=1)],
                "about": round(curve[-1], 1),
                "progress": record.step / DIGIT_STEPS,
            }


def explain_live(n: dict) -> str:
    """What is trained, and what it brought."""
    layers = " + ".join(f"{min(n['rank'], out)} · ({width} + {out})" for width, out in pairwise(SIZES))
    full, share = n["shipped"]["full"][-1], n["trained"] / n["total"]
    return (
        f"rank · (in + out) numbers a layer: {layers} = {n['trained']:,} of {n['total']:,}, {share:.0%}. From "
        f"{n['curve'][0]:.3f} to {n['curve'][-1]:.3f} in this split; full fine-tuning {full:.3f}, mean of ten"
    )


def live() -> LiveExplorer:
    """Move the rank, and a fresh LoRA is trained."""
    controls = {
        "rank": slider("rank", list(RANKS), 4),
        "change": choice("change", {name: name for name in CURVE_CHANGES}, "turn 90"),
        "base": choice("base", {name: name for name in BASES}, "fp32"),
    }
    return LiveExplorer("live", controls, run_live, plots.live, explain_live)


def compute_changes() -> list[tuple[str, dict]]:
    """The mean curve of LoRA at rank 4 among those of the other ways, change by change."""
    found = [(change, shipped_curves(change)) for change in CURVE_CHANGES]
    return [(change, {**n, "rank": 4, "base": "fp32", "curve": n["shipped"]["r = 4"]}) for change, n in found]


@cache
def advantage() -> np.ndarray:
    """Mean accuracy of LoRA at rank 4 less that of scratch: (changes, labels)."""
    means = _share(_table("transfer")).mean(axis=-1)  # (changes, labels, ways)
    return means[:, :, TRANSFER_WAYS.index("r = 4")] - means[:, :, TRANSFER_WAYS.index("scratch")]


def compute_transfer(change: str, labels: int) -> dict:
    """How every way stands at one change and number of labels."""
    at = CHANGES.index(change)
    runs = zip(TRANSFER_WAYS, _share(_table("transfer")[at, LABELS.index(labels)]), strict=True)
    found = {"untouched": _share(_table("zero_shot")[at]), **dict(runs)}
    best = max(found, key=lambda way: found[way].mean())
    gaps = {way: mean_and_error(found[best] - values) for way, values in found.items() if way != best}
    return {
        "change": change,
        "labels": labels,
        "ways": {way: mean_and_error(values) for way, values in found.items()},
        "best": best,
        "tied": [way for way, (gap, error) in gaps.items() if gap < TIED * error],
        "gaps": gaps,
        "advantage": advantage(),
        "changes": list(CHANGES),
        "all_labels": list(LABELS),
        "lora": float(found["r = 4"].mean()),
        "scratch": float(found["scratch"].mean()),
    }


def explain_transfer(n: dict) -> str:
    """The gap between the best way and the next one that is told apart from it."""
    apart = {way: gap for way, gap in n["gaps"].items() if way not in n["tied"]}
    line = f"Best: {n['best']}, {n['ways'][n['best']][0]:.3f}"
    if n["tied"]:
        line += f"; within {TIED} standard errors of it in the same splits: {', '.join(n['tied'])}"
    if apart:
        way, (gap, error) = min(apart.items(), key=lambda item: item[1][0])
        line += f"; next: {way}, behind by {gap:.3f} ± {error:.3f}"
    return line


def transfer() -> Explorer:
    """Which way wins, by how far the new task is from the old one and by how many labels there are."""
    controls = {
        "change": slider("change", list(CHANGES), "turn 20"),
        "labels": slider("labels", list(LABELS), 30),
    }
    return Explorer("transfer", controls, compute_transfer, plots.transfer, explain_transfer)


@cache
def compute_spectra() -> dict:
    """For each kind of matrix the share of its energy in the first directions; means over eight splits."""
    values = dict(zip(SPECTRA, _table("spectra").astype(np.float64), strict=True))
    values["inputs"] = _table("input_spectra").astype(np.float64)
    energies = {kind: np.square(rows) for kind, rows in values.items()}
    counted = {kind: [energy_ranks(np.diag(row)) for row in rows] for kind, rows in values.items()}
    return {
        "shares": {kind: (np.cumsum(e, 1) / e.sum(1, keepdims=True)).mean(axis=0) for kind, e in energies.items()},
        "effective": {kind: float(np.mean([one for one, _ in found])) for kind, found in counted.items()},
        "k90": {kind: float(np.mean([count for _, count in found])) for kind, found in counted.items()},
        "norm": {kind: float(np.sqrt(e.sum(1)).mean()) for kind, e in energies.items()},
    }


@cache
def fix_problem() -> dict:
    """The perfect change of a first layer, and for each rank what is left of it in three ways."""
    weight = _table("fix_weight").astype(np.float64)  # (64, 64)
    images = problem()[0].train[0]
    fix = quarter_turn_fix(weight)
    matrices = {
        "plain cut": [truncate_svd(fix, rank)[0] for rank in FIX_RANKS],
        "cut for the data": [truncate_for_data(fix, images, rank) for rank in FIX_RANKS],
        "trained LoRA": list(_table("fix_trained").astype(np.float64)),
    }
    size = np.linalg.norm(fix)
    accuracies = dict(zip(FIXES, _share(_table("fixes")).mean(axis=-1), strict=True))
    return {
        "ranks": FIX_RANKS,
        "fix": fix,
        "matrices": matrices,
        "distances": {way: [float(np.linalg.norm(m - fix) / size) for m in found] for way, found in matrices.items()},
        "accuracies": {way: accuracies[name] for way, name in FIX_WAYS.items()},
    }


def compute_fix(way: str, rank: int) -> dict:
    """One of three changes of rank r, beside the perfect one."""
    shown, at = fix_problem(), FIX_RANKS.index(rank)
    return {
        **{name: shown[name] for name in ("ranks", "fix", "distances", "accuracies")},
        "way": way,
        "rank": rank,
        "matrix": shown["matrices"][way][at],
        "distance": shown["distances"][way][at],
        "accuracy": float(shown["accuracies"][way][at]),
    }


def explain_fix(n: dict) -> str:
    """Near in the matrix, far in the answers, or the other way round."""
    at = FIX_RANKS.index(n["rank"])
    ways = [
        f"{way}: distance {n['distances'][way][at]:.2f}, accuracy {n['accuracies'][way][at]:.3f}" for way in FIX_WAYS
    ]
    return f"Rank {n['rank']}, where 0 is the perfect ΔW and 1 no change at all. " + "; ".join(ways)


def exact_fix() -> Explorer:
    """The perfect change is known: what is the best one of rank r?"""
    controls = {
        "way": choice("way", {name: name for name in FIX_WAYS}, "plain cut"),
        "rank": slider("rank", list(FIX_RANKS), 4),
    }
    return Explorer("exact fix", controls, compute_fix, plots.exact_fix, explain_fix)


def compute_repair() -> dict:
    """Accuracy over three bases by rank, 0 being the base alone: on the old task, and on a new one."""
    found = {
        name: {base: [mean_and_error(_share(row)) for row in rows] for base, rows in zip(BASES, table, strict=True)}
        for name, table in zip(("upright", "turned"), _table("bases"), strict=True)
    }
    return {**found, "ranks": BASE_RANKS}


def _picked(runs) -> tuple[np.ndarray, int]:
    """From (rates, splits, 2): test accuracies at the rate with the best mean on validation images, and its place."""
    at = int(np.argmax(runs[..., 0].mean(axis=-1)))
    return _share(runs[at, :, 1]), at


@cache
def rate_tables() -> dict:
    """For each optimizer: accuracy by rule, rank and rate, and by rule and rank at the rate picked for each."""
    found = {}
    for optimizer, table in zip(OPTIMIZERS, _table("rates"), strict=True):
        means = _share(table[..., 1]).mean(axis=-1)  # (rules, ranks, rates)
        picked = [[_picked(runs) for runs in by_rank] for by_rank in table]
        found[optimizer] = {
            "mean": dict(zip(RULES, means, strict=True)),
            "tuned": {rule: np.array([one.mean() for one, _ in row]) for rule, row in zip(RULES, picked, strict=True)},
            "best": {rule: [RATES[at] for _, at in row] for rule, row in zip(RULES, picked, strict=True)},
            "gap": mean_and_error(picked[1][-1][0] - picked[0][-1][0]),
        }
    return found


def compute_rates(optimizer: str, lr: float) -> dict:
    """Both rules at one learning rate, beside all the others."""
    found, at = rate_tables()[optimizer], RATES.index(lr)
    return {
        "optimizer": optimizer,
        "lr": lr,
        "by_rate": {rule: dict(zip(SCALED_RANKS, curves, strict=True)) for rule, curves in found["mean"].items()},
        "at_rate": {rule: curves[:, at] for rule, curves in found["mean"].items()},
        "tuned": found["tuned"],
        "best": found["best"],
        "gap": found["gap"],
        "rank_256": float(found["mean"]["α / r"][-1, at]),
        "rank_256_rslora": float(found["mean"]["α / √r"][-1, at]),
    }


def explain_rates(n: dict) -> str:
    """The scaling at the highest rank, and which rate suits it."""
    at = {rule: f"{n['at_rate'][rule][-1]:.3f}" for rule in RULES}
    best = {rule: f"{n['tuned'][rule][-1]:.3f} at {n['best'][rule][-1]:g}" for rule in RULES}
    return (
        f"Rank 256, {n['optimizer']} at {n['lr']:g}: α / r = 16 / 256 = 0.0625 gives {at['α / r']}, α / √r = 16 / 16 = "
        f"1 gives {at['α / √r']}. Each at the rate its validation images pick: {best['α / r']}, and {best['α / √r']}. "
        f"The second less the first: {n['gap'][0]:.3f} ± {n['gap'][1]:.3f}. 0 means that it diverged"
    )


def learning_rate() -> Explorer:
    """Which scaling rule wins depends on the optimizer and on the learning rate."""
    controls = {
        "optimizer": choice("optimizer", {name: name for name in OPTIMIZERS}, "SGD"),
        "lr": slider("learning rate", list(RATES), 0.03),
    }
    picture = lambda numbers: plots.rates(numbers, RATES, SCALED_RANKS)  # noqa: E731
    return Explorer("learning rate", controls, compute_rates, picture, explain_rates)


def compute_first_steps() -> dict:
    """Relative change of the layer's output by a first step, by optimizer, rule and rank; means over ten splits."""
    moved = _table("first_steps")[..., 1].astype(np.float64).mean(axis=-1)  # (optimizers, rules, ranks)
    return {
        "ranks": SCALED_RANKS,
        "moved": {name: dict(zip(RULES, table, strict=True)) for name, table in zip(OPTIMIZERS, moved, strict=True)},
    }


def compute_plus() -> dict:
    """Accuracy by learning rate when B learns faster than A, and at the rate picked for each ratio."""
    table = _table("plus")  # (ratios, rates, splits, 2)
    return {
        "rates": tables.PLUS_RATES,
        "curves": dict(zip(RATIOS, _share(table[..., 1]).mean(axis=-1), strict=True)),
        "tuned": {ratio: mean_and_error(_picked(runs)[0]) for ratio, runs in zip(RATIOS, table, strict=True)},
        "gain": mean_and_error(_picked(table[RATIOS.index(16)])[0] - _picked(table[0])[0]),
    }


def _where_it_pays() -> Picture:
    return plots.where_it_pays(compute_transfer("turn 20", 30))


FIGURES = {
    "turned-digits": (
        "A network that reads upright digits is adapted to turned ones. LoRA of rank 4 wins nearly all that full "
        "fine-tuning wins, with a ninth of the numbers; a network that starts from nothing does as well.",
        lambda: plots.opening(compute_opening()),
    ),
    "where-lora-pays": (
        "LoRA of rank 4 against a fresh start, mean accuracy of ten splits. It pays where the new task is near the old "
        "one and labels are few, and not where nothing old is useful.",
        _where_it_pays,
    ),
    "best-for-what": (
        "Three changes of rank r that should undo a quarter turn. The cut by singular values is nearest to the perfect "
        "matrix, and answers worst; at low rank a trained pair answers best, at high rank the cut made for the data.",
        lambda: plots.best_for_what(compute_fix("plain cut", 4)),
    ),
}
