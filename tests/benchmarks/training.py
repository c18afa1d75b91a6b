r"""Time of one training step of the small models beside PyTorch, on one thread.

    python tests/benchmarks/training.py [--rounds 200]

A step is: forward, loss, backward, Adam, with a new batch; the same arrays and batches on both sides. PyTorch runs with
its fastest Adam for the CPU (fused). Both sides' losses are compared first. See README.md beside this file.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

from lora_edu import LoraConfig
from lora_edu.datasets.digit_tasks import digit_task
from lora_edu.datasets.name_lists import encode_names, names
from lora_edu.models.adapting import prepare
from lora_edu.models.mlp import MLP
from lora_edu.models.transformer import CharTransformer
from lora_edu.training import Adam, minibatches, train

RATE, RANK, ALPHA = 1e-3, 4, 8
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def cases():
    """Name, model and batches of every case; QLoRA last, which PyTorch alone has no twin for."""
    digits, letters = MLP.initial(), CharTransformer.initial()
    x, y = digit_task().pretrain
    ids, targets = encode_names(names("female").train)
    config = LoraConfig(rank=RANK, alpha=ALPHA, init="kaiming")
    for method, given in (("full", None), ("LoRA", config), ("QLoRA", config)):
        yield f"MLP, {method}", prepare(digits, method, given), (x, y, 32)
        yield f"transformer, {method}", prepare(letters, method, given), (ids, targets, 64)


def ours(model, batches):
    """A call that makes one step and returns its loss."""
    records = train(model, batches, Adam(RATE))
    return lambda: next(records).loss


def peer(model, base, batches):
    """The same in PyTorch, or None for a 4-bit base."""
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import torch_twins

    torch.set_num_threads(1)
    arrays = dict(base.parameters())
    if model.adapter is not None:
        if any(not hasattr(model.adapter[name], "weight") for name in model.adapter):
            return None
        arrays |= model.trained()
    p = torch_twins.tensors(arrays)
    for name, tensor in p.items():
        tensor.requires_grad_(name in model.trained())
    optimizer = torch.optim.Adam([p[name] for name in model.trained()], lr=RATE, fused=True)
    scaling = ALPHA / RANK

    def forward(x):
        if isinstance(model, CharTransformer):
            return torch_twins.transformer(p, x, model.heads, scaling)
        return torch_twins.mlp(p, x, list(model.layers), scaling)

    def step():
        x, y = next(batches)
        optimizer.zero_grad()
        loss = torch_twins.loss_of(forward(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def main(argv=None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args(argv).rounds
    try:
        import torch

        print(f"NumPy {np.__version__}, PyTorch {torch.__version__}, one thread; milliseconds a step, median / minimum")
        installed = True
    except ImportError:
        print(f"NumPy {np.__version__}, PyTorch not installed; milliseconds a step, median / minimum")
        installed = False
    bases = {"MLP": MLP.initial(), "transformer": CharTransformer.initial()}
    print(f"{'':20}{'lora_edu':>16}{'PyTorch':>16}{'PyTorch / lora_edu':>22}")
    for name, model, (x, y, size) in cases():
        steps = [ours(model, minibatches(x, y, size, rounds + 10, seed=0))]
        other = (
            peer(model, bases[name.split(",")[0]], minibatches(x, y, size, rounds + 10, seed=0)) if installed else None
        )
        steps += [other] * (other is not None)
        for _ in range(10):
            losses = [step() for step in steps]
            np.testing.assert_allclose(losses, losses[0], rtol=1e-3, err_msg=name)
        times = [[] for _ in steps]
        for _ in range(rounds):
            for step, found in zip(steps, times, strict=True):  # one after the other, so that both meet the same noise
                start = time.perf_counter()
                step()
                found.append(1e3 * (time.perf_counter() - start))
        shown = "".join(f"{np.median(found):8.2f} / {min(found):5.2f}" for found in times)
        ratio = (
            f"{np.median(times[1]) / np.median(times[0]):10.2f} / {min(times[1]) / min(times[0]):.2f}" if other else ""
        )
        print(f"{name:20}{shown}{ratio:>22}")


if __name__ == "__main__":
    if not os.environ.items() >= ONE_THREAD.items():  # read when NumPy is loaded: start over with them
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    main()
