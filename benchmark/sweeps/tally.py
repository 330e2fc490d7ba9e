"""How a sweep stands in words: what became of its cells, how long the others will take, and the sum at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmark.cells import Cell
from benchmark.engines.book import FAILED, FOUND, IMPOSSIBLE, MADE, End
from benchmark.planning.gridfile import Grid, Item
from benchmark.planning.pace import format_time
from benchmark.planning.plan import page_of
from leaderboard.store import load_store
from leaderboard.table import printable

Say = Callable[[str], None]
Progress = Mapping[str, Mapping[str, Any]]  # of the cells in training, by name, as progress files have it


class Tally:
    """Counts what became of a grid's cells, as far as it was told."""

    def __init__(self, grid: Grid) -> None:
        self.title = grid.title
        self.items: dict[str, Item] = {item.cell.identity: item for item in grid.items}
        self.pages = {name: page_of(item.cell) for name, item in self.items.items()}
        self.ends: dict[str, End] = {}

    @property
    def left(self) -> list[str]:
        """The names of the cells of which nothing was told yet."""
        return [name for name in self.items if name not in self.ends]

    def line(self, name: str, left: str) -> str:
        """Return the line of a cell that has ended; `left` says how long the others will take."""
        end = self.ends[name]
        place = f"{len(self.ends)}/{len(self.items)}"
        rest = f"{len(self.left)} left{left}" if self.left else "none left"
        if end.state != MADE:
            return f"{place} {end.state}: {describe(self.items[name].cell)}; {rest}"
        return (
            f"{place} done: {describe(self.items[name].cell)}: {result_of(end)} in {format_time(end.seconds)}; {rest}"
        )

    def seconds_left(self, workers: int = 1, progress: Progress | None = None) -> tuple[float, bool]:
        """Return how long the open cells will take `workers` together, and whether that counts all of them.

        By the cells of the same page that were made in this sweep, and by how far those in training are.
        """
        progress = progress or {}
        means = self.means(progress)
        known, complete, longest = 0.0, True, 0.0
        for name in self.left:
            mean = means.get(self.pages[name])
            if mean is None:
                complete = False
                continue
            rest = mean * (1 - share_done(progress.get(name)))
            known, longest = known + rest, max(longest, rest)
        return max(known / max(workers, 1), longest), complete

    def means(self, progress: Progress) -> dict[tuple[str, str], float]:
        """Return the mean seconds of a cell by page; of pages without one, what those in training promise."""
        seen: dict[tuple[str, str], list[float]] = {}
        for name, end in self.ends.items():
            if end.state == MADE:
                seen.setdefault(self.pages[name], []).append(end.seconds)
        promised: dict[tuple[str, str], list[float]] = {}
        for name, facts in progress.items():
            steps = facts["step"] - facts["first_step"]
            if steps > 0 and name in self.items:
                whole = (facts["at"] - facts["began"]) * facts["steps"] / steps
                promised.setdefault(self.pages[name], []).append(whole)
        return {page: sum(times) / len(times) for page, times in {**promised, **seen}.items()}

    def time_left(self, workers: int = 1, progress: Progress | None = None) -> str:
        """Return `, about 4 min`; `, more than` where nothing is known of some page; nothing where of none."""
        seconds, complete = self.seconds_left(workers, progress)
        return f", {'about' if complete else 'more than'} {format_time(seconds)}" if seconds else ""

    def sum_up(self, records: Path, say: Say, tell: Say) -> int:
        """Print what became of the grid, each failure with its reason; return how many cells failed."""
        states = [end.state for end in self.ends.values()]
        made, before, without, failed = (states.count(state) for state in (MADE, FOUND, IMPOSSIBLE, FAILED))
        lost = f"{without} without a run to be made from, " if without else ""
        open_ones = f", {len(self.left)} not run" if self.left else ""
        say(f"{self.title}: {made} made, {before} finished already, {lost}{failed} failed{open_ones}")
        for problem in load_store(records)[1]:
            tell(printable(f"record {problem.file} was skipped: {problem.reason}"))
        for reason, names in self.group(IMPOSSIBLE).items():
            say(f"no control possible ({reason}): {'; '.join(describe(self.items[name].cell) for name in names)}")
        for reason, names in self.group(FAILED).items():
            tell(f"failed: {', '.join(names)}: {reason}")
        return failed + len(self.left)

    def group(self, state: str) -> dict[str, list[str]]:
        """Return the names of the cells that ended so, by the reason."""
        groups: dict[str, list[str]] = {}
        for name, end in self.ends.items():
            if end.state == state:
                groups.setdefault(end.reason, []).append(name)
        return groups


def describe(cell: Cell) -> str:
    """Return a cell in words: `granet at sparsity 0.9, seed 0 on digits_resnet20`."""
    sparsity = f" at sparsity {cell.sparsity:g}" if cell.sparsity else ""
    return f"{cell.label}{sparsity}, seed {cell.seed} on {cell.page_name}"


def result_of(end: End) -> str:
    """Return how a run ended: its accuracy, or that there is none."""
    if end.diverged:
        return "diverged"
    return "no accuracy" if end.accuracy_pct is None else f"{end.accuracy_pct:.2f} %"


def share_done(facts: Mapping[str, Any] | None) -> float:
    """Return the share of its steps that a cell in training has done."""
    return facts["step"] / facts["steps"] if facts and facts["steps"] else 0.0
