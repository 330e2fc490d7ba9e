"""`python -m benchmark.recount.flops`: rebuild or check docs/flops.md, the paper's ImageNet costs recounted."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from benchmark.base import ROOT
from benchmark.base.console import format_flops
from benchmark.recount.counting import COLUMNS, Figures, work_out
from benchmark.recount.sheets import run_sheet, wrap
from leaderboard.paper.markdown import meaning_of
from leaderboard.paper.published import PaperRow, Part, Tables, load_tables
from leaderboard.tables.table import line

DOCS = ROOT / "docs"
NUMBER = 3  # of the paper's table
HALF = 0.005  # half of the last digit printed
NEAREST, UP = "to the nearest", "up"
AGREES, ROUNDING, MIXED, MISSED = "one convention", "two roundings", "two conventions", "not reproduced"
KINDS = (MIXED, MISSED, ROUNDING, AGREES)
COSTS = ("inference", "training")
Reading = dict[str, Any]

HEAD = """\
# The FLOPs of the paper's Table 3, recounted

Made by `make flops` from the printed costs in [paper_tables.yaml](../leaderboard/paper/paper_tables.yaml), the
conventions in [flops.yaml](flops.yaml) and the suite's own counter and meter; do not edit. ResNet-50 on ImageNet, for
which neither images nor training are needed: where no learnt mask decides, a cost follows from layers and schedule."""
TITLES = {
    MIXED: "Two conventions in one row",
    MISSED: "Not reproduced",
    ROUNDING: "One convention, rounded in two ways",
    AGREES: "One convention gives both",
}


def find_part(tables: Tables) -> Part:
    """Return the one part of the paper's table that has FLOPs."""
    (part,) = tables.tables[NUMBER - 1].parts
    return part


def find_roundings(share: float, printed: float) -> frozenset[str]:
    """Return how `share` can be rounded to two digits to give what is printed: NEAREST, UP, both or neither.

    A share half-way between two digits may be printed as either.
    """
    slack = 1e-9
    fits = {NEAREST: abs(share - printed) <= HALF + slack, UP: -slack <= printed - share < 2 * HALF - slack}
    return frozenset(way for way, right in fits.items() if right)


def best_rounding(readings: list[Reading], column: str, printed: float) -> str:
    """Return NEAREST if a reading rounds so to what is printed, else UP, else MISSED."""
    ways = set().union(*(find_roundings(reading["shares"][column], printed) for reading in readings))
    return NEAREST if NEAREST in ways else UP if UP in ways else MISSED


@dataclass(frozen=True)
class Verdict:
    """The verdict on the printed shares of one cost.

    `matches`: the readings that give each column, if possible rounded to the nearest. `kind`: AGREES if a reading gives
    all columns with one `rounding`; ROUNDING if one gives them all, with two roundings; MIXED if no reading gives all
    columns, but each is given; MISSED if a column is given by none. `best`: the readings behind AGREES or ROUNDING.
    """

    matches: dict[str, list[Reading]]
    kind: str
    rounding: str
    best: list[Reading]


def judge(readings: list[Reading], printed: Mapping[str, float]) -> Verdict:
    """Return the verdict on the readings of one cost. Invariant: rounding up counts only if nothing is nearest."""
    ways = [
        {column: find_roundings(reading["shares"][column], share) for column, share in printed.items()}
        for reading in readings
    ]
    pairs = list(zip(readings, ways, strict=True))
    matches = {
        column: [reading for reading, way in pairs if best_rounding(readings, column, share) in way[column]]
        for column, share in printed.items()
    }
    for rounding in (NEAREST, UP):
        best = [reading for reading, way in pairs if all(rounding in found for found in way.values())]
        if best:
            return Verdict(matches, AGREES, rounding, best)
    best = [reading for reading, way in pairs if all(way.values())]
    if best:
        return Verdict(matches, ROUNDING, "", best)
    return Verdict(matches, MIXED if all(matches.values()) else MISSED, "", [])


@dataclass(frozen=True)
class Entry:
    """Printed costs with the same readings: `rows` has the costs of each label; `printed`, `statuses` by column."""

    rows: dict[str, list[str]]
    printed: dict[str, float]
    statuses: dict[str, str]
    readings: list[Reading]
    verdict: Verdict


def printed_shares(row: PaperRow, cost: str) -> dict[str, float]:
    """Return the printed shares of a row's cost, by column."""
    shares = {
        str(column): cell.inference_share if cost == "inference" else cell.train_share
        for column, cell in row.cells.items()
    }
    return {column: share for column, share in shares.items() if share is not None}


def judge_all(rows: tuple[PaperRow, ...], readings: Mapping[str, Mapping[str, list[Reading]]]) -> list[Entry]:
    """Return the verdicts on all printed costs that have readings, in the order of the table.

    Costs with the same printed shares, statuses, layers and recounted shares are one entry, such as training and
    inference at a constant sparsity.
    """
    entries: dict[str, Entry] = {}
    for cost, row in ((cost, row) for row in rows for cost in COSTS):
        printed, tried = printed_shares(row, cost), readings[row.label][cost]
        if not printed or not tried:
            continue
        statuses = {str(column): cell.status for column, cell in row.cells.items()}
        shares = [(reading["layers"], reading["counter"], reading["shares"]) for reading in tried]
        key = repr([printed, statuses, shares])
        entry = entries.setdefault(key, Entry({}, printed, statuses, tried, judge(tried, printed)))
        entry.rows.setdefault(row.label, []).append(cost)
    return list(entries.values())


def count_printed(entries: list[Entry]) -> dict[str, int]:
    """Return how many printed shares are given to the nearest, only rounded up, and not at all."""
    counts = {NEAREST: 0, UP: 0, MISSED: 0}
    for entry in entries:
        number = sum(map(len, entry.rows.values()))
        for column, share in entry.printed.items():
            counts[best_rounding(entry.readings, column, share)] += number
    return counts


def make_sheet(figures: Figures, given: dict[str, Any], tables: Tables) -> str:
    """Return the sheet, in Markdown, for `given`, the content of docs/flops.yaml, and what is printed."""
    rows = find_part(tables).rows
    entries = judge_all(rows, figures["readings"])
    parts = [HEAD, finding_section(entries, figures, given, tables), recount_section(entries, given, tables)]
    parts.append(missing_section(rows, figures, given, tables))
    return "\n\n".join([*parts, source_section(figures, given, tables, rows)]) + "\n"


def finding_section(entries: list[Entry], figures: Figures, given: dict[str, Any], tables: Tables) -> str:
    """Return the verdicts in words: which printed costs mix conventions, and which none gives."""
    counts = count_printed(entries)
    dense = figures["dense"]
    text = (
        f"Dense, the network costs {format_flops(dense['macs'])} FLOPs an image ({dense['weights']:,} weights in "
        f"{dense['layers']} layers). Of {sum(counts.values())} printed shares of it that can be recounted, "
        f"{counts[NEAREST]} are given by a convention below to the nearest digit, {counts[UP]} only rounded up, "
        f"{counts[MISSED]} by none."
    )
    lines = ["## What is found", "", wrap(text)]
    for kind in KINDS:
        found = [entry for entry in entries if entry.verdict.kind == kind]
        if found:
            lines += ["", f"**{TITLES[kind]}**", ""]
            lines += [wrap(f"- {name_rows(entry)}: {explain(entry, given, tables)}") for entry in found]
    return "\n".join(lines)


def explain(entry: Entry, given: dict[str, Any], tables: Tables) -> str:
    """Return the verdict on an entry in words."""
    verdict = entry.verdict
    printed = {column: f"{text} at {column} %" for column, text in show_printed(entry, tables).items()}
    if verdict.kind == AGREES:
        both = " and ".join(printed.values())
        return f"{both}, rounded {verdict.rounding}: {name_readings(verdict.best, given)}."
    if verdict.kind == ROUNDING:
        ways = {column: best_rounding(verdict.best, column, share) for column, share in entry.printed.items()}
        both = " and ".join(f"{text} only rounded {ways[column]}" for column, text in printed.items())
        return f"{both}: {name_readings(verdict.best, given)}."
    parts = []
    for column, text in printed.items():
        matches = verdict.matches[column]
        if matches:
            way = best_rounding(matches, column, entry.printed[column])
            parts.append(f"{text} is {name_readings(matches, given, column)}, rounded {way}")
        else:
            near = min(entry.readings, key=lambda reading: abs(reading["shares"][column] - entry.printed[column]))
            parts.append(f"{text} is none of those tried, the nearest being {name_readings([near], given, column)}")
    return "; ".join(parts) + ("; nothing gives both." if verdict.kind == MIXED else ".")


def show_printed(entry: Entry, tables: Tables) -> dict[str, str]:
    """Return what is printed, with its status mark, by column."""
    return {
        column: f"{share:.2f} {tables.marks[entry.statuses[column]]}".rstrip()
        for column, share in entry.printed.items()
    }


def name_readings(readings: list[Reading], given: dict[str, Any], column: str = "") -> str:
    """Return readings in words, grouped by convention, with their shares at `column`, if given."""
    found: dict[str, list[str]] = {}
    for reading in readings:
        share = f"{reading['shares'][column]:.4f} by " if column else ""
        found.setdefault(name_convention(reading, given), []).append(
            f"{share}{given['counters'][reading['counter']]['label']}"
        )
    return ", or ".join(f"*{name}* ({', '.join(counted)})" for name, counted in found.items())


def name_convention(reading: Reading, given: dict[str, Any]) -> str:
    """Return the layers of a reading and, unless it is for constant masks, the formula of training."""
    layers = str(given["layers"][reading["layers"]]["label"])
    rule = given["training"].get(reading.get("rule"), {"formula": "sparse"})
    return layers if rule["formula"] == "sparse" else f"{layers}; {rule['label']}"


def name_rows(entry: Entry) -> str:
    """Return the rows of an entry, with the cost if only one of the two is meant."""
    return "; ".join(
        label if len(costs) == len(COSTS) else f"{label} ({costs[0]})" for label, costs in entry.rows.items()
    )


def recount_section(entries: list[Entry], given: dict[str, Any], tables: Tables) -> str:
    """Return every reading of every printed cost."""
    labels = [counter["label"] for counter in given["counters"].values()]
    heads = ["row", "convention"]
    for column in COLUMNS:
        heads += [f"{column} %: printed", *labels]
    lines = [line([*heads, "verdict"]), line(["---", "---"] + ["---:"] * (len(heads) - 2) + ["---"])]
    for entry in entries:
        lines += entry_lines(entry, given, tables)
    text = (
        "Costs are multiples of the dense network's. A row stands for both of its costs, which are the same while the "
        f"masks have a constant size, unless one is named. **Bold** gives the printed digits rounded {NEAREST}, ↑ only "
        f"rounded {UP}; what has neither does not give them."
    )
    return "\n".join(["## Every reading", "", wrap(text), "", *lines])


def entry_lines(entry: Entry, given: dict[str, Any], tables: Tables) -> list[str]:
    """Return the lines of an entry: one for each convention."""
    conventions: dict[str, dict[str, Reading]] = {}
    for reading in entry.readings:
        conventions.setdefault(name_convention(reading, given), {})[reading["counter"]] = reading
    lines = []
    for number, (name, by_counter) in enumerate(conventions.items()):
        cells = ["" if number else name_rows(entry), name]
        for column, share in entry.printed.items():
            cells.append("" if number else show_printed(entry, tables)[column])
            cells += [mark_share(by_counter[counter]["shares"][column], share) for counter in given["counters"]]
        verdict = f"{entry.verdict.kind}, {entry.verdict.rounding}".removesuffix(", ")
        lines.append(line([*cells, "" if number else verdict]))
    return lines


def mark_share(share: float, printed: float) -> str:
    """Return a share, bold if it rounds to what is printed, with an arrow if it does so only rounded up."""
    ways = find_roundings(share, printed)
    return f"**{share:.4f}**" if NEAREST in ways else f"{share:.4f} ↑" if UP in ways else f"{share:.4f}"


def missing_section(rows: tuple[PaperRow, ...], figures: Figures, given: dict[str, Any], tables: Tables) -> str:
    """Return the rows whose printed costs cannot be recounted, each with the reason."""
    lines = []
    for row in rows:
        if not any(figures["readings"][row.label].values()):
            shares = {cost: printed_shares(row, cost) for cost in COSTS}
            mark = tables.marks[next(iter(row.cells.values())).status]
            printed = "; ".join(
                f"{cost} {' and '.join(f'{share:.2f} {mark}'.rstrip() for share in found.values())}"
                for cost, found in shares.items()
                if found
            )
            lines.append(
                wrap(f"- {row.label}{f' ({printed})' if printed else ''}: {given['rows'][row.label]['reason']}.")
            )
    return "\n".join(["## What cannot be recounted", "", *lines])


def source_section(figures: Figures, given: dict[str, Any], tables: Tables, rows: tuple[PaperRow, ...]) -> str:
    """Return every convention with its source, and what the marks mean."""
    lines = []
    for name, entry in given["layers"].items():
        found = figures["left_out_pct"].get(name, {})
        over = f" Over all layers {' and '.join(f'{share:.2f}' for share in found.values())} % of the weights are out."
        lines.append(f"- Layers, *{entry['label']}*: {entry['source']}.{over if found else ''}")
    lines += [f"- Training, *{entry['label']}*: {entry['source']}." for entry in given["training"].values()]
    lines += [f"- Counted by *{entry['label']}*: {entry['source']}." for entry in given["counters"].values()]
    used = {cell.status for row in rows for cell in row.cells.values()}
    lines += [f"- {mark} {meaning_of(tables, name)}" for name, mark in tables.marks.items() if name in used and mark]
    text = (
        "f_D and f_S are the costs of a forward pass of the dense and of the sparse network on one image, f(t) is that "
        "with the masks of step t. Inference costs f_S of the final masks. Norms, pooling and the loss are left out, "
        "and so is a gradient before training."
    )
    return "\n".join(["## Conventions and sources", "", wrap(text), "", *map(wrap, lines)])


SHEET, FIGURES, GIVEN = "flops.md", "flops.json", "flops.yaml"  # made, worked out, written by hand


def read_given() -> dict[str, Any]:
    """Return the conventions."""
    given: dict[str, Any] = yaml.safe_load((DOCS / GIVEN).read_text(encoding="utf-8"))
    return given


def make_files() -> dict[str, str]:
    """Return the files that the command writes, by name, computed anew in some seconds."""
    given, tables = read_given(), load_tables()
    figures = work_out(given, find_part(tables))
    return {FIGURES: json.dumps(figures, indent=1) + "\n", SHEET: make_sheet(figures, given, tables)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 for a sheet that is out of date."""
    return run_sheet(arguments, "flops", DOCS, make_files)


if __name__ == "__main__":
    sys.exit(main())
