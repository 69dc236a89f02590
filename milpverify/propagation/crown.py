"""CROWN with all intermediate bounds (arXiv 1811.00866), batched over boxes.

Which neurons are stable is known only after bounding them. So the pre-activations that interval propagation leaves undecided
are first screened: one backward pass with parallel slopes bounds both sides with one matrix, and rows leave it as soon as the
intervals on the way prove them stable. Only the survivors get the two-sided pass with the default slopes.

Smooth functions are never stable, but nearly linear on small intervals. Before them, one pass with the mean of the default slopes
bounds both sides of every neuron, and only those whose bounds slopes of their own could improve get the two-sided pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64, UNIT_ROUNDOFF
from milpverify.operators import Affine
from milpverify.propagation.backward import Backward, Intervals, LineTable, SplitTable, default_lines, lines, parallel_lines
from milpverify.propagation.cost import CHEAP, row
from milpverify.propagation.interval import charged, input_state, step
from milpverify.propagation.relevance import EVERYTHING, refinable, wanted
from milpverify.propagation.screening import Gram, functions_of, grouped, inexact, screen, undecided
from milpverify.propagation.state import Bounds, LinearBound, Lines, NodeState, State
from milpverify.relaxations.registry import univariate
from milpverify.relaxations.smooth import Smooth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from milpverify.config import Deadline
    from milpverify.graph import Graph, Node
    from milpverify.propagation.forward import Carried
    from milpverify.propagation.relevance import Needed

CHUNK_BYTES = {"cpu": 1 << 21, "cuda": 1 << 28}
"""How large a matrix of multipliers may grow at a node of mean size: on a CPU it should stay within the caches."""
WORTHWHILE = 0.005
"""Of a neuron's width, what a two-sided pass should gain after one with a slope for both sides."""
SAMPLE, DEAR, GAINS = 32, 1e6, 0.5
"""Entries of a layer whose rows take so many multiplications each are tried first where forward forms have bounded them: the others
follow if the sample gains so much of its width (an entry that is decided, all of it)."""


def crown(
    graph: Graph,
    lower: Tensor,
    upper: Tensor,
    dtype: torch.dtype = torch.float32,
    known: dict[int, Bounds] | None = None,
    deadline: Deadline | None = None,
    inner: torch.dtype | None = None,
    carried: Carried | None = None,
    sharpen: Callable[[Node, State, LineTable], Bounds] | None = None,
    needed: Needed = EVERYTHING,
    screened_before: bool = True,
) -> tuple[State, LineTable]:
    """Bounds of every node, and the lines that they give.

    Args:
        graph: in float64.
        lower, upper: boxes, (batch, nx) float64.
        dtype: the precision of the matrix products; the bounds are rigorous in either.
        known: bounds of nodes that are known to hold on these boxes (from a parent subproblem, say), met with the new ones.
        deadline: past it the remaining neurons keep their interval bounds.
        inner: the precision of the two-sided passes behind the first nonlinear nodes (`Graph.to`), where it is not `dtype`. The
            state is then for passes on that copy of the graph. Rounding charges grow with the depth: in float64 they vanish where
            they would be felt, while screening and the dearest step, onto the input, stay as fast as `dtype`.
        carried: forward linear forms on these boxes, not yet begun, whose bounds are met with the others.
        sharpen: better bounds of a variable, from the state and the lines of what is before it.
        needed: the entries that matter; the others keep their interval bounds.
        screened_before: what is known comes from passes like these: what it leaves undecided, parallel slopes rarely decide.
    """
    fast, wide = graph.to(dtype, graph.device), graph.to(dtype, graph.device, inner)
    state: State = {}
    coarse: State = state if wide is fast else {}
    table: LineTable = {}
    parallel: LineTable = {}
    intervals: Intervals = {}
    coarse_intervals: Intervals = intervals if wide is fast else {}
    targets = {node.id for node in refinable(graph)}
    functions = {i: functions_of(graph, i) for i in targets}
    smooth = {i for i, read in functions.items() if read is not None and all(isinstance(univariate(f), Smooth) for f in read)}
    level: Level = {}
    screened = {i for i, read in functions.items() if read is not None and all(f.pieces for f in read)}
    screened -= set(known or ()) if screened_before else set()
    # What a ball excludes the box's ranges do not tell.
    useful = screened and len(lower) and graph.ball is None
    gram = Gram.of(graph, fast, input_state(lower, upper).deviation.amax(0)) if useful else None
    sampled = carried is not None
    for node in graph.nodes:
        now = step(graph, node, state, lower, upper, wide)
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
        if node.id in targets and not (deadline and deadline.expired()):
            mine, quick = needed.get(node.id), fast.nodes[node.id]
            if node.id in screened:
                _improve(state, coarse, node.id, _screened(fast, quick, coarse, parallel, coarse_intervals, gram, mine, deadline, sampled))
            if node.id in smooth:
                bounds = _levelled(wide, wide.nodes[node.id], state, table, level, intervals, mine, deadline)
            else:
                bounds = _refined(wide, wide.nodes[node.id], state, table, intervals, mine, deadline, sampled)
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
    seen: dict[int, Tensor] | None = None,
    also: dict[int, Tensor] | None = None,
) -> LinearBound:
    """Lower bounds of `rows . value(node) + x_rows . x` on every box.

    Args:
        graph: in the precision of the matrices.
        rows: (batch, r, size of the node) float64.
        node: the output by default.
        x_rows: (batch, r, nx) float64, zero by default.
        splits: split constraints that hold on the boxes; the bounds then hold where they do.
        also: rows on further nodes (batch, r, size of the node) float64, whose values are added.
        seen: filled with the multipliers that arrive at each nonlinear node, (batch, r, *shape), where given.
    """
    node = graph.output if node is None else node
    batch, count = rows.shape[:2]
    start = state[node]
    flat = rows.to(graph.inner or graph.dtype)
    sweep = Backward(graph, state, table, batch, count, None, parallel=False, splits=splits)
    sweep.seen = seen
    sweep.add(node, flat.reshape(batch, count, *graph.nodes[node].shape))
    base, pad = _base(graph, node, start, rows, flat)
    for other, other_rows in [*([] if x_rows is None else [(0, x_rows)]), *(also or {}).items()]:
        sent = other_rows.to(graph.dtype)
        sweep.add(other, sent.reshape(batch, count, *graph.nodes[other].shape))
        more, more_pad = _base(graph, other, state[other], other_rows, sent)
        base, pad = base + more, pad + more_pad + 2 * U64 * (base.abs() + more.abs())
    while sweep.step():
        pass
    least = [sweep.concretise()[0], *([] if sweep.region is None else [sweep.concretise(confined=False)[0]])]
    lower, *others = (_finite(base + part - pad - 8 * U64 * (base.abs() + part.detach().abs())) for part in least)
    # Where nothing is known, infinite ends have left coefficients that are no numbers.
    return LinearBound(sweep.waiting[0].nan_to_num(0.0, 0.0, 0.0), base + sweep.lower, lower, *(others or [lower]))


def _base(graph: Graph, node: int, start: NodeState, rows: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at the reference value, (batch, r), and what rounding loses at the start (`flat` are the rows as multiplied)."""
    center = start.center.flatten(1).unsqueeze(2)
    base = (rows @ center).squeeze(2)
    pad = 2 * (rows.shape[2] + 8) * U64 * (rows.abs() @ center.abs()).squeeze(2)
    deviation = start.deviation.flatten(1)
    lost = ((rows - flat.double()).abs() @ deviation.unsqueeze(2)).squeeze(2)
    # The multipliers may meet others at this node: those of the nodes that read it, and of splits.
    charge = (3 + len(graph.consumers[node])) * UNIT_ROUNDOFF[flat.dtype] * deviation
    if start.charge is not None:
        charge = charge + start.charge.flatten(1)
    return base, pad + (lost + (rows.abs() @ charge.unsqueeze(2)).squeeze(2)) * (1 + 2.0**-20)


def _screened(
    graph: Graph,
    node: Node,
    state: State,
    parallel: LineTable,
    intervals: Intervals,
    gram: Gram | None,
    needed: Tensor | None,
    deadline: Deadline | None,
    sampled: bool,
) -> Bounds:
    """Bounds of a pre-activation node, improved where a pass with parallel slopes may decide its function."""
    functions = functions_of(graph, node.id)
    known = _Known(state[node.id])
    if functions is not None and all(f.pieces is not None for f in functions):
        left = wanted(graph, node.id, inexact(functions, known.low, known.high), known.low, known.high, needed)
        for owner, index in _parts(graph, node, state, left, known, sampled):
            for box, place in grouped(owner, rows_at_once(graph)):
                if deadline is not None and deadline.expired():
                    break
                sweep = _start(graph, node, state, parallel, box, index[place], intervals, parallel=True)
                screen(sweep, functions, gram, index[place], known.improve)
    return known.bounds


def _parts(graph: Graph, node: Node, state: State, chosen: Tensor, known: _Known, sampled: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Chosen entries (batch, size) bool as boxes and places: all, or where they are dear a sample, and the others if that gained much.

    Args:
        known: of the node, which the passes improve.
        sampled: whether the entries have been bounded by something other than intervals, so that a pass may gain next to nothing.
    """
    owner, index = chosen.nonzero(as_tuple=True)
    if not sampled or len(owner) < 4 * SAMPLE or (each := row(graph, node.id)) < DEAR or len(owner) * each < CHEAP:
        yield owner, index
        return
    first = torch.zeros_like(owner, dtype=torch.bool)
    first[:: len(owner) // SAMPLE] = True
    at = owner[first], index[first]
    before = known.high[at] - known.low[at]
    yield at
    low, high = known.low, known.high
    left = undecided(graph, node.id, state, low, high)[at]
    gained = 1.0 - ((high[at] - low[at]) / before).nan_to_num(1.0, 0.0, 0.0)
    if float(torch.where(left, gained, 1.0).mean()) >= GAINS:
        yield owner[~first], index[~first]


def _refined(
    graph: Graph,
    node: Node,
    state: State,
    table: LineTable,
    intervals: Intervals,
    needed: Tensor | None,
    deadline: Deadline | None,
    sampled: bool,
) -> Bounds:
    """Bounds of a variable, improved by a pass for both sides of every undecided entry."""
    known = _Known(state[node.id])
    left = wanted(graph, node.id, undecided(graph, node.id, state, known.low, known.high), known.low, known.high, needed)
    for part in _parts(graph, node, state, left, known, sampled):
        _two_sided(graph, node, state, table, part, known, intervals, deadline)
    return known.bounds


def _two_sided(
    graph: Graph,
    node: Node,
    state: State,
    table: LineTable,
    chosen: tuple[Tensor, Tensor],
    known: _Known,
    intervals: Intervals,
    deadline: Deadline | None,
) -> None:
    """A pass for both sides of the chosen neurons: boxes, ascending, and places."""
    owner, index = chosen
    for box, place in grouped(owner, rows_at_once(graph) // 2):
        if deadline is not None and deadline.expired():
            break
        sweep = _start(graph, node, state, table, box, index[place], intervals, parallel=False)
        while sweep.step():
            pass
        below, above = sweep.concretise()[0].chunk(2, dim=1)
        known.improve(box, index[place], below, -above)


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


def _levelled(
    graph: Graph,
    node: Node,
    state: State,
    table: LineTable,
    level: Level,
    intervals: Intervals,
    needed: Tensor | None,
    deadline: Deadline | None,
) -> Bounds:
    """Bounds of a pre-activation node by a pass with one slope for both sides, and by a two-sided one where that should gain much."""
    known = _Known(state[node.id])
    shared = {i: around for i, (around, _) in level.items()}
    left = wanted(graph, node.id, undecided(graph, node.id, state, known.low, known.high), known.low, known.high, needed)
    owner, index = left.nonzero(as_tuple=True)
    for box, place in grouped(owner, rows_at_once(graph)):
        if deadline is not None and deadline.expired():
            return known.bounds
        sweep = _start(graph, node, state, shared, box, index[place], intervals, parallel=True)
        sweep.seen = {}
        while sweep.step():
            pass
        low, high = known.improve(box, index[place], *sweep.concretise())
        gained = torch.zeros_like(low)
        for i, rows in sweep.seen.items():
            lost = level[i][1].flatten(1)[box]
            gained = gained + (rows.flatten(2).abs() @ lost.to(rows.dtype).unsqueeze(2)).squeeze(2)
        still = ~(2 * gained <= WORTHWHILE * (high - low))
        left[box.unsqueeze(1), index[place]] = still
        if bool(still.all()):  # the others may be expected to need it too
            break
    owner, index = left.nonzero(as_tuple=True)
    _two_sided(graph, node, state, table, (owner, index), known, intervals, deadline)
    return known.bounds


class _Known:
    """What is known of one node so far: `low` and `high` (batch, size), improved in place."""

    def __init__(self, node: NodeState) -> None:
        self.node = node
        bounds = node.bounds
        self.low, self.high = (side.flatten(1).clone(memory_format=torch.contiguous_format) for side in (bounds.lower, bounds.upper))

    @property
    def bounds(self) -> Bounds:
        """The bounds as they are now."""
        shape = self.node.bounds.lower.shape
        return Bounds(self.low.reshape(shape), self.high.reshape(shape))

    def improve(self, box: Tensor, index: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Take in bounds of the deviations of entries `index` (groups, rows) on boxes (groups,), with the node's charges.

        Returns:
            the bounds of these entries as they are then known, (groups, rows).
        """
        place = box.unsqueeze(1) * self.low.shape[1] + index
        center = self.node.center.flatten()[place]
        charge = self.node.charge.flatten()[place] if self.node.charge is not None else 0.0
        lost = charge * (1 + 2.0**-40) + 4 * U64 * center.abs()
        lower = torch.maximum(self.low.view(-1)[place], _finite(center + lower - (lost + 4 * U64 * lower.abs())))
        upper = torch.minimum(self.high.view(-1)[place], -_finite(-center - upper - (lost + 4 * U64 * upper.abs())))
        # Padding repeats entries: the best of them is taken, whatever the order in which they are written.
        self.low.view(-1).scatter_reduce_(0, place.flatten(), lower.flatten(), "amax")
        self.high.view(-1).scatter_reduce_(0, place.flatten(), upper.flatten(), "amin")
        return lower, upper


def _start(
    graph: Graph, node: Node, state: State, table: LineTable, box: Tensor, index: Tensor, intervals: Intervals, parallel: bool
) -> Backward:
    """A pass for entries `index` (groups, rows) of a node, already moved through its adjoint if it is affine.

    Unless it is parallel, which bounds both sides, the negatives follow the entries.
    """
    count, rows = index.shape
    sweep = Backward(graph, state, table, count, rows if parallel else 2 * rows, box, parallel, None, intervals)
    if isinstance(node.op, Affine):
        parts = zip(node.inputs, node.op.rows(index.flatten(), node.shape), strict=True)
    else:
        units = torch.zeros(index.numel(), node.size, dtype=graph.precision(node.id), device=index.device)
        parts = zip((node.id,), (units.scatter_(1, index.reshape(-1, 1), 1.0).reshape(-1, *node.shape),), strict=True)
    for source, part in parts:
        part = part.reshape(count, rows, *part.shape[1:])
        sweep.add(source, part if parallel else torch.cat([part, -part], dim=1))
    return sweep


def _finite(bound: Tensor) -> Tensor:
    """A lower bound with NaN (from overflow) replaced by what is known then: nothing."""
    return torch.where(torch.isnan(bound), -torch.inf, bound)


def rows_at_once(graph: Graph) -> int:
    """How many rows of multipliers make one matrix of the size that suits the device."""
    mean = -(-graph.entries // len(graph.nodes))
    # Where there are several inputs there are as many matrices at once, and broadcasts make these nodes far larger than the others.
    several = max((3 * graph.nodes[i].size // 4 for i, readings in graph.readings.items() if len(readings) > 1), default=0)
    return max(16, CHUNK_BYTES[graph.device.type] // (max(mean, several) * torch.finfo(graph.dtype).bits // 8)) // 2 * 2
