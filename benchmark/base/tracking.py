"""Weights & Biases: curves and summary of a run, on request. It never stops or fails a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError
from leaderboard.store.privacy import hide_secrets
from leaderboard.web.wandb_session import FINISH_S, MODES, choose_mode, default, open_session, where_to_sync


def check_mode(mode: str) -> None:
    """Raise UserError for an unknown mode of logging."""
    if mode not in MODES:
        raise UserError(f"WANDB must be one of {', '.join(MODES)}, got '{mode}'")


def derive_id(name: str, started: datetime, alone: bool) -> str:
    """Return the W&B id of a run: the same whenever it continues, another when it is started again.

    WANDB_RUN_ID is the id if the command trains one run, and the prefix of the ids of several.
    """
    own, given = (
        hashlib.sha256(f"{name} {started.isoformat()}".encode()).hexdigest()[:16],
        os.environ.get("WANDB_RUN_ID"),
    )
    if not given:
        return own
    return given if alone else f"{given}-{own}"


class Tracker:
    """Logs to W&B until that fails, then warns once and stays silent.

    W&B's own environment variables take precedence, see `leaderboard.web.wandb_session`. `alone`: the command trains
    one run, which takes WANDB_NAME and WANDB_RUN_ID.
    """

    def __init__(self, mode: str, folder: Path, warn: Callable[[str], None], alone: bool = False) -> None:
        check_mode(mode)
        self.mode = choose_mode(mode, warn)
        self.folder = folder
        self.warn = warn
        self.alone = alone
        self.run: Any = None

    def start(
        self, name: str, group: str, config: dict[str, Any], started: datetime, history: Sequence[dict[str, Any]] = ()
    ) -> None:
        """Open a W&B run, or continue that of an interrupted run; `history` is what it had logged.

        Offline each start has a folder of its own with the same id; the last one has the whole curve.
        """
        if self.mode != "off":
            self.guard(lambda: self.open(name, group, config, started, history))

    def open(
        self, name: str, group: str, config: dict[str, Any], started: datetime, history: Sequence[dict[str, Any]]
    ) -> None:
        """Import wandb and open the run."""
        import wandb  # here, because the import alone takes a second

        given = os.environ.get("WANDB_NAME")
        self.run = open_session(
            wandb,
            self.mode,
            self.folder,
            self.warn,
            {},
            id=derive_id(name, started, self.alone),
            name=f"{given} {name}" if given and not self.alone else given or name,
            group=default("WANDB_RUN_GROUP", group),
            resume=default("WANDB_RESUME", "allow"),
            config=config,
        )
        for row in history:
            if row["step"] >= getattr(self.run, "step", 0):  # a run that continues online has the earlier ones
                self.run.log(row, step=row["step"])

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
        try:
            self.run.finish()
        except TimeoutError:
            self.warn(
                f"W&B: not everything was uploaded within {FINISH_S:.0f} s; {where_to_sync(self.run, self.folder)}"
            )

    def guard(self, action: Callable[[], Any]) -> None:
        """Run `action`; on any failure warn once and log no more."""
        try:
            action()
        except Exception as error:  # whatever fails in W&B must not cost a result
            self.warn(hide_secrets(f"W&B failed and is off for this run: {type(error).__name__}: {error}"))
            self.run = None
            self.mode = "off"
