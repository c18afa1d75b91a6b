r"""The notebooks as files: copying never overwrites, executing repeats itself, and a changed notebook is found out."""

import base64
import json
import zlib
from importlib.metadata import version

import nbformat
import pytest

from lora_edu import series

EXPLORER = """\
import ipywidgets

class Explorer:
    def _repr_mimebundle_(self, include=None, exclude=None):
        view = ipywidgets.IntSlider(value=3)._repr_mimebundle_()
        return {**view, "text/plain": "value=3"}

Explorer()"""
PICTURE = """\
import io
from IPython.display import Image
from matplotlib.figure import Figure
figure, stream = Figure(figsize=(2, 1)), io.BytesIO()
figure.subplots().plot([0, 1])
figure.savefig(stream)
Image(stream.getvalue())"""
PRINTS = """\
import os
print("one")
print("two")
print(os.environ["OPENBLAS_NUM_THREADS"])"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    r"""A folder with one small notebook, as the command stored it."""
    folder = tmp_path_factory.mktemp("series")
    notebook = nbformat.v4.new_notebook(
        metadata={"widgets": {"state": 1}, "language_info": {"name": "python", "version": "3.0"}}
    )
    texts = [nbformat.v4.new_markdown_cell("# A small one")]
    codes = [nbformat.v4.new_code_cell(source) for source in (PRINTS, EXPLORER, PICTURE)]
    notebook.cells = texts + codes
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        cell.metadata = {"scrolled": True, "tags": ["kept"]}
    nbformat.write(notebook, folder / "01_small.ipynb")
    assert series.regenerate(folder, say=lambda line: None) == ["01_small.ipynb"]
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    r"""A copy of that folder to change."""
    series.copy_notebooks(tmp_path, folder)
    return tmp_path


def stored(folder):
    return json.loads((folder / "01_small.ipynb").read_text(encoding="utf-8"))


def check(folder, change=None):
    r"""Change the stored notebook, then compare: what differs, and what the command says."""
    notebook, said = stored(folder), []
    if change:
        change(notebook)
        data = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / "01_small.ipynb").write_bytes(data.encode())
    return series.regenerate(folder, check=True, say=said.append), "\n".join(said)


def test_stored_notebook_is_canonical(folder):
    data = (folder / "01_small.ipynb").read_bytes()
    assert data.endswith(b"}\n") and b"\r" not in data
    notebook = stored(folder)
    assert notebook["metadata"] == {
        "kernelspec": series.KERNELSPEC,
        "language_info": {"name": "python"},
        "lora_edu": {"matplotlib": version("matplotlib"), "arithmetic": series.drawn_by()["arithmetic"]},
    }
    text, prints, explorer, picture = notebook["cells"]
    assert [cell["id"] for cell in notebook["cells"]] == ["cell-0", "cell-1", "cell-2", "cell-3"]
    assert text["metadata"] == prints["metadata"] == {"tags": ["kept"]}
    assert [cell["execution_count"] for cell in (prints, explorer, picture)] == [1, 2, 3]
    assert prints["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["one\n", "two\n", "1\n"]}]
    assert explorer["outputs"][0]["data"] == {"text/plain": ["value=3"]}
    assert set(picture["outputs"][0]["data"]) == {"image/png", "text/plain"}


def test_executing_twice_gives_the_same_bytes(folder):
    path = folder / "01_small.ipynb"
    assert series.execute(path) == series.execute(path) == path.read_bytes()


def test_an_output_of_nothing_but_a_widget_is_dropped():
    view = nbformat.v4.new_output("display_data", {series.WIDGET_VIEW: {"model_id": "1"}})
    cell = nbformat.v4.new_code_cell("slider", outputs=[view, nbformat.v4.new_output("stream", text="kept")])
    notebook = nbformat.reads(series.canonical(nbformat.v4.new_notebook(cells=[cell])).decode(), as_version=4)
    assert [output.output_type for output in notebook.cells[0].outputs] == ["stream"]


def test_check_passes_what_the_command_wrote(copy):
    before = (copy / "01_small.ipynb").read_bytes()
    assert check(copy) == ([], "01_small.ipynb: ok")
    assert (copy / "01_small.ipynb").read_bytes() == before
    assert [path.name for path in copy.iterdir()] == ["01_small.ipynb"]


def test_check_convicts_a_changed_text(copy):
    def change(notebook):
        notebook["cells"][1]["outputs"][0]["text"][1] = "2\n"

    differing, said = check(copy, change)
    assert differing == ["01_small.ipynb"]
    for part in ("01_small.ipynb: differs", "cell 1, In [1]", '-    "2\\n",', '+    "two\\n",'):
        assert part in said


def another_picture(notebook):
    r"""The stored picture with its last rows of pixels gone."""
    output = notebook["cells"][3]["outputs"][0]["data"]
    output["image/png"] = png(width=2, height=1)


def png(width: int, height: int, level: int = 9) -> str:
    r"""A black picture, base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    rows = zlib.compress(bytes((width + 1) * height), level)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def test_check_convicts_a_changed_picture(copy):
    differing, said = check(copy, another_picture)
    assert differing == ["01_small.ipynb"]
    assert "cell 3, In [3]" in said and "2 x 1 pixels" in said


@pytest.mark.parametrize("drawn_by", ["matplotlib", "arithmetic"])
def test_pictures_of_another_machine_are_not_compared_but_text_is(copy, drawn_by):
    def change(notebook):
        another_picture(notebook)
        notebook["metadata"]["lora_edu"][drawn_by] = "3.7.0"

    assert check(copy, change)[0] == []
    differing, said = check(copy, lambda notebook: notebook["cells"][1]["outputs"].clear())
    assert f"pictures not compared, they were drawn by {drawn_by} 3.7.0" in said
    assert differing == ["01_small.ipynb"] and "cell 1" in said and "cell 3" not in said


def test_pictures_are_compared_by_their_pixels():
    def fingerprint(picture):
        return series._fingerprint(base64.b64decode(picture))

    assert png(64, 64, level=1) != png(64, 64, level=9)
    assert fingerprint(png(64, 64, level=1)) == fingerprint(png(64, 64, level=9)) != fingerprint(png(64, 63))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda notebook: notebook["metadata"].update(widgets={"state": {}}), "metadata: - stored"),
        (lambda notebook: notebook["metadata"].pop("lora_edu"), "matplotlib and arithmetic are not recorded"),
        (lambda notebook: notebook["cells"][0]["metadata"].update(collapsed=True), "cell 0"),
        (lambda notebook: notebook["cells"][1].update(execution_count=7), "cell 1"),
    ],
)
def test_check_convicts_what_an_editor_leaves_behind(change, named, copy):
    differing, said = check(copy, change)
    assert differing == ["01_small.ipynb"] and named in said


def test_check_convicts_another_layout(copy):
    path = copy / "01_small.ipynb"
    path.write_bytes(json.dumps(stored(copy)).encode())
    differing, said = check(copy)
    assert differing == ["01_small.ipynb"] and "layout" in said


def test_copy_never_overwrites_and_reports(folder, tmp_path):
    mine = tmp_path / "01_small.ipynb"
    mine.write_text("mine")
    assert series.copy_notebooks(tmp_path, folder) == ([], [mine])
    assert mine.read_text() == "mine"
    mine.unlink()
    assert series.copy_notebooks(tmp_path, folder) == ([mine], [])
    assert mine.read_bytes() == (folder / "01_small.ipynb").read_bytes()
    assert list(tmp_path.iterdir()) == [mine]


def test_a_copy_appears_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    seen = []
    replace = series.Path.replace

    def watched(self, target):
        seen.append((self.read_bytes(), target.read_bytes()))
        return replace(self, target)

    monkeypatch.setattr(series.Path, "replace", watched)
    series.copy_notebooks(tmp_path, folder)
    assert seen == [((folder / "01_small.ipynb").read_bytes(), b"")]


def test_names_choose_notebooks_and_an_unknown_one_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no notebooks in"):
        series.notebook_paths(tmp_path)
    paths = [tmp_path / name for name in ("00_a.ipynb", "01_b.ipynb")]
    for path in paths:
        path.write_text("{}")
    assert series.notebook_paths(tmp_path) == paths
    assert series.notebook_paths(tmp_path, ["01_b", "00_a.ipynb"]) == paths[::-1]
    with pytest.raises(FileNotFoundError, match=r"no notebook named '07_c' in .*; there are: 00_a, 01_b"):
        series.notebook_paths(tmp_path, ["07_c"])
