"""The figures of the chapter on a second language."""

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR

LAYERS = {  # where the adapter sits -> colour, dash, marker
    "q, v": (COLOUR["A"], "--", "s"),
    "all": (COLOUR["delta"], "-", "o"),
}
KINDS = {"male": (COLOUR["delta"], "-"), "female": (COLOUR["W"], "--")}  # the adapter's names, the base's names
PARTS = {"weights": COLOUR["W"], "gradients": COLOUR["B"], "optimizer": COLOUR["fp4"]}
METHOD_ROWS = ("full", "LoRA", "QLoRA")
FEW_RANKS = {1: ("#56B4E9", ":", "^"), 4: ("#0072B2", "--", "s"), 16: ("#000000", "-", "o")}  # light to dark
NAME_ROWS = 11
CARDS = (24e9, 48e9, 80e9)  # bytes of graphics cards
RUN_LOOKS = {"train": (COLOUR["muted"], ":"), **KINDS}
RUN_LABELS = {"train": "learned from", "male": "other male names", "female": "female names"}
SHORT = {"last layer": "head"}


def _capital(name: str) -> str:
    return name.capitalize() or "(nothing)"


class Names(Panel):
    """Names side by side: what the base makes of each draw, and what the adapter makes of the same draw."""

    def __init__(self, ax, left="adapter off", right=None):
        super().__init__(ax)
        ax.set(xlim=(0, 1), ylim=(NAME_ROWS + 0.2, -1.2))
        ax.axis("off")
        ax.text(0.46, -0.6, left, ha="right", va="center", color=COLOUR["W"], fontsize=10.5)
        self.head = self.moves(ax.text(0.56, -0.6, right or "", va="center", color=COLOUR["delta"], fontsize=10.5))
        self.fixed = right is not None
        style = {"va": "center", "fontsize": 10.5}
        rows = range(NAME_ROWS)
        self.left = self.moves([ax.text(0.46, row + 0.4, "", ha="right", color=COLOUR["W"], **style) for row in rows])
        for row in rows:
            ax.text(0.51, row + 0.4, "→", ha="center", color=COLOUR["muted"], **style)
        self.right = self.moves([ax.text(0.56, row + 0.4, "", color=COLOUR["delta"], **style) for row in rows])

    def update(self, numbers):
        if not self.fixed:
            self.head.set_text(numbers["heading"])
        for row, (before, after) in enumerate(zip(numbers["before"], numbers["after"], strict=True)):
            self.left[row].set_text(_capital(before))
            self.right[row].set_text(_capital(after))
            self.right[row].set_weight("bold" if after in numbers["real"] else "normal")


class Dial(Panel):
    """Bits per letter of both languages while the adapter is turned up."""

    def __init__(self, ax, labelled=True):
        super().__init__(ax)
        ax.set(xlim=(0, 1.5), ylim=(2.5, 6.05), xlabel="strength of the adapter", xticks=[0, 0.5, 1, 1.5])
        ax.set_ylabel("bits per letter" if labelled else "")
        ax.axhline(np.log2(27), color=COLOUR["muted"], lw=1, ls=":")
        ax.text(0.03, np.log2(27) + 0.05, "blind guess", fontsize=9, color=COLOUR["muted"])
        self.lines, self.points, self.labels = {}, {}, {}
        for kind, (colour, dash) in KINDS.items():
            self.lines[kind] = self.moves(ax.plot([], [], dash, color=colour, lw=2.2))[0]
            self.points[kind] = self.moves(ax.plot([], [], "o", color=colour, ms=8))[0]
            corner = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 9.5}
            self.labels[kind] = self.moves(
                ax.text(0.99, {"male": 1.0, "female": 0.92}[kind], "", color=colour, **corner)
            )

    def update(self, numbers):
        for kind, line in self.lines.items():
            line.set_data(numbers["strengths"], numbers["curves"][kind])
            self.points[kind].set_data([numbers["strength"]], [numbers[kind]])
            self.labels[kind].set_text(f"{kind} names: {numbers[kind]:.2f}")


def dial(numbers) -> Picture:
    """Both languages by strength, and eleven names at this one."""
    panels = {"A": Dial, "B": Names}
    return Picture((10, 4.4), "AAABB", panels, numbers, _describe_dial)


def _describe_dial(numbers):
    return (
        f"line chart of bits per letter by strength of an adapter of rank {numbers['rank']} on {numbers['layers']} "
        f"layers, and a list of made-up names: at strength {numbers['strength']:g} male names cost "
        f"{numbers['male']:.2f} bits per letter and female ones {numbers['female']:.2f}; at strength 0 "
        f"{numbers['curves']['male'][0]:.2f} and {numbers['curves']['female'][0]:.2f}"
    )


def dials(states) -> Picture:
    """The dial of several adapters."""

    def describe(_):
        found = "; ".join(
            f"{title}: male {n['curves']['male'][10]:.2f}, female {n['curves']['female'][10]:.2f}"
            for title, n in states
        )
        return f"line charts of bits per letter by strength of the adapter; at strength 1: {found}"

    first = iter([True] + [False] * len(states))
    return repeated(lambda ax: Dial(ax, next(first)), len(states), states, (10, 3.7), describe)


class Letters(Panel):
    """How surprising each letter of a name is to the base, and with the adapter on."""

    LONGEST = 13

    def __init__(self, ax, compact=False):
        super().__init__(ax)
        count = 9 if compact else self.LONGEST
        ax.set(xlim=(-0.6, count - 0.4), ylim=(0, 10.4), xticks=[], yticks=[0, 2, 4, 6, 8])
        ax.set_ylabel("surprise in bits")
        ax.spines["bottom"].set_visible(False)
        places = np.arange(count)
        ax.set_xlabel(" \n", fontsize=13)  # keeps the room for the letters that move
        self.bars = {
            kind: self.moves(list(ax.bar(places + shift, 0.0, width=0.38, color=KINDS[kind][0])))
            for kind, shift in (("female", -0.2), ("male", 0.2))
        }
        below = {"transform": ax.get_xaxis_transform(), "ha": "center", "va": "top", "fontsize": 13}
        self.letters = self.moves([ax.text(place, -0.03, "", **below) for place in places])
        corner = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 9.5}
        self.totals = {
            kind: self.moves(ax.text(0.99, y, "", color=KINDS[kind][0], **corner))
            for kind, y in (("female", 1.0), ("male", 0.92))
        }

    def update(self, numbers):
        shown = [*numbers["name"].upper(), "."]
        for place, letter in enumerate(self.letters):
            letter.set_text(shown[place] if place < len(shown) else "")
        for kind, by in (("female", "off"), ("male", "on")):
            surprise = numbers[f"surprise_{by}"]
            for place, bar in enumerate(self.bars[kind]):
                bar.set_height(min(10.0, surprise[place]) if place < len(surprise) else 0.0)
            self.totals[kind].set_text(f"adapter {by}: {sum(surprise):.1f} bits")


def your_name(numbers) -> Picture:
    """The letters of one name, and what each model expected of them."""
    return Picture((10, 3.7), "A", {"A": Letters}, numbers, _describe_name)


def _describe_name(numbers):
    return (
        f"bar chart of the surprise at each letter of {_capital(numbers['name'])}: {numbers['off']:.1f} bits in all "
        f"with the adapter off, {numbers['on']:.1f} with it on"
    )


def letters(states) -> Picture:
    """Several names, letter by letter."""

    def describe(_):
        found = "; ".join(f"{title}: {n['off']:.1f} bits off, {n['on']:.1f} on" for title, n in states)
        return f"bar charts of the surprise at each letter with the adapter off and on, in all: {found}"

    return repeated(lambda ax: Letters(ax, compact=True), len(states), states, (10, 3.5), describe)


class BitsByNumbers(Panel):
    """Bits per letter of male names by how many numbers are trained."""

    def __init__(self, ax, ways, curves, ringed=True):
        super().__init__(ax)
        ax.set(xscale="log", xlim=(320, 260_000), ylim=(2.96, 3.46))
        ax.set(xlabel="numbers trained", ylabel="bits per letter, male names")
        ax.xaxis.set_major_locator(FixedLocator([1e3, 1e4, 1e5]))
        ax.set_xticklabels(["1,000", "10,000", "100,000"])
        ax.xaxis.set_minor_locator(NullLocator())
        names = {"full": (0, -17, "center"), "scratch": (-4, 8, "right"), "last layer": (10, -4, "left")}
        names["layer norms"] = (-14, -16, "left")
        for method, (dx, dy, side) in names.items():
            x, y = ways[method]
            ax.plot(x, y, "X" if method == "scratch" else "D", color=COLOUR["W"], ms=7)
            text = SHORT.get(method, method)
            ax.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=side, fontsize=9, color=COLOUR["W"])
        for layers, (colour, dash, marker) in LAYERS.items():
            x, y, ranks = curves[layers]
            ax.plot(x, y, dash, color=colour, marker=marker, ms=6)
            above = layers == "q, v"
            for rank, *point in zip(ranks, x, y, strict=True):
                shift = (0, 8) if above else (0, -15)
                ax.annotate(str(rank), point, shift, textcoords="offset points", ha="center", fontsize=9, color=colour)
        ax.text(0.02, 0.42, "LoRA on q, v\nby rank", transform=ax.transAxes, color=LAYERS["q, v"][0], va="top")
        ax.text(0.22, 0.16, "LoRA on all layers\nby rank", transform=ax.transAxes, color=LAYERS["all"][0], va="top")
        ax.text(0.98, 0.97, "base untouched: 4.13 ↑", transform=ax.transAxes, ha="right", va="top", fontsize=9)
        self.ring = None
        if ringed:
            self.ring = self.moves(ax.plot([], [], "o", ms=16, mfc="none", mec=COLOUR["limit"], mew=2))[0]

    def update(self, numbers):
        if self.ring is not None:
            self.ring.set_data([numbers["trained"]], [numbers["male"]])


class Steps(Panel):
    """What a run does over its 400 steps: on the names it learns from, on other male ones, on female ones."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 400), ylim=(2.2, 4.25), xlabel="step", xticks=[0, 200, 400])
        ax.set_title(" ")
        self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom", fontsize=11))
        self.lines, self.labels = {}, {}
        for quantity, (colour, dash) in RUN_LOOKS.items():
            self.lines[quantity] = self.moves(ax.plot([], [], dash, color=colour, lw=2.2))[0]
            corner = {"transform": ax.transAxes, "ha": "right", "va": "top", "fontsize": 9.5}
            height = 1.0 - 0.075 * len(self.labels)
            self.labels[quantity] = self.moves(ax.text(1.0, height, "", color=colour, **corner))

    def update(self, numbers):
        self.title.set_text(numbers["title"])
        for quantity, line in self.lines.items():
            bits = numbers["rows"][quantity]
            line.set_data(numbers["steps"], bits)
            self.labels[quantity].set_text(f"{RUN_LABELS[quantity]}: {bits[-1]:.2f}")


def where(numbers, ways, curves) -> Picture:
    """Bits by numbers trained with the chosen adapter in a ring, and its run."""
    panels = {"A": lambda ax: BitsByNumbers(ax, ways, curves), "B": Steps}
    return Picture((10, 4.2), "AAABB", panels, numbers, _describe_where)


def _describe_where(numbers):
    return (
        f"scatter chart of bits per letter by numbers trained, and a line chart by step: LoRA of rank "
        f"{numbers['rank']} on {numbers['layers']} layers trains {numbers['trained']:,d} numbers and reaches "
        f"{numbers['male']:.2f} bits on male names, {numbers['female']:.2f} on female ones"
    )


def bits_by_numbers(ways, curves) -> Picture:
    """Every way of fine-tuning by how many numbers it trains."""
    found = (
        "; ".join(f"LoRA on {layers} " + ", ".join(f"{y:.2f}" for y in curves[layers][1]) for layers in LAYERS)
        + "; "
        + ", ".join(f"{SHORT.get(method, method)} {y:.2f}" for method, (_, y) in ways.items())
    )
    sentence = f"scatter chart of bits per letter of male names by numbers trained: {found}; ranks 1, 2, 4, 8, 16"
    panels = {"A": lambda ax: BitsByNumbers(ax, ways, curves, ringed=False)}
    return Picture((10, 4.6), "A", panels, {}, lambda _: sentence)


class Forgetting(Panel):
    """What was learned against what was forgotten, and the way back."""

    def __init__(self, ax, base, ways, curves, quantized):
        super().__init__(ax)
        ax.set(xlim=(4.3, 2.9), ylim=(2.55, 3.95))
        ax.set(xlabel="bits per letter, male names  (learned →)", ylabel="bits, female names  (forgotten →)")
        ax.plot(*base, "D", color=COLOUR["W"], ms=9)
        ax.annotate("base", base, (0, -17), textcoords="offset points", ha="center", color=COLOUR["W"], fontsize=10)
        for layers, (colour, dash, marker) in LAYERS.items():
            ax.plot(*curves[layers], dash, color=colour, marker=marker, ms=6)
        ax.text(3.56, 3.2, "LoRA on q, v", color=LAYERS["q, v"][0], ha="right")
        ax.text(3.05, 3.2, "LoRA on\nall layers", color=LAYERS["all"][0], ha="left", va="top")
        ax.plot(*np.transpose(quantized), "v", color=COLOUR["nf4"], ms=8, ls="none")
        ax.annotate("QLoRA", quantized[-1], (8, -14), textcoords="offset points", color=COLOUR["nf4"], fontsize=9.5)
        shifts = {"full": (-10, 4, "right"), "scratch": (-10, 4, "right"), "last layer": (-8, -15, "right")}
        shifts["layer norms"] = (-10, 5, "right")
        for method, (dx, dy, side) in shifts.items():
            ax.plot(*ways[method], "X" if method == "scratch" else "D", color=COLOUR["W"], ms=7)
            text = SHORT.get(method, method)
            shift = {"textcoords": "offset points", "ha": side, "fontsize": 9.5, "color": COLOUR["W"]}
            ax.annotate(text, ways[method], (dx, dy), **shift)
        start = (curves["all"][0][-1], curves["all"][1][-1])
        arrow = {"arrowstyle": "->", "color": COLOUR["delta"], "lw": 1.8, "ls": "--", "shrinkA": 8, "shrinkB": 10}
        ax.annotate("", base, start, arrowprops={**arrow, "connectionstyle": "arc3,rad=-0.35"})
        ax.text(3.4, 2.68, "adapter off: all the way back, bit for bit", color=COLOUR["delta"], va="center")

    def update(self, numbers):
        pass


def forgetting(base, ways, curves, quantized) -> Picture:
    """Learned against forgotten, for every way."""
    found = ", ".join(f"{SHORT.get(method, method)} {x:.2f} and {y:.2f}" for method, (x, y) in ways.items())
    x, y = (curves["all"][k][-1] for k in range(2))
    sentence = (
        f"scatter chart of bits per letter on male and on female names: base {base[0]:.2f} and {base[1]:.2f}, {found}, "
        f"LoRA on all layers at rank 16 {x:.2f} and {y:.2f}; an arrow leads from there back to the base"
    )
    panels = {"A": lambda ax: Forgetting(ax, base, ways, curves, quantized)}
    return Picture((10, 4.6), "A", panels, {}, lambda _: sentence)


class FewNames(Panel):
    """Bits on other male names by how many were learned from: the best step, and the last."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        counts = numbers["counts"]
        ax.set(xscale="log", xlim=(52, 1250), ylim=(3.25, 4.6), xlabel="male names to learn from")
        ax.set_ylabel("bits per letter, other male names")
        ax.xaxis.set_major_locator(FixedLocator(counts))
        ax.set_xticklabels([str(count) for count in counts])
        ax.xaxis.set_minor_locator(NullLocator())
        for rank, (colour, _, marker) in FEW_RANKS.items():
            ax.plot(counts, numbers["last"][rank], "--", color=colour, marker=marker, mfc="white", ms=6)
            ax.plot(counts, numbers["best"][rank], "-", color=colour, marker=marker, ms=6)
        ends = [numbers["last"][rank][0] for rank in FEW_RANKS]
        for rank, y in zip(FEW_RANKS, ends, strict=True):
            side = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 9.5}
            ax.annotate(f"rank {rank}", (counts[0], y), (-8, 0), color=FEW_RANKS[rank][0], **side)
        ax.plot(counts, numbers["best"]["last layer"], ":", color=COLOUR["B"], marker="X", ms=6)
        end = (counts[-1], numbers["best"]["last layer"][-1])
        ax.annotate("head", end, (8, -3), textcoords="offset points", fontsize=9.5, color=COLOUR["B"])
        ax.text(
            0.98,
            0.97,
            "dashed: after 200 steps\nfull line: stopped in time",
            transform=ax.transAxes,
            ha="right",
            va="top",
        )
        ax.set_title("Few names: high rank overfits")

    def update(self, numbers):
        pass


class Overfitting(Panel):
    """Two ranks on 100 names: what training shows, and what other names show."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        ax.set(xlim=(0, 200), ylim=(0, 4.9), xlabel="step", xticks=[0, 100, 200], ylabel="bits per letter")
        for rank in (1, 16):
            colour = FEW_RANKS[rank][0]
            for quantity, dash, name in (("train", ":", "learned from"), ("male", "-", "other names")):
                bits = numbers["curves"][rank][quantity]
                ax.plot(numbers["steps"], bits, dash, color=colour, lw=2.2)
                text = f"rank {rank}, {name} {bits[-1]:.2f}"
                up = {("train", 1): -0.12, ("train", 16): -0.12, ("male", 1): -0.1, ("male", 16): 0.1}[quantity, rank]
                side = "bottom" if up > 0 else "top"
                ax.text(198, bits[-1] + up, text, ha="right", va=side, fontsize=9, color=colour)
        ax.set_title("The same 100 names, 200 steps")

    def update(self, numbers):
        pass


def few_names(numbers) -> Picture:
    """Ranks by number of names; and two runs on 100 names."""
    panels = {"A": lambda ax: FewNames(ax, numbers), "B": lambda ax: Overfitting(ax, numbers)}
    found = ", ".join(f"rank {r} {numbers['best'][r][0]:.2f} and {numbers['last'][r][0]:.2f}" for r in FEW_RANKS)
    train = ", ".join(f"rank {r} {numbers['curves'][r]['train'][-1]:.2f}" for r in (1, 16))
    sentence = (
        f"line charts of bits per letter with few names: with {numbers['counts'][0]} names, stopped in time and after "
        f"200 steps, {found}; on the names learned from, {train}"
    )
    return Picture((10, 4.3), "AAABBB", panels, {}, lambda _: sentence)


class Quantized(Panel):
    """LoRA on a float32 base and QLoRA on an NF4 base, side by side."""

    def __init__(self, ax, rows):
        super().__init__(ax)
        places = np.arange(len(rows))
        for shift, of, colour, hatch in ((-0.19, "LoRA", COLOUR["delta"], ""), (0.19, "QLoRA", COLOUR["nf4"], "//")):
            tops = [row[of] for row in rows.values()]
            ax.bar(places + shift, tops, width=0.36, color=colour, hatch=hatch, edgecolor="white")
            for place, top in zip(places + shift, tops, strict=True):
                ax.text(place, top + 0.04, f"{top:.2f}", ha="center", va="bottom", color=colour, fontsize=9.5)
        ax.set(ylim=(0, 4.3), xlim=(-0.6, len(rows) - 0.4), xticks=places)
        ax.set_xticklabels(list(rows))
        ax.set_ylabel("bits per letter")
        ax.text(0.98, 0.98, "float32 base", transform=ax.transAxes, ha="right", va="top", color=COLOUR["delta"])
        ax.text(0.98, 0.89, "NF4 base", transform=ax.transAxes, ha="right", va="top", color=COLOUR["nf4"])

    def update(self, numbers):
        pass


def quantized(rows) -> Picture:
    """What four bits cost before and after the adapter."""
    found = "; ".join(f"{name}: {row['LoRA']:.2f} and {row['QLoRA']:.2f}" for name, row in rows.items())
    sentence = f"bar chart of bits per letter on a float32 and on an NF4 base: {found}"
    return Picture((10, 3.6), "A", {"A": lambda ax: Quantized(ax, rows)}, {}, lambda _: sentence)


class Teaching(Panel):
    """A run as it goes: bits on what it learns from, on what it should know then, and on what it knew."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 100), ylim=(0, 5.4), xlabel="step", ylabel="bits per letter", xticks=[0, 50, 100])
        self.lines, self.labels = {}, {}
        for place, (kind, (colour, dash)) in enumerate(RUN_LOOKS.items()):
            self.lines[kind] = self.moves(ax.plot([], [], dash, color=colour, lw=2.2))[0]
            where = {"transform": ax.transAxes, "va": "bottom", "fontsize": 9.5}
            self.labels[kind] = self.moves(ax.text(0.03, 0.19 - 0.08 * place, "", color=colour, **where))

    def update(self, numbers):
        for kind, line in self.lines.items():
            steps, bits = numbers["curves"][kind]
            line.set_data(steps, bits)
            self.labels[kind].set_text(f"{numbers['labels'][kind]}: {bits[-1]:.2f}" if len(bits) else "")


def teach(numbers) -> Picture:
    """A run and the names that it makes up."""
    return Picture((10, 4.4), "AAABB", {"A": Teaching, "B": Names}, numbers, _describe_teach)


def _describe_teach(numbers):
    return (
        f"line chart of bits per letter by step and a list of made-up names: {numbers['count']:,d} words, rank "
        f"{numbers['rank']} on {numbers['layers']} layers, {numbers['trained']:,d} numbers trained; male names came to "
        f"cost {numbers['gained']:.1f} bits less, female ones {numbers['lost']:.1f} more"
    )


def size_text(count: float) -> str:
    """Bytes in the unit that fits: "44 GB", "165 kB"."""
    unit, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB")) if count >= pair[0]), (1e3, "kB"))
    value = count / unit
    return f"{value:.0f} {name}" if value >= 99.5 else f"{value:.1f} {name}" if value >= 9.95 else f"{value:.2f} {name}"


class MemoryBars(Panel):
    """Weights, gradients and optimizer state of three methods, in shares of what full fine-tuning holds."""

    def __init__(self, ax, compact=False, keyed=True):
        super().__init__(ax)
        self.compact = compact
        ax.set(
            xlim=(0, 1.18),
            ylim=(2.5, -0.5) if compact else (2.5, -0.95),
            xticks=[0, 0.25, 0.5, 0.75, 1],
            yticks=range(3),
        )
        ax.set_yticklabels(METHOD_ROWS, fontsize=10.5)
        ax.set_xticklabels(["0", "25 %", "50 %", "75 %", "100 %"])
        ax.tick_params(axis="y", length=0)
        self.bars = {
            part: self.moves(list(ax.barh(range(3), 0.0, height=0.52, color=colour))) for part, colour in PARTS.items()
        }
        self.texts = self.moves([ax.text(0, row, "", va="center", fontsize=9.5) for row in range(3)])
        if not compact:
            ax.set_xlabel("share of what full fine-tuning holds (activations left out)")
        places = [(0.72, 0.9), (0.72, 1.35), (0.72, 1.8)] if compact else [(0, -0.62), (0.13, -0.62), (0.28, -0.62)]
        for (x, y), (part, colour) in zip(places, PARTS.items(), strict=True):
            name = {"optimizer": "Adam's averages"}.get(part, part) if keyed else ""
            ax.text(x, y, name, color=colour, fontsize=10, weight="bold", va="center")

    def update(self, numbers):
        whole = sum(numbers["parts"]["full"])
        for row, method in enumerate(METHOD_ROWS):
            left, chosen = 0.0, method == numbers["method"] and not self.compact
            parts = numbers["parts"][method]
            for part, share in zip(PARTS, (value / whole for value in parts), strict=True):
                self.bars[part][row].set(x=left, width=share)
                left += share
            detail = " + ".join(size_text(value) for value in parts)
            text = size_text(sum(parts)) + ("" if self.compact or left > 0.9 else f"  =  {detail}")
            self.texts[row].set_text(text + ("" if left > 0.9 else _card(sum(parts))))
            self.texts[row].set(x=left + 0.012, weight="bold" if chosen else "normal")


def _card(count: float) -> str:
    """The smallest graphics card that holds so many bytes, and no activations."""
    fits = [card for card in CARDS if count <= card]
    return "" if count < 1e9 else f",  fits {fits[0] / 1e9:.0f} GB" if fits else ",  fits no card"


def memory(numbers) -> Picture:
    """Three methods on one model."""
    return Picture((10, 3.6), "A", {"A": MemoryBars}, numbers, _describe_memory)


def _describe_memory(numbers):
    found = ", ".join(f"{method} {size_text(sum(parts))}" for method, parts in numbers["parts"].items())
    return f"bar chart of what training holds of {numbers['model']}, activations left out: {found}"


def memories(states) -> Picture:
    """Several models."""

    def describe(_):
        found = "; ".join(
            f"{title} " + ", ".join(f"{method} {size_text(sum(parts))}" for method, parts in n["parts"].items())
            for title, n in states
        )
        return f"bar charts of what training holds, activations left out: {found}"

    first = iter([True] + [False] * len(states))
    return repeated(lambda ax: MemoryBars(ax, compact=True, keyed=next(first)), 2, states, (10, 4.6), describe)


class Shares(Panel):
    """Bits per letter before and after, both languages."""

    def __init__(self, ax, numbers):
        super().__init__(ax)
        rows = (("female names", "female", COLOUR["W"]), ("male names", "male", COLOUR["delta"]))
        for group, (title, kind, colour) in enumerate(rows):
            for place, (state, alpha) in enumerate((("off", 1.0), ("on", 0.55))):
                y = group * 2.6 + place
                value = numbers["bits"][kind][place]
                ax.barh(y, value, height=0.8, color=colour, alpha=alpha)
                ax.text(value + 0.06, y, f"{value:.2f}", va="center", fontsize=10)
                ax.text(0.08, y, f"adapter {state}", va="center", fontsize=10, color="white" if alpha == 1 else "black")
            ax.text(0, group * 2.6 - 0.55, title, va="bottom", fontsize=10.5, color=colour)
        ax.set(xlim=(0, 4.6), ylim=(4.3, -1.2), yticks=[], xlabel="bits per letter (fewer is better)")
        ax.spines["left"].set_visible(False)

    def update(self, numbers):
        pass


def opening(numbers) -> Picture:
    """The same draws with the adapter off and on, and what both cost in both languages."""
    panels = {"A": lambda ax: Names(ax, "adapter off", "adapter on"), "B": lambda ax: Shares(ax, numbers)}
    female, male = numbers["bits"]["female"], numbers["bits"]["male"]
    sentence = (
        f"a list of made-up names with the adapter off and on, and a bar chart of bits per letter: female names "
        f"{female[0]:.2f} off and {female[1]:.2f} on, male names {male[0]:.2f} off and {male[1]:.2f} on"
    )
    return Picture((10, 4.4), "AABBB", panels, numbers, lambda _: sentence)
