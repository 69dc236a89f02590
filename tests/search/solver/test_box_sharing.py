"""The solver beside the bisection: what it finds reaches the boxes that it is about and no others, and each way can be switched off."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bisections import bisection
from random_nets import disjunct_of, relu_network

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.counterexamples.validate import Validity
from milpverify.graph import Graph, evaluate
from milpverify.result import Trust, Verdict
from milpverify.search import strategy
from milpverify.search.batch_size import BatchSize
from milpverify.search.input_split.bisection import Bisection, SplitOutcome
from milpverify.search.solver import box_sharing
from milpverify.search.solver.box_sharing import BoxExchange
from milpverify.search.solver.oracle import Finding, Oracle, Task
from milpverify.spec import Box, Disjunct, Problem
from milpverify.verify import verify

NX = 5


@pytest.fixture(scope="module")
def network() -> tuple[Graph, Box, float]:
    """A network whose bisection takes long and a solver's model less, with the least margin found by sampling."""
    graph, box = relu_network([NX, 20, 20, 3], 5), Box(-np.ones(NX), np.ones(NX))
    x = torch.rand(20000, NX, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = evaluate(graph, x).numpy()
    return graph, box, float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(box_sharing, "FIRST", 0)
    monkeypatch.setattr(box_sharing, "SHARE", math.inf)


def run(graph: Graph, disjunct: Disjunct, seconds: float, parts: SearchOptions, trust: str = "solver") -> tuple[SplitOutcome, Oracle]:
    """The bisection with two boxes at a time, which leaves the solver time."""
    problem, deadline = Problem(graph, (disjunct,)), Deadline(seconds)
    with torch.no_grad(), Oracle(problem, Options(trust=trust), deadline) as oracle:
        search = bisection(problem, deadline, replace(parts, finishing=False), oracle=oracle)
        search.batch = BatchSize(size=2, smallest=2, largest=2)
        return search.run(), oracle


def test_a_solver_closes_boxes_and_the_closure_rests_on_it(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 60, SearchOptions())
    assert outcome.closed and outcome.trust is Trust.SOLVER and oracle.counts["oracle_closed"] >= 1
    assert 0 <= outcome.lower_bound <= 0.3 + 1e-9


@pytest.mark.parametrize("parts", [SearchOptions(), SearchOptions(oracle_to_tree=False)])
def test_a_violated_property_is_never_closed(network: tuple[Graph, Box, float], parts: SearchOptions) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least + 0.01), 60, parts)
    assert not outcome.closed and outcome.lower_bound <= -0.01 + 1e-6
    found = outcome.judgement is not None and outcome.judgement.status is Validity.HOLDS
    assert found or oracle.counterexample is not None


@pytest.mark.parametrize(
    ("parts", "trust"),
    [
        (SearchOptions(oracle=False), "solver"),
        (SearchOptions(), "rounded"),
    ],
)
def test_what_is_switched_off_closes_nothing(network: tuple[Graph, Box, float], parts: SearchOptions, trust: str) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 3, parts, trust)
    assert outcome.trust is Trust.ROUNDED and oracle.counts["oracle_closed"] == 0
    assert (oracle.counts["oracle_tasks"] > 0) is parts.oracle
    assert outcome.lower_bound <= 0.3 + 1e-9


def test_without_the_way_to_the_oracle_it_works_on_the_whole_box(
    network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, box, least = network
    tasks: list[Task] = []
    give = Oracle.give

    def watched(self: Oracle, task: Task, *rest: object) -> None:
        tasks.append(task)
        give(self, task, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Oracle, "give", watched)
    run(graph, disjunct_of(box, least - 0.3), 3, SearchOptions(tree_to_oracle=False))
    assert tasks and all(t.box is not None and (t.box.lower == box.lower).all() and (t.box.upper == box.upper).all() for t in tasks)
    tasks.clear()
    run(graph, disjunct_of(box, least - 0.3), 3, SearchOptions())
    assert any(t.box is not None and (t.box.upper - t.box.lower < 2).any() for t in tasks)


@pytest.mark.parametrize("tree_to_oracle", [True, False])
def test_a_bisection_that_is_not_told_ends_once_nothing_else_is_open(network: tuple[Graph, Box, float], tree_to_oracle: bool) -> None:
    """The oracle gets the whole box, disjunct by disjunct; what it closes stays open in the bisection until that closed the rest."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.31)))
    oracle, parts = Told(), SearchOptions(finishing=False, oracle_to_tree=False, tree_to_oracle=tree_to_oracle)
    with torch.no_grad():
        search = bisection(problem, options=parts, oracle=oracle)  # type: ignore[arg-type]
        search.frontier.push(search._sifted(search.root, search.whole))
        for _ in range(6):
            search.held = search.frontier.pop(4)
            search._expand()
        exchange, count = search.exchange, len(search.frontier)
        assert isinstance(exchange, BoxExchange)
        exchange.consult()
        first = oracle.task
        assert first is not None and first.box is not None and (first.box.lower == box.lower).all() and search.frontier.lent is None
        oracle.findings.append(Finding(first, 0.25, True))
        exchange.consult()
        second = oracle.task
        assert second is not None and second.disjunct == 1 - first.disjunct
        assert len(search.frontier) == count and exchange.trust is Trust.ROUNDED and not exchange.closed
        search.frontier.store.margins[:, second.disjunct] = 1.0  # as if bisection had proved it
        exchange.consult()
        assert not len(search.frontier) and exchange.closed == count and exchange.trust is Trust.SOLVER


class Told:
    """An oracle that says what it is told to say."""

    def __init__(self) -> None:
        self.counts = {"oracle_tasks": 0, "oracle_closed": 0}
        self.usable, self.counterexample, self.stopped = True, None, 0
        self.task: Task | None = None
        self.findings: list[Finding] = []

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


def test_a_bound_reaches_the_open_boxes_within_the_task_and_its_disjunct_alone(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    disjuncts = (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.31))
    problem = Problem(graph, disjuncts)
    oracle = Told()
    with torch.no_grad():
        search = bisection(problem, options=SearchOptions(finishing=False), oracle=oracle)  # type: ignore[arg-type]
        search.frontier.push(search._sifted(search.root, search.whole))
        for _ in range(6):
            search.held = search.frontier.pop(4)
            search._expand()
        exchange = search.exchange
        assert isinstance(exchange, BoxExchange)
        exchange.consult()
        task = oracle.task
        assert task is not None and task.box is not None and search.frontier.lent is not None
        count = len(search.frontier)
        lent = search.frontier.lent
        assert float(search.frontier.store.worst[lent]) == search.frontier.lowest
        # What is lent is taken last.
        others = search.frontier.pop(count - 1)
        assert bool(search.frontier.alive[lent]) and len(search.frontier) == 1
        search.frontier.push(others)
        # Bisect what is lent, as happens when nothing else is left.
        only = search.frontier.store.take(torch.tensor([search.frontier.lent]))
        search.frontier.remove(torch.tensor([search.frontier.lent]))
        halves = only.halves()
        search.frontier.push(halves)
        before = search.frontier.all()
        inside = (before.lower >= torch.tensor(task.box.lower)).all(1) & (before.upper <= torch.tensor(task.box.upper)).all(1)
        assert int(inside.sum()) == 2 < len(before)
        oracle.findings.append(Finding(task, -1e-3, False))
        exchange.consult()
        after = search.frontier.all()
        assert (after.margins[~inside] == before.margins[~inside]).all()
        assert (after.margins[inside][:, task.disjunct] >= -1e-3).all()
        other = 1 - task.disjunct
        assert (after.margins[inside][:, other] == before.margins[inside][:, other]).all()
        assert exchange.trust is Trust.ROUNDED and exchange.raised and not exchange.closed
        oracle.findings.append(Finding(task, 0.25, True))
        exchange.consult()
        again = search.frontier.all()
        still = search.group.closed(before.margins)[inside][:, other]
        assert exchange.closed == int(still.sum()) and len(again) == len(before) - exchange.closed
        assert exchange.trust is Trust.SOLVER
        # The next task is another box or disjunct; once the bisection has closed all of it, it is taken back.
        assert oracle.task is not None and oracle.task is not task
        search.frontier.remove(torch.arange(len(search.frontier.alive)))
        exchange.consult()
        assert oracle.stopped >= 1


def test_a_task_of_one_group_says_nothing_to_the_next(network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group ends while the solver works on its disjunct 0; the second has a disjunct 0 of its own, which is violated."""
    graph, box, least = network
    part = Box(-np.ones(NX), np.array([-0.5, *np.ones(NX - 1)]))
    problem = Problem(graph, (disjunct_of(part, least - 0.3), disjunct_of(box, least + 0.05)))
    seen: list[Task | None] = []

    class Searched(Bisection):
        def run(self, *limits: object) -> SplitOutcome:
            assert self.exchange is not None
            oracle = self.exchange.oracle
            seen.append(oracle.task)
            if len(seen) > 1:
                return super().run(*limits)  # type: ignore[arg-type]
            bounds = [(s.bounds.lower[0], s.bounds.upper[0]) for _, s in sorted(self.root.state.items())]
            oracle.give(Task(0), problem.disjuncts[0], bounds)
            assert oracle.task is not None
            return SplitOutcome(True, 0.0, None, 1, 0.0, 0, 0)

    monkeypatch.setattr(strategy, "Bisection", Searched)
    result = verify(problem, 60, options=Options(attack=False))
    assert result.verdict is Verdict.FALSIFIED and seen == [None, None]


def test_in_deterministic_mode_it_has_turns_by_counts(network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs are the same run, and the solver closes what the bisection would take longer for."""
    graph, box, least = network
    monkeypatch.setattr(box_sharing, "FIRST", 40)
    runs = [run(graph, disjunct_of(box, least - 0.6), 120, SearchOptions(deterministic=True)) for _ in range(2)]
    (first, oracle), (second, _) = runs
    assert first.closed and oracle.counts["oracle_tasks"] > 0 and first.detail == second.detail
    assert (first.lower_bound, first.subproblems, first.trust) == (second.lower_bound, second.subproblems, second.trust)
    alone, _ = run(graph, disjunct_of(box, least - 0.6), 120, SearchOptions(deterministic=True, oracle=False))
    assert first.subproblems < alone.subproblems
    race, oracle = run(graph, disjunct_of(box, least - 0.6), 120, SearchOptions(deterministic=True, oracle_to_tree=False))
    assert race.closed and oracle.counts["oracle_tasks"] > 1 and race.subproblems <= alone.subproblems
