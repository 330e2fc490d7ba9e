"""The three doors for a method, and what is refused at them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmark import ROOT
from benchmark.base.errors import UserError
from benchmark.base.system import continue_git, describe_git
from benchmark.config.cells import plan_cells
from benchmark.config.listing import write_new_method
from benchmark.config.pages import load_page
from benchmark.config.plugins import built_in_names, find_method, method_names
from benchmark.grids.grid import tell_unchecked
from benchmark.training.rehearsal import check_timeline, rehearse
from methods.core import Timeline
from tests.harness.benches import ask
from tests.harness.disagreement import in_rounds

GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from methods.core import DISTRIBUTIONS, DenseGrads, Group, Masks, Method, Scoring, Timeline, View, random_masks
from methods.core import drop, erk, gradient_magnitude, grow, magnitude, random_scores, update_range
import torch

@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    reference: ClassVar[str] = "test"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    update_every: int = 5

    def update_steps(self, timeline):
        return update_range(self.update_every, timeline.total_steps)

    def setup(self, view):
        return random_masks(view, erk(view.shapes, view.count(self.sparsity)))

    def update(self, view):
        kept = drop(dict(view.masks), magnitude(view), 0.3)
        return grow(kept, random_scores(view), like=view.masks)
"""


def write(tmp_path: Path, text: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def rehearse_file(path: str, sparsity: float = 0.9, steps: int = 20) -> None:
    method = find_method(path).build(load_page("digits_resnet20"), sparsity, {})
    rehearse(method, "mine", Timeline(steps, 10))


def test_every_file_in_methods_is_a_method():
    expected = {"granet", "rigl", "set", "gmp", "snip", "grasp", "dense", "static", "small_dense", "rigl_itop"}
    assert expected <= set(built_in_names())
    for name in built_in_names():
        plugin = find_method(name)
        assert plugin.cls.__doc__
        assert sys.modules[plugin.cls.__module__].__doc__, name


@pytest.mark.parametrize("name", built_in_names())
def test_every_method_keeps_its_contract_in_rehearsal(name):
    page = load_page("cifar10_vgg19")
    method = find_method(name).build(page, 0.5 if name == "sr_ste" else 0.99, {})
    rehearse(method, name, in_rounds(method, 56_320, 352))


def test_an_entry_point_of_an_installed_package_is_a_door(tmp_path, monkeypatch):
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sparse_bench.methods]\noutside = outside_methods:Mine\nbad = nowhere:X\n")
    (tmp_path / "outside_methods.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "outside" in method_names()
    assert find_method("outside").cls.__name__ == "Mine"
    with pytest.raises(UserError, match=r"entry point 'bad'.*does not import: ModuleNotFoundError"):
        find_method("bad")


def test_a_method_from_elsewhere_is_told_once_to_be_rehearsed_and_not_checked(tmp_path):
    path, shown = write(tmp_path, GOOD), io.StringIO()
    tell_unchecked(plan_cells(f"{path},granet", "0.5,0.9", "digits_resnet20", "0", ""), Console(file=shown, width=500))
    assert shown.getvalue().count("\n") == 1 and f"`make check-method METHOD={path}`" in shown.getvalue()


def test_a_new_method_file_works_as_it_is(tmp_path):
    command = ["new-method", "zz_fresh_method", "--folder", str(tmp_path)]
    assert ask(*command).exit_code == 0
    path = str(tmp_path / "zz_fresh_method.py")
    assert find_method(path).cls.__name__ == "ZzFreshMethod"
    rehearse_file(path, steps=60)
    again = ask(*command)
    assert again.exit_code == 2
    assert "already exists" in again.stderr


def test_a_new_method_is_written_to_the_checkout_here_though_another_one_may_run(tmp_path, monkeypatch):
    (tmp_path / "methods" / "core").mkdir(parents=True)
    (tmp_path / "methods" / "core" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    said = ask("new-method", "zz_here").stdout
    path = tmp_path / "methods" / "zz_here.py"
    assert path.is_file() and f"this .venv runs {ROOT}, which does not have it" in said
    assert said.splitlines()[-1].split(maxsplit=2)[2] == f"make check-method METHOD={path}"


@pytest.mark.parametrize("name", ["My", "class", "_x", "granet", "table2", "../x"])
def test_a_name_that_cannot_be_a_method_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"NAME must be|already exists"):
        write_new_method(name, tmp_path, Console())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "does not parse"),
        ("import nothing_like_this", "does not import: ModuleNotFoundError.*line 1"),
        ("x = 1", "must define exactly one subclass of methods.core.Method, found none"),
        (GOOD + GOOD.replace("class Mine", "class Yours"), "exactly one subclass.*found Mine, Yours"),
        (GOOD.replace("@dataclass(frozen=True, kw_only=True)", ""), "put @dataclass"),
        (GOOD.replace("def setup", "def setups"), "does not define setup"),
        (GOOD.replace('    reference: ClassVar[str] = "test"\n', ""), "does not state its reference"),
        (GOOD.replace("Group.SPARSE_TO_SPARSE", "'sparse'"), "group of class Mine must be a Group, got 'sparse'"),
        (GOOD.replace('= "test"', "= 5"), "reference of class Mine must be a str, got 5"),
        (
            GOOD.replace("update_every: int = 5", "update_every: int = 5\n    dense_grads = True"),
            "dense_grads of class",
        ),
        (GOOD.replace("update_every: int = 5", "update_every: int = 5\n    lam = 1.0"), "write 'lam: float = 1.0'"),
        (GOOD.replace("    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE\n", ""), "does not state its group"),
    ],
)
def test_a_file_that_is_no_method_is_refused_with_its_fault(tmp_path, text, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        find_method(write(tmp_path, text))


def test_a_failure_within_a_library_names_the_line_of_the_file_that_called_it(tmp_path, monkeypatch):
    write(tmp_path, f"import json\n\njson.loads('[')\n{GOOD}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"does not import: JSONDecodeError: .* \(line 3 of .*mine\.py\)"):
        find_method("mine.py")


def test_a_missing_file_is_refused():
    with pytest.raises(UserError, match="does not exist; `make new-method NAME=foo`"):
        find_method("no/such.py")


UPDATE = """
        kept = drop(dict(view.masks), magnitude(view), 0.3)
        return grow(kept, random_scores(view), like=view.masks)
"""


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ("return {n: m | True for n, m in view.masks.items()}", "update at step 5: it must keep exactly 58 of 576"),
        ("return drop(dict(view.masks), magnitude(view), 0.3)", "must keep exactly"),
        ("return {n: m.float() for n, m in view.masks.items()}", "bool tensors"),
        ("return {n: m.flatten() for n, m in view.masks.items()}", "must have shape"),
        ("return dict(list(view.masks.items())[:1])", "missing"),
        ("return None", "must return a dict of masks"),
        ("return ()", "an empty tuple"),
        ("return grow(dict(view.masks), gradient_magnitude(view), view.masks)", "did not declare"),
        ("next(iter(view.weights.values())).mul_(2); return dict(view.masks)", "must not write"),
        ("next(iter(view.weights.values())).data.mul_(2); return dict(view.masks)", "wrote to a weight"),
        ("[m.fill_(True) for m in view.masks.values()]; return dict(view.masks)", "must not write"),
        ("return {n: m.flatten()[torch.randperm(m.numel())].reshape(m.shape) for n, m in view.masks.items()}",
         "torch's global random generator"),
        ("torch.manual_seed(view.step); torch.rand(1); return dict(view.masks)", "torch's global random generator"),
        ("return view.nothing", "AttributeError.*line [0-9]+ of .*mine.py"),
        ("return grow(dict(view.masks), {}, view.masks)", "KeyError.*line [0-9]+ of [^\n]*mine.py"),
        ("return {n: torch.cat([m, 1]) for n, m in view.masks.items()}", "TypeError.*line [0-9]+ of [^\n]*mine.py"),
    ],
)  # fmt: skip
def test_a_plugin_that_breaks_its_contract_at_the_first_update_is_refused_before_training(tmp_path, update, message):
    path = write(tmp_path, GOOD.replace(UPDATE, f"\n        {update}\n"))
    with pytest.raises(UserError, match=f"(?s)method 'mine'.*{message}"):
        rehearse_file(path)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            "def planned_sparsity(self, step, timeline):\n        return step.nothing",
            "fails in rehearsal: AttributeError",
        ),
        ("def planned_sparsity(self, step, timeline):\n        return 0.5", "ends at sparsity 0.5 instead of 0.9"),
        ("def update_steps(self, timeline):\n        return range(0, 20, 5)", "outside the run's steps 1..20"),
        ("def update_steps(self, timeline):\n        return 7", "fails in rehearsal"),
        ("def scoring(self):\n        return 1 / 0", "fails in rehearsal: ZeroDivisionError"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path, plan, message):
    with pytest.raises(UserError, match=message):
        rehearse_file(write(tmp_path, f"{GOOD}\n    {plan}\n"))


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("planned_sparsity(self, step, timeline):\n        torch.manual_seed(0); return self.sparsity", "random gen"),
        ("update_steps(self, timeline):\n        torch.rand(1); return range(5, 16, 5)", "random generator"),
        ("penalty(self, view):\n        torch.rand(1); return {}", "random generator"),
        ("penalty(self, view):\n        next(iter(view.weights.values())).add_(1.0); return {}", "must not write"),
        ("penalty(self, view):\n        return {n: w / w for n, w in view.weights.items()}", None),
        ("penalty(self, view):\n        return {n: w / 0 for n, w in view.weights.items()}", "'conv.weight' must be"),
        ("learned(self, view):\n        torch.rand(1); return {}", "random generator"),
        (
            "learned(self, view):\n        [w.mul_(2) for w in view.weights.values()]; return {}",
            r"learned\(\) must not write",
        ),
        ("learned(self, view):\n        return view.nothing", "fails in learned.*AttributeError"),
    ],
)
def test_every_hook_leaves_its_inputs_and_the_random_state_alone(tmp_path, hook, message):
    path = write(tmp_path, f"{GOOD}\n    def {hook}\n")
    state = torch.random.get_rng_state()
    with pytest.raises(UserError, match=f"(?s)method 'mine'.*{message}") if message else contextlib.nullcontext():
        rehearse_file(path)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_schedule_too_short_for_one_update_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"makes no update in a run of 4 steps .update_every is 5.*ARGS=update_every=N"):
        rehearse_file(write(tmp_path, GOOD), steps=4)


def test_a_run_that_would_end_short_of_its_target_is_refused():
    page = load_page("cifar10_vgg19")
    with pytest.raises(UserError, match=r"ends at sparsity 0.5 instead of 0.9 in a run of 1500 steps"):
        rehearse(find_method("granet").build(page, 0.9, {}), "granet", Timeline(1500, 100))


@pytest.mark.parametrize(
    ("name", "settings", "steps", "end"),
    [
        ("gmp", {"update_every": 200}, 100, ": lower it with ARGS=update_every=N, or train longer with ARGS=epochs=N"),
        ("gmp", {"update_every": 1, "prune_end": 0.0}, 100, "such as ARGS=prune_end=0.5"),
        ("granet", {"update_every": 1, "prune_end": 0.0}, 100, "such as ARGS=prune_end=0.5"),
        ("mest", {"soft": 0.05, "update_every": 1, "update_end": 1.0}, 100,
         "such as ARGS=update_end=0.75, or change soft, which is 0.05, such as ARGS=soft=0"),
        ("ac_dc", {}, 15, "makes no update in a run of 15 steps: train longer with ARGS=epochs=N"),
        ("set", {}, 10, "of 10 steps: update more often with ARGS=update_every=N, or train longer with ARGS=epochs=N"),
    ],
)  # fmt: skip
def test_every_way_out_of_a_plan_that_misses_its_target_is_one(name, settings, steps, end):
    with pytest.raises(UserError) as refused:
        check_timeline(find_method(name).cls(sparsity=0.9, **settings), name, Timeline(steps, steps))
    assert str(refused.value).endswith(end)


def test_a_plan_that_no_setting_mends_is_the_methods_to_mend():
    class Half(find_method("gmp").cls):
        def planned_sparsity(self, step, timeline):
            return 0.5

    with pytest.raises(UserError, match=r"update_every is 5\): update_steps\(\) must plan an update, and planned_sp"):
        check_timeline(Half(sparsity=0.9, update_every=5), "half", Timeline(100, 10))


def test_a_page_gives_every_method_that_asks_it_a_setting_and_its_table_keeps_its_name():
    page = load_page("digits_resnet20")
    plain = dataclasses.replace(page, methods={})
    for name, taken in (("granet", 31), ("rigl_itop", 31), ("gmp", 31), ("set", 0)):
        assert find_method(name).defaults(page)["update_every"] == taken
    assert find_method("granet").defaults(plain)["update_every"] == page.update_every == 20
    own = dataclasses.replace(page, methods={"all": {"update_every": 9}, "granet": {"update_every": 5}})
    assert find_method("granet").defaults(own)["update_every"] == 5  # a method's own word comes last
    made = plan_cells("granet", "0.9", "digits_resnet20", "0", "")[0]
    assert made.method.update_every == 31 and made.label == "granet"
    assert dataclasses.replace(made, page=plain).variant == made.variant
    with pytest.raises(UserError, match="methods take no setting 'update_evry': did you mean 'update_every'"):
        plan_cells("granet", "0.9", "digits_resnet20", "0", "methods.all.update_evry=3")


def found(where: Path, words: str, **environment: str) -> str:
    """Return what Python prints in the folder `where`, which is searched first."""
    code = f"import sys; sys.path[:0] = ['', {str(ROOT)!r}]; {words}"
    environment = {"PATH": os.environ["PATH"], **environment}
    done = subprocess.run([sys.executable, "-c", code], cwd=where, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "kind"), [("methods", "package"), ("leaderboard", "namespace"), ("leaderboard", "module")]
)
def test_our_own_packages_are_imported_whatever_else_has_their_name(tmp_path, name, kind):
    place = tmp_path / (f"{name}.py" if kind == "module" else name)
    if kind == "module":
        place.write_text("")
    else:
        place.mkdir()
        (place / ("__init__.py" if kind == "package" else "other.py")).write_text("")
    ask = f"import benchmark, importlib.util as u; print(u.find_spec({name!r}).origin)"
    assert found(tmp_path, ask).strip() == str(ROOT / name / "__init__.py")
    assert found(tmp_path.parent, ask, PYTHONPATH=str(tmp_path)).strip() == str(ROOT / name / "__init__.py")
    if kind == "package":  # it is there already: nothing of ours could be imported
        said = found(tmp_path, f"import {name}, benchmark")
        assert f"another one was imported before it: {place}" in said and "Import benchmark first" in said
    assert found(ROOT, f"import {name}, benchmark") == ""


def test_only_a_checkout_of_its_own_has_a_commit(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        asked = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(asked, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    copy = tmp_path / "copy"
    (copy / "methods").mkdir(parents=True)
    (copy / "methods" / "a.py").write_text("")
    assert describe_git(copy) == {"commit": None, "dirty": None}  # no repository, or that of whoever runs the tests
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "a")
    assert describe_git(copy) == {"commit": None, "dirty": None}  # a copy within another repository
    (tmp_path / "methods").mkdir()
    assert describe_git(tmp_path) == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    for place in ("methods", "leaderboard/store", "leaderboard/records"):
        file = tmp_path / place / "b.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        assert describe_git(tmp_path)["dirty"] is (place != "leaderboard/records")
        file.unlink()
    (tmp_path / "notes").write_text("")
    first, told = describe_git(tmp_path), {"commit": git("rev-parse", "HEAD"), "dirty": True}
    for file, same in (("notes", True), ("methods/c.py", False)):  # a run goes on after another commit
        (tmp_path / file).write_text("")
        git("add", "-A")
        git("commit", "-qm", file)
        assert continue_git(first, describe_git(tmp_path), tmp_path) == (first if same else told)
    assert continue_git(first, first, copy) == first and continue_git(first, {**first, "dirty": True}, copy) == told
    unknown = {"commit": None, "dirty": None}
    assert continue_git(unknown, first, tmp_path) == {"commit": None, "dirty": True}
    (tmp_path / "methods" / "b.py").write_text("")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of that repository
    assert describe_git(copy) == {"commit": None, "dirty": None}
