"""The figures of the chapter on NF4 error."""

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, PercentFormatter

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR, MAGNITUDE

LINES = {  # name of the weights -> colour, dash, marker
    "Gaussian": (COLOUR["limit"], "--", "o"),
    "query": (COLOUR["A"], "-", "s"),
    "attention output": (COLOUR["int4"], "-", "^"),
    "FFN down": (COLOUR["B"], "-", "D"),
}

LABEL_SHIFT = {"Gaussian": 8, "query": -8}  # points, where two lines end together


class SnappingBlock(Panel):
    """64 weights above, the values they come back as below, a line from each to its own; in units of sigma."""

    HALF_WIDTH = 3.6

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(
            xlim=(-self.HALF_WIDTH, self.HALF_WIDTH), ylim=(-0.42, 1.3), xlabel="weight, in σ of the block's neighbours"
        )
        ax.yaxis.set_major_locator(FixedLocator([0, 1]))
        ax.set_yticklabels(["comes back as", "was"])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        self.lines = self.moves(LineCollection([], colors=COLOUR["muted"], linewidths=0.9))
        ax.add_collection(self.lines)
        self.ticks = self.moves(LineCollection([], colors=COLOUR["nf4"], linewidths=2.4))
        ax.add_collection(self.ticks)
        self.was = self.moves(ax.plot([], [], "o", ms=5, color=COLOUR["W"], mec="white", mew=0.5))[0]
        self.back = self.moves(ax.plot([], [], "o", ms=5, color=COLOUR["nf4"], mec="white", mew=0.5))[0]
        self.outlier = self.moves(ax.plot([], [], "*", ms=13, color=COLOUR["B"], mec="white", mew=0.5))[0]
        self.note = self.moves(ax.text(0, 1.16, "", ha="right", va="bottom", color=COLOUR["B"], fontsize=9))

    def update(self, numbers):
        was, back, k = numbers["neighbours"], numbers["restored"], numbers["k"]
        pairs = zip(was, back, strict=True)
        self.lines.set_segments([[(w, 0.93), (b, 0.07)] for w, b in pairs])
        self.ticks.set_segments([[(x, -0.3), (x, -0.12)] for x in numbers["grid"] if abs(x) <= self.HALF_WIDTH])
        self.was.set_data(was, np.ones_like(was))
        self.back.set_data(back, np.zeros_like(back))
        shown = min(k, self.HALF_WIDTH - 0.08)
        self.outlier.set_data([shown], [1])
        self.note.set_text(f"outlier at {k:g}σ" + (" →" if k > shown else ""))
        self.note.set_x(shown + 0.06)


class CodeUse(Panel):
    """How many of the neighbours use each of the sixteen codes."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(-0.7, 15.7), ylim=(0, 66), xlabel="code", ylabel="neighbours that use it")
        ax.xaxis.set_major_locator(FixedLocator([0, 3, 7, 11, 15]))
        ax.set_xticklabels(["0", "3", "7\n(zero)", "11", "15"])
        colours = [COLOUR["B"] if code == 7 else COLOUR["nf4"] for code in range(16)]
        self.bars = self.moves(list(ax.bar(range(16), np.zeros(16), width=0.8, color=colours)))
        self.note = self.moves(ax.text(0.98, 0.97, "", transform=ax.transAxes, ha="right", va="top", linespacing=1.5))

    def update(self, numbers):
        for bar, count in zip(self.bars, numbers["counts"], strict=True):
            bar.set_height(count)
        self.note.set_text(
            f"{numbers['zeroed']} of {len(numbers['neighbours'])} became 0\n"
            f"{numbers['codes_used']} of 16 codes in use\ntheir SNR is {numbers['snr']:.1f} dB"
        )


def microscope(numbers) -> Picture:
    """One block under the microscope, for the numbers of one outlier."""
    return Picture((10, 3.9), "AAABB", {"A": SnappingBlock, "B": CodeUse}, numbers, _describe_microscope)


def microscope_states(states) -> Picture:
    """The snapping block at several outliers: the story of the slider without the slider."""
    titled = [(f"{numbers['k']:g}σ: {numbers['zeroed']} of 63 become 0", numbers) for numbers in states]

    def describe(_):
        return "dot plots of one block before and after NF4; outlier at " + "; ".join(title for title, _ in titled)

    return repeated(SnappingBlock, 2, titled, (10, 5.8), describe)


def _describe_microscope(numbers):
    return (
        f"dot plot of one block of 64 weights before and after NF4: with one weight at {numbers['k']:g} sigma, "
        f"{numbers['zeroed']} of {len(numbers['neighbours'])} neighbours become zero "
        f"and {numbers['codes_used']} of 16 codes are in use"
    )


class Bell(Panel):
    """The normal density, with the quantiles that become levels standing under it."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        x = numbers["x"]
        ax.fill_between(x, numbers["density"], color=COLOUR["faint"], lw=0)
        ax.plot(x, numbers["density"], color=COLOUR["W"])
        ax.vlines(numbers["quantiles"], 0, numbers["heights"], color=COLOUR["nf4"], lw=2)
        ax.set(xlim=(x[0], x[-1]), ylim=(0, 0.45), xlabel="σ", yticks=[])
        ax.spines["left"].set_visible(False)
        ax.set_title("Quantiles of the bell: 7 below zero, zero, 8 above")

    def update(self, numbers):
        pass


class Recipes(Panel):
    """Levels on the line from -1 to 1, one row a recipe."""

    def __init__(self, ax, rows):
        super().__init__(ax)
        for y, (label, levels, colour) in enumerate(reversed(rows)):
            ax.plot(levels, np.full(len(levels), y), "|", ms=16, mew=2.2, color=colour)
            ax.text(-1.06, y, label, ha="right", va="center", color=colour)
        ax.axvline(0, color=COLOUR["faint"], zorder=0)
        ax.set(xlim=(-1.03, 1.03), ylim=(-0.6, len(rows) - 0.4), yticks=[], xlabel="level (share of absmax)")
        ax.spines["left"].set_visible(False)
        ax.set_title("Divided by the largest")

    def update(self, numbers):
        pass


def levels_from_the_bell(bell, rows, sentence: str) -> Picture:
    """Where the levels come from: quantiles under the bell, and the levels of each (label, levels, role) recipe."""
    rows = [(label, levels, COLOUR[role]) for label, levels, role in rows]
    panels = {"A": lambda ax: Bell(ax, bell), "B": lambda ax: Recipes(ax, rows)}
    return Picture((10, 4.6), "A\nB", panels, {}, lambda _: sentence, height_ratios=[3, 2])


class TwoBytes(Panel):
    """Two weights, their codes, and the byte they become in either nibble order; one box a bit."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 10.4), ylim=(0, 3.5), aspect="equal")
        ax.axis("off")
        self.colours = (COLOUR["A"], COLOUR["B"])
        self.weights = [
            self.moves(ax.text(0.1, y, "", va="center", fontsize=11, color=colour))
            for y, colour in zip((3.2, 2.65), self.colours, strict=True)
        ]
        self.boxes, self.bits, self.hex = {}, {}, {}
        ax.text(4.05, 2.3, "high nibble", ha="center", va="top", fontsize=9, color=COLOUR["muted"])
        ax.text(7.05, 2.3, "low nibble", ha="center", va="top", fontsize=9, color=COLOUR["muted"])
        for y, order in ((1.2, "high-first"), (0.1, "low-first")):
            owner = "bitsandbytes" if order == "high-first" else "the reference"
            ax.text(0.1, y + 0.37, f"{order}\n({owner})", va="center", fontsize=10)
            boxes = [Rectangle((2.6 + 0.75 * i, y), 0.7, 0.75, ec="white", lw=1.5) for i in range(8)]
            for box in boxes:
                ax.add_patch(box)
            self.boxes[order] = self.moves(boxes)
            centres = [(2.95 + 0.75 * i, y + 0.36) for i in range(8)]
            text = [ax.text(*at, "", ha="center", va="center", fontsize=13, color="white") for at in centres]
            self.bits[order] = self.moves(text)
            self.hex[order] = self.moves(ax.text(8.8, y + 0.37, "", va="center", fontsize=12, family="monospace"))

    def update(self, numbers):
        for text, name, i in zip(self.weights, ("first", "second"), (0, 1), strict=True):
            code, level = numbers["codes"][i], numbers["levels"][i]
            text.set_text(
                f"{name} weight {numbers['weights'][i]:+.2f}  →  code {code:2d} = {code:04b}  →  level {level:+.3f}"
            )
        for order, byte in numbers["bytes"].items():
            owners = (0, 1) if order == "high-first" else (1, 0)
            for i, (box, bit) in enumerate(zip(self.boxes[order], self.bits[order], strict=True)):
                box.set_facecolor(self.colours[owners[i // 4]])
                bit.set_text(str(byte >> (7 - i) & 1))
            self.hex[order].set_text(f"= 0x{byte:02x}")


def packing(numbers) -> Picture:
    """Two codes in a byte, drawn as bits, in both orders."""
    return Picture((10, 3.4), "A", {"A": TwoBytes}, numbers, _describe_packing)


def _describe_packing(numbers):
    high, low = numbers["bytes"]["high-first"], numbers["bytes"]["low-first"]
    first, second = numbers["codes"]
    return f"diagram of a byte: codes {first} and {second} become 0x{high:02x} high-first and 0x{low:02x} low-first"


def _short(size):
    return "all" if not size else f"{size // 1024}K" if size >= 1024 else str(size)


class SnrByBlockSize(Panel):
    """One line of SNR over block size for each weight; a ring walks along the chosen one."""

    def __init__(self, ax, curves, bits):
        super().__init__(ax)
        self.sizes = list(bits)
        places = range(len(self.sizes))
        for name, snr in curves.items():
            colour, dash, marker = LINES[name]
            ax.plot(places, snr, dash, color=colour, marker=marker, ms=4.5)
            end, shift = (places[-1], snr[-1]), (8, LABEL_SHIFT.get(name, 0))
            ax.annotate(name, end, shift, textcoords="offset points", va="center", fontsize=9, color=colour)
        ax.set_xticks(places, [f"{_short(size)}\n{cost:.3g}" for size, cost in bits.items()])
        ax.set(xlim=(-0.4, places[-1] + 2.6), ylim=(-1, 24), ylabel="SNR of NF4 (dB)")
        ax.set_xlabel("block size, and below it what a weight costs in bits", loc="left")
        self.ring = self.moves(ax.plot([], [], "o", ms=14, mfc="none", mew=2.5))[0]
        self.note = self.moves(ax.text(0.03, 0.05, "", transform=ax.transAxes, va="bottom"))

    def update(self, numbers):
        self.ring.set_data([self.sizes.index(numbers["block_size"])], [numbers["snr"]])
        self.ring.set_color(LINES[numbers["name"]][0])
        self.note.set_text(
            f"{numbers['name']}: relative error {numbers['error']:.1%}\n{numbers['bits']:.4g} bits a weight"
        )


class ErrorMap(Panel):
    """|error| of a patch of the weight, in sigma, on one fixed scale."""

    def __init__(self, ax, shape, small=False):
        super().__init__(ax)
        options = {"cmap": MAGNITUDE, "vmin": 0, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
        self.image = self.moves(ax.imshow(np.zeros(shape), **options))
        ax.set(xticks=[], yticks=[])
        if not small:
            ax.figure.colorbar(self.image, ax=ax, shrink=0.9, pad=0.02).set_label("|error| in σ")
            ax.set_xlabel(f"{shape[0]} rows x {shape[1]} columns around the largest entry")
        box = {"boxstyle": "round", "fc": "black", "ec": "none", "alpha": 0.6}
        self.mark = self.moves(ax.text(0.02, 0, "", transform=ax.transAxes, fontsize=9, color="white", bbox=box))

    def update(self, numbers):
        self.image.set_data(numbers["patch"])
        self.mark.set_text(f"row {numbers['row']} ↓")
        self.mark.set_y(1.04 - numbers["row_in_patch"] / len(numbers["patch"]))


def block_ladder(numbers, curves, bits) -> Picture:
    """SNR by block size for four weights, and where the error sits in the chosen one."""
    panels = {
        "A": lambda ax: SnrByBlockSize(ax, curves, bits),
        "B": lambda ax: ErrorMap(ax, numbers["patch"].shape),
    }
    return Picture((10, 4.5), "AAAAABBB", panels, numbers, _describe_ladder)


def error_map_states(states) -> Picture:
    """The error map at several block sizes, on one scale."""
    titled = [(f"blocks of {n['block_size']}" if n["block_size"] else "one block for all", n) for n in states]
    titled = [(f"{title}: {n['snr']:.1f} dB", n) for title, n in titled]

    def describe(_):
        return f"maps of the error around the largest entry of {states[0]['name']}: " + "; ".join(t for t, _ in titled)

    return repeated(lambda ax: ErrorMap(ax, states[0]["patch"].shape, small=True), 3, titled, (10, 3.2), describe)


def _describe_ladder(numbers):
    size = numbers["block_size"]
    return (
        f"line chart of NF4's SNR by block size for four weights, and a map of the error: {numbers['name']} in "
        f"{f'blocks of {size}' if size else 'one block'} has {numbers['snr']:.1f} dB "
        f"at {numbers['bits']:.3g} bits a weight"
    )


class Photo(Panel):
    """The picture that comes back, on the scale of the original."""

    def __init__(self, ax, shape):
        super().__init__(ax)
        self.image = self.moves(ax.imshow(np.zeros(shape), cmap="gray", vmin=-1, vmax=1, interpolation="nearest"))
        ax.axis("off")

    def update(self, numbers):
        self.image.set_data(numbers["restored"])


class PhotoError(Panel):
    """|error| of the picture on one fixed scale."""

    def __init__(self, ax, shape):
        super().__init__(ax)
        self.image = self.moves(ax.imshow(np.zeros(shape), cmap=MAGNITUDE, vmin=0, vmax=0.3, interpolation="nearest"))
        bar = ax.figure.colorbar(self.image, ax=ax, shrink=0.9, pad=0.02)
        bar.set_label("|error| (black to white is 2)")
        ax.axis("off")

    def update(self, numbers):
        self.image.set_data(numbers["error_map"])


def photo(numbers) -> Picture:
    """A photograph in NF4: what comes back, and where it is wrong."""
    shape = numbers["restored"].shape
    panels = {"A": lambda ax: Photo(ax, shape), "B": lambda ax: PhotoError(ax, shape)}
    return Picture((10, 4.7), "AB", panels, numbers, _describe_photo)


def photo_states(states) -> Picture:
    """The photograph at several settings, side by side."""
    titled = [(f"blocks of {n['block_size']}, {n['snr']:.1f} dB", n) for n in states]

    def describe(_):
        return "photographs quantized with NF4: " + "; ".join(title for title, _ in titled)

    return repeated(lambda ax: Photo(ax, states[0]["restored"].shape), 4, titled, (10, 3.1), describe)


def _describe_photo(numbers):
    return (
        f"photograph quantized with NF4 in blocks of {numbers['block_size']} beside a map of its error: "
        f"{numbers['snr']:.1f} dB"
    )


class RowMaxima(Panel):
    """The largest entry of each output row."""

    def __init__(self, ax, maxima):
        super().__init__(ax)
        top = int(np.argmax(maxima))
        ax.vlines(np.arange(len(maxima)), 0, maxima, color=COLOUR["W"], lw=0.8)
        ax.vlines(top, 0, maxima[top], color=COLOUR["B"], lw=2.5)
        ax.annotate(
            f"row {top}: {maxima[top]:.0f}σ",
            (top, maxima[top]),
            (12, -4),
            textcoords="offset points",
            va="top",
            color=COLOUR["B"],
        )
        ax.set(xlabel="output row", ylabel="largest |w| in the row (σ)", ylim=(0, None), xlim=(-3, len(maxima) + 2))

    def update(self, numbers):
        pass


class ErrorBars(Panel):
    """Horizontal bars of relative error with their value written at the end."""

    def __init__(self, ax, errors):
        super().__init__(ax)
        for y, (label, error) in enumerate(reversed(errors.items())):
            ax.barh(y, error, color=COLOUR["nf4"], height=0.6)
            ax.text(error + 0.02, y, f"{error:.2f}", va="center")
            ax.text(-0.02, y, label, va="center", ha="right")
        ax.set(yticks=[], xlim=(0, 1.15), xlabel="relative error")

    def update(self, numbers):
        pass


def outlier_feature(maxima, errors) -> Picture:
    """The row with the outlier, and what it does to the error of the whole matrix."""
    panels = {"A": lambda ax: RowMaxima(ax, maxima), "B": lambda ax: ErrorBars(ax, errors)}
    sentence = f"bar charts: row {int(np.argmax(maxima))} reaches {max(maxima):.0f} sigma; relative error " + ", ".join(
        f"{error:.2f} {label}".replace("\n", " ") for label, error in errors.items()
    )
    return Picture((10, 3.6), "AB", panels, {}, lambda _: sentence)


class UsageBars(Panel):
    """The share of weights that use each code, beside the equal share."""

    def __init__(self, ax, usage, entropy):
        super().__init__(ax)
        ax.bar(range(16), usage, color=COLOUR["nf4"], width=0.8)
        ax.axhline(1 / 16, color=COLOUR["limit"], ls="--", lw=1.2)
        ax.text(15.6, 1 / 16 + 0.001, "equal share", ha="right", va="bottom", fontsize=9)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set(xlabel="code", ylabel="share of the weights", xlim=(-0.7, 15.7), xticks=range(0, 16, 3))
        ax.set_title(f"max : min = {max(usage) / min(usage):.1f} : 1, entropy {entropy:.2f} of 4 bits")

    def update(self, numbers):
        pass


class CostBars(Panel):
    """What a weight costs by block size: the code, and its share of the scale."""

    def __init__(self, ax, costs):
        super().__init__(ax)
        sizes = list(costs)
        ax.barh(range(len(sizes)), [4] * len(sizes), color=COLOUR["nf4"], height=0.65)
        ax.barh(range(len(sizes)), [costs[s] - 4 for s in sizes], left=4, color=COLOUR["B"], height=0.65)
        for y, size in enumerate(sizes):
            ax.text(costs[size] + 0.06, y, f"{costs[size]:g}", va="center")
        ax.text(2, len(sizes) - 0.4, "code", color=COLOUR["nf4"], ha="center", va="bottom")
        ax.text(4.05, len(sizes) - 0.4, "scale", color=COLOUR["B"], ha="left", va="bottom")
        ax.set(yticks=range(len(sizes)), xlim=(0, 7), xlabel="bits a weight", ylabel="block size")
        ax.set_yticklabels([str(s) for s in sizes])

    def update(self, numbers):
        pass


def what_four_bits_cost(usage, entropy, costs) -> Picture:
    """Code usage, and what a weight really costs."""
    panels = {"A": lambda ax: UsageBars(ax, usage, entropy), "B": lambda ax: CostBars(ax, costs)}
    sentence = (
        f"bar charts: code usage runs from {min(usage):.1%} to {max(usage):.1%}, entropy {entropy:.2f} bits; "
        "a weight costs " + ", ".join(f"{bits:g} bits in blocks of {size}" for size, bits in costs.items())
    )
    return Picture((10, 3.6), "AAAB", panels, {}, lambda _: sentence)
