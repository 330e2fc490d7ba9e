"""P4, P5 and P14: a whole mask update (global pruning, then drop and grow in each layer), its masks and memory."""

from __future__ import annotations

import ctypes
import math
import re
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.base.timing import median_ratio, milliseconds, time_in_turn
from benchmark.perf.goals import Goal
from benchmark.perf.peers import (
    VGG,
    Net,
    Peer,
    backward,
    make_batch,
    make_model,
    make_sgd,
    nets,
    pass_seconds,
    sparsify,
)
from benchmark.training.masks import MaskSet, hash_masks
from methods.core import Timeline, View, drop, gradient_magnitude, grow, keep_top_global, magnitude

KEEP, RATE = 0.95, 0.3  # share of active weights kept by pruning; share exchanged in each layer


def measure(quick: bool) -> list[Goal]:
    """Return the goals of an update, network by network."""
    return [goal for net in nets(quick) for goal in measure_net(net, 3 if quick else 5, 2 if quick else 5)]


def propose(maskset: MaskSet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return pruned masks, and those after drop and growth: GraNet's update, from the same functions."""
    gradients: dict[str, Any] = {name: weight.grad for name, weight in maskset.weights.items()}
    view = View(
        weights=maskset.weights, masks=maskset.masks, step=1, timeline=Timeline(1, 1), seed=0, gradients=gradients
    )
    pruned = keep_top_global(magnitude(view), math.floor(KEEP * maskset.active()), among=maskset.masks)
    survivors = drop(pruned, magnitude(view), RATE, math.ceil)
    return pruned, grow(survivors, gradient_magnitude(view), like=pruned)


def measure_net(net: Net, rounds: int, passes: int) -> list[Goal]:
    """Time the update with its commit against the peer's, on gradients of a real pass."""
    models = [make_model(net), make_model(net)]
    optimizers = [make_sgd(models[0], True), make_sgd(models[1], False)]
    masksets = [sparsify(model, 0.8) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        backward(model, *make_batch(net, 4))
        optimizer.step()
    first = {name: mask.clone() for name, mask in masksets[0].masks.items()}
    peer = Peer(models[1], optimizers[1], masksets[1].masks)
    theirs = dict(peer.masks)
    weights = [{n: w.detach().clone() for n, w in maskset.weights.items()} for maskset in masksets]

    def ours() -> None:
        for masks in propose(masksets[0]):
            masksets[0].commit(masks, None, optimizers[0])

    def restore() -> float:
        for maskset, saved in zip(masksets, weights, strict=True):
            for name, weight in maskset.weights.items():
                weight.data.copy_(saved[name])
        masksets[0].commit(first, None)
        peer.masks = dict(theirs)
        return 0.0

    keep = math.floor(KEEP * masksets[0].active())
    times = time_in_turn({"ours": ours, "peer": lambda: peer.update(keep, RATE), "restore": restore}, rounds)
    whole, size = statistics.median(times["ours"]), masksets[0].total
    large = size > 10**7
    share = whole / pass_seconds(net, passes)
    peaks = []
    for _ in range(5):  # which pages an allocator takes differs from time to time
        restore()
        peaks.append(peak_extra(ours) / (4 * size))
    extra = statistics.median(peaks)
    return [
        Goal("P4", f"{net.label}: the peer's update / ours", median_ratio(times["peer"], times["ours"]), ">=",
             5 if large else 2, details=milliseconds(times)),
        Goal("P4", f"{net.label}: update / forward and backward", share, "<=", 0.2 if net is VGG else 0.35),
        Goal("P4", f"{net.label}: update", 1000 * whole, "<=", 1200 if large else 10, "ms"),
        Goal("P5", f"{net.label}: masks that threads or memory formats change", differing(net), "<=", 0, ""),
        # no limit for a small network, whose update holds megabytes of counters whatever its size
        Goal("P14", f"{net.label}: memory of an update / weights", extra, "<=" if large else "", 1.75,
             details={"peaks": peaks}),
    ]  # fmt: skip


def differing(net: Net) -> float:
    """Return how many of three other combinations of threads and memory formats change an update's masks."""
    hashes, before = [], torch.get_num_threads()
    for threads, channels_last in ((1, True), (2, True), (1, False), (2, False)):
        model = make_model(net, channels_last)
        maskset = sparsify(model, 0.8)
        generator = torch.Generator().manual_seed(2)
        for weight in maskset.weights.values():  # few values, so that most tie
            weight.grad = torch.randint(0, 50, weight.shape, generator=generator).to(weight)
        torch.set_num_threads(threads)
        hashes.append(hash_masks(propose(maskset)[1]))
        torch.set_num_threads(before)
    return float(sum(other != hashes[0] for other in hashes[1:]))


def peak_extra(action: Any) -> float:
    """Return the peak increase of the process's memory while `action` runs, in bytes; nan except on Linux."""
    status = Path("/proc/self/status")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = read_kib(status, "VmRSS")
        action()
        return 1024.0 * (read_kib(status, "VmHWM") - before)
    except (OSError, AttributeError, TypeError):
        return math.nan


def read_kib(status: Path, field: str) -> int:
    """Return a field of a process's status in KiB."""
    found = re.search(rf"{field}:\s+(\d+)", status.read_text())
    return int(found[1]) if found else 0
