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
from milpverify.propagation.request import CostTuning
from milpverify.search.bounding import Method, bound_batch

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.graph import Graph
    from milpverify.search.bounding import BatchBounds, Prepared
    from milpverify.search.groups import Group

FIRST, AGAIN = 4000, 8
"""Subproblems before the first comparison (easy problems end earlier), or as many fewer as are estimated to take
`FIRST_SECONDS`; and the factor between one and the next."""
FIRST_SECONDS = 1.2
SAMPLE, SMALLEST = 256, 8
"""Boxes that methods are compared on: fewer where they are dear, and then later."""
SHARE = 0.1
"""Of the time spent so far, what a comparison may take."""
CLOSES, GAIN = 0.9, 1.2
"""A method must close at least this share of what backward passes close, and this much more for its time."""
CLOSES_BY_COUNTS = 0.98
TIE = 1e-6
"""Margins nearer to 0 than this count as this far below it, where it matters by what factor one is nearer than another."""


@dataclass(eq=False)
class MethodChoice:
    """The method in use, `now`, and what is known of each: boxes, boxes closed and seconds.

    Args:
        forward: whether forward forms may be used at all.
        deterministic: whether times must not matter.
        seconds: that backward passes take for a box, as estimated; 0 where they are cheap. `first`: what the method begun with takes.
    """

    forward: bool = True
    deterministic: bool = False
    seconds: float = 0.0
    first: float = 0.0
    now: Method = Method.BACKWARD
    seen: dict[Method, tuple[int, int, float]] = field(default_factory=dict)
    next: int = FIRST

    @staticmethod
    def begun(
        graph: Graph,
        group: Group,
        root: BatchBounds,
        prepared: Prepared,
        forward: bool,
        deterministic: bool,
        cost: CostTuning = CostTuning(),
    ) -> MethodChoice:
        """The method to begin with: where backward passes are dear, by what they take and gain on the whole box, against forward forms.

        Args:
            root: the bounds of the whole box, by the best method that was affordable.
        """
        choice = MethodChoice(forward, deterministic)
        if forward and is_dear(graph, cost):
            ends = root.state[0].bounds
            varying = int((ends.upper > ends.lower).sum())
            backward = backward_passes(graph, root.state, tuning=cost)
            choice.seconds = choice.first = backward / cost.backward_rate
            if varying <= cost.few:
                found = bound_batch(graph, group, ends.lower, ends.upper, torch.float32, method=Method.FORWARD, prepared=prepared)
                missing, left = (max(TIE, -float(bounds.margins.amin())) for bounds in (found, root))
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
        return self.forward and subproblems >= self.next and 2 * batch >= size >= SMALLEST

    def sample(self, count: int, device: torch.device, spent: float = math.inf) -> Tensor:
        """Places spread evenly over a batch."""
        size = self._size(spent)
        return torch.arange(0, count, max(1, count // size), device=device)[:size]

    def _size(self, spent: float) -> int:
        return int(min(SAMPLE, SHARE * spent / self.seconds)) if self.seconds and not self.deterministic else SAMPLE

    def took(self, method: Method, boxes: int, closed: int, seconds: float) -> None:
        """A method bounded so many boxes and closed so many of them."""
        self.seen[method] = boxes, closed, seconds

    def choose(self) -> None:
        """Take the method that closes most for its time."""
        self.next *= AGAIN
        reference = self.seen[Method.BACKWARD]
        self.now = Method.BACKWARD
        best = GAIN * self._worth(Method.BACKWARD)
        for method in self.candidates[1:]:
            enough = self.seen[method][1] >= (CLOSES_BY_COUNTS if self.deterministic else CLOSES) * max(1, reference[1])
            if enough and (self.deterministic or self._worth(method) > best):
                self.now, best = method, self._worth(method)

    def _worth(self, method: Method) -> float:
        _, closed, seconds = self.seen[method]
        return closed / max(seconds, 1e-9)
