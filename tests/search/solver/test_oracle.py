"""The solver beside the tree: what it finds reaches the tree, and whatever it does, the verdict is right or missing."""

from __future__ import annotations

import math
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_nets import disjunct_of, proved_bounds, relu_network

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.encode.cut_forms import Split
from milpverify.errors import Contradiction
from milpverify.events import Event
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, evaluate
from milpverify.operators import Elementwise
from milpverify.result import Trust
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.search.ledger import Reporter
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.search import Search
from milpverify.search.neuron_split.subproblems import NeuronOutcome
from milpverify.search.solver import sharing
from milpverify.search.solver.oracle import Oracle, Task
from milpverify.solvers.base import SmtOutcome, SolveOutcome, SolverStatus
from milpverify.solvers.process import SolverProcess
from milpverify.spec import Box, Disjunct, Problem

NX = 6
DEFAULT = Options()


@pytest.fixture(scope="module")
def network() -> tuple[Graph, Box, float]:
    """A network that takes the tree seconds and a solver less, with the least margin found by sampling."""
    graph, box = relu_network([NX, 24, 24, 3], 5), Box(-np.ones(NX), np.ones(NX))
    x = torch.rand(20000, NX, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    y = evaluate(graph, x).numpy()
    return graph, box, float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())


def run(
    graph: Graph,
    disjunct: Disjunct,
    seconds: float,
    options: Options = DEFAULT,
    on_event: Callable[[Oracle], Callable[[Event], None]] | None = None,
    point: np.ndarray | None = None,
) -> tuple[NeuronOutcome, Oracle]:
    problem, deadline = Problem(graph, (disjunct,)), Deadline(seconds)
    (group,) = groups(problem)
    with torch.no_grad(), Oracle(problem, options, deadline) as oracle:
        oracle.on_event = None if on_event is None else on_event(oracle)
        found = bound_batch(graph, group, torch.tensor(group.box.lower)[None], torch.tensor(group.box.upper)[None], torch.float64)
        points = {} if point is None else {0: point}
        search = Search(problem, graph, group, found.state, deadline, Reporter(oracle.on_event), points, oracle)
        # A tree that cannot close anything by itself: the oracle decides, or nobody.
        search.per = 2
        return search.run(batch=2), oracle


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "HEAD_START", 0.0)


def test_a_solver_closes_what_the_tree_would_take_long_for(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 60)
    assert outcome.closed and outcome.trust is Trust.SOLVER and oracle.counts["oracle_closed"] >= 1
    assert 0 < outcome.lower_bound <= 0.3 + 1e-9
    assert oracle.pid is None


def test_a_point_of_the_solver_ends_the_run(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least + 0.01), 60)
    assert not outcome.closed
    example = oracle.counterexample or (outcome.judgement.counterexample if outcome.judgement else None)
    assert example is not None and example.margin_real <= 0


def test_a_network_without_a_model_is_left_to_the_tree(network: tuple[Graph, Box, float]) -> None:
    """That no model can be made is nothing amiss: it is told to whoever watches, and is no part of the answer."""
    graph, box, least = network
    layer = next(n for n in graph.nodes if isinstance(n.op, Elementwise))
    smooth = replace(graph, nodes=tuple(replace(n, op=Elementwise(catalogue()["tanh"].bind())) if n is layer else n for n in graph.nodes))
    told: list[Event] = []
    outcome, oracle = run(smooth, disjunct_of(box, least - 0.1), 5, on_event=lambda _: told.append)
    assert not oracle.usable and not oracle.notes and not oracle.counts["oracle_tasks"]
    assert any(e.phase == "oracle" and "not used" in e.message for e in told)
    assert "piecewise" not in outcome.note


def without(*parts: str) -> Options:
    return Options(search=SearchOptions().without(*parts))


def test_a_race_is_won_by_whole_disjuncts_alone(network: tuple[Graph, Box, float]) -> None:
    """A tree that is not told what the oracle closes is ended where that is all that is open; and the oracle gets nothing else."""
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 60, without("oracle_to_tree"))
    assert outcome.closed and (outcome.trust is Trust.SOLVER) == (oracle.counts["oracle_closed"] == 1)
    assert oracle.counts["oracle_tasks"] == 1


def test_without_the_tree_the_oracle_gets_every_disjunct_once(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 60, without("tree_to_oracle"))
    assert outcome.closed and oracle.counts == {"oracle_tasks": 1, "oracle_closed": 1}


def test_a_finding_on_a_part_reaches_the_tree_or_not(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    (group,) = groups(problem)
    for parts, left in (((), 1), (("oracle_to_tree",), 2)):
        with torch.no_grad(), Oracle(problem, without(*parts), Deadline(60)) as oracle:
            found = bound_batch(graph, group, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
            search = Search(problem, graph, group, found.state, Deadline(60), oracle=oracle)
            root = search.bound(search.first(), 0)
            search.frontier.push(children(search.bounder, root, root.best[:, 0]))
            one = search.frontier.hardest()
            sharing._apply(search, oracle, sharing.Finding(sharing.Task(0, search.decisions(one)), 1.0, True))
            assert len(search.frontier) == left
            sharing._apply(search, oracle, sharing.Finding(sharing.Task(0, search.decisions(one)), 1e-9 - 1e-3, False))
            sharing._apply(search, oracle, sharing.Finding(sharing.Task(0), 1.0, True))
            assert len(search.frontier) == (2 if parts else 0)


def test_a_tree_that_is_not_told_goes_on_until_the_rest_is_closed(network: tuple[Graph, Box, float]) -> None:
    """What the oracle closed stays open in the tree, and ends the run once the tree has closed everything else."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.4)))
    (group,) = groups(problem)
    with torch.no_grad(), Oracle(problem, without("oracle_to_tree"), Deadline(60)) as oracle:
        found = bound_batch(graph, group, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
        search = Search(problem, graph, group, found.state, Deadline(60), oracle=oracle)
        search.frontier.push(search.bound(search.first(), 0))
        sharing._apply(search, oracle, sharing.Finding(sharing.Task(1), 0.25, True))
        sharing._end_race(search, oracle)
        assert len(search.frontier) == 2 and search.trust is Trust.ROUNDED
        search.frontier.remove(search.frontier.under(0, ()))
        sharing._end_race(search, oracle)
        assert not len(search.frontier) and search.trust is Trust.SOLVER and search.closed_bound == 0.25


def race(problem: Problem, *parts: str) -> tuple[Search, Oracle]:
    """A tree whose bounds say that the last disjunct is the hardest, and an oracle."""
    (group,) = groups(problem)
    oracle, box = Oracle(problem, without(*parts), Deadline(60)), group.box
    found = bound_batch(problem.graph, group, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
    search = Search(problem, problem.graph, group, found.state, Deadline(60), oracle=oracle)
    bounds = -torch.arange(1.0, group.count + 1, dtype=torch.float64)
    search.frontier.push(replace(search.bound(search.first(), 0), bound=bounds))
    return search, oracle


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_oracle_that_is_not_told_takes_disjunct_after_disjunct(network: tuple[Graph, Box, float], deterministic: bool) -> None:
    """It is told neither which is the hardest nor that the tree closed one, and gets nothing else."""
    graph, box, least = network
    problem = Problem(graph, tuple(disjunct_of(box, least - shift) for shift in (0.4, 0.3, 0.2)))
    for parts, given in ((("tree_to_oracle",), [0, 1, 2]), (("oracle_to_tree",), [2, 0])):
        with torch.no_grad():
            search, oracle = race(problem, *parts)
            oracle.options = replace(oracle.options, search=replace(oracle.options.search, deterministic=deterministic))
            for place in given:
                sharing._give(search, oracle)
                task = oracle.task
                assert task is not None and (task.disjunct, task.decisions) == (place, ())
                oracle.close()
                search.frontier.remove(search.frontier.under(1, ()))
            sharing._give(search, oracle)
            assert (oracle.task is not None) is deterministic  # by counts there are turns, and the tasks of later ones are larger
            oracle.close()


def test_models_that_take_long_to_make_leave_the_tree_its_time(network: tuple[Graph, Box, float], monkeypatch: pytest.MonkeyPatch) -> None:
    graph, box, least = network
    monkeypatch.setattr(sharing, "LARGE", 0)
    with torch.no_grad():
        search, oracle = race(Problem(graph, tuple(disjunct_of(box, least - shift) for shift in (0.4, 0.3))))
        sharing._give(search, oracle)
        assert oracle.task is not None and 0 < oracle.modelling <= time.monotonic() - oracle.began
        oracle.close()
        for spent, given in ((1e9, False), (0.0, True)):
            oracle.modelling = spent
            sharing._give(search, oracle)
            assert (oracle.task is not None) is given
        oracle.close()


def test_what_the_solver_is_done_with_ends_a_race_that_nothing_else_can_decide(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    with torch.no_grad():
        search, oracle = race(Problem(graph, (disjunct_of(box, least - 0.3),)), "oracle_to_tree")
        root = search.frontier.pop(1)
        child = children(search.bounder, root, root.best[:, 0]).take(torch.tensor([0]))
        search.stuck = child
        sharing._give(search, oracle)
        assert oracle.task is not None and not oracle.task.decisions
        oracle.close()
        sharing._give(search, oracle)
        assert oracle.task is None and not oracle.usable and "nothing more" in oracle.notes[0]


def test_a_solver_that_is_caught_lying_in_a_race_ends_the_run(network: tuple[Graph, Box, float]) -> None:
    """What it proved before is worth nothing then; what it proved before it became unusable for another reason is."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.4)))
    with torch.no_grad():
        for lies in (True, False):
            search, oracle = race(problem, "oracle_to_tree")
            sharing._apply(search, oracle, sharing.Finding(sharing.Task(0), 0.25, True))
            search._remember(1, (box.lower + box.upper) / 2)
            if lies:
                with pytest.raises(Contradiction, match="the solver says"):
                    sharing._apply(search, oracle, sharing.Finding(sharing.Task(1), search.best[1][0] + 1.0, True))
                continue
            oracle.give_up("it died")
            search.frontier.remove(search.frontier.under(1, ()))
            search.consult()
            assert not len(search.frontier) and search.trust is Trust.SOLVER


def test_what_a_solver_is_done_with_is_not_given_to_it_again(network: tuple[Graph, Box, float]) -> None:
    """A tie that neither can close ends the run, without a time limit too."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    (group,) = groups(problem)
    with torch.no_grad(), Oracle(problem, Options(), Deadline()) as oracle:
        found = bound_batch(graph, group, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
        search = Search(problem, graph, group, found.state, Deadline(), oracle=oracle)
        root = search.bound(search.first(), 0)
        search.stuck = children(search.bounder, root, root.best[:, 0])
        assert sharing._hardest(search, oracle) is not None
        for n in range(2):
            oracle.solved.add((0, search.decisions(search.stuck.take(torch.tensor([n])))))
        assert sharing._hardest(search, oracle) is None
        search.tried[0] = 1
        sharing._give(search, oracle)
        assert not oracle.usable and oracle.notes


def test_trust_that_forbids_solvers_gets_points_only(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 4, Options(trust="rounded"))
    assert oracle.counts == {"oracle_tasks": oracle.counts["oracle_tasks"], "oracle_closed": 0} and oracle.counts["oracle_tasks"] >= 1
    assert outcome.trust is Trust.ROUNDED


def test_a_solver_that_is_killed_costs_nothing_but_time(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    killed: list[int] = []

    def killing(oracle: Oracle) -> Callable[[Event], None]:
        def on_event(event: Event) -> None:
            if oracle.pid is not None and oracle.pid not in killed:
                killed.append(oracle.pid)
                os.killpg(oracle.pid, signal.SIGKILL)

        return on_event

    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 5, on_event=killing)
    assert killed and (oracle.usable or "died" in outcome.note)
    assert not outcome.closed or outcome.trust is Trust.SOLVER or not oracle.counts["oracle_closed"]
    assert outcome.lower_bound <= 0.3 + 1e-9


FAKE = """#!{python}
import sys
sys.path[:0] = {path!r}
from milpverify.solvers.base import Progress, SolveOutcome, Status
from milpverify.solvers.worker import receive, send
out = sys.stdout.buffer
while True:
    message = receive(sys.stdin.buffer)
    if message[0] == "solve":
        n = message[2].num_variables
        {say}
"""
NONSENSE = {
    "no message": "out.write(b'no message at all'); out.flush()",
    "cut short": "out.write(b'mvwk' + (10**6).to_bytes(8, 'little') + b'half a message'); out.flush(); sys.exit()",
    "no tuple": "send(out, 7)",
    "unknown": "send(out, ('outcome', 'solved'))",
    "text for a bound": "send(out, ('progress', Progress('high', 0.0, 1, 0.0)))",
    "no number": "send(out, ('outcome', SolveOutcome(Status.OPTIMAL, float('nan'), 0.0)))",
    "infinite": "send(out, ('outcome', SolveOutcome(Status.OPTIMAL, float('inf'), 0.0)))",
    "short point": "import numpy; send(out, ('outcome', SolveOutcome(Status.OPTIMAL, -1.0, -1.0, numpy.zeros(1))))",
    "infeasible": "send(out, ('outcome', SolveOutcome(Status.INFEASIBLE)))",
    "too good a bound": "send(out, ('outcome', SolveOutcome(Status.OPTIMAL, 1e6, 1e6)))",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_from_the_solver_never_makes_a_verdict(
    kind: str, network: tuple[Graph, Box, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, box, least = network
    fake = tmp_path / "python"
    fake.write_text(FAKE.format(python=sys.executable, path=sys.path, say=NONSENSE[kind]))
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(fake))
    outcome, oracle = run(graph, disjunct_of(box, least + 0.01), 3, point=np.zeros(NX))
    assert not outcome.closed and oracle.counts["oracle_closed"] == 0
    assert outcome.lower_bound <= 0.0
    assert oracle.counterexample is None


def test_a_bound_that_a_point_contradicts_after_closures_stops_everything(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    (group,) = groups(problem)
    with torch.no_grad(), Oracle(problem, Options(), Deadline(60)) as oracle:
        found = bound_batch(graph, group, torch.tensor(box.lower)[None], torch.tensor(box.upper)[None], torch.float64)
        search = Search(problem, graph, group, found.state, Deadline(60), points={0: np.zeros(NX)}, oracle=oracle)
        oracle.counts["oracle_closed"] = 1
        finding = sharing.Finding(sharing.Task(0), 1e6, True)
        with pytest.raises(Contradiction):
            sharing._apply(search, oracle, finding)


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
