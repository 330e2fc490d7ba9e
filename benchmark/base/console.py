"""What a run prints while it trains and at its end, and its progress file."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmark.base.files import write_note
from leaderboard.tables.table import BLANK, count_zeros, printable
from leaderboard.tables.usage import tell_energy, tell_memory, tell_updates
from methods.core import count_kept

LIVE_S = 1.0  # seconds between two updates of the bar's figures within an epoch
WIDE = 130  # columns that the full bar and figures need
PLAIN_S = 10.0  # without a terminal: at least so many seconds between two lines


def format_flops(macs: float) -> str:
    """Return FLOPs (2 x multiply-adds) in scientific notation, such as 8.18e+09."""
    return f"{2 * macs:.3g}" if macs < 5e5 else f"{2 * macs:.2e}"


def format_time(seconds: float) -> str:
    """Return a rough time: `45 s`, `12 min`, `3.5 h`, `4.2 days`."""
    for unit, length, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.1f} {unit}" if unit == "h" else f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


class Reporter:
    """Shows a run's progress. A context manager: the bar is closed whatever happens.

    `done` is the step to continue from; `progress` a file that gets the progress too.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        epochs: int,
        steps_per_epoch: int,
        done: int = 0,
        progress: Path | None = None,
    ) -> None:
        self.console = console
        self.title = title
        self.epochs = epochs
        self.steps = epochs * steps_per_epoch
        self.first_step = self.current = done  # steps
        self.started = self.last_shown = time.monotonic()
        self.progress = ProgressFile(progress, epochs, self.steps, done) if progress else None
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if console.is_terminal:
            room = [BarColumn(bar_width=14), MofNCompleteColumn()] if console.width >= WIDE else []
            name, facts = TextColumn("[bold]{task.description}"), TextColumn("{task.fields[facts]}")
            self.bar = Progress(name, *room, facts, TimeRemainingColumn(compact=True), console=console)
            self.task = self.bar.add_task(escape(title), total=self.steps, completed=self.current, facts="")

    def __enter__(self) -> Reporter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self) -> bool:
        """Count one step; return whether it is time to show figures (fetching them waits for the device)."""
        self.current += 1
        if self.bar:
            self.bar.advance(self.task)
        if self.progress:
            self.progress.move(self.current)
        return time.monotonic() - self.last_shown >= (LIVE_S if self.bar else PLAIN_S)

    def show(self, row: dict[str, Any], images_per_s: float) -> None:
        """Show the figures of `row`, a line of the record's history, unfinished within an epoch."""
        part = "test" if row["validation_acc_pct"] is None else "validation"
        accuracy, label = row[f"{part}_acc_pct"], "test acc" if part == "test" else "val acc"
        shown = " ... " if accuracy is None else f"{accuracy:5.2f}"
        loss = " nan " if row["loss"] is None else f"{row['loss']:5.3f}"
        if self.bar and self.console.width < WIDE:
            head, cost = (
                f"{row['epoch']}/{self.epochs} loss {loss} {label} {shown}%",
                f"{row['train_share']:.2f}x FLOPs",
            )
            facts = f"{head} dens {row['density']:.3f} {cost} {images_per_s:,.0f}/s"
        else:
            facts = (
                f"epoch {row['epoch']}/{self.epochs}  loss {loss}  {label} {shown} %  density {row['density']:.4f}  "
                f"train FLOPs {row['train_share']:.3f}x  {images_per_s:,.0f} img/s"
            )
        self.note(row, images_per_s)
        now = self.last_shown = time.monotonic()
        if self.bar:
            self.bar.update(self.task, facts=facts)
        else:
            done = max(1, self.current - self.first_step)
            left = (now - self.started) / done * (self.steps - self.current)
            self.console.print(f"{self.title}  {facts}  left {left:,.0f} s", highlight=False, markup=False)

    def epoch(self, row: dict[str, Any], images_per_s: float) -> None:
        """Show the end of an epoch; without a terminal only now and then, and at the last one."""
        due = time.monotonic() - self.last_shown >= PLAIN_S
        self.note(row, images_per_s)
        if self.bar or due or row["epoch"] in (1, self.epochs):
            self.show(row, images_per_s)

    def note(self, row: dict[str, Any], images_per_s: float) -> None:
        """Keep the figures of a row for the progress file."""
        if self.progress:
            self.progress.note(row, images_per_s)


def describe_missed(record: dict[str, Any]) -> str:
    """Return how far a run's weight count, where it is an outcome, is from the requested one; empty if it is equal."""
    weights = record["weights"]
    asked = count_kept(record["sparsity"], weights["dense_prunable"])
    if record["method"]["budget"] != "outcome" or weights["active"] == asked:
        return ""
    if asked == 0:
        return "; none were asked for"
    off = 100 * (weights["active"] / asked - 1)
    return f"; {abs(off):.2f} % {'above' if off > 0 else 'below'} the {asked:,} asked for"


def print_result(console: Console, record: dict[str, Any], record_file: str, leaderboard_file: str) -> None:
    """Print the table at the end of a run."""
    accuracy, density, macs, weights = (record[key] for key in ("accuracy_pct", "density", "macs", "weights"))

    def percent(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.2f} %"

    title = f"{record['method']['label']} at sparsity {record['sparsity']:g}, seed {record['seed']}"
    table = Table(
        title=escape(printable(f"{title}: {record['page']['title']}")), title_justify="left", show_header=False
    )
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if record["status"] != "ok":
        table.add_row("status", f"[red]{record['status']}[/red] ({record['skipped_steps']} steps were not finite)")
    table.add_row("accuracy, last epoch", percent(accuracy["last_epoch"]))
    table.add_row("accuracy, selected on validation", percent(accuracy["validation_selected"]))
    table.add_row("accuracy, best on test", f"{percent(accuracy['best_on_test'])} (not for comparison)")
    prunable = f"{weights['active']:,} of {weights['dense_prunable']:,}"
    table.add_row("density, prunable weights", f"{density['prunable']:.6f} ({prunable}{describe_missed(record)})")
    if count_zeros(record):
        explained = "one that was activated and has had no gradient yet is still zero"
        table.add_row("active weights not zero", f"{weights['nonzero']:,} of {weights['active']:,} ({explained})")
    parameters = f"{weights['active_parameters']:,} of {weights['dense_parameters']:,}"
    table.add_row("density, all parameters", f"{density['all_parameters']:.6f} ({parameters})")
    names = {"inference": "inference FLOPs", "inference_slim": "inference FLOPs, slim", "train": "training FLOPs"}
    for kind, name in names.items():
        if kind in macs:
            dense = macs["train_dense" if kind == "train" else "inference_dense"]
            absolute = f"{format_flops(macs[kind])} of {format_flops(dense)}"
            table.add_row(name, f"{macs[kind] / dense:.4f} x dense ({absolute})")
    clock = record["time"]
    if "rounds" in record:
        table.add_row("rounds", f"{record['rounds']['count']} trainings; accuracies are of the last, costs of all")
    table.add_row("time", f"{clock['total_s']:.1f} s ({clock['images_per_s']:,.0f} images/s in training)")
    shown = {"mask updates": tell_updates([record], False), "peak memory": tell_memory([record], False)}
    for name, text in {**shown, "energy": tell_energy([record])}.items():
        if text != BLANK:
            table.add_row(name, escape(printable(text)))
    if record["empty_layers"]:
        table.add_row("layers left empty", escape(printable(", ".join(record["empty_layers"]))))
    table.add_row("record", escape(printable(record_file)))
    table.add_row("leaderboard", escape(printable(leaderboard_file)))
    console.print(table)


EVERY_S = 1.0


class ProgressFile:
    """Writes a run's step, epoch, images per second and accuracy so far; write errors are ignored.

    Invariant: it reads nothing from the device, so no step waits for it.
    """

    def __init__(self, path: Path, epochs: int, steps: int, first_step: int) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"epochs": epochs, "steps": steps, "first_step": first_step, "began": time.time()}
        self.due = 0.0
        self.move(first_step)

    def note(self, row: dict[str, Any], images_per_s: float) -> None:
        """Keep the figures of a line of the history for the next write."""
        accuracy = row["test_acc_pct"] if row["validation_acc_pct"] is None else row["validation_acc_pct"]
        self.facts.update(accuracy_pct=accuracy, images_per_s=images_per_s)

    def move(self, step: int) -> None:
        """Note that the run has done `step` steps; most calls only look at the clock."""
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + EVERY_S
        epoch = 1 + step * self.facts["epochs"] // self.facts["steps"]
        try:
            place = {"step": step, "epoch": min(epoch, self.facts["epochs"]), "at": time.time()}
            write_note(self.path, {**self.facts, **place})
        except OSError:
            return
