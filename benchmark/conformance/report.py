"""The verdicts as a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.config.plugins import find_method
from benchmark.conformance.checks import CHECKS, Result, run_checks
from benchmark.conformance.trial import Kit

COLOURS = {"pass": "green", "n/a": "dim", "FAIL": "bold red", "not reached": "yellow"}


def check_methods(names: Sequence[str], console: Console, only: Sequence[str] = ()) -> int:
    """Run every check, or `only` some, on each method and print its table; return how many broke a promise.

    Raises UserError for an unknown method or check.
    """
    return sum(not check_method(name, console, only) for name in names)


def check_method(name: str, console: Console, only: Sequence[str] = ()) -> bool:
    """Run every check, or `only` some, on the method called `name`, print the table, and return whether all are kept.

    Raises UserError for an unknown method or check.
    """
    plugin = find_method(name)
    kit = Kit(plugin, str(Path(name).resolve()) if name.endswith(".py") or "/" in name else name)
    began = time.monotonic()
    with console.status(f"checking {plugin.name}"):
        results = run_checks(kit, only)
    print_results(console, results)
    bad = [result for result in results if result.bad]
    silent = sum(result.verdict == "n/a" for result in results)
    kept = f"the {len(results)} checked of {len(CHECKS)}" if only else f"all {len(results)}"
    verdict = f"breaks {len(bad)} of {len(results)} promises" if bad else f"keeps {kept} promises"
    verdict += f", {silent} of which are about what it does not have" if silent and not bad else ""
    took = time.monotonic() - began
    console.print(f"{plugin.name} ({plugin.source}) {verdict}; {took:.0f} s", highlight=False, markup=False)
    return not bad


def print_results(console: Console, results: Sequence[Result]) -> None:
    """Print check, verdict, what was seen, what was expected and, where a promise is broken, how to fix it."""
    table = Table(pad_edge=False, box=None)
    columns = ["check", "verdict", "seen", "expected"]
    for column in [*columns, "how to fix it"] if any(result.bad for result in results) else columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("check", "verdict"))
    own = any(result.bad and "report it" not in result.check.mend.lower() for result in results)
    for result in results:
        colour = COLOURS[result.verdict]
        row = [result.check.name, f"[{colour}]{result.verdict}[/{colour}]"]
        mend = result.check.mend if result.bad else ""
        if own and "report it" in mend.lower():
            mend = f"mend the others first; {mend} if it stays"
        row += [escape(text) for text in (result.seen, result.check.expected, mend)]
        table.add_row(*row[: len(table.columns)])
    console.print(table)
