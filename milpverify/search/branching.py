"""Which neuron to split: loose relaxations, then what a split gains to first order, then bounds of the children.

The bound under a neuron's relaxation is attained at some point of the relaxation; a child's own relaxation at the same point and under
the same multiplier says what the child gains, to first order (an upper bound, for the minimum over a relaxation is concave in
multipliers). The best few are bounded with the parent's multipliers before one is taken (filtered smart branching, arXiv 2104.06718).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds.beta import Dual
from milpverify.bounds.dual import accumulate

if TYPE_CHECKING:
    from milpverify.bounds.beta import Domain
    from milpverify.bounds.dual import Open
    from milpverify.bounds.rules import Ends
    from milpverify.search.neuron_bounds import Bounder
    from milpverify.search.subproblems import Subproblems

LOOSEST = 16
"""Candidates are taken from so many neurons at most: those whose relaxations are loosest under their multipliers."""


def rank(bounder: Bounder, subs: Subproblems, domain: Domain) -> Tensor:
    """The open entries that are the best splits, (n, C), -1 where there are fewer."""
    of, candidates = bounder.relaxations, bounder.candidates
    y_rows, rhs, x_rows = bounder.rows_of(subs.disjunct)
    primal = of.primal(domain, y_rows, Dual(subs.slopes, subs.beta), x_rows)
    margin = (primal.value - rhs).double()
    score = torch.full_like(domain.low, -torch.inf)
    gains = domain.low.new_zeros(2, *margin.shape, of.count)
    width = domain.high - domain.low
    loose = 1e-9 * width
    open_still = torch.zeros_like(domain.low)
    middle = domain.low.clone()
    for slot, here in enumerate(map(of.columns.__getitem__, of.slots)):
        middle[:, here] = bounder.split_point(slot, domain.low[:, here], domain.high[:, here])
    halves = [(domain.low, middle), (middle, domain.high)]
    if of.derived:
        halves = [(left.clone(), right.clone()) for left, right in halves]
        for left, right in halves:
            for y in of.derived:  # a function of what is split is where that puts it
                left[:, y[1]], right[:, y[1]] = domain.low[:, y[1]], domain.high[:, y[1]]
            of.derive(left, right)
    for i, o in of.opened.items():
        if not len(o.index):
            continue
        low, high = (tuple(t[:, c].unsqueeze(1) for c in o.columns) for t in (domain.low, domain.high))
        z = tuple(
            (of.own(of.center[:, c], domain.box).unsqueeze(1) + at.double()).clamp(a, b)
            for c, at, a, b in zip(o.columns, primal.deviation[i], low, high, strict=True)
        )
        arrived = primal.multipliers[i].double()
        positive, negative = arrived.clamp(min=0), arrived.clamp(max=0)

        def value(
            ends: tuple[Ends, Ends], slopes: tuple[Ends, Ends], o: Open = o, z: Ends = z, up: Tensor = positive, down: Tensor = negative
        ) -> Tensor:
            """What the relaxation with some slopes makes of the point that attains the bound."""
            below, above = o.rule.intercepts(*ends, *slopes)
            for k_low, k_high, at in zip(*slopes, z, strict=True):
                below, above = below + k_low * at, above + k_high * at
            return up * below + down * above

        chosen = o.rule.slopes(low, high, o.chosen(subs.slopes))
        now = value((low, high), chosen)
        lost = (positive * o.rule.gap(low, high, chosen[0]) - negative * o.rule.gap(low, high, chosen[1])).sum(1)
        inexact = (~o.rule.is_exact(low, high)).squeeze(1).to(open_still.dtype)
        for place, columns in enumerate(o.columns):
            home = bounder.home[i][place]
            accumulate(open_still, home, inexact)
            accumulate(loose, home, lost)
            for k, (left, right) in enumerate(halves):
                # The child's relaxation at the parent's point.
                ends = tuple(
                    (*of_input[:place], t[:, columns].unsqueeze(1), *of_input[place + 1 :]) for of_input, t in ((low, left), (high, right))
                )
                accumulate(gains[k], home, value((ends[0], ends[1]), o.rule.default_slopes(ends[0], ends[1])) - now)
    after = (margin.unsqueeze(2) + gains.clamp(min=0.0)).amax(2).clamp(max=0.0)
    score = after.amin(0) + 0.1 * after.amax(0)
    still = (open_still > 0) & (of.root == torch.arange(of.count, device=open_still.device))
    score = torch.where(still & torch.isfinite(score), score + 1e-9 * loose, -torch.inf)
    # Gains alone favour early layers, whose many splits each move the bound a little and seldom close anything.
    wanted = torch.where(still, loose, -torch.inf)
    least = wanted.topk(min(max(LOOSEST, candidates), wanted.shape[1]), dim=1).values[:, -1:]
    score = torch.where(wanted >= least, score, -torch.inf)
    values, best = score.topk(min(candidates, score.shape[1]), dim=1)
    best = torch.where(values > -torch.inf, best, -1)
    # Where no candidate moves the bound, the loosest is taken.
    order = torch.where(best >= 0, loose.gather(1, best.clamp(min=0)), -1.0).argsort(dim=1, descending=True, stable=True)
    best = best.gather(1, order)
    return torch.nn.functional.pad(best, (0, candidates - best.shape[1]), value=-1)


def looseness(bounder: Bounder, subs: Subproblems) -> Tensor:
    """What the relaxations of open entries cost the bounds of subproblems, to first order: (n, T) float64."""
    of, domain = bounder.relaxations, bounder.domain_of(subs)
    y_rows, _, x_rows = bounder.rows_of(subs.disjunct)
    primal = of.primal(domain, y_rows, Dual(subs.slopes, subs.beta), x_rows)
    loose = torch.zeros_like(domain.low)
    for i, o in of.opened.items():
        if i in primal.multipliers and len(o.index):
            low, high = (tuple(t[:, c].unsqueeze(1) for c in o.columns) for t in (domain.low, domain.high))
            chosen, arrived = o.rule.slopes(low, high, o.chosen(subs.slopes)), primal.multipliers[i].double()
            lost = arrived.clamp(min=0) * o.rule.gap(low, high, chosen[0]) - arrived.clamp(max=0) * o.rule.gap(low, high, chosen[1])
            for columns in o.columns:
                accumulate(loose, columns, lost.sum(1))
    return loose


def children(bounder: Bounder, parents: Subproblems, column: Tensor) -> Subproblems:
    """Both children of every parent for the split of the open entry given: (2 n), lower sides first."""
    domain = bounder.domain_of(parents)
    slot, index = bounder.slot_of[column], bounder.index_of[column]
    low, high = (t.gather(1, column.unsqueeze(1)).squeeze(1) for t in (domain.low, domain.high))
    point = torch.zeros(len(parents), dtype=torch.float64, device=column.device)
    for k in range(len(bounder.slots)):
        here = slot == k
        if bool(here.any()):
            point[here] = bounder.split_point(k, low[here], high[here])
    rows = torch.arange(len(parents), device=column.device)
    both = parents.take(torch.cat([rows, rows]))
    width = int((parents.side != 0).sum(1).max()) + 1 if parents.side.numel() else 1
    both = both.padded(max(width, both.slot.shape[1]))
    place = (both.side != 0).sum(1)
    every = torch.arange(len(both), device=column.device)
    for target, value in ((both.slot, slot), (both.index, index), (both.point, point)):
        target[every, place] = torch.cat([value, value])
    both.side[every, place] = torch.cat([torch.full_like(slot, -1), torch.full_like(slot, 1)]).to(both.side.dtype)
    both.beta[every, :, place] = 0.0
    return both


def decide(bounder: Bounder, parents: Subproblems) -> Tensor:
    """The best of each parent's candidate splits, judged by their children's bounds with the parent's multipliers: (n,)."""
    n, best = len(parents), parents.best
    if not bool((best[:, 1:] >= 0).any()):
        return best[:, 0]
    rows = torch.arange(n, device=best.device).repeat_interleave(bounder.candidates)
    column = torch.where(best >= 0, best, best[:, :1])
    trial = bounder.estimate(children(bounder, parents.take(rows), column.flatten())).reshape(2, n, bounder.candidates)
    trial = torch.maximum(trial, parents.bound.unsqueeze(1)).clamp(max=0.0)
    # The smaller child decides; the other counts a little.
    value = trial.amin(0) + 0.1 * trial.amax(0)
    return column.gather(1, value.argmax(1, keepdim=True)).squeeze(1)
