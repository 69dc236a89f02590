"""Deciding a query: of the reals as it is, of a type's arithmetic by what holds in both.

Where the query asks for a type, "unsat" is proved in the reals of assertions that are weakened by as much as rounding may cost, in the
networks (`rounding`) and in the assertions themselves (`Slack`); a counterexample has to satisfy them as they are in the reals, in the
networks' own runtimes, and evaluated in that type.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from milpverify.config import Deadline, Options, in_force
from milpverify.counterexamples.validate import validate
from milpverify.frontends.vnnlib.assertions import Slack, disjuncts_of, satisfied
from milpverify.frontends.vnnlib.query import NUMBERS, REAL
from milpverify.queries.rounding import RoundingTuning, errors
from milpverify.result import Reason, Verdict
from milpverify.run import OnEvent
from milpverify.verify import verify

if TYPE_CHECKING:
    from milpverify.frontends.queries import LoadedQuery
    from milpverify.result import Counterexample, Result
    from milpverify.spec import Array, Disjunct, Problem


def decide(loaded: LoadedQuery, *, deadline: Deadline | None = None, on_event: OnEvent | None = None, **settings: Any) -> Result:
    """The verdict on a query.

    Args:
        settings: keyword arguments of `verify`.

    Returns:
        as `verify`; UNKNOWN where the reals and the type that is asked for differ, or may. Without margins where assertions were weakened.

    Raises:
        InvalidInput, Contradiction: as `verify`.
        OutOfTime: the time is over before rounding was bounded.
    """
    found = _decided(loaded, {**settings, "deadline": deadline, "on_event": on_event})
    if loaded.reach is not None and found.verdict is Verdict.VERIFIED:
        note = f"no input up to {loaded.reach:g} from 0 satisfies it; the query leaves inputs without bounds"
        return replace(found, verdict=Verdict.UNKNOWN, reason=Reason.UNDECIDED, note=note, lower_bound=-math.inf)
    return found


def _decided(loaded: LoadedQuery, settings: dict[str, Any]) -> Result:
    """The verdict on the inputs that are tried; `settings` are keyword arguments of `verify`."""
    query, problem = loaded.query, loaded.problem
    if query.real:
        return verify(problem, **settings)
    with in_force(settings["deadline"] or Deadline()):
        weakened = _weakened(loaded, (settings.get("options") or Options()).search.tuned(RoundingTuning))
    if weakened is not None:
        found = replace(verify(weakened, **settings), margins=())  # they would be those of other assertions
        if found.verdict is Verdict.VERIFIED:
            return found
        if found.counterexample is not None and (point := _in_both(loaded, found.counterexample.x)) is not None:
            point = replace(point, tensors=found.tensors)
            return replace(found, counterexample=point, lower_bound=min(found.lower_bound, point.margin_real))
        if found.reason in (Reason.TIMEOUT, Reason.INTERRUPTED, Reason.MEMORY):
            return found
    found = verify(problem, **settings)
    if found.verdict is Verdict.VERIFIED:
        note = "it is unsat in the reals, but rounding may matter to the type it asks for; ask for the reals by the type 'real'"
        return replace(found, verdict=Verdict.UNKNOWN, reason=Reason.FLOAT_SEMANTICS, note=note)
    if found.counterexample is not None and _in_both(loaded, found.counterexample.x) is None:
        note = "what is sat in the reals is not in the arithmetic of the type it asks for; ask for the reals by the type 'real'"
        return replace(found, verdict=Verdict.UNKNOWN, reason=Reason.FLOAT_SEMANTICS, note=note, counterexample=None)
    return found


def _in_both(loaded: LoadedQuery, x: Array) -> Counterexample | None:
    """The point x (nx,) as a counterexample in the reals, in the runtimes and in the arithmetic of the types."""
    query = loaded.query
    for disjunct in loaded.problem.disjuncts:
        point = validate(loaded.problem, disjunct, x).counterexample
        if point is not None and _of_types(loaded, point.x) and satisfied(query, point.x, point.y):
            return point
    return None


def _of_types(loaded: LoadedQuery, x: Array) -> bool:
    """Whether each input of x (nx,) is a number of its type."""
    offset = 0
    for variable in loaded.query.inputs:
        part = x[offset : offset + variable.size]
        offset += variable.size
        if variable.dtype != REAL and not np.array_equal(part.astype(NUMBERS[variable.dtype]).astype(np.float64), part):
            return False
    return True


def _weakened(loaded: LoadedQuery, tuning: RoundingTuning) -> Problem | None:
    """The problem with its assertions weakened by what rounding may cost; None where that is not known.

    No disjunct at all is left as it is only where nothing was rounded away: inputs that no assertion allows are none in any arithmetic.
    """
    query, problem = loaded.query, loaded.problem
    if not problem.disjuncts:
        return (
            problem
            if disjuncts_of(query, slack=Slack([np.inf] * (query.nx + query.ny), [0.0] * (query.nx + query.ny)), reach=loaded.reach) == ()
            else None
        )
    lower, upper = _hull(problem.disjuncts)
    width = np.maximum(upper - lower, np.maximum(abs(lower), abs(upper))) * tuning.wider
    lower, upper = lower - width, upper + width
    largest, error = np.maximum(abs(lower), abs(upper)).tolist(), [0.0] * query.nx
    offset = 0
    for declaration, (graph, source) in zip(query.networks, loaded.networks, strict=True):
        part = slice(offset, offset + graph.nx)
        offset += graph.nx
        if all(v.dtype == REAL for v in (*declaration.inputs, *declaration.outputs)):
            largest, error = largest + [np.inf] * graph.ny, error + [0.0] * graph.ny
            continue
        known = errors(graph, source, lower[part], upper[part], tuning)
        if known is None:
            return None
        largest, error = largest + known[0], error + known[1]
    disjuncts = disjuncts_of(query, slack=Slack(largest, error), reach=loaded.reach)
    if disjuncts is None:
        return None
    if disjuncts:
        least, most = _hull(disjuncts)
        if (least < lower).any() or (most > upper).any():
            return None
    return _with(problem, disjuncts)


def _with(problem: Problem, disjuncts: tuple[Disjunct, ...]) -> Problem:
    """The same network with other assertions."""
    return type(problem)(problem.graph, disjuncts, problem.runtime, problem.files, notes=problem.notes)


def _hull(disjuncts: tuple[Disjunct, ...]) -> tuple[Array, Array]:
    boxes = list({id(d.box): d.box for d in disjuncts}.values())
    return np.min([box.lower for box in boxes], axis=0), np.max([box.upper for box in boxes], axis=0)
