"""Pruning plasticity: the runs and branches that measure how well a network recovers from pruning while it trains.

Liu et al., 2021, arXiv:2106.10404, Section 3. Networks are trained dense and with static uniform masks; after some
epochs a share of the active weights is pruned once, with or without as many grown again. One branch trains on for a
while at the learning rate then in force (plasticity), another to the page's end (final performance gap).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError
from benchmark.config.cells import Cell, Item, parse_arguments, plan_cells
from benchmark.config.grids import Grid
from benchmark.config.pages import load_page
from benchmark.runs.branch import Branch, make_branch
from benchmark.runs.checkpoints import parse_epochs
from benchmark.runs.parents import Parent
from leaderboard.tables.sections import amount

SPARSITIES = "0.5,0.9,0.98"  # of the static networks; the dense one is beside them
RATES = (0.2, 0.5, 0.9, 0.98)  # of the active weights, pruned at once
SCOPES = ("global", "layer")
PATTERNS = ("none", "filters")


@dataclass(frozen=True)
class Scale:
    """The size of a study. `epochs` and `finals` (None: the same) are the shares of the run at which to prune; branches
    train `more` epochs for plasticity, and those at `finals` also to the end. `arguments`: settings of the page."""

    task: str
    arguments: str
    epochs: tuple[float, ...]
    finals: tuple[float, ...] | None
    more: int


SCALES = {
    "paper": Scale("cifar10_resnet20", "", (0.0625, 0.25, 0.4375, 0.5625, 0.6875, 0.8125, 0.9375), None, 30),
    # the same shape in 20 minutes on two cores: learning rates drop after half and three quarters of the epochs
    "small": Scale("digits_resnet20", "epochs=16", (0.25, 0.4375, 0.625, 0.875), (0.4375, 0.625, 0.875), 3),
    # on both sides of both drops, after 6 and 9 of 12 epochs: 3, 5 | 7, 8 | 10; 2.6 core hours for three seeds
    "photographs": Scale(
        "cifar10jpeg_resnet20_5k", "", (3 / 12, 5 / 12, 7 / 12, 8 / 12, 10 / 12), (5 / 12, 8 / 12, 10 / 12), 3
    ),
}


@dataclass(frozen=True)
class StudyItem(Item):
    """A run of a study; `donor` is a branch's parent. As text it says when and how that is pruned."""

    def __str__(self) -> str:
        branch, parent = self.cell, self.donor or self.cell
        name = f"{parent.plugin.name} {parent.sparsity:g}, seed {parent.seed}"
        if not isinstance(branch, Branch):
            return name
        settings = branch.method_settings()
        grown = " and regrown" if settings["regrow"] else ""
        length = amount(branch.end - branch.epoch, "more epoch") if branch.hold_lr else "to the end"
        return f"{name}, {settings['rate']:g} pruned{grown} at epoch {branch.epoch}, {length}"


@dataclass(frozen=True)
class StudyGrid(Grid):
    """The runs of a study; of every parent a snapshot is kept after each of the epochs `snapshots`."""

    snapshots: tuple[int, ...] = ()


@dataclass(frozen=True)
class Study:
    """The parents, in the order of seeds, and what is pruned from each. `asked`: the arguments of `make_study`."""

    asked: dict[str, Any]
    parents: list[Cell]
    epochs: tuple[int, ...]
    finals: tuple[int, ...]
    more: int
    scope: str
    pattern: str

    def as_dict(self) -> dict[str, Any]:
        """Return the arguments of `make_study` for this study."""
        return self.asked

    def grid(self) -> StudyGrid:
        """Return the runs: the parents of a seed, then what is branched from them, plasticity first."""
        items: list[Item] = []
        made: dict[str, Branch] = {}  # of one epoch and seed; only these differ, and planning a branch takes long
        for seed in dict.fromkeys(parent.seed for parent in self.parents):
            parents = [parent for parent in self.parents if parent.seed == seed]
            items += [StudyItem(parent, parent.plugin.name) for parent in parents]
            for parent in parents:
                source = Parent(parent, Path(parent.identity), None, [], "")
                for asked in self.branches(parent):
                    key = repr([parent.label, parent.sparsity, {**asked, "epoch": None}])
                    if key not in made:
                        made[key] = make_branch(source, **asked)
                    epoch = asked["epoch"]
                    end = parent.page.epochs if asked["more"] is None else epoch + asked["more"]
                    branch = replace(made[key], parent=source, seed=seed, epoch=epoch, end=end)
                    items.append(StudyItem(branch, branch.plugin.name, parent))
        first = self.parents[0]
        title = f"{first.title}: pruned at epochs {', '.join(map(str, self.epochs))} of {first.page.epochs}"
        return StudyGrid("plasticity", title, items, self.epochs)

    def branches(self, parent: Cell) -> Iterator[dict[str, Any]]:
        """Yield the arguments of `make_branch` for each branch of a parent, plasticity first."""
        for held, epochs in ((True, self.epochs), (False, self.finals)):
            for epoch, rate, regrow in product(epochs, RATES, (False, True)):
                kept = 1 - parent.sparsity if regrow else (1 - parent.sparsity) * (1 - rate)
                words = [f"rate={rate}", f"regrow={str(regrow).lower()}", f"scope={self.scope}"]
                words += [f"pattern={self.pattern}", "allow_empty_layers=true"]  # the sparsest leave less than a weight
                yield {
                    "epoch": epoch,
                    "method": "one_shot",
                    "sparsity": f"{round(1 - kept, 12):.12g}",
                    "arguments": " ".join(words),
                    "hold_lr": held,
                    "more": self.more if held else None,
                }


def make_study(
    *, task: str, scale: str, seeds: str, epochs: str, more: int | None, scope: str, pattern: str, arguments: str
) -> Study:
    """Return a study; empty texts and a `more` of None take the scale's values.

    `scale` auto is the one made for the page; small on others of the embedded digits and if no page is named, else
    paper. Raises UserError for an impossible value.
    """
    given = dict(locals())
    chosen = SCALES[choose_scale(scale, task)]
    refuse_fixed(arguments)
    words = f"{chosen.arguments} {arguments}".strip()
    name = task or chosen.task
    parents = plan_cells("dense", "0", name, seeds, words)
    parents += plan_cells("static", SPARSITIES, name, seeds, f"{words} distribution=uniform".strip())
    if len({parent.page_name for parent in parents}) > 1:
        raise UserError(f"TASK must be one page, got '{task}'")
    for what, value, known in (("SCOPE", scope, SCOPES), ("PATTERN", pattern, PATTERNS)):
        if value not in known:
            raise UserError(f"{what} must be one of {', '.join(known)}, got '{value}'")
    last = parents[0].page.epochs
    if more is not None and more < 1:
        raise UserError(f"MORE must be at least 1 epoch, got {more}: without training nothing recovers")
    asked = parse_epochs(epochs, last, "EPOCHS") or tuple(sorted({max(1, round(s * last)) for s in chosen.epochs}))
    finals = asked
    if not epochs and chosen.finals is not None:
        finals = tuple(sorted({max(1, round(share * last)) for share in chosen.finals}))
    finals = tuple(epoch for epoch in finals if epoch < last)
    parents.sort(key=lambda cell: cell.seed)  # whole seeds first: a verdict needs three
    return Study(given, parents, asked, finals, more or chosen.more, scope, pattern)


def refuse_fixed(arguments: str) -> None:
    """Raise UserError for a setting that a study decides itself, which would otherwise be ignored silently."""
    for name in ("distribution", "allow_empty_layers"):
        if name in parse_arguments(arguments):
            raise UserError(
                f"ARGS: {name} cannot be set here: the networks are dense or of uniform sparsity, and a layer may be "
                "left empty by the harshest rates; leave it out"
            )


def choose_scale(scale: str, task: str) -> str:
    """Return the name of a scale."""
    if scale in SCALES:
        return scale
    if scale != "auto":
        raise UserError(f"SCALE must be auto or one of {', '.join(SCALES)}, got '{scale}'")
    made_for = (name for name, known in SCALES.items() if known.task == task)
    return next(made_for, "small" if not task or load_page(task).data == "digits" else "paper")
