"""What a subproblem costs, estimated: trials begin when they are affordable, early where subproblems are dear, later where they are cheap.

No clock takes part, so that a run may repeat exactly, and nothing waits for a measurement that a large network would not live to see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milpverify.propagation.cost import multiplications, undecided_backward
from milpverify.propagation.request import CostTuning
from milpverify.tuning import Tuning

if TYPE_CHECKING:
    import torch

    from milpverify.graph import Graph


class EffortTuning(Tuning):
    """What a subproblem is estimated to cost, and how many are bounded at a time."""

    box: float = 3e-4
    split: float = 1e-3
    """Seconds that bounding a box, and a subproblem of split neurons, take in any case: what is not multiplications."""
    largest_cpu: int = 4096
    largest_cuda: int = 1 << 17
    """Subproblems at a time at most."""
    pays: float = 1.04
    """How much faster the larger of two neighbouring sizes must be to be kept: it makes the search less choosy, and costs memory."""
    rounds: int = 3
    """Full batches of one size before it is judged, by the fastest: what else the machine does only slows."""
    plain: float = 1.25
    """A gain over half the size that needs no second look."""
    slowest: float = 2.0
    """Seconds that a batch should not exceed: a run heeds its deadline between the steps of one."""
    again: int = 64
    """Batches after which a settled size is compared with its neighbours anew, for subproblems change as the search goes on."""

    def largest(self, device: torch.device) -> int:
        """Subproblems at a time at most, on a device."""
        return self.largest_cuda if device.type == "cuda" else self.largest_cpu


@dataclass(frozen=True)
class Effort:
    """`each`: the seconds that a subproblem is estimated to take."""

    each: float

    @staticmethod
    def of_boxes(graph: Graph, seconds: float = 0.0, tuning: EffortTuning = EffortTuning(), cost: CostTuning = CostTuning()) -> Effort:
        """Of boxes bounded by backward passes, or by what takes so many seconds."""
        return Effort(max(tuning.box, seconds or undecided_backward(graph, cost) / cost.backward_rate))

    @staticmethod
    def of_splits(graph: Graph, passes: int, tuning: EffortTuning = EffortTuning(), cost: CostTuning = CostTuning()) -> Effort:
        """Of subproblems of split neurons, with so many passes forward and backward through the network."""
        return Effort(max(tuning.split, 3.0 * passes * math.fsum(multiplications(graph, cost)) / cost.backward_rate))

    def subproblems(self, seconds: float) -> float:
        """How many are estimated to take so long, one at least."""
        return max(1.0, seconds / self.each)
