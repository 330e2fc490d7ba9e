"""How pictures look: one colour, marker and dash for each method on every page, and limits of axes. No drawing."""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SOLID, DASHED, DASH_DOT, DOTTED = "-", (0, (5.0, 1.6)), (0, (5.0, 1.4, 1.0, 1.4)), (0, (1.2, 1.4))


@dataclass(frozen=True)
class Style:
    """How one method is drawn. Marker, filling and dash tell methods apart without colour."""

    colour: str
    marker: str
    dash: Any
    hollow: bool = False

    @property
    def shape(self) -> tuple[str, bool, object]:
        """What is left of the style in black and white."""
        return self.marker, self.hollow, self.dash


# The colours of Okabe and Ito and some of Paul Tol's, which readers with a colour-vision deficiency tell apart.
KNOWN = {
    "dense": Style("#000000", "*", SOLID),
    "granet": Style("#D55E00", "o", SOLID),
    "granet (start_sparsity=0.0)": Style("#882255", "o", DASHED, hollow=True),
    "gmp": Style("#E69F00", "v", DASHED),
    "rigl": Style("#0072B2", "s", SOLID),
    "rigl_itop": Style("#56B4E9", "D", DASHED),
    "set": Style("#009E73", "^", DASH_DOT),
    "snip": Style("#CC79A7", "P", SOLID),
    "grasp": Style("#332288", "X", DASHED),
    "static": Style("#777777", "<", DOTTED),
    "small_dense": Style("#999933", ">", DOTTED),
}
COLOURS = (
    *("#44AA99", "#AA4499", "#117733", "#EE7733", "#33BBEE"),
    *("#EE3377", "#661100", "#6699CC", "#AA7700", "#555555"),
)
MARKERS = ("p", "d", "h", "o", "s", "^", "v", "D", "<", ">", "P", "X")
OTHERS = [
    Style(colour, marker, dash, hollow)
    for (hollow, dash, marker), colour in zip(
        itertools.product((True, False), (SOLID, DASHED, DASH_DOT, DOTTED), MARKERS), itertools.cycle(COLOURS)
    )
    if (marker, hollow, dash) not in {style.shape for style in KNOWN.values()}
]

# Everything a picture depends on is set here, over matplotlib's own defaults: no user's file has a say.
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.0,
    "text.parse_math": False,  # a $ in a label is a $
    "axes.titlesize": 9.5,
    "axes.titley": 1.0,  # where it is; searching for a place takes long
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "lines.linewidth": 1.3,
    "lines.markersize": 5.5,
    "lines.markeredgewidth": 1.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",  # in dark mode too
    "figure.dpi": 72.0,
    "savefig.dpi": "figure",
    "svg.fonttype": "path",  # a reader's fonts have other widths
    "svg.hashsalt": "sparse-bench",
    "path.simplify": True,
}


def styles_of(labels: Iterable[str]) -> dict[str, Style]:
    """Return a style for each label, no shape twice while there are enough.

    Invariants: a known label has its style whatever else is there, an unknown one nearly always the same (its hash
    chooses; where that clashes, the next that does not); the order of the labels never matters.
    """
    labels = set(labels)
    styles = {label: KNOWN[label] for label in sorted(labels) if label in KNOWN}
    for label in sorted(labels - set(KNOWN)):
        start = int(hashlib.sha256(label.encode("utf-8", "replace")).hexdigest()[:8], 16)
        taken = list(styles.values())
        styles[label] = min(
            (OTHERS[(start + step) % len(OTHERS)] for step in range(len(OTHERS))),
            key=lambda style: (
                taken.count(style),
                [other.colour for other in taken].count(style.colour),
                [other.shape[:2] for other in taken].count(style.shape[:2]),
            ),
        )
    return styles


def accuracy_limits(means: Iterable[float], ends: Iterable[float]) -> tuple[float, float]:
    """Return the lower and the upper limit of an axis of accuracies, in percent.

    `means` are to be seen, except those far below the others, which would press the rest into a line; `ends` of
    intervals widen the axis a little at most. Invariant: lower < upper, and the highest mean is between them.
    """
    values = sorted(means)
    quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values * 3
    fence = quartiles[0] - 4 * max(quartiles[2] - quartiles[0], 1.0)
    low, high = min(value for value in values if value >= fence), values[-1]
    span = max(high - low, 1.0)
    reach = [end for end in ends if low - 0.5 * span <= end <= high + 0.5 * span]
    low, high = min([low, *reach]), max([high, *reach])
    pad = 0.06 * max(high - low, 1.0)
    return max(low - pad, -pad), min(high + pad, 100 + pad)


def share_limits(shares: Iterable[float], top: float = 1.0) -> tuple[float, float]:
    """Return the limits of a logarithmic axis from below the smallest positive share to above `top` and the largest."""
    positive = [share for share in shares if share > 0]
    low, high = min(positive, default=0.1), max([top, *positive])
    pad = max(high / min(low, high / 2), 2.0) ** 0.05
    return min(low, high / 2) / pad, high * pad


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round numbers from `low` to `high` for a logarithmic axis."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks: list[float] = []
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [float(f"{digit}e{exponent}") for exponent in range(first, last + 1) for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: -math.ceil(len(ticks) / most)][::-1]  # the highest stays


def sparsity_place(sparsity: float) -> float:
    """Return where a sparsity lies on its axis: halving the density is the same step everywhere."""
    return -math.log10(1 - sparsity)


def turns_of(lines: Mapping[str, Sequence[float | None]], least: int = 1) -> dict[str, tuple[int, int]]:
    """Return which points of each line are marked, as (first, step): lines that coincide to the eye take turns.

    Invariant: no two lines that coincide mark the same point; `least` is the smallest step.
    """
    same: dict[tuple[str, ...], list[str]] = {}
    for label, values in lines.items():
        same.setdefault(tuple(f"{value or 0:.3g}" for value in values), []).append(label)
    turns = {}
    for labels in same.values():
        step = max(len(labels), least)
        turns.update({label: (place * step // len(labels), step) for place, label in enumerate(labels)})
    return turns
