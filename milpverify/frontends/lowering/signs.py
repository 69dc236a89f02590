"""Which nodes hold no negative numbers by how they are made: squares, absolute values, sums of these.

Bounds of such a sum may still be below 0 by a rounding error, and roots have no bounds outside of their domain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.operators import Concat, Conv, Elementwise, Linear, Permute, Product, ReduceSum, Reshape, Scale, Select, Sum

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.frontends.lowering.builder import Builder
    from milpverify.graph import Node

_FUNCTIONS = frozenset({"relu", "relu6", "abs", "square", "pow_even", "exp", "sqrt", "rsqrt", "sigmoid", "softplus", "hard_sigmoid"})
_DEPTH = 12


def nonnegative(g: Builder, x: Node, depth: int = _DEPTH) -> bool:
    """Whether no entry of x is negative, as far as that is seen from the operators right before it."""
    if not depth:
        return False
    inputs = [g.nodes[i] for i in x.inputs]
    match x.op:
        case Elementwise(function):
            return function.name in _FUNCTIONS
        case Scale(weight=weight, bias=bias) | Linear(weight=weight, bias=bias) | Conv(weight=weight, bias=bias):
            own = _none_negative(weight) and _none_negative(bias)
        case Select(bias=bias):
            own = _none_negative(bias)
        case Sum(signs=signs):
            own = min(signs) > 0
        case Reshape() | Permute() | Concat() | ReduceSum() | Product():
            own = True
        case _:
            return False
    return own and all(nonnegative(g, i, depth - 1) for i in inputs)


def _none_negative(values: Tensor | None) -> bool:
    return values is None or bool((values >= 0).all())
