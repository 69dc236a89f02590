"""The choice between splitting inputs and splitting neurons, measured: both run in turns until one is ahead, which goes on alone.

Where few inputs move the rows bisection begins, for it mostly wins. Where a first hundred boxes show that it will not, both run in turns;
otherwise neurons are tried in a small share of its time, whenever that has doubled.

A tree's bound rises by about as much whenever the tree doubles. Ahead is who would close the rest of the root's gap to 0 after fewer
doublings, at the rate seen so far: both have the same time (or, where choices go by counts, as many subproblems as cost about the
same), but bisection's first steps, many for they are cheap, gain far more than those to come. What either proved stays: a disjunct
that one closed is closed for the other, and bounds meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

from milpverify.result import Trust
from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.gap import doublings
from milpverify.search.ledger import Part
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from collections.abc import Callable

    from milpverify.search.bounding import BatchBounds
    from milpverify.search.groups import Group
    from milpverify.search.input_split.boxes import Boxes
    from milpverify.search.input_split.space import BoxSpace
    from milpverify.search.neuron_split.space import NeuronSpace
    from milpverify.search.neuron_split.subproblems import Subproblems
    from milpverify.search.sharing import Sharing
    from milpverify.search.tree import Tree


class SpaceTuning(Tuning):
    """How long inputs and neurons are tried, and when either is ahead."""

    few: float = 6.0
    many: float = 40.0
    """Where at most so many inputs move the rows bisection begins, where more than so many do it is hopeless."""
    rounds: int = 4
    seconds: float = 0.2
    share: float = 0.01
    """What either has in the first round, and the share of the time left that this may be at most; it doubles from round to round."""
    boxes: int = 1024
    splits: int = 512
    """In place of seconds, the subproblems of the first round, or as many fewer as are estimated to take so long."""
    ahead: float = 1.0
    """Who needs so many doublings fewer than the other is ahead."""
    first: int = 96
    far: float = 3.0
    near: float = 1.0
    """After so many boxes bisection that needs more than `far` doublings is on its way nowhere; with `near` to go it is left alone."""
    head: float = 1.0
    trial: float = 0.05
    """Seconds of bisection before neurons are tried beside it, and the share of its time that they have."""
    least: int = 16
    """Subproblems after which the bound of a tree of split neurons says something."""


class SplitSpace(Enum):
    """What is split."""

    INPUTS = "inputs"
    NEURONS = "neurons"


@dataclass(frozen=True)
class Choice:
    """Which space is split from here on; `rounds` are the doublings that boxes and neurons needed after each round."""

    space: SplitSpace
    rounds: tuple[tuple[float, float], ...] = ()


def moving_inputs(group: Group, root: BatchBounds) -> float:
    """How many inputs move the rows: as many as would move their linear bounds as far if all did so alike.

    That is the square of the sum of the inputs' shares in what moves the rows, over the sum of their squares (the participation ratio);
    between 1 and as many as vary. Heuristic: nothing that is proved rests on it.

    Args:
        root: bounds of the whole box; the coefficients of its rows are (1, rows, nx).
    """
    # Infinite where float64 does not hold it, without a warning.
    width = torch.tensor(group.box.upper, device=group.rhs.device) - torch.tensor(group.box.lower, device=group.rhs.device)
    moved = root.rows.coefficients[0].double().abs() * width
    share = (moved / moved.sum(1, keepdim=True).clamp(min=1e-300)).sum(0)
    found = float(share.sum() ** 2 / (share**2).sum())
    return found if math.isfinite(found) else int((width > 0).sum())


def bisect_first(
    box_space: BoxSpace,
    boxes: Tree[Boxes],
    begin: Callable[[], tuple[NeuronSpace, Tree[Subproblems]]],
    root_bound: float,
    sharing: Sharing[Boxes] | None = None,
) -> SplitSpace | None:
    """Bisect until that ends the search, or neurons, tried beside it, are ahead or end it; None where both are to be tried in turns.

    Neurons are tried after `head` seconds, then whenever bisection's time has doubled, for `trial` of it; where choices go by counts these
    are seconds as estimated. The deadline is looked at after every batch; where it is over, what is open stays open in `boxes`.

    Args:
        boxes: changed.
        begin: the neurons' space and tree, over the same group, made once they are tried.
        root_bound: the lower bound of the margin that both begin with.
        sharing: both ways between the boxes and the solver.
    """
    context = box_space.context
    deadline, clock, counted, tuning = context.deadline, context.clock, context.switches.deterministic, context.tuned(SpaceTuning)
    spent, tried, first, limit = 0.0, 0.0, -math.inf, float(tuning.first)
    while True:
        began, before, turn = clock(), boxes.counts.bounded, max(tuning.head, spent)
        with context.ledger.spent(Part.BISECTION):
            branch_and_bound(boxes, box_space, Budget(deadline, limit, math.inf if counted else turn), sharing)
        spent += (boxes.counts.bounded - before) * box_space.effort.each if counted else clock() - began
        if boxes.closed or boxes.decided or not boxes.unfinished or deadline.expired():
            return SplitSpace.INPUTS
        needs = _needs(root_bound, boxes)
        if boxes.out_of_memory or (limit == tuning.first and needs > tuning.far):
            return None
        limit = boxes.counts.bounded + max(tuning.head, spent) / box_space.effort.each if counted else math.inf
        if needs <= tuning.near or spent < tuning.head:
            continue
        neuron_space, neurons = begin()
        began, before = clock(), neurons.counts.bounded
        with context.ledger.spent(Part.NEURON_SPLITS):
            if neurons.unbounded is not None:
                branch_and_bound(neurons, neuron_space, Budget(deadline, 0))
                first = neurons.lower_bound
            most = neurons.counts.bounded + (tuning.trial * spent - tried) / neuron_space.effort.each if counted else math.inf
            branch_and_bound(neurons, neuron_space, Budget(deadline, most, math.inf if counted else tuning.trial * spent - tried))
        tried += (neurons.counts.bounded - before) * neuron_space.effort.each if counted else clock() - began
        if neurons.closed or neurons.decided:
            return _chosen(SplitSpace.NEURONS, boxes, neurons, []).space
        _tell_boxes(neurons, boxes)
        _tell_neurons(boxes, neurons)
        left = math.log2(tried) + _needs(first, neurons)
        if neurons.counts.bounded >= tuning.least and left + tuning.ahead < math.log2(spent) + needs:
            return _chosen(SplitSpace.NEURONS, boxes, neurons, []).space


def choose_space(
    box_space: BoxSpace,
    boxes: Tree[Boxes],
    neuron_space: NeuronSpace,
    neurons: Tree[Subproblems],
    root_bound: float,
    box_sharing: Sharing[Boxes] | None = None,
    neuron_sharing: Sharing[Subproblems] | None = None,
) -> Choice:
    """Grow both trees in turns, neurons first, which mostly win; says which is to go on, or which ended the search.

    Args:
        boxes, neurons: over one group, from the same root; changed. The bound that either proved is both's afterwards.
        root_bound: the lower bound that both began with.
        box_sharing, neuron_sharing: both ways between each and the solver.
    """
    context = box_space.context
    deadline, counted, tuning = context.deadline, context.switches.deterministic, context.tuned(SpaceTuning)
    seconds = min(tuning.seconds, tuning.share * deadline.remaining())
    splits = min(tuning.splits, neuron_space.effort.subproblems(tuning.seconds))
    boxed = min(tuning.boxes, box_space.effort.subproblems(tuning.seconds))
    rounds: list[tuple[float, float]] = []
    with context.ledger.spent(Part.NEURON_SPLITS):
        branch_and_bound(neurons, neuron_space, Budget(deadline, 0))  # the root takes what it takes
    for k in range(tuning.rounds):
        budget = Budget(deadline, neurons.counts.bounded + splits * 2**k) if counted else Budget(deadline.within(seconds * 2**k))
        with context.ledger.spent(Part.NEURON_SPLITS):
            branch_and_bound(neurons, neuron_space, budget, neuron_sharing)
        if neurons.closed or neurons.decided or deadline.expired():
            return _chosen(SplitSpace.NEURONS, boxes, neurons, rounds)
        _tell_boxes(neurons, boxes)
        budget = Budget(deadline, boxes.counts.bounded + boxed * 2**k) if counted else Budget(deadline.within(seconds * 2**k))
        with context.ledger.spent(Part.BISECTION):
            branch_and_bound(boxes, box_space, budget, box_sharing)
        if boxes.closed or boxes.decided or (neurons.out_of_memory and not boxes.out_of_memory):
            return _chosen(SplitSpace.INPUTS, boxes, neurons, rounds)
        _tell_neurons(boxes, neurons)
        if boxes.out_of_memory:
            return _chosen(SplitSpace.NEURONS, boxes, neurons, rounds)
        needs = _needs(root_bound, boxes), _needs(root_bound, neurons)
        rounds.append(needs)
        if abs(needs[0] - needs[1]) > tuning.ahead and (k or needs[1] < math.inf):
            break
    return _chosen(SplitSpace.INPUTS if needs[0] < needs[1] else SplitSpace.NEURONS, boxes, neurons, rounds)


def _needs(before: float, tree: Tree[Boxes] | Tree[Subproblems]) -> float:
    """How often a tree that began with a bound has to double until nothing is open, at the rate seen so far."""
    return doublings(before, tree.lower_bound, tree.counts.bounded)


def _chosen(space: SplitSpace, boxes: Tree[Boxes], neurons: Tree[Subproblems], rounds: list[tuple[float, float]]) -> Choice:
    """The choice; the bound that either proved, and the points that it found, are both's."""
    boxes.proved = neurons.proved = max(boxes.proved, neurons.proved)
    boxes.raised = neurons.raised = boxes.raised or neurons.raised
    boxes.incumbents.take(neurons.incumbents)
    neurons.incumbents.take(boxes.incumbents)
    return Choice(space, tuple(rounds))


def _tell_neurons(boxes: Tree[Boxes], neurons: Tree[Subproblems]) -> None:
    """Close for the neurons the disjuncts that no box is open for."""
    margins = torch.cat([boxes.left.margins, boxes.unsplittable.margins])
    if not len(margins):
        return
    for place in neurons.group.closed(margins).all(0).nonzero().flatten().tolist():
        bound = min(boxes.closed_bound, float(margins[:, place].amin()))
        if not math.isfinite(bound):
            continue  # the neurons closed it
        neurons.trust = Trust.weakest(neurons.trust, boxes.trust)
        neurons.closed_bound = min(neurons.closed_bound, bound)
        neurons.frontier.remove(neurons.frontier.store.disjunct == place)
        neurons.unsplittable = neurons.unsplittable.take(neurons.unsplittable.disjunct != place)
        if neurons.unbounded is not None:
            neurons.unbounded = neurons.unbounded.take(neurons.unbounded.disjunct != place)


def _tell_boxes(neurons: Tree[Subproblems], boxes: Tree[Boxes]) -> None:
    """Close for the boxes the disjuncts that the neurons have nothing left of, and boxes with no other open."""
    left = {place for part in (neurons.left, neurons.unsplittable) for place in part.disjunct.tolist()}
    done = [place for place in range(neurons.group.count) if place not in left]
    if not done or neurons.out_of_memory:
        return
    boxes.count(neurons.closed_bound)
    boxes.trust = Trust.weakest(boxes.trust, neurons.trust)
    open_parts = [boxes.frontier.store, boxes.unsplittable, boxes.in_progress, *([] if boxes.unbounded is None else [boxes.unbounded])]
    for part in open_parts:
        part.margins[:, done] = torch.inf
    frontier, stuck = boxes.frontier, boxes.unsplittable
    closed = frontier.alive & boxes.group.closed(frontier.store.margins).all(1)
    closed_stuck = boxes.group.closed(stuck.margins).all(1)
    for margins in (frontier.store.margins[closed], stuck.margins[closed_stuck]):
        if len(margins):
            boxes.count(float(margins.amin()))  # of what the boxes closed there themselves
    frontier.remove(closed)
    boxes.unsplittable = stuck.take(~closed_stuck)
