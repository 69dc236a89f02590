"""Forward linear bounds: every node between two linear forms in the input, layer by layer (forward mode of arXiv 2002.12920).

With d = x - c_0 the deviation of the input from the centre of its box, and c_v the reference values, a node v has

    A_lower d + b_lower  <=  v - c_v  <=  A_upper d + b_upper      for every x of the box.

With M and H half the sum and half the difference of the forms, an affine map W takes them to W M -+ |W| H. That is one product with as
many columns as inputs vary, however many neurons there are: with few inputs it is far cheaper than backward passes, and looser,
for each neuron's relaxation is concretised once and for all. Matrices A have the precision asked for, intercepts b are float64.

Rounding is charged to the intercepts of the node where it happens, once:
- an affine node: |W| S gamma for the products of the matrices, where S bounds |A d| over the box (the error of a coefficient times the
  largest |d|), |W| (|b| + |c|) gamma and |bias| gamma in float64 for the intercepts and for the reference value, and underflow, of
  weights that are converted too (that of coefficients which are halved is within what the node before was charged);
- a nonlinear node: S |slope| times a unit for the scaling of A, units of float64 for the intercepts, and underflow; its lines are
  those of backward passes, whose intercepts have the charges of such a pass taken out, which only loosens them;
- bounds of a node: S gamma for the sum over the inputs, and a unit for every addition.
A form that is not known has the coefficients 0 and an infinite intercept, so that zero never meets infinity: `Forms.unknown` says which.
A NaN, which overflow may bring, gives no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64, UNIT_ROUNDOFF, cast_up, down, gamma, up
from milpverify.operators import Affine
from milpverify.propagation.backward import LineTable, default_lines
from milpverify.propagation.interval import step
from milpverify.propagation.relevance import refinable
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.state import Bounds, Lines, NodeState, State

if TYPE_CHECKING:
    from milpverify.graph import Graph, Node

TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class Forms:
    """Two linear forms around a node, over the p inputs that vary: see the module.

    `lower`, `upper` (batch, p, *shape) in the precision of the matrices (one tensor where both are the same), `b_lower`, `b_upper`
    (batch, *shape) float64, `reach_lower`, `reach_upper` (batch, *shape) float64: upper bounds of |A d| over the box. `unknown`: where
    the lower and where the upper form says nothing, (batch, *shape) bool; None for nowhere.
    """

    lower: Tensor
    upper: Tensor
    b_lower: Tensor
    b_upper: Tensor
    reach_lower: Tensor
    reach_upper: Tensor
    unknown: tuple[Tensor, Tensor] | None = None

    @property
    def size(self) -> Tensor:
        """S: an upper bound of (|M| + |H|) |d| over the box, (batch, *shape) float64."""
        return self.reach_lower if self.lower is self.upper else self.reach_lower + self.reach_upper

    def bounds(self, center: Tensor) -> Bounds:
        """What the forms say of the node with a reference value (batch, *shape), float64; NaN where they say nothing."""
        low, high = down(down(self.b_lower - self.reach_lower)), up(up(self.b_upper + self.reach_upper))
        return Bounds(down(center + low), up(center + high))


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The inputs that vary: how far they are from the centre (batch, p) in the precision of the matrices, and the sum (batch,)."""

    radius: Tensor
    total: Tensor

    def reach(self, matrix: Tensor) -> Tensor:
        """An upper bound of |A d| for a matrix (batch, p, *shape)."""
        radius = self.radius.reshape(*self.radius.shape, *[1] * (matrix.dim() - 2))
        summed = (matrix.abs() * radius).sum(1).double()
        p = self.radius.shape[1]
        return summed * (1 + 2 * gamma(p, matrix.dtype)) + 2 * (p + 4) * torch.finfo(matrix.dtype).tiny

    def underflow(self, terms: int, dim: int, dtype: torch.dtype) -> Tensor:
        """What coefficients and intercepts lose where products of so many terms underflow, (batch, 1, ...)."""
        lost = 8 * (terms + 4) * (torch.finfo(dtype).tiny * self.total + TINY)
        return lost.reshape(-1, *[1] * dim)


class Carried:
    """The forms of a batch of boxes, carried along a pass over the nodes in topological order.

    Args:
        graph: in float64.
        lower, upper: boxes, (batch, nx) float64.
        dtype: the precision of the matrices.
        targets: the nodes whose forms are wanted; what backward passes can improve by default.
    """

    def __init__(self, graph: Graph, lower: Tensor, upper: Tensor, dtype: torch.dtype, targets: set[int] | None = None) -> None:
        self.graph, self.fast, self.dtype = graph, graph.to(dtype, graph.device), dtype
        self.targets = {node.id for node in refinable(graph)} if targets is None else targets
        self.wanted = frozenset().union(*(graph.ancestors[z] for z in self.targets)) if self.targets else frozenset()
        self.varying = (upper > lower).any(0).nonzero(as_tuple=True)[0]
        self.forms: dict[int, Forms] = {}
        self.inputs: _Inputs | None = None

    def step(self, node: Node, state: State, table: LineTable) -> NodeState:
        """The state of a node (which `state` has already) met with what the forms say of it.

        Args:
            state: of the nodes up to this one.
            table: lines of the nonlinear nodes before it.
        """
        now = state[node.id]
        if node.id not in self.wanted:
            return now
        if self.inputs is None:
            self.inputs, self.forms[0] = _start(now, self.varying, self.dtype)
        if not isinstance(node.op, Affine):
            return now
        for i in node.inputs:
            self.form(i, table)
        self.forms[node.id] = _affine(self.graph, self.fast, node, state, self.forms, self.inputs)
        for i in self.forms.keys() - {node.id}:
            if all(self._done(c, node.id) for c in self.graph.consumers[i]):
                del self.forms[i]
        if node.id not in self.targets:
            return now
        found = self.forms[node.id].bounds(now.center)
        # Not `nan_to_num(nan=...)`, which makes the largest float of an infinite end: that would be a bound where there is none.
        low, high = (torch.where(end.isnan(), none, end) for end, none in ((found.lower, -torch.inf), (found.upper, torch.inf)))
        met = now.bounds.meet(Bounds(low, high))
        return NodeState(met, now.center, now.charge)

    def form(self, i: int, table: LineTable) -> Forms:
        """The forms of a node that the pass has come to; those of a nonlinear one are made when they are first asked for."""
        node = self.graph.nodes[i]
        if i not in self.forms:
            assert self.inputs is not None
            self.forms[i] = _relaxed([self.form(s, table) for s in node.inputs], table[i], self.inputs)
        return self.forms[i]

    def _done(self, node: int, last: int) -> bool:
        """Whether a node needs the forms of its inputs no more once the nodes up to `last` have theirs."""
        if node in self.wanted and node in self.graph.readings and node not in self.forms:
            return (node <= last or node not in self.targets) and all(self._done(c, last) for c in self.graph.consumers[node])
        return node not in self.wanted or node <= last


def forward(
    graph: Graph,
    lower: Tensor,
    upper: Tensor,
    dtype: torch.dtype = torch.float32,
    known: dict[int, Bounds] | None = None,
    tuning: BoundTuning = BoundTuning(),
) -> tuple[State, LineTable]:
    """Bounds of every node by forward linear forms and intervals, and the lines that they give.

    Args:
        graph: in float64.
        lower, upper: boxes, (batch, nx) float64.
        dtype: the precision of the matrices; the bounds are rigorous in either.
        known: bounds of nodes that are known to hold on these boxes, met with the new ones.
    """
    state: State = {}
    table: LineTable = {}
    carried = Carried(graph, lower, upper, dtype)
    for node in graph.nodes:
        now = step(graph, node, state, lower, upper, carried.fast, tuning)
        if known is not None and node.id in known:
            now = NodeState(now.bounds.meet(known[node.id]), now.center, now.charge)
        state[node.id] = now
        state[node.id] = carried.step(node, state, table)
        if node.id in graph.readings:
            table[node.id] = default_lines(graph, node.id, state, dtype)
    return state, table


def _start(state: NodeState, varying: Tensor, dtype: torch.dtype) -> tuple[_Inputs, Forms]:
    """The input is its own form."""
    deviation = state.deviation
    count, p, nx = len(deviation), len(varying), deviation.shape[1]
    unit = torch.zeros(p, nx, dtype=dtype, device=deviation.device)
    unit[torch.arange(p, device=deviation.device), varying] = 1.0
    matrix, zero = unit.expand(count, -1, -1), torch.zeros_like(deviation)
    own = deviation[:, varying]
    return _Inputs(cast_up(own, dtype), own.sum(1) * (1 + 2 * gamma(p))), Forms(matrix, matrix, zero, zero, deviation, deviation)


def _affine(graph: Graph, fast: Graph, node: Node, state: State, forms: dict[int, Forms], inputs: _Inputs) -> Forms:
    op, quick = node.op, fast.nodes[node.id].op
    assert isinstance(op, Affine) and isinstance(quick, Affine)
    sources = [forms[i] for i in node.inputs]
    count, p = inputs.radius.shape
    same = all(s.lower is s.upper for s in sources)

    def moved(by: Affine, parts: list[Tensor]) -> Tensor:
        value = by.linear([part.flatten(0, 1) for part in parts])
        return value.expand(count * p, *node.shape).reshape(count, p, *node.shape)

    if same:
        lower = upper = moved(quick, [s.lower for s in sources])
    else:
        middle = moved(quick, [0.5 * (s.lower + s.upper) for s in sources])
        half = moved(fast.absolutes[node.id], [0.5 * (s.upper - s.lower) for s in sources])
        lower, upper = middle - half, middle + half
    # Eight terms more for converted weights, for half the sum and half the difference, and for putting both together.
    g, wide = gamma(op.terms + 8, quick_type := lower.dtype), 2 * gamma(op.terms + 8)
    middles, halves = [], []
    for s, i in zip(sources, node.inputs, strict=True):
        b_lower, b_upper = s.b_lower, s.b_upper
        if s.unknown is not None:
            b_lower, b_upper = (b.masked_fill(u, 0.0) for b, u in zip((b_lower, b_upper), s.unknown, strict=True))
        middles.append(0.5 * (b_lower + b_upper))
        halves.append(0.5 * (b_upper - b_lower) + g * (1 + g) * s.size + wide * (b_lower.abs() + b_upper.abs() + state[i].center.abs()))
    absolute = graph.absolutes[node.id]
    shift = op.linear(middles).expand(count, *node.shape)
    spread = absolute.linear(halves).expand(count, *node.shape)
    if absolute.bias is not None:
        spread = spread + wide * absolute.bias
    spread = spread * (1 + 2 * wide) + inputs.underflow(op.terms, len(node.shape), quick_type)
    if node.id in fast.lost:
        farthest = torch.stack([s.size.flatten(1).amax(1) for s in sources]).amax(0)
        spread = spread + (2 * op.terms * fast.lost[node.id] * farthest).reshape(-1, *[1] * len(node.shape))
    reach_lower = inputs.reach(lower)
    reach_upper = reach_lower if same else inputs.reach(upper)
    found = Forms(lower, upper, down(shift - spread), up(shift + spread), reach_lower, reach_upper)
    if any(s.unknown is not None for s in sources):
        found = _without(found, *_behind(op, absolute, [s.unknown or (zero, zero) for s in sources for zero in (s.b_lower < -torch.inf,)]))
    return found


def _behind(op: Affine, absolute: Affine, unknown: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Where an affine node's forms are not known, by those of its inputs: sides are told apart where inputs enter with one sign."""
    sides: list[Tensor] = []
    for side in (0, 1):
        read = [
            pair[side] if d > 0 else pair[1 - side] if d < 0 else pair[0] | pair[1] for pair, d in zip(unknown, op.directions, strict=True)
        ]
        sides.append(absolute.linear([mask.double() for mask in read]) > 0)
    return sides[0], sides[1]


def _without(form: Forms, lower: Tensor, upper: Tensor) -> Forms:
    """The forms without those that are not known (batch, *shape)."""
    below, above = (side.expand(form.b_lower.shape) for side in (lower, upper))
    if form.lower is form.upper:  # both sides go together
        below = above = below | above
    matrices = [matrix.masked_fill(side.unsqueeze(1), 0.0) for matrix, side in ((form.lower, below), (form.upper, above))]
    reaches = [reach.masked_fill(side, 0.0) for reach, side in ((form.reach_lower, below), (form.reach_upper, above))]
    if form.lower is form.upper:
        matrices[1], reaches[1] = matrices[0], reaches[0]
    b_lower, b_upper = form.b_lower.masked_fill(below, -torch.inf), form.b_upper.masked_fill(above, torch.inf)
    return Forms(matrices[0], matrices[1], b_lower, b_upper, reaches[0], reaches[1], (below, above))


def _relaxed(sources: list[Forms], around: Lines, inputs: _Inputs) -> Forms:
    """Lines put around forms: the lower line takes the lower form where its slope is positive, otherwise the upper one."""
    sides = []
    for sign, slopes, intercept in ((-1.0, around.k_lower, around.b_lower), (1.0, around.k_upper, around.b_upper)):
        matrix: Tensor | None = None
        size, end, wide = torch.zeros_like(sources[0].b_lower), intercept.double(), 4 * U64 * intercept.double().abs()
        for z, slope in zip(sources, slopes, strict=True):
            own, other = (z.lower, z.upper) if sign < 0 else (z.upper, z.lower)
            b, b_other = (z.b_lower, z.b_upper) if sign < 0 else (z.b_upper, z.b_lower)
            reach, reach_other = (z.reach_lower, z.reach_upper) if sign < 0 else (z.reach_upper, z.reach_lower)
            turned = slope < 0
            if bool(turned.any()):
                own = torch.where(turned.unsqueeze(1), other, own)
                b, reach = torch.where(turned, b_other, b), torch.where(turned, reach_other, reach)
            steep = slope.double()
            moved = steep * b if z.unknown is None else torch.where(steep == 0, 0.0, steep * b)
            size, end, wide = size + steep.abs() * reach, end + moved, wide + 4 * U64 * moved.abs()
            if slope.dtype != own.dtype:  # lines of another precision
                slope = slope.to(own.dtype)
                wide = wide + 2 * (steep - slope.double()).abs() * reach
            part = slope.unsqueeze(1) * own
            matrix = part if matrix is None else matrix + part
        assert matrix is not None
        unit = (3 + len(sources)) * UNIT_ROUNDOFF[matrix.dtype]
        pad = unit * size + len(sources) * (wide + inputs.underflow(1, intercept.dim() - 1, matrix.dtype))
        end = end + sign * pad
        sides.append((matrix, up(end) if sign > 0 else down(end), size * (1 + unit)))
    (lower, b_lower, reach_lower), (upper, b_upper, reach_upper) = sides
    if around.k_lower is around.k_upper and all(z.lower is z.upper for z in sources):  # formed alike
        upper, reach_upper = lower, reach_lower
    tiny = len(sources) * inputs.underflow(1, b_lower.dim() - 1, lower.dtype)
    reach_lower = reach_lower + tiny
    found = Forms(lower, upper, b_lower, b_upper, reach_lower, reach_lower if upper is lower else reach_upper + tiny)
    if around.missing is None and all(z.unknown is None for z in sources):
        return found
    sums = [b + reach for b, reach in ((b_lower, reach_lower), (b_upper, found.reach_upper))]
    return _without(found, *(~side.isfinite() for side in sums))
