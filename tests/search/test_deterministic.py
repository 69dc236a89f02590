"""Choices by counts: two runs are the same run, with every part and whichever way they end."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest
from random_nets import relu_network
from support import detail

import milpverify as mv
from milpverify.graph import Graph
from milpverify.search.choose_space import SpaceTuning
from milpverify.search.groups import GroupTuning
from milpverify.search.neuron_split.tasks import NeuronTaskTuning
from milpverify.search.sharing import SharingTuning
from milpverify.spec import Box, Disjunct, Problem, Rows
from milpverify.tuning import Tuning


def problem(nx: int, width: int, radius: float, threshold: float, seed: int = 3) -> Problem:
    graph: Graph = relu_network([nx, width, width, 3], seed)
    box = Box(np.full(nx, -radius), np.full(nx, radius))
    rows = [Rows.on_outputs([[1.0, -1.0, 0.0]], [threshold], nx), Rows.on_outputs([[0.0, 1.0, -1.0]], [threshold], nx)]
    return Problem(graph, tuple(Disjunct(box, r, Rows.none(nx, 3)) for r in rows))


def timeless(value: Any) -> Any:
    """A result without what is a time."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


MANY = (GroupTuning(few_inputs=-1), SpaceTuning(many=0), NeuronTaskTuning(turn=20), SharingTuning(nodes=5))
"""Neurons are split however few inputs there are, and the oracle's turns come early and are short."""
BETWEEN = (GroupTuning(few_inputs=-1), SpaceTuning(few=-1, boxes=64, splits=16))
"""Both are tried, and nothing is decided at once."""


def twice(made: Problem, method: str = "auto", tuning: tuple[Tuning, ...] = ()) -> mv.Result:
    options = mv.Options(attack=False, search=mv.SearchOptions(deterministic=True, tuning=tuning))
    first, second = (mv.verify(made, None, method, options=options) for _ in range(2))
    assert timeless(first.to_dict()) == timeless(second.to_dict())
    return first


def test_with_a_solver_beside_the_tree() -> None:
    result = twice(problem(8, 16, 0.6, -2.3), tuning=MANY)
    found = detail(result)
    assert result.verdict is mv.Verdict.VERIFIED
    assert found["method"] == "neuron split" and found["oracle_tasks"] > 0


def test_a_counterexample_is_the_same_one() -> None:
    result = twice(problem(8, 20, 0.6, -2.05), tuning=MANY)
    assert result.verdict is mv.Verdict.FALSIFIED and result.counterexample is not None
    assert detail(result)["method"] == "neuron split"


@pytest.mark.parametrize("method", ["auto", "bab"])
def test_where_both_searches_are_tried(method: str) -> None:
    result = twice(problem(8, 16, 0.6, -2.6), method, BETWEEN)
    assert result.verdict is mv.Verdict.VERIFIED and "trial" in detail(result)


def test_where_inputs_are_few() -> None:
    result = twice(problem(4, 20, 1.0, -1.54))
    assert detail(result)["method"] == "input split"


@pytest.mark.parametrize("method", ["milp", "smt"])
def test_whole_models(method: str) -> None:
    twice(problem(2, 4, 1.0, -0.5), method)


def test_no_choice_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, with clocks that jump."""
    made = problem(8, 16, 0.6, -2.3)
    first = twice(made, tuning=MANY)
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            now[0] += 7.0
            return now[0]

        process_time = perf_counter = monotonic

        @staticmethod
        def sleep(seconds: float) -> None:
            return

    timed = [m for name, m in sys.modules.items() if name.startswith("milpverify.search.") and getattr(m, "time", None) is time]
    assert len(timed) > 4
    for module in timed:
        monkeypatch.setattr(module, "time", Clock)
    assert timeless(first.to_dict()) == timeless(twice(made, tuning=MANY).to_dict())
