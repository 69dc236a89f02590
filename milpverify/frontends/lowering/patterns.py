"""Functions that a network writes out in parts, found again: GELU, SiLU, Mish, hard swish, softsign, powers, softplus, softmax.

Bounded part by part they would be loose: x * sigmoid(x) as a product of two variables, say. What is found is exactly what the network
computes in the reals, with its own constants, whatever these are rounded from: they end up as parameters of a catalogue function, which are
exact, or as factors and terms around it, which are marked where float64 does not hold them. Constants that are marked already are equal to
nothing. A pattern that does not fit exactly is none, nor is one whose rewriting would cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.frontends.lowering.builder import entries
from milpverify.frontends.lowering.constants import Constant, uniform
from milpverify.functions.catalogue import catalogue
from milpverify.operators import Concat, Conv, Elementwise, Linear, Permute, Product, ReduceSum, Reshape, Scale, Select, Sum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from milpverify.frontends.lowering.builder import Builder
    from milpverify.functions.catalogue import Function
    from milpverify.graph import Node

_POWERS: Final = {"square": 2, "cube": 3}


@dataclass(frozen=True)
class Line:
    """slope * node + offset, with the same slope and offset for all entries.

    The offset is exact, and the slope where it is not `rounded`, as in `operators.Affine`.
    """

    node: Node
    slope: Fraction
    offset: Fraction
    rounded: int = 0

    @property
    def identity(self) -> bool:
        """Whether it is the node itself."""
        return self.slope == 1 and not self.offset and not self.rounded

    def of(self, name: str) -> bool:
        """Whether the node is this function of something."""
        return self.node.applies(name)


def scaled(g: Builder, x: Node, slope: Fraction, offset: Fraction = Fraction(0), rounded: int = 0) -> Node:
    """slope * x + offset, both of which are `rounded` already."""
    weight, bias = (Constant.nearest([v], ()) for v in (slope, offset))
    return g.scale(x, *(Constant(v.value, v.rounded + rounded) for v in (weight, bias)))


def lines(g: Builder, x: Node) -> Iterator[Line]:
    """x as a line of itself, of what it is a line of, and so on."""
    line = Line(x, Fraction(1), Fraction(0))
    while True:
        yield line
        op = line.node.op
        if not isinstance(op, Scale):
            return
        weight, bias = uniform(op.weight, 1), uniform(op.bias, 0)
        if weight is None or bias is None:
            return
        if bias and (line.rounded or op.rounded):
            return
        known = g.nodes[line.node.inputs[0]]
        line = Line(known, line.slope * weight, line.slope * bias + line.offset, line.rounded + op.rounded)


def innermost(g: Builder, x: Node) -> Line:
    """x as a line of what is no line itself."""
    *_, last = lines(g, x)
    return last


def argument(g: Builder, function: Node) -> Node:
    """What a function is applied to."""
    return g.nodes[function.inputs[0]]


def common(g: Builder, a: Node, b: Node) -> tuple[Line, Line] | None:
    """Both as lines of the nearest node that both are lines of."""
    known = {line.node.id: line for line in lines(g, a)}
    return next(((known[line.node.id], line) for line in lines(g, b) if line.node.id in known), None)


# Products


def product(g: Builder, a: Node, b: Node) -> Node | None:
    """a * b as a function of one variable, where it is one; a and b are of one shape."""
    if (found := _power(g, a, b)) is not None:
        return found
    if (pair := common(g, a, b)) is not None:
        return _quadratic(g, *pair)
    return _gate(g, a, b) or _gate(g, b, a)


def _quadratic(g: Builder, a: Line, b: Line) -> Node | None:
    """(p x + q) (r x + s) = p r (x + h)^2 - c, unless h or c is so large that they would cancel."""
    if not a.slope * b.slope:
        constant, line = (a, b) if not a.slope else (b, a)
        return scaled(g, line.node, line.slope * constant.offset, line.offset * constant.offset, line.rounded)
    factor, roots = a.slope * b.slope, (a.offset / a.slope, b.offset / b.slope)
    middle, half = (roots[0] + roots[1]) / 2, (roots[0] - roots[1]) / 2
    if a.rounded or b.rounded:  # h and c are differences
        offsets = a.offset or b.offset
        return None if offsets else scaled(g, g.function("square", a.node), factor, rounded=a.rounded + b.rounded)
    coefficients = factor, a.slope * b.offset + b.slope * a.offset, a.offset * b.offset
    if abs(factor) * max(middle**2, half**2) > g.tuning.cancelling * max(map(abs, coefficients)):
        return None
    square = g.function("square", scaled(g, a.node, Fraction(1), middle))
    return scaled(g, square, factor, -factor * half**2)


def _root(g: Builder, x: Node) -> tuple[Node, int]:
    """x as an integer power of a node."""
    if isinstance(x.op, Elementwise):
        name, parameters = x.op.function.name, dict(x.op.function.parameters)
        n = _POWERS.get(name) or (int(parameters["n"]) if name in ("pow_even", "pow_odd") else 1)
        if n > 1:
            return argument(g, x), n
    return x, 1


def power(g: Builder, x: Node, n: int) -> Node:
    """x ** n for an integer n >= 1."""
    if n == 1:
        return x
    if n in (2, 3):
        return g.function("square" if n == 2 else "cube", x)
    return g.function("pow_odd" if n % 2 else "pow_even", x, n=n)


def _power(g: Builder, a: Node, b: Node) -> Node | None:
    """(p x^n) (r x^m + s) = p r x^(n + m) + p s x^n."""
    for first, second in ((a, b), (b, a)):
        for one in lines(g, first):
            for other in lines(g, second):
                (x, n), (y, m) = _root(g, one.node), _root(g, other.node)
                if x.id == y.id and n + m > 2 and not one.offset:
                    high = scaled(g, power(g, x, n + m), one.slope * other.slope, rounded=one.rounded + other.rounded)
                    rest = one.slope * other.offset
                    return g.sum([high, scaled(g, one.node, rest, rounded=one.rounded)]) if rest else high
    return None


def _gate(g: Builder, a: Node, b: Node) -> Node | None:
    """p x (r f(y) + s), where x f(y) = u F(x) + v x for a function F of the catalogue: p r u F(x) + p (r v + s) x."""
    gate = innermost(g, b)
    if not isinstance(gate.node.op, Elementwise):
        return None
    y, name = argument(g, gate.node), gate.node.op.function.name
    if name == "tanh":
        found = _mish(g, a, y) or _gelu_tanh(g, a, y)
    elif name in ("erf", "sigmoid", "clip", "relu6", "hard_tanh"):
        found = _line_gate(g, a, y, gate.node.op.function)
    else:
        found = None
    if found is None:
        return None
    x, function, u, v, rounded = found
    if v and gate.rounded:
        return None
    main = scaled(g, function, x.slope * gate.slope * u, rounded=x.rounded + gate.rounded + rounded)
    rest = x.slope * (gate.slope * v + gate.offset)
    return g.sum([main, scaled(g, x.node, rest, rounded=x.rounded)]) if rest else main


_Gate = tuple[Line, "Node", Fraction, Fraction, int]
"""a = p x as a line, F(x), u and v, where x f(y) = u F(x) + v x; and how often u is rounded."""


def _line_gate(g: Builder, a: Node, y: Node, f: Function) -> _Gate | None:
    """f(k x + t)."""
    pair = common(g, a, y)
    if pair is None or pair[0].offset or not pair[1].slope:
        return None
    x, k, t, rounded = pair[0], pair[1].slope, pair[1].offset, pair[1].rounded
    if f.name == "erf" and not t:
        sign = Fraction(1 if k > 0 else -1)
        if not rounded and Fraction(c := float(abs(k))) == abs(k):
            return x, g.function("gelu_rounded", x.node, c=c), 2 * sign, -sign, 0
        return x, g.function("gelu_rounded", scaled(g, x.node, abs(k), rounded=rounded), c=1.0), 2 / k, -sign, rounded
    if f.name == "sigmoid" and not t:
        return x, g.function("silu", scaled(g, x.node, k, rounded=rounded)), 1 / k, Fraction(0), rounded
    limits = {"min": 0.0, "max": 6.0, **dict(f.parameters)} if f.name in ("clip", "relu6", "hard_tanh") else {}
    if limits and limits["min"] == 0 and 0 < limits["max"] < np.inf and t == (high := Fraction(limits["max"])) / 2:
        # x clip(k x + h / 2, 0, h) = h hard_swish(w x) / w with w = 6 k / h
        w = 6 * k / high
        return x, g.function("hard_swish", scaled(g, x.node, w, rounded=rounded)), high / w, Fraction(0), rounded
    return None


def _mish(g: Builder, a: Node, y: Node) -> _Gate | None:
    """tanh(softplus(x))."""
    outer = innermost(g, y)
    if not outer.of("softplus") or not outer.identity:
        return None
    pair = common(g, a, argument(g, outer.node))
    if pair is None or pair[0].offset or not pair[1].identity:
        return None
    return pair[0], g.function("mish", pair[0].node), Fraction(1), Fraction(0), 0


def _gelu_tanh(g: Builder, a: Node, y: Node) -> _Gate | None:
    """tanh(slope x + cubic x^3)."""
    outer = innermost(g, y)
    if not isinstance(outer.node.op, Sum) or len(outer.node.inputs) != 2 or outer.offset:
        return None
    terms = [(outer.slope * sign, g.nodes[i]) for sign, i in zip(outer.node.op.signs, outer.node.inputs, strict=True)]
    for (cubic, first), (slope, second) in (terms, terms[::-1]):
        cube = innermost(g, first)
        if not cube.of("cube") or cube.offset:
            continue
        x = argument(g, cube.node)
        line = next((line for line in lines(g, second) if line.node.id == x.id), None)
        factor = next((line for line in lines(g, a) if line.node.id == x.id), None)
        if line is None or factor is None or line.offset or factor.offset or line.rounded or cube.rounded or outer.rounded:
            continue
        exact = {"slope": slope * line.slope, "cubic": cubic * cube.slope}
        parameters = {key: float(value) for key, value in exact.items()}
        family = catalogue()["gelu_tanh_rounded"]
        if all(family.limits[key].accepts(value) and Fraction(value) == exact[key] for key, value in parameters.items()):
            return factor, g.apply(family.bind(**parameters), x), Fraction(2), Fraction(-1), 0
    return None


# Quotients and logarithms


def quotient(g: Builder, a: Node, b: Node) -> Node | None:
    """a / b as a function of one variable, where it is one; a and b are of one shape."""
    below = innermost(g, b)
    if not below.offset or not (below.of("abs") or below.of("exp")):
        return None
    pair = common(g, a, argument(g, below.node))
    if pair is None or pair[0].offset or pair[1].offset or not pair[0].slope or not pair[1].slope:
        return None
    p, k = pair[0].slope, pair[1].slope
    if below.of("abs") and below.slope / below.offset > 0:  # p x / (s + r |k x|)
        w, rounded = abs(k) * below.slope / below.offset, pair[1].rounded + below.rounded
        sign = g.function("softsign", scaled(g, pair[0].node, w, rounded=rounded))
        return scaled(g, sign, p / (below.offset * w), rounded=pair[0].rounded + rounded)
    if below.of("exp") and below.slope == below.offset and not below.rounded:  # p x / (s (1 + exp(k x)))
        gate = g.function("silu", scaled(g, pair[0].node, -k, rounded=pair[1].rounded))
        return scaled(g, gate, -p / (below.offset * k), rounded=pair[0].rounded + pair[1].rounded)
    return None


def reciprocal(g: Builder, x: Node) -> Node | None:
    """1 / x as one function: of a square root, of an exponential, of 1 + exp(y)."""
    below = innermost(g, x)
    if below.of("sqrt") and not below.offset and below.slope:
        return scaled(g, g.function("rsqrt", argument(g, below.node)), 1 / below.slope, rounded=below.rounded)
    if below.of("exp") and not below.offset and below.slope:
        return scaled(g, g.function("exp", g.scale(argument(g, below.node), -1.0)), 1 / below.slope, rounded=below.rounded)
    if below.of("exp") and below.slope and below.slope == below.offset and not below.rounded:
        return scaled(g, g.function("sigmoid", g.scale(argument(g, below.node), -1.0)), 1 / below.slope)
    return None


def logarithm(g: Builder, x: Node) -> Node | None:
    """log x as one function: of 1 + exp(y)."""
    inner = innermost(g, x)
    if inner.of("exp") and inner.slope == inner.offset == 1 and not inner.rounded:
        return g.function("softplus", argument(g, inner.node))
    return None


# Exponentials and their sums


def exponentials(g: Builder, total: Node) -> tuple[Node, tuple[int, ...]] | None:
    """x and the axes where `total` is the sum of exp(x) over them, with those axes kept or broadcast again."""
    shape = total.shape
    if isinstance(total.op, Select):
        source = g.nodes[total.inputs[0]]
        if (
            total.op.bias is not None
            or len(source.shape) != len(shape)
            or any(n not in (1, m) for n, m in zip(source.shape, shape, strict=True))
        ):
            return None
        if not np.array_equal(np.broadcast_to(entries(source.shape), shape), total.op.index.numpy()):
            return None
        total, shape = source, source.shape
    while isinstance(total.op, Reshape):
        total = g.nodes[total.inputs[0]]
    if not isinstance(total.op, ReduceSum) or total.shape != shape:
        return None
    x = _exponent(g, g.nodes[total.inputs[0]])
    return None if x is None else (x, total.op.axes)


def is_exponential(g: Builder, node: Node, x: Node) -> bool:
    """Whether a node is exp(x)."""
    return (found := _exponent(g, node)) is not None and found.id == x.id


def _exponent(g: Builder, node: Node) -> Node | None:
    """x where a node is exp(x), with zeros where x is -inf (as `Builder.apply` makes them)."""
    outer = node.op
    if isinstance(outer, Select):
        node = argument(g, argument(g, node))
    if not node.applies("exp"):
        return None
    x = argument(g, node)
    if not isinstance(outer, Select):
        return x
    if not isinstance(x.op, Select) or (source := argument(g, x)).id not in g.masked:
        return None
    visible = np.where(g.masked[source.id], -1, entries(source.shape))
    same = all(op.bias is None and np.array_equal(op.index.numpy(), visible) for op in (outer, x.op))
    return source if same else None


def unshifted(g: Builder, x: Node, axis: int) -> Node:
    """y where x = y - m and m is the same along the axis: softmax is the same of both."""
    if not isinstance(x.op, Sum) or x.op.signs != (1, -1):
        return x
    y, m = (g.nodes[i] for i in x.inputs)
    if not isinstance(m.op, Select) or m.op.bias is not None:
        return x
    index = m.op.index.numpy()
    return y if (index == index.take([0], axis)).all() else x


# Signs

_NONNEGATIVE = frozenset({"relu", "relu6", "abs", "square", "pow_even", "exp", "sqrt", "rsqrt", "sigmoid", "softplus", "hard_sigmoid"})


def nonnegative(g: Builder, x: Node, depth: int = 12) -> bool:
    """Whether x holds no negative number by how it is made, as far as the operators right before it tell: a sum of squares, say.

    Bounds of such a sum may still be below 0 by a rounding error, and roots have no bounds outside of their domain.
    """
    match x.op:
        case Elementwise(function):
            return function.name in _NONNEGATIVE
        case Scale(weight=weight, bias=bias) | Linear(weight=weight, bias=bias) | Conv(weight=weight, bias=bias):
            own = _none_negative(weight) and _none_negative(bias)
        case Select(bias=bias):
            own = _none_negative(bias)
        case Sum(signs=signs):
            own = min(signs) > 0
        case Reshape() | Permute() | Concat() | ReduceSum() | Product():
            own = True
        case _:
            return False
    return own and depth > 0 and all(nonnegative(g, g.nodes[i], depth - 1) for i in x.inputs)


def _none_negative(values: Tensor | None) -> bool:
    return values is None or bool((values >= 0).all())
