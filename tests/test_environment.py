r"""The environment check: its verdicts, its remedies, and where its lower bounds come from."""

import tomllib

import pytest

from lora_edu.environment import WIDGET_EXTENSION, check_environment, judge, lower_bounds


def test_lower_bounds_are_those_of_the_project_file(root):
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = project["dependencies"] + project["optional-dependencies"]["notebooks"]
    expected = {"python": project["requires-python"].removeprefix(">=")}
    expected.update(requirement.split(">=") for requirement in stated)
    assert lower_bounds() == expected


def test_this_environment_is_ready():
    report = check_environment()
    assert report.ready, str(report)
    assert report.summary() == "environment: ready"
    assert WIDGET_EXTENSION in [check.name for check in report.checks]


@pytest.mark.parametrize(
    ("bound", "installed", "status"),
    [
        ("8.1", "8.1", "ok"),
        ("8.1", "8.1.0", "ok"),
        ("8.1.0", "8.1", "ok"),
        ("8.1", "8.10", "ok"),
        ("8.1", "9", "ok"),
        ("8.1", "8.1.0rc1", "ok"),
        ("8.1", "8.0.9", "too old"),
        ("8.10", "8.9", "too old"),
        ("8.1", None, "missing"),
        ("", "0.1", "ok"),
        ("", None, "missing"),
    ],
)
def test_verdicts(bound, installed, status):
    (check,) = judge({"ipywidgets": bound}, {"ipywidgets": installed}).checks
    assert check.status == status
    assert bool(check.remedy) == (status != "ok")


def test_table_and_summary_name_the_remedy():
    bounds = {"numpy": "1.26", "matplotlib": "3.8", WIDGET_EXTENSION: ""}
    report = judge(bounds, {"numpy": "1.25.2", "matplotlib": None, WIDGET_EXTENSION: "3.0"})
    assert not report.ready
    assert str(report).splitlines() == [
        "package           installed  needed",
        'numpy             1.25.2     >=1.26  too old  python -m pip install --upgrade "numpy>=1.26"',
        'matplotlib        -          >=3.8   missing  python -m pip install --upgrade "matplotlib>=3.8"',
        "widget extension  3.0        any     ok",
    ]
    assert report.summary().splitlines() == [
        "environment: not ready",
        '  numpy is too old; remedy: python -m pip install --upgrade "numpy>=1.26"',
        '  matplotlib is missing; remedy: python -m pip install --upgrade "matplotlib>=3.8"',
    ]


def test_a_widget_extension_beside_another_python_is_found_out(monkeypatch, tmp_path):
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *subfolders: [str(tmp_path)])
    report = check_environment()
    assert [check.name for check in report.problems] == [WIDGET_EXTENSION]
    assert "jupyterlab_widgets" in report.summary()
