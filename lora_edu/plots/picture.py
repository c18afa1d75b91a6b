r"""A `Picture` is a figure with one message and a sentence that says it; its panels can be updated in place.

A panel draws what stays once and registers what moves; `update` gives the moving artists new numbers. Everything that
moves lies above everything that stays, so an explorer may keep the background and redraw the moving artists alone, and
the pixels are those of a full drawing.
"""

import io
from collections.abc import Callable, Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_edu.plots.style import styled

MOVING = 100  # zorder added to whatever moves
DISPLAY_DPI = 125  # 10 point text stays above 8 points where a narrow window shows the picture at two thirds
FILE_DPI = 200


class Panel:
    """One pair of axes: what stays is drawn by `__init__`, what moves is changed by `update`."""

    def __init__(self, ax):
        self.ax = ax
        self.moving: list[Artist] = []

    def moves(self, artist):
        """Register an artist (or a list of them) that `update` changes; returns it."""
        for one in artist if isinstance(artist, Sequence) else [artist]:
            one.set_zorder(one.get_zorder() + MOVING)
            one.set_animated(True)
            one.set_in_layout(False)
            self.moving.append(one)
        return artist

    def update(self, numbers: Mapping):
        """Show `numbers`."""
        raise NotImplementedError


class Picture:
    r"""Panels on a figure, and the sentence that stands for them.

    Parameters
    ----------
    size : (width, height) in hundreds of screen pixels; a cell is 10 wide
    mosaic : str
        As for `Figure.subplot_mosaic`, one letter a panel.
    panels : mapping of letter to Panel class (or any callable from axes to Panel)
    numbers : mapping, or mapping of letter to mapping
        What the panels show: one mapping shared by all, or one for each letter.
    describe : callable
        From `numbers` to the sentence: "line chart of SNR by block size, where …".
    """

    def __init__(
        self, size, mosaic: str, panels: Mapping[str, Callable], numbers, describe: Callable[..., str], **grid
    ):
        with styled():
            inches = [100 * length / DISPLAY_DPI for length in size]
            self.figure = Figure(figsize=inches, dpi=DISPLAY_DPI, layout="constrained")
            FigureCanvasAgg(self.figure)
            axes = self.figure.subplot_mosaic(mosaic, gridspec_kw=grid or None)
            self.panels = {letter: panels[letter](axes[letter]) for letter in panels}
            self.figure.draw_without_rendering()
            self.figure.set_layout_engine("none")  # laid out once: an update moves nothing else
        self.describe = describe
        self.update(numbers)

    @property
    def moving(self) -> list[Artist]:
        """What moves, panel by panel, in drawing order."""
        return [one for panel in self.panels.values() for one in sorted(panel.moving, key=Artist.get_zorder)]

    def update(self, numbers):
        """Show other numbers in the same figure."""
        for letter, panel in self.panels.items():
            panel.update(numbers.get(letter, numbers))
        self.alt = self.describe(numbers)

    def png(self, dpi: int = FILE_DPI) -> bytes:
        """The picture as PNG, drawn in full."""
        return self._bytes("png", dpi=dpi, metadata={"Software": None})

    def svg(self) -> bytes:
        """The picture as SVG, the same bytes each time."""
        return self._bytes("svg", metadata={"Date": None, "Creator": None, "Title": self.alt})

    def _bytes(self, kind, **options) -> bytes:
        file = io.BytesIO()
        with styled():
            self.figure.savefig(file, format=kind, **options)
        return file.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        width, height = self.figure.get_size_inches() * DISPLAY_DPI
        shown = {"width": int(width), "height": int(height), "alt": self.alt}
        return {"image/png": self.png(), "text/plain": self.alt}, {"image/png": shown}


def repeated(panel: Callable, columns: int, states: Sequence[tuple[str, Mapping]], size, describe) -> Picture:
    """Small multiples: the same panel once for each (title, numbers) of `states`, in rows of `columns`."""
    letters = [chr(ord("A") + i) for i in range(len(states))]
    letters += ["."] * (-len(letters) % columns)
    rows = ["".join(letters[i : i + columns]) for i in range(0, len(letters), columns)]

    def titled(title):
        def draw(ax):
            drawn = panel(ax)
            ax.set_title(title)
            return drawn

        return draw

    panels = {letter: titled(title) for letter, (title, _) in zip(letters, states, strict=False)}
    numbers = {letter: shown for letter, (_, shown) in zip(letters, states, strict=False)}
    return Picture(size, "\n".join(rows), panels, numbers, describe)
