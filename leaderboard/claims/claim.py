"""Whether one row is better than another: a verdict at each sparsity, and its text."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from leaderboard.claims.lookup import ClaimError, Question, Side, find_sparsities, pose
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import grain, show_interval, signed
from leaderboard.tables.sections import amount, identity
from leaderboard.tables.table import BLANK, LEAST_SEEDS, Entry, multiple, percent, plain

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference


def make_claims(
    records: list[Record], a: str, b: str, task: str, sparsities: str | None, metric: str = "last_epoch"
) -> list[Claim]:
    """Return whether row `a` or row `b` is better, at each sparsity asked (`0.9,0.98`; empty: all that both have).

    `a` and `b` are rows of the leaderboard, as it names them or as `granet:start_sparsity=0`; `task` is a page, see
    `leaderboard.claims.lookup.pose`. Welch's tests, corrected over the sparsities. Raises ClaimError for a question
    that cannot be answered. Invariant: the order of the records is irrelevant.
    """
    if metric not in METRICS:
        why = "it was chosen on the test set" if metric == "best_on_test" else "it is no accuracy of a record"
        raise ClaimError(f"metric '{plain(metric)}' cannot carry a claim, {why}: take {' or '.join(METRICS)}")
    if not (a.strip() and b.strip()):
        raise ClaimError("A and B must each name a row of the leaderboard: make claim A=granet B=rigl_itop")
    return answer(pose(records, a, b, task), sparsities, metric)


def answer(asked: Question, sparsities: str | None = None, metric: str = "last_epoch") -> list[Claim]:
    """Return the claims on two rows that were found, as `make_claims` does."""
    from leaderboard.tables.stats import holm  # here, because scipy takes a second

    pairings = [
        Pairing((asked.a, asked.b), (asked.a.at(sparsity), asked.b.at(sparsity)), metric, sparsity)
        for sparsity in find_sparsities(sparsities, asked.a, asked.b)
    ]
    about = f"page {plain(asked.runs[0]['page']['name'])}, {identity(asked.runs[0], plain)}"
    claims = [compare(pairing, asked.section, "; ".join(filter(None, (about, asked.note)))) for pairing in pairings]
    adjusted = holm({claim.sparsity: claim.difference.p for claim in claims})
    claims = [replace(claim, adjusted_p=adjusted[claim.sparsity]) for claim in claims]
    return [judge(claim, pairing, len(claims)) for claim, pairing in zip(claims, pairings, strict=True)]


def render_claims(claims: list[Claim]) -> str:
    """Return the claims as plain text: a table with a column for each sparsity, then each verdict with its reasons.

    Texts from records have no control characters, so they cannot move a terminal's cursor.
    """
    first = claims[0]
    lines = [
        f"A: {first.a}",
        f"B: {first.b}",
        f"{first.section} ({first.about})",
        f"{METRICS[first.metric]}, % of the test images; differences in points, Welch's test",
        "",
        *align([["", *(f"sparsity {percent(claim.sparsity)}" for claim in claims)], *table_rows(claims)]),
    ]
    for claim in claims:
        lines += ["", f"sparsity {percent(claim.sparsity)}: {headline(claim)}"]
        lines += [f"  - {text}" for text in claim.reasons]
        lines += [f"  - left out: {text}" for text in claim.left_out]
        lines += [f"  - what would help: {text}" for text in claim.advice]
    return "\n".join(lines)


def headline(claim: Claim) -> str:
    """Return the verdict, with the winner's name if there is one."""
    winner = {"A is better": claim.a, "B is better": claim.b}.get(claim.verdict)
    if winner is None or claim.difference.mean is None:
        return claim.verdict
    return f"{claim.verdict}: {winner}, by {abs(claim.difference.mean):.2f} points"


def table_rows(claims: list[Claim]) -> list[list[str]]:
    """Return the rows of the table: a heading, then an entry for each claim."""
    several = len(claims) > 1
    alone = ", uncorrected" if several else ""
    rows: dict[str, Callable[[Claim], str]] = {
        "accuracy, A": lambda claim: show_score(claim.score_a, claim.counts[0]),
        "accuracy, B": lambda claim: show_score(claim.score_b, claim.counts[1]),
        "difference, A - B": lambda claim: BLANK if claim.difference.mean is None else signed(claim.difference.mean),
        f"95 % interval{alone}": lambda claim: show_interval(claim.difference),
        f"p{alone}": lambda claim: show_p(claim.difference.p),
        **({f"p, Holm over {len(claims)} sparsities": lambda claim: show_p(claim.adjusted_p)} if several else {}),
        f"smallest detectable difference{alone}": lambda claim: show(claim.difference.detectable, "{:.2f}"),
        "seeds, A": lambda claim: ", ".join(map(str, claim.seeds[0])) or BLANK,
        "seeds, B": lambda claim: ", ".join(map(str, claim.seeds[1])) or BLANK,
        "inference FLOPs, A": lambda claim: show_share(claim.score_a.inference_share),
        "inference FLOPs, B": lambda claim: show_share(claim.score_b.inference_share),
        "training FLOPs, A": lambda claim: show_share(claim.score_a.train_share),
        "training FLOPs, B": lambda claim: show_share(claim.score_b.train_share),
        "verdict": lambda claim: claim.verdict,
    }
    return [[name, *map(write, claims)] for name, write in rows.items()]


def show_score(score: Score, n: int) -> str:
    """Return `93.10 ± 0.21 (n=3)`: mean and sample standard deviation (ddof = 1) over seeds."""
    std = "" if score.std is None else f" ± {score.std:.2f}"
    return f"{show(score.mean, '{:.2f}')}{std} (n={n})"


def show_share(share: float | None) -> str:
    """Return a cost as a multiple of the dense network's."""
    return BLANK if share is None else f"{multiple(share)} dense"


def align(rows: list[list[str]]) -> list[str]:
    """Return the rows as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads to a parser."""
    parser.add_argument("--a", required=True, help="a row of the leaderboard, such as granet:start_sparsity=0")
    parser.add_argument("--b", required=True, help="the row to compare it with")
    parser.add_argument("--task", default="auto", help="a page; auto: the only one on which both rows have records")
    parser.add_argument("--sparsity", default="", help="a list such as 0.9,0.98; empty: all that both rows have")
    parser.add_argument("--metric", default="last_epoch", help=" or ".join(METRICS))


def run(asked: argparse.Namespace, records: list[Record]) -> int:
    """Print the answer; return 0, or 2 with the reason on stderr for a question that cannot be answered."""
    try:
        claims = make_claims(records, asked.a, asked.b, asked.task, asked.sparsity, asked.metric)
    except ClaimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render_claims(claims))
    return 0


METRICS = {
    "last_epoch": "accuracy after the last epoch",
    "validation_selected": "accuracy at the epoch selected on validation",
}
LONGEST_LIST = 20  # seeds in a command; more are only counted

A_IS_BETTER, B_IS_BETTER = "A is better", "B is better"
NO_DIFFERENCE, NOT_DECIDED = "no difference shown", "not decided"


@dataclass(frozen=True)
class Score:
    """A row over its seeds: accuracy in percent (std with ddof = 1), costs as multiples of dense."""

    mean: float | None
    std: float | None
    inference_share: float | None
    train_share: float | None


@dataclass(frozen=True)
class Claim:
    """The answer at one sparsity; `adjusted_p` is Holm's over all sparsities asked.

    `about` identifies the section, `seeds` are those of A and of B, `left_out` has those that do not count and why.
    Invariant: a verdict that names a winner rests on an adjusted p of at most 0.05, at least three seeds of each row,
    and runs that all finished.
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
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    left_out: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of seeds of A and of B."""
        return len(self.seeds[0]), len(self.seeds[1])

    def spreads(self, grain: float) -> tuple[float, float]:
        """Return the standard deviations of A and of B as the test uses them, rounding included."""
        from leaderboard.tables.stats import widen

        return float(widen(self.score_a.std or 0.0, grain, 1)), float(widen(self.score_b.std or 0.0, grain, 1))


@dataclass(frozen=True)
class Pairing:
    """The counted runs of both rows at one sparsity."""

    sides: tuple[Side, Side]
    cells: tuple[Entry, Entry]
    metric: str
    sparsity: float

    def accuracies(self, which: int) -> dict[int, float]:
        """Return the accuracies of a row (0 is A, 1 is B) by seed, of the counted runs that have one."""
        known = ((run["seed"], run["accuracy_pct"][self.metric]) for run in self.cells[which].finished)
        return {seed: float(value) for seed, value in known if value is not None}

    @property
    def grain(self) -> float:
        """What one test image is worth, in points."""
        return grain(self.cells[0].counted[0])

    def runs(self, which: int) -> dict[int, Record]:
        """Return the counted runs of a row by seed."""
        return {run["seed"]: run for run in self.cells[which].counted}


def compare(pairing: Pairing, section: str, about: str) -> Claim:
    """Return the numbers of a claim, without correction and verdict."""
    from leaderboard.tables.stats import difference_of_means

    a, b = pairing.accuracies(0), pairing.accuracies(1)
    return Claim(
        a=pairing.sides[0].name,
        b=pairing.sides[1].name,
        section=section,
        about=about,
        metric=pairing.metric,
        sparsity=pairing.sparsity,
        score_a=score(pairing, 0),
        score_b=score(pairing, 1),
        difference=difference_of_means(a.values(), b.values(), pairing.grain),
        adjusted_p=None,
        seeds=(tuple(sorted(a)), tuple(sorted(b))),
        left_out=tuple(left_out(pairing)),
        verdict=NOT_DECIDED,
        reasons=(),
        advice=(),
    )


def score(pairing: Pairing, which: int) -> Score:
    """Return the accuracy and costs of a row over its seeds."""
    from leaderboard.tables.stats import mean_std

    accuracies, runs = pairing.accuracies(which), pairing.runs(which)
    shares = [
        statistics.fmean(runs[seed]["macs"][part] for seed in accuracies) if accuracies else None
        for part in ("inference_share", "train_share")
    ]
    return Score(*mean_std(accuracies.values()), *shares)


def left_out(pairing: Pairing) -> Iterator[str]:
    """Yield each run that does not count, and why."""
    for which, side in enumerate(pairing.sides):
        for seed, run in sorted(pairing.runs(which).items()):
            if run["status"] != "ok":
                yield f"{side.name}, seed {seed}: diverged"
            elif seed not in pairing.accuracies(which):
                yield f"{side.name}, seed {seed}: no {METRICS[pairing.metric]}"


def judge(claim: Claim, pairing: Pairing, family: int) -> Claim:
    """Return the claim with verdict, reasons and advice; `family` is the number of sparsities asked."""
    from leaderboard.tables.stats import ALPHA

    found, p = claim.difference, claim.adjusted_p
    against = list(dict.fromkeys(objections(pairing)))
    if p is None and not against:
        against = [("the accuracies have no spread to judge their difference by", "make runs of more seeds")]
    advice = [way for _, way in against]
    if against:
        verdict, reasons = NOT_DECIDED, [reason for reason, _ in against]
    elif p is not None and p <= ALPHA and found.mean is not None:
        verdict = A_IS_BETTER if found.mean > 0 else B_IS_BETTER
        reasons = [f"p is {show_p(p)}{corrected(family)}, at most {ALPHA:g}"]
    else:
        verdict, reasons = NO_DIFFERENCE, list(unseen(claim, pairing, family))
    if (p is None or p > ALPHA) and claim.a != claim.b and min(claim.counts) > 1:
        advice.append(more_seeds(claim, pairing, family))
    return replace(claim, verdict=verdict, reasons=tuple(reasons), advice=tuple(advice))


def corrected(family: int) -> str:
    """Return how p was corrected, in words."""
    return f" after Holm's correction over {family} sparsities" if family > 1 else ""


def unseen(claim: Claim, pairing: Pairing, family: int) -> Iterator[str]:
    """Yield what can be concluded from a comparison that shows no difference."""
    from leaderboard.tables.stats import ALPHA, smallest_detectable

    found = claim.difference
    if found.p is not None and found.p <= ALPHA:
        yield f"p is {show_p(found.p)} alone, but {show_p(claim.adjusted_p)}{corrected(family)}"
    # Holm asks the smallest p of a family to be at most ALPHA / family; what passes that passes at any place.
    least = smallest_detectable(claim.spreads(pairing.grain), claim.counts, ALPHA / family)
    yield (
        f"a difference of {show(least, '{:.2f}')} points or more would have been found in 4 of 5 such comparisons"
        f"{corrected(family)}; a smaller one may be there"
    )


def objections(pairing: Pairing) -> Iterator[tuple[str, str]]:
    """Yield why the runs cannot carry a winner, each reason with what would help."""
    one, other = pairing.sides
    if one.name == other.name:
        yield "A and B are the same row", "name two rows"
        return
    for which, side in enumerate(pairing.sides):
        if (count := len(pairing.accuracies(which))) < LEAST_SEEDS:
            yield (
                f"{amount(count, 'seed')} of {side.name}, at least {LEAST_SEEDS} are needed",
                f"make runs of {LEAST_SEEDS - count} more:{make_command(pairing, which, LEAST_SEEDS)}",
            )
    for side, entry in zip(pairing.sides, pairing.cells, strict=True):
        if bad := [str(run["seed"]) for run in entry.counted if run["status"] != "ok"]:
            yield (
                f"{side.name} diverged at seed {', '.join(bad)}, and its other seeds alone would flatter it",
                f"find settings under which {side.name} finishes at every seed",
            )
        there = {id(run) for run in [*entry.counted, *entry.repeats]}
        parts = [part.name for part in side.parts if any(id(run) in there for run in part.runs)]
        if len(parts) > 1:
            names = " or ".join(f"'{name}'" for name in sorted(parts))
            yield (
                f"{side.name} is the name of {len(parts)} rows, of versions of its file, settings or groups",
                f"name one: {names}",
            )
    shares = [share_devices(pairing, which) for which in (0, 1)]
    if all(shares) and shares[0] != shares[1]:
        places = [" and ".join(sorted(share)) for share in shares]
        yield (
            f"the runs were made on different devices: {places[0]} for A, {places[1]} for B"
            if places[0] != places[1]
            else f"A and B have different shares of their runs on {places[0]}",
            "make the runs of both rows on one device",
        )


def share_devices(pairing: Pairing, which: int) -> dict[str, float]:
    """Return the share of a row's seeds that was run on each device."""
    runs = pairing.runs(which)
    devices = [device(runs[seed]) for seed in pairing.accuracies(which)]
    return {name: devices.count(name) / len(devices) for name in devices}


def device(run: Record) -> str:
    """Return the kind of device of a run, and its name if the record has it."""
    environment = run["environment"]
    name = environment.get("device_name")
    return plain(f"{environment['device']} ({name})" if name else environment["device"])


def more_seeds(claim: Claim, pairing: Pairing, family: int) -> str:
    """Return how many seeds a difference as large as the observed one needs, and the commands that make the runs."""
    from leaderboard.tables.stats import ALPHA, MOST_SEEDS, seeds_needed

    seen = abs(claim.difference.mean or 0.0)
    needed = seeds_needed(seen, claim.spreads(pairing.grain), ALPHA / family)
    if needed is None:
        return (
            f"more seeds would hardly help: the observed difference, {seen:.2f} points, needs over {MOST_SEEDS} of them"
        )
    wanted = max(needed, min(claim.counts) + 1)
    commands = "".join(make_command(pairing, which, wanted) for which in (0, 1))
    return (
        f"about {needed} seeds of each would find a difference as large as the observed one ({seen:.2f} points) in "
        f"4 of 5 comparisons (run them all before asking again: stopping at the first p below {ALPHA:g} finds "
        f"differences that do not exist):{commands}"
    )


def make_command(pairing: Pairing, which: int, wanted: int) -> str:
    """Return the command, on a line of its own, that gives a row as many seeds as `wanted`; nothing if it has them.

    The first seeds it has no run of: one whose run has no accuracy is skipped, since running it again makes a repeat,
    which does not count.
    """
    more = wanted - len(pairing.accuracies(which))
    free = (seed for seed in itertools.count() if seed not in pairing.runs(which))
    seeds = list(itertools.islice(free, more if 0 < more <= LONGEST_LIST else 3 if more > 0 else 0))
    if not seeds:
        return ""
    rest = f", … ({more} seeds in all)" if more > len(seeds) else ""
    return f"\n      {pairing.sides[which].command(pairing.sparsity, seeds)}{rest}"


def show(value: float | None, how: str) -> str:
    """Return a number as `how` writes it, or BLANK."""
    return BLANK if value is None else how.format(value)


def show_p(p: float | None) -> str:
    """Return p with three digits, or a bound if it is tiny."""
    return "below 0.0001" if p is not None and p < 0.0001 else show(p, "{:.3g}")
