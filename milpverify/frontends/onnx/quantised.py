"""Integers that stand for real numbers: DequantizeLinear of stored weights, and both ways on data.

An integer q stands for (q - zero point) scale, exactly. QuantizeLinear of data is round(x / scale) + zero point, halves to the even
neighbour, within what the type holds; it jumps, and at a jump both sides count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.onnx.node import Operation, Value, rule

_RANGES: Final = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "uint4": (0, 15),
    "int4": (-8, 7),
}


def dequantized(op: Operation, rounded: Sequence[int]) -> Constant:
    """What stored integers stand for.

    Args:
        rounded: how often the inputs are, as `Constant` counts.

    Raises:
        InvalidModel: the scale or the zero point does not fit.
    """
    x = op.weight(0)
    scale, zero = _parameters(op, x.shape)
    return (Constant(x.astype(np.float64)) - zero) * Constant(scale, max(rounded))


def _parameters(op: Operation, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and zero point in a shape that broadcasts: one for all, one per entry of an axis, or per block along it."""
    scale, given = op.weight(1).astype(np.float64), op.constant(2)
    zero = np.zeros(scale.shape) if given is None else given.astype(np.float64)
    if zero.shape != scale.shape:
        if zero.size != 1 or scale.size != 1:
            raise InvalidModel(f"{op} has a scale of shape {scale.shape} and a zero point of shape {zero.shape}")
        zero = zero.reshape(scale.shape)
    return _spread(op, scale, shape), _spread(op, zero, shape)


def _spread(op: Operation, values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    if values.size == 1 and values.ndim <= 1:
        return values.reshape(())
    axis, block = op.attributes.get("axis", 1), op.attributes.get("block_size", 0)
    if not -len(shape) <= axis < len(shape):
        raise InvalidModel(f"{op} names the axis {axis} of a tensor of shape {shape}")
    axis %= len(shape)
    if block and values.ndim == len(shape):
        values = np.repeat(values, block, axis)[tuple(slice(n) for n in shape)]
        if values.shape == shape:
            return values
    elif not block and values.shape == (shape[axis],):
        return values.reshape(-1, *[1] * (len(shape) - axis - 1))
    raise InvalidModel(
        f"{op} has a scale or zero point of shape {values.shape} for a tensor of shape {shape}, axis {axis}, blocks of {block}"
    )


@rule("DequantizeLinear", attributes="axis block_size output_dtype")
def _dequantize(g: Builder, op: Operation) -> Value:
    x = op.node()
    scale, zero = _parameters(op, x.shape)
    return g.scale(g.scale(x, bias=-zero), scale)


@rule("QuantizeLinear", attributes="axis block_size output_dtype precision saturate")
def _quantize(g: Builder, op: Operation) -> Value:
    x = op.node()
    scale, zero = _parameters(op, x.shape)
    name = _type(op)
    if name not in _RANGES:
        raise op.refuse(f"it makes numbers of type {name}; {', '.join(_RANGES)} have a rule")
    if not np.all(scale > 0):
        raise InvalidModel(f"{op} has a scale that is not positive")
    whole = g.scale(g.function("round", g.scale(x, 1.0 / Constant(scale))), bias=zero)
    low, high = _RANGES[name]
    return g.clip(whole, low, high)


def _type(op: Operation) -> str:
    """The name of the type that it makes numbers of."""
    kind: Any = op.attributes.get("output_dtype", 0)
    if (zero := op.constant(2)) is not None:
        return zero.dtype.name
    return onnx.TensorProto.DataType.Name(kind).lower() if kind else "uint8"
