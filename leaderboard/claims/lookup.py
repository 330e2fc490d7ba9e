"""What a claim is about: two rows of one section and their common sparsities, found from what a user typed.

Nothing is guessed: ambiguous names are refused, with the names that tell them apart.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leaderboard.store.repeat import arithmetic, repeat_words, write_command
from leaderboard.store.schema import Record
from leaderboard.tables.sections import is_changed, make_sections, section_title
from leaderboard.tables.table import Entry, gather, place_runs, plain, printable, split_rows


class ClaimError(ValueError):
    """A question that cannot be answered; the message says what there is and how to ask."""


@dataclass(frozen=True)
class Side:
    """A row of the section: its name as plain text, its runs, and the settings that make more of them.

    parts: the rows of the table that share the name, if there are several.
    """

    name: str
    runs: list[Record]
    settings: Mapping[str, Any]
    parts: tuple[Side, ...] = ()

    @property
    def dense(self) -> bool:
        """Whether the row is a dense network, which can be compared at any sparsity."""
        return bool(self.runs and self.runs[0]["method"]["budget"] == "dense")

    @cached_property
    def placed(self) -> dict[float, list[Record]]:
        """The runs by sparsity, in ascending order."""
        return place_runs(self.runs)

    def sparsities(self) -> list[float]:
        """Return the sparsities at which the row has runs, in ascending order."""
        return list(self.placed)

    def at(self, sparsity: float) -> Entry:
        """Return the counted runs and repeats at a sparsity; a dense row's are the same at each."""
        return gather(self.runs if self.dense else self.placed.get(sparsity, []))

    def command(self, sparsity: float, seeds: Sequence[int]) -> str:
        """Return the command that makes runs of this row, with its settings and on its device."""
        page, method, own, device, *changes = repeat_words(self.runs[0], self.settings)
        asked = next((run["sparsity"] for run in self.placed.get(sparsity, [])), sparsity)
        return printable(
            write_command(page, method, own if self.dense else f"{asked:.15g}", device, *changes, seeds=seeds)
        )


@dataclass(frozen=True)
class Question:
    """Two rows of one section; `note` says why this section, if its page has several."""

    section: str
    runs: list[Record]
    a: Side
    b: Side
    note: str


def name_rows(runs: list[Record]) -> dict[str, Side]:
    """Return the rows of a section by name.

    If a label has several rows, of versions of its method's file, of settings that are written alike or in several
    groups, it stands for all of their runs, and `label (file 1a2b3c4d)`, `label (settings 1a2b3c4d)` or `label (group)`
    for those of one.
    """
    found, rows = split_rows(runs), {}
    times = Counter(plain(row.label) for row in found)
    for row in found:
        label = plain(row.label)
        more = row.version or (f"({row.group})" if times[label] > 1 else "")
        part = Side(f"{label} {plain(more)}".rstrip(), row.runs, row.settings)
        rows[part.name] = part
        if times[label] > 1:
            known = rows.get(label, Side(label, [], row.settings))
            rows[label] = Side(label, [*known.runs, *row.runs], row.settings, (*known.parts, part))
    return rows


def normalise(name: str) -> tuple[str, ...]:
    """Return the same for all spellings of a row: `granet (start_sparsity=0.0)`, `granet:start_sparsity=0`."""
    text, version = plain(name), ""
    if found := re.fullmatch(r"(.*?) ?(\((?:file|settings) [0-9a-f]+\).*)", text):
        text, version = found.groups()
    found = re.fullmatch(r"([^(:]*[^(: ]) *(?:\((.*)\)|:(.*))?", text)
    if found is None:
        return (text, version)
    settings = found[2] or found[3] or ""
    return (found[1], version, *sorted(normalise_setting(part) for part in settings.split(",") if part.strip()))


def normalise_setting(part: str) -> str:
    """Return `name=value` without spaces, numbers as floats."""
    key, _, value = part.partition("=")
    try:
        value = repr(float(value))
    except ValueError:
        value = value.strip().lower()
    return f"{key.strip()}={value}"


def match(asked: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that was asked for; None if none or several fit."""
    known = list(names)
    same = [name for name in known if name == plain(asked)]
    same = same or [name for name in known if normalise(name) == normalise(asked)]
    return same[0] if len(same) == 1 else None


def unknown(kind: str, asked: str, names: Iterable[str]) -> ClaimError:
    """Return the error for an unknown name, with the nearest one and all there are."""
    known = sorted(set(names))
    close = difflib.get_close_matches(plain(asked), known, n=1, cutoff=0.6)
    hint = f": did you mean '{close[0]}'?" if close else ";"
    return ClaimError(f"unknown {kind} '{plain(asked)}'{hint} with records: {', '.join(known) or 'none'}")


def marks(record: Record) -> list[str]:
    """Return the marks that tell the sections of a page apart, each as `TASK=page@mark` takes it."""
    data = record["data"]["fingerprint"][:12]
    return [plain(mark) for mark in (f"p{record['protocol']}", record["page"]["variant"], data, arithmetic(record))]


def pose(records: list[Record], a: str, b: str, task: str) -> Question:
    """Return the two rows asked for, in the one section that has both.

    `task` is a page's name; `page@mark` selects a section of the page, `auto` the only page that has both rows. If
    several sections have both, the unchanged page under the newest protocol counts. Raises ClaimError if a name is
    unknown, no section has both rows, or several remain. Invariant: all runs of the answer share protocol, page
    settings, data and precision.
    """
    sections = on_page(records, task)
    for asked in (a, b):
        names = {name for _, runs in sections for name in name_rows(runs)}
        if match(asked, names) is None:
            raise unknown("row", asked, names)
    found = [
        Question(section_title(runs[0], plain), runs, rows[one], rows[other], "")
        for _, runs in sections
        for rows in [name_rows(runs)]
        if (one := match(a, rows)) is not None and (other := match(b, rows)) is not None
    ]
    if not found:
        raise ClaimError(f"no table has both '{plain(a)}' and '{plain(b)}':\n{describe_places(sections, (a, b))}")
    pages = sorted({plain(question.runs[0]["page"]["name"]) for question in found})
    if len(pages) > 1:
        raise ClaimError(f"both rows have records on several pages: say which with TASK={' or TASK='.join(pages)}")
    return choose(found)


def on_page(records: list[Record], task: str) -> list[tuple[str, list[Record]]]:
    """Return the sections of the page `task`; all for `auto`. Raises ClaimError if there are none."""
    sections = make_sections(records)
    if not sections:
        raise ClaimError("there is no record yet: make the first one with `make bench METHOD=granet SPARSITY=0.9`")
    page, *wanted = task.split("@")
    names = {plain(runs[0]["page"]["name"]) for _, runs in sections}
    if page != "auto" and page not in names:
        raise unknown("page", page, names)
    sections = [(title, runs) for title, runs in sections if page in ("auto", plain(runs[0]["page"]["name"]))]
    for mark in wanted:
        there = {known for _, runs in sections for known in marks(runs[0])}
        if mark not in there:
            raise unknown(f"mark of page '{page}'", mark, there)
        sections = [(title, runs) for title, runs in sections if mark in marks(runs[0])]
    return sections


def choose(found: list[Question]) -> Question:
    """Return the question on the unchanged page under the newest protocol. Raises ClaimError if several remain."""
    left = [question for question in found if not is_changed(question.runs[0])] or found
    newest = max(question.runs[0]["protocol"] for question in left)
    left = [question for question in left if question.runs[0]["protocol"] == newest]
    page = plain(left[0].runs[0]["page"]["name"])
    if len(left) > 1:
        ways = "\n".join(f"  TASK={'@'.join([page, *marks(q.runs[0])[1:]])}   {q.section}" for q in left)
        raise ClaimError(f"{len(left)} tables of page '{page}' have both rows; say which by its mark:\n{ways}")
    if len(found) == 1:
        return left[0]
    changed = "with changed settings" if is_changed(left[0].runs[0]) else "as it comes"
    note = f"{len(found)} tables of page '{page}' have both rows: this one is the page {changed}, newest protocol"
    others = [question for question in found if question is not left[0]]
    note += f"; others: {', '.join('TASK=' + '@'.join([page, *marks(q.runs[0])]) for q in others)}"
    return Question(left[0].section, left[0].runs, left[0].a, left[0].b, note)


def describe_places(sections: list[tuple[str, list[Record]]], asked: tuple[str, str]) -> str:
    """Return where each row is, and for each such section the command that makes the other row's runs there."""
    lines = []
    for _, runs in sections:
        title, rows = section_title(runs[0], plain), name_rows(runs)
        for name in filter(None, (match(one, rows) for one in asked)):
            page = "@".join([plain(runs[0]["page"]["name"]), *marks(runs[0])])
            repeat = rows[name]
            seeds = sorted({run["seed"] for run in repeat.runs})
            lines.append(f"  {name} is in {title} ({page}): {repeat.command(repeat.sparsities()[0], seeds)}")
    return "\n".join([*lines, "  make the other row's runs in the same way, with another METHOD"])


def parse_sparsities(text: str) -> list[float]:
    """Return the sparsities of a list such as `0.9,0.98`, each once. Raises ClaimError for one not in [0, 1)."""
    found = []
    for word in text.split(","):
        try:
            value = float(word)
        except ValueError:
            raise ClaimError(f"SPARSITY must be numbers in [0, 1) such as 0.9,0.98, got '{plain(word)}'") from None
        if not 0 <= value < 1:
            hint = f": did you mean {value / 100:g}?" if 1 <= value < 100 else ""
            raise ClaimError(f"SPARSITY must be in [0, 1), got {value:g}{hint}")
        found.append(value)
    return list(dict.fromkeys(found))


def find_sparsities(text: str | None, a: Side, b: Side) -> list[float]:
    """Return the sparsities asked for; all that both rows have if `text` is empty.

    Raises ClaimError if a row has no run at one of them, with those there are and the command that makes the runs.
    """
    sides = [side for side in (a, b) if not side.dense]
    if not sides:
        return [0.0]
    if text is not None and text.strip():
        wanted = parse_sparsities(text)
    else:
        wanted = sorted(set.intersection(*(set(side.sparsities()) for side in sides)))
    lacking = [(side, sparsity) for side in sides for sparsity in wanted if sparsity not in side.sparsities()]
    if wanted and not lacking:
        return wanted
    there = "; ".join(f"{side.name} has {', '.join(f'{s:g}' for s in side.sparsities())}" for side in sides)
    if not wanted:
        raise ClaimError(f"the rows have no sparsity in common: {there}")
    seeds = sorted({0, 1, 2} | {run["seed"] for side in (a, b) for run in side.runs})
    commands = "\n".join(f"  {side.command(sparsity, seeds)}" for side, sparsity in lacking)
    names = ", ".join(f"{side.name} at {sparsity:g}" for side, sparsity in lacking)
    raise ClaimError(f"there is no run of {names} ({there}); make them with\n{commands}")
