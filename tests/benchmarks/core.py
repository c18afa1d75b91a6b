r"""Time and memory of the core beside its peers: bitsandbytes, torchao and PEFT, where they are installed.

    python tests/benchmarks/core.py [--sizes 1024 4096] [--threads 1] [--seconds 6]

See README.md beside this file for how to read the table.
"""

import argparse
import importlib.util
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lora_edu import NF4, LoraLinear, QLoraLinear, SeededRng, dequantize, quantize

BATCH, RANK, ALPHA, BLOCK = 32, 16, 32, 64
PEERS = ("torch", "bitsandbytes", "torchao", "peft")
INSTALLED = {name for name in PEERS if importlib.util.find_spec(name)}
CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 there resets the peak VmHWM
MIB = 2**20

if "torch" in INSTALLED:
    import torch

    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)  # the peers' notes on optional kernels
    warnings.filterwarnings("ignore")


# What is measured. A contender prepares its data for one size and returns its measures, {measure: call}; those of one
# contender run in the order given, so that merge and unmerge alternate.


def random(*shape, seed=0):
    """Gaussian float32, the same for every contender."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.02)


def adapter(size):
    """A and B, neither of them zero."""
    return random(RANK, size, seed=1), random(size, RANK, seed=2)


def copy(size):
    weight, out = random(size, size), np.ones((size, size), np.float32)
    return {"copy": lambda: np.copyto(out, weight)}


def ours_quantize(size):
    weight = random(size, size)
    return {"quantize": lambda: quantize(weight, BLOCK, NF4, "high-first")}


def naive_quantize(size):
    """Nearest level by argmin over all sixteen, in chunks so that the distances do not fill the memory."""
    weight = random(size, size)

    def run():
        blocks = weight.reshape(-1, BLOCK)
        absmax = np.abs(blocks).max(axis=1)
        codes = np.empty(blocks.shape, np.uint8)
        for start in range(0, len(blocks), 4096):
            rows = slice(start, start + 4096)
            codes[rows] = np.abs((blocks[rows] / absmax[rows, None])[..., None] - NF4.levels).argmin(axis=-1)
        codes = codes.ravel()
        return codes[0::2] << 4 | codes[1::2], absmax

    return {"quantize": run}


def bitsandbytes_quantize(size):
    from bitsandbytes.functional import quantize_4bit

    weight = torch.from_numpy(random(size, size))
    return {"quantize": lambda: quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")}


def torchao_quantize(size):
    to_nf4 = torchao_to_nf4()
    weight = torch.from_numpy(random(size, size))
    return {"quantize": lambda: to_nf4(weight, BLOCK)}


def ours_dequantize(size):
    q = quantize(random(size, size), BLOCK, NF4, "high-first")
    return {"dequantize": lambda: dequantize(q)}


def ours_dequantize_into(size):
    q, out = quantize(random(size, size), BLOCK, NF4, "high-first"), np.ones((size, size), np.float32)
    return {"dequantize": lambda: dequantize(q, out=out)}


def bitsandbytes_dequantize(size):
    from bitsandbytes.functional import dequantize_4bit

    packed, state = bitsandbytes_quantize(size)["quantize"]()
    return {"dequantize": lambda: dequantize_4bit(packed, state)}


def torchao_dequantize(size):
    nf4 = torchao_quantize(size)["quantize"]()
    return {"dequantize": nf4.get_original_weight}


def ours_lora(size):
    layer, x = LoraLinear(random(size, size), rank=RANK, alpha=ALPHA), random(BATCH, size, seed=3)
    layer.lora_a, layer.lora_b = adapter(size)
    return {"LoRA forward": lambda: layer(x)}


def peft_lora(size):
    layer, x = peft_layer(size), torch.from_numpy(random(BATCH, size, seed=3))
    return {"LoRA forward": lambda: layer(x)}


def ours_merge(size, keep_base=True):
    layer = LoraLinear(random(size, size), rank=RANK, alpha=ALPHA)
    layer.lora_a, layer.lora_b = adapter(size)
    return {"merge": lambda: layer.merge(keep_base), "unmerge": layer.unmerge}


def ours_merge_dropping_base(size):
    return ours_merge(size, keep_base=False)


def peft_merge(size):
    layer = peft_layer(size)
    return {"merge": layer.merge, "unmerge": layer.unmerge}


def ours_qlora(size):
    layer, x = QLoraLinear(random(size, size), rank=RANK, alpha=ALPHA), random(BATCH, size, seed=3)
    layer.lora_a, layer.lora_b = adapter(size)
    return {"QLoRA forward": lambda: layer(x)}


def peft_qlora(size):
    layer, x = peft_layer(size, four_bit=True).train(), torch.from_numpy(random(BATCH, size, seed=3))
    return {"QLoRA forward": lambda: layer(x)}


def peft_qlora_eval(size):
    layer, x = peft_layer(size, four_bit=True).eval(), torch.from_numpy(random(BATCH, size, seed=3))
    return {"QLoRA forward": lambda: layer(x)}


def torchao_to_nf4():
    """torchao has moved it."""
    try:
        from torchao.quantization import to_nf4
    except ImportError:
        from torchao.dtypes.nf4tensor import to_nf4
    return to_nf4


def peft_layer(size, four_bit=False):
    """PEFT's LoRA over torch.nn.Linear, or over bitsandbytes' Linear4bit, with the weights of `ours_lora`."""
    from peft import LoraConfig, inject_adapter_in_model

    weight = torch.from_numpy(random(size, size))
    if four_bit:
        import bitsandbytes as bnb

        base = bnb.nn.Linear4bit(size, size, bias=False, quant_type="nf4", compute_dtype=torch.float32, device="meta")
        base.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
        base = base.to("cpu")  # quantizes
    else:
        base = torch.nn.Linear(size, size, bias=False, device="meta")
        base.weight = torch.nn.Parameter(weight, requires_grad=False)
    model = torch.nn.Sequential()
    model.add_module("layer", base)
    model.is_loaded_in_4bit = four_bit  # what makes PEFT choose its own 4-bit layer
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"]), model)
    a, b = adapter(size)
    model.layer.lora_A["default"].weight.data = torch.from_numpy(a)
    model.layer.lora_B["default"].weight.data = torch.from_numpy(b)
    return model.layer.eval()


# (label, peers it needs, contender), in groups that are run interleaved: A B C A B C …; ours first, then its peers.
GROUPS = [
    [
        ("copy", (), copy),
        ("lora_edu", (), ours_quantize),
        ("bitsandbytes", ("bitsandbytes",), bitsandbytes_quantize),
        ("torchao", ("torchao",), torchao_quantize),
        ("naive argmin", (), naive_quantize),
    ],
    [
        ("copy", (), copy),
        ("lora_edu, given array", (), ours_dequantize_into),
        ("lora_edu, new array", (), ours_dequantize),
        ("bitsandbytes", ("bitsandbytes",), bitsandbytes_dequantize),
        ("torchao", ("torchao",), torchao_dequantize),
    ],
    [
        ("copy", (), copy),
        ("lora_edu", (), ours_lora),
        ("PEFT", ("peft",), peft_lora),
    ],
    [
        ("copy", (), copy),
        ("lora_edu, keep_base=True", (), ours_merge),
        ("lora_edu, keep_base=False", (), ours_merge_dropping_base),
        ("PEFT", ("peft",), peft_merge),
    ],
    [
        ("copy", (), copy),
        ("lora_edu", (), ours_qlora),
        ("PEFT + bitsandbytes, train", ("peft", "bitsandbytes"), peft_qlora),
        ("PEFT + bitsandbytes, eval", ("peft", "bitsandbytes"), peft_qlora_eval),
    ],
]
CONTENDERS = {contender.__name__: contender for group in GROUPS for _, _, contender in group}


def interleaved(calls: dict, seconds: float) -> dict:
    """Seconds of each run, {key: [...]}: round after round over all calls; one slower than a second runs five times.

    calls is {(label, measure): call}. What a call returns is freed outside the clock.
    """
    times = {key: [] for key in calls}
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(next(iter(times.values()))) < 5:
        for key, call in calls.items():
            if len(times[key]) >= 5 and min(times[key]) > 1:
                continue
            begin = time.perf_counter()
            result = call()
            times[key].append(time.perf_counter() - begin)
            del result
    return times


def peak_memory(contender: str, size: int, threads: int) -> dict:
    """Bytes by which each measure of a contender raised the resident memory, its result included; in a new process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory-of", contender, str(size)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    env["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc returns what is freed at once, so that every array counts
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak_memory(contender: str, size: int):
    """The new process's side of `peak_memory`."""

    def kib(field):
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])

    peaks, calls = {}, CONTENDERS[contender](size)
    for _ in range(2):  # the first round loads and converts what is done once
        for measure, call in calls.items():
            CLEAR_REFS.write_text("5")
            before = kib("VmRSS")
            result = call()
            peaks[measure] = max(0, 1024 * (kib("VmHWM") - before))
            del result
    print(json.dumps(peaks))


def scratch(contender, size: int) -> dict:
    """Bytes that each measure allocated at its peak beyond what is left when it returns; seen by tracemalloc."""
    found = {}
    for measure, call in contender(size).items():
        tracemalloc.start()
        result = call()
        left, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found[measure] = peak - left
        del result
    return found


def check(size: int):
    """Speed counts only where the results agree: stop if they do not."""
    weight = random(size, size)
    q = ours_quantize(size)["quantize"]()
    if "bitsandbytes" in INSTALLED:
        packed, state = bitsandbytes_quantize(size)["quantize"]()
        np.testing.assert_array_equal(q.packed, packed.numpy().ravel())
        np.testing.assert_array_equal(q.absmax, state.absmax.numpy())
        np.testing.assert_array_equal(dequantize(q), bitsandbytes_dequantize(size)["dequantize"]().numpy())
        print(f"{size}²: packed bytes, absmax and dequantized values equal those of bitsandbytes")
    if "peft" in INSTALLED:
        y, peer = ours_lora(size)["LoRA forward"](), peft_lora(size)["LoRA forward"]().numpy()
        np.testing.assert_allclose(y, peer, rtol=1e-5, atol=1e-5 * np.abs(peer).max())
        layer, peer = LoraLinear(weight, rank=RANK, alpha=ALPHA), peft_layer(size)
        layer.lora_a, layer.lora_b = adapter(size)
        layer.merge()
        peer.merge()
        np.testing.assert_allclose(layer.weight, peer.weight.numpy(), rtol=1e-5, atol=1e-7)
        print(f"{size}²: LoRA output and merged weight close to those of PEFT (1e-5)")
    if {"peft", "bitsandbytes"} <= INSTALLED:
        y, peer = ours_qlora(size)["QLoRA forward"](), peft_qlora(size)["QLoRA forward"]().numpy()
        np.testing.assert_allclose(y, peer, rtol=1e-5, atol=1e-5 * np.abs(peer).max())
        off = np.abs(peft_qlora_eval(size)["QLoRA forward"]().numpy() - peer).max() / np.abs(peer).max()
        print(f"{size}²: QLoRA output close to PEFT + bitsandbytes, train (1e-5); eval is off by {off:.0e}")


def print_table(size: int, seconds: float, threads: int):
    """All groups at one size."""
    print(f"\n{size} x {size} float32, {size * size * 4 / MIB:.0f} MiB, {threads} thread(s)")
    print(f"{'measure':14}{'contender':28}  min ms   median  runs  x copy  x ours  peak MiB")
    for group in GROUPS:
        present = [entry for entry in group if INSTALLED.issuperset(entry[1])]
        made = [(label, contender(size)) for label, _, contender in present]
        calls = {(measure, label): call for label, calls in made for measure, call in calls.items()}
        for call in calls.values():
            call()  # warm up
        times = interleaved(calls, seconds)
        del made, calls
        peaks = {
            (measure, label): peak
            for label, _, contender in present
            if CLEAR_REFS.exists()
            for measure, peak in peak_memory(contender.__name__, size, threads).items()
        }
        yardstick = min(times["copy", "copy"])
        ours = {}  # measure: the first of our own
        for measure, label in sorted(times, key=lambda key: list(dict.fromkeys(m for m, _ in times)).index(key[0])):
            runs = times[measure, label]
            best = min(runs)
            ours.setdefault(measure, best)
            peak = f"{peaks[measure, label] / MIB:10.1f}" if peaks else f"{'-':>10}"
            print(
                f"{measure:14}{label:28}{1e3 * best:9.3f}{1e3 * statistics.median(runs):9.3f}{len(runs):6}"
                f"{best / yardstick:8.2f}{best / ours[measure]:8.2f}{peak}"
            )


def print_scratch():
    """Our working memory beside the size of the weight."""
    sizes = (1024, 2048, 4096)
    print("\nscratch of lora_edu in MiB: peak minus what is left on return (tracemalloc)")
    print(f"{'':42}" + "".join(f"{f'{size}²':>9}" for size in sizes))
    for group in GROUPS:
        for label, _, contender in group:
            if label.startswith("lora_edu"):
                found = [scratch(contender, size) for size in sizes]
                for measure in found[0]:
                    print(f"{measure:14}{label:28}" + "".join(f"{peaks[measure] / MIB:9.2f}" for peaks in found))


def print_rng():
    """The fast generator beside the plain loop, on the same draws."""
    drawn = np.array_equal(SeededRng(0).uniform((4, 4096)), SeededRng(0).uniform_spec((4, 4096)))
    assert drawn, "the fast generator and the plain loop disagree"
    times = interleaved(
        {
            "fast": lambda: SeededRng(0).uniform((4, 4096)),
            "spec": lambda: SeededRng(0).uniform_spec((4, 4096)),
            "whole": lambda: SeededRng(0).uniform((64, 4096)),
        },
        seconds=1,
    )
    fast, spec, whole = (1e3 * min(times[key]) for key in ("fast", "spec", "whole"))
    print(f"\nSeededRng: (64, 4096) in {whole:.1f} ms; (4, 4096) in {fast:.2f} ms, plain loop {spec:.1f} ms")


def limit_threads(threads: int):
    """One count for BLAS, OpenMP and torch."""
    if "torch" in INSTALLED:
        torch.set_num_threads(threads)
    if importlib.util.find_spec("threadpoolctl"):
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)  # holds until the process ends
    else:
        print("threadpoolctl is not installed: limit NumPy's BLAS by OPENBLAS_NUM_THREADS")


def main():
    """Parse, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--threads", type=int, default=1, help="of BLAS, OpenMP and torch")
    parser.add_argument("--seconds", type=float, default=6, help="of interleaved runs a group")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print_peak_memory(args.memory_of[0], int(args.memory_of[1]))
        return
    if "bitsandbytes" in INSTALLED:
        importlib.import_module("bitsandbytes")  # its OpenMP has to be loaded to be limited
    limit_threads(args.threads)

    print(f"Python {platform.python_version()}, NumPy {np.__version__}")
    print(", ".join(f"{name} {version(name) if name in INSTALLED else 'not installed: skipped'}" for name in PEERS))
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {args.threads} thread(s) used")
    if "torch" in INSTALLED:
        print(f"torch runs its {torch.backends.cpu.get_cpu_capability()} kernels")
    if not CLEAR_REFS.exists():
        print("no /proc/self/clear_refs: peak memory of the contenders is not measured, only our scratch")
    for size in args.sizes:
        check(size)
    for size in args.sizes:
        print_table(size, args.seconds, args.threads)
    print_scratch()
    print_rng()


if __name__ == "__main__":
    main()
