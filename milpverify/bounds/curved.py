"""Linear relaxations of smooth functions, slope first (DESIGN.md, section 6), from what the catalogue says about their curvature.

For a slope k, f(x) - k x is bounded from below on [l, u] piece by piece. On a concave piece its minimum is at an end. On a convex
piece every tangent bounds it: f(x) - k x >= f(t) - k t + (f'(t) - k) (x - t) for any t in the piece, which is tight where t is the
critical point, and holds wherever a numeric search has put t. Values at points come with proved rounding errors (`Function.near`).
Upper lines are lower lines of -f.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds.rounding import U64
from milpverify.nonlinearity import Curvature

if TYPE_CHECKING:
    from milpverify.catalogue import Function
    from milpverify.running import Near

_STEPS = 16
"""Of the search for a critical point: what is left of its error costs the line next to nothing."""
_ROUNDS = 6
"""Of the search for the supporting line at the midpoint, each of which finds the extreme point of a slope."""
_TURNS = 1000
"""Periods away from 0 beyond which a line only knows the range of the function."""
_DRIFT = 2.0**-38
"""More than the rounding of an inflection that is so many periods away."""
_FLIPPED = {Curvature.CONVEX: Curvature.CONCAVE, Curvature.CONCAVE: Curvature.CONVEX, Curvature.LINEAR: Curvature.LINEAR}


def is_exact(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """Where the function is one affine piece on [lower, upper], or [lower, upper] is a point (bool)."""
    exact = upper <= lower
    for left, right, curvature in _shape(function, 1.0).pieces:
        if curvature is Curvature.LINEAR:
            exact = exact | ((lower >= left) & (upper <= right))
    return exact


def default_slopes(function: Function, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes of the lines that support the convex and the concave envelope at the midpoint of [lower, upper], nearly."""
    low, high = (_supporting(_shape(function, sign), lower, upper) for sign in (1.0, -1.0))
    return low, -high


def chord(function: Function, lower: Tensor, upper: Tensor) -> Tensor:
    """The slope between the ends; that of the function where they meet."""
    slope = (function(upper) - function(lower)) / (upper - lower)
    return torch.where(slope.isfinite(), slope, _finite(function.derivative(0.5 * (lower + upper))))


def intercepts(function: Function, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
    """The largest intercept with k_lower x + intercept <= f(x) on [lower, upper], the smallest one above f, with outward margins.

    Args:
        lower, upper: float64, broadcastable against the slopes.
        k_lower, k_upper: float64; the results are differentiable in them, with gradient -x* at the extreme points x*.
    """
    with torch.no_grad():
        ends = function.near(lower), function.near(upper)
        span = function.interval(lower, upper)
    return _intercept(_shape(function, 1.0), lower, upper, k_lower, ends, span[0]), -_intercept(
        _shape(function, -1.0), lower, upper, -k_upper, ends, -span[1]
    )


def lower_intercept(function: Function, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
    """The first of `intercepts`."""
    with torch.no_grad():
        ends, least = (function.near(lower), function.near(upper)), function.interval(lower, upper)[0]
    return _intercept(_shape(function, 1.0), lower, upper, slope, ends, least)


def upper_intercept(function: Function, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
    """The second of `intercepts`."""
    with torch.no_grad():
        ends, most = (function.near(lower), function.near(upper)), function.interval(lower, upper)[1]
    return -_intercept(_shape(function, -1.0), lower, upper, -slope, ends, -most)


def _intercept(shape: _Shape, lower: Tensor, upper: Tensor, slope: Tensor, ends: tuple[Near, Near], least: Tensor) -> Tensor:
    with torch.no_grad():
        wide = torch.broadcast_shapes(lower.shape, slope.shape)
        low, high, k = (t.expand(wide) for t in (lower, upper, slope.detach()))
        first, last = (type(end)(end.value.expand(wide), end.error.expand(wide)) for end in ends)
        bound, at = _least(shape, low, high, k, (first, last), least.expand(wide))
    return bound - at * (slope - slope.detach()) if slope.requires_grad else bound


@dataclass(frozen=True)
class _Shape:
    """A function, or its negative, cut at the inflections.

    `pieces` are (left end, right end, curvature), inner roundings; those of one period if there is one. `slivers` enclose the
    inflections that are no floats (of a periodic function: all, a little wider), with a lower bound of the function there. `alone` are
    exact inflections without a convex piece beside them, which would bound the function there.
    """

    function: Function
    sign: float
    pieces: tuple[tuple[float, float, Curvature], ...]
    slivers: tuple[tuple[float, float, float], ...]
    alone: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.sign * self.function(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.sign * self.function.derivative(x)


@lru_cache(maxsize=256)
def _shape(function: Function, sign: float) -> _Shape:
    curvature = [c if sign > 0 else _FLIPPED[c] for c in function.curvature]
    edges, drift = list(function.inflections), 0.0
    if function.period is None:
        edges = [(-math.inf, -math.inf), *edges, (math.inf, math.inf)]
    else:
        edges, drift = [*edges, (edges[0][0] + function.period[0], edges[0][1] + function.period[1])], _DRIFT
    slivers = []
    for low, high in function.inflections:
        if low < high or drift:
            ends = torch.tensor([low - 2 * drift, high + 2 * drift], dtype=torch.float64)
            least, most = function.interval(ends[:1], ends[1:])
            slivers.append((low - drift, high + drift, float(least) if sign > 0 else -float(most)))
    alone = [b for (a, b), sides in zip(edges[1:-1], pairwise(curvature), strict=True) if a == b and Curvature.CONVEX not in sides]
    pieces = tuple((a[1] + drift, b[0] - drift, c) for (a, b), c in zip(pairwise(edges), curvature, strict=True))
    return _Shape(function, sign, pieces, tuple(slivers), () if drift else tuple(alone))


def _turns(shape: _Shape, lower: Tensor, upper: Tensor) -> list[Tensor | float]:
    """By how much to move the pieces of one period so that those which can hold the minimum over [lower, upper] are met.

    Along whole periods f(x) - k x changes linearly at the critical points of a kind, so that the outer ones are enough.
    """
    if shape.function.period is None:
        return [0.0]
    period, start = 0.5 * sum(shape.function.period), shape.pieces[0][0]
    # Rounding may take the first turn for one earlier and the last for one later, never the other way.
    first = ((lower - start) / period - 1e-9).floor().clamp(-_TURNS, _TURNS)
    last = ((upper - start) / period + 1e-9).floor().clamp(-_TURNS, _TURNS)
    turns = [first, first + 1, first + 2]
    if bool((last > first + 2).any()):
        turns += [last - 2, last - 1, last]
    return [t * period for t in turns]


def _convex(shape: _Shape, lower: Tensor, upper: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The convex pieces' parts of [lower, upper]: the ends, and ends between which the piece's own derivative is evaluated.

    Kinks count as inflections: there, the derivative may be that of the other side. Where there is no such part left >= right
    (a point is an end of [lower, upper], or bounded by what is beside it).
    """
    for move in _turns(shape, lower, upper):
        for start, end, curvature in shape.pieces:
            if curvature is Curvature.CONVEX:
                first, last = lower.new_tensor(start) + move, lower.new_tensor(end) + move
                left, right = torch.maximum(lower, first), torch.minimum(upper, last)
                a = torch.where(left == first, left + (left.abs() * 2.0**-52 + 2.0**-1000), left)
                b = torch.where(right == last, right - (right.abs() * 2.0**-52 + 2.0**-1000), right)
                yield left, right, torch.minimum(a, b), torch.where(a > b, torch.minimum(a, b), b)


def _critical(shape: _Shape, left: Tensor, right: Tensor, k: Tensor, steps: int) -> Tensor:
    """Where f' = k on a convex piece, or the end nearest to that: secants within a bracket (Illinois), bisection now and then."""
    a, b = left, right
    fa, fb = shape.derivative(a) - k, shape.derivative(b) - k
    x, error = torch.where(fa >= 0, a, b), torch.where((fa >= 0) | (fb <= 0), 0.0, math.inf)
    before = torch.zeros_like(a, dtype=torch.bool)
    for n in range(steps):
        middle = 0.5 * (a + b)
        secant = b - fb * (b - a) / (fb - fa)
        inside = (secant > a) & (secant < b) & (n % 3 != 1 or n > steps // 2)
        at = torch.where(inside, secant, middle)
        f = shape.derivative(at) - k
        below = f <= 0
        # An end that stays twice counts half, so that both ends move.
        fa, fb = torch.where(below, f, torch.where(before, fa, 0.5 * fa)), torch.where(below, torch.where(before, 0.5 * fb, fb), f)
        a, b = torch.where(below, at, a), torch.where(below, b, at)
        x, error, before = torch.where(f.abs() < error, at, x), torch.minimum(f.abs(), error), below
    return x


def _extreme(shape: _Shape, lower: Tensor, upper: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The point of [lower, upper] where f(x) - k x is least, nearly, and that value."""
    x, least = lower, shape(lower) - k * lower
    for at in (upper, *(lower.new_tensor(p).expand_as(lower).clamp(lower, upper) for p in shape.alone)):
        value = shape(at) - k * at
        x, least = torch.where(value < least, at, x), torch.minimum(value, least)
    for left, right, a, b in _convex(shape, lower, upper):
        some = left < right
        at = _critical(shape, torch.where(some, a, lower), torch.where(some, b, lower), k, _STEPS // 2)
        value = shape(at) - k * at
        better = some & (value < least)
        x, least = torch.where(better, at, x), torch.where(better, value, least)
    return x, least


def _supporting(shape: _Shape, lower: Tensor, upper: Tensor) -> Tensor:
    """The slope of the line that supports the convex envelope at the midpoint.

    That is the tangent there, or a line between two contact points, of which each slope tried shows one.
    """
    lower, upper = lower.clamp(-1e300, 1e300), upper.clamp(-1e300, 1e300)
    middle = lower + 0.5 * (upper - lower)
    at_middle, tangent = shape(middle), _finite(shape.derivative(middle))
    value = at_middle - tangent * middle
    _, least = _extreme(shape, lower, upper, tangent)
    touches = least >= value - 1e-12 * (at_middle.abs() + (tangent * middle).abs())
    p, q, slope = lower, upper, tangent
    for n in range(_ROUNDS + 1):
        found = (shape(q) - shape(p)) / (q - p)
        slope = torch.where(touches | ~found.isfinite(), slope, found)
        if n < _ROUNDS:
            x, _ = _extreme(shape, lower, upper, slope)
            p, q = torch.where(x < middle, x, p), torch.where(x < middle, q, x)
    return slope


def _least(shape: _Shape, lower: Tensor, upper: Tensor, k: Tensor, ends: tuple[Near, Near], least: Tensor) -> tuple[Tensor, Tensor]:
    """A proved lower bound of f(x) - k x over [lower, upper], and the point where it is attained, nearly.

    Args:
        ends: `near` at both ends, of the function itself.
        least: a lower bound of f over [lower, upper].
    """

    def value(x: Tensor, near: Near) -> Tensor:
        product = k * x
        found = shape.sign * near.value - product - (near.error + 4 * U64 * (near.value.abs() + product.abs()))
        return torch.where(found.isnan(), -math.inf, found)

    bound, at = value(lower, ends[0]), lower
    for x in (upper, *(lower.new_tensor(p).expand_as(lower) for p in shape.alone)):
        inside = (x >= lower) & (x <= upper)
        found = torch.where(inside, value(x, ends[1] if x is upper else shape.function.near(x)), math.inf)
        bound, at = torch.minimum(bound, found), torch.where(found < bound, x, at)
    for left, right, a, b in _convex(shape, lower, upper):
        some = left < right
        x = _critical(shape, torch.where(some, a, lower), torch.where(some, b, lower), k, _STEPS)
        near = shape.function.near(x)
        slope = shape.function.derivative_near(x, near)
        excess, unsure = shape.sign * slope.value - k, slope.error + 4 * U64 * (slope.value.abs() + k.abs())
        lost = torch.maximum((unsure - excess).clamp(min=0.0) * (right - x), (unsure + excess).clamp(min=0.0) * (x - left))
        found = value(x, near) - lost * (1 + 2.0**-50)
        found = torch.where(some, torch.where(found.isnan(), -math.inf, found), math.inf)
        bound, at = torch.minimum(bound, found), torch.where(found < bound, x, at)
    for move in _turns(shape, lower, upper) if shape.slivers else ():
        for low, high, known in shape.slivers:
            a, b = torch.maximum(lower, lower.new_tensor(low) + move), torch.minimum(upper, lower.new_tensor(high) + move)
            found = known - torch.maximum(k * a, k * b)
            bound = torch.where(a <= b, torch.minimum(bound, found - 4 * U64 * (abs(known) + found.abs())), bound)
    if shape.function.period is not None:
        reach = _TURNS * shape.function.period[0] - 8.0
        bound = torch.where((lower < -reach) | (upper > reach), -math.inf, bound)
    rise = torch.maximum(_product(k, lower), _product(k, upper))
    plain = least - rise - 4 * U64 * (least.abs() + rise.abs())
    plain = torch.where(plain.isnan(), -math.inf, plain)
    bound = torch.where(least > -math.inf, bound, -math.inf)  # the domain is left
    much = plain > bound + 1e-6 * (1 + bound.abs())
    return torch.maximum(bound, plain), torch.where(much, torch.where(k > 0, upper, lower), at)


def _product(k: Tensor, x: Tensor) -> Tensor:
    return torch.where(k == 0, 0.0, k * x)


def _finite(slope: Tensor) -> Tensor:
    return torch.where(slope.isfinite(), slope, 0.0)
