"""The lowering rules of torch functions that are made of a few others: exponentials and logarithms, gates, products in three dimensions."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from milpverify.frontends.lowering import composites, norms
from milpverify.frontends.lowering.axes import axes_named
from milpverify.frontends.lowering.builder import entries
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.lowering.einsum import contract, einsum
from milpverify.frontends.torch.call import Call, name_of, rule
from milpverify.frontends.torch.norms import factors
from milpverify.frontends.torch.ops import matrix_product, product, times, total
from milpverify.graph import Node

# Of one variable


@rule("exp2")
def _power_of_two(call: Call, x: Node) -> Node:
    return call.g.function("exp", call.g.scale(x, Constant.of(2.0).log()))


@rule("expm1")
def _exponential_less_one(call: Call, x: Node) -> Node:
    return call.g.scale(call.g.function("exp", x), bias=-1.0)


@rule("log1p")
def _logarithm_of_more(call: Call, x: Node) -> Node:
    return composites.logarithm(call.g, call.g.scale(x, bias=1.0))


@rule("log2", "log10")
def _logarithm(call: Call, x: Node) -> Node:
    base = Constant.of(2.0 if name_of(call.target) == "log2" else 10.0)
    return call.g.scale(composites.logarithm(call.g, x), 1.0 / base.log())


@rule("logit")
def _logit(call: Call, x: Node, eps: Any = None) -> Node:
    """log(x) - log(1 - x)."""
    g = call.g
    x = x if eps is None else g.clip(x, call.number(eps), 1.0 - call.number(eps))
    return g.sum([g.function("log", x), g.function("log", g.scale(x, -1.0, 1.0))], [1, -1])


@rule("erfc")
def _complementary_error(call: Call, x: Node) -> Node:
    return call.g.scale(call.g.function("erf", x), -1.0, 1.0)


@rule("sinh", "cosh", "atanh")
def _hyperbolic(call: Call, x: Node) -> Node:
    return composites.hyperbolic(call.g, x, name_of(call.target))


# Of several


@rule("glu")
def _gated(call: Call, x: Node, dim: int = -1) -> Node:
    """The first half times the sigmoid of the second."""
    axis = dim % len(x.shape)
    first, second = (call.g.select(x, places) for places in np.split(entries(x.shape), 2, axis))
    return composites.multiply(call.g, first, call.g.function("sigmoid", second))


@rule("logaddexp")
def _logarithm_of_sum(call: Call, a: Any, b: Any) -> Node:
    """log(exp(a) + exp(b)) = a + softplus(b - a)."""
    return total(call, [a, call.g.function("softplus", total(call, [b, a], [1, -1]))], [1, 1])


@rule("hypot")
def _length(call: Call, a: Any, b: Any) -> Node:
    squares = [call.g.function("square", call.node(v)) for v in (a, b)]
    return norms.root(call.g, call.g.sum(squares), 2.0)


@rule("addcdiv")
def _add_quotient(call: Call, x: Any, a: Any, b: Any, *, value: Any = 1) -> Node:
    if isinstance(b, Node):
        quotient = composites.divide(call.g, a if isinstance(a, Node) else call.array(a), b)
    else:
        quotient = call.g.scale(call.node(a), 1.0 / Constant(call.array(b)))
    return total(call, [x, times(call, quotient, value)], [1, 1])


@rule("addr")
def _add_outer(call: Call, x: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Node:
    outer = einsum(call.g, "i,j->ij", factors(call, (a, b)))
    return total(call, [times(call, x, beta), times(call, outer, alpha)], [1, 1])


@rule("inner")
def _inner(call: Call, a: Any, b: Any) -> Node:
    if not len(a.shape) or not len(b.shape):
        return product(call, a, b)
    left, right = ([f"{side}{i}" for i in range(len(v.shape) - 1)] for side, v in (("a", a), ("b", b)))
    return contract(call.g, factors(call, (a, b)), [(*left, "k"), (*right, "k")], (*left, *right))


@rule("kron")
def _kronecker(call: Call, a: Any, b: Any) -> Node:
    rank = max(len(a.shape), len(b.shape))
    shapes = [(1,) * (rank - len(v.shape)) + tuple(v.shape) for v in (a, b)]
    values = [v.reshape(s) if not isinstance(v, Node) else call.g.reshape(v, s) for v, s in zip(factors(call, (a, b)), shapes, strict=True)]
    left, right = ([f"{side}{i}" for i in range(rank)] for side in "ab")
    pairs = [axis for both in zip(left, right, strict=True) for axis in both]
    y = contract(call.g, values, [tuple(left), tuple(right)], tuple(pairs))
    return call.g.reshape(y, [n * m for n, m in zip(*shapes, strict=True)])


@rule("cross", "linalg_cross")
def _cross(call: Call, a: Any, b: Any, dim: int | None = None) -> Node:
    """Along an axis of length 3, the last one where none is named."""
    rank = max(len(a.shape), len(b.shape))
    (axis,) = axes_named([-1 if dim is None else dim], rank, call)
    sign = np.zeros((3, 3, 3))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        sign[i, j, k], sign[j, i, k] = 1.0, -1.0
    names = [[f"x{n}" for n in range(rank - len(v.shape), rank)] for v in (a, b)]
    for name, own in zip(names, "ij", strict=True):
        name[axis - rank] = own
    target = [f"x{n}" for n in range(rank)]
    target[axis] = "k"
    axes = [tuple(names[0]), ("i", "j", "k"), tuple(names[1])]
    first, second = factors(call, (a, b))
    return contract(call.g, [first, sign, second], axes, tuple(target))


@rule("linalg_multi_dot", "chain_matmul")
def _chain(call: Call, *matrices: Any) -> Any:
    parts = matrices[0] if len(matrices) == 1 else matrices
    return reduce(lambda a, b: matrix_product(call, a, b), parts)
