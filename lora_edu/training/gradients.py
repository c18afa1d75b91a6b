r"""The gradients of one LoRA layer, one equation a line.

    y = x @ W.T + s · (x @ A.T) @ B.T              forward, s = scaling
    G = dL/dy                                      the upstream gradient, (batch, out)

    dB = s · Gᵀ (x Aᵀ)                             (out, rank)
    dA = s · (G B)ᵀ x                              (rank, in)
    dx = G W + s · (G B) A                         (batch, in)

W is frozen: a gradient flows through it, none is kept for it. Both dA and dB are sums over the batch; whoever wants a
mean divides G.

Source: Hu et al. 2021, *LoRA*, equation 3, by the chain rule; checked against finite differences.
"""

from typing import NamedTuple

import numpy as np

from lora_edu.linear import LoraLinear
from lora_edu.validate import check_array


class LoraGradients(NamedTuple):
    """dL/dA (rank, in), dL/dB (out, rank) and dL/dx (…, in)."""

    lora_a: np.ndarray
    lora_b: np.ndarray
    x: np.ndarray


def lora_gradients(x, upstream, weight, lora_a, lora_b, scaling) -> LoraGradients:
    r"""dA, dB and dx for plain arrays.

    Parameters
    ----------
    x : (in,) or (..., in)
    upstream : (out,) or (..., out), dL/dy
    weight : (out, in), frozen
    lora_a : (rank, in)
    lora_b : (out, rank)
    scaling : float
    """
    if x.shape[:-1] != upstream.shape[:-1]:
        raise ValueError(f"x and upstream must share their leading shape, got {x.shape} and {upstream.shape}")
    rows = x.reshape(-1, x.shape[-1])  # (batch, in)
    g = upstream.reshape(-1, upstream.shape[-1])  # (batch, out)

    hidden = rows @ lora_a.T  # (batch, in) @ (in, rank) -> (batch, rank)
    back = g @ lora_b  # (batch, out) @ (out, rank) -> (batch, rank)
    d_b = scaling * (g.T @ hidden)  # (out, batch) @ (batch, rank) -> (out, rank)
    d_a = scaling * (back.T @ rows)  # (rank, batch) @ (batch, in) -> (rank, in)
    d_x = g @ weight + scaling * (back @ lora_a)  # (batch, in)
    return LoraGradients(d_a, d_b, d_x.reshape(x.shape))


def layer_gradients(layer: LoraLinear, x, upstream) -> LoraGradients:
    """dA, dB and dx of a `LoraLinear` that is neither merged nor disabled, and has no dropout acting."""
    if layer.merged or not layer.enabled:
        raise ValueError("the adapter must take part on its own: call unmerge() and enable() before asking gradients")
    if layer.training and layer.config.dropout > 0:
        raise ValueError(f"dropout must not act here, got {layer.config.dropout:g}; call eval() first")
    x, upstream = check_array("x", x), check_array("upstream", upstream)
    weight = layer.weight.T if layer.config.fan_in_fan_out else layer.weight  # (out, in)
    return lora_gradients(x, upstream, weight, layer.lora_a, layer.lora_b, layer.scaling)
