"""Holding a method to its contract before anything is trained: rehearsed on a tiny network, no layer left empty."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, describe_failure
from benchmark.config.cells import Cell, DonorRun
from benchmark.networks.build import Built
from benchmark.networks.prunable import prunable_weights
from benchmark.training.contract import ask_learned, ask_penalty, commit, list_stages, list_tensors, propose, show_donor
from benchmark.training.masks import MaskSet, hash_masks, pack_all
from benchmark.training.method_state import ask_weigh, check_learned, check_storage, has_penalty, weighs
from methods.core import (
    Budget,
    DenseGrads,
    Inactive,
    Masks,
    Method,
    Timeline,
    Update,
    View,
    count_kept,
    keep_top_global,
)


def check_timeline(method: Method, name: str, timeline: Timeline, longer: str = "ARGS=epochs=N") -> None:
    """Raise UserError when the run is too short for one update, or when the last update misses the target.

    `longer`: how the user asks for a longer run.
    """
    steps, missed = method.update_steps(timeline), miss_target(method, timeline)
    every = getattr(method, "update_every", 0)
    length = f"a run of {timeline.total_steps} steps" + (f" (update_every is {every})" if every else "")
    if missed and len(steps) == 0:
        raise UserError(f"method '{name}' {missed} in {length}: {find_ways_out(method, timeline, longer)}")
    if len(steps) and not 1 <= steps[0] <= steps[-1] <= timeline.total_steps:
        raise UserError(f"method '{name}' plans updates outside the run's steps 1..{timeline.total_steps}: {steps}")
    if method.dense_gradients() is DenseGrads.EVERY_STEP and len(steps) + 1 < timeline.total_steps:
        raise UserError(
            f"method '{name}' reads dense gradients at every step and plans {len(steps)} updates in "
            f"{timeline.total_steps} steps, though gradients are shown to update() alone: return every step from "
            "update_steps() (an Update without masks commits nothing), or declare DenseGrads.AT_UPDATES"
        )
    if missed:
        raise UserError(f"method '{name}' {missed} in {length}: {find_ways_out(method, timeline, longer)}")


def miss_target(method: Method, timeline: Timeline) -> str:
    """Return what a method misses by its own plans, an update or its sparsity; empty where it misses nothing."""
    steps = method.update_steps(timeline)
    if type(method).update is not Method.update and len(steps) == 0:
        return "makes no update"
    end = method.planned_sparsity(steps[-1] if len(steps) else 0, timeline)
    missed = method.promised_budget() is Budget.EXACT and end != method.sparsity
    return f"ends at sparsity {end:g} instead of {method.sparsity:g}" if missed else ""


MANY = 10**6  # steps: the longest run that is tried as a way out


def find_ways_out(method: Method, timeline: Timeline, longer: str) -> str:
    """Return in words which changes let the method reach its target, each tried on its plans: one alone, or else two.

    Tried are an update at every step, the defaults of settings that have other values, first of those that say when
    (`prune_end`), and longer runs. Where none helps, the method's plans are to blame.
    """
    prefix, total = "ARGS=" if "ARGS" in longer else "", timeline.total_steps
    ways: list[tuple[str, dict[str, Any], int]] = []
    fields = {field.name: field.default for field in dataclasses.fields(method) if field.name != "sparsity"}
    every = getattr(method, "update_every", None)
    if every != 1 and "update_every" in fields:
        words = "lower it" if every else "update more often"
        ways.append((f"{words} with {prefix}update_every=N", {"update_every": 1}, 1))
    others = {key: value for key, value in fields.items() if key != "update_every" and getattr(method, key) != value}
    for key in sorted(others, key=lambda key: not key.endswith(("_end", "_at", "_start"))):
        if isinstance(others[key], int | float):
            words = f"change {key}, which is {getattr(method, key):g}, such as {prefix}{key}={others[key]:g}"
            ways.append((words, {key: others[key]}, 1))
    ways += [(f"train longer with {longer}", {}, by) for by in (10, 100, 1000) if by == 10 or by * total <= MANY]
    for count in (1, 2):
        found: list[str] = []
        for chosen in itertools.combinations(ways, count):
            changes = {key: value for _, changed, _ in chosen for key, value in changed.items()}
            if reaches(method, changes, timeline, max(by for *_, by in chosen)):
                found.append(" and ".join(dict.fromkeys(words for words, *_ in chosen)))
        if found:
            return ", or ".join(dict.fromkeys(found))
    return "update_steps() must plan an update, and planned_sparsity() be the sparsity asked from the last one on"


def reaches(method: Method, changes: dict[str, Any], timeline: Timeline, by: int) -> bool:
    """Return whether a method with these changes reaches its target in a run `by` times as long."""
    ends = tuple(end * by for end in timeline.round_ends)
    try:
        changed, per_epoch = dataclasses.replace(method, **changes), vars(timeline)["steps_per_epoch"]
        return not miss_target(changed, Timeline(by * timeline.total_steps, per_epoch, ends))
    except Exception:  # of settings that do not go together, or of a plugin
        return False


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


def stand_in_moments(method: Method, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return second moments of inputs for a stand-in network, if `method` asks for them: random and full.

    A function of a layer's fan-in alone, whatever the order of layers and of outputs.
    """
    if method.moments() is None:
        return None
    moments = {}
    for name, weight in weights.items():
        fan_in = weight[0].numel()
        generator = torch.Generator().manual_seed(fan_in)
        rows = torch.randn(1, 2 * fan_in, fan_in, generator=generator, dtype=torch.float64)
        moments[name] = rows.mT @ rows / (2 * fan_in)
    return moments


UNLIKELY = 4_128_731_569  # a seed that no method would set the generator to


def rehearse(method: Method, name: str, timeline: Timeline, longer: str = "ARGS=epochs=N") -> None:
    """Run the method's setup and some of its updates on a tiny stand-in network and hold it to every promise.

    Costs milliseconds, so a broken plugin is refused before the first batch. Raises UserError naming the method, the
    moment and the promise. Invariant: the caller's random state is as it was.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(UNLIKELY)
            before = torch.random.get_rng_state()
            check_timeline(method, name, timeline, longer)
            rehearse_updates(method, name, timeline)
            refuse_draws(name, before, "its plans, learned(), penalty() or weigh()")
    except UserError:
        raise
    except Exception as error:  # a plugin may raise anything at all, in its plans as well
        raise UserError(f"method '{name}' fails in rehearsal: {describe_failure(error, type(method))}") from error


def rehearse_updates(method: Method, name: str, timeline: Timeline) -> None:
    """Ask for the first masks, in all rounds of scoring, and for some updates, each twice, and commit them.

    At the end everything is asked once more, in reverse: a method that remembers outside the run, in a module or a
    file, answers otherwise, and could not be continued by another process.
    """
    stage = StandIn(method, name, timeline)
    steps = list(method.update_steps(timeline))
    scoring = method.scoring()
    rounds = scoring.rounds if scoring is not None else 1
    masks = None
    for round in range(rounds):
        masks = stage.settle(*stage.ask_twice(0, masks, round), last=round + 1 == rounds)
    for step in sorted({*steps[:2], *steps[-1:]}):
        stage.rehearse_step(step)
        stage.settle(*stage.ask_twice(step))
    stage.ask_in_reverse()
    if stage.maskset.weighs and method.promised_budget() is Budget.EXACT:
        raise UserError(
            f"method '{name}' promises an exact count and no update returns masks: what weigh() leaves is an outcome; "
            "return masks at the last of update_steps(), or promise Budget.OUTCOME"
        )


SHAPES = {"conv.weight": (8, 4, 3, 3), "point.weight": (16, 8, 1, 1), "linear.weight": (10, 16)}


class StandIn:
    """A tiny network, random weights and gradients, that a method is tried on before it is trusted with a run."""

    def __init__(self, method: Method, name: str, timeline: Timeline) -> None:
        self.method, self.name, self.timeline = method, name, timeline
        self.generator = torch.Generator().manual_seed(0)
        self.weights = {n: nn.Parameter(tensor) for n, tensor in self.draw().items()}
        self.maskset = MaskSet(self.weights, alone=True)
        before_branch = count_kept(method.start_of_branch(), self.maskset.total)
        magnitudes = {n: weight.detach().abs() for n, weight in self.weights.items()}
        self.maskset.commit(keep_top_global(magnitudes, before_branch), None)
        self.donor = stand_in_donor(method, self.weights)
        self.state: dict[str, Tensor] = {}
        self.learned: dict[str, Tensor] = {}
        self.asked: list[tuple[View, Update]] = []

    def draw(self) -> dict[str, Tensor]:
        """Return random numbers in the shape of every weight."""
        return {n: torch.randn(shape, generator=self.generator) for n, shape in SHAPES.items()}

    def ask_twice(self, step: int, masks: Masks | None = None, round: int = 0) -> tuple[list[Update], View]:
        """Return what the method proposes, asked twice; raises UserError where it writes or draws from outside.

        `masks`: those of the last round of scoring.
        """
        method, name = self.method, self.name
        gradients, product, active = self.draw(), self.draw(), self.draw()
        scoring = method.scoring() if step == 0 else None
        declared = scoring is not None if step == 0 else method.dense_gradients() is not DenseGrads.NEVER
        second = scoring is not None and scoring.order == 2
        proposals = []
        for _ in range(2):
            view = View(
                weights={n: weight.detach().clone() for n, weight in self.weights.items()},
                masks={n: mask.clone() for n, mask in (masks or self.maskset.masks).items()},
                step=step,
                timeline=self.timeline,
                seed=0,
                gradients={n: g.clone() for n, g in gradients.items()} if declared else None,
                hessian_gradients={n: h.clone() for n, h in product.items()} if second else None,
                active_gradients={n: g * self.maskset.trained()[n] for n, g in active.items()} if step else None,
                input_moments=stand_in_moments(method, self.weights) if step else None,
                round=round,
                **self.shown(),
                **show_donor(self.donor if step == 0 else None, self.weights),
            )
            random_state = torch.random.get_rng_state()
            before = [weight.clone() for weight in view.weights.values()]
            proposals.append(propose(method, name, view))
            refuse_writes(name, before, view.weights.values())
            refuse_draws(name, random_state, f"its proposal at step {step}")
        return proposals, view

    def settle(self, proposals: list[Update], view: View, last: bool = True) -> Masks:
        """Commit the first of two proposals, unless another round of scoring follows, and hold the second to it.

        Returns the masks for the next round.
        """
        stages = list_stages(proposals[0])
        if last:
            self.apply(proposals[0], view)
        elif stages:
            self.maskset.check_together(stages[-1], None)
        self.refuse_difference(proposals[0], proposals[1], view.step)
        self.asked.append((view, proposals[0]))
        return dict(stages[-1]) if stages else dict(self.maskset.masks)

    def refuse_difference(self, one: Update, other: Update, step: int) -> None:
        """Raise UserError unless two answers to the same view are the same."""
        if not same_update(one, other):
            raise UserError(
                f"method '{self.name}' breaks its contract at step {step}: asked twice with the same view it returned "
                "different masks; draw random numbers with view.random(name), never from a global generator, and keep "
                "nothing outside the run: Update(state=...) does"
            )

    def ask_in_reverse(self) -> None:
        """Ask for everything once more, the last first, and hold each answer to that of its time."""
        for view, update in reversed(self.asked):
            self.refuse_difference(update, propose(self.method, self.name, view), view.step)

    def shown(self) -> dict[str, Any]:
        """Return what a view shows of the method's own, copied."""
        stored = self.maskset.stored
        return {
            "stored": None if stored is None else {n: t.clone() for n, t in stored.values.items()},
            "trained": {n: t.clone() for n, t in self.maskset.trained().items()},
            "state": {n: t.clone() for n, t in self.state.items()},
            "learned": {n: t.clone() for n, t in self.learned.items()},
            "lr": 0.1,
        }

    def apply(self, update: Update, view: View) -> None:
        """Commit an update; after setup the method's stored weights and learned parameters begin."""
        if view.step == 0:
            learned = ask_learned(self.method, self.name, view)
            check_learned(self.name, self.method, learned, set(self.weights))
            check_storage(self.name, self.method)
            self.learned = {n: tensor.detach().clone().float() for n, tensor in learned.items()}
            if self.method.inactive is Inactive.STORED:
                stored = self.maskset.store(self.method.trains, averaged=False)
                if weighs(self.method):
                    stored.weigh = lambda name, values: ask_weigh(self.method, self.name, name, values, self.learned)
        update = commit(self.method, self.name, self.maskset, update, view, learned=self.learned)
        self.state |= update.state or {}

    @torch.no_grad()
    def move(self) -> None:
        """Change the trained weights as training would."""
        stored, trained = self.maskset.stored, self.maskset.trained()
        for name, noise in self.draw().items():
            (self.weights if stored is None else stored.values)[name].add_(0.1 * noise * trained[name])
        self.maskset.load_effective()

    def rehearse_step(self, step: int) -> None:
        """Ask for what a step before the update asks for: the penalty, and the weights with their gradients."""
        method, stored = self.method, self.maskset.stored
        self.move()
        if has_penalty(method):
            view = View(
                weights=self.weights,
                masks=self.maskset.masks,
                step=step,
                timeline=self.timeline,
                seed=0,
                **self.shown(),
            )
            trained = self.maskset.trained()
            for weight, extra in ask_penalty(method, self.name, view).items():
                if not torch.isfinite(extra[trained[weight]]).all():
                    raise UserError(
                        f"method '{self.name}' breaks its contract: penalty() of '{weight}' must be finite where "
                        f"weights are trained, and at step {step} it is not"
                    )
        if stored is not None and self.maskset.weighs:
            for name, values in stored.values.items():
                with torch.enable_grad():
                    ask_weigh(method, self.name, name, values.clone().requires_grad_(), self.learned)


def same_update(one: Update, other: Update) -> bool:
    """Return whether two updates are the same masks in the same stages, with the same values and state."""
    stages, again = list_stages(one), list_stages(other)
    rest, more = list_tensors(one), list_tensors(other)
    return (
        len(stages) == len(again)
        and all(torch.equal(a[name], b[name]) for a, b in zip(stages, again, strict=True) for name in a)
        and list(rest) == list(more)
        and all(torch.equal(rest[name], more[name]) for name in rest)
        and one.forget == other.forget
    )


def refuse_writes(name: str, before: Iterable[Tensor], after: Iterable[Tensor]) -> None:
    """Raise UserError when a weight changed while the method was asked for masks."""
    if any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise UserError(f"method '{name}' breaks its contract: it wrote to a weight instead of returning values")


def refuse_draws(name: str, before: Tensor, moment: str) -> None:
    """Raise UserError when torch's generator is not as it was: dropout would differ between methods."""
    if not torch.equal(before, torch.random.get_rng_state()):
        raise UserError(
            f"method '{name}' breaks its contract in {moment}: it used torch's global random generator; draw random "
            "numbers with view.random(name)"
        )


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
