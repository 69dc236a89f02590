"""Linear relaxations of smooth functions, from what the catalogue says about their curvature.

For a slope k, f(x) - k x is bounded from below on [l, u] piece by piece. On a concave piece its minimum is at an end. On a convex
piece every tangent bounds it: f(x) - k x >= f(t) - k t + (f'(t) - k) (x - t) for any t in the piece, which is tight where t is the
critical point, and holds wherever a numeric search has put t. Values at points come with proved rounding errors (`Function.near`).
Upper lines are lower lines of -f.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64
from milpverify.relaxations.convex_parts import TURNS, Parts, Shape, parts_of, shape_of, slivers_of
from milpverify.relaxations.rule import PerInput, RelaxationTuning, Univariate, finite
from milpverify.relaxations.slope_tables import slope_tables

if TYPE_CHECKING:
    from milpverify.arithmetic.running_error import Near
    from milpverify.functions.catalogue import Function


@dataclass(frozen=True)
class Smooth(Univariate):
    """A function that has a slope at every point but for kinks and poles."""

    tuning: RelaxationTuning = field(default=RelaxationTuning())

    @property
    def span(self) -> tuple[float, float]:
        return -math.inf, math.inf

    def spans(self, lower: PerInput, upper: PerInput) -> tuple[Tensor, Tensor, Tensor]:
        """Nearly the least and the greatest derivative on [lower, upper], elementwise: they are at the ends of convex and concave parts."""
        (low,), (high,) = lower, upper
        parts = parts_of(self.function, shape_of(self.function, low.device), low, high)
        steep = self.function.derivative(torch.cat([parts.a, parts.b, torch.stack([low, high])])).nan_to_num(0.0, 1e30, -1e30)
        least, most = steep.amin(0), steep.amax(0)
        return least, most, self.tuning.pace * (most - least)

    def is_affine(self, lower: Tensor, upper: Tensor) -> Tensor:
        exact = upper <= lower
        for left, right in shape_of(self.function, lower.device).linear:
            exact = exact | ((lower >= left) & (upper <= right))
        return exact

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        slope = (self.function(upper) - self.function(lower)) / (upper - lower)
        return torch.where(slope.isfinite(), slope, finite(self.function.derivative(0.5 * (lower + upper))))

    def supporting_slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Nearly: on one convex or concave piece these are the tangent at the midpoint and the chord."""
        function = self.function
        lower, upper = lower.clamp(-1e300, 1e300), upper.clamp(-1e300, 1e300)
        shape = shape_of(function, lower.device)
        middle = lower + 0.5 * (upper - lower)
        points = torch.stack([lower, upper, middle])
        values = function(points)
        tangent = finite(function.derivative(middle, values[2]))
        straight = (values[1] - values[0]) / (upper - lower)
        straight = torch.where(straight.isfinite(), straight, tangent)
        convex, concave = _within(function, shape, lower, upper)
        low, high = torch.where(convex, tangent, straight), torch.where(concave, tangent, straight)
        mixed = (~(convex | concave) & (lower < upper)).flatten().nonzero(as_tuple=True)[0]
        if len(mixed):
            places, heights = (t.flatten(1)[:, mixed] for t in (points, values))
            found = _supporting(function, shape, places, heights, tangent.flatten()[mixed], self.tuning.support_rounds)
            low, high = (side.flatten().index_put((mixed,), new).reshape(lower.shape) for side, new in zip((low, high), found, strict=True))
        return low, high

    def envelope_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        """Those of tangents at some points, which are extreme where the function is convex (concave), and the supporting ones."""
        (low,), (high,) = lower, upper
        unit = torch.linspace(0.0, 1.0, self.tuning.tangents, dtype=low.dtype, device=low.device).unsqueeze(1)
        tangents = finite(self.function.derivative(low + unit * (high - low)))
        below, above = (torch.cat([tangents, k.unsqueeze(0)]) for k in self.supporting_slopes(low, high))
        return (below,), (above,)

    def fixed_slopes(self, lower: Tensor, upper: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
        place = exact.flatten().nonzero(as_tuple=True)[0]
        slopes = torch.zeros(2, lower.numel(), dtype=lower.dtype, device=lower.device)
        if len(place):
            some = self.supporting_slopes(lower.flatten()[place], upper.flatten()[place])
            slopes[:, place] = torch.stack(some)
        below, above = slopes.reshape(2, *lower.shape)
        return below, above

    def both_intercepts(self, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wide = np.broadcast_shapes(lower.shape, k_lower.shape, k_upper.shape)
            low, high = (k.detach().expand(wide) for k in (k_lower, k_upper))
            (below, at_below), (above, at_above) = _least(self.function, lower, upper, low, high, self.tuning.critical_steps)
        below, above = below.expand(wide), -above.expand(wide)
        if k_lower.requires_grad:
            below = below - at_below * (k_lower - k_lower.detach())
        if k_upper.requires_grad:
            above = above - at_above * (k_upper - k_upper.detach())
        return below, above

    def lower_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self.both_intercepts(lower, upper, slope, slope.detach())[0]

    def upper_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self.both_intercepts(lower, upper, slope.detach(), slope)[1]

    def heights(
        self, lower: Tensor, upper: Tensor, center: Tensor, value: Tensor, dtype: torch.dtype, once: bool
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        if once:
            return super().heights(lower, upper, center, value, dtype, once)
        below, above = slope_tables(self.function, lower, upper, center, value, dtype, self.tuning)
        return below.intercept, above.intercept


# --- default slopes ---


def _within(function: Function, shape: Shape, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Where [lower, upper] is within one convex piece, and within one concave piece, as far as that is simple to tell."""
    if function.period is not None:
        move = (((lower - shape.start.min()) / function.period[0]).floor() * function.period[0]).nan_to_num(0.0, 0.0, 0.0)
        lower, upper = lower - move, upper - move
    found = torch.zeros(2, *lower.shape, dtype=torch.bool, device=lower.device)
    for start, end, sign in zip(*(t.tolist() for t in (shape.start, shape.end, shape.sign)), strict=True):
        found[0 if sign > 0 else 1] |= (lower >= start) & (upper <= end)
    return found[0], found[1]


def _supporting(function: Function, shape: Shape, points: Tensor, values: Tensor, tangent: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """The slopes of the lines that support the envelopes at the midpoint where several pieces meet: (m,) each.

    That is the tangent there, or a line between two contact points, of which every slope tried shows two better ones.

    Args:
        points: the ends and the middle, (3, m), and `values` those of the function there.
        tangent: its slope in the middle, (m,).
    """
    (lower, upper, middle), (f_lower, f_upper, f_middle) = points, values
    parts = parts_of(function, shape, lower, upper)
    fixed, f_fixed = points[:2], values[:2]
    if len(shape.alone):
        alone = shape.alone.unsqueeze(1).clamp(lower, upper)
        fixed, f_fixed = torch.cat([fixed, alone]), torch.cat([f_fixed, function(alone)])
    found = [_Contact(sign, tangent, (lower, f_lower), (upper, f_upper)) for sign in (1.0, -1.0)]
    for n in range(rounds):
        x = parts.critical(parts.by_side(found[0].slope, found[1].slope), 1)
        f = function(x)
        for side, part in zip(found, (slice(parts.below), slice(parts.below, None)), strict=True):
            side.meet(torch.cat([fixed, x[part]]), torch.cat([f_fixed, f[part]]), middle)
            if n == 0:
                side.judge(middle, f_middle)
            side.turn()
    return found[0].slope, found[1].slope


class _Contact:
    """The points p and q, left and right of the midpoint, between which the supporting line of sign f is sought, and a slope."""

    def __init__(self, sign: float, slope: Tensor, p: tuple[Tensor, Tensor], q: tuple[Tensor, Tensor]) -> None:
        self.sign, self.slope, self.p, self.q = sign, slope, p, q
        self.held = torch.zeros_like(slope, dtype=torch.bool)

    def height(self, x: Tensor, f: Tensor) -> Tensor:
        """How high the line through a point is, over 0."""
        return self.sign * (f - self.slope * x)

    def meet(self, x: Tensor, f: Tensor, middle: Tensor) -> None:
        """Take the lowest of the points (C, m), which include the ends, on either side."""
        height, left = self.height(x, f), x < middle
        p, q = (torch.where(side, height, math.inf).argmin(0, keepdim=True) for side in (left, ~left))
        self.p, self.q = ((x.gather(0, i)[0], f.gather(0, i)[0]) for i in (p, q))

    def judge(self, middle: Tensor, value: Tensor) -> None:
        """Hold the slope, the tangent's at the midpoint, where no point met lies below the tangent."""
        least = torch.minimum(self.height(*self.p), self.height(*self.q))
        self.held = least >= self.height(middle, value) - 1e-12 * (value.abs() + (self.slope * middle).abs())

    def turn(self) -> None:
        """Turn the line to the points."""
        slope = (self.q[1] - self.p[1]) / (self.q[0] - self.p[0])
        self.slope = torch.where(self.held | ~slope.isfinite(), self.slope, slope)


# --- intercepts ---


Extreme = tuple[Tensor, Tensor]
"""A proved lower bound, and the point where it is attained, nearly."""


def _least(function: Function, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor, steps: int) -> tuple[Extreme, Extreme]:
    """Lower bounds of f(x) - k_lower x and of -(f(x) - k_upper x) over [lower, upper], with so many steps to critical points."""
    shape = shape_of(function, lower.device)
    sides = [_Least(1.0, k_lower), _Least(-1.0, k_upper)]
    ends = function.near(torch.stack([lower, upper]))
    for i, x in enumerate((lower, upper)):
        for side in sides:
            side.take(x, side.value(x, _at(ends, i)))
    for point in shape.alone:
        at_point, inside = function.near(point), (lower <= point) & (upper >= point)
        for side in sides:
            side.take(point, torch.where(inside, side.value(point, at_point), math.inf))
    parts = parts_of(function, shape, lower, upper)
    if len(parts):
        x, found = _tangents(function, parts, k_lower, k_upper, steps)
        for i, (at, value) in enumerate(zip(x, found, strict=True)):
            sides[i >= parts.below].take(at, value)
    if len(shape.slivers):
        _take_slivers(function, shape, lower, upper, sides)
    if function.period is not None:
        reach = TURNS * function.period[0] - 8.0
        close = (lower >= -reach) & (upper <= reach)
        for side in sides:
            side.bound = torch.where(close, side.bound, -math.inf)
    # Within the domain and its poles every finite bound found is proved, and next to the best.
    whole = not function.poles and all(low == high and math.isinf(low) for low, high in function.domain)
    if not whole or not bool(torch.stack([side.bound.isfinite().all() for side in sides]).all()):
        least, most = function.interval(lower, upper)
        sides[0].settle(least, lower, upper)
        sides[1].settle(-most, lower, upper)
    return (sides[0].bound, sides[0].at), (sides[1].bound, sides[1].at)


def _at(near: Near, place: int) -> Near:
    return type(near)(near.value[place], near.error[place])


class _Least:
    """The least value of sign (f(x) - k x) met so far."""

    def __init__(self, sign: float, k: Tensor) -> None:
        self.sign, self.k = sign, k
        self.bound = torch.full_like(k, math.inf)
        self.at = torch.zeros_like(k)

    def value(self, x: Tensor, near: Near) -> Tensor:
        """A lower bound at a point; -inf where nothing is known."""
        return _value(self.sign, self.k, x, near)

    def take(self, x: Tensor, value: Tensor) -> None:
        self.at = torch.where(value < self.bound, x, self.at)
        self.bound = torch.minimum(self.bound, value)

    def settle(self, least: Tensor, lower: Tensor, upper: Tensor) -> None:
        """Take in that sign f is at least so much: -inf where the domain is left, and better than nothing elsewhere."""
        k = self.sign * self.k
        rise = torch.maximum(_product(k, lower), _product(k, upper))
        plain = least - rise - 4 * U64 * (least.abs() + rise.abs())
        plain = torch.where(plain.isnan(), -math.inf, plain)
        bound = torch.where(least > -math.inf, self.bound, -math.inf)
        much = plain > bound + 1e-6 * (1 + bound.abs())
        self.bound, self.at = torch.maximum(bound, plain), torch.where(much, torch.where(k > 0, upper, lower), self.at)


def _value(sign: float | Tensor, k: Tensor, x: Tensor, near: Near) -> Tensor:
    product = k * x
    found = sign * (near.value - product) - (near.error + 4 * U64 * (near.value.abs() + product.abs()))
    return torch.where(found.isnan(), -math.inf, found)


def _tangents(function: Function, parts: Parts, k_lower: Tensor, k_upper: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Points (P, *shape) of the parts, and what the tangents there prove of sign (f - k x) on each; inf where there is no part."""
    k = parts.by_side(k_lower, k_upper)
    x = parts.critical(k, steps)
    near = function.near(x)
    steep = function.derivative_near(x, near)
    sign = parts.sign.reshape(-1, *[1] * (k.dim() - 1))
    excess, unsure = sign * (steep.value - k), steep.error + 4 * U64 * (steep.value.abs() + k.abs())
    lost = torch.maximum((unsure - excess).clamp(min=0.0) * (parts.right - x), (unsure + excess).clamp(min=0.0) * (x - parts.left))
    found = _value(sign, k, x, near) - lost * (1 + 2.0**-50)
    return x, torch.where(parts.some, torch.where(found.isnan(), -math.inf, found), math.inf)


def _take_slivers(function: Function, shape: Shape, lower: Tensor, upper: Tensor, sides: list[_Least]) -> None:
    """Around inflections that are no floats: from the left end on, f changes as its derivative there allows."""
    left, right, steep = slivers_of(function, shape, lower, upper)
    for a, b, (least, most) in zip(left, right, steep.tolist(), strict=True):
        met = a <= b
        if not bool(met.any()):
            continue
        near, width = function.near(a), (b - a) * (1 + 2.0**-50)
        for side in sides:
            rate = least - side.k if side.sign > 0 else side.k - most
            change = ((rate - 4 * U64 * (abs(least) + abs(most) + side.k.abs())) * width).clamp(max=0.0)
            found = side.value(a, near) + torch.where(change.isnan(), -math.inf, change) * (1 + 2.0**-50)
            found = found - 4 * U64 * found.abs()
            side.take(a, torch.where(met, torch.where(found.isnan(), -math.inf, found), math.inf))


def _product(k: Tensor, x: Tensor) -> Tensor:
    return torch.where(k == 0, 0.0, k * x)
