r"""Predict, then look: the reader commits to an answer, and sees it beside the truth.

    guess = predict("How many of 63 neighbours become zero?", low=0, high=63)
    guess.reveal(24, "A third of the block is gone.")

A prediction that nobody made is a state of its own: the notebook runs through, and its stored text stays the same.
"""

from html import escape

import ipywidgets as widgets

from lora_edu.plots.picture import DISPLAY_DPI
from lora_edu.plots.predict import guess_beside_truth


class Prediction:
    """A question with a slider or choices; `answer` is None until the reader commits."""

    def __init__(self, question: str, *, low: float | None = None, high: float | None = None, unit="", choices=None):
        if (choices is None) == (low is None or high is None):
            raise ValueError("give either choices, or low and high for a number")
        self.question, self.low, self.high, self.unit, self.choices = question, low, high, unit, choices
        self.answer = None
        self._listeners = []
        if choices is None:
            if not low < high:
                raise ValueError(f"low must be below high, got {low} and {high}")
            self.control = widgets.FloatSlider(
                (low + high) / 2, min=low, max=high, step=(high - low) / 100, readout_format=".3g"
            )
            commit = widgets.Button(description="Commit", tooltip="This is my guess")
            commit.on_click(lambda _: self.commit(self.control.value))
            entry = widgets.HBox([self.control, commit])
        else:
            self.control = entry = widgets.RadioButtons(options=list(choices), value=None, layout={"width": "auto"})
            self.control.observe(lambda change: self.commit(change["new"]), names="value")
        self.control.tooltip = question
        self.widget = widgets.VBox([widgets.HTML(f"<b>Predict.</b> {escape(question)}"), entry])

    def commit(self, answer):
        """Answer the question, as the controls do."""
        if self.choices is None and not self.low <= answer <= self.high:
            raise ValueError(f"answer must lie between {self.low:g} and {self.high:g}, got {answer:g}")
        if self.choices is not None and answer not in self.choices:
            raise ValueError(f"answer must be one of {', '.join(self.choices)}, got {answer!r}")
        self.answer = answer
        for listener in self._listeners:
            listener()

    def reveal(self, truth, meaning: str) -> "Reveal":
        """The guess beside the truth, and what the difference means; waits while nobody has answered."""
        return Reveal(self, truth, meaning)

    def __str__(self):
        return f"predict: {self.question}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {**_view(self.widget), "text/plain": str(self)}


class Reveal:
    """What became of a prediction; follows it while it changes."""

    def __init__(self, prediction: Prediction, truth, meaning: str):
        if prediction.choices is not None and truth not in prediction.choices:
            raise ValueError(f"truth must be one of {', '.join(prediction.choices)}, got {truth!r}")
        self.prediction, self.truth, self.meaning = prediction, truth, meaning
        self._line = widgets.HTML()
        self.widget = widgets.VBox([self._line])
        prediction._listeners.append(self._show)
        self._show()

    def _show(self):
        self._line.value = escape(str(self))
        guess = self.prediction.answer
        if guess is not None and self.prediction.choices is None:
            picture = guess_beside_truth(guess, self.truth, self.prediction.low, self.prediction.high, str(self))
            self.widget.children = [self._line, widgets.Image(value=picture.png(DISPLAY_DPI), format="png")]

    def __str__(self):
        guess, unit = self.prediction.answer, self.prediction.unit
        if guess is None:
            return "no prediction yet: answer above, and your guess appears here beside the truth"
        if self.prediction.choices is not None:
            verdict = "as you said" if guess == self.truth else f"you said {guess!r}"
            return f"{self.truth}: {verdict}. {self.meaning}"
        gap = abs(guess - self.truth)
        close = gap <= 0.05 * (self.prediction.high - self.prediction.low)
        verdict = "close" if close else f"{gap:.3g} too {'high' if guess > self.truth else 'low'}"
        return f"you said {guess:.3g}{unit}, it is {self.truth:.3g}{unit}: {verdict}. {self.meaning}"

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {**_view(self.widget), "text/plain": str(self)}


def predict(question: str, **options) -> Prediction:
    """Ask before showing: `low` and `high` (and `unit`) for a number, `choices` for one of several."""
    return Prediction(question, **options)


def _view(widget) -> dict:
    bundle = widget._repr_mimebundle_()
    return bundle[0] if isinstance(bundle, tuple) else bundle
