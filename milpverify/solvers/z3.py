"""z3, for SMT scripts in exact rational arithmetic."""

from __future__ import annotations

import importlib
import math
import time
from dataclasses import replace
from typing import Any

from milpverify.solvers.base import Answer, Capability, Limits, OnProgress, SmtOutcome, Solver, SolverStatus
from milpverify.solvers.model import Logic, SmtScript

_STATUS = {"timeout": SolverStatus.TIME_LIMIT, "canceled": SolverStatus.TIME_LIMIT, "memory": SolverStatus.MEMORY_LIMIT}


def status_of(reason: str) -> SolverStatus:
    """The status of z3's reason for "unknown" or of its error message; what is not recognised is inconclusive."""
    return next((status for word, status in _STATUS.items() if word in reason), SolverStatus.UNKNOWN)


class Z3(Solver[SmtScript, SmtOutcome]):
    """Decides SMT-LIB scripts over linear and polynomial real arithmetic; its `unsat` rests on rational arithmetic (trust EXACT)."""

    name = "z3"
    capabilities = frozenset({Capability.SMT})

    def licence(self) -> str:
        return "free (MIT), no limits"

    def solve(self, model: SmtScript, limits: Limits, on_progress: OnProgress) -> SmtOutcome:
        """Polynomials in the order of their definitions first, which is good for networks, and then in z3's own."""
        began = time.monotonic()
        if model.logic is Logic.POLYNOMIAL:
            first = replace(limits, seconds=min(limits.manner.first_order, limits.seconds / 2.0))
            outcome = _solve(model, first, reorder=False)
            if outcome.status is not SolverStatus.TIME_LIMIT:
                return outcome
        left = max(0.0, limits.seconds - (time.monotonic() - began))
        outcome = _solve(model, replace(limits, seconds=left), reorder=True)
        return replace(outcome, seconds=time.monotonic() - began)


def _solve(model: SmtScript, limits: Limits, reorder: bool) -> SmtOutcome:
    z3: Any = importlib.import_module("z3")
    began = time.monotonic()
    z3.set_param("memory_max_size", limits.memory_mb)
    z3.set_param("nlsat.reorder", reorder)
    solver = z3.SolverFor(model.logic.value)
    if math.isfinite(limits.seconds):
        solver.set("timeout", max(1, int(1000 * limits.seconds)))
    solver.set("random_seed", limits.seed % 2**31)
    try:
        solver.from_string(model.text)
        answer = solver.check()
    except z3.Z3Exception as error:
        return SmtOutcome(Answer.UNKNOWN, (), status_of(str(error)), time.monotonic() - began, f"z3: {error}")
    seconds = time.monotonic() - began
    if answer == z3.unsat:
        return SmtOutcome(Answer.UNSAT, (), SolverStatus.OPTIMAL, seconds, "z3: unsat")
    if answer == z3.unknown:
        why = solver.reason_unknown()
        return SmtOutcome(Answer.UNKNOWN, (), status_of(why), seconds, f"z3: {why}")
    values = (solver.model().eval(z3.Real(name), model_completion=True) for name in model.inputs)
    point = tuple(str((v.approx(limits.manner.decimals) if z3.is_algebraic_value(v) else v).as_fraction()) for v in values)
    return SmtOutcome(Answer.SAT, point, SolverStatus.OPTIMAL, seconds, "z3: sat")
