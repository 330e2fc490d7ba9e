"""Grids under faults: whatever happened, the same command ends with what an undisturbed run leaves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from tests.harness.faults import EXPECTED, Theatre, spoil
from tests.harness.scenarios import TWICE, Damage, Round, Scenario, Start, draw_scenario, read_scenario
from tests.harness.troubles import Trouble

COUNTS = {
    "records": 60,
    "runs": 500,
    "page": 64,
    "any": 624,
    "touches of records": 188,
    "touches of runs": 600,
    "touches of page": 100,
    "touches of any": 888,
}
QUICK = (2, 5, 8, 15)  # of seed 0: together most kinds of faults


@pytest.fixture(scope="module")
def theatre() -> Iterator[Theatre]:
    with Theatre() as theatre:
        yield theatre


@pytest.mark.parametrize("number", [QUICK[0], *(pytest.param(n, marks=pytest.mark.slow) for n in QUICK[1:])])
def test_a_grid_survives_a_scenario_of_faults(theatre, number):
    report = theatre((0, number))
    assert report.faults == [], draw_scenario(0, number, COUNTS)
    assert sum(report.hits[kind] for kind in EXPECTED)
    assert report.hits["looks of a reader"]


@pytest.mark.slow
def test_grids_survive_forty_scenarios_in_which_most_kinds_of_faults_strike(theatre):
    hits: Counter[str] = Counter()
    for number in range(100, 140):
        report = theatre((1, number))
        assert report.faults == [], f"again: python -m tests.harness.faults --seed 1 --only {number}"
        hits.update(report.hits)
    print(hits)
    assert len(EXPECTED & hits.keys()) > len(EXPECTED) * 3 // 4, EXPECTED - hits.keys()


def one(*starts: Start, damage: Damage | None = None) -> Scenario:
    """Return a scenario of one round, or of two with some damage between them."""
    after = [Round((Start("ours"),), (damage,))] if damage else []
    return Scenario(0, 999, (Round(starts), *after))


KILLED = Start("ours", (Trouble("kill", "runs", 46),))  # in its first cell, which has a checkpoint by then


CATCHES = {
    "records are written in place": (one(Start("ours", (Trouble("full", "records", 7),))), "not readable as JSON"),
    "momentum is lost": (one(KILLED), "other weights.safetensors"),
    "no lock is taken": (one(Start("ours"), Start("ours")), "2 records of "),
    "checkpoints are read without their checksum": (
        one(KILLED, damage=Damage("checkpoint", "cut short", 0.0, 0.5)),
        "ours said: ",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("plant", CATCHES)
def test_a_planted_bug_is_seen(theatre, plant):
    scenario, shown = CATCHES[plant]
    faults = theatre(scenario, plant).faults
    assert any(shown in fault for fault in faults), faults


@pytest.mark.slow
@pytest.mark.parametrize("plant", CATCHES)
def test_without_the_bug_nothing_is_seen(theatre, plant):
    assert theatre(CATCHES[plant][0]).faults == []


def test_a_seed_gives_the_same_scenarios_and_two_hundred_have_every_kind_of_fault():
    drawn = [draw_scenario(0, number, COUNTS) for number in range(200)]
    assert drawn == [draw_scenario(0, number, COUNTS) for number in range(200)]
    assert drawn == [read_scenario(json.loads(json.dumps(asdict(scenario)))) for scenario in drawn]
    assert len(set(map(str, drawn))) == 200
    rounds = [one for scenario in drawn for one in scenario.rounds]
    starts = [start for one in rounds for start in one.starts]
    kinds = {trouble.kind for start in starts for trouble in start.troubles}
    kinds |= {one.weather.kind for one in rounds if one.weather} | {TWICE for one in rounds if one.twice}
    kinds |= {f"{damage.what} {damage.how}" for one in rounds for damage in one.damage}
    kinds |= {
        f"{start.signal} of a {'worker' if start.to_worker else 'driver' if start.jobs else 'process'} from outside"
        for start in starts
        if start.signal
    }
    assert kinds == EXPECTED
    assert any(scenario.grids == ("ours", "theirs") for scenario in drawn)
    assert max(len(one.starts) for one in rounds) == 3


def test_damage_changes_a_file_in_the_way_it_says():
    content = bytes(range(100))
    flipped = spoil(content, Damage("checkpoint", "flipped", 0.0, 0.5))
    assert [place for place in range(100) if flipped[place] != content[place]] == [50]
    assert spoil(content, Damage("checkpoint", "cut short", 0.0, 0.25)) == content[:25]
    assert spoil(content, Damage("checkpoint", "emptied", 0.0, 0.25)) == b""
