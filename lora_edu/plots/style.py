"""One look for every figure: a colour for each object, the same in all chapters, and text of at least 8 points."""

from contextlib import contextmanager

import matplotlib
import numpy as np

# Okabe-Ito; told apart by marker and dash as well
COLOUR = {
    "W": "#4D4D4D",
    "A": "#0072B2",
    "B": "#D55E00",
    "delta": "#CC79A7",
    "nf4": "#009E73",
    "int4": "#E69F00",
    "fp4": "#56B4E9",
    "limit": "#000000",
    "muted": "#8C8C8C",
    "faint": "#D9D9D9",
}
SIGNED = "PuOr_r"  # matrices with a sign: zero is white, limits are symmetric
MAGNITUDE = "cividis"

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": "#4D4D4D",
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "lora_edu",
    "svg.fonttype": "path",
    "path.simplify": False,
}


@contextmanager
def styled():
    """Draw inside this block to get the look, whatever the reader's own settings are."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": matplotlib.rcParams["backend"], **RC}):
        yield


def apart(heights, gap: float, bottom: float = -np.inf, top: float = np.inf) -> np.ndarray:
    """Where labels of these heights go: within bounds, and moved just far enough that neighbours are `gap` apart."""
    placed, ceiling = np.clip(np.array(heights, float), bottom, top), top
    for i in np.argsort(heights, kind="stable")[::-1]:
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed + max(0.0, bottom - placed.min())
