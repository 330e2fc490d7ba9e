"""The commands on the network of a finished run: `sparse-bench latency | slim`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmark.commands.options import DataRoot, Device, LeaderboardPage, Records, Runs, typed

Run = Annotated[str, typer.Argument(help="a finished run: its name, or the file of its record")]
Batch = Annotated[str, typer.Option(help="images at once, comma-separated")]
Threads = Annotated[int | None, typer.Option(help="threads of torch (default: 1 on a CPU)")]
To = Annotated[Path | None, typer.Option(help="folder to write to (default: slim, in the run's folder)")]


def add_networks(app: typer.Typer, console: Console, guarded: Callable[[Callable[[], Any]], Any]) -> None:
    """Add the commands to the command line; `guarded` tells errors a user can mend."""

    @app.command()
    def latency(
        run: Run,
        batch: Batch = "1,64",
        threads: Threads = None,
        device: Device = "auto",
        records: Records = None,
        leaderboard: LeaderboardPage = None,
        runs: Runs = None,
    ) -> None:
        """Measure what a run's sparsity is worth on this machine, by several engines; the leaderboard shows it."""
        from benchmark.latency.report import measure_run, read_request

        places = {"records": records, "page": leaderboard, "runs": runs}
        guarded(lambda: measure_run(run, read_request(batch, threads, device), places, typed(), console))

    @app.command()
    def slim(
        run: Run,
        to: To = None,
        batch: Batch = "1,64",
        threads: Threads = None,
        device: Device = "auto",
        records: Records = None,
        runs: Runs = None,
        data: DataRoot = Path("data"),
    ) -> None:
        """Write the really smaller network of a run, without its dead filters; same outputs, counted and timed."""
        from benchmark.latency.report import read_request
        from benchmark.slim.report import slim_run

        places = {"records": records, "runs": runs}
        guarded(lambda: slim_run(run, to, read_request(batch, threads, device), places, data, console))
