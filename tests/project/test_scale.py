"""The sheet of costs on many GPUs: made of the runs that the grids ask for, and right where worked by hand."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest

from benchmark import ROOT
from benchmark.config.cells import plan_cells
from benchmark.config.grids import read_grid, read_yaml
from benchmark.config.plugins import find_method
from benchmark.data.standin import stand_in
from benchmark.grids.predict import Networks, predict
from benchmark.recount import plans
from benchmark.recount import scale as command
from benchmark.recount.plans import NOWHERE, ask, grid_file, trained_images, work_out
from benchmark.recount.scale import (
    FAST,
    SLOW,
    Scene,
    between,
    main,
    make_sheet,
    read_figures,
    read_given,
    share,
    show_bytes,
    spread_all,
)
from benchmark.recount.sheets import DOCS

FIGURES, GIVEN = read_figures(), read_given()


def test_the_committed_sheet_is_made_from_figures_of_the_runs_that_the_grids_ask_for(capsys):
    """All of the check but the figures themselves, which take minutes; two tests below hold those."""
    assert main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "page", "row", "method", "sparsity", "arguments"),
    [
        ("table2", "cifar100_vgg19", "gmp (prune_end=0.6875) at 0.95", "gmp", "0.95", "prune_end=0.6875"),
        # a control of a run with ERK's densities costs what random masks of these do
        ("table2", "cifar10_resnet50", "static (densities=rigl_itop) at 0.9", "static", "0.9", ""),
        ("table3", "imagenet_resnet50", "dense at 0", "dense", "0", ""),
    ],
)
def test_a_figure_worked_out_anew_is_the_committed_one(table, page, row, method, sparsity, arguments):
    (cell,) = plan_cells(method, sparsity, page, "0", arguments)
    data = stand_in(cell.page, NOWHERE)
    found = predict(cell, data, Networks().get(cell, data)).train
    of_page = FIGURES["tables"][table][page]
    assert found == of_page["rows"][row]
    if method == "dense":
        assert found == of_page["dense_train_macs"]
        assert found == 3 * of_page["dense_macs"] * cell.page.epochs * trained_images(cell, data)


@pytest.mark.slow
def test_every_figure_is_what_is_worked_out_anew():
    found, kept = work_out(), copy.deepcopy(FIGURES)
    records = found.pop("records"), kept.pop("records")
    assert records[0] == pytest.approx(records[1], rel=0.2)  # now there may be more of them
    assert found == kept


def test_the_runs_of_a_page_are_those_of_its_rows():
    for table, pages in FIGURES["tables"].items():
        grid = read_grid(grid_file(table)) if table == "table3" else None  # the other takes seconds to read
        for name, page in pages.items():
            seeds = 3
            assert page["runs"] == seeds * len(page["rows"])
            controls = [row for row in page["rows"] if row.startswith("static (densities=")]
            assert page["controls"] == seeds * len(controls)
            assert page["train_macs"] == seeds * sum(page["rows"].values())
            if grid is not None:
                assert page["runs"] == sum(item.cell.page_name == name for item in grid.items)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    for name in ("scale.md", "scale.json", "scale.yaml"):
        (tmp_path / name).write_text((DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(command, "DOCS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("scale.md", "660", "661", "scale.md is not what"),
        ("scale.yaml", "start_s: [60, 15]", "start_s: [60, 16]", "scale.md is not what"),
        ("scale.json", '"runs": 105', '"runs": 106', "scale.md is not what"),
        ("scale.json", '"question": "', '"question": "0', "of other runs than configs/paper/ asks for"),
    ],
)
def test_an_edit_anywhere_makes_the_check_fail_and_says_what_mends_it(name, old, new, message, copied, capsys):
    assert main(["--check"]) == 0
    text = (copied / name).read_text(encoding="utf-8")
    assert old in text
    (copied / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert main(["--check"]) == 1
    said = capsys.readouterr().err
    assert message in said and "run make scale" in said


def test_another_page_method_or_grid_asks_another_question(monkeypatch):
    before = ask()
    assert ask() == before
    changed = {
        "read_yaml": lambda path: {**read_yaml(path), "seeds": [0]},
        "plan_cells": lambda *asked: plan_cells(*asked[:-1], "weight_decay=0.5"),
        "find_method": lambda name: dataclasses.replace(find_method(name), sha256="0"),
        "PROTOCOL": -1,
    }
    for name, other in changed.items():
        with monkeypatch.context() as patch:
            patch.setattr(plans, name, other)
            assert ask() != before, name


def small(runs: int, controls: int, rate: float = 100.0) -> Scene:
    """Return a page of runs of 1,000 images: 10 s at the slow end and 5 s at the fast one, and 1 s to start."""
    of_page = {"epochs": 2, "images_per_epoch": 500, "runs": runs, "controls": controls, "model": "m"}
    assumed = {"images_per_s": [rate, 2 * rate], "at_once": 2, "gain": [1.0, 1.5]}
    return Scene("page", of_page, assumed, {"start_s": [1, 1]})


def test_times_of_a_page_are_worked_by_hand():
    scene = small(runs=5, controls=2)
    assert (scene.run_s(SLOW), scene.run_s(FAST)) == (11, 6)
    jobs = scene.jobs(SLOW)
    assert len(jobs) == 5 and sum(bool(job.after) for job in jobs) == 2
    assert spread_all([scene], SLOW, 100).makespan_s == 22  # a control after its donor, on however many
    assert spread_all([scene], FAST, 1).makespan_s == 30
    # Two on a device: each takes 2 / 1.5 times as long, so five runs on one device need three rounds of 8 s.
    assert share([scene], FAST, 1) == pytest.approx(3 * 6 * 2 / 1.5)
    assert share([scene], SLOW, 1) == pytest.approx(3 * 22)


def test_numbers_are_shown_with_the_digits_that_count():
    assert between([0.0789, 0.1801]) == "0.079–0.18" and between([1.62, 3.7]) == "1.6–3.7"
    assert between([758.3, 1264]) == "758–1,264" and between([0.52, 0.52]) == "0.52"
    assert show_bytes(512) == "512 B" and show_bytes(3 * 2**20) == "3 MiB" and show_bytes(2000 * 2**30) == "2,000 GiB"


def test_every_assumption_is_in_the_sheet_with_its_source_and_marked():
    sheet = " ".join(make_sheet(FIGURES, GIVEN).split())
    for backbone in GIVEN["backbones"].values():
        slow, fast = backbone["images_per_s"]
        assert f"{backbone['label']}, {slow:,} to {fast:,} images/s (estimate): {backbone['source']}" in sheet
        assert f"times the work of one (estimate): {backbone['gain_source']}" in sheet
        assert backbone.get("loader_source", "") in sheet
    for key in ("start_source", "times_source", "storage_source"):
        assert GIVEN[key] in sheet
    assert GIVEN["device"]["source"] in sheet
    assert set(GIVEN["backbones"]) == {page["model"] for pages in FIGURES["tables"].values() for page in pages.values()}


def test_the_sheet_stays_two_screens_long_and_its_links_lead_somewhere():
    sheet = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert sheet.count("\n") <= 100 and max(map(len, sheet.splitlines())) <= 120
    links = re.findall(r"\]\(([^)#:\s]+)\)", sheet)
    assert links and all((DOCS / link).exists() for link in links)
