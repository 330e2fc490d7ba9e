"""Several processes that train one network: each takes its share of every batch, all hold the same weights and masks.

Everything here is the identity in a single process. The process group is whoever starts the processes' business.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

from benchmark.errors import UserError


def count_ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return this process's rank, from 0."""
    return dist.get_rank() if count_ranks() > 1 else 0


def take_share(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return this rank's images and labels of a batch: every n-th one. Together the shares are the batch.

    Raises UserError when the batch has fewer images than there are ranks.
    """
    ranks = count_ranks()
    if ranks == 1:
        return images, labels
    if len(labels) < ranks:
        raise UserError(f"a batch of {len(labels)} images cannot be shared by {ranks} processes: set drop_last=true")
    return images[own_rank() :: ranks], labels[own_rank() :: ranks]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all ranks, the same bits on each."""
    if count_ranks() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum every gradient over all ranks, in place.

    With each rank's loss weighed by its share of the batch, the sum is the gradient of the whole batch, dense and the
    same on every rank: what growth needs (RigL, Appendix M: growing by local gradients costs accuracy).
    """
    if count_ranks() > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)


def differing_ranks(digest: str) -> list[int]:
    """Return the ranks whose `digest` is another than rank 0's."""
    if count_ranks() == 1:
        return []
    digests: list[str] = [""] * count_ranks()
    dist.all_gather_object(digests, digest)
    return [rank for rank, other in enumerate(digests) if other != digests[0]]
