"""The choice between splitting inputs and splitting neurons, measured: both run in turns until one is ahead, which goes on alone.

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

from milpverify.search.branch_and_bound import Budget, branch_and_bound
from milpverify.search.gap import doublings
from milpverify.search.ledger import Part

if TYPE_CHECKING:
    from milpverify.search.input_split.boxes import Boxes
    from milpverify.search.input_split.space import BoxSpace
    from milpverify.search.neuron_split.space import NeuronSpace
    from milpverify.search.neuron_split.subproblems import Subproblems
    from milpverify.search.tree import Tree

ROUNDS = 4
SECONDS, SHARE = 0.2, 0.01
"""What either has in the first round, and the share of the time left that this may be at most; it doubles from round to round."""
BOXES, SPLITS = 1024, 512
"""In place of seconds, the subproblems of the first round, or as many fewer as are estimated to take so long."""
AHEAD = 1.0
"""Who needs so many doublings fewer than the other is ahead."""


class SplitSpace(Enum):
    """What is split."""

    INPUTS = "inputs"
    NEURONS = "neurons"


@dataclass(frozen=True)
class Choice:
    """Which space is split from here on; `rounds` are the doublings that boxes and neurons needed after each round."""

    space: SplitSpace
    rounds: tuple[tuple[float, float], ...] = ()


def choose_space(
    box_space: BoxSpace, boxes: Tree[Boxes], neuron_space: NeuronSpace, neurons: Tree[Subproblems], root_bound: float
) -> Choice:
    """Grow both trees in turns, neurons first, which mostly win; says which is to go on, or which ended the search.

    Args:
        boxes, neurons: over one group, from the same root; changed. The bound that either proved is both's afterwards.
        root_bound: the lower bound that both began with.
    """
    context = box_space.context
    deadline, counted = context.deadline, context.switches.deterministic
    seconds = min(SECONDS, SHARE * deadline.remaining())
    splits, boxed = min(SPLITS, neuron_space.effort.subproblems(SECONDS)), min(BOXES, box_space.effort.subproblems(SECONDS))
    rounds: list[tuple[float, float]] = []
    with context.ledger.spent(Part.NEURON_SPLITS):
        branch_and_bound(neurons, neuron_space, Budget(deadline, 0))  # the root takes what it takes
    for k in range(ROUNDS):
        turn = deadline if counted else deadline.within(seconds * 2**k)
        limit = neurons.counts.bounded + splits * 2**k if counted else math.inf
        with context.ledger.spent(Part.NEURON_SPLITS):
            branch_and_bound(neurons, neuron_space, Budget(turn, limit))
        if neurons.closed or neurons.decided or deadline.expired():
            return _chosen(SplitSpace.NEURONS, boxes, neurons, rounds)
        _tell_boxes(neurons, boxes)
        turn = deadline if counted else deadline.within(seconds * 2**k)
        limit = boxes.counts.bounded + boxed * 2**k if counted else math.inf
        with context.ledger.spent(Part.BISECTION):
            branch_and_bound(boxes, box_space, Budget(turn, limit))
        if boxes.closed or boxes.decided or (neurons.out_of_memory and not boxes.out_of_memory):
            return _chosen(SplitSpace.INPUTS, boxes, neurons, rounds)
        _tell_neurons(boxes, neurons)
        if boxes.out_of_memory:
            return _chosen(SplitSpace.NEURONS, boxes, neurons, rounds)
        needs = (
            doublings(root_bound, boxes.lower_bound, boxes.counts.bounded),
            doublings(root_bound, neurons.lower_bound, neurons.counts.bounded),
        )
        rounds.append(needs)
        if abs(needs[0] - needs[1]) > AHEAD and (k or needs[1] < math.inf):
            break
    return _chosen(SplitSpace.INPUTS if needs[0] < needs[1] else SplitSpace.NEURONS, boxes, neurons, rounds)


def _chosen(space: SplitSpace, boxes: Tree[Boxes], neurons: Tree[Subproblems], rounds: list[tuple[float, float]]) -> Choice:
    """The choice; the bound that either proved, and the points that it found, are both's."""
    boxes.proved = neurons.proved = max(boxes.proved, neurons.proved)
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
