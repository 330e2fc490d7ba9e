"""Promises of the comparisons: nothing claimed that the seeds cannot carry, gains paired by seed, controls by run."""

from __future__ import annotations

import random
from typing import Any

import pytest

from leaderboard.tables import stats
from leaderboard.tables.comparisons import accuracies, blind_spots, gains_table, make_ranks
from leaderboard.tables.table import make_rows
from tests.harness.record_factory import make_record, make_runs, row, show, table


def runs_of(name: str, *values: float, **changes: Any) -> list[dict[str, Any]]:
    return make_runs(name, values, **changes)


def control_of(runs: list[dict[str, Any]], *values: float, kind: str = "densities") -> list[dict[str, Any]]:
    """Return the controls made from `runs`, one for each value."""
    made = []
    for run, value in zip(runs, values, strict=True):
        label, seed = run["method"]["label"], run["seed"]
        donor = {"label": label, "kind": kind, **{key: run[key] for key in ("run", "sparsity", "seed", "masks_sha256")}}
        method = {"label": f"static ({kind}={label})", "group": "control", "donor": donor}
        made += make_runs("static", {seed: value}, method=method, run=f"{kind}.{run['run']}")
    return made


# Ranks


def test_a_row_that_is_far_above_its_spread_is_first_and_bold() -> None:
    # means 5 apart, sd 0.2 and 0.3: t = 5 / (root 0.13 / root 3) = 24.0 with 3.5 degrees of freedom, p = 0.00005
    runs = runs_of("granet", 92.8, 93.0, 93.2) + runs_of("set", 87.7, 88.0, 88.3)
    ranks = make_ranks(make_rows(runs))
    assert sorted(ranks.values()) == [(1, 1), (2, 2)]
    text = show(*runs)
    assert row(text, "granet")[1:3] == ["**93.00 ± 0.20 (n=3)**", "1"]
    assert row(text, "set")[1:3] == ["88.00 ± 0.30 (n=3)", "2"]


def test_dense_and_controls_made_from_a_row_are_not_ranked() -> None:
    granet = runs_of("granet", 90.0, 91.0)
    dense = runs_of("dense", 95.0, 96.0)
    text = show(*granet, *runs_of("set", 80.0, 88.0), *dense, *control_of(granet, 70.0, 70.0))
    assert row(text, "granet")[2] == "1–2"
    assert [cells[0] for cells in table(text)] == [
        *["method", "*dense*", "dense", "*sparse-to-sparse*", "granet", "set"],
    ]


def test_a_row_of_which_a_run_diverged_may_have_any_rank() -> None:
    # Its finished runs are far better, but they are the ones that were left.
    diverged = {**make_record(seed=3, status="diverged", data={"test": 10_000}), "file": "x"}
    runs = [*runs_of("granet", 92.8, 93.0, 93.2), diverged, *runs_of("set", 87.7, 88.0, 88.3, 88.0)]
    assert set(make_ranks(make_rows(runs)).values()) == {(1, 2)}
    assert row(show(*runs), "granet")[1:3] == ["93.00 ± 0.20 (n=3, 1 diverged)", "1–2"]
    assert accuracies(make_rows([*runs_of("granet", 90.0), diverged])[0].cells[0.9]) == {0: 90.0}


def test_two_seeds_rank_nothing_however_far_apart() -> None:
    # means 10 apart, sd 0.07 each: t = 141 with two degrees of freedom, p = 0.00005
    runs = runs_of("granet", 90.0, 90.1) + runs_of("set", 80.0, 80.1)
    assert set(make_ranks(make_rows(runs)).values()) == {(1, 2)}


def test_the_correction_is_over_all_sparsities_of_a_section() -> None:
    # means 0.7 apart, sd 0.2 each: t = 0.7 / (0.2 root 2 / root 3) = 4.29 with 4 degrees of freedom, p = 0.0128
    one = runs_of("granet", 90.7, 90.9, 91.1) + runs_of("set", 90.0, 90.2, 90.4)
    assert sorted(make_ranks(make_rows(one)).values()) == [(1, 1), (2, 2)]
    # with five more sparsities at which nothing differs it is one of six comparisons: 6 x 0.0128 = 0.077
    others = [
        run
        for sparsity in (0.5, 0.6, 0.7, 0.8, 0.98)
        for name in ("granet", "set")
        for run in runs_of(name, 90.0, 91.0 + (name == "set"), 92.0 - (name == "set"), sparsity=sparsity)
    ]
    assert set(make_ranks(make_rows(one + others)).values()) == {(1, 2)}


# Gains


def gains(*runs: dict[str, Any]) -> list[dict[str, str]]:
    lines = gains_table(make_rows(list(runs)))
    cells = [[cell.strip() for cell in text[2:-2].split(" | ")] for text in lines]
    return [dict(zip(cells[0], values, strict=True)) for values in cells[2:]]


def test_a_gain_is_paired_with_the_control_made_from_that_very_run() -> None:
    # differences 1, 2, 3: mean 2, sd 1, half width 4.3027 / root 3 = 2.484
    granet = runs_of("granet", 91.0, 93.0, 95.0)
    random_masks = control_of(granet, 90.0, 91.0, 92.0)
    (found,) = gains(*random_masks, *granet)
    assert found["less random masks of its own layer densities"] == "+2.00 [−0.48, +4.48]"
    assert (found["method"], found["accuracy, %"]) == ("granet", "93.00 ± 2.00 (n=3)")


def test_controls_of_another_run_or_kind_are_not_taken() -> None:
    granet, rigl = runs_of("granet", 91.0, 93.0), runs_of("rigl", 80.0, 81.0)
    shuffled = control_of(rigl, 70.0, 72.0, kind="shuffled masks")
    found = gains(*granet, *rigl, *shuffled)
    assert [entry["method"] for entry in found] == ["rigl"]
    assert list(found[0]) == ["method", "sparsity", "accuracy, %", "less its own masks, shuffled in each layer"]


def test_dense_and_the_narrower_network_are_controls_of_every_row() -> None:
    narrow = {"weights": {"prunable": 100, "dense_prunable": 1000}}
    method = {"budget": "outcome", "group": "control"}
    runs = runs_of("granet", 91.0) + runs_of("dense", 92.5) + runs_of("small_dense", 90.0, method=method, **narrow)
    found = {entry["method"]: entry for entry in gains(*runs)}
    assert found["granet"]["less dense"] == "−1.50"
    assert found["granet"]["less small_dense"] == "+1.00"
    assert found["small_dense"]["less dense"] == "−2.50" and found["small_dense"]["less small_dense"] == "·"


def test_a_control_made_from_other_masks_of_a_run_of_that_name_is_not_taken() -> None:
    granet = runs_of("granet", 91.0, 93.0, 95.0)
    repeated = [{**run, "masks_sha256": "ee" * 32} for run in granet]  # the same cell run again, to other masks
    assert gains(*granet, *control_of(repeated, 10.0, 10.1, 10.2)) == []


def test_a_method_of_another_group_with_a_donor_is_a_row_like_others() -> None:
    granet = runs_of("granet", 91.0, 93.0, 95.0)
    ticket = control_of(granet, 96.0, 97.0, 98.0, kind="masks")
    for run in ticket:
        run["method"] = {**run["method"], "group": "sparse-to-sparse"}
    rows = make_rows([*granet, *ticket])
    assert [found.made_from for found in rows] == ["", ""]
    assert gains_table(rows) == [] and len(make_ranks(rows)) == 2


@pytest.mark.parametrize("which", ["row", "control"])
def test_a_gain_beside_a_diverged_run_is_never_bold(which: str) -> None:
    granet = runs_of("granet", 91.0, 93.05, 94.95, 96.0)
    control = control_of(granet, 90.0, 92.0, 94.0, 95.0)
    last = (granet if which == "row" else control)[-1]
    last.update(status="diverged", accuracy_pct=dict.fromkeys(last["accuracy_pct"]))
    (found,) = gains(*granet, *control)
    assert found["less random masks of its own layer densities"].startswith("+1.00 [")


def test_bold_gains_survive_the_correction_over_the_table() -> None:
    # sd 0.05 at n = 3: t = 1 / (0.05 / root 3) = 34.6, p = 0.0008
    granet = runs_of("granet", 91.0, 93.05, 94.95)
    (found,) = gains(*granet, *control_of(granet, 90.0, 92.0, 94.0))
    assert found["less random masks of its own layer densities"].startswith("**+1.00 [")


def test_the_order_of_runs_does_not_matter() -> None:
    granet = runs_of("granet", 91.0, 93.0, 95.0)
    runs = [*granet, *runs_of("set", 90.0, 91.0, 92.0), *control_of(granet, 90.0, 91.0, 92.0), *runs_of("dense", 96.0)]
    expected = show(*runs)
    names = [run["file"] for run in runs]
    for seed in range(5):
        order = random.Random(seed).sample(range(len(runs)), len(runs))
        shuffled = make_rows([runs[place] for place in order])
        assert gains_table(shuffled) == gains_table(make_rows(runs))
        assert make_ranks(shuffled) == make_ranks(make_rows(runs))
    assert len(names) == len(set(names)) and "Gains over controls" in expected


# What went unseen


def test_the_smallest_difference_the_seeds_could_find_is_told() -> None:
    runs = runs_of("granet", 90.0, 92.0, 94.0) + runs_of("set", 90.0, 91.0, 92.0)
    found = blind_spots(make_rows(runs))
    # spreads 2 and 1: error sqrt(5 / 3)
    assert f"{stats.welch_shift(4, 1, 3, 3, 0.05) * (5 / 3) ** 0.5:.1f} points at 90 %" in found and found in show(
        *runs
    )


@pytest.mark.parametrize("runs", [runs_of("granet", 90.0, 91.0), runs_of("granet", 90.0) + runs_of("set", 91.0)])
def test_nothing_is_told_where_nothing_can_be_compared(runs: list[dict[str, Any]]) -> None:
    assert blind_spots(make_rows(runs)) == ""


def test_of_two_versions_of_a_control_the_one_run_last_counts() -> None:
    granet = runs_of("granet", 91.0, 93.0, 95.0)
    old, new = control_of(granet, 80.0, 80.0, 80.0), control_of(granet, 90.0, 91.0, 92.0)
    for run in old:
        run.update(run=f"old.{run['run']}", file=f"old{run['file']}", finished="2025-01-31T12:00:30+00:00")
        run["method"] = {**run["method"], "sha256": "00" * 32}
    (found,) = gains(*granet, *old, *new)
    assert found["less random masks of its own layer densities"] == "+2.00 [−0.48, +4.48]"
    other = runs_of("set", 85.0, 85.0, 85.0)  # whose control was never made again
    ages = control_of(other, 80.0, 80.0, 80.0)
    for run in ages:
        run.update(finished="2025-01-31T12:00:30+00:00")
        run["method"] = {**run["method"], "sha256": "00" * 32}
    both = gains(*granet, *new, *other, *ages)
    assert [gain["less random masks of its own layer densities"] for gain in both] == [
        "+2.00 [−0.48, +4.48]",
        "**+5.00 [+4.99, +5.01]**",
    ]
