"""The exercises in the notebooks: each has a stub, a hint and a solution, and the printed solution passes its check."""

import json
import re
from pathlib import Path

import pytest

from lora_edu.classroom import check

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if not path.name.startswith("00")]
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)
CHECKED = re.compile(r"^check\.(\w+)\(\1\)$", re.MULTILINE)


def sources(path, kind) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def solutions(path) -> dict[str, str]:
    """Name of the exercise -> the code that the notebook prints as its solution."""
    blocks = SOLUTION.findall("\n".join(sources(path, "markdown")))
    return {re.findall(r"^def (\w+)\(", block, re.MULTILINE)[-1]: block for block in blocks}


def exercises(path) -> list[str]:
    return CHECKED.findall("\n".join(sources(path, "code")))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_has_three_exercises_each_with_hint_solution_difficulty_and_minutes(path):
    text = "\n".join(sources(path, "markdown"))
    assert len(exercises(path)) == 3
    assert set(solutions(path)) == set(exercises(path))
    assert text.count("<summary>Hint</summary>") == 3
    assert len(re.findall(r"difficulty \d of 3, \d+ minutes", text)) == 3


EXERCISES = [(path, name) for path in CHAPTERS for name in exercises(path)]


@pytest.mark.parametrize(("path", "name"), EXERCISES, ids=lambda value: getattr(value, "stem", value))
def test_the_printed_solution_is_right(path, name):
    names = {}
    exec(sources(path, "code")[0], names)  # the chapter's imports
    exec(solutions(path)[name], names)
    result = getattr(check, name)(names[name])
    assert result.status == "right", str(result)


def test_every_check_is_used_by_one_chapter():
    assert sorted(name for path in CHAPTERS for name in exercises(path)) == sorted(check.__all__)
