"""The lowering rules of torch operations: arithmetic, reductions, functions.

Operations whose whole work is an elementwise function of the catalogue need no rule here: the driver finds them by the
catalogue's `torch` field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milpverify.frontends.lowering import composites, elementwise, switches
from milpverify.frontends.lowering.axes import axes_named, cumulative_sum
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.torch.call import Call, Places, Value, name_of, rule
from milpverify.graph import Node

# Arithmetic


def total(call: Call, values: Sequence[Any], signs: Sequence[int]) -> Node:
    """The signed sum of values with broadcasting."""
    return elementwise.total(call.g, [v if isinstance(v, (Node, Constant)) else call.array(v, masks=True) for v in values], signs)


def times(call: Call, a: Any, factor: Any) -> Any:
    """A value times a constant number."""
    if factor == 1:
        return a
    if isinstance(a, Node):
        return call.g.scale(a, call.number(factor))
    return (a if isinstance(a, Constant) else Constant(call.array(a))) * call.number(factor)


@rule("add", linear_in_constants=True)
def _add(call: Call, a: Any, b: Any, *, alpha: Any = 1) -> Node:
    if isinstance(a, Node) and isinstance(b, Node) and {a.id, b.id} <= call.g.masks and alpha == 1:
        return switches.either(call.g, a, b)
    return total(call, [a, times(call, b, alpha)], [1, 1])


@rule("sub", linear_in_constants=True)
def _subtract(call: Call, a: Any, b: Any, *, alpha: Any = 1) -> Node:
    return total(call, [a, times(call, b, alpha)], [1, -1])


@rule("rsub", linear_in_constants=True)
def _subtract_from(call: Call, a: Any, b: Any, alpha: Any = 1) -> Node:
    return total(call, [b, times(call, a, alpha)], [1, -1])


@rule("isnan", "isinf", "isneginf", "isposinf", "isfinite")
def _is_no_number(call: Call, x: Node) -> Tensor:
    """Real numbers are numbers; of a mask it is known where it is -inf."""
    hidden = torch.from_numpy(np.array(call.g.masked.get(x.id, np.zeros(x.shape, dtype=bool))))
    return ~hidden if (name := name_of(call.target)) == "isfinite" else hidden & (name in ("isinf", "isneginf"))


@rule("neg")
def _negate(call: Call, x: Node) -> Node:
    return call.g.scale(x, -1)


@rule("positive")
def _same(call: Call, x: Node) -> Node:
    return x


def choose(call: Call, condition: Node, a: Any, b: Any) -> Node:
    """a where a mask holds, else b."""
    chosen = [v if isinstance(v, Node) else call.array(v) for v in (a, b)]
    found = switches.where(call.g, switches.truth(call.g, condition), *chosen)
    return switches.mask(call.g, found) if all(isinstance(v, Node) and v.id in call.g.masks for v in chosen) else found


def product(call: Call, a: Any, b: Any) -> Node:
    """a * b with broadcasting."""
    if isinstance(a, Node) and isinstance(b, Node):
        return composites.multiply(call.g, a, b)
    return call.g.scale(a, call.array(b)) if isinstance(a, Node) else call.g.scale(b, call.array(a))


@rule("mul", linear_in_constants=True)
def _multiply(call: Call, a: Any, b: Any) -> Node:
    if isinstance(a, Node) and isinstance(b, Node) and {a.id, b.id} <= call.g.masks:
        return switches.both(call.g, a, b)
    return product(call, a, b)


@rule("div", linear_in_constants=True)
def _divide(call: Call, a: Any, b: Any, *, rounding_mode: str | None = None) -> Node:
    if rounding_mode is not None:
        raise call.refuse(f"rounding_mode '{rounding_mode}' has no rule")
    if isinstance(b, Node):
        return composites.divide(call.g, a if isinstance(a, Node) else call.array(a), b)
    divisor = call.array(b)
    if not np.all(divisor):
        raise call.invalid("divides by zero")
    return call.g.scale(a, 1.0 / Constant(divisor))


@rule("rdiv", linear_in_constants=True)
def _divide_into(call: Call, a: Any, b: Any) -> Node:
    return _divide(call, b, a)


@rule("addcmul")
def _add_product(call: Call, x: Any, a: Any, b: Any, *, value: Any = 1) -> Node:
    return total(call, [x, times(call, multiply(call, a, b), value)], [1, 1])


@rule("lerp")
def _interpolate(call: Call, a: Any, b: Any, weight: Any) -> Node:
    return total(call, [a, multiply(call, total(call, [b, a], [1, -1]), weight)], [1, 1])


def multiply(call: Call, a: Any, b: Any) -> Any:
    """a * b where both may be constant."""
    if isinstance(a, Node) or isinstance(b, Node):
        return product(call, a, b)
    return Constant(call.array(a)) * call.array(b)


def matrix_product(call: Call, a: Any, b: Any) -> Node:
    """torch's a @ b, as a node where both are constant, too: the sums would be rounded."""
    left = a if isinstance(a, Node) else call.array(a) if isinstance(b, Node) else call.node(a)
    return composites.matrix_product(call.g, left, b if isinstance(b, Node) else call.array(b))


@rule("dot")
@rule("matmul", "mm", "bmm", "mv", linear_in_constants=True)
def _matmul(call: Call, a: Any, b: Any) -> Any:
    return matrix_product(call, a, b)


@rule("addmm", "baddbmm", "addmv", linear_in_constants=True)
def _addmm(call: Call, c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Node:
    scaled = times(call, matrix_product(call, a, b), alpha)
    return total(call, [scaled, times(call, c, beta)], [1, 1])


@rule("linear", linear_in_constants=True)
def _linear(call: Call, x: Any, weight: Any, bias: Any = None) -> Node:
    if isinstance(weight, Node):
        y = matrix_product(call, x, call.g.transpose(weight))
    else:
        y = matrix_product(call, x, weight.mT if weight.dim() > 1 else weight)
    return y if bias is None else total(call, [y, bias], [1, 1])


@rule("pow")
def _power(call: Call, x: Any, exponent: Any) -> Node:
    if not isinstance(x, Node) or isinstance(exponent, Node):
        raise call.refuse("an exponent that depends on the network's input has no rule")
    values = call.array(exponent)
    n = float(values.flat[0]) if values.size else 1.0
    if not (values == n).all():
        raise call.refuse("exponents that differ between entries have no rule")
    return composites.power(call.g, x, n)


@rule("reciprocal")
def _reciprocal(call: Call, x: Node) -> Node:
    return composites.reciprocal(call.g, x)


@rule("sqrt")
def _square_root(call: Call, x: Node) -> Node:
    return composites.square_root(call.g, x)


@rule("log")
def _logarithm(call: Call, x: Node) -> Node:
    return composites.logarithm(call.g, x)


@rule("where")
def _where(call: Call, condition: Any, a: Any, b: Any) -> Node:
    if isinstance(condition, Node):
        return choose(call, condition, a, b)
    chosen = call.array(condition).astype(bool)
    return elementwise.where(call.g, chosen, *(v if isinstance(v, Node) else call.array(v, masks=True) for v in (a, b)))


@rule("masked_fill")
def _masked_fill(call: Call, x: Node, mask: Any, value: Any) -> Node:
    return _where(call, mask, value, x)


# Reductions


def axes_of(call: Call, x: Node, dim: Any) -> list[int]:
    """The axes that `dim` names, >= 0; all of them where it is left out or empty."""
    rank = len(x.shape)
    given = list(range(rank)) if dim is None or dim in ((), []) else [dim] if isinstance(dim, int) else list(dim)
    return axes_named(given, rank, call)


@rule("sum")
def _sum(call: Call, x: Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    return call.g.reduce_sum(x, axes_of(call, x, dim), keepdim)


@rule("mean")
def _mean(call: Call, x: Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    return composites.mean(call.g, x, axes_of(call, x, dim), keepdim)


@rule("var", "std")
def _variance(call: Call, x: Node, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None) -> Node:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    g, axes = call.g, axes_of(call, x, dim)
    count = math.prod(x.shape[a] for a in axes)
    less = correction if correction is not None else 1 if unbiased is None else int(unbiased)
    centred = g.sum([x, composites.mean(g, x, axes)], [1, -1])
    y = g.scale(g.reduce_sum(g.function("square", centred), axes, keepdim), 1.0 / Constant.of(count - less))
    return composites.square_root(g, y) if name_of(call.target) == "std" else y


@rule("var_mean", "std_mean")
def _variance_and_mean(call: Call, x: Node, dim: Any = None, *args: Any, **kwargs: Any) -> tuple[Node, Node]:
    own = replace(call, target=name_of(call.target).removesuffix("_mean"))
    axes = None if isinstance(dim, bool) else dim
    keepdim = kwargs.get("keepdim", len(args) > 1 and args[1])
    return _variance(own, x, dim, *args, **kwargs), composites.mean(call.g, x, axes_of(call, x, axes), keepdim)


@rule("prod")
def _product_of_entries(call: Call, x: Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    return composites.product_of_entries(call.g, x, axes_of(call, x, dim), keepdim)


@rule("logsumexp")
def _log_sum_exp(call: Call, x: Node, dim: Any, keepdim: bool = False) -> Node:
    return composites.log_sum_exp(call.g, x, axes_of(call, x, dim), keepdim)


def elementwise_extremum(call: Call, a: Any, b: Any, sign: int) -> Node:
    """max(a, b) for sign 1, min(a, b) for sign -1."""
    if isinstance(a, Node) and isinstance(b, Node):
        return call.g.larger(a, b, sign)
    node, constant = (a, b) if isinstance(a, Node) else (b, a)
    return call.g.larger_constant(node, call.array(constant, masks=True), sign)


class Extrema(tuple[Any, ...]):
    """What `max` with a dimension returns: the values; the places depend on the input and have no rule."""

    __slots__ = ()

    @property
    def values(self) -> Any:
        return self[0]

    @property
    def indices(self) -> Any:
        return self[1]


def _extrema(sign: int) -> Any:
    def lower(call: Call, x: Any, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
        other = kwargs.get("other", dim)
        if isinstance(other, (Node, Tensor)):
            return elementwise_extremum(call, x, other, sign)
        if dim is None:
            return composites.extremum(call.g, x, range(len(x.shape)), False, sign)
        return Extrema((composites.extremum(call.g, x, axes_of(call, x, dim), keepdim, sign), Places()))

    return lower


def _amax(sign: int) -> Any:
    def lower(call: Call, x: Node, dim: Any = None, keepdim: bool = False) -> Node:
        return composites.extremum(call.g, x, axes_of(call, x, dim), keepdim, sign)

    return lower


for _name, _sign in (("max", 1), ("min", -1)):
    rule(_name)(_extrema(_sign))
    rule(f"a{_name}")(_amax(_sign))


@rule("maximum", "fmax")
def _maximum(call: Call, a: Any, b: Any) -> Node:
    return elementwise_extremum(call, a, b, 1)


@rule("minimum", "fmin")
def _minimum(call: Call, a: Any, b: Any) -> Node:
    return elementwise_extremum(call, a, b, -1)


@rule("cumsum")
def _cumulative_sum(call: Call, x: Node, dim: int, *, dtype: Any = None) -> Node:
    return cumulative_sum(call.g, x, dim)


# Piecewise-linear functions


@rule("clamp", "clamp_min", "clamp_max", "hardtanh")
def _clamp(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    name = name_of(call.target)
    if name == "hardtanh":
        args = (kwargs.get("min_val", args[0] if args else -1.0), kwargs.get("max_val", args[1] if len(args) > 1 else 1.0))
        kwargs = {}
    elif name == "clamp_max":
        args, kwargs = (None, *args, *kwargs.values()), {}
    low, high = (kwargs.get(key, args[i] if len(args) > i else None) for i, key in enumerate(("min", "max")))
    if any(isinstance(end, Node) or (isinstance(end, Tensor) and end.numel() != 1) for end in (low, high)):
        y: Value = x
        for end, sign in ((low, 1), (high, -1)):
            y = y if end is None else elementwise_extremum(call, y, end, sign)
        return call.node(y)
    ends = [none if end is None else _end(call, end) for end, none in ((low, -math.inf), (high, math.inf))]
    return call.g.clip(x, min(ends), ends[1])  # torch: the upper end wins where the lower is above it


def _end(call: Call, value: Any) -> float:
    return float(value) if math.isinf(float(value)) else call.number(value)


@rule("hardsigmoid")
def _hard_sigmoid(call: Call, x: Node) -> Node:
    """relu6(x + 3) / 6."""
    return call.g.scale(call.g.clip(call.g.scale(x, bias=3.0), 0.0, 6.0), 1.0 / Constant.of(6.0))


@rule("softshrink")
def _shrink(call: Call, x: Node, lambd: Any = 0.5) -> Node:
    bound = call.number(lambd)
    return call.g.sum([x, call.g.clip(x, -bound, bound)], [1, -1])


@rule("prelu", "_prelu_kernel")
def _prelu(call: Call, x: Node, weight: Any) -> Node:
    return elementwise.prelu(call.g, x, call.array(weight).reshape(-1, *[1] * (len(x.shape) - 2)))


# Functions of the catalogue that torch has in more forms


@rule("gelu")
def _gelu(call: Call, x: Node, *, approximate: str = "none") -> Node:
    return call.g.function("gelu" if approximate == "none" else "gelu_tanh", x)


@rule("softplus")
def _softplus(call: Call, x: Node, beta: Any = 1, threshold: Any = 20) -> Node:
    """log(1 + exp(beta x)) / beta.

    Where beta x is above the threshold torch returns x, which is less by exp(-threshold) / beta at most: 2.1e-9 / beta, a thousandth of
    what float32 resolves there. To float64 it is a small jump, which belongs to how torch computes the function, as rounding does.
    """
    if call.number(threshold) < 20:
        raise call.refuse(f"threshold = {threshold} makes the function jump; 20, the default, and above have a rule")
    b = call.number(beta)
    return call.g.scale(call.g.function("softplus", call.g.scale(x, b)), 1.0 / Constant.of(b))


@rule("selu")
def _selu(call: Call, x: Node) -> Node:
    """The constants are torch's; ONNX has others."""
    return call.g.function("selu", x, alpha=1.6732632423543772848170429916717, gamma=1.0507009873554804934193349852946)


@rule("elu")
def _elu(call: Call, x: Node, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Node:
    if input_scale != 1:
        raise call.refuse("an input_scale has no rule")
    return call.g.scale(call.g.function("elu", x, alpha=call.number(alpha)), call.number(scale))


@rule("log_sigmoid_forward", "log_sigmoid")
def _log_sigmoid(call: Call, x: Node) -> Node:
    return call.g.scale(call.g.function("softplus", call.g.scale(x, -1)), -1)


@rule("tanhshrink")
def _tanh_shrink(call: Call, x: Node) -> Node:
    return call.g.sum([x, call.g.function("tanh", x)], [1, -1])
