"""P1 and P2: the cost of masks in a step, timed right after a backward pass, with cold caches."""

from __future__ import annotations

import statistics
from collections.abc import Callable

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


def measure_net(net: Net, rounds: int, passes: int) -> list[Goal]:
    """Time masking, the fused step, torch's default dense step and the peer's masked step."""
    models = [make_model(net) for _ in range(4)]
    masks = [sparsify(model, 0.9) for model in models]
    fused, loop, peer_loop = make_sgd(models[1], True), make_sgd(models[2], False), make_sgd(models[3], False)
    peer = Peer(models[3], peer_loop, masks[3].masks)
    times = time_in_turn(
        {
            "mask gradients": after_backward(net, models[0], masks[0].mask_gradients),
            "mask and fused SGD": after_backward(net, models[1], lambda: (masks[1].mask_gradients(), fused.step())),
            "dense SGD, torch's default": after_backward(net, models[2], loop.step),
            "peer": after_backward(net, models[3], peer.step),
        },
        rounds,
    )
    whole = pass_seconds(net, passes) + statistics.median(times["mask and fused SGD"])
    share = statistics.median(times["mask gradients"]) / (whole - statistics.median(times["mask gradients"]))
    details = {**milliseconds(times), "pass": round(1000 * pass_seconds(net, passes), 1)}
    ours = times["mask and fused SGD"]
    dense, theirs = median_ratio(ours, times["dense SGD, torch's default"]), median_ratio(ours, times["peer"])
    return [
        Goal("P1", f"{net.label}: masked step / dense step", 1 + share, "<=", 1.01, details=details),
        Goal("P2", f"{net.label}: mask + optimiser / torch's dense SGD", dense, "<=", 0.7),
        Goal("P2", f"{net.label}: mask + optimiser / the peer's", theirs, "<=", 0.45),
    ]
