"""The commands on a run's files: `sparse-bench export`, `publish`, `verify`, `latency`, `slim`, `branch` and others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.cli.shell import (
    CheckpointS,
    DataRoot,
    Device,
    Fresh,
    LeaderboardPage,
    Records,
    Runs,
    app,
    console,
    find_places,
    guarded,
    tell,
    train_then_rebuild,
    typed,
)

FinishedRun = Annotated[
    str, typer.Argument(help="a finished run: its name, the file of its record, or a folder in which it was published")
]
Batch = Annotated[str, typer.Option(help="images at once, comma-separated")]
Threads = Annotated[int | None, typer.Option(help="threads of torch (default: 1 on a CPU)")]
To = Annotated[Path | None, typer.Option(help="folder to write to (default: slim, in the run's folder)")]


@app.command()
def latency(
    run: FinishedRun,
    batch: Batch = "1,64",
    threads: Threads = None,
    device: Device = "auto",
    records: Records = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
) -> None:
    """Measure what a run's sparsity is worth on this machine, with several kernels; the leaderboard shows it."""
    from benchmark.inference.latency import measure_run, read_request

    places = {"records": records, "leaderboard": leaderboard, "runs": runs}
    guarded(lambda: measure_run(run, read_request(batch, threads, device), places, typed(), console))


@app.command()
def slim(
    run: FinishedRun,
    to: To = None,
    batch: Batch = "1,64",
    threads: Threads = None,
    device: Device = "auto",
    records: Records = None,
    runs: Runs = None,
    data: DataRoot = Path("data"),
) -> None:
    """Write the smaller network of a structured run, without its dead filters: compared, counted and timed."""
    from benchmark.inference.latency import read_request
    from benchmark.inference.slim import slim_run

    places = {"records": records, "runs": runs}
    guarded(lambda: slim_run(run, to, read_request(batch, threads, device), places, data, console))


Branches = Annotated[Path | None, typer.Option(help="folder of the records of branches")]
Run = Annotated[str, typer.Argument(help="a run: the name of a folder of runs/, or of its record")]
MethodFile = Annotated[
    Path | None, typer.Option("--file", help="the Python file of the run's method, if it is not built in")
]


@app.command()
def snapshot(
    run: Run,
    epochs: Annotated[str, typer.Option(help="epochs after which to keep a snapshot, such as 5,10")],
    file: MethodFile = None,
    device: Device = "auto",
    data: DataRoot = Path("data"),
    records: Records = None,
    branches: Branches = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Make a run's missing snapshots: train its first epochs again, to the same bits, and compare them."""
    from benchmark.runs.branching import Stores, make_options, take_snapshots

    def action() -> None:
        stores = Stores(records, branches)
        options = make_options(device, stores, runs, None, checkpoint_s, "")
        for path in take_snapshots(run, epochs, data, stores.both, options, console, file):
            console.print(f"snapshot: {path}", highlight=False, markup=False, soft_wrap=True)

    guarded(action)


@app.command()
def branch(
    run: Run,
    epoch: Annotated[int, typer.Option(help="the epoch after which to branch; its snapshot must exist")],
    method: Annotated[str, typer.Option(help="another method; it sees the snapshot's weights and masks")] = "",
    file: MethodFile = None,
    sparsity: Annotated[str, typer.Option(help="another sparsity, in [0, 1)")] = "",
    args: Annotated[str, typer.Option(help="name=value settings of the page or the method")] = "",
    hold_lr: Annotated[bool, typer.Option(help="keep the learning rate of the epoch that follows")] = False,
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
    """Continue from a snapshot of a run with other settings of page or method; the branch has a record of its own."""
    from benchmark.runs.branching import Stores, make_options, run_branch

    stores = Stores(records, branches)

    def action() -> int:
        command = typed()
        run_branch(
            run,
            stores,
            make_options(device, stores, runs, leaderboard, checkpoint_s, command, fresh),
            data,
            console,
            file,
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
    task: Annotated[str, typer.Option(help="a page of configs/ (default: the scale's)")] = "",
    scale: Annotated[str, typer.Option(help="paper, small, photographs, or auto: as the page is")] = "auto",
    epochs: Annotated[str, typer.Option(help="epochs after which to prune (default: the scale's)")] = "",
    seed: Annotated[str, typer.Option(help="whole numbers, comma-separated; a verdict needs three")] = "0,1,2",
    more: Annotated[
        int | None, typer.Option(help="epochs in which plasticity is measured (default: the scale's)")
    ] = None,
    scope: Annotated[str, typer.Option(help="global or layer: what is ranked together")] = "global",
    pattern: Annotated[str, typer.Option(help="none, or filters: whole filters are pruned")] = "none",
    args: Annotated[str, typer.Option(help="name=value settings of the page")] = "",
    plan: Annotated[bool, typer.Option(help="print what would be run, and run nothing")] = False,
    jobs: Annotated[str, typer.Option(help="number of workers that share the runs, or auto")] = "1",
    per_gpu: Annotated[int, typer.Option(help="workers that share a GPU")] = 1,
    device: Device = "auto",
    data: DataRoot = Path("data"),
    records: Records = None,
    branches: Branches = None,
    leaderboard: LeaderboardPage = None,
    runs: Runs = None,
    checkpoint_s: CheckpointS = 15.0,
) -> None:
    """Measure pruning plasticity: train, prune at some epochs, train on; draws leaderboard/PLASTICITY.md."""
    from benchmark.runs.branching import Stores, make_options
    from benchmark.studies.plasticity import make_study
    from benchmark.studies.study import print_study, run_study
    from benchmark.workers import Pool

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
        options = make_options(device, stores, runs, leaderboard, checkpoint_s, typed())
        if plan:
            return print_study(study, data, stores, options, console)
        return run_study(study, data, options, console, tell, Pool(jobs=jobs, per_gpu=per_gpu))

    if plan:
        guarded(action)
    else:
        train_then_rebuild(action, records, leaderboard, stores.branches)


@app.command(hidden=True)
def study_worker(spec: Path, number: int) -> None:
    """Run a study's cells as one of its workers."""
    from benchmark.studies.study import work_on_study

    guarded(lambda: work_on_study(spec, number, console, tell))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="a run: its name, the file of its record, or where it was published")],
    to: Annotated[Path | None, typer.Option(help="folder to write to (default: export/RUN)")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="network.onnx, checked with onnxruntime")] = False,
    torch_sparse: Annotated[bool, typer.Option("--torch-sparse", help="csr.pt: linear layers as CSR")] = False,
    compressed: Annotated[bool, typer.Option("--compressed", help="compressed.safetensors: active weights")] = False,
    records: Records = None,
    runs: Runs = None,
) -> None:
    """Write a run's network: as safetensors that timm loads and masks as bits, or in the forms asked for; verified."""
    from benchmark.inference.formats import COMPRESSED, CSR, ONNX, export_as

    asked = [file for file, wanted in ((ONNX, onnx), (CSR, torch_sparse), (COMPRESSED, compressed)) if wanted]
    guarded(lambda: export_as(run, to, asked, {"records": records, "runs": runs}, console))


@app.command()
def publish(
    run: FinishedRun,
    to: Annotated[str, typer.Option(help="an empty or new folder, or hf://USER/NAME, a repository of the Hub")],
    records: Records = None,
    runs: Runs = None,
) -> None:
    """Write a run's weights, masks, record and a card, from which others check it or start; all are verified."""
    from benchmark.runs.publish import publish_run

    guarded(lambda: publish_run(run, to, {"records": records, "runs": runs}, console))


@app.command()
def verify(
    run: FinishedRun,
    records: Records = None,
    runs: Annotated[Path | None, typer.Option(help="folder of exported weights")] = None,
    data: DataRoot = Path("data"),
) -> None:
    """Compare a record with the network its run exported: masks, density, costs and accuracy, found again."""
    from benchmark.base.files import expand_run
    from benchmark.runs.finished import RECORD, find_finished
    from benchmark.runs.verify import print_findings, verify_record

    places = guarded(lambda: find_places(records, None, runs))
    record = Path(expand_run(run))
    unpublished = record.is_dir() and not (record / RECORD).is_file()
    if unpublished or (not record.exists() and record.suffix != ".json"):
        record = guarded(lambda: find_finished(run, places.records, places.runs).path)
    if not guarded(lambda: print_findings(console, verify_record(record, places.runs, data))):
        tell(f"record {record} does not describe the network in {record if record.is_dir() else places.runs}")
        raise typer.Exit(1)
