"""The search over neurons decides random piecewise-linear problems as enumeration does, tie for tie, and its bounds hold whenever it stops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, relu_network

from milpverify.config import Deadline
from milpverify.graph import Graph, evaluate
from milpverify.result import Reason
from milpverify.search import neuron_split
from milpverify.search.lp_leaf import Leaves
from milpverify.search.margin import groups
from milpverify.search.neuron_split import NeuronOutcome, Search
from milpverify.search.relaxer import bound_batch
from milpverify.search.subproblems import Frontier
from milpverify.search.witness import Status
from milpverify.spec import Box, Disjunct, Problem, Rows


def searching(graph: Graph, disjuncts: list[Disjunct], leaves: Leaves | None, deadline: Deadline | None = None) -> Search:
    problem = Problem(graph, tuple(disjuncts))
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with torch.no_grad():
        found = bound_batch(graph, group, lower, upper, torch.float64)
        return Search(problem, graph, group, found.state, deadline or Deadline(60), leaves=leaves)


def run(search: Search, **options: int) -> NeuronOutcome:
    with torch.no_grad():
        return search.run(**options)


def shifted(disjunct: Disjunct, by: float) -> Disjunct:
    unsafe = disjunct.unsafe
    return replace(disjunct, unsafe=Rows(unsafe.x_rows, unsafe.y_rows, unsafe.rhs + by, unsafe.strict))


@pytest.fixture(scope="module")
def leaves() -> object:
    with Leaves(Problem(relu_network([1, 1], 0), ()), Deadline(300)) as found:
        yield found


@pytest.mark.parametrize("seed", range(40))
def test_the_search_decides_what_enumeration_decides(seed: int, leaves: Leaves) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not np.isfinite(least):
        pytest.skip("the input set is empty")
    size = 1e-3 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        near = shifted(disjunct, by)
        leaves.problem = Problem(graph, (near,))
        outcome = run(searching(graph, [near], leaves))
        assert outcome.lower_bound <= least - by + 1e-6 * max(1.0, abs(least))
        if safe:
            assert outcome.closed, (outcome.note, outcome.detail)
        else:
            assert not outcome.closed
            assert outcome.judgement is not None and outcome.judgement.status is not Status.NOT_A_COUNTEREXAMPLE
