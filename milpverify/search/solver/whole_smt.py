"""Deciding disjuncts by an SMT solver over the reals: small networks only.

z3 decides what lines and polynomials define, in rational arithmetic, and `unsat` counts as exact. cvc5 reads transcendental functions,
too. Of those its `unsat` decides nothing, as it rests on approximations that nobody rechecks; of other scripts it has trust SOLVER. Whoever
says `sat`, the point is run through the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validity, validate
from milpverify.encode.encoding import EncodingTuning
from milpverify.encode.smt import smt_script
from milpverify.errors import SolverUnavailable
from milpverify.result import Event, Reason, Trust, Verdict
from milpverify.search.solver.whole_milp import Leaf, OnEvent, OpenDisjunct, reason_of
from milpverify.solvers.base import Answer, Capability, Limits, SolverStatus
from milpverify.solvers.model import Logic
from milpverify.solvers.names import SMT_SOLVERS
from milpverify.solvers.process import SolverProcess, SolverTuning
from milpverify.solvers.registry import load

if TYPE_CHECKING:
    from milpverify.config import Deadline, Options
    from milpverify.spec import Problem


def decide_by_smt(
    problem: Problem, disjuncts: Sequence[OpenDisjunct], options: Options, deadline: Deadline, on_event: OnEvent | None = None
) -> tuple[list[Leaf], list[str]]:
    """Decide disjuncts one after the other with z3, or cvc5 where the options say so, as `decide_by_milp` does with a MILP solver.

    z3's `unsat` closes one with trust EXACT, or ROUNDED where presolve bounds are used.
    Presolve bounds are used unless the options ask for trust EXACT. A closed disjunct's proved lower bound is 0: an SMT solver says
    that no margin is <= 0, and not by how much.

    Raises:
        UnsupportedOperator: a function that the solver does not know.
        SolverUnavailable: the solver is missing, or the network is too large for it.
    """
    leaves: list[Leaf] = []
    solver = options.solver if options.solver in SMT_SOLVERS else SMT_SOLVERS[0]
    with SolverProcess(solver, options.memory_mb, tuning=options.search.tuned(SolverTuning)) as process:
        for left, item in zip(range(len(disjuncts), 0, -1), disjuncts, strict=True):
            seconds = math.inf if options.search.deterministic else deadline.remaining() / left
            leaf = _decide(problem, item, options, deadline, seconds, process)
            leaves.append(leaf)
            if on_event is not None:
                message = f"{solver}: disjunct {item.index} {leaf.verdict.value}"
                on_event(Event("smt", message, {"disjunct": item.index, "seconds": leaf.seconds}))
            if leaf.verdict is Verdict.FALSIFIED:
                break
    return leaves, []


def _decide(problem: Problem, item: OpenDisjunct, options: Options, deadline: Deadline, seconds: float, process: SolverProcess) -> Leaf:
    exact = options.trust is Trust.EXACT
    solver = process.solver
    trust = Trust.SOLVER if solver != "z3" else Trust.EXACT if exact else Trust.ROUNDED
    leaf = Leaf(item.index, Verdict.UNKNOWN, Reason.SOLVER_INCONCLUSIVE, -math.inf, trust, solver=solver)
    if deadline.expired():
        return replace(leaf, reason=Reason.INTERRUPTED if deadline.cancelled else Reason.TIMEOUT)
    able = Capability.SMT_TRANSCENDENTAL in load(solver).capabilities
    script = smt_script(problem.graph, item.disjunct, None if exact else item.bounds(), able, options.search.tuned(EncodingTuning))
    outcome = process.solve(script, Limits(seconds, options.memory_mb, seed=options.seed), deadline)
    leaf = replace(leaf, seconds=outcome.seconds)
    if outcome.status is SolverStatus.UNAVAILABLE:
        raise SolverUnavailable(outcome.message)
    if outcome.answer is Answer.UNSAT and script.logic is Logic.TRANSCENDENTAL:
        return replace(leaf, note=f"{solver} says unsat, which alone decides nothing of transcendental functions")
    if outcome.answer is Answer.UNSAT and trust is Trust.SOLVER and not options.believes_solvers:
        return replace(leaf, reason=Reason.TRUST)
    if outcome.answer is Answer.UNSAT:
        return replace(leaf, verdict=Verdict.VERIFIED, reason=Reason.PROVED, lower_bound=0.0)
    if outcome.answer is Answer.UNKNOWN:
        return replace(leaf, reason=reason_of(outcome.status), note=outcome.message)
    x = np.array([float(value) for value in outcome.values()])
    validation = validate(problem, item.disjunct, x)
    example = validation.counterexample or polish(problem, item.disjunct, x)
    if example is not None:
        return replace(leaf, verdict=Verdict.FALSIFIED, reason=Reason.COUNTEREXAMPLE, counterexample=example, trust=Trust.ROUNDED)
    reason = Reason.FLOAT_SEMANTICS if validation.status is Validity.FLOAT_SEMANTICS else Reason.SOLVER_INCONCLUSIVE
    return replace(leaf, reason=reason, note=f"the real counterexample of {solver} does not hold in the network's runtime: {validation}")
