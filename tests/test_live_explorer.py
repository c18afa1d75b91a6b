"""Training behind a slider: progress, pictures that grow, and a change that ends the run before it."""

import asyncio
import io

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image

from lora_edu.explorers import live
from lora_edu.explorers.base import slider
from lora_edu.explorers.live import LiveExplorer
from lora_edu.plots.picture import DISPLAY_DPI, Panel, Picture

STEPS = 50


class Curve(Panel):
    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, STEPS), ylim=(0, STEPS * 3))
        (self.line,) = self.moves(ax.plot([], []))

    def update(self, numbers):
        self.line.set_data(range(len(numbers["curve"])), numbers["curve"])


def picture(numbers):
    return Picture((4, 3), "A", {"A": Curve}, numbers, lambda n: f"line chart that climbs to {n['height']}")


class Log:
    """Runs of STEPS steps, and how far each came."""

    def __init__(self):
        self.steps, self.ended = {}, []

    def run(self, rank):
        try:
            self.steps[rank] = 0
            for step in range(1, STEPS + 1):
                self.steps[rank] = step
                yield {
                    "rank": rank,
                    "curve": rank * np.arange(step + 1),
                    "height": rank * step,
                    "progress": step / STEPS,
                }
        finally:
            self.ended.append(rank)


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def explorer(log):
    explorer = LiveExplorer(
        "live", {"rank": slider("rank", [1, 2, 3], 1)}, log.run, picture, lambda n: f"{n['height']}"
    )
    log.steps.clear(), log.ended.clear()
    return explorer


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def shows_the_result_of_its_state(explorer):
    fresh = explorer.new_picture(explorer.compute(**explorer.state))
    return bool((pixels(explorer._image.value) == pixels(fresh.png(DISPLAY_DPI))).all())


async def slices(count):
    for _ in range(count):
        await asyncio.sleep(0)


async def finished(explorer):
    await asyncio.wait_for(asyncio.shield(explorer._task), 10)


def test_without_a_kernel_a_move_runs_to_the_end_at_once(explorer, log):
    explorer.controls["rank"].value = 3
    assert explorer.numbers["height"] == 3 * STEPS and "progress" not in explorer.numbers
    assert explorer._bar.value == 1 and str(explorer) == "live: rank=3 | height=150"
    assert shows_the_result_of_its_state(explorer)


def test_in_a_kernel_a_move_returns_at_once_and_the_run_goes_on_in_slices(explorer, log):
    async def hand():
        explorer.controls["rank"].value = 2
        assert log.steps == {}  # nothing has run yet: the move itself costs nothing
        await slices(10)
        assert 1 < log.steps[2] < STEPS  # others had their turn between the slices
        await finished(explorer)
        assert log.steps[2] == STEPS

    asyncio.run(hand())
    assert explorer.numbers["height"] == 2 * STEPS and explorer._line.value.count(str(2 * STEPS))
    assert shows_the_result_of_its_state(explorer)


def test_a_change_ends_the_run_before_it_and_the_last_request_wins(explorer, log):
    async def hand():
        explorer.controls["rank"].value = 2
        await slices(5)
        explorer.controls["rank"].value = 3
        await slices(3)
        assert log.ended == [2] and log.steps[2] < STEPS  # ended, not left waiting
        explorer.controls["rank"].value = 1
        explorer.controls["rank"].value = 3
        await finished(explorer)

    asyncio.run(hand())
    assert 1 not in log.steps  # overtaken before it began
    assert log.steps[3] == STEPS and explorer.numbers["height"] == 3 * STEPS
    assert shows_the_result_of_its_state(explorer)


def test_set_and_reset_by_a_program_end_a_run_and_have_their_result_at_once(explorer, log):
    async def cell():
        explorer.controls["rank"].value = 2
        await slices(5)
        explorer.set(rank=3)
        assert explorer.numbers["height"] == 3 * STEPS
        explorer.controls["rank"].value = 2
        await slices(5)
        explorer.reset()
        assert explorer.numbers["height"] == STEPS and explorer._bar.value == 1
        await slices(5)

    asyncio.run(cell())
    assert log.steps[2] < STEPS and explorer.numbers["height"] == STEPS
    assert shows_the_result_of_its_state(explorer)


def test_the_reset_button_works_in_slices_too(explorer, log):
    async def hand():
        explorer.set(rank=3)
        log.steps.clear()
        (button,) = [one for one in explorer.widget.children[0].children if isinstance(one, widgets.Button)]
        button.click()
        assert log.steps == {} and explorer.state == {"rank": 1}
        await finished(explorer)

    asyncio.run(hand())
    assert log.steps == {1: STEPS}


def test_bar_and_picture_grow_during_a_run(explorer, log, monkeypatch):
    monkeypatch.setattr(live, "REDRAW_SECONDS", 0.0)
    bars, pictures = [], set()
    explorer._bar.observe(lambda change: bars.append(change["new"]), names="value")
    explorer._image.observe(lambda change: pictures.add(bytes(change["new"])), names="value")

    async def hand():
        explorer.controls["rank"].value = 3
        await finished(explorer)

    asyncio.run(hand())
    assert bars[0] == 0 and bars[-1] == 1 and bars == sorted(bars) and len(bars) > STEPS / 2
    assert len(pictures) > STEPS / 2


def test_between_two_redraws_nothing_is_drawn(explorer, monkeypatch):
    monkeypatch.setattr(live, "REDRAW_SECONDS", 1e9)
    drawn = []
    explorer._image.observe(lambda change: drawn.append(1), names="value")

    async def hand():
        explorer.controls["rank"].value = 3
        await finished(explorer)

    asyncio.run(hand())
    assert len(drawn) == 1


def test_a_run_that_fails_says_so_under_the_picture_and_another_move_works(explorer, log):
    good = explorer.run

    def bad(rank):
        yield next(good(rank))
        raise ArithmeticError("the loss is nan")

    async def hand():
        explorer.run = bad
        explorer.controls["rank"].value = 2
        with pytest.raises(ArithmeticError):
            await finished(explorer)
        assert "the run stopped: ArithmeticError: the loss is nan" in explorer._line.value
        explorer.run = good
        explorer.controls["rank"].value = 3
        await finished(explorer)

    asyncio.run(hand())
    assert explorer._line.value.count("150") and shows_the_result_of_its_state(explorer)
