"""What the sheets in docs/ have in common: the command that rebuilds or checks one, and their paragraphs."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence

from benchmark import ROOT

DOCS = ROOT / "docs"


def run_sheet(
    arguments: Sequence[str] | None, target: str, find_stale: Callable[[], str], rebuild: Callable[[], str]
) -> int:
    """Run the command of the sheet docs/TARGET.md, made by `make TARGET`; return its exit status.

    `find_stale` says why the sheet is not up to date, or nothing; `rebuild` writes it and says what it holds. With
    `--check` nothing is written, and the status is 1 for a sheet that is not up to date.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmark.recount.{target}", description=f"Rebuild docs/{target}.md."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the sheet is out of date")
    if not parser.parse_args(arguments).check:
        print(f"docs/{target}.md: {rebuild()}")
        return 0
    stale = find_stale()
    if stale:
        print(f"{stale}: run make {target}", file=sys.stderr)
        return 1
    print(f"docs/{target}.md is up to date")
    return 0


def wrap(text: str) -> str:
    """Return a paragraph or an entry of a list in lines of at most 120 characters."""
    indent = "  " if text.startswith("- ") else ""
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
