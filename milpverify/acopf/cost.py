"""The least cost of operating a network, between proved bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from milpverify.acopf.asking import Clock, check_gap, closing, deadline_of, is_power_of_two, refuse_box, why_ended
from milpverify.acopf.candidates import Judged, QuestionTuning, in_common, judge, start_of, with_existence
from milpverify.acopf.loads import Loads
from milpverify.acopf.points import local
from milpverify.acopf.points.existence import ExistenceTuning
from milpverify.acopf.points.polish import PointTuning
from milpverify.acopf.proving.proof import Statement
from milpverify.acopf.proving.prover import Prover, claim
from milpverify.acopf.result import TOLERANCE, Cost, Reason
from milpverify.config import SearchOptions
from milpverify.errors import Contradiction

if TYPE_CHECKING:
    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.point import Point
    from milpverify.config import Deadline
    from milpverify.tuning import Tuning


def certify_cost(
    case: Case,
    loads: Loads | None = None,
    gap: float = 1e-4,
    timeout: float | None = None,
    *,
    solver: str = "highs",
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Cost:
    """The least cost in $/h: no operating point costs less than `lower`, and `point` costs `upper`.

    `lower` is proved, by multipliers of linear programs over a tree of boxes that are checked in rationals. `upper` is proved where an
    exact operating point strictly inside all limits is known to lie beside `point`; else it is what a point costs that violates nothing by
    more than 1e-6 p.u. (rad), and could be a little below the true optimum.

    Args:
        case: the network.
        loads: those of the case unless others are given.
        gap: the run ends when (upper - lower) / |upper| is at most that; where the least cost is 0, or less than a millionth of what
            everything costs at its most, that millionth is taken for |upper|.
        timeout: seconds of wall clock; None for no limit. When it is over the bounds are what they are.
        solver: "highs" for linear programs alone, which has been fastest everywhere; "scip" or "gurobi" are asked about the products of
            voltages, too, on trust. Where one is missing or its licence does not do, the search goes on without it, and says so.
        deadline: the time limit of a larger run, instead of `timeout`.
        on_event: told of the progress.
        tuning: numbers other than the defaults, one dataclass per theme: `QuestionTuning`, `PointTuning`, `ExistenceTuning`,
            `ProverTuning`, `TighteningTuning`.

    Raises:
        InvalidInput: a box of loads, a gap or a time limit out of range.
        SolverUnavailable: pypower is missing.
        Contradiction: a proved point is cheaper than what was proved of all.
    """
    loads = loads or Loads()
    refuse_box(loads, "certify_cost")
    check_gap(gap)
    deadline, clock, options = deadline_of(timeout, deadline), Clock(), SearchOptions(tuning=tuning)
    numbers = options.tuned(QuestionTuning)
    best: Judged | None = None
    upper = math.inf

    def look(start: Point | None, attempts: int) -> None:
        nonlocal best, upper
        found = _cheapest(case, loads, start, attempts, gap, deadline, options)
        if found is not None and (best is None or _cost(found) < upper - numbers.better * abs(upper)):
            best, upper = found, _cost(found)

    def target() -> float:
        return closing(upper, numbers.aim * gap, prover.relaxation.unit)

    with Prover(case, claim(Statement.COST, loads.ranges(case), 0.0, math.inf), deadline, on_event, solver, options=options) as prover:
        with clock.phase("point"):
            look(None, 3)
        with clock.phase("relaxation"):
            if best is not None:
                prover.touch(best.point)
                prover.cut(upper)
            prover.root(target())
        with clock.phase("proof"):

            def on_point(solution: Array, boxes: int) -> None:
                if is_power_of_two(boxes) and not deadline.expired() and prover.bound < target():
                    look(start_of(case, prover.relaxation, solution), 1)

            prover.search(target, on_point)
        with clock.phase("recheck"):
            proved = prover.proved()
        lower = math.inf if proved.refuted and best is None else proved.value
        if best is not None and lower > upper:
            if best.is_proved:
                told = f"{case.name}: a least cost of at least {lower:.17g} was proved ({proved.trust.value})"
                raise Contradiction(f"{told}, but an exact operating point costs at most {upper:.17g}")
            lower = upper  # of a point that violates something by up to the tolerance, which no operating point is as cheap as
        closed = math.isfinite(upper) and lower >= closing(upper, gap, prover.relaxation.unit)
    return Cost(
        **in_common(case, best, prover, proved),
        loads=loads,
        reason=Reason.GAP if closed else Reason.PROVED if proved.refuted and best is None else why_ended(deadline, prover.out_of_time),
        seconds=clock.seconds,
        lower=lower,
        upper=upper,
        upper_is_proved=best is not None and best.is_proved,
    )


def _cost(judged: Judged) -> float:
    return judged.existence.cost if judged.existence is not None and judged.is_proved else judged.point.cost


def _cheapest(
    case: Case, loads: Loads, start: Point | None, attempts: int, gap: float, deadline: Deadline, options: SearchOptions
) -> Judged | None:
    """The cheapest point found; a little inside its limits, where it can be proved for no more than `tuning.worse` of the gap."""
    tuning, looking, proving = options.tuned(QuestionTuning), options.tuned(PointTuning), options.tuned(ExistenceTuning)
    found = judge(local.cheapest(case, loads, start=start, attempts=attempts, deadline=deadline, tuning=looking), TOLERANCE)
    if found is None and start is None:  # any will do
        found = judge(local.least_violation(case, loads, attempts=2, deadline=deadline, tuning=looking), TOLERANCE)
    if found is None or deadline.expired():
        return found
    found = with_existence(found, deadline, proving)
    if found.is_proved or deadline.expired():
        return found
    inside = local.cheapest(case, loads, shrink=tuning.inside, start=found.point, attempts=1, deadline=deadline, tuning=looking)
    inner = judge(inside, TOLERANCE)
    if inner is None or deadline.expired() or inner.point.cost > found.point.cost + tuning.worse * gap * abs(found.point.cost):
        return found
    inner = with_existence(inner, deadline, proving)
    return inner if inner.is_proved else found
