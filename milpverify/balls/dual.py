"""Bounds of linear functions over the inputs that lie in a ball and in a box.

With d = x - centre, phi_i(d_i) = |d_i| / w_i and R = r for L1, phi_i(d_i) = (d_i / w_i)^2 and R = r^2 for L2, the least a . d over the box
l <= d <= u with sum phi_i(d_i) <= R is, by Lagrange duality in the ball's constraint alone,

    max over lambda >= 0 of  sum_i min { a_i d_i + lambda phi_i(d_i) : l_i <= d_i <= u_i }  -  lambda R,

a concave function of one multiplier that separates: every minimum is at an end, at the point nearest to 0, or where the parabola is flat.
Any multiplier gives a bound, so nothing rests on how it is found: for L1 it is one of the breakpoints |a_i| w_i, for L2 it comes by
Newton's method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64
from milpverify.balls.ball import BallTuning
from milpverify.balls.norm import Norm

if TYPE_CHECKING:
    from milpverify.balls.ball import Ball

TINY: Final = 1e-30
"""Divisors are no smaller."""
HUGE: Final = 2.0**160
"""Multipliers and boxes are no larger where a ball counts, and slopes no smaller than its fourth power's inverse."""


@dataclass(frozen=True, eq=False)
class Region:
    """A ball and a batch of boxes: ends of d = x - centre, (batch, nx) each, and what every coordinate costs of the ball.

    `inverse` (nx,) is 1 / weight, 0 for inputs that do not change; `budget` is R, rounded up; `tuning` says how multipliers are found.
    """

    norm: Norm
    inverse: Tensor
    budget: float
    low: Tensor
    high: Tensor
    shift: Tensor  # centre - reference
    tuning: BallTuning

    @staticmethod
    def of(ball: Ball, lower: Tensor, upper: Tensor, reference: Tensor, tuning: BallTuning = BallTuning()) -> Region:
        """The ball with boxes (batch, nx) float64, for deviations from reference values (batch, nx)."""
        centre, weight = (torch.from_numpy(t).to(lower.device) for t in (ball.centre, ball.weight))
        budget = ball.radius if ball.norm is Norm.L1 else ball.radius * ball.radius * (1 + 4 * U64) + 2.0**-1000
        inverse = torch.where(weight > 0, 1.0 / weight.clamp(min=TINY), 0.0)
        return Region(ball.norm, inverse, budget, lower - centre, upper - centre, centre - reference, tuning)

    def take(self, owner: Tensor | None) -> Region:
        """With the boxes `owner` (n,) as the batch."""
        return self if owner is None else replace(self, low=self.low[owner], high=self.high[owner], shift=self.shift[owner])

    def to(self, dtype: torch.dtype) -> Region:
        """In another precision, in which nothing is proved."""
        return replace(self, **{name: getattr(self, name).to(dtype) for name in ("inverse", "low", "high", "shift")})

    @property
    def nearest(self) -> Tensor:
        """The point of each box that is nearest to the centre, (batch, nx)."""
        return torch.zeros_like(self.low).clamp(self.low, self.high)

    def cost(self, d: Tensor) -> Tensor:
        """phi of every coordinate, for d (..., nx), in that shape."""
        share = d * self.inverse
        return share.abs() if self.norm is Norm.L1 else share * share

    def empty(self) -> Tensor:
        """Which boxes have no point in the ball for certain, (batch,) bool."""
        least = self.cost(self.nearest).sum(1)
        return least * (1 - 4 * (self.low.shape[1] + 8) * U64) - 2.0**-1000 > self.budget

    def cuts(self) -> bool:
        """Whether the ball excludes a corner of some box."""
        furthest = torch.where(self.low.abs() > self.high.abs(), self.low, self.high)
        return bool((self.cost(furthest).sum(1) > self.budget).any())

    def attained(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Multipliers (batch, r) for rows (batch, r, nx), and where the Lagrangians with them are least: d, (batch, r, nx).

        Nothing is proved here. The multiplier is 0 where the box alone decides.
        """
        low, high, near = self.low.unsqueeze(1), self.high.unsqueeze(1), self.nearest.unsqueeze(1)
        end = torch.where(rows > 0, low, high)
        if self.norm is Norm.L1:
            multiplier = self._knapsack(rows, end, near)
        else:
            multiplier = self._newton(rows, end)
        multiplier = self._tame(multiplier)
        return multiplier, self._minimiser(rows, multiplier, end, near)

    def filled(self, rows: Tensor) -> Tensor:
        """Where rows (batch, r, nx) are about least: d, (batch, r, nx). For L1 what is left is spent on the input at the breakpoint."""
        multiplier, d = self.attained(rows)
        if self.norm is not Norm.L1:
            return d
        end = torch.where(rows > 0, self.low.unsqueeze(1), self.high.unsqueeze(1))
        d = torch.where(rows.abs() > multiplier.unsqueeze(2) * self.inverse * (1 + self.tuning.close), d, self.nearest.unsqueeze(1))
        left = (self.budget - self.cost(d).sum(2, keepdim=True)).clamp(min=0.0)
        worth = torch.where((d == end) | (self.inverse == 0), -1.0, rows.abs() / self.inverse.clamp(min=TINY))
        chosen = worth.argmax(2, keepdim=True)
        step = left / self.inverse.expand_as(rows).gather(2, chosen).clamp(min=TINY)
        here = d.gather(2, chosen)
        return d.scatter(2, chosen, here + (end.gather(2, chosen) - here).clamp(-step, step))

    def _tame(self, multiplier: Tensor) -> Tensor:
        """Multipliers, 0 where products with them may underflow by more than `least` charges."""
        least = self.inverse.masked_fill(self.inverse == 0, 1.0).amin()
        slope = multiplier * least if self.norm is Norm.L1 else multiplier * least * least
        furthest = torch.maximum(self.low.abs(), self.high.abs()).amax(1, keepdim=True)
        return torch.where((slope >= 1 / HUGE**4) & (multiplier <= HUGE) & (furthest <= HUGE), multiplier, 0.0)

    def _minimiser(self, rows: Tensor, multiplier: Tensor, end: Tensor, near: Tensor) -> Tensor:
        price = multiplier.unsqueeze(2)
        if self.norm is Norm.L1:
            return torch.where(rows.abs() > price * self.inverse, end, near.expand_as(end))
        curve = 2.0 * price * self.inverse * self.inverse
        flat = torch.where(curve > 0, -rows / curve, torch.where(rows == 0, torch.zeros_like(end), end))
        return torch.minimum(torch.maximum(flat, self.low.unsqueeze(1)), self.high.unsqueeze(1))

    def _knapsack(self, rows: Tensor, end: Tensor, near: Tensor) -> Tensor:
        """The breakpoint at which what moves to its end no longer fits into the ball; 0 where all does."""
        cost = self.cost(end) - self.cost(near)
        # What moves away from the centre pays; moving towards it or through it is worth it at any price below its breakpoint, too.
        value = torch.where(self.inverse > 0, rows.abs() / self.inverse.clamp(min=TINY), torch.inf)
        value, order = value.masked_fill(rows == 0, 0.0).sort(dim=2, descending=True)
        spent = self.cost(near).sum(2, keepdim=True) + cost.gather(2, order).cumsum(2)
        over = spent > self.budget
        first = torch.where(over.any(2), over.to(torch.int8).argmax(2), rows.shape[2] - 1)
        found = value.gather(2, first.unsqueeze(2)).squeeze(2)
        return torch.where(over.any(2) & torch.isfinite(found), found, 0.0)

    def _newton(self, rows: Tensor, end: Tensor) -> Tensor:
        """1 / (2 mu), where d = -a w^2 mu, clipped to the box, has the cost R: piecewise linear in mu^2; 0 where the box decides."""
        weight2 = torch.where(self.inverse > 0, 1.0 / (self.inverse * self.inverse).clamp(min=TINY), 0.0)
        pull = rows * weight2
        gain = rows * pull  # the cost of a free coordinate per mu^2
        low, high = self.low.unsqueeze(1), self.high.unsqueeze(1)
        total = gain.sum(2)
        square = torch.where(total > 0, self.budget / total.clamp(min=TINY), torch.inf)
        known, excluded = torch.zeros_like(square), torch.full_like(square, torch.inf)  # where the cost is within R, and above it
        close = self.tuning.close
        for _ in range(self.tuning.newton):
            free = -pull * square.sqrt().unsqueeze(2)
            clipped = (free <= low) | (free >= high)
            held = torch.where(clipped, self.cost(torch.minimum(torch.maximum(free.nan_to_num(0.0), low), high)), 0.0).sum(2)
            slope = torch.where(clipped, 0.0, gain).sum(2)
            over = held + slope * square > self.budget
            known, excluded = torch.where(over, known, square), torch.where(over, square, excluded)
            new = torch.where(slope > 0, (self.budget - held) / slope.clamp(min=TINY), torch.nan)
            between = torch.where(known > 0, (known * excluded).sqrt(), excluded / 16).clamp(max=16 * square)
            near = (new >= known * (1 - close)) & (new <= excluded * (1 + close))  # ends that rounding put on the wrong side are met again
            new = torch.where(near, new, between)
            done = ((new - square).abs() <= close * square) | ~torch.isfinite(square)
            square = new
            if bool(done.all()):
                break
        fits = self.cost(end).sum(2) <= self.budget
        return torch.where(fits | ~torch.isfinite(square) | (square <= 0), 0.0, 0.5 / square.sqrt())

    def about(self, rows: Tensor) -> Tensor:
        """About the least of rows . (x - reference), (batch, r), differentiable in the rows; nothing is proved here."""
        with torch.no_grad():
            multiplier, d = self.attained(rows.detach())
            spent, at = multiplier * (self.cost(d).sum(2) - self.budget), d + self.shift.unsqueeze(1)
        return (rows * at).sum(2) + spent

    def least(self, rows: Tensor) -> Tensor:
        """Lower bounds of rows . (x - reference) over box and ball: rows (batch, r, nx) -> (batch, r) float64; rigorous."""
        rows = rows.detach().double()
        multiplier, d = self.attained(rows)
        cost = self.cost(d)
        furthest = torch.maximum(self.low.abs(), self.high.abs()) + self.shift.abs()
        spent = multiplier * (cost.sum(2) - self.budget)
        bound = (rows * (d + self.shift.unsqueeze(1))).sum(2) + spent
        # A minimiser that rounding chose among two ends loses no more than the ends' own roundings, a flat place the square of its own.
        paid = (rows.abs() @ furthest.unsqueeze(2)).squeeze(2) + multiplier * (cost.sum(2) + self.budget)
        bound = bound - 8 * (rows.shape[2] + 16) * U64 * paid - 2.0**-900
        return torch.where(torch.isnan(bound), -torch.inf, bound)


def lowest(ball: Ball | None, rows: Tensor, lower: Tensor, upper: Tensor, tuning: BallTuning = BallTuning()) -> Tensor:
    """Points (N, r, nx) where rows (N, r, nx) are least over boxes (N, nx): corners, or near to points of the ball; nothing is proved."""
    corner = torch.where(rows > 0, lower.unsqueeze(1), upper.unsqueeze(1))
    if ball is None:
        return corner
    centre = torch.from_numpy(ball.centre).to(lower.device)
    region = Region.of(ball, lower, upper, centre.expand_as(lower), tuning)
    return centre + region.filled(rows.double()) if region.cuts() else corner
