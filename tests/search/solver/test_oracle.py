"""The solver's process by itself: what it says of a task is a proof, or is not believed."""

from __future__ import annotations

import math
import time

import pytest
from random_nets import disjunct_of, proved_bounds

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.encode.cut_forms import Split
from milpverify.graph import Graph
from milpverify.search.solver.oracle import Oracle, SolvingTuning, Task
from milpverify.solvers.base import SmtOutcome, SolveOutcome, SolverStatus
from milpverify.solvers.process import SolverProcess
from milpverify.spec import Box, Problem


def ask(oracle: Oracle, problem: Problem, decisions: tuple[Split, ...]) -> float:
    """The best bound that the oracle finds for a subproblem."""
    bound, box = -math.inf, problem.disjuncts[0].box
    oracle.give(Task(0, decisions, 30.0), problem.disjuncts[0], proved_bounds(problem.graph, box, "ibp"))
    while oracle.task is not None:
        finding = oracle.poll()
        bound = bound if finding is None else max(bound, finding.bound)
        time.sleep(0.005)
    return bound


def test_an_empty_subproblem_is_closed_by_a_proof(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    with Oracle(problem, Options(), Deadline(60)) as oracle:
        assert ask(oracle, problem, ((1, 0, 1.0, 0.5), (1, 0, -1.0, -0.5))) == math.inf
        assert ask(oracle, problem, ((1, 0, 1.0, 0.0),)) < math.inf
    with Oracle(problem, Options(trust="rounded"), Deadline(60)) as oracle:
        assert ask(oracle, problem, ((1, 0, 1.0, 0.5), (1, 0, -1.0, -0.5))) == -math.inf


def test_a_word_alone_makes_no_subproblem_empty(network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver calls a subproblem infeasible that is not: that is looked into, and found wrong."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    poll, told = SolverProcess.poll, []

    def lying(process: SolverProcess, wait: float = 0.0) -> SolveOutcome | SmtOutcome | None:
        outcome = poll(process, wait)
        if outcome is None:
            return None
        told.append(outcome)
        return SolveOutcome(SolverStatus.INFEASIBLE) if len(told) == 1 else outcome

    monkeypatch.setattr(SolverProcess, "poll", lying)
    with Oracle(problem, Options(), Deadline(60)) as oracle:
        bound = ask(oracle, problem, ((1, 0, 1.0, 0.0),))
    assert len(told) == 2 and bound < math.inf


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_solver_that_dies_too_often_is_left_alone(
    crashes: int, network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    options = Options(search=SearchOptions(tuning=(SolvingTuning(crashes=crashes),)))
    monkeypatch.setattr(SolverProcess, "start", lambda *_: None)
    monkeypatch.setattr(SolverProcess, "poll", lambda *_: SolveOutcome(SolverStatus.CRASHED, message="it died"))
    with Oracle(problem, options, Deadline(60)) as oracle:
        for k in range(1, crashes + 1):
            assert ask(oracle, problem, ()) == -math.inf
            assert oracle.usage.crashes == k and oracle.usable is (k < crashes)
        assert oracle.notes == ["it died"]
