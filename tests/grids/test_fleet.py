"""Plans for many devices: what a run needs of their memory, and how long whole runs take on several."""

from __future__ import annotations

import dataclasses
import io
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from benchmark.base.errors import UserError
from benchmark.base.files import Places
from benchmark.config.cells import plan_cells
from benchmark.config.pages import Page
from benchmark.data.sets import Data
from benchmark.data.standin import stand_in
from benchmark.grids.memory import PROCESS, WORK_SHARE, Memory, count_saved, describe_memory, work_out_memory
from benchmark.grids.plan import print_plan
from benchmark.grids.predict import Networks
from benchmark.grids.times import Fleet, Job, describe_fleet, describe_sharing, make_fleet, share_out, spread
from benchmark.networks.build import Built
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers
from methods.dense import Dense
from tests.harness.benches import read_grid
from tests.harness.small import make_page, make_training

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def jobs(*seconds: float) -> list[Job]:
    return [Job(f"run {number}", length) for number, length in enumerate(seconds)]


# Spread over devices


@pytest.mark.parametrize(("places", "makespan"), [(1, 18), (2, 9), (3, 7), (4, 6), (100, 6)])
def test_runs_are_whole_and_the_longest_come_first(places, makespan):
    """By hand, 6, 5, 4 and 3 on two places: 6 and 5 begin, 4 follows the 5 and 3 the 6; on three, 3 follows the 4."""
    assert spread(jobs(3, 5, 4, 6), places).makespan_s == makespan


def test_a_control_waits_for_its_donor_however_many_devices_there_are():
    runs = [Job("donor", 5), Job("control", 4, "donor"), Job("other", 6)]
    assert spread(runs, 100).makespan_s == spread(runs, 2).makespan_s == 9
    assert spread(runs, 2).chain_s == spread(runs, 2).least_s == 9  # longer than the 7.5 of an even share
    assert spread(runs, 2).used_share == 15 / 18
    assert spread(runs[1:], 2).makespan_s == 6, "a donor that has run is waited for by nobody"


def test_a_short_donor_of_a_long_control_goes_before_a_longer_run():
    """By their own lengths 6 and 5 would begin, the donor after 5, and its control end at 5 + 1 + 9 = 15."""
    runs = [Job("a", 6), Job("b", 5), Job("donor", 1), Job("control", 9, "donor")]
    assert spread(runs, 2).makespan_s == 11  # a | donor, control, and b after a


def test_no_order_is_told_faster_than_it_can_be_or_far_slower():
    """On random sets: never below the even share and the longest chain, at most Graham's bound above them."""
    draw = random.Random(1)
    for _ in range(300):
        runs: list[Job] = []
        for number in range(draw.randint(1, 30)):
            donor = draw.choice(runs).name if runs and draw.random() < 0.4 else ""
            runs.append(Job(f"r{number}", draw.randint(1, 20), donor))
        places = draw.randint(1, 6)
        result = spread(runs, places)
        work = sum(run.seconds for run in runs)
        assert result.least_s >= max(run.seconds for run in runs) and result.least_s >= work / places
        assert result.least_s <= result.makespan_s <= (2 - 1 / places) * result.least_s + 1e-9
        assert spread(runs, 1).makespan_s == work
        assert result.used_share <= 1


def test_nothing_to_do_takes_no_time_and_a_circle_is_a_fault():
    assert spread([], 3).makespan_s == 0 and describe_fleet([], Fleet(3)) == []
    with pytest.raises(ValueError, match="waits for itself"):
        spread([Job("a", 1, "b"), Job("b", 1, "a")], 2)


def test_sharing_is_told_between_costing_nothing_and_gaining_nothing():
    free, slow = share_out(jobs(*[10] * 8), Fleet(2, 2))
    assert (free.makespan_s, slow.makespan_s) == (20, 40)
    assert slow.makespan_s == share_out(jobs(*[10] * 8), Fleet(2, 1))[0].makespan_s
    text = "\n".join(describe_fleet(jobs(*[3600] * 8), Fleet(2, 2)))
    assert "on 2 devices of this kind, 2 at once on each: 2.0 h (4.0 device hours, 100 % at work)" in text
    assert "if sharing gains nothing, 4.0 h (8.0 device hours, 100 % at work)" in text
    assert "no order of these runs takes less than 2.0 h" in text


def test_a_fleet_of_nothing_is_none_and_below_is_refused():
    assert make_fleet(0, 1) is None and make_fleet(64, 4) == Fleet(64, 4)
    with pytest.raises(UserError, match=r"GPUS must be .* at least 1, got -1"):
        make_fleet(-1, 1)
    with pytest.raises(UserError, match=r"PER_GPU must be .* at least 1, got 0"):
        make_fleet(4, 0)


# Memory


class Tiny(nn.Module):
    """A convolution, a batch norm, a ReLU and a classifier, so that every saved tensor can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 36, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(images))).flatten(1))


def tiny(**changes) -> tuple[Page, Data, Built]:
    page = make_page(**changes)
    model = Tiny()
    layers = find_layers(model, page)
    costs = count_costs(model, layers, (2, 6, 6))
    data = make_training(Dense(sparsity=0.0)).data
    return page, data, Built(model, layers, costs, costs, 1008, 1027, 1.0, False)


def test_what_a_step_saves_is_counted_by_hand():
    """In float32, an image: its 2 x 36 pixels, the convolution's output, the ReLU's (the classifier's input as well),
    three log-probabilities and a label of 8 bytes; once for the batch: the norm's mean and deviation, 8 numbers each,
    and the 4 bytes by which the loss divides."""
    page, data, built = tiny()
    an_image = 4 * (2 * 36 + 8 * 36 + 8 * 36 + 3) + 8
    for number in (2, 5):
        assert count_saved(page, data, built, CPU, number) == number * an_image + 2 * 4 * 8 + 4


def test_the_memory_of_a_run_is_that_of_its_parts():
    page, data, built = tiny()
    prunable = 144 + 864  # the convolution's and the classifier's weights
    weights = prunable + 16 + 3  # and gain, shift and bias
    buffers = 4 * 16 + 8  # the norm's running mean and variance, and its number of batches in 8 bytes
    memory = work_out_memory(page, data, built, CPU)
    assert memory.network == 4 * weights + 2 * buffers
    assert memory.gradients == memory.optimizer == 4 * weights
    assert memory.masks == prunable * (4 + 1 + 1)
    assert memory.activations == count_saved(page, data, built, CPU, page.batch_size)
    assert memory.images == 2 * (48 * (6 + 8) ** 2 + 48 * 6**2)
    counted = memory.network + memory.gradients + memory.optimizer + memory.masks + memory.activations
    assert memory.total == PROCESS["cpu"] + memory.images + round((1 + WORK_SHARE) * counted)
    assert work_out_memory(*tiny(in_memory=False), CPU).images == 0
    assert work_out_memory(*tiny(optimizer="adamw"), CPU).optimizer == 2 * 4 * weights
    assert work_out_memory(*tiny(momentum=0.0, nesterov=False), CPU).optimizer == 0
    averaged = work_out_memory(*tiny(ema_decay=0.99), CPU)
    assert averaged.network - memory.network == 4 * weights + buffers


def test_working_memory_out_leaves_network_and_random_state_as_they_were():
    page, data, built = tiny()
    before, state = {name: value.clone() for name, value in built.model.state_dict().items()}, torch.get_rng_state()
    work_out_memory(page, data, built, CPU)
    assert all(torch.equal(value, before[name]) for name, value in built.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in built.model.parameters())


def test_activations_grow_with_the_batch_and_halve_in_bf16():
    (cell,) = plan_cells("dense", "0.9", "cifar10_resnet20", "0", "")
    data = stand_in(cell.page, ROOT)
    built = Networks().get(cell, data).built
    memory = work_out_memory(cell.page, data, built, CPU)
    doubled = work_out_memory(dataclasses.replace(cell.page, batch_size=256), data, built, CPU)
    assert doubled.activations == pytest.approx(2 * memory.activations, rel=0.001)
    half = work_out_memory(dataclasses.replace(cell.page, precision="bf16"), data, built, CPU)
    assert 0.5 * memory.activations < half.activations < 0.7 * memory.activations  # batch statistics stay in float32


def test_memory_is_told_with_how_many_fit_and_where_too_many_are_asked_for():
    memory = Memory(2**30, 0, 0, 0, 2**30, 2**29, 2**29)
    assert memory.total == round(4.4 * 2**30)
    assert memory.fits(24 * 2**30) == 5
    assert describe_memory(memory, 24 * 2**30) == (
        "about 4.40 GiB (0.50 process, 1.00 activations of a batch, 1.00 weights, gradients, optimiser and masks, "
        "0.50 images, 1.40 to work with); 5 fit in the 24 GiB here"
    )
    huge = {("page", "v"): Memory(2**50, 0, 0, 0, 0, 0, 0)}
    notes = describe_sharing(huge, CPU, Fleet(8, 4))
    assert len(notes) == 2 and notes[1].startswith("PER_GPU=4 is too much for page: ")
    assert len(describe_sharing(huge, CPU, Fleet(8))) == 1, "a single run is told by its memory alone"


MEASURED = """
import io, resource, sys
from pathlib import Path
import torch
from rich.console import Console
from benchmark.config.cells import plan_cells
from benchmark.data.sets import load_data
from benchmark.grids.memory import work_out_memory
from benchmark.grids.predict import Networks
from benchmark.base.files import Places
from benchmark.runs.run import Options, run_cell

(cell,) = plan_cells("granet", "0.9", "digits_resnet20", "0", sys.argv[2])
data, folder = load_data(cell.page, Path("nowhere"), torch.device("cpu")), Path(sys.argv[1])
(folder / "r").mkdir()
places = Places(folder / "r", folder / "L.md", folder / "runs")
options = Options(device=torch.device("cpu"), command="t", places=places)
run_cell(cell, data, options, Console(file=io.StringIO()))
seen = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
built = Networks().get(cell, data).built
print(seen / work_out_memory(cell.page, data, built, torch.device("cpu")).total)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cifar_resnet20", "cifar_vgg19_bn"])
def test_a_whole_run_takes_about_the_memory_that_was_worked_out(model, tmp_path):
    asked = f"epochs=1 update_every=2 batch_size=400 image_size=24 model={model}"
    command = [sys.executable, "-c", MEASURED, str(tmp_path), asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0.75 < float(done.stdout.split()[-1]) < 1.25


@GPU
@pytest.mark.gpu
def test_on_a_gpu_a_step_takes_about_the_memory_that_was_worked_out():
    from benchmark.grids.times import calibrate

    (cell,) = plan_cells("dense", "0.9", "cifar10_vgg19", "0", "")
    data, device = stand_in(cell.page, ROOT), torch.device("cuda")
    built = Networks().get(cell, data).built
    memory = work_out_memory(cell.page, data, built, device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    calibrate(cell, data, built, device)
    seen = torch.cuda.max_memory_allocated() - before
    counted = memory.network + memory.gradients + memory.optimizer + memory.activations
    assert 0.5 * counted < seen < (1 + WORK_SHARE) * counted


# The plan


GRID = """
tasks: [digits_resnet20]
sparsities: [0.9]
seeds: [0, 1]
rows: [{method: set, args: {epochs: 1, update_every: 8}}, {method: dense, args: {epochs: 1}}]
controls: [densities]
"""


def test_a_plan_says_how_many_runs_fit_and_how_long_they_take_on_many_devices(tmp_path):
    (tmp_path / "grid.yaml").write_text(GRID)
    out = io.StringIO()
    places = Places(records=tmp_path / "records", leaderboard=tmp_path / "L.md", runs=tmp_path / "runs")
    grid, console = read_grid(tmp_path / "grid.yaml"), Console(file=out, width=160)
    assert print_plan(grid, tmp_path, places, CPU, console, Fleet(3, 2)) == 0
    text = out.getvalue()
    assert "memory of a run on digits_resnet20: about 0.7" in text and " fit in the " in text
    # Six runs as long as each other on six places; but the two controls wait for their donors.
    assert "on 3 devices of this kind, 2 at once on each: " in text and "50 % at work" in text
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]
