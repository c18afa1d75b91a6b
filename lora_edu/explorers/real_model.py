r"""Explorers of the chapter on a real model: formats, layers, weights, neighbours, and a sentence of the reader's own.

All but the last read tables that `write_tables` makes from the model in three minutes, so that a slider need not wait
and a reader without the model sees them too:

    python -c "from lora_edu.explorers import real_model; real_model.write_tables()"
"""

import io
from functools import cache
from pathlib import Path

import numpy as np

from lora_edu import datasets
from lora_edu.blockwise import SCALE_BITS
from lora_edu.codebooks import INT4, NF4
from lora_edu.explorers.base import Explorer, choice, slider, text_box
from lora_edu.metrics import bits_per_weight
from lora_edu.models import measured, minilm
from lora_edu.models.measured import BLOCK_SIZES, FORMATS, LAYER_BLOCK_SIZES
from lora_edu.models.minilm import LAYERS, LINEARS
from lora_edu.plots import real_model as plots
from lora_edu.plots.picture import Picture

__all__ = ["laboratory", "layers", "neighbours", "weights", "your_sentence"]

NEEDS_MODEL = ("your_sentence",)  # explorers that run the model itself
PAIRS, SPEECHES = 20, 80
KINDS = list(LINEARS)
SETTINGS = {  # what the reader's own sentence is compared in
    "NF4, blocks of 64": (64, NF4),
    "INT4, blocks of 64": (64, INT4),
    "NF4, one scale a matrix": (0, NF4),
}
SUGGESTIONS = [
    "The economy is growing again.",
    "Our laptops were stolen at the station.",
    "The choir sang in the cathedral.",
    "The patient recovered quickly after surgery.",
    "My grandmother bakes wonderful cakes.",
    "A pump emptied the flooded basement.",
]


@cache
def library() -> tuple[str, ...]:
    """160 sentences: twenty pairs, one after the other, forty everyday sentences, eighty from speeches."""
    pairs, singles = datasets.everyday()
    speeches = [sentence for _, sentence in datasets.sentences()[::6]][:SPEECHES]
    return (*(sentence for pair in pairs for sentence in pair), *singles, *speeches)


def write_tables(path: Path | None = None):
    """Measure everything again and store it as `minilm_measured.npz`; needs the model."""
    file = io.BytesIO()
    np.savez_compressed(file, **measured.measure(minilm.load(), library(), PAIRS))
    (path or Path(datasets.__file__).with_name("minilm_measured.npz")).write_bytes(file.getvalue())


@cache
def _tables() -> dict:
    return datasets.minilm_measured()


@cache
def curves() -> dict:
    """Mean cosine of each format at each block size."""
    return dict(zip(FORMATS, _tables()["own_cosine"].mean(axis=2, dtype=np.float64), strict=True))


def bits(format: str, block_size: int) -> float:
    """Bits a weight with float32 scales, of which min-max stores two a block; one scale a matrix is not counted."""
    scales = 2 if format == "INT4 min-max" else 1
    return bits_per_weight(block_size, scale_bits=scales * SCALE_BITS["float32"]) if block_size else 4.0


def compute_format(format: str, block_size: int) -> dict:
    """What became of the sentences when every linear layer went through one format."""
    at = list(FORMATS).index(format), BLOCK_SIZES.index(block_size)
    return {
        "format": format,
        "block_size": block_size,
        "bits": bits(format, block_size),
        "similarity": _tables()["format_similarity"][at].astype(np.float32),
        **_score(_tables()["own_cosine"][at], _tables()["format_nearest"][at]),
    }


def compute_float32() -> dict:
    """The same numbers before anything is quantized."""
    similarity = _tables()["similarity"].astype(np.float32)
    return {"similarity": similarity, **_score(np.ones(len(library())), _tables()["nearest"])}


def _score(own, nearest) -> dict:
    partner = np.arange(2 * PAIRS) ^ 1
    same = nearest == _tables()["nearest"]
    return {
        "cosine": float(own.mean(dtype=np.float64)),
        "worst": float(own.min()),
        "pairs_found": int(np.sum(nearest[: 2 * PAIRS] == partner)),
        "kept": int(same.sum()),
        "changed": int((~same).sum()),
    }


def explain_format(n: dict) -> str:
    """The score of one setting."""
    return (
        f"{n['bits']:.4g} bits a weight; {n['pairs_found']} of 40 sentences still find their partner among 160, "
        f"{n['changed']} of 160 have another nearest neighbour; "
        f"cosine {n['cosine']:.3f} = an angle of {np.degrees(np.arccos(n['cosine'])):.0f}°"
    )


def _format_controls(block_size) -> dict:
    return {
        "format": choice("format", {name: name for name in FORMATS}, "NF4"),
        "block_size": slider("block size", list(BLOCK_SIZES), block_size, shown=lambda size: str(size or "all")),
    }


def laboratory() -> Explorer:
    """Every linear layer in one format: what the sentences notice."""
    before = compute_float32()["similarity"]
    return Explorer(
        "laboratory",
        _format_controls(64),
        compute_format,
        lambda numbers: plots.laboratory(numbers, before, curves(), BLOCK_SIZES),
        explain_format,
    )


def opening_picture() -> Picture:
    """Forty sentences in float32, in blocks of 64, and with one scale a matrix."""
    states = [("float32", compute_float32())]
    states += [(f"NF4, {plots.size_name(size)}", compute_format("NF4", size)) for size in (64, 0)]
    return plots.opening(states)


def compute_weights(kind: str, layer: int, by: str) -> dict:
    """The histogram of one matrix in σ of the whole ("tensor"), or each block of 64 in its own σ ("block")."""
    at = layer, KINDS.index(kind)
    width = measured.EDGES[1] - measured.EDGES[0]
    return {
        "kind": kind,
        "row": layer,
        "column": at[1],
        "by": by,
        "density": _tables()[f"{by}_histogram"][at] / width,
        "kurtosis": float(_tables()["kurtosis"][at]),
        "largest": float(_tables()["largest"][at]),
        "heavy": float(_tables()["heavy"][at]),
    }


def explain_weights(n: dict) -> str:
    """What the tails say of one matrix."""
    return (
        f"{n['kind']}, layer {n['row']}: its largest weight stands at {n['largest']:.1f} σ; excess kurtosis "
        f"{n['kurtosis']:,.2f} (a bell has 0); {n['heavy']:.1%} of its blocks of 64 have heavier tails than 95 % of "
        f"normal blocks (a bell would have 5 %)"
    )


def bin_centres() -> np.ndarray:
    """The middles of the bins, in σ."""
    return (measured.EDGES[:-1] + measured.EDGES[1:]) / 2


def weights() -> Explorer:
    """36 matrices against the bell, as a whole and block by block."""
    controls = {
        "kind": choice("kind", {kind: kind for kind in KINDS}, "FFN down"),
        "layer": slider("layer", list(range(LAYERS)), 0),
        "by": choice("σ taken over", {"the whole matrix": "tensor", "each block of 64": "block"}, "tensor"),
    }
    return Explorer(
        "weights",
        controls,
        compute_weights,
        lambda numbers: plots.weights(numbers, bin_centres(), _tables()["heavy"]),
        explain_weights,
    )


def weights_states() -> Picture:
    """Four matrices, whole above and block by block below."""
    chosen = [("query", 3), ("value", 4), ("FFN up", 2), ("FFN down", 0)]
    states = [compute_weights(kind, layer, by) for by in ("tensor", "block") for kind, layer in chosen]
    return plots.weights_states(states, bin_centres())


def compute_layers(block_size: int, kind: str) -> dict:
    """1 - cosine with a single matrix in NF4, and with all six of a kind."""
    cosine = _tables()["layer_cosine"][LAYER_BLOCK_SIZES.index(block_size)].astype(np.float64)
    damage, together = 1 - cosine[:-1], 1 - cosine[-1]
    column = KINDS.index(kind)
    return {
        "block_size": block_size,
        "kind": kind,
        "column": column,
        "damage": damage,
        "together": together,
        "summed": damage.sum(axis=0),
        "one": float(together[column]),
        "one_summed": float(damage[:, column].sum()),
        "worst_kind": KINDS[int(together.argmax())],
        "best_kind": KINDS[int(together.argmin())],
    }


def explain_layers(n: dict) -> str:
    """The damage of a kind of layer as a sum."""
    parts = " + ".join(f"{1e4 * value:.3g}" for value in n["damage"][:, n["column"]])
    return (
        f"{n['kind']}, in ten-thousandths: {parts} = {1e4 * n['one_summed']:.3g} one by one; "
        f"{1e4 * n['one']:.3g} all six together"
    )


def layers() -> Explorer:
    """One matrix at a time in four bits: where it hurts."""
    controls = {
        "block_size": slider("block size", list(LAYER_BLOCK_SIZES), 64, shown=lambda size: str(size or "all")),
        "kind": choice("kind", {kind: kind for kind in KINDS}, "FFN up"),
    }
    return Explorer("layers", controls, compute_layers, plots.layers, explain_layers)


def layers_states() -> Picture:
    """The map of damage at three block sizes."""
    return plots.layers_states([compute_layers(size, "query") for size in (64, 1024, 0)])


@cache
def _heights() -> np.ndarray:
    """Where the marks stand: pairs above, the others below, spread a little so that they can be told apart."""
    spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(library()))
    return spread + (np.arange(len(library())) < 2 * PAIRS)


def compute_neighbours(format: str, block_size: int) -> dict:
    """Which sentences keep their nearest neighbour, and the margin it had in float32."""
    numbers = compute_format(format, block_size)
    at = list(FORMATS).index(format), BLOCK_SIZES.index(block_size)
    same = _tables()["format_nearest"][at] == _tables()["nearest"]
    margin = _tables()["margin"]
    return {
        **{name: value for name, value in numbers.items() if name != "similarity"},
        "margin": margin,
        "height": _heights(),
        "same": same,
        "margin_changed": float(np.median(margin[~same])) if (~same).any() else 0.0,
        "margin_kept": float(np.median(margin[same])),
    }


def explain_neighbours(n: dict) -> str:
    """The margins of both groups."""
    return (
        f"{n['changed']} of 160 = {n['changed'] / 160:.0%} have another nearest neighbour; "
        f"median margin of those {n['margin_changed']:.3f}, of the others {n['margin_kept']:.3f}; "
        f"pairs found: {n['pairs_found']} of 40"
    )


def neighbours() -> Explorer:
    """Who loses the nearest neighbour: a matter of margins."""
    return Explorer("neighbours", _format_controls(64), compute_neighbours, plots.neighbours, explain_neighbours)


def neighbours_states() -> Picture:
    """The margins in blocks of 64 and with one scale a matrix."""
    return plots.neighbours_states([compute_neighbours("NF4", size) for size in (64, 0)])


@cache
def _in_setting(setting: str | None):
    """The model in one of `SETTINGS` (None: float32), and its embeddings of the library."""
    model = minilm.load()
    if setting is not None:
        size, codebook = SETTINGS[setting]
        model = model.quantized(size, codebook)
    return model, model.embed(library())


def compute_sentence(sentence: str, setting: str) -> dict:
    """The five sentences of the library nearest to one, in float32 and in a setting; runs the model twice."""
    embedded, ranked = [], []
    for model, known in (_in_setting(None), _in_setting(setting)):
        embedded.append(model.embed([sentence])[0])
        cosines = known @ embedded[-1]
        cosines[[i for i, other in enumerate(library()) if other == sentence]] = -1
        first = np.argsort(-cosines, kind="stable")[:5]
        ranked.append([(library()[i], float(cosines[i])) for i in first])
    before, after = ([other for other, _ in one] for one in ranked)
    return {
        "sentence": sentence,
        "setting": setting,
        "before": ranked[0],
        "after": ranked[1],
        "own": float(embedded[0] @ embedded[1]),
        "shared": len(set(before) & set(after)),
        "in_place": sum(a == b for a, b in zip(before, after, strict=True)),
    }


def explain_sentence(n: dict) -> str:
    """The pieces that the model reads."""
    pieces = minilm.load().tokenizer.tokenize(n["sentence"])
    shown = " | ".join(pieces).replace("&", "&amp;").replace("<", "&lt;")
    return f"{len(pieces)} pieces: {shown}; {n['shared']} of 5 nearest in both, {n['in_place']} at the same rank"


def your_sentence() -> Explorer:
    """Type a sentence: its nearest of 160, before and after four bits."""
    controls = {
        "sentence": text_box("sentence", SUGGESTIONS),
        "setting": choice("in 4 bits as", {name: name for name in SETTINGS}, "NF4, blocks of 64"),
    }
    for setting in (None, *SETTINGS):
        _in_setting(setting)  # now, so that the first change need not wait
    return Explorer("your sentence", controls, compute_sentence, plots.ranking, explain_sentence)


def zero_point(weight, block_size: int) -> np.ndarray:
    r"""INT4 from min to max with the grid shifted so that 0 is one of its sixteen values, and back.

    step = (max - min) / 15,  z = round(-min / step),  ŵ = (clip(round(w / step) + z, 0, 15) - z) · step
    """
    blocks = weight.reshape(-1, block_size or weight.size)
    low = np.minimum(blocks.min(axis=1, keepdims=True), 0)
    step = (np.maximum(blocks.max(axis=1, keepdims=True), 0) - low) / 15
    z = np.round(-low / step)
    codes = np.clip(np.round(blocks / step) + z, 0, 15)
    return ((codes - z) * step).reshape(weight.shape)


def zero_picture(cosines: dict) -> Picture:
    """The levels around zero in the block with the largest weight of a real matrix, and the cosines that are left."""
    weight = datasets.minilm_weights()[datasets.ATTENTION_OUTPUT]
    block = weight.reshape(-1, 1024)[np.abs(weight).argmax() // 1024] / weight.std()
    step = (block.max() - block.min()) / 15
    even = block.min() + step * np.arange(16)
    levels = [even, step * np.arange(-15, 16), NF4.levels * np.abs(block).max()]
    nearest = [float(row[np.abs(row).argmin()]) for row in levels]
    rows = list(zip(cosines, levels, nearest, ("B", "int4", "nf4"), strict=True))
    return plots.zero_or_not(rows, 4.5, cosines)


def megabytes(model: minilm.MiniLM, stored: dict | None = None) -> dict:
    """Megabytes of each part of the model; `stored` has the bytes of those weights that are not float32."""
    sizes = {name: weight.nbytes for name, weight in model.weights.items()} | (stored or {})
    kinds = minilm.linear_names(KINDS[:4]), minilm.linear_names(KINDS[4:])
    parts = {"word embeddings": [minilm.WORDS], "attention": kinds[0], "FFN": kinds[1]}
    found = {part: sum(sizes[name] for name in names) / 1e6 for part, names in parts.items()}
    return {**found, "rest": sum(sizes.values()) / 1e6 - sum(found.values())}


FIGURES = {
    "real-model": (
        "Forty sentences in twenty pairs, each compared with each, by a real sentence encoder in float32 and in four "
        "bits. With one scale a matrix every sentence resembles every other, yet all pairs still find each other.",
        opening_picture,
    ),
    "real-model-layers": (
        "The damage of four bits in one matrix at a time: the same colours on all three maps. In blocks FFN up hurts "
        "most; with one scale a matrix it is FFN down, which holds the outliers.",
        layers_states,
    ),
    "real-model-neighbours": (
        "A mark for each of 160 sentences: by how much its nearest neighbour won, and whether it still wins in four "
        "bits. Hand-picked pairs win by far, so they cannot notice what happens to the others.",
        neighbours_states,
    ),
}
