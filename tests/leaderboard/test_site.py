"""The page for a browser: the same figures as the Markdown page, nothing from a record but text, and it can be used."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard import Problem, render
from leaderboard.drawing.pictures import list_pictures
from leaderboard.tables.sections import make_sections, section_name
from leaderboard.tables.table import BLANK, escape
from leaderboard.web.rows import LABELS, run_values
from leaderboard.web.site import PARTS, render_site
from tests.harness.chromium import missing, start_chromium
from tests.harness.record_factory import USAGE, make_record

EVIL = "<img src=x onerror=window.hit=1>\u202e\u2028</script><script>window.hit=1</script>\"'&lt;\ud800`$title"
SEEN = "<img src=x onerror=window.hit=1>\\u202e\\u2028</script><script>window.hit=1</script>\"'&lt;\\ud800`$title"
GROUPS = {"granet": "sparse-to-sparse", "snip": "before training", "static": "control"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def files(*records: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records with the names of their files, as `read_records` gives them."""
    return [{**record, "file": f"{place}.{record['run']}.json"} for place, record in enumerate(records)]


def many() -> list[dict[str, Any]]:
    """Return three methods at two sparsities with two seeds on one page, one method on another, one row diverged."""
    runs = [
        make_record(
            seed=seed,
            sparsity=sparsity,
            method={"name": name, "group": group},
            accuracy_pct={"last_epoch": accuracy + seed / 4 - 10 * (sparsity - 0.8)},
        )
        for seed in (0, 1)
        for sparsity in (0.8, 0.9)
        for (name, group), accuracy in zip(GROUPS.items(), (91.37, 89.5, 90.11), strict=True)
    ]
    runs += [make_record(method={"name": "dense"}, accuracy_pct={"last_epoch": 93.25})]
    runs += [make_record(method={"name": "set"}, status="diverged", page={"variant": "v", "changed": {"lr": 1}})]
    return files(*runs)


def evil() -> list[dict[str, Any]]:
    """Return a run whose every text is hostile, and a control made from it."""
    donor = {"run": EVIL, "label": EVIL, "sparsity": 0.9, "seed": 0, "kind": "masks", "masks_sha256": EVIL}
    texts = {
        "run": EVIL,
        "command": EVIL,
        "masks_sha256": EVIL,
        "page": {"name": EVIL, "title": EVIL, "variant": EVIL, "changed": {EVIL: EVIL}, "settings": {EVIL: [EVIL]}},
        "data": {"name": EVIL, "fingerprint": EVIL},
        "environment": dict.fromkeys(("device", "device_name", "precision", "torch"), EVIL),
        "git": {"commit": EVIL},
    }
    method = dict.fromkeys(("name", "label", "reference", "source", "sha256"), EVIL) | {"settings": {EVIL: EVIL}}
    runs = [make_record(**texts, method=method), make_record(**texts, method={**method, "donor": donor, "label": "of"})]
    return [{**run, "file": EVIL} for run in runs]


def show(records: list[dict[str, Any]], *problems: Problem, pictures: dict[str, bytes] | None = None) -> str:
    return render_site(make_sections(records), problems, pictures or {})


def data_of(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(found[0])


def table_of(page: str) -> list[list[str]]:
    """Return the texts of the static table, as it is without JavaScript."""
    body = re.findall(r"<tbody>(.*?)</tbody>", page, re.S)[0]
    rows = re.findall(r"<tr.*?</tr>", body)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


# Without a browser


def test_the_table_has_the_figures_of_the_markdown_page() -> None:
    page, markdown = table_of(show(many())), render(many(), [])
    lines = [line[2:-2].replace("**", "").split(" | ") for line in markdown.splitlines() if line.startswith("| ")]
    details = [line for line in lines if "[seed" in line[-1]]
    assert len(page) == len(details) == 8
    for shown, detail in zip(page, details, strict=True):
        assert [shown[0], shown[1], shown[8]] == detail[:3]
        assert shown[2].startswith(f"{detail[3]} (n=") and shown[4] == detail[4] and shown[7] == detail[6]
        quartets = [line[at : at + 4] for line in lines if line[0] == shown[0] for at in range(len(line))]
        costs = [shown[5], shown[6]] if shown[0] != "dense" else [detail[8], detail[9]]
        assert [shown[2], *([shown[3]] if shown[0] != "set" else [BLANK]), *costs] in quartets, shown
    granet = next(row for row in page if row[:2] == ["granet", "90 %"])
    assert granet[2] == "90.50 ± 0.18 (n=2)" and granet[4] == "92.00 ± 0.00"  # 90.37 and 90.62
    assert granet[5:9] == ["0.28×", "0.28×", "0.1", "0, 1"]
    assert next(row for row in page if row[0] == "set")[2] == "· (n=0, 1 diverged)"
    to_sort_by = next(row["raw"] for row in data_of(show(many()))["rows"] if row["raw"][:2] == ["granet", 0.9])
    assert to_sort_by[2] == pytest.approx((90.37 + 90.62) / 2, abs=1e-12) and to_sort_by[5:9] == [0.28, 0.28, 0.1, 2]


def test_a_run_shows_what_it_took_where_its_record_tells_it() -> None:
    told = make_record(usage=USAGE, time={"updates_s": 0.5}, updates=12)
    values = [dict(zip(LABELS, run_values(run), strict=True)) for run in (make_record(), told)]
    assert values[1]["time"] == values[0]["time"] + ", 0.5 s in 12 updates"
    assert values[1]["device"] == values[0]["device"] + (
        "; peak memory: process 3.00 GiB, device 5.00 GiB; energy: 9 kJ, 70 % at work, up to 2 processes: "
        "NVIDIA X (whole device), NVML; 500 J: 1 processor package (whole machine), RAPL"
    )


def test_the_page_does_not_depend_on_the_order_of_records_and_problems() -> None:
    records, problems = many(), [Problem("b", "y"), Problem("a", "x")]
    expected = show(records, *problems)
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert show(records, *problems[::-1]) == expected


def test_only_the_pages_own_style_and_script_may_run_and_nothing_may_be_fetched() -> None:
    page = show(many(), Problem("bad.json", "not readable"))
    assert "bad.json" in page and "make bench METHOD=granet" in show([])
    policy = html.unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', page)[0])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert rules["require-trusted-types-for"] == "'script'" and rules["trusted-types"] == "'none'"
    for tag in ("style", "script"):
        digests = [hashlib.sha256(text.encode()).digest() for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)]
        assert rules[f"{tag}-src"].split() == [f"'sha256-{base64.b64encode(found).decode()}'" for found in digests]
    assert not re.search(r"""(src|href)=["'](https?:|//)|@import|url\(|innerHTML|\son\w+=""", page)


def test_the_library_in_the_page_is_the_small_one_that_its_note_names_with_its_licence() -> None:
    named = dict(re.findall(r"^ +([0-9a-f]{64})  (\S+)$", (PARTS / "uPlot.md").read_text(), re.M))
    contents = [path.read_bytes() for path in sorted(PARTS.glob("uPlot.*min.*"))]
    assert [named.get(hashlib.sha256(content).hexdigest()) for content in contents] == sorted(named.values())
    assert len(contents) == 2 and sum(map(len, contents)) < 60_000
    page = show(many())
    assert all(text.decode() in page for text in (*contents, (PARTS / "uPlot.LICENSE").read_bytes()))


def test_measured_columns_are_there_only_where_a_record_tells_them_and_one_machine_did_all_runs() -> None:
    def column_of(heading: str, *runs: dict[str, Any]) -> list[tuple[str, float | None]]:
        page = show(files(*runs))
        columns = data_of(page)["columns"]
        shown = table_of(page), data_of(page)["rows"]
        if heading not in columns:
            return []
        at = columns.index(heading)
        return [(cells[at], row["raw"][at]) for cells, row in zip(*shown, strict=True)]

    told = [make_record(seed=seed, usage={"device_peak_bytes": (3 + seed) * 2**30}) for seed in (0, 1)]
    assert column_of("images/s", *told) == [("7.5", 7.5)]
    assert column_of("device memory", *told) == [("3,584", 3584.0)]  # 3 and 4 GiB
    assert column_of("device memory", *told, make_record(seed=2)) == []  # not of all runs of the row
    other = make_record(method={"name": "set"})
    assert column_of("device memory", *told, other) == [("3,584", 3584.0), ("·", None)]
    assert column_of("device memory", other) == column_of("GPU energy", *told) == []
    elsewhere = make_record(seed=1, usage=told[1]["usage"], environment={"device_name": "another"})
    assert column_of("device memory", told[0], elsewhere) == column_of("images/s", told[0], elsewhere) == []


def test_pictures_are_in_the_page_and_the_svg_comes_first() -> None:
    records = many()
    runs = make_sections(records)[0][1]
    first, second = list_pictures(runs)[:2]
    name = section_name(runs[0])
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>window.hit=1</script></svg>"
    pictures = {f"{name}.{first.kind}.svg": svg, f"{name}.{first.kind}.png": PNG, f"{name}.{second.kind}.png": PNG}
    page = show(records, pictures={**pictures, "another.accuracy.png": PNG})
    shown = re.findall(r'<img src="data:([^;]*);base64,([^"]*)" alt="([^"]*)"', page)
    assert [(kind, base64.b64decode(data)) for kind, data, _ in shown] == [("image/svg+xml", svg), ("image/png", PNG)]
    assert [html.unescape(alt) for _, _, alt in shown] == [first.title, second.title]
    assert html.escape(first.caption) in page


def test_repeats_and_diverged_runs_are_shown_as_such_beside_those_that_count() -> None:
    late = "2025-01-31T12:09:00+00:00"
    runs = [
        make_record(),
        make_record(finished=late, accuracy_pct={"last_epoch": 99.0}),
        make_record(seed=1, status="diverged"),
    ]
    page = show(files(*runs))
    assert table_of(page)[0][2] == "92.50 (n=1, 1 diverged)"
    (row,) = data_of(page)["rows"]
    badges = [(run["seed"], run["badges"], run["values"][0]) for run in row["runs"]]
    assert badges == [
        (0, [["finished", ""]], "92.50"),
        (1, [["diverged", "warn"]], "·"),
        (0, [["finished", ""], ["repeat: not counted", "warn"]], "99.00"),
    ]
    assert "repeats: 1; diverged (seed 1)" in row["about"]


# In a browser

Open = Callable[..., Any]
# A loaded machine: the work that waits for an idle moment is done at its timeout, or never.
NEVER_IDLE = "window.requestIdleCallback = (work, how) => how?.timeout && setTimeout(work, how.timeout / 20);"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a headless Chromium, one for all tests."""
    if reason := missing():
        pytest.skip(reason)
    with start_chromium() as chromium:
        yield chromium


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens the page of some records; in the end no fault was told of and nothing fetched."""
    complaints: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.add_init_script(NEVER_IDLE)

    def visit(records: list[dict[str, Any]], *problems: Problem, pictures: dict[str, bytes] | None = None) -> Any:
        path = tmp_path / "site" / "index.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text(show(records, *problems, pictures=pictures), encoding="utf-8")
        page = context.new_page()
        page.set_default_timeout(30_000)  # patience with a loaded machine
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield visit
    context.close()
    assert complaints == []
    pages = {url.partition("#")[0] for url in asked if not url.startswith("data:")}
    assert len(pages) == 1 and next(iter(pages)).startswith("file:")


def column(page: Any, number: int) -> list[str]:
    """Return the texts of a column, rows in view only, from top to bottom."""
    shown = "rows => rows.filter(row => row.checkVisibility()).map(row => row.cells[%d].innerText.trim())"
    texts: list[str] = page.locator("tr.row").evaluate_all(shown % number)
    return texts


def click_header(page: Any, name: str) -> None:
    page.locator("thead button", has_text=name).click()


def direction(page: Any, name: str) -> str | None:
    found: str | None = page.locator("thead th", has_text=name).get_attribute("aria-sort")
    return found


def test_a_header_sorts_both_ways_by_the_numbers_and_blanks_come_last(visit: Open) -> None:
    low = make_record(method={"name": "gmp"}, accuracy_pct={"last_epoch": 9.5})
    blank = make_record(method={"name": "first", "group": "before training"}, status="diverged")
    page = visit([*many(), *files(low, blank)])
    rows = data_of(page.content())["rows"]
    known = {row["raw"][2] for row in rows} - {None}
    assert len(known) == len(rows) - 2  # all different, and two rows without a finished run
    by_number = sorted((row["raw"][2], row["raw"][0], row["sparsity"]) for row in rows if row["raw"][2] is not None)
    rising = [(name, sparsity) for _, name, sparsity in by_number]
    assert [name for name, _ in rising[:1]] == ["gmp"]  # 9.50, which as text is above 93.25

    def seen() -> list[tuple[str, str]]:
        return list(zip(column(page, 0), column(page, 1), strict=True))

    before, blanks = seen(), [("first", "90 %"), ("set", "90 %")]
    assert before.index(blanks[0]) < 3
    assert direction(page, "accuracy, %") == "none"
    click_header(page, "accuracy, %")
    assert seen() == [*rising[::-1], *blanks] and direction(page, "accuracy, %") == "descending"
    click_header(page, "accuracy, %")
    assert seen() == [*rising, *blanks] and direction(page, "accuracy, %") == "ascending"
    page.locator("thead button", has_text="method").press("Enter")
    assert column(page, 0) == sorted(column(page, 0)) and direction(page, "accuracy, %") == "none"
    page.locator("#reset").click()
    assert seen() == before


def test_rows_are_found_by_text_page_group_and_sparsity(visit: Open) -> None:
    page = visit(many())
    count = page.locator("#count")
    assert count.inner_text() == "8 rows"
    page.locator("#find").fill("GraNet training")
    assert column(page, 0) == []
    page.locator("#find").fill("GraNet sparse-to")
    assert set(column(page, 0)) == {"granet"} and count.inner_text() == "2 of 8 rows"
    page.locator("#sparsity").select_option(label="90 %")
    assert list(zip(column(page, 0), column(page, 1), strict=True)) == [("granet", "90 %")]
    page.locator("#find").fill("")
    assert set(column(page, 0)) == {"granet", "snip", "static", "set"}
    page.locator("#group").select_option(label="controls")
    assert column(page, 0) == ["static"]
    page.locator("#reset").click()
    assert len(column(page, 0)) == 8
    page.locator("#section").select_option(label="ResNet-20 on digits, with lr = 1")
    assert column(page, 0) == ["set"]
    assert page.locator("section[data-section]:visible h2").all_inner_texts() == ["ResNet-20 on digits, with lr = 1"]


def test_a_row_opens_by_mouse_and_by_keyboard_and_shows_its_runs(visit: Open) -> None:
    records = [{**record, "author": "Ada Lovelace"} for record in many()]
    page = visit(records)
    row = page.locator("tr.row", has_text="granet").nth(1)
    row.locator("td").nth(3).click()
    button, cards = row.locator(".open"), page.locator(".card")
    assert button.get_attribute("aria-expanded") == "true" and cards.count() == 2
    assert page.locator(f"#{button.get_attribute('aria-controls')}").is_visible()
    text = cards.nth(1).inner_text()
    chosen = next(r for r in records if r["method"]["name"] == "granet" and r["sparsity"] == 0.9 and r["seed"] == 1)
    for fact in (
        "seed 1",
        "finished",
        "Ada Lovelace",
        "90.62",
        "92.00 (epoch 2)",
        "95.00 (epoch 1)",
        "not for comparison",
        "40.0 s",
    ):
        assert fact in text, fact
    for fact in (chosen["command"], chosen["masks_sha256"], chosen["git"]["commit"], chosen["file"]):
        assert fact in text, fact
    assert cards.nth(1).locator("code").inner_text() == chosen["command"]
    assert cards.nth(1).locator("a").get_attribute("href") == f"../records/{chosen['file']}"
    repeat = "make bench TASK=digits_resnet20 METHOD=granet SPARSITY=0.9 DEVICE=cpu SEED=0,1"
    assert page.locator(".runs > .command code").all_inner_texts() == [repeat]
    cards.nth(1).locator(".copy").click()
    cards.nth(1).locator(".copy", has_text="copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == chosen["command"]
    button.press("Enter")
    assert cards.count() == 0 and button.get_attribute("aria-expanded") == "false"
    button.press("Enter")
    click_header(page, "accuracy, %")
    assert page.locator("tr.row + tr.detail").count() == 1  # it stays with its row
    page.locator("#find").fill("snip")
    assert page.locator(".runs").count() == 0
    page.locator("#find").fill("")
    assert page.locator("tr.row + tr.detail").count() == 1


def test_a_mark_is_found_by_keyboard_and_by_mouse_and_opens_its_runs(visit: Open) -> None:
    page = visit(many())
    field, tip = page.locator("#field"), page.locator("#tip")
    field.press("Home")
    first = ["snip at 90 %", "accuracy, %: 88.62 ± 0.18 (n=2)", "training FLOPs: 0.28×", "inference FLOPs: 0.28×"]
    assert field.get_attribute("aria-valuetext") == "; ".join([*first, "density: 0.1", "images/s: 7.5", "seeds: 0, 1"])
    assert tip.inner_text().splitlines()[:4] == first
    assert [field.get_attribute(f"aria-value{part}") for part in ("now", "max")] == ["1", "7"]
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        field.press(key)
    told, box = tip.inner_text(), tip.bounding_box()
    assert told.startswith("granet at 90 %")
    field.press("ArrowUp")
    assert tip.inner_text().startswith("granet at 80 %")  # the next in accuracy
    field.press("Escape")
    assert tip.is_hidden()
    page.mouse.move(box["x"] - 14, box["y"] - 14)  # the corner of the tip is beside the mark
    tip.wait_for()
    assert tip.inner_text() == told
    page.mouse.down()
    page.mouse.up()
    assert page.locator(".card").count() == 2
    assert page.evaluate("document.activeElement.closest('tr').cells[0].innerText") == "granet"
    field.press("End")
    assert tip.inner_text().startswith("dense at 0 %")
    field.press("Enter")
    assert page.locator(".card").count() == 3


def test_methods_and_sparsities_are_switched_by_keyboard(visit: Open) -> None:
    page = visit(many())
    field, slide = page.locator("#field"), page.locator("#slide")

    def shown() -> tuple[str | None, list[str]]:
        return field.get_attribute("aria-valuemax"), column(page, 1)

    assert shown()[0] == "7"
    page.get_by_label("snip", exact=True).press("Space")
    assert shown()[0] == "5" and len(shown()[1]) == 8  # the table still has it
    assert not page.get_by_role("checkbox", name="before training").is_checked()
    page.get_by_role("checkbox", name="controls").press("Space")
    assert shown()[0] == "3" and not page.get_by_label("static", exact=True).is_checked()
    slide.press("End")
    assert slide.get_attribute("aria-valuetext") == page.locator("#sparsity").input_value() == "90 %"
    assert shown() == ("1", ["90 %"] * 4)
    slide.press("ArrowLeft")
    assert shown() == ("1", ["80 %"] * 3)
    page.get_by_label("all", exact=True).press("Space")
    page.get_by_label("all", exact=True).press("Space")
    assert shown()[0] == "3"


def test_the_address_keeps_the_view(visit: Open) -> None:
    page = visit(many())

    def view() -> list[Any]:
        field = page.locator("#field")
        return [
            *(page.locator(f"#{name}").input_value() for name in ("find", "section", "group", "sparsity", "cost")),
            *(page.locator("thead th").evaluate_all("all => all.map(one => one.ariaSort)"), column(page, 0)),
            *page.locator("#methods input").evaluate_all("all => all.map(one => one.checked)"),
            *(
                field.get_attribute("aria-valuemax"),
                field.get_attribute("aria-label"),
                page.locator("#whole").is_visible(),
            ),
        ]

    start = view()
    page.locator("#find").fill("digits")
    page.locator("#section").select_option(label="ResNet-20 on digits")
    page.locator("#cost").select_option(label="inference FLOPs, × dense")
    click_header(page, "accuracy, %")
    page.get_by_label("snip", exact=True).uncheck()
    page.locator("#field").press("+")
    page.wait_for_url(
        re.compile("#find=digits&page=ResNet-20.on.digits&sort=accuracy.*descending&cost=inf.*&off=snip&zoom=")
    )
    kept, link = view(), page.evaluate("location.hash")
    assert kept != start and page.locator("#whole").is_visible()
    page.reload()
    assert view() == kept
    page.locator("#reset").click()
    page.wait_for_url(re.compile(r"index\.html$"))
    assert view() == start
    page.evaluate("hash => { location.hash = hash; }", link)  # another link, into an open page
    page.get_by_text("7 of 8 rows", exact=True).wait_for()
    assert view() == kept
    page.evaluate("() => { location.hash = 'sort=x&page=x&zoom=2,1,a,0&cost=x&only=dense&sparsity=%'; }")
    page.get_by_text("8 rows", exact=True).wait_for()
    assert page.locator("#field").get_attribute("aria-valuemax") == "1"  # what it cannot be is as usual
    assert page.locator("#whole").is_hidden() and len(column(page, 0)) == 8


def test_the_table_stays_in_its_card_with_rows_of_one_line_and_the_drawn_page_comes_first(visit: Open) -> None:
    few = make_record(page={"name": "a", "title": "ResNet-20 on images of 16x16 pixels, 8 epochs, at one batch size"})
    page = visit(files(few, make_record(), make_record(method={"name": "set"})))
    assert column(page, 0) == ["granet", "set", "granet"]  # the sheets begin with the page of one row
    for width in (1400, 400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = page.locator("tr.row").evaluate_all("rows => rows.map(row => row.offsetHeight)")
    assert max(heights) < 40


def test_hostile_text_is_shown_and_does_nothing(visit: Open) -> None:
    records = evil()
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.hit=1'><script>window.hit=1</script></svg>"
    name = section_name(records[0])
    page = visit(records, Problem(EVIL, EVIL), pictures={f"{name}.{p.kind}.svg": svg for p in list_pictures(records)})
    for button in page.locator(".open").all():
        button.click()
    page.locator("figure noscript").wait_for(state="detached")
    assert page.locator("figure img").count() > 0
    assert page.evaluate("window.hit") is None
    assert page.locator("[onerror], [onload], tbody img, main script").count() == 0
    assert page.locator(".card code").all_text_contents() == [SEEN, SEEN]
    assert html.unescape(re.sub(r"\\(.)", r"\1", escape(EVIL))) in column(page, 0)[0]
    assert "\u202e" not in page.locator("body").inner_text()


def test_a_letter_typed_lays_many_rows_out_once(visit: Open) -> None:
    places = [(page, number) for page in range(20) for number in range(20)]
    runs = [make_record(page={"variant": f"v{a}"}, method={"label": f"method {20 * a + b}"}) for a, b in places]
    page = visit(files(*runs))
    assert page.locator("#count").inner_text() == "400 rows" and len(column(page, 0)) == 200
    page.locator("#more").click()
    assert len(column(page, 0)) == 400 and page.locator("#more").is_hidden()
    changes = page.evaluate(
        """() => {
            const find = document.getElementById("find");
            const seen = new MutationObserver(() => {});
            const body = document.querySelector("tr.row").parentNode;
            seen.observe(body, { childList: true, attributes: true, subtree: true });
            find.value = "method 39";
            find.dispatchEvent(new Event("input"));
            return seen.takeRecords().map(({ removedNodes, addedNodes }) => [removedNodes.length, addedNodes.length]);
        }"""
    )
    assert page.locator("#count").inner_text() == "14 of 400 rows"  # 39, 139, 239, 339 and 390 to 399
    assert changes == [[1, 0]] * 14 + [[386, 14]]  # rows that stay are taken out to be put in again


# Commands that repeat runs


def test_the_command_to_repeat_a_row_asks_for_the_same_cells() -> None:
    from benchmark.config.cells import plan_cells
    from benchmark.runs.record import describe_page
    from leaderboard.store.repeat import repeat_commands

    for arguments in (
        "",
        "lr_drops=[0.5,0.7] model=resnet18 prune_rate=0.3",
        "title='a b' lr=1e-05",
        """'keep_dense=["*fc*","a, b",first]' 'model_args={act: "on", width: 0.5}'""",
    ):
        cells = plan_cells("granet", "0.95", "digits_resnet20", "0,2", arguments)
        records = [
            make_record(
                page={**describe_page(cell)},
                method={"name": "granet", "source": "methods/granet.py", "changed": cell.method_changes},
                sparsity=cell.sparsity,
                seed=cell.seed,
            )
            for cell in cells
        ]
        (command,) = repeat_commands(records)
        words = shlex.split(command)
        if command.startswith("make bench "):
            asked = dict(word.split("=", 1) for word in words[2:])
        else:
            asked = {
                name.removeprefix("--").upper(): value for name, value in zip(words[2::2], words[3::2], strict=True)
            }
        changes = asked.get("ARGS", "")
        again = plan_cells(asked["METHOD"], asked["SPARSITY"], asked["TASK"], asked["SEED"], changes)
        assert [(cell.identity, cell.page) for cell in again] == [(cell.identity, cell.page) for cell in cells], command


def test_runs_with_different_settings_have_commands_of_their_own_and_make_gets_no_dollar() -> None:
    from leaderboard.store.repeat import repeat_commands

    one = make_record(seed=0, method={"changed": {"densities": "a.json"}})
    two = make_record(seed=1, method={"changed": {"densities": "$(shell rm b)"}, "source": "my/granet.py"})
    assert repeat_commands([two, one]) == [
        """.venv/bin/sparse-bench run --task digits_resnet20 --method my/granet.py --sparsity 0.9 --device cpu """
        """--seed 1 --args ''"'"'densities=$(shell rm b)'"'"''""",
        'make bench TASK=digits_resnet20 METHOD=granet SPARSITY=0.9 DEVICE=cpu SEED=0 ARGS="densities=a.json"',
    ]
