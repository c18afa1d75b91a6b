r"""The tables of the chapter on the word "not": what takes minutes, measured once and shipped.

    python -m lora_edu.models.negation_tables          about seven minutes on one core; writes negation_measured.npz

Sums run in another order on another processor, so that training ends elsewhere: accuracies may move by a sentence or
two of 232, and no table is to be read more closely than that.
"""

import io
from importlib.resources import files
from pathlib import Path

import numpy as np

from lora_edu import datasets
from lora_edu.codebooks import NF4
from lora_edu.files import write_atomically
from lora_edu.models import negation
from lora_edu.models.encoder import SentenceEncoder
from lora_edu.models.minilm import LAYERS

SEEDS = 3
RANKS = (1, 2, 4, 8)
COUNTS = (16, 32, 64, 128, 258)  # sentences to learn from
EVERY = 8  # steps between two looks at the test sentences
STRENGTHS = tuple(round(0.1 * k, 1) for k in range(16))
READ = (  # what the figures take apart, at every strength
    "American footprints on distant worlds are not too big a dream.",
    "American footprints on distant worlds are too big a dream.",
    "It will only happen if we fix our politics.",
)


def measure() -> dict[str, np.ndarray]:
    r"""All tables.

    Returns
    -------
    dict of arrays
        `grid_ridge`, `grid_train`, `grid_validation`, `grid_test`: the probe by ridge.
        `probe_weight`, `probe_bias`: the probe of `negation.RIDGE`.
        Accuracies on the test sentences: `by_rank` (ranks, seeds, looks); `qlora` (seeds, looks) and `nf4_probe` over
        a base in NF4; `by_target` (targets, seeds) in all layers, `by_last_target` in the last; `by_depth` (depths,
        seeds); `by_count` (counts, seeds) beside `probe_by_count`, which has the ridge that suits the test best.
        `adapter/<name>`: A and B of rank 4, seed 0, float16.
        `pieces/<k>` (tokens,), `attention/<k>`, `contribution/<k>` (strengths, tokens), `score` (sentences, strengths):
        how that adapter reads `READ`. `removed_<name>`: see `negation.without_a_word`.
    """
    task, ids, e = negation.task(), negation.ids(), negation.embeddings()
    grid = negation.probe_grid(e)
    probe = negation.the_probe()
    base = negation.encoder(probe)
    tables = {f"grid_{name}": values for name, values in grid.items()}
    tables |= {"probe_weight": probe.weight, "probe_bias": np.float32(probe.bias)}

    def accuracies(start, x=ids, chosen=task.train, **settings):
        found = []  # at every EVERY-th step
        model, records = negation.fine_tune(start, x[chosen], task.labels[chosen], **settings)
        for record in records:
            if record.step % EVERY == 0:
                found.append(negation.accuracy(negation.scores(model, x[task.test]), task.labels[task.test]))
        print(settings, [f"{share:.3f}" for share in found], flush=True)
        return model, found

    runs = {(rank, seed): accuracies(base, rank=rank, seed=seed) for rank in RANKS for seed in range(SEEDS)}
    tables["by_rank"] = np.array([[runs[rank, seed][1] for seed in range(SEEDS)] for rank in RANKS])
    trained = runs[negation.RANK, 0][0]
    tables |= {f"adapter/{name}": array.astype(np.float16) for name, array in trained.trained().items()}
    tables |= readings(negation.load_adapter(base, tables))
    tables |= {f"removed_{name}": values for name, values in negation.without_a_word().items()}
    small = four_bits(base)
    test = negation.scores(small, ids[task.test])
    tables["nf4_probe"] = np.array(negation.accuracy(test, task.labels[task.test]))
    tables["qlora"] = np.array([accuracies(small, quantize=True, seed=seed)[1] for seed in range(SEEDS)])
    alone = [
        [accuracies(base, targets=negation.TARGETS[name], seed=seed)[1][-1] for seed in range(SEEDS)]
        for name in ("query", "value")
    ]
    tables["by_target"] = np.array([[runs[negation.RANK, seed][1][-1] for seed in range(SEEDS)], *alone])
    tables |= last_layers(base, accuracies)
    tables |= by_count(accuracies)
    return tables


def four_bits(base: SentenceEncoder) -> SentenceEncoder:
    """The encoder whose 36 matrices went to NF4 in blocks of 64 and came back; the classifier stays."""
    return base.rounded(NF4, 64, [name for name in base.linear_weights() if name != "classifier"])


def last_layers(base: SentenceEncoder, accuracies) -> dict[str, np.ndarray]:
    """The adapter in the last layers alone; what is below them runs once."""
    ids, numbers = negation.ids(), np.arange(len(negation.ids()))

    def ends(upper, **settings):
        return [accuracies(upper, numbers, seed=seed, **settings)[1][-1] for seed in range(SEEDS)]

    upper = {depth: base.above(LAYERS - depth, ids) for depth in negation.DEPTH_RATES}
    depths = [ends(upper[depth], lr=lr) for depth, lr in negation.DEPTH_RATES.items()]
    targets = [ends(upper[1], targets=t, lr=negation.LAST_RATES[name]) for name, t in negation.TARGETS.items()]
    return {"by_depth": np.array(depths), "by_last_target": np.array(targets)}


def by_count(accuracies) -> dict[str, np.ndarray]:
    """Fewer sentences to learn from, at the same number of steps."""
    task, e = negation.task(), negation.embeddings()
    adapted, probes = [], []
    for count in COUNTS:
        for seed in range(SEEDS):
            chosen = negation.some(count, seed)
            fitted = [negation.fit_probe(e[chosen], task.labels[chosen], ridge) for ridge in negation.RIDGES]
            probes.append(max(negation.accuracy(p.score(e[task.test]), task.labels[task.test]) for p in fitted))
            start = negation.encoder(negation.fit_probe(e[chosen], task.labels[chosen], negation.RIDGE))
            adapted.append(accuracies(start, chosen=chosen, steps=32, seed=seed)[1][-1])
    shape = len(COUNTS), SEEDS
    return {"by_count": np.reshape(adapted, shape), "probe_by_count": np.reshape(probes, shape)}


def readings(model: SentenceEncoder) -> dict[str, np.ndarray]:
    """What `negation.reading` says of `READ` at every strength."""
    found = {"score": np.empty((len(READ), len(STRENGTHS)))}
    models = [negation.at_strength(model, strength) for strength in STRENGTHS]
    for k, sentence in enumerate(READ):
        read = [negation.reading(one, sentence) for one in models]
        found["score"][k] = [one["score"] for one in read]
        found[f"pieces/{k}"] = np.array(read[0]["pieces"])
        for part in ("attention", "contribution"):
            found[f"{part}/{k}"] = np.array([one[part] for one in read])
    return found


def main() -> None:
    """Measure, and put the tables among the datasets."""
    file = io.BytesIO()
    np.savez_compressed(file, **{name: _small(array) for name, array in measure().items()})
    path = Path(str(files(datasets) / "negation_measured.npz"))
    write_atomically(path, file.getvalue())
    print(f"{path.name}: {len(file.getvalue()):,d} bytes")


def _small(array) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


if __name__ == "__main__":
    main()
