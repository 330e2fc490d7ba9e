"""What readers may see while a grid runs, and what must be there when it has ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmark.runs.checkpoints import FINISHED, MAGIC
from benchmark.runs.export import MASKS, WEIGHTS
from leaderboard.board.sheet import make_sheet, render
from leaderboard.store.records import Problem, list_files, load_store, read_file, read_records

PAGE = "LEADERBOARD.md"
# What may differ between two runs of a cell: when and how it was asked for, what it took, the checkout.
APART = ("started", "finished", "time", "usage", "git", "command", "seal", "file")
TAKEN = ("training time", "images/s", "mask updates", "peak memory", "energy")  # columns that say what runs took


def is_torn(path: Path) -> bool:
    """Return whether a file of a run is there and not whole; judged here anew, not by the code under test."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    if path.name == "checkpoint":
        payload = content[len(MAGIC) + 32 :]
        return not content.startswith(MAGIC) or content[len(MAGIC) :][:32] != hashlib.sha256(payload).digest()
    try:
        if path.name == FINISHED:
            json.loads(content)
            return False
        length = int.from_bytes(content[:8], "little")
        parts = json.loads(content[8 : 8 + length])
        ends = [part["data_offsets"][1] for name, part in parts.items() if name != "__metadata__"]
        return len(content) != 8 + length + max(ends)
    except ValueError:
        return True


def find_torn(folder: Path) -> list[str]:
    """Return what a reader of `folder`, at this very instant, would find damaged or untrue."""
    torn = [f"record {fault.file}: {fault.reason}" for fault in read_records(folder / "records", branches=True)[1]]
    page = folder / PAGE
    if page.exists() and page.read_text() != make_sheet(folder / "records", page)[0]:
        torn.append("page")
    return torn + [path.name for path in run_files(folder) if is_torn(path)]


def run_files(folder: Path) -> Iterator[Path]:
    """Yield the files of runs that must always be whole."""
    for name in ("checkpoint", FINISHED, WEIGHTS, MASKS):
        yield from folder.glob(f"runs/*/{name}")


class Reader:
    """A process that looks at records, pages and runs all the time, and finds what is not whole."""

    def __init__(self, folder: Path, log: Path, damaged: dict[str, str]) -> None:
        self.folder, self.log, self.damaged = folder, log, damaged
        self.found: dict[str, None] = {}
        self.looks = 0
        self.over = False
        self.seen: dict[Path, tuple[int, int]] = {}

    def __call__(self) -> int:
        """Look until asked to end; leave what was found."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "over", True))
        while not self.over:
            try:
                self.look()
            except Exception:
                self.found[f"a reader failed: {traceback.format_exc()}"] = None
            time.sleep(0.02)
        self.log.write_text(json.dumps([list(self.found), self.looks]))
        return 0

    def look(self) -> None:
        """Read everything once."""
        self.looks += 1
        records, page = self.folder / "records", self.folder / PAGE
        for path in filter(self.is_new, list_files(records)):
            found = read_file(path)
            if isinstance(found, Problem) and path.exists():  # else the whole folder went away meanwhile
                self.found[f"a reader saw {path.name}: {found.reason}"] = None
        if self.is_new(page):
            with contextlib.suppress(FileNotFoundError):
                self.check_page(page.read_text())
        for path in filter(self.is_new, run_files(self.folder)):
            if is_torn(path) and digest(path) != self.damaged.get(str(path)):
                self.found[f"a reader saw a part of {path.parent.name}/{path.name}"] = None

    def is_new(self, path: Path) -> bool:
        """Return whether a file is another one, or longer, than at the last look."""
        try:
            now = path.stat().st_mtime_ns, path.stat().st_size
        except OSError:
            return False
        known = self.seen.get(path) == now
        self.seen[path] = now
        return not known

    def check_page(self, text: str) -> None:
        """Hold a page to the records that it links, which must give it to the letter."""
        names = set(re.findall(r"\(records/([^)]+\.json)\)", text))
        records = [record for record in load_store(self.folder / "records")[0] if record["file"] in names]
        if "## Skipped files" in text:  # it says what its writer could not read, which a reader now can
            return
        if len(records) == len(names) and text != render(records, [], "records", "pictures"):
            self.found["a reader saw a page that no records give"] = None


def digest(path: Path) -> str:
    """Return the hash of a file's content, "" where it is gone."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def judge(folder: Path, wanted: Path) -> list[str]:
    """Return in words what is not as the undisturbed run left it.

    Held to it: the records, one of each cell, in all but APART; both pages, without the columns of times; weights and
    masks of each run. Moreover the page must be what the records give, no record may be set aside, no file left over
    but those of other processes' folders, which nobody may sweep (.partial-), and no lock held.
    """
    records, problems = read_records(folder / "records", branches=True)
    faults = [f"record {problem.file}: {problem.reason}" for problem in problems]
    there, here = by_run(read_records(wanted / "records", branches=True)[0]), by_run(records)
    for run in sorted(there.keys() | here.keys()):
        one, found = there.get(run, [{}])[0], here.get(run, [])
        if len(found) != 1 or run not in there:
            faults.append(f"{len(found)} records of {run}")
            continue
        keys = [key for key in sorted(one.keys() | found[0].keys()) if key not in APART]
        faults += [f"{run}: other {key}" for key in keys if one.get(key) != found[0].get(key)]
        faults += [f"{run}: {fault}" for fault in compare_files(folder / "runs" / run, wanted / "runs" / run)]
    for name in (PAGE, "PAPER.md"):
        if without_times(read_text(folder / name)) != without_times(read_text(wanted / name)):
            faults.append(f"other {name}")
    if (folder / PAGE).exists() and read_text(folder / PAGE) != make_sheet(folder / "records", folder / PAGE)[0]:
        faults.append(f"{PAGE} is not what the records give")
    litter = {path.name for room in (folder, folder / "records") for path in room.glob(".*")}
    faults += [f"{name} is left" for name in sorted(litter) if not name.startswith(".partial-")]
    return faults + [f"{path} is held" for path in sorted(folder.glob("runs/*/*lock")) if is_held(path)]


def compare_files(folder: Path, wanted: Path) -> Iterator[str]:
    """Yield what differs between the files of a run and those of the undisturbed one."""
    for name in (WEIGHTS, MASKS):
        if not (folder / name).exists() or read_content(folder / name) != read_content(wanted / name):
            yield f"other {name}"
    if (folder / f"{FINISHED}.damaged").exists():
        return  # whoever finds it so cannot know that the checkpoint beside it is of no use any more
    for path in sorted(folder.iterdir()):
        if path.is_file() and not (wanted / path.name).exists() and path.suffix != ".damaged":
            yield f"{path.name} is left"


def read_content(path: Path) -> Any:
    """Return what a safetensors file holds; its metadata come in any order."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def without_times(page: str) -> str:
    """Return a leaderboard page without the columns that show what runs took."""
    lines, hidden = [], []
    for line in page.splitlines():
        cells = line.split(" | ")
        if "training time" in cells:
            hidden = [cells.index(name) for name in TAKEN if name in cells]
        lines.append(" | ".join(cell for i, cell in enumerate(cells) if len(cells) == 1 or i not in hidden))
    return "\n".join(lines)


def read_text(path: Path) -> str:
    """Return a page, or nothing where there is none."""
    return path.read_text() if path.exists() else ""


def by_run(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return records by their run's name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(record["run"], []).append(record)
    return found


def is_held(path: Path) -> bool:
    """Return whether a lock is held by a process."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
