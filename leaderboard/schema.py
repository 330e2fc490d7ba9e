"""What a record holds, and the rules its numbers keep. A record that breaks one is invalid and reaches no table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

Record = dict[str, Any]
SCHEMA = 1
LARGEST = 10**30  # of a whole number; training an ImageNet network takes 1e18 to 1e20 multiply-adds


class RecordError(ValueError):
    """A record that breaks a rule; the message names the run and every rule it breaks."""


@dataclass(frozen=True)
class Kind:
    """A kind of value: the rule in words, and the test of it."""

    rule: str
    accepts: Callable[[Any], bool]


def is_whole(value: Any) -> bool:
    """Return whether `value` is a whole number from 0 to LARGEST; True and False are not numbers."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Return whether `value` is a finite number; True and False are not numbers."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def parse_time(text: str) -> datetime:
    """Return the moment an ISO-8601 text names. Raises ValueError when it is no such text or not in UTC."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read the Z
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"'{text}' is not in UTC")
    return moment


def is_time(value: Any) -> bool:
    """Return whether `value` is an ISO-8601 text in UTC."""
    try:
        return isinstance(value, str) and bool(parse_time(value))
    except ValueError:
        return False


def one_of(*choices: str) -> Kind:
    """Return the kind whose values are `choices`."""
    return Kind(f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices)


def or_null(kind: Kind) -> Kind:
    """Return the kind that takes null as well."""
    return Kind(f"{kind.rule}, or null", lambda value: value is None or kind.accepts(value))


def list_of(kind: Kind) -> Kind:
    """Return the kind whose values are lists of `kind`."""
    return Kind(
        f"a list, each entry {kind.rule}",
        lambda value: isinstance(value, list) and all(kind.accepts(entry) for entry in value),
    )


def map_of(kind: Kind) -> Kind:
    """Return the kind whose values are objects of `kind`."""
    return Kind(
        f"an object, each value {kind.rule}",
        lambda value: isinstance(value, dict) and all(kind.accepts(entry) for entry in value.values()),
    )


TEXT = Kind("a text that is not empty", lambda value: isinstance(value, str) and value.strip() != "")
BOOL = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number of at least 0", is_whole)
ABOVE_0 = Kind("a whole number of at least 1", lambda value: is_whole(value) and value > 0)
NUMBER = Kind("a finite number", is_number)
AT_LEAST_0 = Kind("a finite number of at least 0", lambda value: is_number(value) and value >= 0)
SHARE = Kind("a number in [0, 1]", lambda value: is_number(value) and 0 <= value <= 1)
SPARSITY = Kind("a number in [0, 1)", lambda value: is_number(value) and 0 <= value < 1)
PERCENT = Kind("a number in [0, 100]", lambda value: is_number(value) and 0 <= value <= 100)
TIME = Kind("an ISO-8601 time in UTC such as 2025-01-31T12:00:00+00:00", is_time)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))

GROUPS = ("dense", "before training", "sparse-to-sparse", "dense-to-sparse", "control")

# A Kind is a value, a dict an object with these keys (more are allowed), a list of one dict a list of such objects.
# A key that ends in "?" may be absent.
FIELDS: dict[str, Any] = {
    "schema": Kind(f"{SCHEMA}, the only one this version reads", lambda value: value == SCHEMA and is_whole(value)),
    "protocol": WHOLE,
    "run": TEXT,
    "started": TIME,
    "finished": TIME,
    "command": TEXT,
    "status": one_of("ok", "diverged"),
    "skipped_steps": WHOLE,
    "page": {"name": TEXT, "variant": TEXT, "title": TEXT, "changed": OBJECT, "settings": OBJECT},
    "method": {
        "name": TEXT,
        "label": TEXT,
        "title?": TEXT,
        "reference": Kind("a text", lambda value: isinstance(value, str)),
        "group": one_of(*GROUPS),
        "budget": one_of("exact", "outcome", "dense"),
        "changed": OBJECT,
        "settings": OBJECT,
        "source": TEXT,
        "sha256": TEXT,
    },
    "sparsity": SPARSITY,
    "seed": WHOLE,
    "data": {"name": TEXT, "classes": WHOLE, "train": WHOLE, "validation": WHOLE, "test": WHOLE, "fingerprint": TEXT},
    "accuracy_pct": dict.fromkeys(("last_epoch", "validation_selected", "best_on_test"), or_null(PERCENT)),
    "selected": {"validation_epoch": or_null(WHOLE), "test_epoch": or_null(WHOLE)},
    "weights": {
        "prunable": ABOVE_0,
        "active": WHOLE,
        "parameters": ABOVE_0,
        "active_parameters": WHOLE,
        "dense_prunable": ABOVE_0,
        "dense_parameters": ABOVE_0,
    },
    "density": {"prunable": AT_LEAST_0, "all_parameters": AT_LEAST_0},
    "layers": [
        {"name": TEXT, "shape": list_of(WHOLE), "weights": WHOLE, "active": WHOLE, "macs": WHOLE, "prunable": BOOL}
    ],
    "empty_layers": list_of(TEXT),
    "masks_sha256": TEXT,
    "macs": {
        "inference_dense": ABOVE_0,
        "inference": WHOLE,
        "train_dense": ABOVE_0,
        "train": WHOLE,
        "scoring": WHOLE,
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
        }
    ],
    "updates": WHOLE,
    "time": dict.fromkeys(("train_s", "eval_s", "total_s", "images_per_s"), AT_LEAST_0),
    "environment": dict.fromkeys(("device", "precision", "torch", "timm", "python", "platform"), TEXT),
    "git": {"commit": or_null(TEXT), "dirty": or_null(BOOL)},
}


def find_faults(record: Any) -> list[str]:
    """Return every rule that `record` breaks, in words; an empty list for a valid record.

    First come missing keys and wrong types; only where there are none are the numbers compared with each other.
    """
    try:
        json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        return [f"is not plain JSON: {error}"]
    return list(type_faults(record, FIELDS, "")) or [
        *count_faults(record),
        *budget_faults(record),
        *cost_faults(record),
    ]


def type_faults(value: Any, expected: Any, path: str) -> Iterator[str]:
    """Yield what is missing from `value` or of another type than `expected`; `path` names it in the messages."""
    if isinstance(expected, Kind):
        if not expected.accepts(value):
            yield f"{path} must be {expected.rule}, got {shorten(value)}"
    elif isinstance(expected, list):
        if not isinstance(value, list):
            yield f"{path} must be a list, got {shorten(value)}"
            return
        for index, entry in enumerate(value):
            yield from type_faults(entry, expected[0], f"{path}[{index}]")
    elif not isinstance(value, dict):
        yield f"{path or 'a record'} must be an object, got {shorten(value)}"
    else:
        for key, kind in expected.items():
            name = key.rstrip("?")
            inner = f"{path}.{name}" if path else name
            if name in value:
                yield from type_faults(value[name], kind, inner)
            elif name == key:
                yield f"{inner} is missing"


def shorten(value: Any) -> str:
    """Return `value` as JSON, cut to 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:59] + "…"


def count_faults(record: Record) -> Iterator[str]:
    """Yield where the counts of the layers, the weights and the densities disagree."""
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
    empty = [layer["name"] for layer in prunable if layer["active"] == 0]
    if sorted(empty) != sorted(record["empty_layers"]):
        yield f"empty_layers is {shorten(record['empty_layers'])}, without active weights are {shorten(empty)}"
    left = weights["parameters"] - weights["prunable"] + weights["active"]
    if weights["active_parameters"] != left:
        yield f"weights.active_parameters is {weights['active_parameters']}, parameters less inactive ones is {left}"
    yield from quotient_fault("density.prunable", density["prunable"], weights, "active", "dense_prunable", 1e-12)
    yield from quotient_fault(
        "density.all_parameters", density["all_parameters"], weights, "active_parameters", "dense_parameters", 1e-12
    )


def quotient_fault(name: str, value: float, of: Record, top: str, bottom: str, tolerance: float) -> Iterator[str]:
    """Yield the fault of a quotient `name` that is not of[top] / of[bottom] within `tolerance`."""
    if abs(value - of[top] / of[bottom]) > tolerance:
        yield f"{name} is {value}, {top} / {bottom} is {of[top] / of[bottom]}"


def budget_faults(record: Record) -> Iterator[str]:
    """Yield where the budget is missed: the number of active weights is not the one asked for.

    A diverged run may have stopped before its method reached the target, so only finished ones are held to it.
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
    """Yield where costs, accuracy and times disagree with what they are made from."""
    macs, history = record["macs"], record["history"]
    for part in ("inference", "train"):
        yield from quotient_fault(f"macs.{part}_share", macs[f"{part}_share"], macs, part, f"{part}_dense", 1e-9)
    if macs["scoring"] > macs["train"]:
        yield f"macs.scoring is {macs['scoring']}, more than macs.train ({macs['train']}), which includes it"
    last = record["accuracy_pct"]["last_epoch"]
    if record["status"] == "ok":
        if last is None:
            yield "accuracy_pct.last_epoch is null in a run that did not diverge"
        elif not history:
            yield "history is empty in a run that did not diverge"
        elif history[-1]["test_acc_pct"] != last:
            yield f"accuracy_pct.last_epoch is {last}, the history ends at {history[-1]['test_acc_pct']}"
    if parse_time(record["finished"]) < parse_time(record["started"]):
        yield f"finished ({record['finished']}) is before started ({record['started']})"
