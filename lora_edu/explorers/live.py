r"""An explorer whose numbers take a while: training behind a slider.

    state --run--> numbers, numbers, …, numbers --picture--> a picture that grows

Moved by hand in a notebook, it works in slices between which the kernel hears what else the hand does: the bar and the
picture grow, and another move ends the run and starts the one now asked for. Built, `set` or reset by a program, it
runs to the end at once, so that what a cell prints next belongs to the state it set.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

import ipywidgets as widgets

from lora_edu.explorers.base import Explorer
from lora_edu.plots.picture import Picture

REDRAW_SECONDS = 0.1  # between two pictures of a run: drawing is not to cost more than training


class LiveExplorer(Explorer):
    r"""An `Explorer` over a generator instead of a function.

    Parameters
    ----------
    run : generator function
        From the state as keyword arguments to mappings of numbers, each enough for the picture and the line under it,
        and each with `progress`, the share done, in [0, 1]. The last one is the result. It should yield every few
        milliseconds: nothing else is heard in between.

    The other parameters are those of `Explorer`.
    """

    def __init__(
        self,
        name: str,
        controls: Mapping[str, widgets.Widget],
        run: Callable[..., Iterator[Mapping]],
        picture: Callable[[Mapping], Picture],
        explain: Callable[[Mapping], str],
        actions: Mapping[str, Callable[[dict], dict]] | None = None,
    ):
        self.run, self._task = run, None
        self._bar = widgets.FloatProgress(1, min=0, max=1, layout=widgets.Layout(width="100%", height="16px"))
        super().__init__(name, controls, self._result, picture, explain, actions)
        controls_row, *below = self.widget.children
        self.widget.children = [controls_row, self._bar, *below]

    def _result(self, **state) -> dict:
        """The numbers at the end of a run."""
        (last,) = deque(self.run(**state), maxlen=1)
        return _without_progress(last)

    def _refresh(self):
        self._cancel()
        super()._refresh()
        self._bar.value = 1

    def _follow(self):
        self._cancel()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # no kernel that could hear anything meanwhile
            self._refresh()
        else:
            self._task = loop.create_task(self._in_slices())

    def _cancel(self):
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _in_slices(self):
        self._bar.value = 0
        drawn = time.monotonic()
        try:
            with closing(self.run(**self.state)) as steps:
                for numbers in steps:
                    self.numbers = _without_progress(numbers)
                    if time.monotonic() - drawn >= REDRAW_SECONDS:
                        self._bar.value = numbers["progress"]
                        self.picture.update(self.numbers)
                        self._show()
                        drawn = time.monotonic()
                    await asyncio.sleep(0)
        except Exception as error:
            self._line.value = f"the run stopped: {type(error).__name__}: {error}"
            raise
        self.picture.update(self.numbers)
        self._show()
        self._bar.value = 1


def _without_progress(numbers: Mapping) -> dict:
    return {name: value for name, value in numbers.items() if name != "progress"}
