"""Smooth networks are decided up to a margin delta: what is closer to zero ends with the point that shows it."""

from __future__ import annotations

import numpy as np
import pytest

from milpverify.config import Options, SearchOptions
from milpverify.counterexamples.validate import validate
from milpverify.frontends.lowering.builder import Builder
from milpverify.result import Reason, Result, Verdict
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.verify import verify

CENTRE = 0.3


def hyperbola(nx: int, slack: float) -> Problem:
    """exp(z) + exp(-z) - 2 <= -slack with z the mean of x less CENTRE: the least margin is slack, where z = 0."""
    builder = Builder(nx)
    z = builder.matmul(builder.nodes[0], np.full((nx, 1), 1.0 / nx))
    z = builder.scale(z, None, np.array([-CENTRE]))
    y = builder.sum([builder.function("exp", z), builder.function("exp", builder.scale(z, -1.0))])
    graph = builder.graph([builder.scale(y, None, np.array([-2.0]))], (), ())
    box = Box(np.full(nx, -1.0), np.full(nx, 1.25))
    return Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [-slack], nx), Rows.none(nx, 1)),))


def run(problem: Problem, delta: float) -> Result:
    return verify(problem, 60, options=Options(delta=delta, search=SearchOptions(deterministic=True)))


@pytest.mark.parametrize("nx", [1, 2, 80])
def test_what_is_within_delta_ends_with_the_point(nx: int) -> None:
    result = run(hyperbola(nx, 1e-5), 1e-3)
    assert result.verdict is Verdict.UNKNOWN
    assert result.reason is Reason.DELTA
    assert -1e-3 <= result.lower_bound <= 1e-5
    assert "X = (" in result.note


@pytest.mark.parametrize("nx", [1, 2])
def test_what_is_beyond_delta_is_decided(nx: int) -> None:
    result = run(hyperbola(nx, 1e-3), 1e-5)
    assert result.verdict is Verdict.VERIFIED
    assert 0 <= result.lower_bound <= 1e-3
    violated = run(hyperbola(nx, -1e-3), 1e-2)
    assert violated.verdict is Verdict.FALSIFIED


def test_the_same_problem_with_a_smaller_delta() -> None:
    problem = hyperbola(1, 1e-5)
    assert run(problem, 1e-3).reason is Reason.DELTA
    assert run(problem, 1e-7).verdict is Verdict.VERIFIED


def test_a_judgement_knows_whether_it_is_within_delta() -> None:
    problem = hyperbola(1, 1e-4)
    (disjunct,) = problem.disjuncts
    close, far = (validate(problem, disjunct, np.array([x])) for x in (CENTRE, 1.0))
    assert close.within(1.1e-4) and not close.within(0.9e-4)
    assert not far.within(1e-2)
    holds = validate(hyperbola(1, -1.0), hyperbola(1, -1.0).disjuncts[0], np.array([CENTRE]))
    assert holds.counterexample is not None and not holds.within(1.0)
