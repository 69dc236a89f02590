"""minimize() and maximize(): the exact optimum of a linear function of a network's outputs and inputs, by the search behind verify().

It is the margin of the property that has the objective as its one row (`margin`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from milpverify.arithmetic.rounding import ieee
from milpverify.balls.ball import Ball
from milpverify.config import Deadline, Milp, Options, SearchMethod
from milpverify.errors import InvalidInput, InvalidProperty
from milpverify.frontends.network import load_network
from milpverify.frontends.problem import array, box_of, confined_to
from milpverify.graph import evaluate
from milpverify.margin import Gap, bracket, in_reals, raised, seek, shifted, summed
from milpverify.result import Reason, Result, Trust, json_number, json_text
from milpverify.run_info import settings_of, threads
from milpverify.search.bounding import bound_batch
from milpverify.search.groups import groups
from milpverify.search.ledger import Ledger, Part
from milpverify.spec import Array, Box, Disjunct, Problem, Rows
from milpverify.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from milpverify.frontends.network import Network, Shapes
    from milpverify.graph import Graph
    from milpverify.result import Event


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
    graph: Network,
    box: Box | Ball | Sequence[Box],
    objective: ArrayLike | tuple[ArrayLike, ArrayLike],
    gap: float = 1e-4,
    timeout: float | None = None,
    method: str | SearchMethod | Milp = SearchMethod.AUTO,
    *,
    constraints: Rows | None = None,
    shape: Shapes | None = None,
    outputs: Sequence[str] | None = None,
    options: Options | None = None,
    deadline: Deadline | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Optimum:
    """The minimum of a linear function of a network's outputs (and inputs) over a box and linear input constraints.

    Args:
        graph: the network, as for `Problem`, or the graph of one; its real numbers count, in float64.
        box: the inputs, (nx,): a box, a box for each of several inputs, or a ball.
        objective: coefficients on the outputs (ny,), or a pair of those on the inputs (nx,) and on the outputs (ny,).
        gap: how close the bounds shall come, absolutely; below about 1e-6 of the values' size rounding gets in the way. Smooth networks
            are decided up to an eighth of it where the options' `delta` is larger.
        timeout: seconds of wall clock; None for no limit.
        method: what searches, as for `verify`: "auto", "bab", "milp" or "smt", or a `Milp(solver)`.
        constraints: rows on inputs alone that restrict the input set.
        shape, outputs: of the network, as for `Problem`.

    Raises:
        InvalidProperty: shapes that do not fit, coefficients that are not finite, a gap that is not positive.
        InvalidInput: no network, no box or ball, an unknown method.
        InvalidModel, UnsupportedOperator: as `Problem`.
        Contradiction: a proved bound excludes the incumbent.
    """
    within = Gap(gap)
    inputs, box = box, box_of(box)
    graph = confined_to(load_network(graph, box, shape, outputs).graph, inputs)
    x_row, y_row = _objective(graph, objective)
    limit = deadline or Deadline(math.inf if timeout is None else timeout)
    settings = settings_of(options or Options(), method)
    settings = replace(settings, delta=min(settings.delta, gap / 8))
    domain = constraints if constraints is not None else Rows.none(graph.nx, graph.ny)
    row = Rows(x_row[None], y_row[None], np.zeros(1), np.array([False]))
    problem = in_reals(Problem(graph, (Disjunct(box, row, domain),)))

    ledger = Ledger()

    def ask(question: Problem, threshold: float) -> Result:
        return verify(question, deadline=limit, options=settings, on_event=raised(on_event, threshold))

    with threads(settings.threads):
        with ledger.spent(Part.PRESOLVE):
            lower = _root_bound(problem)
        with ledger.spent(Part.ATTACK):
            threshold = math.copysign(abs(lower) if math.isfinite(lower) else 0.0, lower)
            points = seek(shifted(problem, threshold), limit, settings.seed)
        found = bracket(problem, ask, within, lower, points, settings.trust)
    y = None if found.x is None else _outputs(problem.graph, found.x)
    counts = summed([ledger.to_dict(), *(result.ledger for result in found.searches)])
    ends = found.lower_bound, found.upper_bound
    return Optimum(*ends, found.x, y, found.reason, found.trust, limit.elapsed(), len(found.searches), counts, settings.to_dict())


def maximize(
    graph: Network, box: Box | Ball | Sequence[Box], objective: ArrayLike | tuple[ArrayLike, ArrayLike], *args: Any, **options: Any
) -> Optimum:
    """The maximum of a linear function of a network's outputs (and inputs): `minimize` of its negative, see there."""
    x_part, y_part = objective if isinstance(objective, tuple) else (None, objective)
    negative = _negative(y_part) if x_part is None else (_negative(x_part), _negative(y_part))
    found = minimize(graph, box, negative, *args, **options)
    return replace(found, lower_bound=-found.upper_bound, upper_bound=-found.lower_bound)


def _objective(graph: Graph, objective: ArrayLike | tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    x_part, y_part = objective if isinstance(objective, tuple) else (np.zeros(graph.nx), objective)
    try:
        x_row, y_row = (array(part).reshape(-1) for part in (x_part, y_part))
    except InvalidInput as error:
        raise InvalidProperty(f"the objective is no array of coefficients: {error}") from error
    if x_row.size != graph.nx or y_row.size != graph.ny:
        shapes = f"{x_row.size} + {y_row.size} coefficients; the network has {graph.nx} inputs and {graph.ny} outputs"
        raise InvalidProperty(f"the objective has {shapes}")
    if not (np.isfinite(x_row).all() and np.isfinite(y_row).all()):
        raise InvalidProperty("the objective has coefficients that are not finite numbers")
    return x_row, y_row


def _negative(part: ArrayLike) -> Array:
    try:
        return -array(part)
    except InvalidInput as error:
        raise InvalidProperty(f"the objective is no array of coefficients: {error}") from error


@torch.no_grad()
def _root_bound(problem: Problem) -> float:
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with ieee():
        return float(bound_batch(problem.graph, group, lower, upper, torch.float64).margins)


@torch.no_grad()
def _outputs(graph: Graph, x: Array) -> Array:
    y: Array = evaluate(graph, torch.from_numpy(x)[None])[0].numpy()
    return y
