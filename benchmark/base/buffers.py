"""A network's buffers, such as batch statistics, kept before a pass changes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alike:
    """Buffers of one dtype, seen as vectors, and what was kept of them, end to end."""

    buffers: list[Tensor]
    kept: Tensor

    def load_kept(self) -> None:
        """Give the buffers what was kept."""
        pieces = self.kept.split([len(buffer) for buffer in self.buffers])
        torch._foreach_copy_(self.buffers, pieces)


class KeptBuffers:
    """What a network's buffers held before a pass, kept and put back without waiting for the device.

    Buffers are changed in place. All of a dtype go together: a launch for each of a hundred small buffers would cost an
    accelerator more than the copies do.
    """

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        alike: dict[object, list[Tensor]] = {}
        for number, buffer in enumerate(buffers):  # another memory format has no vector that shares its memory
            flat = buffer.is_contiguous()
            alike.setdefault(buffer.dtype if flat else number, []).append(buffer.view(-1) if flat else buffer)
        self.groups = [Alike(group, torch.cat(group)) for group in alike.values()]

    @torch.no_grad()
    def keep(self) -> None:
        """Keep what the buffers hold now."""
        for group in self.groups:
            torch.cat(group.buffers, out=group.kept)

    @torch.no_grad()
    def put_back(self, unless: Tensor | None = None) -> None:
        """Put back what was kept; `unless`: a bool on the device, where it is true the buffers stay as they are."""
        for group in self.groups:
            if unless is not None:
                torch.where(unless, torch.cat(group.buffers), group.kept, out=group.kept)
            group.load_kept()
