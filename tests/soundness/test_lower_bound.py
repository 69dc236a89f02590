"""What a run says is proved: nothing is lost where memory ends, bounds hold for everything at any time, and say what they rest on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from random_nets import relu_network

from milpverify import margin as margin_module
from milpverify import optimize as optimize_module
from milpverify.config import Options, SearchOptions
from milpverify.counterexamples.attack import AttackTuning
from milpverify.graph import Graph, evaluate
from milpverify.inquiries import inquiry
from milpverify.optimize import minimize
from milpverify.result import Event, Result, Trust, Verdict
from milpverify.search.choose_space import SpaceTuning
from milpverify.search.frontier import Frontier
from milpverify.search.groups import GroupTuning
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.conflicts import Conflicts
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.neuron_split.tasks import NeuronTaskTuning
from milpverify.search.sharing import SharingTuning
from milpverify.search.tightening import restarts
from milpverify.search.tightening.restarts import RestartTuning
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.verify import verify

NEURONS = (GroupTuning(few_inputs=0), SpaceTuning(few=0, many=0))
"""Neuron splits on these networks too, which stand for larger ones."""
QUIET = SearchOptions(refining=False, tightening=False, tuning=NEURONS)


def sampled(graph: Graph, box: Box) -> torch.Tensor:
    """Outputs at many points of a box."""
    share = torch.rand(20_000, graph.nx, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return evaluate(graph, torch.lerp(torch.tensor(box.lower), torch.tensor(box.upper), share))


def at_most(graph: Graph, box: Box, row: list[float], rhs: float, x_row: list[float] | None = None) -> Disjunct:
    """The points whose output (and input) row is at most a number are unsafe."""
    x_rows = np.array([x_row or [0.0] * graph.nx])
    return Disjunct(box, Rows(x_rows, np.array([row]), np.array([rhs]), np.array([False])), Rows.none(graph.nx, graph.ny))


@pytest.mark.parametrize("owner", [(Conflicts, "keep"), (Conflicts, "refute"), (Frontier, "push"), (Frontier, "pop")])
@pytest.mark.parametrize("call", [1, 3])
def test_what_memory_cannot_hold_stays_open(owner: tuple[type, str], call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, name = owner
    genuine, calls = getattr(cls, name), 0

    def failing(*arguments: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            raise MemoryError
        return genuine(*arguments, **named)

    monkeypatch.setattr(cls, name, failing)
    failed = 0
    for seed in range(100, 104):
        graph, box, calls = relu_network([4, 12, 12, 2], seed), Box(-np.ones(4), np.ones(4)), 0
        unsafe = at_most(graph, box, [1.0, 0.0], float(sampled(graph, box)[:, 0].min()) + 0.02)
        result = verify(Problem(graph, (unsafe,)), timeout=10, options=Options(method="bab", attack=False, search=QUIET))
        assert result.verdict is not Verdict.VERIFIED
        assert result.lower_bound <= -0.02
        failed += calls >= call
    assert failed > 0


def test_a_search_that_begins_anew_remembers_what_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, begun = restarts.begin_anew, list[float]()

    def watched(old: NeuronSpace, tree: Tree[Subproblems], *rest: Any) -> tuple[NeuronSpace, Tree[Subproblems]]:
        young, again = genuine(old, tree, *rest)
        assert again is not tree and again.closed_bound == tree.closed_bound
        begun.append(again.closed_bound)
        return young, again

    monkeypatch.setattr(restarts, "begin_anew", watched)
    tuning = (*NEURONS, NeuronTuning(counted=8), RestartTuning(least=-1.0, ahead=0.0, splits=6, targets=256))
    off = dict.fromkeys(("refining", "clipping", "output_constraints", "no_goods", "filtering"), False)
    search = SearchOptions(deterministic=True, tuning=tuning, **off)
    options = Options(method="bab", attack=False, search=search)
    events = list[Event]()
    for seed in range(300, 312):
        graph, box = relu_network([3, 6, 6, 2], seed), Box(-0.7 * np.ones(3), 0.7 * np.ones(3))
        share = torch.rand(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = 0.7 * (2 * share - 1)
        y = evaluate(graph, x)
        near = float((x[:, 0] + 0.02 * y[:, 0]).min()) - 1e-4
        far = float(y[:, 1].min() - 0.1 * (y[:, 1].max() - y[:, 1].min()))
        disjuncts = at_most(graph, box, [0.02, 0.0], near, [1.0, 0.0, 0.0]), at_most(graph, box, [0.0, 1.0], far)
        result = verify(Problem(graph, disjuncts), timeout=20, options=options, on_event=events.append)
        assert result.lower_bound <= 1e-4 + 1e-9
        assert all(event.data["lower_bound"] <= 1e-4 + 1e-9 for event in events)  # type: ignore[operator]
        events.clear()
    assert any(np.isfinite(begun))


def test_a_disjunct_without_rows_has_no_finite_bound_while_it_is_open() -> None:
    options = Options(attack=False, search=SearchOptions(tuning=NEURONS))
    for seed in range(5, 9):
        graph, box = relu_network([3, 10, 10, 2], seed), Box(-np.ones(3), np.ones(3))
        within = Rows(np.ones((1, 3)), np.zeros((1, 2)), np.array([2.9]), np.array([False]))
        unsafe = at_most(graph, box, [1.0, 0.0], float(sampled(graph, box)[:, 0].min()) - 0.2)
        events = list[Event]()
        for bare, verdict in ((within, Verdict.FALSIFIED), (Rows(within.x_rows, within.y_rows, np.array([-3.1]), within.strict), None)):
            problem = Problem(graph, (Disjunct(box, Rows.none(3, 2), bare), unsafe))
            result = verify(problem, timeout=20, options=options, on_event=events.append)
            if verdict is None:
                assert result.verdict is Verdict.VERIFIED
            else:
                assert result.verdict is verdict
                assert result.lower_bound == -np.inf
                assert all(event.data["lower_bound"] == -np.inf for event in events)


def test_a_bound_that_outlives_its_search_says_what_it_rests_on(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = -0.01234567  # stands for a solver's bound: whoever reports it must say so
    monkeypatch.setattr(inquiry, "safe_dual_bound", lambda outcome, model: claim)
    genuine, outlived = restarts.begin_anew, 0

    def ending(old: NeuronSpace, tree: Tree[Subproblems], *rest: Any) -> tuple[NeuronSpace, Tree[Subproblems]]:
        nonlocal outlived
        young, again = genuine(old, tree, *rest)
        if again.proved == claim:
            outlived += 1
            young.context.deadline.cancel()
        return young, again

    monkeypatch.setattr(restarts, "begin_anew", ending)
    turns, outlives = NeuronTaskTuning(turn=16), RestartTuning(least=-1.0, ahead=0.0, splits=24, targets=8)
    tuning = (*NEURONS, NeuronTuning(counted=4), turns, SharingTuning(nodes=1), outlives)
    options = Options(attack=False, search=SearchOptions(refining=False, deterministic=True, tuning=tuning))
    for seed in (700, 701):
        graph, box = relu_network([8, 16, 16, 16, 2], seed), Box(-np.ones(8), np.ones(8))
        unsafe = at_most(graph, box, [1.0, 0.0], float(sampled(graph, box)[:, 0].min()) - 1.0)
        events, before = list[Event](), outlived
        result = verify(Problem(graph, (unsafe,)), timeout=60, options=options, on_event=events.append)
        assert outlived == before + 1
        assert result.verdict is Verdict.UNKNOWN and result.lower_bound == claim
        assert result.trust is Trust.SOLVER and result.bound_trust is Trust.SOLVER
        assert result.to_dict()["bound_trust"] == "solver"
        said = [event.data["bound_trust"] for event in events if event.data["lower_bound"] == claim]
        assert said and set(said) == {"solver"}


def test_a_minimum_that_rests_on_a_solver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    weak, judged, runs = margin_module.attack, optimize_module.verify, list[Result]()
    least = AttackTuning(starts=1, steps=1, rounds=1)
    monkeypatch.setattr(margin_module, "attack", lambda *a, **k: weak(*a, tuning=least, **k))  # type: ignore[arg-type]
    monkeypatch.setattr(optimize_module, "verify", lambda *a, **k: runs.append(judged(*a, **k)) or runs[-1])
    options = Options(method="milp", attack=False, search=SearchOptions(tuning=NEURONS))
    falsified = 0
    for seed in range(904, 908):
        runs.clear()
        graph, box = relu_network([3, 8, 8, 1], seed), Box(-np.ones(3), np.ones(3))
        found = minimize(graph, box, [1.0], gap=1e-3, timeout=20, options=options)
        assert not runs or found.trust is Trust.SOLVER
        falsified += len(runs) == 1 and runs[0].verdict is Verdict.FALSIFIED
    assert falsified > 0
