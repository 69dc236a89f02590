"""Piecewise-linear functions that no file names: what a network composes of others, such as a clamp written with comparisons."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from milpverify.errors import InvalidInput
from milpverify.functions.catalogue import catalogue
from milpverify.functions.function import Function, Nonlinearity
from milpverify.functions.terms import ZERO, Apply, Constant, Symbol

if TYPE_CHECKING:
    from milpverify.functions.pieces import Pieces, RationalPieces
    from milpverify.functions.terms import Term

PIECEWISE = "piecewise"
"""What such functions are called; their breakpoints, slopes, intercepts and values are their parameters."""
_X = Symbol("x")


def function_of(pieces: RationalPieces) -> Function | None:
    """The function with these pieces: one of the catalogue where that has it; None where float64 does not hold them."""
    try:
        exact = pieces.exact()
    except InvalidInput:
        return None
    if not exact.breakpoints:
        return None
    return _named(exact) or Function(PIECEWISE, _numbers(exact), Nonlinearity(PIECEWISE, _term(pieces), {}, (), ()), exact)


def _named(pieces: Pieces) -> Function | None:
    """A function of the catalogue that rules and solvers know well."""
    known = {
        "relu": {},
        "abs": {},
        "sign": {},
        "nonzero": {},
        "heaviside": {"value": pieces.values[0]},
        "leaky_relu": {"alpha": pieces.slopes[0]},
    }
    if len(pieces.breakpoints) == 2 and pieces.breakpoints == pieces.values:
        known["clip"] = dict(zip(("min", "max"), pieces.breakpoints, strict=True))
    found = (catalogue()[name].bind(**parameters) for name, parameters in known.items())
    return next((function for function in found if function.pieces == pieces), None)


def _numbers(pieces: Pieces) -> tuple[tuple[str, float], ...]:
    named = (("breakpoint", pieces.breakpoints), ("slope", pieces.slopes), ("intercept", pieces.intercepts), ("value", pieces.values))
    return tuple((f"{name} {i}", v) for name, values in named for i, v in enumerate(values))


def _term(pieces: RationalPieces) -> Term:
    """The first line, and at every breakpoint what changes there."""
    slope, intercept = pieces.lines[0]
    total = _plus(_times(slope, _X), Constant(intercept))
    for p, value, (left, right) in zip(pieces.breakpoints, pieces.values, pairwise(pieces.lines), strict=True):
        past = Apply("-", (_X, Constant(p)))
        before, after = (line[0] * p + line[1] for line in (left, right))
        side = Apply("sign", (past,))
        if right[0] != left[0]:
            total = _plus(total, _times(right[0] - left[0], Apply("max", (past, ZERO))))
        if after != before:
            total = _plus(total, _times(after - before, Apply("max", (side, ZERO))))
        if value != before:
            at = Apply("-", (Constant(Fraction(1)), Apply("abs", (side,))))
            total = _plus(total, _times(value - before, at))
    return total


def _times(factor: Fraction, term: Term) -> Term:
    return Apply("*", (Constant(factor), term)) if factor else ZERO


def _plus(a: Term, b: Term) -> Term:
    return b if a == ZERO else a if b == ZERO else Apply("+", (a, b))
