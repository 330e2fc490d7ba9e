"""Checking a record against the files of its run: everything that can be counted or measured again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

from benchmark.base.errors import UserError, reason
from benchmark.base.files import expand, run_folder
from benchmark.config.cells import hash_protocol
from benchmark.config.pages import Page, merge_settings
from benchmark.config.plugins import find_method, method_names
from benchmark.data.cache import VARIABLE
from benchmark.data.readers import CIFAR
from benchmark.data.sets import Data, load_data
from benchmark.networks.build import count_prunable, create_network, model_arguments
from benchmark.networks.filters import count_dead, cut_slim
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.networks.witness import recount
from benchmark.runs.export import MASKS, WEIGHTS, hash_export, read_export, read_tensors
from benchmark.runs.finished import RECORD, list_repeats, load_record
from benchmark.runs.record import count_nonzero, describe_accuracy, describe_data, images_trained, rebuild_network
from benchmark.training.masks import hash_masks
from benchmark.training.precision import make_autocast, measure_accuracy
from leaderboard import Record
from leaderboard.tables.table import plain, printable
from methods.core import Budget, count_active, count_kept

POINTS = 0.1  # accuracies may differ by this or by one image, since another processor may round scores differently
EPOCHS = ("validation_epoch", "test_epoch")

Finding = tuple[str, Any, Any, bool]  # what, in the record, found again, whether they agree

NOT_RECORDED = "not recorded"
NOT_FOUND_AGAIN = (
    "not found again: training cost before the last epoch, accuracies of earlier epochs, times, memory and energy, "
    "the seed"
)


def verify_record(path: Path, runs: Path, data_root: Path) -> list[Finding]:
    """Compare the record at `path` with the network its run exported, rebuilt and evaluated again.

    path: a record, whose run's files are in `runs`, or a folder in which a run was published, with its own files.
    Only the settings of page and method and the history are taken from the record. Raises UserError when record or
    files cannot be read, or the weights do not fit the backbone.
    """
    path = expand(path)
    published = path.is_dir()
    record = load_record(path / RECORD if published else path)
    recorded = merge_settings(record["page"]["settings"], f"record {path}")
    page = stay_home(recorded)
    if "branch" in record:  # it trained only the epochs after its start
        own = record["branch"]["last_epoch"] - record["branch"]["epoch"]
        page = dataclasses.replace(page, epochs=own)
    folder = path if published else run_folder(runs, record["run"])
    weights, masks = read_export(folder)
    about = read_tensors(folder / WEIGHTS)[1]
    files = compare_files(record, folder)
    if not published and not all(agrees for *_, agrees in files):
        refuse_replaced(path, record, folder)
    with reading_alone(page):
        data = load_data(page, data_root, torch.device("cpu"))
    full = create_network(page, model_arguments(page, data))
    model = rebuild_network(record, page, data, full, masks)
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit {page.model}: {reason(error)}") from error
    return [
        same("run", record["run"], about.get("run")),
        same("table (variant of the page)", record["page"]["variant"], hash_protocol(recorded)),
        *compare_data(record, data),
        *files,
        *compare_masks(record, masks),
        *compare_nonzero(record, weights, masks),
        *compare_dead(record, model, masks),
        *compare_donor(record, masks, runs),
        *compare_sizes(record, page, full, masks),
        *compare_costs(record, page, full, model, data, masks),
        *compare_accuracy(record, model, data),
    ]


def leads_out(page: Page) -> bool:
    """Return whether the page's data lie outside DATA: records are not trusted, and this one chooses the folder."""
    return expand(Path(page.data_dir)).is_absolute() or ".." in Path(page.data_dir).parts


def stay_home(page: Page) -> Page:
    """Return the page with the default data folder if a download would write outside DATA.

    The content of the data is compared anyway.
    """
    return dataclasses.replace(page, data_dir="") if leads_out(page) and page.data in CIFAR else page


@contextmanager
def reading_alone(page: Page) -> Iterator[None]:
    """Keep no cache of images beside a folder outside DATA: a record may lead reading there, and no more."""
    alone = leads_out(page) and not os.environ.get(VARIABLE)  # else the user has said where it is kept
    if alone:
        os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        if alone:
            del os.environ[VARIABLE]


def refuse_replaced(path: Path, record: Record, folder: Path) -> None:
    """Raise UserError where a repeat of the run, on another machine say, has put its own files in place of these."""
    found = hash_export(folder)
    for other, repeat in list_repeats(record["run"], path.parent):
        if repeat.get("files_sha256") == found:
            raise UserError(f"{folder} holds the files of {other.name}, a repeat of this run: verify that record")


def compare_data(record: Record, data: Data) -> list[Finding]:
    """Compare the data's content, and what the record counted in it, as far as it did."""
    found = describe_data(data)
    hashed = same("data", record["data"]["fingerprint"][:16], data.fingerprint[:16])
    names = [name for name in record["data"] if name not in ("name", "fingerprint")]
    return [hashed, *(same(f"data: {plain(name)}", record["data"][name], found.get(name)) for name in names)]


def same(what: str, recorded: Any, found: Any) -> Finding:
    """Return the finding for two values that must be equal."""
    return what, recorded, found, recorded == found


def compare_files(record: Record, folder: Path) -> list[Finding]:
    """Compare the run's files with the recorded hashes, which older records lack."""
    recorded = record.get("files_sha256", {})
    return [
        (f"{name} (sha256)", recorded.get(name, NOT_RECORDED)[:16], found[:16], recorded.get(name, found) == found)
        for name, found in hash_export(folder).items()
    ]


def compare_masks(record: Record, masks: Mapping[str, Tensor]) -> list[Finding]:
    """Compare counts, density and masks, layer by layer."""
    counts = count_layers(masks)
    recorded = {layer["name"]: layer["active"] for layer in record["layers"] if layer["prunable"]}
    findings = [
        same("masks (sha256)", record["masks_sha256"][:16], hash_masks(masks)[:16]),
        same("active weights", record["weights"]["active"], sum(counts.values())),
        same("layers with the recorded count", f"{len(recorded)} of {len(recorded)}", tally(recorded, counts)),
    ]
    budget = budget_kind(record)
    findings.append(same("kind of budget", record["method"]["budget"], budget))
    if budget == Budget.EXACT.value:
        kept = count_kept(record["sparsity"], sum(mask.numel() for mask in masks.values()))
        findings.append(same(f"budget at sparsity {record['sparsity']:g}", kept, sum(counts.values())))
    return findings


def compare_nonzero(record: Record, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> list[Finding]:
    """Count again the active weights that are not zero, if the record has their number; see `count_nonzero`."""
    if "nonzero" not in record["weights"]:
        return []
    recorded = record["weights"]["nonzero"]
    return [same("active weights that are not zero", recorded, count_nonzero(weights, masks))]


def compare_dead(record: Record, model: nn.Module, masks: Mapping[str, Tensor]) -> list[Finding]:
    """Count dead filters and weights again, where the record has them."""
    recorded, found = record.get("dead", {}), count_dead(model, masks)
    names = {"filters": "dead filters", "of": "filters", "weights": "dead weights"}
    return [same(names[key], value, found.get(key)) for key, value in recorded.items()]


def compare_donor(record: Record, masks: Mapping[str, Tensor], runs: Path) -> list[Finding]:
    """Compare the masks of a control with those of its donor, as far as the donor's files are here."""
    donor = record["method"].get("donor")
    if donor is None:
        return []
    whole, ours = donor["masks_sha256"][:16], hash_masks(masks)[:16]
    findings = [same("masks of its donor (sha256)", whole, ours)] if donor["kind"] == "masks" else []
    folder = run_folder(runs, donor["run"])
    if (folder / MASKS).exists():
        theirs = read_export(folder)[1]
        counts = count_layers(theirs)
        findings += [
            same("masks in its donor's file", whole, hash_masks(theirs)[:16]),
            same(
                "layers with its donor's count", f"{len(counts)} of {len(counts)}", tally(counts, count_layers(masks))
            ),
        ]
    return findings


def count_layers(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of active weights of each layer."""
    return {name: int(mask.sum()) for name, mask in masks.items()}


def budget_kind(record: Record) -> str:
    """Return the method's kind of budget: from its class if that is found here, otherwise from the record."""
    name = str(record["method"]["name"])
    if name not in method_names() or record["method"]["source"] != find_method(name).source:
        return str(record["method"]["budget"])
    plugin = find_method(name)
    settings = {key: value for key, value in record["method"]["settings"].items() if key in plugin.settings()}
    try:
        return plugin.cls(sparsity=record["sparsity"], **settings).promised_budget().value
    except (TypeError, ValueError):  # another version of the method
        return plugin.cls.budget.value


def compare_sizes(record: Record, page: Page, full: nn.Module, masks: Mapping[str, Tensor]) -> list[Finding]:
    """Compare the weight counts of the full network, and the densities relative to it."""
    active = count_active(masks)
    idle = sum(mask.numel() for mask in masks.values()) - active
    prunable = count_prunable(full, page)
    parameters = sum(weight.numel() for weight in full.parameters())
    return [
        same("prunable weights, dense", record["weights"]["dense_prunable"], prunable),
        same("parameters, dense", record["weights"]["dense_parameters"], parameters),
        same("density", record["density"]["prunable"], active / prunable),
        same(
            "density of all parameters",
            record["density"]["all_parameters"],
            (record["weights"]["parameters"] - idle) / parameters,
        ),
    ]


def tally(recorded: Mapping[str, int], counts: Mapping[str, int]) -> str:
    """Return `N of M`: how many layers have the recorded number, of all layers in either."""
    right = sum(counts.get(name) == count for name, count in recorded.items())
    return f"{right} of {len(recorded.keys() | counts.keys())}"


def compare_costs(
    record: Record, page: Page, full: nn.Module, model: nn.Module, data: Data, masks: Mapping[str, Tensor]
) -> list[Finding]:
    """Count the costs again, from the rebuilt networks and the exported masks, by the independent second counter."""
    shape = (data.channels, data.image_size, data.image_size)
    dense, seen = recount(full, shape).total, recount(model, shape)
    names = list(prunable_weights(model, find_layers(model, page)))
    inference = seen.forward({name: count for name, count in count_layers(masks).items() if name in names})
    macs, of_layers = record["macs"], {layer["name"]: layer["macs"] for layer in record["layers"]}
    return [
        same("prunable layers", len(names), sum(name in masks for name in names)),
        same("parameters", record["weights"]["parameters"], sum(weight.numel() for weight in model.parameters())),
        same(
            "layers with the recorded macs",
            f"{len(of_layers)} of {len(of_layers)}",
            tally(of_layers, {name: seen.weights[name] for name in of_layers}),
        ),
        same("inference macs, dense", macs["inference_dense"], dense),
        same("inference macs", macs["inference"], inference),
        same("inference share", macs["inference_share"], inference / dense),
        *compare_slim(macs.get("inference_slim"), model, shape, masks),
        same("training macs, dense", macs["train_dense"], 3 * dense * images_trained(page, data)),
        same("training share", macs["train_share"], macs["train"] / macs["train_dense"]),
        *(
            same("training share, last epoch", macs["train_share"], row["train_share"])
            for row in record["history"][-1:]
        ),
    ]


def compare_slim(
    recorded: int | None, model: nn.Module, shape: tuple[int, int, int], masks: Mapping[str, Tensor]
) -> list[Finding]:
    """Count the network without its dead filters again if the record has its cost; a failure is shown as found."""
    if recorded is None:
        return []
    found: int | str | None
    try:
        smaller = cut_slim(model, masks, shape)
        found = None if smaller is None else recount(smaller, shape).total
    except UserError as error:
        found = str(error)
    return [same("inference macs, slim", recorded, found)]


def compare_accuracy(record: Record, model: nn.Module, data: Data) -> list[Finding]:
    """Evaluate the network on the test part, in the record's precision; select its epochs again."""
    environment, cpu = record["environment"], torch.device("cpu")
    channels_last = bool(environment.get("channels_last"))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    found = measure_accuracy(model, data.test, cpu, make_autocast(cpu, environment["precision"]), channels_last)
    recorded = record["accuracy_pct"]["last_epoch"]
    near = recorded is not None and abs(found - recorded) <= max(POINTS, 100 / len(data.test)) + 1e-9
    at_end = ("test accuracy, last epoch (%)", recorded, found, near)
    if not record["history"]:  # it diverged in its first epoch
        return [at_end]
    chosen = record["selected"]
    begun = record.get("rounds", {"last_begins": 0})["last_begins"]
    again = describe_accuracy(record["history"], chosen.get("ties", "first"), begun)
    return [
        at_end,
        *(
            same(f"accuracy by its history, {kind}", record["accuracy_pct"][kind], value)
            for kind, value in again["accuracy_pct"].items()
        ),
        *(same(f"{kind} by its history", chosen[kind], again["selected"][kind]) for kind in EPOCHS),
    ]


def print_findings(console: Console, findings: list[Finding]) -> bool:
    """Print the comparison as a table; return whether everything agrees."""
    table = Table(box=None, pad_edge=False)
    for column in ("what", "record", "found again", "verdict"):
        table.add_column(column, overflow="fold")
    for what, recorded, found, agrees in findings:
        verdict = "same" if agrees else "[red]DIFFERS[/red]"
        table.add_row(what, show(recorded), show(found), "not compared" if recorded == NOT_RECORDED else verdict)
    console.print(table)
    console.print(NOT_FOUND_AGAIN, style="dim")
    return all(finding[3] for finding in findings)


def show(value: Any) -> str:
    """Return a value as the table shows it."""
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return escape(printable(str(value)))  # records are not trusted
