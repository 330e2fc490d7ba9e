"""How far a sweep is: what its cells came to, and the board that shows it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from benchmark.base.console import format_time
from benchmark.config.cells import Item
from benchmark.config.grids import Grid
from benchmark.grids.predict import page_of
from benchmark.workers.book import FAILED, FOUND, IMPOSSIBLE, MADE, End
from leaderboard.store.records import load_store
from leaderboard.tables.table import printable

PLAIN_S = 30.0  # where there is no terminal: seconds between two lines about the cells in training, at least
MOST_ROWS = 20  # of cells in training that are shown on a terminal


class Board:
    """Shows how the cells of a sweep stand. A context manager: the terminal is given back whatever happens."""

    def __init__(self, console: Console, tally: Tally, jobs: int) -> None:
        self.console, self.tally, self.jobs = console, tally, jobs
        self.last_shown = time.monotonic()
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a plain line, above the table where there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def tell_end(self, name: str, end: End, left: str) -> None:
        """Print the line of a cell that has ended; of a failure the first line of its reason too."""
        line = self.tally.line(name, left)
        if end.state == FAILED:
            lines = end.reason.strip().splitlines() or [""]
            line = f"{line}: {lines[-1] if lines[0].startswith('Traceback') else lines[0]}"
        self.say(line)

    def show(self, progress: Progress, running: int, queued: int) -> None:
        """Show the cells in training and the counts of all others."""
        if self.live:
            self.live.update(self.draw(progress, running, queued), refresh=True)
        elif time.monotonic() - self.last_shown >= PLAIN_S:
            self.last_shown = time.monotonic()
            cells = "; ".join(f"{self.tally.items[name]} {figures(progress, name)}" for name in progress)
            self.say(f"{self.counts(progress, running, queued)}{f': {cells}' if cells else ''}")

    def counts(self, progress: Progress, running: int, queued: int) -> str:
        """Return how many cells are in which state, the share of the whole that is done, and the time left."""
        states = [end.state for end in self.tally.ends.values()]
        failed = states.count(FAILED)
        waiting = len(self.tally.left) - len(progress)
        share = (len(states) + sum(map(share_done, progress.values()))) / len(self.tally.items)
        parts = [f"{len(states) - failed} done", f"{len(progress)} running", f"{waiting} waiting", f"{failed} failed"]
        workers = f"{running} of {self.jobs} workers" + (f", {queued} queued" if queued else "")
        left = self.tally.time_left(self.jobs, progress)
        return f"{', '.join(parts)}; {share:.0%} of all{left}{' left' if left else ''}; {workers}"

    def draw(self, progress: Progress, running: int, queued: int) -> Group:
        """Return the table for a terminal: a row for each cell in training, and the counts under it."""
        table = Table(box=None, pad_edge=False, title=escape(self.tally.title), title_justify="left")
        for column in ("running", "epoch", "done", "images/s", "accuracy"):
            table.add_column(column, justify="left" if column == "running" else "right", no_wrap=column != "running")
        for name in list(progress)[:MOST_ROWS]:
            facts = progress[name]
            table.add_row(
                escape(str(self.tally.items[name])),
                f"{facts['epoch']}/{facts['epochs']}",
                f"{share_done(facts):.0%}",
                speed_of(facts.get("images_per_s")),
                accuracy_of(facts.get("accuracy_pct")),
            )
        return Group(table, Text(self.counts(progress, running, queued)))


def figures(progress: Progress, name: str) -> str:
    """Return how far a cell in training is, in words."""
    facts = progress[name]
    parts = [f"epoch {facts['epoch']}/{facts['epochs']}", f"{share_done(facts):.0%}"]
    if facts.get("images_per_s") is not None:
        parts.append(f"{speed_of(facts['images_per_s'])} images/s")
    if facts.get("accuracy_pct") is not None:
        parts.append(accuracy_of(facts["accuracy_pct"]))
    return ", ".join(parts)


def speed_of(images_per_s: float | None) -> str:
    """Return images per second as shown; nothing before the first epoch has ended."""
    return "" if images_per_s is None else f"{images_per_s:,.0f}"


def accuracy_of(accuracy_pct: float | None) -> str:
    """Return the accuracy so far as shown; nothing before the first evaluation."""
    return "" if accuracy_pct is None else f"{accuracy_pct:.2f} %"


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
            return f"{place} {end.state}: {self.items[name]}; {rest}"
        return f"{place} done: {self.items[name]}: {result_of(end)} in {format_time(end.seconds)}; {rest}"

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

    def sum_up(self, records: Path, say: Say, tell: Say, branches: bool = False) -> int:
        """Print what became of the grid, each failure with its reason; return how many cells failed."""
        states = [end.state for end in self.ends.values()]
        made, before, without, failed = (states.count(state) for state in (MADE, FOUND, IMPOSSIBLE, FAILED))
        lost = f"{without} without a run to be made from, " if without else ""
        open_ones = f", {len(self.left)} not run" if self.left else ""
        say(f"{self.title}: {made} made, {before} finished already, {lost}{failed} failed{open_ones}")
        for problem in load_store(records, branches)[1]:
            tell(printable(f"record {problem.file} was skipped: {problem.reason}"))
        for reason, names in self.group(IMPOSSIBLE).items():
            say(f"no control possible ({reason}): {'; '.join(str(self.items[name]) for name in names)}")
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


def result_of(end: End) -> str:
    """Return how a run ended: its accuracy, or that there is none."""
    if end.diverged:
        return "diverged"
    return "no accuracy" if end.accuracy_pct is None else f"{end.accuracy_pct:.2f} %"


def share_done(facts: Mapping[str, Any] | None) -> float:
    """Return the share of its steps that a cell in training has done."""
    return facts["step"] / facts["steps"] if facts and facts["steps"] else 0.0
