"""VNN-LIB 2.0: queries about one or several networks, parsed and type-checked by the `vnnlib` package.

Their variables are numbered: the entries of all inputs, network after network in the order of the declarations, then those of all outputs.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.errors import InvalidProperty

if TYPE_CHECKING:
    from collections.abc import Sequence

REAL = "real"
NUMBERS: dict[str, type[np.floating[Any]]] = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
"""The element types, beside `real`, whose arithmetic is known here."""
_SPELT = {"Real": REAL, "F16": "float16", "F32": "float32", "F64": "float64"}
_LETTERS = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint", "C": "complex"}
DEEPEST: Final = 200
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


class Query:
    """A query as the parser understands it; `assertions` are what it asserts, as nodes of the parser.

    Raises:
        InvalidProperty: it is not well-formed, not well-typed, or beyond what is supported: hidden nodes, element types that are no
            floating-point numbers. The message begins with `where`.
    """

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._parsed = _parsed(text, where)
        self.networks = tuple(self._declaration(network) for network in self._parsed.networks)
        names = [network.name for network in self.networks]
        for name in names:
            if names.count(name) > 1:
                raise InvalidProperty(f"{where}: the network {name!r} is declared twice")
        self.assertions: tuple[Any, ...] = tuple(assertion.expr for assertion in self._parsed.assertions)

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
            kinds, kind = ", ".join(_SPELT.values()), re.sub("^(?:BF|[FIUC])", lambda m: _LETTERS[m[0]], definition.dtype.name)
            raise InvalidProperty(f"{self.where}: {definition.name!r} is declared with the element type {kind.lower()}; there are {kinds}")
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
    def offsets(self) -> dict[str, tuple[int, Variable]]:
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

    def place(self, name: str, indices: Sequence[int]) -> int:
        """The number of an entry."""
        offset, variable = self.offsets[name]
        return offset + (int(np.ravel_multi_index(tuple(indices), variable.shape)) if variable.shape else 0)

    def entry(self, place: int) -> str:
        """How it calls the entry of a number."""
        name = next(name for name, (offset, variable) in self.offsets.items() if offset <= place < offset + variable.size)
        return self.offsets[name][1].entry(place - self.offsets[name][0])


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
