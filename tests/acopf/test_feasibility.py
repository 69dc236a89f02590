"""Whether there is an operating point: known networks, strange ones, and what ends a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from power_cases import TRIANGLE, network, pglib

from milpverify.acopf.case import Case
from milpverify.acopf.feasibility import check_feasibility
from milpverify.acopf.loads import Loads, box, scaled
from milpverify.acopf.matpower import load_case
from milpverify.acopf.proving.recheck import recheck
from milpverify.acopf.result import Feasibility, Reason, Verdict
from milpverify.config import Deadline
from milpverify.errors import InvalidInput
from milpverify.result import Trust

pytest.importorskip("scipy")
pypower = pytest.importorskip("pypower.api")

WITHIN = 60.0  # seconds, which no test here needs


def line() -> Case:
    """A lossless line of x = 0.25 from a bus at 1 p.u.: it carries 1 / (2 x) = 2 p.u. at most, which is 2.5 times its load."""
    return network(2, [(0, 1)], [0], pd=[0, 0.8], r=0, x=0.25, vmin=[1, 0.1], vmax=[1, 1.5])


def holds(found: Feasibility) -> Verdict:
    """The verdict, once what it comes with has been checked."""
    found.to_json()
    assert not found.warnings
    if found.verdict is Verdict.FEASIBLE:
        assert found.point is not None and found.point.violation <= found.tolerance and found.point.power_flow().reproduces
        assert found.reason is Reason.POINT
    if found.verdict is Verdict.INFEASIBLE:
        assert found.proof is not None and recheck(found.case, found.proof) and found.trust is Trust.EXACT
        assert found.violation_bound >= 2 * found.tolerance
        assert found.point is None or found.point.violation >= found.violation_bound
    return found.verdict


@pytest.mark.parametrize(("factor", "verdict"), [(2.4999, Verdict.FEASIBLE), (2.5001, Verdict.INFEASIBLE), (40.0, Verdict.INFEASIBLE)])
def test_the_most_that_a_line_carries(factor: float, verdict: Verdict) -> None:
    assert holds(check_feasibility(line(), scaled(factor), timeout=WITHIN)) is verdict


@pytest.mark.parametrize("tolerance", [1e-9, 1e-3])
def test_tolerances(tolerance: float) -> None:
    assert holds(check_feasibility(line(), scaled(2.4), tolerance=tolerance, timeout=WITHIN)) is Verdict.FEASIBLE
    assert holds(check_feasibility(line(), scaled(2.6), tolerance=tolerance, timeout=WITHIN)) is Verdict.INFEASIBLE


@pytest.mark.parametrize("name", ["case9", "case14", "case39"])
def test_cases_of_pypower(name: str) -> None:
    case = load_case(getattr(pypower, name)())
    assert holds(check_feasibility(case, timeout=WITHIN)) is Verdict.FEASIBLE
    assert holds(check_feasibility(case, scaled(3.0), timeout=WITHIN)) is Verdict.INFEASIBLE


def test_a_box_is_ruled_out_as_a_whole_or_has_a_load_that_is_met() -> None:
    case = line()
    assert holds(check_feasibility(case, box(0.05, 2.7), "exists", timeout=WITHIN)) is Verdict.INFEASIBLE  # 2.565 at least
    found = check_feasibility(case, box(0.05, 2.6), "exists", timeout=WITHIN)  # 2.47 at least
    assert holds(found) is Verdict.FEASIBLE
    assert found.point is not None and 0.95 * 2.6 * 0.8 <= found.point.pd[1] <= 2.0


WIDE = math.radians(150)
STRANGE: dict[str, Case] = {
    "one bus": network(1, [], [0], pd=1, qd=0.2, pmax=2),
    "no load": network(3, TRIANGLE, [0]),
    "no cost": network(3, TRIANGLE, [0], pd=0.3, c1=0),
    "negative loads": network(3, TRIANGLE, [0], pd=[0, -0.5, -0.5], qd=-0.1, pmin=-2),
    "no limits of several generators": network(3, TRIANGLE, [0, 0, 1], pd=[0, 0.5, 0.5], pmin=-math.inf),
    "nothing to choose": network(3, TRIANGLE, [0, 1], pd=0.3, pmin=[-math.inf, 0.3], pmax=[math.inf, 0.3], vmin=[1.0, 0.9, 0.9]),
    "storage": network(3, TRIANGLE, [0, 1, 2], pd=0.3, pmin=[0, -0.5, -0.5], pmax=[3, 0.5, 0.5]),
    "parallel and antiparallel": network(2, [(0, 1), (1, 0), (0, 1)], [0], pd=[0, 0.5], tap=[1, 1, 0.95], shift=[0, 0, 0.08]),
    "star with a negative reactance": network(4, [(0, 1), (0, 2), (0, 3)], [1], pd=[0, 0, 0.5, 0.3], x=[0.1, 0.1, -0.02], reference=1),
    "series capacitor": network(3, TRIANGLE, [0], pd=0.3, x=[0.1, -0.05, 0.1]),
    "resistors": network(3, TRIANGLE, [0], pd=0.3, x=0, r=0.05),
    "taps": network(3, TRIANGLE, [0], pd=0.3, tap=[0.5, 1, 1.5], vmin=0.3, vmax=2),
    "phase shifters round a ring": network(3, TRIANGLE, [0], pd=0.3, shift=[WIDE, -WIDE, 0]),
    "phase shifters in a row": network(3, TRIANGLE[:2], [0], pd=0.3, shift=[WIDE, WIDE]),
    "an angle that is forced": network(2, [(0, 1)], [0, 1], r=0, angmin=1.75, angmax=2.1, pmin=-20),
    "angles beyond a quarter turn": network(3, TRIANGLE, [0], pd=0.3, angmin=-2.1, angmax=2.1),
    "a ring of 30": network(30, [(i, (i + 1) % 30) for i in range(30)], [0, 15], pd=0.1, qd=0.02, x=0.05, angmin=-0.5, angmax=0.5),
    "a tree of 50": network(50, [((i - 1) // 2, i) for i in range(1, 50)], [0], pd=0.02, qd=0.005, x=0.02),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.filterwarnings("error")
def test_strange_networks_have_their_operating_points(name: str) -> None:
    assert holds(check_feasibility(STRANGE[name], timeout=WITHIN)) is Verdict.FEASIBLE


def test_angles_that_wind_up_to_more_than_half_a_turn() -> None:
    """Eight lines of 0.5 rad each: limits are about differences of the angles themselves, not of their principal values."""
    n, angle = 9, 0.5
    case = network(
        n,
        [(i, i + 1) for i in range(n - 1)],
        list(range(n)),
        pd=np.r_[np.zeros(n - 1), math.sin(angle) / 0.1],
        r=0,
        vmin=1,
        vmax=1,
        pmax=np.r_[math.inf, np.zeros(n - 1)],
        angmin=-0.6,
        angmax=0.6,
    )
    found = check_feasibility(case, timeout=WITHIN)
    assert holds(found) is Verdict.FEASIBLE
    assert found.point is not None and found.point.va[-1] == pytest.approx(-angle * (n - 1), abs=1e-6)


@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_no_time(seconds: float) -> None:
    found = check_feasibility(load_case(pypower.case30()), scaled(1.2), timeout=seconds)
    assert (found.verdict, found.reason, found.proof) == (Verdict.UNKNOWN, Reason.TIMEOUT, None)


def test_a_run_that_is_cancelled() -> None:
    deadline = Deadline()
    found = check_feasibility(line(), scaled(2.6), deadline=deadline, on_event=lambda _: deadline.cancel())
    assert found.verdict is not Verdict.FEASIBLE
    deadline.cancel()
    found = check_feasibility(line(), deadline=deadline)
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, Reason.INTERRUPTED)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"loads": Loads(relative=0.1)}, "quantifier"),
        ({"loads": Loads(relative=0.1), "quantifier": "forall"}, "quantifier"),
        ({"quantifier": "all"}, "quantifier"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 0.1}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"solver": "cplex"}, "solver"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        check_feasibility(line(), **arguments)


@pytest.mark.parametrize(
    ("name", "feasible", "infeasible"), [("3_lmbd", 1.338, 1.340), ("5_pjm", 1.430, 1.4315), ("14_ieee", 1.1945, 1.1955)]
)
def test_a_ladder_of_loads(name: str, feasible: float, infeasible: float) -> None:
    case = pglib(name)
    assert holds(check_feasibility(case, scaled(feasible), timeout=WITHIN)) is Verdict.FEASIBLE
    for factor in (infeasible, 1.6):
        assert holds(check_feasibility(case, scaled(factor), timeout=WITHIN)) is Verdict.INFEASIBLE


def test_boxes_of_loads() -> None:
    case = pglib("5_pjm")
    assert holds(check_feasibility(case, box(0.05, 1.50), "exists", timeout=WITHIN)) is Verdict.FEASIBLE
    assert holds(check_feasibility(case, box(0.05, 1.52), "exists", timeout=WITHIN)) is Verdict.INFEASIBLE
