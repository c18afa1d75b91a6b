r"""The chapters' fine-tuning runs: a base model, a method, and a record a step.

    base = pretrained_digits(task)
    model, records = fine_tune_digits(base, task, "LoRA", rank=4)
    for record in records:                                        stop whenever you like: the model stays as it is then
        print(record.step, record.loss, record.metrics)

Learning rates are those that did best on validation images or names among 1e-3, 3e-3, 1e-2, 3e-2 and 1e-1.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lora_edu.config import ALL_LINEAR, LoraConfig
from lora_edu.datasets.digit_tasks import DigitTask, quarter_turn
from lora_edu.datasets.name_lists import encode_names, names
from lora_edu.models.adapting import prepare
from lora_edu.models.mlp import MLP, SIZES
from lora_edu.models.model import Model
from lora_edu.models.transformer import CharTransformer
from lora_edu.training import Adam, Record, minibatches, train, warmup_cosine

DIGIT_RATES = {
    "full": 3e-3,
    "scratch": 3e-3,
    "last layer": 3e-2,
    "biases": 3e-2,
    "LoRA": 1e-2,
    "QLoRA": 1e-2,
}
NAME_RATES = {
    "full": 3e-3,
    "scratch": 1e-2,
    "last layer": 3e-2,
    "biases": 3e-2,
    "layer norms": 3e-2,
    "LoRA": 1e-2,
    "QLoRA": 1e-2,
}
DIGIT_STEPS, NAME_STEPS, WARMUP = 560, 400, 20
Run = tuple[Model, Iterator[Record]]


def pretrained_digits(task: DigitTask, seed: int = 0, sizes: Sequence[int] = SIZES) -> MLP:
    """A network that reads upright digits: 40 times through the 900 images of `task.pretrain`, about 0.3 s."""
    model = MLP.initial(sizes, seed)
    steps = 40 * (len(task.pretrain[0]) // 32)
    batches = minibatches(*task.pretrain, 32, steps, seed)
    for _ in train(model, batches, Adam(2e-3), schedule=warmup_cosine(steps, WARMUP)):
        pass
    return model


def fine_tune_digits(
    base: MLP,
    task: DigitTask,
    method: str = "LoRA",
    *,
    rank: int = 4,
    alpha: float | None = None,
    targets=ALL_LINEAR,
    lr: float | None = None,
    steps: int = DIGIT_STEPS,
    seed: int = 0,
    every: int = 20,
    optimizer=None,
    b_ratio: float = 1.0,
    **quantization,
) -> Run:
    r"""A copy of `base` and the records of its fine-tuning on `task.train`; metrics: `accuracy` on the test images.

    Parameters
    ----------
    method : str
        One of `DIGIT_RATES`: see `prepare`.
    rank, alpha, targets
        Of "LoRA" and "QLoRA"; alpha is 2 · rank unless given, so that the scaling is 2 at every rank.
    lr : float, optional
        `DIGIT_RATES[method]` unless given; after a short warm-up it falls to 0 along half a cosine.
    optimizer : optional
        Instead of Adam(lr).
    """
    model = prepare(base, method, _config(method, rank, alpha, targets), seed, **quantization)
    batches = minibatches(*task.train, 32, steps, seed)
    lr = DIGIT_RATES[method] if lr is None else lr
    return model, train(
        model,
        batches,
        Adam(lr) if optimizer is None else optimizer,
        schedule=warmup_cosine(max(steps, WARMUP + 1), WARMUP),
        b_ratio=b_ratio,
        measure=lambda m: {"accuracy": m.accuracy(*task.test)},
        every=every,
    )


def fine_tune_names(
    base: CharTransformer,
    method: str = "LoRA",
    *,
    count: int | None = None,
    rank: int = 4,
    alpha: float | None = None,
    targets=ALL_LINEAR,
    lr: float | None = None,
    steps: int = NAME_STEPS,
    seed: int = 0,
    every: int = 50,
    b_ratio: float = 1.0,
    **quantization,
) -> Run:
    r"""A copy of `base` and the records of its fine-tuning on male names.

    Metrics are bits per letter: `male` on names held out for choosing settings, `female` on what it knew before. The
    arguments are those of `fine_tune_digits`; `count` takes only the first so many names to learn from.
    """
    model = prepare(base, method, _config(method, rank, alpha, targets), seed, **quantization)
    x, y = encode_names(names("male").train[:count])
    male, female = encode_names(names("male").validation), encode_names(names("female").validation)
    lr = NAME_RATES[method] if lr is None else lr
    return model, train(
        model,
        minibatches(x, y, 64, steps, seed),
        Adam(lr),
        schedule=warmup_cosine(max(steps, WARMUP + 1), WARMUP),
        b_ratio=b_ratio,
        measure=lambda m: {"male": m.bits_per_character(*male), "female": m.bits_per_character(*female)},
        every=every,
    )


def two_bit(model: Model, block_size: int = 64) -> Model:
    """A copy whose linear weights have four values a block, evenly from its smallest to its largest weight."""
    new = model.copy()
    for name, weight in model.linear_weights().items():
        new.layers[name].assign("weight", _two_bits(weight, block_size))
    return new


def weight_changes(before: Model, after: Model) -> dict[str, np.ndarray]:
    """ΔW of every linear layer, by name: trained minus base, or scaling · B A where it is under LoRA."""
    if after.adapter is not None:
        return {name: after.adapter[name].delta_weight() for name in after.adapter}
    new = after.linear_weights()
    return {name: new[name] - weight for name, weight in before.linear_weights().items()}


def quarter_turn_fix(weight) -> np.ndarray:
    r"""The ΔW (out, 64) of the first layer that undoes a quarter turn of the images, exactly.

    Turning only reorders pixels, x' = x[order], so W'[:, j] = W[:, order[j]] gives W' x' = W x.
    """
    return weight[:, quarter_turn()] - weight


def truncate_for_data(delta, x, rank: int) -> np.ndarray:
    r"""The matrix of rank at most `rank` whose outputs on the rows of x are nearest to those of `delta`.

    min ‖x (D - ΔW)ᵀ‖  over D of that rank:   D = U_r U_rᵀ ΔW,  U_r the first left singular vectors of ΔW xᵀ

    By Eckart–Young the best outputs of that rank are U_r U_rᵀ (ΔW xᵀ), and D has just these.

    Parameters
    ----------
    delta : (out, in)
    x : (rows, in)
    """
    outputs = np.asarray(delta, np.float64) @ np.asarray(x, np.float64).T  # (out, rows)
    u = np.linalg.svd(outputs, full_matrices=False)[0][:, :rank]  # (out, rank)
    return u @ (u.T @ delta)  # (out, in)


def energy_ranks(matrix, share: float = 0.9) -> tuple[float, int]:
    r"""Over how many directions the energy σ² is spread: exp(entropy of σ² / Σ σ²), and how many hold `share` of it.

    `metrics.effective_rank` weighs the directions by σ instead, and so counts more of the faint ones.
    """
    energy = np.square(np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False))
    energy = energy[energy > 0] / energy.sum()
    return float(np.exp(-np.sum(energy * np.log(energy)))), int(np.searchsorted(np.cumsum(energy), share) + 1)


def _config(method, rank, alpha, targets) -> LoraConfig | None:
    if method not in ("LoRA", "QLoRA"):
        return None
    return LoraConfig(rank=rank, alpha=2 * rank if alpha is None else alpha, target_modules=targets, init="kaiming")


def _two_bits(weight, block_size):
    flat = weight.ravel()
    out = np.empty_like(flat)
    for start in range(0, flat.size, block_size):
        block = flat[start : start + block_size]
        low, step = block.min(), (block.max() - block.min()) / 3 or 1
        out[start : start + block_size] = low + np.rint((block - low) / step) * step
    return out.reshape(weight.shape)
