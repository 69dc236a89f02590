"""The linear pieces of a piecewise-linear function, derived exactly from its term.

Min, max, abs, sign, sums and multiples of piecewise-linear functions are piecewise linear. So running a term in
`piecewise_algebra`, whose values are piecewise-linear functions with rational coefficients, yields its pieces; nothing is
sampled and nothing is declared twice.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from milpverify.errors import InvalidInput
from milpverify.functions.terms import Algebra, Number, Term, evaluate

Line = tuple[Fraction, Fraction]  # slope, intercept


@dataclass(frozen=True)
class Pieces:
    """f(x) = slopes[i] x + intercepts[i] on [breakpoints[i-1], breakpoints[i]], the outer pieces unbounded; all exact in binary64.

    `values` are f at the breakpoints, which differ from the one-sided limits at jumps only.
    """

    breakpoints: tuple[float, ...]  # K, increasing
    slopes: tuple[float, ...]  # K + 1
    intercepts: tuple[float, ...]  # K + 1
    values: tuple[float, ...]  # K

    def value(self, x: Fraction) -> Fraction:
        """f(x), exactly."""
        k = bisect_left(self.breakpoints, x)
        if k < len(self.breakpoints) and self.breakpoints[k] == x:
            return Fraction(self.values[k])
        return Fraction(self.slopes[k]) * x + Fraction(self.intercepts[k])


RELU = Pieces((0.0,), (0.0, 1.0), (0.0, 0.0), (0.0,))
"""max(x, 0), whatever it is called."""


@dataclass(frozen=True)
class RationalPieces:
    """A piecewise-linear function in exact rationals; `lines` has one entry more than `breakpoints` and `values`."""

    breakpoints: tuple[Fraction, ...]
    lines: tuple[Line, ...]
    values: tuple[Fraction, ...]

    @property
    def jumps(self) -> tuple[Fraction, ...]:
        """The breakpoints where the function is discontinuous."""
        sides = zip(self.breakpoints, self.values, pairwise(self.lines), strict=True)
        return tuple(p for p, value, lines in sides if any(_at(line, p) != value for line in lines))

    def exact(self) -> Pieces:
        """The pieces in binary64.

        Raises:
            InvalidInput: a number that binary64 does not hold exactly: rounding it would make another function of it.
        """

        def convert(numbers: tuple[Fraction, ...], what: str) -> tuple[float, ...]:
            for number in numbers:
                if abs(number) > _LARGEST or Fraction(float(number)) != number:
                    raise InvalidInput(f"the {what} {number} is not exact in binary64; write it as an affine map around an exact function")
            return tuple(float(n) for n in numbers)

        slopes, intercepts = zip(*self.lines, strict=True)
        return Pieces(
            breakpoints=convert(self.breakpoints, "breakpoint"),
            slopes=convert(slopes, "slope"),
            intercepts=convert(intercepts, "intercept"),
            values=convert(self.values, "value"),
        )


_LARGEST = Fraction(float.fromhex("0x1.fffffffffffffp+1023"))


class _NotPiecewiseLinear(Exception):
    """A product of two non-constant lines, a quotient by a non-constant, or a curved operator."""


IDENTITY = RationalPieces((), ((Fraction(1), Fraction(0)),), ())


def derive(term: Term, **values: RationalPieces) -> RationalPieces | None:
    """The pieces of a term in x, and in what else is given as `values`, with numbers for parameters; None if it is not piecewise linear."""
    try:
        return evaluate(term, Algebra(_constant, lambda op: _OPERATORS.get(op, _curved), _curved), {"x": IDENTITY, **values})
    except _NotPiecewiseLinear:
        return None


def _curved(*_: object) -> RationalPieces:
    raise _NotPiecewiseLinear


def _constant(value: Number) -> RationalPieces:
    if not isinstance(value, Fraction):
        raise InvalidInput("an infinite constant is allowed below min and max only, where it has no effect")
    return RationalPieces((), ((Fraction(0), value),), ())


def _at(line: Line, x: Fraction) -> Fraction:
    return line[0] * x + line[1]


def _value(f: RationalPieces, x: Fraction) -> Fraction:
    """f(x) in a rational, the value at a jump included."""
    if x in f.breakpoints:
        return f.values[f.breakpoints.index(x)]
    return _at(_line(f, x), x)


def _line(f: RationalPieces, x: Fraction) -> Line:
    """The line of the piece that holds x, a point that is no breakpoint."""
    return f.lines[sum(p < x for p in f.breakpoints)]


def _inner(points: list[Fraction]) -> list[Fraction]:
    """One point inside each piece that the sorted points cut the line into."""
    if not points:
        return [Fraction(0)]
    return [points[0] - 1, *((a + b) / 2 for a, b in pairwise(points)), points[-1] + 1]


def _combine(
    f: RationalPieces,
    g: RationalPieces,
    on_values: Callable[[Fraction, Fraction], Fraction],
    on_lines: Callable[[Line, Line, Fraction], Line],
    *,
    crossings: bool = False,
) -> RationalPieces:
    """Apply an operation piece by piece; `on_lines` also gets a point inside the piece, to compare the lines there."""
    points = sorted({*f.breakpoints, *g.breakpoints})
    if crossings:
        differences = {(a[0] - b[0], a[1] - b[1]) for x in _inner(points) for a, b in [(_line(f, x), _line(g, x))]}
        points = sorted({*points, *(-intercept / slope for slope, intercept in differences if slope)})
    lines = [on_lines(_line(f, x), _line(g, x), x) for x in _inner(points)]
    values = [on_values(_value(f, p), _value(g, p)) for p in points]
    kept = [i for i, p in enumerate(points) if not (lines[i] == lines[i + 1] and values[i] == _at(lines[i], p))]
    return RationalPieces(tuple(points[i] for i in kept), tuple(lines[i] for i in [*kept, len(points)]), tuple(values[i] for i in kept))


def _product(a: Line, b: Line, _: Fraction) -> Line:
    if a[0] and b[0]:
        raise _NotPiecewiseLinear
    return a[0] * b[1] + a[1] * b[0], a[1] * b[1]


def _quotient(f: RationalPieces, g: RationalPieces) -> RationalPieces:
    if g.breakpoints or g.lines[0][0] or not g.lines[0][1]:
        raise _NotPiecewiseLinear
    return _multiply(f, _constant(1 / g.lines[0][1]))


def _multiply(f: RationalPieces, g: RationalPieces) -> RationalPieces:
    return _combine(f, g, lambda a, b: a * b, _product)


def _subtract(f: RationalPieces, g: RationalPieces) -> RationalPieces:
    return _combine(f, g, lambda a, b: a - b, lambda a, b, _: (a[0] - b[0], a[1] - b[1]))


def _extremum(choose: Callable[[Fraction, Fraction], Fraction]) -> Callable[[RationalPieces, RationalPieces], RationalPieces]:
    def on_lines(a: Line, b: Line, x: Fraction) -> Line:
        return a if choose(_at(a, x), _at(b, x)) == _at(a, x) else b

    return lambda f, g: _combine(f, g, choose, on_lines, crossings=True)


def _signum(f: RationalPieces) -> RationalPieces:
    def sign(a: Fraction) -> Fraction:
        return Fraction((a > 0) - (a < 0))

    return _combine(f, _constant(Fraction(0)), lambda a, _: sign(a), lambda a, _, x: (Fraction(0), sign(_at(a, x))), crossings=True)


def _power(f: RationalPieces, n: int) -> RationalPieces:
    if n < 0:
        raise _NotPiecewiseLinear
    result = _constant(Fraction(1))
    for _ in range(n):
        result = _multiply(result, f)
    return result


_maximum, _minimum = _extremum(max), _extremum(min)
_OPERATORS: dict[str, Callable[..., RationalPieces]] = {
    "+": lambda f, g: _combine(f, g, lambda a, b: a + b, lambda a, b, _: (a[0] + b[0], a[1] + b[1])),
    "-": _subtract,
    "neg": lambda f: _subtract(_constant(Fraction(0)), f),
    "*": _multiply,
    "/": _quotient,
    "pow": _power,
    "min": _minimum,
    "max": _maximum,
    "abs": lambda f: _maximum(f, _subtract(_constant(Fraction(0)), f)),
    "sign": _signum,
}
