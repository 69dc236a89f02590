import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import flint
import numpy as np
import pytest
from power_cases import dispatch, pglib, random_point, small

from milpverify.acopf.case import Case
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.judgement import Constraint, flows, limits, residuals
from milpverify.acopf.points.point import Point, load_point
from milpverify.errors import InvalidInput


@pytest.fixture
def case() -> Case:
    return load_case(small())


def by_complex_numbers(point: Point) -> dict[str, np.ndarray]:
    """What the kinds of constraints are about, from MATPOWER's manual (section 3.2) and complex numbers."""
    case, br = point.case, point.case.branches
    v = point.vm * np.exp(1j * point.va)
    ys, ratio = 1 / (br.r + 1j * br.x), br.tap * np.exp(1j * br.shift)
    into_f = (ys + 0.5j * br.b) / br.tap**2 * v[br.f] - ys / ratio.conj() * v[br.t]
    into_t = -ys / ratio * v[br.f] + (ys + 0.5j * br.b) * v[br.t]
    sf, st = v[br.f] * into_f.conj(), v[br.t] * into_t.conj()
    s = -(point.pd + 1j * point.qd) - (case.buses.gs - 1j * case.buses.bs) * point.vm**2
    for at, power in ((case.generators.bus, point.pg + 1j * point.qg), (br.f, -sf), (br.t, -st)):
        np.add.at(s, at, power)
    return {
        "active balance": s.real,
        "reactive balance": s.imag,
        "voltage": point.vm,
        "active generation": point.pg,
        "reactive generation": point.qg,
        "angle difference": point.va[br.f] - point.va[br.t],
        "flow from": abs(sf),
        "flow to": abs(st),
    }


@pytest.mark.parametrize("seed", range(5))
def test_constraints(case: Case, seed: int) -> None:
    point = random_point(case, seed)
    expected = by_complex_numbers(point)
    found = point.constraints()
    worst = 0.0
    for each in found:
        value = expected[each.kind][each.index]
        assert each.value == pytest.approx(value, rel=1e-12, abs=1e-12)
        margin = min(value - each.lower, each.upper - value)
        assert each.margin == pytest.approx(margin, rel=1e-10, abs=1e-12)
        worst = max(worst, -margin)
    assert point.violation == pytest.approx(worst, rel=1e-10)
    # Two balances and a voltage for 3 buses, 2 times 2 generators, 2 branches with each kind of limit.
    assert len(found) == 9 + 4 + 2 + 4
    assert [(each.kind, each.element, each.unit) for each in found if each.kind == "angle difference"] == [
        ("angle difference", "branch 10-20 (row 1)", "rad"),
        ("angle difference", "branch 7-10 (row 3)", "rad"),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_evaluation_says_the_same(case: Case, seed: int) -> None:
    point = random_point(case, seed)
    expected = by_complex_numbers(point)
    p, q = residuals(case, point.vm, point.va, point.pg, point.qg, point.pd, point.qd)
    np.testing.assert_allclose(p, expected["active balance"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(q, expected["reactive balance"], rtol=1e-12, atol=1e-12)
    pf, qf, pt, qt = flows(case, point.vm, point.va)
    np.testing.assert_allclose(np.hypot(pf, qf), expected["flow from"], rtol=1e-12)
    np.testing.assert_allclose(np.hypot(pt, qt), expected["flow to"], rtol=1e-12)


def test_margins_are_proved(case: Case) -> None:
    """At 500 bits no margin turns out to be less, and none is given away."""
    point = random_point(case, 7)
    for each in point.constraints():
        if each.kind == "voltage":
            before, flint.ctx.prec = flint.ctx.prec, 500
            vm = flint.arb(float(point.vm[each.index]))
            exact = min((vm - each.lower).lower(), (each.upper - vm).lower())
            assert each.margin <= exact <= each.margin + 1e-15
            flint.ctx.prec = before


def test_a_limit_that_is_just_met_is_not_violated(case: Case) -> None:
    point = random_point(case, 0)
    pmax = case.generators.pmax.copy()
    point = replace(point, pg=pmax)
    least = min(each.margin for each in point.constraints() if each.kind == "active generation")
    assert least == 0.0
    above = replace(point, pg=np.nextafter(pmax, np.inf))
    assert -1e-15 < min(each.margin for each in above.constraints() if each.kind == "active generation") < 0.0


def test_balances_of_nothing_are_exactly_0() -> None:
    tables = small()
    for row in ("branch",):
        tables[row][:, [4, 8, 9]] = 0  # type: ignore[index]
    tables["bus"][:, 2:6] = 0  # type: ignore[index]
    case = load_case(tables)
    n, g = len(case.buses), len(case.generators)
    point = Point(case, np.ones(n), np.zeros(n), np.full(g, 0.1), np.zeros(g), np.full(n, 0.0), np.zeros(n))
    found = {(each.kind, each.index): each for each in point.constraints()}
    assert found["active balance", 2].margin == pytest.approx(0.0, abs=1e-30)
    assert found["flow from", 0].value == pytest.approx(0.0, abs=1e-30)
    assert found["flow from", 0].margin == pytest.approx(2.0, rel=1e-15)
    assert found["active balance", 0].value == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["vm", "va", "pg", "qg", "pd", "qd"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_nonsense_violates(case: Case, name: str, value: float) -> None:
    point = random_point(case, 1)
    values = getattr(point, name).copy()
    values[0] = value
    point = replace(point, **{name: values})
    assert point.violation >= 1e300 or (name == "va" and value == 1e308 and point.violation > 0)
    point.to_dict()
    assert not any(math.isnan(each.margin) for each in point.constraints())


def test_shapes(case: Case) -> None:
    point = random_point(case, 1)
    with pytest.raises(InvalidInput, match=r"pg has shape \(3,\), not \(2,\)"):
        replace(point, pg=np.zeros(3))


def test_limits_have_no_values(case: Case) -> None:
    least = limits(case)[0]
    assert least == Constraint("active balance", "bus 10", 0, "p.u.", 0.0, 0.0, least.value, least.margin)
    assert math.isnan(least.value)
    assert least.to_dict()["value"] is None
    assert least.to_dict()["proved"] == ["-inf", "inf"]


def test_saved_and_loaded(case: Case, tmp_path: Path) -> None:
    point = random_point(case, 3)
    point.save(tmp_path / "point.json")
    again = load_point(case, tmp_path / "point.json")
    assert again.to_dict() == point.to_dict()
    by_number = {name: dict(zip(map(str, case.buses.number.tolist()), getattr(point, name).tolist(), strict=True)) for name in ("vm", "va")}
    lean = {**by_number, "pg": point.pg.tolist(), "qg": point.qg.tolist()}
    assert load_point(case, lean).pd.tolist() == case.buses.pd.tolist()
    for change, message in (
        ({"vm": {"1": 1.0}}, "the buses of vm are not those"),
        ({"vm": [1.0]}, "vm has shape"),
        ({"vm": "many"}, "point"),
        ({"bus": [1, 2, 3]}, "its buses are not those"),
    ):
        with pytest.raises(InvalidInput, match=message):
            load_point(case, {**lean, **change})
    del lean["va"]
    with pytest.raises(InvalidInput, match="va is missing"):
        load_point(case, lean)
    with pytest.raises(InvalidInput, match="cannot be read"):
        load_point(case, tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InvalidInput, match="an object of vm"):
        load_point(case, tmp_path / "list.json")


@pytest.mark.parametrize("name", ["5_pjm", "14_ieee", "30_ieee", "118_ieee"])
def test_stored_dispatches(name: str) -> None:
    point = dispatch(name)
    begin = perf_counter()
    assert 0 < point.violation < 1e-12
    assert perf_counter() - begin < 0.5
    assert point.cost > 0
    moved = replace(point, pg=point.pg + 0.01 * (np.arange(len(point.pg)) == 1))
    assert moved.violation == pytest.approx(0.01, rel=1e-9)


def test_cost() -> None:
    point = dispatch("14_ieee")
    gens = pglib("14_ieee").generators
    assert point.cost == pytest.approx(float(np.sum(gens.c2 * point.pg**2 + gens.c1 * point.pg + gens.c0)), rel=1e-12)


def test_without_torch(environment: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "from milpverify.acopf.matpower import load_case; from milpverify.acopf.points.point import Point\n"
        "import milpverify.acopf.points.power_flow\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "assert 'pypower' not in sys.modules, 'pypower'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**environment})
