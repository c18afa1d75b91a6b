r"""The command: each subcommand, its exit status and what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_edu import cli, environment, series


@pytest.fixture
def launched(monkeypatch) -> list[list[str]]:
    r"""The argument lists JupyterLab was started with, instead of starting it."""
    calls = []
    monkeypatch.setattr("jupyterlab.labapp.LabApp.launch_instance", calls.append)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return calls


def test_lab_opens_the_checkout_in_place(launched):
    assert cli.main(["lab"]) == 0
    (arguments,) = launched
    folder = series.notebook_folder()
    assert arguments[:2] == [str(folder / "00_start_here.ipynb"), f"--ServerApp.root_dir={folder}"]
    assert "--no-browser" not in arguments


def test_lab_copies_outside_a_checkout_and_keeps_what_is_there(launched, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(series, "in_checkout", lambda: False)
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "lora_edu_notebooks" / "00_start_here.ipynb"
    mine.parent.mkdir()
    mine.write_text("my own notes")
    assert cli.main(["lab"]) == 0
    assert launched[0][0] == str(mine)
    assert mine.read_text() == "my own notes"
    assert "1 already there and left alone" in capsys.readouterr().out


def test_lab_copies_to_the_folder_it_is_given(launched, tmp_path):
    assert cli.main(["lab", str(tmp_path / "class"), "--no-browser", "--", "--port=8899"]) == 0
    assert (tmp_path / "class" / "00_start_here.ipynb").is_file()
    assert "--no-browser" in launched[0]
    assert launched[0][-1] == "--port=8899"


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_lab_allows_root_only_to_root(user, allowed, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    assert ("--allow-root" in cli._lab_arguments(Path("notebooks"), False, [])) == allowed


def test_lab_adds_its_defaults_behind_the_readers_configuration():
    theirs = cli._lab_environment({"JUPYTER_CONFIG_PATH": "theirs", "OPENBLAS_NUM_THREADS": "4"})
    ours = cli._lab_environment({})["JUPYTER_CONFIG_PATH"]
    assert theirs == {"JUPYTER_CONFIG_PATH": f"theirs{os.pathsep}{ours}", "OPENBLAS_NUM_THREADS": "4"}
    settings = json.loads((Path(ours) / "labconfig" / "default_setting_overrides.json").read_text(encoding="utf-8"))
    assert settings["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"


def test_lab_without_jupyterlab_names_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jupyterlab.labapp", None)
    assert cli.main(["lab"]) == 2
    assert capsys.readouterr().err == (
        'lora-edu: JupyterLab is missing; remedy: python -m pip install "lora-edu[notebooks]"\n'
    )


def test_lab_into_a_file_says_so(launched, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["lab", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err
    assert launched == []


@pytest.mark.parametrize(("installed", "status"), [("2.0", 0), ("1.0", 1)])
def test_check_prints_the_table(installed, status, monkeypatch, capsys):
    report = environment.judge({"numpy": "1.26"}, {"numpy": installed})
    monkeypatch.setattr(environment, "check_environment", lambda: report)
    assert cli.main(["check"]) == status
    assert capsys.readouterr().out == f"{sys.executable}\n{report}\n{report.summary()}\n"


@pytest.mark.parametrize(
    ("differing", "check", "status"), [([], True, 0), (["a.ipynb"], True, 1), (["a.ipynb"], False, 0)]
)
def test_notebooks_status(differing, check, status, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(series, "regenerate", lambda *args, **kwargs: asked.append((args, kwargs)) or differing)
    arguments = ["notebooks", "04_nf4_error", "--folder", str(tmp_path), *["--check"] * check]
    assert cli.main(arguments) == status
    assert asked == [((tmp_path,), {"check": check, "names": ["04_nf4_error"]})]


def test_notebooks_refuses_an_unknown_name(capsys):
    assert cli.main(["notebooks", "99_nothing"]) == 2
    assert "no notebook named '99_nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["check", "--", "--port=1"]])
def test_wrong_arguments_end_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "lora-edu" in capsys.readouterr().err


def test_python_dash_m_is_the_same_command():
    run = subprocess.run([sys.executable, "-m", "lora_edu", "--help"], capture_output=True, text=True, check=True)
    for name in cli.COMMANDS:
        assert name in run.stdout


def test_figures_are_drawn_in_steady_arithmetic_whatever_the_environment(monkeypatch, tmp_path):
    seen = {}

    def run(command, env):
        seen.update(command=command, env=env)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(cli.subprocess, "run", run)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert cli.main(["figures", "--check", "--folder", str(tmp_path)]) == 3
    assert seen["env"]["OPENBLAS_NUM_THREADS"] == "1"
    assert seen["command"][-3:] == ["figures", f"--folder={tmp_path}", "--check"]
