"""Numbers that single precision holds badly or not at all: no bound may rest on what underflows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from product_networks import Grower

import milpverify as mv
from milpverify.graph import Graph
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.forward import Carried, forward
from milpverify.propagation.interval import charged, propagate
from milpverify.propagation.request import BoundRequest
from milpverify.propagation.state import Lines, SplitConstraints, State

COPIES = ((torch.float32, None), (torch.float32, torch.float64), (torch.float64, None))
"""Precisions of the matrices: at the front, and behind the first nonlinear nodes where it differs."""


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize(("reach", "weight"), [(1e38, 1e-9), (1e36, 1e-9), (1e30, 1e-15)])
def test_slopes_that_vanish_on_huge_intervals_are_charged_for(method: str, twice: bool, reach: float, weight: float) -> None:
    g = Grower(1, 0)
    y = g.call("atan", g.nodes[0])
    graph = g.finished(g.sum([g.scale(y, 2 * weight), g.scale(y, -weight)]) if twice else g.scale(y, weight))
    found = mv.bounds(graph, mv.Box(np.array([-0.7 * reach]), np.array([reach])), method, torch.float32).output
    low, high = found.lower.item(), found.upper.item()
    assert low <= weight * math.atan(-0.7 * reach) * (1 - 1e-12) and high >= weight * math.atan(reach) * (1 - 1e-12)


def ends(graph: Graph, low: float, high: float, dtype: torch.dtype, inner: torch.dtype | None) -> list[tuple[float, float]]:
    """What backward passes, forward forms and states whose charges are made anew say of the output."""
    lower, upper = (torch.tensor([[x]], dtype=torch.float64) for x in (low, high))
    fast = graph.to(dtype, inner=inner)
    rows = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    with torch.no_grad():
        state, table = crown(graph, lower, upper, dtype, BoundRequest(inner=inner))
        known = forward(graph, lower, upper, dtype)[0][graph.output].bounds
        again: State = {}
        for node in graph.nodes:
            again[node.id] = charged(graph, node, again, state[node.id], fast)
        found = [(known.lower.item(), known.upper.item())]
        for charges in (state, again):
            below, above = bound_rows(fast, charges, table, rows).lower[0].tolist()
            found.append((below, -above))
    return found


@pytest.mark.parametrize(("dtype", "inner"), COPIES)
@pytest.mark.parametrize("weight", [7.7e-45, 3.3e-43, 1e-41, 5 * 2.0**-149])
def test_weights_that_are_no_normal_numbers_are_charged_for(weight: float, dtype: torch.dtype, inner: torch.dtype | None) -> None:
    g = Grower(1, 0)
    graph = g.finished(g.scale(g.relu(g.scale(g.nodes[0], weight)), 1e37))
    exact = Fraction(weight) * 10**6 * Fraction(1e37)
    for low, high in ends(graph, -1e5, 1e6, dtype, inner):
        assert low <= 0 and Fraction(high) >= exact


def test_weights_that_vanish_are_charged_for_in_sums() -> None:
    """Each of a thousand terms loses all that it is: 1e-46 times 1e4."""
    g = Grower(1000, 0)
    graph = g.finished(g.scale(g.relu(g.matmul(g.nodes[0], np.full((1000, 1), 1e-46))), 1e38))
    x = torch.full((1, 1000), 1e4, dtype=torch.float64)
    state, table = crown(graph, -x, x, torch.float32)
    row = torch.full((1, 1, 1), -1.0, dtype=torch.float64)
    exact = 1000 * Fraction(1e-46) * 10**4 * Fraction(1e38)
    assert Fraction(-bound_rows(graph.to(torch.float32), state, table, row).lower.item()) >= exact
    assert Fraction(forward(graph, -x, x, torch.float32)[0][graph.output].bounds.upper.item()) >= exact


@pytest.mark.parametrize(("dtype", "inner"), COPIES)
@pytest.mark.parametrize("scale", [1e30, 1e35, 1e37])
@pytest.mark.parametrize("low", [-88.5, -95.0, -97.0, -100.0, -110.0])
def test_lines_that_are_no_normal_numbers_are_charged_for(low: float, scale: float, dtype: torch.dtype, inner: torch.dtype | None) -> None:
    for width in (0.1, 0.5, 3.0):
        g = Grower(1, 0)
        graph = g.finished(g.scale(g.call("exp", g.nodes[0]), scale))
        for below, above in ends(graph, low, low + width, dtype, inner):
            assert below <= math.exp(low) * scale * (1 + 1e-12) and above >= math.exp(low + width) * scale * (1 - 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms_charge_for_weights_that_are_no_normal_numbers(dtype: torch.dtype) -> None:
    """The forms alone, which values of any size enter."""
    g = Grower(1, 0)
    graph = g.finished(g.scale(g.scale(g.scale(g.nodes[0], 1e30), 7.7e-45), 1e8))
    lower, upper = torch.tensor([[-1e5]], dtype=torch.float64), torch.tensor([[1e6]], dtype=torch.float64)
    with torch.no_grad():
        state, table = forward(graph, lower, upper, dtype)
        carried = Carried(graph, lower, upper, dtype, {graph.output})
        for node in graph.nodes:
            carried.step(node, state, table)
    high = carried.forms[graph.output].bounds(state[graph.output].center).upper.item()
    exact = 10**6 * Fraction(1e30) * Fraction(7.7e-45) * 10**8
    assert exact <= Fraction(high) <= exact * 2


def test_every_addition_of_multipliers_is_charged_for() -> None:
    """Sixty-four maps of one input, each of whose multipliers is lost beside that of the input itself."""
    g, weight = Grower(1, 0), 0.99 * 2.0**-24
    graph = g.finished(g.concat([g.scale(g.nodes[0], weight) for _ in range(64)], 0))
    one = torch.ones(1, 1, dtype=torch.float64)
    state, table = crown(graph, -one, one, torch.float32)
    found = bound_rows(graph.to(torch.float32), state, table, torch.ones(1, 1, 64, dtype=torch.float64), x_rows=one.reshape(1, 1, 1))
    assert Fraction(found.lower.item()) <= -1 - 64 * Fraction(weight)


def test_every_split_of_an_entry_is_charged_for() -> None:
    """-z where z >= 1, sixty-four times over; each multiplier is lost beside that of the row."""
    g, count = Grower(1, 0), 64
    graph = g.finished(g.scale(g.nodes[0], 1.0))
    one = torch.ones(1, 1, dtype=torch.float64)
    state, table = crown(graph, -one, one, torch.float32)
    beta = torch.full((1, 1, count), 0.99 * 2.0**-24)
    split = SplitConstraints(torch.zeros(1, count).long(), torch.ones(1, count), torch.ones(1, count, dtype=torch.float64), beta)
    found = bound_rows(graph.to(torch.float32), state, table, -one.reshape(1, 1, 1), splits={graph.output: split})
    assert found.lower.item() <= -1


def test_every_term_of_a_bound_is_charged_for() -> None:
    """One large intercept, and four hundred after it that are lost beside it."""
    g, count = Grower(401, 0), 400
    graph = g.finished(g.concat([g.relu(g.select(g.nodes[0], np.array([k]))) for k in range(count + 1)], 0))
    radius = torch.full((1, count + 1), 2.0**-40, dtype=torch.float64)
    state = propagate(graph, -radius, radius)
    row, b = torch.full((1, 1, count + 1), 0.99 * 2.0**-54, dtype=torch.float64), -torch.ones(1, 1, dtype=torch.float64)
    row[0, 0, -1] = 1.0
    zero = (torch.zeros_like(b),)
    table = {i: Lines(zero, zero, b, b) for i in graph.nonlinear[:-1]} | {graph.nonlinear[-1]: Lines(zero, zero, -b, -b)}
    found = bound_rows(graph, state, table, row).lower.item()
    assert Fraction(found) <= 1 - count * Fraction(row[0, 0, 0].item())
