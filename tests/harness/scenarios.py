"""Scenarios of faults: which processes run a grid, what goes wrong in and around them, drawn with a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tests.harness.troubles import FAILURES, KINDS, Trouble

WEATHER = ("records away",)  # what happens to the folders from outside while processes run
DAMAGE = {
    "checkpoint": ("cut short", "emptied", "flipped"),
    "finished record": ("cut short", "emptied", "flipped"),
    "lock": ("stale",),
    "hidden file": ("left behind",),
}
TWICE = "started twice"
GRIDS = ("ours", "theirs")  # of two users; they have cells in common


@dataclass(frozen=True)
class Start:
    """A process and what goes wrong in it."""

    command: str  # one of GRIDS, or "cell": a single cell, the first of both grids
    troubles: tuple[Trouble, ...] = ()
    jobs: int = 0  # worker processes of its own; 0 = it trains by itself
    signal: str = ""  # "kill" or "term" from outside
    to_worker: bool = False  # whether that is sent to a worker of it
    after_s: float = 0.0  # when that is sent


@dataclass(frozen=True)
class Weather:
    """Something that happens to the folders from outside, begun by a pause at a counted operation, ended by time."""

    kind: str  # one of WEATHER
    for_s: float


@dataclass(frozen=True)
class Damage:
    """A file that is damaged between two rounds: the `which`-th, as a share, of those there are."""

    what: str
    how: str
    which: float
    at: float  # the byte that is flipped, or where the file is cut, as a share of its length


@dataclass(frozen=True)
class Round:
    """Processes that run side by side, after some damage and under some weather."""

    starts: tuple[Start, ...]
    damage: tuple[Damage, ...] = ()
    weather: Weather | None = None
    # Once the first process is paused, its cell is started once more, which must be refused, and the others start.
    twice: bool = False


@dataclass(frozen=True)
class Scenario:
    """Rounds of faults on one folder, after which everything is run once more undisturbed."""

    seed: int
    number: int
    rounds: tuple[Round, ...]

    @property
    def grids(self) -> tuple[str, ...]:
        """The grids that take part."""
        used = {start.command for one in self.rounds for start in one.starts}
        return tuple(name for name in GRIDS if name in used or name == GRIDS[0])


def read_scenario(content: dict[str, Any]) -> Scenario:
    """Return the scenario that `dataclasses.asdict` made `content` of."""
    rounds = [
        Round(
            tuple(Start(**{**s, "troubles": tuple(Trouble(**t) for t in s["troubles"])}) for s in one["starts"]),
            tuple(Damage(**damage) for damage in one["damage"]),
            Weather(**one["weather"]) if one["weather"] else None,
            one["twice"],
        )
        for one in content["rounds"]
    ]
    return Scenario(content["seed"], content["number"], tuple(rounds))


def draw_scenario(seed: int, number: int, counts: Mapping[str, int]) -> Scenario:
    """Draw a scenario; `counts` are the operations of an undisturbed run of the grid, by place.

    Invariant: the same arguments give the same scenario.
    """
    random = Random(f"faults {seed} {number}")
    both = random.random() < 0.3
    rounds: list[Round] = []
    for _ in range(random.choice((1, 2, 2, 3))):
        rounds.append(draw_round(random, rounds, counts, both))
    return Scenario(seed, number, tuple(rounds))


def draw_round(random: Random, before: list[Round], counts: Mapping[str, int], both: bool) -> Round:
    """Draw the round after those `before`."""
    place = len(before)
    damage = [draw_damage(random) for _ in range(random.choice((1, 1, 2, 3)))] if place else []
    if place and may_leave_finished(before[-1]):
        damage.insert(0, replace(damage[0], what="finished record", how=random.choice(DAMAGE["finished record"])))
    if not place and random.random() < 0.15:
        pause = Trouble("pause", "runs", random.randint(12, counts["runs"] // 12))  # in its first cell, its lock held
        return Round((Start("cell", (pause,)), *([Start(GRIDS[0])] * random.randint(0, 1))), twice=True)
    number = random.choice((1, 1, 2, 2, 3))
    share = 1 / (number * (1 + place))  # of all operations that a process of this round may come to do
    starts = [draw_start(random, share, counts) for _ in range(number)]
    if both:
        starts[-1] = replace(starts[-1], command=GRIDS[1])
    if random.random() > 0.35:
        return Round(tuple(starts), tuple(damage))
    weather = Weather(random.choice(WEATHER), random.uniform(0.1, 0.7))
    pause = Trouble("pause", "any", random.randint(4, max(5, int(share * counts["any"] * 0.7))))
    return Round((Start(starts[0].command, (pause,)), *starts[1:]), tuple(damage), weather)


def may_leave_finished(one: Round) -> bool:
    """Return whether a round may leave a run that has ended and is not published."""
    troubles = [trouble for start in one.starts for trouble in start.troubles if trouble.kind not in ("clock", "pause")]
    return any(trouble.place in ("records", "page") for trouble in troubles)


def draw_start(random: Random, share: float, counts: Mapping[str, int]) -> Start:
    """Draw a process of our grid and what goes wrong in it."""
    if random.random() < 0.2:
        return Start(GRIDS[0], (), 0, random.choice(("kill", "kill", "term")), False, random.uniform(0.2, 1.5))
    if random.random() < 0.2:
        sent = random.choice((("kill", False), ("kill", True), ("kill", True), ("term", False)))
        return Start(GRIDS[0], (), 2, *sent, random.uniform(0.4, 1.5))
    kinds = {"kill": 8, "term": 2, "full": 4, "read-only": 2, "clock": 2, **dict.fromkeys(FAILURES, 1)}
    kind = random.choices(list(kinds), list(kinds.values()))[0]
    return Start(GRIDS[0], (draw_trouble(random, kind, share, counts),))


def draw_trouble(random: Random, kind: str, share: float, counts: Mapping[str, int]) -> Trouble:
    """Draw where in a process a trouble strikes and how long it lasts."""
    assert kind in KINDS
    if kind == "clock":
        return Trouble(kind, at=random.randint(1, 4), seconds=random.choice((-86400.0, -3600.0, -2.0, 3600.0)))
    place = "records" if kind in FAILURES else random.choice(("records", "records", "runs", "runs", "page", "any"))
    last = max(2, int(share * counts[f"touches of {place}" if kind in FAILURES else place]))
    length = 0 if random.random() < 0.3 else random.choice((1, 2, 5, 20, 60))
    return Trouble(kind, place, random.randint(1, last), length, random.random())


def draw_damage(random: Random) -> Damage:
    """Draw what happens to a file between two rounds."""
    weights = {"checkpoint": 5, "finished record": 3, "lock": 1, "hidden file": 1}
    what = random.choices(list(weights), list(weights.values()))[0]
    return Damage(what, random.choice(DAMAGE[what]), random.random(), random.random())
