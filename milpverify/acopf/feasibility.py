"""Whether a network has an operating point: a point that is checked, or a proof that there is none."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from milpverify.acopf.asking import Clock, check_tolerance, deadline_of, is_power_of_two, why_ended
from milpverify.acopf.candidates import Judged, QuestionTuning, in_common, judge, start_of, with_existence
from milpverify.acopf.loads import Loads
from milpverify.acopf.points import local
from milpverify.acopf.points.existence import ExistenceTuning
from milpverify.acopf.points.polish import PointTuning
from milpverify.acopf.proving.proof import Statement
from milpverify.acopf.proving.prover import Proved, Prover, claim
from milpverify.acopf.result import Feasibility, Reason, Verdict
from milpverify.config import SearchOptions
from milpverify.errors import Contradiction, InvalidInput
from milpverify.result import Trust

if TYPE_CHECKING:
    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.point import Point
    from milpverify.config import Deadline
    from milpverify.tuning import Tuning


def check_feasibility(
    case: Case,
    loads: Loads | None = None,
    quantifier: str | None = None,
    tolerance: float = 1e-6,
    timeout: float | None = None,
    *,
    solver: str = "highs",
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Feasibility:
    """Whether the network has an operating point at the loads: within all limits, all balances met.

    FEASIBLE comes with a point that violates nothing by more than `tolerance`, judged in ball arithmetic on the case's own data, which an
    independent power flow (pypower) reproduces; INFEASIBLE with a proof, checked in rationals, that every point violates something by more
    than twice the tolerance. Its `point` is then one that violates little.

    Args:
        case: the network.
        loads: those of the case unless others are given.
        quantifier: of a box of loads "exists" asks whether any load in it has an operating point; it is required there. INFEASIBLE then
            rules out every load of the box.
        tolerance: p.u. and rad.
        timeout: seconds of wall clock; None for no limit.
        solver: "highs" for linear programs alone, which has been fastest everywhere; "scip" or "gurobi" are asked about the products of
            voltages, too, on trust. Where one is missing or its licence does not do, the search goes on without it, and says so.
        deadline: the time limit of a larger run, instead of `timeout`.
        on_event: told of the progress.
        tuning: numbers other than the defaults, one dataclass per theme: `QuestionTuning`, `PointTuning`, `ExistenceTuning`,
            `ProverTuning`, `TighteningTuning`.

    Raises:
        InvalidInput: a box of loads without its quantifier, a tolerance or a time limit out of range.
        SolverUnavailable: pypower is missing.
        Contradiction: a point was found where there is proved to be none.
    """
    loads = loads or Loads()
    _check_quantifier(loads, quantifier)
    check_tolerance(tolerance)
    deadline, clock, options = deadline_of(timeout, deadline), Clock(), SearchOptions(tuning=tuning)
    looking = options.tuned(PointTuning)
    found: Judged | None = None
    nearest: Point | None = None
    statement = claim(Statement.INFEASIBLE, loads.ranges(case), 2 * tolerance, 0.0)

    def look(point: Point | None) -> None:
        nonlocal found, nearest
        found = found or judge(point, tolerance)
        if point is not None and (nearest is None or point.violation < nearest.violation):
            nearest = point

    with Prover(case, statement, deadline, on_event, solver, options=options) as prover:
        with clock.phase("point"):
            look(local.cheapest(case, loads, attempts=1, deadline=deadline, tuning=looking))
            if found is None:
                look(local.least_violation(case, loads, attempts=2, deadline=deadline, tuning=looking))
        if found is None:
            with clock.phase("relaxation"):
                prover.root()
            with clock.phase("proof"):

                def on_point(solution: Array, boxes: int) -> None:
                    if is_power_of_two(boxes) and not (prover.refuted or deadline.expired()):
                        start = start_of(case, prover.relaxation, solution)
                        look(local.least_violation(case, loads, start=start, attempts=1, deadline=deadline, tuning=looking))

                prover.search(lambda: math.inf if found is None else -math.inf, on_point)
        with clock.phase("recheck"):
            proved = prover.proved()
        if found is not None:
            if proved.refuted:
                told = f"{case.name}: no point violates as little as {2 * tolerance:g} p.u. was proved ({proved.trust.value})"
                raise Contradiction(f"{told}, but one violates {found.point.violation:.3g} p.u.")
            with clock.phase("existence"):
                found = with_existence(found, deadline, options.tuned(ExistenceTuning))
            verdict, reason = Verdict.FEASIBLE, Reason.POINT
        elif proved.refuted:
            with clock.phase("violation"):
                proved = _stronger(prover, proved, nearest, deadline, options)
            verdict, reason = Verdict.INFEASIBLE, Reason.PROVED
        else:
            verdict, reason = Verdict.UNKNOWN, why_ended(deadline, prover.out_of_time)
        violated = -math.inf
        if verdict is Verdict.INFEASIBLE:
            violated = 2 * tolerance if proved.proof is None else proved.proof.tolerance
        common = in_common(case, found, prover, proved, nearest)
    if found is not None:
        common["trust"] = Trust.EXACT  # it rests on the point, whatever was proved meanwhile
    return Feasibility(
        **common,
        loads=loads,
        reason=reason,
        seconds=clock.seconds,
        verdict=verdict,
        tolerance=tolerance,
        violation_bound=violated,
    )


def _check_quantifier(loads: Loads, quantifier: str | None) -> None:
    if quantifier not in (None, "exists"):
        raise InvalidInput(f"quantifier: 'exists' is the only one that is answered, not {quantifier!r}")
    if loads.is_box and quantifier is None:
        raise InvalidInput("a box holds many loads: say quantifier='exists' to ask whether any of them has an operating point")


def _stronger(prover: Prover, proved: Proved, nearest: Point | None, deadline: Deadline, options: SearchOptions) -> Proved:
    """A proof that points violate something by even more, where the relaxation itself shows it at once."""
    if proved.proof is None or nearest is None or not math.isfinite(nearest.violation):
        return proved
    tuning, loads = options.tuned(QuestionTuning), proved.proof.loads
    quick = deadline.within(tuning.more)

    def attempt(share: float) -> Proved | None:
        tolerance = share * nearest.violation
        if not proved.proof or not proved.proof.tolerance < tolerance <= tuning.largest_violation or quick.expired():
            return None
        statement = claim(Statement.INFEASIBLE, loads, tolerance, 0.0)
        with Prover(prover.case, statement, quick, process=prover.process, options=options) as other:
            other.root()
            return other.proved() if other.refuted else None

    for share in tuning.shares:
        if (found := attempt(share)) is not None and found.proof is not None:
            for larger in tuning.larger:
                if larger > share and (better := attempt(larger)) is not None and better.proof is not None:
                    return better
            return found
    return proved
