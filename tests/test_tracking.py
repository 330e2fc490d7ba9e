"""Weights & Biases never stops or fails a run, and logs what it is asked to."""

from __future__ import annotations

import sys
import types

import pytest

from benchmark.errors import UserError
from benchmark.tracking import Tracker
from tests.test_runs import Bench, bench  # noqa: F401 (a fixture)


class Fake(types.ModuleType):
    """A stand-in for wandb that remembers, and fails where told to."""

    def __init__(self, fail: str = "", key: str | None = None) -> None:
        super().__init__("wandb")
        self.fail, self.logged, self.summary, self.finished, self.mode = fail, [], {}, False, ""
        self.api = types.SimpleNamespace(api_key=key)
        self.Settings = dict

    def may_fail(self, where: str) -> None:
        if self.fail == where:
            raise RuntimeError(f"{where} broke")

    def init(self, **settings):
        self.may_fail("init")
        self.mode = settings["mode"]
        return self

    def log(self, values, step):
        self.may_fail("log")
        self.logged.append((step, values))

    def finish(self):
        self.may_fail("finish")
        self.finished = True


def test_curves_and_summary_are_logged(bench, monkeypatch):  # noqa: F811
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert bench("static", arguments="epochs=2", wandb="offline") == 0
    assert [step for step, _ in fake.logged] == [21, 42]
    assert {"loss", "test_acc_pct", "density", "train_share"} <= set(fake.logged[0][1])
    assert fake.summary["status"] == "ok"
    assert fake.summary["accuracy_pct"] == bench.records()[0]["accuracy_pct"]
    assert fake.finished


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failing_tracker_costs_no_result_and_warns_once(bench, monkeypatch, where):  # noqa: F811
    monkeypatch.setitem(sys.modules, "wandb", Fake(fail=where))
    assert bench("static", arguments="epochs=2", wandb="offline") == 0
    assert len(bench.records()) == 1
    assert bench.shown.getvalue().count("W&B failed and is off for this run") == 1


def test_a_missing_tracker_costs_no_result(bench, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert bench("static", arguments="epochs=1", wandb="online") == 0
    assert "W&B failed" in bench.shown.getvalue()


def test_online_without_a_key_becomes_offline(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    fake, said = Fake(), []
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = Tracker("online", tmp_path, said.append)
    tracker.start("name", "group", {})
    assert fake.mode == "offline"
    assert "no key is set" in said[0]
    monkeypatch.setenv("WANDB_API_KEY", "key")
    tracker.start("name", "group", {})
    assert fake.mode == "online"


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match="WANDB must be one of off, offline, online"):
        Tracker("on", tmp_path, print)


@pytest.mark.slow
def test_the_real_library_writes_an_offline_run(bench):  # noqa: F811
    assert bench("static", arguments="epochs=1", wandb="offline") == 0
    assert "W&B failed" not in bench.shown.getvalue()
    assert list((bench.folder / "runs").rglob("*.wandb"))
