"""Ways to compute a pass through a sparse network, each timed in its fastest mode."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, reason
from benchmark.base.system import exact_fp32
from benchmark.inference.csr import convert_layers, find_winners
from benchmark.inference.onnx_graph import OnnxPass, has_packages
from benchmark.inference.passes import PLAIN, Clock, Mode, Pass, modes_of
from benchmark.inference.subject import Subject
from benchmark.networks.filters import describe_removal, distance, remove_dead_filters

TOLERANCE = 1e-4  # of the largest logit of the plain network
LEAST_COMPARED = 8  # images on which outputs are compared, including those that are timed
ROUNDING_FACTOR = 2.0  # in bf16, outputs may differ this many times as much as the plain network's own in bf16
BUDGET_S = 15.0  # of timing for each batch size, within the limits on rounds
LEAST_ROUNDS, MOST_ROUNDS = 5, 25
KEEPING = ("zeros", "csr", "dead filters", "onnxruntime")  # kernels that compute the run's own function


@dataclass(frozen=True)
class Kernel:
    """One way to run a network: `build` makes its pass over images in a mode; `mode` is the one it is timed in.

    `build` is None where it cannot run here; `note` then says why. Measurements call it an engine.
    """

    name: str
    build: Callable[[Tensor, Mode], Pass] | None
    mode: Mode = PLAIN
    note: str = ""


def measure_batch(subject: Subject, batch: int, clock: Clock, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of every kernel at one batch size, as `leaderboard.store.measurements` stores them.

    Invariant: a kernel of KEEPING has figures only if its outputs match those of the run's network.
    """
    generator = torch.Generator().manual_seed(0)
    compared = torch.randn(max(batch, LEAST_COMPARED), *subject.images.shape, generator=generator).to(clock.device)
    images = compared[:batch]
    kernels = make_kernels(subject, images, clock, tell)
    tell("comparing outputs")
    checked = [(kernel, *check(kernel, subject.network, compared)) for kernel in kernels]
    tell("timing")
    fit = [kernel for kernel, fault, _ in checked if kernel.build is not None and not fault]
    rounds, times = time_kernels(fit, images, clock)
    rows: list[dict[str, Any]] = []
    for kernel, fault, error in checked:
        if kernel.name not in times:
            status = "invalid" if fault else "skipped"
            rows.append({"engine": kernel.name, "status": status, "note": fault or kernel.note})
            continue
        row = {"engine": kernel.name, "status": "ok", "note": kernel.note, "mode": str(kernel.mode)}
        rows.append({**row, **describe_times(times[kernel.name]), **({} if error is None else {"error": error})})
    return {"batch": batch, "rounds": rounds, "engines": compare_with_dense(rows)}


def make_kernels(subject: Subject, images: Tensor, clock: Clock, tell: Callable[[str], None]) -> list[Kernel]:
    """Return every kernel for a batch, the dense ones in the mode that a short trial finds fastest."""
    tell("finding the best dense mode")
    dense = in_best_mode("dense", subject.dense, images, clock)
    build = partial(Pass, subject.network)
    zeros = (
        in_best_mode("zeros", subject.network, images, clock)
        if subject.is_narrow
        else Kernel("zeros", build, dense.mode)
    )
    tell("finding the layers where CSR wins")
    csr = make_csr(subject, zeros, images, clock)
    tell("removing dead filters, narrowing")
    slim = Kernel("slim", None, note=subject.slim_note)
    if subject.slim is not None:
        slim = in_best_mode("slim", subject.slim, images, clock, subject.slim_note)
    plain = Kernel("dense fp32", partial(Pass, subject.dense))
    others = [make_dead(subject, zeros, images, clock), slim, make_semi(dense, images, clock)]
    return [dense, plain, zeros, csr, *others, *make_onnx(subject, clock)]


def in_best_mode(name: str, network: nn.Module, images: Tensor, clock: Clock, note: str = "") -> Kernel:
    """Return the dense kernel of a network in its fastest mode."""
    modes = modes_of(network)
    best, _ = clock.find_fastest([Pass(network, images, mode) for mode in modes])
    return Kernel(name, partial(Pass, network), modes[best], note)


def make_csr(subject: Subject, zeros: Kernel, images: Tensor, clock: Clock) -> Kernel:
    """Return the kernel with CSR weights where they win, in plain fp32 or the best mode, whichever is faster."""
    assert zeros.build is not None
    modules = [name.removesuffix(".weight") for name in subject.masks if name.endswith(".weight")]
    modes = list(dict.fromkeys((PLAIN, zeros.mode)))
    winners = [find_winners(zeros.build(images, mode), modules, clock) for mode in modes]
    builds = [partial(build_csr, zeros.build, names) for names in winners]
    best, _ = clock.find_fastest([build(images, mode) for build, mode in zip(builds, modes, strict=True)])
    count = len(winners[best])
    note = f"{count} of {len(modules)} layers converted"
    if count:
        return Kernel("csr", builds[best], modes[best], note)
    return Kernel("csr", zeros.build, zeros.mode, f"{note}: CSR wins in none, so this is zeros")


def build_csr(build: Callable[[Tensor, Mode], Pass], names: list[str], images: Tensor, mode: Mode) -> Pass:
    """Return a pass with CSR weights in the modules of these names."""
    run = build(images, mode)
    convert_layers(run.network, names)
    return run


def make_dead(subject: Subject, zeros: Kernel, images: Tensor, clock: Clock) -> Kernel:
    """Return the kernel without dead filters; that of zeros where there are none."""
    try:
        smaller, removal = remove_dead_filters(subject.network)
    except Exception as error:  # torch.fx may raise anything
        why = f"the network cannot be traced: {type(error).__name__}: {reason(error)}"
        return Kernel("dead filters", None, note=why)
    note = describe_removal(removal)
    if removal.removed:
        return in_best_mode("dead filters", smaller, images, clock, note)
    return Kernel("dead filters", zeros.build, zeros.mode, f"{note}, so this is zeros")


def make_onnx(subject: Subject, clock: Clock) -> list[Kernel]:
    """Return the kernel of onnxruntime on the run's network, on a CPU; none where its packages are not installed."""
    if not has_packages():
        return []
    try:
        if clock.device.type != "cpu":
            raise UserError("onnxruntime is timed on a CPU")
        build = partial(OnnxPass, subject.onnx)
    except UserError as error:
        return [Kernel("onnxruntime", None, note=str(error))]
    return [Kernel("onnxruntime", build, note=f"version {version('onnxruntime')}, dense kernels, as zeros")]


def make_semi(dense: Kernel, images: Tensor, clock: Clock) -> Kernel:
    """Return the kernel with 2:4 weights in its linear layers, on random weights and in bf16."""
    if why := reason_against(clock.device):
        return Kernel("2:4", None, note=why)
    assert dense.build is not None
    source, mode = dense.build, Mode("bf16", dense.mode.channels_last)

    def build(images: Tensor, mode: Mode) -> Pass:
        run = source(images, mode)
        convert_linear(run)
        return run

    try:
        run = source(images, mode)
        count = convert_linear(run)
        run()
    except RuntimeError as error:
        return Kernel("2:4", None, note=f"torch has no such kernel here: {reason(error)}")
    if not count:
        return Kernel("2:4", None, note=f"no linear layer whose sides are multiples of {MULTIPLE}")
    return Kernel("2:4", build, mode, f"{count} linear layers, on random weights")


def check(kernel: Kernel, network: nn.Module, images: Tensor) -> tuple[str, float | None]:
    """Return what is wrong with a kernel's outputs, or an empty text, and their relative error in plain fp32.

    Only kernels of KEEPING are checked. In plain fp32, without TensorFloat-32, outputs may differ from the plain
    network's by TOLERANCE of the largest; in the timed mode also by ROUNDING_FACTOR times the error that the mode's
    rounding (bf16) causes in the plain network, if that is more.
    """
    if kernel.name not in KEEPING or kernel.build is None:
        return "", None
    with exact_fp32():
        expected = Pass(network, images, PLAIN)().float()
        error = distance(kernel.build(images, PLAIN)(), expected)
    if not error <= TOLERANCE:  # NaN fails too
        return f"its outputs differ from the network's by {error:.1e} of the largest, more than {TOLERANCE:g}", None
    allowed = max(TOLERANCE, ROUNDING_FACTOR * distance(Pass(network, images, kernel.mode)(), expected))
    timed = distance(kernel.build(images, kernel.mode)(), expected)
    if not timed <= allowed:
        return f"its outputs in {kernel.mode} differ by {timed:.1e} of the largest, more than {allowed:.1e}", None
    return "", error


def time_kernels(kernels: list[Kernel], images: Tensor, clock: Clock) -> tuple[int, dict[str, list[float]]]:
    """Return the number of rounds and each kernel's seconds in them, taken in turn."""
    passes = [kernel.build(images, kernel.mode) for kernel in kernels if kernel.build is not None]
    round_s = sum(clock.seconds(run) * clock.choose_repeats(run) for run in passes)
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(BUDGET_S / max(round_s, 1e-9))))
    return rounds, dict(zip([kernel.name for kernel in kernels], clock.in_turn(passes, rounds), strict=True))


def describe_times(seconds: list[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, middle, high = (1000 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"ms": middle, "low_ms": low, "high_ms": high}


def compare_with_dense(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row its speed-up over the best dense mode: plain fp32, if that beats the mode chosen by trial."""
    by_name = {row["engine"]: row for row in rows}
    dense, plain = by_name["dense"], by_name["dense fp32"]
    if plain["ms"] < dense["ms"]:
        dense |= {key: plain[key] for key in ("ms", "low_ms", "high_ms", "mode")}
    for row in rows:
        if "ms" in row:
            row["speed_up"] = dense["ms"] / row["ms"]
    return rows


LEAST_CAPABILITY = (8, 0)
MULTIPLE = 64  # of both sides of a weight, as the 16-bit format requires


def reason_against(device: torch.device) -> str:
    """Return why a device has no 2:4 kernels, or an empty text."""
    if device.type != "cuda":
        return "2:4 kernels need a GPU"
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return f"2:4 kernels need a GPU of compute capability {'.'.join(map(str, LEAST_CAPABILITY))} or later"
    return ""


def keep_two_of_four(weight: Tensor) -> Tensor:
    """Return a weight with the two smaller of every four neighbours in a row set to zero."""
    groups = weight.reshape(-1, 4)
    kept = torch.zeros_like(groups).scatter_(1, groups.abs().topk(2, dim=1).indices, 1.0)
    return (groups * kept).reshape(weight.shape)


def convert_linear(run: Pass) -> int:
    """Give the linear layers of a bf16 pass 2:4 weights, in place; return how many have a suitable shape."""
    layers = [layer for layer in run.network.modules() if isinstance(layer, nn.Linear)]
    fitting = [layer for layer in layers if all(size % MULTIPLE == 0 for size in layer.weight.shape)]
    for layer in fitting:
        sparse = torch.sparse.to_sparse_semi_structured(keep_two_of_four(layer.weight.detach()))
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return len(fitting)
