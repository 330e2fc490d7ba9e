"""How long a step and a mask update take on a device: masked against dense, and which arithmetic is fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmark.base.errors import reason
from benchmark.base.timing import median_ratio, milliseconds
from benchmark.perf.gpu_claims import NotHereError, Sheet
from benchmark.perf.gpu_runs import LARGE, R20, VGG, Bench, Net, Steps, has_graphs, nets, time_on, train_for
from benchmark.perf.gpu_same import differences
from benchmark.perf.peers import Peer
from benchmark.training.precision import set_determinism
from benchmark.training.state import Training
from benchmark.training.step import update_masks


def check_steps(sheet: Sheet, device: torch.device) -> None:
    """Time a masked step against the same step without masks, and against the authors' way of masking."""
    for net in nets(sheet.quick):
        sheet.do(net.label)
        compare_steps(sheet, device, net)


def compare_steps(sheet: Sheet, device: torch.device, net: Net) -> None:
    """Time the steps of one network in turn."""
    bench = Bench(net, device, sheet.quick)
    masked = bench.begin()
    actions: dict[str, Callable[[], object]] = {"dense": Steps(bench.dense()), "masked": Steps(masked)}
    if has_graphs(device):
        actions |= {"dense graphed": Steps(bench.dense(True)), "masked graphed": Steps(bench.begin(graphs=True))}
    theirs = bench.dense()
    peer, step = Peer(theirs.model, theirs.optimizer, masked.maskset.masks), Steps(theirs)

    def as_theirs() -> None:
        step()
        peer.apply()

    actions["peer"] = as_theirs
    times = time_on(device, actions, sheet.quick)
    shown = milliseconds(times)
    label, details = net.label, {**shown, "batch": masked.page.batch_size, "precision": masked.precision}
    sheet.tell(
        "G1", f"{label}: masked step / dense step, eager", median_ratio(times["masked"], times["dense"]), "x", details
    )
    if has_graphs(device):
        graphed = median_ratio(times["masked graphed"], times["dense graphed"])
        sheet.tell("G1", f"{label}: masked step / dense step, as CUDA graphs", graphed)
        gain = median_ratio(times["masked"], times["masked graphed"])
        sheet.tell("G2", f"{label}: eager step / the same as CUDA graphs", gain)
    sheet.tell(
        "G1",
        f"{label}: weights and momentum masked, as by the authors / dense step",
        median_ratio(times["peer"], times["dense"]),
    )


def check_updates(sheet: Sheet, device: torch.device) -> None:
    """Time GraNet's update as the engine does it: dense gradients kept, masks proposed, checked and committed."""
    for net in reversed(nets(sheet.quick)):
        sheet.do(net.label)
        bench = Bench(net, device, sheet.quick, update_every=5)
        run, other = bench.begin(), Steps(bench.begin())
        steps = Steps(run)
        steps()  # so that the optimiser has state to zero
        run.step = list(run.method.update_steps(run.timeline))[1]
        steps.gradients()
        update = partial(update_now, run)
        times = time_on(device, {"update": update, "step": other}, sheet.quick)
        sheet.tell(
            "G3", f"{net.label}: a mask update", 1000 * statistics.median(times["update"]), "ms", milliseconds(times)
        )
        sheet.tell("G3", f"{net.label}: a mask update / an eager step", median_ratio(times["update"], times["step"]))
        if device.type == "cuda":
            torch.cuda.synchronize()
            given = run.maskset.dense_gradients(), run.maskset.active_gradients()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            update_masks(run, *given)
            extra = torch.cuda.max_memory_allocated() - before
            what = f"{net.label}: memory of an update / weights"
            sheet.tell("P14", what, extra / (4 * run.maskset.total), "x", {"MiB": extra / 2**20})


def update_now(run: Training) -> None:
    """Do the mask update of the run's step from the gradients as they are."""
    update_masks(run, run.maskset.dense_gradients(), run.maskset.active_gradients())


# Arithmetic by name: settings of the page, whether fp32 may be rounded to TF32, whether passes are recorded.
MODES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "fp32": ({"precision": "fp32"}, False, False),
    "TF32": ({"precision": "fp32"}, True, False),
    "bf16": ({"precision": "bf16"}, True, False),
    "bf16, channels first": ({"precision": "bf16", "channels_last": False}, True, False),
    "bf16, kernels chosen by timing": ({"precision": "bf16", "deterministic": False}, True, False),
    "bf16, CUDA graphs": ({"precision": "bf16"}, True, True),
    "bf16, CUDA graphs, kernels chosen by timing": ({"precision": "bf16", "deterministic": False}, True, True),
    "bf16, compiled": ({"precision": "bf16", "compile": True}, True, False),
}


def check_modes(sheet: Sheet, device: torch.device) -> None:
    """Time a masked step in each arithmetic; what cannot be had here is told with its reason."""
    for net in (R20,) if sheet.quick else (R20, VGG):
        bench = Bench(net, device, sheet.quick)
        actions, before, absent = {}, {}, {}
        for name, (settings, tf32, graphs) in MODES.items():
            if (graphs and not has_graphs(device)) or (settings.get("compile") and (net is not R20 or sheet.quick)):
                continue
            sheet.do(f"{net.label}, first step of {name}")
            run = bench.begin(graphs=graphs, **settings)
            steps, before[name] = Steps(run), partial(set_arithmetic, run, tf32)
            before[name]()
            try:
                steps()
            except Exception as error:  # a compiler or a driver may lack anything
                absent[name] = reason(error)[:200]
            else:
                actions[name] = steps
        sheet.do(f"{net.label}, all modes in turn")
        times = time_on(device, actions, sheet.quick, before)
        batch = bench.cell.page.batch_size
        for name, seen in times.items():
            gain = median_ratio(times["fp32"], seen)
            details = {"images a second": round(batch / statistics.median(seen))}
            sheet.tell("modes", f"{net.label}: fp32 step / {name}", gain, "x", details)
        fastest = min(times, key=lambda name: statistics.median(times[name]))
        sheet.facts[f"fastest for {net.label}"] = fastest
        sheet.facts |= {f"{net.label}, {name}: not measured": why for name, why in absent.items()}
        sheet.write()


def set_arithmetic(run: Training, tf32: bool) -> None:
    """Set what torch keeps for the whole process: TF32, and which kernels may be used."""
    set_determinism(run.page, run.device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


VIT: dict[str, Any] = {
    "model": "vit_tiny_patch16_224",
    "model_args": {"patch_size": 4},
    "optimizer": "adamw",
    "lr": 1e-3,
    "clip_norm": 1.0,
    "update_every": 5,
}
TINY_VIT = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}


def check_vit(sheet: Sheet, device: torch.device) -> None:
    """Train a vision transformer with AdamW and clipping through updates; time its step, masked against dense."""
    settings = {**VIT, "model_args": TINY_VIT} if sheet.quick else VIT
    sheet.do("training with updates")
    bench = Bench(R20, device, sheet.quick, **settings)
    run = train_for(bench.begin(), 12)
    alive = 0
    for name, weight in run.maskset.weights.items():
        tensors = [weight.detach(), *(t for t in run.optimizer.state[weight].values() if t.shape == weight.shape)]
        alive += sum(int((tensor[~run.maskset.masks[name]] != 0).sum()) for tensor in tensors)
    facts = {"updates": run.updates, "skipped steps": run.skipped_steps, "batch": run.page.batch_size}
    sheet.tell("ViT", "values outside the masks that are not zero", alive, "", facts)
    sheet.do("training again")
    changed = differences(run, train_for(bench.begin(), 12))
    sheet.tell("ViT", "tensors that differ between two runs", len(changed), "", {"first": changed[:5]})
    sheet.do("timing its step")
    times = time_on(device, {"dense": Steps(bench.dense()), "masked": Steps(bench.begin())}, sheet.quick)
    ratio = median_ratio(times["masked"], times["dense"])
    sheet.tell("ViT", "ViT-Tiny with AdamW: masked step / dense step, eager", ratio, "x", milliseconds(times))


def check_imagenet(sheet: Sheet, device: torch.device) -> None:
    """Time ResNet-50 on images of 224x224, eager and as CUDA graphs; reading images is not part of it."""
    if device.type == "cpu":
        raise NotHereError("a step of ResNet-50 at 224 takes a minute on a CPU")
    bench = Bench(LARGE, device, sheet.quick, batches=2)
    actions = {"eager": Steps(bench.begin())}
    if has_graphs(device):
        actions["graphed"] = Steps(bench.begin(graphs=True))
    times = time_on(device, actions, sheet.quick)
    batch, best = bench.cell.page.batch_size, min(statistics.median(seen) for seen in times.values())
    details = {**milliseconds(times), "batch": batch}
    sheet.tell("G2", f"{LARGE.label}: images a second in training", batch / best, "/s", details)
