"""Deciding what the presolve and the attack left open, by the method that was asked for."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from milpverify.config import SearchMethod
from milpverify.propagation.state import node_ranges
from milpverify.result import Trust, Verdict
from milpverify.search.attack_turns import AttackTurns
from milpverify.search.bounding import choose
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.choose_space import SpaceTuning, SplitSpace, bisect_first, choose_space, moving_inputs
from milpverify.search.groups import GroupTuning, few_inputs
from milpverify.search.input_split.space import BoxSpace
from milpverify.search.input_split.tasks import BoxTasks
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.tasks import NeuronTasks
from milpverify.search.outcome import together
from milpverify.search.sharing import Sharing
from milpverify.search.solver.leaves import Leaves
from milpverify.search.solver.oracle import Oracle
from milpverify.search.solver.pace import Pace, ProgramTuning
from milpverify.search.tightening.restarts import search_with_restarts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milpverify.search.bounding import BatchBounds
    from milpverify.search.context import SearchContext
    from milpverify.search.groups import Group
    from milpverify.search.neuron_split.subproblems import Subproblems
    from milpverify.search.outcome import SearchOutcome
    from milpverify.search.tree import Tree


def decide(context: SearchContext, open_groups: Sequence[tuple[Group, BatchBounds]]) -> SearchOutcome:
    """Decide the open disjuncts, group after group.

    Args:
        open_groups: groups with their root bounds, open disjuncts only. The reporter's `others` is a proved bound of what is not open any
            more (changed).
    """
    options, reporter = context.options, context.reporter
    if options.method in (SearchMethod.MILP, SearchMethod.SMT):
        return _by_models(context, open_groups)
    parts: list[SearchOutcome] = []
    bare, bounded = _part(open_groups, has_rows=False), _part(open_groups, has_rows=True)
    if bare:
        # A disjunct without rows asks whether its input set is empty, which the models answer exactly and at once; until then its margin
        # may be -inf.
        parts.append(_by_models(context, bare))
        if parts[0].counterexample is not None:
            return replace(parts[0], lower_bound=-math.inf)
        reporter.others = min(reporter.others, parts[0].lower_bound)
        reporter.trust_of_others = Trust.weakest(reporter.trust_of_others, parts[0].trust)
    before, trust_before, bare_parts = reporter.others, reporter.trust_of_others, len(parts)
    programs = Leaves(context.problem, context.deadline, pace=Pace(tuning=context.tuned(ProgramTuning)))
    with Oracle(context.problem, options, context.deadline, reporter) as oracle, programs as leaves:
        context = replace(
            context,
            oracle=oracle if options.method is SearchMethod.AUTO and context.switches.oracle else None,
            leaves=leaves if (context.switches.leaves if context.graph.piecewise_linear else context.switches.programs) else None,
        )
        for k, (group, root) in enumerate(bounded):
            done, untouched = parts[bare_parts:], [float(found.margins.amin()) for _, found in bounded[k + 1 :]]
            reporter.others, reporter.floor = min([before, *(p.lower_bound for p in done), *untouched]), float(root.margins.amin())
            reporter.trust_of_others = Trust.weakest(trust_before, *(p.trust for p in done))
            whole = few_inputs(group, context.tuned(GroupTuning)) or context.switches.deterministic
            share = context.deadline if whole else context.deadline.within(context.deadline.remaining() / (len(bounded) - k))
            parts.append(search_group(_attacked(context.until(share)), group, root))
            if oracle.task is not None:
                oracle.close()  # its task belongs to this group: to the next it would be about another disjunct
            if parts[-1].counterexample is not None:
                untouched_bound = min([math.inf, *untouched])
                parts[-1] = replace(parts[-1], lower_bound=min(parts[-1].lower_bound, untouched_bound))
                break
    if oracle.counts["oracle_tasks"]:
        ledger, usage = context.ledger, oracle.usage
        ledger.bounded[Part.SOLVER_PROCESS], ledger.seconds[Part.SOLVER_PROCESS] = usage.nodes, usage.seconds
    return together(parts)


def _attacked(context: SearchContext) -> SearchContext:
    """The same with attacks between batches, where attacks are wanted at all."""
    if not context.options.attack:
        return context
    problem, graph, options, deadline, reporter = context.problem, context.graph, context.options, context.deadline, context.reporter
    return replace(context, attacks=AttackTurns(problem, graph, options, deadline, reporter, context.clock, context.points))


def search_group(context: SearchContext, group: Group, root: BatchBounds) -> SearchOutcome:
    """One group: on neurons where many inputs move the rows; otherwise on what a trial of inputs and neurons shows to be better."""
    trial, oracle, bound = dict[str, int](), context.oracle, float(root.margins.amin())

    @cache
    def neurons() -> tuple[NeuronSpace, Tree[Subproblems]]:
        space = NeuronSpace(context, group, root.state)
        return space, space.tree()

    moving, tuning = moving_inputs(group, root), context.tuned(SpaceTuning)
    if moving > tuning.many:
        chosen: SplitSpace | None = SplitSpace.NEURONS
    else:
        space = BoxSpace(context, group, root)
        boxes, sharing = space.tree(), None if oracle is None else Sharing(oracle, BoxTasks(space, oracle))
        chosen = bisect_first(space, boxes, neurons, bound, sharing) if moving <= tuning.few else None
        if chosen is None:
            beside = None if oracle is None else Sharing(oracle, NeuronTasks(neurons()[0], oracle))
            chosen = choose_space(space, boxes, *neurons(), bound, sharing, beside).space
        if neurons.cache_info().currsize:
            trial = {"trial": boxes.counts.bounded if chosen is SplitSpace.NEURONS else neurons()[1].counts.bounded}
    if chosen is SplitSpace.NEURONS:
        with context.ledger.spent(Part.NEURON_SPLITS):
            outcome = search_with_restarts(*neurons(), root)
    else:
        with context.ledger.spent(Part.BISECTION):
            branch_and_bound(boxes, space, Budget(context.deadline), sharing)
        outcome = boxes.outcome(space.detail(boxes))
    return replace(outcome, detail={**outcome.detail, **trial})


def _part(open_groups: Sequence[tuple[Group, BatchBounds]], has_rows: bool) -> list[tuple[Group, BatchBounds]]:
    """The groups with those of their disjuncts alone that have rows, or have none."""
    parts = []
    for group, root in open_groups:
        chosen = [k for k, d in enumerate(group.disjuncts) if bool(len(d.unsafe)) is has_rows]
        if chosen:
            parts.append((group, root) if len(chosen) == group.count else choose(group, root, chosen))
    return parts


def _by_models(context: SearchContext, open_groups: Sequence[tuple[Group, BatchBounds]]) -> SearchOutcome:
    """One whole model for every disjunct."""
    from milpverify.search.solver.whole_milp import OpenDisjunct, conclude, decide_by_milp
    from milpverify.search.solver.whole_smt import decide_by_smt

    disjuncts = [
        OpenDisjunct(member, disjunct, partial(node_ranges, root.state), context.points.get(member))
        for group, root in open_groups
        for member, disjunct in zip(group.members, group.disjuncts, strict=True)
    ]
    smt, ledger = context.options.method is SearchMethod.SMT, context.ledger
    by = decide_by_smt if smt else decide_by_milp
    with ledger.spent(Part.WHOLE_MODELS):
        leaves, notes = by(context.problem, disjuncts, context.options, context.deadline, context.reporter)
    ledger.close(Part.WHOLE_MODELS, sum(leaf.verdict is Verdict.VERIFIED for leaf in leaves))
    ledger.bound(Part.WHOLE_MODELS, len(leaves))
    return conclude(leaves, len(disjuncts), SearchMethod.SMT if smt else SearchMethod.MILP, notes)
