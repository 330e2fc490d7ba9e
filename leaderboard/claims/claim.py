"""`make claim`: is one row better than another? Answered from the records, and refused where they cannot carry it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

from leaderboard.claims.lookup import ClaimError, Question, find_sparsities, pose
from leaderboard.claims.verdict import METRICS, Claim, Pairing, Score, compare, judge, show, show_p
from leaderboard.comparisons import signed
from leaderboard.page import identity
from leaderboard.schema import Record
from leaderboard.table import BLANK, multiple, percent, plain

__all__ = ["Claim", "ClaimError", "add_arguments", "make_claims", "render_claims", "run"]


def make_claims(
    records: list[Record], a: str, b: str, task: str, sparsities: str | None, metric: str = "last_epoch"
) -> list[Claim]:
    """Return whether row `a` or row `b` is better, at each sparsity asked (`0.9,0.98`; empty: all that both have).

    `a` and `b` are rows of the leaderboard, as it names them or as `granet:start_sparsity=0`; `task` is a page, see
    `leaderboard.claims.lookup.pose`. Paired by seed, corrected over the sparsities. Raises ClaimError for what cannot
    be answered. Invariant: the order of the records does not matter.
    """
    if metric not in METRICS:
        why = "it was chosen on the test set" if metric == "best_on_test" else "it is no accuracy of a record"
        raise ClaimError(f"metric '{plain(metric)}' cannot carry a claim, {why}: take {' or '.join(METRICS)}")
    if not (a.strip() and b.strip()):
        raise ClaimError("A and B must each name a row of the leaderboard: make claim A=granet B=rigl_itop")
    return answer(pose(records, a, b, task), sparsities, metric)


def answer(asked: Question, sparsities: str | None = None, metric: str = "last_epoch") -> list[Claim]:
    """Return the claims on two rows that were found already, as `make_claims` does."""
    from leaderboard.stats import holm  # here, because scipy takes a second

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
    """Return the claims in plain text: one table with a column for each sparsity, then each verdict with its reasons.

    Texts from records have no control characters: nothing in them can move the cursor of a terminal.
    """
    first = claims[0]
    lines = [
        f"A: {first.a}",
        f"B: {first.b}",
        f"{first.section} ({first.about})",
        f"{METRICS[first.metric]}, % of the test images; differences in points, paired by seed",
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
    """Return the verdict, with the name of the winner where there is one."""
    winner = {"A is better": claim.a, "B is better": claim.b}.get(claim.verdict)
    if winner is None or claim.difference.mean is None:
        return claim.verdict
    return f"{claim.verdict}: {winner}, by {abs(claim.difference.mean):.2f} points"


def table_rows(claims: list[Claim]) -> list[list[str]]:
    """Return the rows of the table: what is shown, then a cell for each claim."""
    several = len(claims) > 1
    alone = ", uncorrected" if several else ""
    rows: dict[str, Callable[[Claim], str]] = {
        "accuracy, A": lambda claim: show_score(claim.score_a, claim.difference.n),
        "accuracy, B": lambda claim: show_score(claim.score_b, claim.difference.n),
        "difference, A - B": lambda claim: BLANK if claim.difference.mean is None else signed(claim.difference.mean),
        f"95 % interval{alone}": show_interval,
        f"p{alone}": lambda claim: show_p(claim.difference.p),
        **({f"p, Holm over {len(claims)} sparsities": lambda claim: show_p(claim.adjusted_p)} if several else {}),
        f"smallest detectable difference{alone}": lambda claim: show(claim.difference.detectable, "{:.2f}"),
        "seeds used": lambda claim: ", ".join(map(str, claim.used)) or BLANK,
        "inference FLOPs, A": lambda claim: show_share(claim.score_a.inference_share),
        "inference FLOPs, B": lambda claim: show_share(claim.score_b.inference_share),
        "training FLOPs, A": lambda claim: show_share(claim.score_a.train_share),
        "training FLOPs, B": lambda claim: show_share(claim.score_b.train_share),
        "verdict": lambda claim: claim.verdict,
    }
    return [[name, *map(write, claims)] for name, write in rows.items()]


def show_score(score: Score, n: int) -> str:
    """Return `93.10 ± 0.21 (n=3)`: mean and sample standard deviation (ddof = 1) over the seeds compared."""
    std = "" if score.std is None else f" ± {score.std:.2f}"
    return f"{show(score.mean, '{:.2f}')}{std} (n={n})"


def show_interval(claim: Claim) -> str:
    """Return the 95 % interval of the difference."""
    found = claim.difference
    if found.low is None or found.high is None:
        return BLANK
    return f"{signed(found.low)} to {signed(found.high)}"


def show_share(share: float | None) -> str:
    """Return a cost as a multiple of the dense network's."""
    return BLANK if share is None else f"{multiple(share)} dense"


def align(rows: list[list[str]]) -> list[str]:
    """Return the rows as lines, their cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` reads to a parser."""
    parser.add_argument("--a", required=True, help="a row of the leaderboard, such as granet:start_sparsity=0")
    parser.add_argument("--b", required=True, help="the row to compare it with")
    parser.add_argument("--task", default="auto", help="a page; auto: the only one on which both rows have records")
    parser.add_argument("--sparsity", default="", help="a list such as 0.9,0.98; empty: all that both rows have")
    parser.add_argument("--metric", default="last_epoch", help=" or ".join(METRICS))


def run(asked: argparse.Namespace, records: list[Record]) -> int:
    """Answer on the terminal; return 0, or 2 for a question that cannot be answered, with why on stderr."""
    try:
        claims = make_claims(records, asked.a, asked.b, asked.task, asked.sparsity, asked.metric)
    except ClaimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render_claims(claims))
    return 0
