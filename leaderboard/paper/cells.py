"""Each entry of the paper's tables beside the runs of the same protocol."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from leaderboard.claims.claim import NOT_DECIDED
from leaderboard.paper.published import (
    FROM_PAGE,
    Match,
    PageFacts,
    PaperRow,
    PaperTable,
    Part,
    Published,
    Settings,
    Tables,
)
from leaderboard.store.records import finish_key, stable_key
from leaderboard.store.repeat import arithmetic
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import grain
from leaderboard.tables.sections import section_key
from leaderboard.tables.stats import ALPHA, Difference, difference_from_published, holm
from leaderboard.tables.table import LEAST_SEEDS, Entry, gather

MARGIN = 0.5  # points; an interval that lies within this of the published value reproduces it

NOT_RUN, NOT_IN_SUITE, PROTOCOL_DIFFERS, TOO_FEW = "not run", "not in the suite", "protocol differs", "too few runs"
REPRODUCED, WITHIN_NOISE, HIGHER, LOWER = "reproduced", "within noise", "higher", "lower"
TESTED = (REPRODUCED, WITHIN_NOISE, HIGHER, LOWER)
VERDICTS = (NOT_IN_SUITE, NOT_RUN, PROTOCOL_DIFFERS, TOO_FEW, NOT_DECIDED, *TESTED)
UNTESTED = ""  # no verdict yet

CITED, NO_VALUE = "cited from another paper", "the paper prints no value"
NO_STD = "no ± printed"


@dataclass(frozen=True)
class Group:
    """Runs of one entry under one protocol; `departures` names its differences from the table's."""

    departures: tuple[str, ...]
    cell: Entry

    def values(self, key: str) -> list[float]:
        """Return the accuracies of a kind, in percent, of the counted runs that did not diverge."""
        found = (record["accuracy_pct"][key] for record in self.cell.finished)
        return [value for value in found if value is not None]

    @property
    def diverged(self) -> int:
        """How many of the counted runs diverged."""
        return self.cell.diverged


@dataclass(frozen=True)
class Comparison:
    """One entry of the paper beside ours: `compared` are the runs that carry the verdict, `others` those that cannot.

    `difference` is ours - published in points, best on test; None if no interval of it would be sound.
    """

    published: Published
    compared: Group | None
    others: tuple[Group, ...]
    difference: Difference | None
    verdict: str = UNTESTED
    reason: str = ""


@dataclass(frozen=True)
class Line:
    """One row of the paper in one reading of it: `cells` are its entries by sparsity in percent."""

    row: PaperRow
    note: str
    cells: dict[int, Comparison]


@dataclass(frozen=True)
class PartView:
    """A part of a table with our runs; `usual` is a record of the protocol compared, or None."""

    part: Part
    usual: Record | None
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class TableView:
    """A table of the paper with our runs."""

    table: PaperTable
    parts: tuple[PartView, ...]

    def distinct(self) -> list[Comparison]:
        """Return each comparison once: a dense row is in every column with the same runs."""
        return list({key: comparison for key, comparison in keyed(self.parts)}.values())


def compare_all(records: list[Record], tables: Tables) -> list[TableView]:
    """Return the paper's tables beside the records, each entry with its verdict.

    Invariant: the order of the records is irrelevant, and an entry without a compared record is `not run`, `not in the
    suite` or `protocol differs`.
    """
    newest = max((record["protocol"] for record in records), default=0)
    by_page: dict[str, list[Record]] = {name: [] for name in tables.pages}
    for record in sorted(records, key=stable_key):
        if record["page"]["name"] in by_page:
            by_page[record["page"]["name"]].append(record)
    sorted_out = {name: sort_out(runs, tables.pages[name], newest) for name, runs in by_page.items()}
    return [judge_table(make_view(table, sorted_out, tables)) for table in tables.tables]


def make_view(table: PaperTable, sorted_out: dict[str, tuple[Record | None, list[Run]]], tables: Tables) -> TableView:
    """Return a table with our runs; what a test decides has no verdict yet."""
    parts = []
    for part in table.parts:
        usual, found = sorted_out[part.page]
        lines = []
        for row in part.rows:
            for match in row.ours or (None,):
                own: list[Run] = []
                if match is not None:
                    own = runs_of(found, row, match, tables.pages[part.page], tables.methods[match.method])
                cells = {
                    sparsity: make_comparison(
                        row, published, [run for run in own if is_at(run[0], row, sparsity)], tables.runs
                    )
                    for sparsity, published in row.cells.items()
                }
                lines.append(Line(row, match.note if match else "", cells))
        parts.append(PartView(part, usual, tuple(lines)))
    return TableView(table, tuple(parts))


def make_comparison(row: PaperRow, published: Published, runs: list[Run], published_runs: int) -> Comparison:
    """Return an entry beside the runs of its row and column; without a verdict if a test decides."""
    by_kind: dict[tuple[object, ...], list[Run]] = {}
    for record, reasons in runs:
        by_kind.setdefault((reasons, section_key(record), record["method"]["sha256"]), []).append((record, reasons))
    groups = [Group(found[0][1], gather([record for record, _ in found])) for _, found in sorted(by_kind.items())]
    compared = next((group for group in groups if not group.departures), None)
    others = tuple(group for group in groups if group.departures)
    verdict, reason = find_obstacle(row, published, compared, others)
    difference = None
    if compared is not None and published.top1 is not None and verdict in (UNTESTED, TOO_FEW):
        difference = difference_from_published(
            compared.values("best_on_test"),
            published.top1,
            published.std,
            published_runs,
            grain(compared.cell.counted[0]),
        )
    return Comparison(published, compared, others, difference, verdict, reason)


def find_obstacle(
    row: PaperRow, published: Published, compared: Group | None, others: tuple[Group, ...]
) -> tuple[str, str]:
    """Return the verdict on an entry that cannot be tested, and why; else UNTESTED."""
    if not row.ours:
        return NOT_IN_SUITE, ""
    if compared is None:
        return (PROTOCOL_DIFFERS, "") if others else (NOT_RUN, "")
    if row.cited:
        return PROTOCOL_DIFFERS, CITED
    if published.top1 is None:
        return PROTOCOL_DIFFERS, NO_VALUE
    if compared.diverged:  # the runs that finished flatter the method
        return NOT_DECIDED, f"{compared.diverged} diverged"
    if published.std is None:  # the error of the difference is unknown, whatever we run
        return NOT_DECIDED, NO_STD
    return (TOO_FEW if len(compared.values("best_on_test")) < LEAST_SEEDS else UNTESTED), ""


def keyed(parts: tuple[PartView, ...]) -> Iterator[tuple[tuple[int, int, int], Comparison]]:
    """Yield every comparison with its key: part, line, column; all columns of a dense row share one key."""
    for place, view in enumerate(parts):
        for number, line in enumerate(view.lines):
            for sparsity, comparison in line.cells.items():
                yield (place, number, 0 if line.row.group == "dense" else sparsity), comparison


def judge_table(view: TableView) -> TableView:
    """Return a table with all verdicts; Holm's correction is over its tested entries."""
    tested = {key: found.difference for key, found in keyed(view.parts) if found.verdict == UNTESTED}
    corrected = holm({key: difference.p for key, difference in tested.items() if difference is not None})
    parts = []
    for place, part in enumerate(view.parts):
        lines = []
        for number, line in enumerate(part.lines):
            cells = dict(line.cells)
            for sparsity, comparison in line.cells.items():
                key = (place, number, 0 if line.row.group == "dense" else sparsity)
                if comparison.difference is not None and key in corrected:
                    cells[sparsity] = replace(comparison, verdict=judge(comparison.difference, corrected[key]))
            lines.append(replace(line, cells=cells))
        parts.append(replace(part, lines=tuple(lines)))
    return TableView(view.table, tuple(parts))


def judge(difference: Difference, p: float | None) -> str:
    """Return the verdict of a test; `p` is corrected over the table.

    Invariant: with `find_obstacle`, one of TESTED needs LEAST_SEEDS runs of the table's own protocol, none of which
    diverged, a published value with its ± and a row that the paper's authors ran.
    """
    if difference.mean is None or difference.low is None or difference.high is None:
        return NOT_DECIDED
    if difference.low >= -MARGIN and difference.high <= MARGIN:
        return REPRODUCED
    if p is not None and p <= ALPHA:
        return HIGHER if difference.mean > 0 else LOWER
    return WITHIN_NOISE


SAME_PAGE = {  # settings of a page that cannot change a number, and why
    "title": "how the page is called",
    "data_dir": "where the files lie; the data's fingerprint says what is in them",
    "init": "where the weights lie; init_sha256 says which they are",
    "workers": "how fast images are read; an augmented one is a function of seed, epoch and index alone",
    "allow_dense": "a permission: with it a run is made, without it none is",
    "methods": "they are in the settings of the record's method, which are compared with the row's",
}

LATER: Settings = {  # of a page whose record is older than these settings
    "conv_init": "network",
    "no_decay": [],
    "accumulate": 1,
    "mixup": 0.0,
    "cutmix": 0.0,
    "init_sha256": "",
    "pretrained": False,
    "reset_head": False,
}

Run = tuple[Record, tuple[str, ...]]  # a record, and in what it departs from the table's protocol


def sort_out(records: list[Record], facts: PageFacts, newest: int) -> tuple[Record | None, list[Run]]:
    """Return a record of the protocol compared on a page, and every record with its departures.

    Of several data or precisions that fit the facts, the one with most records is compared. Invariant: the choice is
    never between recipes, as a record with any other setting does not fit.
    """
    first = [(record, departures(record, facts, newest)) for record in records]
    fitting = Counter(section_key(record) for record, reasons in first if not reasons)
    if not fitting:
        return None, first
    key = min(fitting, key=lambda key: (-fitting[key], key))
    usual = next(record for record, reasons in first if not reasons and section_key(record) == key)
    return usual, [(record, reasons or unlike(record, usual)) for record, reasons in first]


def departures(record: Record, facts: PageFacts, newest: int) -> tuple[str, ...]:
    """Return how a record departs from the table's protocol: version, settings, data or the method's file.

    Every recorded setting of the page counts, not only changed ones: a page's file may have been edited.
    """
    page, method = record["page"], record["method"]
    recorded = {**LATER, **page["settings"], **page["changed"]}
    own = {name: value for name, value in recorded.items() if name not in SAME_PAGE}
    older = record["protocol"] < newest
    found = [f"protocol {record['protocol']}, older than {newest}"] if older else []
    found += differing(own, facts.settings)
    found += [f"{name} = {json.dumps(own[name])}, unknown here" for name in sorted(own.keys() - facts.settings.keys())]
    found += [f"data: {text}" for text in differing(record["data"], facts.data)]
    if method["source"] != f"methods/{method['name']}.py":
        found.append(f"method from {method['source']}")
    return tuple(found)


def differing(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in words how `own` differs from `wanted`; further names in `own` do not count."""
    absent = sorted(wanted.keys() - own.keys())
    found = [
        f"{name} = {json.dumps(own[name])}, not {json.dumps(value)}"
        for name, value in sorted(wanted.items())
        if name in own and own[name] != value
    ]
    return found + ([f"not recorded: {', '.join(absent)}"] if absent else [])


def unlike(record: Record, usual: Record) -> tuple[str, ...]:
    """Return how a record that fits the facts differs from the records compared on its page."""
    found = []
    if record["page"]["variant"] != usual["page"]["variant"]:
        found.append(f"page variant {record['page']['variant']}")
    if record["data"]["fingerprint"] != usual["data"]["fingerprint"]:
        found.append(f"data fingerprint {record['data']['fingerprint'][:12]}")
    if arithmetic(record) != arithmetic(usual):
        found.append(f"precision {arithmetic(record)}")
    return tuple(found)


def runs_of(runs: Iterable[Run], row: PaperRow, match: Match, facts: PageFacts, usual: Settings) -> list[Run]:
    """Return the runs of a row in one reading, each with its departures.

    `match.changed` selects them. It is relative to the page's file, so the settings the method really had are compared
    with the row's as well; `usual` has those that are not changed.
    """
    wanted = {name: facts.settings[name] if value == FROM_PAGE else value for name, value in usual.items()}
    wanted.update(match.changed)
    found = [
        (record, (*reasons, *differing(record["method"]["settings"], wanted)))
        for record, reasons in runs
        if record["method"]["name"] == match.method and record["method"]["changed"] == match.changed
    ]
    return name_versions(found, row)


def is_at(record: Record, row: PaperRow, sparsity: int) -> bool:
    """Return whether a record of a row belongs to its column; a dense row has the same runs in every column."""
    return row.group == "dense" or round(100 * record["sparsity"], 6) == sparsity


def name_versions(runs: list[Run], row: PaperRow) -> list[Run]:
    """Mark the runs of a row whose method's file is another version than the one compared.

    Compared is the version with most runs in the row's entries, counting a seed once; of equally many, the one that
    finished last. So a single late run, from any checkout, does not exclude the others.
    """
    by_version: dict[str, list[Record]] = {}
    for record, reasons in runs:
        if not reasons and any(is_at(record, row, sparsity) for sparsity in row.cells):
            by_version.setdefault(record["method"]["sha256"], []).append(record)
    compared = max(by_version, key=lambda sha256: weigh(by_version[sha256]), default=None)
    named = []
    for record, reasons in runs:
        sha256 = record["method"]["sha256"]
        other = not reasons and compared not in (None, sha256)
        named.append((record, (f"another version of the method's file, {sha256[:8]}",) if other else reasons))
    return named


def weigh(records: list[Record]) -> tuple[object, ...]:
    """Return what decides between versions: the number of entries and seeds, then the time of the last run."""
    last = max(map(finish_key, records))
    return len({(record["sparsity"], record["seed"]) for record in records}), *last
