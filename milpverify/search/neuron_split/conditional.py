"""The root of the neuron search under "the point is unsafe": one state per disjunct, whose bounds belong to that disjunct alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from milpverify.propagation.interval import follow
from milpverify.propagation.optimised.beta import OutputConstraints
from milpverify.propagation.optimised.output_constraints import ConstraintTuning, tightened
from milpverify.propagation.state import Bounds, NodeState, State
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.encode.cut_forms import Split
    from milpverify.encode.encoding import NodeRanges
    from milpverify.graph import Graph
    from milpverify.search.neuron_split.bounder import Bounder


class ConditionalTuning(Tuning):
    """How far it is pursued what "the point is unsafe" implies: at the root, in clipping, in conflicts."""

    patience: float = 1.0
    """Seconds, as estimated, before the root is bounded anew under output constraints: that takes as long as many subproblems, and clipping
    closes most before."""
    disjuncts: int = 12
    """More disjuncts than this share the unconditional root."""
    neurons: int = 6000
    share: float = 0.15
    """How many neurons, over all disjuncts, are bounded under output constraints in every round, and the share of the time left for it."""
    narrower: float = 0.9
    loses: float = 0.3
    """A tree begins again from ranges that a solver swept where they leave less than so much of the widths, on average, and its root's
    bound is no further below the tree's than such a share of that one."""
    clips: int = 3
    gain: float = 0.1
    """How often a subproblem is clipped by the bounds that clipping gave it, and the share of what a bound lacks that one round must bring
    for another."""
    conflicts: int = 2048
    """Conflicts kept; the newest replace the oldest."""
    length: int = 40
    """Decisions of a conflict at most: longer ones prune little."""
    spent: float = 0.9
    """Of a leaf's margin, what the decisions dropped may cost to first order."""


@dataclass(frozen=True, eq=False)
class ConditionalRoot:
    """A state with one batch entry for each disjunct that is open, `disjuncts` their places in the group; `refuted` those that are not."""

    state: State
    disjuncts: list[int]
    refuted: list[int]


def conditional_root(
    bounder: Bounder,
    places: list[int],
    deadline: Deadline,
    by_counts: bool = False,
    tuning: ConditionalTuning = ConditionalTuning(),
    ascent: ConstraintTuning = ConstraintTuning(),
) -> ConditionalRoot | None:
    """The root of one box under the unsafe set of every disjunct at some places in the group; None where it would not pay.

    The bounds hold at the unsafe points of a disjunct, so that a bound b of its margin below 0 is one of the margin everywhere, and a
    bound above 0 says that there are no unsafe points, which is a margin of at least 0.

    Args:
        ascent: how bounds under the constraints are optimised.
        by_counts: never look at the clock, but for the deadline itself.
    """
    count = len(places)
    if count > tuning.disjuncts or len(bounder.state[0].center) != 1 or not bounder.relaxations.count:
        return None
    states: list[State] = []
    disjuncts: list[int] = []
    refuted: list[int] = []
    for k, d in enumerate(places):
        one = torch.tensor([d], device=bounder.graph.device)
        rows, rhs, x_rows = bounder.rows_of(one)
        share = deadline if by_counts else deadline.within(tuning.share * deadline.remaining() / (count - k))
        if share.expired():  # what there is no time for keeps the bounds that hold everywhere
            disjuncts.append(d)
            states.append(bounder.state)
            continue
        most = max(1, tuning.neurons // count)
        found = tightened(bounder.fast, bounder.state, OutputConstraints(rows, x_rows, rhs), most, ascent, share)
        (refuted if found.empty else disjuncts).append(d)
        if not found.empty:
            states.append(found.state)
    if not states:
        return ConditionalRoot({}, disjuncts, refuted)
    return replace(stacked(states, disjuncts), refuted=refuted)


def swept_state(graph: Graph, state: State, ranges: NodeRanges, tuning: ConditionalTuning = ConditionalTuning()) -> State | None:
    """The state of one box met with ranges that a solver proved of a disjunct's unsafe points; None where these are no narrower by much."""
    found: State = {}
    for i, known in state.items():
        low, high = (t.to(known.center.device).reshape(known.bounds.lower.shape) for t in ranges[i])
        found[i] = NodeState(known.bounds.meet(Bounds(low, high)), known.center, known.charge)
    follow(graph, found)
    if any(bool((s.bounds.lower > s.bounds.upper).any()) for s in found.values()):
        return None  # nothing is left: for the solver to say
    widths = [torch.cat([s[z].bounds.width.flatten() for z in graph.readers]) for s in (state, found)]
    wide = widths[0] > 0
    return found if float((widths[1][wide] / widths[0][wide]).mean()) < tuning.narrower else None


def stacked(states: list[State], disjuncts: list[int]) -> ConditionalRoot:
    """The states of some disjuncts as one root."""
    return ConditionalRoot({i: _stacked([s[i] for s in states]) for i in states[0]}, disjuncts, [])


def implied(graph: Graph, plain: State, conditional: State) -> tuple[Split, ...]:
    """The decisions that hold at the unsafe points of a subproblem without having been taken.

    What a linear program of its pieces says of other points is no more about the network: it needs them among its constraints.

    Args:
        plain, conditional: of the one subproblem, without and with the bounds that hold at unsafe points only.
    """
    found: dict[Split, None] = {}
    for y, op in graph.nonlinearities.items():
        if op.pieces is None:
            continue
        (z,) = graph.nodes[y].inputs
        known, now = plain[z].bounds, conditional[z].bounds
        for point in op.pieces.breakpoints:
            for side, news in ((1.0, (now.lower >= point) & (known.lower < point)), (-1.0, (now.upper <= point) & (known.upper > point))):
                found |= dict.fromkeys((z, index, side, point) for index in news[0].flatten().nonzero().flatten().tolist())
    return tuple(found)


def _stacked(states: list[NodeState]) -> NodeState:
    bounds = Bounds(torch.cat([s.bounds.lower for s in states]), torch.cat([s.bounds.upper for s in states]))
    charges = [s.charge for s in states if s.charge is not None]
    return NodeState(bounds, torch.cat([s.center for s in states]), torch.cat(charges) if charges else None)
