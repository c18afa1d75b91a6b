r"""LoRA, QLoRA and NF4 in NumPy that reads like the papers.

    W (out, in)   A (rank, in)   B (out, rank)   scaling = alpha / rank   x (in,) or (..., in)
    y = x @ W.T + scaling · (x @ A.T) @ B.T

Importing the package imports NumPy and nothing heavier; pictures live in `lora_edu.plots`, controls in
`lora_edu.explorers`.
"""

# settings and randomness
# one adapted layer, and many
from lora_edu.adapter import AdapterSwitch, LoraAdapter, LoraAdapterSummary

# four bits
from lora_edu.blockwise import QuantizedTensor, dequantize, quantize
from lora_edu.codebooks import NF4, Codebook, derive_nf4
from lora_edu.config import LoraConfig
from lora_edu.linear import LoraLinear

# measures
from lora_edu.metrics import (
    bits_per_weight,
    effective_rank,
    max_error,
    mean_absolute_error,
    relative_error,
    rms_error,
    snr_db,
    subspace_similarity,
    truncate_svd,
    ulp_distance,
)
from lora_edu.qlora import QLoraLinear
from lora_edu.rng import SeededRng

__all__ = [
    "NF4",
    "AdapterSwitch",
    "Codebook",
    "LoraAdapter",
    "LoraAdapterSummary",
    "LoraConfig",
    "LoraLinear",
    "QLoraLinear",
    "QuantizedTensor",
    "SeededRng",
    "bits_per_weight",
    "dequantize",
    "derive_nf4",
    "effective_rank",
    "max_error",
    "mean_absolute_error",
    "quantize",
    "relative_error",
    "rms_error",
    "snr_db",
    "subspace_similarity",
    "truncate_svd",
    "ulp_distance",
]
