"""Which arithmetic a picture was drawn with: asked for where it can be had, and recognised where it differs."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lora_edu import arithmetic


def fingerprint(environ) -> str:
    run = [sys.executable, "-m", "lora_edu.arithmetic"]
    return subprocess.run(run, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def test_two_processes_in_steady_arithmetic_get_the_same():
    environ = arithmetic.steady(os.environ)
    assert fingerprint(environ) == fingerprint(environ)


def test_it_is_one_thread_and_a_common_kernel_unless_the_reader_chose_one(monkeypatch):
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")
    assert arithmetic.steady({}) == {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}
    theirs = {"OPENBLAS_NUM_THREADS": "4", "OPENBLAS_CORETYPE": "Zen"}
    assert arithmetic.steady(theirs) == {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Zen"}
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "arm64")
    assert arithmetic.steady({"HOME": "here"}) == {"HOME": "here", "OPENBLAS_NUM_THREADS": "1"}


@pytest.mark.parametrize("name", ["exp", "log1p", "tanh"])
def test_a_last_bit_changes_the_fingerprint(monkeypatch, name):
    before, function = arithmetic.fingerprint(), getattr(np, name)
    monkeypatch.setattr(arithmetic.np, name, lambda x: np.nextafter(function(x), x.dtype.type(2)))
    assert arithmetic.fingerprint() != before
