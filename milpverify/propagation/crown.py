"""CROWN with all intermediate bounds (arXiv 1811.00866), batched over boxes.

Which neurons are stable is known only after bounding them. So the pre-activations that interval propagation leaves undecided
are first screened: one backward pass with parallel slopes bounds both sides with one matrix, and rows leave it as soon as the
intervals on the way prove them stable. Only the survivors get the two-sided pass with the default slopes.

Smooth functions are never stable, but nearly linear on small intervals. Before them, one pass with the mean of the default slopes
bounds both sides of every neuron, and only those whose bounds slopes of their own could improve get the two-sided pass.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64, UNIT_ROUNDOFF
from milpverify.propagation.backward import Backward, LineTable, SplitTable, default_lines, lines, parallel_lines
from milpverify.propagation.interval import charged, input_state, step
from milpverify.propagation.memory import rows_that_fit
from milpverify.propagation.passes import Known, finite, parts, passes
from milpverify.propagation.relevance import refinable, wanted
from milpverify.propagation.request import BoundRequest, BoundTuning
from milpverify.propagation.screening import Gram, functions_of, inexact, screen, undecided
from milpverify.propagation.state import Bounds, LinearBound, Lines, NodeState, Passage, State, rows_of_lines
from milpverify.relaxations.registry import rule_of
from milpverify.relaxations.smooth import Smooth

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from milpverify.graph import Graph, Node
    from milpverify.propagation.forward import Carried


def crown(
    graph: Graph,
    lower: Tensor,
    upper: Tensor,
    dtype: torch.dtype = torch.float32,
    request: BoundRequest = BoundRequest(),
    carried: Carried | None = None,
    sharpen: Callable[[Node, State, LineTable], Bounds] | None = None,
) -> tuple[State, LineTable]:
    """Bounds of every node, and the lines that they give.

    Args:
        graph: in float64.
        lower, upper: boxes, (batch, nx) float64.
        dtype: the precision of the matrix products; the bounds are rigorous in either.
        request: what is asked for, by backward passes whatever its method. With an inner precision the state is for passes on that copy
            of the graph. Rounding charges grow with the depth: in float64 they vanish where they would be felt, while screening and
            the dearest step, onto the input, stay as fast as `dtype`.
        carried: forward linear forms on these boxes, not yet begun, whose bounds are met with the others.
        sharpen: better bounds of a variable, from the state and the lines of what is before it.

    Returns:
        the state of every node, (batch, *node.shape) float64, and the lines around every nonlinear one, in the precision of the passes
        behind it.
    """
    known, inner = request.known, request.inner
    fast, wide = graph.to(dtype, graph.device), graph.to(dtype, graph.device, inner)
    state: State = {}
    coarse: State = state if wide is fast else {}
    table: LineTable = {}
    parallel: LineTable = {}
    through = Passage(state, table)
    screening = Passage(coarse, parallel, intervals=through.intervals if wide is fast else {})
    targets = {node.id for node in refinable(graph)}
    functions = {i: functions_of(graph, i) for i in targets}
    smooth = {i for i, read in functions.items() if read is not None and all(isinstance(rule_of(f), Smooth) for f in read)}
    level: Level = {}
    screened = {i for i, read in functions.items() if read is not None and all(f.pieces for f in read)}
    screened -= set(known or ()) if request.screened_before else set()
    # What a ball or half-spaces exclude the box's ranges do not tell.
    useful = screened and len(lower) and graph.boxed
    gram = Gram.of(graph, fast, input_state(lower, upper).deviation.amax(0)) if useful else None
    sampled = carried is not None
    for node in graph.nodes:
        now = step(graph, node, state, lower, upper, wide, request.tuning)
        if known is not None and node.id in known:
            now = NodeState(now.bounds.meet(known[node.id]), now.center, now.charge)
        state[node.id] = now
        if carried is not None:
            state[node.id] = now = carried.step(node, state, table)
        if coarse is not state:
            coarse[node.id] = charged(graph, node, coarse, now, fast)
        if node.id in graph.readings:
            table[node.id] = around = default_lines(graph, node.id, state, wide.precision(node.id))
            if smooth:
                level[node.id] = _level(graph, node.id, state, around)
            if screened:
                parallel[node.id] = parallel_lines(graph, node.id, coarse, dtype)
        if node.id in targets and not request.expired:
            quick, broad = fast.nodes[node.id], wide.nodes[node.id]
            if node.id in screened:
                _improve(state, coarse, node.id, _screened(fast, quick, screening, gram, sampled, request))
            if node.id in smooth:
                bounds = _levelled(wide, broad, through, level, request)
            else:
                bounds = _refined(wide, broad, through, sampled, request)
            _improve(state, coarse, node.id, bounds)
            if sharpen is not None:
                _improve(state, coarse, node.id, sharpen(node, state, table))
    return state, table


def _improve(state: State, coarse: State, node: int, bounds: Bounds) -> None:
    """Replace the bounds of a node in both states (which may be the same one)."""
    for one in (state, coarse):
        one[node] = NodeState(bounds, one[node].center, one[node].charge)


def bound_rows(
    graph: Graph,
    state: State,
    table: LineTable,
    rows: Tensor,
    node: int | None = None,
    x_rows: Tensor | None = None,
    splits: SplitTable | None = None,
    tuning: BoundTuning = BoundTuning(),
) -> LinearBound:
    """Lower bounds of `rows . value(node) + x_rows . x` on every box; in parts where memory does not hold all rows.

    Args:
        graph: in the precision of the matrices.
        rows: (batch, r, size of the node) float64.
        node: the output by default.
        x_rows: (batch, r, nx) float64, zero by default.
        splits: split constraints that hold on the boxes; the bounds then hold where they do.

    Returns:
        linear functions of the input below the rows, (batch, r, nx), and their rigorous minima, (batch, r) float64.
    """
    on = [(graph.output if node is None else node, rows), *([] if x_rows is None else [(0, x_rows)])]
    return bound_sum(graph, state, table, on, splits, tuning=tuning)


def bound_sum(
    graph: Graph,
    state: State,
    table: LineTable,
    on: Sequence[tuple[int, Tensor]],
    splits: SplitTable | None = None,
    seen: dict[int, Tensor] | None = None,
    tuning: BoundTuning = BoundTuning(),
) -> LinearBound:
    """As `bound_rows`, of the sum of rows on several nodes.

    Args:
        on: the nodes, and the rows on each, (batch, r, size of the node) float64.
        seen: filled with the multipliers that arrive at each nonlinear node, (batch, r, *shape), where given.
    """
    node, rows = on[0]
    batch, count = rows.shape[:2]
    most = max(1, rows_that_fit(graph, tuning=tuning) // max(1, batch))
    if count > most and seen is None and not rows.requires_grad:
        parts = []
        for part in (slice(first, first + most) for first in range(0, count, most)):
            own = {i: rows_of_lines(around, len(graph.nodes[i].shape), part) for i, around in table.items()}
            held = {i: replace(split, beta=split.beta[:, part]) for i, split in (splits or {}).items()}
            parts.append(bound_sum(graph, state, own, [(i, matrix[:, part]) for i, matrix in on], held, tuning=tuning))
        joined = ([getattr(p, name) for p in parts] for name in ("coefficients", "constant", "lower", "over_box"))
        return LinearBound(*(torch.cat(each, dim=1) for each in joined))
    start = state[node]
    flat = rows.to(graph.inner or graph.dtype)
    sweep = Backward(graph, Passage(state, table, splits or {}), batch, count, None, parallel=False)
    sweep.seen = seen
    sweep.add(node, flat.reshape(batch, count, *graph.nodes[node].shape))
    base, pad = _base(graph, node, start, rows, flat)
    for other, other_rows in on[1:]:
        sent = other_rows.to(graph.dtype)
        sweep.add(other, sent.reshape(batch, count, *graph.nodes[other].shape))
        more, more_pad = _base(graph, other, state[other], other_rows, sent)
        base, pad = base + more, pad + more_pad + 2 * U64 * (base.abs() + more.abs())
    while sweep.step():
        pass
    least = [sweep.concretise()[0], *([sweep.concretise(confined=False)[0]] if sweep.regions else [])]
    lower, *others = (finite(base + part - pad - 8 * U64 * (base.abs() + part.detach().abs())) for part in least)
    # Where nothing is known, infinite ends have left coefficients that are no numbers.
    return LinearBound(sweep.waiting[0].nan_to_num(0.0, 0.0, 0.0), base + sweep.lower, lower, *(others or [lower]))


def _base(graph: Graph, node: int, start: NodeState, rows: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at the reference value, (batch, r), and what rounding loses at the start (`flat` are the rows as multiplied)."""
    center = start.center.flatten(1).unsqueeze(2)
    base = (rows @ center).squeeze(2)
    pad = 2 * (rows.shape[2] + 8) * U64 * (rows.abs() @ center.abs()).squeeze(2)
    deviation = start.deviation.flatten(1)
    lost = _against((rows - flat.double()).abs(), deviation)
    # The multipliers may meet others at this node: those of the nodes that read it, and of splits.
    charge = (3 + len(graph.consumers[node])) * UNIT_ROUNDOFF[flat.dtype] * deviation
    if start.charge is not None:
        charge = charge + start.charge.flatten(1)
    return base, pad + (lost + _against(rows.abs(), charge)) * (1 + 2.0**-20)


def _against(sizes: Tensor, charge: Tensor) -> Tensor:
    """Sizes (batch, r, n) >= 0 times charges (batch, n) >= 0, (batch, r), where zero times infinity is zero."""
    found = (sizes @ charge.unsqueeze(2)).squeeze(2)
    if not bool(found.isnan().any()):
        return found
    unknown = ~charge.isfinite()
    found = (sizes @ charge.masked_fill(unknown, 0.0).unsqueeze(2)).squeeze(2)
    return found.masked_fill(((sizes > 0) & unknown.unsqueeze(1)).any(2), torch.inf)


def _screened(graph: Graph, node: Node, through: Passage, gram: Gram | None, sampled: bool, request: BoundRequest) -> Bounds:
    """Bounds of a pre-activation node, improved where a pass with parallel slopes may decide its function."""
    functions = functions_of(graph, node.id)
    known = Known(through.state[node.id])
    if functions is not None and all(f.pieces is not None for f in functions):
        left = wanted(graph, node.id, inexact(functions, known.low, known.high), known.low, known.high, request.needed.get(node.id))
        for part in parts(graph, node, through.state, left, known, sampled, request):
            for sweep, _, index in passes(graph, node, through, part, request, parallel=True):
                screen(sweep, functions, gram, index, known.improve, request.tuning)
    return known.bounds


def _refined(graph: Graph, node: Node, through: Passage, sampled: bool, request: BoundRequest) -> Bounds:
    """Bounds of a variable, improved by a pass for both sides of every undecided entry."""
    state = through.state
    known = Known(state[node.id])
    undone = undecided(graph, node.id, state, known.low, known.high)
    left = wanted(graph, node.id, undone, known.low, known.high, request.needed.get(node.id))
    for part in parts(graph, node, state, left, known, sampled, request):
        _two_sided(graph, node, through, part, known, request)
    return known.bounds


def _two_sided(graph: Graph, node: Node, through: Passage, chosen: tuple[Tensor, Tensor], known: Known, request: BoundRequest) -> None:
    """A pass for both sides of the chosen neurons: boxes, ascending, and places."""
    for sweep, box, index in passes(graph, node, through, chosen, request, parallel=False):
        while sweep.step():
            pass
        below, above = sweep.concretise()[0].chunk(2, dim=1)
        known.improve(box, index, below, -above)


def _places(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen entries (batch, size) bool as boxes, ascending, and places."""
    box, place = chosen.nonzero(as_tuple=True)
    return box, place


Level = dict[int, tuple[Lines, Tensor]]
"""Nonlinear node id -> lines with one slope for both sides, and what they lose against the default ones at midpoints, (batch, *shape)."""


def _level(graph: Graph, node: int, state: State, around: Lines) -> tuple[Lines, Tensor]:
    """Lines with the mean of the default slopes for both sides, and what they lose."""
    slopes = tuple(0.5 * (low + high) for low, high in zip(around.k_lower, around.k_upper, strict=True))
    found = lines(graph, node, state, slopes[0].dtype, slopes, slopes)
    gap = (found.b_upper - found.b_lower).double()
    own = (around.b_upper - around.b_lower).double()
    for i, low, high in zip(graph.nodes[node].inputs, around.k_lower, around.k_upper, strict=True):
        source = state[i]
        own = own + (high - low).double() * (0.5 * (source.bounds.lower + source.bounds.upper) - source.center)
    return found, (0.5 * (gap - own)).nan_to_num(0.0, 0.0, 0.0).clamp(min=0.0).to(slopes[0].dtype)


def _levelled(graph: Graph, node: Node, through: Passage, level: Level, request: BoundRequest) -> Bounds:
    """Bounds of a pre-activation node by a pass with one slope for both sides, and by a two-sided one where that should gain much."""
    state = through.state
    known = Known(state[node.id])
    undone = undecided(graph, node.id, state, known.low, known.high)
    left = wanted(graph, node.id, undone, known.low, known.high, request.needed.get(node.id))
    shared = replace(through, table={i: around for i, (around, _) in level.items()})
    for sweep, box, index in passes(graph, node, shared, _places(left), request, parallel=True):
        sweep.seen = {}
        while sweep.step():
            pass
        low, high = known.improve(box, index, *sweep.concretise())
        gained = torch.zeros_like(low)
        for i, rows in sweep.seen.items():
            lost = level[i][1].flatten(1)[box]
            gained = gained + (rows.flatten(2).abs() @ lost.to(rows.dtype).unsqueeze(2)).squeeze(2)
        still = ~(2 * gained <= request.tuning.gain * (high - low))
        left[box.unsqueeze(1), index] = still
        if bool(still.all()):  # the others may be expected to need it too
            break
    _two_sided(graph, node, through, _places(left), known, request)
    return known.bounds
