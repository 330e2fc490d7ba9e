"""Promises of `make perf`: variants take turns, verdicts follow from figures, and the peer does what it stands for."""

from __future__ import annotations

import json

import pytest
import torch

from benchmark.base.timing import time_in_turn
from benchmark.inference import passes
from benchmark.perf import __main__ as command
from benchmark.perf import data, pool, realised
from benchmark.perf.exact import count_differing
from benchmark.perf.goals import Goal
from benchmark.perf.masking import bytes_to_move, measure_net
from benchmark.perf.peers import Net, Peer, backward, make_batch, make_model, make_sgd, sparsify
from benchmark.perf.report import DOCUMENT, KEPT, put, render
from benchmark.perf.update import propose
from benchmark.training.masks import MaskSet

TINY = Net("ResNet-20", "cifar_resnet20", 4, 8)


def test_variants_take_turns_and_the_first_round_does_not_count():
    order = []
    times = time_in_turn({"a": lambda: order.append("a"), "b": lambda: (order.append("b"), 7.0)[1]}, 2)
    assert order == ["a", "b"] * 3
    assert times["b"] == [7.0, 7.0]  # it has timed a part of itself
    assert len(times["a"]) == 2


@pytest.mark.parametrize(
    ("relation", "measured", "verdict"),
    [
        ("<=", 1.0, "pass"),
        ("<=", 1.1, "short"),
        (">=", 1.0, "pass"),
        (">=", 0.9, "short"),
        ("", 5.0, ""),
        ("<=", float("nan"), "short"),
    ],
)
def test_a_goal_is_reached_or_short(relation, measured, verdict):
    assert Goal("P0", "x", measured, relation, 1.0).verdict == verdict


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    goals = [Goal("P1", "small", 1.0, "<=", 1.01), Goal("P2", "large", 3.0, "<=", 0.7)]
    assert set(command.find_measures()) >= {"data", "masking", "modes", "pool", "realised", "update"}
    monkeypatch.setattr(command, "find_measures", lambda: {"some": None})
    monkeypatch.setattr(command, "measure_alone", lambda name, quick: goals)
    monkeypatch.setattr("sys.argv", ["perf", "--quick"])
    before = torch.get_num_threads()
    command.main()
    torch.set_num_threads(before)
    assert "1 of 2 goals reached" in capsys.readouterr().out
    (path,) = (tmp_path / "results").glob("*.json")
    content = json.loads(path.read_text())
    assert [goal["verdict"] for goal in content["goals"]["some"]] == ["pass", "short"]
    assert content["quick"] is True and content["environment"]["threads"] >= 1


def test_a_tiny_network_goes_through_the_measurement():
    names = [(goal.name, goal.measured > 0) for goal in measure_net(TINY, 1, 1)]
    assert names == [("P1", True)] * 3 + [("P2", True)] * 3


def test_a_masked_step_must_move_every_value_once():
    assert bytes_to_move(2, 1) == 2 * 24 + 20


def test_realised_speed_goes_through_the_measurement_on_tiny_networks(monkeypatch):
    monkeypatch.setattr(passes, "SAMPLE_S", 0.0)
    clock = passes.Clock(torch.device("cpu"), 1)
    goals = [*realised.measure_net(TINY, 2, clock, 1), realised.measure_linear((64, 32), clock, 1)]
    assert [(goal.name, goal.relation, goal.limit) for goal in goals] == [
        ("P13", ">=", 0.85), ("P13", "<=", 1.2), ("P13", ">=", 3.0), ("P13", ">=", 5.0)
    ]  # fmt: skip
    assert all(goal.measured > 0 for goal in goals) and set(goals[0].details) == {"dense", "zeros", "slim"}


def test_the_driver_and_the_notes_of_a_pool_are_measured_as_shares_of_a_core(monkeypatch):
    monkeypatch.setattr(pool, "CELLS", 12)
    goals = pool.measure_driver()
    assert [(goal.unit, goal.limit, 0 < goal.measured < 100) for goal in goals] == [("%", 1.0, True)] * 2


def test_the_peer_keeps_weights_and_momentum_masked_and_our_update_its_counts():
    model = make_model(TINY)
    maskset, optimizer = sparsify(model, 0.8), make_sgd(model, False)
    peer = Peer(model, optimizer, maskset.masks)
    backward(model, *make_batch(TINY, 4))
    peer.step()
    for name, weight in peer.weights.items():
        off = peer.masks[name] == 0
        assert not weight[off].any() and not optimizer.state[weight]["momentum_buffer"][off].any()
    pruned, grown = propose(maskset)
    assert sum(int(m.sum()) for m in grown.values()) == int(0.95 * maskset.active())
    assert all(int(pruned[name].sum()) == int(grown[name].sum()) for name in grown)
    peer.update(int(0.95 * maskset.active()), 0.3)
    active = sum(int(mask.sum()) for mask in peer.masks.values())
    assert abs(active / (0.95 * maskset.active()) - 1) < 0.05  # it compares with a threshold, and loses ties


def test_a_few_images_go_through_the_measurement_and_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SERVED", 256)
    monkeypatch.setattr(data, "SMALL", 4)
    monkeypatch.setattr(data, "PHOTOS", 2)
    monkeypatch.setattr(data, "pass_seconds", lambda net, rounds: 1.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SPARSE_BENCH_CACHE", "off")
    goals = data.measure(True)
    assert [goal.name for goal in goals] == ["P6"] * 4 + ["P7"] * 3
    assert all(goal.measured > 0 for goal in goals)
    assert data.os.environ["SPARSE_BENCH_CACHE"] == "off" and list(tmp_path.iterdir()) == []


CONTENT = {
    "date": "2026-01-02",
    "environment": {"device_name": "Some CPU", "torch": "2.14.1"},
    "goals": {
        "a": [
            Goal("P2", "ResNet-20: mask / dense", 0.6912, "<=", 0.7).as_dict(),
            Goal("P2", "VGG-19: mask / dense", 0.912, "<=", 0.7).as_dict(),
            Goal("growth", "no limit", 5.0, "").as_dict(),
        ],
        "b": [
            Goal("P14", "VGG-19: extra", 1.5, "<=", 1.75).as_dict(),
            Goal("P1", "update", 0.5, "<=", 1.2, "s").as_dict(),
        ],
    },
}


def test_the_table_of_goals_has_a_row_for_each_goal_and_says_which_network_is_short():
    lines = render(CONTENT).splitlines()
    assert (
        lines[0] == "Measured by `make perf` on Some CPU, one thread unless said otherwise, torch 2.14.1, 2026-01-02."
    )
    assert lines[4:] == [
        "| P1 | update | ≤ 1.2 s | 0.5 s |",
        "| P2 | mask / dense | ≤ 0.7× | ResNet-20 0.691×, VGG-19 0.912× **short** |",
        "| P14 | extra | ≤ 1.75× | VGG-19 1.5× |",
    ]


def test_the_document_shows_the_figures_that_were_kept():
    kept, text = json.loads(KEPT.read_text()), DOCUMENT.read_text()
    assert put(text, render(kept)) == text
    assert not kept["quick"] and kept["git"]["dirty"] is False


def test_the_two_ways_to_mask_are_compared_bit_by_bit(monkeypatch):
    assert count_differing(TINY, True, 5e-4) == 0
    monkeypatch.setattr(MaskSet, "mask_gradients", lambda maskset: None)  # the comparison can fail
    assert count_differing(TINY, True, 5e-4) > 0
