"""The look of pictures: colours, axes, legends, and what figures share."""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWNBASE, CARETLEFTBASE
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from leaderboard.drawing.pictures import Picture
from leaderboard.tables.table import printable

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


# Colours by Okabe and Ito and by Paul Tol, distinguishable with a colour-vision deficiency.
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
ALIKE = {marker: group for group in ("Dds", "pho", "^v", "<>", "PX") for marker in group}  # at a glance
OTHERS = [
    Style(colour, marker, dash, hollow)
    for (hollow, dash, marker), colour in zip(
        itertools.product((True, False), (SOLID, DASHED, DASH_DOT, DOTTED), MARKERS), itertools.cycle(COLOURS)
    )
    if (marker, hollow, dash) not in {style.shape for style in KNOWN.values()}
]

# All that a picture depends on is set here, over matplotlib's own defaults: no user's file counts.
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

    Invariants: a known label always has its style, an unknown one nearly always the same (chosen by its hash, or the
    next without a clash); the order of the labels is irrelevant.
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
                [(other.colour, ALIKE.get(other.marker)) for other in taken].count(
                    (style.colour, ALIKE.get(style.marker))
                ),
                [other.shape[:2] for other in taken].count(style.shape[:2]),
            ),
        )
    return styles


def accuracy_limits(means: Iterable[float], ends: Iterable[float]) -> tuple[float, float]:
    """Return the lower and the upper limit of an axis of accuracies, in percent.

    `means` are shown, except for those far below the others, which would squeeze the rest into a line; `ends` of
    intervals widen the axis only a little. Invariant: lower < upper, and the highest mean is between them.
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


def turns_of(lines: Mapping[str, Sequence[float]], least: int) -> dict[str, tuple[int, int]]:
    """Return which points of each line are marked, as (first, step): coinciding lines take turns.

    Invariant: no two lines that coincide mark the same point; `least` is the smallest step.
    """
    same: dict[tuple[str, ...], list[str]] = {}
    for label, values in lines.items():
        same.setdefault(tuple(f"{value:.3g}" for value in values), []).append(label)
    turns = {}
    for labels in same.values():
        step = max(len(labels), least)
        turns.update({label: (place * step // len(labels), step) for place, label in enumerate(labels)})
    return turns


WIDTH = 8.5  # inches, of 72 points; a browser shows a point as 4/3 pixels: 816 of them
LEFT, RIGHT, TOP, ROW = 0.8, 0.12, 0.38, 0.185  # margins, and a line of the legend, in inches
BETWEEN, BETWEEN_ROWS, HEADS = 0.22, 0.36, 0.17  # from panel to panel, and for titles of panels, in inches
AXIS = 0.46  # below a panel, for its ticks and title
HANDLE = 0.75  # inches of a legend entry beside its text
LONGEST_LABEL, LONGEST_LAYER = 44, 32  # characters


def drawable(text: str, longest: int = LONGEST_LABEL) -> str:
    """Return `text` on one line, in characters that the font has, with its middle cut out if long."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    kept = printable(text)
    kept = "".join(c if font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in kept)
    end = longest // 3
    return (kept if len(kept) <= longest else f"{kept[: longest - end - 1]}…{kept[-end:]}") or "(not printable)"


def text_width(text: str) -> float:
    """Return the width in inches of a text in the legend."""
    font = FontProperties(family="DejaVu Sans", size=9)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def names_width(names: Iterable[str]) -> float:
    """Return the inches that the names of rows take beside a panel, with their ticks."""
    return max(map(text_width, names)) + 0.28


def columns_of(widths: Sequence[float]) -> int:
    """Return the most columns in which a legend's entries of these widths fit, filled column by column."""
    for across in range(min(len(widths), 5), 1, -1):
        rows, longer = divmod(len(widths), across)
        ends = [column * rows + min(column, longer) for column in range(across + 1)]
        if sum(max(widths[a:b]) for a, b in itertools.pairwise(ends)) < WIDTH - 0.3:
            return across
    return 1


def start(
    picture: Picture,
    shape: tuple[int, int],
    height: float,
    room: tuple[float, float],
    keys: Sequence[Any],
    left: float = LEFT,
    **shared: Any,
) -> tuple[Figure, Any]:
    """Return a figure with a title, a legend of `keys` at the bottom, and panels `height` inches high.

    `room` is the space above the panels, for their titles, and below them, for ticks and titles of axes, in inches;
    `left` that beside them.
    """
    (rows, columns), (above, below) = shape, (TOP + room[0], room[1])
    across = columns_of([text_width(str(key.get_label())) + HANDLE for key in keys])
    legend = math.ceil(len(keys) / across) * ROW + 0.12
    total = above + rows * height + (rows - 1) * BETWEEN_ROWS + below + legend
    figure = Figure(figsize=(WIDTH, total))
    inner = (WIDTH - left - RIGHT - (columns - 1) * BETWEEN) / columns
    places = {
        "left": left / WIDTH,
        "right": 1 - RIGHT / WIDTH,
        "top": 1 - above / total,
        "bottom": (below + legend) / total,
        "wspace": BETWEEN / inner,
        "hspace": BETWEEN_ROWS / height,
    }
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=places, **shared)
    for panel in panels[:, 0]:  # titles of vertical axes at the figure's edge, whatever their ticks
        panel.yaxis.set_label_coords((0.06 - left) / inner, 0.5)
        panel.yaxis.label.set_verticalalignment("top")
    for panel in panels[-1]:
        panel.xaxis.set_label_coords(0.5, (0.17 - below) / height)
    title = drawable(f"{picture.page}: {picture.title[0].lower()}{picture.title[1:]}", 110)
    figure.text(0.06 / WIDTH, 1 - 0.07 / total, title, va="top", ha="left", size=10.5)
    if keys:
        spacing = {"handlelength": 2.8, "columnspacing": 1.6, "labelspacing": 0.35, "borderaxespad": 0, "borderpad": 0}
        figure.legend(handles=keys, loc="lower center", bbox_to_anchor=(0.5, 0.03 / total), ncols=across, **spacing)
    return figure, panels


def look(style: Style) -> dict[str, Any]:
    """Return a method's style as keywords of matplotlib."""
    return {
        "color": style.colour,
        "marker": style.marker,
        "linestyle": style.dash,
        "markerfacecolor": "white" if style.hollow else style.colour,
        "markeredgecolor": style.colour,
    }


def make_keys(styles: dict[str, Style], labels: Iterable[str], markers: bool = True) -> list[Line2D]:
    """Return an entry of the legend for each method, as it is drawn: with markers or as a line alone."""
    plain = {} if markers else {"marker": ""}
    return [
        Line2D([], [], label=drawable(label), **{**look(styles[label]), **plain}) for label in dict.fromkeys(labels)
    ]


def set_log_axis(axis: Any, limits: tuple[float, float], most: int, factor: float = 1.0) -> None:
    """Make an axis logarithmic, with few round ticks written as plain numbers, `factor` times their value."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": limits})
    axis.set_major_locator(FixedLocator(log_ticks(*limits, most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:.10g}"))
    axis.set_minor_locator(NullLocator())


def set_accuracy_axis(axis: Any, limits: tuple[float, float], most: int = 6) -> None:
    """Set the limits of an axis of accuracies; no tick lies above 100 %."""
    ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(*limits)
    axis.axes.set(**{f"{axis.axis_name}lim": limits})
    axis.set_major_locator(FixedLocator([t for t in ticks if limits[0] <= t <= min(limits[1], 100.0)]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def mark_lower(panel: Any, places: Iterable[float], style: Style, edge: str = "lower") -> None:
    """Mark means that lie beyond the lower or left edge of a panel with a triangle outside it."""
    marks = {"ms": 7, "color": style.colour, "clip_on": False, "ls": ""}
    for place in places:
        if edge == "left":
            panel.plot([0], [place], marker=CARETLEFTBASE, transform=panel.get_yaxis_transform(), **marks)
        else:
            panel.plot([place], [0], marker=CARETDOWNBASE, transform=panel.get_xaxis_transform(), **marks)


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return the names of layers without a common first part and `.weight`, their beginnings cut if long."""
    shown = [drawable(name.removesuffix(".weight"), 200) for name in names]
    heads = [name.partition(".")[0] for name in shown]
    if len(set(heads)) == 1 and all("." in name for name in shown):
        shown = [name.partition(".")[2] for name in shown]
    return [name if len(name) <= LONGEST_LAYER else f"…{name[1 - LONGEST_LAYER :]}" for name in shown]
