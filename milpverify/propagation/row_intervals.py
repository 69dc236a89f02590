"""Rows bounded by the ranges of the last nonlinear nodes: rows are affine functions of these, whatever the box.

Lines leave the range of a function that saturates: on [-20, 5] a line over the sigmoid that is tight anywhere exceeds 1 somewhere, and
a backward pass takes what it exceeds 1 by for granted. Optimised slopes approach a constant line, but never arrive. So a limit that
lies just beyond the range of an output's function is proved by that range, in float64, or hardly at all.

Of a lookup table the range is that of its values, not of the many ReLUs that it is written with.

Rounding: the computed coefficients of a row differ from the exact ones by at most g m, where m are the coefficients that the same row
gets from |W|, and g counts the operations on the longest path. A tiny number added to m everywhere outweighs what underflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import TINY, gamma
from milpverify.graph import Pullback
from milpverify.operators import Affine
from milpverify.propagation.lookup import lookups

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.state import State


_Arrived = tuple[Tensor, Tensor, Tensor]
"""At a node: rows (r, *shape) with what their errors are multiples of, and the entries that paths lead to, bool."""


@dataclass(frozen=True, eq=False)
class RowIntervals:
    """rows . y + x_rows . x as affine functions of the nearest nonlinear nodes and the input.

    `coefficients` (r, size of the node) per node and `constant` (r,) are computed in float64; their errors, and those of products with
    ends of ranges, are at most `loss` times `sizes` and `constant_size`; where no path leads from a node's entry to a row, which `reached`
    (r, size of the node) bool says, the coefficient is exactly 0. Where the graph has lookup tables these count as nonlinear
    nodes, and `through` are the functions of the ReLUs behind them, whose ranges may be tighter where they were split.
    """

    coefficients: dict[int, Tensor]
    sizes: dict[int, Tensor]
    reached: dict[int, Tensor]
    constant: Tensor
    constant_size: Tensor
    loss: float
    through: RowIntervals | None = None

    @staticmethod
    def of(graph: Graph, y_rows: Tensor, x_rows: Tensor | None = None, tables: bool = True) -> RowIntervals:
        """The functions that some rows are.

        Args:
            graph: in float64.
            y_rows: (r, ny) float64.
            x_rows: (r, nx) float64, zero by default.
            tables: whether lookup tables count as nonlinear nodes.
        """
        count = len(y_rows)
        # Several values of one table are better bounded together.
        whole = {i for i, table in lookups(graph).items() if len(table.last.weight) == 1} if tables else set()
        start = {graph.output: _arriving(graph, graph.output, y_rows, y_rows.abs(), y_rows)}
        if x_rows is not None:
            start[0] = _arriving(graph, 0, x_rows, x_rows.abs(), x_rows)
        walk = Pullback(graph, start, _together)
        constant, constant_size = y_rows.new_zeros(count), y_rows.new_full((count,), TINY)
        terms = 8
        cuts: dict[int, _Arrived] = {}
        for node, (rows, size, reached) in walk:
            op, size = node.op, size + TINY
            terms += 2 * len(graph.consumers[node.id]) + 2
            if not isinstance(op, Affine) or node.id in whole:
                cuts[node.id] = rows.flatten(1), size.flatten(1), reached.flatten(1)
                terms += node.size
                continue
            absolute = graph.absolutes[node.id]
            if op.bias is not None and absolute.bias is not None:
                constant = constant + (rows * op.bias).flatten(1).sum(1)
                constant_size = constant_size + (size * absolute.bias).flatten(1).sum(1)
                terms += node.size
            terms += op.adjoint_terms
            parts = op.adjoint(rows), absolute.adjoint(size), absolute.adjoint(reached.double())
            walk.send(node, (_arriving(graph, source, *part) for source, *part in zip(node.inputs, *parts, strict=True)))
        # Sizes are rounded too, and enter with the ends of intervals: twice their own loss covers both.
        return RowIntervals(
            {i: rows for i, (rows, _, _) in cuts.items()},
            {i: size for i, (_, size, _) in cuts.items()},
            {i: reached for i, (_, _, reached) in cuts.items()},
            constant,
            constant_size,
            4 * gamma(terms),
            RowIntervals.of(graph, y_rows, x_rows, tables=False) if not whole.isdisjoint(cuts) else None,
        )

    def lower(self, state: State) -> Tensor:
        """Proved minima of the rows over the ranges of the nodes, (batch, r) float64; -inf where an end that they need is infinite."""
        total, size = self.constant, self.constant_size
        unknown = torch.zeros(len(state[0].center), len(total), dtype=torch.bool, device=total.device)
        for i, rows in self.coefficients.items():
            low, high = state[i].bounds.lower.flatten(1), state[i].bounds.upper.flatten(1)
            if not bool(torch.stack((low, high)).isfinite().all()):
                unknown = unknown | self._settle(i, low, high)
                low, high = (torch.where(end.isfinite(), end, other.nan_to_num(0.0, 0.0, 0.0)) for end, other in ((low, high), (high, low)))
            total = total + (low @ rows.clamp(min=0.0).T + high @ rows.clamp(max=0.0).T)
            size = size + torch.maximum(low.abs(), high.abs()) @ self.sizes[i].T
        found = total - self.loss * size
        found = torch.where(torch.isnan(found) | unknown, -torch.inf, found)
        return found if self.through is None else torch.maximum(found, self.through.lower(state))

    def _settle(self, node: int, low: Tensor, high: Tensor) -> Tensor:
        """Where a row may need an end of a node's range that is infinite, (batch, r) bool: only the signs of coefficients count."""
        rows, lost = self.coefficients[node], self.loss * self.sizes[node]
        falls, rises = (self.reached[node] & side for side in (rows - lost <= 0, rows + lost >= 0))
        needs = (~end.isfinite() for end in (low, high))
        return torch.stack([end.double() @ used.double().T for end, used in zip(needs, (rises, falls), strict=True)]).gt(0).any(0)


def _arriving(graph: Graph, node: int, rows: Tensor, size: Tensor, reached: Tensor) -> _Arrived:
    """What arrives at a node, in its shape; `reached` is 0 where no path leads."""
    rows, size, reached = (t.reshape(len(t), *graph.nodes[node].shape) for t in (rows, size, reached != 0))
    return rows, size, reached


def _together(known: _Arrived, more: _Arrived) -> _Arrived:
    return known[0] + more[0], known[1] + more[1], known[2] | more[2]
