"""The commands on the network of a finished run: `sparse-bench latency | slim`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

Run = Annotated[str, typer.Argument(help="a finished run: its name, or the file of its record")]
Batch = Annotated[str, typer.Option(help="images at once, comma-separated")]
Threads = Annotated[int | None, typer.Option(help="threads of torch (default: 1 on a CPU)")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Records = Annotated[Path | None, typer.Option(help="folder of records")]
LeaderboardPage = Annotated[Path | None, typer.Option(help="the Markdown page to rebuild; others lie beside it")]
Runs = Annotated[Path | None, typer.Option(help="folder of checkpoints and exported weights")]
DataRoot = Annotated[Path, typer.Option(help="root folder of data sets")]
To = Annotated[Path | None, typer.Option(help="folder to write to (default: slim, in the run's folder)")]


def add_networks(
    app: typer.Typer, console: Console, guarded: Callable[[Callable[[], Any]], Any], typed: Callable[[], str]
) -> None:
    """Add the commands to the command line; `guarded` tells errors a user can mend, `typed` what was asked."""

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
        from benchmark.slimming import slim_run

        places = {"records": records, "runs": runs}
        guarded(lambda: slim_run(run, to, read_request(batch, threads, device), places, data, console))
