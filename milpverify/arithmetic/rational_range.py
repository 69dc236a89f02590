"""Interval arithmetic on rationals: exact, but for square roots, which are rounded outwards. An infinite end means "unbounded"."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Final, NamedTuple

Number = Fraction | float  # a float only for +-inf
_ROOT_BITS: Final = 64  # of square roots, at least


class Range(NamedTuple):
    """The reals between two ends."""

    lower: Number
    upper: Number

    def __contains__(self, value: object) -> bool:
        return isinstance(value, Fraction | int) and self.lower <= value <= self.upper

    @property
    def bounded(self) -> bool:
        """Whether both ends are finite."""
        return self.lower != -math.inf and self.upper != math.inf

    @property
    def size(self) -> Number:
        """The largest absolute value."""
        return max(-self.lower, self.upper)

    def meet(self, other: Range) -> Range:
        """What both contain, or, where they contain nothing in common, a point of this one."""
        lower = max(self.lower, other.lower)
        return Range(lower, max(lower, min(self.upper, other.upper)))

    def rounded(self, bits: int) -> Range:
        """The ends rounded outwards to so many significant bits."""
        return Range(_down(self.lower, bits), -_down(-self.upper, bits))


UNBOUNDED = Range(-math.inf, math.inf)


def point(value: Fraction) -> Range:
    """[value, value]."""
    return Range(value, value)


def between(lower: float, upper: float) -> Range:
    """The range between two floats, as they are; NaN is no end."""
    low, high = (Fraction(v) if math.isfinite(v) else v for v in (lower, upper))
    return Range(-math.inf if low != low else low, math.inf if high != high else high)


def floats(a: Range) -> tuple[float, float]:
    """The ends as floats, rounded outwards."""
    return _float_down(a.lower), -_float_down(-a.upper)


def _float_down(value: Number) -> float:
    try:
        nearest = float(value)
    except OverflowError:
        return math.nextafter(math.inf, 0.0) if value > 0 else -math.inf
    return nearest if nearest <= value else math.nextafter(nearest, -math.inf)


def _down(value: Number, bits: int) -> Number:
    if isinstance(value, float) or not value:
        return value
    unit = Fraction(2) ** (abs(value.numerator).bit_length() - value.denominator.bit_length() - bits)
    return (value // unit) * unit


def _plus(a: Number, b: Number) -> Number:
    return a if isinstance(a, float) else b if isinstance(b, float) else a + b


def _times(a: Number, b: Number) -> Number:
    if not a or not b:
        return Fraction(0)
    if isinstance(a, float) or isinstance(b, float):
        return math.inf if (a > 0) == (b > 0) else -math.inf
    return a * b


def _inverse(a: Number) -> Number:
    return Fraction(0) if isinstance(a, float) else 1 / a


def add(a: Range, b: Range) -> Range:
    """a + b."""
    return Range(_plus(a.lower, b.lower), _plus(a.upper, b.upper))


def neg(a: Range) -> Range:
    """-a."""
    return Range(-a.upper, -a.lower)


def sub(a: Range, b: Range) -> Range:
    """a - b."""
    return add(a, neg(b))


def mul(a: Range, b: Range) -> Range:
    """a * b."""
    products = [_times(x, y) for x in a for y in b]
    return Range(min(products), max(products))


def reciprocal(a: Range) -> Range:
    """1 / a; unbounded on the side where a touches zero, on both sides where it contains zero inside."""
    if a.lower < 0 < a.upper or a.lower == a.upper == 0:
        return UNBOUNDED
    return Range(_inverse(a.upper) if a.upper else -math.inf, _inverse(a.lower) if a.lower else math.inf)


def div(a: Range, b: Range) -> Range:
    """a / b."""
    return mul(a, reciprocal(b))


def absolute(a: Range) -> Range:
    """|a|."""
    return Range(max(a.lower, -a.upper, Fraction(0)), a.size)


def power(a: Range, n: int) -> Range:
    """a ** n for an integer n."""
    if n < 0:
        return reciprocal(power(a, -n))
    lower, upper = a if n % 2 else absolute(a)
    return Range(lower**n, upper**n) if n else point(Fraction(1))


def minimum(a: Range, b: Range) -> Range:
    """min(a, b)."""
    return Range(min(a.lower, b.lower), min(a.upper, b.upper))


def maximum(a: Range, b: Range) -> Range:
    """max(a, b)."""
    return Range(max(a.lower, b.lower), max(a.upper, b.upper))


def sign(a: Range) -> Range:
    """The values of sign on a: -1, 0 or 1."""
    low, high = (Fraction((end > 0) - (end < 0)) for end in a)
    return Range(low, high)


def sqrt(a: Range) -> Range:
    """The square root; unbounded where a contains negative numbers."""
    return UNBOUNDED if a.lower < 0 else Range(_root(a.lower, up=False), _root(a.upper, up=True))


def _root(value: Number, up: bool) -> Number:
    if isinstance(value, float) or not value:
        return value
    shift = _ROOT_BITS - (value.numerator.bit_length() - value.denominator.bit_length()) // 2
    scaled = value * Fraction(4) ** shift
    root = math.isqrt(math.floor(scaled))
    return (root + (up and root * root != scaled)) * Fraction(2) ** -shift


OPERATORS: dict[str, Callable[..., Range]] = {
    "+": add,
    "-": sub,
    "neg": neg,
    "*": mul,
    "/": div,
    "pow": power,
    "min": minimum,
    "max": maximum,
    "abs": absolute,
    "sign": sign,
    "sqrt": sqrt,
}
