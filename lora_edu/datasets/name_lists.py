r"""First names, in letters that a small model can count on its fingers: loading, splitting, encoding.

    "ada"  ->  ids  . a d a        targets  a d a .        the model is asked for the next letter at every place

Id 0 is the full stop, which both starts and ends a name; a to z are 1 to 26. Places after the end have the target
`IGNORED` and count nowhere.
"""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from lora_edu.rng import SeededRng

ALPHABET = ".abcdefghijklmnopqrstuvwxyz"
LONGEST = 12  # letters; with the full stop, a name fills at most 13 places
IGNORED = -1
HELD_OUT = 400  # names of each kind for validation, and as many for the test


class NameSplit(NamedTuple):
    """Names for training, for choosing settings, and for the final figure: three tuples of lower-case words."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


@cache
def names(kind: str) -> NameSplit:
    r"""English first names, "female" or "male", split for good: 400 to validate, 400 to test, the rest to train.

    Lower case, letters only, at most 12 of them, each name once. The 419 names that stand in both lists are female
    here, so that no male name has been seen by a model of the female ones.
    """
    if kind not in ("female", "male"):
        raise ValueError(f"kind must be 'female' or 'male', got {kind!r}")
    found = _cleaned(kind)
    if kind == "male":
        female = set(_cleaned("female"))
        found = [name for name in found if name not in female]
    order = np.argsort(SeededRng(2021).uniform(len(found)), kind="stable")  # the same on every machine
    shuffled = tuple(found[i] for i in order)
    return NameSplit(shuffled[2 * HELD_OUT :], shuffled[:HELD_OUT], shuffled[HELD_OUT : 2 * HELD_OUT])


def encode_names(words: Sequence[str], length: int = LONGEST + 1) -> tuple[np.ndarray, np.ndarray]:
    r"""Ids and targets, both (names, length) int64; `targets` is `ids` one place further on.

    Raises ValueError for a name that is too long or has other letters.
    """
    if isinstance(words, str):
        raise TypeError("words must be a list of names, got one string; put it in brackets")
    ids = np.zeros((len(words), length), np.int64)
    targets = np.full((len(words), length), IGNORED, np.int64)
    for row, word in enumerate(words):
        letters = [ALPHABET.find(letter) for letter in word]
        if len(letters) >= length or min(letters, default=1) < 1:
            raise ValueError(f"words[{row}] must be 0 to {length - 1} letters from a to z, got {word!r}")
        ids[row, 1 : len(letters) + 1] = letters
        targets[row, : len(letters) + 1] = [*letters, 0]
    return ids, targets


def decode_names(ids) -> list[str]:
    """The names that rows of ids spell, up to their first full stop after the start."""
    return ["".join(ALPHABET[i] for i in row[1:]).partition(".")[0] for row in ids]


def _cleaned(kind: str) -> list[str]:
    text = (files(__package__) / f"names_{kind}.txt").read_text(encoding="ascii").lower()
    words = (word for word in text.split() if word.isalpha() and len(word) <= LONGEST)
    return list(dict.fromkeys(words))
