"""Where a run happened: device, versions, state of the code."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from benchmark.base import ROOT
from benchmark.base.errors import UserError

T = TypeVar("T")
CODE = ("methods", "benchmark", "configs", "leaderboard/store")  # what a run computes with


def cuda_available() -> bool:
    """Return whether a CUDA device can be used, without the warnings of a machine that has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def choose_device(asked: str) -> torch.device:
    """Return the device for `auto` (CUDA, else the CPU), `cpu`, or an accelerator by torch's name, `cuda:1` or `xpu`.

    Raises UserError for another name, and for an accelerator that is absent or lacks float64.
    """
    if asked in ("auto", "cpu"):
        return torch.device("cuda" if asked == "auto" and cuda_available() else "cpu")
    try:
        device = torch.device(asked)
        module = torch.get_device_module(device) if device.type not in ("cpu", "meta") else None
    except (RuntimeError, ValueError):  # torch knows no such name, or has no module for it
        module = None
    if module is None:
        raise UserError(f"DEVICE must be auto, cpu or cuda, or another accelerator that torch knows, got '{asked}'")
    there = cuda_available() if device.type == "cuda" else module.is_available()
    if not there:
        kind = "GPU" if device.type == "cuda" else f"'{device.type}' device"
        raise UserError(f"DEVICE={asked} was asked for, but torch finds no {kind} here: use DEVICE=cpu or DEVICE=auto")
    if (device.index or 0) >= module.device_count():
        last = f"{device.type}:{module.device_count() - 1}"
        raise UserError(f"DEVICE={asked} was asked for, and the last '{device.type}' device here is {last}")
    if device.type != "cuda" and not has_float64(device):
        raise UserError(
            f"DEVICE={asked}: this device has no float64, in which methods draw random numbers and losses are summed: "
            "use DEVICE=cpu"
        )
    return device


def has_float64(device: torch.device) -> bool:
    """Return whether a device computes in float64; Apple's (mps) and some of Intel's do not."""
    try:
        return torch.ones(2, device=device, dtype=torch.float64).sum().item() == 2
    except (TypeError, RuntimeError):
        return False


def use_device(device: torch.device) -> None:
    """Make a device named by number, `cuda:1`, the one that kernels and streams use where none is named."""
    if device.index is not None and device.type != "cpu":
        torch.accelerator.set_device_index(device)


def name_device(device: torch.device) -> str:
    """Return the name of the processor or the accelerator, as its maker calls it."""
    if device.type == "cpu":
        return processor_name()
    ask = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(ask(device)) if ask is not None else device.type


def keep_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Keep the CPU's random state and the device's as they are, whatever is drawn inside."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """Return which modules are in training mode, for `set_modes`: some may be frozen in evaluation mode."""
    return {module: module.training for module in model.modules()}


def set_modes(modes: dict[nn.Module, bool]) -> None:
    """Put every module back into its mode."""
    for module, training in modes.items():
        module.training = training


def uses_newer_names() -> bool:
    """Return whether somebody set the precision of fp32 by torch's newer names, which do not mix with the older."""
    try:
        older = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return True
    general = (getattr(part, "fp32_precision", "none") for part in (torch.backends, torch.backends.cudnn))
    return bool(older) and any(precision != "none" for precision in general)


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Keep a GPU from rounding fp32 products to TensorFloat-32."""
    parts: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    name: str = "allow_tf32"
    exact: bool | str = False
    if uses_newer_names():
        cudnn: Any = torch.backends.cudnn
        parts, name, exact = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "ieee"
    before = [getattr(part, name) for part in parts]
    for part in parts:
        setattr(part, name, exact)
    try:
        yield
    finally:
        for part, value in zip(parts, before, strict=True):
            setattr(part, name, value)


def to_cpu(tree: T) -> T:
    """Return nested dicts and lists with their tensors on the CPU; the host waits once for all of them together.

    A tensor that is there already stays the very same.
    """
    leaves, shape = tree_flatten(tree)
    away = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type != "cpu"}
    if not away:
        return tree
    here = [leaf.detach().to("cpu", non_blocking=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for device in away:
        torch.accelerator.synchronize(device)
    found: T = tree_unflatten(here, shape)
    return found


def import_extra(module: str, extra: str, what: str) -> Any:
    """Return an optional library; raises UserError, which names the extra to install, where it is absent.

    what: the beginning of that message, such as `these workers need`.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(
            f"{what} the package {module}, which is not installed ({error}): "
            f"in this repository, .venv/bin/python -m pip install -c constraints.txt -e '.[{extra}]'"
        ) from error


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the device, the precision and the versions a record needs."""
    versions = {}
    for package in ("torch", "torchvision", "timm", "fvcore"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": device.type,
        "device_name": name_device(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **versions,
        **(describe_gpu() if device.type == "cuda" else {}),
    }


@functools.cache  # for every checkpoint, and nothing of it changes in a process
def name_surroundings(device: torch.device) -> str:
    """Return what a run's last bits may depend on, beside its settings: `AMD EPYC, torch 2.14.1, timm 1.0.26`."""
    known = describe_environment(device, "")
    return f"{known['device_name']}, torch {known['torch']}, timm {known['timm']}"


def describe_gpu() -> dict[str, Any]:
    """Return the settings of GPU arithmetic that decide the last bits: TensorFloat-32, kernels chosen by timing."""
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_conv": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def processor_name() -> str:
    """Return the processor's name as reported by the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def code_of_process() -> dict[str, Any]:
    """Return `describe_git` as it was when this process first asked: the checkout may move on while a run trains.

    Warns where there is a checkout that git does not read: a record without its commit cannot be submitted.
    """
    found = describe_git()
    if found["commit"] is None and (ROOT / ".git").exists():
        try:
            ask_git(ROOT, "rev-parse", "HEAD")
            why = "it is slow"
        except (OSError, subprocess.SubprocessError) as error:
            why = " ".join((getattr(error, "stderr", "") or str(error)).split())
        warnings.warn(f"git does not tell the commit of {ROOT}, so records will lack it: {why}", stacklevel=2)
    return found


def describe_git(root: Path = ROOT) -> dict[str, Any]:
    """Return the commit and whether the code differs from it; nulls if git cannot tell.

    Only a checkout of its own counts: the commit of a repository around a copy says nothing about the copy. New files
    among methods, configs, benchmark and leaderboard/store (which has the epochs of drops) count; records, sheets and
    tests do not, since no run uses them.
    """
    try:
        top, commit = ask_git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if not Path(top).samefile(root):
            return {"commit": None, "dirty": None}
        changes = ask_git(root, "status", "--porcelain", "--untracked-files=all", "--", *CODE)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes.strip())}


def continue_git(before: dict[str, Any], now: dict[str, Any], root: Path = ROOT) -> dict[str, Any]:
    """Return the `describe_git` of a run that began under one and goes on under another.

    It is the first one's, and dirty where the code in between differs or git cannot tell.
    """
    if before == now:
        return before
    try:
        if not before["dirty"] and not now["dirty"]:
            ask_git(root, "diff", "--quiet", before["commit"], now["commit"], "--", *CODE)
            return before
    except (OSError, TypeError, ValueError, subprocess.SubprocessError):  # they differ, or one of them is not here
        pass
    return {"commit": before["commit"], "dirty": True}


def ask_git(root: Path, *words: str) -> str:
    """Return what git prints in `root`, whichever repository the environment names (a hook's does)."""
    named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
    own = {name: value for name, value in os.environ.items() if name not in named}
    asked = subprocess.run(
        ["git", *words], cwd=root, env=own, capture_output=True, text=True, errors="replace", check=True, timeout=10
    )
    return asked.stdout
