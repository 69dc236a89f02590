"""What the operators of a property make of terms and formulas.

Maxima and case distinctions are terms, too: a variable of their own stands for each until it is compared with something. Then, with c > 0,

    c max(s, t) + r <= 0   <=>   c s + r <= 0  and  c t + r <= 0,            -c max(s, t) + r <= 0   <=>   -c s + r <= 0  or  -c t + r <= 0,

    c ite(p, s, t) + r <= 0   <=>   (p  and  c s + r <= 0)  or  (not p  and  c t + r <= 0),

for < as well. abs(t) is max(t, -t), min(s, t) is -max(-s, -t), and an ite whose condition compares its branches is one of these, so that
|t| <= 1 stays a conjunction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.normal_form import ONE, ZERO, Formula, Inequality, Junction, Term, compare, difference, negate

Value = Term | Formula
Rule = Callable[[str, list[object], int], Value]

LEAST_GROWTH: Final = 2**16
"""Terms and inequalities that a property may come to in all beyond those it writes down; longer texts may more."""
_LINEAR = "only linear terms are allowed"


@dataclass(frozen=True, eq=False)
class Maximum:
    """The largest of some terms."""

    terms: tuple[Term, ...]


@dataclass(frozen=True, eq=False)
class Cases:
    """One term where the condition holds, another one where it does not."""

    condition: Formula
    then: Term
    otherwise: Term


class Operators:
    """Applies operators to evaluated arguments.

    `first` is the number of the first variable that is free for a maximum or a case distinction; `error` makes the error to raise for a
    place and a message, `term` quotes what stands there; `growth` bounds what is repeated. What is not linear, or no such term, raises it;
    arithmetic is in rationals.
    """

    def __init__(self, first: int, error: Callable[[int, str], InvalidProperty], term: Callable[[int], str], growth: int) -> None:
        self.first, self.error, self.term, self.left = first, error, term, growth
        self.pieces: list[Maximum | Cases] = []
        self.rules: dict[str, Rule] = {
            **dict.fromkeys(("<=", ">=", "<", ">"), self.comparison),
            **dict.fromkeys(("+", "-", "*", "/"), self.arithmetic),
            **dict.fromkeys(("and", "or", "not", "=>", "xor"), self.logic),
            **dict.fromkeys(("abs", "min", "max", "to_real"), self.extremum),
            "=": self.equality,
            "distinct": self.equality,
            "ite": self.cases,
        }

    def spend(self, amount: int, place: int) -> None:
        """Count what is written once and used again.

        Raises:
            InvalidProperty: it is too much.
        """
        self.left -= amount
        if self.left < 0:
            raise self.error(place, "the definitions, maxima and case distinctions of the property multiply out to too many inequalities")

    def terms(self, operator: str, arguments: list[object], place: int, least: int = 1, most: float = float("inf")) -> list[Term]:
        """The arguments, which have to be terms."""
        terms = [a for a in arguments if isinstance(a, Term)]
        if not terms or len(terms) != len(arguments):
            raise self.error(place, f"({operator} ...) takes terms: numbers, variables and sums of them")
        if not least <= len(terms) <= most:
            raise self.error(place, f"({operator} ...) takes {'one term' if most == 1 else 'at least two terms'}")
        return terms

    def formulas(self, operator: str, arguments: list[object], place: int, least: int = 1, most: float = float("inf")) -> list[Formula]:
        """The arguments, which have to be formulas."""
        formulas = [a for a in arguments if isinstance(a, bool | Inequality | Junction)]
        if not least <= len(formulas) <= most or len(formulas) != len(arguments):
            takes = "one formula" if most == 1 else "at least two formulas" if least == 2 else "formulas"
            raise self.error(place, f"({operator} ...) takes {takes}")
        return formulas

    def logic(self, operator: str, arguments: list[object], place: int) -> Formula:
        """Connectives of formulas; => is right associative, xor left."""
        if operator == "not":
            return negate(self.formulas(operator, arguments, place, most=1)[0])
        parts = self.formulas(operator, arguments, place, least=1 if operator in ("and", "or") else 2)
        if operator == "=>":
            return Junction(False, (*map(negate, parts[:-1]), parts[-1]))
        if operator != "xor":
            return Junction(operator == "and", tuple(parts))
        total = parts[0]
        for part in parts[1:]:
            total = self.equivalence(total, part, place, False)
        return total

    def equivalence(self, a: Formula, b: Formula, place: int, same: bool) -> Formula:
        """That two formulas are both true or both false, or that they are not."""
        self.spend(weight(a) + weight(b), place)
        c = b if same else negate(b)
        return Junction(False, (Junction(True, (a, c)), Junction(True, (negate(a), negate(b) if same else b))))

    def comparison(self, operator: str, arguments: list[object], place: int) -> Formula:
        """A chain of comparisons."""
        terms = self.terms(operator, arguments, place)
        if len(terms) < 2:
            raise self.error(place, f"({operator} ...) compares at least two terms")
        if len(terms) == 2:
            return self.compared(operator, terms[0], terms[1], place)
        return Junction(True, tuple(self.compared(operator, a, b, place) for a, b in itertools.pairwise(terms)))

    def equality(self, operator: str, arguments: list[object], place: int) -> Formula:
        """Terms that are equal, or formulas that say the same, or any two of which do not."""
        same = operator == "="
        pairs = list(itertools.pairwise(arguments) if same else itertools.combinations(arguments, 2))
        self.spend(max(0, len(pairs) - len(arguments)), place)
        parts: list[Formula] = []
        if arguments and not isinstance(arguments[0], Term):
            self.formulas(operator, arguments, place, least=2)
            parts = [self.equivalence(a, b, place, same) for a, b in pairs]  # type: ignore[arg-type]  # formulas all
        elif same:
            return self.comparison(operator, arguments, place)
        else:
            self.terms(operator, arguments, place, least=2)
            parts = [Junction(False, tuple(self.compared(r, a, b, place) for r in ("<", ">"))) for a, b in pairs]  # type: ignore[arg-type]
        return parts[0] if len(parts) == 1 else Junction(True, tuple(parts))

    def compared(self, relation: str, a: Term, b: Term, place: int) -> Formula:
        """a relation b, over inputs and outputs alone."""
        formula = compare(relation, a, b)
        return self.resolved(formula, place) if self.pieces else formula

    def resolved(self, formula: Formula, place: int) -> Formula:
        """A comparison without maxima and case distinctions."""
        match formula:
            case Inequality(term, strict) if (last := max(term.coefficients, default=0)) >= self.first:
                factor = term.coefficients[last]
                rest = Term({v: c for v, c in term.coefficients.items() if v != last}, term.constant)
                if not factor:
                    return self.resolved(Inequality(rest, strict), place)

                def side(part: Term) -> Formula:
                    return self.resolved(Inequality(copied(rest).add(copied(part).scale(factor)), strict), place)

                match self.pieces[last - self.first]:
                    case Maximum(terms):
                        self.spend(len(terms), place)
                        return Junction(factor > 0, tuple(map(side, terms)))
                    case Cases(condition, then, otherwise):
                        self.spend(2 + 2 * weight(condition), place)
                        chosen = Junction(True, (condition, side(then))), Junction(True, (negate(condition), side(otherwise)))
                        return Junction(False, chosen)
            case Junction(every, parts):
                return Junction(every, tuple(self.resolved(part, place) for part in parts))
        return formula

    def extremum(self, operator: str, arguments: list[object], place: int) -> Term:
        """abs, min, max; to_real changes nothing."""
        terms = self.terms(operator, arguments, place, most=1 if operator in ("abs", "to_real") else float("inf"))
        if operator == "abs":
            return self.maximum([terms[0], copied(terms[0]).scale(-ONE)])
        if operator == "min":
            return self.maximum([t.scale(-ONE) for t in terms]).scale(-ONE)
        return self.maximum(terms)

    def maximum(self, terms: list[Term]) -> Term:
        """The largest of some terms."""
        if len(terms) == 1:
            return terms[0]
        if not any(is_variable(t) for t in terms):
            return max(terms, key=lambda t: t.constant)
        return self.named(Maximum(tuple(terms)))

    def cases(self, operator: str, arguments: list[object], place: int) -> Value:
        """(ite condition then otherwise), of formulas or of terms."""
        match arguments:
            case [(bool() | Inequality() | Junction()) as condition, Term() as then, Term() as otherwise]:
                if isinstance(condition, bool):
                    return then if condition else otherwise
                return self.chosen(condition, then, otherwise)
            case [
                (bool() | Inequality() | Junction()) as condition,
                (bool() | Inequality() | Junction()) as then,
                (bool() | Inequality() | Junction()) as otherwise,
            ]:
                self.spend(weight(condition), place)
                return Junction(False, (Junction(True, (condition, then)), Junction(True, (negate(condition), otherwise))))
        raise self.error(place, f"({operator} ...) takes a formula, and two terms or two formulas")

    def chosen(self, condition: Inequality | Junction, then: Term, otherwise: Term) -> Term:
        """A case distinction, or the maximum or minimum that it is."""
        if isinstance(condition, Inequality) and (factor := _ratio(difference(then, otherwise), condition.term)) is not None:
            if factor < 0:  # the condition says that `then` is the larger one
                return self.maximum([then, otherwise])
            return self.maximum([then.scale(-ONE), otherwise.scale(-ONE)]).scale(-ONE)
        return self.named(Cases(condition, then, otherwise))

    def named(self, piece: Maximum | Cases) -> Term:
        """A variable that stands for a piece."""
        self.pieces.append(piece)
        return Term({self.first + len(self.pieces) - 1: ONE}, ZERO)

    def arithmetic(self, operator: str, arguments: list[object], place: int) -> Term:
        """+, -, * and / of terms, linear ones only."""
        total, *rest = self.terms(operator, arguments, place)
        if operator == "-" and not rest:
            return total.scale(-ONE)
        for term in rest:
            if operator in ("+", "-"):
                total = total.add(term if operator == "+" else term.scale(-ONE))
            elif operator == "*":
                if is_variable(total) and is_variable(term):
                    raise self.error(place, f"a product of variables: {_LINEAR}: {self.term(place)}")
                factor, other = (term, total) if not is_variable(term) else (total, term)
                total = other.scale(factor.constant)
            else:
                if is_variable(term):
                    raise self.error(place, f"a division by a variable: {_LINEAR}: {self.term(place)}")
                if not term.constant:
                    raise self.error(place, f"a division by zero: {self.term(place)}")
                total = total.scale(1 / term.constant)
        return total


def is_variable(term: Term) -> bool:
    """Whether a term is no constant."""
    return any(term.coefficients.values())


def copied(term: Term) -> Term:
    """The same term, to be changed."""
    return Term(dict(term.coefficients), term.constant)


def weight(value: Value) -> int:
    """How much there is of a value: inequalities, or coefficients."""
    if isinstance(value, Term):
        return 1 + len(value.coefficients)
    total, pending = 0, [value]
    while pending:
        formula = pending.pop()
        total += 1
        if isinstance(formula, Junction):
            pending += formula.parts
    return total


def _ratio(a: Term, b: Term) -> Fraction | None:
    """The factor with which b is a, if there is one."""
    coefficients = {v: c for v, c in b.coefficients.items() if c}
    if not coefficients or {v for v, c in a.coefficients.items() if c} != set(coefficients):
        return None
    factor = next(a.coefficients[v] / c for v, c in coefficients.items())
    same = a.constant == factor * b.constant and all(a.coefficients[v] == factor * c for v, c in coefficients.items())
    return factor if same else None
