"""Einstein's summation for every frontend: products of tensors with named axes, summed over the axes that the result does not name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from milpverify.frontends.lowering import composites
from milpverify.frontends.lowering.builder import Builder, entries
from milpverify.frontends.lowering.constants import Array
from milpverify.graph import Node

Label = Hashable
Axes = tuple[Label, ...]
Value = Node | Array


def einsum(g: Builder, equation: str, values: Sequence[Value]) -> Node:
    """numpy's einsum(equation, *values), at least one value a node.

    Raises:
        ValueError: the equation makes no sense, or does not fit the values.
    """
    axes, target = parsed(equation, [len(v.shape) for v in values])
    return contract(g, values, axes, target)


def parsed(equation: str, ranks: Sequence[int]) -> tuple[list[Axes], Axes]:
    """The names of the axes of every value and of the result; those of an ellipsis are numbers, counted from its end.

    Without an arrow the result names what occurs once, in alphabetical order behind the ellipsis. An ellipsis that it leaves out is summed.

    Raises:
        ValueError: the equation is about another number of values, or names an axis of the result twice.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ValueError(f"the equation '{equation}' is about {len(terms)} tensors; there are {len(ranks)}")
    axes = [_expanded(equation, term, rank) for term, rank in zip(terms, ranks, strict=True)]
    widest = max((_among_ellipsis(a) for a in axes), key=len)
    if arrow:
        head, dots, tail = right.partition("...")
        target = (*head, *(widest if dots else ()), *tail)
    else:
        counts = Counter(label for a in axes for label in a if isinstance(label, str))
        target = (*widest, *sorted(label for label, n in counts.items() if n == 1))
    _check_letters(equation, [label for label in target if isinstance(label, str)])
    if len(set(target)) < len(target):
        raise ValueError(f"the equation '{equation}' names an axis of the result twice")
    return axes, target


def _expanded(equation: str, term: str, rank: int) -> Axes:
    head, dots, tail = term.partition("...")
    _check_letters(equation, head + tail)
    rest = rank - len(head) - len(tail)
    if rest < 0 or (rest and not dots):
        raise ValueError(f"the equation '{equation}' does not fit a tensor with {rank} axes")
    return (*head, *range(-rest, 0), *tail)


def _check_letters(equation: str, labels: Sequence[str]) -> None:
    if not all(label.isalpha() for label in labels):
        raise ValueError(f"the equation '{equation}' names axes by what are no letters")


def _among_ellipsis(axes: Axes) -> Axes:
    return tuple(label for label in axes if not isinstance(label, str))


@dataclass(frozen=True)
class _Factor:
    """A tensor with named axes, no two alike."""

    value: Value
    axes: Axes

    def lengths(self) -> dict[Label, int]:
        return dict(zip(self.axes, self.value.shape, strict=True))

    def arranged(self, g: Builder, axes: Axes) -> Value:
        """With these axes in this order, of length 1 where it has none."""
        order = [self.axes.index(a) for a in axes if a in self.axes]
        if isinstance(self.value, Node) and axes == self.axes:
            return self.value  # itself, so that a square is known for one
        moved = g.permute(self.value, order) if isinstance(self.value, Node) else self.value.transpose(order)
        lengths = self.lengths()
        shape = [lengths.get(a, 1) for a in axes]
        return g.reshape(moved, shape) if isinstance(moved, Node) else moved.reshape(shape)


def contract(g: Builder, values: Sequence[Value], axes: Sequence[Axes], target: Axes) -> Node:
    """The sum over all axes that `target` does not name of the product of the values, at least one of which is a node.

    Constants are multiplied with what depends on x first: that is affine. An axis of length 1 is broadcast.

    Args:
        axes: the names of the axes of every value.
        target: those of the result, which must occur among them.

    Raises:
        ValueError: `target` names an axis that no value has, or an axis has several lengths.
    """
    factors = [_diagonal(g, value, names) for value, names in zip(values, axes, strict=True)]
    if missing := set(target).difference(*(f.axes for f in factors)):
        raise ValueError(f"the result has the axes {sorted(map(str, missing))}, which no factor has")
    lengths: dict[Label, int] = {}
    for factor in factors:
        for axis, n in factor.lengths().items():
            if n != 1 and lengths.get(axis, 1) not in (1, n):
                raise ValueError(f"the axis '{axis}' has the lengths {lengths[axis]} and {n}")
            lengths[axis] = max(lengths.get(axis, 1), n)
    # Of an axis of length 1 that is broadcast nothing is left, so that only whole ones are shared.
    factors = [_squeezed(g, f, {a for a, n in f.lengths().items() if n < lengths[a]}) for f in factors]
    nodes = [f for f in factors if isinstance(f.value, Node)]
    first = nodes[0]
    rest = [f for f in factors if not isinstance(f.value, Node)] + nodes[1:]
    for i, factor in enumerate(rest):
        wanted = set(target).union(*(f.axes for f in rest[i + 1 :]))
        first = _product(g, first, factor, wanted)
    first = _summed(g, first, set(target))
    assert isinstance(first.value, Node)
    present = tuple(a for a in target if a in first.axes)
    result = _Factor(first.arranged(g, present), present).arranged(g, target)
    assert isinstance(result, Node)
    return g.broadcast(result, tuple(lengths[a] for a in target))


def _diagonal(g: Builder, value: Value, axes: Axes) -> _Factor:
    """A value whose axes may have names in common, as one whose axes have not: the entries where those have the same places."""
    names = tuple(dict.fromkeys(axes))
    if len(names) == len(axes):
        return _Factor(value, axes)
    letters = {name: chr(ord("a") + i) for i, name in enumerate(names)}
    term = "".join(letters[a] for a in axes) + "->" + "".join(letters[a] for a in names)
    places = np.einsum(term, entries(tuple(value.shape)))
    return _Factor(g.select(value, places) if isinstance(value, Node) else value.reshape(-1)[places], names)


def _squeezed(g: Builder, factor: _Factor, gone: set[Label]) -> _Factor:
    kept = tuple(a for a in factor.axes if a not in gone)
    if len(kept) == len(factor.axes):
        return factor
    shape = [n for a, n in factor.lengths().items() if a not in gone]
    value = factor.value
    return _Factor(g.reshape(value, shape) if isinstance(value, Node) else value.reshape(shape), kept)


def _summed(g: Builder, factor: _Factor, wanted: set[Label]) -> _Factor:
    """Summed over the axes that nothing wants any more; the sum of a constant is a node, which rounds nothing."""
    gone = [i for i, a in enumerate(factor.axes) if a not in wanted]
    if not gone:
        return factor
    node = factor.value if isinstance(factor.value, Node) else g.constant(factor.value)
    return _Factor(g.reduce_sum(node, gone, keepdims=False), tuple(a for a in factor.axes if a in wanted))


def _product(g: Builder, a: _Factor, b: _Factor, wanted: set[Label]) -> _Factor:
    """The product of a node and a factor, summed over the axes that nothing else wants."""
    a, b = _summed(g, a, wanted | set(b.axes)), _summed(g, b, wanted | set(a.axes))
    shared = [x for x in a.axes if x in b.axes]
    batch = tuple(x for x in shared if x in wanted)
    inner = tuple(x for x in shared if x not in wanted)
    left, right = (tuple(x for x in f.axes if x not in shared) for f in (a, b))
    result = (*batch, *left, *right)
    assert isinstance(a.value, Node)
    if not isinstance(b.value, Node) and inner:
        lengths = {**a.lengths(), **b.lengths()}
        sizes = [math.prod(lengths[x] for x in part) for part in (left, inner, right)]
        many = [lengths[x] for x in batch]
        rows, columns = a.arranged(g, (*batch, *left, *inner)), b.arranged(g, (*batch, *inner, *right))
        assert isinstance(rows, Node)
        assert not isinstance(columns, Node)
        matrices = g.reshape(rows, (*many, *sizes[:2])), columns.reshape((*many, *sizes[1:]))
        product = composites.matrix_product(g, *matrices)
        return _Factor(g.reshape(product, [lengths[x] for x in result]), result)
    if isinstance(b.value, Node) and set(a.axes) == set(b.axes):
        b = _Factor(b.arranged(g, a.axes), a.axes)
        assert isinstance(b.value, Node)
        product = composites.multiply(g, a.value, b.value)
        return _summed(g, _Factor(product, a.axes), wanted)
    whole = (*result, *inner)
    x, y = a.arranged(g, whole), b.arranged(g, whole)
    assert isinstance(x, Node)
    product = composites.multiply(g, x, y) if isinstance(y, Node) else g.scale(x, y)
    return _summed(g, _Factor(product, whole), wanted)
