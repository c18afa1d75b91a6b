"""The figures of the chapter on building one's own NF4."""

import numpy as np
from matplotlib.collections import LineCollection

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR

BARS = {"NF4": "nf4", "INT4": "int4", "INT4 asymmetric": "int4", "FP4": "fp4", "fitted to the bell": "A"}
CRITERIA = {"mae": ("A", "--", "absolute error"), "mse": ("B", "-", "squared error")}


class LevelsUnderTheBell(Panel):
    """Sixteen levels with the share of weights that each of them gets, under the density of w / absmax."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(-1.06, 1.06), ylim=(0, 0.15), xlabel="w / absmax", yticks=[])
        ax.spines["left"].set_visible(False)
        ax.axhline(1 / 16, color=COLOUR["limit"], ls="--", lw=1.1)
        ax.text(-1.05, 1 / 16 + 0.002, "equal share", fontsize=9)
        self.density = self.moves(ax.plot([], [], color=COLOUR["muted"], lw=1.4))[0]
        self.bars = self.moves(list(ax.bar(np.zeros(16), np.zeros(16), width=0.035, color=COLOUR["nf4"])))
        self.ticks = self.moves(LineCollection([], colors=COLOUR["limit"], linewidths=1.5))
        ax.add_collection(self.ticks)
        self.note = self.moves(ax.text(0.99, 0.97, "", transform=ax.transAxes, ha="right", va="top"))

    def update(self, numbers):
        self.density.set_data(numbers["t"], numbers["density"] * 0.1)
        for i, (bar, level, share) in enumerate(zip(self.bars, numbers["levels"], numbers["usage"], strict=True)):
            bar.set(x=level - 0.0175, height=share)
            bar.set_color(COLOUR["B"] if i == numbers.get("chosen") else COLOUR["nf4"])
        self.ticks.set_segments([[(level, 0), (level, -0.004)] for level in numbers["levels"]])
        self.ticks.set_clip_on(False)
        self.note.set_text(f"entropy {numbers['entropy']:.3f} of 4 bits")


class Valleys(Panel):
    """How much worse than the best of the family each offset is, for both errors; where we stand on each."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0.9, 0.995), ylim=(-0.8, 19), xlabel="offset", ylabel="worse than the best offset (%)")
        self.lines, self.stars, self.dots, self.notes = {}, {}, {}, {}
        for y, (name, (role, dash, _)) in zip((0.97, 0.89), CRITERIA.items(), strict=True):
            colour = COLOUR[role]
            self.lines[name] = self.moves(ax.plot([], [], dash, color=colour))[0]
            self.stars[name] = self.moves(ax.plot([], [], "*", ms=14, color=colour, mec="white"))[0]
            self.dots[name] = self.moves(ax.plot([], [], "o", ms=8, color=colour, mec="white"))[0]
            self.notes[name] = self.moves(ax.text(0.03, y, "", transform=ax.transAxes, va="top", color=colour))
        ax.axvline(0.9677083, color=COLOUR["nf4"], lw=1, ls=":")
        ax.text(0.967, 15.4, "NF4 ", color=COLOUR["nf4"], va="top", ha="right")

    def update(self, numbers):
        for name, excess in numbers["excess"].items():
            best = numbers["offsets"][int(np.argmin(excess))]
            shown = excess < 15
            self.lines[name].set_data(numbers["offsets"][shown], excess[shown])
            self.stars[name].set_data([best], [0])
            self.dots[name].set_data([numbers["offset"]], [np.interp(numbers["offset"], numbers["offsets"], excess)])
            self.notes[name].set_text(f"{CRITERIA[name][2]}: best at {best:.3f}")


def offset(numbers) -> Picture:
    """One number decides the table: the levels of an offset, and where they stand in both valleys."""
    return Picture((10, 4.3), "AABB", {"A": LevelsUnderTheBell, "B": Valleys}, numbers, _describe_offset)


def offset_states(states) -> Picture:
    """The two valleys at several block sizes."""
    titled = [(f"blocks of {n['block_size']}", n) for n in states]

    def describe(_):
        found = "; ".join(f"{title}: {_best(n)}" for title, n in titled)
        return f"line charts of the error by offset, best offset for absolute and squared error, {found}"

    return repeated(Valleys, 3, titled, (10, 4.1), describe)


def _best(n):
    return " and ".join(f"{n['offsets'][int(np.argmin(n['excess'][name]))]:.3f}" for name in CRITERIA)


def _describe_offset(n):
    return (
        f"bars of code usage under the density of w / absmax and line chart of the error by offset: offset "
        f"{n['offset']:.4f} in blocks of {n['block_size']} has entropy {n['entropy']:.3f}, best offsets {_best(n)}"
    )


class Scoreboard(Panel):
    """SNR of known tables as lines, and of the reader's own as a dot."""

    def __init__(self, ax, known):
        super().__init__(ax)
        ax.set(xlim=(0, 1), ylim=(18.4, 21.4), xticks=[], ylabel="SNR (dB), blocks of 64")
        ax.spines["bottom"].set_visible(False)
        for name, snr in known.items():
            colour = COLOUR[BARS.get(name, "muted")]
            ax.axhline(snr, color=colour, lw=1.5)
            ax.text(0.02, snr, f"{name} {snr:.2f}", va="bottom", fontsize=9, color=colour)
        self.dot = self.moves(ax.plot([], [], "o", ms=12, color=COLOUR["B"], mec="white"))[0]
        self.note = self.moves(ax.text(0.72, 0, "", color=COLOUR["B"], ha="right", weight="bold"))

    def update(self, numbers):
        y = max(numbers["snr"], 18.5)
        self.dot.set_data([0.8], [y])
        self.note.set(text=f"yours {numbers['snr']:.2f}", y=y, va="center")


def own_levels(numbers, known) -> Picture:
    """The reader's sixteen levels, and where they stand among the known tables."""
    panels = {"A": LevelsUnderTheBell, "B": lambda ax: Scoreboard(ax, known)}
    return Picture((10, 4.3), "AAABB", panels, numbers, _describe_own)


def own_states(states) -> Picture:
    """The levels after a few Lloyd steps."""
    titled = [(f"{n['steps']} steps: {n['snr']:.2f} dB", n) for n in states]

    def describe(_):
        return "bars of code usage at the levels of a uniform table after Lloyd steps, " + "; ".join(
            t for t, _ in titled
        )

    return repeated(LevelsUnderTheBell, 3, titled, (10, 3.6), describe)


def _describe_own(n):
    return (
        f"bars of code usage at sixteen levels and a scoreboard: from {n['start']} with {n['steps']} Lloyd steps and "
        f"one level moved by {n['moved']:+.2f} the SNR is {n['snr']:.2f} dB"
    )


class Shape(Panel):
    """The distribution on a logarithmic scale beside the bell."""

    def __init__(self, ax, bell):
        super().__init__(ax)
        ax.set(yscale="log", xlim=(-8, 8), ylim=(2e-6, 2), xlabel="weight (σ)", yticks=[])
        ax.spines["left"].set_visible(False)
        ax.minorticks_off()
        self.bars = self.moves(ax.stairs(np.full(64, 1e-7), np.linspace(-8, 8, 65), fill=True, color=COLOUR["W"]))
        ax.plot(*bell, "--", color=COLOUR["A"], zorder=200)
        self.moves(ax.lines[-1])
        ax.text(7.9, 1.2, "bell", color=COLOUR["A"], ha="right", va="top")

    def update(self, numbers):
        self.bars.set_data(np.maximum(numbers["histogram"], 1e-7))


class Ranking(Panel):
    """SNR of each format on one distribution."""

    def __init__(self, ax):
        super().__init__(ax)
        names = list(BARS)[::-1]
        self.bars = dict(zip(names, self.moves(list(ax.barh(range(len(names)), 0, height=0.64))), strict=True))
        self.values = {name: self.moves(ax.text(0, y, "", va="center", fontsize=9)) for y, name in enumerate(names)}
        for y, (name, bar) in enumerate(self.bars.items()):
            bar.set_color(COLOUR[BARS[name]])
            bar.set_hatch("//" if name == "INT4 asymmetric" else None)
            bar.set_edgecolor("white")
            ax.text(-0.4, y, name.replace("asymmetric", "asym."), ha="right", va="center", fontsize=9)
        ax.set(xlim=(0, 27), yticks=[], xlabel="SNR (dB)")

    def update(self, numbers):
        best = max(numbers["snr_by_format"].values())
        for name, snr in numbers["snr_by_format"].items():
            self.bars[name].set_width(max(snr, 0))
            self.values[name].set(x=max(snr, 0) + 0.2, text=f"{snr:.1f}", weight="bold" if snr == best else "normal")


def zoo(numbers, bell) -> Picture:
    """One distribution, and who wins on it."""
    panels = {"A": lambda ax: Shape(ax, bell), "B": Ranking}
    return Picture((10, 3.9), "AABB", panels, numbers, _describe_zoo)


def zoo_states(states) -> Picture:
    """The ranking on three distributions."""
    titled = [(n["name"], n) for n in states]
    return repeated(Ranking, 3, titled, (10, 3.4), lambda _: "; ".join(_describe_zoo(n) for n in states))


def _describe_zoo(n):
    found = ", ".join(f"{name} {snr:.1f}" for name, snr in n["snr_by_format"].items())
    return f"bar chart of SNR on {n['name']} weights in blocks of {n['block_size']}: {found}"


class Blast(Panel):
    """Share of the weights that share a block with an outlier, by block size."""

    def __init__(self, ax, shares):
        super().__init__(ax)
        looks = zip(shares.items(), (("W", ":", "s"), ("int4", "--", "^"), ("B", "-", "o")), strict=True)
        for (probability, (sizes, share)), (role, dash, marker) in looks:
            ax.plot(range(len(sizes)), share, dash, marker=marker, color=COLOUR[role])
            at = int(np.searchsorted(share, 0.6)) if share[-1] > 0.6 else len(sizes) - 1
            ax.text(at - 0.12, share[at], f"1 in {1 / probability:,.0f}", color=COLOUR[role], va="bottom", ha="right")
        ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        ax.set(
            xlim=(-0.2, len(sizes) + 0.2),
            ylim=(0, 1.04),
            xlabel="block size",
            ylabel="weights in a block with an outlier",
        )

    def update(self, numbers):
        pass


class Inliers(Panel):
    """SNR of the ordinary weights beside rare outliers, by block size."""

    def __init__(self, ax, sizes, with_outliers, without):
        super().__init__(ax)
        for snr, role, label in ((without, "nf4", "no outliers"), (with_outliers, "B", "1 in 1,000 at 20σ")):
            ax.plot(range(len(sizes)), snr, "o-", color=COLOUR[role])
            ax.text(2.1, snr[2] + 0.3, label, color=COLOUR[role], va="bottom", ha="left")
        ax.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        ax.set(ylim=(0, 23), xlabel="block size", ylabel="SNR of the others (dB)")

    def update(self, numbers):
        pass


def blast_radius(shares, sizes, with_outliers, without) -> Picture:
    """How far one outlier reaches."""
    panels = {"A": lambda ax: Blast(ax, shares), "B": lambda ax: Inliers(ax, sizes, with_outliers, without)}
    found = ", ".join(f"{size} {snr:.1f}" for size, snr in zip(sizes, with_outliers, strict=True))
    sentence = f"line charts of the weights that an outlier reaches and of the SNR that the others keep: {found} dB"
    return Picture((10, 3.9), "AB", panels, {}, lambda _: sentence)


class Recipes(Panel):
    """Recipes for sixteen levels and what they are worth."""

    def __init__(self, ax, rows):
        super().__init__(ax)
        for y, (name, levels, snr, role) in enumerate(reversed(rows)):
            ax.plot(levels, np.full(len(levels), y), "|", ms=15, mew=2, color=COLOUR[role])
            ax.text(-1.05, y, name, ha="right", va="center", color=COLOUR[role])
            ax.text(1.05, y, f"{snr:.2f} dB", va="center", color=COLOUR[role])
        ax.axvline(0, color=COLOUR["faint"], zorder=0)
        ax.set(xlim=(-1.02, 1.02), ylim=(-0.6, len(rows) - 0.4), yticks=[], xlabel="level (share of the scale)")
        ax.spines["left"].set_visible(False)

    def update(self, numbers):
        pass


def recipes(rows) -> Picture:
    """Levels of each (name, levels, SNR, role) recipe with its SNR."""
    found = ", ".join(f"{name} {snr:.2f} dB" for name, _, snr, _ in rows)
    sentence = f"levels of several recipes and their SNR in blocks of 64: {found}"
    return Picture((10, 3.6), "A", {"A": lambda ax: Recipes(ax, rows)}, {}, lambda _: sentence)
