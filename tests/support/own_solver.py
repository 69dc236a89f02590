"""A solver that milpverify has never heard of: branch and bound over SciPy's linear programs, as a user's module would hold it."""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import Any

import numpy as np

from milpverify.solvers.base import Capability, Limits, Minimisation, OnProgress, SolveOutcome, Solver, SolverStatus
from milpverify.solvers.model import TOLERANCE, Array, Model

_ENDS = {2: SolverStatus.INFEASIBLE, 3: SolverStatus.UNBOUNDED}


class BestFirst(Solver[Model, SolveOutcome]):
    """Minimises mixed-integer linear models: the box of the least bound is halved at the variable furthest from an integer.

    Bounds of boxes are what multipliers prove; that a box is empty is SciPy's word, so that SCIP has to prove the same
    (`Solver.needs_second`).
    """

    name = "own_solver:BestFirst"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER})

    def licence(self) -> str:
        return "free (BSD), no limits"

    def solve(self, model: Model, limits: Limits, on_progress: OnProgress) -> SolveOutcome:
        solve, nodes, numbers = Minimisation(limits, on_progress), 0, count()
        point, primal = model.start, math.inf
        if point is not None:
            primal = float(model.objective @ point)
            solve.report(-math.inf, primal, nodes, point)
        boxes: list[tuple[float, int, Array, Array]] = [(-math.inf, next(numbers), model.lower, model.upper)]
        status, dual = SolverStatus.OPTIMAL, -math.inf
        while boxes:
            dual = min(boxes[0][0], primal)
            if solve.requested or solve.decided(dual, primal) or (solve.due(dual, primal) and solve.report(dual, primal, nodes)):
                status = SolverStatus.INTERRUPTED
                break
            if solve.left <= 0.0 or nodes == limits.nodes:
                status = SolverStatus.TIME_LIMIT
                break
            if boxes[0][0] >= primal - TOLERANCE:
                break
            _, _, lower, upper = heapq.heappop(boxes)
            nodes += 1
            found = _relaxed(model, lower, upper, solve.left)
            if found.status in _ENDS and nodes == 1:
                status = _ENDS[found.status]
                break
            if found.status == 2:
                continue
            if found.status != 0:
                status, dual = SolverStatus.TIME_LIMIT if solve.left <= 0.0 else SolverStatus.UNKNOWN, min(dual, -math.inf)
                break
            bound = _proved(model, lower, upper, found)
            rounded = np.where(model.integer, np.round(found.x), found.x)
            split = np.where(model.integer & (lower < upper), np.abs(found.x - rounded), -1.0)
            if model.violation(rounded) <= TOLERANCE or (split < 0.0).all():
                if (value := float(model.objective @ rounded)) < primal:
                    point, primal = rounded, value
                    solve.report(min([bound, *(box[0] for box in boxes[:1])]), primal, nodes, point)
                if (split < 0.0).all() or bound >= primal - TOLERANCE:
                    continue
            at = int(split.argmax())
            below, above = upper.copy(), lower.copy()
            below[at] = min(math.floor(found.x[at]), upper[at] - 1.0)
            above[at] = below[at] + 1.0
            heapq.heappush(boxes, (bound, next(numbers), lower, below))
            heapq.heappush(boxes, (bound, next(numbers), above, upper))
        else:
            status, dual = (SolverStatus.INFEASIBLE, -math.inf) if point is None else (SolverStatus.OPTIMAL, primal - TOLERANCE)
        return solve.outcome(status, dual, primal, point, nodes, f"best first: {status.value}")


def _relaxed(model: Model, lower: Array, upper: Array, seconds: float) -> Any:
    """The linear relaxation over a box."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, vstack

    rows = csr_array((model.value, model.column, model.row_start), shape=(model.num_rows, model.num_variables))
    above, below = np.isfinite(model.row_upper), np.isfinite(model.row_lower)
    options = {"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE, "time_limit": max(seconds, 1e-3)}
    return linprog(
        model.objective,
        A_ub=vstack([rows[above], -rows[below]]) if (above | below).any() else None,
        b_ub=np.concatenate([model.row_upper[above], -model.row_lower[below]]) if (above | below).any() else None,
        bounds=np.stack([lower, upper], axis=1),
        method="highs-ds",
        options=options,
    )


def _proved(model: Model, lower: Array, upper: Array, found: Any) -> float:
    """What the multipliers of a linear program prove by weak duality; its optimum where variables have no bounds."""
    if not np.isfinite(np.stack([lower, upper])).all():
        return float(found.fun)
    from dataclasses import replace

    above, below = np.isfinite(model.row_upper), np.isfinite(model.row_lower)
    multipliers, count_above = np.zeros(model.num_rows), int(above.sum())
    if model.num_rows:
        multipliers[above] += found.ineqlin.marginals[:count_above]
        multipliers[below] -= found.ineqlin.marginals[count_above:]
    return min(float(found.fun), replace(model, lower=lower, upper=upper).dual_value(model.objective, multipliers))
