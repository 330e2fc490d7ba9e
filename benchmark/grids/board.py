"""The progress of a sweep: what became of its cells, and the board that shows it."""

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

PLAIN_S = 30.0  # without a terminal: at least so many seconds between two lines about the cells in training
MOST_ROWS = 20  # of cells in training shown on a terminal


class Board:
    """Shows the progress of a sweep. A context manager: the terminal is restored whatever happens."""

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
        """Print a plain line, above the table if there is one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def tell_end(self, name: str, end: End, left: str) -> None:
        """Print the line of a cell that has ended, with the first line of the reason if it failed."""
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
            cells = "; ".join(f"{self.tally.items[name]} {in_words(facts)}" for name, facts in progress.items())
            self.say(f"{self.counts(progress, running, queued)}{f': {cells}' if cells else ''}")

    def counts(self, progress: Progress, running: int, queued: int) -> str:
        """Return the number of cells in each state, the share of the work that is done, and the time left."""
        states = [end.state for end in self.tally.ends.values()]
        failed = states.count(FAILED)
        waiting = len(self.tally.left) - len(progress)
        share = (len(states) + sum(map(share_done, progress.values()))) / len(self.tally.items)
        parts = [f"{len(states) - failed} done", f"{len(progress)} running", f"{waiting} waiting", f"{failed} failed"]
        workers = f"{running} of {self.jobs} workers" + (f", {queued} queued" if queued else "")
        left = self.tally.time_left(self.jobs, progress)
        return f"{', '.join(parts)}; {share:.0%} of all{left}{' left' if left else ''}; {workers}"

    def draw(self, progress: Progress, running: int, queued: int) -> Group:
        """Return the table for a terminal: a row for each cell in training, with the counts below."""
        table = Table(box=None, pad_edge=False, title=escape(self.tally.title), title_justify="left")
        for column in ("running", "epoch", "done", "images/s", "accuracy"):
            table.add_column(column, justify="left" if column == "running" else "right", no_wrap=column != "running")
        for name in list(progress)[:MOST_ROWS]:
            table.add_row(escape(str(self.tally.items[name])), *figures(progress[name]))
        return Group(table, Text(self.counts(progress, running, queued)))


def figures(facts: Mapping[str, Any]) -> list[str]:
    """Return the progress of a cell in training: epoch, share of its steps, images/s, accuracy; empty where unknown."""
    speed, accuracy = facts.get("images_per_s"), facts.get("accuracy_pct")
    return [
        f"{facts['epoch']}/{facts['epochs']}",
        f"{share_done(facts):.0%}",
        "" if speed is None else f"{speed:,.0f}",
        "" if accuracy is None else f"{accuracy:.2f} %",
    ]


def in_words(facts: Mapping[str, Any]) -> str:
    """Return the figures of a cell in training in one line."""
    forms = ("epoch {}", "{}", "{} images/s", "{}")
    return ", ".join(form.format(figure) for form, figure in zip(forms, figures(facts), strict=True) if figure)


Say = Callable[[str], None]
Progress = Mapping[str, Mapping[str, Any]]  # of the cells in training, by name, as progress files have it


class Tally:
    """What became of a grid's cells, as far as is known."""

    def __init__(self, grid: Grid) -> None:
        self.title = grid.title
        self.items: dict[str, Item] = {item.cell.identity: item for item in grid.items}
        self.pages = {name: page_of(item.cell) for name, item in self.items.items()}
        self.ends: dict[str, End] = {}

    @property
    def left(self) -> list[str]:
        """The names of the cells that have not ended."""
        return [name for name in self.items if name not in self.ends]

    def line(self, name: str, left: str) -> str:
        """Return the line of a cell that has ended; `left` is the time left in words."""
        end = self.ends[name]
        place = f"{len(self.ends)}/{len(self.items)}"
        rest = f"{len(self.left)} left{left}" if self.left else "none left"
        if end.state != MADE:
            return f"{place} {end.state}: {self.items[name]}; {rest}"
        return f"{place} done: {self.items[name]}: {result_of(end)} in {format_time(end.seconds)}; {rest}"

    def seconds_left(self, workers: int = 1, progress: Progress | None = None) -> tuple[float, bool]:
        """Return the seconds that `workers` need for the open cells, and whether that covers all of them.

        Estimated from this sweep's finished cells of the same page and the progress of those in training.
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
        """Return the mean seconds of a cell by page, extrapolated from cells in training where none has finished."""
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
        """Return `, about 4 min`; `, more than 4 min` if a page has no estimate; empty if none has."""
        seconds, complete = self.seconds_left(workers, progress)
        return f", {'about' if complete else 'more than'} {format_time(seconds)}" if seconds else ""

    def sum_up(self, records: Path, say: Say, tell: Say, branches: bool = False) -> int:
        """Print what became of the grid, with the reason for each failure; return how many cells failed."""
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
        """Return the names of the cells that ended in `state`, by reason."""
        groups: dict[str, list[str]] = {}
        for name, end in self.ends.items():
            if end.state == state:
                groups.setdefault(end.reason, []).append(name)
        return groups


def result_of(end: End) -> str:
    """Return a run's result: its accuracy, or that it has none."""
    if end.diverged:
        return "diverged"
    return "no accuracy" if end.accuracy_pct is None else f"{end.accuracy_pct:.2f} %"


def share_done(facts: Mapping[str, Any] | None) -> float:
    """Return the share of its steps that a cell in training has done."""
    return facts["step"] / facts["steps"] if facts and facts["steps"] else 0.0
