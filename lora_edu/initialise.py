r"""Starts of A and B that take something out of the base weight: PiSSA, OLoRA, LoftQ.

Whatever the method, the promise is the same: the layer starts where the base weight was,

    W ≈ base + scaling · B A                                       W (out, in), A (rank, in), B (out, rank)

    PiSSA   B A = (largest rank singular directions of W) / scaling          base = W - scaling · B A
    OLoRA   W = Q R;  B = Q[:, :rank], A = R[:rank]                          base = W - scaling · B A
    LoftQ   base = quantized(W - scaling · B A),  B A = (largest rank directions of W - base) / scaling,  in turns

PiSSA and OLoRA keep the promise up to rounding. LoftQ leaves an error that is smaller than that of the 4-bit base
alone. PEFT's LoftQ does not divide by the scaling, so there W ≈ base + B A and the layer starts somewhere else unless
alpha equals rank; here it is divided.

Sources: Meng et al. 2024, *PiSSA*; Büyükakyüz 2024, *OLoRA*; Li et al. 2023, *LoftQ*, algorithm 1; PEFT 0.21.2
`tuners/lora/layer.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lora_edu.blockwise import dequantize, quantize
from lora_edu.config import LoraConfig
from lora_edu.linear import LoraLayer, LoraLinear, check_matrix
from lora_edu.validate import check_integer


class Start(NamedTuple):
    r"""A base weight and the pair that goes with it: W ≈ base + scaling · B A.

    `base` is in the stored layout and dtype of W; `lora_a` (rank, in) and `lora_b` (out, rank) are float32, or float64
    over a float64 weight.
    """

    base: np.ndarray
    lora_a: np.ndarray
    lora_b: np.ndarray

    def layer(self, config: LoraConfig, kind: type[LoraLayer] = LoraLinear, **settings) -> LoraLayer:
        r"""A `LoraLinear`, or with `kind` a `QLoraLinear`, over the base with A and B in place; `config` as before."""
        layer = kind(self.base, config, **settings)
        layer.lora_a, layer.lora_b = self.lora_a, self.lora_b
        return layer


def pissa(weight, config: LoraConfig) -> Start:
    r"""A and B begin as the principal part of W, the base as the rest: the directions that matter most are trained.

    Parameters
    ----------
    weight : (out, in) float16, float32 or float64; (in, out) with `config.fan_in_fan_out`
    config : LoraConfig
    """
    wide = _checked(weight, config)  # (out, in)
    a, b = _factors(wide, config)
    return _start(weight, wide - config.scaling * (b @ a), a, b, config)


def olora(weight, config: LoraConfig) -> Start:
    r"""B begins as the first `rank` orthonormal columns of W = Q R, A as the first rows of R; arguments as `pissa`."""
    wide = _checked(weight, config)
    q, r = np.linalg.qr(wide)  # (out, min(out, in)), (min(out, in), in)
    a, b = r[: config.rank], q[:, : config.rank]
    return _start(weight, wide - config.scaling * (b @ a), a, b, config)


def loftq(
    weight, config: LoraConfig, steps: int = 1, round_trip: Callable[[np.ndarray], np.ndarray] | None = None
) -> Start:
    r"""The base is what 4 bits make of W; A and B begin as the best correction of that, in `steps` turns.

    Parameters
    ----------
    weight, config
        As for `pissa`.
    steps : int
        Turns of quantizing and correcting; 1 is one of each.
    round_trip : function, optional
        Quantizes and dequantizes a weight in its stored layout; NF4 in blocks of 64 unless given. It has to leave its
        own result alone, so that a `QLoraLinear` over `base` holds just these codes.

    Returns
    -------
    Start
        `base` is the dequantized weight.
    """
    round_trip = round_trip or (lambda stored: dequantize(quantize(stored)))
    wide = _checked(weight, config)
    weight = np.asarray(weight)
    correction = np.zeros_like(wide)  # scaling · B A
    for _ in range(check_integer("steps", steps, minimum=1)):
        base = round_trip(_stored(wide - correction, weight.dtype, config))
        a, b = _factors(wide - _stored(base, wide.dtype, config), config)
        correction = config.scaling * (b @ a)
    return Start(base, a, b)


def _factors(matrix, config: LoraConfig) -> tuple[np.ndarray, np.ndarray]:
    r"""A and B of the same length with scaling · B A the best approximation of `matrix` of this rank."""
    u, singular, vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(singular[: config.rank] / config.scaling).astype(matrix.dtype)  # (rank,)
    return root[:, None] * vt[: config.rank], u[:, : config.rank] * root


def _checked(weight, config: LoraConfig) -> np.ndarray:
    """W as (out, in) in the precision of the computation."""
    weight = check_matrix("weight", weight)
    if config.rank > min(weight.shape):
        raise ValueError(f"rank must be between 1 and min(out, in) = {min(weight.shape)}, got {config.rank}")
    return _stored(weight, np.result_type(weight.dtype, np.float32), config)


def _start(weight, base, a, b, config) -> Start:
    return Start(_stored(base, np.asarray(weight).dtype, config), np.ascontiguousarray(a), np.ascontiguousarray(b))


def _stored(matrix, dtype, config: LoraConfig) -> np.ndarray:
    """From (out, in) to the stored layout, or back: with `fan_in_fan_out` both ways are a transposition."""
    matrix = matrix.T if config.fan_in_fan_out else matrix
    return np.ascontiguousarray(matrix, dtype)
