"""A user's own loader, as the images that methods score on and take moments of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmark.base.errors import UserError
from methods.core import Scoring


class LoaderImages:
    """Batches of a loader that yields (inputs, labels), as part of a data set: see `benchmark.data.images.Images`.

    Batches are those that the loader yields next, from its start again at its end. Where a method asks for so many of
    every class, the first ones that the loader yields are kept; `classes`: how many there are. Invariant: nothing is
    read until it is asked for, and whether inputs are augmented is the loader's affair.
    """

    def __init__(self, loader: Iterable[Any], wanted: Scoring | None, classes: int) -> None:
        self.loader = loader
        self.passes = self.yield_batches()
        first = next(self.passes)
        self.batch_size = len(first[1])
        self.ahead = [first]
        self.kept: Tensor | None = None
        self.labels = torch.zeros(self.batch_size * (wanted.batches if wanted else 1), dtype=torch.int64)
        if wanted is not None and wanted.samples_per_class:
            self.keep_each(wanted.samples_per_class, classes)

    def __len__(self) -> int:
        return len(self.labels)

    def yield_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loader's batches without end; raises UserError for an empty loader, or other than such pairs."""
        while True:
            seen = False
            for batch in self.loader:
                pair = tuple(batch) if isinstance(batch, tuple | list) else ()
                if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
                    raise UserError(
                        f"data must yield pairs of tensors (inputs, labels), it yields {type(batch).__name__}: wrap it "
                        "in a generator that does"
                    )
                seen = True
                yield pair
            if not seen:
                raise UserError("data yields no batch: give a loader that can be iterated again, not an iterator")

    def keep_each(self, count: int, classes: int) -> None:
        """Keep the first `count` inputs of each class, from one pass at most; too few are refused by the scoring."""
        inputs, labels, missing = [], [], torch.full((classes,), count)
        for batch, found in self.loader:
            for place, label in enumerate(found.tolist()):
                if 0 <= label < classes and missing[label] > 0:
                    missing[label] -= 1
                    inputs.append(batch[place])
                    labels.append(label)
            if not missing.any():
                break
        self.kept, self.labels = torch.stack(inputs), torch.tensor(labels)

    def sample(self, indices: Tensor, seed: int, device: torch.device, augmented: bool = True) -> tuple[Tensor, Tensor]:
        """Return so many inputs with their labels: those at `indices` where some are kept, else the next ones."""
        if self.kept is not None:
            return self.kept[indices].to(device), self.labels[indices].to(device)
        parts = [self.ahead.pop() if self.ahead else next(self.passes)]
        while sum(len(labels) for _, labels in parts) < len(indices):
            parts.append(next(self.passes))
        inputs, labels = (torch.cat(found)[: len(indices)] for found in zip(*parts, strict=True))
        return inputs.to(device), labels.to(device)
