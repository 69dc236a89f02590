"""The power-flow equations as a computation graph like any other, in polar coordinates: for bounds, searches and networks before them.

The flows are linear in vm^2, vm_f vm_t cos(va_f - va_t) and vm_f vm_t sin(va_f - va_t) (`admittance`). Their coefficients are no float64
numbers; the graph has the nearest ones, and says that they are `rounded`, so that everything proved of it holds for the real equations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from milpverify.acopf.admittance import PRECISION, admittance_balls, admittances
from milpverify.errors import InvalidInput
from milpverify.frontends.lowering.builder import Builder
from milpverify.frontends.lowering.constants import Constant
from milpverify.graph import Graph, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.judgement import Candidate

_ROUNDED: Final = 2  # a coefficient is within 1.5 units of roundoff, so that two factors 1 + d cover it


@dataclass(frozen=True)
class Layout:
    """Where what is in the flat inputs and outputs of `equations`: n buses, m branches, g generators; p.u. and rad."""

    vm: slice  # inputs: (n,)
    va: slice  # (n,)
    pg: slice  # (g,)
    qg: slice  # (g,)
    pd: slice  # (n,)
    qd: slice  # (n,)
    active_balance: slice  # outputs: (n,) generation less load, shunt and flows; 0 at operating points
    reactive_balance: slice  # (n,)
    pf: slice  # (m,) flow into the branch at its from end
    qf: slice  # (m,)
    pt: slice  # (m,) at its to end
    qt: slice  # (m,)
    sf2: slice  # (m,) |S|^2 at the from end
    st2: slice  # (m,)
    angle_difference: slice  # (m,) va[f] - va[t]

    def x(self, point: Candidate) -> Array:
        """The input (nx,) at a point."""
        return np.concatenate([point.vm, point.va, point.pg, point.qg, point.pd, point.qd])


def layout(case: Case) -> Layout:
    """The layout of a case's equations."""
    inputs, outputs = _sizes(case)
    return Layout(**_slices(inputs), **_slices(outputs))


def equations(case: Case) -> Graph:
    """A graph from x = (vm, va, pg, qg, pd, qd) to the balances, the flows, the squares of their sizes, and the angle differences.

    `layout` says what is where; the graph's `inputs` and `outputs` have the same names.

    Raises:
        InvalidInput: a coefficient cancels so far that no float64 is known to be near it.
    """
    n, m, g = len(case.buses), len(case.branches), len(case.generators)
    f, t, at, ends = case.branches.f, case.branches.t, layout(case), np.arange(m)
    builder = Builder(4 * n + 2 * g)
    x = builder.nodes[0]
    pick = np.arange(x.size)
    vm = builder.select(x, pick[at.vm])
    w = builder.function("square", vm)
    angle = builder.matmul(x, _ones(x.size, m, (pick[at.va][f], ends, 1), (pick[at.va][t], ends, -1)))
    vv = builder.product(builder.select(vm, f), builder.select(vm, t))
    products = [builder.product(vv, builder.function(name, angle)) for name in ("cos", "sin")]
    flows = builder.matmul(builder.concat([w, *products], 0), Constant(_flow_matrix(case), _ROUNDED))
    pf, qf, pt, qt = (builder.select(flows, np.arange(k * m, (k + 1) * m)) for k in range(4))
    sizes = [builder.sum([builder.function("square", part) for part in parts]) for parts in ((pf, qf), (pt, qt))]
    balances = []
    for generated, load, shunt, leaving in ((at.pg, at.pd, -case.buses.gs, (0, 2)), (at.qg, at.qd, case.buses.bs, (1, 3))):
        k, buses = x.size, np.arange(n)
        of_bus = np.arange(k, k + n)
        of_from, of_to = (k + n + part * m + ends for part in leaving)
        weight = _ones(
            k + n + 4 * m,
            n,
            (pick[generated], case.generators.bus, 1),
            (pick[load], buses, -1),
            (of_bus, buses, shunt),
            (of_from, f, -1),
            (of_to, t, -1),
        )
        balances.append(builder.matmul(builder.concat([x, w, flows], 0), weight))
    inputs, outputs = (tuple(TensorSpec(name, (size,), "float64") for name, size in sizes.items()) for sizes in _sizes(case))
    return builder.graph([*balances, pf, qf, pt, qt, *sizes, angle], inputs, outputs)


def _sizes(case: Case) -> tuple[dict[str, int], dict[str, int]]:
    n, m, g = len(case.buses), len(case.branches), len(case.generators)
    branch = dict.fromkeys(("pf", "qf", "pt", "qt", "sf2", "st2", "angle_difference"), m)
    return {"vm": n, "va": n, "pg": g, "qg": g, "pd": n, "qd": n}, {"active_balance": n, "reactive_balance": n, **branch}


def _slices(sizes: dict[str, int]) -> dict[str, slice]:
    ends = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}


def _ones(rows: int, columns: int, *entries: tuple[NDArray[Any], NDArray[Any], NDArray[Any] | int]) -> Array:
    """A matrix of exact coefficients: row, column and value of each."""
    matrix = np.zeros((rows, columns))
    for row, column, value in entries:
        matrix[row, column] = value
    return matrix


def _flow_matrix(case: Case) -> Array:
    """(n + 2 m, 4 m): pf, qf, pt, qt as columns in w, vv cos and vv sin."""
    _check_coefficients(case)
    n, m = len(case.buses), len(case.branches)
    branches = np.arange(m)
    rows = (case.branches.f, case.branches.t, n + branches, n + m + branches)
    matrix = np.zeros((n + 2 * m, 4, m))
    middle, _ = admittances(case).flows()  # (m, 4 flows, 4 terms)
    for term, row in enumerate(rows):
        matrix[row, :, branches] = middle[:, :, term]
    return matrix.reshape(n + 2 * m, 4 * m)


def _check_coefficients(case: Case) -> None:
    """Every float64 coefficient must be the real one but for its rounding."""
    import flint

    before, flint.ctx.prec = flint.ctx.prec, PRECISION
    try:
        for k, (balls, middles) in enumerate(zip(admittance_balls(case), admittances(case).middle.tolist(), strict=True)):
            for ball, middle in zip(balls, middles, strict=True):
                if not (ball - middle).abs_upper() <= 1.5 * 2.0**-53 * ball.abs_lower():
                    raise InvalidInput(f"{case.name}: {case.branch_name(k)}: its admittance cancels too far for float64")
    finally:
        flint.ctx.prec = before
