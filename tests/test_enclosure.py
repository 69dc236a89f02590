from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from milpverify.enclosure import enclose, exact_outputs
from milpverify.frontends.problem import robustness
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, TensorSpec
from milpverify.operators import Conv, Elementwise, Input, Linear, Reshape, Scale, Transposed


def network(weights: list[np.ndarray], function: str, shift: float = 0.0) -> Graph:
    """Layers with a function between them and, behind each function, a shift."""
    nodes = [Node(0, Input(), (), (weights[0].shape[1],))]

    def add(op: object, *shape: int) -> None:
        nodes.append(Node(len(nodes), op, (len(nodes) - 1,), shape))  # type: ignore[arg-type]

    for k, weight in enumerate(weights):
        add(Linear(torch.from_numpy(weight.astype(np.float64))), len(weight))
        if k + 1 < len(weights):
            add(Elementwise(catalogue()[function].bind()), len(weight))
            if shift:
                add(Scale(None, torch.tensor(shift, dtype=torch.float64)), len(weight))
                add(Elementwise(catalogue()[function].bind()), len(weight))
    return Graph(tuple(nodes), len(nodes) - 1, (TensorSpec("x", (weights[0].shape[1],)),))


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_sums_that_float64_holds_are_exact_at_jumps(shift: float) -> None:
    """Neurons of binarised networks are often exactly 0, where the sign's value is 0 and its limits are -1 and 1."""
    rng = np.random.default_rng(0)
    zeros = 0
    for _ in range(10):
        weights = [rng.choice([-1.0, 1.0], size) for size in ((20, 8), (20, 20), (4, 20))]
        x = rng.integers(-3, 4, (5, 8)) / 4.0
        graph = network(weights, "sign", shift)
        zeros += int((x @ weights[0].T == 0).sum())
        lower, upper = enclose(graph, torch.from_numpy(x))
        assert torch.equal(lower, upper)
        for point, value in zip(x, lower, strict=True):
            assert exact_outputs(graph, point) == [Fraction(v) for v in value.tolist()]
    assert zeros > 10


def test_other_sums_keep_their_rounding() -> None:
    rng = np.random.default_rng(1)
    for size in (2, 5, 30):
        graph = network([rng.normal(size=(4, size)), rng.normal(size=(3, 4))], "relu")
        x = rng.normal(size=size)
        lower, upper = enclose(graph, torch.from_numpy(x)[None])
        exact = exact_outputs(graph, x)
        assert exact is not None and bool((lower < upper).all())
        assert all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(lower[0].tolist(), exact, upper[0].tolist(), strict=True))


@pytest.mark.parametrize("weight", [[2.0**52, 1.0, -(2.0**52), 0.5], [2.0**53, 1.0, -(2.0**53), 1.0], [1.0, 2.0**-53, -1.0, 2.0**-60]])
def test_sums_whose_parts_float64_does_not_hold_are_not_exact(weight: list[float]) -> None:
    graph = network([np.array([weight])], "relu")
    x = np.ones(4)
    lower, upper = enclose(graph, torch.from_numpy(x)[None])
    (exact,) = exact_outputs(graph, x) or [Fraction(0)]
    assert lower.item() < upper.item()
    assert Fraction(lower.item()) <= exact <= Fraction(upper.item())


def test_the_kernel_of_a_transposed_convolution_counts() -> None:
    conv = Conv(torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64).reshape(3, 1, 1), (1,), ((0, 0),), (1,), 1, (1, 1, 1))
    shapes = (3,), (1, 3, 1), (1, 1, 1), (1,)
    ops = Input(), Reshape(shapes[0], shapes[1]), Transposed(conv), Reshape(shapes[2], shapes[3])
    nodes = [Node(i, op, (i - 1,) if i else (), shape) for i, (op, shape) in enumerate(zip(ops, shapes, strict=True))]
    graph = Graph(tuple(nodes), 3)
    lower, upper = enclose(graph, torch.ones(1, 3, dtype=torch.float64))
    (exact,) = exact_outputs(graph, np.ones(3)) or [Fraction(0)]
    assert Fraction(lower.item()) <= exact <= Fraction(upper.item())


def test_what_takes_too_many_products_or_entries_is_not_evaluated_exactly() -> None:
    graph, x = network([np.ones((4, 5)), np.ones((3, 4))], "relu"), np.ones(5)
    assert exact_outputs(graph, x) == [Fraction(20)] * 3 == exact_outputs(graph, x, most=32)
    assert exact_outputs(graph, x, most=31) is None and exact_outputs(graph, x, limit=31) is None


def test_values_beyond_float64_are_infinite() -> None:
    graph = network([np.full((1, 4), 1.5e308)], "relu")
    lower, upper = enclose(graph, torch.ones(1, 4, dtype=torch.float64))
    assert lower.item() == -torch.inf and upper.item() == torch.inf


class Masked(torch.nn.Module):
    """The softmax of what a mask is added to."""

    def __init__(self, mask: np.ndarray) -> None:
        super().__init__()
        self.mask = torch.from_numpy(mask).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.mask).softmax(-1)


def test_exponentials_that_overflow_are_known_from_below() -> None:
    """Behind a finite mask 1 / (1 + sum of exponentials) is next to nothing where one of them is beyond float64."""
    rng = np.random.default_rng(0)
    for mask in (-1e3, -1e4, -3e38):
        x, bias = rng.normal(size=(5, 6)), np.array([0, 0, mask, 0, mask, mask])
        lower, upper = enclose(robustness(Masked(bias).eval(), np.zeros(6), 0, 1.0).graph, torch.from_numpy(x))
        visible = np.exp(x) * (bias == 0)
        exact = torch.from_numpy(visible / visible.sum(1, keepdims=True))  # what is masked is below exp(-900)
        assert (lower <= exact + 1e-15).all() and (exact <= upper + 1e-15).all() and (upper - lower).max() <= 1e-13


@pytest.mark.parametrize("weight", [[1.0, -1.0], [-1.0, -1.0]])
def test_exponentials_that_overflow_and_are_subtracted_are_unknown(weight: list[float]) -> None:
    nodes = (
        Node(0, Input(), (), (2,), "x"),
        Node(1, Elementwise(catalogue()["exp"].bind()), (0,), (2,), "exp"),
        Node(2, Linear(torch.tensor([weight], dtype=torch.float64)), (1,), (1,), "sum"),
        Node(3, Elementwise(catalogue()["sigmoid"].bind()), (2,), (1,), "y"),
    )
    lower, upper = enclose(Graph(nodes, 3), torch.tensor([[900.0, 800.0]], dtype=torch.float64))
    assert lower.item() <= 1e-300 and (upper.item() >= 1.0 or weight == [-1.0, -1.0])
