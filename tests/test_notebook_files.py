r"""The notebook files: executed, clean, short. (A notebook without outputs passes any comparison of outputs.)"""

import json
import re

import pytest

from lora_edu import series

PATHS = series.notebook_paths(series.notebook_folder())
MOST_CODE_LINES = 15
MOST_WORDS = 90
FEWEST_CELLS, MOST_CELLS = 30, 50
SHORT = {"00_start_here.ipynb"}  # an orientation, not a chapter
# What differs from machine to machine or from run to run.
UNSTABLE = re.compile(
    r"(?:^|[\s'\"(=])(?:/(?:home|Users|root|tmp|usr|opt|work|private)/|[A-Z]:\\)"  # absolute paths
    r"|\b0x[0-9a-f]{6,}\b"  # addresses
    r"|\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d"  # times
)


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(cells):
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(cells):
    return [output for cell in code(cells) for output in cell["outputs"]]


def source(cell) -> str:
    return "".join(cell["source"])


def words(cell) -> int:
    r"""Words a reader reads: formulas, tables and link targets are not counted."""
    text = re.sub(r"\$\$.*?\$\$|```.*?```", "", source(cell), flags=re.S)
    text = re.sub(r"^\s*\|.*$", "", text, flags=re.M)
    text = re.sub(r"\]\([^)]*\)|<[^>]*>|\$[^$]*\$", " ", text)
    return len(re.findall(r"\w[\w'’-]*", text))


def test_every_cell_was_executed_in_order(cells):
    assert [cell["execution_count"] for cell in code(cells)] == list(range(1, len(code(cells)) + 1))


def test_a_cell_that_prints_has_its_output(cells):
    silent = [
        source(cell) for cell in code(cells) if re.search(r"^print\(", source(cell), re.M) and not cell["outputs"]
    ]
    assert silent == []


def test_no_error_and_nothing_on_stderr_is_stored(cells):
    assert [o for o in outputs(cells) if o["output_type"] == "error" or o.get("name") == "stderr"] == []


def test_no_widget_is_stored(path, cells):
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    assert [o for o in outputs(cells) if series.WIDGET_VIEW in o.get("data", {})] == []


def test_text_outputs_hold_no_paths_addresses_or_times(cells):
    texts = []
    for output in outputs(cells):
        data = {"text": output.get("text", ""), **output.get("data", {})}
        texts += ["".join(text) for kind, text in data.items() if kind not in series.PICTURES]
    assert [text for text in texts if UNSTABLE.search(text)] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<object at 0x7f0012ab34cd>", True),
        ("File '/home/me/x.py'", True),
        (r"C:\Users\me", True),
        ("2024-05-01 12:30", True),
        ("byte 0x7f, 3/4 of /4096, error 0.0912", False),
    ],
)
def test_what_counts_as_unstable(text, found):
    assert bool(UNSTABLE.search(text)) == found


def test_code_cells_are_short(cells):
    lines = {source(c): sum(bool(line.strip()) for line in source(c).splitlines()) for c in code(cells)}
    assert [text for text, count in lines.items() if count > MOST_CODE_LINES] == []


def test_text_cells_are_short(cells):
    counts = {source(cell): words(cell) for cell in cells if cell["cell_type"] == "markdown"}
    assert {text: count for text, count in counts.items() if count > MOST_WORDS} == {}


def test_never_three_code_cells_in_a_row(cells):
    kinds = [cell["cell_type"] for cell in cells]
    assert [index for index in range(len(kinds) - 2) if kinds[index : index + 3] == ["code"] * 3] == []


def test_number_of_cells(path, cells):
    assert (0 if path.name in SHORT else FEWEST_CELLS) <= len(cells) <= MOST_CELLS


def test_cells_have_ids(path, cells):
    ids = [cell.get("id") for cell in cells]
    assert None not in ids and len(set(ids)) == len(ids)


def test_the_plain_test_command_collects_every_notebook(root, pytestconfig):
    r"""The options in the project file reach nbval, and its folders are those that hold all notebooks."""
    assert pytestconfig.getini("testpaths") == ["tests", "notebooks"]
    assert pytestconfig.getoption("nbval") and pytestconfig.getoption("nbval_current_env")
    on_disk = {p.relative_to(root) for p in root.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    in_folder = {path.relative_to(root) for path in PATHS}
    assert {path for path in on_disk if not any(part.startswith(".") for part in path.parts)} == in_folder
