"""Gurobi through gurobipy. The licence that comes with the wheel allows 2000 variables and 2000 rows."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from milpverify.errors import SolverUnavailable
from milpverify.solvers.base import Capability, Limits, Minimisation, OnProgress, SolveOutcome, Solver, SolverStatus
from milpverify.solvers.hosts.gurobi import OVER_LICENCE, add_rows
from milpverify.solvers.model import TOLERANCE, Model

_STATUS = {
    2: SolverStatus.OPTIMAL,
    3: SolverStatus.INFEASIBLE,
    4: SolverStatus.UNBOUNDED,  # infeasible or unbounded
    5: SolverStatus.UNBOUNDED,
    9: SolverStatus.TIME_LIMIT,
    11: SolverStatus.INTERRUPTED,
    15: SolverStatus.TARGET,  # objective or bound target reached
    17: SolverStatus.MEMORY_LIMIT,
}


def status_of(code: int) -> SolverStatus:
    """The status of Gurobi's `SolverStatus` attribute; NUMERIC, SUBOPTIMAL, CUTOFF and whatever is not listed are inconclusive."""
    return _STATUS.get(code, SolverStatus.UNKNOWN)


class Gurobi(Solver[Model, SolveOutcome]):
    """Minimises mixed-integer models, linear or with products and smooth functions, with Gurobi."""

    name = "gurobi"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER, Capability.QUADRATIC, Capability.FUNCTIONS})

    def licence(self) -> str:
        gurobipy: Any = importlib.import_module("gurobipy")
        try:
            with _environment(gurobipy) as env, gurobipy.Model(env=env) as model:
                model.addVars(2001)
                model.update()
                try:
                    model.optimize()
                except gurobipy.GurobiError as error:
                    if error.errno != OVER_LICENCE:
                        raise
                    return "size-limited: 2000 variables and rows, 200 variables with nonlinear terms"
        except gurobipy.GurobiError as error:
            raise SolverUnavailable(f"Gurobi: {error}") from error
        return "full"

    def needs_second(self, model: Model) -> bool:
        """Version 13 cuts off optima of models with products and smooth functions, whatever the tolerances.

        Of products by some 1e-6 of the scale, one random graph in a hundred; of smooth functions by up to a tenth of it, where their ranges
        are narrow.
        """
        return model.quadratic is not None or bool(model.functions)

    def solve(self, model: Model, limits: Limits, on_progress: OnProgress) -> SolveOutcome:
        gurobipy: Any = importlib.import_module("gurobipy")
        try:
            with _environment(gurobipy) as env, gurobipy.Model(env=env) as gurobi:
                return _solve(gurobipy, gurobi, model, limits, on_progress)
        except gurobipy.GurobiError as error:
            if error.errno == OVER_LICENCE:
                size = f"{model.num_variables} variables, {model.num_rows} rows" + (", products or functions" if _nonlinear(model) else "")
                raise SolverUnavailable(f"Gurobi: the model ({size}) is too large for its licence") from error
            if error.errno == 10001:
                return SolveOutcome(SolverStatus.MEMORY_LIMIT, message=f"Gurobi: {error}")
            if error.errno == 10009:
                raise SolverUnavailable(f"Gurobi: {error}") from error
            return SolveOutcome(SolverStatus.UNKNOWN, message=f"Gurobi: {error}")


def _nonlinear(model: Model) -> bool:
    return model.quadratic is not None or bool(model.functions)


def _environment(gurobipy: Any) -> Any:
    env = gurobipy.Env(empty=True)
    env.setParam("OutputFlag", 0)  # before start, which prints the licence
    env.start()
    return env


def _solve(gurobipy: Any, gurobi: Any, model: Model, limits: Limits, on_progress: OnProgress) -> SolveOutcome:
    solve = Minimisation(limits, on_progress)
    kinds = ["I" if flag else "C" for flag in model.integer]
    n = model.num_variables
    low, high, costs = model.lower.tolist(), model.upper.tolist(), model.objective.tolist()
    variables = list(gurobi.addVars(n, lb=low, ub=high, obj=costs, vtype=kinds).values())
    add_rows(gurobipy, gurobi, variables, model)
    if model.start is not None:
        for variable, first in zip(variables, model.start.tolist(), strict=True):
            variable.Start = first
    for name, value in _parameters(limits).items():
        gurobi.setParam(name, value)
    call = gurobipy.GRB.Callback
    boundless = (call.PRESOLVE, call.SIMPLEX, call.BARRIER, call.POLLING)

    def watch(m: Any, where: int) -> None:
        if where == call.MIPSOL:
            point = np.array(m.cbGetSolution(variables), dtype=np.float64)
            primal, dual = m.cbGet(call.MIPSOL_OBJ), _finite(m.cbGet(call.MIPSOL_OBJBND))
            if solve.due(dual, primal, found=True) and solve.report(dual, primal, int(m.cbGet(call.MIPSOL_NODCNT)), point):
                m.terminate()
        elif where == call.MIP:
            primal, dual = m.cbGet(call.MIP_OBJBST), _finite(m.cbGet(call.MIP_OBJBND))
            if solve.due(dual, primal) and solve.report(dual, -_finite(-primal), int(m.cbGet(call.MIP_NODCNT))):
                m.terminate()
        elif where in boundless and solve.due(-math.inf, math.inf) and solve.report(-math.inf, math.inf, 0):
            m.terminate()

    gurobi.setParam("TimeLimit", solve.left)
    gurobi.optimize(watch)
    status = status_of(gurobi.Status)
    tree = bool(model.integer.any()) or _nonlinear(model)
    point, primal, dual = None, math.inf, -math.inf
    if gurobi.SolCount > 0 and status is not SolverStatus.UNBOUNDED:
        point = np.array([v.X for v in variables], dtype=np.float64)
        primal = float(model.objective @ point)
    if tree:
        dual = _finite(getattr(gurobi, "ObjBound", -math.inf))  # absent from a continuous model that was stopped before its root
    elif status is SolverStatus.OPTIMAL:
        dual = float(gurobi.ObjVal)  # a linear program ends with a dual feasible basis
    nodes = int(gurobi.NodeCount) if tree else 0
    return solve.outcome(status, dual, primal, point, nodes, f"Gurobi: status {gurobi.Status}")


def _finite(bound: float) -> float:
    """Gurobi writes -1e100 for no bound; an infinite one proves nothing."""
    return float(bound) if abs(bound) < 1e100 else -math.inf


def _parameters(limits: Limits) -> dict[str, float]:
    return {
        "FeasibilityTol": TOLERANCE,
        "IntFeasTol": TOLERANCE,
        "OptimalityTol": TOLERANCE,
        "BarQCPConvTol": TOLERANCE,  # convex products go to the barrier method, whose bound lies 1e-5 too low by default
        "MIPGap": 0.0,
        "MIPGapAbs": TOLERANCE,
        "IntegralityFocus": 1,
        "Threads": limits.threads,
        "Seed": limits.seed,
        "SoftMemLimit": 0.8 * limits.memory_mb / 1000,  # gigabytes
        "BestBdStop": limits.dual_target,
        "BestObjStop": limits.primal_target,
        **({} if limits.nodes is None else {"NodeLimit": float(limits.nodes)}),
    }
