"""`python -m benchmark.scale`: rebuild docs/scale.md, or check that it is what grids, methods and assumptions give."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from benchmark.scale.figures import Figures, ask, work_out
from benchmark.scale.sheet import make_sheet
from benchmark.sheets import DOCS, run_sheet

SHEET, FIGURES, GIVEN = "scale.md", "scale.json", "scale.yaml"  # made, worked out, written by hand


def read_figures() -> Figures:
    """Return the figures that were worked out last."""
    figures: Figures = json.loads((DOCS / FIGURES).read_text(encoding="utf-8"))
    return figures


def read_given() -> dict[str, Any]:
    """Return the assumptions."""
    given: dict[str, Any] = yaml.safe_load((DOCS / GIVEN).read_text(encoding="utf-8"))
    return given


def find_stale() -> str:
    """Return why the sheet is not up to date, or nothing. Reads, and works out no figure anew."""
    if (DOCS / SHEET).read_text(encoding="utf-8") != make_sheet(read_figures(), read_given()):
        return f"docs/{SHEET} is not what docs/{FIGURES} and docs/{GIVEN} give"
    if read_figures()["question"] != ask():
        return f"docs/{FIGURES} is of other runs than configs/paper/ asks for: a page, a method or a grid has changed"
    return ""


def rebuild() -> str:
    """Work the figures out, write them and the sheet, and return how many runs they are of."""
    figures = work_out()
    (DOCS / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (DOCS / SHEET).write_text(make_sheet(figures, read_given()), encoding="utf-8")
    return f"{sum(page['runs'] for pages in figures['tables'].values() for page in pages.values())} runs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 for a sheet that is out of date."""
    return run_sheet(arguments, "scale", find_stale, rebuild)


if __name__ == "__main__":
    sys.exit(main())
