"""The solver-neutral mixed-integer model: numpy arrays only, so that worker processes need neither torch nor the graph.

Models are well scaled by construction: every variable is a quantity divided by a power of two near its largest magnitude, every
row is divided by a power of two so that its largest coefficient is about 1, and coefficients too small for a solver's arithmetic
are moved into the row's bounds, outwards. A solver's absolute tolerance is then a relative one in the network's units.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milpverify.errors import MilpverifyError

if TYPE_CHECKING:
    from milpverify.solvers.base import SolveOutcome

Array = NDArray[np.float64]
Index = NDArray[np.int64]

TOLERANCE = 1e-9
"""The feasibility, integrality and optimality tolerance asked of every MILP solver, in units of the scaled model."""
SMALLEST_COEFFICIENT = 2.0**-27  # relative to the largest of the row; solvers drop entries below 1e-9, silently
THIN = 2.0**-37  # a row this thin, a hundredth of the solvers' tolerance, is an equality, which presolve can substitute
SAFETY = 16.0  # the multiple of the tolerance that a dual bound must clear


class Capability(Enum):
    """What a model needs and a solver offers."""

    LINEAR = "linear"
    INTEGER = "integer"
    INDICATOR = "indicator constraints"
    NONLINEAR = "nonlinear terms"
    SMT = "exact SMT"


class NumericallyUnfit(MilpverifyError, ArithmeticError):
    """The model's numbers are beyond what a solver's tolerance carries: it is refused, not solved on faith."""


@dataclass(frozen=True, eq=False)
class Model:
    """Minimise objective . v subject to row_lower <= rows v <= row_upper, lower <= v <= upper, v integer where flagged.

    n variables, m rows in compressed form: row i has the entries row_start[i] to row_start[i + 1] of `column` and `value`.
    `start` (n,) is a feasible point to begin with. All float64; row bounds may be infinite, variable bounds too in tests.
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
        return frozenset({Capability.LINEAR} | ({Capability.INTEGER} if self.integer.any() else set()))

    def row(self, i: int) -> tuple[Index, Array]:
        """The columns and values of row i."""
        part = slice(self.row_start[i], self.row_start[i + 1])
        return self.column[part], self.value[part]

    def activity(self, point: Array) -> Array:
        """rows v, (m,)."""
        owner = np.repeat(np.arange(self.num_rows), np.diff(self.row_start))
        return np.bincount(owner, self.value * point[self.column], self.num_rows)

    def violation(self, point: Array) -> float:
        """The largest violation of any row, bound or integrality at a point (n,)."""
        activity = self.activity(point)
        parts = (self.lower - point, point - self.upper, self.row_lower - activity, activity - self.row_upper)
        whole = np.abs(point - np.round(point))[self.integer]
        return max(0.0, *(float(part.max(initial=0.0)) for part in (*parts, whole)))


@dataclass(frozen=True)
class SmtScript:
    """An SMT-LIB 2 script that is satisfiable if and only if a counterexample exists; `inputs` names the constants of x."""

    text: str
    inputs: tuple[str, ...]


def safety_margin(model: Model, dual_bound: float = 0.0) -> float:
    """What a solver's dual bound may be too high by: SAFETY times the tolerance times the scale of the objective.

    The rows' tolerances relax the model and only lower the bound. What can raise it falsely is the dual tolerance (at most the
    tolerance times the range of each variable, of order 1 here) and the arithmetic of cuts and presolve, which solvers keep near the
    feasibility tolerance. The scale is sum |c_j| max(|lower_j|, |upper_j|, 1): the variable t that a margin model minimises is in units of
    the largest term of the unsafe rows, so cancellation in them is charged for.
    """
    costed = model.objective != 0
    reach = np.maximum(1.0, np.maximum(np.abs(model.lower[costed]), np.abs(model.upper[costed])))
    scale = float(np.abs(model.objective[costed]) @ np.where(np.isfinite(reach), reach, 1.0))
    return SAFETY * TOLERANCE * max(scale, abs(dual_bound))


def safe_dual_bound(outcome: SolveOutcome, model: Model) -> float:
    """A lower bound of the optimum on which a proof may rest (trust SOLVER): the dual bound less `safety_margin`; -inf if there is none."""
    bound = outcome.dual_bound
    return bound - safety_margin(model, bound) if math.isfinite(bound) else -math.inf


def power_of_two(magnitude: ArrayLike) -> Array:
    """The smallest power of two >= each magnitude (1 where it is 0), so that dividing by it is exact."""
    m = np.abs(np.asarray(magnitude, dtype=np.float64))
    fraction, exponent = np.frexp(np.where(m > 0, m, 1.0))
    return np.ldexp(np.ones_like(m), (exponent - (fraction == 0.5)).astype(np.int32))


class ModelBuilder:
    """Collects variables and rows, then scales the rows. Quantities are given in units of the variables."""

    def __init__(self) -> None:
        self._variables: list[tuple[Array, Array, NDArray[np.bool_], Array]] = []
        self._rows: list[tuple[Index, Array]] = []
        self._bounds: list[tuple[float, float]] = []
        self._count = 0

    def variables(self, lower: ArrayLike, upper: ArrayLike, *, integer: bool = False, start: ArrayLike = math.nan) -> Index:
        """Add variables; returns their columns. `start` values are NaN where no starting point is known."""
        low, high, first = (np.array(a, dtype=np.float64) for a in np.broadcast_arrays(np.atleast_1d(lower), upper, start))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise NumericallyUnfit("a variable of the model has no finite bounds")
        self._variables.append((low, high, np.full(low.shape, integer), first))
        self._count += len(low)
        return np.arange(self._count - len(low), self._count, dtype=np.int64)

    def ranges(self) -> tuple[Array, Array]:
        """The bounds of the variables so far, (n,) each."""
        none = [np.zeros(0)]
        return np.concatenate(none + [v[0] for v in self._variables]), np.concatenate(none + [v[1] for v in self._variables])

    def row(self, columns: Iterable[int] | Index, values: ArrayLike, lower: float = -math.inf, upper: float = math.inf) -> None:
        """Add the row lower <= values . v[columns] <= upper."""
        entries = np.asarray(values, dtype=np.float64)
        keep = entries != 0
        self._rows.append((np.asarray(columns, dtype=np.int64)[keep], entries[keep]))
        self._bounds.append((lower, upper))

    def build(self, costs: dict[int, float]) -> Model:
        """The finished model, minimising sum costs[j] v_j."""
        empty = np.zeros(0)
        low, high, integer, first = (np.concatenate(part) for part in zip((empty,) * 4, *self._variables, strict=True))
        lengths = [len(columns) for columns, _ in self._rows]
        column = np.concatenate([columns for columns, _ in self._rows]) if lengths else np.zeros(0, dtype=np.int64)
        value = np.concatenate([values for _, values in self._rows]) if lengths else empty
        bounds = np.array(self._bounds, dtype=np.float64).reshape(-1, 2)
        objective = np.zeros(self._count)
        for j, cost in costs.items():
            objective[j] = cost
        start = first if len(first) and not np.isnan(first).any() else None
        row_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return scaled(Model(low, high, integer.astype(bool), row_start, column, value, bounds[:, 0], bounds[:, 1], objective, start))


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
    return replace(
        model, row_start=row_start, column=model.column[keep], value=value[keep], row_lower=row_lower, row_upper=row_upper
    )
