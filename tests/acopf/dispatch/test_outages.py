"""N-1: the table, islands by name, rows that are written as they come and gone on from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from power_cases import network

from milpverify.acopf.case import Case
from milpverify.acopf.dispatch import checking
from milpverify.acopf.dispatch.checking import check_dispatch
from milpverify.acopf.dispatch.outages import chosen, cut_off, without
from milpverify.acopf.dispatch.result import OutageRow, Outages
from milpverify.acopf.loads import box
from milpverify.acopf.result import Verdict
from milpverify.errors import InvalidInput
from milpverify.result import Event

pytest.importorskip("pypower.api")


def spur() -> Case:
    """A ring of four buses with a double line, and a fifth bus at the end of a spur."""
    return network(
        5, [(0, 1), (1, 2), (2, 3), (3, 0), (0, 1), (3, 4)], [0, 2], pd=[0, 0.5, 0.1, 0.4, 0.2], qd=[0, 0.1, 0, 0.1, 0.05], rate=0.9,
        vmin=0.96, pmax=2, qmin=-1, qmax=1,
    )  # fmt: skip


def ask(**options: Any) -> Outages:
    return check_dispatch(spur(), [0, 0.3], [1.02, 1, 1.01, 1, 1], box(0.05), samples=100, **options)


def test_the_table() -> None:
    told: list[Event] = []
    found = ask(outages=["all"], on_event=told.append)
    verdicts = [row.verdict for row in found.rows]
    assert verdicts[5] is Verdict.ISLANDED and found.rows[5].message == "cut off: bus 5"
    assert found.intact.verdict is Verdict.HOLDS and set(verdicts[:5]) <= {Verdict.HOLDS, Verdict.BROKEN}
    assert found.verdict is (Verdict.BROKEN if Verdict.BROKEN in verdicts else Verdict.UNKNOWN)
    for row in found.rows[:5]:
        result = found.results[row.row]
        assert result.outage == row.branch and len(result.case.branches) == 5
        assert row.certified <= row.attacked + 1e-9
        assert row.verdict is not Verdict.BROKEN or (row.proved and row.reproduced and row.attacked < 0)
    assert [event.data["done"] for event in told if event.phase == "outages"] == list(range(6))
    assert (
        "5 outages" not in found.headline
        and "6 outages" in str(found)
        and json.loads(found.to_json())["outages"][5]["verdict"] == "islanded"
    )


def test_a_limit_that_only_an_outage_breaks() -> None:
    tight = network(
        3, [(0, 1), (0, 1), (1, 2)], [0], pd=[0, 0.5, 0.4], qd=[0, 0.1, 0.1], rate=[0.7, 0.7, 0.7], vmin=0.9, pmax=2, qmin=-1, qmax=1
    )
    found = check_dispatch(tight, [0], [1.02, 1, 1], box(0.02), samples=50, outages=[1, (2, 3)])
    assert [row.verdict for row in found.rows] == [Verdict.BROKEN, Verdict.ISLANDED] and found.intact.verdict is Verdict.HOLDS
    violation = found.results[1].violation
    assert violation is not None and violation.limit.kind in ("flow from", "flow to") and violation.reproduced and violation.continuous


def test_rows_are_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, counted = tmp_path / "rows.csv", [0]
    real = checking.Question.ask

    def counting(*args: Any, **options: Any) -> Any:
        counted[0] += 1
        return real(*args, **options)

    monkeypatch.setattr(checking.Question, "ask", counting)
    first = ask(outages=[1, 2], record=path)
    assert counted[0] == 3
    path.write_text(path.read_text() + "half a li")
    again = ask(outages=["all"], record=path)
    assert counted[0] == 3 + 1 + 3  # the intact network, and three that are neither held nor islanded
    assert again.rows[:2] == tuple(OutageRow.read(list(row.cells)) for row in first.rows)
    assert len(path.read_text().splitlines()) == 7
    with pytest.raises(InvalidInput, match="another case"):
        check_dispatch(spur(), [0, 0.2], [1.02, 1, 1.01, 1, 1], box(0.05), outages=["all"], record=path)
    path.write_text("a,b\n")
    with pytest.raises(InvalidInput, match="no table"):
        ask(outages=["all"], record=path)
    with pytest.raises(InvalidInput, match="cannot be used"):
        ask(outages=["all"], record=tmp_path)


def test_an_outage_that_time_ended_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    wide = check_dispatch(spur(), [0, 0.3], [1.02, 1, 1.01, 1, 1], box(0.9), timeout=0.0, samples=0, outages=[1], record=path)
    rows = len(path.read_text().splitlines()) - 1
    assert rows == (wide.rows[0].verdict is not Verdict.UNKNOWN)


@pytest.mark.parametrize(
    ("outages", "found"), [(["all"], list(range(6))), ("all", list(range(6))), ([6, 1], [5, 0]), ([(2, 1)], [0, 4]), ([1, (1, 2)], [0, 4])]
)
def test_branches_by_row_and_by_buses(outages: Any, found: list[int]) -> None:
    assert chosen(spur(), outages) == found


@pytest.mark.parametrize("outages", [[7], [(1, 3)], ["some"], [1.5]])
def test_branches_that_there_are_none_of(outages: Any) -> None:
    with pytest.raises(InvalidInput, match="outages"):
        chosen(spur(), outages)


def test_what_is_cut_off() -> None:
    assert [cut_off(without(spur(), k)).tolist() for k in range(6)] == [[], [], [], [], [], [4]]


def test_rows_are_read_as_they_were_written() -> None:
    row = OutageRow(3, "branch 1-2 (row 3)", Verdict.BROKEN, -0.1, "a", -math.pi, "b, c", True, False, 1.25, "why")
    assert OutageRow.read(list(row.cells)) == row
