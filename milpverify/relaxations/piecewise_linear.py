"""Linear relaxations of piecewise-linear functions: f(x) - k x is least at an end of [l, u] or at a breakpoint."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import TINY, U64
from milpverify.relaxations.rule import Univariate, finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milpverify.functions.catalogue import Pieces
    from milpverify.relaxations.rule import PerInput


@dataclass(frozen=True)
class PiecewiseLinear(Univariate):
    """A function made of lines, which may jump."""

    @property
    def pieces(self) -> Pieces:
        """The function's lines."""
        assert self.function.pieces is not None
        return self.function.pieces

    @property
    def matters(self) -> tuple[bool, bool]:
        # Not where the envelope on that side is one chord.
        if _has_jumps(self.pieces):
            return True, True
        steps = [b - a for a, b in pairwise(self.pieces.slopes)]
        return not all(s < 0 for s in steps), not all(s > 0 for s in steps)

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest slope of the function's chords, which have any slope upwards or downwards across a jump."""
        steps = [step for at in _jumps(self.pieces) for step in at]
        least = -math.inf if any(step < 0 for step in steps) else min(self.pieces.slopes)
        return least, math.inf if any(step > 0 for step in steps) else max(self.pieces.slopes)

    def is_affine(self, lower: Tensor, upper: Tensor) -> Tensor:
        if _has_jumps(self.pieces):  # at a jump the closed interval reaches both pieces
            sides = [(upper < p) | (lower > p) for p in self.pieces.breakpoints]
        else:
            sides = [(upper <= p) | (lower >= p) for p in self.pieces.breakpoints]
        return functools.reduce(torch.logical_and, sides) if sides else torch.ones_like(lower, dtype=torch.bool)

    def supporting_slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        if (bend := _bend(self.pieces)) is not None:
            inside, chord = bend.tangent_and_chord(lower, upper)
            return (inside, chord) if bend.convex else (chord, inside)
        points = list(_vertices(self.pieces, lower, upper))
        middle = 0.5 * (lower + upper)
        inside = _piece_slope(self.pieces, lower)
        value_low = torch.full_like(lower, torch.inf)
        value_high = torch.full_like(lower, -torch.inf)
        slope_low, slope_high = inside, inside
        for i, (x0, f0) in enumerate(points):
            for x1, f1 in points[i + 1 :]:
                # Only chords over the midpoint; vertices outside [lower, upper] are moved to an end, where they repeat it.
                spans = (x0 <= middle) & (x1 >= middle) & (x1 > x0)
                slope = torch.where(spans, (f1 - f0) / (x1 - x0), inside)
                value = f0 + slope * (middle - x0)
                better = spans & (value < value_low)
                value_low, slope_low = torch.where(better, value, value_low), torch.where(better, slope, slope_low)
                better = spans & (value > value_high)
                value_high, slope_high = torch.where(better, value, value_high), torch.where(better, slope, slope_high)
        exact = self.is_affine(lower, upper)
        return torch.where(exact, inside, slope_low), torch.where(exact, inside, slope_high)

    def envelope_slopes(self, lower: PerInput, upper: PerInput) -> tuple[PerInput, PerInput]:
        """Those of all chords between the ends and the breakpoints, of which the envelopes consist."""
        points = list(_vertices(self.pieces, lower[0], upper[0]))
        chords = [finite((f1 - f0) / (x1 - x0)) for (x0, f0), (x1, f1) in combinations(points, 2)]
        slopes = torch.stack([*chords, *self.supporting_slopes(lower[0], upper[0])])
        return (slopes,), (slopes,)

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        if (bend := _bend(self.pieces)) is not None:
            return bend.tangent_and_chord(lower, upper)[1]
        ends = list(_ends(self.pieces, lower, upper))
        width = upper - lower
        chord = (ends[-1][1] - ends[0][1]) / width
        return torch.where(self.is_affine(lower, upper) | (width <= 0), _piece_slope(self.pieces, lower), chord)

    def lower_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self._extreme_intercept(lower, upper, slope, torch.minimum, -1.0)

    def upper_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self._extreme_intercept(lower, upper, slope, torch.maximum, 1.0)

    def both_intercepts(self, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
        bend = _bend(self.pieces)
        if bend is None:
            return super().both_intercepts(lower, upper, k_lower, k_upper)
        return bend.intercepts(lower, upper, k_lower, k_upper)

    def heights(
        self, lower: Tensor, upper: Tensor, center: Tensor, value: Tensor, dtype: torch.dtype, once: bool
    ) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        bend = _bend(self.pieces)
        if bend is None:
            return super().heights(lower, upper, center, value, dtype, once)
        # On the convex side the best line of every slope touches the breakpoint, moved to the nearer end where it is outside.
        kink = torch.maximum(lower, upper.clamp(max=0.0))
        base, reach = (bend(kink) - value).to(dtype).unsqueeze(1), (center - kink).to(dtype).unsqueeze(1)

        def height(slope: Tensor) -> Tensor:
            return torch.addcmul(base, reach, slope)

        return height, height

    def split_point(self, lower: Tensor, upper: Tensor) -> Tensor:
        """The breakpoint inside that is nearest to the middle (the middle where there is none), elementwise."""
        middle = 0.5 * (lower + upper)
        best, distance = middle, torch.full_like(middle, torch.inf)
        for p in self.pieces.breakpoints:
            nearer = (lower < p) & (upper > p) & ((p - middle).abs() < distance)
            best, distance = torch.where(nearer, p, best), torch.where(nearer, (p - middle).abs(), distance)
        return best

    def _extreme_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor, extreme, sign: float) -> Tensor:  # type: ignore[no-untyped-def]
        best: Tensor | None = None
        size = torch.zeros_like(lower)
        for x, f in _vertices(self.pieces, lower, upper):
            gap = f - slope * x
            best = gap if best is None else extreme(best, gap)
            size = torch.maximum(size, f.abs() + x.abs() * (slope.detach().abs() + _steepest(self.pieces)))
        assert best is not None
        padded = best + sign * (8.0 * U64 * size + TINY)
        # On one piece with that piece's own slope the line is the function: no margin is needed, and none may creep in.
        same = self.is_affine(lower, upper) & (slope == _piece_slope(self.pieces, lower))
        return torch.where(same, _piece_intercept(self.pieces, lower), padded)


@dataclass(frozen=True)
class _Bend:
    """f(x) = left * min(x, 0) + right * max(x, 0): ReLU, leaky ReLU, abs; their relaxations in few operations and without branches.

    `torch.where` is left out on purpose: with masks as irregular as those of unstable neurons it costs ten times a product.
    """

    left: float
    right: float

    @property
    def convex(self) -> bool:
        return self.right >= self.left

    def __call__(self, x: Tensor) -> Tensor:
        # One of the two products is 0, so that f(x) is a single rounded product.
        positive = x.clamp(min=0.0) * self.right
        return positive + self.left * x.clamp(max=0.0) if self.left else positive

    def slope(self, x: Tensor) -> Tensor:
        """The slope at x, the right one at 0."""
        right = (x >= 0).to(x.dtype)
        return self.right * right + self.left * (1.0 - right) if self.left else self.right * right

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return ((lower < 0) & (upper > 0)).to(lower.dtype)

    def tangent_and_chord(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The slope at the midpoint, and that of the chord; both are the function's own where it is straight."""
        inside = self.slope(lower + upper)
        chord = (self(upper) - self(lower)) / (upper - lower).clamp(min=torch.finfo(lower.dtype).tiny)
        return inside, torch.lerp(inside, chord, self.unstable(lower, upper))

    def intercepts(self, lower: Tensor, upper: Tensor, k_lower: Tensor, k_upper: Tensor) -> tuple[Tensor, Tensor]:
        """See `Univariate.both_intercepts`."""
        f_lower, f_upper = self(lower), self(upper)
        kink = torch.maximum(lower, upper.clamp(max=0.0))  # moved to the nearer end where it is outside
        low = torch.minimum(f_lower - k_lower * lower, f_upper - k_lower * upper)
        high = torch.maximum(f_lower - k_upper * lower, f_upper - k_upper * upper)
        # f - k x is convex with f, and then largest at an end; otherwise it is concave, and smallest there.
        if self.convex:
            low = torch.minimum(low, self(kink) - k_lower * kink)
        else:
            high = torch.maximum(high, self(kink) - k_upper * kink)
        # On one piece with that piece's own slope both products are the same and nothing is lost.
        own = self.slope(lower + upper)
        rounded = self.unstable(lower, upper)
        steep = max(abs(self.left) + abs(self.right), 2.0**-100)
        reach = torch.maximum(lower.abs(), upper.abs()) + TINY  # products may underflow
        pads = []
        for k in (k_lower.detach(), k_upper.detach()):
            inexact = torch.maximum(rounded, (k != own).to(lower.dtype))
            pads.append(8.0 * U64 * reach * (k.abs() + 2 * steep) * inexact)
        return low - pads[0], high + pads[1]


@functools.lru_cache(maxsize=256)
def _bend(pieces: Pieces) -> _Bend | None:
    if pieces.breakpoints == (0.0,) and not any((*pieces.intercepts, *pieces.values)):
        return _Bend(*pieces.slopes)
    return None


@functools.lru_cache(maxsize=256)
def _jumps(pieces: Pieces) -> tuple[tuple[Fraction, Fraction], ...]:
    """Per breakpoint, by how much the function rises from the limit on the left to its value, and from there to that on the right."""
    lines = [(Fraction(slope), Fraction(intercept)) for slope, intercept in zip(pieces.slopes, pieces.intercepts, strict=True)]
    found = []
    for p, value, sides in zip(pieces.breakpoints, pieces.values, pairwise(lines), strict=True):
        left, right = (slope * Fraction(p) + intercept for slope, intercept in sides)
        found.append((Fraction(value) - left, right - Fraction(value)))
    return tuple(found)


def _has_jumps(pieces: Pieces) -> bool:
    return any(map(any, _jumps(pieces)))


def _steepest(pieces: Pieces) -> float:
    return max(abs(s) for s in pieces.slopes)


def _select(pieces: Pieces, coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    chosen = torch.full_like(x, coefficients[0])
    for p, c in zip(pieces.breakpoints, coefficients[1:], strict=True):
        chosen = torch.where(x >= p, c, chosen)
    return chosen


def _piece_slope(pieces: Pieces, x: Tensor) -> Tensor:
    """The slope on the right of x: where the function is one piece, that piece's at the lower end. A midpoint may round to the upper."""
    return _select(pieces, pieces.slopes, x)


def _piece_intercept(pieces: Pieces, x: Tensor) -> Tensor:
    return _select(pieces, pieces.intercepts, x)


def _ends(pieces: Pieces, lower: Tensor, upper: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for x in (lower, upper):
        yield x, _piece_slope(pieces, x) * x + _piece_intercept(pieces, x)


def _vertices(pieces: Pieces, lower: Tensor, upper: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The points between which the graph's closure is straight on [lower, upper], left to right: the ends and the breakpoints inside.

    A breakpoint outside is moved to the nearer end. At a jump the value and both limits are vertices.
    """
    first, last = _ends(pieces, lower, upper)
    yield first
    for i, (p, v) in enumerate(zip(pieces.breakpoints, pieces.values, strict=True)):
        limits = {pieces.slopes[i] * p + pieces.intercepts[i], v, pieces.slopes[i + 1] * p + pieces.intercepts[i + 1]}
        if len(limits) == 1:
            inside = (lower < p) & (upper > p)
        else:
            inside = (lower <= p) & (upper >= p)
        for f in sorted(limits):
            x = torch.where(inside, p, torch.where(upper <= p, upper, lower))
            y = torch.where(inside, f, torch.where(upper <= p, last[1], first[1]))
            yield x, y
    yield last
