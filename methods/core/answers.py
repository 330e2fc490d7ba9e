"""What the host asks an accelerator, as seldom as can be: each answer makes it wait for all that was queued before.

How many weights a mask has is remembered while the mask stays what it is, and what selections have to check (that every
candidate is finite, that there are enough) is asked together. On a CPU nothing is remembered or put off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Check = Callable[..., None]  # of the numbers that were found; raises ContractError

counts = WeakIdKeyDictionary()  # tensor on an accelerator -> its version then, and how many of its elements were not 0
put_off: list[list[tuple[Check, Tensor]]] = []  # the one list of the outermost `asking_together`, or none


def note_count(tensor: Tensor, count: int) -> None:
    """Remember how many elements of a tensor are not zero, until it is written to."""
    if tensor.device.type != "cpu":
        counts[tensor] = tensor._version, count


def recall_count(tensor: Tensor) -> int | None:
    """Return how many elements of a tensor are not zero, where that is remembered."""
    version, count = counts.get(tensor, (None, 0))
    return count if version == tensor._version else None


def count_each(masks: Iterable[Tensor]) -> list[int]:
    """Return the number of True in each bool tensor; an accelerator is asked once for all, and only for news."""
    masks = list(masks)
    if all(mask.device.type == "cpu" for mask in masks):
        return [int(n) for n in torch.stack([torch.count_nonzero(m) for m in masks]).tolist()] if masks else []
    unknown = [mask for mask in masks if recall_count(mask) is None]
    if unknown:
        for mask, count in zip(unknown, ask([torch.count_nonzero(mask) for mask in unknown]), strict=True):
            note_count(mask, count)
    return [recall_count(mask) or 0 for mask in masks]


def ask(numbers: Sequence[Tensor]) -> list[int]:
    """Return whole numbers from the device, after the checks that were put off: one wait for all of them."""
    late = put_off[-1][:] if put_off else []
    facts = [number.reshape(-1) for number in [*(found for _, found in late), *numbers]]
    answers = [int(n) for n in torch.cat(facts).tolist()] if facts else []
    if put_off:
        put_off[-1].clear()
    for check, found in late:
        check(*answers[: found.numel()])
        answers = answers[found.numel() :]
    return answers


def look(check: Check, found: Tensor) -> None:
    """Give `check` the numbers that were found on the device: now, or at the end of `asking_together`."""
    if put_off:
        put_off[-1].append((check, found))
    else:
        check(*(int(n) for n in found.reshape(-1).tolist()))


@contextmanager
def asking_together() -> Iterator[None]:
    """Put the checks of selections off to the end of the block, or to the first question within it.

    What fails because of a selection that could not be made is raised as that selection's error.
    """
    if put_off:  # the block around this one asks
        yield
        return
    put_off.append([])
    try:
        yield
    finally:
        try:
            ask(())
        finally:
            put_off.clear()


def learn_counts(groups: Iterable[Mapping[str, Tensor]]) -> None:
    """Ask an accelerator how many weights each mask has, together with the checks put off."""
    masks = [mask for group in groups for mask in group.values() if isinstance(mask, Tensor)]
    count_each(mask for mask in masks if mask.device.type != "cpu")
