"""Linear programs over a relaxation, asked of HiGHS in a process of its own; what they prove comes from their multipliers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.proving.proof import Multipliers
from milpverify.encode.model import elastic
from milpverify.solvers.base import Limits
from milpverify.solvers.model import Model, Sweep
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.relaxation.cuts import Cuts
    from milpverify.acopf.relaxation.relaxation import Relaxation
    from milpverify.config import Deadline
    from milpverify.solvers.process import SolverProcess


class TighteningTuning(Tuning):
    """How far the relaxation over one box is solved and tightened; what is proved comes from multipliers, whatever these numbers are."""

    planes: int = 30
    """Rounds of tangent planes for one linear program."""
    stalled: float = 1e-6
    slow: float = 0.01
    """From the sixth round on, planes are left where one gains less than this share of the bound and this one of what is missing to the
    target."""
    violated: float = 1e-7
    loose: float = 1e-3
    """p.u., or units of cost: planes violated by less than this by a solution are left, and by those of a sweep to later."""
    tight: float = 1e-2
    """Planes further than this from a solution are dropped."""
    worthwhile: float = 2e-3
    """The share of its range that a deduction takes off at least."""
    gain: float = 0.05
    narrowed: float = 0.2
    """Rounds that gain less than this share of what is missing to the target are left to branching where they take less than this share
    off the ranges, too."""
    settled: float = 1e-7
    """p.u. or rad: narrower ranges are left."""
    sweep_share: float = 0.5
    """Of the time that is left, what a sweep over ranges takes at most, so that there is some for what follows from it."""
    negligible: float = 1e-11
    """Multipliers this small beside the largest are left out of a proof, which then says what it says without them."""


@dataclass(frozen=True, eq=False)
class Box:
    """Ranges of the columns in float64, (columns,) each, in the columns' units (p.u., rad, units of cost)."""

    lower: Array
    upper: Array

    @property
    def empty(self) -> bool:
        """Whether a range has no number in it."""
        return bool((self.lower > self.upper).any())


@dataclass(frozen=True, eq=False)
class Solution:
    """Of a linear program: the solution, and what its multipliers prove of its objective."""

    point: Array  # (columns,)
    bound: float
    multipliers: Multipliers
    basic: NDArray[np.bool_] | None = None  # (columns + rows,)


@dataclass(frozen=True, eq=False)
class Basis:
    """Where a linear program may begin: a solution of one that is much alike, and which columns and rows are basic there."""

    point: Array  # (columns,)
    basic: NDArray[np.bool_]  # (columns + rows,)


class Programs:
    """Asks about one relaxation."""

    def __init__(
        self, relaxation: Relaxation, process: SolverProcess, deadline: Deadline, tuning: TighteningTuning = TighteningTuning()
    ) -> None:
        self.relaxation, self._process, self._deadline, self._tuning = relaxation, process, deadline, tuning
        self.solved = 0

    def model(self, box: Box, cuts: Cuts, objective: Array) -> Model:
        """The linear program over a box, its objective (columns,); equal to the rational rows but for what they are widened by."""
        rows = self.relaxation.rows(box.lower, box.upper, cuts)
        integer = np.zeros(len(objective), dtype=bool)
        return Model(box.lower, box.upper, integer, rows.start, rows.column, rows.value, rows.lower, rows.upper, objective)

    def least(self, box: Box, cuts: Cuts, objective: Array, near: Basis | None = None) -> Solution | None:
        """The least value of an objective (columns,), None where none was found: the box may be empty, or time over."""
        model = _begun(self.model(box, cuts, objective), near)
        outcome = self._process.solve(model, Limits(), self._deadline)
        self.solved += 1
        if outcome.point is None or outcome.multipliers is None:
            return None
        return replace(self._proved(model, objective, outcome.point, outcome.multipliers), basic=outcome.basic)

    def refute(self, box: Box, cuts: Cuts) -> Multipliers | None:
        """Multipliers with which the rows contradict the box (Farkas), from those of the least violation of all rows."""
        model = self.model(box, cuts, np.zeros(len(box.lower)))
        outcome = self._process.solve(elastic(model), Limits(), self._deadline)
        self.solved += 1
        if outcome.multipliers is None:
            return None
        below, above = np.isfinite(model.row_lower), np.isfinite(model.row_upper)
        multipliers = np.zeros(model.num_rows)
        multipliers[below] += outcome.multipliers[: below.sum()]
        multipliers[above] += outcome.multipliers[below.sum() :]
        proved = self._proved(model, model.objective, model.lower, multipliers)
        return proved.multipliers if proved.bound > 0.0 else None

    def sweep(
        self, box: Box, cuts: Cuts, columns: Index, sides: Array, near: Basis | None = None
    ) -> tuple[list[tuple[int, Solution]], bool]:
        """The least sides[k] v[columns[k]], for each k that needed a linear program, and whether HiGHS says that there is no v.

        It takes `tuning.sweep_share` of the time that is left at most.

        Args:
            box: ranges of all columns.
            cuts: tangent planes.
            columns: (k,) of the relaxation.
            sides: (k,) 1 for the least value, -1 for the largest one.
            near: where the first linear program begins.
        """
        model = _begun(self.model(box, cuts, np.zeros(len(box.lower))), near)
        limits = Limits(seconds=self._tuning.sweep_share * self._deadline.remaining())
        outcome = self._process.solve(Sweep(model, columns, sides, math.inf, certified=True), limits, self._deadline)
        if outcome.solved is None or outcome.points is None or outcome.multipliers is None:
            return [], outcome.point is None and not self._deadline.expired()
        found = []
        for k, point, multipliers in zip(outcome.solved.tolist(), outcome.points, outcome.multipliers, strict=True):
            objective = np.zeros(len(box.lower))
            objective[columns[k]] = sides[k]
            found.append((k, self._proved(model, objective, point, multipliers)))
        self.solved += len(found)
        return found, False

    def _proved(self, model: Model, objective: Array, point: Array, multipliers: Array) -> Solution:
        """What is left of the multipliers without the negligible ones and those of the wrong sign, and what that proves."""
        ends = np.where(multipliers > 0, model.row_lower, model.row_upper)
        size = np.abs(multipliers)
        used = np.flatnonzero(np.isfinite(ends) & (size > self._tuning.negligible * size.max(initial=0.0)))
        kept = np.zeros(model.num_rows)
        kept[used] = multipliers[used]
        return Solution(point, model.dual_value(objective, kept), Multipliers(used, kept[used]))


def _begun(model: Model, near: Basis | None) -> Model:
    """The model, to be begun at a basis."""
    return model if near is None else replace(model, start=near.point, basic=near.basic)
