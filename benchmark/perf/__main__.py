"""Measure the suite's own speed, print it against the goals, and write the figures to results/."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.base.system import describe_environment, describe_git
from benchmark.perf.goals import Goal, find_measures, measure_alone
from benchmark.perf.report import keep

FOLDER = Path(__file__).resolve().parent
STYLES = {"pass": "green", "short": "red", "": "dim"}


def print_goals(console: Console, goals: list[Goal]) -> None:
    """Print goals as a table."""
    table = Table(box=None, pad_edge=False)
    for column in ("goal", "what", "measured", "wanted", "verdict"):
        table.add_column(column, overflow="fold", justify="right" if column in ("measured", "wanted") else "left")
    for goal in goals:
        wanted = f"{goal.relation} {goal.limit:g} {goal.unit}" if goal.relation else ""
        verdict = f"[{STYLES[goal.verdict]}]{goal.verdict}[/]"
        what = " ".join([goal.what, *(f"({goal.details[key]})" for key in ("note",) if key in goal.details)])
        table.add_row(goal.name, escape(what), f"{goal.measured:.4g} {goal.unit}", wanted, verdict)
    console.print(table)


def main() -> None:
    """Measure, print, and write results/DATE.json; a missed goal does not fail the command."""
    parser = argparse.ArgumentParser(prog="make perf", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and networks: under 3 minutes")
    parser.add_argument("--keep", action="store_true", help="keep the figures in measured.json and docs/speed.md")
    parser.add_argument("--only", default="", help="modules, comma-separated: " + ", ".join(find_measures()))
    asked = parser.parse_args()
    if asked.keep and (asked.quick or asked.only):
        parser.error("--keep needs all figures: leave out --quick and --only")
    console = Console()
    began = time.monotonic()
    results: dict[str, list[Goal]] = {}
    for name in find_measures():
        if not asked.only or name in asked.only.split(","):
            started = time.monotonic()
            results[name] = measure_alone(name, asked.quick)
            console.print(f"{name}: {time.monotonic() - started:.0f} s", style="dim")
            print_goals(console, results[name])
    goals = [goal for measured in results.values() for goal in measured]
    verdicts = [goal.verdict for goal in goals if goal.verdict]
    content = {
        "date": time.strftime("%Y-%m-%d"),
        "quick": asked.quick,
        "environment": describe_environment(torch.device("cpu"), "fp32"),
        "git": describe_git(),
        "goals": {name: [goal.as_dict() for goal in measured] for name, measured in results.items()},
    }
    path = FOLDER / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    if asked.keep:
        keep(content)
    console.print(
        f"{verdicts.count('pass')} of {len(verdicts)} goals reached in {time.monotonic() - began:.0f} s; {path}"
    )


if __name__ == "__main__":
    main()
