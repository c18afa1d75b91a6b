"""The figures of the chapter on the word "not"."""

import numpy as np
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from lora_edu.plots.picture import Panel, Picture
from lora_edu.plots.style import COLOUR

MOST_TOKENS, FEWEST_SLOTS = 26, 12
PROBE, ADAPTED, FOUR_BITS = COLOUR["W"], COLOUR["delta"], COLOUR["nf4"]
LOOK_LIMIT, VOTE_LIMITS = 0.75, (-1.1, 2.2)
ACCURACY = (0.79, 1.012)


class TokenBars(Panel):
    """A bar for each token: filled as the model reads now, a black line where the frozen model was."""

    def __init__(self, ax, part, title, limits):
        super().__init__(ax)
        self.part = part
        ax.set(xlim=(0, 1), ylim=limits, xticks=[])
        ax.set_title(title)
        ax.axhline(0, color=COLOUR["limit"], lw=0.8)
        places = np.arange(MOST_TOKENS)
        self.bars = self.moves(list(ax.bar(places, 0, color=ADAPTED)))
        self.before = self.moves([ax.plot([], [], color=PROBE, lw=2.4, solid_capstyle="butt")[0] for _ in places])

    def update(self, numbers):
        low, high = self.ax.get_ylim()
        now, before = (np.clip(numbers[name][self.part], low, high) for name in ("now", "before"))
        width = 1 / max(len(now), FEWEST_SLOTS)
        for k, (bar, line) in enumerate(zip(self.bars, self.before, strict=True)):
            shown = k < len(now)
            bar.set(visible=shown)
            line.set(visible=shown)
            if shown:
                bar.set(x=(k + 0.16) * width, width=0.68 * width, height=now[k])
                line.set_data([(k + 0.04) * width, (k + 0.96) * width], [before[k], before[k]])


class Words(Panel):
    """The tokens between the bars, read upwards; bold where attention has gained most."""

    def __init__(self, ax):
        super().__init__(ax)
        ax.axis("off")
        ax.set(xlim=(0, 1), ylim=(0, 1))
        self.texts = [ax.text(0, 0.5, "", rotation=90, ha="center", va="center") for _ in range(MOST_TOKENS)]
        self.moves(self.texts)

    def update(self, numbers):
        pieces = numbers["pieces"]
        width = 1 / max(len(pieces), FEWEST_SLOTS)
        for k, text in enumerate(self.texts):
            text.set_visible(k < len(pieces))
            if k < len(pieces):
                chosen = k == numbers["gains"]
                text.set(x=(k + 0.5) * width, text=pieces[k][:10], weight="bold" if chosen else "normal")
                text.set_color(ADAPTED if chosen else COLOUR["limit"])


class ByStrength(Panel):
    """The probability of a negation while the adapter is turned up."""

    def __init__(self, ax, strengths):
        super().__init__(ax)
        self.strengths = np.array(strengths)
        ax.set(xlim=(-0.04, 1.54), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1, 1.5], yticks=[0, 0.5, 1])
        ax.set(xlabel="strength of the adapter")
        ax.set_title("probability of a negation")
        ax.axhline(0.5, color=COLOUR["faint"], lw=1)
        self.line = self.moves(ax.plot([], [], color=ADAPTED))[0]
        self.start = self.moves(ax.plot([], [], "s", color=PROBE, ms=8))[0]
        self.mark = self.moves(ax.plot([], [], "o", color=ADAPTED, ms=11, mec="white"))[0]
        self.start_note = self.moves(ax.text(0.1, 0, "the probe", va="center", color=PROBE, fontsize=9))
        self.note = self.moves(ax.text(1.5, 0.5, "", ha="right", va="center", weight="bold", color=ADAPTED))

    def update(self, numbers):
        curve = numbers["curve"]
        self.line.set_data(self.strengths, curve)
        self.start.set_data([0], [curve[0]])
        self.start_note.set_y(max(curve[0] - 0.07, 0.03))
        self.mark.set_data([numbers["strength"]], [numbers["probability"]])
        self.note.set_text(f"{numbers['probability']:.2f}")
        self.note.set_y(0.43 if numbers["probability"] > 0.5 else 0.57)


def one_sentence(numbers, strengths) -> Picture:
    """Where the last layer looks, what each token says, and the answer by strength."""
    panels = {
        "A": lambda ax: TokenBars(ax, "attention", "attention that each token receives, last layer", (0, LOOK_LIMIT)),
        "B": Words,
        "C": lambda ax: TokenBars(ax, "contribution", "what each token adds to the score", VOTE_LIMITS),
        "D": lambda ax: ByStrength(ax, strengths),
    }
    mosaic = "AAAAADD\nBBBBBDD\nCCCCCDD"
    return Picture((10, 5.2), mosaic, panels, numbers, _describe_sentence, height_ratios=[2, 1.25, 2.4])


def _describe_sentence(n):
    token, now, before = n["pieces"][n["gains"]], n["now"]["attention"], n["before"]["attention"]
    return (
        f"bars of attention and of contributions for each token, and the probability of a negation by the adapter's "
        f"strength: at strength {n['strength']:g} it is {n['probability']:.2f}, at 0 {n['curve'][0]:.2f}; attention on "
        f"“{token}” {before[n['gains']]:.0%} before, {now[n['gains']]:.0%} now"
    )


class Votes(Panel):
    """Contributions of the tokens of one sentence at one strength, with the words beneath."""

    def __init__(self, ax, numbers, labelled):
        super().__init__(ax)
        votes = numbers["now"]["contribution"]
        places = np.arange(len(votes))
        ax.bar(places, votes, color=np.where(votes > 0, ADAPTED, PROBE), width=0.7)
        ax.axhline(0, color=COLOUR["limit"], lw=0.8)
        ax.set(ylim=VOTE_LIMITS, xticks=places)
        ax.set_xticklabels(numbers["pieces"], rotation=90)
        ax.tick_params(axis="x", length=0)
        ax.text(0.98, 0.95, f"p = {numbers['probability']:.2f}", transform=ax.transAxes, ha="right", va="top")
        if labelled:
            ax.set_ylabel("adds to the score")
        else:
            ax.tick_params(labelleft=False)

    def update(self, numbers):
        pass


def sentences_apart(states, columns: int) -> Picture:
    """(title, numbers) of several sentences and strengths: what each token adds."""
    letters = [chr(ord("A") + k) for k in range(len(states))]

    def panel(title, numbers, labelled):
        def draw(ax):
            drawn = Votes(ax, numbers, labelled)
            ax.set_title(title)
            return drawn

        return draw

    panels = {
        letter: panel(title, numbers, k % columns == 0)
        for k, (letter, (title, numbers)) in enumerate(zip(letters, states, strict=True))
    }
    rows = ["".join(letters[k : k + columns]) for k in range(0, len(letters), columns)]
    sentence = "bars of what each token adds to the score; probability of a negation: " + "; ".join(
        f"{title}, {numbers['probability']:.2f}" for title, numbers in states
    )
    return Picture((10, 3.1 * len(rows)), "\n".join(rows), panels, {}, lambda _: sentence)


class Grid(Panel):
    """Accuracy of the probe by ridge, on three kinds of sentences."""

    def __init__(self, ax, grid, chosen):
        super().__init__(ax)
        looks = {
            "train": ("sentences it was fitted to: wrong", COLOUR["B"], ":", "^"),
            "validation": ("speeches left out in turn", COLOUR["A"], "--", "s"),
            "test": ("other presidents' speeches", COLOUR["limit"], "-", "o"),
        }
        for name, (_, colour, dash, marker) in looks.items():
            ax.plot(grid["ridge"], grid[name], dash, color=colour, marker=marker)
        at = {"train": (0.0011, 0.985, "top"), "validation": (0.0011, 0.885, "bottom"), "test": (0.006, 0.775, "top")}
        for name, (x, y, va) in at.items():
            ax.text(x, y, looks[name][0], color=looks[name][1], va=va)
        ax.axvline(chosen, color=COLOUR["faint"], lw=6, zorder=0)
        ax.text(chosen * 1.15, 0.755, "chosen by the blue line", fontsize=9, color=COLOUR["muted"])
        ax.set(
            xscale="log", ylim=(0.74, 1.02), xlabel="ridge: how strongly large weights are punished", ylabel="accuracy"
        )
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    def update(self, numbers):
        pass


def probe_grid(grid, chosen) -> Picture:
    """The probe by ridge: what it scores where it was fitted, and elsewhere."""
    best = f"{grid['train'][0]:.0%} on the sentences it was fitted to and {grid['test'][0]:.0%} on others"
    at = int(np.argmin(np.abs(grid["ridge"] - chosen)))
    sentence = (
        f"line chart of the probe's accuracy by ridge: with the weakest {best}; with the chosen one "
        f"{grid['test'][at]:.0%} on others"
    )
    return Picture((10, 3.6), "A", {"A": lambda ax: Grid(ax, grid, chosen)}, {}, lambda _: sentence)


class Removed(Panel):
    """How far an embedding moves when one word goes, by the length of the sentence."""

    def __init__(self, ax, moved):
        super().__init__(ax)
        tokens = np.arange(8, 27)
        ax.plot(tokens, moved["constant"] / tokens, "--", color=COLOUR["limit"])
        ax.text(26, 0.25, f"{moved['constant']:.1f} / tokens", ha="right", va="center")
        rng = np.random.default_rng(0)
        looks = {"other": ("another word", PROBE, "x", 0.22), "not": ("“not”", ADAPTED, "o", -0.22)}
        for name, (label, colour, marker, shift) in looks.items():
            x = moved["tokens"] + shift + rng.uniform(-0.12, 0.12, len(moved["tokens"]))
            ax.plot(x, moved[name], marker, color=colour, ms=5, alpha=0.75, mew=1.2 if marker == "x" else 0.4)
            ax.text(
                25.7,
                0.79 if name == "not" else 0.71,
                f"without {label}: {moved[name].mean():.2f} in the mean",
                color=colour,
                ha="right",
                weight="bold",
            )
        ax.set(
            xlim=(7.5, 26.2),
            ylim=(0, 0.85),
            xticks=range(8, 27, 2),
            xlabel="tokens of the sentence",
            ylabel="the embedding moves by",
        )

    def update(self, numbers):
        pass


def removed(moved) -> Picture:
    """One word less: how far the embedding moves."""
    sentence = (
        f"dot plot of how far an embedding moves by the length of the sentence: {moved['not'].mean():.2f} in the mean "
        f"without “not”, {moved['other'].mean():.2f} without another word, about "
        f"{moved['constant']:.1f} divided by the tokens"
    )
    return Picture((10, 3.6), "A", {"A": lambda ax: Removed(ax, moved)}, {}, lambda _: sentence)


class Accuracies(Panel):
    """Dots for the seeds of each setting, the probe as a line with its standard error."""

    def __init__(self, ax, labels, groups, probe, error, title="", labelled=True):
        super().__init__(ax)
        ax.axhspan(probe - error, probe + error, color=COLOUR["faint"])
        ax.axhline(probe, color=PROBE, ls="--")
        if labelled:
            ax.text(-0.45, probe - error - 0.005, "probe ± standard error", va="top", color=PROBE, fontsize=9)
        for place, (shares, colour) in enumerate(groups):
            x = place + np.linspace(-0.16, 0.16, len(shares))
            ax.plot(x, shares, "o" if colour == ADAPTED else "s", color=colour, ms=8, mec="white")
        ax.set(ylim=ACCURACY, xlim=(-0.55, len(labels) - 0.45), xticks=range(len(labels)))
        ax.yaxis.set_major_locator(FixedLocator([0.8, 0.85, 0.9, 0.95, 1]))
        ax.set_xticklabels(labels)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_title(title)
        if not labelled:
            ax.tick_params(labelleft=False)

    def update(self, numbers):
        pass


def by_rank(ranks, accuracies, quantized, start, probe, error) -> Picture:
    """Test accuracy by rank, and over a base in NF4; three runs each."""
    groups = [(shares, ADAPTED) for shares in accuracies] + [(quantized, FOUR_BITS)]
    labels = [f"rank {rank}" for rank in ranks] + ["rank 4\nover NF4"]

    def draw(ax):
        drawn = Accuracies(ax, labels, groups, probe, error)
        ax.plot([len(ranks)], [start], "v", color=FOUR_BITS, ms=9, mec="white")
        ax.text(
            len(ranks) - 0.1, start, "NF4 base\nwith the probe", ha="right", va="center", color=FOUR_BITS, fontsize=9
        )
        return drawn

    found = ", ".join(f"{shares.mean():.1%} at rank {rank}" for rank, shares in zip(ranks, accuracies, strict=True))
    sentence = (
        f"dot plot of accuracy on other presidents' speeches, three runs each: {found}, {quantized.mean():.1%} "
        f"at rank 4 over a base in NF4; the probe {probe:.1%}"
    )
    return Picture((10, 3.7), "A", {"A": draw}, {}, lambda _: sentence)


def what_is_adapted(groups, probe, error) -> Picture:
    """Test accuracy by what is under the adapter: title of a panel -> label -> accuracies."""

    def panel(title, shares, first):
        dots = [(values, ADAPTED) for values in shares.values()]
        return lambda ax: Accuracies(ax, list(shares), dots, probe, error, title, first)

    panels = {
        letter: panel(title, shares, letter == "A")
        for letter, (title, shares) in zip("ABC", groups.items(), strict=True)
    }
    found = "; ".join(
        f"{title}: " + ", ".join(f"{name} {np.mean(values):.1%}" for name, values in shares.items())
        for title, shares in groups.items()
    )
    sentence = f"dot plots of accuracy, three runs each, by what is adapted: {found}; the probe {probe:.1%}"
    return Picture((10, 3.6), "AAABBBCCCC", panels, {}, lambda _: sentence)


class ByCount(Panel):
    """Accuracy by the number of sentences to learn from, for adapter and probe."""

    def __init__(self, ax, counts, adapted, probes):
        super().__init__(ax)
        looks = (("adapter, rank 4", adapted, ADAPTED, "-", "o"), ("probe, best ridge", probes, PROBE, "--", "s"))
        for label, shares, colour, dash, marker in looks:
            ax.plot(counts, shares.mean(axis=1), dash, color=colour)
            for seed in shares.T:
                ax.plot(counts, seed, marker, color=colour, ms=6, mec="white")
            ax.text(counts[-1] * 1.08, shares[-1].mean(), label, color=colour, va="center")
        ax.set(xscale="log", ylim=(0.5, 1.02), xlim=(counts[0] * 0.85, counts[-1] * 2.4))
        ax.set(xlabel="sentences to learn from", ylabel="accuracy")
        ax.xaxis.set_major_locator(FixedLocator(counts))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels([str(count) for count in counts])
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    def update(self, numbers):
        pass


def by_count(counts, adapted, probes) -> Picture:
    """Fewer sentences: adapter and probe, three draws each."""
    few, many = (f"{adapted[k].mean():.0%} against {probes[k].mean():.0%}" for k in (0, -1))
    sentence = (
        f"line chart of accuracy by the number of sentences, adapter against probe: {few} with {counts[0]}, {many} "
        f"with {counts[-1]}"
    )
    return Picture((10, 3.6), "A", {"A": lambda ax: ByCount(ax, counts, adapted, probes)}, {}, lambda _: sentence)


class Climb(Panel):
    """A number of the run by step, a dashed line where it started from."""

    def __init__(self, ax, name, start, steps, limits, title, note):
        super().__init__(ax)
        self.name, self.first = name, start
        ax.set(xlim=(-0.6, steps * 1.16), ylim=limits, xlabel="step", xticks=range(0, steps + 1, 8))
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.set_title(title)
        self.floor = self.moves(ax.plot([-1, 2 * steps], [0, 0], "--", color=PROBE))[0]
        self.floor_note = self.moves(ax.text(steps * 1.14, 0, note, ha="right", va="top", color=PROBE, fontsize=9))
        self.line = self.moves(ax.plot([], [], "-o", color=ADAPTED, ms=7, mec="white"))[0]
        self.value = self.moves(ax.text(0, 0, "", color=ADAPTED, weight="bold", va="bottom"))
        self.drop = 0.02 * (limits[1] - limits[0])

    def update(self, numbers):
        floor, values = numbers[self.first], numbers[self.name]
        self.floor.set_ydata([floor, floor])
        self.floor_note.set_y(floor - self.drop)
        self.line.set_data(numbers["looks"], values)
        self.value.set_position((numbers["looks"][-1] + 0.3, values[-1] + self.drop / 2))
        self.value.set_text(f"{values[-1]:.0%}")


def live_run(numbers, steps) -> Picture:
    """Accuracy and attention while the adapter learns."""
    panels = {
        "A": lambda ax: Climb(
            ax, "accuracies", "probe", steps, (0.5, 1.03), "other presidents' sentences, heard right", "probe"
        ),
        "B": lambda ax: Climb(
            ax, "attentions", "before", steps, (0, 0.5), "attention on “not”, “no”, “never”, “cannot”", "frozen model"
        ),
    }

    def describe(n):
        return (
            f"line charts by step, {n['sentences']} sentences to learn from, {n['adapted']} adapted: accuracy "
            f"{_over(n['accuracies'][-1])} from {_over(n['probe'])}, attention on the negation "
            + ("has grown" if n["attentions"][-1] > 1.5 * n["before"] else "is about what it was")
        )

    return Picture((10, 3.8), "AB", panels, numbers, describe)


def _over(share) -> str:
    """To the tenth below: what training gives differs a little from machine to machine."""
    return f"over {10 * int(10 * share)} %"
