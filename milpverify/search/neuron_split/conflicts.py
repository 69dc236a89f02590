"""Conflicts, or no-goods: split decisions that cannot hold together in a disjunct, learned from closed leaves (BICCOS, arXiv 2501.00200).

A leaf's decisions are shrunk by dropping those whose loss, to first order, the leaf's margin can pay for. What is left is bounded anew
from the root's bounds under the remaining decisions alone, with the leaf's multipliers, and is a no-good only if that bound closes it.
A subproblem that holds all decisions of a no-good is closed; one that holds all but one must decide the last the other way.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.optimised.dual import Dual, accumulate
from milpverify.search.neuron_split.conditional import ConditionalTuning

if TYPE_CHECKING:
    from milpverify.search.neuron_split.bounder import Bounder
    from milpverify.search.neuron_split.subproblems import Subproblems


class Conflicts:
    """The no-goods of a search, scoped to the root box and disjunct that they were learned in.

    Only neurons with one breakpoint take part, so that a decision is a neuron and a side. `bound` is the least bound that made one.
    """

    def __init__(self, bounder: Bounder, tuning: ConditionalTuning = ConditionalTuning()) -> None:
        self.bounder, self.tuning = bounder, tuning
        graph, device = bounder.graph, bounder.graph.device
        self.single = torch.zeros(bounder.relaxations.count, dtype=torch.bool, device=device)
        for z in bounder.slots:
            pieces = [graph.nonlinearities[reading.reader].pieces for reading in graph.readers[z]]
            self.single[bounder.relaxations.columns[z]] = len(pieces) == 1 and pieces[0] is not None and len(pieces[0].breakpoints) == 1
        for _, _, source in bounder.relaxations.derived:  # split for the sake of other readers, too
            self.single[source] = False
        self.signs = torch.zeros(0, bounder.relaxations.count, device=device)  # (m, T): the side decided, 0 where nothing is
        self.scope = torch.zeros(0, 2, dtype=torch.long, device=device)  # (m, 2): box and disjunct
        self.bounds = torch.zeros(0, dtype=torch.float64, device=device)
        self.learned = self.pruned = self.forced = 0

    def __len__(self) -> int:
        return len(self.signs)

    def _signs(self, subs: Subproblems) -> Tensor:
        """The decisions of subproblems, (n, T); none of those whose neurons do not take part."""
        signs = torch.zeros(len(subs), self.bounder.relaxations.count, device=subs.bound.device)
        if subs.side.shape[1]:
            signs.scatter_add_(1, self.bounder.domain_of(subs).column, subs.side.to(signs.dtype))
        return signs * self.single

    def _held(self, subs: Subproblems) -> tuple[Tensor, Tensor, Tensor]:
        """How many decisions of every no-good are held, and how many are open, (n, m); and the decisions."""
        signs = self._signs(subs)
        agree, touched = signs @ self.signs.T, signs.abs() @ self.signs.abs().T
        same = (torch.stack([subs.box, subs.disjunct], 1).unsqueeze(1) == self.scope).all(2)
        length = self.signs.abs().sum(1)
        held = torch.where(same, 0.5 * (agree + touched), -1.0)
        return held, length - touched, signs

    def refute(self, subs: Subproblems) -> Tensor:
        """Lower bounds of the margins of subproblems that hold a no-good, -inf for the rest: (n,) float64."""
        if not len(self) or not len(subs):
            return torch.full_like(subs.bound, -torch.inf)
        held, _, _ = self._held(subs)
        whole = held >= self.signs.abs().sum(1)
        self.pruned += int(whole.any(1).sum())
        return torch.where(whole, self.bounds, -torch.inf).amax(1)

    def implied(self, subs: Subproblems) -> tuple[Tensor, Tensor, float]:
        """A decision that some no-good forces: the open entry (-1 where there is none) and the side to take, (n,) each.

        The third is the least margin of what the decisions cut off, inf if nothing is.
        """
        column = torch.full_like(subs.disjunct, -1)
        side = torch.zeros(len(subs), device=subs.bound.device)
        if not len(self) or not len(subs):
            return column, side, torch.inf
        held, free, signs = self._held(subs)
        unit = (held == self.signs.abs().sum(1) - 1) & (free == 1)
        some, which = unit.any(1), unit.float().argmax(1)
        missing = self.signs[which] * (signs == 0)
        at = missing.abs().argmax(1)
        column = torch.where(some, at, column)
        side = torch.where(some, -missing.gather(1, at.unsqueeze(1)).squeeze(1), side)
        self.forced += int(some.sum())
        return column, side, float(self.bounds[which[some]].amin()) if bool(some.any()) else torch.inf

    def shrunk(self, leaves: Subproblems) -> Subproblems:
        """Closed leaves without the decisions that they can do without; those are conflicts which bounding them anew still closes."""
        if not len(leaves) or leaves.side.shape[1] < 2 or not bool(self.single.any()):
            return leaves.none
        # Other decisions than those at a single breakpoint would all have to be dropped.
        taken = leaves.side != 0
        usable = (taken & self.single[self.bounder.lookup[leaves.slot, leaves.index]]).any(1)
        leaves = leaves.take(usable & (taken.sum(1) >= 2) & torch.isfinite(leaves.bound))
        if self.bounder.inherits and len(leaves):  # what they inherited has decisions in it that may be dropped
            leaves = replace(leaves, low=torch.full_like(leaves.low, -torch.inf), high=torch.full_like(leaves.high, torch.inf))
            leaves = replace(leaves, bound=torch.minimum(leaves.bound, self.bounder.estimate(leaves)))
            leaves = leaves.take(leaves.bound > 0)
        if not len(leaves):
            return leaves
        column = self.bounder.domain_of(leaves).column
        cost = torch.where(leaves.side != 0, self._influence(leaves).gather(1, column), torch.inf)
        ascending, order = cost.sort(1)
        dropped = (ascending.cumsum(1) <= self.tuning.spent * leaves.bound.unsqueeze(1)) & torch.isfinite(ascending)
        keep = ~torch.zeros_like(dropped).scatter(1, order, dropped) & (leaves.side != 0)
        shrunk = replace(leaves, side=torch.where(keep, leaves.side, 0.0), bound=torch.full_like(leaves.bound, -torch.inf))
        fits = dropped.any(1) & (keep.sum(1) >= 1) & (keep.sum(1) <= self.tuning.length) & (self.single[column] | ~keep).all(1)
        return shrunk.take(fits)

    def keep(self, proved: Subproblems) -> None:
        """Learn the conflicts among shrunk leaves that were bounded anew: those that are closed still."""
        proved = proved.take(self.bounder.group.closes(proved.bound, proved.disjunct))
        proved = proved.take(~self.subsumed(proved))
        signs, scope = torch.cat([self.signs, self._signs(proved)]), torch.cat([self.scope, torch.stack([proved.box, proved.disjunct], 1)])
        bounds, learned = torch.cat([self.bounds, proved.bound]), self.learned + len(proved)
        kept = slice(-self.tuning.conflicts, None)
        self.signs, self.scope, self.bounds = signs[kept], scope[kept], bounds[kept]  # all, or none where memory ends
        self.learned = learned

    def subsumed(self, subs: Subproblems) -> Tensor:
        """Which hold all decisions of a no-good that is known, (n,) bool."""
        if not len(self) or not len(subs):
            return torch.zeros(len(subs), dtype=torch.bool, device=subs.bound.device)
        held, _, _ = self._held(subs)
        return (held >= self.signs.abs().sum(1)).any(1)

    def _influence(self, leaves: Subproblems) -> Tensor:
        """What losing a decision costs the bound, to first order and at least: (n, T) float64."""
        of, domain = self.bounder.relaxations, self.bounder.domain_of(leaves)
        y_rows, rhs, x_rows = self.bounder.rows_of(leaves.disjunct)
        primal = of.primal(domain, y_rows, Dual(leaves.slopes, leaves.beta), x_rows)
        best = (primal.value - rhs).argmax(1)
        cost = torch.zeros_like(domain.low)
        every = torch.arange(len(leaves), device=leaves.bound.device)
        low, high = of.own(of.low, leaves.box), of.own(of.high, leaves.box)
        for i, o in of.opened.items():
            if i not in primal.multipliers:
                continue
            arrived = primal.multipliers[i][every, best].double()
            left, right = (tuple(t[:, c] for c in o.columns) for t in (low, high))
            gaps = [o.rule.gap(left, right, slopes) for slopes in o.rule.default_slopes(left, right)]
            # How far the root's lines are from the function at the breakpoint, which is where they are furthest.
            for home in self.bounder.home[i]:
                accumulate(cost, home, arrived.clamp(min=0) * gaps[0] - arrived.clamp(max=0) * gaps[1])
        if leaves.beta.shape[2]:
            paid = leaves.beta[every, best].double()
            reach = torch.where(leaves.side > 0, -low.gather(1, domain.column), high.gather(1, domain.column)).clamp(min=0.0)
            cost.scatter_add_(1, domain.column, torch.where(leaves.side != 0, paid * reach, 0.0))
        return cost
