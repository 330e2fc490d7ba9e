"""The paper's statements tested on the runs of one section: as in the paper, the other way round, or not shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from leaderboard.claims.lookup import Question, Side, name_rows
from leaderboard.claims.verdict import NOT_DECIDED, Claim
from leaderboard.paper.published import Tables
from leaderboard.results.statements import STATEMENTS, Printed, find_printed
from leaderboard.schema import Record
from leaderboard.table import LEAST_SEEDS, plain

if TYPE_CHECKING:
    from leaderboard.stats import Difference

AGREES, REVERSED, UNCLEAR = "as in the paper", "the other way round", "the paper says neither"
AGREES_ALONE, REVERSED_ALONE = f"{AGREES} (asked alone)", f"{REVERSED} (asked alone)"
NOT_SHOWN, TOO_FEW, NOT_RUN = "not shown", "too few seeds", "not run"
VERDICTS = (AGREES, REVERSED, UNCLEAR, AGREES_ALONE, REVERSED_ALONE, NOT_SHOWN, TOO_FEW, NOT_DECIDED, NOT_RUN)


@dataclass(frozen=True)
class Weighed:
    """One statement at one sparsity, the paper's cells and what our runs say.

    `difference` is first less second in points, `alone_p` is Holm's over the sparsities of this pair, as in `make
    claim`, `adjusted_p` over all comparisons of the section that can be decided. Invariant: AGREES and REVERSED need a
    claim that may carry a winner (three common seeds or more, none diverged, one version of each file, one kind of
    machine), an adjusted p of at most 0.05 and a paper that has a direction; asked alone, the pair's own p will do.
    """

    a: str
    b: str
    sparsity: float
    printed: Printed
    difference: Difference | None
    adjusted_p: float | None
    verdict: str
    reason: str = ""
    alone_p: float | None = None


def weigh_statements(runs: list[Record], tables: Tables) -> list[Weighed]:
    """Return the statements tested on the runs of one section, or nothing where it has no pair of rows.

    Only runs of the suite's own files at their defaults count. Invariant: the order of the runs does not matter.
    """
    from leaderboard.stats import holm  # here, because scipy takes a second

    named = name_rows(runs)
    rows = {name: own_row(named, name) for name in dict.fromkeys(name for pair in STATEMENTS for name in pair)}
    claims = {(a, b, claim.sparsity): claim for a, b in STATEMENTS for claim in pair_claims(runs, rows[a], rows[b])}
    adjusted = holm({key: p_of(claim) for key, claim in claims.items()})
    family = sum(p is not None for p in adjusted.values())
    found = []
    for key in ((a, b, sparsity) for a, b in STATEMENTS for sparsity in sorted({place for *_, place in claims})):
        tested = Weighed(*key, find_printed(tables, *key), None, None, NOT_RUN)
        if key in claims:
            found.append(judge(tested, claims[key], adjusted[key], family, grain_of(runs)))
        else:
            found.append(say_missing(tested, rows))
    return found


def own_row(named: Mapping[str, Side], name: str) -> Side:
    """Return the row that has the bare name of a method, so no setting changed, with the runs of the suite's own file.

    It may have none.
    """
    row = named.get(name, Side(name, [], {}))
    return replace(row, runs=[run for run in row.runs if run["method"]["source"] == f"methods/{name}.py"])


def pair_claims(runs: list[Record], one: Side, other: Side) -> list[Claim]:
    """Return the claims on two rows of a section, one for every sparsity that both have."""
    from leaderboard.claims.claim import answer

    if not set(one.sparsities()) & set(other.sparsities()):
        return []
    return answer(Question("", runs, one, other, ""))


def p_of(claim: Claim) -> float | None:
    """Return the p that counts: none where the runs cannot carry a winner, whatever it is."""
    return None if claim.verdict == NOT_DECIDED else claim.difference.p


def grain_of(runs: list[Record]) -> float:
    """Return what one test image is worth, in points; the runs of a section share their data."""
    images: int = runs[0]["data"]["test"]
    return 100 / images if images else 0.0


def say_missing(tested: Weighed, rows: Mapping[str, Side]) -> Weighed:
    """Return a statement of which a row has no run at its sparsity, with the row's name."""
    lacking = [name for name in (tested.a, tested.b) if tested.sparsity not in rows[name].sparsities()]
    return replace(tested, reason=f"no run of {' and '.join(lacking)}")


def judge(tested: Weighed, claim: Claim, p: float | None, family: int, step: float) -> Weighed:
    """Return a statement with its verdict; `p` is corrected over `family` comparisons."""
    from leaderboard.stats import ALPHA, smallest_detectable, widen

    tested = replace(tested, difference=claim.difference, adjusted_p=p, alone_p=claim.adjusted_p)
    if p is None:
        few = len(claim.used) < LEAST_SEEDS and len(claim.reasons) == 1  # else something worse is to be told
        return replace(tested, verdict=TOO_FEW if few else NOT_DECIDED, reason=plain("; ".join(claim.reasons)))
    agreed = ((claim.difference.mean or 0.0) > 0) == (tested.printed.direction > 0)
    if p <= ALPHA:
        verdict = UNCLEAR if tested.printed.direction == 0 else AGREES if agreed else REVERSED
        return replace(tested, verdict=verdict)
    if claim.adjusted_p is not None and claim.adjusted_p <= ALPHA and tested.printed.direction:
        return replace(tested, verdict=AGREES_ALONE if agreed else REVERSED_ALONE)
    spread = float(widen(claim.difference.sd or 0.0, step, 2))
    # Holm asks the smallest p of a family to be at most ALPHA / family; what passes that passes at any place.
    least = smallest_detectable(claim.difference.n, spread, ALPHA / family)
    reason = "" if least is None else f"≥ {least:.2f}"
    return replace(tested, verdict=NOT_SHOWN, reason=reason)
