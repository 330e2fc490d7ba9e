"""The main table: which records share a row, the names of rows, and the text of their entries."""

from __future__ import annotations

import hashlib
import html
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from leaderboard.store.records import finish_key, stable_key
from leaderboard.store.schema import GROUPS, Record

BLANK = "·"
HEADINGS = {**{group: group for group in GROUPS}, "control": "controls"}
LEAST_SEEDS = 3  # in common; two leave one degree of freedom, too few to see any but huge differences
LONGEST_TEXT = 200  # characters of any one text from a record


def printable(text: str) -> str:
    """Return `text` on one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def plain(text: object) -> str:
    """Return `text` on one line without control characters, cut to LONGEST_TEXT: safe in a terminal."""
    kept = printable(str(text))
    return kept if len(kept) <= LONGEST_TEXT else kept[: LONGEST_TEXT - 1] + "…"


def escape(text: object) -> str:
    """Return `text` on one line, without a meaning in Markdown or HTML, cut to LONGEST_TEXT characters."""
    kept = plain(text)
    kept = re.sub(r"([\\*\[\]$~#])", r"\\\1", kept)
    kept = re.sub(r"^(\d*)([-+=.)])(?=[ =-]|$)", r"\1\\\2", kept)  # a list or a rule, at the start of a line
    kept = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", kept)  # inside a word it has no meaning
    return html.escape(kept, quote=False).replace("|", "&#124;").replace("`", "&#96;")


def mean(values: Iterable[float | None], show: Callable[[float], str]) -> str:
    """Return the mean of the known `values`, as `show` writes it, or BLANK."""
    known = [value for value in values if value is not None]
    return show(statistics.fmean(known)) if known else BLANK


def mean_and_std(values: Iterable[float | None]) -> str:
    """Return `93.10 ± 0.21`: mean and sample standard deviation (ddof = 1); no ± for one value, BLANK for none."""
    known = [value for value in values if value is not None]
    std = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return mean(known, "{:.2f}".format) + std


def multiple(share: float) -> str:
    """Return a cost as a multiple of the dense network's: two decimals, or two digits when below 0.1."""
    return f"{share:.2f}×" if share >= 0.0995 else f"{share:#.2g}×"


def flops(macs: float) -> str:
    """Return `macs` multiply-adds as FLOPs, two for each: `8.2e9`."""
    digits, exponent = f"{2 * macs:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def percent(share: float) -> str:
    """Return a share in percent without trailing zeros: 0.9 -> `90 %`."""
    return f"{100 * share:.10g} %"


def duration(seconds: float) -> str:
    """Return a time in seconds, or in hours from two hours."""
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


@dataclass(frozen=True)
class Entry:
    """The runs of one method at one sparsity: `counted` has one for each seed, in order; `repeats` are the others."""

    counted: list[Record]
    repeats: list[Record]

    @property
    def diverged(self) -> int:
        """How many of the counted runs diverged."""
        return len(self.counted) - len(self.finished)

    @property
    def finished(self) -> list[Record]:
        """The counted runs that did not diverge, whose numbers enter means."""
        return [record for record in self.counted if record["status"] == "ok"]

    def dead(self) -> list[tuple[Record, dict[str, Any]]]:
        """Return the finished runs of which it is known, and what is dead in them.

        A repeat that ended with the very masks of a counted run tells it of that one, too: old records lack it.
        """
        told = [run for run in (*self.repeats, *self.finished) if "dead" in run]
        known = {(run["seed"], run["masks_sha256"]): run["dead"] for run in told}
        keys = [(run, (run["seed"], run["masks_sha256"])) for run in self.finished]
        return [(run, known[key]) for run, key in keys if key in known]

    def accuracy(self) -> str:
        """Return `93.10 ± 0.21 (n=2, 1 diverged)`, of the last epoch."""
        shown = mean_and_std(record["accuracy_pct"]["last_epoch"] for record in self.finished)
        return f"{shown} (n={len(self.finished)}{f', {self.diverged} diverged' if self.diverged else ''})"

    def cost(self, part: str, absolute: bool) -> str:
        """Return the mean cost of `part` (inference or train), in FLOPs or as a multiple of the dense network's."""
        if absolute:
            return mean((record["macs"][part] for record in self.finished), flops)
        return mean((record["macs"][f"{part}_share"] for record in self.finished), multiple)


def gather(records: list[Record]) -> Entry:
    """Sort the runs of one method at one sparsity: for each seed the first to finish counts, diverged or not.

    Never the better one: a repeat must not be a second try.
    """
    counted: dict[int, Record] = {}
    repeats = []
    for record in sorted(records, key=finish_key):
        if record["seed"] in counted:
            repeats.append(record)
        else:
            counted[record["seed"]] = record
    return Entry([counted[seed] for seed in sorted(counted)], repeats)


NEAR = 0.005  # of the sparsity asked: an outcome within half a point of it stands there


def place_runs(records: Iterable[Record]) -> dict[float, list[Record]]:
    """Return the runs of a row by the sparsity at which they stand, in ascending order.

    Invariant: runs asked for one sparsity stand together. No outcome decides which of them a mean is of, and a repeat
    stays one.
    """
    asked: dict[float, list[Record]] = {}
    for record in records:
        asked.setdefault(float(record["sparsity"]), []).append(record)
    placed: dict[float, list[Record]] = {}
    for of in asked.values():
        placed.setdefault(column_of(of), []).extend(of)
    return dict(sorted(placed.items()))


def column_of(records: list[Record]) -> float:
    """Return the sparsity at which runs asked for one stand: that one, or what they delivered on average.

    The latter where their weight count is an outcome, and further than half a point from what was asked: at the nearest
    whole per cent, or as it is where that is 100. Runs that diverged and repeats have no say.
    """
    asked, finished = float(records[0]["sparsity"]), gather(records).finished
    if records[0]["method"]["budget"] != "outcome" or not finished:
        return asked
    delivered = statistics.fmean(1 - record["density"]["prunable"] for record in finished)
    if abs(delivered - asked) <= NEAR + 1e-9:
        return asked
    return round(delivered, 2) if round(delivered, 2) < 1 else float(delivered)


def count_zeros(record: Record) -> int:
    """Return how many active weights were zero at the end; 0 if the record does not say."""
    weights = record["weights"]
    return int(weights["active"] - weights.get("nonzero", weights["active"]))


@dataclass(frozen=True)
class Row:
    """One method of a section in one set of settings, see `leaderboard.tables.table`. `cells` by `place_runs`.

    `label` is escaped, `name` the same as text; `settings` are those that are not the defaults.
    """

    group: str
    label: str
    dense: bool
    reference: str
    cells: dict[float, Entry]
    narrow: bool = False  # a narrower network: its weight count is the sparse networks', its layers are not
    made_from: str = ""  # label of the row whose masks or layer densities it takes, for controls
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def counted(self) -> list[Record]:
        """The counted runs at all sparsities; never empty."""
        return [run for entry in self.cells.values() for run in entry.counted]

    @property
    def method(self) -> dict[str, Any]:
        """The method as its first run names it; name, source, group and file are those of all."""
        found: dict[str, Any] = self.counted[0]["method"]
        return found

    @property
    def last_finished(self) -> tuple[Any, ...]:
        """What sorts rows by their last run: its time first."""
        return max(map(finish_key, self.counted))


def sparsities_of(rows: list[Row]) -> list[float]:
    """Return the sparsities at which any sparse row has runs, in ascending order."""
    return sorted({sparsity for row in rows for sparsity in row.cells if not row.dense})


def make_rows(records: list[Record]) -> list[Row]:
    """Return the rows of a section in the order of the table: by group, name, defaults first, label."""
    rows = []
    for found in split_rows(records):
        method, weights = found.runs[0]["method"], found.runs[0]["weights"]
        rows.append(
            Row(
                found.group,
                f"{escape(found.label)} {escape(found.version)}".rstrip(),
                method["budget"] == "dense",
                escape(method["reference"]),
                {sparsity: gather(runs) for sparsity, runs in place_runs(found.runs).items()},
                weights["prunable"] != weights["dense_prunable"],
                found.donor if found.group == "control" else "",
                found.name,
                found.settings,
            )
        )
    return rows


def line(cells: Iterable[str]) -> str:
    """Return one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def show_rank(rank: tuple[int, int] | None) -> str:
    """Return `1–4`, or `2` if best and worst rank are the same; BLANK without a rank."""
    if rank is None:
        return BLANK
    return str(rank[0]) if rank[0] == rank[1] else f"{rank[0]}–{rank[1]}"


def main_table(rows: list[Row], ranks: Mapping[tuple[int, float], tuple[int, int]]) -> list[str]:
    """Return the lines of the main table: groups of methods down, sparsities across, four columns for each.

    `ranks`: by row number and sparsity. An accuracy is bold if its rank can only be 1. Controls made from another row's
    runs have a table of their own.
    """
    sparsities = sparsities_of(rows)
    head = ["method"]
    for sparsity in sparsities:
        head += [f"sparsity {percent(sparsity)}: accuracy, %", "rank", "inference FLOPs", "training FLOPs"]
    if not sparsities:
        head += ["accuracy, %", "inference FLOPs", "training FLOPs"]
    lines = [line(head), line(["---"] + ["---:"] * (len(head) - 1))]
    group = ""
    for number, row in enumerate(rows):
        if row.made_from:
            continue
        if row.group != group:
            group = row.group
            lines.append(line([f"*{HEADINGS[group]}*"] + [""] * (len(head) - 1)))
        shown = [row.label]
        for sparsity in row.cells if row.dense else sparsities:
            shown += main_cells(row, sparsity, ranks.get((number, sparsity)), ranked=bool(sparsities))
        lines.append(line(shown + [BLANK] * (len(head) - len(shown))))
    return lines


def main_cells(row: Row, sparsity: float, rank: tuple[int, int] | None, ranked: bool) -> list[str]:
    """Return accuracy, rank (if `ranked`) and costs of a row at a sparsity."""
    entry = row.cells.get(sparsity)
    if entry is None:
        return [BLANK] * 4
    accuracy = f"**{entry.accuracy()}**" if rank == (1, 1) else entry.accuracy()
    costs = [entry.cost("inference", row.dense), entry.cost("train", row.dense)]
    return [accuracy, *([show_rank(rank)] if ranked else []), *costs]


def list_links(entry: Entry, folder: str, diverged: str = "") -> str:
    """Return links to the records of an entry, named by seed; `diverged` follows those that did."""
    found = [("seed", run, "" if run["status"] == "ok" else diverged) for run in entry.counted]
    return ", ".join(
        f"[{name} {run['seed']}]({quote(folder)}/{quote(run['file'], errors='replace')}){note}"
        for name, run, note in [*found, *(("repeat of seed", run, "") for run in entry.repeats)]
    )


Names = Mapping[str, str]  # of rows, by the name of a run


@dataclass(frozen=True)
class RowRuns:
    """The runs of one row, its label as text, and its settings that are not defaults.

    `version` tells apart rows of the same group and label: `(file 1a2b3c4d)`; empty if there is only one.
    """

    group: str
    label: str
    version: str
    settings: dict[str, Any]
    donor: str  # name of the row whose masks or layer densities its runs use, or empty
    runs: list[Record]

    @property
    def name(self) -> str:
        """Label and version."""
        return f"{self.label} {self.version}" if self.version else self.label


@dataclass(frozen=True)
class AskedMethod:
    """What a record's method was asked for. `label` is empty if it follows from the name and the changes."""

    record: Record
    settings: dict[str, Any]
    changed: tuple[str, ...]
    label: str
    donor: str

    @classmethod
    def of(cls, record: Record, donors: Names) -> AskedMethod:
        """Return it for a record; row names in a control's settings become the current names of those rows."""
        method, weights = record["method"], record["weights"]
        settings = {**method["settings"], **method["changed"]}
        if weights["prunable"] != weights["dense_prunable"] or settings.get("width") == 1:
            settings.pop("width", None)  # of a narrower network: it follows from the sparsity
        donor = method.get("donor") or {"run": "", "label": ""}
        row = donors.get(donor["run"])
        if row is not None:
            settings.update({key: row for key, value in settings.items() if first_word(value) == first_word(row)})
        changed, label = tuple(sorted(method["changed"])), "" if follows(method) else method["label"]
        return cls(record, settings, changed, label, row or donor["label"])

    @property
    def key(self) -> tuple[str, ...]:
        """What makes a row: group, method, file and settings, and a label that does not follow from them."""
        method = self.record["method"]
        own = json.dumps(self.settings, sort_keys=True)
        return method["group"], method["name"], method["sha256"], own, self.label

    @property
    def file(self) -> tuple[str, str]:
        """The method and its file, which have defaults."""
        return self.record["method"]["name"], self.record["method"]["sha256"]


def first_word(value: Any) -> str:
    """Return the method in a row's name, or `-` for anything else."""
    return re.split(r" ?[(:]", value)[0] if isinstance(value, str) and value else "-"


def follows(method: Mapping[str, Any]) -> bool:
    """Return whether a label is the method's name and the changed settings, in any order."""
    name, label = method["name"], method["label"]
    parts = [f"{key}={value}" for key, value in method["changed"].items()]
    whole = f"{name} ({', '.join(parts)})" if parts else name
    same = label == whole or sorted(label) == sorted(whole)
    return bool(same and label.startswith(name) and all(part in label for part in parts))


def split_rows(records: Iterable[Record]) -> list[RowRuns]:
    """Return the rows of the records of a section, in the order of the table: by group, name, defaults first, label.

    Invariant: no two rows have group, label and version in common, and the order of the records is irrelevant.
    """
    known = sorted(records, key=finish_key)
    rows = group_runs([AskedMethod.of(record, {}) for record in known])
    names = {run["run"]: row.name for row in rows for run in row.runs if not run["method"].get("donor")}
    if any(record["method"].get("donor", {}).get("run") in names for record in known):
        rows = group_runs([AskedMethod.of(record, names) for record in known])
    return rows


def group_runs(asked: list[AskedMethod]) -> list[RowRuns]:
    """Return the rows of runs in the order in which they finished."""
    defaults = find_defaults(asked)
    groups: dict[tuple[str, ...], list[AskedMethod]] = {}
    for one in asked:
        groups.setdefault(one.key, []).append(one)
    found = []
    for key, group in groups.items():
        usual = defaults[group[0].file]
        changed = {k: v for k, v in sorted(group[0].settings.items()) if k not in usual or usual[k] != v}
        label = key[-1] or write_label(group, changed)
        moved = bool(changed) if not key[-1] else all(one.changed for one in group)
        place = GROUPS.index(key[0]), key[1], moved, label, key[2], key[3]
        runs = sorted((one.record for one in group), key=lambda run: (bool(run["method"]["changed"]), *stable_key(run)))
        donor = group[0].donor if all(one.donor for one in group) else ""
        found.append((place, label, changed, donor, runs))
    return tell_apart(found)


def tell_apart(found: list[tuple[Any, ...]]) -> list[RowRuns]:
    """Return rows in order; those with the same label get the version of their file, or of their settings."""
    ordered = sorted(found, key=lambda row: row[0])
    labels = Counter((place[0], label) for place, label, *_ in ordered)
    files = Counter((place[0], label, place[4]) for place, label, *_ in ordered)
    rows = []
    for place, label, changed, donor, runs in ordered:
        number, sha256, settings = place[0], place[4], place[5]
        version = f"(file {sha256[:8]})" if labels[number, label] > 1 else ""
        if files[number, label, sha256] > 1:  # values that are written alike
            version = f"(settings {hashlib.sha256(settings.encode()).hexdigest()[:8]}) {version}".rstrip()
        rows.append(RowRuns(GROUPS[number], label, version, changed, donor, runs))
    return rows


def find_defaults(asked: Iterable[AskedMethod]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the defaults of each method's file, as its newest runs had them.

    A default is unknown if every run changed the setting, or one changed it to the former default.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in asked:
        usual = found.setdefault(one.file, {})
        for key, value in one.settings.items():
            if key not in one.changed:
                usual[key] = value
            elif key in usual and usual[key] == value:
                del usual[key]
    return found


def write_label(group: list[AskedMethod], changed: Mapping[str, Any]) -> str:
    """Return the label of a row: that of its newest run with these changes, or one in the same form."""
    method = group[0].record["method"]
    for one in reversed(group):
        told = {key: one.record["method"]["changed"][key] for key in one.changed}
        if told == changed:
            return str(one.record["method"]["label"])
    return f"{method['name']} ({', '.join(f'{key}={value}' for key, value in changed.items())})"
