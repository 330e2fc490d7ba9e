"""Promises of the training loop that no check of the conformance kit holds: schedules, and costs worked by hand."""

from __future__ import annotations

import pytest

from tests.harness.small import BATCH, IMAGES, finish, make_run


def test_rigl_replaces_the_step_and_granet_does_not():
    for name, expected in (("rigl", True), ("granet", False), ("rigl_itop", False), ("set", False)):
        run = make_run(name, changes={"update_every": 4}, epochs=1)
        stepped = []
        original = run.optimizer.step
        run.optimizer.step = lambda stepped=stepped, run=run, original=original: (stepped.append(run.step), original())
        finish(run)
        assert (4 not in stepped) == expected, name


def test_learning_rate_drops_where_the_page_says():
    run = finish(make_run("static", epochs=8, lr=0.1, lr_drops=[0.5, 0.75]))
    assert [row["lr"] for row in run.history] == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


def test_warm_up_rises_by_equal_parts():
    run = finish(make_run("static", epochs=4, lr=0.6, warmup_epochs=2, lr_drops=[1.0]))
    assert [row["lr"] for row in run.history] == pytest.approx([0.2, 0.4, 0.6, 0.6])


def test_the_meter_charges_each_step_at_the_masks_then_in_force():
    """An independent recount: 6 steps of 8 images per epoch, an update every 3 steps."""
    run = make_run("granet", 0.8, epochs=2)
    counts = {0: run.maskset.counts()}  # by the step after which they are in force
    original = run.maskset.commit

    def spy(*rest):
        original(*rest)
        counts[run.step] = run.maskset.counts()

    run.maskset.commit = spy
    finish(run)
    area = 36  # 6 x 6 output positions; one weight of a convolution is used once per position

    def forward(active):
        return area * (active["conv1.weight"] + active["conv2.weight"]) + active["fc.weight"]

    dense = area * 288 + 24
    expected, current = 0, 0
    for step in range(1, 13):
        due = step in (3, 6, 9)  # 12 is the last step of the run: nothing grown there would be trained
        expected += BATCH * (2 * forward(counts[current]) + (dense if due else forward(counts[current])))
        current = step if due else current
    assert list(counts) == [0, 3, 6, 9]
    assert run.meter.train == expected
    assert run.meter.train_dense == 3 * dense * IMAGES * 2
