"""Promises of pruning plasticity: numbers worked by hand, verdicts that seeds carry, one record of each run."""

from __future__ import annotations

import io
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import benchmark.grids.sweep
import benchmark.runs.run
import benchmark.studies.study
from benchmark.base.errors import UserError
from benchmark.grids.states import holding
from benchmark.runs.branch import make_branch
from benchmark.runs.branching import Stores, make_options
from benchmark.studies.plasticity import RATES, Study, make_study
from benchmark.studies.study import print_study, run_study
from leaderboard import read_records, write_record
from leaderboard.board.build import build_all, find_stale
from leaderboard.drawing.draw import render
from leaderboard.plasticity.findings import (
    GAP,
    NOT_ENOUGH,
    NOT_SUPPORTED,
    PLASTICITY,
    SUPPORTED,
    Pruning,
    by_share,
    find_findings,
    is_pruning,
    make_studies,
)
from leaderboard.plasticity.markdown import list_pruning_pictures, render_plasticity, show_cell
from tests.harness.benches import ask
from tests.harness.prunings import as_the_paper, make_grid, make_pruned
from tests.harness.record_factory import make_record


def test_plasticity_and_gap_are_the_differences_worked_by_hand():
    runs = [
        make_pruned(-2.5, seed=0),  # 77.5 after three more epochs, 80 before
        make_pruned(-1.5, seed=1),
        make_pruned(-4.0, seed=0, kind=GAP),  # 86 at the end, 90 without pruning
        make_pruned(None, seed=2),
    ]
    (study,) = make_studies(runs)
    cell = Pruning(0.5, 0.5, False, 4)
    assert study.values == {PLASTICITY: {cell: {0: -2.5, 1: -1.5, 2: None}}, GAP: {cell: {0: -4.0}}}
    assert (study.more, study.drops, study.rates, study.grain, study.runs) == (3, (8, 12), {4: 0.1}, 2.5, 4)
    text = render_plasticity(runs, [])
    assert "| sparsity 50 % | no | 50 % pruned | −2.00 ± 0.71 (2, 1 diverged) |" in text
    assert "| sparsity 50 % | no | 50 % pruned | −4.00 (1) |" in text
    assert show_cell([-0.001]) == "0.00 (1)" and show_cell([-0.004, 0.002]) == "0.00 ± 0.00 (2)"
    again = {**make_pruned(-9.0, seed=0), "finished": "2025-02-28T12:00:00+00:00"}  # a repeat, which does not count
    longer = make_pruned(-1.0, seed=0)
    longer["branch"] = {**longer["branch"], "last_epoch": 9}
    first, second = make_studies([*runs, again, longer])
    assert first == study and (second.more, second.runs) == (5, 1)
    assert second.values[GAP] == {}, "what is measured at the page's end is no other thing for another length"
    pictures = list_pruning_pictures([study])
    lines = [(picture.kind, picture.numbers[0]) for picture in pictures.values()]
    assert [(kind, line.epochs, line.values, line.spreads) for kind, line in lines] == [
        ("plasticity", [4.0], [-2.0], [pytest.approx(0.5**0.5)]),
        ("gap", [4.0], [-4.0], [0.0]),
    ]


def test_findings_that_hold_are_supported_with_the_effects_worked_by_hand():
    (study,) = make_studies(make_grid(as_the_paper))
    found = {finding.claim: finding for finding in find_findings(study)}
    # by seed: 3 + 0.2 seed, 4 and 2 points: means 3.2, 4 and 2 over seeds 0, 1, 2
    means = {name: round(finding.difference.mean, 9) for name, finding in found.items()}
    assert means == {"rate": 3.2, "mild": 4.0, "regrow": 2.0}
    assert {name: finding.pairs for name, finding in found.items()} == {"rate": 8, "mild": 12, "regrow": 12}
    # the noise of an image of 2.5 points is sqrt(2.5² / 6) = 1.02: t = 4 / (1.02 / sqrt 3) = 6.8, p = 0.021
    assert found["mild"].difference.p == pytest.approx(0.0210, abs=2e-4)
    assert found["mild"].adjusted_p == pytest.approx(0.0629, abs=6e-4) and found["mild"].verdict == NOT_SUPPORTED
    for run in (fine := make_grid(as_the_paper)):
        run["data"] = {**run["data"], "test": 4000}
    assert [finding.verdict for finding in find_findings(make_studies(fine)[0])] == [SUPPORTED] * 3


def test_effects_are_shown_by_the_share_pruned_and_bold_only_where_they_are_sure():
    """Regeneration that helps where 98 % are pruned and harms where 20 % are: the mean over both would hide it."""

    def points(seed: int, cell: Pruning) -> float:
        return (6.0 if cell.rate == 0.98 else -1.0) * cell.regrow + 0.1 * seed * cell.regrow

    runs = fine_grid(points)
    (study,) = make_studies(runs)
    effects = by_share(study, PLASTICITY, "regrow")
    assert {share: round(found.mean, 9) for share, found in effects.items()} == {0.2: -0.9, 0.98: 6.1}
    assert by_share(study, PLASTICITY, "mild") == {}
    lines = render_plasticity(runs, []).splitlines()
    row = [text for text in lines if text.startswith("| regeneration helps | plasticity |")][-1]
    cells = [text.strip() for text in row.split("|")[3:5]]
    assert [text.split(" [")[0] for text in cells] == ["**−0.90", "**+6.10"]
    (finding,) = [found for found in find_findings(study) if found.claim == "regrow"]
    assert finding.difference.mean == pytest.approx((6.1 - 0.9) / 2)


def fine_grid(points: Any, **more: Any) -> list[dict[str, Any]]:
    """Return a grid whose accuracies move in steps of a fortieth of a point."""
    return [{**run, "data": {**run["data"], "test": 4000}} for run in make_grid(points, **more)]


def test_findings_that_do_not_hold_are_not_supported():
    (study,) = make_studies(fine_grid(lambda seed, cell: -as_the_paper(seed, cell)))
    found = find_findings(study)
    assert [finding.verdict for finding in found] == [NOT_SUPPORTED] * 3
    assert all("the other way" in finding.reason for finding in found)
    noise = random.Random(7)
    (study,) = make_studies(fine_grid(lambda seed, cell: noise.gauss(0, 3)))
    assert [finding.verdict for finding in find_findings(study)] == [NOT_SUPPORTED] * 3


def test_two_seeds_one_side_and_missing_cells_are_not_enough():
    (study,) = make_studies(fine_grid(as_the_paper, seeds=(0, 1)))
    assert {(f.verdict, f.reason) for f in find_findings(study)} == {(NOT_ENOUGH, "2 complete seeds, 3 are needed")}
    one_side = [run for run in fine_grid(as_the_paper) if run["branch"]["epoch"] == 4]
    found = {finding.claim: finding for finding in find_findings(make_studies(one_side)[0])}
    assert found["rate"].verdict == NOT_ENOUGH and "one side" in found["rate"].reason
    assert found["mild"].verdict == SUPPORTED
    lacking = [r for r in fine_grid(as_the_paper) if (r["seed"], r["branch"]["epoch"]) != (2, 14)]
    found = {finding.claim: finding for finding in find_findings(make_studies(lacking)[0])}
    assert {f.verdict for f in found.values()} == {NOT_ENOUGH}
    assert found["mild"].reason == "2 complete seeds, 3 are needed; seed 2 lacks branches that others have"


def test_a_cell_of_which_a_branch_diverged_counts_for_no_seed():
    def points(seed: int, cell: Pruning) -> float | None:
        return None if (seed, cell) == (1, Pruning(0.5, 0.98, False, 4)) else as_the_paper(seed, cell)

    (study,) = make_studies(fine_grid(points))
    found = {finding.claim: finding for finding in find_findings(study)}
    assert {name: finding.pairs for name, finding in found.items()} == {"rate": 7, "mild": 11, "regrow": 11}
    assert {f.verdict for f in found.values()} == {SUPPORTED}
    assert found["mild"].reason == "1 cell left out, of which a branch diverged"


def test_only_what_was_pruned_once_from_the_papers_networks_is_shown():
    run = make_pruned(1.0)
    assert is_pruning(run)
    assert not is_pruning({key: value for key, value in run.items() if key != "branch"})
    for changed in ({"parent_label": "granet"}, {"parent_label": "static"}):
        assert not is_pruning({**run, "branch": {**run["branch"], **changed}})
    uniform = {**run["page"], "settings": {**run["page"]["settings"], "distribution": "uniform"}}
    assert is_pruning({**run, "page": uniform, "branch": {**run["branch"], "parent_label": "static"}})
    for settings in ({"rate": 0.0}, {"rate": "half"}, {"regrow": 1}, {"scope": None}):
        method = {**run["method"], "settings": {**run["method"]["settings"], **settings}}
        assert not is_pruning({**run, "method": method})
    assert render_plasticity([make_record()], []) == ""


def test_page_and_pictures_are_the_same_in_any_order_and_verified(tmp_path):
    runs = [*make_grid(as_the_paper), *make_grid(as_the_paper, kind=GAP)]
    text = render_plasticity(runs, [])
    mixed = list(runs)
    random.Random(3).shuffle(mixed)
    assert render_plasticity(mixed, []) == text and text.count("\n## ") == 1
    one, other = (list_pruning_pictures(make_studies(order)) for order in (runs, mixed))
    assert {stem: picture.digest() for stem, picture in one.items()} == {s: p.digest() for s, p in other.items()}
    assert render(next(iter(one.values())), ["svg"]) == render(next(iter(other.values())), ["svg"])

    page, branches = tmp_path / "LEADERBOARD.md", tmp_path / "branches"
    build_all(tmp_path / "records", page)
    assert not (tmp_path / "PLASTICITY.md").exists() and find_stale(tmp_path / "records", page) == []
    for run in runs[:30] + runs[-4:]:
        write_record({key: value for key, value in run.items() if key != "file"}, branches)
    assert "PLASTICITY.md does not match the records" in find_stale(tmp_path / "records", page)
    build_all(tmp_path / "records", page)
    assert find_stale(tmp_path / "records", page) == []
    drawn = sorted(p.name.split(".", 2)[2] for p in (tmp_path / "pictures").iterdir())
    assert drawn == ["gap.png", "gap.svg", "plasticity.png", "plasticity.svg"]
    shown = (tmp_path / "PLASTICITY.md").read_text()
    (tmp_path / "PLASTICITY.md").write_text(shown.replace("pruned", "kept", 1))
    picture = next((tmp_path / "pictures").glob("*.gap.svg"))
    picture.write_text(picture.read_text().replace("<svg", "<svg ", 1))
    faults = find_stale(tmp_path / "records", page)
    assert len(faults) == 2 and "PLASTICITY.md" in faults[0] and picture.name in faults[1]
    for path in branches.glob("*.json"):
        path.unlink()
    build_all(tmp_path / "records", page)
    assert not (tmp_path / "PLASTICITY.md").exists() and not list((tmp_path / "pictures").iterdir())


def test_text_of_records_is_harmless_on_the_page():
    evil = make_pruned(1.0, page={**make_pruned(1.0)["page"], "title": "<b>|x"})
    text = render_plasticity([evil], [])
    assert "<b>" not in text and "&lt;b&gt;&#124;x" in text


# the runs

ASKED = {"task": "", "scale": "auto", "seeds": "0", "epochs": "", "more": None, "scope": "global", "pattern": "none"}


def study(**changes: Any) -> Study:
    return make_study(**{**ASKED, "arguments": "", **changes})


def test_a_study_is_the_grid_of_the_paper():
    asked = study(task="cifar10_resnet20", seeds="0,1")
    items = asked.grid().items
    assert len(items) == 2 * 4 * (1 + 2 * 7 * len(RATES) * 2) and len(set(map(str, items))) == len(items)
    assert len({item.cell.identity for item in items}) == len(items)
    assert [str(item) for item in items[:4]] == [
        "dense 0, seed 0",
        "static 0.5, seed 0",
        "static 0.9, seed 0",
        "static 0.98, seed 0",
    ]
    branch = items[4].cell
    assert (branch.epoch, branch.end, branch.hold_lr) == (10, 40, True)
    assert {item.cell.sparsity for item in items if item.donor and item.donor.sparsity == 0.9} == {
        0.9,
        0.92,
        0.95,
        0.99,
        0.998,
    }
    assert str(items[-1]).endswith("0.98 pruned and regrown at epoch 150, to the end")
    for item in (items[4], items[-1]):  # built once for all epochs and seeds, and the same as built for its own
        one = [one for one in asked.branches(item.donor) if make_branch(item.cell.parent, **one) == item.cell]
        assert len(one) == 1
    again = make_study(**json.loads(json.dumps(asked.as_dict())))  # as a worker does
    assert [item.cell.identity for item in again.grid().items] == [item.cell.identity for item in items]


def test_the_page_of_a_scale_takes_its_scale_and_prunes_on_both_sides_of_both_drops():
    asked = study(task="cifar10jpeg_resnet20_5k")
    page = asked.parents[0].page
    drops = [share * page.epochs for share in page.lr_drops]
    sides = [sum(drop <= epoch for drop in drops) for epoch in asked.epochs]
    assert (page.epochs, asked.epochs, sides) == (12, (3, 5, 7, 8, 10), [0, 0, 1, 1, 2])
    assert (asked.finals, asked.more) == ((5, 8, 10), 3)
    assert study(scale="photographs").epochs == asked.epochs


def test_a_plan_writes_nothing_even_where_the_sheets_are_behind_the_records(tmp_path):
    (tmp_path / "records").mkdir()
    write_record(make_record(), tmp_path / "records")
    before = sorted(tmp_path.rglob("*"))
    names = {"records": "records", "branches": "branches", "leaderboard": "LEADERBOARD.md", "runs": "runs"}
    places = [f"--{option}={tmp_path / name}" for option, name in names.items()]
    assert ask("plasticity", "--plan", "--seed", "0", *places).exit_code == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scale": "large"}, "SCALE must be auto or one of paper, small, photographs, got 'large'"),
        ({"epochs": "4,17"}, "EPOCHS must be whole numbers of epochs from 1 to 16, the run's end, got '17'"),
        ({"more": 0}, "MORE must be at least 1 epoch, got 0"),
        ({"epochs": ","}, "EPOCHS must name an epoch"),
        ({"arguments": "distribution=erk"}, "distribution cannot be set here"),
        ({"scope": "all"}, "SCOPE must be one of global, layer, got 'all'"),
        ({"pattern": "2:4"}, "PATTERN must be one of none, filters"),
        ({"task": "digits_resnet20,cifar10_vgg19"}, "unknown page|one page"),
        ({"seeds": "x"}, "SEED must be a whole number"),
    ],
)
def test_bad_studies_are_refused(changes, reason):
    with pytest.raises(UserError, match=reason):
        study(**changes)


class Bench:
    """Runs a tiny study in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said, self.shown = folder, [], io.StringIO()
        self.stores = Stores(folder / "records")
        self.options = make_options("cpu", self.stores, folder / "runs", folder / "LEADERBOARD.md", 1e9, "test")
        self.study = study(epochs="1", more=1, arguments="epochs=2 batch_size=400 model=test_resnet")

    def __call__(self) -> int:
        console = Console(file=self.shown, width=200)
        return run_study(self.study, self.folder, self.options, console, self.said.append)

    def records(self) -> list[dict[str, Any]]:
        found, problems = read_records(self.stores.branches, branches=True)
        assert problems == []
        return found


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setattr("benchmark.studies.plasticity.RATES", (0.5,))
    monkeypatch.setattr("benchmark.studies.plasticity.SPARSITIES", "0.5")
    return Bench(tmp_path)


def test_a_study_is_run_whole_drawn_and_not_run_again(bench):
    assert bench() == 0 and bench.said == []
    records = bench.records()
    parents = {record["run"]: record for record in records if "branch" not in record}
    branches = [record for record in records if "branch" in record]
    assert len(parents) == 2 and len(branches) == 2 * 4 and not (bench.folder / "records").exists()
    total = 371_280
    for record in branches:
        branch, parent = record["branch"], parents[record["branch"]["parent"]]
        assert branch["before"]["test_acc_pct"] == parent["history"][0]["test_acc_pct"]
        assert branch["unpruned_acc_pct"] == parent["accuracy_pct"]["last_epoch"]
        dense = branch["parent_sparsity"] == 0
        grown = record["method"]["settings"]["regrow"]
        assert record["weights"]["active"] == total // (1 if dense and grown else 4 if not (dense or grown) else 2)
    (made,) = make_studies(records)
    assert sum(map(len, made.values.values())) == 8
    assert made.rates == {1: pytest.approx(0.001)}  # half and three quarters of two epochs: both at 1
    assert not list((bench.folder / "runs").glob("*.e1.*/weights.safetensors"))  # hundreds of networks are not kept
    assert bench() == 0 and len(bench.records()) == len(records)
    assert "0 made, 10 finished already" in bench.shown.getvalue()
    print_study(bench.study, bench.folder, bench.stores, bench.options, Console(file=bench.shown, width=200))
    assert "branches, plasticity 4 4 0" in " ".join(bench.shown.getvalue().split())


def test_a_damaged_snapshot_is_made_again_and_no_finished_branch_fails(bench):
    assert bench() == 0
    records = bench.records()
    dense = next(record for record in records if record["method"]["name"] == "dense" and "branch" not in record)
    lost = next(record for record in records if record.get("branch", {}).get("parent") == dense["run"])
    snapshot = bench.folder / "runs" / dense["run"] / "snapshots" / "epoch-1"
    whole = snapshot.read_bytes()
    snapshot.write_bytes(whole[:1000])
    (bench.stores.branches / lost["file"]).unlink()
    print_study(bench.study, bench.folder, bench.stores, bench.options, Console(file=bench.shown, width=200))
    assert "runs that are pruned from 2 1 2" in " ".join(bench.shown.getvalue().split())
    assert bench() == 0, bench.said
    assert snapshot.read_bytes() != whole[:1000] and len(bench.records()) == len(records)


def test_a_run_that_fails_or_is_held_by_another_process_costs_no_other(bench, monkeypatch):
    run_cell, calls = benchmark.runs.run.run_cell, []

    def fail_once(cell: Any, *rest: Any) -> Any:
        calls.append(cell)
        if len(calls) == 2:
            raise UserError("the disk is full")
        return run_cell(cell, *rest)

    monkeypatch.setattr(benchmark.studies.study, "run_cell", fail_once)
    monkeypatch.setattr(benchmark.grids.sweep, "run_cell", fail_once)
    every = Study.branches
    monkeypatch.setattr(Study, "branches", lambda self, parent: itertools.islice(every(self, parent), 1))
    held = holding(bench.folder / "runs" / bench.study.parents[0].identity)
    held.__enter__()
    monkeypatch.setattr(benchmark.grids.sweep, "pause", lambda seconds: held.__exit__(None, None, None))
    assert bench() == 1  # the other parent's branch; the first parent and its own were made once it was free
    assert [len(calls), len(bench.records())] == [4, 3] and "the disk is full" in str(bench.said[0])
    assert "waiting: another process holds 2 of 4 runs" in bench.shown.getvalue()
    assert bench() == 0 and len(bench.records()) == 4
