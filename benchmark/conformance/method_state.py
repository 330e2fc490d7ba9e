"""Checks of what a method keeps or adds beyond masks: stored and written values, state, rounds, penalties."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.trial import Kit, Setting, State, finish, same_bits, set_up
from benchmark.training.method_state import has_penalty, weighs
from methods.core import Inactive, Method, Trains, View

ENGINE = "this is the engine's; report it"


def beside_in(state: State, kind: str) -> dict[str, Tensor]:
    """Return the method's own tensors of a kind, "stored", "learned" or "state", by name."""
    ending = f" ({kind})"
    return {name.removesuffix(ending): t for name, t in state.beside.items() if name.endswith(ending)}


@check("stored-values", ENGINE)
def check_stored(kit: Kit) -> Outcome:
    """A new mask changes no stored value; the network holds those that are active and zero elsewhere."""
    if kit.plugin.cls.inactive is not Inactive.STORED:
        return Outcome(None, "nothing is stored")
    returned = 0
    for network in ("conv", "vit"):
        trial = kit.trial(network=network)
        written = {call.step for call in trial.calls if call.update is not None and call.update.values}
        for commit in trial.commits:
            before, after = beside_in(commit.before, "stored"), beside_in(commit.after, "stored")
            for name in after:
                if commit.step not in written and not same_bits(before[name], after[name]):
                    return Outcome(False, f"{network} step {commit.step}: a new mask changed stored values of {name}")
                returned += int((commit.after.masks[name] & ~commit.before.masks[name]).sum())
        for step, state in enumerate([] if weighs(trial.run.method) else trial.states()):
            for name, value in beside_in(state, "stored").items():
                if not same_bits(state.model[name], torch.where(state.masks[name], value, 0.0)):
                    return Outcome(False, f"{network} step {step}: {name} does not hold its stored values")
    return Outcome(True, f"{returned} weights came back with their values")


@check("trained-weights", "declare what is trained: inactive, trains, and Update(trained=...)")
def check_trained(kit: Kit) -> Outcome:
    """A step changes the weights that are declared to be trained and no others."""
    trial = kit.trial(network="vit")
    stored = kit.plugin.cls.inactive is Inactive.STORED  # whose values no mask changes
    written = {call.step for call in trial.calls if call.update is not None and call.update.values}
    commits = written if stored else {commit.step for commit in trial.commits}
    moved = unmoved = 0
    for step, (before, after) in enumerate(itertools.pairwise(trial.states()), 1):
        if step in commits or step - 1 in trial.run.timeline.round_ends:
            continue
        values = [beside_in(state, "stored") or state.model for state in (before, after)]
        for name, trained in before.trained.items():
            changed = values[0][name] != values[1][name]
            if bool((changed & ~trained).any()):
                return Outcome(False, f"step {step}: weights of {name} changed that are not trained")
            moved += int((changed & trained).sum())
            unmoved += int((~changed & trained).sum())
    if kit.plugin.cls.trains is Trains.ALL and moved < unmoved:
        return Outcome(False, f"{unmoved} of {moved + unmoved} weights did not move, though all are trained")
    return Outcome(True if moved else None, f"{moved} changes, all of trained weights")


@check("written-values", ENGINE)
def check_written(kit: Kit) -> Outcome:
    """Values that the method returns are those the network has after the update, where they are active."""
    if not kit.plugin.cls.writes:
        return Outcome(None, "nothing is written")
    trial, seen = kit.trial(), 0
    states = trial.states()
    for call in trial.calls:
        values = call.update.values if call.update is not None and call.step < len(states) else None
        for name, value in (values or {}).items():
            state = states[call.step]
            stored = beside_in(state, "stored")
            shown = {**state.model, **stored, **beside_in(state, "learned")}[name]
            everywhere = name not in state.masks or bool(stored)
            mask = torch.ones_like(shown, dtype=torch.bool) if everywhere else state.masks[name]
            if not torch.equal(shown[mask], value.to(shown)[mask]):
                return Outcome(False, f"step {call.step}: {name} does not have the values that were returned")
            seen += int(mask.sum())
    return Outcome(True if seen else None, f"{seen} values as returned")


@check("state", ENGINE)
def check_state(kit: Kit) -> Outcome:
    """What an update returns as state is what the run keeps, and shows to the next."""
    trial, kept = kit.trial(), 0
    expected: dict[str, Tensor] = {}
    states = trial.states()
    for call in trial.calls:
        if call.update is None or call.step >= len(states):
            continue
        expected |= dict(call.update.state or {})
        shown = beside_in(states[call.step], "state")
        for name, value in expected.items():
            if name not in shown or not same_bits(shown[name], value):
                return Outcome(False, f"step {call.step}: state '{name}' is not what was returned")
            kept += 1
    return Outcome(True if kept else None, f"{kept} tensors kept" if kept else "no state")


@check("forgotten-state", ENGINE)
def check_forgotten(kit: Kit) -> Outcome:
    """The optimiser's state that an update has begin anew is zero after it, and of nothing else all of it is."""
    asked = 0
    for optimizer in ("sgd", "adam"):
        trial = kit.trial(optimizer=optimizer)
        states = trial.states()
        for call in trial.calls:
            forget = call.update.forget if call.update is not None and 0 < call.step < len(states) else False
            if not forget:
                continue
            seen: dict[str, bool] = {}  # whether any state of a parameter is not zero
            for (name, _), value in states[call.step].optimizer.items():
                own = name.removeprefix("learned ")
                seen[own] = seen.get(own, False) or bool(value.any())
            named = set(forget) if isinstance(forget, tuple) else set(seen)
            if kept := [name for name in seen if name in named and seen[name]]:
                return Outcome(False, f"{optimizer} step {call.step}: the state of {kept[0]} did not begin anew")
            if seen.keys() - named and not any(seen[name] for name in seen if name not in named):
                return Outcome(False, f"{optimizer} step {call.step}: the state of all began anew, not of {forget}")
            asked += 1
    return Outcome(True if asked else None, f"{asked} fresh starts" if asked else "nothing is forgotten")


@check("rounds", ENGINE)
def check_rounds(kit: Kit) -> Outcome:
    """A further round begins with the very bits of its origin, in the network and beside it, under the masks of now."""
    trial = kit.trial()
    rounds = trial.run.method_state.rounds
    if rounds.count == 1:
        return Outcome(None, "one round")
    states = trial.states()
    back = rounds.back_to * trial.run.timeline.steps_per_epoch
    follow = weighs(trial.run.method)  # weights from the stored ones, by what the method learned
    for step, begun in trial.rewound.items():
        origin, masks = states[step - 1 if rounds.keep_weights else back], states[step - 1].masks
        network = origin.model if rounds.keep_weights or back else trial.start
        kept = {**network, **origin.beside, **beside_in(origin, "stored")}
        for name, tensor in begun.items():
            expected = torch.where(masks[name], kept[name], 0.0) if name in masks else kept[name]
            if not (follow and name in masks) and not same_bits(tensor, expected):
                return Outcome(False, f"step {step}: {name} does not begin as it was after epoch {rounds.back_to}")
    wanted = rounds.count - 1
    return Outcome(len(trial.rewound) == wanted or bool(trial.error), f"{len(trial.rewound)} of {wanted} rewound")


@check("penalty", ENGINE)
def check_penalty(kit: Kit) -> Outcome:
    """The first step differs by the learning rate times the penalty from one without it, and by nothing else."""
    page = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    method = kit.method(0.9, **page)
    if not has_penalty(method):
        return Outcome(None, "no penalty")
    ends: list[dict[str, Tensor]] = []
    asked: dict[str, Tensor] = {}
    heard: list[int] = []  # at which steps the engine asked for it
    for silent in (False, True):
        trial = kit.prepare_with(method, Setting(), page)

        def penalty(self: Method, view: View, silent: bool = silent) -> dict[str, Tensor]:
            found = dict(method.penalty(view))
            heard.append(view.step)
            if view.step == 1:
                asked.update({name: value * view.trained[name] for name, value in found.items()})
            return {} if silent else found

        type(trial.run.method).penalty = penalty  # type: ignore[method-assign]  # the class is this trial's own
        finish(trial, lambda trial=trial: set_up(trial))  # type: ignore[misc]
        if trial.error:
            return Outcome(False, trial.error)
        ends.append(beside_in(trial.steps[0].state, "stored") or trial.steps[0].state.model)
    if not asked:
        return Outcome(None if heard else False, "it adds nothing" if heard else "the engine never asked for it")
    rate = trial.run.page.lr
    for name, extra in asked.items():
        moved = ends[1][name] - ends[0][name]
        if not torch.allclose(moved, rate * extra, rtol=1e-3, atol=1e-7):
            return Outcome(False, f"{name} moved by {float(moved.abs().max()):.3g}, not by lr x penalty")
    return Outcome(True, f"{len(asked)} layers moved by lr x penalty")
