"""The method interface: a method proposes masks, the engine commits them."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from methods.core.declared import (
    Budget,
    DenseGrads,
    Donor,
    Group,
    Inactive,
    Moments,
    Proposal,
    Rounds,
    Scoring,
    Timeline,
    Trains,
)
from methods.core.errors import ContractError
from methods.core.ranges import check_ranges
from methods.core.view import View


def from_page(default: Any) -> Any:
    """Declare a hyper-parameter that takes the page's setting of the same name; `default` where there is no page."""
    return dataclasses.field(default=default, metadata={"from_page": True})


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A sparse-training method: which weights live, when that changes, and what its paper does to them besides.

    A method is a frozen dataclass in a file of its own: the fields are its hyper-parameters, the class facts say what
    it needs. It is asked for masks once before the first step (`setup`) and after each of `update_steps` (`update`).
    Every hook is a pure function of its arguments. Most methods need no more than `setup` and `update`; `rounds`,
    `penalty`, `learned` and `weigh` serve those whose papers do more to the weights than choose which ones live.
    Invariant: the engine commits exactly the masks returned, after checking them against `planned_sparsity`.
    """

    reference: ClassVar[str] = ""  # authors, year, arXiv number
    group: ClassVar[Group]
    dense_grads: ClassVar[DenseGrads] = DenseGrads.NEVER
    replaces_step: ClassVar[bool] = False  # True: an update takes the place of the optimiser step (RigL, Alg. 1)
    budget: ClassVar[Budget] = Budget.EXACT
    keeps_layer_counts: ClassVar[bool] = False  # True: an update leaves each layer as many active weights as it had
    narrows_network: ClassVar[bool] = False  # True: the engine builds the network narrower, within the weight count
    inactive: ClassVar[Inactive] = Inactive.ZERO  # what becomes of values outside the masks
    trains: ClassVar[Trains] = Trains.ACTIVE  # which weights the optimiser steps
    straight_through: ClassVar[bool] = True  # False: what `weigh` makes zero has no gradient, and a step costs 3 f_S
    writes: ClassVar[bool] = False  # True: an Update may hold values

    sparsity: float  # share of prunable weights that are zero at the end, in [0, 1)

    def __post_init__(self) -> None:
        check_ranges(self)
        self.validate()

    def validate(self) -> None:  # noqa: B027 (most methods have nothing to add)
        """Raise ValueError, naming the setting, its rule and its value, where hyper-parameters make no sense together.

        The standard ones (`prune_rate`, `update_every`, `prune_end`, `distribution` ...), and that numbers are finite,
        are checked before this call.
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

    def moments(self) -> Moments | None:
        """Return what second moments of layers' inputs `update` needs, or None."""
        return None

    def dense_gradients(self) -> DenseGrads:
        """Return when this configuration reads dense gradients; differs from `dense_grads` where a setting changes it.

        EVERY_STEP wants an update after every step, since gradients are shown to `update` alone.
        """
        return self.dense_grads

    def donor(self) -> Donor | None:
        """Return the run that `setup` is shown the final counts or masks of, or None."""
        return None

    def rounds(self, epochs: int) -> Rounds:
        """Return how often the page's training of `epochs` epochs is done; every round is charged."""
        return Rounds()

    def update_steps(self, timeline: Timeline) -> Sequence[int]:
        """Return the optimiser steps after which `update` is called, rising; empty for masks that never change."""
        return range(0)

    def planned_sparsity(self, step: int, timeline: Timeline) -> float:
        """Return the sparsity in force after the setup (`step` 0) or after the update at `step`."""
        return self.sparsity

    @abstractmethod
    def setup(self, view: View) -> Proposal:
        """Return the masks in force from the first step on; `view.masks` are all True unless the run is a branch.

        Several are applied in turn, as those of `update`. Asked once for each round of `scoring()`.
        """

    def update(self, view: View) -> Proposal:
        """Return the masks in force after the update at `view.step`, or an Update.

        A weight active before and after keeps its value and optimiser state. Where it must start anew because a part
        of the update took it away, return a tuple of masks: each is applied in turn, the last one stays.
        """
        raise ContractError("declares update steps but defines no update()")

    def penalty(self, view: View) -> Mapping[str, Tensor]:
        """Return, by weight name, what is added to the gradients of the trained weights before clipping.

        Asked at every step, with `view.step` the step about to be taken; the dense gradients are shown without it.
        """
        return {}

    def learned(self, view: View) -> Mapping[str, Tensor]:
        """Return, by name, the first values of parameters that are trained beside the network's (STR's thresholds).

        The page's optimiser steps them, with its learning rate and weight decay.
        """
        return {}

    def weigh(self, name: str, stored: Tensor, learned: Mapping[str, Tensor]) -> Tensor:
        """Return the weight that the network computes with, a differentiable function of its stored value.

        For a method that is STORED and trains ALL. Its zeros are the masks, anew at every step, until an update returns
        masks: from then on these stay, `learned` rests, and the network trains on with the weights it computes with.
        """
        raise ContractError("has no weigh()")
