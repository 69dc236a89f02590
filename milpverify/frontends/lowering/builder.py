"""Grows a graph of core operators: what every frontend lowers with.

The rewrites are exact in real arithmetic; what they have to compute with constants (a quotient, the reciprocal of a count) is done by
`constants.Constant`, whose mark the affine operators keep.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from milpverify.config import MOST_ENTRIES
from milpverify.errors import InvalidModel
from milpverify.frontends.lowering import masks
from milpverify.frontends.lowering.constants import Array, Constant, weights
from milpverify.frontends.lowering.masks import Mask
from milpverify.frontends.lowering.rule import LoweringTuning
from milpverify.frontends.lowering.tidy import tidy
from milpverify.functions.catalogue import catalogue
from milpverify.graph import Graph, Node, TensorSpec
from milpverify.operators import (
    Concat,
    Conv,
    Elementwise,
    Input,
    Linear,
    Operator,
    Permute,
    Product,
    ReduceSum,
    Reshape,
    Scale,
    Select,
    Shape,
    Sum,
    Transposed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from milpverify.functions.catalogue import Function

Index = NDArray[np.int64]

_most: ContextVar[int] = ContextVar("most entries", default=MOST_ENTRIES)


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """No tensor that is lowered or folded within may have more entries."""
    token = _most.set(count)
    try:
        yield
    finally:
        _most.reset(token)


class Builder:
    """Appends nodes to a graph whose node 0 is the flat input x (nx,); every method returns the node that holds its result.

    Nodes are called after `name`, the source tensor in work; `finish` tells apart the one that holds it. `masked` says which entries of
    a node stand for -inf, as in `masks`. What does not fit, or is too large, is a ValueError; the rewrites are exact in the reals.
    """

    def __init__(self, nx: int, tuning: LoweringTuning = LoweringTuning()) -> None:
        self.name, self.tuning = "", tuning
        self.nodes = [Node(0, Input(), (), (nx,), "x")]
        self.means: set[int] = set()  # the nodes whose coefficient means the reciprocal of a count, however it is rounded
        self.masked: dict[int, Mask] = {}
        self.masks: set[int] = set()  # of nodes whose zeros and ones stand for false and true
        self.softmaxes: dict[int, Node] = {}  # nodes that are the softmax of others along the last axis, for what comes of their sum, 1

    def add(self, op: Operator, inputs: Sequence[Node], shape: Iterable[int]) -> Node:
        """Append one operation; ValueError where it is too large, or reads entries that are -inf and may not."""
        check_size(shape := tuple(shape))
        node = Node(len(self.nodes), op, tuple(i.id for i in inputs), tuple(map(int, shape)), f"{self.name} (part)")
        if self.masked and any(i.id in self.masked for i in inputs):
            self.masked |= {node.id: mask} if (mask := masks.behind(node, inputs, self.masked)) is not None else {}
        self.nodes.append(node)
        return node

    def finish(self, node: Node, since: int) -> Node:
        """Call a node by the source tensor that it holds, if it is new: not among the first `since` nodes, and without -inf."""
        if node.id < since or node.id in self.masked:
            return node
        self.nodes[node.id] = replace(self.nodes[node.id], name=self.name)
        return self.nodes[node.id]

    def mark(self, since: int, rounded: int) -> None:
        """Let the coefficients of all affine nodes but the first `since` nodes be rounded so much more."""
        for i in range(since, len(self.nodes)) if rounded else ():
            op = self.nodes[i].op
            if isinstance(op, Linear | Conv | Transposed | Scale | Select):
                self.nodes[i] = replace(self.nodes[i], op=replace(op, rounded=op.rounded + rounded))

    # Moving entries

    def reshape(self, x: Node, shape: Iterable[int]) -> Node:
        """The same entries in another shape."""
        target = tuple(map(int, shape))
        if math.prod(target) != x.size:
            raise ValueError(f"{x.shape} cannot be reshaped to {target}")
        return self.add(Reshape(x.shape, target), [x], target)

    def permute(self, x: Node, axes: Sequence[int]) -> Node:
        """The axes in another order; only a reshape where just axes of length 1 move."""
        shape = [x.shape[a] for a in axes]
        moved = [a for a in axes if x.shape[a] != 1]
        if moved == sorted(moved):
            return self.reshape(x, shape)
        return self.add(Permute(tuple(axes)), [x], shape)

    def transpose(self, x: Node) -> Node:
        """The last two axes swapped."""
        n = len(x.shape)
        return self.permute(x, [*range(n - 2), n - 1, n - 2])

    def select(self, x: Node, index: Index, bias: Array | None = None) -> Node:
        """y_i = x[index_i] of the flattened x, 0 where index_i is -1, plus the bias; a reshape where that is all it is."""
        if bias is None and index.size == x.size and np.array_equal(index.reshape(-1), np.arange(x.size)):
            return self.reshape(x, index.shape)
        check_size(index.shape)
        places = torch.from_numpy(np.array(index, dtype=np.int64, order="C"))
        return self.add(Select(places, x.shape, None if bias is None else weights(bias)), [x], index.shape)

    def constant(self, value: ArrayLike | Constant) -> Node:
        """A constant, as a node that reads nothing of x."""
        known, hidden = masks.split(Constant.of(value))
        since = len(self.nodes)
        node = self.select(self.nodes[0], np.full(known.value.shape, -1, dtype=np.int64), known.value)
        self.mark(since, known.rounded)
        return self.hide(self.nodes[node.id], hidden)

    def hide(self, x: Node, hidden: Mask | None) -> Node:
        """x with -inf in some of its entries, with numpy's broadcasting; None for none."""
        if hidden is None or not hidden.any():
            return x
        x = self.broadcast(x, np.broadcast_shapes(x.shape, hidden.shape))
        node = self.add(Reshape(x.shape, x.shape), [x], x.shape)
        self.masked[node.id] = np.broadcast_to(hidden, x.shape) | self.masked.get(x.id, False)
        return node

    def padded(self, x: Node, index: Index, value: float) -> Node:
        """The entries of the flattened x that an index names, and a number, or -inf, where it is -1."""
        absent = index < 0
        if value == -math.inf:
            return self.hide(self.select(x, index), absent)
        return self.select(x, index, np.where(absent, value, 0.0) if value and absent.any() else None)

    def filled(self, x: Node, value: float) -> Node:
        """x with a number in the place of -inf."""
        return self.padded(x, np.where(self.masked[x.id], -1, entries(x.shape)), value)

    def broadcast(self, x: Node, shape: Shape) -> Node:
        """Numpy's broadcasting to a shape."""
        return x if x.shape == shape else self.select(x, np.broadcast_to(entries(x.shape), shape))

    def concat(self, xs: Sequence[Node], axis: int) -> Node:
        """Joined along an axis >= 0."""
        if len(xs) == 1:
            return xs[0]
        rests = {x.shape[:axis] + x.shape[axis + 1 :] for x in xs}
        if len(rests) != 1 or not all(axis < len(x.shape) for x in xs):
            raise ValueError(f"shapes {', '.join(str(x.shape) for x in xs)} cannot be joined along axis {axis}")
        sizes = tuple(x.shape[axis] for x in xs)
        return self.add(Concat(axis, sizes), xs, (*xs[0].shape[:axis], sum(sizes), *xs[0].shape[axis + 1 :]))

    # Arithmetic

    def scale(self, x: Node, weight: ArrayLike | Constant | None = None, bias: ArrayLike | Constant | None = None) -> Node:
        """weight * x + bias with numpy's broadcasting; factors of 1 and terms of 0 vanish."""
        w, b = (None if v is None else Constant.of(v) for v in (weight, bias))
        x = self.broadcast(x, np.broadcast_shapes(x.shape, *(v.value.shape for v in (w, b) if v is not None)))
        w = None if w is None or (not w.rounded and np.all(w.value == 1)) else w
        b = None if b is None or np.all(b.value == 0) else b
        if w is None and b is None:
            return x
        rounded = max(v.rounded for v in (w, b) if v is not None)
        factor, term = (None if v is None else weights(v.value) for v in (w, b))
        return self.add(Scale(factor, term, rounded), [x], x.shape)

    def sum(self, xs: Sequence[Node], signs: Sequence[int] | None = None) -> Node:
        """The signed sum, with numpy's broadcasting."""
        shape = np.broadcast_shapes(*(x.shape for x in xs))
        return self.add(Sum(tuple(signs or [1] * len(xs))), [self.broadcast(x, shape) for x in xs], shape)

    def reduce_sum(self, x: Node, axes: Sequence[int], keepdims: bool = True) -> Node:
        """The sum over some axes >= 0."""
        if not axes:
            return x
        kept = [1 if a in axes else n for a, n in enumerate(x.shape)]
        y = self.add(ReduceSum(tuple(axes), x.shape), [x], kept)
        return y if keepdims else self.reshape(y, [n for a, n in enumerate(x.shape) if a not in axes])

    def matmul(self, x: Node, weight: Array | Constant) -> Node:
        """numpy's x @ weight."""
        w = (constant := Constant.of(weight)).value
        if w.ndim == 0 or not x.shape or x.shape[-1] != w.shape[max(0, w.ndim - 2)]:
            raise ValueError(f"shapes {x.shape} and {w.shape} cannot be multiplied")
        if w.ndim == 1:
            y = self.matmul(x, constant.moved(w[:, None]))
            return self.reshape(y, y.shape[:-1])
        batch = w.shape[:-2]
        if math.prod(batch) == 1 and len(batch) + 2 <= max(2, len(x.shape)):
            matrix = w.reshape(w.shape[-2], w.shape[-1]).T
            return self.add(Linear(weights(matrix), rounded=constant.rounded), [x], (*x.shape[:-1], w.shape[-1]))
        if len(x.shape) == 1:
            y = self.matmul(self.reshape(x, (1, x.size)), constant)
            return self.reshape(y, (*y.shape[:-2], y.shape[-1]))
        # One matrix per batch entry: a convolution of kernel 1 with one group per entry.
        batch = np.broadcast_shapes(batch, x.shape[:-2])
        groups, p, n, m = math.prod(batch), x.shape[-2], x.shape[-1], w.shape[-1]
        kernels = np.broadcast_to(w, (*batch, n, m)).swapaxes(-1, -2).reshape(groups * m, n, 1)
        columns = self.reshape(self.transpose(self.broadcast(x, (*batch, p, n))), (1, groups * n, p))
        y = self.conv(columns, constant.moved(kernels), groups=groups)
        return self.transpose(self.reshape(y, (*batch, m, p)))

    def conv(
        self,
        x: Node,
        weight: Array | Constant,
        stride: Sequence[int] | None = None,
        pads: Sequence[tuple[int, int]] | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
    ) -> Node:
        """Convolution in 1, 2 or 3 dimensions on (batch, channels, *space), as in `operators.Conv`."""
        constant = Constant.of(weight)
        kernels = constant.value
        n = len(x.shape) - 2
        stride, dilation, pads = tuple(stride or [1] * n), tuple(dilation or [1] * n), tuple(pads or [(0, 0)] * n)
        if kernels.ndim != n + 2 or x.shape[1] != kernels.shape[1] * groups or kernels.shape[0] % groups:
            raise ValueError(f"a kernel of shape {kernels.shape} in {groups} group(s) does not fit an input of shape {x.shape}")
        space = [
            (s + sum(p) - d * (k - 1) - 1) // st + 1
            for s, p, d, k, st in zip(x.shape[2:], pads, dilation, kernels.shape[2:], stride, strict=True)
        ]
        if min(space) < 1:
            raise ValueError(f"a kernel of shape {kernels.shape} is larger than its input of shape {x.shape}")
        op = Conv(weights(kernels), stride, pads, dilation, groups, x.shape, rounded=constant.rounded)
        return self.add(op, [x], (x.shape[0], kernels.shape[0], *space))

    def conv_transposed(
        self,
        x: Node,
        weight: Array,
        stride: Sequence[int],
        dilation: Sequence[int],
        crops: Sequence[tuple[int, int]],
        groups: int,
    ) -> Node:
        """The transpose of a convolution with kernels (in, out / groups, *kernel) that begins at `crops`, which are not negative there."""
        taps = zip(x.shape[2:], stride, dilation, weight.shape[2:], crops, strict=True)
        space = [(n - 1) * s + d * (k - 1) + 1 - sum(crop) for n, s, d, k, crop in taps]
        if min(space) < 1:
            raise ValueError(f"nothing is left of a transposed convolution of a shape {x.shape} where {crops} are cut off")
        shape = (x.shape[0], weight.shape[1] * groups, *space)
        conv = Conv(weights(weight), tuple(stride), tuple(crops), tuple(dilation), groups, shape)
        return self.add(Transposed(conv), [x], shape)

    # Nonlinearities

    def apply(self, function: Function, x: Node) -> Node:
        """A function of the catalogue, elementwise."""
        if x.id in self.masked:
            limit = masks.limit(function)
            return self.filled(self.hide(self.apply(function, self.filled(x, 0.0)), self.masked[x.id]), limit)
        return self.add(Elementwise(function), [x], x.shape)

    def function(self, name: str, x: Node, **parameters: float) -> Node:
        """A function of the catalogue by its name and parameters, elementwise."""
        return self.apply(catalogue()[name].bind(**parameters), x)

    def product(self, a: Node, b: Node) -> Node:
        """a * b with numpy's broadcasting; a square where both are one node."""
        if a.id == b.id:
            return self.function("square", a)
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self.add(Product(), [self.broadcast(a, shape), self.broadcast(b, shape)], shape)

    def matmul_nodes(self, a: Node, b: Node) -> Node:
        """numpy's a @ b of two nodes: products, and their sums over the inner axis."""
        if not a.shape or not b.shape or a.shape[-1] != b.shape[max(0, len(b.shape) - 2)]:
            raise ValueError(f"shapes {a.shape} and {b.shape} cannot be multiplied")
        if len(a.shape) == 1:
            y = self.matmul_nodes(self.reshape(a, (1, a.size)), b)
            return self.reshape(y, (*y.shape[:-2], y.shape[-1]))
        if len(b.shape) == 1:
            y = self.matmul_nodes(a, self.reshape(b, (b.size, 1)))
            return self.reshape(y, y.shape[:-1])
        # (..., n, 1, k) * (..., 1, m, k), summed over k
        left = self.reshape(a, (*a.shape[:-1], 1, a.shape[-1]))
        columns = self.transpose(b)
        right = self.reshape(columns, (*columns.shape[:-2], 1, *columns.shape[-2:]))
        products = self.product(left, right)
        return self.reduce_sum(products, [len(products.shape) - 1], keepdims=False)

    def relu(self, x: Node) -> Node:
        """max(x, 0)."""
        return self.function("relu", x)

    def larger(self, a: Node, b: Node, sign: int = 1) -> Node:
        """max(a, b) = a + relu(b - a) for sign 1, min(a, b) = a - relu(a - b) for sign -1."""
        if a.id in self.masked or b.id in self.masked:
            shape = np.broadcast_shapes(a.shape, b.shape)
            a, b = (self.reshape(self.broadcast(v, shape), (1, math.prod(shape))) for v in (a, b))
            return self.extremum(self.concat([a, b], 1), np.arange(2 * a.size).reshape(2, -1).T, shape, sign)
        return self.sum([a, self.relu(self.sum([b, a], [sign, -sign]))], [1, sign])

    def larger_constant(self, x: Node, c: Array, sign: int = 1) -> Node:
        """max(x, c) = c + relu(x - c) for sign 1, min(x, c) = c - relu(c - x) for sign -1."""
        if c.size and np.all(c == c.flat[0]):
            bound = float(c.flat[0])
            x = self.broadcast(x, np.broadcast_shapes(x.shape, c.shape))
            return self.clip(x, bound, math.inf) if sign > 0 else self.clip(x, -math.inf, bound)
        if np.isneginf(c).any():
            return self.larger(x, self.constant(c), sign)
        return self.scale(self.relu(self.scale(x, sign, -sign * c)), sign, c)

    def clip(self, x: Node, lower: float, upper: float) -> Node:
        """min(max(x, lower), upper); an infinite bound is none."""
        if not lower <= upper:
            raise ValueError(f"the bounds to clip to are [{lower}, {upper}]")
        if lower == upper:
            return self.constant(np.full(x.shape, lower))
        if (lower, upper) == (-math.inf, math.inf):
            return x
        if (lower, upper) == (0.0, math.inf):
            return self.relu(x)
        return self.function("clip", x, min=lower, max=upper)

    def extremum(self, x: Node, rows: Index, shape: Iterable[int], sign: int = 1) -> Node:
        """The largest (sign 1) or smallest (sign -1) entry of each of some sets, by a balanced tournament.

        A tournament of k entries costs ceil(log2 k) elementwise nodes and k - 1 comparisons, fewer where sets share pairs.

        Args:
            x: (planes, entries), each plane treated alike.
            rows: (sets, k), the entries of a plane that each set holds; repeated entries cost nothing.
            shape: of the result, with planes * sets entries.
        """
        if x.id in self.masked:
            sets, hidden = masks.present(self.masked[x.id], rows, sign)
            return self.hide(self.extremum(self.reshape(self.filled(x, 0.0), (1, x.size)), sets, shape), hidden.reshape(*shape))
        while rows.shape[1] > 1:
            rows = np.concatenate([rows, rows[:, -1:]], 1) if rows.shape[1] % 2 else rows
            pairs = np.sort(rows.reshape(-1, 2), axis=1)
            unique, place = np.unique(pairs, axis=0, return_inverse=True)
            rows = place.reshape(len(rows), -1)
            real = unique[:, 0] != unique[:, 1]  # an entry against itself, from padding, passes as it is
            low, first, second = (self._columns(x, c) for c in (unique[:, 0], unique[real, 0], unique[real, 1]))
            if not real.any():
                x = low
                continue
            first = low if real.all() else first
            gain = self.relu(self.sum([second, first], [sign, -sign]))
            x = self.sum([low, self._columns(gain, np.where(real, np.cumsum(real) - 1, -1))], [1, sign])
        return self.reshape(self._columns(x, rows[:, 0]), shape)

    def _columns(self, x: Node, columns: Index) -> Node:
        """Columns of x (planes, entries); -1 reads 0."""
        planes, size = x.shape
        return self.select(x, np.where(columns < 0, -1, columns + size * np.arange(planes)[:, None]))

    # The graph

    def graph(self, outputs: Sequence[Node], inputs: tuple[TensorSpec, ...], specs: tuple[TensorSpec, ...]) -> Graph:
        """The finished graph, whose y is the outputs flattened and joined."""
        flat = [self.reshape(node, (node.size,)) for node in outputs]
        if any(node.id in self.masked for node in flat):
            raise InvalidModel("an output of the network holds -inf; only numbers can be verified")
        self.name = ", ".join(spec.name for spec in specs)
        end = self.concat(flat, 0)
        nodes = tidy(self.nodes[: end.id + 1], self.means)
        return Graph(nodes, len(nodes) - 1, inputs, specs)


def check_size(shape: Iterable[int]) -> None:
    """Refuse a tensor that would not fit into memory, before it is made.

    Raises:
        ValueError: it has a negative length or too many entries.
    """
    sizes, most = [int(n) for n in shape], _most.get()
    if min(sizes, default=0) < 0 or math.prod(sizes) > most:
        raise ValueError(f"a tensor of shape {tuple(sizes)} is too large: at most {most} entries are allowed (max_entries, --max-entries)")


def entries(shape: Shape) -> Index:
    """The places of a tensor's entries in its flattened form, in its shape."""
    check_size(shape)
    return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
