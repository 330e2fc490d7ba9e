"""What the engine promises on an accelerator, tried on the stand-in.

`python -m tests.harness.on_accelerator OUT NAMES` tries the promises of these names. Each is a function that asserts;
OUT gets, as JSON, an empty text for each that is kept and else what was wrong.
The device in use is the stand-in's second and every run asks for the first, so a tensor that is made on "the
accelerator" instead of the run's device is a mixture and raises.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

import benchmark.conformance.trial
import benchmark.runs.run as engine
import benchmark.training.step as stepping
import benchmark.training.train as loop
from benchmark.base.system import choose_device, to_cpu
from benchmark.config.cells import Cell
from benchmark.config.plugins import find_method, method_names
from benchmark.conformance.checks import CHECKS, run_checks
from benchmark.conformance.nets import make_data, make_kit_page, make_network
from benchmark.conformance.trial import Kit, Silent, snapshot
from benchmark.data.sets import MemoryImages
from benchmark.networks.build import Built, place
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers
from benchmark.runs.checkpoints import load_checkpoint, save_checkpoint
from benchmark.runs.export import export_network, read_export
from benchmark.training.rehearsal import stand_in_donor
from benchmark.training.state import Training
from methods.core import count_kept
from tests.harness import accelerator
from tests.harness.benches import Bench, ask
from tests.harness.images import write_folder

CPU = torch.device("cpu")
SLOW = ("sis", "imp")
# Waits of an update on a network of three layers: one, whether the step is finite and all that the engine checks of
# the proposal, and more where a method has to know numbers before it can go on.
MORE = {
    "granet": 1,  # how many weights of each layer the pruning left, which growth keeps
    "granet_late": 1,
    "deep_r": 1,  # how many changed their sign
    "gmp_structured": 1,  # the sizes of filters, which are fitted in one by one
    "str": 1,  # the shift of the thresholds
    "set": 3,  # counts of positive, of negative and of kept weights
    "granet_structured": 5,  # the filters that are alive, fitted in twice
    "dsr": 5,  # its threshold, and for each layer whether any weight is left
    "snfs": 6,  # when it last exchanged, and each layer's mean momentum
    "srigl": 10,  # five numbers of each layer with a fan-in
    "sis": 10**6,  # once in a run: its solver asks whether it is near enough
}
PROMISES: dict[str, Callable[[], None]] = {}


def promise(function: Callable[[], None]) -> Callable[[], None]:
    """Register a promise under its function's name."""
    PROMISES[function.__name__] = function
    return function


def on_device(images: MemoryImages, device: torch.device) -> MemoryImages:
    """Return a part of the kit's data on a device, augmented batch by batch as on a CPU."""
    moved = copy.copy(images)
    for name in ("stored", "stored_labels", "mean", "std"):
        setattr(moved, name, getattr(images, name).to(device))
    return moved


def make(name: str, device: torch.device, net: str = "conv", drop: float = 0.0, **page: Any) -> Training:
    """Return a run of a method on a network of the kit, its first masks committed; `drop`: before the classifier."""
    settings = {"epochs": 2, **page}
    kit, kit_page = Kit(find_method(name)), make_kit_page(**settings)
    method, data, model = kit.method(0.8, **settings), make_data(kit_page), make_network(net, 0)
    layers = find_layers(model, kit_page)
    costs = count_costs(model, layers, (data.channels, data.image_size, data.image_size))
    data = dataclasses.replace(data, train=on_device(data.train, device), test=on_device(data.test, device))
    numbers = sum(weight.numel() for weight in model.parameters())
    built = place(Built(model, layers, costs, costs, numbers, numbers, 1.0, False), kit_page, device)
    if drop:
        hidden = built.model.get_submodule(layers[-1].name.removesuffix(".weight"))
        hidden.register_forward_pre_hook(lambda module, inputs: functional.dropout(inputs[0], drop, module.training))
    weights = {layer.name: built.model.get_parameter(layer.name) for layer in layers if layer.prunable}
    cell = Cell("kit", kit_page, {}, kit.plugin, method, {}, method.sparsity, 0, stand_in_donor(method, weights))
    run = engine.prepare(cell, built, data, device)
    engine.set_up_masks(cell, run)
    return run


def poison(run: Training, steps: set[int]) -> Training:
    """Make the images of these steps infinite."""
    run.model.register_forward_pre_hook(
        lambda module, inputs: inputs[0] * torch.inf if module.training and run.step in steps else inputs[0]
    )
    return run


def finish(run: Training, after_step: Any = None) -> Training:
    loop.train(run, Silent(), lambda _: None, after_step)
    return run


Steps = dict[int, tuple[bool, list[accelerator.Wait]]]  # whether an update was due, and the waits, of each step


@contextlib.contextmanager
def watching() -> Iterator[Steps]:
    """Give the waits of every training step."""
    seen: Steps = {}
    original = loop.train_step

    def watched(run: Training, images: Tensor, labels: Tensor, criterion: Any, due: bool) -> Tensor:
        due_now = due or run.update_pending
        with accelerator.watch() as waits:
            totals = original(run, images, labels, criterion, due)
        seen[run.step] = due_now, waits
        return totals

    with mock.patch.object(loop, "train_step", watched):
        yield seen


def compare(one: Training, other: Training) -> None:
    """Assert that two runs ended alike, wherever they were trained."""
    states = [dataclasses.asdict(snapshot(run)) for run in (one, other)]
    for (kind, mine), theirs in zip(states[0].items(), to_cpu(states[1]).values(), strict=True):
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), f"{kind} {name}"
    assert one.history == other.history and one.meter.train == other.meter.train
    assert (one.skipped_steps, one.updates) == (other.skipped_steps, other.updates)


def check_waits(name: str, steps: Steps) -> None:
    for number, (due, waits) in steps.items():
        most = 1 + MORE.get(name, 0) if due else 0
        assert len(waits) <= most, f"{name}, step {number}: {len(waits)} waits, {[str(one) for one in waits]}"


def check_methods(names: list[str]) -> None:
    faults = []
    for name in names:
        try:
            with watching() as steps:
                run = finish(make(name, DEVICE))
            compare(finish(make(name, CPU)), run)
            check_waits(name, steps)
        except Exception:  # all methods are tried
            faults.append(f"{name}: {traceback.format_exc(limit=-3)}")
    assert not faults, "\n".join(faults)


# --- the promises -----------------------------------------------------------------------------------------------------


@promise
def every_method_trains_to_the_cpus_bits_and_waits_only_in_updates() -> None:
    check_methods([name for name in method_names() if name not in SLOW])


@promise
def slow_methods_do_too() -> None:
    check_methods(list(SLOW))


@promise
def steps_that_are_not_finite_are_skipped_without_a_wait() -> None:
    adamw = {"optimizer": "adamw", "lr": 0.01, "clip_norm": 0.5}
    for name, page in (("granet", {"clip_norm": 0.5}), ("top_kast", adamw), ("str", {"ema_decay": 0.0})):
        with watching() as steps:
            run = finish(poison(make(name, DEVICE, **page), {1, 4, 6, 7}))
        compare(finish(poison(make(name, CPU, **page), {1, 4, 6, 7})), run)
        assert run.skipped_steps == 4
        check_waits(name, steps)


@promise
def bf16_trains_under_the_devices_own_autocast() -> None:
    run = make("granet", DEVICE, precision="bf16")
    images, _ = next(run.data.train.epoch(0, 0, 8, False, DEVICE))
    with run.autocast():
        assert run.forward(images).dtype == torch.bfloat16
    finish(run)
    assert run.history[-1]["loss"] is not None and run.maskset.active() == count_kept(0.8, run.maskset.total)


@promise
def waits_outside_of_steps_do_not_grow_with_the_layers() -> None:
    for name in ("granet", "top_kast", "str"):
        seen, layers = [], []
        for net in ("conv", "vit"):
            run = make(name, DEVICE, net)
            with watching() as steps, accelerator.watch() as all_waits:
                finish(run)
            with accelerator.watch() as checkpoint:
                run.state()
            with accelerator.watch() as export, tempfile.TemporaryDirectory() as folder:
                export_network(run.evaluated().state_dict(), run.maskset.masks, Path(folder), {})
                read_export(Path(folder))
            with accelerator.watch() as digest:
                run.maskset.sha256()
            epochs = len(all_waits) - sum(len(waits) for _, waits in steps.values())
            seen.append([epochs // run.page.epochs, *map(len, (checkpoint, export, digest))])
            layers.append(len(run.maskset.masks))
        assert layers[0] < layers[1]
        assert seen[0] == seen[1], f"{name}: {seen} of {layers} layers"
        assert all(number <= most for number, most in zip(seen[0], (8, 3, 2, 1), strict=True)), seen


@promise
def a_run_goes_on_from_any_step_to_the_same_bits() -> None:
    for name in ("granet", "top_kast"):
        with tempfile.TemporaryDirectory() as folder:

            def save(run: Training, folder: str = folder) -> None:
                save_checkpoint(Path(folder) / str(run.step), run.state())

            whole = finish(make(name, DEVICE, drop=0.3), save)
            compare(finish(make(name, CPU, drop=0.3)), whole)  # dropout draws the CPU's numbers from the same seeds
            for step in range(1, whole.step):
                again = make(name, DEVICE, drop=0.3)
                again.load_state(load_checkpoint(Path(folder) / str(step)))
                finish(again)
                assert snapshot(again).differences(snapshot(whole)) == [], f"{name}, step {step}"


# As a CPU would choose: what the stand-in holds is computed there.
ALIKE = "precision=fp32 channels_last=false batch_size=400 model_args.width=0.1"
DIGITS = f"epochs=2 update_every=2 ema_decay=0.9 {ALIKE}"


def same_records(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Assert that two records say the same of the network and how it was trained."""
    for key in ("masks_sha256", "files_sha256", "history", "accuracy_pct", "weights", "macs", "dead"):
        assert one.get(key) == other.get(key), key


@promise
def the_command_trains_exports_verifies_and_branches() -> None:
    """Two runs after each other, with snapshots, then a branch of one; each file is the CPU's, byte for byte."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        benches = [Bench(Path(first)), Bench(Path(second))]
        for bench, device in zip(benches, (str(DEVICE), "cpu"), strict=True):
            assert bench("granet,top_kast", arguments=DIGITS, device=device, snapshots="1") == 0, bench.shown.getvalue()
        there, here = ({record["run"]: record for record in bench.records()} for bench in benches)
        assert there.keys() == here.keys() and len(there) == 2
        for name, record in there.items():
            same_records(record, here[name])
            assert (record["environment"]["device"], record["environment"]["device_name"]) == ("standin", "Stand-in")
        name = next(name for name in there if ".granet." in name)
        places = ["--records", f"{first}/records", "--runs", f"{first}/runs", "--data", f"{first}/data"]
        found = ask("verify", f"{first}/records/{name}.json", *places[2:])
        assert found.exit_code == 0, found.output
        page = ["--leaderboard", f"{first}/L.md", "--branches", f"{first}/branches", "--device", str(DEVICE)]
        found = ask("branch", name, "--epoch", "1", "--sparsity", "0.95", *places, *page)
        assert found.exit_code == 0, f"{found.output} {found.exception!r}"


@promise
def every_kind_of_data_trains_on_it() -> None:
    """In memory, streamed from a folder by a process of its own, and from a shard of images resized once."""
    changes = f"{ALIKE} epochs=1 update_every=1 image_size=16 workers=1".replace("=400", "=4")
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder) / "data" / "pictures", {"train": ["a", "b"], "test": ["a", "b"]}, 6, size=20)
        kinds = ("", "in_memory=false crop_pad=0", "in_memory=false crop_pad=0 resized=20")
        benches = [Bench(Path(folder)), Bench(Path(folder))]
        for kind in kinds:
            arguments = f"{changes} data_dir=pictures {kind}"
            records = []
            for bench, device in zip(benches, (str(DEVICE), "cpu"), strict=True):
                with watching() as steps:
                    failed = bench("rigl", tasks="folder_resnet20", arguments=arguments, device=device, fresh=True)
                assert failed == 0, f"{kind}: {bench.shown.getvalue()[-600:]} {bench.said}"
                newest = max((Path(folder) / "records").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
                records.append(json.loads(newest.read_text()))
                check_waits("rigl", steps)
            same_records(*records)


@promise
def a_mask_left_on_the_cpu_is_reported_with_its_line() -> None:
    run = make("granet", DEVICE)
    run.maskset.factors[0] = run.maskset.factors[0].cpu()
    try:
        finish(run)
    except RuntimeError as error:
        assert "cpu and standin:0" in str(error) and "benchmark/training/masks.py:" in str(error), error
        return
    raise AssertionError("the mixture went unnoticed")


@promise
def a_question_in_the_step_is_reported_with_its_line() -> None:
    run, original = make("granet", DEVICE), stepping.finish_gradients

    def asking(run: Training) -> None:
        original(run)
        run.parameters[0].sum().item()

    with mock.patch.object(stepping, "finish_gradients", asking), watching() as steps:
        finish(run)
    try:
        check_waits("granet", steps)
    except AssertionError as error:
        assert "item() at benchmark/training/step.py:" in str(error) and "finish_gradients(run)" in str(error), error
        return
    raise AssertionError("the wait went unnoticed")


def check_kit(names: list[str]) -> None:
    """Run the conformance kit with its networks and images on the device."""
    prepare, images = engine.prepare, make_data

    def there(cell: Cell, built: Built, data: Any, device: torch.device) -> Training:
        return prepare(cell, place(built, cell.page, DEVICE), data, DEVICE)

    def data_there(page: Any) -> Any:
        data = images(page)
        return dataclasses.replace(data, train=on_device(data.train, DEVICE), test=on_device(data.test, DEVICE))

    faults = []
    with (
        mock.patch.object(engine, "prepare", there),
        mock.patch.object(benchmark.conformance.trial, "make_data", data_there),
        # The kit looks on from the CPU: it hashes what it sees.
        mock.patch.object(accelerator.Held, "numpy", lambda self: self.raw.numpy()),
    ):
        for name in names:
            for result in run_checks(Kit(find_method(name)), [check for check in CHECKS if check not in APART]):
                if result.bad:
                    faults.append(f"{name}: {result.check.name}: {result.seen[:400]}")
    assert not faults, "\n".join(faults)


# What these checks hold a run to is computed by the kit itself, on the CPU, or in two processes without the stand-in.
APART = ("exported-file", "dense-gradients", "scoring-gradients", "two-processes")


@promise
def the_kit_passes() -> None:
    check_kit(["granet", "top_kast", "snip"])


def main() -> None:
    """Try the named promises."""
    global DEVICE
    accelerator.install()
    DEVICE = choose_device("standin:0")
    torch.set_num_threads(1)
    found = {}
    with mock.patch.object(torch.accelerator, "set_device_index", lambda device: None):
        accelerator.use(1)
        for name in sys.argv[2:]:
            said = io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    PROMISES[name]()
                found[name] = ""
            except BaseException:
                found[name] = traceback.format_exc()[-3000:]
    Path(sys.argv[1]).write_text(json.dumps(found))


DEVICE = CPU

if __name__ == "__main__":
    main()
