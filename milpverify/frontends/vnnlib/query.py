"""VNN-LIB 2.0: queries about one or several networks, parsed and type-checked by the `vnnlib` package, as formulas.

The variables of the normal form are the entries of all inputs, network after network in the order of the declarations, then those of all
outputs. A literal denotes a number of the type of the variables that it stands beside (of `real`: the nearest binary64 number), and an
assertion is taken in the reals; how far an evaluation in that type may be from that is `Slack`'s to say.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.normal_form import ONE, ZERO, Formula, Junction, NormalForm, Term, compare, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milpverify.spec import Disjunct

REAL = "real"
NUMBERS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
"""The element types, beside `real`, whose arithmetic is known here."""
_SPELT = {"Real": REAL, "F16": "float16", "F32": "float32", "F64": "float64"}
_RELATIONS = {"GreaterThan": ">", "GreaterEqual": ">=", "LessThan": "<", "LessEqual": "<=", "Equal": "="}
DEEPEST = 200
"""Brackets within each other: the parser is recursive."""


@dataclass(frozen=True)
class Variable:
    """An input or output that is declared: `dtype` is `real` or ONNX's name of an element type."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    def entry(self, place: int) -> str:
        """How a query calls the entry at a place of the flattened tensor."""
        if not self.shape:
            return self.name
        return f"{self.name}[{','.join(str(int(i)) for i in np.unravel_index(place, self.shape))}]"

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Declaration:
    """A network that is declared, and which other one it is equal or isomorphic to (empty: none)."""

    name: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    equal_to: str = ""
    isomorphic_to: str = ""


@dataclass(frozen=True, eq=False)
class Slack:
    """By how much assertions are weakened, so that what is proved holds in the arithmetic of the types as well.

    `largest` (n,) bounds what the entries of all inputs and outputs may come to there, and `error` (n,), finite, by how
    much they differ from their values in the reals.
    """

    largest: list[float]
    error: list[float]

    def of(self, term: Term, size: Term, operations: int, unit: float) -> Fraction | None:
        """How far a term may be from its value in the reals; None where that is not known.

        A sum or product of numbers that are wrong by some part is wrong by the sum of these parts and that of its own rounding: with k
        operations by (1 + u)^k - 1 of the sum of the absolute values of all products, and by what underflows (Higham, Accuracy and
        Stability of Numerical Algorithms, section 3).
        """
        total = ZERO
        for variable, coefficient in term.coefficients.items():
            total += abs(coefficient) * Fraction(self.error[variable])
        if operations:
            known = size.constant
            for variable, coefficient in size.coefficients.items():
                if not math.isfinite(self.largest[variable]):
                    return None
                known += coefficient * Fraction(self.largest[variable])
            rounding = operations * Fraction(unit)
            total += known * rounding / (1 - rounding) + operations * Fraction(2) ** -24
        return total


@dataclass(frozen=True, eq=False)
class _Value:
    """A term, the same with absolute values of all that is added up, and how many of its operations round."""

    term: Term
    size: Term
    operations: int = 0


class Query:
    """A query as the parser understands it.

    Raises:
        InvalidProperty: it is not well-formed, not well-typed, or beyond what is supported: hidden nodes, products of variables, element
            types other than floating-point numbers. The message begins with `where`.
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._parsed = _parsed(text, where)
        self.networks = tuple(self._declaration(network) for network in self._parsed.networks)

    def _declaration(self, network: Any) -> Declaration:
        for hidden in network.hidden:
            raise InvalidProperty(
                f"{self.where}: the hidden node {hidden.name!r} of network {network.name!r}: hidden nodes are not supported"
            )
        inputs, outputs = (tuple(map(self._variable, part)) for part in (network.inputs, network.outputs))
        return Declaration(network.name, inputs, outputs, network.equal_to, network.isometric_to)

    def _variable(self, definition: Any) -> Variable:
        dtype = _SPELT.get(definition.dtype.name)
        if dtype is None:
            kinds = ", ".join(_SPELT.values())
            raise InvalidProperty(
                f"{self.where}: {definition.name!r} is declared with the element type {definition.dtype.name}; there are {kinds}"
            )
        return Variable(definition.name, dtype, tuple(definition.shape))

    @cached_property
    def inputs(self) -> tuple[Variable, ...]:
        """The inputs of all networks."""
        return tuple(v for network in self.networks for v in network.inputs)

    @cached_property
    def outputs(self) -> tuple[Variable, ...]:
        """The outputs of all networks."""
        return tuple(v for network in self.networks for v in network.outputs)

    @property
    def real(self) -> bool:
        """Whether it is about the reals alone."""
        return all(v.dtype == REAL for v in (*self.inputs, *self.outputs))

    @cached_property
    def _offsets(self) -> dict[str, tuple[int, Variable]]:
        """Where the entries of each variable begin."""
        found, offset = {}, 0
        for variable in (*self.inputs, *self.outputs):
            found[variable.name] = offset, variable
            offset += variable.size
        return found

    @cached_property
    def nx(self) -> int:
        """The number of entries of all inputs."""
        return sum(v.size for v in self.inputs)

    @cached_property
    def ny(self) -> int:
        """The number of entries of all outputs."""
        return sum(v.size for v in self.outputs)

    def disjuncts(self, pace: Callable[[], None] = lambda: None, slack: Slack | None = None) -> tuple[Disjunct, ...] | None:
        """What it asks for, as disjuncts over all inputs and outputs; weakened by some slack, None where that is not known.

        Raises:
            InvalidProperty: an assertion is not linear, or an input has no bound.
        """
        form = NormalForm(self.nx, self.ny, self.where, self._error, pace)
        try:
            for assertion in self._parsed.assertions:
                line = next(_lines(assertion), 0)
                formula = self._formula(assertion.expr, slack)
                if formula is None:
                    return None
                form.add(formula, line)
                pace()
            return form.disjuncts()
        except _Empty:
            return ()
        except InvalidProperty as error:
            raise InvalidProperty(re.sub(r"\b([XY])_(\d+)", self._named, str(error))) from error
        except RecursionError:
            raise InvalidProperty(f"{self.where}: the assertions are nested too deeply") from None

    def _error(self, line: int, message: str) -> InvalidProperty:
        kind = _Empty if message.startswith("the box is empty") else InvalidProperty
        return kind(f"{self.where}, line {line}: {message}")

    def _named(self, match: re.Match[str]) -> str:
        """A variable of the normal form as the query calls it."""
        place = int(match[2]) + (self.nx if match[1] == "Y" else 0)
        for offset, variable in self._offsets.values():
            if offset <= place < offset + variable.size:
                return variable.entry(place - offset)
        return match[0]

    def _formula(self, node: Any, slack: Slack | None) -> Formula | None:
        """A Boolean expression; None where it would have to be weakened by nobody knows how much."""
        kind = type(node).__name__
        if kind in ("And", "Or"):
            parts = [self._formula(part, slack) for part in node.args]
            return None if None in parts else Junction(kind == "And", tuple(p for p in parts if p is not None))
        dtype = self._dtype(node)
        left, right = (self._term(side, dtype) for side in (node.lhs, node.rhs))
        if kind == "NotEqual":
            return self._either(left, right, dtype, slack)
        if slack is None:
            return compare(_RELATIONS[kind], left.term, right.term)
        extra = self._extra(left, right, dtype, slack)
        if extra is None:
            return None
        if kind == "Equal":
            below, above = (compare("<=", *pair) for pair in (_apart(left, right, extra), _apart(right, left, extra)))
            return Junction(True, (below, above))
        if kind in ("GreaterThan", "GreaterEqual"):
            left, right = right, left
        return compare("<=" if extra or kind.endswith("Equal") else "<", *_apart(left, right, extra))

    def _either(self, left: _Value, right: _Value, dtype: str, slack: Slack | None) -> Formula | None:
        """left != right."""
        extra = ZERO if slack is None else self._extra(left, right, dtype, slack)
        if extra is None:
            return None
        if extra:  # computed numbers may differ wherever the exact ones are equal
            return True
        return Junction(False, (compare("<", left.term, right.term), compare(">", left.term, right.term)))

    def _extra(self, left: _Value, right: _Value, dtype: str, slack: Slack) -> Fraction | None:
        """By how much a comparison of two sides has to be weakened; None where nobody knows."""
        unit = 0.0 if dtype == REAL else float(np.finfo(NUMBERS[dtype]).eps) / 2
        total = ZERO
        for side in (left, right):
            extra = slack.of(side.term, side.size, 0 if dtype == REAL else side.operations, unit)
            if extra is None:
                return None
            total += extra
        return total

    def _dtype(self, comparison: Any) -> str:
        """The element type of a comparison, which is that of its variables."""
        for name in _names(comparison):
            return self._offsets[name][1].dtype
        return REAL

    def _term(self, node: Any, dtype: str) -> _Value:
        match type(node).__name__:
            case "Var":
                offset, variable = self._offsets[node.name]
                place = int(np.ravel_multi_index(tuple(node.indices), variable.shape)) if variable.shape else 0
                return _Value(Term({offset + place: ONE}, ZERO), Term({offset + place: ONE}, ZERO))
            case "Negate":
                value = self._term(node.expr, dtype)
                return _Value(value.term.scale(-ONE), value.size, value.operations)
            case "Plus" | "Minus":
                parts = node.args if type(node).__name__ == "Plus" else (node.head, *node.rest)
                sign = ONE if type(node).__name__ == "Plus" else -ONE
                total = self._term(parts[0], dtype)
                for part in parts[1:]:
                    value = self._term(part, dtype)
                    operations = total.operations + value.operations + 1
                    total = _Value(total.term.add(value.term.scale(sign)), total.size.add(value.size), operations)
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
            raise InvalidProperty(f"{self.where}, line {line}: {written} is a polynomial; only linear arithmetic is supported")
        factor, other = (b, a) if a.term.coefficients else (a, b)
        operations = a.operations + b.operations + 1
        return _Value(other.term.scale(factor.term.constant), other.size.scale(factor.size.constant), operations)

    def _literal(self, node: Any, dtype: str) -> _Value:
        with np.errstate(over="ignore"):
            value = float(node.lexeme)
            value = value if dtype == REAL else float(NUMBERS[dtype](value))
        if not math.isfinite(value):
            raise InvalidProperty(f"{self.where}, line {node.line}: the number {node.lexeme} is too large for the type {dtype}")
        return _Value(Term({}, Fraction(value)), Term({}, abs(Fraction(value))))

    def satisfied(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> bool:
        """Whether the assertions hold for inputs x (nx,) and outputs y (ny,), evaluated in the arithmetic of their types from left to right."""
        values = np.concatenate([x, y])
        with np.errstate(all="ignore"):
            return all(self._holds(assertion.expr, values) for assertion in self._parsed.assertions)

    def _holds(self, node: Any, values: np.ndarray[Any, Any]) -> bool:
        kind = type(node).__name__
        if kind in ("And", "Or"):
            return (all if kind == "And" else any)(self._holds(part, values) for part in node.args)
        number = NUMBERS.get(self._dtype(node), np.float64)
        left, right = (self._computed(side, values, number) for side in (node.lhs, node.rhs))
        match kind:
            case "Equal":
                return bool(left == right)
            case "NotEqual":
                return bool(left != right)
            case "LessThan":
                return bool(left < right)
            case "LessEqual":
                return bool(left <= right)
            case "GreaterThan":
                return bool(left > right)
            case _:
                return bool(left >= right)

    def _computed(self, node: Any, values: np.ndarray[Any, Any], number: Any) -> Any:
        match type(node).__name__:
            case "Var":
                offset, variable = self._offsets[node.name]
                place = int(np.ravel_multi_index(tuple(node.indices), variable.shape)) if variable.shape else 0
                return number(values[offset + place])
            case "Negate":
                return -self._computed(node.expr, values, number)
            case "Plus" | "Multiply" as kind:
                total, *rest = (self._computed(part, values, number) for part in node.args)
                for part in rest:
                    total = total + part if kind == "Plus" else total * part
                return total
            case "Minus":
                total = self._computed(node.head, values, number)
                for part in node.rest:
                    total = total - self._computed(part, values, number)
                return total
            case _:
                return number(float(node.lexeme))


class _Empty(InvalidProperty):
    """No input satisfies the assertions on inputs alone."""


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


def _parsed(text: str, where: str) -> Any:
    """What the parser makes of a text.

    Raises:
        InvalidProperty: it refuses it.
    """
    import vnnlib

    text = text.removeprefix("\ufeff")
    if not text.isascii():
        text = re.sub(r";[^\n]*", "", text)
    depth = deepest = 0
    for bracket in re.findall(r"[()]", re.sub(r";[^\n]*|\"[^\"\n]*\"", "", text)):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise InvalidProperty(f"{where}: brackets are nested {deepest} deep; {DEEPEST} is the most")
    try:
        return vnnlib.parse_query_string(text)
    except (vnnlib.VNNLibException, IndexError, ValueError) as error:
        raise InvalidProperty(f"{where}{_complaint(str(error), text)}") from error


def _complaint(message: str, text: str) -> str:
    """The parser's message in one line."""
    try:
        found = json.loads(message)["errors"][0]
    except (ValueError, KeyError, IndexError, TypeError):
        place = re.search(r"syntax error at line (\d+), column (\d+): '(.*)'", message)
        if place is None:
            return f": it is no query of VNN-LIB 2.0: {message}"
        hint = "; it begins with (vnnlib-version <2.0>)" if "vnnlib-version" not in text else ""
        at = f" at {place[3]!r}" if place[3] else ""
        return f", line {place[1]}, column {place[2]}: it is no query of VNN-LIB 2.0{at}{hint}"
    symbol = found.get("offendingSymbol", "")
    return f", line {found.get('line', 0)}: {found['message']}: {symbol} ({found.get('hint', '')})"
