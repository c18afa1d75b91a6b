r"""The arithmetic that stored pictures were drawn with.

BLAS adds in another order on another processor, or with another number of threads: the last bits differ, and training
makes more of them, up to a curve that lies a pixel higher. `steady` asks for the same order wherever it can be had;
`fingerprint` tells whether it was, so that pictures are compared only where they can be equal.
"""

import hashlib
import platform
from collections.abc import Mapping

import numpy as np


def steady(environ: Mapping[str, str]) -> dict[str, str]:
    r"""`environ` for a process that adds in one order: one BLAS thread, and kernels that every x86-64 with AVX2 has.

    A kernel that the reader chose stays: OpenBLAS reads `OPENBLAS_CORETYPE`, and other libraries ignore it.
    """
    kernels = {"OPENBLAS_CORETYPE": "Haswell"} if platform.machine() in ("x86_64", "AMD64") else {}
    return {**kernels, **environ, "OPENBLAS_NUM_THREADS": "1"}


def fingerprint() -> str:
    r"""Eight hex digits of what this process gets for sums, products, exponentials and a decomposition."""
    x = np.sin(np.arange(300 * 70, dtype=np.float64)).reshape(300, 70)
    narrow = x.astype(np.float32)
    for _ in range(3):
        product = np.exp(-np.abs(narrow.T @ narrow / 9))  # (70, 70)
        narrow = np.log1p(np.abs(narrow @ product)) - narrow.mean(axis=1, keepdims=True)  # (300, 70)
    found = hashlib.sha256(narrow.tobytes())
    for part in (*np.linalg.svd(x @ x.T @ np.exp(x)), np.tanh(x).sum(axis=0)):
        found.update(part.tobytes())
    return found.hexdigest()[:8]


if __name__ == "__main__":
    print(fingerprint())
