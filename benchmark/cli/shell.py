"""What all commands share: the application, options, errors in one paragraph, rebuilding sheets, exit statuses."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from benchmark.base.errors import REFUSALS, UserError, explain
from benchmark.cli.ctrl_c import allow_cleanup, guard_imports, leave_at_once
from leaderboard.store.privacy import hide_secrets
from leaderboard.tables.table import printable

if TYPE_CHECKING:
    from benchmark.base.files import Places
    from benchmark.runs.run import Options

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it from its start to be deterministic
gc.set_threshold(200_000, 20, 20)  # importing torch and timm makes a million permanent objects
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")  # meant for the libraries' authors

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def main() -> None:
    """Run the command line."""
    end(app)


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, or another accelerator of torch's: cuda:1, xpu")]
DataRoot = Annotated[Path, typer.Option(help="root folder of data sets")]
Wandb = Annotated[str, typer.Option(help="off, offline or online (offline where no key is set)")]
Records = Annotated[Path | None, typer.Option(help="folder of records")]
LeaderboardPage = Annotated[Path | None, typer.Option(help="the Markdown sheet to rebuild; others lie beside it")]
Runs = Annotated[Path | None, typer.Option(help="folder of checkpoints and exported weights")]
Fresh = Annotated[bool, typer.Option(help="start over instead of continuing an interrupted run")]
CheckpointS = Annotated[float, typer.Option(help="seconds between checkpoints")]


def find_places(records: Path | None, leaderboard: Path | None, runs: Path | None = None) -> Places:
    """Return where results go: the named folders, else the usual ones. Raises UserError for an unknown home."""
    from benchmark.base.files import Places

    return Places(records or Places.records, leaderboard or Places.leaderboard, runs or Places.runs)


def find_options(device: str, places: Places, **how: Any) -> Options:
    """Return how this command runs cells. Raises UserError for a device that is unknown or absent."""
    from benchmark.base.system import choose_device
    from benchmark.runs.run import Options

    return Options(device=choose_device(device), command=typed(), places=places, **how)


def typed() -> str:
    """Return the command as typed, for records, without secrets that a shell may have put into it."""
    return "sparse-bench " + shlex.join(hide_secrets(word) for word in sys.argv[1:])


def harmless(message: object) -> str:
    """Return a message without secrets and control characters; line breaks stay."""
    text = hide_secrets(str(message))
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


class Output:
    """Standard output or standard error, as long as it is writable: a run is worth more than its log.

    If writing fails, as in `sparse-bench run | head -1` or on a full disk, it warns once and drops the rest.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        """Return any other attribute of the stream itself."""
        stream = getattr(sys, self.name)
        return getattr(getattr(stream, "rich_proxied_file", stream), attribute)

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        try:
            self.__getattr__("write")(text)
        except (OSError, AttributeError) as error:  # it is None if the shell has closed it
            self.lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        try:
            self.__getattr__("flush")()
        except (OSError, AttributeError) as error:
            self.lose(error)

    def lose(self, error: Exception) -> None:
        """Drop all output from now on, and warn if that can still be read."""
        setattr(sys, self.name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
        with contextlib.suppress(OSError):
            os.dup2(getattr(sys, self.name).fileno(), 1 if self.name == "stdout" else 2)
        if self.name == "stdout":
            reason = getattr(error, "strerror", None) or "it is closed"
            say(f"output cannot be written ({reason}); the command continues without it", "warning:", "yellow")


for stream in (sys.stdout, sys.stderr):  # what a log's encoding lacks, such as ≈, is no reason to end a run
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
console = Console(file=cast(IO[str], Output("stdout")))
errors = Console(file=cast(IO[str], Output("stderr")), stderr=True)
if not console.is_terminal:  # a log file should not be folded at 80 columns
    console.width = 140


def tell(message: object) -> None:
    """Print an error that a user can fix, in one paragraph without a traceback; of several ranks the first reports."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return say(message)
    from benchmark.distributed.launch import tell_once

    return tell_once(str(message), lambda: say(message))


def say(message: object, head: str = "error:", style: str = "bold red") -> None:
    """Print an error, or a warning, in one paragraph."""
    errors.print(head, style=style, end=" ")
    errors.print(harmless(message), markup=False, highlight=False, soft_wrap=True)


def guarded(action: Callable[[], Any]) -> Any:
    """Run `action` as `attempt` does; end with status 130 and one line on Ctrl-C."""
    try:
        return attempt(action)
    except KeyboardInterrupt:
        tell("stopped")
        raise typer.Exit(130) from None


def attempt(action: Callable[[], Any]) -> Any:
    """Run `action`; end with status 2 and one message on a UserError or a failing disk."""
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
    """Run `action`, which trains and returns how many runs failed, then rebuild every sheet if it wrote records.

    `store`: where it writes them, if not to the leaderboard's records. Sheets are also rebuilt if they do not match the
    records, because an earlier process was killed before it rebuilt them. A sheet or picture that cannot be made costs
    only a warning. Ends with status 1 if a run failed, 130 if stopped; stopped again during the rebuilding, at once.
    """
    from benchmark.base.files import expand
    from benchmark.distributed.ranks import own_rank
    from leaderboard.board.sheet import is_current
    from leaderboard.store.records import list_files

    places = attempt(lambda: find_places(records, leaderboard))
    folder, page = places.records, places.leaderboard
    store = expand(store) if store else folder
    before = guarded(lambda: list_before(store))
    try:
        failed = attempt(action)
    except KeyboardInterrupt:
        tell("stopped; the same command continues, from the last checkpoint where there is one")
        with contextlib.suppress(KeyboardInterrupt, OSError):
            if set(list_files(store)) - before:
                rebuild_all(folder, page)
        raise typer.Exit(130) from None
    if own_rank() == 0 and guarded(lambda: set(list_files(store)) - before or not is_current(folder, page)):
        rebuild_all(folder, page)
    if failed:
        raise typer.Exit(1)


def list_before(store: Path) -> set[Path]:
    """Return the files of records there are; raises UserError for a folder that is a file, or lies in one."""
    from leaderboard.store.records import list_files

    try:
        return set(list_files(store))
    except NotADirectoryError as error:
        raise UserError(f"cannot write to {store}: it is not a folder; name another one, nothing was run") from error


def rebuild_all(records: Path, page: Path) -> None:
    """Rebuild every sheet and picture; a failure only costs a warning."""
    try:
        from leaderboard.board.build import build_all

        for problem in build_all(records, page)[1][1]:
            tell(printable(f"record {problem.file} was skipped: {problem.reason}"))
    except Exception as error:
        reason = printable(str(error))
        tell(f"every record is kept, but not every sheet was rebuilt ({reason}): `make leaderboard` tries again")


def end(action: Callable[[], Any]) -> None:
    """Run `action`, a whole command, and end the process; an unexpected error keeps its traceback.

    It is a bug unless it only reports that another rank ended.
    """
    status, at_first = 0, signal.getsignal(signal.SIGINT)
    try:
        action()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except Exception as error:  # the last resort
        from benchmark.distributed.launch import LOST, is_lost

        status = LOST if is_lost(error) else 70
        if status == 70:
            print(hide_secrets(traceback.format_exc()), end="", file=sys.stderr)
            tell("internal error; please report it with the lines above")
    if at_first is leave_at_once:
        guard_imports()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from benchmark.distributed.launch import leave

        leave(status)
    sys.exit(status)
