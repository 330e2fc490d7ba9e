"""Runs that branches start from, found by name, with their cells rebuilt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.base.errors import UserError
from benchmark.base.files import run_folder
from benchmark.config.cells import PROTOCOL, Cell
from benchmark.config.pages import changed_settings, load_page, merge_settings
from benchmark.config.plugins import digest, find_method, is_method
from benchmark.runs.checkpoints import list_snapshots, load_checkpoint, read_snapshot
from leaderboard import Record, RecordError, UnreadableError, read_record
from leaderboard.store.records import file_stem, list_files
from leaderboard.store.repeat import repeat_words
from leaderboard.tables.table import gather, plain


@dataclass(frozen=True)
class Parent:
    """A run that can be branched, or trained again up to an epoch.

    history: one row per known epoch. record: None if the run has not finished, otherwise the first of repeats. `cell`
    lacks its donor.
    """

    cell: Cell
    folder: Path  # of its files
    record: Record | None
    history: list[dict[str, Any]]
    fingerprint: str  # of its data

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.name


def find_parent(name: str, stores: Iterable[Path], runs: Path, file: Path | None = None) -> Parent:
    """Return the run called `name`, from the first of the `stores` of records that has it, or from its files in `runs`.

    name: a run's name, or the path or file name of its record. file: that of its method, where it is not built in: no
    file is run because a record names it. Raises UserError for a run that is missing, diverged, a branch, of another
    protocol or page, or whose method's file has changed.
    """
    run = Path(name).name.removesuffix(".json")
    record = find_record(name, run, stores)
    run = record["run"] if record is not None else run
    folder = run_folder(runs, run)
    if record is not None:
        about, history, fingerprint = record, record["history"], record["data"]["fingerprint"]
        if record["status"] != "ok":
            raise UserError(f"run {run} {record['status']} and cannot be continued: name another run")
    else:
        state = read_state(folder)
        about, history, fingerprint = state["cell"], state["history"], state["data"]
    try:
        if "branch" in about:
            parent = plain(about["branch"]["parent"])
            raise UserError(f"run {run} is a branch of {parent} and cannot be branched itself: branch {parent}")
        return Parent(rebuild_cell(about, fingerprint, file), folder, record, history, fingerprint)
    except (LookupError, TypeError, AttributeError) as error:  # a foreign checkpoint
        raise UserError(f"run {run}: its checkpoint does not say what the run was asked to do: {error!r}") from error


def find_record(name: str, run: str, stores: Iterable[Path]) -> Record | None:
    """Return the record in the file `name`, or the first of the run's repeats; None where there is none."""
    if name.endswith(".json") and Path(name).is_file():
        try:
            return read_record(Path(name))
        except RecordError as error:
            raise UserError(f"record {name}: {error}") from error
    for store in stores:
        found = []
        for path in list_files(store):
            if path.name.startswith(f"{file_stem(run)}."):
                try:
                    found.append({**read_record(path), "file": path.name})
                except UnreadableError as error:  # it may be the one
                    raise UserError(f"record {path}: {error}; try again") from error
                except RecordError:  # damaged: `make verify` reports it
                    continue
        found = [record for record in found if record["run"] == run]
        if found:
            return gather(found).counted[0]
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """Return the checkpoint, or else the last snapshot, of a run without a record.

    Raises UserError if there is neither, and for an old checkpoint that does not describe its run.
    """
    if (folder / "checkpoint").is_file():
        state = load_checkpoint(folder / "checkpoint")
        if not {"cell", "history", "data"} <= state.keys():
            raise UserError(
                f"checkpoint {folder / 'checkpoint'}, written by an earlier version of sparse-bench, does not describe "
                "its run: let the run continue until its next checkpoint, or finish"
            )
        return state
    snapshots = list_snapshots(folder)
    if not snapshots:
        runs = sorted(path.parent.name for path in folder.parent.glob("*/checkpoint"))
        raise UserError(
            f"no run '{folder.name}': it has no record, and no checkpoint or snapshot in {folder.parent}; interrupted "
            f"runs there: {', '.join(runs) or 'none'}"
        )
    return read_snapshot(folder, snapshots[-1])


def rebuild_cell(about: dict[str, Any], fingerprint: str, file: Path | None = None) -> Cell:
    """Return the cell of a record, or of the description that `describe_start` returned, without its donor.

    fingerprint: of the data; it may be part of the name. file: as in `find_parent`. Raises UserError unless protocol,
    page, settings and the method's file are the same.
    """
    run, name = about["run"], about["page"]["name"]
    if about["protocol"] != PROTOCOL:
        raise UserError(
            f"run {run} is of protocol {about['protocol']}; under this version's, {PROTOCOL}, the same settings give "
            "other numbers: run it again"
        )
    default = load_page(name)
    page = merge_settings(about["page"]["settings"], f"run {run}")
    method = about["method"]
    # the rule for naming a method that is neither built in nor installed
    called = repeat_words({**about, "environment": {"device": ""}})[1]
    if not is_method(called):  # whoever wrote the record wrote its hash as well, and may have left a file of this name
        if file is None:
            raise UserError(
                f"run {run}: its method is a file, {plain(called)}, and none is run because a record names it: name it "
                "yourself, with --file"
            )
        if not file.is_file() or digest(file) != method["sha256"]:
            raise UserError(f"run {run}: {file} is not the file of its method as it ran, which is gone or has changed")
        called = str(file)
    plugin = find_method(called)
    if plugin.sha256 != method["sha256"]:
        raise UserError(f"run {run}: the file of its method, {plugin.source}, has changed since; run it again")
    settings = {key: value for key, value in method["settings"].items() if key in plugin.settings()}
    built = plugin.build(page, about["sparsity"], settings)
    changes = changed_settings(page, default)
    cell = Cell(name, page, changes, plugin, built, dict(method["changed"]), about["sparsity"], about["seed"])
    found = cell.with_name(run, fingerprint)
    if method.get("donor") is None and found.identity != run:
        raise UserError(f"run {run}: its settings now give run {found.identity}; run it again")
    return found
