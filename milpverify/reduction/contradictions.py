"""Disjuncts whose rows exclude each other, whatever the network computes: Farkas' lemma, in rationals.

The rows of a disjunct are a_i v <= b_i over inputs and outputs v = (x, y), some strict; x lies in a box, y may be anything. For weights
w >= 0 under which the outputs cancel, and with the minimum over the box,

    min over x of sum_i w_i (a_i v - b_i)  =  sum_j min (c_j l_j, c_j u_j) - w b,        c = sum_i w_i a_i,

is a lower bound of what the rows' residuals come to together. If it is positive, or 0 while a strict row has a positive weight, no point
satisfies them all (Motzkin's transposition theorem). Rows on inputs alone are <= 0 at every input, so that divided by the weights of the
other rows it bounds the margin; where these weigh nothing, there is no input at all.

Rows with an output that no other row pulls the other way cannot take part, which settles almost all disjuncts. Opposite pairs are seen at
once; for what is left HiGHS proposes weights. They are solved for again in rationals, and nothing but their exact sum proves anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.reduction.suspects import ReductionTuning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from milpverify.config import Deadline
    from milpverify.reduction.suspects import Suspect
    from milpverify.solvers.base import SolveOutcome
    from milpverify.solvers.model import Model
    from milpverify.spec import Array, Disjunct, Rows


def excluded(
    disjuncts: Sequence[Disjunct], suspects: Iterable[Suspect], deadline: Deadline, tuning: ReductionTuning = ReductionTuning()
) -> dict[int, float]:
    """The suspects that no network has a point of, by place, each with a proved lower bound of its margin >= 0: inf without any input."""
    left = [(k, _System.of(disjuncts[k], rows, tuning)) for k, rows in suspects]
    found: dict[int, float] = {}
    hard: list[tuple[int, _System]] = []
    for k, system in left:
        bound = system.obvious()
        if bound is not None:
            found[k] = bound
        elif len(system.rhs) and not system.satisfied():
            hard.append((k, system))
    return {**found, **_proposed(hard, deadline, tuning.at_once)}


@dataclass(frozen=True, eq=False)
class _System:
    """Rows a (m, n) v <= b (m,), `<` where strict, over the inputs that they mention, then the outputs; the first `unsafe` make the margin.

    `lower`, `upper` (n,) are infinite for outputs.
    """

    rows: Array
    rhs: Array
    strict: NDArray[np.bool_]
    unsafe: int
    lower: Array
    upper: Array
    tuning: ReductionTuning

    @staticmethod
    def of(disjunct: Disjunct, chosen: NDArray[np.int64], tuning: ReductionTuning = ReductionTuning()) -> _System:
        """Some of the unsafe rows of a disjunct, and those on inputs alone."""
        parts = _part(disjunct.unsafe, chosen), _part(disjunct.domain, np.arange(len(disjunct.domain)))
        x_rows, y_rows, rhs, strict = (np.concatenate(both) for both in zip(*parts, strict=True))
        inputs, outputs, box = x_rows.any(0), y_rows.any(0), disjunct.box
        free = np.full(int(outputs.sum()), math.inf)
        rows = np.concatenate([x_rows[:, inputs], y_rows[:, outputs]], 1)
        ends = np.append(box.lower[inputs], -free), np.append(box.upper[inputs], free)
        return _System(rows, rhs, strict, len(parts[0][2]), *ends, tuning)

    def obvious(self) -> float | None:
        """The bound that one row proves against the box, or two of opposite coefficients."""
        alone = ~(self.rows[:, ~np.isfinite(self.upper)] != 0).any(1)
        for i in np.flatnonzero(alone).tolist():
            if (bound := self.proved({i: Fraction(1)})) is not None:
                return bound
        largest = np.abs(self.rows).max(1, initial=0.0)
        unit = self.rows / np.where(largest > 0, largest, 1.0)[:, None]
        for i in range(len(unit) if self.rows.size <= self.tuning.at_once else 0):
            for j in (i + 1 + np.flatnonzero((np.abs(unit[i + 1 :] + unit[i]) <= self.tuning.inside).all(1))).tolist():
                ratio = Fraction(largest[i]) / Fraction(largest[j]) if largest[j] else Fraction(1)
                if (bound := self.proved({i: Fraction(1), j: ratio})) is not None:
                    return bound
        return None

    def proved(self, weights: dict[int, Fraction]) -> float | None:
        """The bound of the margin that weights > 0 prove, rounded down; None where they prove no contradiction."""
        value, total = -sum((w * Fraction(self.rhs[i]) for i, w in weights.items()), start=Fraction(0)), dict[int, Fraction]()
        for i, w in weights.items():
            for j in np.flatnonzero(self.rows[i]).tolist():
                total[j] = total.get(j, Fraction(0)) + w * Fraction(self.rows[i, j])
        for j, c in total.items():
            if c and not math.isfinite(self.upper[j]):
                return None
            value += c * Fraction(self.lower[j] if c > 0 else self.upper[j]) if c else 0
        if not weights or value < 0 or (value == 0 and not any(self.strict[i] for i in weights)):
            return None
        share = sum((w for i, w in weights.items() if i < self.unsafe), start=Fraction(0))
        return _down(value / share) if share else math.inf

    def satisfied(self) -> bool:
        """Whether some point is found that satisfies all rows, the strict ones by a little: nothing is to be proved then."""
        fixed, inside = self.lower == self.upper, self.tuning.inside
        a = np.where(fixed, 0.0, self.rows)
        v = np.where(np.isfinite(self.upper), 0.5 * (np.nan_to_num(self.lower, neginf=0.0) + np.nan_to_num(self.upper, posinf=0.0)), 0.0)
        size = (a * a).sum(1)
        reach = np.abs(self.rows).sum(1)
        for _ in range(self.tuning.sweeps):
            excess = self.rows @ v - self.rhs
            if (excess <= np.where(self.strict, -inside, 1e-3 * inside) * reach).all():
                return True
            for i in range(len(a)):
                over = self.rows[i] @ v - self.rhs[i] + (2 * inside * reach[i] if self.strict[i] else 0.0)
                if over > 0 and size[i] > 0:
                    v = np.clip(v - 1.5 * over / size[i] * a[i], self.lower, self.upper)
        return False

    def weighed(self, guess: Array) -> float | None:
        """The bound that weights (m,) prove once they are solved for in rationals."""
        near = self.tuning.near
        chosen = np.flatnonzero(guess > near * guess.max(initial=0.0))
        if not len(chosen):
            return None
        a, w = self.rows[chosen], guess[chosen]
        outputs = ~np.isfinite(self.upper)
        cancelled = np.abs(w @ a) <= near * (w @ np.abs(a))
        for columns in (cancelled | outputs, outputs):
            exact = _cancelling(a[:, columns & (a != 0).any(0)], w)
            if exact is not None:
                bound = self.proved({int(i): x for i, x in zip(chosen, exact, strict=True) if x})
                if bound is not None:
                    return bound
        return None


def _part(rows: Rows, chosen: NDArray[np.int64]) -> tuple[Array, Array, Array, NDArray[np.bool_]]:
    """Some rows, those of finite numbers only."""
    x, y, rhs, strict = rows.x_rows[chosen], rows.y_rows[chosen], rows.rhs[chosen], rows.strict[chosen]
    finite = np.isfinite(x).all(1) & np.isfinite(y).all(1) & np.isfinite(rhs)
    return x[finite], y[finite], rhs[finite], strict[finite]


def _cancelling(a: Array, guess: Array) -> list[Fraction] | None:
    """Rational weights >= 0 near a guess (k,) with which rows (k, c) add up to 0; None where the guess leads to none."""
    import flint

    k, c = a.shape
    if not c:
        return [Fraction(w) for w in guess.tolist()]
    entries = [flint.fmpq(*Fraction(value).as_integer_ratio()) for value in a.T.flatten().tolist()]
    # Those that HiGHS knows least of are solved for: the columns of the largest weights come last, where they are free.
    order = np.argsort(guess, kind="stable")
    matrix, rank = flint.fmpq_mat(c, k, [entries[row * k + column] for row in range(c) for column in order.tolist()]).rref()
    pivots = [next(j for j in range(k) if matrix[i, j] != 0) for i in range(rank)]
    free = [j for j in range(k) if j not in pivots]
    found = {j: Fraction(guess[order[j]]) for j in free}
    for i, pivot in enumerate(pivots):
        found[pivot] = -sum((Fraction(int(matrix[i, j].p), int(matrix[i, j].q)) * found[j] for j in free), start=Fraction(0))
    if min(found.values()) < 0 or not any(found.values()):
        return None
    return [found[j] for j in np.argsort(order).tolist()]


def _proposed(systems: Sequence[tuple[int, _System]], deadline: Deadline, at_once: int) -> dict[int, float]:
    """What weights that HiGHS proposes prove, by place."""
    from milpverify.solvers.base import Limits
    from milpverify.solvers.process import SolverProcess

    found: dict[int, float] = {}
    if not systems:
        return found
    with SolverProcess("highs") as process:
        waiting = list(systems)
        while waiting and not deadline.expired():
            part = [waiting.pop(0)]
            size = part[0][1].rows.size
            while waiting and (size := size + waiting[0][1].rows.size) <= at_once:
                part.append(waiting.pop(0))
            outcome = process.solve(_model([system for _, system in part]), Limits(), deadline)
            for (k, system), guess in zip(part, _weights([s for _, s in part], outcome), strict=True):
                bound = None if guess is None else system.weighed(guess)
                if bound is not None:
                    found[k] = bound
    return found


def _scales(system: _System) -> Array:
    """Powers of two that bring the coefficients of every row to about 1."""
    largest = np.abs(system.rows).max(1, initial=0.0)
    scale: Array = 2.0 ** -np.frexp(np.where(largest > 0, largest, 1.0))[1]
    return scale


def _model(systems: Sequence[_System]) -> Model:
    """Systems side by side: t + `hard` s is least, where strict rows may exceed their right-hand sides by t + s, the others by s >= 0."""
    from milpverify.solvers.model import Model

    parts: list[tuple[NDArray[Any], ...]] = []
    first = 0
    for system in systems:
        scale, n = _scales(system), system.rows.shape[1]
        rows = np.concatenate([-system.rows * scale[:, None], system.strict[:, None], np.ones((len(scale), 1))], 1)
        row, where = np.nonzero(rows)
        least, most = np.append(system.lower, [-1.0, 0.0]), np.append(system.upper, [math.inf, math.inf])
        objective, length = np.append(np.zeros(n), [1.0, system.tuning.hard]), np.bincount(row, minlength=len(scale))
        parts.append((least, most, objective, first + where, rows[row, where], length, -system.rhs * scale))
        first += n + 2
    least, most, objective, column, value, length, right = (np.concatenate(part) for part in zip(*parts, strict=True))
    start = np.append(0, np.cumsum(length)).astype(np.int64)
    integer, above = np.zeros(first, dtype=bool), np.full(len(right), math.inf)
    return Model(least, most, integer, start, column.astype(np.int64), value, right, above, objective)


def _weights(systems: Sequence[_System], outcome: SolveOutcome) -> Iterable[Array | None]:
    """Per system the weights of its rows; None where the program found a point, or nothing."""
    row = column = 0
    for system in systems:
        m, n = system.rows.shape
        mine = slice(row, row + m)
        row, column = row + m, column + n + 2
        least, near = None if outcome.point is None else outcome.point[column - 2 : column], system.tuning.near
        if outcome.multipliers is None or least is None or (system.strict.any() and least[0] < -near and least[1] <= near):
            yield None
        else:
            yield np.maximum(np.nan_to_num(outcome.multipliers[mine]), 0.0) * _scales(system)


def _down(value: Fraction) -> float:
    """The largest float64 that is not above a rational >= 0."""
    try:
        found = float(value)
    except OverflowError:
        return float(np.finfo(np.float64).max)
    return found if Fraction(found) <= value else math.nextafter(found, -math.inf)
