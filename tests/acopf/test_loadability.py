"""How far all loads can grow: closed forms of two buses, limits of generators, networks that carry nothing or everything."""

from __future__ import annotations

import math
from typing import Any

import pytest
from power_cases import TRIANGLE, network

from milpverify.acopf.case import Case
from milpverify.acopf.loadability import max_loadability
from milpverify.acopf.matpower import load_case
from milpverify.acopf.proving.recheck import recheck
from milpverify.acopf.result import Loadability, Reason
from milpverify.config import Deadline
from milpverify.errors import InvalidInput
from milpverify.result import Trust

pytest.importorskip("scipy")
pypower = pytest.importorskip("pypower.api")

WITHIN = 60.0  # seconds, which no test here needs


def line(p: float, q: float, x: float = 0.25) -> Case:
    """A lossless line from a bus at 1 p.u. to a load."""
    return network(2, [(0, 1)], [0], pd=[0, p], qd=[0, q], r=0, x=x, vmin=[1, 0.1], vmax=[1, 2])


def check(found: Loadability, factor: float, gap: float = 1e-4) -> None:
    """Bounds on their sides of the factor and within the gap, with a proof and a point."""
    found.to_json()
    assert not found.warnings
    assert found.lower <= factor * (1 + 1e-6) and found.upper >= factor * (1 - 1e-9)
    assert found.reason is Reason.GAP and found.upper - found.lower <= gap * found.upper
    assert found.trust is Trust.EXACT and found.proof is not None and recheck(found.case, found.proof)
    assert found.point is not None and found.point.violation <= 1e-6 and found.point.power_flow().reproduces
    assert found.point.pd == pytest.approx(found.lower * found.case.buses.pd, rel=1e-12)


@pytest.mark.parametrize(("p", "q"), [(0.8, 0.0), (0.8, 0.1), (0.5, 0.5), (0.4, -0.1)])
def test_the_nose_of_two_buses(p: float, q: float) -> None:
    """cos(phi) / (1 + sin(phi)) / (2 x), with tan(phi) = q / p."""
    phi = math.atan2(q, p)
    check(max_loadability(line(p, q), timeout=WITHIN), math.cos(phi) / (1 + math.sin(phi)) / (2 * 0.25) / p)


@pytest.mark.filterwarnings("error")
def test_what_a_generator_can_do() -> None:
    check(max_loadability(network(1, [], [0], pd=1, qd=0.2, pmax=2), timeout=WITHIN), 2.0)
    check(max_loadability(network(1, [], [0], pd=1, qd=0.5, pmax=2, qmin=-1, qmax=0.6), timeout=WITHIN), 1.2)
    check(max_loadability(network(1, [], [0], pd=-1, pmin=-3, pmax=2), timeout=WITHIN), 3.0)


@pytest.mark.filterwarnings("error")
def test_a_phase_shifter_and_generators_without_limits() -> None:
    turned = network(3, TRIANGLE[:2], [0], pd=[0, 0.5, 0.5], qd=0.1, shift=math.radians(150))
    plain = network(3, TRIANGLE[:2], [0], pd=[0, 0.5, 0.5], qd=0.1)
    check(max_loadability(turned, timeout=WITHIN), max_loadability(plain, timeout=WITHIN).lower)


@pytest.mark.filterwarnings("error")
def test_loads_beside_a_generator_without_limits_grow_without_end() -> None:
    found = max_loadability(network(1, [], [0], pd=1), timeout=5.0)
    assert (found.upper, found.gap) == (math.inf, math.inf) and found.lower >= 1.0 and found.reason is not Reason.GAP


def test_a_network_that_carries_nothing_at_all() -> None:
    found = max_loadability(network(2, [(0, 1)], [0], pd=[0, 0.1], pmin=1, pmax=2, vmax=1.0, r=0), timeout=WITHIN)
    assert found.upper >= 10.0 * (1 - 1e-9)  # at least 1 p.u. has to go somewhere
    found = max_loadability(network(2, [(0, 1)], [0], pd=[0, 0.1], qd=[0, 0], gs=[3, 0], pmax=2), timeout=WITHIN)
    assert (found.reason, found.upper, found.point) == (Reason.PROVED, 0.0, None)


def test_pypowers_nine_buses() -> None:
    check(max_loadability(load_case(pypower.case9()), timeout=WITHIN), 2.181344)


def test_no_time() -> None:
    found = max_loadability(load_case(pypower.case30()), timeout=0.0)
    assert (found.reason, found.lower, found.gap) == (Reason.TIMEOUT, -math.inf, math.inf) and found.upper >= 1.0


def test_a_run_that_is_cancelled_has_what_it_has() -> None:
    deadline = Deadline()
    found = max_loadability(load_case(pypower.case14()), gap=1e-9, deadline=deadline, on_event=lambda _: deadline.cancel())
    assert found.reason is Reason.INTERRUPTED and found.lower <= 1.9525 <= found.upper


@pytest.mark.parametrize(
    ("case", "arguments", "word"),
    [
        (line(0.8, 0.1), {"gap": 0.0}, "gap"),
        (line(0.8, 0.1), {"timeout": math.nan}, "timeout"),
        (line(0.8, 0.1), {"solver": "cplex"}, "solver"),
        (line(0.0, 0.0), {}, "no bus has a load"),
    ],
)
def test_what_is_refused(case: Case, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        max_loadability(case, **arguments)
