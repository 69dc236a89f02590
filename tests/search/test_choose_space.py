"""The trial of both searches: whoever goes on, the answer is the one of enumeration, and what either closed stays closed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bisections import bisection
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, relu_network

from milpverify import Options, SearchOptions, Verdict, verify
from milpverify.config import Deadline
from milpverify.search import choose_space, strategy
from milpverify.search.bounding import bound_batch
from milpverify.search.choose_space import SplitSpace, Trial
from milpverify.search.gap import doublings, gap_closed
from milpverify.search.groups import Group, groups
from milpverify.search.ledger import Reporter
from milpverify.search.neuron_split.search import Search
from milpverify.search.solver.leaves import Leaves
from milpverify.search.strategy import Decision
from milpverify.spec import Box, Disjunct, Problem, Rows

COUNTED = SearchOptions(deterministic=True)


@pytest.fixture(autouse=True)
def everything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategy, "few_inputs", lambda group: False)
    monkeypatch.setattr(choose_space, "BOXES", 3)
    monkeypatch.setattr(choose_space, "SPLITS", 2)


def moved(disjunct: Disjunct, by: float) -> Disjunct:
    unsafe = disjunct.unsafe
    return replace(disjunct, unsafe=Rows(unsafe.x_rows, unsafe.y_rows, unsafe.rhs + by, unsafe.strict))


def decided(problem: Problem, leaves: Leaves) -> Decision:
    (group,) = groups(problem)
    leaves.problem = problem
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with torch.no_grad():
        root = bound_batch(problem.graph, group, lower, upper, torch.float64)
        return strategy._search(
            problem, problem.graph, group, root, {}, Deadline(60), Reporter(None), None, leaves, Options(search=COUNTED)
        )


def several(seed: int) -> tuple[Problem, float]:
    """Three disjuncts over one box, two of them easy, and the unit in which they differ from 0."""
    graph, first = random_problem(seed, CONTINUOUS)
    first = replace(first, domain=Rows.none(graph.nx, graph.ny))
    rng = np.random.default_rng(seed)
    least = enumerated_minimum(graph, first)
    disjuncts, size = [moved(first, least)], 1e-2 * max(1.0, abs(least))
    for share in (3.0, 30.0):
        rows = Rows(np.zeros((1, graph.nx)), rng.normal(0, 1, (1, graph.ny)), np.zeros(1), np.array([False]))
        other = Disjunct(first.box, rows, first.domain)
        disjuncts.append(moved(other, enumerated_minimum(graph, other) - share * size))
    return Problem(graph, tuple(disjuncts)), size


@pytest.mark.parametrize("seed", range(20))
def test_whoever_goes_on_the_answer_is_the_one_of_enumeration(seed: int, leaves: Leaves) -> None:
    problem, size = several(seed)
    for by, safe in ((-size, True), (size, False)):
        near = replace(problem, disjuncts=(moved(problem.disjuncts[0], by), *problem.disjuncts[1:]))
        found = decided(near, leaves)
        assert found.lower_bound <= -by + 1e-4 * size
        assert found.verified == safe, found
        assert (found.counterexample is not None) == (not safe)


@pytest.mark.parametrize(("boxes", "splits"), [(64, 16), (8, 1), (512, 1)])
@pytest.mark.parametrize(("nx", "width", "share", "winner"), [(5, 60, 0.2, SplitSpace.INPUTS), (24, 16, 0.4, SplitSpace.NEURONS)])
def test_who_goes_on_depends_on_the_problem(
    nx: int, width: int, share: float, winner: str, boxes: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And little on how long a first round is, or on what either has closed in it: cheap boxes gain more at first."""
    monkeypatch.setattr(choose_space, "BOXES", boxes)
    monkeypatch.setattr(choose_space, "SPLITS", splits)
    tried, _ = _trial(part_way(nx, width, share))
    with torch.no_grad():
        assert tried.run(Deadline(60), counted=True) == winner
    if tried.rounds:
        assert (tried.rounds[-1][0] < tried.rounds[-1][1]) == (winner is SplitSpace.INPUTS)


def test_doublings_follow_the_rate_seen_so_far() -> None:
    assert doublings(-8.0, -4.0, 15) == 4.0  # four doublings closed half
    assert doublings(-8.0, -6.0, 15) == 12.0
    assert doublings(-8.0, 0.5, 15) == 0.0
    assert doublings(-8.0, -8.0, 15) == math.inf
    assert (gap_closed(-math.inf, -1.0), gap_closed(-math.inf, -math.inf), gap_closed(-2.0, -1.5)) == (1.0, 0.0, 0.25)


def part_way(nx: int, width: int = 16, share: float = 0.5, seed: int = 3) -> Problem:
    """A network whose margin is to be proved above a share of its first bound."""
    graph = relu_network([nx, width, width, 2], seed)
    disjunct = Disjunct(Box(np.full(nx, -0.6), np.full(nx, 0.6)), Rows.on_outputs([[1.0, -1.0]], [0.0], nx), Rows.none(nx, 2))
    tried, _ = _trial(Problem(graph, (disjunct,)))
    return Problem(graph, (moved(disjunct, share * tried.root),))


def _trial(problem: Problem) -> tuple[Trial, Group]:
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with torch.no_grad():
        root = bound_batch(problem.graph, group, lower, upper, torch.float64)
        boxes = bisection(problem, options=COUNTED, root=root)
        search = Search(problem, problem.graph, group, root.state, Deadline(60))
    return Trial(boxes, search, float(root.margins.amin()), 10), group


@pytest.mark.parametrize("seed", range(8))
def test_what_one_closed_is_closed_for_the_other(seed: int) -> None:
    """After the exchange either has open what both had open, and its bound is below every margin still."""
    problem, size = several(seed)
    problem = replace(problem, disjuncts=(moved(problem.disjuncts[0], -0.1 * size), *problem.disjuncts[1:]))
    tried, group = _trial(problem)
    with torch.no_grad():
        tried.run(Deadline(60), counted=True)
        both, search = tried.boxes, tried.neurons
        parts = [search.frontier.all(), search.stuck, *([] if search.waiting is None else [search.waiting])]
        neurons = {k for part in parts for k in part.disjunct.tolist()}
        margins = torch.cat([both.frontier.all().margins, both.stuck.margins])
        boxes = set((~group.closed(margins)).any(0).nonzero().flatten().tolist())
        if search.bounded and tried.rounds:
            assert boxes <= neurons
    assert tried.bound <= 0.1 * size + 1e-4 * size


def test_a_search_in_instalments_bounds_what_one_in_a_piece_does() -> None:
    problem = part_way(10)
    with torch.no_grad():
        whole, parts = (bisection(problem, options=COUNTED) for _ in range(2))
        once = whole.run()
        seen = [parts.run(limit=300)]
        while not seen[-1].closed and len(seen) < 500:
            seen.append(parts.run(limit=parts.subproblems + 300))
    assert once.closed and len(seen) > 2
    assert (once.subproblems, once.lower_bound) == (seen[-1].subproblems, seen[-1].lower_bound)
    bounds = [outcome.lower_bound for outcome in seen]
    assert bounds == sorted(bounds)


def test_groups_in_between_are_tried_and_the_ledger_says_so() -> None:
    options = Options(search=SearchOptions(deterministic=True), attack=False)
    result = verify(part_way(10), 60, "bab", options=options)
    search = next(p for p in result.phases if p.name == "search")
    assert result.verdict is Verdict.VERIFIED and search.detail["trial"] > 0
