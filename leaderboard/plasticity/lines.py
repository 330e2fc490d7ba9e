"""The numbers of the two pictures of a study: the GraNet paper's Figures 2 and 3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from leaderboard.drawing.pictures import Picture
from leaderboard.plasticity.numbers import PruningLine, Schedule
from leaderboard.plasticity.points import GAP, PLASTICITY, Study, mean_of
from leaderboard.records import file_stem

TITLES = {
    PLASTICITY: "Pruning plasticity",
    GAP: "Final performance gap",
}
CAPTIONS = {
    PLASTICITY: (
        "Test accuracy {more} epochs after a network was pruned at an epoch, at the learning rate then in force, less "
        "its accuracy just before, in points; mean over seeds. "
    ),
    GAP: (
        "Test accuracy at the end of training of a network that was pruned at an epoch, less that of the network that "
        "was not, in points; mean over seeds. "
    ),
}
READING = (
    "Columns: the network before pruning; a line for each share of its weights that was pruned; below, as many were "
    "grown again. Red lines: the learning rate falls. The axis is linear within a point of zero and logarithmic beyond."
)


def list_pruning_pictures(studies: Iterable[Study]) -> dict[str, Picture]:
    """Return the pictures of the studies by the stem of their files.

    Invariant: a picture has a line for each network, rate and way of pruning of which a branch did not diverge.
    """
    found = {}
    for study in studies:
        for kind in (PLASTICITY, GAP):
            lines = make_lines(study, kind)
            if lines:
                schedule = Schedule(float(study.epochs), [float(drop) for drop in study.drops])
                title = f"{TITLES[kind]}{f' after {study.more} epochs' if kind == PLASTICITY else ''}"
                caption = CAPTIONS[kind].format(more=study.more) + READING
                found[f"{name_study(study)}.{kind}"] = Picture(kind, title, caption, study.page, [*lines, schedule])
    return found


def make_lines(study: Study, kind: str) -> list[PruningLine]:
    """Return the means over seeds by epoch, a line for each network, rate and way of pruning."""
    points: dict[tuple[float, float, bool], dict[float, float]] = {}
    for cell, by_seed in study.values[kind].items():
        mean = mean_of(by_seed)
        if mean is not None:
            points.setdefault((cell.sparsity, cell.rate, cell.regrow), {})[float(cell.epoch)] = mean
    lines = []
    for key, by_epoch in sorted(points.items()):
        epochs = sorted(by_epoch)
        lines.append(PruningLine(*key, epochs, [by_epoch[epoch] for epoch in epochs]))
    return lines


def name_study(study: Study) -> str:
    """Return the name of a study for files; another one for every study."""
    key = json.dumps([study.about, study.scope, study.pattern, study.more])
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return f"plasticity-{file_stem(study.name)[:80]}.{digest}"
