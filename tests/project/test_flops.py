"""The recount of the printed FLOPs: golden shares, verdicts that follow from them, a sheet made of these alone."""

from __future__ import annotations

import copy
import json
import re

import pytest
import timm

from benchmark.networks.costs import count_costs
from benchmark.networks.narrow import narrow_arguments
from benchmark.networks.prunable import find_layers
from benchmark.recount import flops as command
from benchmark.recount.counting import build_backbone, describe_network, narrow_as_rigl, read_row
from benchmark.recount.flops import (
    AGREES,
    DOCS,
    MISSED,
    MIXED,
    NEAREST,
    ROUNDING,
    UP,
    count_printed,
    find_part,
    find_roundings,
    judge,
    judge_all,
    main,
    make_files,
    make_sheet,
    printed_shares,
    read_given,
)
from leaderboard.paper.published import load_tables
from methods.core import count_kept, erk
from tests.harness.small import make_page

GIVEN, TABLES = read_given(), load_tables()
ROWS = {row.label: row for row in find_part(TABLES).rows}
FIGURES = json.loads((DOCS / "flops.json").read_text(encoding="utf-8"))


PAGE = find_part(TABLES).page


@pytest.fixture(scope="module")
def full():
    return build_backbone(PAGE, "dense", 0.0)


# The sheet is what engine, conventions and printed costs give


@pytest.mark.slow
def test_the_committed_sheet_and_figures_are_what_is_worked_out_anew():
    for name, content in make_files().items():
        assert (DOCS / name).read_text(encoding="utf-8") == content, f"docs/{name}: run make flops"


@pytest.mark.parametrize("name", ["flops.md", "flops.json"])
def test_an_edit_makes_the_check_fail_and_says_what_mends_it(name, tmp_path, monkeypatch, capsys):
    made = {file: (DOCS / file).read_text(encoding="utf-8") for file in ("flops.md", "flops.json")}
    monkeypatch.setattr(command, "DOCS", tmp_path)
    monkeypatch.setattr(command, "make_files", lambda: made)
    assert main([]) == 0 and main(["--check"]) == 0
    text = (tmp_path / name).read_text(encoding="utf-8")
    (tmp_path / name).write_text(text.replace("0.2241", "0.2251", 1), encoding="utf-8")
    assert main(["--check"]) == 1
    said = capsys.readouterr().err
    assert name in said and "run make flops" in said


# Golden shares


def share_of(row: str, cost: str, layers: str, counter: str, rule: str = "") -> list[float]:
    (reading,) = (
        reading
        for reading in FIGURES["readings"][row][cost]
        if (reading["layers"], reading["counter"]) == (layers, counter) and rule in ("", reading.get("rule"))
    )
    return [reading["shares"]["80"], reading["shares"]["90"]]


@pytest.mark.parametrize(
    ("row", "cost", "layers", "rule", "expected"),
    [
        ("dense", "training", "dense", "", (1.0, 1.0)),
        ("static, uniform", "inference", "first_dense", "", (0.2241, 0.1272)),
        ("static, uniform", "training", "none_dense", "", (0.2011, 0.1012)),
        ("small-dense", "inference", "rigls_width", "", (0.2214, 0.1206)),
        ("static, ERK", "inference", "erk", "", (0.4146, 0.2429)),
        ("DSR", "inference", "dsr", "", (0.4039, 0.2967)),
        ("SNFS, ERK", "training", "erk", "snfs", (0.6097, 0.4952)),
        ("RigL, ERK", "training", "erk", "rigl", (0.4165, 0.2454)),
        ("GMP", "training", "first_dense", "gmp_points", (0.5596, 0.5045)),
    ],
)
def test_golden_shares_by_rigls_own_counter(row, cost, layers, rule, expected):
    assert share_of(row, cost, layers, "operations", rule) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "cost", "layers", "rule", "expected"),
    [
        ("static, uniform", "inference", "none_dense", "", (0.2, 0.1)),
        ("GMP", "training", "first_dense", "gmp_steps", (0.5695, 0.5156)),
        ("STR", "inference", "str", "", (0.1875, 0.0838)),
    ],
)
def test_golden_shares_in_multiply_adds(row, cost, layers, rule, expected):
    assert share_of(row, cost, layers, "macs", rule) == pytest.approx(expected, abs=1e-4)


def test_granets_first_steps_cost_what_its_authors_counter_says(full):
    """Their first 4,000 steps from sparsity 0.5, dense gradients not charged: 5,844,558,336 of 8,178,368,512 FLOPs.

    Their masks are drawn weight by weight, ours have exact counts, so the shares agree to three digits.
    """
    counts = erk(full.shapes, count_kept(0.5, full.weights))
    assert 2 * full.costs.dense == 8_178_368_512
    share = full.costs.forward(counts) / full.costs.dense
    assert share == pytest.approx(0.71426, abs=5e-6)
    assert share == pytest.approx(5_844_558_336 / 8_178_368_512, abs=5e-4)


def test_rigls_narrow_network_is_timms_but_for_the_stem(full):
    assert narrow_as_rigl(full, 1.0) == full
    model = timm.create_model("resnet50", **narrow_arguments("resnet50", {}, 0.5))
    layers = find_layers(model, make_page())
    timms, rigls = describe_network(model, layers, count_costs(model, layers, (3, 224, 224))), narrow_as_rigl(full, 0.5)
    differing = {name for name in full.shapes if timms.shapes[name] != rigls.shapes[name]}
    assert differing == {"conv1.weight", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight"}
    assert all(timms.costs.layers[name] == rigls.costs.layers[name] for name in full.shapes if name not in differing)


# Verdicts follow from shares


def test_a_share_gives_what_is_printed_to_the_nearest_or_rounded_up():
    assert find_roundings(0.2241, 0.23) == {UP}
    assert find_roundings(0.2267, 0.23) == {NEAREST, UP}
    assert find_roundings(0.1012, 0.10) == {NEAREST}
    assert find_roundings(0.1272, 0.10) == find_roundings(0.2011, 0.23) == find_roundings(0.22, 0.23) == frozenset()
    assert find_roundings(0.225, 0.22) == {NEAREST} and find_roundings(0.225, 0.23) == {NEAREST, UP}
    assert find_roundings(0.23, 0.23) == {NEAREST, UP}


@pytest.mark.parametrize(
    ("shares", "kind", "rounding", "best"),
    [
        ([(0.231, 0.101), (0.226, 0.096)], AGREES, NEAREST, [0, 1]),
        ([(0.224, 0.094), (0.226, 0.101)], AGREES, NEAREST, [1]),  # rounded up is not taken where another is nearest
        ([(0.224, 0.094), (0.300, 0.101)], AGREES, UP, [0]),
        ([(0.224, 0.101)], ROUNDING, "", [0]),
        ([(0.224, 0.127), (0.201, 0.101)], MIXED, "", []),
        ([(0.224, 0.127), (0.201, 0.120)], MISSED, "", []),
    ],
)
def test_a_verdict_is_worked_by_hand(shares, kind, rounding, best):
    readings = [{"number": number, "shares": {"80": s, "90": t}} for number, (s, t) in enumerate(shares)]
    verdict = judge(readings, {"80": 0.23, "90": 0.10})
    assert (verdict.kind, verdict.rounding, [reading["number"] for reading in verdict.best]) == (kind, rounding, best)


def verdicts(given, full, labels) -> dict[tuple[str, str], str]:
    """The verdict over each printed cost of some rows, their readings worked out anew."""
    rows = tuple(ROWS[label] for label in labels)
    readings = {row.label: read_row(row, full, PAGE, given) for row in rows}
    return {
        (label, cost): entry.verdict.kind
        for entry in judge_all(rows, readings)
        for label, costs in entry.rows.items()
        for cost in costs
    }


@pytest.mark.parametrize(
    ("path", "wrong", "row", "cost", "right", "then"),
    [
        # the first convolution counted as sparse: nothing gives 0.23 any more
        ("layers.first_dense.formula", "uniform", "static, uniform", "inference", MIXED, MISSED),
        # the first convolution kept dense where nothing is: nothing gives 0.10
        ("layers.none_dense.formula", "first dense", "SNIP", "training", MIXED, MISSED),
        ("layers.erk.formula", "uniform", "RigL, ERK", "training", AGREES, MISSED),
        ("training.snfs.formula", "sparse", "SNFS, ERK", "training", AGREES, MISSED),
        ("training.rigl.every", 10, "RigL, ERK", "training", AGREES, MISSED),
        ("training.gmp_points.end", 30_000, "GMP", "training", AGREES, AGREES),  # the other reading still gives both
        ("layers.dsr.sparsities", {80: [0.8] * 54, 90: [0.9] * 54}, "DSR", "inference", AGREES, MISSED),
    ],
)
def test_a_wrong_convention_changes_the_verdict(path, wrong, row, cost, right, then, full):
    assert verdicts(GIVEN, full, [row])[row, cost] == right
    given = copy.deepcopy(GIVEN)
    *above, last = path.split(".")
    place = given
    for key in above:
        place = place[key]
    assert place[last] != wrong
    place[last] = wrong
    assert verdicts(given, full, [row])[row, cost] == then


def test_printed_shares_are_counted():
    counts = count_printed(judge_all(tuple(ROWS.values()), FIGURES["readings"]))
    printed = [
        len(printed_shares(row, cost))
        for row in ROWS.values()
        for cost in ("inference", "training")
        if "reason" not in GIVEN["rows"][row.label]
    ]
    assert sum(counts.values()) == sum(printed) == 46
    assert counts == {NEAREST: 31, UP: 13, MISSED: 2}


# The sheet says what there is, and where it is from


def test_every_printed_share_is_in_the_sheet_with_its_mark():
    sheet = make_sheet(FIGURES, GIVEN, TABLES)
    assert set(GIVEN["rows"]) == set(ROWS)
    for label, row in ROWS.items():
        for cost in ("inference", "training"):
            for column, share in printed_shares(row, cost).items():
                mark = TABLES.marks[row.cells[int(column)].status]
                shown = f"{share:.2f} {mark}".rstrip()
                lines = [line for line in sheet.splitlines() if label in line and shown in line]
                assert lines or f"{cost} {shown}" in " ".join(sheet.split()), (label, cost, column)
    assert not re.search(r"0\.\d\d(?!\d)(?! [‡†%])(?=[ ;,.|])", sheet.split("## Conventions")[0])
