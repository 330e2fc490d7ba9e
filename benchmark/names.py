"""Names that become folders: of runs, pages and methods, from records, plugins and the command line."""

from __future__ import annotations

import os
from pathlib import Path

from benchmark.errors import UserError
from leaderboard.records import is_reserved
from leaderboard.table import plain

LONGEST = 80  # characters of a page's or a method's name, so that the run's name, made of both, is one of a file
LONGEST_RUN = 240  # bytes; file systems take 255


def refuse_name(name: str) -> None:
    """Raise UserError for the name of a page or method that cannot be part of a run's name, a file's on any system."""
    rule = ""
    if set("<>") & set(name):  # no record may have such a name, and it would be refused at the end of the run
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
    """Return a path with `~` as the home folder; raises UserError where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"{plain(str(path))}: there is no home folder of that user; write the whole path") from None


def run_folder(runs: Path, run: str) -> Path:
    """Return the folder of a run. Raises UserError for a name that would lead elsewhere or that no folder can have.

    Records are not to be trusted: a run called `../../x` must not be looked for, let alone written, outside `runs`.
    """
    plain_name = run not in ("", ".", "..") and not set("/\\") & set(run) and run.isprintable()
    if not plain_name or len(run.encode("utf-8", "replace")) > LONGEST_RUN:
        raise UserError(f"run '{plain(run)}' must be the name of a folder of {runs}, without / and at most 240 bytes")
    return runs / run


def refuse_links(folder: Path, home: Path) -> None:
    """Raise UserError where `folder`, or an entry of it, is a link that leads out of `home`: it would be written to."""
    if not folder.exists() and not folder.is_symlink():
        return
    inside = folder.iterdir() if folder.is_dir() else ()
    for path in (folder, *inside):
        target = os.path.realpath(path)  # unlike Path.resolve, it takes a circle of links
        if path.is_symlink() and not Path(target).is_relative_to(os.path.realpath(home)):
            raise UserError(f"{path} is a link to {target}, outside {home}: nothing is written there; delete the link")
