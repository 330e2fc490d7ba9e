"""What is done for speed changes no bit: passes recorded, a host that does not wait, gradients masked once a step."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import benchmark.training.train as loop
from benchmark.base.buffers import KeptBuffers
from benchmark.base.errors import UserError
from benchmark.base.system import cuda_available
from benchmark.config.cells import Cell
from benchmark.config.pages import load_page
from benchmark.config.plugins import find_method
from benchmark.conformance.trial import Silent, snapshot
from benchmark.data.sets import load_data
from benchmark.networks.build import build, place
from benchmark.runs.checkpoints import load_checkpoint, save_checkpoint
from benchmark.runs.run import prepare, set_up_masks
from benchmark.training import cuda_graphs
from benchmark.training import step as loop_step
from benchmark.training.optim import learning_rate, make_optimizer
from benchmark.training.precision import set_determinism
from benchmark.training.state import Training
from benchmark.training.train import train
from tests.harness.small import BATCH, IMAGES, SmallNet, finish, make_page, make_run, poison

# --- passes that are recorded and replayed ----------------------------------------------------------------------------


def record_by_hand(compute):
    """Stand in for a GPU: a replay computes anew, into the very tensors of the recording, and sees no other input.

    As with a graph, a recording runs the passes more than once (the warm-up) before the first replay.
    """
    for _ in range(cuda_graphs.WARM_UP):
        compute()
    parameters = compute.func.__self__.parameters  # of the GraphedPasses that asks
    logits, loss = (result.detach().clone() for result in compute())
    gradients = [parameter.grad for parameter in parameters]

    def replay():
        new = compute()
        logits.copy_(new[0].detach())
        loss.copy_(new[1].detach())
        for gradient, parameter in zip(gradients, parameters, strict=True):
            if gradient is not None:
                gradient.copy_(parameter.grad)

    return (logits, loss), replay


class DropNet(SmallNet):
    """The small network with dropout before its classifier, and a layer that never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


@pytest.fixture
def by_hand(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "record_on_gpu", record_by_hand)


def start(name: str, recorded: bool, bad: set[int] = frozenset(), net=None, **page) -> Training:
    """Return a run in which the images of the steps `bad` are infinite."""
    run = make_run(name, 0.5, **page)
    run.waits, run.graphs = False, recorded
    if net is not None:
        run.model.__class__ = net
        run.model.drop = nn.Dropout(0.3)
    if bad:
        images = run.data.train
        usual = images.epoch

        def epoch(*arguments):
            for number, (batch, labels) in enumerate(usual(*arguments)):
                step = run.epoch * len(range(0, IMAGES, BATCH)) + number + 1
                yield batch * math.inf if step in bad else batch, labels

        images.epoch = epoch
    return run


def run_both(name: str, **settings) -> tuple[Training, Training]:
    plain, recorded = (finish(start(name, recorded, **settings)) for recorded in (False, True))
    assert recorded.graphed is not None and recorded.graphed.recording is not None
    return plain, recorded


@pytest.mark.parametrize("name", ["rigl", "snip"])
def test_methods_of_every_kind_get_the_same_bits(name, by_hand):
    plain, recorded = run_both(name)
    assert snapshot(recorded).differences(snapshot(plain)) == []
    assert recorded.history == plain.history


@pytest.mark.parametrize(
    "page",
    [{"batch_size": 20}, {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.1}],
    ids=["a smaller last batch", "AdamW, clipped"],
)
def test_every_recipe_gets_the_same_bits(page, by_hand):
    plain, recorded = run_both("granet", drop_last=False, **page)
    assert snapshot(recorded).differences(snapshot(plain)) == []


def test_a_run_that_goes_on_at_a_short_last_batch_records_the_usual_one_after_it():
    passes = cuda_graphs.GraphedPasses(lambda images, labels: (images * 2, labels.sum()), [], [], record_by_hand)
    recorded = []
    for size in (2, 4, 3, 4):
        assert torch.equal(passes(torch.ones(size), torch.ones(size))[0], 2 * torch.ones(size))
        recorded.append(len(passes.recording.images))
    assert recorded == [2, 4, 4, 4]


def test_an_update_that_is_skipped_is_not_charged_for_what_it_read(monkeypatch):
    run = make_run("sis")
    monkeypatch.setattr(loop_step, "read_moments", lambda run: ({"conv1.weight": torch.ones(9)}, 8))
    before = run.meter.state()
    assert not loop_step.update_masks(run, None, None, torch.tensor(False))
    assert run.meter.state() == before


def test_dropout_draws_the_same_numbers(by_hand):
    plain, recorded = run_both("rigl", net=DropNet)
    assert snapshot(recorded).differences(snapshot(plain)) == []


def test_steps_that_are_not_finite_leave_no_trace(by_hand):
    plain, recorded = run_both("granet", bad={1, 3, 8})
    assert snapshot(recorded).differences(snapshot(plain)) == []
    assert recorded.skipped_steps == plain.skipped_steps == 3


def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(by_hand, tmp_path):
    whole = start("granet", True)
    train(whole, Silent(), lambda _: None, lambda run: save_checkpoint(tmp_path / str(run.step), run.state()))
    for step, recorded in ((4, True), (11, False)):
        again = start("granet", recorded)
        again.load_state(load_checkpoint(tmp_path / str(step)))
        finish(again)
        assert snapshot(again).differences(snapshot(whole)) == []


def test_a_network_that_cannot_be_recorded_is_refused_with_the_way_out(monkeypatch):
    def fail(compute):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "record_on_gpu", fail)
    with pytest.raises(UserError, match=r"not permitted when stream is capturing.*unset SPARSE_BENCH_GRAPHS"):
        finish(start("set", True))


def test_asking_is_refused_where_there_can_be_no_recording(monkeypatch):
    cuda = torch.device("cuda")
    assert not cuda_graphs.wants_graphs(make_page(), torch.device("cpu"))
    monkeypatch.setenv(cuda_graphs.ASKED, "1")
    assert cuda_graphs.wants_graphs(make_page(), cuda)
    with pytest.raises(UserError, match="this run is on the cpu; unset SPARSE_BENCH_GRAPHS"):
        cuda_graphs.wants_graphs(make_page(), torch.device("cpu"))
    with pytest.raises(UserError, match="compile=true makes graphs of its own"):
        cuda_graphs.wants_graphs(make_page(compile=True), cuda)
    monkeypatch.setattr(cuda_graphs, "count_ranks", lambda: 2)
    with pytest.raises(UserError, match="several processes"):
        cuda_graphs.wants_graphs(make_page(), cuda)


@pytest.mark.parametrize(("name", "recorded"), [("granet", True), ("str", False)])
def test_a_run_that_is_left_gives_its_memory_back_at_once(name, recorded, by_hand):
    """The one after its end, the other before, while thresholds weigh its weights."""
    run = start(name, recorded, epochs=1)
    if recorded:
        finish(run)
    model = weakref.ref(run.model)
    gc.disable()  # no cycle is found by chance
    try:
        del run
        assert model() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["granet", "rigl"])
def test_on_a_gpu_a_real_graph_gives_the_same_bits(name, monkeypatch, tmp_path):
    device = torch.device("cuda")
    page = load_page("digits_resnet20", {"epochs": 2})
    data = load_data(page, tmp_path, device)
    runs = []
    for asked in ("", "1"):
        monkeypatch.setenv(cuda_graphs.ASKED, asked)
        set_determinism(page, device)
        plugin = find_method(name)
        cell = Cell("digits_resnet20", page, {}, plugin, plugin.build(page, 0.9, {}), {}, 0.9, 0)
        run = prepare(cell, place(build(cell, data), cell.page, device), data, device)
        set_up_masks(cell, run)
        train(run, Silent(), lambda _: None)
        runs.append(run)
    assert runs[1].graphed is not None and runs[1].graphed.recording is not None
    assert snapshot(runs[1]).differences(snapshot(runs[0])) == []


# --- a host that does not wait for the device, also where steps are not finite ----------------------------------------


def start_waiting(name: str, waits: bool, bad: set[int], **page) -> Training:
    """Return a run in which the images of the steps `bad` are infinite."""
    run = poison(make_run(name, **page), bad)
    run.waits = waits
    return run


OPTIMIZERS = {
    "sgd": {},
    "sgd, clipped": {"clip_norm": 0.5},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5},
}


SOME = {2, 3, 4, 5, 12}  # two of them with updates


@pytest.mark.parametrize(
    ("name", "bad", "page"),
    [
        *(("granet", SOME, page) for page in OPTIMIZERS.values()),
        ("rigl", SOME, {}),
        ("granet", {1}, {}),
        ("rigl", set(), {}),
    ],
    ids=[*OPTIMIZERS, "rigl", "the first step", "all finite"],
)
def test_a_run_that_does_not_wait_has_the_bits_of_one_that_does(name, bad, page):
    waiting, other = (finish(start_waiting(name, waits, bad, **page)) for waits in (True, False))
    assert snapshot(other).differences(snapshot(waiting)) == []
    assert other.skipped_steps == waiting.skipped_steps == len(bad)
    assert (other.history, other.updates) == (waiting.history, waiting.updates)


def test_a_checkpoint_counts_the_steps_skipped_so_far(tmp_path):
    whole, seen = start_waiting("granet", False, {2, 9}), []

    def save(run):
        save_checkpoint(tmp_path / str(run.step), run.state())
        seen.append((run.step, run.skipped_steps))

    train(whole, Silent(), lambda _: None, save)
    assert seen[:3] == [(1, 0), (2, 1), (3, 1)] and seen[-1] == (24, 2)
    for step in (2, 9):
        again = start_waiting("granet", False, {2, 9})
        again.load_state(load_checkpoint(tmp_path / str(step)))
        finish(again)
        assert snapshot(again).differences(snapshot(whole)) == []
        assert again.skipped_steps == 2


def test_without_waiting_the_host_asks_the_device_for_nothing_between_updates(monkeypatch):
    """Every question to the device goes through item(), bool() or int(): none is asked in a step without an update."""
    run, asked = start_waiting("granet", False, set(), epochs=1), []  # an update at step 3, none at the last step
    original = loop.train_step

    def counted(run, images, labels, criterion, due):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
                usual = getattr(torch.Tensor, name)
                patch.setattr(torch.Tensor, name, lambda t, usual=usual: (asked.append(run.step), usual(t))[1])
            return original(run, images, labels, criterion, due)

    monkeypatch.setattr(loop, "train_step", counted)
    finish(run)
    assert set(asked) == {3}


class Launches(TorchDispatchMode):
    """Counts the operators that compute something."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "split" not in str(func)  # a view is no launch
        return func(*args, **(kwargs or {}))


def test_buffers_are_kept_and_put_back_to_the_bit_in_as_few_launches_as_there_are_dtypes():
    old = [torch.tensor([1.0, math.nan]), torch.tensor(3), torch.ones(2, 3, 2, 2), torch.tensor([True, False])]
    old[2] = old[2].to(memory_format=torch.channels_last)
    old += [torch.full((5,), float(number)) for number in range(100)]
    buffers = [buffer.clone() for buffer in old]
    kept = KeptBuffers(buffers)
    for fine in (None, torch.tensor(False), torch.tensor(True)):
        with Launches() as launches:
            kept.keep()
        assert launches.count == 4  # float32, int64, bool, and what is channels last
        new = [buffer.fill_(math.inf) if buffer.is_floating_point() else buffer.zero_() for buffer in buffers]
        new = [buffer.clone() for buffer in new]
        with Launches() as launches:
            kept.put_back(unless=fine)
        assert launches.count <= 3 * 4
        expected = new if fine is not None and fine else old
        for buffer, other in zip(buffers, expected, strict=True):
            assert torch.equal(buffer.nan_to_num(), other.nan_to_num())
            assert torch.equal(buffer.isnan(), other.isnan()) and buffer.stride() == other.stride()


def test_on_a_card_attention_is_computed_repeatably_where_the_page_asks_for_it():
    ways = ("flash_sdp", "mem_efficient_sdp", "cudnn_sdp")
    try:
        for page, kind, fused in (({}, "cuda", False), ({"deterministic": False}, "cuda", True), ({}, "cpu", True)):
            set_determinism(make_page(**page), torch.device(kind))
            assert [getattr(torch.backends.cuda, f"{way}_enabled")() for way in ways] == [fused] * 3
    finally:
        set_determinism(make_page(), torch.device("cpu"))


# --- masking the gradients once a step: all else that could be masked stays what it is --------------------------------


SETTINGS = {
    "sgd": {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "sgd, momentum": {"nesterov": False, "weight_decay": 5e-3},
    "sgd, clipped": {"nesterov": True, "weight_decay": 5e-3, "clip_norm": 0.5},
    "adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 5e-3},
    "adamw, clipped": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 5e-2, "clip_norm": 0.5},
}


def mask_everything(run: Training, masks: dict) -> None:
    """Multiply weights and every state of theirs by the masks."""
    with torch.no_grad():
        for name, weight in run.maskset.weights.items():
            weight *= masks[name]
            for state in run.optimizer.state[weight].values():
                if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                    state *= masks[name]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_masked_gradients_alone_give_the_bits_of_masking_everything_at_every_step(settings):
    """The second run is written out: mask, clip by the norm of what is left, step, mask again, to the first's masks."""
    ours, theirs = (make_run("rigl_itop", epochs=8, **settings) for _ in range(2))
    committed: dict[int, dict] = {}
    original = ours.maskset.commit

    def commit(proposed, *rest):
        original(proposed, *rest)
        committed[ours.step] = {name: mask.clone() for name, mask in ours.maskset.masks.items()}

    ours.maskset.commit = commit
    finish(ours)
    assert len(committed) >= 4 and ours.timeline.total_steps == 48

    page, masks, step = theirs.page, {n: m.clone() for n, m in theirs.maskset.masks.items()}, 0
    theirs.optimizer = make_optimizer(page, theirs.model)
    theirs.model.train()
    for epoch in range(page.epochs):
        for group in theirs.optimizer.param_groups:
            group["lr"] = learning_rate(page, epoch)
        for images, labels in theirs.data.train.epoch(0, epoch, BATCH, False, None):
            step += 1
            theirs.optimizer.zero_grad()
            nn.functional.cross_entropy(theirs.model(images), labels).backward()
            for name, weight in theirs.maskset.weights.items():
                weight.grad *= masks[name]
            if page.clip_norm:
                nn.utils.clip_grad_norm_(theirs.model.parameters(), page.clip_norm)
            theirs.optimizer.step()
            masks = committed.get(step, masks)
            mask_everything(theirs, masks)
    for name, weight in ours.model.named_parameters():
        assert torch.equal(weight, theirs.model.get_parameter(name)), name
    for name, weight in ours.maskset.weights.items():
        other = theirs.optimizer.state[theirs.maskset.weights[name]]
        for key, state in ours.optimizer.state[weight].items():
            if isinstance(state, torch.Tensor) and state.shape == weight.shape:
                assert torch.equal(state, other[key]), (name, key)
                assert not state[~ours.maskset.masks[name]].any(), (name, key)
