"""Every explorer of every chapter: its numbers, its pixels, its controls and what a saved notebook keeps of it."""

import importlib
import io
import pkgutil

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image

from lora_edu import explorers
from lora_edu.explorers.base import Explorer, LiveCanvas
from lora_edu.plots.picture import DISPLAY_DPI

CHAPTERS = [
    importlib.import_module(f"{explorers.__name__}.{module.name}")
    for module in pkgutil.iter_modules(explorers.__path__)
    if module.name not in ("base", "live")
]
FACTORIES = [getattr(chapter, name) for chapter in CHAPTERS for name in chapter.__all__]
NEED_MODEL = [getattr(chapter, name) for chapter in CHAPTERS for name in getattr(chapter, "NEEDS_MODEL", ())]
PARAMETERS = [pytest.param(f, marks=pytest.mark.needs_model) if f in NEED_MODEL else f for f in FACTORIES]


@pytest.fixture(scope="module", params=PARAMETERS, ids=lambda f: f"{f.__module__.split('.')[-1]}-{f.__name__}")
def shared(request):
    """Every explorer in turn, made once for all tests: what one of them leaves behind, the next one sees."""
    return request.param()


@pytest.fixture
def explorer(shared):
    yield shared
    if shared.state != shared._defaults:
        shared.reset()


def corners(control) -> list:
    """Both ends and the middle of a control."""
    if isinstance(control, widgets.Checkbox):
        return [True, False]
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) else option for option in control.options]
        return [values[0], values[len(values) // 2], values[-1]]
    middle = control.min + round((control.max - control.min) / 2 / control.step) * control.step
    return [control.min, middle, control.max]


def pixels(png) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB")).astype(int)


def shown(explorer) -> np.ndarray:
    return pixels(explorer._image.value)


def redrawn(explorer) -> np.ndarray:
    """The same state drawn in full on a figure that has never shown anything else."""
    numbers = explorer.compute(**explorer.state)
    return pixels(explorer.new_picture(numbers).png(DISPLAY_DPI))


def test_every_chapter_has_at_least_two_explorers():
    counts = {chapter.__name__.split(".")[-1]: len(chapter.__all__) for chapter in CHAPTERS}
    assert counts.pop("start") == 1  # an orientation, not a chapter
    assert min(counts.values()) >= 2


def test_the_numbers_are_finite_and_repeat_at_the_ends_and_the_middle_of_every_control(explorer):
    moved = [(name, value) for name, control in explorer.controls.items() for value in corners(control)]
    states = [explorer.state, *({**explorer.state, name: value} for name, value in moved)]
    for state in [one for at, one in enumerate(states) if one not in states[:at]]:
        numbers, again = explorer.compute(**state), explorer.compute(**state)
        for key, number in numbers.items():
            if isinstance(number, float | np.ndarray) and np.asarray(number).dtype.kind == "f":
                assert np.isfinite(number).all(), (key, state)
            if isinstance(number, int | float | np.ndarray):
                assert np.array_equal(number, again[key]), (key, state)


def test_moving_a_control_changes_picture_and_line_and_reset_brings_them_back(explorer):
    before, text, lines = shown(explorer), str(explorer), {explorer._line.value}
    for name, control in explorer.controls.items():
        changed = False
        for value in corners(control):
            if value != control.value:
                control.value = value
                lines.add(explorer._line.value)
                changed = changed or bool((shown(explorer) != before).any())
        assert changed, f"{name} does nothing"
        explorer.reset()
    assert len(lines) > 1
    assert (shown(explorer) == before).all()
    assert str(explorer) == text


def test_after_a_walk_the_pixels_equal_the_same_state_on_a_new_figure(explorer):
    rng = np.random.default_rng(0)
    for _ in range(4):
        ends = {name: corners(control) for name, control in explorer.controls.items()}
        explorer.set(**{name: values[rng.integers(len(values))] for name, values in ends.items()})
        assert (shown(explorer) == redrawn(explorer)).all(), explorer.state


def test_controls_are_labelled_and_can_be_reset_by_keyboard(explorer):
    for control in explorer.controls.values():
        assert control.description
    *_, button = [child for child in explorer.widget.children[0].children if isinstance(child, widgets.Button)]
    assert button.description == "Reset"
    text = str(explorer)
    control = next(iter(explorer.controls.values()))
    control.value = next(value for value in corners(control) if value != control.value)
    button.click()
    assert str(explorer) == text


def test_a_saved_notebook_keeps_the_picture_its_alt_text_and_a_line_of_numbers(explorer):
    assert isinstance(explorer, Explorer)
    data, metadata = explorer._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert len(metadata["image/png"]["alt"]) > 30
    assert data["text/plain"] == str(explorer)
    assert explorer.name in str(explorer) and "|" in str(explorer)


def test_an_unknown_control_is_refused_by_name():
    with pytest.raises(ValueError, match="no control blok; there are"):
        FACTORIES[0]().set(blok=1)


def test_set_moves_several_controls_and_draws_once(monkeypatch):
    explorer = FACTORIES[0]()
    drawn = []
    monkeypatch.setattr(LiveCanvas, "png", lambda self: drawn.append(1) or b"png")
    explorer.set(**{name: corners(control)[0] for name, control in explorer.controls.items()})
    assert len(drawn) == 1


def test_the_pixel_test_convicts_a_stale_artist():
    explorer = FACTORIES[0]()
    panel = next(iter(explorer.picture.panels.values()))
    panel.update = lambda numbers: None  # a panel that forgets to follow
    control = next(iter(explorer.controls.values()))
    control.value = next(value for value in corners(control) if value != control.value)
    assert (shown(explorer) != redrawn(explorer)).any()


def test_the_pixel_test_convicts_a_static_artist_above_a_moving_one():
    explorer = FACTORIES[0]()
    panel = next(iter(explorer.picture.panels.values()))
    moving = explorer.picture.moving
    panel.ax.axvspan(*panel.ax.get_xlim(), color="white", zorder=1000)  # hides what moves in a full drawing only
    explorer._canvas = LiveCanvas(explorer.picture)
    explorer._show()
    assert moving and (shown(explorer) != pixels(explorer.picture.png(DISPLAY_DPI))).any()
