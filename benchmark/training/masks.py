"""Masks: those that a method proposes, checked against its contract and applied to the network's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmark.base.errors import UserError, describe_failure
from benchmark.config.cells import DonorRun
from benchmark.distributed.ranks import announce, count_ranks, differing_ranks
from methods.core import (
    Budget,
    ContractError,
    Masks,
    Method,
    RefusedError,
    Stages,
    Timeline,
    View,
    count_kept,
)
from methods.core.selection import count_each


class MaskSet:
    """Bool masks beside the model, keyed by parameter name; True = active.

    `last` is the layer that gives the classes their scores, empty where it is not prunable. `explored` keeps which
    weights were active in any masks committed so far; before the first commit none were.
    Invariant: wherever a mask is False the weight is exactly zero, and so are its optimiser state and its average.
    The model stays an ordinary network: `state_dict` is plain timm's and `p.grad` is the dense gradient.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], last: str = "", alone: bool = False) -> None:
        self.weights = dict(weights)
        self.last = last if last in self.weights else ""
        self.ranks = 1 if alone else count_ranks()  # that must have the same masks: not those of a stand-in
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.explored = {name: torch.zeros_like(mask) for name, mask in self.masks.items()}
        # Multiplication by bool is three times slower than in the parameter's own dtype and memory format.
        self.factors = [torch.ones_like(weight, requires_grad=False) for weight in self.weights.values()]
        self.total = sum(weight.numel() for weight in self.weights.values())
        self.listeners: list[Callable[[dict[str, int]], None]] = []

    def counts(self) -> dict[str, int]:
        """Return the number of active weights of each layer."""
        return dict(zip(self.masks, count_each(self.masks.values()), strict=True))

    def active(self) -> int:
        """Return the number of active weights."""
        return sum(self.counts().values())

    def explored_share(self) -> float:
        """Return the share of weights active in any masks committed so far, R_s of Liu et al. (2021, arXiv:2102.02887).

        In [density, 1], and never less than before: 1.0 from the start for a network that starts dense. Where an update
        commits several sets in turn, each counts. It makes no difference where the earlier ones only take weights away
        (GraNet's pruning), for then they hold nothing that was not active before.
        """
        return sum(int(explored.sum()) for explored in self.explored.values()) / self.total

    def sha256(self) -> str:
        """Return a hash over names, shapes and masks: equal exactly when the masks are."""
        return hash_masks(self.masks)

    @torch.no_grad()
    def commit(
        self,
        proposed: Mapping[str, Tensor],
        planned: int | None,
        optimizer: Optimizer | None = None,
        average: nn.Module | None = None,
    ) -> None:
        """Apply the proposed masks: zero weights, optimiser state and average where they are inactive.

        planned: the exact number of active weights, or None where the count is an outcome. Raises ContractError, and
        changes nothing, for missing or unknown names, another dtype or shape, another count, or other masks than rank
        0's where several processes train together. A weight active before and after keeps its value and state; a newly
        active one starts at zero with zero state.
        """
        fault = self.find_fault(proposed, planned)
        self.check_ranks(proposed, fault)
        if fault:
            raise ContractError(fault)
        proposed = self.take_leading(proposed)
        for (name, weight), factor in zip(self.weights.items(), self.factors, strict=True):
            mask = self.masks[name]
            mask.copy_(proposed[name])
            self.explored[name] |= mask
            factor.copy_(mask)
            zero_outside(mask, weight)
            for state in optimizer.state.get(weight, {}).values() if optimizer else ():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    zero_outside(mask, state)
            if average is not None:
                zero_outside(mask, average.get_parameter(name))
        self.check_in_force()
        for listener in self.listeners:
            listener(self.counts())

    def check(self, proposed: Mapping[str, Tensor], planned: int | None) -> None:
        """Raise ContractError unless the proposed masks fit the weights and the planned count."""
        if not isinstance(proposed, Mapping):
            raise ContractError(f"must return a dict of masks by weight name, returned {type(proposed).__name__}")
        missing = [name for name in self.weights if name not in proposed]
        extra = [name for name in proposed if name not in self.weights]
        if missing or extra:
            raise ContractError(f"must return one mask per prunable weight: missing {missing[:3]}, unknown {extra[:3]}")
        for name, weight in self.weights.items():
            mask = proposed[name]
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
                raise ContractError(f"must return bool tensors, that of '{name}' is {kind} (mask.bool() converts)")
            if mask.shape != weight.shape:
                raise ContractError(
                    f"must return masks shaped as the weights: that of '{name}' must have shape "
                    f"{tuple(weight.shape)}, it has {tuple(mask.shape)}"
                )
        active = sum(count_each(proposed.values()))
        if planned is not None and active != planned:
            raise ContractError(f"must keep exactly {planned} of {self.total} weights here, keeps {active}")

    def check_ranks(self, proposed: Mapping[str, Tensor], fault: str) -> None:
        """Raise ContractError, on every rank alike, unless all have the same masks or the same fault."""
        if self.ranks == 1:
            return
        differing = differing_ranks(fault or hash_masks({name: proposed[name] for name in self.masks}))
        if differing:
            raise ContractError(
                f"must return the same masks in every process, those of rank {differing} differ from rank 0's: draw "
                "random numbers with view.random(name), never from a global generator"
            )

    def take_leading(self, proposed: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the masks that rank 0 proposed, on every rank: rank 0's are applied, whatever was compared."""
        if self.ranks == 1:
            return proposed
        bits = announce(pack_all({name: proposed[name] for name in self.masks}))
        return {name: unpack(bits[name], mask.shape).to(mask.device) for name, mask in self.masks.items()}

    def check_in_force(self) -> None:
        """Raise ContractError, on every rank alike, unless all have applied rank 0's masks."""
        differing = differing_ranks(self.sha256()) if self.ranks > 1 else []
        if differing:
            raise ContractError(f"was applied with other masks on rank {differing} than on rank 0: please report this")

    def find_fault(self, proposed: Mapping[str, Tensor], planned: int | None) -> str:
        """Return what is wrong with the proposed masks, or nothing."""
        try:
            self.check(proposed, planned)
        except ContractError as error:
            return str(error)
        return ""

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights, in place.

        With the class's invariant this keeps inactive weights and their state at zero through SGD (momentum,
        Nesterov, weight decay), Adam and AdamW, so nothing needs masking after the step.
        """
        pairs = [(w.grad, f) for w, f in zip(self.weights.values(), self.factors, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [factor for _, factor in pairs])

    def dense_gradients(self) -> dict[str, Tensor]:
        """Return a float32 copy of the gradients as they are now; zero where a weight took no part in the loss."""
        return {
            name: torch.zeros_like(w) if w.grad is None else w.grad.detach().to(torch.float32, copy=True)
            for name, w in self.weights.items()
        }

    def packed(self) -> dict[str, Tensor]:
        """Return the masks as bits, eight to a byte."""
        return pack_all(self.masks)

    @torch.no_grad()
    def load_packed(self, packed: Mapping[str, Tensor]) -> None:
        """Restore masks saved by `packed`, without touching weights or state."""
        for (name, mask), factor in zip(self.masks.items(), self.factors, strict=True):
            mask.copy_(unpack(packed[name], mask.shape))
            factor.copy_(mask)
        for listener in self.listeners:
            listener(self.counts())

    def load_explored(self, packed: Mapping[str, Tensor]) -> None:
        """Restore what had been explored, from `pack_all(explored)`."""
        for name, explored in self.explored.items():
            explored.copy_(unpack(packed[name], explored.shape))


def pack_all(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return bool tensors as bits, eight to a byte, by name."""
    return {name: pack(mask) for name, mask in masks.items()}


def hash_masks(masks: Mapping[str, Tensor]) -> str:
    """Return a sha256 over the names, shapes and bits of `masks`, in their order."""
    hasher = hashlib.sha256()
    for name, mask in masks.items():
        hasher.update(f"{name}{tuple(mask.shape)}".encode())
        hasher.update(pack(mask).numpy().tobytes())
    return hasher.hexdigest()


WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # numbers by their size in bytes


def zero_outside(mask: Tensor, tensor: Tensor) -> None:
    """Set `tensor` to exactly 0.0 where `mask` is False, in place, whatever stood there.

    The bits are multiplied as a whole number, so neither -0.0 nor an infinity times zero can come of it; a quarter of
    the time of masked_fill_ on a CPU, and no copy of the mask.
    """
    tensor.detach().view(WHOLE[tensor.element_size()]).mul_(mask)


BITS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def pack(mask: Tensor) -> Tensor:
    """Return a bool tensor as a uint8 vector on the CPU, eight elements to a byte in row-major order."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().reshape(-1).numpy()))


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return the bool tensor of the given shape that `pack` was given."""
    bits = (packed.reshape(-1, 1) & BITS) != 0
    return bits.reshape(-1)[: shape.numel()].reshape(shape)


def planned_count(method: Method, maskset: MaskSet, step: int, timeline: Timeline) -> int | None:
    """Return the exact number of weights that must be active after the setup or update at `step`, or None."""
    budget = method.promised_budget()
    if budget is Budget.OUTCOME:
        return None
    sparsity = 0.0 if budget is Budget.DENSE else method.planned_sparsity(step, timeline)
    return count_kept(sparsity, maskset.total)


def propose(method: Method, name: str, view: View) -> list[Masks]:
    """Ask `method` for masks, to be applied in turn; most methods return one set.

    Raises UserError, naming method, moment and promise, when it fails or writes to its inputs.
    """
    moment = "setup" if view.step == 0 else f"the update at step {view.step}"
    protected = [*view.weights.values(), *view.masks.values(), *(view._gradients or {}).values()]
    protected += (view._donor_masks or {}).values()
    versions = [tensor._version for tensor in protected]
    try:
        with torch.no_grad():
            masks: Stages = method.setup(view) if view.step == 0 else method.update(view)
        if versions != [tensor._version for tensor in protected]:
            raise ContractError("must not write to weights, masks or gradients: return new masks instead")
    except ContractError as error:
        raise UserError(f"method '{name}' breaks its contract in {moment}: it {error}") from error
    except RefusedError as error:
        raise UserError(f"method '{name}': {error}") from error
    except (Exception, SystemExit) as error:  # a plugin may raise anything at all
        raise UserError(f"method '{name}' fails in {moment}: {describe_failure(error)}") from error
    return list(masks) if isinstance(masks, tuple) else [masks]


def commit(
    method: Method,
    name: str,
    maskset: MaskSet,
    stages: list[Masks],
    view: View,
    optimizer: torch.optim.Optimizer | None = None,
    average: nn.Module | None = None,
) -> None:
    """Commit proposed masks; a broken promise becomes a UserError that names the method and the moment."""
    try:
        if not stages:
            raise ContractError("must return masks, returned an empty tuple")
        for masks in stages[:-1]:  # what these leave out starts from zero; the count is that of the last
            maskset.commit(masks, None, optimizer, average)
        planned = planned_count(method, maskset, view.step, view.timeline)
        maskset.commit(stages[-1], planned, optimizer, average)
    except ContractError as error:
        moment = "setup" if view.step == 0 else f"the update at step {view.step}"
        raise UserError(f"method '{name}' breaks its contract in {moment}: it {error}") from error


def show_donor(donor: DonorRun | None, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a View of `setup` is given of a donor: its counts and, where they were asked for, its masks."""
    if donor is None:
        return {}
    shown: dict[str, Any] = {"donor_counts": donor.counts}
    if donor.bits is not None:
        shown["donor_masks"] = {n: unpack(donor.bits[n], w.shape).to(w.device) for n, w in weights.items()}
    return shown
