"""The sheet on growth in bf16: what updates grow by gradients of either precision, and the accuracies of whole runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from leaderboard.claims.claim import show, show_p
from leaderboard.paper.cells import SAME_PAGE
from leaderboard.store.growth import OTHERS, REFERENCE, Growth
from leaderboard.store.records import Problem, finish_key
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import certain, grain, show_interval, signed
from leaderboard.tables.sections import amount, section_title, skipped_files
from leaderboard.tables.table import BLANK, LEAST_SEEDS, column_of, escape, gather, line, mean_and_std, percent

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

INTRODUCTION = """\
# Growth in bf16

Do methods that grow weights by their gradients fail where gradients are computed in bf16? A published study reports it
of RigL and GraNet, with recovery in fp32 (CHTs: Zhang et al., 2025, arXiv:2501.19107). In this suite weights, optimiser
state and scores are fp32 in either case; bf16 is autocast in the forward and backward pass. Made from the
[measurements]({growth}) and the [records]({records}) by `make leaderboard`; do not edit. `make precision-study` makes
the measurements, `make sweep GRID=configs/grids/precision.yaml` the runs.

## What is true here
"""

ABOUT_GROWTH = """
## What is grown

A run is trained in fp32. Before each update three dense gradients are taken with the same weights: of the update's
batch in fp32, of the same batch under bf16 autocast, and of the batch after it in fp32, as a yardstick. Each grows the
weights that the method's own rule would make active. *Of fp32's*: the share of what fp32 grows that the other gradient
grows, too; *Jaccard*: what both grow in per cent of what either grows. Both are over all layers and updates of a run,
mean ± sample standard deviation over seeds. The difference, bf16 less another batch, is of the shares of fp32's, paired
by seed, in points: a t-test, with Holm's correction over the rows.

{checked}
"""

ABOUT_TIES = """
## Zeros and ties

Of the inactive weights at updates: gradients that are exactly zero, and |gradients| that another weight of the layer
has exactly, too, in fp32 / in bf16. Of the weights grown in bf16: those that the order of equal gradients decided, and
those without any gradient. Spearman's correlation of the inactive weights' |gradients| with those in fp32: the mean
over layers and updates.
"""

ABOUT_ACCURACY = """
## Accuracy

Test accuracy after the last epoch, in per cent; at a seed both precisions have the same initial weights and batches.
Differences are paired by seed, in points, with Holm's correction over these rows. *Detectable*: the true difference
that so many seeds find in four of five cases, uncorrected.
"""

BF16, ANOTHER = OTHERS
LESS, MORE, SAME, OPEN = "below", "above", "no difference shown", "not decided"
NOT_PROTOCOL = {"precision", *SAME_PAGE}
PLACE = ["page", "method", "sparsity"]
TESTED = ["difference", "95 % interval", "p (Holm)", "seeds"]


@dataclass(frozen=True)
class Compared:
    """Two quantities paired by seed. Invariant: LESS and MORE need three seeds and an adjusted p of at most 0.05."""

    place: tuple[str, str, float]  # page and method, escaped, and sparsity
    one: dict[int, float]
    other: dict[int, float]
    members: list[Any]  # what it is made from: measurements, or the cells of both
    difference: Difference
    adjusted_p: float | None = None
    verdict: str = OPEN

    def show_place(self) -> list[str]:
        """Return the first entries of the row."""
        return [*self.place[:2], percent(self.place[2])]

    def show_test(self) -> list[str]:
        """Return the entries under TESTED."""
        found = self.difference
        return [show_mean(found.mean), show_interval(found), show_p(self.adjusted_p), str(found.n)]


def show_mean(mean: float | None) -> str:
    """Return a difference in points, or BLANK."""
    return BLANK if mean is None else signed(mean)


def render_precision(
    growths: list[Growth], records: list[Record], problems: Iterable[Problem], growth: str, folder: str
) -> str:
    """Return the sheet in Markdown, empty without a measurement; the last two are link targets.

    Invariant: the order of measurements and records is irrelevant.
    """
    if not growths:
        return ""
    grown, accuracies = compare_growth(growths), compare_accuracy(records)
    lines = [INTRODUCTION.format(growth=quote(growth), records=quote(folder))]
    lines += [f"- {told}" for told in (*tell_growth(grown), tell_ties(growths), *tell_accuracy(accuracies))]
    lines += [ABOUT_GROWTH.format(checked=tell_checked(growths, records)), *growth_table(grown)]
    for axis, what in enumerate(("update", "layer")):
        about = f"By {what}: % of what fp32 grows that bf16 / another batch grows, all seeds"
        lines += ["", "<details>", f"<summary>{about}</summary>", *matrices(grown, axis, what), "", "</details>"]
    lines += [ABOUT_TIES, *ties_table(grown), ABOUT_ACCURACY, *accuracy_table(accuracies)]
    return "\n".join([*lines, *skipped_files(problems)]) + "\n"


def conclude(rows: list[Compared]) -> list[Compared]:
    """Return the rows in order, with their verdicts after Holm's correction over all of them."""
    from leaderboard.tables.stats import ALPHA, holm  # here, because scipy takes a while

    rows = sorted(rows, key=lambda row: row.place)
    for number, p in holm({number: row.difference.p for number, row in enumerate(rows)}).items():
        mean, verdict = rows[number].difference.mean, OPEN
        if rows[number].difference.n >= LEAST_SEEDS and p is not None and mean is not None:
            verdict = SAME if p > ALPHA else MORE if mean > 0 else LESS
        rows[number] = replace(rows[number], adjusted_p=p, verdict=verdict)
    return rows


def compare_growth(growths: list[Growth]) -> list[Compared]:
    """Return the share of fp32's growth that bf16 grows less that of another batch, by page, method and sparsity."""
    from leaderboard.tables.stats import paired_difference

    groups: dict[str, dict[int, Growth]] = {}
    for growth in sorted(growths, key=lambda growth: str(growth["run"])):
        groups.setdefault(what_was_measured(growth), {}).setdefault(growth["seed"], growth)
    rows = []
    for by_seed in groups.values():
        one, other = ({seed: share([growth], name) for seed, growth in by_seed.items()} for name in OTHERS)
        first = next(iter(by_seed.values()))
        place = title_of(first), escape(first["method"]["label"]), first["sparsity"]
        rows.append(Compared(place, one, other, list(by_seed.values()), paired_difference(one, other)))
    return conclude(rows)


def changes_of(growth: Growth) -> dict[str, Any]:
    """Return the settings of a measurement's page that were changed and make another protocol."""
    return {key: value for key, value in growth["page"].get("changed", {}).items() if key not in NOT_PROTOCOL}


def what_was_measured(growth: Growth) -> str:
    """Return what the measurements of a row share; older ones do not tell the page's settings, but steps and layers."""
    page, steps = growth["page"], [growth["steps"], *(update["step"] for update in growth["updates"])]
    about = [page["name"], page["title"], changes_of(growth), steps, growth["layers"]]
    return json.dumps([about, *(growth[part] for part in ("data", "method", "sparsity"))], sort_keys=True)


def title_of(growth: Growth) -> str:
    """Return the escaped title of a measurement's page, with its changed settings."""
    return section_title({"page": {**growth["page"], "changed": changes_of(growth)}})


def compare_accuracy(records: list[Record]) -> list[Compared]:
    """Return the accuracy in bf16 less that in fp32 of every row that was run in both."""
    from leaderboard.tables.stats import paired_difference

    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        if not record["method"].get("donor"):
            of_both = groups.setdefault(without_precision(record), {})
            of_both.setdefault(record["environment"]["precision"], []).append(record)
    rows = []
    for of_both in groups.values():
        if of_both.keys() >= {BF16, REFERENCE}:
            run = max(of_both[BF16], key=finish_key)
            cells = [gather([one for one in of_both[name] if agree(one, run)]) for name in (BF16, REFERENCE)]
            one, other = map(certain, cells)
            place = escape(run["page"]["title"]), escape(run["method"]["label"]), column_of(cells[1].counted)
            rows.append(Compared(place, one, other, cells, paired_difference(one, other, grain(run))))
    return conclude(rows)


def without_precision(record: Record) -> str:
    """Return what runs have in common that differ in precision, seed and, if at all, the rest of the page."""
    page, method, environment = record["page"], record["method"], record["environment"]
    changed = {key: value for key, value in page["changed"].items() if key not in NOT_PROTOCOL}
    of_method = [method[part] for part in ("name", "sha256", "settings", "label")]
    about = record["protocol"], page["name"], record["data"]["fingerprint"], environment.get("batch_norm_shares", 1)
    return json.dumps([about, changed, of_method, record["sparsity"]], sort_keys=True)


def agree(one: Record, other: Record) -> bool:
    """Return whether two pages agree in every setting but precision that both have: older records lack later ones."""
    mine, theirs = one["page"]["settings"], other["page"]["settings"]
    return all(mine[key] == theirs[key] for key in (mine.keys() & theirs.keys()) - NOT_PROTOCOL)


def total(growths: list[Growth], name: str, what: str, axis: int = 0, number: int | None = None) -> int:
    """Return a sum of counts: of update (axis 0) or layer (axis 1) `number`, or of all."""
    counts = (
        (place, count)
        for growth in growths
        for update, row in enumerate(growth["updates"])
        for layer, count in enumerate(row[name][what] if isinstance(row[name][what], list) else [row[name][what]])
        for place in [(update, layer)]
    )
    return sum(count for place, count in counts if number is None or place[axis] == number)


def share(growths: list[Growth], name: str, axis: int = 0, number: int | None = None) -> float:
    """Return the percentage of the weights grown by fp32 that `name` grows, too."""
    grown = total(growths, REFERENCE, "grown", axis, number)
    return 100 * total(growths, name, "shared", axis, number) / max(1, grown)


def jaccard(growth: Growth, name: str) -> float:
    """Return the weights grown by both gradients, in per cent of those grown by either."""
    shared = total([growth], name, "shared")
    return 100 * shared / max(1, total([growth], name, "grown") + total([growth], REFERENCE, "grown") - shared)


def shares_of(growths: list[Growth], name: str, *parts: str) -> list[float]:
    """Return counts in per cent: of the inactive weights, but for those of grown ones."""
    inactive = sum(update["inactive"] for growth in growths for update in growth["updates"])
    grown = total(growths, name, "grown")
    wholes = {"zero": inactive, "tied": inactive, "by_index": grown, "grown_at_zero": grown}
    return [100 * total(growths, name, part) / max(1, wholes[part]) for part in parts]


def span(values: Iterable[float]) -> str:
    """Return `93.1 to 95.0`, or one number if they are written alike."""
    known = sorted(values)
    return " to ".join(dict.fromkeys(f"{value:.1f}" for value in (known[0], known[-1])))


def tell_growth(rows: list[Compared]) -> Iterator[str]:
    """Yield a sentence for each page: how far bf16, and another batch, change what is grown."""
    words = {
        MORE: "bf16 changes growth less than the choice of the batch does",
        LESS: "bf16 changes growth more than the choice of the batch does",
        SAME: "no difference between the two is shown",
        OPEN: "there are too few seeds to compare the two",
    }
    for page in dict.fromkeys(row.place[0] for row in rows):
        own = [row for row in rows if row.place[0] == page]
        one, other = span(fmean(row.one.values()) for row in own), span(fmean(row.other.values()) for row in own)
        verdicts = [row.verdict for row in own]
        of = f"of {amount(len(own), 'row')}"
        told = [f"{text} in {verdicts.count(key)} {of}" for key, text in words.items() if key in verdicts]
        yield (
            f"**Growth, {page}.** Under bf16 autocast an update picks {one} % of the weights that fp32 picks, where "
            f"another batch of the same data picks {other} %: {'; '.join(told)}."
        )


def tell_ties(growths: list[Growth]) -> str:
    """Return the sentence on ties."""
    (in_fp32,) = shares_of(growths, REFERENCE, "tied")
    tied, index, zero = shares_of(growths, BF16, "tied", "by_index", "grown_at_zero")
    return (
        f"**Ties.** {tied:.1f} % of the inactive weights' |gradients| equal another of their layer in bf16, "
        f"{in_fp32:.1f} % in fp32. The order of equal gradients decides on {index:.2f} % of what bf16 grows; "
        f"{zero:.2f} % of it had no gradient."
    )


def tell_accuracy(rows: list[Compared]) -> Iterator[str]:
    """Yield the sentences on accuracy, chosen by the verdicts."""
    verdicts = [row.verdict for row in rows]
    words = {LESS: "worse", MORE: "better", SAME: "no difference shown", OPEN: "not decided yet"}
    counted = ", ".join(f"{text} in {verdicts.count(key)}" for key, text in words.items() if key in verdicts)
    yield f"**Accuracy.** bf16 against fp32 in {amount(len(rows), 'row')} run in both: {counted or 'none yet'}."
    decided = [row for row in rows if row.verdict != OPEN]
    if not decided:
        return
    pages = " and of ".join(dict.fromkeys(row.place[0] for row in decided))
    means = [row.difference.mean for row in decided if row.difference.mean is not None]
    lowest = min(row.difference.low for row in decided if row.difference.low is not None)
    so = "bf16 costs accuracy in the rows marked worse" if LESS in verdicts else "a failure in bf16 is not seen here"
    yield (
        f"**So {so}.** In the rows with {LEAST_SEEDS} seeds or more, of {pages}, mean differences are "
        f"{signed(min(means))} to {signed(max(means))} points; the lowest bound of a 95 % interval, uncorrected, is "
        f"{signed(lowest)}. "
        "This holds for them and for fp32 weights and scores, not for weights that are themselves bf16."
    )


def tell_checked(growths: list[Growth], records: list[Record]) -> str:
    """Return how many of the measured runs have a record, and how many of these ended with the very same masks."""
    known = {record["run"]: record["masks_sha256"] for record in records}
    there = [known[growth["run"]] == growth["masks_sha256"] for growth in growths if growth["run"] in known]
    return f"{len(there)} of {amount(len(growths), 'measured run')} have a record, and {sum(there)} its very masks."


def growth_table(rows: list[Compared]) -> list[str]:
    """Return the table of what is grown."""
    head = [*PLACE, "updates", "grown by fp32", "bf16, of fp32's, %", "another batch, of fp32's, %"]
    head += ["bf16, Jaccard", "another batch, Jaccard", *TESTED]
    lines = [line(head), line("---" for _ in head)]
    for row in rows:
        counts = sum(len(growth["updates"]) for growth in row.members), total(row.members, REFERENCE, "grown")
        shown = [mean_and_std(values.values()) for values in (row.one, row.other)]
        shown += [mean_and_std(jaccard(growth, name) for growth in row.members) for name in OTHERS]
        lines.append(line([*row.show_place(), *(f"{count:,}" for count in counts), *shown, *row.show_test()]))
    return lines


def matrices(rows: list[Compared], axis: int, what: str) -> Iterator[str]:
    """Yield the tables of shares by update (axis 0) or layer (axis 1), one for each page."""
    for page in dict.fromkeys(row.place[0] for row in rows):
        own = [row for row in rows if row.place[0] == page]
        head = [what, *(f"{row.place[1]}, {percent(row.place[2])}" for row in own)]
        places = [list_places(row.members[0], axis) for row in own]
        every = dict.fromkeys(chain(*places)) if axis else sorted({*chain(*places)})
        yield from ("", page, "", line(head), line("---" for _ in head))
        for place in every:
            entries = []
            for row, known in zip(own, places, strict=True):
                number = known.index(place) if place in known else None
                grown = 0 if number is None else total(row.members, REFERENCE, "grown", axis, number)
                shown = (f"{share(row.members, other, axis, number):.1f}" for other in OTHERS)
                entries.append(" / ".join(shown) if grown else BLANK)
            yield line([escape(place if axis else f"step {place}"), *entries])


def list_places(growth: Growth, axis: int) -> list[Any]:
    """Return the steps of a measurement's updates (axis 0) or its layers (axis 1)."""
    return list(growth["layers"]) if axis else [update["step"] for update in growth["updates"]]


def ties_table(rows: list[Compared]) -> list[str]:
    """Return the table of zeros, ties and correlations."""
    head = [*PLACE, "zero, %", "tied, %", "grown by order, %", "grown without gradient, %"]
    head += ["bf16, correlation", "another batch, correlation"]
    lines = [line(head), line("---" for _ in head)]
    for row in rows:
        fp32, bf16 = (shares_of(row.members, name, "zero", "tied") for name in (REFERENCE, BF16))
        shown = [f"{one:.2f} / {other:.2f}" for one, other in zip(fp32, bf16, strict=True)]
        shown += [f"{value:.2f}" for value in shares_of(row.members, BF16, "by_index", "grown_at_zero")]
        for name in OTHERS:
            found = [update[name]["correlation"] for growth in row.members for update in growth["updates"]]
            known = [value for value in found if value is not None]
            shown.append(show(fmean(known) if known else None, "{:.3f}"))
        lines.append(line([*row.show_place(), *shown]))
    return lines


def accuracy_table(rows: list[Compared]) -> list[str]:
    """Return the table of accuracies."""
    head = [*PLACE, "fp32", "bf16", *TESTED, "detectable", "bf16 is"]
    lines = [line(head), line("---" for _ in head)]
    words = {LESS: "**worse**", MORE: "**better**"}
    for row in rows:
        accuracies = [cell.accuracy() for cell in reversed(row.members)]
        shown = [show(row.difference.detectable, "{:.2f}"), words.get(row.verdict, row.verdict)]
        lines.append(line([*row.show_place(), *accuracies, *row.show_test(), *shown]))
    return lines
