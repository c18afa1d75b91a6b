r"""Explorers of the chapter on a second language: the dial, a name of one's own, ranks and layers, a run, memory.

All but the run read what `python -m lora_edu.models.name_tables` measured and trained.
"""

import math
from collections.abc import Iterator
from functools import cache

import numpy as np

from lora_edu import datasets
from lora_edu.datasets.name_lists import LONGEST, decode_names, encode_names, names
from lora_edu.explorers.base import Explorer, choice, number_slider, slider, text_box
from lora_edu.explorers.live import LiveExplorer
from lora_edu.memory import LLAMA, METHODS, ModelShape, training_memory
from lora_edu.models.adapting import prepare
from lora_edu.models.finetuning import adapter_config
from lora_edu.models.name_tables import (
    ADAPTERS,
    EVERY,
    FEW,
    FEW_EVERY,
    FEW_RANKS,
    FEW_WAYS,
    LAYERS,
    PLAIN,
    QUANTITIES,
    RANKS,
    STRENGTHS,
    WAYS,
    Way,
    stronger,
    trained_adapter,
)
from lora_edu.models.transformer import CharTransformer
from lora_edu.plots import second_language as plots
from lora_edu.plots.picture import Picture
from lora_edu.training import Adam, minibatches, train, warmup_cosine

__all__ = ["dial", "memory", "teach", "where", "your_name"]

DRAW = 4  # seed of the names that are shown
SUGGESTIONS = ["frederick", "barbara", "quentin", "georgina", "zoe", "python"]
MALE, FEW_MALE = "2,677 male names", "100 male names"
CHEESES = (
    "brie, gouda, cheddar, camembert, feta, edam, emmental, gruyere, halloumi, manchego, mozzarella, parmesan, "
    "ricotta, roquefort, stilton, taleggio, gorgonzola, limburger, mascarpone, provolone, pecorino, raclette, tilsit"
)
TEACH_STEPS, TEACH_BATCH, TEACH_RATE, TEACH_EVERY, TEACH_NAMES = 100, 32, 1e-2, 10, 200
OURS = "our transformer"


@cache
def base() -> CharTransformer:
    """The transformer that learned female names; every adapter of the chapter shares its arrays."""
    return CharTransformer.pretrained()


@cache
def adapted(rank: int, layers: str) -> CharTransformer:
    """The base under one of the shipped adapters."""
    return trained_adapter(base(), layers, rank)


@cache
def male_names() -> frozenset[str]:
    """Every name of the male list, learned from or not."""
    return frozenset(name for part in names("male") for name in part)


@cache
def made_up(rank: int, layers: str, strength: float, temperature: float = 1.0, seed: int = DRAW) -> list[str]:
    """Names at one strength; the same draws at every strength, so that a name can be followed."""
    model = base() if strength == 0 else stronger(adapted(rank, layers), strength)
    return decode_names(model.sample(plots.NAME_ROWS, seed, temperature))


def _tables() -> dict:
    return datasets.names_measured()


def bits(way: Way, quantity: str) -> float:
    """Bits per letter after all steps on all names: the mean of the seeds."""
    return float(_tables()["all"][:, WAYS.index(way), -1, QUANTITIES.index(quantity)].mean(dtype=np.float64))


def base_bits(quantity: str, nf4: bool = False) -> float:
    """Bits per letter of the base as it ships, or with its linear weights in NF4."""
    return float(_tables()["base"][int(nf4), QUANTITIES.index(quantity)])


@cache
def shape() -> ModelShape:
    """Our transformer as memory sees it."""
    inside = {name: weight.shape for name, weight in base().linear_weights().items() if name.startswith("blocks.")}
    linear = {name.split(".")[-1]: size for name, size in inside.items()}
    other = sum(a.size for name, a in base().parameters().items() if name.removesuffix(".weight") not in inside)
    return ModelShape(OURS, linear, len(base().block_names), other)


def targets(layers: str):
    """What `ModelShape.adapter_count` calls these layers: None for all."""
    return None if layers == "all" else LAYERS[layers]


@cache
def trained_count(way: Way) -> int:
    """Numbers that a way of fine-tuning trains."""
    if way.layers:
        return shape().adapter_count(way.rank, targets(way.layers))
    return prepare(base(), way.method).trained_count


def compute_dial(strength: float, rank: int, layers: str, temperature: float) -> dict:
    """Bits of both languages at one strength of a trained adapter, and the names it makes up."""
    strength = round(strength, 1)
    curves = _tables()["strengths"][ADAPTERS.index(Way("LoRA", layers, rank))].astype(np.float64)
    at = int(np.abs(STRENGTHS - strength).argmin())
    return {
        "strength": strength,
        "rank": rank,
        "layers": layers,
        "temperature": temperature,
        "strengths": STRENGTHS,
        "curves": {"male": curves[:, 0], "female": curves[:, 1]},
        "male": float(curves[at, 0]),
        "female": float(curves[at, 1]),
        "heading": f"strength {strength:.1f}",
        "before": made_up(rank, layers, 0, temperature),
        "after": made_up(rank, layers, strength, temperature),
        "real": male_names(),
    }


def explain_dial(n: dict) -> str:
    """What the dial multiplies, and what it costs."""
    off = n["curves"]["female"][0]
    return (
        f"y = x Wᵀ + {n['strength']:.1f} · 2 · (x Aᵀ) Bᵀ. Female names: {off:.2f} → {n['female']:.2f} bits, male "
        f"names: {n['curves']['male'][0]:.2f} → {n['male']:.2f}. Bold: stands in the list of male names"
    )


def _adapter_controls(rank: int = 8, layers: str = "all") -> dict:
    return {
        "rank": slider("rank", list(RANKS), rank),
        "layers": choice("layers", {f"{name}": name for name in LAYERS}, layers),
    }


def dial() -> Explorer:
    """Forgetting as a dial: 0 is the base, 1 the trained adapter."""
    controls = {
        "strength": number_slider("strength", 0.0, 1.5, 0.1, 1.0, readout=".1f"),
        **_adapter_controls(),
        "temperature": slider("temperature", [0.4, 0.7, 1.0, 1.4], 1.0),
    }
    return Explorer("dial", controls, compute_dial, plots.dial, explain_dial)


def dial_states() -> Picture:
    """The dial at three ranks."""
    return plots.dials([(f"rank {rank}, all layers", compute_dial(1.0, rank, "all", 1.0)) for rank in (1, 4, 16)])


def opening_picture() -> Picture:
    """The base and its second language, at a glance."""
    numbers = compute_dial(1.0, 8, "all", 1.0)
    pairs = {kind: (curve[0], curve[10]) for kind, curve in numbers["curves"].items()}
    return plots.opening({**numbers, "bits": pairs})


def surprises(model: CharTransformer, words) -> np.ndarray:
    """Bits at each letter of each word, its full stop included, and 0 behind it: (words, places)."""
    ids, wanted = encode_names(words)
    logits = model.forward(ids).astype(np.float64)  # (words, places, 27)
    logits -= logits.max(axis=2, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))  # log softmax
    picked = np.take_along_axis(logits, np.maximum(wanted, 0)[..., None], axis=2)[..., 0]
    return -(picked * (wanted >= 0)) / math.log(2)


def spelled(text: str) -> str:
    """What the model can read of it: lower case, a to z, at most twelve letters."""
    return "".join(letter for letter in text.lower() if "a" <= letter <= "z")[:LONGEST]


def compute_name(name: str, rank: int, layers: str) -> dict:
    """The surprise at each letter, adapter off and on."""
    name = spelled(name)
    model = adapted(rank, layers)
    with model.without_adapter():
        off = surprises(model, [name])[0, : len(name) + 1]
    on = surprises(model, [name])[0, : len(name) + 1]
    return {
        "name": name,
        "rank": rank,
        "layers": layers,
        "surprise_off": off,
        "surprise_on": on,
        "off": float(off.sum()),
        "on": float(on.sum()),
    }


def explain_name(n: dict) -> str:
    """The difference as odds."""
    gap = n["off"] - n["on"]
    more = "on" if gap > 0 else "off"
    letters, times = len(n["name"]) + 1, float(f"{2 ** abs(gap):.2g}")
    return (
        f"{n['off']:.1f} bits / {letters} = {n['off'] / letters:.2f} a letter off, {n['on'] / letters:.2f} on. "
        f"With the adapter {more}, the model spells it 2^{abs(gap):.1f} = {times:,.0f} times as often"
    )


def your_name() -> Explorer:
    """Type a name: which of the two languages expects it?"""
    text = text_box("name", SUGGESTIONS, "330px")
    return Explorer("your name", {"name": text, **_adapter_controls()}, compute_name, plots.your_name, explain_name)


def letters_states() -> Picture:
    """Three names, letter by letter."""
    return plots.letters([(name.capitalize(), compute_name(name, 8, "all")) for name in ("robert", "roberta", "lora")])


@cache
def told_apart(rank: int = 8, layers: str = "all") -> dict[str, float]:
    """Share of the test names that cost fewer bits in their own language: the switch as a classifier."""
    found = {}
    for kind in ("female", "male"):
        model = adapted(rank, layers)
        with model.without_adapter():
            off = surprises(model, names(kind).test).sum(axis=1)
        own = off - surprises(model, names(kind).test).sum(axis=1)  # positive where the adapter helps
        found[kind] = float(np.mean(own > 0 if kind == "male" else own < 0))
    return found


@cache
def ways() -> dict[str, tuple[int, float]]:
    """Method without an adapter -> numbers trained, bits per letter of male names."""
    return {way.method: (trained_count(way), bits(way, "male")) for way in PLAIN}


@cache
def curves() -> dict[str, tuple[list[int], list[float], tuple[int, ...]]]:
    """Layers -> numbers trained and bits per letter of male names, by rank."""
    found = {}
    for layers in LAYERS:
        own = [Way("LoRA", layers, rank) for rank in RANKS]
        found[layers] = [trained_count(way) for way in own], [bits(way, "male") for way in own], RANKS
    return found


def compute_where(rank: int, layers: str, quantize: bool = False) -> dict:
    """One adapter among all ways of fine-tuning, and its run."""
    way = Way("LoRA", layers, rank)
    rows = _tables()["all"][:, WAYS.index(way)].mean(axis=0, dtype=np.float64)  # (rows, quantities)
    start = _tables()["base"][:1].astype(np.float64)
    rows = np.concatenate([start, rows])
    return {
        "rank": rank,
        "layers": layers,
        "trained": trained_count(way),
        "male": bits(way, "male"),
        "female": bits(way, "female"),
        "learned_from": bits(way, "train"),
        "title": f"rank {rank} on {'all layers' if layers == 'all' else layers}",
        "steps": EVERY * np.arange(len(rows)),
        "rows": {quantity: rows[:, QUANTITIES.index(quantity)] for quantity in ("train", "male", "female")},
    }


def explain_where(n: dict) -> str:
    """The count of trained numbers, layer by layer."""
    r = n["rank"]
    inside = f"2 blocks · 2 · r · (64 + 64) = 4 · {r} · 128"
    if n["layers"] == "all":
        inside = f"2 blocks · r · (4 · (64 + 64) + 2 · (64 + 256)) = 2 · {r} · 1152"
    share = (base_bits("male") - n["male"]) / (base_bits("male") - ways()["full"][1])
    return f"{inside} = {n['trained']:,d} numbers; {share:.0%} of what full fine-tuning gains on male names"


def where() -> Explorer:
    """Rank and place of the adapter against every other way."""
    return Explorer(
        "where", _adapter_controls(2, "all"), compute_where, lambda n: plots.where(n, ways(), curves()), explain_where
    )


def ways_picture() -> Picture:
    """Every way of fine-tuning by how many numbers it trains."""
    return plots.bits_by_numbers(ways(), curves())


def forgetting_picture() -> Picture:
    """Learned against forgotten."""

    def both(way):
        return bits(way, "male"), bits(way, "female")

    by_layers = {
        layers: tuple(zip(*(both(Way("LoRA", layers, rank)) for rank in RANKS), strict=True)) for layers in LAYERS
    }
    others = {way.method: both(way) for way in PLAIN}
    quantized = [both(Way("QLoRA", "all", rank)) for rank in (4, 8)]
    return plots.forgetting((base_bits("male"), base_bits("female")), others, by_layers, quantized)


@cache
def few_rows(count: int, way: Way) -> np.ndarray:
    """A run on few names, mean of the seeds: (rows, quantities)."""
    return _tables()["few"][:, FEW.index(count), FEW_WAYS.index(way)].mean(axis=0, dtype=np.float64)


def few_bits(count: int, way: Way) -> tuple[float, float]:
    """Male bits at the step that did best on the validation names of each seed, and after all steps."""
    runs = _tables()["few"][:, FEW.index(count), FEW_WAYS.index(way)].astype(np.float64)  # (seeds, rows, quantities)
    test, stop = runs[:, :, QUANTITIES.index("male")], runs[:, :, QUANTITIES.index("validation")].argmin(axis=1)
    return float(np.take_along_axis(test, stop[:, None], axis=1).mean()), float(test[:, -1].mean())


def few_picture() -> Picture:
    """Ranks by number of names, and two runs on a hundred."""
    own = {rank: Way("LoRA", "all", rank) for rank in FEW_RANKS} | {"last layer": Way("last layer")}
    found = {name: [few_bits(count, way) for count in FEW] for name, way in own.items()}
    runs = {rank: few_rows(100, own[rank]) for rank in (1, 16)}
    return plots.few_names(
        {
            "counts": FEW,
            "best": {name: [best for best, _ in pairs] for name, pairs in found.items()},
            "last": {name: [last for _, last in pairs] for name, pairs in found.items()},
            "steps": FEW_EVERY * (1 + np.arange(len(runs[1]))),
            "curves": {
                rank: {quantity: rows[:, QUANTITIES.index(quantity)] for quantity in ("train", "male")}
                for rank, rows in runs.items()
            },
        }
    )


def quantized_picture() -> Picture:
    """LoRA beside QLoRA, with the bases they start from."""
    rows = {"female names,\nno adapter": {"LoRA": base_bits("female"), "QLoRA": base_bits("female", nf4=True)}}
    for layers, rank in (("q, v", 8), ("all", 4), ("all", 8)):
        found = {method: bits(Way(method, layers, rank), "male") for method in ("LoRA", "QLoRA")}
        rows[f"male names,\n{layers}, rank {rank}"] = found
    return plots.quantized(rows)


@cache
def _texts() -> dict:
    return {kind: encode_names(names(kind).validation[:TEACH_NAMES]) for kind in ("male", "female")}


def words_of(text: str) -> tuple[str, ...]:
    """The words that the text of the control stands for: a list of names, or what is written there."""
    if text in (MALE, FEW_MALE):
        return names("male").train[: None if text == MALE else 100]
    words = tuple(dict.fromkeys(word for part in text.split(",") if (word := spelled(part))))
    if not words:
        raise ValueError(f"words must hold a word of letters a to z, got {text!r}; separate several by commas")
    return words


def run_teach(words: str, rank: int, layers: str) -> Iterator[dict]:
    """A hundred steps on some words, ten looks at what the model says meanwhile."""
    learned = words_of(words)
    model = prepare(base(), "LoRA", adapter_config(rank, targets=LAYERS[layers]))
    batches = minibatches(*encode_names(learned), TEACH_BATCH, TEACH_STEPS)
    seen = {quantity: ([], []) for quantity in ("train", "male", "female")}
    losses = []

    def look(step):
        found = {kind: model.bits_per_character(*text) for kind, text in _texts().items()}
        if losses:
            found["train"] = float(np.mean(losses[-TEACH_EVERY:])) / math.log(2)
        for quantity, value in found.items():
            seen[quantity][0].append(step)
            seen[quantity][1].append(value)
        return decode_names(model.sample(plots.NAME_ROWS, DRAW))

    def numbers(step, said):
        return {
            "progress": step / TEACH_STEPS,
            "count": len(learned),
            "rank": rank,
            "layers": layers,
            "trained": model.trained_count,
            "labels": plots.RUN_LABELS,
            "curves": {name: (list(steps), list(values)) for name, (steps, values) in seen.items()},
            "gained": round(seen["male"][1][0] - seen["male"][1][-1], 1),  # coarse: training wobbles between machines
            "lost": round(seen["female"][1][-1] - seen["female"][1][0], 1),
            "heading": f"step {step}",
            "before": first,
            "after": said,
            "real": frozenset(learned),
        }

    first = said = look(0)
    yield numbers(0, said)
    rate = warmup_cosine(TEACH_STEPS, TEACH_EVERY)
    for record in train(model, batches, Adam(TEACH_RATE), schedule=rate):
        losses.append(record.loss)
        if record.step % TEACH_EVERY == 0:
            said = look(record.step)
        yield numbers(record.step, said)


def explain_teach(n: dict) -> str:
    """What was trained, and what was copied."""
    copied = sum(word in n["real"] for word in n["after"])
    return (
        f"{n['count']:,d} words, {n['trained']:,d} numbers trained of {n['trained'] + base().trained_count:,d}; "
        f"{copied} of {len(n['after'])} names shown are copied from the list (bold)"
    )


def teach() -> LiveExplorer:
    """Train an adapter here and now, on names or on any words."""
    controls = {"words": text_box("learn from", [MALE, FEW_MALE, CHEESES], "500px"), **_adapter_controls(4, "all")}
    return LiveExplorer("teach", controls, run_teach, plots.teach, explain_teach)


def compute_memory(model: str, method: str, rank: int, layers: str) -> dict:
    """Bytes of the three methods on one model, activations left out."""
    small = model == OURS
    own = shape() if small else LLAMA[model]
    settings = {"float_bytes": 4, "weight_bits": 4.5} if small else {}
    parts = {one: training_memory(own, one, rank, targets(layers), **settings) for one in METHODS}
    return {
        "model": OURS if small else f"LLaMA {model}",
        "method": method,
        "rank": rank,
        "layers": layers,
        "parts": parts,
        "numbers": own.count,
        "trained": own.count if method == "full" else own.adapter_count(rank, targets(layers)),
        "small": small,
        "share": float(parts[method].total / parts["full"].total),
    }


def explain_memory(n: dict) -> str:
    """The sum of the chosen method."""
    held, each = n["parts"][n["method"]], 4 if n["small"] else 2
    kept = {"full": f"{n['numbers']:,d} · {each} B", "LoRA": f"({n['numbers']:,d} + {n['trained']:,d}) · {each} B"}
    bits_each = "4.5" if n["small"] else "4.127"
    kept["QLoRA"] = f"{bits_each} bits for each weight of a block, {each} B for all else"
    return (
        f"{n['method']}: weights {kept[n['method']]} = {plots.size_text(held.weights)}; gradients {n['trained']:,d} · "
        f"{each} B = {plots.size_text(held.gradients)}; Adam {n['trained']:,d} · 8 B = "
        f"{plots.size_text(held.optimizer)}; together {plots.size_text(held.total)}, {n['share']:.3g} of full"
    )


def memory() -> Explorer:
    """What training holds, from our transformer to 65 billion numbers."""
    controls = {
        "model": choice("model", {OURS: OURS, **{f"LLaMA {size}": size for size in LLAMA}}, "65B"),
        "method": choice("method", {method: method for method in METHODS}, "QLoRA"),
        "rank": slider("rank", [1, 4, 8, 16, 64], 64),
        "layers": choice("layers", {name: name for name in LAYERS}, "all"),
    }
    return Explorer("memory", controls, compute_memory, plots.memory, explain_memory)


def memory_states() -> Picture:
    """Four sizes at rank 64 on all layers."""
    return plots.memories([(f"LLaMA {size}", compute_memory(size, "QLoRA", 64, "all")) for size in LLAMA])


FIGURES = {
    "second-language": (
        "A transformer that spells female names, and the same weights with an adapter that learned male ones. Each row "
        "is one draw; switching the adapter off gives the left column back, bit for bit.",
        opening_picture,
    ),
    "where-adapters-sit": (
        "Bits per letter of male names by how many numbers are trained. Rank 2 on all layers beats rank 8 on q and v, "
        "and a model trained from scratch beats every adapter on q and v.",
        ways_picture,
    ),
    "training-memory": (
        "Weights, gradients and Adam's averages of full, LoRA and QLoRA training for LLaMA's four sizes, adapters of "
        "rank 64 on all layers. Activations are left out.",
        memory_states,
    ),
}
