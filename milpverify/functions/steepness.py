"""How steep a function is between two points: the range of (f(a) - f(b)) / (a - b) over boxes, outward-rounded.

Where f is differentiable that is the range of f' (mean value theorem), and f' is monotone between inflections: its range is the hull of
its values at both ends and at the inflections inside. Across a jump it is unbounded upwards or downwards.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval
from milpverify.functions.algebras import ball_algebra
from milpverify.functions.pieces import Pieces
from milpverify.functions.ranges import meets
from milpverify.functions.terms import Algebra, evaluate

if TYPE_CHECKING:
    import flint

    from milpverify.functions.function import Function

PerInput = tuple[float, float]  # floats around a number
_PRECISION: Final = 128  # bits
_BESIDE: Final = 2.0**-40
"""How far beside an inflection derivatives are enclosed, so that both sides of a kink are."""


@dataclass(frozen=True)
class _Steepness:
    """What is known of the derivative of a function that is not piecewise linear.

    `slopes` are the derivatives around its inflections, both sides of kinks included; `rising` and `falling` the stretches on which it is
    monotone.
    """

    slopes: tuple[PerInput, ...]
    rising: tuple[PerInput, ...]
    falling: tuple[PerInput, ...]


def secants(function: Function, lower: Tensor, upper: Tensor) -> Interval:
    """The range of (f(a) - f(b)) / (a - b) for a != b in [lower, upper], elementwise; +-inf where it is unbounded or unknown.

    Args:
        lower, upper: tensors of one shape, float64.
    """
    if function.staircase:
        return Interval(torch.zeros_like(lower), torch.full_like(lower, math.inf))
    found = _linear(function.pieces, lower, upper) if function.pieces is not None else _curved(function, lower, upper)
    unknown = lower.isnan() | upper.isnan()
    return Interval(torch.where(unknown, -math.inf, found.lower), torch.where(unknown, math.inf, found.upper))


def _linear(pieces: Pieces, lower: Tensor, upper: Tensor) -> Interval:
    """On a box, float64: the slopes of the lines that it meets, and what the jumps in it add."""
    least, most = torch.full_like(lower, math.inf), torch.full_like(lower, -math.inf)
    point = lower == upper
    edges = (-math.inf, *pieces.breakpoints, math.inf)
    for (left, right), slope in zip(pairwise(edges), pieces.slopes, strict=True):
        met = ((lower < right) & (upper > left)) | (point & (lower <= right) & (upper >= left))
        least, most = torch.where(met, least.clamp(max=slope), least), torch.where(met, most.clamp(min=slope), most)
    for at, (up, down) in zip(pieces.breakpoints, _jumps(pieces), strict=True):
        inside = (lower <= at) & (upper >= at)
        if up:
            most = torch.where(inside, math.inf, most)
        if down:
            least = torch.where(inside, -math.inf, least)
    return Interval(least, most)


@functools.lru_cache(maxsize=1024)
def _jumps(pieces: Pieces) -> tuple[tuple[bool, bool], ...]:
    """Per breakpoint, whether the function jumps upwards there, and downwards: from the left to its value, or from that to the right."""
    from fractions import Fraction

    found = []
    lines = [(Fraction(k), Fraction(c)) for k, c in zip(pieces.slopes, pieces.intercepts, strict=True)]
    for at, value, (left, right) in zip(pieces.breakpoints, pieces.values, pairwise(lines), strict=True):
        x, y = Fraction(at), Fraction(value)
        steps = y - (left[0] * x + left[1]), right[0] * x + right[1] - y
        found.append((any(step > 0 for step in steps), any(step < 0 for step in steps)))
    return tuple(found)


def _curved(function: Function, lower: Tensor, upper: Tensor) -> Interval:
    """On a box, float64: the derivative's values at the ends and at the inflections inside; of one sign where f is monotone."""
    known, ends = _steepness_of(function), torch.stack([lower, upper])
    near = function.derivative_near(ends, function.near(ends))
    error = near.error * (1 + 2.0**-50) + 2.0**-1000
    least, most = (near.value - error).amin(0), (near.value + error).amax(0)
    for (low, high), (below, above) in zip(function.inflections, known.slopes, strict=True):
        inside = meets(lower, upper, low, high, function.period)
        least, most = torch.where(inside, least.clamp(max=below), least), torch.where(inside, most.clamp(min=above), most)
    for start, end in known.rising:
        least = torch.where((lower >= start) & (upper <= end), least.clamp(min=0.0), least)
    for start, end in known.falling:
        most = torch.where((lower >= start) & (upper <= end), most.clamp(max=0.0), most)
    (_, start), (end, _) = function.domain
    inside = (lower >= start) & (upper <= end) & ~least.isnan() & ~most.isnan()
    for low, high in function.poles:
        inside &= ~((lower <= high) & (upper >= low))
    return Interval(torch.where(inside, least, -math.inf), torch.where(inside, most, math.inf))


@functools.lru_cache(maxsize=256)
def _steepness_of(function: Function) -> _Steepness:
    """The derivatives at a function's inflections, in balls, and the stretches between its extrema and poles on which it rises or falls."""
    rising, falling = [], []
    if function.period is None:
        turns = sorted({*function.extrema, *function.poles})
        edges = [(-math.inf, function.domain[0][1]), *turns, (function.domain[1][0], math.inf)]
        for (_, start), (end, _) in pairwise(edges):
            a, b = _inside(start, end)
            near = function.near(torch.tensor([a, b], dtype=torch.float64))
            rise, error = float(near.value[1] - near.value[0]), 2 * float(near.error.sum()) + 2.0**-40 * float(near.value.abs().sum())
            if rise > error:
                rising.append((start, end))
            elif -rise > error:
                falling.append((start, end))
    slopes = tuple(_slopes(function, low, high) for low, high in function.inflections)
    return _Steepness(slopes, tuple(rising), tuple(falling))


def _inside(start: float, end: float) -> tuple[float, float]:
    """Two points well inside a stretch, which may be unbounded."""
    low = start if math.isfinite(start) else (end - 3.0 if math.isfinite(end) else -1.5)
    high = end if math.isfinite(end) else low + 3.0
    return low + (high - low) / 3, low + 2 * (high - low) / 3


def _slopes(function: Function, low: float, high: float) -> PerInput:
    """The derivative at an inflection and next to it, enclosed; unbounded where it is."""
    import flint

    with flint.ctx.workprec(_PRECISION):
        at = flint.arb(low).union(flint.arb(high))
        # A point at which a minimum or a maximum changes has another derivative on either side.
        sides = [flint.arb(low - _BESIDE).union(at), at.union(flint.arb(high + _BESIDE))] if low == high else [at]
        balls = [evaluate(function.derivative_term, _beside(), {"x": side, "y": function.ball(side)}) for side in sides]
        if not all(ball.is_finite() for ball in balls):
            return -math.inf, math.inf
        return (
            min(math.nextafter(float(ball.lower()), -math.inf) for ball in balls),
            max(math.nextafter(float(ball.upper()), math.inf) for ball in balls),
        )


@functools.cache
def _beside() -> Algebra[flint.arb]:
    """Ball arithmetic in which a ball that has 0 as an end has the sign that it has next to that end."""
    import flint

    plain = ball_algebra()

    def sign(a: flint.arb) -> flint.arb:
        below, above = a.lower(), a.upper()
        if below >= 0 and above > 0:
            return flint.arb(1)
        return flint.arb(-1) if above <= 0 and below < 0 else a.sgn()

    return Algebra(plain.constant, lambda name: sign if name == "sign" else plain.operator(name), plain.pi)
