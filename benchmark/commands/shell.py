"""What every command does around its work: consoles, errors in one paragraph, pages rebuilt, exit statuses."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import typer
from rich.console import Console

from benchmark.commands.ctrl_c import allow_cleanup, guard_imports, leave_at_once
from benchmark.commands.options import harmless
from benchmark.errors import REFUSALS, UserError, explain
from leaderboard.privacy import hide_secrets
from leaderboard.table import printable


class Output:
    """Standard output or standard error, for as long as somebody takes it: a run is worth more than its log.

    Where it cannot be written, as in `sparse-bench run | head -1` or to a full disk, that is said once and the rest is
    thrown away.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        """Whatever else is asked, the stream answers."""
        stream = getattr(sys, self.name)
        return getattr(getattr(stream, "rich_proxied_file", stream), attribute)

    def write(self, text: str) -> int:
        """Write text, or throw it away."""
        try:
            self.__getattr__("write")(text)
        except (OSError, AttributeError) as error:  # it is None where the shell has closed it
            self.lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, or throw it away."""
        try:
            self.__getattr__("flush")()
        except (OSError, AttributeError) as error:
            self.lose(error)

    def lose(self, error: Exception) -> None:
        """Throw away all that is written from now on, and say so where it is still heard."""
        setattr(sys, self.name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
        with contextlib.suppress(OSError):
            os.dup2(getattr(sys, self.name).fileno(), 1 if self.name == "stdout" else 2)
        if self.name == "stdout":
            reason = getattr(error, "strerror", None) or "it is closed"
            say(f"what is printed cannot be written ({reason}); the command goes on without it", "warning:", "yellow")


console = Console(file=cast(IO[str], Output("stdout")))
errors = Console(file=cast(IO[str], Output("stderr")), stderr=True)
if not console.is_terminal:  # a log file should not be folded at 80 columns
    console.width = 140


def tell(message: object) -> None:
    """Print an error a user can mend, in one paragraph and without a traceback; of several ranks the first speaks."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return say(message)
    from benchmark.processes.launch import tell_once

    return tell_once(str(message), lambda: say(message))


def say(message: object, head: str = "error:", style: str = "bold red") -> None:
    """Print an error, or a warning, in one paragraph."""
    errors.print(head, style=style, end=" ")
    errors.print(harmless(message), markup=False, highlight=False, soft_wrap=True)


def guarded(action: Callable[[], Any]) -> Any:
    """Run `action` as `attempt` does; end with status 130 and a word for Ctrl-C."""
    try:
        return attempt(action)
    except KeyboardInterrupt:
        tell("stopped")
        raise typer.Exit(130) from None


def attempt(action: Callable[[], Any]) -> Any:
    """Run `action`; end with status 2 and one message for a UserError or a disk that refuses."""
    allow_cleanup()
    try:
        return action()
    except UserError as error:
        tell(error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        tell(explain(error))
    raise typer.Exit(2)


def train_then_rebuild(
    action: Callable[[], int], records: Path | None, leaderboard: Path | None, store: Path | None = None
) -> None:
    """Run `action`, which trains and returns how many runs failed, then rebuild every page if records came of it.

    They come to `store`, where it is another than that of the leaderboard's records. Or if the leaderboard is not what
    the records give, because a process was killed before it could. A page or picture that cannot be made costs a
    warning, for the records are what counts. Ends with status 1 when a run failed, 130 when stopped; stopped once more
    while the pages are rebuilt, it ends at once.
    """
    from benchmark.names import expand
    from benchmark.places import Places
    from benchmark.processes.ranks import own_rank
    from leaderboard.page import is_current
    from leaderboard.records import list_files

    places = Places()
    folder, page = attempt(lambda: (expand(records or places.records), expand(leaderboard or places.page)))
    store = expand(store) if store else folder
    before = guarded(lambda: set(list_files(store)))
    try:
        failed = attempt(action)
    except KeyboardInterrupt:
        tell("stopped; the same command goes on from the last checkpoint")
        with contextlib.suppress(KeyboardInterrupt, OSError):
            if set(list_files(store)) - before:
                rebuild_all(folder, page)
        raise typer.Exit(130) from None
    if own_rank() == 0 and guarded(lambda: set(list_files(store)) - before or not is_current(folder, page)):
        rebuild_all(folder, page)
    if failed:
        raise typer.Exit(1)


def rebuild_all(records: Path, page: Path) -> None:
    """Rebuild every page and picture; a failure is told and costs nothing else."""
    try:
        from leaderboard.build import build_all

        for problem in build_all(records, page)[1][1]:
            tell(printable(f"record {problem.file} was skipped: {problem.reason}"))
    except Exception as error:
        reason = printable(str(error))
        tell(f"every record is kept, but not every page was rebuilt ({reason}): `make leaderboard` tries again")


def end(action: Callable[[], Any]) -> None:
    """Run `action`, a whole command, and end the process; an unforeseen error keeps its traceback.

    It is a fault of this program, unless another rank's end is all that it tells of.
    """
    status, at_first = 0, signal.getsignal(signal.SIGINT)
    try:
        action()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:  # the last resort
        from benchmark.processes.launch import LOST, is_lost

        status = LOST if is_lost(error) else 70
        if status == 70:
            print(hide_secrets(traceback.format_exc()), end="", file=sys.stderr)
            tell("this is a fault of sparse-bench, not of what you asked; please report it with the lines above")
    if at_first is leave_at_once:
        guard_imports()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from benchmark.processes.launch import leave

        leave(status)
    sys.exit(status)
