"""The unsafe set that some formulas assert: linear inequalities under and, or, not, multiplied out into disjuncts.

What adds nothing goes on the way: of inequalities with the same coefficients a conjunction keeps the tightest, and an alternative that lies
within another one is dropped (where there are not too many to compare). Neither changes the margin of a problem at any point.

Arithmetic on constants is exact; each coefficient and right-hand side of an inequality is rounded once, to the nearest
binary64 number. An inequality on a single input becomes a bound of the box. Where the box, which is closed and binary64,
is larger than the inequality (it is strict, or 3 X_0 <= 1), the inequality is kept in `domain` as well: nothing less is
proved, and no point outside is accepted as a counterexample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.alternatives import Ceilings, Conjunction, PropertyTuning, Row, RowTable, undominated
from milpverify.frontends.vnnlib.arrays import Arrays
from milpverify.spec import Disjunct

MOST_CONJUNCTIONS: Final = 200_000
"""A property that multiplies out to more is refused."""
_RANGE: Final = 2**1000
"""What a quotient may come to, for its numerator and denominator to be binary64 numbers."""
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


class NormalForm:
    """Collects assertions over X_i (variable i) and Y_j (variable nx + j) and multiplies them out.

    A `place` says where an assertion was read; `error` makes the error to raise for a place; `pace` is called from time to time, and may
    raise.
    """

    def __init__(
        self,
        nx: int,
        ny: int,
        where: str,
        error: Callable[[int, str], InvalidProperty],
        pace: Callable[[], None],
        tuning: PropertyTuning = PropertyTuning(),
    ) -> None:
        self.nx, self.ny, self.where, self.error, self.pace, self.tuning = nx, ny, where, error, pace, tuning
        self.base: Ceilings = {}  # the bounds that every disjunct shares
        self.places: dict[int, int] = {}  # where they were read
        self.formulas: list[tuple[Formula, int]] = []
        self.table = RowTable()

    def add(self, formula: Formula, place: int) -> None:
        """Assert a formula."""
        self.formulas.append((formula, place))

    def bound(self, key: int, ceiling: tuple[float | Fraction, bool], place: int) -> None:
        """Assert a bound of one input, as a formula of that kind would (see `Ceilings` for the key and the pair)."""
        if key not in self.base or ceiling < self.base[key]:
            self.base[key] = ceiling
            self.places[key] = place

    def literal(self, inequality: Inequality, place: int) -> bool | Conjunction:
        """One inequality as a truth value, a bound of an input, or a row, each number rounded once to binary64.

        Raises:
            InvalidProperty: binary64 does not hold a number of it.
        """
        term = inequality.term
        try:
            rhs = float(-term.constant)
            pairs = sorted((v, float(c)) for v, c in term.coefficients.items() if c)
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
            return Conjunction({2 * variable + (coefficient < 0): (value, not inequality.strict)})
        variables, coefficients = zip(*pairs, strict=True)
        return Conjunction({}, (self.table.add(Row(variables, coefficients, rhs, inequality.strict)),))

    def empty(self, variable: int, ceilings: Ceilings) -> bool:
        """Whether no value of an input satisfies its bounds."""
        upper, lower = (ceilings.get(k) or self.base.get(k) for k in (2 * variable, 2 * variable + 1))
        if upper is None or lower is None:
            return False
        return upper[0] < -lower[0] or (upper[0] == -lower[0] and not (upper[1] and lower[1]))

    def absorb(self, ceilings: Ceilings, extra: Ceilings) -> bool:
        """Tighten `ceilings` in place; whether the box is still possible."""
        for key, ceiling in extra.items():
            known = ceilings.get(key) or self.base.get(key)
            if known is None or ceiling < known:
                ceilings[key] = ceiling
        return not any(self.empty(key // 2, ceilings) for key in extra)

    def product(self, left: list[Conjunction], right: list[Conjunction]) -> list[Conjunction]:
        """Every pair of conjunctions whose boxes meet, but for those that lie within another."""
        out: list[Conjunction] = []
        for a in left:
            self.pace()
            for b in right:
                ceilings = dict(a.ceilings) if b.ceilings else a.ceilings
                if not b.ceilings or self.absorb(ceilings, b.ceilings):
                    out.append(Conjunction(ceilings, self.table.tightest(a.rows, b.rows)))
            self.guard(out)
        return undominated(out, self.table, self.tuning)

    def guard(self, conjunctions: list[Conjunction]) -> None:
        """Refuse a property that multiplies out to too much.

        Raises:
            InvalidProperty: there are more than `MOST_CONJUNCTIONS`.
        """
        if len(conjunctions) > MOST_CONJUNCTIONS:
            limit = f"{MOST_CONJUNCTIONS} conjunctions"
            raise InvalidProperty(f"{self.where}: the assertions multiply out to more than {limit}; split the property into several files")

    def normal_form(self, formula: Formula, place: int) -> list[Conjunction]:
        """The conjunctions whose disjunction the formula is, without those that the bounds of the whole file exclude."""
        match formula:
            case bool():
                return [Conjunction({})] if formula else []
            case Inequality():
                literal = self.literal(formula, place)
                if isinstance(literal, bool):
                    return self.normal_form(literal, place)
                return self.product([Conjunction({})], [literal])
            case Junction(False, parts):
                union: list[Conjunction] = []
                for part in parts:
                    self.pace()
                    union += self.normal_form(part, place)
                    self.guard(union)
                return undominated(union, self.table, self.tuning)
            case Junction(parts=parts):
                # Single conjunctions are gathered in place: one that spells out a whole box costs its length, not the square.
                ceilings: Ceilings = {}
                rows: list[int] = []
                choices: list[list[Conjunction]] = []
                for part in parts:
                    options = self.normal_form(part, place)
                    if len(options) != 1:
                        choices.append(options)
                    elif self.absorb(ceilings, options[0].ceilings):
                        rows += options[0].rows
                    else:
                        return []
                out = [Conjunction(ceilings, self.table.tightest(tuple(rows)))]
                for options in choices:
                    out = self.product(out, options)
                return out

    def disjuncts(self) -> tuple[Disjunct, ...]:
        """Multiply the assertions out: first what every disjunct shares, then the choices.

        Raises:
            InvalidProperty: the box is empty, an input has no bound, or there are too many conjunctions or coefficients.
        """
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
        absent = (math.inf, True)
        for i in range(self.nx):
            if self.base.get(2 * i, absent)[0] <= -self.base.get(2 * i + 1, absent)[0] and self.empty(i, {}):
                low, high = float(-self.base[2 * i + 1][0]), float(self.base[2 * i][0])
                fault = "above" if low > high else "at, with a strict inequality,"
                place = max(self.places[2 * i], self.places[2 * i + 1])
                raise self.error(place, f"the box is empty: input X_{i} has its lower bound {low} {fault} its upper bound {high}")
        conjunctions = [Conjunction({}, self.table.tightest(tuple(shared)))] if possible else []
        for formula, place in choices:
            conjunctions = self.product(conjunctions, self.normal_form(formula, place))
        arrays = Arrays(self.base, self.table.rows, self.nx, self.ny, self.where, self.tuning)
        return arrays.disjuncts(conjunctions, self.pace)


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
