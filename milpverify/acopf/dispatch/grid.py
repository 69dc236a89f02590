"""The power flow of a dispatch: what is held, what is solved for, and everything that is limited, as linear rows.

Held are the magnitudes at buses with generators and the active generation but for that at the slack bus, whose angle is 0 here. Parameters
p (3n,) of a power flow are what is injected at every bus, active and reactive, as far as it is given (generation less load; at the slack
bus and of reactive power minus the load alone), and the magnitudes held. With the products z (n + 2m,) of `admittance`, squares of
magnitudes first, then vm_f vm_t cos and sin of every branch, flows and what the network draws at a bus are linear in z.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from milpverify.acopf.admittance import admittances
from milpverify.acopf.points.power_flow import slack_bus
from milpverify.arithmetic.midpoint_radius import Balls, exactly, stacked
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case, Index


class FlowTuning(Tuning):
    """How power flows are looked for, and enclosed; an enclosure is proved by what it maps into itself, whatever these numbers are."""

    iterations: int = 30
    chords: int = 40
    """Iterations of Newton's method, and of that with one inverse for many power flows."""
    converged: float = 1e-10
    """p.u.: of a balance."""
    shortest: float = 1e-3
    """Of the way between two power flows: a step that Newton's method must manage."""
    rounds: int = 60
    inflation: float = 1 + 2.0**-10
    """How many sets are tried to be mapped into themselves, and by what the images of those before are widened."""
    least: float = 1e-12
    room: float = 1e-9
    """p.u. and rad: no change is taken to be smaller, of one power flow and of many, which have room for that one."""
    widest: float = 1.0
    """p.u. and rad: where changes are larger nothing is enclosed any more."""
    deepest: int = 14
    """Halvings of a way between two loads along which a power flow is followed by proof."""
    batch: int = 4096
    """Loads at which a network's set points are evaluated at once."""


@dataclass(frozen=True, eq=False)
class Rows:
    """K linear functions of the products z (n + 2m,), of x = (va, vm) (2n,) and of the parameters p (3n,)."""

    z: Balls  # (K, n + 2m)
    x: Array  # (K, 2n)
    p: Array  # (K, 3n)

    def __getitem__(self, index: Index | slice) -> Rows:
        return Rows(self.z[index], self.x[index], self.p[index])

    def with_more(self, other: Rows) -> Rows:
        """These and then others."""
        return Rows(stacked([self.z, other.z]), np.concatenate([self.x, other.x]), np.concatenate([self.p, other.p]))

    def values(self, z: Array, x: Array, p: Array) -> Array:
        """(samples, K) in plain float64, of z (samples, n + 2m) and so on: for attacks, not for proofs."""
        found: Array = z @ self.z.middle.T + x @ self.x.T + p @ self.p.T
        return found


@dataclass(frozen=True, eq=False)
class Grid:
    """The power flow of a case with its generators' magnitudes and active powers given, and how it is looked for."""

    case: Case
    tuning: FlowTuning = field(default_factory=FlowTuning)

    @cached_property
    def slack(self) -> int:
        """Index of the bus whose generators take up what is missing."""
        return slack_bus(self.case)

    @cached_property
    def held(self) -> Index:
        """Buses with generators, whose magnitudes are held."""
        return np.unique(self.case.generators.bus)

    @cached_property
    def free(self) -> Index:
        """The other buses."""
        return np.setdiff1d(np.arange(self.case.num_buses), self.held)

    @cached_property
    def dispatched(self) -> Index:
        """Generators whose active power is given: those that are not at the slack bus."""
        return np.flatnonzero(self.case.generators.bus != self.slack)

    @cached_property
    def unknown(self) -> Index:
        """Of x = (va, vm): angles but the slack bus's, and magnitudes at free buses. Also which balances (2n,) are solved."""
        n = self.case.num_buses
        return np.concatenate([np.delete(np.arange(n), self.slack), n + self.free])

    @cached_property
    def flows(self) -> Balls:
        """(4m, n + 2m): pf, qf, pt, qt of all branches, one after the other, in z."""
        n, m, br = self.case.num_buses, len(self.case.branches), self.case.branches
        columns = (br.f, br.t, n + np.arange(m), n + m + np.arange(m))
        parts = []
        for values in admittances(self.case).flows():  # (m, 4, 4)
            matrix = np.zeros((4, m, n + 2 * m))
            for term, column in enumerate(columns):
                matrix[:, np.arange(m), column] += values[:, :, term].T
            parts.append(matrix.reshape(4 * m, n + 2 * m))
        return Balls(*parts)

    @cached_property
    def balances(self) -> Balls:
        """(2n, n + 2m): what the network draws at every bus, active and then reactive, into branches and shunts."""
        n, m, br, buses = self.case.num_buses, len(self.case.branches), self.case.branches, self.case.buses
        ends = np.concatenate([br.f, n + br.f, br.t, n + br.t])
        gather = np.zeros((2 * n, 4 * m))
        gather[ends, np.arange(4 * m)] = 1.0
        shunts = np.zeros((2 * n, n + 2 * m))
        i = np.arange(n)
        shunts[i, i], shunts[n + i, i] = buses.gs, -buses.bs
        return exactly(gather) @ self.flows + exactly(shunts)

    def parameters(self, pg: Array, vm: Array, pd: Array, qd: Array) -> Array:
        """p (..., 3n) of generation (..., g), magnitudes (..., n) and loads (..., n), all in p.u., in plain float64."""
        given = np.zeros((len(self.case.generators), self.case.num_buses))
        given[self.dispatched, self.case.generators.bus[self.dispatched]] = 1.0
        magnitudes = np.zeros(np.broadcast(vm, pd).shape)
        magnitudes[..., self.held] = vm[..., self.held]
        return np.concatenate(np.broadcast_arrays(pg @ given - pd, -qd, magnitudes), -1)

    def products(self, x: Array) -> Array:
        """z (..., n + 2m) at x (..., 2n), angles in rad and magnitudes in p.u., in plain float64."""
        n, br = self.case.num_buses, self.case.branches
        va, vm = x[..., :n], x[..., n:]
        vv, angle = vm[..., br.f] * vm[..., br.t], va[..., br.f] - va[..., br.t]
        return np.concatenate([vm**2, vv * np.cos(angle), vv * np.sin(angle)], -1)

    def slope(self, x: Array) -> Array:
        """(n + 2m, 2n): the derivatives of z at x (2n,), in plain float64."""
        n, m, br = self.case.num_buses, len(self.case.branches), self.case.branches
        z, vm, k = self.products(x), x[n:], np.arange(m)
        found = np.zeros((n + 2 * m, 2 * n))
        found[np.arange(n), n + np.arange(n)] = 2 * vm
        cos, sin = z[n : n + m], z[n + m :]
        for row, value, turned in ((n + k, cos, -sin), (n + m + k, sin, cos)):
            found[row, br.f], found[row, br.t] = turned, -turned
            found[row, n + br.f], found[row, n + br.t] = value / vm[br.f], value / vm[br.t]
        return found
