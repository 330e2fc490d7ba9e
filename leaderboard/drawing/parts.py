"""What the pictures share: the figure with its title and legend, texts that can be drawn, and axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWNBASE
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from leaderboard.drawing.pictures import Picture
from leaderboard.drawing.style import Style, log_ticks
from leaderboard.table import printable

WIDTH = 8.5  # inches, of 72 points; a browser shows a point as 4/3 pixels: 816 of them
LEFT, RIGHT, TOP, ROW = 0.8, 0.12, 0.38, 0.185  # margins, and a line of the legend, in inches
BETWEEN, BETWEEN_ROWS, HEADS = 0.22, 0.36, 0.17  # from panel to panel, and for titles of panels, in inches
AXIS = 0.46  # below a panel, for its ticks and title
HANDLE = 0.75  # inches of a legend entry beside its text
LONGEST_LABEL, LONGEST_LAYER = 44, 32  # characters


def drawable(text: str, longest: int = LONGEST_LABEL) -> str:
    """Return `text` as it can be drawn: on one line, of characters that the font has, its middle cut out if long."""
    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    kept = printable(text)
    kept = "".join(c if font.get_char_index(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in kept)
    end = longest // 3
    return (kept if len(kept) <= longest else f"{kept[: longest - end - 1]}…{kept[-end:]}") or "(not printable)"


def text_width(text: str) -> float:
    """Return the width in inches of a text in the size of the legend."""
    font = FontProperties(family="DejaVu Sans", size=9)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0]) / 72


def start(
    picture: Picture, shape: tuple[int, int], height: float, room: tuple[float, float], keys: Any, **shared: Any
) -> tuple[Figure, Any]:
    """Return a figure with a title, a legend of `keys` at the bottom, and panels `height` inches high.

    `room` is what is left free above the panels, for their titles, and below them, for ticks and titles of axes.
    """
    (rows, columns), (above, below) = shape, (TOP + room[0], room[1])
    widest = max(text_width(str(key.get_label())) for key in keys) + HANDLE
    across = min(max(1, int((WIDTH - 0.3) / widest)), len(keys), 5)
    legend = math.ceil(len(keys) / across) * ROW + 0.12
    total = above + rows * height + (rows - 1) * BETWEEN_ROWS + below + legend
    figure = Figure(figsize=(WIDTH, total))
    inner = (WIDTH - LEFT - RIGHT - (columns - 1) * BETWEEN) / columns
    places = {
        "left": LEFT / WIDTH,
        "right": 1 - RIGHT / WIDTH,
        "top": 1 - above / total,
        "bottom": (below + legend) / total,
        "wspace": BETWEEN / inner,
        "hspace": BETWEEN_ROWS / height,
    }
    panels = figure.subplots(rows, columns, squeeze=False, gridspec_kw=places, **shared)
    for panel in panels[:, 0]:  # titles of vertical axes at the figure's edge, whatever their ticks
        panel.yaxis.set_label_coords((0.06 - LEFT) / inner, 0.5)
        panel.yaxis.label.set_verticalalignment("top")
    for panel in panels[-1]:
        panel.xaxis.set_label_coords(0.5, (0.17 - below) / height)
    title = drawable(f"{picture.page}: {picture.title[0].lower()}{picture.title[1:]}", 110)
    figure.text(0.06 / WIDTH, 1 - 0.07 / total, title, va="top", ha="left", size=10.5)
    figure.legend(
        handles=keys,
        loc="lower center",
        bbox_to_anchor=(0.5, 0.03 / total),
        ncols=across,
        borderaxespad=0.0,
        borderpad=0.0,
        handlelength=2.8,
        columnspacing=1.6,
        labelspacing=0.35,
    )
    return figure, panels


def look(style: Style) -> dict[str, Any]:
    """Return a method's style in matplotlib's words."""
    return {
        "color": style.colour,
        "marker": style.marker,
        "linestyle": style.dash,
        "markerfacecolor": "white" if style.hollow else style.colour,
        "markeredgecolor": style.colour,
    }


def make_keys(styles: dict[str, Style], labels: Iterable[str], dense: Iterable[str] = ()) -> list[Line2D]:
    """Return an entry of the legend for each method; `dense` are those drawn as a line without markers."""
    return [
        Line2D([], [], label=drawable(label), **{**look(styles[label]), **({"marker": ""} if label in dense else {})})
        for label in dict.fromkeys(labels)
    ]


def set_log_axis(axis: Any, limits: tuple[float, float], most: int, factor: float = 1.0) -> None:
    """Make an axis logarithmic, with few round ticks written as plain numbers, `factor` times their value."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.axes.set(**{f"{axis.axis_name}lim": limits})
    axis.set_major_locator(FixedLocator(log_ticks(*limits, most)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:.10g}"))
    axis.set_minor_locator(NullLocator())


def set_accuracy_axis(panel: Any, limits: tuple[float, float]) -> None:
    """Set the limits of an axis of accuracies; no tick lies above 100 %."""
    ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(*limits)
    panel.set_ylim(limits)
    panel.yaxis.set_major_locator(FixedLocator([t for t in ticks if limits[0] <= t <= min(limits[1], 100.0)]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))


def mark_lower(panel: Any, places: Iterable[float], style: Style) -> None:
    """Mark means that lie below the panel with a triangle under its lower edge."""
    across = panel.get_xaxis_transform()
    for place in places:
        panel.plot([place], [0], marker=CARETDOWNBASE, ms=7, color=style.colour, transform=across, clip_on=False)


def shorten_names(names: Sequence[str]) -> list[str]:
    """Return the names of layers without what all begin with and without `.weight`, their beginnings cut if long."""
    shown = [drawable(name.removesuffix(".weight"), 200) for name in names]
    heads = [name.partition(".")[0] for name in shown]
    if len(set(heads)) == 1 and all("." in name for name in shown):
        shown = [name.partition(".")[2] for name in shown]
    return [name if len(name) <= LONGEST_LAYER else f"…{name[1 - LONGEST_LAYER :]}" for name in shown]
