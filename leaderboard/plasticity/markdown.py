"""The sheet of pruning plasticity and the list of its pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from statistics import fmean, stdev
from typing import TYPE_CHECKING
from urllib.parse import quote

from leaderboard.claims.claim import show_p
from leaderboard.drawing.pictures import Picture, PruningLine, Schedule, embed
from leaderboard.plasticity.findings import (
    CLAIMS,
    GAP,
    NAMES,
    PLASTICITY,
    Finding,
    Study,
    by_share,
    find_findings,
    make_studies,
)
from leaderboard.store.records import Problem, file_stem
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import show_bounds, show_interval, signed
from leaderboard.tables.sections import amount, skipped_files
from leaderboard.tables.table import BLANK, escape, line, mean_and_std, percent

if TYPE_CHECKING:
    from leaderboard.tables.stats import Difference

INTRODUCTION = """\
# Pruning plasticity

How well networks recover from pruning while they train: Liu et al., 2021, arXiv:2106.10404, Section 3. Made from the
[records of branches]({folder}) by `make leaderboard`; do not edit. `make plasticity` makes the runs.

- **Pruning.** A network, dense or with static masks of uniform sparsity, is trained; after an epoch a share of its
  active weights is pruned by magnitude, at once. With regeneration as many weights are grown again, by gradient
  magnitude, from zero; so networks with and without it differ in how many weights they have, too. A dense network gets
  back the very weights that it lost. The harshest rates may leave layers without a weight; such branches count.
- **Plasticity**: accuracy some epochs later, at the learning rate in force when it was pruned (at an epoch with which
  the learning rate falls, the lower one), less the accuracy just before pruning. It holds what the network would have
  learned in these epochs without pruning, too: much at the start of training, little at its end.
- **Final gap**: accuracy at the page's end, with the rest of its schedule, less that of the same run not pruned.
- Accuracies are of the test images, as in the paper, and of the last epoch: none is chosen on them. Differences are in
  points.
- **Findings.** Each seed gives one number: the mean difference over all pairs of cells that differ only in what is
  compared; cells of several epochs at one learning rate are averaged first. Over seeds: t-tests with 95 % intervals,
  Holm's correction over the claims of a study, one test image counted as noise. *Supported* needs three seeds, the
  paper's sign and p of at most 0.05. Epochs at other learning rates are earlier or later ones, too, so the first claim
  on plasticity holds in part because networks learn more early on, and in the final gap what is pruned earlier has
  longer to recover."""

SHARES = (
    "Effects among the branches of one share pruned, with 95 % intervals over seeds, uncorrected; bold where they "
    "exclude zero. At the mildest pruning most of what a higher learning rate brings is no recovery: networks learn on."
)


def render_plasticity(
    records: list[Record], problems: Iterable[Problem], folder: str = "branches", pictures: str = "pictures"
) -> str:
    """Return the sheet in Markdown, or an empty text if no record is of a pruned branch.

    `folder` and `pictures` are link targets relative to the sheet. Invariant: the order of the records is irrelevant.
    """
    studies = make_studies(records)
    if not studies:
        return ""
    lines = [INTRODUCTION.format(folder=quote(folder))]
    titles = [study.title for study in studies]
    for study in studies:
        name = study.title if titles.count(study.title) == 1 else f"{study.title}, {epochs(study)} ({study.about})"
        lines += section(study, name, pictures)
    return "\n".join([*lines, *skipped_files(problems)]) + "\n"


def section(study: Study, title: str, folder: str) -> list[str]:
    """Return the lines of one study."""
    seeds = sorted({*study.seeds(PLASTICITY), *study.seeds(GAP)})
    lines = [
        "",
        f"## {title}",
        "",
        f"Page {escape(study.name)}; {study.about}; {study.runs} branches; seeds {list_numbers(seeds)}; "
        f"{study.epochs} epochs, learning rate falls at {list_numbers(study.drops) or 'none'}; plasticity after "
        f"{epochs(study)}.",
        "",
        *findings_table(find_findings(study)),
        "",
        *shares_table(study),
    ]
    lines += embed(list_pruning_pictures([study]), folder)
    for kind in (PLASTICITY, GAP):
        if study.values[kind]:
            heading = f"{NAMES[kind].capitalize()}, points, mean ± sample standard deviation over seeds (n)"
            lines += ["", "<details>", f"<summary>{heading}</summary>", ""]
            lines += [*values_table(study, kind), "", "</details>"]
    return lines


def epochs(study: Study) -> str:
    """Return after how many epochs plasticity was measured: `1 epoch`."""
    return amount(study.more, "epoch")


def list_numbers(numbers: Iterable[int]) -> str:
    """Return numbers separated by commas."""
    return ", ".join(map(str, numbers))


def findings_table(findings: list[Finding]) -> list[str]:
    """Return the table of what the runs say of the paper's claims."""
    head = ["claim", "measured by", "compared", "effect, points", "95 % interval", "p (Holm)", "seeds", "verdict"]
    lines = [line(head), line("---" for _ in head)]
    for finding in findings:
        found = finding.difference
        verdict = f"**{finding.verdict}**"
        lines.append(
            line(
                [
                    CLAIMS[finding.claim],
                    NAMES[finding.kind],
                    f"{finding.compared}; {finding.pairs} pairs of cells",
                    BLANK if found.mean is None else signed(found.mean),
                    show_interval(found),
                    show_p(finding.adjusted_p),
                    str(found.n),
                    f"{verdict} ({finding.reason})" if finding.reason else verdict,
                ]
            )
        )
    return lines


def shares_table(study: Study) -> list[str]:
    """Return the table of effects among the branches of each share pruned, nothing if there is one share."""
    kinds = [kind for kind in (PLASTICITY, GAP) if study.values[kind]]
    effects = {(claim, kind): by_share(study, kind, claim) for kind in kinds for claim in CLAIMS}
    effects = {key: found for key, found in effects.items() if found}  # a claim on the share itself has none
    shares = sorted({share for found in effects.values() for share in found})
    if len(shares) < 2:
        return []
    head = ["claim, by share pruned", "measured by", *(f"{percent(share)} pruned" for share in shares)]
    lines = [line(head), line(["---", "---"] + ["---:"] * len(shares))]
    for (claim, kind), found in effects.items():
        shown = [show_effect(found[share]) if share in found else BLANK for share in shares]
        lines.append(line([CLAIMS[claim], NAMES[kind], *shown]))
    return [*lines, "", SHARES]


def show_effect(found: Difference) -> str:
    """Return `+3.71 [+1.10, +6.32]`, bold where the interval excludes zero."""
    if found.mean is None:
        return BLANK
    text = f"{signed(found.mean)}{show_bounds(found)}"
    return f"**{text}**" if (found.low or 0.0) > 0 or (found.high or 0.0) < 0 else text


def values_table(study: Study, kind: str) -> list[str]:
    """Return a table of values: a row for each network, regeneration and rate; a column for each epoch."""
    values = study.values[kind]
    epochs = sorted({cell.epoch for cell in values})
    head = ["network", "regeneration", "pruned", *(f"epoch {epoch}, lr {study.rates[epoch]:g}" for epoch in epochs)]
    lines = [line(head), line("---" for _ in head)]
    rows = sorted({(cell.sparsity, cell.regrow, cell.rate) for cell in values})
    for sparsity, regrow, rate in rows:
        cells = []
        for epoch in epochs:
            by_seed = next((v for c, v in values.items() if c == (sparsity, rate, regrow, epoch)), {})
            cells.append(show_cell(list(by_seed.values())))
        network = f"sparsity {percent(sparsity)}" if sparsity else "dense"
        lines.append(line([network, "yes" if regrow else "no", f"{percent(rate)} pruned", *cells]))
    return lines


def show_cell(values: list[float | None]) -> str:
    """Return `−1.20 ± 0.21 (3)`; diverged branches are counted beside the others."""
    if not values:
        return BLANK
    diverged = sum(value is None for value in values)
    known = len(values) - diverged
    shown = re.sub(r"^-(?=0\.00)", "", mean_and_std(values)).replace("-", "−")  # -0.00 is what noise leaves of zero
    return f"{shown} ({known}{f', {diverged} diverged' if diverged else ''})"


TITLES = {PLASTICITY: "Pruning plasticity", GAP: "Final performance gap"}
CAPTIONS = {
    PLASTICITY: (
        "Test accuracy {more} after a network was pruned at an epoch, at the learning rate then in force, less "
        "its accuracy just before, in points; mean over seeds, bars of ± one sample standard deviation. "
    ),
    GAP: (
        "Test accuracy at the end of training of a network that was pruned at an epoch, less that of the network that "
        "was not, in points; mean over seeds, bars of ± one sample standard deviation. "
    ),
}
READING = (
    "Columns: the network before pruning; a line for each share of its weights that was pruned, set apart sideways; "
    "below, as many were grown again. Red lines: the learning rate falls. The axis is linear within a point of zero, "
    "logarithmic beyond."
)


def list_pruning_pictures(studies: Iterable[Study]) -> dict[str, Picture]:
    """Return the pictures of the studies by the stem of their files.

    Invariant: a picture has a line for each network, rate and regeneration with a branch that did not diverge.
    """
    found = {}
    for study in studies:
        for kind in (PLASTICITY, GAP):
            if lines := make_lines(study, kind):
                schedule = Schedule(float(study.epochs), [float(drop) for drop in study.drops])
                title = f"{TITLES[kind]}{f' after {epochs(study)}' if kind == PLASTICITY else ''}"
                caption = CAPTIONS[kind].format(more=epochs(study)) + READING
                found[f"{name_study(study)}.{kind}"] = Picture(kind, title, caption, study.page, [*lines, schedule])
    return found


def make_lines(study: Study, kind: str) -> list[PruningLine]:
    """Return means and spreads over seeds by epoch, a line for each network, rate and regeneration."""
    points: dict[tuple[float, float, bool], dict[float, tuple[float, float]]] = {}
    for cell, by_seed in study.values[kind].items():
        known = [value for value in by_seed.values() if value is not None]
        if known:
            spread = stdev(known) if len(known) > 1 else 0.0
            points.setdefault((cell.sparsity, cell.rate, cell.regrow), {})[float(cell.epoch)] = fmean(known), spread
    lines = []
    for key, by_epoch in sorted(points.items()):
        epochs = sorted(by_epoch)
        values, spreads = zip(*(by_epoch[epoch] for epoch in epochs), strict=True)
        lines.append(PruningLine(*key, epochs, list(values), list(spreads)))
    return lines


def name_study(study: Study) -> str:
    """Return the file name of a study, unique to it."""
    key = json.dumps([study.about, study.scope, study.pattern, study.more])
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"plasticity-{file_stem(study.name)[:80]}.{digest}"
