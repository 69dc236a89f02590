"""The solver beside the bisection: what it finds reaches the boxes that it is about and no others, and each way can be switched off."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import disjunct_of, relu_network
from support import detail
from trees import box_sharing, boxes_of, context_of

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.graph import Graph, evaluate
from milpverify.propagation.state import node_ranges
from milpverify.result import Trust, Verdict
from milpverify.search import strategy
from milpverify.search.batch_size import BatchSize
from milpverify.search.bounding import BatchBounds
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.choose_space import SpaceTuning
from milpverify.search.context import SearchContext
from milpverify.search.effort import EffortTuning
from milpverify.search.groups import Group
from milpverify.search.input_split.boxes import Boxes
from milpverify.search.input_split.tasks import BoxTaskTuning
from milpverify.search.ledger import Part
from milpverify.search.outcome import SearchOutcome
from milpverify.search.sharing import Sharing
from milpverify.search.solver.oracle import Finding, Oracle, Task
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem
from milpverify.verify import verify

NX = 5
BOXES = (SpaceTuning(head=math.inf, far=math.inf), BoxTaskTuning(first=0, share=math.inf, small=-1))
"""Nothing but inputs is split, and the solver is asked at once; these networks stand for larger ones."""


@pytest.fixture(scope="module")
def network() -> tuple[Graph, Box, float]:
    """A network whose bisection takes long and a solver's model less, with the least margin found by sampling."""
    graph, box = relu_network([NX, 20, 20, 3], 5), Box(-np.ones(NX), np.ones(NX))
    x = torch.rand(20000, NX, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = evaluate(graph, x).numpy()
    return graph, box, float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())


def run(graph: Graph, disjunct: Disjunct, seconds: float, parts: SearchOptions, alone: bool = False) -> tuple[SearchOutcome, Oracle]:
    """The bisection with two boxes at a time, which leaves the solver time."""
    problem, deadline = Problem(graph, (disjunct,)), Deadline(seconds)
    context = context_of(problem, deadline, replace(parts, finishing=False, tuning=parts.tuning or BOXES))
    with torch.no_grad(), Oracle(problem, context.options, deadline) as oracle:
        space, tree = boxes_of(replace(context, oracle=None if alone else oracle))
        space.batch = BatchSize(size=2, smallest=2, largest=2)
        branch_and_bound(tree, space, Budget(deadline), box_sharing(space))
        return tree.outcome(space.detail(tree)), oracle


def test_a_solver_closes_boxes_and_the_closure_rests_on_it(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 60, SearchOptions())
    assert outcome.closed and outcome.trust is Trust.SOLVER and oracle.counts["oracle_closed"] >= 1
    assert 0 <= outcome.lower_bound <= 0.3 + 1e-9


@pytest.mark.parametrize("parts", [SearchOptions(), SearchOptions(oracle_to_tree=False)])
def test_a_violated_property_is_never_closed(network: tuple[Graph, Box, float], parts: SearchOptions) -> None:
    graph, box, least = network
    outcome, _ = run(graph, disjunct_of(box, least + 0.01), 60, parts)
    assert not outcome.closed and outcome.lower_bound <= -0.01 + 1e-6
    assert outcome.counterexample is not None


@pytest.mark.parametrize(
    ("parts", "trust"),
    [
        (SearchOptions(oracle=False), "solver"),
        (SearchOptions(), "rounded"),
    ],
)
def test_what_is_switched_off_closes_nothing(network: tuple[Graph, Box, float], parts: SearchOptions, trust: str) -> None:
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    result = verify(problem, 3, options=Options(attack=False, trust=trust, search=replace(parts, finishing=False, tuning=BOXES)))
    assert result.bound_trust is Trust.ROUNDED and "oracle_closed" not in {k for k, n in detail(result).items() if n}
    assert (detail(result).get("oracle_tasks", 0) > 0) is parts.oracle
    assert result.lower_bound <= 0.3 + 1e-9


def test_without_the_way_to_the_oracle_it_works_on_the_whole_box(
    network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, box, least = network
    given: list[Task] = []
    give = Oracle.give

    def watched(self: Oracle, task: Task, *rest: object) -> None:
        given.append(task)
        give(self, task, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Oracle, "give", watched)
    run(graph, disjunct_of(box, least - 0.3), 3, SearchOptions(tree_to_oracle=False))
    assert given and all(t.box is None and not t.decisions for t in given)
    given.clear()
    run(graph, disjunct_of(box, least - 0.3), 3, SearchOptions())
    assert any(t.box is not None and (t.box.upper - t.box.lower < 2).any() for t in given)


class Told:
    """An oracle that says what it is told to say."""

    def __init__(self, options: Options) -> None:
        self.options, self.counts = options, {"oracle_tasks": 0, "oracle_closed": 0}
        self.usable, self.counterexample, self.stopped = True, None, 0
        self.task: Task | None = None
        self.findings: list[Finding] = []
        self.proved: dict[int, float] = {}
        self.solved: dict[tuple[int, tuple[object, ...]], float] = {}

    def give(self, task: Task, *_: object) -> None:
        self.task = task
        self.counts["oracle_tasks"] += 1

    def poll(self) -> Finding | None:
        finding = self.findings.pop(0) if self.findings else None
        if finding is not None and finding.ended:
            self.task = None
        return finding

    def stop(self) -> None:
        self.stopped += 1

    def whole(self) -> None:
        """It works on nothing yet."""


def beside(network: tuple[Graph, Box, float], **parts: bool) -> tuple[Told, Tree[Boxes], Sharing[Boxes]]:
    """Two disjuncts after some batches of bisection, with a solver beside it that has not been asked yet."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.31)))
    context = context_of(problem, options=SearchOptions(finishing=False, tuning=BOXES, **parts))
    oracle = Told(context.options)
    space, tree = boxes_of(replace(context, oracle=oracle))  # type: ignore[arg-type]
    space.batch = BatchSize(size=8, fixed=8)
    with torch.no_grad():
        branch_and_bound(tree, space, Budget(context.deadline, 40))
    sharing = box_sharing(space)
    assert sharing is not None and len(tree.frontier) > 8
    return oracle, tree, sharing


def closed(tree: Tree[Boxes]) -> int:
    """The boxes that the solver closed."""
    return tree.incumbents.context.ledger.closed.get(Part.ORACLE, 0)


@pytest.mark.parametrize("tree_to_oracle", [True, False])
def test_a_bisection_that_is_not_told_ends_once_nothing_else_is_open(network: tuple[Graph, Box, float], tree_to_oracle: bool) -> None:
    """The oracle gets the whole box, disjunct by disjunct; what it closes stays open in the bisection until that closed the rest."""
    oracle, tree, sharing = beside(network, oracle_to_tree=False, tree_to_oracle=tree_to_oracle)
    count = len(tree.frontier)
    with torch.no_grad():
        sharing.share(tree)
        first = oracle.task
        assert first is not None and first.box is None and tree.frontier.lent is None  # all of it
        oracle.findings.append(Finding(first, 0.25, True))
        sharing.share(tree)
        second = oracle.task
        assert second is not None and second.disjunct == 1 - first.disjunct
        assert len(tree.frontier) == count and tree.trust is Trust.ROUNDED and not closed(tree)
        tree.frontier.store.margins[:, second.disjunct] = 1.0  # as if bisection had proved it
        sharing.share(tree)
    assert not len(tree.frontier) and closed(tree) == count and tree.trust is Trust.SOLVER


def test_a_bound_reaches_the_open_boxes_within_the_task_and_its_disjunct_alone(network: tuple[Graph, Box, float]) -> None:
    oracle, tree, sharing = beside(network)
    frontier = tree.frontier
    with torch.no_grad():
        sharing.share(tree)
        task, lent, count = oracle.task, frontier.lent, len(frontier)
        assert task is not None and task.box is not None and lent is not None
        assert float(frontier.store.proved[lent]) == frontier.lowest
        # What is lent is taken last.
        others = frontier.pop(count - 1)
        assert bool(frontier.alive[lent]) and len(frontier) == 1
        frontier.push(others)
        # Bisect what is lent, as happens when nothing else is left.
        only = frontier.store.take(torch.tensor([lent]))
        frontier.remove(torch.tensor([lent]))
        frontier.push(only.halves())
        before = frontier.all()
        inside = before.within(torch.tensor(task.box.lower), torch.tensor(task.box.upper))
        assert int(inside.sum()) == 2 < len(before)
        oracle.findings.append(Finding(task, -1e-3, False))
        sharing.share(tree)
        after = frontier.all()
        assert (after.margins[~inside] == before.margins[~inside]).all()
        assert (after.margins[inside][:, task.disjunct] >= -1e-3).all()
        other = 1 - task.disjunct
        assert (after.margins[inside][:, other] == before.margins[inside][:, other]).all()
        assert tree.trust is Trust.ROUNDED and tree.trust_of_bound is Trust.SOLVER and not closed(tree)
        oracle.findings.append(Finding(task, 0.25, True))
        sharing.share(tree)
        done = int(tree.group.closed(before.margins)[inside][:, other].sum())
        assert closed(tree) == done and len(frontier) == len(before) - done
        assert tree.trust is Trust.SOLVER
        # The next task is another box or disjunct; once the bisection has closed all of it, it is taken back.
        assert oracle.task is not None and oracle.task is not task
        frontier.remove(torch.arange(len(frontier.alive)))
        sharing.share(tree)
    assert oracle.stopped >= 1


def test_a_task_of_one_group_says_nothing_to_the_next(network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group ends while the solver works on its disjunct 0; the second has a disjunct 0 of its own, which is violated."""
    graph, box, least = network
    part = Box(-np.ones(NX), np.array([-0.5, *np.ones(NX - 1)]))
    problem = Problem(graph, (disjunct_of(part, least - 0.3), disjunct_of(box, least + 0.05)))
    seen: list[Task | None] = []

    original = strategy.search_group

    def searched(context: SearchContext, group: Group, root: BatchBounds) -> SearchOutcome:
        oracle = context.oracle
        assert oracle is not None
        seen.append(oracle.task)
        if len(seen) > 1:
            return original(context, group, root)
        oracle.give(Task(0), problem.disjuncts[0], node_ranges(root.state))
        assert oracle.task is not None
        return SearchOutcome(True, 0.0, Trust.ROUNDED)

    monkeypatch.setattr(strategy, "search_group", searched)
    result = verify(problem, 60, options=Options(attack=False, search=SearchOptions(tuning=BOXES)))
    assert result.verdict is Verdict.FALSIFIED and seen == [None, None]


def test_in_deterministic_mode_it_has_turns_by_counts(network: tuple[Graph, Box, float]) -> None:
    """Two runs are the same run, and the solver closes what the bisection would take longer for."""
    graph, box, least = network
    parts = SearchOptions(deterministic=True, tuning=(BOXES[0], replace(BOXES[1], first=40 * EffortTuning().box)))
    runs = [run(graph, disjunct_of(box, least - 0.6), 120, parts) for _ in range(2)]
    (first, oracle), (second, _) = runs
    assert first.closed and oracle.counts["oracle_tasks"] > 0 and first.detail == second.detail
    assert (first.lower_bound, first.trust) == (second.lower_bound, second.trust)
    alone, _ = run(graph, disjunct_of(box, least - 0.6), 120, parts, alone=True)
    assert first.detail["subproblems"] < alone.detail["subproblems"]
    race, oracle = run(graph, disjunct_of(box, least - 0.6), 120, replace(parts, oracle_to_tree=False))
    assert race.closed and oracle.counts["oracle_tasks"] > 1 and race.detail["subproblems"] <= alone.detail["subproblems"]
