"""The inputs within a radius of a point: as a box rounded outwards, which is what is proved about, and as exact distances."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.counterexamples.validate import rounded
from milpverify.errors import InvalidInput
from milpverify.spec import Array, Box

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    Clip = tuple[ArrayLike, ArrayLike]
    """The ends of the range that inputs have anyway: numbers, or one per feature."""

FAR = 2.0**20
"""Without a clip, inputs further away than so many times the largest entry of the centre (or 1) are not looked at."""


class Norm(Enum):
    """How distances are measured."""

    LINF = "linf"
    L1 = "l1"
    L2 = "l2"

    @staticmethod
    def of(name: str | Norm) -> Norm:
        """The norm of a name, if balls of it are supported.

        Raises:
            InvalidInput: they are not, or there is none.
        """
        try:
            norm = Norm(name)
        except ValueError:
            raise InvalidInput(f"unknown norm {name!r}; there is linf") from None
        if norm is not Norm.LINF:
            raise InvalidInput(f"the norm {norm.value} is not supported yet: balls are boxes so far; use norm='linf'")
        return norm


@dataclass(frozen=True, eq=False)
class Ball:
    """The balls of all radii around a point: |x_i - centre_i| <= radius weight_i, low_i <= x_i <= high_i.

    All (nx,) float64, which are the exact problem; `low` and `high` may be infinite. A feature of weight 0 does not change.
    """

    centre: Array
    weight: Array
    low: Array
    high: Array
    shape: tuple[int, ...]

    @staticmethod
    def around(centre: Array, features: Any = None, clip: Clip | None = None, norm: str | Norm = Norm.LINF) -> Ball:
        """Checked parts as a ball.

        Args:
            features: which features may change (a mask), or by how much more than others (a weight each).

        Raises:
            InvalidInput: numbers that are NaN or infinite, weights below 0 or all 0, a centre outside the clip, an unsupported norm.
        """
        Norm.of(norm)
        x = centre.reshape(-1)
        if (bad := np.flatnonzero(~np.isfinite(x))).size:
            raise InvalidInput(f"the input's entry {bad[0]} is no finite number: {x[bad[0]]}")
        weight = _per_feature(1.0 if features is None else features, centre.shape, "features")
        if not (np.isfinite(weight) & (weight >= 0)).all():
            raise InvalidInput("features must be a mask, or weights that are numbers >= 0")
        if not weight.any():
            raise InvalidInput("features leaves no feature that may change")
        low, high = (_per_feature(end, centre.shape, "clip") for end in ((-math.inf, math.inf) if clip is None else clip))
        if np.isnan(low).any() or np.isnan(high).any():
            raise InvalidInput("the ends of clip must be numbers")
        if (bad := np.flatnonzero(~((low <= x) & (x <= high)))).size:
            i = bad[0]
            raise InvalidInput(f"the input's entry {i} is {x[i]:.9g}, outside clip, which is [{low[i]:.9g}, {high[i]:.9g}] there")
        ball = Ball(x, weight, low, high, centre.shape)
        with np.errstate(over="ignore"):
            if not np.isfinite(ball.reach * weight).all():
                raise InvalidInput("the input, or the weights of its features, are too large or too small for radii to be numbers")
        return ball

    def box(self, radius: float) -> Box:
        """The smallest box of float64 numbers that is sure to contain the ball."""
        reach = np.where(self.weight > 0, np.nextafter(radius * self.weight, math.inf), 0.0) if radius else np.zeros_like(self.weight)
        moves = reach > 0
        lower = np.where(moves, np.nextafter(self.centre - reach, -math.inf), self.centre)
        upper = np.where(moves, np.nextafter(self.centre + reach, math.inf), self.centre)
        lower, upper = np.maximum(lower, self.low), np.minimum(upper, self.high)
        return Box(lower.reshape(self.shape), upper.reshape(self.shape))

    @property
    def bounded(self) -> bool:
        """Whether the clip ends the ball in every direction."""
        moves = self.weight > 0
        return bool(np.isfinite(self.low[moves]).all() and np.isfinite(self.high[moves]).all())

    @cached_property
    def reach(self) -> float:
        """A radius whose ball is all of the clip; where that has no end, the one beyond which nothing is looked at."""
        moves = self.weight > 0
        x, weight = self.centre[moves], self.weight[moves]
        if not self.bounded:
            return FAR * max(1.0, float(np.abs(self.centre).max())) / float(weight.max())
        far = np.maximum(np.nextafter(x - self.low[moves], math.inf), np.nextafter(self.high[moves] - x, math.inf))
        return float(np.nextafter(far / weight, math.inf).max())

    def distance(self, x: Array) -> float:
        """The radius of the smallest ball that contains x (nx,), in rationals, rounded up; infinite where none does."""
        if not ((self.low <= x) & (x <= self.high)).all():
            return math.inf
        away: list[Fraction] = []
        for a, b, weight in zip(x.tolist(), self.centre.tolist(), self.weight.tolist(), strict=True):
            if a != b:
                if weight == 0:
                    return math.inf
                away.append(abs(Fraction(a) - Fraction(b)) / Fraction(weight))
        return rounded(max(away, default=Fraction(0)), math.inf)


def _per_feature(values: Any, shape: tuple[int, ...], name: str) -> Array:
    """One number per feature, flat."""
    try:
        given = np.asarray(values, dtype=np.float64)
        return np.array(np.broadcast_to(given, shape) if given.size != math.prod(shape) else given, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} must be a number, or one per feature; the input has the shape {shape}") from None
