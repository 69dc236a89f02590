"""alpha-CROWN: slopes of the relaxations optimised by gradient (arXiv 2011.13824).

Every slope gives a sound bound (relaxation.py), so nothing depends on the optimiser: the best bound seen is kept per row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds.beta import AlphaOptions, Dual, Relaxations
from milpverify.bounds.crown import bound_rows, chunks, crown, refinable
from milpverify.bounds.screening import undecided
from milpverify.bounds.state import Bounds, LinearBound, State

if TYPE_CHECKING:
    from milpverify.bounds.backward import LineTable
    from milpverify.config import Deadline
    from milpverify.graph import Graph

__all__ = ["AlphaOptions", "Slopes", "alpha_crown", "optimise"]

_DEFAULT = AlphaOptions()
Slopes = dict[int, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
"""Nonlinear node id -> slopes of its lower and upper lines, per input (batch, rows, *shape)."""


def optimise(
    graph: Graph,
    state: State,
    table: LineTable,
    rows: Tensor,
    node: int | None = None,
    options: AlphaOptions = _DEFAULT,
    deadline: Deadline | None = None,
    stop_above: Tensor | None = None,
    x_rows: Tensor | None = None,
) -> tuple[LinearBound, Slopes]:
    """Lower bounds of `rows . value(node)` with slopes optimised per box and row, never worse than those of the lines given.

    Args:
        graph: in the precision of the matrices.
        table: lines to start from.
        rows: (batch, r, size of the node) float64.
        stop_above: stop once in every box some row is above this, (batch, rows).
        x_rows: as in `bound_rows`.
    """
    node = graph.output if node is None else node
    first = bound_rows(graph, state, table, rows, node, x_rows)
    relaxations = Relaxations(graph, state, node)
    domain = relaxations.domain(torch.arange(len(rows), device=rows.device))
    start = relaxations.slopes(table, domain.box).unsqueeze(1).repeat(1, rows.shape[1], 1)
    dual = relaxations.ascend(domain, rows, Dual(start, start[:, :, :0]), options, x_rows, stop_above, deadline)
    found = relaxations.certify(domain, rows, dual, x_rows)
    better = found.lower > first.lower
    best = LinearBound(
        torch.where(better.unsqueeze(2), found.coefficients, first.coefficients),
        torch.where(better, found.constant, first.constant),
        torch.maximum(found.lower, first.lower),
    )
    return best, {i: (line.k_lower, line.k_upper) for i, line in relaxations.relaxed(domain, dual.slopes).items()}


def alpha_crown(
    graph: Graph,
    state: State,
    table: LineTable,
    dtype: torch.dtype,
    options: AlphaOptions = _DEFAULT,
    deadline: Deadline | None = None,
) -> tuple[State, LineTable]:
    """Intermediate bounds with slopes of their own for every undecided neuron, layer by layer.

    Args:
        graph: in float64.
        state, table: from `crown`.
    """
    fast = graph.to(dtype, graph.device)
    lower, upper = state[0].bounds.lower, state[0].bounds.upper
    known = {node.id: state[node.id].bounds for node in refinable(graph)}
    for node in refinable(graph):
        if deadline is not None and deadline.expired():
            break
        bounds = state[node.id].bounds
        low, high = bounds.lower.flatten(1).clone(), bounds.upper.flatten(1).clone()
        owner, index = undecided(graph, node.id, state, low, high).nonzero(as_tuple=True)
        relaxations = Relaxations(fast, state, node.id)
        for part in chunks(fast, 8 * len(owner)):
            part = slice(part.start // 8, part.stop // 8)
            o, i = owner[part], index[part]
            if deadline is not None and deadline.expired():
                break
            rows = torch.zeros(len(o), 2, node.size, dtype=torch.float64, device=low.device)
            rows[torch.arange(len(o)), 0, i], rows[torch.arange(len(o)), 1, i] = 1.0, -1.0
            domain = relaxations.domain(o)
            start = relaxations.slopes(table, o).unsqueeze(1).repeat(1, 2, 1)
            dual = relaxations.ascend(domain, rows, Dual(start, start[:, :, :0]), options, deadline=deadline)
            found = relaxations.certify(domain, rows, dual)
            low[o, i] = torch.maximum(low[o, i], found.lower[:, 0])
            high[o, i] = torch.minimum(high[o, i], -found.lower[:, 1])
        known[node.id] = Bounds(low.reshape(bounds.lower.shape), high.reshape(bounds.lower.shape))
        # Later layers see what this one gained.
        state, table = crown(graph, lower, upper, dtype, known=known, deadline=deadline)
    return state, table
