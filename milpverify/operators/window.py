"""Windows: stretches of a node's entries outside of which rows of multipliers are zero.

An entry of a convolution depends on a patch of its input, and so on a larger patch of the input before that. Rows for entries that are
near each other carry the patch of all of them only. Its place may differ from group to group of rows; its size does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = tuple[int, ...]


def filled(vectors: Tensor) -> Tensor:
    """Vectors (k, batch, ...) flat, with a zero behind: (k, batch, entries + 1)."""
    return F.pad(vectors.flatten(2), (0, 1))


@dataclass(frozen=True, eq=False)
class Window:
    """Entries start[g, k] to start[g, k] + size[k] along axis axes[k] of a node's entries, seen in `shape`, for every group g of rows.

    `start` is (groups, axes) int64, `axes` ascend. A window may reach beyond the node: what rows hold there means nothing, and is 0 only
    where they are `clean`.
    """

    shape: Shape
    axes: Shape
    start: Tensor
    size: Shape
    clean: bool = True

    @cached_property
    def within(self) -> Shape:
        """The shape of what lies in the window."""
        sizes = dict(zip(self.axes, self.size, strict=True))
        return tuple(sizes.get(axis, n) for axis, n in enumerate(self.shape))

    @property
    def share(self) -> float:
        """How large it is in comparison with the node."""
        return math.prod(self.within) / math.prod(self.shape)

    def take(self, group: Tensor) -> Window:
        """The windows of some groups, `group` (n,)."""
        return replace(self, start=self.start[group])

    @cached_property
    def index(self) -> Tensor:
        """The flat entries in the window, (groups, entries) int64; those beyond the node are the one behind its last."""
        stride = total = math.prod(self.shape)
        place = self.start.new_zeros(len(self.start), *[1] * len(self.shape))
        for axis, count in enumerate(self.shape):
            stride //= count
            along = torch.arange(self.within[axis], device=place.device).unsqueeze(0)
            if axis in self.axes:
                along = along + self.start[:, self.axes.index(axis)].unsqueeze(1)
            step = torch.where((along < 0) | (along >= count), -2 * total, along * stride)
            place = place + step.reshape(len(step), *(-1 if a == axis else 1 for a in range(len(self.shape))))
        return torch.where(place < 0, total, place).flatten(1)

    def cut(self, filled: Tensor, owner: Tensor) -> Tensor:
        """Vectors of the node as the groups see them, zeros beyond the node: flat and with a zero behind, -> (k, groups, *within)."""
        return filled[:, owner.unsqueeze(1), self.index].reshape(len(filled), len(owner), *self.within)

    def whole(self, rows: Tensor) -> Tensor:
        """Rows (groups, r, *within) with zeros outside of the window: (groups, r, *shape)."""
        head, total = rows.shape[:2], math.prod(self.shape)
        place = self.index.unsqueeze(1).expand(*head, -1)
        return rows.new_zeros(*head, total + 1).scatter_(2, place, rows.flatten(2))[:, :, :total].reshape(*head, *self.shape)

    def cleaned(self, rows: Tensor) -> Tensor:
        """Rows (groups, r, *within) with zeros beyond the node."""
        if self.clean:
            return rows
        inside = (self.index < math.prod(self.shape)).to(rows.dtype)
        return rows * inside.reshape(len(inside), 1, *self.within)

    def joined(self, other: Window) -> Window | None:
        """The least window around both; None where they do not lie alike for all groups."""
        if (self.shape, self.axes) != (other.shape, other.axes):
            return None
        apart = other.start - self.start
        if bool((apart != apart[:1]).any()):
            return None
        first = torch.minimum(self.start, other.start)
        ends = torch.maximum(self.start + self.start.new_tensor(self.size), other.start + self.start.new_tensor(other.size))
        return replace(self, start=first, size=tuple((ends - first)[0].tolist()), clean=self.clean and other.clean)

    def grown(self, rows: Tensor, around: Window) -> Tensor:
        """Rows (groups, r, *within) in a window around this one, of all groups alike."""
        before = (self.start - around.start)[0].tolist()
        pads = [(0, 0)] * len(self.shape)
        for axis, n, size, outer in zip(self.axes, before, self.size, around.size, strict=True):
            pads[axis] = n, outer - size - n
        return F.pad(rows, [p for pair in reversed(pads) for p in pair])
