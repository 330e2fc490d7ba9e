"""The pictures of pruning plasticity: panels for each network before pruning, without and with regeneration."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from leaderboard.drawing.parts import AXIS, HEADS, look, start
from leaderboard.drawing.pictures import Picture
from leaderboard.drawing.style import DASH_DOT, DASHED, DOTTED, SOLID, Style
from leaderboard.plasticity.numbers import PruningLine, Schedule

# From mild to harsh; told apart without colour by marker, filling and dash.
STYLES = (
    Style("#0072B2", "o", SOLID),
    Style("#009E73", "s", DASHED, hollow=True),
    Style("#E69F00", "^", DASH_DOT),
    Style("#882255", "D", DOTTED, hollow=True),
)
FALL = "#d62728"  # the learning rate falls
WAYS = {False: "without regeneration", True: "with regeneration"}
LINEAR = 1.0  # points from zero within which the axis is linear
TICKS = [sign * size for size in (1, 2, 5, 10, 20, 50, 100) for sign in (-1, 1)]


def draw_pruning(picture: Picture) -> Figure:
    """Return points regained by the epoch of pruning: a column for each network, a line for each pruning rate."""
    lines = [line for line in picture.numbers if isinstance(line, PruningLine)]
    (schedule,) = [number for number in picture.numbers if isinstance(number, Schedule)]
    rates = sorted({line.rate for line in lines})
    sparsities = sorted({line.sparsity for line in lines})
    ways = sorted({line.regrow for line in lines})
    styles = {rate: STYLES[place % len(STYLES)] for place, rate in enumerate(rates)}
    keys = [Line2D([], [], label=f"{100 * rate:.10g} % pruned", **look(styles[rate])) for rate in rates]
    if schedule.drops:
        keys.append(Line2D([], [], color=FALL, lw=1.0, label="learning rate falls"))
    shape = (len(ways), len(sparsities))
    figure, panels = start(picture, shape, 2.1, (HEADS, AXIS), keys, sharex=True, sharey=True)
    for across, way in zip(panels, ways, strict=True):
        for panel, sparsity in zip(across, sparsities, strict=True):
            panel.axhline(0, color="#999999", lw=0.8, zorder=1)
            for drop in schedule.drops:
                panel.axvline(drop, color=FALL, lw=1.0, zorder=1)
            for line in lines:
                if (line.sparsity, line.regrow) == (sparsity, way):
                    panel.plot(line.epochs, line.values, **look(styles[line.rate]))
        across[0].set(ylabel=f"points, {WAYS[way]}")
    set_points_axis(panels[0, 0], [value for line in lines for value in line.values])
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        panel.set_title(f"sparsity {100 * sparsity:.10g} %" if sparsity else "dense", loc="left")
    for panel in panels[-1]:
        panel.set(xlabel="pruned at epoch", xlim=(0, schedule.epochs or None))
        panel.xaxis.set_major_locator(MaxNLocator(max(4, 10 // len(sparsities)), integer=True, steps=[1, 2, 4, 5, 10]))
    return figure


def set_points_axis(panel: Any, values: list[float]) -> None:
    """Make an axis of points linear around zero and logarithmic beyond: 80 lost points must not hide half a point."""
    low, high = min(0.0, *values), max(0.0, *values)
    panel.set_yscale("symlog", linthresh=LINEAR, linscale=0.6)
    panel.set_ylim(low * 1.25 - 0.3, high * 1.25 + 0.3)
    shown = [tick for tick in TICKS if low * 1.25 - 0.3 <= tick <= high * 1.25 + 0.3]
    if len(shown) > 8:
        shown = [tick for tick in shown if abs(tick) not in (2, 20)]
    panel.yaxis.set_major_locator(FixedLocator(sorted([0, *shown])))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.10g}" if value else "0"))
    panel.yaxis.set_minor_locator(NullLocator())
