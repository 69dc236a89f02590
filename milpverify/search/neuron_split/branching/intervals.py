"""Scores that look at nothing but intervals, to compare others with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from milpverify.search.neuron_split.branching.heuristic import Heuristic

if TYPE_CHECKING:
    from torch import Tensor

    from milpverify.search.neuron_split.branching.heuristic import Splits


class Widest(Heuristic):
    """The widest interval."""

    name = "widest"

    def score(self, splits: Splits) -> Tensor:
        return (splits.domain.high - splits.domain.low).gather(1, splits.column)


class Random(Heuristic):
    """Any."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def score(self, splits: Splits) -> Tensor:
        return torch.rand(splits.column.shape, generator=self.generator, dtype=torch.float64).to(splits.column.device)
