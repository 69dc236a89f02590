"""The least cost: known optima, costs of 0 and of no sensible size, and what ends a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
from power_cases import TRIANGLE, network, pglib

from milpverify.acopf.case import Case
from milpverify.acopf.cost import certify_cost
from milpverify.acopf.loads import box, scaled
from milpverify.acopf.matpower import load_case
from milpverify.acopf.points.polish import PointTuning
from milpverify.acopf.proving.branching import ProverTuning
from milpverify.acopf.proving.programs import TighteningTuning
from milpverify.acopf.proving.recheck import recheck
from milpverify.acopf.result import Cost, Reason
from milpverify.config import Deadline
from milpverify.errors import InvalidInput
from milpverify.result import Trust

pytest.importorskip("scipy")
pypower = pytest.importorskip("pypower.api")

WITHIN = 60.0  # seconds, which no test here needs
TWO = network(2, [(0, 1)], [0, 1], pd=[0, 1], r=0, c1=[2, 5], c0=[3, 0])  # all of it comes over a lossless line


def check(found: Cost, optimum: float, gap: float = 1e-4) -> None:
    """Bounds on their sides of the optimum and within the gap, with a proof."""
    found.to_json()
    assert not found.warnings
    assert found.lower <= optimum + 1e-7 * abs(optimum) and found.upper >= optimum - 1e-6 * abs(optimum)
    assert found.reason is Reason.GAP and found.upper - found.lower <= gap * max(abs(found.upper), 1e-5)
    assert found.trust is Trust.EXACT and found.proof is not None and recheck(found.case, found.proof)
    assert found.point is not None and found.point.violation <= 1e-6 and found.point.power_flow().reproduces


def test_all_from_the_cheaper_one() -> None:
    check(certify_cost(TWO, timeout=WITHIN), 5.0)


@pytest.mark.parametrize("gap", [1e-2, 1e-7])
def test_gaps(gap: float) -> None:
    check(certify_cost(TWO, gap=gap, timeout=WITHIN), 5.0, gap)


@pytest.mark.parametrize(("name", "optimum", "gap"), [("case9", 5296.6862, 1e-4), ("case14", 8081.5260, 2e-3)])
def test_optima_of_pypower(name: str, optimum: float, gap: float) -> None:
    check(certify_cost(load_case(getattr(pypower, name)()), gap=gap, timeout=WITHIN), optimum, gap)


def test_other_numbers() -> None:
    """They are handed in, and change how far a proof goes, not that it holds; what is no tuning is refused."""
    case = load_case(pypower.case9())
    short = (TighteningTuning(planes=1), ProverTuning(root_rounds=0, narrow=math.inf))
    found = certify_cost(case, tuning=short, timeout=WITHIN)
    assert found.reason is Reason.UNDECIDED and found.proof is not None and recheck(case, found.proof)
    assert found.lower < certify_cost(case, timeout=WITHIN).lower
    assert certify_cost(TWO, tuning=(PointTuning(iterations=1, close=0.0), *short), timeout=WITHIN).point is None
    with pytest.raises(InvalidInput, match="int is none"):
        certify_cost(TWO, tuning=(3,))  # type: ignore[arg-type]


STRANGE: dict[str, tuple[Case, float]] = {
    "one bus": (network(1, [], [0, 0], pd=1, c2=1, c1=0), 0.5),
    "nothing to pay for": (network(1, [], [0]), 0.0),
    "no load": (network(3, TRIANGLE, [0]), 0.0),
    "no cost": (network(3, TRIANGLE, [0, 1], pd=0.2, c1=0), 0.0),
    "a constant": (network(3, TRIANGLE, [0, 1], pd=0.2, c1=0, c0=50), 100.0),
    "paid to generate": (network(2, [(0, 1)], [0], pd=[0, 1], r=0, c1=-3), -3.0),
    "two that cancel": (network(2, [(0, 1)], [0, 1], pd=[0, 1], r=0, c1=[1, -1], pmin=0.5, pmax=0.5), 0.0),
    "from cheap to dear": (network(2, [(0, 1)], [0, 1], pd=[0, 1], r=0, c1=[1e-3, 1e3], pmax=[0.5, 1]), 500.0005),
    "equal ones": (network(3, TRIANGLE, [0] * 4, pd=[1, 0, 0], r=0, c1=2, pmax=0.4), 2.0),
    "phase shifters": (network(3, TRIANGLE[:2], [0], pd=0.3, r=0, shift=[math.radians(150), math.radians(150)]), 0.9),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.filterwarnings("error")
def test_strange_costs(name: str) -> None:
    case, optimum = STRANGE[name]
    check(certify_cost(case, timeout=WITHIN), optimum)


@pytest.mark.filterwarnings("error")
def test_generation_without_any_limit_has_a_price_still() -> None:
    """Two such generators at a bus leave the linear programs without a bound that can be checked; a point there is."""
    found = certify_cost(network(3, TRIANGLE, [0, 0, 1], pd=[0, 0.5, 0.5], pmin=-math.inf, c1=5, c2=1), timeout=2.0)
    assert math.isfinite(found.upper) and found.lower <= found.upper


def test_no_point_has_no_cost() -> None:
    case = network(2, [(0, 1)], [0], pd=[0, 1], pmax=2)
    found = certify_cost(case, scaled(3.0), timeout=WITHIN)
    assert (found.reason, found.lower, found.upper, found.point) == (Reason.PROVED, math.inf, math.inf, None)
    assert found.proof is not None and recheck(case, found.proof)


def test_no_time() -> None:
    found = certify_cost(load_case(pypower.case30()), timeout=0.0)
    assert (found.reason, found.upper, found.gap) == (Reason.TIMEOUT, math.inf, math.inf) and found.lower <= 576.9


def test_a_run_that_is_cancelled_has_what_it_has() -> None:
    deadline = Deadline()
    found = certify_cost(load_case(pypower.case14()), gap=1e-9, deadline=deadline, on_event=lambda _: deadline.cancel())
    assert found.reason is Reason.INTERRUPTED and found.lower <= 8081.53 <= found.upper + 0.01


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"loads": box(0.1)}, "box"),
        ({"gap": 0.0}, "gap"),
        ({"gap": math.nan}, "gap"),
        ({"timeout": -1.0}, "timeout"),
        ({"solver": "cplex"}, "solver"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        certify_cost(TWO, **arguments)


@pytest.mark.parametrize(("name", "optimum"), [("3_lmbd", 5812.64297), ("5_pjm", 17551.89092), ("14_ieee", 2178.08043)])
def test_optima(name: str, optimum: float) -> None:
    check(certify_cost(pglib(name), timeout=WITHIN), optimum)
