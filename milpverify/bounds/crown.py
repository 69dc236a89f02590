"""CROWN with all intermediate bounds (arXiv 1811.00866), batched over boxes.

Which neurons are stable is known only after bounding them. So the pre-activations that interval propagation leaves undecided
are first screened: one backward pass with parallel slopes bounds both sides with one matrix, and rows leave it as soon as the
intervals on the way prove them stable. Only the survivors get the two-sided pass with the default slopes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.backward import Backward, LineTable, SplitTable, default_lines, parallel_lines
from milpverify.bounds.interval_propagation import step
from milpverify.bounds.rounding import U64, UNIT_ROUNDOFF
from milpverify.bounds.state import Bounds, LinearBound, NodeState, State
from milpverify.operators import Affine, Elementwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.catalogue import Function
    from milpverify.config import Deadline
    from milpverify.graph import Graph, Node

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""How large one matrix of multipliers may grow: on a CPU it should stay within the caches."""


def crown(graph: Graph, lower: Tensor, upper: Tensor, dtype: torch.dtype = torch.float32, known: dict[int, Bounds] | None = None, deadline: Deadline | None = None) -> tuple[State, LineTable]:
    """Bounds of every node, and the lines that they give.

    Args:
        graph: in float64.
        lower, upper: boxes, (batch, nx) float64.
        dtype: the precision of the matrix products; the bounds are rigorous in either.
        known: bounds of nodes that are known to hold on these boxes (from a parent subproblem, say), met with the new ones.
        deadline: past it the remaining nodes keep their interval bounds.
    """
    fast = graph.to(dtype, graph.device)
    state: State = {}
    table: LineTable = {}
    parallel: LineTable = {}
    targets = {node.id for node in refinable(graph)}
    for node in graph.nodes:
        now = step(graph, node, state, lower, upper, dtype)
        if known is not None and node.id in known:
            now = NodeState(now.bounds.meet(known[node.id]), now.center, now.charge)
        state[node.id] = now
        if node.id in targets and not (deadline and deadline.expired()):
            state[node.id] = NodeState(_refine(fast, fast.nodes[node.id], state, table, parallel), now.center, now.charge)
        if isinstance(node.op, Elementwise):
            table[node.id] = default_lines(graph, node.id, state, dtype)
            parallel[node.id] = parallel_lines(graph, node.id, state, dtype)
    return state, table


def bound_rows(graph: Graph, state: State, table: LineTable, rows: Tensor, node: int | None = None, x_rows: Tensor | None = None, splits: SplitTable | None = None, seen: dict[int, Tensor] | None = None) -> LinearBound:
    """Lower bounds of `rows . value(node) + x_rows . x` on every box.

    Args:
        graph: in the precision of the matrices.
        rows: (batch, r, size of the node) float64.
        node: the output by default.
        x_rows: (batch, r, nx) float64, zero by default.
        splits: split constraints that hold on the boxes; the bounds then hold where they do.
        seen: filled with the multipliers that arrive at each nonlinear node, (batch, r, *shape), where given.
    """
    node = graph.output if node is None else node
    batch, count = rows.shape[:2]
    start = state[node]
    flat = rows.to(graph.dtype)
    sweep = Backward(graph, state, table, batch, count, None, parallel=False, splits=splits)
    sweep.seen = seen
    sweep.add(node, flat.reshape(batch, count, *graph.nodes[node].shape))
    base, pad = _base(start, rows, flat)
    if x_rows is not None:
        sweep.add(0, x_rows.to(graph.dtype))
        more, more_pad = _base(state[0], x_rows, sweep.waiting[0])
        base, pad = base + more, pad + more_pad + 2 * U64 * (base.abs() + more.abs())
    while sweep.step():
        pass
    lower, _ = sweep.concretise()
    return LinearBound(sweep.waiting[0], base + sweep.lower, _finite(base + lower - pad - 8 * U64 * (base.abs() + lower.detach().abs())))


def _base(start: NodeState, rows: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at the reference value, (batch, r), and what rounding loses at the start (`flat` are the rows as multiplied)."""
    center = start.center.flatten(1).unsqueeze(2)
    base = (rows @ center).squeeze(2)
    pad = 2 * (rows.shape[2] + 8) * U64 * (rows.abs() @ center.abs()).squeeze(2)
    deviation = start.deviation.flatten(1)
    lost = ((rows - flat.double()).abs() @ deviation.unsqueeze(2)).squeeze(2)
    # The multipliers may meet others at this node: one addition each.
    charge = 4 * UNIT_ROUNDOFF[flat.dtype] * deviation
    if start.charge is not None:
        charge = charge + start.charge.flatten(1)
    return base, pad + (lost + (rows.abs() @ charge.unsqueeze(2)).squeeze(2)) * (1 + 2.0**-20)


def refinable(graph: Graph) -> list[Node]:
    """The pre-activation nodes that backward passes can improve, in topological order.

    Interval propagation is exact where at most one summing map lies between the input and the node.
    """
    depth: dict[int, int] = {0: 0}
    for node in graph.nodes:
        if isinstance(node.op, Affine) and len(node.inputs) == 1 and node.inputs[0] in depth:
            depth[node.id] = depth[node.inputs[0]] + (node.op.terms > 1)
    return [n for n in graph.nodes if isinstance(n.op, Affine) and depth.get(n.id, 2) > 1 and functions_of(graph, n)]


def undecided(functions: Sequence[Function], lower: Tensor, upper: Tensor) -> Tensor:
    """Where the relaxation of some of the functions on [lower, upper] is not exact (bool)."""
    return ~torch.stack([relaxation.is_exact(f, lower, upper) for f in functions]).all(0)


def functions_of(graph: Graph, node: Node) -> list[Function]:
    """The functions that read a node."""
    return [op.function for c in graph.consumers[node.id] if isinstance(op := graph.nodes[c].op, Elementwise)]


def _refine(graph: Graph, node: Node, state: State, table: LineTable, parallel: LineTable) -> Bounds:
    """Tighter bounds of a pre-activation node, where they matter."""
    bounds, functions = state[node.id].bounds, functions_of(graph, node)
    low, high = bounds.lower.flatten(1).clone(), bounds.upper.flatten(1).clone()
    owner, index = undecided(functions, low, high).nonzero(as_tuple=True)
    if all(f.pieces is not None for f in functions):
        for part in chunks(graph, len(owner)):
            _screen(graph, node, state, parallel, owner[part], index[part], low, high)
        owner, index = undecided(functions, low, high).nonzero(as_tuple=True)
    owner, index = owner.repeat_interleave(2), index.repeat_interleave(2)
    sign = torch.ones(len(owner), dtype=graph.dtype, device=owner.device)
    sign[1::2] = -1.0
    for part in chunks(graph, len(owner)):
        o, i, s = owner[part], index[part], sign[part]
        sweep = _start(graph, node, state, table, o, i, s, parallel=False)
        while sweep.step():
            pass
        value = _at_start(state[node.id], o, i, sweep.concretise()[0].squeeze(1), s.double())
        low[o[::2], i[::2]] = torch.maximum(low[o[::2], i[::2]], value[::2])
        high[o[::2], i[::2]] = torch.minimum(high[o[::2], i[::2]], -value[1::2])
    return Bounds(low.reshape(bounds.lower.shape), high.reshape(bounds.lower.shape))


def _screen(graph: Graph, node: Node, state: State, parallel: LineTable, owner: Tensor, index: Tensor, low: Tensor, high: Tensor) -> None:
    """One pass with parallel slopes; tightens `low` and `high` in place and drops rows as soon as they are decided."""
    sweep = _start(graph, node, state, parallel, owner, index, torch.ones(len(owner), dtype=graph.dtype, device=owner.device), parallel=True)
    ones, functions = torch.ones((), dtype=torch.float64, device=owner.device), functions_of(graph, node)
    while True:
        went_on = sweep.step()
        arrived = not went_on
        waiting = max(sweep.waiting)
        # Intervals say something new where the multipliers have just passed an affine map onto a nonlinear node's output.
        if went_on and not isinstance(graph.nodes[waiting].op, Elementwise):
            continue
        lower, upper = (side.squeeze(1) for side in sweep.concretise())
        start = state[node.id]
        value_low = torch.maximum(low[owner, index], _at_start(start, owner, index, lower, ones))
        value_high = torch.minimum(high[owner, index], -_at_start(start, owner, index, -upper, -ones))
        low[owner, index], high[owner, index] = value_low, value_high
        if arrived:
            return
        keep = undecided(functions, value_low, value_high).nonzero(as_tuple=True)[0]
        if not len(keep):
            return
        if len(keep) < 0.8 * len(owner):
            sweep.narrow(keep)
            owner, index = owner[keep], index[keep]


def _start(graph: Graph, node: Node, state: State, table: LineTable, owner: Tensor, index: Tensor, sign: Tensor, parallel: bool) -> Backward:
    """A pass that starts with signed unit vectors at an affine node, already moved through its adjoint."""
    sweep = Backward(graph, state, table, len(owner), 1, owner, parallel)
    assert isinstance(node.op, Affine)
    for source, part in zip(node.inputs, node.op.rows(index, node.shape), strict=True):
        sweep.add(source, (part * sign.reshape(-1, *[1] * (part.dim() - 1))).unsqueeze(1))
    return sweep


def _at_start(start: NodeState, owner: Tensor, index: Tensor, bound: Tensor, sign: Tensor) -> Tensor:
    """A bound of sign * deviation turned into one of sign * value, with the start node's charges."""
    center = start.center.flatten(1)[owner, index]
    charge = start.charge.flatten(1)[owner, index] if start.charge is not None else 0.0
    total = sign * center + bound
    return _finite(total - charge * (1 + 2.0**-40) - 4 * U64 * (center.abs() + bound.abs()))


def _finite(bound: Tensor) -> Tensor:
    """A lower bound with NaN (from overflow) replaced by what is known then: nothing."""
    return torch.where(torch.isnan(bound), -torch.inf, bound)


def chunks(graph: Graph, rows: int) -> list[slice]:
    """Slices of a number of rows, each small enough for one matrix of multipliers; their starts are even."""
    widest = max(node.size for node in graph.nodes)
    size = torch.finfo(graph.dtype).bits // 8
    per = max(16, CHUNK_BYTES[graph.device.type] // (widest * size)) // 2 * 2
    count = math.ceil(rows / per) if rows else 0
    return [slice(k * per, min(rows, (k + 1) * per)) for k in range(count)]
