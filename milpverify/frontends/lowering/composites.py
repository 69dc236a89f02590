"""Composite operators as core operators, for every frontend: quotients, powers, softmax, normalisation, extrema.

Of several forms that are equal in the reals the one is taken whose relaxation is tightest:

- a quotient is a product with a reciprocal, and the reciprocal of a square root is one convex function;
- softmax is 1 / (1 + sum_{j != i} exp(x_j - x_i)) (Bonaert et al., Fast and Precise Certification of Transformers, PLDI 2021,
  section 5.2): no product, bounded by 0 and 1 whatever the relaxation, and its interval is the range over a box of x;
- powers with small integer exponents have functions of their own, whose curvature is known.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.frontends.lowering import patterns, switches
from milpverify.frontends.lowering.builder import Builder, Index, entries
from milpverify.frontends.lowering.constants import Array, Constant
from milpverify.frontends.lowering.masks import Mask
from milpverify.graph import Node
from milpverify.operators import Elementwise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from milpverify.operators import Shape

DEGREE: Final = 1024
"""The largest exponent."""


# Products, quotients and powers


def multiply(g: Builder, a: Node, b: Node) -> Node:
    """a * b with numpy's broadcasting; a function of one variable where it is one, such as x * sigmoid(x)."""
    found = patterns.product(g, a, b) or switches.gated(g, a, b) if a.shape == b.shape else None
    return g.product(a, b) if found is None else found


def reciprocal(g: Builder, x: Node) -> Node:
    """1 / x."""
    found = patterns.reciprocal(g, x)
    return g.function("reciprocal", x) if found is None else found


def divide(g: Builder, a: Node | ArrayLike, b: Node) -> Node:
    """a / b with numpy's broadcasting; a may be a constant."""
    if not isinstance(a, Node):
        return g.scale(reciprocal(g, b), a)
    sums = patterns.exponentials(g, b)
    if sums is not None and patterns.is_exponential(g, a, sums[0]) and len(sums[1]) == 1 and b.shape in (a.shape, _kept(a.shape, sums[1])):
        return softmax(g, sums[0], sums[1][0])
    quotient = patterns.quotient(g, a, b) if a.shape == b.shape else None
    return multiply(g, a, reciprocal(g, b)) if quotient is None else quotient


def matrix_product(g: Builder, a: Node | ArrayLike | Constant, b: Node | ArrayLike | Constant) -> Node:
    """numpy's a @ b, where at least one of them is a node."""
    if isinstance(a, Node):
        return g.matmul_nodes(a, b) if isinstance(b, Node) else g.matmul(a, Constant.of(b))
    assert isinstance(b, Node)
    left = Constant.of(a)
    if left.value.ndim < 2:
        return g.matmul(g.transpose(b) if len(b.shape) > 1 else b, left)
    left = left.moved(left.value.swapaxes(-1, -2))
    return g.matmul(b, left) if len(b.shape) < 2 else g.transpose(g.matmul(g.transpose(b), left))


def logarithm(g: Builder, x: Node) -> Node:
    """The natural logarithm of x."""
    if (sums := patterns.exponentials(g, x)) is not None and x.shape == _kept(sums[0].shape, sums[1]):
        return log_sum_exp(g, *sums)
    found = patterns.logarithm(g, x)
    return g.function("log", x) if found is None else found


def power(g: Builder, x: Node, n: float) -> Node:
    """x ** n for a constant n. A real power that is no integer, 1/2 or -1/2 is exp(n log x), which needs x > 0.

    Raises:
        ValueError: the exponent is too large for a polynomial.
    """
    if abs(n) > DEGREE:
        raise ValueError(f"the exponent {n} is beyond {DEGREE}")
    if n == 0:
        return g.constant(np.ones(x.shape))
    if n in (0.5, -0.5):
        return square_root(g, x) if n > 0 else g.function("rsqrt", x)
    if n != math.floor(n):
        return g.function("exp", g.scale(logarithm(g, x), n))
    return patterns.power(g, x, int(n)) if n > 0 else reciprocal(g, power(g, x, -n))


def ceil(g: Builder, x: Node) -> Node:
    """The least integer that is not less: -floor(-x)."""
    return g.scale(g.function("floor", g.scale(x, -1)), -1)


def hyperbolic(g: Builder, x: Node, name: str) -> Node:
    """sinh and cosh, (exp(x) -+ exp(-x)) / 2, and atanh, log((1 + x) / (1 - x)) / 2, as sums of two functions of x."""
    function, sign = ("log", -1) if name == "atanh" else ("exp", 1 if name == "cosh" else -1)
    ends = (g.scale(x, bias=1.0), g.scale(x, -1.0, 1.0)) if name == "atanh" else (x, g.scale(x, -1.0))
    return g.scale(g.sum([g.function(function, e) for e in ends], [1, sign]), 0.5)


def swish(g: Builder, x: Node, alpha: float) -> Node:
    """x / (1 + exp(-alpha x)) = silu(alpha x) / alpha."""
    if alpha == 0:
        return g.scale(x, 0.5)
    return g.scale(g.function("silu", g.scale(x, alpha)), 1.0 / Constant.of(alpha))


def square_root(g: Builder, x: Node) -> Node:
    """The root of x. Of a sum of squares it is that of max(x, 0), whose bounds rounding does not take out of the domain."""
    touches = not isinstance(x.op, Elementwise) and patterns.innermost(g, x).offset <= 0 and patterns.nonnegative(g, x)
    return g.function("sqrt", g.relu(x) if touches else x)


def _kept(shape: Shape, axes: Sequence[int]) -> Shape:
    """A shape with 1 in the place of some axes."""
    return tuple(1 if a in axes else n for a, n in enumerate(shape))


# Sums and extrema along axes


def mean(g: Builder, x: Node, axes: Sequence[int], keepdims: bool = True) -> Node:
    """The mean over some axes >= 0."""
    total = g.reduce_sum(x, axes, keepdims)
    y = g.scale(total, 1.0 / Constant.of(math.prod(x.shape[a] for a in axes)))
    if y.id != total.id:
        g.means.add(y.id)
    return y


def extremum(g: Builder, x: Node, axes: Sequence[int], keepdims: bool = True, sign: int = 1) -> Node:
    """The largest (sign 1) or smallest (sign -1) entry over some axes >= 0, by a tournament."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    length = math.prod(x.shape[a] for a in axes)
    planes = g.reshape(g.permute(x, [*kept, *axes]), (x.size // length, length))
    target = [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes]
    return g.extremum(planes, np.arange(length)[None], target, sign)


def product_of_entries(g: Builder, x: Node, axes: Sequence[int], keepdims: bool = True) -> Node:
    """The product over some axes >= 0, by halves."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    length = math.prod(x.shape[a] for a in axes)
    y = g.reshape(g.permute(x, [*kept, *axes]), (x.size // length, length))
    while (n := y.shape[1]) > 1:
        places = entries(y.shape)
        half = multiply(g, g.select(y, places[:, : n // 2]), g.select(y, places[:, n // 2 : 2 * (n // 2)]))
        y = g.concat([half, g.select(y, places[:, -1:])], 1) if n % 2 else half
    return g.reshape(y, [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes])


# Softmax


def softmax(g: Builder, x: Node, axis: int) -> Node:
    """exp(x_i) / sum_j exp(x_j) along an axis (negative ones count from the end)."""
    return _along_last(g, x, axis, _softmax)


def log_softmax(g: Builder, x: Node, axis: int) -> Node:
    """x_i - log(sum_j exp(x_j)) along an axis."""
    return _along_last(g, x, axis, _log_softmax)


def log_sum_exp(g: Builder, x: Node, axes: Sequence[int], keepdims: bool = True) -> Node:
    """log(sum_j exp(x_j)) over some axes >= 0."""
    kept = [a for a in range(len(x.shape)) if a not in axes]
    length = math.prod(x.shape[a] for a in axes)
    rows = g.reshape(g.permute(x, [*kept, *axes]), (x.size // length, length))
    y = _log_of_sum(g, rows)
    return g.reshape(y, [1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a not in axes])


def _log_of_sum(g: Builder, x: Node) -> Node:
    """The logarithm of the sum of exponentials of each row (rows, n), (rows, 1), by a tournament of log(e^a + e^b) = a + softplus(b - a).

    No exponential is formed, which might overflow, and softplus is bounded well over any interval. Entries that are -inf are left out.
    """
    if x.id in g.masked:
        return _log_of_visible(g, x, ~g.masked[x.id])
    while (n := x.shape[1]) > 1:
        places, half = entries(x.shape), n // 2
        a, b = g.select(x, places[:, :half]), g.select(x, places[:, half : 2 * half])
        y = g.sum([a, g.function("softplus", g.sum([b, a], [1, -1]))])
        x = g.concat([y, g.select(x, places[:, -1:])], 1) if n % 2 else y
    return x


def _log_of_visible(g: Builder, x: Node, visible: Mask) -> Node:
    """`_log_of_sum` of the entries (rows, n) that are visible: rows with as many of them together."""
    _leading(~visible)
    counts, place, parts = visible.sum(1), np.zeros(len(visible), dtype=np.int64), list[Node]()
    for n in np.unique(counts):
        rows = counts == n
        place[rows] = sum(p.size for p in parts) + np.arange(rows.sum())
        y = _log_of_sum(g, g.select(x, np.flatnonzero(visible & rows[:, None]).reshape(-1, n)))
        parts.append(g.reshape(y, (y.size,)))
    return g.select(g.concat(parts, 0), place[:, None])


def _along_last(g: Builder, x: Node, axis: int, rewrite) -> Node:  # type: ignore[no-untyped-def]
    """Apply a rewrite of (rows, length) tensors along an axis."""
    rank = len(x.shape)
    if not -rank <= axis < rank:
        raise ValueError(f"axis {axis} of a tensor of shape {x.shape}")
    axes = list(range(rank))
    axes[axis], axes[-1] = axes[-1], axes[axis]
    moved = g.permute(patterns.unshifted(g, x, axis % rank), axes)
    rows = g.reshape(moved, (x.size // x.shape[axis], x.shape[axis]))
    return g.permute(g.reshape(rewrite(g, rows), moved.shape), axes)


def _differences(g: Builder, x: Node) -> Node:
    """x_j - x_i for every j != i: (rows, n) -> (rows, n, n - 1)."""
    rows, n = x.shape
    others = np.array([[j for j in range(n) if j != i] for i in range(n)], dtype=np.int64)
    places = n * np.arange(rows)[:, None, None]
    return g.sum([g.select(x, places + others), g.select(x, places + np.arange(n)[:, None] + 0 * others)], [1, -1])


def _softmax(g: Builder, x: Node) -> Node:
    if x.id in g.masked:
        return _masked_softmax(g, x, ~g.masked[x.id])
    rows, n = x.shape
    if n == 1:
        return g.constant(np.ones(x.shape))
    if n == 2:  # of two entries, each is a sigmoid of the difference
        return g.function("sigmoid", g.matmul(x, np.array([[1.0, -1.0], [-1.0, 1.0]])))
    if rows * n * (n - 1) > g.tuning.pairs:
        first = g.select(x, entries(x.shape)[:, :1])
        powers = g.function("exp", g.sum([x, first], [1, -1]))
        return g.product(powers, reciprocal(g, g.reduce_sum(powers, [1])))
    total = g.reduce_sum(g.function("exp", _differences(g, x)), [2], keepdims=False)
    return reciprocal(g, g.scale(total, bias=1.0))


def _leading(mask: Mask) -> Index:
    """The place of the first entry of each row (rows, n) that is not -inf, (rows, 1).

    Raises:
        ValueError: a row has none.
    """
    if mask.all(1).any():
        raise ValueError("all entries of a row are -inf, of which the softmax is not a number: a mask must leave one")
    first: Index = mask.argmin(1)[:, None] + mask.shape[1] * np.arange(len(mask))[:, None]
    return first


def _masked_softmax(g: Builder, x: Node, visible: Mask) -> Node:
    """Softmax of the entries (rows, n) that are visible, 0 where they are not."""
    leading, counts = _leading(~visible), visible.sum(1)
    place = np.full(x.shape, -1, dtype=np.int64)
    parts: list[Node] = []

    def keep(rows: Mask, y: Node) -> None:
        """Note where the visible entries of some rows are."""
        place[visible & rows[:, None]] = sum(p.size for p in parts) + np.arange(y.size)
        parts.append(g.reshape(y, (y.size,)))

    # Rows of as many entries are softmaxes of their own, but many lengths are many nodes.
    lengths = np.unique(counts)
    alike = lengths if len(lengths) == 1 else lengths[lengths <= 2]
    for n in alike:
        keep(counts == n, _softmax(g, g.select(x, np.flatnonzero(visible & (counts == n)[:, None]).reshape(-1, n))))
    rest = ~np.isin(counts, alike)
    if rest.any():
        keep(rest, _ragged_softmax(g, x, visible & rest[:, None], leading))
    return g.select(g.concat(parts, 0), place)


def _ragged_softmax(g: Builder, x: Node, visible: Mask, leading: Index) -> Node:
    """Softmax of the visible entries of each row (rows, n), one row after the other; rows may have none."""
    size, widest, n = int(visible.sum()), int(visible.sum(1).max()), x.shape[1]
    own = np.flatnonzero(visible)
    rows = [np.flatnonzero(row) + n * r for r, row in enumerate(visible)]
    if size * (widest - 1) > g.tuning.pairs:
        powers = g.function("exp", g.sum([g.select(x, own), g.select(x, leading[own // n, 0])], [1, -1]))
        sums, first = np.full((len(rows), widest), -1, dtype=np.int64), 0
        for r, row in enumerate(rows):
            sums[r, : len(row)] = first + np.arange(len(row))
            first += len(row)
        kept = np.unique(own // n)
        total = g.reduce_sum(g.select(powers, sums[kept]), [1], keepdims=False)
        return g.product(powers, g.select(reciprocal(g, total), np.searchsorted(kept, own // n)))
    others = np.full((size, widest - 1), -1, dtype=np.int64)  # of each entry
    first = 0
    for row in rows:
        k = len(row)
        if k:
            others[first : first + k, : k - 1] = np.array([np.delete(row, i) for i in range(k)])
            first += k
    pairs = others >= 0
    exponents = g.sum([g.select(x, others[pairs]), g.select(x, np.broadcast_to(own[:, None], others.shape)[pairs])], [1, -1])
    powers = g.select(g.function("exp", exponents), np.where(pairs, np.cumsum(pairs).reshape(pairs.shape) - 1, -1))
    return reciprocal(g, g.scale(g.reduce_sum(powers, [1], keepdims=False), bias=1.0))


def _log_softmax(g: Builder, x: Node) -> Node:
    """-log(1 + sum_{j != i} exp(x_j - x_i)) = -softplus(log(sum_{j != i} exp(x_j - x_i))): <= 0 whatever the relaxation."""
    rows, n = x.shape
    if x.id in g.masked or rows * n * (n - 1) > g.tuning.pairs:
        return g.sum([x, _log_of_sum(g, x)], [1, -1])
    if n == 1:
        return g.constant(np.zeros(x.shape))
    if n == 2:
        return g.scale(g.function("softplus", g.matmul(x, np.array([[-1.0, 1.0], [1.0, -1.0]]))), -1.0)
    others = _log_of_sum(g, g.reshape(_differences(g, x), (rows * n, n - 1)))
    return g.scale(g.function("softplus", g.reshape(others, (rows, n))), -1.0)


# Normalisation


def batch_norm(
    g: Builder, x: Node, mean: Array | None, variance: Array | None, eps: float, weight: Array | None = None, bias: Array | None = None
) -> Node:
    """(x - mean) / sqrt(variance + eps) * weight + bias with constants per channel, axis 1; None means 0 and, of a factor, 1."""
    centre, spread, factor, shift = (_per_channel(x, v) for v in (mean, variance, weight, bias))
    ones = np.array(1.0)
    scale = Constant(ones if factor is None else factor) / (Constant(ones if spread is None else spread) + eps).sqrt()
    # The mean goes first, on its own: subtracted inside the shift it could cancel, and float64 would round it.
    return g.scale(x if centre is None else g.scale(x, bias=-centre), scale, shift)


def group_norm(g: Builder, x: Node, groups: int, eps: float, weight: Array | None = None, bias: Array | None = None) -> Node:
    """Every group of channels, axis 1, normalised as by `layer_norm`, then times weight plus bias per channel."""
    rows = g.reshape(x, (x.shape[0], groups, x.size // (x.shape[0] * groups)))
    y = g.reshape(layer_norm(g, rows, [2], eps), x.shape)
    return g.scale(y, _per_channel(x, weight), _per_channel(x, bias))


def _per_channel(x: Node, values: Array | None) -> Array | None:
    """Values (channels,) as they broadcast against (batch, channels, *space)."""
    return None if values is None else values.reshape(-1, *[1] * (len(x.shape) - 2))


def layer_norm(
    g: Builder, x: Node, axes: Sequence[int], eps: float, weight: ArrayLike | None = None, bias: ArrayLike | None = None
) -> Node:
    """(x - mean) / sqrt(variance + eps) * weight + bias, mean and variance over some axes >= 0."""
    centred = g.sum([x, mean(g, x, axes)], [1, -1])
    variance = mean(g, g.function("square", centred), axes)
    return g.scale(g.product(centred, g.function("rsqrt", g.scale(variance, bias=eps))), weight, bias)


def rms_norm(g: Builder, x: Node, axes: Sequence[int], eps: float, weight: ArrayLike | None = None) -> Node:
    """x / sqrt(mean of squares + eps) * weight, the mean over some axes >= 0."""
    squares = mean(g, g.function("square", x), axes)
    return g.scale(g.product(x, g.function("rsqrt", g.scale(squares, bias=eps))), weight)
