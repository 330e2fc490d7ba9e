"""The first screen of the results: which rows are best, and which of the paper's statements hold, each in a table."""

from __future__ import annotations

from collections.abc import Iterable

from leaderboard.paper.published import Tables
from leaderboard.plasticity.findings import SUPPORTED, Finding, Study
from leaderboard.results.agreement import (
    AGREES,
    AGREES_ALONE,
    NOT_SHOWN,
    REVERSED,
    REVERSED_ALONE,
    STATEMENTS,
    UNCLEAR,
    Weighed,
)
from leaderboard.results.best import best_lines
from leaderboard.results.scope import Section
from leaderboard.tables.comparisons import signed
from leaderboard.tables.sections import amount
from leaderboard.tables.table import BLANK, line, percent

MARKS = {AGREES: "✓", AGREES_ALONE: "(✓)", REVERSED: "✗", REVERSED_ALONE: "(✗)", UNCLEAR: "≠", NOT_SHOWN: "?"}
LEGEND = """\
First row less second, in points of accuracy after the last epoch, paired by seed. ✓ as in the paper, significant among
all comparisons on the page; (✓) significant only before correcting for the page's other comparisons; ✗ and (✗) the
other way round; ≠ significant where the paper says neither; ? no difference shown, which is no proof of none. Tests,
intervals and what they could have found are [below](#what-agrees-with-the-paper-and-what-does-not)."""
NO_RUNS = "No page has two rows to compare yet."


def summary_lines(
    sections: list[Section],
    tested: list[tuple[Section, list[Weighed]]],
    studies: list[tuple[Study, list[Finding]]],
    questions: list[str],
    tables: Tables,
) -> list[str]:
    """Return the first screen; `questions` are sentences on what else was asked of the runs."""
    lines = ["## Which methods are best", "", *(best_lines(sections, tables) or [NO_RUNS]), ""]
    lines += ["## Which of the paper's statements hold here", ""]
    shown = [(section, found) for section, found in tested if found]
    if shown:
        lines += [*statement_table(shown), "", LEGEND, ""]
    told = [*tell_plasticity(studies), *questions]
    return [*lines, *(f"- {text}" for text in told), *([""] if told else [])]


def statement_table(tested: list[tuple[Section, list[Weighed]]]) -> list[str]:
    """Return a line for each page and sparsity, a column for each statement."""
    lines = [line(["page", "sparsity", *(f"{a} − {b}" for a, b in STATEMENTS)])]
    lines.append(line(["---", "---:"] + ["---:"] * len(STATEMENTS)))
    for section, found in tested:
        for sparsity in sorted({one.sparsity for one in found}):
            there = {(one.a, one.b): one for one in found if one.sparsity == sparsity}
            cells = [show(there.get(pair)) for pair in STATEMENTS]
            lines.append(line([section.title, percent(sparsity), *cells]))
    return lines


def show(tested: Weighed | None) -> str:
    """Return `✓ +6.85`, or the verdict where there is nothing to mark."""
    if tested is None or tested.verdict not in MARKS or tested.difference is None or tested.difference.mean is None:
        return BLANK if tested is None else tested.verdict
    mark, mean = MARKS[tested.verdict], signed(tested.difference.mean)
    return f"**{mark} {mean}**" if tested.verdict in (AGREES, REVERSED, UNCLEAR) else f"{mark} {mean}"


def tell_plasticity(studies: Iterable[tuple[Study, list[Finding]]]) -> list[str]:
    """Return a sentence on the paper's findings on pruning plasticity, or none without a study."""
    every = list(studies)
    verdicts = [finding.verdict for _, findings in every for finding in findings]
    if not verdicts:
        return []
    held = sum(verdict == SUPPORTED for verdict in verdicts)
    claims = "it falls as the learning rate falls, milder pruning recovers better, regeneration helps"
    return [
        f"**Pruning plasticity** ({claims}): supported in {held} of {amount(len(verdicts), 'test')}, of "
        f"{'one study' if len(every) == 1 else f'{len(every)} studies'}: [PLASTICITY.md](PLASTICITY.md)."
    ]
