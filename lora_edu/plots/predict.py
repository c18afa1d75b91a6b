"""A guess beside the truth on one line."""

from lora_edu.plots.picture import Panel, Picture
from lora_edu.plots.style import COLOUR


class GuessLine(Panel):
    """The range of the question with the guess above it and the truth below."""

    def __init__(self, ax, guess, truth, low, high):
        super().__init__(ax)
        ax.plot([guess, truth], [0, 0], color=COLOUR["faint"], lw=7, solid_capstyle="round", zorder=1)
        ax.plot(guess, 0, "v", ms=11, color=COLOUR["A"])
        ax.plot(truth, 0, "o", ms=11, color=COLOUR["nf4"])
        ax.text(guess, 0.32, f"your guess {guess:.3g}", ha="center", va="bottom", color=COLOUR["A"])
        ax.text(truth, -0.32, f"{truth:.3g}", ha="center", va="top", color=COLOUR["nf4"], weight="bold")
        ax.set(xlim=(min(low, truth), max(high, truth)), ylim=(-1, 1), yticks=[])
        ax.spines["left"].set_visible(False)

    def update(self, numbers):
        pass


def guess_beside_truth(guess, truth, low, high, sentence: str) -> Picture:
    """The guess, the truth, and the distance between them."""
    panel = {"A": lambda ax: GuessLine(ax, guess, truth, low, high)}
    return Picture((6.5, 1.3), "A", panel, {}, lambda _: sentence)
