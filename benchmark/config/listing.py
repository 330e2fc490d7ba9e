"""Lists of methods and pages, made from the code, and a template for a new method."""

from __future__ import annotations

import keyword
from datetime import date
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmark.base.errors import UserError
from benchmark.config.pages import load_page, page_names
from benchmark.config.plugins import ALL, METHODS, TABLES, find_method, method_names
from methods.core import Budget, DenseGrads, Group, Inactive, Method, Trains

GROUPS = (Group.BEFORE_TRAINING, Group.SPARSE_TO_SPARSE, Group.DENSE_TO_SPARSE, Group.DENSE, Group.CONTROL)


def describe_needs(cls: type[Method]) -> str:
    """Return in words what a method needs from the engine."""
    needs = []
    if cls.scoring is not Method.scoring:
        needs.append("gradients before training")
    if cls.dense_grads is not DenseGrads.NEVER:
        needs.append(f"dense gradients {cls.dense_grads.value}")
    elif cls.dense_gradients is not Method.dense_gradients:
        needs.append("dense gradients where a setting asks for them")
    if cls.replaces_step:
        needs.append("an update replaces the step")
    if cls.inactive is Inactive.STORED:
        needs.append("the values of inactive weights")
    if cls.trains is Trains.ALL:
        needs.append("gradients of all weights at every step" if cls.straight_through else "all weights to be stepped")
    for hook, need in (
        ("rounds", "several trainings"),
        ("penalty", "a penalty"),
        ("learned", "parameters of its own"),
        ("moments", "second moments of inputs"),
    ):
        if getattr(cls, hook) is not getattr(Method, hook):
            needs.append(need)
    if cls.writes:
        needs.append("to write weights")
    if cls.narrows_network:
        needs.append("a narrower network")
    if cls.donor is not Method.donor:
        needs.append("where asked, the counts or masks of another run")
    if cls.budget is Budget.OUTCOME:
        needs.append("its weight count is an outcome")
    return ", ".join(needs) or "nothing"


def print_methods(console: Console) -> None:
    """Print every method by group: name, paper, what it needs, settings. A broken plugin is listed with its fault."""
    rows: dict[str, list[tuple[str, ...]]] = {group.value: [] for group in GROUPS}
    for name in method_names():
        try:
            plugin = find_method(name)
        except UserError as error:
            rows.setdefault("broken", []).append((name, str(error)))
            continue
        cls = plugin.cls
        rows[cls.group.value].append((name, cls.reference, describe_needs(cls), plugin.listed()))
    table = Table(box=None, pad_edge=False)
    for column in ("method", "paper", "needs", "settings"):
        table.add_column(column, overflow="fold")
    for group, found in rows.items():
        table.add_row(f"[bold]{group}[/bold]")
        for row in found:
            table.add_row(f"  {row[0]}", *map(escape, row[1:]))
    console.print(table)


def print_pages(console: Console) -> None:
    """Print every page of configs/: name and title."""
    table = Table(box=None, pad_edge=False)
    for column in ("page", "title", "backbone", "epochs"):
        table.add_column(column)
    for name in page_names():
        page = load_page(name)
        table.add_row(name, page.title, page.model, str(page.epochs))
    console.print(table)


TEMPLATE = '''"""{title}: one line on what it does.

Paper: authors, title, year, arXiv number. Name the equations beside the lines that are them. Under "Deviations" write a
row for each point on which this file, the paper or its authors' code differ ("not stated" where the paper leaves it
open; of the code, where it was looked for), or only: none

Deviations (point | paper | authors' code | here | why):
- first masks | not stated | no code was published | the page's distribution (ERK), exact counts | the budget is exact
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from methods.core import (
    DISTRIBUTIONS,
    Group,
    Masks,
    Method,
    Timeline,
    View,
    drop,
    from_page,
    grow,
    magnitude,
    random_masks,
    random_scores,
    update_range,
)


@dataclass(frozen=True, kw_only=True)
class {title}(Method):
    """Drop the smallest weights of each layer and grow as many at random."""

    reference: ClassVar[str] = "you, {year}"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    # Growth by gradient needs: dense_grads: ClassVar[DenseGrads] = DenseGrads.AT_UPDATES, then gradient_magnitude(view)

    prune_rate: float = 0.3  # share of a layer's active weights exchanged at an update
    update_every: int = from_page(1000)  # steps; the page's value unless ARGS=update_every=N says otherwise
    distribution: str = from_page("erk")  # of layer densities

    def update_steps(self, timeline: Timeline) -> range:
        return update_range(self.update_every, timeline.total_steps)

    def setup(self, view: View) -> Masks:
        return random_masks(view, DISTRIBUTIONS[self.distribution](view.shapes, view.count(self.sparsity)))

    def update(self, view: View) -> Masks:
        kept = drop(dict(view.masks), magnitude(view), self.prune_rate)
        return grow(kept, random_scores(view), like=view.masks)
'''


def write_new_method(name: str, folder: Path | None, console: Console) -> None:
    """Write a working method file called `name` and print the next steps; never overwrites a file.

    Without a folder it is the `methods/` of the checkout here, which need not be the one that runs: several checkouts
    may share a .venv. Raises UserError for a name that is not a Python name in lower case or is taken.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower() or name.startswith("_"):
        raise UserError(f"NAME must be a Python name in lower case, such as my_method, got '{name}'")
    here = Path.cwd() / "methods"
    folder = folder or (here if (here / "core" / "__init__.py").is_file() else METHODS)
    target = folder / f"{name}.py"
    if name in (ALL, *TABLES, *method_names()) or target.exists():
        raise UserError(f"a method called '{name}' already exists: choose another NAME")
    if not target.parent.is_dir():
        raise UserError(f"folder {target.parent} does not exist")

    title = "".join(part.capitalize() for part in name.split("_"))
    with target.open("x") as file:
        file.write(TEMPLATE.format(title=title, year=date.today().year))
    ours = folder.resolve() == METHODS
    asked = name if ours else str(target)
    lines = [f"wrote {target}: a working method that drops by magnitude and grows at random"]
    if folder == here and not ours:
        lines.append(f"this .venv runs {METHODS.parent}, which does not have it: name it by its path, as below")
    lines.append(f"try it    make bench METHOD={asked} SPARSITY=0.9")
    if ours:
        lines.append("list it   make deviations  (methods/DEVIATIONS.md, from the table in the file's docstring)")
    lines.append(f"check it  make check-method METHOD={asked}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
