"""The figures of the chapter on rank."""

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR, MAGNITUDE, SIGNED

LINES = {  # name of the matrix -> colour, dash, where its name stands beside the curve, and how steep
    "random": (COLOUR["limit"], "--", (220, 0.25), -33),
    "query": (COLOUR["W"], "-", (72, 0.38), 0),
    "FFN down": (COLOUR["int4"], "-", (116, 0.655), 0),
    "trained update": (COLOUR["delta"], "-", (36, 0.11), 0),
}
PAIR_LINES = {
    "query and 4-bit copy": (COLOUR["nf4"], "-", "s"),
    "two trained updates": (COLOUR["delta"], "-", "D"),
    "shuffled labels": (COLOUR["int4"], "-", "^"),
    "two random matrices": (COLOUR["limit"], ":", "o"),
}


def _plain_frame(ax, colour):
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.2)


class Factor(Panel):
    """B as columns or A as rows: the first `rank` of them drawn, the rest still empty."""

    def __init__(self, ax, name, room):
        super().__init__(ax)
        self.name, self.room = name, room
        self.image = self.moves(ax.imshow(np.zeros((1, 1)), cmap=SIGNED, vmin=-1, vmax=1, **_filling()))
        _plain_frame(ax, COLOUR[name])
        if name == "B":
            ax.set_xlabel("B", color=COLOUR["B"])
        else:
            ax.set_title("A", color=COLOUR["A"], loc="center")

    def update(self, numbers):
        thin = numbers[self.name]  # (out, rank) or (rank, in), each column or row with largest entry 1
        empty = self.room - numbers["rank"]
        self.image.set_data(np.pad(thin, ((0, 0), (0, empty)) if self.name == "B" else ((0, empty), (0, 0))))


class Matrix(Panel):
    """A matrix as a picture: a photograph in grey, a weight in two colours with white at zero."""

    def __init__(self, ax, key, label=None, colour=COLOUR["W"]):
        super().__init__(ax)
        self.key = key
        self.image = self.moves(ax.imshow(np.zeros((1, 1)), **_filling()))
        _plain_frame(ax, colour)
        if label:
            ax.set_xlabel(label, color=colour)

    def update(self, numbers):
        self.image.set_data(numbers[self.key])
        self.image.set_cmap("gray" if numbers["photo"] else SIGNED)
        self.image.set_clim(-numbers["limit"], numbers["limit"])


def _filling():
    return {"extent": (0, 1, 0, 1), "aspect": "auto", "interpolation": "nearest"}


class FillInNote(Panel):
    """Rank, cost and what is left, in words."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.axis("off")
        self.big = self.moves(ax.text(0, 0.95, "", va="top", fontsize=14, color=COLOUR["delta"], weight="bold"))
        self.small = self.moves(ax.text(0, 0.58, "", va="top", fontsize=10, linespacing=1.5))

    def update(self, numbers):
        rank, sheets = numbers["rank"], "sheet" if numbers["rank"] == 1 else "sheets"
        self.big.set_text(f"rank {rank}: {numbers['left']:.0%} left over")
        where = "" if numbers["photo"] else f"\nshown: the first {len(numbers['product'])} rows and columns"
        self.small.set_text(f"{rank} {sheets}, {numbers['trained'] / numbers['full']:.1%} of the numbers{where}")


def fill_in(numbers) -> Picture:
    """B's columns and A's rows appear, and their product turns into the target."""
    panels = {
        "b": lambda ax: Factor(ax, "B", numbers["room"]),
        "a": lambda ax: Factor(ax, "A", numbers["room"]),
        "p": lambda ax: Matrix(ax, "product", "ΔW = B A", COLOUR["delta"]),
        "t": lambda ax: Matrix(ax, "target", "target"),
        "n": FillInNote,
    }
    shape = {"width_ratios": [0.8, 3.4, 0.35, 3.4], "height_ratios": [0.8, 3.4]}
    return Picture((10, 5.7), ".a.n\nbp.t", panels, numbers, _describe_fill_in, **shape)


def _describe_fill_in(numbers):
    return (
        f"the product of B with {numbers['rank']} columns and A with {numbers['rank']} rows, beside the target "
        f"({numbers['name']}): {numbers['left']:.0%} of the target's norm is left over, with "
        f"{numbers['trained'] / numbers['full']:.1%} of its numbers"
    )


def fill_in_states(rows) -> Picture:
    """One row a target: its best approximations by growing rank, and itself."""
    titled = []
    for states in rows:
        titled += [(f"rank {n['rank']}: {n['left']:.0%} left", {**n, "drawn": n["product"]}) for n in states]
        titled += [(states[0]["name"], {**states[0], "drawn": states[0]["target"]})]

    def describe(_):
        return "pictures of best approximations: " + "; ".join(
            f"{states[0]['name']} " + ", ".join(f"{n['left']:.0%} left at rank {n['rank']}" for n in states)
            for states in rows
        )

    return repeated(lambda ax: Matrix(ax, "drawn"), len(rows[0]) + 1, titled, (10, 2.6 * len(rows) + 0.3), describe)


class LayerToScale(Panel):
    """W, B and A as rectangles to one scale: as large as the panel, or with W always as large."""

    def __init__(self, ax, same_size=False):
        super().__init__(ax)
        ax.set(xlim=(-0.1, 1.02), ylim=(-1.02, 0.1), aspect="equal")
        ax.axis("off")
        self.same_size = same_size
        self.w, self.a, self.b = (
            self.moves(ax.add_patch(Rectangle((0, 0), 0, 0, fc=fc, ec=ec, lw=1.2)))
            for fc, ec in (
                (COLOUR["faint"], COLOUR["W"]),
                (COLOUR["A"], COLOUR["A"]),
                (COLOUR["B"], COLOUR["B"]),
            )
        )
        self.note_w, self.note_a, self.note_b = (
            self.moves(ax.text(0, 0, "", ha="center", va="center", linespacing=1.4, fontsize=size))
            for size in (10, 11, 11)
        )

    def update(self, numbers):
        rank, rows, columns = numbers["rank"], numbers["out_features"], numbers["in_features"]
        gap = 0.02
        unit = (max(rows, columns) + (max(rows, columns) if self.same_size else rank)) / (1 - gap)
        width, height, thin = columns / unit, rows / unit, rank / unit
        left, top = 1 - width, height - 1  # W stands in the lower right corner
        if not self.same_size:
            left, top = thin + gap, -thin - gap  # B starts on the left edge, A on the upper one
        self.w.set_bounds(left, top - height, width, height)
        self.a.set_bounds(left, top + gap, width, thin)
        self.b.set_bounds(left - gap - thin, top - height, thin, height)
        big = min(width, height) > 0.3
        self.note_w.set_text("" if self.same_size else f"W\n{rows:,} × {columns:,}")
        tall = not big and width < height
        beside = (left + width + 0.03, top - height / 2) if tall else (left + width / 2, top - height - 0.08)
        self.note_w.set_ha("left" if tall else "center")
        self.note_w.set_position((left + width / 2, top - height / 2) if big else beside)
        inside = thin > 0.14
        self._name(self.note_a, "A", (left + width / 2, top + gap + thin / 2), (0, thin / 2 + 0.05), inside)
        self._name(self.note_b, "B", (left - gap - thin / 2, top - height / 2), (-thin / 2 - 0.05, 0), inside)

    def _name(self, note, name, centre, outwards, inside):
        x, y = centre if inside else (centre[0] + outwards[0], centre[1] + outwards[1])
        note.set(position=(x, y), text=name, color="white" if inside else COLOUR[name])


class CostLine(Panel):
    """Share of the layer's numbers that A and B hold, by rank; above the line they hold more than W."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xscale="log", yscale="log", xlim=(0.8, 16384), ylim=(0.01, 400))
        ax.set(xlabel="rank", ylabel="numbers in A and B, % of W's")
        ax.xaxis.set_major_locator(FixedLocator([1, 8, 64, 512, 4096]))
        ax.yaxis.set_major_locator(FixedLocator([0.01, 0.1, 1, 10, 100]))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        ax.axhspan(100, 400, color=COLOUR["faint"], alpha=0.6, lw=0)
        ax.axhline(100, color=COLOUR["limit"], ls="--", lw=1.2)
        ax.text(0.95, 190, "more numbers than W itself", va="center", fontsize=9)
        self.line = self.moves(ax.plot([], [], color=COLOUR["delta"]))[0]
        self.even = self.moves(ax.plot([], [], "|", ms=16, mew=2, color=COLOUR["limit"]))[0]
        self.ring = self.moves(ax.plot([], [], "o", ms=13, mfc="none", mew=2.5, color=COLOUR["delta"]))[0]
        self.note = self.moves(ax.text(0.97, 0.04, "", transform=ax.transAxes, ha="right", va="bottom"))

    def update(self, numbers):
        share = 100 * numbers["trained"] / numbers["full"]
        ends = np.array([1, numbers["largest_rank"]])
        self.line.set_data(ends, share / numbers["rank"] * ends)
        self.even.set_data([numbers["break_even"]], [100])
        self.ring.set_data([numbers["rank"]], [share])
        self.note.set_text(
            f"rank {numbers['rank']:,}: {share:.3g} % of W's\nbreak-even at rank {numbers['break_even']:,.4g}"
        )


def cost(numbers) -> Picture:
    """A layer and its pair to scale, and the share of numbers by rank."""
    panels = {"L": LayerToScale, "C": CostLine}
    return Picture((10, 4.4), "LC", panels, numbers, _describe_cost, width_ratios=[1, 1.15])


def cost_states(states) -> Picture:
    """The layer to scale at growing ranks."""
    titled = [(f"rank {n['rank']}: {100 * n['trained'] / n['full']:.3g} % of W", n) for n in states]

    def describe(_):
        rows, columns = states[0]["out_features"], states[0]["in_features"]
        return f"diagrams of a {rows} x {columns} layer to scale with B and A; " + "; ".join(t for t, _ in titled)

    return repeated(lambda ax: LayerToScale(ax, same_size=True), 4, titled, (10, 2.9), describe)


def _describe_cost(numbers):
    return (
        f"a layer of {numbers['out_features']:,} x {numbers['in_features']:,} to scale with B and A of rank "
        f"{numbers['rank']:,}, and a line chart of their cost: {100 * numbers['trained'] / numbers['full']:.3g} % of "
        f"the layer's numbers, break-even at rank {numbers['break_even']:,.4g}"
    )


class PaperCounts(Panel):
    """Computed over printed for each row of the paper, with the room that the printed digits leave."""

    def __init__(self, ax, rows):
        super().__init__(ax)
        for y, row in enumerate(reversed(rows)):
            colour = COLOUR["W"] if row["agrees"] else COLOUR["B"]
            low, high = (bound / row["printed"] for bound in row["rounding"])
            ax.plot([low, high], [y, y], color=COLOUR["faint"], lw=12, solid_capstyle="butt", zorder=1)
            ratio = row["computed"] / row["printed"]
            ax.plot(ratio, y, "o" if row["agrees"] else "X", ms=9, color=colour, mec="white")
            ax.text(1.32, y, row["printed_text"], ha="right", va="center")
            ax.text(1.54, y, f"{row['computed']:,}", ha="right", va="center", color=colour)
            ax.text(0.37, y, row["name"], ha="right", va="center")
        top = len(rows) - 0.35
        for x, head in ((1.32, "printed"), (1.54, "computed")):
            ax.text(x, top, head, ha="right", va="bottom", weight="bold")
        ax.axvline(1, color=COLOUR["limit"], lw=1, ls="--", zorder=0)
        ax.set(xlim=(0.4, 1.55), ylim=(-0.6, len(rows) - 0.2), yticks=[], xlabel="computed ÷ printed")
        ax.xaxis.set_major_locator(FixedLocator([0.5, 0.75, 1]))
        ax.xaxis.set_label_coords(0.52, -0.1)
        ax.spines[["left", "bottom"]].set_visible(False)

    def update(self, numbers):
        pass


def paper_counts(rows) -> Picture:
    """The paper's trainable-parameter counts beside the formula's."""
    off = [row for row in rows if not row["agrees"]]
    sentence = (
        f"dot chart of computed over printed parameter counts for {len(rows)} rows of the LoRA paper: "
        f"{len(rows) - len(off)} agree with the printed digits; " + "; ".join(f"{r['name']} does not" for r in off)
    )
    return Picture((10, 4.2), "A", {"A": lambda ax: PaperCounts(ax, rows)}, {}, lambda _: sentence)


class Spectrum(Panel):
    """Singular values, largest first: those kept in colour."""

    def __init__(self, ax, small=False):
        super().__init__(ax)
        ax.set(xlim=(0, 385), ylim=(0, 1.04), xticks=[1, 96, 192, 288, 384])
        ax.set_xlabel("singular value number" if small else "singular value, largest first")
        ax.set_ylabel("" if small else "σ ÷ largest σ")
        self.rest = self.moves(ax.fill_between([0], [0], color=COLOUR["faint"], lw=0))
        self.kept = self.moves(ax.fill_between([0], [0], lw=0))
        self.line = self.moves(ax.plot([], [], lw=1.5))[0]
        self.note = self.moves(ax.text(0.97, 0.95, "", transform=ax.transAxes, ha="right", va="top", linespacing=1.5))
        self.small = small

    def update(self, numbers):
        singular, rank = numbers["singular"], numbers["rank"]
        number = np.arange(1, len(singular) + 1)
        colour = LINES[numbers["name"]][0]
        self.rest.set_data(number, 0, singular)
        self.kept.set_data(np.append(0, number[:rank]), 0, np.append(singular[0], singular[:rank]))
        self.kept.set_color(colour)
        self.line.set_data(number, singular)
        self.line.set_color(colour)
        if not self.small:
            self.note.set_text(f"{numbers['name']}\n{rank} of {len(singular)} kept")


class LeftOver(Panel):
    """What is left at each rank: the floor of every matrix, and what other choices leave of the chosen one."""

    def __init__(self, ax, floors):
        super().__init__(ax)
        for name, floor in floors.items():
            colour, dash, place, slope = LINES[name]
            ax.plot(np.arange(len(floor)), floor, dash, color=colour, lw=1.6)
            ax.text(*place, name, color=colour, fontsize=9, rotation=slope)
        ax.set(
            xlim=(0, 385), ylim=(0, 1.04), xticks=[0, 96, 192, 288, 384], xlabel="rank", ylabel="left over (of norm)"
        )
        self.random = self.moves(ax.plot([], [], "v", ms=5, color=COLOUR["muted"]))[0]
        self.rows = self.moves(ax.plot([], [], "x", ms=6, mew=1.6, color=COLOUR["B"]))[0]
        self.ring = self.moves(ax.plot([], [], "o", ms=13, mfc="none", mew=2.5, clip_on=False))[0]
        ax.text(
            0.99, 0.99, "▼ random directions", transform=ax.transAxes, ha="right", va="top", fontsize=9, color="#6B6B6B"
        )
        ax.text(
            0.99, 0.92, "× largest rows", transform=ax.transAxes, ha="right", va="top", fontsize=9, color=COLOUR["B"]
        )

    def update(self, numbers):
        self.random.set_data(numbers["marks"], numbers["random"])
        self.rows.set_data(numbers["marks"], numbers["largest_rows"])
        self.ring.set_data([numbers["rank"]], [numbers["left"]])
        self.ring.set_color(LINES[numbers["name"]][0])


def floor(numbers, floors) -> Picture:
    """The spectrum of a matrix with the kept part filled, and what is left at every rank."""
    panels = {"S": Spectrum, "L": lambda ax: LeftOver(ax, floors)}
    return Picture((10, 4.5), "SL", panels, numbers, _describe_floor, width_ratios=[1, 1.3])


def floor_states(states) -> Picture:
    """The spectrum of one matrix at several ranks, or of several at one rank."""
    one = len({n["name"] for n in states}) == 1
    titled = [(f"rank {n['rank']}" if one else n["name"], n) for n in states]
    titled = [(f"{title}: {n['left']:.0%} left", n) for title, n in titled]

    def describe(_):
        what = states[0]["name"] if one else f"{len(states)} matrices, the first {states[0]['rank']} filled"
        return f"singular values of {what}; " + "; ".join(title for title, _ in titled)

    return repeated(lambda ax: Spectrum(ax, small=True), len(states), titled, (10, 2.9), describe)


def _describe_floor(numbers):
    return (
        f"singular values of {numbers['name']} with the first {numbers['rank']} filled, and a line chart of what is "
        f"left by rank for four matrices: {numbers['left']:.0%} is left at rank {numbers['rank']}; random directions "
        "and the largest rows always leave more"
    )


class OverlapMap(Panel):
    """φ(i, j) as a heat map from 0 to 1, with a ring at one entry."""

    def __init__(self, ax, size, small=False):
        super().__init__(ax)
        extent = (0.5, size + 0.5, size + 0.5, 0.5)
        options = {"cmap": MAGNITUDE, "vmin": 0, "vmax": 1, "interpolation": "nearest", "extent": extent}
        self.image = self.moves(ax.imshow(np.zeros((1, 1)), **options))
        ticks = [1, *range(8, size + 1, 8)]
        ax.set(xticks=ticks, yticks=ticks, xlabel="j directions of the second")
        self.ring = None
        if not small:
            ax.set_ylabel("i directions of the first")
            ax.figure.colorbar(self.image, ax=ax, shrink=0.9, pad=0.02).set_label("φ(i, j)")
            self.ring = self.moves(ax.plot([], [], "s", ms=10, mfc="none", mec="white", mew=2.2, clip_on=False))[0]

    def update(self, numbers):
        self.image.set_data(numbers["phi"])
        if self.ring:
            self.ring.set_data([numbers["j"]], [numbers["i"]])


class OverlapLines(Panel):
    """φ(i, i) of every pair, and what two random subspaces have on average."""

    def __init__(self, ax, diagonals, expected):
        super().__init__(ax)
        number = np.arange(1, len(expected) + 1)
        ax.plot(number, expected, color=COLOUR["faint"], lw=7, solid_capstyle="butt")
        for name, phi in diagonals.items():
            colour, dash, marker = PAIR_LINES[name]
            ax.plot(number, phi, dash, color=colour, marker=marker, ms=4, markevery=4)
            where = -14 if phi[-1] > 0.9 else 16
            label = f"{name} (grey: expected)" if "random" in name else name
            style = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 9, "color": colour}
            ax.annotate(label, (number[-1], phi[-1]), (0, where), **style)
        ax.set(
            xlim=(0, len(expected) + 1), ylim=(0, 1.04), xlabel="directions compared, i = j", ylabel="φ on the diagonal"
        )
        self.ring = self.moves(ax.plot([], [], "o", ms=13, mfc="none", mew=2.5))[0]

    def update(self, numbers):
        self.ring.set_data([min(numbers["i"], numbers["j"])], [numbers["on_diagonal"]])
        self.ring.set_color(PAIR_LINES[numbers["pair"]][0])


def overlap(numbers, diagonals, expected) -> Picture:
    """How far the directions of two matrices agree."""
    panels = {
        "M": lambda ax: OverlapMap(ax, len(expected)),
        "L": lambda ax: OverlapLines(ax, diagonals, expected),
    }
    return Picture((10, 4.4), "ML", panels, numbers, _describe_overlap)


def overlap_states(states) -> Picture:
    """The heat map of every pair, on one scale."""
    titled = [(n["pair"], n) for n in states]

    def describe(_):
        return f"heat maps of subspace similarity, φ at {states[0]['i']} and {states[0]['j']} directions: " + "; ".join(
            f"{n['pair']} {n['value']:.2f}" for n in states
        )

    return repeated(
        lambda ax: OverlapMap(ax, len(states[0]["phi"]), small=True), len(states), titled, (10, 3.1), describe
    )


def _describe_overlap(numbers):
    return (
        f"heat map of subspace similarity for {numbers['pair']}, and a line chart along its diagonal for four pairs: "
        f"φ({numbers['i']}, {numbers['j']}) = {numbers['value']:.2f}, where random subspaces have "
        f"{numbers['expected']:.2f}"
    )
