"""Products of two variables: values, intervals, enclosures at points, exact values, McCormick planes and bounds from them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from product_networks import attention_network, recurrent_network
from scipy.optimize import linprog
from torch import Tensor

from milpverify.enclosure import enclose, exact_outputs
from milpverify.frontends.lowering.builder import Builder
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import Affine, Product
from milpverify.propagation.crown import bound_rows, crown
from milpverify.propagation.forward import forward
from milpverify.propagation.interval import propagate
from milpverify.propagation.optimised.alpha import AlphaOptions, optimise
from milpverify.propagation.optimised.beta import Relaxations
from milpverify.propagation.relevance import refinable
from milpverify.relaxations.mccormick import McCormick

RULE = McCormick()


def attention(seed: int) -> Graph:
    """The product of two affine images of x, as matrices (2, 3, 4) and (4, 5), and the product of two of its columns."""
    rng = np.random.default_rng(seed)
    builder = Builder(3)
    a, b = (builder.matmul(builder.nodes[0], rng.normal(size=(3, n))) for n in (24, 20))
    c = builder.matmul_nodes(builder.reshape(a, (2, 3, 4)), builder.reshape(b, (4, 5)))
    index = np.arange(30).reshape(2, 3, 5)
    return builder.graph([builder.product(builder.select(c, index[..., :1]), builder.select(c, index[..., 1:]))], (), ())


def test_values() -> None:
    graph, x = attention(0), torch.randn(7, 3, dtype=torch.float64)
    rng = np.random.default_rng(0)
    a, b = (x.numpy() @ rng.normal(size=(3, n)) for n in (24, 20))
    c = a.reshape(7, 2, 3, 4) @ b.reshape(7, 1, 4, 5)
    np.testing.assert_allclose(evaluate(graph, x).numpy(), (c[..., :1] * c[..., 1:]).reshape(7, -1), rtol=1e-12, atol=1e-12)
    assert sum(isinstance(node.op, Product) for node in graph.nodes) == 2


def test_the_product_with_itself_is_a_square() -> None:
    builder = Builder(2)
    graph = builder.graph([builder.product(builder.nodes[0], builder.nodes[0])], (), ())
    state = propagate(graph, torch.tensor([[-1.0, -2.0]], dtype=torch.float64), torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    assert state[graph.output].bounds.lower.tolist() == [[0.0, 0.0]]
    assert not any(isinstance(node.op, Product) for node in graph.nodes)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_hold_and_are_attained(seed: int) -> None:
    graph = attention(seed)
    middle, radius = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 1, dtype=torch.float64)
    state = propagate(graph, middle - radius, middle + radius)
    x = middle.unsqueeze(1) + (2 * torch.rand(5, 1000, 3, dtype=torch.float64) - 1) * radius.unsqueeze(1)
    for node, value in zip(graph.nodes, evaluate_all(graph, x.reshape(-1, 3)), strict=True):
        value = value.reshape(5, 1000, *node.shape)
        assert (value >= state[node.id].bounds.lower.unsqueeze(1) - 1e-12).all()
        assert (value <= state[node.id].bounds.upper.unsqueeze(1) + 1e-12).all()
    point = propagate(graph, middle, middle)[graph.output].bounds
    assert (point.width <= 1e-11 * (1 + point.upper.abs())).all()


def test_enclosures_hold_the_exact_value() -> None:
    graph = attention(1)
    x = torch.randn(4, 3, dtype=torch.float64)
    lower, upper = enclose(graph, x)
    for n in range(len(x)):
        exact = exact_outputs(graph, x[n].numpy())
        assert exact is not None
        for value, low, high in zip(exact, lower[n].tolist(), upper[n].tolist(), strict=True):
            assert Fraction(low) <= value <= Fraction(high)
            assert high - low <= 1e-11 * (1 + abs(high))


# --- relaxations ---


def intervals(seed: int, count: int = 300) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """PerInput of two factors: every sign, tiny and huge, points, one factor fixed, ends at zero."""
    random = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.randint(-9, 7, (2, 1, count), generator=random).double()
    ends = scale * torch.randn(2, 2, count, generator=random, dtype=torch.float64)
    ends[:, :, :40] = ends[:, :1, :40] + 1e-9 * ends[:, 1:, :40] * torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(1, 2, 1)
    ends[0, 1, 40:60] = ends[0, 0, 40:60]
    ends[:, 0, 60:80] = 0.0
    ends[1, :, 80:90] = 0.0
    low, high = ends.amin(1), ends.amax(1)
    return (low[0], low[1]), (high[0], high[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planes_with_any_slopes_hold_and_are_tight_in_rationals(dtype: torch.dtype) -> None:
    lower, upper = intervals(1)
    random = torch.Generator().manual_seed(2)
    slopes = [tuple(torch.randn(2, 300, generator=random, dtype=torch.float64) * scale) for scale in (1e-3, 1.0, 1e5)]
    share = torch.rand(300, generator=random, dtype=torch.float64)
    for below, above in (
        RULE.default_slopes(lower, upper),
        RULE.slopes(lower, upper, (share, share)),
        (RULE.parallel_slopes(lower, upper),) * 2,
        *((s, s) for s in slopes),
    ):
        below, above = (tuple(k.to(dtype).double() for k in side) for side in (below, above))
        low, high = RULE.intercepts(lower, upper, below, above)
        for n in range(300):
            corners = [(Fraction(a.item()), Fraction(b.item())) for a in (lower[0][n], upper[0][n]) for b in (lower[1][n], upper[1][n])]
            for side, (k_a, k_b), found in ((1, below, low), (-1, above, high)):
                rest = [a * b - Fraction(k_a[n].item()) * a - Fraction(k_b[n].item()) * b for a, b in corners]
                best = min(rest) if side > 0 else max(rest)
                size = max(abs(a * b) + abs(Fraction(k_a[n].item()) * a) + abs(Fraction(k_b[n].item()) * b) for a, b in corners)
                lost = side * (best - Fraction(found[n].item()))
                assert 0 <= lost <= Fraction(1, 2**48) * size + Fraction(1, 2**900)


def test_default_planes_attain_the_ends_of_the_interval() -> None:
    lower, upper = intervals(3)
    (below, above), reach = RULE.default_slopes(lower, upper), RULE.range(lower, upper)
    low, high = RULE.intercepts(lower, upper, below, above)
    corners = [(a, b) for a in (lower[0], upper[0]) for b in (lower[1], upper[1])]
    size = torch.maximum(lower[0].abs(), upper[0].abs()) * torch.maximum(lower[1].abs(), upper[1].abs()) + 1e-250
    least = torch.stack([low + below[0] * a + below[1] * b for a, b in corners]).amin(0)
    most = torch.stack([high + above[0] * a + above[1] * b for a, b in corners]).amax(0)
    assert ((least - reach[0]).abs() <= 1e-12 * size).all()
    assert ((most - reach[1]).abs() <= 1e-12 * size).all()


def test_all_planes_of_a_side_enclose_the_same_volume() -> None:
    lower, upper = (tuple(torch.tensor(v, dtype=torch.float64).expand(5) for v in ends) for ends in ((-1.0, 0.5), (2.0, 3.0)))
    share = torch.linspace(0, 1, 5, dtype=torch.float64)
    below, above = RULE.slopes(lower, upper, (share, share))
    low, high = RULE.intercepts(lower, upper, below, above)
    centre = tuple(0.5 * (a + b) for a, b in zip(lower, upper, strict=True))
    for (k_a, k_b), intercept, sign in ((below, low, -1), (above, high, 1)):
        gap = k_a * centre[0] + k_b * centre[1] + intercept - centre[0] * centre[1]
        torch.testing.assert_close(sign * gap, torch.full_like(gap, 3.0 * 2.5 / 4))
    for which, side in enumerate((below, above)):
        torch.testing.assert_close(RULE.parameters(lower, upper, which, side), share)


def test_planes_in_deviations_are_those_of_the_slopes() -> None:
    random = torch.Generator().manual_seed(4)
    ends = torch.randn(2, 2, 3, 50, generator=random, dtype=torch.float64).sort(0).values
    lower, upper, center = tuple(ends[0]), tuple(ends[1]), tuple(0.5 * (ends[0] + ends[1]))
    value, share = center[0] * center[1] + 0.1, torch.rand(3, 4, 50, generator=random, dtype=torch.float64).requires_grad_()
    wide = tuple(t.unsqueeze(1) for t in lower), tuple(t.unsqueeze(1) for t in upper)
    slopes = RULE.slopes(*wide, (share, share))
    exact = RULE.intercepts(*wide, *slopes)
    for side, own, intercept in zip(RULE.sides(lower, upper, center, value, torch.float64), slopes, exact, strict=True):
        found, at = side(share)
        for k, mine in zip(found, own, strict=True):
            torch.testing.assert_close(k, mine)
        moved = intercept + own[0] * center[0].unsqueeze(1) + own[1] * center[1].unsqueeze(1) - value.unsqueeze(1)
        torch.testing.assert_close(at, moved, rtol=1e-9, atol=1e-9)
        for mine, theirs in zip(*(torch.autograd.grad(t.sum(), share, retain_graph=True) for t in (at, moved)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-7)


def test_a_product_is_exact_where_a_factor_is_fixed_and_infinite_ends_say_nothing() -> None:
    inf = torch.inf
    ends = torch.tensor([[1.0, 1.0, -inf, inf], [2.0, 2.0, 0.0, 1.0], [-1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    lower, upper = (ends[:, 0], ends[:, 2]), (ends[:, 1], ends[:, 3])
    assert RULE.is_exact(lower, upper).tolist() == [True, True, False]
    below, above = RULE.default_slopes(lower, upper)
    low, high = RULE.intercepts(lower, upper, below, above)
    assert all(k.isfinite().all() for k in (*below, *above))
    assert low[0] == -inf and high[0] == inf
    assert not low.isnan().any() and not high.isnan().any()


# --- networks ---


def test_factors_are_traced_to_variables_without_copies() -> None:
    graph = attention_network(0)
    for readings in graph.readings.values():
        for reading in readings:
            assert not (isinstance(op := graph.nodes[reading.node].op, Affine) and op.copies and len(readings) > 1)
    state, _ = crown(graph, *(torch.full((1, graph.nx), v, dtype=torch.float64) for v in (-0.1, 0.1)))
    points = 0.2 * torch.rand(50, graph.nx, dtype=torch.float64) - 0.1
    values = evaluate_all(graph, points)
    for readings in graph.readings.values():
        for reading in readings:
            direct = values[graph.nodes[reading.reader].inputs[reading.place]].flatten(1)
            traced = values[reading.node].flatten(1)
            torch.testing.assert_close(direct, traced if reading.index is None else traced[:, reading.index], rtol=0, atol=0)
    relaxations = Relaxations(graph, state)
    assert relaxations.count < 0.7 * sum(len(o.index) for o in relaxations.opened.values() for _ in o.columns)


def relaxed_minimum(a: np.ndarray, b: np.ndarray, c: np.ndarray, radius: np.ndarray) -> float:
    """The minimum of c . p under the four McCormick planes of each p_k = (a x)_k (b x)_k, |x| <= radius, as a linear program."""
    nx, m = len(radius), len(c)
    rows, rhs = [], []
    for k in range(m):
        ends = [(-(np.abs(w[k]) @ radius), np.abs(w[k]) @ radius) for w in (a, b)]
        for i, j, sign in ((0, 0, 1), (1, 1, 1), (0, 1, -1), (1, 0, -1)):
            p, q = ends[0][i], ends[1][j]  # (a - p) (b - q) is >= 0 at two corners that agree, <= 0 at the others
            rows.append(sign * np.concatenate([q * a[k] + p * b[k], -np.eye(m)[k]]))
            rhs.append(sign * p * q)
    found = linprog(
        np.concatenate([np.zeros(nx), c]), np.array(rows), np.array(rhs), bounds=[*((-r, r) for r in radius), *((None, None) for _ in c)]
    )
    assert found.status == 0
    return float(found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_optimised_planes_are_as_tight_as_the_linear_program(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nx, m = 3, 4
    a, b, c = rng.normal(size=(m, nx)), rng.normal(size=(m, nx)), rng.normal(size=(1, m))
    radius = rng.uniform(0.1, 2.0, nx)
    builder = Builder(nx)
    x = builder.nodes[0]
    graph = builder.graph([builder.product(builder.matmul(x, a.T), builder.matmul(x, b.T))], (), ())
    upper = torch.tensor(radius)[None]
    rows = torch.tensor(c)[None]
    least = relaxed_minimum(a, b, c[0], radius)
    with torch.no_grad():
        state, table = crown(graph, -upper, upper, torch.float64)
        plain = float(bound_rows(graph, state, table, rows).lower)
        best = float(optimise(graph, state, table, rows, options=AlphaOptions(iterations=300, step=0.1, decay=0.98))[0].lower)
    assert plain <= best <= least + 1e-9 * abs(least)
    assert best >= least - 2e-3 * abs(least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [1e-9, 0.05, 0.5])
def test_samples_lie_within_the_bounds_of_attention_and_of_recurrent_cells(dtype: torch.dtype, radius: float) -> None:
    for graph in (attention_network(1), recurrent_network(1)):
        middle = torch.randn(3, graph.nx, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        lower, upper = middle - radius, middle + radius
        with torch.no_grad():
            both = crown(graph, lower, upper, dtype), forward(graph, lower, upper, dtype)
        x = lower.unsqueeze(1) + torch.rand(3, 500, graph.nx, dtype=torch.float64) * (upper - lower).unsqueeze(1)
        for node, value in zip(graph.nodes, evaluate_all(graph, x.reshape(-1, graph.nx)), strict=True):
            value = value.reshape(3, 500, *node.shape)
            for state, _ in both:
                bounds = state[node.id].bounds
                assert (value >= bounds.lower.unsqueeze(1) - 1e-12 * (1 + value.abs())).all()
                assert (value <= bounds.upper.unsqueeze(1) + 1e-12 * (1 + value.abs())).all()


def test_backward_passes_tighten_the_factors_of_products() -> None:
    graph = attention_network(2, sharp=2.0)
    middle = torch.randn(2, graph.nx, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    interval, (state, _) = propagate(graph, middle - 0.1, middle + 0.1), crown(graph, middle - 0.1, middle + 0.1, torch.float64)
    gained = [float((state[n.id].bounds.width / interval[n.id].bounds.width).mean()) for n in refinable(graph)]
    assert min(gained) < 0.5
