import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from power_cases import dispatch, pglib, random_point, small

from milpverify.acopf.case import Case
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.judgement import Candidate, residuals
from milpverify.acopf.points.point import Point
from milpverify.acopf.points.power_flow import power_flow, pypower_case
from milpverify.errors import SolverUnavailable

pytest.importorskip("pypower")


def solved(case: Case) -> Candidate:
    """The power flow at the case's set points."""
    n, g = len(case.buses), len(case.generators)
    vm = np.ones(n)
    vm[case.generators.bus] = case.generators.vset
    start = Point(case, vm, np.zeros(n), np.full(g, 0.3), np.zeros(g), case.buses.pd, case.buses.qd)
    return power_flow(start).point


def optimum(case: Case) -> float:
    from pypower.api import ppoption, runopf

    exact = dict.fromkeys(("PDIPM_FEASTOL", "PDIPM_GRADTOL", "PDIPM_COMPTOL", "PDIPM_COSTTOL"), 1e-9)
    with np.errstate(all="ignore"):
        found = runopf(pypower_case(case), ppoption(VERBOSE=0, OUT_ALL=0, **exact))
    assert found["success"]
    return float(found["f"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "expected"), [("5_pjm", 17551.89092), ("5_pjm__sad", 26108.8489), ("14_ieee", 2178.08043), ("14_ieee__sad", 2776.78894)]
)
def test_optima_of_pypower(name: str, expected: float) -> None:
    """Angle limits get through to pypower: without them the `__sad` cases have the optima of the plain ones."""
    assert optimum(pglib(name)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("change", [lambda t: None, lambda t: t["branch"].__setitem__((0, slice(11, 13)), (0, 30))])
def test_there_and_back(change: Any) -> None:
    tables = small()
    change(tables)
    case = load_case(tables)
    written = pypower_case(case)
    assert (written["gen"].shape[1], written["branch"].shape[1]) == (21, 13)
    again = load_case(written)
    for part in ("buses", "branches", "generators"):
        a, b = getattr(case, part), getattr(again, part)
        for name in set(a.__dataclass_fields__) - {"row"}:
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-14, atol=1e-290)
    assert (again.base_mva, again.reference) == (case.base_mva, case.reference)


def test_one_sided_limits_of_0_are_limits_for_pypower() -> None:
    from pypower.api import ppoption
    from pypower.makeAang import makeAang

    tables: dict[str, Any] = small()
    tables["branch"][0, 11:] = 0, 30
    branch = pypower_case(load_case(tables))["branch"]
    branch[:, :2] = [[0, 1], [1, 2], [2, 0]]
    _, low, high, which = makeAang(50.0, branch, 3, ppoption())
    assert which.tolist() == [0, 2]
    assert low[0] == pytest.approx(0.0, abs=1e-290)
    assert low[1] <= -2 * math.pi * (1 - 1e-15)
    assert high == pytest.approx([math.radians(30), math.radians(20)])


@pytest.mark.parametrize("flat", [False, True])
def test_a_solution_is_reproduced(flat: bool) -> None:
    point = solved(load_case(small()))
    found = power_flow(point, flat=flat)
    assert found.converged
    assert found.difference < 1e-9
    assert max(abs(r).max() for r in residuals(point.case, *(getattr(found.point, n) for n in ("vm", "va", "pg", "qg", "pd", "qd")))) < 1e-9
    assert found.slack == point.case.reference
    assert found.slack_pg == pytest.approx(point.pg[0])


def test_a_stale_point_is_not_reproduced() -> None:
    point = solved(load_case(small()))
    moved = replace(point, pg=point.pg + np.array([0.0, 0.01]))
    found = power_flow(moved)
    assert found.converged
    assert not found.reproduces
    assert found.difference > 1e-5


def test_a_violated_limit_is_not_reproduced() -> None:
    """Newton's method finds the same voltages, but they are not within the limits."""
    tables: dict[str, Any] = small()
    tables["bus"][:, 11] = 1.2
    point = solved(load_case(tables))
    tables["gen"][1, 8] = 14.9  # MW, where 15 are generated
    assert power_flow(point).reproduces
    tight = replace(point, case=load_case(tables))
    found = power_flow(tight)
    assert found.converged
    assert found.difference < 1e-9
    assert found.point.violation == pytest.approx(0.1 / 50)
    assert not found.reproduces


def test_generators_share_a_bus_in_any_order_and_reactive_limits_are_not_enforced() -> None:
    tables: dict[str, Any] = small()
    tables["gen"] = np.vstack([tables["gen"], tables["gen"], tables["gen"][:1]])[[1, 0, 3, 2, 4]]
    tables["gen"][:, 3] = [math.inf, 1, 1, 1, 1]
    tables["gen"][:, 4] = [-math.inf, -1, -1, -1, -1]
    tables["gencost"] = np.vstack([tables["gencost"], tables["gencost"], tables["gencost"][:1]])[[1, 0, 3, 2, 4]]
    case = load_case(tables)
    point = solved(case)
    assert np.allclose(point.pg[[0, 2]], 0.3)  # not at the slack bus
    assert np.isfinite(point.qg).all()
    p, q = residuals(case, point.vm, point.va, point.pg, point.qg, point.pd, point.qd)
    assert max(abs(p).max(), abs(q).max()) < 1e-9
    assert (abs(point.qg) > 0.02).any()
    assert np.allclose(point.vm[case.generators.bus], case.generators.vset)
    again = power_flow(point)
    assert again.difference < 1e-9
    np.testing.assert_allclose(again.point.qg, point.qg, atol=1e-9)


def test_a_reference_bus_without_a_generator() -> None:
    tables: dict[str, Any] = small()
    tables["gen"][:, 0] = 10
    point = solved(load_case(tables))
    found = power_flow(point)
    assert point.case.buses.number[found.slack] == 10
    assert found.to_dict()["slack"] == 10
    assert found.difference < 1e-9
    turned = replace(point, va=point.va + 0.5)
    assert power_flow(turned, flat=True).difference < 1e-9


def test_large_bus_numbers() -> None:
    tables: dict[str, Any] = small()
    for name, columns in (("bus", 1), ("gen", 1), ("branch", 2)):
        tables[name][:, :columns] *= 10**11
    point = solved(load_case(tables))
    assert power_flow(point).difference < 1e-9
    assert point.case.bus_name(2) == "bus 700000000000"


def test_no_solution() -> None:
    point = solved(load_case(small()))
    heavy = replace(point, pd=point.pd * 100)
    found = power_flow(heavy)
    assert not found.converged
    assert not found.reproduces


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nonsense_is_not_reproduced(value: float) -> None:
    point = random_point(load_case(small()), 0)
    vm = point.vm.copy()
    vm[0] = value
    found = power_flow(replace(point, vm=vm))
    assert not found.reproduces
    assert found.difference == math.inf


@pytest.mark.parametrize("name", ["5_pjm", "14_ieee", "30_ieee", "118_ieee"])
def test_stored_dispatches(name: str) -> None:
    for flat in (False, True):
        found = dispatch(name).power_flow(flat=flat)
        assert found.reproduces
        assert found.difference < 1e-10


def test_silence(capfd: pytest.CaptureFixture[str]) -> None:
    solved(load_case(small()))
    assert capfd.readouterr() == ("", "")


def test_without_pypower(monkeypatch: pytest.MonkeyPatch) -> None:
    point = random_point(load_case(small()), 0)
    monkeypatch.setitem(sys.modules, "pypower.api", None)
    with pytest.raises(SolverUnavailable, match=r"pip install 'milpverify\[acopf\]'"):
        power_flow(point)
