"""Our records beside the paper's cells: which of them may be compared, how far they differ, and what may be said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from leaderboard.kinds import parse_time
from leaderboard.page import section_key
from leaderboard.paper.published import Match, PageFacts, PaperRow, PaperTable, Part, Published, Tables
from leaderboard.records import stable_key
from leaderboard.schema import Record
from leaderboard.stats import ALPHA, Difference, difference_from_published, holm
from leaderboard.table import Cell, gather

MARGIN = 0.5  # points; an interval that lies within this of the published value reproduces it
# A page that differs in these alone gives the same numbers: where files lie, how fast they are read, how it is called,
# and settings of methods, which a record's method.changed has too.
SAME_PAGE = ("title", "data_dir", "workers", "methods")

NOT_RUN, NOT_IN_SUITE, PROTOCOL_DIFFERS, TOO_FEW = "not run", "not in the suite", "protocol differs", "too few runs"
REPRODUCED, WITHIN_NOISE, HIGHER, LOWER = "reproduced", "within noise", "higher", "lower"
VERDICTS = (NOT_IN_SUITE, NOT_RUN, PROTOCOL_DIFFERS, TOO_FEW, REPRODUCED, WITHIN_NOISE, HIGHER, LOWER)

CITED = "cited from another paper"

Run = tuple[Record, tuple[str, ...]]  # a record, and in what it departs from the table's page


@dataclass(frozen=True)
class Group:
    """Runs of one cell under one protocol; `departures` says in what it is not the table's, empty where it is."""

    departures: tuple[str, ...]
    cell: Cell

    def values(self, key: str) -> list[float]:
        """Return the accuracies of a kind, in percent, of the counted runs that did not diverge."""
        found = (record["accuracy_pct"][key] for record in self.cell.finished)
        return [value for value in found if value is not None]


@dataclass(frozen=True)
class Comparison:
    """One cell of the paper beside ours: `compared` are the runs that carry the verdict, `others` those that cannot.

    `difference` is ours - published in points, best on test; None where nothing may be compared.
    """

    published: Published
    compared: Group | None
    others: tuple[Group, ...]
    difference: Difference | None
    verdict: str = NOT_RUN
    reason: str = ""


@dataclass(frozen=True)
class Line:
    """One row of the paper in one reading of it: `cells` by sparsity in percent."""

    row: PaperRow
    note: str
    cells: dict[int, Comparison]


@dataclass(frozen=True)
class PartView:
    """A part of a table with our runs; `usual` is a record of the protocol compared, None where there is none."""

    part: Part
    usual: Record | None
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class TableView:
    """A table of the paper with our runs."""

    table: PaperTable
    parts: tuple[PartView, ...]

    def distinct(self) -> list[Comparison]:
        """Return the comparisons, each once: a dense row stands in every column with the same runs."""
        return list({key: comparison for key, comparison in keyed(self.parts)}.values())


def compare_all(records: list[Record], tables: Tables) -> list[TableView]:
    """Return the paper's tables beside the records, each cell with its verdict.

    Invariant: the order of the records is irrelevant, and no cell without a compared record gets another verdict than
    `not run`, `not in the suite` or `protocol differs`.
    """
    newest = max((record["protocol"] for record in records), default=0)
    by_page: dict[str, list[Record]] = {name: [] for name in tables.pages}
    for record in sorted(records, key=stable_key):
        if record["page"]["name"] in by_page:
            by_page[record["page"]["name"]].append(record)
    sorted_out = {name: sort_out(runs, tables.pages[name], newest) for name, runs in by_page.items()}
    return [judge_table(make_view(table, sorted_out, tables.runs)) for table in tables.tables]


def sort_out(records: list[Record], facts: PageFacts, newest: int) -> tuple[Record | None, list[Run]]:
    """Return a record of the protocol compared on a page, and every record with what it departs in.

    Of several data, precisions or versions of the page that all fit the facts, the one with most records is compared.
    """
    first = [(record, departures(record, facts, newest)) for record in records]
    fitting = Counter(section_key(record) for record, reasons in first if not reasons)
    if not fitting:
        return None, first
    key = min(fitting, key=lambda key: (-fitting[key], key))
    usual = next(record for record, reasons in first if not reasons and section_key(record) == key)
    return usual, [(record, reasons or unlike(record, usual)) for record, reasons in first]


def departures(record: Record, facts: PageFacts, newest: int) -> tuple[str, ...]:
    """Return in what a record is not of the table's protocol: version, settings, data or the method's file."""
    page, method = record["page"], record["method"]
    changed = {name: value for name, value in page["changed"].items() if name not in SAME_PAGE}
    older = record["protocol"] < newest
    found = [f"protocol {record['protocol']}, older than {newest}"] if older else []
    found += [f"{name} = {json.dumps(value)}" for name, value in sorted(changed.items())]
    for name, value in facts.settings.items():
        own = page["settings"].get(name)
        if name not in changed and own != value:
            found.append(f"{name} = {json.dumps(own)}, not {json.dumps(value)}")
    for name, value in facts.data.items():
        if record["data"][name] != value:
            found.append(f"data: {name} = {json.dumps(record['data'][name])}, not {json.dumps(value)}")
    if method["source"] != f"methods/{method['name']}.py":
        found.append(f"method from {method['source']}")
    return tuple(found)


def unlike(record: Record, usual: Record) -> tuple[str, ...]:
    """Return in what a record that fits the facts is unlike the records compared on its page."""
    own, others = record["page"]["settings"], usual["page"]["settings"]
    found = []
    if record["page"]["variant"] != usual["page"]["variant"]:
        names = sorted(name for name in own.keys() | others.keys() if name not in SAME_PAGE)
        different = [f"{name} = {json.dumps(own.get(name))}" for name in names if own.get(name) != others.get(name)]
        found += different or [f"page variant {record['page']['variant']}"]
    if record["data"]["fingerprint"] != usual["data"]["fingerprint"]:
        found.append(f"data fingerprint {record['data']['fingerprint'][:12]}")
    if record["environment"]["precision"] != usual["environment"]["precision"]:
        found.append(f"precision {record['environment']['precision']}")
    return tuple(found)


def make_view(table: PaperTable, sorted_out: dict[str, tuple[Record | None, list[Run]]], runs: int) -> TableView:
    """Return a table with our runs, without verdicts yet; `runs` are behind each published ±."""
    parts = []
    for part in table.parts:
        usual, found = sorted_out[part.page]
        lines = []
        for row in part.rows:
            for match in row.ours or (None,):
                own = [] if match is None else name_versions([run for run in found if fits(run[0], match)])
                cells = {
                    sparsity: make_comparison(
                        row, published, [run for run in own if is_at(run[0], row, sparsity)], runs
                    )
                    for sparsity, published in row.cells.items()
                }
                lines.append(Line(row, match.note if match else "", cells))
        parts.append(PartView(part, usual, tuple(lines)))
    return TableView(table, tuple(parts))


def fits(record: Record, match: Match) -> bool:
    """Return whether a record is of the method of `match`, with exactly its settings changed."""
    return bool(record["method"]["name"] == match.method and record["method"]["changed"] == match.changed)


def is_at(record: Record, row: PaperRow, sparsity: int) -> bool:
    """Return whether a record of a row belongs to its column; a dense row has the same runs in every column."""
    return row.group == "dense" or round(100 * record["sparsity"], 6) == sparsity


def name_versions(runs: list[Run]) -> list[Run]:
    """Mark the runs of earlier versions of the method's file: the version of the run finished last is compared."""
    fitting = [record for record, reasons in runs if not reasons]
    if not fitting:
        return runs
    last = max(fitting, key=lambda record: (parse_time(record["finished"]), *stable_key(record)))["method"]["sha256"]
    named = []
    for record, reasons in runs:
        sha256 = record["method"]["sha256"]
        earlier = not reasons and sha256 != last
        named.append((record, (f"earlier version of the method's file, {sha256[:8]}",) if earlier else reasons))
    return named


def make_comparison(row: PaperRow, published: Published, runs: list[Run], published_runs: int) -> Comparison:
    """Return a cell beside the runs of its row and column, without a verdict yet."""
    by_kind: dict[tuple[object, ...], list[Run]] = {}
    for record, reasons in runs:
        by_kind.setdefault((reasons, section_key(record), record["method"]["sha256"]), []).append((record, reasons))
    groups = [Group(found[0][1], gather([record for record, _ in found])) for _, found in sorted(by_kind.items())]
    compared = next((group for group in groups if not group.departures), None)
    others = tuple(group for group in groups if group.departures)
    difference = None
    if compared is not None and published.top1 is not None and not row.cited:
        grain = 100 / max(1, compared.cell.counted[0]["data"]["test"])
        difference = difference_from_published(
            compared.values("best_on_test"), published.top1, published.std, published_runs, grain
        )
    return Comparison(published, compared, others, difference)


def keyed(parts: tuple[PartView, ...]) -> Iterator[tuple[tuple[int, int, int], Comparison]]:
    """Yield every comparison with a key: part, line, column; all columns of a dense row share one key."""
    for place, view in enumerate(parts):
        for number, line in enumerate(view.lines):
            for sparsity, comparison in line.cells.items():
                yield (place, number, 0 if line.row.group == "dense" else sparsity), comparison


def judge_table(view: TableView) -> TableView:
    """Give every cell its verdict; Holm's correction is over the cells of the table that are compared."""
    found = {key: comparison.difference for key, comparison in keyed(view.parts)}
    corrected = holm({key: difference.p for key, difference in found.items() if difference is not None})
    parts = []
    for place, part in enumerate(view.parts):
        lines = []
        for number, line in enumerate(part.lines):
            cells = {}
            for sparsity, comparison in line.cells.items():
                p = corrected.get((place, number, 0 if line.row.group == "dense" else sparsity))
                verdict, reason = judge(line.row, comparison, p)
                cells[sparsity] = replace(comparison, verdict=verdict, reason=reason)
            lines.append(replace(line, cells=cells))
        parts.append(replace(part, lines=tuple(lines)))
    return TableView(view.table, tuple(parts))


def judge(row: PaperRow, comparison: Comparison, p: float | None) -> tuple[str, str]:
    """Return the verdict on a cell and, where the protocol differs, why; `p` is corrected over the table.

    Invariant: `reproduced`, `within noise`, `higher` and `lower` need two finished runs of the table's own protocol, a
    published value and a row that the paper's authors ran.
    """
    if not row.ours:
        return NOT_IN_SUITE, ""
    if comparison.compared is None:
        return (PROTOCOL_DIFFERS, "") if comparison.others else (NOT_RUN, "")
    if row.cited:
        return PROTOCOL_DIFFERS, CITED
    if comparison.published.top1 is None:
        return PROTOCOL_DIFFERS, "the paper prints no value"
    difference = comparison.difference
    if difference is None or difference.n < 2 or difference.low is None or difference.high is None:
        return TOO_FEW, ""
    if difference.low >= -MARGIN and difference.high <= MARGIN:
        return REPRODUCED, ""
    if p is not None and p <= ALPHA and difference.mean is not None:
        return (HIGHER if difference.mean > 0 else LOWER), ""
    return WITHIN_NOISE, ""
