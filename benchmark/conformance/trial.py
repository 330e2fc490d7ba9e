"""A method in training on a small network, with every call and commit watched."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import random
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, describe_failure
from benchmark.config.cells import Cell
from benchmark.config.plugins import Plugin, find_method
from benchmark.conformance.nets import make_data, make_kit_page, make_network
from benchmark.networks.build import Built
from benchmark.networks.costs import count_costs
from benchmark.networks.prunable import find_layers, prunable_weights
from benchmark.runs import run as engine
from benchmark.training import train as loop
from benchmark.training.cuda_graphs import ASKED
from benchmark.training.rehearsal import stand_in_donor
from benchmark.training.state import Training
from methods.core import Method, Proposal, Update, View


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


N_OF_M_SPARSITIES = (0.5, 0.75)
RESUMED = (Setting(), Setting(network="odd"))  # the trials that are continued from every step


@dataclass
class Trial:
    """A run under a setting, and what was seen of it."""

    setting: Setting
    run: Training
    cell: Cell
    start: dict[str, Tensor]  # the state_dict before the first masks
    calls: list[Call]
    traces: list[str]  # what calls of its hooks left behind that they must not
    begun: State | None = None  # after the first masks
    rewound: dict[int, dict[str, Tensor]] = field(default_factory=dict)  # what further rounds began with, by step
    commits: list[Commit] = field(default_factory=list)
    steps: list[StepSeen] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)  # hashes of the images of each training step
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)  # what would be saved after each step
    error: str = ""

    def states(self) -> list[State]:
        """Return the states after the first masks and after every step; empty where there were no first masks."""
        return [] if self.begun is None else [self.begun, *(seen.state for seen in self.steps)]

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

    def renewed(self) -> Kit:
        """Return the kit with the plugin imported anew where it is a file, as another process would."""
        return Kit(find_method(self.asked), self.asked) if self.asked.endswith(".py") else self

    def method(self, sparsity: float, **page: Any) -> Method:
        """Return the plugin at `sparsity`; see `build`."""
        return self.build(sparsity, **page)[0]

    def build(self, sparsity: float, **page: Any) -> tuple[Method, float]:
        """Return the plugin, its updates frequent enough for a run of 24 steps, and the sparsity that it was asked for.

        That is `sparsity`, or, of a method that takes certain ones alone (N:M masks), the first of 1/2 and 3/4 that it
        takes.
        """
        settings = make_kit_page(**page)
        usual = self.plugin.defaults(settings)
        changes: dict[str, Any] = {}
        for name, most in (("update_every", settings.update_every), ("start_sparsity", sparsity)):
            if isinstance(usual.get(name), int | float) and usual[name] > most:
                changes[name] = most
        try:
            return self.plugin.build(settings, sparsity, changes), sparsity
        except UserError:
            for other in N_OF_M_SPARSITIES:
                with contextlib.suppress(UserError):
                    return self.plugin.build(settings, other, changes), other
            raise

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
        return self.prepare_with(self.method(setting.sparsity, **page), setting, page)

    def prepare_with(self, method: Method, setting: Setting, page: dict[str, Any]) -> Trial:
        """Return a trial of a method built already, on a page with these changes, before its first masks."""
        return prepare(self.plugin, method, setting, page)


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
    traces: list[str] = []
    watched = spy_on(method, calls, traces, lambda: stir(setting.noise))
    donor = stand_in_donor(method, weights)
    cell = Cell("kit", page, {}, plugin, watched, {}, setting.sparsity, setting.seed, donor)
    asked = os.environ.pop(ASKED, None)  # passes are recorded on GPUs, and the kit trains on the CPU
    try:
        run = engine.prepare(cell, built, data, torch.device("cpu"))
    finally:
        os.environ.update({} if asked is None else {ASKED: asked})
    trial = Trial(setting, run, cell, copy.deepcopy(model.state_dict()), calls, traces)
    watch(trial)
    return trial


def stir(noise: int) -> None:
    """Change the state of every global random generator, if `noise` is not 0."""
    if noise:
        torch.manual_seed(noise)
        numpy.random.seed(noise)
        random.seed(noise)


def set_up(trial: Trial) -> None:
    """Have the engine apply the first masks."""
    engine.set_up_masks(trial.cell, trial.run)
    trial.begun = snapshot(trial.run)


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
        trial.error = describe_failure(error, type(trial.cell.method))
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
            if run.step - 1 in run.timeline.round_ends:
                trial.rewound[run.step] = clone({**module.state_dict(), **run.trained_beside()})
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


@dataclass
class Call:
    """One call of the method's `setup` (step 0) or `update`."""

    step: int
    gradients: dict[str, Tensor] | None  # what the view offered
    hessian_gradients: dict[str, Tensor] | None
    reads: set[str] = field(default_factory=set)  # what the method read of it
    masks: dict[str, Tensor] | None = None  # what it returned; None where it raised or returned something else
    update: Update | None = None  # all that it returned
    moments: dict[str, Tensor] | None = None  # of layers' inputs, as the view offered them
    weights: dict[str, Tensor] | None = None  # where there are moments: those they were taken with


@dataclass(frozen=True)
class State:
    """Copies of all that a step may change, by name; `optimizer` by weight name and state name."""

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[tuple[str, str], Tensor]
    masks: dict[str, Tensor]
    trained: dict[str, Tensor]
    beside: dict[str, Tensor]  # stored weights, learned parameters and state of the method

    def differences(self, other: State) -> list[str]:
        """Return the names of tensors that are not bit for bit the same in the other state."""
        different = []
        for part in ("model", "average", "optimizer", "masks", "trained", "beside"):
            mine, theirs = getattr(self, part), getattr(other, part)
            for key in {**mine, **theirs}:
                if key not in mine or key not in theirs or not same_bits(mine[key], theirs[key]):
                    different.append(f"{part} {key if isinstance(key, str) else ' '.join(key)}")
        return different


@dataclass(frozen=True)
class Commit:
    """One change of masks: the state before and after it."""

    step: int
    before: State
    after: State
    digest: str
    counts: dict[str, int]


@dataclass(frozen=True)
class StepSeen:
    """The state after a step, with the training cost charged so far."""

    step: int
    state: State
    train_macs: int


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, a nan being equal to a nan."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def snapshot(run: Training) -> State:
    """Return copies of weights, buffers, average, optimiser state and masks as they are now."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    names |= {id(parameter): f"learned {name}" for name, parameter in run.method_state.learned.items()}
    optimizer = {}
    for parameter, state in run.optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                optimizer[names[id(parameter)], key] = value.detach().clone()
    return State(
        model=clone(run.model.state_dict()),
        average=clone(run.average.module.state_dict()) if run.average is not None else {},
        optimizer=optimizer,
        masks=clone(run.maskset.masks),
        trained=clone(run.maskset.trained()),
        beside=clone(run.beside()),
    )


def clone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the tensors."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


class SpyView(View):
    """The view it is made from, taking note of what is read."""

    def __init__(self, view: View, reads: set[str]) -> None:
        self.__dict__.update(vars(view))
        self.reads = reads

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        """The view's gradients; the reading is noted."""
        self.reads.add("gradients")
        return super().gradients

    @property
    def hessian_gradients(self) -> Mapping[str, Tensor]:
        """The view's Hessian-gradient products; the reading is noted."""
        self.reads.add("Hessian-gradient products")
        return super().hessian_gradients

    @property
    def input_moments(self) -> Mapping[str, Tensor]:
        """The view's second moments of layers' inputs; the reading is noted."""
        self.reads.add("input moments")
        return super().input_moments

    @property
    def donor_counts(self) -> Mapping[str, int]:
        """The view's counts of a donor; the reading is noted."""
        self.reads.add("donor counts")
        return super().donor_counts

    @property
    def donor_masks(self) -> Mapping[str, Tensor]:
        """The view's masks of a donor; the reading is noted."""
        self.reads.add("donor masks")
        return super().donor_masks


def inputs_of(view: View) -> dict[str, Tensor]:
    """Return every tensor a view shows, by kind and name."""
    kinds: dict[str, Mapping[str, Tensor]] = {"weight": view.weights, "mask": view.masks}
    kinds["gradient"], kinds["product"] = view._gradients or {}, view._hessian_gradients or {}
    kinds["donor's mask"], kinds["active gradient"] = view._donor_masks or {}, view._active_gradients or {}
    kinds["input moment"] = view._input_moments or {}
    kinds |= {"stored": view.stored, "trained": view.trained, "state": view.state, "learned": view.learned}
    return {f"{kind} {name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}


Ask = Callable[[Any, View], Proposal]  # setup or update, with its method first
BESIDE = ("update_steps", "planned_sparsity", "learned", "penalty", "weigh")  # hooks that the loop calls


def wrap_method(
    method: Method, wrap: Callable[[Ask], Ask], beside: Callable[[str, Callable[..., Any]], Any] | None = None
) -> Method:
    """Return the same method, whose `setup` and, where it has one, `update` are what `wrap` makes of them.

    beside: what to make of its other hooks, given the name of each that it defines; None = they stay.
    """
    cls = type(method)
    members: dict[str, Any] = {"setup": wrap(cls.setup), "__module__": cls.__module__}
    if cls.update is not Method.update:
        members["update"] = wrap(cls.update)
    for name in BESIDE if beside is not None else ():
        if getattr(cls, name) is not getattr(Method, name):
            members[name] = beside(name, getattr(cls, name))  # type: ignore[misc]
    wrapped = copy.copy(method)
    kind = types.new_class(cls.__name__, (cls,), exec_body=lambda space: space.update(members))
    object.__setattr__(wrapped, "__class__", kind)
    return wrapped


@contextlib.contextmanager
def tracing(traces: list[str], moment: str, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Note which inputs have other bits afterwards, and whether torch's generator is another."""
    before, drawn = clone(inputs), torch.random.get_rng_state()
    try:
        yield
    finally:
        left = [name for name, tensor in inputs.items() if not same_bits(tensor, before[name])]
        if left:
            traces.append(f"{moment}: wrote to {', '.join(left[:3])}")
        if not torch.equal(drawn, torch.random.get_rng_state()):
            traces.append(f"{moment}: drew from torch's global generator, or set it")


def spy_on(method: Method, calls: list[Call], traces: list[str], before_call: Callable[[], None]) -> Method:
    """Return the same method, watched: each call of `setup` and `update` is appended to `calls`, traces to `traces`."""

    def traced(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def ask(self: Any, *shown: Any) -> Any:
            inputs: dict[str, Tensor] = {}
            for one in shown:
                if isinstance(one, View):
                    inputs |= inputs_of(one)
                elif isinstance(one, Mapping):
                    inputs |= one
                elif isinstance(one, Tensor):
                    inputs["values"] = one
            step = next((f" at step {one.step}" for one in shown if isinstance(one, View)), "")
            with tracing(traces, f"{name}(){step}", inputs):
                return original(self, *shown)

        return ask

    def watched(original: Callable[[Any, View], Proposal]) -> Callable[[Any, View], Proposal]:
        def ask(self: Any, view: View) -> Proposal:
            before_call()
            gradients, products = view._gradients, view._hessian_gradients
            call = Call(view.step, clone(gradients) if gradients else None, clone(products) if products else None)
            if view._input_moments:
                call.moments, call.weights = clone(view._input_moments), clone(view.weights)
            calls.append(call)
            with tracing(traces, f"step {view.step}", inputs_of(view)):
                proposal = original(self, SpyView(view, call.reads))
            call.update = proposal if isinstance(proposal, Update) else Update(proposal)
            masks = call.update.masks
            last = masks[-1] if isinstance(masks, tuple) and masks else masks
            if isinstance(last, Mapping) and all(isinstance(mask, torch.Tensor) for mask in last.values()):
                call.masks = clone(last)
            return proposal

        return ask

    return wrap_method(method, watched, traced)
