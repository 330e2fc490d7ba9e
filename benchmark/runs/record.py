"""The record of a finished run, its checks, and the cost of its network without dead filters."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError
from benchmark.base.system import describe_environment, to_cpu
from benchmark.config.cells import PROTOCOL, Cell
from benchmark.config.pages import Page
from benchmark.data.sets import Data
from benchmark.distributed.ranks import count_norm_shares, count_ranks
from benchmark.networks.build import Built, ImageFacts, create_network, model_arguments
from benchmark.networks.filters import count_dead, count_slim, holds_whole_filters
from benchmark.networks.narrow import narrow_arguments
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.training.state import Training
from leaderboard import Record, find_faults
from leaderboard.store.kinds import is_number
from leaderboard.store.schema import AUTHOR, SCHEMA
from leaderboard.tables.table import printable
from methods.core.answers import count_each

DIVERGED_SHARE = 0.01  # of steps skipped: with more, a run has diverged


def make_record(cell: Cell, built: Built, run: Training, command: str, started: datetime) -> Record:
    """Return the record of a finished run; every figure comes from the run's own state."""
    counts = run.maskset.counts()
    active = sum(counts.values())
    alive = sum(p.numel() for p in run.parameters) - run.maskset.total + active
    return {
        "schema": SCHEMA,
        "protocol": PROTOCOL,
        "run": cell.identity,
        "started": stamp(started),
        "finished": stamp(max(datetime.now(timezone.utc), started)),  # the clock may have been set back
        "command": command,
        **describe_author(),
        "status": "diverged" if has_diverged(run) else "ok",
        "skipped_steps": run.skipped_steps,
        "page": describe_page(cell),
        "method": describe_method(cell, built),
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "data": describe_data(run.data),
        **describe_accuracy(run.history, begun=last_round(run)),
        "weights": describe_weights(built, run, active),
        "density": describe_density(built, run, active, alive),
        "layers": describe_layers(built, counts),
        "empty_layers": [name for name, count in counts.items() if count == 0],
        "masks_sha256": run.maskset.sha256(),
        "macs": describe_macs(built, run),
        "history": run.history,
        "updates": run.updates,
        **describe_rounds(run),
        "time": {
            "train_s": run.train_s,
            "eval_s": run.eval_s,
            "total_s": run.train_s + run.eval_s,
            "images_per_s": images_trained(own_page(run), run.data) / run.train_s,
            **run.usage.times(),
        },
        **({"usage": usage} if (usage := run.usage.describe()) else {}),
        "environment": describe_arithmetic(run),
        "git": run.git,
    }


def describe_author() -> dict[str, str]:
    """Return who runs this, as they named themselves; nothing is taken from the machine or from git."""
    author = printable(os.environ.get(AUTHOR, ""))
    return {"author": author} if author else {}


def describe_density(built: Built, run: Training, active: int, alive: int) -> dict[str, float]:
    """Return the shares of the dense network's weights; `reached`: by thresholds, before masks took their place."""
    shares = {"prunable": active / built.dense_prunable, "all_parameters": alive / built.dense_parameters}
    return shares if run.method_state.reached is None else {**shares, "reached": run.method_state.reached}


def count_nonzero(weights: Mapping[str, Tensor], masks: Iterable[str]) -> int:
    """Return how many weights that have masks are not zero, in the network that is evaluated and exported.

    The budget counts active weights, which may be more: a weight that was grown and never had a gradient is zero.
    """
    return sum(count_each(weights[name] for name in masks))


def describe_arithmetic(run: Training) -> dict[str, Any]:
    """Return where and how the run's numbers were computed."""
    return {
        **describe_environment(run.device, run.precision),
        "channels_last": run.channels_last,
        "ranks": count_ranks(),
        "batch_norm_shares": count_norm_shares(run.model),
        **({"cuda_graphs": True} if run.graphs else {}),
        **({"earlier": "; ".join(run.earlier)} if run.earlier else {}),
    }


def refuse_invalid(record: Record, folder: Path) -> None:
    """Raise UserError for a record that the store would refuse: a missed budget, a figure that is not a number."""
    faults = find_faults(record)
    if faults:
        raise UserError(
            f"run {record['run']} ended, but its record is not valid and was not published: {'; '.join(faults[:3])}. "
            f"Its network is in {folder}; start it over with `make bench` and FRESH=1 (sparse-bench run --fresh)"
        )


def stamp(moment: datetime) -> str:
    """Return a moment as ISO-8601 in UTC."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def has_diverged(run: Training) -> bool:
    """Return whether the run ended without a finite loss or skipped more than DIVERGED_SHARE of its steps."""
    steps = own_page(run).epochs * run.timeline.steps_per_epoch
    return run.history[-1]["loss"] is None or run.skipped_steps > DIVERGED_SHARE * steps


def own_page(run: Training) -> Page:
    """Return the page with the epochs that the run itself trains: of a branch, only those after its start."""
    return dataclasses.replace(run.page, epochs=run.last_epoch() - run.first_epoch)


def images_trained(page: Page, data: Data) -> int:
    """Return how many images a whole run trains on, counting repeats."""
    dropped = len(data.train) % page.batch_size if page.drop_last else 0
    return (len(data.train) - dropped) * page.epochs


def describe_weights(built: Built, run: Training, active: int) -> dict[str, Any]:
    """Return the numbers of weights of a finished run, and the hash of those it was started from, where it was."""
    prunable, parameters = run.maskset.total, sum(p.numel() for p in run.parameters)
    return {
        "prunable": prunable,
        "active": active,
        "nonzero": count_nonzero(run.evaluated().state_dict(), run.maskset.masks),
        "parameters": parameters,
        "active_parameters": parameters - prunable + active,
        "dense_prunable": built.dense_prunable,
        "dense_parameters": built.dense_parameters,
        **({"start_sha256": built.start_sha256} if built.start_sha256 else {}),
    }


def describe_page(cell: Cell) -> dict[str, Any]:
    """Return the page as a record keeps it."""
    return {
        "name": cell.page_name,
        "variant": cell.variant,
        "title": cell.title,
        "changed": cell.page_changes,
        "settings": dataclasses.asdict(cell.page),
    }


def describe_method(cell: Cell, built: Built) -> dict[str, Any]:
    """Return the method as a record keeps it."""
    settings = cell.method_settings()
    if cell.method.narrows_network:
        settings["width"] = built.width
    return {
        "name": cell.plugin.name,
        "label": cell.label,
        "reference": cell.method.reference,
        "group": cell.method.leaderboard_group().value,
        "budget": cell.method.promised_budget().value,
        "changed": cell.method_changes,
        "settings": settings,
        "source": cell.plugin.source,
        "sha256": cell.plugin.sha256,
        **({"donor": cell.donor.describe()} if cell.donor is not None else {}),
    }


def describe_start(cell: Cell, built: Built, started: datetime, begun: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's description of its run: when it started, and from where, as `Start.begin` returns it.

    Its "cell" has the fields of a record from which the cell can be rebuilt.
    """
    about = {
        "protocol": PROTOCOL,
        "run": cell.identity,
        "page": describe_page(cell),
        "method": describe_method(cell, built),
        "sparsity": cell.sparsity,
        "seed": cell.seed,
    }
    return {"started": started.isoformat(), "cell": {**about, **begun}, "begun": begun}


def describe_data(data: Data) -> dict[str, Any]:
    """Return the data set as a record keeps it."""
    return {
        "name": data.name,
        "classes": len(data.classes),
        "train": len(data.train),
        "validation": len(data.validation) if data.validation is not None else 0,
        "test": len(data.test),
        "fingerprint": data.fingerprint,
        **({"test_in_train": data.overlap} if data.overlap is not None else {}),
    }


def last_round(run: Training) -> int:
    """Return how many epochs were finished when the last round of training began; 0 where there is one."""
    rounds = run.method_state.rounds
    return run.last_epoch() - run.page.epochs + rounds.back_to if rounds.count > 1 else 0


def describe_rounds(run: Training) -> dict[str, Any]:
    """Return what the record of a run that trained in rounds says of them."""
    rounds = run.method_state.rounds
    if rounds.count == 1:
        return {}
    return {"rounds": {**dataclasses.asdict(rounds), "last_begins": last_round(run)}}


def describe_accuracy(history: list[dict[str, Any]], ties: str = "last", begun: int = 0) -> dict[str, Any]:
    """Return the three accuracies and the epochs they belong to.

    Only epochs with the final density, after the `begun` first ones (those of earlier rounds), are eligible. ties:
    which of equal epochs is taken, "first" (as in records without `ties`) or "last", which has trained longest.
    """
    final = history[-1]
    last = [row for row in history if row["epoch"] > begun]
    eligible = [row for row in last if row["density"] == final["density"] and row["test_acc_pct"] is not None]
    eligible = eligible[::-1] if ties == "last" else eligible
    on_validation = [row for row in eligible if row["validation_acc_pct"] is not None]
    chosen = max(on_validation, key=lambda row: row["validation_acc_pct"], default=None)
    best = max(eligible, key=lambda row: row["test_acc_pct"])
    return {
        "accuracy_pct": {
            "last_epoch": final["test_acc_pct"],
            "validation_selected": chosen["test_acc_pct"] if chosen else None,
            "best_on_test": best["test_acc_pct"],
        },
        "selected": {
            "validation_epoch": chosen["epoch"] if chosen else None,
            "test_epoch": best["epoch"],
            **({"ties": ties} if ties != "first" else {}),
        },
    }


def describe_layers(built: Built, counts: dict[str, int]) -> list[dict[str, Any]]:
    """Return every conv and linear layer with its size, its active weights and its dense multiply-adds."""
    weights = {layer: built.model.get_parameter(layer.name) for layer in built.layers}
    return [
        {
            "name": layer.name,
            "shape": list(weight.shape),
            "weights": weight.numel(),
            "active": counts.get(layer.name, weight.numel()),
            "macs": built.costs.layers[layer.name],
            "prunable": layer.prunable,
        }
        for layer, weight in weights.items()
    ]


def describe_macs(built: Built, run: Training) -> dict[str, Any]:
    """Return inference and training costs, in multiply-adds and as shares of the full dense network's."""
    inference = built.costs.forward(run.maskset.counts())
    return {
        "inference_dense": built.reference.dense,
        "inference": inference,
        "train_dense": run.meter.train_dense,
        "train": run.meter.train,
        "scoring": run.meter.scoring,
        **({"dense_gradients": run.meter.reading} if run.meter.reading else {}),
        "inference_share": inference / built.reference.dense,
        "train_share": run.meter.train / run.meter.train_dense,
        "operators": built.costs.operators,
        "omitted": built.costs.omitted,
    }


def tell_dead(record: Record, run: Training, warn: Callable[[str], None]) -> None:
    """Add to the record of a run that ended its dead filters and weights, `dead`, as `count_dead` finds them.

    Counted on a plain network, as `sparse-bench verify` will. As for `price_slim`, a failure costs a warning alone.
    """
    try:
        network = make_plain(record, run)
    except Exception as error:  # of a backbone that may raise anything at all
        warn(f"the record does not say how many filters are dead: {type(error).__name__}: {error}")
        return
    record["dead"] = count_dead(network, to_cpu(run.maskset.masks))


def make_plain(record: Record, run: Training) -> nn.Module:
    """Return a plain network of the run's, new, on the CPU; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        full = create_network(run.page, model_arguments(run.page, run.data))
        return rebuild_network(record, run.page, run.data, full, run.maskset.masks)


def price_slim(record: Record, run: Training, warn: Callable[[str], None]) -> None:
    """Add `macs.inference_slim`: the multiply-adds of one image without the dead filters, as `sparse-bench slim` does.

    Nothing is added unless the masks remove whole filters; a failure costs a warning, never the record. Invariant:
    nothing else of the record, the run or the global random state changes.
    """
    try:
        found = count_again(record, run)
    except Exception as error:  # a backbone may raise anything
        reason = f"{error}" if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        warn(f"the record lacks the cost of the network without its removed filters: {reason}")
        return
    if found is not None:
        record["macs"]["inference_slim"] = found


def count_again(record: Record, run: Training) -> int | None:
    """Return the figure from a network rebuilt on the CPU, as `sparse-bench slim` does; None where there is none.

    The run's own may be on a GPU, with synchronised norms that cannot be cut. Raises UserError for a figure above the
    dense network's, which a record may not hold.
    """
    masks, page, data = to_cpu(run.maskset.masks), run.page, run.data
    if not holds_whole_filters(masks):
        return None
    network = make_plain(record, run)
    network.load_state_dict(to_cpu(run.evaluated().state_dict()), strict=True)
    found = count_slim(network, masks, page, (data.channels, data.image_size, data.image_size))
    dense = record["macs"]["inference_dense"]
    if found is not None and found > dense:
        raise UserError(f"it has {found:,} multiply-adds, more than the dense network's {dense:,}")
    return found


def rebuild_network(
    record: Record, page: Page, data: ImageFacts, full: nn.Module, masks: Mapping[str, Tensor]
) -> nn.Module:
    """Return the backbone that the masks fit: the full one, or one narrowed to the record's width."""
    prunable = prunable_weights(full, find_layers(full, page))
    if all(name in masks and masks[name].shape == weight.shape for name, weight in prunable.items()):
        return full
    width = record["method"]["settings"].get("width", 1.0)
    if not is_number(width) or not 0 < width <= 1:
        raise UserError(f"record {record['run']}: the width of a narrower network must be in (0, 1], got {width!r}")
    return create_network(page, narrow_arguments(page.model, model_arguments(page, data), width))
