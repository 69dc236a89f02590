"""Comparisons, masks and choices between tensors that depend on x, for every frontend.

A mask is a node of zeros and ones. A comparison is a function of a difference that jumps at 0, a choice b + mask (a - b). Where
condition and branches depend on one tensor the choice is found as a function of it: by its exact pieces where these are the same for all
entries, so that x > 0 ? x : x / 10 is a leaky ReLU and its relaxation is that of one; else, of affine branches, as

    b + K relu(z) + J step(z),    a - b = K z + J,

without the jump where J is exactly 0. All of it is exact in the reals.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.frontends.lowering import elementwise
from milpverify.frontends.lowering.constants import Constant
from milpverify.functions.pieces import IDENTITY, RationalPieces, derive
from milpverify.functions.piecewise import function_of
from milpverify.functions.terms import parse
from milpverify.graph import Node
from milpverify.operators import Elementwise, Nonlinear, Product, Reshape, Scale, Sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from milpverify.frontends.lowering.builder import Builder
    from milpverify.frontends.lowering.constants import Array

    Value = Node | Array
    Views = dict[int, RationalPieces]

_ANY: Final = -1
"""In place of a node's number: of a constant, which is a function of every tensor."""


# Masks


def compare(g: Builder, name: str, a: Value, b: Value) -> Node:
    """A mask of where a is "greater", "greater_or_equal", "less", "less_or_equal", "equal" or "not_equal" to b, with broadcasting."""
    if name.startswith("less"):
        return compare(g, name.replace("less", "greater"), b, a)
    z = elementwise.total(g, [a, b], [1, -1])
    if name.startswith("greater"):
        return mask(g, g.function("heaviside", z, value=1.0 if name.endswith("equal") else 0.0))
    other = g.function("nonzero", z)
    return mask(g, other if name == "not_equal" else g.scale(other, -1, 1.0))


def mask(g: Builder, x: Node) -> Node:
    """The node, known to hold zeros and ones that stand for false and true."""
    g.masks.add(x.id)
    return x


def numbers(g: Builder, x: Node) -> Node:
    """A mask's zeros and ones as numbers."""
    return g.reshape(x, x.shape) if x.id in g.masks else x


def truth(g: Builder, x: Node) -> Node:
    """Where numbers are not 0; a mask as it is."""
    return x if x.id in g.masks else mask(g, g.function("nonzero", x))


def negate(g: Builder, x: Node) -> Node:
    """Where a mask does not hold."""
    return mask(g, g.scale(x, -1, 1.0))


def both(g: Builder, a: Value, b: Value) -> Node:
    """Where two masks hold: relu(a + b - 1), which is a b at zeros and ones."""
    return mask(g, g.relu(elementwise.total(g, [a, b, np.array(1.0)], [1, 1, -1])))


def either(g: Builder, a: Value, b: Value) -> Node:
    """Where one of two masks holds, or both: min(a + b, 1)."""
    return mask(g, g.clip(elementwise.total(g, [a, b], [1, 1]), -np.inf, 1.0))


def differ(g: Builder, a: Value, b: Value) -> Node:
    """Where exactly one of two masks holds."""
    return mask(g, g.function("abs", elementwise.total(g, [a, b], [1, -1])))


# Choices


def where(g: Builder, condition: Node | NDArray[np.bool_], a: Value, b: Value) -> Node:
    """a where the condition holds, else b, with broadcasting; at least one of the three is a node."""
    if not isinstance(condition, Node):
        return elementwise.where(g, condition, a, b)
    shape = np.broadcast_shapes(condition.shape, a.shape, b.shape)
    condition = g.broadcast(condition, shape)
    a, b = (g.broadcast(v, shape) if isinstance(v, Node) else np.broadcast_to(v, shape) for v in (a, b))
    seen = _Seen(g)
    found = seen.function(lambda c, x, y: derive(_CHOICE, c=c, a=x, b=y), [condition, a, b])
    return found or _choice_of_lines(g, condition, a, b) or _choice(g, condition, a, b)


_CHOICE = parse("(+ b (* c (- a b)))")
_TIMES = parse("(* a b)")


def gated(g: Builder, a: Node, b: Node) -> Node | None:
    """a * b as a function of one tensor, where one factor is a step and the other depends on the same tensor."""
    if not (_is_step(g, a) or _is_step(g, b)):
        return None
    return _Seen(g).function(lambda x, y: derive(_TIMES, a=x, b=y), [a, b])


def _is_step(g: Builder, x: Node) -> bool:
    """Whether a node is a mask, or one with a few affine functions around it."""
    for _ in range(4):
        if isinstance(x.op, Nonlinear):
            return x.op.pieces is not None and not any(x.op.pieces.slopes)
        if not isinstance(x.op, Scale | Reshape):
            return False
        x = g.nodes[x.inputs[0]]
    return False


def _choice(g: Builder, condition: Node, a: Value, b: Value) -> Node:
    """b + mask (a - b)."""
    if not isinstance(a, Node) and not isinstance(b, Node):
        return g.scale(condition, Constant(np.array(a)) - Constant(np.array(b)), b)
    gain = elementwise.total(g, [a, b], [1, -1])
    return elementwise.total(g, [b, g.product(condition, gain)], [1, 1])


class _Seen:
    """What nodes are as functions of one entry of another node, the same for all entries; by the number of that node."""

    def __init__(self, g: Builder) -> None:
        self.g = g
        self.known: dict[int, Views] = {}

    def function(self, combine: Callable[..., RationalPieces | None], values: Sequence[Value]) -> Node | None:
        """What is combined of values, as a function of the latest node that they all depend on; None where there is none."""
        found = self._combined([self.views(v) for v in values], combine)
        found.pop(_ANY, None)
        for base in sorted(found, reverse=True):
            if (function := function_of(found[base])) is not None:
                return self.g.apply(function, self.g.nodes[base])
        return None

    def views(self, value: Value, depth: int = 0) -> Views:
        """A value as functions of nodes; a constant that is one number as a function of any."""
        if not isinstance(value, Node):
            flat = np.asarray(value).reshape(-1)
            return {_ANY: _constant(flat[0])} if flat.size and (flat == flat[0]).all() else {}
        if value.id not in self.known:
            found = self._derived(value, depth) if depth < self.g.tuning.depth else {}
            self.known[value.id] = {**found, value.id: IDENTITY}
        return self.known[value.id]

    def _derived(self, node: Node, depth: int) -> Views:
        sources = [self.g.nodes[i] for i in node.inputs]
        if any(s.shape != node.shape for s in sources):
            return {}
        match node.op:
            case Elementwise(function) if function.pieces is not None:
                term = function.term
                return self._combined([self.views(sources[0], depth + 1)], lambda x: derive(term, x=x))
            case Scale(rounded=0) as op:
                parts = [_uniform(op.weight, 1.0), _uniform(op.bias, 0.0)]
                if None in parts:
                    return {}
                affine = parse("(+ (* a x) b)")
                given = [self.views(sources[0], depth + 1), *({_ANY: _constant(p)} for p in parts if p is not None)]
                return self._combined(given, lambda x, a, b: derive(affine, x=x, a=a, b=b))
            case Sum(signs):
                terms = parse(f"(+ {' '.join(f'(* {s} v{i})' for i, s in enumerate(signs))} 0)")
                given = [self.views(s, depth + 1) for s in sources]
                return self._combined(given, lambda *xs: derive(terms, **{f"v{i}": x for i, x in enumerate(xs)}))
            case Product():
                return self._combined([self.views(s, depth + 1) for s in sources], lambda x, y: derive(_TIMES, a=x, b=y))
            case Reshape():
                return self.views(sources[0], depth + 1)
        return {}

    def _combined(self, parts: Sequence[Views], combine: Callable[..., RationalPieces | None]) -> Views:
        """What is made of functions, for every node that all are functions of."""
        found: Views = {}
        for base in set().union(*parts):
            chosen = [p.get(base, p.get(_ANY)) for p in parts]
            if all(c is not None for c in chosen):
                made = combine(*chosen)
                if made is not None and len(made.breakpoints) <= self.g.tuning.breakpoints:
                    found[base] = made
        return found


def _constant(value: float) -> RationalPieces:
    return RationalPieces((), ((Fraction(0), Fraction(float(value))),), ())


def _uniform(values: object, default: float) -> float | None:
    """The only value of a tensor; None where there are several."""
    if values is None:
        return default
    flat = values.reshape(-1)  # type: ignore[attr-defined]
    return float(flat[0]) if bool((flat == flat[0]).all()) else None


# Affine branches that differ between entries


def _choice_of_lines(g: Builder, condition: Node, a: Value, b: Value) -> Node | None:
    """b + K relu(z) + J step(z) where the condition is z > 0 or z >= 0, and z, a and b are lines of one tensor's entries."""
    while isinstance(condition.op, Scale):
        weight, bias = _uniform(condition.op.weight, 1.0), _uniform(condition.op.bias, 0.0)
        if (weight, bias) != (-1.0, 1.0):
            return None
        condition, a, b = g.nodes[condition.inputs[0]], b, a
    if not condition.applies("heaviside"):
        return None
    z = g.nodes[condition.inputs[0]]
    found = [_lines(g, v, z.shape) for v in (a, b, z)]
    bases = set(found[2])
    for lines in found[:2]:
        bases &= set(lines) if _ANY not in lines else bases
    if not bases:
        return None
    (p, q), (r, s), (k, m) = (lines.get(max(bases), lines.get(_ANY)) for lines in found)  # type: ignore[misc]
    rows, place = np.unique(np.stack([v.reshape(-1) for v in (p, q, r, s, k, m)], 1), axis=0, return_inverse=True)
    if len(rows) > g.tuning.lines or not rows[:, 4].all():
        return None
    gains, jumps = [], []
    for row in rows.tolist():
        p, q, r, s, k, m = map(Fraction, row)
        gains.append((p - r) / k)
        jumps.append(q - s - gains[-1] * m)
    try:
        gain, jump = (Constant.nearest(v, (len(rows),)) for v in (gains, jumps))
    except (OverflowError, ValueError):  # too small or too large for float64
        return None
    place = place.reshape(z.shape)
    parts: list[Node | Array] = [b, g.scale(g.relu(z), gain.moved(gain.value[place]))]
    if any(jumps):
        parts.append(g.scale(condition, jump.moved(jump.value[place])))
    return elementwise.total(g, parts, [1] * len(parts))


def _lines(g: Builder, value: Value, shape: tuple[int, ...]) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """A value's entries as exact lines, slopes and offsets, of the entries of a node, by the number of that node."""
    if not isinstance(value, Node):
        return {_ANY: (np.zeros(shape), np.broadcast_to(np.asarray(value, dtype=np.float64), shape))}
    slope, offset, found = Constant(np.ones(shape)), Constant(np.zeros(shape)), {}
    for _ in range(g.tuning.depth):
        found[value.id] = slope.value, offset.value
        op = value.op
        if not isinstance(op, Scale) or op.rounded:
            break
        try:
            offset = offset if op.bias is None else offset + slope * op.bias.numpy()
            slope = slope if op.weight is None else slope * op.weight.numpy()
        except ValueError:  # too small or too large for float64
            break
        if slope.rounded or offset.rounded:
            break
        value = g.nodes[value.inputs[0]]
    return found
