"""The page for a browser: the same figures as the Markdown page, nothing from a record but text, and it can be used."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import random
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leaderboard import Problem, render
from leaderboard.drawing.pictures import list_pictures
from leaderboard.tables.sections import make_sections, section_name
from leaderboard.tables.table import BLANK, escape
from leaderboard.web.rows import LABELS, run_values
from leaderboard.web.site import render_site
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
    for tag in ("style", "script"):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)[0]
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert not re.search(r"""(src|href)=["'](https?:|//)|@import|url\(|innerHTML|\son\w+=""", page)


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
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Return a headless Chromium that is installed already, one for all tests."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Return a function that opens the page of some records; in the end no fault was told of and nothing fetched."""
    complaints: list[str] = []
    asked: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])

    def visit(records: list[dict[str, Any]], *problems: Problem, pictures: dict[str, bytes] | None = None) -> Any:
        path = tmp_path / "site" / "index.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text(show(records, *problems, pictures=pictures), encoding="utf-8")
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield visit
    context.close()
    assert complaints == []
    pages = {url for url in asked if not url.startswith("data:")}
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
    records = many()
    page = visit(records)
    row = page.locator("tr.row", has_text="granet").nth(1)
    row.locator("td").nth(3).click()
    button, cards = row.locator(".open"), page.locator(".card")
    assert button.get_attribute("aria-expanded") == "true" and cards.count() == 2
    assert page.locator(f"#{button.get_attribute('aria-controls')}").is_visible()
    text = cards.nth(1).inner_text()
    chosen = next(r for r in records if r["method"]["name"] == "granet" and r["sparsity"] == 0.9 and r["seed"] == 1)
    for fact in ("seed 1", "finished", "90.62", "92.00 (epoch 2)", "95.00 (epoch 1)", "not for comparison", "40.0 s"):
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


def test_hostile_text_is_shown_and_does_nothing(visit: Open) -> None:
    records = evil()
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.hit=1'><script>window.hit=1</script></svg>"
    name = section_name(records[0])
    page = visit(records, Problem(EVIL, EVIL), pictures={f"{name}.{p.kind}.svg": svg for p in list_pictures(records)})
    for button in page.locator(".open").all():
        button.click()
    assert page.locator("figure img").count() > 0
    assert page.evaluate("window.hit") is None
    assert page.locator("[onerror], [onload], tbody img, main script").count() == 0
    assert page.locator(".card code").all_text_contents() == [SEEN, SEEN]
    assert html.unescape(re.sub(r"\\(.)", r"\1", escape(EVIL))) in column(page, 0)[0]
    assert "\u202e" not in page.locator("body").inner_text()


def test_many_rows_stay_quick(visit: Open) -> None:
    places = [(page, number) for page in range(20) for number in range(20)]
    runs = [make_record(page={"variant": f"v{a}"}, method={"label": f"method {20 * a + b}"}) for a, b in places]
    page = visit(files(*runs))
    assert page.locator("#count").inner_text() == "400 rows" and len(column(page, 0)) == 200
    page.locator("#more").click()
    assert len(column(page, 0)) == 400 and page.locator("#more").is_hidden()
    took = page.evaluate(
        """() => {
            const find = document.getElementById("find");
            const start = performance.now();
            find.value = "method 39";
            find.dispatchEvent(new Event("input"));
            document.body.offsetHeight;
            return performance.now() - start;
        }"""
    )
    assert page.locator("#count").inner_text() == "14 of 400 rows"  # 39, 139, 239, 339 and 390 to 399
    assert took < 200, f"{took:.0f} ms"  # a few dozen on an idle machine


# Commands that repeat runs


def test_the_command_to_repeat_a_row_asks_for_the_same_cells() -> None:
    from benchmark.config.cells import plan_cells
    from benchmark.runs.record import describe_page
    from leaderboard.store.repeat import repeat_commands

    for arguments in ("", "lr_drops=[0.5,0.7] model=resnet18 prune_rate=0.3", "title='a b' lr=1e-05"):
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
