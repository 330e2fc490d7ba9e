"""The conformance kit over every method, and the kit itself: nothing it checks goes unproven."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console
from typer.testing import CliRunner

import benchmark.conformance.engine as engine
from benchmark.base.errors import UserError
from benchmark.cli.app import app
from benchmark.config.listing import write_new_method
from benchmark.config.plugins import built_in_names, find_method, method_names
from benchmark.conformance import CHECKS, Kit
from benchmark.conformance.checks import Outcome, run_check
from benchmark.conformance.ranks import run_ranks
from benchmark.conformance.report import check_method
from tests.harness import mutant_methods
from tests.harness.mutant_methods import GlobalGenerator, ThresholdKeepsTies
from tests.harness.mutants import MUTANTS, SHARED, Mutant, catch_by_oracle, examine

# Two methods of different kinds every day, the others in the slow tests: their masks are held to an oracle every day.
DAILY = ("granet", "snip")
# What two processes say, where that is not what is tested: to start them costs seconds.
APART = [{"error": "x", "masks": [], "weights": ""}] * 2


@functools.cache
def ranks() -> dict:
    """Train every method in two processes, started once for all of them."""
    return run_ranks(method_names())


@functools.cache
def kit_of(name: str) -> Kit:
    return Kit(find_method(name))


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, marks=[] if name in DAILY and check != "two-processes" else [pytest.mark.slow])
        for name in method_names()
        for check in CHECKS
    ],
)
def test_every_method_keeps_every_promise(name, check):
    kit = kit_of(name)
    if check == "two-processes":
        kit.ranks = ranks()
    result = run_check(kit, check)
    assert not result.bad, f"{result.verdict}: {result.seen}; expected: {result.check.expected}"


@pytest.mark.parametrize("mutant", [pytest.param(m, id=m.name) for m in MUTANTS])
def test_every_planted_fault_is_caught_by_the_check_meant_for_it(mutant):
    if mutant.caught_by.startswith("oracle:"):
        assert catch_by_oracle(mutant), mutant.wrong
    else:
        assert examine(mutant, [mutant.caught_by]), mutant.wrong


@pytest.mark.parametrize("mutant", [pytest.param(m, id=m.name) for m in SHARED])
@pytest.mark.slow
def test_every_fault_between_processes_is_caught(mutant):
    assert examine(mutant, ["two-processes"]), mutant.wrong


def test_every_check_is_proven_by_a_fault_it_catches():
    proven = {mutant.caught_by for mutant in [*MUTANTS, *SHARED]}
    assert set(CHECKS) <= proven
    assert {f"oracle:{name}" for name in built_in_names()} - proven <= {
        f"oracle:{n}" for n in ("dense", "small_dense", "rigl_itop")
    }
    assert len(MUTANTS) + len(SHARED) >= 20


USES_GLOBAL = """from dataclasses import dataclass

import torch

from methods import static
from methods.core import DISTRIBUTIONS, keep_top


@dataclass(frozen=True, kw_only=True)
class UsesGlobal(static.Static):
    def setup(self, view):
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        return {name: keep_top(torch.rand(shape), counts[name]) for name, shape in view.shapes.items()}
"""


REMEMBERS = """from dataclasses import dataclass

from methods import set
from methods.core import drop, grow, magnitude, random_scores

SEEN = {}


@dataclass(frozen=True, kw_only=True)
class Remembers(set.SET):
    def update(self, view):
        SEEN[view.step] = float(sum(size.sum() for size in magnitude(view).values()))
        rate = self.prune_rate * (0.5 if len([step for step in SEEN if step < view.step]) % 2 else 1.0)
        kept = drop(dict(view.masks), magnitude(view), rate)
        return kept, grow(kept, random_scores(view), like=view.masks)
"""
# Pairs of neighbouring outputs, and random numbers of its own: neither is a matter of precision.
BY_PLACE = """import hashlib
from dataclasses import dataclass

import torch

from methods import static
from methods.core import DISTRIBUTIONS, keep_top


@dataclass(frozen=True, kw_only=True)
class ByPlace(static.Static):
    def setup(self, view):
        counts = DISTRIBUTIONS["erk"](view.shapes, view.count(self.sparsity))
        masks = {}
        for name, shape in view.shapes.items():
            seed = int.from_bytes(hashlib.sha256(f"{view.seed} {name}".encode()).digest()[:4], "big")
            masks[name] = keep_top(torch.rand(shape, generator=torch.Generator().manual_seed(seed)), counts[name])
        return masks
"""


def test_what_a_module_remembers_is_not_there_when_another_process_continues(tmp_path):
    (tmp_path / "remembers.py").write_text(REMEMBERS)
    kit = Kit(find_method(str(tmp_path / "remembers.py")), str(tmp_path / "remembers.py"))
    assert run_check(kit, "resume").verdict == "FAIL"


def test_masks_that_go_by_place_whatever_the_precision_are_no_fault_of_precision(tmp_path):
    (tmp_path / "by_place.py").write_text(BY_PLACE)
    assert run_check(Kit(find_method(str(tmp_path / "by_place.py"))), "fine-scores").verdict == "n/a"


def test_a_sparsity_that_a_method_refuses_is_not_said_to_have_been_hit(tmp_path):
    narrow = '        if self.sparsity > 0.95:\n            raise ValueError("at most 0.95")\n'
    source = BY_PLACE + "\n    def validate(self):\n" + narrow
    (tmp_path / "narrow.py").write_text(source.replace("ByPlace", "Narrow"))
    result = run_check(Kit(find_method(str(tmp_path / "narrow.py"))), "sparsities")
    assert result.verdict == "pass" and "0.99 is refused, 0.5 in its place" in result.seen


def report(name: str, *only: str) -> tuple[bool, str]:
    shown = io.StringIO()
    return check_method(name, Console(file=shown, width=250), only), shown.getvalue()


def test_the_table_says_what_was_seen_what_was_expected_and_how_to_mend_it(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "run_ranks", lambda methods: {"uses_global": APART})
    source = tmp_path / "uses_global.py"
    source.write_text(USES_GLOBAL)
    kept, shown = report(str(source), "runs", "two-processes", "repeatable")
    assert not kept
    assert "repeatable" in shown and "other masks from step 0 on, with other global random states" in shown
    assert "draw with view.random(name, purpose)" in shown
    assert "how to fix it" in shown
    assert "report it" not in shown or "mend the others first" in shown
    assert "uses_global" in shown and "breaks 3 of 3 promises" in shown


def test_checks_are_run_by_name_and_an_unknown_one_is_named_with_the_nearest():
    kept, shown = report("static", "prunable-layers")
    assert kept and f"keeps the 1 checked of {len(CHECKS)} promises" in shown and "resume" not in shown
    with pytest.raises(UserError, match="unknown check 'resum': did you mean 'resume'"):
        report("static", "runs", "resum")


@pytest.mark.slow  # four processes train together every day in test_ranks, and a new file is rehearsed in test_plugins
def test_built_ins_and_a_new_method_s_file_keep_every_promise_from_any_folder_and_in_two_processes(
    tmp_path, monkeypatch
):
    write_new_method("fresh_one", tmp_path, Console(file=io.StringIO()))
    monkeypatch.chdir(tmp_path)
    seen = run_ranks([*DAILY, "fresh_one.py"])
    monkeypatch.setattr(engine, "run_ranks", lambda methods: seen)
    for name in DAILY:
        assert run_check(Kit(find_method(name), name), "two-processes").verdict == "pass"
    kept, shown = report("fresh_one.py")
    assert kept, shown
    assert "keeps all" in shown


def test_a_run_that_breaks_off_lets_no_check_pass_on_it():
    kit = Kit(Mutant("x", "", "runs", ThresholdKeepsTies).plugin())
    kit.trial().error = "it broke"
    result = run_check(kit, "inactive-average")
    assert (result.verdict, result.seen) == ("not reached", "it broke")


def test_a_check_that_fails_itself_is_no_pass(monkeypatch):
    monkeypatch.setitem(CHECKS, "runs", type(CHECKS["runs"])("runs", "", "", lambda kit: Outcome(1 / 0 > 0, "")))
    assert run_check(Kit(find_method("static")), "runs").verdict == "FAIL"


@pytest.mark.slow
def test_processes_that_cannot_train_are_told_and_named():
    with pytest.raises(UserError, match=r"two processes could not train together: .*unknown method 'nosuch'"):
        run_ranks(["nosuch"])


def test_the_command_ends_with_1_for_a_broken_method_and_2_for_a_file_with_several(tmp_path, monkeypatch):
    for name in set(CHECKS) - {"repeatable"}:
        monkeypatch.delitem(CHECKS, name)
    source = tmp_path / "uses_global.py"
    source.write_text(USES_GLOBAL)
    assert CliRunner().invoke(app, ["check", str(source)]).exit_code == 1
    several = CliRunner().invoke(app, ["check", str(Path(mutant_methods.__file__))])
    assert several.exit_code == 2
    assert "must define exactly one subclass" in several.stderr
    assert GlobalGenerator.__name__ in several.stderr


BASE = """from dataclasses import dataclass
from typing import ClassVar

import sys
import torch

from methods import rigl_itop, set as plain, snip, static
from methods.core import DenseGrads, Scoring, View, all_active


@dataclass(frozen=True, kw_only=True)
"""


def judge(tmp_path: Path, code: str, *checks: str) -> dict[str, str]:
    """Return the verdicts of the checks on a plugin written as a class body."""
    file = tmp_path / "mine.py"
    file.write_text(BASE + code)
    kit = Kit(find_method(str(file)), str(file))
    return {name: run_check(kit, name).verdict for name in checks}


def test_a_method_whose_updates_never_come_in_the_kit_is_not_passed(tmp_path):
    code = (
        "class Rare(static.Static):\n    delta_t: int = 1000\n"
        "    def update_steps(self, timeline):\n"
        "        return range(self.delta_t, timeline.total_steps, self.delta_t)\n"
        "    def update(self, view):\n        raise NotImplementedError\n"
    )
    assert judge(tmp_path, code, "runs") == {"runs": "FAIL"}


def test_a_method_that_ends_the_program_is_caught(tmp_path):
    code = "class Ends(static.Static):\n    def setup(self, view):\n        sys.exit(0)\n"
    assert judge(tmp_path, code, "runs", "inactive-weights") == {"runs": "FAIL", "inactive-weights": "not reached"}


def test_scoring_on_more_images_than_the_kit_has_is_no_fault(tmp_path):
    code = "class Many(snip.SNIP):\n    score_batches: int = 8\n"
    wanted = ("scoring-gradients", "training-cost", "declared-scoring")
    assert judge(tmp_path, code, *wanted) == dict.fromkeys(wanted, "pass")


def test_exact_counts_at_the_one_sparsity_that_a_method_takes_are_no_fault(tmp_path):
    code = (
        "class Half(static.Static):\n    def __post_init__(self):\n        super().__post_init__()\n"
        "        if self.sparsity != 0.5:\n            raise ValueError('sparsity must be 0.5')\n"
    )
    wanted = ("sparsities", "last-update-hits-target")
    assert judge(tmp_path, code, *wanted) == dict.fromkeys(wanted, "pass")
    code = (
        "class Cap(static.Static):\n    def __post_init__(self):\n        super().__post_init__()\n"
        "        object.__setattr__(self, 'sparsity', min(self.sparsity, 0.9))\n"
    )
    assert judge(tmp_path, code, "sparsities") == {"sparsities": "FAIL"}


def test_gradients_that_a_later_round_of_scoring_reads_are_declared_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_BENCH_GRAPHS", "1")  # which is for GPUs
    code = (
        "class Twice(snip.SNIP):\n    def scoring(self):\n        return Scoring(order=1, rounds=2)\n"
        "    def setup(self, view):\n        if view.round == 0:\n            return all_active(view)\n"
        "        return super().setup(view)\n"
    )
    assert judge(tmp_path, code, "declared-scoring", "runs") == {"declared-scoring": "pass", "runs": "pass"}


def test_scores_by_running_statistics_are_held_to_them(tmp_path):
    code = "class Running(snip.SNIP):\n    batch_norm: str = 'running'\n    augment: bool = False\n"
    assert judge(tmp_path, code, "scoring-gradients") == {"scoring-gradients": "pass"}
    with mock.patch("benchmark.training.scoring.set_mode", lambda model, wanted: model.train()):
        assert judge(tmp_path, code, "scoring-gradients") == {"scoring-gradients": "FAIL"}


@pytest.mark.slow
def test_updates_at_every_step_are_no_fault(tmp_path):
    code = (
        "class Busy(rigl_itop.RigLITOP):\n    dense_grads: ClassVar[DenseGrads] = DenseGrads.EVERY_STEP\n"
        "    def update_steps(self, timeline):\n        return range(1, timeline.total_steps + 1)\n"
    )
    seen = judge(tmp_path, code, *(name for name in CHECKS if name != "two-processes"))
    assert not [name for name, verdict in seen.items() if verdict in ("FAIL", "not reached")], seen
    assert seen["clipping"] == "n/a"


def test_a_method_that_keeps_whole_outputs_is_no_fault(tmp_path):
    code = (
        "class Rows(snip.SNIP):\n    def setup(self, view):\n"
        "        rows = {n: (g * view.weights[n]).abs().flatten(1).sum(1) for n, g in view.gradients.items()}\n"
        "        return {n: (r >= r.median()).view(-1, *[1] * (view.weights[n].dim() - 1)).expand_as(view.weights[n])"
        " for n, r in rows.items()}\n"
    )
    assert judge(tmp_path, code, "fine-scores") == {"fine-scores": "pass"}


def test_a_setting_without_default_is_asked_for_by_name(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(BASE + "class Asks(static.Static):\n    depth: int\n")
    result = run_check(Kit(find_method(str(file)), str(file)), "runs")
    assert (result.verdict, "setting 'depth' has no default: give it with ARGS=depth=..." in result.seen) == (
        "FAIL",
        True,
    )
