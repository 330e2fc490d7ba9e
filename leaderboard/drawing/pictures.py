"""The pictures of one leaderboard section and the numbers in them, which `draw` draws.

Controls made from another run (those with a donor) are in no picture: they would double its lines. Every mean is that
of the leaderboard's table, over the seeds whose counted run did not diverge.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any
from urllib.parse import quote

from leaderboard.store.records import curves
from leaderboard.store.repeat import arithmetic
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import is_replaced
from leaderboard.tables.sections import amount
from leaderboard.tables.table import Row, make_rows, percent

KINDS = ("accuracy", "cost", "layers", "time", "exploration")
TITLES = {
    "accuracy": "Accuracy at each sparsity",
    "cost": "Accuracy against training and inference FLOPs",
    "layers": "Density of each layer at the end",
    "time": "Density and training FLOPs over time",
    "exploration": "Share of weights ever active",
}
MOST_PANELS = 4  # sparsities with a panel of their own; more would be too small to read
MOST_COLOURED = 12  # methods that a picture of accuracy against cost tells apart
LEAST_DENSITY = 0.001  # of a layer; all below has one colour
MOST_POINTS = 60  # of a curve; a panel is at most 800 pixels wide

ACCURACY = (
    "Accuracy after the last epoch: mean over seeds, with its 95 % t interval where there are two seeds or more; each "
    "seed is a faint dot. Each panel has a scale of its own. Methods are in the order of their means at the highest "
    "sparsity. The vertical line is the dense network, its band the interval. Dots and intervals are cut at a panel's "
    "edge; a triangle at the left edge marks a mean that lies lower."
)
COST = (
    "Accuracy after the last epoch against cost, means over seeds; a method's points are joined, the smaller the "
    "sparser. Grey steps are the Pareto front: the points that no other beats or equals in both accuracy and "
    "cost{grey}. A triangle below the picture's edge marks a mean that lies lower{nil}."
)
GREY = " (of many methods those best known have a colour, and at their defaults those with a point on it)"
LAYERS = (
    "Share of each prunable layer's weights that is active at the end, layers in network order, mean over seeds; "
    f"{percent(LEAST_DENSITY)} and less has one colour. A cross marks a layer that is empty in some seed, on white in "
    "all. Dense and narrower networks are left out."
)
TIME = (
    "Density of the prunable weights at the end of each epoch, and training FLOPs up to there as a multiple of the "
    "dense network's, scoring passes included; mean over seeds. {look} Dense and narrower networks are left out."
)
EXPLORATION = (
    "Share of the prunable weights that have ever been active (R_s of Liu et al., 2021, arXiv:2102.02887), mean over "
    "the seeds whose records have it. {look} Dense and narrower networks are left out."
)
LINES = "Lines that coincide are marked in turn."
STRIPS = "Each method is a strip of colours; methods are in the order of their last values at the highest sparsity{of}."

ROUNDS = " Of a method that trains in rounds the last round is drawn, after the cost of all."
EVERYWHERE = (
    " Diverged runs, controls made from another run, and rows that a newer version of their file replaced, are in no "
    "picture."
)


@dataclass(frozen=True)
class Series:
    """One method: its finished runs, one for each seed, by sparsity asked; neither is ever empty."""

    label: str
    dense: bool
    narrow: bool
    cells: dict[float, list[Record]]


@dataclass(frozen=True)
class AccuracyPoint:
    """Accuracy of each seed, ascending, its mean, and the ends of the mean's 95 % t interval; None for one seed."""

    label: str
    dense: bool
    sparsity: float
    seeds_pct: list[float]
    accuracy_pct: float
    low_pct: float | None
    high_pct: float | None


@dataclass(frozen=True)
class CostPoint:
    """Mean accuracy and mean costs, as multiples of dense."""

    label: str
    dense: bool
    sparsity: float
    accuracy_pct: float
    train_share: float
    inference_share: float


@dataclass(frozen=True)
class LayerLine:
    """Mean density of each layer (None if the network lacks it), and in how many seeds it is empty."""

    label: str
    sparsity: float
    layers: list[str]
    densities: list[float | None]
    empty: list[int]


@dataclass(frozen=True)
class Curve:
    """Mean over seeds of one column of the history at some epochs, in ascending order, the last one included."""

    label: str
    sparsity: float
    column: str
    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class PruningLine:
    """Points regained after pruning a share `rate` of a network of a `sparsity`, by epoch of pruning.

    `values` are means over seeds, `spreads` their sample standard deviations, 0 for one seed.
    """

    sparsity: float
    rate: float
    regrow: bool
    epochs: list[float]
    values: list[float]
    spreads: list[float]


@dataclass(frozen=True)
class Schedule:
    """The epochs of a page, and those at which its learning rate falls."""

    epochs: float
    drops: list[float]


Numbers = AccuracyPoint | CostPoint | LayerLine | Curve | PruningLine | Schedule


@dataclass(frozen=True)
class Picture:
    """One picture: `title` and `caption` hold no text from records; `page`, drawn above the picture, and labels do."""

    kind: str
    title: str
    caption: str
    page: str
    numbers: Sequence[Numbers]

    def digest(self) -> str:
        """Return a sha256 of all that is drawn, with numbers to ten digits, which are the same on every machine."""
        shown = {
            "kind": self.kind,
            "title": self.title,
            "page": self.page,
            "numbers": [asdict(n) for n in self.numbers],
        }
        return hashlib.sha256(json.dumps(to_digits(shown), sort_keys=True).encode()).hexdigest()


def to_digits(value: Any) -> Any:
    """Return `value` with every float as a text of ten significant digits."""
    if isinstance(value, dict):
        return {key: to_digits(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [to_digits(entry) for entry in value]
    return f"{value:.10g}" if isinstance(value, float) else value


def list_pictures(runs: list[Record]) -> list[Picture]:
    """Return the pictures of the runs of one section, in the order of the sheet.

    Invariant: the order of the runs is irrelevant, no picture is empty, none is without a finished sparse run.
    """
    series = make_series(runs)
    shown, left_out = choose_sparsities(series)
    if not shown:
        return []
    costs = cost_points(series)
    grey = GREY if len(series) > MOST_COLOURED else ""
    nil = ", one at the left edge a cost of zero" if any(not p.train_share * p.inference_share for p in costs) else ""
    rest = EVERYWHERE + (
        f" Left out: sparsity {', '.join(percent(sparsity) for sparsity in left_out)}." if left_out else ""
    )
    in_rounds = any("rounds" in run for one in series for runs in one.cells.values() for run in runs)
    over = (ROUNDS if in_rounds else "") + rest
    time = [*curves_of(series, "density", shown), *curves_of(series, "train_share", shown)]
    explored = curves_of(series, "explored", shown)
    found: list[tuple[str, str, Sequence[Numbers]]] = [
        ("accuracy", ACCURACY + rest, accuracy_points(series, shown)),
        ("cost", COST.format(grey=grey, nil=nil) + EVERYWHERE, costs),
        ("layers", LAYERS + rest, layer_densities(series, shown)),
        ("time", TIME.format(look=look_of(time, " (of training FLOPs)")) + over, time),
        ("exploration", EXPLORATION.format(look=look_of(explored)) + over, explored),
    ]
    page = min(map(name_page, runs))
    return [Picture(kind, TITLES[kind], caption, page, numbers) for kind, caption, numbers in found if numbers]


def name_page(run: Record) -> str:
    """Return the title of a run's page with its epochs, unless it tells them, and its arithmetic."""
    title, epochs = str(run["page"]["title"]), run["page"]["settings"].get("epochs")
    told = "" if "epoch" in title or epochs is None else f", {amount(epochs, 'epoch')}"
    return f"{title}{told}, {arithmetic(run)}"


def are_many(curves: Iterable[Curve]) -> bool:
    """Return whether curves are of so many methods that lines would not tell them apart."""
    return len({curve.label for curve in curves}) > MOST_COLOURED


def look_of(curves: Iterable[Curve], of: str = "") -> str:
    """Return what a caption says of how curves are drawn."""
    return STRIPS.format(of=of) if are_many(curves) else LINES


def name_pictures(section: str, runs: list[Record]) -> dict[str, Picture]:
    """Return the pictures of a section by the stem of their files."""
    return {f"{section}.{picture.kind}": picture for picture in list_pictures(runs)}


def embed(pictures: Mapping[str, Picture], folder: str) -> list[str]:
    """Return the Markdown lines that show pictures, by the stem of their files in `folder`, with their captions."""
    shown = pictures.items()  # titles and captions hold no text from records
    files = {stem: f"{quote(folder)}/{quote(stem)}.svg" for stem in pictures}
    return [text for stem, p in shown for text in ("", f"![{p.title}]({files[stem]})", "", f"*{p.caption}*")]


def make_series(runs: list[Record]) -> list[Series]:
    """Return the methods of a section in the order of its table.

    Without controls made from another run, and rows that a newer version of their file replaces.
    """
    rows = [row for row in make_rows(runs) if not any(run["method"].get("donor") for run in row.counted)]
    kept = [row for row in rows if not is_replaced(row, rows)]
    if len(kept) < len(rows):  # the versions that told them apart leave their names
        kept = make_rows([run for row in kept for run in row.counted])
    series = []
    for row, label in zip(kept, name_rows(kept), strict=True):
        cells = {sparsity: cell.finished for sparsity, cell in row.cells.items() if cell.finished}
        if cells:
            series.append(Series(label, row.dense, row.narrow, cells))
    return series


def name_rows(rows: Sequence[Row]) -> list[str]:
    """Return a unique label for each row; rows of two groups may share a name."""
    names: list[str] = []
    for row in rows:
        names.append(row.name if row.name not in names else f"{row.name} {len(names)}")
    return names


def choose_sparsities(series: Iterable[Series]) -> tuple[list[float], list[float]]:
    """Return the highest MOST_PANELS sparsities with a finished sparse run, in ascending order, and those left out."""
    found = sorted({sparsity for one in series if not one.dense for sparsity in one.cells})
    return found[-MOST_PANELS:], found[:-MOST_PANELS]


def accuracy_points(series: Iterable[Series], sparsities: Sequence[float]) -> list[AccuracyPoint]:
    """Return the accuracy of every method at some sparsities, and of dense: the table's mean, and its t interval."""
    from leaderboard.tables.stats import paired_difference  # here, because scipy takes a while

    points = []
    for one in series:
        for sparsity, runs in one.cells.items():
            if not one.dense and sparsity not in sparsities:
                continue
            reached = {run["seed"]: float(run["accuracy_pct"]["last_epoch"]) for run in runs}
            # the interval of the difference from zero is that of the mean
            spread = paired_difference(reached, dict.fromkeys(reached, 0.0))
            mean = fmean(reached.values())
            found = sorted(reached.values())
            points.append(AccuracyPoint(one.label, one.dense, sparsity, found, mean, spread.low, spread.high))
    return points


def cost_points(series: Iterable[Series]) -> list[CostPoint]:
    """Return accuracy and costs of every method at every sparsity: the table's means."""
    return [
        CostPoint(
            one.label,
            one.dense,
            sparsity,
            fmean(run["accuracy_pct"]["last_epoch"] for run in runs),
            fmean(run["macs"]["train_share"] for run in runs),
            fmean(run["macs"]["inference_share"] for run in runs),
        )
        for one in series
        for sparsity, runs in one.cells.items()
    ]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (cost, accuracy) pairs on the Pareto front, the cheapest first.

    A pair is on it if no other is at least as good in both and better in one. Invariant: both rise strictly.
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def layer_densities(series: Iterable[Series], sparsities: Iterable[float]) -> list[LayerLine]:
    """Return the mean density of each prunable layer, for every sparse method on the full network."""
    sparse = [one for one in series if not one.dense and not one.narrow]
    networks = [run["layers"] for one in sparse for runs in one.cells.values() for run in runs]
    names = list(dict.fromkeys(layer["name"] for layers in networks for layer in layers if layer["prunable"]))
    lines = []
    for sparsity in sparsities:
        for one in sparse:
            found: dict[str, list[float]] = {name: [] for name in names}
            for run in one.cells.get(sparsity, ()):
                for layer in run["layers"]:
                    if layer["prunable"] and layer["weights"]:
                        found[layer["name"]].append(layer["active"] / layer["weights"])
            if any(found.values()):
                means = [fmean(values) if values else None for values in found.values()]
                lines.append(LayerLine(one.label, sparsity, names, means, [v.count(0.0) for v in found.values()]))
    return lines


def curves_of(series: Iterable[Series], column: str, sparsities: Iterable[float]) -> list[Curve]:
    """Return the mean of a history's column over epochs, for the methods of `layer_densities` that have the column."""
    sparse = [one for one in series if not one.dense and not one.narrow]
    found = []
    for sparsity in sparsities:
        for one in sparse:
            epochs, values = mean_curve(one.cells.get(sparsity, []), column)
            if epochs:
                found.append(Curve(one.label, sparsity, column, epochs, values))
    return found


def mean_curve(runs: Iterable[Record], column: str) -> tuple[list[float], list[float]]:
    """Return at most MOST_POINTS epochs that all runs with this column have, and the means there.

    Of a run that trained in rounds these are the epochs of its last round, counted as the page's.
    """
    tables = []
    for run in runs:
        found = curves(run)
        rounds = run.get("rounds", {"last_begins": 0, "back_to": 0})
        earlier, shift = rounds["last_begins"], rounds["last_begins"] - rounds["back_to"]
        pairs = zip(found["epoch"], found[column], strict=True)
        known = {epoch - shift: value for epoch, value in pairs if epoch > earlier and math.isfinite(value)}
        if known:
            tables.append(known)
    if not tables:
        return [], []
    epochs = thin(sorted(set(tables[0]).intersection(*tables[1:])))
    return epochs, [fmean(table[epoch] for table in tables) for epoch in epochs]


def thin(values: list[float]) -> list[float]:
    """Return at most MOST_POINTS of `values`, evenly spread, including the first and the last."""
    if len(values) <= MOST_POINTS:
        return values
    return [values[round(place * (len(values) - 1) / (MOST_POINTS - 1))] for place in range(MOST_POINTS)]
