"""Linear programs in rationals: the least of b y over y >= 0 with A y = c, by the simplex method.

The column of the most negative costs enters; after many pivots the first one, which cannot circle (Bland).

Small programs only. Nothing is rounded, and the answer carries its proof: weights y that can be summed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from flint import fmpq

from milpverify.frontends.vnnlib.alternatives import PropertyTuning

ZERO, _ZERO = Fraction(0), fmpq(0)
Vector = dict[int, Fraction]
"""Numbers by place; none is 0."""


_Exact = dict[int, fmpq]


class Unbounded(Exception):
    """b y has no least value; `ray` >= 0 satisfies A ray = 0 and b ray < 0."""

    def __init__(self, ray: Vector) -> None:
        super().__init__("the program is unbounded")
        self.ray = ray


def least(
    rows: Sequence[Vector],
    right: Sequence[Fraction],
    costs: Sequence[Fraction],
    pace: Callable[[], None],
    pivots: int = PropertyTuning.pivots,
) -> Vector | None:
    """Weights y (n,) of the least costs b y; None where no y >= 0 satisfies A y = c.

    Args:
        rows: A (m, n), of entries other than 0.
        right: c (m,).
        costs: b (n,).
        pace: called before every pivot; what it raises ends the search.
        pivots: per row, before Bland's rule.

    Raises:
        Unbounded: there is no least value.
    """
    n = len(costs)
    table = _Table(list(map(_exact, rows)), [fmpq(*value.as_integer_ratio()) for value in right], pace, pivots * len(rows))
    for i, value in enumerate(table.right):
        if value < 0:
            table.rows[i] = {j: -a for j, a in table.rows[i].items()}
            table.right[i] = -value
        table.rows[i][n + i] = fmpq(1)  # an artificial variable, to begin with
    table.basis = [n + i for i in range(len(table.rows))]
    table.descend({n + i: fmpq(1) for i in range(len(table.rows))}, n + len(table.rows))
    if any(value and j >= n for j, value in zip(table.basis, table.right, strict=True)):
        return None
    for i, j in enumerate(table.basis):  # those left, at 0, make way or stand in rows that say nothing
        if j >= n and (column := next((k for k in table.rows[i] if k < n), None)) is not None:
            table.pivot(i, column)
    table.descend(_exact({j: b for j, b in enumerate(costs) if b}), n)
    return _rational({j: value for j, value in zip(table.basis, table.right, strict=True) if value and j < n})


class _Table:
    """Equations solved for a basis: rows (m, n), the columns of `basis` unit vectors, right-hand sides >= 0."""

    def __init__(self, rows: list[_Exact], right: list[fmpq], pace: Callable[[], None], patience: int) -> None:
        self.rows, self.right, self.pace, self.patience = rows, right, pace, patience  # pivots before Bland's rule
        self.basis: list[int] = []

    def descend(self, costs: _Exact, columns: int) -> None:
        """Pivot until no column below a number lowers the costs.

        Raises:
            Unbounded: they have no least value.
        """
        reduced = dict(costs)
        for row, j in zip(self.rows, self.basis, strict=True):
            _subtract(reduced, row, costs.get(j, _ZERO))
        pivots = 0
        while below := [(b if pivots < self.patience else 0, j) for j, b in reduced.items() if b < 0 and j < columns]:
            entering, pivots = min(below)[1], pivots + 1
            ratios = [(self.right[i] / a, self.basis[i], i) for i, row in enumerate(self.rows) if (a := row.get(entering, _ZERO)) > 0]
            if not ratios:
                ray = {j: -row[entering] for j, row in zip(self.basis, self.rows, strict=True) if entering in row}
                raise Unbounded(_rational({entering: fmpq(1), **ray}))
            leaving = min(ratios)[2]
            self.pivot(leaving, entering)
            _subtract(reduced, self.rows[leaving], reduced.get(entering, _ZERO))

    def pivot(self, i: int, j: int) -> None:
        """Solve row i for column j, which takes its place in the basis."""
        self.pace()
        factor = self.rows[i][j]
        self.rows[i] = {k: a / factor for k, a in self.rows[i].items()}
        self.right[i] /= factor
        for other, row in enumerate(self.rows):
            if other != i and (a := row.get(j)):
                _subtract(row, self.rows[i], a)
                self.right[other] -= a * self.right[i]
        self.basis[i] = j


def _subtract(target: _Exact, row: _Exact, factor: fmpq) -> None:
    """Subtract a multiple of a row in place."""
    if not factor:
        return
    for j, a in row.items():
        if value := target.get(j, _ZERO) - factor * a:
            target[j] = value
        else:
            target.pop(j, None)


def _exact(numbers: Mapping[int, Fraction]) -> _Exact:
    return {j: fmpq(*value.as_integer_ratio()) for j, value in numbers.items()}


def _rational(numbers: _Exact) -> Vector:
    return {j: Fraction(int(value.p), int(value.q)) for j, value in numbers.items()}
