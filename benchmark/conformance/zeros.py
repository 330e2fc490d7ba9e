"""Checks of what is zero: inactive weights, their optimiser state and average; what grown weights start from."""

from __future__ import annotations

from torch import Tensor

from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.trial import Kit
from benchmark.conformance.watch import State, same_bits

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
    """Momentum and both moments of inactive weights are zero after every step."""
    kinds = set()
    for optimizer in OPTIMISERS:
        for seen in kit.trial(optimizer=optimizer).steps:
            for (name, key), state in seen.state.optimizer.items():
                mask = seen.state.masks.get(name)
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
