"""Sums of ReLUs of one variable: their range is found exactly, and holds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from milpverify.frontends.lowering.builder import Builder
from milpverify.graph import Graph, Node
from milpverify.propagation.interval import propagate, step
from milpverify.propagation.lookup import lookups
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.row_intervals import RowIntervals
from milpverify.propagation.state import State

PLACES, PIECES = 3, 9


def table(m: int = 1, slopes: bool = False, same: bool = True, seed: int = 0) -> tuple[Graph, tuple[np.ndarray, ...]]:
    """W relu(s x_i + c) + b for every input x_i; and s, c, W, b."""
    random = np.random.default_rng(seed)
    s = random.choice([-2.0, 0.0, 0.3, 1.0], PIECES) if slopes else np.ones(PIECES)
    c, w, b = (random.standard_normal(shape).astype(np.float32).astype(float) for shape in (PIECES, (PIECES, m), m))
    g = Builder(PLACES)
    spread = g.broadcast(g.reshape(g.nodes[0], (PLACES, 1)), (PLACES, PIECES))
    if not same:
        spread = g.select(g.nodes[0], np.arange(PLACES * PIECES).reshape(PLACES, PIECES) % PLACES)
    y = g.scale(g.matmul(g.relu(g.scale(spread, s if slopes else None, c)), w), bias=b)
    return g.graph([y], (), ()), (s, c, w, b)


def holder(graph: Graph) -> Node:
    (i,) = lookups(graph)
    return graph.nodes[i]


@pytest.mark.parametrize(("m", "slopes"), [(1, False), (2, True), (1, True)])
def test_the_range_is_exact(m: int, slopes: bool) -> None:
    """Against values in rationals at the ends and at all kinks."""
    for seed in range(4):
        graph, (s, c, w, b) = table(m, slopes, seed=seed)
        node = holder(graph)
        random = np.random.default_rng(seed + 10)
        low = random.uniform(-2, 1, (6, PLACES))
        high = low + random.choice([0.0, 0.01, 1.0, 3.0], (6, PLACES))
        found = propagate(graph, torch.from_numpy(low), torch.from_numpy(high))[node.id].bounds
        lower, upper = (side.reshape(6, PLACES, m) for side in (found.lower, found.upper))
        for k in np.ndindex(6, PLACES):
            ends = Fraction(low[k]), Fraction(high[k])
            points = [*ends, *(-Fraction(d) / Fraction(a) for a, d in zip(s, c, strict=True) if a)]
            points = [p for p in points if ends[0] <= p <= ends[1]]
            for r in range(m):
                terms = [(Fraction(a), Fraction(d), Fraction(v)) for a, d, v in zip(s, c, w[:, r], strict=True)]
                values = [Fraction(b[r]) + sum(v * max(Fraction(0), a * p + d) for a, d, v in terms) for p in points]
                least, most = lower[k][r].item(), upper[k][r].item()
                assert Fraction(least) <= min(values) and max(values) <= Fraction(most)
                assert float(min(values)) - least < 1e-12 and most - float(max(values)) < 1e-12


def test_infinite_ends_say_nothing() -> None:
    graph, _ = table()
    ends = torch.tensor([[-torch.inf, 0.0, -1.0]], dtype=torch.float64), torch.tensor([[0.0, torch.inf, 1.0]], dtype=torch.float64)
    found = propagate(graph, *ends)[holder(graph).id].bounds
    assert not bool(found.lower.isnan().any() | found.upper.isnan().any())
    assert found.upper.flatten()[1] == torch.inf and bool(found.lower.flatten()[2].isfinite())


def test_places_that_read_several_variables_are_no_tables() -> None:
    assert not lookups(table(same=False)[0])


def test_large_tables_are_bounded_piece_by_piece() -> None:
    graph, _ = table(m=2)
    small, large = BoundTuning(lookup=2 * PIECES - 1), BoundTuning(lookup=2 * PIECES)
    assert not lookups(graph, small) and lookups(graph, large).keys() == lookups(graph).keys()
    ends = torch.full((1, PLACES), -1.0, dtype=torch.float64), torch.full((1, PLACES), 2.0, dtype=torch.float64)
    one: tuple[State, BoundTuning] = ({}, small)
    other: tuple[State, BoundTuning] = ({}, large)
    for state, tuning in (one, other):
        for node in graph.nodes:
            state[node.id] = step(graph, node, state, *ends, graph, tuning)
    assert bool((one[0][graph.output].bounds.width > other[0][graph.output].bounds.width).all())


def test_rows_that_read_a_table_know_its_range() -> None:
    """Through the ReLUs they would be bounded by the sum of what each is at most."""
    graph, _ = table()
    state = propagate(graph, -torch.ones(1, PLACES, dtype=torch.float64), torch.ones(1, PLACES, dtype=torch.float64))
    rows = torch.eye(PLACES, dtype=torch.float64)
    found, apart = (RowIntervals.of(graph, rows, tables=tables).lower(state) for tables in (True, False))
    after = state[graph.output].bounds.lower
    assert bool((found > apart + 0.05).all()) and bool(((found - after).abs() < 1e-12).all())


def test_values_that_float64_does_not_hold() -> None:
    """2^-1100 is 0 there, and not when it is multiplied by 2^1000; 2^1100 is infinite, and infinity less infinity no number."""
    for size, least, most in ((-600, 0.0, 2.0**-100), (600, -torch.inf, torch.inf)):
        g = Builder(1)
        spread = g.broadcast(g.reshape(g.nodes[0], (1, 1)), (1, 2))
        y = g.matmul(g.relu(g.scale(spread, np.array([2.0**size, 2.0**size]))), np.array([[2.0**1000], [-(2.0 ** min(999, -size))]]))
        graph = g.graph([y], (), ())
        ends = (torch.full((1, 1), v, dtype=torch.float64) for v in (0.0, 2.0 ** (size + 100 if size < 0 else size)))
        found = propagate(graph, *ends)[holder(graph).id].bounds
        assert found.lower.item() <= least and found.upper.item() >= 0.5 * most
