"""Rows of a linear program under construction, in either arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from milpverify.acopf.relaxation.arithmetics import ENDLESS, Numbers, Values

if TYPE_CHECKING:
    from milpverify.acopf.case import Index


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows lower <= coefficients . columns <= upper in compressed form, in one arithmetic."""

    start: Index  # (m + 1,)
    column: Index  # (nnz,)
    value: Values  # (nnz,)
    lower: Values  # (m,)
    upper: Values  # (m,)


def bounded(values: Values) -> NDArray[np.bool_]:
    """Which ends of ranges are ends at all, of an array of any shape."""
    return np.array(np.abs(values) < (int(ENDLESS) if values.dtype == object else ENDLESS), dtype=bool)


def contradictory(lower: Values, upper: Values) -> bool:
    """Whether one of the ranges (columns,) has no number in it; what stands for infinity is no end of a range, on either side."""
    return bool((np.array(lower > upper, dtype=bool) & bounded(lower) & bounded(upper)).any())


class Assembly:
    """Rows under construction, from entries (row, column, value, radius of the value)."""

    def __init__(self, numbers: Numbers, columns: int) -> None:
        self.numbers, self.count, self._columns = numbers, 0, columns
        self._entries: list[tuple[Index, Index, Values, Values | None]] = []
        self._lower: list[Values] = []
        self._upper: list[Values] = []

    def open(self, lower: Values, upper: Values) -> None:
        """New rows (r,) without entries."""
        self._lower.append(lower)
        self._upper.append(upper)
        self.count += len(lower)

    def put(self, row: Index, column: Index, value: Values, radius: Values | None = None) -> None:
        """Entries (k,): row, column, value, and its radius."""
        self._entries.append((row, column, self.numbers.of(value), radius))

    def rows(
        self,
        columns: Index,
        values: Values,
        lower: Values | float = -np.inf,
        upper: Values | float = np.inf,
        where: NDArray[np.bool_] | None = None,
    ) -> None:
        """As many new rows as `columns` and `values` (r, p) have, between ends (r,); those not in `where` (r,) are empty."""
        first, count = self.count, len(columns)
        low, high = (self.numbers.of(np.full(count, end)) if isinstance(end, float) else end for end in (lower, upper))
        if where is None:
            where = np.ones(count, dtype=bool)
        endless = self.numbers.of(np.full(count, np.inf))
        self.open(np.where(where, low, -endless), np.where(where, high, endless))
        for k in range(columns.shape[1]):
            self.put(first + np.flatnonzero(where), columns[where, k], values[where, k])

    def finish(self, lower: Values, upper: Values) -> Rows:
        """Entries of one place added up, rows widened over ranges (columns,)."""
        numbers, n = self.numbers, self._columns
        row = np.concatenate([entry[0] for entry in self._entries])
        column = np.concatenate([entry[1] for entry in self._entries])
        value = np.concatenate([entry[2] for entry in self._entries])
        nothing = numbers.of(np.zeros(1))
        radius = np.concatenate([np.broadcast_to(nothing, len(e[0])) if e[3] is None else e[3] for e in self._entries])
        reach = np.maximum(np.abs(lower), np.abs(upper))
        endless = ~bounded(reach)
        reach = np.where(endless, numbers.of(np.zeros(len(reach))), reach)  # whose coefficients are exact, or else the row says nothing
        slack = numbers.of(np.array([numbers.slack]))
        wide = summed(row, (np.abs(value) * slack + radius) * reach[column], self.count, numbers)
        low, high = np.concatenate(self._lower), np.concatenate(self._upper)
        low = np.where(bounded(low), low - wide - slack * np.where(bounded(low), np.abs(low), nothing), low)
        high = np.where(bounded(high), high + wide + slack * np.where(bounded(high), np.abs(high), nothing), high)
        lost, never = row[endless[column] & np.array(radius != 0, dtype=bool)], numbers.of(np.array([np.inf]))
        low[lost], high[lost] = -never, never
        place, where = np.unique(row * n + column, return_inverse=True)
        total = summed(where.reshape(-1), value, len(place), numbers)
        used = np.array(total != 0, dtype=bool)
        place, total = place[used], total[used]
        return Rows(np.searchsorted(place // n, np.arange(self.count + 1)), place % n, total, low, high)


def summed(index: Index, values: Values, count: int, numbers: Numbers) -> Values:
    """The sums (count,) of the values that have the same index."""
    total = numbers.of(np.zeros(count))
    np.add.at(total, index, values)
    return total
