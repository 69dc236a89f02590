"""What the solver beside a search over neurons is asked for: whole disjuncts, the hardest subproblems, nothing twice."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_graphs import dense_network
from random_nets import disjunct_of
from trees import PLAIN, begun, context_of

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.graph import Graph
from milpverify.search.neuron_split.branching import children
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.neuron_split.tasks import NeuronTasks, NeuronTaskTuning
from milpverify.search.solver.oracle import Oracle
from milpverify.search.tree import Tree
from milpverify.spec import Box, Disjunct, Problem, Rows


def race(
    problem: Problem, *off: str, deterministic: bool = False, tuning: tuple[NeuronTaskTuning, ...] = ()
) -> tuple[NeuronSpace, Tree[Subproblems], NeuronTasks]:
    """A tree whose bounds say that the last disjunct is the hardest, and what an oracle is given."""
    options = Options(search=SearchOptions(deterministic=deterministic, tuning=tuning).without(*off))
    oracle = Oracle(problem, options, Deadline(60))
    space, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle))
    roots = tree.pop(len(tree.frontier))
    tree.push(replace(roots, bound=-1.0 - roots.disjunct.double()))
    assert isinstance(sharing.tasks, NeuronTasks)
    return space, tree, sharing.tasks


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_oracle_that_is_not_told_takes_disjunct_after_disjunct(network: tuple[Graph, Box, float], deterministic: bool) -> None:
    """It is told neither which is the hardest nor that the tree closed one, and gets nothing else."""
    graph, box, least = network
    problem = Problem(graph, tuple(disjunct_of(box, least - shift) for shift in (0.4, 0.3, 0.2)))
    for parts, given in ((("tree_to_oracle",), [0, 1, 2]), (("oracle_to_tree",), [2, 0])):
        _, tree, tasks = race(problem, *parts, deterministic=deterministic)
        with torch.no_grad(), tasks.oracle as oracle:
            for place in given:
                tasks.give(tree)
                task = oracle.task
                assert task is not None and (task.disjunct, task.decisions) == (place, ())
                oracle.close()
                tree.frontier.remove(tree.frontier.store.disjunct == 1)
            tasks.give(tree)
            assert (oracle.task is not None) is deterministic  # by counts there are turns, and the tasks of later ones are larger


def test_models_that_take_long_to_make_leave_the_tree_its_time(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    problem = Problem(graph, tuple(disjunct_of(box, least - shift) for shift in (0.4, 0.3)))
    _, tree, tasks = race(problem, tuning=(NeuronTaskTuning(large=0),))
    with torch.no_grad(), tasks.oracle as oracle:
        tasks.give(tree)
        assert oracle.task is not None and 0 < oracle.usage.modelling <= time.monotonic() - oracle.usage.began
        oracle.close()
        for spent, given in ((1e9, False), (0.0, True)):
            oracle.usage.modelling = spent
            tasks.give(tree)
            assert (oracle.task is not None) is given


def test_what_the_solver_is_done_with_ends_a_race_that_nothing_else_can_decide(network: tuple[Graph, Box, float]) -> None:
    graph, box, least = network
    space, tree, tasks = race(Problem(graph, (disjunct_of(box, least - 0.3),)), "oracle_to_tree")
    with torch.no_grad(), tasks.oracle as oracle:
        root = tree.pop(1)
        tree.push(root.none)
        tree.unsplittable = children(space.bounder, root, root.best[:, 0]).take(torch.tensor([0]))
        tasks.give(tree)
        assert oracle.task is not None and not oracle.task.decisions
        oracle.close()
        tasks.give(tree)
        assert oracle.task is None and not oracle.usable and "nothing more" in oracle.notes[0]


def test_what_a_solver_is_done_with_is_not_given_to_it_again(network: tuple[Graph, Box, float]) -> None:
    """A tie that neither can close ends the run, without a time limit too."""
    graph, box, least = network
    space, tree, tasks = race(Problem(graph, (disjunct_of(box, least - 0.3),)))
    with torch.no_grad(), tasks.oracle as oracle:
        root = tree.pop(1)
        tree.push(root.none)
        tree.unsplittable = both = children(space.bounder, root, root.best[:, 0])
        tasks.given[0] = 1
        for n in range(2):
            decisions = space.decisions(both.take(torch.tensor([n])))
            tasks.give(tree)
            assert oracle.task is not None and oracle.task.decisions == decisions and decisions
            oracle.close()
            oracle.solved.add((0, decisions))
        tasks.give(tree)
        assert oracle.task is None and not oracle.usable and oracle.notes


def test_a_large_curved_network_is_left_to_the_tree() -> None:
    """Without a word, and without a tree that waits for a solver which never comes."""
    graph, box = dense_network((3, 6, 1), "tanh", 0), Box(-np.ones(3), np.ones(3))
    problem = Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [-100.0], 3), Rows.none(3, 1)),))
    options = Options(search=SearchOptions(tuning=(NeuronTaskTuning(most_curved=0),)))
    with torch.no_grad(), Oracle(problem, options, Deadline(60)) as oracle:
        _, tree, sharing = begun(context_of(problem, options=PLAIN, oracle=oracle))
        sharing.tasks.give(tree)
        assert not oracle.usable and not oracle.notes and not oracle.counts["oracle_tasks"] and not sharing.awaited(tree)
