"""One row in place of a conjunction: where every unsafe row is <= 0, so is every combination with weights >= 0.

The weights maximise the minimum over the box of the combined linear bounds (the dual of the linear program over the rows), found by
multiplicative updates; any weights are sound. A pass for the combination itself is tighter than the combination of the rows'
passes, because relaxations are chosen for the sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import gamma
from milpverify.propagation.crown import bound_rows
from milpverify.propagation.second_order import better
from milpverify.propagation.state import select, select_lines
from milpverify.search.input_split.bounding_method import BoxTuning

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.groups import Group


def weights(minima: Tensor, coefficients: Tensor, radius: Tensor, tuning: BoxTuning = BoxTuning()) -> Tensor:
    """Weights (batch, r) of the rows, >= 0 with sum about 1, that nearly maximise the combined minimum.

    Args:
        minima: (batch, r) of the rows' linear bounds over the box.
        coefficients: (batch, r, nx) of the linear bounds.
        radius: (batch, nx) of the boxes.
    """
    middle = minima + (coefficients.abs() * radius.unsqueeze(1)).sum(2)  # the linear bounds at the centre
    current = torch.full_like(minima, 1.0 / minima.shape[1])
    best, kept = torch.full_like(minima[:, 0], -torch.inf), current
    for k in range(tuning.combining):
        slope = (current.unsqueeze(2) * coefficients).sum(1)
        value = (current * middle).sum(1) - (slope.abs() * radius).sum(1)
        kept = torch.where((value > best).unsqueeze(1), current, kept)
        best = torch.maximum(best, value)
        ascent = middle - (coefficients * (slope.sign() * radius).unsqueeze(1)).sum(2)
        ascent = ascent - ascent.amax(1, keepdim=True)
        step = 3.0 / (k + 2) / ascent.abs().amax(1, keepdim=True).clamp(min=1e-300)
        current = current * torch.exp(step * ascent)
        current = current / current.sum(1, keepdim=True)
    return torch.where(torch.isfinite(kept), kept, 0.0)


def combined(
    graph: Graph,
    group: Group,
    found: BatchBounds,
    box: Tensor,
    rows: Tensor,
    minima: Tensor,
    coefficients: Tensor,
    tuning: BoxTuning = BoxTuning(),
) -> tuple[Tensor, Tensor]:
    """The linear bound of the best combination of some rows on some boxes.

    Args:
        graph: in the precision of the matrices.
        box: (n,) places in the bounded batch.
        rows: (n, r) places of the rows in the group.
        minima, coefficients: (n, r) residuals' minima and (n, r, nx) coefficients of the rows' linear bounds.

    Returns:
        the minimum of the linear bound of the combination's residual over the box (n, 1), proved, and its coefficients (n, 1, nx).
    """
    state = select(found.state, box)
    table = {i: select_lines(around, box) for i, around in found.table.items()}
    weight = weights(minima, coefficients.double(), state[0].deviation, tuning).unsqueeze(2)
    y_parts = weight * group.y_rows[rows]
    x_parts = None if group.x_rows is None else weight * group.x_rows[rows]
    y_row = y_parts.sum(1, keepdim=True)
    x_row = None if x_parts is None else x_parts.sum(1, keepdim=True)
    linear = bound_rows(graph, state, table, y_row, x_rows=x_row)
    if found.forms is not None:
        linear = better(linear, found.forms.select(box).bound(y_row, x_row)[0])
    rhs = (weight.squeeze(2) * group.rhs[rows]).sum(1, keepdim=True)
    # The combined coefficients are rounded sums of r products each.
    reach = torch.maximum(state[graph.output].bounds.lower.abs(), state[graph.output].bounds.upper.abs())
    size = (y_parts.abs().sum(1) * reach).sum(1, keepdim=True) + (weight.squeeze(2) * group.rhs[rows]).abs().sum(1, keepdim=True)
    if x_parts is not None:
        ends = torch.maximum(state[0].bounds.lower.abs(), state[0].bounds.upper.abs())
        size = size + (x_parts.abs().sum(1) * ends).sum(1, keepdim=True)
    least = linear.over_box - rhs - 2 * gamma(rows.shape[1]) * (size + linear.over_box.abs())
    return torch.where(torch.isnan(least), -torch.inf, least), linear.coefficients
