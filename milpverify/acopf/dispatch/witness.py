"""Loads whose power flow violates a limit: judged, proved, and reproduced by pypower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.acopf.dispatch.linking import at_loads, leads_to, parameters
from milpverify.acopf.dispatch.newton import solve
from milpverify.acopf.points.existence import Existence, prove_existence
from milpverify.acopf.points.point import Point
from milpverify.result import json_number

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.dispatch.enclosure import Enclosure
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.dispatch.limits import Limit, Limits
    from milpverify.acopf.dispatch.policy import Policy
    from milpverify.acopf.points.power_flow import PowerFlow
    from milpverify.config import Deadline

# What counts as the same power flow: a violation that is not proved rests on it.
SAME: Final = 1e-6  # p.u.: how far pypower's voltages may be from ours
WAY: Final = 100  # steps on the way from the base case
FARTHEST: Final = 0.05  # p.u. and rad: how far voltages may move in one of them


@dataclass(frozen=True, eq=False)
class Violation:
    """Loads of the box, their power flow, and the limit that it violates.

    `point` has the loads, the set points and what follows from them; `value` is what is limited, there, and `margin` its (negative)
    distance to the limit. `proved`: an exact power flow lies beside the point and violates the limit by more than the tolerance, in outward
    rounding. `continuous`: it was proved to be the base case's, followed to these loads; otherwise Newton's method followed it.
    `existence` is what Krawczyk's test, in ball arithmetic, says of this power flow. `power_flow` is pypower's, from the base case's
    voltages on; it `reproduces` the point, and the violation.
    """

    limit: Limit
    point: Point
    value: float
    margin: float
    proved: bool
    continuous: bool
    existence: Existence
    power_flow: PowerFlow
    reproduced: bool

    def __str__(self) -> str:
        beyond = f"{self.limit} is {self.value:.6g}, {-self.margin:.3g} {self.limit.unit} beyond its limit"
        how = "proved in outward rounding" if self.proved else "in float64"
        way = "followed from the base case by proof" if self.continuous else "followed from the base case numerically"
        return f"{beyond}: {how}, {way}, {'reproduced' if self.reproduced else 'not reproduced'} by pypower"

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            "limit": str(self.limit),
            "value": self.value,
            "margin": json_number(self.margin),
            "proved": self.proved,
            "continuous": self.continuous,
            "reproduced": self.reproduced,
            "existence": self.existence.to_dict(),
            "point": self.point.to_dict(),
        }


def point_of(grid: Grid, x: Array, pg: Array, loads: Array) -> Point:
    """A power flow x (2n,) as a point: what a bus with several generators has to generate goes to them by their ranges.

    Args:
        grid: what is held.
        x: (2n,) angles, rad, and magnitudes, p.u.
        pg: (g,) p.u.; that of the slack bus is not used.
        loads: (2n,) pd and qd, p.u.
    """
    case, n = grid.case, grid.case.num_buses
    gens = case.generators
    drawn = grid.products(x) @ grid.balances.middle.T + loads
    pg = pg.copy()
    at = np.flatnonzero(gens.bus == grid.slack)
    pg[at] = _shared(float(drawn[grid.slack]), gens.pmin[at], gens.pmax[at])
    qg = np.zeros(len(gens))
    for i in grid.held.tolist():
        at = np.flatnonzero(gens.bus == i)
        qg[at] = _shared(float(drawn[n + i]), gens.qmin[at], gens.qmax[at])
    va = x[:n] - x[case.reference]
    return Point(case, x[n:], va, pg, qg, loads[:n], loads[n:])


def _shared(total: float, lower: Array, upper: Array) -> Array:
    """A total over units at the same place of their ranges; equally where a range is infinite."""
    width = upper - lower
    if len(lower) == 1 or not np.isfinite(width).all() or not width.sum() > 0:
        return np.full(len(lower), total / len(lower))
    found: Array = lower + (total - lower.sum()) / width.sum() * width
    return found


def witness(
    grid: Grid,
    limits: Limits,
    policy: Policy,
    loads: Array,
    found: tuple[int, Array],
    base: tuple[Array, Enclosure | None, Enclosure | None],
    tolerance: float,
    deadline: Deadline,
) -> Violation | None:
    """What is proved of a violation that an attack found; None where neither a proof nor pypower reproduces it.

    Args:
        grid: what is held.
        limits: all of them.
        policy: the set points.
        loads: (2n,) p.u.
        found: the limit and the power flow (2n,) there, rad and p.u.
        base: the loads (2n,) that all is followed from, the enclosure of their power flow, and one over all loads that holds it, or None.
        tolerance: p.u. and rad: what is violated by no more does not count.
        deadline: ends the proof of continuity.
    """
    k, x = found
    gens = grid.case.generators
    at = at_loads(grid, policy, loads, x)
    x = x if at is None else at.x
    pg, _ = policy.set_points(loads[None])
    point = point_of(grid, x, pg[0], loads)
    value = float(limits.values(x[None], parameters(grid, policy, loads)[None], pg)[0, k])
    limit = limits.entries[k]
    margin = min(value - limit.lower, limit.upper - value)
    proved = continuous = False
    start, first, whole = base
    if at is not None:
        ranges = limits.enclosed(at)
        proved = bool(ranges.lower[k] - limit.upper > tolerance or limit.lower - ranges.upper[k] > tolerance)
        if proved and whole is not None:
            continuous = whole.contains(at)
        if proved and not continuous and first is not None:
            continuous = leads_to(grid, policy, first, at, (start, loads), deadline)
    if not continuous and (first is None or not reached(grid, policy, start, first.x, loads, x)):
        return None
    one = np.array([int(np.flatnonzero(gens.bus == i)[0]) for i in grid.held.tolist()])
    solved = int(np.flatnonzero(gens.bus == grid.slack)[0])
    existence = prove_existence(point, free=(grid.free, np.concatenate([[solved], len(gens) + one])))
    flow = point.power_flow()
    again = _value(grid, limits, flow.point)[k]
    beyond = min(again - limit.lower, limit.upper - again) < -tolerance / 2
    reproduced = bool(flow.converged and flow.difference <= SAME and beyond)
    if not (proved or reproduced) or not margin < -tolerance:
        return None
    return Violation(limit, point, value, margin, proved, continuous, existence, flow, reproduced)


def reached(grid: Grid, policy: Policy, start: Array, x: Array, loads: Array, target: Array) -> bool:
    """Whether small steps of Newton's method lead from the base case's power flow to this one.

    Args:
        grid: what is held.
        policy: the set points.
        start: (2n,) the base case's loads, p.u.
        x: (2n,) its power flow, rad and p.u.
        loads: (2n,) those of the other power flow.
        target: (2n,) that power flow.
    """
    for share in np.linspace(0.0, 1.0, WAY + 1)[1:]:
        found = solve(grid, parameters(grid, policy, start + share * (loads - start)), x)
        if found is None or np.abs(found - x).max() > FARTHEST:
            return False
        x = found
    return bool(np.abs(x - target).max() <= SAME)


def _value(grid: Grid, limits: Limits, point: Any) -> Array:
    """(K,) what is limited, at a point of whatever origin."""
    loads = np.concatenate([point.pd, point.qd])
    n = grid.case.num_buses
    x, p = np.concatenate([point.va, point.vm]), grid.parameters(point.pg, point.vm, loads[:n], loads[n:])
    found: Array = limits.values(x[None], p[None], point.pg[None])[0]
    return found
