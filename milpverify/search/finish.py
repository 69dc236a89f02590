"""Finishing small boxes by neuron splits: where few neurons are unstable, a handful of splits does what thousands of bisections do.

A box shrinks in every input before a kink that matters is on its border; a split puts the kink there at once. Whether that pays is
measured by counts: the share of boxes that a round closes moves the number of unstable neurons up to which it is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milpverify.search.neuron_split import Search
from milpverify.search.relaxer import bound_batch

if TYPE_CHECKING:
    from milpverify.bounds.state import Bounds
    from milpverify.config import Deadline
    from milpverify.graph import Graph
    from milpverify.search.margin import Group
    from milpverify.search.witness import Judgement
    from milpverify.spec import Problem

FIRST = 2000
"""Bisections before the first round: easy problems end earlier."""
ROUND = 256
"""The most boxes a round takes, and a quarter of the fewest."""
BRANCHINGS = 5
"""What a round may spend on a box: some need far more than a handful, and go back to bisection."""


@dataclass
class Finisher:
    """The choice between bisection and neuron splits on small boxes.

    `threshold`: boxes with at most so many unstable neurons are tried. `closed` and `bounded` count boxes and subproblems.
    """

    problem: Problem
    graph: Graph
    group: Group
    deadline: Deadline
    threshold: int = 24
    closed: int = 0
    bounded: int = 0

    def candidates(self, unstable: Tensor, tried: Tensor, subproblems: int) -> Tensor:
        """The boxes to try now (indices), none unless they fill a round to a quarter, and none before `FIRST` subproblems."""
        if self.group.places is None or subproblems < FIRST:
            return torch.zeros(0, dtype=torch.long, device=unstable.device)
        fit = ((unstable <= self.threshold) & ~tried).nonzero(as_tuple=True)[0]
        return fit[:ROUND] if 4 * len(fit) >= ROUND else fit[:0]

    def run(self, lower: Tensor, upper: Tensor, margins: Tensor, known: dict[int, Bounds]) -> tuple[Tensor, Judgement | None]:
        """Split neurons on some boxes; returns which of them are proved (n,) bool, and a judgement if a point was judged."""
        found = bound_batch(self.graph, self.group, lower, upper, torch.float32, known)
        still_open = ~self.group.closed(torch.maximum(found.margins, margins))
        box, disjunct = still_open.nonzero(as_tuple=True)
        search = Search(self.problem, self.graph, self.group, found.state, self.deadline)
        outcome = search.run(iterations=4, root_iterations=4, largest=2 * ROUND, start=search.first(box, disjunct), per_box=BRANCHINGS)
        proved = torch.ones(len(lower), dtype=torch.bool, device=lower.device)
        proved[outcome.open.box] = False
        proved[outcome.stuck.box] = False
        share = float(proved.double().mean())
        self.threshold = max(4, self.threshold - 2) if share < 0.5 else self.threshold + 2 * (share > 0.9)
        self.closed += int(proved.sum())
        self.bounded += search.bounded
        return proved, outcome.judgement
