r"""One layer of an adapter file: A, B and what stands beside them, without the base weight.

    ΔW = scaling · B A        A (rank, in), B (out, rank); PEFT calls them lora_A and lora_B

The singular values of ΔW need no (out, in) matrix: with B = Q R and Aᵀ = P S they are those of scaling · R Sᵀ, which
is (rank, rank).
"""

from dataclasses import dataclass, replace

import numpy as np

from lora_edu.config import LoraConfig
from lora_edu.linear import LoraLinear
from lora_edu.metrics import effective_rank
from lora_edu.variants import DoraLinear, LoraEmbedding, LoraLinearWithBias


@dataclass(frozen=True, eq=False)
class PeftLayer:
    r"""A and B of one layer with their settings.

    Attributes
    ----------
    lora_a : (rank, in) float32 or float64
    lora_b : (out, rank)
    config : LoraConfig
        With this layer's own rank and alpha.
    magnitude : (out,), optional
        DoRA's m.
    lora_bias : (out,), optional
        The bias of B.
    embedding : bool
        The base is a table (tokens, dim); A is (rank, tokens), B (dim, rank).
    dtype : str
        How the file stores A.
    """

    lora_a: np.ndarray
    lora_b: np.ndarray
    config: LoraConfig
    magnitude: np.ndarray | None = None
    lora_bias: np.ndarray | None = None
    embedding: bool = False
    dtype: str = "F32"

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return self.config.rank

    @property
    def scaling(self) -> float:
        """alpha / rank, or alpha / √rank with rsLoRA."""
        return self.config.scaling

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of ΔW."""
        return self.lora_b.shape[0], self.lora_a.shape[1]

    @property
    def parameter_count(self) -> int:
        """Numbers in A, B, magnitudes and bias."""
        parts = (self.lora_a, self.lora_b, self.magnitude, self.lora_bias)
        return sum(part.size for part in parts if part is not None)

    def delta_weight(self) -> np.ndarray:
        r"""ΔW = scaling · B A, (out, in), float64; for DoRA before the rows are scaled to their magnitudes."""
        return self.scaling * (self.lora_b.astype(np.float64) @ self.lora_a.astype(np.float64))

    def singular_values(self) -> np.ndarray:
        r"""Those of ΔW that can differ from zero, the largest first: (min(rank, out, in),) float64."""
        r = np.linalg.qr(self.lora_b.astype(np.float64), mode="r")  # (min(out, rank), rank)
        s = np.linalg.qr(self.lora_a.astype(np.float64).T, mode="r")  # (min(in, rank), rank)
        return self.scaling * np.linalg.svd(r @ s.T, compute_uv=False)

    def effective_rank(self) -> float | None:
        """exp(entropy of σ / Σσ) of ΔW, between 1 and rank; None where ΔW is zero."""
        singular = self.singular_values()  # (min(rank, out, in),)
        return effective_rank(np.diag(singular)) if singular[0] > 0 else None

    def over(self, weight: np.ndarray, bias: np.ndarray | None = None) -> LoraLinear:
        r"""The adapted layer over a base weight in its stored layout: (out, in), or (in, out) with `fan_in_fan_out`.

        Returns
        -------
        LoraLinear, DoraLinear, LoraLinearWithBias or LoraEmbedding
        """
        if self.embedding:
            layer = LoraEmbedding(weight, replace(self.config, fan_in_fan_out=True))
        elif self.magnitude is not None:
            layer = DoraLinear(weight, self.config, bias=bias, magnitude=self.magnitude)
        elif self.lora_bias is not None:
            layer = LoraLinearWithBias(weight, self.config, bias=bias, lora_bias=self.lora_bias)
        else:
            layer = LoraLinear(weight, self.config, bias=bias)
        layer.lora_a, layer.lora_b = self.lora_a, self.lora_b
        return layer
