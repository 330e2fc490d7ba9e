"""P1 and P2: the cost of masks in a step, timed right after a backward pass, with cold caches.

Masking and optimiser are bound by memory: they cannot take less than the bytes that must move take at the speed of a
copy, which is measured beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import nn

from benchmark.base.timing import median_ratio, milliseconds, time_in_turn
from benchmark.perf.goals import Goal
from benchmark.perf.peers import (
    Net,
    Peer,
    backward,
    make_batch,
    make_model,
    make_sgd,
    nets,
    pass_seconds,
    sparsify,
    timed,
)


def measure(quick: bool) -> list[Goal]:
    """Return the goals of the step, network by network."""
    return [goal for net in nets(quick) for goal in measure_net(net, 5 if quick else 9, 2 if quick else 5)]


def after_backward(net: Net, model: object, action: Callable[[], object]) -> Callable[[], float]:
    """Return a function that computes gradients on a small batch, then times `action` alone."""
    batch = make_batch(net, 4)

    def run() -> float:
        backward(model, *batch)  # type: ignore[arg-type]
        return timed(action)

    return run


def bytes_to_move(weights: int, others: int) -> int:
    """Return the bytes that a masked step of SGD with momentum must read and write, if it meets each value once.

    Of a weight: value, gradient, momentum and mask read, value and momentum written, in float32; others have no mask.
    """
    return 4 * (6 * weights + 5 * others)


def copy_parameters(model: nn.Module) -> Callable[[], object]:
    """Return a function that copies all parameters, to tensors that are there."""
    sources = [parameter.detach() for parameter in model.parameters()]
    targets = [torch.empty_like(source) for source in sources]
    return lambda: torch._foreach_copy_(targets, sources)


def measure_net(net: Net, rounds: int, passes: int) -> list[Goal]:
    """Time masking, the fused step, torch's default dense step, the peer's masked step and a copy, in turn."""
    models = [make_model(net) for _ in range(5)]
    masks = [sparsify(model, 0.9) for model in models]
    fused, loop, peer_loop = make_sgd(models[1], True), make_sgd(models[2], False), make_sgd(models[3], False)
    peer = Peer(models[3], peer_loop, masks[3].masks)
    times = time_in_turn(
        {
            "mask gradients": after_backward(net, models[0], masks[0].mask_gradients),
            "mask and fused SGD": after_backward(net, models[1], lambda: (masks[1].mask_gradients(), fused.step())),
            "dense SGD, torch's default": after_backward(net, models[2], loop.step),
            "peer": after_backward(net, models[3], peer.step),
            "copy of the parameters": after_backward(net, models[4], copy_parameters(models[4])),
        },
        rounds,
    )
    mask, ours, dense, theirs, copy = times.values()
    whole = pass_seconds(net, passes) + statistics.median(ours)
    share = statistics.median(mask) / (whole - statistics.median(mask))
    rest, size = pass_seconds(net, passes), sum(parameter.numel() for parameter in models[4].parameters())
    bound = [seconds * bytes_to_move(masks[4].total, size - masks[4].total) / (8 * size) for seconds in copy]
    note = f"{1000 * statistics.median(ours):.3g} of at least {1000 * statistics.median(bound):.3g} ms"
    details = {**milliseconds(times), "pass": round(1000 * rest, 1)}
    return [
        Goal("P1", f"{net.label}: masked step / dense step", 1 + share, "<=", 1.01, details=details),
        *(
            Goal("P1", f"{net.label}: masked step / {what}", median_ratio(*whole_steps(rest, ours, other)), "<=", 1)
            for what, other in (("the plain dense loop's", dense), ("the peer's", theirs))
        ),
        Goal("P2", f"{net.label}: mask + optimiser / torch's dense SGD", median_ratio(ours, dense), "<=", 1),
        Goal("P2", f"{net.label}: mask + optimiser / the peer's", median_ratio(ours, theirs), "<=", 1),
        Goal("P2", f"{net.label}: share of the memory's speed, mask + optimiser", median_ratio(bound, ours), ">=", 0.5,
             details={"note": note, "GB/s of a copy": round(8e-9 * size / statistics.median(copy), 2)}),
    ]  # fmt: skip


def whole_steps(rest: float, *times: list[float]) -> list[list[float]]:
    """Return times of whole steps, given those of their last parts."""
    return [[rest + seconds for seconds in part] for part in times]
