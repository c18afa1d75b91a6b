"""The figures of the chapter on real files."""

import numpy as np
from matplotlib.ticker import FuncFormatter

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR, SIGNED

WAYS = {  # how the update is merged -> colour role, marker, dash
    "float32": ("A", "s", "-"),
    "bfloat16": ("B", "o", "--"),
    "onto dequantized base": ("int4", "^", ":"),
    "back into 4 bits": ("nf4", "D", "-."),
}


PARTS = {  # of a 4-bit weight in a file -> colour role, hatch
    "codes": ("nf4", None),
    "scales": ("B", "//"),
    "second scales": ("delta", None),
    "maps": ("int4", ".."),
    "settings": ("muted", "xx"),
}


def _rounded(share) -> str:
    """Two digits; rounding errors, which differ from machine to machine, only as a bound."""
    return "below 0.0001" if share < 1e-4 else f"{share:.2g}"


class Update(Panel):
    """ΔW of one layer as a signed heat map."""

    def __init__(self, ax, shape):
        super().__init__(ax)
        options = {"cmap": SIGNED, "interpolation": "nearest", "extent": (0, 64, 64, 0), "aspect": "auto"}
        self.image = self.moves(ax.imshow(np.zeros(shape), **options))
        ax.set(xticks=[], yticks=[], xlabel="in", ylabel="out", title=" ")
        self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom"))

    def update(self, numbers):
        limit = np.abs(numbers["delta"]).max()
        self.image.set(data=numbers["delta"], clim=(-limit, limit))
        self.title.set_text(f"ΔW {numbers['out']} x {numbers['in']}, rank {numbers['rank']}")


class Spectrum(Panel):
    """Singular values of ΔW beside those of the base weight."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 17), ylim=(0, 8.2), xlabel="direction", ylabel="singular value")
        self.base = self.moves(ax.plot([], [], "--", color=COLOUR["W"], marker=".", ms=7))[0]
        self.bars = self.moves(list(ax.bar(range(1, 17), np.zeros(16), width=0.7, color=COLOUR["delta"])))
        self.name = self.moves(ax.text(0, 0, "base weight", color=COLOUR["W"], va="bottom"))
        self.note = self.moves(ax.text(0.98, 0.97, "", transform=ax.transAxes, ha="right", va="top"))

    def update(self, numbers):
        sigma = np.zeros(16)
        sigma[: len(numbers["sigma"])] = numbers["sigma"][:16]
        for bar, height in zip(self.bars, sigma, strict=True):
            bar.set_height(height)
        base = numbers["base_sigma"][:16]
        self.base.set_data(range(1, 17), base)
        self.name.set_position((9, base[8] + 0.2))
        self.note.set_text(f"‖ΔW‖ = {numbers['norm']:.1f}\neffective rank {numbers['effective_rank']:.2f}")


def layer(numbers) -> Picture:
    """One layer of an adapter: the update and its singular values."""
    panels = {"A": lambda ax: Update(ax, numbers["delta"].shape), "B": Spectrum}
    return Picture((10, 4), "AABBB", panels, numbers, _describe_layer)


def layer_states(states) -> Picture:
    """Singular values of every layer of the adapter."""
    titled = [(n["short"], n) for n in states]
    return repeated(Spectrum, 2, titled, (10, 6.4), lambda _: "; ".join(_describe_layer(n) for n in states))


def _describe_layer(n):
    found = ", ".join(f"{value:.1f}" for value in n["sigma"])
    return f"singular values of the update of {n['name']}: {found}, norm {n['norm']:.1f}"


class Lost(Panel):
    """Share of the update that a merge loses, by its size, one line for each way to merge."""

    def __init__(self, ax, sizes, curves):
        super().__init__(ax)
        for name, lost in curves.items():
            role, marker, dash = WAYS[name]
            ax.plot(sizes, lost, dash, marker=marker, color=COLOUR[role], ms=5)
            up = {"bfloat16": "bottom", "onto dequantized base": "top"}.get(name, "center")
            ax.text(sizes[-1] * 1.2, lost[-1], name, color=COLOUR[role], va=up, fontsize=9)
        ax.axhline(1, color=COLOUR["limit"], lw=1, ls="--")
        ax.text(sizes[-1] * 55, 1.4, "everything is lost", ha="right", va="bottom", fontsize=9)
        ax.set(xscale="log", yscale="log", xlim=(sizes[0] * 0.8, sizes[-1] * 60), ylim=(1e-8, 30))
        ax.set(xlabel="size of the update (σ of the weight)", ylabel="lost, share of ΔW")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        self.rings = {name: self.moves(ax.plot([], [], "o", ms=13, mfc="none", mew=2))[0] for name in curves}

    def update(self, numbers):
        for name, ring in self.rings.items():
            ring.set_data([numbers["size"]], [numbers["lost"][name]])
            ring.set_color(COLOUR[WAYS[name][0]])


class Arrived(Panel):
    """What arrives against what was intended, for one way to merge."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(-3, 3), ylim=(-3, 3), xlabel="intended", ylabel="arrives", title=" ")
        ax.plot([-3, 3], [-3, 3], color=COLOUR["faint"], lw=6, zorder=0)
        self.dots = self.moves(ax.plot([], [], ".", ms=4))[0]
        self.title = self.moves(ax.text(0, 1.02, "", transform=ax.transAxes, va="bottom"))

    def update(self, numbers):
        self.dots.set_data(numbers["intended"], np.clip(numbers["arrived"], -2.95, 2.95))
        self.dots.set_color(COLOUR[WAYS[numbers["way"]][0]])
        self.title.set_text(numbers["way"])


def merges(numbers, sizes, curves) -> Picture:
    """Four ways to merge an adapter into its base."""
    panels = {"A": lambda ax: Lost(ax, sizes, curves), "B": Arrived}
    return Picture((10, 4.5), "AAABB", panels, numbers, _describe_merges)


def merge_states(states) -> Picture:
    """What arrives under each way to merge."""
    return repeated(
        Arrived, 4, [(" ", n) for n in states], (10, 3.2), lambda _: "; ".join(_describe_merges(n) for n in states)
    )


def _describe_merges(n):
    found = ", ".join(f"{name} {_rounded(lost)}" for name, lost in n["lost"].items())
    return f"share of an update of {n['size']:.2g} sigma that a merge loses: {found}"


class Combined(Panel):
    """Relative error of each way to combine two adapters."""

    def __init__(self, ax, errors):
        super().__init__(ax)
        for y, (name, error) in enumerate(reversed(errors.items())):
            shown = max(error, 1e-8)
            ax.barh(y, shown, color=COLOUR["delta"], height=0.6)
            ax.text(shown * 1.5, y, _rounded(error), va="center")
            ax.text(7e-9, y, name, ha="right", va="center")
        ax.set(xscale="log", xlim=(1e-8, 10), yticks=[], xlabel="relative error against the sum of both updates")

    def update(self, numbers):
        pass


def combinations(errors) -> Picture:
    """Which way to combine two adapters is exact."""
    found = ", ".join(f"{name} {_rounded(error)}" for name, error in errors.items())
    sentence = f"bar chart of the error of combining two adapters: {found}"
    return Picture((10, 2.9), "A", {"A": lambda ax: Combined(ax, errors)}, {}, lambda _: sentence)


class Memory(Panel):
    """Bits a weight by part of the file, one bar for each weight."""

    def __init__(self, ax, bits, limit):
        super().__init__(ax)
        for y, parts in enumerate(reversed(bits.values())):
            left = 0.0
            for part, (role, hatch) in PARTS.items():
                width = parts[part]
                ax.barh(y, width, left=left, height=0.6, color=COLOUR[role], hatch=hatch, edgecolor="white", lw=0.5)
                if width > 1:
                    patch = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
                    ax.text(left + width / 2, y, part, ha="center", va="center", bbox=patch, fontsize=9)
                elif width > 0.1 and y == len(bits) - 1:  # too narrow for its name
                    ax.text(left + width - 0.03, y - 0.32, part, ha="right", va="top", fontsize=9)
                left += width
            ax.text(left + 0.06, y, f"{left:.2f}", va="center")
        ax.axvline(limit, color=COLOUR["limit"], lw=1, ls="--")
        ax.text(limit + 0.06, len(bits) - 0.55, f"codes and scales alone: {limit:.2f}", fontsize=9, va="bottom")
        ax.set(yticks=range(len(bits)), yticklabels=list(reversed(bits)), xlim=(0, 7.4), ylim=(-0.7, len(bits) - 0.1))
        ax.set(xlabel="bits a weight in the file")

    def update(self, numbers):
        pass


def memory(bits, limit) -> Picture:
    """What a 4-bit weight costs in a file, by part."""
    found = ", ".join(f"{name} {sum(parts.values()):.2f}" for name, parts in bits.items())
    sentence = f"bar chart of bits a weight in a file: {found}; codes and scales alone {limit:.2f}"
    return Picture((10, 3.4), "A", {"A": lambda ax: Memory(ax, bits, limit)}, {}, lambda _: sentence)
