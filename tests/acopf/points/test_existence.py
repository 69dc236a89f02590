import math
from dataclasses import replace
from time import perf_counter

import flint
import numpy as np
import pytest
from power_cases import dispatch, pglib, random_point, small

from milpverify.acopf.case import Branches, Buses, Case, Generators
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points import existence
from milpverify.acopf.points.existence import Existence, prove_existence
from milpverify.acopf.points.local import cheapest
from milpverify.acopf.points.point import Point

pytest.importorskip("scipy")
pytest.importorskip("pypower")

X = 0.25  # of the line between two buses


def two_buses(p: float, q: float, vm: float = 1.0, shift: float = 0.0, tap: float = 1.0) -> Case:
    """A generator whose voltage is held, a lossless line, and a load."""

    def one(value: float) -> np.ndarray:
        return np.array([value])

    buses = Buses(
        np.array([1, 2]),
        np.array([0, p]),
        np.array([0, q]),
        np.zeros(2),
        np.zeros(2),
        np.array([vm, 0.1]),
        np.array([vm, 2.0]),
        np.arange(2),
    )
    line = Branches(
        np.array([0]), np.array([1]), one(0), one(X), one(0), one(tap), one(shift), one(np.inf), one(-np.inf), one(np.inf), np.array([1])
    )
    gens = Generators(np.array([0]), one(-9), one(9), one(-9), one(9), one(1), one(2), one(3), one(vm), np.array([1]))
    return Case("two buses", 100.0, buses, line, gens, 0)


def solution(p: float, q: float, vm: float = 1.0, prec: int = 200) -> list[flint.arb]:
    """vm and va at the load and qg: w^2 + w (2 x q - vm^2) + x^2 (p^2 + q^2) = 0, and p = vm sqrt(w) sin(-va) / x."""
    with flint.ctx.workprec(prec):
        x, b = flint.arb(X), 2 * flint.arb(X) * q - flint.arb(vm) ** 2
        w = (-b + (b * b - 4 * x * x * (flint.arb(p) ** 2 + flint.arb(q) ** 2)).sqrt()) / 2
        va = -(x * p / (w.sqrt() * vm)).asin()
        return [w.sqrt(), va, (flint.arb(vm) ** 2 - vm * w.sqrt() * va.cos()) / x]


def two_bus_point(case: Case, found: list[flint.arb], offset: float = 0.0) -> Point:
    v, va, qg = (float(number.mid()) for number in found)
    vm = np.array([case.buses.vmin[0], v + offset])
    return Point(case, vm, np.array([0.0, va + offset]), case.buses.pd[1:], np.array([qg]), case.buses.pd, case.buses.qd)


@pytest.mark.parametrize(("p", "q"), [(0.8, 0.3), (1.0, -0.2), (1.9, 0.0), (-1.5, 0.4)])
@pytest.mark.parametrize("offset", [1e-12, 1e-9, 2e-7])
def test_known_solution(p: float, q: float, offset: float) -> None:
    """The radius is the true distance, but for rounding and curvature."""
    case, exact = two_buses(p, q), solution(p, q)
    point = two_bus_point(case, exact, offset)
    found = prove_existence(point)
    assert found.proved and found.strictly_inside, found.message
    with flint.ctx.workprec(200):
        distances = [abs(number - value) for number, value in zip(exact, (point.vm[1], point.va[1], point.qg[0]), strict=True)]
        distance = max(float(d.upper()) for d in distances)
        assert found.radius >= max(float(d.lower()) for d in distances) * (1 - 1e-15)
        assert float(found.qg[0, 0]) <= exact[2] <= float(found.qg[1, 0])
    assert found.radius <= distance * (1 + 1e-3) + 1e-18
    assert found.pg[0, 0] <= p <= found.pg[1, 0] and found.pg[1, 0] - found.pg[0, 0] < 1e-12
    assert (p**2 + 2 * p + 3) * (1 - 1e-15) <= found.cost <= (p**2 + 2 * p + 3) * (1 + 1e-12)


def test_beyond_the_nose() -> None:
    """With q = 0 the line carries vm^2 / (2 x) at most: more needs a higher vm, which is within the radius, but not within the limits."""
    limit = 1 / (2 * X)
    nose = [flint.arb(0.5).sqrt(), -flint.arb.pi() / 4, flint.arb(0.5) / X]
    for more in (1e-12, 1e-9, 1e-7, 1e-3):
        point = two_bus_point(two_buses(limit * (1 + more), 0.0), nose)
        for offset in (0.0, 1e-8, -1e-7, 1e-4):
            found = prove_existence(replace(point, vm=point.vm + np.array([0, offset]), va=point.va - np.array([0, offset])))
            assert not found.strictly_inside
            assert not found.proved or more < 1e-3
    assert not prove_existence(two_bus_point(two_buses(limit, 0.0), nose)).strictly_inside  # a double zero: nothing can be proved
    for less in (1e-2, 1e-4, 1e-6):
        p = limit * (1 - less)
        found = prove_existence(two_bus_point(two_buses(p, 0.0), solution(p, 0.0)))
        assert found.proved and found.strictly_inside, found.message


def test_phase_shifters_turn_the_solution() -> None:
    """A shift of the line moves the load's angle by as much, and nothing else; a tap scales the voltage."""
    p, q, shift = 0.8, 0.3, math.radians(150)
    case, exact = two_buses(p, q, shift=shift), solution(p, q)
    turned = [exact[0], exact[1] - shift, exact[2]]
    assert prove_existence(two_bus_point(case, turned)).radius < 1e-14
    assert not prove_existence(two_bus_point(case, exact)).proved
    assert not prove_existence(two_bus_point(case, [exact[0], exact[1] + shift, exact[2]])).proved


@pytest.mark.parametrize("angle", [1e-8, 0.1, 2 * math.pi])
def test_the_reference_angle_is_0(angle: float) -> None:
    point = two_bus_point(two_buses(0.8, 0.3), solution(0.8, 0.3))
    found = prove_existence(replace(point, va=point.va + angle))
    assert found.proved == (angle < 1e-6)
    assert not found.proved or found.radius >= angle
    opposite = replace(point, va=point.va + math.pi)
    assert not prove_existence(opposite, radius=10.0).proved  # V of the reference is not negative


@pytest.mark.parametrize(("name", "limit"), [("5_pjm", 3.0), ("14_ieee", 3.0), ("30_ieee", 3.0), ("118_ieee", 20.0)])
def test_dispatches(name: str, limit: float) -> None:
    point = dispatch(name)
    start = perf_counter()
    found = prove_existence(point)
    assert perf_counter() - start < limit
    assert found.proved and found.strictly_inside, found.message
    assert found.radius < 1e-11
    assert (found.pg[0] <= found.pg[1]).all() and (np.abs(found.pg - point.pg) <= found.radius + 1e-15).all()
    assert (np.abs(found.qg - point.qg) <= found.radius + 1e-15).all()
    assert found.cost == pytest.approx(point.cost, rel=1e-9)
    assert found.to_dict()["proved"] is True


@pytest.mark.parametrize("name", ["3_lmbd", "57_ieee"])
def test_interior_points(name: str) -> None:
    point = cheapest(pglib(name), shrink=1e-3)
    start = perf_counter()
    found = prove_existence(point)
    assert perf_counter() - start < 3.0
    assert found.proved and found.strictly_inside, found.message


@pytest.mark.parametrize("name", ["5_pjm", "14_ieee", "30_ieee"])
def test_a_moved_generator_with_stale_angles(name: str) -> None:
    """Whichever unit is moved, and whichever units the proof solves for."""
    point = dispatch(name)
    for g in range(len(point.pg)):
        for by in (0.01, -1e-4):
            pg = point.pg.copy()
            pg[g] += by
            found = prove_existence(replace(point, pg=pg))
            assert not found.proved and not found.strictly_inside and found.radius == np.inf
            assert "far" in found.message or "long" in found.message or "away" in found.message


def test_two_generators_at_a_bus() -> None:
    """What one unit gives the other may take; but what is proved lies beside the point."""
    point = dispatch("5_pjm")
    first, second = np.flatnonzero(point.case.generators.bus == point.case.generators.bus[0])[:2]
    pg = point.pg.copy()
    pg[first], pg[second] = pg[first] + 0.01, pg[second] - 0.01
    assert prove_existence(replace(point, pg=pg)).proved  # the same flows
    pg[second] += 1e-4
    assert not prove_existence(replace(point, pg=pg)).proved


@pytest.mark.parametrize("name", ["5_pjm", "14_ieee", "30_ieee"])
@pytest.mark.parametrize(("size", "expected"), [(1e-9, True), (1e-3, False)])
def test_perturbations(name: str, size: float, expected: bool) -> None:
    point, rng = dispatch(name), np.random.default_rng(0)
    for _ in range(5):
        moved = {part: getattr(point, part) + size * rng.uniform(-1, 1, len(getattr(point, part))) for part in ("vm", "va", "pg", "qg")}
        moved["va"][point.case.reference] = 0.0
        assert prove_existence(replace(point, **moved)).proved is expected


def test_a_radius_that_is_too_small() -> None:
    point = dispatch("14_ieee")
    moved = replace(point, vm=point.vm + 1e-8)
    found = prove_existence(moved)
    assert found.proved and not prove_existence(moved, radius=found.radius * 0.99).proved
    assert prove_existence(moved, radius=found.radius).proved


@pytest.mark.parametrize("kind", ["vmax", "vmin", "rate", "angmax", "pmax", "qmin"])
def test_a_violated_limit_is_noticed(kind: str) -> None:
    """Limits moved to either side of what the point has: by 1e-9, which is more than the radius."""
    point = dispatch("14_ieee")
    case, br = point.case, point.case.branches
    sizes = {(each.kind, each.index): each.value for each in point.constraints()}
    part, index, value, word = {
        "vmax": ("buses", 6, point.vm[6], "voltage of bus 7"),
        "vmin": ("buses", 3, point.vm[3], "voltage of bus 4"),
        "rate": ("branches", 0, max(sizes["flow from", 0], sizes["flow to", 0]), "of branch 1-2"),
        "angmax": ("branches", 2, point.va[br.f[2]] - point.va[br.t[2]], "angle difference of branch 2-3"),
        "pmax": ("generators", 1, point.pg[1], "active generation of generator at bus 2"),
        "qmin": ("generators", 1, point.qg[1], "reactive generation of generator at bus 2"),
    }[kind]
    outwards = -1.0 if "min" in kind else 1.0

    def limited(by: float) -> Existence:
        limit = getattr(getattr(case, part), kind).copy()
        limit[index] = value + outwards * by
        changed = replace(case, **{part: replace(getattr(case, part), **{kind: limit})})
        return prove_existence(replace(point, case=changed))

    inside, outside = limited(1e-9), limited(-1e-9)
    assert inside.proved and inside.strictly_inside and 0.0 <= inside.worst <= 1e-9 * (1 + 1e-3)
    assert outside.proved and not outside.strictly_inside
    assert word in outside.where and outside.worst == pytest.approx(-1e-9, rel=1e-2)


@pytest.mark.parametrize("name", ["5_pjm", "14_ieee", "30_as"])
def test_limits_that_are_held(name: str) -> None:
    """An optimum has variables at their limits; they are held there, so that it is within all of them."""
    found = prove_existence(cheapest(pglib(name)))
    assert found.proved and found.strictly_inside and found.worst == 0.0, found.message


@pytest.mark.parametrize("seed", range(3))
def test_the_equations_are_the_judges(seed: int) -> None:
    """The residual of the system, and its Jacobian by differences, against the independent evaluation of the balances."""
    case = load_case(small())
    point = random_point(case, seed)
    point = replace(point, va=point.va - point.va[case.reference])
    with flint.ctx.workprec(128):
        system = existence._System(point, existence.unknowns(point))
        residual = [float(entry.mid()) for entry in system.residual.entries()]
        slope = np.array([[float(flint.arb(entry).mid()) for entry in row] for row in system.jacobian()])
        rng = np.random.default_rng(seed)
        d = 1e-3 * rng.normal(size=system.size)
        second = np.array([float(flint.arb(entry).mid()) for entry in system.second([flint.arb(v) for v in d.tolist()]).entries()])
    n = case.num_buses
    balances = [each.value for each in point.constraints() if "balance" in each.kind]
    np.testing.assert_allclose(residual[: 2 * n], -np.array(balances), atol=1e-14)
    np.testing.assert_array_equal(residual[2 * n :], 0.0)
    v = point.vm * np.exp(1j * point.va) + d[:n] + 1j * d[n : 2 * n]
    powers = np.concatenate([point.pg, point.qg])
    powers[system.powers] += d[2 * n :]
    moved = replace(point, vm=np.abs(v), va=np.angle(v), pg=powers[: len(point.pg)], qg=powers[len(point.pg) :])
    balances = [each.value for each in moved.constraints() if "balance" in each.kind]
    expected = np.concatenate([-np.array(balances), [v.imag[case.reference]], (np.abs(v) ** 2 - point.vm**2)[system.held]])
    np.testing.assert_allclose(residual + slope @ d + second, expected, atol=1e-13)


def test_balls_around_zero_are_terms() -> None:
    """A coefficient that may be 0 is not left out of the proof."""
    case = load_case(small())
    balls = existence._flow_balls(case)
    balls[1, 0, 0] = flint.arb(0, 1e-3)
    network = existence.Rectangular(case, balls)
    assert len(network.flows.coefficient) == len(existence.Rectangular(case, existence._flow_balls(case)).flows.coefficient)


def test_precision_is_restored_and_nonsense_is_not_proved() -> None:
    before = flint.ctx.prec
    point = two_bus_point(two_buses(0.8, 0.3), solution(0.8, 0.3))
    for part, value in (("vm", np.nan), ("vm", 0.0), ("va", np.inf), ("pg", np.nan), ("qd", np.inf)):
        changed = getattr(point, part).copy()
        changed[0] = value
        found = prove_existence(replace(point, **{part: changed}))
        assert not found.proved and found.message
    assert prove_existence(point).proved and flint.ctx.prec == before
