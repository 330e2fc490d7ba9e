"""Promises of `make claim`: a winner is named where the runs carry one, and nowhere else; bad questions are refused."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from typing import Any

import pytest

from leaderboard.claims.claim import add_arguments, make_claims, render_claims, run
from leaderboard.claims.lookup import ClaimError, name_rows
from leaderboard.tables import stats
from leaderboard.tables.table import plain
from tests.harness.record_factory import make_runs as runs_of
from tests.harness.record_factory import merge

BETTER, EQUAL = (93.0, 93.4, 93.1), (90.0, 90.5, 90.1)


def make_runs(name: str, accuracies: Any, label: str = "", **changes: Any) -> list[dict[str, Any]]:
    return runs_of(name, accuracies, **merge({"method": {"label": label or name}}, changes))


def claim(
    records: list[dict[str, Any]], a: str = "granet", b: str = "rigl", sparsities: str | None = None, **more: Any
):
    (found,) = make_claims(records, a, b, more.pop("task", "auto"), sparsities, **more)
    return found


def two(a: Any = BETTER, b: Any = EQUAL, **changes: Any) -> list[dict[str, Any]]:
    return make_runs("granet", a, **changes) + make_runs("rigl", b, **changes)


# Verdicts


def test_a_planted_strong_difference_is_found_and_named_from_either_side():
    found = claim(two())
    # differences 3.0, 2.9, 3.0
    assert found.verdict == "A is better"
    assert found.difference.mean == pytest.approx(8.9 / 3)
    assert found.seeds == ((0, 1, 2), (0, 1, 2)) and found.left_out == () and found.advice == ()
    assert "A is better: granet, by 2.97 points" in render_claims([found])
    turned = claim(two(), "rigl", "granet")
    assert turned.verdict == "B is better"
    assert "B is better: granet, by 2.97 points" in render_claims([turned])


def test_a_planted_difference_of_none_shows_none_and_says_what_would_have_been_seen():
    # variances 0.0933 and 0.0133, with rounding; what is found in 80 % is held by simulation in test_stats.py
    found = claim(two((93.1, 92.9, 93.5), (93.0, 93.2, 93.2)))
    assert found.verdict == "no difference shown"
    least = stats.smallest_detectable(tuple((v + 0.01**2 / 12) ** 0.5 for v in (0.28 / 3, 0.04 / 3)), (3, 3))
    assert f"a difference of {least:.2f} points or more would have been found in 4 of 5 such" in found.reasons[0]
    (help,) = found.advice
    assert "… (" in help and "run them all before asking again" in help


def test_the_seeds_a_seen_difference_needs_come_with_the_commands_that_make_them():
    found = claim(two((91.0, 92.0, 93.0), {0: 90.0, 1: 90.0, 2: 90.0, 3: 90.0}))
    assert found.verdict == "no difference shown"
    (help,) = found.advice
    needed = stats.seeds_needed(2.0, (1.0, 0.01 / 12**0.5))
    assert needed == 5
    assert help.startswith("about 5 seeds of each would find a difference as large as the observed one (2.00 points)")
    assert "make bench TASK=digits_resnet20 METHOD=granet SPARSITY=0.9 DEVICE=cpu SEED=3,4" in help
    assert "make bench TASK=digits_resnet20 METHOD=rigl SPARSITY=0.9 DEVICE=cpu SEED=4" in help


def test_a_spread_of_zero_without_a_step_is_not_decided():
    found = claim(two((95.0,) * 3, (93.0,) * 3, data={"test": 0}))
    assert found.verdict == "not decided"
    assert "no spread" in found.reasons[0]


def test_two_seeds_carry_no_winner_however_large_the_difference():
    found = claim(two((99.0, 99.1), (50.0, 50.1, 50.2)))
    assert found.verdict == "not decided"
    assert found.reasons == ("2 seeds of granet, at least 3 are needed",)
    assert (
        "make runs of 1 more:\n      make bench TASK=digits_resnet20 METHOD=granet SPARSITY=0.9 DEVICE=cpu SEED=2"
        in (found.advice[0])
    )
    assert "METHOD=rigl" not in found.advice[0]


def test_rows_of_different_seeds_are_compared_with_all_of_them():
    found = claim(two({0: 93.0, 1: 93.4, 2: 93.1}, {2: 90.1, 5: 90.0, 6: 90.5, 9: 90.2}))
    assert (found.verdict, found.seeds, found.left_out) == ("A is better", ((0, 1, 2), (2, 5, 6, 9)), ())
    assert found.difference.mean == pytest.approx(279.5 / 3 - 90.2)
    text = render_claims([found])
    assert "93.17 ± 0.21 (n=3)" in text and "90.20 ± 0.22 (n=4)" in text and "2, 5, 6, 9" in text


@pytest.mark.parametrize("loser", [True, False])
def test_a_diverged_run_of_either_row_leaves_it_undecided_and_is_named(loser):
    runs = two({0: 93.0, 1: 93.4, 2: 93.1, 3: 93.2}, {0: 90.0, 1: 90.5, 2: 90.1, 3: 90.2})
    which = "rigl" if loser else "granet"
    kept = [r for r in runs if not (r["method"]["name"] == which and r["seed"] == 3)]
    assert claim(kept).verdict == "A is better"  # without the diverged run there would be a winner
    found = claim(kept + make_runs(which, {3: None}))
    assert found.verdict == "not decided"
    assert found.left_out == (f"{which}, seed 3: diverged",)
    assert any(f"{which} diverged at seed 3" in reason for reason in found.reasons)
    assert "SEED=3" not in " ".join(found.advice)


def test_a_diverged_seed_is_passed_over_when_more_are_asked_for():
    found = claim(two((93.0, 93.4, None), (90.0, 90.5, None)))
    assert found.left_out == ("granet, seed 2: diverged", "rigl, seed 2: diverged")
    assert "SEED=3" in found.advice[0] and "SEED=2" not in found.advice[0]


def test_runs_of_different_devices_carry_no_winner():
    one = make_runs("granet", BETTER, environment={"device_name": "chip one"})
    other = make_runs("rigl", EQUAL, environment={"device_name": "chip two"})
    found = claim(one + other)
    assert found.verdict == "not decided"
    assert found.reasons == ("the runs were made on different devices: cpu (chip one) for A, cpu (chip two) for B",)
    same = make_runs("rigl", EQUAL, environment={"device_name": "chip one"})
    assert claim(one + same).verdict == "A is better"
    for record in (each := two()):  # both have the same share on each
        record["environment"] = {**record["environment"], "device_name": f"chip {record['seed']}"}
    assert claim(each).verdict == "A is better"
    each[0]["environment"]["device_name"] = "chip 1"
    each[1]["environment"]["device_name"] = "chip 2"
    each[2]["environment"]["device_name"] = "chip 0"
    assert claim(each).verdict == "A is better"
    each[0]["environment"]["device_name"] = "chip 0"  # twice, and chip 1 not at all
    assert claim(each).verdict == "not decided"
    uneven = two()
    for record in uneven[1:4]:
        record["environment"] = {**record["environment"], "device_name": "another"}
    (reason,) = claim(uneven).reasons
    assert reason.startswith("A and B have different shares of their runs on ")
    gpu = make_runs("rigl", EQUAL, environment={"device": "cuda", "device_name": "chip one"})
    assert claim(one + gpu).verdict == "not decided"


def test_two_versions_of_a_method_carry_no_winner_but_each_can_be_named():
    older = make_runs("granet", {0: 93.0, 1: 93.4}, method={"sha256": "11" * 32})
    newer = make_runs("granet", {1: 93.4, 2: 93.1, 3: 93.2}, method={"sha256": "22" * 32})
    records = older + newer + make_runs("rigl", (*EQUAL, 90.2))
    found = claim(records)
    assert found.verdict == "not decided"
    assert found.reasons == ("granet is the name of 2 rows, of versions of its file, settings or groups",)
    assert "'granet (file 11111111)' or 'granet (file 22222222)'" in found.advice[0]
    named = claim(records, "granet (file 22222222)")
    assert (named.verdict, named.seeds[0]) == ("A is better", (1, 2, 3))


def test_rows_whose_settings_are_written_alike_are_not_one_row():
    runs = [
        make_runs("granet", (93.0, 93.4, 93.1), method={"settings": {"x": x}, "changed": {"x": x}}) for x in (1, "1")
    ]
    records = [*runs[0], *runs[1], *make_runs("rigl", (*EQUAL, 90.2))]
    names = sorted(name for name in name_rows(records) if "settings" in name)
    assert len(names) == 2
    label = names[0].partition(" (settings")[0]
    found = claim(records, label)
    assert found.verdict == "not decided" and all(f"'{name}'" in found.advice[0] for name in names)
    assert claim(records, names[0]).verdict == "A is better"
    other = make_runs("granet", (80.0, 80.1, 80.2), method={"group": "dense-to-sparse", "sha256": "22" * 32})
    records = [*make_runs("granet", (93.0, 93.4, 93.1)), *other, *make_runs("rigl", (*EQUAL, 90.2))]
    assert claim(records).verdict == "not decided" and "'granet (dense-to-sparse)'" in claim(records).advice[0]
    assert claim(records, "granet (dense-to-sparse)").verdict == "B is better"


# Numbers


def test_the_order_of_records_does_not_matter():
    records = (
        two() + two((91.0, 92.0, 93.0), sparsity=0.8) + make_runs("granet", {0: 9.0}, finished="2025-03-01T00:00:00Z")
    )
    text = render_claims(make_claims(records, "granet", "rigl", "auto", None))
    for trial in range(5):
        random.Random(trial).shuffle(records)
        assert render_claims(make_claims(records, "granet", "rigl", "auto", None)) == text


def test_p_is_corrected_over_the_sparsities_asked_and_no_others():
    weak = two((91.0, 91.5, 91.7), (90.0, 90.5, 90.2), sparsity=0.9)
    records = (
        weak
        + two((91.0, 90.0, 92.0), (90.0, 91.0, 92.0), sparsity=0.8)
        + two((91.0, 90, 92), (90, 91, 92), sparsity=0.5)
    )
    alone = claim(records, sparsities="0.9")
    assert alone.adjusted_p == alone.difference.p
    assert 0.05 / 3 < alone.difference.p <= 0.05 and alone.verdict == "A is better"
    both = make_claims(records, "granet", "rigl", "auto", "0.5,0.9,0.8")
    assert [one.sparsity for one in both] == [0.5, 0.9, 0.8]
    assert both[1].adjusted_p == pytest.approx(3 * alone.difference.p)
    assert both[1].verdict == "no difference shown"
    assert "after Holm's correction over 3 sparsities" in both[1].reasons[0]
    # what would help and what would have been seen are at a third of the level, as the correction asks
    spreads = alone.spreads(0.01)
    assert f"{stats.smallest_detectable(spreads, (3, 3), 0.05 / 3):.2f} points or more" in both[1].reasons[1]
    assert both[1].advice[0].startswith(f"about {stats.seeds_needed(alone.difference.mean, spreads, 0.05 / 3)} seeds")
    assert stats.seeds_needed(0.8, spreads, 0.05 / 3) > stats.seeds_needed(0.8, spreads)


def test_selected_on_validation_can_be_asked_for_and_a_missing_one_is_left_out():
    records = two((93.0, 93.4, 93.1, 93.3), (90.0, 90.5, 90.1, 90.2))
    records[3]["accuracy_pct"]["validation_selected"] = None
    found = claim(records, metric="validation_selected")
    assert found.score_a.mean == pytest.approx(279.5 / 3 - 1)
    assert found.left_out == ("granet, seed 3: no accuracy at the epoch selected on validation",)


def test_a_dense_row_is_compared_at_the_sparsity_of_the_other():
    found = claim(make_runs("dense", BETTER) + make_runs("rigl", EQUAL), "dense", "rigl")
    assert (found.verdict, found.sparsity, found.score_a.inference_share) == ("A is better", 0.9, 1.0)
    few = claim(make_runs("dense", (93.0, 93.4)) + make_runs("rigl", EQUAL), "dense", "rigl")
    assert "METHOD=dense SPARSITY=0 DEVICE=cpu SEED=2" in few.advice[0]
    dense = make_runs("dense", BETTER) + make_runs("dense", EQUAL, "dense (x=1)")
    assert claim(dense, "dense", "dense:x=1").sparsity == 0.0


# Questions


@pytest.mark.parametrize(
    "asked", ["granet (start_sparsity=0.0)", "granet:start_sparsity=0", "granet ( start_sparsity = 0 )"]
)
def test_a_row_is_found_by_its_label_or_its_shorthand(asked):
    records = two() + make_runs("granet", EQUAL, "granet (start_sparsity=0.0)")
    assert claim(records, asked, "granet").a == "granet (start_sparsity=0.0)"


def test_an_unknown_row_or_page_gets_the_nearest_and_a_shorthand_of_two_rows_both():
    with pytest.raises(ClaimError, match=r"unknown row 'granett': did you mean 'granet'.*granet, rigl"):
        claim(two(), "granett")
    with pytest.raises(ClaimError, match="unknown page 'digits_resnet2': did you mean 'digits_resnet20'"):
        claim(two(), task="digits_resnet2")
    with pytest.raises(ClaimError, match="no record yet"):
        claim([])
    alike = two() + make_runs("granet", EQUAL, "granet (x=0.0)") + make_runs("granet", EQUAL, "granet (x=0)")
    with pytest.raises(ClaimError, match=r"granet \(x=0\), granet \(x=0.0\)"):
        claim(alike, "granet:x=0")


def test_several_pages_are_not_chosen_among():
    records = two() + two(page={"name": "other", "variant": "ffff0000", "title": "Other"})
    with pytest.raises(ClaimError, match="TASK=digits_resnet20 or TASK=other"):
        claim(records)
    assert claim(records, task="other").section == "Other"
    elsewhere = make_runs("set", EQUAL, page={"name": "other", "variant": "ffff0000"})
    assert claim(two() + elsewhere).about.startswith("page digits_resnet20,")


def test_sections_are_never_mixed():
    records = make_runs("granet", BETTER) + make_runs("rigl", EQUAL, protocol=2)
    with pytest.raises(ClaimError, match="no table has both") as caught:
        claim(records)
    assert str(caught.value).count("make bench") == 2


def test_the_unchanged_page_under_the_newest_protocol_counts_and_it_is_said():
    changed = {"variant": "ffff0000", "changed": {"epochs": 9}}
    records = two() + two(EQUAL, BETTER, protocol=2) + two((50.0, 51.0, 52.0), protocol=3, page=changed)
    found = claim(records)
    assert found.verdict == "B is better" and "protocol 2" in found.about
    assert (
        "3 tables of page 'digits_resnet20' have both rows: this one is the page as it comes, newest protocol"
        in found.about
    )
    assert "TASK=digits_resnet20@p1@0a1b2c3d@" in found.about
    assert claim(records, task="digits_resnet20@p1").verdict == "A is better"
    assert claim(records, task="auto@ffff0000").difference.mean == pytest.approx(51 - 270.6 / 3)
    with pytest.raises(ClaimError, match=r"unknown mark of page .*'nothing'"):
        claim(records, task="digits_resnet20@nothing")


def test_sections_that_only_a_mark_tells_apart_are_refused_with_the_mark():
    records = two() + two(EQUAL, BETTER, environment={"precision": "bf16"})
    with pytest.raises(ClaimError, match="2 tables of page") as caught:
        claim(records)
    assert "@bf16" in str(caught.value)
    assert claim(records, task="digits_resnet20@bf16").verdict == "B is better"


def test_a_sparsity_without_runs_gets_those_there_are_and_the_command():
    records = two() + make_runs(
        "granet", BETTER, "granet (start_sparsity=0.0)", method={"changed": {"start_sparsity": 0.0}}
    )
    with pytest.raises(ClaimError) as caught:
        claim(records, "granet:start_sparsity=0", sparsities="0.9,0.95")
    text = str(caught.value)
    assert "granet (start_sparsity=0.0) at 0.95, rigl at 0.95" in text and "rigl has 0.9" in text
    command = (
        'make bench TASK=digits_resnet20 METHOD=granet SPARSITY=0.95 DEVICE=cpu SEED=0,1,2 ARGS="start_sparsity=0.0"'
    )
    assert command in text


def test_rows_without_a_common_sparsity_are_refused():
    with pytest.raises(ClaimError, match=r"no sparsity in common: granet has 0\.9; rigl has 0\.8"):
        claim(make_runs("granet", BETTER) + make_runs("rigl", EQUAL, sparsity=0.8))


@pytest.mark.parametrize(
    ("asked", "said"), [("90", "did you mean 0.9?"), ("1", r"\[0, 1\)"), ("nan", "nan"), ("0.9,", "''")]
)
def test_what_is_no_sparsity_is_refused(asked, said):
    with pytest.raises(ClaimError, match=said):
        claim(two(), sparsities=asked)


@pytest.mark.parametrize(("metric", "why"), [("best_on_test", "chosen on the test set"), ("speed", "no accuracy")])
def test_a_metric_that_cannot_carry_a_claim_is_refused(metric, why):
    with pytest.raises(ClaimError, match=why):
        claim(two(), metric=metric)


# Texts


def test_texts_from_records_cannot_move_the_cursor():
    evil = "granet\x1b[2J\r\n\u202eevil\ud800"
    records = make_runs("granet", BETTER, evil, environment={"device_name": evil}, page={"title": evil, "name": evil})
    records += make_runs("rigl", EQUAL, environment={"device_name": "b" + evil}, page={"title": evil, "name": evil})
    name = plain(evil)
    texts = []
    for question in ({"a": "nobody"}, {"a": name, "sparsities": "0.5"}, {"a": name, "task": "nowhere"}):
        with pytest.raises(ClaimError) as caught:
            claim(records, **question)
        texts.append(str(caught.value))
    for text in texts:
        assert all(character.isprintable() or character == "\n" for character in text)
        assert "evil" in text
    with pytest.raises(ClaimError) as caught:
        claim(two(), evil)
    assert str(caught.value).isprintable()


def ask(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_an_answer_goes_to_the_terminal_and_a_bad_question_to_stderr(capsys):
    assert run(ask("--a", "granet", "--b", "rigl"), two()) == 0
    out, err = capsys.readouterr()
    assert "A is better: granet" in out and err == ""
    assert run(ask("--a", "granet", "--b", "rigl", "--sparsity", "0.5", "--task", "digits_resnet20"), two()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: there is no run of granet at 0.5")
    assert run(ask("--a", "granet", "--b", "rigl", "--metric", "best_on_test"), two()) == 2


def test_the_module_loads_without_scipy():
    code = "import sys, leaderboard.claims.claim; sys.exit('scipy' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_row_of_an_older_setting_of_the_page_is_found_by_it_and_its_command_asks_for_it():
    def runs(every: int, values: Any, month: int) -> list[dict[str, Any]]:
        made = make_runs("rigl", values, method={"settings": {"update_every": every}})
        stamp = f"2025-0{month}-01T00:00:00Z"
        return [{**run, "started": stamp, "finished": stamp, "run": f"{every}.{run['seed']}"} for run in made]

    records = [*runs(50, EQUAL, 3), *runs(140, BETTER, 4)]
    found = claim(records, "rigl", "rigl:update_every=50")
    assert (found.verdict, found.a, found.b) == ("A is better", "rigl", "rigl (update_every=50)")
    found = claim([run for run in records if run["seed"] < 2], "rigl", "rigl (update_every=50)")
    commands = [text for text in "\n".join(found.advice).splitlines() if "make bench" in text]
    assert ["update_every=50" in text for text in commands] == [False, True]
