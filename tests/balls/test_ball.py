"""Which points lie in a ball, in rationals, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import milpverify as mv
from milpverify.balls.ball import Ball, rounded_up
from milpverify.balls.norm import Norm
from milpverify.balls.points import distances, project, steepest


def test_membership_is_exact() -> None:
    third = Ball([0.1, 0.2], 0.5, "l1")
    assert third.contains(np.array([0.1, 0.7])) == (abs(Fraction(0.7) - Fraction(0.2)) <= Fraction(0.5))
    unit = Ball([0.0, 0.0], 1.0, "l2")
    assert unit.contains(np.array([0.6, 0.8])) == (Fraction(0.6) ** 2 + Fraction(0.8) ** 2 <= 1)
    assert not unit.contains(np.array([math.nextafter(1.0, 2.0), 0.0]))
    assert not Ball([0.0, 0.0], 1.0, "l2", weight=[1.0, 0.0]).contains(np.array([0.0, 1e-300]))
    assert not unit.contains(np.array([math.nan, 0.0]))


def test_distances_are_rounded_up() -> None:
    random = np.random.default_rng(0)
    for norm in Norm:
        for _ in range(50):
            centre, x = random.normal(size=(2, 5)) * 10.0 ** random.integers(-8, 8)
            ball = Ball(centre, 1.0, norm, weight=random.uniform(0.1, 2.0, 5))
            distance = ball.distance(x)
            assert Ball(centre, distance, norm, weight=ball.weight).contains(x)
            smaller = Ball(centre, math.nextafter(math.nextafter(distance, 0.0), 0.0), norm, weight=ball.weight)
            assert not smaller.contains(x)
    assert rounded_up(Fraction(2), root=True) ** 2 >= 2


def test_ends_contain_the_ball() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        ball = Ball(random.normal(size=3), float(random.uniform(0.1, 2.0)), "l1", weight=random.uniform(0.1, 2.0, 3))
        parts = (ball.centre.tolist(), ball.weight.tolist(), *(end.tolist() for end in ball.ends))
        for centre, weight, low, high in zip(*parts, strict=True):
            reach = Fraction(ball.radius) * Fraction(weight)
            assert Fraction(low) <= Fraction(centre) - reach and Fraction(centre) + reach <= Fraction(high)


@pytest.mark.parametrize("norm", list(Norm))
def test_pulled_points_lie_inside(norm: Norm) -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        ball = Ball(random.normal(size=7), float(random.uniform(0.01, 2.0)), norm)
        x = ball.centre + random.normal(size=7)
        inner = ball.pulled(x)
        assert ball.contains(inner)
        assert ball.contains(x) or ball.distance(inner) >= ball.radius * (1 - 1e-9)


@pytest.mark.parametrize("norm", [Norm.L1, Norm.L2])
def test_projections_and_steps(norm: Norm) -> None:
    random = np.random.default_rng(2)
    ball = Ball(random.normal(size=9), 0.8, norm, weight=random.uniform(0.5, 2.0, 9))
    x = torch.from_numpy(ball.centre + random.normal(size=(40, 9)))
    inner = project(ball, x)
    assert bool((distances(ball, inner) <= ball.radius * (1 + 1e-12)).all())
    outside = distances(ball, x) > ball.radius
    assert bool(outside.any()) and torch.equal(inner[~outside], project(ball, inner)[~outside])
    assert torch.allclose(distances(ball, inner)[outside], torch.tensor(ball.radius, dtype=torch.float64))
    if norm is Norm.L1:  # the nearest point: no other point of the ball is nearer
        for other in torch.from_numpy(np.stack([ball.pulled(ball.centre + random.normal(size=9)) for _ in range(100)])):
            assert bool(((inner - x).norm(dim=1) <= (other - x).norm(dim=1) + 1e-12).all())
    gradient = torch.from_numpy(random.normal(size=(20, 9)))
    assert torch.allclose(distances(ball, torch.from_numpy(ball.centre) + steepest(ball, gradient)), torch.tensor(0.8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0.0, math.nan], 1.0, "l2"), "no finite number at input X_1"),
        (([0.0], -1.0, "l2"), "radius of the ball must be a number >= 0"),
        (([0.0], math.nan, "l1"), "radius of the ball must be a number >= 0"),
        (([0.0], math.inf, "l1"), "radius of the ball must be a number >= 0"),
        (([0.0], 1.0, "l3"), "unknown norm 'l3'"),
        (([0.0], 1.0, "l2", [0.0, 1.0]), "lower must be a number, or one per input"),
        (([0.0], 1.0, "l2", math.nan), "limits of the ball must be numbers"),
        (([5.0], 1.0, "l2", 0.0, 1.0), "no point within its limits"),
        (([0.0], 1.0, "l2", -1.0, 1.0, -1.0), "weights of the ball"),
        (([1e308], 1e308, "l1"), "too large"),
        (("x", 1.0), "a centre of numbers"),
        (([0.0], "x"), "one number as its radius"),
        (([0.0], [1.0, 2.0]), "one number as its radius"),
        (([1j], 1.0), "a centre of numbers"),
    ],
)
def test_what_is_no_ball_is_refused(arguments: tuple[object, ...], says: str) -> None:
    with pytest.raises(mv.InvalidProperty, match=says):
        Ball(*arguments)  # type: ignore[arg-type]
