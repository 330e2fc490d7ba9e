"""What every command does around its work: consoles, errors in one paragraph, pages rebuilt, exit statuses."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from benchmark.errors import UserError
from leaderboard.privacy import hide_secrets

console = Console()
errors = Console(stderr=True)
if not console.is_terminal:  # a log file should not be folded at 80 columns
    console.width = 140


def tell(message: object) -> None:
    """Print an error a user can mend, in one paragraph and without a traceback; of several ranks the first speaks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return say(message)
    from benchmark.launch import tell_once

    return tell_once(str(message), lambda: say(message))


def say(message: object) -> None:
    """Print an error in one paragraph."""
    said = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in hide_secrets(str(message)))
    errors.print("error:", style="bold red", end=" ")
    errors.print(said, markup=False, highlight=False, soft_wrap=True)


def typed() -> str:
    """Return the command as it was typed, for records, without the secrets that a shell may have put into it."""
    return "sparse-bench " + shlex.join(hide_secrets(word) for word in sys.argv[1:])


def guarded(action: Callable[[], Any]) -> Any:
    """Run `action`; end with status 2 and one message for a UserError, an unwritable or full disk."""
    try:
        return action()
    except UserError as error:
        tell(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        tell(f"{error.strerror}: {error.filename or 'while writing'}; what was finished before is kept")
    raise typer.Exit(2)


def train_then_rebuild(action: Callable[[], int], records: Path | None, leaderboard: Path | None) -> None:
    """Run `action`, which trains and returns how many runs failed, then rebuild every page if records came of it.

    A page or picture that cannot be made costs a warning, for the records are what counts. Ends with status 1 when a
    run failed, 130 when stopped; stopped once more while the pages are rebuilt, it ends at once.
    """
    from benchmark.ranks import own_rank
    from benchmark.run import Places
    from leaderboard.records import list_files

    places = Places()
    folder, page = records or places.records, leaderboard or places.page
    before = set(list_files(folder))
    try:
        failed = guarded(action)
    except KeyboardInterrupt:
        tell("stopped; the same command goes on from the last checkpoint")
        with contextlib.suppress(KeyboardInterrupt):
            if set(list_files(folder)) - before:
                rebuild_all(folder, page)
        raise typer.Exit(130) from None
    if own_rank() == 0 and set(list_files(folder)) - before:
        rebuild_all(folder, page)
    if failed:
        raise typer.Exit(1)


def rebuild_all(records: Path, page: Path) -> None:
    """Rebuild every page and picture; a failure is told and costs nothing else."""
    try:
        from leaderboard.build import build_all

        build_all(records, page)
    except Exception as error:
        from leaderboard.table import printable

        reason = printable(str(error))
        tell(f"every record is kept, but not every page was rebuilt ({reason}): `make leaderboard` tries again")


def end(action: Callable[[], Any]) -> None:
    """Run `action`, a whole command, and end the process; an unforeseen error keeps its traceback.

    It is a fault of this program, unless another rank's end is all that it tells of.
    """
    status = 0
    try:
        action()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:  # the last resort
        from benchmark.launch import LOST, is_lost

        status = LOST if is_lost(error) else 70
        if status == 70:
            print(hide_secrets(traceback.format_exc()), end="", file=sys.stderr)
            tell("this is a fault of sparse-bench, not of what you asked; please report it with the lines above")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from benchmark.launch import leave

        leave(status)
    sys.exit(status)
