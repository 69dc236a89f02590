"""Newton's method on the balances, from a point near a solution and within the limits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from milpverify.acopf.points.rectangular import balance_residual, balance_slope, limits, polar_slope, rectangular, voltages
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.points.judgement import Candidate

P = TypeVar("P", bound="Candidate")


class PointTuning(Tuning):
    """How points are looked for and polished; each is judged in balls afterwards, so that nothing rests on these numbers."""

    tolerance: float = 1e-9
    iterations: int = 150
    """Of the interior point method."""
    close: float = 1e-5
    """What does not converge is a candidate still if its residuals are this small."""
    narrow: float = 4.0
    """Limits closer than this many times the shrinkage are left as they are."""
    angles: float = 0.03
    """rad: the spread of random starts' angles."""
    equal: float = 1e-12
    """p.u.: limits closer than this are one value."""
    unique: tuple[float, float, float] = (1e-7, 1e-6, 1e-5)
    """Weights of the squared distance from the middles of all ranges, of the cost, the factor of all loads and the violation: they make the
    best point unique; without that the method may not converge. The cost has it in its Hessian only, so that the cheapest point stays
    where it is."""
    steps: int = 6
    """Of Newton's method on the balances."""
    snap: float = 1e-7
    """p.u. or rad: what is this close to its limit is put on it."""
    far: float = 1e-4
    """p.u.: what misses the balances by more is not near a solution."""
    rounding: float = 1e-12
    """p.u.: violations below it are alike."""
    active: float = 1e-9
    inside: float = 1e-11
    """Flows (relative to the rate) and angles (rad) this close to their limits, or beyond them, are held there but for so much, for
    rounding."""
    ridge: float = 1e-13
    """What of an equation that cannot be met is left."""


def polish(point: P, tuning: PointTuning = PointTuning()) -> P:
    """The point with balances exact but for rounding where that is possible, and no limit violated more than before.

    Every step is the least change that solves the linearised balances, each variable's in units of its room within its limits, so that
    what is at a limit stays there. What comes of it is taken if it violates less than the point that came in.
    """
    lower, upper = limits(point.case)
    best, least = point, violation(point)
    x = np.clip(np.concatenate([point.va, point.vm, point.pg, point.qg]), lower, upper)
    x = np.where(x - lower <= tuning.snap, lower, np.where(upper - x <= tuning.snap, upper, x))
    if not least <= tuning.far:
        return point
    for _ in range(tuning.steps):
        candidate = _at(point, x)
        found = violation(candidate)
        if found <= max(least, tuning.rounding):
            best, least = candidate, found
        value, slope = _rows(candidate, tuning)
        room = np.clip(np.minimum(x - lower, upper - x), 0.0, 1.0)
        x = np.clip(x + room * _least(slope.multiply(room), -value, tuning.ridge), lower, upper)
    return best


def violation(point: Candidate) -> float:
    """The largest violation of any balance or limit in float64, p.u. and rad: a measure, not a proof."""
    case, br = point.case, point.case.branches
    x = np.concatenate([point.va, point.vm, point.pg, point.qg])
    lower, upper = limits(case)
    apparent, across = _ends(point), point.va[br.f] - point.va[br.t]
    over = [lower - x, x - upper, np.abs(_residual(point)), apparent - br.rate, across - br.angmax, br.angmin - across, np.zeros(1)]
    return float(np.max(np.concatenate([part.ravel() for part in over])))


def _at(point: P, x: Array) -> P:
    n, g = point.case.num_buses, len(point.case.generators)
    va, vm, pg, qg = np.split(x, [n, 2 * n, 2 * n + g])
    return replace(point, va=va, vm=vm, pg=pg, qg=qg)


def _residual(point: Candidate) -> Array:
    injected, drawn = np.concatenate([point.pg, point.qg]), np.concatenate([point.pd, point.qd])
    return balance_residual(point.case, point.va, point.vm, injected, drawn)


def _ends(point: Candidate) -> Array:
    """(2, m): |S| at the from and the to end of every branch."""
    flows = rectangular(point.case).flows.values(voltages(point.va, point.vm)).reshape(-1, 2, 2)
    apparent: Array = np.hypot(flows[:, :, 0], flows[:, :, 1]).T
    return apparent


def _least(a: Any, b: Array, ridge: float) -> Array:
    """The least y (columns,) for which a y = b (rows,), or nearly so where a has not full rank: sparse, and in one thread."""
    from scipy.sparse import bmat, eye
    from scipy.sparse.linalg import spsolve

    rows, columns = a.shape
    solution: Array = spsolve(bmat([[eye(columns), a.T], [a, -ridge * eye(rows)]], "csc"), np.concatenate([np.zeros(columns), b]))
    return solution[:columns]


def _rows(point: Candidate, tuning: PointTuning) -> tuple[Array, Any]:
    """What is to become 0 (rows,), and its derivatives (rows, 2n + 2g) in (va, vm, pg, qg).

    These are the balances, and limits of flows and angles that are active.
    """
    from scipy.sparse import csr_matrix, diags, hstack, vstack

    case, br = point.case, point.case.branches
    others, width = 2 * len(case.generators), 2 * case.num_buses + 2 * len(case.generators)
    values, slopes = [_residual(point)], [balance_slope(case, point.va, point.vm)]
    v, forms = voltages(point.va, point.vm), rectangular(case).flows
    end, k = np.nonzero(_ends(point) / br.rate > 1.0 - tuning.active)
    if len(k):
        flow, slope = forms.values(v), forms.jacobian(v) @ polar_slope(point.va, point.vm)
        p, rate = 4 * k + 2 * end, br.rate[k] ** 2
        q = p + 1
        values.append(((flow[p] ** 2 + flow[q] ** 2) / rate - (1.0 - tuning.inside) ** 2) / 2.0)
        slopes.append(hstack([diags(flow[p] / rate) @ slope[p] + diags(flow[q] / rate) @ slope[q], csr_matrix((len(k), others))]))
    across = point.va[br.f] - point.va[br.t]
    for sign, limit in ((1.0, br.angmax), (-1.0, br.angmin)):
        k = np.flatnonzero(sign * (across - limit) > -tuning.active)
        row, one = np.arange(len(k)), np.full(len(k), sign)
        values.append(sign * (across[k] - limit[k]) + tuning.inside)
        slopes.append(csr_matrix((np.append(one, -one), (np.append(row, row), np.append(br.f[k], br.t[k]))), (len(k), width)))
    return np.concatenate(values), vstack(slopes, "csr")
