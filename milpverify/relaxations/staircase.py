"""Linear relaxations of floor, whose pieces are too many to list: f(x) - k x is least or largest at an end or at an outer jump.

On [l, u] with the jumps m1 <= ... <= m2 the infimum over the part below a jump m is its limit (m - 1) - k m, the supremum above is
m - k m; both are linear in m, so that the outer jumps are enough.
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
    """floor."""

    @property
    def span(self) -> tuple[float, float]:
        return 0.0, math.inf

    def is_affine(self, lower: Tensor, upper: Tensor) -> Tensor:
        return lower.floor() == upper.floor()

    def supporting_slopes(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        middle = 0.5 * (lower + upper)
        below, above = (_hull_slope(_vertices(lower, upper, side), middle, sign) for side, sign in ((-1.0, 1.0), (0.0, -1.0)))
        exact = self.is_affine(lower, upper)
        return torch.where(exact, 0.0, below), torch.where(exact, 0.0, above)

    def chord(self, lower: Tensor, upper: Tensor) -> Tensor:
        return torch.where(self.is_affine(lower, upper), 0.0, finite((upper.floor() - lower.floor()) / (upper - lower)))

    def lower_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self._extreme(lower, upper, slope, -1.0)

    def upper_intercept(self, lower: Tensor, upper: Tensor, slope: Tensor) -> Tensor:
        return self._extreme(lower, upper, slope, 0.0)

    def _extreme(self, lower: Tensor, upper: Tensor, slope: Tensor, side: float) -> Tensor:
        sign = -1.0 if side else 1.0
        best = torch.full(np.broadcast_shapes(lower.shape, slope.shape), -torch.inf, dtype=slope.dtype, device=slope.device)
        size = torch.zeros_like(best)
        for x, f in _vertices(lower, upper, side):
            best = torch.maximum(best, sign * (f - slope * x))
            size = torch.maximum(size, f.abs() + x.abs() * slope.detach().abs())
        found = sign * (best + 8.0 * U64 * size)
        found = torch.where(self.is_affine(lower, upper) & (slope == 0), lower.floor() + 0 * slope, found)
        return torch.where(found.isfinite(), found, sign * torch.inf)


def _vertices(lower: Tensor, upper: Tensor, side: float) -> _Points:
    """The ends and the outer jumps, with the limits from below (side -1) or the values (side 0); a jump outside repeats the lower end."""
    points = [(lower, lower.floor())]
    for jump in (lower.floor() + 1.0, upper.floor()):
        inside = (jump > lower) & (jump <= upper)
        points.append((torch.where(inside, jump, lower), torch.where(inside, jump + side, lower.floor())))
    return [*points, (upper, upper.floor())]


def _hull_slope(points: _Points, middle: Tensor, sign: float) -> Tensor:
    """The slope over the midpoint of the lower (sign 1) or upper hull of some points."""
    best, slope = torch.full_like(middle, torch.inf), torch.zeros_like(middle)
    for (x, f), (y, h) in combinations(points, 2):
        rise = (h - f) / (y - x)
        value = sign * (f + rise * (middle - x))
        better = (x <= middle) & (y >= middle) & (y > x) & (value < best)
        best, slope = torch.where(better, value, best), torch.where(better, rise, slope)
    return finite(slope)
