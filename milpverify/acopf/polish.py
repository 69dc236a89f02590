"""Newton's method on the balances, from a point near a solution and within the limits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.rectangular import balance_residual, balance_slope, limits, polar_slope, rectangular, voltages

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.point import Point

STEPS = 6
SNAP = 1e-7  # p.u.: what is this close to its limit is put on it
FAR = 1e-4  # p.u.: what misses the balances by more is not near a solution
ROUNDING = 1e-12  # p.u.: violations below it are alike
ACTIVE = 1e-9  # flows (relative to the rate) and angles (rad) this close to their limits, or beyond them, are held there,
INSIDE = 1e-11  # but for so much, for rounding


def polish(point: Point) -> Point:
    """The point with balances exact but for rounding where that is possible, and no limit violated more than before.

    Every step is the least change that solves the linearised balances, each variable's in units of its room within its limits, so that
    what is at a limit stays there. What comes of it is taken if it violates less than the point that came in.
    """
    lower, upper = limits(point.case)
    best, least = point, violation(point)
    x = np.clip(np.concatenate([point.va, point.vm, point.pg, point.qg]), lower, upper)
    x = np.where(x - lower <= SNAP, lower, np.where(upper - x <= SNAP, upper, x))
    if not least <= FAR:
        return point
    for _ in range(STEPS):
        candidate = _at(point, x)
        found = violation(candidate)
        if found <= max(least, ROUNDING):
            best, least = candidate, found
        value, slope = _rows(candidate)
        room = np.clip(np.minimum(x - lower, upper - x), 0.0, 1.0)
        step = room * np.linalg.lstsq(slope * room, -value, rcond=1e-13)[0]
        x = np.clip(x + step, lower, upper)
    return best


def violation(point: Point) -> float:
    """The largest violation of any balance or limit in float64, p.u. and rad: a measure, not a proof."""
    case, br = point.case, point.case.branches
    x = np.concatenate([point.va, point.vm, point.pg, point.qg])
    lower, upper = limits(case)
    apparent, across = _ends(point), point.va[br.f] - point.va[br.t]
    over = [lower - x, x - upper, np.abs(_residual(point)), apparent - br.rate, across - br.angmax, br.angmin - across, np.zeros(1)]
    return float(np.max(np.concatenate([part.ravel() for part in over])))


def _at(point: Point, x: Array) -> Point:
    n, g = point.case.num_buses, len(point.case.generators)
    va, vm, pg, qg = np.split(x, [n, 2 * n, 2 * n + g])
    return replace(point, va=va, vm=vm, pg=pg, qg=qg)


def _residual(point: Point) -> Array:
    injected, drawn = np.concatenate([point.pg, point.qg]), np.concatenate([point.pd, point.qd])
    return balance_residual(point.case, point.va, point.vm, injected, drawn)


def _ends(point: Point) -> Array:
    """(2, m): |S| at the from and the to end of every branch."""
    flows = rectangular(point.case).flows.values(voltages(point.va, point.vm)).reshape(-1, 2, 2)
    apparent: Array = np.hypot(flows[:, :, 0], flows[:, :, 1]).T
    return apparent


def _rows(point: Point) -> tuple[Array, Array]:
    """What is to become 0, and its derivatives in (va, vm, pg, qg): the balances, and limits of flows and angles that are active."""
    case, br = point.case, point.case.branches
    n, width = case.num_buses, 2 * case.num_buses + 2 * len(case.generators)
    values, slopes = [_residual(point)], [balance_slope(case, point.va, point.vm)]
    v, forms = voltages(point.va, point.vm), rectangular(case).flows
    end, k = np.nonzero(_ends(point) / br.rate > 1.0 - ACTIVE)
    if len(k):
        rows = np.stack([4 * k + 2 * end, 4 * k + 2 * end + 1], axis=1)
        flow = forms.values(v)[rows] / br.rate[k, None]
        slope = (forms.jacobian(v)[rows.ravel()] @ polar_slope(point.va, point.vm)).reshape(len(k), 2, 2 * n) / br.rate[k, None, None]
        values.append((np.sum(flow**2, axis=1) - (1.0 - INSIDE) ** 2) / 2.0)
        slopes.append(np.hstack([np.einsum("ki,kij->kj", flow, slope), np.zeros((len(k), width - 2 * n))]))
    across = point.va[br.f] - point.va[br.t]
    for sign, limit in ((1.0, br.angmax), (-1.0, br.angmin)):
        k = np.flatnonzero(sign * (across - limit) > -ACTIVE)
        row = np.zeros((len(k), width))
        row[np.arange(len(k)), br.f[k]] += sign
        row[np.arange(len(k)), br.t[k]] -= sign
        values.append(sign * (across[k] - limit[k]) + INSIDE)
        slopes.append(row)
    return np.concatenate(values), np.vstack(slopes)
