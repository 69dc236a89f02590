"""Running error analysis on float64 tensors: a value, and a proved bound of how far it is from the exact one.

Several times cheaper than intervals, and as tight where functions are evaluated at points (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.3). Library functions are taken to be good to 8 units in the last place, as in `interval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64

_LIBRARY: Final = 2.0**-49
_TINY: Final = 2.0**-1021  # what underflow can cost, also when flushed to zero
_SPARE: Final = 1.0 + 2.0**-46  # the error bounds are themselves rounded


class Near(NamedTuple):
    """|exact - value| <= error, elementwise; an error of inf says that nothing is known.

    A value of +-inf with an error of 0 says that the exact one has this sign and is at least 2^1020 in size.
    """

    value: Tensor
    error: Tensor


def exactly(x: Tensor) -> Near:
    """x itself, of any shape, with errors of 0."""
    return Near(x, torch.zeros_like(x))


def known(near: Near) -> Near:
    """The same with what is undefined (NaN, an overflow) turned into a value of 0 with an infinite error."""
    bad = ~(near.value.isfinite() & near.error.isfinite())
    return Near(torch.where(bad, 0.0, near.value), torch.where(bad, math.inf, near.error))


def _huge(a: Near) -> Tensor:
    """Where a says that it is something huge."""
    return a.value.isinf() & (a.error == 0)


def _near(value: Tensor, error: Tensor, huge: Tensor) -> Near:
    """The result of an operation: huge where that is sure, unknown where it overflowed otherwise."""
    return Near(value, torch.where(huge & value.isinf(), 0.0, error * _SPARE))


def add(a: Near, b: Near) -> Near:
    """a + b; what is huge stays so only if nothing of the other sign is added."""
    v = a.value + b.value
    side = torch.sign(v)
    huge = (_huge(a) & (side * b.value >= b.error)) | (_huge(b) & (side * a.value >= a.error))
    return _near(v, a.error + b.error + U64 * v.abs() + _TINY, huge)


def neg(a: Near) -> Near:
    """-a."""
    return Near(-a.value, a.error)


def sub(a: Near, b: Near) -> Near:
    """a - b."""
    return add(a, neg(b))


def mul(a: Near, b: Near) -> Near:
    """a * b; what is huge stays so only if it is not made smaller."""
    v = a.value * b.value
    huge = (_huge(a) & (b.value.abs() - b.error >= 1)) | (_huge(b) & (a.value.abs() - a.error >= 1))
    return _near(v, a.value.abs() * b.error + (b.value.abs() + b.error) * a.error + U64 * v.abs() + _TINY, huge)


def div(a: Near, b: Near) -> Near:
    """a / b; nothing is known where b may be 0."""
    v = a.value / b.value
    room = b.value.abs() - b.error
    error = ((a.error + v.abs() * b.error) / room + 2 * U64 * v.abs() + _TINY) * _SPARE
    error = torch.where(room > 2 * U64 * b.value.abs(), error * (1 + 4 * U64 * b.value.abs() / room), math.inf)
    # A quotient that overflows is left unknown; one by something huge is next to nothing.
    small = torch.where(_huge(b) & a.value.isfinite(), (a.value.abs() + a.error) * 2.0**-1019 + _TINY, math.inf)
    return Near(v, torch.where(b.value.isinf(), small, error))


def power(a: Near, n: int) -> Near:
    """a ** n for an integer n."""
    if n < 0:
        return div(exactly(torch.ones_like(a.value)), power(a, -n))
    result = exactly(torch.ones_like(a.value))
    for _ in range(n):
        result = mul(result, a)
    return result


def sign(a: Near) -> Near:
    """sign(a), which is anything from -1 to 1 where a may be 0 without being it."""
    sure = (a.value.abs() > a.error) | (a.error == 0)
    return Near(torch.where(sure, torch.sign(a.value), 0.0), torch.where(sure, 0.0, 1.0))


def _stairs(step: Callable[[Tensor], Tensor]) -> Callable[[Near], Near]:
    """A rising function whose values are integers, which float64 computes exactly; off by as much as the ends around a differ."""

    def rule(a: Near) -> Near:
        v = step(a.value)
        reach = (a.error * (1 + 4 * U64) + 2 * U64 * a.value.abs()) * (a.error > 0)
        return Near(v, torch.maximum(step(a.value + reach) - v, v - step(a.value - reach)))

    return rule


def _library(
    function: Callable[[Tensor], Tensor], steepness: Callable[[Near, Tensor], Tensor | float], overflows: bool = False
) -> Callable[[Near], Near]:
    """The rule of a library function: its own error, and that of its argument times a bound of the slope around it."""

    def operator(a: Near) -> Near:
        v = function(a.value)
        moved = torch.where(a.error > 0, steepness(a, v) * a.error, 0.0)
        own = torch.where((a.value == 0) & (v == 0), 0.0, _LIBRARY * v.abs() + _TINY)
        return Near(v, torch.where(v.isinf() & (a.error < 0.5), 0.0, own + moved) * _SPARE if overflows else (own + moved) * _SPARE)

    return operator


def _growth(a: Near, size: Tensor) -> Tensor:
    """exp(error) times a size, for errors below 1/2."""
    return torch.where(a.error < 0.5, (1 + 2 * a.error) * size * (1 + 2 * _LIBRARY), math.inf)


def _hyperbola(a: Near, shift: float) -> Tensor:
    """1 / (a + shift - error), infinite where that may be 0."""
    room = (a.value + shift) * (1 - 4 * U64) - a.error
    return torch.where(room > 0, (1 + 4 * U64) / room, math.inf)


def _bell(a: Near, _: Tensor) -> Tensor:
    """More than 2 / sqrt(pi) exp(-x^2) within the error, which a tail makes small."""
    nearest = (a.value.abs() * (1 - 4 * U64) - a.error * (1 + 4 * U64)).clamp(min=0.0)
    return torch.where(a.error < 1, 1.13 * torch.exp(-nearest * nearest), 1.13)


def sqrt(a: Near) -> Near:
    """sqrt(a), of what is not negative in a."""
    v = a.value.clamp(min=0.0).sqrt()
    moved = torch.where(a.value > a.error, a.error / v, (a.value.clamp(min=0.0) + a.error).sqrt())
    return Near(v, (2 * U64 * v + torch.where(a.error > 0, moved, 0.0)) * _SPARE)


sin, cos = _library(torch.sin, lambda a, v: 1.0), _library(torch.cos, lambda a, v: 1.0)

OPERATORS: dict[str, Callable[..., Near]] = {
    "+": add,
    "-": sub,
    "neg": neg,
    "*": mul,
    "/": div,
    "pow": power,
    "min": lambda a, b: Near(torch.minimum(a.value, b.value), torch.maximum(a.error, b.error)),
    "max": lambda a, b: Near(torch.maximum(a.value, b.value), torch.maximum(a.error, b.error)),
    "abs": lambda a: Near(a.value.abs(), a.error),
    "sign": sign,
    "floor": _stairs(torch.floor),
    "round": _stairs(torch.round),
    "exp": _library(torch.exp, _growth, overflows=True),
    "expm1": _library(torch.expm1, lambda a, v: _growth(a, v.abs() + 1), overflows=True),
    "log": _library(torch.log, lambda a, v: _hyperbola(a, 0.0)),
    "log1p": _library(torch.log1p, lambda a, v: _hyperbola(a, 1.0)),
    "sqrt": sqrt,
    "sin": sin,
    "cos": cos,
    "tan": lambda a: div(sin(a), cos(a)),
    "atan": _library(torch.atan, lambda a, v: 1.0),
    "tanh": _library(torch.tanh, lambda a, v: 1.0),
    "erf": _library(torch.erf, _bell),
    "erfc": _library(torch.erfc, _bell),
}
