"""Functions' terms in floats, and as a solver's own expressions.

A solver takes what it relaxes for exact up to its tolerances, which are absolute: the values inside an expression must be of moderate
size, too. 1 / (1 + exp(-x)) at x = -30 passes through 1e13, and a dual tolerance of 1e-9 over such a range is worth nothing. So every
expression carries the range of its values, forms are chosen by it, and what leaves `WIDEST` is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from milpverify.errors import SolverUnavailable
from milpverify.functions.terms import ONE, RATIONAL, UNARY, Algebra, Apply, Term, evaluate

WIDEST: Final = 1e4
"""The largest value that a product, a function, or what is computed on the way to it may have in a model."""

_FLOATS: Mapping[str, Callable[..., Any]] = {
    **RATIONAL,
    **{name: getattr(math, name) for name in UNARY if hasattr(math, name)},
    "sign": lambda a: float((a > 0) - (a < 0)),
    "floor": lambda a: float(math.floor(a)),
    "round": lambda a: float(round(a)),
    "logistic": lambda a: 1.0 / (1.0 + math.exp(-a)) if a >= 0 else math.exp(a) / (1.0 + math.exp(a)),
}
_FLOAT_ALGEBRA: Algebra[float] = Algebra(float, _FLOATS.get, lambda: math.pi)
_RISING = ("exp", "log", "sqrt", "tanh", "logistic")


def value_of(term: Term, x: float) -> float:
    """The value of a term in x, up to rounding; NaN where it has none, or none that a float holds."""
    try:
        return evaluate(term, _FLOAT_ALGEBRA, {"x": x})
    except (OverflowError, ValueError, ZeroDivisionError):
        return math.nan


def expression(term: Term, x: Any, lower: float, upper: float, native: Mapping[str, Callable[[Any], Any]], label: str) -> Any:
    """The term as an expression of a solver, with + - * / ** as Python's operators.

    Args:
        x: the argument, the solver's expression.
        lower, upper: its range.
        native: the solver's functions: abs has to be there, of the others what it has.
        label: solver and function, for messages.

    Raises:
        SolverUnavailable: the solver lacks a function, or values on the way are beyond `WIDEST` or undefined.
    """
    try:
        return evaluate(_recognised(term), _Operators(native).algebra, {"x": _Ranged(x, lower, upper)}).value
    except _Refused as error:
        raise SolverUnavailable(f"{label}: {error}") from error


def takes(functions: frozenset[str], term: Term, lower: float, upper: float) -> bool:
    """Whether a solver with some functions takes a term over a range."""
    try:
        expression(term, _Any(), lower, upper, dict.fromkeys(functions | {"abs"}, lambda a: a), "")
    except SolverUnavailable:
        return False
    return True


class _Any:
    """An expression that is any expression."""

    def _same(self, *others: object) -> _Any:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = __neg__ = _same


class _Refused(ArithmeticError):
    """The solver lacks a function, or a value inside the expression is too large for its tolerances or not defined everywhere."""


@dataclass(frozen=True, eq=False)
class _Ranged:
    """A solver's expression, or a float where it is constant, and the range of its values (up to rounding)."""

    value: Any
    lower: float
    upper: float

    @property
    def constant(self) -> bool:
        return isinstance(self.value, float)


def _recognised(term: Term) -> Term:
    """The term with n / (1 + exp t) as n logistic(-t), and log1p(exp t) as softplus t."""
    match term:
        case Apply("/", (a, Apply("+", (one, Apply("exp", (t,)))))) if one == ONE:
            turned = t.args[0] if isinstance(t, Apply) and t.op == "neg" else Apply("neg", (t,))
            logistic = Apply("logistic", (_recognised(turned),))
            return logistic if a == ONE else Apply("*", (_recognised(a), logistic))
        case Apply("log1p", (Apply("exp", (t,)),)):
            return Apply("softplus", (_recognised(t),))
        case Apply(op, args):
            return Apply(op, tuple(map(_recognised, args)))
    return term


class _Operators:
    """The operators of terms on `_Ranged`: native functions where the solver has them, else forms made of others."""

    def __init__(self, native: Mapping[str, Callable[[Any], Any]]) -> None:
        self._native = native
        own: dict[str, Callable[..., _Ranged]] = {
            "+": self.add, "-": lambda a, b: self.add(a, self.negative(b)), "*": self.times, "/": self.over, "neg": self.negative,
            "pow": self.power, "abs": self.absolute, "min": lambda a, b: self.negative(self.most(self.negative(a), self.negative(b))),
            "max": self.most, "expm1": lambda a: self.add(self.apply("exp", a), _constant(-1.0)),
            "log1p": lambda a: self.apply("log", self.add(_constant(1.0), a)), "softplus": self.softplus,
        }  # fmt: skip
        if "logistic" not in native:
            own["logistic"] = self.logistic
        if "tanh" not in native:
            own["tanh"] = self.tanh
        self._operators = own | {name: functools.partial(self.apply, name) for name in native if name not in own}
        self.algebra: Algebra[_Ranged] = Algebra(lambda value: _constant(float(value)), self.operator, lambda: _constant(math.pi))

    def operator(self, name: str) -> Callable[..., _Ranged]:
        if name not in self._operators:
            raise _Refused(f"it has no {name}")
        return self._operators[name]

    def add(self, a: _Ranged, b: _Ranged) -> _Ranged:
        if b.constant and b.value == 0.0:
            return a
        return _checked(a.value + b.value, a.lower + b.lower, a.upper + b.upper)

    def negative(self, a: _Ranged) -> _Ranged:
        return _Ranged(-a.value, -a.upper, -a.lower)

    def times(self, a: _Ranged, b: _Ranged) -> _Ranged:
        ends = [x * y for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
        return _checked(a.value * b.value, min(ends), max(ends))

    def over(self, a: _Ranged, b: _Ranged) -> _Ranged:
        if b.lower <= 0.0 <= b.upper:
            raise _Refused("a divisor inside it may be 0")
        ends = [x / y for x in (a.lower, a.upper) for y in (b.lower, b.upper)]
        return _checked(a.value / b.value, min(ends), max(ends))

    def power(self, a: _Ranged, n: int) -> _Ranged:
        if n < 0:
            return self.over(_constant(1.0), self.power(a, -n))
        ends = [_guarded(lambda x: x**n, x) for x in (a.lower, a.upper)]
        low = 0.0 if n and n % 2 == 0 and a.lower <= 0.0 <= a.upper else min(ends)
        return _checked(a.value**n, low, max(ends))

    def absolute(self, a: _Ranged) -> _Ranged:
        if a.lower >= 0.0:
            return a
        if a.upper <= 0.0:
            return self.negative(a)
        return _checked(self._native["abs"](a.value), 0.0, max(-a.lower, a.upper))

    def most(self, a: _Ranged, b: _Ranged) -> _Ranged:
        """The larger one: (a + b + |a - b|) / 2."""
        if a.lower >= b.upper:
            return a
        if b.lower >= a.upper:
            return b
        apart = self.absolute(self.add(a, self.negative(b)))
        whole = self.times(_constant(0.5), self.add(self.add(a, b), apart))
        return _Ranged(whole.value, max(a.lower, b.lower), max(a.upper, b.upper))

    def apply(self, name: str, a: _Ranged) -> _Ranged:
        if a.constant:
            return _constant(_guarded(_FLOATS[name], a.value))
        if name in _RISING or (name == "tan" and math.floor(a.lower / math.pi - 0.5) == math.floor(a.upper / math.pi - 0.5)):
            low, high = (_guarded(_FLOATS[name], x) for x in (a.lower, a.upper))
        else:
            low, high = (-1.0, 1.0) if name in ("sin", "cos") else (-math.inf, math.inf)
        if math.isnan(low) or math.isnan(high):
            raise _Refused(f"{name} inside it is not defined everywhere")
        return _checked(self._native[name](a.value), low, high)

    def logistic(self, a: _Ranged) -> _Ranged:
        """1 / (1 + exp(-a)), or exp(min(a, 0)) / (1 + exp(-|a|)), no part of which exceeds 2."""
        one, opposite = _constant(1.0), self.negative(a)
        if a.lower >= -math.log(WIDEST):
            return self.over(one, self.add(one, self.apply("exp", opposite)))
        least = self.negative(self.most(opposite, _constant(0.0)))
        below = self.add(one, self.apply("exp", self.negative(self.absolute(a))))
        return _Ranged(self.over(self.apply("exp", least), below).value, *(_FLOATS["logistic"](end) for end in (a.lower, a.upper)))

    def tanh(self, a: _Ranged) -> _Ranged:
        whole = self.add(self.times(_constant(2.0), self.logistic(self.times(_constant(2.0), a))), _constant(-1.0))
        return _Ranged(whole.value, math.tanh(a.lower), math.tanh(a.upper))

    def softplus(self, a: _Ranged) -> _Ranged:
        """log(1 + exp(a)), or max(a, 0) + log(1 + exp(-|a|))."""
        one = _constant(1.0)
        if a.upper <= math.log(WIDEST):
            return self.apply("log", self.add(one, self.apply("exp", a)))
        rest = self.apply("log", self.add(one, self.apply("exp", self.negative(self.absolute(a)))))
        return self.add(self.most(a, _constant(0.0)), rest)


def _constant(value: float) -> _Ranged:
    return _Ranged(value, value, value)


def _guarded(function: Callable[[float], float], x: float) -> float:
    try:
        return float(function(x))
    except (OverflowError, ValueError):
        return math.nan


def _checked(value: Any, lower: float, upper: float) -> _Ranged:
    if not max(abs(lower), abs(upper)) <= WIDEST:
        raise _Refused(f"a value inside it ranges from {lower:.3g} to {upper:.3g}, which the solver's tolerances do not carry")
    return _Ranged(value, lower, upper)
