"""Products that normalise, found in a grown graph whatever it was written as: layer, group, instance, RMS and L2 normalisation.

In a * b let b be at most 1 / sqrt(k S + e) with S the sum of the squares of a vector s, k > 0 and e >= 0, and let a be w s_i for one of its
entries. Then S >= r s_i^2, so that |a| b <= |a| / sqrt((k r / w^2) a^2 + e). Here r = 1, and r = n / (n - 1) where the n entries of s are
centred, for then those but s_i sum up to -s_i and their squares to s_i^2 / (n - 1) at least (Samuelson's inequality). The population
variance, k = 1 / n, gives sqrt(n - 1); the unbiased one (n - 1) / sqrt(n); the mean of squares sqrt(n); their sum 1.

Constants are taken as what the network computes with, rounded outwards; what is not recognised to the letter has no such bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.config import check_time
from milpverify.frontends.lowering.constants import uniform
from milpverify.operators import Elementwise, Norm, Permute, Product, ReduceSum, Reshape, Scale, Select, Sum

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from milpverify.graph import Node

    Index = NDArray[np.int64]

_SMALL: Final = 1e-100
"""An offset below counts as none."""


def normalisations(nodes: Sequence[Node], means: AbstractSet[int]) -> list[Node]:
    """The nodes, with `Product.norm` where a product normalises.

    Args:
        means: the nodes that take the mean of what the `ReduceSum` before them sums up: their coefficient means 1 / n, however rounded.
    """
    found, search = list(nodes), _Search(nodes, means)
    for node in nodes:
        if isinstance(node.op, Product):
            for a, b in (node.inputs, node.inputs[::-1]):
                if (norm := search.norm(a, b)) is not None:
                    found[node.id] = replace(node, op=Product(norm), inputs=(a, b))
                    break
    return found


@dataclass(frozen=True, eq=False)
class _Copy:
    """Entry i of a node as a factor times entry index[i] of node `source`; the factors' sizes are between `least` and `most`."""

    source: int
    index: Index
    least: Fraction
    most: Fraction


@dataclass(frozen=True, eq=False)
class _Reciprocal:
    """b_i <= 1 / sqrt(slope S_j + floor) for j = index[i], an entry of a `ReduceSum`."""

    total: int
    index: Index
    slope: Fraction
    floor: Fraction


class _Search:
    def __init__(self, nodes: Sequence[Node], means: AbstractSet[int]) -> None:
        self.nodes, self.means = nodes, means
        self._same: list[int] = []
        self._known: dict[tuple[object, ...], int] = {}

    def norm(self, a: int, b: int) -> Norm | None:
        """What is known of a product, if b is the reciprocal of a norm of what a is an entry of."""
        if (below := self._reciprocal(b)) is None:
            return None
        check_time()
        (squares,) = self.nodes[below.total].inputs
        *_, lowest = self._copies(squares, factors=False)
        if not self.nodes[lowest.source].applies("square"):
            return None
        group = self._groups(below.total)[np.argsort(lowest.index, kind="stable")] if _is_order(lowest.index) else None
        if group is None:
            return None
        entries = {self._stand_in(copy.source): copy for copy in self._copies(self.nodes[lowest.source].inputs[0])}
        for own in self._copies(a):
            s = entries.get(self._stand_in(own.source))
            if s is None or not s.least:
                continue
            size = self.nodes[own.source].size
            if not np.isin(below.index * size + own.index, group * size + s.index).all():
                return None
            share = below.slope * s.least**2 * self._centred(own.source, s.index, group) / own.most**2 if own.most else None
            return _norm(share, below.floor)
        return None

    def _reciprocal(self, b: int) -> _Reciprocal | None:
        """What b is the reciprocal root of, if it is one."""
        chain, index = [], np.arange(self.nodes[b].size)
        while not isinstance(op := self.nodes[b].op, ReduceSum):
            if (moved := _moved(self.nodes[b])) is not None:
                index = moved[index]
            elif isinstance(op, Scale | Elementwise):
                chain.append(op)
            elif not self._is_guarded(self.nodes[b]):
                return None
            b = self.nodes[b].inputs[0]
        # From below, what is known is: value >= (slope S + floor)^power, and for power -1/2 that it is at most that.
        slope, floor, power = Fraction(1), Fraction(0), Fraction(1)
        for op in reversed(chain):
            if isinstance(op, Scale):
                weight, bias = uniform(op.weight, 1), uniform(op.bias, 0)
                if weight is None or bias is None or weight <= 0 or bias < 0 or (bias and power < 0):
                    return None
                off = Fraction(op.rounded, 2**52)
                if off >= 1:
                    return None
                weight, bias = weight * (1 + off if power < 0 else 1 - off), bias * (1 - off)
                factor = weight if power == 1 else weight ** (2 if power > 0 else -2)
                slope, floor = slope * factor, floor * factor + (bias if power == 1 else bias**2)
                continue
            assert isinstance(op, Elementwise)
            name, parameters = op.function.name, dict(op.function.parameters)
            if name == "sqrt" and power == 1:
                power = Fraction(1, 2)
            elif (name, power) in (("rsqrt", 1), ("reciprocal", Fraction(1, 2))):
                power = Fraction(-1, 2)
            elif power < 0 or not (name == "relu" or (name == "clip" and parameters["max"] == math.inf)):
                return None
        return _Reciprocal(b, index, slope, floor) if power < 0 else None

    def _is_guarded(self, node: Node) -> bool:
        """Whether a node is its first input plus 1 - sign of that, which is 0 or more: 1 where a length is 0."""
        if not isinstance(node.op, Sum) or node.op.signs != (1, 1):
            return False
        first, second = node.inputs
        rest = self.nodes[second]
        if not isinstance(rest.op, Scale) or uniform(rest.op.weight, 1) != -1 or uniform(rest.op.bias, 0) != 1 or rest.op.rounded:
            return False
        sign = self.nodes[rest.inputs[0]]
        return sign.applies("sign") and sign.inputs == (first,)

    def _copies(self, i: int, factors: bool = True) -> Iterator[_Copy]:
        """A node as a copy of itself, of what it copies, and so on; with factors, as multiples."""
        index, least, most = np.arange(self.nodes[i].size), Fraction(1), Fraction(1)
        while True:
            yield _Copy(i, index, least, most)
            op = self.nodes[i].op
            if (moved := _moved(self.nodes[i])) is not None:
                index = moved[index]
            elif factors and isinstance(op, Scale) and op.bias is None and op.weight is not None:
                sizes, off = op.weight.abs(), Fraction(op.rounded, 2**52)
                least, most = least * Fraction(sizes.min().item()) * (1 - off), most * Fraction(sizes.max().item()) * (1 + off)
                if off >= 1:
                    return
            else:
                return
            (i,) = self.nodes[i].inputs

    def _groups(self, total: int) -> Index:
        """Which entry of a `ReduceSum` each entry of its input is added to, flat."""
        op = self.nodes[total].op
        assert isinstance(op, ReduceSum)
        kept = [1 if a in op.axes else n for a, n in enumerate(op.in_shape)]
        return np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), op.in_shape).reshape(-1)

    def _centred(self, i: int, index: Index, group: Index) -> Fraction:
        """r: n / (n - 1) if the entries of node i at `index`, in their groups of n, are an entry less the mean of the group, else 1."""
        order = np.argsort(group, kind="stable")
        n = int(np.count_nonzero(group == group[0]))
        op = self.nodes[i].op
        if n < 2 or not (isinstance(op, Sum) and op.signs == (1, -1)):
            return Fraction(1)
        members = index[order].reshape(-1, n)
        first, second = self.nodes[i].inputs
        *_, mean = self._copies(second, factors=False)
        scale = self.nodes[mean.source].op
        if not isinstance(scale, Scale) or scale.bias is not None:
            return Fraction(1)
        if mean.source not in self.means and (scale.rounded or uniform(scale.weight, 1) != Fraction(1, n)):
            return Fraction(1)
        total, place = self.nodes[mean.source].inputs[0], mean.index
        *_, sums = self._copies(total, factors=False)
        if not isinstance(self.nodes[sums.source].op, ReduceSum):
            return Fraction(1)
        place = sums.index[place][members]
        (summed,) = self.nodes[sums.source].inputs
        known = {self._stand_in(copy.source): copy.index for copy in self._copies(summed, factors=False)}
        for own in self._copies(first, factors=False):
            if (theirs := known.get(self._stand_in(own.source))) is not None:
                added = self._groups(sums.source)
                rows = theirs[np.argsort(added, kind="stable")].reshape(self.nodes[sums.source].size, -1)
                alike = rows.shape[1] == n and bool((place == place[:, :1]).all())
                alike = alike and np.array_equal(np.sort(rows[place[:, 0]], 1), np.sort(own.index[members], 1))
                return Fraction(n, n - 1) if alike else Fraction(1)
        return Fraction(1)

    def _stand_in(self, i: int) -> int:
        """The first node that says what node i says: the same affine operator of the same."""
        for node in self.nodes[len(self._same) : i + 1]:
            key = self._key(node, tuple(self._same[k] for k in node.inputs))
            self._same.append(node.id if key is None else self._known.setdefault(key, node.id))
        return self._same[i]

    def _key(self, node: Node, inputs: tuple[int, ...]) -> tuple[object, ...] | None:
        """What an operator that moves, adds or scales entries says; None of others, and where it is rounded and no mean."""
        kind, own = type(node.op), (inputs, node.shape)
        match node.op:
            case Sum(signs=said) | ReduceSum(axes=said) | Permute(axes=said):
                return kind, said, *own
            case Reshape():
                return kind, *own
            case Select(bias=None, index=index):
                return kind, index.numpy().tobytes(), *own
            case Scale(weight=weight, bias=bias, rounded=rounded) if not rounded or node.id in self.means:
                values = (None if t is None else (tuple(t.shape), t.numpy().tobytes()) for t in (weight, bias))
                return kind, rounded, *values, *own
            case _:
                return None


def _norm(share: Fraction | None, floor: Fraction) -> Norm | None:
    """The bound by |a| / sqrt(share a^2 + floor), rounded outwards."""
    if share is None or not 1e-60 < share < 1e60:
        return None
    low = float(floor) * (1 - 2.0**-50)
    return Norm(1 / math.sqrt(float(share)) * (1 + 2.0**-49), low if _SMALL < low < math.inf else 0.0)


def _moved(node: Node) -> Index | None:
    """Which entry of its input each entry of a node is; None where it is no copy."""
    op = node.op
    if isinstance(op, Reshape):
        return np.arange(node.size)
    if isinstance(op, Permute):
        shape = [0] * len(node.shape)
        for place, axis in enumerate(op.axes):
            shape[axis] = node.shape[place]
        return np.arange(node.size).reshape(shape).transpose(op.axes).reshape(-1)
    if isinstance(op, Select) and op.copies:
        return op.index.numpy().reshape(-1)
    return None


def _is_order(index: Index) -> bool:
    """Whether every entry is read once."""
    return np.array_equal(np.sort(index), np.arange(len(index)))
