"""A linear relaxation of the operating points of a network, in products of voltages and angle differences, over a box of them.

Columns: w = vm^2 of every bus; of every pair of buses that branches join, c = vm_i vm_j cos(d), s = vm_i vm_j sin(d) and d = va_i - va_j
(modulo 2 pi in (-pi, pi]); generation; loads where they vary; costs. In these the balances and flows are
linear (`admittance.py`). What c, s, d and w have to do with each other is relaxed (Coffrin, Hijazi, Van Hentenryck, "The QC relaxation"
and "Strengthening the SDP relaxation of AC power flows with bound tightening and valid inequalities", 2016 and 2017), in coordinates
turned by the middle of each pair's angles, where a narrow range is nearly linear:

- d of the pairs round a cycle sum to 0, where their ranges leave no other multiple of 2 pi;
- lines through the corner products of vm_i and vm_j bound the turned c from below (lifted nonlinear cuts);
- the turned s is the turned c times tan(d - turn): McCormick's planes, with the tangent between two lines;
- c^2 + s^2 <= w_i w_j, ratings and quadratic costs are cones, from which `cuts.py` takes tangent planes where a solution violates them.

All errors are of second order in the ranges, so that tightening ranges (`tightening.py`) closes the relaxation quickly.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.acopf.admittance import admittances
from milpverify.acopf.relaxation.arithmetics import FLOATS, WIDE, Numbers, Values
from milpverify.acopf.relaxation.columns import Columns, Question
from milpverify.acopf.relaxation.cuts import Cuts, no_cuts
from milpverify.acopf.relaxation.rows import Assembly, Rows

if TYPE_CHECKING:
    from milpverify.acopf.case import Index

LARGEST_UNIT: Final = 100  # exponent


class Relaxation:
    """The rows of a question over boxes of its columns, in one of the two arithmetics.

    `lower` and `upper` are ranges of all columns, (columns,) each: p.u., rad, and units of cost.
    """

    def __init__(self, question: Question, numbers: Numbers = FLOATS, columns: Columns | None = None) -> None:
        self.question, self.numbers, self.columns = question, numbers, columns or Columns(question)
        middle, radius = admittances(question.case).flows()
        self._flows, self._radii = numbers.of(middle), numbers.of(radius)

    @cached_property
    def unit(self) -> float:
        """$/h in one unit of the cost columns: a power of two near the cost of everything at its most."""
        gen = self.question.case.generators
        reach = np.maximum(np.abs(gen.pmin), np.abs(gen.pmax))
        reach = np.where(np.isfinite(reach), reach, 1.0)
        size = float(np.sum(np.abs(gen.c2) * reach**2 + np.abs(gen.c1) * reach + np.abs(gen.c0)))
        return 2.0 ** min(max(math.frexp(size)[1], -LARGEST_UNIT), LARGEST_UNIT) if size > 0 else 1.0

    @cached_property
    def costs(self) -> tuple[Values, Values, Values]:
        """c2, c1 and c0 of every generator in that unit; of all numbers in a rational, none is lost by the scaling."""
        of, gen = self.numbers.of, self.question.case.generators
        scale = of(np.array([1.0 / self.unit]))
        return of(gen.c2) * scale, of(gen.c1) * scale, of(gen.c0) * scale

    @property
    def num_fixed(self) -> int:
        """How many rows come before those of the cuts."""
        columns, case = self.columns, self.question.case
        return 2 * case.num_buses + len(columns.pairs.cycles) + 8 * len(columns.pairs.i) + int(self.question.priced)

    def flow_coefficients(self) -> tuple[Values, Values]:
        """(m, 4, 4) and their radii: pf, qf, pt, qt of every branch in w_f, w_t, c, s (`admittance.py`)."""
        return self._flows, self._radii

    def voltages(self, lower: Values, upper: Values) -> tuple[Values, Values]:
        """vm (n,) p.u. of every bus, from and to, rounded outwards, but not below 0."""
        w, zero = self.columns.w, self.numbers.of(np.zeros(len(self.columns.w)))
        low, high = (self.numbers.apply("sqrt", np.maximum(end[w], zero), up) for end, up in ((lower, False), (upper, True)))
        return np.maximum(low, zero), high

    def rows(self, lower: Values, upper: Values, cuts: Cuts | None = None) -> Rows:
        """All rows over a box: those of `num_fixed`, whose places depend on the question only, and one for every cut.

        A row whose sector or cycle is too wide to say anything is empty. Every row is widened by what its coefficients were rounded, and
        by the slack of the arithmetic.
        """
        made = Assembly(self.numbers, len(self.columns))
        self._balances(made)
        self._cycles(made, lower, upper)
        self._pairs(made, lower, upper)
        if self.question.priced:
            made.rows(
                np.append(self.columns.total, self.columns.price)[None], np.append(1.0, -np.ones(len(self.columns.price)))[None], lower=0.0
            )
        self._cuts(made, no_cuts() if cuts is None else cuts)
        return made.finish(lower, upper)

    def balances(self, lower: Values, upper: Values) -> Rows:
        """The first 2n of the rows alone."""
        made = Assembly(self.numbers, len(self.columns))
        self._balances(made)
        return made.finish(lower, upper)

    def _balances(self, made: Assembly) -> None:
        """Generation less shunts, flows and loads, row by row the active and then the reactive power of every bus."""
        case, columns, numbers, t = self.question.case, self.columns, self.numbers, self.question.tolerance
        buses, br = case.buses, case.branches
        low_p, high_p, low_q, high_q = self.question.loads
        for power, (generation, shunt, load, low, high) in enumerate(
            ((columns.pg, -buses.gs, buses.pd, low_p, high_p), (columns.qg, buses.bs, buses.qd, low_q, high_q))
        ):
            first = made.count
            constant = np.where(low == high, low, 0.0)
            if len(columns.growth):
                constant = np.zeros(case.num_buses)
            target, width = numbers.of(constant), numbers.of(np.full(case.num_buses, t))
            made.open(target - width, target + width)
            made.put(first + case.generators.bus, generation, np.ones(len(generation)))
            made.put(first + np.arange(case.num_buses), columns.w, shunt)
            if len(columns.growth):
                made.put(first + np.arange(case.num_buses), np.full(case.num_buses, columns.growth[0]), -load)
            else:
                made.put(first + columns.varying[power], columns.loads[power], -np.ones(len(columns.loads[power])))
            for end, bus in ((0, br.f), (2, br.t)):
                self._flow(made, first + bus, np.arange(len(br)), -self._flows[:, end + power], self._radii[:, end + power])

    def _flow(self, made: Assembly, row: Index, branch: Index, values: Values, radii: Values) -> None:
        """Terms (r, 4) in w at both ends, c and s of branches."""
        columns, br = self.columns, self.question.case.branches
        p = columns.pairs.of_branch[branch]
        turned = self.numbers.of(columns.pairs.sign[branch])
        for k, column in enumerate((columns.w[br.f[branch]], columns.w[br.t[branch]], columns.c[p], columns.s[p])):
            made.put(row, column, values[:, k] * turned if k == 3 else values[:, k], radii[:, k])

    def _cycles(self, made: Assembly, lower: Values, upper: Values) -> None:
        """Angle differences round a cycle are a multiple of 2 pi, which is 0 where they are less than that in sum."""
        d, cycles = self.columns.d, self.columns.pairs.cycles
        reach = np.maximum(np.abs(lower[d]), np.abs(upper[d]))
        for cycle in cycles:
            which = np.array([p for p, _ in cycle])
            closed = bool(float(reach[which].sum()) < 6.28)
            end = self.numbers.of(np.array([0.0 if closed else np.inf]))
            first = made.count
            made.open(-end, end)
            if closed:
                made.put(np.full(len(cycle), first), d[which], np.array([float(sign) for _, sign in cycle]))

    def _pairs(self, made: Assembly, lower: Values, upper: Values) -> None:
        """What ties c, s and d of a pair to each other and to w: limits of tan(d), lifted nonlinear cuts, planes of the turned tangent."""
        columns, numbers = self.columns, self.numbers
        w, c, s, d = columns.w, columns.c, columns.s, columns.d
        i, j = columns.pairs.i, columns.pairs.j
        of = numbers.of
        sector = numbers.sector(lower[d], upper[d])
        low_v, high_v = self.voltages(lower, upper)
        (il, iu), (jl, ju) = (low_v[i], high_v[i]), (low_v[j], high_v[j])
        one = of(np.ones(len(i)))
        q, cd = sector.quarter, sector.cosine
        C, S, R = one - q * q, q + q, one + q * q  # R cos(turn), R sin(turn)
        steep = np.maximum(-lower[d], upper[d]).astype(np.float64) < WIDE  # the other rows have no meaning beyond a quarter turn
        zero = of(np.zeros(len(i)))
        for sign, angle in ((1.0, upper[d]), (-1.0, -lower[d])):
            tangent = numbers.apply("tan", np.where(steep, angle, zero), True)
            made.rows(np.stack([c, s], 1), np.stack([tangent, of(np.full(len(i), -sign))], 1), lower=zero, where=steep)
        a, b = il + iu, jl + ju
        corner = il * jl - iu * ju
        narrow = sector.narrow
        product = np.stack([c, s, w[i], w[j]], 1)
        for vi, vj, way in ((iu, ju, one), (il, jl, -one)):
            values = np.stack([a * b * C, a * b * S, -(R * cd * vj * b), -(R * cd * vi * a)], 1)
            made.rows(product, values, lower=way * R * cd * vi * vj * corner, where=narrow)
        least, most, th, k = R * il * jl * cd, R * iu * ju, sector.tangent, sector.slope
        skew = k * sector.slip
        triple = np.stack([s, c, d], 1)
        for way, size, t in ((one, most, -th), (one, least, th), (-one, least, -th), (-one, most, th)):
            values = np.stack([way * (C - t * S), way * (-S - t * C), -(way * size * k)], 1)
            high = size * (sector.error + skew) - way * size * (t + k * sector.turn)
            made.rows(triple, values, upper=high, where=narrow)

    def _cuts(self, made: Assembly, cuts: Cuts) -> None:
        columns, of = self.columns, self.numbers.of
        u, p = of(cuts.pair_direction), cuts.pair
        product = np.stack([columns.c[p], columns.s[p], columns.w[columns.pairs.i[p]], columns.w[columns.pairs.j[p]]], 1)
        one = of(np.ones(len(p)))
        made.rows(product, np.stack([u[:, 0] + u[:, 0], u[:, 1] + u[:, 1], u[:, 2] - one, -u[:, 2] - one], 1), upper=of(np.zeros(len(p))))
        branch, end, v = columns.rated[cuts.flow], cuts.end, of(cuts.flow_direction)
        first, endless = made.count, of(np.full(len(branch), np.inf))
        made.open(-endless, of(self.question.case.branches.rate[branch]) + of(np.full(len(branch), self.question.tolerance)))
        p, q = self._flows[branch, 2 * end] * v[:, :1], self._flows[branch, 2 * end + 1] * v[:, 1:]
        radii = self._radii[branch, 2 * end] * np.abs(v[:, :1]) + self._radii[branch, 2 * end + 1] * np.abs(v[:, 1:])
        radii = radii + of(np.array([self.numbers.slack])) * (np.abs(p) + np.abs(q))  # they may cancel
        self._flow(made, first + np.arange(len(branch)), branch, p + q, radii)
        g, at = cuts.price, of(cuts.at)
        c2, c1, c0 = (part[g] for part in self.costs)
        one = of(np.ones(len(g)))
        slope = c2 * at + c2 * at + c1
        made.rows(np.stack([columns.price[g], columns.pg[g]], 1), np.stack([one, -slope], 1), lower=c0 - c2 * at * at)
