"""Weights that a network starts from instead of those its seed draws: a file's, or timm's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from benchmark.base.errors import UserError, reason
from benchmark.config.pages import Page
from benchmark.config.start import find_start, name_pretrained, pin_start

SHOWN = 3  # names in a message
OPTIONAL = "num_batches_tracked"  # counts that older files lack and that no number depends on


def load_start(model: nn.Module, page: Page, arguments: Mapping[str, Any]) -> str:
    """Give a network the weights that its page starts from, in place; return their sha256, or "" where it names none.

    The hash is that of the file, or of timm's weights as they were loaded. Raises UserError for weights that cannot be
    had or are another network's. Invariant: no random state changes; with `reset_head` the classifier stays as drawn.
    """
    if page.init:
        source, found, digest = f"init={page.init}", read_file(page), page.init_sha256
    elif page.pretrained:
        source, found = f"pretrained=true ({name_pretrained(page.model)})", read_pretrained(page, arguments)
        digest = hash_weights(found)
    else:
        return ""
    head = head_names(model, found)
    if page.reset_head and not head:
        raise UserError(f"reset_head=true: timm does not say which layer of {page.model} is its classifier")
    if page.reset_head:
        found = {name: weight for name, weight in found.items() if name not in head}
    check_fit(model, found, head, page, source)
    model.load_state_dict(found, strict=False)
    return digest


def read_file(page: Page) -> dict[str, Tensor]:
    """Return the weights in the page's file, by name.

    Read by timm with torch's weights_only: no code in a file is run. The prefixes of wrappers (`module.`) are dropped,
    and of a training checkpoint the averaged weights are taken where it has them.
    """
    path = find_start(page)
    pin_start(page)  # the file may have changed since the run was asked for
    try:
        found: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
        if all(isinstance(weight, Tensor) for weight in found.values()):
            return found
        why = "it holds more than tensors by name"
    except Exception as error:  # torch, pickle and safetensors raise many kinds
        why = reason(error)
    raise UserError(
        f"init={page.init}: {path} cannot be read as weights ({why}): give a safetensors file, or a state_dict "
        "saved by torch.save(model.state_dict(), FILE); a finished run has weights.safetensors"
    )


def read_pretrained(page: Page, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return timm's weights of the page's model, adapted by timm to channels and image size, from the hub or its cache.

    Raises UserError where they cannot be had, and for another number of classes unless the page resets the head.
    """
    known = timm.get_pretrained_cfg(page.model, allow_unregistered=True)
    classes = arguments["num_classes"]
    if known is not None and known.num_classes != classes and not page.reset_head:
        raise UserError(
            f"pretrained=true: timm's weights of {page.model} are for {known.num_classes} classes and this data has "
            f"{classes}: have the classifier drawn anew with ARGS=reset_head=true"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            model: nn.Module = timm.create_model(page.model, pretrained=True, **arguments)
    except Exception as error:  # of the network, the hub, its cache or the file
        raise UserError(
            f"pretrained=true: timm's weights of {page.model} cannot be had ({reason(error)}): give weights as a file "
            "with ARGS='pretrained=false init=FILE'"
        ) from error
    return model.state_dict()


def head_names(model: nn.Module, found: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the classifier's tensors, in the network and among the weights found."""
    known = getattr(model, "default_cfg", {}).get("classifier") or ()
    layers = tuple(f"{name}." for name in ([known] if isinstance(known, str) else known))
    return {name for name in (*model.state_dict(), *found) if layers and name.startswith(layers)}


def check_fit(model: nn.Module, found: Mapping[str, Tensor], head: set[str], page: Page, source: str) -> None:
    """Raise UserError unless the weights are those of the network, all of them and finite."""
    own = model.state_dict()
    reset = head if page.reset_head else set()
    missing = [name for name in own if name not in found and name not in reset and not name.endswith(OPTIONAL)]
    extra = [name for name in found if name not in own and not name.endswith(OPTIONAL)]
    other = [name for name in found if name in own and found[name].shape != own[name].shape]
    shapes = [f"{name} {tuple(found[name].shape)} instead of {tuple(own[name].shape)}" for name in other]
    faults = {"missing": missing, "not of this network": extra, "of another shape": shapes}
    told = [f"{len(names)} {kind} ({shorten(names)})" for kind, names in faults.items() if names]
    if told and head.issuperset((*missing, *extra, *other)):
        raise UserError(
            f"{source}: the classifier of the weights is not one of this data's classes: {'; '.join(told)}; have it "
            "drawn anew with ARGS=reset_head=true"
        )
    if told:
        raise UserError(
            f"{source}: the weights are not those of {page.model}: {'; '.join(told)}; give those of this network, or "
            "set model and model_args to theirs"
        )
    broken = [name for name, weight in found.items() if not torch.isfinite(weight).all()]
    if broken:
        raise UserError(f"{source}: weights that are not finite in {shorten(broken)}: give a file of a sound network")


def shorten(names: list[str]) -> str:
    """Return a few names and the number of the others."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return a sha256 of the names, shapes and values of weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
