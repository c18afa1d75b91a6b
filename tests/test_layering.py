r"""Floors: a module imports only from floors below its own, read from the source with `ast`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# Modules, and packages with all they hold, by floor.
FLOORS = {
    "validate": -1,  # the ground: checks that every floor may use
    **dict.fromkeys(
        ["config", "rng", "codebooks", "metrics", "precision", "environment", "files", "limit", "arithmetic"], 0
    ),
    **dict.fromkeys(["blockwise", "linear", "theory"], 1),
    **dict.fromkeys(["qlora", "adapter", "variants", "initialise", "optimal"], 2),
    **dict.fromkeys(["training", "datasets"], 3),
    **dict.fromkeys(["models", "interop"], 4),
    "plots": 5,
    **dict.fromkeys(["explorers", "classroom", "series"], 6),
    "figures": 7,
    "cli": 8,
    **dict.fromkeys(["__init__", "__main__"], 9),  # the two doors
}
# Who may import what beyond the standard library, NumPy and the floors below.
ALLOWED = {
    "ipywidgets": {"explorers", "classroom"},
    "matplotlib": {"plots", "explorers"},
    "safetensors": {"interop"},
}
HEAVY = ("IPython", "ipywidgets", "jupyterlab", "matplotlib", "safetensors")


def room_of(path: Path) -> str:
    r"""`lora_edu/plots/style.py` stands in the room `plots`, `lora_edu/rng.py` in `rng`."""
    return path.parts[1].removesuffix(".py")


def imports(source: str, path: Path) -> set[str]:
    r"""Every module or name imported anywhere in the source, as dotted names, relative ones resolved."""
    package = list(path.with_suffix("").parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            # In `from lora_edu import x` the name is the room; otherwise the module says enough.
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "lora_edu" else {module}
    return found


def faults(source: str, path: Path) -> list[str]:
    r"""What is wrong with the imports of one module; `path` starts at `lora_edu/`."""
    room = room_of(path)
    if room not in FLOORS:
        return [f"{path}: {room!r} stands on no floor; add it to FLOORS"]
    found = []
    for name in sorted(imports(source, path)):
        top, _, rest = name.partition(".")
        if top == "lora_edu":
            other = rest.partition(".")[0] or "__init__"
            if other not in FLOORS:
                found.append(f"{path}: imports {name}, which stands on no floor; import from the module itself")
            elif other != room and FLOORS[other] >= FLOORS[room]:
                found.append(f"{path}: floor {FLOORS[room]} imports {name} of floor {FLOORS[other]}")
        elif top in ALLOWED and room not in ALLOWED[top]:
            found.append(f"{path}: only {' and '.join(sorted(ALLOWED[top]))} import {top}")
    return found


def test_every_module_imports_from_floors_below(root):
    paths = sorted((root / "lora_edu").rglob("*.py"))
    assert len(paths) > 10
    assert [fault for p in paths for fault in faults(p.read_text(encoding="utf-8"), p.relative_to(root))] == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("lora_edu/rng.py", "from lora_edu.blockwise import quantize", "floor 0 imports lora_edu.blockwise of floor 1"),
        ("lora_edu/rng.py", "from lora_edu import config", "floor 0 imports lora_edu.config of floor 0"),
        ("lora_edu/rng.py", "from . import config", "floor 0 imports lora_edu.config of floor 0"),
        (
            "lora_edu/linear.py",
            "def f():\n    from .qlora import QLoraLinear",
            "floor 1 imports lora_edu.qlora of floor 2",
        ),
        ("lora_edu/linear.py", "import lora_edu", "floor 1 imports lora_edu of floor 9"),
        (
            "lora_edu/linear.py",
            "from lora_edu import LoraConfig",
            "imports lora_edu.LoraConfig, which stands on no floor",
        ),
        ("lora_edu/plots/style.py", "from ..explorers.base import Explorer", "floor 5 imports lora_edu.explorers.base"),
        ("lora_edu/plots/style.py", "import ipywidgets as w", "only classroom and explorers import ipywidgets"),
        ("lora_edu/metrics.py", "import matplotlib.pyplot", "only explorers and plots import matplotlib"),
        ("lora_edu/attic.py", "", "'attic' stands on no floor"),
    ],
)
def test_a_planted_import_is_found(path, source, fault):
    (found,) = faults(source, Path(path))
    assert fault in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("lora_edu/blockwise.py", "from lora_edu.codebooks import NF4"),
        ("lora_edu/explorers/nf4.py", "import ipywidgets, matplotlib\nfrom lora_edu.explorers.base import Explorer"),
        ("lora_edu/plots/nf4.py", "from . import style\nfrom .style import PALETTE"),
    ],
)
def test_a_right_import_passes(path, source):
    assert faults(source, Path(path)) == []


def test_importing_the_package_loads_nothing_heavier_than_numpy():
    script = f"import sys, lora_edu; print([name for name in {HEAVY!r} if name in sys.modules], 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[] True"
