"""Deciding what the presolve and the attack left open, by the method that was asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from milpverify.config import SearchMethod
from milpverify.result import Counterexample, Reason, Trust, Verdict
from milpverify.search.bounding import choose
from milpverify.search.choose_space import SplitSpace, Trial
from milpverify.search.groups import few_inputs, many_inputs
from milpverify.search.input_split.bisection import Bisection, SplitOutcome
from milpverify.search.ledger import Part, Reporter
from milpverify.search.neuron_split.search import Search
from milpverify.search.neuron_split.subproblems import NeuronOutcome
from milpverify.search.solver.leaves import Leaves
from milpverify.search.solver.oracle import Oracle
from milpverify.search.tightening.restarts import Restarts

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.config import Deadline, Options
    from milpverify.counterexamples.validate import Validation
    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.groups import Group
    from milpverify.spec import Array, Problem

CANDIDATES, ITERATIONS = 8, 8
"""Of the search over neurons of whole boxes, where bounds are dear and splits must count."""


@dataclass(frozen=True)
class Decision:
    """How the search ended: verified, a counterexample, or neither with the reason.

    `lower_bound` is proved for what was open; it and a closure rest on `trust`.
    """

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
    open_groups: Sequence[tuple[Group, BatchBounds]],
    points: Mapping[int, Array],
    options: Options,
    deadline: Deadline,
    reporter: Reporter,
) -> Decision:
    """Decide the open disjuncts.

    Args:
        graph: in float64.
        open_groups: groups with their root bounds, open disjuncts only.
        points: per disjunct, the best input known.
        reporter: of events and the ledger; its `others` is a proved bound of what is not open any more (changed).
    """
    if not options.method.branches:
        return _by_models(problem, open_groups, points, options, deadline, reporter)
    bounded: list[tuple[Group, BatchBounds]] = []
    bare: list[tuple[Group, BatchBounds]] = []
    for group, root in open_groups:
        for has_rows, part in ((True, bounded), (False, bare)):
            chosen = [k for k, d in enumerate(group.disjuncts) if bool(len(d.unsafe)) is has_rows]
            if chosen:
                part.append((group, root) if len(chosen) == group.count else choose(group, root, chosen))
    switches = options.search
    parts: list[Decision] = []
    if bare:
        # A disjunct without rows asks whether its input set is empty, which the models answer exactly and at once; until then its margin
        # may be -inf.
        parts.append(_by_models(problem, bare, points, options, deadline, reporter))
        if parts[0].counterexample is not None:
            return replace(parts[0], lower_bound=-math.inf)
        reporter.others = min(reporter.others, parts[0].lower_bound)
        reporter.trust_of_others = Trust.weakest(reporter.trust_of_others, parts[0].trust)
    with Oracle(problem, options, deadline, reporter) as oracle, Leaves(problem, deadline) as leaves:
        helper = oracle if options.method is SearchMethod.AUTO and switches.oracle else None
        exact = leaves if switches.leaves and graph.piecewise_linear else None
        if bounded:
            parts.append(_by_tree(problem, graph, bounded, points, deadline, reporter, helper, exact, options))
    if oracle.counts["oracle_tasks"]:
        reporter.ledger.bounded[Part.SOLVER_PROCESS], reporter.ledger.seconds[Part.SOLVER_PROCESS] = oracle.nodes, oracle.seconds
    return _together(parts)


def _by_models(
    problem: Problem,
    open_groups: Sequence[tuple[Group, BatchBounds]],
    points: Mapping[int, Array],
    options: Options,
    deadline: Deadline,
    reporter: Reporter,
) -> Decision:
    from milpverify.search.solver.whole_milp import OpenDisjunct, decide_by_milp
    from milpverify.search.solver.whole_smt import decide_by_smt

    disjuncts = [
        OpenDisjunct(member, disjunct, partial(_root_bounds, root), points.get(member))
        for group, root in open_groups
        for member, disjunct in zip(group.members, group.disjuncts, strict=True)
    ]
    smt = options.method is SearchMethod.SMT
    by = decide_by_smt if smt else decide_by_milp
    with reporter.ledger.spent(Part.WHOLE_MODELS):
        outcome = by(problem, disjuncts, options, deadline, reporter)
    reporter.ledger.close(Part.WHOLE_MODELS, sum(leaf.verdict is Verdict.VERIFIED for leaf in outcome.leaves))
    reporter.ledger.bound(Part.WHOLE_MODELS, len(outcome.leaves))
    solvers = sorted({leaf.solver for leaf in outcome.leaves if leaf.solver})
    method = (SearchMethod.SMT if smt else SearchMethod.MILP).value
    detail = {"method": method, "solver": ",".join(solvers), "nodes": sum(leaf.nodes for leaf in outcome.leaves)}
    verified, note = outcome.verdict is Verdict.VERIFIED, "; ".join(outcome.notes)
    return Decision(verified, outcome.lower_bound, outcome.trust, outcome.counterexample, outcome.reason, note, detail=detail)


def _root_bounds(root: BatchBounds) -> list[tuple[Tensor, Tensor]]:
    """Per node, the proved bounds over the group's box, without the batch axis."""
    return [(s.bounds.lower[0].cpu(), s.bounds.upper[0].cpu()) for _, s in sorted(root.state.items())]


def _by_tree(
    problem: Problem,
    graph: Graph,
    open_groups: Sequence[tuple[Group, BatchBounds]],
    points: Mapping[int, Array],
    deadline: Deadline,
    reporter: Reporter,
    oracle: Oracle | None,
    leaves: Leaves | None,
    options: Options,
) -> Decision:
    """Branch-and-bound, one group after the other."""
    parts: list[Decision] = []
    before, trust_before = reporter.others, reporter.trust_of_others
    for k, (group, root) in enumerate(open_groups):
        untouched = [float(found.margins.amin()) for _, found in open_groups[k + 1 :]]
        reporter.others, reporter.floor = min([before, *(p.lower_bound for p in parts), *untouched]), float(root.margins.amin())
        reporter.trust_of_others = Trust.weakest(trust_before, *(p.trust for p in parts))
        whole = few_inputs(group) or options.search.deterministic
        share = deadline if whole else deadline.within(deadline.remaining() / (len(open_groups) - k))
        part = _search(problem, graph, group, root, points, share, reporter, oracle, leaves, options)
        parts.append(part)
        if oracle is not None and oracle.task is not None:
            oracle.close()  # its task belongs to this group: to the next it would be about another disjunct
        if part.counterexample is not None:
            trust = Trust.weakest(*(p.trust for p in parts))
            return replace(part, lower_bound=min([*(p.lower_bound for p in parts), *untouched]), trust=trust)
    return _together(parts)


def _search(
    problem: Problem,
    graph: Graph,
    group: Group,
    root: BatchBounds,
    points: Mapping[int, Array],
    deadline: Deadline,
    reporter: Reporter,
    oracle: Oracle | None,
    leaves: Leaves | None,
    options: Options,
) -> Decision:
    """One group: on the inputs where few vary, on neurons where many do; between, on what a trial of both shows to be better."""
    switches, delta, seed = options.search, options.delta, options.seed

    def make(group: Group, root: BatchBounds, points: Mapping[int, Array]) -> Search:
        state = root.state
        return Search(problem, graph, group, state, deadline, reporter, points, oracle, leaves, CANDIDATES, switches, delta, seed)

    def on_neurons(search: Search) -> NeuronOutcome:
        with reporter.ledger.spent(Part.NEURON_SPLITS):
            turns = Restarts(search, make, graph, root, oracle, switches.deterministic, switches.tightening)
            return turns.run(ITERATIONS, deadline)

    if many_inputs(group):
        return _of_neurons(on_neurons(make(group, root, points)), oracle)
    boxes = Bisection(problem, graph, group, deadline, torch.float32, reporter, root, switches, leaves, delta=delta)
    if few_inputs(group):
        boxes.consult(oracle)
        with reporter.ledger.spent(Part.BISECTION):
            return _of_boxes(boxes.run(), oracle)
    search = make(group, root, points)
    search.oracle = None  # it is for the one that goes on
    trial = Trial(boxes, search, float(root.margins.amin()), ITERATIONS)
    if trial.run(deadline, switches.deterministic) is SplitSpace.INPUTS:
        boxes.consult(oracle)
        with reporter.ledger.spent(Part.BISECTION):
            part, other = _of_boxes(boxes.run(deadline), oracle), search.bounded
    else:
        search.oracle = oracle
        part, other = _of_neurons(on_neurons(search), oracle), boxes.subproblems
    detail = {**part.detail, "trial": other}
    return replace(part, lower_bound=max(part.lower_bound, trial.bound), detail=detail)


def _of_boxes(outcome: SplitOutcome, oracle: Oracle | None) -> Decision:
    detail = {"method": "input split", "subproblems": outcome.subproblems, "open": outcome.open_boxes + outcome.points, **outcome.detail}
    example, disagreement = _verdict_of(outcome.judgement)
    if oracle is not None:
        example, disagreement = example or oracle.counterexample, disagreement or oracle.disagreement
    note = "; ".join(filter(None, [outcome.note, *(oracle.notes if oracle else [])]))
    return Decision(outcome.closed, outcome.lower_bound, outcome.trust, example, outcome.reason, note, disagreement, detail)


def _of_neurons(outcome: NeuronOutcome, oracle: Oracle | None) -> Decision:
    example, disagreement = _verdict_of(outcome.judgement)
    if oracle is not None:
        example, disagreement = example or oracle.counterexample, disagreement or oracle.disagreement
    trust = outcome.trust
    return Decision(outcome.closed, outcome.lower_bound, trust, example, outcome.reason, outcome.note, disagreement, outcome.detail)


def _verdict_of(judgement: Validation | None) -> tuple[Counterexample | None, str]:
    """The counterexample, or the disagreement of semantics in words."""
    if judgement is None:
        return None, ""
    return judgement.counterexample, "" if judgement.counterexample is not None else str(judgement)


def _together(parts: Sequence[Decision]) -> Decision:
    """Decisions about parts of the disjuncts as one about all of them."""
    if len(parts) == 1:
        return parts[0]
    bound = min(p.lower_bound for p in parts)
    trust = Trust.weakest(*(p.trust for p in parts))
    detail: dict[str, Any] = {}
    for part in parts:
        numbers = {k: detail.get(k, 0) + v for k, v in part.detail.items() if isinstance(v, int)}
        detail = {**detail, **part.detail, **numbers}
    weakest = next((p for p in parts if p.counterexample is not None), next((p for p in parts if not p.verified), parts[0]))
    return replace(weakest, lower_bound=bound, trust=trust, detail=detail)
