"""P8 and P9: whole training steps, compared with the peer's and its loader, and between precisions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from benchmark.base.timing import median_ratio, milliseconds, time_in_turn
from benchmark.data.arrays import Arrays
from benchmark.data.sets import MemoryImages
from benchmark.perf.goals import Goal
from benchmark.perf.peers import R20, VGG, Net, Peer, backward, make_batch, make_model, make_sgd, sparsify

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES = 1024


def measure(quick: bool) -> list[Goal]:
    """Return the goals of a whole step."""
    goals = [*measure_precisions(R20, 2 if quick else 5), *measure_steps(R20, 3 if quick else 7)]
    return goals if quick else [*goals, *measure_steps(VGG, 3)]


def measure_precisions(net: Net, rounds: int) -> list[Goal]:
    """Time both precisions and memory formats, and the step that precision=fastest would choose."""

    def step(precision: str, channels_last: bool) -> Callable[[], None]:
        model, batch = make_model(net, channels_last), make_batch(net, net.batch, channels_last)
        return lambda: backward(model, *batch, precision)

    names = {"fp32 NCHW": ("fp32", False), "fp32 NHWC": ("fp32", True), "bf16 NHWC": ("bf16", True)}
    times = time_in_turn({name: step(*how) for name, how in names.items()}, rounds)
    medians = {name: statistics.median(seen) for name, seen in times.items()}
    probed = min(medians["fp32 NHWC"], medians["bf16 NHWC"]) / min(medians.values())
    gain = median_ratio(times["fp32 NCHW"], times["bf16 NHWC"])
    return [
        Goal("P9", f"{net.label}: fp32 NCHW / bf16 NHWC", gain, ">=", 1.9, details=milliseconds(times)),
        Goal("P9", f"{net.label}: what precision=fastest takes / the best", probed, "<=", 1.05),
    ]


def peer_batches(pixels: np.ndarray, batch: int) -> Iterator[Tensor]:
    """Yield batches as the authors' loader makes them: image by image, to a tensor and back for padding."""
    pipeline = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Lambda(lambda x: nn.functional.pad(x.unsqueeze(0), (4, 4, 4, 4), mode="reflect").squeeze(0)),
            transforms.ToPILImage(),
            transforms.RandomCrop(32),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    while True:
        for first in range(0, len(pixels) - batch + 1, batch):
            yield torch.stack([pipeline(Image.fromarray(image)) for image in pixels[first : first + batch]])


def our_batches(pixels: np.ndarray, batch: int) -> Iterator[Tensor]:
    """Yield batches as the suite makes them."""
    page: Any = SimpleNamespace(mean=list(MEAN), std=list(STD))
    stored = Arrays(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.zeros(len(pixels)).long())
    images = MemoryImages(stored, page, torch.device("cpu"), pad=4, mode="reflect", flip=True)
    epoch = 0
    while True:
        for batch_images, _ in images.epoch(0, epoch, batch, True, torch.device("cpu")):
            yield batch_images.contiguous(memory_format=torch.channels_last)
        epoch += 1


def measure_steps(net: Net, rounds: int) -> list[Goal]:
    """Time whole steps, images included: the peer's in fp32, ours in both precisions."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = torch.arange(net.batch) % 10

    def ours(precision: str) -> Callable[[], None]:
        model, images = make_model(net), our_batches(pixels, net.batch)
        maskset, optimizer = sparsify(model, 0.9), make_sgd(model, True)

        def step() -> None:
            backward(model, next(images), labels, precision)
            maskset.mask_gradients()
            optimizer.step()

        return step

    model, images = make_model(net, channels_last=False), peer_batches(pixels, net.batch)
    peer = Peer(model, make_sgd(model, False), sparsify(model, 0.9).masks)

    def theirs() -> None:
        backward(model, next(images), labels)
        peer.step()

    times = time_in_turn({"peer": theirs, "fp32": ours("fp32"), "bf16": ours("bf16")}, rounds)
    single, half = median_ratio(times["peer"], times["fp32"]), median_ratio(times["peer"], times["bf16"])
    limit = 2.0 if net is R20 else 1.7
    goals = [Goal("P8", f"{net.label}: the peer's step / ours in bf16", half, ">=", limit, details=milliseconds(times))]
    if net is R20:
        goals.insert(0, Goal("P8", f"{net.label}: the peer's step / ours in fp32", single, ">=", 1.3))
    return goals
