r"""The slow tables of the chapter on fine-tuning: `python -m lora_edu.models.finetuning_tables` computes all of them.

It takes about a quarter of an hour; names after the command, `rates plus`, compute these again and keep the others.
Every table is one function here, so that a test can compute a part again. Accuracies are kept as the number of test
images answered correctly (of 347), which is exact and small; a run that diverged counts as 0.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from lora_edu.config import LoraConfig
from lora_edu.datasets.digit_tasks import DigitTask, digit_task
from lora_edu.metrics import truncate_svd
from lora_edu.models.adapting import adapt
from lora_edu.models.finetuning import (
    DIGIT_RATES,
    DIGIT_STEPS,
    WARMUP,
    Run,
    fine_tune_digits,
    pretrained_digits,
    quarter_turn_fix,
    truncate_for_data,
    two_bit,
    weight_changes,
)
from lora_edu.models.mlp import MLP, SIZES
from lora_edu.models.model import Model
from lora_edu.training import SGD, Adam, DivergedError, cross_entropy, minibatches, train, warmup_cosine

SEEDS = range(10)
TESTED = 347  # images of every test set
EVERY = 20  # steps between two points of a curve

RANKS = (1, 2, 4, 8, 16)
WAYS: dict[str, dict] = {  # name -> arguments of fine_tune_digits
    **{name: {"method": name} for name in ("full", "scratch", "last layer", "biases")},
    **{f"r = {rank}": {"method": "LoRA", "rank": rank} for rank in RANKS},
}
CURVE_CHANGES = ("turn 90", "turn 20", "relabel 5")

BASES: dict[str, Callable[[Model], Model]] = {
    "fp32": lambda model: model,
    "NF4": lambda model: model.rounded(),
    "2-bit": two_bit,
}
BASE_RANKS = (0, 1, 4, 8)  # 0: no adapter
BASE_CHANGES = ("turn 0", "turn 90")

CHANGES = ("turn 10", "turn 20", "turn 30", "turn 45", "turn 90", "shift 1", "relabel 5")
LABELS = (10, 30, 100, 450)
STEPS = {10: 150, 30: 150, 100: 300, 450: DIGIT_STEPS}  # by number of labels
TRANSFER_WAYS = ("scratch", "last layer", "r = 1", "r = 2", "r = 4", "r = 8", "full")
TRANSFER_RATES = {"full": (1e-3, 3e-3, 1e-2), "scratch": (1e-3, 3e-3, 1e-2), "last layer": (1e-2, 3e-2, 1e-1)}
LORA_RATES = (3e-3, 1e-2, 3e-2)

WIDE = (64, 256, 256, 10)  # its fc2 is 256 x 256: room for any rank
MOMENTS = {"1 epoch": 14, "5 epochs": 70, "40 epochs": DIGIT_STEPS}  # of 450 // 32 = 14 steps each
SPECTRA = (*MOMENTS, "pre-training", "random labels", "random labels, noise", "base W", "random matrix")
SPECTRUM_SEEDS = range(8)

SQUARE = (64, 64, 64, 64, 10)
FIX_RANKS = (1, 2, 4, 8, 16, 32)
FIXES = ("plain", "weighted", "full, cut", "LoRA", "LoRA, long")
PICTURED_SEED = 0

SCALED_RANKS = (1, 4, 16, 64, 256)
RULES = {"α / r": False, "α / √r": True}  # -> use_rslora
ALPHA = 16
OPTIMIZERS = {"SGD": SGD, "Adam": Adam}
RATES = (3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FIRST_RATES = {"SGD": 0.05, "Adam": 0.001}
SHORT = 100  # steps of these runs

RATIOS = (1, 2, 4, 8, 16, 32)
PLUS_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@cache
def problem(
    change: str = "turn 90", labels: int = 450, seed: int = 0, sizes: tuple[int, ...] = SIZES
) -> tuple[DigitTask, MLP]:
    """A task and the network that reads its upright digits."""
    task = digit_task(change, labels, seed)
    return task, _pretrained(seed, sizes)


@cache
def _pretrained(seed, sizes) -> MLP:
    """Every change of one seed starts from the same upright images, so from the same network."""
    return pretrained_digits(digit_task(seed=seed), seed, sizes)


def correct(model: Model, task: DigitTask) -> int:
    """Test images that the model answers correctly."""
    return round(model.accuracy(*task.test) * len(task.test[0]))


def tuned(base: MLP, task: DigitTask, seed: int, **settings) -> Model:
    """The model after fine-tuning, measured nowhere on its way."""
    model, records = fine_tune_digits(base, task, seed=seed, every=10**6, **settings)
    for _ in records:
        pass
    return model


def curve(change: str, way: str, seed: int) -> list[int]:
    """Correct answers before the first step and after every `EVERY`-th."""
    task, base = problem(change, seed=seed)
    model, records = fine_tune_digits(base, task, seed=seed, every=EVERY, **WAYS[way])
    start = correct(model, task)
    found = [record.metrics["accuracy"] for record in records if record.metrics]
    return [start, *(round(accuracy * TESTED) for accuracy in found)]


def pictured(task: DigitTask) -> np.ndarray:
    """Places of the first test image of each digit, 0 to 9."""
    return np.array([np.flatnonzero(task.test[1] == digit)[0] for digit in range(10)])


def measure_curves() -> dict:
    r"""`curves` (changes, ways, seeds, points), and `upright` (seeds) before any change.

    `answers` (3, 10): what the network of the first seed says to `pictured` upright, turned, and turned after LoRA.
    """
    curves = [[[curve(change, way, seed) for seed in SEEDS] for way in WAYS] for change in CURVE_CHANGES]
    upright = [correct(*reversed(problem("turn 0", seed=seed))) for seed in SEEDS]
    task, base = problem()
    shown, after = pictured(task), tuned(base, task, 0, **WAYS["r = 4"])
    asked = ((base, task.upright), (base, task.test), (after, task.test))
    answers = [model(images[shown]).argmax(axis=1) for model, (images, _) in asked]
    return {
        "curves": np.array(curves, np.uint16),
        "upright": np.array(upright, np.uint16),
        "answers": np.array(answers, np.uint8),
    }


def adapted(base: str, model: MLP, task: DigitTask, rank: int, seed: int = 0, every: int = 10**6) -> Run:
    """A LoRA of this rank over the model in one of `BASES`: in NF4 it is QLoRA, the weight stays packed."""
    if base == "NF4":
        return fine_tune_digits(model, task, "QLoRA", rank=rank, seed=seed, every=every)
    return fine_tune_digits(BASES[base](model), task, "LoRA", rank=rank, seed=seed, every=every)


def over_base(change: str, base: str, rank: int, seed: int) -> int:
    """Correct answers of a rounded base, alone at rank 0, else after a LoRA was trained; "turn 0" only repairs it."""
    task, model = problem(change, seed=seed)
    if not rank:
        return correct(BASES[base](model), task)
    after, records = adapted(base, model, task, rank, seed)
    for _ in records:
        pass
    return correct(after, task)


def measure_bases() -> dict:
    """`bases` (BASE_CHANGES, BASES, BASE_RANKS, seeds)."""
    found = [
        [[[over_base(change, base, rank, seed) for seed in SEEDS] for rank in BASE_RANKS] for base in BASES]
        for change in BASE_CHANGES
    ]
    return {"bases": np.array(found, np.uint16)}


def transferred(change: str, labels: int, way: str, seed: int) -> int:
    """Correct answers at the learning rate that did best on the task's 100 validation images; the lower one if tied."""
    task, base = problem(change, labels, seed)
    rates = TRANSFER_RATES.get(way, LORA_RATES)
    models = [tuned(base, task, seed, lr=lr, steps=STEPS[labels], **WAYS[way]) for lr in rates]
    return correct(max(models, key=lambda model: model.accuracy(*task.validation)), task)


def measure_transfer() -> dict:
    """`transfer` (changes, labels, ways, seeds); `zero_shot` (changes, seeds), of the network as it was."""
    transfer = [
        [[[transferred(change, labels, way, seed) for seed in SEEDS] for way in TRANSFER_WAYS] for labels in LABELS]
        for change in CHANGES
    ]
    zero = [[correct(*reversed(problem(change, seed=seed))) for seed in SEEDS] for change in CHANGES]
    return {"transfer": np.array(transfer, np.uint16), "zero_shot": np.array(zero, np.uint16)}


def spectrum_matrices(seed: int) -> dict[str, np.ndarray]:
    """What the spectra are of: changes of the 256 x 256 layer, and matrices to compare them with."""
    task, base = problem(seed=seed, sizes=WIDE)
    weight = base.linear_weights()["fc2"]
    found = {}
    model, records = fine_tune_digits(base, task, "full", seed=seed, every=10**6)
    for record in records:
        for moment, step in MOMENTS.items():
            if record.step == step:
                found[moment] = weight_changes(base, model)["fc2"]
    found["pre-training"] = weight - MLP.initial(WIDE, seed).linear_weights()["fc2"]
    drawn = digit_task("random labels", seed=seed)
    rng = np.random.default_rng(seed)
    size = np.sqrt(np.mean(drawn.train[0] ** 2))
    noise = (size * rng.standard_normal(drawn.train[0].shape)).astype(np.float32)
    for name, images in (("random labels", drawn.train[0]), ("random labels, noise", noise)):
        by_heart = replace(drawn, train=(images, drawn.train[1]))
        model = tuned(base, by_heart, seed, method="full", steps=5 * DIGIT_STEPS)
        found[name] = weight_changes(base, model)["fc2"]
    found["base W"] = weight
    found["random matrix"] = rng.standard_normal(weight.shape)
    return found


def measure_spectra() -> dict:
    """`spectra` (kinds, seeds, 256), singular values; `input_spectra` (seeds, 64), those of the images."""
    values = [[np.linalg.svd(m, compute_uv=False) for m in spectrum_matrices(seed).values()] for seed in SPECTRUM_SEEDS]
    inputs = [np.linalg.svd(problem(seed=seed)[0].train[0], compute_uv=False) for seed in SPECTRUM_SEEDS]
    return {
        "spectra": np.array(values, np.float16).swapaxes(0, 1),
        "input_spectra": np.array(inputs, np.float16),
    }


def first_layer(base: MLP, task: DigitTask, delta) -> int:
    """Correct answers with `delta` added to the first weight."""
    model = base.copy()
    model.assign({"fc1.weight": (base.linear_weights()["fc1"] + delta).astype(np.float32)})
    return correct(model, task)


def trained_pair(base: MLP, task: DigitTask, rank: int, seed: int, steps: int = DIGIT_STEPS) -> Model:
    """A LoRA of this rank on the first layer alone."""
    return tuned(base, task, seed, method="LoRA", rank=rank, targets=("fc1",), steps=steps)


def fixes(rank: int, seed: int) -> list[int]:
    """Correct answers of `FIXES` at one rank: three matrices cut to it, and a pair trained at it."""
    task, base = problem(seed=seed, sizes=SQUARE)
    fix = quarter_turn_fix(base.linear_weights()["fc1"])
    learned = _first_change(seed)
    cut = (truncate_svd(fix, rank)[0], truncate_for_data(fix, task.train[0], rank), truncate_svd(learned, rank)[0])
    trained = [trained_pair(base, task, rank, seed, steps) for steps in (DIGIT_STEPS, 4 * DIGIT_STEPS)]
    return [*(first_layer(base, task, delta) for delta in cut), *(correct(model, task) for model in trained)]


@cache
def _first_change(seed) -> np.ndarray:
    """ΔW of the first layer where that weight alone was trained, at full rank."""
    task, base = problem(seed=seed, sizes=SQUARE)
    model = base.copy().train_only(lambda name: name == "fc1.weight")
    batches, schedule = minibatches(*task.train, 32, DIGIT_STEPS, seed), warmup_cosine(DIGIT_STEPS, WARMUP)
    for _ in train(model, batches, Adam(DIGIT_RATES["full"]), schedule=schedule):
        pass
    return weight_changes(base, model)["fc1"]


def measure_fixes() -> dict:
    """`fixes` (FIXES, ranks, seeds); of the pictured seed `fix_weight`, the first weight, and `fix_trained` by rank."""
    found = np.array([[fixes(rank, seed) for seed in SEEDS] for rank in FIX_RANKS], np.uint16)
    task, base = problem(seed=PICTURED_SEED, sizes=SQUARE)
    pairs = [trained_pair(base, task, rank, PICTURED_SEED).adapter["fc1"] for rank in FIX_RANKS]
    return {
        "fixes": found.transpose(2, 0, 1),
        "fix_weight": base.linear_weights()["fc1"].astype(np.float16),
        "fix_trained": np.array([pair.delta_weight() for pair in pairs], np.float16),
    }


def scaled(base: MLP, rank: int, rule: str, seed: int) -> Model:
    """The wide network with its middle layer under LoRA."""
    config = LoraConfig(rank=rank, alpha=ALPHA, use_rslora=RULES[rule], target_modules=("fc2",), init="kaiming")
    return adapt(base, config, seed=seed)


def short_run(optimizer: str, rule: str, rank: int, lr: float, seed: int) -> tuple[int, int]:
    """Correct answers after `SHORT` steps at a constant learning rate: of 100 validation images, of the test images."""
    task, base = problem(seed=seed, sizes=WIDE)
    return _run(scaled(base, rank, rule, seed), OPTIMIZERS[optimizer](lr), task, seed)


def _run(model, optimizer, task, seed, **settings) -> tuple[int, int]:
    try:
        for _ in train(model, minibatches(*task.train, 32, SHORT, seed), optimizer, **settings):
            pass
        with np.errstate(over="raise", invalid="raise"):
            return round(100 * model.accuracy(*task.validation)), correct(model, task)
    except (DivergedError, FloatingPointError):
        return 0, 0


def first_step(optimizer: str, rule: str, rank: int, seed: int = 0) -> tuple[float, float]:
    """‖dB‖ at the start, and by how much, relatively, the first step changes what the layer puts out."""
    task, base = problem(seed=seed, sizes=WIDE)
    model = scaled(base, rank, rule, seed)
    model.backward(cross_entropy(model.forward(task.train[0]), task.train[1])[1])
    gradient = np.linalg.norm(model.gradients()["fc2.lora_b"])
    base.forward(task.test[0])
    hidden, before = base.layers["fc2"].x, base.layers["fc2"].forward(base.layers["fc2"].x)
    for _ in train(model, [task.train], OPTIMIZERS[optimizer](FIRST_RATES[optimizer])):
        pass
    moved = hidden @ model.adapter["fc2"].delta_weight().T
    return float(gradient), float(np.linalg.norm(moved) / np.linalg.norm(before))


def measure_rates() -> dict:
    """`rates` (optimizers, rules, ranks, rates, seeds, 2) and `first_steps` (optimizers, rules, ranks, seeds, 2)."""

    def table(entry):
        return [[[entry(optimizer, rule, rank) for rank in SCALED_RANKS] for rule in RULES] for optimizer in OPTIMIZERS]

    runs = table(lambda *which: [[short_run(*which, lr, seed) for seed in SEEDS] for lr in RATES])
    first = table(lambda *which: [first_step(*which, seed) for seed in SEEDS])
    return {"rates": np.array(runs, np.uint16), "first_steps": np.array(first, np.float32)}


def plus_run(ratio: float, lr: float, seed: int) -> tuple[int, int]:
    """As `short_run`, for a LoRA of rank 8 on all layers of the usual network, where B learns `ratio` times as fast."""
    task, base = problem(seed=seed)
    model = adapt(base, LoraConfig(rank=8, alpha=16, target_modules="all-linear", init="kaiming"), seed=seed)
    return _run(model, Adam(lr), task, seed, b_ratio=ratio)


def measure_plus() -> dict:
    """`plus` (ratios, rates, seeds, 2)."""
    found = [[[plus_run(ratio, lr, seed) for seed in SEEDS] for lr in PLUS_RATES] for ratio in RATIOS]
    return {"plus": np.array(found, np.uint16)}


TABLES: Mapping[str, Callable[[], dict]] = {
    "curves": measure_curves,
    "bases": measure_bases,
    "transfer": measure_transfer,
    "spectra": measure_spectra,
    "fixes": measure_fixes,
    "rates": measure_rates,
    "plus": measure_plus,
}


def main(names=()):
    """Compute the named tables, or all, and put them into the file that ships."""
    path = Path(__file__).parents[1] / "datasets" / "finetuning_measured.npz"
    tables = dict(np.load(path)) if path.exists() else {}
    for name in names or TABLES:
        print(f"{name} …", flush=True)
        tables.update(TABLES[name]())
        np.savez_compressed(path, **tables)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
