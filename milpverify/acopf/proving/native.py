"""The power-flow equations as products of voltages, for solvers that branch on products themselves (SCIP, Gurobi).

Rectangular voltages e + j f of every bus and the relaxation's columns and rows, with w = e^2 + f^2 and the like as quadratic rows. What
such a solver proves is its dual bound less a safety margin (`solvers/trusted_bound.py`); there is nothing to recheck.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.encode.model import elastic
from milpverify.solvers.base import Limits, SolverStatus
from milpverify.solvers.model import Model, Quadratic
from milpverify.solvers.process import SolverProcess
from milpverify.solvers.trusted_bound import safe_dual_bound, safety_margin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.acopf.case import Array, Index
    from milpverify.acopf.relaxation.relaxation import Relaxation
    from milpverify.config import Deadline


def native_bound(solver: str, relaxation: Relaxation, linear: Model, refute: bool, target: float, deadline: Deadline) -> tuple[float, str]:
    """A lower bound of a linear model's objective over the operating points in it, by a solver for products, and what there is to be said.

    Args:
        solver: "scip" or "gurobi".
        relaxation: whose columns the model has.
        linear: the relaxation over a box.
        refute: whether only the emptiness of the model is asked for: the bound is then +inf or -inf.
        target: the bound that will do.
        deadline: the time limit.
    """
    model = with_products(relaxation, linear)
    asked = elastic(model) if refute else model
    aim = 2 * safety_margin(asked) if refute else target + safety_margin(asked, target)
    with SolverProcess(solver) as process:
        outcome = process.solve(asked, Limits(dual_target=aim), deadline)
    if outcome.status is SolverStatus.UNAVAILABLE:
        return -math.inf, outcome.message
    bound = safe_dual_bound(outcome, asked)
    return (math.inf if bound > 0.0 else -math.inf) if refute else bound, ""


def with_products(relaxation: Relaxation, linear: Model) -> Model:
    """The relaxation's model with e and f (n each), and p and q into rated branches, as further columns, and what defines them.

    A quadratic row for every w, c, s, rating and curved cost; a linear one for every flow.
    """
    columns, question = relaxation.columns, relaxation.question
    case, pairs, n = question.case, columns.pairs, question.case.num_buses
    br, rated = case.branches, columns.rated
    e, f = (linear.num_variables + k * n + np.arange(n) for k in range(2))
    flow = linear.num_variables + 2 * n + np.arange(4 * len(rated)).reshape(4, -1)
    most = np.sqrt(np.maximum(linear.upper[columns.w], 0.0)) * (1 + 2.0**-40)
    rate = br.rate[rated] + question.tolerance
    lower, upper = np.concatenate([-most, -most, *[-rate] * 4]), np.concatenate([most, most, *[rate] * 4])
    lower[case.reference] = 0.0
    lower[n + case.reference] = upper[n + case.reference] = 0.0
    made = _Rows(linear.num_rows)
    i, j, p = pairs.i, pairs.j, pairs.of_branch[rated]
    made.add([(columns.w, 1.0)], [(e, e, -1.0), (f, f, -1.0)], 0.0, 0.0)
    made.add([(columns.c, 1.0)], [(e[i], e[j], -1.0), (f[i], f[j], -1.0)], 0.0, 0.0)
    made.add([(columns.s, 1.0)], [(f[i], e[j], -1.0), (e[i], f[j], 1.0)], 0.0, 0.0)
    coefficients = relaxation.flow_coefficients()[0][rated]
    ends = (columns.w[br.f[rated]], columns.w[br.t[rated]], columns.c[p], columns.s[p])
    for which in range(4):
        ways = (1.0, 1.0, 1.0, pairs.sign[rated])
        terms = [(column, coefficients[:, which, k] * way) for k, (column, way) in enumerate(zip(ends, ways, strict=True))]
        made.add([(flow[which], -1.0), *terms], [], 0.0, 0.0)
    for a, b in (flow[:2], flow[2:]):
        made.add([], [(a, a, 1.0), (b, b, 1.0)], -math.inf, rate**2)
    if question.priced:
        gen, unit = case.generators, relaxation.unit
        curved = np.flatnonzero(gen.c2 > 0)
        price, pg = columns.price[curved], columns.pg[curved]
        squares = [(pg, pg, -gen.c2[curved] / unit)]
        made.add([(price, 1.0), (pg, -gen.c1[curved] / unit)], squares, gen.c0[curved] / unit, math.inf)
    return made.onto(linear, lower, upper)


class _Rows:
    """Rows of linear terms and products, as many at a time as the columns that come first."""

    def __init__(self, first: int) -> None:
        self._first, self.count = first, 0
        self._linear: list[tuple[Index, Index, Array]] = []
        self._products: list[tuple[Index, Index, Index, Array]] = []
        self._ends: list[tuple[Array, Array]] = []

    def add(
        self,
        linear: Sequence[tuple[Index, Array | float]],
        products: Sequence[tuple[Index, Index, Array | float]],
        lower: Array | float,
        upper: Array | float,
    ) -> None:
        """Rows lower <= sum of value v[column] + sum of value v[a] v[b] <= upper: (rows,) or one number for all, each of them."""
        count = len(linear[0][0] if linear else products[0][0])
        rows = self.count + np.arange(count)
        self._linear += [(rows, column, np.broadcast_to(value, count)) for column, value in linear]
        self._products += [(rows, np.minimum(a, b), np.maximum(a, b), np.broadcast_to(value, count)) for a, b, value in products]
        self._ends.append((np.broadcast_to(lower, count), np.broadcast_to(upper, count)))
        self.count += count

    def onto(self, model: Model, lower: Array, upper: Array) -> Model:
        """The model with these rows, and with further columns (k,) in these ranges."""
        rows, columns, values = (np.concatenate(part) for part in zip(*self._linear, strict=True))
        used = values != 0
        order = np.argsort(rows[used], kind="stable")
        rows, columns, values = (part[used][order] for part in (rows, columns, values))
        starts = model.row_start[-1] + np.searchsorted(rows, np.arange(1, self.count + 1))
        row, first, second, factor = (np.concatenate(part) for part in zip(*self._products, strict=True))
        order = np.argsort(row, kind="stable")
        ends = [np.concatenate(part) for part in zip(*self._ends, strict=True)]
        return replace(
            model,
            lower=np.append(model.lower, lower),
            upper=np.append(model.upper, upper),
            integer=np.append(model.integer, np.zeros(len(lower), dtype=bool)),
            objective=np.append(model.objective, np.zeros(len(lower))),
            row_start=np.append(model.row_start, starts),
            column=np.append(model.column, columns),
            value=np.append(model.value, values),
            row_lower=np.append(model.row_lower, ends[0]),
            row_upper=np.append(model.row_upper, ends[1]),
            quadratic=Quadratic(self._first + row[order], first[order], second[order], factor[order]),
        )
