"""The command line: `sparse-bench run | sweep | export | verify | latency | slim | methods | pages | check ...`."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmark.cli_networks import add_networks
from benchmark.errors import REFUSALS, UserError, explain
from benchmark.options import CheckpointS, DataRoot, Device, LeaderboardPage, Records, Runs, Wandb, harmless, typed
from leaderboard.privacy import hide_secrets

# Threads that wait by spinning slow a run twentyfold where another process wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs, from its start, to be repeatable
gc.set_threshold(200_000, 20, 20)  # importing torch and timm makes a million objects that all stay
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")  # of libraries, to their own authors

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
errors = Console(stderr=True)
if not console.is_terminal:  # a log file should not be folded at 80 columns
    console.width = 140


def tell(message: object) -> None:
    """Print an error a user can mend, in one paragraph and without a traceback."""
    errors.print("error:", style="bold red", end=" ")
    errors.print(harmless(message), markup=False, highlight=False, soft_wrap=True)


def guarded(action: Callable[[], Any]) -> Any:
    """Run `action`; end with status 2 and one message for a UserError or a disk that refuses."""
    try:
        return action()
    except UserError as error:
        tell(error)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        tell(explain(error))
    raise typer.Exit(2)


def train_then_rebuild(action: Callable[[], int], records: Path | None, leaderboard: Path | None) -> None:
    """Run `action`, which trains and returns how many runs failed, then rebuild every page if records came of it.

    Or if the leaderboard is not what the records give, because a process was killed before it could. A page or picture
    that cannot be made costs a warning, for the records are what counts. Ends with status 1 when a run failed, 130 when
    stopped; stopped once more while the pages are rebuilt, it ends at once.
    """
    from benchmark.run import Places
    from leaderboard.page import is_current
    from leaderboard.records import list_files

    places = Places()
    folder, page = records or places.records, leaderboard or places.page
    before = guarded(lambda: set(list_files(folder)))
    try:
        failed = guarded(action)
    except KeyboardInterrupt:
        tell("stopped; the same command goes on from the last checkpoint")
        with contextlib.suppress(KeyboardInterrupt, OSError):
            if set(list_files(folder)) - before:
                rebuild_all(folder, page)
        raise typer.Exit(130) from None
    if guarded(lambda: set(list_files(folder)) - before or not is_current(folder, page)):
        rebuild_all(folder, page)
    if failed:
        raise typer.Exit(1)


def rebuild_all(records: Path, page: Path) -> None:
    """Rebuild every page and picture; a failure is told and costs nothing else."""
    try:
        from leaderboard.build import build_all

        build_all(records, page)
    except Exception as error:
        from leaderboard.table import printable

        reason = printable(str(error))
        tell(f"every record is kept, but not every page was rebuilt ({reason}): `make leaderboard` tries again")


@app.command()
def run(
    method: Annotated[str, typer.Option(help="methods, comma-separated: names, or paths of Python files")] = "granet",
    sparsity: Annotated[str, typer.Option(help="in [0, 1), comma-separated")] = "0.9",
    task: Annotated[str, typer.Option(help="pages of configs/, comma-separated; auto chooses by device")] = "auto",
    seed: Annotated[str, typer.Option(help="whole numbers, comma-separated")] = "0",
    device: Device = "auto",
    data: DataRoot = Path("data"),
    wandb: Wandb = "off",
    args: Annotated[str, typer.Option(help="name=value settings of the page or the method")] = "",
    fresh: Annotated[bool, typer.Option(help="start over instead of continuing an interrupted run")] = False,
    records: Records = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Train a grid of methods, sparsities and seeds, one cell after the other, and update the leaderboard."""
    from benchmark.grid import run_grid  # torch and timm take seconds to import: not for --help

    def action() -> int:
        return run_grid(
            methods=method,
            sparsities=sparsity,
            tasks=task,
            seeds=seed,
            arguments=args,
            device=device,
            data_root=data,
            wandb=wandb,
            fresh=fresh,
            checkpoint_s=checkpoint_s,
            places={"records": records, "page": leaderboard, "runs": runs},
            command=typed(),
            console=console,
            tell=tell,
        )

    train_then_rebuild(action, records, leaderboard)


@app.command()
def sweep(
    file: Annotated[Path | None, typer.Argument(help="a grid file, such as configs/paper/table2.yaml")] = None,
    method: Annotated[str, typer.Option(help="of a file: only these methods; without: those to run, as of `run`")] = "",
    sparsity: Annotated[str, typer.Option(help="likewise sparsities, comma-separated")] = "",
    task: Annotated[str, typer.Option(help="likewise pages")] = "",
    seed: Annotated[str, typer.Option(help="likewise seeds")] = "",
    args: Annotated[str, typer.Option(help="without a file: name=value settings, as of `run`")] = "",
    plan: Annotated[bool, typer.Option(help="print what it costs and how far it is, and run nothing")] = False,
    engine: Annotated[str, typer.Option(help="what runs the workers: local, ray or slurm")] = "local",
    jobs: Annotated[str, typer.Option(help="number of workers, or auto; 1 on this machine: in this process")] = "1",
    per_gpu: Annotated[int, typer.Option(help="workers that share a GPU")] = 1,
    gpus: Annotated[int, typer.Option(help="with --plan: the time on so many devices of this kind (CPU: cores)")] = 0,
    engine_args: Annotated[str, typer.Option(help="key=value settings of the engine")] = "",
    retries: Annotated[int, typer.Option(help="how often a failed cell is tried again")] = 2,
    device: Device = "auto",
    data: DataRoot = Path("data"),
    wandb: Wandb = "off",
    records: Records = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Run every cell of a grid that is not finished, on as many workers as asked; several sweeps may share a grid."""
    from benchmark.engines import Pool
    from benchmark.fleet import make_fleet
    from benchmark.sweep import run_sweep

    def action() -> int:
        return run_sweep(
            file=file,
            lists={"METHOD": method, "SPARSITY": sparsity, "TASK": task, "SEED": seed},
            arguments=args,
            plan=plan,
            fleet=make_fleet(gpus, per_gpu),
            device=device,
            data_root=data,
            wandb=wandb,
            checkpoint_s=checkpoint_s,
            places={"records": records, "page": leaderboard, "runs": runs},
            pool=Pool(engine, jobs, per_gpu, engine_args, retries),
            command=typed(),
            console=console,
            tell=tell,
        )

    if plan:
        guarded(action)
    else:
        train_then_rebuild(action, records, leaderboard)


@app.command(hidden=True)
def worker(spec: Path, number: int) -> None:
    """Run the cells of a sweep as one of its workers; engines start this."""
    from benchmark.worker import work

    try:
        guarded(lambda: work(spec, number, console, tell))
    except KeyboardInterrupt:
        console.print("stopped")
        raise typer.Exit(130) from None


@app.command()
def methods() -> None:
    """List the methods: name, paper, kind and what each needs, from the code itself."""
    from benchmark.listing import print_methods

    guarded(lambda: print_methods(console))


@app.command()
def pages() -> None:
    """List the pages of configs/: name and title."""
    from benchmark.listing import print_pages

    guarded(lambda: print_pages(console))


@app.command()
def check(
    method: Annotated[str, typer.Argument(help="methods, comma-separated: names, or paths of Python files")],
) -> None:
    """Hold a method to every promise of the interface on small networks and in two processes; print what was seen."""
    from benchmark.cells import split_list
    from benchmark.conformance.report import check_methods

    if guarded(lambda: check_methods(split_list(method, "METHOD"), console)):
        raise typer.Exit(1)


@app.command()
def new_method(
    name: Annotated[str, typer.Argument(help="name of the method: a Python name in lower case")],
    folder: Annotated[Path | None, typer.Option(help="where to write it (default: methods/)")] = None,
) -> None:
    """Write a small working method file to start from."""
    from benchmark.listing import write_new_method

    guarded(lambda: write_new_method(name, folder, console))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="a run: the name of a folder of runs/, or of its record")],
    to: Annotated[Path | None, typer.Option(help="folder to write to (default: export/RUN)")] = None,
    runs: Runs = None,
) -> None:
    """Write a run's network as safetensors that timm loads, and its masks as bits; the files are verified."""
    from benchmark.export import export_to
    from benchmark.run import Places
    from benchmark.verify import load_record

    def action() -> None:
        name = str(load_record(Path(run))["run"]) if run.endswith(".json") else Path(run).name
        export_to(to, name, runs or Places().runs, console)

    guarded(action)


@app.command()
def verify(
    record: Annotated[Path, typer.Argument(help="a record: a file of leaderboard/records")],
    runs: Annotated[Path | None, typer.Option(help="folder of exported weights")] = None,
    data: DataRoot = Path("data"),
) -> None:
    """Compare a record with the network its run exported: masks, density, costs and accuracy, found again."""
    from benchmark.run import Places
    from benchmark.verify import print_findings, verify_record

    folder = runs or Places().runs
    if not guarded(lambda: print_findings(console, verify_record(record, folder, data))):
        tell(f"record {record} does not describe the network in {folder}")
        raise typer.Exit(1)


add_networks(app, console, guarded)


def main() -> None:
    """Run the command line; an unforeseen error keeps its traceback, for it is a fault of this program."""
    try:
        app()
    except Exception:  # the last resort
        print(hide_secrets(traceback.format_exc()), end="", file=sys.stderr)
        tell("this is a fault of sparse-bench, not of what you asked; please report it with the lines above")
        sys.exit(70)
