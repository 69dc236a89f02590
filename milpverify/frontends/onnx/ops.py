"""The lowering rules of ONNX operators: arithmetic, moving entries, reductions, piecewise-linear functions.

Operators whose whole work is an elementwise function of the catalogue need no rule here: the driver finds them by the
catalogue's `onnx` field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import composites, elementwise
from milpverify.frontends.lowering.axes import axes_named
from milpverify.frontends.lowering.builder import Builder, check_size, entries
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.onnx.folding import check_sizes
from milpverify.frontends.onnx.node import Operation, Value, evaluate, rule
from milpverify.graph import Node

FLOATS = {1: "float32", 10: "float16", 11: "float64"}
"""The types of real numbers that a network may compute in, by their number in ONNX."""
LARGEST = float(np.finfo(np.float32).max)

# Arithmetic


@rule("Add", "Sum", linear_in_constants=True, masks=True)
def _add(g: Builder, op: Operation) -> Value:
    return elementwise.total(g, [op.value(i) for i in range(len(op.inputs))], [1] * len(op.inputs))


@rule("Mean", linear_in_constants=True)
def _mean(g: Builder, op: Operation) -> Value:
    total = elementwise.total(g, [op.value(i) for i in range(len(op.inputs))], [1] * len(op.inputs))
    return g.scale(total, 1.0 / Constant.of(float(len(op.inputs))))


@rule("Sub", linear_in_constants=True)
def _subtract(g: Builder, op: Operation) -> Value:
    return elementwise.total(g, [op.value(0), op.value(1)], [1, -1])


@rule("Neg")
def _negate(g: Builder, op: Operation) -> Value:
    return g.scale(op.node(), -1)


@rule("Mul", linear_in_constants=True)
def _multiply(g: Builder, op: Operation) -> Value:
    a, b = op.value(0), op.value(1)
    if isinstance(a, Node) and isinstance(b, Node):
        return composites.multiply(g, a, b)
    return g.scale(op.node(0), op.weight(1)) if isinstance(a, Node) else g.scale(op.node(1), op.weight(0))


@rule("Div", linear_in_constants=True)
def _divide(g: Builder, op: Operation) -> Value:
    a, b = op.value(0), op.value(1)
    if isinstance(b, Node):
        return composites.divide(g, a, b)
    if not np.all(b):
        raise InvalidModel(f"{op} divides by zero: the constant '{op.proto.input[1]}' has a zero entry")
    return g.scale(op.node(), 1.0 / Constant(b))


@rule("MatMul", linear_in_constants=True)
def _matmul(g: Builder, op: Operation) -> Value:
    return composites.matrix_product(g, op.value(0), op.value(1))


@rule("Gemm", attributes="alpha beta transA transB", linear_in_constants=True, masks=True)
def _gemm(g: Builder, op: Operation) -> Value:
    factors: list[Value] = []
    alpha, beta = op.attributes["alpha"], op.attributes["beta"]
    for i, transposed in enumerate((op.attributes["transA"], op.attributes["transB"])):
        value = op.value(i)
        if len(value.shape) != 2:
            raise InvalidModel(f"{op} multiplies a tensor of shape {tuple(value.shape)}, which is no matrix")
        if transposed:
            value = g.transpose(value) if isinstance(value, Node) else value.T
        factors.append(value)
    c = op.optional(2)
    nodes = [isinstance(f, Node) for f in factors]
    if not any(nodes):
        factors[0] = g.constant(factors[0])  # type: ignore[arg-type]
    if all(nodes):
        y = g.scale(composites.matrix_product(g, *factors), alpha)
    else:
        # A float32 factor times a float32 weight is exact in float64.
        y = composites.matrix_product(g, *(f if isinstance(f, Node) else Constant(f) * alpha for f in factors))
    if c is None:
        return y
    return g.sum([y, g.scale(c, beta)]) if isinstance(c, Node) else g.scale(y, bias=Constant(c) * beta)


@rule("Einsum", attributes="equation", linear_in_constants=True)
def _einsum(g: Builder, op: Operation) -> Value:
    from milpverify.frontends.lowering.einsum import einsum

    return einsum(g, op.attributes["equation"], [op.value(i) for i in range(len(op.inputs))])


@rule("BatchNormalization", attributes="epsilon momentum", linear_in_constants=True)
def _batch_normalization(g: Builder, op: Operation) -> Value:
    x = op.node()
    weight, bias, mean, variance = (op.weight(i) for i in range(1, 5))
    return composites.batch_norm(g, x, mean, variance, op.attributes["epsilon"], weight, bias)


# Moving entries


@rule("Identity", moves=True)
def _identity(g: Builder, op: Operation) -> Value:
    return op.value(0)


@rule("Dropout", attributes="ratio seed", moves=True)
def _dropout(g: Builder, op: Operation) -> Value:
    training = op.constant(2)
    if training is not None and np.any(training):
        raise op.refuse("it is in training mode, hence random; export the network in evaluation mode")
    return op.value(0)


@rule("Shape", attributes="start end")
def _shape(g: Builder, op: Operation) -> Value:
    return np.array(op.node().shape[op.attributes.get("start", 0) : op.attributes.get("end")], dtype=np.int64)


@rule("Size")
def _size(g: Builder, op: Operation) -> Value:
    return np.array(op.node().size, dtype=np.int64)


@rule("Reshape", attributes="allowzero", moves=True)
def _reshape(g: Builder, op: Operation) -> Value:
    x = op.node()
    target = [int(n) for n in op.weight(1)]
    if not op.attributes.get("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    if -1 in target:
        rest = -math.prod(target)
        target[target.index(-1)] = x.size // rest if rest > 0 else -1
    return g.reshape(x, target)


@rule("Flatten", attributes="axis", moves=True)
def _flatten(g: Builder, op: Operation) -> Value:
    x = op.node()
    axis = op.attributes["axis"] % (len(x.shape) + 1) if op.attributes["axis"] >= 0 else op.attributes["axis"] + len(x.shape)
    return g.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


def axes_of(op: Operation, rank: int) -> list[int] | None:
    """The axes that an attribute or input 1 names, >= 0 and in order; None where they are left out."""
    given = op.attributes.get("axes")
    if given is None and (array := op.constant(1)) is not None:
        given = array.reshape(-1).tolist()
    if given is None:
        return None
    return axes_named(given, rank, op)


@rule("Squeeze", attributes="axes", moves=True)
def _squeeze(g: Builder, op: Operation) -> Value:
    x = op.node()
    axes = axes_of(op, len(x.shape))
    return g.reshape(x, [n for a, n in enumerate(x.shape) if (n != 1 if axes is None else a not in axes)])


@rule("Unsqueeze", attributes="axes", moves=True)
def _unsqueeze(g: Builder, op: Operation) -> Value:
    x = op.node()
    given = op.attributes["axes"] if "axes" in op.attributes else op.weight(1).reshape(-1)
    axes = axes_of(op, len(x.shape) + len(given))
    target = list(x.shape)
    for axis in axes or []:
        target.insert(axis, 1)
    return g.reshape(x, target)


@rule("Transpose", attributes="perm", moves=True)
def _transpose(g: Builder, op: Operation) -> Value:
    x = op.node()
    return g.permute(x, op.attributes.get("perm", list(reversed(range(len(x.shape))))))


@rule("DepthToSpace", "SpaceToDepth", attributes=None)
@rule(
    "Slice", "Split", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "ReverseSequence", "Compress", attributes=None, moves=True
)
def _move(g: Builder, op: Operation) -> Sequence[Value]:
    """Entries are only moved: the standard's own definition, run on the places of the entries, says where to."""
    x = op.node()
    rest = [op.constant(i) for i in range(1, len(op.inputs))]
    check_sizes(op, evaluated=True)
    return [g.select(x, places.astype(np.int64)) for places in evaluate(op.proto, [entries(x.shape), *rest], op.opset)]


@rule("IsNaN", "IsInf", attributes="detect_negative detect_positive")
def _is_no_number(g: Builder, op: Operation) -> Value:
    """Real numbers are numbers; of a mask it is known where it is -inf."""
    x = op.node()
    hidden = g.masked.get(x.id) if op.attributes.get("detect_negative") else None
    return np.zeros(x.shape, dtype=bool) if hidden is None else hidden


@rule("Pad", attributes="mode pads value", moves=True, masks=True)
def _pad(g: Builder, op: Operation) -> Value:
    x = op.node()
    mode = op.attributes["mode"]
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise op.refuse(f"mode '{mode}' has no rule; constant, reflect, edge and wrap have")
    given = op.attributes["pads"] if op.opset < 11 else op.weight(1).tolist()
    fill = op.attributes["value"] if op.opset < 11 else op.constant(2)
    fill = 0.0 if fill is None or mode != "constant" else float(np.asarray(fill).reshape(()))
    rank = len(x.shape)
    axes = range(rank) if (named := op.constant(3)) is None else [int(a) % rank for a in named]
    widths = [(0, 0)] * rank
    for n, axis in enumerate(axes):
        widths[axis] = (int(given[n]), int(given[n + len(given) // 2]))
    # Negative widths crop, before the rest is padded.
    places = entries(x.shape)[tuple(slice(max(0, -b), n - max(0, -e)) for (b, e), n in zip(widths, x.shape, strict=True))]
    outer = [(max(0, b), max(0, e)) for b, e in widths]
    check_size([n + b + e for n, (b, e) in zip(places.shape, outer, strict=True)])
    places = np.pad(places, outer, constant_values=-1) if mode == "constant" else np.pad(places, outer, mode=mode)
    if math.isnan(fill) or fill == math.inf:
        raise InvalidModel(f"{op} pads with {fill}")
    return g.padded(x, places, fill)


@rule("Concat", attributes="axis", moves=True, linear_in_constants=True, masks=True)
def _concat(g: Builder, op: Operation) -> Value:
    values = [op.value(i) for i in range(len(op.inputs))]
    nodes = [v if isinstance(v, Node) else g.constant(v) for v in values]
    return g.concat(nodes, op.attributes["axis"] % len(nodes[0].shape))


# Reductions


def reduced_axes(op: Operation, x: Node) -> list[int]:
    """The axes that a reduction sums over."""
    axes = axes_of(op, len(x.shape))
    if axes:
        return axes
    return [] if op.attributes.get("noop_with_empty_axes") else list(range(len(x.shape)))


@rule("ReduceSum", "ReduceMean", attributes="axes keepdims noop_with_empty_axes")
def _reduce_sum(g: Builder, op: Operation) -> Value:
    x = op.node()
    axes = reduced_axes(op, x)
    reduce = g.reduce_sum if op.proto.op_type == "ReduceSum" else partial(composites.mean, g)
    return reduce(x, axes, bool(op.attributes["keepdims"]))


@rule("GlobalAveragePool")
def _global_average_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return composites.mean(g, x, range(2, len(x.shape)))


@rule("ReduceMax", "ReduceMin", attributes="axes keepdims noop_with_empty_axes")
def _reduce_max(g: Builder, op: Operation) -> Value:
    x = op.node()
    axes = reduced_axes(op, x)
    sign = 1 if op.proto.op_type == "ReduceMax" else -1
    return composites.extremum(g, x, axes, bool(op.attributes["keepdims"]), sign) if axes else x


@rule("GlobalMaxPool")
def _global_max_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return composites.extremum(g, x, range(2, len(x.shape)))


# Piecewise-linear functions


@rule("Max", "Min", moves=True, masks=True)
def _maximum(g: Builder, op: Operation) -> Value:
    sign = 1 if op.proto.op_type == "Max" else -1
    values = [op.value(i) for i in range(len(op.inputs))]
    nodes = [v for v in values if isinstance(v, Node)]
    constants = [v for v in values if not isinstance(v, Node)]
    while len(nodes) > 1:
        pairs = [g.larger(a, b, sign) for a, b in zip(nodes[::2], nodes[1::2], strict=False)]
        nodes = pairs + nodes[2 * len(pairs) :]
    if not constants:
        return nodes[0]
    bound = constants[0]
    for other in constants[1:]:
        bound = np.maximum(bound, other) if sign > 0 else np.minimum(bound, other)
    return g.larger_constant(nodes[0], bound, sign)


@rule("Abs", "Relu", moves=True)
def _keep_sizes(g: Builder, op: Operation) -> Value:
    """The catalogue has these functions too; the rule says that they round nothing."""
    return g.function(op.proto.op_type.lower(), op.node())


@rule("Clip", attributes="min max", masks=True)
def _clip(g: Builder, op: Operation) -> Value:
    bounds: list[Any] = [op.attributes.get("min"), op.attributes.get("max")] if op.opset < 11 else [op.optional(1), op.optional(2)]
    if any(isinstance(b, Node) for b in bounds):
        x = op.node()
        for bound, sign in zip(bounds, (1, -1), strict=True):
            if isinstance(bound, Node):
                x = g.larger(x, bound, sign)
            elif bound is not None and abs(float(bound.reshape(()))) < LARGEST:
                x = g.larger_constant(x, np.asarray(bound), sign)
        return x
    lower, upper = (none if b is None else float(np.asarray(b).reshape(())) for b, none in zip(bounds, (-math.inf, math.inf), strict=True))
    # The standard's defaults, the largest float32 numbers, mean that there is no bound. The upper one wins where the lower is above it.
    lower = min(lower, upper)
    return g.clip(op.node(), -math.inf if lower <= -LARGEST else lower, math.inf if upper >= LARGEST else upper)


@rule("HardSigmoid", attributes="alpha beta")
def _hard_sigmoid(g: Builder, op: Operation) -> Value:
    return g.clip(g.scale(op.node(), op.attributes["alpha"], op.attributes["beta"]), 0.0, 1.0)


@rule("Ceil")
def _ceil(g: Builder, op: Operation) -> Value:
    return composites.ceil(g, op.node())


@rule("PRelu")
def _prelu(g: Builder, op: Operation) -> Value:
    return elementwise.prelu(g, op.node(), op.weight(1))
