"""Second-order bounds of rows: sound on networks with products, exact on convex quadratic forms, and never resting on eigenvalues."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from product_networks import Grower, attention_network, product_network, recurrent_network
from torch import Tensor

from milpverify.graph import Graph, evaluate
from milpverify.propagation import crown, forward, second_order
from milpverify.propagation.request import BoundTuning
from milpverify.propagation.second_order import SecondOrder, applies, better

DTYPES = [torch.float32, torch.float64]


def boxes(nx: int, count: int, width: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lower = 2 * torch.rand(count, nx, generator=generator, dtype=torch.float64) - 1
    return lower, lower + width * torch.rand(count, nx, generator=generator, dtype=torch.float64)


def quadratic(matrix: np.ndarray) -> Graph:
    """x' M x as the sum of x * (M x), in products of two nodes."""
    g = Grower(len(matrix), 0)
    x = g.nodes[0]
    return g.finished(g.reduce_sum(g.product(x, g.matmul(x, matrix.T)), [0]))


def forms_of(
    graph: Graph, lower: Tensor, upper: Tensor, dtype: torch.dtype, by_forms: bool = False, tuning: BoundTuning = BoundTuning()
) -> SecondOrder:
    state, table = (forward.forward if by_forms else crown.crown)(graph, lower, upper, dtype)
    return SecondOrder(graph, state, table, dtype, tuning)


def rows_of(graph: Graph, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, 3, graph.ny, generator=generator, dtype=torch.float64),
        torch.randn(batch, 3, graph.nx, generator=generator, dtype=torch.float64),
    )


NETWORKS = {
    **{f"products {seed}": (product_network(seed), 4) for seed in range(4)},
    "attention": (attention_network(1), 4),
    "recurrent": (recurrent_network(2), 4),
    "squares": (quadratic(np.array([[2.0, 1.0, 0.0, 0.5], [1.0, -1.0, 0.3, 0.0], [0.0, 0.3, 0.1, 0.0], [0.5, 0.0, 0.0, 3.0]])), 4),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1.0, 0.1, 1e-5])
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_stay_above_their_linear_bounds(name: str, width: float, dtype: torch.dtype) -> None:
    graph, nx = NETWORKS[name]
    lower, upper = boxes(nx, 12, width, 3)
    upper[0] = lower[0]  # a point
    upper[1, 2] = lower[1, 2]  # an input that is fixed in one box only
    y_rows, x_rows = rows_of(graph, len(lower), 5)
    for by_forms in (False, True):
        found, losses = forms_of(graph, lower, upper, dtype, by_forms).bound(y_rows, x_rows)
        assert losses.shape == x_rows.shape
        assert bool((losses >= 0).all())
        part = torch.rand(12, 400, nx, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        part[:, 200:] = part[:, 200:].round()  # corners
        x = lower.unsqueeze(1) + part * (upper - lower).unsqueeze(1)
        y = evaluate(graph, x.flatten(0, 1)).reshape(12, 400, -1)
        value = y @ y_rows.mT + x @ x_rows.mT
        # The bound over the box, and what it grows to away from the corner that minimises it.
        a = found.coefficients.double().unsqueeze(1)
        away = torch.where(a > 0, x.unsqueeze(2) - lower[:, None, None], upper[:, None, None] - x.unsqueeze(2))
        line = found.lower.unsqueeze(1) + (a.abs() * away).sum(3)
        assert bool((value - line >= -1e-11 * (1 + value.abs())).all())
        assert bool(found.lower.isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convex_quadratic_forms_lose_nothing(dtype: torch.dtype) -> None:
    tuning = BoundTuning(tangent_rounds=30)  # until the point of tangency has converged
    # (x + y)^2 + (x - 2 y)^2 + 4 x y, whose products are not convex one by one, but together they are.
    graph = quadratic(np.array([[2.0, 5.0], [-3.0, 5.0]]))
    lower = torch.tensor([[-1.0, -2.0], [1.0, 1.0], [-1.0, 2.0]], dtype=torch.float64)
    upper = torch.tensor([[3.0, 1.0], [2.0, 3.0], [1.0, 3.0]], dtype=torch.float64)
    # 2 x^2 + 2 x y + 5 y^2: 0 inside; 9 at a corner; at y = 2 it is 2 x^2 + 4 x + 20, least at x = -1: 18.
    exact = torch.tensor([0.0, 9.0, 18.0], dtype=torch.float64)
    row = torch.ones(3, 1, 1, dtype=torch.float64)
    found, _ = forms_of(graph, lower, upper, dtype, tuning=tuning).bound(row)
    state, table = crown.crown(graph, lower, upper, dtype)
    planes = crown.bound_rows(graph.to(dtype), state, table, row)
    tolerance = 5e-4 if dtype == torch.float32 else 1e-10
    assert bool((found.lower.squeeze(1) <= exact).all())
    assert torch.allclose(found.lower.squeeze(1), exact, rtol=0, atol=tolerance)
    assert float(planes.lower[0]) < -4
    assert torch.equal(better(planes, found).lower, torch.maximum(planes.lower, found.lower))


def positive_semidefinite(matrix: list[list[Fraction]]) -> bool:
    """By exact elimination."""
    n = len(matrix)
    for k in range(n):
        pivot = matrix[k][k]
        if pivot < 0 or (pivot == 0 and any(matrix[k][j] != 0 for j in range(k + 1, n))):
            return False
        for i in range(k + 1, n):
            factor = matrix[i][k] / pivot if pivot else Fraction(0)
            matrix[i] = [a - factor * b for a, b in zip(matrix[i], matrix[k], strict=True)]
    return True


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_shifted_forms_are_positive_semidefinite_in_exact_arithmetic(scale: float) -> None:
    rng = np.random.default_rng(0)
    thin = rng.normal(size=(4, 5, 2))
    gram = thin @ thin.transpose(0, 2, 1)
    some = np.concatenate([rng.normal(size=(4, 5, 5)), gram, -gram, np.zeros((1, 5, 5))])
    graded = rng.normal(size=(4, 5, 5)) * 10.0 ** rng.integers(-12, 3, size=(4, 5, 5))
    forms = torch.tensor(scale * np.concatenate([some, graded]))
    forms = (forms + forms.mT).unsqueeze(1)
    shift = second_order._convexifying(forms)
    convex = forms + torch.diag_embed(shift)
    for matrix in convex[:, 0].tolist():
        assert positive_semidefinite([[Fraction(v) for v in row] for row in matrix])
    # What is so already is hardly shifted.
    assert bool((shift[4:8].sum(2) <= 1e-12 * forms[4:8].abs().sum((2, 3))).all())


def test_any_point_of_tangency_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, nx = NETWORKS["squares"]
    lower, upper = boxes(nx, 6, 1.0, 1)
    row = torch.ones(6, 1, 1, dtype=torch.float64)
    forms = forms_of(graph, lower, upper, torch.float64)
    best = forms.bound(row)[0].lower
    monkeypatch.setattr(second_order, "_minimiser", lambda slope, form, rounds: 0.3 + 0.0 * slope)
    other = forms.bound(row)[0].lower
    x = lower.unsqueeze(1) + (upper - lower).unsqueeze(1) * torch.rand(6, 4000, nx, dtype=torch.float64)
    least = evaluate(graph, x.flatten(0, 1)).reshape(6, 4000).amin(1, keepdim=True)
    assert bool((other <= least).all())
    assert bool((other <= best + 1e-12).all())
    assert bool((other < best - 1e-3).any())


def test_numbers_too_large_give_no_bound() -> None:
    graph = quadratic(np.eye(2))
    side = torch.full((1, 2), 1e200, dtype=torch.float64)
    found, losses = forms_of(graph, -side, side, torch.float64).bound(torch.ones(1, 1, 1, dtype=torch.float64))
    assert not bool((found.lower > 0).any())
    assert not bool(found.lower.isnan().any() | found.coefficients.isnan().any() | losses.isnan().any())


def test_where_second_order_applies() -> None:
    lower, upper = boxes(4, 2, 1.0, 0)
    assert applies(NETWORKS["squares"][0], lower, upper)
    g = Grower(4, 0)
    assert not applies(g.finished(g.call("tanh", g.layer(g.nodes[0], 3))), lower, upper)
    many = quadratic(np.eye(9))
    assert not applies(many, *boxes(9, 1, 1.0, 0))
    assert applies(many, *boxes(9, 1, 1.0, 0), BoundTuning(quadratic_inputs=9))
    low, high = boxes(9, 1, 1.0, 0)
    high[:, 8] = low[:, 8]
    assert applies(many, low, high)


def test_forms_of_some_boxes() -> None:
    graph, nx = NETWORKS["products 1"]
    lower, upper = boxes(nx, 5, 0.3, 2)
    y_rows, x_rows = rows_of(graph, 5, 1)
    forms, chosen = forms_of(graph, lower, upper, torch.float64), torch.tensor([3, 1])
    whole, part = forms.bound(y_rows, x_rows)[0], forms.select(chosen).bound(y_rows[chosen], x_rows[chosen])[0]
    assert torch.allclose(whole.lower[chosen], part.lower, rtol=0, atol=1e-12)
