"""Branches: runs that continue from a snapshot of another run, with other settings of page or method."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError
from benchmark.config.cells import (
    PROTOCOL,
    Cell,
    check_methods,
    check_values,
    parse_arguments,
    parse_sparsity,
    refuse_unknown,
    short_hash,
)
from benchmark.config.pages import Page, changed_settings, load_page, merge_settings
from benchmark.config.plugins import Plugin, find_method
from benchmark.config.settings import merge_maps, resolve
from benchmark.runs.checkpoints import read_snapshot, restore, snapshot_path
from benchmark.runs.parents import Parent
from benchmark.runs.run import Start, Warn, refuse_rounds, set_up_masks
from benchmark.training.contract import planned_count
from benchmark.training.method_state import MethodState, ask_rounds
from benchmark.training.optim import learning_rate
from benchmark.training.state import Training
from benchmark.training.train import accuracy_pct
from methods.core import Budget, Method, Timeline, count_kept

# Page settings that a branch may change. Others would not fit its snapshot, or would change what an epoch is.
FREE = {
    *("title", "epochs", "lr", "lr_schedule", "lr_drops", "lr_gamma", "warmup_epochs", "momentum", "weight_decay"),
    *("label_smoothing", "clip_norm", "distribution", "prune_end", "update_every", "allow_empty_layers", "methods"),
    *("eval_every", "data_dir", "workers"),
}


@dataclass(frozen=True, kw_only=True)
class Branch(Cell):
    """A cell that starts from a snapshot of `parent` after `epoch` epochs and trains up to epoch `end`.

    Epochs, steps, batches and the optimiser's state continue as in the parent. goes_on: so does the parent's method,
    with the snapshot's masks; otherwise the new method chooses masks, given the trained weights and these masks.
    hold_lr: keep the learning rate of the first epoch; otherwise follow the schedule of `page`, whose epochs count from
    the parent's start. changed: what differs from the parent, for the record.
    """

    parent: Parent
    epoch: int
    end: int
    hold_lr: bool
    goes_on: bool
    changed: dict[str, Any]

    @property
    def identity(self) -> str:
        """The run's name, such as digits_resnet20.one_shot.0.5.s0.e10.3f9a1c2e: a function of what was asked."""
        content = {
            "protocol": PROTOCOL,
            "parent": self.parent.name,
            "span": [self.epoch, self.end, self.hold_lr],
            "variant": self.variant,
            "method": [self.plugin.name, self.plugin.sha256, self.method_settings()],
            "sparsity": self.sparsity,
        }
        head = f"{self.page_name}.{self.plugin.name}.{self.sparsity:g}.s{self.seed}"
        return f"{head}.e{self.epoch}.{short_hash(content)}"

    @property
    def first_lr(self) -> float:
        """The learning rate at its start: that of the next epoch, or of the page's last."""
        return learning_rate(self.page, min(self.epoch, self.page.epochs - 1))

    @property
    def schedule(self) -> Page:
        """The page whose learning rates it uses."""
        if not self.hold_lr:
            return self.page
        return dataclasses.replace(self.page, lr=self.first_lr, lr_schedule="step", lr_drops=[], warmup_epochs=0)


def make_branch(
    parent: Parent,
    *,
    epoch: int,
    method: str = "",
    sparsity: str = "",
    arguments: str = "",
    hold_lr: bool = False,
    more: int | None = None,
) -> Branch:
    """Return the requested branch; raises UserError for any mistake that shows without the snapshot.

    method, sparsity: empty = the parent's. arguments: settings of method or page. more: epochs to train, None = to the
    page's end.
    """
    cell = parent.cell
    plugin = find_method(method) if method else cell.plugin
    changes = parse_arguments(arguments)
    refuse_unknown(changes, [plugin], plugin.settings())
    own = {key: value for key, value in changes.items() if key in plugin.settings()}
    goes_on = (plugin.name, plugin.sha256) == (cell.plugin.name, cell.plugin.sha256)
    page = change_page(cell, {key: value for key, value in changes.items() if key not in own}, goes_on)
    asked = choose_sparsity(cell, plugin, sparsity)
    built = plugin.build(page, asked, {**(cell.method_settings() if goes_on else {}), **own})
    check_method(cell, plugin, built, page)
    end = find_end(parent, page, epoch, hold_lr, more)
    default = load_page(cell.page_name)
    usual = plugin.defaults(default)
    changed: dict[str, Any] = {"page": changed_settings(page, cell.page), "method": type_settings(own, built)}
    if not goes_on:
        changed["method"] = {"name": plugin.name, **changed["method"]}
    if asked != cell.sparsity:
        changed["sparsity"] = asked
    return Branch(
        page_name=cell.page_name,
        page=page,
        page_changes=changed_settings(page, default),
        plugin=plugin,
        method=built,
        method_changes={key: getattr(built, key) for key in usual if getattr(built, key) != usual[key]},
        sparsity=asked,
        seed=cell.seed,
        parent=parent,
        epoch=epoch,
        end=end,
        hold_lr=hold_lr,
        goes_on=goes_on,
        changed=changed,
    )


def type_settings(asked: dict[str, Any], method: Method) -> dict[str, Any]:
    """Return the requested settings with the method's types; a number stays as written, 0 or 0.0."""
    plain = {key: resolve(value) for key, value in asked.items()}
    return {key: value if value == getattr(method, key) else getattr(method, key) for key, value in plain.items()}


def choose_sparsity(cell: Cell, plugin: Plugin, text: str) -> float:
    """Return the requested sparsity, or the parent's; 0 for a dense method."""
    asked = parse_sparsity(text) if text else cell.sparsity
    if plugin.cls.budget is not Budget.DENSE:
        return asked
    if text and asked:
        raise UserError(f"--sparsity {text}: method '{plugin.name}' prunes nothing; choose another with --method")
    return 0.0


def check_method(cell: Cell, plugin: Plugin, built: Method, page: Page) -> None:
    """Raise UserError for a method that cannot start from a snapshot of the parent, or be recorded, on a page."""
    check_values({**dataclasses.asdict(page), **dataclasses.asdict(built)})
    if plugin.cls.narrows_network or cell.method.narrows_network:
        raise UserError(f"method '{plugin.name}' cannot be part of a branch: its network is narrower than the page's")
    if cell.method.donor() is not None:
        raise UserError(f"a branch cannot start from '{cell.label}', which is itself made from another run")
    if built.donor() is not None:
        raise UserError(f"method '{plugin.name}' starts from a donor, but a branch starts from its parent")
    if (rounds := ask_rounds(built, plugin.name, page.epochs).count) > 1:
        raise UserError(
            f"method '{plugin.name}' trains in {rounds} rounds, but a branch trains its epochs once: choose another "
            "with --method, or run it from the start (sparse-bench run)"
        )


def change_page(cell: Cell, changes: dict[str, Any], goes_on: bool) -> Page:
    """Return the parent's page with `changes`; raises UserError for a setting that is not in FREE, or does nothing."""
    for name in changes:
        if name not in FREE:
            raise UserError(
                f"ARGS: {name} cannot change in a branch, whose snapshot is of a run with {name} = "
                f"{getattr(cell.page, name)!r}; these can: {', '.join(sorted(FREE))}"
            )
    page = merge_settings(merge_maps(dataclasses.asdict(cell.page), changes), "ARGS")
    check_methods(page)
    if goes_on and page.methods != cell.page.methods:
        raise UserError(
            f"ARGS: methods cannot change where the parent's method '{cell.plugin.name}' goes on, with the settings it "
            "has: give those that are to change by their names, such as prune_rate=0.3"
        )
    return page


def find_end(parent: Parent, page: Page, epoch: int, hold_lr: bool, more: int | None) -> int:
    """Return the last epoch of a branch; raises UserError for an impossible first or last epoch."""
    refuse_rounds(parent.cell, f"run {parent.name}")
    if not 1 <= epoch <= parent.cell.page.epochs:
        raise UserError(f"--epoch must be from 1 to {parent.cell.page.epochs}, the end of {parent.name}, got {epoch}")
    if more is not None and more < 1:
        raise UserError(f"--more must be at least 1 epoch, got {more}")
    end = page.epochs if more is None else epoch + more
    if end <= epoch:
        raise UserError(
            f"no epoch is left to train after {epoch} of {page.epochs}: branch earlier, or add --hold-lr --more N"
        )
    if end > page.epochs and not hold_lr:
        raise UserError(
            f"--more {more} ends at epoch {end}, but the learning rate schedule at {page.epochs}: add --hold-lr, or "
            f"--args epochs={end} for a longer schedule"
        )
    return end


@dataclass
class FromSnapshot(Start):
    """A run that starts from a snapshot: weights, masks, optimiser and position are the parent's.

    Costs, history, times and skipped steps start from zero.
    """

    branch: Branch = field(kw_only=True)

    def arrange(self, run: Training) -> None:
        cell, steps = self.branch, run.timeline.steps_per_epoch
        run.page, run.schedule = dataclasses.replace(cell.page, epochs=cell.end), cell.schedule
        run.timeline = Timeline(max(cell.page.epochs, cell.end) * steps, steps)
        run.first_epoch = cell.epoch

    def begin(self, cell: Cell, run: Training, warn: Warn) -> dict[str, Any]:
        """Load the snapshot, let a new method choose masks, and measure the accuracy before and after.

        Raises UserError for a snapshot that is missing, damaged or another run's, for a newly empty layer that the page
        does not allow, and where the requested sparsity cannot be reached.
        """
        branch = self.branch
        folder = branch.parent.folder
        state = read_snapshot(folder, branch.epoch)
        path = snapshot_path(folder, branch.epoch)
        if state["history"][-1]["loss"] is None:
            raise UserError(f"run {branch.parent.name} had diverged by epoch {branch.epoch}: branch earlier")
        if branch.page.precision == "fastest":  # keep the parent's choice
            run.precision = state["precision"]
        if not branch.goes_on:  # it begins at the network as it computes, whatever the parent kept beside
            state = {**state, "own": MethodState().saved(), "stored": None}
        take_over(run, state, path)
        before, empty = measure(run), find_empty(run)
        if not branch.goes_on:
            run.update_pending = False
            set_up_masks(branch, run, warn, may_empty=True)  # newly empty layers are refused below
            refuse_newly_empty(branch, sorted(find_empty(run) - empty))
        check_end(branch, run)
        snapshot_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return {"branch": describe_branch(branch, run.step, snapshot_sha256, before, measure(run))}

    def recall(self, state: dict[str, Any]) -> dict[str, Any]:
        begun = state.get("begun")
        return {"branch": begun.get("branch")} if isinstance(begun, dict) else {}


def describe_branch(
    branch: Branch, step: int, snapshot_sha256: str, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Return the record's description of how a branch started, `before` and `after` its method chose masks."""
    record = branch.parent.record
    return {
        "parent": branch.parent.name,
        "parent_label": branch.parent.cell.label,
        "parent_sparsity": branch.parent.cell.sparsity,
        "epoch": branch.epoch,
        "step": step,
        "snapshot_sha256": snapshot_sha256,
        "last_epoch": branch.end,
        "hold_lr": branch.hold_lr,
        "lr": branch.first_lr,
        "changed": branch.changed,
        "before": before,
        "after": after,
        "unpruned_acc_pct": None if record is None else record["accuracy_pct"]["last_epoch"],
    }


def take_over(run: Training, state: dict[str, Any], path: Path) -> None:
    """Restore a snapshot's weights, masks, optimiser and position in a new run, but not its costs or times."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in run.optimizer.param_groups]
    restore(run, {**state, "usage": run.usage.state(), "git": run.git}, path)
    for group, settings in zip(run.optimizer.param_groups, own, strict=True):
        group.update(settings)  # the branch's own momentum and decay
    run.meter.load_state({"train": 0, "train_dense": 0, "scoring": 0, "reading": 0})
    run.history, run.skipped_steps, run.updates, run.train_s, run.eval_s = [], 0, 0, 0.0, 0.0


def measure(run: Training) -> dict[str, Any]:
    """Return the run's current accuracies and number of active weights."""
    began = time.monotonic()
    data = run.data
    found = {
        "test_acc_pct": accuracy_pct(run, data.test),
        "validation_acc_pct": accuracy_pct(run, data.validation) if data.validation is not None else None,
        "active": run.maskset.active(),
    }
    run.eval_s += time.monotonic() - began
    return found


def find_empty(run: Training) -> set[str]:
    """Return the names of the layers without active weights."""
    return {name for name, count in run.maskset.counts().items() if count == 0}


def refuse_newly_empty(cell: Branch, empty: list[str]) -> None:
    """Raise UserError if the method emptied a layer, unless the page allows it."""
    if empty and not cell.page.allow_empty_layers:
        raise UserError(
            f"method '{cell.label}' at epoch {cell.epoch} leaves no weight in layer {', '.join(empty)}: prune less, or "
            "allow it with --args allow_empty_layers=true"
        )


def check_end(cell: Branch, run: Training) -> None:
    """Raise UserError if a branch would not end at its sparsity."""
    method, last = cell.method, cell.end * run.timeline.steps_per_epoch
    budget = method.promised_budget()
    if budget is Budget.OUTCOME:
        return
    left = [step for step in method.update_steps(run.timeline) if run.step < step <= last]
    reached = planned_count(method, run.maskset, left[-1], run.timeline) if left else run.maskset.active()
    asked = count_kept(method.sparsity if budget is Budget.EXACT else 0.0, run.maskset.total)
    if reached != asked:
        raise UserError(
            f"method '{cell.label}' has {reached:,} active weights at the branch's end, epoch {cell.end}, and sparsity "
            f"{cell.sparsity:g} asks for {asked:,}: train longer (--more), or ask for the sparsity that it reaches"
        )
