r"""The small models written in PyTorch, over the same arrays: what the tests and the benchmark compare with.

python tests/torch_twins.py        writes tests/golden/char_transformer.npz and sentence_encoder.npz
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lora_edu.models.encoder import PADDING, SentenceEncoder
from lora_edu.models.transformer import CharTransformer

GOLDEN = Path(__file__).parent / "golden" / "char_transformer.npz"
ENCODER_GOLDEN = GOLDEN.with_name("sentence_encoder.npz")
TINY = {"vocabulary": 7, "length": 5, "width": 8, "blocks": 2, "heads": 2}


def tensors(arrays: dict) -> dict:
    """Leaves of the graph by name, on arrays of their own."""
    return {name: torch.tensor(np.array(array), requires_grad=True) for name, array in arrays.items()}


def linear(p: dict, name: str, x, scaling: float = 1.0):
    """The layer `name` of the parameters, with its A and B where there are any."""
    y = F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))
    if f"{name}.lora_a" in p:
        y = y + scaling * F.linear(F.linear(x, p[f"{name}.lora_a"]), p[f"{name}.lora_b"])
    return y


def mlp(p: dict, x, names, scaling: float = 1.0):
    """Linear layers with a ReLU between them."""
    *hidden, last = names
    for name in hidden:
        x = F.relu(linear(p, name, x, scaling))
    return linear(p, last, x, scaling)


def transformer(p: dict, ids, heads: int, scaling: float = 1.0):
    """Logits (batch, length, vocabulary)."""
    batch, length = ids.shape
    width = p["letters.weight"].shape[1]
    blocks = sum(name.endswith("q_proj.weight") for name in p)

    def norm(name, x):
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"])

    def split(x):
        return x.view(batch, length, heads, width // heads).transpose(1, 2)

    x = F.embedding(ids, p["letters.weight"]) + p["positions.weight"][:length]
    for block in (f"blocks.{i}" for i in range(blocks)):
        n = norm(f"{block}.norm1", x)
        q, k, v = (split(linear(p, f"{block}.{name}", n, scaling)) for name in ("q_proj", "k_proj", "v_proj"))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, length, width)
        x = x + linear(p, f"{block}.o_proj", a, scaling)
        hidden = F.relu(linear(p, f"{block}.up_proj", norm(f"{block}.norm2", x), scaling))
        x = x + linear(p, f"{block}.down_proj", hidden, scaling)
    return linear(p, "head", norm("norm", x))


def sentence_encoder(p: dict, ids, heads: int, scaling: float = 1.0):
    """Logits (sentences, classes) of BERT's layers, the mean over the tokens, length 1, and the classifier."""
    real = ids != PADDING
    width = p["embeddings.LayerNorm.weight"].shape[0]
    layers = sum(name.endswith("intermediate.dense.weight") for name in p)

    def norm(name, x):
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"], 1e-12)

    def split(x):
        return x.view(*ids.shape, heads, width // heads).transpose(1, 2)

    x = F.embedding(ids, p["embeddings.word_embeddings.weight"])
    x = x + p["embeddings.position_embeddings.weight"][: ids.shape[1]] + p["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for block in (f"encoder.layer.{i}" for i in range(layers)):
        q, k, v = (split(linear(p, f"{block}.attention.self.{n}", x, scaling)) for n in ("query", "key", "value"))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :]).transpose(1, 2).flatten(2)
        x = norm(f"{block}.attention.output.LayerNorm", x + linear(p, f"{block}.attention.output.dense", a, scaling))
        hidden = F.gelu(linear(p, f"{block}.intermediate.dense", x, scaling))
        x = norm(f"{block}.output.LayerNorm", x + linear(p, f"{block}.output.dense", hidden, scaling))
    mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return linear(p, "classifier", F.normalize(mean, dim=1))


def loss_of(logits, targets):
    """Mean cross-entropy over the targets that are not -1."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)


def write_golden():
    """Parameters, ids and targets, and what PyTorch makes of them: logits, loss and every gradient."""
    rng = np.random.default_rng(5)
    arrays = noisy(CharTransformer.initial(3, **TINY), 0.1, rng)
    ids = rng.integers(TINY["vocabulary"], size=(6, TINY["length"]))
    targets = rng.integers(-1, TINY["vocabulary"], size=ids.shape)
    _write(GOLDEN, arrays, ids, targets, lambda p: transformer(p, torch.from_numpy(ids), TINY["heads"]))


def write_encoder_golden():
    """The same for a small sentence encoder; the sentences have 6, 1, 4 and 3 tokens."""
    model = SentenceEncoder.initial(3)
    arrays = noisy(model, 0.3, np.random.default_rng(5))
    ids = np.random.default_rng(6).integers(1, 11, size=(4, 6))
    ids[np.arange(6) >= np.array([[6], [1], [4], [3]])] = PADDING
    targets = np.array([0, 1, 1, 0])
    _write(ENCODER_GOLDEN, arrays, ids, targets, lambda p: sentence_encoder(p, torch.from_numpy(ids), model.heads))


def noisy(model, noise: float, rng) -> dict:
    """The model's arrays, moved away from where they start."""
    arrays = model.parameters()
    return {name: a + rng.standard_normal(a.shape, np.float32) * np.float32(noise) for name, a in arrays.items()}


def _write(path, arrays, ids, targets, forward):
    p = tensors(arrays)
    logits = forward(p)
    loss = loss_of(logits, torch.from_numpy(targets))
    loss.backward()
    found = {"ids": ids, "targets": targets, "logits": logits.detach().numpy(), "loss": np.float64(loss.item())}
    found |= {f"parameter/{name}": array for name, array in arrays.items()}
    found |= {f"gradient/{name}": tensor.grad.numpy() for name, tensor in p.items()}
    np.savez_compressed(path, **found)


if __name__ == "__main__":
    write_golden()
    write_encoder_golden()
