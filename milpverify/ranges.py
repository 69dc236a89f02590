"""The range of a catalogue function over boxes, outward-rounded: exact on linear pieces, by extrema and monotonicity elsewhere."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.interval import Interval, add, down, interval_algebra, point, product, up
from milpverify.pieces import Pieces
from milpverify.terms import enclose, evaluate

if TYPE_CHECKING:
    from milpverify.nonlinearity import Function

_RELU = Pieces(breakpoints=(0.0,), slopes=(0.0, 1.0), intercepts=(0.0, 0.0), values=(0.0,))


def function_range(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The range of the function over [lower, upper] (float64, any shape); see `Function.interval`."""
    if function.pieces is not None:
        found = _linear_range(function.pieces, lower, upper)
    else:
        found = _curved_range(function, lower, upper)
    unknown = lower.isnan() | upper.isnan()
    return torch.where(unknown, -math.inf, found.lower), torch.where(unknown, math.inf, found.upper)


def _hull(a: Interval, b: Interval) -> Interval:
    return Interval(torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))


def _include(found: Interval, met: Tensor, values: Interval) -> Interval:
    """The hull with the values, where they are met."""
    return _hull(found, Interval(torch.where(met, values.lower, math.inf), torch.where(met, values.upper, -math.inf)))


def _same(like: Tensor, lower: float, upper: float) -> Interval:
    """One interval everywhere, in float64 as `like` is (a bare Python number would become float32 in torch.where)."""
    return Interval(torch.full_like(like, lower), torch.full_like(like, upper))


def _linear_range(pieces: Pieces, lower: Tensor, upper: Tensor) -> Interval:
    """The lines that hold the ends of the box, there, and the values and one-sided limits at the breakpoints inside."""
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
def _extremes(pieces: Pieces) -> tuple[tuple[float, float], ...]:
    """Per breakpoint, floats around the value and both one-sided limits."""
    lines = [(Fraction(k), Fraction(c)) for k, c in zip(pieces.slopes, pieces.intercepts, strict=True)]
    extremes = []
    for at, value, sides in zip(pieces.breakpoints, pieces.values, pairwise(lines), strict=True):
        numbers = [Fraction(value), *(k * Fraction(at) + c for k, c in sides)]
        extremes.append((enclose(min(numbers))[0], enclose(max(numbers))[1]))
    return tuple(extremes)


def _curved_range(function: Function, lower: Tensor, upper: Tensor) -> Interval:
    """Between extrema f is monotone, so its range is the hull of f at both ends and at the extrema inside."""
    found = _ends(function, lower, upper)
    for (low, high), (least, most) in zip(function.extrema, function.extreme_values, strict=True):
        met = _meets(lower, upper, low, high, function.period)
        found = _include(found, met, _same(lower, least, most))
    (least, _), (_, most) = function.range
    (_, start), (end, _) = function.domain
    # The ends of the domain are inner roundings of it, so a box that might leave the domain counts as leaving.
    inside = (lower >= start) & (upper <= end)
    for low, high in function.poles:
        inside &= ~((lower <= high) & (upper >= low))
    return Interval(
        torch.where(inside, found.lower.clamp(least, most), -math.inf), torch.where(inside, found.upper.clamp(least, most), math.inf)
    )


def _ends(function: Function, lower: Tensor, upper: Tensor) -> Interval:
    """The hull of f at both ends: by running errors, and by intervals where these know nothing (infinite ends, an overflow)."""
    near = function.near(torch.stack([lower, upper]))
    if bool(near.error.isfinite().all()):
        low, high = down(near.value - near.error), up(near.value + near.error)
        return Interval(torch.minimum(low[0], low[1]), torch.maximum(high[0], high[1]))

    def values(x: Interval) -> Interval:
        return evaluate(function.numeric, interval_algebra(), {"x": x})

    return _hull(values(point(lower)), values(point(upper)))


def _meets(lower: Tensor, upper: Tensor, low: float, high: float, period: tuple[float, float] | None) -> Tensor:
    """Whether [lower, upper] may contain a number of [low, high], or one that is a multiple of the period away."""
    if period is None:
        return (lower <= high) & (upper >= low)
    # Turns of the circle from an extremum to both ends: three rounded operations on numbers known to a unit in the last place.
    first, last = ((x - low) / period[0] for x in (lower, upper))
    slack = 2.0**-48 * (torch.maximum(first.abs(), last.abs()) + (abs(low) + abs(high)) / period[0]) + (high - low) / period[0]
    return (~((last + slack).floor() < (first - slack).ceil())) | lower.isinf() | upper.isinf()
