r"""A second language in tables: every way of fine-tuning the name transformer, measured with several seeds.

    python -m lora_edu.models.name_tables          about 20 minutes on one core; writes names_measured.npz

Every way of fine-tuning first gets a learning rate of its own, the one of `RATES` that does best on validation names
with a seed that is not used again; with few names, the one of `FEW_RATES` for every number of names. A run keeps a row
every `EVERY` steps (`FEW_EVERY` with few names): bits per letter of the names it learns from, of male names held out
for choosing (`validation`) and for reporting (`male`), and of female names that it once knew (`female`). On one machine
with one NumPy the same numbers come out every time; elsewhere they differ in the third decimal.
"""

import io
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lora_edu import datasets
from lora_edu.config import ALL_LINEAR
from lora_edu.datasets.name_lists import encode_names, names
from lora_edu.files import write_atomically
from lora_edu.models.adapting import adapt
from lora_edu.models.finetuning import NAME_STEPS, adapter_config, fine_tune_names
from lora_edu.models.transformer import QUERY_VALUE, CharTransformer
from lora_edu.training import DivergedError

RATES = (3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEED = 100
EVERY = 20  # steps between two rows
RANKS = (1, 2, 4, 8, 16)
LAYERS = {"q, v": QUERY_VALUE, "all": ALL_LINEAR}
SEEDS = 3  # of the runs on all names
FEW, FEW_SEEDS = (100, 200, 400, 800), 3  # names to learn from; every seed has names of its own
FEW_RATES, FEW_STEPS, FEW_EVERY = (1e-3, 3e-3, 1e-2), 200, 10
STRENGTHS = np.arange(16) / 10  # of a trained adapter: 0 is the base, 1 what it was trained for
QUANTITIES = ("train", "validation", "male", "female")  # of a row
SEEN = 400  # names of the training set that are measured


class Way(NamedTuple):
    """One way of fine-tuning; rank 0 and layers "" where there is no adapter."""

    method: str
    layers: str = ""
    rank: int = 0

    @property
    def settings(self) -> dict:
        """What `fine_tune_names` takes beside the method."""
        return {"rank": self.rank, "targets": LAYERS[self.layers]} if self.layers else {}


PLAIN = tuple(Way(method) for method in ("full", "scratch", "last layer", "layer norms"))
ADAPTERS = tuple(Way("LoRA", layers, rank) for layers in LAYERS for rank in RANKS)
QUANTIZED = (Way("QLoRA", "q, v", 8), Way("QLoRA", "all", 4), Way("QLoRA", "all", 8))
WAYS = (*PLAIN, *ADAPTERS, *QUANTIZED)
FEW_RANKS = (1, 4, 16)
FEW_WAYS = (*PLAIN[:3], *(Way("LoRA", "all", rank) for rank in FEW_RANKS))


@cache
def held_out() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ids and targets by quantity: male names for choosing, male and female ones for reporting."""
    male, female = names("male"), names("female")
    return {
        "validation": encode_names(male.validation),
        "male": encode_names(male.test),
        "female": encode_names(female.test),
    }


def bits(model: CharTransformer, words) -> list[float]:
    """One row: bits per letter of each of `QUANTITIES`, where `words` are the names learned from."""
    texts = [encode_names(words[:SEEN]), *held_out().values()]
    return [model.bits_per_character(*text) for text in texts]


def few_words(count: int, seed: int) -> tuple[str, ...]:
    """`count` male names to learn from, other ones for each seed."""
    return names("male").train[seed * count : (seed + 1) * count]


def best_rate(base: CharTransformer, way: Way) -> float:
    """The learning rate of `RATES` that leaves the fewest bits on the validation names."""
    found = {}
    for lr in RATES:
        settings = {"lr": lr, "seed": TUNING_SEED, "every": NAME_STEPS}
        try:
            *_, last = fine_tune_names(base, way.method, **settings, **way.settings)[1]
        except DivergedError:
            continue
        found[last.metrics["male"]] = lr
    return found[min(found)]


def run(base: CharTransformer, way: Way, lr: float, seed: int, words=None, steps: int = NAME_STEPS, every: int = EVERY):
    """The fine-tuned model, and its rows (rows, quantities) float32, the last one after all steps."""
    words = names("male").train if words is None else words
    settings = {"lr": lr, "seed": seed, "words": words, "steps": steps, "every": steps}
    model, records = fine_tune_names(base, way.method, **settings, **way.settings)
    rows = [bits(model, words) for record in records if record.step % every == 0]
    return model, np.array(rows, np.float32)


def run_few(base: CharTransformer, way: Way, lr: float, seed: int, words) -> np.ndarray:
    """The rows of a run on few names: shorter, and looked at more often."""
    return run(base, way, lr, seed, words, FEW_STEPS, FEW_EVERY)[1]


def best_few_rate(base: CharTransformer, way: Way, words) -> float:
    """The learning rate of `FEW_RATES` whose run, stopped in time, leaves the fewest bits on the validation names."""
    lowest = {lr: run_few(base, way, lr, TUNING_SEED, words)[:, 1].min() for lr in FEW_RATES}
    return min(lowest, key=lowest.get)


def strengths(model: CharTransformer) -> np.ndarray:
    """Bits per letter of (male, female) test names with B at each of `STRENGTHS`: (strengths, 2) float32."""
    return np.array([both_languages(stronger(model, strength)) for strength in STRENGTHS], np.float32)


def both_languages(model: CharTransformer) -> tuple[float, float]:
    """Bits per letter of (male, female) test names."""
    return model.bits_per_character(*held_out()["male"]), model.bits_per_character(*held_out()["female"])


def stronger(model: CharTransformer, strength: float) -> CharTransformer:
    """A copy whose adapter is `strength` times as strong: B times that."""
    new = model.copy()
    trained = {name: array for name, array in model.trained().items() if name.endswith("lora_b")}
    new.assign({name: np.float32(strength) * array for name, array in trained.items()})
    return new


def key(way: Way) -> str:
    """The name of a trained adapter in the file: "all 4"."""
    return f"{way.layers} {way.rank}"


def packed(model: CharTransformer) -> np.ndarray:
    """A and B of every layer, one after the other: float16."""
    return np.concatenate([array.ravel() for array in model.trained().values()]).astype(np.float16)


def trained_adapter(base: CharTransformer, layers: str, rank: int) -> CharTransformer:
    """`base` under one of the adapters that ship, as seed 0 learned it from all male training names."""
    numbers = datasets.names_measured()[key(Way("LoRA", layers, rank))].astype(np.float32)
    model = adapt(base, adapter_config(rank, targets=LAYERS[layers]))
    shapes = {name: array.shape for name, array in model.trained().items()}
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    parts = np.split(numbers, ends[:-1])
    model.assign({name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)})
    return model


def measure(say=print) -> dict[str, np.ndarray]:
    r"""Every table.

    Returns
    -------
    dict of arrays
        `rates` (ways); `all` (seeds, ways, rows, quantities); `few_rates` (counts, few ways); `few` (seeds, counts, few
        ways, rows, quantities); `base` (2, quantities), as shipped and with its linear weights in NF4; `strengths`
        (adapters, strengths, 2), of (male, female); and A and B of each of `ADAPTERS`, by `key`.
    """
    base, male = CharTransformer.pretrained(), names("male").train
    tables = {"base": np.array([bits(model, male) for model in (base, base.rounded())], np.float32)}
    rates = {}
    for way in WAYS:
        rates[way] = best_rate(base, way)
        say(f"{way}: learning rate {rates[way]:g}")
    tables["rates"] = np.array(list(rates.values()))
    found, dials = [], []
    for seed in range(SEEDS):
        found.append([])
        for way in WAYS:
            model, rows = run(base, way, rates[way], seed)
            found[-1].append(rows)
            say(f"seed {seed}, {way}: {rows[-1]}")
            if seed == 0 and way in ADAPTERS:
                tables[key(way)] = packed(model)
                dials.append(strengths(model))
    tables["all"], tables["strengths"] = np.array(found), np.array(dials)
    few = [measure_few(base, count, say) for count in FEW]
    tables["few_rates"] = np.array([rates for rates, _ in few])
    return tables | {"few": np.stack([rows for _, rows in few], axis=1)}


def measure_few(base: CharTransformer, count: int, say=print):
    """Learning rates (few ways) and rows (seeds, few ways, rows, quantities) with `count` names to learn from."""
    rates = [best_few_rate(base, way, few_words(count, 0)) for way in FEW_WAYS]
    found = []
    for seed in range(FEW_SEEDS):
        words = few_words(count, seed)
        found.append([run_few(base, way, lr, seed, words) for way, lr in zip(FEW_WAYS, rates, strict=True)])
        say(f"{count} names, seed {seed}: {np.array(found[-1])[:, -1, 2]}")
    return rates, np.array(found)


def main() -> None:
    """Measure, and put the tables beside the other data."""
    file = io.BytesIO()
    np.savez_compressed(file, **measure(lambda line: print(line, flush=True)))
    path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(datasets.__file__).with_name("names_measured.npz"))
    write_atomically(path, file.getvalue())
    print(f"{path.name}: {path.stat().st_size:,d} bytes")


if __name__ == "__main__":
    main()
