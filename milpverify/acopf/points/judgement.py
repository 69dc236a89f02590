"""Candidates for operating points, judged against the case's own data.

Everything is evaluated in ball arithmetic (python-flint, 128 bits) on the exact float64 numbers of point and case, so that `violation`
and the margins are proved; they say nothing of whether an exact solution is near, which `existence` does. `residuals` is the quick
evaluation in float64 for iterations, which proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.admittance import PRECISION, admittance_balls, admittances
from milpverify.errors import InvalidInput
from milpverify.result import json_number, json_text

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case

ACTIVE_BALANCE, REACTIVE_BALANCE, VOLTAGE = "active balance", "reactive balance", "voltage"
ACTIVE_GENERATION, REACTIVE_GENERATION = "active generation", "reactive generation"
ANGLE_DIFFERENCE, FLOW_FROM, FLOW_TO = "angle difference", "flow from", "flow to"
PARTS = ("vm", "va", "pg", "qg", "pd", "qd")


@dataclass(frozen=True)
class Constraint:
    """One limit or balance, at a point and over all points. Units: p.u., but rad for angles.

    `kind` is one of "active balance", "reactive balance", "voltage", "active generation", "reactive generation", "angle difference",
    "flow from", "flow to" (|S| at either end of a branch). `value` is what the limits `lower` <= value <= `upper` are about (of a balance:
    the residual, limits 0), `margin` the distance to the nearer limit, negative where it is violated: enclosed, so that it is at least
    that. Both are NaN where no point is meant. `proved` is the range of value over all operating points, (-inf, inf) where nothing is
    known of it.
    """

    kind: str
    element: str  # "bus 3", "branch 1-3 (row 2)", "generator at bus 3 (row 2)"
    index: int  # of the bus, branch or generator in the case's arrays
    unit: str
    lower: float
    upper: float
    value: float = math.nan
    margin: float = math.nan
    proved: tuple[float, float] = (-math.inf, math.inf)

    def to_dict(self) -> dict[str, Any]:
        """The fields; what is unknown is None."""
        numbers = {name: getattr(self, name) for name in ("lower", "upper", "value", "margin")}
        return {
            "kind": self.kind,
            "element": self.element,
            "index": self.index,
            "unit": self.unit,
            **{name: None if math.isnan(number) else json_number(number) for name, number in numbers.items()},
            "proved": [json_number(end) for end in self.proved],
        }


@dataclass(frozen=True, eq=False)
class Candidate:
    """Voltages, generation and loads of a case, whatever they came from. `point.Point` is one that can be asked for more."""

    case: Case
    vm: Array  # (n,) p.u.
    va: Array  # (n,) rad
    pg: Array  # (g,) p.u.
    qg: Array  # (g,) p.u.
    pd: Array  # (n,) p.u.
    qd: Array  # (n,) p.u.

    def __post_init__(self) -> None:
        for name in PARTS:
            wanted = len(self.case.generators) if name in {"pg", "qg"} else len(self.case.buses)
            values = np.array(getattr(self, name), dtype=np.float64)
            if values.shape != (wanted,):
                raise InvalidInput(f"point of {self.case.name}: {name} has shape {values.shape}, not ({wanted},)")
            object.__setattr__(self, name, values)

    @property
    def violation(self) -> float:
        """The largest violation of any limit or balance (p.u., angles in rad), never too small; inf where that is not known."""
        return max(0.0, -min(each.margin for each in self._judged))

    @property
    def cost(self) -> float:
        """The cost of its generation in $/h."""
        return self.case.cost(self.pg)

    def constraints(self) -> tuple[Constraint, ...]:
        """Every limit and balance of the case, with the value and the margin here."""
        return self._judged

    @cached_property
    def _judged(self) -> tuple[Constraint, ...]:
        values = _values(self)
        return tuple(_at(each, values[each.kind][each.index]) for each in limits(self.case))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists; `bus` has the numbers of the buses in their order."""
        parts = {name: getattr(self, name).tolist() for name in PARTS}
        judged = {"cost": json_number(self.cost), "violation": json_number(self.violation)}
        return {"case": self.case.name, "bus": self.case.buses.number.tolist(), **parts, **judged}

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON; `point.load_point` reads it."""
        json_text(self.to_dict(), path)


def limits(case: Case) -> tuple[Constraint, ...]:
    """Every limit and balance of a case, without values: two balances a bus, and each limit that is not infinite on both sides."""
    buses, branches, gens = case.buses, case.branches, case.generators
    bus_names = [case.bus_name(i) for i in range(len(buses))]
    gen_names = [case.generator_name(g) for g in range(len(gens))]
    branch_names = [case.branch_name(k) for k in range(len(branches))]
    none, zero = np.full(len(branches), -math.inf), np.zeros(len(buses))
    groups = [
        (ACTIVE_BALANCE, bus_names, "p.u.", zero, zero),
        (REACTIVE_BALANCE, bus_names, "p.u.", zero, zero),
        (VOLTAGE, bus_names, "p.u.", buses.vmin, buses.vmax),
        (ACTIVE_GENERATION, gen_names, "p.u.", gens.pmin, gens.pmax),
        (REACTIVE_GENERATION, gen_names, "p.u.", gens.qmin, gens.qmax),
        (ANGLE_DIFFERENCE, branch_names, "rad", branches.angmin, branches.angmax),
        (FLOW_FROM, branch_names, "p.u.", none, branches.rate),
        (FLOW_TO, branch_names, "p.u.", none, branches.rate),
    ]
    return tuple(
        Constraint(kind, name, i, unit, low, high)
        for kind, names, unit, lower, upper in groups
        for i, (name, low, high) in enumerate(zip(names, lower.tolist(), upper.tolist(), strict=True))
        if low > -math.inf or high < math.inf
    )


def residuals(case: Case, vm: Array, va: Array, pg: Array, qg: Array, pd: Array, qd: Array) -> tuple[Array, Array]:
    """The active and the reactive balance of every bus (n,) p.u., in plain float64 arithmetic: for iterations, not for proofs."""
    f, t, gens = case.branches.f, case.branches.t, case.generators
    flow = flows(case, vm, va)
    p = -pd - case.buses.gs * vm**2
    q = -qd + case.buses.bs * vm**2
    np.add.at(p, gens.bus, pg)
    np.add.at(q, gens.bus, qg)
    for total, at_from, at_to in ((p, flow[0], flow[2]), (q, flow[1], flow[3])):
        np.subtract.at(total, f, at_from)
        np.subtract.at(total, t, at_to)
    return p, q


def flows(case: Case, vm: Array, va: Array) -> Array:
    """pf, qf, pt, qt (4, m) p.u. in plain float64 arithmetic."""
    f, t = case.branches.f, case.branches.t
    vv, angle = vm[f] * vm[t], va[f] - va[t]
    terms = np.stack([vm[f] ** 2, vm[t] ** 2, vv * np.cos(angle), vv * np.sin(angle)])
    result: Array = np.einsum("mij,jm->im", admittances(case).flows()[0], terms)
    return result


def _values(point: Candidate) -> dict[str, list[Any]]:
    """What every kind of constraint is about, as balls."""
    import flint

    case, gens = point.case, point.case.generators
    with _precision():
        vm, va, pg, qg, p, q = ([flint.arb(v) for v in getattr(point, name).tolist()] for name in PARTS)
        angles: list[Any] = []
        sizes: tuple[list[Any], list[Any]] = [], []
        w = [v * v for v in vm]
        p = [-load - gs * square for load, gs, square in zip(p, case.buses.gs.tolist(), w, strict=True)]
        q = [-load + bs * square for load, bs, square in zip(q, case.buses.bs.tolist(), w, strict=True)]
        for i, active, reactive in zip(gens.bus.tolist(), pg, qg, strict=True):
            p[i] += active
            q[i] += reactive
        for f, t, y in zip(case.branches.f.tolist(), case.branches.t.tolist(), admittance_balls(case), strict=True):
            angles.append(va[f] - va[t])
            sin, cos = angles[-1].sin_cos()
            vv = vm[f] * vm[t]
            pf, qf, pt, qt = _flows(y, w[f], w[t], vv * cos, vv * sin)
            for end, active, reactive, size in ((f, pf, qf, sizes[0]), (t, pt, qt, sizes[1])):
                p[end] -= active
                q[end] -= reactive
                size.append(abs(flint.acb(active, reactive)))
    return {
        ACTIVE_BALANCE: p,
        REACTIVE_BALANCE: q,
        VOLTAGE: vm,
        ACTIVE_GENERATION: pg,
        REACTIVE_GENERATION: qg,
        ANGLE_DIFFERENCE: angles,
        FLOW_FROM: sizes[0],
        FLOW_TO: sizes[1],
    }


def _flows(y: Sequence[Any], wf: Any, wt: Any, c: Any, s: Any) -> tuple[Any, Any, Any, Any]:
    """pf, qf, pt, qt of the eight numbers of a branch."""
    gff, bff, gft, bft, gtf, btf, gtt, btt = y
    return gff * wf + gft * c + bft * s, gft * s - bff * wf - bft * c, gtt * wt + gtf * c - btf * s, -btt * wt - btf * c - gtf * s


def _at(limit: Constraint, ball: Any) -> Constraint:
    """The constraint with a value; its margin is rounded down."""
    import flint

    with _precision():
        above, below = ball - flint.arb(limit.lower), flint.arb(limit.upper) - ball
        margin = min(_down(above) if limit.lower > -math.inf else math.inf, _down(below) if limit.upper < math.inf else math.inf)
    return replace(limit, value=float(ball.mid()), margin=margin)


def _down(ball: Any) -> float:
    """A float64 at most everything in the ball, -inf where nothing is known; 0 stays 0."""
    lower = ball.lower()
    value = float(lower)
    return -math.inf if math.isnan(value) else value if lower >= value else math.nextafter(value, -math.inf)


@contextmanager
def _precision() -> Iterator[None]:
    import flint

    before, flint.ctx.prec = flint.ctx.prec, PRECISION
    try:
        yield
    finally:
        flint.ctx.prec = before
