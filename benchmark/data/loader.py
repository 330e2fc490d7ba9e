"""A user's own loader, as the images that methods score on and take moments of."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmark.base.errors import UserError
from methods.core import Scoring


class LoaderImages:
    """Batches of a loader that yields (inputs, labels), as part of a data set: see `benchmark.data.images.Images`.

    Batches are those that the loader yields next, from its start again at its end. The first ones are kept where a
    method scores on the same in several rounds, and where it asks for so many of every class; `classes`: how many there
    are. `batches`: the most that are looked at once. Invariant: nothing is read until it is asked for, and whether
    inputs are augmented is the loader's affair.
    """

    def __init__(self, loader: Iterable[Any], wanted: Scoring | None, classes: int, batches: int = 1) -> None:
        self.loader = loader
        self.passes = self.yield_batches()
        first = next(self.passes)
        self.batch_size = len(first[1])
        self.ahead = [first]
        self.kept: Tensor | None = None
        self.labels = torch.zeros(self.batch_size * batches, dtype=torch.int64)
        if wanted is not None and wanted.samples_per_class:
            self.keep_each(wanted.samples_per_class, classes)
        elif wanted is not None and wanted.rounds > 1 and not wanted.fresh:
            self.kept, self.labels = self.take(self.batch_size * batches)

    def __len__(self) -> int:
        return len(self.labels)

    def yield_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loader's batches without end; raises UserError for an empty loader."""
        while True:
            seen = False
            for pair in self.yield_pass():
                seen = True
                yield pair
            if not seen:
                raise UserError("data yields no batch: give a loader that can be iterated again, not an iterator")

    def yield_pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loader's batches once; raises UserError for other than pairs of tensors."""
        for batch in self.loader:
            pair = tuple(batch) if isinstance(batch, tuple | list) else ()
            if len(pair) != 2 or not all(isinstance(part, Tensor) and part.dim() for part in pair):
                parts = f" of {', '.join(type(part).__name__ for part in pair)}" if pair else ""
                raise UserError(
                    "data must yield pairs of tensors (inputs, labels), a batch in each; it yields "
                    f"{type(batch).__name__}{parts}: put a DataLoader around it, or a class that makes such pairs of it"
                )
            yield pair

    def keep_each(self, count: int, classes: int) -> None:
        """Keep the first `count` inputs of each class, from one pass at most; warns of classes that have fewer.

        None at all are refused here, fewer than the scoring has parts by the scoring.
        """
        inputs, labels, missing = [], [], torch.full((classes,), count)
        for batch, found in self.yield_pass():
            if found.is_floating_point() or found.dim() != 1:
                raise UserError(
                    "the method asks for inputs of each class, so data must yield a class number for each, and it "
                    f"yields labels of {found.dtype} and shape {tuple(found.shape)}"
                )
            for place, label in enumerate(found.tolist()):
                if 0 <= label < classes and missing[label] > 0:
                    missing[label] -= 1
                    inputs.append(batch[place])
                    labels.append(label)
            if not missing.any():
                break
        if not inputs:
            raise UserError(f"data yields no label in 0 to {classes - 1}, the classes of the network's last layer")
        if missing.any():
            fewer = [f"{label} ({count - left})" for label, left in enumerate(missing.tolist()) if left]
            more = f" and {len(fewer) - 5} more" if len(fewer) > 5 else ""
            warnings.warn(
                f"the method scores {count} inputs of each class, and data has fewer of class {', '.join(fewer[:5])}"
                f"{more}",
                stacklevel=2,
            )
        self.kept, self.labels = torch.stack(inputs), torch.tensor(labels)

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return so many inputs with their labels: those at `indices` where some are kept, else the next ones."""
        if self.kept is not None:
            return self.kept[indices].to(device), self.labels[indices].to(device)
        inputs, labels = self.take(len(indices))
        return inputs.to(device), labels.to(device)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the next `count` inputs with their labels."""
        parts = [self.ahead.pop() if self.ahead else next(self.passes)]
        while sum(len(labels) for _, labels in parts) < count:
            parts.append(next(self.passes))
        inputs, labels = (torch.cat(found)[:count] for found in zip(*parts, strict=True))
        return inputs, labels
