"""Proofs that an exact operating point exists beside a given one: the Krawczyk operator in ball arithmetic (python-flint).

In rectangular voltages the power flow equations are F(z) = 0 with F quadratic, so that around the point z, exactly,

    F(z + d) = F(z) + J d + Q(d).

Loads are held, and so many of the generators' powers and the voltage magnitudes that as many unknowns as equations remain. With C near
the inverse of J, a fixed point of d -> -C F(z) + (I - C J) d - C Q(d) is a zero of F, if C is not singular. Where this map takes a box
|d| <= r into its interior, it has one (Brouwer), and C is not singular, since |I - C J| r < r (S. M. Rump, Verification methods,
Acta Numerica 19, 2010, section 13). The point's own numbers, the case's, and C are float64 numbers, taken as they are; everything else
is a ball.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.admittance import PRECISION, admittance_balls
from milpverify.acopf.points.judgement import (
    ACTIVE_GENERATION,
    ANGLE_DIFFERENCE,
    FLOW_FROM,
    FLOW_TO,
    REACTIVE_GENERATION,
    VOLTAGE,
    limits,
)
from milpverify.acopf.points.rectangular import Rectangular, balance_slope
from milpverify.acopf.points.rectangular import limits as ranges
from milpverify.result import json_number
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case, Index
    from milpverify.acopf.points.judgement import Candidate


class ExistenceTuning(Tuning):
    """How an exact solution is looked for beside a point."""

    inflations: int = 5
    """How many boxes are tried, each twice as wide as the image of the one before."""
    least_room: float = 1e-12
    """p.u.: the weight of variables at their limits, which are left free where nothing else can be."""
    seconds: float = 1.0
    """About what the test takes for 118 buses, and more than that; it inverts a matrix, and cannot be interrupted, so that nobody begins it
    with less time left."""


@dataclass(frozen=True, eq=False)
class Existence:
    """Whether an exact solution of the power flow equations lies beside a point.

    `proved`: one does that has the point's loads, and its vm, va, pg and qg all are within `radius` of the point's. `strictly_inside`: it
    was proved too that it satisfies every limit of the case; what is held at exactly a limit does. `worst` is its least margin, at least,
    and `where` says of what. `pg` and `qg` are ranges (2, g) p.u. that contain its generation; it costs at most `cost`, $/h.
    """

    proved: bool
    message: str
    radius: float = math.inf
    strictly_inside: bool = False
    worst: float = -math.inf
    where: str = ""
    pg: Array | None = None
    qg: Array | None = None
    cost: float = math.inf

    def __str__(self) -> str:
        if not self.proved:
            return f"no exact operating point was proved to lie beside the point: {self.message}"
        if not self.strictly_inside:
            return f"within {self.radius:.2g} p.u. (rad) of the point {self.message}"
        return f"an exact operating point, within all limits, was proved to lie within {self.radius:.2g} p.u. (rad) of the point"

    def to_dict(self) -> dict[str, Any]:
        """A JSON form."""
        return {
            "proved": self.proved,
            "message": self.message,
            "radius": json_number(self.radius),
            "strictly_inside": self.strictly_inside,
            "worst": json_number(self.worst),
            "where": self.where,
            "pg": None if self.pg is None else self.pg.tolist(),
            "qg": None if self.qg is None else self.qg.tolist(),
            "cost": json_number(self.cost),
        }


def prove_existence(
    point: Candidate, radius: float = 1e-6, free: tuple[Index, Index] | None = None, tuning: ExistenceTuning = ExistenceTuning()
) -> Existence:
    """Try to prove that an exact solution of the power flow equations lies within a radius of a point (p.u. and rad).

    Args:
        point: where to look.
        radius: how far the solution may be, p.u. and rad.
        free: which k of vm and which n + 1 - k of (pg, qg) to solve for, beside all angles but the reference's; otherwise those that
            `unknowns` chooses. All others, and the loads, are held.
        tuning: how it is looked for.
    """
    import flint

    parts = np.concatenate([point.vm, point.va, point.pg, point.qg, point.pd, point.qd])
    if not (np.isfinite(parts).all() and (point.vm > 0).all()):
        return Existence(False, "the point is not finite, or has a voltage of 0")
    with flint.ctx.workprec(PRECISION):
        system = _System(point, unknowns(point, tuning) if free is None else free)
        moved, message = system.krawczyk(radius, tuning.inflations)
        return Existence(False, message) if moved is None else _judge(system, moved, radius)


def unknowns(point: Candidate, tuning: ExistenceTuning = ExistenceTuning()) -> tuple[Index, Index]:
    """Which vm (k,) and which of (pg, qg) (n + 1 - k,) to solve for, by their places, beside all angles but the reference's.

    They are the columns that a QR factorisation with pivoting takes of the balances' Jacobian, when each is scaled by the variable's
    room within its limits: what is at a limit is held there.
    """
    from scipy.linalg import qr

    case, n = point.case, point.case.num_buses
    lower, upper = ranges(case)
    x = np.concatenate([point.va, point.vm, point.pg, point.qg])
    room = np.clip(np.minimum(x - lower, upper - x), tuning.least_room, 1.0)[n:]
    slope = balance_slope(case, point.va, point.vm).toarray()
    angles = np.delete(slope[:, :n], case.reference, axis=1)
    complement = qr(angles)[0][:, n - 1 :]
    taken = np.sort(qr(complement.T @ (slope[:, n:] * room), mode="r", pivoting=True)[1][: n + 1])
    return taken[taken < n], taken[taken >= n] - n


class _System:
    """The equations around a point, as balls. Their unknowns are d: the changes of e, of f and of the free powers.

    The equations: 2n balances; f = 0 at the reference bus; e^2 + f^2 = vm^2 wherever vm is held.
    """

    def __init__(self, point: Candidate, free: tuple[Index, Index]) -> None:
        import flint

        self.point, self.case = point, point.case
        case, n = point.case, point.case.num_buses
        free_vm, self.powers = free
        self.held = np.setdiff1d(np.arange(n), free_vm)
        self.network = Rectangular(case, _flow_balls(case))
        self.turn = [flint.arb(angle).sin_cos() for angle in point.va.tolist()]
        vm = [flint.arb(value) for value in point.vm.tolist()]
        e, f = [v * cos for v, (_, cos) in zip(vm, self.turn, strict=True)], [v * sin for v, (sin, _) in zip(vm, self.turn, strict=True)]
        self.z = _objects(e + f)
        self.size = 2 * n + len(self.powers)
        bus = np.concatenate([case.generators.bus, n + case.generators.bus])
        self.power_row = bus[self.powers]
        self.residual = self._residual(bus)

    def _residual(self, bus: Index) -> Any:
        import flint

        point, n = self.point, self.case.num_buses
        balance = _sum(self.network.balances, self.z, self.z)
        for i, load in enumerate(np.concatenate([point.pd, point.qd]).tolist()):
            balance[i] += load
        for i, power in zip(bus.tolist(), np.concatenate([point.pg, point.qg]).tolist(), strict=True):
            balance[i] -= power
        zero = flint.arb(0)  # the point's magnitudes are those held
        return _column([*balance, self.z[n + self.case.reference], *[zero] * len(self.held)])

    def jacobian(self) -> list[list[Any]]:
        """J at the point."""
        n, rows = self.case.num_buses, [[0] * self.size for _ in range(self.size)]
        forms = self.network.balances
        for row, i, j, coefficient in zip(forms.row.tolist(), forms.i.tolist(), forms.j.tolist(), forms.coefficient, strict=True):
            rows[row][i] += coefficient * self.z[j]
            rows[row][j] += coefficient * self.z[i]
        for k, row in enumerate(self.power_row.tolist()):
            rows[row][2 * n + k] = -1
        rows[2 * n][n + self.case.reference] = 1
        for k, i in enumerate(self.held.tolist()):
            rows[2 * n + 1 + k][i], rows[2 * n + 1 + k][n + i] = 2 * self.z[i], 2 * self.z[n + i]
        return rows

    def second(self, d: list[Any]) -> Any:
        """Q(d)."""
        n = self.case.num_buses
        v = _objects(d[: 2 * n])
        return _column([*_sum(self.network.balances, v, v), 0, *[v[i] * v[i] + v[n + i] * v[n + i] for i in self.held.tolist()]])

    def krawczyk(self, radius: float, inflations: int) -> tuple[list[Any] | None, str]:
        """Balls that contain the d of an exact solution, (size,); or none, and why. So many boxes are tried."""
        import flint

        slope = self.jacobian()
        try:
            inverse = np.linalg.inv(np.array([[float(flint.arb(entry).mid()) for entry in row] for row in slope]))
        except np.linalg.LinAlgError:
            return None, "the power flow equations are singular here"
        if not np.isfinite(inverse).all():
            return None, "the power flow equations are singular here"
        c = flint.arb_mat(inverse.tolist())
        identity = flint.arb_mat([[int(i == j) for j in range(self.size)] for i in range(self.size)])
        rest, step = identity - c * flint.arb_mat(slope), c * self.residual
        far = max(float(entry.abs_lower()) for entry in step.entries())
        if not far <= 2 * radius:
            return None, f"a Newton step from here is {far:.2g} p.u. long: the balances are not met closely enough"
        image = (-step).entries()
        for _ in range(inflations):
            width = [2 * entry.abs_upper() for entry in image]
            least = max(width, key=float) / 1024 + flint.arb(2) ** (-PRECISION // 2)
            box = [flint.arb(0, entry + least) for entry in width]
            image = (rest * _column(box) - step - c * self.second(box)).entries()
            if all(d.contains_interior(entry) for d, entry in zip(box, image, strict=True)):
                return image, ""
        return None, "no box of voltages is mapped into itself: the equations are too curved or too nearly singular here"


def _judge(system: _System, moved: list[Any], radius: float) -> Existence:
    """What is known of the exact solution."""
    import flint

    point, case, n, g = system.point, system.case, system.case.num_buses, len(system.case.generators)
    if not system.z[case.reference] + moved[case.reference] > 0:
        return Existence(False, "the reference bus's voltage may be negative")
    vm, va, distance = [], [], []
    held = set(system.held.tolist())
    for i, (size, angle, (sin, cos)) in enumerate(zip(point.vm.tolist(), point.va.tolist(), system.turn, strict=True)):
        along, across = moved[i] * cos + moved[n + i] * sin, moved[n + i] * cos - moved[i] * sin  # turned, so that the point is at `size`
        exact = flint.arb(size) if i in held else abs(flint.acb(size + along, across))
        turned = flint.arb.atan2(across, size + along) if i != case.reference else flint.arb(-angle)  # f = 0 and e > 0: to 0
        vm.append(exact)
        va.append(angle + turned)
        distance += [exact - size, turned]
    powers = [flint.arb(power) for power in np.concatenate([point.pg, point.qg]).tolist()]
    for k, d in zip(system.powers.tolist(), moved[2 * n :], strict=True):
        powers[k] += d
        distance.append(d)
    proved = max(_up(abs(entry)) for entry in distance)
    if not proved <= radius:
        return Existence(False, f"an exact solution exists, but it may be {proved:.2g} p.u. away")
    v = _objects([value + d for value, d in zip(system.z, moved, strict=False)])
    flow = _sum(system.network.flows, v, v)
    values = {
        VOLTAGE: vm,
        ACTIVE_GENERATION: powers[:g],
        REACTIVE_GENERATION: powers[g:],
        ANGLE_DIFFERENCE: [va[f] - va[t] for f, t in zip(case.branches.f.tolist(), case.branches.t.tolist(), strict=True)],
        FLOW_FROM: [abs(flint.acb(flow[k], flow[k + 1])) for k in range(0, len(flow), 4)],
        FLOW_TO: [abs(flint.acb(flow[k + 2], flow[k + 3])) for k in range(0, len(flow), 4)],
    }
    margins = [(-math.inf if math.isnan(m) else m, name) for m, name in _margins(case, values)]
    worst, where = min(margins, default=(math.inf, ""))
    pg, qg = (np.array([[-_up(-power) for power in part], [_up(power) for power in part]]) for part in (powers[:g], powers[g:]))
    message = "" if worst >= 0 else f"an exact solution exists, but it may violate a limit by {-worst:.2g}: {where}"
    return Existence(True, message, proved, worst >= 0, worst, where, pg, qg, _cost(case, powers[:g]))


def _margins(case: Case, values: dict[str, list[Any]]) -> list[tuple[float, str]]:
    """Of every limit the distance that is kept from it at least, and its name."""
    found = []
    for limit in limits(case):
        if limit.kind in values:
            ball = values[limit.kind][limit.index]
            below = -_up(limit.lower - ball) if limit.lower > -math.inf else math.inf
            above = -_up(ball - limit.upper) if limit.upper < math.inf else math.inf
            if not (limit.lower == limit.upper and below == above == 0.0):  # what cannot move has no margin to speak of
                found.append((min(below, above) + 0.0, f"{limit.kind} of {limit.element}"))
    return found


def _cost(case: Case, pg: list[Any]) -> float:
    gen, total = case.generators, 0
    for c2, c1, c0, power in zip(gen.c2.tolist(), gen.c1.tolist(), gen.c0.tolist(), pg, strict=True):
        total += (c2 * power + c1) * power + c0
    return _up(total)


def _flow_balls(case: Case) -> Any:
    """(m, 4, 4) balls: pf, qf, pt, qt in w_f, w_t, c, s; see `admittance`."""
    rows = np.zeros((len(case.branches), 4, 4), dtype=object)
    for k, (gff, bff, gft, bft, gtf, btf, gtt, btt) in enumerate(admittance_balls(case)):
        rows[k] = [[gff, 0, gft, bft], [-bff, 0, -bft, gft], [0, gtt, gtf, -btf], [0, -btt, -btf, -gtf]]
    return rows


def _sum(forms: Any, x: Any, y: Any) -> list[Any]:
    """The forms' values, as balls."""
    import flint

    total = _objects([flint.arb(0)] * forms.count)
    np.add.at(total, forms.row, forms.coefficient * x[forms.i] * y[forms.j])
    return list(total)


def _objects(values: list[Any]) -> Any:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _column(values: list[Any]) -> Any:
    import flint

    return flint.arb_mat([[value] for value in values])


def _up(ball: Any) -> float:
    """A float64 at least everything in the ball, inf where nothing is known."""
    upper = ball.upper()
    value = float(upper)
    return math.inf if math.isnan(value) else value if upper <= value else math.nextafter(value, math.inf)
