"""What a reader may not conclude, derived from the records where it depends on them."""

from __future__ import annotations

import json
import re
from typing import Any

from leaderboard.paper.cells import NOT_IN_SUITE, SAME_PAGE, TableView
from leaderboard.paper.published import Tables
from leaderboard.results.agreement import TABLES
from leaderboard.results.scope import Section, at_chance, count_machines, dense_mean, epochs_of, span
from leaderboard.store.kinds import is_number
from leaderboard.store.schema import Record
from leaderboard.tables.comparisons import grain
from leaderboard.tables.sections import amount
from leaderboard.tables.table import escape, percent
from leaderboard.tables.usage import count_trainings

NEAR_CEILING = 2.0  # points of error of the dense network, up to which methods can hardly differ
MAIN = ("data", "model", "epochs", "image size", "batch size", "training images")  # the first to tell pages apart
PARTS = {"train": "training", "validation": "validation", "test": "test"}
MOST = 6  # pages named in a sentence; more are only counted

ALWAYS = (
    "Costs are counted multiplications, not times: sparse networks were trained in dense kernels.",
    "Tests do not know of looks: where seeds were added because the first ones left a question open, more than one in "
    "twenty may be found by chance.",
    "Intervals and tests are over seeds. They say nothing of other data, recipes or test images.",
    "*Not shown* is no proof that two rows are equal, and *as in the paper* is a sign, no reproduced number.",
    "Settings are the papers', but for what pages set, ΔT first of all ([DEVIATIONS.md](../methods/DEVIATIONS.md)). "
    "ΔT on these pages and the files of some methods were changed after first results had been seen, nothing else was "
    "searched for: what loses here may win with other settings.",
)


def list_caveats(sections: list[Section], views: list[TableView], tables: Tables) -> list[str]:
    """Return what a reader may not conclude, a sentence or two each. `sections` are all, of branches too."""
    own = [about_paper(views), about_length(sections, tables), about_jpeg(sections, tables), about_ceiling(sections)]
    own += [about_rounds(sections), about_seeds(sections), about_machines(sections), about_code(sections)]
    own += [about_chance(sections)]
    return [text for text in (*own, *ALWAYS) if text]


def count_cells(views: list[TableView]) -> tuple[int, int]:
    """Return how many entries of the paper's tables were run at their protocol, of how many the suite can run."""
    ours = [found for view in views for found in view.distinct() if found.verdict != NOT_IN_SUITE]
    return sum(found.compared is not None for found in ours), len(ours)


def about_paper(views: list[TableView]) -> str:
    """Return how much of the paper was run."""
    done, cells = count_cells(views)
    if done == 0:
        return "The paper's pages were not run: nothing here confirms or refutes a number that it prints."
    if done == cells:
        return ""
    return f"Of the paper's cells {done} of {cells} were run: nothing here says anything of the others."


def about_length(sections: list[Section], tables: Tables) -> str:
    """Return how short training was, or nothing if it was not."""
    wanted = [value for page in compared_pages(tables) if is_number(value := tables.pages[page].settings["epochs"])]
    known = [value for section in sections for value in epochs_of(section.runs)]
    short = [value for value in known if value < min(wanted)]
    if not short:
        return ""
    but = f", but for {amount(len(known) - len(short), 'run')}" if len(short) < len(known) else ""
    return (
        f"Training is short{but}: {span(short, '{:g}')} epochs, where the paper's pages have {span(wanted, '{:g}')}. "
        "Methods that need time to find their weights may look worse than they are."
    )


def is_jpeg_copy(run: Record) -> bool:
    """Return whether a run's images come from a folder of JPEG copies, named `…-jpeg`."""
    settings = run["page"]["settings"]
    names = (run["data"]["name"], settings.get("data_dir"))
    return settings.get("data") == "folder" and any(
        isinstance(n, str) and n.rstrip("/").endswith("-jpeg") for n in names
    )


def about_jpeg(sections: list[Section], tables: Tables) -> str:
    """Return which data are JPEG copies, and the image sizes if they are below the paper's."""
    runs = [run for section in sections for run in section.runs if is_jpeg_copy(run)]
    if not runs:
        return ""
    names = " and of ".join(sorted({escape(run["data"]["name"]) for run in runs}))
    text = f"The images of {names} are JPEG copies, which are not distributed here: accuracies are not those of the "
    text += "originals, and another copy has tables of its own."
    least = min(tables.pages[page].settings["image_size"] for page in compared_pages(tables))
    sizes = [run["page"]["settings"].get("image_size") for run in runs]
    if small := [size for size in sizes if is_number(size) and size < least]:
        but = f", but for {amount(len(runs) - len(small), 'run')}," if len(small) < len(runs) else ""
        text += f" They were{but} read at {span(small, '{:g}')} pixels a side, not at the paper's {least}."
    return text


def about_rounds(sections: list[Section]) -> str:
    """Return which methods trained several times, and so took more steps than the dense network beside them."""
    trainings: dict[str, set[int]] = {}
    for section in sections:
        for run in section.runs:
            if (count := count_trainings(run)) > 1:
                trainings.setdefault(run["method"]["name"], set()).add(count)
    if not trainings:
        return ""
    told = ", ".join(f"{escape(name)} {span(counts, '{}')} times" for name, counts in sorted(trainings.items()))
    return f"Not every row took as many steps: {told} the page's training. All of them are in its training FLOPs."


def about_ceiling(sections: list[Section]) -> str:
    """Return what one image of the smallest test set is worth, and where the dense network is near the ceiling."""
    known = [section.runs[0]["data"]["test"] for section in sections if section.runs[0]["data"]["test"]]
    if not known:
        return ""
    text = f"The smallest test set has {min(known):,} images, each worth {100 / min(known):.2f} points."
    near: dict[str, str] = {}
    for section in sections:
        dense, step = dense_mean(section.rows), grain(section.runs[0])
        if dense is not None and step and 100 - dense <= NEAR_CEILING:
            title = escape(section.runs[0]["page"]["title"])
            near.setdefault(title, f"On {title} the dense network misses {(100 - dense) / step:.1f} images")
    if not near:
        return text
    where = (
        "; ".join(near.values()) if len(near) <= MOST else f"On {len(near)} pages the dense network misses few images"
    )
    return f"{text} {where}: methods can hardly differ there."


def about_seeds(sections: list[Section]) -> str:
    """Return how many seeds an entry has."""
    counts = [len(cell.counted) for section in sections for row in section.rows for cell in row.cells.values()]
    if not counts:
        return ""
    return f"A cell has {span(counts, '{}')} seeds. With so few, small differences do not show."


def about_machines(sections: list[Section]) -> str:
    """Return whether one kind of machine was used, and whether there was a GPU."""
    runs = [run for section in sections for run in section.runs]
    parts = []
    if len(kinds := list(count_machines(runs))) == 1:
        parts.append(f"All runs are of one kind of machine, {kinds[0]}; another gives other times and last bits.")
    if all(run["environment"]["device"] == "cpu" for run in runs):
        parts.append("No run used a GPU: nothing here says how fast or how exact the suite is on one.")
    return " ".join(parts)


def about_code(sections: list[Section]) -> str:
    """Return how many runs used code that is in no commit, and how many diverged."""
    runs = [run for section in sections for run in section.runs]
    loose, lost = sum(run["git"]["dirty"] is not False for run in runs), sum(run["status"] != "ok" for run in runs)
    parts = []
    if loose:
        parts.append(
            f"{amount(loose, 'run')} ran with code that is in no commit, unknown, or of one commit before an "
            "interruption and of another after it: nobody can run it again as it was."
        )
    if lost:
        parts.append(f"{amount(lost, 'run')} diverged and enter no mean: their rows are never called better.")
    return " ".join(parts)


def about_chance(sections: list[Section]) -> str:
    """Return which rows have runs that ended no better than chance, and where to read why."""
    chance: dict[tuple[str, str, str], list[str]] = {}
    for section in sections:
        for row in section.rows:
            for sparsity, cell in row.cells.items():
                if lost := sum(map(at_chance, cell.finished)):
                    place = row.label, percent(sparsity), row.method["source"]
                    of = f"{lost} of {amount(len(cell.finished), 'run')} on {section.title}"
                    chance.setdefault(place, []).append(of)
    parts = []
    for (label, at, source), counts in sorted(chance.items()):
        why = f" ([what is known of the reason](../{source}))" if re.fullmatch(r"methods/\w+\.py", source) else ""
        parts.append(f"{label} at {at} ended no better than chance{why}: {'; '.join(counts)}.")
    return " ".join(parts)


def compared_pages(tables: Tables) -> list[str]:
    """Return the paper's pages whose rows are compared here."""
    return list(dict.fromkeys(part.page for t in tables.tables if t.number in TABLES for part in t.parts))


def tell_apart(run: Record, tables: Tables) -> str:
    """Return how the page of a run differs from the paper's nearest page, the one with the fewest other settings."""
    own = describe_page({**run["page"]["settings"], **run["page"]["changed"]}, run["data"])
    pages = {page: describe_page(facts.settings, facts.data) for page, facts in tables.pages.items()}
    unlike = {
        page: [name for name, value in own.items() if name not in wanted or wanted[name] != value]
        for page, wanted in pages.items()
    }
    nearest = min(unlike, key=lambda page: len(unlike[page]))
    title, names = tables.pages[nearest].title, unlike[nearest]
    if not names:
        return f"This is the paper's page {title}."
    wanted = pages[nearest]
    told = [f"{name} {show(own[name])} (there {show(wanted[name])})" for name in MAIN if name in names]
    rest = [escape(name) for name in names if name not in MAIN]
    told += [f"{len(rest)} more settings" if len(rest) > 2 * MOST else ", ".join(rest)] if rest else []
    return f"This page is none of the paper's. The nearest is {title}, and differs in {'; '.join(told)}."


def describe_page(settings: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return the settings and data of a page by name."""
    found = {name.replace("_", " "): value for name, value in settings.items() if name not in SAME_PAGE}
    images = {f"{words} images": data[part] for part, words in PARTS.items()}
    return {**found, "data": data["name"], "classes": data["classes"], **images}


def show(value: Any) -> str:
    """Return a setting's value as escaped text."""
    return escape(value if isinstance(value, str) else json.dumps(value))
