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
from lora_edu.blockwise import QuantizedScales, QuantizedTensor, dequantize, double_quantize, quantize
from lora_edu.codebooks import (
    AF4,
    CODEBOOKS,
    E2M1,
    FP4,
    INT4,
    INT4_ASYMMETRIC,
    NF4,
    Q4_0,
    UNIFORM16,
    Codebook,
    derive_nf4,
)
from lora_edu.config import LoraConfig

# how far from the limit
from lora_edu.limit import gap_bits, gap_db, limit_db
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

# the best codebooks, and what any codebook costs
from lora_edu.optimal import bof4, bof4_signed, entropy_coded, lloyd_max, lloyd_step, mae_best, optimal_levels
from lora_edu.qlora import QLoraLinear
from lora_edu.rng import SeededRng
from lora_edu.theory import ExpectedError, expected_beside_outlier, expected_error

__all__ = [
    "AF4",
    "CODEBOOKS",
    "E2M1",
    "FP4",
    "INT4",
    "INT4_ASYMMETRIC",
    "NF4",
    "Q4_0",
    "UNIFORM16",
    "AdapterSwitch",
    "Codebook",
    "ExpectedError",
    "LoraAdapter",
    "LoraAdapterSummary",
    "LoraConfig",
    "LoraLinear",
    "QLoraLinear",
    "QuantizedScales",
    "QuantizedTensor",
    "SeededRng",
    "bits_per_weight",
    "bof4",
    "bof4_signed",
    "dequantize",
    "derive_nf4",
    "double_quantize",
    "effective_rank",
    "entropy_coded",
    "expected_beside_outlier",
    "expected_error",
    "gap_bits",
    "gap_db",
    "limit_db",
    "lloyd_max",
    "lloyd_step",
    "mae_best",
    "max_error",
    "mean_absolute_error",
    "optimal_levels",
    "quantize",
    "relative_error",
    "rms_error",
    "snr_db",
    "subspace_similarity",
    "truncate_svd",
    "ulp_distance",
]
