import subprocess
import sys
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from power_cases import pglib, random_point, small

from milpverify.acopf.case import Case
from milpverify.acopf.loads import Loads, box, scaled
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.local import Goal, Program, cheapest, highest_load, least_violation, shrunk
from milpverify.acopf.points.point import Point
from milpverify.acopf.points.polish import PointTuning, polish, violation
from milpverify.config import Deadline
from milpverify.errors import SolverUnavailable

pytest.importorskip("pypower")

# Of an interior point method with tolerances of 1e-9.
OPTIMA = {
    "3_lmbd": 5812.64297,
    "5_pjm": 17551.89092,
    "14_ieee": 2178.08043,
    "30_as": 803.12731,
    "5_pjm__sad": 26108.8489,
    "14_ieee__sad": 2776.78894,
    "14_ieee__api": 5999.36331,
    "30_ieee": 8208.51547,
    "57_ieee": 37589.339,
    "118_ieee": 97213.607,
}


def shipped(name: str) -> Case:
    """A case that pypower ships."""
    import importlib

    tables = getattr(importlib.import_module(f"pypower.{name}"), name)()
    missing = max(0, 21 - tables["gen"].shape[1])
    return load_case({**tables, "gen": np.hstack([tables["gen"], np.zeros((len(tables["gen"]), missing))])})


@pytest.mark.parametrize("name", OPTIMA)
def test_optima(name: str) -> None:
    case = pglib(name)
    cheapest(case)  # imports
    start = perf_counter()
    point = cheapest(case)
    seconds = perf_counter() - start
    assert point.cost == pytest.approx(OPTIMA[name], rel=1e-6)
    assert point.violation <= 1e-8
    assert seconds < 3.0  # alone 0.05 to 0.2


@pytest.mark.parametrize(("name", "cost"), [("case9", 5296.686), ("case14", 8081.525), ("case30", 576.8923)])
def test_optima_of_shipped_cases(name: str, cost: float) -> None:
    """As pypower's and MATPOWER's own runopf find them."""
    point = cheapest(shipped(name))
    assert point.cost == pytest.approx(cost, rel=1e-5)
    assert point.violation <= 1e-8
    found = point.existence()
    assert found.proved and found.strictly_inside, found.message


@pytest.mark.parametrize(("name", "factor"), [("3_lmbd", 1.338), ("5_pjm", 1.430), ("14_ieee", 1.1945), ("30_ieee", 1.046)])
@pytest.mark.parametrize("solve", [cheapest, least_violation])
def test_points_near_the_limit_of_the_load(name: str, factor: float, solve: Any) -> None:
    case = pglib(name)
    point = solve(case, scaled(factor))
    np.testing.assert_array_equal(point.pd, factor * case.buses.pd)
    assert point.case is case and point.violation <= 1e-7
    assert point.existence().strictly_inside


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("3_lmbd", 1.33899, 1.33911), ("5_pjm", 1.43032, 1.43046), ("14_ieee", 1.19488, 1.19500), ("30_ieee", 1.04678, 1.05009)],
)
def test_highest_load(name: str, low: float, high: float) -> None:
    case = pglib(name)
    factor, point = highest_load(case)
    assert low <= factor <= high
    np.testing.assert_array_equal(np.concatenate([point.pd, point.qd]), np.concatenate(scaled(factor).middle(case)))
    assert point.violation <= 1e-8


@pytest.mark.parametrize("name", ["3_lmbd", "5_pjm", "14_ieee", "30_ieee"])
def test_least_violation_where_no_point_is(name: str) -> None:
    """t is the violation of the point, and no neighbour violates less."""
    case = pglib(name)
    assert cheapest(case, scaled(1.6)) is None
    point = least_violation(case, scaled(1.6))
    assert 1e-3 < point.violation < 0.5
    program, rng = Program(case, scaled(1.6), Goal.VIOLATION), np.random.default_rng(0)
    x = program.at(point)
    x[-1] = point.violation
    h, g, _, _ = program.constraints(x)
    assert max(h) <= 1e-9 and len(g) == 0
    for _ in range(200):
        parts = {part: getattr(point, part) + 1e-4 * rng.normal(size=len(getattr(point, part))) for part in ("vm", "va", "pg", "qg")}
        parts["va"][case.reference] = 0.0
        assert violation(replace(point, **parts)) >= point.violation * (1 - 1e-3)


@pytest.mark.parametrize(("name", "feasible", "infeasible"), [("5_pjm", 1.50, 1.52), ("30_ieee", 1.10, 1.15)])
def test_boxes_of_loads(name: str, feasible: float, infeasible: float) -> None:
    case = pglib(name)
    for solve in (cheapest, least_violation):
        point = solve(case, box(0.05, feasible))
        plo, phi, qlo, qhi = box(0.05, feasible).ranges(case)
        assert ((plo <= point.pd) & (point.pd <= phi) & (qlo <= point.qd) & (point.qd <= qhi)).all()
        assert point.violation <= 1e-8
    assert cheapest(case, box(0.05, infeasible)) is None
    assert least_violation(case, box(0.05, infeasible)).violation > 1e-3


@pytest.mark.parametrize("by", [1e-6, 1e-3])
def test_shrunk_limits(by: float) -> None:
    """Points lie inside by so much, but for limits that are too narrow to be moved."""
    case = pglib("14_ieee")
    point = cheapest(case, shrink=by)
    assert point.case is case
    gens = case.generators
    for value, lower, upper in (
        (point.vm, case.buses.vmin, case.buses.vmax),
        (point.pg, gens.pmin, gens.pmax),
        (point.qg, gens.qmin, gens.qmax),
    ):
        room, wide = np.minimum(value - lower, upper - value), upper - lower > 4 * by
        assert (room[wide] >= by * (1 - 1e-9)).all() and (room[~wide] >= 0).all()
    margins = [each.margin for each in point.constraints() if each.kind in ("flow from", "flow to", "angle difference")]
    assert min(margins) >= by * (1 - 1e-9)
    assert shrunk(case, 0.0) is case


def test_starts() -> None:
    """Attempts, seeds and given points; the same arguments give the same point."""
    case = pglib("5_pjm")
    point = cheapest(case)
    again = cheapest(case, start=point)
    assert again.cost == pytest.approx(point.cost, rel=1e-7)
    assert cheapest(case, start=random_point(case, 0), attempts=5).cost == pytest.approx(point.cost, rel=1e-6)
    np.testing.assert_array_equal(cheapest(case).pg, point.pg)
    assert cheapest(case, attempts=0) is None


@pytest.mark.parametrize("seed", range(6))
def test_random_starts(seed: int) -> None:
    case, rng = shipped("case30"), np.random.default_rng(seed)
    x = Program(case, Loads(), Goal.COST).random(rng)
    start = Program(case, Loads(), Goal.COST).point(x)
    assert cheapest(case, start=start, attempts=1).cost == pytest.approx(576.8923, rel=1e-5)


def test_deadline() -> None:
    case = load_case(small())
    for solve in (cheapest, least_violation):
        assert solve(case, deadline=Deadline(0.0)) is None
    assert highest_load(case, deadline=Deadline(0.0)) is None
    assert cheapest(case, deadline=Deadline(60.0)) is not None


def without(case: Case, what: str) -> Case:
    """The case with fewer limits, or with narrower ones."""
    m, n, g = len(case.branches), len(case.buses), len(case.generators)
    return {
        "rates": lambda: replace(case, branches=replace(case.branches, rate=np.full(m, np.inf))),
        "angles": lambda: replace(case, branches=replace(case.branches, angmin=np.full(m, -np.inf), angmax=np.full(m, np.inf))),
        "voltage ranges": lambda: replace(case, buses=replace(case.buses, vmin=np.ones(n), vmax=np.ones(n))),
        "reactive limits": lambda: replace(case, generators=replace(case.generators, qmin=np.full(g, -np.inf), qmax=np.full(g, np.inf))),
        "cost": lambda: replace(case, generators=replace(case.generators, c2=np.zeros(g), c1=np.zeros(g), c0=np.zeros(g))),
        "nothing": lambda: case,
    }[what]()


@pytest.mark.parametrize("what", ["rates", "angles", "voltage ranges", "reactive limits", "cost", "nothing"])
def test_cases_of_all_kinds(what: str) -> None:
    """A phase shifter, taps, shunts, an infinite limit and one-sided angle limits; voltages that cannot move."""
    case = without(load_case(small()), what)
    if what == "voltage ranges":
        case = without(case, "reactive limits")
        case = replace(case, buses=replace(case.buses, vmin=np.array([1.0, 1.0, 0.8]), vmax=np.array([1.0, 1.0, 1.2])))
    for point in (cheapest(case), least_violation(case)):
        assert point.violation <= 1e-8
        assert point.existence().strictly_inside
    factor, point = highest_load(case)
    assert factor > 1.0 and point.violation <= 1e-8


@pytest.mark.parametrize("goal", list(Goal))
@pytest.mark.parametrize("loads", [Loads(), box(0.1, 1.2)])
def test_derivatives(goal: Goal, loads: Loads) -> None:
    """Gradients, Jacobians and the Hessian of the Lagrangian, by differences."""
    program, rng = Program(load_case(small()), loads, goal), np.random.default_rng(0)
    x = program.middle() + 0.1 * rng.normal(size=program.width)
    h, g, dh, dg = program.constraints(x)
    mu, lam = rng.uniform(size=len(h)), rng.normal(size=len(g))

    def slope(at: np.ndarray) -> np.ndarray:
        _, _, dh, dg = program.constraints(at)
        return program.objective(at)[1] + dh @ mu + dg @ lam

    hessian = program.hessian(x, {"ineqnonlin": mu, "eqnonlin": lam}, 1.0).toarray()
    for k in range(program.width):
        step = np.zeros(program.width)
        step[k] = 1e-6
        above, below = program.constraints(x + step), program.constraints(x - step)
        np.testing.assert_allclose((above[0] - below[0]) / 2e-6, dh.toarray()[k], atol=1e-6)
        np.testing.assert_allclose((above[1] - below[1]) / 2e-6, dg.toarray()[k], atol=1e-6)
        difference = (program.objective(x + step)[0] - program.objective(x - step)[0]) / 2e-6
        assert difference == pytest.approx(program.objective(x)[1][k], abs=1e-6)
        np.testing.assert_allclose((slope(x + step) - slope(x - step)) / 2e-6, hessian[k], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_program_is_the_judges(seed: int) -> None:
    """The rows that are <= 0 or = 0 say of a point what its constraints say, but for units."""
    case = load_case(small())
    point = random_point(case, seed, spread=0.1)
    point = replace(point, va=point.va - point.va[case.reference], pd=case.buses.pd, qd=case.buses.qd)
    program = Program(case, Loads(), Goal.COST)
    h, g, _, _ = program.constraints(program.at(point))
    each = {kind: [c for c in point.constraints() if c.kind == kind] for kind in {c.kind for c in point.constraints()}}
    balances = [c.value for kind in ("active balance", "reactive balance") for c in each[kind]]
    np.testing.assert_allclose(g, -np.array(balances), atol=1e-13)
    n, angles = case.num_buses, sum(part.forms.count for part in program.angles)
    voltage = np.maximum(h[:n], h[n : 2 * n]) > 0
    assert voltage.tolist() == [c.margin < 0 for c in each["voltage"]]
    limited = program.limited
    flows = np.split(h[2 * n + angles :] > 0, 2)
    by_index = {(c.kind, c.index): c.margin < 0 for c in point.constraints()}
    for kind, violated in zip(("flow from", "flow to"), flows, strict=True):
        assert violated.tolist() == [by_index[kind, k] for k in limited.tolist()]
    assert (max(h[2 * n : 2 * n + angles]) > 0) == any(c.margin < 0 for c in each["angle difference"])


@pytest.mark.parametrize("name", ["3_lmbd", "14_ieee", "14_ieee__sad", "30_ieee"])
@pytest.mark.parametrize("size", [1e-10, 1e-8, 1e-6])
def test_polish(name: str, size: float) -> None:
    """Balances become exact but for rounding, no limit is violated, and the point stays where it is."""
    optimum, rng = cheapest(pglib(name)), np.random.default_rng(0)
    parts = {part: getattr(optimum, part) + size * rng.uniform(-1, 1, len(getattr(optimum, part))) for part in ("vm", "va", "pg", "qg")}
    parts["va"][optimum.case.reference] = 0.0
    rough = replace(optimum, **parts)
    fine = polish(rough)
    assert isinstance(fine, Point)
    assert fine.violation <= 1e-10 < rough.violation or size == 1e-10
    assert fine.violation <= max(rough.violation, 1e-12)
    for part in ("vm", "va", "pg", "qg"):
        np.testing.assert_allclose(getattr(fine, part), getattr(optimum, part), atol=2000 * size)
    gens = fine.case.generators
    assert ((gens.pmin <= fine.pg) & (fine.pg <= gens.pmax) & (gens.qmin <= fine.qg) & (fine.qg <= gens.qmax)).all()


@pytest.mark.parametrize("seed", range(5))
def test_polish_makes_nothing_worse(seed: int) -> None:
    """Points far from any solution come back, and so do infeasible ones."""
    case = load_case(small())
    far = random_point(case, seed)
    assert polish(far) is far
    point = least_violation(pglib("14_ieee"), scaled(1.2))
    rng = np.random.default_rng(seed)
    moved = replace(point, vm=point.vm + 1e-5 * rng.normal(size=len(point.vm)))
    assert polish(moved).violation <= moved.violation


@pytest.mark.parametrize("seed", range(5))
def test_the_measure_is_the_judges(seed: int) -> None:
    case = load_case(small())
    point = random_point(case, seed)
    point = replace(point, va=point.va - point.va[case.reference])
    assert violation(point) == pytest.approx(point.violation, rel=1e-12)


def test_without_pypower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypower.pips", None)
    with pytest.raises(SolverUnavailable, match=r"milpverify\[acopf\]"):
        cheapest(load_case(small()))


def test_narrow_ranges_are_equations() -> None:
    assert PointTuning().equal < 1e-9
    case = pglib("14_ieee")
    vmin, vmax = case.buses.vmin.copy(), case.buses.vmax.copy()
    vmin[3] = vmax[3] = round(float(cheapest(case).vm[3]), 3)
    fixed = replace(case, buses=replace(case.buses, vmin=vmin, vmax=vmax))
    for point in (cheapest(fixed), least_violation(fixed)):
        assert point.vm[3] == vmin[3] and point.violation <= 1e-8
        assert point.existence().strictly_inside


def test_torch_is_not_imported() -> None:
    code = "import sys; from milpverify.acopf.points import local, existence, polish; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
