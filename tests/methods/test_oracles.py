"""Every method against its oracle, bit for bit: at set-up and every update of whole trainings, and on hard views."""

from __future__ import annotations

import ast
import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmark.config.plugins import built_in_names, find_method
from methods.core import DenseGrads, Method, Scoring, Timeline, View
from tests.harness import oracles, oracles_moving, oracles_rounds, oracles_sis, oracles_thresholds, small
from tests.harness.disagreement import (
    GRADIENTS,
    MASKS,
    NETS,
    SIZE,
    WEIGHTS,
    Watch,
    compare_plan,
    compare_training,
    compare_views,
    disagreement,
    draw_layers,
    draw_masks,
    tensors,
)
from tests.harness.oracles import ORACLES, Oracle

NAMES = built_in_names()
GRADUAL_NAMES = ("granet", "granet_late", "gmp", "granet_uniform", "gmp_uniform", "granet_structured", "gmp_structured")
UPDATING = [name for name in NAMES if find_method(name).cls.update is not Method.update]
BY_INTERVAL = [name for name in UPDATING if name not in ("imp", "sis")]


# -------------------------------------------------------------------------------------------------------------- tests


def test_every_method_has_an_oracle():
    missing = [name for name in NAMES if name not in ORACLES]
    assert missing == [], f"write an oracle for {', '.join(missing)} in tests/harness/oracles.py, from the paper alone"


def test_oracles_are_numpy_and_nothing_of_the_suite():
    for module in (oracles, oracles_moving, oracles_rounds, oracles_sis, oracles_thresholds):
        tree = ast.parse(Path(module.__file__).read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert set(names) - {oracles.__name__} <= {"__future__", "math", "numpy"}


# ---------------------------------------------------------------------------------------------- the oracles themselves


def test_of_equal_scores_the_lower_index_is_taken_and_candidates_only():
    scores = np.array([[1, 0, 2], [-0.0, 2, 2]], np.float32)
    among = np.array([[True, True, False], [True, True, True]])
    assert oracles.best(scores, 3, among).astype(int).tolist() == [[1, 0, 0], [0, 1, 1]]
    assert oracles.best(scores, 4, among).astype(int).tolist() == [[1, 1, 0], [0, 1, 1]]
    two = oracles.best_of_all({"a": scores[0], "b": scores[1]}, 4, {"a": among[0], "b": among[1]})
    assert [mask.astype(int).tolist() for mask in two.values()] == [[1, 1, 0], [0, 1, 1]]


def test_layer_counts_are_those_worked_out_by_hand():
    """ERK at 36 of 96: sums 10 and 8 of shapes of 64 and 32 weights give 20 and 16; at 80 the second is full."""
    shapes = {"a": (8, 8), "b": (8, 4), "c": (1, 1)}
    sums = {"a": 16, "b": 12, "c": 2}
    assert {name: oracles.parts(shape, "erk") for name, shape in shapes.items()} == sums
    # 29 = 1 (c, full: 30 x 2 / 30 > 1) + 28 x 16 / 28 + 28 x 12 / 28
    assert oracles.layer_counts(shapes, 29, "erk") == {"a": 16, "b": 12, "c": 1}
    # 80: c full, then b (79 x 12 / 28 = 33.9 > 32) full, 47 left for a
    assert oracles.layer_counts(shapes, 80, "erk") == {"a": 47, "b": 32, "c": 1}
    # uniform, 13 of 97: 8.58 + 4.29 + 0.13, the one left over goes to the largest remainder
    assert oracles.layer_counts(shapes, 13, "uniform") == {"a": 9, "b": 4, "c": 0}
    # three equal layers share 4: the earlier one on the tie
    assert oracles.layer_counts({n: (2, 2) for n in "xyz"}, 4, "erk") == {"x": 2, "y": 1, "z": 1}
    # ER leaves the kernel out: (4 + 4) x 9 against 8 + 8
    assert oracles.parts((4, 4, 3, 3), "er") == 72 and oracles.parts((8, 8), "er") == 16


def one_layer(oracle: Oracle, step: int, weight: list, mask: list, gradient: list, draw: list | None = None) -> list:
    """Return the oracle's next mask of a network of one layer, as 0 and 1."""
    values = {"w": np.array(weight, np.float32)}, {"w": np.array(mask, bool)}, {"w": np.array(gradient, np.float32)}
    return oracle.masks(step, *values, None, lambda name, purpose: np.array(draw))["w"].astype(int).tolist()


def test_one_update_of_granet_is_that_worked_out_by_hand():
    """8 weights, 6 active; k = 1 of n = 2: s = 0.75 - 0.5 x 0.5^3 = 0.6875, round(2.5) = 2 stay: 9 and -8.

    r = 0.005 + 0.495 (1 + cos(pi / 4)) / 2 = 0.43, so ceil(0.86) = 1 goes (-8) and one of the seven others comes.
    """
    settings = {"sparsity": 0.75, "start_sparsity": 0.25, "update_every": 2, "prune_end": 0.5}
    oracle = ORACLES["granet"](settings, Timeline(8, 2))
    assert oracle.update_steps() == [2, 4, 6]
    assert [oracle.planned(step) for step in (0, 1, 2, 3, 4, 8)] == [0.25, 0.25, 0.6875, 0.6875, 0.75, 0.75]
    weight, mask = [9, -8, 7, 6, 5, 4, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]
    assert one_layer(oracle, 2, weight, mask, [5, 1, 0, -2, 0, 0, 1, 0]) == [1, 0, 0, 1, 0, 0, 0, 0]
    assert one_layer(oracle, 2, weight, mask, [5, -3, 0, -2, 0, 0, 1, 0]) == [1, 1, 0, 0, 0, 0, 0, 0]
    assert one_layer(oracle, 2, weight, mask, [0] * 8) == [1, 1, 0, 0, 0, 0, 0, 0]  # the lower index
    shown = {"w": np.array(weight, np.float32)}, {"w": np.array(mask, bool)}, {"w": np.eye(8, dtype=np.float32)[3]}
    pruned, regrown = (stage["w"].astype(int).tolist() for stage in oracle.stages(2, *shown, None, None))
    assert pruned == [1, 1, 0, 0, 0, 0, 0, 0]  # 6 is set to zero by Eq. 1, so it starts anew although Eq. 3 regrows it
    assert regrown == [1, 0, 0, 1, 0, 0, 0, 0]


def test_one_update_of_set_is_that_worked_out_by_hand():
    """Of 0.0, 1, 3 (zero counts as positive) and -4, -2 a half goes, rounded down: 0.0 and -2; together 0.0 and 1."""
    weight, mask, draw = (
        [0.0, 1, 3, -4, -2, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [0.5, 0.9, 0.9, 0.1, 0.1, 0.2, 0.6, 0.3],
    )
    apart = ORACLES["set"]({"sparsity": 0.375, "prune_rate": 0.5}, Timeline(8, 4))
    assert one_layer(apart, 4, weight, mask, [0] * 8, draw) == [1, 1, 1, 1, 0, 0, 1, 0]
    together = ORACLES["set"]({"sparsity": 0.375, "prune_rate": 0.5, "per_sign": False}, Timeline(8, 4))
    assert one_layer(together, 4, weight, mask, [0] * 8, draw) == [0, 1, 1, 1, 1, 0, 1, 0]


def test_a_score_of_snip_and_of_grasp_is_that_worked_out_by_hand():
    """|g w| = 3, 2, 2, 0 keeps the first two; -w Hg = 2, -3, 0, -1 removes the largest, 2 and 0."""
    weight, gradient, product = [3.0, -2, 0.5, 1], [-1.0, 1, 4, 0], [-2 / 3, -1.5, 0, 1]
    shown = ({"w": np.array(values, np.float32)} for values in (weight, gradient, product))
    weights, gradients, products = shown
    everything = {"w": np.ones(4, bool)}
    timeline, half = Timeline(8, 4), {"sparsity": 0.5}
    snip = ORACLES["snip"](half, timeline).masks(0, weights, everything, gradients, None, None)
    grasp = ORACLES["grasp"](half, timeline).masks(0, weights, everything, gradients, products, None)
    assert snip["w"].tolist() == [True, True, False, False]
    assert grasp["w"].tolist() == [False, True, False, True]


# ------------------------------------------------------------------------------------------- the suite is the oracles'

SPARSITIES = (0.0, 0.5, 0.9, 0.98)
GRADUAL = [
    {},
    {"prune_end": 0.3},
    {"prune_end": 1.0, "update_every": 2},
    {"prune_end": 0.58, "update_every": 1},
]
EXCHANGES = [{}, {"distribution": "er"}, {"distribution": "uniform", "prune_rate": 0.9}]
N_OF_M = [{"pattern": "2:4", "sparsity": 0.5}, {"pattern": "1:4", "sparsity": 0.75, "prune_end": 1.0}]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "static": [{"distribution": kind} for kind in ("erk", "er", "uniform")],
    "snip": [{}, {"score_batches": 3}, {"batch_norm": "running", "augment": False}],
    "one_shot": [
        {},
        {"scope": "layer"},
        {"pattern": "filters"},
        {"pattern": "filters", "scope": "layer"},
        {"pattern": "2:4", "sparsity": 0.5},
        {"pattern": "1:4", "sparsity": 0.75},
        {"rate": 0.7, "regrow": True, "sparsity": 0.0},
        {"rate": 0.7, "regrow": True, "sparsity": 0.0, "scope": "layer"},
        {"rate": 0.7, "regrow": True, "sparsity": 0.0, "pattern": "filters"},
    ],
    "gmp_uniform": [{}, {"prune_end": 0.58, "update_every": 1}],
    "granet_late": [{}, {"prune_start": 0.3, "prune_end": 0.7, "update_every": 2}, {"prune_start": 0.0}],
    "granet_uniform": [{}, {"start_sparsity": 0.0, "prune_end": 0.3}, {"prune_end": 1.0, "update_every": 2}],
    "gmp_structured": [{}, {"scope": "layer", "update_every": 1}, *N_OF_M],
    "granet_structured": [{}, {"scope": "layer", "prune_rate": 1.0, "update_every": 2}, *N_OF_M],
    "synflow": [{}, {"score_rounds": 1}],
    "force": [{"score_rounds": 5}, {"score_rounds": 3, "score_batches": 2, "resurrect": False}],
    "imp": [{"prune_rate": 0.5}, {"prune_rate": 0.7, "rewind_epoch": 1}, {"prune_rate": 0.6, "keep_weights": True}],
    "grasp": [{}, {"samples_per_class": 4, "temperature": 1.0}],
    "gmp": GRADUAL,
    "granet": [
        {},
        {"start_sparsity": 0.0},
        {"start_sparsity": 0.0, "prune_end": 0.3, "prune_rate": 1.0},
        {"distribution": "er", "prune_end": 0.58, "update_every": 1},
        {"distribution": "uniform", "prune_end": 1.0, "update_every": 2, "final_prune_rate": 0.3},
    ],
    "rigl": [
        {"update_every": 3},
        {"update_every": 2, "update_end": 1.0, "distribution": "er"},
        {"update_every": 1, "update_end": 0.58, "distribution": "uniform", "prune_rate": 0.9},
    ],
    "rigl_itop": [*EXCHANGES, {"update_every": 2, "prune_rate": 1.0, "final_prune_rate": 0.2}],
    "rigl_itop_filter": EXCHANGES,
    "srigl": [
        {"update_every": 3},
        {"update_every": 2, "gamma": 0.9, "prune_rate": 0.9},
        {"update_every": 1, "update_end": 0.58, "distribution": "uniform", "gamma": 0.0},
    ],
    "ac_dc": [
        {},
        {"warm_up": 0.05, "phase": 0.1, "last_dense": 0.75, "last_compressed": 0.85},
        {"warm_up": 0.25, "phase": 0.25, "last_dense": 0.5, "last_compressed": 0.75},
    ],
    "mest": [
        *EXCHANGES,
        {"soft": 0.3, "update_every": 2},
        {"soft": 0.05, "update_every": 1, "halve_at": 0.29, "update_end": 0.58},
        {"prune_rate": 1.0, "update_every": 2, "update_end": 1.0},
    ],
    "set": [*EXCHANGES, {"per_sign": False}, {"per_sign": False, "update_every": 2}, {"update_every": 4}],
    **oracles_moving.VARIANTS,
    **oracles_thresholds.VARIANTS,
    **oracles_sis.VARIANTS,
}


def make(name: str, sparsity: float, changes: dict[str, Any]) -> Method:
    """Return the suite's method with the small page's settings and `changes`; it starts no sparser than it ends."""
    changes = dict(changes)
    sparsity = changes.pop("sparsity", sparsity)
    if name in ("granet", "granet_uniform"):
        changes["start_sparsity"] = min(sparsity, changes.get("start_sparsity", 0.5))
    if name == "sr_ste":  # at no other sparsity
        sparsity = {"2:4": 0.5, "1:4": 0.75}[changes.get("pattern", "2:4")]
    if name == "str" and "prune_end" in changes:
        changes["fix_at"] = max(changes["prune_end"], 0.75)
    return find_method(name).build(small.make_page(), sparsity, changes)


def cases(names: list[str], all_of: tuple[float, ...], some_of: tuple[float, ...]) -> list[Any]:
    """Return (name, sparsity, settings, number): the defaults at the sparsities `all_of`, variants at `some_of`.

    Every day each at the last of its sparsities, the others in the slow tests.
    """
    rows, slow = [], set()
    for name in names:
        for i, changes in enumerate(VARIANTS.get(name, [{}])):
            chosen = (changes["sparsity"],) if "sparsity" in changes else some_of if i else all_of
            filters = "pattern" in {**ORACLES[name].defaults, **changes} and changes.get("pattern") in (None, "filters")
            most = 0.9 if filters else 1.0  # whole filters of these small networks reach no more
            new = [(name, sparsity, changes) for sparsity in chosen if sparsity <= most]
            slow |= {len(rows) + place for place in range(len(new) - 1)}
            rows += new
    marks = [[pytest.mark.slow] if number in slow else [] for number in range(len(rows))]
    return [
        pytest.param(*row, number, id=f"{row[0]}-{row[1]:g}-{number}", marks=mark)
        for number, (row, mark) in enumerate(zip(rows, marks, strict=True))
    ]


@pytest.mark.parametrize(("name", "sparsity", "changes", "number"), cases(NAMES, SPARSITIES, (0.5, 0.9, 0.98)))
def test_in_a_whole_training_every_mask_is_the_oracles(name, sparsity, changes, number):
    method = make(name, sparsity, changes)
    net = NETS[number % len(NETS)]
    epochs = 6 if name == "ac_dc" else 4  # so that a phase is a step long
    steps = compare_training(method, name, net, number, epochs=epochs, batch_size=(8, 12, 16)[number % 2])
    assert bool(steps) == (name in UPDATING)


@pytest.mark.parametrize("name", UPDATING)
def test_updates_made_up_for_after_skipped_steps_are_the_oracles(name):
    method, number = (
        make(name, 0.8, {"update_every": 2} if name in ("rigl", "srigl", "dsr", "top_kast") else {}),
        UPDATING.index(name),
    )
    skipped = frozenset({3, 4, 6, 9, 12, 13})
    assert compare_training(method, name, NETS[number % len(NETS)], number, skipped, epochs=4)


@pytest.mark.parametrize(("name", "sparsity", "changes", "number"), cases(NAMES, (0.0, 0.5, 0.8), (0.8,)))
def test_on_ties_zeros_and_empty_and_full_layers_every_mask_is_the_oracles(name, sparsity, changes, number):
    assert compare_views(make(name, sparsity, changes), name, number) >= len(WEIGHTS) * len(GRADIENTS)


@pytest.mark.parametrize("name", BY_INTERVAL)
def test_plans_of_every_length_are_the_oracles(name):
    """Also where a share of the run is no whole step, or is one only in decimals: 0.29 of 100 is 29."""
    fields = {field.name for field in dataclasses.fields(find_method(name).cls)}
    shares = (0.14, 0.28, 0.29, 0.57, 0.58, 0.7, 1.0)
    for total, share, every in [*product((50, 100), shares, (1,)), *product((23, 106), (0.25, 0.5, 0.8), (3, 4))]:
        wanted = {"update_every": every, "prune_end": share, "update_end": share}
        changes = {key: value for key, value in wanted.items() if key in fields}
        for sparsity, per_epoch in ((0.9, 7), (0.98, 5)):
            compare_plan(make(name, sparsity, changes), name, Timeline(total, per_epoch))


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("pattern", ["none", "filters"])
@pytest.mark.parametrize("regrow", [False, True])
def test_in_a_branch_one_shot_prunes_and_regrows_as_its_oracle(kind, scope, pattern, regrow):
    """From masks of sparsity 0.5: a rate of 0.6 leaves 0.8 of sparsity, or 0.5 where as many are regrown."""
    rng = np.random.default_rng(3)
    slopes = GRADIENTS if regrow else ["normal"]
    for seed, (weight, gradient) in enumerate((w, g) for w in WEIGHTS for g in slopes):
        masks = draw_masks(kind, oracles.budget(0.5, SIZE), rng)
        layers = {n: np.where(masks[n], array, np.float32(0)) for n, array in draw_layers(WEIGHTS[weight], rng).items()}
        gradients = tensors(draw_layers(GRADIENTS[gradient], rng), False) if regrow else None
        view = View(
            weights=tensors(layers, seed % 2 == 0),
            masks=tensors(masks, False),
            step=0,
            timeline=Timeline(8, 4),
            seed=seed,
            gradients=gradients,
            last="equal",
        )
        changes = {"rate": 0.6, "scope": scope, "pattern": pattern, "regrow": regrow}
        method = make("one_shot", 0.5 if regrow else 0.8, changes)
        Watch("one_shot", f"branch, weights {weight}, gradients {gradient}")(method, "one_shot", view)


def random_start(distribution: str, shapes: dict[str, tuple[int, ...]], sparsity: float, seed: int = 0) -> None:
    """Raise DisagreementError unless the static method's masks on layers of these shapes are the oracle's."""
    view = View(
        weights={name: torch.zeros(shape) for name, shape in shapes.items()},
        masks={name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()},
        step=0,
        timeline=Timeline(8, 4),
        seed=seed,
    )
    method = make("static", sparsity, {"distribution": distribution})
    Watch("static", f"{distribution} at {sparsity} of {shapes}")(method, "static", view)


@pytest.mark.parametrize("distribution", ["erk", "er", "uniform"])
def test_random_starts_on_layers_of_any_shape_are_the_oracles(distribution):
    rng = np.random.default_rng(8)
    for seed in range(60):
        shapes: list[tuple[int, ...]] = [(1, 1)]
        for _ in range(rng.integers(1, 7)):
            new = tuple(int(n) for n in rng.choice([1, 2, 3, 5, 8], rng.integers(2, 6)))
            shapes.append(new if rng.random() < 0.7 else shapes[int(rng.integers(len(shapes)))])
        layers = {f"layer{i}": shape for i, shape in enumerate(shapes)}
        random_start(distribution, layers, float(rng.choice([0, 0.5, 0.9, 0.98, rng.random()])), seed)


def test_of_equal_remainders_the_earlier_layer_gets_the_weight_left_over():
    """7 of 708: 2 2/3, 1, 1 2/3 and 1 2/3, so that the first and the third layer get the two that are left."""
    random_start("erk", {"a": (4, 8, 2, 10), "b": (5, 4), "c": (12, 2, 1), "d": (12, 2, 1)}, 0.99)


def test_rigl_drops_the_share_its_formula_gives_where_that_is_a_whole_number():
    """At step 4 of T_end = 0.3 x 20 = 6 the rate is 1/4 of alpha = 1, and a quarter of a layer's 100 is 25."""
    method = make("rigl", 0.3, {"prune_rate": 1.0, "update_end": 0.3, "update_every": 2, "distribution": "uniform"})
    mask = torch.arange(144) < 100
    weights = {"w": torch.where(mask, torch.arange(1.0, 145.0), torch.zeros(144))}
    view = View(
        weights=weights, masks={"w": mask}, step=4, timeline=Timeline(20, 5), seed=0, gradients={"w": (~mask).float()}
    )
    Watch("rigl", "one layer")(method, "rigl", view)


# ------------------------------------------ the comparison can say no: for masks, see the wrong methods of mutants.py


SCORING = Scoring(order=2, samples_per_class=10, chunks=2, temperature=200.0)


@pytest.mark.parametrize(
    ("name", "facts", "says"),
    [
        ("rigl", {"replaces_step": False}, "replaces_step"),
        ("granet", {"replaces_step": True}, "replaces_step"),
        ("granet", {"dense_grads": DenseGrads.NEVER}, "dense gradients"),
        ("gmp", {"dense_grads": DenseGrads.AT_UPDATES}, "dense gradients"),
        ("snip", {"scoring": lambda self: SCORING}, "asks to be scored"),
        ("static", {"scoring": lambda self: Scoring()}, "asks to be scored"),
        ("grasp", {"scoring": lambda self: dataclasses.replace(SCORING, chunks=1)}, "asks to be scored"),
        ("static", {"setup": lambda self, view: None}, "returned NoneType"),
    ],
)
def test_a_method_that_asks_the_engine_for_something_else_is_told_apart(name, facts, says):
    other = type("Other", (find_method(name).cls,), facts)
    assert says in (disagreement(other(**dataclasses.asdict(make(name, 0.8, {}))), name) or "")
