"""Leaves: what closes one, and that a bound in rationals is exact only where every neuron that matters is on one piece."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_nets import Stack, function

from milpverify.balls.ball import Ball
from milpverify.config import Deadline
from milpverify.counterexamples.validate import Validity
from milpverify.operators import Elementwise, Linear
from milpverify.propagation.crown import crown
from milpverify.search.solver.leaves import LeafOutcome, Leaves, _Leaf
from milpverify.spec import Box, Disjunct, Problem, Rows


def test_a_neuron_on_two_pieces_has_no_exact_bound_unless_nothing_depends_on_it() -> None:
    stack = Stack(2)
    stack.add(Linear(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)), 0, size=2)
    stack.add(Elementwise(function("relu")), 1, size=2)
    graph, box = stack.graph(), Box(np.array([-1.0, 0.25]), np.array([1.0, 1.0]))
    with torch.no_grad():
        state, _ = crown(graph, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
    for output, exact in ((0, None), (1, -0.5)):
        row = -np.eye(2)[[output]]  # unsafe: relu(x) >= 0.5; on the first piece of the first neuron, that cannot be
        disjunct = Disjunct(box, Rows.on_outputs(row, [-0.5], 2), Rows.none(2, 2))
        with Leaves(Problem(graph, (disjunct,)), Deadline(60)) as leaves, torch.no_grad():
            leaf = _Leaf(graph, disjunct, state, ())
            assert leaf.exact_bound(leaves._solve(leaf.model(elastic=False)), elastic=False) == exact


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_leaf_is_closed_by_the_ball_that_inputs_are_confined_to(norm: str) -> None:
    """The sum of two inputs is -r, or -r sqrt(2), at least; over the box, which has a corner where it is -2 r, the leaf is open."""
    stack = Stack(2)
    stack.add(Linear(torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)), 0, size=1)
    graph = stack.graph().confined(Ball([0.0, 0.0], 0.5, norm))
    box = Box(np.full(2, -0.5), np.full(2, 0.5))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [-0.9], 2), Rows.none(2, 1))
    problem = Problem(graph, (disjunct,))
    with Leaves(problem, Deadline(60)) as leaves, torch.no_grad():
        state, _ = crown(graph, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
        found = leaves.decide(disjunct, state, ())
    assert not decided(Problem(graph.confined(None), (disjunct,)), disjunct).closed
    assert found.closed and found.bound == pytest.approx(0.9 - (0.5 if norm == "l1" else 0.5 * math.sqrt(2)), abs=1e-9)


def affine(rhs: float, strict: bool = False, domain: Rows | None = None) -> tuple[Problem, Disjunct]:
    """y = x on [0, 1]; unsafe: y <= rhs, the margin -rhs at least."""
    stack = Stack(1)
    stack.add(Linear(torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)), 0, size=1)
    disjunct = Disjunct(Box(np.zeros(1), np.ones(1)), Rows.on_outputs([[1.0]], [rhs], 1, strict), domain or Rows.none(1, 1))
    return Problem(stack.graph(), (disjunct,)), disjunct


def decided(problem: Problem, disjunct: Disjunct, left: int | None = None) -> LeafOutcome:
    with Leaves(problem, Deadline(60), left=left) as leaves, torch.no_grad():
        state, _ = crown(problem.graph, torch.tensor(disjunct.box.lower)[None], torch.tensor(disjunct.box.upper)[None], torch.float64)
        return leaves.decide(disjunct, state, ())


def test_a_leaf_says_whether_it_closed() -> None:
    outcome = decided(*affine(-0.5))
    assert outcome.closed and outcome.bound == pytest.approx(0.5) and outcome.validation is None
    outcome = decided(*affine(0.0, strict=True))
    assert outcome.closed and outcome.bound == 0.0
    empty = Rows(np.array([[1.0]]), np.zeros((1, 1)), np.array([-1.0]), np.array([False]))  # x <= -1
    outcome = decided(*affine(0.5, domain=empty))
    assert outcome.closed and outcome.bound == math.inf


def test_a_leaf_with_a_counterexample_is_open_though_it_has_no_note() -> None:
    outcome = decided(*affine(0.5))
    assert outcome.validation is not None and outcome.validation.status is Validity.HOLDS
    assert not outcome.closed and not outcome.note


def test_a_limit_of_linear_programs_ends_with_the_round_that_it_is_for() -> None:
    problem, disjunct = affine(-0.5)
    with Leaves(problem, Deadline(60)) as leaves, torch.no_grad():
        state, _ = crown(problem.graph, torch.tensor(disjunct.box.lower)[None], torch.tensor(disjunct.box.upper)[None], torch.float64)
        for _ in range(2):
            with leaves.at_most(1):
                assert [leaves.decide(disjunct, state, ()).closed for _ in range(2)] == [True, False]
                with leaves.at_most(None):
                    assert leaves.decide(disjunct, state, ()).closed
                assert leaves.left == 0
            assert leaves.left is None
        with pytest.raises(MemoryError), leaves.at_most(0):
            raise MemoryError
        assert leaves.left is None and leaves.decide(disjunct, state, ()).closed and leaves.solved == 5


def test_a_leaf_is_open_unless_something_closes_it() -> None:
    assert not LeafOutcome(1.0).closed and LeafOutcome.closing(1.0).closed
    outcome = decided(*affine(-0.5), left=0)
    assert not outcome.closed and outcome.bound == -math.inf and outcome.note
