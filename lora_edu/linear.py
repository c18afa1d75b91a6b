r"""One linear layer under a LoRA pair.

    W (out, in)   frozen base weight
    A (rank, in)  random at the start
    B (out, rank) zero at the start, so that the layer starts as the base layer
    scaling       alpha / rank

    y = x @ W.T + scaling · (x @ A.T) @ B.T + bias         x is (in,) or (..., in)

float32 and float64 weights are computed in their own precision; float16 weights are computed in float32 and the result
is rounded to float16. A and B are float32, or float64 over a float64 base.

Sources: Hu et al. 2021, *LoRA*, equation 3; PEFT 0.21 `tuners/lora/layer.py` for dropout, merging and `fan_in_fan_out`.
"""

import copy
import math
from contextlib import contextmanager

import numpy as np

from lora_edu.config import LoraConfig
from lora_edu.rng import SeededRng
from lora_edu.validate import check_array, check_integer

MERGE_WEIGHTS = 2**18  # weights merged at a time: the scratch memory does not grow with the layer
SMALL_BATCH = 32  # rows up to which (W xᵀ)ᵀ is computed instead of x Wᵀ


class LoraLayer:
    r"""A frozen base of shape (out, in) and the pair A, B; what `LoraLinear` and `QLoraLinear` share.

    A subclass says what the base computes (`_base_output`) and holds (`base_size`); everything about the adapter
    stands here.
    """

    seed_base: int  # the default seed is seed_base + in + out

    def __init__(self, out_features, in_features, dtype, config, bias, seed):
        limit = min(out_features, in_features)
        if config.rank > limit:
            raise ValueError(f"rank must be between 1 and min(out, in) = {limit}, got {config.rank}")
        self.out_features, self.in_features, self.dtype, self.config = out_features, in_features, dtype, config
        self.compute_dtype = np.result_type(dtype, np.float32)
        if config.scaling > float(np.finfo(self.compute_dtype).max):
            raise ValueError(
                f"alpha must give a scaling that fits into {self.compute_dtype}, "
                f"got alpha {config.alpha:g} and scaling {config.scaling:g}; choose a smaller alpha"
            )
        self.bias = None if bias is None else self._checked("bias", bias, (out_features,), dtype)
        seed = self.seed_base + in_features + out_features if seed is None else check_integer("seed", seed, minimum=0)
        self._lora_a = initial_lora_a(config, in_features, seed).astype(self.compute_dtype)  # (rank, in)
        self._lora_b = np.zeros((out_features, config.rank), self.compute_dtype)  # (out, rank)
        self._dropout_rng = np.random.default_rng(seed)
        self.dropout_mask = None  # of the last forward pass in training: what its backward pass needs
        self.enabled, self.training, self.merged = True, False, False

    @property
    def rank(self) -> int:
        """Rows of A, columns of B."""
        return self.config.rank

    @property
    def alpha(self) -> float:
        """Strength of the update."""
        return self.config.alpha

    @property
    def scaling(self) -> float:
        """alpha / rank, or alpha / √rank with rsLoRA."""
        return self.config.scaling

    @property
    def lora_a(self) -> np.ndarray:
        """A, (rank, in); assign a whole array to change it."""
        return _read_only(self._lora_a)

    @lora_a.setter
    def lora_a(self, value):
        self._refuse_while_merged("lora_a")
        self._lora_a = self._checked("lora_a", value, self._lora_a.shape, self.compute_dtype)

    @property
    def lora_b(self) -> np.ndarray:
        """B, (out, rank); assign a whole array to change it."""
        return _read_only(self._lora_b)

    @lora_b.setter
    def lora_b(self, value):
        self._refuse_while_merged("lora_b")
        self._lora_b = self._checked("lora_b", value, self._lora_b.shape, self.compute_dtype)

    @property
    def trainable_count(self) -> int:
        """Numbers that training would change: rank · (in + out)."""
        return self._lora_a.size + self._lora_b.size

    @property
    def total_count(self) -> int:
        """Base weight, bias, A and B together."""
        return self.base_size + (0 if self.bias is None else self.bias.size) + self.trainable_count

    @property
    def trainable_ratio(self) -> float:
        """trainable_count / total_count."""
        return self.trainable_count / self.total_count

    def delta_weight(self) -> np.ndarray:
        r"""ΔW = scaling · B A in the layout of the stored weight: (out, in), or (in, out) with `fan_in_fan_out`."""
        delta = self._lora_b @ self._lora_a  # (out, rank) @ (rank, in) -> (out, in)
        delta *= self.compute_dtype.type(self.scaling)
        return delta.T if self.config.fan_in_fan_out else delta

    def forward(self, x) -> np.ndarray:
        r"""y = x @ W.T + scaling · (x @ A.T) @ B.T + bias.

        Parameters
        ----------
        x : (in,) or (..., in) float16, float32 or float64

        Returns
        -------
        (out,) or (..., out), in the dtype of the base weight
        """
        x = check_array("x", x)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"x must end in {self.in_features} features, got shape {x.shape}")
        if x.dtype.itemsize > self.compute_dtype.itemsize:
            x = self._checked("x", x, x.shape, self.compute_dtype)  # a float64 too large for float32 is refused
        rows = x.reshape(-1, self.in_features).astype(self.compute_dtype, copy=False)  # (batch, in)
        y = self._base_output(rows)  # (batch, out)
        if self.enabled and not self.merged:
            y += self._adapter_output(rows)
        if self.bias is not None:
            y += self.bias
        return y.astype(self.dtype, copy=False).reshape(*x.shape[:-1], self.out_features)

    __call__ = forward

    def _adapter_output(self, x) -> np.ndarray:
        # scaling · (x Aᵀ) Bᵀ
        if self.training and self.config.dropout > 0:
            x = self._dropped(x)
        hidden = (x @ self._lora_a.T) * self.compute_dtype.type(self.scaling)  # (batch, rank)
        return hidden @ self._lora_b.T  # (batch, rank) @ (rank, out) -> (batch, out)

    def _dropped(self, x) -> np.ndarray:
        """Inverted dropout: what is kept is divided by the share kept, so that the mean stays."""
        keep = self.compute_dtype.type(1 - self.config.dropout)
        kept = (self._dropout_rng.random(x.shape) < keep).astype(x.dtype) if keep else np.zeros_like(x)
        self.dropout_mask = kept / keep if keep else kept  # (batch, in), entries 0 or 1 / keep
        return x * self.dropout_mask

    def copy(self):
        """A layer over the same base, which is shared, with an A, a B and a dropout of its own."""
        new = copy.copy(self)  # A and B are only ever replaced whole
        new._dropout_rng = copy.deepcopy(self._dropout_rng)
        return new

    def train(self, training: bool = True):
        """Training mode: dropout acts. Returns the layer."""
        self.training = training
        return self

    def eval(self):
        """Evaluation mode: dropout is off. Returns the layer."""
        return self.train(False)

    def enable(self):
        """The adapter takes part again."""
        self.enabled = True

    def disable(self):
        """The layer computes its base, also where the adapter was merged."""
        self.enabled = False

    @contextmanager
    def disabled(self):
        """`with layer.disabled():` computes the base inside, and restores what was before."""
        before, self.enabled = self.enabled, False
        try:
            yield self
        finally:
            self.enabled = before

    def _refuse_while_merged(self, name):
        if self.merged:
            raise RuntimeError(f"{name} cannot change while the adapter is merged; call unmerge() first")

    @staticmethod
    def _checked(name, value, shape, dtype) -> np.ndarray:
        value = check_array(name, value)
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
        if value.dtype == dtype:
            return value.copy()
        with np.errstate(over="ignore"):
            return check_array(f"{name} in {dtype}", value.astype(dtype))


class LoraLinear(LoraLayer):
    r"""A linear layer whose frozen weight is adapted by scaling · B A.

    Parameters
    ----------
    weight : (out, in) float16, float32 or float64; (in, out) with `fan_in_fan_out`
        Kept by reference and never modified.
    config : LoraConfig, optional
        Or give `rank` and `alpha`.
    rank, alpha : optional
        A short way to write `LoraConfig(rank=rank, alpha=alpha)`; alpha defaults to rank, so that scaling is 1.
    bias : (out,), optional
    seed : int, optional
        Of A and of dropout; 42 + in + out unless given.

    Raises
    ------
    TypeError, ValueError
        For a weight that is not a finite floating matrix, or a rank above min(out, in).
    """

    seed_base = 42

    def __init__(self, weight, config: LoraConfig | None = None, *, rank=None, alpha=None, bias=None, seed=None):
        config = config_from(config, rank, alpha)
        weight = check_matrix("weight", weight)
        self._base = _read_only(weight.T if config.fan_in_fan_out else weight)  # (out, in), never copied
        self._merged_weight = None
        super().__init__(*self._base.shape, weight.dtype, config, bias, seed)

    @property
    def base_size(self) -> int:
        """Number of base weights."""
        return self.out_features * self.in_features

    @property
    def weight(self) -> np.ndarray:
        """The weight that `forward` multiplies by, in its stored layout: the base, or base + ΔW while merged."""
        weight = self._merged_weight if self.merged and self.enabled else self._unmerged()
        return _read_only(weight.T if self.config.fan_in_fan_out else weight)

    def merge(self, keep_base: bool = True):
        r"""W' = W + scaling · B A, rounded once to the dtype of W.

        Parameters
        ----------
        keep_base : bool
            Keep the base, so that `unmerge` restores it bit for bit (at the price of holding both); or let it go, so
            that `unmerge` has to subtract, which does not give every bit back.
        """
        if self.merged:
            raise RuntimeError("the adapter is already merged; call unmerge() before merging again")
        merged = np.empty_like(self._base)
        with np.errstate(over="ignore"):
            self._add_delta(self._base, +1, out=merged)
        if self.dtype == np.float16 and not np.isfinite(merged).all():
            raise ValueError(f"the merged weight does not fit into {self.dtype}; merge over a float32 weight instead")
        self._merged_weight, self.merged = merged, True
        if not keep_base:
            self._base = None

    def unmerge(self):
        """Back to the base: the kept one bit for bit, or merged - ΔW where it was let go."""
        if not self.merged:
            raise RuntimeError("the adapter is not merged; call merge() first")
        self._base = _read_only(self._unmerged())
        self._merged_weight, self.merged = None, False

    def _unmerged(self) -> np.ndarray:
        if self._base is not None:
            return self._base
        return self._add_delta(self._merged_weight, -1, out=np.empty_like(self._merged_weight))

    def _add_delta(self, weight, sign, out) -> np.ndarray:
        # out = weight ± (scaling · B) A, a few rows at a time
        factor = self.compute_dtype.type(sign * self.scaling)
        height = max(1, MERGE_WEIGHTS // self.in_features)
        for start in range(0, self.out_features, height):
            rows = slice(start, start + height)
            delta = self._lora_b[rows] @ self._lora_a  # (rows, rank) @ (rank, in) -> (rows, in)
            delta *= factor
            np.add(weight[rows], delta, out=out[rows], casting="same_kind")
        return out

    def _base_output(self, x) -> np.ndarray:
        weight = self._merged_weight if self.merged and self.enabled else self._unmerged()
        weight = weight.astype(self.compute_dtype, copy=False)
        if len(x) > SMALL_BATCH:
            return x @ weight.T  # (batch, in) @ (in, out) -> (batch, out)
        return (weight @ x.T).T  # the same numbers, but faster: (out, in) @ (in, batch) -> (batch, out)


def initial_lora_a(config: LoraConfig, in_features: int, seed: int) -> np.ndarray:
    r"""A (rank, in) float32 as `config.init` says.

    reference   value · √(2 / in), value uniform in [-1, 1): standard deviation √(2 / (3 in))
    kaiming     U(-1/√in, 1/√in), as PEFT: standard deviation 1 / √(3 in)
    gaussian    N(0, 1/rank²), as PEFT
    """
    shape = (config.rank, in_features)
    if config.init == "reference":
        return SeededRng(seed).uniform(shape) * np.sqrt(np.float32(2 / in_features))
    rng = np.random.default_rng(seed)
    if config.init == "kaiming":
        bound = 1 / math.sqrt(in_features)
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    return rng.normal(0, 1 / config.rank, shape).astype(np.float32)


def config_from(config, rank, alpha) -> LoraConfig:
    """The config given, or one of `rank` and `alpha`; not both."""
    if config is not None:
        if rank is not None or alpha is not None:
            raise ValueError("give either config or rank and alpha, not both")
        if not isinstance(config, LoraConfig):
            raise TypeError(f"config must be a LoraConfig, got {config!r}")
        return config
    if rank is None:
        raise ValueError("give a config, or a rank (and alpha)")
    return LoraConfig(rank=rank, alpha=rank if alpha is None else alpha)


def check_matrix(name, value) -> np.ndarray:
    """`value` as a finite floating matrix that is not empty, or an error."""
    matrix = check_array(name, value)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"{name} must be a matrix (out, in) that is not empty, got shape {matrix.shape}")
    return matrix


def _read_only(array) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
