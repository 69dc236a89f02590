"""Bounding a batch of boxes for a group of disjuncts: CROWN for every pre-activation, then the rows of the margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds.crown import bound_rows, crown

if TYPE_CHECKING:
    from milpverify.bounds.backward import LineTable
    from milpverify.bounds.state import Bounds, LinearBound, State
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.search.margin import Group


@dataclass(frozen=True, eq=False)
class Bounded:
    """A bounded batch: the state and lines, the rows' linear bounds, and the margins (batch, D)."""

    state: State
    table: LineTable
    rows: LinearBound
    margins: Tensor


def bound_batch(
    graph: Graph,
    group: Group,
    lower: Tensor,
    upper: Tensor,
    dtype: torch.dtype,
    known: dict[int, Bounds] | None = None,
    deadline: Deadline | None = None,
) -> Bounded:
    """Bound the margins over a batch of boxes.

    Args:
        graph: in float64.
        lower, upper: (batch, nx) float64.
        dtype: the precision of the matrix products; the margins are rigorous in either.
        known: inherited bounds of pre-activations.
    """
    state, table = crown(graph, lower, upper, dtype, known, deadline)
    batch = lower.shape[0]
    y_rows = group.y_rows.expand(batch, -1, -1)
    x_rows = None if group.x_rows is None else group.x_rows.expand(batch, -1, -1)
    rows = bound_rows(graph.to(dtype, graph.device), state, table, y_rows, x_rows=x_rows)
    return Bounded(state, table, rows, group.margins(rows.lower))
