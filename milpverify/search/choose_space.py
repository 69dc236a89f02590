"""The choice between bisecting inputs and splitting neurons, measured: both run in turns until one is ahead, which goes on alone.

A tree's bound rises by about as much whenever the tree doubles. Ahead is who would close the rest of the root's gap to 0 after fewer
doublings, at the rate seen so far: both have the same time (or, where choices go by counts, as many subproblems as cost about the
same), but bisection's first steps, many for they are cheap, gain far more than those to come. What either proved stays: a disjunct
that one closed is closed for the other, and bounds meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import torch

from milpverify.search.gap import doublings
from milpverify.search.ledger import Part

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.search.input_split.bisection import Bisection
    from milpverify.search.neuron_split.search import Search
    from milpverify.search.neuron_split.subproblems import NeuronOutcome

ROUNDS = 4
SECONDS, SHARE = 0.2, 0.01
"""What either has in the first round, and the share of the time left that this may be at most; it doubles from round to round."""
BOXES, SPLITS = 1024, 512
"""In place of seconds, the subproblems of the first round."""
AHEAD = 1.0
"""Who needs so many doublings fewer than the other is ahead."""


class SplitSpace(Enum):
    """What a search splits."""

    INPUTS = "inputs"
    NEURONS = "neurons"


@dataclass
class Trial:
    """Both searches over one group, from the same root.

    `root` is the lower bound that both began with. `bound` is the best that is proved by either, `rounds` are the doublings that
    bisection and neuron splits needed after each round.
    """

    boxes: Bisection
    neurons: Search
    root: float
    iterations: int
    bound: float = -math.inf
    rounds: list[tuple[float, float]] = field(default_factory=list)

    def run(self, deadline: Deadline, counted: bool) -> SplitSpace:
        """Run both in turns, neurons first, which mostly win; returns who is to go on, or who ended the search.

        Args:
            counted: whether subproblems are counted instead of seconds.
        """
        seconds = min(SECONDS, SHARE * deadline.remaining())
        self._split(deadline, 0)  # the root takes what it takes
        needs = math.inf, math.inf
        for k in range(ROUNDS):
            turn = deadline if counted else deadline.within(seconds * 2**k)
            neurons = self._split(turn, self.neurons.bounded + SPLITS * 2**k if counted else None)
            self.neurons.deadline = deadline
            if neurons.closed or self.neurons.broken or deadline.expired():
                return SplitSpace.NEURONS
            _tell_boxes(self.neurons, self.boxes)
            turn = deadline if counted else deadline.within(seconds * 2**k)
            with self.boxes.ledger.spent(Part.BISECTION):
                boxes = self.boxes.run(turn, self.boxes.subproblems + BOXES * 2**k if counted else math.inf)
            self.bound = max(self.bound, boxes.lower_bound)
            if boxes.closed or self.boxes.broken or (self.neurons.out_of_memory and not self.boxes.out_of_memory):
                return SplitSpace.INPUTS
            _tell_neurons(self.boxes, self.neurons)
            if self.boxes.out_of_memory:
                return SplitSpace.NEURONS
            of_neurons = doublings(self.root, neurons.lower_bound, self.neurons.bounded)
            needs = doublings(self.root, boxes.lower_bound, boxes.subproblems), of_neurons
            self.rounds.append(needs)
            if abs(needs[0] - needs[1]) > AHEAD and (k or needs[1] < math.inf):
                break
        return SplitSpace.INPUTS if needs[0] < needs[1] else SplitSpace.NEURONS

    def _split(self, deadline: Deadline, limit: int | None) -> NeuronOutcome:
        self.neurons.deadline = deadline
        with self.neurons.ledger.spent(Part.NEURON_SPLITS):
            outcome = self.neurons.run(self.iterations, limit=limit)
        self.bound = max(self.bound, outcome.lower_bound)
        return outcome


def _tell_neurons(boxes: Bisection, search: Search) -> None:
    """Close for the neurons the disjuncts that no box is open for."""
    margins = torch.cat([part.margins for part in (boxes.frontier.all(), boxes.stuck, boxes.held)])
    for place in search.group.closed(margins).all(0).nonzero().flatten().tolist():
        bound = min(boxes.closed_bound, float(margins[:, place].amin()))
        if not math.isfinite(bound):
            continue  # the neurons closed it
        search.closed_bound = min(search.closed_bound, bound)
        search.frontier.remove(search.frontier.store.disjunct == place)
        search.stuck = search.stuck.take(search.stuck.disjunct != place)
        if search.waiting is not None:
            search.waiting = search.waiting.take(search.waiting.disjunct != place)


def _tell_boxes(search: Search, boxes: Bisection) -> None:
    """Close for the boxes the disjuncts that the neurons have nothing left of, and boxes with no other open."""
    left = {place for part in (search.left, search.stuck) for place in part.disjunct.tolist()}
    done = [place for place in range(search.group.count) if place not in left]
    if not done:
        return
    boxes.closed_bound = min(boxes.closed_bound, search.closed_bound)
    for part in (boxes.frontier.store, boxes.stuck, boxes.held):
        part.margins[:, done] = torch.inf
    closed = search.group.closed(boxes.frontier.store.margins).all(1)
    boxes.frontier.remove((boxes.frontier.alive & closed).nonzero(as_tuple=True)[0])
    boxes.stuck = boxes.stuck.take(~search.group.closed(boxes.stuck.margins).all(1))
