"""The figures of the chapter on a real model."""

from itertools import pairwise

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullFormatter, NullLocator

from lora_edu.plots.picture import Panel, Picture, repeated
from lora_edu.plots.style import COLOUR, MAGNITUDE

LINES = {  # format -> colour, dash, marker
    "NF4": (COLOUR["nf4"], "-", "o"),
    "INT4": (COLOUR["int4"], "--", "^"),
    "FP4": (COLOUR["fp4"], "-.", "s"),
    "INT4 min-max": (COLOUR["B"], ":", "D"),
}
SHORT_KINDS = ["query", "key", "value", "attn\nout", "FFN\nup", "FFN\ndown"]
PARTS = {"word embeddings": "A", "attention": "W", "FFN": "B", "rest": "muted"}
LEAST_DAMAGE, MOST_DAMAGE = 2e-5, 0.15  # the ends of the colours of 1 - cosine
LINE_WIDTH = 41  # characters of a sentence that fit beside the other column


def size_name(block_size: int) -> str:
    """ "blocks of 64", or "one scale a matrix"."""
    return f"blocks of {block_size}" if block_size else "one scale a matrix"


class SimilarityMatrix(Panel):
    """Cosines among forty sentences on one fixed scale; the pairs are squares of two along the diagonal."""

    def __init__(self, ax, title=None, fixed=None):
        super().__init__(ax)
        blank = np.zeros((40, 40)) if fixed is None else fixed
        self.image = ax.imshow(blank, cmap=MAGNITUDE, vmin=0, vmax=1, interpolation="nearest")
        if fixed is None:
            self.moves(self.image)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set_visible(False)
        if title:
            ax.set_title(title)

    def update(self, numbers):
        if self.moving:
            self.image.set_data(numbers["similarity"])


class Score(Panel):
    """What became of the pairs and of all nearest neighbours, in words."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.axis("off")
        ax.set(xlim=(0, 1), ylim=(0, 1))
        at = ((0.85, "limit", "normal"), (0.5, "limit", "normal"), (0.15, "B", "bold"))
        self.lines = [self.moves(ax.text(0, y, "", va="center", color=COLOUR[c], weight=w)) for y, c, w in at]

    def update(self, numbers):
        self.lines[0].set_text(f"cosine with its old self: {numbers['cosine']:.2f}")
        self.lines[1].set_text(f"{numbers['pairs_found']} of 40 find their partner")
        changed = 160 - numbers["kept"]
        self.lines[2].set_text(f"{changed} of 160 neighbours changed" if changed else "")


def opening(states) -> Picture:
    """The similarity of forty sentences for each (title, numbers) of `states`, with the score below."""
    letters, scores = "ABC", "DEF"
    panels = {
        letter: lambda ax, title=title: SimilarityMatrix(ax, title)
        for letter, (title, _) in zip(letters, states, strict=True)
    } | {letter: Score for letter in scores}
    numbers = {letter: n for row in (letters, scores) for letter, (_, n) in zip(row, states, strict=True)}

    def describe(_):
        return "heat maps of the similarity of forty sentences in twenty pairs; " + "; ".join(
            f"{title}: cosine {n['cosine']:.2f}, {n['pairs_found']} of 40 find their partner, "
            f"{160 - n['kept']} of 160 nearest neighbours differ"
            for title, n in states
        )

    return Picture((10, 4.6), "ABC\nDEF", panels, numbers, describe, height_ratios=[4.2, 1])


class CosineByBlockSize(Panel):
    """How well sentences keep their place, by block size, for four formats; a ring marks the chosen one."""

    def __init__(self, ax, curves, sizes):
        super().__init__(ax)
        self.curves, self.sizes = curves, list(sizes)
        for name, curve in curves.items():
            colour, dash, marker = LINES[name]
            ax.plot(curve, dash, marker=marker, color=colour, ms=6, mec="white", mew=0.6)
        ends = _spread([curve[-1] for curve in curves.values()], 0.062)
        for name, y in zip(curves, ends, strict=True):
            label = name.replace(" ", "\n")
            ax.text(len(sizes) - 0.75, y, label, color=LINES[name][0], va="center", weight="bold", fontsize=9)
        ax.set(ylim=(0, 1.03), xlim=(-0.4, len(sizes) + 0.7), xlabel="block size", ylabel="cosine with its old self")
        ax.xaxis.set_major_locator(FixedLocator(range(len(sizes))))
        ax.set_xticklabels([str(size or "all") for size in sizes], fontsize=8)
        self.ring = self.moves(ax.plot([], [], "o", ms=15, mfc="none", mew=2.5))[0]
        self.note = self.moves(
            ax.text(0.03, 0.05, "", transform=ax.transAxes, va="bottom", fontsize=9, linespacing=1.4)
        )

    def update(self, numbers):
        at = self.sizes.index(numbers["block_size"])
        self.ring.set_data([at], [self.curves[numbers["format"]][at]])
        self.ring.set_markeredgecolor(LINES[numbers["format"]][0])
        self.note.set_text(
            f"{numbers['format']}\n{size_name(numbers['block_size'])}\n{numbers['bits']:.4g} bits a weight\n"
            f"cosine {numbers['cosine']:.3f}\nworst {numbers['worst']:.3f}"
        )


def laboratory(numbers, before, curves, sizes) -> Picture:
    """Similarities before and after, and the mean cosine by format and block size."""
    panels = {
        "A": lambda ax: SimilarityMatrix(ax, "float32", before),
        "B": lambda ax: SimilarityMatrix(ax, "in 4 bits"),
        "C": lambda ax: CosineByBlockSize(ax, curves, sizes),
    }
    return Picture((10, 3.7), "AAABBBCCCCC", panels, numbers, _describe_laboratory)


def laboratory_states(states) -> Picture:
    """The similarity matrix at several settings."""
    titled = [(f"{n['format']}\n{size_name(n['block_size'])}\ncosine {n['cosine']:.2f}", n) for n in states]

    def describe(_):
        return "heat maps of the similarity of forty sentences: " + "; ".join(t.replace("\n", ", ") for t, _ in titled)

    return repeated(SimilarityMatrix, len(states), titled, (10, 3.9), describe)


def _describe_laboratory(n):
    return (
        f"heat maps of the similarity of forty sentences before and after, and a line chart of the mean cosine by "
        f"block size for four formats: {n['format']} in {size_name(n['block_size'])} keeps a cosine of "
        f"{n['cosine']:.3f}, {n['worst']:.3f} at worst"
    )


class Head(Panel):
    """Where each token of a sentence looks in one head."""

    def __init__(self, ax, share, pieces, title, labelled):
        super().__init__(ax)
        ax.imshow(share, cmap=MAGNITUDE, vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(title)
        rows = range(len(pieces))
        ax.set(xticks=rows, yticks=rows if labelled else [])
        ax.set_xticklabels(pieces, rotation=90)
        if labelled:
            ax.set_yticklabels(pieces)
            ax.set_ylabel("this token …")
        ax.set_xlabel("… looks at")
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)

    def update(self, numbers):
        pass


def attention_heads(shares, pieces, heads) -> Picture:
    """Three of the heads of a layer: shares (heads, tokens, tokens)."""

    def panel(letter, head):
        return lambda ax: Head(ax, shares[head], pieces, f"head {head}", labelled=letter == "A")

    panels = {letter: panel(letter, head) for letter, head in zip("ABC", heads, strict=True)}
    means = ", ".join(f"{np.diag(shares[head], -1).mean():.0%} in head {head}" for head in heads)
    sentence = (
        f"heat maps of where the {len(pieces)} tokens of a sentence look in heads {', '.join(map(str, heads))}; "
        f"the token before gets {means}"
    )
    return Picture((10, 4.5), "ABC", panels, {}, lambda _: sentence)


class PartBars(Panel):
    """One bar of bytes a state, its parts told apart by colour and name."""

    def __init__(self, ax, rows):
        super().__init__(ax)
        for y, parts in enumerate(reversed(rows.values())):
            left = 0
            for name, size in parts.items():
                ax.barh(y, size, left=left, color=COLOUR[PARTS[name]], height=0.62, ec="white", lw=1)
                if size > 12:
                    ax.text(left + size / 2, y, f"{name}\n{size:.1f}", ha="center", va="center", color="white")
                left += size
            ax.text(left + 0.8, y, f"{left:.1f} MB", va="center", weight="bold")
        ax.set(yticks=range(len(rows)), xlim=(0, 104), xlabel="megabytes")
        ax.set_yticklabels(reversed(rows))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)

    def update(self, numbers):
        pass


def bytes_of_the_model(rows) -> Picture:
    """label -> {part -> megabytes}: where the weights are."""
    sentence = "stacked bars of megabytes: " + "; ".join(
        f"{label} {sum(parts.values()):.1f}, of which " + ", ".join(f"{name} {v:.1f}" for name, v in parts.items())
        for label, parts in rows.items()
    )
    return Picture((10, 2.9), "A", {"A": lambda ax: PartBars(ax, rows)}, {}, lambda _: sentence.replace("\n", " "))


class BellOrNot(Panel):
    """The histogram of one matrix on a logarithmic scale, where the bell is a parabola."""

    def __init__(self, ax, centres, small=False):
        super().__init__(ax)
        self.centres = centres
        ax.plot(centres, np.exp(-(centres**2) / 2) / np.sqrt(2 * np.pi), "--", color=COLOUR["limit"], lw=1.4)
        ax.set(yscale="log", ylim=(3e-7, 1), xlim=(-8.2, 8.2), xlabel="weight, in σ")
        ax.yaxis.set_major_locator(FixedLocator([1, 1e-2, 1e-4, 1e-6]))
        ax.yaxis.set_minor_locator(NullLocator())
        if small:
            ax.yaxis.set_major_formatter(NullFormatter())
        else:
            ax.set_ylabel("density")
            ax.annotate("the bell", (2.9, 0.006), (4.1, 0.09), arrowprops={"arrowstyle": "-", "lw": 0.8})
        self.dots = self.moves(ax.plot([], [], "o", ms=4 if small else 5, mec="white", mew=0.4))[0]
        self.note = self.moves(ax.text(0.02, 0.97, "", transform=ax.transAxes, va="top", fontsize=9, linespacing=1.4))
        self.small = small

    def update(self, numbers):
        density = numbers["density"]
        seen = density > 0
        self.dots.set_data(self.centres[seen], density[seen])
        self.dots.set_color(COLOUR["nf4" if numbers["by"] == "block" else "W"])
        if not self.small:
            self.note.set_text(
                f"excess kurtosis\n{numbers['kurtosis']:,.2f}\nlargest weight\n{numbers['largest']:.0f} σ"
                if numbers["by"] == "tensor"
                else f"{numbers['heavy']:.0%} of the\nblocks have\nheavy tails"
            )


class KindMap(Panel):
    """A number for each of the 36 matrices; a frame marks the chosen one."""

    def __init__(self, ax, values, written, norm=None, title="", **colours):
        super().__init__(ax)
        values = np.asarray(values, float)
        self.image = ax.imshow(values, cmap=MAGNITUDE, norm=norm, interpolation="nearest", aspect="auto", **colours)
        ax.set_title(title)
        self.written, self.texts = written, []
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                text = ax.text(column, row, "", ha="center", va="center", fontsize=9, parse_math=False)
                self.texts.append((text, row, column))
        ax.set(xticks=range(len(SHORT_KINDS)), yticks=range(values.shape[0]), ylabel="layer")
        ax.set_xticklabels(SHORT_KINDS)
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        self.write(values)
        self.frame = self.moves(
            ax.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec=COLOUR["B"], lw=3, clip_on=False, visible=False))
        )

    def write(self, values):
        shares = self.image.norm(np.maximum(values, LEAST_DAMAGE))
        for text, row, column in self.texts:
            text.set(text=self.written(values[row, column]), color="black" if shares[row, column] > 0.55 else "white")

    def update(self, numbers):
        self.frame.set(xy=(numbers["column"] - 0.5, numbers["row"] - 0.5), visible=True)


def weights(numbers, centres, heavy) -> Picture:
    """The histogram of one matrix beside the map of how heavy the blocks of each are."""
    panels = {"A": lambda ax: BellOrNot(ax, centres), "B": lambda ax: _heavy_map(ax, heavy)}
    return Picture((10, 4.4), "AB", panels, numbers, _describe_weights)


def _heavy_map(ax, heavy):
    title = "Blocks heavier than 95 % of normal ones"
    return KindMap(ax, heavy, lambda v: f"{v:.0%}", title=title, vmin=0.05, vmax=0.4)


def weights_states(states, centres) -> Picture:
    """Histograms of several matrices, whole above and block by block below."""
    titled = [(f"{n['kind']}, layer {n['row']}" if n["by"] == "tensor" else "… block by block", n) for n in states]

    def describe(_):
        return "histograms on a logarithmic scale against the bell: " + "; ".join(
            f"{t}: excess kurtosis {n['kurtosis']:.2f}, largest {n['largest']:.0f} sigma, {n['heavy']:.0%} heavy blocks"
            for t, n in titled[: len(titled) // 2]
        )

    return repeated(lambda ax: BellOrNot(ax, centres, small=True), (len(states) + 1) // 2, titled, (10, 4.6), describe)


def _describe_weights(n):
    return (
        f"histogram of the {n['kind']} matrix of layer {n['row']} on a logarithmic scale against the bell, and a map "
        f"of the share of heavy blocks: its excess kurtosis is {n['kurtosis']:.2f}, its largest weight stands at "
        f"{n['largest']:.0f} sigma, and {n['heavy']:.0%} of its blocks are heavier than 95 % of normal ones"
    )


class DamageMap(KindMap):
    """1 - cosine when one matrix alone is in four bits."""

    def __init__(self, ax, title=""):
        super().__init__(ax, np.full((6, 6), LEAST_DAMAGE), _damage, LogNorm(LEAST_DAMAGE, MOST_DAMAGE), title)
        self.moves(self.image)
        self.moves([text for text, *_ in self.texts])

    def update(self, numbers):
        self.image.set_data(np.maximum(numbers["damage"], LEAST_DAMAGE))
        self.write(numbers["damage"])
        self.frame.set(visible="column" in numbers)
        if "column" in numbers:
            self.frame.set(xy=(numbers["column"] - 0.5, -0.5), height=6)


class DamageByKind(Panel):
    """1 - cosine when all six matrices of a kind are in four bits, beside the sum over the single matrices."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xscale="log", xlim=(1e-4, 1.6), ylim=(5.6, -0.7), xlabel="1 − cosine")
        ax.xaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1, 1]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(yticks=range(6))
        ax.set_yticklabels(["query", "key", "value", "attention out", "FFN up", "FFN down"])
        ax.grid(axis="x", color=COLOUR["faint"])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        self.stems = self.moves(LineCollection([], colors=COLOUR["nf4"], linewidths=2))
        ax.add_collection(self.stems)
        self.together = self.moves(ax.plot([], [], "o", ms=9, color=COLOUR["nf4"], mec="white"))[0]
        self.summed = self.moves(ax.plot([], [], "|", ms=20, mew=2.5, color=COLOUR["limit"]))[0]
        ax.set_title("● six layers together   | sum of the six", fontsize=9, loc="right")

    def update(self, numbers):
        rows = np.arange(6)
        self.stems.set_segments([[(1e-4, y), (x, y)] for x, y in zip(numbers["together"], rows, strict=True)])
        self.together.set_data(numbers["together"], rows)
        self.summed.set_data(numbers["summed"], rows)


def layers(numbers) -> Picture:
    """Which matrix hurts most, and which kind."""
    panels = {"A": lambda ax: DamageMap(ax, "10⁴ · (1 − cosine), one matrix in 4 bits"), "B": DamageByKind}
    return Picture((10, 4.2), "AAABB", panels, numbers, _describe_layers)


def layers_states(states) -> Picture:
    """The map of damage at several block sizes, on one scale of colours."""
    titled = [(size_name(n["block_size"]), {k: v for k, v in n.items() if k != "column"}) for n in states]

    def describe(_):
        return "heat maps of the damage that one matrix in NF4 does: " + "; ".join(
            f"{title}, at most {n['damage'].max():.1e}" for title, n in titled
        )

    return repeated(DamageMap, len(states), titled, (10, 3.4), describe)


def _describe_layers(n):
    return (
        f"heat map of 1 - cosine with one matrix in NF4 in {size_name(n['block_size'])}, and dots by kind of layer: "
        f"{n['worst_kind']} hurts most, {n['together'].max():.2g}, {n['best_kind']} least, {n['together'].min():.2g}"
    )


def _damage(value) -> str:
    """In ten-thousandths."""
    return f"{1e4 * value:.1f}" if value < 9.95e-4 else f"{1e4 * value:.0f}"


class Margins(Panel):
    """A mark a sentence: by how much its nearest neighbour won, and whether it still wins."""

    def __init__(self, ax, small=False):
        super().__init__(ax)
        ax.set(xscale="log", xlim=(5e-5, 1.05), ylim=(-0.6, 1.6))
        ax.set_xlabel(
            "margin in float32" if small else "margin: cosine of the nearest − cosine of the second, in float32"
        )
        ax.xaxis.set_major_locator(FixedLocator([1e-4, 1e-3, 1e-2, 1e-1, 1]))
        ax.xaxis.set_major_formatter(FixedFormatter(["0.0001", "0.001", "0.01", "0.1", "1"]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(yticks=[1, 0])
        ax.set_yticklabels(["in a pair", "others"])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        style = {"ls": "", "alpha": 0.85}
        self.kept = self.moves(ax.plot([], [], marker="o", ms=5.5, mec="white", mew=0.5, color=COLOUR["A"], **style))[0]
        self.lost = self.moves(ax.plot([], [], marker="X", ms=8, mec="white", mew=0.5, color=COLOUR["B"], **style))[0]
        at = [(0.0, 1.45, "A"), (0.0, 0.45, "A"), (0.28, 1.45, "B"), (0.28, 0.45, "B")]
        self.notes = [
            self.moves(ax.text(x, y, "", transform=ax.get_yaxis_transform(), color=COLOUR[c], va="center", fontsize=9))
            for x, y, c in at
        ]

    def update(self, numbers):
        kept = numbers["same"]
        x, y = np.maximum(numbers["margin"], 7e-5), numbers["height"]
        self.kept.set_data(x[kept], y[kept])
        self.lost.set_data(x[~kept], y[~kept])
        paired = np.arange(len(kept)) < 40
        counts = [np.sum(kept & paired), np.sum(kept & ~paired), np.sum(~kept & paired), np.sum(~kept & ~paired)]
        words = ["● {} keep it"] * 2 + ["× {} lose it"] * 2
        for note, count, word in zip(self.notes, counts, words, strict=True):
            note.set_text(word.format(int(count)))


def neighbours(numbers) -> Picture:
    """Who keeps the nearest neighbour, by the margin it had."""
    return Picture((10, 3.7), "A", {"A": Margins}, numbers, _describe_neighbours)


def neighbours_states(states) -> Picture:
    """The margins at several settings."""
    titled = [(f"{n['format']}, {size_name(n['block_size'])}: {n['changed']} changed", n) for n in states]

    def describe(_):
        return "dot plots of the margin of each nearest neighbour: " + "; ".join(t for t, _ in titled)

    return repeated(lambda ax: Margins(ax, small=True), 2, titled, (10, 3.2), describe)


def _describe_neighbours(n):
    return (
        f"dot plot of 160 sentences by the margin of their nearest neighbour: after {n['format']} in "
        f"{size_name(n['block_size'])} {n['pairs_found']} of 40 sentences in pairs find their partner, and "
        f"{n['changed']} of 160 have another nearest neighbour, most of them with small margins"
    )


class Ranking(Panel):
    """The five nearest sentences before on the left and after on the right; a line joins the same sentence."""

    COLUMNS = (0.435, 0.565)

    def __init__(self, ax):
        super().__init__(ax)
        ax.set(xlim=(0, 1), ylim=(5.3, -1.2))
        ax.axis("off")
        left, right = self.COLUMNS
        ax.text(left, -0.95, "nearest in float32", ha="right", weight="bold")
        self.title = self.moves(ax.text(right, -0.95, "", ha="left", weight="bold", color=COLOUR["nf4"]))
        self.lines = self.moves(LineCollection([], linewidths=2.2))
        ax.add_collection(self.lines)
        self.texts = [
            [self.moves(ax.text(x, y, "", ha=side, va="center", fontsize=9, parse_math=False)) for y in range(5)]
            for x, side in ((left, "right"), (right, "left"))
        ]
        self.dots = [self.moves(ax.plot([x], [y], "o", ms=6)[0]) for x in (0.447, 0.553) for y in range(5)]
        self.own = self.moves(ax.text(0.5, 5.1, "", ha="center", va="center", fontsize=9))

    def update(self, numbers):
        before, after = numbers["before"], numbers["after"]
        self.title.set_text(f"nearest in {numbers['setting']}")
        segments, colours = [], []
        for i, (sentence, _) in enumerate(before):
            for j, (other, _) in enumerate(after):
                if sentence == other:
                    segments.append([(0.447, i), (0.553, j)])
                    colours.append(COLOUR["A"] if i == j else COLOUR["muted"])
        self.lines.set_segments(segments)
        self.lines.set_color(colours)
        for texts, dots, ranked, others in (
            (self.texts[0], self.dots[:5], before, after),
            (self.texts[1], self.dots[5:], after, before),
        ):
            known = {sentence for sentence, _ in others}
            for text, dot, (sentence, cosine) in zip(texts, dots, ranked, strict=True):
                stays = sentence in known
                number = f"{cosine:.2f}"
                line = shortened(sentence)
                text.set_text(f"{line}  {number}" if texts is self.texts[0] else f"{number}  {line}")
                text.set_color(COLOUR["W"] if stays else COLOUR["B"])
                dot.set_color(COLOUR["A"] if stays else COLOUR["B"])
        self.own.set_text(
            f"its own cosine, before and after: {numbers['own']:.2f}   (orange: not among the other five)"
        )


def shortened(sentence: str) -> str:
    """What fits on a line."""
    return sentence if len(sentence) <= LINE_WIDTH else sentence[: LINE_WIDTH - 1].rstrip() + "…"


def ranking(numbers) -> Picture:
    """The five nearest of a sentence, before and after."""
    return Picture((10, 3.4), "A", {"A": Ranking}, numbers, _describe_ranking)


def _describe_ranking(n):
    return (
        f"two columns of the five sentences nearest to {n['sentence']!r}, in float32 and in {n['setting']}: "
        f"{n['shared']} of five are in both, and {n['in_place']} keep their rank"
    )


class ZeroLevels(Panel):
    """Levels of one block with an outlier, around zero: does a small weight come back as zero?"""

    def __init__(self, ax, rows, limit):
        super().__init__(ax)
        for y, (_, levels, back, colour) in enumerate(reversed(rows)):
            ax.plot(levels, np.full(len(levels), y), "|", ms=22, mew=2.4, color=colour, clip_on=True)
            ax.plot([back], [y], "v", ms=9, color=colour, mec="white", zorder=5)
        ax.axvline(0, color=COLOUR["limit"], lw=1, ls="--", zorder=0)
        ax.set(xlim=(-limit, limit), ylim=(-0.7, len(rows) - 0.3), xlabel="value (σ of the matrix)")
        ax.set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)

    def update(self, numbers):
        pass


class ZeroBars(Panel):
    """The cosine that each way of using sixteen levels keeps."""

    def __init__(self, ax, cosines, colours):
        super().__init__(ax)
        for y, (label, cosine) in enumerate(reversed(cosines.items())):
            ax.barh(y, cosine, color=colours[label], height=0.6)
            ax.text(cosine + 0.02, y, f"{cosine:.2f}", va="center")
        ax.set(yticks=range(len(cosines)), ylim=(-0.7, len(cosines) - 0.3), xlim=(0, 1.18))
        ax.set_xlabel("cosine with its old self")
        ax.set(xticks=[0, 0.5, 1], yticklabels=[])
        ax.tick_params(axis="y", length=0)

    def update(self, numbers):
        pass


def zero_or_not(rows, limit, cosines) -> Picture:
    """(label, levels, what a weight of 0 becomes, role) rows around zero, and label -> cosine kept."""
    rows = [(label, levels, back, COLOUR[role]) for label, levels, back, role in rows]
    colours = {label: colour for label, _, _, colour in rows}
    panels = {"A": lambda ax: ZeroLevels(ax, rows, limit), "B": lambda ax: ZeroBars(ax, cosines, colours)}
    sentence = "levels of one block around zero, and bars of the cosine kept: " + ", ".join(
        f"{label} {cosine:.2f}".replace("\n", " ") for label, cosine in cosines.items()
    )
    return Picture((10, 3.0), "AAAB", panels, {}, lambda _: sentence)


def _spread(values, gap):
    """Heights for labels at `values`, pushed apart to at least `gap`."""
    order = np.argsort(values)
    heights = np.array(values, float)
    for low, high in pairwise(order):
        heights[high] = max(heights[high], heights[low] + gap)
    return heights
