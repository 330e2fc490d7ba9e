"""Running a grid: everything checked first, then one cell after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from benchmark.base.console import print_result
from benchmark.base.errors import UserError, explain
from benchmark.base.files import check_places, refuse_lockless, show
from benchmark.base.tracking import check_mode
from benchmark.config.cells import Cell, choose_task, name_left_out, plan_cells
from benchmark.config.pages import Page
from benchmark.config.start import describe_given_weights
from benchmark.data.sets import Data, load_data
from benchmark.distributed.ranks import check_shares, count_ranks, do_together, own_rank
from benchmark.grids.predict import Networks
from benchmark.grids.states import Ledger, read_now
from benchmark.runs.checkpoints import list_snapshots, parse_epochs
from benchmark.runs.donors import resolve_donors
from benchmark.runs.run import Options, Start, check_room, make_timeline, refuse_rounds, run_cell
from benchmark.training.contract import list_stages, propose
from benchmark.training.rehearsal import check_budget, refuse_empty, rehearse
from benchmark.training.setup import first_view
from benchmark.training.speed import try_compiler
from leaderboard.store.records import file_stem


@dataclass(frozen=True)
class GridRequest:
    """What a user asks to run, as it is written: comma-separated lists, and settings of pages and methods."""

    methods: str = "granet"
    sparsities: str = "0.9"
    tasks: str = "auto"
    seeds: str = "0"
    arguments: str = ""


def run_grid(
    asked: GridRequest,
    options: Options,
    data_root: Path,
    console: Console,
    tell: Callable[[object], None],
    snapshots: str = "",
) -> int:
    """Run every cell of the grid and return how many failed; `snapshots` lists epochs to keep one after.

    Raises UserError, before the first batch and with nothing written, for anything wrong that can be known by then: a
    name, a value, a folder, a broken plugin. One cell that fails later does not stop the others.
    """
    check_mode(options.wandb)
    task, reason = choose_task(asked.tasks, options.device.type != "cpu")
    if reason:
        console.print(reason, highlight=False)
    cells = plan_cells(asked.methods, asked.sparsities, task, asked.seeds, asked.arguments)
    if left_out := name_left_out(asked.methods, asked.sparsities, cells):
        console.print(left_out, highlight=False)
    for cell in cells if snapshots else []:
        refuse_rounds(cell, "--snapshots")
    kept = parse_epochs(snapshots, min(cell.page.epochs for cell in cells), "SNAPSHOTS")
    options = replace(options, alone=len(cells) == 1, snapshots=kept)
    if own_rank() == 0:  # the only one that writes
        check_places(options.places)
        refuse_lockless(options.places.runs)
    loaded: dict[str, Data] = {}
    for cell in cells:
        if cell.page_name not in loaded:
            loaded[cell.page_name] = load_data(cell.page, data_root, options.device)
    cells = resolve_donors(cells, loaded, options.places, options.device)
    cells = name_runs(cells, loaded, options)
    networks = do_together(lambda: check_cells(cells, loaded, options))
    tell_unchecked(cells, console)
    failed = 0
    for number, cell in enumerate(cells, 1):
        try:
            run_one(
                cell, loaded[cell.page_name], options, console, f"{number}/{len(cells)}", Start(networks.take(cell))
            )
        except Exception as error:  # whatever went wrong, the other cells go on
            if len(cells) == 1 or count_ranks() > 1:  # other ranks may be waiting within this cell
                raise
            failed += 1
            tell(f"{cell.identity}: {explain(error)}")
    if failed:
        tell(f"{failed} of {len(cells)} runs failed; the others are on the leaderboard")
    return failed


def tell_unchecked(cells: list[Cell], console: Console) -> None:
    """Say once of each method from elsewhere that it was rehearsed, which is less than the kit checks."""
    for plugin in {cell.plugin.name: cell.plugin for cell in cells if not cell.plugin.is_ours}.values():
        asked = plugin.source if plugin.source.endswith(".py") else plugin.name
        console.print(
            f"{plugin.name} is not part of this suite: it was rehearsed; `make check-method METHOD={asked}` checks the "
            "rest",
            highlight=False,
            markup=False,
        )


def name_runs(cells: list[Cell], loaded: dict[str, Data], options: Options) -> list[Cell]:
    """Return the cells with the names of their runs, see `Ledger.place`; only rank 0, which writes, needs them."""
    if own_rank():
        return cells
    ledger = Ledger(read_now(options.places.records), options.places.runs, options.device)
    return [ledger.place(cell, loaded[cell.page_name]) for cell in cells]


def run_one(cell: Cell, data: Data, options: Options, console: Console, place: str, start: Start) -> None:
    """Run one cell and print its table."""
    given = describe_given_weights(cell.page)
    console.print(
        f"run {place}: {cell.label} at sparsity {cell.sparsity:g}, seed {cell.seed} on {cell.page_name} "
        f"({options.device.type}; {len(data.train):,} training images{given and f'; starts from {given}'})",
        highlight=False,
        markup=False,
    )
    record, path = run_cell(cell, data, options, console, start)
    print_result(console, record, show(path), show(options.places.leaderboard))
    if path.stem != file_stem(record["run"]):
        text = "this run had a record already: the new one is kept as a repeat, which counts in no mean"
        console.print(text, highlight=False)
    kept = list_snapshots(options.places.runs / cell.identity)
    missing = ",".join(str(epoch) for epoch in options.snapshots if epoch not in kept)
    if missing:  # the run continued from a later checkpoint
        text = f"no snapshot of epoch {missing} was kept: sparse-bench snapshot {cell.identity} --epochs {missing}"
        console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def check_cells(cells: list[Cell], loaded: Mapping[str, Data], options: Options) -> Networks:
    """Check every cell of a grid as far as possible before the first batch; raises UserError for the first fault.

    `loaded` has the data of each page by name. Each page's network is built once; those of the last page are returned.
    """
    networks = Networks()
    for cell in cells:
        check_cell(cell, loaded[cell.page_name], options, networks)
    return networks


def check_cell(cell: Cell, data: Data, options: Options, networks: Networks) -> None:
    """Rehearse a cell's method and draw its first masks, where these need no gradients; `data` may be a stand-in.

    Raises UserError for the first fault. A control whose donor is not known yet is checked for what does not need one.
    """
    if not options.elsewhere:
        check_sharing(cell.page, options.device)
        if cell.page.compile:
            try_compiler(options.device)
    timeline = make_timeline(cell, data)
    check_shares(len(data.train), cell.page.batch_size, cell.page.drop_last)
    rehearse(cell.method, cell.plugin.name, timeline)
    network = networks.get(cell, data)
    check_room(cell, network.built, options.places)
    check_budget(cell, network.built)
    if cell.method.scoring() is not None or (cell.donor is None and cell.method.donor() is not None):
        return
    first = propose(
        cell.method, cell.plugin.name, first_view(network.maskset, timeline, cell.seed, cell.page.lr, cell.donor)
    )
    stages = list_stages(first)
    if cell.donor is None and stages:
        refuse_empty(cell, {name: int(mask.sum()) for name, mask in stages[-1].items()})


def check_sharing(page: Page, device: torch.device) -> None:
    """Raise UserError for a setting of the page that this device, or several ranks, do not support."""
    if page.sync_batchnorm and device.type == "cpu":
        raise UserError(
            "sync_batchnorm=true needs an accelerator: torch's SyncBatchNorm does not run on a CPU: set "
            "ARGS=sync_batchnorm=false, or run on GPUs"
        )
    if page.compile and count_ranks() > 1:
        raise UserError(
            f"compile=true is for one process, and {count_ranks()} were asked for: set ARGS=compile=false, or RANKS=1"
        )
