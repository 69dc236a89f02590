"""Bounds of rows of twins: intervals of differences, which are exact at 0, and a backward pass over them.

Affine maps of differences lose nothing where all terms have one sign: a product with an exact 0 is 0, and a sum of numbers that are not
negative is not negative, whatever rounding makes of it. So a bound of exactly 0 is found where it holds, and closes a strict row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval, div, point, sub
from milpverify.arithmetic.rounding import U64
from milpverify.operators import Affine, Operator
from milpverify.propagation.backward import LineTable, default_lines
from milpverify.propagation.crown import bound_rows
from milpverify.propagation.differences.coefficients import DifferenceTuning
from milpverify.propagation.differences.operator import Difference, difference_lines, difference_state
from milpverify.propagation.differences.twins import Twins
from milpverify.propagation.interval import step
from milpverify.propagation.state import Bounds, LinearBound, NodeState, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from milpverify.graph import Graph
    from milpverify.spec import Rows


@dataclass(frozen=True, eq=False)
class Relations:
    """What constraints between inputs say of the differences of twins: `lower`, `upper` (k,) of x_i - x_j, infinite where nothing.

    `related`: whether they say anything.
    """

    lower: Tensor
    upper: Tensor

    @property
    def related(self) -> bool:
        return bool((self.lower.isfinite() | self.upper.isfinite()).any())

    @staticmethod
    def of(pairs: Tensor, x_rows: Tensor, rhs: Tensor, tuning: DifferenceTuning = DifferenceTuning()) -> Relations:
        """What rows x_rows @ x <= rhs, (q, nx) and (q,), that compare two inputs say of the pairs (k, 2), chains of them included."""
        nx, device = x_rows.shape[1], x_rows.device
        most = torch.full((nx, nx), torch.inf, dtype=torch.float64, device=device)  # of x_i - x_j
        two = ((x_rows != 0).sum(1) == 2) & (x_rows.sum(1) == 0)  # opposite numbers have an exact sum
        plus, minus = x_rows[two].argmax(1), x_rows[two].argmin(1)
        quotient = div(point(rhs[two]), point(x_rows[two].amax(1))).upper
        quotient = torch.where(x_rows[two].amax(1) == 1, rhs[two], quotient)
        most = most.flatten().scatter_reduce(0, plus * nx + minus, quotient, "amin").reshape(nx, nx)
        if nx <= tuning.closed and len(quotient):
            used = torch.unique(torch.cat([plus, minus]))
            for k in used.tolist():
                through = sub(Interval(most[:, k : k + 1], most[:, k : k + 1]), Interval(-most[k], -most[k])).upper
                most = torch.minimum(most, through)
        i, j = pairs.T
        return Relations(-most[j, i], most[i, j])

    def within(self, pairs: Tensor, lower: Tensor, upper: Tensor) -> Interval:
        """Bounds of the differences over boxes (batch, nx), (batch, k) each."""
        i, j = pairs.T
        box = sub(Interval(lower[:, i], upper[:, i]), Interval(lower[:, j], upper[:, j]))
        return Interval(torch.maximum(box.lower, self.lower), torch.minimum(box.upper, self.upper))


@dataclass(frozen=True, eq=False)
class Differences:
    """The rows of some disjuncts as questions about twins: per set of constraints between inputs, what it says and whose it is.

    `count` is the number of all rows.
    """

    twins: Twins
    domains: tuple[tuple[Relations, Tensor], ...]
    count: int

    @staticmethod
    def of(
        graph: Graph, y_rows: Tensor, x_rows: Tensor | None, domains: Sequence[Rows], tuning: DifferenceTuning = DifferenceTuning()
    ) -> Differences | None:
        """Rows on outputs (r, ny) and inputs (r, nx), and the constraints of every disjunct; None where nothing relates two copies."""
        twins = Twins.of(graph, y_rows, x_rows, tuning)
        if twins is None:
            return None
        different: dict[tuple[bytes, bytes], list[int]] = {}
        for k, rows in enumerate(domains):
            different.setdefault((rows.x_rows.tobytes(), rows.rhs.tobytes()), []).append(k)
        if len(different) > tuning.domains:
            return None
        found = []
        for members in different.values():
            rows = domains[members[0]]
            x, rhs = (torch.tensor(part, dtype=torch.float64, device=graph.device) for part in (rows.x_rows, rows.rhs))
            relations = Relations.of(twins.pairs, x.reshape(len(rhs), graph.nx), rhs, tuning)
            if twins.shared or relations.related:
                found.append((relations, torch.tensor(members, device=graph.device)))
        return Differences(twins, tuple(found), len(y_rows)) if found else None

    def raised(self, margins: Tensor, state: State, margins_of: Callable[[Tensor], Tensor], closed: Callable[[Tensor], Tensor]) -> Tensor:
        """Margins (batch, D) of the boxes of a state, raised where they close nothing yet.

        Args:
            margins_of: what lower bounds of all rows (batch, r) make of the margins.
            closed: which margins prove their disjunct.
        """
        ends = state[0].bounds
        for relations, members in self.domains:
            if bool(closed(margins)[:, members].all()):
                continue
            before = margins

            def of(least: Tensor, before: Tensor = before, members: Tensor = members) -> Tensor:
                every = least.new_full((len(least), self.count), -torch.inf)
                every[:, self.twins.rows] = least
                found = before.clone()
                found[:, members] = torch.maximum(before, margins_of(every))[:, members]
                return found

            def enough(least: Tensor, members: Tensor = members) -> bool:
                return bool(closed(of(least))[:, members].all())

            margins = of(bound_twins(self.twins, relations, state, ends.lower, ends.upper, enough))
        return margins


def bound_twins(
    twins: Twins, relations: Relations, state: State, lower: Tensor, upper: Tensor, enough: Callable[[Tensor], bool] = lambda _: False
) -> Tensor:
    """Lower bounds of the rows of twins over boxes, (batch, r) float64.

    Args:
        state: proved bounds of the network's nodes over the boxes.
        lower, upper: (batch, nx) float64.
        enough: whether bounds by intervals need not be improved.
    """
    graph = twins.graph
    differences = relations.within(twins.pairs, lower, upper)
    # Where a box holds no inputs the ends are crossed: any interval will do.
    ends = torch.cat([lower, torch.minimum(differences.lower, differences.upper)], 1), torch.cat([upper, differences.upper], 1)
    own: State = {}
    table: LineTable = {}
    steep: set[int] = set()  # nodes behind which there are curves
    for node in graph.nodes:
        if isinstance(node.op, Difference):
            a, b, d = (own[i] for i in node.inputs)
            apart = sub(Interval(*_ends(a)), Interval(*_ends(b)))
            own[node.inputs[2]] = d = _met(d, Bounds(*apart))
            if node.inputs[2] in steep:
                own[node.inputs[2]] = d = _met(d, _swept(twins, own, table, node.inputs[2]))
            own[node.id] = difference_state(node.op, a, b, d)
            table[node.id] = difference_lines(graph, node, own)
        else:
            now = step(graph, node, own, *ends, graph)
            if node.id in twins.origin:
                now = _met(now, state[twins.origin[node.id]].bounds)
            if isinstance(node.op, Affine) and (node.id in twins.kept or node.op.copies):
                now = _met(now, _exact(node.op, [own[i].bounds for i in node.inputs], now.bounds))
            own[node.id] = now
            if not isinstance(node.op, Affine) and node.inputs:
                table[node.id] = default_lines(graph, node.id, own, torch.float64)
        if node.id in table or any(i in steep for i in node.inputs):
            steep.add(node.id)
    least = own[graph.output].bounds.lower
    if enough(least):
        return least
    count = graph.ny
    rows = torch.eye(count, dtype=torch.float64, device=graph.device).expand(len(lower), -1, -1)
    return torch.maximum(least, _related(twins, own[0], bound_rows(graph, own, table, rows)))


def _swept(twins: Twins, state: State, table: LineTable, node: int) -> Bounds:
    """Bounds of a difference by backward passes for both sides."""
    shape, size, batch = twins.graph.nodes[node].shape, twins.graph.nodes[node].size, len(state[0].center)
    eye = torch.eye(size, dtype=torch.float64, device=twins.graph.device)
    found = _related(twins, state[0], bound_rows(twins.graph, state, table, torch.cat([eye, -eye]).expand(batch, -1, -1), node))
    below, above = found.tensor_split(2, dim=1)
    return Bounds(below.reshape(batch, *shape), -above.reshape(batch, *shape))


def _related(twins: Twins, inputs: NodeState, found: LinearBound) -> Tensor:
    """Lower bounds from linear ones over inputs and their differences, which are no variables of their own: (batch, r).

    For any t, a x + b z + c d = (a + t) x + (b - t) z + (c - t) d where d = x - z. The minimum over intervals of all three is concave in t,
    and largest where one coefficient vanishes. Around the centres, which need not be such a difference, t (x_c - z_c - d_c) is added.
    """
    disjoint = twins.disjoint
    if not len(disjoint):
        return found.lower
    nx = len(inputs.center[0]) - len(twins.pairs)
    places = torch.stack([*twins.pairs[disjoint].T, nx + disjoint])
    coefficients = found.coefficients.double()[:, :, places]  # (batch, r, 3, pairs)
    center = inputs.center[:, places].unsqueeze(1)
    low, high = ((side[:, places].unsqueeze(1) - center) for side in (inputs.bounds.lower, inputs.bounds.upper))
    offset = center[:, :, 0] - center[:, :, 1] - center[:, :, 2]
    a, b, c = coefficients.unbind(2)
    sign = coefficients.new_tensor([1.0, -1.0, -1.0]).reshape(3, 1)
    size = torch.maximum(low.abs(), high.abs()) + center.abs()
    reach = coefficients.abs().sum(2) * size.sum(2)
    values = []
    for t in (torch.zeros_like(a), -a, b, c):
        moved = coefficients + sign * t.unsqueeze(2)
        values.append(torch.minimum(moved * low, moved * high).sum(2) + t * offset)
    # Four times the sizes for t, and a dozen roundings; at t = 0 the bound was found.
    gained = torch.stack(values).amax(0) - values[0] - 64 * U64 * reach
    return found.lower + torch.where(gained.isfinite(), gained, 0.0).clamp(min=0.0).sum(2) * (1 - 2.0**-40)


def _ends(known: NodeState) -> tuple[Tensor, Tensor]:
    return known.bounds.lower, known.bounds.upper


def _met(known: NodeState, bounds: Bounds) -> NodeState:
    return NodeState(known.bounds.meet(bounds), known.center, known.charge)


def _exact(op: Affine, sources: list[Bounds], known: Bounds) -> Bounds:
    """Bounds of an affine map that are exactly 0 where no term is negative, or none positive; moved entries as they are.

    How many terms have a sign is counted with coefficients of 0, 1 and -1, which float64 does without rounding.
    """
    if op.copies:
        return Bounds(op.linear([s.lower for s in sources]), op.linear([s.upper for s in sources]))
    signs = _signs(op)
    absolute = signs.absolute()
    low, high = [(~(s.lower >= 0)).double() for s in sources], [(~(s.upper <= 0)).double() for s in sources]
    both, less = [a + b for a, b in zip(low, high, strict=True)], [a - b for a, b in zip(low, high, strict=True)]
    # Terms that may be negative: of coefficients > 0 where the lower end is < 0, and of coefficients < 0 where the upper end is > 0.
    total, balance = absolute.linear(both), signs.linear(less)
    negative, positive = total + balance, total - balance
    if op.bias is not None:
        negative, positive = negative + (op.bias < 0), positive + (op.bias > 0)
    lower = torch.where(negative < 0.5, 0.0, known.lower)
    upper = torch.where(positive < 0.5, 0.0, known.upper)
    return Bounds(lower.expand_as(known.lower), upper.expand_as(known.upper))


def _signs(op: Affine) -> Affine:
    """The map with the sign of every coefficient in its place, without constants."""
    changes: dict[str, Tensor | Operator | None] = {}
    for part in dataclasses.fields(op):  # type: ignore[arg-type]
        value = getattr(op, part.name)
        if part.name == "bias":
            changes["bias"] = None
        elif isinstance(value, Affine):
            changes[part.name] = _signs(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            changes[part.name] = value.sign()
    return replace(op, **changes) if changes else op  # type: ignore[type-var]
