"""The figures of the chapter on merging."""

from itertools import pairwise

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, PercentFormatter

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR

LINES = {  # format -> colour, dash, marker
    "float32": (COLOUR["A"], "-", "s"),
    "float16": (COLOUR["int4"], "--", "^"),
    "bfloat16": (COLOUR["B"], "-", "D"),
    "NF4": (COLOUR["nf4"], "-.", "o"),
}
WAYS = {  # way to merge into 4 bits -> colour, dash, marker, label
    "A": (COLOUR["nf4"], "-.", "o", "A  back to 4 bits"),
    "B": (COLOUR["int4"], "--", "^", "B  quantize 16-bit W + ΔW"),
    "C": (COLOUR["B"], "-", "D", "C  stay in 16 bits"),
}
ROWS = ["W", "+ ΔW", "= sum, exactly", "stored", "stored − ΔW"]
ROW_COLOURS = ["W", "delta", "limit", "A", "W"]
RED = "#C00000"


class Ruler(Panel):
    """The marks of a format around one weight, in units of its update: from 0 to 1, and where it lands."""

    MOST = 160  # marks; more are drawn as one band

    def __init__(self, ax, view=(-2, 6.3), labelled=True):
        super().__init__(ax)
        ax.set(xlim=view, ylim=(-0.75, 1.05), yticks=[])
        ax.xaxis.set_major_locator(FixedLocator([0, 1]))
        ax.set_xticklabels(["W", "W + ΔW"])
        ax.tick_params(axis="x", length=0, pad=2)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        ax.axhline(0, color=COLOUR["W"], lw=1, zorder=1)
        ax.annotate("", (1, 0.5), (0, 0.5), arrowprops={"arrowstyle": "-|>", "color": COLOUR["delta"], "lw": 2.5})
        if labelled:
            ax.text(0.5, 0.56, "the update", ha="center", va="bottom", color=COLOUR["delta"], fontsize=9)
        ax.vlines([0, 1], -0.75, 0.5, color=COLOUR["faint"], lw=1, zorder=0)
        self.view, self.wide = view, labelled and view[1] > 4
        self.band = self.moves(ax.add_patch(Rectangle((view[0], -0.28), view[1] - view[0], 0.56, alpha=0.3, lw=0)))
        self.marks = self.moves(LineCollection([], linewidths=1.6))
        ax.add_collection(self.marks)
        self.fall = self.moves(ax.plot([], [], ":", color=COLOUR["limit"], lw=1.4))[0]
        self.start = self.moves(ax.plot([0], [0], "o", ms=8, color=COLOUR["W"], mec="white"))[0]
        self.landing = self.moves(ax.plot([], [], "v", ms=10, color=COLOUR["limit"], mec="white"))[0]
        self.note = self.moves(ax.text(0, -0.36, "", va="top", fontsize=9))

    def update(self, numbers):
        colour = LINES[numbers["precision"]][0]
        dense = len(numbers["marks"]) > self.MOST
        marks, landing = numbers["marks"], min(numbers["landing"], self.view[1] - 0.1)
        self.band.set(facecolor=colour, visible=dense)
        self.marks.set_segments([] if dense else [[(x, -0.28), (x, 0.28)] for x in marks])
        self.marks.set_color(colour)
        self.fall.set_data([1, landing], [0.5, 0.3])
        self.landing.set_data([landing], [0.22])
        self.note.set_text(f"{numbers['landing']:.0%} of the update arrives" if self.wide else f"{landing:.0%} arrives")
        self.note.set_x(1.08)


class IntendedEffective(Panel):
    """What the update should add against what the stored weights gained, in units of its rms."""

    EDGE = 3.0

    def __init__(self, ax, small=False):
        super().__init__(ax)
        edge = self.EDGE
        ax.set(xlim=(-edge, edge), ylim=(-edge * 1.03, edge * 1.03), xticks=[-2, 0, 2], yticks=[-2, 0, 2])
        ax.set_xlabel("intended" if small else "intended change, in rms of the update")
        ax.set_ylabel("arrived" if small else "what the stored weight gained")
        self.small = small
        ax.plot([-edge, edge], [-edge, edge], color=COLOUR["faint"], lw=6, zorder=0, solid_capstyle="butt")
        if not small:
            ax.text(-1.75, -2.75, "ideal", color=COLOUR["muted"], fontsize=9)
        self.dots = self.moves(ax.plot([], [], "o", ms=2.6, mew=0, alpha=0.6))[0]
        self.note = self.moves(ax.text(0.03, 0.97, "", transform=ax.transAxes, va="top", linespacing=1.4))

    def update(self, numbers):
        self.dots.set_data(numbers["intended"], np.clip(numbers["effective"], -self.EDGE, self.EDGE))
        self.dots.set_color(LINES[numbers["precision"]][0])
        unchanged = "" if self.small else f"\n{numbers['unchanged']:.0%} of the weights\ndo not change"
        self.note.set_text(f"{numbers['share_kept']:.0%} kept{unchanged}")


class LostBySize(Panel):
    """Share of the update that is lost, by its size, one line a format; a ring walks along the chosen one."""

    def __init__(self, ax, sizes, curves, where):
        super().__init__(ax)
        for name, lost in curves.items():
            colour, dash, marker = LINES[name]
            ax.plot(sizes, lost, dash, color=colour, marker=marker, ms=4.5)
            at, shift, side = where[name]
            text = {"color": colour, "fontsize": 9, "weight": "bold", "ha": side}
            ax.annotate(name, (sizes[at], lost[at]), shift, textcoords="offset points", **text)
        ax.axhline(1, color=COLOUR["limit"], ls="--", lw=1.2)
        ax.axhspan(1, 8, color=COLOUR["faint"], alpha=0.5, lw=0)
        ax.text(sizes[-1] * 1.3, 1.25, "no better than no adapter", ha="right", va="bottom", fontsize=9)
        ax.set(xscale="log", yscale="log", xlim=(sizes[0] / 1.4, sizes[-1] * 1.5), ylim=(3e-5, 8))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_yticks([1e-4, 1e-3, 1e-2, 0.1, 1], ["0.01 %", "0.1 %", "1 %", "10 %", "all"])
        ax.set_xlabel("size of the update, in σ of the weight")
        ax.set_ylabel("lost in the merge")
        self.ring = self.moves(ax.plot([], [], "o", ms=14, mfc="none", mew=2.5))[0]

    def update(self, numbers):
        if "lost" not in numbers:
            return
        self.ring.set_data([numbers["size"]], [max(numbers["lost"], 3.3e-5)])
        self.ring.set_color(LINES[numbers["precision"]][0])


WHERE = {  # format -> point that carries the label, where it stands from there, alignment
    "float32": (2, (7, 3), "left"),
    "float16": (5, (-7, -9), "right"),
    "bfloat16": (7, (7, 3), "left"),
    "NF4": (9, (0, 10), "center"),
}


def merge_lab(numbers, sizes, curves) -> Picture:
    """One update in one format: on the ruler of one weight, for many weights, and by size."""
    panels = {
        "A": Ruler,
        "B": IntendedEffective,
        "C": lambda ax: LostBySize(ax, sizes, curves, WHERE),
    }
    return Picture((10, 5.6), "AA\nBC", panels, numbers, _describe_lab, height_ratios=[1, 3])


def _describe_lab(numbers):
    return (
        f"ruler, scatter plot and line chart: an update of {numbers['size']:g} sigma merged in {numbers['precision']} "
        f"keeps {numbers['share_kept']:.0%}, {numbers['unchanged']:.0%} of the weights do not change"
    )


def lab_states(states) -> Picture:
    """Intended against effective for several updates and formats."""
    titled = [(f"{n['precision']}, {n['size']:g}σ", n) for n in states]

    def describe(_):
        return "scatter plots of effective against intended change: " + "; ".join(
            f"{title} keeps {n['share_kept']:.0%}" for title, n in titled
        )

    return repeated(lambda ax: IntendedEffective(ax, small=True), len(titled), titled, (10, 3.2), describe)


def answer(rulers, sizes, curves) -> Picture:
    """Three rulers for one weight and one update, and what is lost by size of the update in four formats."""

    def ruled(numbers, first):
        def draw(ax):
            panel = Ruler(ax, (-1, 2.6), first)
            ax.set_title(f"stored as {numbers['precision']}", fontsize=10, color=LINES[numbers["precision"]][0])
            return panel

        return draw

    panels = {letter: ruled(n, letter == "A") for letter, n in zip("ABC", rulers, strict=True)}
    panels["D"] = lambda ax: LostBySize(ax, sizes, curves, WHERE)
    numbers = dict(zip("ABC", rulers, strict=True))
    lines = "; ".join(f"{name} loses {100 * lost[6]:.3g}% of it" for name, lost in curves.items())
    sentence = (
        f"rulers of three formats around one weight, and line chart of the share of an update that a merge loses, by "
        f"its size, where each format loses more of a smaller update; at {sizes[6]:g} sigma {lines}"
    )
    return Picture((10, 4.9), "AD\nBD\nCD", panels, numbers, lambda _: sentence, width_ratios=[5, 6])


class Outputs(Panel):
    """Difference of merged and unmerged output, one row a format, on a log scale."""

    def __init__(self, ax, differences):
        super().__init__(ax)
        names = list(differences)
        for y, name in enumerate(reversed(names)):
            value = differences[name]
            colour, _, marker = LINES.get(name, (COLOUR["W"], "-", "o"))
            ax.hlines(y, 1e-17, value, color=colour, lw=3)
            ax.plot(value, y, marker, ms=9, color=colour)
            exponent = int(np.floor(np.log10(value)))
            ax.annotate(
                rf"a few $\times 10^{{{exponent}}}$",
                (value, y),
                (12, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        ax.set(xscale="log", xlim=(1e-17, 1), ylim=(-0.6, len(names) - 0.4), yticks=range(len(names)))
        ax.set_yticklabels(reversed(names))
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("difference of merged and unmerged output, as a share of the output")

    def update(self, numbers):
        pass


def outputs(differences) -> Picture:
    """How far merged and unmerged outputs are apart, format by format."""
    sentence = "bar chart of the relative difference of merged and unmerged output: " + ", ".join(
        f"{name} a few 1e{int(np.floor(np.log10(value)))}" for name, value in differences.items()
    )
    return Picture((10, 2.6), "A", {"A": lambda ax: Outputs(ax, differences)}, {}, lambda _: sentence)


class NotBackMap(Panel):
    """A corner of the weight: entries that subtraction did not bring back are dark."""

    def __init__(self, ax, wrong, title):
        super().__init__(ax)
        ax.set_title(title)
        colours = ListedColormap([COLOUR["faint"], COLOUR["B"]])
        ax.imshow(wrong, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[], xlabel="a corner of W; coloured: changed")

    def update(self, numbers):
        pass


class NotBackByMagnitude(Panel):
    """Share of entries that do not come back, by |W|."""

    def __init__(self, ax, edges, shares):
        super().__init__(ax)
        ax.bar(range(len(shares)), shares, color=COLOUR["B"], width=0.85)
        names = [f"{low:g}–{high:g}" for low, high in pairwise(edges[:-1])] + [f"> {edges[-2]:g}"]
        ax.set_xticks(range(len(shares)), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set(xlabel="|W| in σ", ylabel="do not come back", ylim=(0, None), title="Small weights suffer")

    def update(self, numbers):
        pass


class NotBackBySize(Panel):
    """Share of entries that do not come back, by size of the update: the formats agree."""

    def __init__(self, ax, sizes, curves):
        super().__init__(ax)
        for (name, shares), size in zip(curves.items(), (11, 7, 3.5), strict=True):
            colour, _, marker = LINES[name]
            ax.plot(sizes, shares, "-", lw=1, color=colour, marker=marker, ms=size, label=name)
        ax.set(xscale="log", ylim=(0, 0.42), xlabel="size of the update (σ)", title="The same in every format")
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.legend(loc="upper left")

    def update(self, numbers):
        pass


def not_back(numbers, sizes, curves) -> Picture:
    """What subtraction leaves behind: where, in which entries, and in which format."""
    panels = {
        "A": lambda ax: NotBackMap(ax, numbers["map"], f"{numbers['not_back']:.0%} are not W any more"),
        "B": lambda ax: NotBackByMagnitude(ax, numbers["edges"], numbers["by_size"]),
        "C": lambda ax: NotBackBySize(ax, sizes, curves),
    }
    sentence = (
        f"map and charts: after adding and subtracting an update of {numbers['size']:g} sigma in "
        f"{numbers['precision']}, "
        f"{numbers['not_back']:.0%} of the entries are not W any more, {numbers['by_size'][0]:.0%} of the smallest and "
        f"{numbers['by_size'][-1]:.0%} of the largest; three formats lose the same share"
    )
    return Picture((10, 3.6), "ABC", panels, {}, lambda _: sentence)


class Bits(Panel):
    """Five numbers in binary, one below the other, place by place."""

    def __init__(self, ax, columns, labelled=True):
        super().__init__(ax)
        options = {"interpolation": "nearest", "aspect": "auto", "extent": (0, columns, 5, 0)}
        self.image = self.moves(ax.imshow(np.ones((5, columns, 3)), **options))
        grid = [[(x, 0), (x, 5)] for x in range(columns + 1)] + [[(0, y), (columns, y)] for y in range(6)]
        widths = [1.5] * (columns + 1) + [5] * 6
        self.grid = self.moves(ax.add_collection(LineCollection(grid, colors="white", linewidths=widths)))
        self.digits = {
            (digit, dark): self.moves(ax.plot([], [], marker=f"${digit}$", ms=6, mew=0.2, ls="", color=colour))[0]
            for digit in (0, 1)
            for dark, colour in ((True, "white"), (False, COLOUR["W"]))
        }
        ax.set(xlim=(0, columns + 7), ylim=(5, 0))
        ax.set_yticks(np.arange(5) + 0.5, ROWS)
        for text, role in zip(ax.get_yticklabels(), ROW_COLOURS, strict=True):
            text.set_color(COLOUR[role])
        places = np.arange(2, columns + 1, 4)
        ax.set_xticks(places - 0.5, [f"$2^{{-{p}}}$" for p in places] if labelled else [""] * len(places))
        ax.tick_params(length=0)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        self.notes = [self.moves(ax.text(columns + 0.2, y + 0.5, "", va="center", fontsize=9)) for y in range(5)]

    def update(self, numbers):
        bits, lost = numbers["bits"], numbers["lost"]
        pixels = np.ones((*bits.shape, 3))
        for row, role in enumerate(ROW_COLOURS):
            full = np.array(to_rgb(COLOUR[role]))
            pixels[row, bits[row] == 1] = full
            pixels[row, bits[row] == 0] = 0.75 + 0.2 * full
        pixels[lost] = to_rgb(RED)
        self.image.set_data(pixels)
        for (digit, dark), artist in self.digits.items():
            y, x = np.nonzero((bits == digit) & ((lost | (bits == 1)) == dark))
            artist.set_data(x + 0.5, y + 0.5)
        off = int(lost[2].sum())
        words = [f"{value:.5g}" for value in numbers["values"]]
        words[2] = f"{off} bits do not fit" if off else "fits"
        words[4] += "  ✓ is W" if numbers["comes_back"] else "  ✗ not W"
        for note, text in zip(self.notes, words, strict=True):
            note.set_text(text)
        self.notes[2].set_color(RED if off else COLOUR["limit"])
        self.notes[4].set_color(COLOUR["W"] if numbers["comes_back"] else RED)


def bit_by_bit(numbers) -> Picture:
    """One merge and one subtraction in binary."""
    columns = numbers["bits"].shape[1]
    return Picture((10, 3.2), "A", {"A": lambda ax: Bits(ax, columns)}, numbers, _describe_bits)


def _describe_bits(numbers):
    w, _, _, _, back = numbers["values"]
    verdict = "comes back bit for bit" if numbers["comes_back"] else f"comes back as {back:.5g}"
    return (
        f"binary digits of a weight, its update, their sum, what {numbers['precision']} stores of it and what "
        f"subtraction gives back: {w:.5g} {verdict}"
    )


def bits_states(states) -> Picture:
    """Several sums in binary, one below the other."""
    titled = []
    for n in states:
        came = "comes back" if n["comes_back"] else "does not come back"
        titled.append((f"W = {n['values'][0]:.2g}, update {n['values'][1]:.2g}: W {came}", n))
    sentence = f"binary digits of sums in {states[0]['precision']}: " + "; ".join(title for title, _ in titled)
    columns = states[0]["bits"].shape[1]
    return repeated(lambda ax: Bits(ax, columns, labelled=False), 1, titled, (10, 6.4), lambda _: sentence)


class Cliff(Panel):
    """Entries by |e| / half a gap on a log scale, coloured by whether they came back."""

    def __init__(self, ax, law, first):
        super().__init__(ax)
        names, back, gone = law["bins"], law["back"], law["gone"]
        x = np.arange(len(names))
        ax.bar(x, back, color=COLOUR["nf4"], width=0.85)
        ax.bar(x, gone, bottom=back, color=COLOUR["B"], width=0.85, hatch="///", edgecolor="white", lw=0)
        ax.axvline(4, color=COLOUR["limit"], ls="--", lw=1, zorder=0)
        ax.set_xticks(x, names)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set(ylim=(0, 0.42), title=law["precision"], xlabel="|e|, in half gaps of W")
        if first:
            ax.set_ylabel("entries")
            ax.text(3.4, 0.395, "come back", color=COLOUR["nf4"], ha="right", weight="bold")
            ax.text(4.3, 0.12, "do not come back", color=COLOUR["B"], weight="bold")

    def update(self, numbers):
        pass


def law(laws) -> Picture:
    """The law in several formats."""
    letters = "ABCDEF"[: len(laws)]
    panels = {c: (lambda ax, n=n, c=c: Cliff(ax, n, c == "A")) for c, n in zip(letters, laws, strict=True)}
    shares = [sum(n["back"]) for n in laws]
    sentence = (
        "bar charts of the rounding error of an addition, in half gaps of the weight: all entries below one come back, "
        "about half of those at one, none above; in all "
        + ", ".join(f"{share:.0%} in {n['precision']}" for share, n in zip(shares, laws, strict=True))
    )
    return Picture((10, 3.4), letters, panels, {}, lambda _: sentence)


class FourBitLines(Panel):
    """One line for each way to merge into a 4-bit base."""

    def __init__(self, ax, sizes, lines, log):
        super().__init__(ax)
        for way, values in lines.items():
            colour, dash, marker, label = WAYS[way]
            ax.plot(sizes, values, dash, color=colour, marker=marker, ms=5, label=label)
        ax.set(xscale="log", xlabel="size of the update, in σ of the weight")
        ax.set_xticks([0.003, 0.01, 0.03, 0.1, 0.3], ["0.003", "0.01", "0.03", "0.1", "0.3"])
        ax.xaxis.set_minor_locator(NullLocator())
        if log:
            ax.set(yscale="log", ylabel="error, in updates (log)")
            ax.axhline(1, color=COLOUR["limit"], ls="--", lw=1.2)
            ax.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.text(sizes[-1], 1.15, "no better than\nno adapter", ha="right", va="bottom", fontsize=9)
            ax.legend(loc="lower left")
        else:
            edge = max(size for size, share in zip(sizes, lines["A"], strict=True) if share < 0.1)
            ax.axvspan(sizes[0] / 2, edge, color=COLOUR["nf4"], alpha=0.13, lw=0)
            ax.text(np.sqrt(sizes[0] * edge), 0.42, "dead zone", ha="center", color=COLOUR["nf4"], weight="bold")
            ax.set(ylim=(-0.04, 1.24), xlim=(sizes[0] / 1.3, sizes[-1] * 1.2), ylabel="share of the update kept")
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    def update(self, numbers):
        pass


def four_bit(sizes, curves) -> Picture:
    """Share kept and error of three ways to merge into a 4-bit base."""
    panels = {
        "A": lambda ax: FourBitLines(ax, sizes, curves["share"], log=False),
        "B": lambda ax: FourBitLines(ax, sizes, curves["error"], log=True),
    }
    at = sizes.index(0.01)
    sentence = "line charts of three ways to merge into a 4-bit base: at 0.01 sigma " + "; ".join(
        f"{WAYS[way][3]} keeps {curves['share'][way][at]:.0%} with an error of {curves['error'][way][at]:.2g} updates"
        for way in WAYS
    )
    return Picture((10, 3.9), "AB", panels, {}, lambda _: sentence)


class Fan(Panel):
    """The weights of one block while it is merged and unmerged."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 100), ylim=(-6, 6), xlabel="times merged and unmerged", ylabel="weights of a block (σ)")
        self.lines = self.moves(LineCollection([], linewidths=1, colors=COLOUR["nf4"], alpha=0.8))
        ax.add_collection(self.lines)
        self.start = self.moves(ax.plot([], [], "o", ms=4, color=COLOUR["W"], clip_on=False))[0]
        self.now = self.moves(ax.plot([], [], "o", ms=4, color=COLOUR["nf4"], clip_on=False))[0]

    def update(self, numbers):
        paths = np.unique(numbers["weights"].T, axis=0)  # weights of one code stay together
        steps = np.arange(paths.shape[1])
        self.lines.set_segments([np.column_stack([steps, path]) for path in paths])
        self.start.set_data(np.zeros(len(paths)), paths[:, 0])
        self.now.set_data(np.full(len(paths), steps[-1]), paths[:, -1])


class Growth(Panel):
    """Mean growth of the scales by cycle, in 4 and in 16 bits."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 100), ylim=(0.8, 2.5), xlabel="times merged and unmerged", ylabel="mean absmax, × at the start")
        self.four = self.moves(ax.plot([], [], "-.", color=COLOUR["nf4"], lw=2.4))[0]
        self.sixteen = self.moves(ax.plot([], [], "-", color=COLOUR["B"], lw=2.4))[0]
        self.ring = self.moves(ax.plot([], [], "o", ms=12, mfc="none", mew=2.5, color=COLOUR["nf4"], clip_on=False))[0]
        self.note = self.moves(
            ax.text(0.04, 0.96, "", transform=ax.transAxes, va="top", color=COLOUR["nf4"], linespacing=1.4)
        )
        ax.text(99, 0.97, "bfloat16 stays", color=COLOUR["B"], ha="right", va="top", fontsize=9)

    def update(self, numbers):
        steps = np.arange(len(numbers["mean"]))
        self.four.set_data(steps, numbers["mean"])
        self.sixteen.set_data(steps, numbers["sixteen"])
        self.ring.set_data([steps[-1]], [numbers["mean"][-1]])
        self.note.set_text(
            f"NF4: × {numbers['growth']:.2f} after {numbers['cycles']}\n{numbers['standing_still']:.0%} of blocks stay"
        )


def ratchet(numbers) -> Picture:
    """A block that fans out, and the growth of all scales."""
    return Picture((10, 3.9), "AAABB", {"A": Fan, "B": Growth}, numbers, _describe_ratchet)


def _describe_ratchet(numbers):
    return (
        f"line charts: merging and unmerging an update of {numbers['size']:g} sigma {numbers['cycles']} times in NF4 "
        f"makes the mean absmax {numbers['growth']:.2f} times as large"
    )


def ratchet_states(states) -> Picture:
    """The fan for several updates."""
    titled = [(f"{n['size']:g}σ, {n['cycles']} times: × {n['growth']:.2f}", n) for n in states]

    def describe(_):
        return "the weights of one block under repeated merging, mean absmax by update: " + "; ".join(
            title for title, _ in titled
        )

    return repeated(Fan, len(titled), titled, (10, 3.3), describe)
