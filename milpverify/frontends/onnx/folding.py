"""What folding constants rounds: how far a constant that a node computes is from the real number it stands for; and how large it gets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError, infer_node_outputs

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import masks
from milpverify.frontends.lowering.builder import check_size
from milpverify.frontends.lowering.constants import ARITHMETIC, Constant
from milpverify.frontends.onnx.node import RULES, Operation
from milpverify.graph import Node

_SHORT: Final = 1024
"""Entries of an input that may say how large a result is."""
_NO_LARGER = ("NonZero", "Unique", "Compress", "MeanVarianceNormalization")
"""Operators whose results have no more entries than their inputs (NonZero: for each dimension), though nothing is inferred of that."""


def folded_roundings(op: Operation, results: Sequence[NDArray[Any]], rounded: Sequence[int]) -> int | None:
    """How often what a node makes of constants is rounded, as `Constant` counts; None where nothing is known of that.

    Args:
        rounded: of its inputs.

    Raises:
        InvalidModel: the result underflows, or it cancels what is not exact.
    """
    if not any(r.dtype.kind == "f" for r in results):  # lengths, places and masks
        return 0
    name, worst = op.proto.op_type, max(rounded, default=0)
    if name.lower() in ARITHMETIC:
        given = [_constant(v, r) for v, r in zip(op.inputs, rounded, strict=True)]
        try:
            return ARITHMETIC[name.lower()](*given).rounded
        except (ValueError, TypeError) as error:
            raise InvalidModel(f"{op} does not fit its inputs: {error}") from error
    return worst if not worst or (name in RULES and RULES[name].moves) else None


def check_sizes(op: Operation, evaluated: bool) -> None:
    """Refuse what would not fit into memory before it is computed, by what ONNX infers of its shape.

    Args:
        evaluated: by the standard's definition, so that what cannot be told is refused, too; rules say better themselves what does not fit.

    Raises:
        ValueError: a result has too many entries, or inputs do not fit.
        UnsupportedOperator: the operator runs a graph (a loop), which may take any time.
    """
    if evaluated and any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in op.proto.attribute):
        raise op.refuse("it has no rule, and runs a graph of its own")
    if evaluated and op.proto.op_type == "Range":  # whose numbers may be too large for float32
        start, limit, step = (float(op.weight(i)) for i in range(3))
        check_size([max(0, math.ceil((limit - start) / step))])
    try:
        found = _shapes(op)
    except (InferenceError, ValidationError) as error:
        if evaluated:
            raise ValueError(error) from error
        return
    for shape in found:
        if None not in shape:
            check_size(n for n in shape if n is not None)
        elif evaluated and op.proto.op_type not in _NO_LARGER:
            raise ValueError("the size of its result cannot be told before it is computed")


def _shapes(op: Operation) -> list[list[int | None]]:
    """The shapes of an operation's results as ONNX infers them from its inputs, [None] where nothing is known.

    Real numbers pass for float32: some inferences read no others.
    """
    types, data = {}, {}
    for name, value in zip(op.proto.input, op.inputs, strict=True):
        if isinstance(value, Node):
            types[name] = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, value.shape)
        elif value is not None and value.dtype != object and value.dtype.kind not in "US":
            with np.errstate(over="ignore"):
                array = np.asarray(value, dtype=np.float32) if value.size <= _SHORT and value.dtype == np.float64 else value
            kind = onnx.TensorProto.FLOAT if value.dtype == np.float64 else onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            types[name] = onnx.helper.make_tensor_type_proto(kind, value.shape)
            if value.size <= _SHORT:
                data[name] = onnx.numpy_helper.from_array(array, name)
    schema = onnx.defs.get_schema(op.proto.op_type, op.opset, "")
    found = infer_node_outputs(schema, op.proto, types, data, opset_imports=[onnx.helper.make_opsetid("", op.opset)])
    return [_lengths(found[name].tensor_type) if name in found else [None] for name in op.proto.output if name]


def _lengths(tensor: onnx.TypeProto.Tensor) -> list[int | None]:
    if not tensor.HasField("shape"):
        return [None]
    return [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]


def _constant(value: Any, rounded: int) -> Constant:
    """A constant with its mark; -inf is exact, and what is made of it has been looked at (`_Lowering.define`)."""
    assert not isinstance(value, Node)
    return masks.split(Constant(np.asarray(value, dtype=np.float64), rounded))[0]
