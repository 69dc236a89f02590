"""minimize() and maximize(): the exact optimum of a linear function of a network's outputs and inputs, by the search behind verify().

The incumbent is the threshold: with a best value U at hand, the question whether any input reaches U - gap is one for `verify`.
If none does, the optimum is known to within the gap; if one does, it is the next incumbent. At any time the margin that the
last search proved bounds the optimum from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from milpverify.arithmetic.rounding import ieee
from milpverify.config import Deadline, Options
from milpverify.counterexamples.attack import attack
from milpverify.counterexamples.validate import inside
from milpverify.enclosure import enclose
from milpverify.errors import InvalidProperty
from milpverify.graph import evaluate
from milpverify.result import Reason, Trust, Verdict
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.spec import Array, Box, Disjunct, Problem, Rows
from milpverify.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from milpverify.events import Event
    from milpverify.graph import Graph


@dataclass(frozen=True)
class Optimum:
    """An optimum between proved bounds.

    For `minimize` the optimum lies in [lower_bound, upper_bound] in real arithmetic, and `x` (nx,) float64 attains at most
    `upper_bound`; for `maximize` `x` attains at least `lower_bound`. `reason` is PROVED when the bounds are within the gap,
    else why the run stopped. `trust` is what the bound on the far side of the incumbent rests on. `y` (ny,) are the
    network's outputs at x in float64.
    """

    lower_bound: float
    upper_bound: float
    x: Array | None
    y: Array | None
    reason: Reason
    trust: Trust
    seconds: float
    searches: int

    @property
    def gap(self) -> float:
        """upper_bound - lower_bound."""
        return self.upper_bound - self.lower_bound


def minimize(
    graph: Graph,
    box: Box,
    objective: ArrayLike | tuple[ArrayLike, ArrayLike],
    gap: float = 1e-4,
    timeout: float | None = None,
    *,
    constraints: Rows | None = None,
    options: Options | None = None,
    deadline: Deadline | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Optimum:
    """The minimum of a linear function of a network's outputs (and inputs) over a box and linear input constraints.

    Args:
        graph: the network, from `load(...).graph`, in float64.
        box: the inputs, (nx,).
        objective: coefficients on the outputs (ny,), or a pair of those on the inputs (nx,) and on the outputs (ny,).
        gap: how close the bounds shall come, absolutely; below about 1e-6 of the values' size rounding gets in the way.
        timeout: seconds of wall clock; None for no limit.
        constraints: rows on inputs alone that restrict the input set.

    Raises:
        InvalidProperty: shapes that do not fit, coefficients that are not finite, a gap that is not positive.
    """
    x_row, y_row = _objective(graph, objective)
    if not (gap > 0 and math.isfinite(gap)):
        raise InvalidProperty(f"the gap must be a positive number, not {gap}")
    if box.size != graph.nx:
        raise InvalidProperty(f"the box has {box.size} inputs, the network {graph.nx}")
    limit = deadline or Deadline(math.inf if timeout is None else timeout)
    # Points are judged in float64: the optimum is one of real arithmetic, no runtime is asked.
    graph = replace(graph, inputs=tuple(replace(s, dtype="float64") for s in graph.inputs))
    domain = constraints if constraints is not None else Rows.none(graph.nx, graph.ny)

    def below(threshold: float) -> Problem:
        row = Rows(x_row[None], y_row[None], np.array([threshold]), np.array([False]))
        return Problem(graph, (Disjunct(box, row, domain),))

    lower = _root_bound(below(0.0))
    x = _first_point(below(lower), limit, options)
    upper = math.inf if x is None else _value(graph, x_row, y_row, x)
    trust, reason, searches = Trust.ROUNDED, Reason.PROVED, 0
    while upper - lower > gap:
        # With no incumbent (none satisfies the constraints so far) any value will do for a first one.
        threshold = upper - 0.75 * gap if math.isfinite(upper) else abs(lower) * 1e3 + 1e3
        result = verify(below(threshold), deadline=limit, options=options, on_event=on_event)
        searches += 1
        before = lower, upper
        proved, rests = threshold + result.lower_bound if math.isfinite(result.lower_bound) else lower, result.bound_trust
        if result.verdict is Verdict.VERIFIED and threshold >= proved:
            proved, rests = threshold, result.trust
        if proved > lower:
            lower, trust = min(math.nextafter(proved, -math.inf), upper), rests
        if result.verdict is Verdict.FALSIFIED and result.counterexample is not None:
            x = result.counterexample.x
            upper = min(upper, _value(graph, x_row, y_row, x))
        elif result.verdict is Verdict.UNKNOWN or not math.isfinite(upper):
            reason = result.reason
            break
        if (lower, upper) == before:
            reason = Reason.UNDECIDED  # the gap is below what rounding leaves of the values
            break
    y = None if x is None else _outputs(graph, x)
    return Optimum(lower, upper, x, y, reason, trust, limit.elapsed(), searches)


def maximize(graph: Graph, box: Box, objective: ArrayLike | tuple[ArrayLike, ArrayLike], *args: object, **options: object) -> Optimum:
    """The maximum of a linear function of a network's outputs (and inputs): `minimize` of its negative, see there."""
    x_row, y_row = _objective(graph, objective)
    found = minimize(graph, box, (-x_row, -y_row), *args, **options)  # type: ignore[arg-type]
    return replace(found, lower_bound=-found.upper_bound, upper_bound=-found.lower_bound)


def _objective(graph: Graph, objective: ArrayLike | tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    x_part, y_part = objective if isinstance(objective, tuple) else (np.zeros(graph.nx), objective)
    x_row, y_row = (np.asarray(part, dtype=np.float64).reshape(-1) for part in (x_part, y_part))
    if x_row.size != graph.nx or y_row.size != graph.ny:
        shapes = f"{x_row.size} + {y_row.size} coefficients; the network has {graph.nx} inputs and {graph.ny} outputs"
        raise InvalidProperty(f"the objective has {shapes}")
    if not (np.isfinite(x_row).all() and np.isfinite(y_row).all()):
        raise InvalidProperty("the objective has coefficients that are not finite numbers")
    return x_row, y_row


@torch.no_grad()
def _root_bound(problem: Problem) -> float:
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with ieee():
        return float(bound_batch(problem.graph, group, lower, upper, torch.float64).margins)


def _first_point(problem: Problem, deadline: Deadline, options: Options | None) -> Array | None:
    outcome = attack(problem, problem.graph, problem.disjuncts, deadline, (options or Options()).seed)
    return outcome.points[0] if np.isfinite(outcome.margins[0]) and inside(problem.disjuncts[0], outcome.points[0]) else None


def _value(graph: Graph, x_row: Array, y_row: Array, x: Array) -> float:
    """An upper bound of the objective at x in real arithmetic."""
    low, high = (t[0].numpy() for t in enclose(graph, torch.from_numpy(x)[None]))
    ends = np.where(y_row > 0, high, low)
    terms = np.concatenate([x_row * x, np.where(y_row == 0, 0.0, y_row * ends)])
    return float(terms.sum() + 4 * (len(terms) + 2) * 2.0**-53 * np.abs(terms).sum())


@torch.no_grad()
def _outputs(graph: Graph, x: Array) -> Array:
    y: Array = evaluate(graph, torch.from_numpy(x)[None])[0].numpy()
    return y
