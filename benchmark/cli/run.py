"""The commands that train: `sparse-bench run | sweep`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmark.base.errors import UserError
from benchmark.cli.shell import (
    CheckpointS,
    DataRoot,
    Device,
    Fresh,
    LeaderboardPage,
    Records,
    Runs,
    Wandb,
    app,
    console,
    find_options,
    find_places,
    guarded,
    tell,
    train_then_rebuild,
)

if TYPE_CHECKING:
    from benchmark.config.grids import Source

Where = Annotated[str, typer.Option("--workers", "--engine", help="where workers run: local, ray or slurm")]
WorkersArgs = Annotated[str, typer.Option("--workers-args", "--engine-args", help="key=value settings of workers")]


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
    from benchmark.distributed.launch import is_launched, join, launch

    if ranks > 1 and not is_launched():
        raise typer.Exit(guarded(lambda: launch(ranks, device, sys.argv[1:], tell)))
    from benchmark.distributed.ranks import own_rank
    from benchmark.grids.grid import GridRequest, run_grid

    def action() -> int:
        join(ranks, device)
        if own_rank():
            console.file = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
        places = find_places(records, leaderboard, runs)
        options = find_options(device, places, wandb=wandb, fresh=fresh, checkpoint_s=checkpoint_s)
        told = tell if own_rank() == 0 else lambda message: None
        return run_grid(GridRequest(method, sparsity, task, seed, args), options, data, console, told, snapshots)

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
    workers: Where = "local",
    jobs: Annotated[str, typer.Option(help="number of workers, or auto; 1 on this machine: in this process")] = "1",
    per_gpu: Annotated[int, typer.Option(help="workers that share a GPU")] = 1,
    gpus: Annotated[int, typer.Option(help="with --plan: the time on that many devices of this kind (CPU: cores)")] = 0,
    workers_args: WorkersArgs = "",
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
    from benchmark.config.grids import Source
    from benchmark.grids.plan import print_plan
    from benchmark.grids.sweep import run_sweep
    from benchmark.grids.times import make_fleet
    from benchmark.workers import Pool, check_pool

    def action() -> int:
        if gpus and not plan:
            raise UserError(f"GPUS={gpus} says for how many devices a plan tells the time: give PLAN=1 as well")
        pool = Pool(workers, jobs, per_gpu, workers_args, retries)
        check_pool(pool)
        places = find_places(records, leaderboard, runs)
        how = {"wandb": wandb, "checkpoint_s": checkpoint_s, "elsewhere": pool.where != "local"}
        options = find_options(pool.device_here(device), places, **how)
        lists = {"METHOD": method, "SPARSITY": sparsity, "TASK": task, "SEED": seed}
        has_gpu = pool.has_gpu(device, options.device.type != "cpu")
        source = Source.ask(file, lists, args, has_gpu)
        tell_chosen(source, "a grid file" if file else task, has_gpu)
        if plan:
            return print_plan(source.grid(), data, places, options.device, console, make_fleet(gpus, per_gpu))
        return run_sweep(source, options, pool, device, data, console, tell)

    if not plan:
        train_then_rebuild(action, records, leaderboard)
    elif guarded(action):  # how many runs cannot be planned
        raise typer.Exit(1)


def tell_chosen(source: Source, task: str, has_gpu: bool) -> None:
    """Print what was chosen for the user: a page, where `task` names none, and methods of METHOD=all left out."""
    from benchmark.config.cells import choose_task

    for remark in filter(None, (choose_task(task or "auto", has_gpu)[1], source.left_out())):
        console.print(remark, highlight=False)


@app.command(hidden=True)
def worker(spec: Path, number: int) -> None:
    """Run the cells of a sweep as one of its workers."""
    from benchmark.grids.sweep import work

    guarded(lambda: work(spec, number, console, tell))
