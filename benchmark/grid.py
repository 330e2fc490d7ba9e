"""Running a grid: everything checked first, then one cell after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from benchmark.branches.snapshots import list_snapshots, parse_epochs
from benchmark.cells import Cell, choose_task, plan_cells
from benchmark.console import print_result
from benchmark.data.sets import Data, load_data
from benchmark.environment import choose_device
from benchmark.errors import explain
from benchmark.places import Places, check_places
from benchmark.planning.donors import resolve_donors
from benchmark.planning.foresight import check_cells
from benchmark.planning.states import Ledger, read_now
from benchmark.processes.ranks import count_ranks, do_together, own_rank
from benchmark.run import Options, Start, run_cell
from benchmark.tracking import check_mode


def run_grid(
    *,
    methods: str,
    sparsities: str,
    tasks: str,
    seeds: str,
    arguments: str,
    device: str,
    data_root: Path,
    wandb: str,
    fresh: bool,
    checkpoint_s: float,
    places: dict[str, Path | None],
    command: str,
    console: Console,
    tell: Callable[[object], None],
    snapshots: str = "",
) -> int:
    """Run every cell of the grid and return how many failed; `snapshots` lists epochs to keep one after.

    Raises UserError, before the first batch and with nothing written, for anything wrong that can be known by then: a
    name, a value, a folder, a broken plugin. One cell that fails later does not stop the others.
    """
    check_mode(wandb)
    chosen = choose_device(device)
    task, reason = choose_task(tasks, chosen.type == "cuda")
    if reason:
        console.print(reason, highlight=False)
    cells = plan_cells(methods, sparsities, task, seeds, arguments)
    options = Options(
        device=chosen,
        wandb=wandb,
        alone=len(cells) == 1,
        fresh=fresh,
        checkpoint_s=checkpoint_s,
        command=command,
        places=Places(**{key: path for key, path in places.items() if path is not None}),
        snapshots=parse_epochs(snapshots, min(cell.page.epochs for cell in cells), "SNAPSHOTS"),
    )
    if own_rank() == 0:  # which alone writes
        check_places(options.places)
    loaded: dict[str, Data] = {}
    for cell in cells:
        if cell.page_name not in loaded:
            loaded[cell.page_name] = load_data(cell.page, data_root, chosen)
    cells = resolve_donors(cells, loaded, options.places, chosen)
    cells = name_runs(cells, loaded, options)
    networks = do_together(lambda: check_cells(cells, loaded, options))
    failed = 0
    for number, cell in enumerate(cells, 1):
        try:
            run_one(
                cell, loaded[cell.page_name], options, console, f"{number}/{len(cells)}", Start(networks.take(cell))
            )
        except Exception as error:  # one cell must not cost the others theirs, whatever went wrong
            if len(cells) == 1 or count_ranks() > 1:  # other ranks may be waiting within this cell
                raise
            failed += 1
            tell(f"{cell.identity}: {explain(error)}")
    if failed:
        tell(f"{failed} of {len(cells)} runs failed; the others are on the leaderboard")
    return failed


def name_runs(cells: list[Cell], loaded: dict[str, Data], options: Options) -> list[Cell]:
    """Return the cells under the names of their runs, see `Ledger.place`; only rank 0 writes under them."""
    if own_rank():
        return cells
    ledger = Ledger(read_now(options.places.records), options.places.runs, options.device)
    return [ledger.place(cell, loaded[cell.page_name]) for cell in cells]


def run_one(cell: Cell, data: Data, options: Options, console: Console, place: str, start: Start) -> None:
    """Run one cell and print its table."""
    console.print(
        f"run {place}: {cell.label} at sparsity {cell.sparsity:g}, seed {cell.seed} on {cell.page_name} "
        f"({options.device.type}; {len(data.train):,} training images)",
        highlight=False,
        markup=False,
    )
    record, path = run_cell(cell, data, options, console, start)
    print_result(console, record, show(path), show(options.places.page))
    kept = list_snapshots(options.places.runs / cell.identity)
    missing = ",".join(str(epoch) for epoch in options.snapshots if epoch not in kept)
    if missing:  # the run went on from a checkpoint behind them
        text = f"no snapshot of epoch {missing} was kept: sparse-bench snapshot {cell.identity} --epochs {missing}"
        console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def show(path: Path) -> str:
    """Return a path relative to the working folder where that is shorter."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
