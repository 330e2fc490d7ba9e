"""What a pass through a network depends on besides its input: precision, the state of generators, the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.data.folders import Images
from benchmark.processes.ranks import own_share, sum_over_ranks

EVALUATION_BATCH = 512


def make_autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision, "fp32" or "bf16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def get_random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators a training step may draw from (dropout): the CPU's and the GPU's."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Restore what `get_random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@torch.no_grad()
def measure_accuracy(
    model: nn.Module, images: Images, device: torch.device, autocast: torch.autocast, channels_last: bool
) -> float:
    """Return a network's top-1 accuracy in per cent, in evaluation mode.

    Several ranks share the batches, each whole, and sum what is right: the same bits as in one process.
    """
    model.eval()
    correct = torch.zeros((), device=device, dtype=torch.int64)
    for batch, labels in images.batches(EVALUATION_BATCH, device, own_share()):
        if channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with autocast:
            correct += (model(batch).argmax(1) == labels).sum()
    return 100 * sum_over_ranks(correct).item() / len(images)
