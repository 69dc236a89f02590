"""The bound that the optimiser climbs: differentiable, in the precision of the matrices, without rounding charges, proving nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.balls.confined import confining
from milpverify.config import check_time
from milpverify.graph import Pullback
from milpverify.operators import Affine
from milpverify.propagation.optimised.dual import AlphaOptions, Domain, Dual, Kind, Passed

if TYPE_CHECKING:
    from milpverify.balls.confined import Confined
    from milpverify.propagation.optimised.layout import Layout
    from milpverify.relaxations.rule import Side

    Line = tuple[tuple[Tensor, ...], Tensor]


@dataclass(frozen=True, eq=False)
class Span:
    """Between what slopes may lie, and what their steps are multiplied with: (n, 1, P) each."""

    low: Tensor
    high: Tensor
    pace: Tensor


class Adam:
    """Adam (arXiv 1412.6980) on both kinds of parameters, with the projection on their ranges."""

    def __init__(self) -> None:
        self.count = 0
        self.moments: list[tuple[Tensor, Tensor]] = []

    def step(self, moved: list[Tensor], gradients: tuple[Tensor | None, ...], options: AlphaOptions, span: Span) -> Dual:
        """One step uphill.

        Args:
            moved: the parameters without gradients, replaced in place: slopes (n, r, P), multipliers (n, r, K) and, if any, (n, r, q).
            gradients: of these, None for none.
            span: what slopes are clamped to; multipliers are to 0.

        Returns:
            the parameters after the step.
        """
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
            moved[k] = torch.addcdiv(moved[k], first if k else first * span.pace, scale, value=step)
        return Dual(moved[0].clamp(span.low, span.high), *(multipliers.clamp(min=0.0) for multipliers in moved[1:]))

    def take(self, chosen: Tensor) -> None:
        """Go on with some of the subproblems only, by a mask (n,)."""
        self.moments = [(first[chosen], second[chosen]) for first, second in self.moments]


class DualObjective:
    """The bound as a differentiable function of the parameters, for subproblems and rows that stay; perhaps to be called only once."""

    def __init__(
        self, of: Layout, domain: Domain, rows: Tensor, x_rows: Tensor | None, node: int | None = None, once: bool = False
    ) -> None:
        node = of.target if node is None else node
        graph, dtype = of.graph, of.graph.dtype
        self.of, self.domain = of, domain
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
        if (given := domain.given) is not None:  # by how much the constraints' rows exceed their right-hand sides at the reference values
            self.given = given.rows.to(dtype), None if given.x_rows is None else given.x_rows.to(dtype)
            excess = at_center(of.target, given.rows) - given.rhs
            self.excess = (excess if given.x_rows is None else excess + at_center(0, given.x_rows)).to(dtype)
        self.radius = of.own(of.state[0].deviation, domain.box).to(dtype).unsqueeze(1)
        self.regions = self._regions()
        self.offset = (domain.point - of.own(of.center, domain.box).gather(1, domain.column)).to(dtype) * domain.side.to(dtype)
        self.side = domain.side.to(dtype).unsqueeze(1)
        self.where = domain.column.unsqueeze(1).expand(n, r, -1)
        self.sides = [(kind, self._lines(kind, once)) for kind in of.kinds]
        self.stable = {i: [of.own(k, domain.box).unsqueeze(1) for k in slopes] for i, slopes in of.stable.items()}
        low = torch.zeros(n, 1, of.width, dtype=dtype, device=rows.device)
        high, pace = torch.ones_like(low), torch.ones_like(low)
        for kind in of.kinds:
            ends = (tuple(t[:, c] for c in kind.columns) for t in (domain.low, domain.high))
            spans = [t.to(dtype) for t in kind.rule.spans(*ends)]
            for part in (kind.lower, kind.upper):
                if part is not None:
                    low[:, 0, part], high[:, 0, part], pace[:, 0, part] = spans
        self.span = Span(low, high, pace)

    def _regions(self) -> tuple[Confined, ...]:
        of, known = self.of, self.of.state[0]
        found = confining(of.graph.ball, of.graph.halfspaces, known.bounds.lower, known.bounds.upper, known.center)
        return tuple(region.to(of.graph.dtype).take(self.domain.box) for region in found)

    def _lines(self, kind: Kind, once: bool) -> tuple[Side, Side]:
        check_time()
        of, box = self.of, self.domain.box
        low, high = (tuple(t[:, c] for c in kind.columns) for t in (self.domain.low, self.domain.high))
        center = tuple(of.own(of.center[:, c], box) for c in kind.columns)
        return kind.rule.sides(low, high, center, of.own(kind.value, box), of.graph.dtype, once)

    def _chosen(self, alpha: Tensor) -> dict[int, tuple[Line, Line]]:
        """The lines that some slopes give, per nonlinear node with open entries."""
        found: dict[int, tuple[Line, Line]] = {}
        for kind, sides in self.sides:
            made = []
            for side, part in zip(sides, (kind.lower, kind.upper), strict=True):
                slopes, intercept = side(alpha if part is None else alpha[:, :, part])
                made.append(zip(zip(*map(kind.parted, slopes), strict=True), kind.parted(intercept), strict=True))
            found.update(zip(kind.nodes, zip(*made, strict=True), strict=True))
        return found

    def _least(self, rows: Tensor) -> Tensor:
        """The least of rows . (x - centre) over the inputs, (n, r): where more than the box confines them, with the best multipliers."""
        least = -(rows.abs() * self.radius).sum(2)
        for region in self.regions:
            least = torch.maximum(least, region.about(rows))
        return least

    def value(self, alpha: Tensor, beta: Tensor, gamma: Tensor | None = None, *, seen: dict[int, Passed] | None = None) -> Tensor:
        """The bounds, (n, r); `seen` is filled with what arrives at open entries and, in place of `attained`, what leaves them.

        Args:
            alpha: (n, r, P), of the lines.
            beta: (n, r, K), of the splits.
            gamma: (n, r, q), of the output constraints, if any.
        """
        of, graph = self.of, self.of.graph
        n, r = self.shape
        total = self.base
        chosen = self._chosen(alpha)
        signed: Tensor | None = None
        if beta.shape[2]:
            signed = alpha.new_zeros(n, r, of.count).scatter_add(2, self.where, beta * self.side)
            total = total + (beta * self.offset.unsqueeze(1)).sum(2)
        walk = Pullback(graph, self.start)
        if gamma is not None and self.given is not None and self.excess is not None:
            total = total + (gamma * self.excess.unsqueeze(1)).sum(2)
            for node_id, matrix in ((of.target, self.given[0]), (0, self.given[1])):
                if matrix is not None:
                    walk.arrive(node_id, (gamma @ matrix).reshape(n, r, *graph.nodes[node_id].shape))
        for node, rows in walk:
            check_time()
            last = node.id
            # Split constraints are subtracted where the multipliers of the first function of a variable come back; if there is none, here.
            if signed is not None and last in of.entries and last not in of.first:
                rows = rows.flatten(2).index_add(2, of.entries[last], -signed[:, :, of.columns[last]]).reshape(rows.shape)
            if last == 0:
                return total + self._least(rows.flatten(2))
            parts: tuple[Tensor, ...]
            if isinstance(node.op, Affine):
                parts = node.op.adjoint(rows.reshape(-1, *node.shape))
            else:
                flat, o = rows.flatten(2), of.opened[last]
                parts = tuple(flat * slope for slope in self.stable[last])
                if len(o.index):
                    free = flat[:, :, o.index]
                    up, down = free.clamp(min=0.0), free.clamp(max=0.0)
                    (k_lower, b_lower), (k_upper, b_upper) = chosen[last]
                    total = total + (up * b_lower + down * b_upper).sum(2)
                    back = tuple(up * low + down * high for low, high in zip(k_lower, k_upper, strict=True))
                    here = o.columns[0]
                    if signed is not None and isinstance(here, slice) and of.first[node.inputs[0]] == last:
                        back = (back[0] - signed[:, :, here],)
                    if seen is not None:
                        seen[last] = Passed(free, (k_lower, b_lower), (k_upper, b_upper), back)
                    parts = tuple(part.index_add(2, o.index, more) for part, more in zip(parts, back, strict=True))
            shapes = (graph.nodes[source].shape for source in node.inputs)
            walk.send(node, (part.reshape(n, r, *shape) for part, shape in zip(parts, shapes, strict=True)))
        raise ValueError("nothing arrives at the input")
