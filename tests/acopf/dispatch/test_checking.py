"""Dispatches that hold, that are broken, and neither: what the answers come with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from power_cases import TRIANGLE, dispatch, network

from milpverify.acopf.case import Case
from milpverify.acopf.dispatch import limits, newton, search
from milpverify.acopf.dispatch.attack import LoadTuning
from milpverify.acopf.dispatch.checking import check_dispatch
from milpverify.acopf.dispatch.comparison import compare_dispatch
from milpverify.acopf.dispatch.grid import FlowTuning
from milpverify.acopf.dispatch.margin_plots import plot_certified
from milpverify.acopf.dispatch.result import Dispatched
from milpverify.acopf.loads import Loads, box
from milpverify.acopf.result import Reason, Verdict
from milpverify.config import Deadline
from milpverify.errors import Contradiction, InvalidInput
from milpverify.result import Trust

pytest.importorskip("pypower.api")


def triangle(**values: Any) -> Case:
    usual: dict[str, Any] = {"pd": [0.1, 0, 0.9], "qd": [0, 0, 0.3], "rate": 0.8, "pmax": 2, "qmin": -1, "qmax": 1}
    return network(3, TRIANGLE, [0, 1], **{**usual, **values})


def ask(case: Case, loads: Loads, **options: Any) -> Dispatched:
    """The answer, once what it comes with has been checked."""
    found = check_dispatch(case, pg=[0.0, 0.4], vm=[1.02, 1.02, 1.0], loads=loads, **options)
    json.loads(found.to_json())
    assert str(found).startswith(found.verdict.name)
    for each in found.margins:
        assert each.certified <= each.attacked + 1e-9, each
    if found.verdict is Verdict.HOLDS:
        assert found.reason is Reason.PROVED and found.trust is Trust.ROUNDED
        assert all(each.certified >= (-found.tolerance if each.limit.given else 0.0) for each in found.margins)
        assert found.point is not None and found.point.violation <= 1e-6
    if found.verdict is Verdict.BROKEN:
        one = found.violation
        assert one is not None and one.proved and one.continuous and one.reproduced and one.existence.proved
        assert found.point is one.point and one.margin < -found.tolerance
        low_p, high_p, low_q, high_q = loads.ranges(case)
        assert (low_p <= one.point.pd).all() and (one.point.pd <= high_p).all()
        assert (low_q <= one.point.qd).all() and (one.point.qd <= high_q).all()
        judged = {(each.kind, each.element): each.margin for each in one.point.constraints()}
        assert judged[one.limit.kind, one.limit.element] == pytest.approx(one.margin, abs=1e-7)
    return found


def test_it_holds_until_it_does_not() -> None:
    """The wider the box, the worse; certified and attacked margins meet."""
    verdicts = [ask(triangle(rate=0.66), box(width)).verdict for width in (0.0, 0.01, 0.05, 0.3, 0.5)]
    assert verdicts[0] is Verdict.HOLDS and verdicts[-1] is Verdict.BROKEN
    assert verdicts == sorted(verdicts, key=lambda one: one is Verdict.BROKEN)
    assert ask(triangle(rate=0.4), Loads()).verdict is Verdict.BROKEN
    found = ask(triangle(), box(0.05))
    worst, attacked = found.worst_margin, found.attacked_margin
    assert worst is not None and attacked is not None and worst.limit == attacked.limit
    assert 0 <= attacked.attacked - worst.certified < 2e-3


@pytest.mark.parametrize("reference", [0, 1, 2])
def test_the_slack_bus_is_the_reference_where_it_has_a_generator(reference: int) -> None:
    case = triangle(reference=reference, pmax=[2, 1.5])
    found = ask(case, box(0.05))
    assert found.verdict is Verdict.HOLDS
    given = [each.limit.element for each in found.margins if each.limit.kind == "active generation" and each.limit.given]
    assert given == [case.generator_name(0 if reference == 1 else 1)]


def test_units_at_one_bus_share() -> None:
    case = network(2, [(0, 1)], [0, 0, 1], pd=[0, 1.0], qd=[0, 0.2], pmax=[0.4, 0.4, 1], qmin=-1, qmax=1)
    found = check_dispatch(case, [0, 0, 0.3], [1, 1], box(0.05))
    assert found.verdict is Verdict.HOLDS
    total = next(each for each in found.margins if each.limit.element == "generators at bus 1" and each.limit.kind == "active generation")
    assert total.limit.upper == 0.8 and total.attacked == pytest.approx(0.8 - (1.05 - 0.3), abs=0.02)
    broken = check_dispatch(case, [0, 0, 0.1], [1, 1], box(0.05))
    assert broken.verdict is Verdict.BROKEN and broken.violation is not None and broken.violation.reproduced


def test_what_is_set_may_touch_its_limits() -> None:
    """A magnitude exactly at its limit holds; beyond it by more than the tolerance it does not, whatever the loads."""
    assert ask(triangle(vmax=[1.02, 1.1, 1.1]), box(0.01)).verdict is Verdict.HOLDS
    assert ask(triangle(vmax=[1.02 - 1e-9, 1.1, 1.1]), box(0.01)).verdict is Verdict.HOLDS
    found = ask(triangle(vmax=[1.019, 1.1, 1.1]), box(0.01))
    assert found.verdict is Verdict.BROKEN and found.violation is not None and found.violation.limit.given


def test_loads_without_a_power_flow() -> None:
    """The line carries 2 p.u.: beyond there is none, and near it none is followed to all loads."""
    line = network(2, [(0, 1)], [0], pd=[0, 2.4], r=0, x=0.25, vmin=0.1)
    found = check_dispatch(line, [0], [1, 1], Loads())
    assert (found.verdict, found.reason) == (Verdict.UNKNOWN, Reason.NO_FLOW) and "no power flow" in found.unknown
    assert found.point is None and found.worst_margin is not None and found.worst_margin.certified == -math.inf
    close = network(2, [(0, 1)], [0], pd=[0, 1.9], r=0, x=0.25, vmin=0.1)
    found = check_dispatch(close, [0], [1, 1], box(0.1), timeout=2)
    assert found.verdict is Verdict.UNKNOWN and found.unknown


def test_boxes_are_cut_where_one_enclosure_is_not_enough() -> None:
    """A limit between what one enclosure certifies and what is attained is proved by branch and bound, without a gap at the seams."""
    case, loads = triangle(), box(0.5)
    found = ask(case, loads)
    free = [each for each in found.margins if each.limit.kind == "voltage" and not each.limit.given]
    (margin,) = free
    assert margin.attacked - margin.certified > 1e-5
    level = case.buses.vmin[2] + margin.certified + 0.7 * (margin.attacked - margin.certified)
    tight = replace(case, buses=replace(case.buses, vmin=np.array([0.9, 0.9, level]), vmax=np.full(3, 1.2)))
    tight = replace(tight, branches=replace(tight.branches, rate=np.full(3, math.inf)))
    proved = ask(tight, loads, timeout=30)
    assert proved.verdict is Verdict.HOLDS and proved.boxes > 1
    beyond = replace(tight, buses=replace(tight.buses, vmin=np.array([0.9, 0.9, case.buses.vmin[2] + margin.attacked + 1e-5])))
    assert ask(beyond, loads, timeout=30).verdict is Verdict.BROKEN


def test_boxes_are_linked_where_no_enclosure_of_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roots that are too wide are cut before anything is enclosed; the parts are proved to be of one power flow, or nothing is."""
    case, loads = network(2, [(0, 1)], [0], pd=[0, 1.0], r=0, x=0.25, vmin=0.3, vmax=1.2), box(0.7)
    found = check_dispatch(case, [0], [1, 1], loads, timeout=20)
    assert found.verdict is Verdict.HOLDS and found.boxes >= 3
    monkeypatch.setattr(search, "all_one", lambda *args: False)
    unlinked = check_dispatch(case, [0], [1, 1], loads, timeout=20)
    assert unlinked.verdict is Verdict.UNKNOWN and "one solution" in unlinked.unknown


def test_a_limit_exceeded_by_less_than_the_tolerance_is_neither() -> None:
    """No proof can be had, and no violation: with given loads and with a box, at once."""
    for loads in (Loads(), box(0.01)):
        found = ask(triangle(), loads)
        margin = next(each for each in found.margins if str(each.limit) == "voltage of bus 3")
        case = triangle(vmin=[0.9, 0.9, 0.9 + margin.attacked + 5e-7])
        between = ask(case, loads)
        assert between.verdict is Verdict.UNKNOWN and between.reason is Reason.UNDECIDED and between.unknown


def test_what_is_left_open_is_in_no_margin() -> None:
    """Certified margins of a search that ended early hold in all of the box."""
    case, loads = triangle(), box(0.5)
    margin = next(each for each in ask(case, loads).margins if str(each.limit) == "voltage of bus 3")
    beyond = triangle(vmin=[0.9, 0.9, 0.9 + margin.attacked + 1e-5], rate=math.inf, vmax=1.2)
    found = ask(beyond, loads, timeout=30, samples=0)
    again = ask(beyond, loads, timeout=30, samples=3000)
    assert found.verdict is again.verdict is Verdict.BROKEN
    for one, other in zip(found.margins, again.margins, strict=True):
        assert one.certified <= other.attacked + 1e-9


def nose(**values: Any) -> Case:
    """A line that carries 2 p.u., with a load of 1 p.u."""
    return network(2, [(0, 1)], [0], pd=[0, 1.0], r=0, x=0.25, vmax=1.2, **values)


def test_a_violation_is_followed_where_no_enclosure_of_all_is_found() -> None:
    """At 1.97 p.u. the voltage is 0.78: proved by way of enclosures along the line, each with its neighbours' ends."""
    found = check_dispatch(nose(vmin=0.85), [0], [1, 1], box(0.97), timeout=30)
    one = found.violation
    assert found.worst_margin is not None and found.worst_margin.certified == -math.inf  # the box as a whole is not enclosed
    assert one is not None and one.proved and one.continuous and one.reproduced and found.trust is Trust.ROUNDED


def test_what_is_not_the_base_cases_solution_violates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attack that jumps to the low-voltage solution is not believed, though pypower reproduces that point."""
    from milpverify.acopf.dispatch import attack

    real = attack.many

    def jumping(grid: Any, p: Any, x: Any, inverse: Any) -> Any:
        found, good = real(grid, p, x, inverse)
        for k, row in enumerate(p):
            start = found[k].copy()
            start[[1, 3]] = -1.3, 0.3
            low = newton.solve(grid, row, start)
            if low is not None:
                found[k] = low
        return found, good

    monkeypatch.setattr(attack, "many", jumping)
    found = check_dispatch(nose(vmin=0.85), [0], [1, 1], box(0.1), timeout=5)
    assert found.verdict is Verdict.HOLDS and all(each.certified <= each.attacked for each in found.margins)
    wide = check_dispatch(nose(vmin=0.4), [0], [1, 1], box(0.8), timeout=20)  # here no enclosure of all tells them apart
    assert wide.boxes > 1 and wide.verdict is Verdict.HOLDS and all(each.certified <= each.attacked + 1e-9 for each in wide.margins)


def test_proofs_that_loads_contradict_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    real = limits.Limits.enclosed

    def optimistic(self: Any, enclosure: Any) -> Any:
        found = real(self, enclosure)
        return replace(found, margin=found.margin + 0.01)

    monkeypatch.setattr(limits.Limits, "enclosed", optimistic)
    with pytest.raises(Contradiction, match="was proved, but loads were found"):
        check_dispatch(nose(vmin=0.85), [0], [1, 1], box(0.1), timeout=5)


def test_a_run_that_is_over_says_so() -> None:
    deadline = Deadline(0.0)
    found = check_dispatch(triangle(vmin=[0.9, 0.9, 1.0]), [0, 0.4], [1.02, 1.02, 1], box(0.9), deadline=deadline)
    assert found.verdict in (Verdict.UNKNOWN, Verdict.BROKEN)
    assert found.verdict is Verdict.BROKEN or found.reason is Reason.TIMEOUT


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pg": [0.0]}, "pg"),
        ({"vm": [1.0, math.nan, 1.0]}, "vm"),
        ({"vm": {1: 1.0, 2: 1.0}}, "vm"),
        ({"vm": [1.0, -1.0, 1.0]}, "above 0"),
        ({"va": [0.0]}, "va"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"samples": -1}, "samples"),
        ({"timeout": -1.0}, "timeout"),
        ({"record": "rows.csv"}, "record"),
    ],
)
def test_bad_input(change: dict[str, Any], word: str) -> None:
    options: dict[str, Any] = {"pg": [0.0, 0.4], "vm": [1.0, 1.0, 1.0], **change}
    with pytest.raises(InvalidInput, match=word):
        check_dispatch(triangle(), **options)


def test_magnitudes_by_bus_number() -> None:
    by_number = check_dispatch(triangle(), [0, 0.4], {3: 1.0, 1: 1.02, 2: 1.01}, samples=10)
    assert by_number.flow is not None and by_number.flow[3:5].tolist() == [1.02, 1.01]


def test_methods_side_by_side() -> None:
    found = compare_dispatch(triangle(), [0, 0.4], [1.02, 1.02, 1], box(0.2), gap=1e-4, timeout=20)
    assert found.closed and set(found.seconds) == {"sampling", "relaxation", "branch and bound"}
    for row in found.rows:
        assert row.relaxation <= row.lower + 1e-12 and row.lower <= row.upper <= row.sampled + 1e-12 and row.upper - row.lower <= 1.0001e-4
    assert found.to_csv().count("\n") == len(found.rows) + 1 and "branch and bound" in str(found)
    short = compare_dispatch(triangle(), [0, 0.4], [1.02, 1.02, 1], box(0.2), samples=10, tuning=(LoadTuning(boxes=3),))
    assert not short.closed and 3 <= short.boxes < found.boxes


def test_nothing_is_proved_where_nothing_is_enclosed() -> None:
    found = ask(triangle(), box(0.05), samples=10, timeout=2.0, tuning=(FlowTuning(widest=1e-9), LoadTuning(boxes=5)))
    assert found.verdict is Verdict.UNKNOWN and found.worst_margin is not None and found.worst_margin.certified == -math.inf


def test_margins_are_drawn(tmp_path: Any) -> None:
    found = ask(triangle(), box(0.05))
    figure = plot_certified(found, tmp_path / "margins.png")
    assert (tmp_path / "margins.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    dots = {one.get_gid(): len(one.get_offsets()) for one in axes.collections if one.get_gid() and "certified" not in one.get_gid()}
    assert sum(dots.values()) >= len([each for each in found.margins if each.limit.kind.startswith("flow")])
    assert any(text.get_text().count("..") for text in axes.texts)


@pytest.mark.parametrize(
    ("name", "relative", "verdict"), [("14_ieee", 0.05, "HOLDS"), ("5_pjm", 0.04, "HOLDS"), ("14_ieee", 0.1, "BROKEN")]
)
def test_dispatches_of_pglib(name: str, relative: float, verdict: str) -> None:
    point = dispatch(name)
    found = check_dispatch(point.case, point.pg, point.vm, box(relative), timeout=30, samples=200)
    assert found.verdict is Verdict[verdict]
