"""What a pass through a network depends on besides its input: precision, the state of generators, the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.config.pages import Page
from benchmark.data.images import Images
from benchmark.distributed.ranks import own_share, sum_over_ranks

EVALUATION_BATCH = 512


def make_autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision, "fp32" or "bf16"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def get_random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators a training step may draw from (dropout): the CPU's and the device's."""
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state(device)]
    return [torch.get_rng_state(), *own]


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """Restore what `get_random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1], device)


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


def choose_precision(page: Page, device: torch.device) -> str:
    """Return "bf16" or "fp32": the page's choice, or bf16 autocast on an accelerator that has it and fp32 elsewhere.

    Where the page asks for the fastest, the engine's probe decides instead (benchmark.training.speed).
    """
    if page.precision in ("fp32", "bf16"):
        return page.precision
    return "bf16" if supports_bf16(device) else "fp32"


def possible_precisions(page: Page, device: torch.device) -> tuple[str, ...]:
    """Return what a finished run of the page may have been computed in: either, where a probe chooses."""
    return ("fp32", "bf16") if page.precision == "fastest" else (choose_precision(page, device),)


def supports_bf16(device: torch.device) -> bool:
    """Return whether torch says of an accelerator that it takes bf16; False for a CPU, which need not be fast in it."""
    ask = getattr(torch.get_device_module(device), "is_bf16_supported", None) if device.type != "cpu" else None
    return bool(ask is not None and ask())


def set_determinism(page: Page, device: torch.device) -> None:
    """Make torch repeatable where the page asks for it.

    Operators without a repeatable version on a GPU still run (torch warns): a page decides, not a crash half-way.
    """
    # Asked only to warn, torch takes fused attention's backward pass on a card as it comes, in no fixed order.
    fused = device.type != "cuda" or not page.deterministic
    torch.backends.cuda.enable_flash_sdp(fused)  # a CPU's kernel heeds this too, and is repeatable
    torch.backends.cuda.enable_mem_efficient_sdp(fused)
    torch.backends.cuda.enable_cudnn_sdp(fused)
    torch.use_deterministic_algorithms(page.deterministic, warn_only=True)
    # Torch would then fill all new memory with NaN, a fifth of a small network's time, lest an operator read it unset.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not page.deterministic
