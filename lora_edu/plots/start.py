"""The one-picture summary: a 4-bit base, a low-rank update, and their sum, drawn to scale."""

from matplotlib.patches import Rectangle

from lora_edu.plots.picture import Panel, Picture
from lora_edu.plots.style import COLOUR, SIGNED

GAP = 60  # between matrices, in entries
LARGEST_RANK = 64


class SumOfMatrices(Panel):
    """W in 4 bits + scaling · B A = W', every matrix in the same scale of length."""

    def __init__(self, ax, size):
        super().__init__(ax)
        self.size = size
        left = 0
        self.left = {}
        for name, width in (("base", size), ("B", LARGEST_RANK), ("A", size), ("sum", size)):
            self.left[name] = left
            left += width + GAP
        ax.set(xlim=(-4, left - GAP + 4), ylim=(size + 46, -64), aspect="equal")
        ax.axis("off")
        ax.autoscale(False)
        self.images = {}
        for name in self.left:
            shown = ax.imshow([[0.0]], cmap=SIGNED, interpolation="nearest", aspect="equal")
            self.images[name] = self.moves(shown)
        ax.set(xlim=(-4, self.left["sum"] + size + 4), ylim=(size + 46, -64))
        middle = size / 2
        for name, sign in (("B", "+"), ("A", "·"), ("sum", "=")):
            ax.text(self.left[name] - GAP / 2, middle, sign, ha="center", va="center", fontsize=18)
        self.titles, self.notes = {}, {}
        roles = {"base": "W", "B": "B", "A": "A", "sum": "limit"}
        for name, left in self.left.items():
            centre = left + (LARGEST_RANK if name == "B" else size) / 2
            text = {"ha": "center", "color": COLOUR[roles[name]]}
            self.titles[name] = self.moves(ax.text(centre, -18, "", va="bottom", weight="bold", **text))
            self.notes[name] = self.moves(ax.text(centre, size + 14, "", va="top", fontsize=9, **text))

    def update(self, numbers):
        size, rank = self.size, numbers["rank"]
        tops = {name: 0 for name in self.left} | {"A": (size - rank) / 2}
        lefts = self.left | {"B": self.left["B"] + (LARGEST_RANK - rank) / 2}
        for name, image in self.images.items():
            matrix = numbers["matrices"][name]
            limit = numbers["limits"][name]
            image.set(data=matrix, clim=(-limit, limit))
            left, top = lefts[name], tops[name]
            image.set_extent((left, left + matrix.shape[1], top + matrix.shape[0], top))
            self.titles[name].set(text=numbers["titles"][name], y=top - 18)
            self.notes[name].set(text=numbers["notes"][name], y=top + matrix.shape[0] + 14)


class MemoryBars(Panel):
    """Bytes of the float32 weight, of its 4-bit form, and of the adapter, on one scale."""

    def __init__(self, ax, largest):
        super().__init__(ax)
        ax.set(xlim=(0, largest * 1.25), ylim=(-0.6, 2.6), xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
        labels = (("float32 weight", "muted"), ("4-bit weight", "W"), ("A and B", "delta"))
        for y, (label, _) in enumerate(labels):
            ax.text(-0.01, 2 - y, label, transform=ax.get_yaxis_transform(), ha="right", va="center")
        self.bars = [Rectangle((0, 1.7 - y), 0, 0.6, color=COLOUR[role]) for y, (_, role) in enumerate(labels)]
        for bar in self.bars:
            ax.add_patch(bar)
        self.moves(self.bars)
        self.values = [self.moves(ax.text(0, 2 - y, "", va="center")) for y in range(3)]

    def update(self, numbers):
        sizes = numbers["bytes"]
        for bar, text, size in zip(self.bars, self.values, sizes, strict=True):
            bar.set_width(size)
            text.set(
                x=size + sizes[0] * 0.01,
                text=f"{size:,} bytes" + (f", {size / sizes[0]:.0%}" if bar is not self.bars[0] else ""),
            )


def summary(numbers) -> Picture:
    """The summary for one rank and block size."""
    panels = {
        "A": lambda ax: SumOfMatrices(ax, len(numbers["matrices"]["base"])),
        "B": lambda ax: MemoryBars(ax, numbers["bytes"][0]),
    }
    return Picture((10, 4.6), "A\nB", panels, numbers, _describe, height_ratios=[3.4, 1])


def _describe(numbers):
    full, four, pair = numbers["bytes"]
    return (
        f"heat maps of a real weight in 4 bits, plus B times A of rank {numbers['rank']}, equal to the adapted weight; "
        f"below, bars: {full:,} bytes in float32, {four:,} in 4 bits, {pair:,} for A and B"
    )
