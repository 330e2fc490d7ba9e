"""Comparisons of a section's rows: ranks that the seeds support, gains over controls, detectable differences.

Gains are paired by seed: a control made from a run shares its masks or densities, and with its seed its initial weights
and batches. Ranks are not, see `find_better`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from leaderboard.store.records import finish_key
from leaderboard.store.schema import Record
from leaderboard.tables.table import BLANK, LEAST_SEEDS, Entry, Row, line, percent, sparsities_of

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

Made = dict[tuple[str, str, int], Record]  # controls by the run, the masks and the seed they were made from
Ranks = dict[tuple[int, float], tuple[int, int]]  # number of a row, sparsity: best and worst rank not excluded

CONTROLS = {  # kind of donor: heading of the column
    "densities": "less random masks of its own layer densities",
    "masks": "less its own masks kept from the start",
    "shuffled masks": "less its own masks, shuffled in each layer",
    "shuffled filters": "less its own masks, shuffled in each filter",
}


def accuracies(entry: Entry) -> dict[int, float]:
    """Return the accuracies of the last epoch by seed, of the counted runs that did not diverge."""
    return {record["seed"]: record["accuracy_pct"]["last_epoch"] for record in entry.finished}


def grain(run: Record) -> float:
    """Return the step, in points, in which a run's accuracy can move: one test image; 0 if their number is unknown."""
    images: int = run["data"]["test"]
    return 100 / images if images else 0.0


def compared(rows: list[Row], sparsity: float) -> dict[int, Entry]:
    """Return the entries compared at a sparsity by row number: no dense row, no control made from another, and none
    that a newer version of its file replaces, which would be its rival."""
    return {
        number: row.cells[sparsity]
        for number, row in enumerate(rows)
        if not row.dense and not row.made_from and sparsity in row.cells and not is_replaced(row, rows)
    }


def is_replaced(row: Row, rows: Iterable[Row]) -> bool:
    """Return whether one of the rows replaces a row."""
    return any(replaces(other, row) for other in rows)


def replaces(newer: Row, older: Row) -> bool:
    """Return whether a row is of a newer version of the other's file, with its settings and as many finished runs at
    each of its sparsities."""
    one, other = newer.method, older.method
    if any(one[part] != other[part] for part in ("name", "source", "group")) or newer.settings != older.settings:
        return False
    later = newer.last_finished[0] > older.last_finished[0]
    enough = all(s in newer.cells and len(newer.cells[s].finished) >= len(older.cells[s].finished) for s in older.cells)
    return bool(one["sha256"] != other["sha256"] and later and enough)


def certain(entry: Entry) -> dict[int, float]:
    """Return the accuracies that may carry a verdict: none if a counted run diverged, as the others flatter the row."""
    return {} if entry.diverged else accuracies(entry)


def make_ranks(rows: list[Row]) -> Ranks:
    """Return the range of ranks of every row at every sparsity.

    A rank of 2-5 of 7: one row is significantly better and two are significantly worse, see `find_better`.
    Invariant: a row of fewer than LEAST_SEEDS, or with a diverged run, may have any rank.
    """
    from leaderboard.tables.stats import rank_groups  # here, because scipy takes a second

    groups = {sparsity: compared(rows, sparsity) for sparsity in sparsities_of(rows)}
    groups = {sparsity: cells for sparsity, cells in groups.items() if len(cells) > 1}
    if not groups:
        return {}
    known = {
        sparsity: {str(number): certain(entry) for number, entry in cells.items()} for sparsity, cells in groups.items()
    }
    step = max(grain(entry.counted[0]) for cells in groups.values() for entry in cells.values())
    found = rank_groups(known, step, LEAST_SEEDS)
    return {(number, sparsity): found[sparsity][str(number)] for sparsity, cells in groups.items() for number in cells}


def signed(value: float) -> str:
    """Return a difference in points with its sign: `+0.12`, `−0.30`; what rounds to nothing is `+0.00`."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")  # the sum turns the zero below zero into the one above


def show_interval(found: Difference) -> str:
    """Return a 95 % interval as `+0.10 to +0.42`, or BLANK."""
    if found.low is None or found.high is None:
        return BLANK
    return f"{signed(found.low)} to {signed(found.high)}"


def show_bounds(found: Difference) -> str:
    """Return a 95 % interval as it follows its mean: ` [+0.10, +0.42]`, or nothing."""
    interval = show_interval(found)
    return "" if interval == BLANK else f" [{interval.replace(' to ', ', ')}]"


@dataclass(frozen=True)
class Gain:
    """How much better a row is than a control, at a sparsity; `p` is still uncorrected."""

    text: str
    p: float | None


def make_gain(row: Entry, control: Mapping[int, float], sound: bool) -> Gain | None:
    """Return the gain of a row's runs over a control's, paired by seed; None if they share no seed.

    Without p, so never bold, if fewer than LEAST_SEEDS are shared or, not `sound`, a counted run of either diverged.
    """
    from leaderboard.tables.stats import paired_difference

    own = accuracies(row)
    found = paired_difference(own, control, grain(row.counted[0]))
    if found.mean is None:
        return None
    text = signed(found.mean) + show_bounds(found)
    if found.n != len(own):
        text += f" (n={found.n})"
    return Gain(text, found.p if sound and found.n >= LEAST_SEEDS else None)


@dataclass(frozen=True)
class Control:
    """What a row is compared with: accuracies by seed, and whether all counted runs finished."""

    accuracies: dict[int, float]
    sound: bool

    @classmethod
    def of(cls, entry: Entry) -> Control:
        """Return the control that the runs of a cell are."""
        return cls(accuracies(entry), not entry.diverged)


def donor_controls(rows: list[Row]) -> dict[str, Made]:
    """Return the counted runs of controls made from other runs, by kind and origin.

    Of several versions of a control's file the one run last counts for each row and sparsity: two would be two.
    """
    counted = [record for row in rows if row.made_from for entry in row.cells.values() for record in entry.counted]
    rows_of = {
        run["run"]: place for place, row in enumerate(rows) for entry in row.cells.values() for run in entry.counted
    }
    found: dict[str, Made] = {}
    for record in sorted(counted, key=finish_key):
        donor, version = record["method"]["donor"], record["method"]["sha256"]
        made = found.setdefault(donor["kind"], {})
        for key, other in list(made.items()):
            origin = other["method"]["donor"]
            of_row = rows_of.get(origin["run"]) == rows_of.get(donor["run"]) and origin["sparsity"] == donor["sparsity"]
            if of_row and other["method"]["sha256"] != version:
                del made[key]
        made.setdefault((donor["run"], donor["masks_sha256"], record["seed"]), record)
    return found


def paired_with(entry: Entry, made: Made) -> Control:
    """Return the control that was made from the very runs of `cell`: same run, same masks, same seed."""
    own = {
        record["seed"]: made.get((record["run"], record["masks_sha256"], record["seed"])) for record in entry.counted
    }
    found = {seed: record for seed, record in own.items() if record is not None}
    finished = {seed: record for seed, record in found.items() if record["status"] == "ok"}
    return Control(
        {seed: record["accuracy_pct"]["last_epoch"] for seed, record in finished.items()}, len(finished) == len(found)
    )


def controls_of(rows: list[Row], number: int, sparsity: float, made: Mapping[str, Made]) -> dict[str, Control]:
    """Return the controls of row `number` at a sparsity, by heading of their column; `made` by `donor_controls`.

    Those are dense rows, the narrower network of the same weight count, and what was made from the row's own runs.
    """
    found = {}
    for place, other in enumerate(rows):
        if not (other.dense or other.narrow) or is_replaced(other, rows):
            continue
        if other.dense and other.cells:
            found[f"less {other.label}"] = Control.of(next(iter(other.cells.values())))
        elif other.narrow and sparsity in other.cells and place != number:
            found[f"less {other.label}"] = Control.of(other.cells[sparsity])
    for kind, heading in CONTROLS.items():
        found[heading] = paired_with(rows[number].cells[sparsity], made.get(kind, {}))
    return found


def gains_table(rows: list[Row]) -> list[str]:
    """Return the lines of the table of gains over controls; none if no row has a control."""
    from leaderboard.tables.stats import ALPHA, holm

    gains: dict[tuple[int, float], dict[str, Gain]] = {}
    headings: dict[str, None] = {}
    made = donor_controls(rows)
    for sparsity in sparsities_of(rows):
        for number, entry in compared(rows, sparsity).items():
            found = {
                name: make_gain(entry, control.accuracies, control.sound and not entry.diverged)
                for name, control in controls_of(rows, number, sparsity, made).items()
            }
            known = {name: gain for name, gain in found.items() if gain is not None}
            if known:
                gains[number, sparsity] = known
                headings.update(dict.fromkeys(known))
    if not gains:
        return []
    corrected = holm({(*key, name): gain.p for key, known in gains.items() for name, gain in known.items()})
    order = [name for name in headings if name not in CONTROLS.values()]
    order += [heading for heading in CONTROLS.values() if heading in headings]
    lines = [line(["method", "sparsity", "accuracy, %", *order]), line(["---", "---:", "---:"] + ["---:"] * len(order))]
    for (number, sparsity), of_row in sorted(gains.items()):
        row = rows[number]
        shown = [row.label, percent(sparsity), row.cells[sparsity].accuracy()]
        for name in order:
            p = corrected.get((number, sparsity, name))
            text = of_row[name].text if name in of_row else BLANK
            shown.append(f"**{text}**" if p is not None and p <= ALPHA else text)
        lines.append(line(shown))
    return lines


def blind_spot(rows: list[Row], sparsity: float) -> str:
    """Return the difference that half of the pairs of rows can detect at a sparsity; empty without two seeds of two."""
    from leaderboard.tables.stats import difference_of_means

    entries = compared(rows, sparsity).values()
    tests = (
        difference_of_means(accuracies(one).values(), accuracies(other).values(), grain(one.counted[0]))
        for one, other in combinations(entries, 2)
    )
    found = [test.detectable for test in tests if test.detectable is not None]
    return f"{statistics.median(found):.1f} points at {percent(sparsity)}" if found else ""


def blind_spots(rows: list[Row]) -> str:
    """Return one sentence on the differences that the seeds can detect, or an empty text."""
    found = [spot for spot in (blind_spot(rows, sparsity) for sparsity in sparsities_of(rows)) if spot]
    if not found:
        return ""
    return (
        f"A single comparison of two rows finds a true difference of {', '.join(found)} in four of five cases "
        "(for the median pair, with the seeds and spreads at hand, uncorrected); smaller ones may be there unseen."
    )
