"""Promises of what is decided for speed: it changes no number that it is not asked to change."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmark.base.console import format_time
from benchmark.base.errors import UserError
from benchmark.config.cells import Cell
from benchmark.config.plugins import find_method
from benchmark.conformance.trial import Silent
from benchmark.data import readers
from benchmark.runs import run
from benchmark.runs.run import set_up_masks
from benchmark.training import speed
from benchmark.training.precision import choose_precision
from benchmark.training.speed import choose_threads, probe_precision, warn_slow
from benchmark.training.train import train
from tests.harness.benches import TINY
from tests.harness.small import make_page, make_training

CPU = torch.device("cpu")


def test_small_steps_use_one_thread_and_large_ones_as_many_as_usual(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(speed, "USUAL_THREADS", 7)
    assert choose_threads(5e8, CPU) == 1  # the digits page: 2.5e6 x 3 x 64
    assert choose_threads(1.6e10, CPU) == 7  # ResNet-20 on 128 images of 32x32
    assert choose_threads(5e8, torch.device("cuda")) == 7
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert choose_threads(5e8, CPU) == 7  # a user who asks for threads has them


def test_a_continued_run_has_the_threads_it_was_begun_with():
    plugin = find_method("static")
    first = make_training(plugin.build(make_page(), 0.5, {}))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        state = first.state()
        torch.set_num_threads(1)
        first.load_state(state)
        assert torch.get_num_threads() == 2
        del state["threads"]  # as an earlier version wrote it
        torch.set_num_threads(1)
        first.load_state(state)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_the_probe_takes_the_faster_precision_and_leaves_everything_as_it_was(monkeypatch, faster):
    original = speed.time_step

    def timed(model, images, precision):
        original(model, images, precision)
        return 1.0 if precision == faster else 2.0

    monkeypatch.setattr(speed, "time_step", timed)
    made = make_training(find_method("static").build(make_page(), 0.5, {}))
    model = made.model
    before = [tensor.clone() for tensor in model.state_dict().values()]
    random_state = torch.get_rng_state()
    assert probe_precision(made) == faster
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_probe_s_passes_are_as_large_as_the_run_s_and_what_it_tells_are_steps(monkeypatch):
    sizes = []
    monkeypatch.setattr(speed, "time_step", lambda model, images, precision: sizes.append(len(images)) or 2.0)
    made = make_training(find_method("static").build(make_page(), 0.5, {}))
    made.page = dataclasses.replace(made.page, batch_size=14, accumulate=3)
    assert speed.time_precisions(made, 1) == {"fp32": 6.0, "bf16": 6.0} and set(sizes) == {5}
    monkeypatch.setattr(speed, "count_ranks", lambda: 2)
    assert speed.time_precisions(made, 1) == {"fp32": 6.0, "bf16": 6.0} and sizes[-1] == 3


def test_the_fastest_precision_is_recorded_and_kept_by_a_run_that_goes_on(bench, monkeypatch):
    chosen = iter(["bf16", "fp32"])  # the second time the probe would choose otherwise
    monkeypatch.setattr(run, "probe_precision", lambda *rest: next(chosen))
    arguments = f"{TINY} precision=fastest"
    bench.break_off("make_record", "static", arguments=arguments)
    assert bench("static", arguments=arguments) == 0
    (record,) = bench.records()
    assert record["environment"]["precision"] == "bf16"
    assert record["page"]["changed"]["precision"] == record["page"]["settings"]["precision"] == "fastest"
    assert choose_precision(make_page(), CPU) == "fp32"  # auto


def test_digits_are_scikit_learn_s_to_the_last_value(monkeypatch):
    from sklearn import datasets

    images, labels = readers.load_digits()
    theirs = datasets.load_digits()
    assert np.array_equal(images, theirs.images) and np.array_equal(labels, theirs.target)
    monkeypatch.setattr(readers, "STORED", Path("elsewhere"))
    again = readers.load_digits()
    assert np.array_equal(images, again[0]) and np.array_equal(labels, again[1])


def compiled_run(monkeypatch, backend: str):
    """Train GraNet for 24 steps and 7 updates, every step compiled; a second compilation is an error."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    page = {"compile": True, "drop_last": True}
    plugin = find_method("granet")
    made = make_training(plugin.build(make_page(**page), 0.8, {}), "granet", 0, **page)
    set_up_masks(Cell("small", made.page, {}, plugin, made.method, {}, 0.8, 0), made)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        train(made, Silent(), lambda _: None)
    return made


def test_changing_masks_compiles_nothing_again(monkeypatch):
    made = compiled_run(monkeypatch, "eager")
    assert made.updates == 7
    plain = make_training(made.method, "granet")
    set_up_masks(Cell("small", plain.page, {}, find_method("granet"), plain.method, {}, 0.8, 0), plain)
    train(plain, Silent(), lambda _: None)
    assert made.maskset.sha256() == plain.maskset.sha256()  # the graph is torch's own: the same operators
    assert list(made.model.state_dict()) == list(plain.model.state_dict())


@pytest.mark.slow
def test_changing_masks_compiles_nothing_again_with_the_usual_compiler(monkeypatch):
    made = compiled_run(monkeypatch, "inductor")
    assert made.updates == 7 and made.skipped_steps == 0
    assert made.maskset.active() == round(0.2 * made.maskset.total)


def test_slow_bf16_is_told_once_before_training_with_both_times_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(speed, "has_bf16", lambda device: False)
    monkeypatch.setattr(speed, "time_step", lambda model, images, precision: {"bf16": 100.0, "fp32": 1.0}[precision])
    made = make_training(find_method("static").build(make_page(), 0.5, {}), precision="bf16")
    made.precision = "bf16"
    steps, told, said = made.timeline.steps_per_epoch, set(), []
    for _ in range(2):
        warn_slow(made, told, said.append)
    (text,) = said
    assert text.startswith(f"this processor has no bf16 instructions: an epoch of {steps} steps takes")
    assert f"about {format_time(100 * steps)} in bf16, {format_time(steps)} in fp32" in text
    assert "PRECISION=fp32" in text and "a table of its own" in text and "\n" not in text

    def fail(*_):
        raise torch.OutOfMemoryError("fp32")

    monkeypatch.setattr(speed, "time_step", fail)  # advice costs no run, nor do ranks that would wait for each other
    for ranks in (1, 2):
        monkeypatch.setattr(speed, "count_ranks", lambda ranks=ranks: ranks)
        warn_slow(made, set(), said.append)
        assert said[-1].startswith("this processor has no bf16 instructions: fp32 may be faster. PRECISION=fp32")
    for precision, has in (("fp32", False), ("bf16", True)):
        made.precision = precision
        monkeypatch.setattr(speed, "has_bf16", lambda device, has=has: has)
        warn_slow(made, set(), lambda text: pytest.fail(text))


@pytest.mark.parametrize(
    ("flags", "has"),
    [({"avx512_f": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True)],
)
def test_a_processor_is_known_by_its_instructions(monkeypatch, flags, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    assert speed.has_bf16(CPU) is has


def test_compiling_without_a_compiler_is_refused_before_training_with_the_way_out(bench, monkeypatch):
    def fail(function, dynamic):
        raise RuntimeError("\nNo working C++ compiler found\nand pages of advice")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UserError, match=r"compile=true: torch cannot compile \(No working C\+\+ compiler found\).*CXX"):
        bench("static", arguments=f"{TINY} compile=true")
    assert bench.records() == []
