"""Bounds under "the output is unsafe" hold at every unsafe point, and count as 0 at most."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from points import sampled
from random_graphs import dense_network
from random_nets import CONTINUOUS, enumerated_minimum, proved_bounds, random_problem, relu_network
from trees import PLAIN, context_of, grown, neurons_of, root_of

from milpverify.config import Deadline, SearchOptions
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.inquiries.judging import Judging
from milpverify.inquiries.refinement import Refinement
from milpverify.propagation.optimised.beta import Dual, OutputConstraints
from milpverify.propagation.optimised.output_constraints import ConstraintTuning, tightened
from milpverify.result import Trust
from milpverify.search.neuron_split.bounder import Bounder
from milpverify.search.neuron_split.conditional import conditional_root, swept_state
from milpverify.solvers.base import Limits
from milpverify.solvers.process import SolverProcess
from milpverify.spec import Box, Disjunct, Problem, Rows

ON = SearchOptions(no_goods=False)


def bounder_of(graph: Graph, disjuncts: list[Disjunct]) -> Bounder:
    group, root = root_of(Problem(graph, tuple(disjuncts)))
    return Bounder(graph, group, root.state, Deadline(60))


def constraints(bounder: Bounder, shift: float = 0.0) -> OutputConstraints:
    rows, rhs, x_rows = bounder.rows_of(torch.tensor([0]))
    return OutputConstraints(rows, x_rows, rhs + shift)


def residuals(given: OutputConstraints, points: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    found = y @ given.rows[0].T - given.rhs[0]
    return found if given.x_rows is None else found + points @ given.x_rows[0].T


@pytest.mark.parametrize("seed", range(12))
def test_conditional_bounds_hold_at_unsafe_points(seed: int) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    bounder = bounder_of(graph, [disjunct])
    points = sampled(disjunct.box, 4000, seed)
    values = evaluate_all(graph, points)
    worst = residuals(constraints(bounder), points, values[graph.output]).amax(1)
    for share in (0.01, 0.2, 0.6):
        given = constraints(bounder, float(worst.quantile(share)) + 1e-9 * max(1.0, float(worst.abs().amax())))
        unsafe = (residuals(given, points, values[graph.output]) <= 0).all(1)
        with torch.no_grad():
            found = tightened(bounder.fast, bounder.state, given, 1000)
        assert bool(unsafe.any()) and not found.empty
        for z in bounder.slots:
            bounds, value = found.state[z].bounds, values[z][unsafe]
            slack = 1e-12 * (1 + value.abs())
            assert bool((value >= bounds.lower[0] - slack).all()) and bool((value <= bounds.upper[0] + slack).all())


@pytest.mark.parametrize("seed", range(4))
def test_any_multipliers_give_bounds_that_hold_at_unsafe_points(seed: int) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    bounder = bounder_of(graph, [disjunct])
    if not bounder.relaxations.count:
        pytest.skip("everything is stable")
    points = sampled(disjunct.box, 3000, seed)
    values = evaluate_all(graph, points)
    given = constraints(bounder)
    given = constraints(bounder, float(residuals(given, points, values[graph.output]).amax(1).quantile(0.3)))
    unsafe = (residuals(given, points, values[graph.output]) <= 0).all(1)
    relaxations, g = bounder.relaxations, torch.Generator().manual_seed(seed)
    for z in bounder.slots:
        size = graph.nodes[z].size
        rows = torch.cat([torch.eye(size), -torch.eye(size)]).double()[None]
        place = torch.zeros(1, dtype=torch.long)
        slopes = relaxations.slopes(relaxations.lines, place).unsqueeze(1).repeat(1, 2 * size, 1)
        for scale in (1e-3, 1.0, 1e3):
            gamma = torch.rand(1, 2 * size, given.rhs.shape[1], generator=g) * scale
            dual = Dual(torch.rand(slopes.shape, generator=g), slopes[:, :, :0], gamma)
            domain = replace(relaxations.domain(place), given=given)
            lower = relaxations.certify(domain, rows, dual, node=z).lower[0]
            value = torch.cat([values[z].flatten(1), -values[z].flatten(1)], 1)[unsafe]
            assert bool((lower <= value + 1e-12 * (1 + value.abs())).all())


def robust(seed: int) -> tuple[Graph, Disjunct, float]:
    """A network, an unsafe set that the samples reach, and the least margin among them."""
    graph, box = relu_network([6, 24, 24, 2], seed), Box(-np.ones(6), np.ones(6))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, -1.0]], [0.0], 6), Rows.none(6, 2))
    y = evaluate(graph, sampled(disjunct.box, 4000, seed))
    return graph, disjunct, float((y[:, 0] - y[:, 1]).amin())


@pytest.mark.parametrize("seed", range(4))
def test_constraints_tighten_and_refute(seed: int) -> None:
    graph, disjunct, least = robust(seed)
    bounder = bounder_of(graph, [disjunct])
    with torch.no_grad():
        root = bounder.bound(bounder.first(), 40)[0].bound
        assert float(root) < least
        before = sum(float(bounder.state[z].bounds.width.sum()) for z in bounder.slots)
        near = tightened(bounder.fast, bounder.state, constraints(bounder, least), 1000, ConstraintTuning(iterations=20))
        after = sum(float(near.state[z].bounds.width.sum()) for z in bounder.slots)
        assert not near.empty and after < 0.999 * before
        # Below the bound of the relaxation nothing is unsafe.
        assert tightened(bounder.fast, bounder.state, constraints(bounder, float(root) - abs(float(root))), 1000).empty


def test_a_disjunct_refuted_at_the_root_counts_as_zero_and_others_keep_their_own_bounds() -> None:
    graph, disjunct, least = robust(0)
    bounder = bounder_of(graph, [disjunct])
    with torch.no_grad():
        root = float(bounder.bound(bounder.first(), 40)[0].bound)
    far, near = (
        Disjunct(disjunct.box, Rows.on_outputs([[1.0, -1.0]], [rhs], 6), Rows.none(6, 2)) for rhs in (root - abs(root), least - 0.3)
    )
    bounder = bounder_of(graph, [near, far])
    with torch.no_grad():
        found = conditional_root(bounder, [0, 1], Deadline(60))
    assert found is not None and found.disjuncts == [0] and found.refuted == [1]
    for options in (PLAIN, ON):
        space, tree = neurons_of(context_of(Problem(graph, (near, far)), options=options))
        if options.output_constraints:
            space.patience = 0
        outcome = grown(tree, space)
        assert outcome.closed
        assert outcome.lower_bound == 0 if options is ON else outcome.lower_bound > 0
        assert tree.conditional is (options is ON)


@pytest.mark.parametrize("seed", range(6))
def test_an_empty_interval_means_that_enumeration_finds_nothing_unsafe(seed: int) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not np.isfinite(least):
        pytest.skip("the input set is empty")
    bounder = bounder_of(graph, [disjunct])
    for by in (1.0, 1e-2, 1e-4, -1e-4):
        size = by * max(1.0, abs(least))
        with torch.no_grad():
            empty = tightened(bounder.fast, bounder.state, constraints(bounder, least - size), 1000).empty
        assert not (empty and size < 0)


def test_beginning_again_under_output_constraints_keeps_what_was_proved() -> None:
    graph, disjunct, least = robust(1)
    near = Disjunct(disjunct.box, Rows.on_outputs([[1.0, -1.0]], [least - 0.01], 6), Rows.none(6, 2))
    space, tree = neurons_of(context_of(Problem(graph, (near,)), options=SearchOptions(clipping=False)))
    space.patience = 30
    before = grown(tree, space, 30)
    assert len(tree.left) and not tree.conditional
    after = grown(tree, space, tree.counts.bounded + 1)
    assert tree.conditional and after.lower_bound >= before.lower_bound
    assert bool((tree.left.bound >= before.lower_bound).all())
    done = grown(tree, space, 300)
    assert after.lower_bound <= done.lower_bound <= 0.01


def test_without_time_every_disjunct_keeps_the_bounds_that_hold_everywhere() -> None:
    graph, disjunct = random_problem(1, CONTINUOUS)
    bounder = bounder_of(graph, [disjunct, disjunct])
    with torch.no_grad():
        root = conditional_root(bounder, [0, 1], Deadline(0.0))
    if not bounder.relaxations.count:
        pytest.skip("everything is stable")
    assert root is not None and root.disjuncts == [0, 1] and not root.refuted
    for i, known in bounder.state.items():
        assert torch.equal(root.state[i].bounds.lower, known.bounds.lower.expand(2, *known.bounds.lower.shape[1:]))


class Blind(Judging):
    """Sees no counterexample."""

    def consider(self, x: np.ndarray, value: float) -> None:
        pass

    def polish(self, x: np.ndarray, value: float) -> None:
        pass


def swept(graph: Graph, disjunct: Disjunct, rounds: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What some sweeps prove of the nodes at unsafe points."""
    problem = Problem(graph, (disjunct,))
    refinement = Refinement(graph, disjunct, proved_bounds(graph, disjunct.box), Blind(problem, disjunct, 0.0), Deadline(60))
    with SolverProcess("scip") as process, torch.no_grad():
        questions = refinement.questions()
        question = next(questions)
        for _ in range(rounds):
            question = questions.send(process.solve(question, Limits(30.0), Deadline(60)))
    assert refinement.swept is not None and not refinement.decided
    return list(refinement.swept)


def smooth(seed: int) -> tuple[Graph, Box, float]:
    """A network with the least value of its first output, nearly."""
    graph, box = dense_network((3, 8, 8, 1), "tanh", seed), Box(-np.ones(3), np.ones(3))
    return graph, box, float(evaluate(graph, sampled(box, 20_000, 0)).min())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_swept_holds_at_unsafe_points_and_is_narrower(seed: int) -> None:
    graph, box, least = smooth(seed)
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [least - 0.05], 3), Rows.none(3, 1))
    ranges = swept(graph, disjunct)
    bounder = bounder_of(graph, [disjunct])
    found = swept_state(graph, bounder.state, ranges)
    assert found is not None
    points = sampled(box, 20_000, 1)
    values = evaluate_all(graph, points)
    for i, state in found.items():
        low, high = (t[0] for t in (state.bounds.lower, state.bounds.upper))
        assert bool((low <= high).all())
        assert bool((low >= bounder.state[i].bounds.lower[0]).all()) and bool((high <= bounder.state[i].bounds.upper[0]).all())
    assert swept_state(graph, found, ranges) is None  # nothing new
    easier = Disjunct(box, Rows.on_outputs([[1.0]], [least + 0.1], 3), Rows.none(3, 1))
    ranges, inside = swept(graph, easier, 1), values[graph.output].flatten() <= least + 0.1
    for (low, high), value in zip(ranges, values, strict=True):
        slack = 1e-9 * (1 + value[inside].abs())
        assert bool((value[inside] >= low - slack).all()) and bool((value[inside] <= high + slack).all())


def test_a_tree_begins_again_from_what_is_swept_and_rests_on_the_solver() -> None:
    graph, box, least = smooth(0)
    problem = Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [least - 0.02], 3), Rows.none(3, 1)),))
    ranges = swept(graph, problem.disjuncts[0], 1)
    plain = neurons_of(context_of(problem))
    space, tree = neurons_of(context_of(problem))
    grown(tree, space, 8)
    assert len(tree.frontier) and tree.trust is Trust.ROUNDED
    space.swept[0] = ranges
    outcome, alone = grown(tree, space, 200), grown(plain[1], plain[0], 200)
    assert not space.swept and outcome.trust is Trust.SOLVER and alone.trust is Trust.ROUNDED
    assert alone.lower_bound < outcome.lower_bound <= 0.02
