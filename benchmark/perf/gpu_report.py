"""The report of a check of a GPU: verdicts on what is claimed, figures of each part, the machine; Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.perf.gpu_claims import ABSENT, CLAIMS, DONE, Claim
from leaderboard.store.files import write_atomically

MACHINE = "machine"  # the part that tells where all this ran
Part = Mapping[str, Any]


def judge(claim: Claim, parts: Mapping[str, Part]) -> tuple[dict[str, Any] | None, str]:
    """Return the figure of a claim, if there is one, and its verdict: pass, short, or why it was not measured."""
    part = parts.get(claim.part)
    if part is None:
        return None, f"{ABSENT}: part {claim.part} was not run"
    for goal in part["goals"]:
        if (goal["name"], goal["what"]) == (claim.goal, claim.what):
            return goal, goal["verdict"] or f"{ABSENT}: small sizes say nothing of it"
    if part["status"] == DONE:
        return None, f"{ABSENT}: {'not at small sizes' if part['about'].get('quick') else 'not on such a device'}"
    return None, f"{ABSENT}: {part['reason'] or part['status']}"


def gather(parts: Mapping[str, Part], order: Sequence[str]) -> dict[str, Any]:
    """Return the report as JSON holds it."""
    verdicts = []
    for claim in CLAIMS:
        goal, verdict = judge(claim, parts)
        wanted = {"relation": claim.relation, "limit": claim.limit, "unit": claim.unit}
        measured = None if goal is None else goal["measured"]
        verdicts.append({"goal": claim.goal, "what": claim.what, **wanted, "measured": measured, "verdict": verdict})
    return {
        "verdicts": verdicts,
        "machine": dict(parts.get(MACHINE, {}).get("facts", {})),
        "parts": [parts[name] for name in order if name in parts],
    }


def number(value: float, unit: str) -> str:
    """Return a figure with its unit, a ratio as `1.02×`."""
    shown = f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown}{'×' if unit == 'x' else f' {unit}' if unit else ''}"


def cell(text: object) -> str:
    """Return text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def render(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    counts = {
        word: sum(v["verdict"].startswith(word) for v in report["verdicts"]) for word in ("pass", "short", ABSENT)
    }
    lines = ["# GPU check", "", ", ".join(f"{count} {word}" for word, count in counts.items()) + ".", ""]
    lines += ["| goal | what | wanted | measured | verdict |", "|---|---|---|---|---|"]
    for verdict in report["verdicts"]:
        sign = {"<=": "≤", ">=": "≥"}[verdict["relation"]]
        wanted = f"{sign} {number(verdict['limit'], verdict['unit'])}"
        measured = "" if verdict["measured"] is None else number(verdict["measured"], verdict["unit"])
        said = f"**{verdict['verdict']}**" if verdict["verdict"] == "short" else verdict["verdict"]
        lines.append(f"| {verdict['goal']} | {verdict['what']} | {wanted} | {measured} | {cell(said)} |")
    lines += ["", "## Machine", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {cell(value)} |" for name, value in report["machine"].items()]
    for part in report["parts"]:
        lines += ["", f"## {part['part']}: {part['status']}, {part['seconds']:.0f} s", ""]
        lines += [f"{cell(part['reason'])}", ""] if part["reason"] else []
        lines += [f"- {name}: {cell(value)}" for name, value in part["facts"].items() if part["part"] != MACHINE]
        for goal in part["goals"]:
            details = ", ".join(f"{name} {value}" for name, value in goal["details"].items())
            figure = number(goal["measured"], goal["unit"])
            lines.append(f"- {goal['what']}: **{figure}**{f' ({cell(details)})' if details else ''}")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def read_parts(folder: Path) -> dict[str, Part]:
    """Return what the parts of a folder told, by name; a file that no part wrote is left out."""
    found = {}
    for path in sorted((folder / "parts").glob("*.json")):
        try:
            content = json.loads(path.read_text())
            found[str(content["part"])] = content
        except (ValueError, LookupError, TypeError):
            continue
    return found


def write_report(folder: Path, order: Sequence[str]) -> tuple[dict[str, Any], list[Path]]:
    """Write report.md and report.json from what the parts told; return the report and the files."""
    report = gather(read_parts(folder), order)
    paths = [folder / "report.md", folder / "report.json"]
    write_atomically(paths[0], render(report).encode())
    write_atomically(paths[1], (json.dumps(report, indent=1) + "\n").encode())
    return report, paths
