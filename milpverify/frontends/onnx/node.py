"""One ONNX node as its lowering rule sees it, the registry of rules, and evaluation by the standard's own definitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from milpverify.errors import InvalidModel, UnsupportedOperator
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Array
from milpverify.frontends.lowering.rule import Rule
from milpverify.graph import Node

Value = Node | NDArray[Any]
"""A tensor of the source network: a node where it depends on x, else a constant (float64 where it is a real number)."""


@dataclass(frozen=True)
class Operation:
    """One ONNX node with the values of its inputs (None where an optional one is left out).

    `attributes` are complete: where the node has none the standard's default stands, and only those without one are absent.
    """

    proto: onnx.NodeProto
    opset: int
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return describe(self.proto)

    def refuse(self, why: str) -> UnsupportedOperator:
        """The error that says what has no rule and what to do."""
        return UnsupportedOperator(f"{self} is not supported: {why}")

    def value(self, i: int) -> Value:
        """Input i.

        Raises:
            InvalidModel: it is missing.
        """
        value = self.optional(i)
        if value is None:
            raise InvalidModel(f"{self} has no input {i}")
        return value

    def optional(self, i: int) -> Value | None:
        """Input i, None where it is left out."""
        return self.inputs[i] if i < len(self.inputs) else None

    def node(self, i: int = 0) -> Node:
        """Input i, which must depend on x.

        Raises:
            UnsupportedOperator: it is a constant.
        """
        value = self.value(i)
        if not isinstance(value, Node):
            raise self.refuse(f"input {i} is a constant while another one is not; export it the other way round")
        return value

    def constant(self, i: int) -> NDArray[Any] | None:
        """Input i, which must be a constant or left out.

        Raises:
            UnsupportedOperator: it depends on x.
        """
        value = self.optional(i)
        if isinstance(value, Node):
            raise self.refuse(f"input {i} ('{self.proto.input[i]}') depends on the network's input; only a constant has a rule")
        return value

    def weight(self, i: int) -> Array:
        """Input i, which must be a constant.

        Raises:
            InvalidModel: it is left out.
            UnsupportedOperator: it depends on x.
        """
        value = self.constant(i)
        if value is None:
            raise InvalidModel(f"{self} has no input {i}")
        return value


Lowering = Callable[[Builder, Operation], Value | Sequence[Value | None]]
"""A rule: an operation's value, or the values of its outputs one after the other, None for one that is no tensor of real numbers."""


RULES: dict[str, Rule[Lowering]] = {}


def rule(
    *op_types: str, attributes: str | None = "", moves: bool = False, linear_in_constants: bool = False, masks: bool = False
) -> Callable[[Lowering], Lowering]:
    """Register the rule of some operators, as `Rule` says; `attributes` lists, with spaces, those it heeds."""

    def register(lower: Lowering) -> Lowering:
        entry = Rule(lower, moves, linear_in_constants, masks, None if attributes is None else frozenset(attributes.split()))
        assert RULES.keys().isdisjoint(op_types), f"two rules for one of {op_types}"
        RULES.update(dict.fromkeys(op_types, entry))
        return lower

    return register


def describe(proto: onnx.NodeProto) -> str:
    """How messages name a node: by its name, else by what it computes."""
    label = f"node '{proto.name}'" if proto.name else f"the node that computes '{next(iter(proto.output), '')}'"
    return f"ONNX operator {proto.op_type} ({label})"


def attribute(proto: onnx.AttributeProto) -> Any:
    """An attribute's value; a tensor as an array, text as str."""
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [v.decode() for v in value]
    return value.decode() if isinstance(value, bytes) else value


def evaluate(proto: onnx.NodeProto, inputs: Sequence[NDArray[Any] | None], opset: int) -> list[NDArray[Any]]:
    """The outputs of one node on constants, by the ONNX project's reference definitions, or by ONNX Runtime where these have a gap.

    Real numbers come in float64 and are computed with in float64: the graph speaks about real arithmetic on the stored
    weights, of which this is the closest.

    Raises:
        InvalidModel: the node does not fit its inputs.
        UnsupportedOperator: neither the reference nor ONNX Runtime has a definition of it.
    """
    from onnx.reference import ReferenceEvaluator

    model = _alone(proto, inputs, opset)
    try:
        reference = ReferenceEvaluator(model)
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return evaluate_in_runtime(proto, inputs, opset)
    try:
        results = reference.run(None, {f"i{n}": v for n, v in enumerate(inputs) if v is not None})
    except NotImplementedError:
        return evaluate_in_runtime(proto, inputs, opset)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InvalidModel(f"{describe(proto)} does not fit its inputs: {error}") from error
    return [np.asarray(r) for r in results]


def evaluate_in_runtime(proto: onnx.NodeProto, inputs: Sequence[NDArray[Any] | None], opset: int) -> list[NDArray[Any]]:
    """The outputs of one node on constants, by ONNX Runtime: in float32 where that holds the constants, and where the runtime has no other.

    Raises:
        UnsupportedOperator: ONNX Runtime does not know the operator, or refuses its inputs.
    """
    from milpverify.frontends.onnx.runtime import computed

    given = {f"i{n}": v for n, v in enumerate(inputs) if v is not None}
    narrow = {name: _narrow(v) for name, v in given.items()}
    exact = all(np.array_equal(v, narrow[name]) for name, v in given.items() if v.dtype == np.float64)
    refused: InvalidModel | None = None
    for arrays in (narrow,) if exact else (given, narrow):
        model = _alone(proto, inputs, opset)
        model.graph.ClearField("input")
        model.graph.initializer.extend(onnx.numpy_helper.from_array(v, name) for name, v in arrays.items())
        try:
            return computed(model)
        except InvalidModel as error:
            refused = error
    why = f"on constants is not supported: the reference of ONNX does not define it, and {refused}"
    raise UnsupportedOperator(f"{describe(proto)} {why}") from refused


def _narrow(value: NDArray[Any]) -> NDArray[Any]:
    """Real numbers in float32."""
    with np.errstate(over="ignore"):
        return value.astype(np.float32) if value.dtype == np.float64 else value


def _alone(proto: onnx.NodeProto, inputs: Sequence[NDArray[Any] | None], opset: int) -> onnx.ModelProto:
    """A model of one node, whose inputs are called i0, i1, ..."""
    clean = onnx.NodeProto()
    clean.CopyFrom(proto)
    clean.ClearField("input")
    clean.ClearField("output")
    clean.input.extend("" if v is None else f"i{n}" for n, v in enumerate(inputs))
    clean.output.extend(f"o{n}" for n in range(len(proto.output)))
    untyped = onnx.TypeProto()
    given = [onnx.helper.make_value_info(f"i{n}", untyped) for n, v in enumerate(inputs) if v is not None]
    graph = onnx.helper.make_graph([clean], "node", given, [onnx.helper.make_value_info(n, untyped) for n in clean.output])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8 if opset < 19 else 10)
