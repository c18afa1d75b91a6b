r"""What training holds in memory: weights, their gradients, and what the optimizer remembers of them.

    bytes = weights                                   of all numbers, trained or frozen
          + gradients                                 of the trained numbers only
          + optimizer state                           Adam: two float32 averages for each trained number

Activations are left out: they grow with batch and length, not with the method alone. So is what a program holds beside.

Sources: Dettmers et al. 2023, *QLoRA*, introduction and section 2; Touvron et al. 2023, *LLaMA*, table 2, with the
widths of the feed-forward layers and the vocabulary as in the released configurations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_edu.blockwise import SCALE_BITS
from lora_edu.metrics import bits_per_weight
from lora_edu.qlora import QLoraLinear
from lora_edu.validate import check_integer

METHODS = ("full", "LoRA", "QLoRA")
MOMENTS = 2 * 4  # bytes of Adam's two averages, float32
DOUBLE_QUANT_BITS = bits_per_weight(64, scale_bits=SCALE_BITS["double"])  # 4.127


class Memory(NamedTuple):
    """Bytes, as floats: 4.127 bits a weight need not fill whole bytes."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All three."""
        return sum(self)


@dataclass(frozen=True)
class ModelShape:
    r"""What a model is made of, as far as memory cares.

    Attributes
    ----------
    name : str
    linear : mapping of name to (out, in)
        Of the linear layers in one block, which LoRA adapts and QLoRA quantizes.
    blocks : int
    other : int
        All other numbers: embeddings, head, norms.
    """

    name: str
    linear: Mapping[str, tuple[int, int]]
    blocks: int
    other: int

    @property
    def linear_count(self) -> int:
        """Weights of the linear layers in all blocks."""
        return self.blocks * sum(out * in_ for out, in_ in self.linear.values())

    @property
    def count(self) -> int:
        """All numbers of the model."""
        return self.linear_count + self.other

    def adapter_count(self, rank: int, targets=None) -> int:
        """Numbers of A and B at this rank beside the layers named `targets`, all linear ones unless given."""
        rank = check_integer("rank", rank, minimum=1)
        chosen = [shape for name, shape in self.linear.items() if targets is None or name in targets]
        if not chosen:
            raise ValueError(f"targets must name some of {', '.join(self.linear)}, got {targets!r}")
        return self.blocks * sum(min(rank, out, in_) * (out + in_) for out, in_ in chosen)


def llama(name: str, width: int, blocks: int, hidden: int, vocabulary: int = 32_000) -> ModelShape:
    r"""A LLaMA: q, k, v, o (width, width), gate, up, down (hidden, width), embedding, head, 2 · blocks + 1 norms."""
    linear = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (width, width))
    linear |= {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    return ModelShape(name, linear, blocks, 2 * vocabulary * width + (2 * blocks + 1) * width)


LLAMA = {
    shape.name: shape
    for shape in (
        llama("7B", 4096, 32, 11_008),
        llama("13B", 5120, 40, 13_824),
        llama("33B", 6656, 60, 17_920),
        llama("65B", 8192, 80, 22_016),
    )
}


def training_memory(
    shape: ModelShape,
    method: str,
    rank: int = 64,
    targets=None,
    *,
    float_bytes: int = 2,
    weight_bits: float = DOUBLE_QUANT_BITS,
) -> Memory:
    r"""What a method of fine-tuning holds of a model with these shapes, by formula.

    full     n · w + n · g + n · 8
    LoRA     (n + a) · w + a · g + a · 8
    QLoRA    linear · bits / 8 + (n - linear + a) · w + a · g + a · 8

    n numbers of the model, a those of A and B, w = g = `float_bytes`. QLoRA holds every linear layer of the blocks in 4
    bits, also where only some are adapted; embeddings, head and norms stay as they are.

    Parameters
    ----------
    shape : ModelShape
    method : "full", "LoRA" or "QLoRA"
    rank, targets
        Of the adapter, as for `ModelShape.adapter_count`.
    float_bytes : int
        Of a weight that is not quantized, and of a gradient: 2 for 16 bits.
    weight_bits : float
        Of a quantized weight with its share of the scales: 4.127 with double quantization, 4.5 without.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "full":
        return Memory(shape.count * float_bytes, shape.count * float_bytes, shape.count * MOMENTS)
    adapter = shape.adapter_count(rank, targets)
    weights = shape.count * float_bytes
    if method == "QLoRA":
        weights += shape.linear_count * (weight_bits / 8 - float_bytes)
    return Memory(weights + adapter * float_bytes, adapter * float_bytes, adapter * MOMENTS)


def measured_memory(model, optimizer) -> Memory:
    r"""The same of one of the small models after a training step, counted in the arrays that are really there.

    Parameters
    ----------
    model : Model
    optimizer : Adam or AdamW
        That made the step.
    """
    weights = sum(array.nbytes for array in model.parameters().values())  # with A and B, without what lies under them
    for layer in [] if model.adapter is None else map(model.adapter.get, model.adapter):
        weights += layer.base_bytes if isinstance(layer, QLoraLinear) else layer.weight.nbytes
        weights += 0 if layer.bias is None else layer.bias.nbytes
    gradients = sum(array.nbytes for array in model.gradients().values())
    return Memory(weights, gradients, sum(array.nbytes for array in [*optimizer.m, *optimizer.v]))
