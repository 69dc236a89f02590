"""The rows of a ball hold for all its points, exactly: in the network's units, and after scaling."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from milpverify.balls.ball import Ball
from milpverify.encode.balls import add_ball
from milpverify.encode.encoding import EncodingTuning
from milpverify.encode.model import ModelBuilder, NumericallyUnfit


def exact(value: float) -> Fraction:
    """The rational that a float is."""
    return Fraction(float(value))


def added(ball: Ball, quadratic: bool, tuning: EncodingTuning = EncodingTuning()) -> tuple[ModelBuilder, np.ndarray]:
    """A builder with a variable per input, and the ball's rows."""
    builder, (low, high) = ModelBuilder(), ball.ends
    columns = np.concatenate([builder.variables(a, b) for a, b in zip(low, high, strict=True)])
    add_ball(builder, ball, columns, (low, high), quadratic, tuning)
    return builder, columns


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("quadratic", [False, True])
def test_points_of_the_ball_satisfy_all_rows_in_rationals(norm: str, quadratic: bool) -> None:
    random = np.random.default_rng(0)
    for seed in range(30):
        n = int(random.integers(1, 5))
        centre = random.normal(size=n) * 10.0 ** random.integers(-2, 4)
        weight = random.uniform(0.3, 2.0, n) * 10.0 ** random.integers(-2, 3) * (random.random(n) < 0.9)
        ball = Ball(centre, float(random.uniform(0.01, 2.0)), norm, weight=weight)
        builder, columns = added(ball, quadratic)
        model = builder.build({})
        unit, shift = builder.unit.tolist(), builder.centre.tolist()
        for _ in range(10):
            x = ball.pulled(centre + weight * ball.radius * random.normal(size=n) * (random.random(n) < 0.7))
            moving = [i for i in range(n) if weight[i] > 0]
            away = {i: exact(x[i]) - exact(centre[i]) for i in moving}
            values = {int(columns[i]): exact(x[i]) for i in range(n)}
            later = iter(range(n, len(unit)))
            for i in moving:  # each input's share comes first, then its deviation, where there are quadratic rows
                values[next(later)] = abs(away[i]) if norm == "l1" else away[i] ** 2
                if norm == "l2" and quadratic:
                    values[next(later)] = away[i]
            v = [(values[j] - exact(shift[j])) / exact(unit[j]) for j in range(len(unit))]
            assert all(exact(a) <= q <= exact(b) for a, q, b in zip(model.lower, v, model.upper, strict=True)), seed
            for row in range(model.num_rows):
                part = slice(model.row_start[row], model.row_start[row + 1])
                total = sum((exact(c) * v[j] for c, j in zip(model.value[part], model.column[part], strict=True)), start=Fraction(0))
                products = model.quadratic
                if products is not None:
                    for k in np.flatnonzero(products.row == row):
                        total += exact(products.value[k]) * v[products.first[k]] * v[products.second[k]]
                low, high = model.row_lower[row], model.row_upper[row]
                if low == high:  # an equality that solvers' tolerances carry
                    assert abs(total - exact(low)) <= Fraction(1, 10**8), seed
                    continue
                assert low == -np.inf or exact(low) <= total, (seed, row)
                assert high == np.inf or total <= exact(high), (seed, row)


def test_balls_beyond_what_solvers_carry_are_refused() -> None:
    for centre, radius, weight in (([0.0, 0.0], 1e200, 1.0), ([0.0, 0.0], 1.0, [1e170, 1.0])):
        with np.errstate(all="ignore"), pytest.raises(NumericallyUnfit):
            added(Ball(centre, radius, "l2", weight=weight), False)[0].build({})


def test_closer_tangents_are_more_rows() -> None:
    ball = Ball(np.zeros(3), 1.0, "l2")
    coarse, usual, fine = (added(ball, False, EncodingTuning(ratio=ratio))[0].num_rows for ratio in (4.0, 1.75, 1.2))
    assert coarse < usual < fine
