"""minimize() and maximize(): the exact optimum of a linear function of a network's outputs and inputs, by the search behind verify().

The incumbent is the threshold: with a best value U at hand, the question whether any input reaches U - gap is one for `verify`.
If none does, the optimum is known to within the gap; if one does, it is the next incumbent. At any time the margin that the
last search proved bounds the optimum from below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milpverify.arithmetic.rounding import ieee
from milpverify.config import Deadline, Milp, Options, SearchMethod
from milpverify.counterexamples.attack import attack
from milpverify.counterexamples.validate import inside
from milpverify.enclosure import enclose
from milpverify.errors import Contradiction, InvalidProperty
from milpverify.graph import evaluate
from milpverify.result import Reason, Trust, Verdict, json_number, json_text
from milpverify.run_info import settings_of
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.search.ledger import Ledger, Part
from milpverify.spec import Array, Box, Disjunct, Problem, Rows
from milpverify.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import ArrayLike

    from milpverify.events import Event
    from milpverify.graph import Graph


@dataclass(frozen=True)
class Optimum:
    """An optimum between proved bounds.

    For `minimize` the optimum lies in [lower_bound, upper_bound] in real arithmetic, and `x` (nx,) float64 attains at most
    `upper_bound`; for `maximize` `x` attains at least `lower_bound`. `reason` is PROVED when the bounds are within the gap,
    else why the run stopped. `trust` is what the bound on the far side of the incumbent rests on; the incumbent's own is always
    evaluated with outward rounding. `y` (ny,) are the network's outputs at x in float64. `ledger` and `options` are as those of a
    `Result`: the counts and seconds of all `searches` together, and what they ran with.
    """

    lower_bound: float
    upper_bound: float
    x: Array | None
    y: Array | None
    reason: Reason
    trust: Trust
    seconds: float
    searches: int
    ledger: dict[str, dict[str, float]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """upper_bound - lower_bound."""
        return self.upper_bound - self.lower_bound

    def to_dict(self) -> dict[str, Any]:
        """A JSON form with the fields of this class, named and written as those of a `Result`."""
        return {
            "lower_bound": json_number(self.lower_bound),
            "upper_bound": json_number(self.upper_bound),
            "x": None if self.x is None else self.x.tolist(),
            "y": None if self.y is None else [json_number(v) for v in self.y.tolist()],
            "reason": self.reason.name,
            "message": self.reason.value,
            "trust": self.trust.value,
            "seconds": self.seconds,
            "searches": self.searches,
            "ledger": self.ledger,
            "options": self.options,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """The JSON text; written to `path` too where one is given."""
        return json_text(self.to_dict(), path)


def minimize(
    graph: Graph,
    box: Box,
    objective: ArrayLike | tuple[ArrayLike, ArrayLike],
    gap: float = 1e-4,
    timeout: float | None = None,
    method: str | SearchMethod | Milp = SearchMethod.AUTO,
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
        gap: how close the bounds shall come, absolutely; below about 1e-6 of the values' size rounding gets in the way. Smooth networks
            are decided up to an eighth of it where the options' `delta` is larger.
        timeout: seconds of wall clock; None for no limit.
        method: what searches, as for `verify`: "auto", "bab", "milp" or "smt", or a `Milp(solver)`.
        constraints: rows on inputs alone that restrict the input set.

    Raises:
        InvalidProperty: shapes that do not fit, coefficients that are not finite, a gap that is not positive.
        InvalidInput: an unknown method.
        Contradiction: a proved bound excludes the incumbent.
    """
    x_row, y_row = _objective(graph, objective)
    if not (gap > 0 and math.isfinite(gap)):
        raise InvalidProperty(f"the gap must be a positive number, not {gap}")
    if box.size != graph.nx:
        raise InvalidProperty(f"the box has {box.size} inputs, the network {graph.nx}")
    limit = deadline or Deadline(math.inf if timeout is None else timeout)
    settings = settings_of(options or Options(), method)
    settings = replace(settings, delta=min(settings.delta, gap / 8))
    # Points are judged in float64: the optimum is one of real arithmetic, no runtime is asked.
    graph = replace(graph, inputs=tuple(replace(s, dtype="float64") for s in graph.inputs))
    domain = constraints if constraints is not None else Rows.none(graph.nx, graph.ny)

    def below(threshold: float) -> Problem:
        row = Rows(x_row[None], y_row[None], np.array([threshold]), np.array([False]))
        return Problem(graph, (Disjunct(box, row, domain),))

    ledger = Ledger()
    with ledger.spent(Part.PRESOLVE):
        lower = _root_bound(below(0.0))
    with ledger.spent(Part.ATTACK):
        x = _first_point(below(math.copysign(_size(lower), lower)), limit, settings.seed)
    upper = math.inf if x is None else _value(graph, x_row, y_row, x)
    trust, reason, counts = Trust.ROUNDED, Reason.PROVED, [ledger.to_dict()]
    while upper - lower > gap:
        # With no incumbent (none satisfies the constraints so far) any value will do for a first one.
        threshold = upper - 0.75 * gap if math.isfinite(upper) else _size(lower) * 1e3 + 1e3
        result = verify(below(threshold), deadline=limit, options=settings, on_event=on_event)
        counts.append(result.ledger)
        before = lower, upper
        claims = [(result.lower_bound, result.bound_trust)] + [(0.0, result.trust)] * (result.verdict is Verdict.VERIFIED)
        claims = [(margin, rests) for margin, rests in claims if math.isfinite(margin) and rests.rank >= settings.trust.rank]
        margin, rests = max(claims, key=lambda claim: (claim[0], claim[1].rank), default=(-math.inf, trust))
        if threshold + margin > lower:
            lower, trust = math.nextafter(threshold + margin, -math.inf), rests
        if result.verdict is Verdict.FALSIFIED and result.counterexample is not None:
            x = result.counterexample.x
            upper = min(upper, _value(graph, x_row, y_row, x))
        if lower > upper:
            raise Contradiction(f"a minimum of at least {lower:.17g} was proved (trust {trust.value}), but a point attains {upper:.17g}")
        if upper - lower <= gap:
            break
        if result.verdict is Verdict.UNKNOWN or not math.isfinite(upper):
            reason = result.reason
            break
        if (lower, upper) == before:
            reason = Reason.UNDECIDED  # the gap is below what rounding leaves of the values
            break
    if reason is Reason.PROVED and trust.rank < settings.trust.rank:
        reason = Reason.TRUST
    y = None if x is None else _outputs(graph, x)
    return Optimum(lower, upper, x, y, reason, trust, limit.elapsed(), len(counts) - 1, _summed(counts), settings.to_dict())


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


def _summed(ledgers: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per part, what all ledgers say together."""
    total: dict[str, dict[str, float]] = {}
    for part, counts in (item for ledger in ledgers for item in ledger.items()):
        known = total.setdefault(part, dict.fromkeys(counts, 0))
        for name, count in counts.items():
            known[name] += count
    return total


@torch.no_grad()
def _root_bound(problem: Problem) -> float:
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with ieee():
        return float(bound_batch(problem.graph, group, lower, upper, torch.float64).margins)


def _size(bound: float) -> float:
    """How far from 0 a bound is; 0 where nothing is known, as of functions that leave their domain in the box."""
    return abs(bound) if math.isfinite(bound) else 0.0


def _first_point(problem: Problem, deadline: Deadline, seed: int) -> Array | None:
    outcome = attack(problem, problem.graph, problem.disjuncts, deadline, seed)
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
