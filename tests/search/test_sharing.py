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
from points import sampled
from random_graphs import dense_network
from random_nets import disjunct_of, proved_bounds
from trees import PLAIN, begun, box_sharing, boxes_of, context_of, grown, split

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.errors import Contradiction
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, evaluate
from milpverify.operators import Elementwise
from milpverify.result import Event, Trust
from milpverify.search.frontier import B
from milpverify.search.ledger import Reporter
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.tasks import NeuronTaskTuning
from milpverify.search.outcome import SearchOutcome
from milpverify.search.sharing import Sharing
from milpverify.search.solver.oracle import Finding, Oracle, Task
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.tuning import Tuning

NEVER = (NeuronTaskTuning(head_start=math.inf),)
"""The solver gets no task by itself."""


def without(*parts: str, tuning: tuple[Tuning, ...] = (NeuronTaskTuning(head_start=0.0),)) -> Options:
    """Options with some parts off, by default without a head start for the tree."""
    return Options(search=SearchOptions(tuning=tuning).without(*parts))


AT_ONCE = without()


def run(
    graph: Graph,
    disjunct: Disjunct,
    seconds: float,
    options: Options = AT_ONCE,
    on_event: Callable[[Oracle], Callable[[Event], None]] | None = None,
) -> tuple[SearchOutcome, Oracle]:
    """A tree that is slow, so that the oracle decides, or nobody; without a head start for the tree."""
    problem, deadline = Problem(graph, (disjunct,)), Deadline(seconds)
    with Oracle(problem, options, deadline) as oracle:
        oracle.on_event = None if on_event is None else on_event(oracle)
        context = context_of(problem, deadline, PLAIN, oracle=oracle, reporter=Reporter(oracle.on_event))
        return split(context, NeuronTuning(batch=2)), oracle


def hears(sharing: Sharing[B], tree: Tree[B], finding: Finding) -> None:
    """The tree hears what a solver is said to have found."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(sharing.oracle, "poll", lambda: finding)
        sharing.share(tree)


def test_a_solver_closes_what_the_tree_would_take_long_for(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 60)
    assert outcome.closed and outcome.trust is Trust.SOLVER and oracle.counts["oracle_closed"] >= 1
    assert 0 < outcome.lower_bound <= 0.3 + 1e-9
    assert oracle.pid is None


def test_a_point_of_the_solver_ends_the_run(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, _ = run(graph, disjunct_of(box, least + 0.01), 60)
    assert not outcome.closed
    assert outcome.counterexample is not None and outcome.counterexample.margin_real <= 0


def test_a_solver_closes_what_is_smooth(network: tuple[Graph, Box, float]) -> None:
    """By models of linear pieces that are refined, over ranges that are tightened."""
    graph, box, _ = network
    tanh = Elementwise(catalogue()["tanh"].bind())
    smooth = replace(graph, nodes=tuple(replace(n, op=tanh) if isinstance(n.op, Elementwise) else n for n in graph.nodes))
    small = Box(0.1 * box.lower, 0.1 * box.upper)
    x = torch.rand(20000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.2 - 0.1
    y = evaluate(smooth, x).numpy()
    least = float(np.maximum(y[:, 0] - y[:, 1], y[:, 1] - y[:, 2]).min())
    outcome, oracle = run(smooth, disjunct_of(small, least - 0.06), 60)
    assert outcome.closed and outcome.trust is Trust.SOLVER and oracle.counts["oracle_tasks"] >= 1  # or the tree, by what it swept
    outcome, oracle = run(smooth, disjunct_of(small, least + 0.001), 60)
    assert outcome.counterexample is not None and not oracle.counts["oracle_closed"]


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
    for parts, left in (((), 1), (("oracle_to_tree",), 2)):
        with torch.no_grad(), Oracle(problem, without(*parts, tuning=NEVER), Deadline(60)) as oracle:
            space, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle))
            root = tree.pop(1)
            tree.push(children(space.bounder, root, root.best[:, 0]))
            decisions = space.decisions(tree.frontier.all().take(torch.tensor([0])))
            hears(sharing, tree, Finding(Task(0, decisions), 1.0, True))
            assert len(tree.frontier) == left
            hears(sharing, tree, Finding(Task(0, decisions), 1e-9 - 1e-3, False))
            assert len(tree.frontier) == left and oracle.proved == {}
            hears(sharing, tree, Finding(Task(0), 1.0, True))
            assert not len(tree.frontier) and oracle.proved == ({0: 1.0} if parts else {})


def test_a_tree_that_is_not_told_goes_on_until_the_rest_is_closed(network: tuple[Graph, Box, float]) -> None:
    """What the oracle closed stays open in the tree, and ends the run once the tree has closed everything else."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.4)))
    with torch.no_grad(), Oracle(problem, without("oracle_to_tree", tuning=NEVER), Deadline(60)) as oracle:
        _, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle))
        hears(sharing, tree, Finding(Task(1), 0.25, True))
        assert len(tree.frontier) == 2 and tree.trust is Trust.ROUNDED
        tree.frontier.remove(tree.frontier.store.disjunct == 0)
        sharing.share(tree)
        assert not len(tree.frontier) and tree.trust is Trust.SOLVER and tree.closed_bound == 0.25


def test_a_solver_that_is_caught_lying_in_a_race_ends_the_run(network: tuple[Graph, Box, float]) -> None:
    """What it proved before is worth nothing then; what it proved before it became unusable for another reason is."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3), disjunct_of(box, least - 0.4)))
    for lies in (True, False):
        with torch.no_grad(), Oracle(problem, without("oracle_to_tree", tuning=NEVER), Deadline(60)) as oracle:
            _, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle))
            hears(sharing, tree, Finding(Task(0), 0.25, True))
            tree.incumbents.remember(1, (box.lower + box.upper) / 2)
            if lies:
                with pytest.raises(Contradiction, match="the solver says"):
                    hears(sharing, tree, Finding(Task(1), tree.incumbents.best[1][0] + 1.0, True))
                continue
            oracle.give_up("it died")
            tree.frontier.remove(tree.frontier.store.disjunct == 1)
            sharing.share(tree)
            assert not len(tree.frontier) and tree.trust is Trust.SOLVER


def test_a_bound_that_a_point_contradicts_after_closures_stops_everything(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    for closed in (True, False):
        with torch.no_grad(), Oracle(problem, without(tuning=NEVER), Deadline(60)) as oracle:
            _, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle, points={0: np.zeros(graph.nx)}))
            oracle.counts["oracle_closed"] = int(closed)
            if closed:
                with pytest.raises(Contradiction):
                    hears(sharing, tree, Finding(Task(0), 1e6, True))
                continue
            hears(sharing, tree, Finding(Task(0), 1e6, True))
            assert not oracle.usable and len(tree.frontier) == 1 and tree.trust_of_bound is Trust.ROUNDED


def test_a_bound_on_a_part_of_the_box_may_be_above_the_best_point_of_the_whole(network: tuple[Graph, Box, float]) -> None:
    """Over a part of the box the least margin may be more than at a point elsewhere; over all of it, it may not."""
    graph, box, least = network
    problem = Problem(graph, (disjunct_of(box, least - 0.3),))
    with torch.no_grad(), Oracle(problem, Options(), Deadline(60)) as oracle:
        space, tree = boxes_of(context_of(problem, options=SearchOptions(finishing=False), oracle=oracle))
        grown(tree, space, 3)
        sharing, count = box_sharing(space), len(tree.frontier)
        assert sharing is not None and count > 1
        tree.incumbents.remember(0, (box.lower + box.upper) / 2)
        best, one = tree.incumbents.best[0][0], tree.frontier.all()
        part = Box(one.lower[0].numpy(), one.upper[0].numpy())
        hears(sharing, tree, Finding(Task(0, box=part), best + 1.0, True))
        assert oracle.usable and len(tree.frontier) == count - 1 and oracle.counts["oracle_closed"] == 1
        with pytest.raises(Contradiction):
            hears(sharing, tree, Finding(Task(0), best + 1.0, True))


def test_trust_that_forbids_solvers_gets_points_only(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    outcome, oracle = run(graph, disjunct_of(box, least - 0.3), 4, Options(trust="rounded", search=AT_ONCE.search))
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
from milpverify.solvers.base import Progress, SolveOutcome, SolverStatus
from milpverify.solvers.worker import receive, send
out = sys.stdout.buffer
while True:
    message = receive(sys.stdin.buffer)
    if message[0] == "solve":
        open({spoke!r}, "w").close()
        {say}
"""
NONSENSE = {
    "no message": "out.write(b'no message at all'); out.flush()",
    "cut short": "out.write(b'mvwk' + (10**6).to_bytes(8, 'little') + b'half a message'); out.flush(); sys.exit()",
    "no tuple": "send(out, 7)",
    "unknown": "send(out, ('outcome', 'solved'))",
    "text for a bound": "send(out, ('progress', Progress('high', 0.0, 1, 0.0)))",
    "no number": "send(out, ('outcome', SolveOutcome(SolverStatus.OPTIMAL, float('nan'), 0.0)))",
    "infinite": "send(out, ('outcome', SolveOutcome(SolverStatus.OPTIMAL, float('inf'), 0.0)))",
    "short point": "import numpy; send(out, ('outcome', SolveOutcome(SolverStatus.OPTIMAL, -1.0, -1.0, numpy.zeros(1))))",
    "infeasible": "send(out, ('outcome', SolveOutcome(SolverStatus.INFEASIBLE)))",
    "too good a bound": "send(out, ('outcome', SolveOutcome(SolverStatus.OPTIMAL, 1e6, 1e6)))",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_from_the_solver_never_makes_a_verdict(
    kind: str, network: tuple[Graph, Box, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, box, least = network
    fake, spoke = tmp_path / "python", tmp_path / "spoke"
    fake.write_text(FAKE.format(python=sys.executable, path=sys.path, say=NONSENSE[kind], spoke=str(spoke)))
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setattr(sys, "executable", str(fake))
    problem = Problem(graph, (disjunct_of(box, least + 0.01),))
    with torch.no_grad(), Oracle(problem, AT_ONCE, Deadline(60)) as oracle:
        space, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle, points={0: np.zeros(graph.nx)}))
        sharing.share(tree)
        while oracle.task is not None and oracle.counts["oracle_tasks"] < 5:  # the tree waits: a fast one has no need of a solver
            time.sleep(0.005)
            sharing.share(tree)
        outcome = tree.outcome(space.detail(tree))
    assert spoke.exists() and oracle.counts["oracle_tasks"] >= 1
    assert not oracle.deadline.expired()
    assert not outcome.closed and oracle.counts["oracle_closed"] == 0
    assert outcome.lower_bound <= 0.0
    assert oracle.counterexample is None


def test_a_conditional_task_shows_at_most_that_no_point_is_unsafe() -> None:
    """Its ranges hold at unsafe points; how far the margin is above 0 elsewhere they do not say."""
    graph, box = dense_network((3, 8, 8, 1), "tanh", 0), Box(-np.ones(3), np.ones(3))
    points = sampled(box, 20_000, 0)
    values = evaluate(graph, points).flatten()
    least, far = float(values.min()), points[int(values.argmax())].numpy()
    disjunct = Disjunct(box, Rows.on_outputs([[1.0]], [least - 0.5], 3), Rows.none(3, 1))
    problem, options = Problem(graph, (disjunct,)), SearchOptions(oracle_to_tree=False, clipping=False, tuning=NEVER)
    # There are no unsafe points, so that what holds on any box holds at all of them.
    elsewhere = proved_bounds(graph, Box(np.clip(far - 0.05, -1.0, 1.0), np.clip(far + 0.05, -1.0, 1.0)))
    with torch.no_grad(), Oracle(problem, Options(search=options), Deadline(60)) as oracle:
        _, tree, sharing = begun(context_of(problem, options=options, oracle=oracle))
        oracle.give(Task(0, (), 30.0, conditional=True), disjunct, elsewhere)
        found = None
        while found is None or not found.ended:
            found = oracle.poll(0.1)
        assert 0.0 < found.bound < 1e-300
        hears(sharing, tree, found)
        assert not len(tree.frontier) and tree.trust is Trust.SOLVER and tree.lower_bound <= 1e-300
        tree.incumbents.remember(0, points[int(values.argmin())].numpy())
        assert not sharing._contradicted(tree, found)
