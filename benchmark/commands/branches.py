"""The commands of snapshots, branches and pruning plasticity; `benchmark.cli` has the others and what all share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli import app
from benchmark.commands.options import CheckpointS, DataRoot, Device, Fresh, LeaderboardPage, Records, Runs, typed
from benchmark.commands.shell import console, guarded, tell, train_then_rebuild

Branches = Annotated[Path | None, typer.Option(help="folder of the records of branches")]
Run = Annotated[str, typer.Argument(help="a run: the name of a folder of runs/, or of its record")]


@app.command()
def snapshot(
    run: Run,
    epochs: Annotated[str, typer.Option(help="epochs after which to keep a snapshot, such as 5,10")],
    device: Device = "auto",
    data: DataRoot = Path("data"),
    records: Records = None,
    branches: Branches = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Make snapshots that a run lacks: train its first epochs again, to the same bits, and compare them."""
    from benchmark.branches.branching import Stores, make_options
    from benchmark.branches.retrace import take_snapshots

    def action() -> None:
        stores = Stores(records, branches)
        options = make_options(device, stores, runs, None, checkpoint_s, "")
        for path in take_snapshots(run, epochs, data, stores.both, options, console):
            console.print(f"snapshot: {path}", highlight=False, markup=False, soft_wrap=True)

    guarded(action)


@app.command()
def branch(
    run: Run,
    epoch: Annotated[int, typer.Option(help="the epoch after which to branch; its snapshot must be there")],
    method: Annotated[str, typer.Option(help="another method, which sees weights and masks of then")] = "",
    sparsity: Annotated[str, typer.Option(help="another sparsity, in [0, 1)")] = "",
    args: Annotated[str, typer.Option(help="name=value settings of the page or the method")] = "",
    hold_lr: Annotated[bool, typer.Option(help="keep the learning rate then in force")] = False,
    more: Annotated[int | None, typer.Option(help="epochs to train (default: to the page's last)")] = None,
    device: Device = "auto",
    data: DataRoot = Path("data"),
    fresh: Fresh = False,
    records: Records = None,
    branches: Branches = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Go on from a snapshot of a run with other settings of page or method; the branch has a record of its own."""
    from benchmark.branches.branching import Stores, make_options, run_branch

    stores = Stores(records, branches)

    def action() -> int:
        command = typed()
        run_branch(
            run,
            stores,
            make_options(device, stores, runs, leaderboard, checkpoint_s, command, fresh),
            data,
            console,
            epoch=epoch,
            method=method,
            sparsity=sparsity,
            arguments=args,
            hold_lr=hold_lr,
            more=more,
        )
        return 0

    train_then_rebuild(action, records, leaderboard, stores.branches)


@app.command()
def plasticity(
    task: Annotated[str, typer.Option(help="a page of configs/ (default: what the scale says)")] = "",
    scale: Annotated[str, typer.Option(help="paper, small, or auto: small on the embedded digits")] = "auto",
    epochs: Annotated[str, typer.Option(help="epochs after which is pruned (default: what the scale says)")] = "",
    seed: Annotated[str, typer.Option(help="whole numbers, comma-separated; three carry a verdict")] = "0,1,2",
    more: Annotated[
        int | None, typer.Option(help="epochs in which plasticity is measured (default: the scale's)")
    ] = None,
    scope: Annotated[str, typer.Option(help="global or layer: what is ranked together")] = "global",
    pattern: Annotated[str, typer.Option(help="none, or filters: whole filters are pruned")] = "none",
    args: Annotated[str, typer.Option(help="name=value settings of the page")] = "",
    plan: Annotated[bool, typer.Option(help="print what there is to run, and run nothing")] = False,
    jobs: Annotated[int, typer.Option(help="processes that share the runs")] = 1,
    device: Device = "auto",
    data: DataRoot = Path("data"),
    records: Records = None,
    branches: Branches = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Measure pruning plasticity: train, prune at some epochs, train on; draws leaderboard/PLASTICITY.md."""
    from benchmark.branches.branching import Stores, make_options
    from benchmark.branches.plasticity import make_study
    from benchmark.branches.study import run_study
    from benchmark.branches.study_plan import print_study

    stores = Stores(records, branches)

    def action() -> int:
        study = make_study(
            task=task,
            scale=scale,
            seeds=seed,
            epochs=epochs,
            more=more,
            scope=scope,
            pattern=pattern,
            arguments=args,
        )
        command = typed()
        options = make_options(device, stores, runs, leaderboard, checkpoint_s, command)
        if plan:
            return print_study(study, data, stores, options, console)
        return run_study(study, data, stores, options, console, tell, jobs)

    train_then_rebuild(action, records, leaderboard, stores.branches)
