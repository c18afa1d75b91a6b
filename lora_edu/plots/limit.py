"""The figures of the chapter on the limit."""

import numpy as np
from matplotlib.ticker import FixedLocator

from lora_edu.limit import DB_PER_BIT
from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR

FORMATS = {  # name -> colour, dash, marker
    "best, signed scale": (COLOUR["A"], "-", "D"),
    "NF4": (COLOUR["nf4"], "-", "o"),
    "INT4 asymmetric": (COLOUR["int4"], "--", "^"),
    "INT4": (COLOUR["int4"], "-", "v"),
    "FP4": (COLOUR["fp4"], "-", "s"),
}
STORAGES = {
    "float32": (COLOUR["B"], ":", "s"),
    "float16": (COLOUR["int4"], "--", "^"),
    "double": (COLOUR["nf4"], "-", "o"),
}


class Plane(Panel):
    """SNR over bits a weight: the limit, every format as a curve over its block size, a ring on the chosen point."""

    RIGHT = 5.02  # dearer points are not shown

    def __init__(self, ax, small=False):
        super().__init__(ax)
        ax.set(xlim=(3.96, 5.1 if small else 5.5), ylim=(15.5, 31), xlabel="bits a weight, scales included")
        ax.set_xticks([4, 4.5, 5])
        if not small:
            ax.set_ylabel("SNR (dB)")
        line = np.array([3.9, 5.1])
        slope = {
            "rotation": np.degrees(np.arctan(DB_PER_BIT)),
            "transform_rotates_text": True,
            "rotation_mode": "anchor",
        }
        ax.plot(line, DB_PER_BIT * line, color=COLOUR["limit"], lw=2.5)
        ax.text(
            4.45, DB_PER_BIT * 4.45 + 0.35, "Shannon's limit" + (": 6.02 dB a bit" * (not small)), fontsize=10, **slope
        )
        if not small:
            below = {"va": "top", "fontsize": 9, "color": COLOUR["W"], **slope}
            ax.text(4.62, DB_PER_BIT * 4.62 - 1.75, "uniform steps, ideal entropy coding", **below)
        self.entropy = self.moves(ax.plot([], [], "--", color=COLOUR["muted"]))[0]
        self.curves, self.names = {}, {}
        for name, (colour, dash, marker) in FORMATS.items():
            self.curves[name] = self.moves(ax.plot([], [], dash, color=colour, marker=marker, ms=4.5))[0]
            if not small:
                self.names[name] = self.moves(ax.text(0, 0, name, fontsize=9, color=colour, va="center"))
        self.gap = self.moves(ax.plot([], [], color=COLOUR["B"], lw=1.4, marker="_", ms=9))[0]
        self.ring = self.moves(ax.plot([], [], "o", ms=14, mfc="none", mew=2.5))[0]
        self.note = self.moves(ax.text(0, 0, "", color=COLOUR["B"], va="center", fontsize=9))

    def update(self, numbers):
        self.entropy.set_data(numbers["line_bits"], numbers["line_entropy"])
        ends = {}
        for name, curve in self.curves.items():
            bits, snr = numbers["curves"][name]
            shown = bits <= self.RIGHT
            curve.set_data(bits[shown], snr[shown])
            curve.set_linewidth(2.6 if name == numbers["name"] else 1.2)
            ends[name] = (bits[shown][0], snr[shown][0])
        taken = []
        for name, text in sorted(self.names.items(), key=lambda item: -ends[item[0]][1]):
            y = min([ends[name][1], *(above - 0.75 for above in taken)])
            taken.append(y)
            text.set(x=ends[name][0] + 0.02, y=y)
        bits, snr, limit = numbers["bits"], numbers["snr"], numbers["limit_db"]
        visible = bits <= self.RIGHT
        for artist in (self.gap, self.ring, self.note):
            artist.set_visible(visible)
        self.gap.set_data([bits, bits], [snr, limit])
        self.ring.set_data([bits], [snr])
        self.ring.set_color(FORMATS[numbers["name"]][0])
        self.note.set(x=bits + 0.02, y=snr + 0.62 * (limit - snr))
        self.note.set_text(f"{numbers['gap_db']:.2f} dB = {numbers['gap_bits']:.2f} bit")


class Ladder(Panel):
    """SNR of every format at the same bits a weight, up to the limit."""

    def __init__(self, ax, rungs, bits):
        super().__init__(ax)
        top = max(rungs.values())
        colours = {"Shannon's limit": COLOUR["limit"], "ideal entropy coding": COLOUR["muted"]}
        colours |= {name: look[0] for name, look in FORMATS.items()}
        for y, (name, snr) in enumerate(sorted(rungs.items(), key=lambda item: item[1])):
            colour = colours.get(name, COLOUR["faint"])
            ax.barh(y, snr - 16, left=16, height=0.66, color=colour)
            ax.text(snr + 0.1, y, f"{snr:.2f}", va="center", fontsize=9)
            ax.text(15.9, y, name, va="center", ha="right")
        ax.set(xlim=(16, top + 1.2), yticks=[], xlabel=f"SNR (dB) at {bits:.3f} bits a weight, blocks of 64")

    def update(self, numbers):
        pass


class GapByBlock(Panel):
    """Distance to the limit by block size for each way to store the scale, with its lowest point."""

    def __init__(self, ax, sizes):
        super().__init__(ax)
        self.sizes = list(sizes)
        places = range(len(self.sizes))
        ax.xaxis.set_major_locator(FixedLocator(list(places)))
        ax.set_xticklabels([str(size) if size < 1024 else f"{size // 1024}K" for size in self.sizes])
        ax.set(xlim=(-0.4, len(self.sizes) - 0.6), ylim=(3, 12), xlabel="block size", ylabel="below the limit (dB)")
        self.lines, self.best, self.notes = {}, {}, {}
        for name, (colour, dash, marker) in STORAGES.items():
            self.lines[name] = self.moves(ax.plot([], [], dash, color=colour, marker=marker, ms=4.5))[0]
            self.best[name] = self.moves(ax.plot([], [], "*", ms=15, color=colour, mec="white"))[0]
        for y, (name, (colour, _, _)) in zip((0.97, 0.89, 0.81), STORAGES.items(), strict=True):
            self.notes[name] = self.moves(
                ax.text(0.98, y, "", transform=ax.transAxes, ha="right", va="top", color=colour)
            )

    def update(self, numbers):
        for name, gaps in numbers["gaps"].items():
            best = int(np.argmin(gaps))
            self.lines[name].set_data(range(len(gaps)), gaps)
            self.lines[name].set_linewidth(2.6 if name == numbers["storage"] else 1.2)
            self.best[name].set_data([best], [gaps[best]])
            self.notes[name].set_text(f"{name}: best at {self.sizes[best]}")


class Budget(Panel):
    """Where the bits of a weight go: the code, the scale, and the part that the limit would not need."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 6.3), ylim=(-0.8, 1.7), yticks=[], xlabel="bits a weight")
        ax.spines["left"].set_visible(False)
        roles = (("code", "nf4", 1), ("scale", "B", 1), ("needed", "limit", 0), ("wasted", "faint", 0))
        self.bars = {name: self.moves(ax.barh(y, 0, height=0.55, color=COLOUR[role])[0]) for name, role, y in roles}
        self.texts = {name: self.moves(ax.text(0, 0, "", fontsize=9, ha="center")) for name, _, _ in roles}

    def update(self, numbers):
        bits, gap = numbers["bits"], numbers["gap_bits"]
        parts = {"code": (0, 4, 1, "code"), "scale": (4, bits - 4, 1, "scale")}
        parts |= {"needed": (0, bits - gap, 0, "the limit needs"), "wasted": (bits - gap, gap, 0, "too much")}
        for name, (left, width, y, text) in parts.items():
            self.bars[name].set(x=left, width=width)
            self.texts[name].set(x=left + width / 2, y=y + 0.36, text=f"{text} {width:.2f}")
        self.texts["wasted"].set(ha="left", x=bits - gap)
        self.texts["scale"].set(ha="left", x=4)


def plane(numbers) -> Picture:
    """The plane of bits and SNR for one chosen point."""
    panels = {"A": Plane}
    return Picture((10, 5.4), "A", panels, numbers, _describe_plane)


def plane_states(states) -> Picture:
    """The plane under each way to store the scale."""
    titled = [(f"scale in {n['storage']}", n) for n in states]

    def describe(_):
        return "planes of SNR by bits a weight; NF4 in blocks of 64 lies below the limit by " + ", ".join(
            f"{n['gap_db']:.2f} dB with the {title}" for title, n in titled
        )

    return repeated(lambda ax: Plane(ax, small=True), 3, titled, (10, 4.4), describe)


def _describe_plane(n):
    return (
        f"plane of SNR by bits a weight with Shannon's limit above all formats: {n['name']} in blocks of "
        f"{n['block_size']}, scale in {n['storage']}, has {n['snr']:.2f} dB at {n['bits']:.3f} bits, "
        f"{n['gap_db']:.2f} dB or {n['gap_bits']:.2f} bit below the limit"
    )


def ladder(rungs, bits) -> Picture:
    """The ladder from the worst format to the limit."""
    found = ", ".join(f"{name} {snr:.2f}" for name, snr in sorted(rungs.items(), key=lambda item: item[1]))
    sentence = f"bar chart of SNR in dB at {bits:.3f} bits a weight: {found}"
    return Picture((10, 3.9), "A", {"A": lambda ax: Ladder(ax, rungs, bits)}, {}, lambda _: sentence)


def storage(numbers, sizes) -> Picture:
    """Gap by block size for three storages, and where the bits go."""
    panels = {"A": lambda ax: GapByBlock(ax, sizes), "B": Budget}
    return Picture((10, 4.2), "AAABB", panels, numbers, _describe_storage)


def storage_states(states, sizes) -> Picture:
    """Gap by block size for several formats."""
    titled = [(n["name"], n) for n in states]

    def describe(_):
        return "line charts of the distance to the limit by block size: " + "; ".join(_best(n) for n in states)

    return repeated(lambda ax: GapByBlock(ax, sizes), 3, titled, (10, 4.0), describe)


def _best(n):
    found = ", ".join(f"{name} {n['best'][name]}" for name in n["gaps"])
    return f"best block size of {n['name']} by storage of the scale {found}"


def _describe_storage(n):
    return f"line chart of the distance to the limit by block size, and bars of the bits of one weight: {_best(n)}"


class Flip(Panel):
    """Two formats by bits a weight, and where they change places."""

    def __init__(self, ax, curves):
        super().__init__(ax)
        for name, (bits, snr) in curves.items():
            colour, dash, marker = FORMATS[name]
            bits, snr = bits[bits <= 5.02], snr[bits <= 5.02]
            ax.plot(bits, snr, dash, color=colour, marker=marker)
            ax.text(bits[0] + 0.02, snr[0], name, color=colour, va="center")
        ax.set(xlim=(3.98, 5.3), xlabel="bits a weight, scales in float16", ylabel="SNR (dB)")

    def update(self, numbers):
        pass


def flip(curves, crossing) -> Picture:
    """Where the ranking turns."""
    sentence = f"line chart: asymmetric INT4 overtakes NF4 at {crossing:.1f} bits a weight"
    return Picture((10, 3.6), "A", {"A": lambda ax: Flip(ax, curves)}, {}, lambda _: sentence)
