"""What a method declares and returns: needs, budgets, scoring, rounds, updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from methods.core.errors import ContractError

Masks = dict[str, Tensor]  # by parameter name; bool, True = active
# One set of masks, or several that are applied one after the other: what any of them leaves out starts at zero.
Stages = Masks | tuple[Masks, ...]


@dataclass(frozen=True)
class Update:
    """What a method changes at once. A plain dict of masks, or a tuple of them, means Update(masks).

    `masks`: None leaves those there are, and nothing is committed. `trained`: the weights that have a gradient from now
    on, a superset of the masks (Top-KAST's B); only for a method that is STORED; None goes by `trains`. `values`: new
    values of weights, whole tensors by name, or of learned parameters; only for a method with `writes`; outside the
    masks they are kept where the method is STORED, and dropped otherwise. `state`: tensors of the method's own, merged
    into `view.state`; the engine saves them with the run and shares rank 0's. `forget`: the optimiser's state starts
    anew, all of it or that of the weights and learned parameters named (momentum got on the way to old values leads
    astray from new ones). Applied in order: all masks but the last, values, the last masks, state, forget; the moving
    average of a weight follows new values as it follows a step. Invariant: all of it is applied, or, where any of it
    breaks the contract, nothing.
    """

    masks: Stages | None = None
    trained: Masks | None = None
    values: Mapping[str, Tensor] | None = None
    state: Mapping[str, Tensor] | None = None
    forget: bool | tuple[str, ...] = False


Proposal = Stages | Update


class Inactive(Enum):
    """What becomes of the value of a weight outside the masks; the network always computes with zero there.

    ZERO: it is gone, and a weight that returns starts at zero. STORED: it is kept beside the network for its return.
    """

    ZERO = "zero"
    STORED = "stored"


class Trains(Enum):
    """Which weights the optimiser steps: the ACTIVE ones, or ALL of them by straight-through gradients (STORED only).

    A step of a method that trains ALL is charged 2 f_S + f_D, or 3 f_S where it says that `weigh` gives what it makes
    zero no gradient (`straight_through = False`).
    """

    ACTIVE = "active"
    ALL = "all"


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
    `augmented`: whether the images are cropped and flipped as in training.
    `rounds`: how often `setup` is asked, each time with `view.round`, the masks it returned last, and the gradients of
    the network under these masks; the last answer counts. `fresh`: other images in each round.
    `flow`: instead of the loss, the sum of the outputs of |network| for one input of ones, in float64 and evaluation
    mode: no image is read (SynFlow, Tanaka et al., 2020, arXiv:2006.05467, Alg. 1).
    The engine charges these passes to the training cost. Raises ContractError for another `batch_norm`, for less than
    one round, and for a flow of order 2.
    """

    order: int = 1
    batches: int = 1
    samples_per_class: int = 0
    chunks: int = 1
    temperature: float = 1.0
    batch_norm: str = "batch"
    augmented: bool = True
    rounds: int = 1
    fresh: bool = False
    flow: bool = False

    def __post_init__(self) -> None:
        if self.batch_norm not in ("batch", "running"):
            raise ContractError(f"must be scored with batch_norm batch or running, got {self.batch_norm!r}")
        if self.rounds < 1:
            raise ContractError(f"must be scored in at least 1 round, got rounds={self.rounds}")
        if self.flow and self.order != 1:
            raise ContractError(f"must be scored with order 1 where it asks for the flow, got {self.order}")


@dataclass(frozen=True)
class Moments:
    """The second moments of layers' inputs, over `batches` training batches of the page's size, for `update`.

    The engine charges, for each image, a forward pass under the masks and the products x x^T at every output position.
    Raises ContractError for less than one batch.
    """

    batches: int = 1

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ContractError(f"must take moments over at least 1 batch, got Moments(batches={self.batches})")


@dataclass(frozen=True)
class Rounds:
    """The page's training, repeated: each further round goes back to where the network was after `back_to` epochs.

    So do values that are stored and parameters that are learned; masks and the method's own state stay.
    `back_to` 0 is the initial network (lottery tickets; Frankle & Carbin, 2019, arXiv:1803.03635), a later epoch is
    late rewinding (Frankle et al., 2020, arXiv:1912.05671). `keep_weights`: only the schedule goes back (learning-rate
    rewinding; Renda et al., 2020, arXiv:2003.02389). Raises ContractError for less than one round or a negative epoch.
    """

    count: int = 1
    back_to: int = 0
    keep_weights: bool = False

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ContractError(f"must train for at least 1 round, got Rounds(count={self.count})")
        if self.back_to < 0:
            raise ContractError(f"must rewind to epoch 0 or a later one, got Rounds(back_to={self.back_to})")


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
    """The length of a run in optimiser steps, all rounds together. Steps are numbered from 1 to `total_steps`.

    `round_ends`: the last step of each round of training; one, `total_steps`, unless the method asks for more.
    """

    total_steps: int
    steps_per_epoch: int
    round_ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.round_ends:
            object.__setattr__(self, "round_ends", (self.total_steps,))
