"""The exploration rate: which weights were ever active, by hand, counted again, and over kills."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import benchmark.training.train as loop
from benchmark.training.masks import MaskSet, pack_all
from tests.harness.benches import TINY, Bench
from tests.harness.small import PRUNABLE, finish, make_run


def make_set(weights: int) -> MaskSet:
    return MaskSet({"w": nn.Parameter(torch.ones(weights))})


def put(masks: MaskSet, *bits: int) -> None:
    masks.commit({"w": torch.tensor(bits).bool()}, None)


def test_the_explored_share_by_hand():
    """Five weights: {0, 1}, then {1, 2}, then {0, 1} again, then {4}: explored 2, 3, 3 and 4 of 5."""
    masks = make_set(5)
    seen = []
    for bits in ((1, 1, 0, 0, 0), (0, 1, 1, 0, 0), (1, 1, 0, 0, 0), (0, 0, 0, 0, 1)):
        put(masks, *bits)
        seen.append(masks.explored_share())
    assert seen == [2 / 5, 3 / 5, 3 / 5, 4 / 5]


def test_nothing_is_explored_before_the_first_commit_and_all_once_a_network_is_dense():
    masks = make_set(4)
    assert masks.explored_share() == 0.0  # although every mask is True: none is in force yet
    put(masks, 1, 1, 1, 1)
    assert masks.explored_share() == 1.0
    put(masks, 1, 0, 0, 0)
    assert masks.explored_share() == 1.0


def test_a_refused_proposal_explores_nothing():
    masks = make_set(4)
    put(masks, 1, 0, 0, 0)
    with pytest.raises(Exception, match="exactly 1 of 4"):
        masks.commit({"w": torch.tensor([0, 1, 1, 1]).bool()}, 1)
    assert masks.explored_share() == 1 / 4


def test_stages_that_only_take_away_explore_nothing_of_their_own():
    """GraNet puts (pruned, grown) in force in turn; the pruned masks hold nothing that was not active before."""
    masks = make_set(6)
    put(masks, 1, 1, 1, 0, 0, 0)
    put(masks, 1, 1, 0, 0, 0, 0)  # pruned
    assert masks.explored_share() == 3 / 6
    put(masks, 1, 0, 0, 1, 0, 0)  # grown
    assert masks.explored_share() == 4 / 6


def test_exploration_is_kept_as_bits_and_comes_back():
    first, second = make_set(11), make_set(11)
    put(first, *[1] * 3, *[0] * 8)
    put(first, *[0] * 9, 1, 1)
    packed = pack_all(first.explored)
    assert packed["w"].numel() == 2  # eight weights to a byte
    second.load_packed(first.packed())
    assert second.explored_share() == 0.0  # masks that are loaded are not new to the run
    second.load_explored(packed)
    assert second.explored_share() == 5 / 11
    assert torch.equal(second.explored["w"], first.explored["w"])


def test_a_missed_update_explores_nothing_until_it_is_made_up_for(monkeypatch):
    """The first update, due at step 3, falls on a step that is not finite: the share changes at step 4."""
    run = make_run("rigl_itop", epochs=1)
    shares, original = [], loop.train_step

    def poisoned(run, images, *rest):
        result = original(run, images * float("inf") if run.step == 3 else images, *rest)
        shares.append(run.maskset.explored_share())
        return result

    monkeypatch.setattr(loop, "train_step", poisoned)
    finish(run)
    assert run.skipped_steps == 1
    start = run.maskset.active() / PRUNABLE
    assert shares[:3] == [start] * 3
    assert shares[3] > start


def test_a_record_has_the_share_of_every_epoch_and_a_narrowed_network_has_explored_all_of_itself(tmp_path):
    bench = Bench(tmp_path)
    assert bench("rigl,small_dense", arguments=TINY) == 0
    by_name = {record["method"]["name"]: [row["explored"] for row in record["history"]] for record in bench.records()}
    assert by_name["small_dense"] == [1.0, 1.0]
    assert 0.1 < by_name["rigl"][0] <= by_name["rigl"][1] < 1
