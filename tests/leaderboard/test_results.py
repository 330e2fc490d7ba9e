"""Promises of the results in short: counts and verdicts by hand, nothing said that the records do not carry."""

from __future__ import annotations

import random
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import t as student

from leaderboard.board.build import RESULTS, build_all, find_stale
from leaderboard.paper.cells import compare_all
from leaderboard.paper.published import load_tables
from leaderboard.results import agreement
from leaderboard.results.agreement import Printed, Weighed, find_printed, weigh_statements
from leaderboard.results.markdown import NO_BRANCHES, NO_PAIR, NO_RUNS, render_results
from leaderboard.results.scope import branch_sections, dense_accuracy, dense_mean, list_commands
from leaderboard.store.records import write_record
from leaderboard.tables.table import make_rows
from tests.harness.prunings import as_the_paper, make_grid
from tests.harness.record_factory import make_record, merge
from tests.harness.record_factory import make_runs as runs_of

ROOT = Path(__file__).resolve().parents[2]
TABLES = load_tables()
HIGH, LOW = (93.0, 93.4, 93.1), (90.0, 90.5, 90.1)  # apart by 3.0, 2.9, 3.0


def make_runs(name: str, accuracies: Any, **changes: Any) -> list[dict[str, Any]]:
    """Return runs of a method of the suite."""
    command = "sparse-bench sweep configs/grids/six.yaml --jobs 2"
    return runs_of(name, accuracies, **merge({"method": {"source": f"methods/{name}.py"}, "command": command}, changes))


def weigh(runs: list[dict[str, Any]], a: str = "granet", b: str = "rigl_itop", sparsity: float = 0.9) -> Weighed:
    """Return the one statement on two methods at a sparsity."""
    (found,) = (t for t in weigh_statements(runs, TABLES) if (t.a, t.b, t.sparsity) == (a, b, sparsity))
    return found


def show(records: list[dict[str, Any]], branches: Any = (), skipped: int = 0) -> str:
    return render_results(records, list(branches), skipped, TABLES, compare_all(records, TABLES))


def lines_with(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


# What the paper says


@pytest.mark.parametrize(
    ("a", "b", "sparsity", "above", "cells", "middle", "direction"),
    [
        # GraNet (s_i = 0.5) less RigL-ITOP at 90 %: 0.35, 0.17, 0.19, 1.39
        ("granet", "rigl_itop", 0.9, 4, 4, 0.27, 1),
        # at 80 %, which Table 2 has not: all twelve; at 95 %: 0.60, 1.04, 0.52, 1.13; at 98 %: 1.40, 2.22, 0.75, 2.08
        ("granet", "rigl_itop", 0.8, 12, 12, 0.895, 1),
        # less GMP at 98 %: -0.14, -0.03, -0.18, 1.56, each within the ± printed but the last: neither
        ("granet", "gmp", 0.98, 1, 4, -0.085, 0),
        # GMP less SNIP at 90 %: three of four, and 0.97 is beyond the ± printed
        ("gmp", "snip", 0.9, 3, 4, 0.975, 1),
        # RigL-ITOP less SET, which is in VGG-19's parts alone, at 98 %: 2.80, 3.88
        ("rigl_itop", "set", 0.98, 2, 2, 3.34, 1),
        # static is in Table 3 alone, with ERK at 80 and 90 %: GraNet is above by 3.9 and 6.8
        ("granet", "static", 0.9, 1, 1, 6.8, 1),
        ("granet", "static", 0.98, 2, 2, 5.35, 1),
        ("granet", "nothing", 0.9, 0, 0, None, 0),
    ],
)
def test_the_papers_cells_are_counted_as_by_hand(
    a: str, b: str, sparsity: float, above: int, cells: int, middle: float | None, direction: int
) -> None:
    found = find_printed(TABLES, a, b, sparsity)
    assert (found.above, found.cells, found.direction) == (above, cells, direction)
    assert found.middle == (None if middle is None else pytest.approx(middle))


def test_every_number_carries_the_marks_of_all_it_rests_on_and_copied_rows_are_called_so() -> None:
    found = find_printed(TABLES, "granet", "rigl_itop", 0.9)
    assert found.statuses == ("transcribed", "unconfirmed") and not found.cited and found.table == 2
    found = find_printed(TABLES, "granet", "static", 0.9)
    assert found.statuses == ("unconfirmed", "source-paper") and found.cited and found.table == 3
    text = show(make_runs("granet", HIGH) + make_runs("static", LOW))
    assert "| granet − static | 90 % | 1 of 1, +6.80 †‡ (Table 3, cited) |" in text
    marks = [line[:18] for line in lines_with(text, "- ") if line[2] in "ᵗ§¶†‡"]
    assert marks == ["- ᵗ *transcribed*,", "- † *unconfirmed*,", "- ‡ *source-paper*"]  # of all statements, not § and ¶


# Verdicts


@pytest.mark.parametrize(
    ("one", "other", "verdict", "reason"),
    [
        (HIGH, LOW, "as in the paper", "more than the paper's"),  # +2.97, in the paper +0.27
        ((90.5, 90.55, 90.45), (90.2, 90.25, 90.15), "as in the paper", ""),
        (LOW, HIGH, "the other way round", ""),
        # those of the test of `make claim`, one of eight comparisons here: at 5 % / 8
        ((93.1, 92.9, 93.5), (93.0, 93.2, 93.2), "not shown", "detectable: 2.58; the paper's takes ≈ 22 seeds"),
        ((93.0, 93.1, 92.9), (93.1, 93.2, 93.0), "not shown", "detectable: 0.90; less than the paper's"),
        (
            HIGH[:2],
            LOW[:2],
            "too few seeds",
            "2 seeds of granet, at least 3 are needed; 2 seeds of rigl_itop, at least",
        ),
        ((*HIGH, None), (*LOW, 90.2), "not decided", "granet diverged at seed 3"),
        ((93.0, None, 93.1), LOW, "not decided", "granet diverged at seed 1"),
    ],
)
def test_a_verdict_is_the_one_planted(one: Any, other: Any, verdict: str, reason: str) -> None:
    found = weigh(make_runs("granet", one) + make_runs("rigl_itop", other))
    assert found.verdict == verdict
    assert reason in found.reason and bool(reason) == bool(found.reason)


def test_where_the_paper_is_divided_a_significant_difference_is_no_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    divided = Printed(2, (90,), above=2, below=2, cells=4, middle=0.1)
    monkeypatch.setattr(agreement, "find_printed", lambda *_: divided)
    for one, other in ((HIGH, LOW), (LOW, HIGH)):
        assert (
            weigh(make_runs("granet", one) + make_runs("rigl_itop", other)).verdict
            == "without a direction in the paper"
        )


def test_p_is_corrected_over_all_comparisons_of_the_section_run_or_not() -> None:
    """Of the smallest p eight times itself counts, of eight pairs. An oracle of the test itself: t of the means."""
    parts = [(0.13 / 3 + 0.01**2 / 12) / 3, (0.07 + 0.01**2 / 12) / 3]  # variances of HIGH and LOW; 0.01 a test image
    freedom = (sum(parts) ** 2 / sum(part**2 / 2 for part in parts) + 2) / 2
    p = 2 * student.sf(8.9 / 3 / sum(parts) ** 0.5, freedom)
    runs = make_runs("granet", HIGH) + make_runs("rigl_itop", LOW)
    assert len(agreement.STATEMENTS) == 8
    assert weigh(runs).difference.p == pytest.approx(p, rel=1e-6)  # type: ignore[union-attr]
    assert weigh(runs).adjusted_p == pytest.approx(8 * p, rel=1e-6)
    assert weigh(runs + make_runs("gmp", (93.1, 93.2, 93.2))).adjusted_p == pytest.approx(8 * p, rel=1e-6)
    # what cannot be decided counts as what was not run
    more = runs + make_runs("gmp", (93.1, 93.2)) + make_runs("snip", (90.0, 90.1, None))
    assert weigh(more).adjusted_p == pytest.approx(8 * p, rel=1e-6)
    again = [*make_runs("granet", (93.1, 92.9, 93.5), sparsity=0.98), *make_runs("rigl_itop", LOW, sparsity=0.98)]
    assert weigh(runs + again).adjusted_p == pytest.approx(16 * p, rel=1e-6)


def test_a_smaller_p_of_another_pair_never_makes_one_larger() -> None:
    runs = make_runs("granet", HIGH) + make_runs("rigl_itop", (91.0, 92.4, 91.8))
    alone, beside = weigh(runs).adjusted_p, weigh(runs + make_runs("static", (10.0, 10.1, 10.2))).adjusted_p
    assert alone is not None and beside == pytest.approx(alone * 6 / 8)  # static is in two pairs


def test_seeds_that_one_row_alone_has_do_not_count_unless_too_few_are_shared() -> None:
    """Seeds added to one row after a look decide nothing; one that diverged is not hidden."""
    granet, few = make_runs("granet", HIGH), make_runs("rigl_itop", LOW)
    more = make_runs("rigl_itop", dict(enumerate((*LOW, 10.0, 10.0))))
    assert weigh(granet + more) == weigh(granet + few) and weigh(granet + more).counts == (3, 3)
    assert weigh(granet + few + make_runs("rigl_itop", {7: None})).verdict == "not decided"
    apart = make_runs("rigl_itop", dict(zip((2, 3, 4), LOW, strict=True)))  # one seed in common
    assert weigh(granet + apart).counts == (3, 3) and weigh(granet + apart).verdict == "as in the paper"
    longer = make_runs("granet", (*HIGH, *HIGH)) + make_runs("rigl_itop", (*LOW, *LOW))
    assert weigh(longer).counts == (6, 6)


def test_what_holds_alone_may_not_hold_among_all_comparisons() -> None:
    """Differences 1.00, 1.30, 1.15 have p 0.0056: significant alone, and not among ten or more."""
    one, other = (91.0, 91.3, 91.15), (90.0, 90.0, 90.0)
    runs = make_runs("granet", one) + make_runs("rigl_itop", other)
    assert weigh(runs).verdict == "as in the paper"
    for name in ("gmp", "snip", "static", "set"):
        for sparsity in (0.9, 0.98):
            runs += make_runs(name, (90.4, 91.5, 90.7), sparsity=sparsity)
    runs += make_runs("granet", (90.9, 90.1, 91.0), sparsity=0.98) + make_runs("rigl_itop", other, sparsity=0.98)
    found = weigh(runs)
    assert found.verdict == "as in the paper (asked alone)" and found.adjusted_p is not None and found.adjusted_p > 0.05
    assert found.difference is not None and found.difference.p is not None and found.difference.p < 0.01
    assert found.alone_p == pytest.approx(2 * found.difference.p)  # of two sparsities, as `make claim` has it


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": 0},
        {"environment": {"precision": "bf16"}},
        {"page": {"variant": "ffff", "changed": {"epochs": 9}}},
        {"data": {"fingerprint": "d2" * 32}},
        {"method": {"source": "elsewhere/rigl_itop.py"}},
        {"method": {"label": "rigl_itop (update_every=5)", "changed": {"update_every": 5}}},
    ],
    ids=["protocol", "precision", "page", "data", "file", "settings"],
)
def test_runs_that_are_not_comparable_are_never_compared(changes: dict[str, Any]) -> None:
    text = show(make_runs("granet", HIGH) + make_runs("rigl_itop", LOW, **changes))
    assert NO_PAIR in text and "as in the paper:" not in text
    assert "comparison" not in text.split("## What was run")[0]


def test_of_several_versions_of_a_file_the_newest_is_compared_and_named() -> None:
    new = make_runs("granet", HIGH) + make_runs("rigl_itop", LOW)
    times = {"started": "2024-01-01T00:00:00Z", "finished": "2024-01-01T01:00:00Z"}
    old = make_runs("rigl_itop", HIGH, method={"sha256": "ef" * 32}, **times)
    assert weigh(old + new) == weigh(new + old) == weigh(new) and weigh(new).verdict == "as in the paper"
    newest = f"rigl_itop (file {new[-1]['method']['sha256'][:8]})"
    about = "Of several versions of a method's file the newest with enough seeds is compared"
    assert f"{about}: {newest}." in show(old + new)
    assert "versions" not in show(new).split("### ResNet-20 on digits")[1].split("### The")[0]


def test_a_single_run_of_a_later_version_hides_no_comparison_but_one_that_diverged_does() -> None:
    """At another sparsity, too, where only the later version was run, that one is compared."""
    old = make_runs("granet", HIGH) + make_runs("rigl_itop", LOW)
    times = {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T01:00:00Z", "method": {"sha256": "ef" * 32}}
    later = make_runs("granet", HIGH[:1], **times)
    assert weigh(old + later) == weigh(old) and weigh(old).verdict == "as in the paper"
    for runs in (old, later):
        runs += make_runs("rigl_itop", LOW, sparsity=0.98)
    there = weigh(old + later + make_runs("granet", HIGH[:2], sparsity=0.98, **times), sparsity=0.98)
    assert there.counts == (2, 3) and there.verdict == "too few seeds"
    assert weigh(old + make_runs("granet", (None,), **times)).verdict == "not decided"


# The page


def small_store() -> list[dict[str, Any]]:
    return [
        *make_runs("dense", (95.0, 94.5, 94.75), time={"train_s": 3600.0}),
        *make_runs("granet", HIGH, time={"train_s": 1800.0}),
        *make_runs("rigl_itop", LOW, time={"train_s": 1800.0}, git={"dirty": True}),
        *make_runs("gmp", (93.0, None, 93.1), time={"train_s": 600.0}),
    ]


def test_the_page_in_small() -> None:
    text = show(small_store(), skipped=2)
    # 3 h + 1.5 h + 1.5 h + 0.5 h
    assert lines_with(text, "**12 runs**")[0] == (
        "**12 runs**, 6.50 h of training, 1 diverged. Of 8 comparisons with the paper: "
        "1 as in the paper, 1 not decided, 6 not run."
    )
    assert lines_with(text, "| ResNet-20 on digits<br>") == [
        "| ResNet-20 on digits<br>digits_resnet20 | digits: 100, 20, 10,000 | 3 | 12: 4 rows; at 90 %; 3 seeds each "
        "| 1 | fp32; cpu, 2 threads; torch 2.0 | 1 commit; 3 runs with uncommitted code |"
    ]
    assert "- Diverged: ResNet-20 on digits, gmp at 90 %, seed 1.\n- 2 files set aside" in text
    # dense costs 300 images x 3 x 10,000 multiply-adds, 9e6; sparse ones 0.28 of that: (3 + 9 x 0.28) / 12 of 12 x 9e6
    assert "| ResNet-20 on digits | 6.50 h | 9.9e7 | 0.46× | 94.75 ± 0.25 (n=3), 94.50 to 95.00 |" in text
    (row,) = lines_with(text, "| granet − rigl_itop | 90 % | 4 of 4, +0.27 ᵗ† |")
    assert row.endswith(
        "| +2.97 (n=3) | +2.34 to +3.60 | 0.000741 | 0.00593 | **as in the paper** (more than the paper's) "
        "| 0.280× and 0.280× |"
    )
    (row,) = lines_with(text, "| granet − gmp")
    assert "| +0.12 (n=3 and 2) |" in row
    assert "| not decided (" in row and "gmp diverged at seed 1" in row
    assert "Table 1: 0 of 6 cells run; Table 2: 0 of 144 cells" in text
    assert "| at 90 % sparsity | **granet 93.17** (n=3) of 2 |" in text  # gmp diverged
    assert "| ResNet-20 on digits | 90 % | **yes** +2.97 | not run | not decided |" in text
    assert (
        "1 of 2 comparisons as in the paper, none the other way round. On ResNet-20 on digits: `granet` above "
        "`rigl_itop` at 90 %. On the paper's side, of these 1 rest in part on numbers that are recalled" in text
    )
    assert "`granet` less `rigl_itop`: +2.97 in 1 comparison, 1 significant, for 1.0 times the training FLOPs." in text
    assert "over all pages" not in text
    assert NO_BRANCHES in text and "](branches)" not in text
    assert "```\nmake sweep GRID=configs/grids/six.yaml\nmake verify\n```" in text


def test_the_findings_on_plasticity_are_those_of_their_page() -> None:
    branches = [merge(branch, {"data": {"test": 10_000}}) for branch in make_grid(as_the_paper)]
    text = show([], branches)
    assert NO_RUNS in text and NO_PAIR in text and "](records)" not in text
    assert "**72 branches**" in text and "the tests of its findings on pruning plasticity: 3 supported." in text
    (row,) = lines_with(text, "| ResNet-20 on digits: single weights over all layers; 3 epochs |")
    assert [cell.split(",")[0].strip() for cell in row.split("|")[3:6]] == ["plasticity: **supported**"] * 3
    assert ", +4.00," in row and ", +2.00," in row
    assert "not enough runs" in show([], make_grid(as_the_paper, seeds=(0, 1)))


def test_without_a_record_there_is_no_page(tmp_path: Path) -> None:
    records, page = tmp_path / "records", tmp_path / "LEADERBOARD.md"
    assert show([]) == ""
    (tmp_path / RESULTS).write_text("left over")
    build_all(records, page)
    assert not (tmp_path / RESULTS).exists() and find_stale(records, page) == []
    (tmp_path / RESULTS).write_text("left over")
    assert find_stale(records, page) == [f"{RESULTS} does not match the records"]
    (tmp_path / RESULTS).unlink()
    write_record(make_record(), records)
    assert f"{RESULTS} does not match the records" in find_stale(records, page)


def test_any_order_of_the_records_gives_the_same_page() -> None:
    records = small_store() + make_runs("granet", LOW, page={"variant": "x", "changed": {"lr": 1}})
    records += make_runs("granet", LOW[:1], finished="2025-01-31T13:00:00+00:00")  # a repeat
    branches = make_grid(as_the_paper)
    expected = show(records, branches)
    for seed in range(3):
        random.Random(seed).shuffle(records)
        random.Random(seed).shuffle(branches)
        assert show(records, branches) == expected


# What a reader may not conclude


def caveats(*runs: dict[str, Any]) -> str:
    return show(list(runs)).split("## What a reader may not conclude")[1].split("## Repeat it")[0]


def test_runs_no_better_than_guessing_are_counted_and_their_rows_named() -> None:
    """Ten classes and 10,000 test images: by chance 10 %, and up to three standard errors of 0.3."""
    runs = make_runs("set", (10.0, 10.9, 11.0)) + make_runs("granet", HIGH)
    assert "0 diverged, 2 ended no better than chance." in show(runs)
    why = "[what is known of the reason](../methods/set.py)"
    assert f"set at 90 % ended no better than chance ({why}): 2 of 3 runs on ResNet-20 on digits." in caveats(*runs)
    assert "chance." not in caveats(*make_runs("granet", HIGH)).replace("found by chance.", "")


def test_methods_that_train_several_times_are_said_to() -> None:
    usual = make_runs("set", (80.0, 80.2, 80.4))
    many = make_runs("imp", HIGH, rounds={"count": 12, "back_to_epoch": 0, "keep_weights": False})
    assert "imp 12 times the page's training" in caveats(*usual, *many)
    assert "in 12 trainings (above the one other)" in show(usual + many)
    assert "trainings" not in show(usual) and "times the page's" not in caveats(*usual)


def test_a_jpeg_copy_is_called_one_and_nothing_else_is() -> None:
    def on(kind: str, folder: str) -> str:
        return caveats(*make_runs("set", HIGH, page={"settings": {"data": kind}}, data={"name": folder}))

    assert "The images of cifar10-jpeg are JPEG copies" in on("folder", "cifar10-jpeg")
    assert "JPEG" not in on("folder", "cifar10") and "JPEG" not in on("cifar10", "cifar10")
    small = make_runs("set", HIGH, page={"settings": {"data": "folder", "image_size": 16}}, data={"name": "x-jpeg"})
    assert "They were read at 16 pixels a side, not at the paper's 32." in caveats(*small)
    full = make_runs("gmp", HIGH[:1], page={"settings": {"data": "folder", "epochs": 160}}, data={"name": "x-jpeg"})
    both = caveats(*small, *full)
    assert "They were, but for 1 run, read at 16 pixels" in both and "is short, but for 1 run: 3 epochs, where" in both


def test_what_depends_on_the_records_is_worked_out() -> None:
    text = caveats(*make_runs("dense", (99.0, 99.2, 98.8)), *make_runs("set", HIGH[:2], environment={"torch": "3"}))
    assert "Training is short: 3 epochs, where the paper's pages have 100 to 160." in text
    assert "The smallest test set has 10,000 images, each worth 0.01 points." in text
    assert "On ResNet-20 on digits the dense network misses 100.0 images" in text  # 1 % of 10,000
    assert "A cell has 2 to 3 seeds." in text
    assert "All runs are of one kind of machine, cpu, 2 threads" in text and "No run used a GPU" in text
    assert "in no commit" not in text and "diverged" not in text
    page = {"settings": {"epochs": 160}}
    runs = make_runs("dense", (90.0,), page=page, environment={"device": "cuda"})
    text = caveats(*runs, *make_runs("set", (90.0, None), page=page, git={"dirty": True}))
    assert not [words for words in ("short", "GPU", "one kind of machine", "misses") if words in text]
    assert "2 runs ran with code that is in no commit" in text and "1 run diverged" in text


def test_the_dense_network_is_that_of_the_newest_file_and_of_one_kind_of_page() -> None:
    old = make_runs("dense", (70.0, 70.0), method={"sha256": "11" * 32}, finished="2025-01-31T12:00:30+00:00")
    new = make_runs("dense", (95.0, 95.0), method={"sha256": "22" * 32})
    for hashes in (("11", "22"), ("22", "11")):
        for runs, start in zip((old, new), hashes, strict=True):
            for run in runs:
                run["method"] = {**run["method"], "sha256": start * 32}
        assert dense_mean(make_rows([*old, *new])) == 95.0
    short = make_runs("dense", (61.0, 61.2), page={"variant": "short"}, run="short")
    (section,) = branch_sections([*new, *short])
    assert dense_accuracy(section.rows) in (
        f"{one}; {other}" for one, other in permutations(dense_accuracy(make_rows(runs)) for runs in (new, short))
    )


def test_in_what_a_page_is_not_the_papers_is_told() -> None:
    own = {"epochs": 8, "model": "cifar_resnet20", "mean": [0.5], "lr": 0.1, "title": "mine", "workers": 3}
    page = {"settings": own, "variant": "v"}
    text = show(make_runs("granet", HIGH, page=page) + make_runs("gmp", HIGH, page=page))
    told = "data digits (there cifar10); epochs 8 (there 160); training"
    assert f"The nearest is ResNet-20 on CIFAR-10, and differs in {told}" in text
    assert "mean" in text and "workers" not in text and "lr 0.1" not in text


# Commands


def test_commands_are_few_and_plain() -> None:
    runs = make_runs("granet", HIGH, command="make bench") + make_runs("set", HIGH, command="make bench")
    runs += make_runs("granet", HIGH, sparsity=0.98, command="make bench")
    assert list_commands(runs, [])[0] == [
        "make bench TASK=digits_resnet20 METHOD=granet SPARSITY=0.9,0.98 DEVICE=cpu SEED=0,1,2",
        "make bench TASK=digits_resnet20 METHOD=set SPARSITY=0.9 DEVICE=cpu SEED=0,1,2",
    ]
    runs += make_runs("set", HIGH, sparsity=0.98, command="make bench")
    assert list_commands(runs, [])[0] == [
        "make bench TASK=digits_resnet20 METHOD=granet,set SPARSITY=0.9,0.98 DEVICE=cpu SEED=0,1,2",
    ]


def test_a_part_of_a_grid_is_left_out_beside_the_whole() -> None:
    asked = ["one.yaml", "one.yaml --method set --seed 1", "two.yaml --method set", "one.yaml --seed 3"]
    grids = [f"sparse-bench sweep configs/grids/{words}" for words in asked]
    runs = [run for command in grids for run in make_runs("set", HIGH, command=command)]
    commands, hidden = list_commands(runs, [])
    assert [command.partition("GRID=configs/grids/")[2] for command in commands] == ["one.yaml", "two.yaml METHOD=set"]
    assert hidden == 0


def test_what_anybody_can_run_comes_before_folders_of_images() -> None:
    page = {"name": "a_page", "settings": {"data": "folder"}}
    grid = "sparse-bench sweep configs/grids"
    runs = make_runs("set", HIGH, command=f"{grid}/a.yaml", page=page) + make_runs(
        "set", HIGH, command=f"{grid}/b.yaml"
    )
    runs += make_runs("gmp", HIGH, command="make bench", page=page)
    commands = [command.split()[2] for command in list_commands(runs, [])[0]]
    assert commands == ["GRID=configs/grids/b.yaml", "GRID=configs/grids/a.yaml", "TASK=a_page"]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("sparse-bench grid configs/grids/digits.yaml", "make sweep GRID=configs/grids/digits.yaml"),
        (
            "sparse-bench sweep configs/a.yaml --seed 0,2 --method set",
            "make sweep GRID=configs/a.yaml METHOD=set SEED=0,2",
        ),
        ("sparse-bench sweep configs/a.yaml --fresh 1", "make bench"),
        ("sparse-bench sweep configs/../a.yaml", "make bench"),
        ("sparse-bench sweep 'configs/a b.yaml'", "make bench"),
        ("sparse-bench sweep configs/a.yaml --jobs '2; rm x'", "make bench"),
    ],
)
def test_a_grid_file_is_named_with_what_narrowed_it(command: str, shown: str) -> None:
    (found,), hidden = list_commands(make_runs("set", HIGH, command=command), [])
    assert (found == shown or (shown == "make bench" and found.startswith("make bench TASK="))) and hidden == 0


def test_a_study_is_named_and_what_is_no_plain_word_is_only_counted() -> None:
    branches = make_grid(as_the_paper, seeds=(0,))
    commands = ("sparse-bench plasticity --scale small --seed 0,1 --jobs 2", "sparse-bench plasticity --seed '$(x)'")
    asked = [{**branch, "command": commands[place % 2]} for place, branch in enumerate(branches)]
    assert list_commands([], asked) == (["make plasticity SCALE=small SEED=0,1"], 1)
    evil = make_runs("set", HIGH, command="x", page={"name": "a`\n```\n<b>"})
    assert list_commands(evil, []) == ([], 1)
    assert "1 further command left out here" in show(evil)


# The committed page


def test_what_the_committed_page_names_is_there() -> None:
    text = (ROOT / "leaderboard" / RESULTS).read_text()
    files = re.findall(r"\bconfigs/\S+\.yaml", text)
    links = re.findall(r"\]\(([^)#:\s]+)\)", text)
    assert files and [name for name in files if not (ROOT / name).exists()] == []
    assert links and [name for name in links if not (ROOT / "leaderboard" / name).exists()] == []
