"""Deciding what the presolve and the attack left open, by the method that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from milpverify.result import Counterexample, Reason, Trust, Verdict
from milpverify.search import input_split
from milpverify.search.margin import few_inputs
from milpverify.search.neuron_split import NeuronOutcome, Search
from milpverify.search.relaxer import choose
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
    bounded: list[tuple[Group, Bounded]] = []
    bare: list[tuple[Group, Bounded]] = []
    for group, root in open_groups:
        for has_rows, part in ((True, bounded), (False, bare)):
            chosen = [k for k, d in enumerate(group.disjuncts) if bool(len(d.unsafe)) is has_rows]
            if chosen:
                part.append((group, root) if len(chosen) == group.count else choose(group, root, chosen))
    by_tree = _by_tree(problem, graph, bounded, deadline, on_event) if bounded else None
    # A disjunct without rows asks whether its input set is empty, which the models answer exactly.
    broken = by_tree is not None and by_tree.counterexample is not None
    by_models = _by_models(problem, bare, points, options, deadline, on_event) if bare and not broken else None
    return _together([d for d in (by_tree, by_models) if d is not None])


def _by_models(
    problem: Problem,
    open_groups: Sequence[tuple[Group, Bounded]],
    points: Mapping[int, Array],
    options: Options,
    deadline: Deadline,
    on_event: OnEvent,
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
    method = "smt" if options.method == "smt" else "milp"
    detail = {"method": method, "solver": ",".join(solvers), "nodes": sum(leaf.nodes for leaf in outcome.leaves)}
    verified, note = outcome.verdict is Verdict.VERIFIED, "; ".join(outcome.notes)
    return Decision(verified, outcome.lower_bound, outcome.trust, outcome.counterexample, outcome.reason, note, detail=detail)


def _root_bounds(root: Bounded) -> list[tuple[Tensor, Tensor]]:
    """Per node, the proved bounds over the group's box, without the batch axis."""
    return [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(root.state.items())]


def _by_tree(
    problem: Problem, graph: Graph, open_groups: Sequence[tuple[Group, Bounded]], deadline: Deadline, on_event: OnEvent
) -> Decision:
    """Branch-and-bound, one group after the other: on the inputs where few vary, otherwise on neurons."""
    bounds: list[float] = []
    detail: dict[str, Any] = {"method": "", "subproblems": 0, "open": 0}
    disagreement = ""
    verified = True
    for group, root in open_groups:
        outcome: input_split.SplitOutcome | NeuronOutcome
        if few_inputs(group):
            outcome = input_split.search(problem, graph, group, deadline, on_event=on_event, root=root)
            counts = {"subproblems": outcome.subproblems, "open": outcome.open_boxes + outcome.points}
            name = "input split"
        else:
            outcome = Search(problem, graph, group, root.state, deadline, on_event).run()
            counts = {"subproblems": outcome.detail["subproblems"], "open": outcome.detail["open"] + outcome.detail["stuck"]}
            name = "neuron split"
        detail.update({key: detail[key] + count for key, count in counts.items()}, method=name)
        bounds.append(outcome.lower_bound)
        verified &= outcome.closed
        if outcome.judgement is not None and outcome.judgement.status is Status.HOLDS:
            bound = min([*bounds, *(float(root.margins.amin()) for _, root in open_groups[len(bounds) :])])
            return Decision(False, bound, Trust.ROUNDED, outcome.judgement.counterexample, detail=detail)
        disagreement = disagreement or (str(outcome.judgement) if outcome.judgement is not None else "")
    return Decision(verified, min(bounds, default=math.inf), Trust.ROUNDED, disagreement=disagreement, detail=detail)


def _together(parts: Sequence[Decision]) -> Decision:
    """Decisions about parts of the disjuncts as one about all of them."""
    if len(parts) == 1:
        return parts[0]
    bound = min(p.lower_bound for p in parts)
    trust = Trust.weakest(*(p.trust for p in parts))
    detail: dict[str, Any] = {}
    for part in reversed(parts):
        detail.update(part.detail)
    weakest = next((p for p in parts if p.counterexample is not None), next((p for p in parts if not p.verified), parts[0]))
    return replace(weakest, lower_bound=bound, trust=trust, detail=detail)
