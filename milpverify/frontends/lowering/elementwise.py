"""Elementwise operators of several arguments, for every frontend: signed sums, choices, and relu with a slope per channel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.lowering.masks import split
from milpverify.graph import Node


def total(g: Builder, values: Sequence[Node | Array | Constant], signs: Sequence[int]) -> Node:
    """The signed sum of values, at least one of them a node, with broadcasting.

    Constants are added one by one, so that nothing is rounded; they may hold -inf.
    """
    nodes = [(v, s) for v, s in zip(values, signs, strict=True) if isinstance(v, Node)]
    y = g.scale(*nodes[0]) if len(nodes) == 1 else g.sum([v for v, _ in nodes], [s for _, s in nodes])
    for value, sign in zip(values, signs, strict=True):
        if not isinstance(value, Node):
            bias, hidden = split(Constant.of(value) if sign > 0 else -Constant.of(value))
            y = g.hide(g.scale(y, bias=bias), hidden)
    return y


def where(g: Builder, condition: NDArray[np.bool_], a: Node | Array, b: Node | Array) -> Node:
    """a where the constant condition holds, else b; at least one of them is a node. Constants may hold -inf."""
    parts = [_kept(g, v, mask) if isinstance(v, Node) else np.where(mask, v, 0.0) for v, mask in ((a, condition), (b, ~condition))]
    return total(g, parts, [1, 1])


def _kept(g: Builder, x: Node, chosen: NDArray[np.bool_]) -> Node:
    """x where it is chosen, else 0."""
    if x.id not in g.masked:
        return g.scale(x, chosen)
    x = g.broadcast(x, np.broadcast_shapes(x.shape, chosen.shape))
    return g.select(x, np.where(chosen, entries(x.shape), -1))


def prelu(g: Builder, x: Node, slope: Array) -> Node:
    """x where x >= 0, else slope * x: slope * x + (1 - slope) * relu(x)."""
    if slope.size and np.all(slope == slope.flat[0]):
        return g.function("leaky_relu", x, alpha=float(slope.flat[0]))
    return g.sum([g.scale(x, slope), g.scale(g.relu(x), 1.0 - Constant(slope))])


def truncated(g: Builder, x: Node) -> Node:
    """What is before the point: floor(relu(x)) - floor(relu(-x))."""
    return g.sum([g.function("floor", g.relu(v)) for v in (x, g.scale(x, -1))], [1, -1])
