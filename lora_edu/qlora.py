r"""A linear layer whose frozen base is kept in 4 bits, under a LoRA pair in full precision.

    y = x @ dequantize(W₄).T + scaling · (x @ A.T) @ B.T + bias

The codes are turned back into numbers a tile at a time, so the full float weight is never held.

Source: Dettmers et al. 2023, *QLoRA*, equation 5.
"""

import numpy as np

from lora_edu.blockwise import QuantizedTensor, dequantize, dequantize_range, quantize
from lora_edu.codebooks import NF4, Codebook
from lora_edu.config import LoraConfig
from lora_edu.linear import LoraLayer, check_matrix, config_from

TILE_WEIGHTS = 2**19  # weights dequantized at a time: the scratch memory does not grow with the layer


class QLoraLinear(LoraLayer):
    r"""A 4-bit base under scaling · B A.

    Parameters
    ----------
    weight : (out, in) float16, float32 or float64; (in, out) with `fan_in_fan_out`
        Quantized at once; the layer does not keep it.
    config, rank, alpha, bias
        As for `LoraLinear`.
    block_size, codebook, nibble_order
        As for `quantize`.
    double_quant : bool
        Store the scales in 8 bits, as QLoRA does: see `double_quantize`.
    seed : int, optional
        Of A and of dropout; 137 + in + out unless given.
    """

    seed_base = 137

    def __init__(
        self,
        weight,
        config: LoraConfig | None = None,
        *,
        rank=None,
        alpha=None,
        bias=None,
        block_size: int = 64,
        codebook: Codebook = NF4,
        nibble_order: str = "low-first",
        double_quant: bool = False,
        seed=None,
    ):
        config = config_from(config, rank, alpha)
        weight = check_matrix("weight", weight)
        out_features, in_features = weight.T.shape if config.fan_in_fan_out else weight.shape
        super().__init__(out_features, in_features, weight.dtype, config, bias, seed)
        storage = "double" if double_quant else "float32"
        self.quantized: QuantizedTensor = quantize(weight, block_size, codebook, nibble_order, storage)

    @property
    def packed(self) -> np.ndarray:
        """The codes, two a byte: (ceil(n / 2),) uint8."""
        return self.quantized.packed

    @property
    def absmax(self) -> np.ndarray:
        """The scale of each block, decoded if it is double-quantized: (blocks,) float32."""
        return self.quantized.scales()

    @property
    def block_size(self) -> int:
        """Weights that share one scale."""
        return self.quantized.block_size

    @property
    def block_count(self) -> int:
        """Number of scales."""
        return self.quantized.block_count

    @property
    def base_size(self) -> int:
        """Number of base weights."""
        return self.quantized.size

    @property
    def base_bytes(self) -> int:
        """Bytes of the 4-bit base: codes and scales."""
        return self.quantized.nbytes

    @property
    def adapter_bytes(self) -> int:
        """Bytes of A and B."""
        return self._lora_a.nbytes + self._lora_b.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits of the base per weight, scales included."""
        return self.quantized.bits_per_weight

    @property
    def memory_saved(self) -> int:
        """Bytes saved against a float32 base: 4 n - codes - scales."""
        return 4 * self.base_size - self.base_bytes

    @property
    def memory_saved_with_zero_points(self) -> int:
        """The reference's figure: it counts a float32 zero point a block beside the scale, though none is stored."""
        return self.memory_saved - 4 * self.block_count

    def dequantized_weight(self) -> np.ndarray:
        """The base that the codes stand for, in its stored layout and dtype."""
        return dequantize(self.quantized)

    def merge(self, keep_base: bool = True):
        """Refused: see the message."""
        raise RuntimeError(
            "a 4-bit base cannot take an update in place: rounding back to 4 bits loses it. "
            "Merge in float instead: LoraLinear(layer.dequantized_weight(), layer.config), with its A and B"
        )

    def _base_output(self, x) -> np.ndarray:
        q = self.quantized
        rows, columns = q.shape
        y = np.zeros((x.shape[0], self.out_features), self.compute_dtype)
        height = max(1, TILE_WEIGHTS // columns)
        tile = np.empty(min(height, rows) * columns, q.dtype)
        for start in range(0, rows, height):
            stop = min(start + height, rows)
            flat = tile[: (stop - start) * columns]
            dequantize_range(q, start * columns, stop * columns, flat)
            weight = flat.reshape(-1, columns).astype(self.compute_dtype, copy=False)
            if self.config.fan_in_fan_out:  # the tile holds inputs start … stop
                y += x[:, start:stop] @ weight  # (batch, tile) @ (tile, out) -> (batch, out)
            else:  # the tile holds outputs start … stop
                y[:, start:stop] = (weight @ x.T).T  # (tile, in) @ (in, batch) -> (batch, tile)
        return y
