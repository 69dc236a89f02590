"""An independent power flow: pypower's Newton method, by its own admittance matrix and its own equations.

Its voltages are compared with the point's, and what it finds is judged against our own case data, as every point is.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.errors import SolverUnavailable
from milpverify.result import json_number

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.judgement import Candidate

_UNLIMITED: Final = 1e9  # MW and MVAr that stand for an infinite limit, which pypower would multiply by zero
_ZERO: Final = 1e-300  # degrees that stand for 0, which pypower takes for no limit


@dataclass(frozen=True, eq=False)
class PowerFlow:
    """What Newton's method made of a point's set points.

    Set are the active generation but for the slack bus's, the voltage magnitude wherever there is a generator, the angle at the slack bus,
    and all loads; reactive limits are not enforced. `slack` is the reference bus, or, where no generator is there, the bus of the generator
    with the widest range of active generation. `difference` is the largest |dV| of the complex bus voltages (p.u.).
    """

    converged: bool
    slack: int  # index of a bus
    slack_pg: float  # p.u., of all generators there
    difference: float  # p.u.
    point: Candidate  # what the power flow found
    tolerance: float

    @property
    def reproduces(self) -> bool:
        """Whether it found the point itself, and nothing in what it found is violated by more than the tolerance."""
        return self.converged and self.difference <= self.tolerance and self.point.violation <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            "converged": self.converged,
            "slack": int(self.point.case.buses.number[self.slack]),
            "slack_pg": json_number(self.slack_pg),
            "difference": json_number(self.difference),
            "reproduces": self.reproduces,
            "point": self.point.to_dict(),
        }


def power_flow(point: Candidate, tolerance: float = 1e-6, flat: bool = False, converged: float = 1e-10) -> PowerFlow:
    """Run pypower's power flow at a point's set points.

    Where several generators share a bus, pypower's total is theirs: what it adds to the point's goes to the first one that has room for
    all of it, or to the first of them.

    Args:
        point: what is set, in p.u. and rad, and what the result is compared with.
        tolerance: p.u.: of |dV| and of the violation, for `reproduces`.
        flat: begin at angles of 0 and magnitudes of 1 where none are set. By default it begins at the point: near the limit of what
            a network can carry there are two solutions, and a flat start may lead to the other one.
        converged: p.u.: where pypower's iterations end.

    Raises:
        SolverUnavailable: pypower is not installed.
    """
    case, gens = point.case, point.case.generators
    slack = slack_bus(case)
    held = np.zeros(len(case.buses), dtype=bool)
    held[gens.bus] = True
    vm = np.where(held | (not flat), point.vm, 1.0)
    va = np.full_like(vm, point.va[slack]) if flat else point.va
    start = replace(point, vm=vm, va=va)
    # pypower's tables are as long as the largest number of a bus.
    numbered = replace(case, buses=replace(case.buses, number=np.arange(1, len(case.buses) + 1)))
    found, success = _newton(pypower_case(numbered, start, slack), converged)
    vm, va = found["bus"][:, 7], np.deg2rad(found["bus"][:, 8])
    va = va + 2 * np.pi * np.round((point.va - va) / (2 * np.pi))  # pypower's are principal values
    difference = float(np.max(np.abs(vm * np.exp(1j * va) - point.vm * np.exp(1j * point.va))))
    pg, qg = point.pg.copy(), point.qg.copy()
    for i in np.unique(gens.bus).tolist():
        at = np.flatnonzero(gens.bus == i)
        _give(qg, at, found["gen"][at, 2].sum() / case.base_mva, gens.qmin, gens.qmax)
        if i == slack:
            _give(pg, at, found["gen"][at, 1].sum() / case.base_mva, gens.pmin, gens.pmax)
    slack_pg = float(pg[gens.bus == slack].sum())
    result = replace(point, vm=vm, va=va, pg=pg, qg=qg)
    return PowerFlow(success, slack, slack_pg, difference if np.isfinite(difference) else np.inf, result, tolerance)


def pypower_case(case: Case, point: Candidate | None = None, slack: int | None = None) -> dict[str, Any]:
    """A case as pypower and MATPOWER read it, version 2, in MW and degrees; what is out of service is not there.

    All tables are full: pypower takes a table `gen` of fewer than 21 columns for version 1, and replaces all angle limits by +-360.

    Args:
        point: voltages, generation and loads to write; otherwise the case's loads, set points, and a flat start.
        slack: index of the bus of type 3; otherwise the reference bus.
    """
    buses, br, gens, base = case.buses, case.branches, case.generators, case.base_mva
    bus = np.zeros((len(buses), 13))
    bus[:, 0], bus[:, 1] = buses.number, 1
    bus[gens.bus, 1] = 2
    bus[case.reference if slack is None else slack, 1] = 3
    pd, qd = (buses.pd, buses.qd) if point is None else (point.pd, point.qd)
    bus[:, 2:6] = np.column_stack([pd, qd, buses.gs, buses.bs]) * base
    bus[:, 6] = bus[:, 7] = bus[:, 10] = 1
    bus[:, 9], bus[:, 11], bus[:, 12] = 1, buses.vmax, buses.vmin
    gen = np.zeros((len(gens), 21))
    gen[:, 0], gen[:, 5], gen[:, 6], gen[:, 7] = buses.number[gens.bus], gens.vset, base, 1
    gen[:, [3, 4, 8, 9]] = np.clip(np.column_stack([gens.qmax, gens.qmin, gens.pmax, gens.pmin]) * base, -_UNLIMITED, _UNLIMITED)
    if point is not None:
        bus[:, 7], bus[:, 8] = point.vm, np.rad2deg(point.va)
        gen[:, 1], gen[:, 2], gen[:, 5] = point.pg * base, point.qg * base, point.vm[gens.bus]
    branch = np.zeros((len(br), 13))
    branch[:, 0], branch[:, 1] = buses.number[br.f], buses.number[br.t]
    branch[:, 2:5] = np.column_stack([br.r, br.x, br.b])
    branch[:, 5] = branch[:, 6] = branch[:, 7] = np.where(np.isfinite(br.rate), br.rate * base, 0)
    branch[:, 8], branch[:, 9], branch[:, 10] = np.where((br.tap == 1) & (br.shift == 0), 0, br.tap), np.rad2deg(br.shift), 1
    branch[:, 11], branch[:, 12] = _degrees(br.angmin, -360), _degrees(br.angmax, 360)
    cost = np.zeros((len(gens), 7))
    cost[:, 0], cost[:, 3] = 2, 3
    cost[:, 4:] = np.column_stack([gens.c2 / base**2, gens.c1 / base, gens.c0])
    return {"version": "2", "baseMVA": base, "bus": bus, "gen": gen, "branch": branch, "gencost": cost}


def _degrees(angles: Array, none: float) -> Array:
    degrees = np.where(np.isinf(angles), none, np.rad2deg(np.where(np.isinf(angles), 0.0, angles)))
    result: Array = np.where(degrees == 0, np.copysign(_ZERO, none), degrees)
    return result


def slack_bus(case: Case) -> int:
    """The reference bus, or, where no generator is there, the bus of the generator with the widest range of active generation."""
    gens = case.generators
    if (gens.bus == case.reference).any():
        return case.reference
    return int(gens.bus[np.argmax(gens.pmax - gens.pmin)])


def _give(values: Array, at: Any, total: float, lower: Array, upper: Array) -> None:
    """Change the values at one bus, so that they add up to a total."""
    more = total - values[at].sum()
    room = (values[at] + more >= lower[at]) & (values[at] + more <= upper[at])
    values[at[int(np.argmax(room))]] += more


def _newton(tables: dict[str, Any], converged: float) -> tuple[dict[str, Any], bool]:
    try:
        from pypower.api import ppoption, runpf
    except ImportError as e:
        raise SolverUnavailable(f"the power flow needs pypower: pip install 'milpverify[acopf]' ({e})") from e
    options = ppoption(VERBOSE=0, OUT_ALL=0, PF_ALG=1, PF_TOL=converged, PF_MAX_IT=20, ENFORCE_Q_LIMS=0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found, success = runpf(tables, options)
    return found, bool(success)
