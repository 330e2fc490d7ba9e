"""One network in several processes: its gradients averaged, its buffers rank 0's, its copies held to the same bits."""

from __future__ import annotations

import hashlib

import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from benchmark.errors import UserError
from benchmark.pages import Page
from benchmark.processes.ranks import count_ranks, gather, own_rank, share_tensors
from benchmark.seeds import derive

WARM_UP = 2  # images; one would have no variance


class DriftError(UserError):
    """Ranks that should hold the same network do not."""


def check_sharing(page: Page, device: torch.device) -> None:
    """Raise UserError for a setting of the page that cannot be had on this device, or not with several ranks."""
    if page.sync_batchnorm and device.type != "cuda":
        raise UserError(
            "sync_batchnorm=true needs CUDA, for torch's SyncBatchNorm has no version for a CPU: set "
            "ARGS=sync_batchnorm=false, or run on GPUs"
        )
    if page.compile and count_ranks() > 1:
        raise UserError(
            f"compile=true is for one process, and {count_ranks()} were asked for: set ARGS=compile=false, or RANKS=1"
        )


def synchronise_norms(model: nn.Module, page: Page) -> nn.Module:
    """Return the network with batch norms that normalise over all ranks' images, where the page says so.

    By timm, which keeps the activations that its batch norms hold. Parameters and their names stay.
    """
    converted: nn.Module = convert_sync_batchnorm(model) if page.sync_batchnorm else model
    return converted


def count_norm_shares(model: nn.Module) -> int:
    """Return in how many shares a batch is normalised: the ranks where a batch norm is not synchronised, else 1."""
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
    buffers = [buffer.clone() for buffer in model.buffers()]
    training = model.training
    model.train()
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        parameters = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(model(images).sum(), parameters, allow_unused=True)
        unused = any(gradient is None for gradient in found)
        replica = DistributedDataParallel(model, find_unused_parameters=unused)
        # Torch sorts the gradients anew after the first backward pass, and with them the order of sums over ranks. With
        # that pass made here, each step of a run has the same order, wherever the run starts or goes on.
        replica(images).sum().backward()
        model.zero_grad(set_to_none=True)
    model.train(training)
    if buffers:
        torch._foreach_copy_(list(model.buffers()), buffers)
    return replica


def weigh_share(own: int, batch: int) -> float:
    """Return what the mean loss over `own` images counts in the mean over ranks; then each image counts the same."""
    return own * count_ranks() / batch


def seed_step(seed: int, step: int) -> None:
    """Give each rank random numbers (dropout) of its own that depend on (seed, step, rank) alone.

    A single process draws on from the epoch's start instead, and keeps the generator's state in checkpoints.
    """
    if count_ranks() > 1:
        torch.manual_seed(derive(seed, "step", step, own_rank()))


def share_buffers(*models: nn.Module | None) -> None:
    """Give every rank rank 0's buffers (batch statistics), which count wherever a network is evaluated or saved."""
    share_tensors([buffer for model in models if model is not None for buffer in model.buffers()])


def check_drift(model: nn.Module, masks: dict[str, Tensor], moment: str) -> None:
    """Raise DriftError, on every rank alike, unless all ranks have rank 0's weights and masks to the bit."""
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
