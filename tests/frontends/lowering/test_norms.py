"""Norms, and what is divided by them: bounds where a norm may be 0, against dense sampling and exact enclosures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx_cases import single
from torch import Tensor, nn
from torch_cases import Lambda

import milpverify as mv
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.patterns import nonnegative
from milpverify.frontends.onnx.lowering import lower
from milpverify.graph import evaluate

FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float]]] = {
    "l1": (lambda x: x.norm(p=1, dim=1, keepdim=True), (0.0, 3.0)),
    "l2": (lambda x: x.norm(dim=1, keepdim=True), (0.0, 3**0.5)),
    "l2 in parts": (lambda x: (x**2).sum(1, keepdim=True).sqrt(), (0.0, 3**0.5)),
    "l3": (lambda x: torch.linalg.vector_norm(x, 3, dim=1, keepdim=True), (0.0, 3 ** (1 / 3))),
    "l4": (lambda x: torch.linalg.vector_norm(x, 4, dim=1, keepdim=True), (0.0, 3**0.25)),
    "linf": (lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True), (0.0, 1.0)),
    "spread": (lambda x: x.std(1, keepdim=True, unbiased=False), (0.0, 1.0)),
    "unit l2": (F.normalize, (-1.0, 1.0)),
    "unit l1": (lambda x: F.normalize(x, p=1), (-1.0, 1.0)),
    "unit linf": (lambda x: F.normalize(x, p=float("inf")), (-1.0, 1.0)),
    "unit l2, large eps": (lambda x: F.normalize(x, eps=0.7), (-1.0, 1.0)),
    "cosine": (lambda x: F.cosine_similarity(x, x.flip(1))[:, None], (-1.0, 1.0)),
    "distance": (lambda x: torch.cdist(x[:, None], 2 * x[:, None]).flatten(1), (0.0, 3**0.5)),
}
ROOM = 3.1
"""How far beyond the true range bounds may be: those of a tournament of three entries are their sum."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_hold_and_are_finite_where_the_norm_may_be_zero(name: str) -> None:
    function, (least, most) = FUNCTIONS[name]
    net = Lambda(function).eval()
    rng = np.random.default_rng(0)
    boxes = [mv.Box(np.full(3, -1.0), np.full(3, 1.0)), mv.Box(np.zeros(3), np.ones(3)), mv.Box([-1.0, 0.0, 0.2], [0.5, 0.0, 0.9])]
    ends = np.sort(rng.uniform(-1, 1, (20, 2, 3)) * 10 ** rng.uniform(-3, 0, (20, 1, 1)), 1)
    boxes += [mv.Box(low, high) for low, high in ends]
    for method in ("ibp", "crown"):
        found = mv.bounds(net, boxes, method)
        for box, low, high in zip(boxes, found.output.lower, found.output.upper, strict=True):
            points = torch.from_numpy(rng.uniform(box.lower, box.upper, (2000, 3)))
            y = evaluate(found.graph, points)
            assert bool((low <= y).all())
            assert bool((y <= high).all())
        for side in (found.output.lower, found.output.upper):
            assert bool(side.isfinite().all())
            assert bool((side.abs() <= ROOM * most).all())
        if name.startswith(("unit", "cosine")):
            assert bool((found.output.lower >= least * (1 + 1e-9)).all())
            assert bool((found.output.upper <= most * (1 + 1e-9)).all())
        elif name.startswith("l"):
            assert bool((found.output.lower >= -1e-12).all())


def test_vectors_of_zeros_are_normalised_to_zeros() -> None:
    for p in (1, 2):
        graph = lower(single("LpNormalization", (1, 3), axis=1, p=p))
        y = evaluate(graph, torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, -4.0]]).double())
        assert y[0].tolist() == [0.0, 0.0, 0.0]
        torch.testing.assert_close(y[1], torch.tensor([3.0, 0.0, -4.0]).double() / (7 if p == 1 else 5))
        for low, high in ((-1.0, 1.0), (0.0, 0.0), (0.0, 1.0), (-1e-200, 1e-200)):
            output = mv.bounds(graph, mv.Box(np.full(3, low), np.full(3, high)), "crown").output
            assert bool((output.lower <= min(0.0, low)).all())
            assert bool((output.upper >= 0).all())
            assert bool(((output.lower >= -1.0 - 1e-9) & (output.upper <= 1.0 + 1e-9)).all())


@pytest.mark.parametrize("p", [1, 2])
def test_bounds_of_normalised_vectors_hold_around_zero(p: int) -> None:
    graph = lower(single("LpNormalization", (1, 3), axis=1, p=p))
    rng = np.random.default_rng(p)
    middles, radii = rng.normal(size=(25, 3)) * 10 ** rng.uniform(-4, 0, (25, 1)), 10 ** rng.uniform(-4, 0, (25, 3))
    boxes = [mv.Box(m - r, m + r) for m, r in zip(middles, radii, strict=True)]
    points = torch.from_numpy(np.stack([rng.uniform(box.lower, box.upper, (500, 3)) for box in boxes]))
    y = evaluate(graph, points.reshape(-1, 3))
    torch.testing.assert_close(y, F.normalize(points.reshape(-1, 3), p=p, eps=1e-300))
    y = y.reshape(points.shape)
    for method in ("ibp", "crown", "alpha-crown"):
        output = mv.bounds(graph, boxes, method).output
        assert bool((output.lower[:, None] <= y).all())
        assert bool((y <= output.upper[:, None]).all())


def test_what_may_be_negative_is_told() -> None:
    g = Builder(4)
    x = g.nodes[0]
    square = g.function("square", x)
    total = g.reduce_sum(g.reshape(square, (2, 2)), [1])
    for node in (square, total, g.scale(total, 0.5, 1.0), g.sum([square, g.relu(x)]), g.product(square, g.function("abs", x))):
        assert nonnegative(g, node)
    for node in (x, g.scale(square, -1.0), g.scale(square, bias=-1e-9), g.sum([square, square], [1, -1]), g.product(square, x)):
        assert not nonnegative(g, node)
    assert not nonnegative(g, g.matmul(square, np.array([[1.0], [1.0], [-1.0], [1.0]])))
    assert nonnegative(g, g.matmul(square, np.ones((4, 1))))


def test_properties_of_unit_vectors_are_decided() -> None:
    """The greatest entry of a unit vector of 3 is 3^-1/2 at least; of one within a box it may be less where the box holds 0."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), Lambda(F.normalize), nn.Linear(3, 2)).eval()
    box = mv.Box([-1.0, -1.0], [1.0, 1.0])
    points = torch.rand(20_000, 2) * 2 - 1
    with torch.no_grad():
        y = net(points)[:, 0]
    width = float(y.max() - y.min())
    for threshold, verdict in ((float(y.max()) + 0.05 * width, mv.Verdict.VERIFIED), (float(y.max()) - 0.05 * width, mv.Verdict.FALSIFIED)):
        assert mv.verify(mv.Problem(net, box, unsafe=f"(>= Y_0 {threshold})"), timeout=30).verdict is verdict
