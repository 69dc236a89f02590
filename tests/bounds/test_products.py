"""Products of two variables: values, intervals, enclosures at points, exact values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from milpverify.bounds.interval_propagation import propagate
from milpverify.enclosure import enclose, exact_outputs
from milpverify.frontends.builder import Builder
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import Product


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
