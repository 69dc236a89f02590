"""Rows over the ranges of the last nonlinear nodes: proved in exact arithmetic, and what proves limits just beyond a function's range."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from product_networks import attention_network, product_network
from random_graphs import FUNCTIONS, Builder, boxes, dense_network, mixed_network, sample
from torch import Tensor

import milpverify as mv
from milpverify.config import SearchOptions
from milpverify.graph import Graph, evaluate
from milpverify.operators import Elementwise, Linear, Scale
from milpverify.propagation.interval import propagate
from milpverify.propagation.row_intervals import RowIntervals
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.spec import Box, Disjunct, Problem, Rows

GRAPHS = {
    **{f: dense_network((5, 12, 12, 3), f, k) for k, f in enumerate((*FUNCTIONS, "sigmoid", "softplus"))},
    **{f"mixed {seed}": mixed_network(seed) for seed in range(3)},
    "affine": dense_network((4, 6), "relu", 0),
    "products": product_network(1),
    "attention": attention_network(0, sharp=0.3),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
@pytest.mark.parametrize("radius", [1e-6, 0.3, 3.0])
def test_samples_lie_above(graph: Graph, radius: float) -> None:
    lower, upper = boxes(graph, 4, radius, 7)
    points = sample(lower, upper, 300)
    y = evaluate(graph, points.flatten(0, 1)).reshape(4, 300, -1)
    random = torch.Generator().manual_seed(3)
    rows, x_rows = (torch.randn(6, n, generator=random, dtype=torch.float64) for n in (graph.ny, graph.nx))
    state = propagate(graph, lower, upper)
    for x_part in (None, x_rows):
        value = y @ rows.T if x_part is None else y @ rows.T + points @ x_rows.T
        found = RowIntervals.of(graph, rows, x_part).lower(state)
        assert found.shape == (4, 6)
        assert bool((found.unsqueeze(1) <= value + 1e-12 * (1 + value.abs())).all())
        assert bool(found.isfinite().all())


def cancelling(scale: float) -> tuple[Graph, Linear, Scale]:
    """A sigmoid whose values are multiplied by a number and divided by it again in sums that cancel."""
    build = Builder(3, 1)
    build.linear(4)
    build.apply("sigmoid")
    grown = Linear(scale * build.normal(6, 4), scale * build.normal(6))
    build.add(grown, (6,))
    shrunk = Scale(build.normal(6) / scale, build.normal(6))
    build.add(shrunk, (6,))
    return build.graph(), grown, shrunk


@pytest.mark.parametrize("scale", [1.0, 1e9, 1e-9, 1e150, 1e-300])
def test_minima_hold_in_exact_arithmetic(scale: float) -> None:
    graph, grown, shrunk = cancelling(scale)
    assert grown.bias is not None and shrunk.bias is not None and isinstance(graph.nodes[2].op, Elementwise)
    lower, upper = torch.full((1, 3), -2.0, dtype=torch.float64), torch.full((1, 3), 1.0, dtype=torch.float64)
    state = propagate(graph, lower, upper)
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    rows[:20, 0] = -(rows[:20, 1:] * shrunk.weight[1:] @ grown.weight[1:, 0]) / (shrunk.weight[0] * grown.weight[0, 0])  # all but cancels
    made = RowIntervals.of(graph, rows)
    found, unpadded = made.lower(state)[0].tolist(), replace(made, loss=0.0).lower(state)[0].tolist()

    def exact(t: Tensor) -> np.ndarray:
        return np.vectorize(Fraction)(t.numpy().astype(object))

    through = exact(rows) * exact(shrunk.weight)
    coefficients = through @ exact(grown.weight)
    constant = through @ exact(grown.bias) + exact(rows) @ exact(shrunk.bias)
    low, high = (exact(side[0]) for side in (state[2].bounds.lower, state[2].bounds.upper))
    truth = constant + np.where(coefficients > 0, coefficients * low, coefficients * high).sum(1)
    assert all(Fraction(bound) <= true for bound, true in zip(found, truth, strict=True))
    assert all(float(true) - bound <= 1e-11 * (1 + abs(bound)) for bound, true in zip(found, truth, strict=True))
    assert any(Fraction(bound) > true for bound, true in zip(unpadded, truth, strict=True))  # without the loss it would be wrong


def test_infinite_ranges_say_nothing_of_rows_that_need_them() -> None:
    graph = dense_network((2, 3, 2), "exp", 0)
    lower, upper = torch.full((1, 2), -1e4, dtype=torch.float64), torch.full((1, 2), 1e4, dtype=torch.float64)
    state = propagate(graph, lower, upper)
    assert not bool(state[2].bounds.upper.isfinite().all())
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    needing, free = RowIntervals.of(graph, rows).lower(state)[0].tolist()
    assert needing == -torch.inf
    assert -1e-200 < free <= 0.0  # zero times infinity is zero


def saturating(limit: float) -> Problem:
    """Is some y = 0.94 + 0.12 sigmoid(deep network), over a wide box, beyond a limit?"""
    build = Builder(6, 2)
    for size in (16, 16, 4):
        if size != 16 or len(build.nodes) > 1:
            build.apply("relu")
        build.linear(size)
    build.add(Scale(torch.tensor(6.0, dtype=torch.float64)), (4,))
    build.apply("sigmoid")
    build.add(Scale(torch.full((4,), 0.12, dtype=torch.float64), torch.full((4,), 0.94, dtype=torch.float64)), (4,))
    box = Box(np.full(6, -1.0), np.full(6, 1.0))
    none = Rows.none(6, 4)
    above = [Disjunct(box, Rows.on_outputs(-np.eye(4)[[k]], [-limit], 6), none) for k in range(4)]
    return Problem(build.graph(), tuple(above))


def test_limits_just_beyond_the_range_of_a_function_are_proved_at_once() -> None:
    problem = saturating(1.060001)
    (group,) = groups(problem)
    ends = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with torch.no_grad():
        found = bound_batch(problem.graph, group, *ends, torch.float32)
    # The lines leave the range, and their own minima are kept, for clipping moves along these lines.
    linear = group.margins(found.rows.lower)
    assert bool((linear < -1e-4).any())
    assert bool((found.margins > 0).all())
    a, centre = found.rows.coefficients[0].double(), 0.5 * torch.tensor(group.box.lower + group.box.upper)
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    line = (a @ (corners - centre).T).T + found.rows.constant
    assert torch.allclose(line.amin(0), found.rows.lower[0], atol=1e-4)
    result = mv.verify(problem, timeout=60, options=mv.Options(search=SearchOptions(branching="none", refining=False)))
    assert result.verdict is mv.Verdict.VERIFIED
    assert 0 < result.lower_bound <= 1e-6


def test_limits_within_the_range_are_not_proved() -> None:
    result = mv.verify(saturating(1.0599), timeout=60, options=mv.Options(search=SearchOptions(branching="none", refining=False)))
    assert result.verdict is not mv.Verdict.VERIFIED
    assert result.lower_bound <= 0
