"""Outcomes of several groups as one."""

from __future__ import annotations

from dataclasses import replace

from milpverify.result import Reason, Trust
from milpverify.search.outcome import SearchOutcome, together

CLOSED = SearchOutcome(
    True, 0.5, Trust.ROUNDED, detail={"method": "input split", "subproblems": 3, "open": 0, "leaves": 4, "oracle_tasks": 1}
)
OPEN = SearchOutcome(
    False, -0.25, Trust.SOLVER, reason=Reason.DELTA, note="near", detail={"subproblems": 5, "open": 2, "leaves": 9, "oracle_tasks": 1}
)


def test_all_are_closed_or_the_open_one_speaks_for_them() -> None:
    for parts in ([CLOSED, OPEN], [OPEN, CLOSED]):
        both = together(parts)
        assert (both.closed, both.lower_bound, both.trust) == (False, -0.25, Trust.SOLVER)
        assert (both.reason, both.note) == (Reason.DELTA, "near")
    assert together([CLOSED, replace(CLOSED, lower_bound=0.125)]) == replace(together([CLOSED, CLOSED]), lower_bound=0.125)
    assert together([OPEN]) is OPEN


def test_what_belongs_to_a_group_is_summed_and_what_the_run_shares_is_not() -> None:
    assert together([CLOSED, OPEN]).detail == {"method": "input split", "subproblems": 8, "open": 2, "leaves": 9, "oracle_tasks": 1}
