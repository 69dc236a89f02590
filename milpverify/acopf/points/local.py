"""Operating points from an interior point method: candidates, which prove nothing."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.loads import Loads
from milpverify.acopf.points.nonlinear_program import Goal, Program
from milpverify.acopf.points.polish import PointTuning, polish
from milpverify.config import Deadline
from milpverify.errors import SolverUnavailable

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.point import Point


def cheapest(
    case: Case,
    loads: Loads = Loads(),
    *,
    shrink: float = 0.0,
    start: Point | None = None,
    attempts: int = 3,
    seed: int = 0,
    deadline: Deadline | None = None,
    tuning: PointTuning = PointTuning(),
) -> Point | None:
    """A point of least cost, at one of the loads.

    Args:
        case: the network.
        loads: which loads; of a box the cheapest ones are found too.
        shrink: limits are moved inwards by so much, p.u. and rad, where their ranges allow it.
        start: where the first attempt begins; else at the middles of all ranges, with all angles 0.
        attempts: how many starts are tried, the later ones random, until the method converges from one.
        seed: of the random starts.
        deadline: the time limit.
        tuning: how it is looked for.
    """
    found = _found(Program(shrunk(case, shrink, tuning), loads, Goal.COST, tuning), case, start, attempts, seed, deadline)
    return None if found is None else found[0]


def highest_load(
    case: Case,
    *,
    shrink: float = 0.0,
    start: Point | None = None,
    attempts: int = 3,
    seed: int = 0,
    deadline: Deadline | None = None,
    tuning: PointTuning = PointTuning(),
) -> tuple[float, Point] | None:
    """The largest common factor of all loads that is found, and its point (arguments as of `cheapest`)."""
    found = _found(Program(shrunk(case, shrink, tuning), Loads(), Goal.LOAD, tuning), case, start, attempts, seed, deadline)
    return None if found is None else (found[1], found[0])


def least_violation(
    case: Case,
    loads: Loads = Loads(),
    *,
    shrink: float = 0.0,
    start: Point | None = None,
    attempts: int = 3,
    seed: int = 0,
    deadline: Deadline | None = None,
    tuning: PointTuning = PointTuning(),
) -> Point | None:
    """A point whose largest violation of any balance or limit is least, p.u. and rad (arguments as of `cheapest`)."""
    found = _found(Program(shrunk(case, shrink, tuning), loads, Goal.VIOLATION, tuning), case, start, attempts, seed, deadline)
    return None if found is None else found[0]


def _found(
    program: Program, case: Case, start: Point | None, attempts: int, seed: int, deadline: Deadline | None
) -> tuple[Point, float] | None:
    """The polished point of a program, as one of the case whose limits it may have shrunk, and the last variable's value there."""
    found = _solve(program, start, attempts, seed, deadline or Deadline())
    return None if found is None else (replace(polish(found[0], program.tuning), case=case), found[1])


def shrunk(case: Case, by: float, tuning: PointTuning = PointTuning()) -> Case:
    """The case with its limits moved inwards by so much (p.u. and rad), except where the range is narrow."""
    if by == 0.0:
        return case

    def inwards(lower: Array, upper: Array) -> tuple[Array, Array]:
        moved = np.where(upper - lower > tuning.narrow * by, by, 0.0)
        return lower + moved, upper - moved

    buses, br, gen = case.buses, case.branches, case.generators
    (vmin, vmax), (pmin, pmax) = inwards(buses.vmin, buses.vmax), inwards(gen.pmin, gen.pmax)
    (qmin, qmax), (angmin, angmax) = inwards(gen.qmin, gen.qmax), inwards(br.angmin, br.angmax)
    return replace(
        case,
        buses=replace(buses, vmin=vmin, vmax=vmax),
        branches=replace(br, angmin=angmin, angmax=angmax, rate=inwards(np.zeros(len(br)), br.rate)[1]),
        generators=replace(gen, pmin=pmin, pmax=pmax, qmin=qmin, qmax=qmax),
    )


class _OutOfTime(Exception):
    """The deadline is over; raised out of the interior point method, which has no clock."""


def _solve(program: Program, start: Point | None, attempts: int, seed: int, deadline: Deadline) -> tuple[Point, float] | None:
    """The first attempt's result that converged, else the first that came close, and the last variable's value there."""
    random = np.random.default_rng(seed)
    close = None
    for attempt in range(attempts):
        if attempt:
            begin = program.random(random)
        else:
            begin = program.middle() if start is None else program.at(start)
        try:
            found = _interior_point(program, begin, deadline)
        except _OutOfTime:
            break
        if found is not None:
            x, converged = found
            if converged or close is None:
                close = program.point(x), float(x[-1])
            if converged:
                break
    return close


def _interior_point(program: Program, start: Array, deadline: Deadline) -> tuple[Array, bool] | None:
    """The last iterate (width,) and whether the method converged, from a start (width,); none where nothing came of it."""
    try:
        from pypower.pips import pips
    except ImportError as e:
        raise SolverUnavailable(f"the local solver needs pypower and scipy: pip install 'milpverify[acopf]' ({e})") from e

    def constraints(x: Array) -> tuple[Array, Array, Any, Any]:
        if deadline.expired():
            raise _OutOfTime
        return program.constraints(x)

    lower, upper = program.bounds
    relaxed = program.relaxed if program.t is not None else (None, None, None)
    tolerances = dict.fromkeys(("feastol", "gradtol", "comptol", "costtol"), program.tuning.tolerance)
    options = {**tolerances, "max_it": program.tuning.iterations, "cost_mult": 1.0}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of singular matrices: the method says itself that it failed
        try:
            found = pips(program.objective, start, *relaxed, lower, upper, constraints, program.hessian, options)
        except RuntimeError:  # SuperLU gives up on a matrix
            return None
    x, last = found["x"], found["output"]["hist"][-1]
    converged, close = bool(found["eflag"]), bool(last["feascond"] < program.tuning.close)
    if not np.isfinite(x).all() or not (converged or close):
        return None
    return x, converged or (close and program.goal is Goal.VIOLATION)
