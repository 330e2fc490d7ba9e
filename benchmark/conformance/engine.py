"""Checks of runs as wholes: resume, two processes, steps that are not finite, odd networks, the same treatment."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from benchmark.conformance.budget import find_wrong_counts
from benchmark.conformance.checks import Outcome, check
from benchmark.conformance.ranks import SHARED, run_ranks
from benchmark.conformance.trial import Kit, Setting, State, Trial, finish, prepare, same_bits, set_up, snapshot
from benchmark.runs.checkpoints import load_checkpoint, save_checkpoint
from methods.core import Budget, Group, Masks, Method, View, all_active

ENGINE = "this is the engine's; report it"
LAYERS = {
    "conv": {"conv1.weight", "conv2.weight", "fc.weight"},
    "vit": {"patch_embed.proj.weight", "head.weight"}
    | {f"blocks.0.{part}.weight" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
    "depthwise": {"point.weight", "depth.weight", "grouped.weight", "fc.weight"},
    "odd": {"mix.weight", "single.weight", "dead.weight", "fc.weight"},
}


@check("resume", "keep nothing between calls, in a module either; what has to last is Update(state=...)")
def check_resume(kit: Kit) -> Outcome:
    """Killed after any step and continued from its checkpoint, the run ends with the same bits (24 steps are tried)."""
    instants = 0
    for network, times in (("conv", 24), ("odd", 5)):  # the odd one draws random numbers in its forward pass
        whole = kit.trial(network=network)
        total = whole.run.timeline.total_steps
        for step in range(1, total + 1, -(-total // times)):
            fault = continue_from(kit, whole, step)
            if fault and not whole.error:
                return Outcome(False, f"{network}, killed after step {step}: {fault}")
            instants += 1
    return Outcome(True, f"{instants} instants, the same bits each time")


def continue_from(kit: Kit, whole: Trial, step: int) -> str:
    """Return in what a run that was killed after `step` and continued differs from the whole run, or nothing."""
    if step not in whole.checkpoints:
        return whole.error
    other = kit.renewed().prepare(whole.setting)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        save_checkpoint(path, whole.checkpoints[step])
        other.run.load_state(load_checkpoint(path))
    torch.manual_seed(step)  # another process has other generators
    finish(other)
    different = snapshot(other.run).differences(snapshot(whole.run))
    if other.error or different:
        return other.error or f"other bits in {different[0]}"
    same = other.run.meter.train == whole.run.meter.train and other.run.history == whole.run.history
    return "" if same else "another cost or history"


@check("exploration", ENGINE)
def check_exploration(kit: Kit) -> Outcome:
    """Each epoch's explored share is that of the weights active in any masks until its end, counted again."""
    trial = kit.trial()
    shares = []
    for row in trial.run.history:
        masks = [commit.after.masks for commit in trial.commits if commit.step <= row["step"]]
        masks += [state.masks for state in trial.states()[: row["step"] + 1]]  # those that weigh() makes have no commit
        names = trial.run.maskset.masks
        ever = sum(int(torch.stack([one[name] for one in masks]).any(0).sum()) for name in names)
        shares.append(ever / trial.run.maskset.total)
        if row["explored"] != shares[-1]:
            return Outcome(False, f"epoch {row['epoch']}: {row['explored']:.6f}, recount {shares[-1]:.6f}")
    return Outcome(bool(shares), f"{', '.join(f'{share:.3f}' for share in shares)} over the epochs")


@check(
    "two-processes",
    "draw with view.random(name); grow by view.gradients, which are summed over processes; never use hash()",
)
def check_two(kit: Kit) -> Outcome:
    """Two processes that share each batch have the masks of one process at every update, and equal weights."""
    alone = kit.trial(network="vit", double=True, sparsity=SHARED)
    ranks = kit.ranks or run_ranks([kit.asked])
    seen = ranks[kit.plugin.name]
    for rank, one in enumerate(seen):
        if one["error"] and not alone.error:
            return Outcome(False, f"process {rank}: {one['error']}")
        if one["masks"] != alone.mask_hashes():
            pairs = zip(alone.commits, one["masks"], strict=False)
            steps = [commit.step for commit, digest in pairs if commit.digest != digest]
            return Outcome(False, f"process {rank} has other masks from step {steps[0] if steps else 0} on")
    if seen[0]["weights"] != seen[1]["weights"]:
        return Outcome(False, "the processes end with different weights")
    return Outcome(True, f"{len(alone.commits)} masks the same in 1 and 2 processes")


@check("non-finite-step", ENGINE)
def check_finite(kit: Kit) -> Outcome:
    """A step that is not finite leaves no trace; its update is made up for at the next."""
    method = kit.method(0.9)
    usual = kit.trial()
    updates = list(method.update_steps(usual.run.timeline))
    last = usual.run.timeline.total_steps  # an update missed there could not be made up for
    poison = tuple(sorted({2, *updates[:1], *updates[-1:]} - {1, last}))
    trial = kit.trial(poison=poison)
    for step in poison:
        if step > len(trial.steps):
            break
        different = trial.steps[step - 1].state.differences(trial.steps[step - 2].state)
        if different:
            return Outcome(False, f"step {step} was not finite and changed {different[0]}")
    if trial.steps and not trial.error:
        if trial.run.skipped_steps != len(poison):
            return Outcome(False, f"{trial.run.skipped_steps} steps counted as skipped, {len(poison)} were not finite")
        missed = [sum(state.maskset.counts().values()) for state in (trial.run, usual.run)]
        if missed[0] != missed[1] and method.promised_budget() is Budget.EXACT:
            return Outcome(False, f"{missed[0]} weights at the end, {missed[1]} without the bad steps")
    return Outcome(True, f"steps {', '.join(map(str, poison))} left no trace")


@check("bf16", ENGINE)
def check_bf16(kit: Kit) -> Outcome:
    """Under bf16 autocast budgets hold, weights stay float32, inactive ones zero."""
    trial = kit.trial(precision="bf16")
    wrong = find_wrong_counts(trial)
    if wrong:
        return Outcome(False, wrong[0])
    for seen in trial.steps:
        for name, mask in seen.state.masks.items():
            weight = seen.state.model[name]
            if weight.dtype != torch.float32 or bool((weight[~mask] != 0).any()):
                return Outcome(False, f"{name} at step {seen.step}: {weight.dtype}, or alive off its mask")
    for call in trial.calls:
        fine = (torch.float32, torch.float64)  # a flow is in float64
        if call.gradients and any(g.dtype not in fine for g in call.gradients.values()):
            return Outcome(False, f"gradients at step {call.step} are not float32")
    return Outcome(True, f"{len(trial.steps)} steps")


@check("prunable-layers", ENGINE)
def check_layers(kit: Kit) -> Outcome:
    """Prunable are the weights of convolutions and linear layers, tied ones once."""
    for network, expected in LAYERS.items():
        found = set(kit.trial(network=network).run.maskset.weights)
        if found != expected:
            return Outcome(False, f"{network}: {', '.join(sorted(found ^ expected))} too many or missing")
    return Outcome(True, f"{sum(len(names) for names in LAYERS.values())} weights on {len(LAYERS)} networks")


@check("odd-layers", "keep exactly as many as planned whatever a layer's size or gradient: keep_top, grow")
def check_odd(kit: Kit) -> Outcome:
    """A frozen layer keeps its bits; a tied weight, a layer of one weight and one without gradient keep the budget."""
    for sparsity in (0.5, 0.9):
        trial = kit.trial(network="odd", sparsity=sparsity)
        wrong = find_wrong_counts(trial)
        if wrong:
            return Outcome(False, wrong[0])
        for seen in trial.steps:
            if not same_bits(seen.state.model["frozen.weight"], trial.start["frozen.weight"]):
                return Outcome(False, f"the frozen layer changed at step {seen.step}")
            if not same_bits(seen.state.model["mix.weight"], seen.state.model["again.weight"]):
                return Outcome(False, f"the tied weights came apart at step {seen.step}")
    return Outcome(True, "sparsities 0.5 and 0.9")


@check("clipping", ENGINE)
def check_clipping(kit: Kit) -> Outcome:
    """Gradients are clipped by the norm of the active weights' gradients."""
    limit, trial = 0.01, kit.trial(clip_norm=0.01)
    half = trial.run.timeline.round_ends[0] // 2  # the learning rate drops there
    written = {call.step for call in trial.calls if call.update is not None and call.update.values}
    changed = written | {commit.step for commit in trial.commits}  # by an update, not by the step alone
    lengths = []
    for before, after in zip(trial.steps, trial.steps[1:half], strict=False):
        if after.step in changed:
            continue
        stepped = [{**stepped_by(state.state, trial)} for state in (before, after)]
        moves = [(stepped[1][name] - stepped[0][name]).flatten().double() for name in stepped[0]]
        lengths.append(float(torch.cat(moves).norm()) / trial.run.page.lr)
    wrong = [length for length in lengths if not abs(length / limit - 1) < 0.01]
    if wrong:
        return Outcome(False, f"a step of {wrong[0]:.5f} x lr where clipping to {limit} gives {limit}")
    if not lengths and not trial.error:
        return Outcome(None, "every step is an update")
    return Outcome(True, f"{len(lengths)} steps of {limit} x lr")


def stepped_by(state: State, trial: Trial) -> dict[str, Tensor]:
    """Return the numbers that the optimiser steps: parameters, stored ones where they are stored, and learned ones."""
    names = {name for name, _ in trial.run.model.named_parameters()}
    found = {name: tensor for name, tensor in state.model.items() if name in names}
    for name, tensor in state.beside.items():
        own, _, kind = name.rpartition(" ")
        if kind in ("(stored)", "(learned)"):
            found[own] = tensor
    return found


@dataclass(frozen=True, kw_only=True)
class KeepAll(Method):
    """The control that every method is compared with."""

    reference: ClassVar[str] = "control"
    group: ClassVar[Group] = Group.CONTROL
    budget: ClassVar[Budget] = Budget.DENSE

    def setup(self, view: View) -> Masks:
        return all_active(view)


@check("same-treatment", ENGINE)
def check_treatment(kit: Kit) -> Outcome:
    """The method gets the initial weights and the batches that a dense run of its seed gets."""
    trial = kit.trial(noise=1)
    setting = Setting()
    control: Trial = prepare(kit.plugin, KeepAll(sparsity=0.0), setting, {})
    finish(control, lambda: set_up(control))
    if any(not same_bits(control.start[name], tensor) for name, tensor in trial.start.items()):
        return Outcome(False, "other initial weights")
    for step, (ours, theirs) in enumerate(zip(trial.batches, control.batches, strict=False), 1):
        if ours != theirs:
            return Outcome(False, f"another batch at step {step}")
    expected = len(control.batches) * trial.run.timeline.total_steps // control.run.timeline.total_steps
    if len(trial.batches) != expected and not trial.error:
        return Outcome(False, f"{len(trial.batches)} batches, expected {expected}")
    assert isinstance(trial.run.model, nn.Module)
    return Outcome(True, f"{len(trial.batches)} batches")
