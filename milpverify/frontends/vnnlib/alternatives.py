"""Conjunctions of inequalities, of which a property has very many: shared rows, and what adds nothing to what is there."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from milpverify.tuning import Tuning

Ceilings = dict[int, tuple[float | Fraction, bool]]
"""Bounds of single inputs: key 2 i is an upper bound of X_i, key 2 i + 1 one of -X_i. The pair (value, closed) is smaller where the bound
is tighter; a value that no binary64 equals stays a fraction, and Python compares the two exactly."""


class PropertyTuning(Tuning):
    """How much is done to make a property's disjuncts few and their boxes small while it is read."""

    comparisons: int = 2**22
    """Of bounds and rows of alternatives, of which those within others are left out; where it takes more all stay."""
    small: int = 2**7
    most: int = 2**13
    """Coefficients of a system of rows all of whose bounds of inputs are asked of linear programs, and of one that is sent to any."""
    rounds: int = 4
    """How often a row may tighten a bound that it gave already, beyond the number of its variables."""
    pivots: int = 20
    """Of a linear program in rationals, per row, before Bland's rule."""
    part: int = 4096
    """Commands, or conjunctions, between two looks at the time."""


class Conjunction(NamedTuple):
    """Bounds beyond those of the whole file, and the numbers of the other inequalities, which ascend."""

    ceilings: Ceilings
    rows: tuple[int, ...] = ()


class Row(NamedTuple):
    """An inequality with binary64 numbers: its variables and coefficients, right-hand side, strictness."""

    variables: tuple[int, ...]
    coefficients: tuple[float, ...]
    rhs: float
    strict: bool

    @property
    def limit(self) -> tuple[float, bool]:
        """Smaller where the row is tighter, among those with the same coefficients."""
        return self.rhs, not self.strict


class RowTable:
    """All inequalities of a property, each once; `direction` tells which have the same coefficients."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.direction: list[int] = []
        self._known: dict[Row, int] = {}
        self._directions: dict[tuple[tuple[int, ...], tuple[float, ...]], int] = {}

    def add(self, row: Row) -> int:
        """The number of a row, new or known."""
        if row not in self._known:
            self._known[row] = len(self.rows)
            self.rows.append(row)
            self.direction.append(self._directions.setdefault((row.variables, row.coefficients), len(self._directions)))
        return self._known[row]

    def tightest(self, a: tuple[int, ...], b: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The rows of both, the tightest of each direction alone."""
        if not a or (not b and len(a) == 1):
            return b or a
        best: dict[int, int] = {}
        for row in (*a, *b):
            direction = self.direction[row]
            known = best.setdefault(direction, row)
            if known != row and self.rows[row].limit < self.rows[known].limit:
                best[direction] = row
        return tuple(sorted(best.values()))


def undominated(options: list[Conjunction], table: RowTable, tuning: PropertyTuning = PropertyTuning()) -> list[Conjunction]:
    """The alternatives without those that lie within another: that have all its bounds and rows, or tighter ones of the same directions.

    Where they take more than `tuning.comparisons` all stay.
    """
    if not 1 < len(options) <= tuning.comparisons**0.5:
        return options
    limits = [_limits(option, table) for option in options]
    keys = {key for limit in limits for key in limit}
    if len(options) ** 2 * max(1, len(keys)) > tuning.comparisons:
        return options
    ranks = np.empty((len(options), len(keys)), dtype=np.int64)
    for k, key in enumerate(keys):
        place = {value: rank for rank, value in enumerate(sorted({limit[key] for limit in limits if key in limit}))}
        ranks[:, k] = [place[limit[key]] if key in limit else len(place) for limit in limits]
    within = (ranks[:, None] >= ranks[None]).all(2)  # [i, j]: j within i
    earlier = np.arange(len(options))[:, None] < np.arange(len(options))
    kept = np.flatnonzero(~(within & (~within.T | earlier)).any(0))
    return [options[k] for k in kept.tolist()]


def _limits(option: Conjunction, table: RowTable) -> dict[tuple[str, int], tuple[float | Fraction, bool]]:
    limits: dict[tuple[str, int], tuple[float | Fraction, bool]] = {("bound", key): ceiling for key, ceiling in option.ceilings.items()}
    return limits | {("row", table.direction[r]): table.rows[r].limit for r in option.rows}
