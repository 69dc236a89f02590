"""Which way to bound the pre-activations of boxes: measured on samples of the frontier, for it depends on the network.

With few inputs forward linear forms cost a fraction of backward passes; whether their bounds are nearly as good depends on how deep
the unstable neurons are. What counts is the share of boxes that a method closes for the time it takes. Weaker bounds are handed
down, so that a method that closes markedly fewer boxes is never taken, however fast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from milpverify.propagation.cost import backward_passes, forward_pass, forward_suffices, is_dear
from milpverify.propagation.request import BoundRequest, BoundTuning, CostTuning, Method
from milpverify.search.bounding import bound_batch
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.config import SearchOptions
    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds, Prepared
    from milpverify.search.groups import Group


class BoxTuning(Tuning):
    """How boxes are bounded, and which method does it."""

    batch: int = 1024
    """How many at a time where choices go by counts."""
    combining: int = 20
    """Steps for the weights of rows that are combined."""
    first: int = 4000
    seconds: float = 1.2
    again: int = 8
    """Subproblems before methods are first compared (easy problems end earlier), or as many fewer as are estimated to take so many
    seconds; and the factor between one comparison and the next."""
    sample: int = 256
    smallest: int = 8
    """Boxes that methods are compared on: fewer where they are dear, and then later."""
    share: float = 0.1
    """Of the time spent so far, what a comparison may take."""
    closes: float = 0.9
    gain: float = 1.2
    closes_by_counts: float = 0.98
    """A method must close at least this share of what backward passes close, and this much more for its time; or this share alone, where
    choices go by counts."""
    tie: float = 1e-6
    """Margins nearer to 0 than this count as this far below it, where it matters by what factor one is nearer than another."""


@dataclass(eq=False)
class MethodChoice:
    """The method in use, `now`, and what is known of each: boxes, boxes closed and seconds.

    Args:
        forward: whether forward forms may be used at all.
        deterministic: whether times must not matter.
        tuning: when methods are compared, on how many boxes, and what they are preferred for.
        seconds: that backward passes take for a box, as estimated; 0 where they are cheap. `first`: what the method begun with takes.
    """

    forward: bool = True
    deterministic: bool = False
    tuning: BoxTuning = BoxTuning()
    seconds: float = 0.0
    first: float = 0.0
    now: Method = Method.BACKWARD
    seen: dict[Method, tuple[int, int, float]] = field(default_factory=dict)
    next: int = field(init=False)

    def __post_init__(self) -> None:
        self.next = self.tuning.first

    @staticmethod
    def begun(graph: Graph, group: Group, root: BatchBounds, prepared: Prepared, search: SearchOptions) -> MethodChoice:
        """The method to begin with: where backward passes are dear, by what they take and gain on the whole box, against forward forms.

        Args:
            root: the bounds of the whole box, by the best method that was affordable.
        """
        choice, cost = MethodChoice(search.forward, search.deterministic, search.tuned(BoxTuning)), search.tuned(CostTuning)
        if choice.forward and is_dear(graph, cost):
            ends = root.state[0].bounds
            varying = int((ends.upper > ends.lower).sum())
            backward = backward_passes(graph, root.state, tuning=cost)
            choice.seconds = choice.first = backward / cost.backward_rate
            if varying <= cost.few:
                request = BoundRequest(method=Method.FORWARD, tuning=search.tuned(BoundTuning), cost=cost)
                found = bound_batch(graph, group, ends.lower, ends.upper, torch.float32, request, prepared)
                missing, left = (max(choice.tuning.tie, -float(bounds.margins.amin())) for bounds in (found, root))
                cheap = forward_pass(graph, varying, cost) / cost.forward_rate
                enough = forward_suffices(cheap, choice.seconds, varying, missing, left, cost)
                choice.now = Method.FORWARD if enough else Method.BOTH
                choice.first = cheap if choice.now is Method.FORWARD else choice.seconds
        return choice

    @property
    def candidates(self) -> tuple[Method, ...]:
        """The methods to compare."""
        return (Method.BACKWARD, Method.FORWARD) if self.deterministic else (Method.BACKWARD, Method.FORWARD, Method.BOTH)

    def due(self, subproblems: int, batch: int, spent: float = math.inf) -> bool:
        """Whether to compare them on a batch, after so many subproblems and so many seconds."""
        size = self._size(spent)
        return self.forward and subproblems >= self.next and 2 * batch >= size >= self.tuning.smallest

    def sample(self, count: int, device: torch.device, spent: float = math.inf) -> Tensor:
        """Places spread evenly over a batch of so many boxes, (n,) int64, as many as a comparison may cost after so many seconds."""
        size = self._size(spent)
        return torch.arange(0, count, max(1, count // size), device=device)[:size]

    def _size(self, spent: float) -> int:
        most = self.tuning.sample
        return int(min(most, self.tuning.share * spent / self.seconds)) if self.seconds and not self.deterministic else most

    def took(self, method: Method, boxes: int, closed: int, seconds: float) -> None:
        """A method bounded so many boxes and closed so many of them."""
        self.seen[method] = boxes, closed, seconds

    def choose(self) -> None:
        """Take the method that closes most for its time."""
        tuning = self.tuning
        self.next *= tuning.again
        reference = self.seen[Method.BACKWARD]
        self.now = Method.BACKWARD
        best = tuning.gain * self._worth(Method.BACKWARD)
        for method in self.candidates[1:]:
            enough = self.seen[method][1] >= (tuning.closes_by_counts if self.deterministic else tuning.closes) * max(1, reference[1])
            if enough and (self.deterministic or self._worth(method) > best):
                self.now, best = method, self._worth(method)

    def _worth(self, method: Method) -> float:
        _, closed, seconds = self.seen[method]
        return closed / max(seconds, 1e-9)
