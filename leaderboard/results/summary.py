"""The first screen of the results: in short, which rows are best, and which of the paper's statements hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from leaderboard.paper.published import Tables
from leaderboard.plasticity.findings import NAMES, SUPPORTED, Finding, Study, by_share
from leaderboard.results.agreement import (
    AGREES,
    AGREES_ALONE,
    NOT_RUN,
    NOT_SHOWN,
    REVERSED,
    REVERSED_ALONE,
    STATEMENTS,
    UNCLEAR,
    UNCLEAR_ALONE,
    Weighed,
)
from leaderboard.results.best import best_lines, find_best, tell_best
from leaderboard.results.scope import Section, span
from leaderboard.tables.comparisons import signed
from leaderboard.tables.sections import amount
from leaderboard.tables.table import BLANK, line, percent

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

WORDS = {
    AGREES: "**yes**",
    AGREES_ALONE: "uncorrected",
    REVERSED: "**opposite**",
    REVERSED_ALONE: "opposite, uncorrected",
    UNCLEAR: "**differ**",
    UNCLEAR_ALONE: "differ, uncorrected",
    NOT_SHOWN: "not shown",
}
LEGEND = """\
First row less second, in points of accuracy after the last epoch. *yes*: as in the paper, and significant among all
comparisons on the page; *uncorrected*: only had no other pair been asked about; *opposite*: the other way round;
*differ*: where the paper has it neither way; *not shown*: no difference found, which is no proof of none; *cited*: the
paper copied one of its numbers from another paper.
[Tests, intervals, what could have been found](#what-agrees-with-the-paper-and-what-does-not), and how sure the paper's
numbers are. Rows of one sparsity may differ several times in training FLOPs, given there, too."""
FIRST = " In the paper the first is the better one"
NOTHING = "No page has two rows to compare yet."


def summary_lines(
    sections: list[Section],
    tested: list[tuple[Section, list[Weighed]]],
    studies: list[tuple[Study, list[Finding]]],
    notes: list[str],
    tables: Tables,
) -> list[str]:
    """Return the first screen; `notes` are sentences on what else was asked of the runs."""
    answers = [(section, found) for section in sections if (found := find_best(section, tables))]
    shown = [(section, found) for section, found in tested if found]
    told = [tell_best(section, found) for section, found in answers]
    told += [*tell_statements(shown), *tell_plasticity(studies), *notes]
    lines = [*(f"- {text}" for text in told), ""] if told else []
    lines += ["## Which methods are best", "", *(best_lines(answers) or [NOTHING]), ""]
    lines += ["## Which of the paper's statements hold here", "", *(statement_table(shown) or [NOTHING]), ""]
    return lines


def tell_statements(tested: list[tuple[Section, list[Weighed]]]) -> list[str]:
    """Return a sentence on the paper's statements, with what the seeds could have shown, or none."""
    every = [(section, one) for section, found in tested for one in found if one.verdict != NOT_RUN]
    if not every:
        return []
    held: dict[str, list[str]] = {}
    for section, one in every:
        if one.verdict == AGREES:
            above, below = (one.a, one.b) if one.printed.direction > 0 else (one.b, one.a)
            held.setdefault(section.title, []).append(f"`{above}` above `{below}` at {percent(one.sparsity)}")
    count, turned = (sum(one.verdict == verdict for _, one in every) for verdict in (AGREES, REVERSED))
    cited = sum(one.verdict == AGREES and one.printed.cited for _, one in every)
    text = f"**The paper's statements**: {count} of {amount(len(every), 'comparison')} as in the paper"
    text += f", {cited} of these by numbers that it copied in part from other papers" if cited else ""
    text += "".join(f"; on {title}: {', '.join(names)}" for title, names in held.items())
    text += f"; {turned} the other way round."
    spots = [(section, [tell_power(of, s) for s in sorted({one.sparsity for one in of})]) for section, of in tested]
    found = [f"{', '.join(filter(None, of))} ({section.title})" for section, of in spots if any(of)]
    about = "Asked alone, uncorrected, one of these finds in four of five cases a true difference of"
    return [text + (f" {about} {'; '.join(found)}." if found else "")]


def tell_power(found: list[Weighed], sparsity: float) -> str:
    """Return `0.9 to 3.9 points at 98 %`: what the statements tested at a sparsity can find; empty if unknown."""
    known = [one.difference.detectable for one in found if one.sparsity == sparsity and one.difference is not None]
    sizes = [size for size in known if size is not None]
    return f"{span(sizes, '{:.1f}')} points at {percent(sparsity)}" if sizes else ""


def statement_table(tested: list[tuple[Section, list[Weighed]]]) -> list[str]:
    """Return a line for each page and sparsity, a column for each statement, and the legend; nothing without a pair."""
    if not tested:
        return []
    lines = [line(["page", "sparsity", *(f"{a} − {b}" for a, b in STATEMENTS)])]
    lines.append(line(["---", "---:"] + ["---"] * len(STATEMENTS)))
    for section, found in tested:
        for sparsity in sorted({one.sparsity for one in found}):
            there = {(one.a, one.b): one for one in found if one.sparsity == sparsity}
            cells = [show(there.get(pair)) for pair in STATEMENTS]
            lines.append(line([section.title, percent(sparsity), *cells]))
    printed = {(one.a, one.b, one.sparsity): one.printed for _, found in tested for one in found}
    second = list_pairs(key for key, of in printed.items() if of.direction < 0)
    neither = list_pairs(key for key, of in printed.items() if of.middle is not None and of.direction == 0)
    first = FIRST + (f", except for {second}" if second else "") + (f"; neither for {neither}" if neither else "")
    return [*lines, "", f"{LEGEND}{first}."]


def list_pairs(keys: Iterable[tuple[str, str, float]]) -> str:
    """Return `granet − gmp at 98 %, ...`."""
    return ", ".join(f"{a} − {b} at {percent(sparsity)}" for a, b, sparsity in sorted(keys))


def show(tested: Weighed | None) -> str:
    """Return `**yes** +6.85, cited`, or the verdict alone where there is no difference."""
    if tested is None:
        return BLANK
    known = tested.difference is not None and tested.difference.mean is not None and tested.verdict in WORDS
    difference = f" {signed(tested.difference.mean)}" if known and tested.difference and tested.difference.mean else ""
    cited = ", cited" if difference and tested.printed.cited else ""
    return WORDS.get(tested.verdict, tested.verdict) + difference + cited


def tell_plasticity(studies: Iterable[tuple[Study, list[Finding]]]) -> list[str]:
    """Return a sentence on the paper's findings on pruning plasticity, or none without a study."""
    every = list(studies)
    verdicts = [finding.verdict for _, findings in every for finding in findings]
    if not verdicts:
        return []
    held = sum(verdict == SUPPORTED for verdict in verdicts)
    kinds = list(dict.fromkeys(kind for study, _ in every for kind in study.values))
    only = []
    for kind in kinds:
        falls = [by_share(study, kind, "rate") for study, _ in every if kind in study.values]
        only.append(tell_unseen(falls, f"the {NAMES[kind]} falls with the learning rate"))
    gains = [by_share(study, kind, "regrow") for study, _ in every for kind in study.values]
    only.append(tell_unseen(gains, "regeneration helps", "harms"))
    return [
        "**Pruning plasticity**: that it falls as the learning rate falls, that milder pruning recovers better, and "
        f"that regeneration helps (it leaves more weights) is supported in {held} of {amount(len(verdicts), 'test')} "
        f"over all shares pruned, measured in up to two ways in "
        f"{'one study' if len(every) == 1 else f'{len(every)} studies'}{''.join(only)} "
        "([PLASTICITY.md](PLASTICITY.md))."
    ]


def tell_unseen(effects: list[dict[float, Difference]], holds: str, turned: str = "does the opposite") -> str:
    """Return at which shares pruned no study shows an effect that others show, and in how many it is turned round."""
    shares = sorted({share for found in effects for share in found})
    shown = [share for share in shares if any((found[share].low or 0.0) > 0 for found in effects if share in found)]
    unseen = [share for share in shares if share not in shown]
    if not unseen or not shown:
        return ""
    asked = [found[share] for found in effects for share in unseen if share in found]
    against = sum((effect.high or 0.0) < 0 for effect in asked)
    text = f"; at {' and '.join(map(percent, unseen))} pruned alone {holds} in none of {len(asked)}"
    return text + (f" and {turned} in {against} (uncorrected)" if against else " (uncorrected)")
