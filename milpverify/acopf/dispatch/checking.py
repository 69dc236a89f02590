"""Whether a dispatch holds for all loads of a box: `check_dispatch`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, overload

import numpy as np

from milpverify.acopf.asking import Clock, check_tolerance, deadline_of, why_ended
from milpverify.acopf.dispatch.attack import LoadTuning
from milpverify.acopf.dispatch.grid import FlowTuning, Grid
from milpverify.acopf.dispatch.limits import limits_of
from milpverify.acopf.dispatch.outages import Record, chosen, fingerprint, one_by_one
from milpverify.acopf.dispatch.policy import Fixed, box_of
from milpverify.acopf.dispatch.result import Dispatched, Margin, Outages
from milpverify.acopf.dispatch.search import Found, Search
from milpverify.acopf.dispatch.witness import point_of
from milpverify.acopf.loads import Loads
from milpverify.acopf.result import TOLERANCE, Reason, Verdict
from milpverify.config import SearchOptions
from milpverify.errors import Contradiction, InvalidInput
from milpverify.result import Event, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from milpverify.acopf.asking import OnEvent
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.dispatch.policy import Policy
    from milpverify.acopf.points.judgement import Constraint
    from milpverify.config import Deadline
    from milpverify.tuning import Tuning

NOISE: Final = 1e-7  # p.u. and rad: how far margins in plain float64 may be off


def vector(values: Any, names: Sequence[int], what: str) -> Array:
    """Numbers in an order, given in it or by name.

    Raises:
        InvalidInput: they are too many, too few, or not finite.
    """
    if isinstance(values, Mapping):
        by_name = {int(name): value for name, value in values.items()}
        if set(by_name) != set(names):
            raise InvalidInput(f"{what}: it names {len(by_name)} elements, not those of the case ({len(names)})")
        values = [by_name[name] for name in names]
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what}: {error}") from error
    if found.shape != (len(names),) or not np.isfinite(found).all():
        raise InvalidInput(f"{what}: {len(names)} finite numbers are needed, not shape {found.shape}")
    return found


@overload
def check_dispatch(
    case: Case,
    pg: Any,
    vm: Any,
    loads: Loads | None = None,
    timeout: float | None = None,
    *,
    outages: None = None,
    record: str | Path | None = None,
    va: Any = None,
    tolerance: float = TOLERANCE,
    samples: int = ...,
    seed: int = 0,
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Dispatched: ...


@overload
def check_dispatch(
    case: Case,
    pg: Any,
    vm: Any,
    loads: Loads | None = None,
    timeout: float | None = None,
    *,
    outages: Sequence[Any],
    record: str | Path | None = None,
    va: Any = None,
    tolerance: float = TOLERANCE,
    samples: int = ...,
    seed: int = 0,
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Outages: ...


def check_dispatch(
    case: Case,
    pg: Any,
    vm: Any,
    loads: Loads | None = None,
    timeout: float | None = None,
    *,
    outages: Sequence[Any] | None = None,
    record: str | Path | None = None,
    va: Any = None,
    tolerance: float = TOLERANCE,
    samples: int = 1000,
    seed: int = 0,
    deadline: Deadline | None = None,
    on_event: OnEvent | None = None,
    tuning: tuple[Tuning, ...] = (),
) -> Dispatched | Outages:
    """Whether a dispatch holds for every load of a box: whether the power flow exists and satisfies every limit of the case.

    Voltage magnitudes at buses with generators and the active generation but for that at the slack bus are set and stay what they are; the
    generators at the slack bus (the reference bus, or where it has none that of the unit with the widest range) take up the rest, and
    those at every bus the reactive power. The active and the reactive power of every load vary independently. What is proved is about
    the power flow that is continuous with the base case's, that of the loads in the middle of the box.

    Args:
        case: the network.
        pg: (g,) active generation, p.u., in the order of the generators in service; what is at the slack bus does not matter.
        vm: (n,) voltage magnitudes, p.u., in the order of the buses, or by bus number. What is not held is where Newton's method begins.
        loads: those of the case unless others are given; `acopf.box` for many.
        timeout: seconds of wall clock, with outages for each of them; None for no limit.
        outages: branches that are taken out one at a time: ["all"], rows of the case's branch table counted from 1, or pairs of bus
            numbers. The answer is then a table, the intact network's first. Each network's base case is what Newton's method finds from
            the intact one's voltages.
        record: a CSV file of these rows; those that it holds already are not asked again.
        va: (n,) angles, rad, where Newton's method begins; by default 0.
        tolerance: p.u. and rad: what is set may exceed its limits by that, and what exceeds one by no more is no violation.
        samples: random loads of the attack, beside corners and followed gradients.
        seed: of these.
        deadline: the time limit of a larger run, instead of `timeout`.
        on_event: told of the progress.
        tuning: numbers other than the defaults, one dataclass per theme: `LoadTuning`, `FlowTuning`.

    Raises:
        InvalidInput: something has the wrong size or is not finite, a magnitude is not above 0, or a tolerance or time is out of range.
        SolverUnavailable: pypower is missing.
        Contradiction: loads were found where a margin is below what was proved of all.
    """
    options = SearchOptions(tuning=tuning)
    grid, policy, start = dispatch_of(case, pg, vm, va, options.tuned(FlowTuning))
    question = Question(loads or Loads(), tolerance, samples, seed, options)
    if outages is None:
        if record is not None:
            raise InvalidInput("record: only outages have a table of rows")
        return question.ask(grid, policy, start, deadline_of(timeout, deadline), on_event)
    branches = chosen(case, outages)
    known = fingerprint(case, policy.pg, policy.vm, start, question.loads, tolerance, samples, seed)
    table = None if record is None else Record(record, known)
    whole = deadline_of(None, deadline)
    intact = question.ask(grid, policy, start, _share(whole, timeout), on_event)
    voltages = start if intact.flow is None else intact.flow

    def ask(reduced: Case, name: str) -> Dispatched:
        smaller = Grid(reduced, grid.tuning)
        return question.ask(smaller, Fixed(smaller, policy.pg, policy.vm), voltages, _share(whole, timeout), None, name)

    return Outages(intact, *one_by_one(case, branches, ask, table, on_event))


def dispatch_of(case: Case, pg: Any, vm: Any, va: Any, tuning: FlowTuning) -> tuple[Grid, Fixed, Array]:
    """The network, the dispatch, and where Newton's method begins (2n,), rad and p.u.

    Raises:
        InvalidInput: something has the wrong size or is not finite, or a magnitude is not above 0.
    """
    grid = Grid(case, tuning)
    pg, vm = vector(pg, range(len(case.generators)), "pg"), vector(vm, case.buses.number.tolist(), "vm")
    if not (vm > 0).all():
        raise InvalidInput("vm: voltage magnitudes must be above 0")
    angles = np.zeros(len(vm)) if va is None else vector(va, case.buses.number.tolist(), "va")
    return grid, Fixed(grid, pg, vm), np.concatenate([angles - angles[grid.slack], vm])


def _share(whole: Deadline, timeout: float | None) -> Deadline:
    return whole if timeout is None else whole.within(timeout)


class Question:
    """What all checks share; `options` hold the tuning numbers."""

    def __init__(self, loads: Loads, tolerance: float, samples: int, seed: int, options: SearchOptions = SearchOptions()) -> None:
        check_tolerance(tolerance)
        if samples < 0:
            raise InvalidInput(f"samples: must be at least 0, not {samples}")
        self.loads, self.tolerance, self.samples, self.seed, self.options = loads, tolerance, samples, seed, options

    def ask(
        self, grid: Grid, policy: Policy, start: Array | None, deadline: Deadline, on_event: OnEvent | None, outage: str = ""
    ) -> Dispatched:
        """The answer for one network and one policy; Newton's method begins at `start` (2n,), rad and p.u."""
        case, clock = grid.case, Clock()
        limits = limits_of(grid)
        tell = _teller(on_event)
        with clock.phase("search"):
            box, numbers = box_of(grid, self.loads), self.options.tuned(LoadTuning)
            search = Search(grid, limits, policy, box, self.tolerance, deadline, tell, numbers)
            found = search.run(start, self.samples, self.seed)
        verdict, reason = _verdict(found, deadline)
        attack, violation = found.attack, found.violation
        point = None if violation is None else violation.point
        if point is None and found.x is not None:
            loads = search.box.middle
            point = point_of(grid, found.x, policy.set_points(loads[None])[0][0], loads)
        attacked = np.full(len(limits.entries), np.inf) if attack is None else attack.margin
        k = search.contradicted(NOISE)
        if k is not None:
            told = f"{limits.entries[k]}: no margin below {found.margin[k]:.17g} was proved"
            raise Contradiction(f"{case.name}: {told}, but loads were found where it is {attacked[k]:.17g}")
        ends = zip(limits.entries, found.margin.tolist(), attacked.tolist(), found.lower.tolist(), found.upper.tolist(), strict=True)
        margins = tuple(Margin(limit, certified, least, (low, high)) for limit, certified, least, low, high in ends)
        decided = verdict is Verdict.HOLDS or (violation is not None and violation.proved and violation.continuous)
        return Dispatched(
            case=case,
            loads=self.loads,
            reason=reason,
            trust=Trust.ROUNDED if decided or verdict is Verdict.UNKNOWN else Trust.SOLVER,
            point=point,
            existence=None if violation is None else violation.existence,
            constraints=() if point is None else _with_ranges(point.constraints(), margins),
            proof=None,
            method=f"{found.boxes} boxes of loads enclosed, {0 if attack is None else attack.tried} power flows tried",
            seconds=clock.seconds,
            verdict=verdict,
            tolerance=self.tolerance,
            margins=margins,
            violation=violation,
            boxes=found.boxes,
            samples=0 if attack is None else attack.tried,
            unknown=found.message if verdict is Verdict.UNKNOWN else "",
            outage=outage,
            flow=found.x,
        )


def _verdict(found: Found, deadline: Deadline) -> tuple[Verdict, Reason]:
    if found.violation is not None:
        return Verdict.BROKEN, Reason.VIOLATED
    if found.holds:
        return Verdict.HOLDS, Reason.PROVED
    if found.x is None:
        return Verdict.UNKNOWN, Reason.NO_FLOW
    return Verdict.UNKNOWN, why_ended(deadline, found.out_of_time)


def _teller(on_event: OnEvent | None) -> Callable[[str, int, float], None]:
    def tell(message: str, boxes: int, margin: float) -> None:
        if on_event is not None:
            on_event(Event("loads", message, {"boxes": boxes, "margin": margin}))

    return tell


def _with_ranges(constraints: tuple[Constraint, ...], margins: tuple[Margin, ...]) -> tuple[Constraint, ...]:
    """The constraints at a point with the ranges that are proved of them; totals of several generators are none of theirs."""
    ranges = {(each.limit.kind, each.limit.element): each.range for each in margins}
    return tuple(replace(each, proved=ranges.get((each.kind, each.element), each.proved)) for each in constraints)
