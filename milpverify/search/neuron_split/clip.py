"""Clipping in the neuron search (Clip-and-Verify, arXiv 2512.11087): pre-activations are bounded anew where a subproblem can be unsafe.

What is left to prove of a subproblem are the points where its rows' linear bounds are <= 0, which is a half-space of the inputs each, the
thinner the nearer the bound is to 0. The root's linear forms of the open entries are minimised over the box and that half-space, which
makes relaxations tighter, or leaves a neuron one piece; what is split off inherits that. The bounds hold at unsafe points only.

The newest split constraint is such a half-space too, by the form of the neuron split. Where inputs are few it cuts off much; where they
are many it leaves 91 to 100 % of the widths, which is soon known, and then it is not tried any more. Older constraints, and what several
say together, are in the rows' linear bounds by their multipliers (beta-CROWN).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import cast_down, cast_up, down
from milpverify.propagation.optimised.halfspaces import Depths, HalfSpace
from milpverify.search.neuron_split.branching import ensure_forms
from milpverify.search.neuron_split.conditional import ConditionalTuning

if TYPE_CHECKING:
    from milpverify.propagation.optimised.halfspaces import HalfspaceForms
    from milpverify.propagation.state import LinearBound
    from milpverify.search.neuron_split.bounder import Bounder
    from milpverify.search.neuron_split.subproblems import Subproblems


class Clipper:
    """Clips the subproblems of a search, whose bounder lets them inherit bounds."""

    def __init__(self, bounder: Bounder, forms: HalfspaceForms, tuning: ConditionalTuning = ConditionalTuning()) -> None:
        self.bounder, self.forms, self.tuning = bounder, forms, tuning
        self.rows, self.splits = Depths(), Depths()

    def divided(self, subs: Subproblems) -> Subproblems:
        """Subproblems with bounds of their open entries that hold where their newest split constraint does."""
        if not subs.slot.shape[1] or self.splits.reach == 0:
            return subs
        newest = subs.newest
        side, point = (t[torch.arange(len(subs), device=t.device), newest] for t in (subs.side, subs.point))
        domain = self.bounder.domain_of(subs)
        column = domain.column.gather(1, newest.unsqueeze(1)).squeeze(1)
        ensure_forms(self.bounder, self.forms, subs)
        half, known = self.forms.split(subs.box, column, side, point)
        half = HalfSpace(half.pull, torch.where(known & (side != 0), half.least, torch.inf))
        low, high = self.forms.raised(subs.box, half, domain.low, domain.high, self.splits)
        return replace(subs, low=cast_down(low, torch.float32), high=cast_up(high, torch.float32))

    def begin(self, subs: Subproblems, found: LinearBound) -> Clipping:
        """Begin to clip bounded subproblems by the linear bounds of their rows."""
        left = (~self.closed(subs)).nonzero(as_tuple=True)[0]
        ensure_forms(self.bounder, self.forms, subs.take(left))
        return Clipping(self, subs, left, found.coefficients[left], found.over_box[left])

    def clipped(self, subs: Subproblems, coefficients: Tensor, lower: Tensor) -> tuple[Subproblems, Tensor]:
        """Subproblems clipped by every row, and which of them were, (n,) bool.

        Args:
            coefficients: (n, r, nx), of linear functions below the rows.
            lower: (n, r) float64, proved minima of these over the boxes of the root.
        """
        domain = self.bounder.domain_of(subs)
        least = down(lower - self.bounder.rhs[subs.disjunct])
        low, high = domain.low, domain.high
        for row in range(least.shape[1]):
            half = self.forms.below(subs.box, coefficients[:, row], least[:, row])
            low, high = self.forms.raised(subs.box, half, low, high, self.rows)
        moved = ((low > domain.low) | (high < domain.high)).any(1)
        return replace(subs, low=cast_down(low, torch.float32), high=cast_up(high, torch.float32)), moved

    def closed(self, subs: Subproblems) -> Tensor:
        """Which are closed by their bounds, (n,) bool."""
        return self.bounder.group.closes(subs.bound, subs.disjunct)


@dataclass(eq=False)
class Clipping:
    """Subproblems on their way to bounds of their open entries that hold at their unsafe points: `next` is bounded anew, and then kept.

    `left` (n,) are the places of those that may gain yet, `coefficients` and `lower` the linear bounds of their rows over boxes.
    """

    clipper: Clipper
    subs: Subproblems
    left: Tensor
    coefficients: Tensor
    lower: Tensor
    rounds: int = 0

    def next(self) -> Subproblems | None:
        """Subproblems with tighter bounds of open entries, which are to be bounded anew; None where that is over."""
        if self.rounds == self.clipper.tuning.clips or not len(self.left) or self.clipper.bounder.deadline.expired():
            return None
        self.rounds += 1
        clipped, moved = self.clipper.clipped(self.subs.take(self.left), self.coefficients, self.lower)
        self.left = self.left[moved]
        return clipped.take(moved) if len(self.left) else None

    def keep(self, clipped: Subproblems, found: LinearBound) -> None:
        """Keep what has been bounded anew, and go on with what gained markedly."""
        before = self.subs.bound[self.left]
        changed = {n: getattr(self.subs, n).index_put((self.left,), getattr(clipped, n)) for n in ("bound", "low", "high")}
        self.subs = replace(self.subs, **changed)
        again = (clipped.bound > before * (1 - self.clipper.tuning.gain)) & ~self.clipper.closed(clipped)
        self.left, self.coefficients, self.lower = self.left[again], found.coefficients[again], found.over_box[again]
