"""By how much all loads of a network can grow together, between proved bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from milpverify.acopf.asking import Clock, check_gap, deadline_of, is_power_of_two, why_ended
from milpverify.acopf.candidates import Judged, QuestionTuning, in_common, judge, start_of, with_existence
from milpverify.acopf.loads import Loads, scaled
from milpverify.acopf.points import local
from milpverify.acopf.points.existence import ExistenceTuning
from milpverify.acopf.points.polish import PointTuning
from milpverify.acopf.proving.proof import Statement
from milpverify.acopf.proving.prover import Prover, claim
from milpverify.acopf.result import TOLERANCE, Loadability, Reason
from milpverify.config import SearchOptions
from milpverify.errors import Contradiction, InvalidInput

if TYPE_CHECKING:
    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.point import Point
    from milpverify.config import Deadline
    from milpverify.tuning import Tuning


def max_loadability(
    case: Case,
    gap: float = 1e-4,
    timeout: float | None = None,
    *,
    solver: str = "highs",
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Loadability:
    """The largest factor by which all active and reactive loads can be multiplied.

    No operating point exists for any factor above `upper` (proved; see `certify_cost`), and `point` carries the factor `lower`, up to a
    violation of 1e-6 p.u. (rad), or exactly where `lower_is_proved`.

    Args:
        case: the network.
        gap: the run ends when (upper - lower) / upper is at most that.
        timeout: seconds of wall clock; None for no limit. When it is over the bounds are what they are.
        solver: "highs" for linear programs alone, which has been fastest everywhere; "scip" or "gurobi" are asked about the products of
            voltages, too, on trust. Where one is missing or its licence does not do, the search goes on without it, and says so.
        deadline: the time limit of a larger run, instead of `timeout`.
        on_event: told of the progress.
        tuning: numbers other than the defaults, one dataclass per theme: `QuestionTuning`, `PointTuning`, `ExistenceTuning`,
            `ProverTuning`, `TighteningTuning`.

    Raises:
        InvalidInput: a case without loads, a gap or a time limit out of range.
        SolverUnavailable: pypower is missing.
        Contradiction: a proved point carries more than what was proved of all.
    """
    check_gap(gap)
    if not (case.buses.pd.any() or case.buses.qd.any()):
        raise InvalidInput(f"{case.name}: no bus has a load that could grow")
    deadline, clock, options = deadline_of(timeout, deadline), Clock(), SearchOptions(tuning=tuning)
    best: Judged | None = None
    lower = -math.inf

    def look(start: Point | None, attempts: int) -> None:
        nonlocal best, lower
        found = _highest(case, start, attempts, gap, deadline, options)
        if found is not None and found[0] > lower:
            lower, best = found

    def target() -> float:
        """The bound of minus the factor that closes the gap: upper - lower <= gap upper."""
        return -lower / (1 - options.tuned(QuestionTuning).aim * min(gap, 0.5)) if lower > 0.0 else math.inf

    statement = claim(Statement.GROWTH, Loads().ranges(case), 0.0, 0.0)
    with Prover(case, statement, deadline, on_event, solver, options=options) as prover:
        with clock.phase("point"):
            look(None, 3)
        with clock.phase("relaxation"):
            if best is not None and lower > 0.0:
                prover.touch(best.point)
                prover.cut(lower)
            prover.root(target())
        with clock.phase("proof"):

            def on_point(solution: Array, boxes: int) -> None:
                if is_power_of_two(boxes) and not deadline.expired() and prover.bound < target():
                    look(start_of(case, prover.relaxation, solution), 1)

            prover.search(target, on_point)
        with clock.phase("recheck"):
            proved = prover.proved()
        upper = proved.value
        if upper < lower:
            if best is not None and best.is_proved:
                told = f"{case.name}: a factor of at most {upper:.17g} was proved ({proved.trust.value})"
                raise Contradiction(f"{told}, but an exact operating point carries {lower:.17g}")
            upper = lower  # of a point that violates something by up to the tolerance, which no operating point carries as much as
    closed = math.isfinite(upper) and upper - lower <= gap * abs(upper)
    return Loadability(
        **in_common(case, best, prover, proved),
        loads=Loads() if best is None else scaled(lower),
        reason=Reason.GAP if closed else Reason.PROVED if proved.refuted and best is None else why_ended(deadline, prover.out_of_time),
        seconds=clock.seconds,
        lower=lower,
        upper=upper,
        lower_is_proved=best is not None and best.is_proved,
    )


def _highest(
    case: Case, start: Point | None, attempts: int, gap: float, deadline: Deadline, options: SearchOptions
) -> tuple[float, Judged] | None:
    """The highest factor found and its point; a little inside the limits, where it can be proved for `tuning.worse` of the gap at most."""
    tuning, looking, proving = options.tuned(QuestionTuning), options.tuned(PointTuning), options.tuned(ExistenceTuning)
    found = local.highest_load(case, start=start, attempts=attempts, deadline=deadline, tuning=looking)
    judged = None if found is None else judge(found[1], TOLERANCE)
    if judged is None and start is None:  # the case's own loads will do, or none at all
        for factor in (1.0, 0.0):
            point = local.least_violation(case, scaled(factor), attempts=1, deadline=deadline, tuning=looking)
            if (judged := judge(point, TOLERANCE)) is not None:
                found = factor, judged.point
                break
    if found is None or judged is None:
        return None
    if not deadline.expired():
        judged = with_existence(judged, deadline, proving)
    if judged.is_proved or deadline.expired():
        return found[0], judged
    inner = local.highest_load(case, shrink=tuning.inside, start=found[1], attempts=1, deadline=deadline, tuning=looking)
    strict = None if inner is None else judge(inner[1], TOLERANCE)
    if inner is None or strict is None or deadline.expired() or inner[0] < found[0] * (1 - tuning.worse * gap):
        return found[0], judged
    strict = with_existence(strict, deadline, proving)
    return (inner[0], strict) if strict.is_proved else (found[0], judged)
