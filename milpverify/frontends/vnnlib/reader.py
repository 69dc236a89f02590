"""VNN-LIB 1.0: assertions over inputs X_i and outputs Y_j, read into the unsafe set in disjunctive normal form.

Numerals denote the nearest binary64 numbers.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from milpverify.config import MOST_BYTES
from milpverify.errors import InvalidProperty
from milpverify.frontends.files import UNREADABLE, read
from milpverify.frontends.vnnlib.alternatives import PropertyTuning
from milpverify.frontends.vnnlib.normal_form import Inequality, Junction, NormalForm
from milpverify.frontends.vnnlib.terms import COMMANDS, Terms
from milpverify.frontends.vnnlib.tokens import NUMERAL, Text, skip, symbol
from milpverify.frontends.vnnlib.variables import Unclear, Variables

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.spec import Disjunct

# Nearly every line of a large file is one of these two; whatever they do not match takes the general path.
_DECLARATION = re.compile(r"\(declare-const ([XY]_(?:0|[1-9][0-9]*)) Real\)\s*").match
_BOUND = re.compile(rf"\(assert \((<=|>=) (X_(?:0|[1-9][0-9]*)) ({NUMERAL})\)\)\s*").match
_IGNORED = ("set-logic", "set-info", "set-option", "echo")
_FINAL = ("check-sat", "get-model", "get-value", "get-info", "exit")


class Property(NamedTuple):
    """The unsafe set, and what to say of how it was read."""

    disjuncts: tuple[Disjunct, ...]
    notes: tuple[str, ...]


def read_vnnlib(path: str | Path) -> str:
    """The text of a VNN-LIB file, as `read_hashed`."""
    return read_hashed(path)[0]


def read_hashed(path: str | Path, max_bytes: int = MOST_BYTES) -> tuple[str, str]:
    """The text of a VNN-LIB file, unpacked where it is compressed with gzip, without a byte order mark, and its SHA-256.

    Raises:
        InvalidProperty: the file is missing, unreadable, not text, or holds more than `max_bytes`.
    """
    try:
        contents = read(path, max_bytes)
        return contents.data.decode("utf-8-sig"), contents.sha256
    except FileNotFoundError:
        raise InvalidProperty(f"{path}: there is no such property file") from None
    except UNREADABLE as error:
        raise InvalidProperty(f"{path}: the property file cannot be read: {error}") from None


def parse_vnnlib(text: str, nx: int, ny: int, where: str = "file", pace: Callable[[], None] = lambda: None) -> tuple[Disjunct, ...]:
    """The unsafe set that a VNN-LIB text asserts, as `parse_property`.

    Raises:
        InvalidProperty: as `parse_property`.
    """
    return parse_property(text, nx, ny, where, pace).disjuncts


def parse_property(
    text: str,
    nx: int,
    ny: int,
    where: str = "file",
    pace: Callable[[], None] = lambda: None,
    tuning: PropertyTuning = PropertyTuning(),
) -> Property:
    """The unsafe set that a VNN-LIB text asserts, for a network with `nx` inputs and `ny` outputs.

    Numerals are rounded to binary64, and so is every coefficient and right-hand side of an inequality, once; what is computed between is
    exact. Bounds of inputs are rounded outwards, and what that adds to the box is excluded by rows.

    Args:
        where: what messages call the text.
        pace: called from time to time; what it raises ends the reading.
        tuning: how much is done to make disjuncts few and boxes small.

    Returns:
        The disjuncts; those whose box or constant inequalities cannot hold are left out, so that none at all means that
        the unsafe set is empty. Equal boxes are one object.

    Raises:
        InvalidProperty: a syntax error, an unknown variable, a nonlinear term, an input without a bound, an empty box;
            the message begins with `where` and the line.
    """
    reader = _Reader(Text(text, where), nx, ny, pace, tuning)
    note = ""
    try:
        reader.read()
        note = reader.variables.note()
        return Property(reader.form.disjuncts(), (note,) if note else ())
    except RecursionError:
        raise InvalidProperty(f"{where}: the assertions are nested too deeply") from None
    except InvalidProperty as error:
        raise InvalidProperty(f"{error} ({note})") if note else error from None


class _Reader:
    """One pass over the text, then the disjunctive normal form of what it asserts."""

    def __init__(self, text: Text, nx: int, ny: int, pace: Callable[[], None], tuning: PropertyTuning) -> None:
        self.text, self.tuning = text, tuning
        self.variables = Variables(nx, ny)
        self.terms = Terms(text, self.variables)
        self.form = NormalForm(nx, ny, text.where, text.error, pace, tuning)
        self.final = ""  # the command after which nothing may follow

    def read(self) -> None:
        """Read every form of the text."""
        text, size, numbers, bound = self.text.text, len(self.text.text), self.variables.numbers, self.form.bound
        declared, bounded, part = _DECLARATION, _BOUND, self.tuning.part
        declare, place, commands = self.variables.declare_numbered, skip(text, 0), 0
        while place < size:
            commands += 1
            if commands % part == 0:
                self.form.pace()
            if not self.final and (match := bounded(text, place)):
                relation, name, numeral = match.groups()
                variable, value = numbers.get(name), float(numeral)
                if variable is None:
                    raise self.text.error(place, self.variables.absent(name))
                if not math.isfinite(value):
                    self.terms.numeral(numeral, place)  # says so
                if relation == "<=":
                    bound(2 * variable, (value, True), place)
                else:
                    bound(2 * variable + 1, (-value, True), place)
                place = match.end()
            elif not self.final and (match := declared(text, place)):
                try:
                    declare(match[1])
                except Unclear as unclear:
                    raise self.text.error(place, str(unclear)) from None
                place = match.end()
            else:
                place = self.command(place)
            if place < size and text[place] != "(":
                place = skip(text, place)
        try:
            self.variables.settle()
        except Unclear as unclear:
            raise InvalidProperty(f"{self.text.where}: {unclear}") from None

    def command(self, start: int) -> int:
        """Read and carry out one command, which may have brackets around it; returns the place after it."""
        if self.text.text[start] != "(":
            stray = self.text.token(start, start).text
            raise self.text.error(start, "')' without '('" if stray == ")" else f"'(' is expected, not {stray!r}")
        opened, place, around = start, start + 1, 0
        while (token := self.text.token(place, opened)).text == "(":
            opened, place, around = token.start, token.end, around + 1
        name = symbol(token.text)
        if self.final and name not in _FINAL:
            raise self.text.error(opened, f"({name} ...) after ({self.final})")
        if name == "assert":
            place = self.assertion(token.end, opened)
        elif name in ("define-fun", "define-const"):
            place = self.definition(name, token.end, opened)
        else:
            items, place = self.text.items(token.start, opened)
            self.carry_out(items, opened)
        for _ in range(around):
            place = self.text.expect(")", place, start, f"a ')' is missing before what follows ({name} ...)")
        return place

    def assertion(self, place: int, opened: int) -> int:
        """Read what is asserted."""
        formula, place = self.terms.value(place, opened)
        token, start, end = self.text.token(place, opened)
        if token == "(" and (name := self.text.token(end, start).text) in COMMANDS:
            raise self.text.error(start, f"({name} ...) inside (assert ...): a ')' is missing before it")
        if token != ")" or not isinstance(formula, bool | Inequality | Junction):
            raise self.text.error(opened, "(assert ...) takes one formula")
        self.form.add(formula, opened)
        return end

    def definition(self, command: str, place: int, opened: int) -> int:
        """Read a definition of a constant, or of a function of some parameters."""
        form = "a definition reads (define-fun name ((x Real) ...) Real term), or () where it has no parameters"
        name = self.text.token(place, opened)
        place, parameters = name.end, list[object]()
        if command == "define-fun":
            parameters, place = self.text.items(self.text.expect("(", place, opened, form), opened)
        sort = self.text.token(place, opened)
        if name.text in "()" or sort.text in "()":
            raise self.text.error(opened, form)
        place = self.terms.define(symbol(name.text), parameters, sort.text, sort.end, opened)
        return self.text.expect(")", place, opened, form)

    def carry_out(self, items: list[object], place: int) -> None:
        """Carry out a command that holds no terms."""
        name = items[0] if items else "()"
        match items:
            case ["declare-const" | "declare-fun", str(variable), "Real"] | ["declare-const" | "declare-fun", str(variable), [], "Real"]:
                self.declare(variable, place)
            case ["declare-const" | "declare-fun", str(variable), *_, ("Int" | "Bool") as sort]:
                raise self.text.error(place, f"{variable} is declared as {sort}, but inputs and outputs are Real")
            case ["declare-const" | "declare-fun", *_]:
                raise self.text.error(place, f"a declaration reads (declare-const X_0 Real), with X_i or Y_j: ({name} ...) does not")
            case [str(), *_] if name in _IGNORED:
                pass
            case [str(), *_] if name in _FINAL:
                self.final = str(name)
            case _:
                known = "declare-const, define-fun and assert are"
                raise self.text.error(place, f"({name} ...) is no command of VNN-LIB 1.0; {known}")

    def declare(self, name: str, place: int) -> None:
        """Declare a variable."""
        if name in self.terms.constants or name in self.terms.functions:
            raise self.text.error(place, f"{name} is declared twice")
        try:
            self.variables.declare(name)
        except Unclear as unclear:
            raise self.text.error(place, str(unclear)) from None
