"""Every known fault planted once: wrong methods and a broken engine, each with the check that must catch it.

`python -m tests.harness.mutants` (or `make mutants`) runs the whole kit over each and prints which checks catch what.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
from torch import nn

import benchmark.conformance.trial as building
import benchmark.data.sets as data
import benchmark.networks.costs as costs
import benchmark.runs.export as export
import benchmark.runs.run as engine
import benchmark.training.scoring as scoring
import benchmark.training.setup as setup
import benchmark.training.step as stepping
import benchmark.training.train as loop
from benchmark.config.plugins import Plugin, find_method
from benchmark.conformance import CHECKS, Kit
from benchmark.conformance.checks import run_check
from benchmark.conformance.ranks import run_ranks
from benchmark.networks.prunable import Layer
from benchmark.training.masks import MaskSet
from methods.core import Method, View
from tests.harness import mutant_methods, mutants_moving, mutants_rounds, mutants_sis, mutants_thresholds

Fault = contextlib.AbstractContextManager[Any]


@dataclass(frozen=True)
class Mutant:
    """A fault: what is wrong, the method it is shown on, how it is planted, and who must catch it."""

    name: str
    wrong: str
    caught_by: str  # a check of the kit, or oracle:NAME
    method: str | type[Method]
    plant: Callable[[], Fault] = contextlib.nullcontext

    def plugin(self) -> Plugin:
        """Return the method as a plugin, under the name that an oracle knows it by."""
        if isinstance(self.method, str):
            return find_method(self.method)
        _, oracle, name = self.caught_by.partition("oracle:")
        return Plugin(name if oracle else self.method.__name__, self.method, "tests", "0")


def patched(target: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], Fault]:
    """Return a fault that puts `make(original)` in the place of an attribute."""
    return lambda: mock.patch.object(target, name, make(getattr(target, name)))


def together(*faults: Callable[[], Fault]) -> Callable[[], Fault]:
    """Return a fault made of several."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for fault in faults:
                stack.enter_context(fault())
            yield

    return plant


def after_commit(harm: Callable[..., None]) -> Callable[[], Fault]:
    """Return a fault that does `harm(maskset, optimizer, kept)` after each commit; `kept` is from before it."""

    def make(original):
        def commit(self, proposed, planned, optimizer=None, average=None, trained=None):
            masks = {name: mask.clone() for name, mask in self.masks.items()}
            weights = {name: weight.detach().clone() for name, weight in self.weights.items()}
            states = {}
            for name, weight in self.weights.items():
                items = optimizer.state.get(weight, {}).items() if optimizer else ()
                states[name] = {key: value.clone() for key, value in items if isinstance(value, torch.Tensor)}
            original(self, proposed, planned, optimizer, average, trained)
            with torch.no_grad():
                harm(self, optimizer, masks, weights, states)

        return commit

    return patched(MaskSet, "commit", make)


def leave_weights(maskset, optimizer, masks, weights, states) -> None:
    for name, weight in maskset.weights.items():
        weight.copy_(weights[name])


def leave_state(*keys: str) -> Callable[..., None]:
    def harm(maskset, optimizer, masks, weights, states) -> None:
        for name, weight in maskset.weights.items():
            for key in set(keys) & set(states[name]):
                optimizer.state[weight][key].copy_(states[name][key])

    return harm


def start_grown_elsewhere(maskset, optimizer, masks, weights, states) -> None:
    for name, weight in maskset.weights.items():
        weight[maskset.masks[name] & ~masks[name]] = 0.1


def forget_momentum(maskset, optimizer, masks, weights, states) -> None:
    for weight in maskset.weights.values():
        for state in optimizer.state.get(weight, {}).values() if optimizer else ():
            if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                state.zero_()


def of_dense_gradients(change: Callable[..., torch.Tensor]) -> Callable[[], Fault]:
    def make(original):
        return lambda self: {name: change(self, name, gradient) for name, gradient in original(self).items()}

    return patched(MaskSet, "dense_gradients", make)


def draw_again(original):
    def load_packed(self, packed):
        original(self, packed)
        generator = torch.Generator().manual_seed(5)
        for mask in self.masks.values():
            order = torch.randperm(mask.numel(), generator=generator)
            mask.copy_(mask.reshape(-1)[order].reshape(mask.shape))

    return load_packed


def restoring(**lost: Any) -> Callable[[Any], Any]:
    """Return a load_state that puts other values in the place of some of what was saved."""

    def make(original):
        def load_state(self, state):
            fresh = self.state()
            original(self, {**state, **{key: fresh[key] if value is None else value for key, value in lost.items()}})

        return load_state

    return make


def clip_before_masking() -> Fault:
    waiting: list[MaskSet] = []
    mask, clip = MaskSet.mask_gradients, torch.nn.utils.clip_grads_with_norm_

    def clip_then_mask(*rest: Any) -> None:
        clip(*rest)
        mask(waiting[-1])

    first = mock.patch.object(MaskSet, "mask_gradients", lambda self: waiting.append(self))
    second = mock.patch.object(torch.nn.utils, "clip_grads_with_norm_", clip_then_mask)
    return together(lambda: first, lambda: second)()


def score_other_weights(original):
    def score(model, weights, *rest):
        torch.manual_seed(8)
        kept = [weight.detach().clone() for weight in weights.values()]
        with torch.no_grad():
            for weight in weights.values():
                nn.init.kaiming_normal_(weight)
        found = original(model, weights, *rest)
        with torch.no_grad():
            for weight, old in zip(weights.values(), kept, strict=True):
                weight.copy_(old)
        return found

    return score


def ignore_groups(original):
    def count(model, layers, shape):
        counted = original(model, layers, shape)
        groups = {layer.name: model.get_submodule(layer.modules[0]) for layer in layers}
        per_weight = {n: uses * getattr(groups[n], "groups", 1) for n, uses in counted.per_weight.items()}
        return costs.Costs(per_weight, counted.layers, counted.fixed, counted.dense, counted.operators, counted.omitted)

    return count


def step_as_well(original):
    def update_masks(run, *gradients):
        run.optimizer.step()
        return original(run, *gradients)

    return update_masks


def one_step_late(original):
    missed = [False]

    def train_step(run, images, labels, criterion, due):
        due, missed[0] = missed[0], due
        return original(run, images, labels, criterion, due)

    return train_step


def write_noise(original):
    def save(tensors, metadata):
        return original({n: t + 1e-3 if t.is_floating_point() else t for n, t in tensors.items()}, metadata=metadata)

    return save


def list_tied_twice(original):
    def find(model, page):
        layers = original(model, page)
        again = [Layer(f"{name}.weight", (name,), True) for layer in layers for name in layer.modules[1:]]
        return [*layers, *again]

    return find


def shuffle_by_global_generator(original):
    def draw_order(count, seed, epoch):
        return torch.from_numpy(numpy.random.permutation(count)), original(count, seed, epoch)[1]

    return draw_order


def keep_local_gradients() -> None:
    """Have growth see each process's own gradients, as they are before they are averaged."""
    local: dict[int, torch.Tensor] = {}
    original = MaskSet.__init__

    def watch(self: MaskSet, weights: Any, *rest: Any, **more: Any) -> None:
        original(self, weights, *rest, **more)
        for weight in self.weights.values():
            weight.register_hook(functools.partial(local.__setitem__, id(weight)))

    MaskSet.__init__ = watch
    MaskSet.dense_gradients = lambda self: {n: local[id(w)].float() for n, w in self.weights.items()}


def weigh_shares_equally() -> None:
    """Average the processes' mean gradients, whatever their numbers of images."""
    loop.weigh_share = lambda own, batch: 1.0


def draw_masks_per_rank() -> None:
    """Have each process draw its own masks, with nobody comparing or sharing them."""
    from benchmark.distributed.ranks import own_rank

    original = View.random
    View.random = lambda self, name, purpose="", run=False: original(self, name, f"{purpose}{own_rank() or ''}", run)
    MaskSet.check_ranks = lambda self, proposed, fault: None
    MaskSet.take_leading = lambda self, proposed: proposed
    MaskSet.check_in_force = lambda self: None


SALTED = '''"""A plugin that seeds its generator with hash()."""
from dataclasses import dataclass

import torch

from methods.core import DISTRIBUTIONS, keep_top
from methods.static import Static as Original


@dataclass(frozen=True, kw_only=True)
class Salted(Original):
    def setup(self, view):
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        draws = {n: torch.Generator().manual_seed(abs(hash((n, view.seed)))) for n in view.weights}
        return {n: keep_top(torch.rand(s, generator=draws[n]), counts[n]) for n, s in view.shapes.items()}
'''

M = mutant_methods
ATTENTION = "aten::scaled_dot_product_attention"
METHODS = [
    ("threshold keeps ties", "a threshold instead of exactly k", "budget-with-ties", M.ThresholdKeepsTies),
    ("Bernoulli masks", "each weight drawn with a probability", "budget-after-every-update", M.BernoulliStart),
    ("ERK solved once", "densities cut at 1, the rest not shared out", "sparsities", M.ErkSolvedOnce),
    ("one-sided growth", "no growth where the gradient is zero", "odd-layers", M.GrowsOnlyWhereGradientIsPositive),
    ("growth over active", "active weights are candidates for growth", "budget-after-every-update", M.GrowsOverActive),
    ("global generator", "growth by torch.rand", "repeatable", M.GlobalGenerator),
    ("one generator", "layers drawn in turn from one generator", "parameter-order", M.OneGeneratorForAll),
    ("writes to weights", "the view's tensors written through numpy", "inputs-untouched", M.WritesToWeights),
    ("schedule one short", "n - 1 of n pruning steps", "last-update-hits-target", M.ScheduleOneShort),
    ("memory", "state kept in the method, lost on resume", "resume", M.RemembersBetweenUpdates),
    ("undeclared gradients", "dense gradients read, not charged", "declared-gradients", M.UndeclaredGradients),
    ("gradients for nothing", "charged, not read", "declared-gradients", M.DeclaresGradientsForNothing),
    ("half-precision scores", "bfloat16 scores tie", "fine-scores", M.HalfPrecisionScores),
    ("half-precision start", "bfloat16 gradients at setup", "fine-scores", M.HalfPrecisionAtSetup),
    ("draws in penalty", "torch.rand, to no effect on masks", "repeatable", M.DrawsInPenalty),
    ("writes in learned", "initial weights halved, unseen by torch", "inputs-untouched", M.WritesInLearned),
    ("updates past the end", "planned after the last step", "update-window", M.UpdatesPastTheEnd),
    ("layers trade weights", "although layer counts are declared kept", "layer-counts", M.MovesWeightsBetweenLayers),
    ("order 2 for nothing", "a second derivative asked for, not read", "declared-scoring", M.AsksForMoreThanItReads),
    ("undeclared donor", "another run's counts read, none asked for", "declared-donor", M.UndeclaredDonor),
    ("masks for nothing", "another run's masks asked for, not read", "declared-donor", M.DonorForNothing),
    ("linear layers forgotten", "every layer taken for a convolution", "runs", M.FailsOnLinearLayers),
    ("small layers emptied", "counts rounded down, the rest lost", "odd-layers", M.EmptiesSmallLayers),
    ("GraSP's sign", "the smallest of -w Hg removed", "oracle:grasp", M.GraSPWrongSign),
    ("SNIP without w", "|g| instead of |g w|", "oracle:snip", M.SNIPWithoutWeights),
    ("SNIP layer by layer", "no global ranking", "oracle:snip", M.SNIPLayerWise),
    ("RigL never regrows", "just-dropped weights are no candidates", "oracle:rigl", M.RigLNeverRegrows),
    ("RigL's constant rate", "alpha not annealed", "oracle:rigl", M.RigLConstantRate),
    ("SET in one ranking", "both signs ranked together", "oracle:set", M.SETOneRanking),
    ("filters not normalised", "growth by |g| itself", "oracle:rigl_itop_filter", M.RigLITOPFilterAsItIs),
    ("AC/DC layer by layer", "no global compression", "oracle:ac_dc", M.ACDCLayerWise),
    ("SRigL without fan-ins", "growth as RigL's", "oracle:srigl", M.SRigLAsRigL),
    ("MEST's constant ratio", "the mutation ratio never falls", "oracle:mest", M.MESTNeverHalves),
    ("GraNet layer by layer", "no global pruning", "oracle:granet", M.GraNetLayerWise),
    ("GraNet too late", "the first update after t0 is left out", "oracle:granet_late", M.GraNetTooLate),
    ("GMP linear", "no cubic schedule", "oracle:gmp", M.GMPLinear),
    ("uniform GMP, globally", "one ranking under a uniform name", "oracle:gmp_uniform", M.GMPUniformGlobal),
    ("uniform GraNet by ERK", "the start is not uniform", "oracle:granet_uniform", M.GraNetUniformFromERK),
    ("filters by L2", "not the L1 norm of a filter", "oracle:gmp_structured", M.GMPStructuredBySquares),
    ("filters never regrown", "no regeneration", "oracle:granet_structured", M.GraNetStructuredPrunesOnly),
    ("one shot layer by layer", "no global ranking", "oracle:one_shot", M.OneShotLayerWise),
    ("static by magnitude", "the control is not random", "oracle:static", M.StaticByMagnitude),
]

MUTANTS = [
    *(Mutant(*row) for row in [*METHODS, *mutants_rounds.METHODS]),
    *(Mutant(*row) for row in [*mutants_moving.METHODS, *mutants_thresholds.METHODS, *mutants_sis.METHODS]),
    *(Mutant(*row, patched(loop, "go_back", fault)) for *row, fault in mutants_rounds.ENGINE),
    *(Mutant(*row[:4], patched(*row[4:])) for row in [*mutants_moving.ENGINE, *mutants_sis.ENGINE]),
    Mutant("momentum kept", "a dropped weight's momentum stays", "inactive-optimiser-state", "rigl_itop",
           after_commit(leave_state("momentum_buffer"))),
    Mutant("second moment kept", "Adam's exp_avg_sq of dropped weights stays", "inactive-optimiser-state", "rigl_itop",
           after_commit(leave_state("exp_avg_sq"))),
    Mutant("average not masked", "the averaged weights stay dense", "inactive-average", "granet",
           patched(MaskSet, "commit", lambda original: lambda self, *rest, average=None: original(self, *rest[:3]))),
    Mutant("gradients not masked", "inactive weights are revived by the optimiser", "inactive-weights", "static",
           patched(MaskSet, "mask_gradients", lambda original: lambda self: None)),
    Mutant("weights not zeroed", "masks change, weights stay", "inactive-weights", "gmp", after_commit(leave_weights)),
    Mutant("grown weights at 0.1", "growth starts from a value", "grown-weights", "set",
           after_commit(start_grown_elsewhere)),
    Mutant("momentum forgotten", "weights that stay lose their momentum", "grown-weights", "set",
           after_commit(forget_momentum)),
    Mutant("nothing forgotten", "an update's fresh start of the optimiser is left out", "forgotten-state", "str",
           patched(loop.Training, "forget", lambda original: lambda self, parameters=None: None)),
    Mutant("all forgotten", "an update's fresh start is that of every parameter", "forgotten-state", "str",
           patched(loop.Training, "forget", lambda original: lambda self, parameters=None: original(self))),
    Mutant("counts of non-zeros", "density taken from values, not from masks", "budget-after-every-update", "rigl_itop",
           patched(MaskSet, "counts", lambda original: lambda self: {
               n: int((w != 0).sum()) for n, w in self.weights.items()})),
    Mutant("sparse growth", "growth by gradients that were masked before", "dense-gradients", "rigl",
           of_dense_gradients(lambda self, name, gradient: gradient * self.masks[name])),
    Mutant("gradients in bf16", "growth scores in half precision", "bf16", "granet",
           of_dense_gradients(lambda self, name, gradient: gradient.bfloat16())),
    Mutant("masks drawn again", "a continued run draws new masks", "resume", "static",
           patched(MaskSet, "load_packed", draw_again)),
    Mutant("optimiser lost", "a continued run has no momentum", "resume", "granet",
           patched(loop.Training, "load_state", restoring(optimizer=None))),
    Mutant("epoch begun anew", "a continued run reads the epoch's first batches again", "resume", "set",
           patched(loop.Training, "load_state", restoring(position=[0, 0]))),
    Mutant("generators lost", "a continued run drops out other units", "resume", "static",
           patched(loop.Training, "load_state", restoring(random=None))),
    Mutant("cost lost", "a continued run is charged from zero", "resume", "static",
           patched(loop.Training, "load_state",
                   restoring(meter=dict.fromkeys(("train", "train_dense", "scoring"), 0)))),
    Mutant("exploration lost", "a continued run forgets which weights it explored", "resume", "set",
           patched(loop.Training, "load_state", restoring(explored=None))),
    Mutant("exploration is density", "the weights active now, not all that ever were", "exploration", "rigl",
           patched(MaskSet, "explored_share", lambda original: lambda self: self.active() / self.total)),
    Mutant("clipping first", "the norm of dense gradients", "clipping", "static", clip_before_masking),
    Mutant("statistics kept", "a step that is not finite spoils the batch statistics", "non-finite-step", "static",
           patched(loop.Training, "restore_buffers", lambda original: lambda self: None)),
    Mutant("overflow unseen", "a step that is not finite is taken", "non-finite-step", "rigl_itop",
           patched(torch, "isfinite", lambda original: lambda tensor: torch.ones_like(tensor, dtype=torch.bool))),
    Mutant("SNIP elsewhere", "scored at weights drawn again", "scoring-gradients", "snip",
           patched(setup, "score", score_other_weights)),
    Mutant("half the images", "scored on fewer images than declared", "scoring-gradients", "grasp",
           patched(scoring, "scoring_chunks", lambda original: lambda *rest: [c[::2] for c in original(*rest)])),
    Mutant("dense step for free", "the dense gradient is not charged", "training-cost", "rigl",
           patched(costs.Meter, "weight_gradients", lambda original: lambda self, dense, *rest: original(
               self, False, *rest))),
    Mutant("charged too late", "a step is charged with the masks after its update", "training-cost", "gmp",
           patched(costs.Meter, "step", lambda original: lambda self, images, _, *rest, **more: original(
               self, images, self.forward, *rest, **more))),
    Mutant("groups ignored", "depthwise and grouped convolutions overcharged", "inference-cost", "static",
           patched(building, "count_costs", ignore_groups)),
    Mutant("attention dropped", "fused attention is not counted", "inference-cost", "static",
           together(patched(costs, "unfuse_attention", lambda original: lambda model: []),
                    patched(costs, "HANDLES", lambda original: {**original, ATTENTION: lambda *_: Counter()}))),
    Mutant("step and update", "the update does not take the step's place", "replaces-step", "rigl",
           patched(stepping, "update_masks", step_as_well)),
    Mutant("one step late", "updates a step after their time", "update-window", "set",
           patched(loop, "train_step", one_step_late)),
    Mutant("saved is not evaluated", "the file has other weights", "exported-file", "static",
           patched(export, "save", write_noise)),
    Mutant("tied twice", "a shared weight counted for each use", "prunable-layers", "static",
           patched(building, "find_layers", list_tied_twice)),
    Mutant("every matrix", "prunable by number of dimensions", "prunable-layers", "static",
           patched(engine, "prunable_weights", lambda original: lambda model, layers: {
               n: p for n, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad})),
    Mutant("global order", "batches drawn from the global generator", "same-treatment", "set",
           patched(data, "draw_order", shuffle_by_global_generator)),
]  # fmt: skip

# These need two processes, so they are planted in each of them.
SHARED = [
    Mutant("local gradients", "growth by each process's own gradients", "two-processes", "rigl_itop"),
    Mutant("shares not weighed", "an uneven batch's shares averaged as if even", "two-processes", "rigl_itop"),
    Mutant("masks per process", "each process draws its own", "two-processes", "static"),
    Mutant("salted hash", "seeded by hash(), which differs between processes", "two-processes", "static"),
]
PLANTED = {
    "local gradients": "tests.harness.mutants:keep_local_gradients",
    "shares not weighed": "tests.harness.mutants:weigh_shares_equally",
    "masks per process": "tests.harness.mutants:draw_masks_per_rank",
}


def examine(mutant: Mutant, checks: list[str]) -> dict[str, str]:
    """Return, by check, what was seen by each check of the list that catches the fault."""
    caught = {}
    with mutant.plant():
        kit = Kit(mutant.plugin())
        kit.ranks = {kit.plugin.name: []} if mutant not in SHARED else examine_shared(mutant, kit)
        for name in checks:
            result = run_check(kit, name)
            if result.verdict == "FAIL":
                caught[name] = result.seen
    return caught


def examine_shared(mutant: Mutant, kit: Kit) -> dict[str, Any]:
    """Return what two processes see with the fault planted in each."""
    if mutant.name != "salted hash":
        return run_ranks([kit.plugin.name], PLANTED[mutant.name])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "static.py"
        file.write_text(SALTED)
        return run_ranks([str(file)])


def catch_by_oracle(mutant: Mutant) -> str | None:
    """Return where the method first disagrees with the oracle it is held against, or None."""
    from tests.harness.disagreement import disagreement

    plugin = mutant.plugin()
    return disagreement(Kit(plugin).method(0.8), plugin.name)


def main() -> int:
    """Plant every fault, run the whole kit on each, print the table; return how many were not caught as meant."""
    missed = 0
    names = [name for name in CHECKS if name != "two-processes"]
    print(f"{'fault':24} {'caught by':26} {'also by':>7}  seen")
    began = time.monotonic()
    for mutant in [*MUTANTS, *SHARED]:
        if mutant.caught_by.startswith("oracle:"):
            caught = {mutant.caught_by: catch_by_oracle(mutant) or ""}
            caught = {name: seen for name, seen in caught.items() if seen}
        else:
            caught = examine(mutant, ["two-processes"] if mutant in SHARED else names)
        meant = caught.get(mutant.caught_by)
        missed += meant is None
        verdict = mutant.caught_by if meant is not None else "NOT CAUGHT"
        others = len(caught) - (meant is not None)
        print(f"{mutant.name:24} {verdict:26} {others:7}  {(meant or mutant.wrong)[:110]}", flush=True)
    total = len(MUTANTS) + len(SHARED)
    print(f"{total - missed} of {total} faults caught by the check meant for them; {time.monotonic() - began:.0f} s")
    return missed


if __name__ == "__main__":
    sys.exit(bool(main()))
