"""Folders and files of results: safe names, writable places, files replaced atomically."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from benchmark.base import ROOT
from benchmark.base.errors import UserError
from leaderboard.board.sheet import shows_records
from leaderboard.store.files import hidden_file, write_atomically
from leaderboard.store.records import is_reserved
from leaderboard.tables.table import plain

LONGEST = 80  # characters of a page's or method's name, so that a run's name, made of both, fits a file name
LONGEST_RUN = 240  # bytes; file systems take 255


def refuse_name(name: str) -> None:
    """Raise UserError for a page's or method's name that cannot be part of a run's, a file name on any system."""
    rule = ""
    if set("<>") & set(name):  # no record may have such a name: it would be refused at the end of the run
        rule = "must not contain < or >"
    elif set("/\\:") & set(name) or not name.isprintable():
        rule = "must not contain /, \\, : or characters that cannot be seen"
    elif name.startswith(".") or is_reserved(name):
        rule = "must be the name of a visible file on any system"
    elif len(name) > LONGEST:
        rule = f"must have at most {LONGEST} characters"
    if rule:
        raise UserError(f"a name {rule}, got '{plain(name)}': rename it")


def expand(path: Path) -> Path:
    """Return a path with a leading `~` or `~user` expanded; raises UserError if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        name = plain(path.parts[0][1:])
        raise UserError(f"{plain(str(path))}: there is no home of user '{name}' here: write the path out") from None


def expand_run(name: str) -> str:
    """Return what a user typed for a run, its leading `~` expanded if it is a path from there."""
    return str(expand(Path(name))) if name.startswith("~") else name


def run_folder(runs: Path, run: str) -> Path:
    """Return the folder of a run. Raises UserError for a name that leads elsewhere or that no folder can have.

    Records are untrusted: a run called `../../x` must be neither read nor written outside `runs`.
    """
    plain_name = run not in ("", ".", "..") and not set("/\\") & set(run) and run.isprintable()
    if not plain_name or len(run.encode("utf-8", "replace")) > LONGEST_RUN:
        raise UserError(f"run '{plain(run)}' must be the name of a folder of {runs}, without / and at most 240 bytes")
    return runs / run


def refuse_links(folder: Path, home: Path) -> None:
    """Raise UserError if `folder`, or an entry of it, is a link out of `home`, through which a run would write."""
    if not folder.exists() and not folder.is_symlink():
        return
    inside = folder.iterdir() if folder.is_dir() else ()
    for path in (folder, *inside):
        target = os.path.realpath(path)  # unlike Path.resolve, it takes a circle of links
        if path.is_symlink() and not Path(target).is_relative_to(os.path.realpath(home)):
            raise UserError(f"{path} is a link to {target}, outside {home}: nothing is written there; delete the link")


@dataclass(frozen=True)
class Places:
    """Where results go: records and leaderboard are kept, `runs` holds checkpoints and exported weights.

    Where records are named alone, their sheet lies beside their folder, so that it replaces no other.
    """

    records: Path = ROOT / "leaderboard" / "records"
    leaderboard: Path = ROOT / "leaderboard" / "LEADERBOARD.md"
    runs: Path = ROOT / "runs"

    def __post_init__(self) -> None:
        if self.records is not Places.records and self.leaderboard is Places.leaderboard:
            object.__setattr__(self, "leaderboard", self.records.parent / self.leaderboard.name)
        for name, path in vars(self).items():
            object.__setattr__(self, name, expand(path))


def check_places(places: Places) -> None:
    """Raise UserError unless every folder is writable and has some space.

    A folder of records that is gone while its sheet exists is not created again: every run would be made twice.
    """
    if not places.records.exists() and shows_records(places.leaderboard, places.records):
        raise UserError(
            f"the folder of records {places.records} is gone, and {places.leaderboard} shows records of it: restore "
            "it, or delete the sheet to begin a new one; nothing was run"
        )
    for folder in (places.records, places.runs, places.leaderboard.parent):
        try:
            str(folder).encode()  # safetensors take no other names
        except UnicodeEncodeError as error:
            raise UserError(f"the path {str(folder)!r} must be valid UTF-8: name another; nothing was run") from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with hidden_file(bytes(4096), folder, durable=False):
                pass
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror or error}; nothing was run (sparse-bench: --records, "
                "--runs and --leaderboard name other places)"
            ) from error


def refuse_lockless(folder: Path) -> None:
    """Raise UserError where files cannot be locked (flock), so that two processes would train the same run."""
    path = folder / f".probe-{os.getpid()}-{secrets.token_hex(8)}.lock"  # so that nobody can plant a link there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with FileLock(path, timeout=10) as lock:  # some take a refusal for another holder
                soft = not isinstance(lock, FileLock)  # by now one that filelock falls back to, kept after a kill
        except (OSError, NotImplementedError):  # Timeout is an OSError
            soft = True
        finally:
            path.unlink(missing_ok=True)
    if soft:
        raise UserError(
            f"files in {folder} cannot be locked, so nothing would keep two processes from the same run: mount it with "
            "flock, or name a folder elsewhere with --runs; nothing was run"
        )


def write_note(path: Path, content: dict[str, Any]) -> None:
    """Replace a small JSON file atomically. It survives the process, not a power cut."""
    write_atomically(path, json.dumps(content).encode(), durable=False)


def read_note(path: Path) -> dict[str, Any] | None:
    """Return the content of such a file, or None if there is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content


def sweep(*folders: Path) -> None:
    """Delete what killed writers left in folders; the caller holds the folder's lock, so nobody else is writing."""
    for folder in folders:
        for path in folder.glob(".*"):
            with contextlib.suppress(OSError):  # NFS keeps what a reader has open
                if path.is_file():
                    path.unlink(missing_ok=True)


def show(path: Path) -> str:
    """Return a path relative to the working folder if it is inside."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
