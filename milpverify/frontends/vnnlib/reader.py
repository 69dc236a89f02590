"""VNN-LIB 1.0: assertions over inputs X_i and outputs Y_j, read into the unsafe set in disjunctive normal form.

Numerals denote the nearest binary64 numbers.
"""

from __future__ import annotations

import gzip
import itertools
import math
import re
import zlib
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.normal_form import ONE, ZERO, Formula, Inequality, Junction, NormalForm, Term, compare, negate

if TYPE_CHECKING:
    from milpverify.spec import Disjunct

_Value = Term | Formula

_NUMERAL = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_NUMBER = re.compile(_NUMERAL)
_VARIABLE = re.compile(r"([XY])_(0|[1-9][0-9]*)")
_TOKEN = re.compile(r"\s+|;[^\n]*|(?P<token>[()]|\|[^|]*\||\"[^\"]*\"|[^\s();|\"]+|[|\"])")
_SPACE = re.compile(r"(?:\s+|;[^\n]*)*")
# Nearly every line of a large file is one of these two; whatever they do not match takes the general path.
_DECLARATION = re.compile(r"\(declare-const ([XY]_(?:0|[1-9][0-9]*)) Real\)\s*")
_BOUND = re.compile(rf"\(assert \((<=|>=) (X_(?:0|[1-9][0-9]*)) ({_NUMERAL})\)\)\s*")
_IGNORED = ("set-logic", "set-info", "set-option")
_FINAL = ("check-sat", "get-model", "exit")


def read_vnnlib(path: str | Path) -> str:
    """The text of a VNN-LIB file, unpacked where it is compressed with gzip.

    Raises:
        InvalidProperty: the file is missing, unreadable, or not text.
    """
    try:
        data = Path(path).read_bytes()
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
    except FileNotFoundError:
        raise InvalidProperty(f"{path}: there is no such property file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidProperty(f"{path}: the property file cannot be read: {error}") from None


def parse_vnnlib(text: str, nx: int, ny: int, where: str = "file") -> tuple[Disjunct, ...]:
    """The unsafe set that a VNN-LIB text asserts, for a network with `nx` inputs and `ny` outputs.

    Returns:
        The disjuncts; those whose box or constant inequalities cannot hold are left out, so that none at all means that
        the unsafe set is empty. Equal boxes are one object.

    Raises:
        InvalidProperty: a syntax error, an unknown variable, a nonlinear term, an input without a bound, an empty box;
            the message begins with `where` and the line.
    """
    reader = _Reader(text, nx, ny, where)
    try:
        reader.read()
        return reader.form.disjuncts()
    except RecursionError:
        raise InvalidProperty(f"{where}: the assertions are nested too deeply") from None


class _Reader:
    """One pass over the text, then the disjunctive normal form of what it asserts."""

    def __init__(self, text: str, nx: int, ny: int, where: str) -> None:
        self.text, self.nx, self.ny, self.where = text, nx, ny, where
        self.names: dict[str, int] = {}
        self.form = NormalForm(nx, ny, where, self.error)
        self.final = ""  # the command after which nothing may follow

    def error(self, place: int, message: str) -> InvalidProperty:
        """The error to raise for what stands at a place of the text."""
        line = self.text.count("\n", 0, place) + 1
        return InvalidProperty(f"{self.where}, line {line}: {message}")

    def read(self) -> None:
        """Read every form of the text."""
        text, size, names, bound = self.text, len(self.text), self.names, self.form.bound
        place = _skip(text, 0)
        while place < size:
            if not self.final and (match := _BOUND.match(text, place)):
                relation, name, numeral = match.groups()
                variable, value = names.get(name), float(numeral)
                if variable is None or not math.isfinite(value):  # these say so
                    variable, value = self.variable(name, place), self.numeral(numeral, place)
                if relation == "<=":
                    bound(2 * variable, (value, True), place)
                else:
                    bound(2 * variable + 1, (-value, True), place)
                place = match.end()
            elif not self.final and (match := _DECLARATION.match(text, place)):
                self.declare_known(match[1], place)
                place = match.end()
            else:
                place = self.command(place)
            if place < size and text[place] != "(":
                place = _skip(text, place)
        inputs = sum(v < self.nx for v in self.names.values())
        if inputs != self.nx:
            raise InvalidProperty(f"{self.where}: the property declares {inputs} inputs, but the network has {self.nx}")

    def command(self, start: int) -> int:
        """Read and carry out one command; returns the place after it. Terms are built from the inside out, without recursion."""
        stack: list[tuple[int, list[object]]] = []
        place = start
        while match := _TOKEN.match(self.text, place):
            token, place, end = match["token"], match.start(), match.end()
            if token == "(":
                if stack and not stack[-1][1] and stack[0][1][:1] == ["assert"]:
                    raise self.error(place, "an operator is expected after '('")
                stack.append((place, []))
            elif token == ")":
                if not stack:
                    raise self.error(place, "')' without '('")
                opened, items = stack.pop()
                if not stack:
                    self.carry_out(items, opened)
                    return end
                stack[-1][1].append(self.apply(items, opened) if stack[0][1][:1] == ["assert"] else items)
            elif token is not None:
                if not stack:
                    raise self.error(place, f"'(' is expected, not {token!r}")
                items = stack[-1][1]
                items.append(self.atom(token, place) if items and stack[0][1][:1] == ["assert"] else token)
            place = end
        raise self.error(stack[-1][0] if stack else start, "'(' without ')'")

    def carry_out(self, items: list[object], place: int) -> None:
        """Carry out one command; the arguments of `assert` are evaluated already."""
        name = items[0] if items else "()"
        if self.final and name not in _FINAL:
            raise self.error(place, f"({name} ...) after ({self.final})")
        match items:
            case ["assert", bool() | Inequality() | Junction() as formula]:
                self.form.add(formula, place)
            case ["assert", *_]:
                raise self.error(place, "(assert ...) takes one formula")
            case ["declare-const", str(variable), "Real"] | ["declare-fun", str(variable), [], "Real"]:
                self.declare(variable, place)
            case ["declare-const" | "declare-fun", *_]:
                raise self.error(place, f"a declaration reads (declare-const X_0 Real), with X_i or Y_j: ({name} ...) does not")
            case [str(), *_] if name in _IGNORED:
                pass
            case [str()] if name in _FINAL:
                self.final = str(name)
            case _:
                raise self.error(place, f"({name} ...) is no command of VNN-LIB 1.0; declare-const and assert are")

    def declare(self, name: str, place: int) -> None:
        if not _VARIABLE.fullmatch(name):
            raise self.error(place, f"{name!r} is declared, but variables are called X_i and Y_j")
        self.declare_known(name, place)

    def declare_known(self, name: str, place: int) -> None:
        """Declare what is called as a variable is."""
        if name in self.names:
            raise self.error(place, f"{name} is declared twice")
        kind, size, offset = ("input", self.nx, 0) if name[0] == "X" else ("output", self.ny, self.nx)
        if len(name) > 10 or int(name[2:]) >= size:
            raise self.error(place, f"the property names {kind} {name}, but the network has {size} {kind}s")
        self.names[name] = offset + int(name[2:])

    def variable(self, name: str, place: int) -> int:
        if name not in self.names:
            self.declare(name, place)  # says so where the network has no such variable
            raise self.error(place, f"{name} is not declared")
        return self.names[name]

    def numeral(self, token: str, place: int) -> float:
        value = float(token)
        if not math.isfinite(value):
            raise self.error(place, f"the number {token} is too large")
        return value

    def atom(self, token: str, place: int) -> _Value:
        if _VARIABLE.fullmatch(token):
            return Term({self.variable(token, place): ONE}, ZERO)
        if _NUMBER.fullmatch(token):
            return Term({}, Fraction(self.numeral(token, place)))
        if token in ("true", "false"):
            return token == "true"
        raise self.error(place, f"{token!r} is neither a number nor a variable X_i or Y_j")

    def apply(self, items: list[object], place: int) -> _Value:
        """The term or formula of an operator and its evaluated arguments."""
        if not items:
            raise self.error(place, "() is no term")
        operator, arguments = items[0], items[1:]
        match operator:
            case "and" | "or" | "not":
                formulas = tuple(a for a in arguments if isinstance(a, bool | Inequality | Junction))
                if not formulas or len(formulas) != len(arguments) or (operator == "not" and len(formulas) > 1):
                    raise self.error(place, f"({operator} ...) takes {'one formula' if operator == 'not' else 'formulas'}")
                return negate(formulas[0]) if operator == "not" else Junction(operator == "and", formulas)
            case "<=" | ">=" | "<" | ">" | "=" | "+" | "-" | "*" | "/":
                terms = [a for a in arguments if isinstance(a, Term)]
                if not terms or len(terms) != len(arguments):
                    raise self.error(place, f"({operator} ...) takes terms: numbers, variables and sums of them")
                if operator in ("+", "-", "*", "/"):
                    return self.arithmetic(operator, terms, place)
                if len(terms) < 2:
                    raise self.error(place, f"({operator} ...) compares at least two terms")
                pairs = [compare(operator, a, b) for a, b in itertools.pairwise(terms)]
                return pairs[0] if len(pairs) == 1 else Junction(True, tuple(pairs))
            case "assert" | "declare-const" | "declare-fun":
                raise self.error(place, f"({operator} ...) inside (assert ...): a ')' is missing before it")
            case _:
                raise self.error(place, f"{operator!r} is no operator of VNN-LIB 1.0")

    def arithmetic(self, operator: str, terms: list[Term], place: int) -> Term:
        total, rest = terms[0], terms[1:]
        if operator == "-" and not rest:
            return total.scale(-ONE)
        for term in rest:
            if operator in ("+", "-"):
                total = total.add(term if operator == "+" else term.scale(-ONE))
            elif operator == "*":
                if any(total.coefficients.values()) and any(term.coefficients.values()):
                    raise self.error(place, "a product of variables: only linear terms are allowed")
                factor, other = (term, total) if not any(term.coefficients.values()) else (total, term)
                total = other.scale(factor.constant)
            else:
                if any(term.coefficients.values()):
                    raise self.error(place, "a division by a variable: only linear terms are allowed")
                if not term.constant:
                    raise self.error(place, "a division by zero")
                total = total.scale(1 / term.constant)
        return total


def _skip(text: str, place: int) -> int:
    """The place after white space and comments."""
    match = _SPACE.match(text, place)
    return match.end() if match else place
