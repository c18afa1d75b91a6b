"""Explorers of the chapter on scaling: how sizes follow the rank, and the first steps of training."""

import math
from functools import cache

import numpy as np

from lora_edu import datasets
from lora_edu.blockwise import dequantize, quantize
from lora_edu.config import LoraConfig
from lora_edu.explorers.base import Explorer, choice, slider
from lora_edu.linear import LoraLinear
from lora_edu.plots import scaling as plots
from lora_edu.training import SGD, Adam, lora_gradients

__all__ = ["first_steps", "rank_sweep"]

RULES = {  # name -> scaling of (alpha, rank)
    "α / r": lambda alpha, rank: LoraConfig(rank=rank, alpha=alpha).scaling,
    "α / √r": lambda alpha, rank: LoraConfig(rank=rank, alpha=alpha, use_rslora=True).scaling,
    "α alone": lambda alpha, rank: alpha,  # no division at all
}
OPTIMIZERS = {"SGD": lambda: SGD(lr=0.02), "Adam": lambda: Adam(lr=0.005)}
ALPHAS = [1, 2, 4, 8, 16, 32, 64]

RANKS = [2**k for k in range(10)]  # of the sweep: 1 … 512
SWEEP_ALPHA = 16
B_SIZE = 0.01  # of B's entries where the output is measured: a B that training has moved

STEP_RANKS = [1, 2, 4, 8, 16, 32, 64]  # of the layer that learns to mirror
COMPARED = (4, 16, 64)
STEPS = 40
SHOWN = (0, 2, 5, 10, 20, 40)  # steps whose output is pictured
PICTURED = (7, 5)  # which digits
DIVERGED = 10  # a loss above this is not followed further
STARTS = ("A random, B zero", "A zero, B random", "A and B zero")


@cache
def repair_problem() -> dict:
    """A real layer in 4 bits that should answer as the original does, on 64 random inputs."""
    weight = datasets.minilm_weights()[datasets.QUERY]  # (384, 384) float32
    base = dequantize(quantize(weight)).astype(np.float64)
    x = np.random.default_rng(0).standard_normal((64, weight.shape[1]))
    upstream = x @ (base - weight).T  # dL/dy of L = Σ (y - target)² / 2, (64, 384)
    return {"x": x, "base": base, "upstream": upstream}


@cache
def _pair(seed: int = 0):
    """A with 512 rows in the reference's width, and a small random B; rank r takes the first r rows and columns."""
    rng = np.random.default_rng(seed)
    out, width = repair_problem()["base"].shape
    bound = math.sqrt(2 / width)
    a = rng.uniform(-bound, bound, (RANKS[-1], width))
    return a, B_SIZE * rng.standard_normal((out, RANKS[-1]))


@cache
def unscaled_sizes() -> dict:
    """Each quantity at scaling 1 for every rank: what the rank alone does."""
    problem, (a, b) = repair_problem(), _pair()
    x, base, upstream = problem["x"], problem["base"], problem["upstream"]
    base_output = np.linalg.norm(x @ base.T)
    sizes = {"output": [], "gradient": [], "Adam": []}
    for rank in RANKS:
        d_b = lora_gradients(x, upstream, base, a[:rank], np.zeros((len(base), rank)), 1.0).lora_b
        sizes["output"].append(np.linalg.norm(x @ a[:rank].T @ b[:, :rank].T) / base_output)
        sizes["gradient"].append(np.linalg.norm(d_b))
        sizes["Adam"].append(np.abs(d_b).sum())  # drop of the loss for a step -sign(dB)
    sizes = {name: np.array(values) for name, values in sizes.items()}
    sizes["SGD"] = sizes["gradient"] ** 2  # drop of the loss for a step -dB
    return sizes


def slope(ranks, sizes) -> float:
    """Exponent p of size ~ rankᵖ: the slope of the straight line through the logarithms."""
    return float(np.polyfit(np.log(ranks), np.log(sizes), 1)[0])


def compute_rank_sweep(rule: str, optimizer: str, alpha: float) -> dict:
    """Output, gradient and progress of a first step by rank under each rule, in units of rank 1 at alpha 16."""
    raw = unscaled_sizes()
    powers = {"output": ("output", 1), "gradient": ("gradient", 1), "progress": (optimizer, 2 - (optimizer == "Adam"))}
    curves = {}
    for quantity, (name, power) in powers.items():  # dB carries s once; progress = step · dB, and an SGD step is dB
        unit = raw[name][0] * SWEEP_ALPHA**power
        curves[quantity] = {
            one: np.array([of(alpha, rank) for rank in RANKS]) ** power * raw[name] / unit for one, of in RULES.items()
        }
    slopes = {q: {one: slope(RANKS, sizes) for one, sizes in by_rule.items()} for q, by_rule in curves.items()}
    return {
        "rule": rule,
        "optimizer": optimizer,
        "alpha": alpha,
        "curves": curves,
        "slopes": slopes,
        **{f"{quantity}_slope": slopes[quantity][rule] for quantity in curves},
        "scaling": float(RULES[rule](alpha, 64)),
    }


def explain_rank_sweep(n: dict) -> str:
    """The layer at rank 64 against rank 1."""
    at, power = RANKS.index(64), 1 if n["optimizer"] == "Adam" else 2
    ratio = {q: by_rule[n["rule"]][at] / by_rule[n["rule"]][0] for q, by_rule in n["curves"].items()}
    shrunk = n["scaling"] / n["alpha"]
    return (
        f"rank 64: scaling {n['scaling']:.3g}, {shrunk:.3g} of what it is at rank 1. Output {shrunk:.3g} · √64 = "
        f"{shrunk * 8:.3g} times that of rank 1 (measured {ratio['output']:.3g}); progress of a step "
        f"{shrunk:.3g}{'²' if power == 2 else ''} · 64 = {shrunk**power * 64:.3g} times (measured "
        f"{ratio['progress']:.3g})"
    )


def rank_sweep() -> Explorer:
    """Which rule is flat, and for what."""
    controls = {
        "rule": choice("scaling", {name: name for name in RULES}, "α / r"),
        "optimizer": choice("optimizer", {name: name for name in OPTIMIZERS}, "Adam"),
        "alpha": slider("alpha", ALPHAS, SWEEP_ALPHA),
    }
    picture = lambda numbers: plots.rank_sweep(numbers, RANKS)  # noqa: E731
    return Explorer("rank sweep", controls, compute_rank_sweep, picture, explain_rank_sweep)


@cache
def mirror_problem() -> dict:
    """128 real digits, and their mirror images as the wanted output; the layer starts as one that copies."""
    images = datasets.digits()[0][:128] / 16  # (128, 8, 8) in [0, 1]
    mean = images.mean(axis=0)
    centred = images - mean
    x, target = centred.reshape(-1, 64), centred[:, :, ::-1].reshape(-1, 64)
    return {"x": x, "target": target, "mean": mean[:, ::-1].ravel(), "images": images}


def start_pair(rank: int, start: str = STARTS[0]):
    """A and B of one of `STARTS`, in the reference's width."""
    rng, bound = np.random.default_rng(0), math.sqrt(2 / 64)
    a, b = rng.uniform(-bound, bound, (rank, 64)), rng.uniform(-bound, bound, (64, rank))
    return a * ("A random" in start), b * ("B random" in start)


@cache
def train(rank: int, alpha: float, rule: str, optimizer: str, start: str = STARTS[0], steps: int = STEPS) -> dict:
    """Full-batch steps on the mirror problem: loss (1 = untouched layer), gradient norms, outputs, and A, B."""
    problem, weight = mirror_problem(), np.eye(64)
    x, target, scaling = problem["x"], problem["target"], RULES[rule](alpha, rank)
    pair, update = start_pair(rank, start), OPTIMIZERS[optimizer]()
    losses, norms, outputs, untouched = [], [], [], np.sum((x - target) ** 2)
    for step in range(steps + 1):
        y = x @ weight.T + scaling * (x @ pair[0].T) @ pair[1].T
        losses.append(float(np.sum((y - target) ** 2) / untouched))
        if losses[-1] > DIVERGED:
            break
        d_a, d_b, _ = lora_gradients(x, (y - target) / len(x), weight, *pair, scaling)
        norms.append((float(np.linalg.norm(d_a)), float(np.linalg.norm(d_b))))
        if step in SHOWN:
            outputs.append(y[list(PICTURED)] + problem["mean"])
        pair = update.step(pair, (d_a, d_b))
    return {"losses": np.array(losses), "norms": np.array(norms), "outputs": outputs, "pair": pair, "scaling": scaling}


def compute_first_steps(rank: int, alpha: float, rule: str, optimizer: str) -> dict:
    """Forty steps at one rank, beside ranks 4, 16 and 64 under the same alpha, rule and optimizer."""
    run = train(rank, alpha, rule, optimizer)
    images = mirror_problem()["images"][list(PICTURED)]
    shown = [images, *(out.reshape(-1, 8, 8) for out in run["outputs"])]
    shown += [np.full_like(images, np.nan)] * (1 + len(SHOWN) - len(shown))  # diverged: nothing to show
    return {
        "rank": rank,
        "alpha": alpha,
        "rule": rule,
        "optimizer": optimizer,
        "scaling": float(run["scaling"]),
        "losses": run["losses"],
        "compared": {other: train(other, alpha, rule, optimizer)["losses"] for other in COMPARED},
        "norms": run["norms"],
        "strip": [*shown, images[:, :, ::-1]],
        "d_a_at_0": float(run["norms"][0, 0]),
        "d_b_at_0": float(run["norms"][0, 1]),
        "diverges": int(run["losses"][-1] > DIVERGED),
        "loss": float(min(run["losses"][-1], DIVERGED)),
    }


def explain_first_steps(n: dict) -> str:
    """The first step of one layer."""
    lr = OPTIMIZERS[n["optimizer"]]().lr
    division = {"α / r": f"{n['alpha']} / {n['rank']}", "α / √r": f"{n['alpha']} / √{n['rank']}", "α alone": "α"}
    moved = (
        f"‖B‖ becomes {lr} · {n['d_b_at_0']:.3g} = {lr * n['d_b_at_0']:.3g}"
        if n["optimizer"] == "SGD"
        else f"each entry of B becomes ±{lr}"
    )
    return (
        f"scaling = {division[n['rule']]} = {n['scaling']:.3g}. Step 0: dA = s · (G B)ᵀ x with B = 0, so exactly "
        f"{n['d_a_at_0']:.3g}; ‖dB‖ = {n['d_b_at_0']:.3g}, and with {n['optimizer']} at lr {lr} {moved}"
    )


def first_steps() -> Explorer:
    """A layer that copies digits learns to mirror them."""
    controls = {
        "rank": slider("rank", STEP_RANKS, 8),
        "alpha": slider("alpha", ALPHAS, 8),
        "rule": choice("scaling", {name: name for name in RULES}, "α / r"),
        "optimizer": choice("optimizer", {name: name for name in OPTIMIZERS}, "Adam"),
    }
    picture = lambda numbers: plots.first_steps(numbers, SHOWN)  # noqa: E731
    return Explorer("first steps", controls, compute_first_steps, picture, explain_first_steps)


def compute_starts() -> list[tuple[str, dict]]:
    """The first three steps of Adam from each of the three starts."""
    runs = {start: train(8, 8, "α / r", "Adam", start) for start in STARTS}
    return [(f"{start}: loss {run['losses'][-1]:.2f}", {"norms": run["norms"]}) for start, run in runs.items()]


def compute_swap() -> list[tuple[str, dict]]:
    """Ranks 4, 16 and 64 under both rules and both optimizers."""
    pairs = [(optimizer, rule) for rule in ("α / √r", "α / r") for optimizer in OPTIMIZERS]
    return [(f"{optimizer}, {rule}", compute_first_steps(16, 8, rule, optimizer)) for optimizer, rule in pairs]


def compute_loaded(scalings: dict) -> dict:
    """Digits through an adapter trained at rank 8 with alpha 16, but run with other scalings: name -> scaling."""
    problem, run = mirror_problem(), train(8, 16, "α / r", "Adam")
    (a, b), x, target = run["pair"], problem["x"], problem["target"]
    shown, losses = {}, {}
    for name, scaling in scalings.items():
        y = x + scaling * (x @ a.T) @ b.T
        losses[name] = float(np.sum((y - target) ** 2) / np.sum((x - target) ** 2))
        shown[name] = (y[list(PICTURED)] + problem["mean"]).reshape(-1, 8, 8)
    return {"shown": shown, "losses": losses, "wanted": problem["images"][list(PICTURED)][:, :, ::-1]}


@cache
def compute_window() -> dict:
    """Entries of A in a 384-wide layer of rank 8 by init; and how much of the gradient the first step sees."""
    problem, (a, _) = repair_problem(), _pair()
    weight = datasets.minilm_weights()[datasets.QUERY]
    entries = {
        init: LoraLinear(weight, LoraConfig(rank=8, init=init)).lora_a.ravel()
        for init in ("kaiming", "reference", "gaussian")
    }
    full = problem["upstream"].T @ problem["x"]  # G of the weight: (384, 384)
    steps = [full @ a[:rank].T @ a[:rank] for rank in RANKS]  # ΔW = -lr · s² · G Aᵀ A
    return {
        "entries": entries,
        "ranks": RANKS,
        "cosine": [float(np.sum(full * d) / np.linalg.norm(full) / np.linalg.norm(d)) for d in steps],
        "formula": [math.sqrt(rank / (rank + full.shape[1] + 1)) for rank in RANKS],
    }


FIGURES = {
    "first-steps": (
        "A layer that copies digits learns to mirror them. At step 0 the gradient of A is exactly zero, because B is; "
        "B moves first, and from step 1 on both learn.",
        lambda: plots.first_steps(compute_first_steps(8, 8, "α / r", "Adam"), SHOWN),
    ),
    "scaling-swap": (
        "The same problem at ranks 4, 16 and 64. Under SGD the curves agree with α / √r and fan out with α / r; under "
        "Adam it is the other way round.",
        lambda: plots.swap(compute_swap()),
    ),
    "rank-sweep": (
        "Size by rank on a real layer under three rules, with the measured slopes. α / √r keeps output and gradient "
        "level; the progress of a first Adam step is level under α / r.",
        lambda: plots.rank_sweep(compute_rank_sweep("α / r", "Adam", SWEEP_ALPHA), RANKS),
    ),
}
