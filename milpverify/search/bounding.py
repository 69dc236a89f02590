"""Bounding a batch of boxes for a group of disjuncts: CROWN for every pre-activation, then the rows of the margin."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.balls.confined import without_inputs
from milpverify.propagation.backward import default_lines
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.differences.asked import differences
from milpverify.propagation.differences.coefficients import DifferenceTuning
from milpverify.propagation.forward import Carried, forward
from milpverify.propagation.interval import step
from milpverify.propagation.optimised.alpha import AlphaOptions, alpha_crown, optimise
from milpverify.propagation.relevance import needed
from milpverify.propagation.request import BoundRequest, Method
from milpverify.propagation.row_intervals import RowIntervals
from milpverify.propagation.second_order import SecondOrder, applies, better
from milpverify.propagation.state import LinearBound, NodeState
from milpverify.search.groups import GroupTuning

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.backward import LineTable
    from milpverify.propagation.differences.bounding import Differences
    from milpverify.propagation.relevance import Needed
    from milpverify.propagation.state import State
    from milpverify.search.groups import Group


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a group's rows tell before any box is known: the functions of the last nonlinear nodes that they are, and what they need.

    `differences` are there where rows compare copies of one network.
    """

    ranges: RowIntervals
    needed: Needed
    differences: Differences | None

    @staticmethod
    def of(graph: Graph, group: Group, tuning: DifferenceTuning = DifferenceTuning()) -> Prepared:
        """Read the rows of a group; the graph is in float64."""
        compared = differences(graph, group.y_rows, group.x_rows, [d.domain for d in group.disjuncts], tuning)
        return Prepared(RowIntervals.of(graph, group.y_rows, group.x_rows), needed(graph, group.y_rows), compared)


@dataclass(frozen=True, eq=False)
class BatchBounds:
    """A bounded batch: the state and lines, the rows' linear bounds, and the margins (batch, D), which may be better than the rows'.

    Where the rows were bounded to second order, also the forms for that, and what each input makes the rows lose (batch, rows, nx).
    `unrefined` are the seconds that optimising the slopes may still take where it was cut short.
    """

    state: State
    table: LineTable
    rows: LinearBound
    margins: Tensor
    forms: SecondOrder | None = None
    losses: Tensor | None = None
    unrefined: float = 0.0


def bound_batch(
    graph: Graph,
    group: Group,
    lower: Tensor,
    upper: Tensor,
    dtype: torch.dtype,
    request: BoundRequest = BoundRequest(),
    prepared: Prepared | None = None,
) -> BatchBounds:
    """Bound the margins over a batch of boxes.

    Args:
        graph: in float64.
        lower, upper: (batch, nx) float64.
        dtype: the precision of the matrix products; the margins are rigorous in either.
        request: what is known of the pre-activations and how they are bounded; what is needed of them is the group's. The rows get a
            backward pass in any case.
        prepared: the group's, where many batches are to be bounded.
    """
    prepared, method, tuning = prepared or Prepared.of(graph, group), request.method, request.tuning
    if method is Method.INTERVALS:
        state, table = intervals(graph, lower, upper, dtype, request)
    elif method is Method.FORWARD:
        state, table = forward(graph, lower, upper, dtype, request.known, tuning)
    else:
        carried = Carried(graph, lower, upper, dtype) if method is Method.BOTH else None
        state, table = crown(graph, lower, upper, dtype, replace(request, needed=prepared.needed), carried)
    batch = lower.shape[0]
    y_rows = group.y_rows.expand(batch, -1, -1)
    x_rows = None if group.x_rows is None else group.x_rows.expand(batch, -1, -1)
    rows = bound_rows(graph.to(dtype, graph.device), state, table, y_rows, x_rows=x_rows, tuning=tuning)
    forms = losses = None
    if request.second_order and applies(graph, lower, upper, tuning):
        forms = SecondOrder(graph, state, table, dtype, tuning)
        curved, losses = forms.bound(y_rows, x_rows)
        rows = better(rows, curved)
    # Linear bounds are clipped with, and keep minima of their own; margins take what is best.
    least = torch.maximum(rows.lower, prepared.ranges.lower(state))
    margins = group.margins(least)
    if prepared.differences is not None:
        margins = prepared.differences.raised(margins, state, group.margins, group.closed)
    if not graph.boxed:
        margins = margins.masked_fill(without_inputs(graph.ball, graph.halfspaces, lower, upper).unsqueeze(1), torch.inf)
    return BatchBounds(state, table, rows, margins, forms, losses)


def intervals(graph: Graph, lower: Tensor, upper: Tensor, dtype: torch.dtype, request: BoundRequest) -> tuple[State, LineTable]:
    """Bounds of every node by intervals, met with what is known, and the lines that they give.

    Args:
        graph: in float64.
        lower, upper: the boxes, (batch, nx) float64.
        dtype: of the lines, and of the passes that charges are for.
        request: bounds of nodes over these boxes.
    """
    state: State = {}
    table: LineTable = {}
    fast, known = graph.to(dtype, graph.device), request.known
    for node in graph.nodes:
        now = step(graph, node, state, lower, upper, fast, request.tuning)
        if known is not None and node.id in known:
            now = NodeState(now.bounds.meet(known[node.id]), now.center, now.charge)
        state[node.id] = now
        if node.id in graph.readings:
            table[node.id] = default_lines(graph, node.id, state, dtype)
    return state, table


def refine(
    graph: Graph, group: Group, found: BatchBounds, request: BoundRequest, tuning: GroupTuning = GroupTuning(), paced: bool = False
) -> BatchBounds:
    """The same boxes with slopes optimised, first for every undecided pre-activation, then for the rows (float32).

    Args:
        request: until when; what is needed is the group's.
        paced: as in `alpha_crown`.
    """
    prepared, options = Prepared.of(graph, group), AlphaOptions(iterations=tuning.slopes)
    request = replace(request, needed=prepared.needed)
    state, table = alpha_crown(graph, found.state, torch.float32, options, request, paced)
    if paced and request.expired:  # what is over is over: a step for the rows may be as dear as all before it
        return BatchBounds(state, table, found.rows, found.margins)
    batch = state[0].bounds.lower.shape[0]
    x_rows = None if group.x_rows is None else group.x_rows.expand(batch, -1, -1)
    fast = graph.to(torch.float32, graph.device)
    threshold = group.rhs.expand(batch, -1)
    y_rows = group.y_rows.expand(batch, -1, -1)
    rows, _ = optimise(fast, state, table, y_rows, options, request, threshold, x_rows)
    least = torch.maximum(rows.lower, prepared.ranges.lower(state))
    return BatchBounds(state, table, rows, torch.maximum(found.margins, group.margins(least)))


def reduce(group: Group, found: BatchBounds) -> tuple[Group, BatchBounds] | None:
    """One box's group and bounds with the disjuncts that are still open; None where all are closed."""
    keep = [k for k, closed in enumerate(group.closed(found.margins)[0].tolist()) if not closed]
    return choose(group, found, keep) if keep else None


def choose(group: Group, found: BatchBounds, keep: list[int]) -> tuple[Group, BatchBounds]:
    """One box's group and bounds with some of the disjuncts only."""
    chosen = group.rows_of(keep)
    linear = found.rows.map(lambda t: t[:, chosen])
    return group.select(keep), replace(found, rows=linear, margins=found.margins[:, keep], forms=None, losses=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, which has several types for it, says that memory is short."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "alloc" in str(error).lower() or "out of memory" in str(error).lower()
