"""The table of goals in docs/speed.md, written by `make perf KEEP=1` from measured figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmark.base import ROOT

KEPT = Path(__file__).resolve().parent / "measured.json"
DOCUMENT = ROOT / "docs" / "speed.md"
BEGIN, END = "<!-- goals: written by `make perf KEEP=1` -->", "<!-- end of goals -->"


def gather(goals: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], list[tuple[str, Mapping[str, Any]]]]:
    """Return the goals with a limit by name, measure and limit, each with its network."""
    rows: dict[tuple[str, str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for goal in goals:
        if goal["relation"]:
            net, _, what = goal["what"].rpartition(": ")
            sign = {"<=": "≤", ">=": "≥"}[goal["relation"]]
            rows.setdefault((goal["name"], what, f"{sign} {goal['limit']:g}{unit(goal)}"), []).append((net, goal))
    return rows


def unit(goal: Mapping[str, Any]) -> str:
    """Return a goal's unit as written after a number."""
    return {"x": "×", "": ""}.get(goal["unit"], f" {goal['unit']}")


def render(content: Mapping[str, Any]) -> str:
    """Return `content`, as `make perf` writes it, as a Markdown table with the machine it is from."""
    environment = content["environment"]
    lines = [
        f"Measured by `make perf` on {environment['device_name']}, one thread unless said otherwise, torch "
        f"{environment['torch']}, {content['date']}.",
        "",
        "| goal | what | wanted | measured |",
        "|---|---|---|---|",
    ]
    goals = [goal for measured in content["goals"].values() for goal in measured]
    rows = gather(goals)
    for (name, what, wanted), found in sorted(rows.items(), key=lambda row: (int(row[0][0].strip("PG")), row[0])):
        lines.append(f"| {name} | {what} | {wanted} | {', '.join(value(net, goal) for net, goal in found)} |")
    return "\n".join(lines)


def value(net: str, goal: Mapping[str, Any]) -> str:
    """Return a measured value, such as `VGG-19 0.91× **short**`, with the note there may be."""
    short = " **short**" if goal["verdict"] == "short" else ""
    measured = f"{goal['measured']:.{3 if goal['measured'] < 1 else 4}g}"  # three decimals where 1 is what counts
    note = f" ({goal['details']['note']})" if "note" in goal["details"] else ""
    return f"{net} {measured}{unit(goal)}{note}{short}".strip()


def put(text: str, table: str) -> str:
    """Return `text` with `table` between the two marks. Raises ValueError if a mark is missing."""
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{DOCUMENT} has no lines '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def keep(content: Mapping[str, Any]) -> None:
    """Keep the figures in measured.json and write them into docs/speed.md."""
    KEPT.write_text(json.dumps(content, indent=1) + "\n")
    DOCUMENT.write_text(put(DOCUMENT.read_text(), render(content)))
