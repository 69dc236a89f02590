"""Deciding disjuncts by an SMT solver in exact rational arithmetic: small piecewise-linear networks only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.counterexamples.polish import polish
from milpverify.counterexamples.validate import Validity, validate
from milpverify.encode.smt import smt_script
from milpverify.errors import SolverUnavailable
from milpverify.events import Event
from milpverify.result import Reason, Trust, Verdict
from milpverify.search.solver.whole_milp import Leaf, OnEvent, OpenDisjunct, reason_of
from milpverify.solvers.base import Answer, Limits, SolverStatus
from milpverify.solvers.process import SolverProcess

if TYPE_CHECKING:
    from milpverify.config import Deadline, Options
    from milpverify.spec import Problem


def decide_by_smt(
    problem: Problem, disjuncts: Sequence[OpenDisjunct], options: Options, deadline: Deadline, on_event: OnEvent | None = None
) -> tuple[list[Leaf], list[str]]:
    """Decide disjuncts one after the other with z3, as `decide_by_milp` does with a MILP solver.

    `unsat` closes one with trust EXACT, or ROUNDED where presolve bounds are used.
    Presolve bounds are used unless the options ask for trust EXACT. A closed disjunct's proved lower bound is 0: an SMT solver says
    that no margin is <= 0, and not by how much.

    Raises:
        UnsupportedOperator: a function that is not piecewise linear.
        SolverUnavailable: z3 is missing, or the network is too large for it.
    """
    leaves: list[Leaf] = []
    with SolverProcess("z3", options.memory_mb) as process:
        for left, item in zip(range(len(disjuncts), 0, -1), disjuncts, strict=True):
            seconds = math.inf if options.search.deterministic else deadline.remaining() / left
            leaf = _decide(problem, item, options, deadline, seconds, process)
            leaves.append(leaf)
            if on_event is not None:
                on_event(Event("smt", f"z3: disjunct {item.index} {leaf.verdict.value}", {"disjunct": item.index, "seconds": leaf.seconds}))
            if leaf.verdict is Verdict.FALSIFIED:
                break
    return leaves, []


def _decide(problem: Problem, item: OpenDisjunct, options: Options, deadline: Deadline, seconds: float, process: SolverProcess) -> Leaf:
    exact = options.trust is Trust.EXACT
    trust = Trust.EXACT if exact else Trust.ROUNDED
    leaf = Leaf(item.index, Verdict.UNKNOWN, Reason.SOLVER_INCONCLUSIVE, -math.inf, trust, solver="z3")
    if deadline.expired():
        return replace(leaf, reason=Reason.INTERRUPTED if deadline.cancelled else Reason.TIMEOUT)
    script = smt_script(problem.graph, item.disjunct, None if exact else item.bounds())
    outcome = process.solve(script, Limits(seconds, options.memory_mb, seed=options.seed), deadline)
    leaf = replace(leaf, seconds=outcome.seconds)
    if outcome.status is SolverStatus.UNAVAILABLE:
        raise SolverUnavailable(outcome.message)
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
    return replace(leaf, reason=reason, note=f"the real counterexample of z3 does not hold in the network's runtime: {validation}")
