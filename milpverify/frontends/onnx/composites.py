"""The lowering rules of ONNX operators that are composed of several core operators: powers, softmax, normalisation."""

from __future__ import annotations

import math

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import composites, norms
from milpverify.frontends.lowering.axes import axes_named
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.frontends.onnx.ops import reduced_axes
from milpverify.graph import Node

# Powers and logarithms


@rule("Reciprocal")
def _reciprocal(g: Builder, op: Operation) -> Value:
    return composites.reciprocal(g, op.node())


@rule("Sqrt")
def _square_root(g: Builder, op: Operation) -> Value:
    return composites.square_root(g, op.node())


@rule("Log")
def _log(g: Builder, op: Operation) -> Value:
    return composites.logarithm(g, op.node())


@rule("Pow")
def _pow(g: Builder, op: Operation) -> Value:
    base, exponent = op.value(0), op.value(1)
    if isinstance(exponent, Node):
        if isinstance(base, Node):
            return g.function("exp", composites.multiply(g, exponent, composites.logarithm(g, base)))
        if not np.all(base > 0):
            raise InvalidModel(f"{op} raises the constant '{op.proto.input[0]}', which is not positive everywhere, to a real power")
        return g.function("exp", g.scale(exponent, Constant(base).log()))
    if not exponent.size or not np.all(exponent == exponent.flat[0]):
        raise op.refuse("exponents that differ between entries have no rule; one for all has")
    x = op.node()
    return composites.power(g, g.broadcast(x, np.broadcast_shapes(x.shape, exponent.shape)), float(exponent.flat[0]))


@rule("Gelu", attributes="approximate")
def _gelu(g: Builder, op: Operation) -> Value:
    return g.function("gelu_tanh" if op.attributes["approximate"] == "tanh" else "gelu", op.node())


@rule("Sinh", "Cosh", "Atanh")
def _hyperbolic(g: Builder, op: Operation) -> Value:
    return composites.hyperbolic(g, op.node(), op.proto.op_type.lower())


@rule("Swish", attributes="alpha")
def _swish(g: Builder, op: Operation) -> Value:
    return composites.swish(g, op.node(), op.attributes["alpha"])


# Softmax


@rule("Softmax", "LogSoftmax", attributes="axis")
def _softmax(g: Builder, op: Operation) -> Value:
    x, axis = op.node(), op.attributes["axis"]
    rewrite = composites.softmax if op.proto.op_type == "Softmax" else composites.log_softmax
    if op.opset >= 13:
        return rewrite(g, x, axis)
    # Older opsets take all axes from this one on as one.
    axis %= len(x.shape)
    rows = g.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))
    return g.reshape(rewrite(g, rows, 1), x.shape)


# Reductions


@rule(
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    attributes="axes keepdims noop_with_empty_axes",
)
def _reduce(g: Builder, op: Operation) -> Value:
    x, keepdims, name = op.node(), bool(op.attributes["keepdims"]), op.proto.op_type
    axes = reduced_axes(op, x)
    if not axes:
        raise op.refuse("without axes, and with noop_with_empty_axes, it has no rule")
    if name == "ReduceLogSumExp":
        return composites.log_sum_exp(g, x, axes, keepdims)
    if name == "ReduceProd":
        return composites.product_of_entries(g, x, axes, keepdims)
    if name in ("ReduceL1", "ReduceL2"):
        return norms.norm(g, x, axes, 1.0 if name == "ReduceL1" else 2.0, keepdims)
    total = g.reduce_sum(g.function("square", x) if name == "ReduceSumSquare" else x, axes, keepdims)
    return composites.logarithm(g, total) if name == "ReduceLogSum" else total


@rule("GlobalLpPool", attributes="p")
def _global_lp_pool(g: Builder, op: Operation) -> Value:
    x = op.node()
    return norms.norm(g, x, range(2, len(x.shape)), op.attributes["p"])


# Normalisation


@rule("LayerNormalization", attributes="axis epsilon stash_type", linear_in_constants=True)
def _layer_normalization(g: Builder, op: Operation) -> Value:
    x = op.node()
    axes = range(op.attributes["axis"] % len(x.shape), len(x.shape))
    return composites.layer_norm(g, x, axes, op.attributes["epsilon"], op.weight(1), op.constant(2))


@rule("RMSNormalization", attributes="axis epsilon stash_type", linear_in_constants=True)
def _rms_normalization(g: Builder, op: Operation) -> Value:
    x = op.node()
    axes = range(op.attributes["axis"] % len(x.shape), len(x.shape))
    return composites.rms_norm(g, x, axes, op.attributes["epsilon"], op.weight(1))


@rule("InstanceNormalization", attributes="epsilon", linear_in_constants=True)
def _instance_normalization(g: Builder, op: Operation) -> Value:
    x = op.node()
    weight, bias = (op.weight(i).reshape(-1, *[1] * (len(x.shape) - 2)) for i in (1, 2))
    return composites.layer_norm(g, x, range(2, len(x.shape)), op.attributes["epsilon"], weight, bias)


@rule("GroupNormalization", attributes="epsilon num_groups stash_type", linear_in_constants=True)
def _group_normalization(g: Builder, op: Operation) -> Value:
    if op.opset < 21:
        raise op.refuse("before opset 21 its scale and bias are per group, which ONNX itself calls a mistake; export it with opset 21")
    return composites.group_norm(g, op.node(), op.attributes["num_groups"], op.attributes["epsilon"], op.weight(1), op.weight(2))


@rule("MeanVarianceNormalization", attributes="axes")
def _mean_variance_normalization(g: Builder, op: Operation) -> Value:
    x = op.node()
    axes = axes_named(op.attributes.get("axes") or [0, 2, 3], len(x.shape), op)
    # ONNX Runtime adds nothing to the variance, nor does the standard's text; the function that the standard has beside it adds 1e-9.
    return composites.layer_norm(g, x, axes, 0.0)


@rule("LpNormalization", attributes="axis p")
def _lp_normalization(g: Builder, op: Operation) -> Value:
    x = op.node()
    return norms.normalized(g, x, axes_named([op.attributes["axis"]], len(x.shape), op), op.attributes["p"])


@rule("LRN", attributes="alpha beta bias size")
def _local_response_normalization(g: Builder, op: Operation) -> Value:
    size = op.attributes["size"]
    if size < 1:
        raise InvalidModel(f"{op} has a window of {size} channels")
    window = (size - 1) // 2, size // 2
    return norms.local_response(
        g, op.node(), window, Constant.of(op.attributes["alpha"]) / float(size), op.attributes["beta"], op.attributes["bias"]
    )
