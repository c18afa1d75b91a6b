r"""The models that the golden PEFT files belong to, in NumPy; `linear(name, x)` computes their linear layers."""

import numpy as np


def mlp(linear, x):
    r"""fc(relu(v_proj(relu(q_proj(x))))), x (batch, 16) -> (batch, 8)."""
    return linear("fc", np.maximum(linear("v_proj", np.maximum(linear("q_proj", x), 0)), 0))


def gpt2(weights, linear, ids, layers=2, heads=4):
    r"""ids (batch, length) -> logits (batch, length, vocabulary)."""
    length = ids.shape[1]
    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:length]
    for i in range(layers):
        block = f"transformer.h.{i}"
        qkv = linear(f"{block}.attn.c_attn", layer_norm(weights, f"{block}.ln_1", x))
        attended = attention(*(split(part, heads) for part in np.split(qkv, 3, axis=-1)))
        x = x + linear(f"{block}.attn.c_proj", attended)
        hidden = linear(f"{block}.mlp.c_fc", layer_norm(weights, f"{block}.ln_2", x))
        hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        x = x + linear(f"{block}.mlp.c_proj", hidden)
    return layer_norm(weights, "transformer.ln_f", x) @ weights["transformer.wte.weight"].T


def llama(weights, linear, ids, layers=2, heads=4, kv_heads=2):
    r"""ids (batch, length) -> logits (batch, length, vocabulary)."""
    x = weights["model.embed_tokens.weight"][ids]
    for i in range(layers):
        block = f"model.layers.{i}"
        normed = rms_norm(weights[f"{block}.input_layernorm.weight"], x)
        q = rotate(split(linear(f"{block}.self_attn.q_proj", normed), heads))
        k = rotate(split(linear(f"{block}.self_attn.k_proj", normed), kv_heads))
        v = split(linear(f"{block}.self_attn.v_proj", normed), kv_heads)
        k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
        x = x + linear(f"{block}.self_attn.o_proj", attention(q, k, v))
        normed = rms_norm(weights[f"{block}.post_attention_layernorm.weight"], x)
        gate = linear(f"{block}.mlp.gate_proj", normed)
        hidden = gate / (1 + np.exp(-gate)) * linear(f"{block}.mlp.up_proj", normed)
        x = x + linear(f"{block}.mlp.down_proj", hidden)
    return linear("lm_head", rms_norm(weights["model.norm.weight"], x))


def split(x, heads):
    r"""(batch, length, width) -> (batch, heads, length, width / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def attention(q, k, v):
    r"""Causal attention, (batch, heads, length, width) -> (batch, length, heads · width)."""
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(q.shape[2], dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


def rotate(x, theta=10000.0):
    r"""Rotary positions: the first and the second half of each head turn against each other."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[2])[:, None] / theta ** (np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def layer_norm(weights, name, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def rms_norm(weight, x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * weight
