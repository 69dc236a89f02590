"""Clipping in the neuron search (Clip-and-Verify, arXiv 2512.11087): pre-activations are bounded anew where a subproblem can be unsafe.

What is left to prove of a subproblem are the points where its rows' linear bounds are <= 0, which is a half-space of the inputs each, the
thinner the nearer the bound is to 0. The root's linear forms of the open entries are minimised over the box and that half-space, which
makes relaxations tighter, or leaves a neuron one piece; what is split off inherits that. The bounds hold at unsafe points only.

The newest split constraint is such a half-space too, by the form of the neuron split. Where inputs are few it cuts off much; where they
are many it leaves 91 to 100 % of the widths, which is soon known, and then it is not tried any more. Older constraints, and what several
say together, are in the rows' linear bounds by their multipliers (beta-CROWN).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import cast_down, cast_up, down
from milpverify.propagation.optimised.halfspaces import Depths, HalfSpace
from milpverify.search.neuron_split.branching import form

if TYPE_CHECKING:
    from milpverify.propagation.optimised.halfspaces import HalfspaceForms
    from milpverify.propagation.state import LinearBound
    from milpverify.search.ledger import Ledger
    from milpverify.search.neuron_split.bounder import Bounder
    from milpverify.search.neuron_split.subproblems import Subproblems

ROUNDS = 3
"""How often a subproblem is clipped by the bounds that clipping gave it."""
LEAST_GAIN = 0.1
"""The share of what a bound lacks that a round must bring for another."""


class Clipper:
    """Clips the subproblems of a search, whose bounder lets them inherit bounds."""

    def __init__(self, bounder: Bounder, forms: HalfspaceForms) -> None:
        self.bounder, self.forms = bounder, forms
        self.rows, self.splits = Depths(), Depths()

    def divided(self, subs: Subproblems) -> Subproblems:
        """Subproblems with bounds of their open entries that hold where their newest split constraint does."""
        if not subs.slot.shape[1] or self.splits.reach == 0:
            return subs
        newest = subs.newest
        side, point = (t[torch.arange(len(subs), device=t.device), newest] for t in (subs.side, subs.point))
        domain = self.bounder.domain_of(subs)
        column = domain.column.gather(1, newest.unsqueeze(1)).squeeze(1)
        form(self.bounder, self.forms, subs)
        half, known = self.forms.split(subs.box, column, side, point)
        half = HalfSpace(half.pull, torch.where(known & (side != 0), half.least, torch.inf))
        low, high = self.forms.raised(subs.box, half, domain.low, domain.high, self.splits)
        return replace(subs, low=cast_down(low, torch.float32), high=cast_up(high, torch.float32))

    def clip(self, subs: Subproblems, found: LinearBound, ledger: Ledger | None = None) -> Subproblems:
        """Subproblems with bounds of their open entries that hold at their unsafe points, and with what these are worth.

        Args:
            found: the linear bounds of the subproblems' rows.
        """
        left = (~self._closed(subs)).nonzero(as_tuple=True)[0]
        coefficients, lower = found.coefficients[left], found.lower[left]
        form(self.bounder, self.forms, subs.take(left))
        for _ in range(ROUNDS):
            if not len(left) or self.bounder.deadline.expired():
                break
            some = subs.take(left)
            clipped, moved = self._clipped(some, coefficients, lower)
            left, clipped = left[moved], clipped.take(moved)
            clipped, _, found = self.bounder.bound(clipped, 0, ledger)
            subs = _put(subs, left, clipped)
            gained = clipped.bound > some.bound[moved] * (1 - LEAST_GAIN)
            again = gained & ~self._closed(clipped)
            left, coefficients, lower = left[again], found.coefficients[again], found.lower[again]
        return subs

    def _clipped(self, subs: Subproblems, coefficients: Tensor, lower: Tensor) -> tuple[Subproblems, Tensor]:
        """Subproblems clipped by every row, and which of them were, (n,) bool."""
        domain = self.bounder.domain_of(subs)
        least = down(lower - self.bounder.rhs[subs.disjunct])
        low, high = domain.low, domain.high
        for row in range(least.shape[1]):
            half = self.forms.below(subs.box, coefficients[:, row], least[:, row])
            low, high = self.forms.raised(subs.box, half, low, high, self.rows)
        moved = ((low > domain.low) | (high < domain.high)).any(1)
        return replace(subs, low=cast_down(low, torch.float32), high=cast_up(high, torch.float32)), moved

    def _closed(self, subs: Subproblems) -> Tensor:
        return self.bounder.group.closes(subs.bound, subs.disjunct)


def _put(subs: Subproblems, place: Tensor, some: Subproblems) -> Subproblems:
    """With those at `place` replaced in what clipping changes."""
    changed = {name: getattr(subs, name).index_put((place,), getattr(some, name)) for name in ("bound", "low", "high")}
    return replace(subs, **changed)
