"""What can be known of cells before the first batch: every check that needs no image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmark.cells import Cell
from benchmark.contract import propose, rehearse
from benchmark.data.sets import Data
from benchmark.emptiness import check_budget, refuse_empty
from benchmark.errors import UserError
from benchmark.planning.gridfile import Item
from benchmark.planning.plan import group_items
from benchmark.planning.planner import Networks
from benchmark.planning.states import DONE, Ledger
from benchmark.processes.ranks import check_shares
from benchmark.processes.replicas import check_sharing
from benchmark.run import Options, check_room, first_view, make_timeline
from benchmark.speed import try_compiler


def check_cells(cells: list[Cell], loaded: Mapping[str, Data], options: Options) -> Networks:
    """Hold every cell of a grid to what can be known before the first batch; raises UserError for the first fault.

    `loaded` has the data of each page by name. Each page's network is built once; those of the last page are returned.
    """
    networks = Networks()
    for cell in cells:
        check_cell(cell, loaded[cell.page_name], options, networks)
    return networks


def check_cell(cell: Cell, data: Data, options: Options, networks: Networks) -> None:
    """Rehearse a cell's method and draw its first masks, where these need no gradients; `data` may be a stand-in.

    Raises UserError for the first fault. A control whose donor is not known yet is held to what does not need one.
    """
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
    first = propose(cell.method, cell.plugin.name, first_view(cell, network.maskset, timeline))
    if cell.donor is None:
        refuse_empty(cell, {name: int(mask.sum()) for name, mask in first[-1].items()})


def find_faults(items: list[Item], numbers: Callable[[Cell], Data], ledger: Ledger, options: Options) -> list[str]:
    """Return what is wrong with the cells that are not finished, one line for each row of a page and fault.

    `numbers` gives the data of a cell's page, as a stand-in perhaps; where it raises, that is its cells' own failure,
    told when their turn comes, and so is whatever else goes wrong here without being a user's fault. One seed stands
    for all of a row.
    """
    networks = Networks()
    faults: dict[str, None] = {}
    for group in group_items(items):
        try:
            data = numbers(group[0].cell)
            left = [item.cell for item in group if ledger.state(item, data) != DONE]
        except Exception:
            continue
        try:
            for cell in left[:1]:
                check_cell(cell, data, options, networks)
        except UserError as error:
            faults[f"{group[0].cell.page_name}, {group[0].cell.label}: {error}"] = None
        except Exception:
            continue
    return list(faults)
