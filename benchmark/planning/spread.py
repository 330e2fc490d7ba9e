"""How long a set of runs takes on several devices: whole runs, the longest first, controls after their donors.

List scheduling by the longest chain that hangs on a run (Graham, 1969, SIAM J. Appl. Math. 17): on m devices at most
2 - 1/m times the shortest time there could be. Sweeps start runs in their own order, so the figure is a bound that
a good order reaches, and no promise.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A run to be made. `after`: the name of the run that has to be over before it, or empty."""

    name: str
    seconds: float
    after: str = ""


@dataclass(frozen=True)
class Spread:
    """What a set of runs takes on `places` places: seconds from start to end, of work, and of the longest chain."""

    places: int
    makespan_s: float
    work_s: float
    chain_s: float

    @property
    def least_s(self) -> float:
        """The time that no order of the runs can go below."""
        return max(self.chain_s, self.work_s / self.places)

    @property
    def used_share(self) -> float:
        """The share of the places' time in which they work."""
        return self.work_s / (self.places * self.makespan_s) if self.makespan_s else 1.0


def spread(jobs: Sequence[Job], places: int) -> Spread:
    """Return what the jobs take on `places` places, each of which does one at a time.

    A job whose `after` names none of the jobs waits for nothing. Jobs that name each other in a circle raise
    ValueError. Invariant: least_s <= makespan_s <= (2 - 1 / places) * least_s.
    """
    chains = chain_lengths(jobs)
    waiting: dict[str, list[int]] = {}
    names = {job.name for job in jobs}
    ready: list[tuple[float, int]] = []  # longest chain first, then in their order
    for number, job in enumerate(jobs):
        if job.after in names:
            waiting.setdefault(job.after, []).append(number)
        else:
            heapq.heappush(ready, (-chains[number], number))
    running: list[tuple[float, int]] = []  # by the moment of the end
    now = 0.0
    while ready or running:
        while ready and len(running) < places:
            number = heapq.heappop(ready)[1]
            heapq.heappush(running, (now + jobs[number].seconds, number))
        now, ended = heapq.heappop(running)
        for number in waiting.pop(jobs[ended].name, []):
            heapq.heappush(ready, (-chains[number], number))
    return Spread(places, now, sum(job.seconds for job in jobs), max(chains, default=0.0))


def chain_lengths(jobs: Sequence[Job]) -> list[float]:
    """Return for each job the seconds of the longest chain that begins with it. Raises ValueError for a circle."""
    followers: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        followers.setdefault(job.after, []).append(number)
    lengths: dict[int, float] = {}

    def measure(number: int, above: frozenset[int]) -> float:
        if number in above:
            raise ValueError(f"job {jobs[number].name} waits for itself")
        if number not in lengths:
            after = followers.get(jobs[number].name, [])
            longest = max((measure(follower, above | {number}) for follower in after), default=0.0)
            lengths[number] = jobs[number].seconds + longest
        return lengths[number]

    return [measure(number, frozenset()) for number in range(len(jobs))]
