"""How the cost of masks grows: with weights, layers, batch and how often they change."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmark.base.timing import time_in_turn
from benchmark.perf.goals import Goal
from benchmark.perf.peers import R20, Net, backward, make_batch, make_model, sparsify, timed
from benchmark.perf.update import propose
from benchmark.training.masks import MaskSet


def measure(quick: bool) -> list[Goal]:
    """Return rows without limits: time per million weights, and shares of a step."""
    sizes = (3 * 10**5, 3 * 10**6, 3 * 10**7) if quick else (3 * 10**5, 3 * 10**6, 3 * 10**7, 10**8)
    rows = [row for size in sizes for row in measure_stack(size, 20)]
    rows += [row for layers in (5, 100) for row in measure_stack(3 * 10**6, layers)]
    return rows + measure_batches((16, 64) if quick else (16, 64, 256))


def make_stack(size: int, layers: int) -> MaskSet:
    """Return masks on so many equal layers of together about `size` weights, a tenth of them active."""
    width = round((size / layers / 9) ** 0.5)
    generator = torch.Generator().manual_seed(0)
    weights, masks = {}, {}
    for number in range(layers):
        weight = nn.Parameter(torch.randn(width, width, 3, 3, generator=generator))
        weight.grad = torch.randn(weight.shape, generator=generator)
        weights[f"layer{number}"] = weight
        masks[f"layer{number}"] = torch.rand(weight.shape, generator=generator) < 0.1
    maskset = MaskSet(weights)
    maskset.commit(masks, None)
    return maskset


def measure_stack(size: int, layers: int) -> list[Goal]:
    """Time one masking of gradients and one update, in nanoseconds per weight, and the share of updates."""
    maskset = make_stack(size, layers)
    saved = {name: mask.clone() for name, mask in maskset.masks.items()}

    def update() -> float:
        seconds = timed(lambda: [maskset.commit(masks, None) for masks in propose(maskset)])
        maskset.commit(saved, None)  # what was pruned is zero from now on; the work stays the same
        return seconds

    rounds = 3 if size > 10**7 else 7
    times = time_in_turn({"mask": maskset.mask_gradients, "update": update}, rounds)
    mask, whole = statistics.median(times["mask"]), statistics.median(times["update"])
    label, scale = f"{maskset.total / 1e6:.3g}M weights, {layers} layers", 1e9 / maskset.total
    details = {"mask_ms": 1e3 * mask, "update_ms": 1e3 * whole}
    return [
        Goal("growth", f"{label}: mask gradients, per weight", mask * scale, "", unit="ns", details=details),
        Goal("growth", f"{label}: update, per weight", whole * scale, "", unit="ns"),
        Goal("growth", f"{label}: update every 100 steps, per step / masking", whole / 100 / mask, ""),
        Goal("growth", f"{label}: update every 1000 steps, per step / masking", whole / 1000 / mask, ""),
    ]


def measure_batches(batches: tuple[int, ...]) -> list[Goal]:
    """Time masking as a share of ResNet-20's passes: it costs the same whatever the batch."""
    rows = []
    for size in batches:
        net = Net(R20.label, R20.model, size, R20.size)
        model, batch = make_model(net), make_batch(net, size)
        maskset = sparsify(model, 0.9)
        variants: dict[str, Callable[[], object]] = {
            "pass": partial(backward, model, *batch),
            "mask": maskset.mask_gradients,
        }
        times = {name: statistics.median(seen) for name, seen in time_in_turn(variants, 3).items()}
        share = 100 * times["mask"] / times["pass"]
        rows.append(Goal("growth", f"ResNet-20, batch {size}: masking, share of a pass", share, "", unit="%"))
    return rows
