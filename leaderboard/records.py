"""The store: one JSON file per finished run, sealed and written whole, never overwritten, never edited."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from leaderboard.kinds import DIGEST, parse_time
from leaderboard.schema import Record, RecordError, UnreadableError, find_faults, find_rule_faults
from leaderboard.seal import content_of, is_sealed_text, lay_out, seal_of

MISPLACED = "a branch of another run: it belongs in the store of branches, beside this one"
LONGEST_NAME = 200  # characters; file systems allow 255 bytes, and the number of a repeat is added


@dataclass(frozen=True)
class Problem:
    """A file of the store that was skipped, and why."""

    file: str
    reason: str


def write_record(record: Record, folder: Path) -> Path:
    """Write `record` to `folder` as a file of its own and return its path.

    The name is that of the run, `RUN.json`; where that is taken, the run is a repeat and becomes `RUN.2.json`, `.3` …
    The seal is added; a record of schema 1 has none. Raises RecordError for an invalid record (NaN, infinities and a
    wrong seal included), before anything is written. Invariant: no existing file is ever changed, and a process killed
    at any instant leaves no part of a record under a record's name.
    """
    faults = find_faults(record)
    if faults:
        run = record.get("run") if isinstance(record, dict) else None
        raise RecordError(f"record '{run}' is invalid and was not written: {list_faults(faults)}")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = write_temporary(file_text(record), folder, "record")
    try:
        return publish(temporary, folder, file_stem(record["run"]))
    finally:
        temporary.unlink(missing_ok=True)


def file_text(record: Record) -> str:
    """Return the text of the file of a valid record, sealed; a record of schema 1 has no seal."""
    content = json.loads(json.dumps(content_of(record)))  # as a reader gets it: tuples are lists, keys are texts
    if content["schema"] > 1:
        content["seal"] = seal_of(content)
    return lay_out(content)


def find_same(record: Record, folder: Path) -> Path | None:
    """Return the file of `folder` that holds this very record, times included, or None; with or without its seal.

    For a writer that was killed and does not know whether its record was published. Raises UnreadableError where that
    cannot be told, for the folder or a file of the run cannot be read now; other damaged files hold no record.
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
    """Return the files in `folder` that may hold records of a run. Raises UnreadableError where it cannot be listed."""
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
    """Return whether Windows keeps a file name for a device, whatever its suffix: no checkout there could have it."""
    return re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)", name.partition(".")[0].rstrip(), re.I) is not None


def write_temporary(text: str, folder: Path, purpose: str) -> Path:
    """Write `text` to a new hidden file in `folder`, down to the disk, and return its path; the name is unique."""
    path = folder / f".{purpose}-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        with open(path, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


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


def take_name(temporary: Path, target: Path) -> None:
    """Show the finished file `temporary` as `target`. Raises FileExistsError where that name is taken, by anyone."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError):
        # No hard links on this file system. Taking the name first keeps others off it; a kill before the replacement
        # leaves an empty file, which readers skip with a reason.
        open(target, "x").close()
        os.replace(temporary, target)


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` down to the disk, where the system can."""
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

    `branches`: whether it is the store of branches and of the runs they go on from; elsewhere a branch is set aside.

    Each record gets one key more, `file`, the name of its file. Sorted by run, time of finishing and file; problems by
    file. Invariant: every file with a record's name is in exactly one of the two lists. `leaderboard.store.load_store`
    says the same of every file and is for large stores.
    """
    return sort_out([read_file(path) for path in list_files(folder)], branches)


def read_file(path: Path) -> tuple[str, Record] | Problem:
    """Return the record in a file with the seal of its content, whether it carries it or not, or what is wrong."""
    try:
        record = read_record(path)
    except RecordError as error:
        return Problem(path.name, str(error))
    return record.get("seal") or seal_of(record), {**record, "file": path.name}


def sort_out(found: list[tuple[str, Record] | Problem], branches: bool = False) -> tuple[list[Record], list[Problem]]:
    """Return the records and the problems of a store in order, each of several copies of a record but the first aside.

    Records of branches are set aside too, unless it is their store: a branch is no run of a table. A copy has the same
    content. A run of the same name with other content is a repeat and is kept.
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
    """Return what file names are sorted by: `RUN.json` before `RUN.2.json`, that before `RUN.10.json`."""
    return len(name), name


def stable_key(record: Record) -> tuple[Any, ...]:
    """Return what read records are sorted by: run, time of finishing, file (`RUN.json` before `RUN.2.json`)."""
    return record["run"], parse_time(record["finished"]), *file_key(record["file"])


def read_record(path: Path) -> Record:
    """Read one record.

    Raises UnreadableError for a file that cannot be read, RecordError for one that is damaged, was edited or breaks a
    rule.
    """
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
    """Return a file's bytes and the plain JSON in them.

    Raises UnreadableError for a file that cannot be read, RecordError for one that has none.
    """
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
    """Return the float a JSON number names. Raises RecordError for one beyond the largest, which would read as inf."""
    value = float(text)
    if value - value:  # inf - inf is not 0
        raise RecordError(f"is not plain JSON: {text} is beyond the largest number")
    return value


def refuse_constant(name: str) -> NoReturn:
    """Raise RecordError for NaN, Infinity and -Infinity, which are no JSON."""
    raise RecordError(f"not readable as JSON: {name} is not a number")


def list_faults(faults: list[str]) -> str:
    """Return the first three of `faults` in one line, and how many more there are."""
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more
