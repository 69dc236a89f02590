"""When linear programs are asked: not before there is time to spare, on while they pay, no more when they do not."""

from __future__ import annotations

from milpverify.search.solver.pace import Pace, ProgramTuning

TUNING = ProgramTuning()


def test_without_knowledge_programs_take_a_small_share_of_the_time() -> None:
    pace = Pace(first=0.1)
    assert not pace.pays(10.0, 100)
    assert pace.spare(0.5 * 0.1 / TUNING.share) < pace.mean_seconds <= pace.spare(2 * 0.1 / TUNING.share)
    pace.note(5.0, closed=False, gain=0.5)  # it waited for the process
    assert pace.mean_seconds == 0.1 and pace.mean_gain == 0.5 and pace.spare(5.0 / TUNING.share) <= 0


def test_closures_pay_as_long_as_the_tree_takes_longer_for_what_they_save() -> None:
    pace = Pace(first=0.1)
    for _ in range(30):
        pace.note(0.1, closed=True, gain=0.5)
    assert pace.pays(0.11 / TUNING.worth * 100, 100) and not pace.pays(0.09 / TUNING.worth * 100, 100)
    for _ in range(30):
        pace.note(0.1, closed=False, gain=0.0)
    assert not pace.pays(0.11 / TUNING.worth * 100, 100) and pace.mean_gain < 0.05


def test_by_counts_no_clock_decides() -> None:
    pace = Pace()
    assert pace.due_by_counts(TUNING.turn) and not pace.due_by_counts(TUNING.turn - 1) and not pace.pays_by_counts()
    pace.note(1e9, closed=True, gain=0.1)
    assert pace.pays_by_counts() and not pace.due_by_counts(TUNING.turn)
    pace.note(0.0, closed=False, gain=0.0)
    pace.note(0.0, closed=False, gain=0.0)
    assert not pace.pays_by_counts()
