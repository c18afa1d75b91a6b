r"""Relatives of `LoraLinear` that PEFT's files hold: DoRA, LoRA with a bias of its own, and LoRA under an embedding.

    LoRA              W' = W + scaling · B A
    DoRA              W' = m / ‖W + scaling · B A‖ ⊙ (W + scaling · B A)       m (out,), the norm of each row
    LoRA with bias    W' = W + scaling · B A      bias' = bias + scaling · β   β (out,)
    embedding         row t of W, plus scaling · A[:, t] Bᵀ                    W (tokens, dim), A (rank, tokens)

Sources: Liu et al. 2024, *DoRA*, equation 5; PEFT 0.21 `tuners/lora/variants.py` and `tuners/lora/layer.py`.
"""

import numpy as np

from lora_edu.config import LoraConfig
from lora_edu.linear import LoraLinear


class DoraLinear(LoraLinear):
    r"""Direction and length apart: scaling · B A turns each row of the weight, the magnitude m says how long it is.

    Parameters
    ----------
    weight, config, rank, alpha, bias, seed
        As for `LoraLinear`.
    magnitude : (out,), optional
        Length of each row; those of the base unless given, so that the layer starts as the base layer.
    """

    def __init__(self, weight, config: LoraConfig | None = None, *, magnitude=None, **settings):
        super().__init__(weight, config, **settings)
        rows = self._base.astype(self.compute_dtype, copy=False)  # (out, in)
        magnitude = np.linalg.norm(rows, axis=1) if magnitude is None else magnitude
        self._magnitude = self._checked("magnitude", magnitude, (self.out_features,), self.compute_dtype)

    @property
    def magnitude(self) -> np.ndarray:
        """m, (out,); assign a whole array to change it."""
        return self._magnitude.copy()

    @magnitude.setter
    def magnitude(self, value):
        self._refuse_while_merged("magnitude")
        self._magnitude = self._checked("magnitude", value, (self.out_features,), self.compute_dtype)

    @property
    def trainable_count(self) -> int:
        """Numbers that training would change: rank · (in + out), and out magnitudes."""
        return super().trainable_count + self._magnitude.size

    def delta_weight(self) -> np.ndarray:
        r"""W' - W in the layout of the stored weight; unlike for LoRA its rank can be full."""
        delta = self._adapted() - self._unmerged()
        return delta.T if self.config.fan_in_fan_out else delta

    def merge(self, keep_base: bool = True):
        r"""W' = m / ‖W + scaling · B A‖ ⊙ (W + scaling · B A), rounded once to the dtype of W.

        The base is always kept, whatever `keep_base` says: no subtraction gives it back once its rows were scaled.
        """
        super().merge(keep_base=True)

    def _add_delta(self, weight, sign, out) -> np.ndarray:
        out[...] = self._adapted()
        return out

    def _adapted(self) -> np.ndarray:
        # m / ‖V‖ ⊙ V with V = W + scaling · B A, (out, in)
        turned = self._unmerged().astype(self.compute_dtype)
        super()._add_delta(turned, +1, out=turned)
        turned *= self._row_gain(turned)[:, None]
        return turned

    def _row_gain(self, turned) -> np.ndarray:
        # m / ‖V‖, (out,); a row without direction stays zero
        length = np.linalg.norm(turned, axis=1)
        return np.divide(self._magnitude, length, out=np.zeros_like(length), where=length > 0)

    def _adapter_output(self, x) -> np.ndarray:
        # what W' adds to x Wᵀ; dropout acts on all of it, as in PEFT
        if self.training and self.config.dropout > 0:
            x = self._dropped(x)
        change = self._adapted() - self._unmerged().astype(self.compute_dtype, copy=False)
        return (change @ x.T).T  # (out, in) @ (in, batch) -> (batch, out)


class LoraLinearWithBias(LoraLinear):
    r"""LoRA whose B has a bias β: scaling · β is added to the output, as long as the adapter takes part.

    Parameters
    ----------
    weight, config, rank, alpha, bias, seed
        As for `LoraLinear`.
    lora_bias : (out,), optional
        β; zero unless given.
    """

    def __init__(self, weight, config: LoraConfig | None = None, *, lora_bias=None, **settings):
        super().__init__(weight, config, **settings)
        lora_bias = np.zeros(self.out_features, self.compute_dtype) if lora_bias is None else lora_bias
        self.lora_bias = self._checked("lora_bias", lora_bias, (self.out_features,), self.compute_dtype)

    @property
    def trainable_count(self) -> int:
        """Numbers that training would change: rank · (in + out), and out biases."""
        return super().trainable_count + self.lora_bias.size

    @property
    def adapted_bias(self) -> np.ndarray:
        r"""bias + scaling · β, (out,): what a merged layer's bias has to be."""
        update = self.compute_dtype.type(self.scaling) * self.lora_bias
        return (update if self.bias is None else self.bias + update).astype(self.dtype)

    def _base_output(self, x) -> np.ndarray:
        y = super()._base_output(x)  # (batch, out)
        return y + self.compute_dtype.type(self.scaling) * self.lora_bias if self.enabled else y


class LoraEmbedding(LoraLinear):
    r"""A table with a row for each token, under LoRA: the input is a one-hot vector, so a product becomes a look-up.

    Parameters
    ----------
    weight : (tokens, dim)
        Stored (in, out), so `config.fan_in_fan_out` must be set.
    config : LoraConfig
    """

    def __init__(self, weight, config: LoraConfig, **settings):
        if not config.fan_in_fan_out:
            raise ValueError("config.fan_in_fan_out must be True: an embedding's weight is stored (tokens, dim)")
        super().__init__(weight, config, **settings)

    def forward(self, tokens) -> np.ndarray:
        r"""Rows of W + scaling · (B A)ᵀ.

        Parameters
        ----------
        tokens : (...,) integers in [0, tokens)

        Returns
        -------
        (..., dim), in the dtype of the table
        """
        tokens = np.asarray(tokens)
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"tokens must be integers, got {tokens.dtype}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.in_features:
            raise ValueError(f"tokens must lie in [0, {self.in_features}), got {tokens.min()} to {tokens.max()}")
        y = self.weight[tokens].astype(self.compute_dtype)  # (..., dim)
        if self.enabled and not self.merged:
            hidden = self.lora_a.T[tokens] * self.compute_dtype.type(self.scaling)  # (..., rank)
            y += hidden @ self.lora_b.T  # (..., rank) @ (rank, dim) -> (..., dim)
        return y.astype(self.dtype, copy=False)

    __call__ = forward
