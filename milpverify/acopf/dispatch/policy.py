"""What the generators are set to: a dispatch that does not depend on the loads; learned ones are in `proxy`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from milpverify.acopf.dispatch.enclosure import Region
from milpverify.arithmetic.midpoint_radius import Balls

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.loads import Loads


@dataclass(frozen=True, eq=False)
class Box:
    """Loads (pd, qd) between two of them, (2n,) p.u. each."""

    lower: Array
    upper: Array

    @property
    def middle(self) -> Array:
        """(2n,), in the box."""
        found: Array = np.clip(self.lower / 2 + self.upper / 2, self.lower, self.upper)
        return found

    @property
    def radius(self) -> Array:
        """(2n,): the box lies within that of its middle; 0 where nothing varies."""
        middle = self.middle
        wide = np.nextafter(np.maximum(self.upper - middle, middle - self.lower), np.inf)
        found: Array = np.where(self.lower == self.upper, 0.0, wide)
        return found

    @property
    def varying(self) -> Index:
        """Indices of the loads that are not fixed."""
        return np.flatnonzero(self.lower < self.upper)

    def halves(self, j: int) -> tuple[Box, Box]:
        """Cut across load j."""
        below, above = self.upper.copy(), self.lower.copy()
        below[j] = above[j] = self.middle[j]
        return Box(self.lower, below), Box(above, self.upper)

    def meet(self, other: Box) -> Box | None:
        """What both contain."""
        lower, upper = np.maximum(self.lower, other.lower), np.minimum(self.upper, other.upper)
        return Box(lower, upper) if (lower <= upper).all() else None

    def at(self, share: Array) -> Array:
        """(..., 2n): from the lower end (0) to the upper one (1)."""
        return np.clip(self.lower + share * (self.upper - self.lower), self.lower, self.upper)


def box_of(grid: Grid, loads: Loads) -> Box:
    """The loads that are meant."""
    low_p, high_p, low_q, high_q = loads.ranges(grid.case)
    return Box(np.concatenate([low_p, low_q]), np.concatenate([high_p, high_q]))


class Policy(Protocol):
    """Set points as a continuous function of the loads."""

    def set_points(self, loads: Array) -> tuple[Array, Array]:
        """pg (samples, g) and vm (samples, n) at loads (samples, 2n), in float64: for attacks."""
        ...

    def region(self, box: Box) -> Region:
        """All parameters of the power flow over a box of loads. With a box of one load: those of this load."""
        ...

    def way(self, a: Array, b: Array) -> Region:
        """All parameters between two loads (2n,) along the way straight from one to the other, or more."""
        ...


@dataclass(frozen=True, eq=False)
class Fixed:
    """The same set points whatever the loads are: a dispatch."""

    grid: Grid
    pg: Array  # (g,)
    vm: Array  # (n,)

    def set_points(self, loads: Array) -> tuple[Array, Array]:
        return np.tile(self.pg, (len(loads), 1)), np.tile(self.vm, (len(loads), 1))

    def region(self, box: Box) -> Region:
        varying = box.varying
        generators = np.zeros((3 * self.grid.case.num_buses, len(varying)))
        generators[varying, np.arange(len(varying))] = -box.radius[varying]
        center = given(self.grid, self.pg, self.vm, box.middle)
        return Region(center, generators, np.stack([self.pg] * 2), np.stack([self.vm] * 2))

    def way(self, a: Array, b: Array) -> Region:
        n, middle, radius = self.grid.case.num_buses, a / 2 + b / 2, b / 2 - a / 2
        center = given(self.grid, self.pg, self.vm, middle)
        center.radius[: 2 * n] += (np.abs(a) + np.abs(b)) * 2.0**-51  # how far the line between is from that between a and b
        column = np.concatenate([-radius, np.zeros(n)])[:, None]
        return Region(center, column, np.stack([self.pg] * 2), np.stack([self.vm] * 2))


def given(grid: Grid, pg: Array, vm: Array, loads: Array) -> Balls:
    """The parameters (3n,) of one power flow, with the rounding of sums of powers."""
    n = grid.case.num_buses
    middle = grid.parameters(pg, vm, loads[:n], loads[n:])
    size = np.zeros(3 * n)
    np.add.at(size, grid.case.generators.bus, np.abs(pg))
    size[:n] += np.abs(loads[:n])
    return Balls(middle, size * (len(pg) + 4) * 2.0**-52)
