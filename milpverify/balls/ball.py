"""Balls around a point, and which points lie in them: exactly, in rationals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milpverify.balls.norm import Norm
from milpverify.errors import InvalidProperty
from milpverify.tuning import Tuning

Array = NDArray[np.float64]


class BallTuning(Tuning):
    """How points of balls are found, and multipliers for bounds over balls and half-spaces."""

    of_runs = False

    pulls: tuple[float, ...] = (0.0, 2.0**-52, 2.0**-50, 2.0**-46, 2.0**-40, 2.0**-30, 2.0**-20)
    """By which shares points are moved further inwards until, with all that was rounded, they lie inside."""
    sparse: float = 0.1
    """Steps in an L1 ball change the features whose derivatives are so large a share of the largest one at least, less and less of them."""
    newton: int = 12
    """Steps for the multiplier of an L2 ball at most, which stay where it is known to lie; most rows need one or two."""
    close: float = 2.0**-20
    """Steps that change it by less than this share end them: an error in it is felt squared."""
    sweeps: int = 2
    """How often the multiplier of every half-space has its turn where there are several."""
    steps: int = 14
    centring: float = 0.1
    most: int = 1 << 32
    """Steps of the interior point method, by what each shall shrink the gap, and the multiplications of all systems that it may solve."""


@dataclass(frozen=True, eq=False)
class Ball:
    """The inputs x with |(x_i - centre_i) / weight_i| at most `radius` in a norm, and lower <= x <= upper.

    `centre`, `weight`, `lower`, `upper` (nx,) float64; the numbers are the exact set. An input of weight 0 does not change. `shape` is the
    one that the centre was given in.

    Raises:
        InvalidProperty: an unknown norm; a centre that is not finite; a radius or a weight that is negative or not finite; shapes that do
            not fit; limits that are NaN, or that exclude the whole ball in some input.
    """

    centre: Array
    radius: float
    norm: Norm
    weight: Array
    lower: Array
    upper: Array
    shape: tuple[int, ...]

    def __init__(
        self,
        centre: ArrayLike,
        radius: float,
        norm: str | Norm = Norm.L2,
        lower: ArrayLike = -math.inf,
        upper: ArrayLike = math.inf,
        weight: ArrayLike = 1.0,
    ) -> None:
        try:
            given, r = np.asarray(centre, dtype=np.float64), float(radius)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidProperty(f"a ball has a centre of numbers and one number as its radius: {error}") from None
        x = given.reshape(-1).copy()
        if (bad := np.flatnonzero(~np.isfinite(x))).size:
            raise InvalidProperty(f"the centre of the ball is no finite number at input X_{bad[0]}: {x[bad[0]]}")
        if not 0.0 <= r < math.inf:
            raise InvalidProperty(f"the radius of the ball must be a number >= 0, not {radius}")
        parts = {"weight": weight, "lower": lower, "upper": upper}
        w, low, high = (_per_input(values, given.shape, name) for name, values in parts.items())
        if not (np.isfinite(w) & (w >= 0)).all():
            raise InvalidProperty("the weights of the ball must be numbers >= 0")
        if np.isnan(low).any() or np.isnan(high).any():
            raise InvalidProperty("the limits of the ball must be numbers")
        values = (("centre", x), ("radius", r), ("norm", Norm.of(norm)), ("weight", w), ("lower", low), ("upper", high))
        for name, value in (*values, ("shape", given.shape)):
            object.__setattr__(self, name, value)
        first, last = self.ends
        if (bad := np.flatnonzero(~(first <= last))).size:
            i = bad[0]
            raise InvalidProperty(
                f"the ball has no point within its limits: input X_{i} is near {x[i]:.9g}, and its limits are [{low[i]:.9g}, {high[i]:.9g}]"
            )
        if not (np.isfinite(first).all() and np.isfinite(last).all()):
            raise InvalidProperty("the ball is too large: its ends are no finite numbers")

    @property
    def size(self) -> int:
        """The number of inputs."""
        return len(self.centre)

    @cached_property
    def ends(self) -> tuple[Array, Array]:
        """The smallest box of float64 numbers that is sure to contain the ball: (nx,) each."""
        with np.errstate(over="ignore"):
            reach = np.where(self.weight > 0, np.nextafter(self.radius * self.weight, math.inf), 0.0) if self.radius else 0.0 * self.weight
            low = np.where(reach > 0, np.nextafter(self.centre - reach, -math.inf), self.centre)
            high = np.where(reach > 0, np.nextafter(self.centre + reach, math.inf), self.centre)
        return np.maximum(low, self.lower), np.minimum(high, self.upper)

    def contains(self, x: Array) -> bool:
        """Whether x (nx,) lies within the radius, in rationals; of the limits nothing is said."""
        away = self._away(x)
        r = Fraction(self.radius)
        return away is not None and self.norm.total(away) <= (r * r if self.norm is Norm.L2 else r)

    def distance(self, x: Array) -> float:
        """The radius of the smallest ball around the centre that contains x (nx,), rounded up; infinite where none does."""
        away = self._away(x)
        return math.inf if away is None else rounded_up(self.norm.total(away), root=self.norm is Norm.L2)

    def pulled(self, x: Array, tuning: BallTuning = BallTuning()) -> Array:
        """x, or where it lies outside, the point on the way to the centre at which the ball begins, as closely as float64 tells."""
        if self.contains(x):
            return x
        x = np.where(self.weight > 0, x, self.centre)
        share = self.radius / far if (far := self.distance(x)) < math.inf else 0.0
        for less in tuning.pulls:
            inner: Array = self.centre + min(share, 1.0) * (1.0 - less) * (x - self.centre)
            if self.contains(inner):
                return inner
        return self.centre.copy()

    def _away(self, x: Array) -> list[Fraction] | None:
        """How far every input is from the centre, in units of its weight; None where one that does not change has changed."""
        away: list[Fraction] = []
        for a, b, weight in zip(x.tolist(), self.centre.tolist(), self.weight.tolist(), strict=True):
            if a != b:
                if weight == 0 or not math.isfinite(a):
                    return None
                away.append(abs(Fraction(a) - Fraction(b)) / Fraction(weight))
        return away


def rounded_up(value: Fraction, root: bool = False) -> float:
    """A rational >= 0, or its root, as a float64 that is not smaller."""
    try:
        found = float(value)
    except OverflowError:
        return math.inf
    if root:
        found = math.sqrt(found)
    while found < math.inf and Fraction(found) ** (2 if root else 1) < value:
        found = math.nextafter(found, math.inf)
    return found


def _per_input(values: ArrayLike, shape: tuple[int, ...], name: str) -> Array:
    """One number per input, flat."""
    try:
        given = np.asarray(values, dtype=np.float64)
        full = given if given.size == math.prod(shape) else np.broadcast_to(given, shape)
    except (TypeError, ValueError):
        raise InvalidProperty(f"{name} must be a number, or one per input; the centre has the shape {shape}") from None
    return np.array(full, dtype=np.float64).reshape(-1)
