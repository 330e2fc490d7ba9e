"""Weights & Biases never stops or fails a run, and logs what it is asked to."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from datetime import datetime, timedelta, timezone

import pytest

from benchmark.base.errors import UserError
from benchmark.base.tracking import Tracker
from leaderboard.web import wandb_session as session
from tests.harness.benches import TINY

CLOSED = "http://127.0.0.1:9"  # nothing listens there
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
ROWS = [{"step": 21, "loss": 2.0}, {"step": 42, "loss": 1.0}]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Leave the variables of whoever runs the tests out of them."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


class Fake(types.ModuleType):
    """A stand-in for wandb that remembers, and fails where told to."""

    def __init__(self, fail: str = "", key: str | None = None) -> None:
        super().__init__("wandb")
        self.fail, self.logged, self.summary, self.finished, self.mode = fail, [], {}, False, ""
        self.api = types.SimpleNamespace(api_key=key)
        self.Settings, self.asked, self.step = dict, [], 0

    def may_fail(self, where: str) -> None:
        if self.fail == where:
            raise RuntimeError(f"{where} broke")

    def setup(self):
        return types.SimpleNamespace(settings=types.SimpleNamespace(base_url=CLOSED))

    def init(self, **arguments):
        self.may_fail("init")
        self.may_fail(arguments["mode"])
        self.mode = arguments["mode"]
        self.asked.append(arguments)
        return self

    def log(self, values, step):
        self.may_fail("log")
        self.logged.append((step, values))

    def finish(self):
        self.may_fail("finish")
        self.finished = True


def test_curves_and_summary_are_logged(bench, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert bench("static", arguments=TINY, wandb="offline") == 0
    assert [step for step, _ in fake.logged] == [4, 8]
    assert {"loss", "test_acc_pct", "density", "train_share"} <= set(fake.logged[0][1])
    assert fake.summary["status"] == "ok"
    (record,) = bench.records()
    assert [fake.summary[key] == record[key] for key in ("accuracy_pct", "time", "usage")] == [True] * 3
    assert "gpu" not in record["usage"] and record["usage"]["process_peak_bytes"] > 2**20
    assert fake.finished


@pytest.mark.parametrize("where", ["init", "log", "finish", "absent"])
def test_a_failing_or_missing_tracker_costs_no_result_and_warns_once(bench, monkeypatch, where):
    monkeypatch.setitem(sys.modules, "wandb", None if where == "absent" else Fake(fail=where))
    assert bench("static", arguments=TINY, wandb="offline") == 0
    assert len(bench.records()) == 1
    assert bench.shown.getvalue().count("W&B failed and is off for this run") == 1


def start(monkeypatch, folder, mode="offline", name="run", started=START, history=(), fake=None, alone=False):
    """Start a tracker on a stand-in; return that and what was said."""
    fake, said = fake or Fake(), []
    monkeypatch.setitem(sys.modules, "wandb", fake)
    Tracker(mode, folder, said.append, alone).start(name, "page", {}, started, history)
    return fake, said


def test_online_without_a_key_becomes_offline(tmp_path, monkeypatch):
    fake, said = start(monkeypatch, tmp_path, "online")
    assert fake.mode == "offline"
    assert "no key is set" in said[0] and f"wandb sync {tmp_path}/wandb" in said[0]
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setattr(session, "is_reachable", lambda url: True)
    assert start(monkeypatch, tmp_path, "online")[0].mode == "online"


def test_the_environment_of_wandb_wins_over_what_is_a_default_here(tmp_path, monkeypatch):
    (asked,) = start(monkeypatch, tmp_path)[0].asked
    assert (asked["project"], asked["group"], asked["name"]) == ("sparse-bench", "page", "run")
    assert (asked["dir"], asked["resume"], asked["settings"]["init_timeout"]) == (
        str(tmp_path),
        "allow",
        session.INIT_S,
    )
    for name in ("PROJECT", "RUN_GROUP", "DIR", "RESUME", "NAME", "RUN_ID", "INIT_TIMEOUT", "TAGS", "ENTITY", "NOTES"):
        monkeypatch.setenv(f"WANDB_{name}", "theirs")
    (asked,) = start(monkeypatch, tmp_path, alone=True)[0].asked
    assert [asked[key] for key in ("project", "group", "dir", "resume")] == [None] * 4
    assert (asked["id"], asked["name"], asked["settings"].get("init_timeout")) == ("theirs", "theirs", None)
    assert not asked.keys() & {"tags", "entity", "notes"}


def test_one_run_is_one_run_there_and_a_repeat_is_another(tmp_path, monkeypatch):
    def id_of(**more):
        return start(monkeypatch, tmp_path, **more)[0].asked[0]["id"]

    again = id_of()
    assert again == id_of() and len({again, id_of(name="other"), id_of(started=START + timedelta(seconds=1))}) == 3
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert id_of(alone=True) == "mine"
    assert id_of() == f"mine-{again}" != id_of(name="other")  # of a grid, whose runs must not become one
    monkeypatch.setenv("WANDB_NAME", "Title")
    assert start(monkeypatch, tmp_path)[0].asked[0]["name"] == "Title run"


def test_a_run_that_goes_on_has_its_whole_curve(tmp_path, monkeypatch):
    fake, _ = start(monkeypatch, tmp_path, history=ROWS)
    assert [step for step, _ in fake.logged] == [21, 42]
    online = Fake()
    online.step = 22  # the server has the first already
    assert [step for step, _ in start(monkeypatch, tmp_path, history=ROWS, fake=online)[0].logged] == [42]


@pytest.mark.parametrize(
    ("asked", "said", "mode"),
    [
        ("online", "offline", "offline"),
        ("online", "dryrun", "offline"),
        ("offline", "online", "offline"),
        ("online", "disabled", ""),
        ("off", "online", ""),
    ],
)
def test_a_mode_of_the_environment_takes_back_but_never_adds(tmp_path, monkeypatch, asked, said, mode):
    monkeypatch.setenv("WANDB_MODE", said)
    fake, told = start(monkeypatch, tmp_path, asked)
    assert fake.mode == mode and len(told) == (said == "disabled")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert start(monkeypatch, tmp_path, asked)[0].mode == ""


@pytest.mark.parametrize("reachable", [False, True])
def test_online_without_a_server_becomes_offline_with_one_line(tmp_path, monkeypatch, reachable):
    monkeypatch.setenv("WANDB_API_KEY", "abcdefgh1234")
    if reachable:  # it answers, and then fails
        monkeypatch.setattr(session, "is_reachable", lambda url: True)
    fake, said = start(monkeypatch, tmp_path, "online", history=ROWS, fake=Fake(fail="online"))
    assert fake.mode == "offline" and len(fake.logged) == 2
    (line,) = said
    assert ("online broke" if reachable else f"{CLOSED} cannot be reached") in line and "wandb sync" in line


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(session.urllib.request, "getproxies", dict)
    answer = threading.Event()
    monkeypatch.setattr(session.socket, "create_connection", lambda *_: [answer.wait(60), Closer()][1])
    assert not session.is_reachable("https://api.wandb.ai", 0.05)
    answer.set()
    asked = []
    monkeypatch.setattr(session.socket, "create_connection", lambda address, wait: asked.append(address) or Closer())
    for proxies in ({}, {"https": "http://proxy:3128"}, {"https": "proxy:3128"}):
        monkeypatch.setattr(session.urllib.request, "getproxies", lambda found=proxies: found)
        assert session.is_reachable("https://api.wandb.ai")
    assert session.is_reachable("http://localhost:8080/") and not session.is_reachable("http://localhost:x")
    assert asked == [("api.wandb.ai", 443), ("proxy", 3128), ("proxy", 3128), ("localhost", 8080)]


class Closer:
    def close(self) -> None:
        pass


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match="WANDB must be one of off, offline, online"):
        Tracker("on", tmp_path, print)


@pytest.mark.slow
def test_the_real_library_online_without_a_network_keeps_the_logs_and_costs_seconds(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    began, said = time.monotonic(), []
    for history in ((), ROWS):  # the second goes on
        tracker = Tracker("online", tmp_path, said.append)
        tracker.start("run", "page", {}, START, history)
        tracker.log({"loss": 0.5}, 63)
        tracker.finish({"status": "ok"})
        time.sleep(1)  # folders are named by the second
    assert time.monotonic() - began < 60
    files = sorted(tmp_path.rglob("*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1  # one id
    assert len(said) == 2 and all(f"wandb sync {path.parent}" in line for path, line in zip(files, said, strict=True))
