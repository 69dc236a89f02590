"""The ball that inputs are confined to, as rows of models: exact for L1, tangents for L2, and a quadratic row where the solver takes one.

With t = x - centre, an L1 ball is sum e_i / w_i <= r with e_i >= |t_i|, an L2 ball sum s_i / w_i^2 <= r^2 with s_i >= t_i^2, of which
tangents are left: the model of an L2 ball is a relaxation. They lie in geometric progression, for each of n inputs takes about r / sqrt(n)
of a point at the rim, and the error of a progression is a share of the square itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from milpverify.balls.norm import Norm
from milpverify.encode.encoding import EncodingTuning
from milpverify.solvers.model import Array, Model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.balls.ball import Ball
    from milpverify.encode.model import ModelBuilder
    from milpverify.solvers.model import Index


def tangent_places(ball: Ball, low: float, high: float, weight: float, tuning: EncodingTuning = EncodingTuning()) -> list[float]:
    """Where parabolas t^2 with t within [low, high] get tangents: 0, both ends, and a geometric progression between."""
    moving = max(1, int((ball.weight > 0).sum()))
    reach = max(-low, high)
    step = tuning.nearest * ball.radius * weight / math.sqrt(moving)
    places = {0.0, low, high}
    while 0.0 < step < reach:
        places |= {c for c in (step, -step) if low < c < high}
        step *= tuning.ratio
    return sorted(c for c in places if low <= c <= high)


def add_ball(
    builder: ModelBuilder,
    ball: Ball,
    columns: Index,
    ends: tuple[Array, Array],
    quadratic: bool,
    tuning: EncodingTuning = EncodingTuning(),
) -> None:
    """Rows that hold for every input in the ball: what is computed of its radius, weights and tangents is rounded outwards.

    Args:
        columns: those of the inputs (nx,), with the lower and upper `ends` (nx,) of their ranges; inputs that do not change need none.
        quadratic: whether the solver takes quadratic rows, one of which an L2 ball then is, too.
    """
    lower, upper = ends
    moving = np.flatnonzero(ball.weight > 0)
    budget = ball.radius if ball.norm is Norm.L1 else math.nextafter(ball.radius * ball.radius, math.inf)
    owners, shares = [], []
    squares, products = [], []
    for i in moving.tolist():
        x, p, w = int(columns[i]), float(ball.centre[i]), float(ball.weight[i])
        low, high = math.nextafter(float(lower[i]) - p, -math.inf), math.nextafter(float(upper[i]) - p, math.inf)
        share = math.nextafter(1.0 / w, 0.0)
        if ball.norm is Norm.L1:
            e = int(builder.variables(0.0, max(-low, high))[0])
            builder.row([e, x], [1.0, -1.0], lower=-p)
            builder.row([e, x], [1.0, 1.0], lower=p)
        else:
            share = math.nextafter(share * share, 0.0)
            reach = max(-low, high)
            e = int(builder.variables(0.0, math.nextafter(reach * reach, math.inf))[0])
            for c in tangent_places(ball, low, high, w, tuning):
                # s >= 2 c (x - p) - c^2
                builder.row([e, x], [1.0, -2.0 * c], lower=-(2.0 * c * p + c * c), error=2.0**-51 * (abs(2.0 * c * p) + c * c))
            if quadratic:
                t = int(builder.variables(low, high, centred=False)[0])
                builder.row([t, x], [1.0, -1.0], -p, -p)
                squares.append(t)
                products.append((t, t, share))
        owners.append(e)
        shares.append(share)
    builder.row(owners, shares, upper=budget)
    if squares:
        builder.row([], [], upper=budget, products=products)


def confined(model: Model, ball: Ball, first: int, centre: Array, unit: Array, tangents: Sequence[Array]) -> Model:
    """A linear program over inputs x = centre + unit v with the ball: rows and variables after all others, not rounded outwards.

    Args:
        first: the column of the first input; the others follow. Those of unit 0 are fixed.
        tangents: points x at which an L2 ball is touched in every input, beside those of `tangent_places`.
    """
    moving = np.flatnonzero((ball.weight > 0) & (unit > 0))
    away, u, n = (centre - ball.centre)[moving], unit[moving], model.num_variables
    share = u / ball.weight[moving]
    held = np.flatnonzero((ball.weight > 0) & (unit == 0))
    spent = np.abs(centre - ball.centre)[held] / ball.weight[held]
    # Lines s >= slope (v + away / u) - intercept, in units of u or u^2, each for all inputs.
    if ball.norm is Norm.L1:
        budget = ball.radius - float(spent.sum())
        lines = [(np.full(len(u), side), np.zeros(len(u))) for side in (1.0, -1.0)]
    else:
        budget, share = ball.radius * ball.radius - float((spent * spent).sum()), share * share
        places = [tangent_places(ball, float(a - b), float(a + b), float(w)) for a, b, w in zip(away, u, ball.weight[moving], strict=True)]
        most = max(map(len, places), default=0)
        slopes = [np.array([row[min(k, len(row) - 1)] for row in places]) for k in range(most)]
        slopes += [(x - ball.centre)[moving] for x in tangents]
        lines = [(2.0 * c / u, (c / u) ** 2) for c in slopes]
    new = n + np.arange(len(moving))
    columns, values, lower = [model.column], [model.value], [model.row_lower]
    for slope, intercept in lines:
        columns.append(np.stack([new, first + moving], axis=1).ravel())
        values.append(np.stack([np.ones(len(u)), -slope], axis=1).ravel())
        lower.append(slope * away / u - intercept)
    scale = float(share.max(initial=1e-300))
    lengths = np.concatenate([np.diff(model.row_start), np.full(len(u) * len(lines), 2), [len(u)]])
    none = np.full(len(u) * len(lines), math.inf)
    return Model(
        np.concatenate([model.lower, np.zeros(len(u))]),
        np.concatenate([model.upper, np.full(len(u), math.inf)]),
        np.concatenate([model.integer, np.zeros(len(u), dtype=bool)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([*columns, new]).astype(np.int64),
        np.concatenate([*values, share / scale]),
        np.concatenate([*lower, [-math.inf]]),
        np.concatenate([model.row_upper, none, [budget / scale]]),
        np.concatenate([model.objective, np.zeros(len(u))]),
    )
