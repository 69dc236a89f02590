"""How models are made: in the network's units, then in those in which a solver's tolerance is a relative one.

Models are well scaled by construction: every variable is a quantity in units of a power of two near the size of its range, every
row is divided by a power of two so that its largest coefficient is about 1, and coefficients too small for a solver's arithmetic
are moved into the row's bounds, outwards. A solver's absolute tolerance is then a relative one in the network's units. Products and
functions whose range no tolerance carries are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from milpverify.errors import MilpverifyError
from milpverify.functions.terms import Term
from milpverify.solvers.expressions import WIDEST
from milpverify.solvers.model import THIN, Array, FunctionTerm, Index, Model, Quadratic, power_of_two

SMALLEST_COEFFICIENT: Final = 2.0**-27
"""Relative to the largest of the row; solvers drop entries below 1e-9, silently."""
VISIBLE: Final = 2.0**-28
"""A few times what solvers take for equal, relative to the largest term of a row."""
FAR: Final = 16.0
"""A quantity this many half-widths of its range away from 0 is centred: solvers' tolerances are in units of what is left."""

_NONE = np.zeros(0, dtype=np.int64)
_NO_PRODUCTS = Quadratic(_NONE, _NONE, _NONE, np.zeros(0))


_NO_PAIRS, _NO_VALUES = np.zeros((2, 0), dtype=np.int64), np.zeros(0)


class NumericallyUnfit(MilpverifyError, ArithmeticError):
    """The model's numbers are beyond what a solver's tolerance carries: it is refused, not solved on faith."""


class OutOfTime(MilpverifyError, TimeoutError):
    """The run's deadline came, or it was cancelled, before the model was built."""


def elastic(model: Model) -> Model:
    """The emptiness model: minimise one slack s >= 0 by which every row may be violated. Feasible by construction.

    s is in units of the rows, whose largest coefficient is about 1. Where the model has a feasible point the minimum is 0, so that a
    dual bound above `safety_margin` proves that it has none, which a solver's word "infeasible" does not. Functions are left out, since
    nobody knows how far they may be violated: what has no feasible point without them has none with them.
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
    quadratic = model.quadratic
    if quadratic is not None:
        places = [(end[quadratic.row], np.cumsum(end) - 1 + first) for end, first in ((below, 0), (above, below.sum()))]
        entries = np.concatenate([np.flatnonzero(kept) for kept, _ in places])
        row = np.concatenate([place[quadratic.row[kept]] for kept, place in places])
        quadratic = Quadratic(row, quadratic.first[entries], quadratic.second[entries], quadratic.value[entries])
    return Model(
        np.append(model.lower, 0.0), np.append(model.upper, 2.0 * worst + 1.0), np.append(model.integer, False), row_start, column, value,
        np.where(sign > 0, model.row_lower[rows], -free), np.where(sign > 0, free, model.row_upper[rows]), np.append(np.zeros(n), 1.0),
        np.append(middle, worst), quadratic,
    )  # fmt: skip


class _Row(NamedTuple):
    columns: Index
    values: Array
    lower: float
    upper: float
    pairs: Index  # (2, k), the columns of its products, ascending
    products: Array  # (k,)


class ModelBuilder:
    """Collects variables and rows in the network's units, and changes to units in which a solver's tolerance is a relative one.

    A quantity q becomes v = (q - centre) / unit with a power of two as unit. The centre is 0, and the change exact, unless the
    quantity is far from 0 for its range: then it is the middle of the range, and what that rounds is moved outwards into the rows.
    """

    def __init__(self) -> None:
        self._variables: list[tuple[Array, Array, Array, bool]] = []  # lower, upper, start in units, whether integer
        self._rows: list[_Row] = []
        self.lines: dict[int, list[tuple[float, ...]]] = {}  # which rows are lines of neurons, see `Origins`
        self.scale: Array = np.zeros(0)  # of the rows, once the model is built
        self._functions: list[tuple[str, Term, int, int]] = []
        self._count = 0
        self._units: Array = np.zeros((4, 64))  # centre, unit, and in units reach and width, with room to grow

    @property
    def centre(self) -> Array:
        """The centres, (n,)."""
        return self._units[0, : self._count]

    @property
    def num_rows(self) -> int:
        """The number of rows so far."""
        return len(self._rows)

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

    def integers(self, lower: float, upper: float) -> Index:
        """Add an integer variable; returns its column. No start is known."""
        ends = np.array([lower]), np.array([upper])
        return self._add(*ends, np.array([math.nan]), np.zeros(1), np.ones(1), integer=True)

    def _add(self, low: Array, high: Array, first: Array, centre: Array, unit: Array, integer: bool) -> Index:
        self._variables.append((low, high, first, integer))
        first_column, self._count = self._count, self._count + len(low)
        if self._count > self._units.shape[1]:
            self._units = np.concatenate([self._units, np.zeros((4, self._count))], axis=1)
        self._units[:, first_column : self._count] = centre, unit, np.maximum(np.abs(low), np.abs(high)), high - low
        return np.arange(first_column, self._count, dtype=np.int64)

    def range(self, columns: Index) -> tuple[Array, Array]:
        """The bounds of some quantities, a rounding error wide at most."""
        low, high = (np.concatenate([np.zeros(0), *(v[i] for v in self._variables)])[columns] for i in (0, 1))
        return self.centre[columns] + self.unit[columns] * low, self.centre[columns] + self.unit[columns] * high

    def row(
        self,
        columns: Iterable[int] | Index,
        coefficients: ArrayLike,
        lower: float = -math.inf,
        upper: float = math.inf,
        error: float = 0.0,
        products: Iterable[tuple[int, int, float]] = (),
    ) -> None:
        """Add lower - error <= coefficients . quantities + the sum of c q_i q_j over the products (i, j, c) <= upper + error."""
        index, c = np.asarray(columns, dtype=np.int64), np.asarray(coefficients, dtype=np.float64)
        keep = c != 0
        if not keep.all():
            index, c = index[keep], c[keep]
        shifts, pairs, q = c * self.centre[index], _NO_PAIRS, _NO_VALUES
        used = [(min(i, j), max(i, j), value) for i, j, value in products if value != 0]
        if used:
            pairs = np.array([(i, j) for i, j, _ in used], dtype=np.int64).T
            q = np.array([value for _, _, value in used], dtype=np.float64)
        if used and self.centre[pairs].any():
            # c (a + v)(b + w) = c a b + c a w + c b v + c v w: what the linear coefficients round, times their quantities, is an error.
            a, b = (self.centre[columns] for columns in pairs)
            shifts = np.concatenate([shifts, q * a * b])
            index, c = np.concatenate([index, *pairs]), np.concatenate([c, q * b, q * a])
            error += (len(c) + 4) * 2.0**-52 * float(np.abs(c) @ self._units[1:3, index].prod(axis=0))
            index, place = np.unique(index, return_inverse=True)
            c = np.bincount(place, c, len(index)).astype(np.float64)
            index, c = index[c != 0], c[c != 0]
        shift, spread = (float(shifts.sum()), float(np.abs(shifts).sum())) if shifts.any() else (0.0, 0.0)
        if spread or error:
            known = max(abs(e) for e in (lower, upper) if math.isfinite(e)) if math.isfinite(max(lower, -upper)) else 0.0
            error += (len(shifts) + 4) * 2.0**-52 * (spread + error + known)
            error = self._seen(index, c, error) if lower > -math.inf and upper < math.inf else error
            lower, upper = lower - shift - error, upper - shift + error
        scale = self.unit[pairs].prod(axis=0) if used else 1.0
        self._rows.append(_Row(index, c * self.unit[index], lower, upper, pairs, q * scale))

    def _seen(self, index: Index, c: Array, error: float) -> float:
        """The error of an equality, or one that solvers see where it is felt by a quantity with a range so narrow that it counts.

        What is thinner is an equality to them (`THIN`), which would fix the quantity at a place that rounding chose.
        """
        terms = np.abs(c) * self.unit[index]
        own = (terms * self._units[3, index])[self._units[3, index] > 0].min(initial=math.inf)
        return max(error, VISIBLE * float(terms.max())) if error > THIN * own else error

    def function(self, result: int, argument: int, function_name: str, term: Term) -> None:
        """Add quantity result = f(quantity argument), with f the term in x, for solvers that know such functions.

        The smaller their units, the more a bound loses (`Model.spans`), and below 1e-4 they are refused: `least` of `variables` keeps
        them up where ranges are narrow.
        """
        self._functions.append((function_name, term, int(result), int(argument)))

    def build(self, costs: dict[int, float]) -> Model:
        """The finished model, minimising the sum of cost times quantity; quantities with a cost must have centre 0."""
        empty = np.zeros(0)
        low, high, first = (np.concatenate([empty, *(v[i] for v in self._variables)]) for i in range(3))
        integer = np.concatenate([empty.astype(bool), *(np.full(len(v[0]), v[3]) for v in self._variables)])
        column = np.concatenate([empty.astype(np.int64), *(row.columns for row in self._rows)])
        value = np.concatenate([empty, *(row.values for row in self._rows)])
        row_start = np.cumsum([0, *(len(row.columns) for row in self._rows)]).astype(np.int64)
        row_lower, row_upper = (np.array([row[end] for row in self._rows], dtype=np.float64) for end in (2, 3))
        objective = np.zeros(len(low))
        for j, cost in costs.items():
            objective[j] = cost * self.unit[j]
        start = first if len(first) and not np.isnan(first).any() else None
        owner = np.repeat(np.arange(len(self._rows)), [len(row.products) for row in self._rows])
        pairs = np.concatenate([np.zeros((2, 0), dtype=np.int64), *(row.pairs for row in self._rows)], axis=1)
        products = np.concatenate([empty, *(row.products for row in self._rows)])
        quadratic = Quadratic(owner, pairs[0], pairs[1], products) if len(owner) else None
        scale = list(zip(self.centre.tolist(), self.unit.tolist(), strict=True)) if self._functions else []
        functions = tuple(FunctionTerm(name, term, y, x, scale[y], scale[x]) for name, term, y, x in self._functions)
        model = Model(low, high, integer, row_start, column, value, row_lower, row_upper, objective, start, quadratic, functions)
        self.scale = _scale(model)
        return scaled(model)


def _scale(model: Model) -> Array:
    """What the rows are divided by, (m,): powers of two near their largest coefficients."""
    largest, quadratic = np.zeros(model.num_rows), model.quadratic or _NO_PRODUCTS
    np.maximum.at(largest, np.repeat(np.arange(model.num_rows), np.diff(model.row_start)), np.abs(model.value))
    np.maximum.at(largest, quadratic.row, np.abs(quadratic.value))
    return power_of_two(largest)


def scaled(model: Model) -> Model:
    """The same model with the largest coefficient of every row in (1/2, 1] and none below 2^-27, which relaxes it where it changes it.

    Only rows thinner than THIN are not relaxed but made equalities, for the solvers' tolerance to carry.

    Raises:
        NumericallyUnfit: a coefficient or a bound is NaN, a coefficient is infinite, or the range of a product or a function is too wide.
    """
    quadratic = model.quadratic or _NO_PRODUCTS
    finite = np.isfinite(model.value).all() and np.isfinite(quadratic.value).all()
    if not finite or np.isnan(model.row_lower).any() or np.isnan(model.row_upper).any():
        raise NumericallyUnfit("a row of the model is not finite")
    m = model.num_rows
    owner = np.repeat(np.arange(m), np.diff(model.row_start))
    scale = _scale(model)
    value, products = model.value / scale[owner], quadratic.value / scale[quadratic.row]
    keep, kept = np.abs(value) >= SMALLEST_COEFFICIENT, np.abs(products) >= SMALLEST_COEFFICIENT
    furthest = np.maximum(np.abs(model.lower), np.abs(model.upper))
    reach = np.abs(value[~keep]) * furthest[model.column[~keep]]
    reaches = np.abs(products[~kept]) * furthest[quadratic.first[~kept]] * furthest[quadratic.second[~kept]]
    slack = (np.bincount(owner[~keep], reach, m) + np.bincount(quadratic.row[~kept], reaches, m)) * (1 + 2.0**-40)
    row_lower, row_upper = model.row_lower / scale, model.row_upper / scale
    touched = slack > 0
    row_lower[touched] = np.nextafter(row_lower - slack, -np.inf)[touched]
    row_upper[touched] = np.nextafter(row_upper + slack, np.inf)[touched]
    width = row_upper - row_lower
    thin = width <= THIN
    row_lower[thin] = row_upper[thin] = row_lower[thin] + 0.5 * width[thin]
    row_start = np.concatenate([[0], np.cumsum(np.bincount(owner[keep], minlength=m))]).astype(np.int64)
    rest = Quadratic(quadratic.row[kept], quadratic.first[kept], quadratic.second[kept], products[kept]) if kept.any() else None
    made = replace(
        model, row_start=row_start, column=model.column[keep], value=value[keep], row_lower=row_lower, row_upper=row_upper, quadratic=rest
    )
    spans = made.spans()
    if not (spans <= WIDEST).all():  # NaN is no range either
        worst, count = int(np.argmax(spans)), len(rest.row) if rest is not None else 0
        what = "a product" if worst < count else made.functions[(worst - count) // 2].name
        raise NumericallyUnfit(f"{what} has a range of {spans[worst]:.3g} in the model, which solvers' tolerances do not carry")
    return made
