"""`python -m benchmark.flops`: rebuild docs/flops.md, or check that it is what engine, conventions and tables give."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from benchmark.flops.figures import find_part, work_out
from benchmark.flops.sheet import make_sheet
from benchmark.sheets import DOCS, run_sheet
from leaderboard.paper.published import load_tables

SHEET, FIGURES, GIVEN = "flops.md", "flops.json", "flops.yaml"  # made, worked out, written by hand


def read_given() -> dict[str, Any]:
    """Return the conventions."""
    given: dict[str, Any] = yaml.safe_load((DOCS / GIVEN).read_text(encoding="utf-8"))
    return given


def make_files() -> dict[str, str]:
    """Return the content of the files that the command writes, by name, everything worked out anew: some seconds."""
    given, tables = read_given(), load_tables()
    figures = work_out(given, find_part(tables))
    return {FIGURES: json.dumps(figures, indent=1) + "\n", SHEET: make_sheet(figures, given, tables)}


def find_stale() -> str:
    """Return why the sheet is not up to date, or nothing."""
    for name, content in make_files().items():
        if (DOCS / name).read_text(encoding="utf-8") != content:
            return f"docs/{name} is not what the cost engine, docs/{GIVEN} and the published tables give"
    return ""


def rebuild() -> str:
    """Write the figures and the sheet, and return where the figures are."""
    for name, content in make_files().items():
        (DOCS / name).write_text(content, encoding="utf-8")
    return f"figures in docs/{FIGURES}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 for a sheet that is out of date."""
    return run_sheet(arguments, "flops", find_stale, rebuild)


if __name__ == "__main__":
    sys.exit(main())
