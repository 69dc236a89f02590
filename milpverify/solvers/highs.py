"""HiGHS through highspy. Sweeps go on from basis to basis.

What it proves of a mixed-integer model has to be proved by a second solver (`needs_second`), so that it counts when HiGHS ends only.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from milpverify.solvers.base import (
    EMPTY_HANDED,
    Capability,
    Limits,
    Minimisation,
    OnProgress,
    SolveOutcome,
    Solver,
    SolverStatus,
    SweepOutcome,
)
from milpverify.solvers.model import TOLERANCE, Model, Sweep

PRIMAL: Final = 4
"""HiGHS's number of the primal simplex method: another objective leaves a basis primal feasible. Networks' sweeps take half of the time."""

_STATUS = {
    "kOptimal": SolverStatus.OPTIMAL,
    "kModelEmpty": SolverStatus.OPTIMAL,
    "kObjectiveTarget": SolverStatus.TARGET,
    "kObjectiveBound": SolverStatus.TARGET,
    "kInfeasible": SolverStatus.INFEASIBLE,
    "kUnbounded": SolverStatus.UNBOUNDED,
    "kUnboundedOrInfeasible": SolverStatus.UNBOUNDED,
    "kTimeLimit": SolverStatus.TIME_LIMIT,
    "kMemoryLimit": SolverStatus.MEMORY_LIMIT,
    "kInterrupt": SolverStatus.INTERRUPTED,
    "kHighsInterrupt": SolverStatus.INTERRUPTED,
}


def status_of(word: str) -> SolverStatus:
    """The status of `HighsModelStatus.name`; errors, iteration limits and unknown words are inconclusive."""
    return _STATUS.get(word, SolverStatus.UNKNOWN)


class Highs(Solver[Model | Sweep, SolveOutcome | SweepOutcome]):
    """Minimises mixed-integer linear models with HiGHS, and many variables over one linear model."""

    name = "highs"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER, Capability.SWEEP})

    def licence(self) -> str:
        return "free (MIT), no limits"

    def needs_second(self, model: Model | Sweep) -> bool:
        """Of mixed-integer models of networks it calls points optimal that are far from it.

        Versions up to 1.15.1 cut off optima (by path cuts, for one: its issue 3171).
        """
        return isinstance(model, Model) and bool(model.integer.any())

    def solve(self, model: Model | Sweep, limits: Limits, on_progress: OnProgress) -> SolveOutcome | SweepOutcome:
        return _sweep(model, limits, on_progress) if isinstance(model, Sweep) else self._minimise(model, limits, on_progress)

    def _minimise(self, model: Model, limits: Limits, on_progress: OnProgress) -> SolveOutcome:
        highspy: Any = importlib.import_module("highspy")
        solve = Minimisation(limits, on_progress)
        highs = highspy.Highs()
        for option, value in _parameters(limits).items():
            if highs.setOptionValue(option, value) != highspy.HighsStatus.kOk:
                return SolveOutcome(SolverStatus.UNKNOWN, message=f"HiGHS refuses the option {option} = {value}")
        if highs.passModel(_lp(highspy, model)) == highspy.HighsStatus.kError:
            return SolveOutcome(SolverStatus.UNKNOWN, message="HiGHS refuses the model")
        if model.basic is not None:
            _begin_at(highspy, highs, model)
        elif model.start is not None:
            solution = highspy.HighsSolution()
            solution.col_value = model.start.tolist()
            highs.setSolution(solution)
        whole = bool(model.integer.any())

        def watch(event: Any) -> None:
            out = event.data_out
            found = event.callback_type == highspy.cb.HighsCallbackType.kCallbackMipImprovingSolution
            within = whole and event.callback_type != highspy.cb.HighsCallbackType.kCallbackSimplexInterrupt  # of a linear program there
            dual, primal = (float(out.mip_dual_bound), float(out.mip_primal_bound)) if within else (-math.inf, math.inf)
            point = np.array(out.mip_solution, dtype=np.float64) if found else None
            if point is not None:
                primal = float(model.objective @ point)
            if not solve.due(dual, primal, found):
                return
            nodes = max(0, int(out.mip_node_count)) if within else 0
            if solve.report(-math.inf, primal, nodes, point) or solve.decided(dual, primal):
                event.interrupt()

        highs.cbMipInterrupt += watch
        highs.cbMipImprovingSolution += watch
        highs.cbSimplexInterrupt += watch
        highs.setOptionValue("time_limit", solve.left)
        highs.run()
        word = highs.getModelStatus().name
        status, info = status_of(word), highs.getInfo()
        point, primal, dual = None, math.inf, -math.inf
        if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
            point = np.array(highs.getSolution().col_value, dtype=np.float64)
            primal = float(model.objective @ point)
        if whole:
            dual = float(info.mip_dual_bound)
        elif status is SolverStatus.OPTIMAL:
            dual = primal  # a linear program ends with a dual feasible basis
            if np.isfinite(model.lower).all() and np.isfinite(model.upper).all():  # what its multipliers prove can be told
                dual = min(primal, model.dual_value(model.objective, np.array(highs.getSolution().row_dual, dtype=np.float64)))
        nodes = max(0, int(info.mip_node_count)) if whole else 0
        outcome = solve.outcome(status, dual, primal, point, nodes, f"HiGHS: {highs.modelStatusToString(highs.getModelStatus())}")
        if outcome.status not in (SolverStatus.OPTIMAL, SolverStatus.TARGET):
            return replace(outcome, dual_bound=-math.inf)  # it has not ended
        return outcome if whole or status is not SolverStatus.OPTIMAL else _with_basis(highspy, highs, outcome)


def _sweep(sweep: Sweep, limits: Limits, on_progress: OnProgress) -> SweepOutcome:
    """One linear program after the other, each from the last one's basis; a value that some solution attains needs none of its own.

    What is returned is what the multipliers prove by weak duality, not the optimum that HiGHS says they belong to.
    """
    highspy: Any = importlib.import_module("highspy")
    solve, bounds = Minimisation(limits, on_progress), np.full(len(sweep.column), -math.inf)
    model = _with_row(sweep.model, sweep.model.objective, sweep.cutoff)
    highs = highspy.Highs()
    for option, value in {**_parameters(limits), "simplex_strategy": PRIMAL}.items():
        highs.setOptionValue(option, value)
    if highs.passModel(_lp(highspy, model)) == highspy.HighsStatus.kError:
        return SweepOutcome(SolverStatus.UNKNOWN, -math.inf, None, bounds, message="HiGHS refuses the model")
    last = model.num_rows - 1
    highs.changeRowBounds(last, -math.inf, math.inf)
    if model.basic is not None:
        _begin_at(highspy, highs, model)

    solved: list[tuple[int, NDArray[np.float64], NDArray[np.float64]]] = []

    def least(objective: NDArray[np.float64], within: Model, k: int = -1) -> tuple[SolverStatus, NDArray[np.float64] | None, float]:
        highs.setOptionValue("time_limit", highs.getRunTime() + solve.left)
        highs.run()
        status, solution = status_of(highs.getModelStatus().name), highs.getSolution()
        if status is not SolverStatus.OPTIMAL:
            return status, None, -math.inf
        point, multipliers = np.array(solution.col_value, dtype=np.float64), np.array(solution.row_dual, dtype=np.float64)
        if sweep.certified and k >= 0:
            solved.append((k, point, multipliers[:last]))
        return status, point, within.dual_value(objective, multipliers)

    free = replace(model, row_upper=np.append(model.row_upper[:-1], math.inf))
    status, first, own = least(model.objective, free)
    if first is None or own >= limits.dual_target:
        return SweepOutcome(status, own, first, bounds, solve.seconds, f"HiGHS: {status.value}")
    highs.changeRowBounds(last, -math.inf, sweep.cutoff)
    for j in np.flatnonzero(model.objective).tolist():
        highs.changeColCost(j, 0.0)
    ends = {1.0: model.lower, -1.0: -model.upper}
    attained = {side: side * first for side in ends}
    for k, (j, side) in enumerate(zip(sweep.column.tolist(), sweep.side.tolist(), strict=True)):
        bounds[k] = ends[side][j]
        if attained[side][j] <= bounds[k] + limits.manner.attained * (model.upper[j] - model.lower[j]):
            continue
        if solve.left <= 0.0 or (solve.due(-math.inf, math.inf) and solve.report(-math.inf, math.inf, k)):
            bounds[k:], status = -math.inf, SolverStatus.INTERRUPTED if solve.requested else SolverStatus.TIME_LIMIT
            break
        highs.changeColCost(j, side)
        objective = np.zeros(model.num_variables)
        objective[j] = side
        found, point, proved = least(objective, model, k)
        highs.changeColCost(j, 0.0)
        if point is not None:
            bounds[k] = max(bounds[k], proved)
            for way, low in attained.items():
                np.minimum(low, way * point, out=low)
        elif found in EMPTY_HANDED:
            status = found
            break
    outcome = SweepOutcome(status, own, first, bounds, solve.seconds, f"HiGHS: {status.value}")
    if not sweep.certified or not solved:
        return outcome
    which, points, multipliers = zip(*solved, strict=True)
    return replace(outcome, solved=np.array(which, dtype=np.int64), points=np.stack(points), multipliers=np.stack(multipliers))


def _with_row(model: Model, coefficients: NDArray[np.float64], upper: float) -> Model:
    """A model with one more row, coefficients . v <= upper."""
    columns = np.flatnonzero(coefficients)
    return replace(
        model,
        row_start=np.append(model.row_start, model.row_start[-1] + len(columns)),
        column=np.append(model.column, columns),
        value=np.append(model.value, coefficients[columns]),
        row_lower=np.append(model.row_lower, -math.inf),
        row_upper=np.append(model.row_upper, upper),
        basic=None if model.basic is None else np.append(model.basic, True),
    )


def _begin_at(highspy: Any, highs: Any, model: Model) -> None:
    """Begin at the model's basis; what is not in it lies at the end of its range that is nearer at the model's start."""
    assert model.start is not None and model.basic is not None
    kinds, basis = highspy.HighsBasisStatus, highspy.HighsBasis()
    values = np.concatenate([model.start, model.activity(model.start)])
    lower, upper = np.concatenate([model.lower, model.row_lower]), np.concatenate([model.upper, model.row_upper])
    at_upper = (upper - values < values - lower) & np.isfinite(upper)
    at_none = ~(np.isfinite(lower) | np.isfinite(upper))
    states = np.select([model.basic, at_upper, at_none], [0, 1, 2], 3).tolist()
    words = (kinds.kBasic, kinds.kUpper, kinds.kZero, kinds.kLower)
    basis.col_status = [words[k] for k in states[: model.num_variables]]
    basis.row_status = [words[k] for k in states[model.num_variables :]]
    basis.valid = True
    highs.setBasis(basis)  # one that is none is refused, and HiGHS begins anew


def _with_basis(highspy: Any, highs: Any, outcome: SolveOutcome) -> SolveOutcome:
    """The outcome of a linear program with its multipliers and its basis, where there is one."""
    multipliers, basis = np.array(highs.getSolution().row_dual, dtype=np.float64), highs.getBasis()
    states = [*basis.col_status, *basis.row_status] if basis.valid else []
    basic = np.array([s == highspy.HighsBasisStatus.kBasic for s in states], dtype=bool) if states else None
    return replace(outcome, multipliers=multipliers, basic=basic)


def _parameters(limits: Limits) -> dict[str, object]:
    return {
        "output_flag": False,
        "primal_feasibility_tolerance": TOLERANCE,
        "dual_feasibility_tolerance": TOLERANCE,
        "mip_feasibility_tolerance": TOLERANCE,
        "small_matrix_value": 1e-12,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": TOLERANCE,
        "threads": limits.threads,
        "parallel": "on" if limits.threads > 1 else "off",
        "random_seed": limits.seed,
        "objective_target": limits.primal_target,
        **({} if limits.nodes is None else {"mip_max_nodes": limits.nodes}),
        **({"mip_heuristic_effort": 0.0} if limits.plain else {}),
    }


def _lp(highspy: Any, model: Model) -> Any:
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = model.num_variables, model.num_rows
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = model.objective, model.lower, model.upper
    lp.row_lower_, lp.row_upper_ = model.row_lower, model.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = model.row_start.astype(np.int32)
    lp.a_matrix_.index_ = model.column.astype(np.int32)
    lp.a_matrix_.value_ = model.value
    if model.integer.any():
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[int(flag)] for flag in model.integer]
    return lp
