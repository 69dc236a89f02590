"""The lowering rules of ONNX operators whose results depend on comparisons of data: masks, choices, conversions, order, thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import elementwise, sorting, switches
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.lowering.rule import Rule
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.frontends.onnx.ops import FLOATS
from milpverify.graph import Node

WHOLE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
COMPARISONS = {
    "Greater": "greater",
    "GreaterOrEqual": "greater_or_equal",
    "Less": "less",
    "LessOrEqual": "less_or_equal",
    "Equal": "equal",
}


def number(value: Value) -> Node | Array:
    """A value whose constants are real numbers, 0 and 1 for false and true."""
    return value if isinstance(value, Node) else value.astype(np.float64)


# Masks and choices


@rule(*COMPARISONS)
def _compare(g: Builder, op: Operation) -> Value:
    return switches.compare(g, COMPARISONS[op.proto.op_type], number(op.value(0)), number(op.value(1)))


@rule("Not")
def _not(g: Builder, op: Operation) -> Value:
    return switches.negate(g, op.node())


@rule("And", "Or", "Xor")
def _combine(g: Builder, op: Operation) -> Value:
    combine = {"And": switches.both, "Or": switches.either, "Xor": switches.differ}[op.proto.op_type]
    return combine(g, number(op.value(0)), number(op.value(1)))


@rule("Where", moves=True, masks=True)
def _where(g: Builder, op: Operation) -> Value:
    condition = op.value(0)
    if isinstance(condition, Node):
        for chosen in (op.value(1), op.value(2)):
            if not isinstance(chosen, Node) and not np.isfinite(chosen.astype(np.float64)).all():
                raise op.refuse("an entry is -inf or not as the network's input says; only constants may say so")
    return switches.where(g, condition if isinstance(condition, Node) else condition.astype(bool), number(op.value(1)), number(op.value(2)))


# Conversions


@rule("Cast", attributes="to saturate round_mode", moves=True)
def _cast(g: Builder, op: Operation) -> Value:
    return converted(g, op, op.node(), op.attributes["to"])


@rule("CastLike", attributes="saturate round_mode", moves=True)
def _cast_like(g: Builder, op: Operation) -> Value:
    x, like = op.value(0), op.value(1)
    if not isinstance(x, Node):
        assert isinstance(like, Node)
        return x.astype(bool if like.id in g.masks else np.float64)
    if isinstance(like, Node):
        return converted(g, op, x, onnx.TensorProto.BOOL if like.id in g.masks else onnx.TensorProto.FLOAT)
    return converted(g, op, x, onnx.helper.np_dtype_to_tensor_dtype(like.dtype))


def converted(g: Builder, op: Operation, x: Node, to: int) -> Node:
    """A tensor in another type: of numbers an integer is what is before the point.

    Raises:
        UnsupportedOperator: there is no rule for the type.
    """
    if to in FLOATS:
        return switches.numbers(g, x)
    if to == onnx.TensorProto.BOOL:
        return switches.truth(g, x)
    if to in WHOLE:
        return switches.numbers(g, x) if x.id in g.masks else elementwise.truncated(g, x)
    raise op.refuse(
        f"it makes a tensor that depends on the network's input {onnx.TensorProto.DataType.Name(to)}; "
        "real types, bool, int32 and int64 have a rule"
    )


_INTEGERS = frozenset("Add Sub Mul Neg Sum ReduceSum ReduceMax ReduceMin Max Min Abs Sign Relu".split())
"""Operators that do with integers what they do with real numbers, moves of entries left aside."""
_READERS = frozenset(["Cast", "CastLike", "DequantizeLinear", *COMPARISONS])


def makes_masks(g: Builder, op: Operation) -> bool:
    """Whether an operation that moves entries moves those of masks alone."""
    if op.proto.op_type in ("Cast", "CastLike"):
        return False
    moved = op.inputs[1:] if op.proto.op_type == "Where" else op.inputs
    nodes = [v for v in moved if isinstance(v, Node)]
    return bool(nodes) and all(v.id in g.masks for v in nodes)


def makes_integers(op: Operation, known: Rule[Any] | None, integers: Sequence[bool]) -> bool:
    """Whether an operation makes integers of what depends on x, which are numbers of the graph as any other.

    Args:
        known: its rule.
        integers: which of its inputs are.

    Raises:
        UnsupportedOperator: it does something else with integers (a quotient, say) than with real numbers.
    """
    name = op.proto.op_type
    if name in ("Cast", "QuantizeLinear"):
        return name != "Cast" or op.attributes["to"] in WHOLE
    if name == "CastLike":
        like = op.value(1)
        return integers[1] if isinstance(like, Node) else like.dtype.kind in "iu"
    if not any(integers) or name in _READERS:
        return False
    if name not in _INTEGERS and (known is None or not known.moves):
        raise op.refuse("it reads integers that depend on the network's input; convert them to real numbers first")
    return True


# Order


@rule("TopK", attributes="axis k largest sorted")
def _top(g: Builder, op: Operation) -> Sequence[Value]:
    """The values; places have no rule, and are refused where anything reads them."""
    count = int(op.attributes["k"] if op.opset < 10 else op.weight(1).reshape(()))
    axis = op.attributes.get("axis", -1)
    if not op.attributes.get("sorted", 1) and count > 1:
        raise op.refuse("with sorted = 0 the order of its entries is the runtime's own; export it with sorted = 1")
    return [sorting.ordered(g, op.node(), axis, range(count), bool(op.attributes.get("largest", 1)))]


# Thresholds


@rule("ThresholdedRelu", attributes="alpha")
def _thresholded_relu(g: Builder, op: Operation) -> Value:
    return g.function("threshold", op.node(), alpha=op.attributes["alpha"])


@rule("Mod", attributes="fmod")
def _remainder(g: Builder, op: Operation) -> Value:
    """x - c trunc(x / c), with the sign of x, for a constant c."""
    divisor = op.weight(1).astype(np.float64)
    if not op.attributes["fmod"]:
        raise op.refuse("of real numbers only the remainder of fmod = 1 has a rule")
    if not np.all(divisor):
        raise InvalidModel(f"{op} divides by zero: the constant '{op.proto.input[1]}' has a zero entry")
    whole = elementwise.truncated(g, g.scale(op.node(), 1.0 / Constant(divisor)))
    return g.sum([op.node(), g.scale(whole, divisor)], [1, -1])


# Machine learning pipelines


@rule("ai.onnx.ml.Binarizer", attributes="threshold")
def _binarizer(g: Builder, op: Operation) -> Value:
    """1 above the threshold, else 0."""
    return g.function("heaviside", g.scale(op.node(), bias=-op.attributes["threshold"]))
