"""Checks of promise 1, the exact budget: after every update, at the end, in the file; and that runs end at all."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file

from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.nets import make_network
from benchmark.conformance.trial import Kit, Trial
from benchmark.conformance.views import propose_with_ties
from benchmark.runs import export
from benchmark.training.method_state import weighs
from benchmark.training.rehearsal import rehearse
from methods.core import Budget, Method, Timeline, count_active

NETS = ("conv", "vit", "depthwise")
HOW_TO_COUNT = "keep view.count(planned sparsity) weights with keep_top or keep_top_global: exactly k, ties by position"


def budget_of(method: Method, step: int, timeline: Timeline, total: int) -> int | None:
    """Return round((1 - planned sparsity) x total), or None where the count is an outcome."""
    budget = method.promised_budget()
    if budget is Budget.OUTCOME:
        return None
    sparsity = 0.0 if budget is Budget.DENSE else method.planned_sparsity(step, timeline)
    return round((1 - sparsity) * total)


def promise(kit: Kit) -> Budget:
    """Return what the method, as the kit asks for it, promises of its count."""
    return kit.method(0.9).promised_budget()


def find_wrong_counts(trial: Trial) -> list[str]:
    """Return where the method proposed, or the engine applied, another number of weights than planned."""
    wrong, run = [], trial.run
    last = {call.step: call for call in trial.calls}  # of the rounds of scoring the last
    for call in last.values():
        planned = budget_of(run.method, call.step, run.timeline, run.maskset.total)
        if call.masks is not None and planned is not None and count_active(call.masks) != planned:
            wrong.append(
                f"{trial.setting.network} step {call.step}: {count_active(call.masks)} active, planned {planned}"
            )
    for commit in {commit.step: commit for commit in trial.commits}.values():  # the last stage of each
        planned = budget_of(run.method, commit.step, run.timeline, run.maskset.total)
        if planned is not None and not count_active(commit.after.masks) == sum(commit.counts.values()) == planned:
            wrong.append(f"{trial.setting.network} step {commit.step}: {count_active(commit.after.masks)} applied")
    return wrong


@check("runs", "see the message; the interval of updates must be called update_every, so that short runs have some")
def check_runs(kit: Kit) -> Outcome:
    """Setup and every update go through, at least one where it has updates, and the run ends, on every network."""
    trials = [kit.trial(network=network) for network in (*NETS, "odd")]
    rehearse(kit.method(0.9), kit.plugin.name, trials[0].run.timeline)
    for trial in trials:
        if trial.error:
            return Outcome(False, f"{trial.setting.network}: {trial.error}")
    return Outcome(True, f"{len(trials)} networks, {sum(len(trial.steps) for trial in trials)} steps")


@check("budget-after-every-update", HOW_TO_COUNT)
def check_every_update(kit: Kit) -> Outcome:
    """Exactly round((1 - planned sparsity) x weights) active at each commit."""
    trials = [kit.trial(network=network) for network in NETS]
    wrong = [text for trial in trials for text in find_wrong_counts(trial)]
    if wrong:
        return Outcome(False, wrong[0])
    if promise(kit) is Budget.OUTCOME:
        return Outcome(None, "the count is an outcome")
    return Outcome(True, f"{sum(len(trial.commits) for trial in trials)} commits on {len(NETS)} networks")


@check("sparsities", HOW_TO_COUNT)
def check_sparsities(kit: Kit) -> Outcome:
    """0, 0.5 and 0.99 are hit exactly as well."""
    if promise(kit) is not Budget.EXACT:
        return Outcome(None, f"the count is {promise(kit).value}")
    trials = [kit.trial(network=network, sparsity=sparsity) for network in NETS for sparsity in (0.0, 0.5, 0.99)]
    for trial in trials:
        total = trial.run.maskset.total
        asked = kit.build(trial.setting.sparsity)[1]
        active, wanted = count_active(trial.run.maskset.masks), round((1 - asked) * total)
        wrong = find_wrong_counts(trial)
        if wrong or (active != wanted and not trial.error):
            return Outcome(False, (wrong or [f"{trial.setting.network}: {active} of {total}, asked {wanted}"])[0])
    instead = {s: asked for s in dict.fromkeys(t.setting.sparsity for t in trials) if (asked := kit.build(s)[1]) != s}
    told = "".join(f"; {sparsity:g} is refused, {asked:g} in its place" for sparsity, asked in instead.items())
    return Outcome(True, f"{len(trials)} runs end at their count{told}")


@check(
    "last-update-hits-target", "let the schedule reach progress 1 at its last step: prune_progress(step, every, steps)"
)
def check_target(kit: Kit) -> Outcome:
    """The last planned update reaches the sparsity asked, for every length of run; the run ends there."""
    if promise(kit) is not Budget.EXACT:
        return Outcome(None, f"the count is {promise(kit).value}")
    method, sparsity = kit.build(0.9)
    own = kit.trial().run.timeline
    timelines = [own, *(Timeline(steps, per) for per in (1, 5, 6, 13) for steps in range(per, 140, per))]
    for timeline in timelines:
        steps = method.update_steps(timeline)
        plans = [method.planned_sparsity(step, timeline) for step in [0, *steps]]
        refused = plans[0] == plans[-1] and timeline != own  # no pruning step at all: the engine refuses such a run
        if plans[-1] != sparsity and not refused:
            ends = f"ends at sparsity {plans[-1]:.6g}, not {sparsity:g}"
            return Outcome(False, f"a run of {timeline.total_steps} steps {ends}")
    trial = kit.trial()
    active, wanted = count_active(trial.run.maskset.masks), round((1 - sparsity) * trial.run.maskset.total)
    if active != wanted and not trial.error:
        return Outcome(False, f"{active} weights at the end, asked {wanted}")
    return Outcome(True, f"{len(timelines)} lengths of run; {active} weights at the end")


@check(
    "budget-with-ties",
    "never compare with a threshold; take exactly k (keep_top), and grow among inactive weights only (grow)",
)
def check_ties(kit: Kit) -> Outcome:
    """The planned count also where weights tie, gradients are zero, and active weights are zero."""
    if promise(kit) is Budget.OUTCOME:
        return Outcome(None, "the count is an outcome")
    seen = 0
    for what, step, method, masks, timeline in propose_with_ties(kit):
        planned = budget_of(method, step, timeline, sum(mask.numel() for mask in masks.values()))
        if count_active(masks) != planned:
            return Outcome(False, f"{what}, step {step}: {count_active(masks)} active, planned {planned}")
        seen += 1
    return Outcome(True, f"{seen} proposals, every count as planned")


@check(
    "layer-counts",
    "grow as many in each layer as were dropped (grow(..., like=view.masks)), or drop keeps_layer_counts = True",
)
def check_layers(kit: Kit) -> Outcome:
    """Each layer keeps its number of active weights at every update, where the method says so."""
    if not kit.plugin.cls.keeps_layer_counts:
        return Outcome(None, "not declared")
    exchanged = 0
    for network in NETS:
        trial = kit.trial(network=network)
        before = {commit.step: commit.before.masks for commit in reversed(trial.commits)}  # of each step's first
        for call in (call for call in trial.calls if call.step > 0):
            for name, mask in (call.masks or {}).items() if call.step in before else ():
                had, has = int(before[call.step][name].sum()), int(mask.sum())
                if had != has:
                    return Outcome(False, f"{network} {name} step {call.step}: {has} weights, had {had}")
                exchanged += int((mask & ~before[call.step][name]).sum())
    return Outcome(True, f"{exchanged} weights exchanged within their layers")


@check("update-window", "return update_range(every, stop) with stop at most the run's total steps")
def check_window(kit: Kit) -> Outcome:
    """Update() is called after the steps of update_steps() and no others; masks change nowhere else."""
    trial = kit.trial()
    run = trial.run
    declared = list(run.method.update_steps(run.timeline))
    if declared != list(run.method.update_steps(run.timeline)):
        return Outcome(False, "asked twice, update_steps() returned different steps")
    outside = [step for step in declared if not 1 <= step <= run.timeline.total_steps]
    if outside:
        return Outcome(False, f"steps {outside[:3]} lie outside the run's 1..{run.timeline.total_steps}")
    called = [call.step for call in trial.calls]
    wanted = run.method.scoring()
    called = called[wanted.rounds - 1 :] if wanted else called  # setup is asked once in each round
    if not trial.error and called != [0, *declared]:
        return Outcome(False, f"called at steps {called[:6]}, declared {[0, *declared][:6]}")
    for step, (before, after) in enumerate(itertools.pairwise(() if weighs(run.method) else trial.states()), 1):
        if step not in declared and any(not torch.equal(before.masks[n], after.masks[n]) for n in after.masks):
            return Outcome(False, f"masks changed at step {step}, which is not declared")
    return Outcome(True, f"{len(declared)} updates, all as declared")


@check("exported-file", "this is the engine's; report it")
def check_export(kit: Kit) -> Outcome:
    """The file loads strictly, holds the evaluated weights, zero off the masks, and the masks of the budget."""
    trial = kit.trial()
    run = trial.run
    with tempfile.TemporaryDirectory() as folder:
        export.export_network(run.evaluated().state_dict(), run.maskset.masks, Path(folder), {"model": "kit"})
        weights, bits = (load_file(Path(folder) / file) for file in (export.WEIGHTS, export.MASKS))
    make_network(trial.setting.network, 9).load_state_dict(weights, strict=True)
    kept = 0
    for name, mask in trial.steps[-1].state.masks.items():
        stored = numpy.unpackbits(bits[name].numpy())[: mask.numel()].reshape(mask.shape).astype(bool)
        if not (stored == mask.numpy()).all():
            return Outcome(False, f"the masks of {name} in the file are not the run's")
        if bool((weights[name][~mask] != 0).any()):
            return Outcome(False, f"{name} is not zero off its mask in the file")
        kept += int(stored.sum())
    evaluated = trial.steps[-1].state.average or trial.steps[-1].state.model
    other = [name for name, tensor in evaluated.items() if not torch.equal(tensor, weights[name])]
    if other:
        return Outcome(False, f"{other[0]} in the file is not what was evaluated")
    return Outcome(True, f"{kept} of {run.maskset.total} weights active in the file")
