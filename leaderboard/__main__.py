"""`python -m leaderboard build | verify | claim | site | submit`: sheets and answers from the records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from leaderboard.board import build
from leaderboard.board.sheet import PICTURES, Store
from leaderboard.board.submit import submit
from leaderboard.store.records import load_store
from leaderboard.tables.sections import make_sections
from leaderboard.tables.table import printable
from leaderboard.web.wandb_session import MODES

HERE = Path(__file__).resolve().parent


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    from leaderboard.claims.claim import add_arguments

    parser = argparse.ArgumentParser(prog="python -m leaderboard", description="Sheets and answers from the records.")
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--records", type=Path, default=HERE / "records", help="folder of the records")
    places.add_argument(
        "--output", type=Path, default=None, help="the sheet to write; others beside it (default: beside the records)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("build", parents=[places], help="rebuild every sheet and picture")
    made.add_argument("--wandb", default="off", help="off, offline or online: log tables and pictures to W&B")
    made.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where W&B writes its files")
    commands.add_parser("verify", parents=[places], help="write nothing; fail if a sheet does not match the records")
    add_arguments(commands.add_parser("claim", parents=[places], help="whether one row is better than another"))
    site = commands.add_parser("site", parents=[places], help="write the leaderboard for a browser, one HTML file")
    site.add_argument("--html", type=Path, default=None, help="the file to write (default: site/index.html)")
    given = commands.add_parser(
        "submit", parents=[places], help="whether the records that a checkout adds can be merged"
    )
    given.add_argument("--base", default="", help="the commit to merge into (default: origin/main, or HEAD)")
    given.add_argument("--runs", type=Path, default=HERE.parent / "runs", help="where the runs exported their weights")
    given.add_argument("--data", type=Path, default=Path("data"), help="root folder of data sets")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 1 if `verify` finds a fault, 2 for what cannot be answered."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for a terminal that is not UTF-8
    asked = make_parser().parse_args(arguments)
    asked.output = asked.output or asked.records.parent / "LEADERBOARD.md"
    try:
        return answer(asked)
    except build.BuildError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1


def rebuild(asked: argparse.Namespace) -> Store:
    """Rebuild all sheets, print the summary and return the records."""
    summary, store = build.build_all(asked.records, asked.output)
    print(f"{asked.output.name}: {summary}")
    return store


def answer(asked: argparse.Namespace) -> int:
    """Run the command. Raises BuildError for a sheet that could not be made."""
    if asked.command == "build":
        if asked.wandb not in MODES:
            print(f"error: WANDB must be one of {', '.join(MODES)}, got '{asked.wandb}'", file=sys.stderr)
            return 2
        store = rebuild(asked)
        return log_to_wandb(asked, store) if asked.wandb != "off" else 0
    if asked.command == "verify":
        return report_faults(build.find_stale(asked.records, asked.output))
    if asked.command == "submit":
        return submit(asked.records, asked.base, asked.runs, asked.data, lambda: rebuild(asked))
    if asked.command == "site":
        target, summary = build.build_site(asked.records, asked.output, asked.html)
        print(f"wrote {target}: {summary}; open it in a browser")
        return 0
    from leaderboard.claims.claim import run

    return run(asked, load_store(asked.records)[0])


def report_faults(faults: list[str]) -> int:
    """Print the faults; return the exit status."""
    for fault in faults:
        print(printable(fault), file=sys.stderr)
    if faults:
        print("rebuild sheets with `make leaderboard`; never edit a record: restore it or run it again")
        return 1
    print("all records are intact, and all sheets and pictures match them")
    return 0


def log_to_wandb(asked: argparse.Namespace, store: Store) -> int:
    """Log the leaderboard to Weights & Biases; return the exit status."""
    from leaderboard.web.wandb_board import log_board

    done = log_board(make_sections(store[0]), asked.output.parent / PICTURES, asked.wandb, asked.runs, print)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
