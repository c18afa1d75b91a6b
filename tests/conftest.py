r"""What every test and every notebook of a whole run shares. Kernels inherit the one BLAS thread set here.

What needs the weights of all-MiniLM-L6-v2 is skipped where they are not installed, unless LORA_EDU_REQUIRE_MODEL=1 asks
for a failure instead: tests marked `needs_model`, and notebooks that say so by their imports.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is imported: sums in one order on every machine

from pathlib import Path

import pytest

from lora_edu import series
from lora_edu.models import minilm

ROOT = Path(__file__).resolve().parents[1]
MISSING = f"all-MiniLM-L6-v2 is not installed; remedy: {minilm.INSTALL}"


def pytest_configure(config):
    config.addinivalue_line("markers", "needs_model: needs the weights of all-MiniLM-L6-v2")


def pytest_collection_modifyitems(items):
    if minilm.installed() or os.environ.get("LORA_EDU_REQUIRE_MODEL") == "1":
        return
    reasons = {path: series.why_not(path) for path in {item.path for item in items} if path.suffix == ".ipynb"}
    for item in items:
        reason = reasons.get(item.path) or (item.get_closest_marker("needs_model") and MISSING)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def root() -> Path:
    r"""The checkout."""
    return ROOT
