"""Linear relaxations of floor and round, whose pieces are too many to list: f(x) - k x is least or largest at an end or at an outer jump.

On [l, u] with the jumps m1 <= ... <= m2 the infimum over the part below a jump m is its limit from the left, m - s - k m with
s = 1 for floor and 1/2 for round, the supremum above is 1 more; both are linear in m, so that the outer jumps are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64
from milpverify.relaxations.rule import Univariate, finite

_Points = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Staircase(Univariate):
    """floor, or round."""

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def drop(self) -> float:
        return self.function.drop

    def is_affine(self, lower: Tensor, upper: Tensor) -> Tensor:
        return self._value(lower) == self._value(upper)

    def supporting_slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        middle = 0.5 * (lower + upper)
        below, above = (_hull_slope(self._vertices(lower, upper, below), middle, sign) for below, sign in ((True, 1.0), (False, -1.0)))
        exact = self.is_affine(lower, upper)
        return torch.where(exact, 0.0, below), torch.where(exact, 0.0, above)

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        rise = self._value(upper) - self._value(lower)
        return torch.where(self.is_affine(lower, upper), 0.0, finite(rise / (upper - lower)))

    def lower_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self._extreme(lower, upper, slope, True)

    def upper_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self._extreme(lower, upper, slope, False)

    def _extreme(self, lower: Tensor, upper: Tensor, slope: Tensor, below: bool) -> Tensor:
        sign = -1.0 if below else 1.0
        best = torch.full(np.broadcast_shapes(lower.shape, slope.shape), -torch.inf, dtype=slope.dtype, device=slope.device)
        size = torch.zeros_like(best)
        for x, f in self._vertices(lower, upper, below):
            best = torch.maximum(best, sign * (f - slope * x))
            size = torch.maximum(size, f.abs() + x.abs() * slope.detach().abs())
        found = sign * (best + 8.0 * U64 * size)
        found = torch.where(self.is_affine(lower, upper) & (slope == 0), self._value(lower) + 0 * slope, found)
        return torch.where(found.isfinite(), found, sign * torch.inf)

    def _value(self, x: Tensor) -> Tensor:
        return x.floor() if self.drop == 1.0 else x.round()

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The limits from the left and from the right."""
        if self.drop == 1.0:
            return x.ceil() - 1.0, x.floor()
        middle = x.round()
        return torch.where(x - middle == -0.5, middle - 1.0, middle), torch.where(x - middle == 0.5, middle + 1.0, middle)

    def _vertices(self, lower: Tensor, upper: Tensor, below: bool) -> _Points:
        """The ends and the outer jumps, with the values or limits that are least (`below`) or largest; others repeat the lower end."""
        last, first = self._limits(upper)[0], self._limits(lower)[1]
        start = self._value(lower) if below else first
        points = [(lower, start)]
        for jump in (first + self.drop, last - (1.0 - self.drop)):
            inside = (jump > lower) & (jump < upper)
            points.append((torch.where(inside, jump, lower), torch.where(inside, jump - self.drop + (0.0 if below else 1.0), start)))
        return [*points, (upper, last if below else self._value(upper))]


def _hull_slope(points: _Points, middle: Tensor, sign: float) -> Tensor:
    """The slope over the midpoint of the lower (sign 1) or upper hull of some points."""
    best, slope = torch.full_like(middle, torch.inf), torch.zeros_like(middle)
    for (x, f), (y, h) in combinations(points, 2):
        rise = (h - f) / (y - x)
        value = sign * (f + rise * (middle - x))
        better = (x <= middle) & (y >= middle) & (y > x) & (value < best)
        best, slope = torch.where(better, value, best), torch.where(better, rise, slope)
    return finite(slope)
