"""What the GraNet paper prints: its Tables 1 to 3, read from paper_tables.yaml and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from leaderboard.store.kinds import is_number
from leaderboard.store.schema import GROUPS

FILE = Path(__file__).resolve().parent / "paper_tables.yaml"
SPARSITIES = {1: (0,), 2: (90, 95, 98), 3: (80, 90)}  # of each table's columns, in percent; 0 is dense
RAN_BY = ("authors", "cited")
FROM_PAGE = "page"  # in place of a method's setting: the page's value

Settings = dict[str, Any]


class PublishedError(ValueError):
    """A data file of published numbers that breaks a rule; the message names the file, the row and the rule."""


@dataclass(frozen=True)
class Published:
    """One entry as printed: accuracies in percent, costs as multiples of dense; None if nothing is printed."""

    top1: float | None
    std: float | None
    status: str
    train_share: float | None = None
    inference_share: float | None = None


@dataclass(frozen=True)
class Match:
    """Which records belong to a row: their method, and exactly the settings that differ from the page's."""

    method: str
    changed: dict[str, Any]
    note: str = ""


@dataclass(frozen=True)
class PaperRow:
    """One row: `cells` are its entries by sparsity in percent; `ours` is empty for a method that the suite lacks."""

    label: str
    group: str
    cited: bool
    ours: tuple[Match, ...]
    cells: dict[int, Published]


@dataclass(frozen=True)
class Part:
    """The rows of a table that belong to one page of configs/; `recipe` as the paper's Table 1 prints it."""

    page: str
    model: str
    data: str
    recipe: dict[str, Any]
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables, with notes for its readers."""

    number: int
    parts: tuple[Part, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PageFacts:
    """The data and all settings of a page that a record must have to be compared with the paper."""

    title: str
    data: dict[str, Any]
    settings: Settings


@dataclass(frozen=True)
class Tables:
    """All tables; `marks` and `meanings` by status, `runs` behind each published ±, `pages` and `methods` by name.

    `methods` has each method's default settings, FROM_PAGE for those that it takes from the page.
    """

    source: str
    runs: int
    marks: dict[str, str]
    meanings: dict[str, str]
    pages: dict[str, PageFacts]
    methods: dict[str, Settings]
    tables: tuple[PaperTable, ...]


class Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, of which the library silently drops the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return the map of `node`. Raises PublishedError for a duplicate key."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise PublishedError(f"line {node.start_mark.line + 1}: '{key}' must come once, it comes twice")
        return super().construct_mapping(node, deep)


def load_tables(path: Path = FILE) -> Tables:
    """Read and check the published tables.

    Raises PublishedError naming the file, the table, the row and the broken rule. Invariant: statuses and groups are
    known, accuracies in [0, 100], every row has the columns of SPARSITIES, and no row comes twice in a part.
    """
    try:
        return make_tables(yaml.load(path.read_text(encoding="utf-8"), Loader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PublishedError(f"{path.name}: not readable as YAML: {error}") from error
    except PublishedError as error:
        raise PublishedError(f"{path.name}: {error}") from error


def make_tables(content: Any) -> Tables:
    """Return the tables of a file's content, checked."""
    names = [f"table{number}" for number in SPARSITIES]
    read_map(content, "the file", ("source", "runs", "statuses", "settings", "pages", "methods", "notes", *names))
    statuses, notes = read_map(content["statuses"], "statuses"), read_map(content["notes"], "notes")
    for name, status in statuses.items():
        read_map(status, f"statuses, {name}", ("mark", "meaning"))
    common = read_map(content["settings"], "settings")
    pages = {name: make_facts(facts, name, common) for name, facts in read_map(content["pages"], "pages").items()}
    if not is_number(content["runs"]) or content["runs"] < 2:
        refuse("the file", "runs must be a number of at least 2, of runs behind a ±", content["runs"])
    tables = tuple(
        PaperTable(
            number,
            tuple(
                make_part(part, number, statuses, pages)
                for part in read_list(content[f"table{number}"], f"table {number}")
            ),
            tuple(read_list(notes.get(f"table{number}", []), f"notes, table{number}")),
        )
        for number in SPARSITIES
    )
    found = Tables(
        source=content["source"],
        runs=content["runs"],
        marks={name: status["mark"] for name, status in statuses.items()},
        meanings={name: status["meaning"] for name, status in statuses.items()},
        pages=pages,
        methods=read_map(content["methods"], "methods"),
        tables=tables,
    )
    check_methods(found)
    return found


def check_methods(tables: Tables) -> None:
    """Refuse a row of ours with a method or setting that is not described, or a setting that no page has."""
    for name, usual in tables.methods.items():
        for setting, value in read_map(usual, f"methods, {name}").items():
            for page, facts in tables.pages.items():
                if value == FROM_PAGE and setting not in facts.settings:
                    refuse(f"methods, {name}", f"'{setting}' must be a setting of the page {page}", value)
    for table in tables.tables:
        for part in table.parts:
            for label, match in [(row.label, match) for row in part.rows for match in row.ours]:
                where = f"table {table.number}, {part.page}, row '{label}', ours"
                if match.method not in tables.methods:
                    refuse(where, "a method must be described under 'methods'", match.method)
                for setting in match.changed:
                    if setting not in tables.methods[match.method]:
                        refuse(where, f"what is changed must be a setting of '{match.method}'", setting)


def make_facts(facts: Any, name: str, common: Settings) -> PageFacts:
    """Return what the records of a page must have: its own settings over those `common` to all pages."""
    where = f"pages, {name}"
    read_map(facts, where, ("title", "data", "settings"))
    read_map(facts["data"], f"{where}, data", ("name", "classes", "train", "validation", "test"))
    own = read_map(facts["settings"], f"{where}, settings")
    return PageFacts(facts["title"], facts["data"], {**common, **own})


def make_part(part: Any, number: int, statuses: Iterable[str], pages: Iterable[str]) -> Part:
    """Return one part of table `number`, checked."""
    where = f"table {number}"
    read_map(part, where, ("page", "model", "data", "rows"), ("recipe",))
    where += f", {part['page']}"
    if part["page"] != f"{part['data']}_{part['model']}":
        refuse(where, "page must be DATA_MODEL", part["page"])
    if part["page"] not in pages:
        refuse(where, "page must be described under 'pages'", part["page"])
    rows = tuple(make_row(row, number, where, statuses) for row in read_list(part["rows"], f"{where}, rows"))
    labels = [row.label for row in rows]
    for label in labels:
        if labels.count(label) > 1:
            refuse(where, "a row must come once", label)
    matches = [(match, row.label) for row in rows for match in row.ours]
    for place, (match, label) in enumerate(matches):
        for other, other_label in matches[:place]:
            if (match.method, match.changed) == (other.method, other.changed):
                refuse(f"{where}, row '{label}'", f"'ours' must not be that of row '{other_label}'", match.method)
    return Part(part["page"], part["model"], part["data"], part.get("recipe", {}), rows)


def make_row(row: Any, number: int, where: str, statuses: Iterable[str]) -> PaperRow:
    """Return one row of table `number`, checked; `where` names its part."""
    label = row.get("label") if isinstance(row, dict) else None
    where = f"{where}, row '{label}'"
    read_map(row, where, ("label", "group", "ran_by", "ours", "cells"))
    if row["group"] not in GROUPS:
        refuse(where, f"group must be one of {', '.join(GROUPS)}", row["group"])
    if row["ran_by"] not in RAN_BY:
        refuse(where, f"ran_by must be one of {', '.join(RAN_BY)}", row["ran_by"])
    if tuple(read_map(row["cells"], f"{where}, cells")) != SPARSITIES[number]:
        refuse(where, f"cells must be {', '.join(map(str, SPARSITIES[number]))}, in this order", list(row["cells"]))
    cells = {sparsity: make_cell(cell, f"{where}, {sparsity} %", statuses) for sparsity, cell in row["cells"].items()}
    ours = tuple(make_match(match, where) for match in read_list(row["ours"], f"{where}, ours"))
    return PaperRow(row["label"], row["group"], row["ran_by"] == "cited", ours, cells)


def make_match(match: Any, where: str) -> Match:
    """Return one reading of a row, checked."""
    read_map(match, f"{where}, ours", ("method", "changed"), ("note",))
    if not isinstance(match["method"], str) or not match["method"].isidentifier():
        refuse(where, "a method of 'ours' must be the name of a file in methods/", match["method"])
    return Match(match["method"], read_map(match["changed"], f"{where}, changed"), match.get("note", ""))


def make_cell(cell: Any, where: str, statuses: Iterable[str]) -> Published:
    """Return one printed entry, checked."""
    read_map(cell, where, ("top1", "std", "status"), ("train_share", "inference_share"))
    if cell["status"] not in tuple(statuses):
        refuse(where, f"status must be one of {', '.join(statuses)}", cell["status"])
    most = {"top1": 100.0, "std": 100.0, "train_share": math.inf, "inference_share": math.inf}
    for name, largest in most.items():
        value = cell.get(name)
        if value is not None and not (is_number(value) and 0 <= value <= largest):
            rule = "in [0, 100]" if largest == 100 else "at least 0"
            refuse(where, f"{name} must be null or a number {rule}", value)
    return Published(**cell)


def read_map(
    value: Any, where: str, needed: tuple[str, ...] | None = None, allowed: tuple[str, ...] = ()
) -> dict[Any, Any]:
    """Return `value` if it is a map with all keys of `needed` and none but those and `allowed` (None: any)."""
    if not isinstance(value, dict):
        refuse(where, "must be a map", value)
    if needed is not None:
        for key in needed:
            if key not in value:
                refuse(where, f"'{key}' is missing; there is", list(value))
        for key in value:
            if key not in needed + allowed:
                refuse(where, f"no key '{key}' is known; known are {', '.join(needed + allowed)}", key)
    return value


def read_list(value: Any, where: str) -> list[Any]:
    """Return `value` if it is a list."""
    if not isinstance(value, list):
        refuse(where, "must be a list", value)
    return value


def refuse(where: str, rule: str, value: Any) -> NoReturn:
    """Raise PublishedError: `table 2, cifar10_vgg19, row 'SNIP': top1 must be …, got 193`."""
    raise PublishedError(f"{where}: {rule}, got {json.dumps(value, default=repr)}")
