"""Plans: what a run will cost, before it is run, and that planning leaves no trace."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmark.base.console import format_time
from benchmark.base.files import Places
from benchmark.base.system import describe_environment
from benchmark.config.cells import PROTOCOL, Cell, Item, plan_cells
from benchmark.config.pages import load_page
from benchmark.config.plugins import find_method
from benchmark.data.sets import Data, load_data
from benchmark.data.standin import Counted, stand_in
from benchmark.grids.memory import describe_memory
from benchmark.grids.plan import Line, Planner, print_plan
from benchmark.grids.predict import Networks, Prediction, page_of, predict
from benchmark.grids.states import Ledger, index_runs
from benchmark.grids.times import pace_of_records
from benchmark.runs.run import Options, make_timeline, run_cell
from leaderboard import read_records
from methods.core import DISTRIBUTIONS
from methods.str import STR
from tests.harness.benches import read_grid
from tests.harness.images import write_folder
from tests.harness.record_factory import make_record

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
QUIET = Console(file=io.StringIO())

EVERY_STEP = '''
from dataclasses import dataclass
from typing import ClassVar

from methods.core import DenseGrads, Group, Method, all_active, keep_top_global, gradient_magnitude, update_range


@dataclass(frozen=True, kw_only=True)
class Greedy(Method):
    """Keep the weights with the largest gradients; read them at every step."""

    reference: ClassVar[str] = "a test"
    group: ClassVar[Group] = Group.SPARSE_TO_SPARSE
    dense_grads: ClassVar[DenseGrads] = DenseGrads.EVERY_STEP
    keeps_layer_counts: ClassVar[bool] = True

    update_every: int = 4

    def update_steps(self, timeline):
        return update_range(self.update_every, timeline.total_steps)

    def setup(self, view):
        return keep_top_global(view.weights, view.count(self.sparsity))

    def update(self, view):
        return dict(view.masks)
'''


def one_cell(method: str, arguments: str = "", sparsity: str = "0.9", task: str = "digits_resnet20") -> Cell:
    (cell,) = plan_cells(method, sparsity, task, "0", arguments)
    return cell


def predict_cell(cell: Cell, root: Path = Path("nowhere")) -> Prediction:
    data = stand_in(cell.page, root)
    return predict(cell, data, Networks().get(cell, data))


def places_in(folder: Path) -> Places:
    return Places(records=folder / "records", leaderboard=folder / "L.md", runs=folder / "runs")


def train(cell: Cell, folder: Path) -> dict:
    data = load_data(cell.page, folder, CPU)
    places_in(folder).records.mkdir(exist_ok=True)
    return run_cell(cell, data, Options(device=CPU, command="test", places=places_in(folder)), QUIET)[0]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("small_dense", ""),
        ("set", "update_every=4"),
        ("rigl", "drop_last=true update_every=5"),
        ("rigl_itop", "update_every=7"),  # updates at the ends of epochs, whose last batch is smaller
        ("greedy.py", ""),
    ],
)
def test_a_prediction_said_to_be_exact_is_what_the_record_says(method, arguments, tmp_path):
    if method.endswith(".py"):
        (tmp_path / method).write_text(EVERY_STEP)
        method = str(tmp_path / method)
    cell = one_cell(method, f"epochs=2 batch_size=200 model_args.width=0.25 {arguments}")
    prediction = predict_cell(cell)
    record = train(cell, tmp_path)
    assert prediction.exact
    assert (prediction.train, prediction.train_dense) == (record["macs"]["train"], record["macs"]["train_dense"])
    layers = {layer["name"]: layer["active"] for layer in record["layers"] if layer["prunable"]}
    assert prediction.counts == layers


def test_what_is_trained_beside_the_active_weights_is_planned(tmp_path):
    """Top-KAST's B: its layer counts follow from the distribution, if not by a rule that a plan could call exact."""
    cell = one_cell("top_kast", "epochs=2 batch_size=200 model_args.width=0.25 update_every=4")
    assert predict_cell(cell).train == train(cell, tmp_path)["macs"]["train"]


@pytest.mark.parametrize("passes", [False, True])
def test_learned_thresholds_are_charged_what_they_let_gradients_reach(passes, monkeypatch):
    """STR step by step: 3 f_S; if its thresholds let all gradients through, 2 f_S + f_D to the last update."""
    monkeypatch.setattr(STR, "straight_through", passes)
    cell = one_cell("str", "epochs=2 batch_size=200 update_every=2")
    data = stand_in(cell.page, Path("nowhere"))
    network = Networks().get(cell, data)
    costs, timeline, total = network.built.costs, make_timeline(cell, data), network.maskset.total
    shapes = {name: tuple(weight.shape) for name, weight in network.maskset.weights.items()}
    updates, forward, expected = cell.method.update_steps(timeline), costs.dense, 0
    assert 0 < updates[-1] < timeline.total_steps
    for step in range(1, timeline.total_steps + 1):
        last = step % timeline.steps_per_epoch == 0
        gradients = costs.dense if passes and step <= updates[-1] else forward
        expected += (1293 % 200 if last else 200) * (2 * forward + gradients)
        if step in updates:
            kept = round((1 - cell.method.planned_sparsity(step, timeline)) * total)
            forward = costs.forward(DISTRIBUTIONS["erk"](shapes, kept))
    assert predict(cell, data, network).train == expected


def test_the_dense_training_of_a_page_is_that_of_the_formula():
    """3 f_D for every image of 160 epochs, with f_D counted by hand from the network's shapes."""
    prediction = predict_cell(one_cell("dense", task="cifar10_vgg19"))
    assert prediction.train == prediction.train_dense == 3 * 398_136_320 * 45_000 * 160
    assert prediction.share == 1


def test_a_schedule_is_charged_update_by_update():
    """GMP from dense: three updates, by an oracle that goes step by step; exact is never claimed."""
    cell = one_cell("gmp", "epochs=1 update_every=4 prune_end=0.6")
    data = stand_in(cell.page, Path("nowhere"))
    network = Networks().get(cell, data)
    costs, total = network.built.costs, network.maskset.total
    shapes = {name: tuple(weight.shape) for name, weight in network.maskset.weights.items()}
    forward, expected = costs.dense, 0
    done = {4: 1 / 3, 8: 2 / 3, 12: 1.0}
    for step in range(1, 22):  # 20 steps of 64 images and one of 13
        expected += 3 * forward * (64 if step < 21 else 1293 - 20 * 64)
        if step in done:
            kept = round((1 - (0.9 - 0.9 * (1 - done[step]) ** 3)) * total)
            forward = costs.forward(DISTRIBUTIONS["erk"](shapes, kept))
    prediction = predict(cell, data, network)
    assert prediction.train == expected
    assert not prediction.exact


def test_scoring_passes_are_in_the_prediction():
    snip, grasp = (predict_cell(one_cell(name)) for name in ("snip", "grasp"))
    dense = predict_cell(one_cell("dense")).train_dense // (3 * 1293 * 30)
    assert snip.counts == grasp.counts
    assert grasp.train - snip.train == dense * (12 * 100 - 3 * 64)  # 100 images twice, and a batch once
    assert not snip.exact


@pytest.mark.slow
def test_predictions_hold_for_the_committed_records():
    """To the multiply-add where they are called exact; the others within what was seen, which is not little.

    On these short runs SNIP keeps early layers far denser than ERK, so its cost is underestimated most.
    """
    inexact = {0.001: "mest top_kast", 0.02: "srigl sis", 0.07: "ac_dc gmp", 0.2: "dsr granet_late snfs granet str"}
    inexact |= {0.35: "imp force", 0.5: "grasp synflow", 0.7: "snip"}
    bounds = {name: bound for bound, names in inexact.items() for name in names.split()}
    networks, seen = Networks(), set()
    for record in read_records(ROOT / "leaderboard" / "records")[0]:
        name, page, method = record["method"]["name"], record["page"], record["method"]
        if page["name"] != "digits_resnet20" or method.get("donor") or record["skipped_steps"]:
            continue
        if method["sha256"] != find_method(name).sha256:  # a plan is that of today's file
            continue
        when = {key: value for key, value in method["settings"].items() if key == "update_every"}  # the page's of then
        changes = {**page["changed"], **when, **method["changed"]}
        arguments = " ".join(f"{key}={value}" for key, value in changes.items())
        cell = one_cell(name, arguments, repr(record["sparsity"]))
        key = (cell.label, cell.sparsity, record["macs"]["train"])
        if key in seen:
            continue
        seen.add(key)
        data = stand_in(cell.page, ROOT)
        prediction = predict(cell, data, networks.get(cell, data))
        error = prediction.train / record["macs"]["train"] - 1
        assert prediction.exact == (name not in bounds), record["run"]
        assert abs(error) <= bounds.get(name, 0.0), f"{record['run']}: {error:+.1%}"
        assert prediction.train_dense == record["macs"]["train_dense"]
    assert len({label for label, *_ in seen}) >= 10


def test_a_control_costs_what_its_donors_densities_cost():
    donor = predict_cell(one_cell("rigl_itop"))
    cell = one_cell("static", "densities=rigl_itop")
    data = stand_in(cell.page, ROOT)
    network = Networks().get(cell, data)
    known = predict(cell, data, network, donor)
    assert known.exact and known.counts == donor.counts
    assert known.train == predict_cell(one_cell("static")).train  # both are ERK, and a control's updates cost nothing
    assert not predict(cell, data, network, dataclasses.replace(donor, exact=False)).exact
    assert not predict(cell, data, network).exact  # of a run that nothing is known of


@pytest.mark.parametrize(
    ("task", "train", "validation", "test", "classes", "steps"),
    [
        ("cifar10_vgg19", 45_000, 5_000, 10_000, 10, 352),
        ("cifar100_resnet50", 50_000, 0, 10_000, 100, 391),
        ("imagenet_resnet50", 1_281_167, 0, 50_000, 1000, 10_009),  # drop_last
        ("digits_resnet20", 1293, 144, 360, 10, 21),
    ],
)
def test_data_that_is_not_here_is_known_by_its_numbers(task, train, validation, test, classes, steps, tmp_path):
    cell = one_cell("dense", task=task)
    data = stand_in(cell.page, tmp_path)
    assert (len(data.train), len(data.validation or ()), len(data.test)) == (train, validation, test)
    assert len(data.classes) == classes
    assert make_timeline(cell, data).steps_per_epoch == steps
    assert not list(tmp_path.iterdir())


def make_folder(folder: Path) -> Path:
    return write_folder(folder, {"train": ["cat", "dog"], "test": ["cat", "dog"]}, count=12, size=32)


@pytest.mark.parametrize("split", ["full", "holdout", "paper"])
def test_a_folder_is_split_as_it_is_when_it_is_read(split, tmp_path):
    make_folder(tmp_path / "folder")
    page = load_page("folder_resnet20", {"split": split})
    guessed, read = stand_in(page, tmp_path), load_data(page, tmp_path, CPU)
    assert torch.equal(guessed.train.labels, read.train.labels)
    assert (guessed.validation is None) == (read.validation is None)
    if guessed.validation is not None:
        assert torch.equal(guessed.validation.labels, read.validation.labels)
    assert torch.equal(guessed.test.labels, read.test.labels)
    assert (guessed.name, guessed.classes, guessed.image_size) == (read.name, read.classes, read.image_size)


GRID = """
title: A plan
tasks: [digits_resnet20]
sparsities: [0.9]
seeds: [0, 1]
rows:
  - {method: set, args: {epochs: 1, update_every: 8}}
  - {method: granet, args: {epochs: 1, update_every: 4}}
  - {method: gmp, args: {epochs: 1}}
  - {method: dense, tasks: [folder_resnet20]}
controls: [densities]
"""


def show_plan(folder: Path, text: str = GRID) -> tuple[int, list[str]]:
    (folder / "grid.yaml").write_text(text)
    out = io.StringIO()
    grid = read_grid(folder / "grid.yaml")
    refused = print_plan(grid, folder / "data", places_in(folder), CPU, Console(file=out, width=160))
    return refused, out.getvalue().splitlines()


def line_of(lines: list[str], start: str) -> str:
    (line,) = [line for line in lines if line.removeprefix("digits_resnet20").strip().startswith(start)]
    return line


def test_a_plan_says_what_is_done_what_is_likely_and_what_cannot_run(tmp_path):
    done = one_cell("set", "epochs=1 update_every=8")
    record = train(done, tmp_path)
    begun = tmp_path / "runs" / one_cell("granet", "epochs=1 update_every=4").identity
    begun.mkdir(parents=True)
    (begun / "checkpoint").write_bytes(b"")
    refused, lines = show_plan(tmp_path)
    exact, likely = line_of(lines, "set (update_every=8)"), line_of(lines, "granet (update_every=4)")
    assert " 1/2 " in exact and exact.rstrip().endswith("to do") and "≈" not in exact
    assert f"{2 * record['macs']['train']:.2e}" in exact
    assert " 0/2 " in likely and likely.rstrip().endswith("interrupted") and likely.count("≈") == 2
    assert "≈" not in line_of(lines, "static (densities=set (update_every=8))")
    assert "≈" in line_of(lines, "static (densities=granet (update_every=4))")
    assert any("to do: 7 of 8 runs" in line for line in lines)
    assert any("digits_resnet20 1 record" in line for line in lines)
    # gmp's two runs and their two controls would make no update; the folder is not there
    assert refused == 6
    text = "\n".join(lines)
    assert "6 of 14 runs cannot be planned" in text
    assert "method 'gmp' makes no update in a run of 21 steps" in text
    assert "folder_resnet20: no image folder at" in text


def test_rows_of_one_page_changed_in_two_ways_are_told_apart_in_a_plan(tmp_path):
    head = GRID.partition("rows:")[0]
    rows = "".join(f"  - {{method: set, args: {{epochs: {epochs}, update_every: 8}}}}\n" for epochs in (1, 2))
    refused, lines = show_plan(tmp_path, f"{head}rows:\n{rows}")
    assert refused == 0 and line_of(lines, "(epochs=1)") and line_of(lines, "(epochs=2)")
    assert len(set(filter(str.strip, lines))) == len(list(filter(str.strip, lines)))


def test_a_folder_that_is_there_is_planned(tmp_path):
    make_folder(tmp_path / "data" / "folder")
    refused, lines = show_plan(tmp_path, "tasks: [folder_resnet20]\nseeds: [0]\nrows: [{method: dense}]")
    assert refused == 0
    assert any(line.startswith("folder_resnet20") and "calibrated" not in line for line in lines)
    assert any("folder_resnet20 calibrated" in line for line in lines)


def test_finished_seeds_say_what_the_others_will_cost(tmp_path):
    cell = one_cell("granet", "epochs=1 update_every=4")
    record = train(cell, tmp_path)
    assert record["macs"]["train"] != predict_cell(cell).train
    lines = show_plan(tmp_path)[1]
    assert f"≈ {2 * record['macs']['train']:.2e}" in line_of(lines, "granet (update_every=4)")


@pytest.mark.parametrize(
    ("states", "left", "status"),
    [
        (["finished", "finished"], 0, "finished"),
        (["finished", "interrupted", "to do"], 2, "interrupted"),
        (["finished", "no control", "to do"], 1, "to do"),
        (["finished", "no control"], 0, "no control"),
    ],
)
def test_a_line_is_finished_when_all_its_seeds_are(states, left, status):
    line = Line(one_cell("dense"), states, 1, 1.0, True, 1.0)
    assert (line.left, line.status) == (left, status)


def record_of(run: str, data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a record of the run on the data, of this protocol and in fp32 unless changed."""
    made = {"file": "RUN.json", "run": run, "protocol": PROTOCOL, "data": data, "environment": {"precision": "fp32"}}
    return make_record(**{**made, **changes})


def ledger_of(*records: dict[str, Any]) -> Ledger:
    return Ledger(index_runs(list(records)), ROOT, CPU)


def test_only_a_record_of_the_same_run_protocol_data_and_arithmetic_finishes_a_cell(tmp_path):
    cell = one_cell("granet")
    data = stand_in(cell.page, tmp_path)

    def found(run: str = cell.identity, fingerprint: str = data.fingerprint, **changes: Any) -> bool:
        return ledger_of(record_of(run, {"fingerprint": fingerprint}, **changes)).find(cell, data) is not None

    assert found()
    assert found(status="diverged")  # to run it again would give the same
    assert not found(run=f"{cell.identity}x")
    assert not found(protocol=PROTOCOL - 1)
    assert not found(fingerprint="other")
    assert not found(environment={"precision": "bf16"})


def test_without_the_images_data_are_compared_by_name_and_sizes(tmp_path):
    cell = one_cell("granet", task="cifar10_vgg19")
    data = stand_in(cell.page, tmp_path)
    sizes = {"name": "cifar10", "train": 45_000, "validation": 5_000, "test": 10_000, "fingerprint": "any"}
    for changes, found in (({}, True), ({"train": 50_000, "validation": 0}, False), ({"name": "cifar10-jpeg"}, False)):
        record = record_of(cell.identity, {**sizes, **changes})
        assert (ledger_of(record).find(cell, data) is not None) is found


def test_a_folder_s_run_is_found_by_its_data_under_either_name():
    cell = one_cell("granet", task="folder_resnet20")
    data = Data("mine", ("a", "b"), 3, 32, Counted(torch.arange(24) % 2), None, Counted(torch.arange(8) % 2), "f" * 64)
    sizes = {"name": "mine", "train": 24, "validation": 0, "test": 8}

    def found(run: str, of: str, fingerprint: str) -> bool:
        known = dataclasses.replace(data, fingerprint=fingerprint)
        return ledger_of(record_of(run, {**sizes, "fingerprint": of})).find(cell, known) is not None

    old, new = cell.identity, cell.with_data("f" * 64).identity
    assert old != new and cell.names("f" * 64) == [new, old]
    assert found(old, "f" * 64, "f" * 64) and found(new, "f" * 64, "f" * 64)
    assert not found(old, "e" * 64, "f" * 64)
    assert found(old, "e" * 64, "") and found(new, "f" * 64, "")  # the images were not read: by name and sizes
    assert not found(new, "e" * 64, "") and not found(f"{old}x", "e" * 64, "")
    fixed = one_cell("granet")
    assert fixed.with_data("f" * 64).identity == fixed.identity


def test_a_plan_takes_the_fingerprint_of_a_folder_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_BENCH_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "mine", {"train": ["a", "b"], "test": ["a", "b"]})
    page = one_cell("static", f"data_dir={folder}", task="folder_resnet20").page
    assert stand_in(page, tmp_path).fingerprint == ""
    read = load_data(page, tmp_path, CPU)
    monkeypatch.setattr("benchmark.data.files.read_image", None)
    assert stand_in(page, tmp_path).fingerprint == read.fingerprint
    streamed = dataclasses.replace(page, in_memory=False)
    monkeypatch.undo()
    assert stand_in(streamed, tmp_path).fingerprint == load_data(streamed, tmp_path, CPU).fingerprint


@pytest.mark.parametrize(
    ("status", "settings", "state"),
    [
        ("ok", "densities=set", "to do"),
        ("ok", "masks=set", "no control"),  # its files are not here
        ("diverged", "densities=set", "no control"),
        ("diverged", "masks=set shuffle=filters", "no control"),
    ],
)
def test_a_control_waits_for_its_donor_s_record_and_then_needs_what_it_takes_from_the_run(
    status, settings, state, tmp_path
):
    donor, control = one_cell("set"), one_cell("static", settings)
    data = stand_in(donor.page, tmp_path)
    item = Item(control, "set", donor)
    record = record_of(donor.identity, {"fingerprint": data.fingerprint}, status=status)
    assert ledger_of().state(item, data) == "to do" and ledger_of().settle(item, data) is None
    ledger = Ledger(index_runs([record]), tmp_path, CPU)
    assert ledger.state(item, data) == state
    assert bool(ledger.find_obstacle(item, data)) == (state == "no control")
    settled = ledger.settle(item, data)
    assert settled.donor.run == donor.identity
    assert settled.identity != control.identity  # which says whose densities they are
    assert ledger_of(record, {**record, "run": settled.identity}).state(item, data) == "finished"


def test_the_pace_is_the_median_of_records_of_this_page_and_device():
    cell = one_cell("dense")
    data = stand_in(cell.page, ROOT)
    here = describe_environment(CPU, "fp32")

    def record(total_s: float, **environment: str) -> dict:
        made = make_record(page={"name": "digits_resnet20", "settings": dataclasses.asdict(cell.page)})
        made["environment"] = {**made["environment"], **here, **environment}
        made["time"]["total_s"] = total_s
        made["data"] = {
            **made["data"],
            "train": len(data.train),
            "validation": len(data.validation or ()),
            "test": len(data.test),
        }
        return made

    records = [record(10), record(20), record(90), record(1, device_name="another"), record(1, device="cuda")]
    pace = pace_of_records(cell, data, records, CPU)
    assert pace is not None and pace.source == "3 records"
    assert pace.seconds(cell.page, data) == pytest.approx(20)
    assert pace.seconds(dataclasses.replace(cell.page, epochs=60), data) == pytest.approx(40)
    assert pace_of_records(one_cell("dense", "image_size=16"), data, records, CPU) is None
    many, none, branch = record(200), record(0), record(1)
    many["data"] |= {
        name: 10 * many["data"][name] for name in ("train", "validation", "test")
    }  # ten times the images in that time
    branch["branch"] = {"epoch": 27, "last_epoch": 30}  # a tenth of the page's epochs
    branch["time"]["total_s"] = 2
    for others in ([many, none], [branch]):
        found = pace_of_records(cell, data, others, CPU)
        assert found is not None and found.seconds(cell.page, data) == pytest.approx(20)


def test_the_memory_of_a_run_is_what_finished_ones_measured(tmp_path):
    """Of runs of this page, model and batch on this kind of device, and of the whole network."""
    cell = one_cell("dense")
    planner = Planner(tmp_path, CPU, [], ledger_of())

    def note(peak: int, device: str = "cpu", method: dict | None = None, **settings: object) -> None:
        page = {"name": cell.page_name, "settings": {**dataclasses.asdict(cell.page), **settings}}
        usage = {"process_peak_bytes": peak, "device_peak_bytes": 1}
        where = {"device": device, "precision": "fp32"}
        planner.records.append(make_record(page=page, usage=usage, environment=where, method=method or {}))

    note(9, batch_size=7)
    note(9, device="cuda")
    note(9, method={"name": "small_dense", "settings": {"width": 0.5}})
    planner.plan([Item(cell, "dense")])
    assert describe_memory(planner.memories.pop(page_of(cell)), 0).startswith("about ")
    note(2**30)
    note(2 * 2**30)
    planner.plan([Item(cell, "dense")])
    memory = planner.memories[page_of(cell)]
    assert describe_memory(memory, 7 * 2**30) == "2.00 GiB, measured in 2 records; 3 fit in the 7 GiB here"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (120, "2 min"), (9000, "2.5 h"), (86400 * 3, "3.0 days")],
)
def test_times_are_rough(seconds, text):
    assert format_time(seconds) == text
