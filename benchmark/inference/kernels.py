"""Ways to compute a pass through a sparse network, each timed in its best mode."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base import errors
from benchmark.inference.csr import convert_layers, find_winners
from benchmark.inference.passes import PLAIN, Clock, Mode, Pass, modes_of
from benchmark.inference.subject import Subject
from benchmark.networks.filters import describe_removal, remove_dead_filters

TOLERANCE = 1e-4  # of the largest logit of the plain network
LEAST_COMPARED = 8  # images on which outputs are compared; those that are timed are among them
ROUNDING_FACTOR = 2.0  # in bf16, outputs may be so many times as far off as the plain network's own in bf16
BUDGET_S = 15.0  # of the timing itself, for each batch; within the bounds of rounds
LEAST_ROUNDS, MOST_ROUNDS = 5, 25
KEEPING = ("zeros", "csr", "dead filters")  # what computes the run's own function


@dataclass(frozen=True)
class Engine:
    """One way to run a network: `build` makes its pass over images in a mode; `mode` is the one it is timed in.

    `build` is None for an engine that cannot run here; the note then says why.
    """

    name: str
    build: Callable[[Tensor, Mode], Pass] | None
    mode: Mode = PLAIN
    note: str = ""


def measure_batch(subject: Subject, batch: int, clock: Clock, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of every engine at one batch size, as `leaderboard.store.measurements` keeps them.

    Invariant: an engine of KEEPING has figures only where its outputs are those of the run's network.
    """
    generator = torch.Generator().manual_seed(0)
    compared = torch.randn(max(batch, LEAST_COMPARED), *subject.images.shape, generator=generator).to(clock.device)
    images = compared[:batch]
    engines = make_engines(subject, images, clock, tell)
    tell("comparing outputs")
    checked = [(engine, *check(engine, subject.network, compared)) for engine in engines]
    fit = [engine for engine, fault, _ in checked if engine.build is not None and not fault]
    tell("timing")
    rounds, times = time_engines(fit, images, clock)
    rows = []
    for engine, fault, error in checked:
        row: dict[str, Any] = {"engine": engine.name, "status": "ok", "note": engine.note, "mode": str(engine.mode)}
        if engine.build is None or fault:
            row |= {"status": "invalid" if fault else "skipped", "note": fault or engine.note}
            del row["mode"]
        else:
            row |= describe_times(times[engine.name])
            row |= {} if error is None else {"error": error}
        rows.append(row)
    return {"batch": batch, "rounds": rounds, "engines": compare_with_dense(rows)}


def make_engines(subject: Subject, images: Tensor, clock: Clock, tell: Callable[[str], None]) -> list[Engine]:
    """Return every engine for a batch; those of dense kernels in the mode that a short contest finds the fastest."""
    tell("finding the best dense mode")
    dense = in_best_mode("dense", subject.dense, images, clock)
    same = [w.shape for w in subject.network.parameters()] == [w.shape for w in subject.dense.parameters()]
    build = partial(Pass, subject.network)
    zeros = Engine("zeros", build, dense.mode) if same else in_best_mode("zeros", subject.network, images, clock)
    tell("finding the layers where CSR wins")
    csr = make_csr(subject, zeros, images, clock)
    tell("removing dead filters, narrowing")
    if subject.slim is None:
        slim = Engine("slim", None, note=subject.slim_note)
    else:
        slim = in_best_mode("slim", subject.slim, images, clock, subject.slim_note)
    plain = Engine("dense fp32", partial(Pass, subject.dense))
    return [dense, plain, zeros, csr, make_dead(subject, zeros, images, clock), slim, make_semi(dense, images, clock)]


def in_best_mode(name: str, network: nn.Module, images: Tensor, clock: Clock, note: str = "") -> Engine:
    """Return the engine of a network in dense kernels, in the fastest of its modes."""
    modes = modes_of(network)
    best, _ = clock.find_fastest([Pass(network, images, mode) for mode in modes])
    return Engine(name, partial(Pass, network), modes[best], note)


def make_csr(subject: Subject, zeros: Engine, images: Tensor, clock: Clock) -> Engine:
    """Return the engine with CSR weights where they win, beside plain fp32 or the best mode, whichever is faster."""
    assert zeros.build is not None
    modules = [name.removesuffix(".weight") for name in subject.masks]
    modes = list(dict.fromkeys((PLAIN, zeros.mode)))
    winners = [find_winners(zeros.build(images, mode), modules, clock) for mode in modes]
    builds = [partial(build_csr, zeros.build, names) for names in winners]
    best, _ = clock.find_fastest([build(images, mode) for build, mode in zip(builds, modes, strict=True)])
    count = len(winners[best])
    note = f"{count} of {len(modules)} layers converted"
    if count:
        return Engine("csr", builds[best], modes[best], note)
    return Engine("csr", zeros.build, zeros.mode, f"{note}: CSR wins in none, so this is zeros")


def build_csr(build: Callable[[Tensor, Mode], Pass], names: list[str], images: Tensor, mode: Mode) -> Pass:
    """Return a pass with CSR weights in the modules of these names."""
    run = build(images, mode)
    convert_layers(run.network, names)
    return run


def make_dead(subject: Subject, zeros: Engine, images: Tensor, clock: Clock) -> Engine:
    """Return the engine without the filters that have no effect; that of zeros where there are none."""
    try:
        smaller, removal = remove_dead_filters(subject.network)
    except Exception as error:  # torch.fx raises anything at all for a network that it cannot follow
        reason = str(error).strip().splitlines()[:1] or [""]
        return Engine("dead filters", None, note=f"the network cannot be traced: {type(error).__name__}: {reason[0]}")
    note = describe_removal(removal)
    if removal.removed:
        return in_best_mode("dead filters", smaller, images, clock, note)
    return Engine("dead filters", zeros.build, zeros.mode, f"{note}, so this is zeros")


def make_semi(dense: Engine, images: Tensor, clock: Clock) -> Engine:
    """Return the engine with 2:4 weights in its linear layers, on random weights and in bf16."""
    reason = reason_against(clock.device)
    if reason:
        return Engine("2:4", None, note=reason)
    assert dense.build is not None
    mode = Mode("bf16", dense.mode.channels_last)
    source = dense.build

    def build(images: Tensor, mode: Mode) -> Pass:
        run = source(images, mode)
        convert_linear(run)
        return run

    try:
        run = source(images, mode)
        count = convert_linear(run)
        run()
    except RuntimeError as error:
        return Engine("2:4", None, note=f"torch has no such kernel here: {errors.reason(error)}")
    if not count:
        return Engine("2:4", None, note=f"no linear layer whose sides are multiples of {MULTIPLE}")
    return Engine("2:4", build, mode, f"{count} linear layers, on random weights")


def check(engine: Engine, network: nn.Module, images: Tensor) -> tuple[str, float | None]:
    """Return what is wrong with an engine's outputs, or an empty text, and how far off they are in plain fp32.

    Only engines of KEEPING are held to anything. In plain fp32, without TensorFloat-32, every output may differ from
    the plain network's by TOLERANCE of its largest. In the mode that is timed likewise, or by ROUNDING_FACTOR times
    what the mode's own rounding (bf16) costs the plain network, where that is more.
    """
    if engine.name not in KEEPING or engine.build is None:
        return "", None
    with exact_fp32():
        expected = Pass(network, images, PLAIN)().float()
        error = distance(engine.build(images, PLAIN)(), expected)
    if not error <= TOLERANCE:  # NaN is no match either
        return f"its outputs differ from the network's by {error:.1e} of the largest, more than {TOLERANCE:g}", None
    rounding = distance(Pass(network, images, engine.mode)(), expected)
    allowed = max(TOLERANCE, ROUNDING_FACTOR * rounding)
    timed = distance(engine.build(images, engine.mode)(), expected)
    if not timed <= allowed:
        return f"its outputs in {engine.mode} differ by {timed:.1e} of the largest, more than {allowed:.1e}", None
    return "", error


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Keep a GPU from rounding fp32 products to TensorFloat-32 meanwhile."""
    matmul, conv = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, conv


def distance(outputs: Tensor, expected: Tensor) -> float:
    """Return the largest difference between outputs as a share of the largest one expected."""
    return float((outputs.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def time_engines(engines: list[Engine], images: Tensor, clock: Clock) -> tuple[int, dict[str, list[float]]]:
    """Return the number of rounds and each engine's seconds in them, taken in turn."""
    passes = [engine.build(images, engine.mode) for engine in engines if engine.build is not None]
    round_s = sum(clock.seconds(run) * clock.choose_repeats(run) for run in passes)
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(BUDGET_S / max(round_s, 1e-9))))
    return rounds, dict(zip([engine.name for engine in engines], clock.in_turn(passes, rounds), strict=True))


def describe_times(seconds: list[float]) -> dict[str, float]:
    """Return median and quartiles in milliseconds."""
    low, middle, high = (1000 * value for value in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"ms": middle, "low_ms": low, "high_ms": high}


def compare_with_dense(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with each engine's speed-up over the best dense mode.

    Should plain fp32 turn out faster than the mode that the contest chose, it is the best one.
    """
    by_name = {row["engine"]: row for row in rows}
    dense, plain = by_name["dense"], by_name["dense fp32"]
    if plain["ms"] < dense["ms"]:
        dense |= {key: plain[key] for key in ("ms", "low_ms", "high_ms", "mode")}
    for row in rows:
        if "ms" in row:
            row["speed_up"] = dense["ms"] / row["ms"]
    return rows


LEAST_CAPABILITY = (8, 0)
MULTIPLE = 64  # of both sides of a weight, as the 16-bit format asks


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
    """Give the linear layers of a bf16 pass 2:4 weights, in place; return how many have a shape that allows it."""
    layers = [layer for layer in run.network.modules() if isinstance(layer, nn.Linear)]
    fitting = [layer for layer in layers if all(size % MULTIPLE == 0 for size in layer.weight.shape)]
    for layer in fitting:
        sparse = torch.sparse.to_sparse_semi_structured(keep_two_of_four(layer.weight.detach()))
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return len(fitting)
