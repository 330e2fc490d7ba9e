"""A finished run: its record and its files, found by its name, its record's path or the folder it was published in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmark.base.errors import UserError, nearest
from benchmark.base.files import expand_run, run_folder
from benchmark.config.pages import Page
from benchmark.runs.export import MASKS, WEIGHTS, hash_export, read_export
from benchmark.training.masks import hash_masks
from leaderboard import Record, RecordError, read_record
from leaderboard.store.records import file_key, file_stem, list_files

RECORD = "record.json"  # in a folder in which a run was published, beside its weights and masks


@dataclass(frozen=True)
class Images:
    """What a network needs to know of images: their classes, channels and size."""

    classes: tuple[str, ...]
    channels: int
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.image_size, self.image_size


@dataclass(frozen=True)
class Finished:
    """A run's record, the file it is in, and the weights and masks in `folder`, which are those of the record."""

    path: Path
    record: Record
    folder: Path
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]


def load_record(path: Path) -> Record:
    """Return the record at `path`; raises UserError, naming it, when it cannot be read or is not valid."""
    try:
        return read_record(path)
    except RecordError as error:
        raise UserError(f"record {path}: {error}") from error


def read_images(record: Record, page: Page) -> Images:
    """Return what a record and its page say of the images, so that a network is built without its data set."""
    return Images(tuple(map(str, range(record["data"]["classes"]))), len(page.mean), page.image_size)


def find_finished(name: str, records: Path, runs: Path) -> Finished:
    """Return the run `name`: a run's name, the path of its record, or a folder in which it was published.

    Raises UserError for an unknown run, a run without exported files, and files of another run.
    """
    name = expand_run(name)
    published = (Path(name) / RECORD).is_file()
    candidates = [(Path(name) / RECORD, load_record(Path(name) / RECORD))] if published else find_records(name, records)
    run = str(candidates[-1][1]["run"])
    folder = Path(name) if published else run_folder(runs, run)
    missing = [file for file in (WEIGHTS, MASKS) if not (folder / file).exists()]
    if missing:
        raise UserError(
            f"run {run} has a record but no {' and no '.join(missing)} in {folder}, which is what is read: run it "
            "again, or name the folder of its files (sparse-bench: --runs)"
        )
    weights, masks = read_export(folder)
    digest = hash_masks(masks)
    fitting = [found for found in reversed(candidates) if found[1]["masks_sha256"] == digest]
    if len(fitting) > 1:  # masks may be a repeat's, too
        files = hash_export(folder)
        fitting.sort(key=lambda found: found[1].get("files_sha256") != files)
    if fitting:
        return Finished(*fitting[0], folder, weights, masks)
    raise UserError(
        f"{folder}: its masks ({digest[:16]}) are not those of run {run}'s record "
        f"({candidates[-1][1]['masks_sha256'][:16]}): run it again, or name the folder of its "
        "files (sparse-bench: --runs)"
    )


def list_repeats(run: str, records: Path) -> list[tuple[Path, Record]]:
    """Return what `find_records` does; nothing where that fails."""
    try:
        return find_records(run, records)
    except UserError:
        return []


def find_records(name: str, records: Path) -> list[tuple[Path, Record]]:
    """Return a run's records and their files, repeats included, the newest last; raises UserError if there is none."""
    if name.endswith(".json"):
        return [(Path(name), load_record(Path(name)))]
    name = Path(name).name  # the path of a run's folder is fine too
    pattern = rf"{re.escape(file_stem(name))}(\.\d+)?"  # RUN.json, then RUN.2.json and so on
    found = [path for path in list_files(records) if re.fullmatch(pattern, path.stem)]
    read = [(path, load_record(path)) for path in sorted(found, key=lambda path: file_key(path.name))]
    of_run = [(path, record) for path, record in read if record["run"] == name]
    of_run = of_run or [(path, record) for path, record in read if path.stem == name]  # a repeat, RUN.2, by its file
    if not of_run:
        known = [path.stem for path in list_files(records)]
        where = f"{records}" if known else f"{records}, which holds no record"
        raise UserError(
            f"no record of a run '{name}' in {where}{nearest(name, known) or ';'} a run has the name of its record, "
            "without .json; records elsewhere: sparse-bench, --records"
        )
    return of_run
