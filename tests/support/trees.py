"""Trees and their spaces as the tests want them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from milpverify.config import Deadline, Options, SearchOptions
from milpverify.propagation.state import LinearBound
from milpverify.search.bounding import BatchBounds, bound_batch
from milpverify.search.branch_and_bound import Budget, Space, branch_and_bound
from milpverify.search.context import SearchContext
from milpverify.search.frontier import B
from milpverify.search.groups import Group, groups
from milpverify.search.input_split.boxes import Boxes
from milpverify.search.input_split.finish import PLAIN
from milpverify.search.input_split.space import BoxSpace
from milpverify.search.input_split.tasks import BoxTasks
from milpverify.search.ledger import Reporter
from milpverify.search.neuron_split.bounder import NeuronTuning
from milpverify.search.neuron_split.clip import Clipper
from milpverify.search.neuron_split.space import NeuronSpace
from milpverify.search.neuron_split.subproblems import Subproblems
from milpverify.search.neuron_split.tasks import NeuronTasks
from milpverify.search.outcome import SearchOutcome
from milpverify.search.sharing import Sharing
from milpverify.search.solver.leaves import Leaves
from milpverify.search.solver.oracle import Oracle
from milpverify.search.tree import Tree
from milpverify.spec import Array, Problem

EVERYTHING = SearchOptions()


def context_of(
    problem: Problem,
    deadline: Deadline | float = 60.0,
    options: SearchOptions = EVERYTHING,
    *,
    trust: str = "solver",
    leaves: Leaves | None = None,
    oracle: Oracle | None = None,
    reporter: Reporter | None = None,
    points: Mapping[int, Array] | None = None,
) -> SearchContext:
    """What a search is told; a deadline may be seconds."""
    until = deadline if isinstance(deadline, Deadline) else Deadline(deadline)
    every = Options(search=options, trust=trust)  # type: ignore[arg-type]
    return SearchContext(problem, problem.graph, until, every, reporter or Reporter(None), points or {}, leaves, oracle)


def root_of(problem: Problem, dtype: torch.dtype = torch.float64) -> tuple[Group, BatchBounds]:
    """The one group of a problem, and its bounds."""
    (group,) = groups(problem)
    lower, upper = (torch.tensor(side)[None] for side in (group.box.lower, group.box.upper))
    with torch.no_grad():
        return group, bound_batch(problem.graph, group, lower, upper, dtype)


def boxes_of(context: SearchContext, root: BatchBounds | None = None) -> tuple[BoxSpace, Tree[Boxes]]:
    """The bisection of a problem whose disjuncts share a box."""
    (group,) = groups(context.problem)
    with torch.no_grad():
        space = BoxSpace(context, group, root)
        return space, space.tree()


def neurons_of(
    context: SearchContext, tuning: NeuronTuning | None = None, dtype: torch.dtype = torch.float64
) -> tuple[NeuronSpace, Tree[Subproblems]]:
    """The search over neurons of a problem whose disjuncts share a box."""
    group, root = root_of(context.problem, dtype)
    with torch.no_grad():
        space = NeuronSpace(context, group, root.state, tuning)
        return space, space.tree()


def clip(clipper: Clipper, subs: Subproblems, found: LinearBound) -> Subproblems:
    """Subproblems with bounds of their open entries that hold at their unsafe points, and with what these are worth."""
    clipping = clipper.begin(subs, found)
    while (some := clipping.next()) is not None:
        again, _, better = clipper.bounder.bound(some, 0)
        clipping.keep(again, better)
    return clipping.subs


def box_sharing(space: BoxSpace) -> Sharing[Boxes] | None:
    """Both ways to the solver of the space's context."""
    oracle = space.context.oracle
    return None if oracle is None else Sharing(oracle, BoxTasks(space, oracle))


def neuron_sharing(space: NeuronSpace) -> Sharing[Subproblems] | None:
    """Both ways to the solver of the space's context."""
    oracle = space.context.oracle
    return None if oracle is None else Sharing(oracle, NeuronTasks(space, oracle))


def begun(context: SearchContext) -> tuple[NeuronSpace, Tree[Subproblems], Sharing[Subproblems]]:
    """The search over neurons of a problem whose disjuncts share a box, with bounded roots, beside the solver of the context."""
    space, tree = neurons_of(context, NeuronTuning(root_iterations=0))
    grown(tree, space, 0)
    assert context.oracle is not None
    return space, tree, Sharing(context.oracle, NeuronTasks(space, context.oracle))


def grown(tree: Tree[B], space: Space[B, Any], limit: float = math.inf, sharing: Sharing[B] | None = None) -> SearchOutcome:
    """What a tree comes to by the time that it has bounded so many subproblems."""
    with torch.no_grad():
        branch_and_bound(tree, space, Budget(space.context.deadline, limit), sharing)
    return tree.outcome(space.detail(tree))


def bisected(context: SearchContext, limit: float = float("inf")) -> SearchOutcome:
    """What bisection makes of a problem."""
    space, tree = boxes_of(context)
    return grown(tree, space, limit, box_sharing(space))


def split(context: SearchContext, tuning: NeuronTuning | None = None, limit: float = float("inf")) -> SearchOutcome:
    """What the search over neurons makes of a problem."""
    space, tree = neurons_of(context, tuning)
    return grown(tree, space, limit, neuron_sharing(space))


__all__ = [
    "EVERYTHING",
    "PLAIN",
    "begun",
    "bisected",
    "box_sharing",
    "boxes_of",
    "clip",
    "context_of",
    "grown",
    "neuron_sharing",
    "neurons_of",
    "root_of",
    "split",
]
