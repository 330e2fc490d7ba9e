"""The cost of the smaller network in the record of a run that ended with whole filters removed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmark.build import create_network, model_arguments
from benchmark.errors import UserError
from benchmark.maskset import holds_whole_filters
from benchmark.slim.network import count_slim
from benchmark.train import Training
from benchmark.verify import rebuild_network
from leaderboard import Record


def price_slim(record: Record, run: Training, warn: Callable[[str], None]) -> None:
    """Add to the record of a run that ended what `sparse-bench slim` will count: `macs.inference_slim`.

    One image through the network that its weights and masks leave, in multiply-adds. Nothing is added where the masks
    do not hold whole filters. A figure that cannot be had costs a warning, whatever the reason, and never the record.
    Invariant: nothing else of the record, the run or the global random state changes.
    """
    try:
        found = count_again(record, run)
    except Exception as error:  # of a backbone that may raise anything at all
        reason = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        warn(f"the record does not say what the network costs without its removed filters: {reason}")
        return
    if found is not None:
        record["macs"]["inference_slim"] = found


def count_again(record: Record, run: Training) -> int | None:
    """Return the figure from a plain network on the CPU, rebuilt as `sparse-bench slim` does; None where there is none.

    The run's own may be on a GPU and its norms synchronised over ranks, which no cut takes for norms. Raises UserError
    for a figure above the dense network's, which a record may not hold.
    """
    masks, page, data = run.maskset.masks, run.page, run.data
    if not holds_whole_filters(masks):
        return None
    with torch.random.fork_rng(devices=[]):
        full = create_network(page, model_arguments(page, data))
        network = rebuild_network(record, page, data, full, masks)
    network.load_state_dict(run.evaluated().state_dict(), strict=True)
    found = count_slim(network, masks, page, (data.channels, data.image_size, data.image_size))
    dense = record["macs"]["inference_dense"]
    if found is not None and found > dense:
        raise UserError(f"counted are {found:,} multiply-adds, more than the dense network's {dense:,}")
    return found
