r"""What every test shares. Kernels started by the tests inherit the one BLAS thread set here."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported: sums in one order on every machine

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    r"""The checkout."""
    return ROOT
