"""Rows and cells of one leaderboard section, and its main table in Markdown, in the GraNet paper's layout."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from leaderboard.kinds import parse_time
from leaderboard.naming import split_rows
from leaderboard.records import stable_key
from leaderboard.schema import GROUPS, Record

BLANK = "·"
HEADINGS = {**{group: group for group in GROUPS}, "control": "controls"}
LEAST_SEEDS = 3  # in common; two leave one degree of freedom, and nothing short of a gulf is seen
LONGEST_TEXT = 200  # characters of any one text from a record


def printable(text: str) -> str:
    """Return `text` on one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def plain(text: object) -> str:
    """Return `text` on one line without control characters, cut to LONGEST_TEXT: safe in a terminal."""
    kept = printable(str(text))
    return kept if len(kept) <= LONGEST_TEXT else kept[: LONGEST_TEXT - 1] + "…"


def escape(text: object) -> str:
    """Return `text` on one line, without a meaning in Markdown or HTML, cut to LONGEST_TEXT characters."""
    kept = plain(text)
    kept = re.sub(r"([\\*\[\]$~#])", r"\\\1", kept)
    kept = re.sub(r"^(\d*)([-+=.)])(?=[ =-]|$)", r"\1\\\2", kept)  # a list or a rule, at the start of a line
    kept = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", kept)  # inside a word it has no meaning
    return html.escape(kept, quote=False).replace("|", "&#124;").replace("`", "&#96;")


def mean(values: Iterable[float | None], show: Callable[[float], str]) -> str:
    """Return the mean of the `values` that are there, as `show` writes it, or BLANK when there are none."""
    known = [value for value in values if value is not None]
    return show(statistics.fmean(known)) if known else BLANK


def mean_and_std(values: Iterable[float | None]) -> str:
    """Return `93.10 ± 0.21`: mean and sample standard deviation (ddof = 1); no ± for one value, BLANK for none."""
    known = [value for value in values if value is not None]
    std = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return mean(known, "{:.2f}".format) + std


def multiple(share: float) -> str:
    """Return a cost as a multiple of the dense network's: two decimals, or two digits when below 0.1."""
    return f"{share:.2f}×" if share >= 0.0995 else f"{share:#.2g}×"


def flops(macs: float) -> str:
    """Return `macs` multiply-adds as FLOPs, two for each: `8.2e9`."""
    digits, exponent = f"{2 * macs:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def percent(share: float) -> str:
    """Return a share in percent without needless digits: 0.9 -> `90 %`."""
    return f"{100 * share:.10g} %"


def duration(seconds: float) -> str:
    """Return a time in seconds, in hours from two hours on."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


@dataclass(frozen=True)
class Cell:
    """The runs of one method at one sparsity: `counted` has one for each seed, in order; `repeats` are the others."""

    counted: list[Record]
    repeats: list[Record]

    @property
    def diverged(self) -> int:
        """How many of the counted runs diverged."""
        return len(self.counted) - len(self.finished)

    @property
    def finished(self) -> list[Record]:
        """The counted runs that did not diverge: those whose numbers enter means."""
        return [record for record in self.counted if record["status"] == "ok"]

    def accuracy(self) -> str:
        """Return `93.10 ± 0.21 (n=2, 1 diverged)`, of the last epoch."""
        shown = mean_and_std(record["accuracy_pct"]["last_epoch"] for record in self.finished)
        return f"{shown} (n={len(self.finished)}{f', {self.diverged} diverged' if self.diverged else ''})"

    def cost(self, part: str, absolute: bool) -> str:
        """Return the mean cost of `part` (inference or train), in FLOPs or as a multiple of the dense network's."""
        if absolute:
            return mean((record["macs"][part] for record in self.finished), flops)
        return mean((record["macs"][f"{part}_share"] for record in self.finished), multiple)


def gather(records: list[Record]) -> Cell:
    """Sort the runs of one method at one sparsity: for each seed the first that finished counts, diverged or not.

    Never the better one: a repeat must not be a second try.
    """
    counted: dict[int, Record] = {}
    repeats = []
    for record in sorted(records, key=lambda record: (parse_time(record["finished"]), *stable_key(record))):
        if record["seed"] in counted:
            repeats.append(record)
        else:
            counted[record["seed"]] = record
    return Cell([counted[seed] for seed in sorted(counted)], repeats)


@dataclass(frozen=True)
class Row:
    """One method of a section in one set of settings, see `leaderboard.naming`. `cells` by sparsity asked.

    `label` is harmless in Markdown, `name` the same as text, without the version of the file; `settings` are those to
    ask for where they are not the defaults.
    """

    group: str
    label: str
    dense: bool
    reference: str
    cells: dict[float, Cell]
    narrow: bool = False  # a narrower network: its weight count is the sparse networks', its layers are not
    made_from: str = ""  # label of the row whose masks or layer densities it takes, for controls
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def sparsities_of(rows: list[Row]) -> list[float]:
    """Return the sparsities at which some row that is not dense has runs, rising."""
    return sorted({sparsity for row in rows for sparsity in row.cells if not row.dense})


def make_rows(records: list[Record]) -> list[Row]:
    """Return the rows of a section in the order of the table: by group, name, defaults first, label."""
    rows = []
    for found in split_rows(records):
        method, weights = found.runs[0]["method"], found.runs[0]["weights"]
        by_sparsity: dict[float, list[Record]] = {}
        for run in found.runs:
            by_sparsity.setdefault(float(run["sparsity"]), []).append(run)
        rows.append(
            Row(
                found.group,
                f"{escape(found.label)} {escape(found.version)}".rstrip(),
                method["budget"] == "dense",
                escape(method["reference"]),
                {sparsity: gather(by_sparsity[sparsity]) for sparsity in sorted(by_sparsity)},
                weights["prunable"] != weights["dense_prunable"],
                found.donor if found.group == "control" else "",
                found.label,
                found.settings,
            )
        )
    return rows


def line(cells: Iterable[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def show_rank(rank: tuple[int, int] | None) -> str:
    """Return `1–4`, or `2` where best and worst rank are the same; BLANK where there is nothing to rank against."""
    if rank is None:
        return BLANK
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def main_table(rows: list[Row], ranks: Mapping[tuple[int, float], tuple[int, int]]) -> list[str]:
    """Return the lines of the main table: groups of methods down, sparsities asked across, four columns for each.

    `ranks`: by number of the row and sparsity. Bold is an accuracy whose rank is 1 and nothing else. Controls made from
    another row's runs have a table of their own.
    """
    sparsities = sparsities_of(rows)
    head = ["method"]
    for sparsity in sparsities:
        head += [f"sparsity {percent(sparsity)}: accuracy, %", "rank", "inference FLOPs", "training FLOPs"]
    if not sparsities:
        head += ["accuracy, %", "inference FLOPs", "training FLOPs"]
    lines = [line(head), line(["---"] + ["---:"] * (len(head) - 1))]
    group = ""
    for number, row in enumerate(rows):
        if row.made_from:
            continue
        if row.group != group:
            group = row.group
            lines.append(line([f"*{HEADINGS[group]}*"] + [""] * (len(head) - 1)))
        shown = [row.label]
        for sparsity in row.cells if row.dense else sparsities:
            shown += main_cells(row, sparsity, ranks.get((number, sparsity)), ranked=bool(sparsities))
        lines.append(line(shown + [BLANK] * (len(head) - len(shown))))
    return lines


def main_cells(row: Row, sparsity: float, rank: tuple[int, int] | None, ranked: bool) -> list[str]:
    """Return accuracy, rank (where the table has ranks) and costs of a row at a sparsity."""
    cell = row.cells.get(sparsity)
    if cell is None:
        return [BLANK] * 4
    accuracy = f"**{cell.accuracy()}**" if rank == (1, 1) else cell.accuracy()
    costs = [cell.cost("inference", row.dense), cell.cost("train", row.dense)]
    return [accuracy, *([show_rank(rank)] if ranked else []), *costs]


def link(record: Record, folder: str, name: str) -> str:
    """Return a link to the file of a record, named by its seed."""
    return f"[{name} {record['seed']}]({quote(folder)}/{quote(record['file'], errors='replace')})"
