"""The memory a run needs, from its network and two small forward passes, and so how many runs share a device."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmark.config.pages import Page, images_per_pass
from benchmark.data.sets import Data
from benchmark.networks.build import Built
from benchmark.networks.prunable import prunable_weights
from benchmark.training.precision import choose_precision, make_autocast
from leaderboard import Record

# Bytes that a process takes besides, by kind of device. Estimates: on a GPU the context, the libraries' workspaces and
# the augmentation of several batches at once; on a CPU the interpreter with torch, timm and what the allocator keeps.
PROCESS = {"accelerator": int(0.9 * 2**30), "cpu": int(0.7 * 2**30)}
CONTEXT = 2**29  # of a process on an accelerator, which torch's allocator does not count; an estimate
STATES = {"sgd": 1, "adam": 2, "adamw": 2}  # tensors an optimiser keeps beside each weight; SGD without momentum none
# Gradients of activations, workspaces and what allocators keep, as a share of all that a run holds: in whole runs of
# ResNet-20 and VGG-19 on a CPU the process grew to 1.5 to 1.7 times of what is counted here. An estimate for GPUs.
WORK_SHARE = 0.7
FEW, SOME = 2, 4  # images of two batches, whose difference is what one image saves


@dataclass(frozen=True)
class Memory:
    """What a run holds, in bytes. `activations`: what a whole batch saves for the backward pass, the largest part.

    `network`: weights and buffers, their average and the copy of the buffers. `masks`: the masks, those ever
    active and the factors of the gradients. `images`: the data set, where it is held in memory.
    """

    network: int
    gradients: int
    optimizer: int
    masks: int
    activations: int
    images: int
    process: int

    @property
    def total(self) -> int:
        """Roughly the peak, WORK_SHARE above what is counted."""
        return self.process + round((1 + WORK_SHARE) * (self.weighted + self.activations)) + self.images

    @property
    def weighted(self) -> int:
        """Weights, gradients, optimiser state and masks."""
        return self.network + self.gradients + self.optimizer + self.masks

    def fits(self, available: int) -> int:
        """Return the number of such runs that fit in `available` bytes."""
        return available // self.total


@dataclass(frozen=True)
class Measured:
    """The most that runs have held, in bytes, by their records, and of how many; a GPU's context is added."""

    total: int
    records: int

    def fits(self, available: int) -> int:
        """Return the number of such runs that fit in `available` bytes."""
        return available // self.total


def measured_memory(records: Iterable[Record], device: torch.device) -> Measured | None:
    """Return what the records of runs like the one that is planned measured on such a device; None where none did."""
    kind, besides = ("process_peak_bytes", 0) if device.type == "cpu" else ("device_peak_bytes", CONTEXT)
    whole = (record for record in records if "width" not in record["method"]["settings"])  # no narrower network
    peaks = [record["usage"][kind] for record in whole if kind in record.get("usage", {})]
    return Measured(max(peaks) + besides, len(peaks)) if peaks else None


def work_out_memory(page: Page, data: Data, built: Built, device: torch.device) -> Memory:
    """Return the memory of a run of the page on `device`; `data` may be a stand-in, `built` is left as it was.

    Everything but `process` and the activations follows from counts. Activations are measured: what a forward pass on
    the CPU saves, in the precision of `device`, for two small batches; they grow in a straight line.
    """
    weights = sum(nbytes(weight) for weight in built.model.parameters())
    buffers = sum(nbytes(buffer) for buffer in built.model.buffers())
    trained = sum(nbytes(weight) for weight in built.model.parameters() if weight.requires_grad)
    states = STATES[page.optimizer] if page.optimizer != "sgd" or page.momentum else 0
    prunable = prunable_weights(built.model, built.layers).values()
    masks = sum(nbytes(weight) + 2 * weight.numel() for weight in prunable)
    copies = 2 if page.ema_decay else 1
    few, some = (count_saved(page, data, built, device, number) for number in (FEW, SOME))
    per_image = (some - few) / (SOME - FEW)
    return Memory(
        network=copies * (weights + buffers) + buffers,
        gradients=trained,
        optimizer=states * trained,
        masks=masks,
        activations=round(few + per_image * (images_per_pass(page) - FEW)),
        images=image_bytes(page, data),
        process=PROCESS["cpu" if device.type == "cpu" else "accelerator"],
    )


def image_bytes(page: Page, data: Data) -> int:
    """Return the bytes of all parts of a data set as uint8, padded for random crops; none where images are streamed."""
    if not page.in_memory:
        return 0
    held_out = len(data.test) + len(data.validation or ())
    padded = data.image_size + 2 * page.crop_pad
    return data.channels * (len(data.train) * padded**2 + held_out * data.image_size**2)


def count_saved(page: Page, data: Data, built: Built, device: torch.device, images: int) -> int:
    """Return the bytes that a training step on so many images saves for its backward pass, without weights."""
    model = copy.deepcopy(built.model).cpu().train()
    own = {weight.untyped_storage().data_ptr() for weight in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]):
        batch = torch.randn(images, data.channels, data.image_size, data.image_size)
        if built.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        autocast = make_autocast(torch.device("cpu"), choose_precision(page, device))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
            # The loss holds the graph, so no storage is freed and no address counted for two tensors.
            loss = nn.functional.cross_entropy(model(batch), torch.arange(images) % len(data.classes))
    del loss
    return sum(saved.values())


def nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's own numbers."""
    return tensor.numel() * tensor.element_size()


def device_memory(device: torch.device) -> int:
    """Return the device's memory in bytes: an accelerator's own, or the machine's; 0 where it cannot be known."""
    if device.type != "cpu":
        ask = getattr(torch.get_device_module(device), "get_device_properties", None)
        return int(ask(device).total_memory) if ask is not None else 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def describe_memory(memory: Memory | Measured, available: int) -> str:
    """Return a run's memory in words: `about 2.1 GiB (1.0 activations of a batch, ...); 11 fit in 24 GiB`."""
    fit = f"; {memory.fits(available)} fit in the {available / 2**30:.0f} GiB here" if available else ""
    if isinstance(memory, Measured):
        return f"{gib(memory.total)} GiB, measured in {memory.records} record{'s' * (memory.records != 1)}{fit}"
    parts = {
        "process": memory.process,
        "activations of a batch": memory.activations,
        "weights, gradients, optimiser and masks": memory.weighted,
        "images": memory.images,
        "to work with": memory.total - memory.process - memory.activations - memory.weighted - memory.images,
    }
    listed = ", ".join(f"{gib(size)} {name}" for name, size in parts.items())
    return f"about {gib(memory.total)} GiB ({listed}){fit}"


def gib(size: int) -> str:
    """Return bytes in GiB to two digits after the point."""
    return f"{size / 2**30:.2f}"
