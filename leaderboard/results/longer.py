"""What more training changes: differences between methods on two pages that have the same images and other epochs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from leaderboard.claims.claim import show_p
from leaderboard.results.agreement import MAIN, STATEMENTS, correct, merge_rows, share
from leaderboard.results.scope import Section, epochs_of
from leaderboard.store.repeat import arithmetic
from leaderboard.tables.comparisons import certain, grain, show_interval, signed
from leaderboard.tables.sections import amount
from leaderboard.tables.table import LEAST_SEEDS, escape, line, percent

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

TITLE = "What more training changes"
ANCHOR = "#" + TITLE.lower().replace(" ", "-")
ABOUT = f"""\
Differences between two methods, first less second in points, on two pages with the same images, network and batches and
other epochs, and what the longer one adds to them; Welch's test over the four means, on the seeds of the tests above, p
with Holm's correction over all statements at the sparsities of both pages. The statements above, where both pages have
both rows with {LEAST_SEEDS} seeds or more, none diverged."""
SAME = ("model", "image_size", "batch_size")  # settings that both pages share
TOLD_APART = {"title", "epochs", "precision"}  # told in their own words
NAMES = {"update_every": "ΔT", "methods": "settings of single methods"}


@dataclass(frozen=True)
class Change:
    """A difference between two rows at a sparsity, on the shorter and on the longer page, and its change.

    Invariant: `p` is corrected over all changes of the pair of pages.
    """

    a: str
    b: str
    sparsity: float
    before: float
    after: float
    difference: Difference
    p: float | None = None


@dataclass(frozen=True)
class Longer:
    """Two pages, the longer one second, and what was compared on both."""

    pages: tuple[Section, Section]
    changes: list[Change]

    @property
    def epochs(self) -> str:
        """The epochs of both: `8 → 32 epochs`."""
        return " → ".join(f"{epochs_of(page.runs)[0]:g}" for page in self.pages) + " epochs"


def find_longer(sections: Iterable[Section]) -> list[Longer]:
    """Return each pair of sections with the same images and other epochs, next to each other in length, that have a
    statement in common. Invariant: the order of runs is irrelevant."""
    alike: dict[tuple[object, ...], dict[float, list[Section]]] = {}
    for section in sections:
        run, epochs = section.runs[0], epochs_of(section.runs[:1])
        shared = tuple(repr(run["page"]["settings"].get(name)) for name in SAME)
        if epochs:
            key = run["protocol"], run["data"]["fingerprint"], *shared
            alike.setdefault(key, {}).setdefault(epochs[0], []).append(section)
    found = []
    for by_epochs in alike.values():
        for before, after in itertools.pairwise(sorted(by_epochs)):
            for pages in itertools.product(by_epochs[before], by_epochs[after]):
                found += [Longer(pages, changes)] if (changes := compare_pages(*pages)) else []
    return found


def compare_pages(short: Section, long: Section) -> list[Change]:
    """Return the change of each statement at each sparsity that both pages can decide."""
    # here, because scipy takes a second
    from leaderboard.tables.stats import change_of_difference, difference_of_means

    rows = [merge_rows(page.runs) for page in (short, long)]
    shared = sorted(set.intersection(*({s for side in known.values() for s in side.sparsities()} for known in rows)))
    found: dict[tuple[str, str, float], Change | None] = {}
    for a, b in STATEMENTS:
        sides = [(share(known[a], known[b]), share(known[b], known[a])) for known in rows]
        for sparsity in shared:
            pairs = [(certain(one.at(sparsity)).values(), certain(other.at(sparsity)).values()) for one, other in sides]
            if min(len(sample) for pair in pairs for sample in pair) < LEAST_SEEDS:
                found[a, b, sparsity] = None
                continue
            before, after = (difference_of_means(*pair).mean or 0.0 for pair in pairs)
            change = change_of_difference(pairs[0], pairs[1], grain(long.runs[0]))
            found[a, b, sparsity] = Change(a, b, sparsity, before, after, change)
    adjusted = correct({key: change.difference.p if change else None for key, change in found.items()})
    return [replace(change, p=adjusted[key]) for key, change in found.items() if change]


def longer_lines(found: Iterable[Longer]) -> list[str]:
    """Return the part of the sheet on longer training, or nothing."""
    lines: list[str] = []
    for pair in found:
        before, after = (f"{epochs_of(page.runs)[0]:g} epochs" for page in pair.pages)
        unlike = f" They also differ in {told}." if (told := tell_unlike(pair)) else ""
        head = ("first − second", "sparsity", before, after, "change", "95 % interval", "p (Holm)")
        lines += [f"**{pair.pages[0].title}, and {pair.pages[1].title}**.{unlike}", ""]
        lines += [line(head), line(["---", "---:", "---:", "---:", "---:", "---:", "---:"])]
        lines += [line(describe(change)) for change in pair.changes]
        lines.append("")
    return [f"### {TITLE}", "", ABOUT, "", *lines] if lines else []


def tell_unlike(pair: Longer) -> str:
    """Return in what else the pages differ, such as `arithmetic (bf16 → fp32), ΔT`, or nothing."""
    one, other = (page.runs[0] for page in pair.pages)
    mine, theirs = one["page"]["settings"], other["page"]["settings"]
    told = [f"arithmetic ({arithmetic(one)} → {arithmetic(other)})"] if arithmetic(one) != arithmetic(other) else []
    unlike = [name for name in sorted(mine.keys() & theirs.keys() - TOLD_APART) if mine[name] != theirs[name]]
    told += [NAMES.get(name, escape(name.replace("_", " "))) for name in unlike]
    return ", ".join(told)


def describe(change: Change) -> list[str]:
    """Return the entries of a change; it is bold where it is significant."""
    shown = signed(change.difference.mean or 0.0)
    return [
        f"{escape(change.a)} − {escape(change.b)}",
        percent(change.sparsity),
        signed(change.before),
        signed(change.after),
        f"**{shown}**" if is_sure(change) else shown,
        show_interval(change.difference),
        show_p(change.p),
    ]


def is_sure(change: Change) -> bool:
    """Return whether a change is significant."""
    from leaderboard.tables.stats import ALPHA

    return change.p is not None and change.p <= ALPHA


def tell_longer(found: Iterable[Longer]) -> list[str]:
    """Return a sentence for each pair of pages: which changes are significant, and whether GraNet's main ones are."""
    told = []
    for pair in found:
        sure = [change for change in pair.changes if is_sure(change)]
        main = [change for change in pair.changes if (change.a, change.b) in MAIN and change not in sure]
        count = f"of {amount(len(pair.changes), 'change')} {len(sure) or 'none'} {'is' if len(sure) < 2 else 'are'}"
        text = f"**{TITLE}** ({pair.epochs}, to {pair.pages[1].title}): {count} significant"
        text += f": {', '.join(map(tell_change, sure))}" if sure else ""
        text += f"; not shown: {', '.join(map(tell_change, main))}" if main else ""
        text += f". The pages also differ in {unlike}" if (unlike := tell_unlike(pair)) else ""
        told.append(f"{text} ([all]({ANCHOR})).")
    return told


def tell_change(change: Change) -> str:
    """Return `granet − gmp at 98 % from −1.12 to −0.29`."""
    return f"{name(change)} from {signed(change.before)} to {signed(change.after)}"


def name(change: Change) -> str:
    """Return `granet − gmp at 98 %`."""
    return f"`{change.a}` − `{change.b}` at {percent(change.sparsity)}"
