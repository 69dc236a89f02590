"""The unsafe set that some formulas assert: linear inequalities under and, or, not, multiplied out into disjuncts.

Arithmetic on constants is exact; each coefficient and right-hand side of an inequality is rounded once, to the nearest
binary64 number. An inequality on a single input becomes a bound of the box. Where the box, which is closed and binary64,
is larger than the inequality (it is strict, or 3 X_0 <= 1), the inequality is kept in `domain` as well: nothing less is
proved, and no point outside is accepted as a counterexample.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from milpverify.errors import InvalidProperty
from milpverify.spec import Array, Box, Disjunct, Rows

_MAX_CONJUNCTIONS = 200_000
_RANGE = 2**1000  # what a quotient may come to, for its numerator and denominator to be binary64 numbers
ZERO, ONE = Fraction(0), Fraction(1)


@dataclass(eq=False)
class Term:
    """A linear term: coefficients by variable (X_i is i, Y_j is nx + j) plus a constant. Used once, so changed in place."""

    coefficients: dict[int, Fraction]
    constant: Fraction

    def scale(self, factor: Fraction) -> Term:
        """factor * self."""
        if factor != 1:
            self.coefficients = {v: c * factor for v, c in self.coefficients.items()}
            self.constant *= factor
        return self

    def add(self, other: Term) -> Term:
        """self + other."""
        small, large = sorted((self.coefficients, other.coefficients), key=len)
        for variable, coefficient in small.items():
            large[variable] = large.get(variable, ZERO) + coefficient
        return Term(large, self.constant + other.constant)


@dataclass(frozen=True, eq=False)
class Inequality:
    """sum of coefficients * variables + constant <= 0, `<` where strict."""

    term: Term
    strict: bool


@dataclass(frozen=True, eq=False)
class Junction:
    """The conjunction (`every`) or the disjunction of some formulas."""

    every: bool
    parts: tuple[Formula, ...]


Formula = bool | Inequality | Junction

# Bounds of one variable: key 2 i is an upper bound of X_i, key 2 i + 1 one of -X_i. The pair (value, closed) is smaller
# where the bound is tighter; a value that no binary64 equals stays a fraction, and Python compares the two exactly.
_Ceilings = dict[int, tuple[float | Fraction, bool]]


@dataclass(frozen=True, eq=False)
class _Conjunction:
    """Bounds beyond those of the whole file, and the numbers of the other inequalities."""

    ceilings: _Ceilings = field(default_factory=dict)
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class _Row:
    """An inequality with binary64 numbers: its variables and coefficients, right-hand side, strictness."""

    variables: list[int]
    coefficients: list[float]
    rhs: float
    strict: bool


class NormalForm:
    """Collects assertions over X_i (variable i) and Y_j (variable nx + j) and multiplies them out.

    A `place` says where an assertion was read; `error` makes the error to raise for a place.
    """

    def __init__(self, nx: int, ny: int, where: str, error: Callable[[int, str], InvalidProperty]) -> None:
        self.nx, self.ny, self.where, self.error = nx, ny, where, error
        self.base: _Ceilings = {}  # the bounds that every disjunct shares
        self.places: dict[int, int] = {}  # where they were read
        self.formulas: list[tuple[Formula, int]] = []
        self.rows: list[_Row] = []

    def add(self, formula: Formula, place: int) -> None:
        """Assert a formula."""
        self.formulas.append((formula, place))

    def bound(self, key: int, ceiling: tuple[float | Fraction, bool], place: int) -> None:
        """Assert a bound of one input, as a formula of that kind would (see `_Ceilings` for the key and the pair)."""
        if key not in self.base or ceiling < self.base[key]:
            self.base[key] = ceiling
            self.places[key] = place

    def literal(self, inequality: Inequality, place: int) -> bool | _Conjunction:
        """One inequality as a truth value, a bound of an input, or a row."""
        term = inequality.term
        try:
            rhs = float(-term.constant)
            pairs = [(v, float(c)) for v, c in term.coefficients.items() if c]
        except OverflowError:
            raise self.error(place, "a number of this assertion is too large") from None
        if not pairs:
            return term.constant < 0 or (term.constant == 0 and not inequality.strict)
        if any(c == 0.0 for _, c in pairs):
            raise self.error(place, "a coefficient of this assertion is too small to be represented")
        if len(pairs) == 1 and pairs[0][0] < self.nx:
            [(variable, coefficient)] = pairs
            exact = Fraction(rhs) / abs(Fraction(coefficient))
            value: float | Fraction = float(exact) if abs(exact) < _RANGE else exact
            if value != exact:
                value = exact
            if not isinstance(value, float) and (abs(exact) >= _RANGE or exact.denominator >= _RANGE):
                raise self.error(place, f"the bound on X_{variable} is out of range")
            return _Conjunction({2 * variable + (coefficient < 0): (value, not inequality.strict)})
        self.rows.append(_Row([v for v, _ in pairs], [c for _, c in pairs], rhs, inequality.strict))
        return _Conjunction({}, (len(self.rows) - 1,))

    def empty(self, variable: int, ceilings: _Ceilings) -> bool:
        """Whether no value of an input satisfies its bounds."""
        upper, lower = (ceilings.get(k) or self.base.get(k) for k in (2 * variable, 2 * variable + 1))
        if upper is None or lower is None:
            return False
        return upper[0] < -lower[0] or (upper[0] == -lower[0] and not (upper[1] and lower[1]))

    def absorb(self, ceilings: _Ceilings, extra: _Ceilings) -> bool:
        """Tighten `ceilings` in place; whether the box is still possible."""
        for key, ceiling in extra.items():
            known = ceilings.get(key) or self.base.get(key)
            if known is None or ceiling < known:
                ceilings[key] = ceiling
        return not any(self.empty(key // 2, ceilings) for key in extra)

    def product(self, left: list[_Conjunction], right: list[_Conjunction]) -> list[_Conjunction]:
        """Every pair of conjunctions whose boxes meet."""
        out: list[_Conjunction] = []
        for a in left:
            for b in right:
                ceilings = dict(a.ceilings) if b.ceilings else a.ceilings
                if not b.ceilings or self.absorb(ceilings, b.ceilings):
                    out.append(_Conjunction(ceilings, a.rows + b.rows))
            self.guard(out)
        return out

    def guard(self, conjunctions: list[_Conjunction]) -> None:
        if len(conjunctions) > _MAX_CONJUNCTIONS:
            limit = f"{_MAX_CONJUNCTIONS} conjunctions"
            raise InvalidProperty(f"{self.where}: the assertions multiply out to more than {limit}; split the property into several files")

    def normal_form(self, formula: Formula, place: int) -> list[_Conjunction]:
        """The conjunctions whose disjunction the formula is, without those that the bounds of the whole file exclude."""
        match formula:
            case bool():
                return [_Conjunction()] if formula else []
            case Inequality():
                literal = self.literal(formula, place)
                if isinstance(literal, bool):
                    return self.normal_form(literal, place)
                return self.product([_Conjunction()], [literal])
            case Junction(False, parts):
                union: list[_Conjunction] = []
                for part in parts:
                    union += self.normal_form(part, place)
                    self.guard(union)
                return union
            case Junction(parts=parts):
                # Single conjunctions are gathered in place: one that spells out a whole box costs its length, not the square.
                ceilings: _Ceilings = {}
                rows: list[int] = []
                choices: list[list[_Conjunction]] = []
                for part in parts:
                    options = self.normal_form(part, place)
                    if len(options) != 1:
                        choices.append(options)
                    elif self.absorb(ceilings, options[0].ceilings):
                        rows += options[0].rows
                    else:
                        return []
                out = [_Conjunction(ceilings, tuple(rows))]
                for options in choices:
                    out = self.product(out, options)
                return out

    def disjuncts(self) -> tuple[Disjunct, ...]:
        """Multiply the assertions out: first what every disjunct shares, then the choices."""
        pending = list(reversed(self.formulas))
        choices: list[tuple[Formula, int]] = []
        shared: list[int] = []
        possible = True
        while pending:
            formula, place = pending.pop()
            match formula:
                case bool():
                    possible = possible and formula
                case Junction(every, parts) if every or len(parts) == 1:
                    pending += [(part, place) for part in reversed(parts)]
                case Junction():
                    choices.append((formula, place))
                case Inequality():
                    literal = self.literal(formula, place)
                    if isinstance(literal, bool):
                        possible = possible and literal
                        continue
                    shared += literal.rows
                    for key, ceiling in literal.ceilings.items():
                        self.bound(key, ceiling, place)
        absent = (np.inf, True)
        for i in range(self.nx):
            if self.base.get(2 * i, absent)[0] <= -self.base.get(2 * i + 1, absent)[0] and self.empty(i, {}):
                low, high = float(-self.base[2 * i + 1][0]), float(self.base[2 * i][0])
                fault = "above" if low > high else "at, with a strict inequality,"
                place = max(self.places[2 * i], self.places[2 * i + 1])
                raise self.error(place, f"the box is empty: input X_{i} has its lower bound {low} {fault} its upper bound {high}")
        conjunctions = [_Conjunction({}, tuple(shared))] if possible else []
        for formula, place in choices:
            conjunctions = self.product(conjunctions, self.normal_form(formula, place))
        return self.build(conjunctions)

    # Arrays

    def build(self, conjunctions: list[_Conjunction]) -> tuple[Disjunct, ...]:
        """The conjunctions as arrays; equal boxes and equal rows are shared."""
        tops = np.full(2 * self.nx, np.inf)
        for key, (value, _) in self.base.items():
            tops[key] = value if type(value) is float else _upward(value)
        boxes: dict[bytes, Box] = {}
        bounds: dict[int, tuple[Box, tuple[int, ...]]] = {}  # by the identity of the ceilings, which `conjunctions` keeps alive
        tables: dict[tuple[int, ...], Rows] = {}
        sharp: dict[tuple[int, float | Fraction, bool], int] = {}
        out: list[Disjunct] = []
        for conjunction in conjunctions:
            ceilings = conjunction.ceilings
            if id(ceilings) not in bounds:
                own = tops.copy()
                for key, (value, _) in ceilings.items():
                    own[key] = _upward(value)
                name = own.tobytes()
                if name not in boxes:
                    boxes[name] = self.box(own)
                bounds[id(ceilings)] = boxes[name], tuple(self.sharp_rows({**self.base, **ceilings}, sharp))
            box, extra = bounds[id(ceilings)]
            on_outputs = tuple(r for r in conjunction.rows if max(self.rows[r].variables) >= self.nx)
            on_inputs = extra + tuple(r for r in conjunction.rows if max(self.rows[r].variables) < self.nx)
            for rows in (on_outputs, on_inputs):
                if rows not in tables:
                    tables[rows] = self.table(rows)
            out.append(Disjunct(box, tables[on_outputs], tables[on_inputs]))
        return tuple(out)

    def box(self, tops: Array) -> Box:
        """The box of the upper bounds of X_i and of -X_i, in turns."""
        missing = np.flatnonzero(np.isinf(tops))
        if missing.size:
            i, side = divmod(int(missing[0]), 2)
            raise InvalidProperty(f"{self.where}: input X_{i} has no {('upper', 'lower')[side]} bound")
        return Box(0.0 - tops[1::2], tops[0::2])

    def sharp_rows(self, ceilings: _Ceilings, known: dict[tuple[int, float | Fraction, bool], int]) -> list[int]:
        """The numbers of the inequalities on single inputs that exclude points of the closed binary64 box."""
        out = []
        for key, (value, closed) in ceilings.items():
            if closed and isinstance(value, float):
                continue
            if (key, value, closed) not in known:
                # value = top / bottom, scaled by a power of two: for a binary64 value bottom is 1.
                bottom = 1 if isinstance(value, float) else value.denominator
                scale = Fraction(2) ** (1 - bottom.bit_length())
                coefficient, rhs = float(bottom * scale), float(Fraction(value) * bottom * scale)
                self.rows.append(_Row([key // 2], [-coefficient if key % 2 else coefficient], rhs, not closed))
                known[key, value, closed] = len(self.rows) - 1
            out.append(known[key, value, closed])
        return out

    def table(self, indices: tuple[int, ...]) -> Rows:
        """Some inequalities as one object."""
        rows = [self.rows[i] for i in indices]
        dense = np.zeros((len(rows), self.nx + self.ny))
        for row, values in zip(rows, dense, strict=True):
            values[row.variables] = row.coefficients
        rhs, strict = np.array([r.rhs for r in rows]), np.array([r.strict for r in rows], dtype=bool)
        if dense[:, : self.nx].any():
            return Rows(dense[:, : self.nx].copy(), dense[:, self.nx :].copy(), rhs, strict)
        on_outputs = Rows.on_outputs(dense[:, self.nx :].copy(), rhs, self.nx)
        return dataclasses.replace(on_outputs, strict=strict)


def compare(relation: str, a: Term, b: Term) -> Formula:
    """a relation b; an equation is two inequalities."""
    if relation in (">=", ">"):
        a, b = b, a
    below = Inequality(difference(a, b), relation in ("<", ">"))
    return below if relation != "=" else Junction(True, (below, Inequality(difference(b, a), False)))


def difference(a: Term, b: Term) -> Term:
    """a - b, which leaves both as they are."""
    coefficients = dict(a.coefficients)
    for variable, coefficient in b.coefficients.items():
        coefficients[variable] = coefficients.get(variable, ZERO) - coefficient
    return Term(coefficients, a.constant - b.constant)


def negate(formula: Formula) -> Formula:
    """The negation, pushed down to the inequalities, whose strictness it flips."""
    match formula:
        case bool():
            return not formula
        case Inequality(term, strict):
            return Inequality(difference(Term({}, ZERO), term), not strict)
        case Junction(every, parts):
            return Junction(not every, tuple(map(negate, parts)))


def _upward(value: float | Fraction) -> float:
    """The smallest binary64 number that is at least the value."""
    nearest = float(value)
    return nearest if nearest >= value else math.nextafter(nearest, math.inf)
