"""Checks that inactive weights and their state are zero, and that a method leaves no trace and repeats itself."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.trial import Kit, State, same_bits
from benchmark.conformance.views import LINE, Show, all_true, coarse_values, distinct_values, shuffle, shuffled_view
from methods.core import Inactive, Masks, Method

OPTIMISERS = ("sgd", "adam", "adamw")
ENGINE = "this is the engine's part; a method only returns masks. Report it"


def alive(tensor: Tensor, mask: Tensor) -> int:
    """Return how many elements are not zero where the mask is inactive."""
    return int((tensor[~mask] != 0).sum())


@check("inactive-weights", ENGINE)
def check_weights(kit: Kit) -> Outcome:
    """Zero after every step, with SGD, Adam and AdamW, momentum and weight decay."""
    looked = 0
    for optimizer in OPTIMISERS:
        for seen in kit.trial(optimizer=optimizer).steps:
            for name, mask in seen.state.masks.items():
                if alive(seen.state.model[name], mask):
                    count = alive(seen.state.model[name], mask)
                    return Outcome(False, f"{optimizer}: {count} alive in {name} after step {seen.step}")
                looked += int((~mask).sum())
    return Outcome(True, f"{looked:,} looked at, all zero")


@check("inactive-optimiser-state", ENGINE)
def check_state(kit: Kit) -> Outcome:
    """Momentum and both moments of weights that are not trained are zero after every step."""
    kinds = set()
    for optimizer in OPTIMISERS:
        for seen in kit.trial(optimizer=optimizer).steps:
            for (name, key), state in seen.state.optimizer.items():
                mask = seen.state.trained.get(name)
                if mask is None or state.shape != mask.shape:
                    continue
                kinds.add(key)
                if alive(state, mask):
                    return Outcome(False, f"{optimizer}: {alive(state, mask)} of {name}'s {key} at step {seen.step}")
    return Outcome(bool(kinds), f"{', '.join(sorted(kinds))}: all zero")


@check("inactive-average", ENGINE)
def check_average(kit: Kit) -> Outcome:
    """The averaged weights are zero where the masks are inactive, after every step."""
    for optimizer in OPTIMISERS:
        for seen in kit.trial(optimizer=optimizer).steps:
            for name, mask in seen.state.masks.items():
                count = alive(seen.state.average[name], mask)
                if count:
                    return Outcome(False, f"{optimizer}: {count} alive in the average of {name} after step {seen.step}")
    return Outcome(True, "all zero")


@check("grown-weights", ENGINE)
def check_grown(kit: Kit) -> Outcome:
    """A grown weight starts at zero with zero state and average; one active before and after keeps all three."""
    if kit.plugin.cls.inactive is Inactive.STORED or kit.plugin.cls.writes:
        return Outcome(None, "values are stored or written: see stored-values and written-values")
    grown = 0
    for optimizer in OPTIMISERS:
        trial = kit.trial(optimizer=optimizer)
        for commit in trial.commits[1:]:
            for name, mask in commit.after.masks.items():
                new, kept = mask & ~commit.before.masks[name], mask & commit.before.masks[name]
                grown += int(new.sum())
                for what, before, after in tensors_of(commit.before, commit.after, name):
                    if bool((after[new] != 0).any()):
                        return Outcome(False, f"{optimizer} step {commit.step}: {what} of grown weights is not zero")
                    if not same_bits(before[kept], after[kept]):
                        return Outcome(False, f"{optimizer} step {commit.step}: {what} of kept weights changed")
    return Outcome(True if grown else None, f"{grown} grown" if grown else "nothing is grown")


def tensors_of(before: State, after: State, name: str) -> list[tuple[str, Tensor, Tensor]]:
    """Return (what, before, after) for a weight, its average and its optimiser state."""
    found = [(f"value in {name}", before.model[name], after.model[name])]
    if name in after.average:
        found.append((f"average in {name}", before.average[name], after.average[name]))
    for key, state in after.optimizer.items():
        if key[0] == name and state.shape == after.model[name].shape and key in before.optimizer:
            found.append((f"{key[1]} in {name}", before.optimizer[key], state))
    return found


@check("replaces-step", "state replaces_step as the paper has it (RigL, Algorithm 1: True)")
def check_replaces(kit: Kit) -> Outcome:
    """An update takes the place of the optimiser step where replaces_step is True, and follows it where it is False."""
    trial = kit.trial()
    replaces = kit.plugin.cls.replaces_step
    if len(trial.commits) < 2:
        return Outcome(None, "no updates") if not trial.error else Outcome(True, "")
    examined = 0
    for commit in trial.commits[1:]:
        if commit.step < 2 or commit.step > len(trial.steps):
            continue
        before = trial.steps[commit.step - 2].state.model
        moved = sum(
            not same_bits(before[name][mask], commit.before.model[name][mask])
            for name, mask in commit.before.masks.items()
        )
        if bool(moved) == replaces:
            did = "moved" if moved else "did not move"
            return Outcome(False, f"step {commit.step}: weights {did}, replaces_step is {replaces}")
        examined += 1
    return Outcome(True if examined or trial.error else None, f"{examined} updates")


@check("inputs-untouched", "return new masks; never write to a tensor of the view, through .data or numpy() either")
def check_inputs(kit: Kit) -> Outcome:
    """Weights, masks and gradients have the same bits after every hook as before."""
    trials = [kit.trial(network=network) for network in ("conv", "vit")]
    written = [trace for trial in trials for trace in trial.traces if "wrote" in trace]
    if written:
        return Outcome(False, written[0])
    return Outcome(True, f"{sum(len(trial.calls) for trial in trials)} calls")


@check("repeatable", "draw with view.random(name, purpose); keep nothing between calls")
def check_repeatable(kit: Kit) -> Outcome:
    """The same seed gives the same masks whatever the global random generators hold; that of torch stays as it is."""
    usual = kit.trial()
    for noise in (1, 2):
        other = kit.trial(noise=noise)
        pairs = zip(usual.commits, other.commits, strict=False)
        different = [commit.step for commit, again in pairs if commit.digest != again.digest]
        if different:
            return Outcome(False, f"other masks from step {different[0]} on, with other global random states")
    drawn = [trace for trial in (usual, kit.trial(network="vit")) for trace in trial.traces if "generator" in trace]
    if drawn:
        return Outcome(False, f"{drawn[0]}, so dropout would differ between methods")
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
    seen, shown = 0, (Show(method), Show(method))
    for step in [0, *method.update_steps(LINE)]:
        proposals = []
        for order, show in zip((names, names[::-1]), shown, strict=True):
            parts = [{name: tensors[name] for name in order} for tensors in (weights, masks, gradients)]
            proposals.append(show.ask(parts[0], parts[1], parts[2], step))
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
    steps = [0, *list(method.update_steps(LINE))[:2]]
    cases = [("weights", steps), *([("gradients", [0])] if method.scoring() is not None else [])]
    by_place = False
    for what, of in cases:
        fault = find_unfollowed(method, what, of, distinct_values(3))
        if fault and find_unfollowed(method, what, of, coarse_values(3)):
            by_place = True  # neighbours belong together, or numbers are drawn another way
        elif fault:
            return Outcome(False, fault)
    if by_place:
        return Outcome(None, "masks go by the order of a layer's outputs, whatever the precision")
    return Outcome(True, f"{sum(len(of) for _, of in cases)} proposals follow the shuffle")


def find_unfollowed(method: Method, what: str, steps: list[int], values: Masks) -> str:
    """Return at which step masks do not follow when the outputs of weights and gradients are shuffled, or nothing.

    `what`: which of them are all different in the first masks; the others are one, for products would round to ties.
    """
    ones = {name: torch.ones_like(value) for name, value in values.items()}
    generator = torch.Generator().manual_seed(4)
    orders = {name: torch.randperm(len(value), generator=generator) for name, value in values.items()}
    masks: Masks = all_true(values)
    usual, other = Show(method), Show(method, shuffled_view(orders))
    for step in steps:
        weights, slopes = (values, ones) if step == 0 else (values, values)
        weights, slopes = (slopes, weights) if what == "gradients" else (weights, slopes)
        first = usual.ask(weights, masks, slopes, step)
        second = other.ask(shuffle(weights, orders), shuffle(masks, orders), shuffle(slopes, orders), step)
        wrong = sum(int((expected != second[name]).sum()) for name, expected in shuffle(first, orders).items())
        if wrong:
            return (
                f"step {step}: {wrong} weights fare otherwise when their layer's outputs are shuffled, where {what} "
                "differ in float32 alone"
            )
        masks = first
    return ""
