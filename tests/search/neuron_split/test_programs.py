"""Linear programs of subproblems of smooth networks: what they close is closed, whatever HiGHS says, and the search decides as before."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from trees import context_of, grown, neurons_of

from milpverify.config import Deadline, SearchOptions
from milpverify.frontends.network import load_network
from milpverify.graph import evaluate
from milpverify.result import Trust
from milpverify.search.ledger import Part, Reporter
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.solver.leaves import Leaves
from milpverify.search.solver.pace import Pace
from milpverify.spec import Box, Disjunct, Problem, Rows


class Eager(Pace):
    """Every program is asked for, whatever it takes."""

    @property
    def mean_gain(self) -> float:
        return math.inf

    def pays(self, seconds: float, closed: int) -> bool:
        return True

    pays_by_counts = lambda self: True  # noqa: E731


def problem_of(activation: type[nn.Module], scale: float, by: float) -> Problem:
    """Unsafe: the output is below its sampled minimum less `by`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 1)).eval()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight *= scale
    box = Box(np.full(3, -1.0), np.full(3, 1.0))
    graph = load_network(net, box).graph
    unit = torch.rand(50_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    least = float(evaluate(graph, 2 * unit - 1).min())
    return Problem(graph, (Disjunct(box, Rows.on_outputs([[1.0]], [least - by], 3), Rows.none(3, 1)),))


@pytest.mark.parametrize(
    ("activation", "scale", "deterministic", "conditional"),
    [(nn.Tanh, 2.0, False, False), (nn.Tanh, 2.0, True, True), (nn.Tanh, 2.0, False, True), (nn.Sigmoid, 6.0, True, True)],
)
def test_the_search_closes_with_programs_what_is_safe_and_nothing_else(
    activation: type[nn.Module], scale: float, deterministic: bool, conditional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NeuronSpace, "try_points", lambda *_: None)  # a counterexample would end the search
    options = SearchOptions(deterministic=deterministic, output_constraints=conditional)
    for by in (0.05, -0.01):
        problem = problem_of(activation, scale, by)
        with Leaves(problem, Deadline(60), pace=Eager()) as leaves:
            reporter = Reporter(None)
            space, tree = neurons_of(context_of(problem, 60, options, leaves=leaves, reporter=reporter))
            if conditional:
                space.patience = 2
            outcome = grown(tree, space, math.inf if by > 0 else 20)
        assert reporter.ledger.closed.get(Part.LEAVES, 0) > 0 or by < 0
        assert outcome.closed is (by > 0) and outcome.trust is Trust.ROUNDED
        assert outcome.lower_bound <= max(by, 0.0) + 1e-3


@pytest.mark.parametrize("lie", [math.nan, -1.0, 1e6])
def test_lies_of_the_solver_close_nothing_that_is_unsafe(lie: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NeuronSpace, "try_points", lambda *_: None)
    problem = problem_of(nn.Tanh, 2.0, -0.01)
    with Leaves(problem, Deadline(60), pace=Eager()) as leaves:
        solve = leaves._process.solve

        def lying(*args: object) -> object:
            outcome = solve(*args)  # type: ignore[call-overload]
            return replace(outcome, multipliers=None if outcome.multipliers is None else lie * outcome.multipliers, dual_bound=1e9)

        monkeypatch.setattr(leaves._process, "solve", lying)
        space, tree = neurons_of(context_of(problem, 60, SearchOptions(), leaves=leaves))
        outcome = grown(tree, space, 20)
    assert leaves.solved > 0 and not outcome.closed and outcome.lower_bound <= 0


def test_subproblems_with_many_open_neurons_are_left_to_the_tree() -> None:
    problem = problem_of(nn.Tanh, 2.0, 0.2)
    with Leaves(problem, Deadline(60), pace=Eager()) as leaves:
        space, tree = neurons_of(context_of(problem, 60, SearchOptions(tuning=(NeuronTuning(largest_program=1),)), leaves=leaves))
        assert grown(tree, space).closed and leaves.solved == 0
    assert NeuronTuning().largest_program > 1
