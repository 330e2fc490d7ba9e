"""Grid files: what they expand to, and every fault named at once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from benchmark.base.errors import UserError
from benchmark.config.cells import plan_cells, split_methods
from benchmark.config.grids import Grid, Source, narrow
from benchmark.config.plugins import method_names
from leaderboard.paper.published import FILE
from tests.harness.benches import read_grid

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

SMALL = """
title: Small
tasks: [digits_resnet20]
sparsities: [0.9, 0.98]
seeds: [0, 1]
rows:
  - {method: dense}
  - {method: granet}
  - {method: granet, args: {start_sparsity: 0.0, epochs: 3}, sparsities: [0.5], seeds: [7]}
  - {method: small_dense, tasks: [cifar10_vgg19]}
controls: [densities]
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Grid:
    path = tmp_path_factory.mktemp("grid") / "small.yaml"
    path.write_text(SMALL)
    return read_grid(path)


@pytest.fixture
def grid_of(tmp_path):
    def read(text: str):
        path = tmp_path / "grid.yaml"
        path.write_text(text)
        return read_grid(path)

    return read


@pytest.mark.parametrize(
    ("name", "dense", "rows", "controls"),
    [
        # rows x sparsities x seeds; the paper's grids are held to its tables
        ("grids/digits", 5, 10 * 2 * 5, 8 * 2 * 5),
        ("grids/digits_masks", 0, 2 * 5, 2 * 2 * 5),  # two controls beside the one row
    ],
)
def test_the_committed_grids_hold_every_row_at_every_sparsity_and_seed(name, dense, rows, controls):
    grid = read_grid(CONFIGS / f"{name}.yaml")
    kinds = Counter(
        "control" if item.is_control else "dense" if item.method == "dense" else "row" for item in grid.items
    )
    assert (kinds["dense"], kinds["row"], kinds["control"]) == (dense, rows, controls)
    assert len({item.cell.identity for item in grid.items}) == len(grid.items)


def test_a_row_overrides_the_lists_and_cells_are_those_that_the_command_line_makes(small):
    """Dense runs once per seed."""
    asked = [
        *plan_cells("dense,granet", "0.9,0.98", "digits_resnet20", "0,1", ""),
        *plan_cells("granet", "0.5", "digits_resnet20", "7", "start_sparsity=0 epochs=3"),
        *plan_cells("small_dense", "0.9,0.98", "cifar10_vgg19", "0,1", ""),
    ]
    assert len(asked) == 2 + 4 + 1 + 4
    cells = [item.cell for item in small.items if not item.is_control]
    assert [cell.identity for cell in cells] == [cell.identity for cell in asked]
    assert small.title == "Small"


def test_every_kind_of_control_stands_beside_every_row_that_is_neither_dense_nor_a_control(grid_of):
    grid = grid_of(SMALL.replace("[densities]", "[shuffled, masks, densities]"))
    donor = "granet (start_sparsity=0.0)"
    found = [
        (item.cell.label, item.cell.method.donor().kind, item.cell.seed, item.cell.page_changes)
        for item in grid.items
        if item.donor is not None and item.donor.label == donor
    ]
    assert found == [
        (f"static (masks={donor}, shuffle=filters)", "shuffled filters", 7, {"epochs": 3}),
        (f"static (masks={donor})", "masks", 7, {"epochs": 3}),
        (f"static (densities={donor})", "densities", 7, {"epochs": 3}),
    ]
    controls = [item for item in grid.items if item.is_control]
    assert len(controls) == 3 * 5
    for item in controls:
        assert item.method == "granet" and item.cell.method.donor().run == item.donor.label
        same = ("page_name", "variant", "sparsity", "seed")
        assert [getattr(item.cell, key) for key in same] == [getattr(item.donor, key) for key in same]


def test_a_cell_of_two_rows_is_in_the_grid_once(grid_of, small):
    text = SMALL.replace(
        "  - {method: granet}\n", "  - {method: granet}\n  - {method: granet, args: {prune_rate: 0.5}}\n"
    )
    assert len(grid_of(text).items) == len(small.items)


FAULTY = """
titel: x
tasks: [digits_resnet20, cifar10_vg19]
sparsities: [90, 0.98]
seeds: [0, -1, 1.5]
rows:
  - {method: granett}
  - {method: granet, args: {prune_rat: 3, epochz: 2}}
  - {method: granet, args: {prune_rate: 3, epochs: 0, momentum: 7}}
  - {method: gmp, seed: [1], sparsities: []}
  - snip
  - {method: granet, args: {start_sparsity: 0.99}}
  - {method: set, args: [epochs=2]}
  - {method: nowhere/mine.py, tasks: digits_resnet20}
controls: [density]
"""


def test_a_grid_on_two_folders_of_one_page_is_refused(grid_of):
    rows = "".join(
        f"  - {{method: {name}, args: {{data_dir: {folder}}}}}\n" for name, folder in (("set", "x"), ("dense", "y"))
    )
    with pytest.raises(UserError, match=r"must have one data_dir in a grid, got 'x' \(row 1\), 'y' \(row 2\)"):
        grid_of(f"tasks: [folder_resnet20]\nsparsities: [0.9]\nseeds: [0]\nrows:\n{rows}")


def test_every_fault_of_a_file_is_listed_at_once_with_row_and_rule(grid_of, tmp_path):
    with pytest.raises(UserError) as caught:
        grid_of(FAULTY)
    head, *lines = str(caught.value).splitlines()
    expected = [
        ("top", "'titel'", "did you mean 'title'"),
        ("top", "'cifar10_vg19'", "did you mean 'cifar10_vgg19'"),
        ("top", "got 90", "did you mean 0.9?"),
        ("top", "SEED", "'-1'"),
        ("top", "SEED", "'1.5'"),
        ("top", "'density'", "did you mean 'densities'"),
        ("row 1 (granett)", "unknown method", "did you mean 'granet'"),
        ("row 2 (granet)", "'prune_rat'", "did you mean 'prune_rate'"),
        ("row 2 (granet)", "'epochz'", "did you mean 'epochs'"),
        ("row 3 (granet)", "momentum must be", "7"),
        ("row 3 (granet)", "epochs must be", "0"),
        ("row 3 (granet)", "prune_rate must be", "3"),
        ("row 4 (gmp)", "'seed'", "did you mean 'seeds'"),
        ("row 4 (gmp)", "sparsities must be a list", "[]"),
        ("row 5", "must be a map with a method", "'snip'"),
        ("row 6 (granet)", "start_sparsity must be", "0.99"),
        ("row 7 (set)", "args must be a map", "epochs=2"),
        ("row 8 (nowhere/mine.py)", "tasks must be a list", "digits_resnet20"),
        ("row 8 (nowhere/mine.py)", "does not exist", "mine.py"),
    ]
    assert str(len(expected)) in head
    assert len(lines) == len(expected)
    for line, (place, *parts) in zip(lines, expected, strict=True):
        assert line.strip().startswith(f"{tmp_path / 'grid.yaml'}, {place}: ")
        assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: []", "rows must be a list"),
        ("rows: [{method: granet}]", "no seeds"),
        ("tasks: [digits_resnet20]\nseeds: [0]\nrows: [{method: snip}]", "no sparsities"),
        ("- 1", "must be a map"),
        ("a: [", "not readable as YAML"),
        ("tasks: [digits_resnet20]\ntasks: [digits_resnet20]\nrows: [{method: dense}]", "not readable as YAML"),
    ],
)
def test_a_file_that_says_too_little_or_is_no_grid_is_refused(grid_of, text, said):
    with pytest.raises(UserError, match=said):
        grid_of(text)


def test_an_absent_file_is_refused_with_those_that_are_there(tmp_path):
    with pytest.raises(UserError, match=r"configs/paper/table2\.yaml"):
        read_grid(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        ({}, 16),
        ({"METHOD": "granet"}, 5 + 5),  # a control goes with its row
        ({"METHOD": "dense,small_dense"}, 2 + 4),
        ({"METHOD": "all"}, 16),
        ({"METHOD": "table2,dense"}, 2 + 10),
        ({"SPARSITY": "0.98"}, 2 + 2 + 2 + 2),  # dense has no sparsity and stays
        ({"SPARSITY": "0.50", "METHOD": "granet", "TASK": ""}, 2),
        ({"TASK": "cifar10_vgg19"}, 4),
        ({"SEED": "1"}, 1 + 4 + 2),
    ],
)
def test_a_grid_is_narrowed_to_what_is_asked(small, wanted, number):
    assert len(small.items) == 2 + 4 + 1 + 4 + 5
    assert len(narrow(small, wanted).items) == number


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"METHOD": "table2", "TASK": "cifar10_vgg19"}, "nothing in"),
        ({"METHOD": "rigl"}, "METHOD: rigl is not in .*it has dense, granet, small_dense"),
        ({"SPARSITY": "0.95"}, "SPARSITY: 0.95 is not in .*it has 0.9, 0.98, 0.5"),
        ({"SEED": "x"}, "SEED must be a whole number"),
        ({"METHOD": "small_dense", "SEED": "7"}, "nothing in"),
    ],
)
def test_narrowing_to_what_is_not_there_is_refused(small, wanted, said):
    with pytest.raises(UserError, match=said):
        narrow(small, wanted)


def test_all_methods_and_those_of_the_paper_s_tables_are_asked_for_by_one_name():
    assert split_methods("all") == method_names()
    content = yaml.safe_load(FILE.read_text())
    ours = [match["method"] for part in content["table3"] for row in part["rows"] for match in row["ours"]]
    assert split_methods("rigl,table3,gmp") == list(dict.fromkeys(["rigl", *ours]))
    lists = {"METHOD": "table2", "SPARSITY": "0.9", "TASK": "digits_resnet20", "SEED": "0"}
    assert [item.method for item in Source.ask(None, lists, "", False).grid().items] == split_methods("table2")


def test_lists_give_the_cells_of_the_command_line_and_survive_the_way_to_a_worker():
    lists = {"METHOD": "dense,set", "SPARSITY": "", "TASK": "", "SEED": "0,1"}
    source = Source.ask(None, lists, "epochs=1 update_every=8", False)
    cells = plan_cells("dense,set", "0.9", "digits_resnet20", "0,1", "epochs=1 update_every=8")
    for asked in (source, Source(**json.loads(json.dumps(source.as_dict())))):
        assert [item.cell.identity for item in asked.grid().items] == [cell.identity for cell in cells]


def test_values_of_a_grid_are_read_by_the_type_of_their_setting(tmp_path, monkeypatch):
    """Also on the way to a worker, and in a file of the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    text = "tasks: [digits_resnet20]\nseeds: [0]\nrows:\n- method: dense\n"
    text += "  args: {data_dir: 010, model_args: {a: 1.5, b: 010, c: '2'}}\n"
    (tmp_path / "g.yaml").write_text(text)
    source = Source.ask(Path("~/g.yaml"), {}, "", False)
    again = Source(**json.loads(json.dumps(source.as_dict())))
    for grid in (source.grid(), again.grid()):
        assert grid.items[0].cell.page_changes == {"data_dir": "010", "model_args": {"a": 1.5, "b": "010", "c": "2"}}
    (tmp_path / "g.yaml").write_text(text.replace("data_dir: 010", "epochs: 010"))
    with pytest.raises(UserError, match=r"row 1 \(dense\): ARGS: setting 'epochs' must be .* did you mean 10\?"):
        read_grid(tmp_path / "g.yaml")
