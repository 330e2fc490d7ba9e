"""A small network, small data and a run on them, for tests of the engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.config.cells import Cell
from benchmark.config.pages import Page
from benchmark.config.plugins import Plugin, find_method
from benchmark.conformance.trial import Silent
from benchmark.data.sets import Data
from benchmark.networks.costs import Meter, count_costs
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.runs.run import ask_rounds, make_timeline, set_up_masks
from benchmark.training.masks import MaskSet
from benchmark.training.method_state import MethodState
from benchmark.training.optim import make_average, make_optimizer
from benchmark.training.state import Training
from benchmark.training.train import train
from methods.core import Method

IMAGES, BATCH, SIZE = 48, 8, 6
__all__ = ["BATCH", "IMAGES", "PRUNABLE", "SIZE", "Silent", "SmallImages", "SmallNet"]
__all__ += ["finish", "make_page", "make_run", "make_training", "poison"]


class SmallImages:
    """Random images in a fixed order that depends on (seed, epoch)."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(IMAGES, 2, SIZE, SIZE, generator=generator)
        self.labels = torch.arange(IMAGES) % 3

    def __len__(self) -> int:
        return IMAGES

    def epoch(
        self, seed: int, epoch: int, batch_size: int, drop_last: bool, device: Any, start: int = 0, share: Any = (0, 1)
    ) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1000 * seed + epoch))
        for chunk in order.split(batch_size)[start:]:
            own = chunk[share[0] :: share[1]]
            yield self.images[own], self.labels[own]

    def batches(self, batch_size: int, device: Any, share: Any = (0, 1)) -> Iterator[tuple[Tensor, Tensor]]:
        yield from [(self.images, self.labels)][share[0] :: share[1]]

    def sample(self, indices: Tensor, seed: int, device: Any, augmented: bool = True) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


class SmallNet(nn.Module):
    """Two convolutions (one grouped), batch norm and a classifier: 144 + 144 + 24 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


PRUNABLE = 2 * 8 * 9 + 8 * 2 * 9 + 24


def make_page(**changes: Any) -> Page:
    """Return a page for the small network."""
    settings: dict[str, Any] = {
        "title": "small",
        "data": "digits",
        "model": "small",
        "epochs": 4,
        "lr": 0.1,
        "update_every": 3,
        "methods": {"str": {"update_every": 3}},  # its own 10 would leave it two shifts
        "mean": [0.5, 0.5],
        "std": [0.5, 0.5],
        "batch_size": BATCH,
        "image_size": SIZE,
        "channels_last": False,
    }
    return Page(**{**settings, **changes})


def make_training(method: Method, name: str = "test", seed: int = 0, **changes: Any) -> Training:
    """Return a run of `method` on the small network, before its first step, every weight active."""
    page = make_page(**changes)
    torch.manual_seed(seed)
    model: nn.Module = SmallNet()
    layers = find_layers(model, page)
    costs = count_costs(model, layers, (2, SIZE, SIZE))
    maskset = MaskSet(prunable_weights(model, layers), layers[-1].name)
    meter = Meter(costs, costs)
    maskset.listeners.append(meter.on_commit)
    images = SmallImages()
    data = Data("small", ("a", "b", "c"), 2, SIZE, images, None, images, "0")
    plugin = Plugin(name, type(method), "test", "0" * 64)
    cell = Cell("small", page, {}, plugin, method, {}, method.sparsity, seed)
    return Training(
        page=page,
        method=method,
        name=name,
        model=model,
        optimizer=make_optimizer(page, model),
        maskset=maskset,
        meter=meter,
        data=data,
        timeline=make_timeline(cell, data),
        seed=seed,
        device=torch.device("cpu"),
        precision="fp32",
        channels_last=False,
        method_state=MethodState(ask_rounds(cell)),
        average=make_average(page, model),
    )


def make_run(
    name: str, sparsity: float = 0.8, seed: int = 0, changes: dict[str, Any] | None = None, **page: Any
) -> Training:
    """Return a run of the suite's method `name`, its first masks committed."""
    plugin = find_method(name)
    settings = {"update_every": 4} if name == "rigl" else {}
    method = plugin.build(make_page(**page), sparsity, {**settings, **(changes or {})})
    run = make_training(method, name, seed, **page)
    set_up_masks(Cell("small", run.page, {}, plugin, method, {}, sparsity, seed), run)
    return run


def finish(run: Training) -> Training:
    """Train to the end."""
    train(run, Silent(), lambda _: None)
    return run


def poison(run: Training, steps: set[int]) -> Training:
    """Make the images of these training steps infinite, so that the engine skips them."""
    original = run.model.forward

    def forward(x: Tensor) -> Tensor:
        # run.step counts the step in progress; evaluation is left alone
        return original(x * math.inf if run.model.training and run.step in steps else x)

    run.model.forward = forward  # type: ignore[method-assign]
    return run
