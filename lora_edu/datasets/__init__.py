"""Small real data and weights that ship with the package; origin and licences stand in README.md beside them."""

from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from lora_edu.datasets.name_lists import names as names

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


@cache
def sentences() -> tuple[tuple[int, str], ...]:
    """490 sentences of State of the Union addresses, each with its year, 1961 to 2021; half of them hold a negation.

    A negation is one of not, never, no, cannot, or a word that ends in n't; the other half also avoids nor, nothing,
    none, nobody and without.
    """
    rows = [line.split("\t") for line in _lines("sentences.txt")]
    return tuple((int(year), sentence) for year, sentence in rows)


@cache
def everyday() -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Everyday sentences: twenty pairs that say the same thing, and forty that stand alone."""
    rows = [line.split("\t") for line in _lines("everyday.txt")]
    return tuple((row[0], row[1]) for row in rows if len(row) == 2), tuple(row[0] for row in rows if len(row) == 1)


@cache
def minilm_measured() -> dict[str, np.ndarray]:
    """What 4 bits do to all-MiniLM-L6-v2: the tables of `lora_edu.models.measured.measure`; read only."""
    return _load("minilm_measured.npz")


@cache
def names_measured() -> dict[str, np.ndarray]:
    """A name transformer's second language: the tables of `lora_edu.models.name_tables.measure`; read only."""
    return _load("names_measured.npz")


@cache
def negation_measured() -> dict[str, np.ndarray]:
    """How an adapter learns to hear "not": the tables of `lora_edu.models.negation_tables`; read only."""
    return _load("negation_measured.npz")


@cache
def finetuning_measured() -> dict[str, np.ndarray]:
    """Fine-tuning on digits: the tables of `lora_edu.models.finetuning_tables`; read only."""
    return _load("finetuning_measured.npz")


def tiny_llama() -> Path:
    """The folder of a PEFT adapter on q and v of a two-layer Llama with random weights, its base model beside it."""
    return Path(str(files(__package__) / "tiny_llama"))


def _lines(name: str) -> list[str]:
    return (files(__package__) / name).read_text(encoding="utf-8").splitlines()


def _load(name: str) -> dict[str, np.ndarray]:
    with (files(__package__) / name).open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
