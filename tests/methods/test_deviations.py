"""The deviation sheet: every method has its table, the sheet is what the docstrings say, and slips are refused."""

from __future__ import annotations

import shutil

import pytest

from benchmark.base.errors import UserError
from benchmark.config.listing import TEMPLATE
from benchmark.config.plugins import METHODS, built_in_names, find_method
from benchmark.recount import deviations
from benchmark.recount.deviations import COLUMNS, HEADER, main, make_section, make_sheet, read_rows

ROW = "- masks | random | drawn | exact | budget"


def written(*section: str) -> str:
    """Return a method file whose docstring ends with the given lines; the first of these is line 3."""
    return '"""Mine: a method.\n\n' + "\n".join(section) + '\n"""\n\nimport torch\n'


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of `methods/` that the sheet is made from."""
    for path in [*METHODS.glob("*.py"), METHODS / "DEVIATIONS.md"]:
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(deviations, "METHODS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", built_in_names())
def test_every_method_has_a_table_with_its_reference(name):
    rows = read_rows((METHODS / f"{name}.py").read_text(), f"methods/{name}.py")
    assert all(len(cells) == len(COLUMNS) for cells in rows)
    assert len({cells[0] for cells in rows}) == len(rows), "a point is listed twice"
    section = make_section(name)
    assert find_method(name).cls.reference in section
    tables = [line for line in section.splitlines() if line.startswith("|")]
    assert all(line.count("|") == len(COLUMNS) + 1 for line in tables)
    assert len(tables) == (len(rows) + 2 if rows else 0)
    assert section in make_sheet()


def test_what_a_page_sets_for_a_method_stands_below_the_method():
    told = {name: make_section(name).splitlines()[-1] for name in ("snfs", "dsr", "granet")}
    digits = "[digits_resnet20](../configs/digits_resnet20.yaml)"
    assert f"{digits} (update_every=100)" in told["snfs"]
    assert f"{digits} (update_every=31, threshold=0.016, distribution=erk)" in told["dsr"]
    assert told["granet"].startswith("|") and f"{digits} (update_every=31)" in make_sheet().partition("## ")[0]


def test_the_committed_sheet_is_the_generated_one():
    assert (METHODS / "DEVIATIONS.md").read_text() == make_sheet(), "run make deviations"


def test_a_row_may_go_on_in_indented_lines():
    text = written(HEADER, "- masks | random", "  numbers | drawn |", "  exact | k = n", "  - 1", ROW)
    first, second = read_rows(text, "mine.py")
    assert first == ("masks", "random numbers", "drawn", "exact", "k = n - 1")
    assert second == ("masks", "random", "drawn", "exact", "budget")
    assert read_rows(written(HEADER, "none"), "mine.py") == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (["Deviations: exact counts."], r"mine.py, line 3: the module docstring must end with .*Deviations \(point"),
        ([HEADER], "mine.py, line 3: the deviations have no row: write 'none'"),
        ([HEADER, ROW, "- masks | random | drawn | exact"], "mine.py, line 5: a row must have 5 cells .*got 4"),
        ([HEADER, ROW, ROW.replace("drawn", "")], "mine.py, line 5: the cell 'authors' code' of 'masks' is empty"),
        (
            [HEADER, ROW.replace("drawn", "not stated")],
            "line 4: .*'authors' code' of 'masks' must say what the code does",
        ),
        ([HEADER, ROW, "", "Afterword."], "mine.py, line 6: 'Afterword.' is no row"),
        ([HEADER, "  numbers | drawn"], "mine.py, line 4: 'numbers | drawn' is no row"),
    ],
)
def test_a_malformed_section_is_refused_by_file_and_line(section, message):
    with pytest.raises(UserError, match=message):
        read_rows(written(*section), "mine.py")


def test_a_file_without_a_docstring_is_refused():
    with pytest.raises(UserError, match=r"mine.py, line 1: there is no docstring"):
        read_rows("import torch\n", "mine.py")


def test_a_changed_docstring_makes_the_check_fail_until_the_sheet_is_rebuilt(copied, capsys):
    assert main(["--check"]) == 0
    rigl = copied / "rigl.py"
    rigl.write_text(rigl.read_text().replace("- ties in magnitude |", "- equal magnitudes |", 1))
    assert main(["--check"]) == 1
    assert "run make deviations" in capsys.readouterr().err
    assert "equal magnitudes" not in (copied / "DEVIATIONS.md").read_text(), "--check writes nothing"
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert "| equal magnitudes |" in (copied / "DEVIATIONS.md").read_text()
    (copied / "DEVIATIONS.md").unlink()
    assert main(["--check"]) == 1


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_a_malformed_docstring_stops_the_command_and_leaves_the_sheet(copied, capsys, arguments):
    before = (copied / "DEVIATIONS.md").read_text()
    rigl = copied / "rigl.py"
    rigl.write_text(rigl.read_text().replace(HEADER, "Deviations:"))
    assert main(arguments) == 2
    assert "error: methods/rigl.py, line " in capsys.readouterr().err
    assert (copied / "DEVIATIONS.md").read_text() == before


def test_a_new_method_file_starts_with_a_valid_section():
    rows = read_rows(TEMPLATE.format(title="Fresh", year=2026), "fresh.py")
    assert [cells[0] for cells in rows] == ["first masks"]
