"""Checks that masks are a pure function of what the view shows."""

from __future__ import annotations

import torch

from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.trial import Kit
from benchmark.conformance.views import LINE, all_true, ask, distinct_values, show, shuffle, shuffled_view
from methods.core import Masks


@check("inputs-untouched", "return new masks; never write to a tensor of the view, through .data or numpy() either")
def check_inputs(kit: Kit) -> Outcome:
    """Weights, masks and gradients have the same bits after setup() and update() as before."""
    calls = [call for network in ("conv", "vit") for call in kit.trial(network=network).calls]
    for call in calls:
        if call.changed:
            return Outcome(False, f"step {call.step}: wrote to {', '.join(call.changed[:3])}")
    return Outcome(True, f"{len(calls)} calls")


@check("repeatable", "draw with view.random(name, purpose); keep nothing between calls")
def check_repeatable(kit: Kit) -> Outcome:
    """The same seed gives the same masks at every update, whatever the global random generators hold."""
    usual = kit.trial()
    for noise in (1, 2):
        other = kit.trial(noise=noise)
        pairs = zip(usual.commits, other.commits, strict=False)
        different = [commit.step for commit, again in pairs if commit.digest != again.digest]
        if different:
            return Outcome(False, f"other masks from step {different[0]} on, with other global random states")
    return Outcome(True, f"{len(usual.commits)} masks the same under 3 global random states")


@check(
    "parameter-order",
    "draw each layer's numbers with view.random(name), and go by names; layers are exempted by the page's keep_dense",
)
def check_order(kit: Kit) -> Outcome:
    """The masks of a layer do not depend on the order in which layers are listed."""
    method = kit.method(0.8)
    weights, gradients = distinct_values(1), distinct_values(2)
    names = list(weights)
    masks: Masks = all_true(weights)
    seen = 0
    for step in [0, *method.update_steps(LINE)]:
        proposals = []
        for order in (names, names[::-1]):
            parts = [{name: tensors[name] for name in order} for tensors in (weights, masks, gradients)]
            proposals.append(ask(method, show(method, parts[0], parts[1], parts[2], step)))
        different = [name for name in names if not torch.equal(proposals[0][name], proposals[1][name])]
        if different:
            return Outcome(False, f"step {step}: other masks for {', '.join(different)} with the layers in reverse")
        masks = {name: proposals[0][name] for name in names}
        seen += 1
    return Outcome(True, f"{seen} proposals the same with the layers in reverse")


@check(
    "fine-scores",
    "score in float32 or better (precise()); half precision ties by the thousand, and ties go by position",
)
def check_fine(kit: Kit) -> Outcome:
    """Weights and gradients that differ in float32 alone are told apart: shuffled inputs give shuffled masks."""
    method = kit.method(0.8)
    values = distinct_values(3)
    ones = {name: torch.ones_like(value) for name, value in values.items()}
    generator = torch.Generator().manual_seed(4)
    orders = {name: torch.randperm(len(value), generator=generator) for name, value in values.items()}
    kind = shuffled_view(orders)
    masks: Masks = all_true(values)
    seen = 0
    for step in [0, *list(method.update_steps(LINE))[:2]]:
        slopes = ones if step == 0 else values  # products of two such numbers would round to ties
        first = ask(method, show(method, values, masks, slopes, step))
        shuffled = (shuffle(values, orders), shuffle(masks, orders), shuffle(slopes, orders))
        second = ask(method, show(method, *shuffled, step, kind))
        expected = shuffle(first, orders)
        wrong = sum(int((expected[name] != second[name]).sum()) for name in values)
        if wrong:
            return Outcome(
                False, f"step {step}: {wrong} weights fare otherwise when their layer's outputs are shuffled"
            )
        masks = first
        seen += 1
    return Outcome(True, f"{seen} proposals follow the shuffle")
