"""What RigL-ITOP loses at high sparsity: to growth into dead filters, or to too little time to grow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from leaderboard.claims.claim import show_p
from leaderboard.results.scope import Section
from leaderboard.store.kinds import is_whole
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import certain, grain, show_interval, signed
from leaderboard.tables.sections import amount
from leaderboard.tables.table import BLANK, LEAST_SEEDS, Entry, Row, line, mean_and_std, percent

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

PLAIN, WITHIN, RANDOM = "rigl_itop", "rigl_itop_filter", "static"
TITLE = "Growth into dead filters, or too little time to grow?"
ANCHOR = "#" + TITLE.lower().translate({ord(","): "", ord("?"): "", ord(" "): "-"})
ABOUT = f"""\
Two reasons why `{PLAIN}` may fall at high sparsity. Batch norm magnifies the gradients of a filter that has no living
weight, which may draw growth by gradient magnitude to such filters; `{WITHIN}` ranks each gradient within its filter
and is otherwise the same. Or updates are too frequent: ΔT, the steps between two, is how long a new weight trains
before it can be dropped. *Dead filters* have no active weight at the end, in per cent of all. Compared are lines that
differ only in what is named, in points: each seed gives one value a side, its mean over these lines, for seeds that all
of them have. Two ΔT are compared seed by seed, methods by Welch's test. Seeds that one ΔT alone has may have been added
after a look at the others, so they are compared by themselves, as a repetition. p has Holm's correction over all
comparisons of a page, bold where at most 0.05, with {LEAST_SEEDS} seeds or more; intervals are uncorrected. `make
claim` compares two rows over all seeds that they have, corrected for what is asked there alone, and can find what is
open here."""
LINES = ("method", "sparsity", "ΔT", "updates", "steps after the last", "accuracy, %", "dead filters, %")
TESTED = ("accuracy", "dead filters")
PAIRS = ("compared", "sparsity", *(part for name in TESTED for part in (name, "95 % interval", "p (Holm)")))


@dataclass(frozen=True)
class Line:
    """The runs of a method at one interval and sparsity."""

    method: str
    interval: int
    sparsity: float
    entry: Entry

    def dead(self) -> dict[int, float]:
        """Return the shares of dead filters, in per cent, by seed, as far as the records tell."""
        return {run["seed"]: 100 * of["filters"] / of["of"] for run, of in self.entry.dead()}


@dataclass(frozen=True)
class Compared:
    """What is compared at a sparsity, in words, and its differences in the order of TESTED.

    Invariant: `ps` are corrected over the page, None with fewer than LEAST_SEEDS seeds.
    """

    words: str
    sparsity: float
    differences: tuple[Difference, ...]
    ps: tuple[float | None, ...] = ()

    def sure(self, number: int) -> bool:
        """Return whether a difference is significant."""
        from leaderboard.tables.stats import ALPHA

        p = self.ps[number]
        return p is not None and p <= ALPHA


@dataclass(frozen=True)
class Grown:
    """The lines of a section and their comparisons."""

    title: str
    lines: list[Line]
    compared: list[Compared]


def find_grown(sections: Iterable[Section]) -> list[Grown]:
    """Return the sections in which growth was compared, with what is compared there."""
    grown = []
    for section in sections:
        if lines := find_lines(section):
            at = [[one for one in lines if one.sparsity == s] for s in dict.fromkeys(one.sparsity for one in lines)]
            compared = [found for of in at for found in compare_lines(of, grain(section.runs[0]))]
            grown.append(Grown(section.title, lines, correct(compared)))
    return grown


def find_lines(section: Section) -> list[Line]:
    """Return the lines of both methods whose settings differ in ΔT alone, and that of random masks, by sparsity.

    Of the suite's own files, of several versions of one that with most runs. A sparsity is left out unless both methods
    have it, one of them with two intervals.
    """
    allowed = {PLAIN: {"update_every"}, WITHIN: {"update_every"}, RANDOM: set[str]()}
    rows: dict[str, dict[str, list[Row]]] = {}
    for row in (row for row in section.rows if not row.dense and not row.made_from):
        name, source = row.method["name"], row.method["source"]
        if name in allowed and source == f"methods/{name}.py" and set(row.settings) <= allowed[name]:
            rows.setdefault(name, {}).setdefault(row.method["sha256"], []).append(row)
    lines = []
    for name, versions in sorted(rows.items()):
        most = max(versions.values(), key=count_runs)
        for sparsity, entry in ((sparsity, entry) for row in most for sparsity, entry in row.cells.items()):
            interval = 0 if name == RANDOM else interval_of(entry.counted[0])
            lines += [Line(name, interval, sparsity, entry)] if interval or name == RANDOM else []
    kept = []
    for at in sorted({one.sparsity for one in lines}):
        there = sorted((one for one in lines if one.sparsity == at), key=lambda one: (one.method, one.interval))
        counts = [sum(one.method == name for one in there) for name in (PLAIN, WITHIN)]
        kept += there if min(counts) > 0 and max(counts) > 1 else []
    return kept


def count_runs(rows: list[Row]) -> tuple[object, ...]:
    """Return how many runs count in the rows of one version of a file; of equally many the one run last is greater."""
    return sum(len(row.counted) for row in rows), max(row.last_finished for row in rows)


def interval_of(run: Record) -> int:
    """Return ΔT of a run, 0 if its record does not tell."""
    method = run["method"]
    interval: Any = {**method["settings"], **method["changed"]}.get("update_every")
    return interval if is_whole(interval) else 0


class Contrast(NamedTuple):
    """What is compared in words, the pairs of lines that differ in it alone, the seeds left out, and whether it is
    paired by seed: where a method's own runs differ in ΔT alone."""

    words: str
    pairs: list[tuple[Line, Line]]
    without: frozenset[int] = frozenset()
    paired: bool = False


def list_contrasts(lines: list[Line]) -> list[Contrast]:
    """Return what is compared among the lines of a sparsity: growth within filters with growth over the layer, the
    longest interval with the shortest, and each method with random masks."""
    known = {(one.method, one.interval): one for one in lines}
    own = {name: [one for one in lines if one.method == name] for name in (PLAIN, WITHIN)}
    growth = [(one, known[PLAIN, one.interval]) for one in own[WITHIN] if (PLAIN, one.interval) in known]
    found = split_seeds(f"{WITHIN} − {PLAIN}", growth)
    ends = {(of[-1].interval, of[0].interval) for of in own.values() if len(of) > 1}
    for last, first in sorted(ends):
        pairs = [(of[-1], of[0]) for of in own.values() if (of[-1].interval, of[0].interval) == (last, first)]
        names = " and ".join(pair[0].method for pair in pairs)
        found.append(Contrast(f"ΔT = {last} − ΔT = {first}, {names}", pairs, paired=True))
    if (RANDOM, 0) in known:
        chance = known[RANDOM, 0]
        found += [
            one for name, of in own.items() for one in split_seeds(f"{name} − {RANDOM}", [(o, chance) for o in of])
        ]
    return [contrast for contrast in found if contrast.pairs]


def split_seeds(words: str, pairs: list[tuple[Line, Line]]) -> list[Contrast]:
    """Return the comparison of all intervals over the seeds that all have, and of each with enough seeds of its own."""
    if len(pairs) < 2:
        return [Contrast(words, pairs)]
    seeds = [certain(one.entry).keys() & certain(other.entry).keys() for one, other in pairs]
    shared = frozenset.intersection(*map(frozenset, seeds))
    more = [
        Contrast(f"{words}, ΔT = {pair[0].interval}, other seeds", [pair], shared)
        for pair, of in zip(pairs, seeds, strict=True)
        if len(of - shared) >= LEAST_SEEDS
    ]
    return [Contrast(f"{words}, mean over ΔT", pairs), *more]


def compare_lines(lines: list[Line], step: float) -> list[Compared]:
    """Return the comparisons of the lines of a sparsity, without p; `step` is one test image, in points."""
    from leaderboard.tables.stats import difference_of_means, paired_difference  # here, because scipy takes a second

    found = []
    for words, pairs, without, paired in list_contrasts(lines):
        reached = average([(certain(one.entry), certain(other.entry)) for one, other in pairs], without)
        dead = average([(one.dead(), other.dead()) for one, other in pairs], without)
        if paired:
            differences = paired_difference(*reached, grain=step), paired_difference(*dead)
        else:
            (one, other), (mine, theirs) = ([of.values() for of in both] for both in (reached, dead))
            differences = difference_of_means(one, other, step), difference_of_means(mine, theirs)
        found.append(Compared(words, lines[0].sparsity, differences))
    return found


def correct(found: list[Compared]) -> list[Compared]:
    """Return the comparisons of a page with their p, corrected over all of them."""
    from leaderboard.tables.stats import holm

    every = {
        (place, number): difference.p if difference.n >= LEAST_SEEDS else None
        for place, of in enumerate(found)
        for number, difference in enumerate(of.differences)
    }
    adjusted = holm(every)
    return [replace(of, ps=tuple(adjusted[place, n] for n in range(len(TESTED)))) for place, of in enumerate(found)]


def average(
    pairs: list[tuple[dict[int, float], dict[int, float]]], without: frozenset[int]
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the means by seed of the first and of the second values, over the seeds that all have."""
    seeds = frozenset.intersection(*(frozenset(values) for pair in pairs for values in pair)) - without
    first, second = ({seed: fmean(pair[n][seed] for pair in pairs) for seed in seeds} for n in range(2))
    return first, second


def growing_lines(grown: Iterable[Grown]) -> list[str]:
    """Return the part of the sheet on growth, or nothing."""
    lines: list[str] = []
    for found in grown:
        lines += [f"**{found.title}**", "", line(LINES), line("---" for _ in LINES)]
        lines += [*(line(describe(one)) for one in found.lines), "", line(PAIRS), line("---" for _ in PAIRS)]
        lines += [*(line(describe_pair(one)) for one in found.compared), ""]
    return [f"### {TITLE}", "", ABOUT, "", *lines] if lines else []


def describe(one: Line) -> list[str]:
    """Return the entries of a line."""
    updates = sorted({run["updates"] for run in one.entry.counted})
    left = count_steps(one.entry.counted[0]) - updates[-1] * one.interval
    dead = one.dead()
    return [
        one.method,
        percent(one.sparsity),
        str(one.interval or BLANK),
        " or ".join(map(str, updates)),
        str(left) if one.interval and left > 0 else BLANK,
        one.entry.accuracy(),
        f"{mean_and_std(dead.values())} (n={len(dead)})" if dead else BLANK,
    ]


def count_steps(run: Record) -> int:
    """Return the steps of a run on one device, 0 if its page's settings do not tell."""
    settings, images = run["page"]["settings"], run["data"]["train"]
    epochs, batch = (settings.get(name) for name in ("epochs", "batch_size"))
    if not (is_whole(epochs) and is_whole(batch) and batch):
        return 0
    return int(epochs * (images // batch if settings.get("drop_last") else math.ceil(images / batch)))


def describe_pair(found: Compared) -> list[str]:
    """Return the entries of a comparison."""
    shown = [found.words, percent(found.sparsity)]
    for number, (difference, p) in enumerate(zip(found.differences, found.ps, strict=True)):
        mean = BLANK if difference.mean is None else f"{signed(difference.mean)} (n={difference.n})"
        shown += [f"**{mean}**" if found.sure(number) else mean, show_interval(difference), show_p(p)]
    return shown


def tell_growing(grown: list[Grown]) -> list[str]:
    """Return a sentence that names every significant comparison and counts the others, or none."""
    sure: dict[str, list[str]] = {}
    tested = 0
    for section in grown:
        for found in section.compared:
            tested += sum(p is not None for p in found.ps)
            told = [
                f"{signed(difference.mean or 0.0)} points of {name}"
                for number, (name, difference) in enumerate(zip(TESTED, found.differences, strict=True))
                if found.sure(number)
            ]
            if told:
                text = f"at {percent(found.sparsity)} {found.words}: {' and '.join(told)}"
                sure.setdefault(section.title, []).append(text)
    if not tested:
        return []
    counted = f"of {amount(tested, 'comparison')}" + (" (corrected page by page)" if len(grown) > 1 else "")
    pages = "; ".join(f"on {title}, {'; '.join(of)}" for title, of in sure.items())
    verdict = f"Significant {counted}: {pages}" if sure else f"Open: none {counted} is significant"
    return [f"**{TITLE}** {verdict} ([all]({ANCHOR}))."]
