"""The run whose speed is measured: its record, the network it exported, and the dense networks it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, reason
from benchmark.base.seeds import derive
from benchmark.config.pages import Page, merge_settings
from benchmark.inference.onnx_graph import to_onnx
from benchmark.networks.build import count_prunable, create_network, fit_width, model_arguments
from benchmark.runs.finished import Images, find_finished, read_images
from benchmark.runs.record import rebuild_network
from leaderboard import Record
from methods.core import count_active


@dataclass(frozen=True)
class Subject:
    """A run: `network` as exported, `dense` the full network with random weights, `slim` a narrower one.

    `slim` is None where the backbone cannot be narrowed; `slim_note` then says why, otherwise its size.
    """

    record: Record
    images: Images
    masks: dict[str, Tensor]
    network: nn.Module
    dense: nn.Module
    slim: nn.Module | None
    slim_note: str

    @cached_property
    def onnx(self) -> bytes:
        """The network as an ONNX file; raises UserError where it cannot be one."""
        return to_onnx(self.network, self.images.shape)

    @property
    def is_narrow(self) -> bool:
        """Whether the run's own network is narrower than the full one."""
        return [w.shape for w in self.network.parameters()] != [w.shape for w in self.dense.parameters()]


def load_subject(name: str, records: Path, runs: Path) -> Subject:
    """Return the run `name`, found by `find_finished`, with its networks in evaluation mode on the CPU.

    The data set is not needed; the global random state is kept.
    """
    run = find_finished(name, records, runs)
    return make_subject(run.record, run.weights, run.masks, run.folder)


def make_subject(record: Record, weights: Mapping[str, Tensor], masks: dict[str, Tensor], folder: Path) -> Subject:
    """Return the run with its networks rebuilt; raises UserError where the weights do not fit its backbone."""
    page = merge_settings(record["page"]["settings"], f"record of {record['run']}")
    images = read_images(record, page)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("latency"))
        dense = create_network(page, model_arguments(page, images))
        network = rebuild_network(record, page, images, create_network(page, model_arguments(page, images)), masks)
        slim, note = make_slim(page, images, count_active(masks))
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit {page.model}: {reason(error)}") from error
    return Subject(record, images, masks, network.eval(), dense.eval(), slim and slim.eval(), note)


def make_slim(page: Page, images: Images, budget: int) -> tuple[nn.Module | None, str]:
    """Return a dense random network with at most `budget` prunable weights, and its size; or None, and why."""
    try:
        width, arguments = fit_width(page, images, budget)
    except UserError as error:
        return None, str(error)
    slim = create_network(page, arguments)
    return slim, f"{width:g} of the width, {count_prunable(slim, page):,} prunable weights to the run's {budget:,}"


def packed_bytes(subject: Subject) -> int:
    """Return the size of the run's network in a file: masks as bits, active weights in fp32, the rest as it is."""
    state = subject.network.state_dict()
    bits = sum(-(-mask.numel() // 8) for mask in subject.masks.values())
    rest = sum(int(tensor.nbytes) for name, tensor in state.items() if name not in subject.masks)
    return bits + 4 * count_active(subject.masks) + rest


def dense_bytes(subject: Subject) -> int:
    """Return the size of the full dense network in a file."""
    return sum(int(tensor.nbytes) for tensor in subject.dense.state_dict().values())
