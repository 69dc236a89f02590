"""The lowering rules of ONNX operators that are composed of several core operators: powers, softmax, normalisation."""

from __future__ import annotations

import math

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import composites
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.onnx.node import Operation, Value, rule
from milpverify.frontends.onnx.ops import reduced_axes
from milpverify.graph import Node

# Powers and logarithms


@rule("Reciprocal")
def _reciprocal(g: Builder, op: Operation) -> Value:
    return composites.reciprocal(g, op.node())


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
    inner = {"ReduceL1": "abs", "ReduceL2": "square", "ReduceSumSquare": "square"}.get(name)
    total = g.reduce_sum(g.function(inner, x) if inner else x, axes, keepdims)
    outer = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}.get(name)
    return g.function(outer, total) if outer else total


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
