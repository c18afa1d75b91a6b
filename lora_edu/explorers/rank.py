"""Explorers of the chapter on rank: the product that fills in, its cost, its floor, its directions."""

from functools import cache
from typing import NamedTuple

import numpy as np

from lora_edu import datasets
from lora_edu.blockwise import dequantize, quantize
from lora_edu.explorers.base import Explorer, choice, slider
from lora_edu.explorers.nf4_error import photograph
from lora_edu.linear import LoraLinear
from lora_edu.metrics import subspace_similarity
from lora_edu.plots import rank as plots
from lora_edu.plots.picture import Picture

__all__ = ["fill_in", "floor", "overlap", "what_rank_costs"]

SHOWN = 128  # rows and columns of a weight that the product picture shows, so that single entries can be seen
ROOM = 32  # columns of B, rows of A that the product picture has room for
TARGETS = ["photograph", "trained update", "query"]
MATRICES = ["query", "FFN down", "trained update", "random"]
PAIRS = ["two trained updates", "shuffled labels", "query and 4-bit copy", "two random matrices"]
DRAWS = 10  # random choices of directions, for each rank
MARKS = np.array([12, 36, 60, 96, 144, 192, 240, 288, 336])  # ranks at which other choices are drawn
SIZES = [64, 128, 256, 384, 768, 1024, 1536, 2048, 4096, 8192, 12288]


class Network(NamedTuple):
    """Weights of a network 64-384-384-10 with tanh, each (out, in)."""

    first: np.ndarray
    hidden: np.ndarray
    last: np.ndarray

    def activations(self, x) -> list[np.ndarray]:
        """Input (n, 64), the two hidden layers, and the ten scores."""
        one = np.tanh(x @ self.first.T)
        two = np.tanh(one @ self.hidden.T)
        return [x, one, two, two @ self.last.T]

    def accuracy(self, x, labels) -> float:
        """Share of the images whose largest score is the right digit."""
        return float(np.mean(self.activations(x)[-1].argmax(axis=1) == labels))


def trained(network: Network, x, labels, steps: int, seed: int) -> Network:
    """Every weight trained on 64 images a step: SGD with momentum on the cross-entropy."""
    rng = np.random.default_rng(seed)
    speed = [np.zeros_like(weight) for weight in network]
    for _ in range(steps):
        batch = rng.integers(0, len(x), 64)
        *hidden, scores = network.activations(x[batch])
        share = np.exp(scores - scores.max(axis=1, keepdims=True))
        upstream = (share / share.sum(axis=1, keepdims=True) - np.eye(10)[labels[batch]]) / len(batch)
        moved = []
        for layer in (2, 1, 0):
            gradient = upstream.T @ hidden[layer]
            upstream = upstream @ network[layer] * (1 - hidden[layer] ** 2)
            speed[layer] = 0.9 * speed[layer] - 0.1 * gradient
            moved.insert(0, network[layer] + speed[layer])
        network = Network(*moved)
    return network


@cache
def fine_tuned() -> dict:
    """Digits learnt upright, then rotated by a quarter turn: on two sets of images that share none, and as a control
    on the second set with its labels shuffled, where only the images can be learnt."""
    images, labels = datasets.digits()
    upright = images.reshape(-1, 64) / 8 - 1
    rotated = np.rot90(images, axes=(1, 2)).reshape(-1, 64) / 8 - 1
    rng = np.random.default_rng(0)
    shapes = ((384, 64), (384, 384), (10, 384))
    start = Network(*(rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in shapes))
    base = trained(start, upright[:900], labels[:900], steps=300, seed=1)
    tuned = [trained(base, rotated[i : i + 225], labels[i : i + 225], steps=200, seed=i) for i in (900, 1125)]
    control = trained(base, rotated[1125:1350], rng.permutation(labels[1125:1350]), steps=200, seed=1125)
    return {
        "weight": base.hidden,
        "updates": [network.hidden - base.hidden for network in tuned],
        "shuffled": control.hidden - base.hidden,
        "before": base.accuracy(rotated[1350:], labels[1350:]),
        "after": tuned[0].accuracy(rotated[1350:], labels[1350:]),
    }


@cache
def matrix(name: str) -> np.ndarray:
    """One of the targets or matrices, float64."""
    if name == "photograph":
        return photograph().astype(np.float64)
    if name == "trained update":
        return fine_tuned()["updates"][0]
    if name == "random":
        return np.random.default_rng(0).standard_normal((384, 384))
    key = {"query": datasets.QUERY, "FFN down": datasets.FFN_DOWN}[name]
    return datasets.minilm_weights()[key].astype(np.float64)


@cache
def svd(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, σ, Vᵀ; of each pair of directions the sign is chosen so that the largest entry of u is positive."""
    u, singular, vt = np.linalg.svd(matrix(name), full_matrices=False)
    sign = np.sign(u[np.abs(u).argmax(axis=0), np.arange(len(singular))])
    return u * sign, singular, vt * sign[:, None]


@cache
def left_over(name: str) -> np.ndarray:
    """Share of the norm that the best approximation leaves, at rank 0, 1, 2, …"""
    energy = np.append(0, np.cumsum(svd(name)[1] ** 2))
    return np.sqrt(np.maximum(0, 1 - energy / energy[-1]))


@cache
def best_layer(name: str, rank: int) -> LoraLinear:
    """A layer whose ΔW is the best approximation of rank `rank`, shared evenly between B and A; alpha is rank."""
    u, singular, vt = svd(name)
    root = np.sqrt(singular[:rank])
    layer = LoraLinear(np.zeros_like(matrix(name)), rank=rank)
    layer.lora_b, layer.lora_a = u[:, :rank] * root, root[:, None] * vt[:rank]
    return layer


def compute_fill_in(name: str, rank: int) -> dict:
    """A target and its best product of `rank` columns and rows."""
    target, layer = matrix(name), best_layer(name, rank)
    product = layer.delta_weight()
    photo = name == "photograph"
    part = slice(None if photo else SHOWN)
    row = column = len(target[part]) // 2
    return {
        "name": name,
        "rank": rank,
        "room": ROOM,
        "B": (layer.lora_b / np.abs(layer.lora_b).max(axis=0))[part],  # each column in full colour
        "A": (layer.lora_a / np.abs(layer.lora_a).max(axis=1, keepdims=True))[:, part],
        "product": product[part, part],
        "target": target[part, part],
        "photo": photo,
        "limit": 1.0 if photo else 3 * float(target.std()),
        "left": float(np.linalg.norm(target - product) / np.linalg.norm(target)),
        "trained": layer.trainable_count,
        "full": target.size,
        "place": [row, column],
        "first_product": float(layer.lora_b[row, 0] * layer.lora_a[0, column]),
        "entry": float(product[row, column]),
        "wanted": float(target[row, column]),
    }


def explain_fill_in(n: dict) -> str:
    """One entry of the product."""
    products = f"{n['first_product']:.3f} + {n['rank'] - 1} more products = " if n["rank"] > 1 else ""
    return (
        f"one entry, ΔW{n['place']} = row of B · column of A = {products}{n['entry']:.3f}; "
        f"the target has {n['wanted']:.3f} there. {n['trained']:,} numbers instead of {n['full']:,}"
    )


def fill_in() -> Explorer:
    """One sheet more for each step of the rank."""
    controls = {
        "rank": slider("rank", list(range(1, ROOM + 1)), 4),
        "name": choice("target", {name: name for name in TARGETS}, "photograph"),
    }
    return Explorer("the product fills in", controls, compute_fill_in, plots.fill_in, explain_fill_in)


def compute_cost(rank: int, in_features: int, out_features: int) -> dict:
    """Numbers in A and B against numbers in W; a rank above min(in, out) is lowered to it."""
    largest = min(in_features, out_features)
    rank = min(rank, largest)
    return {
        "rank": rank,
        "in_features": in_features,
        "out_features": out_features,
        "largest_rank": largest,
        "trained": rank * (in_features + out_features),
        "full": in_features * out_features,
        "break_even": in_features * out_features / (in_features + out_features),
    }


def explain_cost(n: dict) -> str:
    """The two products."""
    both = n["in_features"] + n["out_features"]
    capped = f" (rank cannot exceed {n['largest_rank']:,} here)" if n["rank"] == n["largest_rank"] else ""
    return (
        f"{n['rank']:,} · ({n['in_features']:,} + {n['out_features']:,}) = {n['trained']:,} instead of "
        f"{n['in_features']:,} · {n['out_features']:,} = {n['full']:,}{capped}; break-even at {n['full']:,} / {both:,} "
        f"= rank {n['break_even']:,.4g}"
    )


def what_rank_costs() -> Explorer:
    """Rank and shape of one layer."""
    ranks = [2**power for power in range(13)]
    controls = {
        "rank": slider("rank", ranks, 64),
        "in_features": slider("in", SIZES, 1024),
        "out_features": slider("out", SIZES, 1024),
    }
    return Explorer("what rank costs", controls, compute_cost, plots.cost, explain_cost)


# model, width, layers, adapted matrices a layer, rank, printed count, half of its last digit
PAPER = [
    ("RoBERTa base, q v, r = 8", 768, 12, 2, 8, 0.3e6, 0.05e6),
    ("RoBERTa large, q v, r = 8", 1024, 24, 2, 8, 0.8e6, 0.05e6),
    ("DeBERTa XXL, q v, r = 16", 1536, 48, 2, 16, 4.7e6, 0.05e6),
    ("GPT-2 M, q v, r = 4", 1024, 24, 2, 4, 0.35e6, 0.005e6),
    ("GPT-2 L, q v, r = 4", 1280, 36, 2, 4, 0.77e6, 0.005e6),
    ("GPT-3, q v, r = 1", 12288, 96, 2, 1, 4.7e6, 0.05e6),
    ("GPT-3, q v, r = 8", 12288, 96, 2, 8, 37.7e6, 0.05e6),
    ("GPT-3, q k v o, r = 4", 12288, 96, 4, 4, 37.7e6, 0.05e6),
    ("GPT-3, q k v o, r = 2", 12288, 96, 4, 2, 37.7e6, 0.05e6),
]


def compute_paper() -> list[dict]:
    """The counts that the LoRA paper prints (Hu et al. 2021), beside r · (in + out) summed over its layers."""
    rows = []
    for name, width, layers, matrices, rank, printed, half_digit in PAPER:
        computed = layers * matrices * compute_cost(rank, width, width)["trained"]
        digits = 2 if half_digit < 0.01e6 else 1
        rows.append(
            {
                "name": name,
                "computed": computed,
                "printed": printed,
                "printed_text": f"{printed / 1e6:.{digits}f}M",
                "rounding": (printed - half_digit, printed + half_digit),
                "agrees": abs(computed - printed) <= half_digit,
            }
        )
    return rows


def paper_picture() -> Picture:
    """The paper's counts, printed and computed."""
    return plots.paper_counts(compute_paper())


@cache
def random_directions(draw: int) -> np.ndarray:
    """384 random orthonormal directions (384, 384); the first r columns span a random subspace of r."""
    return np.linalg.qr(np.random.default_rng(1000 + draw).standard_normal((384, 384)))[0]


@cache
def random_left_over(name: str) -> np.ndarray:
    """Share of the norm that projections Q Qᵀ W leave at rank 0 … 384, for each draw of Q: (DRAWS, 385)."""
    target = matrix(name)
    total = np.sum(target**2)
    caught = [np.cumsum(np.sum((random_directions(draw).T @ target) ** 2, axis=1)) for draw in range(DRAWS)]
    return np.sqrt(np.maximum(0, 1 - np.insert(caught, 0, 0, axis=1) / total))


def largest_rows_wrong(weight, rank: int) -> np.ndarray:
    """Rank `rank` by keeping the largest rows and zeroing the others: tempting, and not the best."""
    kept = np.argsort(np.sum(weight**2, axis=1))[::-1][:rank]
    approximation = np.zeros_like(weight)
    approximation[kept] = weight[kept]
    return approximation


@cache
def largest_rows_left_over(name: str) -> np.ndarray:
    """Share of the norm that `largest_rows_wrong` leaves at rank 0 … 384."""
    energy = np.append(0, np.cumsum(np.sort(np.sum(matrix(name) ** 2, axis=1))[::-1]))
    return np.sqrt(np.maximum(0, 1 - energy / energy[-1]))


def compute_floor(name: str, rank: int) -> dict:
    """What the best approximation leaves, and what other choices of the same rank leave."""
    singular = svd(name)[1]
    best_random = random_left_over(name).min(axis=0)
    rows = largest_rows_left_over(name)
    return {
        "name": name,
        "rank": rank,
        "singular": singular / singular[0],
        "left": float(left_over(name)[rank]),
        "marks": MARKS,
        "random": best_random[MARKS],
        "largest_rows": rows[MARKS],
        "left_by_random": float(best_random[rank]),
        "left_by_rows": float(rows[rank]),
        "kept_energy": float(np.sum(singular[:rank] ** 2) / np.sum(singular**2)),
    }


def explain_floor(n: dict) -> str:
    """The floor as a root, and the others above it."""
    return (
        f"left over = √(1 − kept Σσ² / all Σσ²) = √(1 − {n['kept_energy']:.3f}) = {n['left']:.3f}; "
        f"as many random directions leave {n['left_by_random']:.3f} (best of {DRAWS} draws), "
        f"as many of the largest rows {n['left_by_rows']:.3f}"
    )


def floor() -> Explorer:
    """Walk down the floor of a real matrix."""
    controls = {
        "rank": slider("rank", [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 320], 32),
        "name": choice("matrix", {name: name for name in MATRICES}, "query"),
    }
    floors = {name: left_over(name) for name in MATRICES}
    return Explorer("the floor", controls, compute_floor, lambda numbers: plots.floor(numbers, floors), explain_floor)


@cache
def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices to compare."""
    if name == "two trained updates":
        return tuple(fine_tuned()["updates"])
    if name == "shuffled labels":
        return fine_tuned()["updates"][0], fine_tuned()["shuffled"]
    if name == "query and 4-bit copy":
        query = datasets.minilm_weights()[datasets.QUERY]
        return query, dequantize(quantize(query))
    return tuple(np.random.default_rng(seed).standard_normal((384, 384)) for seed in (1, 2))


@cache
def similarity(name: str) -> np.ndarray:
    """φ(i, j) of a pair for up to `ROOM` directions of each."""
    return subspace_similarity(*pair(name))[:ROOM, :ROOM]


def expected_similarity(i, j, dimensions: int = 384):
    """Mean of φ(i, j) over random subspaces: i · j / dimensions shared, divided by min(i, j)."""
    return np.maximum(i, j) / dimensions


def compute_overlap(pair: str, i: int, j: int) -> dict:
    """How far i leading directions of the first agree with j of the second."""
    phi = similarity(pair)
    return {
        "pair": pair,
        "i": i,
        "j": j,
        "phi": phi,
        "value": float(phi[i - 1, j - 1]),
        "expected": float(expected_similarity(i, j)),
        "on_diagonal": float(np.diag(phi)[min(i, j) - 1]),
    }


def explain_overlap(n: dict) -> str:
    """φ as shared directions over possible ones."""
    possible = min(n["i"], n["j"])
    return (
        f"φ({n['i']}, {n['j']}) = {n['value'] * possible:.2f} shared / {possible} possible = {n['value']:.3f}; "
        f"two random subspaces: max({n['i']}, {n['j']}) / 384 = {n['expected']:.3f}"
    )


def overlap() -> Explorer:
    """Compare the leading directions of two matrices."""
    controls = {
        "pair": choice("pair", {name: name for name in PAIRS}, "two trained updates"),
        "i": slider("i", list(range(1, ROOM + 1)), 4),
        "j": slider("j", list(range(1, ROOM + 1)), 4),
    }
    diagonals = {name: np.diag(similarity(name)) for name in PAIRS}
    number = np.arange(1, ROOM + 1)
    expected = expected_similarity(number, number)
    return Explorer(
        "shared directions",
        controls,
        compute_overlap,
        lambda numbers: plots.overlap(numbers, diagonals, expected),
        explain_overlap,
    )


FIGURES = {
    "rank-fills-in": (
        "Best approximations of growing rank. A photograph and an update that was really trained are nearly there at "
        "rank 32; the query weight of a real sentence encoder is not.",
        lambda: plots.fill_in_states([[compute_fill_in(name, r) for r in (1, 4, 32)] for name in TARGETS]),
    ),
    "rank-floor": (
        "What is left of a matrix at each rank. No choice of the same rank gets below its curve, which the singular "
        "values fix. A trained update falls at once, pre-trained weights fall slowly.",
        lambda: floor().picture,
    ),
    "rank-directions": (
        "Subspace similarity of the LoRA paper. Two updates trained on images they do not share found many of the same "
        "directions; with shuffled labels fewer, and two random matrices share hardly any.",
        lambda: plots.overlap_states([compute_overlap(name, 8, 8) for name in PAIRS]),
    ),
}
