"""Piecewise-linear functions over intervals: which pieces an interval touches, and the closure of the graph over it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from milpverify.functions.pieces import Pieces
    from milpverify.solvers.model import Array, Index


@dataclass(frozen=True)
class Segment:
    """y = slope x + intercept for x in [lower, upper]."""

    lower: float
    upper: float
    slope: float
    intercept: float


def touched_pieces(pieces: Pieces, lower: Array, upper: Array) -> tuple[Index, Index]:
    """The first and the last piece that each interval touches; at a jump that an interval ends on, both sides count."""
    first, last = np.zeros(lower.shape, dtype=np.int64), np.zeros(lower.shape, dtype=np.int64)
    for k, p in enumerate(pieces.breakpoints):
        smooth = is_continuous(pieces, k)
        first += (lower >= p) if smooth else (lower > p)
        last += (upper > p) if smooth else (upper >= p)
    return first, np.maximum(first, last)


def segments(pieces: Pieces, first: int, last: int, lower: float, upper: float) -> list[Segment]:
    """The closure of the graph over [lower, upper] as segments, the values at jumps as segments of length zero."""
    ends = [-math.inf, *pieces.breakpoints, math.inf]
    found = [Segment(max(lower, ends[k]), min(upper, ends[k + 1]), pieces.slopes[k], pieces.intercepts[k]) for k in range(first, last + 1)]
    for k in range(first, last):
        p, value = pieces.breakpoints[k], pieces.values[k]
        if Fraction(value) not in _limits(pieces, k):
            found.append(Segment(p, p, 0.0, value))
    return found


@lru_cache(maxsize=4096)
def _limits(pieces: Pieces, k: int) -> tuple[Fraction, Fraction]:
    """The limits from the left and from the right at breakpoint k."""
    p = Fraction(pieces.breakpoints[k])
    left, right = (Fraction(pieces.slopes[i]) * p + Fraction(pieces.intercepts[i]) for i in (k, k + 1))
    return left, right


def is_continuous(pieces: Pieces, k: int) -> bool:
    """Whether breakpoint k is a kink, not a jump."""
    left, right = _limits(pieces, k)
    return left == right == Fraction(pieces.values[k])
