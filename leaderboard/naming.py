"""Which records share a row of a section, and how each row is called.

A row is one method in one set of settings: equal file and equal settings, whoever chose them, the command or the page.
Its label names the settings that are not the defaults of the newest runs, as the label of a user's own change does. So
where a page gives a method another setting, its new runs keep the plain label, and the old ones become
`rigl_itop (update_every=50)`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from leaderboard.kinds import parse_time
from leaderboard.records import stable_key
from leaderboard.schema import GROUPS, Record

Names = Mapping[str, str]  # of rows, by the name of a run


@dataclass(frozen=True)
class RowRuns:
    """The runs of one row, its label as text, and the settings to ask for to get it where they are not defaults.

    `version` tells apart rows of one group and label with another file: `(file 1a2b3c4d)`; empty where there is one.
    """

    group: str
    label: str
    version: str
    settings: dict[str, Any]
    donor: str  # name of the row whose masks or layer densities its runs take; empty where they take none
    runs: list[Record]

    @property
    def name(self) -> str:
        """Label and version."""
        return f"{self.label} {self.version}" if self.version else self.label


@dataclass(frozen=True)
class Asked:
    """What a record says was asked of its method. `label` is empty where it follows from the name and the changes."""

    record: Record
    settings: dict[str, Any]
    changed: tuple[str, ...]
    label: str
    donor: str

    @classmethod
    def of(cls, record: Record, donors: Names) -> Asked:
        """Return it with the names of rows, in a control's settings, as these rows are called now."""
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
        """What makes a row: the group, the method, its file and its settings; a label that says otherwise as well."""
        method = self.record["method"]
        own = json.dumps(self.settings, sort_keys=True)
        return method["group"], method["name"], method["sha256"], own, self.label

    @property
    def file(self) -> tuple[str, str]:
        """The method and its file: what has defaults."""
        return self.record["method"]["name"], self.record["method"]["sha256"]


def first_word(value: Any) -> str:
    """Return the method of a row's name; of anything else what no method is called."""
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
    known = sorted(records, key=lambda record: (parse_time(record["finished"]), *stable_key(record)))
    rows = make_rows([Asked.of(record, {}) for record in known])
    names = {run["run"]: row.name for row in rows for run in row.runs if not run["method"].get("donor")}
    if any(record["method"].get("donor", {}).get("run") in names for record in known):
        rows = make_rows([Asked.of(record, names) for record in known])
    return rows


def make_rows(asked: list[Asked]) -> list[RowRuns]:
    """Return the rows of runs in the order in which they finished."""
    defaults = find_defaults(asked)
    groups: dict[tuple[str, ...], list[Asked]] = {}
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
    """Return rows in their order; those of one label get the version of their file, or of their settings."""
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


def find_defaults(asked: Iterable[Asked]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the defaults of each method's file, as its newest runs had them.

    Unknown is the default of a setting that no run left alone, or that was changed to what used to be the default.
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


def write_label(group: list[Asked], changed: Mapping[str, Any]) -> str:
    """Return the label of a row: that of its newest run which changed these very settings, or one written like it."""
    method = group[0].record["method"]
    for one in reversed(group):
        told = {key: one.record["method"]["changed"][key] for key in one.changed}
        if told == changed:
            return str(one.record["method"]["label"])
    return f"{method['name']} ({', '.join(f'{key}={value}' for key, value in changed.items())})"
