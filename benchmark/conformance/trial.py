"""One watched run of a method: the real engine on a small network, and everything it did, step by step."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from benchmark import run as engine
from benchmark import train as loop
from benchmark.build import Built
from benchmark.cells import Cell
from benchmark.conformance.nets import make_data, make_kit_page, make_network
from benchmark.conformance.watch import Call, Commit, StepSeen, snapshot, spy_on
from benchmark.contract import stand_in_donor
from benchmark.costs import count_costs
from benchmark.errors import UserError, describe_failure
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.plugins import Plugin
from benchmark.train import Training
from methods.core import Method


@dataclass(frozen=True)
class Setting:
    """What a trial runs under."""

    network: str = "conv"
    sparsity: float = 0.9
    seed: int = 0
    optimizer: str = "sgd"
    precision: str = "fp32"
    clip_norm: float = 0.0
    double: bool = False  # weights in float64
    poison: tuple[int, ...] = ()  # steps whose images are infinite
    noise: int = 0  # stirs every global random generator, before the run and at each of the method's calls


RESUMED = (Setting(), Setting(network="odd"))  # the trials that are continued from every step


@dataclass
class Trial:
    """A run under a setting, and what was seen of it."""

    setting: Setting
    run: Training
    cell: Cell
    start: dict[str, Tensor]  # the state_dict before the first masks
    calls: list[Call]
    commits: list[Commit] = field(default_factory=list)
    steps: list[StepSeen] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)  # hashes of the images of each training step
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)  # what would be saved after each step
    error: str = ""

    def mask_hashes(self) -> list[str]:
        """Return the hash of the masks after the setup and after every update."""
        return [commit.digest for commit in self.commits]


class Silent:
    """A reporter that says nothing."""

    def step(self) -> bool:
        """Never ask for figures."""
        return False

    def show(self, row: dict[str, Any], images_per_s: float) -> None:
        """Show nothing."""

    def epoch(self, row: dict[str, Any], images_per_s: float) -> None:
        """Show nothing."""


class Kit:
    """A plugin under examination; its trials are run once each and shared by the checks."""

    def __init__(self, plugin: Plugin, asked: str = "") -> None:
        self.plugin = plugin
        self.asked = asked or plugin.name  # how another process finds it: its name, or the path of its file
        self.trials: dict[Setting, Trial] = {}
        self.used: list[Trial] = []  # by the check now running
        self.ranks: dict[str, Any] | None = None  # what two processes saw, where someone has run them already

    def method(self, sparsity: float, **page: Any) -> Method:
        """Return the plugin at `sparsity`, its updates frequent enough for a run of 24 steps."""
        settings = make_kit_page(**page)
        usual = self.plugin.defaults(settings)
        changes: dict[str, Any] = {}
        for name, most in (("update_every", settings.update_every), ("start_sparsity", sparsity)):
            if isinstance(usual.get(name), int | float) and usual[name] > most:
                changes[name] = most
        return self.plugin.build(settings, sparsity, changes)

    def trial(self, **changes: Any) -> Trial:
        """Return the trial under the default setting with `changes`; run on first use."""
        setting = Setting(**changes)
        if setting not in self.trials:
            trial = self.prepare(setting)
            self.trials[setting] = trial
            finish(trial, lambda: set_up(trial))
        self.used.append(self.trials[setting])
        return self.trials[setting]

    def prepare(self, setting: Setting) -> Trial:
        """Return a trial before its first masks."""
        page = {"optimizer": setting.optimizer, "precision": setting.precision, "clip_norm": setting.clip_norm}
        if setting.clip_norm:  # so that the length of a step shows the norm it was clipped by
            page.update(momentum=0.0, nesterov=False, weight_decay=0.0)
        if setting.optimizer != "sgd":
            page.update(lr=0.005)
        return prepare(self.plugin, self.method(setting.sparsity, **page), setting, page)


def prepare(plugin: Plugin, method: Method, setting: Setting, changes: dict[str, Any]) -> Trial:
    """Return a trial of `method`, built by the engine and wired to be watched."""
    stir(setting.noise)
    page = make_kit_page(**changes)
    data = make_data(page)
    model = make_network(setting.network, setting.seed)
    layers = find_layers(model, page)
    weights = prunable_weights(model, layers)
    costs = count_costs(model, layers, (data.channels, data.image_size, data.image_size))
    if setting.double:
        model.double()
    total = sum(weight.numel() for weight in weights.values())
    built = Built(model, layers, costs, costs, total, sum(p.numel() for p in model.parameters()), 1.0, False)
    calls: list[Call] = []
    watched = spy_on(method, calls, lambda: stir(setting.noise))
    donor = stand_in_donor(method, weights)
    cell = Cell("kit", page, {}, plugin, watched, {}, setting.sparsity, setting.seed, donor)
    run = engine.prepare(cell, built, data, torch.device("cpu"))
    trial = Trial(setting, run, cell, copy.deepcopy(model.state_dict()), calls)
    watch(trial)
    return trial


def stir(noise: int) -> None:
    """Change the state of every global random generator, if `noise` is not 0."""
    if noise:
        torch.manual_seed(noise)
        numpy.random.seed(noise)
        random.seed(noise)


def set_up(trial: Trial) -> None:
    """Have the engine put the first masks in force."""
    engine.set_up_masks(trial.cell, trial.run)


def finish(trial: Trial, first: Callable[[], None] | None = None) -> Trial:
    """Do `first`, then train to the end; a failure is kept in `error`, with all that was seen until then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are so small that threads only get in each other's way
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        if first is not None:
            first()
        loop.train(trial.run, Silent(), lambda run: None, lambda run: observe(trial))  # type: ignore[arg-type]
    except UserError as error:
        trial.error = str(error)
    except (Exception, SystemExit) as error:  # a plugin or a broken engine may raise anything at all
        trial.error = describe_failure(error)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return trial


def watch(trial: Trial) -> None:
    """Note every commit, and poison the images of the steps that the setting names."""
    run = trial.run
    committed = run.maskset.commit

    def commit(*args: Any, **more: Any) -> None:
        before = snapshot(run)
        committed(*args, **more)
        trial.commits.append(Commit(run.step, before, snapshot(run), run.maskset.sha256(), run.maskset.counts()))

    run.maskset.commit = commit  # type: ignore[method-assign]

    def before_forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images = inputs[0].to(next(module.parameters()).dtype)
        if module.training and run.step > 0:
            trial.batches.append(hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest())
        poisoned = module.training and run.step in trial.setting.poison
        return (images * float("inf") if poisoned else images,)

    run.model.register_forward_pre_hook(before_forward)
    if run.average is not None:
        run.average.module.register_forward_pre_hook(before_forward)


def observe(trial: Trial) -> None:
    """Note the state of the run after a step."""
    trial.steps.append(StepSeen(trial.run.step, snapshot(trial.run), trial.run.meter.train))
    if trial.setting in RESUMED:
        trial.checkpoints[trial.run.step] = copy.deepcopy(trial.run.state())
