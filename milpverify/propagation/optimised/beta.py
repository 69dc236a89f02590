"""beta-CROWN: slopes of relaxations and multipliers of split constraints optimised together (arXiv 2103.06624).

Any slopes in range and any multipliers >= 0 give a sound bound, so nothing depends on the optimiser. It climbs a bound that is
formed in the precision of the matrices and without rounding charges, and touches only the entries of variables whose
relaxation the root leaves open: everything else keeps the root's lines. The best multipliers seen are certified by one rigorous pass.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64
from milpverify.propagation.backward import LineTable, SplitTable, default_lines, lines
from milpverify.propagation.crown import bound_rows, bound_sum
from milpverify.propagation.optimised.dual import AlphaOptions, Domain, Dual, Open, OutputConstraints, Passed, Primal
from milpverify.propagation.optimised.layout import Layout
from milpverify.propagation.optimised.objective import Adam, DualObjective
from milpverify.propagation.relevance import EVERYTHING
from milpverify.propagation.state import Bounds, LinearBound, Lines, NodeState, SplitConstraints, State, map_lines

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.propagation.relevance import Needed
    from milpverify.relaxations.rule import PerInput

__all__ = ["AlphaOptions", "Domain", "Dual", "OutputConstraints", "Primal", "Relaxations"]


class Relaxations(Layout):
    """The relaxations of a root's boxes, and the bounds that the choice they leave gives.

    Args:
        graph: in the precision of the matrices.
        state: of a batch of boxes, with charges of that precision.
        target: the node whose rows are bounded, the output by default; only what is before it matters.
        table: lines of that precision that hold on the boxes, the default ones otherwise.
        needed: the entries that the rows to be bounded depend on; the others leave no choice.
    """

    def __init__(
        self, graph: Graph, state: State, target: int | None = None, table: LineTable | None = None, needed: Needed = EVERYTHING
    ) -> None:
        target = graph.output if target is None else target
        nonlinear = [i for i in graph.nonlinear if i in graph.ancestors[target]]
        self.lines: LineTable = {i: default_lines(graph, i, state, graph.dtype) if table is None else table[i] for i in nonlinear}
        super().__init__(graph, state, target, self.lines, needed)

    # -- the optimiser ------------------------------------------------------------------------------------------------------

    def ascend(
        self,
        domain: Domain,
        rows: Tensor,
        start: Dual,
        options: AlphaOptions,
        x_rows: Tensor | None = None,
        stop_above: Tensor | None = None,
        deadline: Deadline | None = None,
        node: int | None = None,
    ) -> Dual:
        """The best parameters that gradient ascent finds for `rows . value(node) + x_rows . x`.

        Args:
            domain: with the constraints on the target that hold, whose multipliers are in `start.gamma`.
            rows: (n, r, size of the node) float64.
            x_rows: (n, r, nx) float64.
            stop_above: (n, r) float64: a subproblem with a row above it is left alone.
            node: the target by default.
        """
        node = self.target if node is None else node
        if not options.iterations or not (self.width or start.beta.shape[2]):
            return start
        goal = DualObjective(self, domain, rows, x_rows, node)
        kept, value = start, torch.full(rows.shape[:2], -torch.inf, dtype=self.graph.dtype, device=rows.device)
        active = torch.arange(len(domain), device=rows.device)
        now, adam, step = start, Adam(), 0.0
        for iteration in range(options.iterations + 1):
            last, began = iteration == options.iterations, time.monotonic()
            wanted = [t.detach().requires_grad_(not last) for t in (now.slopes, now.beta, now.gamma) if t is not None]
            with torch.set_grad_enabled(not last):
                found = goal.value(*wanted)
            better = found.detach() > value[active]
            kept, value = _keep(kept, value, active, better, now, found.detach())
            # What is found has yet to be proved, which takes no longer than a step.
            if last or (deadline is not None and deadline.remaining() <= 2 * step):
                break
            with torch.enable_grad():
                objective = torch.where(torch.isfinite(found), found, 0.0).sum()
            if not objective.requires_grad:
                break
            gradient = torch.autograd.grad(objective, wanted, allow_unused=True)
            now = adam.step([t.detach() for t in wanted], gradient, options, goal.span)
            step = time.monotonic() - began
            if stop_above is not None:
                if iteration == 0:  # rounding charges are far below a thousandth of what the bounds lack
                    stop_above = stop_above + 1e-3 * (found.detach() - stop_above).abs()
                still = ~(value[active] > stop_above[active]).any(1)
                if not bool(still.any()):
                    break
                if int(still.sum()) <= 0.7 * len(active):
                    active, now = active[still], now.take(still)
                    adam.take(still)
                    goal = DualObjective(self, domain.take(active), rows[active], None if x_rows is None else x_rows[active], node)
        return kept

    def value(self, domain: Domain, rows: Tensor, dual: Dual, x_rows: Tensor | None = None) -> Tensor:
        """What the optimiser takes the bounds to be, (n, r): without rounding charges, and proving nothing.

        Args:
            rows: (n, r, size of the target) float64.
            x_rows: (n, r, nx) float64.
        """
        return DualObjective(self, domain, rows, x_rows, once=True).value(dual.slopes, dual.beta)

    def primal(self, domain: Domain, rows: Tensor, dual: Dual, x_rows: Tensor | None = None, attained: bool = True) -> Primal:
        """What the bounds that some parameters define come from, without rounding charges and proving nothing.

        Args:
            rows: (n, r, size of the target) float64.
            x_rows: (n, r, nx) float64.
            attained: whether to find where in the relaxation they are attained, as far as their gradients tell.
        """
        seen: dict[int, Passed] = {}
        goal = DualObjective(self, domain, rows, x_rows, once=True)
        if not attained:
            return Primal(goal.value(dual.slopes, dual.beta, seen=seen), seen)
        with torch.enable_grad():
            value = goal.value(dual.slopes.detach().requires_grad_(), dual.beta, seen=seen)
            total = value.sum()
        left = [back for passed in seen.values() for back in passed.attained]
        at = iter(torch.autograd.grad(total, left) if left else ())

        def plain(line: tuple[tuple[Tensor, ...], Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
            return tuple(k.detach() for k in line[0]), line[1].detach()

        found = {
            i: Passed(p.arrived.detach(), plain(p.below), plain(p.above), tuple(next(at) for _ in p.attained)) for i, p in seen.items()
        }
        return Primal(value.detach(), found)

    # -- the rigorous pass --------------------------------------------------------------------------------------------------

    def certify(self, domain: Domain, rows: Tensor, dual: Dual, x_rows: Tensor | None = None, node: int | None = None) -> LinearBound:
        """Proved bounds of `rows . value(node) + x_rows . x` where the splits and the constraints given hold, with some parameters.

        Any slopes and any multipliers >= 0 will do (weak duality; arXiv 2103.06624), their rounding is charged for.

        Args:
            domain: with constraints on the target that hold, if there are any, whose multipliers are `dual.gamma`.
            rows: (n, r, size of the node) float64.
            x_rows: (n, r, nx) float64.
            node: the target by default.
        """
        node, given = self.target if node is None else node, domain.given
        table = self.relaxed(domain, dual.slopes)
        splits = self._splits(domain, dual.beta)
        state = self._state(domain.box, {0, node, self.target, *splits})
        if given is None or dual.gamma is None:
            return bound_rows(self.graph, state, table, rows, node, x_rows, splits)
        # Weak duality: where G v <= d, the value is at least that of rows . value(node) + gamma (G v - d), for any gamma >= 0.
        gamma = dual.gamma.double()
        also, lost = {node: rows}, torch.zeros_like(gamma[..., 0])
        for place, matrix in ((self.target, given.rows), (0, given.x_rows)):
            if matrix is None:
                continue
            also[place] = gamma @ matrix if place not in also else also[place] + gamma @ matrix
            ends = state[place].bounds
            reach = torch.maximum(ends.lower.abs(), ends.upper.abs()).flatten(1).unsqueeze(2)
            # The combined rows are rounded: so many products and sums.
            lost = lost + 2 * (gamma.shape[2] + 4) * U64 * ((gamma @ matrix.abs() + also[place].abs()) @ reach).squeeze(2)
        if x_rows is not None:
            also[0] = also[0] + x_rows if 0 in also else x_rows
        paid = (gamma * given.rhs.unsqueeze(1)).sum(2)
        lost = lost + 2 * (gamma.shape[2] + 4) * U64 * (gamma * given.rhs.abs().unsqueeze(1)).sum(2)
        first = [i for i in (self.target, 0) if i in also]
        on = [(i, also[i]) for i in [*first, *(i for i in also if i not in first)]]
        found = bound_sum(self.graph, state, table, on, splits)
        least = (part - paid - lost - 8 * U64 * (part.abs() + paid.abs()) for part in (found.lower, found.over_box))
        lower, over_box = (torch.where(torch.isnan(part), -torch.inf, part) for part in least)
        return LinearBound(found.coefficients, found.constant - paid, lower, over_box)

    def relaxed(self, domain: Domain, slopes: Tensor) -> LineTable:
        """The lines with some parameters, (n, r, *shape)."""
        table: LineTable = {}
        n, r = slopes.shape[:2]
        chosen = self._chosen_lines(domain, slopes)
        for i, o in self.opened.items():
            base = map_lines(self.lines[i], lambda t: self.own(t, domain.box))
            if not len(o.index):
                table[i] = base
                continue
            part: State = {}
            low, high = (tuple(t[:, c] for c in o.columns) for t in (domain.low, domain.high))
            below, above, intercepts = chosen[i]
            for k, *ends in ((i, low[0], high[0]), *zip(self.graph.nodes[i].inputs, low, high, strict=True)):
                known = self.state[k]
                center = self.own(known.center.flatten(1)[:, o.index], domain.box)
                charge = None if known.charge is None else self.own(known.charge.flatten(1)[:, o.index], domain.box)
                part[k] = NodeState(Bounds(*ends), center, charge)
            around = lines(self.graph, i, part, self.graph.dtype, below, above, intercepts)

            def whole(base: Tensor, open_part: Tensor, o: Open = o) -> Tensor:
                full = base.flatten(1).unsqueeze(1).repeat(1, r, 1)
                full[:, :, o.index] = open_part
                return full.reshape(n, r, *base.shape[1:])

            table[i] = Lines(
                tuple(map(whole, base.k_lower, around.k_lower)),
                tuple(map(whole, base.k_upper, around.k_upper)),
                whole(base.b_lower, around.b_lower),
                whole(base.b_upper, around.b_upper),
            )
        return table

    def _chosen_lines(self, domain: Domain, parameters: Tensor) -> dict[int, tuple[PerInput, PerInput, tuple[Tensor, Tensor]]]:
        """Per nonlinear node with open entries, the slopes of both lines (n, r, U) and their intercepts (n, r, U) float64."""
        n, r = parameters.shape[:2]
        found: dict[int, tuple[PerInput, PerInput, tuple[Tensor, Tensor]]] = {}
        for kind in self.kinds:
            low, high = (tuple(t[:, c].unsqueeze(1) for c in kind.columns) for t in (domain.low, domain.high))
            sides = kind.rule.slopes(low, high, kind.chosen(parameters))
            below, above = (tuple(k.to(parameters.dtype).expand(n, r, -1) for k in side) for side in sides)
            intercepts = kind.rule.intercepts(low, high, tuple(k.double() for k in below), tuple(k.double() for k in above))
            every = (tuple(zip(*map(kind.parted, side), strict=True)) for side in (below, above, intercepts))
            found.update((i, (b, a, (c[0], c[1]))) for i, b, a, c in zip(kind.nodes, *every, strict=True))
        return found

    def _splits(self, domain: Domain, beta: Tensor) -> SplitTable:
        """The split constraints per variable."""
        table: SplitTable = {}
        for z, here in self.columns.items():
            inside = (domain.side != 0) & (domain.column >= here.start) & (domain.column < here.stop)
            most = int(inside.sum(1).max()) if inside.numel() else 0
            if most:
                order = torch.argsort(inside.int(), dim=1, descending=True, stable=True)[:, :most]
                index = self.entries[z][torch.where(inside, domain.column - here.start, 0)].gather(1, order)
                side = torch.where(inside, domain.side, 0.0).gather(1, order)
                own = torch.where(inside.unsqueeze(1), beta, 0.0).gather(2, order.unsqueeze(1).expand(-1, beta.shape[1], -1))
                table[z] = SplitConstraints(index, side.to(beta.dtype), torch.where(inside, domain.point, 0.0).gather(1, order), own)
        return table

    def _state(self, box: Tensor, nodes: set[int]) -> State:
        """The root's state of some nodes by subproblem (split constraints clamp nothing here)."""
        state: State = {}
        for i in nodes:
            s = self.state[i]
            bounds = Bounds(self.own(s.bounds.lower, box), self.own(s.bounds.upper, box))
            state[i] = NodeState(bounds, self.own(s.center, box), None if s.charge is None else self.own(s.charge, box))
        return state


def _keep(kept: Dual, value: Tensor, active: Tensor, better: Tensor, now: Dual, found: Tensor) -> tuple[Dual, Tensor]:
    """The best parameters so far, row by row."""
    n, r = better.nonzero(as_tuple=True)
    gamma = None if now.gamma is None else now.gamma[n, r]
    place = (active[n], r)
    return kept.mix(place, Dual(now.slopes[n, r], now.beta[n, r], gamma)), value.index_put(place, found[n, r])
