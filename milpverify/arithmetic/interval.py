"""Outward-rounded interval arithmetic on float64 tensors.

An operation returns an interval that contains every real result for operands in its arguments. IEEE operations are widened
by one unit in the last place unless they are exact; library functions by 8 units (torch's are good to 1 or 2 on the CPU, to
5 on CUDA). Infinite ends mean "unbounded", so 0 * inf is 0, and an operation that leaves its domain is unbounded, never NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import down, up

LARGEST = torch.finfo(torch.float64).max
_RELATIVE: Final = 2.0**-49  # 8 units in the last place
_ABSOLUTE: Final = 2.0**-1022  # subnormal results may be flushed to zero


class Interval(NamedTuple):
    """The reals between two float64 tensors of one shape; an end of -inf or inf means unbounded."""

    lower: Tensor
    upper: Tensor


def point(x: Tensor) -> Interval:
    """[x, x], elementwise; an infinite x stands for everything beyond the largest float."""
    return Interval(x.clamp(max=LARGEST), x.clamp(min=-LARGEST))


def _bounded(lower: Tensor, upper: Tensor) -> Interval:
    """Undefined ends are unbounded."""
    return Interval(torch.where(lower.isnan(), -math.inf, lower), torch.where(upper.isnan(), math.inf, upper))


def _sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b and whether that is exact: the rounding error of a sum is what its larger operand and the sum leave of the other."""
    s = a + b
    return s, (s - a == b) & (s - b == a)


def add(a: Interval, b: Interval) -> Interval:
    """a + b."""
    (lower, below), (upper, above) = _sum(a.lower, b.lower), _sum(a.upper, b.upper)
    return _bounded(torch.where(below, lower, down(lower)), torch.where(above, upper, up(upper)))


def neg(a: Interval) -> Interval:
    """-a, exact."""
    return Interval(-a.upper, -a.lower)


def sub(a: Interval, b: Interval) -> Interval:
    """a - b."""
    return add(a, neg(b))


def product(a: Tensor, b: Tensor) -> Interval:
    """The float neighbours of a * b, with broadcasting and 0 * inf = 0; exact where a factor is 0 or +-1, and never across zero."""
    zero = (a == 0) | (b == 0)
    p = torch.where(zero, 0.0, a * b)
    exact = zero | (a.abs() == 1) | (b.abs() == 1)
    positive = (a > 0) == (b > 0)
    lower, upper = down(p), up(p)
    return Interval(
        torch.where(exact, p, torch.where(positive, lower.clamp(min=0.0), lower)),
        torch.where(exact, p, torch.where(positive, upper, upper.clamp(max=0.0))),
    )


def mul(a: Interval, b: Interval) -> Interval:
    """a * b."""
    products = [product(x, y) for x in a for y in b]
    return Interval(
        functools.reduce(torch.minimum, (p.lower for p in products)), functools.reduce(torch.maximum, (p.upper for p in products))
    )


def reciprocal(a: Interval) -> Interval:
    """1 / a; unbounded on the side where a touches zero, on both sides where it contains zero inside."""

    def rounded(x: Tensor) -> Interval:
        r = 1.0 / x
        exact, positive = x.abs() == 1, x > 0
        lower, upper = down(r), up(r)
        return Interval(
            torch.where(exact, r, torch.where(positive, lower.clamp(min=0.0), lower)),
            torch.where(exact, r, torch.where(positive, upper, upper.clamp(max=0.0))),
        )

    lower, upper = rounded(a.upper).lower, rounded(a.lower).upper
    negative, positive = a.upper < 0, a.lower > 0  # else a contains or touches zero
    lower = torch.where(negative | positive | ((a.lower == 0) & (a.upper > 0)), lower, -math.inf)
    upper = torch.where(negative | positive | ((a.upper == 0) & (a.lower < 0)), upper, math.inf)
    return _bounded(lower, upper)


def div(a: Interval, b: Interval) -> Interval:
    """a / b."""
    return mul(a, reciprocal(b))


def absolute(a: Interval) -> Interval:
    """|a|, exact."""
    crossing = (a.lower <= 0) & (a.upper >= 0)
    low, high = a.lower.abs(), a.upper.abs()
    return Interval(torch.where(crossing, 0.0, torch.minimum(low, high)), torch.maximum(low, high))


def power(a: Interval, n: int) -> Interval:
    """a ** n for an integer n; odd powers are tight where a does not contain zero inside."""
    if n < 0:
        return reciprocal(power(a, -n))
    if n % 2:
        return mul(a, power(a, n - 1)) if n > 1 else a
    size, one = absolute(a), torch.ones_like(a.lower)
    return functools.reduce(mul, [size] * n, Interval(one, one))


def minimum(a: Interval, b: Interval) -> Interval:
    """min(a, b), exact."""
    return Interval(torch.minimum(a.lower, b.lower), torch.minimum(a.upper, b.upper))


def maximum(a: Interval, b: Interval) -> Interval:
    """max(a, b), exact."""
    return Interval(torch.maximum(a.lower, b.lower), torch.maximum(a.upper, b.upper))


def sign(a: Interval) -> Interval:
    """The values of sign on a: -1, 0 or 1."""
    return Interval(torch.sign(a.lower), torch.sign(a.upper))


def _rounded(function: Callable[[Tensor], Tensor], x: Tensor) -> Interval:
    """The library's f(x) with its margin; exact where f(0) = 0. An overflow to +-inf only says "beyond the largest float"."""
    y = function(x)
    exact = (x == 0) & (y == 0)
    least, most = y.clamp(max=LARGEST), y.clamp(min=-LARGEST)
    lower, upper = least - (least.abs() * _RELATIVE + _ABSOLUTE), most + (most.abs() * _RELATIVE + _ABSOLUTE)
    return _bounded(torch.where(exact, y, lower), torch.where(exact, y, upper))


def _increasing(function: Callable[[Tensor], Tensor], low: float = -math.inf, high: float = math.inf) -> Callable[[Interval], Interval]:
    """The interval version of an increasing library function with values in [low, high]."""

    def operator(a: Interval) -> Interval:
        return Interval(_rounded(function, a.lower).lower.clamp(low, high), _rounded(function, a.upper).upper.clamp(low, high))

    return operator


def _wave(function: Callable[[Tensor], Tensor]) -> Callable[[Interval], Interval]:
    """sin or cos around the lower end, with Lipschitz constant 1: tight on narrow intervals, which is how they are used."""

    def operator(a: Interval) -> Interval:
        width = up(a.upper - a.lower)
        at = _rounded(function, a.lower)
        near = sub(at, Interval(width, width)).lower, add(at, Interval(width, width)).upper
        narrow = (a.lower == a.upper) & a.lower.isfinite()
        lower, upper = _bounded(torch.where(narrow, at.lower, near[0]), torch.where(narrow, at.upper, near[1]))
        return Interval(lower.clamp(-1.0, 1.0), upper.clamp(-1.0, 1.0))

    return operator


sin, cos = _wave(torch.sin), _wave(torch.cos)
_erfc = _increasing(lambda x: torch.special.erfc(-x), 0.0, 2.0)

OPERATORS: dict[str, Callable[..., Interval]] = {
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
    "floor": lambda a: Interval(a.lower.floor(), a.upper.floor()),
    "round": lambda a: Interval(a.lower.round(), a.upper.round()),
    "exp": _increasing(torch.exp, 0.0),
    "expm1": _increasing(torch.expm1, -1.0),
    "log": _increasing(torch.log),
    "log1p": _increasing(torch.log1p),
    "sqrt": _increasing(torch.sqrt, 0.0),
    "sin": sin,
    "cos": cos,
    "tan": lambda a: div(sin(a), cos(a)),
    "atan": _increasing(torch.atan),
    "tanh": _increasing(torch.tanh, -1.0, 1.0),
    "erf": _increasing(torch.erf, -1.0, 1.0),
    "erfc": lambda a: _erfc(neg(a)),
}
