"""The range of a function over boxes, outward-rounded: exact on linear pieces, by extrema and monotonicity elsewhere.

What is known of a function is handed in: `Function.interval` puts it together.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval, add, product
from milpverify.functions.pieces import Pieces
from milpverify.functions.terms import enclose

PerInput = tuple[float, float]  # floats around a number

_RELU = Pieces(breakpoints=(0.0,), slopes=(0.0, 1.0), intercepts=(0.0, 0.0), values=(0.0,))


@dataclass(frozen=True)
class Shape:
    """Where a function that is not piecewise linear is defined and turns, in enclosed numbers; see `Function`."""

    domain: tuple[PerInput, ...]
    range: tuple[PerInput, ...]
    extrema: tuple[PerInput, ...]
    extreme_values: tuple[PerInput, ...]
    poles: tuple[PerInput, ...]
    period: PerInput | None


def hull(a: Interval, b: Interval) -> Interval:
    """The least intervals that contain both, elementwise."""
    return Interval(torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))


def _include(found: Interval, met: Tensor, values: Interval) -> Interval:
    """The hull with the values, where they are met."""
    return hull(found, Interval(torch.where(met, values.lower, math.inf), torch.where(met, values.upper, -math.inf)))


def _same(like: Tensor, lower: float, upper: float) -> Interval:
    """One interval everywhere, in float64 as `like` is (a bare Python number would become float32 in torch.where)."""
    return Interval(torch.full_like(like, lower), torch.full_like(like, upper))


def linear_range(pieces: Pieces, lower: Tensor, upper: Tensor) -> Interval:
    """On boxes, float64 of any one shape: the lines that hold their ends, there, and values and one-sided limits at breakpoints inside."""
    if pieces == _RELU:  # the most frequent by far, and exact
        return Interval(lower.clamp(min=0.0), upper.clamp(min=0.0))
    found = _same(lower, math.inf, -math.inf)
    edges = (-math.inf, *pieces.breakpoints, math.inf)
    for (left, right), slope, intercept in zip(pairwise(edges), pieces.slopes, pieces.intercepts, strict=True):
        for end in (lower, upper):
            held = torch.ones_like(end, dtype=torch.bool)
            if left > -math.inf:
                held &= end > left
            if right < math.inf:
                held &= end < right
            found = _include(found, held, _line(slope, intercept, end))
    for at, (low, high) in zip(pieces.breakpoints, _extremes(pieces), strict=True):
        found = _include(found, (lower <= at) & (upper >= at), _same(lower, low, high))
    return found


def _line(slope: float, intercept: float, x: Tensor) -> Interval:
    c = torch.full_like(x, intercept)
    if slope == 0:
        return Interval(c, c)
    exact = x if slope == 1 else -x if slope == -1 else None
    rise = product(torch.full_like(x, slope), x) if exact is None else Interval(exact, exact)
    return add(rise, Interval(c, c)) if intercept else rise


@functools.lru_cache(maxsize=1024)
def _extremes(pieces: Pieces) -> tuple[PerInput, ...]:
    """Per breakpoint, floats around the value and both one-sided limits."""
    lines = [(Fraction(k), Fraction(c)) for k, c in zip(pieces.slopes, pieces.intercepts, strict=True)]
    extremes = []
    for at, value, sides in zip(pieces.breakpoints, pieces.values, pairwise(lines), strict=True):
        numbers = [Fraction(value), *(k * Fraction(at) + c for k, c in sides)]
        extremes.append((enclose(min(numbers))[0], enclose(max(numbers))[1]))
    return tuple(extremes)


def curved_range(shape: Shape, ends: Interval, lower: Tensor, upper: Tensor) -> Interval:
    """Between extrema a function is monotone, so its range is the hull of its values at both ends and at the extrema inside.

    Args:
        ends: contains the values at both ends of every box.
        lower, upper: the boxes, float64, any one shape, which all else has.
    """
    found = ends
    for (low, high), (least, most) in zip(shape.extrema, shape.extreme_values, strict=True):
        met = meets(lower, upper, low, high, shape.period)
        found = _include(found, met, _same(lower, least, most))
    (least, _), (_, most) = shape.range
    (_, start), (end, _) = shape.domain
    # The ends of the domain are inner roundings of it, so a box that might leave the domain counts as leaving.
    inside = (lower >= start) & (upper <= end)
    for low, high in shape.poles:
        inside &= ~((lower <= high) & (upper >= low))
    return Interval(
        torch.where(inside, found.lower.clamp(least, most), -math.inf), torch.where(inside, found.upper.clamp(least, most), math.inf)
    )


def meets(lower: Tensor, upper: Tensor, low: float, high: float, period: PerInput | None) -> Tensor:
    """Whether [lower, upper] may contain a number of [low, high], or one that is a multiple of the period away: bool, elementwise."""
    if period is None:
        return (lower <= high) & (upper >= low)
    # Turns of the circle from an extremum to both ends: three rounded operations on numbers known to a unit in the last place.
    first, last = ((x - low) / period[0] for x in (lower, upper))
    slack = 2.0**-48 * (torch.maximum(first.abs(), last.abs()) + (abs(low) + abs(high)) / period[0]) + (high - low) / period[0]
    return (~((last + slack).floor() < (first - slack).ceil())) | lower.isinf() | upper.isinf()
