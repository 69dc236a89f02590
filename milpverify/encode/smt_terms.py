"""Functions as SMT-LIB: a term of the catalogue is evaluated in an algebra whose values are expressions with the range that they have.

What the reals define by an equation is a variable with that equation: a quotient q of a and b by q b = a, a square root by its square, a
logarithm by its exponential. Outside a function's domain its variable may be anything, so that `unsat` says nothing too much.

Ranges may be written as rows, too, which changes nothing. cvc5 decides little of transcendental functions without them. z3 needs them of
quotients and roots; those of products only give it more polynomials to project, and the hull of products (McCormick) does, too: of 28
random networks of 2 and 3 inputs it decided 19 within 2 s with neither, 17 with either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch

from milpverify.arithmetic import interval
from milpverify.arithmetic.rational_range import OPERATORS, UNBOUNDED, Number, Range, between, floats, point
from milpverify.functions.terms import Algebra, Term, operators, parse, symbols
from milpverify.functions.terms import evaluate as evaluate_term
from milpverify.solvers.model import Logic

if TYPE_CHECKING:
    from collections.abc import Callable

_ARC = Range(Fraction(-8, 5), Fraction(8, 5))  # around (-pi/2, pi/2)
_REWRITES = {
    "expm1": parse("(- (exp a) 1)"),
    "log1p": parse("(log (+ 1 a))"),
    "tan": parse("(/ (sin a) (cos a))"),
    "tanh": parse("(- 1 (/ 2 (+ 1 (exp (* 2 a)))))"),
}
_TRANSCENDENTAL = {"exp", "log", "sin", "cos", "atan", *_REWRITES}


@dataclass(frozen=True)
class Value:
    """An expression, and a range that contains its values."""

    text: str
    range: Range

    @property
    def constant(self) -> bool:
        """Whether it is a number."""
        return self.range.lower == self.range.upper


def logic_of(term: Term) -> Logic | None:
    """The poorest logic that a term has a form in, None where it has none."""
    used = operators(term)
    if used <= OPERATORS.keys() and "pi" not in symbols(term):
        return Logic.POLYNOMIAL
    return Logic.TRANSCENDENTAL if used <= OPERATORS.keys() | _TRANSCENDENTAL else None


class ScriptWriter:
    """The commands of a script as they are written; `ranges` says whether variables' ranges are, with so many bits."""

    def __init__(self, ranges: bool, bits: int) -> None:
        self.lines: list[str] = []
        self._ranges, self._bits = ranges, bits
        self._fresh = 0
        self._known: dict[str, Range] = {}
        table: dict[str, Callable[..., Value]] = {
            "+": lambda a, b: Value(f"(+ {a.text} {b.text})", OPERATORS["+"](a.range, b.range)),
            "-": lambda a, b: Value(f"(- {a.text} {b.text})", OPERATORS["-"](a.range, b.range)),
            "neg": lambda a: Value(f"(- {a.text})", OPERATORS["neg"](a.range)),
            "*": self.product,
            "/": self._quotient,
            "pow": self.power,
            "min": lambda a, b: self._choice("<=", a, b, OPERATORS["min"](a.range, b.range)),
            "max": lambda a, b: self._choice(">=", a, b, OPERATORS["max"](a.range, b.range)),
            "abs": self._absolute,
            "sign": self._sign,
            "sqrt": self._sqrt,
            "log": self._log,
            "atan": self._atan,
            **{op: self._library(op) for op in ("exp", "sin", "cos")},
            **{op: self._rewritten(op) for op in _REWRITES},
        }
        self._algebra = Algebra(self._number, table.get, lambda: Value("real.pi", between(math.pi, math.nextafter(math.pi, 4.0))))

    def evaluate(self, term: Term, x: Value, variable: str = "x") -> Value:
        """The value of a term at x; `logic_of` says what solver can read it."""
        return evaluate_term(term, self._algebra, {variable: x})

    def declare(self, name: str = "") -> str:
        """Declare a variable, under a name of its own unless one is given."""
        if not name:
            self._fresh += 1
            name = f"t_{self._fresh}"
        self.lines.append(f"(declare-const {name} Real)")
        return name

    def require(self, relation: str, *sides: str) -> None:
        """Assert a relation."""
        self.lines.append(f"(assert ({relation} {' '.join(sides)}))")

    def within(self, name: str, found: Range, implicit: bool = False) -> Value:
        """A variable with its range, which is asserted with few digits: where all are, and where an equation alone defines the variable."""
        short = found.rounded(self._bits)
        if (self._ranges or implicit) and self._known.get(name) != short:
            self._known[name] = short
            if isinstance(short.lower, Fraction):
                self.require("<=", number(short.lower), name)
            if isinstance(short.upper, Fraction):
                self.require("<=", name, number(short.upper))
        return Value(name, found)

    def name(self, a: Value) -> Value:
        """A variable that is equal to an expression; a number and a variable as they are."""
        if a.constant:
            return self._number(a.range.lower)
        if " " not in a.text:
            return a
        name = self.declare()
        self.require("=", name, a.text)
        return Value(name, a.range)

    def product(self, a: Value, b: Value) -> Value:
        """a b."""
        if a.text == b.text:
            return self.power(a, 2)
        a, b = self.name(a), self.name(b)
        return Value(f"(* {a.text} {b.text})", OPERATORS["*"](a.range, b.range))

    def power(self, a: Value, n: int) -> Value:
        """a ** n."""
        if n < 0:
            return self._quotient(self._number(1), self.power(a, -n))
        found = OPERATORS["pow"](a.range, n)
        base = self.name(a)
        return Value(f"(* {' '.join([base.text] * n)})", found) if n > 1 else base if n else self._number(1)

    def _number(self, value: Number) -> Value:
        return Value(number(Fraction(value)), point(Fraction(value)))

    def _quotient(self, a: Value, b: Value) -> Value:
        if b.constant and isinstance(b.range.lower, Fraction) and b.range.lower:
            return self.product(self._number(1 / b.range.lower), a)
        name, outside = self.declare(), 0 in b.range
        self._unless(outside, f"(= {b.text} 0.0)", f"(= (* {name} {b.text}) {a.text})")
        return self.within(name, UNBOUNDED if outside else OPERATORS["/"](a.range, b.range), implicit=True)

    def _sqrt(self, a: Value) -> Value:
        name, outside = self.declare(), a.range.lower < 0
        self._unless(outside, f"(< {a.text} 0.0)", f"(and (>= {name} 0.0) (= (* {name} {name}) {a.text}))")
        return self.within(name, OPERATORS["sqrt"](a.range), implicit=True)

    def _log(self, a: Value) -> Value:
        name, outside = self.declare(), a.range.lower <= 0
        self._unless(outside, f"(<= {a.text} 0.0)", f"(= (exp {name}) {a.text})")
        return self.within(name, UNBOUNDED if outside else by_floats("log", a.range))

    def _atan(self, a: Value) -> Value:
        name = self.declare()
        self.require("=", f"(sin {name})", f"(* {a.text} (cos {name}))")
        self.require("<", "(* (- 0.5) real.pi)", name, "(* 0.5 real.pi)")
        return self.within(name, by_floats("atan", a.range).meet(_ARC))

    def _unless(self, possible: bool, outside: str, equation: str) -> None:
        """Assert an equation, but where the expressions are outside of the domain, if that is possible."""
        self.lines.append(f"(assert (or {outside} {equation}))" if possible else f"(assert {equation})")

    def _library(self, op: str) -> Callable[[Value], Value]:
        def function(a: Value) -> Value:
            named = self.name(Value(f"({op} {self.name(a).text})", by_floats(op, a.range)))
            return self.within(named.text, named.range)

        return function

    def _rewritten(self, op: str) -> Callable[[Value], Value]:
        def function(a: Value) -> Value:
            found = self.evaluate(_REWRITES[op], self.name(a), "a")
            return Value(found.text, by_floats(op, a.range).meet(found.range))

        return function

    def _choice(self, relation: str, a: Value, b: Value, found: Range) -> Value:
        """a where `a relation b`, else b."""
        first, second = (a, b) if relation == "<=" else (b, a)
        if first.range.upper <= second.range.lower:
            return a
        if second.range.upper <= first.range.lower:
            return b
        a, b = self.name(a), self.name(b)
        return Value(f"(ite ({relation} {a.text} {b.text}) {a.text} {b.text})", found)

    def _absolute(self, a: Value) -> Value:
        a = self.name(a)
        return self._choice(">=", a, Value(f"(- {a.text})", OPERATORS["neg"](a.range)), OPERATORS["abs"](a.range))

    def _sign(self, a: Value) -> Value:
        found = OPERATORS["sign"](a.range)
        if found.lower == found.upper:
            return self._number(found.lower)
        a = self.name(a)
        return Value(f"(ite (< {a.text} 0.0) (- 1.0) (ite (= {a.text} 0.0) 0.0 1.0))", found)


def by_floats(op: str, a: Range) -> Range:
    """The range of a library function."""
    lower, upper = (torch.tensor(end, dtype=torch.float64) for end in floats(a))
    found = interval.OPERATORS[op](interval.Interval(lower, upper))
    return between(float(found.lower), float(found.upper))


def number(value: Fraction) -> str:
    """A rational in SMT-LIB."""
    size = f"{abs(value.numerator)}.0" if value.denominator == 1 else f"(/ {abs(value.numerator)}.0 {value.denominator}.0)"
    return f"(- {size})" if value < 0 else size
