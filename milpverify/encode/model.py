"""How models are made: in the network's units, then in those in which a solver's tolerance is a relative one.

Models are well scaled by construction: every variable is a quantity in units of a power of two near the size of its range, every
row is divided by a power of two so that its largest coefficient is about 1, and coefficients too small for a solver's arithmetic
are moved into the row's bounds, outwards. A solver's absolute tolerance is then a relative one in the network's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from milpverify.errors import MilpverifyError
from milpverify.solvers.model import Array, Index, Model, power_of_two

SMALLEST_COEFFICIENT = 2.0**-27  # relative to the largest of the row; solvers drop entries below 1e-9, silently
THIN = 2.0**-33  # a row this thin, a tenth of the solvers' tolerance, is an equality, which presolve can substitute
FAR = 16.0  # a quantity this many half-widths of its range away from 0 is centred


class NumericallyUnfit(MilpverifyError, ArithmeticError):
    """The model's numbers are beyond what a solver's tolerance carries: it is refused, not solved on faith."""


class OutOfTime(MilpverifyError, TimeoutError):
    """The run's deadline came, or it was cancelled, before the model was built."""


def elastic(model: Model) -> Model:
    """The emptiness model: minimise one slack s >= 0 by which every row may be violated. Feasible by construction.

    s is in units of the rows, whose largest coefficient is about 1. Where the model has a feasible point the minimum is 0, so that a
    dual bound above `safety_margin` proves that it has none, which a solver's word "infeasible" does not.
    """
    bounded = np.isfinite(model.lower) & np.isfinite(model.upper)
    middle = np.where(bounded, model.lower + 0.5 * (np.where(bounded, model.upper, 0.0) - np.where(bounded, model.lower, 0.0)), 0.0)
    middle = np.where(model.integer, np.floor(middle), middle)
    activity = model.activity(middle)
    below, above = np.isfinite(model.row_lower), np.isfinite(model.row_upper)
    worst = max(
        0.0, float((model.row_lower - activity)[below].max(initial=0.0)), float((activity - model.row_upper)[above].max(initial=0.0))
    )
    n, lengths = model.num_variables, np.diff(model.row_start)
    rows = np.concatenate([np.flatnonzero(below), np.flatnonzero(above)])  # one for every finite end
    sign = np.concatenate([np.ones(below.sum()), -np.ones(above.sum())])
    row_start = np.concatenate([[0], np.cumsum(lengths[rows] + 1)]).astype(np.int64)
    total = int(row_start[-1])
    column, value, own = np.full(total, n, dtype=np.int64), np.empty(total), np.ones(total, dtype=bool)
    own[row_start[1:] - 1] = False
    value[~own] = sign
    offset = np.arange(int(lengths[rows].sum())) - np.repeat(np.cumsum(lengths[rows]) - lengths[rows], lengths[rows])
    source = np.repeat(model.row_start[rows], lengths[rows]) + offset
    column[own], value[own] = model.column[source], model.value[source]
    free = np.full(len(rows), math.inf)
    return Model(
        np.append(model.lower, 0.0), np.append(model.upper, 2.0 * worst + 1.0), np.append(model.integer, False), row_start, column, value,
        np.where(sign > 0, model.row_lower[rows], -free), np.where(sign > 0, free, model.row_upper[rows]), np.append(np.zeros(n), 1.0),
        np.append(middle, worst),
    )  # fmt: skip


class ModelBuilder:
    """Collects variables and rows in the network's units, and changes to units in which a solver's tolerance is a relative one.

    A quantity q becomes v = (q - centre) / unit with a power of two as unit. The centre is 0, and the change exact, unless the
    quantity is far from 0 for its range: then it is the middle of the range, and what that rounds is moved outwards into the rows.
    """

    def __init__(self) -> None:
        self._variables: list[tuple[Array, Array, Array, bool]] = []  # lower, upper, start in units, whether integer
        self._rows: list[tuple[Index, Array, float, float]] = []
        self._count = 0
        self._units: Array = np.zeros((2, 64))  # centre and unit, with room to grow

    @property
    def centre(self) -> Array:
        """The centres, (n,)."""
        return self._units[0, : self._count]

    @property
    def unit(self) -> Array:
        """The units, (n,), powers of two."""
        return self._units[1, : self._count]

    def variables(
        self, lower: ArrayLike, upper: ArrayLike, *, least: float = 0.0, start: ArrayLike = math.nan, centred: bool = True
    ) -> Index:
        """Add quantities within bounds, in units not smaller than `least`; returns their columns. `start` is NaN where unknown.

        Raises:
            NumericallyUnfit: a bound is not finite.
        """
        low, high, first = (np.array(a, dtype=np.float64) for a in np.broadcast_arrays(np.atleast_1d(lower), upper, start))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise NumericallyUnfit("a variable of the model has no finite bounds")
        reach, half = np.maximum(np.abs(low), np.abs(high)), 0.5 * high - 0.5 * low
        far = (reach > FAR * half) & centred
        centre = np.where(far, low + half, 0.0)
        unit = power_of_two(np.maximum(np.where(far, half, reach), least))
        down, up = (low - centre) / unit, (high - centre) / unit
        down[far], up[far] = np.nextafter(down[far], -np.inf), np.nextafter(up[far], np.inf)
        fixed = far & (low == high)
        down[fixed] = up[fixed] = 0.0
        return self._add(down, up, np.clip((first - centre) / unit, down, up), centre, unit, integer=False)

    def binaries(self, count: int, start: ArrayLike = math.nan) -> Index:
        """Add 0-1 variables; returns their columns."""
        first = np.array(np.broadcast_to(start, count), dtype=np.float64)
        return self._add(np.zeros(count), np.ones(count), first, np.zeros(count), np.ones(count), integer=True)

    def _add(self, low: Array, high: Array, first: Array, centre: Array, unit: Array, integer: bool) -> Index:
        self._variables.append((low, high, first, integer))
        first_column, self._count = self._count, self._count + len(low)
        if self._count > self._units.shape[1]:
            self._units = np.concatenate([self._units, np.zeros((2, self._count))], axis=1)
        self.centre[first_column:], self.unit[first_column:] = centre, unit
        return np.arange(first_column, self._count, dtype=np.int64)

    def range(self, columns: Index) -> tuple[Array, Array]:
        """The bounds of some quantities, a rounding error wide at most."""
        low, high = (np.concatenate([np.zeros(0), *(v[i] for v in self._variables)])[columns] for i in (0, 1))
        return self.centre[columns] + self.unit[columns] * low, self.centre[columns] + self.unit[columns] * high

    def row(
        self, columns: Iterable[int] | Index, coefficients: ArrayLike, lower: float = -math.inf, upper: float = math.inf, error: float = 0.0
    ) -> None:
        """Add lower - error <= coefficients . quantities <= upper + error."""
        index, c = np.asarray(columns, dtype=np.int64), np.asarray(coefficients, dtype=np.float64)
        keep = c != 0
        index, c = index[keep], c[keep]
        shifts = c * self.centre[index]
        shift, spread = float(shifts.sum()), float(np.abs(shifts).sum())
        if spread or error:
            known = max(abs(e) for e in (lower, upper) if math.isfinite(e)) if math.isfinite(max(lower, -upper)) else 0.0
            error += (len(c) + 4) * 2.0**-52 * (spread + error + known)
            lower, upper = lower - shift - error, upper - shift + error
        self._rows.append((index, c * self.unit[index], lower, upper))

    def build(self, costs: dict[int, float]) -> Model:
        """The finished model, minimising the sum of cost times quantity; quantities with a cost must have centre 0."""
        empty = np.zeros(0)
        low, high, first = (np.concatenate([empty, *(v[i] for v in self._variables)]) for i in range(3))
        integer = np.concatenate([empty.astype(bool), *(np.full(len(v[0]), v[3]) for v in self._variables)])
        column = np.concatenate([empty.astype(np.int64), *(row[0] for row in self._rows)])
        value = np.concatenate([empty, *(row[1] for row in self._rows)])
        row_start = np.cumsum([0, *(len(row[0]) for row in self._rows)]).astype(np.int64)
        bounds = np.array([row[2:] for row in self._rows], dtype=np.float64).reshape(-1, 2)
        objective = np.zeros(len(low))
        for j, cost in costs.items():
            objective[j] = cost * self.unit[j]
        start = first if len(first) and not np.isnan(first).any() else None
        return scaled(Model(low, high, integer, row_start, column, value, bounds[:, 0].copy(), bounds[:, 1].copy(), objective, start))


def scaled(model: Model) -> Model:
    """The same model with the largest coefficient of every row in (1/2, 1] and none below 2^-27, which relaxes it where it changes it.

    Only rows thinner than THIN are not relaxed but made equalities, for the solvers' tolerance to carry.

    Raises:
        NumericallyUnfit: a coefficient or a bound is NaN, or a coefficient is infinite.
    """
    if not np.isfinite(model.value).all() or np.isnan(model.row_lower).any() or np.isnan(model.row_upper).any():
        raise NumericallyUnfit("a row of the model is not finite")
    m = model.num_rows
    owner = np.repeat(np.arange(m), np.diff(model.row_start))
    largest = np.zeros(m)
    np.maximum.at(largest, owner, np.abs(model.value))
    scale = power_of_two(largest)
    value = model.value / scale[owner]
    keep = np.abs(value) >= SMALLEST_COEFFICIENT
    reach = np.abs(value[~keep]) * np.maximum(np.abs(model.lower), np.abs(model.upper))[model.column[~keep]]
    slack = np.bincount(owner[~keep], reach, m) * (1 + 2.0**-40)
    row_lower, row_upper = model.row_lower / scale, model.row_upper / scale
    touched = slack > 0
    row_lower[touched] = np.nextafter(row_lower - slack, -np.inf)[touched]
    row_upper[touched] = np.nextafter(row_upper + slack, np.inf)[touched]
    width = row_upper - row_lower
    thin = width <= THIN
    row_lower[thin] = row_upper[thin] = row_lower[thin] + 0.5 * width[thin]
    row_start = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=m))]).astype(np.int64)
    return replace(model, row_start=row_start, column=model.column[keep], value=value[keep], row_lower=row_lower, row_upper=row_upper)
