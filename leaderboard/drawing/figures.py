"""The figures of pictures, drawn from their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Affine2D

from leaderboard.drawing.pictures import (
    LEAST_DENSITY,
    MOST_COLOURED,
    AccuracyPoint,
    CostPoint,
    Curve,
    LayerLine,
    Picture,
    PruningLine,
    Schedule,
    are_many,
    pareto_front,
)
from leaderboard.drawing.style import (
    AXIS,
    BETWEEN,
    DASH_DOT,
    DASHED,
    DOTTED,
    HEADS,
    KNOWN,
    LEFT,
    RIGHT,
    ROW,
    SOLID,
    WIDTH,
    Style,
    accuracy_limits,
    drawable,
    look,
    make_keys,
    mark_lower,
    names_width,
    set_accuracy_axis,
    set_log_axis,
    share_limits,
    shorten_names,
    start,
    styles_of,
    text_width,
    turns_of,
)
from leaderboard.tables.table import percent

FRONT = "#c4c4c4"
SCALE = 0.45  # inches for a scale of colours
OTHER = Style("#b8b8b8", "o", SOLID, hollow=True)  # methods that are not told apart
CURVES = {
    "density": "density, %",
    "train_share": "training FLOPs so far,\nmultiple of dense",
    "explored": "weights ever active, %",
}


def make_figure(picture: Picture) -> Figure:
    """Return the figure of a picture. Call and save it under the settings of `leaderboard.drawing.draw`."""
    return FIGURES[picture.kind](picture)


def draw_accuracy(picture: Picture) -> Figure:
    """Return accuracy at each sparsity: a panel for each, a line for each method; dense as a vertical line."""
    points = [point for point in picture.numbers if isinstance(point, AccuracyPoint)]
    styles = styles_of(point.label for point in points)
    sparse, dense = [p for p in points if not p.dense], [p for p in points if p.dense]
    sparsities = sorted({point.sparsity for point in sparse})
    reached: dict[str, dict[float, float]] = {}
    for point in sparse:
        reached.setdefault(point.label, {})[point.sparsity] = point.accuracy_pct
    order = sorted(reached, key=lambda label: [reached[label].get(s, -math.inf) for s in reversed(sparsities)])
    names = [drawable(label) for label in order]
    keys = make_keys(styles, (point.label for point in dense), markers=False)
    left = names_width(names)
    shape, height = (1, len(sparsities)), ROW * (len(names) + 1)
    figure, panels = start(picture, shape, height, (HEADS, AXIS), keys, left, sharey=True)
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        shown = [point for point in sparse if point.sparsity == sparsity]
        ends = [end for point in [*shown, *dense] for end in (point.low_pct, point.high_pct) if end is not None]
        limits = accuracy_limits((point.accuracy_pct for point in [*shown, *dense]), ends)
        for point in dense:
            style = styles[point.label]
            panel.axvline(point.accuracy_pct, color=style.colour, linestyle=style.dash, lw=1.1)
            if point.low_pct is not None:
                panel.axvspan(point.low_pct, point.high_pct, color=style.colour, alpha=0.08, lw=0)
        for point in shown:
            line, style = order.index(point.label), styles[point.label]
            if point.low_pct is not None:
                panel.plot([point.low_pct, point.high_pct], [line, line], color=style.colour, lw=1.0, alpha=0.6)
            seeds = point.seeds_pct
            panel.plot(seeds, [line] * len(seeds), color=style.colour, marker=".", ms=5.5, mew=0, ls="", alpha=0.5)
            panel.plot([point.accuracy_pct], [line], **look(style))
            if point.accuracy_pct < limits[0]:
                mark_lower(panel, [line], style, "left")
        set_accuracy_axis(panel.xaxis, limits, 6 if len(sparsities) < 3 else 4)
        panel.set_title(f"sparsity {percent(sparsity)}", loc="left")
        panel.set(xlabel="accuracy, %")
    panels[0, 0].set_ylim(-0.8, len(names) - 0.2)
    panels[0, 0].set_yticks(range(len(names)), names)
    return figure


def draw_cost(picture: Picture) -> Figure:
    """Return accuracy against training cost and against inference cost, with the Pareto fronts.

    Of many methods the best known are told apart, and those on a front at their defaults; the rest are grey.
    """
    points = [point for point in picture.numbers if isinstance(point, CostPoint)]
    limits = accuracy_limits((point.accuracy_pct for point in points), ())
    costs, fronts = {}, {}
    for part in ("training", "inference"):
        found = [point.train_share if part == "training" else point.inference_share for point in points]
        costs[part] = share_limits(found)
        least = costs[part][0]
        places = [(max(cost, least), point.accuracy_pct) for cost, point in zip(found, points, strict=True)]
        fronts[part] = places, pareto_front(places)
    labels = list(dict.fromkeys(point.label for point in points))
    best = {
        point.label
        for places, front in fronts.values()
        for point, place in zip(points, places, strict=True)
        if point.dense or place in front
    }
    best = {label for label in best if "(" not in label} | KNOWN.keys()
    told = [label for label in labels if len(labels) <= MOST_COLOURED or label in best]
    styles = {**dict.fromkeys(labels, OTHER), **styles_of(told)}
    keys = make_keys(styles, told)
    if len(told) < len(labels):
        rest = f"{len(labels) - len(told)} other methods"
        keys.append(Line2D([], [], label=rest, **{**look(OTHER), "linestyle": ""}))
    keys.append(Line2D([], [], color=FRONT, lw=2.2, label="Pareto front"))
    figure, panels = start(picture, (1, 2), 3.3, (0.0, AXIS), keys, sharey=True)
    ranks = sorted({point.sparsity for point in points if not point.dense})
    for panel, (part, (places, front)) in zip(panels[0], fronts.items(), strict=True):
        draw_front(panel, front, costs[part][1])
        for label in sorted(labels, key=lambda label: label in told):  # grey below colours
            line = [(point, place) for point, place in zip(points, places, strict=True) if point.label == label]
            xs, ys = [x for _, (x, _) in line], [y for _, (_, y) in line]
            style = styles[label]
            sizes = [10.0 if point.dense else max(8.0 - 1.5 * ranks.index(point.sparsity), 4.0) for point, _ in line]
            if label in told:
                panel.plot(xs, ys, color=style.colour, ls=style.dash, lw=0.8, alpha=0.6)
            fill = "white" if style.hollow else style.colour
            edge = {"edgecolors": style.colour, "linewidths": 1.0, "zorder": 2.5 if label in told else 1.8}
            panel.scatter(xs, ys, s=[size**2 for size in sizes], c=fill, marker=style.marker, **edge)
            mark_lower(panel, (x for x, y in zip(xs, ys, strict=True) if y < limits[0]), style)
        set_log_axis(panel.xaxis, costs[part], 7)
        panel.set(xlabel=f"{part} FLOPs, multiple of dense")
    set_accuracy_axis(panels[0, 0].yaxis, limits)
    panels[0, 0].set(ylabel="accuracy, %")
    return figure


def draw_front(panel: Any, front: Sequence[tuple[float, float]], end: float) -> None:
    """Draw a Pareto front as steps: at each cost, the best accuracy that costs no more."""
    xs, ys = [cost for cost, _ in front], [accuracy for _, accuracy in front]
    panel.plot([*xs, end], [*ys, ys[-1]], drawstyle="steps-post", color=FRONT, lw=2.2, zorder=1.5)


def draw_layers(picture: Picture) -> Figure:
    """Return the density of each layer as a colour: a panel for each sparsity, methods down, layers across."""
    lines = [line for line in picture.numbers if isinstance(line, LayerLine)]
    sparsities = sorted({line.sparsity for line in lines})
    labels = list(dict.fromkeys(line.label for line in lines))
    methods, layers = [drawable(label) for label in labels], shorten_names(lines[0].layers)
    left, below = max(LEFT, names_width(methods)), max(map(text_width, layers)) + 0.16
    shape, height = (len(sparsities), 1), ROW * len(labels)
    figure, panels = start(picture, shape, height, (HEADS, below + SCALE), (), left, sharex=True, sharey=True)
    least = min((density for line in lines for density in line.densities if density), default=1.0)
    shades = min(max(least, LEAST_DENSITY), 0.5), 1.0
    drawn = {"norm": LogNorm(*shades, clip=True), "cmap": matplotlib.colormaps["viridis"].resampled(64)}
    # marks are smaller in a file than cells of a mesh
    wide, high = 72 * (WIDTH - left - RIGHT) / len(layers), 72 * ROW
    drawn |= {"marker": Path.unit_rectangle().transformed(Affine2D().translate(-0.5, -0.5).scale(wide, high))}
    drawn |= {"s": (0.96 * max(wide, high)) ** 2, "linewidths": 0}
    for panel, sparsity in zip(panels[:, 0], sparsities, strict=True):
        shown = {line.label: line for line in lines if line.sparsity == sparsity}
        cells = [
            (x, labels.index(label), density)
            for label, line in shown.items()
            for x, density in enumerate(line.densities)
            if density
        ]
        xs, ys, colours = ([cell[part] for cell in cells] for part in range(3))
        marks = panel.scatter(xs, ys, c=colours, **drawn)
        for label, line in shown.items():
            empty = [place for place, count in enumerate(line.empty) if count]
            panel.plot(empty, [labels.index(label)] * len(empty), "x", color=FALL, ms=5, mew=1.5)
        panel.set_title(f"sparsity {percent(sparsity)}", loc="left")
        leave_bare(panel)
    every = math.ceil(len(layers) / int((WIDTH - left) / 0.14))  # names of nine points need room
    panel = panels[-1, 0]
    panel.set_xticks(range(0, len(layers), every), layers[::every], rotation=90)
    panel.set_yticks(range(len(labels)), methods)
    panel.set(xlim=(-0.5, len(layers) - 0.5), ylim=(len(labels) - 0.5, -0.5))
    scale = add_scale(figure, left, WIDTH - left - 2 * RIGHT, marks)
    figure.text((left - 0.1) / WIDTH, 0.35 / figure.get_figheight(), "density, %", ha="right", va="center", size=9)
    set_log_axis(scale.xaxis, shades, 8, factor=100)
    return figure


def leave_bare(panel: Any) -> None:
    """Take grid, ticks and frame from a panel that colours fill."""
    panel.grid(visible=False)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)


def add_scale(figure: Figure, start: float, width: float, colours: ScalarMappable) -> Any:
    """Return the axes of a scale of colours at the bottom of a figure; where it starts and its width in inches."""
    total = figure.get_figheight()
    scale = figure.add_axes((start / WIDTH, 0.3 / total, width / WIDTH, 0.1 / total))
    bar = figure.colorbar(colours, cax=scale, orientation="horizontal")
    bar.solids.set(rasterized=False, edgecolor="face")  # type: ignore[union-attr]  # there since it is drawn
    return scale


def draw_curves(picture: Picture) -> Figure:
    """Return panels of curves over epochs: columns of the history down, sparsities across."""
    found = [curve for curve in picture.numbers if isinstance(curve, Curve)]
    columns = [column for column in CURVES if any(curve.column == column for curve in found)]
    sparsities = sorted({curve.sparsity for curve in found})
    if are_many(found):
        return draw_maps(picture, found, columns, sparsities)
    styles = styles_of(curve.label for curve in found)
    keys = make_keys(styles, (curve.label for curve in found))
    shape = (len(columns), len(sparsities))
    height = 2.0 if len(columns) > 1 else 2.6
    figure, panels = start(picture, shape, height, (HEADS, AXIS), keys, sharex=True, sharey="row")
    for across, column in zip(panels, columns, strict=True):
        for panel, sparsity in zip(across, sparsities, strict=True):
            shown = {c.label: c for c in found if c.column == column and c.sparsity == sparsity}
            least = max((len(curve.epochs) for curve in shown.values()), default=0) // 4
            turns = turns_of({label: curve.values for label, curve in shown.items()}, least)
            for label, curve in shown.items():
                panel.plot(curve.epochs, curve.values, **look(styles[label]), markevery=turns[label])
            panel.xaxis.set_major_locator(MaxNLocator(max(4, 10 // len(sparsities)), integer=True, steps=[1, 2, 5, 10]))
        across[0].set(ylabel=CURVES[column])
        if column == "explored":
            across[0].set_ylim(-0.02, 1.04)
            across[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.10g}"))
        else:
            limits = share_limits(value for curve in found if curve.column == column for value in curve.values)
            set_log_axis(across[0].yaxis, limits, 6, factor=100 if column == "density" else 1)
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        panel.set_title(f"sparsity {percent(sparsity)}", loc="left")
    for panel in panels[-1]:
        panel.set(xlabel="epoch")
    return figure


def draw_maps(picture: Picture, found: list[Curve], columns: list[str], sparsities: list[float]) -> Figure:
    """Return curves of many methods as strips of colours: sparsities down, columns of the history across."""
    ends = {(c.sparsity, c.label): c.values[-1] for c in found if c.column == columns[-1]}
    last = {c.label: [round(ends.get((s, c.label), 0.0), 9) for s in reversed(sparsities)] for c in found}
    labels = sorted(last, key=lambda label: (last[label], label))
    methods = [drawable(label) for label in labels]
    left = names_width(methods)
    shape, height = (len(sparsities), len(columns)), ROW * len(labels)
    figure, panels = start(picture, shape, height, (HEADS, AXIS + SCALE), (), left, sharex=True, sharey=True)
    palette = matplotlib.colormaps["viridis"].resampled(64)
    for place, column in enumerate(columns):
        shown = [curve for curve in found if curve.column == column]
        low, high = share_limits(value for curve in shown for value in curve.values)
        norm = LogNorm(low, high) if column == "train_share" else LogNorm(min(max(low, LEAST_DENSITY), 0.5), 1.0)
        norm.clip = True
        colours = ScalarMappable(norm, palette)
        for panel, sparsity in zip(panels[:, place], sparsities, strict=True):
            for curve in shown:
                if curve.sparsity == sparsity:
                    draw_strip(panel, labels.index(curve.label), curve, colours)
            panel.set_title(f"sparsity {percent(sparsity)}" if place == 0 else "", loc="left")
            leave_bare(panel)
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        panels[-1, place].set(xlabel="epoch")
        panels[-1, place].xaxis.set_label_coords(0.5, (0.17 - AXIS) / height)
        box = panels[-1, place].get_position()
        scale = add_scale(figure, box.x0 * WIDTH, box.width * WIDTH - BETWEEN, colours)
        title = CURVES[column].replace("\n", " ")
        figure.text(box.x0, 0.44 / figure.get_figheight(), title, va="bottom", size=9)
        set_log_axis(scale.xaxis, colours.get_clim(), 6, factor=1 if column == "train_share" else 100)
    panels[0, 0].set(xlim=(0, max(curve.epochs[-1] for curve in found)), ylim=(len(labels) - 0.5, -0.5))
    panels[0, 0].set_yticks(range(len(labels)), methods)
    return figure


def draw_strip(panel: Any, line: int, curve: Curve, colours: ScalarMappable) -> None:
    """Draw a curve as a strip of colours: each value from the epoch before it to its own, equal neighbours as one."""
    shades = [tuple(shade) for shade in colours.to_rgba(curve.values)]  # type: ignore[arg-type]  # makes an array
    begins = [0.0, *curve.epochs]
    last = [place for place, shade in enumerate(shades) if shades[place + 1 : place + 2] != [shade]]
    first = [0, *(place + 1 for place in last[:-1])]
    parts = [[(begins[a], line), (begins[b + 1], line)] for a, b in zip(first, last, strict=True)]
    strip = LineCollection(parts, colors=[shades[place] for place in last], linewidths=72 * ROW * 0.9)
    strip.set_capstyle("butt")
    panel.add_collection(strip, autolim=False)


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
                    aside = 0.016 * schedule.epochs * (rates.index(line.rate) - (len(rates) - 1) / 2)
                    xs = [epoch + aside for epoch in line.epochs]
                    colour = styles[line.rate].colour
                    panel.errorbar(xs, line.values, line.spreads, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.6)
                    panel.plot(xs, line.values, **look(styles[line.rate]))
        across[0].set(ylabel=f"points, {WAYS[way]}")
    ends = [v + sign * s for line in lines for v, s in zip(line.values, line.spreads, strict=True) for sign in (-1, 1)]
    set_points_axis(panels[0, 0], ends)
    for panel, sparsity in zip(panels[0], sparsities, strict=True):
        panel.set_title(f"sparsity {percent(sparsity)}" if sparsity else "dense", loc="left")
    for panel in panels[-1]:
        panel.set(xlabel="pruned at epoch", xlim=(0, schedule.epochs or None))
        panel.xaxis.set_major_locator(MaxNLocator(max(4, 10 // len(sparsities)), integer=True, steps=[1, 2, 4, 5, 10]))
    return figure


FIGURES: dict[str, Callable[[Picture], Figure]] = {
    "accuracy": draw_accuracy,
    "cost": draw_cost,
    "layers": draw_layers,
    "time": draw_curves,
    "exploration": draw_curves,
    "plasticity": draw_pruning,
    "gap": draw_pruning,
}


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


def set_points_axis(panel: Any, values: list[float]) -> None:
    """Make an axis of points linear around zero and logarithmic beyond, so that 80 points do not hide half a point."""
    low, high = min(0.0, *values), max(0.0, *values)
    panel.set_yscale("symlog", linthresh=LINEAR, linscale=0.6)
    panel.set_ylim(low * 1.25 - 0.3, high * 1.25 + 0.3)
    shown = [tick for tick in TICKS if low * 1.25 - 0.3 <= tick <= high * 1.25 + 0.3]
    if len(shown) > 8:
        shown = [tick for tick in shown if abs(tick) not in (2, 20)]
    panel.yaxis.set_major_locator(FixedLocator(sorted([0, *shown])))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.10g}" if value else "0"))
    panel.yaxis.set_minor_locator(NullLocator())
