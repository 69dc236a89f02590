"""Ranges of columns: limits with the tolerance, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from power_cases import small

from milpverify.acopf.case import Case
from milpverify.acopf.loads import Loads
from milpverify.acopf.matpower import load_case
from milpverify.acopf.relaxation.arithmetics import FLOATS, RATIONALS, Numbers
from milpverify.acopf.relaxation.columns import Question
from milpverify.acopf.relaxation.ranges import Ranges
from milpverify.acopf.relaxation.relaxation import Relaxation
from milpverify.acopf.relaxation.rows import bounded, contradictory

BOTH = pytest.mark.parametrize("numbers", [FLOATS, RATIONALS], ids=["floats", "rationals"])


def ranges(case: Case, numbers: Numbers, **question: Any) -> Ranges:
    return Ranges(Relaxation(Question(case, Loads().ranges(case), **question), numbers))


def floats(values: Any) -> list[float]:
    return [float(v) for v in values]


@BOTH
def test_limits_are_wider_by_the_tolerance(numbers: Numbers) -> None:
    case, t = load_case(small()), 0.01
    made = ranges(case, numbers, tolerance=t)
    lower, upper = made.limits()
    columns, gen = made.columns, case.generators
    assert floats(lower[columns.w]) == pytest.approx((case.buses.vmin - t) ** 2, rel=1e-12)
    assert floats(upper[columns.w]) == pytest.approx((case.buses.vmax + t) ** 2, rel=1e-12)
    for which, low, high in ((columns.pg, gen.pmin, gen.pmax), (columns.qg, gen.qmin, gen.qmax)):
        assert floats(lower[which]) == pytest.approx(low - t) and floats(upper[which]) == pytest.approx(high + t)
    # branch 1 has limits of 30 degrees either way, branch 2 none, branch 3 (7-10, against its pair) none below
    assert floats(lower[columns.d])[0] == pytest.approx(-math.pi / 6 - t) and floats(upper[columns.d])[0] == pytest.approx(math.pi / 6 + t)
    for p in (1, 2):
        assert float(lower[columns.d[p]]) <= -math.pi <= math.pi <= float(upper[columns.d[p]])


@BOTH
def test_voltages_are_not_below_zero(numbers: Numbers) -> None:
    """Where the tolerance takes more than the lower limit leaves, in both arithmetics, without a warning."""
    tables = small()
    tables["bus"][:, 12] = 1e-3  # type: ignore[index]
    made = ranges(load_case(tables), numbers, tolerance=0.1)
    lower, upper = made.settled(*made.limits())
    low, high = made.relaxation.voltages(lower, upper)
    assert all(0.0 <= float(a) < 1e-100 and 1.1 < float(b) < 1.3 for a, b in zip(low, high, strict=True))
    rows = made.relaxation.rows(lower, upper)
    assert not any(math.isnan(float(v)) for v in rows.value)


@BOTH
def test_a_generator_without_limits_is_bounded_by_its_bus_even_where_loads_grow(numbers: Numbers) -> None:
    tables = small()
    tables["gen"][1, [3, 4, 8, 9]] = [math.inf, -math.inf, math.inf, -math.inf]  # type: ignore[call-overload, index]
    made = ranges(load_case(tables), numbers, growth=(0.0, math.inf))
    lower, upper = made.settled(*made.limits())
    columns = made.columns
    assert bounded(lower[columns.pg]).all() and bounded(upper[columns.pg]).all()  # its bus has no load
    assert bounded(upper[columns.growth]).all()


@BOTH
def test_what_grows_without_end_bounds_nothing(numbers: Numbers) -> None:
    tables = small()
    tables["gen"][:, [3, 4, 8, 9]] = [math.inf, -math.inf, math.inf, -math.inf]  # type: ignore[call-overload, index]
    tables["bus"][:, 2:4] = [[0.5, 0.5]] * 3  # type: ignore[index]
    case = load_case(tables)
    case = replace(case, generators=replace(case.generators, bus=np.array([0, 1])))
    case = replace(case, buses=replace(case.buses, pd=np.array([0.5, 0.25, 0.0]), qd=np.array([0.5, 0.25, 0.0])))
    made = ranges(case, numbers, growth=(0.0, math.inf))
    lower, upper = made.settled(*made.limits())
    columns = made.columns
    assert not bounded(upper[columns.growth]).any()
    assert not bounded(upper[columns.pg]).any() and not bounded(upper[columns.qg]).any()
    made = ranges(case, numbers, priced=True)
    lower, upper = made.limits()
    lower, upper = made.propagated(lower, upper)
    assert bounded(lower[made.columns.total]).all()


@BOTH
def test_two_generators_without_limits_at_a_bus_leave_the_cost_open(numbers: Numbers) -> None:
    tables = small()
    tables["gen"][:, [3, 4, 8, 9]] = [math.inf, -math.inf, math.inf, -math.inf]  # type: ignore[call-overload, index]
    tables["gen"][:, 0] = 20  # type: ignore[index]
    made = ranges(load_case(tables), numbers, priced=True)
    lower, upper = made.settled(*made.limits())
    assert not bounded(lower[made.columns.total]).any() and not bounded(upper[made.columns.total]).any()


@BOTH
def test_contradictions_need_two_ends(numbers: Numbers) -> None:
    endless = numbers.of(np.array([math.inf]))
    one, two = numbers.of(np.array([1.0])), numbers.of(np.array([2.0]))
    assert contradictory(two, one) and not contradictory(one, two) and not contradictory(one, one)
    assert not contradictory(endless + endless, endless) and not contradictory(one, endless)
    assert not contradictory(-endless, -endless - one)


def test_what_contradicts_itself_is_left_alone() -> None:
    made = ranges(load_case(small()), RATIONALS)
    lower, upper = made.settled(*made.limits())
    p = made.columns.c[0]
    lower[p], upper[p] = RATIONALS.of([0.5])[0], RATIONALS.of([0.0])[0]
    again = made.settled(lower, upper)
    assert contradictory(*again) and again[0][p] == lower[p]
