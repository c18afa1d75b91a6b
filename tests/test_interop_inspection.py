r"""`lora-edu inspect`: the table, the JSON, and the progress on a terminal."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from lora_edu import LoraAdapter, LoraConfig, LoraLinear, cli
from lora_edu.interop import inspect, read_peft, to_peft, write_peft

GOLDEN = ROOT / "tests" / "golden" / "peft"


def test_the_table_of_a_golden_adapter(capsys):
    folder = GOLDEN / "mlp/patterns"
    assert cli.main(["inspect", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[1:] == [
        "LoRA adapter, base model not named: 3 layers, 512 parameters, 2,664 bytes",
        "",
        "layer   kind    out x in  rank  alpha  scaling  params   norm  sigma1  eff.rank  dtype",
        "fc      linear    8 x 24     6     12        2     192  2.196    1.46      4.82    F32",
        "q_proj  linear   32 x 16     2      8        4      96  4.463    3.42      1.99    F32",
        "v_proj  linear   24 x 32     4      3     0.75     224  1.496   1.014      3.78    F32",
    ]


@pytest.mark.parametrize("case", ["mlp/plain", "mlp/dora", "gpt2/c_attn", "llama/plain"])
def test_json_holds_the_numbers_of_the_layers(case, capsys):
    assert cli.main(["inspect", "--json", str(GOLDEN / case / "adapter_model.safetensors")]) == 0
    found = json.loads(capsys.readouterr().out)
    layers = read_peft(GOLDEN / case).layers
    assert [row["name"] for row in found["layers"]] == list(layers)
    assert found["parameters"] == sum(layer.parameter_count for layer in layers.values())
    assert found["bytes"] == (GOLDEN / case / "adapter_model.safetensors").stat().st_size
    for row in found["layers"]:
        layer = layers[row["name"]]
        delta = layer.delta_weight()
        assert (row["out_features"], row["in_features"]) == delta.shape
        assert row["norm"] == pytest.approx(np.linalg.norm(delta), rel=1e-12)
        assert row["largest"] == pytest.approx(np.linalg.norm(delta, 2), rel=1e-12)
        assert row["effective_rank"] == pytest.approx(layer.effective_rank())
        assert row["kind"] == ("dora" if case == "mlp/dora" else "linear")


def untrained(folder, **settings):
    adapter = LoraAdapter(LoraConfig(rank=2))
    adapter.add("x.ﬀ\x1b[2J", LoraLinear(np.eye(3, dtype=np.float32), rank=2))
    saved = {"head.weight": np.eye(2, dtype=np.float32)}
    write_peft(to_peft(adapter, saved=saved, modules_to_save=["head"], **settings), folder)
    return folder


def test_an_untrained_adapter_has_no_effective_rank_and_a_name_no_control_characters(tmp_path):
    found = inspect(untrained(tmp_path, base_model_name_or_path="some/model"))
    assert (found.layers[0].norm, found.layers[0].effective_rank) == (0, None)
    text = str(found)
    assert r"x.ﬀ\x1b[2J" in text
    assert "LoRA adapter, for some/model: 1 layers" in text
    assert text.endswith("trained whole: head.weight [2, 2]\nnote: modules trained whole: head")


def test_a_terminal_without_unicode_shows_the_name_escaped(tmp_path):
    untrained(tmp_path)
    command = [sys.executable, "-m", "lora_edu", "inspect", str(tmp_path)]
    env = {**__import__("os").environ, "PYTHONIOENCODING": "ascii"}
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (run.returncode, run.stderr) == (0, "")
    assert r"x.\ufb00\x1b[2J" in run.stdout


def test_progress_is_told_layer_by_layer():
    seen = []
    inspect(GOLDEN / "llama/plain", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only_and_wiped(terminal, monkeypatch, capsys):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(cli.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert cli.main(["inspect", str(GOLDEN / "mlp/plain")]) == 0
    err = capsys.readouterr().err
    assert err == ("\r1/2 layers\r2/2 layers\r" + " " * 40 + "\r" if terminal else "")


def test_without_safetensors_the_command_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert cli.main(["inspect", str(GOLDEN / "mlp/plain")]) == 2
    assert capsys.readouterr().err == (
        'lora-edu: safetensors files need the package safetensors; remedy: python -m pip install "lora-edu[files]"\n'
    )
