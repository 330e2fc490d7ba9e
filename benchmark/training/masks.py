"""Masks beside the network: checked, applied to weights and optimiser state, counted, hashed, packed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmark.base.system import to_cpu
from benchmark.distributed.ranks import announce, count_ranks, differing_ranks
from benchmark.training.stored import Stored, zero_outside
from methods.core import ContractError, Trains
from methods.core.answers import count_each, note_count, recall_count


class MaskSet:
    """Bool masks beside the model, keyed by parameter name; True = active.

    `last` is the layer that gives the classes their scores, empty where it is not prunable. `explored` keeps which
    weights were active in any masks committed so far; before the first commit none were.
    `stored` keeps the values of inactive weights, for a method that asks for that; None for the others.
    Invariant: wherever a mask is False the weight is exactly zero, and so are its average and, unless it is trained all
    the same, its optimiser state. The model stays an ordinary network: `state_dict` is plain timm's and `p.grad` is the
    dense gradient.
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
        self.listeners: list[Callable[[dict[str, int] | Tensor], None]] = []
        self.stored: Stored | None = None

    def store(self, trains: Trains, averaged: bool) -> Stored:
        """Keep the values of inactive weights from now on."""
        self.stored = Stored(self.weights, trains, averaged)
        if not self.stored.all:
            self.stored.train_only(self.masks)
        return self.stored

    @property
    def trains_all(self) -> bool:
        """Whether the optimiser steps every weight."""
        return self.stored is not None and self.stored.all

    def trained(self) -> dict[str, Tensor]:
        """Return which weights the optimiser steps: the active ones, unless the method trains others as well."""
        if self.stored is None:
            return self.masks
        if self.stored.trained is not None:
            return self.stored.trained
        return {name: torch.ones_like(mask) for name, mask in self.masks.items()}

    def trained_counts(self) -> dict[str, int] | None:
        """Return the number of trained weights of each layer; None where they are the active ones, or all."""
        return None if self.stored is None else self.stored.counts

    @property
    def weighs(self) -> bool:
        """Whether the masks follow from what the method makes of the stored weights, at every step."""
        return self.stored is not None and self.stored.weigh is not None

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
        return sum(count_each(self.explored.values())) / self.total

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
        trained: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Apply the proposed masks: zero weights, optimiser state and average where they are inactive.

        trained: which weights have a gradient from now on, where the values of inactive ones are stored; None = the
        active, or all. Stored values are shown where a mask lets them, and the state of trained weights stays.

        planned: the exact number of active weights, or None where the count is an outcome. Raises ContractError, and
        changes nothing, for missing or unknown names, another dtype or shape, another count, or other masks than rank
        0's where several processes train together. A weight active before and after keeps its value and state; a newly
        active one starts at zero with zero state.
        """
        self.check_together(proposed, planned)
        proposed = self.take_leading(proposed)
        masks = list(self.masks.values())
        torch._foreach_copy_(masks, [proposed[name] for name in self.masks])
        torch._foreach_copy_(self.factors, masks)
        for (name, mask), explored in zip(self.masks.items(), self.explored.values(), strict=True):
            if (count := recall_count(proposed[name])) is not None:
                note_count(mask, count)
            explored |= mask
        stored = self.stored
        if stored is not None and not stored.all:
            stored.train_only(self.masks if trained is None else trained)
        if not self.trains_all:
            self.zero_state(optimizer)
        self.load_effective(average)
        self.check_in_force()
        if not self.weighs:  # what is weighed was told when it was shown
            self.tell()

    def zero_state(self, optimizer: Optimizer | None) -> None:
        """Zero the optimiser's state of weights that are not trained."""
        if optimizer is None:
            return
        trained = self.trained()
        for name, weight in self.weights.items():
            for state in inner_state(optimizer).get(weight, {}).values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    zero_outside(trained[name], state)

    @torch.no_grad()
    def load_effective(self, average: nn.Module | None = None) -> None:
        """Have network and average hold what they compute with: zeros where inactive, stored values elsewhere.

        Where the method weighs its weights, what it makes of the stored ones; its zeros are then the masks.
        """
        if self.weighs:
            self.load_weighed(average)
            return
        stored = self.stored
        for name, weight in self.weights.items():
            if stored is not None:
                weight.copy_(stored.values[name])
            zero_outside(self.masks[name], weight)
            if average is not None:
                averaged = average.get_parameter(name)
                if stored is not None:
                    averaged.copy_(stored.average[name])
                zero_outside(self.masks[name], averaged)

    @torch.no_grad()
    def load_weighed(self, average: nn.Module | None = None) -> None:
        """Have the network hold what `stored.weigh` makes of the stored weights: its zeros are the masks."""
        stored = self.stored
        assert stored is not None and stored.weigh is not None, "a method that weighs has stored weights"
        for (name, weight), factor in zip(self.weights.items(), self.factors, strict=True):
            weight.copy_(stored.weigh(name, stored.values[name]))
            mask = torch.ne(weight, 0, out=self.masks[name])
            factor.copy_(mask)
            self.explored[name] |= mask
            if average is not None:
                averaged = average.get_parameter(name)
                averaged.copy_(stored.weigh(name, stored.average[name]))
                zero_outside(mask, averaged)
        if self.factors[0].device.type == "cpu":
            self.tell()
            return
        counts = torch.stack([torch.count_nonzero(mask) for mask in self.masks.values()])
        for listener in self.listeners:
            listener(counts)

    def tell(self) -> None:
        """Tell the listeners how many weights of each layer are active."""
        counts = self.counts()
        for listener in self.listeners:
            listener(counts)

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
        active = None if planned is None else sum(count_each(proposed.values()))
        if active != planned:
            raise ContractError(f"must keep exactly {planned} of {self.total} weights here, keeps {active}")

    def check_together(self, proposed: Mapping[str, Tensor], planned: int | None) -> None:
        """Raise ContractError, on every rank alike, unless the proposed masks can be committed."""
        fault = self.find_fault(proposed, planned)
        self.check_ranks(proposed, fault)
        if fault:
            raise ContractError(fault)

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
        """Zero the gradients of weights that are not trained, in place.

        With the class's invariant this keeps inactive weights and their state at zero through SGD (momentum,
        Nesterov, weight decay), Adam and AdamW, so nothing needs masking after the step.
        """
        if self.trains_all:
            return
        factors = self.factors if self.stored is None else self.stored.factors
        pairs = [(w.grad, f) for w, f in zip(self.weights.values(), factors, strict=True) if w.grad is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [factor for _, factor in pairs])

    def dense_gradients(self) -> dict[str, Tensor]:
        """Return a float32 copy of the gradients as they are now; zero where a weight took no part in the loss."""
        return {
            name: torch.zeros_like(w) if w.grad is None else w.grad.detach().to(torch.float32, copy=True)
            for name, w in self.weights.items()
        }

    def active_gradients(self, copied: bool = False) -> dict[str, Tensor]:
        """Return the gradients of the trained weights as they are now, zero elsewhere.

        `copied`: for good, whatever is done to the gradients; else until they change.
        """
        found = {n: torch.zeros_like(w) if w.grad is None else w.grad.detach() for n, w in self.weights.items()}
        return {name: gradient.clone() for name, gradient in found.items()} if copied else found

    def packed(self) -> dict[str, Tensor]:
        """Return the masks as bits, eight to a byte."""
        return pack_all(self.masks)

    @torch.no_grad()
    def load_packed(self, packed: Mapping[str, Tensor]) -> None:
        """Restore masks saved by `packed`, without touching weights or state."""
        for (name, mask), factor in zip(self.masks.items(), self.factors, strict=True):
            mask.copy_(unpack(packed[name], mask.shape))
            factor.copy_(mask)
        self.tell()

    def load_explored(self, packed: Mapping[str, Tensor]) -> None:
        """Restore what had been explored, from `pack_all(explored)`."""
        for name, explored in self.explored.items():
            explored.copy_(unpack(packed[name], explored.shape))


def pack_all(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return bool tensors as bits on the CPU, eight to a byte, by name; the host waits once for all."""
    return to_cpu({name: pack(mask) for name, mask in masks.items()})


def inner_state(optimizer: Optimizer) -> Mapping[Tensor, dict[str, Any]]:
    """Return the state by parameter, of what timm's Lookahead steps where it wraps another optimiser."""
    state: Mapping[Tensor, dict[str, Any]] = getattr(optimizer, "_base_optimizer", optimizer).state
    return state


def hash_masks(masks: Mapping[str, Tensor]) -> str:
    """Return a sha256 over the names, shapes and bits of `masks`, in their order."""
    hasher = hashlib.sha256()
    for name, bits in pack_all(masks).items():
        hasher.update(f"{name}{tuple(masks[name].shape)}".encode())
        hasher.update(bits.numpy().tobytes())
    return hasher.hexdigest()


BITS = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def pack(mask: Tensor) -> Tensor:
    """Return a bool tensor as a uint8 vector where it lies, eight elements to a byte in row-major order."""
    flat = mask.detach().reshape(-1)
    if flat.device.type == "cpu":
        return torch.from_numpy(np.packbits(flat.numpy()))
    places = torch.arange(7, -1, -1, device=flat.device, dtype=torch.uint8)  # of the bits, the first highest
    return (functional.pad(flat.byte(), (0, -len(flat) % 8)).view(-1, 8) << places).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Return the bool tensor of the given shape that `pack` was given."""
    bits = (packed.cpu().reshape(-1, 1) & BITS) != 0
    return bits.reshape(-1)[: shape.numel()].reshape(shape)
