"""Options that several commands share, and what the command line says and keeps of what was typed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from leaderboard.privacy import hide_secrets

Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
DataRoot = Annotated[Path, typer.Option(help="root folder of data sets")]
Wandb = Annotated[str, typer.Option(help="off, offline or online (offline where no key is set)")]
Records = Annotated[Path | None, typer.Option(help="folder of records")]
LeaderboardPage = Annotated[Path | None, typer.Option(help="the Markdown page to rebuild; others lie beside it")]
Runs = Annotated[Path | None, typer.Option(help="folder of checkpoints and exported weights")]
Fresh = Annotated[bool, typer.Option(help="start over instead of continuing an interrupted run")]
CheckpointS = Annotated[float, typer.Option(help="seconds between checkpoints")]


def typed() -> str:
    """Return the command as it was typed, for records, without the secrets that a shell may have put into it."""
    return "sparse-bench " + shlex.join(hide_secrets(word) for word in sys.argv[1:])


def harmless(message: object) -> str:
    """Return a message without secrets, and without what a terminal obeys; its lines stay lines."""
    text = hide_secrets(str(message))
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
