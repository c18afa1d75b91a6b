r"""A sentence encoder that can be trained: BERT's layers, the mean of a sentence's tokens, and a small classifier.

    x = LayerNorm(word[id] + position + type)                  (tokens of all sentences, width), one row a token
    in each layer:
        x = LayerNorm(x + output(attention(query(x), key(x), value(x))))    each sentence sees itself, both ways
        x = LayerNorm(x + down(gelu(up(x))))
    m = mean of x over the tokens of a sentence,  e = m / ‖m‖  (sentences, width)
    logits = classifier(e)                                     (sentences, classes)

    dm = (de - e (e · de)) / ‖m‖,   dx = dm / tokens of the sentence, the same for each of them

Sentences come as one array of ids, filled up with `PADDING` behind; a filled place is looked at by nobody and costs
nothing outside attention, since only real tokens have a row. Layers bear the names that the published weights have.

Sources: Devlin et al. 2018, *BERT*; Reimers & Gurevych 2019, *Sentence-BERT* (the mean over the tokens).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lora_edu.models import minilm
from lora_edu.models.layers import Attention, Embedding, Gelu, LayerNorm, Linear
from lora_edu.models.model import Model

PADDING = 0  # the id of [PAD]
BATCH = 32  # sentences that go through the layers together where nothing is trained
QUERY_VALUE = ("query", "value")  # target_modules: what the LoRA paper adapts
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
PARTS = (  # of one layer, in the order of the forward pass
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


class SentenceEncoder(Model):
    r"""See the module.

    Parameters
    ----------
    layers : mapping of name to Layer
        The published names, without ".weight" and ".bias", then "classifier".
    heads : int
    """

    kept_by_all_linear = ("classifier",)

    def __init__(self, layers, heads: int = minilm.HEADS):
        super().__init__(layers)
        self.heads = heads
        self.block_names = [name.removesuffix(".intermediate.dense") for name in layers if "intermediate" in name]
        self._start()

    @classmethod
    def pretrained(cls, classes: int = 2) -> "SentenceEncoder":
        """all-MiniLM-L6-v2, its weights shared with `minilm.load()`, under a classifier that knows nothing yet."""
        return cls.of(minilm.load().weights, classes)

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray], classes: int = 2, heads: int = minilm.HEADS) -> "SentenceEncoder":
        """The encoder over weights by their published names; the classifier starts at zero."""
        layers = {f"embeddings.{table}": Embedding(weights[f"embeddings.{table}.weight"]) for table in TABLES}
        names = ["embeddings.LayerNorm"]
        for layer in range(sum(name.endswith("intermediate.dense.weight") for name in weights)):
            names += [f"encoder.layer.{layer}.{part}" for part in PARTS]
        for name in names:
            pair = weights[f"{name}.weight"], weights[f"{name}.bias"]
            norm = name.endswith("LayerNorm")
            layers[name] = LayerNorm(*pair, epsilon=float(minilm.LAYER_NORM_EPSILON)) if norm else Linear(*pair)
        width = weights["embeddings.LayerNorm.weight"].size
        layers["classifier"] = Linear(np.zeros((classes, width), np.float32), np.zeros(classes, np.float32))
        return cls(layers, heads)

    @classmethod
    def initial(cls, seed=0, vocabulary=11, length=6, width=8, layers=2, heads=2, classes=2) -> "SentenceEncoder":
        r"""Weights N(0, 0.02²) and biases 0, as BERT starts; the middle of the feed-forward is 4 · width."""
        rng = np.random.default_rng(seed)
        shapes = {f"embeddings.{t}": (n, width) for t, n in zip(TABLES, (vocabulary, length, 2), strict=True)}
        shapes["embeddings.LayerNorm"] = (width,)
        for layer in range(layers):
            sizes = {"intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}
            norms = {part: (width,) for part in PARTS if part.endswith("LayerNorm")}
            for part in PARTS:
                shapes[f"encoder.layer.{layer}.{part}"] = (norms | sizes).get(part, (width, width))
        weights = {}
        for name, shape in shapes.items():
            drawn = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            weights[f"{name}.weight"] = np.ones(shape, np.float32) if name.endswith("LayerNorm") else drawn
            weights[f"{name}.bias"] = np.zeros(shape[0], np.float32)
        return cls.of(weights, classes, heads)

    def fresh(self, seed: int) -> "SentenceEncoder":
        words, places = (self.layers[f"embeddings.{table}"].arrays["weight"] for table in TABLES[:2])
        classes = len(self.layers["classifier"].arrays["weight"])
        return SentenceEncoder.initial(
            seed, len(words), len(places), words.shape[1], len(self.block_names), self.heads, classes
        )

    def forward(self, ids) -> np.ndarray:
        """Logits (sentences, classes) for ids (sentences, length), filled up with `PADDING`."""
        return self.layers["classifier"].forward(self.embed(ids))

    def embed(self, ids) -> np.ndarray:
        """One unit vector a sentence: (sentences, width)."""
        x = self.tokens(ids)
        self.means = np.add.reduceat(x, self.firsts) / self.counts  # (sentences, width)
        self.norms = np.linalg.norm(self.means, axis=1, keepdims=True)  # (sentences, 1)
        self.unit = self.means / self.norms
        return self.unit

    def tokens(self, ids) -> np.ndarray:
        """What the last layer says of each real token, sentence after sentence: (tokens, width)."""
        if ids.ndim != 2 or not (ids != PADDING).any(axis=1).all():
            raise ValueError(f"ids must be (sentences, length) with a token in each, got {ids.shape}; see padded()")
        ids = ids[:, : int((ids != PADDING).sum(axis=1).max())]  # nothing is filled up further than this batch needs
        self._measure(ids != PADDING)
        places = np.nonzero(self.real)[1]
        stored = [ids[self.real], places, np.zeros_like(places)]
        words = [self.layers[f"embeddings.{t}"].forward(one) for t, one in zip(TABLES, stored, strict=True)]
        x = self.layers["embeddings.LayerNorm"].forward(words[0] + words[1] + words[2])
        return self._blocks(x)

    def above(self, layer: int, ids) -> "UpperLayers":
        """The layers from this one on, as a model over the sentences `ids`: what is below is frozen and runs once."""
        return UpperLayers(self, layer, ids)

    def _measure(self, real):
        """Where tokens are: `real` (sentences, length) is False in places that are filled up."""
        self.real, lengths = real, real.sum(axis=1)
        self.firsts, dtype = np.cumsum(lengths) - lengths, self.layers["classifier"].arrays["weight"].dtype
        self.counts = lengths[:, None].astype(dtype)
        self.unseen = np.where(real, 0, -np.inf).astype(dtype)[:, None, None, :]  # (sentences, 1, 1, length)

    def _blocks(self, x):
        for block in self.block_names:
            x = self._block(block, x)
        return x

    def _block(self, block, x):
        layer = {part: self.layers[f"{block}.{part}"] for part in PARTS}
        q, k, v = (self._spread(layer[f"attention.self.{part}"].forward(x)) for part in ("query", "key", "value"))
        a = self.attention[block].forward(q, k, v, self.real.shape[1], self.unseen)[self.real.ravel()]
        x = layer["attention.output.LayerNorm"].forward(x + layer["attention.output.dense"].forward(a))
        hidden = self.gelu[block].forward(layer["intermediate.dense"].forward(x))  # (tokens, 4 · width)
        return layer["output.LayerNorm"].forward(x + layer["output.dense"].forward(hidden))

    def backward(self, upstream):
        d = self.layers["classifier"].backward(upstream)
        if not self._trained_up_to(f"{self.block_names[-1]}.output.LayerNorm"):
            return
        d = (d - self.unit * np.sum(self.unit * d, axis=1, keepdims=True)) / self.norms
        g = np.repeat(d / self.counts, self.real.sum(axis=1), axis=0)  # (tokens, width)
        for block in reversed(self.block_names):
            if not self._trained_up_to(f"{block}.output.LayerNorm"):
                return
            g = self._block_backward(block, g)
        if "embeddings.LayerNorm" in self.layers and self._trained_up_to("embeddings.LayerNorm"):
            g = self.layers["embeddings.LayerNorm"].backward(g)
            for table in TABLES:
                self.layers[f"embeddings.{table}"].backward(g)

    def _block_backward(self, block, g):
        layer = {part: self.layers[f"{block}.{part}"] for part in PARTS}
        g = layer["output.LayerNorm"].backward(g)
        hidden = self.gelu[block].backward(layer["output.dense"].backward(g))
        g = layer["attention.output.LayerNorm"].backward(g + layer["intermediate.dense"].backward(hidden))
        a = self._spread(layer["attention.output.dense"].backward(g))
        for part, d in zip(("query", "key", "value"), self.attention[block].backward(a), strict=True):
            g = g + layer[f"attention.self.{part}"].backward(d[self.real.ravel()])
        return g

    def _spread(self, rows):
        """From one row a token to one row a place: (sentences · length, width), filled places are zero."""
        places = np.zeros((self.real.size, rows.shape[1]), rows.dtype)
        places[self.real.ravel()] = rows
        return places

    def _start(self):
        self.attention = {block: Attention(self.heads) for block in self.block_names}
        self.gelu = {block: Gelu() for block in self.block_names}


def padded(ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of ids as one array (sentences, longest), filled up with `PADDING`."""
    filled = np.full((len(ids), max(map(len, ids))), PADDING, np.int64)
    for row, one in zip(filled, ids, strict=True):
        row[: len(one)] = one
    return filled


class UpperLayers(SentenceEncoder):
    r"""The upper layers of an encoder over known sentences; in place of ids it takes their numbers in `ids`.

    Where only these layers are trained, those below give the same rows every time, so they are asked once.
    """

    def __init__(self, encoder: SentenceEncoder, layer: int, ids):
        encoder.refuse_adapted()
        lower = encoder.copy()
        lower.block_names = encoder.block_names[:layer]
        self.known, self.rows = ids, []
        for start in range(0, len(ids), BATCH):
            self.rows += np.split(lower.tokens(ids[start : start + BATCH]), lower.firsts[1:])
        upper = ("classifier", *encoder.block_names[layer:])
        layers = {name: one.copy() for name, one in encoder.layers.items() if name.startswith(upper)}
        super().__init__(layers, encoder.heads)

    def tokens(self, ids) -> np.ndarray:
        real = self.known[ids] != PADDING
        self._measure(real[:, : real.sum(axis=1).max()])
        return self._blocks(np.concatenate([self.rows[one] for one in ids]))
