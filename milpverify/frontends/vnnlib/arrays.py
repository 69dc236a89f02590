"""Conjunctions as arrays: equal boxes and equal rows are shared, and all rows are views of one table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import numpy as np

from milpverify.errors import InvalidProperty
from milpverify.frontends.vnnlib.alternatives import Ceilings, Conjunction, PropertyTuning, Row
from milpverify.spec import Array, Box, Disjunct, Rows

MOST_ENTRIES: Final = 2**27
"""Coefficients of the inequalities of all disjuncts together, of which some gigabytes follow; a property of more is refused."""
_LARGEST = Fraction(float(np.finfo(np.float64).max))


@dataclass(frozen=True, eq=False)
class Arrays:
    """What makes disjuncts of conjunctions: the bounds that all of them share, and all rows of the property (grows)."""

    base: Ceilings
    rows: list[Row]
    nx: int
    ny: int
    where: str
    tuning: PropertyTuning = field(default_factory=PropertyTuning)

    def disjuncts(self, conjunctions: list[Conjunction], pace: Callable[[], None]) -> tuple[Disjunct, ...]:
        """The conjunctions; `pace` is called from time to time, and may raise."""
        if len(self.base) < 2 * self.nx:
            conjunctions = self.completed(conjunctions, pace)
        tops = np.full(2 * self.nx, np.inf)
        for key, (value, _) in self.base.items():
            tops[key] = value if type(value) is float else _upward(value)
        boxes: dict[bytes, Box] = {}
        bounds: dict[int, tuple[Box, tuple[int, ...]]] = {}  # by the identity of the ceilings, which `conjunctions` keeps alive
        sharp: dict[tuple[int, float | Fraction, bool], int] = {}
        parts: list[tuple[Box, tuple[int, ...], tuple[int, ...]]] = []
        on_outputs = [max(row.variables) >= self.nx for row in self.rows]
        for k, (ceilings, rows) in enumerate(conjunctions):
            if k % self.tuning.part == 0:
                pace()
            if id(ceilings) not in bounds:
                own = tops.copy()
                for key, (value, _) in ceilings.items():
                    own[key] = _upward(value)
                name = own.tobytes()
                if name not in boxes:
                    boxes[name] = self.box(own)
                bounds[id(ceilings)] = boxes[name], tuple(self.sharp_rows({**self.base, **ceilings}, sharp))
            box, extra = bounds[id(ceilings)]
            unsafe = tuple(r for r in rows if on_outputs[r])
            parts.append((box, unsafe, extra if len(unsafe) == len(rows) else extra + tuple(r for r in rows if not on_outputs[r])))
        unsafe_rows = self.tables([unsafe for _, unsafe, _ in parts], pace)
        domains = self.tables([domain for _, _, domain in parts], pace)
        return tuple(Disjunct(box, unsafe_rows[unsafe], domains[domain]) for box, unsafe, domain in parts)

    def completed(self, conjunctions: list[Conjunction], pace: Callable[[], None]) -> list[Conjunction]:
        """The conjunctions with the bounds that their rows imply, rounded outwards, but for those that so turn out to be empty."""
        missing = [key for key in range(2 * self.nx) if key not in self.base]
        wanted = {id(c.ceilings): [key for key in missing if key not in c.ceilings] for c in conjunctions}
        if not any(wanted.values()):
            return conjunctions
        from milpverify.frontends.vnnlib.implied import Empty, implied

        known: dict[tuple[int, tuple[int, ...]], Ceilings | None] = {}
        for c in conjunctions:
            pace()
            if wanted[id(c.ceilings)] and (id(c.ceilings), c.rows) not in known:
                stated = {**self.base, **c.ceilings}
                try:
                    found = implied(stated, [self.rows[r] for r in c.rows], wanted[id(c.ceilings)], pace, self.tuning)
                except Empty:
                    known[id(c.ceilings), c.rows] = None
                    continue
                ends = {**{key: value for key, (value, _) in stated.items()}, **found}
                empty = any(key ^ 1 in ends and value < -ends[key ^ 1] for key, value in found.items())
                rounded = {key: (_upward(value), True) for key, value in found.items() if abs(value) <= _LARGEST}
                known[id(c.ceilings), c.rows] = None if empty else {**c.ceilings, **rounded}
        whole = [(c, known.get((id(c.ceilings), c.rows), c.ceilings)) for c in conjunctions]
        return [Conjunction(ceilings, c.rows) for c, ceilings in whole if ceilings is not None]

    def box(self, tops: Array) -> Box:
        """The box of the upper bounds of X_i and of -X_i, in turns: `tops` (2 nx,).

        Raises:
            InvalidProperty: an input has no such bound.
        """
        missing = np.flatnonzero(np.isinf(tops))
        if missing.size:
            i, side = divmod(int(missing[0]), 2)
            raise InvalidProperty(f"{self.where}: input X_{i} has no {('upper', 'lower')[side]} bound")
        return Box(0.0 - tops[1::2], tops[0::2])

    def sharp_rows(self, ceilings: Ceilings, known: dict[tuple[int, float | Fraction, bool], int]) -> list[int]:
        """The numbers of the inequalities on single inputs that exclude points of the closed binary64 box."""
        out = []
        for key, (value, closed) in ceilings.items():
            if closed and isinstance(value, float):
                continue
            if (key, value, closed) not in known:
                # value = top / bottom, scaled by a power of two: for a binary64 value bottom is 1.
                bottom = 1 if isinstance(value, float) else value.denominator
                scale = Fraction(2) ** (1 - bottom.bit_length())
                coefficient, rhs = float(bottom * scale), float(Fraction(value) * bottom * scale)
                self.rows.append(Row((key // 2,), (-coefficient if key % 2 else coefficient,), rhs, not closed))
                known[key, value, closed] = len(self.rows) - 1
            out.append(known[key, value, closed])
        return out

    def tables(self, wanted: Sequence[tuple[int, ...]], pace: Callable[[], None]) -> dict[tuple[int, ...], Rows]:
        """Some tuples of rows as objects: parts of one table.

        Raises:
            InvalidProperty: they have too many coefficients.
        """
        tuples = list(dict.fromkeys(wanted))
        used, places = np.unique(np.array([r for rows in tuples for r in rows], dtype=np.int64), return_inverse=True)
        in_x = any(min(self.rows[r].variables) < self.nx for r in used.tolist())
        if (entries := (len(used) + len(places)) * (self.ny + in_x * self.nx)) > MOST_ENTRIES:
            raise InvalidProperty(
                f"{self.where}: the assertions multiply out to {entries} coefficients; split the property into several files"
            )
        table = self.table([self.rows[r] for r in used.tolist()], in_x)
        pace()
        return dict(zip(tuples, Rows.parts(table, places, itertools.accumulate(map(len, tuples))), strict=True))

    def table(self, rows: Sequence[Row], in_x: bool) -> Rows:
        """Some inequalities as one object; `in_x`: whether any has an input."""
        x_rows = np.zeros((len(rows), self.nx)) if in_x else np.broadcast_to(0.0, (len(rows), self.nx))
        y_rows = np.zeros((len(rows), self.ny))
        for k, row in enumerate(rows):
            for variable, coefficient in zip(row.variables, row.coefficients, strict=True):
                if variable < self.nx:
                    x_rows[k, variable] = coefficient
                else:
                    y_rows[k, variable - self.nx] = coefficient
        return Rows(x_rows, y_rows, np.array([row.rhs for row in rows]), np.array([row.strict for row in rows], dtype=bool))


def _upward(value: float | Fraction) -> float:
    """The smallest binary64 number that is at least the value."""
    nearest = float(value)
    return nearest if nearest >= value else math.nextafter(nearest, math.inf)
