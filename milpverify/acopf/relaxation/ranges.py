"""Ranges of the columns: what limits and loads give, and what ranges imply for each other. No linear program is solved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from milpverify.acopf.relaxation.rows import bounded, contradictory, summed

if TYPE_CHECKING:
    from milpverify.acopf.case import Index
    from milpverify.acopf.relaxation.arithmetics import Values
    from milpverify.acopf.relaxation.relaxation import Relaxation

ANGLE: Final = 3.1415926535897936
"""At least pi."""
HALF_TURN: Final = 3.1415
"""rad: a difference of angles up to this is the principal one; limits that are wider say nothing of that."""


class Ranges:
    """The ranges of a relaxation's columns, in its arithmetic: `lower` and `upper` are (columns,), p.u., rad or units of cost."""

    def __init__(self, relaxation: Relaxation) -> None:
        self.relaxation, self.question = relaxation, relaxation.question
        self.columns, self.numbers, self.unit = relaxation.columns, relaxation.numbers, relaxation.unit

    def limits(self) -> tuple[Values, Values]:
        """The ranges that limits and loads give to the columns, wider by the question's tolerance; some may be infinite."""
        case, columns, of = self.question.case, self.columns, self.numbers.of
        buses, br, gen, pairs = case.buses, case.branches, case.generators, columns.pairs
        t = self.numbers.of(np.array([self.question.tolerance]))
        lower, upper = of(np.full(len(columns), -np.inf)), of(np.full(len(columns), np.inf))

        def put(which: Index, low: Values, high: Values) -> None:
            lower[which], upper[which] = self.numbers.turned(low, False), self.numbers.turned(high, True)

        least = of(buses.vmin) - t
        least = np.where((least > 0).astype(bool), least, of(np.zeros(case.num_buses)))
        most = of(buses.vmax) + t
        put(columns.w, least * least, most * most)
        low, high = np.full(len(pairs.i), -ANGLE), np.full(len(pairs.i), ANGLE)
        for k in range(len(br)):
            p, (a, b) = pairs.of_branch[k], (br.angmin[k], br.angmax[k])
            a, b = (a, b) if pairs.sign[k] > 0 else (-b, -a)
            if max(-a, b) + self.question.tolerance < HALF_TURN:
                low[p], high[p] = max(low[p], a), min(high[p], b)
        widened = of(low) - t, of(high) + t
        lower[columns.d], upper[columns.d] = self.numbers.turned(widened[0], False), self.numbers.turned(widened[1], True)
        put(columns.pg, of(gen.pmin) - t, of(gen.pmax) + t)
        put(columns.qg, of(gen.qmin) - t, of(gen.qmax) + t)
        for which, buses_of, (a, b) in zip(columns.loads, columns.varying, (self.question.loads[:2], self.question.loads[2:]), strict=True):
            lower[which], upper[which] = of(a[buses_of]), of(b[buses_of])
        if self.question.growth is not None:
            lower[columns.growth], upper[columns.growth] = (of(np.array([end])) for end in self.question.growth)
        return lower, upper

    def settled(self, lower: Values, upper: Values) -> tuple[Values, Values]:
        """Propagated twice: angles follow from products, and products from angles. What contradicts itself is left as it is."""
        for _ in range(2):
            if not contradictory(lower, upper):
                lower, upper = self.propagated(lower, upper)
        return lower, upper

    def propagated(self, lower: Values, upper: Values) -> tuple[Values, Values]:
        """What ranges of columns imply for others.

        One at a time: products of voltages from these and their angles, angles from products, generation without limits and growth from
        the balances, costs from the dispatch.
        """
        lower, upper = lower.copy(), upper.copy()
        self._products(lower, upper)
        self._angles(lower, upper)
        self._generation(lower, upper)
        if self.question.priced:
            self._prices(lower, upper)
        return lower, upper

    def _tighten(self, lower: Values, upper: Values, which: Index, low: Values, high: Values) -> None:
        lower[which] = np.where((low > lower[which]).astype(bool), low, lower[which])
        upper[which] = np.where((high < upper[which]).astype(bool), high, upper[which])

    def _products(self, lower: Values, upper: Values) -> None:
        columns, numbers = self.columns, self.numbers
        pairs = columns.pairs
        low_v, high_v = self.relaxation.voltages(lower, upper)
        least = numbers.turned(low_v[pairs.i] * low_v[pairs.j], False)
        most = numbers.turned(high_v[pairs.i] * high_v[pairs.j], True)
        low, high = lower[columns.d], upper[columns.d]
        zero, quarter = numbers.of(np.zeros(len(low))), numbers.of(np.full(len(low), ANGLE / 2))

        def extreme(function: str, up: bool) -> Values:
            """The largest or least value: at an end, or at a turning point, 0 for the cosine and a quarter turn for the sine."""
            ends = numbers.apply(function, low, up), numbers.apply(function, high, up)
            value = np.maximum(*ends) if up else np.minimum(*ends)
            within = (zero if function == "cos" else quarter) if up else (2 * quarter if function == "cos" else -quarter)
            slip = numbers.of(np.full(len(low), 1e-9))  # a turning point that is nearly within the range counts as within
            turning = ((low - slip <= within) & (within <= high + slip)).astype(bool)
            if function == "cos" and not up:
                turning |= (low <= slip - within).astype(bool)  # -pi
            one = numbers.of(np.ones(len(low)))
            return np.where(turning, one if up else -one, value)

        for which, function in ((columns.c, "cos"), (columns.s, "sin")):
            bottom, top = extreme(function, False), extreme(function, True)
            ends = [numbers.turned(size * bottom, False) for size in (least, most)]
            tops = [numbers.turned(size * top, True) for size in (least, most)]
            self._tighten(lower, upper, which, np.minimum(*ends), np.maximum(*tops))

    def _angles(self, lower: Values, upper: Values) -> None:
        """d from tan(d) = s / c where c is positive."""
        columns, numbers = self.columns, self.numbers
        right = np.flatnonzero(((lower[columns.c] > 0) & (upper[columns.c] >= lower[columns.c])).astype(bool))
        near, far = lower[columns.c[right]], upper[columns.c[right]]
        low, high = lower[columns.s[right]], upper[columns.s[right]]
        high = numbers.quotient(high, np.where((high > 0).astype(bool), near, far), True)
        low = numbers.quotient(low, np.where((low < 0).astype(bool), near, far), False)
        self._tighten(lower, upper, columns.d[right], numbers.apply("atan", low, False), numbers.apply("atan", high, True))

    def _prices(self, lower: Values, upper: Values) -> None:
        """Costs at the ends of the dispatch's range; a parabola is above its terms' least values."""
        columns, of, numbers = self.columns, self.numbers.of, self.numbers
        low, high = lower[columns.pg], upper[columns.pg]
        c2, c1, c0 = self.relaxation.costs
        straight = np.flatnonzero(bounded(low) & bounded(high))
        a, b = low[straight], high[straight]
        q, r, k = c2[straight], c1[straight], c0[straight]
        squares = np.where((a > 0).astype(bool), a * a, np.where((b < 0).astype(bool), b * b, of(np.zeros(len(a)))))
        least = numbers.turned(q * squares, False) + numbers.turned(np.minimum(r * a, r * b), False) + k
        size = np.abs(q) * np.maximum(a * a, b * b) + np.abs(r) * np.maximum(np.abs(a), np.abs(b)) + np.abs(k)
        most = np.maximum(q * a * a + r * a + k, q * b * b + r * b + k)
        slack = of(np.array([numbers.slack])) * size
        self._tighten(lower, upper, columns.price[straight], least - slack, most + slack)

        def total(prices: Values, sign: int) -> Values:
            """Of all prices, rounded down or up; without an end where one of them has none."""
            if not bounded(prices).all():
                return of([sign * np.inf])
            rounded: Values = prices.sum(keepdims=True) + sign * of(np.array([numbers.slack])) * np.abs(prices).sum()
            return rounded

        self._tighten(lower, upper, columns.total, total(lower[columns.price], -1), total(upper[columns.price], 1))

    def _generation(self, lower: Values, upper: Values) -> None:
        """Generation without limits, and growth, from the balance of one bus at a time."""
        columns, case, numbers = self.columns, self.question.case, self.numbers
        bus, loads = case.generators.bus, (case.buses.pd, case.buses.qd)
        endless = [np.unique(bus[~(bounded(lower[which]) & bounded(upper[which]))]) for which in (columns.pg, columns.qg)]
        growing = self.question.growth is not None and not bounded(upper[columns.growth]).all()
        if not (growing or any(map(len, endless))):
            return
        drawn = self._drawn(lower, upper)
        for power, generation in enumerate((columns.pg, columns.qg)):
            for b in endless[power].tolist():
                here = np.flatnonzero(bus == b)
                low, high = (end[[power * case.num_buses + b]] for end in drawn)
                growth = self._grown(loads[power][b], lower, upper)
                for g in here.tolist():
                    which, others = generation[[g]], generation[here[here != g]]
                    if bounded(lower[others]).all() and bounded(growth[1]).all():
                        top = high + growth[1] - lower[others].sum()
                        self._tighten(lower, upper, which, lower[which], numbers.turned(top, True))
                    if bounded(upper[others]).all() and bounded(growth[0]).all():
                        bottom = low + growth[0] - upper[others].sum()
                        self._tighten(lower, upper, which, numbers.turned(bottom, False), upper[which])
        if growing:
            self._limit_growth(lower, upper, drawn)

    def _limit_growth(self, lower: Values, upper: Values, drawn: tuple[Values, Values]) -> None:
        """growth * load = generation - what the bus draws besides, so that it has an end."""
        columns, case, numbers = self.columns, self.question.case, self.numbers
        for power, generation in enumerate((columns.pg, columns.qg)):
            load = (case.buses.pd, case.buses.qd)[power]
            for b in np.flatnonzero(load).tolist():
                here = generation[case.generators.bus == b]
                if not (bounded(lower[here]).all() and bounded(upper[here]).all()):
                    continue
                low, high = (end[[power * case.num_buses + b]] for end in drawn)
                ends = upper[here].sum() - low if load[b] > 0 else lower[here].sum() - high
                most = numbers.quotient(ends, numbers.of(load[[b]]), True)
                self._tighten(lower, upper, columns.growth, lower[columns.growth], most)

    def _grown(self, load: float, lower: Values, upper: Values) -> tuple[Values, Values]:
        """The range of growth times a load, infinite where the growth is; 0 where the loads do not grow."""
        zero, endless, growth = self.numbers.of(np.zeros(1)), self.numbers.of(np.array([np.inf])), self.columns.growth
        if not len(growth) or load == 0.0:
            return zero, zero
        ends = [self.numbers.of(np.array([load])) * end[growth] if bounded(end[growth]).all() else None for end in (lower, upper)]
        low, high = ends if load > 0 else ends[::-1]
        return -endless if low is None else low, endless if high is None else high

    def _drawn(self, lower: Values, upper: Values) -> tuple[Values, Values]:
        """The ranges (2n,) of what every bus draws, active and then reactive: flows, shunts and loads, but loads that grow; outwards."""
        columns, numbers, rows = self.columns, self.numbers, self.relaxation.balances(lower, upper)
        count = len(rows.lower)
        row = np.repeat(np.arange(count), np.diff(rows.start))
        entries = np.flatnonzero(~np.isin(rows.column, np.concatenate([columns.pg, columns.qg, columns.growth])))
        value, column = rows.value[entries], rows.column[entries]
        ends = value * lower[column], value * upper[column]
        sums = (np.minimum(*ends), np.maximum(*ends), np.maximum(np.abs(ends[0]), np.abs(ends[1])))
        low, high, size = (summed(row[entries], part, count, numbers) for part in sums)
        slack = numbers.of(np.array([2 * numbers.slack])) * size
        return rows.lower - high - slack, rows.upper - low + slack
