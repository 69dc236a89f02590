"""beta-CROWN: slopes of relaxations and multipliers of split constraints optimised together (arXiv 2103.06624).

Any slopes in range and any multipliers >= 0 give a sound bound, so nothing depends on the optimiser. It climbs a bound that is
formed in the precision of the matrices and without rounding charges, and touches only the entries of pre-activations whose
relaxation the root leaves open: everything else keeps the root's lines. The best multipliers seen are certified by one rigorous pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.backward import LineTable, SplitTable, default_lines, lines
from milpverify.bounds.crown import bound_rows
from milpverify.bounds.state import Bounds, LinearBound, Lines, NodeState, SplitConstraints, State
from milpverify.operators import Affine, Elementwise, Input

if TYPE_CHECKING:
    from milpverify.catalogue import Function
    from milpverify.config import Deadline
    from milpverify.graph import Graph


@dataclass(frozen=True)
class AlphaOptions:
    """How long and how eagerly to optimise: Adam with steps for slopes and for multipliers that decay by `decay` an iteration."""

    iterations: int = 20
    step: float = 0.25
    decay: float = 0.96
    beta_step: float = 0.05


@dataclass(frozen=True, eq=False)
class Domain:
    """Subproblems of a root's boxes. T is the number of open entries of all pre-activations, K the largest number of splits.

    `box` (n,) the place in the root's batch; `low`, `high` (n, T) float64, the open entries' bounds; split constraints
    side * (z - point) >= 0: `column` (n, K) the open entry, `side` (n, K) +1, -1, or 0 where there is none, `point` (n, K) float64.
    """

    box: Tensor
    low: Tensor
    high: Tensor
    column: Tensor
    side: Tensor
    point: Tensor

    def __len__(self) -> int:
        return len(self.box)

    def take(self, chosen: Tensor) -> Domain:
        """Some of them."""
        return Domain(*(t[chosen] for t in (self.box, self.low, self.high, self.column, self.side, self.point)))


@dataclass(frozen=True, eq=False)
class Dual:
    """The parameters of bounds: slopes (n, r, P) of the lines that are worth optimising, multipliers (n, r, K) of the splits."""

    slopes: Tensor
    beta: Tensor

    def take(self, chosen: Tensor) -> Dual:
        """Those of some subproblems."""
        return Dual(self.slopes[chosen], self.beta[chosen])


@dataclass(frozen=True, eq=False)
class Primal:
    """Bounds without rounding charges (n, r), and of the open entries per nonlinear node, (n, r, U), what they come from.

    `multipliers` arrive at the function; `deviation` is where its input would be, less the reference value, at the point that attains
    the bound: the derivative of the bound with respect to what leaves the relaxation.
    """

    value: Tensor
    multipliers: dict[int, Tensor]
    deviation: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Certified:
    """Rigorous bounds, with what branching wants to know: per nonlinear node the open entries' multipliers and lines, (n, r, U)."""

    linear: LinearBound
    seen: dict[int, Tensor]
    lines: LineTable


@dataclass(frozen=True, eq=False)
class _Open:
    """A nonlinear node's open entries: `index` (U,) flat, `columns` among all T, `lower` and `upper` slices of the slopes or None."""

    node: int
    function: Function
    index: Tensor
    columns: slice
    lower: slice | None
    upper: slice | None


class Relaxations:
    """The relaxations of a root's boxes, and the choice that they leave.

    Args:
        graph: in the precision of the matrices.
        state: of a batch of boxes, with charges of that precision.
        target: the node whose rows are bounded, the output by default; only what is before it matters.
    """

    def __init__(self, graph: Graph, state: State, target: int | None = None) -> None:
        self.graph, self.state = graph, state
        self.target = graph.output if target is None else target
        self.slots: list[int] = []
        self.entries: dict[int, Tensor] = {}  # pre-activation -> its open entries
        self.columns: dict[int, slice] = {}
        self.opened: dict[int, _Open] = {}
        self.lines: LineTable = {}
        nonlinear = [i for i in graph.nonlinear if i in graph.ancestors[self.target]]
        columns = slopes = 0
        for z in sorted({graph.nodes[i].inputs[0] for i in nonlinear}):
            bounds = state[z].bounds
            readers = [i for i in nonlinear if graph.nodes[i].inputs[0] == z]
            exact = [relaxation.is_exact(_function(graph, i), bounds.lower, bounds.upper) for i in readers]
            index = (~torch.stack(exact).all(0)).any(0).flatten().nonzero(as_tuple=True)[0]
            here = slice(columns, columns + len(index))
            columns = here.stop
            self.slots.append(z)
            self.entries[z], self.columns[z] = index, here
            for i in readers:
                function, sides = _function(graph, i), []
                for matters in relaxation.slopes_matter(function):
                    sides.append(slice(slopes, slopes + len(index)) if matters else None)
                    slopes += len(index) if matters else 0
                self.opened[i] = _Open(i, function, index, here, *sides)
        for i in nonlinear:
            self.lines[i] = default_lines(graph, i, state, graph.dtype)
        self.count, self.width = columns, slopes
        every = [(state[z].bounds.lower, state[z].bounds.upper, state[z].center) for z in self.slots]
        none = state[0].center[:, :0]
        self.low, self.high, self.center = (
            torch.cat([none, *(t[k].flatten(1)[:, self.entries[z]] for z, t in zip(self.slots, every, strict=True))], 1) for k in range(3)
        )

    def own(self, values: Tensor, box: Tensor) -> Tensor:
        """What belongs to each subproblem's box, of values (batch, ...)."""
        return values.expand(len(box), *values.shape[1:]) if len(values) == 1 else values[box]

    def domain(self, box: Tensor) -> Domain:
        """The boxes themselves as subproblems without splits."""
        none = torch.zeros(len(box), 0, device=box.device)
        return Domain(box, self.own(self.low, box), self.own(self.high, box), none.long(), none, none.double())

    def slopes(self, table: LineTable, box: Tensor) -> Tensor:
        """The slopes of some lines without rows of their own, in the layout of `Dual.slopes` but for the rows: (n, P)."""
        parts = [self.low[:, :0].to(self.graph.dtype)]
        for i, o in self.opened.items():
            for part, slope in ((o.lower, table[i].k_lower), (o.upper, table[i].k_upper)):
                if part is not None:
                    parts.append(slope.flatten(1)[:, o.index])
        return self.own(torch.cat(parts, 1), box)

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
    ) -> Dual:
        """The best parameters that gradient ascent finds for `rows . value(target) + x_rows . x`.

        Args:
            rows: (n, r, size of the target) float64.
            x_rows: (n, r, nx) float64.
            stop_above: (n, r) float64: a subproblem with a row above it is left alone.
        """
        if not options.iterations or not (self.width or start.beta.shape[2]):
            return start
        climb = _Climb(self, domain, rows, x_rows)
        kept, value = start, torch.full(rows.shape[:2], -torch.inf, dtype=self.graph.dtype, device=rows.device)
        active = torch.arange(len(domain), device=rows.device)
        now, adam = start, _Adam()
        for iteration in range(options.iterations + 1):
            last = iteration == options.iterations
            alpha, beta = now.slopes.detach(), now.beta.detach()
            with torch.set_grad_enabled(not last):
                if not last:
                    alpha, beta = alpha.requires_grad_(), beta.requires_grad_()
                found = climb.value(alpha, beta)
            better = found.detach() > value[active]
            kept, value = _keep(kept, value, active, better, now, found.detach())
            if last or (deadline is not None and deadline.expired()):
                break
            wanted = [alpha, beta] if beta.shape[2] else [alpha]
            with torch.enable_grad():
                objective = torch.where(torch.isfinite(found), found, 0.0).sum()
            if not objective.requires_grad:
                break
            gradient = torch.autograd.grad(objective, wanted, allow_unused=True)
            now = adam.step(Dual(alpha.detach(), beta.detach()), gradient, options, climb.span)
            if stop_above is not None:
                if iteration == 0:  # rounding charges are far below a thousandth of what the bounds lack
                    stop_above = stop_above + 1e-3 * (found.detach() - stop_above).abs()
                still = ~(value[active] > stop_above[active]).any(1)
                if not bool(still.any()):
                    break
                if int(still.sum()) <= 0.7 * len(active):
                    active, now = active[still], now.take(still)
                    adam.take(still)
                    climb = _Climb(self, domain.take(active), rows[active], None if x_rows is None else x_rows[active])
        return kept

    def value(self, domain: Domain, rows: Tensor, dual: Dual, x_rows: Tensor | None = None) -> Tensor:
        """What the optimiser takes the bounds to be, (n, r): without rounding charges, and proving nothing."""
        return _Climb(self, domain, rows, x_rows).value(dual.slopes, dual.beta)

    def primal(self, domain: Domain, rows: Tensor, dual: Dual, x_rows: Tensor | None = None) -> Primal:
        """Where the bounds are attained in the relaxation that some parameters define, as far as their gradients tell."""
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.enable_grad():
            value = _Climb(self, domain, rows, x_rows).value(dual.slopes.detach().requires_grad_(), dual.beta, seen)
            total = value.sum()
        arrived = {i: free for i, (free, _) in seen.items()}
        at = torch.autograd.grad(total, [back for _, back in seen.values()]) if seen else ()
        return Primal(value.detach(), {i: t.detach() for i, t in arrived.items()}, dict(zip(seen, at, strict=True)))

    # -- the rigorous pass --------------------------------------------------------------------------------------------------

    def certify(self, domain: Domain, rows: Tensor, dual: Dual, x_rows: Tensor | None = None) -> Certified:
        """Proved bounds of `rows . value(target) + x_rows . x` where the split constraints hold, with some parameters."""
        table, around = self.relaxed(domain, dual.slopes)
        splits = self._splits(domain, dual.beta)
        seen: dict[int, Tensor] = {}
        state = self._state(domain.box, {0, self.target, *splits})
        linear = bound_rows(self.graph, state, table, rows, self.target, x_rows, splits, seen)
        return Certified(linear, {i: rows.flatten(2)[..., self.opened[i].index] for i, rows in seen.items()}, around)

    def relaxed(self, domain: Domain, slopes: Tensor) -> tuple[LineTable, LineTable]:
        """Lines with some slopes: of whole nodes, (n, r, *shape), and those of the open entries, (n, r, U)."""
        table: LineTable = {}
        around: LineTable = {}
        n, r = slopes.shape[:2]
        for i, o in self.opened.items():
            base = self.lines[i]
            z = self.graph.nodes[i].inputs[0]
            if not len(o.index):
                table[i] = Lines(*(self.own(t, domain.box) for t in (base.k_lower, base.k_upper, base.b_lower, base.b_upper)))
                continue
            part: State = {}
            low, high = domain.low[:, o.columns], domain.high[:, o.columns]
            for k, bounds in ((z, Bounds(low, high)), (i, Bounds(low, high))):
                known = self.state[k]
                center = self.own(known.center.flatten(1)[:, o.index], domain.box)
                charge = None if known.charge is None else self.own(known.charge.flatten(1)[:, o.index], domain.box)
                part[k] = NodeState(bounds, center, charge)
            sides = []
            own = relaxation.default_slopes(o.function, low, high)
            exact = relaxation.is_exact(o.function, low, high).unsqueeze(1)
            for chosen, fixed in zip((o.lower, o.upper), own, strict=True):
                slope = fixed.to(slopes.dtype).unsqueeze(1).expand(n, r, -1)
                sides.append(slope if chosen is None else torch.where(exact, slope, slopes[:, :, chosen]))
            around[i] = lines(self.graph, i, part, self.graph.dtype, sides[0].contiguous(), sides[1].contiguous())
            full = []
            for name in ("k_lower", "k_upper", "b_lower", "b_upper"):
                whole = self.own(getattr(base, name).flatten(1), domain.box).unsqueeze(1).repeat(1, r, 1)
                whole[:, :, o.index] = getattr(around[i], name)
                full.append(whole.reshape(n, r, *self.graph.nodes[i].shape))
            table[i] = Lines(*full)
        return table, around

    def _splits(self, domain: Domain, beta: Tensor) -> SplitTable:
        """The split constraints per pre-activation."""
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


def _function(graph: Graph, node: int) -> Function:
    op = graph.nodes[node].op
    assert isinstance(op, Elementwise)
    return op.function


def _keep(kept: Dual, value: Tensor, active: Tensor, better: Tensor, now: Dual, found: Tensor) -> tuple[Dual, Tensor]:
    """The best parameters so far, row by row."""
    if len(active) == len(value):
        mask = better.unsqueeze(2)
        return Dual(torch.where(mask, now.slopes, kept.slopes), torch.where(mask, now.beta, kept.beta)), torch.where(better, found, value)
    n, r = better.nonzero(as_tuple=True)
    place = active[n]
    kept.slopes[place, r], kept.beta[place, r], value[place, r] = now.slopes[n, r], now.beta[n, r], found[n, r]
    return kept, value


class _Adam:
    """Adam (arXiv 1412.6980) on both kinds of parameters, with the projection on their ranges."""

    def __init__(self) -> None:
        self.count = 0
        self.moments: list[tuple[Tensor, Tensor]] = []

    def step(self, now: Dual, gradients: tuple[Tensor | None, ...], options: AlphaOptions, span: tuple[Tensor, Tensor]) -> Dual:
        self.count += 1
        moved = [now.slopes, now.beta]
        for k, gradient in enumerate(gradients):
            if gradient is None:
                gradient = torch.zeros_like(moved[k])
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            if len(self.moments) == k:
                self.moments.append((torch.zeros_like(gradient), torch.zeros_like(gradient)))
            first, second = self.moments[k]
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = (options.step, options.beta_step)[k] * options.decay ** (self.count - 1) / (1 - 0.9**self.count)
            scale = (second / (1 - 0.999**self.count)).sqrt_().add_(1e-12)
            moved[k] = torch.addcdiv(moved[k], first, scale, value=step)
        return Dual(moved[0].clamp(*span), moved[1].clamp(min=0.0))

    def take(self, chosen: Tensor) -> None:
        self.moments = [(first[chosen], second[chosen]) for first, second in self.moments]


@dataclass(frozen=True, eq=False)
class _Line:
    """One side of the lines of a node's open entries, (n, 1, U) in the precision of the matrices.

    `part` None: slopes `own` and intercepts `base` are what they are. Otherwise the slopes are parameters where `exact` is not set, and
    intercepts are base + reach * slope where a vertex is known that every such line touches, or are formed by the relaxation.
    """

    part: slice | None
    exact: Tensor
    own: Tensor
    base: Tensor | None
    reach: Tensor | None


class _Climb:
    """The bound as a differentiable function of the parameters, for subproblems and rows that stay."""

    def __init__(self, of: Relaxations, domain: Domain, rows: Tensor, x_rows: Tensor | None) -> None:
        graph, dtype = of.graph, of.graph.dtype
        self.of, self.domain, self.graph = of, domain, graph
        n, r = rows.shape[:2]
        self.shape = (n, r)
        self.start = {of.target: rows.to(dtype).reshape(n, r, *graph.nodes[of.target].shape)}
        center = of.own(of.state[of.target].center.flatten(1), domain.box).unsqueeze(2)
        self.base = (rows @ center).squeeze(2)
        if x_rows is not None:
            self.start[0] = x_rows.to(dtype)
            self.base = self.base + (x_rows @ of.own(of.state[0].center, domain.box).unsqueeze(2)).squeeze(2)
        self.base = self.base.to(dtype)
        self.radius = of.own(of.state[0].deviation, domain.box).to(dtype).unsqueeze(1)
        self.offset = (domain.point - of.own(of.center, domain.box).gather(1, domain.column)).to(dtype) * domain.side.to(dtype)
        self.side = domain.side.to(dtype).unsqueeze(1)
        self.where = domain.column.unsqueeze(1).expand(n, r, -1)
        self.sides = {i: self._lines(o) for i, o in of.opened.items() if len(o.index)}
        # The slopes of what is stable at the root, zero at open entries.
        self.stable = {}
        for i, o in of.opened.items():
            slope = of.lines[i].k_lower.flatten(1).clone()
            slope[:, o.index] = 0.0
            self.stable[i] = of.own(slope, domain.box).unsqueeze(1)
        low, high = torch.zeros(of.width, dtype=dtype), torch.ones(of.width, dtype=dtype)
        for o in of.opened.values():
            for part in (o.lower, o.upper):
                if part is not None:
                    low[part], high[part] = relaxation.slope_range(o.function)
        self.span = low.to(rows.device), high.to(rows.device)
        # Split constraints are subtracted where the first reader's multipliers come back.
        self.first: dict[int, int] = {}
        for i in of.opened:
            self.first.setdefault(graph.nodes[i].inputs[0], i)

    def _lines(self, o: _Open) -> tuple[_Line, _Line]:
        of, domain, dtype = self.of, self.domain, self.graph.dtype
        low, high = domain.low[:, o.columns], domain.high[:, o.columns]
        z = self.of.own(of.center[:, o.columns], domain.box)
        y = self.of.own(of.state[o.node].center.flatten(1)[:, o.index], domain.box)
        exact = relaxation.is_exact(o.function, low, high)
        sides = relaxation.default_slopes(o.function, low, high)
        fixed = relaxation.intercepts(o.function, low, high, *sides)
        touched = relaxation.touched(o.function, low, high)
        made = []
        for part, own, intercept in zip((o.lower, o.upper), sides, fixed, strict=True):
            base: Tensor | None = None
            reach: Tensor | None = None
            if part is None:
                base = (intercept + own * z - y).to(dtype).unsqueeze(1)
            elif touched is not None:
                base, reach = ((touched[1] - y).to(dtype).unsqueeze(1), (z - touched[0]).to(dtype).unsqueeze(1))
            made.append(_Line(part, exact.unsqueeze(1), own.to(dtype).unsqueeze(1), base, reach))
        return made[0], made[1]

    def _line(self, o: _Open, which: int, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes and intercepts, (n, r, U) or (n, 1, U)."""
        side = self.sides[o.node][which]
        if side.part is None:
            assert side.base is not None
            return side.own, side.base
        k = torch.where(side.exact, side.own, alpha[:, :, side.part])
        if side.base is not None and side.reach is not None:
            return k, torch.addcmul(side.base, side.reach, k)
        low, high = (t[:, o.columns].unsqueeze(1) for t in (self.domain.low, self.domain.high))
        z = self.of.own(self.of.center[:, o.columns], self.domain.box).unsqueeze(1)
        y = self.of.own(self.of.state[o.node].center.flatten(1)[:, o.index], self.domain.box).unsqueeze(1)
        intercept = (relaxation.lower_intercept, relaxation.upper_intercept)[which](o.function, low, high, k.double())
        return k, (intercept + k.double() * z - y).to(k.dtype)

    def value(self, alpha: Tensor, beta: Tensor, seen: dict[int, tuple[Tensor, Tensor]] | None = None) -> Tensor:
        """The bounds, (n, r); `seen` is filled with what arrives at open entries and what leaves them."""
        of, graph = self.of, self.graph
        n, r = self.shape
        total = self.base
        signed: Tensor | None = None
        if beta.shape[2]:
            signed = alpha.new_zeros(n, r, of.count).scatter_add(2, self.where, beta * self.side)
            total = total + (beta * self.offset.unsqueeze(1)).sum(2)
        waiting = dict(self.start)
        while (last := max(waiting)) > 0:
            node, rows = graph.nodes[last], waiting.pop(last)
            parts: tuple[Tensor, ...]
            match node.op:
                case Affine():
                    parts = node.op.adjoint(rows.reshape(-1, *node.shape))
                case Elementwise():
                    flat, o = rows.flatten(2), of.opened[last]
                    straight = flat * self.stable[last]
                    if len(o.index):
                        free = flat[:, :, o.index]
                        up, down = free.clamp(min=0.0), free.clamp(max=0.0)
                        (k_lower, b_lower), (k_upper, b_upper) = self._line(o, 0, alpha), self._line(o, 1, alpha)
                        total = total + (up * b_lower + down * b_upper).sum(2)
                        back = up * k_lower + down * k_upper
                        z = node.inputs[0]
                        if signed is not None and self.first[z] == last:
                            back = back - signed[:, :, o.columns]
                        if seen is not None:
                            seen[last] = free, back
                        straight = straight.index_add(2, o.index, back)
                    parts = (straight,)
                case Input():
                    break
                case _:
                    raise NotImplementedError(f"no backward rule for {type(node.op).__name__} ({node.name})")
            for source, part in zip(node.inputs, parts, strict=True):
                part = part.reshape(n, r, *graph.nodes[source].shape)
                waiting[source] = waiting[source] + part if source in waiting else part
        return total - (waiting[0].flatten(2).abs() * self.radius).sum(2)
