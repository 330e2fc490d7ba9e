"""`make submit`: are the records that a checkout adds fit to be merged, and what can a reviewer find again?"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leaderboard.board.build import BRANCHES, BuildError, load_branches
from leaderboard.store.records import load_store
from leaderboard.store.schema import AUTHOR, SCHEMA, Record
from leaderboard.tables.sections import amount
from leaderboard.tables.table import percent, plain, printable

BASES = ("origin/main", "HEAD")  # what others have, where git knows it; else what was committed last
WEIGHTS = "weights.safetensors"  # of a run's folder


@dataclass(frozen=True)
class Submission:
    """What a checkout adds: records with their files, those of repeats, and every reason why it cannot be merged."""

    added: list[tuple[Path, Record]]
    faults: list[str]
    repeats: set[Path]


def ask_git(folder: Path, *words: str) -> list[str]:
    """Return the entries of git's answer, which it ends with a null byte each. Raises BuildError where it has none."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise BuildError(f"git cannot tell which records of {folder} are new: {done.stderr.strip()}")
    return [entry for entry in done.stdout.split("\0") if entry]


def find_base(folder: Path, base: str) -> str:
    """Return the commit that records are new since: `base`, or where this branch left what others have."""
    for name in [base] if base else BASES:
        try:
            return ask_git(folder, "merge-base", name, "HEAD")[0].strip()
        except BuildError:
            if name == (base or BASES[-1]):
                raise
    raise AssertionError


def list_changes(folder: Path, base: str) -> Iterator[tuple[str, Path]]:
    """Yield (A, M or D, path) for each JSON file of `folder` that differs from the commit `base`."""
    told = ask_git(folder, "diff", "--no-renames", "--name-status", "--relative", "-z", base, "--", ".")
    kinds = [*zip(told[::2], told[1::2], strict=True)]
    kinds += [("A", name) for name in ask_git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", ".")]
    yield from ((kind, folder / name) for kind, name in sorted(kinds) if name.endswith(".json"))


def examine(records: Path, base: str = "") -> Submission:
    """Return what the checkout around `records` adds since `base`. Raises BuildError where git cannot tell."""
    commit = find_base(records, base)
    stores = {records: load_store(records)}
    if (records.parent / BRANCHES).is_dir():
        stores[records.parent / BRANCHES] = load_branches(records)
    added, faults, repeats = [], [], set()
    for folder, (found, problems) in stores.items():
        changes = list(list_changes(folder, commit))
        known = {folder / record["file"]: record for record in found}
        reasons = {folder / problem.file: problem.reason for problem in problems}
        mine = {path for kind, path in changes if kind == "A"}
        there = {record["run"] for path, record in known.items() if path not in mine}
        newest = max((record["protocol"] for path, record in known.items() if path not in mine), default=0)
        for kind, path in changes:
            if kind != "A":
                faults.append(f"{path.name}: a record is never {'deleted' if kind == 'D' else 'edited'}; restore it")
            elif path in reasons:
                faults.append(f"{path.name}: {plain(reasons[path])}")
            elif path in known:
                added.append((path, known[path]))
                repeats |= {path} if known[path]["run"] in there else set()
                faults += [f"{path.name}: {fault}" for fault in find_faults(known[path], newest)]
    return Submission(added, faults, repeats)


def find_faults(record: Record, newest: int) -> Iterator[str]:
    """Yield why a valid record cannot be taken; its seal, counts, budget and costs are known to agree."""
    if record["schema"] != SCHEMA:
        yield f"schema {record['schema']} has no seal; a new record has schema {SCHEMA}: run it again"
    if record["protocol"] < newest:
        yield f"protocol {record['protocol']} is not the newest here ({newest}): run it again with today's suite"
    if record["git"]["commit"] is None or record["git"]["dirty"]:
        yield "nobody else has the code that it ran with: commit that, then run it again from a checkout"
    if not (source := record["method"]["source"]).startswith("methods/"):
        yield f"its method is of {source}, which is not here: add its file to methods/, commit that, and run it again"
    if "author" not in record:
        yield (
            f"it has no author, and a sealed record cannot get one: remove it, `export {AUTHOR}='Your Name'`, "
            "and run it again"
        )


def describe(record: Record) -> str:
    """Return what a reviewer reads of a record: row, author, machine."""
    about = record["environment"]
    machine = ", ".join(str(about[key]) for key in ("device", "device_name", "platform") if key in about)
    row = f"{record['method']['label']} at {percent(record['sparsity'])} on {record['page']['name']}"
    return plain(f"{row}, seed {record['seed']}, {record['status']}, by {record.get('author', 'nobody')}, on {machine}")


def hash_of(record: Record) -> str | None:
    """Return the hash of the weights that the run of a record exported; older records have none."""
    return record.get("files_sha256", {}).get(WEIGHTS)  # type: ignore[no-any-return]


def verify_again(added: Iterable[tuple[Path, Record]], runs: Path, data: Path) -> Iterator[tuple[str, bool]]:
    """Yield a line for each record, and whether all is well: measured again where the files of its run are at hand."""
    added = list(added)
    owners = {hash_of(record): path.name for path, record in added}
    for path, record in added:
        words = ["verify", str(path), "--runs", str(runs), "--data", str(data)]
        file = runs / record["run"] / WEIGHTS
        if not file.is_file():
            yield f"not at hand: {runs / record['run']}; with these files, sparse-bench verify {path}", True
            continue
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != hash_of(record) and found in owners:
            yield f"not at hand: the files of {path.name}, which those of its repeat {owners[found]} replaced", True
            continue
        done = subprocess.run([sys.executable, "-m", "benchmark", *words], capture_output=True, text=True)
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        verdict = "verified again from its weights" if done.returncode == 0 else f"NOT verified: {plain(*last or [''])}"
        yield f"{verdict}: {path.name}", done.returncode == 0


def submit(records: Path, base: str, runs: Path, data: Path, rebuild: Callable[[], object] = bool) -> int:
    """Print what is added and every fault; return 1 if there is one. Nothing is sent, and no record is changed.

    Only records without a fault are worth the minutes that it takes to `rebuild` the sheets and to measure again.
    """
    found = examine(records, base)
    print(f"{amount(len(found.added), 'new record')}")
    faults = list(found.faults)
    for path, record in found.added:
        again = "; a repeat of a run that is here: it counts in no mean" if path in found.repeats else ""
        print(f"  {plain(path.name)}: {describe(record)}{again}")
    if not found.added and not faults:
        faults.append("there is nothing to submit: no record was added; make one with `make bench`")
    if faults:
        print("the sheets were not rebuilt and nothing was measured again: first mend what follows")
    else:
        rebuild()
        for line, well in verify_again(found.added, runs, data):
            print(f"  {printable(line)}")
            faults += [] if well else [line]
    for fault in faults:
        print(f"fault: {printable(fault)}", file=sys.stderr)
    if not faults:
        print(
            "all of it is fit to be submitted: commit records and sheets, and open a pull request (docs/submitting.md)"
        )
    return 1 if faults else 0
