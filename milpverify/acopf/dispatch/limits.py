"""Everything that is limited in a power flow of a dispatch: values at many power flows at once, and margins over a region.

Generators that share a bus share its reactive power, and at the slack bus its active power, in whatever way suits their limits: what is
limited is their total.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.dispatch.grid import Rows
from milpverify.acopf.points.judgement import (
    ACTIVE_GENERATION,
    ANGLE_DIFFERENCE,
    FLOW_FROM,
    FLOW_TO,
    REACTIVE_GENERATION,
    VOLTAGE,
)
from milpverify.arithmetic.midpoint_radius import SPARE, Balls, exactly

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case, Index
    from milpverify.acopf.dispatch.enclosure import Affine, Enclosure
    from milpverify.acopf.dispatch.grid import Grid


@dataclass(frozen=True)
class Limit:
    """One quantity with its limits, p.u., of angles rad. `given`: it is no result of the power flow, but set."""

    kind: str
    element: str
    index: int  # of the bus, branch or generator
    unit: str
    lower: float
    upper: float
    given: bool = False

    def __str__(self) -> str:
        return f"{self.kind} of {self.element}"


@dataclass(frozen=True, eq=False)
class Limits:
    """All K limits of a case, in the order of `limits_of`.

    These are magnitudes (n), active powers that are given, that of the slack bus, reactive powers of buses with generators, angle
    differences, |S| at the from ends, |S| at the to ends.
    `rows` are of magnitudes, slack, reactive powers and angles; `active` and `reactive` are of the flows at the limited ends.
    """

    grid: Grid
    entries: tuple[Limit, ...]
    rows: Rows
    active: Rows
    reactive: Rows
    lower: Array  # (K,)
    upper: Array
    given: Array  # (K,) bool

    @property
    def _after(self) -> slice:
        """Where the given powers are."""
        n = self.grid.case.num_buses
        return slice(n, n + len(self.grid.dispatched))

    def values(self, x: Array, p: Array, pg: Array) -> Array:
        """(samples, K), p.u. and rad, in plain float64, of power flows (samples, 2n), parameters (samples, 3n) and pg (samples, g)."""
        z, n = self.grid.products(x), self.grid.case.num_buses
        linear = self.rows.values(z, x, p)
        flow = np.hypot(z @ self.active.z.middle.T, z @ self.reactive.z.middle.T)
        return np.concatenate([linear[:, :n], pg[:, self.grid.dispatched], linear[:, n:], flow], 1)

    def margins(self, values: Array) -> Array:
        """(samples, K), p.u. and rad: the distance to the nearer limit, negative beyond it, of values (samples, K)."""
        return np.minimum(values - self.lower, self.upper - values)

    def slopes(self, x: Array, inverse: Array, moved: Array, powers: Array, only: int | None = None) -> Array:
        """(K, N): derivatives of what is limited, at a power flow (2n,), where p moves by `moved` (3n, N) and pg by `powers` (g, N).

        With `only` (1, N), those of one limit.
        """
        grid, n = self.grid, self.grid.case.num_buses
        slope, z = grid.slope(x), grid.products(x)
        held = n + grid.held
        drawn = grid.balances.middle[grid.unknown] @ slope[:, held]
        along = np.zeros((2 * n, moved.shape[1]))
        along[held] = moved[2 * n + grid.held]
        along[grid.unknown] = inverse @ (moved[grid.unknown] - drawn @ along[held])
        count, after = len(self.rows.x), self._after
        if only is not None and after.start <= only < after.stop:
            return powers[grid.dispatched[[only - after.start]]]
        at = slice(None) if only is None else only if only < n else only - (after.stop - after.start)

        def of(rows: Rows) -> Array:
            found: Array = (rows.z.middle @ slope + rows.x) @ along + rows.p @ moved
            return found

        if isinstance(at, int) and at < count:
            return of(self.rows[np.array([at])])
        ends = slice(None) if not isinstance(at, int) else np.array([at - count])
        active, reactive = self.active.z.middle[ends], self.reactive.z.middle[ends]
        p, q = active @ z, reactive @ z
        size = np.maximum(np.hypot(p, q), 1e-9)
        flow: Array = (((p / size)[:, None] * active + (q / size)[:, None] * reactive) @ slope) @ along
        if only is not None:
            return flow
        linear = of(self.rows)
        return np.concatenate([linear[:n], powers[grid.dispatched], linear[n:], flow])

    def enclosed(self, enclosure: Enclosure) -> Enclosed:
        """Proved ranges of all limited quantities over a region."""
        n, noise = self.grid.case.num_buses, enclosure.noise
        linear = enclosure.evaluate(self.rows)
        ranges = linear.range(noise)
        z = self.grid.products(enclosure.x)
        p, q = self.active.z.middle @ z, self.reactive.z.middle @ z
        size = np.hypot(p, q)
        cos, sin = np.where(size > 0, p / np.where(size > 0, size, 1.0), 1.0), np.where(size > 0, q / np.where(size > 0, size, 1.0), 0.0)
        ends, k = enclosure.evaluate(self.active.with_more(self.reactive)), len(p)
        along, across = _combined(ends, k, cos, sin), _combined(ends, k, -sin, cos)
        turned = 1 + 2.0**-48  # cos^2 + sin^2 is 1 but for rounding
        flow = np.hypot(along.range(noise).size, across.range(noise).size) * turned * SPARE
        powers = enclosure.region.powers[:, self.grid.dispatched]
        low = np.concatenate([ranges.lower[:n], powers[0], ranges.lower[n:], np.maximum(along.range(noise).lower, 0.0) / turned])
        high = np.concatenate([ranges.upper[:n], powers[1], ranges.upper[n:], flow])
        held = self.grid.held  # set, not computed: no rounding
        low[held], high[held] = enclosure.region.magnitudes[:, held]
        margin = np.minimum(_down(low - self.lower), _down(self.upper - high))
        return Enclosed(low, high, margin, linear, along)


@dataclass(frozen=True, eq=False)
class Enclosed:
    """Ranges (K,), margins (K,) rounded down, in p.u. and rad, and the linear functions that they are of."""

    lower: Array
    upper: Array
    margin: Array
    linear: Affine  # of magnitudes, slack, reactive powers and angles
    flows: Affine  # of |S|

    def row(self, limits: Limits, k: int) -> tuple[Array, Array] | None:
        """The coefficients (N,) and (n + 2m,) of what limit k is about; none where it is given."""
        n, after = limits.grid.case.num_buses, limits._after
        if after.start <= k < after.stop:
            return None
        at = k if k < n else k - (after.stop - after.start)
        part, at = (self.linear, at) if at < len(self.linear.rest) else (self.flows, at - len(self.linear.rest))
        return part.linear.middle[at], part.noise.middle[at]


def _down(difference: Array) -> Array:
    """At most the real differences (K,) of two float64 numbers each; 0 and the distance of no limit are exact."""
    found: Array = np.where((difference == 0) | (difference == np.inf), difference, np.nextafter(difference, -np.inf))
    return np.where(np.isnan(found), -np.inf, found)


def _combined(ends: Affine, k: int, cos: Array, sin: Array) -> Affine:
    """cos (k,) times the first k functions and sin (k,) times the others."""
    from milpverify.acopf.dispatch.enclosure import Affine

    def of(part: Balls) -> Balls:
        shape = (-1, *[1] * (len(part.shape) - 1))
        return part[:k] * exactly(cos.reshape(shape)) + part[k:] * exactly(sin.reshape(shape))

    rest = (np.abs(cos) * ends.rest[:k] + np.abs(sin) * ends.rest[k:]) * SPARE
    return Affine(of(ends.constant), of(ends.linear), of(ends.noise), rest)


def limits_of(grid: Grid) -> Limits:
    """The limits of a case, in the order of `Limits`."""
    case, n, m = grid.case, grid.case.num_buses, len(grid.case.branches)
    buses, br, gens = case.buses, case.branches, case.generators
    angles = np.flatnonzero(np.isfinite(br.angmin) | np.isfinite(br.angmax))
    rated = np.flatnonzero(np.isfinite(br.rate))
    held = set(grid.held.tolist())
    entries = [
        Limit(VOLTAGE, case.bus_name(i), i, "p.u.", low, high, i in held)
        for i, (low, high) in enumerate(zip(buses.vmin.tolist(), buses.vmax.tolist(), strict=True))
    ]
    entries += [
        Limit(ACTIVE_GENERATION, case.generator_name(g), g, "p.u.", float(gens.pmin[g]), float(gens.pmax[g]), True)
        for g in grid.dispatched.tolist()
    ]
    entries.append(_total(case, ACTIVE_GENERATION, grid.slack, gens.pmin, gens.pmax))
    entries += [_total(case, REACTIVE_GENERATION, i, gens.qmin, gens.qmax) for i in grid.held.tolist()]
    entries += [Limit(ANGLE_DIFFERENCE, case.branch_name(k), k, "rad", float(br.angmin[k]), float(br.angmax[k])) for k in angles.tolist()]
    for kind in (FLOW_FROM, FLOW_TO):
        entries += [Limit(kind, case.branch_name(k), k, "p.u.", -math.inf, float(br.rate[k])) for k in rated.tolist()]

    drawn = np.concatenate([[grid.slack], n + grid.held])
    count = n + len(drawn) + len(angles)
    z = Balls(np.zeros((count, n + 2 * m)), np.zeros((count, n + 2 * m)))
    x, p = np.zeros((count, 2 * n)), np.zeros((count, 3 * n))
    x[np.arange(n), n + np.arange(n)] = 1.0
    at = np.arange(n, n + len(drawn))
    z.middle[at], z.radius[at] = grid.balances.middle[drawn], grid.balances.radius[drawn]
    p[at, drawn] = -1.0  # what is drawn, and the load
    at = np.arange(n + len(drawn), count)
    x[at, br.f[angles]], x[at, br.t[angles]] = 1.0, -1.0
    ends = [_flow_rows(grid, np.concatenate([first * m + rated, (first + 2) * m + rated])) for first in (0, 1)]
    lower, upper, given = (np.array([getattr(each, name) for each in entries]) for name in ("lower", "upper", "given"))
    return Limits(grid, tuple(entries), Rows(z, x, p), ends[0], ends[1], lower, upper, given)


def _flow_rows(grid: Grid, index: Index) -> Rows:
    n = grid.case.num_buses
    return Rows(grid.flows[index], np.zeros((len(index), 2 * n)), np.zeros((len(index), 3 * n)))


def _total(case: Case, kind: str, bus: int, lower: Array, upper: Array) -> Limit:
    """The limits of all generators at a bus together."""
    at = np.flatnonzero(case.generators.bus == bus)
    if len(at) == 1:
        return Limit(kind, case.generator_name(int(at[0])), int(at[0]), "p.u.", float(lower[at[0]]), float(upper[at[0]]))
    return Limit(kind, f"generators at {case.bus_name(bus)}", int(at[0]), "p.u.", math.fsum(lower[at]), math.fsum(upper[at]))
