"""The choice between bisecting inputs and splitting neurons, measured: both run in turns until one is ahead, which goes on alone.

Ahead is whose proved lower bound closed more of the root's gap to 0 in the same time (or, where choices go by counts, with as many
subproblems as cost about the same). What either proved stays: a disjunct that one closed is closed for the other, and bounds meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from milpverify.config import Deadline
    from milpverify.search.input_split import Bisection
    from milpverify.search.neuron_split import Search

ROUNDS = 4
SECONDS, SHARE = 0.2, 0.01
"""What either has in the first round, and the share of the time left that this may be at most; it doubles from round to round."""
BOXES, SPLITS = 1024, 512
"""In place of seconds, the subproblems of the first round."""
AHEAD, LEAST = 2.0, 0.02
"""Who closed so many times the other's share of the gap, and at least so much of it, is ahead."""


@dataclass
class Trial:
    """Both searches over one group, from the same root.

    `root` is the lower bound that both began with. `bound` is the best that is proved by either, `winner` whose search goes on.
    """

    boxes: Bisection
    neurons: Search
    root: float
    iterations: int
    bound: float = -math.inf
    rounds: list[tuple[float, float]] = field(default_factory=list)

    def run(self, deadline: Deadline, counted: bool) -> str:
        """Run both in turns; returns who is to go on, "inputs" or "neurons", or who ended the search.

        Args:
            counted: whether subproblems are counted instead of seconds.
        """
        seconds = min(SECONDS, SHARE * deadline.remaining())
        for k in range(ROUNDS):
            turn = math.inf if counted else seconds * 2**k
            limit = self.boxes.subproblems + BOXES * 2**k if counted else math.inf
            with self.boxes.ledger.spent("bisection bounds"):
                boxes = self.boxes.run(deadline.within(turn), limit)
            self.bound = max(self.bound, boxes.lower_bound)
            if boxes.closed or self.boxes.broken or deadline.expired():
                return "inputs"
            _tell_neurons(self.boxes, self.neurons)
            self.neurons.deadline = deadline.within(turn)
            more = self.neurons.bounded + SPLITS * 2**k if counted else None
            with self.neurons.ledger.spent("neuron-split bounds"):
                neurons = self.neurons.run(self.iterations, limit=more)
            self.neurons.deadline = deadline
            self.bound = max(self.bound, neurons.lower_bound)
            if neurons.closed or self.neurons.broken or self.boxes.out_of_memory:
                return "neurons"
            _tell_boxes(self.neurons, self.boxes)
            if not len(self.boxes.frontier) + len(self.boxes.stuck) or self.neurons.out_of_memory:
                return "inputs"
            shares = self._share(boxes.lower_bound), self._share(neurons.lower_bound)
            self.rounds.append(shares)
            if max(shares) > max(LEAST, AHEAD * min(shares)):
                break
        return "inputs" if shares[0] > shares[1] else "neurons"

    def _share(self, bound: float) -> float:
        """The share of the root's gap that is closed."""
        if not math.isfinite(self.root):
            return 1.0 / max(1.0, -bound)
        return max(0.0, 1.0 - bound / self.root) if self.root < 0 else 1.0


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
