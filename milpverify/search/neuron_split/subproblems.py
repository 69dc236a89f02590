"""Subproblems of the search over neurons, compactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from milpverify.search.frontier import Batch

_PER_SPLIT = ("slot", "index", "side", "point", "beta")
Literal = tuple[int, int, float, float]
"""A split decision as (slot, index, side, point)."""


@dataclass(eq=False)
class Subproblems(Batch):
    """Subproblems as arrays over n. K is the largest number of splits, C of candidates, U of neurons with slopes of their own.

    `box` (n,) the place in the root's batch of boxes; `disjunct` (n,) the place in the group; `bound` (n,) float64, proved;
    `slot`, `index`, `side`, `point`, `beta` (n, K) (`beta` (n, r, K)) the split decisions, side 0 where there is none; `best`
    (n, C) the flat numbers of the splits to consider, -1 where there is none left; `slopes` (n, r, P) of the lines; `low`, `high` (n, T)
    float32 bounds of the open entries besides the root's and the decisions, inherited by what is split off, or (n, 0) for none;
    `narrower` (n, T) bool which entries have become much narrower since the lines were optimised, or (n, 0) where that does not matter.
    """

    box: Tensor
    disjunct: Tensor
    bound: Tensor
    slot: Tensor
    index: Tensor
    side: Tensor
    point: Tensor
    beta: Tensor
    best: Tensor
    slopes: Tensor
    low: Tensor
    high: Tensor
    narrower: Tensor

    @property
    def proved(self) -> Tensor:
        """The bound of each."""
        return self.bound

    def aligned(self, *others: Subproblems, room: int = 0) -> list[Subproblems]:
        """All with room for as many splits as the longest list has; the first with `room` more where it must grow."""
        widths = [s.slot.shape[1] for s in (self, *others)]
        width = widths[0] if widths[0] == max(widths) else max(widths) + room
        return [s.padded(width) for s in (self, *others)]

    def trimmed(self) -> Subproblems:
        """With room for the splits that there are."""
        return self.padded(int(self.depth.max()) if len(self) else 0)

    def padded(self, width: int) -> Subproblems:
        """With room for `width` splits, and no more."""
        more = width - self.slot.shape[1]
        return replace(self, **{name: pad(getattr(self, name), (0, more)) for name in _PER_SPLIT}) if more else self

    @property
    def newest(self) -> Tensor:
        """The place of the last split decision of each, (n,); 0 where there is none. Only where K > 0."""
        return ((self.side != 0) * torch.arange(1, self.side.shape[1] + 1, device=self.side.device)).argmax(1)

    @property
    def depth(self) -> Tensor:
        """The number of splits of each, (n,)."""
        return (self.side != 0).sum(1)

    def under(self, disjunct: int, literals: tuple[Literal, ...]) -> Tensor:
        """Which belong to a disjunct and hold all the decisions given, (n,) bool."""
        inside = self.disjunct == disjunct
        for slot, index, side, point in literals:
            inside = inside & ((self.slot == slot) & (self.index == index) & (self.side == side) & (self.point == point)).any(1)
        return inside

    def literals(self, n: int) -> tuple[Literal, ...]:
        """The split decisions of one."""
        columns = [getattr(self, name)[n].tolist() for name in ("slot", "index", "side", "point")]
        return tuple(literal for literal in zip(*columns, strict=True) if literal[2])
