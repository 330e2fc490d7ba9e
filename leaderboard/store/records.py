"""Records in a folder: written once, read one at a time or all together in compact form."""

from __future__ import annotations

import hashlib
import itertools
import json
import marshal
import math
import os
import re
import sys
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NoReturn

from leaderboard.store.files import hidden_file
from leaderboard.store.kinds import DIGEST, parse_time
from leaderboard.store.schema import (
    Record,
    RecordError,
    UnreadableError,
    content_of,
    find_faults,
    find_rule_faults,
    is_sealed_text,
    lay_out,
    seal_of,
)

MISPLACED = "a branch of another run: it belongs in the store of branches, beside this one"
LONGEST_NAME = 200  # characters; file systems allow 255 bytes, and the number of a repeat is added


@dataclass(frozen=True)
class Problem:
    """A file of the store that was skipped, and why."""

    file: str
    reason: str


def write_record(record: Record, folder: Path, begin: bool = True) -> Path:
    """Write `record` to `folder` as a file of its own and return its path.

    begin: whether a folder that is not there is made; else FileNotFoundError is raised, for a store that was there a
    moment ago is out of reach. The name is that of the run, `RUN.json`; if it is taken, the run is a repeat and becomes
    `RUN.2.json`, `.3` … The seal is added; a record of schema 1 has none. Raises RecordError for an invalid record
    (NaN, infinities and a wrong seal included), before anything is written. Invariant: no existing file is ever
    changed, and a process killed at any time leaves no partial record under a record's name.
    """
    faults = find_faults(record)
    if faults:
        run = record.get("run") if isinstance(record, dict) else None
        raise RecordError(f"record '{run}' is invalid and was not written: {list_faults(faults)}")
    if begin:
        folder.mkdir(parents=True, exist_ok=True)
    with hidden_file(file_text(record).encode(), folder) as hidden:
        return publish(hidden, folder, file_stem(record["run"]))


def file_text(record: Record) -> str:
    """Return the text of the file of a valid record, sealed; a record of schema 1 has no seal."""
    content = json.loads(json.dumps(content_of(record)))  # as a reader gets it: tuples are lists, keys are texts
    if content["schema"] > 1:
        content["seal"] = seal_of(content)
    return lay_out(content)


def find_same(record: Record, folder: Path) -> Path | None:
    """Return the file of `folder` that holds this very record, times included, or None.

    For a writer that was killed and does not know whether its record was published. Raises UnreadableError if the
    folder or a file of the run cannot be read now; otherwise damaged files hold no record.
    """
    for path in list_run(record["run"], folder):
        try:
            if content_of(read_record(path)) == content_of(record):
                return path
        except UnreadableError:
            raise
        except RecordError:
            continue
    return None


def list_run(run: str, folder: Path) -> list[Path]:
    """Return the files in `folder` that may hold records of a run. Raises UnreadableError if it cannot be listed."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise UnreadableError(f"not readable: {error.strerror}") from error
    return [folder / name for name in names if name.startswith(f"{file_stem(run)}.")]


def file_stem(run: str) -> str:
    """Return a file name without its suffix for `run`, of the characters A-Z a-z 0-9 . _ - only.

    Invariant: it names a visible file of the folder itself, never another folder.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", run).lstrip(".") or "run"
    name = f"_{name}" if is_reserved(name) else name
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 17]}.{hashlib.sha256(run.encode('utf-8', 'replace')).hexdigest()[:16]}"
    return name


def is_reserved(name: str) -> bool:
    """Return whether Windows reserves a file name for a device, whatever its suffix."""
    return re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)", name.partition(".")[0].rstrip(), re.I) is not None


def publish(temporary: Path, folder: Path, stem: str) -> Path:
    """Give the finished file `temporary` the first free name: STEM.json, STEM.2.json …; return its path."""
    for number in itertools.count(1):
        target = folder / (f"{stem}.json" if number == 1 else f"{stem}.{number}.json")
        try:
            take_name(temporary, target)
        except FileExistsError:
            continue
        sync_folder(folder)
        return target
    raise AssertionError("unreachable: there is always a next number")


def publish_sealed(content: dict[str, Any], folder: Path, name: str) -> Path:
    """Seal what was found valid and write it to `folder`, made if it is not there, as a file of its own named `name`.

    Returns its path; see `publish`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = lay_out({**content, "seal": seal_of(content)})
    with hidden_file(text.encode(), folder) as hidden:
        return publish(hidden, folder, file_stem(name))


def take_name(temporary: Path, target: Path) -> None:
    """Publish the finished file `temporary` as `target`. Raises FileExistsError if the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError):
        # No hard links on this file system. Taking the name first reserves it; a kill before the replacement leaves an
        # empty file, which readers skip with a reason.
        open(target, "x").close()
        os.replace(temporary, target)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to disk, if the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse; the file itself is on the disk already
        pass
    finally:
        os.close(handle)


def list_files(folder: Path) -> list[Path]:
    """Return the paths in `folder` that have a record's name, sorted; an absent folder has none."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return []
    return [folder / name for name in names if not name.startswith(".")]


def read_records(folder: Path, branches: bool = False) -> tuple[list[Record], list[Problem]]:
    """Read every record of `folder`: the valid ones, and a Problem for each file that is damaged, invalid or a copy.

    `branches`: whether it is the store of branches and their parents; elsewhere a branch is a Problem. Each record gets
    a key `file`, the name of its file. Sorted by run, time of finishing and file; problems by file. Invariant: every
    file with a record's name is in exactly one of the two lists. `load_store` does the same for large stores.
    """
    return sort_out([read_file(path) for path in list_files(folder)], branches)


def read_file(path: Path) -> tuple[str, Record] | Problem:
    """Return the record in a file with the seal of its content, or what is wrong with it."""
    try:
        record = read_record(path)
    except RecordError as error:
        return Problem(path.name, str(error))
    return record.get("seal") or seal_of(record), {**record, "file": path.name}


def sort_out(found: list[tuple[str, Record] | Problem], branches: bool = False) -> tuple[list[Record], list[Problem]]:
    """Return the records and the problems of a store in order.

    Copies of the same content are problems, all but the first, and so are branches outside their own store. A run of
    the same name with other content is a repeat and is kept.
    """
    problems = [entry for entry in found if isinstance(entry, Problem)]
    read = [entry for entry in found if not isinstance(entry, Problem)]
    kept: dict[str, Record] = {}
    for seal, record in sorted(read, key=lambda entry: file_key(entry[1]["file"])):
        if "branch" in record and not branches:
            problems.append(Problem(record["file"], MISPLACED))
            continue
        first = kept.setdefault(seal, record)
        if first is not record:
            problems.append(Problem(record["file"], f"a copy of {first['file']}"))
    return sorted(kept.values(), key=stable_key), sorted(problems, key=lambda problem: problem.file)


def file_key(name: str) -> tuple[int, str]:
    """Return the sort key of file names: `RUN.json` before `RUN.2.json` before `RUN.10.json`."""
    return len(name), name


def stable_key(record: Record) -> tuple[Any, ...]:
    """Return the sort key of records: run, time of finishing, file."""
    return record["run"], parse_time(record["finished"]), *file_key(record["file"])


def finish_key(record: Record) -> tuple[Any, ...]:
    """Return the sort key of records by when they finished, the last at the end; what is equal by `stable_key`."""
    return parse_time(record["finished"]), *stable_key(record)


def read_record(path: Path) -> Record:
    """Read one record. Raises UnreadableError if the disk fails, RecordError for a damaged, edited or invalid one."""
    data, record = read_json(path)
    seal: Any = record.get("seal") if isinstance(record, dict) else None
    untouched = DIGEST.accepts(seal) and is_sealed_text(data, seal)
    faults = find_rule_faults(record) if untouched else find_faults(record)
    if not faults and record["schema"] > 1 and seal is None:
        faults = ["seal is missing"]
    if faults:
        raise RecordError(list_faults(faults))
    assert isinstance(record, dict)
    return record


def read_json(path: Path) -> tuple[bytes, Any]:
    """Return a file's bytes and their JSON. Raises UnreadableError if the disk fails, RecordError if it is no JSON."""
    try:
        if not path.is_file():  # a folder, a broken link or a pipe, which would block
            raise RecordError("not a file")
        data = path.read_bytes()
        return data, json.loads(data.decode("utf-8"), parse_constant=refuse_constant, parse_float=read_float)
    except RecordError:
        raise
    except OSError as error:  # its full text names the folders of this machine
        raise UnreadableError(f"not readable: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not readable as JSON: {error}") from error


def read_float(text: str) -> float:
    """Return the float of a JSON number. Raises RecordError for one that would overflow to inf."""
    value = float(text)
    if value - value:  # inf - inf is not 0
        raise RecordError(f"is not plain JSON: {text} is beyond the largest number")
    return value


def refuse_constant(name: str) -> NoReturn:
    """Raise RecordError for NaN, Infinity and -Infinity, which are not JSON."""
    raise RecordError(f"not readable as JSON: {name} is not a number")


def list_faults(faults: list[str]) -> str:
    """Return the first three of `faults` in one line, and how many more there are."""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more


COLUMNS = ("epoch", "lr", "density", "train_share", "explored", "test_acc_pct", "validation_acc_pct")
PROCESSES = 2
WORTH_A_POOL = 500  # files; below it, starting processes costs more than it saves
CHUNK = 200  # files that a process reads at a time, so that only few full records exist at once

Found = tuple[str, Record] | Problem


def load_store(folder: Path, branches: bool = False) -> tuple[list[Record], list[Problem]]:
    """Read every record of `folder` as `read_records` does, but in compact form.

    Instead of `history` a record has `curves`, see the function of that name. Records share their equal parts, so they
    are read-only. Invariant: records, problems and their order are those of `read_records`.
    """
    sharing = Sharing()
    found: list[Found] = []
    for chunk in read_chunks(list_files(folder)):
        found += sharing.entries(chunk)
    return sort_out(found, branches)


def read_chunks(paths: list[Path]) -> Iterator[list[Found]]:
    """Yield the contents of the files at `paths` in order, a chunk at a time; two processes read many files."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    done = 0
    # Forked processes start in milliseconds and import nothing. Forking is safe on Linux, where no other thread holds
    # a lock at that instant; elsewhere everything is read here.
    if len(paths) >= WORTH_A_POOL and sys.platform == "linux" and threading.active_count() == 1:
        try:
            with ProcessPoolExecutor(PROCESSES, mp_context=get_context("fork")) as pool:
                for chunk in pool.map(read_chunk, chunks):
                    yield chunk
                    done += 1
        except Exception:  # no processes, or one was killed: read the rest here
            pass
    yield from map(read_chunk, chunks[done:])


def read_chunk(paths: list[Path]) -> list[Found]:
    """Return the contents of the files at `paths` in compact form, with shared parts."""
    sharing = Sharing()
    found: list[Found] = []
    for path in paths:
        entry = read_file(path)
        found.append(entry if isinstance(entry, Problem) else (entry[0], compact(entry[1])))
    return sharing.entries(found)


def curves(record: Record) -> dict[str, array[float]]:
    """Return the history of a record, full or compact, as COLUMNS: a value for each epoch, NaN if unknown."""
    if "history" not in record:
        ready: dict[str, array[float]] = record["curves"]
        return ready
    return {name: column(record["history"], name) for name in COLUMNS}


def column(history: list[dict[str, Any]], name: str) -> array[float]:
    """Return one column of a history, NaN where it is null or absent."""
    values = [row.get(name) for row in history]
    return array("d", [math.nan if value is None else value for value in values])


def compact(record: Record) -> Record:
    """Return the record with `curves` in place of `history`."""
    short = {key: value for key, value in record.items() if key != "history"}
    return {**short, "curves": curves(record)}


class Sharing:
    """Keeps one of all equal parts of records. What it returns equals what it is given, but may be an older object."""

    def __init__(self) -> None:
        self.by_content: dict[bytes, Any] = {}
        self.by_identity: dict[int, tuple[Any, Any]] = {}  # the part given, so that it lives, and the one kept

    def entries(self, found: list[Found]) -> list[Found]:
        """Return what was found in files, the records made of shared parts."""
        shared: list[Found] = [
            entry if isinstance(entry, Problem) else (entry[0], self.record(entry[1])) for entry in found
        ]
        self.by_identity.clear()
        return shared

    def record(self, record: Record) -> Record:
        """Return a compact record made of shared parts."""
        columns = {name: self.part(column) for name, column in record["curves"].items()}
        try:
            parts = {sys.intern(key): self.part(value) for key, value in record.items() if key != "curves"}
        except (RecursionError, ValueError):  # what a record need not have may be nested deep; it shares nothing then
            parts = record
        return {**parts, "curves": columns}

    def part(self, value: Any) -> Any:
        """Return what `keep` returns, without looking at the content of a value that was given before."""
        known = self.by_identity.get(id(value))
        if known is None:
            known = self.by_identity[id(value)] = (value, self.keep(value))
        return known[1]

    def keep(self, value: Any) -> Any:
        """Return the one value kept for the content of `value`, itself made of kept parts."""
        kind = type(value)
        if kind is str:
            return sys.intern(value)
        if kind is array:
            return self.by_content.setdefault(sha256(value).digest(), value)
        if kind is not dict and kind is not list:
            return value
        key = marshal.dumps(value, 2)  # in this format equal bytes are equal values of equal types
        kept = self.by_content.get(key)
        if kept is None:
            if kind is dict:
                kept = {sys.intern(name): self.keep(inner) for name, inner in value.items()}
            else:
                kept = [self.keep(inner) for inner in value]
            self.by_content[key] = kept
        return kept
