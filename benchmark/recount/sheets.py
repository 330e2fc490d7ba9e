"""The command that rebuilds or checks a sheet made from the code, and the paragraphs of one."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmark.base.errors import UserError


def run_sheet(arguments: Sequence[str] | None, target: str, folder: Path, make: Callable[[], Mapping[str, str]]) -> int:
    """Write the files that `make` returns by name to `folder`, or compare them under `--check`: `make TARGET`.

    Returns the exit status: 1 where a file differs, 2 for a UserError.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmark.recount.{target}", description=f"What make {target} makes."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check = parser.parse_args(arguments).check
    try:
        made = make()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    names = ", ".join(made)
    if not check:
        for name, content in made.items():
            (folder / name).write_text(content, encoding="utf-8")
        print(f"wrote {names}")
        return 0
    stale = [name for name, content in made.items() if read(folder / name) != content]
    if stale:
        print(f"{', '.join(stale)}: out of date; run make {target}", file=sys.stderr)
        return 1
    print(f"up to date: {names}")
    return 0


def read(path: Path) -> str | None:
    """Return the text of a file, or None if there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else None


def wrap(text: str) -> str:
    """Return a paragraph or a list entry in lines of at most 120 characters."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
