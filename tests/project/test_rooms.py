"""The rooms: modules and packages import one way, no circle hides inside a function, and tests share by the harness."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = sorted(path for top in ("methods", "benchmark", "leaderboard") for path in (ROOT / top).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
Graph = dict[str, set[str]]


def name_of(path: Path) -> str:
    """Return a file's name as a module; a package's `__init__` has the package's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(name: str, tree: ast.AST, known: set[str]) -> set[str]:
    """Return which of the known modules a module imports: at its top, inside functions, and for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name}: imports say the whole name"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module if module in known else node.module for module in modules}
    return (found & known) - {name}


def read_graph(paths: list[Path]) -> Graph:
    """Return what each module imports of the others."""
    trees = {name_of(path): ast.parse(path.read_text()) for path in paths}
    return {name: read_imports(name, tree, set(trees)) for name, tree in trees.items()}


def room_of(module: str) -> str:
    """Return the room of a module: its package below `benchmark` or `leaderboard`, `methods.core`, or itself."""
    parts = module.split(".")
    return ".".join(parts[:2])


def between_rooms(graph: Graph) -> Graph:
    """Return which rooms each room imports."""
    rooms: Graph = {}
    for module, imports in graph.items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, imports))
    return {room: others - {room} for room, others in rooms.items()}


def find_circle(graph: Graph) -> list[str]:
    """Return a circle of imports, or nothing."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_graph(CODE)


def test_modules_and_rooms_import_each_other_one_way(graph):
    """Imports inside functions count: one that is there lest two modules import each other is a circle as well."""
    assert find_circle(graph) == find_circle(between_rooms(graph)) == []


def test_a_planted_circle_is_found(graph):
    hidden = "def late():\n    from benchmark.runs.run import run_cell\n"
    typed = "if TYPE_CHECKING:\n    import benchmark.runs.run\n"
    for text in (hidden, typed):
        planted = read_imports("benchmark.training.train", ast.parse(text), set(graph))
        assert planted == {"benchmark.runs.run"}
        changed = {**graph, "benchmark.training.train": graph["benchmark.training.train"] | planted}
        assert {"benchmark.training.train", "benchmark.runs.run"} <= set(find_circle(changed))
    elsewhere = {**graph, "leaderboard.store.kinds": {"leaderboard.board.sheet"}}
    assert find_circle(between_rooms(elsewhere))
    beside = {**graph, "benchmark.data.cache": {"benchmark.networks.cifar"}}  # no circle of modules, but one of rooms
    assert find_circle(beside) == [] and find_circle(between_rooms(beside))


def test_nothing_is_loose_in_the_engine():
    loose = {path.name for path in (ROOT / "benchmark").glob("*.py")}
    assert loose == {"__init__.py", "__main__.py"}
    assert {path.name for path in (ROOT / "leaderboard").glob("*.py")} == {"__init__.py", "__main__.py"}


def test_every_room_says_what_it_is():
    silent = [
        str(path)
        for path in (*CODE, *TESTS)
        if path.name == "__init__.py" and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_contributing_lists_the_rooms_in_the_order_of_their_imports(graph):
    told = re.findall(r"^\| `(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    places = {f"benchmark.{room}": place for place, room in enumerate(told)}
    upward = [
        (room, other)
        for room, others in between_rooms(graph).items()
        for other in others & places.keys()
        if room in places and places[other] <= places[room]
    ]
    assert upward == []


def test_tests_share_by_the_harness():
    graph = read_graph(TESTS)
    shared = {name: {m for m in imports if m.split(".")[-1].startswith("test_")} for name, imports in graph.items()}
    assert {name: modules for name, modules in shared.items() if modules} == {}


def test_the_harness_has_no_test_and_tests_lie_in_rooms():
    assert [str(p) for p in TESTS if p.name.startswith("test_") and p.parent.parent != ROOT / "tests"] == []
    assert list((ROOT / "tests" / "harness").glob("test_*.py")) == []
