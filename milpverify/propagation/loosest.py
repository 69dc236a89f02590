"""Which pre-activations to bound by backward passes where all of them would be too dear: those that loosen some rows most for their cost.

In the pass that bounds a row, the multiplier that arrives at a nonlinear node times half the gap between its lines is what the
relaxation of that entry may lose (branching heuristics score neurons alike: arXiv 1909.06588, section 4). A better bound of its variable
saves a part of it, for two rows through all that is before the variable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.propagation.crown import bound_sum
from milpverify.propagation.patches import pass_for
from milpverify.propagation.relevance import refinable, wanted
from milpverify.propagation.screening import undecided

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.backward import LineTable
    from milpverify.propagation.relevance import Needed
    from milpverify.propagation.request import BoundRequest
    from milpverify.propagation.state import State


def loosest(
    graph: Graph, state: State, table: LineTable, rows: Tensor, request: BoundRequest, most: float, done: Needed, dtype: torch.dtype
) -> tuple[dict[int, Tensor], float]:
    """Entries of variables on one box, (size,) bool by node, whose passes take at most so many multiplications, and what they take.

    Args:
        graph: in float64.
        state, table: of one box, for passes in `dtype`.
        rows: of the output, (r, ny) float64.
        request: the entries that the rows depend on, and what passes cost.
        done: entries not to be chosen again.
    """
    worth = _losses(graph.to(dtype, graph.device), state, table, rows)
    nodes, owners, places, scores, costs = refinable(graph), [], [], [], []
    for node in nodes:
        low, high = (side.flatten(1) for side in (state[node.id].bounds.lower, state[node.id].bounds.upper))
        left = wanted(graph, node.id, undecided(graph, node.id, state, low, high), low, high, request.needed.get(node.id))[0]
        if node.id in done:
            left = left & ~done[node.id]
        count = max(1, int(left.sum()))
        each = pass_for(graph, node, 2.0 * count, request.cost) / count
        # Those that are infinite get a pass in any case.
        forced = wanted(graph, node.id, left[None], low, high, torch.zeros_like(left))[0]
        score = worth.get(node.id, torch.zeros_like(low[0])) / max(1.0, each)
        place = left.nonzero(as_tuple=True)[0]
        owners.append(torch.full_like(place, node.id))
        places.append(place)
        scores.append(torch.where(forced, torch.inf, score)[place])
        costs.append(torch.full_like(scores[-1], each))
    owner, place, score, cost = (torch.cat(parts) for parts in (owners, places, scores, costs))
    order = score.argsort(descending=True, stable=True)
    taken = order[(cost[order].cumsum(0) <= most) & (score[order] > 0)]
    chosen = {node.id: torch.zeros(node.size, dtype=torch.bool, device=rows.device) for node in nodes}
    for i, mask in chosen.items():
        mask[place[taken[owner[taken] == i]]] = True
    return chosen, float(cost[taken].sum())


def _losses(graph: Graph, state: State, table: LineTable, rows: Tensor) -> dict[int, Tensor]:
    """Per variable, the shares of its entries in what the rows lose, (size,) float64, summed over the rows."""
    seen: dict[int, Tensor] = {}
    bound_sum(graph, state, table, [(graph.output, rows.unsqueeze(0))], seen=seen)
    lost = {
        i: (multipliers.abs() * table[i].centred[-1].unsqueeze(1))[0].flatten(1).double().nan_to_num(0.0, 0.0, 0.0)
        for i, multipliers in seen.items()
    }
    whole = sum((part.sum(1, keepdim=True) for part in lost.values()), torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device))
    found: dict[int, Tensor] = {}
    for i, part in lost.items():
        share = (part / whole.clamp(min=1e-300)).sum(0)
        for reading in graph.readings[i]:
            own = found.setdefault(reading.node, torch.zeros(graph.nodes[reading.node].size, dtype=torch.float64, device=rows.device))
            if reading.index is None:
                own += share
            else:
                own.index_add_(0, reading.index.flatten(), share)
    return found
