"""Neurons of piecewise-linear functions as mixed-integer rows.

- one kink: the big-M form, which is the convex hull of one neuron over [l, u] (Tjeng et al., arXiv 1711.07356, eq. 11 to 15 for ReLU);
- otherwise: one binary per piece, the multiple-choice form (Vielma, Mixed Integer Linear Programming Formulation Techniques,
  SIAM Review 2015), also for jumps: each piece on its closed interval, and the value at a jump as a piece of length zero. It
  holds the closure of the graph.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from milpverify.encode.segments import is_continuous, segments

if TYPE_CHECKING:
    from milpverify.encode.model import ModelBuilder
    from milpverify.encode.segments import Segment
    from milpverify.functions.pieces import Pieces


class Argument(NamedTuple):
    """What a neuron reads: the column of x, the bounds of x, and a value of x to start from (NaN: none)."""

    x: int
    low: float
    high: float
    at: float


def add_pieces(builder: ModelBuilder, pieces: Pieces, first: int, last: int, argument: Argument, y: int) -> None:
    """y = f(x) on the pieces from `first` to `last`, which the bounds of x touch; bounds of rows are rounded outwards."""
    if last == first + 1 and is_continuous(pieces, first):
        _add_kink(builder, pieces, first, argument, y)
    else:
        _add_choice(builder, segments(pieces, first, last, argument.low, argument.high), argument.x, y, argument.at)


def _add_kink(builder: ModelBuilder, pieces: Pieces, k: int, argument: Argument, y: int) -> None:
    """Two pieces that meet at p, with slopes a, b, s = 1 if convex and -1 if concave, and z = 1 right of p.

    s y >= s (a x + c_a), s y <= s (a x + c_a) + |b - a| (u - p) z,
    s y >= s (b x + c_b), s y <= s (b x + c_b) + |b - a| (p - l) (1 - z).
    """
    x, low, high, at = argument
    p, (a, b), (ca, cb) = pieces.breakpoints[k], pieces.slopes[k : k + 2], pieces.intercepts[k : k + 2]
    sign = 1.0 if b > a else -1.0
    grow = (1.0 + 2.0**-50) * abs(b - a)
    right, left = grow * (high - p), grow * (p - low)
    z = int(builder.binaries(1, start=math.nan if math.isnan(at) else float(at > p))[0])
    row = builder.row
    row([y, x], [sign, -sign * a], lower=sign * ca)
    row([y, x], [sign, -sign * b], lower=sign * cb)
    row([y, x, z], [sign, -sign * a, -right], upper=sign * ca)
    row([y, x, z], [sign, -sign * b, left], upper=left + sign * cb, error=2.0**-52 * abs(cb) if cb else 0.0)


def _add_choice(builder: ModelBuilder, parts: list[Segment], x: int, y: int, at: float) -> None:
    """x = r + sum d_k, y = sum a_k d_k + (a_k r + c_k) z_k, (l_k - r) z_k <= d_k <= (u_k - r) z_k, sum z_k = 1; r is x's centre."""
    r = float(builder.centre[x])
    low, high = (np.array(ends) - r for ends in zip(*((p.lower, p.upper) for p in parts), strict=True))
    if r:
        low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
    slopes, intercepts = (np.array(part) for part in zip(*((p.slope, p.intercept) for p in parts), strict=True))
    chosen = next((k for k, p in enumerate(parts) if p.lower <= at <= p.upper), 0)
    hot = np.where(np.arange(len(parts)) == chosen, 1.0, 0.0)
    z = builder.binaries(len(parts), start=math.nan if math.isnan(at) else hot)
    d = builder.variables(np.minimum(low, 0.0), np.maximum(high, 0.0), start=hot * (at - r), least=float(builder.unit[x]))
    ones = np.ones(len(parts))
    builder.row(z, ones, 1.0, 1.0)
    builder.row([*d, x], [*ones, -1.0], -r, -r)
    rounding = 2.0**-50 * float(np.abs(slopes * r).max() + np.abs(intercepts).max()) if r else 0.0
    builder.row([*d, *z, y], [*slopes, *(slopes * r + intercepts), -1.0], 0.0, 0.0, error=rounding)
    for k in range(len(parts)):
        builder.row([d[k], z[k]], [1.0, -low[k]], lower=0.0)
        builder.row([d[k], z[k]], [1.0, -high[k]], upper=0.0)
