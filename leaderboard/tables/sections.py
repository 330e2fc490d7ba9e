"""The sections of the leaderboard: which records share a table, and what it is called."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable

from leaderboard.store.records import Problem, file_stem, stable_key
from leaderboard.store.repeat import arithmetic
from leaderboard.store.schema import Record
from leaderboard.tables.table import escape

FIRST = "There is no record yet. Make the first one: `make bench METHOD=granet SPARSITY=0.9`"


def amount(number: int, noun: str) -> str:
    """Return `1 record`, `2 records`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def section_key(record: Record) -> tuple[int, str, str, str, str]:
    """Return what the records of a table share; the newest protocol sorts first."""
    page = record["page"]
    return -record["protocol"], page["name"], page["variant"], record["data"]["fingerprint"], arithmetic(record)


def section_name(record: Record) -> str:
    """Return the name of the section a record belongs to, for files: `digits_resnet20.1a2b3c4d`.

    Invariant: a visible file name of A-Z a-z 0-9 . _ - only, unique to the section.
    """
    digest = hashlib.sha256(json.dumps(section_key(record)).encode()).hexdigest()[:8]
    return f"{file_stem(record['page']['name'])[:80]}.{digest}"


def is_changed(record: Record) -> bool:
    """Return whether settings of a record's page were changed."""
    return bool(record["page"]["changed"])


def make_sections(records: list[Record]) -> list[tuple[str, list[Record]]]:
    """Return the sections, each with a unique title: by protocol, unchanged pages first."""
    groups: dict[tuple[int, str, str, str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: (is_changed(record), stable_key(record))):
        groups.setdefault(section_key(record), []).append(record)
    ordered = sorted(
        groups.values(), key=lambda runs: (-runs[0]["protocol"], is_changed(runs[0]), section_key(runs[0]))
    )
    titles = [section_title(runs[0]) for runs in ordered]
    times = Counter(titles)
    return [
        (title if times[title] == 1 else f"{title} ({identity(runs[0])})", runs)
        for title, runs in zip(titles, ordered, strict=True)
    ]


def section_title(record: Record, write: Callable[[object], str] = escape) -> str:
    """Return the title of a record's page with its changed settings; `write` escapes text.

    A start from a file is told by the hash of its weights, wherever they lie: `from weights 34064d21`.
    """
    page, changed, start = record["page"], dict(record["page"]["changed"]), ""
    if changed.get("init_sha256"):
        start = f", from weights {write(str(changed.pop('init_sha256'))[:8])}"
        changed.pop("init", None)
    elif changed.get("pretrained") is True:
        start = ", from timm's weights"
        del changed["pretrained"]
    told = [write(f"{name} = {json.dumps(value)}") for name, value in sorted(changed.items())]
    return write(page["title"]) + start + (f", with {', '.join(told)}" if told else "")


def identity(record: Record, write: Callable[[object], str] = escape) -> str:
    """Return what tells two sections with the same title apart; `write` escapes text."""
    data, page = record["data"], record["page"]
    variant, precision = write(page["variant"]), write(arithmetic(record))
    return f"protocol {record['protocol']}, variant {variant}, data {write(data['fingerprint'][:12])}, {precision}"


def description(runs: list[Record]) -> str:
    """Return the line under a section's title: page, protocol, data and devices."""
    data, epochs = runs[0]["data"], runs[0]["page"]["settings"].get("epochs")
    trained = f"{amount(epochs, 'epoch')}; " if epochs else ""
    counts = Counter(run["environment"]["device"] for run in runs)
    devices = [f"{escape(device)} ({amount(count, 'run')})" for device, count in sorted(counts.items())]
    return (
        f"Page {escape(runs[0]['page']['name'])}; {identity(runs[0])}; {trained}{escape(data['name'])}, "
        f"{data['classes']} classes, {data['train']} training, {data['validation']} validation and {data['test']} test "
        f"images; devices: {', '.join(devices)}."
    )


def skipped_files(problems: Iterable[Problem]) -> list[str]:
    """Return the lines on the files that were skipped, or none."""
    found = sorted((problem.file, problem.reason) for problem in problems)
    lines = [f"- {escape(file)}: {escape(reason)}" for file, reason in found]
    return ["", "## Skipped files", "", *lines] if lines else []
