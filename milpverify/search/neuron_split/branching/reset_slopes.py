"""Fresh lines where intervals became narrower, by a split or by clipping.

A slope that was optimised for an interval is far from good on a part of it, and further than a few iterations lead: with the parent's lines
the points of least area were the worst of all to split at, and scores, which presume them, said little. With fresh lines both children
gain half as much again (`tests/benchmarks/PERFORMANCE.md`).

Where lines of several functions were fitted to each other they may be worth more than the narrower interval: exp(z) + exp(-z) >= 2 takes
the tangents of both at 0. So a subproblem that its fresh lines leave below its parent is bounded with the parent's.

Parameters that mean the same on every interval stay: the slope of ReLU on the side of its kink, the place between a product's planes.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.propagation.optimised.beta import Domain
    from milpverify.propagation.state import LinearBound
    from milpverify.search.neuron_split.bounder import Bounder
    from milpverify.search.neuron_split.branching.heuristic import BranchingTuning
    from milpverify.search.neuron_split.subproblems import Subproblems


def relaxed_anew(bounder: Bounder, subs: Subproblems, domain: Domain, changed: Tensor) -> Subproblems:
    """Subproblems with default lines of the smooth functions of some open entries.

    Args:
        domain: of the subproblems.
        changed: (n, T) bool.
    """
    slopes = subs.slopes.clone()
    for o in bounder.relaxations.opened.values():
        if not len(o.index) or math.isfinite(o.rule.span[1]):
            continue
        here = o.columns[0]
        sub, entry = changed[:, here].nonzero(as_tuple=True)
        if not len(sub):
            continue
        low, high = ((side[:, here][sub, entry],) for side in (domain.low, domain.high))
        default = o.rule.default_slopes(low, high)
        for which, part in enumerate((o.lower, o.upper)):
            if part is not None:
                made = o.rule.parameters(low, high, which, default[which]).to(slopes.dtype)
                slopes[sub, :, part.start + entry] = made.unsqueeze(1)
    return replace(subs, slopes=slopes)


def reset_slopes(bounder: Bounder, subs: Subproblems) -> Subproblems:
    """Subproblems with fresh lines where the newest split, or clipping since, has made intervals narrower."""
    if not bounder.resets or not subs.slot.shape[1]:
        return subs
    domain, newest = bounder.domain_of(subs), subs.newest.unsqueeze(1)
    split = (bounder.relaxations.split_for == domain.column.gather(1, newest)) & (subs.side.gather(1, newest) != 0)
    return relaxed_anew(bounder, subs, domain, split | subs.narrower)


def where_worse(bounder: Bounder, subs: Subproblems, found: LinearBound) -> Tensor:
    """The places (m,) of those of n subproblems that fresh lines leave below what is known of them.

    Args:
        subs: before they were bounded.
        found: the linear bounds of their rows, by fresh lines.
    """
    if not bounder.resets:
        return torch.zeros(0, dtype=torch.long, device=subs.bound.device)
    return ((found.lower - bounder.rhs[subs.disjunct]).amax(1) < subs.bound).nonzero(as_tuple=True)[0]


def with_those_of(
    place: Tensor, subs: Subproblems, found: LinearBound, others: Subproblems, others_found: LinearBound
) -> tuple[Subproblems, LinearBound]:
    """Bounded subproblems and their linear bounds, at the places (m,) with the bounds, slopes and multipliers of m others."""
    some = {name: getattr(subs, name).index_put((place,), getattr(others, name)) for name in ("bound", "slopes", "beta")}
    parts = {f.name: getattr(found, f.name).index_put((place,), getattr(others_found, f.name)) for f in fields(found)}
    return replace(subs, **some), replace(found, **parts)


def narrowed(bounder: Bounder, subs: Subproblems, before: Domain, now: Domain, tuning: BranchingTuning) -> Subproblems:
    """Subproblems that remember which intervals have become much narrower, where they are open.

    Args:
        before: when their lines were optimised.
        now: what is known now.
    """
    if not bounder.resets:
        return subs
    width = now.high - now.low
    changed = (width < tuning.narrower * (before.high - before.low)) & (width > 0) & (subs.bound <= 0).unsqueeze(1)
    return replace(subs, narrower=changed)
