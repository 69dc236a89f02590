from fractions import Fraction

import flint
import numpy as np
import pytest
import torch
from power_cases import pglib, random_point, small

import milpverify as mv
from milpverify.acopf.admittance import admittance_balls, admittances
from milpverify.acopf.case import Case
from milpverify.acopf.equations import _check_coefficients, equations, layout
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.judgement import flows, residuals
from milpverify.acopf.points.point import Point, load_point
from milpverify.enclosure import enclose
from milpverify.errors import InvalidInput
from milpverify.graph import evaluate

PARTS = {"active balance": "active_balance", "reactive balance": "reactive_balance", "angle difference": "angle_difference"}


@pytest.fixture
def case() -> Case:
    return load_case(small())


def enclosed(point: Point) -> tuple[np.ndarray, np.ndarray]:
    x = torch.from_numpy(layout(point.case).x(point))[None]
    lower, upper = enclose(equations(point.case), x)
    return lower[0].numpy(), upper[0].numpy()


def assert_agrees(point: Point) -> None:
    """The graph's enclosure, in real arithmetic, contains what the judgement of points finds in ball arithmetic."""
    case, at = point.case, layout(point.case)
    lower, upper = enclosed(point)
    assert np.max(upper - lower) < 1e-7
    for each in point.constraints():
        if each.kind in PARTS:
            place = getattr(at, PARTS[each.kind]).start + each.index
            spare = abs(each.value) * 2.0**-52
            assert lower[place] - spare <= each.value <= upper[place] + spare, each
        elif each.kind in {"flow from", "flow to"}:
            place = (at.sf2 if each.kind == "flow from" else at.st2).start + each.index
            assert lower[place] * (1 - 1e-15) <= each.value**2 <= upper[place] * (1 + 1e-15), each
    quick = flows(case, point.vm, point.va)
    for name, values in zip(("pf", "qf", "pt", "qt"), quick, strict=True):
        np.testing.assert_allclose(lower[getattr(at, name)], values, rtol=1e-9, atol=1e-9)
    p, q = residuals(case, point.vm, point.va, point.pg, point.qg, point.pd, point.qd)
    np.testing.assert_allclose(upper[at.active_balance], p, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(upper[at.reactive_balance], q, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_the_graph_and_the_judgement_of_points_agree(case: Case, seed: int) -> None:
    assert_agrees(random_point(case, seed))


@pytest.mark.parametrize("name", ["5_pjm", "14_ieee", "30_ieee", "118_ieee"])
def test_they_agree_on_pglib(name: str) -> None:
    assert_agrees(random_point(pglib(name), 1))


def test_the_layout(case: Case) -> None:
    graph, at = equations(case), layout(case)
    assert (graph.nx, graph.ny) == (4 * 3 + 2 * 2, 2 * 3 + 7 * 3)
    begin = 0
    for spec in graph.inputs:
        assert getattr(at, spec.name) == slice(begin, begin := begin + spec.size)
    assert begin == graph.nx
    begin = 0
    for spec in graph.outputs:
        assert getattr(at, spec.name) == slice(begin, begin := begin + spec.size)
    assert begin == graph.ny
    assert graph.rounded  # so that no rational arithmetic takes the coefficients for exact


def test_bounds_hold(case: Case) -> None:
    point, graph, at = random_point(case, 0), equations(case), layout(case)
    x = at.x(point)
    for width in (1e-9, 1e-3, 0.05):
        box = mv.Box(x - width, x + width)
        for method in ("ibp", "crown", "alpha-crown"):
            found = mv.bounds(graph, box, method=method).output
            samples = torch.from_numpy(x + np.random.default_rng(1).uniform(-width, width, (300, len(x))))
            values = evaluate(graph, samples)
            assert (values >= found.lower - 1e-13).all()
            assert (values <= found.upper + 1e-13).all()
            if width < 1e-8:
                assert float((found.upper - found.lower).max()) < 1e-5


def test_a_minimum(case: Case) -> None:
    """The least active flow into a branch over a box, between a proved bound and a point that attains it."""
    point, graph, at = random_point(case, 0), equations(case), layout(case)
    x = at.x(point)
    box = mv.Box(x - 0.01, x + 0.01)
    objective = np.zeros(graph.ny)
    objective[at.pf.start] = 1.0
    found = mv.minimize(graph, box, objective, gap=1e-3, timeout=30)
    values = evaluate(graph, torch.from_numpy(x + np.random.default_rng(2).uniform(-0.01, 0.01, (2000, len(x)))))[:, at.pf.start]
    assert found.upper_bound - found.lower_bound <= 1e-3
    assert found.lower_bound <= float(values.min())
    assert found.x is not None
    vm, va = found.x[at.vm], found.x[at.va]
    assert flows(case, vm, va)[0, 0] == pytest.approx(found.upper_bound, abs=1e-9)


def test_coefficients_contain_the_reals(case: Case) -> None:
    """Against exact rationals where there is no phase shift, and 300 bits where there is one."""
    y, br = admittances(case), case.branches
    for k in range(len(br)):
        r, x, b, tap = (Fraction(float(v[k])) for v in (br.r, br.x, br.b, br.tap))
        square = r * r + x * x
        g, s = r / square, -x / square
        if br.shift[k] == 0:
            exact = [g / tap**2, (s + b / 2) / tap**2, -g / tap, -s / tap, -g / tap, -s / tap, g, s + b / 2]
            for value, middle, radius in zip(exact, y.middle[k], y.radius[k], strict=True):
                assert abs(value - Fraction(float(middle))) <= Fraction(float(radius))
                assert abs(value - Fraction(float(middle))) <= abs(value) * Fraction(1, 2**52)


def test_a_coefficient_that_cancels_is_exact_or_refused() -> None:
    tables = small()
    tables["branch"][1, 2:5] = 0, 0.5, 4.0  # type: ignore[index]  # 1 / (j 0.5) + j 4 / 2 = 0
    tables["branch"][1, 8:10] = 0  # type: ignore[index]
    case = load_case(tables)
    assert admittances(case).of("btt")[1] == 0.0
    equations(case)
    tables["branch"][1, 2] = 1e-150  # type: ignore[index]  # the same but for 1e-300
    case = load_case(tables)
    assert flint.arb(0) in admittance_balls(case)[1][7]
    with pytest.raises(InvalidInput, match=r"branch 20-7 \(row 2\): its admittance cancels"):
        _check_coefficients(case)


def test_a_point_by_its_parts(case: Case) -> None:
    at, point = layout(case), random_point(case, 5)
    x = at.x(point)
    again = load_point(case, {name: x[getattr(at, name)].tolist() for name in ("vm", "va", "pg", "qg", "pd", "qd")})
    assert again.to_dict() == point.to_dict()
