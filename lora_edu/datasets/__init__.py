"""Small real data and weights that ship with the package; origin and licences stand in README.md beside them."""

from functools import cache
from importlib.resources import files

import numpy as np

QUERY = "encoder.layer.1.attention.self.query.weight"
ATTENTION_OUTPUT = "encoder.layer.0.attention.output.dense.weight"
FFN_DOWN = "encoder.layer.0.output.dense.weight"


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: images (1797, 8, 8) uint8 with values 0 to 16, and labels (1797,) uint8; read only."""
    arrays = _load("digits.npz")
    return arrays["images"], arrays["labels"]


@cache
def minilm_weights() -> dict[str, np.ndarray]:
    """Three weight matrices (out, in) of the sentence encoder all-MiniLM-L6-v2 by their original names; read only.

    `QUERY` (384, 384) float32 is as Gaussian as real weights get; `ATTENTION_OUTPUT` (384, 384) float32 has entries of
    24 standard deviations; `FFN_DOWN` (384, 1536) float16 one of 175.
    """
    return _load("minilm_weights.npz")


def _load(name: str) -> dict[str, np.ndarray]:
    with (files(__package__) / name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
