"""Processes that train one network together: their messages, averaged gradients, identical copies.

Everything here is the identity in a single process. `benchmark.distributed.launch` starts the processes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from benchmark.base.buffers import KeptBuffers
from benchmark.base.errors import UserError
from benchmark.base.seeds import derive
from benchmark.base.system import keep_random_state, modes_of, set_modes

T = TypeVar("T")


def count_ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return this process's rank, from 0. Only rank 0 writes files and prints."""
    return dist.get_rank() if count_ranks() > 1 else 0


def own_share() -> tuple[int, int]:
    """Return (rank, ranks): the share of the images that this process takes, as `Images` expects it."""
    return own_rank(), count_ranks()


def own_cores() -> int:
    """Return the number of this machine's cores for this process: all, or its share."""
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if count_ranks() > 1 else 1
    return max(1, (os.cpu_count() or 1) // together)


def check_shares(images: int, batch_size: int, drop_last: bool) -> None:
    """Raise UserError if an epoch over so many images has a batch with fewer images than ranks."""
    share, last = smallest_share(images, batch_size, drop_last)
    if share == 0:
        way = f"raise batch_size ({batch_size})" if batch_size < count_ranks() else "set ARGS=drop_last=true"
        raise UserError(
            f"a batch of {last} images cannot be shared by {count_ranks()} processes: {way}, or lower RANKS"
        )


def smallest_share(images: int, batch_size: int, drop_last: bool) -> tuple[int, int]:
    """Return the fewest images that a rank gets in any step of an epoch, and the size of that step's batch."""
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
    """Return rank 0's `value` on every rank; what the others pass is ignored."""
    if count_ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)  # through the group's own devices: one of NCCL alone has no CPU
    return box[0]


def gather(value: T) -> list[T]:
    """Return the `value` of every rank, in their order."""
    if count_ranks() == 1:
        return [value]
    values: list[T] = [value] * count_ranks()
    dist.all_gather_object(values, value)
    return values


def differing_ranks(digest: str) -> list[int]:
    """Return the ranks whose `digest` differs from rank 0's."""
    digests = gather(digest)
    return [rank for rank, other in enumerate(digests) if other != digests[0]]


def do_together(action: Callable[[], T]) -> T:
    """Return `action()`; a UserError on any rank is raised on all, before the next exchange would hang.

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
    return result  # type: ignore[return-value]  # set if there was no fault


WARM_UP = 2  # images; one would have no variance


class DriftError(UserError):
    """Ranks no longer hold the same network."""


def count_norm_shares(model: nn.Module) -> int:
    """Return in how many shares a batch is normalised: one a rank if a batch norm is not synchronised, else 1."""
    own = any(isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    return count_ranks() if own else 1


def average_gradients(model: nn.Module, images: Tensor) -> DistributedDataParallel:
    """Return `model` as ranks train it together: after a backward pass every gradient is the mean over ranks.

    With each rank's loss weighed by its share of the batch (`weigh_share`) that is the gradient of the whole batch,
    dense and the same bits on every rank: what growth needs (RigL, Appendix M: growing by local gradients costs
    accuracy). Before each forward pass the buffers become rank 0's. `images`: of the right shape, their values do not
    count. Invariant: the model, its buffers and the random state are left as they were, and which gradients are
    summed together depends on the network alone, so that a run which is continued has the bits of one that was not.
    """
    buffers, modes = KeptBuffers(list(model.buffers())), modes_of(model)
    model.train()
    with keep_random_state(images.device):
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(model(images).sum(), parameters, allow_unused=True)
        unused = any(gradient is None for gradient in found)
        replica = DistributedDataParallel(model, find_unused_parameters=unused)
        # Torch sorts the gradients anew after the first backward pass, and with them the order of sums over ranks. With
        # that pass made here, each step of a run has the same order, wherever the run starts or goes on.
        replica(images).sum().backward()
        model.zero_grad(set_to_none=True)
    set_modes(modes)
    buffers.put_back()
    return replica


def weigh_share(own: int, batch: int) -> float:
    """Return the weight of the mean loss over `own` images in the mean over ranks: each image counts the same."""
    return own * count_ranks() / batch


def seed_step(seed: int, step: int) -> None:
    """Give each rank random numbers (dropout) of its own that depend only on (seed, step, rank).

    A single process instead continues from the epoch's start, with the generator's state in checkpoints.
    """
    if count_ranks() > 1:
        torch.manual_seed(derive(seed, "step", step, own_rank()))


def share_buffers(*models: nn.Module | None) -> None:
    """Give every rank rank 0's buffers (batch statistics), which evaluation and saving use."""
    share_tensors([buffer for model in models if model is not None for buffer in model.buffers()])


def check_drift(model: nn.Module, masks: dict[str, Tensor], moment: str) -> None:
    """Raise DriftError, on every rank, unless all ranks have exactly rank 0's weights and masks."""
    if count_ranks() == 1:
        return
    tensors: dict[str, Tensor] = {f"weights of layer '{name}'": p for name, p in model.named_parameters()}
    tensors.update((f"mask of layer '{name}'", mask) for name, mask in masks.items())
    digests = gather([digest(tensor) for tensor in tensors.values()])
    for rank, theirs in enumerate(digests):
        wrong = [name for name, one, other in zip(tensors, digests[0], theirs, strict=True) if one != other]
        if wrong:
            more = f" and of {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
            raise DriftError(
                f"rank {rank} no longer has rank 0's {wrong[0]}{more} {moment}: the run was stopped, for its gradients "
                "are of no one network; the same command starts over"
            )


def digest(tensor: Tensor) -> bytes:
    """Return a hash of a tensor's bits."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(content.numpy().tobytes(), digest_size=16).digest()
