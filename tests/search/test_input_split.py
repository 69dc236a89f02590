"""Bisection of the inputs decides random problems as enumeration does, with small boxes finished by neuron splits from the start."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from random_nets import CONTINUOUS, enumerated_minimum, random_problem, relu_network

from milpverify.config import Deadline
from milpverify.graph import evaluate
from milpverify.search import finish, input_split
from milpverify.search.input_split import SplitOutcome
from milpverify.search.margin import groups
from milpverify.search.witness import Status
from milpverify.spec import Box, Disjunct, Problem, Rows


def run(problem: Problem, seconds: float = 20.0) -> SplitOutcome:
    (group,) = groups(problem)
    with torch.no_grad():
        return input_split.search(problem, problem.graph, group, Deadline(seconds))


def shifted(disjunct: Disjunct, by: float) -> Disjunct:
    unsafe = disjunct.unsafe
    return replace(disjunct, unsafe=Rows(unsafe.x_rows, unsafe.y_rows, unsafe.rhs + by, unsafe.strict))


@pytest.fixture
def finished_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Neuron splits are tried on every small box; the boxes that they close are counted."""
    monkeypatch.setattr(finish, "FIRST", 0)
    monkeypatch.setattr(finish, "ROUND", 4)
    closed: list[int] = []
    original = finish.Finisher.run

    def counting(self: finish.Finisher, *args: object) -> object:
        proved, judgement = original(self, *args)  # type: ignore[arg-type]
        closed.append(int(proved.sum()))
        return proved, judgement

    monkeypatch.setattr(finish.Finisher, "run", counting)
    return closed


@pytest.mark.parametrize("seed", range(30))
def test_verdicts_are_those_of_enumeration(seed: int, finished_at_once: list[int]) -> None:
    graph, disjunct = random_problem(seed, CONTINUOUS)
    least = enumerated_minimum(graph, disjunct)
    if not math.isfinite(least):
        pytest.skip("the input set is empty")
    size = 1e-2 * max(1.0, abs(least))
    for by, safe in ((least - size, True), (least + size, False)):
        outcome = run(Problem(graph, (shifted(disjunct, by),)))
        assert outcome.lower_bound <= (least - by) + 1e-6 * max(1.0, abs(least))
        found = outcome.judgement is not None and outcome.judgement.status is Status.HOLDS
        assert not (safe and found)
        assert not (outcome.closed and not safe)
        assert outcome.closed or found


@pytest.mark.parametrize("seed", range(4))
def test_neuron_splits_close_boxes_that_bisection_left_open(seed: int, finished_at_once: list[int]) -> None:
    graph = relu_network([3, 16, 16, 2], seed)
    box = Box(-np.ones(3), np.ones(3))
    disjunct = Disjunct(box, Rows.on_outputs([[1.0, -1.0]], [0.0], 3), Rows.none(3, 2))
    generator = torch.Generator().manual_seed(seed)
    points = 2 * torch.rand(20_000, 3, generator=generator, dtype=torch.float64) - 1
    outputs = evaluate(graph, points)
    seen = float((outputs[:, 0] - outputs[:, 1]).min())
    outcome = run(Problem(graph, (shifted(disjunct, seen - 0.05),)), 30)
    assert outcome.closed or (outcome.judgement is not None and outcome.judgement.status is Status.HOLDS)
    assert not outcome.closed or sum(finished_at_once) > 0


def test_a_run_without_time_proves_nothing() -> None:
    graph = relu_network([3, 16, 16, 2], 0)
    disjunct = Disjunct(Box(-np.ones(3), np.ones(3)), Rows.on_outputs([[1.0, -1.0]], [0.0], 3), Rows.none(3, 2))
    outcome = run(Problem(graph, (shifted(disjunct, -0.5),)), 0.0)
    assert not outcome.closed
    with torch.no_grad():
        group = groups(Problem(graph, (disjunct,)))[0]
        finisher = finish.Finisher(Problem(graph, (disjunct,)), graph, group, Deadline(0.0))
        lower, upper = (torch.tensor(side)[None] for side in (disjunct.box.lower, disjunct.box.upper))
        proved, _ = finisher.run(lower, upper, torch.full((1, 1), -math.inf, dtype=torch.float64), {})
    assert not bool(proved.any())
