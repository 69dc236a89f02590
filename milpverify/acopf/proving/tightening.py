"""Bounds over one box: tangent planes until nothing is violated, then the ranges of voltages and angles, and again.

Every range is the least and the largest value of a column over the linear relaxation (optimality-based bound tightening), under the
row that a point has to beat the best one known. The narrower the ranges, the closer the relaxation, the narrower the ranges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.proving.programs import Box, Programs, Solution
from milpverify.acopf.proving.proof import Deduction, Leaf, Multipliers, Node, Step
from milpverify.acopf.relaxation.cuts import Cuts, no_cuts
from milpverify.acopf.relaxation.ranges import Ranges
from milpverify.acopf.relaxation.separation import separate

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.relaxation.relaxation import Relaxation
    from milpverify.config import Deadline

PLANES = 30  # rounds of tangent planes for one linear program
STALLED = 1e-6  # relative gain of a round, from the sixth on, below which planes are left,
SLOW = 0.01  # and the share of what is missing to the target
TIGHT = 1e-2  # planes further than this from a solution are dropped
LOOSE = 1e-3  # planes violated by less than this by the solutions of a sweep are left to later
WORTHWHILE = 2e-3  # share of its range that a deduction takes off
GAIN = 0.05  # of what is missing to the target: rounds that gain less are left to branching,
NARROWED = 0.2  # and so are those that take less than this share off the ranges
SETTLED = 1e-7  # p.u. or rad: narrower ranges are left


@dataclass(eq=False)
class Region:
    """A box of operating points under examination, its planes, and its place in the proof.

    `stale`: the proof's multipliers belong to another box, of which `before` is the one that the last step left.
    """

    box: Box
    cuts: Cuts = field(default_factory=no_cuts)
    node: Node = field(default_factory=Node)
    bound: float = -math.inf
    point: Array | None = None
    settled: bool = False
    bounded: bool = False
    stale: bool = True
    before: Box | None = None

    def restrict(self, box: Box) -> None:
        """Another box, whose ranges have not been settled, nor its relaxation solved."""
        self.box, self.settled, self.bounded, self.stale = box, False, False, True

    def take_back(self) -> None:
        """Without the last step, if no multipliers were found for the box that it left: the rows of a narrower box are other ones."""
        if self.stale and self.before is not None:
            self.node.steps.pop()
            self.box, self.settled, self.stale, self.before = self.before, True, False, None

    @property
    def refuted(self) -> bool:
        """Whether nothing is in it."""
        return self.bound == math.inf


class Tightening:
    """Examines regions of one relaxation for the least value of an objective."""

    def __init__(self, relaxation: Relaxation, programs: Programs, objective: Array, deadline: Deadline) -> None:
        self.relaxation, self.programs, self.objective, self.deadline = relaxation, programs, objective, deadline
        self.ranges = Ranges(relaxation)
        self._ranged = np.concatenate([relaxation.columns.w, relaxation.columns.d])

    def settle(self, box: Box) -> Box:
        """What ranges imply for each other."""
        return Box(*self.ranges.settled(box.lower, box.upper))

    def examine(self, region: Region, target: float, rounds: int) -> None:
        """Raise a region's bound, at most to `target`, by so many rounds of tightening at most."""
        self._examine(region, target, rounds)
        region.take_back()

    def _examine(self, region: Region, target: float, rounds: int) -> None:
        narrowed = 0.0
        for k in range(rounds + 1):
            if not region.settled:  # once for each step of the proof, as often as the check does
                region.box, region.settled = self.settle(region.box), True
            if region.box.empty:
                return self._close(region, Leaf(no_cuts(), None, math.inf))
            before = region.bound
            if not region.bounded and not self._bound(region, target):
                return None
            region.bounded = True
            gains = narrowed >= NARROWED or (math.isfinite(target) and region.bound - before >= GAIN * (target - before))
            stalled = k > 0 and not gains
            if region.bound >= target or k == rounds or stalled or self.deadline.expired():
                return None
            widths = region.box.upper - region.box.lower
            if not self._tighten(region):
                return None
            narrowed = 1.0 - float(np.mean(((region.box.upper - region.box.lower) / np.maximum(widths, SETTLED))[self._ranged]))
        return None

    def _close(self, region: Region, leaf: Leaf) -> None:
        region.node.leaf, region.bound, region.stale, region.before = leaf, leaf.bound, False, None

    def _bound(self, region: Region, target: float) -> bool:
        """The relaxation's least objective, planes added where its solution violates them; whether there is anything more to do."""
        last = -math.inf
        for k in range(PLANES):
            solution = self.programs.least(region.box, region.cuts, self.objective)
            if solution is None:
                return self._refute(region)
            region.point = solution.point
            if solution.bound > region.bound or region.stale:
                self._record(region, solution)
            new = separate(self.relaxation, solution.point[None])
            missing = target - solution.bound if math.isfinite(target) else 0.0
            stalled = k > 5 and solution.bound - last < max(STALLED * abs(last), SLOW * missing)
            if not len(new) or stalled or missing < 0.0 or self.deadline.expired():
                return True
            last = solution.bound
            region.cuts = region.cuts + new
        return True

    def _record(self, region: Region, solution: Solution) -> None:
        """Make a solution's multipliers the region's proof."""
        cuts, multipliers = self._used(region.cuts, solution.multipliers)
        self._close(region, Leaf(cuts, multipliers, solution.bound))

    def _refute(self, region: Region) -> bool:
        multipliers = None if self.deadline.expired() else self.programs.refute(region.box, region.cuts)
        if multipliers is not None:
            self._close(region, Leaf(*self._used(region.cuts, multipliers), math.inf))
        return False

    def _tighten(self, region: Region) -> bool:
        """One sweep over voltages and angles; returns whether it took anything off."""
        columns, box = self.relaxation.columns, region.box
        error = errors_of(self.relaxation, region.point)
        at_bus = np.zeros(len(columns.w))
        for end in (columns.pairs.i, columns.pairs.j):
            np.maximum.at(at_bus, end, error)
        parts = []  # where the relaxation errs most comes first, since time may end
        for part, weight in ((columns.w, at_bus), (columns.d, error)):
            wide = (box.upper - box.lower)[part] > SETTLED
            parts.append(part[wide][np.argsort(-weight[wide], kind="stable")])
        which = np.concatenate([part for part in parts for _ in range(2)])  # all least values, then all largest: bases change least
        sides = np.concatenate([np.full(len(part), side) for part in parts for side in (1.0, -1.0)])
        region.cuts = self._near(region, TIGHT)
        found, empty = self.programs.sweep(box, region.cuts, which, sides)
        if empty:
            self._refute(region)
            return False
        lower, upper, deductions = box.lower.copy(), box.upper.copy(), []
        for k, solution in found:
            j, up = int(which[k]), bool(sides[k] < 0)
            old, new = (box.upper[j], -solution.bound) if up else (box.lower[j], solution.bound)
            if abs(new - old) < WORTHWHILE * (box.upper[j] - box.lower[j]) or (new >= old if up else new <= old):
                continue
            (upper if up else lower)[j] = new
            deductions.append((j, up, new, solution.multipliers))
        if not deductions:
            return False
        region.node.steps.append(self._step(region.cuts, deductions))
        region.before = box
        region.restrict(Box(lower, upper))
        points = np.stack([solution.point for _, solution in found])
        region.cuts = region.cuts + separate(self.relaxation, points, LOOSE)
        return True

    def _near(self, region: Region, distance: float) -> Cuts:
        """The planes that pass near the region's solution."""
        if region.point is None or not len(region.cuts):
            return region.cuts
        model = self.programs.model(region.box, region.cuts, self.objective)
        first = model.num_rows - len(region.cuts)
        activity = model.activity(region.point)
        slack = np.minimum(model.row_upper - activity, activity - model.row_lower)[first:]
        return region.cuts.keep(slack < distance)

    def _used(self, cuts: Cuts, multipliers: Multipliers) -> tuple[Cuts, Multipliers]:
        """The planes that have a multiplier, and the multipliers by the places that these have then."""
        step = self._step(cuts, [(0, False, 0.0, multipliers)])
        return step.cuts, step.deductions[0].multipliers

    def _step(self, cuts: Cuts, deductions: list[tuple[int, bool, float, Multipliers]]) -> Step:
        first = self.relaxation.num_fixed
        flagged = np.zeros(len(cuts), dtype=bool)
        for *_, multipliers in deductions:
            flagged[multipliers.rows[multipliers.rows >= first] - first] = True
        place: Index = np.concatenate([np.arange(first), first + np.cumsum(flagged) - 1])
        return Step(
            cuts.keep(flagged),
            tuple(Deduction(j, up, value, Multipliers(place[m.rows], m.values)) for j, up, value, m in deductions),
        )


def errors_of(relaxation: Relaxation, point: Array | None) -> Array:
    """How far a solution is from any voltages, pair by pair (P,): what is missing in c^2 + s^2 = w_i w_j and in s cos(d) = c sin(d)."""
    columns = relaxation.columns
    if point is None:
        return np.zeros(len(columns.d))
    c, s, d = point[columns.c], point[columns.s], point[columns.d]
    product = point[columns.w[columns.pairs.i]] * point[columns.w[columns.pairs.j]]
    error: Array = np.maximum(0.0, product - c * c - s * s) + np.abs(s * np.cos(d) - c * np.sin(d))
    return error
