"""The leaderboard for a browser: one self-contained HTML file, a pure function of records and pictures.

The table is complete without JavaScript, which sorts and filters it and opens the runs of a row. Nothing from a record
can become markup: it is escaped in the HTML and set as text by the script, and the content policy allows no other
script, style or request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from leaderboard.store.files import write_atomically
from leaderboard.store.records import Problem
from leaderboard.store.schema import Record
from leaderboard.tables.sections import FIRST, amount, description, section_name
from leaderboard.tables.table import HEADINGS
from leaderboard.web.rows import COSTS, LABELS, drop_unmeasured, make_lines, unescape, visible

Sections = Sequence[tuple[str, list[Record]]]

PARTS = Path(__file__).resolve().parent
MEDIA = {"svg": "image/svg+xml", "png": "image/png"}  # the first that is there is shown
FIRST_HTML = re.sub("`(.*?)`", r"<code>\1</code>", FIRST)
TEXTS = ("method", "group", "page")


def write_site(
    sections: Sections,
    output: Path,
    pictures: Path | None,
    problems: Iterable[Problem] = (),
    records: str = "../records",
) -> str:
    """Write the file of `sections` (of `make_sections`) to `output`; return a one-line summary.

    `pictures` is the folder of the pictures; missing ones are left out. `records` is the link target of records,
    relative to the file. Invariant: readers see the old file or the new one, whole.
    """
    files = read_pictures(pictures) if pictures is not None else {}
    text = render_site(sections, problems, files, records)
    write_atomically(output, text.encode())
    return f"{summary(sections)}, {amount(text.count('<figure>'), 'picture')}, {len(text) / 1e6:.1f} MB"


def read_pictures(folder: Path) -> dict[str, bytes]:
    """Return the pictures in `folder` by file name; an absent folder has none."""
    if not folder.is_dir():
        return {}
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix[1:] in MEDIA}


def render_site(
    sections: Sections, problems: Iterable[Problem], pictures: Mapping[str, bytes], records: str = "../records"
) -> str:
    """Return the HTML. `pictures` are files by name, SECTION_NAME.KIND.svg or .png.

    Invariant: the order of the problems and of the runs of a section is irrelevant.
    """
    lines = [line for number, (title, runs) in enumerate(sections) for line in make_lines(number, title, runs, records)]
    columns = drop_unmeasured(lines)
    style = part("uPlot.min.css") + part("site.css")
    scripts = {"library": f"/*\n{part('uPlot.LICENSE')}*/\n{part('uPlot.iife.min.js')}"}
    scripts |= {"plot": part("plot.js"), "script": part("site.js")}
    allowed = " ".join(f"'{digest(script)}'" for script in scripts.values())
    return Template(part("site.html")).substitute(
        policy=(
            f"default-src 'none'; img-src data:; style-src '{digest(style)}'; script-src {allowed}; "
            "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        ),
        style=style,
        **scripts,
        summary=f"{summary(sections)}.",
        board=board(sections, lines, columns) if lines else f"<p>{FIRST_HTML}</p>",
        sections="\n".join(section(number, title, runs, pictures) for number, (title, runs) in enumerate(sections)),
        problems=problem_list(problems),
        data=embed(
            {
                "labels": LABELS,
                "columns": [name for name, *_ in columns],
                "groups": list(HEADINGS.values()),
                "rows": [line["about"] for line in lines],
            }
        ),
    )


def part(name: str) -> str:
    """Return the text of a file that the page is made of."""
    return (PARTS / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """Return the SHA-256 of an inline script or style as a content policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def summary(sections: Sections) -> str:
    """Return `63 records, 1 page`."""
    return f"{amount(sum(len(runs) for _, runs in sections), 'record')}, {amount(len(sections), 'page')}"


def markup(text: object) -> str:
    """Return `text` escaped for HTML, attributes included, with invisible characters shown."""
    return html.escape(visible(text))


def embed(data: object) -> str:
    """Return `data` as JSON without characters that mean something in HTML, for a <script> element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # all beyond ASCII is \\u.... already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The table


Columns = Sequence[tuple[str, str, str]]


def board(sections: Sections, lines: list[dict[str, Any]], columns: Columns) -> str:
    """Return the controls, the place of the picture, and the table, every row of it."""
    head = "".join(
        f'<th scope="col"{align(name)} data-first="{first}"><span class="name">{name}</span>'
        + (f"<small>{under}</small></th>" if under else "</th>")
        for name, under, first in columns
    )
    groups = dict.fromkeys(line["about"]["group"] for line in lines)
    sparsities = sorted({(line["about"]["raw"][1], line["about"]["sparsity"]) for line in lines})
    return f"""<div class="controls" id="controls" hidden>
<label class="find">find
<input id="find" type="search" autocomplete="off" placeholder="method, setting, file, commit"></label>
{choice("section", "page", [(str(number), unescape(title)) for number, (title, _) in enumerate(sections)])}
{choice("group", "group", [(group, group) for group in groups])}
{choice("sparsity", "sparsity", [(text, text) for _, text in sparsities])}
<button type="button" id="reset">reset</button>
<output id="count" aria-live="polite"></output>
</div>
{picture(columns, len(sparsities))}
<div class="scroll">
<table id="board">
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(table_row(line, columns) for line in lines)}
</tbody>
</table>
</div>
<button type="button" id="more" hidden></button>"""


def picture(columns: Columns, sparsities: int) -> str:
    """Return where the script draws accuracy against cost, and what can be chosen there."""
    headings = [name for name, *_ in columns]
    places = [headings.index(name) for name in COSTS if name in headings]
    options = "".join(
        f'<option value="{at}">{f"{name}, {under}" if under else name}</option>'
        for at, (name, under, _) in ((at, columns[at]) for at in places)
    )
    return f"""<section class="ask" id="plot" aria-labelledby="plot-title" hidden>
<h2 id="plot-title">Accuracy against cost</h2>
<p class="about" id="plot-about"></p>
<div class="controls">
<label>cost <select id="cost">{options}</select></label>
<label>sparsity <span class="slide"><input id="slide" type="range" min="0" max="{sparsities}" step="1" value="0">
<output id="slid" for="slide"></output></span></label>
<button type="button" id="whole" hidden>whole picture</button>
</div>
<div class="field-and-methods">
<div id="field" tabindex="0" role="slider" aria-describedby="keys"><div id="tip" hidden></div></div>
<fieldset><legend>methods</legend><div id="methods"></div></fieldset>
</div>
<p class="about" id="keys">Point at a mark for its row, click to open its runs, drag to zoom. By keyboard: arrows from
mark to mark, Enter opens the runs, plus and minus zoom, 0 shows all.</p>
</section>"""


def align(name: str) -> str:
    """Return the class of a column's cells, as an attribute."""
    return ' class="page"' if name == "page" else "" if name in TEXTS else ' class="number"'


def choice(name: str, label: str, options: Iterable[tuple[str, str]]) -> str:
    """Return a drop-down list of (value, text), with `all` first."""
    listed = "".join(f'<option value="{markup(value)}">{markup(text)}</option>' for value, text in options)
    return f'<label>{label} <select id="{name}"><option value="">all</option>{listed}</select></label>'


def table_row(line: dict[str, Any], columns: Columns) -> str:
    """Return one row of the table."""
    first, *others = line["shown"]
    under = f"<small>{markup(line['under'])}</small>" if line["under"] else ""
    cells = "".join(f"<td{align(columns[at][0])}>{markup(text)}</td>" for at, text in enumerate(others, 1))
    return f'<tr class="row"><th scope="row">{markup(first)}{under}</th>{cells}</tr>'


# Below the table


def section(number: int, title: str, runs: list[Record], pictures: Mapping[str, bytes]) -> str:
    """Return one section below the table: description, pictures, settings of its page."""
    listed = "".join(
        f"<li><code>{markup(name)} = {markup(json.dumps(value, ensure_ascii=False))}</code></li>"
        for name, value in sorted(runs[0]["page"]["settings"].items())
    )
    return f"""<section data-section="{number}">
<h2>{markup(unescape(title))}</h2>
<p class="about">{markup(unescape(description(runs)))}</p>
{figures(runs, pictures) if pictures else ""}
<details><summary>Settings of the page, the same for every method</summary><ul class="settings">{listed}</ul></details>
</section>"""


def figures(runs: list[Record], pictures: Mapping[str, bytes]) -> str:
    """Return the pictures of a section as images, in which no script can run."""
    from leaderboard.drawing.pictures import name_pictures

    shown = []
    for stem, picture in name_pictures(section_name(runs[0]), runs).items():
        file = next((f"{stem}.{kind}" for kind in MEDIA if f"{stem}.{kind}" in pictures), None)
        if file is not None:
            source = f"data:{MEDIA[file[-3:]]};base64,{base64.b64encode(pictures[file]).decode()}"
            image = f'<img src="{source}" alt="{markup(picture.title)}" decoding="async">'
            image = f'<noscript data-alt="{markup(picture.title)}">{image}</noscript>'  # the script loads it later
            caption = f"<b>{markup(picture.title)}.</b> {markup(picture.caption)}"
            shown.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""


def problem_list(problems: Iterable[Problem]) -> str:
    """Return the skipped files of the store, and why."""
    found = sorted((problem.file, problem.reason) for problem in problems)
    listed = "".join(f"<li><code>{markup(file)}</code>: {markup(reason)}</li>" for file, reason in found)
    return f'<section class="problems"><h2>Skipped files</h2><ul>{listed}</ul></section>' if found else ""
