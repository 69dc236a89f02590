"""Power flows in float64: one by Newton's method, many at once with one inverse, and one followed from another. They prove nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from milpverify.acopf.case import Array
    from milpverify.acopf.dispatch.grid import Grid


def mismatch(grid: Grid, x: Array, p: Array) -> Array:
    """(..., k) p.u.: what is given less what is drawn, of the balances that are solved, at x (..., 2n) and parameters p (..., 3n)."""
    found: Array = (p[..., : 2 * grid.case.num_buses] - grid.products(x) @ grid.balances.middle.T)[..., grid.unknown]
    return found


def jacobian(grid: Grid, x: Array) -> Array:
    """(k, k): of what is drawn, in the unknowns, at x (2n,)."""
    found: Array = (grid.balances.middle[grid.unknown] @ grid.slope(x))[:, grid.unknown]
    return found


def flat(grid: Grid, p: Array, vm: Array | None = None, va: Array | None = None) -> Array:
    """(2n,) where Newton's method begins at parameters p (3n,): angles of 0 and magnitudes of 1, or those given (n,), and those held."""
    n = grid.case.num_buses
    x = np.concatenate([np.zeros(n) if va is None else va - va[grid.slack], np.ones(n) if vm is None else vm])
    x[n + grid.held] = p[2 * n + grid.held]
    return x


def solve(grid: Grid, p: Array, start: Array) -> Array | None:
    """The power flow (2n,) at parameters (3n,) that Newton's method finds from a start; None where it finds none."""
    n, tuning = grid.case.num_buses, grid.tuning
    x = start.copy()
    x[n + grid.held] = p[2 * n + grid.held]
    last = np.inf
    with np.errstate(all="ignore"):
        for _ in range(tuning.iterations):
            gap = mismatch(grid, x, p)
            size = float(np.abs(gap).max(initial=0.0))
            if not np.isfinite(size):
                return None
            if size < tuning.converged and size >= last / 4:  # as good as float64 makes it
                break
            last = size
            try:
                x[grid.unknown] += np.linalg.solve(jacobian(grid, x), gap)
            except np.linalg.LinAlgError:
                return None
    return x if last < tuning.converged and (x[n:] > 0).all() else None


def base(grid: Grid, p: Array, start: Array) -> Array | None:
    """The power flow (2n,) of a base case (3n,): from the start (2n,), and where that fails along growing injections."""
    found = solve(grid, p, start)
    if found is not None:
        return found
    none = p.copy()
    none[: 2 * grid.case.num_buses] = 0.0
    unloaded = solve(grid, none, flat(grid, p))
    return None if unloaded is None else follow(grid, none, unloaded, p)


def follow(grid: Grid, p: Array, x: Array, target: Array) -> Array | None:
    """The power flow (2n,) at `target` (3n,) on the way straight from p (3n,), where x (2n,) is one; None where Newton's method is lost."""
    done, step = 0.0, 1.0
    while done < 1.0:
        share = min(1.0, done + step)
        found = solve(grid, p + share * (target - p), x)
        if found is not None and np.abs(found - x).max() < 0.3:
            x, done, step = found, share, 2 * step
        elif step < grid.tuning.shortest:
            return None
        else:
            step /= 4
    return x


def many(grid: Grid, p: Array, x: Array, inverse: Array) -> tuple[Array, Array]:
    """Power flows (samples, 2n) at parameters (samples, 3n) from one (2n,) with the Jacobian's inverse there, and which converged."""
    n, converged = grid.case.num_buses, grid.tuning.converged
    found = np.tile(x, (len(p), 1))
    found[:, n + grid.held] = p[:, 2 * n + grid.held]
    good = np.zeros(len(p), dtype=bool)
    left = np.arange(len(p))
    with np.errstate(all="ignore"):
        for _ in range(grid.tuning.chords):
            gap = mismatch(grid, found[left], p[left])
            size = np.abs(gap).max(1, initial=0.0)
            good[left[size < converged]] = True
            left, gap = left[size >= converged], gap[size >= converged]
            if not len(left):
                break
            found[left[:, None], grid.unknown] += gap @ inverse.T
    return found, good
