"""The published figures: all there, described, and drawn again byte for byte."""

import importlib
import pkgutil
import re
from html import unescape

import pytest

from lora_edu import explorers, figures

FOLDER = figures.figure_folder()


@pytest.fixture(scope="module")
def drawn():
    return figures.draw()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with the figures of two chapters, and nothing else to draw: file name -> content."""
    monkeypatch.setattr(figures, "CHAPTERS", ("start", "limit"))
    files = figures.draw()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return files


def test_every_chapter_publishes_a_figure():
    modules = [m.name for m in pkgutil.iter_modules(explorers.__path__) if m.name not in ("base", "live")]
    assert sorted(modules) == sorted(figures.CHAPTERS)
    assert all(importlib.import_module(f"lora_edu.explorers.{name}").FIGURES for name in modules)


def test_the_stored_figures_are_what_the_code_draws(drawn, monkeypatch):
    monkeypatch.setattr(figures, "draw", lambda: dict(drawn))
    assert figures.regenerate(FOLDER, check=True) == []


def test_drawing_twice_gives_the_same_bytes(drawn):
    assert figures.draw() == drawn


def test_the_index_shows_each_figure_with_caption_and_alt_text(drawn):
    index = drawn[figures.INDEX].decode("utf-8")
    for stem, (caption, picture) in figures.published().items():
        alt = picture().alt
        assert caption in index and len(caption) > 40 and len(alt) > 40
        assert alt in [unescape(text) for text in re.findall(r'alt="([^"]*)"', index)]
        assert f"{stem}.png" in index and f"{stem}.svg" in index


def test_a_changed_a_missing_and_a_leftover_file_are_found_and_put_right(tmp_path, small):
    first, second, *_ = sorted(name for name in small if name.endswith(".svg"))
    (tmp_path / first).write_bytes(small[first].replace(b"<", b" <", 1))
    (tmp_path / second).unlink()
    (tmp_path / "old.png").write_bytes(b"nobody publishes this")
    assert figures.regenerate(tmp_path, check=True) == sorted([first, second, "old.png"])
    assert figures.regenerate(tmp_path) == sorted([first, second, "old.png"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == small


def test_under_other_versions_the_words_are_still_compared(tmp_path, small, monkeypatch):
    monkeypatch.setattr(figures, "version", lambda name: "0.0")
    said = []
    assert figures.regenerate(tmp_path, check=True, say=said.append) == []
    assert "bytes not compared" in said[0]
    index = tmp_path / figures.INDEX
    index.write_bytes(index.read_bytes().replace(b"One picture", b"One photo"))
    assert figures.regenerate(tmp_path, check=True) == [figures.INDEX]


def test_two_figures_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(figures, "CHAPTERS", ("start", "start"))
    with pytest.raises(ValueError, match="two chapters publish a figure called 'summary'"):
        figures.published()
