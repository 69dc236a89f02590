"""Bounds over a ball and a box: below every point, and as good as a convex program solved by scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from milpverify.balls.ball import Ball
from milpverify.balls.dual import Region, lowest
from milpverify.balls.norm import Norm


def _region(ball: Ball, lower: np.ndarray, upper: np.ndarray) -> Region:
    low, high = torch.from_numpy(lower)[None], torch.from_numpy(upper)[None]
    return Region.of(ball, low, high, 0.5 * (low + high))


def _cases(norm: Norm, seed: int) -> tuple[Ball, np.ndarray, np.ndarray, np.ndarray]:
    """A ball and a box that cuts it somehow: around the centre, beside it, or with fixed inputs; and rows of many sizes."""
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 9))
    centre = random.normal(size=n) * 10.0 ** random.integers(-2, 3)
    weight = random.uniform(0.2, 3.0, n) * (random.random(n) < 0.9)
    ball = Ball(centre, float(random.uniform(0.1, 3.0)), norm, weight=weight)
    low, high = ball.ends
    kind = seed % 3
    if kind:
        a, b = np.sort(random.uniform(low, high, (2, n)), axis=0)
        low, high = (np.where(random.random(n) < 0.6, a, low), np.where(random.random(n) < 0.6, b, high))
        low, high = np.minimum(low, high), np.maximum(low, high)
    rows = random.normal(size=(6, n)) * 10.0 ** random.integers(-3, 4, (6, 1))
    rows[0] = 0.0
    rows[1, random.integers(n)] = 0.0
    return ball, low, high, rows


def _optimum(ball: Ball, low: np.ndarray, high: np.ndarray, row: np.ndarray) -> float | None:
    """The least row . x over ball and box by other means; None where there is no such x."""
    n, moving = len(row), ball.weight > 0
    inverse = np.where(moving, 1.0 / np.where(moving, ball.weight, 1.0), 0.0)
    if ball.norm is Norm.L1:
        eye = np.eye(n)
        above = np.block([[eye, -eye], [-eye, -eye], [np.zeros((1, n)), inverse[None]]])
        right = np.concatenate([ball.centre, -ball.centre, [ball.radius]])
        found = linprog(np.append(row, np.zeros(n)), above, right, bounds=[*zip(low, high, strict=True), *[(0, None)] * n])
        return float(found.fun) if found.status == 0 else None
    nearest = np.clip(ball.centre, low, high)
    if (((nearest - ball.centre) * inverse) ** 2).sum() > ball.radius**2:
        return None
    scale = max(1e-12, float(np.abs(row).max()))
    inside = {
        "type": "ineq",
        "fun": lambda x: ball.radius**2 - (((x - ball.centre) * inverse) ** 2).sum(),
        "jac": lambda x: -2.0 * (x - ball.centre) * inverse**2,
    }
    found = minimize(
        lambda x: float(row @ x) / scale, nearest, jac=lambda _: row / scale, bounds=list(zip(low, high, strict=True)),
        constraints=[inside], method="SLSQP", options={"ftol": 1e-13, "maxiter": 500},
    )  # fmt: skip
    return float(found.fun) * scale if found.success else None


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_bounds_are_those_of_a_convex_program(norm: Norm) -> None:
    compared = 0
    for seed in range(60):
        ball, low, high, rows = _cases(norm, seed)
        region = _region(ball, low, high)
        bound = region.least(torch.from_numpy(rows)[None])[0].numpy() + rows @ (0.5 * (low + high))
        for row, least in zip(rows, bound, strict=True):
            best = _optimum(ball, low, high, row)
            if best is None:
                continue
            size = float(np.abs(row) @ (np.abs(low) + np.abs(high))) + 1e-9
            assert least <= best + 1e-6 * size
            assert least >= best - 1e-4 * size, (seed, least, best)
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_no_point_lies_below_a_bound(norm: Norm) -> None:
    """In rationals, at points of the ball near the minimisers: rounding is charged, whatever the sizes."""
    from fractions import Fraction

    tried = 0
    for seed in range(60):
        ball, low, high, rows = _cases(norm, seed)
        region = _region(ball, low, high)
        found = region.least(torch.from_numpy(rows)[None])[0].tolist()
        _, d = region.attained(torch.from_numpy(rows)[None])
        middle = 0.5 * (low + high)
        for row, least, away in zip(rows, found, d[0].numpy(), strict=True):
            for x in (ball.pulled(np.clip(ball.centre + away, low, high)), np.clip(ball.centre, low, high)):
                if not (ball.contains(x) and (low <= x).all() and (x <= high).all()):
                    continue
                value = sum(
                    (Fraction(a) * (Fraction(b) - Fraction(c)) for a, b, c in zip(row.tolist(), x.tolist(), middle.tolist(), strict=True))
                )
                assert value >= Fraction(least)
                tried += 1
    assert tried > 200


def test_weights_whose_squares_underflow_prove_nothing_wrong() -> None:
    weight = np.array([1.0, 1.0, 1.0, 1e170])
    ball = Ball(np.zeros(4), 1.0, Norm.L2, weight=weight)
    row = torch.from_numpy(1.0 / weight)[None, None]
    assert float(_region(ball, *ball.ends).least(row)[0, 0]) <= -2.0


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_empty_boxes_hold_no_point(norm: Norm) -> None:
    empty = 0
    for seed in range(60):
        ball, _, _, _ = _cases(norm, seed)
        random = np.random.default_rng(seed)
        first, last = ball.ends
        a = random.uniform(first, last)
        low, high = a, np.minimum(a + 0.05 * (last - first), last)
        if bool(_region(ball, low, high).empty()[0]):
            empty += 1
            assert not ball.contains(np.clip(ball.centre, low, high))
    assert empty > 5


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_lowest_points_attain_the_bounds_in_the_ball(norm: Norm) -> None:
    tried = 0
    for seed in range(40):
        ball, low, high, rows = _cases(norm, seed)
        box, given = (torch.from_numpy(low)[None], torch.from_numpy(high)[None]), torch.from_numpy(rows)[None]
        region = _region(ball, low, high)
        if bool(region.empty()[0]):
            continue
        points = lowest(ball, given, *box)[0].numpy()
        values = ((points - 0.5 * (low + high)) * rows).sum(1)
        size = np.abs(rows) @ (high - low) + 1e-9
        assert (low - 1e-9 <= points).all() and (points <= high + 1e-9).all()
        assert all(ball.distance(np.where(ball.weight > 0, x, ball.centre)) <= ball.radius * (1 + 1e-4) for x in points), seed
        assert (values <= region.least(given)[0].numpy() + 1e-4 * size).all(), seed
        tried += 1
    assert tried > 20


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_points_at_the_rim_are_boxes_that_are_not_empty(norm: Norm) -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        ball = Ball(random.normal(size=3), float(random.uniform(0.1, 2.0)), norm, weight=random.uniform(0.3, 2.0, 3))
        x = ball.pulled(ball.centre + ball.weight * ball.radius * random.normal(size=3))
        assert not bool(_region(ball, x, x).empty()[0])


def test_radii_whose_squares_overflow_prove_nothing() -> None:
    region = _region(Ball([0.0, 0.0], 1e200, Norm.L2), np.full(2, -1e200), np.full(2, 1e200))
    assert not bool(region.least(torch.ones(1, 1, 2, dtype=torch.float64)).isnan().any())


def test_a_ball_within_its_box_is_its_dual_norm() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(5, 40))
    for norm, dual in ((Norm.L1, np.inf), (Norm.L2, 2)):
        ball = Ball(random.normal(size=40), 0.7, norm)
        bound = _region(ball, *ball.ends).least(torch.from_numpy(rows)[None])[0].numpy()
        shift = rows @ (ball.centre - 0.5 * (ball.ends[0] + ball.ends[1]))
        np.testing.assert_allclose(bound, shift - 0.7 * np.linalg.norm(rows, dual, axis=1), rtol=1e-9)
