"""Small random networks around an operating point that is known, and where it lies in the columns of a relaxation, in balls.

Nothing of `milpverify.acopf.relaxation` is used for the point's own numbers: flows come from currents, angles from the voltages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import flint
import numpy as np

from milpverify.acopf.case import Branches, Buses, Case, Generators
from milpverify.acopf.points.point import Point
from milpverify.acopf.relaxation.columns import Question
from milpverify.acopf.relaxation.relaxation import Relaxation

DIGITS = 300  # bits: what is compared differs by far more, or not at all


@contextmanager
def precise() -> Iterator[None]:
    """Balls of DIGITS bits."""
    before, flint.ctx.prec = flint.ctx.prec, DIGITS
    try:
        yield
    finally:
        flint.ctx.prec = before


@dataclass(frozen=True, eq=False)
class Known:
    """A question, and a point that it is about: voltages and dispatch in float64, what the loads have to be in balls."""

    question: Question
    vm: np.ndarray
    va: np.ndarray
    pg: np.ndarray
    qg: np.ndarray
    factor: float = 1.0  # of growth

    @property
    def point(self) -> Point:
        """With the loads rounded."""
        with precise():
            pd, qd = (np.array([float(v.mid()) for v in part]) for part in self.needed())
        return Point(self.question.case, self.vm, self.va, self.pg, self.qg, pd, qd)

    def needed(self) -> tuple[list[Any], list[Any]]:
        """The loads that the voltages and the dispatch serve exactly, in balls."""
        return drawn(self.question.case, self.vm, self.va, self.pg, self.qg)


def drawn(case: Case, vm: np.ndarray, va: np.ndarray, pg: np.ndarray, qg: np.ndarray) -> tuple[list[Any], list[Any]]:
    """What is left for the load at every bus: generation less shunt and branches, from currents."""
    V = [flint.arb(m) * flint.acb(0, flint.arb(a)).exp() for m, a in zip(vm.tolist(), va.tolist(), strict=True)]
    buses, br, gen = case.buses, case.branches, case.generators
    left = [-(v * v.conjugate()) * flint.acb(g, -b) for v, g, b in zip(V, buses.gs.tolist(), buses.bs.tolist(), strict=True)]
    for i, p, q in zip(gen.bus.tolist(), pg.tolist(), qg.tolist(), strict=True):
        left[i] += flint.acb(p, q)
    for f, t, (sf, st) in zip(br.f.tolist(), br.t.tolist(), flows(case, V), strict=True):
        left[f] -= sf
        left[t] -= st
    return [v.real for v in left], [v.imag for v in left]


def flows(case: Case, V: list[Any]) -> list[tuple[Any, Any]]:
    """The power into both ends of every branch: a transformer at the from end, half of the charging at either end of the line."""
    br, found = case.branches, []
    parts = (br.f, br.t, br.r, br.x, br.b, br.tap, br.shift)
    for f, t, r, x, b, tap, shift in zip(*(part.tolist() for part in parts), strict=True):
        ratio = flint.arb(tap) * flint.acb(0, flint.arb(shift)).exp()
        inner = V[f] / ratio
        series, half = (inner - V[t]) / flint.acb(r, x), flint.acb(0, flint.arb(b) / 2)
        found.append((inner * (series + half * inner).conjugate(), V[t] * (half * V[t] - series).conjugate()))
    return found


def lifted(known: Known, relaxation: Relaxation) -> list[Any]:
    """The columns at the point, as balls."""
    case, columns = known.question.case, relaxation.columns
    values: list[Any] = [None] * len(columns)
    vm = [flint.arb(v) for v in known.vm.tolist()]
    for column, v in zip(columns.w.tolist(), vm, strict=True):
        values[column] = v * v
    pairs = columns.pairs
    for p, (i, j) in enumerate(zip(pairs.i.tolist(), pairs.j.tolist(), strict=True)):
        across = flint.arb(float(known.va[i])) - flint.arb(float(known.va[j]))
        turns = round(float(across.mid()) / (2 * math.pi))
        values[columns.c[p]], values[columns.s[p]] = vm[i] * vm[j] * across.cos(), vm[i] * vm[j] * across.sin()
        values[columns.d[p]] = across - 2 * turns * flint.arb.pi()
    for which, part in ((columns.pg, known.pg), (columns.qg, known.qg)):
        for column, v in zip(which.tolist(), part.tolist(), strict=True):
            values[column] = flint.arb(v)
    for which, buses, load in zip(columns.loads, columns.varying, known.needed(), strict=True):
        for column, bus in zip(which.tolist(), buses.tolist(), strict=True):
            values[column] = load[bus]
    for column in columns.growth.tolist():
        values[column] = flint.arb(known.factor)
    gen = case.generators
    for column, p, c2, c1, c0 in zip(*(part.tolist() for part in (columns.price, known.pg, gen.c2, gen.c1, gen.c0)), strict=False):
        values[column] = (flint.arb(c2) * p * p + flint.arb(c1) * p + c0) / flint.arb(relaxation.unit)
    for column in columns.total.tolist():
        values[column] = sum((values[k] for k in columns.price.tolist()), flint.arb(0))
    return values


def random_known(rng: np.random.Generator, kind: str, tolerance: float = 0.0, most: int = 5, wild: bool = True) -> Known:
    """A network with a point that violates its limits and balances by at most `tolerance`, often by nearly that.

    Args:
        rng: what it depends on.
        kind: "feasible", "priced" or "growth" (which needs a tolerance above 0, since no float64 load is met exactly).
        tolerance: p.u. and rad. Where it is 0 the loads are a narrow box.
        most: buses.
        wild: angles of any size, and parts that no network has.
    """
    n = int(rng.integers(1, most + 1))
    vm, va = rng.uniform(0.8, 1.2, n), (rng.choice([0.05, 0.3, 2.0]) if wild else 0.15) * rng.normal(size=n)
    va = np.round(va * 2.0**40) / 2.0**40  # so that differences are float64 numbers
    branches = _branches(rng, n, wild)
    gens = np.sort(rng.integers(0, n, rng.integers(1, n + 2)))
    g = len(gens)
    pg, qg = rng.normal(size=g), rng.normal(size=g)

    def below(values: np.ndarray, least: float = -math.inf) -> np.ndarray:
        """Limits that the values violate by up to the tolerance, or keep by as little or by much."""
        gap = rng.choice([-0.999 * tolerance, 0.0, 1e-9, 1e-3, 0.1], len(values))
        return np.maximum(least, values - gap)

    buses = Buses(
        np.arange(1, n + 1), np.zeros(n), np.zeros(n), _some(rng, n, 0.2), _some(rng, n, 0.3), below(vm, 1e-3), -below(-vm),
        np.arange(1, n + 1),
    )  # fmt: skip
    c2 = _some(rng, g, 300.0) ** 2 / 100.0
    endless = rng.random((4, g)) < 0.15
    generators = Generators(
        gens,
        np.where(endless[0], -np.inf, below(pg)), np.where(endless[1], np.inf, -below(-pg)),
        np.where(endless[2], -np.inf, below(qg)), np.where(endless[3], np.inf, -below(-qg)),
        c2, _some(rng, g, 20.0), _some(rng, g, 5.0), np.ones(g), np.arange(1, g + 1),
    )  # fmt: skip
    case = Case("random", 100.0, buses, branches, generators, int(rng.integers(n)))
    with precise():
        V = [flint.arb(m) * flint.acb(0, flint.arb(a)).exp() for m, a in zip(vm.tolist(), va.tolist(), strict=True)]
        size = np.array([max(float(abs(s).mid()) for s in ends) for ends in flows(case, V)]).reshape(-1)
    across = va[branches.f] - va[branches.t]
    case = replace(case, branches=_limited(rng, branches, size, across, -below(-size), below(across), -below(-across)))
    factor = float(rng.choice([0.3, 1.0, 1.7])) if kind == "growth" else 1.0
    with precise():
        p, q = (np.array([float(v.mid()) for v in part]) for part in drawn(case, vm, va, pg, qg))
    missing = 0.99 * tolerance * rng.uniform(-1, 1, (2, n))
    p, q = p + missing[0], q + missing[1]
    case = replace(case, buses=replace(case.buses, pd=p / factor, qd=q / factor))
    width = np.where(rng.random((4, n)) < 0.5, 1e-9, 0.1) if tolerance == 0.0 else np.zeros((4, n))
    loads = (p - width[0], p + width[1], q - width[2], q + width[3])
    growth = (factor - float(rng.choice([0.0, 0.1])), math.inf) if kind == "growth" else None
    return Known(Question(case, loads, growth, tolerance, kind == "priced"), vm, va, pg, qg, factor)


def _some(rng: np.random.Generator, count: int, size: float) -> np.ndarray:
    """Half of them 0."""
    return np.where(rng.random(count) < 0.5, 0.0, size * rng.normal(size=count))


def _branches(rng: np.random.Generator, n: int, wild: bool) -> Branches:
    """A spanning tree and more, either way round, some of them parallel."""
    ends = [(int(rng.integers(k)), k) for k in range(1, n)]
    for _ in range(int(rng.integers(0, n + 1)) if n > 1 else 0):
        a, b = rng.choice(n, 2, replace=False).tolist()
        ends.append((a, b))
    ends = [end if rng.random() < 0.5 else end[::-1] for end in ends]
    m = len(ends)
    f, t = (np.array([end[k] for end in ends], dtype=np.int64).reshape(-1) for k in range(2))
    r, x = np.abs(_some(rng, m, 0.05)), 0.05 + rng.uniform(0, 0.3, m)
    shift = np.where(rng.random(m) < 0.3, rng.normal(size=m) * (1.0 if wild else 0.1), 0.0)
    if wild:
        r, x = r * rng.choice([1, 1, -1], m), x * rng.choice([1, 1, 1, -1], m)
    tap = np.where(rng.random(m) < 0.4, rng.uniform(0.9, 1.1, m), 1.0)
    none = np.full(m, math.inf)
    return Branches(f, t, r, x, _some(rng, m, 0.1), tap, shift, none, -none, none, np.arange(1, m + 1))


def _limited(
    rng: np.random.Generator, br: Branches, size: np.ndarray, across: np.ndarray, rate: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Branches:
    """Ratings and angle limits, where there are any; on one side only, on both, or wide."""
    m = len(br)
    rated, kind = rng.random(m) < 0.6, rng.choice(5, m)
    low = np.where(kind == 4, np.minimum(low, rng.choice([-1.6, -3.0, -4.0], m)), low)
    high = np.where(kind == 4, np.maximum(high, rng.choice([1.6, 3.0, 4.0], m)), high)
    return replace(
        br,
        rate=np.where(rated, np.maximum(rate, 1e-9), np.inf),
        angmin=np.where((kind == 0) | (kind == 1), -np.inf, low),
        angmax=np.where((kind == 0) | (kind == 2), np.inf, high),
    )


def outside(low: Any, high: Any, value: Any) -> bool:
    """Whether a ball is beyond one of two ends, without doubt."""
    return bool(value < _exact(low)) or bool(value > _exact(high))


def _exact(end: Any) -> Any:
    if isinstance(end, flint.fmpq):
        return flint.arb("inf") * (1 if end > 0 else -1) if abs(end) >= 2**1000 else flint.arb(end)
    return flint.arb(float(end)) if math.isfinite(end) else flint.arb("inf") * math.copysign(1, end)


def columns_cut_off(lower: np.ndarray, upper: np.ndarray, values: list[Any]) -> list[int]:
    """The columns whose range misses the point."""
    return [j for j, v in enumerate(values) if outside(lower[j], upper[j], v)]


def rows_cut_off(rows: Any, values: list[Any]) -> list[int]:
    """The rows that the point violates."""
    found = []
    coefficients = [flint.arb(v) if isinstance(v, flint.fmpq) else flint.arb(float(v)) for v in rows.value]
    for i in range(len(rows.lower)):
        part = range(int(rows.start[i]), int(rows.start[i + 1]))
        activity = sum((coefficients[k] * values[int(rows.column[k])] for k in part), flint.arb(0))
        if outside(rows.lower[i], rows.upper[i], activity):
            found.append(i)
    return found


def random_box(rng: np.random.Generator, lower: np.ndarray, upper: np.ndarray, values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """A box of float64 numbers within another one that still contains the point; the more columns are narrow the fewer are left alone."""
    narrow = rng.random(len(values)) < rng.choice([0.0, 0.3, 1.0])
    size = 10.0 ** rng.uniform(-17, 0.5, (2, len(values)))
    low, high = np.array(lower, dtype=np.float64), np.array(upper, dtype=np.float64)
    for j, v in enumerate(values):
        middle = float(v.mid())
        if narrow[j]:
            low[j] = max(low[j], min(middle - size[0, j], math.nextafter(middle, -math.inf)))
            high[j] = min(high[j], max(middle + size[1, j], math.nextafter(middle, math.inf)))
    return low, high
