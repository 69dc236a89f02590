"""Loads that come as close as possible to every limit: samples, the corners that sensitivities point to, and gradients followed.

Everything is float64 and proves nothing; what violates a limit is proved afterwards (`witness`). It shares no formula with the enclosure
but the admittances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.dispatch.newton import follow, jacobian, many

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.dispatch.limits import Limits
    from milpverify.acopf.dispatch.policy import Box, Policy
    from milpverify.config import Deadline

CHUNK = 256  # power flows at once
FOLLOWED = 12  # limits whose gradients are followed
STEPS = 4  # gradients of each
LOST = 8  # power flows that one inverse did not find and that are looked for one by one


class Attack:
    """The least margin found of every limit over a box, and where.

    `margin` (K,), `loads` (K, 2n) and `flow` (K, 2n): the power flow there. `lost` are loads whose power flow was not found.
    """

    def __init__(self, grid: Grid, limits: Limits, policy: Policy, box: Box, x: Array) -> None:
        self.grid, self.limits, self.policy, self.box, self.x = grid, limits, policy, box, x
        count, width = len(limits.entries), 2 * grid.case.num_buses
        self.margin, self.value = np.full(count, np.inf), np.full(count, np.nan)
        self.loads, self.flow = np.tile(box.middle, (count, 1)), np.tile(x, (count, 1))
        self.lost: Array | None = None
        self.tried = 0
        assert width == len(x)

    def parameters(self, loads: Array) -> tuple[Array, Array]:
        """p (samples, 3n) and pg (samples, g)."""
        n = self.grid.case.num_buses
        pg, vm = self.policy.set_points(loads)
        return self.grid.parameters(pg, vm, loads[:, :n], loads[:, n:]), pg

    def look(self, loads: Array, start: Array | None = None) -> None:
        """Solve at loads (samples, 2n) and keep what is worst."""
        for part in np.split(loads, range(CHUNK, len(loads), CHUNK)):
            p, pg = self.parameters(part)
            x, good = many(self.grid, p, self.x if start is None else start)
            for k in np.flatnonzero(~good)[:LOST].tolist():
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
        """Of every limit the two corners that the sensitivities in the middle of the box point to."""
        signs = np.sign(self._slopes(self.box.middle, self.x, np.ones(len(self.margin)))) * (self._reach() > 0)
        self.look(self.box.middle[None])
        self.look(np.unique(np.concatenate([self._corner(signs), self._corner(-signs)]), axis=0))

    def sample(self, count: int, seed: int) -> None:
        """Random loads: a third anywhere, the others in corners."""
        random = np.random.default_rng(seed)
        share = random.random((count, len(self.box.lower)))
        share[count // 3 :] = share[count // 3 :] > 0.5
        self.look(self.box.at(share))

    def follow_gradients(self, deadline: Deadline, only: Array | None = None) -> None:
        """From the worst loads of the limits that are closest to being violated to the corner where their margin falls, again and again."""
        order = np.argsort(self.margin, kind="stable")
        order = order[~self.limits.given[order]] if only is None else only
        for k in order[:FOLLOWED].tolist():
            for _ in range(STEPS):
                before = self.margin[k]
                if deadline.expired() or not np.isfinite(before):
                    break
                near = np.where(self.value - self.limits.lower < self.limits.upper - self.value, 1.0, -1.0)
                slope = self._slopes(self.loads[k], self.flow[k], near)[k]
                step = -np.sign(slope)
                self.look(self._corner(step[None]), self.flow[k])
                if not self.margin[k] < before - 1e-12:
                    break

    def _reach(self) -> Array:
        """(N,) how far every varying load may move."""
        return self.box.radius[self.box.varying]

    def _corner(self, signs: Array) -> Array:
        """(samples, 2n): the upper end of varying loads where the sign is 1, the lower one where it is -1, the middle where it is 0."""
        share = np.full((len(signs), len(self.box.lower)), 0.5)
        share[:, self.box.varying] = (signs + 1) / 2
        return self.box.at(share)

    def _slopes(self, loads: Array, x: Array, signed: Array) -> Array:
        """(K, N): by how much margins change per load's radius, at loads and their power flow; set points by small differences."""
        step = 2.0**-10
        varying = self.box.varying
        moved = np.tile(loads, (len(varying), 1))
        moved[np.arange(len(varying)), varying] += step * self._reach()
        (p, pg), (p0, pg0) = self.parameters(moved), self.parameters(loads[None])
        inverse = np.linalg.inv(jacobian(self.grid, x))
        return self.limits.slopes(x, inverse, (p - p0).T / step, (pg - pg0).T / step, signed)
