"""Bounds of linear functions over the inputs of a box that satisfy linear inequalities.

With d = x - reference, the box l <= d <= u and rows D d <= e, weak duality gives for every mu >= 0

    a . d  >=  min { (a + D^T mu) . d : l <= d <= u }  -  mu . e,

a sum of minima at ends. Any multipliers give a bound, so nothing rests on how they are found: by ascent in one of them after the other.
Along one the right-hand side is concave and piecewise linear, with kinks where a coefficient of a + D^T mu changes its sign, and the best
kink is where what the other coordinates still gain no longer pays for e (a continuous knapsack). Of one inequality that is the optimum. Of
several the ascent may stop at an edge; it begins again where an interior point method (Wright, Primal-Dual Interior-Point Methods, 1997,
chapter 5) comes to, and the better one counts: kinks are hit exactly, so that what cancels leaves 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from milpverify.arithmetic.rounding import U64
from milpverify.balls.ball import BallTuning

if TYPE_CHECKING:
    from numpy.typing import NDArray

HUGE: Final = 2.0**300
"""Multipliers and boxes are no larger where inequalities count."""


@dataclass(frozen=True, eq=False)
class Halfspaces:
    """Inequalities rows x <= rhs that all inputs satisfy: (q, nx) and (q,) float64."""

    rows: NDArray[np.float64]
    rhs: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rhs)

    def satisfied(self, x: Tensor) -> Tensor:
        """Which points (N, nx) float64 satisfy all of them, but for rounding, (N,) bool."""
        rows, rhs = (torch.from_numpy(t).to(x.device) for t in (self.rows, self.rhs))
        return (x @ rows.T <= rhs).all(1)


@dataclass(frozen=True, eq=False)
class Polytopes:
    """Half-spaces and a batch of boxes: ends of d = x - reference, (batch, nx) each, and `room` e, (batch, q), rounded up.

    `tuning` says how multipliers are found.
    """

    rows: Tensor
    low: Tensor
    high: Tensor
    room: Tensor
    tuning: BallTuning

    @staticmethod
    def of(halfspaces: Halfspaces, lower: Tensor, upper: Tensor, reference: Tensor, tuning: BallTuning = BallTuning()) -> Polytopes:
        """Half-spaces with boxes (batch, nx) float64, for deviations from reference values (batch, nx)."""
        rows, rhs = (torch.from_numpy(t).to(lower.device) for t in (halfspaces.rows, halfspaces.rhs))
        size = rhs.abs() + reference.abs() @ rows.abs().T
        room = rhs - reference @ rows.T + 2 * (rows.shape[1] + 8) * U64 * size + 2.0**-1000
        return Polytopes(rows, lower - reference, upper - reference, room, tuning)

    def take(self, owner: Tensor | None) -> Polytopes:
        """With the boxes `owner` (n,) as the batch."""
        return self if owner is None else replace(self, low=self.low[owner], high=self.high[owner], room=self.room[owner])

    def to(self, dtype: torch.dtype) -> Polytopes:
        """For rows in another precision: in float64 all the same, for multipliers are found in it."""
        return self

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest that every row comes to over every box, (batch, q) each, but for rounding."""
        positive, negative = self.rows.clamp(min=0.0).T, self.rows.clamp(max=0.0).T
        return self.low @ positive + self.high @ negative, self.high @ positive + self.low @ negative

    def empty(self) -> Tensor:
        """Which boxes have no point that satisfies some row for certain, (batch,) bool."""
        furthest = torch.maximum(self.low.abs(), self.high.abs())
        size = furthest @ self.rows.abs().T + self.room.abs()
        least = self.ends[0] - 4 * (self.rows.shape[1] + 8) * U64 * size - 2.0**-1000
        return (least > self.room).any(1)

    def cuts(self) -> bool:
        """Whether a row excludes a corner of some box."""
        return bool((self.ends[1] > self.room).any())

    def multipliers(self, rows: Tensor) -> Tensor:
        """Multipliers (batch, r, q) for rows (batch, r, nx); nothing is proved here. They are 0 where the box alone decides."""
        found = rows.new_zeros(*rows.shape[:2], len(self.rows))
        finite = ((self.low > -HUGE) & (self.high < HUGE)).all(1)
        corner = torch.where(rows > 0, self.low.unsqueeze(1), self.high.unsqueeze(1))
        over = corner @ self.rows.T - self.room.unsqueeze(1)
        wanted = (over > 0).any(2) & finite.unsqueeze(1) & torch.isfinite(rows).all(2)
        box, row = wanted.nonzero(as_tuple=True)
        if len(box):
            found[box, row] = self.take(box)._ascent(rows[box, row])
        return found

    def _ascent(self, a: Tensor) -> Tensor:
        """Multipliers (n, q) for one row (n, nx) on each box."""
        count = len(self.rows)
        best = self._turns(a, a.new_zeros(len(a), count))
        if count > 1 and len(a) * count**3 * self.tuning.steps <= self.tuning.most:
            other = self._turns(a, self._interior(a))
            value, now = (self.value(a.unsqueeze(1), mu.unsqueeze(1)) for mu in (best, other))
            best = torch.where(now > value, other, best)
        return torch.where(best.isfinite() & (best <= HUGE), best, 0.0)

    def _turns(self, a: Tensor, mu: Tensor) -> Tensor:
        """Better multipliers, one after the other."""
        mu, width = mu.clone(), self.high - self.low
        for _ in range(1 if len(self.rows) == 1 else self.tuning.sweeps):
            for k in range(len(self.rows)):
                there = a + mu @ self.rows - mu[:, k : k + 1] * self.rows[k]
                mu[:, k] = self._along(there, self.rows[k], self.room[:, k], width)
        return mu

    def _interior(self, a: Tensor) -> Tensor:
        """Multipliers (n, q) by a primal-dual interior point method, in units in which the box is [-1, 1] and rows have sums of 1."""
        radius = 0.5 * (self.high - self.low)
        radius = torch.maximum(radius, 1e-6 * radius.amax(1, keepdim=True)).clamp(min=1e-30)
        d = self.rows * radius.unsqueeze(1)
        unit, size = d.abs().sum(2).clamp(min=1e-30), (a * radius).abs().sum(1, keepdim=True).clamp(min=1e-30)
        e = (self.room - (0.5 * (self.low + self.high)) @ self.rows.T) / unit
        d, a = d / unit.unsqueeze(2), a * radius / size
        v, s, mu = torch.zeros_like(a), e.clamp(min=0.1), torch.full_like(e, 0.5)
        below, above = torch.full_like(a, 0.5), torch.full_like(a, 0.5)
        for _ in range(self.tuning.steps):
            p, t = 1 + v, 1 - v
            gap = ((s * mu).sum(1) + (p * below + t * above).sum(1)) / (e.shape[1] + 2 * a.shape[1])
            gap = self.tuning.centring * gap.unsqueeze(1)
            weight = 1 / (below / p + above / t)
            dual = a + (mu.unsqueeze(1) @ d).squeeze(1) - gap / p + gap / t
            primal = (d @ v.unsqueeze(2)).squeeze(2) + s - e
            matrix = (d * weight.unsqueeze(1)) @ d.transpose(1, 2) + torch.diag_embed(s / mu)
            right = primal + gap / mu - s - (d @ (weight * dual).unsqueeze(2)).squeeze(2)
            step = torch.linalg.solve_ex(matrix, right.unsqueeze(2))[0].squeeze(2)
            move = -weight * (dual + (step.unsqueeze(1) @ d).squeeze(1))
            slack = (gap - s * step) / mu - s
            rise, fall = (gap - below * move) / p - below, (gap + above * move) / t - above
            primal_step = _within((s, slack), (p, move), (t, -move))
            dual_step = _within((mu, step), (below, rise), (above, fall))
            v, s = v + primal_step * move, s + primal_step * slack
            mu, below, above = mu + dual_step * step, below + dual_step * rise, above + dual_step * fall
        return torch.nan_to_num(mu * size / unit, 0.0, 0.0, 0.0).clamp(0.0, HUGE)

    def _along(self, there: Tensor, row: Tensor, room: Tensor, width: Tensor) -> Tensor:
        """The best multiplier >= 0 of one row (nx,) or (n, nx) besides coefficients (n, nx)."""
        end = torch.where((there > 0) | ((there == 0) & (row > 0)), self.low, self.high)
        pays = (row * end).sum(1) - room
        kink = torch.where(row * there < 0, -there / row, torch.inf)
        kink, order = kink.sort(1)
        step = (row.abs() * width).gather(1, order)
        left = pays.unsqueeze(1) - torch.where(kink < torch.inf, step, 0.0).cumsum(1)
        done = (left <= 0) & (kink < torch.inf)
        last = (kink < torch.inf).sum(1) - 1  # where nothing is left that satisfies the row, or only just, any multiplier is good
        first = torch.where(done.any(1), done.to(torch.int8).argmax(1), last.clamp(min=0))
        found = kink.gather(1, first.unsqueeze(1)).squeeze(1)
        return torch.where((pays > 0) & (last >= 0) & (found < torch.inf), found, 0.0)

    def value(self, rows: Tensor, multipliers: Tensor) -> Tensor:
        """What multipliers (batch, r, q) make of rows (batch, r, nx), (batch, r), but for rounding; differentiable in the rows."""
        total = rows + multipliers @ self.rows
        end = torch.where(total.detach() > 0, self.low.unsqueeze(1), self.high.unsqueeze(1))
        return (total * end).sum(2) - (multipliers * self.room.unsqueeze(1)).sum(2)

    def about(self, rows: Tensor) -> Tensor:
        """About the least of rows . d, (batch, r), differentiable in the rows; nothing is proved here."""
        wide = rows.double()
        with torch.no_grad():
            multipliers = self.multipliers(wide.detach())
        return self.value(wide, multipliers).to(rows.dtype)

    def least(self, rows: Tensor) -> Tensor:
        """Lower bounds of rows . d over box and half-spaces: rows (batch, r, nx) -> (batch, r) float64; rigorous."""
        rows = rows.detach().double()
        multipliers = self.multipliers(rows)
        bound = self.value(rows, multipliers)
        furthest = torch.maximum(self.low.abs(), self.high.abs()).unsqueeze(2)
        paid = ((rows.abs() + multipliers @ self.rows.abs()) @ furthest).squeeze(2) + (multipliers * self.room.abs().unsqueeze(1)).sum(2)
        # What underflows is multiplied with multipliers and ends, of up to HUGE each.
        bound = bound - 8 * (rows.shape[2] + len(self.rows) + 16) * U64 * paid - 2.0**-400
        # Where no input is left any number is a bound, but none shall be beyond what the box allows.
        bound = torch.minimum(bound, (rows.abs() @ furthest).squeeze(2))
        return torch.where(torch.isfinite(bound), bound, -torch.inf)


def _within(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    """How far some positive numbers can go and stay positive, a little less, at most 1: (n, 1)."""
    ratios = [torch.where(step < 0, -0.95 * value / step, 1.0).amin(1, keepdim=True) for value, step in pairs]
    return torch.stack(ratios).amin(0).clamp(0.0, 1.0)


def least_within(rows: Tensor, lower: Tensor, upper: Tensor, halfspaces: Halfspaces | None, tuning: BallTuning = BallTuning()) -> Tensor:
    """Proved lower bounds (r,) of rows . x, rows (r, nx) float64, over a box (nx,) float64 and half-spaces, if there are any."""
    if halfspaces is None:
        halfspaces = Halfspaces(np.zeros((0, len(lower))), np.zeros(0))
    region = Polytopes.of(halfspaces, lower[None], upper[None], torch.zeros_like(lower)[None], tuning)
    return region.least(rows[None])[0]
