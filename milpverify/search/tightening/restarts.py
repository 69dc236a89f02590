"""The search over neurons and bound tightening in turns: the tree begins anew whenever its root is tighter.

The tree comes first, for easy problems need nothing else; then as much time goes into tighter bounds, first of all into the slopes of
the root where their optimisation was cut short. Whether it pays is measured: what a turn of tightening closes of the root's gap to 0.
If that is little, the tree goes on alone; otherwise it begins anew from the tighter root, with only what it left open, and turns grow
twice as long. A tree that closed far more of the gap itself gets another turn before: but the last of a gap is the hardest.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from milpverify.result import Trust
from milpverify.search.bounding import choose
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.gap import gap_closed
from milpverify.search.ledger import Part
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.tasks import NeuronTasks
from milpverify.search.sharing import Sharing
from milpverify.search.tightening.solver_targets import SolverTargets
from milpverify.search.tightening.tighten import Tightening
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.config import Deadline
    from milpverify.search.bounding import BatchBounds
    from milpverify.search.context import SearchContext
    from milpverify.search.neuron_split.subproblems import Subproblems
    from milpverify.search.outcome import SearchOutcome
    from milpverify.search.solver.oracle import Oracle
    from milpverify.search.tree import Tree


class RestartTuning(Tuning):
    """How long the tree and tightening have their turns, and when a tighter root is worth beginning anew from."""

    seconds: float = 1.5
    """What the tree and then tightening have in their first turns, both doubled from turn to turn."""
    splits: int = 512
    targets: int = 4096
    """In place of seconds, the subproblems of the first turns where choices go by counts, those of the tree as many fewer as are estimated
    to take so long; tightening's are of a part of the network."""
    least: float = 0.03
    """The share of the root's gap that a turn must close for the tree to begin anew."""
    ahead: float = 0.5
    """How much of what the tree closed of it in its turn for that to be done at once: tighter bounds help the tree all along."""
    by_solver: float = 0.05
    """The share of the gap that a solver's bounds must close to be used."""
    simpler: float = 0.88
    """So much of the unstable neurons must be left for a solver to go on with the model of a looser root."""


def search_with_restarts(space: NeuronSpace, tree: Tree[Subproblems], root: BatchBounds) -> SearchOutcome:
    """Search until everything is closed or unsplittable, a counterexample holds, or the deadline.

    Args:
        space, tree: over the root's group, from the root; the tree may have begun.
        root: of one box.
    """
    context = space.context
    deadline, clock, counted, tuning = context.deadline, context.clock, context.switches.deterministic, context.tuned(RestartTuning)
    tightening = Tightening(context.graph, space.group, root, clock, context.switches)
    targets = SolverTargets(tightening)
    tasks = _tasks(space, targets, None if context.oracle is None else context.oracle.whole())
    for turn in itertools.count():
        sharing, refining = None if tasks is None else Sharing(tasks.oracle, tasks), tightening.root.unrefined > 0
        if not refining and not (context.switches.tightening and tightening.layers):
            branch_and_bound(tree, space, Budget(deadline), sharing)
            break
        began, scale = clock(), 2**turn
        branch_and_bound(tree, space, Budget(deadline, 0), sharing)  # the root takes what it takes
        branch_and_bound(tree, space, _turn(tree, space, scale), sharing)
        if _over(tree, deadline):
            break
        worst, bound, by_solver = float(tightening.root.margins.amin()), tree.lower_bound, False
        if refining:
            with context.ledger.spent(Part.ALPHA_CROWN):
                tightening.refine(deadline)
        else:
            # As long as the tree took, beginning included, but for a beginning that took very long.
            turn_of_tree = tuning.seconds * scale
            seconds = math.inf if counted else turn_of_tree * min(2.0, max(1.0, (clock() - began) / max(1e-9, turn_of_tree)))
            between = None if counted or sharing is None else partial(sharing.share, tree)
            by_solver = _tighten(context, targets, seconds, tuning.targets * scale if counted else math.inf, between)
        gained, by_tree = gap_closed(worst, float(tightening.root.margins.amin())), gap_closed(worst, bound)
        if gained < tuning.least and refining:
            continue
        if gained < tuning.least:
            if tasks is not None:
                tasks.targets = None
            branch_and_bound(tree, space, Budget(deadline), sharing)
            break
        # A tree that is ahead may be about to end; if not, what is left may be what a tighter root is for.
        if gained < tuning.ahead * by_tree and not refining:
            branch_and_bound(tree, space, _turn(tree, space, 2 * scale), sharing)
            if _over(tree, deadline):
                break
        if by_solver:
            tree.trust, tree.raised = Trust.SOLVER, True
        keep = still_open(tree, tightening)
        kept = _kept(context.oracle, keep, tightening.unstable)
        if not keep:
            tree.clear(tree.in_progress)
            break
        space, tree = begin_anew(space, tree, tightening, keep)
        tasks = _tasks(space, targets, kept)
    return tree.outcome({**space.detail(tree), **_detail(tree, tightening)})


def still_open(tree: Tree[Subproblems], tightening: Tightening) -> list[int]:
    """The disjuncts, by their places in the group, that neither the tree nor the tighter root has closed; what that closes is counted."""
    alive = torch.zeros(tree.group.count, dtype=torch.bool, device=tightening.root.margins.device)
    for part in (tree.left, tree.unsplittable):
        alive[part.disjunct] = True
    margins = tightening.root.margins[0]
    closed = tree.group.closed(margins) & alive
    tree.closed_bound = min([tree.closed_bound, *margins[closed].tolist()])
    tree.incumbents.context.ledger.close(Part.TIGHTENING, int(closed.sum()))
    return (alive & ~closed).nonzero().flatten().tolist()


def begin_anew(
    space: NeuronSpace, tree: Tree[Subproblems], tightening: Tightening, keep: list[int]
) -> tuple[NeuronSpace, Tree[Subproblems]]:
    """A tree from the tighter root over the disjuncts that are kept, and its space; what the old one closed, proved and found stays."""
    group = tree.group
    points = {group.members[place]: x for place, (_, x) in tree.incumbents.best.items()}
    if len(keep) < group.count:
        tightening.group, tightening.root = choose(group, tightening.root, keep)
    again = NeuronSpace(replace(space.context, points=points), tightening.group, tightening.root.state, space.tuning)
    young = again.tree()
    young.continues(tree)
    return again, young


def _tasks(space: NeuronSpace, targets: SolverTargets, kept: int | None = None) -> NeuronTasks | None:
    """What the solver is asked for, bounds of pre-activations as well; it may have the disjunct that was kept already."""
    oracle = space.context.oracle
    if oracle is None:
        return None
    tasks = NeuronTasks(space, oracle, targets if space.context.switches.tightening else None)
    tasks.given.update({} if kept is None else {kept: 1})
    return tasks


def _turn(tree: Tree[Subproblems], space: NeuronSpace, scale: float) -> Budget:
    """The time of the tree, or its subproblems where choices go by counts."""
    context, tuning = space.context, space.context.tuned(RestartTuning)
    if context.switches.deterministic:
        return Budget(context.deadline, tree.counts.bounded + min(tuning.splits, space.effort.subproblems(tuning.seconds)) * scale)
    return Budget(context.deadline, seconds=tuning.seconds * scale)


def _over(tree: Tree[Subproblems], deadline: Deadline) -> bool:
    """Whether a turn ended for another reason than its end."""
    return tree.closed or tree.decided or tree.out_of_memory or deadline.expired() or not len(tree.left)


def _tighten(context: SearchContext, targets: SolverTargets, seconds: float, limit: float, between: Callable[[], None] | None) -> bool:
    """Tighten the root, and take what a solver proved of its pre-activations where it pays; whether the root rests on a solver."""
    tightening = targets.tightening
    bounded = tightening.bounded
    with context.ledger.spent(Part.TIGHTENING):
        tightening.run(context.deadline, seconds, limit, between)
        by_solver = _met(targets, context.deadline, context.tuned(RestartTuning).by_solver)
    context.ledger.bound(Part.TIGHTENING, tightening.bounded - bounded)
    return by_solver


def _met(targets: SolverTargets, deadline: Deadline, least: float) -> bool:
    """Take what the solver proved of pre-activations, where it closes such a share of the gap; whether the root rests on it."""
    tightening, before = targets.tightening, targets.tightening.root
    if bool(tightening.group.closed(before.margins).all()) or not targets.meet(deadline):
        return False
    if gap_closed(float(before.margins.amin()), float(tightening.root.margins.amin())) >= least:
        return True
    tightening.root = before
    return False


def _kept(oracle: Oracle | None, keep: list[int], unstable: int) -> int | None:
    """The new place of the disjunct that the solver works on as a whole, if that is still open and a new model no simpler by far."""
    task = None if oracle is None else oracle.task
    if oracle is None or task is None or task.target is not None:
        return None
    if oracle.whole() not in keep or unstable < oracle.options.search.tuned(RestartTuning).simpler * task.unstable:
        oracle.close()
        return None
    place = keep.index(task.disjunct)
    oracle.move(place)
    return place


def _detail(tree: Tree[Subproblems], tightening: Tightening) -> dict[str, Any]:
    """Counts for the ledger."""
    if not tightening.bounded and not tree.counts.restarts:
        return {}
    unstable = {"unstable_before": tightening.first_unstable, "unstable_after": tightening.unstable}
    return {"tightened": tightening.bounded, "restarts": tree.counts.restarts, **unstable}
