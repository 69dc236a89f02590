"""Bounds by the linear relaxation of a network: HiGHS solves it, and its multipliers are checked by a rigorous backward pass.

The model encloses every unstable neuron by lines (`encode` with `relaxed`). Whatever multipliers a solver returns, those >= 0 of a
neuron's lower lines have a mean slope, and so have those of its upper lines; intercepts for these two slopes are proved anew. The
multipliers of margin rows, split decisions and domain rows are weights, reduced costs are those of the bounds of neurons. By weak duality

    margin >= sum_i w_i r_i + sum_j v_j d_j - sum_k u_k s_k    with sum w = 1, v, u >= 0, d_j <= 0 and s_k >= 0,

and a pass bounds the right-hand side from below, its rounding charged. The sum over one line per side is at most as far below as the one
over all of them, so the bound is the program's optimum or better, but for rounding, and rests on nothing that the solver said.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.arithmetic.rounding import U64
from milpverify.encode.curves import Relaxed
from milpverify.encode.encoding import ModelForm
from milpverify.encode.milp import encode, encode_layer
from milpverify.encode.model import NumericallyUnfit, OutOfTime, elastic
from milpverify.propagation.backward import ends_of, lines
from milpverify.propagation.crown import bound_rows
from milpverify.propagation.interval import step
from milpverify.propagation.state import Bounds, NodeState, SplitConstraints, State, node_ranges
from milpverify.relaxations.registry import rule_of
from milpverify.solvers.base import Limits, SolverStatus
from milpverify.spec import Box, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import Split
    from milpverify.encode.encoding import Origins
    from milpverify.graph import Graph
    from milpverify.propagation.backward import LineTable, SplitTable
    from milpverify.propagation.state import Lines
    from milpverify.solvers.model import Index, Model
    from milpverify.solvers.process import SolverProcess
    from milpverify.spec import Array, Disjunct

ENVELOPES = Relaxed()
"""The lines of the envelopes alone."""


def settled(graph: Graph, bounds: State) -> State:
    """The state of one box for passes in float64 on the CPU, from bounds of every node that are proved there."""
    known = {i: Bounds(s.bounds.lower.cpu(), s.bounds.upper.cpu()) for i, s in bounds.items()}
    state: State = {}
    for node in graph.nodes:
        now = step(graph, node, state, known[0].lower, known[0].upper, graph)
        state[node.id] = NodeState(now.bounds.meet(known[node.id]), now.center, now.charge)
    return state


def split_table(constraints: Iterable[tuple[Split, float]]) -> SplitTable:
    """Split constraints with their multipliers, by node, for one box and one row."""
    by_node: dict[int, list[tuple[float, ...]]] = {}
    for (node, *rest), weight in constraints:
        by_node.setdefault(node, []).append((*rest, weight))
    table = {}
    for node, here in sorted(by_node.items()):
        index, side, point, beta = (torch.tensor([column], dtype=torch.float64) for column in zip(*here, strict=True))
        table[node] = SplitConstraints(index.long(), side, point, beta[None])
    return table


def weighted_bound(
    graph: Graph, state: State, table: LineTable, top: Rows, domain: Rows, weights: tuple[Array, Array], splits: SplitTable
) -> float:
    """A lower bound of the weighted sum of residuals over a box, per unit of the first weights where these are not 0: rigorous, in float64.

    Args:
        state: of one box, from `settled`.
        weights: of the rows `top` and `domain`, >= 0.
    """
    w, v = weights
    y_row, x_row = w @ top.y_rows, w @ top.x_rows + v @ domain.x_rows
    rhs = np.concatenate([w * top.rhs, v * domain.rhs])
    rows, x_rows = (torch.from_numpy(row)[None, None] for row in (y_row, x_row))
    lower = bound_rows(graph, state, table, rows, x_rows=x_rows, splits=splits).lower
    # What rounding did to the combined rows, over the ranges of what they multiply.
    reach_y, reach_x = (torch.maximum(b.lower.abs(), b.upper.abs()).flatten() for b in (state[i].bounds for i in (graph.output, 0)))
    size_x = w @ np.abs(top.x_rows) + v @ np.abs(domain.x_rows)
    products = torch.from_numpy(w @ np.abs(top.y_rows)) @ reach_y, torch.from_numpy(size_x) @ reach_x  # infinite where ranges are
    size = float(sum(products)) + float(np.abs(rhs).sum())
    total = float(lower[0, 0]) - math.fsum(rhs) - 4 * (len(w) + len(v) + 8) * U64 * size
    if not math.isfinite(total):
        return -math.inf
    sums = math.fsum(w)
    return total if sums == 0 else math.nextafter(total / (sums * (1 + 4 * U64 if total > 0 else 1 - 4 * U64)), -math.inf)


def margin_bound(
    graph: Graph,
    bounds: State,
    disjunct: Disjunct,
    decisions: tuple[Split, ...],
    process: SolverProcess,
    deadline: Deadline,
    relaxed: Relaxed = ENVELOPES,
) -> float:
    """A proved lower bound of the margin where the decisions hold, from the linear relaxation; inf where it has no point, -inf if it fails.

    Args:
        graph: in float64 on the CPU.
        bounds: of every node, a batch of one, proved where the decisions hold.
        relaxed: the lines of neurons.
    """
    state = settled(graph, bounds)
    disjunct = replace(disjunct, box=_box(state))
    decisions = tuple(sorted(decisions, key=lambda d: d[0]))
    try:
        made = encode(graph, node_ranges(state), disjunct, decisions=decisions, deadline=deadline, form=ModelForm(relaxed=relaxed))
    except (NumericallyUnfit, OutOfTime):
        return -math.inf
    assert made.origins is not None
    outcome, model = process.solve(made.model, Limits(), deadline), made.model
    multipliers = outcome.multipliers
    if outcome.status is SolverStatus.INFEASIBLE:
        multipliers, model = _farkas(model, process, deadline), replace(model, objective=np.zeros(model.num_variables))
    if multipliers is None:
        return -math.inf
    check = _Multipliers(graph, state, made.origins, model, made.unit, multipliers)
    w = np.maximum(check.rows[made.origins.margin.start :], 0.0)
    v = np.maximum(-check.rows[made.origins.domain.start : made.origins.domain.stop], 0.0)
    found = weighted_bound(graph, state, check.table(), disjunct.unsafe, disjunct.domain, (w, v), check.splits(decisions))
    return found if w.any() else math.inf if found > 0 else -math.inf


def output_bounds(
    graph: Graph, bounds: State, process: SolverProcess, deadline: Deadline, index: Index | None = None
) -> tuple[Array, Array]:
    """Proved bounds of the outputs, (ny,) each, from one linear program per output and side; infinite where it failed.

    Args:
        graph, bounds: as for `margin_bound`.
        index: (R,) some of the outputs, whose bounds alone are returned.
    """
    state, ny = settled(graph, bounds), graph.ny
    chosen = np.arange(ny) if index is None else index
    found = np.full((2, len(chosen)), -math.inf)
    try:
        layer = encode_layer(graph, node_ranges(state), _box(state), graph.output, chosen, deadline, ModelForm(relaxed=ENVELOPES))
    except (NumericallyUnfit, OutOfTime):
        return found[0], -found[1]
    for r, output in enumerate(chosen.tolist()):
        for place, side in enumerate((1, -1)):
            model = layer.task(r, side)
            multipliers = process.solve(model, Limits(), deadline).multipliers
            if multipliers is not None:
                check = _Multipliers(graph, state, layer.origins, model, layer.unit, multipliers)
                row, nothing = Rows.on_outputs(side * np.eye(ny)[[output]], [0.0], graph.nx), Rows.none(graph.nx, ny)
                found[place, r] = weighted_bound(graph, state, check.table(), row, nothing, (np.ones(1), np.zeros(0)), check.splits(()))
    return found[0], -found[1]


def _box(state: State) -> Box:
    """The box of a state."""
    low, high = (t[0].numpy() for t in (state[0].bounds.lower, state[0].bounds.upper))
    return Box(low, np.maximum(low, high))


def _farkas(model: Model, process: SolverProcess, deadline: Deadline) -> Array | None:
    """Multipliers that say how far a model is from having a point, for its own rows."""
    multipliers = process.solve(elastic(model), Limits(), deadline).multipliers
    if multipliers is None:
        return None
    found = np.zeros(model.num_rows)
    ends = np.flatnonzero(np.isfinite(model.row_lower)), np.flatnonzero(np.isfinite(model.row_upper))
    np.add.at(found, np.concatenate(ends), multipliers)
    return found


class _Multipliers:
    """Multipliers of a relaxed model's rows, carried back to the network. What is no number counts as 0."""

    def __init__(self, graph: Graph, state: State, origins: Origins, model: Model, unit: Array, multipliers: Array) -> None:
        self.graph, self.state, self.origins = graph, state, origins
        self.rows = _finite(multipliers / origins.scale)
        owner = np.repeat(np.arange(model.num_rows), np.diff(model.row_start))
        spent = np.bincount(model.column, _finite(multipliers)[owner] * model.value, model.num_variables)
        self.reduced = _finite((model.objective - spent) / unit)

    def table(self) -> LineTable:
        """Lines whose slopes are the means of those of the model's lines; parallel ones where none of these has a multiplier."""
        return {i: self._lines(i) for i in self.graph.nonlinear}

    def _lines(self, node: int) -> Lines:
        default = rule_of(self.graph.nodes[node].op).parallel_slopes(*ends_of(self.graph, node, self.state))
        slopes = np.stack([[k.flatten().numpy() for k in default]] * 2)  # (2, inputs, size)
        if node in self.origins.lines:
            row, entry, side = self.origins.lines[node][:, :3].T.astype(np.int64)
            weight, size = np.maximum(self.rows[row], 0.0), slopes.shape[2]
            total = np.bincount(side * size + entry, weight, 2 * size).reshape(2, size)
            for k, slope in enumerate(self.origins.lines[node][:, 3:].T):
                mean = np.bincount(side * size + entry, weight * slope, 2 * size).reshape(2, size) / np.where(total > 0, total, 1.0)
                slopes[:, k] = np.where((total > 0) & np.isfinite(mean), mean, slopes[:, k])
        shape = self.state[node].center.shape
        below, above = (tuple(torch.from_numpy(k).reshape(shape) for k in side) for side in slopes)
        return lines(self.graph, node, self.state, torch.float64, below, above)

    def splits(self, decisions: tuple[Split, ...]) -> SplitTable:
        """The split decisions, and the bounds of the neurons, that have a multiplier."""
        held = self.rows[self.origins.decisions.start : self.origins.decisions.stop]
        used = [(d, max(d[2] * weight, 0.0)) for d, weight in zip(decisions, held.tolist(), strict=True)]
        for (node, entry), column in self.origins.columns.items():
            weight = float(self.reduced[column])
            if node and weight:  # the pass minimises over the box itself
                ends = self.state[node].bounds
                point = (ends.lower if weight > 0 else ends.upper).flatten()[entry].item()
                used.append(((node, entry, math.copysign(1.0, weight), point), abs(weight)))
        return split_table((d, weight) for d, weight in used if weight > 0)


def _finite(values: Array) -> Array:
    """Values that are to be used as they are, 0 where they are no numbers."""
    return np.where(np.isfinite(values), values, 0.0)
