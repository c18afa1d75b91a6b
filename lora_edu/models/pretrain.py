r"""The transformer that learned female names: how the shipped weights were made.

    python -m lora_edu.models.pretrain          about 10 seconds on one core; writes female_names.npz

On one machine with one NumPy the same bytes come out every time. Elsewhere sums may run in another order, so that the
weights differ a little, and the bits per letter in the third decimal.
"""

import io
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np

from lora_edu.datasets.name_lists import encode_names, names
from lora_edu.files import write_atomically
from lora_edu.models.transformer import CharTransformer
from lora_edu.training import AdamW, Record, minibatches, train, warmup_cosine

STEPS, WARMUP, BATCH, RATE, DECAY = 1000, 50, 64, 3e-3, 0.3  # chosen by the validation names


def pretraining(seed: int = 0, steps: int = STEPS) -> tuple[CharTransformer, Iterator[Record]]:
    """A new model, and the records of its training: run through them to train it."""
    model = CharTransformer.initial(seed)
    batches = minibatches(*encode_names(names("female").train), BATCH, steps, seed)
    schedule = warmup_cosine(STEPS, WARMUP)  # that of the whole run, also where only its start is asked for
    return model, train(model, batches, AdamW(RATE, weight_decay=DECAY), schedule=schedule)


def main() -> None:
    """Train, print how it goes, and put the weights beside this module."""
    model, records = pretraining()
    held_out = encode_names(names("female").test)
    for record in records:
        if record.step % 100 == 0:
            print(f"step {record.step}: {model.bits_per_character(*held_out):.3f} bits per letter", flush=True)
    path = Path(str(files(__package__) / "female_names.npz"))
    file = io.BytesIO()
    np.savez_compressed(file, **model.parameters())
    write_atomically(path, file.getvalue())
    print(f"{path.name}: {os.path.getsize(path):,d} bytes, {model.trained_count:,d} weights")


if __name__ == "__main__":
    main()
