"""Promises of the published numbers: they are the paper's, each points to rows of this suite, and faults are named."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmark.config.cells import NOT_PROTOCOL, Cell, plan_cells
from benchmark.config.pages import Page, load_page, page_names
from benchmark.config.plugins import built_in_names, find_method
from leaderboard.paper.cells import SAME_PAGE
from leaderboard.paper.published import FILE, FROM_PAGE, Match, PublishedError, load_tables
from leaderboard.tables.table import LEAST_SEEDS
from tests.harness.benches import read_grid

ROOT = Path(__file__).resolve().parents[2]
TABLES = load_tables()
CONTENT = yaml.safe_load(FILE.read_text(encoding="utf-8"))


DIGEST = "6b80dd4078b76877fe8978fa968a43dc7adb38a01081c8ef5a7e1ab8b2408e24"


def test_every_number_is_the_one_that_was_compared_with_the_paper() -> None:
    """The digest is of the numbers, shares, statuses and rows as they were checked; some of them also by hand."""
    ours = {
        (table.number, part.page, row.label, sparsity): (
            *(cell.top1, cell.std, cell.train_share, cell.inference_share, cell.status, row.cited),
        )
        for table in TABLES.tables
        for part in table.parts
        for row in part.rows
        for sparsity, cell in row.cells.items()
    }
    assert ours[1, "cifar10_resnet20", "dense", 0] == (92.41, 0.04, None, None, "primary", False)
    assert ours[2, "cifar100_vgg19", "GraNet, s_i = 0.5", 98][:2] == (72.04, 0.13)
    assert ours[3, "imagenet_resnet50", "RigL, ERK", 90] == (73.0, 0.04, 0.25, 0.24, "source-paper", True)
    text = json.dumps([[list(map(str, place)), list(cell)] for place, cell in sorted(ours.items(), key=str)])
    assert len(ours) == 156 and hashlib.sha256(text.encode()).hexdigest() == DIGEST


# Where they lead: pages and methods of this suite


def matches() -> list[tuple[str, Match]]:
    return [
        (part.page, match) for table in TABLES.tables for part in table.parts for row in part.rows for match in row.ours
    ]


def test_every_page_is_one_of_the_suite_and_has_what_its_records_must_have() -> None:
    used = {part.page for table in TABLES.tables for part in table.parts}
    assert used == set(TABLES.pages) and used <= set(page_names())
    for name, facts in TABLES.pages.items():
        page = dataclasses.asdict(load_page(name))
        assert {key: value for key, value in page.items() if key not in SAME_PAGE} == facts.settings, name
        assert (facts.data["name"], facts.title) == (page["data"], page["title"])
        held_out = {"paper": 0.1, "full": 0.0}[page["split"]]
        total = facts.data["train"] + facts.data["validation"]
        assert facts.data["validation"] == held_out * total


def test_no_setting_of_a_page_is_forgotten_and_those_left_out_are_the_ones_that_change_no_number() -> None:
    """The engine leaves `methods` out of a page's variant too: it is in the method's settings, so in the run's name."""
    fields = {field.name for field in dataclasses.fields(Page)}
    assert SAME_PAGE.keys() == {"title", "data_dir", "init", "workers", "allow_dense", "methods"} == NOT_PROTOCOL
    for name, facts in TABLES.pages.items():
        assert facts.settings.keys() == fields - SAME_PAGE.keys(), name
    assert all(SAME_PAGE.values())


def test_every_setting_of_a_method_is_what_the_engine_gives_it_on_every_page() -> None:
    assert {match.method for _, match in matches()} == set(TABLES.methods)
    for name, usual in TABLES.methods.items():
        for page, facts in TABLES.pages.items():
            wanted = {key: facts.settings[key] if value == FROM_PAGE else value for key, value in usual.items()}
            assert wanted == find_method(name).defaults(load_page(page)), (name, page)


def test_every_page_follows_the_recipe_printed_or_a_note_says_where_not() -> None:
    for part in TABLES.tables[0].parts:
        page, recipe = load_page(part.page), part.recipe
        assert page.epochs == recipe["epochs"] and page.lr == recipe["lr"] and page.momentum == 0.9
        assert [share * page.epochs for share in page.lr_drops] == recipe["lr_drops"]
        if part.page == "imagenet_resnet50":
            assert (page.batch_size, page.weight_decay) == (2 * recipe["batch"], 1e-4)
            assert "1e-4" in TABLES.tables[0].notes[0] and "two GPUs" in TABLES.tables[0].notes[0]
        else:
            assert (page.batch_size, page.weight_decay) == (recipe["batch"], recipe["weight_decay"])


def test_every_row_of_ours_is_a_method_of_the_suite_with_the_settings_the_engine_would_record() -> None:
    for page, match in matches():
        assert match.method in built_in_names() and (ROOT / "methods" / f"{match.method}.py").is_file()
        arguments = " ".join(f"{name}={value}" for name, value in match.changed.items())
        (cell,) = plan_cells(match.method, "0.9", page, "0", arguments)
        assert (cell.method_changes, cell.page_changes) == (match.changed, {}), match


Place = tuple[str, str, str, float]  # page, method, what is changed, sparsity


def place_of(cell: Cell) -> Place:
    return cell.page_name, cell.plugin.name, json.dumps(cell.method_changes, sort_keys=True), cell.sparsity


def places_shown(number: int) -> set[Place]:
    """Return the cells of a table of the paper that the suite can run."""
    return {
        (
            part.page,
            match.method,
            json.dumps(match.changed, sort_keys=True),
            sparsity / 100 if row.group != "dense" else 0,
        )
        for part in TABLES.tables[number - 1].parts
        for row in part.rows
        for match in row.ours
        for sparsity in row.cells
    }


# Controls of pages x rows x sparsities x seeds: SET and Deep-R are on two pages; static rows, small_dense are controls.
@pytest.mark.parametrize(("number", "controls"), [(1, 0), (2, (4 * 11 + 2 * 2) * 3 * 3), (3, 12 * 2 * 3)])
def test_the_grid_of_a_table_makes_every_cell_of_it_and_no_other(number: int, controls: int) -> None:
    """Beside them it may have what rows are compared with: the dense network, controls, the small dense network."""
    items = read_grid(ROOT / "configs" / "paper" / f"table{number}.yaml").items
    seeds: dict[Place, set[int]] = {}
    for item in items:
        if not item.is_control:
            assert item.cell.page_changes == {}, item.cell.identity
            seeds.setdefault(place_of(item.cell), set()).add(item.cell.seed)
    shown = places_shown(number)
    assert [place for place in seeds if len(seeds[place]) < LEAST_SEEDS] == [] == [p for p in shown if p not in seeds]
    beside = {place for place in seeds if place[1] in ("dense", "small_dense")}
    assert seeds.keys() - beside - shown == set()
    pages = {place[0] for place in seeds}
    assert {place[0] for place in seeds if place[1] == "small_dense"} == (pages if number > 1 else set())
    assert sum(item.is_control for item in items) == controls
    assert len({item.cell.identity for item in items}) == len(items)


# Faults of the file

SNIP = "paper_tables.yaml: table 2, cifar10_vgg19, row 'SNIP'"


def row(content: Any) -> Any:
    return content["table2"][0]["rows"][0]


def cell(content: Any) -> Any:
    return row(content)["cells"][90]


FAULTS: list[tuple[Callable[[Any], object], str]] = [
    (lambda c: cell(c).update(top1=193), f"{SNIP}, 90 %: top1 must be null or a number in [0, 100], got 193"),
    (lambda c: cell(c).update(top1=float("nan")), f"{SNIP}, 90 %: top1 must be"),
    (lambda c: cell(c).update(top1=True), f"{SNIP}, 90 %: top1 must be"),
    (lambda c: cell(c).update(std=-0.1), f"{SNIP}, 90 %: std must be"),
    (lambda c: cell(c).update(train_share=-0.1), f"{SNIP}, 90 %: train_share must be null or a number at least 0"),
    (lambda c: cell(c).update(status="sure"), f"{SNIP}, 90 %: status must be one of primary, transcribed, "),
    (lambda c: cell(c).pop("std"), f"{SNIP}, 90 %: 'std' is missing"),
    (lambda c: cell(c).update(sdt=0.1), f"{SNIP}, 90 %: no key 'sdt' is known"),
    (lambda c: row(c)["cells"].pop(95), f"{SNIP}: cells must be 90, 95, 98, in this order, got [90, 98]"),
    (lambda c: row(c).update(ours=[{"method": "methods/snip.py", "changed": {}}]), f"{SNIP}: a method of 'ours'"),
    (lambda c: row(c).update(ours=None), f"{SNIP}, ours: must be a list, got null"),
    (lambda c: row(c).update(ours=[{"method": "gmp", "changed": {}}]), "'ours' must not be that of row 'SNIP'"),
    (lambda c: row(c).update(group="pruning"), f"{SNIP}: group must be one of dense, before training, "),
    (lambda c: row(c).update(ran_by="us"), f"{SNIP}: ran_by must be one of authors, cited, got \"us\""),
    (lambda c: row(c).update(label="GMP"), 'table 2, cifar10_vgg19: a row must come once, got "GMP"'),
    (lambda c: c["table2"][0].update(page="cifar10_vgg"), "page must be DATA_MODEL"),
    (lambda c: c["pages"].pop("cifar10_vgg19"), "page must be described under 'pages'"),
    (lambda c: c["pages"]["cifar10_vgg19"].update(settings=[]), "pages, cifar10_vgg19, settings: must be a map"),
    (lambda c: c["methods"].pop("snip"), f"{SNIP}, ours: a method must be described under 'methods', got \"snip\""),
    (lambda c: c["methods"]["snip"].update(size="page"), "methods, snip: 'size' must be a setting of the page"),
    (
        lambda c: row(c)["ours"][0].update(changed={"batches": 2}),
        f"{SNIP}, ours: what is changed must be a setting of 'snip', got \"batches\"",
    ),
    (lambda c: c.update(runs=1), "the file: runs must be a number of at least 2"),
    (lambda c: c.pop("table3"), "the file: 'table3' is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_broken_rule_is_named_with_file_row_and_value(
    spoil: Callable[[Any], object], message: str, tmp_path: Path
) -> None:
    content = copy.deepcopy(CONTENT)
    spoil(content)
    file = tmp_path / "paper_tables.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    with pytest.raises(PublishedError) as caught:
        load_tables(file)
    assert message in str(caught.value) and str(caught.value).startswith("paper_tables.yaml: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: 'c' must come once"),
        ("[1, 2]", "the file: must be a map"),
        ("a: [", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_map_or_has_a_key_twice_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(PublishedError, match=r"t\.yaml: ") as caught:
        load_tables(tmp_path / "t.yaml")
    assert message in str(caught.value)
