"""Midpoint-radius arithmetic on float64 arrays, in numpy: matrices whose entries are known up to a proved error.

An entry is any real number within `radius` of `middle`. Products of matrices cost a few products of float64 matrices and have the a-priori
error bound of inner products, however they are summed (S. M. Rump, Fast and parallel interval arithmetic, BIT 39, 1999; N. J. Higham,
Accuracy and Stability of Numerical Algorithms, section 3). Library functions are taken to be good to 8 units in the last place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

U: Final = 2.0**-53
LIBRARY: Final = 2.0**-49
TINY: Final = 2.0**-1000  # far more than underflow costs a sum of products
SPARE: Final = 1.0 + 2.0**-40
"""Radii are computed in float64, too, by far fewer operations than this covers: see `gamma`."""


def gamma(terms: int) -> float:
    """More than n u / (1 - n u), for inner products of so many terms."""
    return (terms + 8) * U * SPARE


@dataclass(frozen=True, eq=False)
class Balls:
    """Numbers within `radius` of `middle`, two arrays of one shape."""

    middle: Array
    radius: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of either array."""
        return self.middle.shape

    @property
    def size(self) -> Array:
        """At least the largest absolute value."""
        found: Array = (np.abs(self.middle) + self.radius) * SPARE
        return found

    @property
    def lower(self) -> Array:
        """At most the least value."""
        found: Array = np.nextafter(self.middle - self.radius, -np.inf)
        return found

    @property
    def upper(self) -> Array:
        """At least the largest value."""
        found: Array = np.nextafter(self.middle + self.radius, np.inf)
        return found

    def __getitem__(self, index: Any) -> Balls:
        return Balls(self.middle[index], self.radius[index])

    def __add__(self, other: Balls) -> Balls:
        middle = self.middle + other.middle
        return Balls(middle, (self.radius + other.radius + U * np.abs(middle)) * SPARE)

    def __sub__(self, other: Balls) -> Balls:
        return self + -other

    def __neg__(self) -> Balls:
        return Balls(-self.middle, self.radius)

    def __mul__(self, other: Balls) -> Balls:
        middle = self.middle * other.middle
        size = np.abs(self.middle)
        under = TINY * ((self.middle != 0) & (other.middle != 0))
        radius = size * other.radius + self.radius * (np.abs(other.middle) + other.radius) + U * np.abs(middle) + under
        return Balls(middle, radius * SPARE)

    def __matmul__(self, other: Balls) -> Balls:
        middle = self.middle @ other.middle
        left, right = np.abs(self.middle), np.abs(other.middle)
        charge = gamma(self.shape[-1])
        radius = left @ (other.radius + charge * right)
        if self.radius.any():
            radius = radius + self.radius @ (right + other.radius)
        return Balls(middle, radius * (SPARE + 2 * charge) + TINY)


def exactly(values: Array) -> Balls:
    """The numbers themselves."""
    return Balls(values, np.zeros_like(values))


def stacked(parts: list[Balls], axis: int = 0) -> Balls:
    """Arrays one after the other."""
    return Balls(np.concatenate([part.middle for part in parts], axis), np.concatenate([part.radius for part in parts], axis))


def sin_cos(angle: Balls) -> tuple[Balls, Balls]:
    """The sine and the cosine."""
    values = np.sin(angle.middle), np.cos(angle.middle)
    sin, cos = (Balls(value, (LIBRARY * np.abs(value) + angle.radius + TINY) * SPARE) for value in values)
    return sin, cos


def reach(matrix: Balls, radius: Array | None = None) -> Array:
    """(rows,): at least the largest |A x| over all |x| <= radius (columns,), of 1 where none is given."""
    size = np.abs(matrix.middle) + matrix.radius
    found: Array = size.sum(-1) if radius is None else size @ radius
    return found * (SPARE + 4 * gamma(matrix.shape[-1])) + TINY
