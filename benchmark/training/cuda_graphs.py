"""Forward and backward of a step as a CUDA graph: recorded once, then launched as a whole.

A small network's step is hundreds of short kernels, and launching them one by one takes longer than they do. Only the
two passes are recorded. Masking, clipping, the optimiser's step and updates of masks stay as they are, and read the
gradients where the graph leaves them; weights, masks and state are changed in place, so they keep their addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmark.base.buffers import KeptBuffers
from benchmark.base.errors import UserError, reason
from benchmark.base.system import keep_random_state
from benchmark.config.pages import Page
from benchmark.distributed.ranks import count_ranks

ASKED = "SPARSE_BENCH_GRAPHS"  # the variable of the environment that asks for it
WARM_UP = 3  # passes before the recording: memory is allocated and kernels are chosen

Passes = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # from images and labels to logits and loss, leaves .grad
Replay = Callable[[], None]
Record = Callable[[Callable[[], tuple[Tensor, Tensor]]], tuple[tuple[Tensor, Tensor], Replay]]


def wants_graphs(page: Page, device: torch.device) -> bool:
    """Return whether SPARSE_BENCH_GRAPHS=1 asks for recorded passes; raises UserError where there can be none."""
    if os.environ.get(ASKED, "").lower() not in ("1", "true", "yes", "on"):
        return False
    for obstacle, fault in (
        (device.type != "cuda", f"passes are recorded on a CUDA GPU, and this run is on the {device.type}"),
        (page.compile, "compile=true makes graphs of its own"),
        (count_ranks() > 1, "a run of several processes averages gradients within its passes"),
    ):
        if obstacle:
            raise UserError(f"{ASKED}={os.environ[ASKED]}: {fault}; unset {ASKED}")
    return True


@dataclass(frozen=True)
class Recording:
    """A recorded pair of passes and where they read and write."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    loss: Tensor
    gradients: list[Tensor | None]
    replay: Replay


class GraphedPasses:
    """Passes that are recorded at their first batch, or a larger one later, and replayed for every batch of its shape.

    A batch of another shape (the last of an epoch) is computed as usual. Invariant: gradients, buffers and random state
    after a call are those of `compute`, also after the first.
    """

    def __init__(
        self,
        compute: Passes,
        parameters: Sequence[nn.Parameter],
        buffers: Sequence[Tensor],
        record: Record | None = None,
    ) -> None:
        self.compute, self.parameters, self.buffers = compute, parameters, buffers
        self.record = record or record_on_gpu
        self.recording: Recording | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave the batch's gradients in .grad; return logits and loss, which stay valid until the next call."""
        if self.recording is None or len(images) > len(self.recording.images):  # the first was an epoch's short last
            self.recording = None  # its memory first
            self.recording = self.start(images, labels)
        recording = self.recording
        if images.shape != recording.images.shape:
            return self.compute(images, labels)
        recording.images.copy_(images)
        recording.labels.copy_(labels)
        recording.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient  # set to None, or to another batch's, since the last call
        return recording.logits, recording.loss

    def start(self, images: Tensor, labels: Tensor) -> Recording:
        """Warm up and record, without a trace in the network; raises UserError for one that cannot be recorded."""
        images, labels = images.clone(memory_format=torch.preserve_format), labels.clone()
        kept = KeptBuffers(self.buffers)
        with keep_random_state(images.device):
            try:
                (logits, loss), replay = self.record(partial(self.fresh, images, labels))
            except RuntimeError as error:  # a network that asks the device for a value half-way, for one
                raise UserError(
                    f"this network can't be recorded as a CUDA graph ({reason(error)}): unset {ASKED}"
                ) from error
        gradients = [parameter.grad for parameter in self.parameters]
        kept.put_back()
        return Recording(images, labels, logits, loss, gradients, replay)

    def fresh(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Compute with gradients that start from nothing, so that each replay writes them anew."""
        for parameter in self.parameters:
            parameter.grad = None
        return self.compute(images, labels)


def record_on_gpu(compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Replay]:
    """Record `compute` as a CUDA graph; return its results, filled at each replay, and what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may pin memory meanwhile
        logits, loss = compute()
    return (logits.detach(), loss.detach()), graph.replay
