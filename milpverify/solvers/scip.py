"""SCIP through PySCIPOpt: the default solver, free and embedded."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.solvers.base import Capability, Limits, Minimisation, OnProgress, SolveOutcome, Solver, SolverStatus
from milpverify.solvers.hosts.scip import add_rows
from milpverify.solvers.model import TOLERANCE, Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STATUS = {
    "optimal": SolverStatus.OPTIMAL,
    "gaplimit": SolverStatus.OPTIMAL,
    "duallimit": SolverStatus.TARGET,
    "primallimit": SolverStatus.TARGET,
    "infeasible": SolverStatus.INFEASIBLE,
    "unbounded": SolverStatus.UNBOUNDED,
    "inforunbd": SolverStatus.UNBOUNDED,
    "timelimit": SolverStatus.TIME_LIMIT,
    "memlimit": SolverStatus.MEMORY_LIMIT,
    "userinterrupt": SolverStatus.INTERRUPTED,
    "terminate": SolverStatus.INTERRUPTED,
}


def status_of(word: str) -> SolverStatus:
    """SCIP's status; every word not listed (node limits, "unknown", words of later versions) is inconclusive."""
    return _STATUS.get(word, SolverStatus.UNKNOWN)


class Scip(Solver[Model, SolveOutcome]):
    """Minimises mixed-integer models, linear or with products and smooth functions, with SCIP."""

    name = "scip"
    capabilities = frozenset({Capability.LINEAR, Capability.INTEGER, Capability.QUADRATIC, Capability.FUNCTIONS})

    def licence(self) -> str:
        return "free (Apache 2.0), no limits"

    def needs_second(self, model: Model) -> bool:
        """SCIP is the second one."""
        return False

    def solve(self, model: Model, limits: Limits, on_progress: OnProgress) -> SolveOutcome:
        pyscipopt: Any = importlib.import_module("pyscipopt")
        solve = Minimisation(limits, on_progress)
        scip = pyscipopt.Model()
        scip.hideOutput()
        scip.setParams(_parameters(limits))
        if limits.plain:
            scip.setHeuristics(pyscipopt.SCIP_PARAMSETTING.OFF)
        infinity = scip.infinity()

        def clip(value: float) -> float | None:
            return None if abs(value) >= infinity else float(value)

        variables = [
            scip.addVar(lb=clip(low), ub=clip(high), obj=float(cost), vtype="I" if whole else "C")
            for low, high, cost, whole in zip(model.lower, model.upper, model.objective, model.integer, strict=True)
        ]
        add_rows(scip, variables, model)
        scip.setMinimize()
        if model.start is not None:
            solution = scip.createSol()
            for variable, first in zip(variables, model.start, strict=True):
                scip.setSolVal(solution, variable, float(first))
            scip.addSol(solution)

        def values(solution: Any) -> NDArray[np.float64]:
            return np.array([scip.getSolVal(solution, v) for v in variables])

        def bound() -> float:
            value = scip.getDualbound()
            return float(value) if abs(value) < infinity else math.copysign(math.inf, value)

        kind = pyscipopt.SCIP_EVENTTYPE

        class Watch(pyscipopt.Eventhdlr):  # type: ignore[misc]
            """Reports and stops. SCIP drops exceptions of callbacks, hence nothing here raises on purpose."""

            events = (kind.BESTSOLFOUND, kind.LPSOLVED, kind.NODESOLVED)

            def eventinit(self) -> None:
                for event in self.events:
                    self.model.catchEvent(event, self)

            def eventexit(self) -> None:
                for event in self.events:
                    self.model.dropEvent(event, self)

            def eventexec(self, event: Any) -> None:
                found = event.getType() == kind.BESTSOLFOUND
                dual, primal = bound(), float(self.model.getPrimalbound())
                if not solve.due(dual, primal, found):
                    return
                point = values(self.model.getBestSol()) if found else None
                if point is not None:
                    primal = float(model.objective @ point)  # SCIP updates its own bound after this event
                if solve.report(dual, primal if primal < infinity else math.inf, int(self.model.getNTotalNodes()), point):
                    self.model.interruptSolve()

        scip.includeEventhdlr(Watch(), "milpverify", "progress and early stopping")
        scip.setParam("limits/time", min(solve.left, 1e20))
        scip.optimizeNogil()
        status = status_of(scip.getStatus())
        point, primal = None, math.inf
        if scip.getNSols() and status is not SolverStatus.UNBOUNDED:
            best = scip.getBestSol()
            point, primal = values(best), float(scip.getSolObjVal(best))
        return solve.outcome(status, bound(), primal, point, int(scip.getNTotalNodes()), f"SCIP: {scip.getStatus()}")


def _parameters(limits: Limits) -> dict[str, object]:
    targets = {"limits/dual": limits.dual_target, "limits/primal": limits.primal_target}
    return {
        **{name: value for name, value in targets.items() if math.isfinite(value)},
        **({} if limits.nodes is None else {"limits/totalnodes": limits.nodes}),
        # Products stand it, too: on 120 models of random quadratics with known optima SCIP 10.0 ended every time, its bounds at most 2e-9
        # of the scale below the optimum and never above; with 1e-7 and 1e-6 they were as much lower, and no sooner found.
        "numerics/feastol": TOLERANCE,
        "numerics/dualfeastol": TOLERANCE,
        # Bounds that propagation of nonlinear constraints first relaxes by 1e-9 lose optima with binaries among them (seen in SCIP 10.0,
        # with any tolerance, in a quarter of all permutations of one model; never without relaxing: a test guards it).
        "constraints/nonlinear/varboundrelax": "n",
        "limits/memory": 0.8 * limits.memory_mb,
        "lp/threads": limits.threads,
        "parallel/maxnthreads": limits.threads,
        "randomization/randomseedshift": limits.seed,
        "misc/catchctrlc": False,
        # With tolerances below 1e-8 this reduction loses optima, by far more than the tolerance (seen in SCIP 10.0; a test guards it).
        "constraints/linear/dualpresolving": False,
        # The rows of a neuron are its hull over the range of its pre-activation alone. Over the box of its inputs the hull needs many
        # more (Anderson et al., arXiv 1811.01988), which are mixed-integer rounding cuts: a few rounds find those that matter. Dense rows
        # make further rounds dear, and below the root branching is the better investment.
        "separating/maxroundsroot": 0 if limits.plain else 10,
        "separating/maxrounds": 0,
    }
