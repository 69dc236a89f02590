"""Axes that an operator names, and linear maps along one of them, for every frontend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from milpverify.errors import InvalidModel
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.graph import Node


def axes_named(given: Sequence[int], rank: int, operator: object) -> list[int]:
    """Axes of a tensor of this rank, negative ones counted from the end, as ones >= 0 in order.

    Args:
        operator: that names them, for messages.

    Raises:
        InvalidModel: there is no such axis, or one is named twice.
    """
    if any(not -rank <= a < rank for a in given):
        raise InvalidModel(f"{operator} names the axes {list(given)} of a tensor with {rank}")
    axes = sorted(int(a) % rank for a in given)
    if len(set(axes)) < len(axes):
        raise InvalidModel(f"{operator} names an axis twice: {list(given)}")
    return axes


def along(g: Builder, x: Node, axis: int, matrix: Array | Constant) -> Node:
    """matrix (m, n) times x along an axis of length n."""
    rank = len(x.shape)
    order = [a for a in range(rank) if a != axis] + [axis]
    columns = Constant.of(matrix)
    return g.permute(g.matmul(g.permute(x, order), columns.moved(columns.value.T)), [order.index(a) for a in range(rank)])


def cumulative_sum(g: Builder, x: Node, axis: int, exclusive: bool = False, reverse: bool = False) -> Node:
    """The sums of the entries up to each along an axis (negative ones count from the end), by a triangular matrix.

    Args:
        exclusive: without the entry itself.
        reverse: of the entries behind instead.
    """
    axis %= len(x.shape)
    matrix = np.tril(np.ones((x.shape[axis],) * 2), -1 if exclusive else 0)
    return along(g, x, axis, matrix.T if reverse else matrix)
