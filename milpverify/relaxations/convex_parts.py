"""The stretches of an interval on which a smooth function, or its negative, is convex, and the points there that have a given slope.

Everything is stacked along a first dimension, the parts of the function first, then those of its negative, so that the number of
tensor operations grows neither with the number of pieces nor with that of sides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from milpverify.functions.function import Curvature
from milpverify.relaxations.rule import RelaxationTuning

if TYPE_CHECKING:
    from milpverify.functions.catalogue import Function

TURNS: Final = 1000
"""Periods away from 0 beyond which a line only knows the range of the function."""
_DRIFT: Final = 2.0**-46
"""More than the rounding of an inflection, per period that it is away."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A function cut at the inflections, in float64 on one device.

    The pieces on which it is convex (`sign` +1) or concave (-1), convex ones first: `start`, `end` (Q,) inner roundings, those of one
    period if there is one; `nodes` (Q, N + 2), ascending, with +-inf at both ends, and `slopes` (Q, N), the derivatives of sign f at the
    inner nodes, nearly: ascending. They are starting points only: nothing depends on what they are.

    `slivers` (S, 2) enclose the inflections that are no floats (of a periodic function: all), `steep` (S, 2) the derivative there. `alone`
    (A,) are exact inflections that some convex piece, of one side, is not beside.
    """

    sign: Tensor
    start: Tensor
    end: Tensor
    nodes: Tensor
    slopes: Tensor
    slivers: Tensor
    steep: Tensor
    alone: Tensor
    linear: tuple[tuple[float, float], ...]


@lru_cache(maxsize=256)
def shape_of(function: Function, device: torch.device, tuning: RelaxationTuning = RelaxationTuning()) -> Shape:
    """What the catalogue says about the curvature of a function."""
    edges = list(function.inflections)
    if function.period is None:
        edges = [(-math.inf, -math.inf), *edges, (math.inf, math.inf)]
    else:
        edges = [*edges, (edges[0][0] + function.period[0], edges[0][1] + function.period[1])]
    pieces = [(a[1], b[0], c) for (a, b), c in zip(pairwise(edges), function.curvature, strict=True)]
    order = [(p, s) for s, kind in ((1.0, Curvature.CONVEX), (-1.0, Curvature.CONCAVE)) for p in pieces if p[2] is kind]
    slivers = [pair for pair in function.inflections if pair[0] < pair[1] or function.period is not None]
    alone = []
    if function.period is None:
        sides = zip(edges[1:-1], pairwise(function.curvature), strict=True)
        alone = [a for (a, b), kinds in sides if a == b and {*kinds} != {Curvature.CONVEX, Curvature.CONCAVE}]

    def column(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64, device=device)

    with torch.device("cpu"):
        tables = [_table(function, start, end, s, tuning) for (start, end, _), s in order]
    nodes, slopes = (
        torch.stack(t).to(device) if t else torch.zeros(0, 2, dtype=torch.float64, device=device) for t in zip(*tables, strict=True)
    )
    return Shape(
        sign=column([s for _, s in order]),
        start=column([p[0] for p, _ in order]),
        end=column([p[1] for p, _ in order]),
        nodes=nodes,
        slopes=slopes,
        slivers=column([end for pair in slivers for end in pair]).reshape(-1, 2),
        steep=column([end for pair in slivers for end in _steepness(function, *pair)]).reshape(-1, 2),
        alone=column(alone),
        linear=tuple((a, b) for a, b, c in pieces if c is Curvature.LINEAR),
    )


def _steepness(function: Function, low: float, high: float) -> tuple[float, float]:
    """The derivative around an inflection, enclosed, as far as drift can carry it; unbounded at kinks and poles."""
    import flint

    reach = 2 * TURNS * _DRIFT if function.period is not None else 0.0
    with flint.ctx.workprec(128):
        ball = function.derivative_ball(flint.arb(low - reach).union(flint.arb(high + reach)))
        if not ball.is_finite():
            return -math.inf, math.inf
        return math.nextafter(float(ball.lower()), -math.inf), math.nextafter(float(ball.upper()), math.inf)


def _table(function: Function, start: float, end: float, sign: float, tuning: RelaxationTuning) -> tuple[Tensor, Tensor]:
    """Nodes and slopes of one piece: dense towards finite ends, where the curvature vanishes, and not there, where there may be kinks."""
    (_, first), (last, _) = function.domain
    start, end = max(start, first), min(end, last)
    unit = torch.linspace(0.0, 1.0, tuning.nodes + 2, dtype=torch.float64)[1:-1]
    spread = tuning.nearest * torch.sinh(unit * math.asinh(tuning.farthest / tuning.nearest))
    if math.isfinite(start) and math.isfinite(end):
        nodes = start + (end - start) * 0.5 * (1 - torch.cos(math.pi * unit))
    elif math.isfinite(start):
        nodes = start + spread
    elif math.isfinite(end):
        nodes = end - spread.flip(0)
    else:
        nodes = torch.cat([-spread[1::2].flip(0), spread[::2]])
    slopes = sign * function.derivative(nodes)
    held = slopes.isfinite()
    if not bool(held.any()):
        slopes = torch.zeros_like(slopes)
    else:  # what overflows repeats its neighbour
        index = torch.where(held, torch.arange(tuning.nodes), -1).cummax(0).values
        slopes = slopes[torch.where(index < 0, int(held.nonzero()[0]), index)]
    infinite = nodes.new_tensor([math.inf])
    return torch.cat([-infinite, nodes, infinite]), slopes.cummax(0).values


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of [lower, upper] on which f (the first `below` ones) or -f (the others) is convex: tensors (P, *lower.shape).

    Between `left` and `right`, where `some`; `a` and `b` are the ends between which the piece's own derivative is evaluated: kinks
    count as inflections, and there the derivative may be that of the other side.
    """

    function: Function
    below: int
    sign: Tensor
    left: Tensor
    right: Tensor
    some: Tensor
    a: Tensor
    b: Tensor
    nodes: Tensor
    slopes: Tensor
    move: Tensor | None

    def __len__(self) -> int:
        return len(self.sign)

    def by_side(self, low: Tensor, high: Tensor) -> Tensor:
        """(P, *shape): one tensor for the parts of f, another for those of -f."""
        return torch.cat([low.expand(self.below, *low.shape), high.expand(len(self) - self.below, *high.shape)])

    def excess(self, x: Tensor, steep: Tensor) -> Tensor:
        """The derivative of sign f at x, less the slope wanted of it: (P, *shape) each."""
        return self.function.derivative(x) * self.sign.reshape(-1, *[1] * (x.dim() - 1)) - steep

    def critical(self, k: Tensor, steps: int) -> Tensor:
        """Where f' = k within each part, nearly, or the end that is nearest to that.

        The table of slopes brackets the point; chords and secants then close in.

        Args:
            k: (P, *shape), where the parts' own shape may be narrower.
        """
        steep = k * self.sign.reshape(-1, *[1] * (k.dim() - 1))
        place = torch.searchsorted(self.slopes, steep.flatten(1))
        low, high = (self.nodes.gather(1, p).reshape(k.shape) for p in (place, place + 1))
        if self.move is not None:
            low, high = low + self.move, high + self.move
        low, high = low.clamp(self.a, self.b), high.clamp(self.a, self.b)
        g_low, g_high = self.excess(low, steep), self.excess(high, steep)
        pace = _quotient(high - low, g_high - g_low)
        x = (low - g_low * pace).clamp(low, high)
        before, g_before = low, g_low
        for n in range(steps):
            g = self.excess(x, steep)
            if n:
                step = (x - before) / (g - g_before)
                pace = torch.where(step.isfinite() & (step > 0), step, pace)
            before, g_before = x, g
            x = (x - g * pace).clamp(low, high)
        return x


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    return (a / b).nan_to_num(0.0, 0.0, 0.0)


def turns(function: Function, shape: Shape, lower: Tensor, upper: Tensor) -> Tensor:
    """By how many periods to move the pieces of one so that those which can hold an extreme point over [lower, upper] are met: (T, *shape).

    Along whole periods f(x) - k x changes linearly at the critical points of a kind, so that the outer ones are enough.
    """
    assert function.period is not None
    period = 0.5 * sum(function.period)
    start = shape.start.min()
    # Rounding may take the first turn for one earlier and the last for one later, never the other way.
    first = ((lower - start) / period - 1e-9).floor().clamp(-TURNS, TURNS)
    last = ((upper - start) / period + 1e-9).floor().clamp(-TURNS, TURNS)
    most = float((last - first).nan_to_num(0.0).max()) if first.numel() else 0.0
    found = [first + k for k in range(int(min(most, 2.0)) + 1)]
    if most > 2:
        found += [last - 2, last - 1, last]
    return torch.stack(found)


def parts_of(function: Function, shape: Shape, lower: Tensor, upper: Tensor) -> Parts:
    """The parts of [lower, upper], float64 of any one shape; those that no interval meets are left out."""
    ones = [1] * lower.dim()
    start, end, move = shape.start.reshape(-1, *ones), shape.end.reshape(-1, *ones), None
    chosen = torch.arange(len(shape.sign), device=lower.device)
    if function.period is not None:
        turn = turns(function, shape, lower, upper)
        move, off = turn * (0.5 * sum(function.period)), turn.abs() * _DRIFT
        start, end = ((edge.unsqueeze(1) + move + sign * off).flatten(0, 1) for edge, sign in ((start, 1.0), (end, -1.0)))
        chosen = chosen.repeat_interleave(len(turn))
        move = move.repeat(len(shape.sign), *ones)
    left, right = torch.maximum(lower, start), torch.minimum(upper, end)
    some = left < right
    met = some.flatten(1).any(1)
    kept = met.nonzero(as_tuple=True)[0]
    if len(kept) < len(chosen):
        left, right, some, chosen = left[kept], right[kept], some[kept], chosen[kept]
        start, end = start[kept], end[kept]
        move = None if move is None else move[kept]
    a = torch.where(left == start, left + (left.abs() * 2.0**-52 + 2.0**-1000), left)
    b = torch.where(right == end, right - (right.abs() * 2.0**-52 + 2.0**-1000), right)
    a, b = torch.minimum(a, b), torch.where(a > b, torch.minimum(a, b), b)
    a, b = torch.where(some, a, lower), torch.where(some, b, lower)
    sign = shape.sign[chosen]
    below = int((sign > 0).sum())
    return Parts(function, below, sign, left, right, some, a, b, shape.nodes[chosen], shape.slopes[chosen], move)


def slivers_of(function: Function, shape: Shape, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inflections that are no floats within [lower, upper]: ends (S, *shape), crossed where there is none, and slopes (S, 2)."""
    ones = [1] * lower.dim()
    low, high = (shape.slivers[:, k].reshape(-1, *ones) for k in (0, 1))
    steep = shape.steep
    if function.period is not None:
        turn = turns(function, shape, lower, upper)
        turn = torch.cat([turn, turn[-1:] + 1])
        move, off = turn * (0.5 * sum(function.period)), turn.abs() * _DRIFT
        low, high = ((edge.unsqueeze(1) + move + sign * off).flatten(0, 1) for edge, sign in ((low, -1.0), (high, 1.0)))
        steep = steep.repeat_interleave(len(turn), 0)
    return torch.maximum(lower, low), torch.minimum(upper, high), steep
