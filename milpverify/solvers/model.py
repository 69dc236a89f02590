"""What is sent to a solver: numpy arrays or text only, so that worker processes need neither torch nor the graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milpverify.functions.terms import Term
from milpverify.solvers.base import Capability
from milpverify.solvers.expressions import value_of

Array = NDArray[np.float64]
Index = NDArray[np.int64]

TOLERANCE: Final = 1e-9
"""The feasibility, integrality and optimality tolerance asked of every MILP solver, in units of the scaled model."""
THIN: Final = 2.0**-33
"""A row this thin, a tenth of that, is made an equality, which presolve can substitute."""


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Products in rows: value[k] v[first[k]] v[second[k]] is added to row[k]; first <= second, in the order of rows."""

    row: Index  # (q,)
    first: Index  # (q,)
    second: Index  # (q,)
    value: Array  # (q,)


@dataclass(frozen=True)
class FunctionTerm:
    """centre + unit v[result] = f(centre + unit v[argument]), each with its own centre and unit; `term` is f in x, without parameters."""

    name: str  # of the function, for messages
    term: Term
    result: int
    argument: int
    result_scale: tuple[float, float]  # centre and unit
    argument_scale: tuple[float, float]
    weight: float = 1.0  # what the row is multiplied by, where it is one

    def residual(self, point: Array) -> float:
        """By how much v[result] differs from what it has to be, in its unit; infinite where f has no value."""
        (centre, unit), (middle, width) = self.result_scale, self.argument_scale
        value = (value_of(self.term, middle + width * float(point[self.argument])) - centre) / unit
        return abs(value - float(point[self.result])) if math.isfinite(value) else math.inf


@dataclass(frozen=True, eq=False)
class Model:
    """Minimise objective . v subject to row_lower <= rows v <= row_upper, lower <= v <= upper, v integer where flagged.

    n variables, m rows in compressed form: row i has the entries row_start[i] to row_start[i + 1] of `column` and `value`, and the
    products of `quadratic` that are its own. `functions` hold besides. `start` (n,) is a feasible point to begin with; where a linear
    model has `basic` (n + m,), it says which variables and rows are basic there. All float64; row bounds may be infinite, variable bounds
    too in tests.
    """

    lower: Array  # (n,)
    upper: Array  # (n,)
    integer: NDArray[np.bool_]  # (n,)
    row_start: Index  # (m + 1,)
    column: Index  # (nnz,)
    value: Array  # (nnz,)
    row_lower: Array  # (m,)
    row_upper: Array  # (m,)
    objective: Array  # (n,)
    start: Array | None = None
    quadratic: Quadratic | None = None
    functions: tuple[FunctionTerm, ...] = ()
    basic: NDArray[np.bool_] | None = None

    @property
    def num_variables(self) -> int:
        """n."""
        return len(self.lower)

    @property
    def num_rows(self) -> int:
        """m."""
        return len(self.row_lower)

    @property
    def required(self) -> frozenset[Capability]:
        """The capabilities that a solver must have."""
        parts = {
            Capability.LINEAR: True,
            Capability.INTEGER: self.integer.any(),
            Capability.QUADRATIC: self.quadratic is not None,
            Capability.FUNCTIONS: bool(self.functions),
        }
        return frozenset(part for part, needed in parts.items() if needed)

    def sharpened(self, factor: float) -> Model:
        """The same model with its rows multiplied by a power of two, so that an absolute tolerance means less in each."""
        quadratic = None if self.quadratic is None else replace(self.quadratic, value=factor * self.quadratic.value)
        functions = tuple(replace(f, weight=factor * f.weight) for f in self.functions)
        value, row_lower, row_upper = (factor * part for part in (self.value, self.row_lower, self.row_upper))
        return replace(self, value=value, row_lower=row_lower, row_upper=row_upper, quadratic=quadratic, functions=functions)

    def row(self, i: int) -> tuple[Index, Array]:
        """The columns and values of row i."""
        part = slice(self.row_start[i], self.row_start[i + 1])
        return self.column[part], self.value[part]

    def products(self, i: int) -> tuple[Index, Index, Array]:
        """The two columns and the value of each product of row i."""
        q = self.quadratic
        if q is None:
            return self.column[:0], self.column[:0], self.value[:0]
        part = slice(*np.searchsorted(q.row, [i, i + 1]))
        return q.first[part], q.second[part], q.value[part]

    def activity(self, point: Array) -> Array:
        """rows v with their products, (m,)."""
        owner = np.repeat(np.arange(self.num_rows), np.diff(self.row_start))
        total = np.zeros(self.num_rows)
        np.add.at(total, owner, self.value * point[self.column])
        if self.quadratic is not None:
            np.add.at(total, self.quadratic.row, self.quadratic.value * point[self.quadratic.first] * point[self.quadratic.second])
        return total

    def spans(self) -> Array:
        """The range of every product, and after them of the argument and the result of every function, whose sizes solvers work with.

        A product's range is its coefficient times those of its variables. A function is written in the network's units: what counts is
        how far from 0 its argument or result may be, in these units or in its own one, whichever is more. Nothing counts as less than 1
        in either, since tolerances are absolute ones.
        """
        furthest = np.maximum(1.0, np.maximum(np.abs(self.lower), np.abs(self.upper)))
        parts = [np.zeros(0)]
        if self.quadratic is not None:
            parts.append(np.abs(self.quadratic.value) * furthest[self.quadratic.first] * furthest[self.quadratic.second])
        for f in self.functions:
            for column, (centre, unit) in ((f.argument, f.argument_scale), (f.result, f.result_scale)):
                parts.append(np.array([max(1.0, abs(centre) + unit * furthest[column]) * max(1.0, 1.0 / unit)]))
        return np.concatenate(parts)

    def dual_value(self, objective: Array, multipliers: Array) -> float:
        """A lower bound of objective . v over a linear model, from any multipliers (m,) of its rows: weak duality, rounding charged.

        objective . v >= sum y_i (row_lower_i where y_i > 0, else row_upper_i) + sum_j min(r_j v_j), with r = objective - rows^T y.
        Multipliers that have no such end count as 0; the bound is -inf where a variable has none.
        """
        ends = np.where(multipliers > 0, self.row_lower, self.row_upper)
        y = np.where(np.isfinite(ends) & np.isfinite(multipliers), multipliers, 0.0)
        spent = y[np.repeat(np.arange(self.num_rows), np.diff(self.row_start))] * self.value
        reduced = objective - np.bincount(self.column, spent, self.num_variables)
        size = np.abs(objective) + np.bincount(self.column, np.abs(spent), self.num_variables)
        used = reduced != 0
        bounds = np.where(reduced > 0, self.lower, self.upper)[used]
        if not np.isfinite(bounds).all():
            return -math.inf
        rows = np.where(y != 0, y * np.where(np.isfinite(ends), ends, 0.0), 0.0)
        reach = np.maximum(np.abs(self.lower), np.abs(self.upper))
        thin = float(np.abs(y[self.row_lower == self.row_upper]).sum())  # an equality may stand for a row that is not quite one
        charged = float(np.abs(rows).sum()) + float(size @ np.where(np.isfinite(reach), reach, 0.0))
        total = float(rows.sum()) + float(reduced[used] @ bounds)
        return total - 2.0**-52 * (len(spent) + len(rows) + 8) * charged - 0.5 * THIN * thin

    def violation(self, point: Array) -> float:
        """The largest violation of any row, function, bound or integrality at a point (n,)."""
        activity = self.activity(point)
        parts = (self.lower - point, point - self.upper, self.row_lower - activity, activity - self.row_upper)
        whole = np.abs(point - np.round(point))[self.integer]
        return max(0.0, *(float(part.max(initial=0.0)) for part in (*parts, whole)), *(f.residual(point) for f in self.functions))


@dataclass(frozen=True, eq=False)
class Sweep:
    """A linear model, and then the least value of side[k] v[column[k]] for every k, where the model's objective is at most `cutoff`.

    Where the least objective is a limit's `dual_target` or more, the rest is left out. `certified` asks for solutions and multipliers.
    """

    model: Model
    column: Index  # (K,)
    side: Array  # (K,), +1 or -1
    cutoff: float
    certified: bool = False

    @property
    def required(self) -> frozenset[Capability]:
        """The capabilities that a solver must have."""
        return self.model.required | {Capability.SWEEP}


class Logic(Enum):
    """What an SMT script speaks of, by SMT-LIB's names of quantifier-free logics over the reals; each contains those before it."""

    LINEAR = "QF_LRA"
    POLYNOMIAL = "QF_NRA"  # what polynomials define: quotients and roots, too
    TRANSCENDENTAL = "QF_NRAT"

    @property
    def rank(self) -> int:
        """0 for the poorest."""
        return list(Logic).index(self)


@dataclass(frozen=True)
class SmtScript:
    """An SMT-LIB 2 script that is satisfiable if and only if a counterexample exists; `inputs` names the constants of x."""

    text: str
    inputs: tuple[str, ...]
    logic: Logic = Logic.LINEAR

    @property
    def required(self) -> frozenset[Capability]:
        """The capabilities that a solver must have."""
        transcendental = {Capability.SMT_TRANSCENDENTAL} if self.logic is Logic.TRANSCENDENTAL else set()
        return frozenset({Capability.SMT} | transcendental)


def power_of_two(magnitude: ArrayLike) -> Array:
    """The smallest power of two >= each magnitude (1 where it is 0), so that dividing by it is exact."""
    m = np.abs(np.asarray(magnitude, dtype=np.float64))
    fraction, exponent = np.frexp(np.where(m > 0, m, 1.0))
    scale: Array = np.ldexp(np.ones_like(m), exponent - (fraction == 0.5))
    return scale
