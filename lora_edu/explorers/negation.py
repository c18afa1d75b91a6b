"""Explorers of the chapter on the word "not": one sentence token by token, and a last layer that learns while you wait.

Both run the model; what takes minutes comes from tables, so that the figures can be drawn without it:

    python -m lora_edu.models.negation_tables
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from lora_edu import datasets
from lora_edu.explorers.base import Explorer, choice, slider, text_box
from lora_edu.explorers.live import LiveExplorer
from lora_edu.models import minilm, negation
from lora_edu.models.encoder import BATCH, SentenceEncoder
from lora_edu.models.negation_tables import COUNTS, RANKS, READ, STRENGTHS
from lora_edu.plots import negation as plots
from lora_edu.plots.picture import Picture

__all__ = ["last_layer", "one_sentence"]

NEEDS_MODEL = ("last_layer", "one_sentence")  # explorers that run the model itself
SUGGESTIONS = [
    *READ[:2],
    "We will not reach that goal today, or tomorrow.",
    "But our commitment to national safety is not a commitment to expand our military establishment indefinitely.",
    "Our country is vibrant and our economy is thriving like never before.",
    "Still, in this economy, a high school diploma no longer guarantees a good job.",
    "The terrorists oppose every principle of humanity and decency that we hold dear.",
    READ[2],
    "Nothing is impossible.",
    "There is nothing to fear.",
    "We can do it without help.",
    "Nor will we wait.",
    "They tied a knot.",
    "It is not impossible.",
    "The patient refused.",
    "He is unhappy.",
]
WORDS = ("not", "no", "never", "cannot")  # whose attention the live run measures
LIVE_COUNTS = (8, 16, 32, 64, 128, 258)
LIVE_STEPS, LIVE_EVERY = 24, 8


def tables() -> dict:
    """What was measured once."""
    return datasets.negation_measured()


def shipped_probe() -> negation.Probe:
    """The probe, as it ships."""
    return negation.Probe(tables()["probe_weight"], float(tables()["probe_bias"]))


@cache
def _at_strengths() -> list[SentenceEncoder]:
    """The shipped adapter at every strength of the slider."""
    trained = negation.load_adapter(negation.encoder(shipped_probe()), tables())
    return [negation.at_strength(trained, strength) for strength in STRENGTHS]


@cache
def _readings(sentence: str) -> list[dict]:
    return [negation.reading(model, sentence) for model in _at_strengths()]


def compute_sentence(sentence: str, strength: float) -> dict:
    """One sentence at one strength, beside the frozen model."""
    return _seen(sentence, strength, _readings(sentence))


def stored_sentence(k: int, strength: float) -> dict:
    """The same of the `k`-th of `READ`, from the tables."""
    return _seen(READ[k], strength, _stored_readings(k))


@cache
def _stored_readings(k: int) -> list[dict]:
    t = tables()
    pieces, bias = [str(piece) for piece in t[f"pieces/{k}"]], float(t["probe_bias"])
    parts = zip(t[f"attention/{k}"], t[f"contribution/{k}"], t["score"][k].tolist(), strict=True)
    return [
        {
            "pieces": pieces,
            "attention": attention,
            "contribution": contribution,
            "bias": bias,
            "score": score,
            "probability": float(1 / (1 + np.exp(-score))),
        }
        for attention, contribution, score in parts
    ]


def _seen(sentence, strength, readings) -> dict:
    before, now, trained = readings[0], readings[STRENGTHS.index(strength)], readings[STRENGTHS.index(1.0)]
    shown = slice(plots.MOST_TOKENS)
    gains = trained["attention"] - before["attention"]
    cut = [{part: one[part][shown] for part in ("attention", "contribution")} for one in (before, now)]
    return {
        "sentence": sentence,
        "strength": strength,
        "pieces": before["pieces"][shown],
        "before": cut[0],
        "now": cut[1],
        "gains": int(np.argmax(gains[shown])),
        "curve": np.array([one["probability"] for one in readings]),
        "tokens": len(before["pieces"]),
        "bias": now["bias"],
        "score": now["score"],
        "probability": now["probability"],
    }


def explain_sentence(n: dict) -> str:
    """The score as a sum over the tokens."""
    votes = n["now"]["contribution"]
    top = np.argsort(-np.abs(votes), kind="stable")[:3]
    pieces = [n["pieces"][k].replace("&", "&amp;").replace("<", "&lt;") for k in top]
    told = " ".join(f"{votes[k]:+.2f} ({piece})" for k, piece in zip(top, pieces, strict=True))
    rest = n["score"] - n["bias"] - votes[top].sum()
    return (
        f"{told} {rest:+.2f} (the other {n['tokens'] - len(top)} tokens) {n['bias']:+.2f} (bias) = {n['score']:.2f}; "
        f"probability 1 / (1 + e^-{n['score']:.2f}) = {n['probability']:.2f}"
    ).replace("--", "")


def one_sentence() -> Explorer:
    """Any sentence, and a dial for the adapter."""
    controls = {
        "sentence": text_box("sentence", SUGGESTIONS),
        "strength": slider("strength", list(STRENGTHS), 1.0),
    }
    picture = lambda numbers: plots.one_sentence(numbers, STRENGTHS)  # noqa: E731
    return Explorer("one sentence", controls, compute_sentence, picture, explain_sentence)


@cache
def _words_at() -> np.ndarray:
    """Where one of `WORDS` stands in the sentences of the task: (490, longest)."""
    numbers = [minilm.load().tokenizer.ids[word] for word in WORDS]
    return np.isin(negation.ids(), numbers)


def _look(model: SentenceEncoder) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of the test sentences, some at a time: the scores, and the attention on each of `WORDS`."""
    test = negation.task().test
    for part in np.split(test, range(BATCH, len(test), BATCH)):
        scores, received = negation.scores(model, part), negation.attention_received(model)
        yield scores, received[_words_at()[part][:, : received.shape[1]]]


@cache
def _frozen_attention() -> float:
    return float(np.mean(np.concatenate([attention for _, attention in _look(negation.last_layer())])))


def run_last_layer(sentences: int, adapted: str) -> Iterator[dict]:
    """Train an adapter on the last layer alone, and look at the test sentences now and then."""
    task = negation.task()
    chosen = negation.some(sentences)
    probe = negation.fit_probe(negation.embeddings()[chosen], task.labels[chosen], negation.RIDGE)
    start = negation.accuracy(probe.score(negation.embeddings()[task.test]), task.labels[task.test])
    model, records = negation.fine_tune(
        negation.under(probe, negation.last_layer()),
        chosen,
        task.labels[chosen],
        targets=negation.TARGETS[adapted],
        lr=negation.LAST_RATES[adapted],
        steps=LIVE_STEPS,
    )
    curves = {"looks": [0], "accuracies": [start], "attentions": [_frozen_attention()]}

    def numbers(step):
        return {
            "sentences": sentences,
            "adapted": adapted,
            **{name: np.array(values) for name, values in curves.items()},
            "probe": start,
            "before": curves["attentions"][0],
            "trained": model.trained_count,
            "better": int(curves["accuracies"][-1] > start),
            "progress": step / LIVE_STEPS,
        }

    for record in records:
        if record.step % LIVE_EVERY == 0:
            seen = []
            for part in _look(model):
                seen.append(part)
                yield numbers(record.step - 1)
            scores, attentions = (np.concatenate(parts) for parts in zip(*seen, strict=True))
            curves["looks"].append(record.step)
            curves["accuracies"].append(negation.accuracy(scores, task.labels[task.test]))
            curves["attentions"].append(float(attentions.mean()))
        yield numbers(record.step)


def explain_last_layer(n: dict) -> str:
    """What was trained, and what it changed."""
    total, encoder = len(negation.task().test), sum(array.size for array in minilm.load().weights.values())
    right, before = (round(total * share) for share in (n["accuracies"][-1], n["probe"]))
    return (
        f"{n['trained']:,} numbers, {n['trained'] / encoder:.3%} of the encoder; step {n['looks'][-1]} of "
        f"{LIVE_STEPS}: {right} of {total} sentences right, the probe {before}; attention on the word "
        f"{n['attentions'][-1]:.1%}, frozen {n['before']:.1%}"
    )


def last_layer() -> LiveExplorer:
    """The last layer learns in a second, from as many sentences as you give it."""
    controls = {
        "sentences": slider("sentences to learn from", list(LIVE_COUNTS), 64),
        "adapted": choice("adapted", {name: name for name in negation.TARGETS}, "query and value"),
    }
    picture = lambda numbers: plots.live_run(numbers, LIVE_STEPS)  # noqa: E731
    return LiveExplorer("last layer", controls, run_last_layer, picture, explain_last_layer)


def opening_picture() -> Picture:
    """A sentence with the word, read by the trained model and by the frozen one."""
    return plots.one_sentence(stored_sentence(0, 1.0), STRENGTHS)


def dial() -> Picture:
    """Three sentences while the adapter is turned up: with the word, without it, and one that it mishears."""
    titles = {0: "with “not”", 1: "without it", 2: "“only”: misheard"}
    strengths = (0.0, 0.5, 1.0)
    states = [(f"{titles[k]}, strength {s:g}", stored_sentence(k, s)) for k in titles for s in strengths]
    return plots.sentences_apart(states, len(strengths))


def probe_grid() -> dict[str, np.ndarray]:
    """The stored probe by ridge."""
    return {name.removeprefix("grid_"): values for name, values in tables().items() if name.startswith("grid_")}


def removed() -> dict:
    """The stored movements without a word; `constant` / tokens is about what "not" moves."""
    found = {name.removeprefix("removed_"): values for name, values in tables().items() if name.startswith("removed_")}
    return found | {"constant": float(np.mean(found["not"] * found["tokens"]))}


def line_to_beat() -> tuple[float, float]:
    """Accuracy of the probe on the test sentences, and its standard error."""
    grid = probe_grid()
    share = float(grid["test"][int(np.argmin(np.abs(grid["ridge"] - negation.RIDGE)))])
    return share, negation.standard_error(share, len(negation.task().test))


def by_rank() -> Picture:
    """Ranks, and rank 4 over a base in 4 bits."""
    t = tables()
    return plots.by_rank(RANKS, t["by_rank"][:, :, -1], t["qlora"][:, -1], float(t["nf4_probe"]), *line_to_beat())


def what_is_adapted() -> Picture:
    """Which matrices, in which layers."""
    t, names = tables(), ("q and v", "q", "v")
    last, every = (dict(zip(names, t[name], strict=True)) for name in ("by_last_target", "by_target"))
    depths = dict(zip((f"last {depth}" for depth in negation.DEPTH_RATES), t["by_depth"], strict=True))
    depths["all 6"] = t["by_target"][0]
    panels = {"last layer alone": last, "all six layers": every, "q and v, in how many": depths}
    return plots.what_is_adapted(panels, *line_to_beat())


def by_count() -> Picture:
    """Fewer sentences."""
    return plots.by_count(COUNTS, tables()["by_count"], tables()["probe_by_count"])


FIGURES = {
    "the-word-not": (
        "One sentence, read by a sentence encoder that an adapter of rank 4 taught to hear a negation. Bars: now; dark "
        "lines: the frozen model. Attention goes to “not”, and the tokens that look at it repeat what it says.",
        opening_picture,
    ),
    "not-by-rank": (
        "Sentences of presidents that training never saw: a probe on frozen embeddings, adapters of four ranks on "
        "query and value, and rank 4 over a base in NF4; three runs each.",
        by_rank,
    ),
    "not-adapted": (
        "In the last layer alone the queries must learn where to look, and values alone change nothing; over six "
        "layers values alone can hand the word on. Three runs each; the grey band is the probe.",
        what_is_adapted,
    ),
}
