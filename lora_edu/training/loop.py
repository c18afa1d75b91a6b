r"""The loop: one batch, one step, one record, until the batches end or nobody asks for the next record.

    for record in train(model, minibatches(x, y, steps=600), Adam(lr=0.005)):
        print(record.step, record.loss)

Whoever listens decides: a progress bar counts the records, a plot draws them, a test compares them, and leaving the
`for` loop ends the training. Same model, batches and optimizer, same records, bit for bit on one machine.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from lora_edu.training.losses import cross_entropy
from lora_edu.training.optimizers import constant
from lora_edu.validate import NotFiniteError, check_integer, check_real


class DivergedError(ArithmeticError, ValueError):
    """Training left the finite numbers; the message names the step and the likely cause."""


@dataclass(frozen=True)
class Record:
    r"""What one step left behind.

    Attributes
    ----------
    step : int
        Steps made so far: 1 for the first.
    loss : float
        Of the step's batch, before the step.
    lr : float
        That the step was made with.
    gradient_norm : float
        Of all trained numbers together, √(Σ g²).
    metrics : dict
        What `measure(model)` found after the step; empty at steps where it was not asked.
    """

    step: int
    loss: float
    lr: float
    gradient_norm: float
    metrics: dict = field(default_factory=dict)


def minibatches(x, y, size: int = 32, steps: int = 100, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`steps` batches: the examples in a new order each time round, drawn by `seed`; a rest too small is left out."""
    size = min(check_integer("size", size, minimum=1), len(x))
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must be equally long and not empty, got {len(x)} and {len(y)}")
    rng = np.random.default_rng(seed)
    left = np.arange(0)
    for _ in range(check_integer("steps", steps, minimum=0)):
        if left.size < size:
            left = rng.permutation(len(x))
        chosen, left = left[:size], left[size:]
        yield x[chosen], y[chosen]


def train(
    model,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    optimizer,
    *,
    loss: Callable = cross_entropy,
    schedule: Callable[[int], float] = constant,
    b_ratio: float = 1.0,
    measure: Callable[..., Mapping] | None = None,
    every: int = 1,
) -> Iterator[Record]:
    r"""Train what `model` declares as trained, one step a record.

    Parameters
    ----------
    model : Model
        Changed in place, array by array; arrays that it shares with other models are replaced, not written to.
    batches : iterable of (x, y)
        One step each.
    optimizer : SGD, Adam or AdamW
        Its `lr` is the learning rate that `schedule` scales.
    loss : callable
        (outputs, y) to (number, gradient).
    schedule : callable
        Step, from 1, to the factor of the learning rate.
    b_ratio : float
        LoRA+: every B learns this many times faster than the rest.
    measure : callable, optional
        From the model, without dropout, to a mapping of numbers, at every `every`-th step.

    Raises
    ------
    DivergedError
        At the first loss, gradient or parameter that is not finite. The model keeps its last finite parameters.
    """
    base_lr, check_every = optimizer.lr, check_integer("every", every, minimum=1)
    check_real("b_ratio", b_ratio)
    names = list(model.trained())
    if not names:
        raise ValueError("the model trains nothing; choose something with train_only, or adapt it")
    ratios = None if b_ratio == 1 else [b_ratio if name.endswith("lora_b") else 1.0 for name in names]
    packed = _Packed(model.trained(), ratios)
    losses = []
    try:
        for step, (x, y) in enumerate(batches, start=1):
            optimizer.lr = base_lr * float(schedule(step))
            value, norm = _step(model, packed, x, y, loss, optimizer, losses)
            losses.append(value)
            metrics = {}
            if measure is not None and step % check_every == 0:
                model.train(False)
                metrics = dict(measure(model))
            yield Record(step, value, optimizer.lr, norm, metrics)
    finally:
        optimizer.lr = base_lr
        model.train(False)


class _Packed:
    r"""The trained arrays as one long vector: an optimizer has no use for their shapes, and one vector is faster."""

    def __init__(self, arrays: dict[str, np.ndarray], ratios):
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.ends = np.cumsum([array.size for array in arrays.values()])
        self.vector = self.pack(arrays)
        sizes = [array.size for array in arrays.values()]
        self.ratios = None if ratios is None else [np.repeat(np.asarray(ratios, self.vector.dtype), sizes)]

    def pack(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([arrays[name].ravel() for name in self.shapes])

    def unpack(self, vector) -> dict[str, np.ndarray]:
        parts = np.split(vector, self.ends[:-1])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def _step(model, packed, x, y, loss, optimizer, losses) -> tuple[float, float]:
    model.train()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        try:
            value, upstream = loss(model.forward(x), y)
            if not np.isfinite(value):
                raise NotFiniteError(f"the loss is {value}")
            model.backward(upstream)
            gradient = packed.pack(model.gradients())
            norm = float(np.sqrt(np.sum(np.square(gradient, dtype=np.float64))))
            if not np.isfinite(norm):
                raise NotFiniteError(f"the gradient's norm is {norm}")
            (moved,) = optimizer.step([packed.vector], [gradient], packed.ratios)
            if not np.isfinite(moved).all():
                raise NotFiniteError("the step leads to parameters that are not finite")
        except NotFiniteError as error:
            raise DivergedError(_diagnosis(error, x, losses, optimizer.lr)) from None
    packed.vector = moved
    model.assign(packed.unpack(moved))
    return value, norm


def _diagnosis(error, x, losses, lr) -> str:
    place = f"training stopped at step {len(losses) + 1}: {error}"
    if np.asarray(x).dtype.kind == "f" and not np.isfinite(x).all():
        return f"{place}; the batch itself is not finite: look for NaN or infinity in the data"
    if not losses:
        return f"{place}; no step was made yet: look for weights that are too large, or not finite"
    history = " → ".join(f"{value:.3g}" for value in losses[-3:])
    return f"{place} after losses of {history}; most likely the learning rate {lr:g} is too high: try {lr / 10:g}"
