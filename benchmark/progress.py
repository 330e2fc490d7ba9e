"""How far a run is, in a small file that others may read: replaced at most once a second, and never in the way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmark.notes import write_note

EVERY_S = 1.0


class ProgressFile:
    """Writes a run's step, epoch, images per second and accuracy so far; what cannot be written is left out.

    Invariant: it reads nothing from the device, so it makes no step wait.
    """

    def __init__(self, path: Path, epochs: int, steps: int, first_step: int) -> None:
        self.path = path
        self.facts: dict[str, Any] = {"epochs": epochs, "steps": steps, "first_step": first_step, "began": time.time()}
        self.due = 0.0
        self.move(first_step)

    def note(self, row: dict[str, Any], images_per_s: float) -> None:
        """Remember the figures of a line of the history, for the next time the file is written."""
        accuracy = row["test_acc_pct"] if row["validation_acc_pct"] is None else row["validation_acc_pct"]
        self.facts.update(accuracy_pct=accuracy, images_per_s=images_per_s)

    def move(self, step: int) -> None:
        """Say that the run has done so many steps; most calls only look at the clock."""
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
