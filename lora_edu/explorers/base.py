r"""An explorer: controls around a pure computation and a picture that is drawn once and then updated.

    state --compute--> numbers --picture--> pixels

Only what moves is redrawn over a kept background; the pixels are those of a full drawing. A saved notebook keeps the
picture as it was when the cell ran, so that a reader without a kernel sees it too.
"""

import io
from collections.abc import Callable, Mapping

import ipywidgets as widgets
import numpy as np
from PIL import Image

from lora_edu.plots.picture import Picture
from lora_edu.plots.style import styled


class Explorer:
    r"""Controls, a picture and a line of arithmetic that follow each other.

    Parameters
    ----------
    name : str
        What the explorer is called in its text form.
    controls : mapping of name to ipywidgets control
        Each with a `value`; the values they start with are the default state.
    compute : callable
        Pure, from the state as keyword arguments to a mapping of numbers.
    picture : callable
        From those numbers to a `Picture`.
    explain : callable
        From those numbers to the arithmetic of one weight or one layer, as one line of HTML.
    actions : mapping of label to callable, optional
        Buttons: each goes from the state to the controls that change and their new values.
    """

    def __init__(
        self,
        name: str,
        controls: Mapping[str, widgets.Widget],
        compute: Callable[..., Mapping],
        picture: Callable[[Mapping], Picture],
        explain: Callable[[Mapping], str],
        actions: Mapping[str, Callable[[dict], dict]] | None = None,
    ):
        self.name, self.controls, self.compute, self.explain = name, dict(controls), compute, explain
        self.new_picture = picture
        self._defaults = self.state
        self.numbers = compute(**self.state)
        self.picture = picture(self.numbers)
        self._canvas = LiveCanvas(self.picture)
        self._image = widgets.Image(
            format="png", layout=widgets.Layout(width="100%", max_width=f"{self._canvas.width}px")
        )
        self._line = widgets.HTML()
        reset = widgets.Button(description="Reset", tooltip="Back to the state this explorer opened with")
        reset.on_click(lambda _: self._move(self._defaults, self._follow))
        buttons = [self._button(label, action) for label, action in (actions or {}).items()]
        bar = widgets.HBox([*self.controls.values(), *buttons, reset], layout=widgets.Layout(flex_flow="row wrap"))
        self.widget = widgets.VBox([bar, self._image, self._line])
        for control in self.controls.values():
            control.observe(self._changed, names="value")
        self._held = False
        self._show()

    def _button(self, label, action) -> widgets.Button:
        button = widgets.Button(description=label)
        button.on_click(lambda _: self._move(action(self.state), self._follow))
        return button

    @property
    def state(self) -> dict:
        """The value of each control."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **state):
        """Move several controls at once; the picture follows once."""
        unknown = sorted(set(state) - set(self.controls))
        if unknown:
            raise ValueError(f"no control {', '.join(unknown)}; there are {', '.join(self.controls)}")
        self._move(state, self._refresh)

    def reset(self):
        """Back to the default state."""
        self.set(**self._defaults)

    def _move(self, state, follow: Callable[[], None]):
        self._held = True
        try:
            for name, value in state.items():
                self.controls[name].value = value
        finally:
            self._held = False
            follow()

    def _changed(self, _):
        if not self._held:
            self._follow()

    def _follow(self):
        """What a hand on a control sets off; `set` and `reset` refresh at once in any case."""
        self._refresh()

    def _refresh(self):
        self.numbers = self.compute(**self.state)
        self.picture.update(self.numbers)
        self._show()

    def _show(self):
        self._image.value = self._canvas.png()
        self._line.value = f'<div style="line-height:1.5">{self.explain(self.numbers)}</div>'

    def __str__(self):
        state = " ".join(f"{name}={_short(value)}" for name, value in self.state.items())
        scalars = {name: value for name, value in self.numbers.items() if isinstance(value, int | float)}
        numbers = " ".join(f"{name}={_short(value)}" for name, value in scalars.items() if name not in self.state)
        return f"{self.name}: {state} | {numbers}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        view = self.widget._repr_mimebundle_()
        view = view[0] if isinstance(view, tuple) else view
        still, described = self.picture._repr_mimebundle_()
        return {**view, "image/png": still["image/png"], "text/plain": str(self)}, described


class LiveCanvas:
    """Draws a picture's moving artists over its kept background."""

    def __init__(self, picture: Picture):
        self._picture = picture
        self._canvas = picture.figure.canvas
        hidden = [artist for artist in picture.moving if artist.get_visible()]
        for artist in hidden:
            artist.set_visible(False)  # matplotlib 3.10 draws images although they are animated
        with styled():
            self._canvas.draw()
        for artist in hidden:
            artist.set_visible(True)
        self._background = self._canvas.copy_from_bbox(picture.figure.bbox)
        self.width = self._canvas.get_width_height()[0]

    def png(self) -> bytes:
        """The picture as it stands, as PNG."""
        self._canvas.restore_region(self._background)
        with styled():
            for artist in self._picture.moving:
                artist.axes.draw_artist(artist)
        file = io.BytesIO()
        Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB").save(file, "png", compress_level=1)
        return file.getvalue()


def _short(value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def slider(label: str, options: list, value, *, shown: Callable = str) -> widgets.SelectionSlider:
    """A slider over listed values, with its value written beside it."""
    return widgets.SelectionSlider(
        options=[(shown(option), option) for option in options],
        value=value,
        description=label,
        style={"description_width": "initial"},
        layout=widgets.Layout(width="330px"),
    )


def number_slider(
    label: str, low: float, high: float, step: float, value: float, readout: str = ".2f"
) -> widgets.FloatSlider:
    """A slider over an even range of numbers."""
    return widgets.FloatSlider(
        value,
        min=low,
        max=high,
        step=step,
        description=label,
        readout_format=readout,
        style={"description_width": "initial"},
        layout=widgets.Layout(width="330px"),
    )


def text_box(label: str, suggestions: list[str], width: str = "540px") -> widgets.Combobox:
    """A line to type into, which offers some texts and opens with the first."""
    return widgets.Combobox(
        value=suggestions[0],
        options=suggestions,
        continuous_update=False,
        description=label,
        style={"description_width": "initial"},
        layout=widgets.Layout(width=width, max_width="100%"),
    )


def choice(label: str, options: dict, value) -> widgets.Dropdown:
    """A drop-down list of named values."""
    return widgets.Dropdown(
        options=list(options.items()),
        value=value,
        description=label,
        style={"description_width": "initial"},
        layout=widgets.Layout(width="330px"),
    )
