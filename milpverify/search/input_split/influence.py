"""Which input to bisect: the one whose interval moves the open rows most.

Three estimates of that are added up, each as a share of the whole: the coefficients of the rows' lower bounds (what the bound depends on
now, as alpha-beta-CROWN scores), those of the pass with parallel slopes (which no zero slope hides), and the products of absolute values
along all paths (which nothing cancels). Where rows are bounded to second order, their linear parts lose little: then what an input's
width makes the second order lose takes the place of the first two, and rows that are far from proving their disjunct count little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.backward import parallel_lines
from milpverify.propagation.crown import bound_rows
from milpverify.propagation.paths import path_weights
from milpverify.propagation.state import select

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.groups import Group


def scores(graph: Graph, group: Group, found: BatchBounds, width: Tensor, margins: Tensor, left: Tensor) -> Tensor:
    """How much every input's interval moves the open rows of some boxes of a bounded batch, (n, nx) float32.

    Args:
        graph: in float64.
        width: (batch, nx) of the boxes.
        margins: (batch, D) that are proved.
        left: (n,), the places of the boxes in the batch.
    """
    open_rows = group.open_rows(margins[left]).unsqueeze(2)
    if found.losses is not None:
        open_rows = open_rows * _nearness(group, found.rows.lower[left]).unsqueeze(2)
    total = torch.zeros_like(width[left])
    for weight, moved in _influences(graph, group, found, left, width[left].unsqueeze(1)):
        moved = moved.double().abs()
        total += weight * (open_rows * moved / moved.sum(2, keepdim=True).clamp(min=1e-300)).sum(1)
    return total.float()


def _nearness(group: Group, lower: Tensor) -> Tensor:
    """How near rows are to proving a disjunct, against the nearest of its rows: (boxes, rows), 1 for that one."""
    missing = (group.rhs - lower).clamp(min=1e-12)
    least = -group.largest(-missing)
    return group.most((least[:, group.disjunct] / missing[:, group.row]).nan_to_num(1.0))


def _influences(graph: Graph, group: Group, found: BatchBounds, left: Tensor, width: Tensor) -> list[tuple[float, Tensor]]:
    """Weighted estimates of what the widths of inputs (boxes left, 1, nx) do to the rows, (boxes left, rows, nx): see the module."""
    fast = graph.to(torch.float32, graph.device)
    state = select(found.state, left)
    table = {i: parallel_lines(graph, i, state, torch.float32) for i in graph.nonlinear}
    rows = group.y_rows.expand(len(left), -1, -1)
    paths = path_weights(fast, table, rows) * width
    if found.losses is not None:
        return [(1.0, found.losses[left]), (1.0, paths)]
    x_rows = None if group.x_rows is None else group.x_rows.expand(len(left), -1, -1)
    straight = bound_rows(fast, state, table, rows, x_rows=x_rows).coefficients
    return [(1.0, found.rows.coefficients[left] * width), (1.0, straight * width), (0.5, paths)]
