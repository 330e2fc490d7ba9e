"""Where a method first disagrees with the oracle it is held against."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError
from benchmark.config.cells import Cell
from benchmark.config.plugins import Plugin
from benchmark.runs.run import set_up_masks
from benchmark.training.contract import list_stages, propose
from benchmark.training.state import Training
from methods.core import DenseGrads, Inactive, Method, Timeline, Update, View
from tests.harness import (  # noqa: F401 (they register)
    oracles,
    oracles_moving,
    oracles_rounds,
    oracles_sis,
    oracles_thresholds,
    small,
)
from tests.harness.oracles import ORACLES, Oracle

EPOCH = small.IMAGES // small.BATCH  # steps
LONGEST = 80  # epochs of a training; enough for five updates of RigL's 100 steps each


class DisagreementError(Exception):
    """A method and its oracle differ; the message says where and how."""


# ---------------------------------------------------------------------------------------------------------- networks


class LinearNet(nn.Module):
    """Linear layers only, two of equal shape: 576 + 64 + 64 + 24 prunable weights."""

    def __init__(self) -> None:
        super().__init__()
        relu = nn.ReLU
        body = [nn.Linear(72, 8), relu(), nn.Linear(8, 8, bias=False), relu(), nn.Linear(8, 8), relu(), nn.Linear(8, 3)]
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(1))


class OddNet(nn.Module):
    """A layer of one weight, and depthwise and grouped convolutions of equal shape: 2 + 1 + 3 x 54 + 2 x 162 + 18."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 1, 1)
        self.one = nn.Conv2d(1, 1, 1)
        self.wide = nn.Conv2d(1, 6, 3, padding=1)
        self.left = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.right = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.likewise = nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.one(self.mix(x)))
        x = torch.relu(self.left(x) + self.right(x))
        x = torch.relu(self.norm(self.grouped(x) + self.likewise(x)))
        return self.fc(x.mean((2, 3)))


NETS = (small.SmallNet, LinearNet, OddNet)


# ---------------------------------------------------------------------------------------------------- the comparison


def settings_of(method: Method, name: str) -> dict[str, Any]:
    """Return the hyper-parameters of `method`; an interval it lacks is that of the small page."""
    settings = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return {"update_every": small.make_page().update_every, **ORACLES[name].defaults, **settings}


def interval(method: Method) -> int:
    """Return the steps between two updates, one small epoch where the method counts in epochs."""
    return getattr(method, "update_every", 0) or EPOCH


def arrays(tensors: Mapping[str, Tensor] | None) -> dict[str, np.ndarray] | None:
    """Return copies of the tensors as arrays."""
    return None if tensors is None else {name: t.detach().cpu().numpy().copy() for name, t in tensors.items()}


def ask(oracle: Oracle, view: View) -> list[dict[str, np.ndarray]]:
    """Return the oracle's masks, stage by stage, from what a method is shown and from the same draws.

    Its weights are the stored ones, where inactive weights keep their values.
    """
    oracle.last, oracle.round, oracle.learned = view.last, view.round, arrays(view.learned)
    oracle.view = {
        "stored": arrays(view.stored),
        "state": arrays(view.state),
        "input_moments": arrays(view._input_moments),
        "lr": view.lr,
        "key": lambda name, purpose: view.key(name, purpose, False),
        "uniform": lambda name, purpose, run=False: view.uniform(name, purpose, run).cpu().numpy(),
        "normal": lambda name, purpose: view.normal(name, purpose).cpu().numpy(),
    }
    return oracle.stages(
        view.step,
        arrays(view.stored),
        arrays(view.masks),
        arrays(view._gradients),
        arrays(view._hessian_gradients),
        lambda name, purpose: view.random(name, purpose).cpu().numpy(),
    )


def difference(proposed: Any, stages: list[dict[str, np.ndarray]]) -> str | None:
    """Return how the proposal differs from the oracle's in the first layer that does, or None.

    Compared are the last masks and, as stages may be cut otherwise, which weights no stage takes away.
    """
    if not stages:
        return "masks change where the oracle's stay" if proposed else None
    given = [proposed] if isinstance(proposed, Mapping) else list(proposed or [None])
    for name, mask in stages[-1].items():
        tensors = [masks.get(name) if isinstance(masks, Mapping) else None for masks in given]
        for tensor in tensors:
            if not isinstance(tensor, Tensor) or tensor.dtype != torch.bool or tuple(tensor.shape) != mask.shape:
                return f"layer {name}: no bool mask of shape {mask.shape}"
        got = [tensor.cpu().numpy() for tensor in tensors if tensor is not None]
        active = explain(got[-1], mask, "active")
        untouched = np.logical_and.reduce(got), np.logical_and.reduce([masks[name] for masks in stages])
        found = active or explain(*untouched, "never taken away")
        if found:
            return f"layer {name}: {found}"
    return None


def difference_beside(update: Update, beside: dict[str, dict[str, np.ndarray]]) -> str | None:
    """Return how what an update has beside masks differs from the oracle's `values`, `state` and `trained`, or None.

    Values count where the oracle has one; elsewhere it has not a number.
    """
    for kind in ("values", "state", "trained"):
        got, expected = arrays(getattr(update, kind)) or {}, beside.get(kind, {})
        if list(got) != list(expected):
            return f"{kind} of {list(got)}, the oracle's of {list(expected)}"
        for name, array in expected.items():
            wrong = (got[name] != array) & (np.isfinite(array) if kind == "values" else True)
            if wrong.any():
                return f"{kind} of {name}: {int(wrong.sum())} of {array.size} differ"
    return None


def values_of(oracle: Oracle, view: View) -> dict[str, np.ndarray]:
    """Return the values that the oracle, asked a moment ago, gives to weights or learned parameters, by name."""
    values = getattr(oracle, "values", None)
    return values(view.step, arrays(view.stored)) if values else {}


def difference_of_values(update: Update, expected: dict[str, np.ndarray]) -> str | None:
    """Return how the values differ from the oracle's, which are sought by another way, or None."""
    given = arrays(update.values) or {}
    if given.keys() != expected.keys():
        return f"values of {sorted(given)} where the oracle has {sorted(expected)}"
    wrong = [name for name in given if not np.allclose(given[name], expected[name], rtol=0, atol=1e-3)]
    return f"{wrong[0]} becomes {given[wrong[0]]}, the oracle's {expected[wrong[0]]}" if wrong else None


def difference_of_penalty(method: Method, oracle: Oracle, view: View) -> str | None:
    """Return how the penalty differs from the oracle's, where it has one, or None."""
    penalty = getattr(oracle, "penalty_of", None)
    for name, expected in (penalty(arrays(view.stored), arrays(view.masks)) if penalty else {}).items():
        given = method.penalty(view)[name].numpy()
        if not np.allclose(given, expected, rtol=1e-6, atol=0):
            return f"layer {name}: the penalty is {given.ravel()[:3]}..., the oracle's {expected.ravel()[:3]}..."
    return None


def explain(got: np.ndarray, expected: np.ndarray, what: str) -> str | None:
    """Return how one mask differs from the oracle's, or None."""
    wrong = np.argwhere(got != expected)
    if not len(wrong):
        return None
    index = tuple(int(i) for i in wrong[0])
    method, oracle = ("has", "has not") if got[index] else ("has not", "has")
    counts = f"{got.sum()} {what} where the oracle has {expected.sum()}"
    return f"{len(wrong)} of {got.size} differ ({counts}); the method {method} {index}, the oracle {oracle}"


class Watch:
    """Stands in for `propose`: passes masks on while they are the oracle's, raises when they are not."""

    def __init__(self, oracle: str, what: str) -> None:
        self.oracle, self.what = oracle, what
        self.steps: list[int] = []
        self.last: dict[str, np.ndarray] | None = None

    def __call__(self, method: Method, name: str, view: View) -> Any:
        """Ask the oracle first, so that a method that writes to its inputs cannot mislead it."""
        when = f"{self.what}, " + (f"update at step {view.step}" if view.step else "set-up")
        if self.last is not None and difference(view.masks, [self.last]):
            raise DisagreementError(f"{when}: masks changed between updates: {difference(view.masks, [self.last])}")
        oracle = ORACLES[self.oracle](settings_of(method, self.oracle), view.timeline)
        expected, values, weighs = ask(oracle, view), values_of(oracle, view), hasattr(oracle, "used")
        if weighs and self.last is None and self.steps and difference(view.masks, [oracle.used(arrays(view.stored))]):
            raise DisagreementError(
                f"{when}: the network computes with other weights than the oracle's thresholds leave"
            )
        self.last = expected[-1] if expected else None if weighs else self.last
        self.steps.append(view.step)
        update = propose(method, name, view)
        found = difference(list_stages(update), expected)
        if hasattr(oracle, "values"):
            found = found or difference_of_values(update, values)
            if getattr(oracle, "forgets", False) and set(update.forget or ()) != set(values):
                found = found or f"the optimiser's state of {update.forget} starts anew, not of {sorted(values)}"
        else:
            found = found or difference_beside(update, getattr(oracle, "beside", {}))
        found = found or difference_of_penalty(method, oracle, view)
        if found:
            raise DisagreementError(f"{when}: {found}")
        return update


def start(method: Method, name: str, net: type[nn.Module], seed: int, **page: Any) -> Training:
    """Return a run of `method` on a network, its first masks committed by the engine."""
    with mock.patch.object(small, "SmallNet", net):
        run = small.make_training(method, name, seed, allow_empty_layers=True, prune_depthwise=True, **page)
    plugin = Plugin(name, type(method), "test", "0" * 64)
    set_up_masks(Cell("small", run.page, {}, plugin, method, {}, method.sparsity, seed), run)
    return run


def compare_training(
    method: Method, name: str, net: type[nn.Module], seed: int, skipped: frozenset[int] = frozenset(), **page: Any
) -> list[int]:
    """Train `method` through the engine; return its update steps. Raises DisagreementError at the first that differs.

    skipped: steps made not finite, whose updates come late.
    """
    watch = Watch(name, f"{net.__name__}, seed {seed}")
    with mock.patch("benchmark.training.step.propose", watch), mock.patch("benchmark.training.setup.propose", watch):
        run = start(method, name, net, seed, **page)
        small.finish(small.poison(run, set(skipped)))
    oracle = ORACLES[name](settings_of(method, name), run.timeline)
    due, rounds = oracle.update_steps(), (oracle.scoring() or {}).get("rounds", 1)
    finite = [step for step in range(1, run.timeline.total_steps + 1) if step not in skipped]
    late = {min(after) for step in due if (after := [s for s in finite if s >= step])}
    if watch.steps != [0] * rounds + sorted(late):
        raise DisagreementError(f"{watch.what}: masks asked at steps {watch.steps}, the oracle updates at {due}")
    return watch.steps[rounds:]


def compare_facts(method: Method, name: str) -> None:
    """Raise DisagreementError unless the method asks the engine for what the paper needs."""
    oracle = ORACLES[name](settings_of(method, name), Timeline(1000, 100))
    if method.replaces_step != oracle.replaces_step:
        raise DisagreementError(f"replaces_step is {method.replaces_step}, the oracle's {oracle.replaces_step}")
    if method.dense_grads.value != oracle.dense_gradients:
        raise DisagreementError(
            f"dense gradients are read {method.dense_grads.value}, by the oracle {oracle.dense_gradients}"
        )
    wanted, expected = method.scoring(), oracle.scoring()
    got = None if wanted is None or expected is None else {key: getattr(wanted, key) for key in expected}
    if got != expected or (wanted is None) != (expected is None):
        raise DisagreementError(f"asks to be scored by {wanted}, the oracle by {expected}")


def in_rounds(method: Method, total: int, per_epoch: int) -> Timeline:
    """Return the timeline of a page of `total` steps, repeated as the method asks."""
    rounds = method.rounds(total // per_epoch)
    ends = [total + again * (total - rounds.back_to * per_epoch) for again in range(rounds.count)]
    return Timeline(ends[-1], per_epoch, tuple(ends))


def compare_plan(method: Method, name: str, timeline: Timeline) -> None:
    """Raise DisagreementError unless update steps and the planned sparsity after every step are the oracle's."""
    oracle = ORACLES[name](settings_of(method, name), timeline)
    steps = list(method.update_steps(timeline))
    if steps != oracle.update_steps():
        raise DisagreementError(f"{timeline}: updates at {steps}, the oracle's at {oracle.update_steps()}")
    for step in range(timeline.total_steps + 1):
        planned, expected = method.planned_sparsity(step, timeline), oracle.planned(step)
        at_end = step in (0, timeline.total_steps)
        if expected is not None and (abs(planned - expected) > 1e-12 or (at_end and planned != expected)):
            raise DisagreementError(
                f"{timeline}: plans sparsity {planned!r} after step {step}, the oracle {expected!r}"
            )


# --------------------------------------------------------------------------------------------------------- hard views

SHAPES = {
    "conv": (6, 4, 3, 3),
    "twin": (6, 4, 3, 3),
    "one": (1, 1, 1, 1),
    "depthwise": (5, 1, 3, 3),
    "linear": (7, 9),
    "equal": (7, 9),
}
SIZE = sum(math.prod(shape) for shape in SHAPES.values())

WEIGHTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "tied": lambda rng, shape: rng.choice([-0.5, -0.25, 0.25, 0.5], shape),
    "equal": lambda rng, shape: rng.choice([-0.5, 0.5], shape),
    "zero": lambda rng, shape: rng.choice([0.0, -0.0], shape),
    "freshly grown": lambda rng, shape: rng.choice([0.0, -0.0, -1.0, 1.0], shape) * rng.standard_normal(shape),
    "a rounding apart": lambda rng, shape: 1 + rng.integers(0, 8, shape) * 2.0**-23,
}
GRADIENTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "tied": lambda rng, shape: rng.choice([-0.5, 0.25, 0.0, -0.0], shape),
    "zero": lambda rng, shape: rng.choice([0.0, -0.0], shape),
    "a rounding apart": lambda rng, shape: 1 + rng.integers(0, 8, shape) * 2.0**-23,
}
MASKS = ("scattered", "layers full and empty")


def draw_layers(make: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return float32 arrays of every shape."""
    return {name: make(rng, shape).astype(np.float32) for name, shape in SHAPES.items()}


def draw_masks(kind: str, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return masks with `count` active weights in all: scattered, or layer by layer full, one in part, then empty."""
    flat = rng.permutation(SIZE) < count
    if kind == "scattered":
        starts = np.cumsum([0, *(math.prod(shape) for shape in SHAPES.values())])
        return {n: flat[a : a + math.prod(s)].reshape(s) for a, (n, s) in zip(starts, SHAPES.items(), strict=False)}
    masks = {}
    for name in rng.permutation(list(SHAPES)):
        size = math.prod(SHAPES[str(name)])
        masks[str(name)] = (rng.permutation(size) < count).reshape(SHAPES[str(name)])
        count -= min(size, count)
    return {name: masks[name] for name in SHAPES}


def tensors(layers: dict[str, np.ndarray], channels_last: bool) -> dict[str, Tensor]:
    """Return the arrays as tensors; those of convolutions in the memory format asked."""
    result = {name: torch.from_numpy(array.copy()) for name, array in layers.items()}
    if channels_last:
        return {n: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for n, t in result.items()}
    return result


def hard_views(method: Method, name: str, timeline: Timeline, seed: int) -> Iterator[tuple[str, View]]:
    """Yield crafted views, each with its description, of the set-up and of the first, a middle and the last update."""
    oracle = ORACLES[name](settings_of(method, name), timeline)
    steps = getattr(oracle, "mask_steps", oracle.update_steps)()
    rounds = (oracle.scoring() or {}).get("rounds", 1)
    chosen = [(0, done) for done in sorted({0, rounds // 2, rounds - 1})]
    chosen += [(step, 0) for step in sorted({*steps[:1], *steps[len(steps) // 2 :][:1], *steps[-1:]})]
    rng = np.random.default_rng(seed)
    kinds = [(w, g) for w in WEIGHTS for g in GRADIENTS]
    for number, ((step, done), (weight, gradient)) in enumerate((s, kind) for s in chosen for kind in kinds):
        before = max([s for s in steps if s < step], default=0)
        planned = oracle.planned(before) if step else oracle.thinned(done) if done else 0.0
        masks = draw_masks(MASKS[number % 2], oracles.budget(planned or 0.0, SIZE), rng)
        dense = draw_layers(WEIGHTS[weight], rng)
        layers = {n: np.where(masks[n] | (done > 0), array, np.float32(0)) for n, array in dense.items()}
        last = number % 3 == 0
        beside = getattr(oracle, "imagine", lambda *shown: {})(dense, layers, rng) if step else {}
        if method.inactive is Inactive.STORED:
            beside = {"stored": dense, **beside}  # inactive ones too
        reads = method.scoring() is not None if step == 0 else method.dense_grads is not DenseGrads.NEVER
        second = step == 0 and oracle.scoring() is not None
        view = View(
            weights=tensors(layers, last),
            masks=tensors(masks, last),
            step=step,
            timeline=timeline,
            seed=seed,
            gradients=tensors(draw_layers(GRADIENTS[gradient], rng), last) if reads else None,
            hessian_gradients=tensors(draw_layers(GRADIENTS[gradient], rng), last) if second else None,
            last="equal",
            round=done,
            lr=0.1,
            **{kind: tensors(group, last) for kind, group in beside.items()},
        )
        half = torch.tensor(0.0)  # thresholds of 0 and of 1/2
        learned = {n: half if place % 2 else s for place, (n, s) in enumerate(method.learned(view).items())}
        view.learned = MappingProxyType(learned)
        yield f"crafted view (weights {weight}, gradients {gradient}, masks {MASKS[number % 2]})", view


def compare_views(method: Method, name: str, seed: int = 0) -> int:
    """Hold the method to its oracle on crafted views; return their number. Raises DisagreementError at the first."""
    every, number = interval(method), 0
    for what, view in hard_views(method, name, in_rounds(method, 8 * every, every), seed):
        Watch(name, what)(method, name, view)
        number += 1
    return number


def disagreement(method: Method, name: str) -> str | None:
    """Return the first thing in which `method` differs from the oracle called `name`, or None where it is the same.

    Compared are what it asks of the engine, its plan on some timelines, a training on each of three small networks,
    and its masks on crafted views full of ties. A method that raises, or that the engine refuses, disagrees too.
    """
    every = interval(method)
    epochs = min(LONGEST, max(4, math.ceil((5 * every + 1) / EPOCH)))
    try:
        compare_facts(method, name)
        for total, per_epoch in ((8 * every, every), (10 * every, 2 * every), (11 * every + 1, every + 1)):
            compare_plan(method, name, in_rounds(method, total, per_epoch))
        for seed, net in enumerate(NETS):
            compare_training(method, name, net, seed, epochs=epochs)
        compare_views(method, name)
    except (DisagreementError, UserError) as error:
        return str(error)
    return None
