"""`python -m leaderboard`: rebuild the page from the records, or check that it is up to date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from leaderboard.page import is_current, rebuild

HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 when `--check` finds a page that the records do not give."""
    parser = argparse.ArgumentParser(prog="python -m leaderboard", description="Rebuild the leaderboard from records.")
    parser.add_argument("--records", type=Path, default=HERE / "records", help="folder of the records")
    parser.add_argument("--output", type=Path, default=HERE / "LEADERBOARD.md", help="the page to write")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is out of date")
    asked = parser.parse_args(arguments)
    if asked.check:
        if is_current(asked.records, asked.output):
            print(f"{asked.output.name} is up to date")
            return 0
        print(f"{asked.output.name} is not what the records give: run make leaderboard", file=sys.stderr)
        return 1
    print(f"{asked.output.name}: {rebuild(asked.records, asked.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
