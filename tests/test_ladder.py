"""Cheap bounds first: what intervals prove is answered by them, attacks come before what is dear, and every rung is a bound."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import milpverify as mv
from milpverify import ladder
from milpverify.ladder import LadderTuning
from milpverify.propagation import cost
from milpverify.propagation.request import CostTuning
from milpverify.search.groups import groups
from milpverify.tuning import Tuning


def deep(inputs: int = 3, width: int = 24, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)).eval()
    net[0].weight.data *= scale  # type: ignore[operator]
    return net


DEAR = CostTuning(cheap=0.0)
"""Networks of any size count as dear."""


def searching(*tuning: Tuning, **parts: Any) -> mv.SearchOptions:
    return mv.SearchOptions(tuning=tuning or (DEAR,), **parts)


def problem(limit: float, net: nn.Module | None = None, inputs: int = 3) -> mv.Problem:
    box = mv.Box(np.zeros(inputs), np.full(inputs, 1.0))
    return mv.Problem(net or deep(inputs), box, unsafe=mv.Rows.on_outputs([[1.0, -1.0]], [limit], inputs))


def names(result: mv.Result) -> list[str]:
    return [rung["rung"] for rung in result.phases[0].detail["rungs"]]


def test_small_networks_have_one_rung() -> None:
    result = mv.verify(problem(-100.0))
    assert result.verdict is mv.Verdict.VERIFIED and names(result) == ["backward"]


def test_what_intervals_prove_needs_no_more() -> None:
    result = mv.verify(problem(-100.0), options=mv.Options(search=searching()))
    assert result.verdict is mv.Verdict.VERIFIED and names(result) == ["intervals"] and result.lower_bound > 90.0


def test_a_counterexample_that_an_attack_finds_comes_before_dear_bounds() -> None:
    result = mv.verify(problem(100.0), options=mv.Options(search=searching()))
    assert result.verdict is mv.Verdict.FALSIFIED and names(result) == ["intervals"]
    assert [p.name for p in result.phases] == ["presolve"] and math.isfinite(result.lower_bound)
    assert names(mv.verify(problem(100.0), options=mv.Options(attack=False, search=searching()))) != ["intervals"]


def test_a_counterexample_says_nothing_of_boxes_that_have_no_bound_yet() -> None:
    first, other = problem(100.0), problem(200.0)  # margins about -100 and -200
    (there,) = other.disjuncts
    both = mv.Problem(first.graph, (*first.disjuncts, replace(there, box=mv.Box(np.zeros(3), np.full(3, 2.0)))), first.runtime)
    result = mv.verify(both, options=mv.Options(search=searching()))
    assert result.verdict is mv.Verdict.FALSIFIED and result.lower_bound < -190.0


@pytest.mark.parametrize("inputs", [3, 12])
def test_every_rung_is_a_bound_no_worse_than_the_one_before(inputs: int) -> None:
    asked = problem(0.0, inputs=inputs)
    (group,) = groups(asked)
    points = torch.rand(2000, inputs, dtype=torch.float64)
    with torch.no_grad():
        y = deep(inputs).double()(points)
        least = float((y[:, 0] - y[:, 1]).min())
        options = searching(replace(DEAR, forward_rate=1e12), deterministic=True)
        rungs = list(ladder.climb(asked.graph, group, mv.Deadline(), options))
    bounds = [float(rung.found.margins) for rung in rungs]
    assert [rung.name for rung in rungs][:2] == ["intervals", "forward"] and rungs[0].first
    assert bounds == sorted(bounds) and bounds[-1] <= least and bounds[0] < bounds[-1]


def test_verdicts_are_the_same_on_a_ladder() -> None:
    net = deep(scale=3.0)
    best = mv.minimize(problem(0.0, net).graph, mv.Box(np.zeros(3), np.ones(3)), [1.0, -1.0], gap=1e-4)
    for limit, verdict in ((best.lower_bound - 1e-3, mv.Verdict.VERIFIED), (best.upper_bound + 1e-3, mv.Verdict.FALSIFIED)):
        for deterministic in (False, True):
            options = mv.Options(search=searching(deterministic=deterministic))
            result = mv.verify(problem(limit, net), options=options, timeout=60.0)
            assert result.verdict is verdict, result


def test_backward_passes_that_take_too_long_are_cut() -> None:
    asked, short = problem(0.0, inputs=70, net=deep(70)), LadderTuning(share=0.0, least=0.0)

    def verified(tuning: LadderTuning) -> mv.Result:
        search = searching(DEAR, tuning, branching="none", refining=False)
        return mv.verify(asked, timeout=5.0, options=mv.Options(attack=False, search=search))

    result = verified(replace(short, above=math.inf))
    lines = result.phases[0].detail["rungs"]
    assert [line["complete"] for line in lines] == [True, False]
    assert all(float(line["multiplications"]) > 0 and isinstance(line["bound"], float) for line in lines)
    assert result.lower_bound >= lines[0]["bound"]
    assert names(verified(short)) == ["intervals"]


@pytest.mark.parametrize("entries", [0, 10**9])
def test_what_cannot_be_afforded_is_done_for_the_neurons_that_loosen_the_margin_most(entries: int) -> None:
    inputs, net = 70, deep(70, width=160)
    asked = problem(0.0, inputs=inputs, net=net)
    (group,) = groups(asked)
    everything = list(ladder.climb(asked.graph, group, mv.Deadline(), searching(deterministic=True)))[-1]
    all_of_them = everything.multiplications
    short = LadderTuning(fixed=all_of_them / 8, part=all_of_them / 100, large=entries)
    rungs = list(ladder.climb(asked.graph, group, mv.Deadline(), searching(DEAR, short, deterministic=True)))
    assert [rung.name for rung in rungs[:3]] == ["intervals", "loosest", "loosest"] and rungs[-1].name == "loosest"
    assert everything.name == "backward"
    assert sum(rung.multiplications for rung in rungs[1:]) <= everything.multiplications / 8
    bounds = [float(rung.found.margins) for rung in [*rungs, everything]]
    assert bounds[0] < bounds[1] < bounds[2] and bounds == sorted(bounds)
    # An eighth of the passes gains more than an eighth of what all of them do.
    assert bounds[-2] - bounds[0] > 0.25 * (bounds[-1] - bounds[0])
    with torch.no_grad():
        y = net.double()(torch.rand(2000, inputs, dtype=torch.float64))
    assert bounds[-2] <= float((y[:, 0] - y[:, 1]).min())


def test_costs_grow_with_what_is_undecided() -> None:
    graph = problem(0.0).graph
    everything = cost.undecided_backward(graph)
    (group,) = groups(problem(0.0))
    wide = next(iter(ladder.climb(graph, group, mv.Deadline(), mv.SearchOptions(deterministic=True)))).found.state
    assert 0.0 < cost.backward_passes(graph, wide) <= everything
    assert cost.forward_pass(graph, 3) < cost.forward_pass(graph, 5)


def test_a_convolution_on_a_large_image_is_proved_without_a_matrix_of_its_neurons() -> None:
    """Between its two convolutions, that is."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 20 * 20, 2)
    ).eval()
    box = mv.Box(np.full((3, 64, 64), 0.5), np.full((3, 64, 64), 0.5001))
    result = mv.verify(mv.Problem(net, box, unsafe="(and (>= Y_0 100) (>= Y_1 100))"), timeout=60.0, options=mv.Options(search=searching()))
    assert result.verdict is mv.Verdict.VERIFIED and names(result) == ["intervals"]


def test_backward_passes_are_preferred_where_they_spare_more_boxes_than_they_cost() -> None:
    assert cost.forward_suffices(1.0, 10.0, varying=2, missing=1.0, left=1.0)
    assert not cost.forward_suffices(1.0, 10.0, varying=4, missing=9.0, left=0.01)
    assert cost.forward_suffices(1.0, 100.0, varying=2, missing=9.0, left=0.1)
