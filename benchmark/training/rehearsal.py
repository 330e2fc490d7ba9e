"""Holding a method to its contract before anything is trained: rehearsed on a tiny network, no layer left empty."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, describe_failure
from benchmark.config.cells import Cell, DonorRun
from benchmark.networks.build import Built
from benchmark.networks.prunable import prunable_weights
from benchmark.training.masks import MaskSet, commit, hash_masks, pack_all, propose, show_donor
from methods.core import (
    Budget,
    DenseGrads,
    Masks,
    Method,
    Timeline,
    View,
    count_kept,
    keep_top_global,
)


def check_timeline(method: Method, name: str, timeline: Timeline) -> None:
    """Raise UserError when the run is too short for one update, or when the last update misses the target."""
    steps = method.update_steps(timeline)
    has_updates = type(method).update is not Method.update
    every = getattr(method, "update_every", None)
    mend = "lower it with ARGS=update_every=N" if every else "it updates once per epoch"
    way = ", or" if every else ":"
    length = f"a run of {timeline.total_steps} steps (update_every is {every})"
    if has_updates and len(steps) == 0:
        raise UserError(f"method '{name}' makes no update in {length}: {mend}{way} train longer with ARGS=epochs=N")
    if len(steps) and not 1 <= steps[0] <= steps[-1] <= timeline.total_steps:
        raise UserError(f"method '{name}' plans updates outside the run's steps 1..{timeline.total_steps}: {steps}")
    last = steps[-1] if len(steps) else 0
    end = method.planned_sparsity(last, timeline)
    if method.promised_budget() is Budget.EXACT and end != method.sparsity:
        raise UserError(
            f"method '{name}' ends at sparsity {end:g} instead of {method.sparsity:g} in {length}: "
            f"{mend}{way} train longer with ARGS=epochs=N"
        )


def stand_in_donor(method: Method, weights: Mapping[str, Tensor]) -> DonorRun | None:
    """Return a donor for a stand-in network, if `method` asks for one: its largest weights, at the method's sparsity.

    A function of the weights alone, whatever their order; so checks that shuffle them see what a method makes of it.
    """
    wanted = method.donor()
    if wanted is None:
        return None
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    masks = keep_top_global(scores, count_kept(method.sparsity, sum(weight.numel() for weight in weights.values())))
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    bits = pack_all(masks) if wanted.masks else None
    return DonorRun("stand-in", wanted.run, method.sparsity, 0, wanted.kind, hash_masks(masks), counts, bits)


SHAPES = {"conv.weight": (8, 4, 3, 3), "point.weight": (16, 8, 1, 1), "linear.weight": (10, 16)}


def rehearse(method: Method, name: str, timeline: Timeline) -> None:
    """Run the method's setup and some of its updates on a tiny stand-in network and hold it to every promise.

    Costs milliseconds, so a broken plugin is refused before the first batch. Raises UserError naming the method, the
    moment and the promise.
    """
    try:
        check_timeline(method, name, timeline)
        rehearse_updates(method, name, timeline)
    except UserError:
        raise
    except Exception as error:  # a plugin may raise anything at all, in its plans as well
        raise UserError(f"method '{name}' fails in rehearsal: {describe_failure(error)}") from error


def rehearse_updates(method: Method, name: str, timeline: Timeline) -> None:
    """Ask for the first masks and for some updates, each twice, and commit them."""
    generator = torch.Generator().manual_seed(0)
    weights = {n: nn.Parameter(torch.randn(shape, generator=generator)) for n, shape in SHAPES.items()}
    maskset = MaskSet(weights, alone=True)
    before_branch = count_kept(method.start_of_branch(), maskset.total)
    maskset.commit(keep_top_global({n: weight.detach().abs() for n, weight in weights.items()}, before_branch), None)
    steps = list(method.update_steps(timeline))
    scoring = method.scoring()
    donor = stand_in_donor(method, weights)
    for step in [0, *sorted({*steps[:2], *steps[-1:]})]:
        gradients = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
        product = {n: torch.randn(shape, generator=generator) for n, shape in SHAPES.items()}
        declared = scoring is not None if step == 0 else method.dense_grads is not DenseGrads.NEVER
        second = step == 0 and scoring is not None and scoring.order == 2
        proposals = []
        for _ in range(2):
            view = View(
                weights=weights,
                masks={n: mask.clone() for n, mask in maskset.masks.items()},
                step=step,
                timeline=timeline,
                seed=0,
                gradients={n: g.clone() for n, g in gradients.items()} if declared else None,
                hessian_gradients={n: h.clone() for n, h in product.items()} if second else None,
                **show_donor(donor if step == 0 else None, weights),
            )
            random_state = torch.random.get_rng_state()
            before = [weight.detach().clone() for weight in weights.values()]
            proposals.append(propose(method, name, view))
            refuse_writes(name, before, weights.values())
            if not torch.equal(random_state, torch.random.get_rng_state()):
                raise UserError(
                    f"method '{name}' breaks its contract at step {step}: it used torch's global random generator; "
                    "draw random numbers with view.random(name)"
                )
        commit(method, name, maskset, proposals[0], view)
        if not same_stages(*proposals):
            raise UserError(
                f"method '{name}' breaks its contract at step {step}: asked twice with the same view it returned "
                "different masks; draw random numbers with view.random(name), never from a global generator"
            )


def same_stages(one: list[Masks], other: list[Masks]) -> bool:
    """Return whether two proposals are the same masks in the same stages."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(torch.equal(a[name], b[name]) for a, b in pairs for name in a)


def refuse_writes(name: str, before: Iterable[Tensor], after: Iterable[Tensor]) -> None:
    """Raise UserError when a weight changed while the method was asked for masks."""
    if any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise UserError(f"method '{name}' breaks its contract: it wrote to a weight; it may only return masks")


def check_budget(cell: Cell, built: Built) -> None:
    """Raise UserError when fewer weights than layers stay, so that some layer must be left empty by any method."""
    weights = prunable_weights(built.model, built.layers)
    kept = count_kept(cell.sparsity, built.dense_prunable)
    if kept < len(weights) and not cell.page.allow_empty_layers:
        raise UserError(
            f"sparsity {cell.sparsity:g} leaves {kept} of {built.dense_prunable:,} weights for {len(weights)} layers, "
            f"so a layer must stay empty ({', '.join(weights)}): lower SPARSITY, or allow it with "
            "ARGS=allow_empty_layers=true"
        )


def refuse_empty(cell: Cell, counts: dict[str, int]) -> None:
    """Raise UserError when first masks that no score decided leave a layer empty, unless the page allows it."""
    empty = [name for name, count in counts.items() if count == 0]
    if empty and not cell.page.allow_empty_layers:
        raise UserError(
            f"method '{cell.plugin.name}' at sparsity {cell.sparsity:g} leaves no weight in layer {', '.join(empty)}: "
            "lower SPARSITY, or allow it with ARGS=allow_empty_layers=true"
        )
