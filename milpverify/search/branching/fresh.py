"""Fresh lines where intervals became narrower, by a split or by clipping.

A slope that was optimised for an interval is far from good on a part of it, and further than a few iterations lead: of a split neuron
whose lines begin at their defaults both children gain half as much again after 8 iterations as with their parent's lines, more than
these give after 40 (tanh, sigmoid, sin). It is also what scores and branching points presume, which are worth little otherwise: trees
had a third of the subproblems with midpoints, and half of those again with optimised points on gelu, where before midpoints were better.

Parameters that mean the same on every interval stay: the slope of ReLU on the side of its kink, the place between a product's planes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.bounds.beta import Domain
    from milpverify.search.neuron_bounds import Bounder
    from milpverify.search.subproblems import Subproblems

NARROWER = 0.95
"""An interval that keeps less than this share of its width is relaxed anew."""


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


def narrowed(bounder: Bounder, subs: Subproblems, before: Domain, now: Domain) -> Subproblems:
    """Open subproblems relaxed anew where their intervals have become much narrower.

    Args:
        before: when their lines were optimised.
        now: what is known now.
    """
    width = now.high - now.low
    changed = (width < NARROWER * (before.high - before.low)) & (width > 0) & (subs.bound <= 0).unsqueeze(1)
    return relaxed_anew(bounder, subs, now, changed)
