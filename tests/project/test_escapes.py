"""Every text of a record, wherever the schema has one, is shown as text: in Markdown, in a browser, in a terminal."""

from __future__ import annotations

import copy
import io
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from benchmark.base.console import print_result
from benchmark.runs.verify import print_findings
from leaderboard import Problem, render, write_record
from leaderboard.board.build import RESULTS
from leaderboard.claims.claim import make_claims, render_claims
from leaderboard.paper.cells import compare_all
from leaderboard.paper.markdown import render_paper
from leaderboard.paper.published import load_tables
from leaderboard.results.markdown import render_results
from leaderboard.store.kinds import NAME, OBJECT, Kind
from leaderboard.store.measurements import FIELDS as MEASURED
from leaderboard.store.measurements import load_measurements, write_measurement
from leaderboard.store.records import load_store
from leaderboard.store.schema import FIELDS
from leaderboard.tables.sections import make_sections
from leaderboard.web.site import render_site
from tests.harness.prunings import make_pruned
from tests.harness.record_factory import USAGE, make_measurement, make_record

PLAIN = "plain words 1"
CORPUS = [
    "<script>hit()</script>", "<img src=x onerror=hit()>", "\"><svg onload=hit()>", "' onmouseover='hit()",
    "]]><!--", "<!--", "--><script>", "[a](javascript:hit())", "![a](https://elsewhere/x.png)", "</script><b>",
    "[a]: https://elsewhere", "<https://elsewhere>", "</details><h1>x", "| a | b |", "`code` ``",
    "**bold** __x__ ~~y~~ *z*", "# heading", "- ", "+", "---", "7) x", "= x", "- item\n\n# heading",
    "a\r\n\r\n<b>x</b>", "\\<b>\\", "&lt;script&gt; &#60;b&#62;", "$x$ $$y$$ @name #1", "> quote",
    "${hit} $policy {{hit}} {% hit %}", "x\u202e\u2028\u2066\ufeff",
    "\u001b[31m\u001b]8;;https://x\u0007y\u0000\u0007", "x\ud800", "[red]x[/red] [link=https://x]y[/link]",
    "javascript:hit()", "data:text/html,<script>hit()</script>", "====\n----", "1. x",
]  # fmt: skip


def walk(expected: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Kind]]:
    """Yield every leaf of the schema: where it is in a record, and its kind."""
    if isinstance(expected, Kind):
        yield path, expected
    elif isinstance(expected, list):
        yield from walk(expected[0], (*path, 0))
    else:
        for key, inner in expected.items():
            yield from walk(inner, (*path, key.rstrip("?")))


def texts(text: str, fields: Any = FIELDS) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield every place of a record that takes the text, and what is put there."""
    for path, kind in walk(fields):
        if kind is OBJECT:
            yield path, {text: text, "a": [text, {"b": text}], "epochs": 3}
        elif kind is NAME:
            yield path, text.replace("<", "").replace(">", "") or "x"
        elif kind.accepts(text):
            yield path, text
        elif kind.accepts([text]):
            yield path, [text]
        elif kind.accepts({text: 1}):
            yield path, {text: 1}


def fill(record: dict[str, Any], text: str, fields: Any = FIELDS) -> dict[str, Any]:
    """Return the record with the text in every place that takes one, its layers included."""
    filled = copy.deepcopy(record)
    for path, value in texts(text, fields):
        at: Any = filled
        if path[0] == "empty_layers" or (path[:2] == ("method", "donor") and "donor" not in filled["method"]):
            continue
        if path[0] in ("branch", "usage") and path[0] not in filled:
            continue
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    return filled


def hostile(text: str, folder: Path, page: str = "") -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return the store of two methods with two seeds and a control, every text of them hostile, as it is read back."""
    donor = {"run": "r", "label": "l", "sparsity": 0.9, "seed": 0, "kind": "masks", "masks_sha256": "ab"}
    for name, group, more in (
        ("granet", "sparse-to-sparse", {}),
        ("static", "control", {"donor": donor}),
        ("snip", "before training", {}),
    ):
        for seed in (0, 1, 2):
            record = make_record(seed=seed, usage=USAGE, method={"name": name, "group": group, **more})
            filled = fill(record, text)
            filled["method"]["label"] += name
            filled["page"]["name"] = page or filled["page"]["name"]
            filled["environment"] |= {"device_name": text, "channels_last": True}
            write_record(filled, folder)
    (folder / "broken.json").write_text('{"run": 1}')
    return load_store(folder)


def measure(records: list[dict[str, Any]], text: str, folder: Path) -> list[dict[str, Any]]:
    """Return a measurement of the speed of each run, every text of it hostile, as it is read back."""
    for record in records:
        filled = fill(make_measurement(), text, MEASURED)
        write_measurement({**filled, "run": record["run"], "masks_sha256": record["masks_sha256"]}, folder)
    found, problems = load_measurements(folder, records)
    assert len(found) == len(records) and not problems
    return found


class Structure(HTMLParser):
    """Counts the tags of a page with the names of their attributes, and keeps where they lead."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[tuple[str, ...]] = Counter()
        self.targets: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[(tag, *sorted(name for name, _ in attrs))] += 1
        self.targets |= {value or "" for name, value in attrs if name in ("href", "src", "action", "srcdoc", "style")}

    def handle_comment(self, data: str) -> None:
        self.tags["comment",] += 1


def structure(page: str) -> tuple[Counter[tuple[str, ...]], set[str]]:
    reader = Structure()
    reader.feed(page)
    reader.close()
    return reader.tags, reader.targets


def as_html(markdown: str) -> str:
    """Return Markdown as a page that takes HTML and tables shows it, by a library that is not ours."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)


def pages(folder: Path, text: str) -> dict[str, str]:
    records, problems = hostile(text, folder)
    problems = [*problems, Problem(text, text)]
    # the suite's own methods among them, so that statements are tested on a page of such a name
    rows = [{"name": name, "label": name, "source": f"methods/{name}.py"} for name in ("granet", "static", "snip")]
    known = [
        {**record, "method": record["method"] | row, "file": f"{row['name']}.{record['file']}"}
        for record, row in zip(sorted(records, key=lambda record: record["seed"]), rows * 3, strict=True)
    ]
    tables = load_tables()
    branches = [{**fill(make_pruned(-2.0, seed=seed), text), "file": f"{seed}.json"} for seed in (0, 1, 2)]
    return {
        "LEADERBOARD.md": as_html(render(records, problems, measured=measure(records, text, folder / "latency"))),
        "PAPER.md": as_html(render_paper(records, load_tables(), "records")),
        RESULTS: as_html(
            render_results(records + known, branches, len(problems), tables, compare_all(records, tables))
        ),
        "site": render_site(make_sections(records), problems, {}),
    }


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Counter[tuple[str, ...]], set[str]]]:
    """What the pages are made of where every text is a plain one."""
    assert structure(as_html("<b onload=x> [a](javascript:x)"))[0][("b", "onload")] == 1  # it sees what there is
    found = {".".join(map(str, path)) for path, _ in texts(PLAIN)}
    assert {"run", "command", "page.title", "method.donor.run", "layers.0.name", "macs.omitted"} <= found
    return {name: structure(page) for name, page in pages(tmp_path_factory.mktemp("plain"), PLAIN).items()}


# One of each kind every day: markup, a closed script, a link, a table, a heading, a template, what is not printed.
DAILY = (0, 4, 7, 13, 22, 28, 31)


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, marks=[] if n in DAILY else pytest.mark.slow, id=str(n)) for n, text in enumerate(CORPUS)],
)
def test_no_text_of_a_record_becomes_part_of_a_page_s_structure(text, tmp_path, expected):
    for name, page in pages(tmp_path, text).items():
        tags, targets = structure(page)
        assert tags == expected[name][0], f"{name}: {tags - expected[name][0]} {expected[name][0] - tags}"
        new = targets - expected[name][1]
        assert all(re.fullmatch(r"(\.\./)?records/[A-Za-z0-9._%-]+", target) for target in new), f"{name}: {new}"
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page), name


# Codes that move a cursor, marks that turn the direction of writing, half a character, markup of rich, lines, HTML.
@pytest.mark.parametrize("text", [CORPUS[n] for n in (0, 23, 29, 30, 31, 32)], ids=str)
def test_no_text_of_a_record_moves_a_terminal(text, tmp_path):
    records, _ = hostile(text, tmp_path, page="page")  # or else no claim could name it
    out = io.StringIO()
    for record in records:
        print_result(Console(file=out, width=200, force_terminal=True, legacy_windows=False), record, text, text)
    granet, other = (
        next(r["method"] for r in records if r["method"]["group"] == g) for g in ("control", "before training")
    )
    shown = render_claims(make_claims(records, granet["label"], other["label"], "page", None))
    print_findings(Console(file=out, width=200, force_terminal=True), [("run", text, record["run"], True)])
    codes = set(re.findall("\x1b[^m]*m", out.getvalue()))
    assert codes <= {"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m"}, (
        "styles of its own, no link and no colour from a record"
    )
    for part in (re.sub("\x1b\\[[0-9]m", "", out.getvalue()), shown):
        assert not [character for character in part if not character.isprintable() and character != "\n"]
