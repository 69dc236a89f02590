"""Loads that come as close as possible to every limit: samples, the corners that sensitivities point to, and gradients followed.

Everything is float64 and proves nothing; what violates a limit is proved afterwards (`witness`). It shares no formula with the enclosure
but the admittances.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.dispatch.newton import follow, jacobian, many
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.dispatch.enclosure import Enclosure
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.dispatch.limits import Limits
    from milpverify.acopf.dispatch.policy import Box, Policy
    from milpverify.config import Deadline


class LoadTuning(Tuning):
    """How loads are attacked, and how far boxes of them are cut."""

    chunk: int = 256
    """Power flows at once."""
    followed: int = 10
    steps: int = 4
    """Limits whose gradients are followed, and how many gradients of each."""
    near: float = 1e-7
    """p.u. and rad: what float64 may lie outside of an enclosure."""
    lost: int = 8
    """Power flows that one inverse did not find and that are looked for one by one."""
    boxes: int = 20000
    """Boxes of loads with which the search gives up."""
    nearer: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35, 0.25)
    """Shares of the way to loads that violate a limit, where the proofs are tried."""
    few: int = 3
    """Limits that are attacked further once one is known to be violated."""


class Attack:
    """The least margin found of every limit over a box, and where.

    `margin` (K,), `loads` (K, 2n) p.u. and `flow` (K, 2n) rad and p.u.: the power flow there. `lost` are loads whose power flow was not
    found. With an enclosure over the box, power flows outside of it are not the base case's, and do not count; `x` (2n,) is that.
    """

    def __init__(
        self,
        grid: Grid,
        limits: Limits,
        policy: Policy,
        box: Box,
        x: Array,
        enclosure: Enclosure | None = None,
        tuning: LoadTuning = LoadTuning(),
    ) -> None:
        self.enclosure, self._tuning = enclosure, tuning
        self.grid, self.limits, self.policy, self.box, self.x = grid, limits, policy, box, x
        count, width = len(limits.entries), 2 * grid.case.num_buses
        self.margin, self.value = np.full(count, np.inf), np.full(count, np.nan)
        self.loads, self.flow = np.tile(box.middle, (count, 1)), np.tile(x, (count, 1))
        self.lost: Array | None = None
        self.tried = 0
        assert width == len(x)

    def parameters(self, loads: Array) -> tuple[Array, Array]:
        """p (samples, 3n) and pg (samples, g), p.u., at loads (samples, 2n)."""
        n = self.grid.case.num_buses
        pg, vm = self.policy.set_points(loads)
        return self.grid.parameters(pg, vm, loads[:, :n], loads[:, n:]), pg

    def look(self, loads: Array, start: tuple[Array, Array] | None = None) -> None:
        """Solve at loads (samples, 2n) and keep what is worst. `start` is a power flow (2n,) near by, and the Jacobian's inverse there."""
        tuning = self._tuning
        for part in np.split(loads, range(tuning.chunk, len(loads), tuning.chunk)):
            p, pg = self.parameters(part)
            x, good = many(self.grid, p, *(start or (self.x, self._inverse)))
            if self.enclosure is not None:
                good = np.logical_and(good, self.enclosure.near(x, tuning.near))
            for k in np.flatnonzero(np.logical_not(good))[: tuning.lost].tolist():
                found = follow(self.grid, self._base, self.x, p[k])
                if found is None:
                    self.lost = part[k] if self.lost is None else self.lost
                else:
                    x[k], good[k] = found, True
            self.tried += int(good.sum())
            if not good.any():
                continue
            x, p, pg, part = x[good], p[good], pg[good], part[good]
            values = self.limits.values(x, p, pg)
            margins = self.limits.margins(values)
            margins = np.where(np.isnan(margins), np.inf, margins)
            at = margins.argmin(0)
            least = margins[at, np.arange(len(at))]
            better = np.flatnonzero(least < self.margin)
            at = at[better]
            self.margin[better], self.value[better] = least[better], values[at, better]
            self.loads[better], self.flow[better] = part[at], x[at]

    @property
    def _base(self) -> Array:
        p: Array = self.parameters(self.box.middle[None])[0][0]
        return p

    def corners(self) -> None:
        """Of every limit the corner that its slope in the middle of the box points to; of those with two nearly as close ends both."""
        self.look(self.box.middle[None])
        signs = np.sign(self._slopes(self.box.middle, (self.x, self._inverse)))
        below, above = self.value - self.limits.lower, self.limits.upper - self.value
        self.look(np.unique(np.concatenate([self._corner(-signs[below < 2 * above]), self._corner(signs[above < 2 * below])]), axis=0))

    def sample(self, count: int, seed: int) -> None:
        """Random loads: a third anywhere, the others in corners."""
        random = np.random.default_rng(seed)
        share = random.random((count, len(self.box.lower)))
        share[count // 3 :] = share[count // 3 :] > 0.5
        self.look(self.box.at(share))

    def follow_gradients(self, deadline: Deadline, only: Index | None = None) -> None:
        """From the worst loads of the limits that are closest to being violated to the corner where their margin falls, again and again.

        Args:
            deadline: ends it.
            only: (k,) places of these limits alone.
        """
        closest = np.argsort(self.margin, kind="stable")
        order = closest[np.logical_not(self.limits.given[closest])] if only is None else only
        for k in order[: self._tuning.followed].tolist():
            for _ in range(self._tuning.steps):
                before = self.margin[k]
                if deadline.expired() or not np.isfinite(before):
                    break
                upward = self.limits.upper[k] - self.value[k] < self.value[k] - self.limits.lower[k]
                at = self.flow[k].copy(), _inverse(self.grid, self.flow[k])
                step = np.sign(self._slopes(self.loads[k], at, k)) * (1 if upward else -1)
                self.look(self._corner(step), at)
                if not self.margin[k] < before - 1e-12:
                    break

    def forget(self, k: int) -> None:
        """Of limit k all but the base case."""
        (p,), (pg,) = self.parameters(self.box.middle[None])
        values = self.limits.values(self.x[None], p[None], pg[None])
        self.margin[k], self.value[k] = self.limits.margins(values)[0, k], values[0, k]
        self.loads[k], self.flow[k] = self.box.middle, self.x

    def _reach(self) -> Array:
        """(N,) how far every varying load may move."""
        found: Array = self.box.radius[self.box.varying]
        return found

    def _corner(self, signs: Array) -> Array:
        """(samples, 2n): the upper end of varying loads where the sign is 1, the lower one where it is -1, the middle where it is 0."""
        share = np.full((len(signs), len(self.box.lower)), 0.5)
        share[:, self.box.varying] = (signs + 1) / 2
        return self.box.at(share)

    @cached_property
    def _inverse(self) -> Array:
        return _inverse(self.grid, self.x)

    def _slopes(self, loads: Array, at: tuple[Array, Array], only: int | None = None) -> Array:
        """(K, N): by how much what is limited changes per load's radius, at a power flow; set points by small differences."""
        step = 2.0**-10
        varying = self.box.varying
        moved = np.tile(loads, (len(varying), 1))
        moved[np.arange(len(varying)), varying] += step * self._reach()
        (p, pg), (p0, pg0) = self.parameters(moved), self.parameters(loads[None])
        return self.limits.slopes(*at, (p - p0).T / step, (pg - pg0).T / step, only)


def _inverse(grid: Grid, x: Array) -> Array:
    found: Array = np.asarray(np.linalg.inv(jacobian(grid, x)), dtype=np.float64)
    return found
