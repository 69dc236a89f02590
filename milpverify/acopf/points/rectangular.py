"""The network's functions in rectangular voltages V = e + j f: every one of them is quadratic.

With w_i = e_i^2 + f_i^2, c = e_f e_t + f_f f_t and s = f_f e_t - e_f f_t of a branch, flows and balances are those of `admittance`.
Coefficients are float64, or balls (`flint.arb` in arrays of objects) where a proof needs them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.admittance import admittances

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Case, Index


@dataclass(frozen=True, eq=False)
class Quadratics:
    """`count` quadratic forms in `width` variables: row[k] has the term coefficient[k] x[i[k]] x[j[k]]."""

    count: int
    width: int
    row: Index
    i: Index
    j: Index
    coefficient: NDArray[Any]

    def values(self, x: NDArray[Any]) -> NDArray[Any]:
        """(count,) float64."""
        return np.bincount(self.row, self.coefficient * x[self.i] * x[self.j], self.count)

    def jacobian(self, x: Array) -> Any:
        """(count, width) sparse."""
        entries = np.concatenate([self.coefficient * x[self.j], self.coefficient * x[self.i]])
        return _sparse(entries, np.tile(self.row, 2), np.concatenate([self.i, self.j]), (self.count, self.width))

    def hessian(self, weight: Array) -> Any:
        """(width, width) sparse: of the sum of the forms times `weight`."""
        entries = np.tile(weight[self.row] * self.coefficient, 2)
        return _sparse(entries, np.concatenate([self.i, self.j]), np.concatenate([self.j, self.i]), (self.width, self.width))

    def resized(self, width: int) -> Quadratics:
        """The same forms in more variables."""
        return replace(self, width=width)

    def with_terms(self, row: Index, i: Index, j: Index, coefficient: Array) -> Quadratics:
        """The same forms with more terms, (k,) each."""
        parts = zip((self.row, self.i, self.j, self.coefficient), (row, i, j, coefficient), strict=True)
        return Quadratics(self.count, self.width, *(np.concatenate(pair) for pair in parts))


def _sparse(entries: Array, rows: Index, columns: Index, shape: tuple[int, int]) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((entries, (rows, columns)), shape=shape)


def stacked(parts: list[Quadratics]) -> Quadratics:
    """All rows, one part after the other."""
    start = np.cumsum([0, *(part.count for part in parts)])
    row = np.concatenate([part.row + offset for part, offset in zip(parts, start[:-1], strict=True)])
    i, j, coefficient = (np.concatenate([getattr(part, name) for part in parts]) for name in ("i", "j", "coefficient"))
    return Quadratics(int(start[-1]), max(part.width for part in parts), row, i, j, coefficient)


@dataclass(frozen=True, eq=False)
class Rectangular:
    """Squares of voltages, flows and balances of a case in x = (e, f) (2n,), from the flows' coefficients (m, 4, 4) in w_f, w_t, c, s."""

    case: Case
    coefficients: NDArray[Any]

    @cached_property
    def squares(self) -> Quadratics:
        """w_i = vm_i^2 (n rows)."""
        n = self.case.num_buses
        k = np.arange(n)
        return Quadratics(n, 2 * n, np.tile(k, 2), np.arange(2 * n), np.arange(2 * n), self._number(np.ones(2 * n)))

    @cached_property
    def products(self) -> Quadratics:
        """w_f, w_t, c, s of branch k as rows 4k to 4k + 3."""
        n, br = self.case.num_buses, self.case.branches
        f, t, k = br.f, br.t, 4 * np.arange(len(br))
        terms = [(0, f, f, 1.0), (0, n + f, n + f, 1.0), (1, t, t, 1.0), (1, n + t, n + t, 1.0)]
        terms += [(2, f, t, 1.0), (2, n + f, n + t, 1.0), (3, n + f, t, 1.0), (3, f, n + t, -1.0)]
        row, i, j = (np.concatenate(part) for part in zip(*((k + what, i, j) for what, i, j, _ in terms), strict=True))
        return Quadratics(4 * len(br), 2 * n, row, i, j, np.repeat([sign for *_, sign in terms], len(br)))

    @cached_property
    def flows(self) -> Quadratics:
        """pf, qf, pt, qt of branch k as rows 4k to 4k + 3."""
        base = self.products
        branch, what = np.divmod(base.row, 4)
        parts = [(4 * branch + row, base.i, base.j, self.coefficients[branch, row, what] * base.coefficient) for row in range(4)]
        row, i, j, coefficient = (np.concatenate(part) for part in zip(*parts, strict=True))
        kept = np.flatnonzero(
            [not (isinstance(value, (int, float)) and value == 0) for value in coefficient.tolist()]
        )  # balls around 0 stay
        return Quadratics(base.count, base.width, row[kept], i[kept], j[kept], coefficient[kept])

    @cached_property
    def balances(self) -> Quadratics:
        """What the network draws: of bus i the active power (row i) and the reactive power (row n + i) into branches and shunts."""
        n, br, buses = self.case.num_buses, self.case.branches, self.case.buses
        branch, what = np.divmod(self.flows.row, 4)
        bus = np.where(what < 2, br.f[branch], br.t[branch])
        row = [bus + n * (what % 2), np.arange(n), np.arange(n), n + np.arange(n), n + np.arange(n)]
        shunt = [np.arange(n), n + np.arange(n)] * 2
        drawn = [self._number(buses.gs)] * 2 + [self._number(-buses.bs)] * 2
        i, j = np.concatenate([self.flows.i, *shunt]), np.concatenate([self.flows.j, *shunt])
        return Quadratics(2 * n, 2 * n, np.concatenate(row), i, j, np.concatenate([self.flows.coefficient, *drawn]))

    def angles(self, limit: Array, sign: float, branches: Index) -> Quadratics:
        """sign vm_f vm_t sin(va_f - va_t - limit), which is <= 0 where the difference is on the right side of a limit.

        Args:
            limit: (k,) rad.
            sign: 1 of an upper limit, -1 of a lower one.
            branches: (k,) indices.
        """
        n, br = self.case.num_buses, self.case.branches
        f, t = br.f[branches], br.t[branches]
        cos, sin = sign * np.cos(limit), -sign * np.sin(limit)
        i, j = np.concatenate([n + f, f, f, n + f]), np.concatenate([t, n + t, t, n + t])
        return Quadratics(len(f), 2 * n, np.tile(np.arange(len(f)), 4), i, j, np.concatenate([cos, -cos, sin, sin]))

    def _number(self, values: Array) -> NDArray[Any]:
        """Numbers of the kind that the coefficients are of."""
        if self.coefficients.dtype != object:
            return values
        import flint

        found = np.empty(len(values), dtype=object)
        found[:] = [flint.arb(value) for value in values.tolist()]
        return found


@lru_cache(maxsize=16)
def rectangular(case: Case) -> Rectangular:
    """The functions of a case in float64."""
    return Rectangular(case, admittances(case).flows()[0])


def generation(case: Case) -> Any:
    """(2n, 2g) sparse: what generators with the powers (pg, qg) inject at the buses, active first."""
    n, g = case.num_buses, len(case.generators)
    bus = np.concatenate([case.generators.bus, n + case.generators.bus])
    return _sparse(np.ones(2 * g), bus, np.arange(2 * g), (2 * n, 2 * g))


def limits(case: Case) -> tuple[Array, Array]:
    """Of (va, vm, pg, qg), (2n + 2g,) each: no limits of angles, but the reference's is 0."""
    buses, gen = case.buses, case.generators
    free = np.full(len(buses), np.inf)
    free[case.reference] = 0.0
    return np.concatenate([-free, buses.vmin, gen.pmin, gen.qmin]), np.concatenate([free, buses.vmax, gen.pmax, gen.qmax])


def voltages(va: Array, vm: Array) -> Array:
    """(e, f), (2n,) p.u., of angles (n,) rad and magnitudes (n,) p.u."""
    return np.concatenate([vm * np.cos(va), vm * np.sin(va)])


def angles_along(case: Case, difference: Array) -> Array:
    """va (n,) rad with va[f] - va[t] = difference (m,) of the branches of a spanning tree of least depth, 0 at the reference bus."""
    neighbours: list[list[tuple[int, float]]] = [[] for _ in range(case.num_buses)]
    for f, t, d in zip(case.branches.f.tolist(), case.branches.t.tolist(), difference.tolist(), strict=True):
        neighbours[f].append((t, -d))
        neighbours[t].append((f, d))
    va = {case.reference: 0.0}
    for i in (queue := [case.reference]):
        for j, d in neighbours[i]:
            if j not in va:
                va[j] = va[i] + d
                queue.append(j)
    return np.array([va.get(i, 0.0) for i in range(case.num_buses)])


def unwound(case: Case, va: Array) -> Array:
    """The angles (n,) rad plus multiples of 2 pi, so that differences along a spanning tree are principal values."""
    across = va[case.branches.f] - va[case.branches.t]
    turns = np.round((angles_along(case, np.angle(np.exp(1j * across))) - va + va[case.reference]) / (2 * np.pi))
    return np.where(turns == 0, va, va + 2 * np.pi * turns)


def polar_slope(va: Array, vm: Array) -> Any:
    """(2n, 2n) sparse: the derivatives of (e, f) in (va, vm)."""
    from scipy.sparse import bmat, diags

    cos, sin = np.cos(va), np.sin(va)
    return bmat([[diags(-vm * sin), diags(cos)], [diags(vm * cos), diags(sin)]], "csr")


def balance_residual(case: Case, va: Array, vm: Array, injected: Array, drawn: Array) -> Array:
    """(2n,) p.u.: what the network draws and the loads (pd, qd) (2n,), less what generators inject (pg, qg) (2g,); va, vm are (n,)."""
    residual: Array = rectangular(case).balances.values(voltages(va, vm)) + drawn - generation(case) @ injected
    return residual


def balance_slope(case: Case, va: Array, vm: Array) -> Any:
    """(2n, 2n + 2g) sparse: the residual's derivatives in (va, vm, pg, qg)."""
    from scipy.sparse import hstack

    return hstack([rectangular(case).balances.jacobian(voltages(va, vm)) @ polar_slope(va, vm), -generation(case)], "csr")
