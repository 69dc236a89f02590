"""alpha-CROWN: slopes of the relaxations optimised by gradient (arXiv 2011.13824).

Every slope gives a sound bound (`relaxations.rule`), so nothing depends on the optimiser: the best bound seen is kept per row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised.beta import AlphaOptions, Dual, Relaxations
from milpverify.propagation.passes import rows_at_once
from milpverify.propagation.relevance import refinable, wanted
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.screening import grouped, undecided
from milpverify.propagation.state import Bounds, LinearBound, State

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node
    from milpverify.propagation.backward import LineTable

__all__ = ["AlphaOptions", "Slopes", "alpha_crown", "optimise"]

Slopes = dict[int, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
"""Nonlinear node id -> slopes of its lower and upper lines, per input (batch, rows, *shape)."""


def optimise(
    graph: Graph,
    state: State,
    table: LineTable,
    rows: Tensor,
    options: AlphaOptions = AlphaOptions(),
    request: BoundRequest = BoundRequest(),
    stop_above: Tensor | None = None,
    x_rows: Tensor | None = None,
) -> tuple[LinearBound, Slopes]:
    """Lower bounds of `rows . y` with slopes optimised per box and row, never worse than those of the lines given.

    Args:
        graph: in the precision of the matrices.
        table: lines to start from.
        rows: (batch, r, ny) float64.
        request: until when, and the entries that the rows depend on.
        stop_above: stop once in every box some row is above this, (batch, r).
        x_rows: as in `bound_rows`.

    Returns:
        the bounds, (batch, r), and the slopes that they are by.
    """
    first = bound_rows(graph, state, table, rows, x_rows=x_rows, tuning=request.tuning)
    relaxations = Relaxations(graph, state, needed=request.needed)
    domain = relaxations.domain(torch.arange(len(rows), device=rows.device))
    start = relaxations.slopes(table, domain.box).unsqueeze(1).repeat(1, rows.shape[1], 1)
    dual = relaxations.ascend(domain, rows, Dual(start, start[:, :, :0]), options, x_rows, stop_above, request.deadline)
    found = relaxations.certify(domain, rows, dual, x_rows)
    better = found.lower > first.lower
    best = LinearBound(
        torch.where(better.unsqueeze(2), found.coefficients, first.coefficients),
        torch.where(better, found.constant, first.constant),
        torch.maximum(found.lower, first.lower),
        torch.where(better, found.over_box, first.over_box),
    )
    return best, {i: (line.k_lower, line.k_upper) for i, line in relaxations.relaxed(domain, dual.slopes).items()}


def alpha_crown(
    graph: Graph,
    state: State,
    dtype: torch.dtype,
    options: AlphaOptions = AlphaOptions(),
    request: BoundRequest = BoundRequest(),
    paced: bool = False,
) -> tuple[State, LineTable]:
    """Intermediate bounds with slopes of their own for every undecided neuron: each layer sees what those before it gained.

    Args:
        graph: in float64.
        state: from `crown`.
        dtype: the precision of the passes, and what the state returned is for.
        request: until when, and the entries that matter; the others keep their bounds.
        paced: share the time left among the layers, so that each gets some iterations: bounds that are loose in one layer spoil all
            that follow. What is found then depends on the speed of the machine.
    """
    deadline, needed = request.deadline, request.needed
    fast = graph.to(dtype, graph.device)
    targets = refinable(graph)
    # What a layer costs: so many rows through so many relaxations. One more share is for what the caller does with the bounds.
    entries = {node.id: int(needed[node.id].sum()) if node.id in needed else node.size for node in targets}
    weight = {node.id: entries[node.id] * (1 + len(graph.ancestors[node.id])) for node in targets}
    to_come = sum(weight.values()) + max(weight.values(), default=0)

    def sharpen(node: Node, state: State, table: LineTable) -> Bounds:
        bounds = state[node.id].bounds
        low, high = (t.flatten(1).clone(memory_format=torch.contiguous_format) for t in (bounds.lower, bounds.upper))
        left = wanted(graph, node.id, undecided(graph, node.id, state, low, high), low, high, needed.get(node.id))
        owner, index = left.nonzero(as_tuple=True)
        nonlocal to_come
        share = weight[node.id] / to_come if to_come else 1.0
        until = None if deadline is None else deadline.within(deadline.remaining() * share) if paced else deadline
        to_come -= weight[node.id]
        if not len(owner):
            return bounds
        relaxations = Relaxations(fast, state, node.id, table, needed)
        # Neurons of one box are rows of one subproblem, for what its relaxations need is made once.
        for box, place in grouped(owner, max(1, rows_at_once(fast, tuning=request.tuning) // 8)):
            if deadline is not None and deadline.expired():
                break
            chosen = index[place]
            unit = torch.zeros(*chosen.shape, node.size, dtype=torch.float64, device=low.device).scatter_(2, chosen.unsqueeze(2), 1.0)
            rows, domain = torch.cat([unit, -unit], 1), relaxations.domain(box)
            start = relaxations.slopes(table, box).unsqueeze(1).repeat(1, rows.shape[1], 1)
            dual = relaxations.ascend(domain, rows, Dual(start, start[:, :, :0]), options, deadline=until)
            below, above = relaxations.certify(domain, rows, dual).lower.chunk(2, dim=1)
            entry = (box.unsqueeze(1) * low.shape[1] + chosen).flatten()
            low.view(-1).scatter_reduce_(0, entry, below.flatten(), "amax")
            high.view(-1).scatter_reduce_(0, entry, -above.flatten(), "amin")
        return Bounds(low.reshape(bounds.lower.shape), high.reshape(bounds.lower.shape))

    known = {node.id: state[node.id].bounds for node in targets}
    ends = state[0].bounds
    return crown(graph, ends.lower, ends.upper, dtype, replace(request, known=known), sharpen=sharpen)
