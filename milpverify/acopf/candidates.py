"""Operating points that count: found by the local solver, judged against the case, reproduced by a power flow, proved where possible."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.acopf.points.existence import Existence, ExistenceTuning, prove_existence
from milpverify.acopf.points.judgement import limits
from milpverify.acopf.points.point import Point
from milpverify.acopf.points.rectangular import angles_along
from milpverify.acopf.relaxation.ranges import HALF_TURN
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.acopf.case import Array, Case
    from milpverify.acopf.points.judgement import Constraint
    from milpverify.acopf.proving.programs import Box
    from milpverify.acopf.proving.prover import Proved, Prover
    from milpverify.acopf.relaxation.relaxation import Relaxation
    from milpverify.config import Deadline


class QuestionTuning(Tuning):
    """What points and proofs are aimed at; how good they are is judged of themselves."""

    inside: float = 1e-7
    """p.u. and rad: so far inside its limits a point is looked for that is to be proved; costs change by as little."""
    aim: float = 0.99
    """The share of the gap that is aimed at, so that rounding leaves it closed."""
    worse: float = 0.1
    """Of the gap: by so much a point may cost more, or carry less, for its being proved."""
    better: float = 1e-7
    """Relative: a point that is cheaper by less is the same."""
    shares: tuple[float, ...] = (0.1, 1e-2, 1e-3, 1e-4)
    larger: tuple[float, ...] = (0.9, 0.5)
    """The shares of the least violation found that are tried as a bound of it, and larger ones once one of them is proved."""
    largest_violation: float = 0.3
    """p.u. and rad: no proof is looked for that everything is violated by more."""
    more: float = 0.5
    """Seconds for a proof that it is by more than the tolerance."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A point whose violation is within the tolerance and which an independent power flow reproduces."""

    point: Point
    existence: Existence | None = None

    @property
    def is_proved(self) -> bool:
        """Whether an exact operating point strictly inside the limits was proved to lie beside it."""
        return self.existence is not None and self.existence.proved and self.existence.strictly_inside


def judge(point: Point | None, tolerance: float) -> Judged | None:
    """The point, if it is an operating point up to the tolerance (p.u. and rad)."""
    if point is None or not point.violation <= tolerance or not point.power_flow().reproduces:
        return None
    return Judged(point)


def with_existence(judged: Judged, deadline: Deadline, tuning: ExistenceTuning = ExistenceTuning()) -> Judged:
    """The same, with what could be proved of an exact solution beside it, if that does not take longer than there is time."""
    buses = judged.point.case.num_buses
    if judged.existence is not None or deadline.remaining() < tuning.seconds * (buses / 118) ** 3:
        return judged
    return replace(judged, existence=prove_existence(judged.point, tuning=tuning))


def start_of(case: Case, relaxation: Relaxation, solution: Array) -> Point:
    """Where a local search begins that is near a solution (columns,) of the relaxation: its voltages, angles along a spanning tree."""
    columns = relaxation.columns
    pairs = columns.pairs
    vm = np.sqrt(np.maximum(solution[columns.w], 0.0))
    va = angles_along(case, pairs.sign * solution[columns.d[pairs.of_branch]])
    pd, qd = case.buses.pd.copy(), case.buses.qd.copy()
    for load, which, buses in zip((pd, qd), columns.loads, columns.varying, strict=True):
        load[buses] = solution[which]
    return Point(case, vm, va, solution[columns.pg], solution[columns.qg], pd, qd)


def in_common(case: Case, best: Judged | None, prover: Prover, proved: Proved, nearest: Point | None = None) -> dict[str, Any]:
    """What all answers tell alike: the best point, with what was proved of it and of all points; without one, the one that is nearest."""
    point = nearest if best is None else best.point
    constraints = limits(case) if point is None else point.constraints()
    if not proved.refuted:
        constraints = proved_ranges(constraints, prover.relaxation, proved.ranges)
    return {
        "case": case,
        "trust": proved.trust,
        "point": point,
        "existence": None if best is None else best.existence,
        "constraints": constraints,
        "proof": proved.proof,
        "method": proved.method,
        "warnings": proved.warnings,
    }


def proved_ranges(constraints: tuple[Constraint, ...], relaxation: Relaxation, ranges: Box) -> tuple[Constraint, ...]:
    """The constraints with the ranges that were proved of their values over all points that are left."""
    columns, case = relaxation.columns, relaxation.question.case
    br, pairs = case.branches, columns.pairs
    p, sign = pairs.of_branch, pairs.sign
    low, high = ranges.lower, ranges.upper
    coefficients, radii = relaxation.flow_coefficients()
    ends = np.stack([columns.w[br.f], columns.w[br.t], columns.c[p], columns.s[p]], axis=1)  # (m, 4)
    turned = coefficients * np.stack([np.ones(len(br)), np.ones(len(br)), np.ones(len(br)), sign], axis=1)[:, None, :]
    with np.errstate(invalid="ignore"):  # 0 * inf, of columns that have no range yet
        at = turned * low[ends][:, None, :], turned * high[ends][:, None, :]
        reach = np.maximum(np.abs(low[ends]), np.abs(high[ends]))[:, None, :]
        slack = ((radii + 2.0**-48 * np.abs(turned)) * reach).sum(axis=2)
        power = np.maximum(np.abs(np.minimum(*at).sum(axis=2)), np.abs(np.maximum(*at).sum(axis=2))) + slack  # (m, 4)
        size = np.hypot(power[:, 0::2], power[:, 1::2]) * (1 + 2.0**-48)
    size[np.isnan(size)] = np.inf
    root = np.sqrt(np.maximum(low[columns.w], 0.0)) * (1 - 2.0**-48), np.sqrt(high[columns.w]) * (1 + 2.0**-48)
    angle = np.where(sign > 0, low[columns.d[p]], -high[columns.d[p]]), np.where(sign > 0, high[columns.d[p]], -low[columns.d[p]])
    known = {
        "voltage": root,
        "active generation": (low[columns.pg], high[columns.pg]),
        "reactive generation": (low[columns.qg], high[columns.qg]),
        "angle difference": angle,
        "flow from": (np.zeros(len(br)), size[:, 0]),
        "flow to": (np.zeros(len(br)), size[:, 1]),
    }

    def proved(each: Constraint) -> tuple[float, float]:
        if each.kind not in known:
            return -math.inf, math.inf
        if each.kind == "angle difference" and not max(-each.lower, each.upper) < HALF_TURN:
            return -math.inf, math.inf  # what is known is the principal value
        lower, upper = (float(end[each.index]) for end in known[each.kind])
        return max(lower, each.lower), min(upper, each.upper)

    return tuple(replace(each, proved=proved(each)) for each in constraints)
