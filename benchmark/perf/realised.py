"""P13: realised inference speed: zeros in dense kernels, a narrower network, compressed rows."""

from __future__ import annotations

import copy
from functools import partial

import timm
import torch
from torch import nn

from benchmark.base.timing import median_ratio, milliseconds
from benchmark.inference.csr import CsrLinear
from benchmark.inference.passes import Clock, Mode, Pass
from benchmark.networks.narrow import narrow_arguments
from benchmark.perf.goals import Goal
from benchmark.perf.peers import R50, VGG, Net, make_batch, make_model, sparsify

MODE = Mode("fp32", True)  # channels last, as in training: plain fp32 is slower, above all for dense networks
WIDTH = 0.5
SPARSITY = 0.95  # of the network with zeros
LINEAR = (
    (1024, 4096),
    (768, 3072),
    (2048, 1000),
)  # inputs and outputs: a transformer's MLPs and ResNet-50's classifier


def measure(quick: bool) -> list[Goal]:
    """Return the goals of realised speed, relative to the same network, dense, in fp32."""
    clock = Clock(torch.device("cpu"), 1)
    cases = [(VGG, 1)] if quick else [(VGG, 1), (VGG, 64), (R50, 1), (R50, 8)]
    goals = [goal for net, batch in cases for goal in measure_net(net, batch, clock, 5 if quick else 7)]
    return goals + [measure_linear(shape, clock, 5 if quick else 11) for shape in LINEAR[: 1 if quick else None]]


def measure_net(net: Net, batch: int, clock: Clock, rounds: int) -> list[Goal]:
    """Time a network dense, with zeros, and at half its width."""
    dense = make_model(net, channels_last=False)
    zeros = copy.deepcopy(dense)
    sparsify(zeros, SPARSITY)
    classes = {"num_classes": 1000 if net is R50 else 10}
    slim = timm.create_model(net.model, **narrow_arguments(net.model, classes, WIDTH))
    images, _ = make_batch(net, batch, channels_last=False)
    networks = {"dense": dense, "zeros": zeros, "slim": slim}
    seconds = clock.in_turn([Pass(network, images, MODE) for network in networks.values()], rounds)
    times = dict(zip(networks, seconds, strict=True))
    gain = median_ratio(times["dense"], times["zeros"])
    label = f"{net.label}, batch {batch}"
    return [
        Goal("P13", f"{label}: dense / with zeros", gain, ">=", 0.85, details=milliseconds(times)),
        Goal("P13", f"{label}: dense / with zeros", gain, "<=", 1.2),
        Goal("P13", f"{label}: dense / half the width", median_ratio(times["dense"], times["slim"]), ">=", 3.0),
    ]


def measure_linear(shape: tuple[int, int], clock: Clock, rounds: int) -> Goal:
    """Time a linear layer on 64 inputs, dense and as CSR at 98 % sparsity."""
    torch.manual_seed(0)
    layer = nn.Linear(*shape).requires_grad_(False)
    layer.weight.mul_(torch.rand_like(layer.weight) >= 0.98)
    x = torch.randn(64, shape[0])
    dense, sparse = clock.in_turn([partial(module, x) for module in (layer, CsrLinear(layer))], rounds)
    details = milliseconds({"dense": dense, "csr": sparse})
    what = f"linear {shape[0]} to {shape[1]}, 98 %, batch 64: dense / CSR"
    return Goal("P13", what, median_ratio(dense, sparse), ">=", 5.0, details=details)
