r"""The gradients of one LoRA layer, one equation a line.

    y = x @ W.T + s · (m ∘ x @ A.T) @ B.T          forward, s = scaling, m = dropout mask (1 without dropout)
    G = dL/dy                                      the upstream gradient, (batch, out)

    dB = s · Gᵀ (m ∘ x) Aᵀ                         (out, rank)
    dA = s · (G B)ᵀ (m ∘ x)                        (rank, in)
    dx = G W + m ∘ (s · (G B) A)                   (batch, in)

W is frozen: a gradient flows through it, none is kept for it. Over a 4-bit base W is what the codes stand for. Both dA
and dB are sums over the batch; whoever wants a mean divides G.

Sources: Hu et al. 2021, *LoRA*, equation 3, and Dettmers et al. 2023, *QLoRA*, equation 5, by the chain rule; checked
against finite differences and against PyTorch.
"""

from typing import NamedTuple

import numpy as np

from lora_edu.linear import LoraLinear
from lora_edu.qlora import QLoraLinear
from lora_edu.validate import check_array


class LoraGradients(NamedTuple):
    """dL/dA (rank, in), dL/dB (out, rank) and dL/dx (…, in)."""

    lora_a: np.ndarray
    lora_b: np.ndarray
    x: np.ndarray


def lora_gradients(x, upstream, weight, lora_a, lora_b, scaling, mask=None) -> LoraGradients:
    r"""dA, dB and dx for plain arrays.

    Parameters
    ----------
    x : (in,) or (..., in)
    upstream : (out,) or (..., out), dL/dy
    weight : (out, in), frozen
    lora_a : (rank, in)
    lora_b : (out, rank)
    scaling : float
    mask : (batch, in), optional
        0 where dropout dropped the adapter's input, 1 / (1 - dropout) where it kept it.
    """
    if x.shape[:-1] != upstream.shape[:-1]:
        raise ValueError(f"x and upstream must share their leading shape, got {x.shape} and {upstream.shape}")
    rows = x.reshape(-1, x.shape[-1])  # (batch, in)
    g = upstream.reshape(-1, upstream.shape[-1])  # (batch, out)
    seen = rows if mask is None else mask * rows  # (batch, in), what the adapter saw

    hidden = seen @ lora_a.T  # (batch, in) @ (in, rank) -> (batch, rank)
    back = g @ lora_b  # (batch, out) @ (out, rank) -> (batch, rank)
    d_b = scaling * (g.T @ hidden)  # (out, batch) @ (batch, rank) -> (out, rank)
    d_a = scaling * (back.T @ seen)  # (rank, batch) @ (batch, in) -> (rank, in)
    d_seen = scaling * (back @ lora_a)  # (batch, rank) @ (rank, in) -> (batch, in)
    d_x = g @ weight + (d_seen if mask is None else mask * d_seen)  # (batch, in)
    return LoraGradients(d_a, d_b, d_x.reshape(x.shape))


def layer_gradients(layer: LoraLinear | QLoraLinear, x, upstream, mask=None) -> LoraGradients:
    r"""dA, dB and dx of a layer that is neither merged nor disabled.

    Where dropout acts, `mask` is the `layer.dropout_mask` that the forward pass of this x left.
    """
    if layer.merged or not layer.enabled:
        raise ValueError("the adapter must take part on its own: call unmerge() and enable() before asking gradients")
    if layer.training and layer.config.dropout > 0 and mask is None:
        raise ValueError(
            f"dropout must not act here, got {layer.config.dropout:g}; call eval() first, or give layer.dropout_mask"
        )
    x, upstream = check_array("x", x), check_array("upstream", upstream)
    weight = layer.dequantized_weight() if isinstance(layer, QLoraLinear) else layer.weight
    weight = weight.astype(layer.compute_dtype, copy=False)
    weight = weight.T if layer.config.fan_in_fan_out else weight  # (out, in)
    return lora_gradients(x, upstream, weight, layer.lora_a, layer.lora_b, layer.scaling, mask)
