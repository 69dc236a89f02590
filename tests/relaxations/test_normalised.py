"""Normalisations: lines and ranges that hold whatever the variance, within the constants of the pattern, by every bounding method."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import milpverify as mv
from milpverify.frontends.lowering import composites
from milpverify.frontends.lowering.builder import Builder
from milpverify.graph import Graph, evaluate, evaluate_all
from milpverify.operators import Norm, Product
from milpverify.propagation.crown import crown
from milpverify.propagation.forward import forward
from milpverify.propagation.optimised.alpha import AlphaOptions, optimise
from milpverify.relaxations.normalised import Normalised
from milpverify.relaxations.rule import PerInput

NORMS = [Norm(math.sqrt(3.0), 1e-5), Norm(1.0, 0.0), Norm(4.0, 0.3), Norm(0.5, 1e-12)]


def boxes(norm: Norm, seed: int, count: int = 400) -> tuple[PerInput, PerInput, torch.Tensor, torch.Tensor]:
    """Boxes of a and b, and points (boxes, points) in them that keep to the norm's inequality."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scale = 10 ** (4 * rand(count) - 3)
    ends = (scale.unsqueeze(1) * (2 * rand(count, 2) - 1)).sort(1).values
    most = 1 / math.sqrt(norm.floor) if norm.floor else 1e6
    reciprocals = (most * 10 ** (-5 * rand(count, 2))).sort(1).values
    a = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.cat([torch.zeros(count, 1), torch.ones(count, 1), rand(count, 198)], 1).double()
    a = a.clamp(ends[:, :1], ends[:, 1:])
    cap = 1 / ((a / norm.largest).square() + norm.floor).sqrt()
    low, high = reciprocals[:, :1] * (1 + 2.0**-44), torch.minimum(reciprocals[:, 1:], cap)
    share = torch.where(rand(*a.shape) < 0.5, 1.0, rand(*a.shape))
    b = torch.where(high >= low, torch.minimum(low + (high - low).clamp(min=0.0) * share, high) * (1 - 2.0**-45), torch.nan)
    return (ends[:, 0], reciprocals[:, 0]), (ends[:, 1], reciprocals[:, 1]), a, b


@pytest.mark.parametrize("norm", NORMS)
def test_lines_of_any_slopes_and_ranges_hold(norm: Norm) -> None:
    rule = Normalised(norm)
    lower, upper, a, b = boxes(norm, 0)
    y, known = (a * b).nan_to_num(0.0), ~b.isnan()
    assert known.double().mean() > 0.15
    low, high = (side.unsqueeze(1) for side in rule.range(lower, upper))
    assert ((y >= low) & (y <= high) | ~known).all() and (high <= norm.largest).all() and (low >= -norm.largest).all()
    narrower = Normalised(Norm(0.9 * norm.largest, norm.floor)).range(lower, upper)
    assert (known & (y > narrower[1].unsqueeze(1))).any()  # the points tell a constant that is too small
    t = torch.rand(len(a), dtype=torch.float64)
    wild = tuple(torch.randn(len(a), dtype=torch.float64) for _ in range(2))
    level = rule.parallel_slopes(lower, upper)
    pairs = [rule.default_slopes(lower, upper), rule.slopes(lower, upper, (t, t)), (wild, wild), (level, level)]
    for k_lower, k_upper in pairs:
        below, above = rule.intercepts(lower, upper, k_lower, k_upper)
        planes = [k_a.unsqueeze(1) * a + k_b.unsqueeze(1) * b + c.unsqueeze(1) for (k_a, k_b), c in ((k_lower, below), (k_upper, above))]
        # What the test itself rounds.
        size = sum(t.abs() for t in (y, *planes)) + (k_lower[0].abs() + k_upper[0].abs()).unsqueeze(1) * a.abs()
        size = size + (k_lower[1].abs() + k_upper[1].abs()).unsqueeze(1) * b.abs()
        assert ((planes[0] <= y + 2.0**-50 * size) & (y <= planes[1] + 2.0**-50 * size) | ~known).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_optimisers_lines_are_those_of_their_slopes(norm: Norm) -> None:
    rule = Normalised(norm)
    lower, upper, _, _ = boxes(norm, 1)
    center = tuple(0.5 * (low + high) for low, high in zip(lower, upper, strict=True))
    value, t = center[0] * center[1], torch.rand(len(center[0]), dtype=torch.float64, requires_grad=True)
    slopes = rule.slopes(lower, upper, (t, t))
    margins = rule.intercepts(lower, upper, *slopes)
    ends = [tuple(v[None] for v in side) for side in (lower, upper, center)]
    sides = rule.sides(*ends, value[None], torch.float64)
    for sign, side, own, intercept in zip((1, -1), sides, slopes, margins, strict=True):
        made, height = side(t[None, None])
        moved = intercept + own[0] * center[0] + own[1] * center[1] - value
        size = 1 + intercept.abs() + value.abs() + (own[0] * center[0]).abs() + (own[1] * center[1]).abs()
        for k, expected in zip(made, own, strict=True):
            torch.testing.assert_close(k.flatten(), expected, rtol=1e-9, atol=1e-12)
        # What is proved uses both kinds of lines.
        assert (sign * (height.flatten() - moved) <= 1e-6 * size).all()
        (gradient,) = torch.autograd.grad(height.sum(), t, retain_graph=True)
        assert gradient.isfinite().all()
        again = rule.parameters(lower, upper, sides.index(side), tuple(k.detach() for k in own))
        back = rule.slopes(lower, upper, (again, again))[sides.index(side)]
        for k, expected in zip(back, own, strict=True):
            torch.testing.assert_close(k, expected.detach(), rtol=1e-6, atol=1e-6 * float(own[0].detach().abs().max()))


def test_nothing_is_said_where_a_norm_without_floor_may_vanish() -> None:
    rule = Normalised(Norm(1.0, 0.0))
    lower, upper = (
        (torch.tensor([-1.0]).double(), torch.tensor([0.5]).double()),
        (torch.tensor([1.0]).double(), torch.tensor([math.inf]).double()),
    )
    assert [float(side) for side in rule.range(lower, upper)] == [-math.inf, math.inf]


def layer(kind: str, n: int, eps: float) -> Graph:
    """A normalisation of n entries, and a random layer behind it."""
    builder = Builder(n)
    x = builder.nodes[0]
    y = composites.rms_norm(builder, x, [0], eps) if kind == "rms" else composites.layer_norm(builder, x, [0], eps)
    return builder.graph([builder.matmul(y, np.random.default_rng(n).normal(size=(n, 3))), y], (), ())


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("n", [2, 5, 16])
def test_all_methods_hold_near_zero_variance_and_stay_within_the_constant(kind: str, n: int) -> None:
    torch.manual_seed(n)
    graph, most = layer(kind, n, 1e-5), math.sqrt(n - 1 if kind == "layer" else n)
    level = 0.7 if kind == "layer" else 0.0
    for radius in (1e-4, 1e-2, 1.0, 30.0):
        middle = torch.full((1, n), level, dtype=torch.float64) + 0.5 * radius * torch.randn(1, n, dtype=torch.float64)
        lower, upper = middle - radius, middle + radius
        x = lower + (upper - lower) * torch.cat([torch.rand(2000, n), torch.rand(2000, n).round()]).double()
        x = torch.cat([x, level + (x - middle) * 1e-3 * radius]).clamp(lower, upper)
        values = evaluate_all(graph, x)
        for state, _ in (crown(graph, lower, upper, torch.float64), crown(graph, lower, upper), forward(graph, lower, upper)):
            for node, value in zip(graph.nodes, values, strict=True):
                bounds = state[node.id].bounds
                assert (value >= bounds.lower - 1e-9).all() and (value <= bounds.upper + 1e-9).all()
                if isinstance(node.op, Product):
                    assert max(-float(bounds.lower.min()), float(bounds.upper.max())) <= most * (1 + 1e-12)
        state, table = crown(graph, lower, upper, torch.float64)
        rows = torch.cat([torch.eye(graph.ny), -torch.eye(graph.ny)])[None].double()
        found, _ = optimise(graph, state, table, rows, options=AlphaOptions(10))
        sampled = evaluate(graph, x) @ rows[0].T
        assert (found.lower[0] <= sampled.amin(0) + 1e-9).all()


def test_a_solver_proves_it_too() -> None:
    """Of the nearly constant vectors, each entry of a normalised one is within its constant: far below eps, 1e-5, is what is left of it."""
    graph = layer("layer", 3, 1e-5)
    box = mv.Box([0.49] * 3, [0.51] * 3)
    problem = mv.Problem(graph, box, unsafe=f"(or (and (>= Y_3 {math.sqrt(2) + 1e-3})) (and (<= Y_4 {-math.sqrt(2) - 1e-3})))")
    assert mv.verify(problem, timeout=20).verdict is mv.Verdict.VERIFIED
    assert mv.verify(problem, timeout=20, method=mv.Milp("scip")).verdict is mv.Verdict.VERIFIED
