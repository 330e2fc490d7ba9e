"""Promises of the paper's page: every verdict by hand, and no record that reads as more than it is."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t, ttest_ind

from benchmark.config.pages import Page, load_page
from benchmark.config.plugins import built_in_names, find_method
from leaderboard.paper.cells import SAME_PAGE, Comparison, compare_all, departures
from leaderboard.paper.markdown import render_paper
from leaderboard.paper.published import Match, PaperRow, PaperTable, Part, Published, Tables, load_tables
from tests.harness.record_factory import make_record, merge

TABLES = load_tables()
PAGE = "cifar10_vgg19"
# Welch of three against three with equal spreads: t(0.975, 4 degrees of freedom) = 2.7764 and the error of the
# difference is 0.08 sqrt(2 / 3) = 0.06532, so the interval is the difference ± 0.1814.


def spread(mean: float, std: float = 0.08) -> tuple[float, float, float]:
    """Return three values of this mean and sample standard deviation."""
    return mean - std, mean, mean + std


@functools.cache
def page_of(name: str) -> Page:
    """Return a page as the engine reads it."""
    return load_page(name)


def settings_of(method: str, on: str) -> dict[str, Any]:
    """Return the settings that the engine gives a method on a page; none for a method that is not the suite's."""
    return dict(find_method(method).defaults(page_of(on))) if method in built_in_names() else {}


def run_on(on: str, name: str, sparsity: float, seed: int, best: float | None, **changes: Any) -> dict[str, Any]:
    """Return a valid record of method `name` on the page `on` of the paper, with `best` as its best accuracy on test.

    The last epoch is 0.1 points lower, the epoch selected on validation 0.05; 10,000 or 50,000 test images. Page and
    method have the settings that the engine would record, with `changes`, a change of the method's among them.
    """
    facts = TABLES.pages[on]
    method = changes.get("method", {})
    settings = {**settings_of(method.get("name", name), on), **method.get("changed", {}), **method.get("settings", {})}
    own = {
        "protocol": 2,
        "run": f"{on}.{name}.{sparsity}.s{seed}",
        "page": {"name": on, "title": facts.title, "settings": dataclasses.asdict(page_of(on))},
        "data": dict(facts.data),
        "method": {"name": name, "source": f"methods/{name}.py", "settings": settings},
        "environment": {"precision": "bf16", "device": "GPU"},
    }
    if best is not None and changes.get("status") != "diverged":
        own["accuracy_pct"] = {
            "best_on_test": best,
            "last_epoch": round(best - 0.1, 4),
            "validation_selected": round(best - 0.05, 4) if facts.data["validation"] else None,
        }
    if name != "dense":
        own["sparsity"] = sparsity
    record = make_record(**merge(own, {"seed": seed, **changes}))
    return {"file": f"{record['run']}.json", **record}


def test_a_record_older_than_a_setting_had_its_default():
    """Records of before `conv_init` and `no_decay` fit pages that leave both at their default, and no other page."""
    for on, fits in (("cifar10_resnet20", True), ("imagenet_resnet50", False)):
        record = run_on(on, "dense", 0.0, 0, 76.0)
        for setting in ("conv_init", "no_decay"):
            del record["page"]["settings"][setting]
        found = departures(record, TABLES.pages[on], 2)
        assert (found == ()) == fits, found


def runs(name: str, sparsity: float, values: tuple[float, ...], on: str = PAGE, **changes: Any) -> list[Any]:
    return [run_on(on, name, sparsity, seed, value, **changes) for seed, value in enumerate(values)]


def cell_of(records: list[Any], label: str = "GraNet, s_i = 0.5", sparsity: int = 90, note: str = "") -> Comparison:
    """Return a cell of Table 2's first part."""
    (found,) = (
        line.cells[sparsity]
        for line in compare_all(records, TABLES)[1].parts[0].lines
        if (line.row.label, line.note) == (label, note)
    )
    return found


def shown(records: list[Any], label: str = "GraNet, s_i = 0.5", column: int = 1, note: str = "") -> str:
    """Return a cell of Table 2's first part as the page shows it; column 1 is the first accuracy."""
    part = render_paper(records, TABLES).split("### VGG-19 on CIFAR-10\n")[1].split("\n### ")[0]
    head = f"| **{label}**" + (f"<br>{note}" if note else "")
    (line,) = (line for line in part.splitlines() if line.startswith((head + " |", head + "<br>cited")))
    return line.split(" | ")[column]


# Verdicts, one by one


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        (spread(93.73 + 0.29), "reproduced"),  # [+0.08, +0.50]
        (spread(93.73 + 0.33), "higher"),  # [+0.12, +0.54]; t = 5.05 at 3 degrees of freedom, p = 0.015
        (spread(93.73 - 0.33), "lower"),
        (spread(93.73 + 0.20, 0.30), "within noise"),  # t = 1.1
        (spread(93.73, 0.60), "within noise"),  # no difference at all, but nothing could be told
        ((93.73, 93.73), "too few runs"),  # [-0.19, +0.19], and yet two runs are not enough
        ((93.73,), "too few runs"),
    ],
)
def test_a_verdict_is_the_one_worked_by_hand(values: tuple[float, ...], verdict: str) -> None:
    assert cell_of(runs("granet", 0.9, values)).verdict == verdict


def test_the_interval_is_welchs_and_stands_in_the_cell() -> None:
    text = shown(runs("granet", 0.9, spread(93.73 + 0.29)))
    assert text.split("<br>")[:5] == [
        "paper: 93.73 ± 0.08 †",
        "ours, best on test: 94.02 ± 0.08 (n=3)",
        "ours − paper: +0.29 [+0.08, +0.50] †",
        "*reproduced* †",
        "would have seen 0.31 points †",
    ]


@pytest.mark.parametrize("std", [0.08, 0.3])
def test_what_the_runs_of_a_cell_would_have_seen_is_found_in_four_of_five_comparisons(std: float) -> None:
    """Three runs against three of spread 0.08: by drawing them, and SciPy's Welch test at the sheets' degrees."""
    (seen,) = re.findall(r"would have seen ([\d.]+) points", shown(runs("granet", 0.9, spread(93.73, std))))
    draw = np.random.default_rng(0).normal(0.0, 1.0, (2, 3, 20000))
    found = ttest_ind(draw[0] * std + float(seen), draw[1] * 0.08, equal_var=False)
    p = 2 * t.sf(abs(found.statistic), (found.df + 2) / 2)  # halfway from Welch's to those of either sample
    assert 0.78 < np.mean((p < 0.05) & (found.statistic > 0)) < 0.82  # two printed decimals


def test_holm_corrects_over_all_compared_cells_of_the_table() -> None:
    """t = 0.44 / 0.06532 = 6.74, p = 0.0067: seven such cells are significant (0.047), eight are not (0.053)."""
    tables = make_tables([0.08] * 8)
    for count, verdict in ((1, "higher"), (7, "higher"), (8, "within noise")):
        records = [run for row in range(count) for run in runs(f"m{row}", 0.9, spread(93.73 + 0.44))]
        cells = compare_all(records, tables)[1].distinct()
        assert [cell.verdict for cell in cells[::3]] == [verdict] * count + ["not run"] * (8 - count)


def make_tables(stds: list[float]) -> Tables:
    """Return tables whose Table 2 has a row for method m0, m1 … each, published as 93.73 ± `std`."""
    rows = tuple(
        PaperRow(
            f"m{number}",
            "sparse-to-sparse",
            False,
            (Match(f"m{number}", {}),),
            {sparsity: Published(93.73, std, "primary") for sparsity in (90, 95, 98)},
        )
        for number, std in enumerate(stds)
    )
    two = PaperTable(2, (Part(PAGE, "vgg19", "cifar10", {}, rows),), ())
    methods = {**TABLES.methods, **{row.label: {} for row in rows}}
    return replace(TABLES, methods=methods, tables=(TABLES.tables[0], two))


def test_a_dense_row_that_stands_in_two_columns_is_one_comparison() -> None:
    views = compare_all(runs("dense", 0.0, spread(76.8), "imagenet_resnet50"), TABLES)
    dense = views[2].parts[0].lines[0]
    assert [cell.verdict for cell in dense.cells.values()] == ["reproduced", "reproduced"]
    assert sum(cell.verdict == "reproduced" for cell in views[2].distinct()) == 1


def test_a_published_value_without_a_spread_is_never_tested_and_the_cell_says_so() -> None:
    """GraNet at 80 % of ImageNet is printed as 76.0, and nobody knows how far its own runs are apart."""
    records = runs("granet", 0.8, spread(79.0, 0.1), "imagenet_resnet50")
    (cell,) = (cell for cell in compare_all(records, TABLES)[2].distinct() if cell.compared)
    assert (cell.verdict, cell.reason, cell.difference) == ("not decided", "no ± printed", None)
    text = render_paper(records, TABLES)
    assert "<br>ours − paper: +3.00 †<br>*not decided: no ± printed* †<br>ours, last" in text


def test_cells_that_are_not_tested_count_in_no_correction() -> None:
    """Seven cells are significant, as above, beside one of two runs and one of which a run diverged."""
    tables = make_tables([0.08] * 9)
    records = [run for row in range(7) for run in runs(f"m{row}", 0.9, spread(93.73 + 0.44))]
    records += runs("m7", 0.9, (94.0, 94.1))
    records += [*runs("m8", 0.9, spread(93.73)), run_on(PAGE, "m8", 0.9, 3, None, status="diverged")]
    verdicts = [cell.verdict for cell in compare_all(records, tables)[1].distinct()[::3]]
    assert verdicts == ["higher"] * 7 + ["too few runs", "not decided"]


# What can never read as reproduced


def test_a_record_fills_its_own_cell_and_no_other() -> None:
    found = [
        cell.verdict for view in compare_all(runs("granet", 0.9, spread(93.73)), TABLES) for cell in view.distinct()
    ]
    assert found.count("reproduced") == 1 and set(found) == {"reproduced", "not run"}


@pytest.mark.parametrize(
    ("sparsity", "method"), [(0.8999, {}), (0.9, {"changed": {"start_sparsity": 0.0}}), (0.9, {"name": "granet2"})]
)
def test_another_sparsity_method_or_setting_is_another_cell(sparsity: float, method: dict[str, Any]) -> None:
    assert cell_of(runs("granet", sparsity, spread(93.73), method=method)).verdict == "not run"


def test_a_cited_row_in_perfect_agreement_is_shown_without_agreement() -> None:
    records = runs("snip", 0.9, spread(93.63))
    assert cell_of(records, "SNIP").verdict == "protocol differs" and cell_of(records, "SNIP").difference is None
    assert shown(records, "SNIP").split("<br>")[:4] == [
        "paper: 93.63 ᵗ",
        "ours, best on test: 93.63 ± 0.08 (n=3)",
        "ours − paper: +0.00 ᵗ",
        "*protocol differs: cited from another paper*",
    ]


def test_a_cell_without_a_published_value_is_never_agreed_with() -> None:
    tables = make_tables([0.08])
    row = tables.tables[1].parts[0].rows[0]
    bare = replace(row, cells={**row.cells, 90: Published(None, None, "primary")})
    part = replace(tables.tables[1].parts[0], rows=(bare,))
    tables = replace(tables, tables=(tables.tables[0], replace(tables.tables[1], parts=(part,))))
    records = runs("m0", 0.9, spread(93.73))
    cell = compare_all(records, tables)[1].parts[0].lines[0].cells[90]
    assert (cell.verdict, cell.reason, cell.difference) == ("protocol differs", "the paper prints no value", None)
    assert "| paper: ·<br>ours, best on test: 93.73 ± 0.08 (n=3)<br>*protocol differs: " in render_paper(
        records, tables
    )


DEPARTURES: list[tuple[dict[str, Any], str]] = [
    ({"page": {"changed": {"epochs": 10}, "settings": {"epochs": 10}, "variant": "x"}}, "epochs = 10, not 160"),
    ({"page": {"settings": {"cutout": 16}}}, "cutout = 16, unknown here"),
    ({"method": {"settings": {"start_sparsity": 0.0}}}, "start_sparsity = 0.0, not 0.5"),
    (
        {"page": {"changed": {"data": "folder"}, "variant": "x"}, "data": {"name": "cifar10-jpeg"}},
        'data = "folder", not "cifar10"; data: name = "cifar10-jpeg", not "cifar10"',
    ),
    ({"data": {"train": 50000, "validation": 0}}, "data: train = 50000, not 45000; data: validation = 0, not 5000"),
    ({"method": {"source": "mine/granet.py"}}, "method from mine/granet.py"),
]


@pytest.mark.parametrize(("changes", "reason"), DEPARTURES, ids=range(len(DEPARTURES)))
def test_runs_of_another_page_data_or_file_are_shown_with_what_differs(changes: dict[str, Any], reason: str) -> None:
    records = runs("granet", 0.9, spread(93.73), **changes)
    assert cell_of(records).verdict == "protocol differs" and cell_of(records).compared is None
    assert shown(records).split("<br>")[:5] == [
        "paper: 93.73 ± 0.08 †",
        f"with {reason}:",
        "ours, best on test: 93.73 ± 0.08 (n=3)",
        "ours − paper: +0.00 †",
        "*protocol differs*",
    ]
    assert shown(records, column=2).startswith(f"ours, with {reason}: 0.28×")


@pytest.mark.parametrize("name", sorted({field.name for field in dataclasses.fields(Page)} - SAME_PAGE.keys()))
def test_a_page_whose_file_was_edited_is_never_compared_whichever_setting_it_was(name: str) -> None:
    """The record's `changed` is empty then, and the variant is the only other trace."""
    edited = {"settings": {name: "edited"}, "variant": "ed17ed00"}
    records = runs("granet", 0.9, spread(93.73), page=edited)
    cell = cell_of(records)
    assert (cell.verdict, cell.compared) == ("protocol differs", None)
    assert cell.others[0].departures[0].startswith(f'{name} = "edited", not ')


def test_a_page_of_which_a_setting_was_not_recorded_is_never_compared() -> None:
    records = runs("granet", 0.9, spread(93.73))
    for record in records:
        settings = {name: value for name, value in record["page"]["settings"].items() if name not in ("flip", "lr")}
        record["page"] = {**record["page"], "settings": settings}
    assert cell_of(records).verdict == "protocol differs" and "<br>with not recorded: flip, lr:<br>" in shown(records)


def test_each_variant_of_a_page_is_an_entry_of_its_own() -> None:
    records = [
        run
        for epochs in (10, 20)
        for run in runs("granet", 0.9, spread(93.0), page={"changed": {"epochs": epochs}, "variant": f"v{epochs}"})
    ]
    text = shown(records)
    assert text.index("with epochs = 10, not 160:") < text.index("with epochs = 20, not 160:")
    assert text.count("(n=3)") == text.count("*protocol differs*") == 2


def test_beside_compared_runs_the_others_are_counted_and_named_but_enter_nothing() -> None:
    compared = runs("granet", 0.9, spread(93.73))
    other = runs("granet", 0.9, spread(80.0), page={"changed": {"epochs": 10}, "variant": "x"})
    before, after = shown(compared), shown(compared + other)
    assert after == f"{before}<br>not compared: 3 runs (epochs = 10, not 160)"


def test_only_the_newest_protocol_counts_and_an_older_one_is_named() -> None:
    old = runs("granet", 0.9, spread(93.73), protocol=1)
    assert cell_of(old).verdict == "reproduced"  # the newest there is
    newer = run_on("cifar10_resnet20", "dense", 0.0, 0, 92.4, protocol=2)
    assert cell_of([*old, newer]).verdict == "protocol differs"
    assert "with protocol 1, older than 2:" in shown([*old, newer])
    both = [*old, *runs("granet", 0.9, spread(93.0), protocol=2)]
    assert "93.00 ± 0.08 (n=3)" in shown(both) and "not compared: 3 runs (protocol 1, older than 2)" in shown(both)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": {"fingerprint": "e2" * 32}}, "data fingerprint e2e2e2e2e2e2"),
        ({"environment": {"precision": "fp32"}}, "precision fp32"),
        ({"page": {"variant": "0ddba115"}}, "page variant 0ddba115"),
    ],
)
def test_of_several_data_or_precisions_the_one_with_most_runs_is_compared(changes: dict[str, Any], reason: str) -> None:
    """Never mixed: four runs of the page's other cells outweigh three of this one."""
    usual = [run_on(PAGE, "rigl", 0.9, seed, 93.0) for seed in range(4)]
    odd = runs("granet", 0.9, spread(93.73), **changes)
    assert cell_of(odd).verdict == "reproduced"
    assert cell_of(usual + odd).verdict == "protocol differs" and f"with {reason}:" in shown(usual + odd)


def test_a_majority_of_runs_of_another_recipe_is_no_protocol() -> None:
    odd = [run_on(PAGE, "rigl", 0.9, seed, 93.0, page={"settings": {"nesterov": False}}) for seed in range(9)]
    odd += runs("granet", 0.9, spread(93.73), page={"settings": {"nesterov": False}})
    assert cell_of(odd).verdict == "protocol differs"
    own = runs("granet", 0.95, spread(93.66))
    assert cell_of(odd + own, sparsity=95).compared is not None and cell_of(odd + own).compared is None


LATE = "2025-02-01T00:00:00+00:00"


def test_two_versions_of_a_methods_file_are_not_averaged_and_of_equally_many_runs_the_latest_is_compared() -> None:
    old = runs("granet", 0.9, spread(80.0), method={"sha256": "ab" * 32})
    new = runs("granet", 0.9, spread(93.73), method={"sha256": "12" * 32}, finished=LATE)
    assert cell_of(old + new).verdict == "reproduced" and "93.73 ± 0.08 (n=3)" in shown(old + new)
    assert "not compared: 3 runs (another version of the method's file, abababab)" in shown(old + new)


def test_late_runs_of_another_version_do_not_take_the_others_out_of_the_comparison() -> None:
    """Six cells and seeds outweigh two, whatever was repeated or run at sparsities that the table lacks."""
    many = [*runs("granet", 0.9, spread(93.73)), *runs("granet", 0.95, spread(93.66))]
    other: dict[str, Any] = {"method": {"sha256": "12" * 32}, "finished": LATE}
    late = [*runs("granet", 0.95, (80.0, 81.0), **other), *runs("granet", 0.95, (80.0,), **other) * 6]
    late += [run for sparsity in (0.5, 0.6, 0.7) for run in runs("granet", sparsity, spread(80.0), **other)]
    assert [cell_of(many + late, sparsity=sparsity).verdict for sparsity in (90, 95)] == ["reproduced"] * 2
    assert "not compared: 8 runs (another version of the method's file, 12121212)" in render_paper(many + late, TABLES)


# Seeds


def test_diverged_runs_never_vanish_and_uncommitted_code_is_named() -> None:
    records = [*runs("granet", 0.9, (93.7, 93.8)), run_on(PAGE, "granet", 0.9, 2, None, status="diverged")]
    records[1]["git"] = {"commit": "c0ffee", "dirty": True}
    text = shown(records)
    assert text.endswith("<br>uncommitted code: seed 1")
    assert "<br>ours − paper: +0.02 †<br>*not decided: 1 diverged*<br>" in text
    assert "ours, best on test: 93.75 ± 0.07 (n=2, 1 diverged)" in text
    assert "[seed 2](records/cifar10_vgg19.granet.0.9.s2.json) (diverged)" in text


def test_a_repeat_that_diverged_is_no_counted_run() -> None:
    repeat = run_on(PAGE, "granet", 0.9, 0, None, status="diverged", finished=LATE)
    records = [*runs("granet", 0.9, spread(93.73)), {**repeat, "file": "repeat.json"}]
    assert cell_of(records).verdict == "reproduced"


def test_of_several_runs_of_a_seed_the_first_that_finished_counts() -> None:
    repeats = [{**run_on(PAGE, "granet", 0.9, 0, 99.0, finished=LATE), "file": "repeat.json"}]
    records = runs("granet", 0.9, spread(93.73))
    assert cell_of(repeats + records).verdict == "reproduced"
    assert shown(repeats + records) == f"{shown(records)}, [repeat of seed 0](records/repeat.json)"


# What stands beside


def test_the_clean_protocol_stands_beside_the_papers() -> None:
    text = shown(runs("granet", 0.9, spread(93.73)))
    assert text.index("ours, best on test: 93.73") < text.index("ours, last epoch: 93.63 ± 0.08")
    assert "ours, selected on validation: 93.68 ± 0.08" in text
    on_100 = render_paper(runs("granet", 0.9, spread(73.3), "cifar100_vgg19"), TABLES).split("## Table 1")[1]
    assert "ours, last epoch: 73.20" in on_100 and "selected on validation" not in on_100


def test_both_readings_of_a_dense_start_have_their_own_line() -> None:
    records = runs("gmp", 0.9, spread(93.59)) + runs(
        "gmp", 0.9, spread(90.0), method={"changed": {"prune_end": 0.6875}}
    )
    assert cell_of(records, "GMP", note="t_f = epoch 80").verdict == "reproduced"
    assert cell_of(records, "GMP", note="t_f = epoch 110").verdict == "lower"


def test_table_3_shows_the_papers_costs_beside_ours() -> None:
    """At sparsity 0.8 the records' small network costs 0.36 of dense."""
    text = render_paper(runs("granet", 0.8, spread(76.0), "imagenet_resnet50"), TABLES)
    assert "| paper: 0.37× †<br>ours: 0.36× | paper: 0.35× †<br>ours: 0.36× |" in text
    assert "paper: 0.08× ‡" in text and "mix two conventions" in text and "(../docs/flops.md)" in text
    assert "training FLOPs" not in render_paper([], TABLES).split("## Table 2")[1].split("## Table 3")[0]


def test_what_is_done_is_counted() -> None:
    records = [*runs("granet", 0.9, spread(93.73)), *runs("snip", 0.9, spread(93.0))]
    records += runs("granet", 0.95, spread(93.0), page={"changed": {"epochs": 1}, "variant": "x"})
    text = render_paper(records, TABLES)
    assert "Table 2: 2 of 144 cells run in the paper's protocol." in text
    assert "| Table 2 | 144 | 0 | 141 | 2 | 0 | 0 | 1 | 0 | 0 | 0 |" in text
    for number, cells in ((1, 6), (3, 31)):
        assert f"Table {number}: 0 of {cells} cells run in the paper's protocol." in text
        assert f"`make table{number}`" in text


# The page as a whole


def test_the_page_in_small() -> None:
    tables = make_tables([0.08, 0.1])
    records = [*runs("m0", 0.9, spread(93.83)), *runs("dense", 0.0, (93.9, 94.0))]
    text = render_paper(records, tables, "my records")
    assert text.split("### VGG-19 on CIFAR-10\n")[1] == (
        "\nPage `cifar10_vgg19`; compared are runs of protocol 2, variant 0a1b2c3d, data d1d1d1d1d1d1, bf16. The dense "
        "network (Table 1): paper: 93.85 ± 0.05; ours, best on test: 93.95 ± 0.07 (n=2).\n\n"
        "| method | 90 %: accuracy | 90 %: training FLOPs | 90 %: inference FLOPs | 95 %: accuracy "
        "| 95 %: training FLOPs | 95 %: inference FLOPs "
        "| 98 %: accuracy | 98 %: training FLOPs | 98 %: inference FLOPs |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| *sparse-to-sparse* |  |  |  |  |  |  |  |  |  |\n"
        "| **m0** | paper: 93.73 ± 0.08<br>ours, best on test: 93.83 ± 0.08 (n=3)<br>"
        "ours − paper: +0.10 [−0.11, +0.31]<br>*reproduced*<br>would have seen 0.31 points<br>"
        "ours, last epoch: 93.73 ± 0.08<br>"
        "ours, selected on validation: 93.78 ± 0.08<br>[seed 0](my%20records/cifar10_vgg19.m0.0.9.s0.json), "
        "[seed 1](my%20records/cifar10_vgg19.m0.0.9.s1.json), [seed 2](my%20records/cifar10_vgg19.m0.0.9.s2.json) "
        "| ours: 0.28× | ours: 0.28× | paper: 93.73 ± 0.08<br>*not run* | · | · | paper: 93.73 ± 0.08<br>*not run* "
        "| · | · |\n"
        "| **m1** | paper: 93.73 ± 0.10<br>*not run* | · | · | paper: 93.73 ± 0.10<br>*not run* | · | · "
        "| paper: 93.73 ± 0.10<br>*not run* | · | · |\n\nMarks and notes:\n\n"
    )


def many_records() -> list[dict[str, Any]]:
    found = [
        *runs("granet", 0.9, spread(93.73)),
        *runs("granet", 0.9, spread(93.0), page={"changed": {"epochs": 10}, "variant": "x"}),
        *runs("granet", 0.9, spread(93.1), environment={"precision": "fp32"}),
        *runs("granet", 0.9, spread(93.2), method={"sha256": "12" * 32}),
        *runs("gmp", 0.95, spread(93.0), protocol=1),
        *runs("snip", 0.9, spread(93.0)),
        *runs("snip", 0.9, spread(94.0)),
        *runs("dense", 0.0, spread(76.8), "imagenet_resnet50"),
    ]
    return [{**run, "file": f"{place}.json"} for place, run in enumerate(found)]


def test_any_order_of_the_records_gives_the_same_page() -> None:
    records = many_records()
    before, expected = json.dumps(records), render_paper(records, TABLES)
    assert json.dumps(records) == before
    for seed in range(4):
        random.Random(seed).shuffle(records)
        assert render_paper(records, TABLES) == expected


def test_text_from_records_is_only_text() -> None:
    evil = "<script>|x`\n# [a](b) *c* \u202e\ud800"
    one = runs("granet", 0.9, spread(93.73), page={"variant": evil}, data={"fingerprint": evil})
    one = [{**run, "environment": {**run["environment"], "precision": evil}} for run in one]
    other = runs("granet", 0.95, (93.0,), page={"changed": {evil: evil, "a|b": ["|"]}, "variant": evil})
    own = runs("granet", 0.98, (93.0,), method={"source": evil, "sha256": evil}, command=evil, run=evil)
    text = render_paper([*one, *other, *own], TABLES)
    assert "<script" not in text and "\u202e" not in text and "\n# [a]" not in text
    text.encode("utf-8")
    assert text.count("\n#") == render_paper([], TABLES).count("\n#")
    assert "[a](b)" not in text and "method from &lt;script&gt;&#124;x&#96;" in text
