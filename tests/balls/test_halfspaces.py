"""Bounds over a box and half-spaces: below every point that satisfies them, never below the box's, and as good as scipy's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_nets import relu_network
from scipy.optimize import linprog

from milpverify.arithmetic.rounding import down
from milpverify.balls.halfspaces import Halfspaces, Polytopes, least_within
from milpverify.graph import Graph, evaluate_all
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.optimised.alpha import AlphaOptions, optimise


def cases(nx: int, q: int, seed: int) -> tuple[np.ndarray, np.ndarray, Halfspaces, np.ndarray]:
    """A box, half-spaces that a point in it satisfies, some of them orders between inputs, and rows."""
    random = np.random.default_rng(seed)
    lower = -(10.0 ** random.uniform(-2, 2)) * random.uniform(0.1, 1, nx)
    upper = np.where(random.random(nx) < 0.9, -lower * random.uniform(0.1, 1, nx), lower)
    rows = random.normal(size=(q, nx)) * 10.0 ** random.integers(-2, 3, (q, 1))
    for k in np.flatnonzero(random.random(q) < 0.5):
        rows[k] = np.eye(nx)[random.integers(nx)] - np.eye(nx)[random.integers(nx)]
    point = random.uniform(lower, upper)
    rhs = rows @ point + np.where(random.random(q) < 0.5, 0.1 * np.abs(rows) @ (upper - lower), 1e-9)
    return lower, upper, Halfspaces(rows, rhs), random.normal(size=(12, nx)) * 10.0 ** random.integers(-2, 3, (12, 1))


@pytest.mark.parametrize(("nx", "q"), [(2, 1), (3, 2), (5, 6), (10, 60), (50, 8)])
def test_bounds_against_linear_programs(nx: int, q: int) -> None:
    lost = []
    for seed in range(3):
        lower, upper, halfspaces, rows = cases(nx, q, seed)
        found = least_within(*(torch.from_numpy(t) for t in (rows, lower, upper)), halfspaces).numpy()
        corner = np.where(rows > 0, lower, upper)
        over_box = (rows * corner).sum(1)
        for row, bound, plain in zip(rows, found.tolist(), over_box.tolist(), strict=True):
            best = linprog(row, halfspaces.rows, halfspaces.rhs, bounds=list(zip(lower, upper, strict=True)))
            size = np.abs(row) @ np.maximum(np.abs(lower), np.abs(upper))
            assert plain - 1e-12 * size <= bound
            if best.status:  # a set as thin as scipy's tolerance
                continue
            assert bound <= best.fun + 1e-7 * size
            if best.fun - plain > 1e-6 * size:
                lost.append((best.fun - bound) / (best.fun - plain))
    assert lost and np.mean(lost) < (1e-6 if q == 1 else 0.15)


def test_every_multiplier_gives_a_bound_in_rational_arithmetic_at_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is proposed, what is proved holds at every point."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        lower, upper, halfspaces, rows = cases(3, 4, seed)
        points = random.uniform(lower, upper, (4000, 3))
        points = points[(points @ halfspaces.rows.T <= halfspaces.rhs).all(1)]
        monkeypatch.setattr(
            Polytopes, "multipliers", lambda self, a, r=random: torch.from_numpy(10.0 ** r.uniform(-3, 3, (*a.shape[:2], 4)))
        )
        found = least_within(*(torch.from_numpy(t) for t in (rows, lower, upper)), halfspaces).numpy()
        assert not len(points) or (points @ rows.T >= found).all()


def test_what_cancels_leaves_nothing() -> None:
    order = Halfspaces(np.array([[-1.0, 0, 1, 0], [0, -1, 0, 1]]), np.zeros(2))
    lower, upper = torch.full((4,), -1.0, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    rows = torch.tensor([[1.0, 0, -1, 0], [3, 1, -3, -1], [0.1, 0.3, -0.1, -0.3]], dtype=torch.float64)
    found = least_within(rows, lower, upper, order)
    assert (found > -1e-12).all() and (found <= 0).all()
    assert least_within(rows, lower, upper, None).tolist() == pytest.approx([-2.0, -8.0, -0.8])


def test_boxes_without_inputs_and_extreme_numbers() -> None:
    halfspaces = Halfspaces(np.array([[1.0, 1.0], [-1.0, 1.0]]), np.array([0.0, 0.0]))
    lower = torch.tensor([[0.5, 0.5], [-1.0, -3.0], [-1.0, 0.0]], dtype=torch.float64)
    upper = torch.tensor([[1.0, 1.0], [-0.5, -2.0], [1.0, 1.0]], dtype=torch.float64)
    region = Polytopes.of(halfspaces, lower, upper, torch.zeros_like(lower))
    assert region.empty().tolist() == [True, False, False] and region.cuts()
    assert not Polytopes.of(halfspaces, lower[1:2], upper[1:2], lower[1:2]).cuts()
    rows = torch.tensor([[[1.0, 1.0]]], dtype=torch.float64).expand(3, -1, -1)
    found = region.least(rows)
    assert found[0] <= 2.0 and found[1] <= -2.5 and -1e-12 < found[2] <= 0.0  # the only point is 0
    wide = torch.tensor([[1e300, 1.0]], dtype=torch.float64)
    for scale in (1e-300, 1.0, 1e300):
        assert not Polytopes.of(halfspaces, -wide, wide, 0 * wide).least(scale * rows[:1]).isnan().any()


def confined(seed: int) -> tuple[Graph, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network, a box, and points of it that satisfy the half-spaces that its inputs are confined to."""
    random = np.random.default_rng(seed)
    graph = relu_network([3, 10, 8, 4], seed)
    rows = np.array([[-1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.3, -1.0, 0.7]])
    halfspaces = Halfspaces(rows, np.array([0.0, 0.5, 0.4]))
    lower, upper = -torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    points = torch.from_numpy(random.uniform(-1, 1, (20_000, 3)))
    return graph.confined(None, halfspaces), lower, upper, points[halfspaces.satisfied(points)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_bounds_of_networks_hold_where_the_inequalities_do(seed: int, dtype: torch.dtype) -> None:
    graph, lower, upper, points = confined(seed)
    values = evaluate_all(graph, points)
    state, table = crown(graph, lower, upper, dtype)
    for node in graph.nodes:
        bounds = state[node.id].bounds
        assert (bounds.lower <= values[node.id]).all() and (values[node.id] <= bounds.upper).all()
    rows = torch.cat([torch.eye(4, dtype=torch.float64), torch.tensor([[1.0, -1, 0, 0]], dtype=torch.float64)])[None]
    fast = graph.to(dtype)
    found = bound_rows(fast, state, table, rows)
    least = (values[graph.output] @ rows[0].T).amin(0)
    plain = bound_rows(graph.confined(None).to(dtype), state, table, rows)
    assert (found.lower[0] <= least).all() and (found.lower >= plain.lower).all() and (found.lower > plain.lower + 1e-3).any()
    assert (found.over_box <= found.lower).all()
    climbed, _ = optimise(fast, state, table, rows, AlphaOptions(iterations=8))
    assert (climbed.lower[0] <= least).all() and (climbed.lower >= down(found.lower)).all()
