"""What the runs of two rows can carry at one sparsity: a winner, no difference shown, or nothing, and what would help.

A winner needs three common seeds, runs that all finished on the same devices, and a p that holds after correction.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from leaderboard.claims.lookup import Side
from leaderboard.comparisons import grain
from leaderboard.schema import Record
from leaderboard.table import BLANK, LEAST_SEEDS, Cell, plain

if TYPE_CHECKING:
    from leaderboard.stats import Difference

METRICS = {
    "last_epoch": "accuracy after the last epoch",
    "validation_selected": "accuracy at the epoch selected on validation",
}
LONGEST_LIST = 20  # seeds in a command; more are only counted

A_IS_BETTER, B_IS_BETTER = "A is better", "B is better"
NO_DIFFERENCE, NOT_DECIDED = "no difference shown", "not decided"


@dataclass(frozen=True)
class Score:
    """A row over the seeds compared: accuracy in percent (std with ddof = 1), costs as multiples of dense."""

    mean: float | None
    std: float | None
    inference_share: float | None
    train_share: float | None


@dataclass(frozen=True)
class Claim:
    """The answer at one sparsity. `adjusted_p` is Holm's over all sparsities asked; `left_out` says why, seed by seed.

    `about` identifies the section; `reasons` say what the verdict rests on, `advice` what would help. Invariant: a
    verdict that names a winner rests on an adjusted p of at most 0.05, three common seeds or more, and runs that all
    finished.
    """

    a: str
    b: str
    section: str
    about: str
    metric: str
    sparsity: float
    score_a: Score
    score_b: Score
    difference: Difference
    adjusted_p: float | None
    used: tuple[int, ...]
    left_out: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]


@dataclass(frozen=True)
class Pairing:
    """The counted runs of both rows at one sparsity, and their accuracies by seed where they have one."""

    sides: tuple[Side, Side]
    cells: tuple[Cell, Cell]
    metric: str
    sparsity: float

    def accuracies(self, which: int) -> dict[int, float]:
        """Return the accuracies of a row (0 is A, 1 is B) by seed, of the counted runs that have one."""
        known = ((run["seed"], run["accuracy_pct"][self.metric]) for run in self.cells[which].finished)
        return {seed: float(value) for seed, value in known if value is not None}

    def used(self) -> list[int]:
        """Return the seeds for which both rows have an accuracy."""
        return sorted(self.accuracies(0).keys() & self.accuracies(1).keys())

    def runs(self, which: int) -> dict[int, Record]:
        """Return the counted runs of a row by seed."""
        return {run["seed"]: run for run in self.cells[which].counted}


def compare(pairing: Pairing, section: str, about: str) -> Claim:
    """Return the numbers of a claim; correction and verdict are still to come."""
    from leaderboard.stats import paired_difference

    used = pairing.used()
    return Claim(
        a=pairing.sides[0].name,
        b=pairing.sides[1].name,
        section=section,
        about=about,
        metric=pairing.metric,
        sparsity=pairing.sparsity,
        score_a=score(pairing, 0, used),
        score_b=score(pairing, 1, used),
        difference=paired_difference(pairing.accuracies(0), pairing.accuracies(1), grain(pairing.cells[0])),
        adjusted_p=None,
        used=tuple(used),
        left_out=tuple(left_out(pairing, used)),
        verdict=NOT_DECIDED,
        reasons=(),
        advice=(),
    )


def score(pairing: Pairing, which: int, used: list[int]) -> Score:
    """Return the accuracy and costs of a row over the seeds compared."""
    from leaderboard.stats import mean_std

    accuracies, runs = pairing.accuracies(which), pairing.runs(which)
    shares = [
        statistics.fmean(runs[seed]["macs"][part] for seed in used) if used else None
        for part in ("inference_share", "train_share")
    ]
    return Score(*mean_std(accuracies[seed] for seed in used), *shares)


def left_out(pairing: Pairing, used: list[int]) -> Iterator[str]:
    """Yield each seed that only one row has, or has no accuracy for, and why it does not count."""
    for seed in sorted((pairing.runs(0).keys() | pairing.runs(1).keys()) - set(used)):
        why = []
        for which, side in enumerate(pairing.sides):
            run = pairing.runs(which).get(seed)
            if run is None:
                why.append(f"{side.name} has no run")
            elif run["status"] != "ok":
                why.append(f"{side.name} diverged")
            elif seed not in pairing.accuracies(which):
                why.append(f"{side.name} has no {METRICS[pairing.metric]}")
        yield f"seed {seed}: {', '.join(why)}"


def judge(claim: Claim, pairing: Pairing, family: int) -> Claim:
    """Return the claim with verdict, reasons and advice; `family` is the number of sparsities asked."""
    from leaderboard.stats import ALPHA

    found, p = claim.difference, claim.adjusted_p
    against = list(dict.fromkeys(objections(pairing, claim.used)))
    if p is None and not against:
        against = [("the differences have no spread to judge them by", "make runs of more seeds")]
    advice = [way for _, way in against]
    if against:
        verdict, reasons = NOT_DECIDED, [reason for reason, _ in against]
    elif p is not None and p <= ALPHA and found.mean is not None:
        verdict = A_IS_BETTER if found.mean > 0 else B_IS_BETTER
        reasons = [f"p is {show_p(p)}{corrected(family)}, at most {ALPHA:g}"]
    else:
        verdict, reasons = NO_DIFFERENCE, list(unseen(claim, pairing, family))
    if (p is None or p > ALPHA) and claim.a != claim.b and len(claim.used) > 1:
        advice.append(more_seeds(claim, pairing, family))
    return replace(claim, verdict=verdict, reasons=tuple(reasons), advice=tuple(advice))


def corrected(family: int) -> str:
    """Return how p was corrected, in words."""
    return f" after Holm's correction over {family} sparsities" if family > 1 else ""


def unseen(claim: Claim, pairing: Pairing, family: int) -> Iterator[str]:
    """Yield what a comparison that shows no difference does say."""
    from leaderboard.stats import ALPHA, smallest_detectable

    found = claim.difference
    if found.p is not None and found.p <= ALPHA:
        yield f"p is {show_p(found.p)} alone, but {show_p(claim.adjusted_p)}{corrected(family)}"
    # Holm asks the smallest p of a family to be at most ALPHA / family; what passes that passes at any place.
    least = smallest_detectable(found.n, spread(claim, pairing), ALPHA / family)
    yield (
        f"a difference of {show(least, '{:.2f}')} points or more would have been found in 4 of 5 such comparisons"
        f"{corrected(family)}; a smaller one may be there"
    )


def spread(claim: Claim, pairing: Pairing) -> float:
    """Return the standard deviation of the differences, with rounding, as the test takes it."""
    from leaderboard.stats import widen

    return float(widen(claim.difference.sd or 0.0, grain(pairing.cells[0]), 2))


def objections(pairing: Pairing, used: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Yield why the runs cannot carry a winner, each with what would help."""
    one, other = pairing.sides
    if one.name == other.name:
        yield "A and B are the same row", "name two rows"
        return
    if len(used) < LEAST_SEEDS:
        lacking = LEAST_SEEDS - len(used)
        yield (
            f"{len(used)} common seed{'' if len(used) == 1 else 's'}, at least {LEAST_SEEDS} are needed",
            f"make runs of {lacking} more:{make_commands(pairing, lacking)}",
        )
    for side, cell in zip(pairing.sides, pairing.cells, strict=True):
        if bad := [str(run["seed"]) for run in cell.counted if run["status"] != "ok"]:
            yield (
                f"{side.name} diverged at seed {', '.join(bad)}, and the seeds at which it did not say too much for it",
                f"find settings under which {side.name} finishes at every seed",
            )
        versions = sorted({run["method"]["sha256"] for run in [*cell.counted, *cell.repeats]})
        if len(versions) > 1:
            names = " or ".join(f"'{side.name} (file {plain(version[:8])})'" for version in versions)
            yield f"{side.name} has runs of {len(versions)} versions of its method's file", f"name one: {names}"
    for seed in used:
        places = [device(pairing.runs(which)[seed]) for which in (0, 1)]
        if places[0] != places[1]:
            yield (
                f"the runs of a seed were made on different devices: {places[0]} for A, {places[1]} for B",
                "make the runs of both rows on one device",
            )


def device(run: Record) -> str:
    """Return what a run was made on: the kind of device, and its name where the record has it."""
    environment = run["environment"]
    name = environment.get("device_name")
    return plain(f"{environment['device']} ({name})" if name else environment["device"])


def more_seeds(claim: Claim, pairing: Pairing, family: int) -> str:
    """Return how many seeds a difference as large as the one seen needs, and the commands that make the runs."""
    from leaderboard.stats import ALPHA, MOST_SEEDS, seeds_needed

    seen = abs(claim.difference.mean or 0.0)
    needed = seeds_needed(seen, spread(claim, pairing), ALPHA / family)
    if needed is None:
        return f"more seeds would hardly help: the difference seen, {seen:.2f} points, needs over {MOST_SEEDS} of them"
    more = max(1, needed - claim.difference.n)
    return (
        f"about {needed} seeds, {more} more, would find a difference as large as the one seen ({seen:.2f} points) "
        f"in 4 of 5 comparisons (make them all before asking again: to stop at the first p below {ALPHA:g} finds "
        f"differences that are none):{make_commands(pairing, more)}"
    )


def make_commands(pairing: Pairing, more: int) -> str:
    """Return the commands, a line each, that give both rows `more` common seeds.

    A seed at which a counted run has no accuracy is passed over: to run it again makes a repeat, which does not count.
    """
    if more > LONGEST_LIST:
        return f" SEED={','.join(map(str, next_seeds(pairing, 3)))}, … ({more} in all)"
    seeds = next_seeds(pairing, more)
    lines = []
    for which, side in enumerate(pairing.sides):
        if lacking := [seed for seed in seeds if seed not in pairing.runs(which)]:
            lines.append(f"\n      {side.command(pairing.sparsity, lacking)}")
    return "".join(lines)


def next_seeds(pairing: Pairing, more: int) -> list[int]:
    """Return the first `more` seeds that can still become common ones."""
    spent = set(pairing.used())
    for which in (0, 1):
        spent |= pairing.runs(which).keys() - pairing.accuracies(which).keys()
    return list(itertools.islice((seed for seed in itertools.count() if seed not in spent), more))


def show(value: float | None, how: str) -> str:
    """Return a number as `how` writes it, or BLANK."""
    return BLANK if value is None else how.format(value)


def show_p(p: float | None) -> str:
    """Return p with three digits; a tiny one as a bound."""
    return "below 0.0001" if p is not None and p < 0.0001 else show(p, "{:.3g}")
