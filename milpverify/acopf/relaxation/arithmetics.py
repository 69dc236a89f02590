"""Two arithmetics for one set of formulas: float64 arrays, which a linear program is made of, and exact rationals, which check it.

The rows of the relaxation (`relaxation.py`) are written once, with +, -, * and comparisons only. What is irrational in them (square
roots, cosines, tangents) comes from here, already rounded to the safe side: in float64 by more units in the last place than libraries
are off by, in balls (python-flint) where the answer has to be beyond doubt.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
"""float64, or object arrays of `flint.fmpq`."""

NUDGE: Final = 2.0**-49  # relative: 8 units in the last place; numpy's functions are good to 4 in the worst case
ENDLESS: Final = 2.0**1000
"""What stands for infinity among rationals, which have none: whatever is as large is no bound."""
WIDE: Final = 1.5
"""rad: half a range of angles that is wider than this has no tangent worth speaking of."""


@dataclass(frozen=True, eq=False)
class Sector:
    """Ranges [lower, upper] of angle differences d as sectors, (P,) each: |d - turn| <= half, up to `slip`.

    `turn` = 2 atan(quarter), so that (1 - quarter^2, 2 quarter) / (1 + quarter^2) are its cosine and sine without any rounding.
    `cosine` is at most cos(half), `tangent` at least tan(half), and |tan(x) - slope x| <= error for |x| <= half. Where `narrow` is
    False the sector is too wide for lines, and these are not to be used.
    """

    narrow: NDArray[np.bool_]
    quarter: Values
    turn: Values
    slip: Values
    cosine: Values
    tangent: Values
    slope: Values
    error: Values


class Numbers(ABC):
    """An arithmetic: how float64 data enter it, how functions are rounded, and the share `slack` of its terms by which a row is widened.

    Functions act entry by entry, on arrays of any one shape.
    """

    slack: float

    @abstractmethod
    def of(self, values: Any) -> Values:
        """Float64 numbers, exactly."""

    @abstractmethod
    def apply(self, function: str, values: Values, up: bool) -> Values:
        """One of "sqrt", "cos", "sin", "tan", "atan" of every value, rounded up or down."""

    @abstractmethod
    def quotient(self, a: Values, b: Values, up: bool) -> Values:
        """a / b rounded up or down."""

    @abstractmethod
    def slip(self, quarter: Values, turn: Values) -> Values:
        """At least |2 atan(quarter) - turn|."""

    @abstractmethod
    def turned(self, values: Values, up: bool) -> Values:
        """A sum or product of a few numbers of this arithmetic, moved up or down by what its rounding may have been."""

    def sector(self, lower: Values, upper: Values) -> Sector:
        """The sectors of ranges of angles, (P,) each."""
        low, high = np.asarray(lower, dtype=np.float64), np.asarray(upper, dtype=np.float64)
        quarter = np.tan((low + high) / 4)
        turn = 2 * np.arctan(quarter)  # the float nearest to the real one, up to slip
        slip, middle = self.slip(quarter, turn), self.of(turn)
        least, most = self.of(np.full(len(low), 2.0**-60)), self.of(np.full(len(low), WIDE))
        half = self.turned(np.maximum(upper - middle, middle - lower), True)  # in this arithmetic: a float64 may lie inside its range's end
        narrow = np.array(half < most, dtype=bool)
        inside = self.turned(np.where(narrow, np.maximum(half + slip, least), most), True)
        cosine, tangent = self.apply("cos", inside, False), self.apply("tan", inside, True)
        # kx - tan(x) is concave on [0, half], with its maximum at cos(x)^2 = 1/k; k is such that it is what tan(half) - k half is.
        width = np.asarray(inside, dtype=np.float64)
        secant = np.tan(width) / width
        best = np.minimum(width, np.arccos(np.minimum(1.0, 1 / np.sqrt(secant))))
        k = secant - (secant * best - np.tan(best)) / (2 * width)
        peak = np.minimum(width, np.arccos(np.minimum(1.0, 1 / np.sqrt(np.maximum(k, 1.0)))))
        slope, at = self.of(k), self.of(peak)
        low_tan, high_tan = self.apply("tan", at, False), self.apply("tan", at, True)
        derivative = slope - 1 - low_tan * low_tan  # at the peak, up to its rounding: the rest of the concave function lies below
        other = slope - 1 - high_tan * high_tan
        steep = np.maximum(np.maximum(derivative, -derivative), np.maximum(other, -other))
        interior = slope * at - low_tan + steep * np.maximum(inside, at)
        error = self.turned(np.maximum(interior, tangent - slope * inside), True) + self.of(np.full(len(k), 2.0**-50))
        return Sector(narrow, self.of(quarter), self.of(turn), slip, cosine, tangent, slope, error)


_FUNCTIONS: dict[str, Callable[[Values], Values]] = {"sqrt": np.sqrt, "cos": np.cos, "sin": np.sin, "tan": np.tan, "atan": np.arctan}


class Floats(Numbers):
    """float64, functions moved outwards by NUDGE, rows by `slack`."""

    slack = 2.0**-44

    def of(self, values: Any) -> Values:
        return np.asarray(values, dtype=np.float64)

    def apply(self, function: str, values: Values, up: bool) -> Values:
        return self.turned(_FUNCTIONS[function](values), up)

    def quotient(self, a: Values, b: Values, up: bool) -> Values:
        return self.turned(a / b, up)

    def slip(self, quarter: Values, turn: Values) -> Values:
        return NUDGE * (1 + np.abs(turn))

    def turned(self, values: Values, up: bool) -> Values:
        step = NUDGE * np.abs(values) + 2.0**-1000
        return values + step if up else values - step


class Rationals(Numbers):
    """Object arrays of `flint.fmpq`; functions are enclosed in balls and rounded to float64 numbers outside them."""

    slack = 0.0

    def of(self, values: Any) -> Values:
        import flint

        array = np.asarray(values)
        if array.dtype == object:
            return array
        flat = [flint.fmpq(*float(v).as_integer_ratio()) if math.isfinite(v) else _endless(v) for v in array.ravel().tolist()]
        return _objects(flat).reshape(array.shape)

    def apply(self, function: str, values: Values, up: bool) -> Values:
        import flint

        return self._rounded([getattr(flint.arb(v), function)() for v in values.tolist()], up)

    def quotient(self, a: Values, b: Values, up: bool) -> Values:
        return _objects([x / y for x, y in zip(a.tolist(), b.tolist(), strict=True)])

    def slip(self, quarter: Values, turn: Values) -> Values:
        import flint

        pairs = zip(self.of(quarter).tolist(), self.of(turn).tolist(), strict=True)
        return self._rounded([abs(2 * flint.arb(q).atan() - flint.arb(t)) for q, t in pairs], True)

    def turned(self, values: Values, up: bool) -> Values:
        return values

    def _rounded(self, balls: list[Any], up: bool) -> Values:
        return self.of([ball_end(ball, up) for ball in balls])


def ball_end(ball: Any, up: bool) -> float:
    """A float64 at or beyond the upper or lower end of an `arb`; infinite where it has none."""
    end = float((ball.upper() if up else ball.lower()).mid())
    if math.isnan(end):
        return math.inf if up else -math.inf
    return math.nextafter(end, math.inf if up else -math.inf)


def _endless(value: float) -> Any:
    import flint

    if math.isnan(value):
        raise ValueError("not a number")
    return flint.fmpq(int(ENDLESS)) if value > 0 else flint.fmpq(-int(ENDLESS))


def _objects(values: list[Any]) -> Values:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


FLOATS, RATIONALS = Floats(), Rationals()
