"""`python -m benchmark.recount.deviations`: rebuild or check the sheet of deviations, from docstrings and pages."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Sequence
from typing import Any

from benchmark.base.errors import UserError
from benchmark.config.pages import EVERY_METHOD, load_page, page_names
from benchmark.config.plugins import METHODS, built_in_names, find_method
from benchmark.recount.sheets import run_sheet

CODE, UNKNOWN = "authors' code", "not stated"
COLUMNS = ("point", "paper", CODE, "here", "why")
HEADER = f"Deviations ({' | '.join(COLUMNS)}):"
NOTHING = "none"
SHEET = "DEVIATIONS.md"

INTRODUCTION = """\
# Deviations

For each method: what its paper says, what its authors' code does, what this suite does, and why. Points on which all
agree are listed where codes often differ. "Not stated": the paper does not say. Of the authors' code a row says what it
does, or where it was looked for. Data and recipe belong to the page (`configs/*.yaml`) and are the same for every
method on it, but for what a page sets for single methods, by its `methods`. That is listed below each method, since
labels on the leaderboard do not show it; comments in the pages' files give reasons.

Made from the docstrings of `methods/*.py` and from `configs/*.yaml` by `make deviations`; do not edit."""


def read_rows(source: str, file: str) -> list[tuple[str, ...]]:
    """Return the rows of the section "Deviations" that ends the module docstring of `source`, a text per column.

    A row starts with "- " and continues in lines indented by two spaces; the single line "none" means no row. Raises
    UserError, naming `file` and the line, for a missing docstring, a missing or empty section and a malformed row.
    """
    module = ast.parse(source, filename=file)
    text = ast.get_docstring(module, clean=False)
    if text is None:
        raise UserError(f"{file}, line 1: there is no docstring: start the file with one that ends with '{HEADER}'")
    first, lines = module.body[0].lineno, text.splitlines()
    if HEADER not in lines:
        raise UserError(
            f"{file}, line {first + len(lines) - 1}: the module docstring must end with a section that starts with "
            f"the line '{HEADER}' (methods/README.md, \"From file to leaderboard\")"
        )
    start = lines.index(HEADER) + 1
    written = [(number, line) for number, line in enumerate(lines[start:], first + start) if line.strip()]
    if [line for _, line in written] == [NOTHING]:
        return []
    rows: list[tuple[int, str]] = []
    for number, line in written:
        if line.startswith("- "):
            rows.append((number, line[2:]))
        elif line.startswith("  ") and rows:
            begun, text = rows.pop()
            rows.append((begun, f"{text} {line.strip()}"))
        else:
            raise UserError(
                f"{file}, line {number}: '{line.strip()}' is no row: a row of the deviations starts with '- ', its "
                f"further lines with two spaces; '{NOTHING}' stands alone"
            )
    if not rows:
        raise UserError(f"{file}, line {first + start - 1}: the deviations have no row: write '{NOTHING}' under them")
    return [split_row(text, f"{file}, line {number}") for number, text in rows]


def split_row(text: str, place: str) -> tuple[str, ...]:
    """Return the columns of a row. Raises UserError, naming the place, for a malformed row.

    For the authors' code a row must say what it does, or where it was looked for.
    """
    cells = tuple(cell.strip() for cell in text.split("|"))
    if len(cells) != len(COLUMNS):
        raise UserError(f"{place}: a row must have {len(COLUMNS)} cells ({' | '.join(COLUMNS)}), got {len(cells)}")
    for column, cell in zip(COLUMNS, cells, strict=True):
        if not cell:
            raise UserError(f"{place}: the cell '{column}' of '{cells[0]}' is empty: write 'not stated' if unknown")
    if UNKNOWN in cells[COLUMNS.index(CODE)].lower():
        raise UserError(
            f"{place}: the cell '{CODE}' of '{cells[0]}' must say what the code does, or where it was looked for, got "
            f"'{UNKNOWN}': write 'not in OWNER/REPOSITORY', or 'no code was published'"
        )
    return cells


def make_section(name: str) -> str:
    """Return the part of the sheet on the built-in method `name`: reference, link to its file, table, pages."""
    file = f"{name}.py"
    parts = [f"## {name}", f"{find_method(name).cls.reference} ([methods/{file}]({file}))"]
    rows = read_rows((METHODS / file).read_text(encoding="utf-8"), f"methods/{file}")
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines) if rows else "No deviations.")
    return "\n\n".join([*parts, *tell_pages(name, "Set by pages")])


def tell_pages(name: str, head: str) -> list[str]:
    """Return one line on the settings that pages give a method, or none: a page is named with a link to its file."""
    told = []
    for page, of_methods in read_pages().items():
        words = ", ".join(f"{setting}={value}" for setting, value in of_methods.get(name, {}).items())
        told += [f"[{page}](../configs/{page}.yaml) ({words})"] if words else []
    return [f"{head}: {'; '.join(told)}."] if told else []


@functools.cache
def read_pages() -> dict[str, dict[str, Any]]:
    """Return the `methods` of every page, by name."""
    return {name: load_page(name).methods for name in page_names()}


def make_sheet() -> str:
    """Return the sheet of all built-in methods, in Markdown: a pure function of the files in `methods/`, `configs/`."""
    usual = tell_pages(EVERY_METHOD, "Set by pages for every method that takes the page's value")
    return "\n\n".join([INTRODUCTION, *usual, *(make_section(name) for name in built_in_names())]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 for a sheet that is out of date, 2 for a malformed docstring."""
    return run_sheet(arguments, "deviations", METHODS, lambda: {SHEET: make_sheet()})


if __name__ == "__main__":
    sys.exit(main())
