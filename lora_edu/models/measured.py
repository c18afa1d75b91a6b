r"""What quantizing does to a sentence encoder: measures of embeddings and of weights, and tables of both.

The tables cost a few minutes, so the chapter keeps them in a file; `measure` makes all of it.
"""

from collections.abc import Sequence

import numpy as np

from lora_edu.codebooks import FP4, INT4, INT4_ASYMMETRIC, NF4
from lora_edu.models.minilm import LAYERS, LINEARS, WORDS, MiniLM, linear_name, linear_names

FORMATS = {"NF4": NF4, "INT4": INT4, "FP4": FP4, "INT4 min-max": INT4_ASYMMETRIC}
BLOCK_SIZES = (16, 32, 64, 128, 256, 1024, 4096, 0)  # 0: one scale for the whole tensor
LAYER_BLOCK_SIZES = (16, 64, 256, 1024, 0)
STATISTICS_BLOCK = 64
EDGES = np.linspace(-8, 8, 65)  # of the histograms, in σ


def own_cosine(before, after) -> np.ndarray:
    """Cosine of each sentence's embedding with what became of it; rows are unit vectors."""
    return np.sum(before * after, axis=1)


def nearest(embeddings, count: int = 1) -> np.ndarray:
    """The other rows with the largest cosine, nearest first: (sentences, count)."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]


def margins(embeddings) -> np.ndarray:
    """By how much the nearest neighbour's cosine beats the second's."""
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    second, first = np.sort(similarity, axis=1)[:, -2:].T
    return first - second


def measure(model: MiniLM, sentences: Sequence[str], pairs: int) -> dict[str, np.ndarray]:
    r"""All tables of the chapter; the first 2 · `pairs` sentences are pairs."""
    before = model.embed(sentences)
    tables = {"similarity": _pair_similarity(before, pairs), "nearest": _nearest_one(before), "margin": margins(before)}
    after = [[model.quantized(size, f).embed(sentences) for size in BLOCK_SIZES] for f in FORMATS.values()]
    for name, table in {
        "own_cosine": lambda e: own_cosine(before, e),
        "format_similarity": lambda e: _pair_similarity(e, pairs),
        "format_nearest": _nearest_one,
    }.items():
        tables[name] = np.array([[table(embedded) for embedded in row] for row in after])
    tables["with_words"] = own_cosine(before, model.quantized(64, names=[*linear_names(), WORDS]).embed(sentences))
    tables["layer_cosine"] = np.array([layer_cosines(model, sentences, size) for size in LAYER_BLOCK_SIZES])
    return tables | weight_statistics(model)


def layer_cosines(model: MiniLM, sentences: Sequence[str], block_size: int) -> np.ndarray:
    """Mean own cosine when a single matrix is in NF4: (layers + 1, kinds); last row, all layers of the kind."""
    before = model.embed(sentences)

    def cosine(names):
        return own_cosine(before, model.quantized(block_size, names=names).embed(sentences)).mean()

    single = [[cosine([linear_name(kind, layer)]) for kind in LINEARS] for layer in range(LAYERS)]
    return np.array([*single, [cosine(linear_names([kind])) for kind in LINEARS]], np.float32)


def weight_statistics(model: MiniLM) -> dict[str, np.ndarray]:
    r"""How normal the weights are: by tensor, and after each block of 64 got its own mean and σ.

    Returns
    -------
    dict of arrays (layers, kinds, …)
        `tensor_histogram` and `block_histogram` (…, bins of `EDGES`), shares of the weights; `kurtosis`, the excess,
        0 for a normal; `largest`, max |w - mean| / σ; `heavy`, the share of blocks with a larger kurtosis than 95 %
        of normal blocks have.
    """
    limit = heavy_limit()
    found = {"tensor_histogram": [], "block_histogram": [], "kurtosis": [], "largest": [], "heavy": []}
    for layer in range(LAYERS):
        for kind in LINEARS:
            weight = model.weights[linear_name(kind, layer)].astype(np.float64).ravel()
            z, blocks = standardised(weight), standardised(weight.reshape(-1, STATISTICS_BLOCK))
            found["tensor_histogram"].append(_histogram(z))
            found["block_histogram"].append(_histogram(blocks))
            found["kurtosis"].append(np.mean(z**4) - 3)
            found["largest"].append(np.abs(z).max())
            found["heavy"].append(np.mean(excess_kurtosis(blocks) > limit))
    shape = (LAYERS, len(LINEARS))
    return {name: np.array(rows, np.float32).reshape(*shape, *np.shape(rows[0])) for name, rows in found.items()}


def standardised(values) -> np.ndarray:
    """Mean 0 and σ 1 along the last axis."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / centred.std(axis=-1, keepdims=True)


def excess_kurtosis(values) -> np.ndarray:
    """Mean of z⁴, less 3, along the last axis: 0 for a normal, positive for heavy tails."""
    return np.mean(standardised(values) ** 4, axis=-1) - 3


def heavy_limit() -> float:
    """The excess kurtosis that 5 % of normal blocks of 64 exceed, by 100,000 draws."""
    blocks = np.random.default_rng(0).standard_normal((100_000, STATISTICS_BLOCK))
    return float(np.quantile(excess_kurtosis(blocks), 0.95))


def _pair_similarity(embeddings, pairs) -> np.ndarray:
    """Cosines among the sentences of the pairs: (2 · pairs, 2 · pairs) float16."""
    paired = embeddings[: 2 * pairs]
    return (paired @ paired.T).astype(np.float16)


def _nearest_one(embeddings) -> np.ndarray:
    return nearest(embeddings)[:, 0].astype(np.uint8)


def _histogram(z) -> np.ndarray:
    """Share of the values in each bin; what lies outside counts in the last bin of its side."""
    counts, _ = np.histogram(np.clip(z, EDGES[0], EDGES[-1]), EDGES)
    return counts / z.size
