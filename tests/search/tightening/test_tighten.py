"""Bound tightening: what it proves holds at every point, it repeats, and nothing that a solver or memory does makes a verdict."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import relu_network
from support import detail
from torch import Tensor
from trees import begun, context_of, root_of

import milpverify as mv
from milpverify.config import Deadline, Options, SearchOptions
from milpverify.encode.milp import encode_layer
from milpverify.errors import Contradiction
from milpverify.graph import Graph, evaluate_all
from milpverify.propagation.state import LinearBound
from milpverify.result import Trust, Verdict
from milpverify.run import RunTuning
from milpverify.search.choose_space import SpaceTuning
from milpverify.search.groups import GroupTuning
from milpverify.search.neuron_split.bounder import Bounder
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.neuron_split.tasks import NeuronTasks, NeuronTaskTuning
from milpverify.search.solver.oracle import Finding, Oracle, Task
from milpverify.search.tightening import restarts
from milpverify.search.tightening.restarts import RestartTuning
from milpverify.search.tightening.solver_targets import SolverTargets
from milpverify.search.tightening.tighten import Tightening
from milpverify.solvers.base import Limits, SmtOutcome, SolveOutcome, SolverStatus
from milpverify.solvers.model import Model
from milpverify.solvers.process import SolverProcess
from milpverify.solvers.trusted_bound import safe_dual_bound
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.tuning import Tuning

NX = 6
AT_ONCE, FIRST = NeuronTaskTuning(head_start=0.0), NeuronTaskTuning(head_start=0.0, small=0)
"""The tree has no head start; with the second, bounds come before the disjunct as a whole."""


def problem_of(threshold: float, sizes: tuple[int, ...] = (NX, 20, 20, 20, 3), seed: int = 5, radius: float = 0.7) -> Problem:
    box = Box(np.full(NX, -radius), np.full(NX, radius))
    rows = Rows.on_outputs([[1, -1, 0], [0, 1, -1]], [threshold, threshold], NX)
    return Problem(relu_network(list(sizes), seed), (Disjunct(box, rows, Rows.none(NX, 3)),))


def tightening_of(problem: Problem) -> Tightening:
    return Tightening(problem.graph, *root_of(problem))


def samples(graph: Graph, box: Box) -> list[Tensor]:
    """Every node's values at random points and corners."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(20000, graph.nx, generator=generator, dtype=torch.float64)
    share[:10000] = share[:10000].round()
    return evaluate_all(graph, torch.lerp(torch.tensor(box.lower), torch.tensor(box.upper), share))


@pytest.mark.parametrize("seed", range(3))
def test_tighter_bounds_hold_everywhere(seed: int) -> None:
    problem = problem_of(0.0, seed=seed)
    with torch.no_grad():
        found = tightening_of(problem)
        before = found.root
        found.run(Deadline(), limit=3000)
    values = samples(problem.graph, found.group.box)
    for i, state in found.root.state.items():
        bounds = state.bounds
        assert bool((values[i] >= bounds.lower - 1e-9).all()) and bool((values[i] <= bounds.upper + 1e-9).all())
        assert bool((bounds.width <= before.state[i].bounds.width + 1e-9).all())
    narrower = [float(found.root.state[z].bounds.width.sum() / before.state[z].bounds.width.sum()) for z in found.layers]
    assert max(narrower) < 0.9 and found.unstable <= found.first_unstable
    assert float(found.root.margins.amin()) > float(before.margins.amin())


def test_by_counts_it_repeats() -> None:
    both = []
    for _ in range(2):
        with torch.no_grad():
            found = tightening_of(problem_of(0.0))
            found.run(Deadline(), limit=1500)
        both.append(found)
    assert both[0].bounded == both[1].bounded
    assert all(torch.equal(s.bounds.lower, both[1].root.state[i].bounds.lower) for i, s in both[0].root.state.items())


def test_what_a_model_says_of_an_end_holds_and_is_the_best(solver: str = "highs") -> None:
    with torch.no_grad():
        found = tightening_of(problem_of(0.0, (NX, 14, 14, 14, 3)))
        z = found.layers[-1]
        index, _ = found.targets(z)
        bounds = [(s.bounds.lower[0], s.bounds.upper[0]) for _, s in sorted(found.root.state.items())]
        layer = encode_layer(found.graph, bounds, found.group.box, z, index.numpy())
        values = samples(found.graph, found.group.box)[z][:, index]
        with SolverProcess(solver) as process:
            for side in (1, -1):
                model = layer.task(0, side)
                outcome = process.solve(model, Limits(60.0, plain=True), Deadline(60))
                assert isinstance(outcome, SolveOutcome) and outcome.status is SolverStatus.OPTIMAL and outcome.point is not None
                offset = side * layer.constant[0] - layer.error[0]
                bound, least = safe_dual_bound(outcome, model) + offset, float((side * values[:, 0]).min())
                assert bound <= least and outcome.primal + offset - bound < 1e-4
                # The solver's point is one of the network's.
                assert side * float(bounds[z][0 if side > 0 else 1][index[0]]) <= bound + 1e-6


def answered(
    problem: Problem, outcome: Callable[[SolveOutcome], SolveOutcome] | None, monkeypatch: pytest.MonkeyPatch
) -> tuple[SolverTargets, Oracle]:
    """What the oracle's answers about the first four ends come to; where they are replaced, there are no reports on the way."""
    poll, start = SolverProcess.poll, SolverProcess.start

    def said(process: SolverProcess, wait: float = 0.0) -> SolveOutcome | SmtOutcome | None:
        got = poll(process, wait)
        return outcome(got) if outcome is not None and isinstance(got, SolveOutcome) else got

    def silent(process: SolverProcess, model: Model, limits: Limits, deadline: Deadline, on_progress: object = None) -> None:
        start(process, model, limits, deadline)

    if outcome is not None:
        monkeypatch.setattr(SolverProcess, "start", silent)
    monkeypatch.setattr(SolverProcess, "poll", said)
    options = Options(search=SearchOptions(tuning=(FIRST,)))
    with torch.no_grad(), Oracle(problem, options, Deadline(60)) as oracle:
        targets = SolverTargets(tightening_of(problem))
        space, tree, _ = begun(context_of(problem, oracle=oracle))
        asked = NeuronTasks(space, oracle, targets)
        for _ in range(4):
            if oracle.usable:
                asked.give(tree)
                assert oracle.task is not None and oracle.task.target is not None
                finding = oracle.wait()
                if finding is not None:
                    asked.answer_target(tree, finding)
    return targets, oracle


def test_a_solver_tightens_ends_and_the_root_rests_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(0.0)
    targets, oracle = answered(problem, None, monkeypatch)
    found, before = targets.tightening, targets.tightening.root
    assert len(targets.proved) >= 2 and oracle.counts["oracle_ends"] == 4
    with torch.no_grad():
        assert targets.meet(Deadline())
        assert not targets.meet(Deadline())
    values = samples(problem.graph, found.group.box)
    for i, state in found.root.state.items():
        assert bool((values[i] >= state.bounds.lower - 1e-6).all()) and bool((values[i] <= state.bounds.upper + 1e-6).all())
    narrower = [sum(float(s.bounds.width.sum()) for s in root.state.values()) for root in (found.root, before)]
    assert narrower[0] < narrower[1]


LIES = {
    "too good": lambda outcome: replace(outcome, dual_bound=1e3),
    "infeasible": lambda outcome: SolveOutcome(SolverStatus.INFEASIBLE),
    "unbounded": lambda outcome: SolveOutcome(SolverStatus.UNBOUNDED, math.inf),
    "crashed": lambda outcome: SolveOutcome(SolverStatus.CRASHED),
    "no number": lambda outcome: replace(outcome, dual_bound=math.nan),
}


@pytest.mark.parametrize("kind", LIES)
def test_nonsense_about_ends_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets, oracle = answered(problem_of(0.0), LIES[kind], monkeypatch)
    assert targets.proved == {}
    assert oracle.usable is (kind not in ("too good", "crashed"))
    with torch.no_grad():
        assert not targets.meet(Deadline())


def test_a_lie_after_its_bounds_were_used_stops_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(0.0)
    with torch.no_grad(), Oracle(problem, Options(), Deadline(60)) as oracle:
        targets = SolverTargets(tightening_of(problem))
        space, tree, _ = begun(context_of(problem, oracle=oracle))
        lie = Finding(Task(-1, target=(targets.tightening.layers[0], 0, 1)), 1e3, True)
        for trust, raised in ((Trust.SOLVER, False), (Trust.ROUNDED, True)):
            tree.trust, tree.raised = trust, raised
            with pytest.raises(Contradiction):
                NeuronTasks(space, oracle, targets).answer_target(tree, lie)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_points_outside_a_ball_are_no_word_against_a_bound(norm: str) -> None:
    """Bounds over the ball are above values at corners of its box, which lie outside."""
    plain = problem_of(0.0)
    box = plain.disjuncts[0].box
    centre = 0.5 * (box.lower + box.upper)
    ball = mv.Ball(centre, 0.5 * float((box.upper - box.lower).min()), norm, box.lower, box.upper)
    problem = replace(plain, graph=plain.graph.confined(ball))
    with torch.no_grad():
        targets = SolverTargets(tightening_of(problem))
        z = targets.tightening.layers[0]
        bounds = mv.bounds(problem.graph, box, "crown")[z]
        over_box = mv.bounds(plain.graph, box, "ibp")[z]
        index = int((bounds.lower - over_box.lower).argmax())
        low = float(bounds.lower.flatten()[index])
        assert low > float(over_box.lower.flatten()[index]) + 1e-3
        targets.answer((z, index, 1), low, True)
        assert targets.proved == {(z, index, 1): low} or low <= float(targets.tightening.root.state[z].bounds.lower.flatten()[index])
        with pytest.raises(Contradiction):
            targets.answer((z, index, 1), float(bounds.upper.flatten()[index]) + 1.0, True)


def test_a_solver_without_gains_is_asked_no_more() -> None:
    with torch.no_grad():
        queue = SolverTargets(tightening_of(problem_of(0.0)))
        for _ in range(queue.tightening.tuning.last):
            assert not queue.over
            asked = queue.next(Deadline())
            assert asked is not None
            queue.answer(asked[1], -math.inf, True)
        assert queue.next(Deadline()) is None and queue.proved == {}


NEURONS = (GroupTuning(few_inputs=-1), SpaceTuning(few=0, many=0))
"""Neurons are split however few inputs there are."""
TURNS = RestartTuning(seconds=0.05, splits=8, targets=400)
"""Turns are short."""


def decided(problem: Problem, trust: str = "solver", tuning: tuple[Tuning, ...] = (TURNS, AT_ONCE), **parts: bool) -> mv.Result:
    search = SearchOptions(tuning=(*NEURONS, *tuning), **parts)
    return mv.verify(problem, 60.0, options=Options(attack=False, trust=trust, search=search))


@pytest.mark.parametrize("counted", [True, False])
def test_the_search_begins_anew_from_tighter_roots(counted: bool) -> None:
    """Closed by tightening and branching, from proofs alone; by the clock a solver helps."""
    result = decided(problem_of(-2.0), deterministic=counted, oracle=not counted, output_constraints=False, clipping=False)
    assert result.verdict is Verdict.VERIFIED and result.lower_bound > 0
    assert not counted or (result.trust is Trust.ROUNDED and detail(result)["tightened"] and detail(result)["restarts"])


def test_tightening_that_does_not_keep_up_leaves_the_tree_as_it_is() -> None:
    tuning = replace(TURNS, least=2.0), AT_ONCE
    result = decided(problem_of(-2.0), tuning=tuning, deterministic=True, oracle=False, output_constraints=False)
    assert result.verdict is Verdict.VERIFIED and detail(result)["tightened"] and detail(result)["restarts"] == 0


def test_without_trust_in_solvers_their_ends_are_not_asked_for() -> None:
    result = decided(problem_of(-2.0), trust="rounded", output_constraints=False)
    assert result.verdict is Verdict.VERIFIED and result.trust is Trust.ROUNDED and "oracle_ends" not in detail(result)


def test_slopes_of_a_root_that_were_cut_short_are_gone_on_with() -> None:
    def begun_anew(seconds: float) -> int:
        tuning = replace(TURNS, seconds=0.0), AT_ONCE, RunTuning(refine_seconds=seconds)
        result = decided(problem_of(-2.0), tuning=tuning, oracle=False, tightening=False)
        assert result.verdict is Verdict.VERIFIED and result.trust is Trust.ROUNDED
        return detail(result).get("restarts", 0)

    assert begun_anew(60.0) == 0
    assert begun_anew(0.0) == 1


def test_a_counterexample_is_found_all_the_same() -> None:
    for parts in ({}, {"deterministic": True}, {"tightening": False}):
        assert decided(problem_of(0.0), **parts).verdict is not Verdict.VERIFIED


def test_turns_repeat_by_counts() -> None:
    first, second = (decided(problem_of(-3.0), deterministic=True, oracle=False, output_constraints=False) for _ in range(2))
    assert detail(first) == detail(second) and first.lower_bound == second.lower_bound and detail(first)["tightened"]


def test_a_solver_killed_on_an_end_costs_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    give = Oracle.give_target

    def giving(oracle: Oracle, *arguments: object) -> None:
        give(oracle, *arguments)  # type: ignore[arg-type]
        if len(killed) < 2 and oracle.pid is not None:
            killed.append(oracle.pid)
            os.killpg(oracle.pid, signal.SIGKILL)

    monkeypatch.setattr(Oracle, "give_target", giving)
    result = decided(problem_of(-2.0), tuning=(TURNS, FIRST), output_constraints=False)
    assert killed and result.verdict is Verdict.VERIFIED


@pytest.mark.parametrize("always", [False, True])
def test_short_of_memory_it_takes_fewer_or_gives_up(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(0.0)
    with torch.no_grad():
        found = tightening_of(problem)
        before, bound, refused = found.root, Bounder.bound, [0]

        def short(bounder: Bounder, subs: Subproblems, iterations: int) -> tuple[Subproblems, object, LinearBound]:
            if always or len(subs) > 64:
                refused[0] += 1
                raise torch.OutOfMemoryError("out of memory")
            return bound(bounder, subs, iterations)

        monkeypatch.setattr(Bounder, "bound", short)
        found.run(Deadline(), limit=800)
        assert refused[0] and found.out_of_memory is always
        assert (found.root is before) is always
        assert always or found.per <= 64


def test_a_solver_goes_on_with_a_disjunct_that_has_another_place_in_what_is_left() -> None:
    problem = problem_of(-2.0)
    (near,) = problem.disjuncts
    problem = replace(problem, disjuncts=(replace(near, unsafe=replace(near.unsafe, rhs=near.unsafe.rhs - 5.0)), near))
    with torch.no_grad(), Oracle(problem, Options(), Deadline(60)) as oracle:
        space, tree, _ = begun(context_of(problem, oracle=oracle))
        tasks = NeuronTasks(space, oracle)
        for keep, unstable, place in (([0], 1000, None), ([1], 0, None), ([0, 1], 1000, 1), ([1], 1000, 0)):
            tasks.given.clear()
            tasks.give(tree)
            assert oracle.task is not None and oracle.task.disjunct == 1 and not oracle.task.decisions
            assert restarts._kept(oracle, keep, unstable) == place and (oracle.task is None) is (place is None)
            if place is not None:
                finding = oracle.wait()
                assert finding is not None and finding.ended and finding.task.disjunct == place and finding.bound > 0


def test_a_tree_that_is_ahead_begins_anew_a_turn_later() -> None:
    turns, off = replace(TURNS, ahead=1e9), dict.fromkeys(("oracle", "output_constraints", "clipping"), False)
    result = decided(problem_of(-3.0), tuning=(turns, AT_ONCE), deterministic=True, **off)
    assert result.verdict is Verdict.VERIFIED and result.lower_bound > 0 and detail(result)["restarts"] > 0
