"""The run whose speed is measured: its record, the network it exported, and the dense networks it is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, nearest, reason
from benchmark.base.files import run_folder
from benchmark.base.seeds import derive
from benchmark.config.pages import Page, merge_settings
from benchmark.networks.build import count_prunable, create_network, fit_width, model_arguments
from benchmark.runs.export import MASKS, WEIGHTS, read_export
from benchmark.runs.record import rebuild_network
from benchmark.runs.verify import load_record
from benchmark.training.masks import hash_masks
from leaderboard import Record
from leaderboard.store.records import file_key, file_stem, list_files
from methods.core import count_active


@dataclass(frozen=True)
class Images:
    """What a network needs to know of images: their classes, channels and size."""

    classes: tuple[str, ...]
    channels: int
    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.image_size, self.image_size


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

    @property
    def is_narrow(self) -> bool:
        """Whether the run's own network is narrower than the full one."""
        return [w.shape for w in self.network.parameters()] != [w.shape for w in self.dense.parameters()]


def load_subject(name: str, records: Path, runs: Path) -> Subject:
    """Return the run `name`, a run's name or the path of its record, with its networks in evaluation mode on the CPU.

    Raises UserError for an unknown run, a run without exported files, and files of another run. The data set is not
    needed; the global random state is kept.
    """
    candidates = find_records(name, records)
    run = str(candidates[-1]["run"])
    folder = run_folder(runs, run)
    missing = [file for file in (WEIGHTS, MASKS) if not (folder / file).exists()]
    if missing:
        raise UserError(
            f"run {run} has a record but no {' and no '.join(missing)} in {folder}, which is what is measured: name "
            "the folder of runs with --runs, or run it again"
        )
    weights, masks = read_export(folder)
    digest = hash_masks(masks)
    record = next((record for record in reversed(candidates) if record["masks_sha256"] == digest), None)
    if record is None:
        raise UserError(
            f"{folder}: its masks ({digest[:16]}) are not those of run {run}'s record "
            f"({candidates[-1]['masks_sha256'][:16]}): run it again, or name the folder of its files with --runs"
        )
    return make_subject(record, weights, masks, folder)


def find_records(name: str, records: Path) -> list[Record]:
    """Return the records of a run, repeats included, the newest last; raises UserError where there is none."""
    if name.endswith(".json"):
        return [load_record(Path(name))]
    name = Path(name).name  # the path of a run's folder is fine too
    pattern = rf"{re.escape(file_stem(name))}(\.\d+)?"  # RUN.json, then RUN.2.json and so on
    found = [path for path in list_files(records) if re.fullmatch(pattern, path.stem)]
    of_run = [load_record(path) for path in sorted(found, key=lambda path: file_key(path.name))]
    of_run = [record for record in of_run if record["run"] == name]
    if not of_run:
        known = [path.stem for path in list_files(records)]
        where = f"{records}" if known else f"{records}, which holds no record"
        raise UserError(
            f"no record of a run '{name}' in {where}{nearest(name, known) or ';'} a run has the name of its record, "
            "without .json; name the folder with --records"
        )
    return of_run


def make_subject(record: Record, weights: Mapping[str, Tensor], masks: dict[str, Tensor], folder: Path) -> Subject:
    """Return the run with its networks rebuilt; raises UserError where the weights do not fit its backbone."""
    page = merge_settings(record["page"]["settings"], f"record of {record['run']}")
    classes = tuple(map(str, range(record["data"]["classes"])))
    images = Images(classes, len(page.mean), page.image_size)
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
