"""All power flows of a region of parameters at once: an affine enclosure with a proved remainder.

Around a power flow x0 at parameters p0, the products of every branch (`grid`) are, exactly, with a, b the magnitudes at its ends, theta the
angle across it, and alpha, beta, tau by how much these change,

    (c, s) = (c0, s0) + [rotation by theta] (a beta + b alpha + rho_1,  a b tau + rho_2),
    rho_1 = alpha beta + vv (cos tau - 1),   rho_2 = (vv - a b) tau + vv (sin tau - tau),   vv = (a + alpha)(b + beta),

and the squares w = a^2 + 2 a alpha + alpha^2. So the power flow equations are J d = u(p) - M rho(d), and with C near the inverse of J every
solution is a fixed point of

    T(d) = C u(p) - C M rho(d) + (I - C J) d.

The change of every magnitude and of every angle ACROSS A BRANCH, y = L d, is bounded as a linear function of the parameters and of the
remainders: what is correlated in d cancels before absolute values are taken. Where T maps {d : |L d| <= Y} into itself for all parameters
of the region and is a contraction there (in the maximum norm of L d, weighted), there is for each of them exactly one power flow in the
set (Banach), which is a continuous function of the parameters. Existence alone by Brouwer: K. Dvijotham, K. Turitsyn, arXiv 1506.07191;
D. Lee et al., arXiv 1803.00818. Everything is float64 with radii that contain all rounding (`arithmetic.midpoint_radius`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.arithmetic.midpoint_radius import SPARE, Balls, exactly, reach, sin_cos, stacked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.dispatch.grid import Grid, Rows

CONTRACTION: Final = 0.999  # below 1, or more than one power flow may lie near by


class NotEnclosed(Exception):
    """No set of power flows was found that is mapped into itself: the message says why."""


@dataclass(frozen=True, eq=False)
class Region:
    """Parameters p = center + generators xi, |xi_j| <= 1: (3n,) with radii for what is rounded, and (3n, N).

    `powers` (2, g) and `magnitudes` (2, n) are ranges of the set points: active powers, and magnitudes at buses with generators.
    """

    center: Balls
    generators: Array
    powers: Array
    magnitudes: Array


@dataclass(frozen=True, eq=False)
class Affine:
    """Functions c + linear xi + noise rho + e of a region and the remainders: (K,), (K, N), (K, n + 2m), |e| <= rest (K,)."""

    constant: Balls
    linear: Balls
    noise: Balls
    rest: Array

    def range(self, noise: Balls) -> Balls:
        """(K,): all values."""
        ones = Balls(np.zeros(self.linear.shape[1]), np.ones(self.linear.shape[1]))
        return self.constant + self.linear @ ones + self.noise @ noise + Balls(np.zeros_like(self.rest), self.rest)

    def of(self, index: Index | slice) -> Affine:
        """Some of them, by their places (k,)."""
        return Affine(self.constant[index], self.linear[index], self.noise[index], self.rest[index])


@dataclass(frozen=True, eq=False)
class Enclosure:
    """Around `x` (2n,): for all parameters of the region there is one power flow within `radius`, which is within `change`, too.

    `radius` (n + m,) bounds the changes of magnitudes and of angles across branches; `change` are x's changes (2n,) as functions of region
    and remainders, which `noise` (n + 2m,) contains.
    """

    grid: Grid
    region: Region
    x: Array  # (2n,) rad and p.u.
    radius: Array  # (n + m,) p.u. and rad
    change: Affine
    noise: Balls
    _rotation: tuple[Balls, Balls]

    def contains(self, other: Enclosure) -> bool:
        """Whether all of another's set lies in this one's, in which this one's power flows are the only ones."""
        moved = _changes(self.grid, exactly(other.x) - exactly(self.x))
        return bool((moved.size + other.radius <= self.radius).all())

    def near(self, x: Array, room: float) -> NDArray[np.bool_]:
        """(samples,): which of x (samples, 2n) lie in the set, or outside of it by no more than some room."""
        n, br = self.grid.case.num_buses, self.grid.case.branches
        moved = np.abs(x - self.x)
        turned = np.abs((x[:, br.f] - x[:, br.t]) - (self.x[br.f] - self.x[br.t]))
        found: NDArray[np.bool_] = np.all(np.concatenate([moved[:, n:], turned], 1) <= self.radius + room, axis=1)
        return found

    def influence(self, weight: Array | None) -> Array:
        """(N,): how much of the remainders, times weights (n + 2m,), comes from each parameter; a guess, for choosing where to cut."""
        moving = np.abs(_changes(self.grid, self.change.linear).middle)  # (n + m, N)
        grown = np.stack([_steepness(self.grid, self.x, self.radius, column) for column in moving.T]) if moving.size else np.zeros((0, 1))
        found: Array = grown @ np.abs(weight) if weight is not None else grown.sum(1)
        return found

    def evaluate(self, rows: Rows) -> Affine:
        """Linear functions of products, of x and of parameters, over the region."""
        n = self.grid.case.num_buses
        turned = _turn(rows.z, n, *self._rotation)
        slope = turned @ exactly(_slope(self.grid, self.x)) + exactly(rows.x)
        vv_error = _slope_error(self.grid, self.x)
        slope = Balls(slope.middle, slope.radius + (np.abs(turned.middle) + turned.radius) @ vv_error * SPARE)
        z = _products(self.grid, self.x, self._rotation)
        p, change = exactly(rows.p), self.change
        constant = rows.z @ z + exactly(rows.x) @ exactly(self.x) + p @ self.region.center + slope @ change.constant
        linear = slope @ change.linear + p @ exactly(self.region.generators)
        rest = reach(slope, change.rest) if change.rest.any() else np.zeros(len(constant.middle))
        return Affine(constant, linear, turned + slope @ change.noise, rest)


def enclose(grid: Grid, region: Region, x: Array, least: float | None = None) -> Enclosure:
    """The power flows of a region, around one in its middle.

    Args:
        grid: what is held.
        region: of parameters, p.u.
        x: (2n,) a power flow at its middle, rad and p.u.
        least: p.u. and rad: no change is taken to be smaller; by default `tuning.room`, which suits many power flows.

    Raises:
        NotEnclosed: nothing is proved.
    """
    n, rows, tuning = grid.case.num_buses, grid.unknown, grid.tuning
    least = tuning.room if least is None else least
    held = 2 * n + grid.held
    x = x.copy()
    x[n + grid.held] = region.center.middle[held]
    assert not region.center.radius[held].any()
    rotation = _rotation(grid, x)
    balances = grid.balances[rows]
    turned = _turn(balances, n, *rotation)
    error = _slope_error(grid, x)
    slope = turned @ exactly(_slope(grid, x))
    slope = Balls(slope.middle, (slope.radius + (np.abs(turned.middle) + turned.radius) @ error) * SPARE)
    jacobian = slope[:, rows]
    try:
        with np.errstate(all="ignore"):
            inverse: Array = np.asarray(np.linalg.inv(jacobian.middle), dtype=np.float64)
    except np.linalg.LinAlgError:
        raise NotEnclosed("the power flow equations are singular here") from None
    if not np.isfinite(inverse).all():
        raise NotEnclosed("the power flow equations are singular here")
    c = exactly(inverse)
    identity = exactly(np.eye(len(rows)))
    defect = reach(identity - c @ jacobian)
    residual = region.center[rows] - balances @ _products(grid, x, rotation)
    moved = exactly(region.generators[rows])
    if region.generators[held].any():
        moved = moved - slope[:, n + grid.held] @ exactly(region.generators[held])
    change = _spread(grid, region, Affine(c @ residual, c @ moved, -(c @ turned), np.zeros(len(rows))))
    across = Affine(
        _changes(grid, change.constant), _changes(grid, change.linear), _changes(grid, change.noise), np.zeros(n + len(grid.case.branches))
    )
    fixed = across.constant.size + reach(across.linear)
    sizes = Balls(np.abs(across.noise.middle), across.noise.radius)
    varies = np.ones(len(fixed), dtype=bool)
    varies[grid.held] = False  # what is held is given: no two power flows of the same parameters differ in it

    def rest(radius: Array) -> Array:
        """|(I - C J) d| of the unknowns, as part of x (2n,)."""
        far = radius[:n].max() + radius[n:].sum()  # the sum of all angles across branches is more than any angle
        found = np.zeros(2 * n)
        found[rows] = defect * far * SPARE
        return found

    def image(radius: Array) -> Array:
        return (fixed + (across.noise @ _noise(grid, x, radius)).size + _across(grid, rest(radius))) * SPARE

    radius = fixed * tuning.inflation + least
    for _ in range(tuning.rounds):
        mapped = image(radius)
        if (mapped <= radius).all():
            break
        radius = np.maximum(radius, mapped * tuning.inflation + least)
        if not radius.max() < tuning.widest:
            raise NotEnclosed("no set of power flows is mapped into itself: the region is too wide, or the network too close to its limit")
    else:
        raise NotEnclosed("no set of power flows is mapped into itself: the region is too wide, or the network too close to its limit")
    moving = np.where(varies, radius, 0.0)
    steepest = reach(sizes, _steepness(grid, x, radius, moving)) + _across(grid, rest(moving))
    if not (steepest * SPARE <= CONTRACTION * radius)[varies].all():
        raise NotEnclosed("power flows exist, but more than one may lie near by")
    found = Affine(change.constant, change.linear, change.noise, rest(radius))
    return Enclosure(grid, region, x, radius, found, _noise(grid, x, radius), rotation)


def _spread(grid: Grid, region: Region, solved: Affine) -> Affine:
    """Changes of the unknowns as changes of x (2n,): the slack bus's angle stays, what is held is given."""
    n = grid.case.num_buses

    def whole(part: Balls) -> Balls:
        found = Balls(np.zeros((2 * n, *part.shape[1:])), np.zeros((2 * n, *part.shape[1:])))
        found.middle[grid.unknown], found.radius[grid.unknown] = part.middle, part.radius
        return found

    linear = whole(solved.linear)
    linear.middle[n + grid.held] = region.generators[2 * n + grid.held]
    return Affine(whole(solved.constant), linear, whole(solved.noise), np.zeros(2 * n))


def _changes(grid: Grid, x: Balls) -> Balls:
    """(n + m, ...): magnitudes, and angles across branches, of (va, vm) (2n, ...)."""
    n, br = grid.case.num_buses, grid.case.branches
    return stacked([x[n:], x[br.f] - x[br.t]])


def _across(grid: Grid, size: Array) -> Array:
    """The same for upper bounds of absolute values (2n,)."""
    n, br = grid.case.num_buses, grid.case.branches
    return np.concatenate([size[n:], (size[br.f] + size[br.t]) * SPARE])


def _rotation(grid: Grid, x: Array) -> tuple[Balls, Balls]:
    """Sine and cosine of the angle across every branch, (m,) each."""
    br = grid.case.branches
    return sin_cos(exactly(x[br.f]) - exactly(x[br.t]))


def _products(grid: Grid, x: Array, rotation: tuple[Balls, Balls]) -> Balls:
    """z (n + 2m,)."""
    n, br = grid.case.num_buses, grid.case.branches
    vm = exactly(x[n:])
    vv, (sin, cos) = vm[br.f] * vm[br.t], rotation
    return stacked([vm * vm, vv * cos, vv * sin])


def _turn(rows: Balls, n: int, sin: Balls, cos: Balls) -> Balls:
    """Rows in z as rows in its changes seen along every branch: R of the module, (K, n + 2m)."""
    m = len(sin.middle)
    c, s = rows[:, n : n + m], rows[:, n + m :]
    return stacked([rows[:, :n], c * cos + s * sin, s * cos - c * sin], 1)


def _slope(grid: Grid, x: Array) -> Array:
    """(n + 2m, 2n): the linear part of the turned products' changes, in float64: entries 2 a, b, a, a b, - a b."""
    n, m, br = grid.case.num_buses, len(grid.case.branches), grid.case.branches
    vm, k = x[n:], np.arange(m)
    found = np.zeros((n + 2 * m, 2 * n))
    found[np.arange(n), n + np.arange(n)] = 2 * vm
    found[n + k, n + br.f], found[n + k, n + br.t] = vm[br.t], vm[br.f]
    vv = vm[br.f] * vm[br.t]
    found[n + m + k, br.f], found[n + m + k, br.t] = vv, -vv
    return found


def _slope_error(grid: Grid, x: Array) -> Array:
    """(n + 2m, 2n): by how much these are rounded: only the products a b are."""
    n, m = grid.case.num_buses, len(grid.case.branches)
    found = np.abs(_slope(grid, x)) * 2.0**-53
    found[: n + m] = 0.0
    return found


def _noise(grid: Grid, x: Array, radius: Array) -> Balls:
    """(n + 2m,): ranges of alpha^2, rho_1 and rho_2 where changes are at most `radius` (n + m,)."""
    a, b, alpha, beta, tau, vv = _ends(grid, x, radius)
    square = radius[: len(x) // 2] ** 2 / 2 * SPARE
    both, bent = alpha * beta, vv * tau**2 / 2  # rho_1 lies between - both - bent and both
    first = Balls(-bent / 2, (both + bent / 2) * SPARE)
    second = ((a * beta + b * alpha + both) * tau + vv * tau**3 / 6) * SPARE
    return stacked([Balls(square, square), first, Balls(np.zeros_like(second), second)])


def _steepness(grid: Grid, x: Array, radius: Array, moving: Array) -> Array:
    """(n + 2m,): by how much these change at most between two changes within `radius` that are `moving` (n + m,) apart."""
    n, br = grid.case.num_buses, grid.case.branches
    a, b, alpha, beta, tau, vv = _ends(grid, x, radius)
    da, db, dt = moving[br.f], moving[br.t], moving[n:]
    bent = tau**2 / 2
    grown = (b + beta) * da + (a + alpha) * db
    first = beta * da + alpha * db + bent * grown + vv * tau * dt
    second = tau * grown + (a * beta + b * alpha + alpha * beta + vv * bent) * dt
    found: Array = np.concatenate([2 * radius[:n] * moving[:n], first, second]) * SPARE
    return found


def _ends(grid: Grid, x: Array, radius: Array) -> tuple[Array, ...]:
    """a, b, |alpha|, |beta|, |tau| and vv at most, (m,) each."""
    n, br = grid.case.num_buses, grid.case.branches
    a, b, alpha, beta, tau = x[n:][br.f], x[n:][br.t], radius[br.f], radius[br.t], radius[n:]
    return a, b, alpha, beta, tau, (a + alpha) * (b + beta) * SPARE
