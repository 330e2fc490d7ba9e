"""The method interface: a method proposes masks, the engine commits them."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from methods.core.errors import ContractError
from methods.core.ranges import check_ranges

Masks = dict[str, Tensor]  # by parameter name; bool, True = active
# One set of masks, or several that are applied one after the other: what any of them leaves out starts at zero.
Stages = Masks | tuple[Masks, ...]


class DenseGrads(Enum):
    """When a method reads gradients of inactive weights; such a step is charged 2 f_S + f_D instead of 3 f_S."""

    NEVER = "never"
    AT_UPDATES = "at updates"
    EVERY_STEP = "every step"


class Group(Enum):
    """The group of the leaderboard a method belongs to, as in Tables 2 and 3 of the GraNet paper."""

    DENSE = "dense"
    BEFORE_TRAINING = "before training"
    SPARSE_TO_SPARSE = "sparse-to-sparse"
    DENSE_TO_SPARSE = "dense-to-sparse"
    CONTROL = "control"


class Budget(Enum):
    """What a method promises of the number of active weights.

    EXACT: round((1 - planned sparsity) x prunable weights) after every update. OUTCOME: the count is a result.
    DENSE: every weight stays, whatever sparsity is asked. Active is what the mask says: a weight that was grown and has
    had no gradient yet is active and zero, so counting non-zero weights may find fewer.
    """

    EXACT = "exact"
    OUTCOME = "outcome"
    DENSE = "dense"


@dataclass(frozen=True)
class Scoring:
    """The gradients a method needs before the first step.

    `order` 1 asks for the gradient of the loss, 2 for the Hessian-gradient product as well. The images are `batches`
    training batches of the page's size, or `samples_per_class` images of every class in `chunks` equal parts.
    `temperature` divides the logits. `batch_norm`: batch norms normalise by the statistics of each "batch", as in
    training, or by their "running" ones, which are mean 0 and variance 1 before the first step.
    `augmented`: whether the images are cropped and flipped as in training. The engine charges these passes to the
    training cost. Raises ContractError for another `batch_norm`.
    """

    order: int = 1
    batches: int = 1
    samples_per_class: int = 0
    chunks: int = 1
    temperature: float = 1.0
    batch_norm: str = "batch"
    augmented: bool = True

    def __post_init__(self) -> None:
        if self.batch_norm not in ("batch", "running"):
            raise ContractError(f"must be scored with batch_norm batch or running, got {self.batch_norm!r}")


DONOR_KINDS = ("densities", "masks", "shuffled masks", "shuffled filters")


@dataclass(frozen=True)
class Donor:
    """Another run that a control is made from, as a user names it.

    `run` is a record, a run or a row of the leaderboard; the engine finds it. `kind` says what is made of it, one of
    DONOR_KINDS: "densities" shows `setup` the final counts of its layers, every other kind its final masks as well.
    Raises ContractError for an unknown kind. The donor's own training is not charged to the control.
    """

    run: str
    kind: str = "densities"

    def __post_init__(self) -> None:
        if self.kind not in DONOR_KINDS:
            raise ContractError(f"must make one of {', '.join(DONOR_KINDS)} of a donor, got {self.kind!r}")

    @property
    def masks(self) -> bool:
        """Whether the masks are asked for, not the counts alone."""
        return self.kind != "densities"


@dataclass(frozen=True)
class Timeline:
    """The length of a run in optimiser steps. Steps are numbered from 1 to `total_steps`."""

    total_steps: int
    steps_per_epoch: int


def from_page(default: Any) -> Any:
    """Declare a hyper-parameter that takes the page's setting of the same name; `default` where there is no page."""
    return dataclasses.field(default=default, metadata={"from_page": True})


def count_kept(sparsity: float, weights: int) -> int:
    """Return how many of so many weights stay active at `sparsity`: the one place where the budget is rounded."""
    return round((1 - sparsity) * weights)


Value = TypeVar("Value")


def read_only(values: Mapping[str, Value] | None) -> Mapping[str, Value] | None:
    """Return a copy of `values` that cannot be changed, or None."""
    return None if values is None else MappingProxyType(dict(values))


class View:
    """What a method may see: read-only weights, masks, gradients, and random numbers that depend on nothing else.

    `weights`, `masks`: by parameter name, in the model's order; masks are bool, True = active. `step`: 0 in `setup`,
    then the optimiser step just reached. `last`: the layer whose outputs are the classes; empty where it is not
    prunable, or not known. Gradients are dense, averaged over ranks, unscaled. Reading a gradient or a donor the method
    did not declare raises ContractError. Invariant: inactive weights are exactly zero.
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        step: int,
        timeline: Timeline,
        seed: int,
        gradients: Mapping[str, Tensor] | None = None,
        hessian_gradients: Mapping[str, Tensor] | None = None,
        donor_counts: Mapping[str, int] | None = None,
        donor_masks: Mapping[str, Tensor] | None = None,
        last: str = "",
    ) -> None:
        self.weights = MappingProxyType({name: tensor.detach() for name, tensor in weights.items()})
        self.masks = MappingProxyType(dict(masks))
        self.step = step
        self.timeline = timeline
        self.seed = seed
        self.last = last
        self._gradients = read_only(gradients)
        self._hessian_gradients = read_only(hessian_gradients)
        self._donor_counts = read_only(donor_counts)
        self._donor_masks = read_only(donor_masks)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every prunable weight, by name, in the model's order."""
        return {name: tuple(weight.shape) for name, weight in self.weights.items()}

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / self.timeline.total_steps

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        """The dense gradients: of the current batch in `update`, of the scoring batches in `setup`."""
        if self._gradients is None:
            raise ContractError(
                "read gradients it did not declare: set dense_grads = DenseGrads.AT_UPDATES for growth, "
                "or return a Scoring from scoring() for gradients before the first step"
            )
        return self._gradients

    @property
    def hessian_gradients(self) -> Mapping[str, Tensor]:
        """The product of the Hessian with the gradient, Hg, over the scoring images (`setup` only)."""
        if self._hessian_gradients is None:
            raise ContractError(
                "read Hessian-gradient products it did not declare: return Scoring(order=2) from scoring()"
            )
        return self._hessian_gradients

    @property
    def donor_counts(self) -> Mapping[str, int]:
        """The number of active weights that each layer of the donor ended with (`setup` only)."""
        if self._donor_counts is None:
            raise ContractError(
                "read the counts of a donor it did not declare: return Donor(run) from donor(); setup() alone sees it"
            )
        return self._donor_counts

    @property
    def donor_masks(self) -> Mapping[str, Tensor]:
        """The masks that the donor ended with; bool, True = active (`setup` only)."""
        if self._donor_masks is None:
            raise ContractError(
                "read the masks of a donor it did not declare: return Donor(run, 'masks') from donor(); setup() alone "
                "sees them"
            )
        return self._donor_masks

    def count(self, sparsity: float) -> int:
        """Return the number of weights that stay active at `sparsity`: round((1 - sparsity) x prunable weights)."""
        return count_kept(sparsity, sum(weight.numel() for weight in self.weights.values()))

    def random(self, name: str, purpose: str = "") -> Tensor:
        """Return uniform float64 numbers in [0, 1) in the shape of weight `name`.

        A pure function of (seed, step, name, purpose): the global random state is neither read nor changed, so masks
        agree between ranks, devices and resumed runs.
        """
        text = f"{self.seed}/{self.step}/{name}/{purpose}"
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))
        weight = self.weights[name]
        return torch.rand(tuple(weight.shape), generator=generator, dtype=torch.float64).to(weight.device)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A sparse-training method: which weights live, and when that changes. Nothing else.

    A method is a frozen dataclass in a file of its own: the fields are its hyper-parameters, the class facts say what
    it needs. It is asked for masks once before the first step (`setup`) and after each of `update_steps` (`update`).
    Invariant: the engine commits exactly the masks returned, after checking them against `planned_sparsity`.
    """

    reference: ClassVar[str] = ""  # authors, year, arXiv number
    group: ClassVar[Group]
    dense_grads: ClassVar[DenseGrads] = DenseGrads.NEVER
    replaces_step: ClassVar[bool] = False  # True: an update takes the place of the optimiser step (RigL, Alg. 1)
    budget: ClassVar[Budget] = Budget.EXACT
    keeps_layer_counts: ClassVar[bool] = False  # True: an update leaves each layer as many active weights as it had
    narrows_network: ClassVar[bool] = False  # True: the engine builds the network narrower, within the weight count

    sparsity: float  # share of prunable weights that are zero at the end, in [0, 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        self.validate()

    def validate(self) -> None:  # noqa: B027 (most methods have nothing to add)
        """Raise ValueError, naming the setting, its rule and its value, where hyper-parameters make no sense together.

        The standard ones (`prune_rate`, `update_every`, `prune_end`, `distribution` ...) are checked before this call.
        """

    def leaderboard_group(self) -> Group:
        """Return the group this configuration belongs to; differs from `group` where a setting changes it."""
        return self.group

    def promised_budget(self) -> Budget:
        """Return what this configuration promises of its count; differs from `budget` where a setting changes it."""
        return self.budget

    def start_of_branch(self) -> float:
        """Return the sparsity of the masks that `setup` starts from: 0 for a network that has all of its weights.

        A configuration that goes on from another run's masks says how sparse these have to be.
        """
        return 0.0

    def remarks(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return what a user should know of this configuration on a network of these shapes, told before training."""
        return []

    def scoring(self) -> Scoring | None:
        """Return what gradients `setup` needs, or None."""
        return None

    def donor(self) -> Donor | None:
        """Return the run that `setup` is shown the final counts or masks of, or None."""
        return None

    def update_steps(self, timeline: Timeline) -> range:
        """Return the optimiser steps after which `update` is called; empty for masks that never change."""
        return range(0)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        """Return the sparsity in force after the setup (`step` 0) or after the update at `step`."""
        return self.sparsity

    @abstractmethod
    def setup(self, view: View) -> Stages:
        """Return the masks in force from the first step on; `view.masks` are all True unless the run is a branch.

        Several are applied in turn, as those of `update`.
        """

    def update(self, view: View) -> Stages:
        """Return the masks in force after the update at `view.step`.

        A weight active before and after keeps its value and optimiser state. Where it must start anew because a part
        of the update took it away, return a tuple of masks: each is applied in turn, the last one stays.
        """
        raise ContractError("declares update steps but defines no update()")
