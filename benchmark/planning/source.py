"""Where a sweep's grid comes from: a file, or lists on the command line; in a form that workers can read again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.cells import (
    choose_task,
    parse_arguments,
    parse_seed,
    parse_sparsity,
    plan_cells,
    refuse_unknown,
    split_list,
)
from benchmark.errors import UserError
from benchmark.planning.gridfile import Grid, Item, expand_grid, narrow, parse_grid, parse_task, read_text
from benchmark.plugins import find_method

USUAL = {"METHOD": "granet", "SPARSITY": "0.9", "TASK": "auto", "SEED": "0"}  # as of make bench
PARSERS: dict[str, Callable[[str], Any]] = {
    "METHOD": find_method,
    "SPARSITY": parse_sparsity,
    "TASK": parse_task,
    "SEED": parse_seed,
}


@dataclass(frozen=True)
class Source:
    """What a grid is made from: a file's text, narrowed by lists, or where `content` is None the lists alone.

    Invariant: the same source gives the same grid in every process of one version of the suite.
    """

    file: str
    content: str | None
    lists: dict[str, str]
    arguments: str = ""

    @classmethod
    def ask(cls, file: Path | None, lists: dict[str, str], arguments: str, has_gpu: bool) -> Source:
        """Return the source for what a user asked. Raises UserError where that is nothing, or ARGS for a file."""
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
        raise UserError(f"what was asked has {len(faults)} faults, and nothing was run:\n{listed}")
    if faults:
        raise UserError(faults[0])
    cells = plan_cells(lists["METHOD"], lists["SPARSITY"], lists["TASK"], lists["SEED"], arguments)
    items = [Item(cell, cell.plugin.name) for cell in cells]
    return Grid("command line", f"{lists['METHOD']} on {lists['TASK']}", items)


def find_list_faults(lists: dict[str, str], arguments: str) -> list[str]:
    """Return what is wrong with each value of the lists, and with each setting."""
    faults: dict[str, None] = {}
    parsed: dict[str, list[Any]] = {name: [] for name in PARSERS}
    for name, parse in PARSERS.items():
        try:
            parts = split_list(lists[name], name)
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
