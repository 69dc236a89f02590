"""Deciding what the presolve and the attack left open, by the method that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from milpverify.result import Counterexample, Reason, Trust, Verdict
from milpverify.search import input_split
from milpverify.search.margin import few_inputs
from milpverify.search.witness import Status

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.config import Deadline, Options
    from milpverify.events import Event
    from milpverify.graph import Graph
    from milpverify.search.margin import Group
    from milpverify.search.relaxer import Bounded
    from milpverify.spec import Array, Problem

METHODS = ("auto", "bab", "milp", "smt")
OnEvent = Callable[["Event"], None] | None


@dataclass(frozen=True)
class Decision:
    """How the search ended: verified, a counterexample, or neither with the reason. `lower_bound` is proved for what was open."""

    verified: bool
    lower_bound: float
    trust: Trust
    counterexample: Counterexample | None = None
    reason: Reason = Reason.UNDECIDED
    note: str = ""
    disagreement: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def decide(
    problem: Problem,
    graph: Graph,
    open_groups: Sequence[tuple[Group, Bounded]],
    points: Mapping[int, Array],
    options: Options,
    deadline: Deadline,
    on_event: OnEvent,
) -> Decision:
    """Decide the open disjuncts.

    Args:
        graph: in float64.
        open_groups: groups with their root bounds, open disjuncts only.
        points: per disjunct, the best input known.
    """
    if options.method in ("milp", "smt"):
        return _by_models(problem, open_groups, points, options, deadline, on_event)
    if options.method == "bab" or all(few_inputs(group) for group, _ in open_groups):
        return _by_input_split(problem, graph, open_groups, deadline, on_event)
    return _by_models(problem, open_groups, points, options, deadline, on_event)


def _by_models(
    problem: Problem, open_groups: Sequence[tuple[Group, Bounded]], points: Mapping[int, Array], options: Options, deadline: Deadline, on_event: OnEvent
) -> Decision:
    from milpverify.search.milp import OpenDisjunct, decide_by_milp
    from milpverify.search.smt import decide_by_smt

    disjuncts = [
        OpenDisjunct(member, disjunct, partial(_root_bounds, root), points.get(member))
        for group, root in open_groups
        for member, disjunct in zip(group.members, group.disjuncts, strict=True)
    ]
    by = decide_by_smt if options.method == "smt" else decide_by_milp
    outcome = by(problem, disjuncts, options, deadline, on_event)
    solvers = sorted({leaf.solver for leaf in outcome.leaves if leaf.solver})
    detail = {"method": "smt" if options.method == "smt" else "milp", "solver": ",".join(solvers), "nodes": sum(leaf.nodes for leaf in outcome.leaves)}
    return Decision(
        outcome.verdict is Verdict.VERIFIED, outcome.lower_bound, outcome.trust, outcome.counterexample, outcome.reason, "; ".join(outcome.notes), detail=detail
    )


def _root_bounds(root: Bounded) -> list[tuple[Tensor, Tensor]]:
    """Per node, the proved bounds over the group's box, without the batch axis."""
    return [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(root.state.items())]


def _by_input_split(problem: Problem, graph: Graph, open_groups: Sequence[tuple[Group, Bounded]], deadline: Deadline, on_event: OnEvent) -> Decision:
    bounds: list[float] = []
    detail: dict[str, Any] = {"method": "input split", "subproblems": 0, "open": 0}
    disagreement = ""
    verified = True
    for group, root in open_groups:
        outcome = input_split.search(problem, graph, group, deadline, on_event=on_event, root=root)
        detail["subproblems"] += outcome.subproblems
        detail["open"] += outcome.open_boxes + outcome.points
        bounds.append(outcome.lower_bound)
        verified &= outcome.closed
        if outcome.judgement is not None and outcome.judgement.status is Status.HOLDS:
            bound = min([*bounds, *(float(root.margins.amin()) for _, root in open_groups[len(bounds) :])])
            return Decision(False, bound, Trust.ROUNDED, outcome.judgement.counterexample, detail=detail)
        disagreement = disagreement or (str(outcome.judgement) if outcome.judgement is not None else "")
    return Decision(verified, min(bounds, default=math.inf), Trust.ROUNDED, disagreement=disagreement, detail=detail)
