"""Inequalities between inputs, in rationals: what all disjuncts share, and what they make of a box."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from milpverify.reduction.suspects import ReductionTuning
from milpverify.spec import Box, Rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from milpverify.spec import Array


class NotHeld(Exception):
    """Float64 does not hold a number."""


def held(value: Fraction) -> bool:
    """Whether float64 holds a number."""
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


@dataclass(frozen=True)
class Inequality:
    """terms . x <= rhs, `<` where strict; coefficients by input, none of them 0."""

    terms: dict[int, Fraction]
    rhs: Fraction
    strict: bool

    @property
    def name(self) -> tuple[object, ...]:
        """What tells it from others."""
        return tuple(sorted(self.terms.items())), self.rhs, self.strict


def inequalities(rows: Rows) -> list[Inequality]:
    """Rows on inputs alone, those of finite numbers."""
    found = []
    for row, rhs, strict in zip(rows.x_rows, rows.rhs.tolist(), rows.strict.tolist(), strict=True):
        if math.isfinite(rhs) and np.isfinite(row).all():
            places = np.flatnonzero(row).tolist()
            found.append(Inequality({i: Fraction(float(row[i])) for i in places}, Fraction(rhs), strict))
    return found


def shared(domains: Sequence[Rows]) -> Rows:
    """The rows that are in all of some domains, at least one, which differ in nothing."""
    first, *others = {id(d): d for d in domains}.values()
    names = _names(first)
    common = set(names).intersection(*map(_names, others))
    kept = [r for r, name in enumerate(names) if name in common]
    return Rows(first.x_rows[kept], first.y_rows[kept], first.rhs[kept], first.strict[kept])


def _names(rows: Rows) -> list[tuple[bytes, float, bool]]:
    return [(row.tobytes(), *rest) for row, *rest in zip(rows.x_rows + 0.0, rows.rhs.tolist(), rows.strict.tolist(), strict=True)]


def rows_of(found: Sequence[Inequality], nx: int, ny: int) -> Rows:
    """Inequalities as rows.

    Raises:
        NotHeld: float64 does not hold a number of theirs, whatever power of two multiplies it.
    """
    x_rows, rhs = np.zeros((len(found), nx)), np.zeros(len(found))
    for r, row in enumerate(found):
        numbers = [*row.terms.values(), row.rhs]
        largest = max(map(abs, row.terms.values()), default=Fraction(1))
        scale = Fraction(2) ** (largest.denominator.bit_length() - largest.numerator.bit_length())
        factor = next((f for f in (Fraction(1), scale) if all(held(f * a) for a in numbers)), None)
        if factor is None:
            raise NotHeld
        x_rows[r, list(row.terms)] = [float(factor * a) for a in row.terms.values()]
        rhs[r] = float(factor * row.rhs)
    return Rows(x_rows, np.zeros((len(found), ny)), rhs, np.array([row.strict for row in found], dtype=bool))


def narrowed(
    lower: Array, upper: Array, rows: Iterable[Inequality], ny: int, tuning: ReductionTuning = ReductionTuning()
) -> tuple[Box, Rows] | None:
    """The box (nx,) that inequalities leave of one, rounded outwards, and those that it does not imply; None where nothing is left.

    Raises:
        NotHeld: as `rows_of`.
    """
    low, high = lower.copy(), upper.copy()
    left = list({row.name: row for row in rows}.values())
    for _ in range(tuning.rounds):
        before = low.copy(), high.copy()
        for row in left:
            if not _narrow(row, low, high):
                return None
        with np.errstate(over="ignore", invalid="ignore"):  # of widths beyond float64
            cut = (low - before[0]) + (before[1] - high)
            if not (cut > tuning.least * (before[1] - before[0])).any():
                break
    exact = [row for row in left if not _implied(row, low, high)]
    return Box(low, high), rows_of(exact, len(low), ny)


def _narrow(row: Inequality, low: Array, high: Array) -> bool:
    """Cut off what an inequality excludes of a box, in place; whether anything is left."""
    ends = {i: Fraction(float((low if a > 0 else high)[i])) for i, a in row.terms.items()}
    slack = row.rhs - sum((a * ends[i] for i, a in row.terms.items()), start=Fraction(0))
    if slack < 0 or (slack == 0 and row.strict):
        return False
    for i, a in row.terms.items():
        cut = ends[i] + slack / a
        if a > 0 and cut < Fraction(float(high[i])):
            high[i] = _outward(cut, math.inf)
        elif a < 0 and cut > Fraction(float(low[i])):
            low[i] = _outward(cut, -math.inf)
    return True


def _implied(row: Inequality, low: Array, high: Array) -> bool:
    """Whether every point of a box satisfies an inequality."""
    most = sum((a * Fraction(float((high if a > 0 else low)[i])) for i, a in row.terms.items()), start=Fraction(0))
    return most < row.rhs or (most == row.rhs and not row.strict)


def _outward(value: Fraction, towards: float) -> float:
    """The nearest float64 that is not beyond a number, seen from infinity."""
    found = float(value)
    inside = Fraction(found) < value if towards > 0 else Fraction(found) > value
    return math.nextafter(found, towards) if inside else found
