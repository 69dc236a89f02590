"""The bound that the optimiser climbs: differentiable, in the precision of the matrices, without rounding charges, proving nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.bounds import relaxation
from milpverify.bounds.dual import AlphaOptions, Domain, Dual, Open, OutputConstraints
from milpverify.operators import Affine, Elementwise, Input

if TYPE_CHECKING:
    from milpverify.bounds.beta import Relaxations


class Adam:
    """Adam (arXiv 1412.6980) on both kinds of parameters, with the projection on their ranges."""

    def __init__(self) -> None:
        self.count = 0
        self.moments: list[tuple[Tensor, Tensor]] = []

    def step(self, moved: list[Tensor], gradients: tuple[Tensor | None, ...], options: AlphaOptions, span: tuple[Tensor, Tensor]) -> Dual:
        self.count += 1
        for k, gradient in enumerate(gradients):
            if gradient is None:
                gradient = torch.zeros_like(moved[k])
            gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
            if len(self.moments) == k:
                self.moments.append((torch.zeros_like(gradient), torch.zeros_like(gradient)))
            first, second = self.moments[k]
            first.lerp_(gradient, 0.1)
            second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            step = (options.step, options.beta_step, options.gamma_step)[k] * options.decay ** (self.count - 1) / (1 - 0.9**self.count)
            scale = (second / (1 - 0.999**self.count)).sqrt_().add_(1e-12)
            moved[k] = torch.addcdiv(moved[k], first, scale, value=step)
        return Dual(moved[0].clamp(*span), *(multipliers.clamp(min=0.0) for multipliers in moved[1:]))

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


class Climb:
    """The bound as a differentiable function of the parameters, for subproblems and rows that stay."""

    def __init__(
        self,
        of: Relaxations,
        domain: Domain,
        rows: Tensor,
        x_rows: Tensor | None,
        node: int | None = None,
        given: OutputConstraints | None = None,
    ) -> None:
        node = of.target if node is None else node
        graph, dtype = of.graph, of.graph.dtype
        self.of, self.domain, self.graph = of, domain, graph
        n, r = rows.shape[:2]
        self.shape = (n, r)
        self.start = {node: rows.to(dtype).reshape(n, r, *graph.nodes[node].shape)}

        def at_center(node: int, rows: Tensor) -> Tensor:
            return (rows @ of.own(of.state[node].center.flatten(1), domain.box).unsqueeze(2)).squeeze(2)

        self.base = at_center(node, rows)
        if x_rows is not None:
            self.start[0] = x_rows.to(dtype)
            self.base = self.base + at_center(0, x_rows)
        self.base = self.base.to(dtype)
        self.given, self.excess = None, None
        if given is not None:  # by how much the constraints' rows exceed their right-hand sides at the reference values
            self.given = given.rows.to(dtype), None if given.x_rows is None else given.x_rows.to(dtype)
            excess = at_center(of.target, given.rows) - given.rhs
            self.excess = (excess if given.x_rows is None else excess + at_center(0, given.x_rows)).to(dtype)
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
        low = torch.zeros(of.width, dtype=dtype, device=rows.device)
        high = torch.ones_like(low)
        for o in of.opened.values():
            for part in (o.lower, o.upper):
                if part is not None:
                    low[part], high[part] = relaxation.slope_range(o.function)
        self.span = low, high
        # Split constraints are subtracted where the first reader's multipliers come back.
        self.first: dict[int, int] = {}
        for i in of.opened:
            self.first.setdefault(graph.nodes[i].inputs[0], i)

    def _lines(self, o: Open) -> tuple[_Line, _Line]:
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

    def _line(self, o: Open, which: int, alpha: Tensor) -> tuple[Tensor, Tensor]:
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

    def value(
        self, alpha: Tensor, beta: Tensor, gamma: Tensor | None = None, *, seen: dict[int, tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """The bounds, (n, r); `seen` is filled with what arrives at open entries and what leaves them."""
        of, graph = self.of, self.graph
        n, r = self.shape
        total = self.base
        signed: Tensor | None = None
        if beta.shape[2]:
            signed = alpha.new_zeros(n, r, of.count).scatter_add(2, self.where, beta * self.side)
            total = total + (beta * self.offset.unsqueeze(1)).sum(2)
        waiting = dict(self.start)
        if gamma is not None and self.given is not None and self.excess is not None:
            total = total + (gamma * self.excess.unsqueeze(1)).sum(2)
            for node_id, matrix in ((of.target, self.given[0]), (0, self.given[1])):
                if matrix is not None:
                    sent = (gamma @ matrix).reshape(n, r, *graph.nodes[node_id].shape)
                    waiting[node_id] = waiting[node_id] + sent if node_id in waiting else sent
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
