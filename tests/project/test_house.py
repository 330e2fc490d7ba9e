"""The house: who may import whom, how large things are, and where they are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path for room in ("methods", "benchmark", "leaderboard") for path in (ROOT / room).rglob("*.py"))
# Records and tables need the standard library alone; a library beyond it stays in the module that is there for it.
BOARD_LIBRARIES = {
    "tables/stats.py": ("numpy", "scipy"),
    "drawing/draw.py": ("matplotlib",),
    "drawing/figures.py": ("matplotlib",),
    "drawing/style.py": ("matplotlib",),
    "paper/published.py": ("yaml",),
    "web/wandb_board.py": ("wandb",),
}


def imported(path: Path) -> set[str]:
    """Return the full names of all modules a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def allowed(path: Path, name: str) -> bool:
    """Return whether a file of a room may import a module: methods.core <- methods.NAME <- benchmark -> leaderboard."""
    top = name.split(".")[0]
    relative = path.relative_to(ROOT)
    standard = top in sys.stdlib_module_names
    if relative.parts[0] == "leaderboard":
        return (
            standard
            or top == "leaderboard"
            or top in BOARD_LIBRARIES.get(relative.relative_to("leaderboard").as_posix(), ())
        )
    if relative.parts[0] == "methods":
        return standard or top == "torch" or name == "methods" or name.startswith("methods.core")
    # the engine knows no method by name, only their vocabulary
    return top != "tests" and (top != "methods" or name == "methods" or name.startswith("methods.core"))


def test_imports_follow_the_rule():
    found = [(str(path), name) for path in CODE for name in imported(path) if not allowed(path, name)]
    assert found == []


def test_the_import_rule_catches_what_it_forbids():
    rigl, engine, board = (
        ROOT / "methods/rigl.py",
        ROOT / "benchmark/training/train.py",
        ROOT / "leaderboard/board/sheet.py",
    )
    assert not allowed(rigl, "timm")
    assert not allowed(rigl, "methods.set")
    assert not allowed(rigl, "benchmark.training.train")
    assert not allowed(engine, "methods.granet")
    assert not allowed(board, "torch")
    assert not allowed(board, "methods.core")
    assert not allowed(board, "scipy.stats") and allowed(ROOT / "leaderboard/tables/stats.py", "scipy.stats")
    assert allowed(engine, "leaderboard") and allowed(engine, "methods.core") and allowed(rigl, "torch.nn")


def test_files_and_functions_stay_small():
    for path in CODE:
        text = path.read_text()
        assert text.count("\n") <= (120 if path.parent.name == "methods" else 480), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                longest = 62 if node.name in ("train_step", "run", "run_grid") else 50
                assert lines <= longest, f"{path}, {node.name}: {lines} lines"


def test_public_functions_and_classes_are_documented():
    bare = []
    for path in CODE:
        tree = ast.parse(path.read_text())
        if path.name != "__init__.py" or path.stat().st_size:
            bare += [str(path)] if ast.get_docstring(tree) is None and path.parent != ROOT / "benchmark" else []
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                bare.append(f"{path.name}:{node.name}")
    assert bare == []


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_folders_are_at_most_two_deep():
    assert [p for p in tracked() if len(p.relative_to(ROOT).parts) > 3] == []


def test_every_package_is_installed_and_has_its_line_in_contributing():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in CODE}
    listed = re.search(r"^packages = \[\n(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)
    pages = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "configs").rglob("*.yaml")}
    assert listed and sorted(re.findall(r'"(.*?)"', listed[1])) == sorted(folders | pages)
    assert [folder for folder in folders if not (ROOT / folder.replace(".", "/") / "__init__.py").is_file()] == []
    told = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [folder.removeprefix("benchmark.") for folder in folders if folder.startswith("benchmark.")]
    assert [room for room in rooms if not re.search(rf"^\|[^|]*`{room}/`", told, re.M)] == []


def test_a_folder_can_be_surveyed():
    """Also, no package has a module's name: `benchmark/data.py` beside `benchmark/data/` would never be read."""
    for folder in {path.parent for path in CODE}:
        assert len(list(folder.glob("*.py"))) <= 40, folder
    assert [path for path in CODE if (path.with_suffix("") / "__init__.py").is_file()] == []


def test_no_machine_path_and_no_package_index_is_in_the_repository():
    pattern = re.compile("|".join(["/wo" + "rk/", "/ro" + "ot/", "index" + "-url", "find" + "-links"]))
    hits = [str(path) for path in tracked() if path.suffix != ".png" and pattern.search(path.read_text())]
    assert hits == []


def test_pinned_versions_name_no_address_and_pair_torch_with_torchvision():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^ ]+( ; python_version [<>=]+ \"[0-9.]+\")?", line) for line in lines)
    assert "torch==2.14.1" in lines
    assert "torchvision==0.29.1" in lines
