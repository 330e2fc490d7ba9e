"""The first screen of the results: in short, which rows are best, and which of the paper's statements hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from leaderboard.paper.published import Tables
from leaderboard.plasticity.findings import NAMES, SUPPORTED, Finding, Study, by_share
from leaderboard.results.agreement import (
    AGREES,
    AGREES_ALONE,
    ALONE,
    MAIN,
    NOT_RUN,
    NOT_SHOWN,
    REVERSED,
    REVERSED_ALONE,
    STATEMENTS,
    SURE,
    UNCLEAR,
    UNCLEAR_ALONE,
    Weighed,
    correct,
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
    AGREES_ALONE: "asked alone",
    REVERSED: "**opposite**",
    REVERSED_ALONE: "opposite, asked alone",
    UNCLEAR: "**differ**",
    UNCLEAR_ALONE: "differ, asked alone",
    NOT_SHOWN: "not shown",
}
LEGEND = """\
First row less second, in points of accuracy after the last epoch. *yes*: as in the paper, and significant among all
comparisons on the page; *asked alone*: only had no other pair been asked about; *opposite*: the other way round;
*differ*: where the paper has it neither way; *not shown*: no difference found, which is no proof of none; *cited*: the
paper copied one of its numbers from another paper.
[Tests, intervals, what could have been found](#what-agrees-with-the-paper-and-what-does-not), and how sure the paper's
numbers are. Rows of one sparsity may differ several times in training FLOPs, given there, too."""
FIRST = " In the paper the first is the better one"
UNCONFIRMED = "unconfirmed"  # the status of a number in the paper's tables that nobody has checked
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
    told += [*tell_statements(shown, tables), *tell_plasticity(studies), *notes]
    lines = [*(f"- {text}" for text in told), ""] if told else []
    lines += ["## Which methods are best", "", *(best_lines(answers) or [NOTHING]), ""]
    lines += ["## Which of the paper's statements hold here", "", *(statement_table(shown) or [NOTHING]), ""]
    return lines


def tell_statements(tested: list[tuple[Section, list[Weighed]]], tables: Tables) -> list[str]:
    """Return sentences on the paper's statements: which hold, its main method, and what the seeds could have shown."""
    every = [one for _, found in tested for one in found if one.verdict != NOT_RUN]
    if not every:
        return []
    held = [(section, one) for section, found in tested for one in found if one.verdict == AGREES]
    turned = sum(one.verdict == REVERSED for one in every)
    text = f"**The paper's statements**: {len(held)} of {amount(len(every), 'comparison')} as in the paper"
    text += f"{tell_pooled(tested)}, {turned or 'none'} the other way round."
    by_page: dict[str, list[str]] = {}
    for section, one in held:
        above, below = (one.a, one.b) if one.printed.direction > 0 else (one.b, one.a)
        by_page.setdefault(section.title, []).append(f"`{above}` above `{below}` at {percent(one.sparsity)}")
    pages = "; on ".join(f"{title}: {', '.join(names)}" for title, names in by_page.items())
    told = [text + (f" On {pages}." if pages else "") + tell_grounds([one for _, one in held], tables)]
    mains = [said for pair in MAIN if (said := tell_pair(pair, every))]
    told += [f"**The paper's own method, in points**: {'; '.join(mains)}."] if mains else []
    spots = [(section, [tell_power(of, s) for s in sorted({one.sparsity for one in of})]) for section, of in tested]
    found = [f"{'; '.join(filter(None, of))} ({section.title})" for section, of in spots if any(of)]
    about = "**What could have been found**: in four of five cases a true difference of"
    return told + ([f"{about} {'; '.join(found)}."] if found else [])


def tell_pooled(tested: list[tuple[Section, list[Weighed]]]) -> str:
    """Return how many statements would hold if p were corrected over all pages together; nothing for a single page."""
    from leaderboard.tables.stats import ALPHA

    every = [one for _, of in tested for one in of]
    if sum(any(one.p is not None for one in of) for _, of in tested) < 2:
        return ""
    adjusted = correct({n: one.p for n, one in enumerate(every)})
    held = sum(every[n].verdict == AGREES for n, p in adjusted.items() if p is not None and p <= ALPHA)
    return f" where p is corrected page by page, {held} where over all pages"


def tell_grounds(held: list[Weighed], tables: Tables) -> str:
    """Return how many of the statements that hold rest on numbers that nobody has checked, or that the paper copied."""
    mark = tables.marks.get(UNCONFIRMED, UNCONFIRMED)
    kinds = {
        f"are recalled, not yet held against it ({mark})": [UNCONFIRMED in one.printed.statuses for one in held],
        "it copied from other papers": [one.printed.cited for one in held],
    }
    grounds = [f"{sum(of)} rest in part on numbers that {kind}" for kind, of in kinds.items() if any(of)]
    return f" On the paper's side, of these {', '.join(grounds)}." if grounds else ""


def tell_pair(pair: tuple[str, str], every: list[Weighed]) -> str:
    """Return the range of the differences of two rows over pages and sparsities, how many are significant, and how
    often as many training FLOPs the first took."""
    known = [one for one in every if (one.a, one.b) == pair and one.p is not None]
    means = [one.difference.mean or 0.0 for one in known if one.difference]
    if not means:
        return ""
    sure = sum(one.verdict in SURE for one in known)
    ends = " to ".join(dict.fromkeys(signed(mean) for mean in (min(means), max(means))))
    costs = span([one.trains[0] / one.trains[1] for one in known if one.trains[0] and one.trains[1]], "{:.1f}")
    alone = sum(one.verdict in ALONE for one in known)
    text = f"`{pair[0]}` less `{pair[1]}`: {ends} in {amount(len(means), 'comparison')}, {sure or 'none'} significant"
    text += f" and {alone} more if asked alone" if alone else ""
    return text + (f", for {costs} times the training FLOPs" if costs else "")


def tell_power(found: list[Weighed], sparsity: float) -> str:
    """Return `1.3 to 4.9 points at 98 %, of 0.9 to 3.9 if asked alone`: what the tests there find; empty if unknown."""
    there = [one for one in found if one.sparsity == sparsity and one.difference is not None]
    sizes = [one.detectable for one in there if one.detectable is not None]
    alone = [one.difference.detectable for one in there if one.difference and one.difference.detectable is not None]
    if not sizes:
        return ""
    return f"{span(sizes, '{:.1f}')} points at {percent(sparsity)}, of {span(alone, '{:.1f}')} if asked alone"


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
        "**Pruning plasticity**: that it falls as the learning rate falls (or as training goes on: the studies cannot "
        "tell these apart), that milder pruning recovers better, and that regeneration helps (it leaves more weights) "
        f"is supported in {held} of {amount(len(verdicts), 'test')} "
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
