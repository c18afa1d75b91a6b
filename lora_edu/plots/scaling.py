"""The figures of the chapter on scaling."""

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import FixedLocator, NullLocator

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR, apart

RULES = {  # rule -> colour, dash, marker
    "α alone": (COLOUR["W"], ":", "^"),
    "α / √r": (COLOUR["nf4"], "--", "s"),
    "α / r": (COLOUR["delta"], "-", "o"),
}
RANKS = {4: ("#56B4E9", ":"), 16: ("#0072B2", "--"), 64: ("#000000", "-.")}  # light to dark, and by dash
LEVEL = 0.06  # a slope below this is called level
QUANTITIES = {"output": "adapter output", "gradient": "gradient ‖dB‖", "progress": "progress of a first step"}


class SizesByRank(Panel):
    """One quantity by rank under the three rules, log-log, with the slope at the end of each line."""

    def __init__(self, ax, quantity, ranks, first=True):
        super().__init__(ax)
        self.quantity, self.ranks = quantity, ranks
        ax.set(xscale="log", yscale="log", xlim=(0.8, ranks[-1] * 1.4), ylim=(2e-5, 1e7), xlabel="rank")
        ax.xaxis.set_major_locator(FixedLocator([1, 8, 64, 512]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels(["1", "8", "64", "512"])
        ax.axhline(1, color=COLOUR["faint"], lw=1)
        if first:
            ax.set_ylabel("times rank 1 at α = 16")
        else:
            ax.tick_params(labelleft=False)
        ax.set_title(" ")  # keeps the room for the title that moves
        self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom", fontsize=11))
        self.lines, self.labels = {}, {}
        for y, (rule, (colour, dash, marker)) in zip((0.97, 0.895, 0.82), RULES.items(), strict=True):
            self.lines[rule] = self.moves(ax.plot([], [], dash, color=colour, marker=marker))[0]
            self.labels[rule] = self.moves(ax.text(0.04, y, "", transform=ax.transAxes, va="top", color=colour))
            self.labels[rule].set_fontsize(9)

    def update(self, numbers):
        shown = QUANTITIES[self.quantity]
        self.title.set_text(shown + (f": {numbers['optimizer']}" if self.quantity == "progress" else ""))
        for rule, line in self.lines.items():
            sizes, slope = numbers["curves"][self.quantity][rule], numbers["slopes"][self.quantity][rule]
            chosen, level = rule == numbers["rule"], abs(slope) < LEVEL
            line.set_data(self.ranks, sizes)
            line.set(linewidth=3 if chosen else 1.1, markersize=6 if chosen else 3)
            label = self.labels[rule]
            label.set_text(f"{rule}: slope {slope:+.2f}" + (", level" if level and chosen else ""))
            label.set_weight("bold" if chosen else "normal")


def rank_sweep(numbers, ranks) -> Picture:
    """Output, gradient and progress by rank, for the numbers of one rule and optimizer."""
    panels = {
        letter: (lambda ax, quantity=quantity, first=letter == "A": SizesByRank(ax, quantity, ranks, first))
        for letter, quantity in zip("ABC", QUANTITIES, strict=True)
    }
    return Picture((10, 3.9), "ABC", panels, numbers, _describe_rank_sweep)


def _describe_rank_sweep(numbers):
    slopes = numbers["slopes"]
    return (
        f"log-log line charts by rank under three scaling rules: with {numbers['rule']} the adapter output has slope "
        f"{slopes['output'][numbers['rule']]:+.2f}, the gradient {slopes['gradient'][numbers['rule']]:+.2f} and the "
        f"progress of a first {numbers['optimizer']} step {slopes['progress'][numbers['rule']]:+.2f}"
    )


def sizes(numbers, ranks) -> Picture:
    """Output and gradient by rank, side by side."""
    panels = {
        "A": lambda ax: SizesByRank(ax, "output", ranks),
        "B": lambda ax: SizesByRank(ax, "gradient", ranks, first=False),
    }

    def describe(shown):
        found = "; ".join(
            f"{rule} {shown['slopes']['output'][rule]:+.2f} and {shown['slopes']['gradient'][rule]:+.2f}"
            for rule in RULES
        )
        return f"log-log line charts by rank, slope of the adapter output and of the gradient: {found}"

    return Picture((10, 3.7), "AB", panels, numbers, describe)


def progress(states, ranks) -> Picture:
    """Progress of a first step by rank, one panel an optimizer."""
    titled = [(" ", numbers) for numbers in states]  # the panel writes its own
    panel = lambda ax: SizesByRank(ax, "progress", ranks)  # noqa: E731

    def describe(_):
        found = "; ".join(
            f"{n['optimizer']} " + ", ".join(f"{rule} {n['slopes']['progress'][rule]:+.2f}" for rule in RULES)
            for n in states
        )
        return f"log-log line charts of the progress of a first step by rank, slopes: {found}"

    return repeated(panel, len(states), titled, (10, 3.7), describe)


class LossCurves(Panel):
    """Loss by step: the chosen rank in bold, three ranks to compare with."""

    def __init__(self, ax, bold=True):
        super().__init__(ax)
        ax.set(xlim=(0, 47), ylim=(0, 1.1), xlabel="step", xticks=range(0, 41, 10), yticks=[0, 0.5, 1])
        ax.set_ylabel("loss (1 = untouched layer)" if bold else "loss")
        self.chosen = self.moves(ax.plot([], [], color=COLOUR["delta"], lw=5, alpha=0.75))[0] if bold else None
        self.lines, self.labels = {}, {}
        for rank, (colour, dash) in RANKS.items():
            self.lines[rank] = self.moves(ax.plot([], [], dash, color=colour, lw=1.8))[0]
            self.labels[rank] = self.moves(ax.text(40.6, 0, f"r = {rank}", color=colour, fontsize=9, va="center"))
        self.note = self.moves(ax.text(0.5, 0.97, "", transform=ax.transAxes, ha="center", va="top", fontsize=9))

    def update(self, numbers):
        ends = {}
        for rank, losses in numbers["compared"].items():
            self.lines[rank].set_data(range(len(losses)), losses)
            ends[rank] = losses[-1]
        for (rank, end), y in zip(ends.items(), apart(list(ends.values()), 0.1, 0.04, 1.04), strict=True):
            self.labels[rank].set_y(y)
            self.labels[rank].set_text(f"r = {rank}" if end <= 1.1 else f"r = {rank} ↑")
        if self.chosen:
            self.chosen.set_data(range(len(numbers["losses"])), numbers["losses"])
            self.note.set_text(f"rank {numbers['rank']} in pink" + (": diverges" if numbers["diverges"] else ""))


class GradientBars(Panel):
    """‖dA‖ and ‖dB‖ at the first three steps; a gradient of zero has no bar, and says so."""

    LOW, HIGH = 1e-3, 3e3

    def __init__(self, ax, labelled=True):
        super().__init__(ax)
        ax.set(yscale="log", xlim=(-0.5, 2.5), ylim=(self.LOW, self.HIGH), xticks=range(3))
        ax.set_xticklabels([f"step {step}" for step in range(3)])
        ax.yaxis.set_minor_locator(NullLocator())
        if labelled:
            ax.set_ylabel("size of the gradient")
        self.bars, self.texts = [], []
        for shift, name in ((-0.2, "A"), (0.2, "B")):
            at = np.arange(3) + shift
            self.bars.append(self.moves(list(ax.bar(at, self.LOW, width=0.36, color=COLOUR[name]))))
            texts = [ax.text(x, 1, "", ha="center", va="bottom", fontsize=9, color=COLOUR[name]) for x in at]
            self.texts.append(self.moves(texts))
            side = {"ha": "left" if name == "A" else "right", "va": "top"}
            ax.text(
                0.03 if name == "A" else 0.97, 0.96, f"‖d{name}‖", transform=ax.transAxes, color=COLOUR[name], **side
            )

    def update(self, numbers):
        for which, (bars, texts) in enumerate(zip(self.bars, self.texts, strict=True)):
            for step, (bar, text) in enumerate(zip(bars, texts, strict=True)):
                reached = step < len(numbers["norms"])  # a run that diverged is not followed further
                size = numbers["norms"][step, which] if reached else 0
                top = float(np.clip(size, self.LOW, self.HIGH / 10))
                bar.set_height(top)
                number = f"{size:.2g}" if size < 99.5 else f"{size:.0f}"
                text.set_text(number if size > 0 else "exactly 0" if reached else "diverged")
                text.set(y=top * 1.25, rotation=0 if size > 0 else 90)


class Strip(Panel):
    """Digits in columns: what goes in, what comes out after some steps, what is wanted."""

    GAP = 2

    def __init__(self, ax, titles, rows=2):
        super().__init__(ax)
        self.shape = (rows * 8 + (rows - 1) * self.GAP, len(titles) * 8 + (len(titles) - 1) * self.GAP)
        options = {
            "cmap": colormaps["gray_r"].with_extremes(bad="white"),
            "vmin": 0,
            "vmax": 1,
            "interpolation": "nearest",
        }
        self.image = self.moves(ax.imshow(np.zeros(self.shape), **options))
        ax.axis("off")
        for column, title in enumerate(titles):
            x = column * (8 + self.GAP) + 3.5
            ax.text(x, -1.2, title, ha="center", va="bottom", fontsize=10)

    def update(self, numbers):
        canvas = np.full(self.shape, np.nan)
        for column, images in enumerate(numbers["strip"]):
            for row, image in enumerate(images):
                top, left = row * (8 + self.GAP), column * (8 + self.GAP)
                canvas[top : top + 8, left : left + 8] = image
        self.image.set_data(np.ma.masked_invalid(canvas))


def first_steps(numbers, shown) -> Picture:
    """Loss, the first gradients, and the digits as the layer learns to mirror them."""
    titles = ["input", *(f"step {step}" for step in shown), "wanted"]
    panels = {"A": LossCurves, "B": GradientBars, "C": lambda ax: Strip(ax, titles)}
    return Picture((10, 5.6), "AAABB\nCCCCC", panels, numbers, _describe_first_steps, height_ratios=[3, 2])


def _describe_first_steps(numbers):
    d_a, d_b = numbers["norms"][0]
    end = "diverges" if numbers["diverges"] else f"falls to {numbers['loss']:.2f}"
    return (
        f"line chart of the loss, bars of the first gradients and pictures of digits: at rank {numbers['rank']} with "
        f"{numbers['rule']}, alpha {numbers['alpha']} and {numbers['optimizer']} the loss {end}; at step 0 the "
        f"gradient of A is {d_a:.3g} and that of B {d_b:.3g}"
    )


def swap(states) -> Picture:
    """Loss curves at three ranks, one panel for each optimizer and rule."""

    def describe(_):
        found = "; ".join(
            f"{title}: {', '.join(f'{losses[10]:.2f}' for losses in n['compared'].values())}" for title, n in states
        )
        return f"line charts of the loss at ranks {', '.join(map(str, RANKS))}, loss after ten steps: {found}"

    return repeated(lambda ax: LossCurves(ax, bold=False), 2, states, (10, 5.4), describe)


def starts(states) -> Picture:
    """The first gradients from three starts."""

    def describe(_):
        found = "; ".join(f"{title}, dA {n['norms'][0, 0]:.2g} and dB {n['norms'][0, 1]:.2g}" for title, n in states)
        return f"bar charts of the gradients at steps 0, 1 and 2; at step 0: {found}"

    return repeated(GradientBars, 3, states, (10, 3.3), describe)


def _short(loss) -> str:
    return f"{loss:.2f}" if loss < 10 else f"{float(f'{loss:.2g}'):,.0f}"


def loaded(numbers) -> Picture:
    """The same adapter run with several scalings, beside what is wanted."""
    titles = ["wanted", *(f"{name}\nloss {_short(numbers['losses'][name])}" for name in numbers["shown"])]
    shown = {"strip": [numbers["wanted"], *numbers["shown"].values()]}
    found = "; ".join(f"{name} {_short(loss)}" for name, loss in numbers["losses"].items())
    sentence = f"pictures of digits from one trained adapter under several scalings, loss: {found}"
    return Picture((10, 4.4), "A", {"A": lambda ax: Strip(ax, titles)}, shown, lambda _: sentence)


class Entries(Panel):
    """How the entries of A are spread under each init."""

    def __init__(self, ax, entries):
        super().__init__(ax)
        looks = {"kaiming": (COLOUR["int4"], "--"), "reference": (COLOUR["A"], "-"), "gaussian": (COLOUR["W"], ":")}
        bins = np.linspace(-0.4, 0.4, 81)
        for name, (colour, dash) in looks.items():
            share = np.histogram(entries[name], bins)[0] / entries[name].size
            ax.stairs(share, bins, color=colour, ls=dash, lw=2)
        for y, name in zip((0.9, 0.75, 0.6), looks, strict=True):
            text = f"{name}\nstd {entries[name].std():.3f}"
            ax.text(0.99, y, text, transform=ax.transAxes, ha="right", va="center", color=looks[name][0])
        ax.set(xlim=(-0.4, 0.4), ylim=(0, None), yticks=[], xlabel="entry of A")
        ax.spines["left"].set_visible(False)
        ax.set_title("How wide A starts (rank 8, in = 384)")

    def update(self, numbers):
        pass


class Cosine(Panel):
    """How much of the full gradient the first step points along."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        ax.plot(numbers["ranks"], numbers["formula"], "--", color=COLOUR["limit"])
        ax.plot(numbers["ranks"], numbers["cosine"], "o", color=COLOUR["delta"], ms=7)
        ax.set(xscale="log", ylim=(0, 1), xlabel="rank", ylabel="cosine to the full gradient")
        ax.xaxis.set_major_locator(FixedLocator([1, 8, 64, 512]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels(["1", "8", "64", "512"])
        ax.text(0.05, 0.92, "√(r / (r + in + 1))", transform=ax.transAxes, color=COLOUR["limit"])
        ax.text(0.05, 0.82, "measured first SGD step", transform=ax.transAxes, color=COLOUR["delta"])
        ax.set_title("How much of the gradient it sees")

    def update(self, numbers):
        pass


def window(numbers) -> Picture:
    """What A is at the start: how wide, and how much of the gradient passes it."""
    panels = {"A": lambda ax: Entries(ax, numbers["entries"]), "B": lambda ax: Cosine(ax, numbers)}
    spread = ", ".join(f"{name} {entries.std():.3f}" for name, entries in numbers["entries"].items())
    worst = max(abs(a - b) for a, b in zip(numbers["cosine"], numbers["formula"], strict=True))
    sentence = (
        f"histograms of the entries of A, standard deviation {spread}; and the cosine of the first step to the full "
        f"gradient by rank, within {worst:.2f} of the formula"
    )
    return Picture((10, 3.6), "AB", panels, {}, lambda _: sentence)
