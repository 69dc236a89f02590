"""Second-order bounds of rows where few inputs meet in products: what the products of linear forms add up to is bounded as a whole.

With forward linear forms a = k_b + A d + e_a and b = k_a + B d + e_b in the deviation d of the input from the centre of its box,

    a b  =  k_a a + k_b b - k_a k_b + (a - k_b) (b - k_a),      (a - k_b) (b - k_a)  =  (A d) (B d) + what is small of higher order.

A backward pass with these planes takes the linear part to the input, with the cancellations of linear parts that backward passes
have. The multipliers m that arrive at the products then make the quadratic part of each row: the sum of all m (A d) (B d) is d' H d.
Planes around each product alone lose the widths of both factors for every product. Here squares and mixed terms cancel before
anything is lost: a convex quadratic form loses nothing, for its tangent plane at the centre bounds it from below.

With u = d / radius in [-1, 1] the form is u' T u. Shifts s >= 0 of its diagonal that make P = T + diag(s) positive semidefinite give

    g . u + u' T u  >=  g . u + u' P u - sum of s  >=  (g + 2 P t) . u - t' P t - sum of s        for every point t

(the convex underestimators of Adjiman, Dallwig, Floudas and Neumaier 1998, and a tangent plane of theirs), which is exact at a corner
where the left side is least if t is that corner. The shifts rest on no eigenvalue: whatever numbers V and w >= 0 are, V diag(w) V' is
positive semidefinite, and what differs between it and T is outweighed by the sums of its absolute values on the diagonal.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import TINY, U64, down, gamma
from milpverify.propagation.backward import LineTable, lines, parallel_lines
from milpverify.propagation.crown import bound_sum
from milpverify.propagation.forward import Carried
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.state import LinearBound, Lines, select, select_lines

if TYPE_CHECKING:
    from milpverify.graph import Graph
    from milpverify.propagation.state import State

LARGEST: Final = 2.0**300
"""Nothing is made of larger coefficients, whose products might overflow."""


def applies(graph: Graph, lower: Tensor, upper: Tensor, tuning: BoundTuning = BoundTuning()) -> bool:
    """Whether boxes (batch, nx) vary in few enough inputs, and there are products for second-order bounds to differ from linear ones."""
    return bool(_products(graph)) and int((upper > lower).any(0).sum()) <= tuning.quadratic_inputs


def _products(graph: Graph) -> list[int]:
    return [i for i, op in graph.nonlinearities.items() if op.bilinear]


@dataclass(frozen=True, eq=False)
class _Factor:
    """A factor of a product as `slope` + A d + e with |e| <= rest.

    `slope` (batch, *shape) in the precision of the matrices; `scaled` (batch, p, size) float64: A times the radius; `reach`, `rest`
    (batch, size) float64, upper bounds of |A d| and |e|.
    """

    slope: Tensor
    scaled: Tensor
    reach: Tensor
    rest: Tensor

    def without(self, unknown: Tensor) -> _Factor:
        """The factor with zeros where nothing is known of it, (batch, size) bool."""
        reach, rest = (part.masked_fill(unknown, 0.0) for part in (self.reach, self.rest))
        return replace(self, scaled=self.scaled.masked_fill(unknown.unsqueeze(1), 0.0), reach=reach, rest=rest)


class SecondOrder:
    """The second-order forms of a batch of boxes, for any rows.

    Args:
        graph: in float64.
        state: of the boxes, with the charges of passes in `dtype`.
        table: lines around the nonlinear nodes, as passes in `dtype` use them; those of products are replaced.
        dtype: the precision of the matrices.
    """

    def __init__(self, graph: Graph, state: State, table: LineTable, dtype: torch.dtype, tuning: BoundTuning = BoundTuning()) -> None:
        self.tuning = tuning
        self.fast, self.state, self.table = graph.to(dtype, graph.device), state, dict(table)
        self.products = _products(graph)
        factors = {i for p in self.products for i in graph.nodes[p].inputs}
        bounds = state[0].bounds
        carried = Carried(graph, bounds.lower, bounds.upper, dtype, factors)
        before = set().union(*(graph.ancestors[i] for i in factors)) if factors else set()
        self.varying = carried.varying
        self.factors: dict[int, _Factor] = {}
        parallel: LineTable = {}
        for node in graph.nodes:
            if node.id not in before:
                continue
            if node.id in graph.readings:
                parallel[node.id] = parallel_lines(graph, node.id, state, dtype)
            carried.step(node, state, parallel)
            if node.id in factors:
                self.factors[node.id] = self._factor(node.id, carried, parallel)
        for i in self.products:
            self.table[i] = self._plane(graph, i, dtype)

    def select(self, box: Tensor) -> SecondOrder:
        """The forms of some of the boxes, `box` (n,)."""
        chosen = copy(self)
        chosen.state, chosen.table = select(self.state, box), {i: select_lines(around, box) for i, around in self.table.items()}
        chosen.factors = {i: _Factor(f.slope[box], f.scaled[box], f.reach[box], f.rest[box]) for i, f in self.factors.items()}
        return chosen

    def _factor(self, node: int, carried: Carried, parallel: LineTable) -> _Factor:
        form, known = carried.form(node, parallel), self.state[node]
        assert form.lower is form.upper
        middle = known.center + 0.5 * (form.b_lower + form.b_upper)
        slope = torch.where(middle.isfinite(), middle, 0.0).to(form.lower.dtype)
        shift = known.center - slope.double()
        size = known.center.abs() + slope.double().abs()
        rest = torch.maximum((shift + form.b_upper).abs(), (shift + form.b_lower).abs()) + 4 * U64 * (
            size + form.b_lower.abs() + form.b_upper.abs()
        )
        scaled = form.lower.flatten(2).double() * self.state[0].deviation[:, self.varying].unsqueeze(2)
        return _Factor(slope, scaled, form.reach_lower.flatten(1), rest.flatten(1))

    def _pair(self, product: int) -> tuple[_Factor, _Factor]:
        inputs = self.fast.nodes[product].inputs
        return self.factors[inputs[0]], self.factors[inputs[-1]]

    def _plane(self, graph: Graph, product: int, dtype: torch.dtype) -> Lines:
        a, b = self._pair(product)
        slopes = (b.slope, a.slope) if len(graph.nodes[product].inputs) > 1 else (2 * a.slope,)
        level = -(a.slope.double() * b.slope.double())
        pad = 2 * U64 * level.abs() + TINY
        return lines(graph, product, self.state, dtype, slopes, slopes, (level - pad, level + pad))

    def bound(self, rows: Tensor, x_rows: Tensor | None = None) -> tuple[LinearBound, Tensor]:
        """Lower bounds of `rows . y + x_rows . x` on every box, and what they lose by the width of each input, (batch, r, nx).

        Args:
            rows: (batch, r, ny) float64.
            x_rows: (batch, r, nx) float64, zero by default.
        """
        seen: dict[int, Tensor] = {}
        on = [(self.fast.output, rows), *([] if x_rows is None else [(0, x_rows)])]
        straight = bound_sum(self.fast, self.state, self.table, on, seen=seen, tuning=self.tuning)
        batch, count = rows.shape[:2]
        p = len(self.varying)
        form = rows.new_zeros(batch, count, p, p)
        rest, size, terms = rows.new_zeros(batch, count), rows.new_zeros(batch, count), 4
        shares = rows.new_zeros(batch, count, p)
        for i in self.products:
            if i not in seen:
                continue
            (a, b), multiplier = self._pair(i), seen[i].flatten(2).double()
            unknown = ~(a.reach + a.rest + b.reach + b.rest).isfinite()
            if bool(unknown.any()):  # zero times infinity
                rest = rest.masked_fill(((multiplier != 0) & unknown.unsqueeze(1)).any(2), torch.inf)
                a, b = a.without(unknown), b.without(unknown)
            weighted = multiplier.unsqueeze(2) * a.scaled.unsqueeze(1)  # (batch, r, p, size)
            form = form + weighted @ b.scaled.unsqueeze(1).mT
            both, small = a.reach * b.reach, a.reach * b.rest + b.reach * a.rest + a.rest * b.rest
            magnitude = multiplier.abs()
            size = size + (magnitude @ both.unsqueeze(2)).squeeze(2)
            rest = rest + (magnitude @ small.unsqueeze(2)).squeeze(2)
            shares = shares + magnitude @ (b.rest.unsqueeze(1) * a.scaled.abs() + a.rest.unsqueeze(1) * b.scaled.abs()).mT
            terms += multiplier.shape[2] + 8
        lost = (rest + 2 * gamma(terms) * size) * (1 + 2 * gamma(terms)) + TINY
        form = 0.5 * (form + form.mT)
        known = (form.abs() <= LARGEST).all(3).all(2) & straight.over_box.isfinite() & lost.isfinite()
        form = torch.where(known[..., None, None], form, 0.0)
        shift = _convexifying(form)
        found = self._least(straight, form, shift, lost)
        lower = torch.where(known & ~torch.isnan(found.lower), found.lower, -torch.inf)
        found = LinearBound(found.coefficients, found.constant, lower, lower)
        losses = rows.new_zeros(batch, count, straight.coefficients.shape[2])
        losses[..., self.varying] = (shares + shift).nan_to_num(0.0, 0.0, 0.0)
        return found, losses

    def _least(self, straight: LinearBound, form: Tensor, shift: Tensor, lost: Tensor) -> LinearBound:
        """A linear bound of straight + u' T u - lost where u, in [-1, 1]^p, is the deviation of the varying inputs over the radius.

        Args:
            form: T (batch, r, p, p), symmetric.
            shift: (batch, r, p) of its diagonal, that make it positive semidefinite.
            lost: (batch, r).
        """
        p, varying = form.shape[2], self.varying
        convex = form + torch.diag_embed(shift)
        wide = self.state[0].deviation[:, varying].unsqueeze(1)
        own = straight.coefficients[..., varying].double()
        slope = own * wide
        point = _minimiser(slope, convex, self.tuning.tangent_rounds)
        tangent = slope + 2 * (convex @ point.unsqueeze(3)).squeeze(3)
        coefficients = torch.where(wide > 0, tangent / wide, own).to(straight.coefficients.dtype)
        coefficients = torch.where(coefficients.isfinite(), coefficients, 0.0)
        # What is bounded from below: straight.over_box + sum of |own| radius + tangent . u - t' P t - sum of the shifts - lost.
        kept = coefficients.double() * wide
        level = (point * (convex @ point.unsqueeze(3)).squeeze(3)).sum(2)
        size = convex.abs().sum((2, 3)) + slope.abs().sum(2) + kept.abs().sum(2)
        change = slope.abs().sum(2) - kept.abs().sum(2) - (kept - tangent).abs().sum(2) - level - shift.sum(2) - lost
        pad = 8 * gamma(p * p + 8) * (size + shift.sum(2) + lost) + TINY
        lower = down(straight.over_box + (change - pad))
        everywhere = straight.coefficients.clone()
        everywhere[..., varying] = coefficients
        constant = straight.constant - level - shift.sum(2) - lost
        return LinearBound(everywhere, constant, lower, lower)


def _convexifying(form: Tensor) -> Tensor:
    """Shifts s (batch, r, p) >= 0 of the diagonal that make symmetric matrices T (batch, r, p, p) positive semidefinite."""
    values: Tensor
    vectors: Tensor
    values, vectors = torch.linalg.eigh(form)
    kept = vectors * values.clamp(min=0.0).unsqueeze(2)
    negative = kept @ vectors.mT - form
    # Rounding of the product, and of the difference.
    p = form.shape[2]
    magnitude = kept.abs() @ vectors.abs().mT
    return ((negative.abs() + 2 * gamma(p + 4) * (magnitude + form.abs())).sum(3) + TINY) * (1 + 2 * gamma(p))


def _minimiser(slope: Tensor, form: Tensor, rounds: int) -> Tensor:
    """Where slope . u + u' P u is about least over [-1, 1]^p, by coordinate descent: (batch, r, p). Any point is sound."""
    point = -slope.sign()
    diagonal = form.diagonal(dim1=2, dim2=3)
    for _ in range(rounds):
        for i in range(point.shape[2]):
            ascent = slope[..., i] + 2 * ((form[..., i, :] * point).sum(2) - diagonal[..., i] * point[..., i])
            point[..., i] = torch.where(diagonal[..., i] > 0, -0.5 * ascent / diagonal[..., i], -ascent.sign()).clamp(-1.0, 1.0)
    return point.nan_to_num(0.0)


def better(one: LinearBound, other: LinearBound) -> LinearBound:
    """Row by row that of two linear bounds whose minimum is higher."""
    second = other.lower > one.lower
    return LinearBound(
        torch.where(second.unsqueeze(2), other.coefficients, one.coefficients),
        torch.where(second, other.constant, one.constant),
        torch.maximum(one.lower, other.lower),
        torch.where(second, other.over_box, one.over_box),
    )
