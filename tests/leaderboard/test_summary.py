"""Promises of the results' first screen: who may be called best, which statements hold, and what growth costs."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from leaderboard.paper.published import load_tables
from leaderboard.results.best import best_lines, find_best, tell_best
from leaderboard.results.growing import find_grown, growing_lines, tell_growing
from leaderboard.results.longer import find_longer, longer_lines, tell_longer
from leaderboard.results.scope import Section, table_sections
from leaderboard.results.summary import summary_lines
from tests.harness.record_factory import make_runs, merge, table

TABLES = load_tables()
HIGH, LOW = (93.0, 93.4, 93.1), (90.0, 90.5, 90.1)  # apart by 3.0, 2.9, 3.0
WIDE = (96.0, 89.0, 93.0)  # the highest mean after HIGH, and apart from nothing


def section(*runs: list[dict[str, Any]]) -> Section:
    (found,) = table_sections(list(itertools.chain(*runs)))
    return found


def best(*runs: list[dict[str, Any]]) -> dict[Any, list[str]]:
    """Return the names of the best by question."""
    answers = find_best(section(*runs), TABLES)
    return {question: [point.key for point in found.points] for question, found in answers.items()}


def cost(train: float, inference: float) -> dict[str, Any]:
    return {"macs": {"train_share": train, "inference_share": inference}}


# Which rows are best


def test_at_equal_sparsity_the_best_are_those_that_none_is_significantly_above() -> None:
    found = best(make_runs("gmp", LOW), make_runs("granet", HIGH), make_runs("set", WIDE))
    assert found["sparsity", 0.9] == ["granet (90 %)", "set (90 %)"]
    assert best(make_runs("gmp", LOW), make_runs("granet", HIGH))["sparsity", 0.9] == ["granet (90 %)"]
    assert find_best(section(make_runs("granet", HIGH)), TABLES) == {}  # nobody to beat


def test_within_a_budget_rows_compete_at_any_sparsity_and_what_is_dearer_does_not_count() -> None:
    runs = [
        make_runs("granet", HIGH, **cost(0.3, 0.15)),
        make_runs("granet", (80.0, 80.3, 80.1), sparsity=0.98, **cost(0.15, 0.04)),
        make_runs("set", LOW, sparsity=0.98, **cost(0.04, 0.03)),
        make_runs("snip", (70.0, 70.4, 70.2), **cost(0.05, 0.3)),
    ]
    found = best(*runs)
    assert found["train", 0.05] == ["set (98 %)"]  # snip costs as much and is below; set is above it
    assert found["train", 0.1] == found["train", 0.2] == ["set (98 %)"]
    assert found["train", 0.4] == ["granet (90 %)"]
    assert found["inference", 0.05] == ["set (98 %)"] and found["inference", 0.2] == ["granet (90 %)"]
    assert best(*runs[:2]).keys() == {("train", 0.4), ("inference", 0.2)}  # elsewhere it would be alone


@pytest.mark.parametrize(
    ("other", "takes_part"),
    [
        (make_runs("granet", HIGH, method={"changed": {"start_sparsity": 0.0}}), True),  # a row of the paper's tables
        (make_runs("granet", HIGH, method={"changed": {"update_every": 7}}), False),
        (make_runs("granet", HIGH[:2]), False),
        (make_runs("granet", (*HIGH, None)), False),
        (make_runs("static", HIGH, method={"group": "control", "donor": {"run": "x", "label": "y"}}), False),
        (make_runs("dense", HIGH), False),
    ],
    ids=["paper's", "another setting", "two seeds", "diverged", "control of a run", "dense"],
)
def test_only_rows_that_may_be_compared_are_called_best(other: list[dict[str, Any]], takes_part: bool) -> None:
    defaults = make_runs("granet", LOW, method={"settings": {"start_sparsity": 0.5, "update_every": 5}})
    if other[0]["method"]["changed"]:
        other = [merge(run, {"method": {"settings": defaults[0]["method"]["settings"]}}) for run in other]
    found = best(defaults if other[0]["method"]["changed"] else [], make_runs("set", LOW), make_runs("gmp", LOW), other)
    names = [name.split(" (9")[0] for name in found["sparsity", 0.9]]
    assert (other[0]["method"]["name"] in {name.split()[0] for name in names} and len(names) == 1) == takes_part


OLD = {"started": "2024-01-01T00:00:00Z", "finished": "2024-01-01T01:00:00Z"}


@pytest.mark.parametrize(
    ("new", "best_mean"),
    [(LOW, 90.2), (LOW[:2], 93.17), ((*LOW, None), None)],
    ids=["the newest", "the newest with enough seeds", "none where it diverged"],
)
def test_of_several_versions_of_a_file_one_takes_part_under_its_plain_name(new: Any, best_mean: float | None) -> None:
    old = make_runs("granet", HIGH, method={"sha256": "ef" * 32}, **OLD)
    rivals = [make_runs(name, (80.0, 80.2, 80.4)) for name in ("set", "gmp")]
    first = find_best(section(old, make_runs("granet", new), *rivals), TABLES)["sparsity", 0.9].points[0]
    assert (first.name == "granet") == (best_mean is not None)
    assert best_mean is None or first.mean == pytest.approx(best_mean, abs=0.01)


def test_a_file_from_elsewhere_with_a_name_of_the_suites_competes_beside_it() -> None:
    own = make_runs("granet", HIGH, method={"source": "methods/granet.py"}, **OLD)
    theirs = make_runs("granet", LOW, method={"source": "/home/me/granet.py", "sha256": "ef" * 32})
    found = find_best(section(own, theirs), TABLES)["sparsity", 0.9]
    assert [(point.name, round(point.mean, 2)) for point in found.points] == [("granet (file abababab)", 93.17)]


def test_a_row_whose_sparsity_is_an_outcome_does_not_compete_if_any_run_of_it_diverged() -> None:
    outcome = {"method": {"budget": "outcome"}}
    runs = [*make_runs("str", HIGH, **outcome), *make_runs("str", {7: None}, sparsity=0.98, **outcome)]
    assert best(runs, make_runs("set", LOW), make_runs("gmp", LOW))["sparsity", 0.9] == ["gmp (90 %)", "set (90 %)"]


def lines_of(*sections: Section) -> list[str]:
    return best_lines([(one, find_best(one, TABLES)) for one in sections])


def test_the_table_names_the_best_then_those_that_cannot_be_ruled_out() -> None:
    names = ("a", "b", "c", "d", "e", "f", "g")
    equal = [make_runs(name, [value + place / 1000 for value in WIDE]) for place, name in enumerate(names)]
    head, first, *_ = table("\n".join(lines_of(section(*equal))))
    assert head == ["highest mean", "ResNet-20 on digits"]
    assert first == ["at 90 % sparsity", "g 92.67 (n=3) *or* f, e, 4 more of 7"]
    assert table("\n".join(lines_of(section(*equal[:6]))))[1][1] == "f 92.67 (n=3) *or* e, d, c, b, a of 6"
    sure = "\n".join(lines_of(section(make_runs("granet", HIGH), make_runs("set", LOW))))
    assert "| at 90 % sparsity | **granet 93.17** (n=3) of 2 |" in sure
    assert "| training FLOPs ≤ 0.4× | **granet (90 %) 93.17** (n=3) of 2 |" in sure and "inference FLOPs ≤" not in sure


def test_the_sentence_tells_the_best_beside_the_dense_network() -> None:
    dense = make_runs("dense", (99.0, 99.0))
    one = section(make_runs("granet", HIGH), make_runs("set", LOW), make_runs("gmp", WIDE), dense)
    assert tell_best(one, find_best(one, TABLES)) == (
        "**ResNet-20 on digits** (dense 99.00, near the ceiling): at 90 % `granet` has the highest mean, 93.17, "
        "for 0.28× the FLOPs of dense training, 5.83 below dense (of 2 others not ruled out: `gmp` 92.67)."
    )
    one = section(make_runs("granet", HIGH, method={"reference": "this suite's variant of X"}), make_runs("set", LOW))
    assert tell_best(one, find_best(one, TABLES)) == (
        "**ResNet-20 on digits**: at 90 % `granet` (ours) has the highest mean, 93.17, for 0.28× the FLOPs of dense "
        "training (above the one other)."
    )


def test_pages_stand_side_by_side_four_to_a_table() -> None:
    pages = [
        section(*(make_runs(name, LOW, page={"title": f"page {n}"}) for name in ("granet", "set"))) for n in range(5)
    ]
    heads = [line for line in lines_of(*pages) if line.startswith("| highest mean |")]
    assert [line.count("| page") for line in heads] == [4, 1]
    assert best_lines([]) == []
    assert "No page has two rows to compare yet." in summary_lines([], [], [], [], TABLES)


# Growth into dead filters


def grow(name: str, interval: int, accuracies: Any, dead: Any, **changes: Any) -> list[dict[str, Any]]:
    """Return runs at an interval, of 100 filters with so many dead ones; None where a record does not tell."""
    own = {
        "method": {"settings": {"update_every": 140}, "source": f"methods/{name}.py"},
        "page": {"settings": {"batch_size": 10}},
    }
    if interval != 140:
        own = merge(own, {"method": {"changed": {"update_every": interval}}})
    runs = make_runs(name, accuracies, **merge(own, changes))
    return [
        run if count is None else {**run, "dead": {"filters": count, "of": 100}}
        for run, count in zip(runs, dead, strict=True)
    ]


def grown() -> list[dict[str, Any]]:
    return [
        *grow("rigl_itop", 140, LOW, (20, 21, 22)),
        *grow("rigl_itop", 50, LOW, (30, 31, 33)),
        *grow("rigl_itop_filter", 140, HIGH, (1, 2, 4)),
        *make_runs("static", LOW, method={"source": "methods/static.py"}),
    ]


def test_growth_interval_and_random_masks_are_compared_apart() -> None:
    (one,) = find_grown([section(grown())])
    assert [found.words for found in one.compared] == [
        "rigl_itop_filter − rigl_itop",
        "ΔT = 140 − ΔT = 50, rigl_itop",
        "rigl_itop − static, mean over ΔT",
        "rigl_itop_filter − static",
    ]
    growth, interval, plain, _ = (found.differences for found in one.compared)
    # growth at ΔT = 140 alone, where both are; random masks with the mean over both ΔT, by seed
    assert growth[0].mean == pytest.approx(8.9 / 3) and growth[1].mean == pytest.approx(-56 / 3)
    assert interval[0].mean == 0.0 and interval[1].mean == pytest.approx(-31 / 3)
    assert plain[0].mean == 0.0 and plain[1].n == 0  # no record of random masks tells of dead filters
    # six have a p: growth and interval twice, random masks in accuracy alone
    alone = growth[0].p
    ps = sorted(d.p for found in one.compared for d in found.differences if d.n > 2 and d.p is not None)
    holm = max((6 - place) * p for place, p in enumerate(ps) if p <= alone)
    assert len(ps) == 6 and one.compared[0].ps[0] == pytest.approx(holm, rel=1e-6)
    assert one.compared[0].sure(0) and one.compared[0].sure(1) and not one.compared[1].sure(0)


def test_the_mean_over_intervals_is_of_seeds_that_all_have_and_enough_others_are_compared_by_themselves() -> None:
    runs = [
        *grow("rigl_itop", 140, (90.0,) * 5, (1,) * 5),
        *grow("rigl_itop", 50, (90.0, 80.0), (1, 1)),
        *grow("rigl_itop_filter", 140, (91.0, 92.0, 93.0, 94.0, 95.0), (1, 2, 3, 4, 6)),
        *grow("rigl_itop_filter", 50, (93.0, 92.0), (1, 1)),
    ]
    (one,) = find_grown([section(runs)])
    both, alone, interval = one.compared
    assert both.words == "rigl_itop_filter − rigl_itop, mean over ΔT"
    assert (both.differences[0].n, both.differences[0].mean) == (2, pytest.approx((2 + 7) / 2))  # 1 and 3; 2 and 12
    assert alone.words == "rigl_itop_filter − rigl_itop, ΔT = 140, other seeds"
    assert [(found.n, found.mean) for found in alone.differences] == [(3, 4.0), (3, pytest.approx(10 / 3))]
    assert interval.words == "ΔT = 140 − ΔT = 50, rigl_itop and rigl_itop_filter"
    few = [run for run in runs if run["seed"] < 4]
    assert [found.words for found in find_grown([section(few)])[0].compared] == [both.words, interval.words]


def test_p_is_corrected_over_all_comparisons_of_a_page() -> None:
    harder = [{**run, "sparsity": 0.98} for run in grown()]
    (one,), (both,) = find_grown([section(grown())]), find_grown([section(grown(), harder)])
    alone = {p for found in one.compared for p in found.ps if p is not None}
    least = [min(p for of in found.compared for p in of.ps if p is not None) for found in (one, both)]
    assert least[1] == pytest.approx(2 * least[0]) and least[0] == min(alone)


def test_the_sentence_names_what_is_significant_and_counts_the_rest() -> None:
    found = find_grown([section(grown())])
    (told,) = tell_growing(found)
    assert "Significant of 6 comparisons: on ResNet-20 on digits, at 90 % rigl_itop_filter − rigl_itop: " in told
    assert "+2.97 points of accuracy and −18.67 points of dead filters" in told
    assert "; at 90 % ΔT = 140 − ΔT = 50, rigl_itop: −10.33 points of dead filters" in told
    assert "rigl_itop − static" not in told
    text = "\n".join(growing_lines(found))
    title = text.splitlines()[0].removeprefix("### ")
    assert told.split("](#")[1].split(")")[0] == re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-")
    # 3 epochs of ten steps: none left after two updates every 140
    assert ["rigl_itop", "90 %", "140", "2", "·", "90.20 ± 0.26 (n=3)", "21.00 ± 1.00 (n=3)"] in table(text)


def test_equal_rows_are_no_finding_and_two_seeds_no_test() -> None:
    equal = [*grow("rigl_itop", 140, LOW, (1, 2, 3)), *grow("rigl_itop", 50, LOW[:2], (4, 5))]
    equal += grow("rigl_itop_filter", 140, (90.1, 90.4, 90.2), (2, 1, 4))
    (found,) = find_grown([section(equal)])
    assert [len([p for p in one.ps if p is not None]) for one in found.compared] == [2, 0]  # of growth; of interval
    assert tell_growing([found])[0].count("Open: none of 2 comparisons is significant") == 1


def test_without_both_methods_or_a_second_interval_nothing_is_said() -> None:
    one = [*grow("rigl_itop", 140, LOW, (1, 2, 3)), *grow("rigl_itop_filter", 140, HIGH, (1, 2, 4))]
    other = grow("rigl_itop_filter", 50, HIGH, (1, 2, 3), method={"changed": {"update_every": 50, "prune_rate": 0.3}})
    elsewhere = grow("rigl_itop_filter", 50, HIGH, (1, 2, 3), method={"source": "/home/me/rigl_itop_filter.py"})
    older = grow("rigl_itop_filter", 50, HIGH, (1, 2, 3), method={"sha256": "ef" * 32}, **OLD)
    for more in ([], other, elsewhere, older):
        assert find_grown([section(one, more)]) == []
    assert growing_lines([]) == [] and tell_growing([]) == []


def test_a_repeat_tells_of_dead_filters_only_where_it_has_the_very_masks() -> None:
    counted = grow("rigl_itop", 140, (90.0, 91.0), (None, None))
    again = {"finished": "2025-02-01T12:00:00Z", "started": "2025-02-01T11:00:00Z"}
    same, unlike = grow("rigl_itop", 140, (90.0, 91.0), (5, 6), **again)
    repeats = [same, {**unlike, "masks_sha256": "00" * 32}]
    runs = [*counted, *repeats, *grow("rigl_itop", 50, LOW, (1, 2, 3)), *grow("rigl_itop_filter", 50, LOW, (1, 2, 3))]
    (found,) = find_grown([section(runs)])
    lines = {(one.method, one.interval): one.dead() for one in found.lines}
    assert lines["rigl_itop", 140] == {0: 5.0}


# What more training changes


def long(name: str, accuracies: Any, **changes: Any) -> list[dict[str, Any]]:
    """Return runs of a method on the same images for 12 epochs, where `make_runs` has 3."""
    page = {"name": "longer", "variant": "b", "title": "ResNet-20, longer", "settings": {"epochs": 12, "lr": 0.2}}
    return own(name, accuracies, **merge({"page": page}, changes))


def own(name: str, accuracies: Any, **changes: Any) -> list[dict[str, Any]]:
    return make_runs(name, accuracies, **merge({"method": {"source": f"methods/{name}.py"}}, changes))


def short_runs() -> list[dict[str, Any]]:
    return [*own("granet", LOW), *own("gmp", LOW), *own("rigl_itop", LOW), *own("set", HIGH)]


def long_runs(**changes: Any) -> list[dict[str, Any]]:
    return [*long("granet", HIGH, **changes), *long("gmp", LOW, **changes), *long("rigl_itop", HIGH, **changes)]


def test_what_the_longer_page_adds_to_a_difference_is_told_and_what_stays_is_not() -> None:
    (found,) = find_longer(table_sections(short_runs() + long_runs()))
    by_pair = {(change.a, change.b): change for change in found.changes}
    assert found.epochs == "3 → 12 epochs" and list(by_pair) == [("granet", "rigl_itop"), ("granet", "gmp")]
    grew = by_pair["granet", "gmp"]
    assert (grew.before, grew.after, grew.difference.mean) == (0.0, pytest.approx(8.9 / 3), pytest.approx(8.9 / 3))
    assert by_pair["granet", "rigl_itop"].difference.mean == 0.0
    assert grew.p == pytest.approx(8 * grew.difference.p, rel=1e-6)  # Holm's over all statements
    (told,) = tell_longer([found])
    assert told == (
        "**What more training changes** (3 → 12 epochs, to ResNet-20, longer): of 2 changes 1 is significant: `granet` "
        "− `gmp` at 90 % from +0.00 to +2.97; not shown: `granet` − `rigl_itop` at 90 % from +0.00 to +0.00. The pages "
        "also differ in lr ([all](#what-more-training-changes))."
    )
    text = "\n".join(longer_lines([found]))
    assert text.startswith("### What more training changes\n") and "They also differ in lr." in text
    assert ["granet − gmp", "90 %", "+0.00", "+2.97", "**+2.97**"] in [row[:5] for row in table(text)]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"fingerprint": "f" * 64}},
        {"page": {"settings": {"model": "vgg"}}},
        {"page": {"settings": {"epochs": 3}}},
        {"sparsity": 0.98},
        {"method": {"source": "elsewhere.py"}},
    ],
)
def test_what_differs_in_more_than_length_is_not_compared(changes: dict[str, Any]) -> None:
    assert find_longer(table_sections(short_runs() + long_runs(**changes))) == []


def test_two_seeds_or_a_run_that_diverged_carry_no_change() -> None:
    for lacking in ((93.0, 93.4), (93.0, 93.4, 93.1, None)):
        runs = short_runs() + long_runs() + long("set", HIGH)
        runs = [run for run in runs if (run["method"]["name"], run["page"]["name"]) != ("granet", "longer")]
        (found,) = find_longer(table_sections([*runs, *long("granet", lacking)]))
        assert [(change.a, change.b) for change in found.changes] == [("rigl_itop", "set")]
