"""The folders that results go to, before the first batch: there, writable, and those that were meant."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmark.environment import ROOT
from benchmark.errors import UserError
from benchmark.names import expand
from leaderboard.page import shows_records


@dataclass(frozen=True)
class Places:
    """Where results go: records and leaderboard are kept, `runs` holds checkpoints and exported weights."""

    records: Path = ROOT / "leaderboard" / "records"
    page: Path = ROOT / "leaderboard" / "LEADERBOARD.md"
    runs: Path = ROOT / "runs"

    def __post_init__(self) -> None:
        for name, path in vars(self).items():
            object.__setattr__(self, name, expand(path))


def expand_home(path: Path) -> Path:
    """Return the path with a leading ~ or ~user replaced; raises UserError for a user who has no home here."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no home of user '{path.parts[0][1:]}' here: write the path out") from error


def check_places(places: Places) -> None:
    """Raise UserError unless every folder can be written and has room for a checkpoint.

    A folder of records that is gone while its page is there is not made anew: every run would be made a second time.
    """
    if not places.records.exists() and shows_records(places.page, places.records):
        raise UserError(
            f"the folder of records {places.records} is gone, and {places.page} shows records of it: bring it back, or "
            "delete the page to begin a new one; nothing was run"
        )
    for folder in (places.records, places.runs, places.page.parent):
        probe = folder / f".probe-{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.unlink(missing_ok=True)
            with probe.open("xb") as file:  # never through a link that someone put there
                file.write(b"\0" * 4096)
            probe.unlink()
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}; nothing was run") from error
