r"""Every codebook, double quantization and every size, beside bitsandbytes and torchao where they are installed.

    python tests/benchmarks/quantization.py [--threads 1] [--seconds 4] [--largest 26]

Three tables: all codebooks at 2^20 weights, as a slider would run them; ours beside the peers, with ratios and peak
memory; and the cost of one weight from 2^16 weights to 2^26. See README.md beside this file.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys

import core
import numpy as np
from core import BLOCK, CLEAR_REFS, INSTALLED, MIB, interleaved, limit_threads, random

from lora_edu import CODEBOOKS, bof4, bof4_signed, dequantize, expected_error, lloyd_step, quantize

SLIDER = 2**20
PEER_SIZES = (2**20, 2**24)

# A contender prepares its data for a number of weights and returns {measure: call}, as in core.py.


def ours(size, codebook="nf4", storage="float32"):
    """Quantize to a new tensor, dequantize into a given array."""
    weight, out = random(size), np.zeros(size, np.float32)
    q = quantize(weight, BLOCK, CODEBOOKS[codebook], "high-first", storage)
    return {
        "quantize": lambda: quantize(weight, BLOCK, CODEBOOKS[codebook], "high-first", storage),
        "dequantize": lambda: dequantize(q, out),
    }


def bitsandbytes(size, codebook="nf4", storage="float32"):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight, double = core.torch.from_numpy(random(size)), storage == "double"
    packed, state = quantize_4bit(weight, blocksize=BLOCK, quant_type=codebook, compress_statistics=double)
    return {
        "quantize": lambda: quantize_4bit(weight, blocksize=BLOCK, quant_type=codebook, compress_statistics=double),
        "dequantize": lambda: dequantize_4bit(packed, state),
    }


def torchao(size, codebook="nf4", storage="double"):
    to_nf4 = core.torchao_to_nf4()
    weight = core.torch.from_numpy(random(size))
    nf4 = to_nf4(weight, BLOCK)
    return {"quantize": lambda: to_nf4(weight, BLOCK), "dequantize": nf4.get_original_weight}


CONTENDERS = {"lora_edu": ours, "bitsandbytes": bitsandbytes, "torchao": torchao}
GROUPS = {  # what is compared: (codebook, storage of the scales), and the peers that have it
    ("nf4", "float32"): ("lora_edu", "bitsandbytes"),
    ("nf4", "double"): ("lora_edu", "bitsandbytes", "torchao"),
    ("fp4", "float32"): ("lora_edu", "bitsandbytes"),
    ("fp4", "double"): ("lora_edu", "bitsandbytes"),
}


def check():
    """Speed counts only where the results agree."""
    if "bitsandbytes" not in INSTALLED:
        return
    from bitsandbytes.functional import quantize_4bit

    weight = random(SLIDER)
    for kind in ("nf4", "fp4"):
        q = quantize(weight, BLOCK, CODEBOOKS[kind], "high-first", "double")
        packed, state = quantize_4bit(
            core.torch.from_numpy(weight), blocksize=BLOCK, quant_type=kind, compress_statistics=True
        )
        np.testing.assert_array_equal(q.packed, packed.numpy().ravel())
        np.testing.assert_array_equal(q.absmax.codes, state.absmax.numpy())
    print("packed bytes and 8-bit scales equal those of bitsandbytes")


def print_slider(seconds: float):
    """Every codebook on a million weights, and what else a slider calls."""
    print(f"\n2^20 weights\n{'codebook':18}{'scales':9}{'quantize':>16}{'dequantize':>16}   (ms: min, median)")
    made = {}
    for name, codebook in CODEBOOKS.items():
        for storage in ("float32", "float16", "double"):
            if storage != "double" or codebook.scale != "min-max":
                calls = ours(SLIDER, name, storage)
                made |= {(name, storage, measure): call for measure, call in calls.items()}
    times = interleaved(made, seconds)
    for name, storage in dict.fromkeys(key[:2] for key in times):
        cells = "".join(f"{span(times[name, storage, measure]):>16}" for measure in ("quantize", "dequantize"))
        print(f"{name:18}{storage:9}{cells}")
    nf4, levels = CODEBOOKS["nf4"], CODEBOOKS["nf4"].levels
    calls = {
        "expected_error": lambda: expected_error(nf4, BLOCK),
        "expected_error, min-max": lambda: expected_error(CODEBOOKS["int4 asymmetric"], BLOCK),
        "lloyd_step": lambda: lloyd_step(levels, BLOCK),
        "bof4 (cached)": lambda: bof4(BLOCK),
        "bof4_signed (cached)": lambda: bof4_signed(BLOCK),
    }
    for name, runs in interleaved(calls, seconds / 4).items():
        print(f"{name:27}{span(runs):>16}")


def print_peers(seconds: float, threads: int):
    """Ours beside theirs, with ratios and peak memory."""
    for size in PEER_SIZES:
        print(f"\n2^{size.bit_length() - 1} weights, {4 * size / MIB:.0f} MiB, {threads} thread(s)")
        print(f"{'measure':12}{'codes, scales':15}{'contender':14}  min ms   median  x ours  peak MiB")
        for (codebook, storage), names in GROUPS.items():
            present = [name for name in names if name == "lora_edu" or name in INSTALLED]
            made = {name: CONTENDERS[name](size, codebook, storage) for name in present}
            calls = {(measure, name): call for name, calls in made.items() for measure, call in calls.items()}
            times = interleaved(calls, seconds)
            del made, calls
            peaks = {name: peak_memory(name, size, codebook, storage, threads) for name in present}
            for measure, name in sorted(times, key=lambda key: key[0], reverse=True):
                runs, best = times[measure, name], min(times[measure, "lora_edu"])
                peak = peaks[name].get(measure)
                print(
                    f"{measure:12}{codebook + ', ' + storage:15}{name:14}{1e3 * min(runs):8.2f}"
                    f"{1e3 * statistics.median(runs):9.2f}{min(runs) / best:8.2f}"
                    + (f"{peak / MIB:10.1f}" if peak is not None else f"{'-':>10}")
                )


def print_sizes(largest: int):
    """Nanoseconds a weight by size, and what is allocated beyond the result."""
    print("\nnf4, by size: ns a weight (min)\n      quantize  dequantize   double   scratch MiB")
    for power in range(16, largest + 1, 2):
        size = 2**power
        plain, double = ours(size), ours(size, "nf4", "double")
        calls = {**plain, "double": double["quantize"]}
        times = interleaved(calls, seconds=1)
        cells = [1e9 * min(times[key]) / size for key in ("quantize", "dequantize", "double")]
        del plain, double, calls
        scratch = max(core.scratch(ours, size).values()) / MIB
        print(f"2^{power}{cells[0]:10.2f}{cells[1]:12.2f}{cells[2]:9.2f}{scratch:14.2f}")


def span(runs) -> str:
    return f"{1e3 * min(runs):.2f}, {1e3 * statistics.median(runs):.2f}"


def peak_memory(name: str, size: int, codebook: str, storage: str, threads: int) -> dict:
    """Bytes by which each measure raised the resident memory, its result included; in a new process."""
    if not CLEAR_REFS.exists():
        return {}
    command = [sys.executable, __file__, "--threads", str(threads)]
    command += ["--memory-of", name, str(size), codebook, storage]
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc then returns what is freed, and none is used again
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """Parse, check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of BLAS, OpenMP and torch")
    parser.add_argument("--seconds", type=float, default=4, help="of interleaved runs a group")
    parser.add_argument("--largest", type=int, default=26, help="the power of two that the last table ends at")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if "bitsandbytes" in INSTALLED:
        importlib.import_module("bitsandbytes")  # before the threads are limited: its OpenMP has to be loaded
    limit_threads(args.threads)
    if args.memory_of:
        name, size, codebook, storage = args.memory_of
        core.CONTENDERS["this"] = lambda count: CONTENDERS[name](count, codebook, storage)
        core.print_peak_memory("this", int(size))
        return
    check()
    print_slider(args.seconds)
    print_peers(args.seconds, args.threads)
    print_sizes(args.largest)


if __name__ == "__main__":
    main()
