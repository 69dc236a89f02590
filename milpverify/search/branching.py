"""Which neuron to split: loose relaxations, then what a split gains to first order, then bounds of the children.

The bound under a neuron's relaxation is attained at some point of the relaxation; a child's own relaxation at the same point and under
the same multiplier says what the child gains, to first order (an upper bound, for the minimum over a relaxation is concave in
multipliers). The best few are bounded with the parent's multipliers before one is taken (filtered smart branching, arXiv 2104.06718).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.beta import Dual
from milpverify.operators import Elementwise

if TYPE_CHECKING:
    from milpverify.bounds.beta import Domain
    from milpverify.catalogue import Function
    from milpverify.search.neuron_bounds import Bounder
    from milpverify.search.subproblems import Subproblems

LOOSEST = 16
"""Candidates are taken from so many neurons at most: those whose relaxations are loosest under their multipliers."""


def _function(bounder: Bounder, node: int) -> Function:
    op = bounder.graph.nodes[node].op
    assert isinstance(op, Elementwise)
    return op.function


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
    still = torch.zeros_like(domain.low, dtype=torch.bool)
    for i, o in of.opened.items():
        if not len(o.index):
            continue
        low, high = domain.low[:, o.columns].unsqueeze(1), domain.high[:, o.columns].unsqueeze(1)
        z = (of.own(of.center[:, o.columns], domain.box).unsqueeze(1) + primal.deviation[i].double()).clamp(low, high)
        arrived = primal.multipliers[i].double()
        still[:, o.columns] |= ~relaxation.is_exact(o.function, low, high).squeeze(1)
        slopes = []
        defaults = relaxation.default_slopes(o.function, low, high)
        for part, default in zip((o.lower, o.upper), defaults, strict=True):
            slopes.append(default if part is None else subs.slopes[:, :, part].double())
        below, above = relaxation.intercepts(o.function, low, high, slopes[0], slopes[1])
        now = arrived.clamp(min=0) * (slopes[0] * z + below) + arrived.clamp(max=0) * (slopes[1] * z + above)
        loose[:, o.columns] += (arrived.clamp(min=0) * relaxation.gap(o.function, low, high, slopes[0])).sum(1)
        loose[:, o.columns] -= (arrived.clamp(max=0) * relaxation.gap(o.function, low, high, slopes[1])).sum(1)
        point = relaxation.split_point(o.function, low, high)
        for k, (left, right) in enumerate(((low, point), (point, high))):
            # The child's relaxation at the parent's point.
            s_low, s_high = relaxation.default_slopes(o.function, left, right)
            b_low, b_high = relaxation.intercepts(o.function, left, right, s_low, s_high)
            then = arrived.clamp(min=0) * (s_low * z + b_low) + arrived.clamp(max=0) * (s_high * z + b_high)
            gains[k][:, :, o.columns] += then - now
    after = (margin.unsqueeze(2) + gains.clamp(min=0.0)).amax(2).clamp(max=0.0)
    score = after.amin(0) + 0.1 * after.amax(0)
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


def children(bounder: Bounder, parents: Subproblems, column: Tensor) -> Subproblems:
    """Both children of every parent for the split of the open entry given: (2 n), lower sides first."""
    domain = bounder.domain_of(parents)
    slot, index = bounder.slot_of[column], bounder.index_of[column]
    low, high = (t.gather(1, column.unsqueeze(1)).squeeze(1) for t in (domain.low, domain.high))
    point = torch.zeros(len(parents), dtype=torch.float64, device=column.device)
    for k, consumers in enumerate(bounder.consumers):
        here = slot == k
        if bool(here.any()):
            point[here] = relaxation.split_point(_function(bounder, consumers[0]), low[here], high[here])
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
