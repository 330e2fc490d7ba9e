"""Several processes that train one network: who takes which share, and what they tell each other.

Everything here is the identity in a single process. Starting the processes is `benchmark.processes.launch`'s business.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from benchmark.errors import UserError

T = TypeVar("T")


def count_ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return this process's rank, from 0. Rank 0 leads: it alone writes files and speaks."""
    return dist.get_rank() if count_ranks() > 1 else 0


def own_share() -> tuple[int, int]:
    """Return (rank, ranks): which share of the images this process takes, as `Images` is asked for it."""
    return own_rank(), count_ranks()


def own_cores() -> int:
    """Return how many cores of this machine a process may count as its own: all, or its part of them."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count_ranks() > 1 else 1
    return max(1, (os.cpu_count() or 1) // together)


def check_shares(images: int, batch_size: int, drop_last: bool) -> None:
    """Raise UserError when an epoch over so many images has a batch with fewer images than there are ranks."""
    share, last = smallest_share(images, batch_size, drop_last)
    if share == 0:
        way = f"raise batch_size ({batch_size})" if batch_size < count_ranks() else "set ARGS=drop_last=true"
        raise UserError(
            f"a batch of {last} images cannot be shared by {count_ranks()} processes: {way}, or lower RANKS"
        )


def smallest_share(images: int, batch_size: int, drop_last: bool) -> tuple[int, int]:
    """Return the fewest images that a rank is given in any step of an epoch, and the length of that step's batch."""
    rest = images % batch_size
    least = min([batch_size] * (images >= batch_size) + [rest] * (rest > 0 and not drop_last), default=batch_size)
    return least // count_ranks(), least


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, the same bits on each."""
    if count_ranks() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def share_tensors(tensors: list[Tensor]) -> None:
    """Give every rank the values of rank 0's `tensors`, in place."""
    if count_ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def announce(value: T) -> T:
    """Return rank 0's `value` on every rank; what the others pass is not looked at."""
    if count_ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def gather(value: T) -> list[T]:
    """Return the `value` of every rank, in their order."""
    if count_ranks() == 1:
        return [value]
    values: list[T] = [value] * count_ranks()
    dist.all_gather_object(values, value)
    return values


def differing_ranks(digest: str) -> list[int]:
    """Return the ranks whose `digest` is another than rank 0's."""
    digests = gather(digest)
    return [rank for rank, other in enumerate(digests) if other != digests[0]]


def do_together(action: Callable[[], T]) -> T:
    """Return `action()`; a UserError on any rank becomes one on all of them, before the next exchange waits for it.

    The error names the ranks that failed, unless all did and for the same reason.
    """
    if count_ranks() == 1:
        return action()
    fault, result = "", None
    try:
        result = action()
    except UserError as error:
        fault = str(error)
    faults = gather(fault)
    if len(set(faults)) > 1:
        raise UserError("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(faults) if text))
    if fault:
        raise UserError(fault)
    return result  # type: ignore[return-value]  # it was set where there was no fault
