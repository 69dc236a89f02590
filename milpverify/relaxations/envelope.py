"""Lines that together come close to the envelopes of an operator over boxes: what models for solvers are made of, all proved.

A line of a side has the slopes of some parameter; its intercept is the best one for them (`Rule.intercepts`), so that every line holds.
Of a side's lines those are kept that are the tightest somewhere on the box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.relaxations.rule import RelaxationTuning

if TYPE_CHECKING:
    from milpverify.relaxations.rule import PerInput, Rule


@dataclass(frozen=True, eq=False)
class SideLines:
    """The lines of one side of R boxes: slopes per input and intercepts (J, R); `used` (J, R) says which are worth having."""

    slopes: PerInput
    intercept: Tensor
    used: Tensor


def envelope(rule: Rule, lower: PerInput, upper: PerInput, tuning: RelaxationTuning = RelaxationTuning()) -> tuple[SideLines, SideLines]:
    """Lower and upper lines over boxes, tight at several places.

    Args:
        lower, upper: (R,) float64 per input, lower <= upper.
    """
    below, above = rule.envelope_slopes(lower, upper)
    samples = {1: tuning.samples, 2: tuning.pair_samples}.get(len(lower), 2)
    low = tuple(t.expand_as(below[0]) for t in lower)
    high = tuple(t.expand_as(below[0]) for t in upper)
    return tuple(  # type: ignore[return-value]
        _side(which, slopes, rule.intercepts(low, high, below, above)[which], (lower, upper), samples)
        for which, slopes in enumerate((below, above))
    )


def single(rule: Rule, lower: PerInput, upper: PerInput) -> tuple[SideLines, SideLines]:
    """One lower and one upper line over each box; of a product of two variables the two planes that make its hull."""
    below, above = rule.hull_slopes(lower, upper)
    low, high = (tuple(t.expand_as(below[0]) for t in ends) for ends in (lower, upper))
    found = rule.intercepts(low, high, below, above)
    everywhere = torch.ones_like(below[0], dtype=torch.bool)
    return SideLines(below, found[0], everywhere), SideLines(above, found[1], everywhere)


def _side(which: int, slopes: PerInput, intercept: Tensor, box: tuple[PerInput, PerInput], samples: int) -> SideLines:
    """Which lines of a side are the tightest at some point of a grid, of so many points per input; those without intercepts say nothing."""
    lower, upper = box
    unit = torch.linspace(0.0, 1.0, samples, dtype=torch.float64)
    places = torch.cartesian_prod(*[unit] * len(lower)).reshape(-1, len(lower))
    sign = 1.0 if which == 0 else -1.0
    height = torch.where(intercept.isfinite(), sign * intercept, -torch.inf)
    for k, low, high, t in zip(slopes, lower, upper, places.T, strict=True):
        height = height + sign * k * (low + t.unsqueeze(1) * (high - low)).unsqueeze(1)  # (S, J, R)
    used = torch.zeros_like(intercept, dtype=torch.bool)
    used.scatter_(0, height.argmax(1), True)
    return SideLines(slopes, intercept, used & intercept.isfinite())
