r"""Teaching a sentence encoder to hear a negation: the task, the probe to beat, fine-tuning, and what it looks at.

    task        real sentences, half of them with a negation; no speech, and no president, in both train and test
    probe       p = 1 / (1 + e^-(w · e + b)) on frozen embeddings e: logistic regression
    fine-tuning the same w and b, frozen too; A and B on query and value change what e says

Since the classifier stays the probe's, the adapter at strength 0 is the probe. One sentence can be taken apart:

    w · e = Σ over its tokens of w · x / (tokens · ‖m‖),   the contribution of each token to the answer

The label is a word list, so a rule of one line is always right here; the task shows what an adapter changes, not how to
find negations.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from lora_edu import datasets
from lora_edu.config import LoraConfig
from lora_edu.models import minilm
from lora_edu.models.adapting import adapt
from lora_edu.models.encoder import BATCH, QUERY_VALUE, SentenceEncoder, UpperLayers, padded
from lora_edu.training import Adam, Record, minibatches, train, warmup_cosine

NEGATION = re.compile(r"\b(not|never|no|cannot)\b|n't\b")
LAST_TRAINING_YEAR = 1992  # from 1993 on, other presidents speak
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RIDGE = 0.3  # that `probe_grid` finds best on speeches left out, together with 1
FOLDS = 5
TARGETS = {"query and value": QUERY_VALUE, "query": ("query",), "value": ("value",)}
RANK, EPOCHS, SENTENCES_A_STEP, WARMUP = 4, 2, 16, 4
RATE = 3e-3  # best of 1e-3, 3e-3, 1e-2, 3e-2, learning from half of the training speeches and judged by the other half
LAST_RATES = {"query and value": 1e-2, "query": 3e-2, "value": 1e-2}  # of the last layer alone, found in the same way
DEPTH_RATES = {1: 1e-2, 2: 1e-2, 3: 3e-3}  # of so many last layers


class Task(NamedTuple):
    r"""Sentences, their years and labels (1 with a negation), and the numbers of those to train and to test with."""

    sentences: tuple[str, ...]
    years: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray


class Probe(NamedTuple):
    r"""Weights (width,) and a bias: a negation is heard where e · weight + bias > 0."""

    weight: np.ndarray
    bias: float

    def score(self, embeddings) -> np.ndarray:
        """Logits (sentences,): above 0 for a negation."""
        return embeddings @ self.weight + self.bias


def has_negation(sentence: str) -> bool:
    """The label: not, never, no, cannot, or a word that ends in n't."""
    return NEGATION.search(sentence.lower()) is not None


@cache
def task() -> Task:
    """The shipped sentences; speeches up to 1992 to train with, those of later presidents to test with."""
    years, sentences = zip(*datasets.sentences(), strict=True)
    years = np.array(years)
    early = years <= LAST_TRAINING_YEAR
    labels = np.array([has_negation(sentence) for sentence in sentences]).astype(np.int64)
    return Task(sentences, years, labels, np.flatnonzero(early), np.flatnonzero(~early))


@cache
def ids() -> np.ndarray:
    """The sentences of the task as the encoder reads them: (490, longest)."""
    return padded([minilm.load().tokenizer.encode(sentence) for sentence in task().sentences])


@cache
def last_layer() -> UpperLayers:
    """The last layer alone over all sentences of the task, under a classifier that knows nothing yet."""
    return SentenceEncoder.pretrained().above(minilm.LAYERS - 1, ids())


@cache
def embeddings() -> np.ndarray:
    """The frozen encoder's embeddings of the task, (490, 384): by the last layer, which is asked again later."""
    numbers = np.arange(len(ids()))
    return np.concatenate([last_layer().embed(part) for part in np.split(numbers, numbers[BATCH::BATCH])])


def fit_probe(embeddings, labels, ridge: float, steps: int = 30) -> Probe:
    r"""Logistic regression by Newton's method: the minimum of Σ -log p[label] + ridge · ‖w‖² / 2."""
    e = np.column_stack([embeddings, np.ones(len(embeddings))]).astype(np.float64)  # (sentences, width + 1)
    penalty = np.append(np.full(e.shape[1] - 1, ridge), 1e-9)  # the bias is free
    w = np.zeros(e.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-e @ w))
        gradient = e.T @ (p - labels) + penalty * w
        curvature = e.T @ (e * (p * (1 - p))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        w = w - step
        if np.abs(step).max() < 1e-9:
            break
    return Probe(w[:-1].astype(np.float32), float(w[-1]))


def folds(years, count: int = FOLDS) -> np.ndarray:
    """A number from 0 to count - 1 for each sentence, the same for all of one speech."""
    speeches = np.unique(years)
    drawn = np.random.default_rng(0).permutation(len(speeches)) % count
    return drawn[np.searchsorted(speeches, years)]


def probe_grid(embeddings, ridges: Sequence[float] = RIDGES) -> dict[str, np.ndarray]:
    r"""Accuracy by ridge: `train` where it was fitted, `validation` on speeches left out in turn, `test`."""
    t, found = task(), {"train": [], "validation": [], "test": []}
    e, y, fold = embeddings[t.train], t.labels[t.train], folds(t.years[t.train])
    for ridge in ridges:
        probe = fit_probe(e, y, ridge)
        found["train"].append(accuracy(probe.score(e), y))
        found["test"].append(accuracy(probe.score(embeddings[t.test]), t.labels[t.test]))
        hits = np.empty(len(y), bool)
        for k in range(FOLDS):
            out = fold == k
            hits[out] = (fit_probe(e[~out], y[~out], ridge).score(e[out]) > 0) == y[out]
        found["validation"].append(hits.mean())
    return {"ridge": np.array(ridges)} | {name: np.array(values) for name, values in found.items()}


@cache
def the_probe() -> Probe:
    """The probe of all training sentences: the line to beat."""
    t = task()
    return fit_probe(embeddings()[t.train], t.labels[t.train], RIDGE)


def some(count: int, seed: int = 0) -> np.ndarray:
    """Numbers of so many training sentences, half of them with a negation."""
    t = task()
    rng = np.random.default_rng([seed, 7])
    halves = [rng.permutation(t.train[t.labels[t.train] == label]) for label in (0, 1)]
    return np.sort(np.concatenate([half[: count // 2] for half in halves]))


def accuracy(scores, labels) -> float:
    """Share of the sentences on the right side of 0."""
    return float(np.mean((scores > 0) == labels))


def standard_error(share: float, count: int) -> float:
    r"""√(p (1 - p) / n): by how much such a share differs between samples of this size."""
    return float(np.sqrt(share * (1 - share) / count))


def encoder(probe: Probe) -> SentenceEncoder:
    """The pre-trained encoder with the probe as its classifier: its second logit less its first is the score."""
    return under(probe, SentenceEncoder.pretrained())


def under(probe: Probe, model: SentenceEncoder) -> SentenceEncoder:
    """A copy of `model` with the probe as its classifier."""
    model = model.copy()
    weight, bias = (np.stack([-half, half]).astype(np.float32) for half in (probe.weight / 2, np.array(probe.bias / 2)))
    model.assign({"classifier.weight": weight, "classifier.bias": bias})
    return model


def fine_tune(
    base: SentenceEncoder,
    x,
    labels,
    *,
    rank: int = RANK,
    targets=QUERY_VALUE,
    quantize: bool = False,
    lr: float = RATE,
    steps: int | None = None,
    seed: int = 0,
) -> tuple[SentenceEncoder, Iterator[Record]]:
    r"""`base` under an adapter, and the records of its training on sentences x with their labels.

    Parameters
    ----------
    base : SentenceEncoder
        Stays as it is, its classifier included.
    x : (sentences, length) ids, or (sentences,) numbers for `UpperLayers`
    steps : int, optional
        Of `SENTENCES_A_STEP` sentences each; as many as go twice through x unless given.
    """
    config = LoraConfig(rank=rank, alpha=2 * rank, target_modules=targets, init="kaiming")
    model = adapt(base, config, quantize, seed=seed)
    steps = EPOCHS * len(x) // SENTENCES_A_STEP if steps is None else steps
    batches = minibatches(x, labels, SENTENCES_A_STEP, steps, seed)
    return model, train(model, batches, Adam(lr), schedule=warmup_cosine(max(steps, WARMUP + 1), WARMUP))


def scores(model: SentenceEncoder, x) -> np.ndarray:
    """The score of each sentence, above 0 for a negation."""
    logits = np.concatenate([model.forward(x[start : start + BATCH]) for start in range(0, len(x), BATCH)])
    return logits[:, 1] - logits[:, 0]


def at_strength(model: SentenceEncoder, strength: float) -> SentenceEncoder:
    """A copy whose adapter counts so many times: 0 is the base, 1 the model as it was trained."""
    new = model.copy()
    new.assign({n: np.float32(strength) * array for n, array in model.trained().items() if n.endswith("lora_b")})
    return new


def load_adapter(base: SentenceEncoder, tables: Mapping[str, np.ndarray]) -> SentenceEncoder:
    """`base` under the adapter that the tables hold as "adapter/<name>", at the scaling it was trained with."""
    model = adapt(base, LoraConfig(rank=RANK, alpha=2 * RANK, target_modules=QUERY_VALUE))
    stored = {name: array.astype(np.float32) for name, array in tables.items() if name.startswith("adapter/")}
    model.assign({name.removeprefix("adapter/"): array for name, array in stored.items()})
    return model


def attention_received(model: SentenceEncoder) -> np.ndarray:
    """By each token in the last layer, at the last forward pass: (sentences, length), each row adds up to 1."""
    share = model.attention[model.block_names[-1]].share.mean(axis=1)  # (sentences, lookers, tokens)
    return np.einsum("slt,sl->st", share, model.real) / model.counts  # the mean over lookers that are tokens


def without_a_word(seed: int = 0) -> dict[str, np.ndarray]:
    r"""How far an embedding moves when a word is taken out of a sentence that says "not".

    Returns
    -------
    dict of arrays (sentences,)
        `tokens` of the sentence, [CLS] and [SEP] included; ‖e - e'‖ without the first "not" (`not`), and without
        another of its words, drawn by seed (`other`).
    """
    rng, model = np.random.default_rng(seed), minilm.load()
    kept = [k for k, sentence in enumerate(task().sentences) if re.search(r"\bnot\b", sentence)]
    shorter = {"not": [], "other": []}
    for k in kept:
        words = task().sentences[k].split()
        said = [re.search(r"\bnot\b", word) is not None for word in words]
        out = {"not": said.index(True), "other": int(rng.choice(np.flatnonzero(~np.array(said))))}
        for name, place in out.items():
            shorter[name].append(" ".join(words[:place] + words[place + 1 :]))
    moved = {name: np.linalg.norm(embeddings()[kept] - model.embed(rest), axis=1) for name, rest in shorter.items()}
    return {"tokens": np.count_nonzero(ids()[kept], axis=1)} | moved


def reading(model: SentenceEncoder, sentence: str) -> dict:
    r"""How the model reads one sentence, token by token.

    Returns
    -------
    dict
        `pieces`, [CLS] and [SEP] included; `attention` that each token receives in the last layer, in the mean of heads
        and lookers, adds up to 1; `contribution` to the score, adds up to `score` less `bias`; `score`; `probability`
        of a negation.
    """
    tokenizer = minilm.load().tokenizer
    one = padded([tokenizer.encode(sentence)])
    score = float(scores(model, one)[0])
    classifier = model.layers["classifier"].arrays
    weight, bias = (array[1] - array[0] for array in (classifier["weight"], classifier["bias"]))
    attention, x = attention_received(model)[0], model.tokens(one)  # (tokens,), (tokens, width)
    return {
        "pieces": [tokenizer.pieces[i] for i in one[0]],
        "attention": attention,
        "contribution": x @ weight / (len(x) * model.norms[0, 0]),
        "bias": float(bias),
        "score": score,
        "probability": float(1 / (1 + np.exp(-score))),
    }
