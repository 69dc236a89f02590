"""Proofs checked in exact rationals, without a solver.

Every linear program is rebuilt from the case and from the ranges that have been proved so far, its irrational coefficients rounded
outwards, and the multipliers are believed nothing: weak duality turns them into a bound, and whatever that is, is compared with the claim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.acopf.admittance import admittances
from milpverify.acopf.proving.proof import Leaf, Multipliers, Node, Proof, Statement, Step
from milpverify.acopf.relaxation.arithmetics import ENDLESS, RATIONALS, Values
from milpverify.acopf.relaxation.columns import Question
from milpverify.acopf.relaxation.ranges import Ranges
from milpverify.acopf.relaxation.relaxation import Relaxation
from milpverify.acopf.relaxation.rows import Rows, contradictory

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.acopf.case import Case
    from milpverify.acopf.loads import Loads
    from milpverify.acopf.relaxation.cuts import Cuts

LARGEST: Final = 2.0**100  # p.u., rad or $/h: numbers beyond it are refused


@dataclass(frozen=True)
class Recheck:
    """Whether a proof holds, and of what, or why not; true if and only if it does. `stopped`: the check did not come to an end."""

    accepted: bool
    message: str
    stopped: bool = False

    def __bool__(self) -> bool:
        return self.accepted

    def __str__(self) -> str:
        return f"{'accepted' if self.accepted else 'rejected'}\n{self.message}"


class _RejectedError(Exception):
    """The proof does not prove what it claims."""


class _Stopped(Exception):
    """The caller has no more time."""


def recheck(case: Case, proof: Proof, loads: Loads | None = None, stop: Callable[[], bool] | None = None) -> Recheck:
    """Check a proof against a case.

    Args:
        case: what it is about.
        proof: what is claimed, and why.
        loads: these instead of the proof's own, to check that it is about them.
        stop: asked now and then; a true answer ends the check, which then accepts nothing.
    """
    if loads is not None:
        proof = replace(proof, loads=loads.ranges(case))
    try:
        _Checker(case, proof, stop or (lambda: False)).check()
    except _Stopped:
        return Recheck(False, "the check was stopped", stopped=True)
    except _RejectedError as error:
        return Recheck(False, str(error))
    except RecursionError:
        return Recheck(False, "the boxes are nested too deeply")
    boxes = proof.root.nodes()
    return Recheck(True, f"{proof.claim}: {boxes} {'box' if boxes == 1 else 'boxes'}, {_programs(proof.root)} linear programs")


def question_of(case: Case, proof: Proof) -> Question:
    """The question that a proof answers."""
    growth = (proof.cutoff, math.inf) if proof.statement is Statement.GROWTH else None
    return Question(case, proof.loads, growth, proof.tolerance, proof.statement is Statement.COST)


def _programs(node: Node) -> int:
    own = sum(len(step.deductions) for step in node.steps) + int(node.leaf is not None and node.leaf.multipliers is not None)
    return own + sum(_programs(child) for child in (node.below, node.above) if child is not None)


class _Checker:
    """The check of one proof; `lower` and `upper` are ranges of all columns, (columns,) rationals each."""

    def __init__(self, case: Case, proof: Proof, stop: Callable[[], bool]) -> None:
        self.proof, self._stop = proof, stop
        n = case.num_buses
        if any(part.shape != (n,) or not np.isfinite(part).all() for part in proof.loads):
            raise _RejectedError(f"the proof's loads are not those of {n} buses")
        if (proof.loads[0] > proof.loads[1]).any() or (proof.loads[2] > proof.loads[3]).any():
            raise _RejectedError("there is nothing in a range of the loads")
        if not 0.0 <= proof.tolerance < 0.5 or math.isnan(proof.cutoff) or not math.isfinite(proof.bound):
            raise _RejectedError("the tolerance, the cutoff or the bound is no sensible number")
        if proof.statement is Statement.GROWTH and not math.isfinite(proof.cutoff):
            raise _RejectedError("growth needs a finite cutoff")
        own = (case.buses.pd, case.buses.pd, case.buses.qd, case.buses.qd)
        if proof.statement is Statement.GROWTH and any((part != mine).any() for part, mine in zip(proof.loads, own, strict=True)):
            raise _RejectedError("how far loads grow is proved of the case's own loads, not of other ones")
        _refuse_extremes(case, proof.loads)
        self.relaxation = Relaxation(question_of(case, proof), RATIONALS)
        self.ranges = Ranges(self.relaxation)

    def check(self) -> None:
        """Raise _RejectedError unless the claim is proved."""
        lower, upper = self.ranges.limits()
        statement, unit = self.proof.statement, self.relaxation.unit
        if statement is Statement.COST and math.isfinite(self.proof.cutoff):
            total = self.relaxation.columns.total
            upper[total] = np.minimum(upper[total], RATIONALS.of([self.proof.cutoff]) / RATIONALS.of([unit]))
        proved = self._bound(self.proof.root, lower, upper)
        claimed = RATIONALS.of([self.proof.bound])[0]
        match statement:
            case Statement.INFEASIBLE:
                holds = proved is None
            case Statement.COST:
                # a point dearer than the cutoff is not in any box
                within = not math.isfinite(self.proof.cutoff) or self.proof.bound <= self.proof.cutoff
                holds = within and (proved is None or proved * RATIONALS.of([unit])[0] >= claimed)
            case Statement.GROWTH:
                holds = self.proof.bound >= self.proof.cutoff and (proved is None or -proved <= claimed)
        if not holds:
            found = "nothing is refuted" if statement is Statement.INFEASIBLE or proved is None else f"proved is {_shown(proved)}"
            raise _RejectedError(f"the boxes do not prove the claim: {found}")

    def _bound(self, node: Node, lower: Values, upper: Values) -> Any:
        """The objective's proved bound over a box, None for one that is refuted."""
        if self._stop():
            raise _Stopped
        lower, upper = self.ranges.settled(lower, upper)
        for step in node.steps:
            if contradictory(lower, upper):
                return None
            lower, upper = self.ranges.settled(*self._deduced(step, lower, upper))
        if contradictory(lower, upper):
            return None
        if node.below is not None and node.above is not None:
            if not 0 <= node.column < len(lower) or not math.isfinite(node.at):
                raise _RejectedError(f"a split of column {node.column} at {node.at}")
            at, low, high = RATIONALS.of([node.at])[0], lower.copy(), upper.copy()
            high[node.column], low[node.column] = min(at, high[node.column]), max(at, low[node.column])
            parts = [self._bound(node.below, lower, high), self._bound(node.above, low, upper)]
            return min((part for part in parts if part is not None), default=None)
        if node.leaf is None:
            raise _RejectedError("a box was left open")
        return self._closed(node.leaf, lower, upper)

    def _deduced(self, step: Step, lower: Values, upper: Values) -> tuple[Values, Values]:
        rows = self._rows(step.cuts, lower, upper)
        low, high = lower.copy(), upper.copy()
        one = RATIONALS.of(np.ones(1))[0]
        for d in step.deductions:
            if self._stop():
                raise _Stopped
            if not 0 <= d.column < len(lower) or not math.isfinite(d.value):
                raise _RejectedError(f"a deduction about column {d.column}")
            proved = _weak_duality({d.column: -one if d.upper else one}, d.multipliers, rows, lower, upper)
            value = RATIONALS.of([d.value])[0]
            if proved < (-value if d.upper else value):
                raise _RejectedError(f"column {d.column} is not proved to be at {'most' if d.upper else 'least'} {d.value}")
            if d.upper:
                high[d.column] = min(high[d.column], value)
            else:
                low[d.column] = max(low[d.column], value)
        return low, high

    def _closed(self, leaf: Leaf, lower: Values, upper: Values) -> Any:
        """None for a leaf that its multipliers refute, else the objective's end of its ranges."""
        if leaf.multipliers is not None:
            if _weak_duality({}, leaf.multipliers, self._rows(leaf.cuts, lower, upper), lower, upper) <= 0:
                raise _RejectedError("multipliers do not refute a box")
            return None
        columns = self.relaxation.columns
        match self.proof.statement:
            case Statement.INFEASIBLE:
                raise _RejectedError("a box is neither refuted nor empty")
            case Statement.COST:
                end = lower[columns.total[0]]
            case Statement.GROWTH:
                end = -upper[columns.growth[0]]
        if abs(end) >= int(ENDLESS):
            raise _RejectedError("a box has no bound")
        return end

    def _rows(self, cuts: Cuts, lower: Values, upper: Values) -> Rows:
        columns = self.relaxation.columns
        generators = len(columns.price)
        places = ((cuts.pair, len(columns.pairs.i)), (cuts.flow, len(columns.rated)), (cuts.end, 2), (cuts.price, generators))
        if any(((part < 0) | (part >= count)).any() for part, count in places):
            raise _RejectedError("a plane of a cone that there is not")
        if not all(np.isfinite(part).all() for part in (cuts.pair_direction, cuts.flow_direction, cuts.at)):
            raise _RejectedError("a plane that is not finite")
        for directions in (cuts.pair_direction, cuts.flow_direction):
            exact = RATIONALS.of(directions)
            if ((exact * exact).sum(axis=1) > 1).any():
                raise _RejectedError("a plane's direction is longer than 1")
        return self.relaxation.rows(lower, upper, cuts)


def _shown(value: Any) -> str:
    """A rational for people."""
    return f"{float(value):.12g} of the objective" if abs(value) < int(ENDLESS) else "beyond all bounds"


def _refuse_extremes(case: Case, loads: tuple[Any, ...]) -> None:
    """What is as large as this could come near the number that stands for infinity; and what `Case` promises is needed."""
    buses, br, gen = case.buses, case.branches, case.generators
    middle, radius = admittances(case).flows()
    finite = (*loads, buses.pd, buses.qd, buses.gs, buses.bs, buses.vmin, buses.vmax, gen.c2, gen.c1, gen.c0, middle, radius)
    ends = (gen.pmin, gen.pmax, gen.qmin, gen.qmax, br.rate, br.angmin, br.angmax)
    bad = any(not (np.abs(part) <= LARGEST).all() for part in finite)
    if bad or any(not ((np.abs(part) <= LARGEST) | np.isinf(part)).all() for part in ends):
        raise _RejectedError(f"a number of the case is beyond {LARGEST:.3g}, or none")
    if (gen.c2 < 0).any() or (br.f == br.t).any():
        raise _RejectedError("the case has a concave cost, or a branch from a bus to itself")


def _weak_duality(objective: dict[int, Any], multipliers: Multipliers, rows: Rows, lower: Values, upper: Values) -> Any:
    """sum y_i (row_lower_i if y_i > 0 else row_upper_i) + sum_j min(r_j v_j) over the box, with r = objective - rows^T y; all exact."""
    endless = int(ENDLESS)
    reduced, total = dict(objective), RATIONALS.of(np.zeros(1))[0]
    zero = total
    if ((multipliers.rows < 0) | (multipliers.rows >= len(rows.lower))).any():
        raise _RejectedError("a multiplier of a row that there is not")
    for i, y in zip(multipliers.rows.tolist(), RATIONALS.of(multipliers.values).tolist(), strict=True):
        end = rows.lower[i] if y > 0 else rows.upper[i]
        if y != 0 and abs(end) >= endless:
            raise _RejectedError(f"the multiplier of row {i} has the wrong sign")
        total += y * end
        for k in range(int(rows.start[i]), int(rows.start[i + 1])):
            j = int(rows.column[k])
            reduced[j] = reduced.get(j, zero) - y * rows.value[k]
    for j, r in reduced.items():
        end = lower[j] if r > 0 else upper[j]
        if r != 0 and abs(end) >= endless:
            raise _RejectedError(f"column {j} has no bound on the side where one is needed")
        total += r * end
    return total
