"""Neurons of curved operators (smooth functions, products) as rows: lines that are proved, and binaries that choose the piece.

Over the whole of a neuron's box lower and upper lines enclose the operator; without more, that is its linear relaxation. A `Cut` parts
the box at breakpoints of one input. On every piece there are lines of its own, again proved, and monotone binaries
z_1 >= z_2 >= ... say which piece it is, z_k = 1 right of the k-th breakpoint, so that to branch on one is to split the neuron there:

- one input: the incremental form (Croxton, Gendron and Magnanti, Management Science 2003; Vielma, SIAM Review 2015), x = l + sum d_k
  with d_k filled up before d_(k+1), and a step of each side's lines at every breakpoint. It is the hull of what the lines enclose;
- two inputs: McCormick's planes on every piece, and the other input in parts of its own (piecewise McCormick, Bergamini et al. 2005).

A solver that takes products of variables, or functions, gets these instead (`Capability`), with the lines as cuts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from milpverify.relaxations.envelope import SideLines, envelope, single

if TYPE_CHECKING:
    from milpverify.encode.model import ModelBuilder
    from milpverify.relaxations.rule import PerInput, Rule
    from milpverify.solvers.model import Array, Index

ROUNDING: Final = 2.0**-50
"""More than what a few operations on numbers of some size lose, relative to it."""


@dataclass(frozen=True)
class Cut:
    """Where a neuron's box is parted: the place of the input, and the breakpoints in ascending order."""

    place: int
    points: tuple[float, ...]

    def within(self, low: float, high: float) -> tuple[float, ...]:
        """The breakpoints inside an interval."""
        return tuple(p for p in self.points if low < p < high)


Cuts = Mapping[tuple[int, int], Cut]
"""Per neuron (node, flat index), how its box is parted."""

Sides = list[list[tuple[tuple[float, ...], float]]]  # lower and upper: slopes per input, and the intercept


@dataclass(frozen=True, eq=False)
class CurveLines:
    """The lines of R neurons over their boxes, and over the pieces of those with breakpoints, each with its ends (m + 1,)."""

    whole: list[Sides]
    ends: list[Array | None]
    pieces: list[list[Sides]]


@dataclass(frozen=True)
class Relaxed:
    """Every unstable neuron enclosed by lines, whatever its function; to those of its envelope come lines of given slopes.

    `slopes` are, per nonlinear node, those of lower and of upper lines, per input (L, *shape) float64: any numbers, intercepts are proved.
    """

    slopes: Mapping[int, tuple[PerInput, PerInput]] = field(default_factory=dict)

    def at(self, node: int, index: Index) -> tuple[PerInput, PerInput] | None:
        """The slopes at some entries of a node, (L, R) each; None where there are none."""
        if node not in self.slopes:
            return None
        below, above = (tuple(k.flatten(1)[:, torch.from_numpy(index)].double() for k in side) for side in self.slopes[node])
        return below, above


def lines_of(
    rule: Rule,
    lower: tuple[Array, ...],
    upper: tuple[Array, ...],
    cuts: list[Cut | None],
    more: tuple[PerInput, PerInput] | None = None,
) -> CurveLines:
    """Prove lines for R neurons.

    Args:
        lower, upper: of the inputs, (R,) each.
        cuts: of each neuron, or None.
        more: slopes (L, R) of further lines over the whole of the box.
    """
    low, high = (tuple(torch.from_numpy(np.ascontiguousarray(t)) for t in ends) for ends in (lower, upper))
    whole = _listed(envelope(rule, low, high))
    if more is not None:
        finite = [torch.stack([k.isfinite() for k in side]).all(0) for side in more]
        below, above = (tuple(k.nan_to_num(0.0, 0.0, 0.0) for k in side) for side in more)
        first, last = (tuple(t.expand_as(below[0]) for t in side) for side in (low, high))
        found = rule.intercepts(first, last, below, above)
        extra = _listed(
            (SideLines(below, found[0], found[0].isfinite() & finite[0]), SideLines(above, found[1], found[1].isfinite() & finite[1]))
        )
        whole = [[list(dict.fromkeys(a + b)) for a, b in zip(*both, strict=True)] for both in zip(whole, extra, strict=True)]
    ends: list[Array | None] = []
    owner: list[int] = []
    for r, cut in enumerate(cuts):
        points = () if cut is None else cut.within(lower[cut.place][r], upper[cut.place][r])
        if not points or cut is None:
            ends.append(None)
            continue
        ends.append(np.array([lower[cut.place][r], *points, upper[cut.place][r]]))
        owner += [r] * (len(points) + 1)
    pieces: list[list[Sides]] = [[] for _ in cuts]
    if owner:
        index, parted = torch.tensor(owner), [e for e in ends if e is not None]
        begin, end = (torch.from_numpy(np.concatenate([e[part] for e in parted])) for part in (slice(None, -1), slice(1, None)))
        place = torch.tensor([cut.place for r in owner if (cut := cuts[r]) is not None])
        inner = tuple(torch.where(place == k, begin, t[index]) for k, t in enumerate(low))
        outer = tuple(torch.where(place == k, end, t[index]) for k, t in enumerate(high))
        for r, sides in zip(owner, _listed(single(rule, inner, outer)), strict=True):
            pieces[r].append(sides)
    return CurveLines(whole, ends, pieces)


def _listed(found: tuple[SideLines, SideLines]) -> list[Sides]:
    """Per box, the lines of both sides that are worth having."""
    sides = []
    for side in found:
        slopes, intercept, used = [k.tolist() for k in side.slopes], side.intercept.tolist(), side.used.tolist()
        count = len(intercept)
        sides.append(
            [
                list(dict.fromkeys((tuple(k[j][r] for k in slopes), intercept[j][r]) for j in range(count) if used[j][r]))
                for r in range(side.intercept.shape[1])
            ]
        )
    return [list(pair) for pair in zip(*sides, strict=True)]


def add_lines(builder: ModelBuilder, neuron: tuple[int, int], sides: Sides, xs: list[int], y: int) -> None:
    """y is at least every lower line, and at most every upper one, with a note of which rows these are."""
    notes = builder.lines.setdefault(neuron[0], [])
    for which, sign in enumerate((1.0, -1.0)):
        for slopes, intercept in sides[which]:
            notes.append((builder.num_rows, neuron[1], which, *slopes))
            if len(set(xs)) == len(xs):
                builder.row([y, *xs], [sign, *(-sign * k for k in slopes)], lower=sign * intercept)
                continue
            # Both factors are one variable: what adding their slopes rounds is charged.
            low, high = builder.range(np.array(xs))
            error = ROUNDING * float(np.abs(slopes) @ np.maximum(np.abs(low), np.abs(high)))
            builder.row(*_merged([y, *xs], [sign, *(-sign * k for k in slopes)]), lower=sign * intercept, error=error)


def add_incremental(builder: ModelBuilder, ends: Array, pieces: list[Sides], x: int, y: int, at: float) -> None:
    """One input: x = ends[0] + sum d_k, w_k z_k <= d_k, d_(k+1) <= w_(k+1) z_k, and a line of either side on every piece.

    With the line a_k x + c_k on piece k, y >= a_0 ends[0] + c_0 + sum a_k d_k + sum ((a_(k+1) - a_k) p_(k+1) + c_(k+1) - c_k) z_(k+1).

    Args:
        at: a value of x to start from, or NaN.
    """
    width, size = np.diff(ends), float(np.abs(ends).max())
    m = len(width)
    d = builder.variables(
        np.zeros(m), np.nextafter(width, np.inf), start=np.clip(at - ends[:-1], 0.0, width), least=float(builder.unit[x]), centred=False
    )
    z = builder.binaries(m - 1, start=math.nan if math.isnan(at) else (at >= ends[1:-1]).astype(np.float64))
    rounding = ROUNDING * m
    builder.row([*d, x], [*np.ones(m), -1.0], -ends[0], -ends[0], error=rounding * size)
    for k in range(m - 1):
        builder.row([d[k], z[k]], [1.0, -width[k]], lower=0.0, error=ROUNDING * size)
        builder.row([d[k + 1], z[k]], [1.0, -np.nextafter(width[k + 1], np.inf)], upper=0.0, error=ROUNDING * size)
    for which, sign in ((0, 1.0), (1, -1.0)):
        if not all(sides[which] for sides in pieces):
            continue  # nothing is known there: the lines over the whole interval hold
        a, c = (np.array(part) for part in zip(*((sides[which][0][0][0], sides[which][0][1]) for sides in pieces), strict=True))
        steps = np.diff(a) * ends[1:-1] + np.diff(c)
        error = rounding * float(np.abs(a).max() * size + np.abs(c).max())
        builder.row([y, *d, *z], [sign, *(-sign * a), *(-sign * steps)], lower=sign * (a[0] * ends[0] + c[0]), error=error)


def add_parted(
    builder: ModelBuilder,
    ends: Array,
    pieces: list[Sides],
    box: list[tuple[float, float]],
    xs: list[int],
    place: int,
    y: int,
    at: list[float],
) -> None:
    """Several inputs: on piece k, where the weight z_k - z_(k+1) is 1, the inputs have parts of their own, and the piece's lines hold.

    Args:
        ends: of the pieces, of the input at `place`.
        box: the bounds of every input.
        at: values of the inputs to start from, or NaN.
    """
    m = len(ends) - 1
    known = not any(map(math.isnan, at))
    z = builder.binaries(m - 1, start=(at[place] >= ends[1:-1]).astype(np.float64) if known else math.nan)
    chosen = int(np.searchsorted(ends[1:-1], at[place], side="right")) if known else 0
    weights = [([z[k - 1]] if k else [], [z[k]] if k < m - 1 else []) for k in range(m)]  # 1 or z_k, less z_(k+1)
    for k in range(m - 2):
        builder.row([z[k], z[k + 1]], [1.0, -1.0], lower=0.0)
    parts = []
    for i, x in enumerate(xs):
        bottom, top = (ends[:-1], ends[1:]) if i == place else (np.full(m, end) for end in box[i])
        hot = np.where(np.arange(m) == chosen, at[i], 0.0)
        d = builder.variables(
            np.minimum(bottom, 0.0), np.maximum(top, 0.0), start=hot if known else math.nan, least=float(builder.unit[x]), centred=False
        )
        size = float(max(np.abs(bottom).max(), np.abs(top).max()))
        builder.row([*d, x], [*np.ones(m), -1.0], 0.0, 0.0, error=ROUNDING * m * size)
        for k in range(m):
            _weighted_row(builder, [d[k]], [1.0], weights[k], k, -bottom[k], ROUNDING * size)
            _weighted_row(builder, [d[k]], [-1.0], weights[k], k, top[k], ROUNDING * size)
        parts.append(d)
    for which, sign in ((0, 1.0), (1, -1.0)):
        count = min(len(sides[which]) for sides in pieces)
        for j in range(count):
            columns, values, constant, size = [y], [sign], 0.0, 0.0
            for k, sides in enumerate(pieces):
                slopes, intercept = sides[which][j]
                columns += [int(d[k]) for d in parts]
                values += [-sign * a for a in slopes]
                size += abs(intercept) + sum(abs(a) * builder.unit[int(d[k])] for a, d in zip(slopes, parts, strict=True))
                if not k:
                    constant = sign * intercept
                columns += [int(c) for c in (*weights[k][0], *weights[k][1])]
                values += [-sign * intercept] * len(weights[k][0]) + [sign * intercept] * len(weights[k][1])
            builder.row(*_merged(columns, values), lower=constant, error=ROUNDING * m * size)


def _weighted_row(
    builder: ModelBuilder, columns: list[int], values: list[float], weight: tuple[list[int], list[int]], k: int, factor: float, error: float
) -> None:
    """values . columns + factor * weight >= 0, where the weight of piece 0 is 1 less its breakpoint's binary."""
    plus, minus = weight
    constant = factor if not k else 0.0
    builder.row([*columns, *plus, *minus], [*values, *([factor] * len(plus)), *([-factor] * len(minus))], lower=-constant, error=error)


def _merged(columns: list[int], values: list[float]) -> tuple[Array, Array]:
    """The same row with every column once."""
    index, inverse = np.unique(np.array(columns, dtype=np.int64), return_inverse=True)
    return index, np.bincount(inverse, np.array(values), len(index))  # type: ignore[return-value]
