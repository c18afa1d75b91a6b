r"""A transformer that spells names, letter by letter.

    x = letter[id] + position                                      (rows, width), one row a letter
    twice:
        x = x + o_proj(attention(q, k, v))        q, k, v = q_proj(n), k_proj(n), v_proj(n),  n = LayerNorm(x)
        x = x + down_proj(relu(up_proj(n)))       n = LayerNorm(x)
    logits = head(LayerNorm(x))                                    (batch, length, 27)

Sources: Vaswani et al. 2017, *Attention is all you need*; the norm comes first, as in Radford et al. 2019 (GPT-2).
"""

from importlib.resources import files

import numpy as np

from lora_edu.models.layers import CausalAttention, Embedding, LayerNorm, Linear
from lora_edu.models.model import Model
from lora_edu.training.losses import cross_entropy

QUERY_VALUE = ("q_proj", "v_proj")  # target_modules: what the LoRA paper adapts
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
PARTS = ("norm1", *ATTENTION, "norm2", "up_proj", "down_proj")  # of one block
VOCABULARY, LENGTH, WIDTH, BLOCKS, HEADS = 27, 13, 64, 2, 4


class CharTransformer(Model):
    r"""See the module.

    Parameters
    ----------
    layers : mapping of name to Layer
        letters, positions, blocks.<i>.{norm1, q_proj, k_proj, v_proj, o_proj, norm2, up_proj, down_proj}, norm, head.
    heads : int
    """

    kept_by_all_linear = ("head",)

    def __init__(self, layers, heads: int = HEADS):
        super().__init__(layers)
        self.heads = heads
        self.block_names = [name.removesuffix(".norm1") for name in layers if name.endswith(".norm1")]
        self._start()

    @classmethod
    def initial(
        cls, seed=0, vocabulary=VOCABULARY, length=LENGTH, width=WIDTH, blocks=BLOCKS, heads=HEADS
    ) -> "CharTransformer":
        r"""Weights N(0, 1 / in), those that add to x divided by √(2 · blocks) more; tables N(0, 0.1²); no biases."""
        rng = np.random.default_rng(seed)

        def normal(out, in_, scale):
            return rng.standard_normal((out, in_), np.float32) * np.float32(scale)

        def linear(out, in_, scale=1.0):
            return Linear(normal(out, in_, scale / np.sqrt(in_)))

        def norm():
            return LayerNorm(np.ones(width, np.float32), np.zeros(width, np.float32))

        layers = {
            "letters": Embedding(normal(vocabulary, width, 0.1)),
            "positions": Embedding(normal(length, width, 0.1)),
        }
        adding = 1 / np.sqrt(2 * blocks)
        for block in (f"blocks.{i}" for i in range(blocks)):
            layers[f"{block}.norm1"] = norm()
            layers |= {f"{block}.{name}": linear(width, width) for name in ("q_proj", "k_proj", "v_proj")}
            layers[f"{block}.o_proj"] = linear(width, width, adding)
            layers[f"{block}.norm2"] = norm()
            layers[f"{block}.up_proj"] = linear(4 * width, width)
            layers[f"{block}.down_proj"] = linear(width, 4 * width, adding)
        return cls(layers | {"norm": norm(), "head": linear(vocabulary, width)}, heads)

    @classmethod
    def pretrained(cls) -> "CharTransformer":
        """The one that learned female names, as it ships; `python -m lora_edu.models.pretrain` makes it."""
        model = cls.initial()
        with (files(__package__) / "female_names.npz").open("rb") as file, np.load(file, allow_pickle=False) as archive:
            model.assign({name: archive[name] for name in archive.files})
        return model

    def fresh(self, seed: int) -> "CharTransformer":
        letters, positions = (self.layers[name].arrays["weight"] for name in ("letters", "positions"))
        return CharTransformer.initial(
            seed, len(letters), len(positions), letters.shape[1], len(self.block_names), self.heads
        )

    def forward(self, ids) -> np.ndarray:
        """Logits (batch, length, vocabulary) of the next letter at every place of ids (batch, length)."""
        batch, length = ids.shape
        layer = self.layers
        places = np.tile(np.arange(length), batch)
        x = layer["letters"].forward(ids.ravel()) + layer["positions"].forward(places)  # (rows, width)
        for block in self.block_names:
            x = self._block(block, x, length)
        return layer["head"].forward(layer["norm"].forward(x)).reshape(batch, length, -1)

    def _block(self, block, x, length):
        layer = {name: self.layers[f"{block}.{name}"] for name in PARTS}
        n = layer["norm1"].forward(x)
        q, k, v = (layer[name].forward(n) for name in ("q_proj", "k_proj", "v_proj"))
        x = x + layer["o_proj"].forward(self.attention[block].forward(q, k, v, length))
        hidden = layer["up_proj"].forward(layer["norm2"].forward(x))  # (rows, 4 · width)
        self.active[block] = hidden > 0
        return x + layer["down_proj"].forward(np.maximum(hidden, 0))

    def backward(self, upstream):
        layer = self.layers
        g = layer["norm"].backward(layer["head"].backward(upstream.reshape(-1, upstream.shape[-1])))
        for block in reversed(self.block_names):
            if not self._trained_up_to(f"{block}.down_proj"):
                return
            g = self._block_backward(block, g)
        layer["letters"].backward(g)
        layer["positions"].backward(g)

    def _block_backward(self, block, g):
        layer = {name: self.layers[f"{block}.{name}"] for name in PARTS}
        d_hidden = layer["down_proj"].backward(g) * self.active[block]
        g = g + layer["norm2"].backward(layer["up_proj"].backward(d_hidden))  # past the feed-forward, and through it
        d_q, d_k, d_v = self.attention[block].backward(layer["o_proj"].backward(g))
        d_n = layer["q_proj"].backward(d_q) + layer["k_proj"].backward(d_k) + layer["v_proj"].backward(d_v)
        return g + layer["norm1"].backward(d_n)

    def bits_per_character(self, ids, targets) -> float:
        """Mean surprise per letter, the final full stop included: 4.75 bits for a guess among 27."""
        return cross_entropy(self.forward(ids), targets)[0] / float(np.log(2))

    def sample(self, count: int, seed: int = 0, temperature: float = 1.0) -> np.ndarray:
        """Ids (count, length) of names that the model makes up; below temperature 1 it dares less."""
        rng = np.random.default_rng(seed)
        ids = np.zeros((count, len(self.layers["positions"].arrays["weight"])), np.int64)
        for place in range(1, ids.shape[1]):
            logits = self.forward(ids[:, :place])[:, -1] / temperature  # (count, vocabulary)
            noise = rng.gumbel(size=logits.shape)  # the largest of logit + Gumbel noise is a draw from the softmax
            ids[:, place] = np.where((ids[:, place - 1] == 0) & (place > 1), 0, (logits + noise).argmax(axis=1))
        return ids

    def _start(self):
        self.attention = {block: CausalAttention(self.heads) for block in self.block_names}
        self.active = {}
