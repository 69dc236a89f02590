"""Interval propagation where ends are infinite: what does not depend on them stays finite."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from product_networks import Grower

from milpverify.graph import Graph, Node, evaluate_all
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.interval import propagate


def grown(overflows: bool) -> tuple[Grower, Node]:
    """exp of inputs, whose upper end overflows for the first of three; lower ends are positive."""
    g = Grower(3, 0)
    scale = np.array([400.0 if overflows else 1.0, 1.0, 1.0])
    return g, g.call("exp", g.scale(g.nodes[0], scale))


BOX = torch.tensor([[1.0, -1.0, 0.0]], dtype=torch.float64), torch.tensor([[2.0, 1.0, 0.5]], dtype=torch.float64)


def bounds_of(graph: Graph) -> tuple[torch.Tensor, torch.Tensor]:
    bounds = propagate(graph, *BOX)[graph.output].bounds
    return bounds.lower[0], bounds.upper[0]


def test_a_sum_has_the_lower_end_that_its_terms_have() -> None:
    g, e = grown(True)
    low, high = bounds_of(g.finished(g.reduce_sum(e, [0])))
    assert torch.isinf(high) and float(low) == pytest.approx(np.exp(400.0), rel=1e-12) and float(low) <= np.exp(400.0) + 1.0


def test_signs_tell_which_end_is_needed() -> None:
    g, e = grown(True)
    low, high = bounds_of(g.finished(g.scale(e, -2.0, 1.0)))
    assert torch.isinf(low[0]) and float(high[0]) == pytest.approx(1.0 - 2.0 * np.exp(400.0), rel=1e-12)
    assert low[1:].isfinite().all() and high[1:].isfinite().all()
    g, e = grown(True)
    low, high = bounds_of(g.finished(g.sum([g.nodes[0], e], [1, -1])))
    assert torch.isinf(low[0]) and float(high[0]) == pytest.approx(2.0 - np.exp(400.0), rel=1e-12)


def test_mixed_signs_say_nothing_and_zeros_hide_nothing() -> None:
    g, e = grown(True)
    low, high = bounds_of(g.finished(g.matmul(e, np.array([[1.0, 1.0], [-1.0, 0.0], [1.0, 1.0]]))))
    assert torch.isinf(low[0]) and torch.isinf(high).all()
    g, e = grown(True)
    low, high = bounds_of(g.finished(g.matmul(e, np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]))))
    assert not low.isnan().any() and not high.isnan().any() and float(low[1]) >= np.exp(399.0)


def test_a_share_of_an_overflowing_sum_is_bounded() -> None:
    g, e = grown(True)
    total = g.call("reciprocal", g.reduce_sum(e, [0]))
    low, high = bounds_of(g.finished(total))
    assert -1e-300 <= float(low) <= float(high) <= np.exp(-399.0)


@pytest.mark.parametrize("entry", [2e-164, 2.7e-164], ids=["to zero", "upwards"])
def test_products_that_underflow_are_charged_for(entry: float) -> None:
    """A hundred of them in one sum, which is then scaled back to the size of ordinary numbers."""
    g = Grower(100, 0)
    total = g.matmul(g.nodes[0], np.full((100, 1), 1e-160))
    graph = g.finished(g.scale(total, 1e300))
    x = torch.full((1, 100), entry, dtype=torch.float64)
    exact = 100 * Fraction(entry) * Fraction(1e-160) * Fraction(1e300)
    state, table = crown(graph, x, x, torch.float64)
    known = propagate(graph, x, x)[graph.output].bounds
    sign = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    low, high = (bound_rows(graph, state, table, sign).lower[0] * sign[0, :, 0]).tolist()
    for below, above in ((float(known.lower), float(known.upper)), (low, high)):
        assert Fraction(below) <= exact <= Fraction(above)


def test_products_that_underflow_are_charged_for_where_an_end_is_infinite() -> None:
    g = Grower(100, 0)
    graph = g.finished(g.scale(g.matmul(g.call("exp", g.nodes[0]), np.full((100, 1), 1e-160)), 1e300))
    low, high = (torch.full((1, 100), end, dtype=torch.float64) for end in (math.log(2.7e-164), 800.0))
    known = propagate(graph, low, high)[graph.output].bounds
    exact = 100 * math.exp(float(low[0, 0])) * (1e-160 * 1e300)
    assert torch.isinf(known.upper) and float(known.lower) <= exact * (1 + 1e-12)


@pytest.mark.parametrize("overflows", [False, True])
def test_samples_lie_within(overflows: bool) -> None:
    g, e = grown(overflows)
    parts = [
        g.reduce_sum(e, [0]),
        g.scale(e, np.array([-0.5, 2.0, 3.0]), 0.1),
        g.sum([e, g.nodes[0]], [-1, 1]),
        g.concat([e, g.nodes[0]], 0),
    ]
    graph = g.finished(*parts)
    state = propagate(graph, *BOX)
    x = BOX[0] + (BOX[1] - BOX[0]) * torch.rand(500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for node, value in zip(graph.nodes, evaluate_all(graph, x), strict=True):
        known = state[node.id].bounds
        finite = value.isfinite()
        slack = 1e-12 * value.abs().where(finite, 0.0)
        assert bool(((value >= known.lower - slack) | ~finite).all()) and bool(((value <= known.upper + slack) | ~finite).all())
