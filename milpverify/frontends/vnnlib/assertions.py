"""What a query of VNN-LIB 2.0 asserts: as disjuncts in the reals, weakened for the arithmetic of a type, or evaluated at a point.

A literal denotes a number of the type of the variables that it stands beside (of `real`: the nearest binary64 number).
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.alternatives import PropertyTuning
from milpverify.frontends.vnnlib.normal_form import ONE, ZERO, Formula, Junction, NormalForm, Term, compare, difference
from milpverify.frontends.vnnlib.query import NUMBERS, REAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from milpverify.frontends.vnnlib.query import Query
    from milpverify.spec import Disjunct

_RELATIONS = {"GreaterThan": ">", "GreaterEqual": ">=", "LessThan": "<", "LessEqual": "<=", "Equal": "="}


@dataclass(frozen=True, eq=False)
class _Value:
    """A term; the same with absolute values of all that is added up, how many of its operations round, and what these may be scaled by."""

    term: Term
    size: Term
    operations: int = 0
    factor: Fraction = ONE


@dataclass(frozen=True, eq=False)
class Slack:
    """By how much assertions are weakened, so that what is proved holds in the arithmetic of the types as well.

    `largest` (n,) bounds what the entries of all inputs and outputs may come to there, and `error` (n,), finite, by how much they differ
    from their values in the reals.
    """

    largest: list[float]
    error: list[float]

    def of(self, value: _Value, dtype: str) -> Fraction | None:
        """How far a term as it is computed may be from its value in the reals; None where that is not known.

        Errors of its variables enter multiplied by their coefficients. With k operations every product in it is wrong by at most
        (1 + u)^k - 1 of itself (Higham, Accuracy and Stability of Numerical Algorithms, section 3), and by what underflows.
        """
        total = ZERO
        for variable, coefficient in value.term.coefficients.items():
            total += abs(coefficient) * Fraction(self.error[variable])
        if dtype == REAL or not value.operations:
            return total
        known = value.size.constant
        for variable, coefficient in value.size.coefficients.items():
            if not math.isfinite(self.largest[variable]):
                return None
            known += coefficient * Fraction(self.largest[variable])
        info = np.finfo(NUMBERS[dtype])
        rounding = value.operations * Fraction(float(info.eps)) / 2
        underflow = value.operations * value.factor * Fraction(float(info.smallest_normal))
        if rounding >= Fraction(1, 4) or 2 * known + underflow > Fraction(float(info.max)):
            return None
        return total + known * rounding / (1 - rounding) + underflow


def disjuncts_of(
    query: Query,
    pace: Callable[[], None] = lambda: None,
    slack: Slack | None = None,
    reach: float | None = None,
    tuning: PropertyTuning = PropertyTuning(),
) -> tuple[Disjunct, ...] | None:
    """What a query asks for, as disjuncts over all inputs and outputs; weakened by some slack, None where that is not known.

    Args:
        pace: called from time to time; what it raises ends the reading.
        reach: how far from 0 all inputs lie that are asked about; None for any distance.
        tuning: how much is done to make disjuncts few and boxes small.

    Raises:
        Unbounded: an input has no bound.
        InvalidProperty: an assertion is not linear.
    """

    def error(line: int, message: str) -> InvalidProperty:
        kind = _Empty if message.startswith("the box is empty") else InvalidProperty
        return kind(f"{query.where}, line {line}: {message}")

    reader, form = _Reader(query, slack), NormalForm(query.nx, query.ny, query.where, error, pace, tuning)
    try:
        for assertion in query.assertions:
            formula = reader.formula(assertion)
            if formula is None:
                return None
            form.add(formula, next(_lines(assertion), 0))
            pace()
        for key in range(2 * query.nx if reach is not None else 0):
            form.bound(key, (reach or 0.0, True), 0)
        return form.disjuncts()
    except _Empty:  # inputs that contradict each other
        return ()
    except InvalidProperty as refusal:
        named = re.sub(r"\b([XY])_(\d+)", lambda m: query.entry(int(m[2]) + (query.nx if m[1] == "Y" else 0)), str(refusal))
        raise (Unbounded if re.search(" has no (upper|lower) bound$", named) else InvalidProperty)(named) from refusal


class Unbounded(InvalidProperty):
    """An input has no bound."""


class _Empty(InvalidProperty):
    """No input satisfies the assertions on inputs alone."""


class _Reader:
    """Makes formulas of the parser's nodes."""

    def __init__(self, query: Query, slack: Slack | None) -> None:
        self.query, self.slack = query, slack

    def formula(self, node: Any) -> Formula | None:
        """A Boolean expression; None where it would have to be weakened by nobody knows how much."""
        kind = type(node).__name__
        if kind in ("And", "Or"):
            parts = [self.formula(part) for part in node.args]
            return None if None in parts else Junction(kind == "And", tuple(p for p in parts if p is not None))
        dtype = _dtype(self.query, node)
        left, right = (self._term(side, dtype) for side in (node.lhs, node.rhs))
        if kind == "NotEqual":
            return self._either(left, right, dtype)
        if self.slack is None:
            return compare(_RELATIONS[kind], left.term, right.term)
        extra = self._extra(left, right, dtype)
        if extra is None:
            return None
        if kind == "Equal":
            below, above = (compare("<=", *pair) for pair in (_apart(left, right, extra), _apart(right, left, extra)))
            return Junction(True, (below, above))
        if kind in ("GreaterThan", "GreaterEqual"):
            left, right = right, left
        return compare("<=" if extra or kind.endswith("Equal") else "<", *_apart(left, right, extra))

    def _either(self, left: _Value, right: _Value, dtype: str) -> Formula | None:
        """left != right."""
        extra = ZERO if self.slack is None else self._extra(left, right, dtype)
        if extra is None:
            return None
        if extra:  # computed numbers may differ wherever the exact ones are equal
            return True
        return Junction(False, (compare("<", left.term, right.term), compare(">", left.term, right.term)))

    def _extra(self, left: _Value, right: _Value, dtype: str) -> Fraction | None:
        """By how much a comparison of two sides has to be weakened; None where nobody knows."""
        assert self.slack is not None
        each = self.slack.of(left, dtype), self.slack.of(right, dtype)
        return None if each[0] is None or each[1] is None else each[0] + each[1]

    def _term(self, node: Any, dtype: str) -> _Value:
        match type(node).__name__:
            case "Var":
                place = self.query.place(node.name, node.indices)
                return _Value(Term({place: ONE}, ZERO), Term({place: ONE}, ZERO))
            case "Negate":
                value = self._term(node.expr, dtype)
                return replace(value, term=value.term.scale(-ONE))
            case "Plus" | "Minus":
                parts = node.args if type(node).__name__ == "Plus" else (node.head, *node.rest)
                sign = ONE if type(node).__name__ == "Plus" else -ONE
                total = self._term(parts[0], dtype)
                for part in parts[1:]:
                    value = self._term(part, dtype)
                    operations, factor = total.operations + value.operations + 1, total.factor * value.factor
                    total = _Value(total.term.add(value.term.scale(sign)), total.size.add(value.size), operations, factor)
                return total
            case "Multiply":
                total = self._term(node.args[0], dtype)
                for part in node.args[1:]:
                    total = self._product(total, self._term(part, dtype), node)
                return total
            case _:
                return self._literal(node, dtype)

    def _product(self, a: _Value, b: _Value, node: Any) -> _Value:
        if a.term.coefficients and b.term.coefficients:
            written = re.sub(r" \[", "[", str(node)).replace(", ", ",")
            line = next(_lines(node), 0)
            raise InvalidProperty(f"{self.query.where}, line {line}: {written} is a polynomial; only linear arithmetic is supported")
        factor, other = (b, a) if a.term.coefficients else (a, b)
        operations, scaled = a.operations + b.operations + 1, a.factor * b.factor * max(ONE, factor.size.constant)
        return _Value(other.term.scale(factor.term.constant), other.size.scale(factor.size.constant), operations, scaled)

    def _literal(self, node: Any, dtype: str) -> _Value:
        with np.errstate(over="ignore"):
            value = float(node.lexeme)
            value = value if dtype == REAL else float(NUMBERS[dtype](value))
        if not math.isfinite(value):
            raise InvalidProperty(f"{self.query.where}, line {node.line}: the number {node.lexeme} is too large for the type {dtype}")
        return _Value(Term({}, Fraction(value)), Term({}, abs(Fraction(value))))


def satisfied(query: Query, x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    """Whether the assertions hold for inputs x (nx,) and outputs y (ny,), evaluated in the arithmetic of their types from left to right."""
    values = np.concatenate([x, y])
    with np.errstate(all="ignore"):
        return all(_holds(query, assertion, values) for assertion in query.assertions)


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "NotEqual": operator.ne,
    "LessThan": operator.lt,
    "LessEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterEqual": operator.ge,
}


def _holds(query: Query, node: Any, values: NDArray[np.float64]) -> bool:
    kind = type(node).__name__
    if kind in ("And", "Or"):
        return (all if kind == "And" else any)(_holds(query, part, values) for part in node.args)
    number = NUMBERS.get(_dtype(query, node), np.float64)
    return bool(_COMPARISONS[kind](*(_computed(query, side, values, number) for side in (node.lhs, node.rhs))))


def _computed(query: Query, node: Any, values: NDArray[np.float64], number: Any) -> Any:
    match type(node).__name__:
        case "Var":
            return number(values[query.place(node.name, node.indices)])
        case "Negate":
            return -_computed(query, node.expr, values, number)
        case "Plus" | "Minus" | "Multiply" as kind:
            parts = (node.head, *node.rest) if kind == "Minus" else node.args
            apply = {"Plus": operator.add, "Minus": operator.sub, "Multiply": operator.mul}[kind]
            return functools.reduce(apply, (_computed(query, part, values, number) for part in parts))
        case _:
            return number(float(node.lexeme))


def _dtype(query: Query, comparison: Any) -> str:
    """The element type of a comparison, which is that of its variables."""
    for name in _names(comparison):
        return query.offsets[name][1].dtype
    return REAL


def _apart(left: _Value, right: _Value, extra: Fraction) -> tuple[Term, Term]:
    """Both sides of left <= right + extra."""
    return left.term, difference(right.term, Term({}, -extra))


def _lines(node: Any) -> Iterator[int]:
    """The lines of what stands in a node."""
    if (line := getattr(node, "line", None)) is not None:
        yield line
    for child in node.children():
        yield from _lines(child)


def _names(node: Any) -> Iterator[str]:
    """The variables of a node."""
    if type(node).__name__ == "Var":
        yield node.name
    for child in node.children():
        yield from _names(child)
