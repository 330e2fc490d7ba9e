"""Finding the runs that controls copy from (donors): a record, a run, or a leaderboard row's record for each seed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.base.errors import UserError, nearest
from benchmark.base.files import Places, expand_run, run_folder
from benchmark.config.cells import PROTOCOL, Cell, DonorRun, ask_donor
from benchmark.config.plugins import method_names
from benchmark.data.sets import Data
from benchmark.distributed.ranks import count_norm_shares, count_ranks
from benchmark.networks.build import create_network, model_arguments, synchronise_norms
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.runs.export import MASKS, WEIGHTS, read_export, read_tensors
from benchmark.runs.finished import RECORD
from benchmark.training.masks import hash_masks, pack_all
from benchmark.training.precision import possible_precisions
from leaderboard import Record, RecordError, read_record
from leaderboard.claims.lookup import match, name_rows
from leaderboard.store.records import load_store
from leaderboard.store.repeat import RANKS, arithmetic, name_arithmetic, repeat_words, setting_value, write_command
from leaderboard.tables.table import gather, printable
from methods.core import Donor, count_kept

Shapes = dict[str, tuple[int, ...]]


def resolve_donors(
    cells: list[Cell], loaded: Mapping[str, Data], places: Places, device: torch.device | None = None
) -> list[Cell]:
    """Return the cells ready to train: with their donors, see `find_donors`, and the donors' masks."""
    return [take_masks(cell, places.runs) for cell in find_donors(cells, loaded, places, device)]


def find_donors(
    cells: list[Cell],
    loaded: Mapping[str, Data],
    places: Places,
    device: torch.device | None = None,
    known: Record | None = None,
) -> list[Cell]:
    """Return the cells, each with the donor that its method asks for; `loaded` has the data of each page by name.

    A donor is given as the path of a record; as a folder in which a run was published (`find_published`); as the file
    or run name of a record in `places.records`; or as a row of the leaderboard, such as `granet`,
    `granet:start_sparsity=0.0` or the label, `granet (start_sparsity=0.0)`. A row stands for its record in the cell's
    own table (page, variant, protocol, data and, with `device`, an arithmetic it may have), at the cell's sparsity and
    seed: the first that finished. A record or run may differ in variant, seed or data set if layers and sparsity fit.
    known: the donor's record, if the caller has it already.

    Raises UserError for a donor that is missing, ambiguous, diverged, dense or narrower, or whose layers or counts do
    not fit. Invariants: no file of a run is needed; cells without a donor are unchanged; settings and labels of the
    others contain a run or a row, never a path of this machine.
    """
    records: list[Record] | None = None
    shapes: dict[tuple[str, str], tuple[Shapes, int]] = {}
    resolved = []
    for cell in cells:
        wanted = ask_donor(cell)
        if wanted is None:
            resolved.append(cell)
            continue
        if records is None:
            records = [] if known is not None else load_store(places.records)[0]
        page = cell.page_name, cell.variant
        if page not in shapes:
            shapes[page] = find_shapes(cell, loaded[cell.page_name])
        found, shares = shapes[page]
        own = None if device is None else {name_arithmetic(p, shares) for p in possible_precisions(cell.page, device)}
        search = Search(cell, wanted, records, places, loaded[cell.page_name].fingerprint, own)
        record, name = search.find_fitting() if known is None else (known, wanted.run)
        check_fits(record, search, found)
        resolved.append(attach(cell, wanted, record, name, find_published(wanted) if known is None else None))
    return resolved


def find_shapes(cell: Cell, data: Data) -> tuple[Shapes, int]:
    """Return the shapes of the network's prunable weights, and its `count_norm_shares`; keeps the random state."""
    with torch.random.fork_rng(devices=[]):
        model = create_network(cell.page, model_arguments(cell.page, data))
    weights = prunable_weights(model, find_layers(model, cell.page))
    shares = count_norm_shares(synchronise_norms(model, cell.page))
    return {name: tuple(weight.shape) for name, weight in weights.items()}, shares


def find_published(wanted: Donor) -> Path | None:
    """Return the folder of a donor that is named by the folder in which it was published; None for any other.

    A folder that has the name of a method is written `./granet`: the name alone is the row.
    """
    folder = Path(expand_run(wanted.run))
    is_one = wanted.run not in method_names() and os.path.isfile(folder / RECORD)  # noqa: PTH113 (as in `find`)
    return folder if is_one else None


def attach(cell: Cell, wanted: Donor, record: Record, name: str, folder: Path | None = None) -> Cell:
    """Return the cell with its donor, without masks; a setting that named it, maybe by a path, gets its name."""
    counts = {layer["name"]: layer["active"] for layer in record["layers"] if layer["prunable"]}
    donor = DonorRun(
        run=record["run"],
        label=record["method"]["label"],
        sparsity=record["sparsity"],
        seed=record["seed"],
        kind=wanted.kind,
        masks_sha256=record["masks_sha256"],
        counts=counts,
        again=write_command(*repeat_words(record), seeds=[record["seed"]]),
        folder=folder,
    )
    named: dict[str, Any] = {key: name for key, value in cell.method_settings().items() if value == wanted.run}
    changes = {key: named.get(key, value) for key, value in cell.method_changes.items()}
    method = dataclasses.replace(cell.method, **named)
    return dataclasses.replace(cell, method=method, method_changes=changes, donor=donor)


def check_fits(record: Record, search: Search, shapes: Shapes) -> None:
    """Raise UserError for a record whose counts or masks do not fit the cell's network and sparsity."""
    weights, run = record["weights"], record["run"]
    if record["status"] != "ok":
        raise search.fault(f"its run {run} {record['status']}: name another run")
    if record["method"]["budget"] == "dense":
        raise search.fault(f"its run {run} is dense, and a control needs a pruned one: name another run")
    if weights["prunable"] != weights["dense_prunable"]:
        raise search.fault(
            f"its run {run} is on a narrower network, and a control needs the full one: name another run"
        )
    theirs = {layer["name"]: tuple(layer["shape"]) for layer in record["layers"] if layer["prunable"]}
    for name in [*shapes, *theirs]:
        if shapes.get(name) != theirs.get(name):
            raise search.fault(
                f"its layers must be those of {search.cell.page_name}, {name} is {theirs.get(name, 'absent')} in {run} "
                f"and {shapes.get(name, 'absent')} here: name a run of this backbone and these prunable layers"
            )
    kept = count_kept(search.cell.sparsity, weights["prunable"])
    if weights["active"] != kept:
        fits = count_kept(record["sparsity"], weights["prunable"]) == weights["active"]
        true = record["sparsity"] if fits else 1 - weights["active"] / weights["prunable"]
        raise search.fault(
            f"its run {run} has {weights['active']:,} active weights and sparsity {search.cell.sparsity:g} asks for "
            f"{kept:,}: SPARSITY must be {true:.10g}"
        )


def has_masks(record: Record, runs: Path) -> bool:
    """Return whether the files with the masks of a record's run exist; damaged ones count, to be reported later."""
    try:
        folder = run_folder(runs, record["run"])
    except UserError:  # a name that no run could have
        return False
    if not all((folder / name).is_file() for name in (WEIGHTS, MASKS)):
        return False
    try:
        return bool(read_tensors(folder / MASKS)[1].get("masks_sha256") == record["masks_sha256"])
    except UserError:
        return True


def take_masks(cell: Cell, runs: Path) -> Cell:
    """Return the cell with its donor's masks as bits, from `runs` or where it was published, if its method asks so.

    Raises UserError where they are missing or not those of the donor's record.
    """
    donor, wanted = cell.donor, ask_donor(cell)
    if donor is None or wanted is None or not wanted.masks:
        return cell
    folder = runs
    try:
        folder = donor.folder or run_folder(runs, donor.run)
        masks = read_export(folder)[1]
    except UserError as error:
        raise fault(cell, wanted, f"its masks are needed, and {error}; or run it again: {donor.again}") from error
    if hash_masks(masks) != donor.masks_sha256:
        hashes = f"their sha256 is {hash_masks(masks)[:16]} and the record says {donor.masks_sha256[:16]}"
        reason = f"the masks in {folder} must be those of its record, {hashes}"
        raise fault(cell, wanted, f"{reason}; run it again: {donor.again}")
    if {name: int(mask.sum()) for name, mask in masks.items()} != donor.counts:
        reason = f"the counts of the masks in {folder} are not those of its record, which was edited"
        raise fault(cell, wanted, f"{reason}; run it again: {donor.again}")
    return dataclasses.replace(cell, donor=dataclasses.replace(donor, bits=pack_all(masks)))


def fault(cell: Cell, wanted: Donor, reason: str) -> UserError:
    """Return the error that names the method, the donor and the reason, printable even if that quotes a record."""
    return UserError(printable(f"method '{cell.plugin.name}': donor '{wanted.run}': {reason}"))


@dataclasses.dataclass(frozen=True)
class Search:
    """The search for one cell's donor among the records."""

    cell: Cell
    wanted: Donor
    records: list[Record]
    places: Places
    fingerprint: str
    arithmetics: set[str] | None

    def fault(self, reason: str) -> UserError:
        """Return the error that names method, donor and reason."""
        return fault(self.cell, self.wanted, reason)

    def find_fitting(self) -> tuple[Record, str]:
        """Return what `find` does; where masks are wanted, of a run's repeats the one whose files lie in the runs.

        A run made again on another kind of machine may have other masks than its first record.
        """
        record, name = self.find()
        repeats = [other for other in self.records if other["run"] == record["run"]]
        if self.wanted.masks and len(repeats) > 1 and find_published(self.wanted) is None:
            record = next((one for one in [record, *repeats] if has_masks(one, self.places.runs)), record)
        return record, name

    def find(self) -> tuple[Record, str]:
        """Return the donor's record and its name: the row's if a row was given, otherwise the run's."""
        asked = expand_run(self.wanted.run)
        is_path = asked.endswith(".json") or "/" in asked
        folder = self.places.records
        published = find_published(self.wanted)
        first = [published / RECORD] if published else [Path(asked)] if is_path else []
        for path in [*first, folder / asked, folder / f"{asked}.json"]:
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file() raises for a name that is too long)
                record = self.read(path)
                return record, record["run"]
        runs = gather([record for record in self.records if record["run"] == asked]).counted
        if runs:
            return runs[0], asked
        if is_path:
            raise self.fault(
                f"no such record here or in {folder}, nor {RECORD} in a folder of this name: name a file, a folder in "
                "which a run was published, a run or a row of a table"
            )
        return self.find_in_row()

    def read(self, path: Path) -> Record:
        """Return the record in a file."""
        try:
            return read_record(path)
        except RecordError as error:
            raise self.fault(f"record {path}: {error}; name another run") from error

    def find_in_row(self) -> tuple[Record, str]:
        """Return the row's record at the cell's sparsity and seed, and the row's name."""
        cell, page = self.cell, self.cell.page_name
        rows = name_rows([record for record in self.records if self.is_in_table(record)])
        name = match(self.wanted.run, rows)
        if name is None:
            raise self.missing(sorted(rows))
        runs = rows[name].runs
        if rows[name].parts:
            versions = sorted(part.name for part in rows[name].parts)
            raise self.fault(f"{page} has several rows of this name: choose {' or '.join(versions)}")
        for run in gather([run for run in runs if run["sparsity"] == cell.sparsity]).counted:
            if run["seed"] == cell.seed:
                return run, name
        if runs[0]["method"]["budget"] == "dense":
            raise self.fault(f"its runs on {page} are dense, and a control needs pruned ones: name another row")
        there = sorted({(run["sparsity"], run["seed"]) for run in runs})
        _, method, _, device, *words = repeat_words(runs[0], rows[name].settings)
        changes = [word for word in words if not word.startswith(RANKS)]
        raise self.fault(
            f"it has no run at sparsity {cell.sparsity:g} and seed {cell.seed} on {page}, only "
            f"{', '.join(f'{sparsity:g} s{seed}' for sparsity, seed in there)}; make it first: "
            f"{self.command(method, device, changes)}"
        )

    def is_in_table(self, record: Record) -> bool:
        """Return whether a record is in the same table as the cell's own will be."""
        page = record["page"]
        place = record["protocol"], page["name"], page["variant"], record["data"]["fingerprint"]
        here = PROTOCOL, self.cell.page_name, self.cell.variant, self.fingerprint
        return place == here and (self.arithmetics is None or arithmetic(record) in self.arithmetics)

    def missing(self, rows: list[str]) -> UserError:
        """Return the error for a missing row, with the command that makes it or the nearest name."""
        method, *settings = (part.strip() for part in re.split(r"[:(),]", self.wanted.run))
        if method in method_names():
            changes = [f"{key}={setting_value(value)}" for key, value in self.cell.page_changes.items()]
            changes += [setting for setting in settings if "=" in setting]
            hint = f"; make it first: {self.command(method, 'auto', changes)};"
        else:
            hint = nearest(self.wanted.run, {*rows, *method_names()}) or ";"
        return self.fault(
            f"no record, run or row of {self.cell.page_name} with these settings has this name{hint} "
            f"rows there: {', '.join(rows) or 'none yet'}"
        )

    def command(self, method: str, device: str, changes: Sequence[str]) -> str:
        """Return the command for a donor run: of the cell's page, sparsity and seed, with as many processes."""
        cell = self.cell
        changes = [*changes, *([f"{RANKS}{count_ranks()}"] if count_ranks() > 1 else [])]
        return write_command(
            cell.page_name, method, f"{cell.sparsity:.15g}", device, *sorted(changes), seeds=[cell.seed]
        )
