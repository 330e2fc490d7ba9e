"""Exact selection without a sort: the k largest scores, found by a histogram of the upper bits of their pattern.

A float's bits, read as a whole number, rise with its value, so 2^16 counters over the upper 16 bits say in which narrow
range the k-th largest score lies, and only the few scores of that range are ranked. Counters of several layers are
added: no layer is copied beside another. Whatever the path, the choice is that of a stable descending sort.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from functools import partial, reduce

import torch
from torch import Tensor

from methods.core.answers import asking_together, count_each, look, note_count
from methods.core.errors import ContractError

LARGE = 2**15  # scores; below it ranking all of them costs less than counters
# By dtype: how many 16-bit pieces a number has, and the upper piece of infinity.
PIECES = {torch.float32: (2, 0x7F80), torch.float64: (4, 0x7FF0)} if sys.byteorder == "little" else {}
HALF = 2**15  # counters of the positive numbers, and of the negative ones
BLOCK = 2**8  # counters summed together, to find the right one in two short looks
CHUNK = 2**15  # scores looked through at once


def choose(scores: Sequence[Tensor], k: int, among: Sequence[Tensor | None]) -> list[Tensor]:
    """Return masks with exactly k True over all tensors: the k largest scores among the candidates of all together.

    among: for each tensor of scores a bool tensor of its shape, True = candidate, or None for all of it. Ties go to the
    earlier tensor, then to the lower row-major index; -0.0 and 0.0 are equal. Raises ContractError for a candidate that
    is not finite and for k outside [0, candidates]. Invariant: the answer depends on no thread count, memory format or
    device, and on nothing that stands outside the candidates.
    """
    if scores[0].device.type != "cpu":
        masks, facts = choose_by_sorting(scores, k, among)
        look(partial(check, k), facts)
        if len(masks) == 1:
            note_count(masks[0], k)
        return masks
    kinds, sizes = zip(*((score.dtype, score.numel()) for score in scores), strict=True)
    common = reduce(torch.promote_types, kinds)
    if len(set(kinds)) > 1:
        scores = [score.to(common) for score in scores]
    counted = common in PIECES and sum(sizes) >= LARGE
    threshold = find_by_counting(scores, k, among) if counted else find_by_ranking(scores, k, among)
    return cut(scores, k, among, threshold)


def choose_each(scores: Iterable[Tensor], counts: Sequence[int], among: Iterable[Tensor | None]) -> list[Tensor]:
    """Return, for each tensor by itself, the mask of its counts[i] largest candidates; see `choose`.

    Scores and candidates are taken one after the other, so generators spare memory. On an accelerator the host waits
    once for all tensors together.
    """
    with asking_together():
        groups = (choose([score], k, [mask]) for score, k, mask in zip(scores, counts, among, strict=True))
        return [masks[0] for masks in groups]


def check(k: int, finite: int, available: int) -> None:
    """Raise ContractError unless every candidate is finite and there are at least k of them."""
    if not 0 <= k <= available:
        raise ContractError(f"cannot keep {k} of {available} candidates")
    if finite != available:
        raise ContractError("ranked a score that is not finite")


def find_by_ranking(scores: Sequence[Tensor], k: int, among: Sequence[Tensor | None]) -> Tensor | None:
    """Return the k-th largest candidate, found among all of them; None for k = 0."""
    pairs = zip(scores, among, strict=True)
    parts = [score.reshape(-1) if mask is None else score[mask] for score, mask in pairs]
    flat = parts[0] if len(parts) == 1 else torch.cat(parts)
    return rank(flat, k)


def rank(flat: Tensor, k: int) -> Tensor | None:
    """Return the k-th largest of a vector, None for k = 0; raises ContractError as `choose` does."""
    available = flat.numel()
    if available == 0 or not 0 <= k <= available:
        check(k, available, available)
        return None
    lowest, highest = flat.aminmax()  # not a number where one of them is
    finite = math.isfinite(lowest.item()) and math.isfinite(highest.item())
    check(k, available if finite else 0, available)
    if k == 0:
        return None
    return lowest if k == available or bool(lowest == highest) else flat.kthvalue(available - k + 1).values


def find_by_counting(scores: Sequence[Tensor], k: int, among: Sequence[Tensor | None]) -> Tensor | None:
    """Return the k-th largest candidate, found by counting upper bits and ranking the scores of one counter."""
    counters = torch.zeros(2 * HALF, dtype=torch.int64)
    keys = scores[0]
    for score, mask in zip(scores, among, strict=True):
        keys = read_keys(*lay_flat(score, mask))
        if int(keys.min()) < 0:
            counters += torch.bincount(keys.int() + HALF, minlength=2 * HALF)
        else:
            counters[HALF:] += torch.bincount(keys, minlength=HALF)
        if mask is not None:
            counters[HALF] -= mask.numel() - int(torch.count_nonzero(mask))
    infinite = PIECES[scores[0].dtype][1]
    available = int(counters.sum())
    wrong = int(counters[: HALF - infinite].sum() + counters[HALF + infinite :].sum())
    check(k, available - wrong, available)
    if k == 0:
        return None
    place, above = find_counter(counters, k)
    key, found = place - HALF, []
    for score, mask in zip(scores, among, strict=True):
        flat, candidates = lay_flat(score, mask)
        at_key = (keys if len(scores) == 1 else read_keys(flat, candidates)) == key
        if key == 0 and candidates is not None:  # where those that are no candidates were counted
            at_key &= candidates
        found.append(flat[at_key])
    return rank(found[0] if len(found) == 1 else torch.cat(found), k - above)


def find_counter(counters: Tensor, k: int) -> tuple[int, int]:
    """Return the counter that holds the k-th, counted from the last one down, and the sum of those beyond it."""
    block, beyond = look_down(counters.reshape(-1, BLOCK).sum(1), k)
    place, more = look_down(counters[block * BLOCK : (block + 1) * BLOCK], k - beyond)
    return block * BLOCK + place, beyond + more


def look_down(counters: Tensor, k: int) -> tuple[int, int]:
    """Return what `find_counter` does, by summing all of the counters."""
    from_top = counters.flip(0).cumsum(0)
    steps = int(torch.searchsorted(from_top, k))
    return counters.numel() - 1 - steps, int(from_top[steps - 1]) if steps else 0


def lay_flat(score: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return scores and candidates as vectors in one common order: that of memory where it is dense, to save a copy."""
    if score.dim() == 4 and score.is_contiguous(memory_format=torch.channels_last):
        score, mask = score.permute(0, 2, 3, 1), None if mask is None else mask.permute(0, 2, 3, 1)
    return score.reshape(-1), None if mask is None else mask.reshape(-1)


def read_keys(flat: Tensor, candidates: Tensor | None) -> Tensor:
    """Return the upper 16 bits of each score as an int16 that rises with it, 0 where it is no candidate."""
    pieces = PIECES[flat.dtype][0]
    upper = flat.contiguous().view(torch.int16)[pieces - 1 :: pieces]
    keys = upper.contiguous() if candidates is None else upper * candidates
    # Negative numbers have the sign bit set and the other bits rise as the number falls.
    return keys ^ ((keys >> 15) & 0x7FFF) if keys.numel() and int(keys.min()) < 0 else keys


def cut(scores: Sequence[Tensor], k: int, among: Sequence[Tensor | None], threshold: Tensor | None) -> list[Tensor]:
    """Return the masks of the k largest candidates, of which `threshold` is the smallest."""
    if threshold is None:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    masks = [restrict(score >= threshold, mask) for score, mask in zip(scores, among, strict=True)]
    surplus = sum(count_each(masks)) - k
    for score, mask in zip(reversed(scores), reversed(masks), strict=True):
        if surplus == 0:
            break
        ties = mask & (score == threshold)
        found = int(torch.count_nonzero(ties))
        if found > surplus:  # the first of them stay
            flat = ties.reshape(-1)
            flat[: find_position(flat, found - surplus) + 1] = False
            ties, found = flat.reshape(ties.shape), surplus
        mask ^= ties
        surplus -= found
    return masks


def restrict(mask: Tensor, among: Tensor | None) -> Tensor:
    """Return the mask, made False in place outside `among`."""
    return mask if among is None else mask.logical_and_(among)


def find_position(flat: Tensor, number: int) -> int:
    """Return the position of the `number`-th True, counted from 1, of a bool vector that has as many."""
    low, high = 0, flat.numel()
    while high - low > CHUNK:
        middle = (low + high) // 2
        found = int(torch.count_nonzero(flat[low:middle]))
        if number <= found:
            high = middle
        else:
            number, low = number - found, middle
    return low + int(flat[low:high].nonzero()[number - 1])


def choose_by_sorting(scores: Sequence[Tensor], k: int, among: Sequence[Tensor | None]) -> tuple[list[Tensor], Tensor]:
    """Return the masks of `choose` by one stable sort, and the numbers of finite and of all candidates, unchecked.

    On an accelerator a sort costs milliseconds, while waiting for a count costs the launches that could have been
    queued; here the host waits for nothing.
    """
    parts: list[Tensor] = []
    for score, mask in zip(scores, among, strict=True):
        ranked = (score if score.is_floating_point() else score.double()) + 0.0  # -0.0 becomes 0.0
        parts.append((ranked if mask is None else ranked.masked_fill(~mask, -math.inf)).reshape(-1))
    flat = torch.cat(parts)
    present = [
        torch.full((), score.numel(), device=flat.device) if mask is None else torch.count_nonzero(mask)
        for score, mask in zip(scores, among, strict=True)
    ]
    facts = torch.stack([torch.count_nonzero(torch.isfinite(flat)), torch.stack(present).sum()])
    order = flat.sort(descending=True, stable=True).indices
    chosen = torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order[: max(k, 0)], True)
    pieces = chosen.split([part.numel() for part in parts])
    return [piece.reshape(score.shape) for piece, score in zip(pieces, scores, strict=True)], facts
