"""The schema of a record, and the seal that shows whether it was edited."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

from leaderboard.store.kinds import (
    ABOVE_0,
    AT_LEAST_0,
    BOOL,
    CLASSES,
    DIGEST,
    NAME,
    NUMBER,
    OBJECT,
    PERCENT,
    SHARE,
    SPARSITY,
    TEXT,
    TIME,
    WHOLE,
    Kind,
    is_whole,
    list_of,
    make_test,
    map_of,
    one_of,
    or_null,
    parse_time,
    shorten,
    type_faults,
)

Record = dict[str, Any]
SCHEMA = 2  # 1 had no seal
READABLE = (1, 2)
AUTHOR = "SPARSE_BENCH_AUTHOR"  # the variable of the environment that a record takes its author from
BROKEN = "its content does not match its seal: it was edited or damaged after it was written"


class RecordError(ValueError):
    """A record that breaks a rule; the message names the run and every rule it breaks."""


class UnreadableError(RecordError):
    """A record that cannot be read at the moment; it may be whole."""


GROUPS = ("dense", "before training", "sparse-to-sparse", "dense-to-sparse", "control")
POINT = {"test_acc_pct": PERCENT, "validation_acc_pct": or_null(PERCENT), "active": WHOLE}
DONATIONS = ("densities", "masks", "shuffled masks", "shuffled filters")

# As `leaderboard.store.kinds` reads nested rules: a key that ends in "?" may be absent.
FIELDS: dict[str, Any] = {
    "schema": Kind("1 or 2, the ones that this version reads", lambda value: value in READABLE and is_whole(value)),
    "seal?": DIGEST,
    "protocol": WHOLE,
    "run": NAME,
    "started": TIME,
    "finished": TIME,
    "command": TEXT,
    "author?": TEXT,  # who ran it, as they named themselves
    "status": one_of("ok", "diverged"),
    "skipped_steps": WHOLE,
    "page": {"name": NAME, "variant": TEXT, "title": TEXT, "changed": OBJECT, "settings": OBJECT},
    "method": {
        "name": NAME,
        "label": TEXT,
        "title?": TEXT,
        "reference": Kind("a text", lambda value: isinstance(value, str)),
        "group": one_of(*GROUPS),
        "budget": one_of("exact", "outcome", "dense"),
        "changed": OBJECT,
        "settings": OBJECT,
        "source": TEXT,
        "sha256": DIGEST,
        # Of a control made from another run: that run, what was taken from it, and the masks it ended with.
        "donor?": {
            "run": NAME,
            "label": TEXT,
            "sparsity": SPARSITY,
            "seed": WHOLE,
            "kind": one_of(*DONATIONS),
            "masks_sha256": TEXT,
        },
    },
    "sparsity": SPARSITY,
    "seed": WHOLE,
    "data": {
        **dict.fromkeys(("name", "fingerprint"), TEXT),
        "classes": CLASSES,
        **dict.fromkeys(("train", "validation", "test"), WHOLE),
        "test_in_train?": WHOLE,  # test images that are training images too
    },
    "accuracy_pct": dict.fromkeys(("last_epoch", "validation_selected", "best_on_test"), or_null(PERCENT)),
    "selected": {
        "validation_epoch": or_null(WHOLE),
        "test_epoch": or_null(WHOLE),
        "ties?": one_of("first", "last"),  # which of epochs of equal accuracy was taken; the first where it is absent
    },
    "weights": {
        "prunable": ABOVE_0,
        "active": WHOLE,
        "nonzero?": WHOLE,  # active weights whose value at the end is not zero: one grown may never have had a gradient
        "parameters": ABOVE_0,
        "active_parameters": WHOLE,
        "dense_prunable": ABOVE_0,
        "dense_parameters": ABOVE_0,
        "start_sha256?": DIGEST,  # of the weights that the run started from, where its seed did not draw them
    },
    "density": {
        "prunable": AT_LEAST_0,
        "all_parameters": AT_LEAST_0,
        "reached?": SHARE,  # by learned thresholds, of the prunable weights, when masks took their place
    },
    "layers": [
        {"name": TEXT, "shape": list_of(WHOLE), "weights": WHOLE, "active": WHOLE, "macs": WHOLE, "prunable": BOOL}
    ],
    "empty_layers": list_of(TEXT),
    # Filters without an active weight, of all filters of the prunable layers; active weights that read one, or belong
    # to one that nothing reads, absent where the network could not be followed.
    "dead?": {"filters": WHOLE, "of": ABOVE_0, "weights?": WHOLE},
    "masks_sha256": TEXT,
    "files_sha256?": map_of(DIGEST),  # of the exported files, by name
    # Of a run that trained the page's epochs more than once: how often, the epoch that rounds go back to, whether only
    # the learning rate does, and how many epochs were finished when the last round began. Accuracies are of that one.
    "rounds?": {"count": ABOVE_0, "back_to": WHOLE, "keep_weights": BOOL, "last_begins": WHOLE},
    "macs": {
        "inference_dense": ABOVE_0,
        "inference": WHOLE,
        "inference_slim?": ABOVE_0,  # of whole filters, without the inputs that removed ones free
        "train_dense": ABOVE_0,
        "train": WHOLE,
        "scoring": WHOLE,
        "dense_gradients?": WHOLE,  # read beyond those that steps are taken with, included in train
        "inference_share": AT_LEAST_0,
        "train_share": AT_LEAST_0,
        "operators": map_of(WHOLE),
        "omitted": map_of(WHOLE),
    },
    "history": [
        {
            "epoch": WHOLE,
            "step": WHOLE,
            "lr": NUMBER,
            "loss": or_null(NUMBER),
            "train_acc_pct": or_null(PERCENT),
            "validation_acc_pct": or_null(PERCENT),
            "test_acc_pct": or_null(PERCENT),
            "density": AT_LEAST_0,
            "train_share": AT_LEAST_0,
            "explored?": SHARE,  # of the prunable weights, those ever active so far (R_s of ITOP, arXiv:2102.02887)
        }
    ],
    "updates": WHOLE,
    "time": {
        **dict.fromkeys(("train_s", "eval_s", "total_s", "images_per_s"), AT_LEAST_0),
        "updates_s?": AT_LEAST_0,  # of the training time, in mask updates
    },
    # What a run took of the machine, over all its interruptions; absent where it is not known. Peaks are of one process
    # (rank 0's): what it held, and what torch took from the device. The rest is that of whole devices, whoever uses
    # them: `of` names them and who told it. utilisation_pct: mean share of time in which a kernel ran; processes: the
    # most that used the device at once, as far as its driver shows them.
    "usage?": {
        "process_peak_bytes?": ABOVE_0,
        "device_peak_bytes?": ABOVE_0,
        "gpu?": {"of": TEXT, "energy_j?": AT_LEAST_0, "utilisation_pct?": PERCENT, "processes?": ABOVE_0},
        "cpu?": {"of": TEXT, "energy_j?": AT_LEAST_0},
    },
    "environment": {
        **dict.fromkeys(("device", "precision", "torch", "timm", "python", "platform"), TEXT),
        "earlier?": TEXT,  # machines and versions under which it was trained before it was continued here
        "ranks?": ABOVE_0,  # processes that trained together; one where it is absent
        "batch_norm_shares?": ABOVE_0,  # in which a batch was normalised: the ranks, or one where they synchronised
    },
    "git": {"commit": or_null(TEXT), "dirty": or_null(BOOL)},
    # Of a run that continues from a snapshot of another, its parent: history, costs and times are its own from there.
    "branch?": {
        "parent": NAME,
        "parent_label": TEXT,
        "parent_sparsity": SPARSITY,
        "epoch": ABOVE_0,  # after which it begins, counted from the parent's start, as all epochs and steps
        "step": ABOVE_0,
        "snapshot_sha256": DIGEST,
        "last_epoch": ABOVE_0,
        "hold_lr": BOOL,
        "lr": NUMBER,  # when it begins
        "changed": OBJECT,
        "before": POINT,  # the method is asked for masks
        "after": POINT,
        "unpruned_acc_pct": or_null(PERCENT),  # of the parent, after its last epoch; null where it had not finished
    },
}

is_typed = make_test(FIELDS)


def find_faults(record: Any) -> list[str]:
    """Return every rule that `record` breaks, in words; an empty list for a valid record.

    What is not plain JSON or has an unknown schema is reported as such and not examined. Otherwise a broken seal comes
    first. A record still to be written may lack its seal.
    """
    if not isinstance(record, dict):
        return find_rule_faults(record)
    try:
        seal = seal_of(record)
    except (TypeError, ValueError, RecursionError) as error:
        return [f"is not plain JSON: {error}"]
    sealed = has_known_schema(record) and record.get("schema") != 1 and DIGEST.accepts(record.get("seal"))
    broken = [BROKEN] if sealed and record["seal"] != seal else []
    return broken + find_rule_faults(record)


def find_rule_faults(record: Any) -> list[str]:
    """Return what `find_faults` does, for plain JSON whose seal is known to be right.

    Numbers are compared with each other only if no key is missing and no type is wrong.
    """
    if isinstance(record, dict) and not has_known_schema(record):
        return list(type_faults(record["schema"], FIELDS["schema"], "schema"))
    if not is_typed(record):
        return list(type_faults(record, FIELDS, ""))
    faults = [*count_faults(record), *budget_faults(record), *cost_faults(record), *history_faults(record)]
    faults += branch_faults(record) if "branch" in record else []
    faults += round_faults(record) if "rounds" in record else []
    if not ABOVE_0.accepts(epochs := record["page"]["settings"].get("epochs", 1)):
        faults.append(f"page.settings.epochs must be {ABOVE_0.rule}, got {shorten(epochs)}")
    if record["schema"] == 1 and "seal" in record:
        faults.append(f"seal must be absent in a record of schema 1, got {shorten(record['seal'])}")
    return faults


def has_known_schema(record: Record) -> bool:
    """Return whether this version reads the record's schema, or there is none."""
    return "schema" not in record or FIELDS["schema"].accepts(record["schema"])


def count_faults(record: Record) -> Iterator[str]:
    """Yield where the counts of layers, weights and densities disagree."""
    weights, density = record["weights"], record["density"]
    prunable = [layer for layer in record["layers"] if layer["prunable"]]
    for layer in record["layers"]:
        name = f"layer '{layer['name']}'"
        if layer["weights"] != math.prod(layer["shape"]):
            yield f"{name} has {layer['weights']} weights, its shape {layer['shape']} has {math.prod(layer['shape'])}"
        if layer["active"] > layer["weights"]:
            yield f"{name} has {layer['active']} active of {layer['weights']} weights"
        if not layer["prunable"] and layer["active"] != layer["weights"]:
            yield f"{name} is not prunable but has {layer['active']} active of {layer['weights']} weights"
    for key, part in (("prunable", "weights"), ("active", "active")):
        total = sum(layer[part] for layer in prunable)
        if weights[key] != total:
            yield f"weights.{key} is {weights[key]}, the prunable layers have {total}"
    if weights.get("nonzero", 0) > weights["active"]:
        yield f"weights.nonzero is {weights['nonzero']}, more than weights.active ({weights['active']})"
    empty = [layer["name"] for layer in prunable if layer["active"] == 0]
    if sorted(empty) != sorted(record["empty_layers"]):
        yield f"empty_layers is {shorten(record['empty_layers'])}, without active weights are {shorten(empty)}"
    dead = record.get("dead", {"filters": 0, "of": 1})
    for key, most in (("filters", dead["of"]), ("weights", weights["active"])):
        if dead.get(key, 0) > most:
            yield f"dead.{key} is {dead[key]}, more than there are ({most})"
    left = weights["parameters"] - weights["prunable"] + weights["active"]
    if weights["active_parameters"] != left:
        yield f"weights.active_parameters is {weights['active_parameters']}, parameters less inactive ones is {left}"
    yield from quotient_fault("density.prunable", density["prunable"], weights, "active", "dense_prunable", 1e-12)
    yield from quotient_fault(
        "density.all_parameters", density["all_parameters"], weights, "active_parameters", "dense_parameters", 1e-12
    )


def quotient_fault(name: str, value: float, of: Record, top: str, bottom: str, tolerance: float) -> Iterator[str]:
    """Yield a fault if the quotient `name` is not of[top] / of[bottom] within `tolerance`."""
    if abs(value - of[top] / of[bottom]) > tolerance:
        yield f"{name} is {value}, {top} / {bottom} is {of[top] / of[bottom]}"


def budget_faults(record: Record) -> Iterator[str]:
    """Yield where the number of active weights is not the one asked for.

    A diverged run may have stopped before its method reached the target, so only finished runs must meet it.
    """
    weights, budget, sparsity = record["weights"], record["method"]["budget"], record["sparsity"]
    if budget == "dense" and sparsity != 0:
        yield f"sparsity must be 0 for a dense budget, got {sparsity}"
    if budget != "outcome":
        for key in ("prunable", "parameters"):
            if weights[key] != weights[f"dense_{key}"]:
                yield f"weights.{key} is {weights[key]}, the full network has {weights[f'dense_{key}']}"
    asked = weights["prunable"] if budget == "dense" else round((1 - sparsity) * weights["prunable"])
    if budget != "outcome" and record["status"] == "ok" and weights["active"] != asked:
        yield f"misses its budget: {weights['active']} active weights, sparsity {sparsity} asks for {asked}"


def cost_faults(record: Record) -> Iterator[str]:
    """Yield where costs, accuracies and times contradict each other."""
    macs, history = record["macs"], record["history"]
    for part in ("inference", "train"):
        yield from quotient_fault(f"macs.{part}_share", macs[f"{part}_share"], macs, part, f"{part}_dense", 1e-9)
    if macs.get("inference_slim", 0) > macs["inference_dense"]:
        yield f"macs.inference_slim is {macs['inference_slim']}, the dense network has {macs['inference_dense']}"
    for part in ("scoring", "dense_gradients"):
        if macs.get(part, 0) > macs["train"]:
            yield f"macs.{part} is {macs[part]}, more than macs.train ({macs['train']}), which includes it"
    last = record["accuracy_pct"]["last_epoch"]
    if record["status"] == "ok":
        if last is None:
            yield "accuracy_pct.last_epoch is null in a run that did not diverge"
        elif not history:
            yield "history is empty in a run that did not diverge"
        elif history[-1]["test_acc_pct"] != last:
            yield f"accuracy_pct.last_epoch is {last}, the history ends at {history[-1]['test_acc_pct']}"
        elif (best := record["accuracy_pct"]["best_on_test"]) is not None and best < last:
            yield f"accuracy_pct.best_on_test is {best}, below last_epoch ({last}), which is one of the epochs it is of"
    if parse_time(record["finished"]) < parse_time(record["started"]):
        yield f"finished ({record['finished']}) is before started ({record['started']})"


def history_faults(record: Record) -> Iterator[str]:
    """Yield where the share of weights ever active is below the density, or falls."""
    before = 0.0
    for number, row in enumerate(record["history"]):
        if "explored" in row:
            explored = row["explored"]
            if explored < row["density"] - 1e-9:
                yield f"history[{number}].explored is {explored}, below the density {row['density']}"
            if explored < before:
                yield f"history[{number}].explored is {explored}, after {before}: it can only grow"
            before = explored


def branch_faults(record: Record) -> Iterator[str]:
    """Yield where a branch does not begin and end at its stated epochs."""
    branch, history = record["branch"], record["history"]
    if branch["last_epoch"] <= branch["epoch"]:
        yield f"branch.last_epoch is {branch['last_epoch']}, not after epoch {branch['epoch']}, where it begins"
    ends = [row["epoch"] for row in history]
    if record["status"] == "ok" and ends != list(range(branch["epoch"] + 1, branch["last_epoch"] + 1)):
        yield f"history has epochs {shorten(ends)}, the branch those after {branch['epoch']} to {branch['last_epoch']}"


def round_faults(record: Record) -> Iterator[str]:
    """Yield where an epoch was selected before the last round of training began."""
    begun = record["rounds"]["last_begins"]
    for key in ("validation_epoch", "test_epoch"):
        epoch = record["selected"][key]
        if epoch is not None and epoch <= begun:
            yield f"selected.{key} is {epoch}, the last round begins after epoch {begun}"


UNSEALED = ("seal", "file")  # about a record, not part of it: its checksum and its file's name


def seal_of(record: dict[str, Any]) -> str:
    """Return the seal of a record: the SHA-256, 64 hex digits, of its content as canonical JSON.

    Raises TypeError, ValueError or RecursionError for what is not plain JSON, NaN and infinities included. Invariant:
    the same content has the same seal, whatever the order of keys and the layout of the file.
    """
    return hashlib.sha256(canonical(content_of(record)).encode("ascii")).hexdigest()


def measured_faults(content: Any, fields: dict[str, Any]) -> list[str]:
    """Return the faults of what is kept beside the records: a broken seal first, then those of its fields' types."""
    if not isinstance(content, dict):
        return ["a measurement must be an object"]
    try:
        seal = seal_of(content)
    except (TypeError, ValueError, RecursionError) as error:
        return [f"is not plain JSON: {error}"]
    return ([BROKEN] if content.get("seal", seal) != seal else []) + list(type_faults(content, fields, ""))


def lay_out(record: dict[str, Any]) -> str:
    """Return the text of a record's file: the canonical JSON, a line for each value, indented by one space a level."""
    text = json.dumps(record, indent=1, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text + "\n"


def is_sealed_text(data: bytes, seal: str) -> bool:
    """Return whether a file in the layout of `lay_out` has the content that `seal`, of 64 hex digits, was made from.

    Much faster than formatting the numbers again: the canonical JSON is the file without its line breaks, indents and
    seal, as no JSON string holds a line break. False for any other layout, whatever its content.
    """
    lines = data.replace(f'\n "seal":"{seal}",'.encode("ascii"), b"", 1).split(b"\n")
    return hashlib.sha256(b"".join(map(bytes.lstrip, lines))).hexdigest() == seal


def content_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record without its seal and the name of its file."""
    return {key: value for key, value in record.items() if key not in UNSEALED}


def canonical(value: Any) -> str:
    """Return `value` as the one JSON text of its content: keys sorted, no spaces, ASCII.

    A float is the shortest decimal that reads back as the same float, on every platform, so the text and its seal
    survive writing and reading.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
