"""Weights & Biases: curves and summary of a run when asked. It never stops or fails a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark.errors import UserError
from leaderboard.privacy import hide_secrets

MODES = ("off", "offline", "online")


def check_mode(mode: str) -> None:
    """Raise UserError for a way of logging that there is not."""
    if mode not in MODES:
        raise UserError(f"WANDB must be one of {', '.join(MODES)}, got '{mode}'")


class Tracker:
    """Logs to W&B while it works and goes silent, after one warning, the first time it does not."""

    def __init__(self, mode: str, folder: Path, warn: Callable[[str], None]) -> None:
        check_mode(mode)
        self.mode = mode
        self.folder = folder
        self.warn = warn
        self.run: Any = None

    def start(self, name: str, group: str, config: dict[str, Any]) -> None:
        """Open a W&B run; online without a key becomes offline."""
        if self.mode != "off":
            self.guard(lambda: self.open(name, group, config))

    def open(self, name: str, group: str, config: dict[str, Any]) -> None:
        """Import wandb and open the run."""
        import wandb  # here, because the import alone takes a second

        mode = self.mode
        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
            self.warn("W&B: no key is set, so the run is logged offline (wandb sync uploads it later)")
            mode = "offline"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project="sparse-bench",
            name=name,
            group=group,
            config=config,
            dir=str(self.folder),
            mode="online" if mode == "online" else "offline",
            # The command line and the machine would be kept, and with them whatever secret a script put there.
            settings=wandb.Settings(
                init_timeout=60, silent=True, console="off", disable_code=True, x_disable_meta=True
            ),
        )

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log one point of the curves."""
        if self.run is not None:
            self.guard(lambda: self.run.log(values, step=step))

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary and close the run."""
        if self.run is not None:
            self.guard(lambda: self.close(summary))
            self.run = None

    def close(self, summary: dict[str, Any]) -> None:
        """Hand the summary over and wait for W&B to finish."""
        self.run.summary.update(summary)
        self.run.finish()

    def guard(self, action: Callable[[], Any]) -> None:
        """Run `action`; on any failure warn once and log no more."""
        try:
            action()
        except Exception as error:  # W&B's failures are many and none may cost a result
            self.warn(hide_secrets(f"W&B failed and is off for this run: {type(error).__name__}: {error}"))
            self.run = None
            self.mode = "off"
