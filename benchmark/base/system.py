"""Where a run happened: device, versions, state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmark import ROOT
from benchmark.base.errors import UserError


def cuda_available() -> bool:
    """Return whether a CUDA device can be used, without the warnings of a machine that has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def choose_device(asked: str) -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`; raises UserError for another name or a GPU that is absent."""
    if asked not in ("auto", "cpu", "cuda"):
        raise UserError(f"DEVICE must be auto, cpu or cuda, got '{asked}'")
    if asked == "cuda" and not cuda_available():
        raise UserError("DEVICE=cuda was asked for, but torch finds no GPU here: use DEVICE=cpu or DEVICE=auto")
    return torch.device("cuda" if asked != "cpu" and cuda_available() else "cpu")


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
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor_name()
    return {
        "device": device.type,
        "device_name": name,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        **versions,
        **(describe_gpu() if device.type == "cuda" else {}),
    }


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


def describe_git(root: Path = ROOT) -> dict[str, Any]:
    """Return the commit and whether the code differs from it; nulls if git cannot tell.

    Only a checkout of its own counts: the commit of a repository around a copy says nothing about the copy. New files
    among methods, configs and benchmark count; records, the leaderboard and tests do not, since no run uses them.
    """
    try:
        top, commit = ask_git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        if not Path(top).samefile(root):
            return {"commit": None, "dirty": None}
        paths = ["methods", "benchmark", "configs"]
        changes = ask_git(root, "status", "--porcelain", "--untracked-files=all", "--", *paths)
    except (OSError, ValueError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes.strip())}


def ask_git(root: Path, *words: str) -> str:
    """Return what git prints in `root`, whichever repository the environment names (a hook's does)."""
    named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
    own = {name: value for name, value in os.environ.items() if name not in named}
    asked = subprocess.run(
        ["git", *words], cwd=root, env=own, capture_output=True, text=True, errors="replace", check=True, timeout=10
    )
    return asked.stdout
