"""2:4 semi-structured weights: what a GPU's sparse tensor cores give where two of every four weights are zero.

No method here trains this pattern, so it is laid on random weights: a network of its own, like the slim one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmark.latency.passes import Pass

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
