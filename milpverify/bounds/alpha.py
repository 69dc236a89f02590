"""alpha-CROWN: slopes of the relaxations optimised by gradient (arXiv 2011.13824).

Every slope gives a sound bound (relaxation.py), so nothing depends on the optimiser: the best bound seen is kept per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.backward import LineTable, lines
from milpverify.bounds.crown import bound_rows, chunks, crown, functions_of, refinable
from milpverify.bounds.screening import undecided
from milpverify.bounds.state import Bounds, LinearBound, State, select, select_lines
from milpverify.operators import Elementwise

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.graph import Graph

Slopes = dict[int, tuple[Tensor, Tensor]]
"""Nonlinear node id -> slopes of its lower and upper lines, (batch, rows, *shape) each."""


@dataclass(frozen=True)
class AlphaOptions:
    """How long and how eagerly to optimise: Adam with a step that decays by `decay` an iteration."""

    iterations: int = 20
    step: float = 0.25
    decay: float = 0.96


def optimise(
    graph: Graph,
    state: State,
    table: LineTable,
    rows: Tensor,
    node: int | None = None,
    options: AlphaOptions = AlphaOptions(),
    deadline: Deadline | None = None,
    stop_above: Tensor | None = None,
    x_rows: Tensor | None = None,
) -> tuple[LinearBound, Slopes]:
    """Lower bounds of `rows . value(node)` with slopes optimised per box and row.

    Args:
        graph: in the precision of the matrices.
        table: lines to start from.
        rows: (batch, r, size of the node) float64.
        stop_above: stop once in every box some row is above this, (batch, rows).
        x_rows: as in `bound_rows`.
    """
    node = graph.output if node is None else node
    best = bound_rows(graph, state, table, rows, node, x_rows)
    free = _free_slopes(graph, state, table, rows.shape[1], node)
    best_slopes: Slopes = {i: (low.detach().clone(), high.detach().clone()) for i, (low, high, _) in free.items()}
    parameters = [p for low, high, _ in free.values() for p in (low, high) if p.requires_grad]
    if not parameters:
        return best, best_slopes
    optimiser = torch.optim.Adam(parameters, lr=options.step)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, options.decay)
    for _ in range(options.iterations):
        if (deadline is not None and deadline.expired()) or (stop_above is not None and bool((best.lower > stop_above).any(1).all())):
            break
        with torch.enable_grad():
            now = {**table, **{i: lines(graph, i, state, graph.dtype, low, high) for i, (low, high, _) in free.items()}}
            found = bound_rows(graph, state, now, rows, node, x_rows)
            loss = -torch.where(torch.isfinite(found.lower), found.lower, 0.0).sum()
        better = found.lower.detach() > best.lower
        best = LinearBound(
            torch.where(better.unsqueeze(2), found.coefficients.detach(), best.coefficients),
            torch.where(better, found.constant.detach(), best.constant),
            torch.maximum(best.lower, found.lower.detach()),
        )
        for i, (low, high, _) in free.items():
            mask = better.reshape(*better.shape, *[1] * (low.dim() - 2))
            best_slopes[i] = (torch.where(mask, low.detach(), best_slopes[i][0]), torch.where(mask, high.detach(), best_slopes[i][1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for i, (low, high, fixed) in free.items():
                _project(graph, i, state, low, high, fixed)
    return best, best_slopes


def alpha_crown(
    graph: Graph,
    state: State,
    table: LineTable,
    dtype: torch.dtype,
    options: AlphaOptions = AlphaOptions(),
    deadline: Deadline | None = None,
) -> tuple[State, LineTable]:
    """Intermediate bounds with slopes of their own for every undecided neuron, layer by layer.

    Args:
        graph: in float64.
        state, table: from `crown`.
    """
    fast = graph.to(dtype, graph.device)
    lower, upper = state[0].bounds.lower, state[0].bounds.upper
    known: dict[int, Bounds] = {}
    for node in refinable(graph):
        bounds = state[node.id].bounds
        low, high = bounds.lower.flatten(1).clone(), bounds.upper.flatten(1).clone()
        owner, index = undecided(functions_of(graph, node), low, high).nonzero(as_tuple=True)
        for part in chunks(fast, 8 * len(owner)):
            part = slice(part.start // 8, part.stop // 8)
            o, i = owner[part], index[part]
            if deadline is not None and deadline.expired():
                break
            rows = torch.zeros(len(o), 2, node.size, dtype=torch.float64, device=low.device)
            rows[torch.arange(len(o)), 0, i], rows[torch.arange(len(o)), 1, i] = 1.0, -1.0
            own = select(state, o)
            found, _ = optimise(fast, own, {k: select_lines(v, o) for k, v in table.items()}, rows, node.id, options, deadline)
            low[o, i] = torch.maximum(low[o, i], found.lower[:, 0])
            high[o, i] = torch.minimum(high[o, i], -found.lower[:, 1])
        known[node.id] = Bounds(low.reshape(bounds.lower.shape), high.reshape(bounds.lower.shape))
        # Later layers see what this one gained.
        state, table = crown(graph, lower, upper, dtype, known=known, deadline=deadline)
    return state, table


def _free_slopes(graph: Graph, state: State, table: LineTable, rows: int, node: int) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Slopes to optimise, with the mask of the neurons whose relaxation is exact (they keep theirs)."""
    free = {}
    for i in graph.nonlinear:
        if i not in graph.ancestors[node]:
            continue
        op = graph.nodes[i].op
        assert isinstance(op, Elementwise)
        bounds = state[graph.nodes[i].inputs[0]].bounds
        exact = relaxation.is_exact(op.function, bounds.lower, bounds.upper)
        if bool(exact.all()):
            continue
        low, high = (k.unsqueeze(1).expand(k.shape[0], rows, *k.shape[1:]).clone() for k in (table[i].k_lower, table[i].k_upper))
        below, above = relaxation.slopes_matter(op.function)
        free[i] = (low.requires_grad_(below), high.requires_grad_(above), exact.unsqueeze(1))
    return free


def _project(graph: Graph, node: int, state: State, low: Tensor, high: Tensor, fixed: Tensor) -> None:
    op = graph.nodes[node].op
    assert isinstance(op, Elementwise)
    smallest, largest = relaxation.slope_range(op.function)
    bounds = state[graph.nodes[node].inputs[0]].bounds
    own = relaxation.default_slopes(op.function, bounds.lower, bounds.upper)
    for slopes, start in zip((low, high), own, strict=True):
        if slopes.requires_grad:
            slopes.clamp_(smallest, largest)
            slopes.copy_(torch.where(fixed, start.unsqueeze(1).to(slopes.dtype), slopes))
