"""Which rows of the paper's tables are held against each other, and what the paper's cells say of each pair."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from leaderboard.paper.published import PaperRow, Part, Published, Tables

# Methods at their defaults, first less second. Few: each further pair makes every other harder to show, for p is
# corrected over all of them. Who reads the paper wants the first four.
STATEMENTS = (
    ("granet", "rigl_itop"),
    ("granet", "gmp"),
    ("granet", "snip"),
    ("granet", "static"),
    ("rigl_itop", "static"),
    ("rigl_itop", "set"),
    ("gmp", "snip"),
)
TABLES = (2, 3)  # the first of them that has both rows speaks


@dataclass(frozen=True)
class Printed:
    """What the paper prints of one row less another: in `above` of `cells` cells the first is above the second.

    `table` is None where no table has both rows; `columns` are the sparsities of the cells in percent, `middle` is the
    median difference in points. `statuses` are those of all numbers it rests on, and `cited` says whether the paper
    copied a row from another paper. Invariant: `direction` is 1 or -1 only where more than half of the cells and their
    median have that sign.
    """

    table: int | None = None
    columns: tuple[int, ...] = ()
    above: int = 0
    below: int = 0
    cells: int = 0
    middle: float | None = None
    statuses: tuple[str, ...] = ()
    cited: bool = False

    @property
    def direction(self) -> int:
        """1 where the first row is the better one in the paper, -1 where the second is, 0 where it says neither."""
        if self.middle is not None and self.middle > 0 and 2 * self.above > self.cells:
            return 1
        return -1 if self.middle is not None and self.middle < 0 and 2 * self.below > self.cells else 0


def find_printed(tables: Tables, a: str, b: str, sparsity: float) -> Printed:
    """Return what the paper prints of the rows of methods `a` and `b`, each at its defaults, at a sparsity in [0, 1).

    Where the table has no column of that sparsity, all its columns speak.
    """
    for number in TABLES:
        pairs = [pair for table in tables.tables if table.number == number for pair in find_pairs(table.parts, a, b)]
        pairs = [pair for pair in pairs if pair.one.top1 is not None and pair.other.top1 is not None]
        if pairs:
            there = [pair for pair in pairs if pair.sparsity == round(100 * sparsity, 6)] or pairs
            return summarise(number, there, tables)
    return Printed()


@dataclass(frozen=True)
class Pair:
    """Two cells of one column of one part of a table."""

    sparsity: int
    rows: tuple[PaperRow, PaperRow]
    one: Published
    other: Published


def find_pairs(parts: Iterable[Part], a: str, b: str) -> list[Pair]:
    """Return the cells of both rows, side by side, of every part of a table that has both."""
    found = []
    for part in parts:
        one, other = (find_row(part, name) for name in (a, b))
        if one is not None and other is not None:
            found += [Pair(sparsity, (one, other), cell, other.cells[sparsity]) for sparsity, cell in one.cells.items()]
    return found


def find_row(part: Part, name: str) -> PaperRow | None:
    """Return the row of a part that stands for a method at its defaults."""
    return next((row for row in part.rows for match in row.ours if match.method == name and not match.changed), None)


def summarise(number: int, pairs: list[Pair], tables: Tables) -> Printed:
    """Return what pairs of cells of one table say together."""
    # the paper prints two decimals, so a difference has two as well
    differences = [round((pair.one.top1 or 0.0) - (pair.other.top1 or 0.0), 2) for pair in pairs]
    used = {cell.status for pair in pairs for cell in (pair.one, pair.other)}
    return Printed(
        table=number,
        columns=tuple(sorted({pair.sparsity for pair in pairs})),
        above=sum(difference > 0 for difference in differences),
        below=sum(difference < 0 for difference in differences),
        cells=len(differences),
        middle=median(differences),
        statuses=tuple(status for status in tables.marks if status in used),
        cited=any(row.cited for pair in pairs for row in pair.rows),
    )
