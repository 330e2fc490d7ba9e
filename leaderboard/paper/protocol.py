"""Which runs follow the protocol of a table of the paper, and in what the others depart from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from leaderboard.arithmetic import arithmetic
from leaderboard.kinds import parse_time
from leaderboard.page import section_key
from leaderboard.paper.published import FROM_PAGE, Match, PageFacts, PaperRow, Settings
from leaderboard.records import stable_key
from leaderboard.schema import Record

SAME_PAGE = {  # settings of a page that cannot change a number, and why
    "title": "how the page is called",
    "data_dir": "where the files lie; the data's fingerprint says what is in them",
    "workers": "how fast images are read; an augmented one is a function of seed, epoch and index alone",
    "allow_dense": "a permission: with it a run is made, without it none is",
}

LATER: Settings = {"conv_init": "network", "no_decay": []}  # of a page whose record is older than these settings

Run = tuple[Record, tuple[str, ...]]  # a record, and in what it departs from the table's protocol


def sort_out(records: list[Record], facts: PageFacts, newest: int) -> tuple[Record | None, list[Run]]:
    """Return a record of the protocol compared on a page, and every record with what it departs in.

    Of several data or precisions that all fit the facts, the one with most records is compared. Invariant: that choice
    is never between recipes, for a record with another setting than the facts' fits nothing.
    """
    first = [(record, departures(record, facts, newest)) for record in records]
    fitting = Counter(section_key(record) for record, reasons in first if not reasons)
    if not fitting:
        return None, first
    key = min(fitting, key=lambda key: (-fitting[key], key))
    usual = next(record for record, reasons in first if not reasons and section_key(record) == key)
    return usual, [(record, reasons or unlike(record, usual)) for record, reasons in first]


def departures(record: Record, facts: PageFacts, newest: int) -> tuple[str, ...]:
    """Return in what a record is not of the table's protocol: version, settings, data or the method's file.

    What counts is every setting of the page as the record has it, and not what was changed: a page's file may have been
    edited.
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
    """Return what of `own` is not as `wanted`, in words; further names in `own` do not count."""
    absent = sorted(wanted.keys() - own.keys())
    found = [
        f"{name} = {json.dumps(own[name])}, not {json.dumps(value)}"
        for name, value in sorted(wanted.items())
        if name in own and own[name] != value
    ]
    return found + ([f"not recorded: {', '.join(absent)}"] if absent else [])


def unlike(record: Record, usual: Record) -> tuple[str, ...]:
    """Return in what a record that fits the facts is unlike the records compared on its page."""
    found = []
    if record["page"]["variant"] != usual["page"]["variant"]:
        found.append(f"page variant {record['page']['variant']}")
    if record["data"]["fingerprint"] != usual["data"]["fingerprint"]:
        found.append(f"data fingerprint {record['data']['fingerprint'][:12]}")
    if arithmetic(record) != arithmetic(usual):
        found.append(f"precision {arithmetic(record)}")
    return tuple(found)


def runs_of(runs: Iterable[Run], row: PaperRow, match: Match, facts: PageFacts, usual: Settings) -> list[Run]:
    """Return the runs that stand for a row in one reading, each with what it departs in.

    `match.changed` finds them. It is relative to the page's file, so the settings that the method really had are held
    against the row's as well; `usual` has those that are not changed.
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

    Compared is the version with most runs in the cells of the row, a seed once; of equally many, the one that finished
    last. So a single late run, from an old checkout or a new one, does not take the others out of the comparison.
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
    """Return what decides between versions: the number of cells and seeds, then the moment of the last run."""
    last = max((parse_time(record["finished"]), *stable_key(record)) for record in records)
    return len({(record["sparsity"], record["seed"]) for record in records}), *last
