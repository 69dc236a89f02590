"""A problem made smaller by its rows alone: contradictory disjuncts go, equations eliminate inputs, inequalities narrow boxes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from milpverify.reduction.suspects import ReductionTuning, suspected
from milpverify.spec import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.spec import Box, Disjunct, Rows


@dataclass(frozen=True, eq=False)
class Reduced:
    """What is left of a problem to decide, and of the `closed` disjuncts that are not, their number and a proved bound of their margins.

    `margins` are proved bounds of single ones, by their places; `places` are those that the ones left had, None where that is not known.
    """

    problem: Problem
    closed: int = 0
    bound: float = float("inf")
    margins: Mapping[int, float] = field(default_factory=dict)
    places: Sequence[int] | None = None


@np.errstate(all="ignore")  # rationals prove, and float64 may overflow on the way to what they are told
def reduced(problem: Problem, deadline: Deadline, tuning: ReductionTuning = ReductionTuning()) -> Reduced:
    """What rows alone leave of a problem. Margins are those of the problem at all inputs that satisfy the constraints."""
    given, found = problem, contradictory(problem.disjuncts, deadline, tuning)
    bound = min(found.values(), default=float("inf"))
    if found:
        problem = _with(problem, problem.graph, (d for k, d in enumerate(problem.disjuncts) if k not in found))
    places = [k for k in range(len(given.disjuncts)) if k not in found]
    left = _within(problem, tuning) if any((np.count_nonzero(d.domain.x_rows, 1) > 1).any() for d in _domains(problem)) else problem
    gone = len(problem.disjuncts) - len(left.disjuncts)
    return Reduced(left, len(found) + gone, bound, found, None if gone else places)


def contradictory(disjuncts: Sequence[Disjunct], deadline: Deadline, tuning: ReductionTuning = ReductionTuning()) -> dict[int, float]:
    """The disjuncts that no network has a point of, by place, each with a proved lower bound of its margin >= 0: inf without any input."""
    suspects = list(suspected(disjuncts, tuning))
    if not suspects:
        return {}
    from milpverify.reduction.contradictions import excluded

    return excluded(disjuncts, suspects, deadline, tuning)


def _with(problem: Problem, graph: Graph, disjuncts: Iterable[Disjunct]) -> Problem:
    """The problem with another graph and other disjuncts."""
    return Problem(graph, tuple(disjuncts), problem.runtime, problem.files, problem.substitution, problem.notes)


def _domains(problem: Problem) -> list[Disjunct]:
    """One disjunct for every domain that is not empty."""
    return list({id(d.domain): d for d in problem.disjuncts if len(d.domain)}.values())


def _within(problem: Problem, tuning: ReductionTuning) -> Problem:
    """The problem with its inputs confined to the inequalities that all disjuncts share."""
    from milpverify.balls.halfspaces import Halfspaces
    from milpverify.reduction.equations import without_equations
    from milpverify.reduction.inequalities import NotHeld, inequalities, narrowed, shared

    before = problem
    if sum(np.count_nonzero(d.domain.x_rows) for d in _domains(problem)) <= tuning.most:
        problem = without_equations(problem, tuning)
        if problem is before:
            known: dict[tuple[int, int], tuple[Box, Rows] | None] = {}
            for d in problem.disjuncts:
                if (key := (id(d.box), id(d.domain))) not in known:
                    try:
                        known[key] = narrowed(d.box.lower, d.box.upper, inequalities(d.domain), problem.graph.ny, tuning)
                    except NotHeld:
                        known[key] = d.box, d.domain
            pairs = ((d, known[id(d.box), id(d.domain)]) for d in problem.disjuncts)
            left = (replace(d, box=found[0], domain=found[1]) for d, found in pairs if found is not None)
            problem = _with(problem, problem.graph, left)
    if not problem.disjuncts:
        return problem
    rows = shared([d.domain for d in problem.disjuncts])
    several = np.count_nonzero(rows.x_rows, 1) > 1
    if not several.any():
        return problem
    halfspaces = Halfspaces(np.ascontiguousarray(rows.x_rows[several]), rows.rhs[several].copy())
    return _with(problem, problem.graph.confined(problem.graph.ball, halfspaces), problem.disjuncts)
