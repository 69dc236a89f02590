"""What a subproblem costs, estimated: trials begin when they are affordable, early where subproblems are dear, later where they are cheap.

No clock takes part, so that a run may repeat exactly, and nothing waits for a measurement that a large network would not live to see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milpverify.propagation.cost import multiplications, undecided_backward
from milpverify.propagation.request import CostTuning

if TYPE_CHECKING:
    from milpverify.graph import Graph

LEAST_BOX, LEAST_SPLIT = 3e-4, 1e-3
"""Seconds that bounding a box, and a subproblem of split neurons, take in any case: what is not multiplications."""


@dataclass(frozen=True)
class Effort:
    """`each`: the seconds that a subproblem is estimated to take."""

    each: float

    @staticmethod
    def of_boxes(graph: Graph, seconds: float = 0.0, cost: CostTuning = CostTuning()) -> Effort:
        """Of boxes bounded by backward passes, or by what takes so many seconds."""
        return Effort(max(LEAST_BOX, seconds or undecided_backward(graph, cost) / cost.backward_rate))

    @staticmethod
    def of_splits(graph: Graph, passes: int, cost: CostTuning = CostTuning()) -> Effort:
        """Of subproblems of split neurons, with so many passes forward and backward through the network."""
        return Effort(max(LEAST_SPLIT, 3.0 * passes * math.fsum(multiplications(graph, cost)) / cost.backward_rate))

    def subproblems(self, seconds: float) -> float:
        """How many are estimated to take so long, one at least."""
        return max(1.0, seconds / self.each)
