"""Norms of vectors, what is divided by them, and distances, for every frontend.

What a root is taken of is a sum of powers, which is not negative, though rounding makes its bounds so: max(s, 0), which is s, keeps them
within the domain. Entries divided by their norm are within [-1, 1] however small the norm is: what is clipped to that says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from milpverify.frontends.lowering import composites, patterns
from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.lowering.constants import Constant
from milpverify.frontends.lowering.windows import average_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.frontends.lowering.windows import Axis
    from milpverify.graph import Node


def norm(g: Builder, x: Node, axes: Sequence[int], p: float = 2.0, keepdims: bool = True) -> Node:
    """(sum of |x|^p)^(1 / p) over some axes >= 0; for p = inf and -inf the largest and the smallest |x|.

    Raises:
        ValueError: p is 0, which counts entries, or not a number.
    """
    if p == 0 or math.isnan(p):
        raise ValueError(f"the norm of order {p} jumps, which has no rule")
    if not axes:
        return g.function("abs", x)
    if math.isinf(p):
        return composites.extremum(g, g.function("abs", x), axes, keepdims, 1 if p > 0 else -1)
    return root(g, g.reduce_sum(powers(g, x, p), axes, keepdims), p)


def powers(g: Builder, x: Node, p: float) -> Node:
    """|x|^p."""
    if p == 1:
        return g.function("abs", x)
    if p == int(p) and p > 0:
        return patterns.power(g, x if p % 2 == 0 else g.function("abs", x), int(p))
    return composites.power(g, g.function("abs", x), p)


def root(g: Builder, total: Node, p: float) -> Node:
    """total^(1 / p) of a sum of powers."""
    if p == 1:
        return total
    if p < 0:
        return composites.power(g, total, 1 / p)
    base = g.relu(total)
    while p % 2 == 0:
        base, p = g.function("sqrt", base), p / 2
    return base if p == 1 else g.function("exp", g.scale(g.function("log", base), 1.0 / Constant.of(p)))


def normalized(g: Builder, x: Node, axes: Sequence[int], p: float = 2.0, eps: Constant | None = None) -> Node:
    """x / max(norm, eps) over some axes >= 0; without eps, 0 where the norm is.

    Args:
        p: positive.
        eps: a positive number.

    Raises:
        ValueError: there is no rule for norms of order p.
    """
    if p <= 0:
        raise ValueError(f"vectors are divided by their norm of order {p}, which has no rule")
    if p == 2 and (eps is None or not (eps * eps).rounded):
        # One function less: max(sqrt(s), eps) = sqrt(max(s, eps^2)).
        squares = g.reduce_sum(g.function("square", x), axes)
        base, inverse = _divisor(g, squares, None if eps is None else eps * eps), "rsqrt"
    else:
        base, inverse = _divisor(g, norm(g, x, axes, p), eps), "reciprocal"
    y = g.product(x, g.function(inverse, base))
    # With eps, and for p = 2, that is found by `normalisation`, which knows more.
    return y if p == 2 and eps is not None else g.clip(y, -1.0, 1.0)


def _divisor(g: Builder, length: Node, eps: Constant | None) -> Node:
    """max(length, eps) of what is not negative; without eps, 1 where it is 0, so that 0 is divided by 1 there."""
    if eps is not None:
        return g.clip(length, float(eps.value), math.inf)
    length = g.relu(length)
    return g.sum([length, g.scale(g.function("sign", length), -1.0, 1.0)])


def cosine_similarity(g: Builder, a: Node, b: Node, axis: int, eps: Constant) -> Node:
    """The product of two vectors along an axis >= 0, each divided by its norm or by eps, whichever is larger; with broadcasting."""
    shape = np.broadcast_shapes(a.shape, b.shape)
    units = []
    for x in (a, b):
        own = [1] * (len(shape) - len(x.shape)) + list(x.shape)
        x = g.reshape(x, own)
        own[axis] = shape[axis]
        units.append(normalized(g, g.broadcast(x, tuple(own)), [axis], 2.0, eps))
    return g.clip(g.reduce_sum(g.product(*units), [axis], keepdims=False), -1.0, 1.0)


def distances(g: Builder, a: Node, b: Node, p: float) -> Node:
    """The norm of the difference of every row of a (..., n, k) and every row of b (..., m, k): (..., n, m)."""
    rows = g.reshape(a, (*a.shape[:-1], 1, a.shape[-1]))
    others = g.reshape(b, (*b.shape[:-2], 1, *b.shape[-2:]))
    gap = g.sum([rows, others], [1, -1])
    return norm(g, gap, [len(gap.shape) - 1], p, keepdims=False)


def local_response(g: Builder, x: Node, window: tuple[int, int], factor: Constant, beta: float, bias: float) -> Node:
    """x / (bias + factor * s)^beta, s the sum of squares over the channels, axis 1, from c - window[0] to c + window[1]."""
    channels = x.shape[1]
    places = np.arange(channels)
    near = places[:, None] - window[0] <= places
    near &= places <= places[:, None] + window[1]
    squares = g.reshape(g.function("square", x), (x.shape[0], channels, x.size // (x.shape[0] * channels)))
    sums = g.reshape(g.conv(squares, near.astype(np.float64)[:, :, None]), x.shape)
    return composites.multiply(g, x, composites.power(g, g.scale(sums, factor, bias), -beta))


def pairs(g: Builder, x: Node, p: float) -> Node:
    """The distances of every two rows of x (n, k), those of the first before those of the second: (n (n - 1) / 2,)."""
    first, second = np.triu_indices(x.shape[0], 1)
    places = entries(x.shape)
    return norm(g, g.sum([g.select(x, places[first]), g.select(x, places[second])], [1, -1]), [1], p, keepdims=False)


def pool(g: Builder, x: Node, axes: Sequence[Axis], p: float) -> Node:
    """The norm of the entries of every window that slides along the spatial axes."""
    return root(g, average_pool(g, powers(g, x, p), axes, include_padding=True, divisor=1.0), p)
