"""Grids of runs: from grid files or lists on the command line to cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from benchmark.base.errors import UserError, nearest, unknown
from benchmark.base.files import expand
from benchmark.config.cells import (
    Cell,
    Item,
    ask_donor,
    choose_task,
    name_left_out,
    parse_arguments,
    parse_seed,
    parse_sparsity,
    plan_cells,
    refuse_unknown,
    split_list,
    split_methods,
)
from benchmark.config.pages import CONFIGS, page_names
from benchmark.config.plugins import ALL, Plugin, expand_name, find_method
from benchmark.config.settings import load_yaml
from methods.core import Budget, Group

LISTS = ("tasks", "sparsities", "seeds")
KEYS = ("title", *LISTS, "rows", "controls")
ROW_KEYS = ("method", "args", *LISTS)
# Controls of every row: the method, its setting that takes the row's name, and further settings. Masks shuffled
# within layers are missing, because shuffle=layers draws the masks of densities, bit for bit.
CONTROLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "densities": ("static", "densities", {}),
    "masks": ("static", "masks", {}),
    "shuffled": ("static", "masks", {"shuffle": "filters"}),
}

Value = TypeVar("Value")


@dataclass(frozen=True)
class Grid:
    """What a grid file asks for. Invariant: no cell is in it twice."""

    file: str
    title: str
    items: list[Item]


def expand_grid(path: Path, content: dict[str, Any]) -> Grid:
    """Return the cells of a grid file's content, row by row, each row's pages outermost, its controls after it.

    Raises UserError that lists every fault of the file, each with the row and the rule: an unknown key, method, page or
    setting, a value that is impossible, nothing to run. Nothing is trained or downloaded.
    """
    reader = Reader()
    items = reader.read(content)
    if reader.faults:
        number = len(reader.faults)
        listed = "\n".join(f"  {path}, {fault}" for fault in reader.faults)
        raise UserError(f"{path} has {number} fault{'' if number == 1 else 's'}, and nothing was run:\n{listed}")
    return Grid(str(path), str(content.get("title", path.stem)), items)


def read_text(path: Path) -> str:
    """Return the text of a grid file; `~` is the home folder. Raises UserError if it cannot be read."""
    path = expand(path)
    if not path.is_file():
        known = sorted(str(file.relative_to(CONFIGS.parent)) for file in CONFIGS.glob("*/*.yaml"))
        raise UserError(f"no grid file {path}: name one with GRID=file; available: {', '.join(known)}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def parse_grid(text: str, path: Path) -> dict[str, Any]:
    """Return the content of a grid file, values as written; raises UserError if it is not a map."""
    content = load_yaml(text, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a map of {', '.join(KEYS)}")
    return content


class Reader:
    """Reads the content of a grid file and collects every fault once, in order."""

    def __init__(self) -> None:
        self.faults: dict[str, None] = {}

    def fault(self, where: str, rule: object) -> None:
        """Collect a fault at `where`."""
        self.faults[f"{where}: {rule}"] = None

    def read(self, content: dict[str, Any]) -> list[Item]:
        """Return the items of a whole file."""
        self.check_keys("top", content, KEYS)
        shared = self.read_lists("top", content)
        controls = self.read_list("top", "controls", content.get("controls", []), self.parse_control, empty=True)
        rows = content.get("rows")
        if not isinstance(rows, list) or not rows:
            self.fault("top", f"rows must be a list such as [{{method: dense}}], got {rows!r}")
            return []
        items: dict[str, Item] = {}
        folders: dict[str, dict[str, int]] = {}  # of a page's images, with the first row that names each
        for number, row in enumerate(rows, 1):
            for item in self.read_row(number, row, shared, controls):
                items.setdefault(item.cell.identity, item)
                folders.setdefault(item.cell.page_name, {}).setdefault(item.cell.page.data_dir, number)
        for page, rows_by_folder in folders.items():
            if len(rows_by_folder) > 1:
                told = ", ".join(f"'{folder}' (row {number})" for folder, number in rows_by_folder.items())
                self.fault("top", f"page {page} must have one data_dir in a grid, got {told}: make a page for each")
        return list(items.values())

    def check_keys(self, where: str, found: dict[str, Any], known: tuple[str, ...]) -> None:
        """Collect a fault for every unknown key."""
        for key in found:
            if key not in known:
                self.fault(where, f"no key '{key}'{nearest(str(key), known)}; there are {', '.join(known)}")

    def read_lists(self, where: str, found: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the given ones of tasks, sparsities and seeds."""
        parsers: dict[str, Callable[[str], Any]] = {
            "tasks": parse_task,
            "sparsities": parse_sparsity,
            "seeds": parse_seed,
        }
        return {name: self.read_list(where, name, found[name], parsers[name]) for name in LISTS if name in found}

    def read_list(
        self, where: str, name: str, values: Any, parse: Callable[[str], Value], empty: bool = False
    ) -> list[Value]:
        """Return the parsed values of a list, in order and without repeats; collects a fault for each bad one."""
        if not isinstance(values, list) or not (values or empty):
            self.fault(where, f"{name} must be a list with at least one entry, got {values!r}")
            return []
        parsed: dict[Value, None] = {}
        for value in values:
            try:
                parsed[parse(str(value))] = None
            except UserError as error:
                self.fault(where, f"{name}: {error}")
        return list(parsed)

    def parse_control(self, name: str) -> str:
        """Return the name of a control; raises UserError for an unknown one."""
        if name not in CONTROLS:
            raise UserError(unknown("control", name, CONTROLS))
        return name

    def read_row(self, number: int, row: Any, shared: dict[str, list[Any]], controls: list[str]) -> Iterator[Item]:
        """Yield the items of a row: its cells, each followed by its controls."""
        where = f"row {number}"
        if not isinstance(row, dict) or not isinstance(row.get("method"), str):
            self.fault(where, f"must be a map with a method, such as {{method: granet}}, got {row!r}")
            return
        where = f"{where} ({row['method']})"
        self.check_keys(where, row, ROW_KEYS)
        lists = {**shared, **self.read_lists(where, row)}
        arguments = row.get("args", {})
        if not isinstance(arguments, dict):
            self.fault(where, f"args must be a map such as {{start_sparsity: 0.0}}, got {arguments!r}")
            return
        try:
            plugin = find_method(row["method"])
        except UserError as error:
            self.fault(where, error)
            return
        if plugin.cls.budget is Budget.DENSE:
            lists["sparsities"] = [0.0]  # it has none and runs once per seed
        for name in LISTS:
            if name not in lists:
                self.fault(where, f"no {name}: give them for this row or for the whole file")
        for cell in self.expand(where, row["method"], plugin, lists, arguments):
            # Only the seed differs, and it was checked: planning a cell for each seed would take seconds.
            beside = [made for control in controls if (made := self.make_control(where, control, cell)) is not None]
            for seed in lists["seeds"]:
                of_seed = dataclasses.replace(cell, seed=seed)
                yield Item(of_seed, plugin.name)
                yield from (Item(dataclasses.replace(made, seed=seed), plugin.name, of_seed) for made in beside)

    def expand(
        self, where: str, method: str, plugin: Plugin, lists: dict[str, list[Any]], arguments: dict[str, Any]
    ) -> Iterator[Cell]:
        """Yield the row's cells of its first seed; collects a fault for every unknown or bad setting."""
        if not self.know(where, plugin, arguments) or any(not lists.get(name) for name in LISTS):
            return
        for task, sparsity in product(lists["tasks"], lists["sparsities"]):
            yield from self.plan(where, method, task, sparsity, lists["seeds"][0], arguments)

    def know(self, where: str, plugin: Plugin, arguments: dict[str, Any]) -> bool:
        """Return whether page or method has every setting; collects a fault for each unknown one."""
        before = len(self.faults)
        for name, value in arguments.items():
            try:
                refuse_unknown({str(name).partition(".")[0]: value}, [plugin], plugin.settings())
            except UserError as error:
                self.fault(where, error)
        return len(self.faults) == before

    def plan(
        self, where: str, method: str, task: str, sparsity: float, seed: int, arguments: dict[str, Any]
    ) -> list[Cell]:
        """Return the cell of a row; after a fault, try again without the setting at fault to find the next one."""

        def attempt(arguments: dict[str, Any]) -> list[Cell] | UserError:
            try:
                cells = plan_cells(method, repr(sparsity), task, str(seed), arguments)
                for cell in cells:
                    ask_donor(cell)  # a plugin that fails here is reported here
                return cells
            except UserError as error:
                return error

        left, found = dict(arguments), attempt(arguments)
        while isinstance(found, UserError):
            self.fault(where, found)
            without = {name: attempt({key: value for key, value in left.items() if key != name}) for name in left}
            at_fault = [name for name, other in without.items() if str(other) != str(found)]
            if not at_fault:
                return []
            del left[at_fault[0]]
            found = without[at_fault[0]]
        return found if left == arguments else []

    def make_control(self, where: str, control: str, cell: Cell) -> Cell | None:
        """Return the control of a cell, on the same page, at its sparsity and seed; None if it needs none.

        Dense networks and controls have no control of their own.
        """
        if cell.method.leaderboard_group() in (Group.DENSE, Group.CONTROL):
            return None
        method, setting, others = CONTROLS[control]
        arguments = {**cell.page_changes, setting: cell.label, **others}
        made = self.plan(where, method, cell.page_name, cell.sparsity, cell.seed, arguments)
        if made and made[0].variant != cell.variant:
            self.fault(
                where, f"control '{control}' would be on another page: leave out args {sorted(cell.page_changes)}"
            )
            return None
        return made[0] if made else None


def parse_task(name: str) -> str:
    """Return the name of a page; raises UserError for an unknown one."""
    if name not in page_names():
        raise UserError(unknown("page", name, page_names()))
    return name


def narrow(grid: Grid, wanted: dict[str, str]) -> Grid:
    """Return the part of a grid that `wanted` names: METHOD, SPARSITY, TASK and SEED as comma-separated lists.

    An empty or absent list keeps everything. A control goes with its row's method; dense rows have no sparsity and
    stay. Raises UserError for a value that is not in the grid.
    """
    items = grid.items
    for name, text in wanted.items():
        if not text:
            continue
        values: list[Any] = []
        found = dict.fromkeys(VALUES[name][1](item) for item in grid.items)
        for part in split_list(text, name):
            meant = [VALUES[name][0](one) for one in (expand_name(part) if name == "METHOD" else [part])]
            if not any(value in found for value in meant):
                there = ", ".join(str(value) for value in found if value is not None)
                raise UserError(f"{name}: {part} is not in {grid.file}; it has {there}")
            values += meant
        items = [item for item in items if VALUES[name][1](item) in (*values, None)]
    if not items:
        raise UserError(f"nothing in {grid.file} matches {', '.join(f'{k}={v}' for k, v in wanted.items() if v)}")
    return dataclasses.replace(grid, items=items)


def sparsity_of(item: Item) -> float | None:
    """Return the sparsity of an item's cell, None if it has no budget."""
    return None if item.cell.plugin.cls.budget is Budget.DENSE else item.cell.sparsity


# How to parse a list that narrows a grid, and an item's value that it selects by; None is always kept.
VALUES: dict[str, tuple[Callable[[str], Any], Callable[[Item], Any]]] = {
    "METHOD": (str, lambda item: item.method),
    "SPARSITY": (parse_sparsity, sparsity_of),
    "TASK": (str, lambda item: item.cell.page_name),
    "SEED": (parse_seed, lambda item: item.cell.seed),
}


USUAL = {"METHOD": "granet", "SPARSITY": "0.9", "TASK": "auto", "SEED": "0"}  # as of make bench
PARSERS: dict[str, Callable[[str], Any]] = {
    "METHOD": find_method,
    "SPARSITY": parse_sparsity,
    "TASK": parse_task,
    "SEED": parse_seed,
}


@dataclass(frozen=True)
class Source:
    """The source of a grid: a file's text, narrowed by lists, or the lists alone if `content` is None.

    Invariant: the same source gives the same grid in every process of one version of the suite.
    """

    file: str
    content: str | None
    lists: dict[str, str]
    arguments: str = ""

    @classmethod
    def ask(cls, file: Path | None, lists: dict[str, str], arguments: str, has_gpu: bool) -> Source:
        """Return the source of a user's request. Raises UserError if that is empty, or for ARGS with a file."""
        if file is not None:
            if arguments:
                raise UserError(
                    f"ARGS go into the rows of a grid file, as `args: {{name: value}}`: write them in {file}"
                )
            return cls(str(file), read_text(file), lists)
        if not any(lists.values()):
            raise UserError(
                "nothing to sweep: name a grid file with GRID=file, or give METHOD=, SPARSITY=, TASK=, SEED="
            )
        asked = {name: lists.get(name) or usual for name, usual in USUAL.items()}
        asked["TASK"] = choose_task(asked["TASK"], has_gpu)[0]
        return cls("command line", None, asked, arguments)

    def left_out(self) -> str:
        """Return a line with the methods of METHOD=all that take none of these sparsities; empty without any."""
        if self.content is not None or self.lists["METHOD"] != ALL:
            return ""
        return name_left_out(self.lists["METHOD"], self.lists["SPARSITY"], [item.cell for item in self.grid().items])

    def grid(self) -> Grid:
        """Return the grid; raises UserError that lists every fault of it."""
        if self.content is not None:
            return narrow(expand_grid(Path(self.file), parse_grid(self.content, Path(self.file))), self.lists)
        return expand_lists(self.lists, self.arguments)

    def as_dict(self) -> dict[str, Any]:
        """Return the source as plain values."""
        return dataclasses.asdict(self)


def expand_lists(lists: dict[str, str], arguments: str) -> Grid:
    """Return the grid of all combinations of METHOD, SPARSITY, TASK and SEED, with ARGS as `make bench` takes them.

    Raises UserError that lists every fault.
    """
    faults = find_list_faults(lists, arguments)
    if len(faults) > 1:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"the request has {len(faults)} faults, and nothing was run:\n{listed}")
    if faults:
        raise UserError(faults[0])
    cells = plan_cells(lists["METHOD"], lists["SPARSITY"], lists["TASK"], lists["SEED"], arguments)
    items = [Item(cell, cell.plugin.name) for cell in cells]
    return Grid("command line", f"{lists['METHOD']} on {lists['TASK']}", items)


def find_list_faults(lists: dict[str, str], arguments: str) -> list[str]:
    """Return the faults of the lists' values and of the settings."""
    faults: dict[str, None] = {}
    parsed: dict[str, list[Any]] = {name: [] for name in PARSERS}
    for name, parse in PARSERS.items():
        try:
            parts = split_methods(lists[name]) if name == "METHOD" else split_list(lists[name], name)
        except UserError as error:
            faults[str(error)] = None
            continue
        for part in parts:
            try:
                parsed[name].append(parse(part))
            except UserError as error:
                faults[str(error)] = None
    try:
        changes = parse_arguments(arguments)
    except UserError as error:
        return [*faults, str(error)]
    of_methods = {name for plugin in parsed["METHOD"] for name in plugin.settings()}
    for key, value in changes.items():
        try:
            refuse_unknown({key: value}, parsed["METHOD"], of_methods)
        except UserError as error:
            faults[str(error)] = None
    return list(faults)
