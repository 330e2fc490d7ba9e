"""Exact selection without a sort: the k largest scores, found between two bounds that a sample of them gives.

Every 37th score tells between which two values the k-th largest candidate lies, but for rare cases; what is larger is
counted, and only the few scores between the bounds are ranked. Layers are looked through piece by piece: neither their
absolute values nor copies of them are ever there as a whole. Where the bounds prove wrong, all candidates are ranked:
whatever the path, the choice is that of a stable descending sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import torch
from torch import Tensor

from methods.core.answers import asking_together, count_each, look, note_count
from methods.core.errors import ContractError

FEW = 2**13  # candidates; to rank all of them costs less than to look for bounds
STRIDE = 37  # from one score of the sample to the next: prime, to fall into step with no dimension of a weight
CHUNK = 2**16  # scores looked through at once: they and what is made of them stay in a core's cache


def choose(scores: Sequence[Tensor], k: int, among: Sequence[Tensor | None], sized: bool = False) -> list[Tensor]:
    """Return masks with exactly k True over all tensors: the k largest scores among the candidates of all together.

    among: for each tensor of scores a bool tensor of its shape, True = candidate, or None for all of it. sized: what
    counts are the absolute values, which are never there as a whole. Ties go to the earlier tensor, then to the lower
    row-major index; -0.0 and 0.0 are equal. Raises ContractError for a candidate that is not finite and for k outside
    [0, candidates]. Invariant: the answer depends on no thread count, memory format or device, and on nothing that
    stands outside the candidates.
    """
    if scores[0].device.type != "cpu":
        masks, facts = choose_by_sorting([s.abs() for s in scores] if sized else scores, k, among)
        look(partial(check, k), facts)
        if len(masks) == 1:
            note_count(masks[0], k)
        return masks
    kinds = {score.dtype for score in scores}
    if len(kinds) > 1:
        scores = [score.to(reduce(torch.promote_types, kinds)) for score in scores]
    layers = [Layer(score, mask, sized) for score, mask in zip(scores, among, strict=True)]
    if sum(layer.flat.numel() for layer in layers) <= FEW or (len(layers) == 1 and layers[0].count() <= FEW):
        flat = join([pick(*piece) for layer in layers for piece in layer.pieces()])
        check(k, flat.numel() if are_finite(flat) else 0, flat.numel())
        return cut(layers, k, *(rank(flat, k) if k else (None, 0)))
    merged = merge(layers)
    found = survey(merged)
    check(k, found.finite, found.available)
    bounds = find_bounds(found, k) if found.available > FEW else (None, None)
    return cut(layers, k, *(find_threshold(merged, k, *bounds) if k else (None, 0)))


def choose_each(
    scores: Iterable[Tensor], counts: Sequence[int], among: Iterable[Tensor | None], sized: bool = False
) -> list[Tensor]:
    """Return, for each tensor by itself, the mask of its counts[i] largest candidates; see `choose`.

    Scores and candidates are taken one after the other, so generators spare memory. On an accelerator the host waits
    once for all tensors together.
    """
    with asking_together():
        groups = (choose([score], k, [mask], sized) for score, k, mask in zip(scores, counts, among, strict=True))
        return [masks[0] for masks in groups]


def check(k: int, finite: int, available: int) -> None:
    """Raise ContractError unless every candidate is finite and there are at least k of them."""
    if not 0 <= k <= available:
        raise ContractError(f"cannot keep {k} of {available} candidates")
    if finite != available:
        raise ContractError("ranked a score that is not finite")


class Layer:
    """A tensor's scores and candidates as vectors in one order, that of memory where it is dense, piece by piece."""

    def __init__(self, score: Tensor, mask: Tensor | None, sized: bool) -> None:
        self.score, self.mask, self.sized = score, mask, sized
        self.swapped = score.dim() == 4 and score.is_contiguous(memory_format=torch.channels_last)
        if self.swapped:
            score, mask = score.permute(0, 2, 3, 1), None if mask is None else mask.permute(0, 2, 3, 1)
        self.order = score.shape
        self.flat, self.candidates = score.detach().reshape(-1), None if mask is None else mask.reshape(-1)
        if sized and self.flat.numel() <= CHUNK:  # few enough to be kept: to compute them again would cost more
            self.flat, self.sized = self.flat.abs(), False

    def count(self) -> int:
        """Return the number of candidates."""
        return self.flat.numel() if self.candidates is None else int(torch.count_nonzero(self.candidates))

    def pieces(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield scores and candidates, CHUNK at once; what is yielded lasts until the next."""
        if self.flat.numel() <= CHUNK:
            if self.flat.numel():
                yield self.flat, self.candidates
            return
        room = torch.empty(CHUNK, dtype=self.flat.dtype) if self.sized else None
        for start in range(0, self.flat.numel(), CHUNK):
            flat = self.flat[start : start + CHUNK]
            mask = None if self.candidates is None else self.candidates[start : start + CHUNK]
            yield (flat if room is None else torch.abs(flat, out=room[: flat.numel()])), mask

    def where(self, compare: Callable[[Tensor, Tensor], Tensor], threshold: Tensor) -> Tensor:
        """Return the mask of the candidates for which a comparison with `threshold` holds."""
        flat = join([restrict(compare(flat, threshold), mask) for flat, mask in self.pieces()], torch.bool)
        return flat.view(self.order).permute(0, 3, 1, 2) if self.swapped else flat.view(self.order)


def merge(layers: list[Layer]) -> list[Layer]:
    """Return layers with the small ones as one, which saves calls; the k-th largest of all is the same."""
    small = [layer for layer in layers if layer.flat.numel() <= CHUNK]
    if len(small) < 2:
        return layers
    flat = torch.cat([layer.flat for layer in small])
    masks = [torch.ones_like(one.flat, dtype=torch.bool) if one.candidates is None else one.candidates for one in small]
    return [Layer(flat, torch.cat(masks), False), *(layer for layer in layers if layer.flat.numel() > CHUNK)]


def join(parts: Sequence[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """Return vectors as one."""
    if not parts:
        return torch.empty(0, dtype=dtype)
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclass
class Survey:
    """What one look at all scores tells: the candidates, those that are finite, and a sample of them."""

    available: int = 0
    finite: int = 0
    sample: list[Tensor] = field(default_factory=list)


def survey(layers: Sequence[Layer]) -> Survey:
    """Look at all scores, once."""
    found = Survey()
    for flat, mask in (piece for layer in layers for piece in layer.pieces()):
        count = flat.numel() if mask is None else int(torch.count_nonzero(mask))
        found.available += count
        found.finite += count if are_finite(flat) or are_finite(pick(flat, mask)) else 0
        found.sample.append(pick(flat[::STRIDE], None if mask is None else mask[::STRIDE]))
    return found


def are_finite(flat: Tensor) -> bool:
    """Return whether all numbers of a vector are finite."""
    if flat.numel() == 0:
        return True
    lowest, highest = flat.aminmax()  # not a number where one of them is
    return math.isfinite(lowest.item()) and math.isfinite(highest.item())


def pick(flat: Tensor, mask: Tensor | None) -> Tensor:
    """Return a copy of the scores of a vector that are candidates, in order."""
    if mask is None:
        return flat.clone()
    if flat.dtype is torch.bfloat16:  # unknown to numpy
        return flat.masked_select(mask)
    return torch.from_numpy(flat.numpy().compress(mask.numpy()))  # masked_select takes four times as long


def rank(flat: Tensor, k: int) -> tuple[Tensor, int]:
    """Return the k-th largest of a vector, and how many are as large or larger."""
    threshold = flat.kthvalue(flat.numel() - k + 1).values
    return threshold, int(torch.count_nonzero(flat >= threshold))


def find_bounds(found: Survey, k: int) -> tuple[Tensor | None, Tensor | None]:
    """Return what the k-th largest candidate lies between, but for one time in ten thousand; None for no bound."""
    sample = torch.cat(found.sample)
    size = sample.numel()
    if size == 0:
        return None, None
    place = k / found.available * size
    margin = 4 * math.sqrt(place * (1 - place / size)) + 2  # four standard deviations
    low, high = size + 1 - math.ceil(place + margin), size + 1 - math.floor(place - margin)  # from the smallest up
    return (
        sample.kthvalue(low).values if low >= 1 else None,
        sample.kthvalue(high).values if high <= 0.9 * size else None,  # few lie above: they may as well be ranked
    )


def find_threshold(
    layers: Sequence[Layer], k: int, low: Tensor | None = None, high: Tensor | None = None
) -> tuple[Tensor, int]:
    """Return the k-th largest candidate, which should lie between the bounds, and how many are as large or larger."""
    between, above = [], 0
    for flat, mask in (piece for layer in layers for piece in layer.pieces()):
        within = mask if low is None else restrict(flat > low, mask)
        if high is not None:
            above += flat.numel() if within is None else int(torch.count_nonzero(within))
            within = restrict(flat < high, within)
        between.append(pick(flat, within))
    flat = join(between)
    above -= flat.numel() if high is not None else 0
    if above < k <= above + flat.numel():
        threshold, reached = rank(flat, k - above)
        return threshold, above + reached
    for bound in (low, high):  # many may be equal to it
        if bound is not None:
            reached = sum(count_each(layer.where(torch.ge, bound) for layer in layers))
            if reached - sum(count_each(layer.where(torch.eq, bound) for layer in layers)) < k <= reached:
                return bound, reached
    return find_threshold(layers, k)


def cut(layers: Sequence[Layer], k: int, threshold: Tensor | None, reached: int) -> list[Tensor]:
    """Return the masks of the k largest candidates: of those that reach the threshold, the first; None for none."""
    if threshold is None:
        return [torch.zeros_like(layer.score, dtype=torch.bool) for layer in layers]
    masks = [layer.where(torch.ge, threshold) for layer in layers]
    surplus = reached - k
    for layer, mask in zip(reversed(layers), reversed(masks), strict=True):
        if surplus == 0:
            break
        ties = layer.where(torch.eq, threshold)
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
