"""Terms and formulas of a property: evaluated as they are read, with `let` and the definitions of `define-fun`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.normal_form import ONE, ZERO, Inequality, Junction, Term
from milpverify.frontends.vnnlib.operators import LEAST_GROWTH, Operators, Value, copied, is_variable, weight
from milpverify.frontends.vnnlib.tokens import NUMBER, TOKEN, Text, symbol
from milpverify.frontends.vnnlib.variables import VARIABLE, Variables

if TYPE_CHECKING:
    from collections.abc import Collection

COMMANDS = ("assert", "declare-const", "declare-fun", "define-fun", "define-const")
_OPERATORS_OF_TEXT = ("let", "!", *COMMANDS)
_EXPECTED = "a term or formula is expected, not ')'"
_DEFINABLE = ("abs", "min", "max", "to_real")  # what a property may define otherwise


class _Bound(NamedTuple):
    """What a name stands for, and how much it is."""

    value: Value
    weight: int


@dataclass(frozen=True)
class _Function:
    """A function with parameters, whose body is read at every use: parameters and their sorts, the sort and the place of the body.

    In its body those functions are known that were defined before, whose numbers are smaller.
    """

    parameters: tuple[tuple[str, str], ...]
    sort: str
    body: int
    number: int


class Terms:
    """Evaluates the terms of a text over its variables; numerals are rounded once to binary64, all else is exact.

    What is no term, or means nothing, raises the text's InvalidProperty, whose message begins with file and line.
    """

    def __init__(self, text: Text, variables: Variables) -> None:
        self.text, self.variables = text, variables
        growth = max(LEAST_GROWTH, 4 * len(text.text))
        self.operators = Operators(variables.nx + variables.ny, text.error, text.term, growth)
        self.bound: dict[str, _Bound] = {}  # by `let`, and parameters
        self.constants: dict[str, _Bound] = {}
        self.functions: dict[str, _Function] = {}
        self.known = math.inf  # functions of smaller numbers are, where a term is read

    def value(self, place: int, opened: int) -> tuple[Value, int]:
        """The value of the term at a place within the brackets opened at another, and the place after it.

        Built from the inside out, without recursion.
        """
        match = TOKEN.match
        text, numbers, bound = self.text.text, self.variables.numbers, self.bound
        stack: list[tuple[int, list[object]]] = []
        while found := match(text, place):
            token, end = found["token"], found.end()
            if token == "(":
                stack.append((found.start("token"), []))
            elif token == ")":
                if not stack:
                    raise self.text.error(found.start("token"), _EXPECTED)
                start, items = stack.pop()
                value = self.apply(items, start)
                if not stack:
                    return value, end
                bound = self.bound
                stack[-1][1].append(value)
            elif not stack:
                return self.atom(token, found.start("token"), stack), end
            elif items := stack[-1][1]:
                number = None if bound else numbers.get(token)
                items.append(self.atom(token, found.start("token"), stack) if number is None else Term({number: ONE}, ZERO))
            elif token == "let":
                items += (token, self.bound)
                end = self.bindings(end, found.start("token"))
                bound = self.bound
            else:
                items.append(token)
            place = end
        raise self.text.error(stack[-1][0] if stack else opened, "'(' without ')'")

    def atom(self, token: str, place: int, stack: list[tuple[int, list[object]]]) -> Value:
        """The value of a symbol or number; `stack` holds the terms that it is in."""
        name = symbol(token)
        if known := self.bound.get(name) or self.constants.get(name):
            self.operators.spend(known.weight, place)
            return copied(known.value) if isinstance(known.value, Term) else known.value
        if name in self.variables.numbers:
            return Term({self.variables.numbers[name]: ONE}, ZERO)
        if NUMBER.fullmatch(token):
            return Term({}, Fraction(self.numeral(token, place)))
        if name in ("true", "false"):
            return name == "true"
        if VARIABLE.fullmatch(name):
            raise self.text.error(place, self.variables.absent(name))
        for start, items in stack:
            if items and isinstance(items[0], str) and not self.is_operator(items[0]):
                raise self.text.error(start, f"{items[0]!r} is no operator of VNN-LIB 1.0: {self.text.term(start)}")
        if stack and stack[-1][1][:1] == ["!"] and len(stack[-1][1]) > 1:
            return True  # an attribute, which says nothing
        hint = f"; for the negative write (- {name[1:]})" if name[0] in "+-" and name[1:] in self.variables.numbers else ""
        raise self.text.error(place, f"{token!r} is neither a number nor a variable X_i or Y_j{hint}")

    def numeral(self, token: str, place: int) -> float:
        """The binary64 number that a numeral denotes."""
        value = float(token)
        if not math.isfinite(value):
            raise self.text.error(place, f"the number {token} is too large")
        return value

    def is_operator(self, name: str) -> bool:
        """Whether a term can begin with a name and have arguments."""
        return name in self.operators.rules or name in _OPERATORS_OF_TEXT or self.is_function(symbol(name))

    def is_function(self, name: str) -> bool:
        """Whether a function of this name is defined where a term is read."""
        return name in self.functions and self.functions[name].number < self.known

    def apply(self, items: list[object], place: int) -> Value:
        """The value of a term in brackets, its arguments evaluated."""
        if not items:
            raise self.text.error(place, "() is no term")
        head, arguments = items[0], items[1:]
        if not isinstance(head, str):
            if arguments:
                raise self.text.error(place, f"an operator is expected after '(': {self.text.term(place)}")
            return head  # type: ignore[return-value]  # redundant brackets around a value
        if self.functions and self.is_function(symbol(head)):
            return self.call(symbol(head), arguments, place)
        if rule := self.operators.rules.get(head):
            return rule(head, arguments, place)
        match head, arguments:
            case "let", [dict() as outer, (bool() | Term() | Inequality() | Junction()) as value]:
                self.bound = outer
                return value
            case "let", _:
                raise self.text.error(place, f"(let (...) ...) takes bindings and one term: {self.text.term(place)}")
            case "!", [(bool() | Term() | Inequality() | Junction()) as value, *_]:
                return value
            case _, [] if head not in _OPERATORS_OF_TEXT:
                return self.atom(head, place, [])  # redundant brackets
            case _ if head in COMMANDS:
                raise self.text.error(place, f"({head} ...) inside (assert ...): a ')' is missing before it")
        raise self.text.error(place, f"{head!r} is no operator of VNN-LIB 1.0: {self.text.term(place)}")

    def bindings(self, place: int, opened: int) -> int:
        """Bind the names of a `let`, whose values do not see each other; returns the place after them."""
        form = "the bindings of (let ...) read ((name term) ...)"
        place = self.text.expect("(", place, opened, form)
        new = dict[str, _Bound]()
        while (token := self.text.token(place, opened)).text == "(":
            name = self.text.token(token.end, opened)
            if name.text in "()":
                raise self.text.error(name.start, form)
            self.check_name(symbol(name.text), new, name.start)
            value, place = self.value(name.end, opened)
            place = self.text.expect(")", place, opened, form)
            new[symbol(name.text)] = _Bound(value, weight(value))
        place = self.text.expect(")", place, opened, form)
        self.bound = self.bound | new
        return place

    def check_name(self, name: str, taken: Collection[str], place: int) -> None:
        """Refuse what cannot be a name that is bound together with those taken."""
        if NUMBER.fullmatch(name) or name in ("true", "false"):
            raise self.text.error(place, f"{name} is no name that a term can be bound to")
        if name in taken:
            raise self.text.error(place, f"{name} is bound twice")

    def define(self, name: str, parameters: list[object], sort: object, place: int, opened: int) -> int:
        """Define a function, or a constant where there are no parameters, whose body stands at a place; returns the place after it."""
        if name in self.variables.numbers or name in self.constants or name in self.functions:
            raise self.text.error(opened, f"{name} is declared twice")
        if (
            VARIABLE.fullmatch(name)
            or NUMBER.fullmatch(name)
            or name in ("true", "false")
            or (self.is_operator(name) and name not in _DEFINABLE)
        ):
            raise self.text.error(opened, f"{name} cannot be defined: it has a meaning already")
        pairs: list[tuple[str, str]] = []
        for parameter in parameters:
            match parameter:
                case [str(called), "Real" | "Bool" as kind]:
                    self.check_name(called, dict(pairs), opened)
                    pairs.append((called, kind))
                case _:
                    raise self.text.error(opened, f"the parameters of {name} read ((x Real) ...); sorts are Real and Bool")
        if sort not in ("Real", "Bool", "Int"):
            raise self.text.error(opened, f"{name} is defined as {sort}; sorts are Real and Bool")
        if pairs:
            self.functions[name] = _Function(tuple(pairs), str(sort), place, len(self.functions))
            return self.passed(place, opened)
        value, end = self.value(place, opened)
        self.constants[name] = _Bound(self.sorted(name, value, str(sort), opened), weight(value))
        return end

    def passed(self, place: int, opened: int) -> int:
        """The place after a term that is not evaluated."""
        token = self.text.token(place, opened)
        if token.text == ")":
            raise self.text.error(token.start, _EXPECTED)
        return self.text.items(token.end, token.start)[1] if token.text == "(" else token.end

    def sorted(self, name: str, value: Value, sort: str, place: int) -> Value:
        """A value of the sort that it is declared to be."""
        if isinstance(value, Term) != (sort != "Bool"):
            raise self.text.error(place, f"{name} is no {'formula' if sort == 'Bool' else 'term'}, but declared as {sort}")
        if sort == "Int" and isinstance(value, Term) and (is_variable(value) or value.constant.denominator != 1):
            raise self.text.error(place, f"{name} is no integer, but declared as Int")
        return value

    def call(self, name: str, arguments: list[object], place: int) -> Value:
        """The value of a defined function: its body, read with the parameters bound, and where it is not known itself."""
        function, outer, known = self.functions[name], self.bound, self.known
        if len(arguments) != len(function.parameters):
            raise self.text.error(place, f"{name} takes {len(function.parameters)} arguments: {self.text.term(place)}")
        self.operators.spend(1, place)
        inner: dict[str, _Bound] = {}
        for (parameter, sort), value in zip(function.parameters, arguments, strict=True):
            if not isinstance(value, bool | Term | Inequality | Junction):
                raise self.text.error(place, f"{name} takes terms: {self.text.term(place)}")
            inner[parameter] = _Bound(self.sorted(parameter, value, sort, place), weight(value))
        self.bound, self.known = inner, function.number
        try:
            value, end = self.value(function.body, function.body)
        except InvalidProperty as error:
            if known < math.inf:  # of uses within each other only the outermost is said
                raise
            raise InvalidProperty(f"{error} ({name} is used in line {self.text.line(place)})") from error
        self.bound, self.known = outer, known
        self.operators.spend(end - function.body, place)
        return self.sorted(name, value, function.sort, place)
