"""What a method proposes: asked for, held to its contract, and committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmark.base.errors import UserError, describe_failure
from benchmark.config.cells import DonorRun
from benchmark.distributed.ranks import count_ranks, differing_ranks, digest, share_tensors
from benchmark.training.masks import MaskSet, unpack
from benchmark.training.method_state import asking, check_penalty, versions_of
from methods.core import (
    Budget,
    ContractError,
    Inactive,
    Masks,
    Method,
    RefusedError,
    Timeline,
    Trains,
    Update,
    View,
    count_kept,
)
from methods.core.answers import asking_together, learn_counts, look


def planned_count(method: Method, maskset: MaskSet, step: int, timeline: Timeline) -> int | None:
    """Return the exact number of weights that must be active after the setup or update at `step`, or None."""
    budget = method.promised_budget()
    if budget is Budget.OUTCOME:
        return None
    try:
        sparsity = 0.0 if budget is Budget.DENSE else method.planned_sparsity(step, timeline)
    except Exception as error:  # a plugin may raise anything at all
        raise UserError(
            f"method {type(method).__name__} fails in planned_sparsity({step}): {describe_failure(error, type(method))}"
        ) from error
    return count_kept(sparsity, maskset.total)


def propose(method: Method, name: str, view: View) -> Update:
    """Ask `method` for masks, or for an Update, at the view's step.

    Raises UserError, naming method, moment and promise, when it fails or writes to its inputs.
    """
    moment = "setup" if view.step == 0 else f"the update at step {view.step}"
    versions = versions_of(tensors_of(view))
    try:
        with torch.no_grad(), asking_together():
            proposal = take(as_update(method.setup(view) if view.step == 0 else method.update(view)), view)
            look_ahead(proposal, view)
        if versions != versions_of(tensors_of(view)):
            raise ContractError("must not write to weights, masks or gradients: return new masks instead")
    except ContractError as error:
        raise UserError(f"method '{name}' breaks its contract in {moment}: it {error}") from error
    except RefusedError as error:
        raise UserError(f"method '{name}': {error}") from error
    except (Exception, SystemExit) as error:  # a plugin may raise anything at all
        raise UserError(f"method '{name}' fails in {moment}: {describe_failure(error, type(method))}") from error
    return proposal


def as_update(proposal: Any) -> Update:
    """Return what a method returned as an Update; raises ContractError for what is no proposal at all."""
    if isinstance(proposal, Update):
        return proposal
    if not all(isinstance(masks, Mapping) for masks in (proposal if isinstance(proposal, tuple) else (proposal,))):
        raise ContractError(f"must return a dict of masks by weight name, returned {type(proposal).__name__}")
    return Update(proposal)


def take(update: Update, view: View) -> Update:
    """Return the update with tensors of its own in place of those that the view shows.

    These change while it is applied: masks kept as state would be the new ones. An expanded tensor, whose elements
    share memory, is no place to receive rank 0's, and is copied too.
    """
    shown = {memory_of(tensor) for tensor in tensors_of(view)}

    def own(given: Any) -> Any:
        if isinstance(given, tuple):
            return tuple(map(own, given))
        return {name: own_tensor(tensor) for name, tensor in given.items()} if isinstance(given, Mapping) else given

    def own_tensor(given: Any) -> Any:
        if not isinstance(given, Tensor) or given.layout is not torch.strided:
            return given
        expanded = given.numel() * given.element_size() > given.untyped_storage().nbytes()
        if not expanded and memory_of(given) not in shown:
            return given
        return given.detach().clone(memory_format=torch.contiguous_format)

    return replace(update, **{part: own(getattr(update, part)) for part in ("masks", "trained", "values", "state")})


def memory_of(tensor: Tensor) -> int:
    """Return what names the memory of a tensor, the same for all views of it."""
    return int(tensor.untyped_storage()._cdata)


def ask_penalty(method: Method, name: str, view: View) -> Mapping[str, Tensor]:
    """Return what the method adds to the gradients at the view's step.

    Raises UserError where it fails, writes to its inputs, or returns anything but tensors shaped as weights.
    """
    with asking(method, name, f"penalty() at step {view.step}", tensors_of(view)):
        penalty = method.penalty(view)
    return check_penalty(name, penalty, view.weights)


def ask_learned(method: Method, name: str, view: View) -> Mapping[str, Tensor]:
    """Return the parameters that the method learns beside the weights; the view is that of its first masks.

    Raises UserError where it fails or writes to its inputs: every method starts from the same initial weights.
    """
    with asking(method, name, "learned()", tensors_of(view)):
        return method.learned(view)


def shown_by(view: View) -> list[Mapping[str, Tensor]]:
    """Return every group of tensors that a view shows."""
    given = (view._gradients, view._hessian_gradients, view._active_gradients, view._donor_masks, view._input_moments)
    return [view.weights, view.masks, view.stored, view.trained, view.state, view.learned, *(g or {} for g in given)]


def tensors_of(view: View) -> Iterator[Tensor]:
    """Yield every tensor that a view shows."""
    return (tensor for tensors in shown_by(view) for tensor in tensors.values())


def look_ahead(update: Update, view: View) -> None:
    """Have the device tell, all at once, what the engine needs to know of a proposal; what is malformed waits its turn.

    The counts of all masks, whether values and state are finite, and whether the trained weights hold the active ones.
    """
    for what, tensors in (("values", update.values), ("state", update.state)):
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else ():
            if isinstance(tensor, Tensor):
                wrong = torch.count_nonzero(~torch.isfinite(tensor))
                look(partial(refuse, f"must return {what} that are finite, that of '{name}' is not"), wrong)
    trained, stages = update.trained, list_stages(update)
    if isinstance(trained, Mapping):
        for name, mask in (stages[-1] if stages else view.masks).items():
            mine = trained.get(name)
            if isinstance(mine, Tensor) and isinstance(mask, Tensor) and mine.shape == mask.shape:
                outside = (
                    torch.count_nonzero(mask & ~mine) if mine.dtype == mask.dtype == torch.bool else mask.new_zeros(())
                )
                fault = f"must train every active weight: in '{name}' some are in the masks and not in trained"
                look(partial(refuse, fault), outside)
        stages = [*stages, trained]
    learn_counts(stages)


def refuse(fault: str, wrong: int) -> None:
    """Raise ContractError for the fault, unless there are none."""
    if wrong:
        raise ContractError(fault)


def list_stages(update: Update) -> list[Masks]:
    """Return the masks of an update in the order they are applied; none where those there are stay."""
    if update.masks is None:
        return []
    return list(update.masks) if isinstance(update.masks, tuple) else [update.masks]


def check_update(method: Method, maskset: MaskSet, update: Update, view: View) -> None:
    """Raise ContractError unless everything in `update` but its masks is what the method may return."""
    stages, stored = list_stages(update), method.inactive is Inactive.STORED
    if update.masks is not None and not stages:
        raise ContractError("must return masks, returned an empty tuple")
    if update.values is not None and not method.writes:
        raise ContractError(
            "must set writes = True to return values: new values of weights are part of what it declares"
        )
    for name, value in check_tensors(update.values, "values").items():
        mine = view.learned.get(name, maskset.weights.get(name))
        if mine is None:
            raise ContractError(f"must return values of weights or learned parameters, '{name}' is neither")
        check_like(name, value, mine, "values")
    check_tensors(update.state, "state")
    forget: Any = update.forget
    if not isinstance(forget, bool | tuple):
        raise ContractError(f"must return forget as True, False or a tuple of names, returned {forget!r:.60}")
    for name in () if isinstance(forget, bool) else forget:
        if name not in view.learned and name not in maskset.weights:
            early = ", or not yet: learned parameters begin after setup" if view.step == 0 else ""
            raise ContractError(f"must forget weights or learned parameters, {name!r:.60} is neither{early}")
    if update.trained is not None:
        if not stored or method.trains is Trains.ALL:
            raise ContractError("must be STORED, and train ACTIVE weights, to say which are trained")
        check_trained(maskset, update.trained, stages[-1] if stages else maskset.masks)


def check_tensors(tensors: Any, what: str) -> Mapping[str, Tensor]:
    """Return `tensors`, or {} for None; raises ContractError unless they are tensors by name."""
    if tensors is None:
        return {}
    if not isinstance(tensors, Mapping) or not all(isinstance(n, str) for n in tensors):
        raise ContractError(f"must return {what} as a dict of tensors by name, returned {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ContractError(f"must return {what} as tensors, that of '{name}' is {type(tensor).__name__}")
    return tensors


def check_like(name: str, tensor: Tensor, mine: Tensor, what: str) -> None:
    """Raise ContractError unless a tensor has the shape of the one it stands for, and floating-point numbers."""
    if tensor.shape != mine.shape or not tensor.is_floating_point():
        raise ContractError(
            f"must return {what} shaped as the weights, in floating point: that of '{name}' must have shape "
            f"{tuple(mine.shape)}, it is {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def check_trained(maskset: MaskSet, trained: Any, masks: Any) -> None:
    """Raise ContractError unless both are masks; that `trained` hold all of `masks` was seen when they came."""
    maskset.check(trained, None)
    maskset.check(masks, None)


def commit(
    method: Method,
    name: str,
    maskset: MaskSet,
    update: Update,
    view: View,
    optimizer: torch.optim.Optimizer | None = None,
    average: nn.Module | None = None,
    learned: Mapping[str, Tensor] | None = None,
) -> Update:
    """Apply a proposed update; a broken promise becomes a UserError that names the method and the moment.

    Returns the update with rank 0's state, for the engine to keep. `learned`: the method's parameters, to be written.
    """
    try:
        update = agree(update, lambda: check_update(method, maskset, update, view))
        planned = planned_count(method, maskset, view.step, view.timeline)
        stages = list_stages(update)
        weighs = maskset.weighs
        if not stages and not weighs and planned is not None and maskset.active() != planned:
            raise ContractError(
                f"must keep exactly {planned} of {maskset.total} weights here, keeps {maskset.active()}"
            )
        if stages and (update.values or weighs or len(stages) > 1):  # before anything is written
            for masks in stages[1:-1]:
                maskset.check_together(masks, None)
            maskset.check_together(stages[-1], planned)
        if stages and weighs:
            maskset.stored = None  # the masks are fixed: the network trains on with the weights it computes with
        for masks in stages[:-1]:  # what these leave out starts from zero; the count is that of the last
            maskset.commit(masks, None, optimizer, average)
        write(maskset, update.values or {}, learned or {})
        if stages or update.trained is not None:
            maskset.commit(stages[-1] if stages else maskset.masks, planned, optimizer, average, update.trained)
        elif weighs or update.values:
            maskset.load_effective(average)
    except ContractError as error:
        moment = "setup" if view.step == 0 else f"the update at step {view.step}"
        raise UserError(f"method '{name}' breaks its contract in {moment}: it {error}") from error
    return update


def agree(update: Update, check: Callable[[], None]) -> Update:
    """Check the update on every rank and return it with rank 0's values and state.

    Raises ContractError, on every rank alike, where one of them breaks the contract or proposes something else.
    """
    fault = ""
    try:
        check()
    except ContractError as error:
        fault = str(error)
    if count_ranks() == 1:
        if fault:
            raise ContractError(fault)
        return update
    own = {} if fault else list_tensors(update)
    if differing := differing_ranks(f"{fault} {list(own)} {update.forget} {len(list_stages(update))}"):
        raise ContractError(fault or f"must return the same Update in every process, rank {differing} returns another")
    if fault:
        raise ContractError(fault)
    if own and (differing := differing_ranks(b"".join(digest(tensor) for tensor in own.values()).hex())):
        raise ContractError(
            f"must return the same values and state in every process, those of rank {differing} differ from rank 0's: "
            "draw random numbers with view.random(name), never from a global generator"
        )
    share_tensors(list(own.values()))
    return update


def list_tensors(update: Update) -> dict[str, Tensor]:
    """Return every tensor of an update but its masks, by kind and name."""
    kinds = {"value": update.values, "state": update.state, "trained": update.trained}
    return {f"{kind} {name}": tensor for kind, group in kinds.items() for name, tensor in (group or {}).items()}


@torch.no_grad()
def write(maskset: MaskSet, values: Mapping[str, Tensor], learned: Mapping[str, Tensor]) -> None:
    """Give weights, stored ones where they are stored, and learned parameters new values."""
    for name, value in values.items():
        if name in learned:
            learned[name].copy_(value)
        elif maskset.stored is not None:
            maskset.stored.values[name].copy_(value)
        else:
            maskset.weights[name].copy_(value)


def show_donor(donor: DonorRun | None, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a View of `setup` is given of a donor: its counts and, where they were asked for, its masks."""
    if donor is None:
        return {}
    shown: dict[str, Any] = {"donor_counts": donor.counts}
    if donor.bits is not None:
        shown["donor_masks"] = {n: unpack(donor.bits[n], w.shape).to(w.device) for n, w in weights.items()}
    return shown
