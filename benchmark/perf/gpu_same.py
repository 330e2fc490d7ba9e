"""Whether a device does what the CPU does: the same choices from the same input, the same bits twice and continued.

Arithmetic rounds in another order on another device, so weights drift apart from the first step on, and masks after
them. What must not differ is the choice: every call of a method during a run on the device is asked again on the CPU,
with the very tensors it saw.
"""

from __future__ import annotations

import copy
import tempfile
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmark.base.errors import UserError
from benchmark.config.cells import Cell
from benchmark.config.plugins import Plugin, built_in_names, find_method
from benchmark.conformance.nets import CHANNELS, SIZE, make_data, make_kit_page, make_network
from benchmark.conformance.trial import Kit, snapshot, wrap_method
from benchmark.networks.build import Built, place
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.perf.gpu_claims import Sheet
from benchmark.perf.gpu_runs import R20, VGG, Bench, Steps, has_graphs, train_for
from benchmark.runs.checkpoints import Saver, load_checkpoint, restore
from benchmark.runs.run import prepare, set_up_masks
from benchmark.training.contract import as_update, list_stages
from benchmark.training.precision import set_determinism
from benchmark.training.rehearsal import stand_in_donor
from benchmark.training.state import Training
from benchmark.training.step import update_masks
from methods.core import Method, Proposal, View

CPU = torch.device("cpu")
# Methods of the quick check, `bits` takes the first two: growth, rounds, a replaced step, stored weights.
FEW = ("granet", "imp", "rigl", "top_kast")


def choose_methods(quick: bool, few: int) -> tuple[list[str], dict[str, str]]:
    """Return the methods to train, all or the first few of the quick check, and how a figure names those left out."""
    there = built_in_names()
    names = list(FEW[:few]) if quick else there
    left = [name for name in there if name not in names]
    return names, {"left out": ", ".join(left)} if left else {}


@dataclass
class Choices:
    """Calls of a method that were asked again on the CPU: how many, and at which steps other masks came out."""

    calls: int = 0
    steps: list[int] = field(default_factory=list)
    same: int = 0  # active weights that both chose, where they chose differently
    all: int = 0

    def compare(self, step: int, here: Proposal, there: Proposal) -> None:
        """Count one call, with its answers here and on the CPU."""
        self.calls += 1
        stages = zip(list_stages(as_update(here)), list_stages(as_update(there)), strict=True)
        pairs = [(masks[name].cpu(), again[name]) for masks, again in stages for name in masks]
        if any(not torch.equal(one, other) for one, other in pairs):
            self.steps.append(step)
            self.same += sum(int((one & other).sum()) for one, other in pairs)
            self.all += sum(int(one.sum()) for one, _ in pairs)


def bring(view: View) -> View:
    """Return a view with copies of its tensors on the CPU."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return types.MappingProxyType({n: t.cpu() if isinstance(t, Tensor) else t for n, t in value.items()})

    twin = copy.copy(view)
    vars(twin).update({name: moved(value) for name, value in vars(view).items()})
    return twin


def compared(method: Method, seen: Choices) -> Method:
    """Return the same method, each of whose calls is asked again on the CPU."""

    def ask_twice(original: Callable[[Any, View], Proposal]) -> Callable[[Any, View], Proposal]:
        def ask(self: Any, view: View) -> Proposal:
            proposal = original(self, view)
            seen.compare(view.step, proposal, original(self, bring(view)))
            return proposal

        return ask

    return wrap_method(method, ask_twice)


def begin_small(plugin: Plugin, device: torch.device, seen: Choices | None = None, masks: bool = True) -> Training:
    """Return a run of a method on the conformance kit's small network: 24 steps, or more with further rounds."""
    method, page, model = Kit(plugin).method(0.9), make_kit_page(), make_network("conv", 0)
    layers = find_layers(model, page)
    weights, costs = prunable_weights(model, layers), count_costs(model, layers, (CHANNELS, SIZE, SIZE))
    sizes = sum(weight.numel() for weight in weights.values()), sum(p.numel() for p in model.parameters())
    donor = stand_in_donor(method, weights)
    watched = method if seen is None else compared(method, seen)
    cell = Cell("kit", page, {}, plugin, watched, {}, method.sparsity, 0, donor)
    set_determinism(page, device)
    built = place(Built(model, layers, costs, costs, *sizes, 1.0), page, device)
    run = prepare(cell, built, make_data(page), device)
    if masks:
        set_up_masks(cell, run)
    return run


def overlap(one: Training, other: Training) -> float:
    """Return the share of one run's active weights that are active in the other."""
    pairs = [(mask.cpu(), other.maskset.masks[name].cpu()) for name, mask in one.maskset.masks.items()]
    return sum(int((a & b).sum()) for a, b in pairs) / max(1, sum(int(a.sum()) for a, _ in pairs))


def check_masks(sheet: Sheet, device: torch.device) -> None:
    """Train every method on the device, each choice of masks asked again on the CPU; tell how far whole runs drift."""
    names, left = choose_methods(sheet.quick, 4)
    different, overlaps, calls = {}, {}, 0
    for name in names:
        sheet.do(f"{name} against the CPU")
        seen, plugin = Choices(), find_method(name)
        run = train_for(begin_small(plugin, device, seen))
        calls += seen.calls
        if seen.steps:
            different[name] = f"steps {seen.steps[:3]}, {seen.same / max(1, seen.all):.2%} of the weights in common"
        overlaps[name] = overlap(run, train_for(begin_small(plugin, CPU)))
    what = "methods that choose other masks than on the CPU from the same input"
    sheet.tell("masks", what, len(different), "", {"methods": len(names), "calls": calls, **different, **left})
    drifted = {name: round(share, 3) for name, share in sorted(overlaps.items(), key=lambda item: item[1])}
    least = min(overlaps.values())
    sheet.tell(
        "masks", "least overlap of a whole run's masks with the CPU's, whose rounding differs", least, "", drifted
    )
    large = R20 if sheet.quick else VGG
    sheet.do(f"{large.label} against the CPU")
    bench, seen = Bench(large, device, sheet.quick, update_every=5), Choices()
    run = bench.begin(masks=False)
    run.method = compared(run.method, seen)
    set_up_masks(bench.cell, run)
    steps = Steps(run)
    for step in list(run.method.update_steps(run.timeline))[:3]:
        run.step = step
        steps.gradients()
        update_masks(run, run.maskset.dense_gradients(), run.maskset.active_gradients())
    what = f"{large.label}: choices that differ from the CPU's on the same input"
    sheet.tell("masks", what, len(seen.steps), "", {"calls": seen.calls})


def differences(one: Training, other: Training) -> list[str]:
    """Return the names of tensors that are not bit for bit the same: weights, optimiser, masks, what a method keeps."""
    return snapshot(one).differences(snapshot(other))


def interrupt(begin: Callable[[bool], Training], steps: int, folder: Path) -> Training:
    """Return a run that was saved after so many steps and went on, as another process goes on, to its end."""
    path = folder / "checkpoint"
    first = train_for(begin(True), steps)
    Saver(path, 0.0, {"started": datetime.now(timezone.utc).isoformat()}).save(first)
    second = begin(False)
    restore(second, load_checkpoint(path), path)
    torch.manual_seed(steps)  # another process has other generators
    return second


def check_bits(sheet: Sheet, device: torch.device) -> None:
    """Train each method twice, and once with an interruption; then ResNet-20 on its page, as CUDA graphs as well."""
    again: list[str] = []
    resumed: list[str] = []
    names, left = choose_methods(sheet.quick, 2)
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            plugin = find_method(name)

            def begin(masks: bool, plugin: Plugin = plugin) -> Training:
                return begin_small(plugin, device, masks=masks)

            sheet.do(f"{name} twice")
            whole = train_for(begin(True))
            again += [f"{name}: {what}" for what in differences(whole, train_for(begin(True)))]
            sheet.do(f"{name} interrupted")
            other = train_for(interrupt(begin, 7, Path(folder)))
            resumed += [f"{name}: {what}" for what in differences(whole, other)]
        sheet.do("ResNet-20 twice and interrupted")
        bench = Bench(R20, device, sheet.quick, update_every=5, precision="auto")
        last = 12
        whole = train_for(bench.begin(), last)
        again += [f"ResNet-20: {what}" for what in differences(whole, train_for(bench.begin(), last))]
        other = train_for(interrupt(lambda masks: bench.begin(masks=masks), 7, Path(folder)), last)
        resumed += [f"ResNet-20: {what}" for what in differences(whole, other)]
    of = {"methods": len(names), "networks": "the kit's in fp32, ResNet-20 as its page says", **left}
    sheet.tell("bits", "tensors that differ between two runs", len(again), "", {**of, "first": again[:5]})
    sheet.tell("bits", "tensors that differ after an interruption", len(resumed), "", {**of, "first": resumed[:5]})
    if has_graphs(device):
        sheet.do("ResNet-20 as CUDA graphs")
        try:
            changed = differences(whole, train_for(bench.begin(graphs=True), last))
        except UserError as error:
            raise RuntimeError(f"CUDA graphs: {error}") from error
        sheet.tell("bits", "tensors that CUDA graphs change", len(changed), "", {"first": changed[:5]})
