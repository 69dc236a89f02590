"""A tree as a value: its bound is proved for all that it stands for, whatever is done to it, and says what it rests on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import relu_network
from trees import PLAIN, context_of, grown, neurons_of

import milpverify as mv
from milpverify.balls.ball import Ball
from milpverify.counterexamples.validate import Validation, Validity
from milpverify.frontends.lowering.builder import Builder
from milpverify.result import Counterexample, Reason, Trust
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.solver.oracle import Oracle
from milpverify.search.tree import Incumbents, Tree
from milpverify.spec import Box, Disjunct, Problem, Rows

POINT, THRESHOLD = np.zeros(2), 0.1


def problem_of(count: int = 4) -> Problem:
    """Over a ReLU network, so many disjuncts that are alike, and open at the root."""
    graph, box = relu_network([2, 6, 6, 1], 0), Box(-np.ones(2), np.ones(2))
    return Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [THRESHOLD], 2), Rows.none(2, 1)),) * count)


def tree_of(*bounds: float, conditional: bool = False) -> Tree[Subproblems]:
    """A tree with disjuncts of so many bounds in its frontier."""
    _, tree = neurons_of(context_of(problem_of(len(bounds)), options=PLAIN))
    assert tree.unbounded is not None
    tree.push(replace(tree.unbounded, bound=torch.tensor(bounds, dtype=torch.float64)))
    tree.conditional = conditional
    return tree


def said(status: Validity, high: float = 1.0) -> Validation:
    """What validation may say of a point whose margin is at most `high`."""
    example = Counterexample(POINT, np.zeros(1), -1.0, -1.0) if status is Validity.HOLDS else None
    return Validation(status, POINT, margin_real=(high - 0.5, high), counterexample=example)


def test_points_that_a_ball_pulls_out_of_their_box_are_not_remembered() -> None:
    """What they show of the margin would be said of inputs, and contradict a bound that is right."""
    graph = relu_network([2, 6, 6, 1], 0)
    ball = Ball([0.0, 0.0], 1.0, "l1", [0.8, -1.0], [1.0, 1.0])
    problem = mv.Problem(graph, ball, unsafe=Rows.on_outputs([[1.0]], [-10.0], 2))
    _, tree = neurons_of(context_of(problem, options=PLAIN))
    box, points = problem.disjuncts[0].box, tree.incumbents
    points.remember(0, np.array([0.9, 0.6]))
    assert all((box.lower <= x).all() and (x <= box.upper).all() for _, x in points.best.values())
    points.remember(0, np.array([0.85, 0.1]))
    assert ball.contains(points.best[0][1])


# -- what is open, and its bound ----------------------------------------------------------------------------------------------


def test_of_roots_that_were_never_bounded_nothing_is_proved() -> None:
    _, tree = neurons_of(context_of(problem_of()))
    assert tree.lower_bound == -math.inf and len(tree.left) == 4 and tree.unfinished and not tree.closed
    assert tree.outcome({}).detail["open"] == 4


def test_the_bound_is_of_all_that_is_open_wherever_it_is() -> None:
    tree = tree_of(-1.0, -2.0, -3.0, -4.0)
    assert tree.lower_bound == -4.0
    parents = tree.pop(2)
    assert sorted(parents.bound.tolist()) == [-4.0, -3.0] and len(tree.frontier) == 2
    assert tree.lower_bound == -4.0 and len(tree.left) == 4  # until their children are known, parents stand for them
    tree.push(replace(parents, bound=parents.bound + 3.5))
    assert tree.lower_bound == -2.0 and not len(tree.in_progress)
    hardest = tree.pop(1)
    tree.push(hardest.none)
    for name in ("unsplittable", "abandoned"):
        setattr(tree, name, hardest)
        assert tree.lower_bound == -2.0 and not tree.closed
        assert len(tree.left) == (3 if name == "unsplittable" else 4)
        setattr(tree, name, hardest.none)
    assert tree.lower_bound == -1.0


def test_what_was_in_progress_is_taken_up_again() -> None:
    tree = tree_of(-1.0, -2.0)
    tree.pop(1)
    tree.reopen()
    assert len(tree.frontier) == 2 and not len(tree.in_progress) and tree.lower_bound == -2.0


def test_a_tree_is_closed_once_nothing_is_open_and_memory_was_not_short() -> None:
    tree = tree_of(-1.0)
    parents = tree.pop(1)
    assert not tree.unfinished and not tree.closed
    tree.push(parents.none)
    assert tree.closed and tree.lower_bound == math.inf
    tree.close(0.25, Part.NEURON_SPLITS)
    assert tree.closed and tree.lower_bound == 0.25
    tree.out_of_memory = True
    assert not tree.closed


def test_what_is_closed_counts_with_the_least_bound_and_is_in_the_ledger() -> None:
    tree = tree_of(0.75)
    tree.close(0.5, Part.NEURON_SPLITS, 3)
    tree.close(0.25, Part.LEAVES, 0)
    assert tree.lower_bound == 0.5 and tree.incumbents.context.ledger.closed == {Part.NEURON_SPLITS: 3}
    tree.count(0.125)
    tree.close(2.0, Part.LEAVES)
    assert tree.lower_bound == 0.125 and tree.incumbents.context.ledger.closed == {Part.NEURON_SPLITS: 3, Part.LEAVES: 1}


def test_under_conditions_a_margin_is_known_up_to_0_at_most() -> None:
    """Bounds that hold at unsafe points only say nothing of how far from unsafe the others are."""
    tree = tree_of(0.75, conditional=True)
    assert tree.lower_bound == 0.0
    tree.close(0.5, Part.NEURON_SPLITS)
    assert tree.closed_bound == 0.0
    below = tree_of(-1.0, conditional=True)
    below.count(math.inf)
    assert below.closed_bound == 0.0 and below.lower_bound == -1.0


def test_to_begin_again_forgets_what_is_open_alone() -> None:
    tree = tree_of(-1.0, -2.0)
    tree.abandoned = tree.unsplittable = tree.pop(1)
    tree.close(0.5, Part.NEURON_SPLITS)
    tree.clear(tree.in_progress)
    assert tree.closed and tree.lower_bound == 0.5


def test_to_go_on_from_another_tree_keeps_what_was_closed_proved_and_found() -> None:
    old, new = tree_of(-1.0, -2.0), tree_of(-0.5)
    old.close(0.5, Part.NEURON_SPLITS)
    old.counts.bounded, old.proved, old.trust, old.raised, old.note = 7, -0.25, Trust.SOLVER, True, "a note"
    old.incumbents.note(said(Validity.FLOAT_SEMANTICS))
    new.continues(old)
    assert (new.closed_bound, new.proved, new.trust, new.raised, new.note) == (0.5, -0.25, Trust.SOLVER, True, "a note")
    assert new.lower_bound == -0.5 and new.incumbents.disagreement
    new.counts.bounded = 3
    outcome = new.outcome({})
    assert outcome.lower_bound == -0.25 and outcome.trust is Trust.SOLVER and outcome.detail["subproblems"] == 10
    newest = tree_of(-0.5)
    newest.continues(new)
    assert newest.counts.before == 10 and newest.counts.restarts == 2


def test_what_was_proved_once_stays_proved() -> None:
    space, tree = neurons_of(context_of(problem_of(1), options=PLAIN))
    known = grown(tree, space, 0).lower_bound
    assert -math.inf < known == tree.proved < 0 and not tree.decided
    tree.push(replace(tree.pop(1), bound=torch.tensor([known - 1.0], dtype=torch.float64)))
    assert tree.lower_bound == known - 1.0 and tree.outcome({}).lower_bound == known


# -- how it ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trust", "raised", "while_open"), [
    (Trust.ROUNDED, False, Trust.ROUNDED),
    (Trust.ROUNDED, True, Trust.SOLVER),  # bounds of what is open alone rest on a solver
    (Trust.SOLVER, False, Trust.SOLVER),
])  # fmt: skip
def test_a_bound_says_what_it_rests_on(trust: Trust, raised: bool, while_open: Trust) -> None:
    tree = tree_of(-1.0)
    tree.trust, tree.raised = trust, raised
    assert tree.trust_of_bound is tree.outcome({}).trust is while_open
    tree.push(tree.pop(1).none)
    tree.close(0.5, Part.NEURON_SPLITS)
    outcome = tree.outcome({})
    assert outcome.closed and outcome.trust is trust and outcome.lower_bound == 0.5


def test_a_tree_without_an_answer_says_why() -> None:
    tree = tree_of(-1.0)
    assert tree.outcome({}).reason is Reason.UNDECIDED
    tree.ties = {0}  # what else is open may yet be decided
    assert tree.outcome({}).reason is Reason.UNDECIDED
    parents = tree.pop(1)
    assert tree.outcome({}).reason is Reason.UNDECIDED
    tree.push(parents.none)
    tree.unsplittable = parents
    assert tree.outcome({}).reason is Reason.FLOAT_SEMANTICS
    tree.out_of_memory = True
    assert tree.outcome({}).reason is Reason.MEMORY


def smooth() -> Problem:
    """tanh of the sum of two inputs."""
    builder = Builder(2)
    y = builder.function("tanh", builder.matmul(builder.nodes[0], np.ones((2, 1))))
    box = Box(-np.ones(2), np.ones(2))
    return Problem(builder.graph([y], (), ()), (Disjunct(box, Rows.on_outputs([[1.0]], [-1.0], 2), Rows.none(2, 1)),))


def test_a_margin_between_a_point_and_a_bound_that_are_within_delta_is_an_answer() -> None:
    context = context_of(smooth())
    delta = context.delta
    _, tree = neurons_of(context)
    assert tree.unbounded is not None and delta > 0
    tree.push(replace(tree.unbounded, bound=torch.tensor([-0.5 * delta], dtype=torch.float64)))
    assert not tree.decided
    tree.incumbents.note(said(Validity.NOT_A_COUNTEREXAMPLE, 2.0 * delta))
    assert not tree.decided
    tree.incumbents.note(said(Validity.NOT_A_COUNTEREXAMPLE, delta))
    assert tree.decided and not tree.falsified
    assert tree.outcome({}).reason is Reason.DELTA and "X = (" in tree.outcome({}).note
    tree.push(replace(tree.pop(1), bound=torch.tensor([-2.0 * delta], dtype=torch.float64)))
    assert not tree.decided and tree.outcome({}).reason is Reason.UNDECIDED


def test_piecewise_linear_margins_are_never_left_within_delta() -> None:
    tree = tree_of(0.0)
    tree.incumbents.note(said(Validity.NOT_A_COUNTEREXAMPLE, 0.0))
    assert tree.incumbents.near is None and not tree.decided


# -- the best points ----------------------------------------------------------------------------------------------------------


def test_a_counterexample_decides_and_no_disagreement_takes_its_place() -> None:
    tree = tree_of(-1.0)
    tree.incumbents.note(None)
    tree.incumbents.note(said(Validity.NOT_A_COUNTEREXAMPLE))
    assert not tree.decided and not tree.incumbents.disagreement
    tree.incumbents.note(said(Validity.FLOAT_SEMANTICS))
    assert not tree.decided and tree.outcome({}).disagreement
    tree.incumbents.note(said(Validity.HOLDS))
    before = tree.incumbents.disagreement
    tree.incumbents.note(said(Validity.FLOAT_SEMANTICS, 0.25))
    assert tree.falsified and tree.decided and tree.incumbents.disagreement == before
    outcome = tree.outcome({})
    assert outcome.counterexample is tree.incumbents.counterexample is not None and not outcome.disagreement


def test_what_was_found_on_a_part_is_taken_over() -> None:
    tree, none, some = tree_of(-1.0), tree_of(-1.0).incumbents, tree_of(-1.0).incumbents
    some.note(said(Validity.HOLDS))
    for part in (None, none):
        tree.incumbents.take(part)
        assert not tree.falsified
    tree.incumbents.take(some)
    tree.incumbents.take(none)
    assert tree.incumbents.counterexample is some.counterexample is not None


def test_what_the_solver_beside_it_found_is_part_of_the_outcome() -> None:
    problem = problem_of(1)
    context = context_of(problem)
    with Oracle(problem, context.options, context.deadline) as oracle:
        oracle.notes.append("it died")
        oracle.disagreement = "they differ"
        _, tree = neurons_of(replace(context, oracle=oracle))
        outcome = tree.outcome({})
        assert "it died" in outcome.note and outcome.disagreement == "they differ" and outcome.detail["oracle_tasks"] == 0
        oracle.counterexample = said(Validity.HOLDS).counterexample
        outcome = tree.outcome({})
        assert outcome.counterexample is oracle.counterexample and not outcome.disagreement


def incumbents_of(*domain: float) -> Incumbents:
    """Of the sum of two inputs within the unit square, where that is at least each of the numbers given."""
    builder = Builder(2)
    graph = builder.graph([builder.function("relu", builder.matmul(builder.nodes[0], np.ones((2, 1))))], (), ())
    within = Rows(-np.ones((len(domain), 2)), np.zeros((len(domain), 1)), -np.array(domain), np.zeros(len(domain), dtype=bool))
    disjunct = Disjunct(Box(np.zeros(2), np.ones(2)), Rows.on_outputs([[1.0]], [-1.0], 2), within)
    _, tree = neurons_of(context_of(Problem(graph, (disjunct,))))
    return tree.incumbents


def test_the_best_point_is_kept() -> None:
    found = incumbents_of()
    for x, margin, best in ((0.5, 2.0, 0.5), (0.75, 2.0, 0.5), (0.25, 1.5, 0.25), (-3.0, 1.0, 0.0)):  # the last is moved into the box
        found.remember(0, np.full(2, x))
        assert found.best[0][0] == pytest.approx(margin) and found.best[0][1].tolist() == [best, best]


def test_a_point_outside_the_constraints_between_inputs_is_not_kept() -> None:
    found = incumbents_of(1.0)
    found.remember(0, np.full(2, 0.25))
    assert not found.best
    found.remember(0, np.full(2, 0.75))
    found.remember(0, np.full(2, 0.25))
    assert found.best[0][1].tolist() == [0.75, 0.75]


def test_a_point_that_is_validated_is_what_the_network_says_of_it() -> None:
    found = incumbents_of()
    found.validate(0, np.zeros(2))
    assert found.counterexample is None and not found.disagreement
    unsafe = replace(found.group.disjuncts[0].unsafe, rhs=np.array([0.5]))
    found.group = replace(found.group, disjuncts=(replace(found.group.disjuncts[0], unsafe=unsafe),))
    found.validate(0, np.ones(2))
    assert found.counterexample is None
    found.validate(0, np.zeros(2))
    assert found.counterexample is not None and found.counterexample.margin_real <= 0
