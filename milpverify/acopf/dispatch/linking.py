"""Proofs that enclosures are of one and the same power flow, which is continuous in the loads.

Every enclosure has for each of its loads exactly one power flow, a continuous function of them (`enclosure`). Two of them over boxes that
meet agree on all that the boxes have in common, which is convex, as soon as they agree at one load: where they agree is closed, and open,
since at such a load both are the only solution near by. That they agree at a load is seen from an enclosure of it alone that lies in the
sets of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from milpverify.acopf.dispatch.enclosure import Enclosure, NotEnclosed, Region, enclose
from milpverify.acopf.dispatch.newton import follow, solve
from milpverify.acopf.dispatch.policy import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.acopf.case import Array
    from milpverify.acopf.dispatch.grid import Grid
    from milpverify.acopf.dispatch.policy import Policy
    from milpverify.config import Deadline


def parameters(grid: Grid, policy: Policy, loads: Array) -> Array:
    """p (3n,) at loads (2n,), in float64."""
    n = grid.case.num_buses
    pg, vm = policy.set_points(loads[None])
    found: Array = grid.parameters(pg[0], vm[0], loads[:n], loads[n:])
    return found


def at_loads(grid: Grid, policy: Policy, loads: Array, x: Array) -> Enclosure | None:
    """The power flow at one load (2n,), from one near by (2n,)."""
    found = solve(grid, parameters(grid, policy, loads), x)
    return None if found is None else over(grid, policy, Box(loads, loads), found, grid.tuning.least)


def over(grid: Grid, policy: Policy, box: Box, x: Array, least: float | None = None) -> Enclosure | None:
    """The power flows over a box, around one (2n,) in its middle; None where nothing is proved."""
    return _enclosed(grid, policy.region(box), x, least)


def _enclosed(grid: Grid, region: Region, x: Array, least: float | None = None) -> Enclosure | None:
    try:
        return enclose(grid, region, x, least)
    except NotEnclosed:
        return None


def agree(grid: Grid, policy: Policy, one: Enclosure, other: Enclosure, loads: Array, x: Array) -> bool:
    """Whether two enclosures over boxes that hold these loads (2n,) are of the same power flow there, which is near x (2n,)."""
    between = at_loads(grid, policy, loads, x)
    return between is not None and one.contains(between) and other.contains(between)


def all_one(grid: Grid, policy: Policy, parts: Sequence[tuple[Box, Enclosure]]) -> bool:
    """Whether enclosures over boxes that make up a box are all of the same power flow: any two agree where their boxes meet."""
    for k, (box, one) in enumerate(parts):
        for other_box, other in parts[:k]:
            common = box.meet(other_box)
            if common is None:
                continue
            start = follow(grid, parameters(grid, policy, box.middle), one.x, parameters(grid, policy, common.middle))
            if start is None or not agree(grid, policy, one, other, common.middle, start):
                return False
    return True


def leads_to(grid: Grid, policy: Policy, first: Enclosure, last: Enclosure, ends: tuple[Array, Array], deadline: Deadline) -> bool:
    """Whether the power flow at the first of two loads (2n,), followed straight to the other, is proved to become the last."""

    def way(a: Array, at_a: Enclosure, b: Array, at_b: Enclosure, depth: int) -> bool:
        if deadline.expired():
            return False
        middle = a / 2 + b / 2
        between = at_loads(grid, policy, middle, at_a.x / 2 + at_b.x / 2)
        if between is None:
            return False
        whole = _enclosed(grid, policy.way(a, b), between.x)
        if whole is not None and whole.contains(at_a) and whole.contains(at_b):
            return True
        return depth < grid.tuning.deepest and way(a, at_a, middle, between, depth + 1) and way(middle, between, b, at_b, depth + 1)

    return way(ends[0], first, ends[1], last, 0)
