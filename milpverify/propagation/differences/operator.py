"""f(a) - f(b) of two entries whose difference d = a - b is known better than they are: its range, and its lines.

With s the range of (f(a) - f(b)) / (a - b) over the hull of both intervals, f(a) - f(b) lies in s d: between two lines through the corners
of that set (ReluDiff, arXiv 2001.03662, and NeuroDiff, arXiv 2009.09943, for ReLU). Where copies are far from each other the lines of both
functions, taken separately, are closer; what both have in common of their slopes is said of the difference, which cancels exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.arithmetic.interval import Interval, mul, sub
from milpverify.arithmetic.rounding import TINY, U64, up
from milpverify.functions.steepness import secants
from milpverify.operators import Nonlinear
from milpverify.propagation.backward import lines
from milpverify.propagation.state import Bounds, NodeState
from milpverify.relaxations.registry import univariate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from milpverify.functions.catalogue import Function
    from milpverify.graph import Graph, Node
    from milpverify.propagation.state import Lines, State


@dataclass(frozen=True, eq=False)
class Difference(Nonlinear):
    """y = f(a) - f(b), elementwise, of the three nodes a, b and d, where d = a - b on all inputs that count.

    It stands in graphs of differences only, whose bounds know its lines; there is no rule that relaxes it from its inputs' ranges alone.
    """

    function: Function

    @property
    def name(self) -> str:
        return f"difference of {self.function.name}"

    def __str__(self) -> str:
        return f"a difference of values of {self.function}"

    def value(self, xs: Sequence[Tensor]) -> Tensor:
        return self.function(xs[0]) - self.function(xs[1])

    def interval(self, xs: Sequence[Interval]) -> Interval:
        a, b, d = xs
        apart = sub(*(Interval(*self.function.interval(*x)) for x in (a, b)))
        along = mul(_steepness(self.function, a, b), d)
        return Interval(torch.maximum(apart.lower, along.lower), torch.minimum(apart.upper, along.upper))

    def exact(self, xs: Sequence[Fraction]) -> Fraction | None:
        pieces = self.function.pieces
        return None if pieces is None else pieces.value(xs[0]) - pieces.value(xs[1])

    @property
    def pieces(self) -> None:
        return None

    @property
    def staircase(self) -> bool:
        return False

    @property
    def bilinear(self) -> bool:
        return False

    @property
    def term(self) -> None:
        return None


def difference_state(op: Difference, a: NodeState, b: NodeState, d: NodeState) -> NodeState:
    """The state of a difference of values from those of its inputs; exactly 0 where d is."""
    reach = op.interval([Interval(s.bounds.lower, s.bounds.upper) for s in (a, b, d)])
    center = op.value([a.center, b.center, d.center]).nan_to_num(0.0, 0.0, 0.0)
    return NodeState(Bounds(*reach), center, None)


def difference_lines(graph: Graph, node: Node, state: State) -> Lines:
    """Two planes around a difference of values, by the steepness or by separate lines, whichever are closer to each other."""
    assert isinstance(node.op, Difference)
    (a, b, d), function = (state[i].bounds for i in node.inputs), node.op.function
    steep = _steepness(function, a, b)
    k_lower, k_upper = _corner_slopes(steep, d)
    room, none = Interval(d.lower, d.upper), torch.zeros_like(d.lower)
    below, above = (mul(sub(steep, Interval(k, k)), room) for k in (k_lower, k_upper))
    middle = 0.5 * (d.lower + d.upper)
    height = (k_upper - k_lower) * middle + above.upper - below.lower

    rule = univariate(function)
    parts = []
    for s in (a, b):
        (low,), (high,) = rule.default_slopes((s.lower,), (s.upper,))
        parts.append((low, high, *rule.intercepts((s.lower,), (s.upper,), (low,), (high,))))
    apart = sum((high - low) * 0.5 * (s.lower + s.upper) + up_ - down for s, (low, high, down, up_) in zip((a, b), parts, strict=True))
    along = ~(height > apart) & height.isfinite()  # separate lines may be no numbers

    (a_low, a_high, a_down, a_up), (b_low, b_high, b_down, b_up) = parts
    slopes, intercepts = [], []
    sides = ((k_lower, a_low, b_high, below.lower, a_down - b_up, -1.0), (k_upper, a_high, b_low, above.upper, a_up - b_down, 1.0))
    for k, first, second, height_along, height_apart, side in sides:
        shared = torch.where(first * second > 0, torch.where(first.abs() < second.abs(), first, second), 0.0)
        chosen = [torch.where(along, x, y) for x, y in ((none, first - shared), (none, shared - second), (k, shared))]
        reach = sum(s.lower.abs() + s.upper.abs() for s in (a, b))
        pad = 4 * U64 * ((first.abs() + second.abs()) * reach + a_down.abs() + a_up.abs() + b_down.abs() + b_up.abs()) + TINY
        height = torch.where(along, height_along, height_apart + side * pad)
        known = torch.stack([*chosen, height]).isfinite().all(0)
        slopes.append(tuple(torch.where(known, part, 0.0) for part in chosen))
        intercepts.append(torch.where(known, height, side * torch.inf))
    return lines(graph, node.id, state, torch.float64, slopes[0], slopes[1], (intercepts[0], intercepts[1]))


def _steepness(function: Function, a: Bounds | Interval, b: Bounds | Interval) -> Interval:
    """How steep a function is between two entries, from their intervals."""
    return secants(function, torch.minimum(a.lower, b.lower), torch.maximum(a.upper, b.upper))


def _corner_slopes(steep: Interval, d: Bounds) -> tuple[Tensor, Tensor]:
    """The slopes of the lines through the lower corners, and through the upper ones, of all s d with s in `steep`.

    Where d has one sign they are those ends of `steep` with which a bound of the values follows from 0 <= d exactly.
    """
    width = up(d.upper - d.lower)
    crossing = (d.lower < 0) & (d.upper > 0)
    low = torch.where(d.upper <= 0, steep.upper, steep.lower)
    high = torch.where(d.upper <= 0, steep.lower, steep.upper)
    chord_low = (steep.lower * d.upper - steep.upper * d.lower) / width
    chord_high = (steep.upper * d.upper - steep.lower * d.lower) / width
    slopes = (torch.where(crossing, chord_low, low), torch.where(crossing, chord_high, high))
    return slopes[0].nan_to_num(0.0, 0.0, 0.0), slopes[1].nan_to_num(0.0, 0.0, 0.0)
