"""The figures of the chapter on fine-tuning."""

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR, SIGNED, apart

WAYS = {  # way -> colour, dash
    "full": (COLOUR["W"], "-"),
    "scratch": (COLOUR["limit"], "--"),
    "last layer": (COLOUR["int4"], "-."),
    "biases": (COLOUR["muted"], ":"),
    "untouched": (COLOUR["muted"], ":"),
}
LORA = COLOUR["delta"]
RIGHT, WRONG = COLOUR["nf4"], COLOUR["B"]
GAP = 2  # pixels between two digits


def colour_of(way: str) -> str:
    """The colour of a way of fine-tuning; every rank of LoRA has the same."""
    return WAYS[way][0] if way in WAYS else LORA


class Answers(Panel):
    """Rows of ten digits; under each what the network says, with a tick or a cross."""

    STEP = 8 + GAP
    HEIGHT = 8 + 5

    def __init__(self, ax, titles, text_size=10):
        super().__init__(ax)
        self.rows = len(titles)
        shape = (self.rows * self.HEIGHT, 10 * self.STEP - GAP)
        look = {"cmap": colormaps["gray_r"].with_extremes(bad="white"), "vmin": 0, "vmax": 1}
        self.image = self.moves(ax.imshow(np.zeros(shape), interpolation="nearest", **look))
        self.shape = shape
        ax.axis("off")
        self.texts = []
        for row, title in enumerate(titles):
            top = row * self.HEIGHT
            ax.text(-2, top + 3.5, title, ha="right", va="center", fontsize=10)
            places = [(column * self.STEP + 3.5, top + 10.2) for column in range(10)]
            row_texts = [ax.text(x, y, "", ha="center", va="center", fontsize=text_size) for x, y in places]
            self.texts.append(self.moves(row_texts))

    def update(self, numbers):
        canvas = np.full(self.shape, np.nan)
        for row in range(self.rows):
            for column, image in enumerate(numbers["images"][row]):
                top, left = row * self.HEIGHT, column * self.STEP
                canvas[top : top + 8, left : left + 8] = image
                answer, text = numbers["answers"][row][column], self.texts[row][column]
                right = answer == numbers["wanted"][column]
                text.set_text(f"{answer} {'✓' if right else '✗'}")
                text.set(color=RIGHT if right else WRONG, weight="normal" if right else "bold")
        self.image.set_data(np.ma.masked_invalid(canvas))


class AccuracyByRank(Panel):
    """Accuracy on turned digits by rank, with standard errors, between lines of the other ways."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        ranks = numbers["ranks"]
        mean, error = np.array([numbers["ways"][f"r = {rank}"] for rank in ranks]).T
        ax.errorbar(range(len(ranks)), mean, error, color=LORA, marker="o", ms=7, capsize=3, zorder=3)
        ax.text(0.15, mean[0] - 0.015, "LoRA", color=LORA, weight="bold", va="top")
        others = [way for way in numbers["ways"] if way in WAYS]
        heights = [numbers["ways"][way][0] for way in others]
        for way, height, y in zip(others, heights, apart(heights, 0.04, top=1.0), strict=True):
            colour, dash = WAYS[way]
            ax.plot([-0.3, len(ranks) - 0.6], [height, height], dash, color=colour, lw=1.6)
            ax.text(len(ranks) - 0.5, y, f"{way} {height:.2f}", color=colour, va="center", fontsize=9)
        ax.set(ylim=(0.4, 1.04), xlim=(-0.4, len(ranks) + 1.1), xlabel="rank", ylabel="accuracy on turned digits")
        ax.xaxis.set_major_locator(FixedLocator(range(len(ranks))))
        ax.set_xticklabels([str(rank) for rank in ranks])

    def update(self, numbers):
        pass


def opening(numbers) -> Picture:
    """Ten digits upright, turned, and turned after LoRA, with the network's answers; and the accuracy by rank."""
    titles = ["upright", "turned", "turned,\nafter LoRA"]
    panels = {"A": lambda ax: Answers(ax, titles), "B": lambda ax: AccuracyByRank(ax, numbers)}
    return Picture((10, 3.6), "A" * 13 + "B" * 10, panels, numbers, _describe_opening)


def _describe_opening(n):
    right = [int(np.sum(np.asarray(row) == n["wanted"])) for row in n["answers"]]
    found = ", ".join(f"{way} {mean:.2f}" for way, (mean, _) in n["ways"].items())
    return (
        f"ten digits and a network's answers, {right[0]} right upright, {right[1]} turned, {right[2]} turned after "
        f"LoRA of rank 4; and a line chart of the accuracy on turned digits: {found}"
    )


def by_rank(numbers) -> Picture:
    """Accuracy by rank among the other ways, alone."""
    found = ", ".join(f"{way} {mean:.2f}" for way, (mean, _) in numbers["ways"].items())
    sentence = f"line chart of the accuracy on turned digits by rank, among lines of other ways: {found}"
    return Picture((7.2, 3.8), "A", {"A": lambda ax: AccuracyByRank(ax, numbers)}, numbers, lambda _: sentence)


class Growing(Panel):
    """Accuracy by step: a run that grows, among the means of runs that were made before."""

    def __init__(self, ax, room=730):
        super().__init__(ax)
        ax.set(xlim=(0, room), ylim=(0, 1.02), xlabel="step", ylabel="accuracy on the changed digits")
        ax.xaxis.set_major_locator(FixedLocator([0, 140, 280, 420, 560]))
        self.lines, self.labels = {}, {}
        for way in ("r = 1", "r = 16"):
            self._line(way, LORA, ":", 1.3)
        for way in ("last layer", "full", "scratch"):
            self._line(way, *WAYS[way], 1.5)
        self.live = self.moves(ax.plot([], [], color=LORA, lw=3.4, solid_capstyle="round"))[0]
        self.head = self.moves(ax.plot([], [], "o", color=LORA, ms=9, mec="white"))[0]
        self.note = self.moves(ax.text(0.97, 0.05, "", transform=ax.transAxes, ha="right", color=LORA, weight="bold"))

    def _line(self, way, colour, dash, width):
        self.lines[way] = self.moves(self.ax.plot([], [], dash, color=colour, lw=width))[0]
        self.labels[way] = self.moves(
            self.ax.text(560 + 0.035 * self.ax.get_xlim()[1], 0, way, color=colour, fontsize=9, va="center")
        )

    def update(self, numbers):
        steps, shipped, curve = numbers["steps"], numbers["shipped"], numbers["curve"]
        for way, line in self.lines.items():
            line.set_data(steps, shipped[way])
        ends = [float(shipped[way][-1]) for way in self.labels]
        for label, y in zip(self.labels.values(), apart(ends, 0.062, top=1.0), strict=True):
            label.set_y(y)
        self.live.set_data(steps[: len(curve)], curve)
        self.head.set_data([steps[len(curve) - 1]], [curve[-1]])
        self.note.set_text(f"rank {numbers['rank']} over {numbers['base']}: {curve[-1]:.2f}")


def live(numbers) -> Picture:
    """A run of LoRA as it grows, and what the network says to ten digits meanwhile."""
    panels = {"A": Growing, "B": lambda ax: Answers(ax, [""], text_size=11)}
    return Picture((10, 5.3), "A\nB", panels, numbers, _describe_live, height_ratios=[3.2, 1])


def _describe_live(n):
    compared = ", ".join(f"{way} {n['shipped'][way][-1]:.2f}" for way in ("full", "scratch", "last layer"))
    return (
        f"line chart of the accuracy after {n['change']} while a LoRA of rank {n['rank']} over a {n['base']} base is "
        f"trained: it ends near {n['about']:.1f}; means of other ways: {compared}; below, ten digits and the answers"
    )


def changes(states) -> Picture:
    """The same curves for several changes, each with LoRA of rank 4 in bold."""

    def describe(_):
        found = "; ".join(
            f"{title}: "
            + ", ".join(f"{way} {n['shipped'][way][-1]:.2f}" for way in ("full", "scratch", "last layer"))
            + f", LoRA {n['curve'][-1]:.2f}"
            for title, n in states
        )
        return f"line charts of the accuracy by step after three changes, at the end: {found}"

    return repeated(lambda ax: Growing(ax, room=900), len(states), states, (10, 3.8), describe)


class WhereItPays(Panel):
    """LoRA less scratch, for every change and number of labels; a frame marks the chosen one."""

    LIMIT = 0.3

    def __init__(self, ax, numbers, framed=True):
        super().__init__(ax)
        table = numbers["advantage"]
        ax.imshow(table, cmap=SIGNED, vmin=-self.LIMIT, vmax=self.LIMIT, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            dark = abs(value) > 0.6 * self.LIMIT
            text = f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0.00"
            ax.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize=10)
        ax.set(xticks=range(len(numbers["all_labels"])), yticks=range(len(numbers["changes"])), xlabel="labels")
        ax.set_xticklabels([str(count) for count in numbers["all_labels"]])
        ax.set_yticklabels(numbers["changes"])
        ax.tick_params(length=0)
        ax.set_title("LoRA r = 4 less scratch")
        self.frame = Rectangle((0, 0), 1, 1, fill=False, ec=LORA, lw=4)
        if framed:
            self.moves(ax.add_patch(self.frame))

    def update(self, numbers):
        if self.moving:
            row = numbers["changes"].index(numbers["change"])
            self.frame.set_xy((numbers["all_labels"].index(numbers["labels"]) - 0.5, row - 0.5))


class Standing(Panel):
    """Every way at one change and number of labels: accuracy, standard error, the best and its equals."""

    def __init__(self, ax, ways):
        super().__init__(ax)
        self.ways = list(ways)
        ax.set(xlim=(0, 1.42), ylim=(len(self.ways) - 0.5, -0.5), xlabel="accuracy, ± standard error of 10 splits")
        ax.xaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
        ax.set_yticks(range(len(self.ways)))
        ax.set_yticklabels(self.ways)
        for tick, way in zip(ax.get_yticklabels(), self.ways, strict=True):
            tick.set_color(colour_of(way))
        self.bars = self.moves(list(ax.barh(range(len(self.ways)), [0.0] * len(self.ways), height=0.62)))
        self.errors = [self.moves(ax.plot([], [], color=COLOUR["limit"], lw=2))[0] for _ in self.ways]
        self.texts = [self.moves(ax.text(0, row, "", va="center", fontsize=9)) for row in range(len(self.ways))]
        self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom", fontsize=11))
        ax.set_title(" ")

    def update(self, numbers):
        for row, way in enumerate(self.ways):
            mean, error = numbers["ways"][way]
            best, tied = way == numbers["best"], way in numbers["tied"]
            self.bars[row].set_width(mean)
            self.bars[row].set(color=colour_of(way), alpha=1 if best else 0.6 if tied else 0.25)
            self.errors[row].set_data([mean - error, mean + error], [row, row])
            note = "  best" if best else "  not told apart" if tied else ""
            self.texts[row].set_text(f"{mean:.2f}{note}")
            self.texts[row].set(x=mean + error + 0.02, weight="bold" if best else "normal")
        self.title.set_text(f"{numbers['change']}, {numbers['labels']} labels")


def transfer(numbers) -> Picture:
    """Where LoRA beats scratch, and how every way stands at the chosen place."""
    panels = {"A": lambda ax: WhereItPays(ax, numbers), "B": lambda ax: Standing(ax, numbers["ways"])}
    return Picture((10, 4.4), "AAABBBB", panels, numbers, _describe_transfer)


def _describe_transfer(n):
    found = ", ".join(f"{way} {mean:.2f}" for way, (mean, _) in n["ways"].items())
    tied = f", not told apart from {' and '.join(n['tied'])}" if n["tied"] else ""
    return (
        f"bar chart of the accuracy after {n['change']} with {n['labels']} labels: {found}; best is {n['best']}{tied}; "
        f"beside it a heat map of LoRA less scratch, from {n['advantage'].min():+.2f} to {n['advantage'].max():+.2f}"
    )


def where_it_pays(numbers) -> Picture:
    """LoRA less scratch by change and number of labels."""
    table, changes, labels = numbers["advantage"], numbers["changes"], numbers["all_labels"]
    best, worst = (np.unravel_index(int(pick(table)), table.shape) for pick in (np.argmax, np.argmin))
    sentence = (
        f"heat map of the accuracy of LoRA less that of a fresh start: largest {table[best]:+.2f} after "
        f"{changes[best[0]]} with {labels[best[1]]} labels, smallest {table[worst]:+.2f} after {changes[worst[0]]} "
        f"with {labels[worst[1]]}"
    )
    return Picture(
        (7.2, 4.2), "A", {"A": lambda ax: WhereItPays(ax, numbers, framed=False)}, numbers, lambda _: sentence
    )


ENERGY_LINES = {  # kind -> colour, dash, marker, where its name stands
    "1 epoch": ("#E4B5CF", "-", "v", (1.05, 0.75)),
    "40 epochs": (LORA, "-", "o", (1.95, 0.64)),
    "random labels": (COLOUR["int4"], "--", "s", (9.8, 0.48)),
    "base W": (COLOUR["W"], "-.", "^", (45, 0.5)),
}


class Energy(Panel):
    """Share of the energy that the first directions hold, for several matrices."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        for kind, (colour, dash, marker, place) in ENERGY_LINES.items():
            share, needed = numbers["shares"][kind], numbers["k90"][kind]
            counts = np.arange(1, len(share) + 1)
            ax.plot(counts, share, dash, color=colour, marker=marker, markevery=[0, 1, 3, 7, 15, 31, 63, 127, 255])
            ax.text(*place, f"{kind}\n{needed:.0f} directions", color=colour, fontsize=9, va="top", linespacing=1.3)
        ax.axhline(0.9, color=COLOUR["muted"], lw=1, ls=":")
        ax.text(256, 0.895, "90 %", color=COLOUR["muted"], fontsize=9, ha="right", va="top")
        ax.set(xscale="log", xlim=(0.95, 270), ylim=(0, 1.02), xlabel="directions", ylabel="share of the energy σ²")
        ax.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels(["1", "4", "16", "64", "256"])

    def update(self, numbers):
        pass


def spectra(numbers) -> Picture:
    """How few directions an update uses, beside what it could use."""
    found = ", ".join(f"{kind} {numbers['k90'][kind]:.0f}" for kind in ENERGY_LINES)
    sentence = f"line chart of the share of the energy by the number of directions; 90 % needs, of 256: {found}"
    return Picture((10, 4.2), "A", {"A": lambda ax: Energy(ax, numbers)}, numbers, lambda _: sentence)


FIX_LINES = {  # way -> colour, dash, marker
    "trained LoRA": (LORA, "-", "o"),
    "cut for the data": (COLOUR["A"], "--", "s"),
    "plain cut": (COLOUR["W"], "-.", "^"),
}
SIGNS = {"o": "●", "s": "■", "^": "▲"}


class FixByRank(Panel):
    """One quantity by rank for the three ways to a low-rank fix; a ring marks the chosen one."""

    def __init__(self, ax, numbers, quantity, label, ringed=True):
        super().__init__(ax)
        self.table, ranks = numbers[quantity], numbers["ranks"]
        x, tops = (0.98, (0.24, 0.16, 0.08)) if quantity == "accuracies" else (0.5, (0.92, 0.84, 0.76))
        for y, (way, (colour, dash, marker)) in zip(tops, FIX_LINES.items(), strict=True):
            ax.plot(self.table[way], dash, marker=marker, color=colour, ms=6, mec="white", mew=0.6)
            name = {"color": colour, "fontsize": 9, "weight": "bold", "ha": "right", "va": "center"}
            ax.text(x, y, f"{SIGNS[marker]} {way}", transform=ax.transAxes, **name)
        ax.set(xlim=(-0.4, len(ranks) - 0.6), xlabel="rank", ylabel=label)
        ax.set_ylim(0, 1.04 if quantity == "accuracies" else None)
        ax.xaxis.set_major_locator(FixedLocator(range(len(ranks))))
        ax.set_xticklabels([str(rank) for rank in ranks])
        self.ranks = list(ranks)
        if ringed:
            self.ring = self.moves(ax.plot([], [], "o", ms=15, mfc="none", mew=2.5))[0]

    def update(self, numbers):
        if self.moving:
            at = self.ranks.index(numbers["rank"])
            self.ring.set_data([at], [self.table[numbers["way"]][at]])
            self.ring.set_markeredgecolor(FIX_LINES[numbers["way"]][0])


class Change(Panel):
    """A change of the first weight as a picture, 64 units by 64 pixels."""

    def __init__(self, ax, title, fixed=None, limit=1.0):
        super().__init__(ax)
        look = {"cmap": SIGNED, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
        self.image = ax.imshow(np.zeros((64, 64)) if fixed is None else fixed, **look)
        ax.set(xticks=[], yticks=[], xlabel="64 pixels")
        ax.set_title(" " if title is None else title)
        if fixed is None:
            self.moves(self.image)
            self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom", fontsize=11))

    def update(self, numbers):
        if self.moving:
            self.image.set_data(numbers["matrix"])
            self.title.set_text(f"{numbers['way']}, rank {numbers['rank']}")


def exact_fix(numbers) -> Picture:
    """The perfect change, what is left of it at a rank, and how well the network then reads."""
    limit = float(np.quantile(np.abs(numbers["fix"]), 0.98))
    panels = {
        "A": lambda ax: Change(ax, "the perfect ΔW", numbers["fix"], limit),
        "B": lambda ax: Change(ax, None, limit=limit),
        "C": lambda ax: FixByRank(ax, numbers, "accuracies", "accuracy"),
    }
    return Picture((10, 3.7), "AAABBBCCCC", panels, numbers, _describe_exact_fix)


def _describe_exact_fix(n):
    return (
        f"pictures of the perfect change of the first weight and of the {n['way']} of rank {n['rank']}, whose distance "
        f"from it is {n['distance']:.2f} of its size; line chart of the accuracy by rank, here {n['accuracy']:.2f}"
    )


def best_for_what(numbers) -> Picture:
    """The same three ways judged twice: by the distance to the perfect matrix, and by the accuracy."""
    panels = {
        "A": lambda ax: FixByRank(ax, numbers, "distances", "distance to the perfect ΔW", ringed=False),
        "B": lambda ax: FixByRank(ax, numbers, "accuracies", "accuracy", ringed=False),
    }

    def describe(n):
        at = list(n["ranks"]).index(4)
        found = "; ".join(
            f"{way} {n['distances'][way][at]:.2f} and {n['accuracies'][way][at]:.2f}" for way in FIX_LINES
        )
        return f"line charts by rank of the distance to the perfect change and of the accuracy; at rank 4: {found}"

    return Picture((10, 3.9), "AB", panels, numbers, describe)


BASE_LINES = {"fp32": (COLOUR["W"], "-", "o"), "NF4": (COLOUR["nf4"], "--", "s"), "2-bit": (COLOUR["B"], "-.", "^")}


class Repair(Panel):
    """Accuracy upright of three bases alone and with a trained adapter."""

    def __init__(self, ax, numbers, key, title, labelled=True):
        super().__init__(ax)
        for shift, (base, (colour, dash, marker)) in zip((-0.05, 0, 0.05), BASE_LINES.items(), strict=True):
            mean, error = np.array(numbers[key][base]).T
            at = np.arange(len(mean)) + shift
            ax.errorbar(at, mean, error, ls=dash, color=colour, marker=marker, ms=7, capsize=3)
            if labelled:
                y = {"fp32": 0.984, "NF4": 0.948, "2-bit": mean[0] - 0.015}[base]
                ax.text(0.12, y, f"{base} {mean[0]:.2f}", color=colour, weight="bold", va="center")
        ax.set(xlim=(-0.35, 3.3), xticks=range(4), ylim=(0, 1.04), title=title)
        ax.set_xticklabels([f"r = {rank}" if rank else "alone" for rank in numbers["ranks"]])
        if labelled:
            ax.set(ylim=(0.7, 1.0), ylabel="accuracy")

    def update(self, numbers):
        pass


def repair(numbers) -> Picture:
    """What rounding breaks and an adapter relearns; and that a new task hides all of it."""
    panels = {
        "A": lambda ax: Repair(ax, numbers, "upright", "the old task: upright digits"),
        "B": lambda ax: Repair(ax, numbers, "turned", "a new task: turned digits", labelled=False),
    }

    def describe(n):
        found = "; ".join(
            f"{base} alone {n['upright'][base][0][0]:.2f}, with rank 4 {n['upright'][base][2][0]:.2f}, on turned "
            f"digits {n['turned'][base][2][0]:.2f}"
            for base in BASE_LINES
        )
        return f"line charts of the accuracy over three bases: {found}"

    return Picture((10, 3.8), "AB", panels, numbers, describe)


RULE_LINES = {"α / r": (LORA, "-", "o"), "α / √r": (COLOUR["nf4"], "--", "s")}
RANK_LINES = {
    4: ("#56B4E9", ":", "o"),
    16: ("#0072B2", "--", "s"),
    64: ("#000000", "-.", "^"),
    256: ("#8C8C8C", "-", "D"),
}


class ByRate(Panel):
    """Accuracy by learning rate for four ranks under one rule; a line marks the chosen rate."""

    def __init__(self, ax, rule, rates, first):
        super().__init__(ax)
        self.rule = rule
        ax.set(xscale="log", xlim=(rates[0] / 1.5, rates[-1] * 1.5), ylim=(0, 1), xlabel="learning rate", title=rule)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks([1e-3, 1e-2, 0.1, 1, 10])
        ax.set_xticklabels(["0.001", "0.01", "0.1", "1", "10"], fontsize=8)
        self.rates = rates
        self.lines = {
            rank: self.moves(ax.plot([], [], dash, color=colour, marker=marker, ms=4))[0]
            for rank, (colour, dash, marker) in RANK_LINES.items()
        }
        self.rate = self.moves(ax.axvline(1, color=LORA, lw=6, alpha=0.25))
        if first:
            ax.set_ylabel("accuracy after 100 steps")
            for y, (rank, (colour, _, _)) in zip((0.93, 0.84, 0.75, 0.66), RANK_LINES.items(), strict=True):
                ax.text(0.03, y, f"r = {rank}", transform=ax.transAxes, color=colour, fontsize=9)
        else:
            ax.tick_params(labelleft=False)

    def update(self, numbers):
        for rank, line in self.lines.items():
            line.set_data(self.rates, numbers["by_rate"][self.rule][rank])
        self.rate.set_xdata([numbers["lr"]] * 2)


class AtRate(Panel):
    """Accuracy by rank under both rules at the chosen learning rate, and faintly with each rank's own best one."""

    def __init__(self, ax, ranks):
        super().__init__(ax)
        self.ranks = list(ranks)
        ax.set(xlim=(-0.3, len(self.ranks) - 0.7), ylim=(0, 1), xlabel="rank")
        ax.xaxis.set_major_locator(FixedLocator(range(len(self.ranks))))
        ax.set_xticklabels([str(rank) for rank in self.ranks])
        ax.tick_params(labelleft=False)
        self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom", fontsize=11))
        ax.set_title(" ")
        ax.text(0.98, 0.03, "thin: each at its best rate", transform=ax.transAxes, fontsize=9, ha="right")
        self.tuned, self.lines, self.labels = {}, {}, {}
        for y, (rule, (colour, dash, marker)) in zip((0.95, 0.87), RULE_LINES.items(), strict=True):
            self.tuned[rule] = self.moves(ax.plot([], [], dash, color=colour, lw=1, alpha=0.6))[0]
            self.lines[rule] = self.moves(ax.plot([], [], dash, color=colour, marker=marker, lw=2.6))[0]
            self.labels[rule] = self.moves(ax.text(0.03, y, "", transform=ax.transAxes, color=colour, fontsize=9))

    def update(self, numbers):
        places = range(len(self.ranks))
        self.title.set_text(f"{numbers['optimizer']} at {numbers['lr']:g}")
        for rule, line in self.lines.items():
            line.set_data(places, numbers["at_rate"][rule])
            self.tuned[rule].set_data(places, numbers["tuned"][rule])
            self.labels[rule].set_text(f"{rule}: {numbers['at_rate'][rule][-1]:.2f} at r = {self.ranks[-1]}")


def rates(numbers, grid, ranks) -> Picture:
    """Accuracy by learning rate under both rules, and by rank at the chosen one."""
    panels = {
        "A": lambda ax: ByRate(ax, "α / r", grid, first=True),
        "B": lambda ax: ByRate(ax, "α / √r", grid, first=False),
        "C": lambda ax: AtRate(ax, ranks),
    }
    return Picture((10, 4), "AAABBBCCC", panels, numbers, _describe_rates)


def _describe_rates(n):
    found = ", ".join(
        f"{rule} {n['at_rate'][rule][-1]:.2f} at this rate and {n['tuned'][rule][-1]:.2f} at its own best"
        for rule in RULE_LINES
    )
    return (
        f"line charts of the accuracy after 100 {n['optimizer']} steps by learning rate, and by rank at {n['lr']:g}; "
        f"at the highest rank: {found}"
    )


class FirstStep(Panel):
    """By how much the first step changes the layer's output, by rank, under both rules."""

    def __init__(self, ax, optimizer, numbers, first):
        super().__init__(ax)
        for rule, (colour, dash, marker) in RULE_LINES.items():
            sizes = numbers["moved"][optimizer][rule]
            ax.plot(numbers["ranks"], sizes, dash, marker=marker, color=colour, ms=7)
            ax.text(330, sizes[-1], rule, color=colour, va="center", weight="bold")
        ax.set(xscale="log", yscale="log", xlim=(0.8, 1000), ylim=(1e-4, 0.2), xlabel="rank", title=optimizer)
        ax.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels(["1", "4", "16", "64", "256"])
        if first:
            ax.set_ylabel("relative change of the output")
        else:
            ax.tick_params(labelleft=False)

    def update(self, numbers):
        pass


def first_steps(numbers) -> Picture:
    """The first step by rank, one panel an optimizer."""
    panels = {
        letter: lambda ax, optimizer=optimizer, first=letter == "A": FirstStep(ax, optimizer, numbers, first)
        for letter, optimizer in zip("AB", numbers["moved"], strict=True)
    }
    found = "; ".join(
        f"{optimizer} with {rule} {sizes[-1] / sizes[1]:.2g}"
        for optimizer, by_rule in numbers["moved"].items()
        for rule, sizes in by_rule.items()
    )
    sentence = f"log-log line charts of the change of the output by a first step; rank 256 over rank 4: {found}"
    return Picture((10, 3.5), "AB", panels, numbers, lambda _: sentence)


RATIO_LINES = {1: (LORA, "-", "o"), 4: (COLOUR["A"], "--", "s"), 16: (COLOUR["B"], "-.", "^")}


class Plus(Panel):
    """Accuracy by learning rate when B learns as fast as A, and sixteen times as fast."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        for y, (ratio, (colour, dash, marker)) in zip((0.14, 0.24, 0.34), RATIO_LINES.items(), strict=True):
            curve = numbers["curves"][ratio]
            ax.plot(numbers["rates"], curve, dash, marker=marker, color=colour, ms=6)
            top = int(np.argmax(curve))
            label = "plain LoRA" if ratio == 1 else f"B {ratio} times as fast"
            ax.text(0.0031, y, f"{SIGNS[marker]} {label}", color=colour, weight="bold", fontsize=9)
            ax.plot(numbers["rates"][top], curve[top], "o", ms=14, mfc="none", mec=colour, mew=2)
        ax.set(
            xscale="log", xlim=(2.4e-4, 0.13), ylim=(0, 1), xlabel="learning rate of A", ylabel="accuracy, 100 steps"
        )
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(numbers["rates"])
        ax.set_xticklabels([f"{rate:g}" for rate in numbers["rates"]])

    def update(self, numbers):
        pass


def plus(numbers) -> Picture:
    """LoRA+ by learning rate."""
    found = "; ".join(f"ratio {ratio} best {max(numbers['curves'][ratio]):.2f}" for ratio in RATIO_LINES)
    sentence = f"line chart of the accuracy by learning rate for three ratios of B's rate to A's: {found}"
    return Picture((10, 3.8), "A", {"A": lambda ax: Plus(ax, numbers)}, numbers, lambda _: sentence)
