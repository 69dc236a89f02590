"""Bounds over one box: tangent planes until nothing is violated, then the ranges of voltages and angles, and again.

Every range is the least and the largest value of a column over the linear relaxation (optimality-based bound tightening), under the
row that a point has to beat the best one known. The narrower the ranges, the closer the relaxation, the narrower the ranges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.proving.programs import Basis, Box, Programs, Solution, TighteningTuning
from milpverify.acopf.proving.proof import Deduction, Leaf, Multipliers, Node, Step
from milpverify.acopf.relaxation.cuts import Cuts, no_cuts
from milpverify.acopf.relaxation.ranges import Ranges
from milpverify.acopf.relaxation.separation import separate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.relaxation.relaxation import Relaxation
    from milpverify.config import Deadline


@dataclass(frozen=True, eq=False)
class Goal:
    """What is to be bounded from below: an objective over the columns, which is a column's lower end or minus its upper end.

    Of a network that is to be refuted nothing is bounded: `column` is None, and the objective is there to find plausible solutions.
    """

    objective: Array  # (columns,)
    column: int | None = None
    upper: bool = False

    def bound(self, box: Box) -> float:
        """What the column's range says of the objective."""
        if self.column is None:
            return -math.inf
        return -float(box.upper[self.column]) if self.upper else float(box.lower[self.column])


@dataclass(eq=False)
class Region:
    """A box of operating points under examination, its planes, and its place in the proof.

    `bound` is of the objective over it, +inf where nothing is in it; `begun`, whether its ranges have been settled, and `bounded`,
    whether its relaxation has been solved since they last changed.
    """

    box: Box
    cuts: Cuts = field(default_factory=no_cuts)
    node: Node = field(default_factory=Node)
    bound: float = -math.inf
    point: Array | None = None  # (columns,) a solution of its relaxation
    basic: NDArray[np.bool_] | None = None  # (columns + rows,) of that linear program
    begun: bool = False
    bounded: bool = False

    def restrict(self, box: Box) -> None:
        """Begin anew with another box, before anything was deduced."""
        self.box, self.begun, self.bounded = box, False, False

    def close(self, leaf: Leaf) -> None:
        """End its part of the proof, for now or for good."""
        self.node.leaf, self.bound = leaf, leaf.bound

    def add(self, cuts: Cuts) -> None:
        """More planes, which no solution is at so far."""
        if self.basic is not None:
            first = len(self.basic) - len(self.cuts)
            self.basic = np.concatenate([self.basic[:first], self.cuts.joined(self.basic[first:], cuts, True)])
        self.cuts = self.cuts + cuts

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Some of the planes (planes,)."""
        if self.basic is not None:
            first = len(self.basic) - len(self.cuts)
            whole = bool(self.basic[first:][~which].all())
            self.basic = np.concatenate([self.basic[:first], self.basic[first:][which]]) if whole else None
        self.cuts = self.cuts.keep(which)

    @property
    def basis(self) -> Basis | None:
        """Where its next linear program may begin."""
        return None if self.point is None or self.basic is None else Basis(self.point, self.basic)

    @property
    def refuted(self) -> bool:
        """Whether nothing is in it."""
        return self.bound == math.inf


class Tightening:
    """Examines regions of one relaxation."""

    def __init__(
        self, relaxation: Relaxation, programs: Programs, goal: Goal, deadline: Deadline, tuning: TighteningTuning = TighteningTuning()
    ) -> None:
        self.relaxation, self.programs, self.goal, self.deadline, self._tuning = relaxation, programs, goal, deadline, tuning
        self._ranges = Ranges(relaxation)
        self._ranged = np.concatenate([relaxation.columns.w, relaxation.columns.d])

    def examine(self, region: Region, target: float, rounds: int) -> None:
        """Raise a region's bound, at most to `target`, by so many rounds of tightening at most."""
        self.begin(region)
        tuning, narrowed = self._tuning, 0.0
        for k in range(rounds + 1):
            before = region.bound
            if region.refuted or not (region.bounded or self._bound(region, target)) or region.refuted:
                return
            region.bounded = True
            gains = narrowed >= tuning.narrowed or (math.isfinite(target) and region.bound - before >= tuning.gain * (target - before))
            if region.bound >= target or k == rounds or (k > 0 and not gains) or self.deadline.expired():
                return
            widths = self._widths(region.box)
            if not self._tighten(region):
                return
            narrowed = 1.0 - float(np.mean(self._widths(region.box) / np.maximum(widths, tuning.settled)))

    def _widths(self, box: Box) -> Array:
        """Of the ranges that are tightened."""
        widths: Array = (box.upper - box.lower)[self._ranged]
        return widths

    def begin(self, region: Region) -> None:
        """Settle a region's ranges, if that has not been done."""
        if not region.begun:
            self._settle(region, region.box)
            region.begun = True

    def _settle(self, region: Region, box: Box) -> None:
        """Another box, and what its ranges imply for each other: once at the beginning and after each step, as the check does."""
        region.box, region.bounded = Box(*self._ranges.settled(box.lower, box.upper)), False
        bound = math.inf if region.box.empty else max(region.bound, self.goal.bound(region.box))
        region.close(Leaf(no_cuts(), None, bound))

    def _bound(self, region: Region, target: float) -> bool:
        """The relaxation's least objective, planes added where its solution violates them; whether there is anything more to do."""
        tuning, last, best = self._tuning, -math.inf, None
        for k in range(tuning.planes):
            solution = self.programs.least(region.box, region.cuts, self.goal.objective, region.basis)
            if solution is None:
                self._conclude(region, best)
                return self._refute(region)
            region.point, region.basic = solution.point, solution.basic
            if best is None or solution.bound > best[0].bound:
                best = solution, region.cuts
            new = separate(self.relaxation, solution.point[None], tuning.violated)
            missing = target - solution.bound if math.isfinite(target) else 0.0
            stalled = k > 5 and solution.bound - last < max(tuning.stalled * abs(last), tuning.slow * missing)
            if not len(new) or stalled or missing < 0.0 or self.deadline.expired():
                break
            last = solution.bound
            region.add(new)
        self._conclude(region, best)
        return True

    def _conclude(self, region: Region, best: tuple[Solution, Cuts] | None) -> None:
        """Make the best bound a range of the goal's column."""
        if best is None or best[0].bound <= region.bound:
            return
        solution, cuts = best
        if self.goal.column is None:
            region.bound = solution.bound  # by which regions are ordered, no more
            return
        lower, upper = region.box.lower.copy(), region.box.upper.copy()
        value = -solution.bound if self.goal.upper else solution.bound
        (upper if self.goal.upper else lower)[self.goal.column] = value
        region.node.steps.append(self._step(cuts, [(self.goal.column, self.goal.upper, value, solution.multipliers)]))
        self._settle(region, Box(lower, upper))

    def _refute(self, region: Region) -> bool:
        multipliers = None if self.deadline.expired() else self.programs.refute(region.box, region.cuts)
        if multipliers is not None:
            step = self._step(region.cuts, [(0, False, 0.0, multipliers)])
            region.close(Leaf(step.cuts, step.deductions[0].multipliers, math.inf))
        return False

    def _tighten(self, region: Region) -> bool:
        """One sweep over voltages and angles; returns whether it took anything off."""
        columns, box, tuning = self.relaxation.columns, region.box, self._tuning
        error = errors_of(self.relaxation, region.point)
        at_bus = np.zeros(len(columns.w))
        for end in (columns.pairs.i, columns.pairs.j):
            np.maximum.at(at_bus, end, error)
        parts = []  # where the relaxation errs most comes first, since time may end
        for part, weight in ((columns.w, at_bus), (columns.d, error)):
            wide = (box.upper - box.lower)[part] > tuning.settled
            parts.append(part[wide][np.argsort(-weight[wide], kind="stable")])
        which = np.concatenate([part for part in parts for _ in range(2)])  # all least values, then all largest: bases change least
        sides = np.concatenate([np.full(len(part), side) for part in parts for side in (1.0, -1.0)])
        self._drop(region, tuning.tight)
        found, empty = self.programs.sweep(box, region.cuts, which, sides, region.basis)
        if empty:
            self._refute(region)
            return False
        lower, upper, deductions = box.lower.copy(), box.upper.copy(), []
        for k, solution in found:
            j, up = int(which[k]), bool(sides[k] < 0)
            old, new = (box.upper[j], -solution.bound) if up else (box.lower[j], solution.bound)
            if abs(new - old) < tuning.worthwhile * (box.upper[j] - box.lower[j]) or (new >= old if up else new <= old):
                continue
            (upper if up else lower)[j] = new
            deductions.append((j, up, new, solution.multipliers))
        if not deductions:
            return False
        region.node.steps.append(self._step(region.cuts, deductions))
        self._settle(region, Box(lower, upper))
        points = np.stack([solution.point for _, solution in found])
        region.add(separate(self.relaxation, points, tuning.loose))
        return True

    def _drop(self, region: Region, distance: float) -> None:
        """Leave the planes that pass near the region's solution."""
        if region.point is None or not len(region.cuts):
            return
        model = self.programs.model(region.box, region.cuts, self.goal.objective)
        first = model.num_rows - len(region.cuts)
        activity = model.activity(region.point)
        slack = np.minimum(model.row_upper - activity, activity - model.row_lower)[first:]
        region.keep(slack < distance)

    def _step(self, cuts: Cuts, deductions: list[tuple[int, bool, float, Multipliers]]) -> Step:
        """A step of the proof, with only those planes that have a multiplier."""
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
