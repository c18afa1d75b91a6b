r"""Tasks for adapting a network that reads handwritten digits: the same digits turned, moved or renamed.

    900 images upright                  to pre-train on
    450, 100 and 347 images changed     to adapt with, to choose settings with, to test with

No image serves twice; which image serves for what is drawn by the seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lora_edu.datasets import digits
from lora_edu.validate import check_integer, check_real

PRETRAIN, ADAPT, VALIDATE = 900, 450, 100
SIDE = 8


@dataclass(frozen=True, eq=False)
class DigitTask:
    r"""Images as rows (n, 64) float32 in [0, 1], and labels (n,): `pretrain` upright, the others changed.

    `upright` is the test set before the change.
    """

    pretrain: tuple[np.ndarray, np.ndarray]
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    upright: tuple[np.ndarray, np.ndarray]


def digit_task(change: str = "turn 90", labels: int = ADAPT, seed: int = 0) -> DigitTask:
    r"""The digits under one change, with the split that `seed` draws.

    Parameters
    ----------
    change : str
        "turn 90" (any whole angle in degrees, counter-clockwise), "shift 1" (pixels rightwards), "relabel 5" (digit
        d is called d + 5 modulo 10), or "random labels": those of the training images are drawn, which leaves nothing
        to learn but by heart.
    labels : int up to 450
        How many changed images there are to adapt with.
    seed : int
    """
    if check_integer("labels", labels, minimum=1) > ADAPT:
        raise ValueError(f"labels must be at most {ADAPT}, got {labels}")
    images, y = digits()
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    order = rng.permutation(len(images))
    x, y = images[order].astype(np.float32) / 16, y[order].astype(np.int64)  # (1797, 8, 8)
    changed_x, changed_y = changes(change)(x, y)
    parts = np.split(np.arange(len(x)), np.cumsum([PRETRAIN, ADAPT, VALIDATE]))
    pretrain, train, validation, test = parts
    train = train[:labels]

    def rows(x, y, part):
        return np.ascontiguousarray(x[part].reshape(len(part), -1), np.float32), y[part]

    learned = rng.integers(10, size=len(y)) if change == "random labels" else changed_y
    return DigitTask(
        rows(x, y, pretrain),
        rows(changed_x, learned, train),
        rows(changed_x, changed_y, validation),
        rows(changed_x, changed_y, test),
        rows(x, y, test),
    )


def changes(change: str) -> Callable:
    """The function of images (n, 8, 8) and labels that "turn 90", "shift 1", "relabel 5" or "random labels" names."""
    kind, _, amount = change.partition(" ")
    if change == "random labels":
        return lambda x, y: (x, y)
    if kind in ("turn", "shift", "relabel") and amount.lstrip("-").isdigit():
        if kind == "turn":
            return lambda x, y: (turned(x, int(amount)), y)
        if kind == "shift":
            return lambda x, y: (shifted(x, int(amount)), y)
        return lambda x, y: (x, (y + int(amount)) % 10)
    raise ValueError(f"change must be like 'turn 90', 'shift 1', 'relabel 5' or 'random labels', got {change!r}")


def turned(images, degrees: float) -> np.ndarray:
    r"""Images (n, side, side) turned counter-clockwise about their centre: exactly by quarter turns, else bilinear.

    Each new pixel looks up where it came from, and takes the average of the four old pixels around that point, weighted
    by nearness; outside the old image all is 0.
    """
    quarters, rest = divmod(check_real("degrees", degrees), 90)
    images = np.rot90(images, int(quarters), axes=(-2, -1))
    if rest == 0:
        return images
    side = images.shape[-1]
    row, column = np.indices((side, side)) - (side - 1) / 2  # from the centre
    cosine, sine = np.cos(np.deg2rad(rest)), np.sin(np.deg2rad(rest))
    from_row, from_column = cosine * row + sine * column, cosine * column - sine * row
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(2, 2)] * 2)  # room for what looks outside
    from_row = np.clip(from_row + (side - 1) / 2 + 2, 0, side + 2.5)
    from_column = np.clip(from_column + (side - 1) / 2 + 2, 0, side + 2.5)
    top, left = from_row.astype(int), from_column.astype(int)
    down, right = (from_row - top).astype(images.dtype), (from_column - left).astype(images.dtype)
    upper = padded[..., top, left] * (1 - right) + padded[..., top, left + 1] * right
    lower = padded[..., top + 1, left] * (1 - right) + padded[..., top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def shifted(images, pixels: int) -> np.ndarray:
    """Images moved to the right (to the left if negative); what leaves is lost, what enters is 0."""
    moved = np.zeros_like(images)
    width = images.shape[-1]
    source = slice(max(0, -pixels), min(width, width - pixels))
    target = slice(max(0, pixels), min(width, width + pixels))
    moved[..., target] = images[..., source]
    return moved


def quarter_turn() -> np.ndarray:
    r"""The order of the 64 pixels after a quarter turn: the rows of `turned(x, 90)` are those of x, `[:, order]`."""
    return np.rot90(np.arange(SIDE * SIDE).reshape(SIDE, SIDE)).ravel()
