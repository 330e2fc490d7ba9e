"""Runs for the check of a GPU: the suite's own, on noise shaped like its data sets, and how their steps are timed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmark.base.timing import time_in_turn
from benchmark.config.cells import Cell, plan_cells
from benchmark.config.pages import Page
from benchmark.conformance.trial import Silent
from benchmark.data.arrays import Arrays, DecodedSet
from benchmark.data.sets import Data, divide, hold
from benchmark.networks.build import build, place
from benchmark.runs.run import prepare, set_up_masks
from benchmark.training.precision import set_determinism
from benchmark.training.state import Training
from benchmark.training.train import begin_epoch, compute_gradients, make_graphed, train, train_step

ROUND_S = 0.15  # of one variant in one round
Hook = Callable[[Training], None]


@dataclass(frozen=True)
class Net:
    """A network of the goals: the page it is trained on, image size and classes."""

    label: str
    task: str
    size: int = 32
    classes: int = 10


R20, VGG, R50 = (
    Net("ResNet-20", "cifar10_resnet20"),
    Net("VGG-19", "cifar10_vgg19"),
    Net("ResNet-50", "cifar10_resnet50"),
)
LARGE = Net("ResNet-50 at 224", "imagenet_resnet50", 224, 1000)
SMALL = {"batch_size": 8, "update_every": 4}  # of the quick check


def nets(quick: bool) -> tuple[Net, ...]:
    """Return the networks to measure on."""
    return (R20,) if quick else (R20, VGG, R50)


def make_noise(page: Page, images: int, size: int, classes: int, device: torch.device) -> Data:
    """Return random images in memory, as the page would hold its data set: so many for training, a few to test."""
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Arrays:
        pixels = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
        return Arrays(pixels, torch.arange(count) % classes)

    stored = DecodedSet(tuple(str(label) for label in range(classes)), {"train": draw(images), "test": draw(8)})
    return hold(page, "noise", stored, divide(page, stored), device)


class Bench:
    """One network with its data, built once; runs of any method begin on copies of it.

    Quick: images of 8x8 in batches of 8. `batches`: of an epoch, unless `images` says otherwise.
    """

    def __init__(
        self, net: Net, device: torch.device, quick: bool, batches: int = 8, images: int = 0, **settings: Any
    ) -> None:
        self.net, self.device = net, device
        self.settings = {"split": "full", **settings, **(SMALL if quick else {})}
        self.cell = self.make_cell("granet", 0.9)
        page = self.cell.page
        count = images if images and not quick else batches * page.batch_size
        self.data = make_noise(page, count, 8 if quick else net.size, net.classes, device)
        self.built = build(self.cell, self.data)

    def make_cell(self, method: str, sparsity: float, **changes: Any) -> Cell:
        """Return a cell on the network's page."""
        return plan_cells(method, str(sparsity), self.net.task, "0", {**self.settings, **changes})[0]

    def begin(self, method: str = "granet", graphs: bool = False, masks: bool = True, **changes: Any) -> Training:
        """Return a run before its first step; without `masks` nothing has been pruned, as a continued run begins."""
        cell = self.make_cell(method, 0.9, **changes)
        set_determinism(cell.page, self.device)
        built = place(dataclasses.replace(self.built, model=copy.deepcopy(self.built.model)), cell.page, self.device)
        run = prepare(cell, built, self.data, self.device)
        run.graphs = graphs
        if masks:
            set_up_masks(cell, run)
        return run

    def dense(self, graphs: bool = False) -> Training:
        """Return a run whose step does not mask: what a masked step is compared with."""
        run = self.begin("dense", graphs)
        run.maskset.mask_gradients = lambda: None  # type: ignore[method-assign]
        return run


class Steps:
    """The engine's training step on one batch that lies on the device, as often as it is called."""

    def __init__(self, run: Training) -> None:
        self.run, self.criterion = run, nn.CrossEntropyLoss(label_smoothing=run.page.label_smoothing)
        batches = run.data.train.epoch(run.seed, 0, run.page.batch_size, True, run.device)
        self.images, self.labels = next(iter(batches))
        if run.graphs:
            run.graphed = make_graphed(run, self.criterion)
        begin_epoch(run, 0)

    def __call__(self) -> None:
        self.run.step += 1
        train_step(self.run, self.images, self.labels, self.criterion, False)

    def gradients(self) -> None:
        """Leave dense gradients of the batch."""
        self.run.optimizer.zero_grad(set_to_none=True)
        compute_gradients(self.run, self.criterion, 1.0, self.images, self.labels)


class EnoughError(Exception):
    """Ends the engine's loop where the check has seen what it came for."""


def train_for(
    run: Training, steps: int = 0, epochs: int = 0, after_step: Hook | None = None, after_epoch: Hook | None = None
) -> Training:
    """Have the engine's loop train until so many steps or epochs are done, or to the run's end."""

    def stepped(run: Training) -> None:
        if after_step is not None:
            after_step(run)
        if run.step == steps:
            raise EnoughError

    def ended(run: Training) -> None:
        if after_epoch is not None:
            after_epoch(run)
        if run.epoch == epochs:
            raise EnoughError

    with contextlib.suppress(EnoughError):
        train(run, Silent(), ended, stepped)  # type: ignore[arg-type]
    return run


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def seconds_of(device: torch.device, action: Callable[[], object], times: int) -> float:
    """Return the seconds of an action on an idle device, from its start until the device is idle again."""
    synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        action()
    synchronise(device)
    return (time.perf_counter() - began) / times


def time_on(
    device: torch.device,
    actions: Mapping[str, Callable[[], object]],
    quick: bool,
    first: Mapping[str, Callable[[], None]] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of each action in each round, in turn; `first`: what to do before those named there."""
    before = first or {}

    def timed(name: str, times: int) -> float:
        before.get(name, lambda: None)()
        return seconds_of(device, actions[name], times)

    counts = {}
    for name in actions:
        timed(name, 1 if quick else 3)  # memory is allocated, kernels are chosen, graphs are recorded
        counts[name] = 1 if quick else max(2, min(100, int(ROUND_S / timed(name, 2))))
    return time_in_turn({name: partial(timed, name, count) for name, count in counts.items()}, 2 if quick else 7)


def has_graphs(device: torch.device) -> bool:
    """Return whether the device records CUDA graphs."""
    return device.type == "cuda"
