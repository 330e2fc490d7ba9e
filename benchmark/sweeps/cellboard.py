"""The table of a sweep's cells while workers run them: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from benchmark.engines.book import FAILED, End
from benchmark.sweeps.tally import Progress, Tally, describe, share_done

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
            cells = "; ".join(f"{describe(self.tally.items[name].cell)} {figures(progress, name)}" for name in progress)
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
                escape(describe(self.tally.items[name].cell)),
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
