"""The command line: `sparse-bench run | sweep | export | verify | latency | slim | methods | pages | check ...`."""

from __future__ import annotations

import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.networks import add_networks
from benchmark.commands.options import (
    CheckpointS,
    DataRoot,
    Device,
    Fresh,
    LeaderboardPage,
    Records,
    Runs,
    Wandb,
    typed,
)
from benchmark.commands.shell import console, end, guarded, tell, train_then_rebuild

# Threads that wait by spinning slow a run twentyfold where another process wants the same cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs, from its start, to be repeatable
gc.set_threshold(200_000, 20, 20)  # importing torch and timm makes a million objects that all stay
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\..*")  # of libraries, to their own authors

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


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
    fresh: Fresh = False,
    snapshots: Annotated[str, typer.Option(help="epochs after which a snapshot is kept, to branch from: 5,10")] = "",
    records: Records = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
    ranks: Annotated[int, typer.Option(min=1, help="processes that train each run together; on GPUs one GPU each")] = 1,
) -> None:
    """Train a grid of methods, sparsities and seeds, one cell after the other, and update the leaderboard."""
    # here and below, not at the top: torch and timm take seconds to import, and --help needs neither
    from benchmark.processes.launch import is_launched, join, launch

    if ranks > 1 and not is_launched():
        raise typer.Exit(guarded(lambda: launch(ranks, device, sys.argv[1:], tell)))
    from benchmark.grid import run_grid
    from benchmark.processes.ranks import own_rank

    def action() -> int:
        join(ranks, device)
        if own_rank():
            console.file = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
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
            snapshots=snapshots,
            checkpoint_s=checkpoint_s,
            places={"records": records, "page": leaderboard, "runs": runs},
            command=typed(),
            console=console,
            tell=tell if own_rank() == 0 else lambda message: None,
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
    from benchmark.planning.fleet import make_fleet
    from benchmark.sweeps.sweep import run_sweep

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
    from benchmark.sweeps.worker import work

    guarded(lambda: work(spec, number, console, tell))


@app.command()
def methods() -> None:
    """List the methods: name, paper, kind and what each needs, from the code itself."""
    from benchmark.commands.listing import print_methods

    guarded(lambda: print_methods(console))


@app.command()
def pages() -> None:
    """List the pages of configs/: name and title."""
    from benchmark.commands.listing import print_pages

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
    from benchmark.commands.listing import write_new_method

    guarded(lambda: write_new_method(name, folder, console))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="a run: the name of a folder of runs/, or of its record")],
    to: Annotated[Path | None, typer.Option(help="folder to write to (default: export/RUN)")] = None,
    runs: Runs = None,
) -> None:
    """Write a run's network as safetensors that timm loads, and its masks as bits; the files are verified."""
    from benchmark.export import export_to
    from benchmark.places import Places
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
    from benchmark.places import Places
    from benchmark.verify import print_findings, verify_record

    folder = runs or Places().runs
    if not guarded(lambda: print_findings(console, verify_record(record, folder, data))):
        tell(f"record {record} does not describe the network in {folder}")
        raise typer.Exit(1)


add_networks(app, console, guarded)


import benchmark.commands.branches  # noqa: E402, F401 (more commands, which use what is defined above)


def main() -> None:
    """Run the command line."""
    end(app)
