"""The affine enclosure contains every power flow of its region, and formulas that are broken on purpose are noticed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from power_cases import TRIANGLE, network

from milpverify.acopf.case import Array, Case
from milpverify.acopf.dispatch import enclosure as module
from milpverify.acopf.dispatch import newton
from milpverify.acopf.dispatch.enclosure import Enclosure, NotEnclosed, enclose
from milpverify.acopf.dispatch.grid import Grid
from milpverify.acopf.dispatch.limits import limits_of
from milpverify.acopf.dispatch.policy import Box, Fixed, box_of
from milpverify.acopf.loads import box
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.judgement import flows, residuals
from milpverify.arithmetic.midpoint_radius import Balls

pypower = pytest.importorskip("pypower.api")


def meshed() -> Case:
    """Five buses, a transformer that shifts, a parallel line, shunts, two units at one bus."""
    return network(
        5, [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 1), (0, 1)], [0, 1, 1], pd=[0.2, 0, 0.6, 0.5, 0.4], qd=[0, 0.1, 0.2, 0.1, -0.1],
        gs=[0, 0, 0.02, 0, 0], bs=[0, 0, 0.1, 0, 0.05], tap=[1, 1, 0.97, 1, 1, 1.02, 1], shift=[0, 0, 0.05, 0, 0, -0.03, 0], b=0.03,
        rate=3.0, angmin=-0.5, angmax=0.5,
    )  # fmt: skip


def case14() -> Case:
    tables = pypower.case14()
    tables["branch"][:, 5] = 200.0
    return load_case({**tables, "name": "case14"})


def question(case: Case, relative: float, pg: float = 0.3) -> tuple[Grid, Fixed, Box, Array]:
    """Loads, set points and the base case's power flow."""
    grid = Grid(case)
    vm = np.where(np.isin(np.arange(case.num_buses), grid.held), 1.02, 1.0)
    policy = Fixed(grid, np.full(len(case.generators), pg), vm)
    loads = box_of(grid, box(relative))
    p = policy.region(loads).center.middle
    x = newton.base(grid, p, newton.flat(grid, p))
    assert x is not None
    return grid, policy, loads, x


def sampled(grid: Grid, policy: Fixed, loads: Box, x: Array, count: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Loads, power flows and generation at random loads, whose residuals are nothing by the formulas that judge points."""
    random, n = np.random.default_rng(seed), grid.case.num_buses
    share = random.random((count, 2 * n))
    share[count // 3 :] = np.round(share[count // 3 :])
    at = loads.at(share)
    pg, vm = policy.set_points(at)
    p = grid.parameters(pg, vm, at[:, :n], at[:, n:])
    found, good = newton.many(grid, p, x, np.linalg.inv(newton.jacobian(grid, x)))
    assert good.all()
    for row, one, power in zip(found[:40], at[:40], pg, strict=False):
        active, reactive = residuals(grid.case, row[n:], row[:n], power, np.zeros(len(power)), one[:n], one[n:])
        assert np.abs(np.delete(active, grid.slack)).max() < 1e-9 and np.abs(reactive[grid.free]).max(initial=0.0) < 1e-9
    return at, found, pg


def outside(enclosure: Enclosure, found: Array) -> float:
    """By how much samples lie outside the enclosure: of changes, and of magnitudes, flows and angles by their own formulas."""
    grid = enclosure.grid
    case, n, br = grid.case, grid.case.num_buses, grid.case.branches
    moved = found - enclosure.x
    across = np.concatenate([moved[:, n:], moved[:, br.f] - moved[:, br.t]], 1)
    far = [float((np.abs(across) - enclosure.radius).max())]
    change = enclosure.change.range(enclosure.noise)
    far.append(float(np.maximum(moved - change.upper, change.lower - moved).max()))
    limits = limits_of(grid)
    enclosed = limits.enclosed(enclosure)
    ends = [k for k, each in enumerate(limits.entries) if each.kind in ("flow from", "flow to")]
    for row in found if ends else []:
        pf, qf, pt, qt = flows(case, row[n:], row[:n])
        size = np.concatenate([np.hypot(pf, qf), np.hypot(pt, qt)])
        far.append(float(np.maximum(size - enclosed.upper[ends], enclosed.lower[ends] - size).max()))
    return max(far)


@pytest.mark.parametrize(("make", "relative"), [(meshed, 0.02), (meshed, 0.3), (case14, 0.02), (case14, 0.2)])
def test_every_power_flow_is_enclosed(make: Callable[[], Case], relative: float) -> None:
    grid, policy, loads, x = question(make(), relative)
    found = enclose(grid, policy.region(loads), x)
    _, flow, _ = sampled(grid, policy, loads, x, 1200)
    assert outside(found, flow) < 1e-9
    assert found.radius.max() < 3 * np.abs(flow - x).max() + 1e-6  # and not much more than that is enclosed


@pytest.mark.parametrize("relative", [0.0, 0.1])
def test_margins_are_those_that_judge_points(relative: float) -> None:
    grid, policy, loads, x = question(meshed(), relative)
    limits = limits_of(grid)
    at, flow, pg = sampled(grid, policy, loads, x, 300)
    n = grid.case.num_buses
    p = grid.parameters(pg, policy.set_points(at)[1], at[:, :n], at[:, n:])
    values = limits.values(flow, p, pg)
    enclosed = limits.enclosed(enclose(grid, policy.region(loads), x))
    assert (enclosed.lower - 1e-9 <= values).all() and (values <= enclosed.upper + 1e-9).all()
    assert (enclosed.margin <= limits.margins(values) + 1e-9).all()
    if relative == 0.0:
        assert np.abs(enclosed.upper - values).max() < 1e-7


def _scaled(patch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    real = getattr(module, name)
    patch.setattr(module, name, lambda *args: Balls(factor * real(*args).middle, factor * real(*args).radius))


def _swapped(patch: pytest.MonkeyPatch) -> None:
    real = module._rotation
    patch.setattr(module, "_rotation", lambda *args: real(*args)[::-1])


def _slope(patch: pytest.MonkeyPatch, factor: float, lose: bool = False) -> None:
    real = module._slope

    def broken(grid: Grid, x: Array) -> Array:
        found = factor * real(grid, x)
        if lose:
            found[:, grid.case.branches.t] = 0.0
        return found

    patch.setattr(module, "_slope", broken)


BREAKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "remainders are halved": lambda patch: _scaled(patch, "_noise", 0.5),
    "no remainders": lambda patch: _scaled(patch, "_noise", 0.0),
    "sine and cosine swapped": _swapped,
    "the linear part is 1 % too large": lambda patch: _slope(patch, 1.01),
    "angles are not differences": lambda patch: _slope(patch, 1.0, lose=True),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_formulas_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = network(2, [(0, 1)], [0], pd=[0, 1.0], qd=[0, 0.2], x=0.25, vmin=0.1, rate=3)
    grid, policy, loads, x = question(line, 0.2)
    _, flow, _ = sampled(grid, policy, loads, x, 900)
    assert outside(enclose(grid, policy.region(loads), x), flow) < 1e-9
    BREAKS[name](monkeypatch)
    try:
        found = enclose(grid, policy.region(loads), x)
    except NotEnclosed:
        return
    assert outside(found, flow) > 1e-6


def test_near_the_nose_nothing_is_enclosed() -> None:
    """A line of x = 0.25 carries 2 p.u.; with 1.9 +- 10 % there is no power flow for some loads, and with 1.9 alone there is one."""
    line = network(2, [(0, 1)], [0], pd=[0, 1.9], r=0, x=0.25, vmin=0.1)
    with pytest.raises(NotEnclosed):
        one = question(line, 0.1)
        enclose(one[0], one[1].region(one[2]), one[3])
    grid, policy, loads, x = question(line, 0.0)
    assert enclose(grid, policy.region(loads), x).radius.max() < 1e-6


def test_the_other_solution_is_another_enclosure() -> None:
    """The line's low-voltage solution is enclosed, too, but in no set of the high one."""
    line = network(2, [(0, 1)], [0], pd=[0, 1.2], r=0, x=0.25, vmin=0.1)
    grid, policy, loads, x = question(line, 0.02)
    high = enclose(grid, policy.region(loads), x)
    p = policy.region(loads).center.middle
    start = x.copy()
    start[[1, 3]] = -1.2, 0.3
    low_x = newton.solve(grid, p, start)
    assert low_x is not None and low_x[3] < 0.6 < x[3]
    low = enclose(grid, policy.region(Box(loads.middle, loads.middle)), low_x)
    assert not high.contains(low)
    assert high.contains(enclose(grid, policy.region(Box(loads.middle, loads.middle)), x))


def test_set_points_may_vary_too() -> None:
    """Generators of the region that move magnitudes and powers, as a proxy's do."""
    grid, policy, loads, x = question(network(3, TRIANGLE, [0, 1], pd=[0, 0, 0.9], qd=[0, 0, 0.3]), 0.05)
    region = policy.region(loads)
    n = 3
    columns = np.zeros((3 * n, 2))
    columns[1, 0], columns[2 * n + 1, 1] = 0.05, 0.01
    wide = module.Region(region.center, np.concatenate([region.generators, columns], 1), region.powers, region.magnitudes)
    found = enclose(grid, wide, x)
    random = np.random.default_rng(3)
    xi = np.sign(random.normal(size=(500, wide.generators.shape[1]))) * random.random((500, 1))
    p = region.center.middle + xi @ wide.generators.T
    flow, good = newton.many(grid, p, x, np.linalg.inv(newton.jacobian(grid, x)))
    assert good.all() and np.abs(flow[:, n + 1] - x[n + 1]).max() > 5e-3
    assert outside(found, flow) < 1e-9
