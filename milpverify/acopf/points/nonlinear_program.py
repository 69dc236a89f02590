"""AC optimal power flow as a nonlinear program for pypower's interior point method.

The variables are x = (e, f, pg, qg, y): rectangular voltages, generation, and y, what else may move: loads in a box, the factor of all
loads, or the violation t. All constraints are quadratic, but for |S|^2 = p^2 + q^2 <= rate^2 in flows that are quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.points.point import Point
from milpverify.acopf.points.polish import PointTuning
from milpverify.acopf.points.rectangular import Quadratics, angles_along, generation, rectangular, stacked, unwound, voltages

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case, Index
    from milpverify.acopf.loads import Loads


class Goal(Enum):
    """What is minimised."""

    COST = "the cost"
    LOAD = "the factor of all loads, negated"
    VIOLATION = "the largest violation"


@dataclass(frozen=True, eq=False)
class Rows:
    """Functions of x: quadratic forms + linear x + constant."""

    forms: Quadratics
    linear: Any  # (count, width) sparse
    constant: Array  # (count,)

    def values(self, x: Array) -> Array:
        """(count,)."""
        value: Array = self.forms.values(x) + self.linear @ x + self.constant
        return value

    def jacobian(self, x: Array) -> Any:
        """(count, width) sparse."""
        return self.forms.jacobian(x) + self.linear

    def times(self, sign: float, constant: Array | float = 0.0) -> Rows:
        """Sign times these rows + constant (count,)."""
        forms = replace(self.forms, coefficient=sign * self.forms.coefficient)
        return Rows(forms, sign * self.linear, sign * self.constant + constant)

    def less(self, t: int | None, slope: Array, square: Array) -> Rows:
        """These rows - slope x[t] - square x[t]^2, (count,) each, where there is a t."""
        from scipy.sparse import csr_matrix

        if t is None:
            return self
        k = np.arange(self.forms.count)
        at = np.full(len(k), t)
        forms = self.forms.with_terms(k, at, at, -square)
        return Rows(forms, self.linear - csr_matrix((slope, (k, at)), self.linear.shape), self.constant)


@dataclass(frozen=True, eq=False)
class Program:
    """Minimise `goal` over the operating points of a case (its own limits) at some loads; x is (width,), p.u., all over."""

    case: Case
    loads: Loads
    goal: Goal
    tuning: PointTuning = field(default_factory=PointTuning)

    @property
    def others(self) -> int:
        """Where y begins in x."""
        return 2 * (self.case.num_buses + len(self.case.generators))

    @cached_property
    def moving(self) -> Index:
        """Which of the 2n loads (active ones first) have a range."""
        if not self.loads.is_box or self.goal is Goal.LOAD:
            return np.empty(0, dtype=np.int64)
        plo, phi, qlo, qhi = self.loads.ranges(self.case)
        return np.flatnonzero(np.concatenate([phi - plo, qhi - qlo]) > self.tuning.equal)

    @property
    def t(self) -> int | None:
        """The violation's index in x, or none."""
        return self.width - 1 if self.goal is Goal.VIOLATION else None

    @property
    def width(self) -> int:
        """How many variables there are."""
        return self.others + len(self.moving) + (self.goal is not Goal.COST)

    @cached_property
    def balances(self) -> Rows:
        """What is drawn less what is injected, active powers first (2n rows)."""
        from scipy.sparse import csr_matrix, hstack

        case, n = self.case, self.case.num_buses
        drawn = np.concatenate(self.loads.middle(case))
        k = len(self.moving)
        parts = [csr_matrix((2 * n, 2 * n)), -generation(case), csr_matrix((np.ones(k), (self.moving, np.arange(k))), (2 * n, k))]
        if self.goal is Goal.LOAD:
            parts.append(csr_matrix(np.concatenate([case.buses.pd, case.buses.qd])[:, None]))
            drawn = np.zeros(2 * n)
        elif self.goal is Goal.VIOLATION:
            parts.append(csr_matrix((2 * n, 1)))
        drawn[self.moving] = 0.0
        return Rows(rectangular(case).balances.resized(self.width), hstack(parts, "csr"), drawn)

    def _plain(self, forms: Quadratics) -> Rows:
        from scipy.sparse import csr_matrix

        return Rows(forms.resized(self.width), csr_matrix((forms.count, self.width)), np.zeros(forms.count))

    @cached_property
    def squares(self) -> tuple[list[Rows], list[Rows]]:
        """Voltage limits, as equations and as rows <= 0: vm <= vmax + t as vm^2 <= vmax^2 + 2 vmax t + t^2."""
        buses, t = self.case.buses, self.t
        rows = self._plain(rectangular(self.case).squares)
        same = np.flatnonzero(buses.vmax - buses.vmin <= self.tuning.equal) if t is None else np.empty(0, dtype=np.int64)
        other = np.setdiff1d(np.arange(len(buses)), same)
        equal, found = _pick(rows.times(1.0, -buses.vmax * buses.vmin), same), []
        for sign, limit in ((1.0, buses.vmax), (-1.0, buses.vmin)):
            found.append(_pick(rows.times(sign, -sign * limit**2).less(t, 2.0 * limit, np.full(len(buses), sign)), other))
        return [equal], found

    @cached_property
    def angles(self) -> list[Rows]:
        """Angle limits as rows <= 0."""
        br, found = self.case.branches, []
        for sign, limit in ((1.0, br.angmax), (-1.0, br.angmin)):
            limited = np.flatnonzero(np.abs(limit) < math.pi)
            rows = self._plain(rectangular(self.case).angles(limit[limited], sign, limited))
            found.append(rows.less(self.t, np.ones(len(limited)), np.zeros(len(limited))))
        return found

    @cached_property
    def equations(self) -> Rows:
        """Rows that are 0."""
        return _stack(self.squares[0] + ([self.balances] if self.t is None else []))

    @cached_property
    def inequalities(self) -> Rows:
        """Rows that are <= 0, without the flows' limits."""
        rows = [*self.squares[1], *self.angles]
        if self.t is not None:
            one = np.ones(self.balances.forms.count)
            rows += [self.balances.times(sign).less(self.t, one, 0.0 * one) for sign in (1.0, -1.0)]
        return _stack(rows)

    @cached_property
    def limited(self) -> Index:
        """The branches with a rate."""
        return np.flatnonzero(np.isfinite(self.case.branches.rate))

    @cached_property
    def flows(self) -> Rows:
        """p of both ends of every branch with a rate, then q of them, over the rate."""
        kept = np.concatenate([4 * self.limited + what for what in (0, 2, 1, 3)])
        picked = _pick(self._plain(rectangular(self.case).flows), kept)
        scale = 1.0 / np.tile(self.case.branches.rate[self.limited], 4)
        return replace(picked, forms=replace(picked.forms, coefficient=picked.forms.coefficient * scale[picked.forms.row]))

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """Of x, where t does not move them."""
        case, gen = self.case, self.case.generators
        n = case.num_buses
        lower, upper = np.full(self.width, -np.inf), np.full(self.width, np.inf)
        lower[case.reference], upper[case.reference] = 0.0, np.inf
        lower[n + case.reference] = upper[n + case.reference] = 0.0
        if self.t is None:
            lower[2 * n : self.others] = np.concatenate([gen.pmin, gen.qmin])
            upper[2 * n : self.others] = np.concatenate([gen.pmax, gen.qmax])
        else:
            lower[self.t] = 0.0
        if len(self.moving):
            plo, phi, qlo, qhi = self.loads.ranges(case)
            y = slice(self.others, self.others + len(self.moving))
            lower[y] = np.concatenate([plo, qlo])[self.moving]
            upper[y] = np.concatenate([phi, qhi])[self.moving]
        if self.goal is Goal.LOAD:
            lower[-1] = 0.0
        return lower, upper

    @cached_property
    def relaxed(self) -> tuple[Any, Array, Array]:
        """Generation's limits where t moves them: A x between two vectors."""
        from scipy.sparse import csr_matrix

        gen, n, g = self.case.generators, self.case.num_buses, 2 * len(self.case.generators)
        rows, columns = np.arange(2 * g), np.concatenate([np.tile(2 * n + np.arange(g), 2), np.full(2 * g, self.t)])
        entries = np.concatenate([np.ones(2 * g), -np.ones(g), np.ones(g)])
        a = csr_matrix((entries, (np.tile(rows, 2), columns)), (2 * g, self.width))
        none = np.full(g, np.inf)
        lower, upper = np.concatenate([gen.pmin, gen.qmin]), np.concatenate([gen.pmax, gen.qmax])
        return a, np.concatenate([-none, lower]), np.concatenate([upper, none])

    def objective(self, x: Array) -> tuple[float, Array]:
        """The value and its gradient (width,); the cost in units that make the marginal cost about 1."""
        gen, where = self.case.generators, self._active
        if self.goal is Goal.COST:
            gradient, pg = np.zeros(self.width), x[where]
            gradient[where] = (2.0 * gen.c2 * pg + gen.c1) / self._unit
            return float(np.sum(gen.c2 * pg * pg + gen.c1 * pg)) / self._unit, gradient
        away = x - self.centre
        away[-1] = 0.0
        sign = -1.0 if self.goal is Goal.LOAD else 1.0
        gradient = self._unique * away
        gradient[-1] = sign
        return sign * float(x[-1]) + self._unique / 2.0 * float(away @ away), gradient

    @cached_property
    def centre(self) -> Array:
        """The middle of all ranges, near which one of many equally good points is chosen."""
        return self.middle()

    @property
    def _unique(self) -> float:
        """The weight of the squared distance from the middles of all ranges."""
        cost, load, violation = self.tuning.unique
        return {Goal.COST: cost, Goal.LOAD: load, Goal.VIOLATION: violation}[self.goal]

    @property
    def _active(self) -> slice:
        return slice(2 * self.case.num_buses, 2 * self.case.num_buses + len(self.case.generators))

    @cached_property
    def _unit(self) -> float:
        gen = self.case.generators
        return max(1.0, float(np.max(np.abs(2.0 * gen.c2 * np.clip(0.0, gen.pmin, gen.pmax) + gen.c1))))

    def constraints(self, x: Array) -> tuple[Array, Array, Any, Any]:
        """h(x) <= 0 (inequalities,), g(x) = 0 (equations,), and their Jacobians transposed, (width, ...) sparse."""
        from scipy.sparse import vstack

        flow, slope = self.flows.values(x), self.flows.jacobian(x)
        k = len(flow) // 2
        rate, t = self._room(x)
        apparent = flow[:k] ** 2 + flow[k:] ** 2 - rate**2
        gradient = _scaled(2.0 * flow[:k], slope[:k]) + _scaled(2.0 * flow[k:], slope[k:]) - t
        h = np.concatenate([self.inequalities.values(x), apparent])
        dh = vstack([self.inequalities.jacobian(x), gradient])
        return h, self.equations.values(x), dh.T.tocsr(), self.equations.jacobian(x).T.tocsr()

    def _room(self, x: Array) -> tuple[Array, Any]:
        """1 + t / rate of every flow's limit, and the gradient of its square."""
        from scipy.sparse import csr_matrix

        k = 2 * len(self.limited)
        if self.t is None:
            return np.ones(k), csr_matrix((k, self.width))
        rate = np.tile(self.case.branches.rate[self.limited], 2)
        room = 1.0 + x[self.t] / rate
        return room, csr_matrix((2.0 * room / rate, (np.arange(k), np.full(k, self.t))), (k, self.width))

    def hessian(self, x: Array, multipliers: dict[str, Array], scale: float) -> Any:
        """(width, width) sparse: of the Lagrangian, by the multipliers of the inequalities and of the equations, the objective's scaled."""
        from scipy.sparse import csr_matrix, diags

        mu, split = multipliers["ineqnonlin"], self.inequalities.forms.count
        twice = np.tile(2.0 * mu[split:], 2)
        flow, slope = self.flows.values(x), self.flows.jacobian(x)
        total = self.equations.forms.hessian(multipliers["eqnonlin"]) + self.inequalities.forms.hessian(mu[:split])
        total = total + self.flows.forms.hessian(twice * flow) + slope.T @ diags(twice) @ slope
        own = np.full(self.width, self._unique * scale)
        if self.goal is Goal.COST:
            own[self._active] = 2.0 * self.case.generators.c2 / self._unit * scale
        else:
            own[-1] = 0.0
        if self.t is not None:
            rate = np.tile(self.case.branches.rate[self.limited], 2)
            own[self.t] -= np.sum(2.0 * mu[split:] / rate**2)
        return total + csr_matrix(diags(own))

    def middle(self) -> Array:
        """Where an attempt begins: the middle of every range, and angles that follow the phase shifts."""
        case, gen = self.case, self.case.generators
        lower, upper = (bound[self.others :] for bound in self.bounds)
        parts = [(case.buses.vmin, case.buses.vmax), (gen.pmin, gen.pmax), (gen.qmin, gen.qmax), (lower, upper)]
        vm, pg, qg, y = (_middle(*part) for part in parts)
        return np.concatenate([voltages(self._flat, vm), pg, qg, y])

    @cached_property
    def _flat(self) -> Array:
        """Angles at which no power flows, along a spanning tree and where the limits allow it."""
        br = self.case.branches
        return angles_along(self.case, np.clip(br.shift, br.angmin, br.angmax))

    def random(self, generator: np.random.Generator) -> Array:
        """Where another attempt begins (width,): magnitudes and powers in the middle thirds of their ranges, small angles."""
        case, gen, n, x = self.case, self.case.generators, self.case.num_buses, self.middle()
        third = np.concatenate([case.buses.vmax - case.buses.vmin, gen.pmax - gen.pmin, gen.qmax - gen.qmin]) / 3.0
        moved = generator.uniform(-0.5, 0.5, len(third)) * np.where(np.isfinite(third), third, 1.0)
        vm, va = np.hypot(x[:n], x[n : 2 * n]) + moved[:n], self._flat + generator.normal(0.0, self.tuning.angles, n)
        va[case.reference] = 0.0
        x[: 2 * n], x[2 * n : self.others] = voltages(va, vm), x[2 * n : self.others] + moved[n:]
        return x

    def at(self, point: Point) -> Array:
        """The variables (width,) at a point, t and the factor of the loads at their middles."""
        x = self.middle()
        x[: self.others] = np.concatenate([voltages(point.va, point.vm), point.pg, point.qg])
        x[self.others : self.others + len(self.moving)] = np.concatenate([point.pd, point.qd])[self.moving]
        return x

    def point(self, x: Array) -> Point:
        """The point that x is, with loads in their ranges; at the factor x[-1] of all loads where that is the goal."""
        case, n, g = self.case, self.case.num_buses, len(self.case.generators)
        e, f, pg, qg = np.split(x[: self.others], [n, 2 * n, 2 * n + g])
        if self.goal is Goal.LOAD:
            pd, qd = case.buses.pd * x[-1], case.buses.qd * x[-1]
        else:
            drawn = np.concatenate(self.loads.middle(case))
            y = slice(self.others, self.others + len(self.moving))
            lower, upper = self.bounds
            drawn[self.moving] = np.clip(x[y], lower[y], upper[y])
            pd, qd = np.split(drawn, 2)
        return Point(case, np.hypot(e, f), unwound(case, np.arctan2(f, e)), pg.copy(), qg.copy(), pd, qd)


def _middle(lower: Array, upper: Array) -> Array:
    """The middle of ranges, 1 from the end of those that have one end, and 0 where there is none."""
    low = np.where(np.isfinite(lower), lower, np.where(np.isfinite(upper), upper - 2.0, -1.0))
    high = np.where(np.isfinite(upper), upper, low + 2.0)
    middle: Array = (low + high) / 2.0
    return middle


def _pick(rows: Rows, kept: Index) -> Rows:
    """Some rows, in the order given."""
    place = np.full(rows.forms.count, -1)
    place[kept] = np.arange(len(kept))
    terms = np.flatnonzero(place[rows.forms.row] >= 0)
    forms = rows.forms
    picked = Quadratics(len(kept), forms.width, place[forms.row[terms]], forms.i[terms], forms.j[terms], forms.coefficient[terms])
    return Rows(picked, rows.linear[kept], rows.constant[kept])


def _stack(rows: list[Rows]) -> Rows:
    from scipy.sparse import vstack

    return Rows(
        stacked([row.forms for row in rows]), vstack([row.linear for row in rows], "csr"), np.concatenate([row.constant for row in rows])
    )


def _scaled(factors: Array, rows: Any) -> Any:
    from scipy.sparse import diags

    return diags(factors) @ rows
