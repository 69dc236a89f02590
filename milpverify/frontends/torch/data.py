"""The lowering rules of torch operations whose results depend on comparisons of data: masks, choices, conversions, order, rounding."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from milpverify.frontends.lowering import composites, elementwise, sorting, switches
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.torch.call import Call, Places, name_of, rule
from milpverify.frontends.torch.ops import Extrema, axes_of, choose
from milpverify.graph import Node

_COMPARISONS = {
    "gt": "greater",
    "greater": "greater",
    "ge": "greater_or_equal",
    "greater_equal": "greater_or_equal",
    "lt": "less",
    "less": "less",
    "le": "less_or_equal",
    "less_equal": "less_or_equal",
    "eq": "equal",
    "ne": "not_equal",
    "not_equal": "not_equal",
}
_WHOLE = (torch.int32, torch.int64)


def operand(call: Call, value: Any) -> Node | Array:
    """A tensor or a number, 0 and 1 for false and true."""
    return value if isinstance(value, Node) else call.array(value)


# Masks and choices


@rule(*_COMPARISONS)
def _compare(call: Call, a: Any, b: Any) -> Node:
    return switches.compare(call.g, _COMPARISONS[name_of(call.target)], operand(call, a), operand(call, b))


def truth(call: Call, value: Any) -> Node | Array:
    """Where a tensor is not 0; of bits, which tensors of numbers have too, a mask's only.

    Raises:
        UnsupportedOperator: it would read the bits of numbers that depend on x.
    """
    if not isinstance(value, Node):
        return np.where(call.array(value) != 0, 1.0, 0.0)
    if name_of(call.target).startswith("logical") or value.id in call.g.masks:
        return switches.truth(call.g, value)
    raise call.refuse("bits of numbers that depend on the network's input have no rule; those of comparisons have")


@rule("logical_not", "bitwise_not", "invert")
def _not(call: Call, x: Node) -> Node:
    found = truth(call, x)
    assert isinstance(found, Node)
    return switches.negate(call.g, found)


@rule("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "and", "or", "xor")
def _combine(call: Call, a: Any, b: Any) -> Node:
    kind = name_of(call.target).removeprefix("logical_").removeprefix("bitwise_")
    combine = {"and": switches.both, "or": switches.either, "xor": switches.differ}[kind]
    return combine(call.g, truth(call, a), truth(call, b))


@rule("any", "all")
def _quantified(call: Call, x: Node, dim: Any = None, keepdim: bool = False) -> Node:
    sign = 1 if name_of(call.target) == "any" else -1
    return switches.mask(call.g, composites.extremum(call.g, switches.truth(call.g, x), axes_of(call, x, dim), keepdim, sign))


@rule("nan_to_num")
def _same(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    return x


@rule("argmax", "argmin", "argsort", "searchsorted", "bucketize")
def _places(call: Call, *args: Any, **kwargs: Any) -> Node:
    raise call.refuse_places()


# Conversions


@rule("float", "double", "half", "bfloat16")
def _real(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    return switches.numbers(call.g, x)


@rule("bool", "int", "long")
def _whole(call: Call, x: Node) -> Node:
    return converted(call, x, {"bool": torch.bool, "int": torch.int32, "long": torch.int64}[name_of(call.target)])


@rule("to", "_to_copy", "type", "type_as")
def _converted(call: Call, x: Any, *args: Any, **kwargs: Any) -> Any:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype):
            return converted(call, x, value)
        if isinstance(value, Tensor):
            return converted(call, x, value.dtype)
        if isinstance(value, Node):
            boolean = value.id in call.g.masks
            if isinstance(x, Tensor):
                return x.bool() if boolean else x.double()
            return converted(call, x, torch.bool if boolean else call.dtype)
    return x


def converted(call: Call, x: Node, dtype: torch.dtype) -> Node:
    """A tensor in another type: of numbers an integer is what is before the point.

    Raises:
        UnsupportedOperator: there is no rule for the type.
    """
    if dtype.is_floating_point:
        return switches.numbers(call.g, x)
    if dtype is torch.bool:
        return switches.truth(call.g, x)
    if dtype in _WHOLE:
        return switches.numbers(call.g, x) if x.id in call.g.masks else elementwise.truncated(call.g, x)
    raise call.refuse(f"it makes a tensor that depends on the network's input {dtype}; real types, bool, int32 and int64 have a rule")


# Order


@rule("topk")
def _top(call: Call, x: Node, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not sorted and k > 1:
        raise call.refuse("with sorted=False the order of its entries is the runtime's own; ask for sorted=True")
    return Extrema((sorting.ordered(call.g, x, dim, range(k), largest), Places()))


@rule("sort")
def _sort(call: Call, x: Node, dim: int = -1, descending: bool = False, *, stable: Any = None) -> Any:
    return Extrema((sorting.ordered(call.g, x, dim, range(x.shape[dim]), descending), Places()))


@rule("msort")
def _sorted_rows(call: Call, x: Node) -> Node:
    return sorting.ordered(call.g, x, 0, range(x.shape[0]), False)


@rule("kthvalue")
def _ranked(call: Call, x: Node, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    return Extrema((_of_rank(call, x, k - 1, dim, keepdim), Places()))


@rule("median")
def _median(call: Call, x: Node, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower of two in the middle."""
    if dim is None:
        return _of_rank(call, call.g.reshape(x, (x.size,)), (x.size - 1) // 2, 0, False)
    return Extrema((_of_rank(call, x, (x.shape[dim] - 1) // 2, dim, keepdim), Places()))


def _of_rank(call: Call, x: Node, rank: int, dim: int, keepdim: bool) -> Node:
    found = sorting.ordered(call.g, x, dim, [rank], False)
    dim %= len(x.shape)
    return found if keepdim else call.g.reshape(found, (*x.shape[:dim], *x.shape[dim + 1 :]))


class Range(NamedTuple):
    """What `aminmax` returns."""

    min: Node
    max: Node


@rule("aminmax")
def _range(call: Call, x: Node, *, dim: Any = None, keepdim: bool = False) -> Range:
    return Range(*(composites.extremum(call.g, x, axes_of(call, x, dim), keepdim, sign) for sign in (-1, 1)))


# Steps and rounding


@rule("heaviside")
def _heaviside(call: Call, x: Any, values: Any) -> Node:
    """0 below 0, 1 above, and the values at 0."""
    known = call.node(x)
    step = call.g.function("heaviside", known, value=0.0)
    return choose(call, switches.compare(call.g, "equal", known, np.array(0.0)), values, step)


@rule("threshold")
def _threshold(call: Call, x: Node, threshold: Any, value: Any) -> Node:
    """x above the threshold, else the value."""
    alpha, low = call.number(threshold), call.number(value)
    return call.g.clip(x, low, np.inf) if alpha == low else call.g.function("threshold", x, alpha=alpha, value=low)


@rule("ceil")
def _ceil(call: Call, x: Node) -> Node:
    return composites.ceil(call.g, x)


@rule("trunc", "fix")
def _truncated(call: Call, x: Node) -> Node:
    return elementwise.truncated(call.g, x)


@rule("frac")
def _fraction(call: Call, x: Node) -> Node:
    return call.g.sum([x, elementwise.truncated(call.g, x)], [1, -1])


@rule("round")
def _round(call: Call, x: Node, *, decimals: int = 0) -> Node:
    if abs(decimals) > 15:
        raise call.refuse(f"decimals = {decimals} is beyond 15")
    if not decimals:
        return call.g.function("round", x)
    factor = Constant.of(10.0 ** abs(decimals))
    there, back = (factor, 1.0 / factor) if decimals > 0 else (1.0 / factor, factor)
    return call.g.scale(call.g.function("round", call.g.scale(x, there)), back)


@rule("remainder", "fmod", "mod")
def _remainder(call: Call, x: Node, divisor: Any) -> Node:
    """x - c floor(x / c), of fmod x - c trunc(x / c), for a constant c."""
    c = call.array(divisor)
    if not np.all(c):
        raise call.invalid("divides by zero")
    quotient = call.g.scale(x, 1.0 / Constant(c))
    whole = elementwise.truncated(call.g, quotient) if name_of(call.target) == "fmod" else call.g.function("floor", quotient)
    return call.g.sum([x, call.g.scale(whole, c)], [1, -1])


@rule("fake_quantize_per_tensor_affine")
def _fake_quantize(call: Call, x: Node, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Node:
    """(clip(round(x / scale) + zero point) - zero point) scale."""
    factor, zero = Constant.of(call.number(scale)), float(zero_point)
    whole = call.g.function("round", call.g.scale(x, 1.0 / factor))
    return call.g.scale(call.g.clip(whole, quant_min - zero, quant_max - zero), factor)
